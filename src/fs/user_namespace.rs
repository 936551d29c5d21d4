//! The user namespace of this process: whether it is the machine's own, and what its root may.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The inode number of the machine's own user namespace (`PROC_USER_INIT_INO` in the kernel's
/// `proc_ns.h`). Maps of ids do not tell: a namespace may have the identity.
const INITIAL: u64 = 0xefff_fffd;

/// This process is not in the machine's own user namespace: `trusted.*` attributes, device nodes
/// and control groups are out of reach even for root.
pub fn is_inside() -> bool {
    std::fs::metadata("/proc/self/ns/user").is_ok_and(|namespace| namespace.ino() != INITIAL)
}

/// This process is root, and the machine's directories belong to it: as root of the machine, or of a
/// container; but not as a user who is root in a user namespace only.
pub fn owns_machine() -> bool {
    let owned = || std::fs::metadata("/run").is_ok_and(|run| run.uid() == 0);
    rustix::process::geteuid().is_root() && (!is_inside() || owned())
}

/// This process' user, as the machine around its user namespace knows it.
pub fn uid_outside() -> u32 {
    let uid = rustix::process::geteuid().as_raw();
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    outside(&map, uid).unwrap_or(uid)
}

/// The kernel shows `inside outside length` in each line of a map.
fn outside(map: &str, id: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u32>().ok());
        let (first, outside, length) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let offset = id.checked_sub(first).filter(|offset| *offset < length)?;
        outside.checked_add(offset)
    })
}

/// A directory of this process' own can keep what overlayfs notes in `user.*` attributes.
pub fn takes_user_attributes(directory: &Path) -> bool {
    let name = "user.layoutfs.probe";
    let set = rustix::fs::setxattr(directory, name, b"y", rustix::fs::XattrFlags::empty());
    set.and_then(|()| rustix::fs::removexattr(directory, name)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_in_its_line_of_the_map() {
        let map = "         0       1001          1\n         1     100000      65536\n";
        assert_eq!(outside(map, 0), Some(1001));
        assert_eq!(outside(map, 1), Some(100_000));
        assert_eq!(outside(map, 65_536), Some(165_535));
        assert_eq!(outside(map, 65_537), None);
        assert_eq!(outside("nonsense\n1 2\n", 1), None);
    }
}
