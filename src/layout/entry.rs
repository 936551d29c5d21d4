//! One path's metadata from one layer, before merging.

use super::range::ByteRange;

/// A moment: seconds since 1970 (negative before it) and nanoseconds *after* that second.
/// -1.5 s is `{ seconds: -2, nanos: 500_000_000 }`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// A contiguous piece of one file's content inside the uncompressed layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// Position in the file.
    pub file_offset: u64,
    /// Where the bytes lie in the uncompressed layer (tar).
    pub tar: ByteRange,
}

/// What stands at a path, with what only that type has.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A regular file: logical size in bytes, and where its bytes are. Ascending chunks; what no
    /// chunk covers reads as zeros (sparse files).
    Regular {
        /// Logical size in bytes.
        size: u64,
        /// Ascending, not overlapping, inside `size`, none empty.
        chunks: Vec<Chunk>,
    },
    /// A directory.
    Directory,
    /// A symbolic link with its target, verbatim.
    Symlink {
        /// Any bytes but NUL; never interpreted here.
        target: Vec<u8>,
    },
    /// A hard link: binds to what stands at `target` when the link is applied.
    Hardlink {
        /// A cleaned path, as [`Entry::path`].
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A FIFO.
    Fifo,
}

/// The attributes that every type has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Extended attributes, sorted by name, names unique. Values are arbitrary bytes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// One member of a layer's tar.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Cleaned path: relative, components joined by single slashes, no `.` or `..`, no leading or
    /// trailing slash. Empty: the root. Arbitrary bytes otherwise.
    pub path: Vec<u8>,
    /// Position of the member's (last) tar header in the uncompressed layer, for messages.
    pub offset: u64,
    /// Type, and what only that type has.
    pub kind: EntryKind,
    /// The rest.
    pub attributes: Attributes,
}
