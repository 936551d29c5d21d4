//! An image all of whose documents are in its layout directory: no cache is opened, nobody is asked.

use std::path::{Path, PathBuf};

use super::error::{Error, ErrorKind, Result};
use super::image::{Selected, local_document};
use crate::layout::oci::{Descriptor, Document, ImageConfig, Manifest, Platform, parse_document};

/// Manifest and configuration, each proved.
#[derive(Debug, Clone)]
pub struct LocalImage {
    /// Where it was selected. Its descriptor is the manifest's.
    pub selected: Selected,
    /// The manifest, as its descriptor names it.
    pub manifest_bytes: Vec<u8>,
    /// The same, parsed.
    pub manifest: Manifest,
    /// The configuration, as the manifest names it.
    pub config_bytes: Vec<u8>,
    /// The same, parsed.
    pub config: ImageConfig,
}

impl LocalImage {
    /// Opens the image that `reference` means (see [`Selected::open`]); `index.json` names its
    /// manifest itself.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a layout or a document that is not there, [`ErrorKind::Invalid`]
    /// for what is no image, [`ErrorKind::DigestMismatch`] for a damaged document.
    pub fn open(directory: &Path, reference: Option<&str>, platform: &Platform) -> Result<Self> {
        let selected = Selected::open(directory, reference, platform)?;
        let descriptor = selected.descriptor.clone();
        let named = |e: crate::layout::Error| Error::from(e).context(directory.display());
        let manifest_bytes = read(directory, &descriptor, "manifest")?;
        let manifest = match parse_document(&descriptor, &manifest_bytes).map_err(named)? {
            Document::Manifest(manifest) => *manifest,
            Document::Index(_) => {
                let message = format!(
                    "{}: index.json names an image index, expected an image manifest",
                    directory.display()
                );
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        };
        let config_bytes = read(directory, &manifest.config, "configuration")?;
        let config = ImageConfig::parse(&manifest.config, &config_bytes).map_err(named)?;
        Ok(LocalImage { selected, manifest_bytes, manifest, config_bytes, config })
    }

    /// The layout directory.
    pub fn directory(&self) -> &PathBuf {
        &self.selected.directory
    }
}

fn read(directory: &Path, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>> {
    local_document(directory, descriptor)?.ok_or_else(|| {
        let digest = descriptor.blob.digest;
        let message = format!("{}: {what} {digest} is not there", directory.display());
        Error::new(ErrorKind::NotFound, message)
    })
}
