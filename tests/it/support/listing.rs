//! A tree on disk as a sorted listing that can be compared: what syscalls say about each path.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use layoutfs::layout::digest::{Digest, Hasher};

/// Every path below a root, the root itself as the empty path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing(pub BTreeMap<Vec<u8>, Facts>);

/// What is known of one path. Sizes and link counts of directories are left out: filesystems
/// disagree about them, and nobody may rely on them.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// `-`, `d`, `l`, `c`, `b`, `p` or `s`.
    pub kind: char,
    /// Permissions with set-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_ns: i64,
    /// Bytes of a file's content or of a symlink's target; 0 for others.
    pub size_bytes: u64,
    /// Number of names; 1 for directories.
    pub links: u64,
    /// The first path (in order) of the same file, when it has several names here.
    pub same_as: Option<Vec<u8>>,
    /// Major and minor of a device.
    pub device: (u32, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub target: Option<Vec<u8>>,
    /// Digest of a file's content.
    pub content: Option<Digest>,
}

/// Room for one path's attribute names, and for one value: the kernel's XATTR_LIST_MAX.
const XATTR_BYTES_MAX: usize = 64 << 10;

impl Listing {
    /// Lists everything below `root`, reading every byte.
    pub fn of(root: &Path) -> Self {
        let mut listing = Listing::default();
        let mut inodes = BTreeMap::new();
        listing.add(root, Vec::new(), &mut inodes);
        for paths in inodes.values().filter(|paths: &&Vec<Vec<u8>>| paths.len() > 1) {
            let first = paths.iter().min().expect("two paths or more");
            for path in paths {
                let facts = listing.0.get_mut(path).expect("listed before");
                facts.same_as = Some(first.clone());
            }
        }
        listing
    }

    /// The paths, as text.
    pub fn paths(&self) -> Vec<String> {
        self.0.keys().map(|path| path.escape_ascii().to_string()).collect()
    }

    /// The facts about one path.
    pub fn get(&self, path: &str) -> Option<&Facts> {
        self.0.get(path.as_bytes())
    }

    /// Lines that differ: `-` only here, `+` only in `other`. Empty when both are the same.
    pub fn diff(&self, other: &Listing) -> String {
        let mut text = String::new();
        let paths: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        for path in paths {
            let (old, new) = (self.0.get(path), other.0.get(path));
            if old == new {
                continue;
            }
            for (sign, facts) in [('-', old), ('+', new)] {
                if let Some(facts) = facts {
                    text += &format!("{sign} {} {facts}\n", name(path));
                }
            }
        }
        text
    }

    /// Panics with the difference when `actual` is not the same.
    #[track_caller]
    pub fn assert_same(&self, actual: &Listing) {
        let diff = self.diff(actual);
        assert!(diff.is_empty(), "trees differ (- expected, + found):\n{diff}");
    }

    fn add(&mut self, at: &Path, path: Vec<u8>, inodes: &mut BTreeMap<(u64, u64), Vec<Vec<u8>>>) {
        let (facts, inode) = Facts::of(at);
        if facts.kind == 'd' {
            let entries = std::fs::read_dir(at).unwrap_or_else(|e| fail("list", at, e));
            for entry in entries {
                let name = entry.unwrap_or_else(|e| fail("list", at, e)).file_name();
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                let child = [&path, slash, name.as_bytes()].concat();
                self.add(&at.join(&name), child, inodes);
            }
        } else {
            inodes.entry(inode).or_default().push(path.clone());
        }
        self.0.insert(path, facts);
    }
}

impl Facts {
    /// The facts about `at`, not following a symlink; and its device and inode number.
    fn of(at: &Path) -> (Self, (u64, u64)) {
        let meta = std::fs::symlink_metadata(at).unwrap_or_else(|e| fail("stat", at, e));
        let kind = kind(meta.mode());
        let sized = matches!(kind, '-' | 'l');
        let device = if matches!(kind, 'c' | 'b') { meta.rdev() } else { 0 };
        let target = || std::fs::read_link(at).unwrap_or_else(|e| fail("readlink", at, e));
        let facts = Facts {
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: meta.mtime(),
            mtime_ns: meta.mtime_nsec(),
            size_bytes: if sized { meta.size() } else { 0 },
            links: if kind == 'd' { 1 } else { meta.nlink() },
            same_as: None,
            device: (rustix::fs::major(device), rustix::fs::minor(device)),
            xattrs: xattrs(at),
            target: (kind == 'l').then(|| target().into_os_string().into_vec()),
            content: (kind == '-').then(|| content(at)),
        };
        (facts, (meta.dev(), meta.ino()))
    }
}

fn kind(mode: u32) -> char {
    match mode & 0o170_000 {
        0o100_000 => '-',
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        _ => 's',
    }
}

fn content(at: &Path) -> Digest {
    let mut file = std::fs::File::open(at).unwrap_or_else(|e| fail("open", at, e));
    let mut hasher = Hasher::sha256();
    let mut bytes = vec![0; 128 << 10];
    loop {
        match file.read(&mut bytes).unwrap_or_else(|e| fail("read", at, e)) {
            0 => return hasher.finish(),
            len => hasher.update(&bytes[..len]),
        }
    }
}

fn xattrs(at: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut bytes = vec![0; XATTR_BYTES_MAX];
    let names = match rustix::fs::llistxattr(at, &mut bytes[..]) {
        Ok(len) => bytes[..len].to_vec(),
        // A filesystem without attributes has none on this path.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Vec::new(),
        Err(error) => fail("listxattr", at, error.into()),
    };
    let names = names.split(|&b| b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let len = rustix::fs::lgetxattr(at, name, &mut bytes[..])
                .unwrap_or_else(|error| fail("getxattr", at, error.into()));
            (name.to_vec(), bytes[..len].to_vec())
        })
        .collect()
}

fn fail(what: &str, at: &Path, error: std::io::Error) -> ! {
    panic!("cannot {what} {}: {error}", at.display())
}

fn name(path: &[u8]) -> String {
    if path.is_empty() { ".".into() } else { path.escape_ascii().to_string() }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Facts { kind, mode, uid, gid, mtime, mtime_ns, size_bytes, links, .. } = self;
        write!(f, "{kind}{mode:04o} {uid}:{gid} {size_bytes} {mtime}.{mtime_ns:09} x{links}")?;
        if matches!(kind, 'c' | 'b') {
            write!(f, " {},{}", self.device.0, self.device.1)?;
        }
        if let Some(target) = &self.target {
            write!(f, " -> {}", target.escape_ascii())?;
        }
        if let Some(content) = &self.content {
            write!(f, " {}", content.short())?;
        }
        if let Some(same) = &self.same_as {
            write!(f, " = {}", same.escape_ascii())?;
        }
        for (name, value) in &self.xattrs {
            write!(f, " {}={}", name.escape_ascii(), value.escape_ascii())?;
        }
        Ok(())
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(path, facts)| writeln!(f, "{} {facts}", name(path)))
    }
}
