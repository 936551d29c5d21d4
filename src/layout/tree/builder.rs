//! A tree that still changes: what views and merging fill, and freeze.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::packed::Packed;
use super::{ContentRef, KindRef, Layer, NODES_MAX, NodeId, Tree};
use crate::layout::digest::Blob;
use crate::layout::entry::{Attributes, Chunk};
use crate::layout::error::{Error, Result};

/// Where a regular file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Here.
    Inline(Arc<[u8]>),
    /// A whole blob, as stored.
    Blob(Box<Blob>),
    /// Pieces of one uncompressed layer: ascending; what no chunk covers reads as zeros.
    Chunks {
        /// Index into [`Tree::layers`].
        layer: u16,
        /// As [`EntryKind::Regular`](crate::layout::entry::EntryKind::Regular) has them.
        chunks: Box<[Chunk]>,
    },
}

/// A node's type, and what only that type has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory. Its children are the builder's.
    Directory,
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

impl From<KindRef<'_>> for NodeKind {
    fn from(kind: KindRef<'_>) -> Self {
        match kind {
            KindRef::Directory => NodeKind::Directory,
            KindRef::Regular { size, content } => {
                NodeKind::Regular { size, content: content.into() }
            }
            KindRef::Symlink { target } => NodeKind::Symlink { target: target.into() },
            KindRef::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
            KindRef::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
            KindRef::Fifo => NodeKind::Fifo,
        }
    }
}

impl From<ContentRef<'_>> for Content {
    fn from(content: ContentRef<'_>) -> Self {
        match content {
            ContentRef::Inline(bytes) => Content::Inline(bytes.clone()),
            ContentRef::Blob(blob) => Content::Blob(Box::new(*blob)),
            ContentRef::Chunks { layer, chunks } => {
                Content::Chunks { layer, chunks: chunks[..].into() }
            }
        }
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
        builder.push(NodeKind::Directory, attributes, None);
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
        matches!(self.draft(id).kind, NodeKind::Directory)
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
        for (id, node) in tree.nodes() {
            let mut kind = NodeKind::from(node.kind);
            if let NodeKind::Regular { content: Content::Chunks { layer, .. }, .. } = &mut kind {
                *layer += shift;
            }
            let origin = node.origin.map(|o| o + shift);
            let made = self.add(kind, node.attributes.clone(), origin)?;
            let children = tree.children(id).unwrap_or_default();
            self.draft_mut(made).children =
                children.map(|(name, id)| (name.into(), NodeId(id.0 + first))).collect();
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
        let mut packed = Packed::with_capacity(order.len());
        let mut known: HashMap<Attributes, u32> = HashMap::new();
        for (draft, parent) in order {
            let taken = std::mem::take(&mut self.drafts[draft].children);
            let directories = taken.values().filter(|id| self.is_directory(**id)).count() as u32;
            let Draft { kind, attributes, origin, .. } = &mut self.drafts[draft];
            let kind = std::mem::replace(kind, NodeKind::Fifo);
            let attributes = std::mem::take(attributes);
            // Few differ: files of one package share owner, mode and time.
            let next = known.len() as u32;
            let attributes = *known.entry(attributes).or_insert(next);
            let links = if kind == NodeKind::Directory { 2 + directories } else { links[draft] };
            let children =
                taken.into_iter().filter_map(|(n, id)| Some((n, number[id.0 as usize]?)));
            packed.push(kind, (attributes, links, *origin, parent), children);
        }
        Tree { packed: packed.finish(known), layers: self.layers }
    }
}
