//! One OCI document's bytes -> the descriptors that it refers to.
//!
//! OCI and Docker media types are equals here, and are kept verbatim. Nothing is written again
//! (but by [`append`], [`finalize`] and [`referrer`]): what is stored are the original bytes, so a field that we do
//! not know costs nothing. It does not know where documents come from, nor does it follow
//! descriptors.

pub mod append;
mod choose;
mod config;
mod descriptor;
pub mod finalize;
mod platform;
pub mod referrer;
pub mod trace_artifact;

use std::collections::BTreeMap;

use serde::Deserialize;

pub use choose::choose_image;
pub use config::{ImageConfig, LayerCompression, layer_compression, rootfs_layers};
pub use descriptor::Descriptor;
pub use platform::{Platform, choose_platform};

use super::error::{Error, Result};
use descriptor::RawDescriptor;

/// Most bytes of one index, manifest or config. Registries refuse manifests above 4 MiB
/// (distribution-spec, "Pushing Manifests"), and a parsed document takes several times its size.
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// Most layers of one image. The view `all` shows every layer twice (in the rootfs and alone), and
/// twice this still fits the 16 bits that name a layer in a tree.
pub const LAYERS_MAX: usize = 32_000;

/// Most image indexes between `index.json` and a manifest. Real layouts have one.
pub const NESTED_INDEXES_MAX: usize = 8;

/// Where `docker` and `buildkit` say what a manifest is for, when it is not an image.
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// Image index, OCI.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Image manifest, OCI.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Image configuration, OCI.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Image index, Docker: "manifest list".
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Image manifest, Docker schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Image configuration, Docker.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// An image index or Docker manifest list: images for several platforms, or of several names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageIndex {
    /// What the document says that it is, verbatim.
    pub media_type: Option<String>,
    /// What it lists, in its order.
    pub manifests: Vec<Descriptor>,
    /// Annotations of the index itself.
    pub annotations: BTreeMap<String, String>,
}

/// An image manifest: one config, and layers from lowest to uppermost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What the document says that it is, verbatim.
    pub media_type: Option<String>,
    /// Set when this is an artifact rather than a container image.
    pub artifact_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// Layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// The manifest that this one is about (a referrer's subject).
    pub subject: Option<Descriptor>,
    /// Annotations of the manifest itself.
    pub annotations: BTreeMap<String, String>,
}

/// What a descriptor in an index can lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Another index: choose by platform.
    Index(ImageIndex),
    /// A manifest.
    Manifest(Box<Manifest>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Index,
    Manifest,
}

/// The union of both kinds, so that a document that is both can be refused (it would mean one
/// image to one reader, and another to the next).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
    subject: Option<RawDescriptor>,
    annotations: Option<BTreeMap<String, Option<String>>>,
}

/// Checks the file `oci-layout` (image-spec `image-layout.md`, "oci-layout file").
///
/// # Errors
/// [`Error::Document`] when it is not of version 1.0.0.
pub fn parse_oci_layout(bytes: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Raw {
        image_layout_version: String,
    }
    let raw: Raw = parse_json("oci-layout", bytes)?;
    if raw.image_layout_version == "1.0.0" {
        return Ok(());
    }
    let version = raw.image_layout_version;
    let reason = format!("image layout version {version:?} is not supported, expected \"1.0.0\"");
    Err(Error::document("oci-layout", reason))
}

impl ImageIndex {
    /// Parses `index.json`, or another index; `name` names it in errors.
    ///
    /// # Errors
    /// [`Error::Document`] for anything but an index, [`Error::Limit`] above
    /// [`DOCUMENT_BYTES_MAX`].
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        match parse_named(name, Some(OCI_INDEX), bytes)? {
            Document::Index(index) => Ok(index),
            Document::Manifest(_) => {
                Err(Error::document(name, "it is an image manifest, expected an image index"))
            }
        }
    }
}

impl Manifest {
    /// Parses an image manifest; `name` names it in errors.
    ///
    /// # Errors
    /// [`Error::Document`] for anything but an image manifest, [`Error::Limit`] above
    /// [`DOCUMENT_BYTES_MAX`] and [`LAYERS_MAX`].
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        match parse_named(name, Some(OCI_MANIFEST), bytes)? {
            Document::Manifest(manifest) => Ok(*manifest),
            Document::Index(_) => {
                Err(Error::document(name, "it is an image index, expected an image manifest"))
            }
        }
    }

    /// Some of its media types (its own, as the descriptor says it, the config's, the layers') are
    /// Docker's, and some OCI's. The lifecycle exports such images, and some tools refuse them.
    pub fn has_mixed_media_types(&self, own: &str) -> bool {
        let layers = self.layers.iter().map(|layer| &*layer.media_type);
        let types = || [own, &self.config.media_type].into_iter().chain(layers.clone());
        let is_of = |family: &str| types().any(|t| t.starts_with(family));
        is_of("application/vnd.docker.") && is_of("application/vnd.oci.")
    }
}

