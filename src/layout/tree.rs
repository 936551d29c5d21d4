//! `Tree`: the immutable inodes of one view. A view is a function that builds one; `fs` serves any.

mod builder;
mod packed;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

pub use builder::{Builder, Content, Draft, NodeKind};
pub use packed::Children;

use super::digest::{Blob, Digest};
use super::entry::{Attributes, Chunk};
use packed::Packed;

/// Most nodes of one tree: inode numbers stay far below 2^32, and a hostile image cannot take all
/// memory (about 100 bytes a node).
pub const NODES_MAX: usize = 20_000_000;

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

/// The pieces of one uncompressed layer that a file consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunks<'t> {
    /// All of the file.
    Whole(Chunk),
    /// Any.
    Many(&'t [Chunk]),
}

impl Deref for Chunks<'_> {
    type Target = [Chunk];

    fn deref(&self) -> &[Chunk] {
        match self {
            Chunks::Whole(chunk) => std::slice::from_ref(chunk),
            Chunks::Many(chunks) => chunks,
        }
    }
}

/// Where a regular file's bytes are: [`Content`] of a finished tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentRef<'t> {
    /// Here.
    Inline(&'t Arc<[u8]>),
    /// A whole blob, as stored.
    Blob(&'t Blob),
    /// Pieces of one uncompressed layer: ascending; what no chunk covers reads as zeros.
    Chunks {
        /// Index into [`Tree::layers`].
        layer: u16,
        /// The pieces.
        chunks: Chunks<'t>,
    },
}

/// A node's type, and what only that type has: [`NodeKind`] of a finished tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KindRef<'t> {
    /// A directory: see [`Tree::children`].
    Directory,
    /// A regular file.
    Regular {
        /// Logical size in bytes.
        size: u64,
        /// Where the bytes are.
        content: ContentRef<'t>,
    },
    /// A symbolic link, target verbatim.
    Symlink {
        /// Any bytes but NUL.
        target: &'t [u8],
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node<'t> {
    /// Type, and what only that type has.
    pub kind: KindRef<'t>,
    /// Mode, owner, time, xattrs.
    pub attributes: &'t Attributes,
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
    packed: Packed,
    layers: Vec<Layer>,
}

impl Tree {
    /// The node, if `id` is of this tree.
    pub fn node(&self, id: NodeId) -> Option<Node<'_>> {
        self.packed.node(id)
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.packed.len()
    }

    /// Never: there is always a root.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All nodes in inode order.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, Node<'_>)> {
        let all = (0..self.len() as u32).map(NodeId);
        all.filter_map(|id| Some((id, self.node(id)?)))
    }

    /// The layers that [`ContentRef::Chunks`] refers to.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Any node has an extended attribute.
    pub fn has_xattrs(&self) -> bool {
        self.packed.has_xattrs()
    }

    /// The children of a directory, sorted by name; `None` for anything else.
    pub fn children(&self, id: NodeId) -> Option<Children<'_>> {
        self.packed.children(id)
    }

    /// The child `name` of the directory `parent`.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.children(parent)?.find(name)
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
            let mut siblings = self.children(parent).unwrap_or_default();
            let name = siblings.find_map(|(name, child)| (child == at).then_some(name));
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
        self.nodes()
            .map(|(_, n)| match n.kind {
                KindRef::Regular { size, .. } => size,
                _ => 0,
            })
            // Sparse files may claim any size.
            .fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::range::ByteRange;

    fn file(byte: u8) -> NodeKind {
        NodeKind::Regular { size: 1, content: Content::Inline(Arc::new([byte])) }
    }

    fn directory() -> NodeKind {
        NodeKind::Directory
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
        assert_eq!(NodeKind::from(found.kind), file(7));
    }

    #[test]
    fn a_finished_tree_gives_back_what_it_was_built_of() {
        let chunk =
            |file_offset, start, end| Chunk { file_offset, tar: ByteRange::new(start, end) };
        let chunks = |layer, chunks: Vec<Chunk>| Content::Chunks { layer, chunks: chunks.into() };
        let regular = |size, content| NodeKind::Regular { size, content };
        let blob = Blob { digest: Digest::sha256_of(b"blob"), size: 9 };
        let kinds = [
            ("block", None, NodeKind::BlockDevice { major: u32::MAX, minor: 7 }),
            ("char", Some(3), NodeKind::CharDevice { major: 7, minor: u32::MAX }),
            ("dir", Some(1), NodeKind::Directory),
            ("empty", Some(1), regular(0, chunks(1, vec![]))),
            ("fifo", Some(0), NodeKind::Fifo),
            ("here", None, regular(1, Content::Inline(Arc::new([1])))),
            ("link", Some(1), NodeKind::Symlink { target: (*b"../\xff").into() }),
            ("nowhere", Some(1), NodeKind::Symlink { target: [].into() }),
            ("of another", Some(2), regular(5, chunks(1, vec![chunk(0, 512, 517)]))),
            (
                "sparse",
                Some(1),
                regular(1 << 40, chunks(1, vec![chunk(7, 9, 10), chunk(9, 10, 11)])),
            ),
            ("there", None, regular(9, Content::Blob(blob.into()))),
            ("whole", Some(1), regular(5, chunks(1, vec![chunk(0, 512, 517)]))),
        ];
        let mut builder = Builder::new(Vec::new());
        for (i, (name, origin, kind)) in kinds.iter().enumerate() {
            let xattrs = if i == 4 { vec![(b"user.a".to_vec(), vec![0])] } else { vec![] };
            let attributes = Attributes { mode: i as u32 / 2, xattrs, ..Attributes::default() };
            let node = builder.add(kind.clone(), attributes, *origin).expect("node");
            builder.link(NodeId::ROOT, name.as_bytes(), node);
        }
        let tree = builder.finish();
        assert!(tree.has_xattrs());
        let children = tree.children(NodeId::ROOT).expect("a directory");
        let names: Vec<&[u8]> = children.clone().map(|(name, _)| name).collect();
        assert!(
            names.iter().eq(kinds
                .iter()
                .map(|(name, ..)| name.as_bytes())
                .collect::<Vec<_>>()
                .iter())
        );
        assert!(children.clone().rev().map(|(name, _)| name).eq(names.iter().rev().copied()));
        assert_eq!(children.clone().nth(7).map(|(name, _)| name), Some(names[7]));
        assert_eq!(children.clone().nth(12), None);
        for (i, (name, origin, kind)) in kinds.iter().enumerate() {
            let id = tree.lookup(NodeId::ROOT, name.as_bytes()).expect(name);
            let node = tree.node(id).expect(name);
            assert_eq!((&NodeKind::from(node.kind), node.origin), (kind, *origin), "{name}");
            assert_eq!(node.attributes.mode, i as u32 / 2, "{name}");
            assert_eq!(node.attributes.xattrs.len(), usize::from(i == 4), "{name}");
            assert_eq!(tree.children(id).map(|c| c.count()), (*name == "dir").then_some(0));
        }
        for absent in ["", "a", "dir ", "z"] {
            assert_eq!(tree.lookup(NodeId::ROOT, absent.as_bytes()), None);
        }
    }
}
