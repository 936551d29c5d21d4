//! Where something is to be mounted in a rootfs that has no such path yet.

use super::error::{Error, Result};
use super::merge::resolve::follow;
use super::tree::Tree;

/// A path that something is to be mounted on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MountPoint {
    /// From the root, with or without a leading slash.
    pub path: Vec<u8>,
    /// A directory, else a regular file.
    pub is_directory: bool,
}

/// Those of `wanted` that `tree` does not have, each where its links lead: a container runtime
/// follows links inside the root before it mounts. The paths have neither a leading slash nor `.`
/// nor `..`.
///
/// # Errors
/// [`Error::Document`] for a path whose links go in circles.
pub fn missing(tree: &Tree, wanted: &[MountPoint]) -> Result<Vec<MountPoint>> {
    let mut missing = Vec::new();
    for MountPoint { path, is_directory } in wanted {
        let named = |reason| Error::document(String::from_utf8_lossy(path), reason);
        let place = follow(tree, path).map_err(named)?;
        let Some(first) = place.absent.first() else { continue };
        if tree.lookup(place.last(), first).is_some() {
            // A file: either it is what is mounted on, or it is in the way, as the runtime will say.
            continue;
        }
        let mut path = tree.path(place.last());
        for name in &place.absent {
            if path.last() != Some(&b'/') {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        path.remove(0);
        missing.push(MountPoint { path, is_directory: *is_directory });
    }
    missing.sort();
    missing.dedup();
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::entry::Attributes;
    use crate::layout::tree::{Builder, Content, NodeId, NodeKind};

    fn tree() -> Tree {
        let mut builder = Builder::new(Vec::new());
        let mut add = |parent, name: &[u8], kind| {
            let node = builder.add(kind, Attributes::default(), None).expect("node");
            builder.link(parent, name, node);
            node
        };
        let directory = || NodeKind::Directory;
        let link = |target: &[u8]| NodeKind::Symlink { target: target.into() };
        let etc = add(NodeId::ROOT, b"etc", directory());
        add(NodeId::ROOT, b"run", directory());
        let content = Content::Inline(Vec::new().into());
        add(etc, b"hosts", NodeKind::Regular { size: 0, content });
        add(etc, b"resolv.conf", link(b"../run/resolve/stub.conf"));
        add(etc, b"round", link(b"round"));
        add(NodeId::ROOT, b"out", link(b"../../../outside"));
        builder.finish()
    }

    fn missing_of(path: &str) -> Option<String> {
        let wanted = MountPoint { path: path.into(), is_directory: true };
        let found = missing(&tree(), &[wanted]).expect("followed").pop();
        found.map(|m| String::from_utf8(m.path).expect("text"))
    }

    #[test]
    fn only_what_the_image_lacks_is_missing() {
        assert_eq!(missing_of("/etc"), None);
        assert_eq!(missing_of("/etc/hosts"), None);
        assert_eq!(missing_of("/"), None);
        assert_eq!(missing_of("/proc").as_deref(), Some("proc"));
        assert_eq!(missing_of("/etc/a/b").as_deref(), Some("etc/a/b"));
    }

    #[test]
    fn a_link_is_followed_and_never_out_of_the_root() {
        assert_eq!(missing_of("/etc/resolv.conf").as_deref(), Some("run/resolve/stub.conf"));
        assert_eq!(missing_of("/out/x").as_deref(), Some("outside/x"));
    }

    #[test]
    fn links_in_circles_are_refused() {
        let wanted = MountPoint { path: b"/etc/round".to_vec(), is_directory: false };
        assert!(missing(&tree(), &[wanted]).is_err());
    }
}
