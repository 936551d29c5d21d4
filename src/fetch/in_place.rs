//! Another configuration for an image in its layout directory: new blobs first, then `index.json`,
//! then what nothing refers to any more goes.

use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::error::{Error, ErrorKind, Result};
use super::image::local_document;
use super::layout_dir::{blob_path, is_present, read_blob_document};
use super::local_image::LocalImage;
use crate::layout::oci::append::append_to_manifest;
use crate::layout::oci::finalize::{replace_manifest, with_one_family};
use crate::layout::oci::{
    Descriptor, Document, ImageIndex, NESTED_INDEXES_MAX, is_document, parse_document,
};
use crate::layout::{Blob, Digest};

/// Gives `image` the configuration `config`, and its layers media types of one family; the layers
/// themselves stay untouched. Each new file has owner and
/// permissions of the one that it replaces. Whenever this ends, the layout has the one image or the
/// other, whole. Gives the digest of the
/// new manifest, and the number of layers whose media type is another now.
///
/// # Errors
/// [`ErrorKind::Invalid`] for folders that are links; local trouble. Then the image is the former one.
pub fn replace_config(image: &LocalImage, config: &[u8]) -> Result<(Digest, usize)> {
    let directory = image.directory();
    let old = image.selected.descriptor.blob.digest;
    let named = |e: crate::layout::Error| Error::from(e).context(directory.display());
    let config_blob = blob_of(config);
    let manifest = append_to_manifest(&image.manifest_bytes, None, &config_blob).map_err(named)?;
    let (manifest, retyped) = with_one_family(&manifest).map_err(named)?;
    let manifest_blob = blob_of(&manifest);
    let index = replace_manifest(&image.selected.index_bytes, &old, &manifest_blob);
    let index = index.map_err(named)?;
    refuse_links(directory, &[config_blob.digest, manifest_blob.digest])?;
    let index_path = directory.join("index.json");
    let index_like = attributes(&index_path)?;
    let old_config = image.manifest.config.blob.digest;
    for (blob, bytes, former) in
        [(config_blob, config, old_config), (manifest_blob, &*manifest, old)]
    {
        // A document can be embedded in its descriptor alone.
        let like = match attributes(&blob_path(directory, &former)) {
            Ok(like) => like,
            Err(_) => index_like.clone(),
        };
        let is_there = is_present(directory, &blob)
            && read_blob_document(directory, &blob).is_ok_and(|found| found.is_some());
        if !is_there {
            put(&blob_path(directory, &blob.digest), bytes, &like)?;
        }
    }
    put(&index_path, &index, &index_like)?;
    remove_unless_referred_to(directory, &index, &[old, old_config]);
    Ok((manifest_blob.digest, retyped))
}

fn blob_of(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::sha256_of(bytes), size: bytes.len() as u64 }
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Error {
    Error::local(format!("cannot write {}", path.display()), error)
}

fn attributes(path: &Path) -> Result<Metadata> {
    path.symlink_metadata().map_err(|e| Error::local(format!("cannot read {}", path.display()), &e))
}

/// Who owns a layout is not always who finalizes it: root would write wherever a link leads.
fn refuse_links(directory: &Path, digests: &[Digest]) -> Result<()> {
    let blobs = directory.join("blobs");
    let folders = digests.iter().map(|digest| blobs.join(digest.algorithm()));
    for folder in folders.chain([blobs.clone()]) {
        if folder.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) {
            let message = format!("{} is a symbolic link: not following it", folder.display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
    }
    Ok(())
}

/// Writes a file as a whole, in place of what has its name. It is on disk when this returns.
fn put(path: &Path, bytes: &[u8], like: &Metadata) -> Result<()> {
    let failed = |e: &std::io::Error| cannot_write(path, e);
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        std::fs::create_dir_all(folder).map_err(|e| failed(&e))?;
    }
    let mut new = tempfile::Builder::new()
        .prefix(".layoutfs-")
        .tempfile_in(folder)
        .map_err(|e| failed(&e))?;
    new.write_all(bytes).map_err(|e| failed(&e))?;
    let file = new.as_file();
    let is = file.metadata().map_err(|e| failed(&e))?;
    if (is.uid(), is.gid()) != (like.uid(), like.gid()) {
        std::os::unix::fs::fchown(file, Some(like.uid()), Some(like.gid())).map_err(|e| {
            let owner = format!("{}:{}", like.uid(), like.gid());
            Error::local(format!("cannot give {} to {owner}, as before", path.display()), &e)
        })?;
    }
    let mode = std::fs::Permissions::from_mode(like.mode() & 0o777);
    file.set_permissions(mode).map_err(|e| failed(&e))?;
    file.sync_all().map_err(|e| failed(&e))?;
    new.persist(path).map_err(|e| failed(&e.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| failed(&e))
}

/// The image is right already, so that trouble here is only told.
fn remove_unless_referred_to(directory: &Path, index: &[u8], former: &[Digest]) {
    let referred = match referred_to(directory, index) {
        Ok(referred) => referred,
        Err(error) => {
            tracing::warn!(%error, "keeping the former manifest and configuration");
            return;
        }
    };
    for digest in former.iter().filter(|digest| !referred.contains(digest)) {
        let path = blob_path(directory, digest);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot remove what was replaced");
            }
            _ => {}
        }
    }
}

/// Everything that `index` leads to.
fn referred_to(directory: &Path, index: &[u8]) -> Result<HashSet<Digest>> {
    let mut referred = HashSet::new();
    let index = ImageIndex::parse("index.json", index)?;
    let mut queue: Vec<(Descriptor, usize)> = index.manifests.into_iter().map(|d| (d, 0)).collect();
    while let Some((descriptor, depth)) = queue.pop() {
        let is_new = referred.insert(descriptor.blob.digest);
        if !is_new || !is_document(&descriptor) {
            continue;
        }
        let Some(bytes) = local_document(directory, &descriptor)? else {
            let message = format!("{} is not there", descriptor.blob.digest);
            return Err(Error::new(ErrorKind::NotFound, message));
        };
        match parse_document(&descriptor, &bytes)? {
            Document::Index(_) if depth == NESTED_INDEXES_MAX => {
                let message = format!("more than {NESTED_INDEXES_MAX} indexes inside each other");
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            Document::Index(index) => {
                queue.extend(index.manifests.into_iter().map(|d| (d, depth + 1)));
            }
            Document::Manifest(manifest) => {
                let others =
                    manifest.layers.iter().chain(&manifest.subject).chain([&manifest.config]);
                referred.extend(others.map(|d| d.blob.digest));
            }
        }
    }
    Ok(referred)
}
