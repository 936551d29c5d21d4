//! The image layout directory: its documents, its blobs, and what its paths tell.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::error::{Error, ErrorKind, Result};
use crate::layout::{Blob, Digest};

/// Manifests, indexes and configurations beyond this are refused (distribution-spec asks registries
/// for at least 4 MiB).
pub const DOCUMENT_BYTES_MAX: u64 = 16 << 20;

/// `DIR/blobs/<alg>/<hex>` (image-spec `image-layout.md`, "Blobs").
pub fn blob_path(directory: &Path, digest: &Digest) -> PathBuf {
    directory.join("blobs").join(digest.algorithm()).join(digest.hex())
}

/// The bytes of a small file of the layout, if it is there.
///
/// # Errors
/// Local trouble; a file that is not regular or exceeds [`DOCUMENT_BYTES_MAX`].
pub fn read_document(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |e: &std::io::Error| Error::local(format!("cannot read {}", path.display()), e);
    // Opening a device may already do something.
    match path.symlink_metadata() {
        Ok(meta) => check_document(path, &meta)?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(&e)),
    }
    // It may be another by now: a link could lead out of the layout, a FIFO would be waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match File::options().read(true).custom_flags(flags.bits() as i32).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(&e)),
    };
    check_document(path, &file.metadata().map_err(|e| failed(&e))?)?;
    let mut bytes = Vec::new();
    file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    Ok(Some(bytes))
}

fn check_document(path: &Path, meta: &Metadata) -> Result<()> {
    let kind = meta.file_type();
    let got = match meta.len() {
        _ if kind.is_symlink() => "a symbolic link".to_owned(),
        _ if kind.is_dir() => "a directory".to_owned(),
        _ if !kind.is_file() => "a device, pipe or socket".to_owned(),
        bytes if bytes > DOCUMENT_BYTES_MAX => format!("{bytes} bytes"),
        _ => return Ok(()),
    };
    let expected = format!("expected a regular file of at most {DOCUMENT_BYTES_MAX} bytes");
    Err(Error::new(ErrorKind::Invalid, format!("{}: {expected}, got {got}", path.display())))
}

/// A document that the layout has as a blob, proved by its digest; `None` if it is not there.
///
/// # Errors
/// As [`read_document`]; bytes that are not what the digest says.
pub fn read_blob_document(directory: &Path, blob: &Blob) -> Result<Option<Vec<u8>>> {
    let path = blob_path(directory, &blob.digest);
    let Some(bytes) = read_document(&path)? else { return Ok(None) };
    blob.verify(&bytes).map_err(|e| Error::from(e).context(path.display()))?;
    Ok(Some(bytes))
}

/// The layout has a regular file of the right name and size for `blob`. Its digest is not checked.
pub fn is_present(directory: &Path, blob: &Blob) -> bool {
    let path = blob_path(directory, &blob.digest);
    path.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() == blob.size)
}

/// Every file below `blobs/` whose name is a digest, sorted.
///
/// # Errors
/// A directory cannot be listed.
pub fn present_blobs(directory: &Path) -> Result<Vec<(Digest, PathBuf)>> {
    let mut found = Vec::new();
    for algorithm in ["sha256", "sha512"] {
        let path = directory.join("blobs").join(algorithm);
        let failed =
            |e: &std::io::Error| Error::local(format!("cannot list {}", path.display()), e);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(failed(&e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| failed(&e))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if let Ok(digest) = format!("{algorithm}:{name}").parse() {
                found.push((digest, entry.path()));
            }
        }
    }
    found.sort();
    Ok(found)
}
