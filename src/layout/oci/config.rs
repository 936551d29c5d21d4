//! Image configurations, and the layers of a rootfs: config and manifest together.

use oci_spec::image::ImageConfiguration;
use serde_json::{Map, Value};

use super::{DOCKER_CONFIG, Descriptor, Manifest, OCI_CONFIG, Platform, parse_json};
use crate::layout::digest::Digest;
use crate::layout::error::{Error, Result};
use crate::layout::soci::manifest::index_of;
use crate::layout::tree::Layer;

/// An image configuration (image-spec `config.md`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// DiffIDs, lowest layer first.
    pub diff_ids: Vec<Digest>,
    /// What the image runs on.
    pub platform: Platform,
    /// Everything else: history, creation time, environment, user, entrypoint.
    pub configuration: ImageConfiguration,
}

/// How a layer's media type says that it is compressed. A hint: the first bytes decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerCompression {
    /// A plain tar.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl ImageConfig {
    /// Proves `bytes` against the manifest's config descriptor, and parses them.
    ///
    /// # Errors
    /// [`Error::SizeMismatch`], [`Error::DigestMismatch`]; [`Error::Document`] for what is no
    /// image configuration (naming its media type: artifacts have others); [`Error::Limit`].
    pub fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Self> {
        descriptor.blob.verify(bytes)?;
        let name = format!("config {}", descriptor.blob.digest);
        let mut value: Value = parse_json(&name, bytes)?;
        let Some(fields) = value.as_object_mut().filter(|f| f.contains_key("rootfs")) else {
            let reason = match descriptor.media_type.as_str() {
                OCI_CONFIG | DOCKER_CONFIG => "it has no rootfs".to_owned(),
                other => format!("media type {other}: this is an artifact, not a container image"),
            };
            return Err(Error::document(name, reason));
        };
        fill_in(fields);
        let configuration: ImageConfiguration =
            serde_json::from_value(value).map_err(|e| Error::document(&*name, e.to_string()))?;
        let rootfs = configuration.rootfs();
        if rootfs.typ() != "layers" {
            let reason = format!("rootfs of type {:?}, expected \"layers\"", rootfs.typ());
            return Err(Error::document(name, reason));
        }
        let diff_ids = rootfs.diff_ids().iter().map(|id| id.parse());
        let diff_ids = diff_ids
            .collect::<Result<Vec<Digest>>>()
            .map_err(|e| Error::document(&*name, format!("diff_ids: {e}")))?;
        let platform = Platform::new(
            &configuration.os().to_string(),
            &configuration.architecture().to_string(),
            configuration.variant().as_deref(),
        );
        Ok(ImageConfig { diff_ids, platform, configuration })
    }

    /// The value of one of the image's labels.
    pub fn label(&self, name: &str) -> Option<&str> {
        let labels = self.configuration.config().as_ref()?.labels().as_ref()?;
        labels.get(name).map(String::as_str)
    }
}

/// The layers of an image's rootfs, lowest first: each descriptor with its DiffID. Layers that
/// carry `urls` ("foreign", "non-distributable") are layers like all others.
///
/// # Errors
/// [`Error::Document`] when manifest and config disagree on the number of layers, and for a layer
/// media type that we cannot apply, naming it.
pub fn rootfs_layers(manifest: &Manifest, config: &ImageConfig) -> Result<Vec<Layer>> {
    let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
    if layers != diff_ids {
        let name = format!("config {}", manifest.config.blob.digest);
        let reason = format!("{diff_ids} diff_ids for the manifest's {layers} layers");
        return Err(Error::document(name, reason));
    }
    // What is no digest names no index; an image is not refused for that.
    let soci_index = index_of(manifest).ok().flatten();
    let layer = |(descriptor, diff_id): (&Descriptor, &Digest)| {
        let media_type = &descriptor.media_type;
        if layer_compression(media_type).is_none() {
            let name = format!("layer {}", descriptor.blob.digest);
            let reason = format!("media type {media_type} is not supported, expected a tar");
            return Err(Error::document(name, reason));
        }
        let (blob, media_type) = (descriptor.blob, media_type.clone());
        let annotations = descriptor.annotations.clone();
        Ok(Layer { blob, diff_id: *diff_id, media_type, annotations, soci_index })
    };
    manifest.layers.iter().zip(&config.diff_ids).map(layer).collect()
}

/// What a layer's media type says about its compression; `None` when it names no layer that we
/// know (image-spec `layer.md`, and Docker's).
pub fn layer_compression(media_type: &str) -> Option<LayerCompression> {
    let suffix = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ]
    .iter()
    .find_map(|tar| media_type.strip_prefix(tar))?;
    match suffix {
        "" => Some(LayerCompression::None),
        "+gzip" | ".gzip" => Some(LayerCompression::Gzip),
        "+zstd" | ".zstd" => Some(LayerCompression::Zstd),
        _ => None,
    }
}

/// Makes what Go writes what `oci_spec` reads: null is absent, and what nobody needs to mount an
/// image may be missing.
fn fill_in(fields: &mut Map<String, Value>) {
    drop_nulls(fields);
    for required in ["architecture", "os"] {
        fields.entry(required).or_insert_with(|| Value::String(String::new()));
    }
    if let Some(rootfs) = fields.get_mut("rootfs").and_then(Value::as_object_mut) {
        drop_nulls(rootfs);
        rootfs.entry("type").or_insert_with(|| Value::String("layers".to_owned()));
        rootfs.entry("diff_ids").or_insert_with(|| Value::Array(Vec::new()));
    }
    for entry in fields.get_mut("history").and_then(Value::as_array_mut).into_iter().flatten() {
        entry.as_object_mut().map(drop_nulls);
    }
    if let Some(config) = fields.get_mut("config").and_then(Value::as_object_mut) {
        drop_nulls(config);
        for set in ["ExposedPorts", "Volumes"] {
            let members = config.get_mut(set).and_then(Value::as_object_mut);
            members.into_iter().flatten().for_each(|(_, v)| *v = Value::Object(Map::new()));
        }
    }
}

fn drop_nulls(fields: &mut Map<String, Value>) {
    fields.retain(|_, value| !value.is_null());
}
