//! Images for tests: config, manifest and index around layers, put into a registry or a layout.

use std::path::Path;

use bytes::Bytes;
use layoutfs::layout::Digest;
use serde_json::{Value, json};

use super::layer::{Compression, LayerBuilder};
use super::registry::Registry;

/// A layer as it is stored.
#[derive(Debug, Clone)]
pub struct Layer {
    pub media_type: String,
    pub digest: Digest,
    pub diff_id: Digest,
    pub blob: Bytes,
    /// The size of the tar.
    pub tar_bytes: u64,
    /// Annotations of the layer's descriptor.
    pub annotations: Value,
}

/// Documents' names: OCI's or Docker's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Names {
    Oci,
    Docker,
}

/// Collects what an image is made of.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    layers: Vec<(Layer, Compression)>,
    names: Names,
    platform: (String, String),
    variant: Option<String>,
    /// The `config` object inside the config: `Env`, `Cmd`, `User`, `Labels`.
    settings: Value,
    history: Vec<Value>,
    annotations: Value,
}

/// A finished image: its documents' exact bytes.
#[derive(Debug, Clone)]
pub struct Image {
    pub manifest: Bytes,
    pub media_type: String,
    pub digest: Digest,
    pub config: Bytes,
    pub config_digest: Digest,
    pub layers: Vec<Layer>,
    platform: Value,
}

/// Several platforms' images behind one name.
#[derive(Debug, Clone)]
pub struct ImageIndex {
    pub document: Bytes,
    pub media_type: String,
    pub digest: Digest,
    pub images: Vec<Image>,
}

/// Which blobs a written layout has, beside the documents.
#[derive(Debug, Clone, Copy)]
pub enum Fill<'a> {
    /// Every layer.
    Full,
    /// No layer.
    Sparse,
    /// The layers with these positions.
    Layers(&'a [usize]),
}

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// When everything was made.
const CREATED: &str = "2023-11-14T22:13:20Z";

impl Default for ImageBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ImageBuilder {
    /// An OCI image for linux/amd64 without layers.
    pub fn new() -> Self {
        ImageBuilder {
            layers: Vec::new(),
            names: Names::Oci,
            platform: ("linux".into(), "amd64".into()),
            variant: None,
            settings: json!({}),
            history: Vec::new(),
            annotations: json!({}),
        }
    }

    /// Adds a layer on top.
    pub fn layer(self, layer: LayerBuilder, compression: Compression) -> Self {
        self.layer_of_tar(&layer.tar(), compression)
    }

    /// Adds a tar as the top layer.
    pub fn layer_of_tar(self, tar: &[u8], compression: Compression) -> Self {
        let blob = compression.compress(tar);
        self.layer_of_blob(tar, blob, compression)
    }

    /// Adds a blob that somebody else made of `tar`; both are believed.
    pub fn layer_of_blob(
        mut self,
        tar: &[u8],
        blob: impl Into<Bytes>,
        compression: Compression,
    ) -> Self {
        let blob = blob.into();
        let layer = Layer {
            media_type: String::new(),
            digest: Digest::sha256_of(&blob),
            diff_id: Digest::sha256_of(tar),
            blob,
            tar_bytes: tar.len() as u64,
            annotations: json!({}),
        };
        let created_by = format!("layer {}", self.layers.len());
        self.layers.push((layer, compression));
        self.history.push(json!({"created": CREATED, "created_by": created_by}));
        self
    }

    /// Annotates the layer added last.
    pub fn annotate_layer(mut self, name: &str, value: &str) -> Self {
        let (layer, _) = self.layers.last_mut().expect("a layer to annotate");
        layer.annotations[name] = value.into();
        self
    }

    /// Annotates the manifest.
    pub fn annotate(mut self, name: &str, value: &str) -> Self {
        self.annotations[name] = value.into();
        self
    }

    /// A step of the history that made no layer.
    pub fn empty_step(mut self, created_by: &str) -> Self {
        let step = json!({"created": CREATED, "created_by": created_by, "empty_layer": true});
        self.history.push(step);
        self
    }

    /// Names documents as OCI or as Docker does.
    pub fn names(mut self, names: Names) -> Self {
        self.names = names;
        self
    }

    /// For another platform than linux/amd64.
    pub fn platform(mut self, os: &str, architecture: &str, variant: Option<&str>) -> Self {
        self.platform = (os.into(), architecture.into());
        self.variant = variant.map(str::to_owned);
        self
    }

    /// Sets a field of the config's `config`: `("Env", json!(["A=1"]))`.
    pub fn setting(mut self, name: &str, value: Value) -> Self {
        self.settings[name] = value;
        self
    }

