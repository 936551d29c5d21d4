//! `Tree`: the immutable inodes of one view. A view is a function that builds one; `fs` serves any.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::digest::{Blob, Digest};
use super::entry::{Attributes, Chunk};
use super::error::{Error, Result};

/// Most nodes of one tree: inode numbers stay far below 2^32, and a hostile image cannot take all
/// memory (about 200 bytes a node).
pub const NODES_MAX: usize = 20_000_000;

/// A name in a directory, and the node that it names.
pub type Child = (Box<[u8]>, NodeId);

/// Names one node of one tree. The inode number is this plus one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The root directory of every tree.
    pub const ROOT: NodeId = NodeId(0);
}

/// A layer that a tree's files have their content in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The layer as stored.
    pub blob: Blob,
    /// Digest of the uncompressed tar, from the image configuration.
    pub diff_id: Digest,
    /// Media type of the layer's descriptor, verbatim.
    pub media_type: String,
    /// Annotations of the layer's descriptor.
    pub annotations: BTreeMap<String, String>,
    /// The SOCI index that the image's manifest names, which may have a zTOC of the layer.
    pub soci_index: Option<Digest>,
}

/// Where a regular file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Here.
    Inline(Arc<[u8]>),
    /// A whole blob, as stored.
    Blob(Blob),
    /// Pieces of one uncompressed layer: ascending; what no chunk covers reads as zeros.
    Chunks {
        /// Index into [`Tree::layers`].
        layer: u16,
        /// As [`super::entry::EntryKind::Regular`] has them.
        chunks: Box<[Chunk]>,
    },
}

/// A node's type, and what only that type has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// Children sorted by name (bytewise), names unique.
    Directory {
        /// Name and node.
        children: Vec<Child>,
    },
    /// A regular file.
    Regular {
        /// Logical size in bytes.
        size: u64,
        /// Where the bytes are.
        content: Content,
    },
    /// A symbolic link, target verbatim.
    Symlink {
        /// Any bytes but NUL.
        target: Box<[u8]>,
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

/// One inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Type, and what only that type has.
    pub kind: NodeKind,
    /// Mode, owner, time, xattrs.
    pub attributes: Attributes,
    /// Number of names (regular and special files), or 2 + number of child directories.
    pub links: u32,
    /// Index into [`Tree::layers`] of the layer that last set this node; `None`: synthesised.
    pub origin: Option<u16>,
    /// The directory that holds the (first) name; the root is its own parent.
    pub parent: NodeId,
}

/// An immutable arena of inodes, root first, numbered in depth-first name order: the same layers
/// give the same numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    nodes: Vec<Node>,
    layers: Vec<Layer>,
    has_xattrs: bool,
}

impl Tree {
    /// The node, if `id` is of this tree.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: there is always a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All nodes in inode order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        (0u32..).map(NodeId).zip(&self.nodes)
    }

    /// The layers that [`Content::Chunks`] refers to.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Any node has an extended attribute.
    pub fn has_xattrs(&self) -> bool {
        self.has_xattrs
    }

    /// The children of a directory, sorted by name; `None` for anything else.
    pub fn children(&self, id: NodeId) -> Option<&[Child]> {
        match &self.node(id)?.kind {
            NodeKind::Directory { children } => Some(children),
            _ => None,
        }
    }

    /// The child `name` of the directory `parent`.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let children = self.children(parent)?;
        let at = children.binary_search_by(|(n, _)| (**n).cmp(name)).ok()?;
        Some(children[at].1)
    }

    /// The node at a slash-separated path from the root; symbolic links are not followed.
    pub fn find(&self, path: &[u8]) -> Option<NodeId> {
        path.split(|&b| b == b'/')
            .filter(|c| !c.is_empty() && *c != b".")
            .try_fold(NodeId::ROOT, |at, name| self.lookup(at, name))
    }

    /// The path of a node's (first) name, with a leading slash: for messages.
    pub fn path(&self, id: NodeId) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT {
            let Some(parent) = self.node(at).map(|n| n.parent) else { break };
            let siblings = self.children(parent).unwrap_or_default();
            let name = siblings.iter().find(|(_, child)| *child == at).map(|(name, _)| &**name);
            names.push(name.unwrap_or(b"?"));
            at = parent;
        }
        names.push(b"");
        names.reverse();
        let path = names.join(&b'/');
        if path.is_empty() { b"/".to_vec() } else { path }
    }

    /// Sum of the logical sizes of all regular files, each inode once; saturates.
    pub fn content_bytes(&self) -> u64 {
        self.nodes
            .iter()
            .map(|n| match n.kind {
                NodeKind::Regular { size, .. } => size,
                _ => 0,
            })
            // Sparse files may claim any size.
            .fold(0, u64::saturating_add)
    }
}

