//! Reads an overlay's upper directory: names, attributes, marks of overlayfs, and contents.
//!
//! Symbolic links are never followed, and every file is opened from the directory's own
//! descriptor, component by component: what a container has written leads nowhere else.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::error::{Error, ErrorKind, Result};
use crate::layout::changeset::{Excluded, UpperKind, UpperNode, is_carried, join};
use crate::layout::entry::{Attributes, EntryKind, Time};
use crate::layout::tar::path::PATH_BYTES_MAX;
use crate::layout::tree::NODES_MAX;
use crate::layout::whiteout::{Name, classify};

/// Linux' XATTR_LIST_MAX and XATTR_SIZE_MAX.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// An upper directory, read but for its contents.
pub struct Upper {
    directory: PathBuf,
    root: OwnedFd,
    device: u64,
    /// What is in it, sorted by name.
    pub children: Vec<UpperNode>,
    /// Sockets, which no layer can hold.
    pub sockets: u64,
    /// overlayfs wrote it for root of a user namespace: its marks are in `user.overlay.`.
    pub of_user_namespace: bool,
    nodes: usize,
}

/// What overlayfs says about a name.
#[derive(Default)]
struct Marks {
    opaque: bool,
    /// Empty files in this directory may be whiteouts.
    holds_whiteouts: bool,
    /// Such a file.
    whiteout: bool,
    /// Where users may write them.
    of_user_namespace: bool,
}