    /// Makes the documents.
    pub fn build(self) -> Image {
        let mut platform = json!({"os": self.platform.0, "architecture": self.platform.1});
        if let Some(variant) = &self.variant {
            platform["variant"] = variant.as_str().into();
        }
        let names = self.names;
        let layers: Vec<Layer> = self
            .layers
            .into_iter()
            .map(|(layer, c)| Layer { media_type: layer_media_type(names, c), ..layer })
            .collect();
        let diff_ids: Vec<_> = layers.iter().map(|l| l.diff_id.to_string()).collect();
        let mut config = platform.clone();
        config["created"] = CREATED.into();
        config["config"] = self.settings;
        config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        config["history"] = self.history.into();
        let config = Bytes::from(config.to_string());
        let (media_type, config_type) = match names {
            Names::Oci => (OCI_MANIFEST, OCI_CONFIG),
            Names::Docker => (DOCKER_MANIFEST, DOCKER_CONFIG),
        };
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": media_type,
            "config": descriptor(config_type, &config),
            "layers": layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
        });
        if self.annotations != json!({}) {
            manifest["annotations"] = self.annotations;
        }
        let manifest = Bytes::from(manifest.to_string());
        Image {
            media_type: media_type.to_owned(),
            digest: Digest::sha256_of(&manifest),
            manifest,
            config_digest: Digest::sha256_of(&config),
            config,
            layers,
            platform,
        }
    }
}

impl Layer {
    fn descriptor(&self) -> Value {
        let mut descriptor = descriptor(&self.media_type, &self.blob);
        if self.annotations != json!({}) {
            descriptor["annotations"] = self.annotations.clone();
        }
        descriptor
    }
}

impl Image {
    /// Puts everything into a registry under a tag; gives the manifest's digest.
    pub fn push(&self, registry: &Registry, repository: &str, tag: &str) -> Digest {
        let digest = self.push_untagged(registry, repository);
        registry.tag(repository, tag, digest);
        digest
    }

    /// Writes an OCI layout whose index names this image `tag`.
    pub fn write_layout(&self, dir: &Path, tag: &str, fill: Fill) {
        self.write_blobs(dir, fill);
        let mut descriptor = self.descriptor();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        write_index(dir, descriptor);
    }

    /// Bytes of all layers as stored.
    pub fn layer_bytes(&self) -> u64 {
        self.layers.iter().map(|l| l.blob.len() as u64).sum()
    }

    fn push_untagged(&self, registry: &Registry, repository: &str) -> Digest {
        registry.put_blob(repository, self.config.clone());
        for layer in &self.layers {
            registry.put_blob_as(repository, layer.digest, layer.blob.clone());
        }
        registry.put_manifest(repository, &self.media_type, self.manifest.clone())
    }

    fn write_blobs(&self, dir: &Path, fill: Fill) {
        write_blob(dir, &self.digest, &self.manifest);
        write_blob(dir, &self.config_digest, &self.config);
        for (position, layer) in self.layers.iter().enumerate() {
            let wanted = match fill {
                Fill::Full => true,
                Fill::Sparse => false,
                Fill::Layers(positions) => positions.contains(&position),
            };
            if wanted {
                write_blob(dir, &layer.digest, &layer.blob);
            }
        }
    }

    fn descriptor(&self) -> Value {
        let mut descriptor = descriptor(&self.media_type, &self.manifest);
        descriptor["platform"] = self.platform.clone();
        descriptor
    }
}

impl ImageIndex {
    /// An index over `images`, named as they are.
    pub fn new(images: Vec<Image>) -> Self {
        let docker = images.iter().any(|image| image.media_type == DOCKER_MANIFEST);
        let media_type = if docker { DOCKER_INDEX } else { OCI_INDEX };
        let manifests: Vec<_> = images.iter().map(Image::descriptor).collect();
        let document = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        let document = Bytes::from(document.to_string());
        let digest = Digest::sha256_of(&document);
        ImageIndex { document, media_type: media_type.to_owned(), digest, images }
    }

    /// Puts everything into a registry; the tag points to the index.
    pub fn push(&self, registry: &Registry, repository: &str, tag: &str) -> Digest {
        for image in &self.images {
            image.push_untagged(registry, repository);
        }
        let digest = registry.put_manifest(repository, &self.media_type, self.document.clone());
        registry.tag(repository, tag, digest);
        digest
    }

    /// Writes an OCI layout whose `index.json` names this index `tag`.
    pub fn write_layout(&self, dir: &Path, tag: &str, fill: Fill) {
        for image in &self.images {
            image.write_blobs(dir, fill);
        }
        write_blob(dir, &self.digest, &self.document);
        let mut descriptor = descriptor(&self.media_type, &self.document);
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        write_index(dir, descriptor);
    }
}

fn layer_media_type(names: Names, compression: Compression) -> String {
    let suffix = compression.suffix();
    match (names, suffix) {
        (Names::Oci, "") => "application/vnd.oci.image.layer.v1.tar".into(),
        (Names::Oci, _) => format!("application/vnd.oci.image.layer.v1.tar+{suffix}"),
        (Names::Docker, "") => "application/vnd.docker.image.rootfs.diff.tar".into(),
        (Names::Docker, _) => format!("application/vnd.docker.image.rootfs.diff.tar.{suffix}"),
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    let digest = Digest::sha256_of(bytes).to_string();
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

fn write_blob(dir: &Path, digest: &Digest, bytes: &[u8]) {
    let folder = dir.join("blobs").join(digest.algorithm());
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(digest.hex()), bytes).unwrap();
}

fn write_index(dir: &Path, descriptor: Value) {
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor]});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
