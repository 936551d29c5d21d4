//! From a reference to an image without its layers: index, platform, manifest, configuration.

use super::Deadline;
use super::error::{Error, ErrorKind, Result};
use super::kaniko::{EMPTY_LAYER_BYTES_MAX, empty_layers};
use super::registry::Registry;
use super::sparse::SparseImage;
use crate::layout::Blob;
use crate::layout::oci::{
    self, Descriptor, Document, ImageConfig, Manifest, NESTED_INDEXES_MAX, Platform,
};
use crate::layout::reference::Reference;

/// An image as its registry has it, and how to ask for more of it.
pub struct Resolved<'a> {
    /// Manifest and configuration.
    pub image: SparseImage,
    registry: &'a Registry,
    manifest: Manifest,
    config: ImageConfig,
    deadline: Deadline,
}

/// Asks `registry` for the image that `reference` names, for `platform`. Each request has the
/// patience of `deadline` anew.
///
/// # Errors
/// The image cannot be had, is not what its digests say, or has no rootfs.
pub async fn resolve<'a>(
    registry: &'a Registry,
    reference: &Reference,
    platform: &Platform,
    deadline: Deadline,
) -> Result<Resolved<'a>> {
    let mut wanted = reference.identifier();
    for _ in 0..=NESTED_INDEXES_MAX {
        let found = registry.manifest(&wanted, deadline.renewed()).await?;
        let blob = Blob { digest: found.digest, size: found.bytes.len() as u64 };
        let descriptor = Descriptor::new(found.media_type.clone(), blob);
        match oci::parse_document(&descriptor, &found.bytes)? {
            Document::Index(index) => {
                let chosen = oci::choose_platform(&index.manifests, platform)
                    .map_err(|e| Error::from(e).context(reference))?;
                wanted = chosen.blob.digest.to_string();
            }
            Document::Manifest(manifest) => {
                let bytes = config_bytes(registry, &manifest, deadline.renewed()).await?;
                let config = ImageConfig::parse(&manifest.config, &bytes)?;
                // An artifact has no rootfs to make sparse: say so now.
                oci::rootfs_layers(&manifest, &config)?;
                let image = SparseImage {
                    manifest: found.bytes.to_vec(),
                    manifest_digest: found.digest,
                    media_type: manifest.media_type.clone().unwrap_or(found.media_type),
                    config: bytes,
                    config_blob: manifest.config.blob,
                    tag: reference.tag().map(str::to_owned),
                    source: Some(format!("{}/{}", reference.registry(), reference.repository())),
                };
                return Ok(Resolved { image, registry, manifest: *manifest, config, deadline });
            }
        }
    }
    let message = format!("{reference}: more than {NESTED_INDEXES_MAX} indexes inside each other");
    Err(Error::new(ErrorKind::Invalid, message))
}

async fn config_bytes(
    registry: &Registry,
    manifest: &Manifest,
    deadline: Deadline,
) -> Result<Vec<u8>> {
    match &manifest.config.data {
        Some(data) => Ok(data.clone()),
        None => {
            let blob = &manifest.config.blob;
            Ok(registry.blob_bytes(blob, oci::DOCUMENT_BYTES_MAX, deadline).await?.to_vec())
        }
    }
}

impl Resolved<'_> {
    /// The blobs of layers without entries, each once: kaniko wants to see them.
    ///
    /// # Errors
    /// One cannot be had.
    pub async fn empty_layers(&self) -> Result<Vec<(Blob, Vec<u8>)>> {
        let layers = oci::rootfs_layers(&self.manifest, &self.config)?;
        let mut blobs = Vec::new();
        for blob in empty_layers(&layers) {
            let deadline = self.deadline.renewed();
            let bytes = self.registry.blob_bytes(&blob, EMPTY_LAYER_BYTES_MAX, deadline).await?;
            blobs.push((blob, bytes.to_vec()));
        }
        Ok(blobs)
    }
}
