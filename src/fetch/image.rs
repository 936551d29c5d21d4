//! An image in a layout directory: its documents, local ones first, each proved.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Error, ErrorKind, Result};
use super::layout_dir::{read_blob_document, read_document};
use super::store::Store;
use crate::layout::Digest;
use crate::layout::entry::Time;
use crate::layout::oci::{
    self, Descriptor, Document, ImageConfig, ImageIndex, Manifest, NESTED_INDEXES_MAX, Platform,
};
use crate::layout::tree::Layer;
use crate::layout::view::Documents;

/// The annotation of `index.json` in which `sparse` records where the image came from:
/// `registry/repository`. (Not in the manifest: its digest stays the registry's.)
pub const SOURCE_ANNOTATION: &str = "dev.layoutfs.source";

/// Most bytes of all documents that one layout view holds: they are in memory. Thousands of images
/// have less.
const DOCUMENTS_BYTES_MAX: u64 = 32 << 20;

/// A layout directory whose `index.json` was read, and the image in it that is meant.
#[derive(Debug, Clone)]
pub struct Selected {
    /// The layout directory.
    pub directory: PathBuf,
    /// The bytes of `oci-layout`.
    pub oci_layout: Vec<u8>,
    /// The bytes of `index.json`.
    pub index_bytes: Vec<u8>,
    /// The same, parsed.
    pub index: ImageIndex,
    /// The manifest, or a nested index to choose from.
    pub descriptor: Descriptor,
}

/// An image whose manifest and configuration are here and proved.
#[derive(Debug, Clone)]
pub struct Image {
    /// Where it was selected.
    pub selected: Selected,
    /// The manifest's descriptor.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Manifest,
    /// The configuration.
    pub config: ImageConfig,
}

impl Selected {
    /// Reads `directory` and selects the image that `reference` names (see
    /// [`oci::choose_image`]).
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no layout, [`ErrorKind::Invalid`] when it is not one
    /// or has no such image.
    pub fn open(directory: &Path, reference: Option<&str>, platform: &Platform) -> Result<Self> {
        let named = |e: crate::layout::Error| Error::from(e).context(directory.display());
        let read = |name: &str| -> Result<Vec<u8>> {
            read_document(&directory.join(name))?.ok_or_else(|| {
                let message = format!(
                    "{}: no file {name}: not an OCI image layout (`layoutfs sparse` makes one)",
                    directory.display()
                );
                let is_there = directory.is_dir();
                Error::new(if is_there { ErrorKind::Invalid } else { ErrorKind::NotFound }, message)
            })
        };
        let oci_layout = read("oci-layout")?;
        oci::parse_oci_layout(&oci_layout).map_err(named)?;
        let index_bytes = read("index.json")?;
        let index = ImageIndex::parse("index.json", &index_bytes).map_err(named)?;
        let descriptor = oci::choose_image(&index, reference, platform).map_err(named)?.clone();
        Ok(Selected { directory: directory.to_owned(), oci_layout, index_bytes, index, descriptor })
    }

    /// Where `sparse` recorded that the image came from: `registry/repository`.
    pub fn recorded_source(&self) -> Option<&str> {
        self.descriptor.annotations.get(SOURCE_ANNOTATION).map(String::as_str)
    }

    /// The configuration, when the layout itself has every document that leads there, and each is
    /// right. Nothing is fetched.
    pub fn local_config(&self, platform: &Platform) -> Option<ImageConfig> {
        let mut descriptor = self.descriptor.clone();
        for _ in 0..=NESTED_INDEXES_MAX {
            let bytes = local_document(&self.directory, &descriptor).ok()??;
            match oci::parse_document(&descriptor, &bytes).ok()? {
                Document::Index(index) => {
                    descriptor = oci::choose_platform(&index.manifests, platform).ok()?.clone();
                }
                Document::Manifest(manifest) => {
                    let bytes = local_document(&self.directory, &manifest.config).ok()??;
                    return ImageConfig::parse(&manifest.config, &bytes).ok();
                }
            }
        }
        None
    }
}

