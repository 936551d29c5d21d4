//! Fills a sparse layout in place: every blob of its image, proved before it has its name.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid, fchown, linkat, openat};
use tempfile::TempPath;

use super::arrival::{Arrival, Origin};
use super::error::{Error, ErrorKind, Result};
use super::image::Image;
use super::layout_dir::blob_path;
use super::store::Store;
use crate::layout::Blob;
use crate::layout::range::ByteRange;

/// One copy step; large enough that the calls do not count.
const COPY_BYTES: u64 = 4 << 20;

/// Readable by whoever can read the layout, less the umask.
const BLOB_MODE: u32 = 0o644;

/// Our open files, by number: how one without a name is given one (open(2), `O_TMPFILE`).
const OPEN_FILES: &str = "/proc/self/fd";

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
    if matches!(arrival.origin(), Origin::Layout) {
        return Ok(false);
    }
    let (directory, blob) = (directory.to_owned(), *blob);
    let copy = move || copy(&arrival, &directory, &blob).map(|()| true);
    tokio::task::spawn_blocking(copy)
        .await
        .map_err(|e| Error::new(ErrorKind::Local, format!("a copy ended early: {e}")))?
}

fn copy(from: &Arrival, directory: &Path, blob: &Blob) -> Result<()> {
    let to = blob_path(directory, &blob.digest);
    let failed = |e: &std::io::Error| Error::local(format!("cannot write {}", to.display()), e);
    let blobs = directory.join("blobs");
    let parent = to.parent().unwrap_or(directory);
    for folder in [&blobs, parent] {
        make_folder(folder)?;
    }
    let mut new = New::in_folder(parent).map_err(|e| failed(&e))?;
    let (mut at, mut hasher) = (0, blob.digest.hasher());
    while at < blob.size {
        let range = ByteRange::at(at, COPY_BYTES.min(blob.size - at));
        let bytes = from.read_proved(range)?;
        hasher.update(&bytes);
        std::io::Write::write_all(&mut new.file, &bytes).map_err(|e| failed(&e))?;
        at = range.end;
    }
    // What was read now, not what was proved before: the file may have been written to since.
    blob.digest.compare(hasher)?;
    hand_over(&new.file, parent);
    new.file.sync_data().map_err(|e| failed(&e))?;
    new.take_name(&to).map_err(|e| failed(&e))
}

/// A directory of the layout. A link could lead out of it.
fn make_folder(folder: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::local(format!("cannot make {}", folder.display()), &e);
    if folder.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) {
        let message = format!("{} is a symbolic link: not following it", folder.display());
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    match std::fs::create_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(failed(e)),
        Ok(()) => {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = openat(CWD, folder, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
            hand_over(&made, folder.parent().unwrap_or(folder));
            Ok(())
        }
    }
}

/// What root writes belongs to whoever has the directory: the lifecycle's phases and `pack` go on
/// with the layout as the user that it is of.
fn hand_over(new: impl AsFd, folder: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let owner = folder.metadata().map(|meta| (meta.uid(), meta.gid()));
    let given = owner.and_then(|(uid, gid)| {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        Ok(fchown(new, Some(uid), Some(gid))?)
    });
    if let Err(error) = given {
        // It is readable all the same.
        let folder = folder.display();
        tracing::warn!(%folder, %error, "a blob does not belong to the owner of the directory");
    }
}

/// A file that is being written, and has no name that counts yet.
struct New {
    file: File,
    /// Where there are no files without any name.
    path: Option<TempPath>,
}

impl New {
    /// Without a name where the filesystem can do that: nothing of it stays when this process is
    /// killed.
    fn in_folder(folder: &Path) -> std::io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        if Path::new(OPEN_FILES).is_dir()
            && let Ok(file) = openat(CWD, folder, flags, Mode::from_raw_mode(BLOB_MODE))
        {
            return Ok(New { file: file.into(), path: None });
        }
        let (file, path) = temporary().tempfile_in(folder)?.into_parts();
        Ok(New { file, path: Some(path) })
    }

    /// Makes it `to`, in place of what is there.
    fn take_name(self, to: &Path) -> std::io::Result<()> {
        let open = format!("{OPEN_FILES}/{}", self.file.as_raw_fd());
        let link = |to: &Path| -> std::io::Result<()> {
            Ok(linkat(CWD, &*open, CWD, to, AtFlags::SYMLINK_FOLLOW)?)
        };
        let path = match self.path {
            Some(path) => path,
            None => match link(to) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    let folder = to.parent().unwrap_or(to);
                    temporary().make_in(folder, link)?.into_temp_path()
                }
                Err(e) => return Err(e),
            },
        };
        path.persist(to).map_err(|e| e.error)
    }
}

fn temporary() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".layoutfs-").permissions(std::fs::Permissions::from_mode(BLOB_MODE));
    builder
}
