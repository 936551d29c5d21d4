//! Nodes of a tree as the kernel's attributes, and their inode numbers.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};

use crate::layout::entry::Time;
use crate::layout::tree::{KindRef, Node, NodeId};

/// What `stat` calls a block, whatever the disk has.
const STAT_UNIT_BYTES: u64 = 512;

/// The preferred read size that `stat` reports.
const READ_SIZE_HINT_BYTES: u32 = 4096;

/// The inode number of a node: the root is 1, as FUSE wants it. Below 2^32, because trees are.
pub fn ino(id: NodeId) -> INodeNo {
    INodeNo(u64::from(id.0) + 1)
}

/// The node of an inode number; `None` for a number that no tree gives.
pub fn node_id(ino: INodeNo) -> Option<NodeId> {
    u32::try_from(ino.0.checked_sub(1)?).ok().map(NodeId)
}

/// The type for `d_type` and `st_mode`.
pub fn file_type(kind: KindRef<'_>) -> FileType {
    match kind {
        KindRef::Directory => FileType::Directory,
        KindRef::Regular { .. } => FileType::RegularFile,
        KindRef::Symlink { .. } => FileType::Symlink,
        KindRef::CharDevice { .. } => FileType::CharDevice,
        KindRef::BlockDevice { .. } => FileType::BlockDevice,
        KindRef::Fifo => FileType::NamedPipe,
    }
}

/// Everything `stat` shows.
pub fn attr(id: NodeId, node: Node<'_>) -> FileAttr {
    let size = match node.kind {
        KindRef::Regular { size, .. } => size,
        KindRef::Symlink { target } => target.len() as u64,
        _ => 0,
    };
    let rdev = match node.kind {
        KindRef::CharDevice { major, minor } | KindRef::BlockDevice { major, minor } => {
            device_number(major, minor)
        }
        _ => 0,
    };
    let mtime = system_time(node.attributes.mtime);
    FileAttr {
        ino: ino(id),
        size,
        blocks: size.div_ceil(STAT_UNIT_BYTES),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(node.kind),
        // Masked, so it fits.
        perm: (node.attributes.mode & 0o7777) as u16,
        nlink: node.links,
        uid: node.attributes.uid,
        gid: node.attributes.gid,
        rdev,
        blksize: READ_SIZE_HINT_BYTES,
        flags: 0,
    }
}

/// The kernel's 32-bit `new_encode_dev`: 12 bits of major, 20 bits of minor.
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

fn system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    // A time that no clock shows becomes the epoch rather than an error.
    whole.and_then(|t| t.checked_add(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_fraction() {
        let time = system_time(Time { seconds: -2, nanos: 500_000_000 });
        let before = SystemTime::UNIX_EPOCH.duration_since(time).expect("before the epoch");
        assert_eq!(before, Duration::from_millis(1500));
    }

    #[test]
    fn device_numbers_are_encoded_as_the_kernel_does() {
        assert_eq!(device_number(1, 3), 0x103);
        assert_eq!(device_number(259, 0x1_2345), 0x1231_0345);
    }

    #[test]
    fn inode_numbers_start_at_one_and_go_back() {
        assert_eq!(ino(NodeId::ROOT).0, 1);
        assert_eq!(node_id(INodeNo(7)), Some(NodeId(6)));
        assert_eq!(node_id(INodeNo(0)), None);
        assert_eq!(node_id(INodeNo(u64::MAX)), None);
    }
}