/// A node under construction.
#[derive(Debug, Clone)]
pub struct Draft {
    /// What stands here; a directory's children are in [`Builder`], and are empty here.
    pub kind: NodeKind,
    /// Mode, owner, time, xattrs.
    pub attributes: Attributes,
    /// The layer that last set this node.
    pub origin: Option<u16>,
    children: BTreeMap<Box<[u8]>, NodeId>,
}

/// A tree that still changes: merge applies changesets to one, views fill one.
#[derive(Debug, Clone)]
pub struct Builder {
    drafts: Vec<Draft>,
    layers: Vec<Layer>,
}

impl Builder {
    /// A tree with an empty root directory (0755, root:root, the epoch) and these layers.
    pub fn new(layers: Vec<Layer>) -> Self {
        let mut builder = Builder { drafts: Vec::new(), layers };
        let attributes = Attributes { mode: 0o755, ..Attributes::default() };
        builder.push(NodeKind::Directory { children: Vec::new() }, attributes, None);
        builder
    }

    fn push(&mut self, kind: NodeKind, attributes: Attributes, origin: Option<u16>) -> NodeId {
        let id = NodeId(self.drafts.len() as u32);
        self.drafts.push(Draft { kind, attributes, origin, children: BTreeMap::new() });
        id
    }

    /// A new node without a name yet.
    ///
    /// # Errors
    /// [`Error::Limit`] beyond [`NODES_MAX`].
    pub fn add(
        &mut self,
        kind: NodeKind,
        attributes: Attributes,
        origin: Option<u16>,
    ) -> Result<NodeId> {
        if self.drafts.len() >= NODES_MAX {
            let what = "number of inodes of one image".to_owned();
            return Err(Error::Limit { what, limit: NODES_MAX as u64 });
        }
        Ok(self.push(kind, attributes, origin))
    }

    /// The draft of a node that this builder made.
    pub fn draft(&self, id: NodeId) -> &Draft {
        &self.drafts[id.0 as usize]
    }

    /// The same, to change its kind (never to or from a directory with children) or attributes.
    pub fn draft_mut(&mut self, id: NodeId) -> &mut Draft {
        &mut self.drafts[id.0 as usize]
    }

