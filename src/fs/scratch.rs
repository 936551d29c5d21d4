//! A directory that lives as long as a container: its changes, the mount points that its image
//! lacks, its `config.json`. Never removed while anything is mounted in it.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::mounts::mounts_below;
use super::user_namespace;
use crate::fetch::{Error, ErrorKind, Result};
use crate::layout::mount_points::MountPoint;

/// Filesystems that overlayfs takes no upper directory on (statfs(2)): overlayfs, FUSE, NFS, SMB,
/// 9p.
const NOT_LOCAL: [u64; 5] = [0x794c_7630, 0x6573_5546, 0x6969, 0xff53_4d42, 0x0102_1997];

/// Removed, with all that is in it, when dropped.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new directory, for its owner only, in the first of `places` that overlayfs can have an
    /// upper directory in; in a user namespace that takes a filesystem with `user.*` attributes.
    ///
    /// # Errors
    /// [`ErrorKind::CannotMount`] when there is none.
    pub fn new(places: &[PathBuf]) -> Result<Self> {
        for place in places.iter().filter(|place| is_local(place)) {
            let made = tempfile::Builder::new().prefix("layoutfs-").tempdir_in(place);
            match made {
                Ok(directory)
                    if user_namespace::is_inside()
                        && !user_namespace::takes_user_attributes(directory.path()) =>
                {
                    tracing::debug!(place = %place.display(), "no user attributes");
                }
                Ok(directory) => return Ok(Scratch { path: directory.keep() }),
                Err(error) => tracing::debug!(place = %place.display(), %error, "no directory"),
            }
        }
        let shown: Vec<String> = places.iter().map(|p| p.display().to_string()).collect();
        let message = format!(
            "none of {} is on a local filesystem that overlayfs can write to (in a container they \
             are often on overlayfs themselves): set TMPDIR to a volume or a tmpfs",
            shown.join(", ")
        );
        Err(Error::new(ErrorKind::CannotMount, message))
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes a scratch directory, unless something is mounted in it: through a mount, the removal
/// would reach what is not ours.
pub fn remove(path: &Path) {
    let mounts = mounts_below(path);
    if let Some(mount) = mounts.first() {
        let mounted = mount.mountpoint.display();
        tracing::warn!(path = %path.display(), %mounted, "still mounted, so it is kept");
        return;
    }
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove it");
        }
        _ => {}
    }
}

fn is_local(place: &Path) -> bool {
    // The type's width differs between architectures; the numbers are 32 bits wide.
    rustix::fs::statfs(place).is_ok_and(|s| !NOT_LOCAL.contains(&u64::from(s.f_type as u32)))
}

/// Makes empty directories and files below `root`, 0755 and 0644 whatever the umask, and what leads
/// to them.
///
/// # Errors
/// Local trouble.
pub fn make_mount_points(root: &Path, points: &[MountPoint]) -> Result<()> {
    std::fs::create_dir_all(root)
        .map_err(|e| Error::local(format!("cannot make {}", root.display()), &e))?;
    for point in points {
        let path = root.join(OsStr::from_bytes(&point.path));
        let made = match (point.is_directory, path.parent()) {
            (false, Some(parent)) => make_directories(root, parent).and_then(|()| make_file(&path)),
            _ => make_directories(root, &path),
        };
        made.map_err(|e| Error::local(format!("cannot make {}", path.display()), &e))?;
    }
    Ok(())
}

fn make_directories(root: &Path, path: &Path) -> std::io::Result<()> {
    let below = path.strip_prefix(root).unwrap_or(Path::new(""));
    let mut at = root.to_owned();
    for name in below {
        at.push(name);
        match std::fs::create_dir(&at) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
            other => other?,
        }
        std::fs::set_permissions(&at, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn make_file(path: &Path) -> std::io::Result<()> {
    let file = std::fs::File::create(path)?;
    file.set_permissions(Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_made_with_their_parents_and_modes() {
        let scratch = Scratch::new(&[std::env::temp_dir()]).expect("a directory");
        let root = scratch.path().join("skeleton");
        let point = |path: &str, is_directory| MountPoint { path: path.into(), is_directory };
        let points = [point("a", true), point("a/b/file", false), point("proc", true)];
        make_mount_points(&root, &points).expect("made");
        let mode = |path: &str| {
            let metadata = std::fs::metadata(root.join(path)).expect("there");
            (metadata.is_dir(), metadata.permissions().mode() & 0o7777)
        };
        assert_eq!(mode("a/b"), (true, 0o755));
        assert_eq!(mode("a/b/file"), (false, 0o644));
        assert_eq!(mode("proc"), (true, 0o755));
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn a_place_that_is_not_there_is_passed_over_and_none_is_an_error() {
        let error = Scratch::new(&[PathBuf::from("/nowhere")]).err().expect("no place");
        assert_eq!(error.kind, ErrorKind::CannotMount);
        assert!(error.message.contains("TMPDIR"), "{error}");
        assert!(Scratch::new(&[PathBuf::from("/nowhere"), std::env::temp_dir()]).is_ok());
    }
}
