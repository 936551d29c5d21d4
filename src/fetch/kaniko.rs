//! What the extender reads of a base image: `<kaniko>/cache/base/<digest>`, a sparse layout with
//! the blobs of layers without entries.
//!
//! kaniko gives a layer of its own that has no entries the blob of an equal layer of the base, and
//! then wants to read it. No other layer may be there: the lifecycle would read each as a whole.

use std::path::{Path, PathBuf};

use super::error::Result;
use super::image::{Image, document};
use super::sparse::SparseImage;
use super::store::Store;
use crate::layout::range::ByteRange;
use crate::layout::tree::Layer;
use crate::layout::{Blob, Digest};

/// The DiffID of a layer without entries: 1024 zero bytes.
pub const EMPTY_LAYER_DIFF_ID: &str =
    "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

/// A layer without entries, compressed, is some 30 bytes; a larger one is not fetched.
pub const EMPTY_LAYER_BYTES_MAX: u64 = 4096;

/// Where the extender looks for its base, colon and all.
pub fn base_directory(kaniko: &Path, digest: &Digest) -> PathBuf {
    kaniko.join("cache/base").join(digest.to_string())
}

/// The blobs of layers without entries, each once.
pub fn empty_layers(layers: &[Layer]) -> Vec<Blob> {
    let mut blobs: Vec<Blob> = Vec::new();
    for layer in layers {
        let is_empty = layer.diff_id.to_string() == EMPTY_LAYER_DIFF_ID
            && layer.blob.size <= EMPTY_LAYER_BYTES_MAX;
        if is_empty && !blobs.contains(&layer.blob) {
            blobs.push(layer.blob);
        }
    }
    blobs
}

/// Writes the base below `kaniko`; gives its directory.
///
/// # Errors
/// A document or an empty layer cannot be had; local trouble.
pub async fn write_base(store: &Store, image: &Image, kaniko: &Path) -> Result<PathBuf> {
    let directory = &image.selected.directory;
    let media_type = image.manifest.media_type.clone();
    let base = SparseImage {
        manifest: document(store, directory, &image.descriptor).await?,
        manifest_digest: image.descriptor.blob.digest,
        media_type: media_type.unwrap_or_else(|| image.descriptor.media_type.clone()),
        config: document(store, directory, &image.manifest.config).await?,
        config_blob: image.manifest.config.blob,
        tag: None,
        source: None,
    };
    let mut empty = Vec::new();
    for blob in empty_layers(&image.layers()?) {
        let all = ByteRange::new(0, blob.size);
        let bytes = store.read_proved(&blob, all, store.deadline()).await?;
        empty.push((blob, bytes.to_vec()));
    }
    let written = base_directory(kaniko, &base.manifest_digest);
    base.write(&written, &empty)?;
    Ok(written)
}
