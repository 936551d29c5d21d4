//! Fills a sparse layout in place: every blob of its image, proved before it has its name.

use std::path::Path;

use super::arrival::Origin;
use super::cache::read_exact_at;
use super::error::{Error, Result};
use super::image::Image;
use super::layout_dir::blob_path;
use super::store::Store;
use crate::layout::Blob;
use crate::layout::range::ByteRange;

/// One copy step; large enough that the calls do not count.
const COPY_BYTES: u64 = 4 << 20;

/// The blobs of the image, each once: layers, manifest and configuration.
pub fn blobs(image: &Image) -> Vec<Blob> {
    let documents = [image.descriptor.blob, image.manifest.config.blob];
    let mut blobs: Vec<Blob> = Vec::new();
    for blob in documents.into_iter().chain(image.manifest.layers.iter().map(|l| l.blob)) {
        if !blobs.contains(&blob) {
            blobs.push(blob);
        }
    }
    blobs
}

/// Brings `blob` into the layout directory, unless it is there and right. What was fetched before (by
/// a mount, or by a run that was interrupted) is not fetched again. `true`: it was brought.
///
/// # Errors
/// The blob cannot be had, is not what its digest says, or cannot be written.
pub async fn bring(store: &Store, directory: &Path, blob: &Blob) -> Result<bool> {
    let arrival = store.proved(blob, store.deadline()).await?;
    if matches!(arrival.origin(), Origin::Layout(_)) {
        return Ok(false);
    }
    let (directory, blob) = (directory.to_owned(), *blob);
    let copy = move || copy(&arrival.file, &directory, &blob).map(|()| true);
    tokio::task::spawn_blocking(copy)
        .await
        .map_err(|e| Error::new(super::ErrorKind::Local, format!("a copy ended early: {e}")))?
}

fn copy(from: &std::fs::File, directory: &Path, blob: &Blob) -> Result<()> {
    let to = blob_path(directory, &blob.digest);
    let failed = |e: &std::io::Error| Error::local(format!("cannot write {}", to.display()), e);
    let parent = to.parent().unwrap_or(directory);
    for link in [&directory.join("blobs"), parent] {
        if link.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) {
            let message = format!("{} is a symbolic link: not following it", link.display());
            return Err(Error::new(super::ErrorKind::Invalid, message));
        }
    }
    std::fs::create_dir_all(parent).map_err(|e| failed(&e))?;
    let mut new = tempfile::Builder::new()
        .prefix(".layoutfs-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(parent)
        .map_err(|e| failed(&e))?;
    let mut at = 0;
    while at < blob.size {
        let range = ByteRange::at(at, COPY_BYTES.min(blob.size - at));
        let bytes = read_exact_at(from, range)?;
        std::io::Write::write_all(&mut new, &bytes).map_err(|e| failed(&e))?;
        at = range.end;
    }
    new.as_file().sync_data().map_err(|e| failed(&e))?;
    new.persist(&to).map_err(|e| failed(&e.error))?;
    Ok(())
}
