//! An overlay's upper directory and the tree below it, to the members of one layer.
//!
//! image-spec `layer.md`, "Representing Changes": explicit whiteouts, never opaque ones, as it
//! recommends. What is the same as below is left out.

use std::collections::{BTreeSet, HashMap};

use super::entry::{Attributes, EntryKind};
use super::tar::path::clean_path;
use super::tree::{KindRef, Node, NodeId, Tree};

/// Attributes that belong to overlayfs, in either of its namespaces.
const OVERLAY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Attributes that the host gives to files, whatever the image says.
const HOST_XATTRS: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];

/// What container runtimes make to mount over it. Empty, and absent below, it is not a change.
const MOUNT_POINTS: [&[u8]; 10] = [
    b"dev",
    b"dev/console",
    b"dev/mqueue",
    b"dev/pts",
    b"dev/shm",
    b"etc/hostname",
    b"etc/hosts",
    b"etc/resolv.conf",
    b"proc",
    b"sys",
];

/// One name in an upper directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpperNode {
    /// One path component.
    pub name: Box<[u8]>,
    /// What it is.
    pub kind: UpperKind,
    /// Without the attributes that [`is_carried`] refuses.
    pub attributes: Attributes,
    /// Device and inode number: names with the same are hard links.
    pub inode: (u64, u64),
}

/// What stands at a name in an upper directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpperKind {
    /// The name is gone, in whichever of overlayfs' forms.
    Whiteout,
    /// A directory.
    Directory {
        /// Nothing of the lower directory shows.
        opaque: bool,
        /// Sorted by name (bytewise), names unique.
        children: Vec<UpperNode>,
    },
    /// Anything else; never a hard link, never a directory. Regular files without chunks.
    Other(EntryKind),
}

/// Paths that are left as they are below, with everything beneath them.
#[derive(Debug, Clone, Default)]
pub struct Excluded(BTreeSet<Vec<u8>>);

/// One member of the layer to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<'a> {
    /// Cleaned path: of a whiteout, the path that it removes.
    pub path: Vec<u8>,
    /// What happens there.
    pub change: Change<'a>,
}

/// What a member says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<'a> {
    /// A whiteout.
    Removed,
    /// The node is there.
    Put {
        /// Of the upper directory.
        node: &'a UpperNode,
        /// There was something at this path.
        replaces: bool,
        /// A regular file of the base that is the same but for, perhaps, its content. If that is
        /// the same too, the member says nothing, and is left out.
        unchanged_if_content_of: Option<NodeId>,
    },
    /// One more name of an inode that an earlier member put.
    Link {
        /// Of the upper directory.
        node: &'a UpperNode,
        /// The earlier member's path.
        target: Vec<u8>,
        /// There was something at this path.
        replaces: bool,
    },
}

/// The members in the order of the tar, and what is not among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan<'a> {
    /// A directory, then what it removes, then what it holds, by name.
    pub members: Vec<Member<'a>>,
    /// Files that are known to be the same below.
    pub pruned: u64,
    /// Mount points of container runtimes.
    pub mount_points: u64,
}

/// The attribute belongs to the file, and not to overlayfs or the host.
pub fn is_carried(xattr: &[u8]) -> bool {
    !OVERLAY_XATTRS.iter().any(|prefix| xattr.starts_with(prefix)) && !HOST_XATTRS.contains(&xattr)
}

impl Excluded {
    /// These paths, however they are written.
    ///
    /// # Errors
    /// The reason: a path that leaves the root, or is it.
    pub fn new<'p>(paths: impl IntoIterator<Item = &'p [u8]>) -> Result<Self, String> {
        let clean = |path: &'p [u8]| match clean_path(path)? {
            root if root.is_empty() => Err("the root cannot be excluded".to_owned()),
            path => Ok(path),
        };
        paths.into_iter().map(clean).collect::<Result<_, _>>().map(Excluded)
    }

    /// The path, or a directory above it, is excluded.
    pub fn contains(&self, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        !self.0.is_empty() && ends.chain([path.len()]).any(|end| self.0.contains(&path[..end]))
    }
}

/// What the root of an upper directory, with these children, changes in `base`. The root's own
/// attributes are no change: whoever made the upper directory chose them.
pub fn plan<'a>(children: &'a [UpperNode], base: &Tree, excluded: &Excluded) -> Plan<'a> {
    let mut names = HashMap::new();
    count_names(children, &mut names);
    let mut planner =
        Planner { base, excluded, names, first: HashMap::new(), plan: Plan::default() };
    planner.directory(&[], children, Some(NodeId::ROOT), false);
    planner.plan
}

/// `directory/name`; the root is empty.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

fn count_names(children: &[UpperNode], names: &mut HashMap<(u64, u64), u64>) {
    for node in children {
        match &node.kind {
            UpperKind::Directory { children, .. } => count_names(children, names),
            UpperKind::Other(_) => *names.entry(node.inode).or_default() += 1,
            UpperKind::Whiteout => {}
        }
    }
}

struct Planner<'a, 'b> {
    base: &'b Tree,
    excluded: &'b Excluded,
    /// Names of each inode within the upper directory.
    names: HashMap<(u64, u64), u64>,
    /// The path that put an inode of several names.
    first: HashMap<(u64, u64), Vec<u8>>,
    plan: Plan<'a>,
}

