//! A writable rootfs: kernel overlayfs with a view of ours as its lower directory.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::user_namespace;
use crate::fetch::{Error, ErrorKind, Result};

/// What makes the upper directory describe itself, so that a layer can be made of it: no index, no
/// redirects, no metadata-only copies. Some kernels default to the opposite.
const OPTIONS: &str = "index=off,redirect_dir=off,metacopy=off,xino=off";

/// The same in a user namespace, whose root may not set `trusted.*` attributes. The kernel takes
/// `redirect_dir=off` for "follow", where that is its default, and refuses it with `userxattr`.
const USER_OPTIONS: &str = "userxattr,index=off,redirect_dir=nofollow,metacopy=off,xino=off";

/// The directory that overlayfs works in: beside the upper directory, on the same filesystem.
pub fn work_directory(upper: &Path) -> PathBuf {
    let mut name = upper.as_os_str().to_owned();
    name.push(".layoutfs-work");
    name.into()
}

/// Mounts overlayfs on `mountpoint`: changes go to `upper`, everything else is in `lowers`, the
/// first of which wins. Both directories of the upper side are made if they are missing, and an
/// upper directory that is empty takes the attributes of the first lower one: it is the root.
///
/// # Errors
/// [`ErrorKind::CannotMount`] with what is in the way.
pub fn mount(lowers: &[&Path], upper: &Path, mountpoint: &Path) -> Result<()> {
    let work = work_directory(upper);
    for directory in [upper, &work] {
        std::fs::create_dir_all(directory)
            .map_err(|e| Error::local(format!("cannot make {}", directory.display()), &e))?;
    }
    let is_user = user_namespace::is_inside();
    if is_user && !user_namespace::takes_user_attributes(&work) {
        let message = format!(
            "the filesystem of {} keeps no user.* extended attributes, in which overlayfs marks what \
             is removed (tmpfs does since Linux 6.6): use a directory on another one, or TMPDIR for \
             a passing one",
            upper.display()
        );
        return Err(Error::new(ErrorKind::CannotMount, message));
    }
    if let Some(lower) = lowers.first() {
        take_root_attributes(upper, lower).map_err(|e| {
            let doing = format!("cannot give {} the attributes of /", upper.display());
            Error::local(doing, &e)
        })?;
    }
    let options = if is_user { USER_OPTIONS } else { OPTIONS };
    let mut data = format!("{options},lowerdir=").into_bytes();
    let lowers: Vec<Vec<u8>> = lowers.iter().map(|lower| escaped(lower)).collect();
    data.extend(lowers.join(&b':'));
    data.extend_from_slice(b",upperdir=");
    data.extend(escaped(upper));
    data.extend_from_slice(b",workdir=");
    data.extend(escaped(&work));
    let failed = |why: &dyn std::fmt::Display| {
        let needs = match is_user {
            true => {
                "in a user namespace it needs Linux 5.11, and a mount namespace of its own (`unshare \
                 --mount`)"
            }
            false => "mounting needs root",
        };
        let message = format!(
            "cannot mount overlayfs on {}: {why}; the upper directory {} must be on a local \
             filesystem with extended attributes (not overlayfs itself), and {needs}",
            mountpoint.display(),
            upper.display()
        );
        Error::new(ErrorKind::CannotMount, message)
    };
    let data = CString::new(data).map_err(|e| failed(&e))?;
    rustix::mount::mount("layoutfs", mountpoint, "overlay", MountFlags::empty(), &*data)
        .map_err(|e| failed(&std::io::Error::from(e)))
}

/// Owner, mode and time of `lower`, if `upper` holds nothing yet: the root of an overlay has the
/// attributes of its upper directory, which nobody chose when it was made.
fn take_root_attributes(upper: &Path, lower: &Path) -> std::io::Result<()> {
    if std::fs::read_dir(upper)?.next().is_some() {
        return Ok(());
    }
    let root = std::fs::metadata(lower)?;
    std::os::unix::fs::chown(upper, Some(root.uid()), Some(root.gid()))?;
    std::fs::set_permissions(upper, root.permissions())?;
    let times = std::fs::FileTimes::new().set_modified(root.modified()?);
    std::fs::File::open(upper)?.set_times(times)
}

/// Removes the work directory after unmounting; the kernel leaves `work/work` in it, mode 0.
pub fn remove_work_directory(upper: &Path) {
    let work = work_directory(upper);
    if let Err(error) = std::fs::remove_dir_all(&work)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %work.display(), %error, "cannot remove the work directory");
    }
}

/// In a mount option a comma ends the option, and a colon ends a lower directory.
fn escaped(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b',' | b':') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_in_paths_are_escaped() {
        assert_eq!(escaped(Path::new("/a:b,c\\d")), br"/a\:b\,c\\d");
    }
}