impl Upper {
    /// Reads `directory`, without what is excluded.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Invalid`] for what no layer can say: redirects,
    /// metadata without data, names that mean whiteouts; local trouble.
    pub fn read(directory: &Path, excluded: &Excluded) -> Result<Self> {
        let failed = |e: rustix::io::Errno| {
            let error = Error::local(format!("cannot read {}", directory.display()), &e.into());
            match e {
                rustix::io::Errno::NOENT => Error { kind: ErrorKind::NotFound, ..error },
                rustix::io::Errno::NOTDIR => Error { kind: ErrorKind::Invalid, ..error },
                _ => error,
            }
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(directory, flags, Mode::empty()).map_err(failed)?;
        let device = rustix::fs::fstat(&root).map_err(failed)?.st_dev;
        let mut upper = Upper {
            directory: directory.to_owned(),
            root,
            device,
            children: Vec::new(),
            sockets: 0,
            of_user_namespace: false,
            nodes: 0,
        };
        let (_, marks) = upper.xattrs(&upper.root, b".")?;
        upper.of_user_namespace = marks.of_user_namespace;
        upper.children = upper.list(&[], marks.holds_whiteouts, excluded)?;
        Ok(upper)
    }

    /// Opens the regular file `node` at `path`, and makes sure that it is still the one.
    ///
    /// # Errors
    /// It has changed; local trouble.
    pub fn open(&self, path: &[u8], node: &UpperNode) -> Result<File> {
        let failed = |e: rustix::io::Errno| self.failed("cannot open", path, e);
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&[][..], path),
        };
        let parent = self.open_directory(parent)?;
        // Opening a FIFO that has taken the file's place would wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let UpperKind::Other(EntryKind::Regular { size, .. }) = &node.kind else {
            return Err(self.changed(path));
        };
        let is_same = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && (stat.st_dev, stat.st_ino) == node.inode
            && u64::try_from(stat.st_size) == Ok(*size)
            && mtime(&stat) == node.attributes.mtime;
        if is_same { Ok(fd.into()) } else { Err(self.changed(path)) }
    }

    /// The error for a file that is not what it was when it was listed.
    pub fn changed(&self, path: &[u8]) -> Error {
        let message = format!("{} changed while it was read: try again", self.shown(path));
        Error::new(ErrorKind::Busy, message)
    }

    /// The error for a file that cannot be read.
    pub fn unreadable(&self, path: &[u8], error: &std::io::Error) -> Error {
        Error::local(format!("cannot read {}", self.shown(path)), error)
    }

    fn list(
        &mut self,
        path: &[u8],
        holds_whiteouts: bool,
        excluded: &Excluded,
    ) -> Result<Vec<UpperNode>> {
        let directory = self.open_directory(path)?;
        let mut nodes = Vec::new();
        let mut directories = Vec::new();
        for name in self.names(path, &directory)? {
            let child = join(path, &name);
            if excluded.contains(&child) {
                continue;
            }
            let Some((node, marks)) = self.node(&directory, &child, name, holds_whiteouts)? else {
                continue;
            };
            if matches!(node.kind, UpperKind::Directory { .. }) {
                directories.push((nodes.len(), child, marks));
            }
            nodes.push(node);
        }
        // Closed before going down: paths may be deeper than files may be open.
        drop(directory);
        for (at, path, marks) in directories {
            let children = self.list(&path, marks.holds_whiteouts, excluded)?;
            nodes[at].kind = UpperKind::Directory { opaque: marks.opaque, children };
        }
        Ok(nodes)
    }

    /// The names in a directory, sorted.
    fn names(&self, path: &[u8], directory: &OwnedFd) -> Result<Vec<Vec<u8>>> {
        let failed = |e: rustix::io::Errno| self.failed("cannot list", path, e);
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// One name; `None` for what no layer holds. A directory's children are not read yet.
    fn node(
        &mut self,
        directory: &OwnedFd,
        path: &[u8],
        name: Vec<u8>,
        holds_whiteouts: bool,
    ) -> Result<Option<(UpperNode, Marks)>> {
        let failed = |e: rustix::io::Errno| self.failed("cannot read", path, e);
        let stat =
            rustix::fs::statat(directory, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if stat.st_dev != self.device {
            tracing::warn!(path = %self.shown(path), "left out: something is mounted there");
            return Ok(None);
        }
        self.check_name(path, &name)?;
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            let message = format!("{}: more than {NODES_MAX} files", self.directory.display());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let (xattrs, marks) = self.xattrs(directory, &name).map_err(|e| match e.kind {
            ErrorKind::Local => e.context(self.shown(path)),
            _ => Error::new(e.kind, format!("{}: {}", self.shown(path), e.message)),
        })?;
        self.of_user_namespace |= marks.of_user_namespace;
        let Some(mut kind) = self.kind(directory, path, &name, &stat)? else {
            tracing::warn!(path = %self.shown(path), "left out: a layer cannot hold a socket");
            self.sockets += 1;
            return Ok(None);
        };
        if holds_whiteouts && marks.whiteout && stat.st_size == 0 {
            kind = UpperKind::Whiteout;
        }
        let attributes = Attributes {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: mtime(&stat),
            xattrs,
        };
        let inode = (stat.st_dev, stat.st_ino);
        Ok(Some((UpperNode { name: name.into(), kind, attributes, inode }, marks)))
    }

    fn check_name(&self, path: &[u8], name: &[u8]) -> Result<()> {
        let refused = |why: String| {
            let message =
                format!("{}: {why}; rename it, or `commit --exclude` it", self.shown(path));
            Err(Error::new(ErrorKind::Invalid, message))
        };
        if classify(name) != Name::Plain {
            return refused("in a layer this name would mean that a file is removed".to_owned());
        }
        if path.len() > PATH_BYTES_MAX {
            return refused(format!("a path of more than {PATH_BYTES_MAX} bytes"));
        }
        Ok(())
    }

    /// `None`: a socket.
    fn kind(
        &self,
        directory: &OwnedFd,
        path: &[u8],
        name: &[u8],
        stat: &Stat,
    ) -> Result<Option<UpperKind>> {
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                return Ok(Some(UpperKind::Directory { opaque: false, children: Vec::new() }));
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                return Ok(Some(UpperKind::Whiteout));
            }
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                EntryKind::Regular { size, chunks: Vec::new() }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name, Vec::new())
                    .map_err(|e| self.failed("cannot read the link", path, e))?;
                EntryKind::Symlink { target: target.into_bytes() }
            }
            FileType::CharacterDevice => EntryKind::CharDevice { major, minor },
            FileType::BlockDevice => EntryKind::BlockDevice { major, minor },
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket | FileType::Unknown => return Ok(None),
        };
        Ok(Some(UpperKind::Other(kind)))
    }

    /// The attributes that go into the layer, sorted; and what overlayfs keeps in the others.
    fn xattrs(&self, directory: &OwnedFd, name: &[u8]) -> Result<(Xattrs, Marks)> {
        // There is no call for attributes below a descriptor (before Linux 6.13), but this name.
        let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        let failed =
            |e: rustix::io::Errno| Error::local("cannot read extended attributes", &e.into());
        let mut buffer = vec![0; XATTR_BYTES_MAX];
        let names = match rustix::fs::llistxattr(&*path, &mut buffer[..]) {
            Ok(len) => buffer[..len].to_vec(),
            Err(rustix::io::Errno::OPNOTSUPP) => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        let (mut carried, mut marks) = (Vec::new(), Marks::default());
        for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
            let mark = [&b"trusted.overlay."[..], b"user.overlay."]
                .iter()
                .find_map(|prefix| name.strip_prefix(*prefix));
            if mark.is_none() && !is_carried(name) {
                continue;
            }
            let len = rustix::fs::lgetxattr(&*path, name, &mut buffer[..]).map_err(failed)?;
            let value = &buffer[..len];
            match mark {
                Some(mark) => marks.read(name, mark, value)?,
                None if name.contains(&b'=') => {
                    let name = name.escape_ascii();
                    let message = format!("no layer can hold the extended attribute \"{name}\"");
                    return Err(Error::new(ErrorKind::Invalid, message));
                }
                None => carried.push((name.to_vec(), value.to_vec())),
            }
        }
        carried.sort();
        Ok((carried, marks))
    }

    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd> {
        let failed = |e: rustix::io::Errno| self.failed("cannot open", path, e);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |from: &OwnedFd, name: &[u8]| {
            rustix::fs::openat(from, name, flags, Mode::empty()).map_err(failed)
        };
        let mut at = open(&self.root, b".")?;
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            at = open(&at, name)?;
        }
        Ok(at)
    }

    fn shown(&self, path: &[u8]) -> String {
        format!("{}/{}", self.directory.display(), path.escape_ascii())
    }

    fn failed(&self, what: &str, path: &[u8], error: rustix::io::Errno) -> Error {
        Error::local(format!("{what} {}", self.shown(path)), &error.into())
    }
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

impl Marks {
    fn read(&mut self, name: &[u8], mark: &[u8], value: &[u8]) -> Result<()> {
        self.of_user_namespace |= name.starts_with(b"user.");
        match mark {
            b"opaque" if value == b"y" => self.opaque = true,
            b"opaque" if value == b"x" => self.holds_whiteouts = true,
            b"whiteout" => self.whiteout = true,
            b"redirect" | b"metacopy" => {
                let message = format!(
                    "overlayfs left part of it in a lower directory ({}): mount the overlay with \
                     redirect_dir=off,metacopy=off, as `layoutfs mount --upper` does",
                    name.escape_ascii()
                );
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            _ => {}
        }
        Ok(())
    }
}

fn mtime(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or_default() }
}
