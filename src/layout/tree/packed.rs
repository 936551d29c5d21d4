//! The nodes of a finished tree as few large tables: what an inode costs is what its records take.

use std::collections::HashMap;
use std::sync::Arc;

use super::builder::{Content, NodeKind};
use super::{Chunks, ContentRef, KindRef, Node, NodeId};
use crate::layout::digest::Blob;
use crate::layout::entry::{Attributes, Chunk};
use crate::layout::range::ByteRange;

/// The origin of what no layer has set. No layer has this number: there are at most 65,535.
const NO_LAYER: u16 = u16::MAX;

/// What the two numbers of a [`Record`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    /// The first child above how many there are | where their names begin.
    Directory,
    /// Size | where the only chunk begins, which is all of the file, in the layer that set the node.
    Whole,
    /// Size | which of the chunk lists.
    Pieces,
    /// Size | which of the inline contents.
    Inline,
    /// Size | which of the blobs.
    Blob,
    /// Length of the target | where it begins among the names.
    Symlink,
    /// Major above minor | 0.
    CharDevice,
    /// Major above minor | 0.
    BlockDevice,
    /// 0 | 0.
    Fifo,
}

/// One inode, 32 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    value: u64,
    place: u64,
    links: u32,
    parent: NodeId,
    /// Which of the attributes.
    attributes: u32,
    origin: u16,
    tag: Tag,
}

/// One name. It begins where the one before it in the directory ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name {
    /// From where the names of the directory begin. Those of all layers together are below 4 GiB.
    end: u32,
    node: NodeId,
}

/// The nodes of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packed {
    records: Vec<Record>,
    names: Vec<Name>,
    /// The bytes of names and targets.
    heap: Vec<u8>,
    /// Each once.
    attributes: Vec<Attributes>,
    /// Contents that are not one piece: sparse files, and those of a graft.
    pieces: Vec<(u16, Box<[Chunk]>)>,
    inline: Vec<Arc<[u8]>>,
    blobs: Vec<Blob>,
}

impl Packed {
    /// Nothing yet, and room for so many nodes.
    pub(super) fn with_capacity(nodes: usize) -> Self {
        Packed {
            records: Vec::with_capacity(nodes),
            // Every node has a name, but the root.
            names: Vec::with_capacity(nodes),
            heap: Vec::new(),
            attributes: Vec::new(),
            pieces: Vec::new(),
            inline: Vec::new(),
            blobs: Vec::new(),
        }
    }

    /// Appends a node: its attributes (their number), links, origin and parent; its children.
    pub(super) fn push(
        &mut self,
        kind: NodeKind,
        (attributes, links, origin, parent): (u32, u32, Option<u16>, NodeId),
        children: impl Iterator<Item = (Box<[u8]>, NodeId)>,
    ) {
        let (tag, value, place) = match kind {
            NodeKind::Directory => self.put_children(children),
            NodeKind::Regular { size, content } => self.put_content(size, content, origin),
            NodeKind::Symlink { target } => {
                let at = self.heap.len() as u64;
                self.heap.extend_from_slice(&target);
                (Tag::Symlink, target.len() as u64, at)
            }
            NodeKind::CharDevice { major, minor } => (Tag::CharDevice, joined(major, minor), 0),
            NodeKind::BlockDevice { major, minor } => (Tag::BlockDevice, joined(major, minor), 0),
            NodeKind::Fifo => (Tag::Fifo, 0, 0),
        };
        let origin = origin.unwrap_or(NO_LAYER);
        self.records.push(Record { value, place, links, parent, attributes, origin, tag });
    }

    fn put_children(
        &mut self,
        children: impl Iterator<Item = (Box<[u8]>, NodeId)>,
    ) -> (Tag, u64, u64) {
        let (first, begin) = (self.names.len(), self.heap.len());
        for (name, node) in children {
            self.heap.extend_from_slice(&name);
            self.names.push(Name { end: (self.heap.len() - begin) as u32, node });
        }
        let count = self.names.len() - first;
        (Tag::Directory, joined(first as u32, count as u32), begin as u64)
    }

    fn put_content(&mut self, size: u64, content: Content, origin: Option<u16>) -> (Tag, u64, u64) {
        match content {
            Content::Chunks { layer, chunks } => match *chunks {
                [Chunk { file_offset: 0, tar }] if tar.len() == size && origin == Some(layer) => {
                    (Tag::Whole, size, tar.start)
                }
                _ => {
                    self.pieces.push((layer, chunks));
                    (Tag::Pieces, size, self.pieces.len() as u64 - 1)
                }
            },
            Content::Inline(bytes) => {
                self.inline.push(bytes);
                (Tag::Inline, size, self.inline.len() as u64 - 1)
            }
            Content::Blob(blob) => {
                self.blobs.push(*blob);
                (Tag::Blob, size, self.blobs.len() as u64 - 1)
            }
        }
    }