impl Image {
    /// Brings manifest and configuration, following nested indexes by `platform`.
    ///
    /// # Errors
    /// A document cannot be had, is not what its digest says, or is not an image.
    pub async fn load(store: &Store, selected: Selected, platform: &Platform) -> Result<Self> {
        let mut descriptor = selected.descriptor.clone();
        for _ in 0..=NESTED_INDEXES_MAX {
            let bytes = document(store, &selected.directory, &descriptor).await?;
            match oci::parse_document(&descriptor, &bytes)? {
                Document::Index(index) => {
                    let chosen = oci::choose_platform(&index.manifests, platform);
                    descriptor = chosen.map_err(Error::from)?.clone();
                }
                Document::Manifest(manifest) => {
                    let bytes = document(store, &selected.directory, &manifest.config).await?;
                    let config = ImageConfig::parse(&manifest.config, &bytes)?;
                    return Ok(Image { selected, descriptor, manifest: *manifest, config });
                }
            }
        }
        let message = format!("more than {NESTED_INDEXES_MAX} image indexes inside each other");
        Err(Error::new(ErrorKind::Invalid, message))
    }

    /// The layers of the rootfs, lowest first.
    ///
    /// # Errors
    /// Manifest and configuration disagree, or a layer is not a tar.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        Ok(oci::rootfs_layers(&self.manifest, &self.config)?)
    }

    /// Every document that `index.json` leads to, as far as it can be had: what the layout view
    /// shows the blobs of. One that cannot be had is named in the log, and is itself shown.
    pub async fn documents(&self, store: &Store) -> Documents {
        let mut documents: BTreeMap<Digest, Arc<[u8]>> = BTreeMap::new();
        let (mut seen, mut bytes_left) = (HashSet::new(), DOCUMENTS_BYTES_MAX);
        let mut queue: Vec<(Descriptor, usize)> =
            self.selected.index.manifests.iter().map(|d| (d.clone(), 0)).collect();
        // Taken from the end: what is mounted comes first.
        queue.extend([(self.descriptor.clone(), 0), (self.selected.descriptor.clone(), 0)]);
        while let Some((descriptor, depth)) = queue.pop() {
            if !oci::is_document(&descriptor) || !seen.insert(descriptor.blob.digest) {
                continue;
            }
            let Some(left) = bytes_left.checked_sub(descriptor.blob.size) else {
                let digest = descriptor.blob.digest;
                tracing::warn!(%digest, "more documents than {DOCUMENTS_BYTES_MAX} bytes: showing \
                                         one without its blobs");
                continue;
            };
            let bytes = match document(store, &self.selected.directory, &descriptor).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    let digest = descriptor.blob.digest;
                    tracing::warn!(%digest, %error, "showing a manifest without its blobs");
                    continue;
                }
            };
            bytes_left = left;
            match oci::parse_document(&descriptor, &bytes) {
                Ok(Document::Index(index)) if depth < NESTED_INDEXES_MAX => {
                    queue.extend(index.manifests.into_iter().map(|d| (d, depth + 1)));
                }
                Ok(Document::Manifest(manifest)) => {
                    let config = &manifest.config;
                    if config.blob.size <= bytes_left
                        && let Ok(Some(bytes)) = local_document(&self.selected.directory, config)
                    {
                        bytes_left -= config.blob.size;
                        documents.insert(config.blob.digest, bytes.into());
                    }
                }
                Ok(Document::Index(_)) => {}
                Err(error) => {
                    let digest = descriptor.blob.digest;
                    tracing::warn!(%digest, %error, "showing a document that is no manifest");
                }
            }
            documents.insert(descriptor.blob.digest, bytes.into());
        }
        Documents {
            oci_layout: self.selected.oci_layout.as_slice().into(),
            index: self.selected.index_bytes.as_slice().into(),
            blobs: documents,
            mtime: Time::default(),
        }
    }
}

/// The bytes of a document, from its descriptor or the layout, proved; `None` if neither has them.
///
/// # Errors
/// As [`read_blob_document`].
pub fn local_document(directory: &Path, descriptor: &Descriptor) -> Result<Option<Vec<u8>>> {
    match &descriptor.data {
        Some(data) => Ok(Some(data.clone())),
        None => read_blob_document(directory, &descriptor.blob),
    }
}

/// The bytes of a document, proved: from its descriptor, the layout, the cache or the source.
///
/// # Errors
/// They cannot be had, or are not what the digest says.
pub async fn document(store: &Store, directory: &Path, descriptor: &Descriptor) -> Result<Vec<u8>> {
    match local_document(directory, descriptor) {
        Ok(Some(bytes)) => return Ok(bytes),
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "a local document is damaged, fetching it"),
    }
    let name = format!("manifest {}", descriptor.blob.digest);
    oci::check_size(&name, descriptor.blob.size)?;
    let all = crate::layout::range::ByteRange::new(0, descriptor.blob.size);
    let bytes = store.read_proved(&descriptor.blob, all, store.deadline()).await?.to_vec();
    // Of this size, too: two descriptors may disagree about one digest.
    descriptor.blob.verify(&bytes)?;
    Ok(bytes)
}