impl<'a> Planner<'a, '_> {
    /// `base` is the directory below, if there is one; `opaque`: nothing of it shows.
    fn directory(
        &mut self,
        path: &[u8],
        children: &'a [UpperNode],
        base: Option<NodeId>,
        opaque: bool,
    ) {
        for (name, _) in base.and_then(|id| self.base.children(id)).unwrap_or_default() {
            let is_gone = match children.binary_search_by(|node| node.name[..].cmp(name)) {
                Ok(at) => children[at].kind == UpperKind::Whiteout,
                Err(_) => opaque,
            };
            let path = join(path, name);
            if is_gone && !self.excluded.contains(&path) {
                self.plan.members.push(Member { path, change: Change::Removed });
            }
        }
        for node in children {
            let path = join(path, &node.name);
            let lower = base.and_then(|id| self.base.lookup(id, &node.name));
            if self.excluded.contains(&path) {
                continue;
            }
            if lower.is_none() && is_mount_point(&path, node) {
                self.plan.mount_points += 1;
                continue;
            }
            match &node.kind {
                UpperKind::Whiteout => {}
                UpperKind::Directory { opaque: own, children } => {
                    let below = lower.filter(|id| self.base.children(*id).is_some());
                    if !below.is_some_and(|id| self.has_attributes(id, &node.attributes)) {
                        self.put(path.clone(), node, lower, None);
                    }
                    self.directory(&path, children, below, opaque || *own);
                }
                UpperKind::Other(kind) => self.other(path, node, kind, lower),
            }
        }
    }

    fn other(
        &mut self,
        path: Vec<u8>,
        node: &'a UpperNode,
        kind: &EntryKind,
        lower: Option<NodeId>,
    ) {
        if self.names.get(&node.inode).is_some_and(|names| *names > 1) {
            // Never pruned: the other names have to find it.
            let Some(target) = self.first.get(&node.inode).cloned() else {
                self.first.insert(node.inode, path.clone());
                return self.put(path, node, lower, None);
            };
            let change = Change::Link { node, target, replaces: lower.is_some() };
            self.plan.members.push(Member { path, change });
            return;
        }
        let below = lower.and_then(|id| Some((id, self.base.node(id)?)));
        match below.map(|(id, below)| (id, compare(kind, &node.attributes, below))) {
            Some((_, Comparison::Same)) => self.plan.pruned += 1,
            Some((id, Comparison::SameIfContent)) => self.put(path, node, lower, Some(id)),
            Some((_, Comparison::Different)) | None => self.put(path, node, lower, None),
        }
    }

    fn put(
        &mut self,
        path: Vec<u8>,
        node: &'a UpperNode,
        lower: Option<NodeId>,
        unchanged_if_content_of: Option<NodeId>,
    ) {
        let change = Change::Put { node, replaces: lower.is_some(), unchanged_if_content_of };
        self.plan.members.push(Member { path, change });
    }

    fn has_attributes(&self, id: NodeId, attributes: &Attributes) -> bool {
        self.base.node(id).is_some_and(|below| same_attributes(attributes, below.attributes))
    }
}

/// An empty file or directory where a runtime mounts something.
fn is_mount_point(path: &[u8], node: &UpperNode) -> bool {
    MOUNT_POINTS.contains(&path)
        && match &node.kind {
            UpperKind::Directory { children, .. } => {
                children.iter().all(|child| is_mount_point(&join(path, &child.name), child))
            }
            UpperKind::Other(EntryKind::Regular { size, .. }) => *size == 0,
            _ => false,
        }
}

enum Comparison {
    Same,
    SameIfContent,
    Different,
}

fn compare(kind: &EntryKind, attributes: &Attributes, below: Node<'_>) -> Comparison {
    let is_same = |same: bool| if same { Comparison::Same } else { Comparison::Different };
    // A symbolic link has no mode of its own on Linux, whatever its layer says.
    let mode = match kind {
        EntryKind::Symlink { .. } => attributes.mode,
        _ => below.attributes.mode,
    };
    let other = Attributes { mode, ..below.attributes.clone() };
    if !same_attributes(attributes, &other) {
        return Comparison::Different;
    }
    match (kind, below.kind) {
        (EntryKind::Regular { size: 0, .. }, KindRef::Regular { size: 0, .. }) => Comparison::Same,
        (EntryKind::Regular { size, .. }, KindRef::Regular { size: below, .. })
            if *size == below =>
        {
            Comparison::SameIfContent
        }
        (EntryKind::Symlink { target }, KindRef::Symlink { target: below }) => {
            is_same(target[..] == below[..])
        }
        (
            EntryKind::CharDevice { major, minor },
            KindRef::CharDevice { major: below_major, minor: below_minor },
        )
        | (
            EntryKind::BlockDevice { major, minor },
            KindRef::BlockDevice { major: below_major, minor: below_minor },
        ) => is_same((*major, *minor) == (below_major, below_minor)),
        (EntryKind::Fifo, KindRef::Fifo) => Comparison::Same,
        _ => Comparison::Different,
    }
}

fn same_attributes(upper: &Attributes, below: &Attributes) -> bool {
    let carried = below.xattrs.iter().filter(|(name, _)| is_carried(name));
    (upper.mode, upper.uid, upper.gid, upper.mtime)
        == (below.mode, below.uid, below.gid, below.mtime)
        && upper.xattrs.iter().eq(carried)
}

#[cfg(test)]
mod tests;
