//! Where a path leads in a tree, under construction or finished: parents that are symbolic links
//! are followed, inside the root only.

use crate::layout::tree::{Builder, KindRef, NodeId, NodeKind, Tree};

/// Most symbolic links on the way to one name: what Linux allows before `ELOOP`.
const LINKS_MAX: usize = 40;

/// Most bytes of a link target that is followed: Linux makes no longer links (`PATH_MAX` less the
/// NUL), and following costs time for each byte.
const TARGET_BYTES_MAX: usize = 4095;

/// What a name on the way is.
pub(in crate::layout) enum Step<'a> {
    Directory,
    /// Its target.
    Symlink(&'a [u8]),
    Other,
}

/// Names that lead to nodes.
pub(in crate::layout) trait Names {
    /// The child `name` of the directory `parent`, and what it is.
    fn step(&self, parent: NodeId, name: &[u8]) -> Option<(NodeId, Step<'_>)>;
}

impl Names for Builder {
    fn step(&self, parent: NodeId, name: &[u8]) -> Option<(NodeId, Step<'_>)> {
        let id = self.child(parent, name)?;
        let step = match &self.draft(id).kind {
            NodeKind::Directory => Step::Directory,
            NodeKind::Symlink { target } => Step::Symlink(target),
            _ => Step::Other,
        };
        Some((id, step))
    }
}

impl Names for Tree {
    fn step(&self, parent: NodeId, name: &[u8]) -> Option<(NodeId, Step<'_>)> {
        let id = self.lookup(parent, name)?;
        let step = match self.node(id)?.kind {
            KindRef::Directory => Step::Directory,
            KindRef::Symlink { target } => Step::Symlink(target),
            _ => Step::Other,
        };
        Some((id, step))
    }
}

/// A directory, there or not yet.
pub(in crate::layout) struct Place<'a> {
    /// Directories below the root, down to the last that exists.
    pub trail: Vec<NodeId>,
    /// Names below it that do not exist, or are no directories.
    pub absent: Vec<&'a [u8]>,
    /// How many names in the targets of links were followed on the way.
    pub link_steps: usize,
}

impl Place<'_> {
    /// The directory, when all of it exists.
    pub fn directory(&self) -> Option<NodeId> {
        self.absent.is_empty().then(|| self.last())
    }

    /// The last directory that exists, the root if no other.
    pub fn last(&self) -> NodeId {
        self.trail.last().copied().unwrap_or(NodeId::ROOT)
    }
}

/// Follows all of `path`: every component that is a symbolic link is replaced by its target.
/// `..` (in targets) stays inside the root, and takes back an absent name as it takes back a
/// directory. The error says why the way does not end.
pub(in crate::layout) fn follow<'a>(
    tree: &'a impl Names,
    path: &'a [u8],
) -> Result<Place<'a>, String> {
    let mut place = Place { trail: Vec::new(), absent: Vec::new(), link_steps: 0 };
    let mut ahead: Vec<&[u8]> = components(path).collect();
    ahead.reverse();
    let mut links = 0;
    while let Some(name) = ahead.pop() {
        if name == b".." {
            if place.absent.pop().is_none() {
                place.trail.pop();
            }
            continue;
        }
        if !place.absent.is_empty() {
            place.absent.push(name);
            continue;
        }
        match tree.step(place.last(), name) {
            Some((id, Step::Directory)) => place.trail.push(id),
            Some((_, Step::Symlink(target))) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(format!("more than {LINKS_MAX} symbolic links in the parents"));
                }
                if target.len() > TARGET_BYTES_MAX {
                    let len = target.len();
                    return Err(format!("a parent is a symbolic link of {len} bytes"));
                }
                if target.first() == Some(&b'/') {
                    place.trail.clear();
                }
                let at = ahead.len();
                ahead.extend(components(target));
                ahead[at..].reverse();
                place.link_steps += ahead.len() - at;
            }
            _ => place.absent.push(name),
        }
    }
    Ok(place)
}

fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".")
}

/// The parent's path and the last component; `None` for the root itself.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None => Some((b"", path)),
    }
}