/// Proves `bytes` against the descriptor that led to them, and parses them. The kind is judged by
/// the document's own `mediaType`, then by the descriptor's, then by the document's shape.
///
/// # Errors
/// [`Error::SizeMismatch`], [`Error::DigestMismatch`]; [`Error::Document`] for what is neither an
/// index nor an image manifest, naming its media type; [`Error::Limit`].
pub fn parse_document(descriptor: &Descriptor, bytes: &[u8]) -> Result<Document> {
    descriptor.blob.verify(bytes)?;
    let name = format!("manifest {}", descriptor.blob.digest);
    parse_named(&name, Some(&descriptor.media_type), bytes)
}

/// The descriptor claims to lead to an index or a manifest, so that its bytes are worth parsing.
pub fn is_document(descriptor: &Descriptor) -> bool {
    kind_of(&descriptor.media_type).is_some()
}

fn kind_of(media_type: &str) -> Option<Kind> {
    match media_type {
        OCI_INDEX | DOCKER_INDEX => Some(Kind::Index),
        OCI_MANIFEST | DOCKER_MANIFEST => Some(Kind::Manifest),
        _ => None,
    }
}

fn parse_named(name: &str, expected: Option<&str>, bytes: &[u8]) -> Result<Document> {
    let raw: RawDocument = parse_json(name, bytes)?;
    let kind = judge(name, &raw, expected)?;
    let annotations = descriptor::annotations(raw.annotations);
    let all = |list: Option<Vec<RawDescriptor>>| -> Result<Vec<Descriptor>> {
        list.unwrap_or_default().into_iter().map(|raw| raw.check(name)).collect()
    };
    match kind {
        Kind::Index => {
            let manifests = all(raw.manifests)?;
            let media_type = raw.media_type;
            Ok(Document::Index(ImageIndex { media_type, manifests, annotations }))
        }
        Kind::Manifest => {
            let layers = all(raw.layers)?;
            if layers.len() > LAYERS_MAX {
                let what = format!("number of layers of {name}");
                return Err(Error::Limit { what, limit: LAYERS_MAX as u64 });
            }
            let config = raw.config.ok_or_else(|| Error::document(name, "it has no config"))?;
            Ok(Document::Manifest(Box::new(Manifest {
                media_type: raw.media_type,
                artifact_type: raw.artifact_type,
                config: config.check(name)?,
                layers,
                subject: raw.subject.map(|s| s.check(name)).transpose()?,
                annotations,
            })))
        }
    }
}

fn judge(name: &str, raw: &RawDocument, descriptor_says: Option<&str>) -> Result<Kind> {
    let has_manifests = raw.manifests.is_some();
    let has_image = raw.config.is_some() || raw.layers.is_some();
    if has_manifests && has_image {
        let reason = "it has both manifests and layers, so readers would disagree on what it is";
        return Err(Error::document(name, reason));
    }
    if raw.fs_layers.is_some() || raw.schema_version == Some(1) {
        let reason = "Docker schema 1 manifests are not supported: convert the image, \
                      for instance with skopeo copy --format oci";
        return Err(Error::document(name, reason));
    }
    let own = raw.media_type.as_deref().filter(|own| !own.is_empty());
    let shape = match (has_manifests, has_image) {
        (true, _) => Some(Kind::Index),
        (_, true) => Some(Kind::Manifest),
        _ => None,
    };
    let kind = match own {
        Some(own) => kind_of(own),
        None => descriptor_says.and_then(kind_of).or(shape),
    };
    let media_type = own.or(descriptor_says).unwrap_or("none");
    match kind {
        Some(kind) if shape.is_none_or(|shape| shape == kind) => Ok(kind),
        Some(_) => {
            let shape = if has_manifests { "an image index" } else { "an image manifest" };
            let reason = format!("it has the fields of {shape}, expected media type {media_type}");
            Err(Error::document(name, reason))
        }
        None => {
            let reason = format!(
                "media type {media_type} is not supported, expected an image index or manifest"
            );
            Err(Error::document(name, reason))
        }
    }
}

/// Parses JSON within [`DOCUMENT_BYTES_MAX`]; `name` names it in errors.
fn parse_json<'a, T: Deserialize<'a>>(name: &str, bytes: &'a [u8]) -> Result<T> {
    check_size(name, bytes.len() as u64)?;
    serde_json::from_slice(bytes).map_err(|e| Error::document(name, e.to_string()))
}

/// Refuses a document before (or after) its bytes are fetched.
///
/// # Errors
/// [`Error::Limit`] above [`DOCUMENT_BYTES_MAX`].
pub fn check_size(name: &str, bytes: u64) -> Result<()> {
    if bytes <= DOCUMENT_BYTES_MAX {
        return Ok(());
    }
    Err(Error::Limit { what: format!("size in bytes of {name}"), limit: DOCUMENT_BYTES_MAX })
}

#[cfg(test)]
mod tests;