    /// The node is a directory.
    pub fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.draft(id).kind, NodeKind::Directory { .. })
    }

    /// The child `name` of `parent`.
    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.draft(parent).children.get(name).copied()
    }

    /// Names and nodes below `parent`, sorted by name.
    pub fn children(&self, parent: NodeId) -> impl Iterator<Item = (&[u8], NodeId)> {
        self.draft(parent).children.iter().map(|(name, id)| (&**name, *id))
    }

    /// Gives `node` the name `name` in `parent`; what had it before loses it, and is returned.
    pub fn link(&mut self, parent: NodeId, name: &[u8], node: NodeId) -> Option<NodeId> {
        self.draft_mut(parent).children.insert(name.into(), node)
    }

    /// Takes the name away, with everything beneath it.
    pub fn unlink(&mut self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.draft_mut(parent).children.remove(name)
    }

    /// Puts a copy of a finished tree in place of the name `name` in `parent`; its layers are
    /// appended to this builder's.
    ///
    /// # Errors
    /// [`Error::Limit`] beyond [`NODES_MAX`] or 65,535 layers.
    pub fn graft(&mut self, parent: NodeId, name: &[u8], tree: &Tree) -> Result<NodeId> {
        let base = self.layers.len();
        let limit = u64::from(u16::MAX);
        let too_many = || Error::Limit { what: "number of layers of one mount".to_owned(), limit };
        if base + tree.layers.len() >= usize::from(u16::MAX) {
            return Err(too_many());
        }
        let shift = base as u16;
        self.layers.extend(tree.layers.iter().cloned());
        let first = self.drafts.len() as u32;
        for node in &tree.nodes {
            let mut kind = node.kind.clone();
            let mut children = BTreeMap::new();
            match &mut kind {
                NodeKind::Regular { content: Content::Chunks { layer, .. }, .. } => *layer += shift,
                NodeKind::Directory { children: old } => {
                    let moved = std::mem::take(old).into_iter();
                    children = moved.map(|(name, id)| (name, NodeId(id.0 + first))).collect();
                }
                _ => {}
            }
            let origin = node.origin.map(|o| o + shift);
            let id = self.add(kind, node.attributes.clone(), origin)?;
            self.draft_mut(id).children = children;
        }
        self.link(parent, name, NodeId(first));
        Ok(NodeId(first))
    }

    /// Numbers what is reachable from the root, counts links, and freezes.
    pub fn finish(mut self) -> Tree {
        let mut order: Vec<(usize, NodeId)> = Vec::new();
        let mut number: Vec<Option<NodeId>> = vec![None; self.drafts.len()];
        let mut links: Vec<u32> = vec![0; self.drafts.len()];
        let mut stack = vec![(0usize, NodeId::ROOT)];
        while let Some((draft, parent)) = stack.pop() {
            links[draft] += 1;
            if number[draft].is_some() {
                continue;
            }
            let id = NodeId(order.len() as u32);
            number[draft] = Some(id);
            order.push((draft, parent));
            let children = self.drafts[draft].children.values().rev();
            stack.extend(children.map(|child| (child.0 as usize, id)));
        }
        let mut nodes = Vec::with_capacity(order.len());
        for (draft, parent) in order {
            let mut links = links[draft];
            let taken = std::mem::take(&mut self.drafts[draft].children);
            let Draft { kind, attributes, origin, .. } = self.drafts[draft].clone();
            let kind = match kind {
                NodeKind::Directory { .. } => {
                    let directories =
                        taken.values().filter(|id| self.is_directory(**id)).count() as u32;
                    links = 2 + directories;
                    let renumbered =
                        taken.into_iter().filter_map(|(n, id)| Some((n, number[id.0 as usize]?)));
                    NodeKind::Directory { children: renumbered.collect() }
                }
                other => other,
            };
            nodes.push(Node { kind, attributes, links, origin, parent });
        }
        let has_xattrs = nodes.iter().any(|n| !n.attributes.xattrs.is_empty());
        Tree { nodes, layers: self.layers, has_xattrs }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(byte: u8) -> NodeKind {
        NodeKind::Regular { size: 1, content: Content::Inline(Arc::new([byte])) }
    }

    fn directory() -> NodeKind {
        NodeKind::Directory { children: Vec::new() }
    }

    #[test]
    fn hard_links_share_one_inode_and_unreachable_nodes_vanish() {
        let mut builder = Builder::new(Vec::new());
        let d = builder.add(directory(), Attributes::default(), None).expect("node");
        let a = builder.add(file(1), Attributes::default(), None).expect("node");
        let lost = builder.add(file(2), Attributes::default(), None).expect("node");
        builder.link(NodeId::ROOT, b"d", d);
        builder.link(d, b"x", lost);
        builder.link(d, b"x", a);
        builder.link(NodeId::ROOT, b"a", a);
        let tree = builder.finish();
        assert_eq!(tree.len(), 3);
        let id = tree.find(b"/d/x").expect("found");
        assert_eq!(tree.find(b"a"), Some(id));
        assert_eq!(tree.path(id), b"/a");
        assert_eq!(tree.path(tree.find(b"d").expect("found")), b"/d");
        assert_eq!(tree.path(NodeId::ROOT), b"/");
        assert_eq!(tree.node(id).expect("node").links, 2);
        assert_eq!(tree.node(NodeId::ROOT).expect("root").links, 3);
    }

    #[test]
    fn a_grafted_tree_keeps_its_shape() {
        let mut inner = Builder::new(Vec::new());
        let f = inner.add(file(7), Attributes::default(), None).expect("node");
        inner.link(NodeId::ROOT, b"f", f);
        let inner = inner.finish();
        let mut outer = Builder::new(Vec::new());
        outer.graft(NodeId::ROOT, b"rootfs", &inner).expect("graft");
        let tree = outer.finish();
        let found = tree.find(b"rootfs/f").and_then(|id| tree.node(id)).expect("found");
        assert_eq!(found.kind, file(7));
    }
}
