//! The cache's directory: who may own it, who may look into it, and that it need not be writable.

use std::fs::{DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::error::{Error, ErrorKind, Result};

/// The directory of this version of the format; other versions live beside it, untouched.
const VERSION: &str = "v1";

/// What is in it.
const FOLDERS: [&str; 5] = ["blobs/sha256", "blobs/sha512", "indexes", "decoded", "layouts"];

/// What one user read is not another's to see, nor to change: indexes in it are trusted.
const MODE: u32 = 0o700;

/// Makes what is missing of the cache in `dir`. Gives its root, and what keeps it from being
/// written to: a full disk and a read-only directory are no reason to fail.
///
/// # Errors
/// [`ErrorKind::Usage`] for a cache of another user, or one that others can write to; `dir` cannot
/// be a directory.
pub(super) fn open(dir: &Path) -> Result<(PathBuf, Option<Error>)> {
    let root = dir.join(VERSION);
    // Before anything is made in it: it may not be ours.
    check_private(dir, &root)?;
    match make_folders(&root) {
        Ok(()) => Ok((root, None)),
        Err(e) => {
            let error = Error::local(format!("cannot make {}", root.display()), &e);
            match cannot_be_written(&e) {
                true => Ok((root, Some(error))),
                false => Err(error),
            }
        }
    }
}

/// Makes what is missing in `root`.
///
/// # Errors
/// The first one that cannot be made.
pub(super) fn make_folders(root: &Path) -> io::Result<()> {
    let make = |folder| DirBuilder::new().recursive(true).mode(MODE).create(root.join(folder));
    FOLDERS.iter().try_for_each(make)
}

/// The place is not there for us now, or not any more: nothing that the caller did wrong.
fn cannot_be_written(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), ReadOnlyFilesystem | PermissionDenied | StorageFull | QuotaExceeded)
}

fn check_private(dir: &Path, root: &Path) -> Result<()> {
    if dir.metadata().is_ok_and(|meta| is_writable_by_others(&meta) && meta.mode() & 0o1000 == 0) {
        let dir = dir.display();
        tracing::warn!(%dir, "others can write to this directory, and so replace the cache in it");
    }
    // A link would lead into a directory that was not looked at.
    let Ok(meta) = root.symlink_metadata() else { return Ok(()) };
    let us = rustix::process::geteuid().as_raw();
    if !meta.is_dir() || ![us, 0].contains(&meta.uid()) {
        let message = format!(
            "{} belongs to user {}, and its content would be trusted: choose another directory \
             with --cache-dir",
            root.display(),
            meta.uid()
        );
        return Err(Error::new(ErrorKind::Usage, message));
    }
    if meta.mode() & 0o077 == 0 || meta.uid() != us {
        return refuse_writable(root, &meta);
    }
    match std::fs::set_permissions(root, Permissions::from_mode(MODE)) {
        Ok(()) => {
            let (root, mode) = (root.display(), format!("{:o}", meta.mode() & 0o777));
            tracing::warn!(%root, mode, "the cache was open to others, and is not any more");
            Ok(())
        }
        Err(_) => refuse_writable(root, &meta),
    }
}

fn is_writable_by_others(meta: &Metadata) -> bool {
    meta.mode() & 0o022 != 0
}

fn refuse_writable(root: &Path, meta: &Metadata) -> Result<()> {
    if !is_writable_by_others(meta) {
        return Ok(());
    }
    let message = format!(
        "others can write to {}, and its content would be trusted: `chmod go= {0}`, or choose \
         another directory with --cache-dir",
        root.display()
    );
    Err(Error::new(ErrorKind::Usage, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().expect("it is there").mode() & 0o777
    }

    #[test]
    fn a_cache_is_closed_to_others_also_one_that_was_open() {
        let base = tempfile::tempdir().expect("a directory");
        let dir = base.path().join("a/b");
        let (root, trouble) = open(&dir).expect("made");
        assert!(trouble.is_none());
        assert_eq!([mode(&dir), mode(&root), mode(&root.join("indexes"))], [0o700; 3]);
        std::fs::set_permissions(&root, Permissions::from_mode(0o755)).expect("opened");
        open(&dir).expect("closed again");
        assert_eq!(mode(&root), 0o700);
    }

    #[test]
    fn a_link_in_place_of_the_cache_is_refused() {
        let base = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(base.path().join("elsewhere")).expect("made");
        std::os::unix::fs::symlink("elsewhere", base.path().join(VERSION)).expect("a link");
        assert_eq!(open(base.path()).expect_err("refused").kind, ErrorKind::Usage);
        let listing = std::fs::read_dir(base.path().join("elsewhere")).expect("listing");
        assert_eq!(listing.count(), 0, "nothing was made behind the link");
    }

    #[test]
    fn a_file_in_the_way_is_an_error() {
        let base = tempfile::tempdir().expect("a directory");
        std::fs::write(base.path().join("file"), b"x").expect("written");
        assert_eq!(open(&base.path().join("file/x")).expect_err("no").kind, ErrorKind::Local);
    }
}