    /// All nodes are there; `attributes` are those that they refer to, by their numbers.
    pub(super) fn finish(mut self, attributes: HashMap<Attributes, u32>) -> Self {
        let mut numbered: Vec<_> = attributes.into_iter().collect();
        numbered.sort_unstable_by_key(|(_, number)| *number);
        self.attributes = numbered.into_iter().map(|(attributes, _)| attributes).collect();
        self.attributes.shrink_to_fit();
        self.names.shrink_to_fit();
        self.heap.shrink_to_fit();
        self.pieces.shrink_to_fit();
        self
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) fn has_xattrs(&self) -> bool {
        self.attributes.iter().any(|a| !a.xattrs.is_empty())
    }

    pub(super) fn node(&self, id: NodeId) -> Option<Node<'_>> {
        let record = self.records.get(id.0 as usize)?;
        Some(Node {
            kind: self.kind(record)?,
            attributes: self.attributes.get(record.attributes as usize)?,
            links: record.links,
            origin: origin_of(record),
            parent: record.parent,
        })
    }

    fn kind(&self, record: &Record) -> Option<KindRef<'_>> {
        let (size, at) = (record.value, record.place as usize);
        let (major, minor) = parted(record.value);
        let content = match record.tag {
            Tag::Directory => return Some(KindRef::Directory),
            Tag::Symlink => {
                let target = self.heap.get(at..at + record.value as usize)?;
                return Some(KindRef::Symlink { target });
            }
            Tag::CharDevice => return Some(KindRef::CharDevice { major, minor }),
            Tag::BlockDevice => return Some(KindRef::BlockDevice { major, minor }),
            Tag::Fifo => return Some(KindRef::Fifo),
            Tag::Whole => {
                let tar = ByteRange::at(record.place, size);
                let chunks = Chunks::Whole(Chunk { file_offset: 0, tar });
                ContentRef::Chunks { layer: record.origin, chunks }
            }
            Tag::Pieces => {
                let (layer, chunks) = self.pieces.get(at)?;
                ContentRef::Chunks { layer: *layer, chunks: Chunks::Many(chunks) }
            }
            Tag::Inline => ContentRef::Inline(self.inline.get(at)?),
            Tag::Blob => ContentRef::Blob(self.blobs.get(at)?),
        };
        Some(KindRef::Regular { size, content })
    }

    pub(super) fn children(&self, id: NodeId) -> Option<Children<'_>> {
        let record = self.records.get(id.0 as usize)?;
        if record.tag != Tag::Directory {
            return None;
        }
        let (first, count) = parted(record.value);
        let names = self.names.get(first as usize..first as usize + count as usize)?;
        let end = names.last().map_or(0, |name| name.end as usize);
        let begin = record.place as usize;
        Some(Children {
            names,
            heap: self.heap.get(begin..begin + end)?,
            next: 0,
            end: names.len(),
        })
    }
}

fn origin_of(record: &Record) -> Option<u16> {
    (record.origin != NO_LAYER).then_some(record.origin)
}

fn joined(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn parted(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

/// The names in a directory and what they name, sorted by name.
#[derive(Debug, Clone, Default)]
pub struct Children<'t> {
    names: &'t [Name],
    heap: &'t [u8],
    next: usize,
    end: usize,
}

impl<'t> Children<'t> {
    /// The child at position `at`.
    fn get(&self, at: usize) -> (&'t [u8], NodeId) {
        let begin = at.checked_sub(1).map_or(0, |before| self.names[before].end as usize);
        let Name { end, node } = self.names[at];
        (&self.heap[begin..end as usize], node)
    }

    /// What `name` names here.
    pub(super) fn find(&self, name: &[u8]) -> Option<NodeId> {
        let (mut low, mut high) = (0, self.names.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let (found, node) = self.get(middle);
            match found.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(node),
            }
        }
        None
    }
}

impl<'t> Iterator for Children<'t> {
    type Item = (&'t [u8], NodeId);

    fn next(&mut self) -> Option<Self::Item> {
        let at = (self.next < self.end).then_some(self.next)?;
        self.next += 1;
        Some(self.get(at))
    }

    fn nth(&mut self, n: usize) -> Option<Self::Item> {
        self.next = self.next.saturating_add(n).min(self.end);
        self.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
    }
}

impl DoubleEndedIterator for Children<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.end = (self.next < self.end).then(|| self.end - 1)?;
        Some(self.get(self.end))
    }
}

impl ExactSizeIterator for Children<'_> {}
