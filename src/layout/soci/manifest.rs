//! SOCI indexes: which zTOC belongs to which layer of an image.
//!
//! An index is an image manifest whose configuration says what it is and whose layers are zTOCs.
//! Version 1 names its image as `subject`, and is found by asking the registry for referrers:
//! whoever may push to the repository may add one. Version 2 has no subject: the image's manifest
//! names it in an annotation, and so it belongs to the image as much as its layers do.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::layout::digest::{Blob, Digest};
use crate::layout::error::{Error, Result};
use crate::layout::oci::{Descriptor, Manifest, OCI_MANIFEST};

/// What an index of version 1 is, as `artifactType` or media type of its configuration.
pub const ARTIFACT_TYPE_V1: &str = "application/vnd.amazon.soci.index.v1+json";
/// What an index of version 2 is.
pub const ARTIFACT_TYPE_V2: &str = "application/vnd.amazon.soci.index.v2+json";
/// Media type of a zTOC in an index.
pub const ZTOC_MEDIA_TYPE: &str = "application/octet-stream";
/// Annotation of an image manifest: the digest of its index of version 2.
pub const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";

const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
const LAYER_MEDIA_TYPE: &str = "com.amazon.soci.image-layer-mediaType";
const SPAN_SIZE: &str = "com.amazon.soci.span-size";
const BUILD_TOOL: &str = "com.amazon.soci.build-tool-identifier";

/// The configuration of every index: an empty object.
pub const CONFIG: &[u8] = b"{}";

/// How an index is tied to its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// By its subject.
    V1,
    /// By an annotation of the image.
    V2,
}

/// A zTOC in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZtocRef {
    /// The zTOC itself.
    pub ztoc: Blob,
    /// Digest of the layer that it is of, as stored.
    pub layer: Digest,
    /// That layer's media type, if it is said.
    pub layer_media_type: Option<String>,
    /// Uncompressed bytes that the spans aim at, if it is said.
    pub span_bytes: Option<u64>,
}

/// A SOCI index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SociIndex {
    /// How it is tied to its image.
    pub version: Version,
    /// The image's manifest (version 1).
    pub subject: Option<Descriptor>,
    /// In the order of the image's layers; small layers have none.
    pub ztocs: Vec<ZtocRef>,
}

impl Version {
    /// The version of an artifact of this type; `None`: it is something else.
    pub fn of(artifact_type: &str) -> Option<Self> {
        match artifact_type {
            ARTIFACT_TYPE_V1 => Some(Version::V1),
            ARTIFACT_TYPE_V2 => Some(Version::V2),
            _ => None,
        }
    }

    fn artifact_type(self) -> &'static str {
        match self {
            Version::V1 => ARTIFACT_TYPE_V1,
            Version::V2 => ARTIFACT_TYPE_V2,
        }
    }
}

/// The digest of the index that an image's manifest names.
///
/// # Errors
/// [`Error::InvalidDigest`] when what it names is none.
pub fn index_of(image: &Manifest) -> Result<Option<Digest>> {
    image.annotations.get(INDEX_DIGEST).map(|digest| digest.parse()).transpose()
}

impl SociIndex {
    /// Parses an index whose bytes have been proved by `blob`, which is how it was named.
    ///
    /// # Errors
    /// [`Error::SizeMismatch`], [`Error::DigestMismatch`]; [`Error::Document`] when it is not an
    /// index, or one that ties no layer or subject; [`Error::Limit`].
    pub fn parse(blob: &Blob, bytes: &[u8]) -> Result<Self> {
        blob.verify(bytes)?;
        let name = format!("SOCI index {}", blob.digest);
        let manifest = Manifest::parse(&name, bytes)?;
        // SOCI writes no `artifactType`.
        let kind = &manifest.config.media_type;
        let version = Version::of(kind).ok_or_else(|| {
            let expected = format!("{ARTIFACT_TYPE_V1} or {ARTIFACT_TYPE_V2}");
            Error::document(&name, format!("its configuration is {kind}, expected {expected}"))
        })?;
        let subject = manifest.subject;
        if subject.is_some() != (version == Version::V1) {
            let has = if subject.is_some() { "a" } else { "no" };
            return Err(Error::document(&name, format!("it has {has} subject")));
        }
        // Others are there, too: what to fetch first.
        let is_ztoc = |layer: &&Descriptor| layer.media_type == ZTOC_MEDIA_TYPE;
        let ztocs = manifest.layers.iter().filter(is_ztoc).map(|layer| read_ztoc(&name, layer));
        Ok(SociIndex { version, subject, ztocs: ztocs.collect::<Result<_>>()? })
    }

    /// It says that it is of the image with this manifest. Version 2 says nothing: the image does.
    pub fn is_of(&self, image: &Digest) -> bool {
        self.subject.as_ref().is_none_or(|subject| subject.blob.digest == *image)
    }

    /// The zTOC of a layer. An image can have one layer several times; it is the same each time.
    pub fn ztoc_of(&self, layer: &Digest) -> Option<&ZtocRef> {
        self.ztocs.iter().find(|ztoc| ztoc.layer == *layer)
    }

    /// The index as a document. Like SOCI's it has no `artifactType`: registries take the media type
    /// of the configuration for it. `build_tool` is for people.
    pub fn to_json(&self, build_tool: &str) -> Vec<u8> {
        let config = descriptor(
            self.version.artifact_type(),
            &Blob { digest: Digest::sha256_of(CONFIG), size: CONFIG.len() as u64 },
        );
        let mut document = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config,
            "layers": self.ztocs.iter().map(write_ztoc).collect::<Vec<_>>(),
            "annotations": {BUILD_TOOL: build_tool},
        });
        if let (Some(subject), Value::Object(fields)) = (&self.subject, &mut document) {
            let subject = descriptor(&subject.media_type, &subject.blob);
            fields.insert("subject".into(), Value::Object(subject));
        }
        document.to_string().into_bytes()
    }
}

fn read_ztoc(name: &str, layer: &Descriptor) -> Result<ZtocRef> {
    let annotation = |key: &str| layer.annotations.get(key);
    let described =
        |reason: String| Error::document(name, format!("zTOC {}: {reason}", layer.blob.digest));
    let of = annotation(LAYER_DIGEST).ok_or_else(|| described("it is of no layer".into()))?;
    let span_bytes = annotation(SPAN_SIZE)
        .map(|text| text.parse().map_err(|_| described(format!("spans of {text:?} bytes"))));
    Ok(ZtocRef {
        ztoc: layer.blob,
        layer: of.parse().map_err(|e: Error| described(e.to_string()))?,
        layer_media_type: annotation(LAYER_MEDIA_TYPE).cloned(),
        span_bytes: span_bytes.transpose()?,
    })
}

fn write_ztoc(ztoc: &ZtocRef) -> Map<String, Value> {
    let mut annotations = BTreeMap::from([(LAYER_DIGEST, ztoc.layer.to_string())]);
    annotations.extend(ztoc.layer_media_type.clone().map(|said| (LAYER_MEDIA_TYPE, said)));
    annotations.extend(ztoc.span_bytes.map(|bytes| (SPAN_SIZE, bytes.to_string())));
    let mut fields = descriptor(ZTOC_MEDIA_TYPE, &ztoc.ztoc);
    fields.insert("annotations".into(), json!(annotations));
    fields
}

fn descriptor(media_type: &str, blob: &Blob) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("mediaType".into(), media_type.into());
    fields.insert("digest".into(), blob.digest.to_string().into());
    fields.insert("size".into(), blob.size.into());
    fields
}
