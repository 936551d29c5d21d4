//! What a mount shows: content of a `Tree` through a `Store`. No FUSE types; tested without a mount.

use std::sync::Arc;

use super::policy::{Pin, Policy, Served};
use crate::fetch::layer::LayerReader;
use crate::fetch::proved::{Filling, Proved};
use crate::fetch::store::Store;
use crate::fetch::whole_file::{self, Known, WholeFile};
use crate::fetch::{Deadline, Error, ErrorKind, Result};
use crate::layout::entry::Chunk;
use crate::layout::plan::{self, Slice};
use crate::layout::range::ByteRange;
use crate::layout::tree::{ContentRef, KindRef, NodeId, Tree};
use crate::layout::{Blob, Digest};

/// One mounted tree, and where its content comes from.
pub struct View {
    tree: Tree,
    readers: Vec<Arc<LayerReader>>,
    store: Arc<Store>,
    policy: Policy,
}

impl View {
    /// A view of `tree`; `readers[i]` reads `tree.layers()[i]`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when the readers are not those of the tree's layers.
    pub fn new(
        tree: Tree,
        readers: Vec<Arc<LayerReader>>,
        store: Arc<Store>,
        policy: Policy,
    ) -> Result<Self> {
        let read = readers.iter().map(|r| r.layer().blob.digest);
        if !read.eq(tree.layers().iter().map(|l| l.blob.digest)) {
            return Err(Error::new(ErrorKind::Invalid, "a layer of the tree has no reader"));
        }
        Ok(View { tree, readers, store, policy })
    }

    /// The tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The readers of the tree's layers.
    pub fn readers(&self) -> &[Arc<LayerReader>] {
        &self.readers
    }

    /// Lets go of files that the cache's limit has removed.
    pub fn release_evicted(&self) {
        self.store.release_evicted();
        self.readers.iter().for_each(|reader| reader.release_evicted());
    }

    /// Where content comes from.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The blob that the content of `id` is in.
    pub fn blob_of(&self, id: NodeId) -> Option<Digest> {
        match self.tree.node(id)?.kind {
            KindRef::Regular { content: ContentRef::Blob(blob), .. } => Some(blob.digest),
            KindRef::Regular { content: ContentRef::Chunks { layer, .. }, .. } => {
                self.tree.layers().get(usize::from(layer)).map(|layer| layer.blob.digest)
            }
            _ => None,
        }
    }

    /// Content and the part of `offset..offset + len` that lies within the file.
    fn content(
        &self,
        id: NodeId,
        offset: u64,
        len: u32,
    ) -> Result<(ContentRef<'_>, u64, ByteRange)> {
        match self.tree.node(id).map(|n| n.kind) {
            Some(KindRef::Regular { size, content }) => {
                let range = ByteRange::at(offset, len.into());
                let clipped = ByteRange::new(range.start.min(size), range.end.min(size));
                Ok((content, size, clipped))
            }
            _ => Err(Error::new(ErrorKind::Invalid, format!("inode {} has no content", id.0))),
        }
    }

    /// The files of `directory` that have content of at most `bytes_max`, which is proved before it
    /// is read, and their sizes.
    pub fn small_files(&self, directory: NodeId, bytes_max: u64) -> Vec<(NodeId, u64)> {
        let children = self.tree.children(directory).unwrap_or_default();
        let small = |(_, id)| match self.tree.node(id).map(|n| n.kind) {
            Some(KindRef::Regular { content: ContentRef::Blob(_), .. }) => None,
            Some(KindRef::Regular { size, .. }) => Some((id, size)),
            _ => None,
        };
        let sized = children.filter_map(small);
        sized.filter(|(_, size)| (1..=bytes_max).contains(size)).collect()
    }

    /// Some file may be read before it is proved, so that the view has to know of every open.
    pub fn has_unproved_reads(&self) -> bool {
        self.policy == Policy::Stream && self.tree.nodes().any(|(id, _)| self.is_blob(id))
    }

    /// The content of `id` is a whole blob.
    pub fn is_blob(&self, id: NodeId) -> bool {
        self.whole_blob(id).is_some()
    }

    fn whole_blob(&self, id: NodeId) -> Option<&Blob> {
        match self.tree.node(id)?.kind {
            KindRef::Regular { content: ContentRef::Blob(blob), .. } => Some(blob),
            _ => None,
        }
    }

    /// What an open of `id` needs to keep: `None` when everything that it reads is proved.
    pub fn pin(&self, id: NodeId) -> Option<Pin> {
        self.whole_blob(id).and_then(|blob| self.policy.pin(&self.store, blob))
    }

    /// The file that has all of `id`, a blob, as far as that is known without waiting.
    pub fn whole_file_now(&self, id: NodeId) -> Known {
        self.whole_blob(id).map_or(Known::Not, |blob| whole_file::known(&self.store, blob))
    }

    /// The same, once its bytes are proved.
    pub async fn whole_file(&self, id: NodeId) -> Option<WholeFile> {
        let blob = self.whole_blob(id)?;
        let _in_line = self.store.line.reader();
        whole_file::prove(&self.store, blob, self.store.deadline()).await
    }

    /// Whoever has just opened `id`, a blob, reads it past us.
    pub fn note_passed(&self, id: NodeId) {
        if let Some(blob) = self.whole_blob(id) {
            self.store.uses.of(blob).pass();
        }
    }

    /// Reads what can be had without waiting: inline, decoded or proved local bytes. `None`: it
    /// needs the network or a decoder; use [`View::read`].
    pub fn read_now(&self, id: NodeId, offset: u64, len: u32) -> Option<Result<Proved>> {
        let (content, size, range) = match self.content(id, offset, len) {
            Ok(found) => found,
            Err(error) => return Some(Err(error)),
        };
        match content {
            ContentRef::Inline(_) => Proved::inline(content, range).map(Ok),
            _ if range.is_empty() => Some(Ok(Proved::default())),
            // Whoever wrote to its file meanwhile makes the read a slow one.
            ContentRef::Blob(blob) => {
                let read = self.store.proved_now(blob)?.read_proved_now(range)?.ok()?;
                self.note_blob(blob, read.len());
                Some(Ok(read))
            }
            ContentRef::Chunks { layer, chunks } => {
                let reader = &self.readers[usize::from(layer)];
                let slices = plan::plan_read(&chunks, size, range);
                if let [Slice { tar: Some(tar), .. }] = slices[..]
                    && let Some(bytes) = reader.part_now(tar)
                {
                    reader.note_needed(tar);
                    reader.used().got(range.len());
                    return Some(Ok(bytes));
                }
                let mut out = Filling::zeroed(range.len() as usize);
                for slice in slices {
                    // What has no place in the layer is a hole, and is zero already.
                    let Some(tar) = slice.tar else { continue };
                    if let Err(error) = reader.read_now(tar, out.place(positions(slice.buffer)))? {
                        return Some(Err(error));
                    }
                    reader.note_needed(tar);
                }
                reader.used().got(range.len());
                Some(Ok(out.finish()))
            }
        }
    }

    /// Reads, fetching and decoding what is missing. Short only at the end of the file. `pin` is
    /// what [`View::pin`] gave for the open file.
    ///
    /// # Errors
    /// The bytes cannot be had before the deadline, or are not what their digest says.
    pub async fn read(
        &self,
        id: NodeId,
        offset: u64,
        len: u32,
        pin: Option<&Pin>,
        deadline: Deadline,
    ) -> Result<Served> {
        let (content, size, range) = self.content(id, offset, len)?;
        let _in_line = self.store.line.reader();
        match content {
            ContentRef::Inline(_) => Ok(Proved::inline(content, range).unwrap_or_default().into()),
            _ if range.is_empty() => Ok(Proved::default().into()),
            ContentRef::Blob(blob) => {
                self.note_blob(blob, 0);
                let read = self.policy.read(&self.store, blob, range, pin, deadline).await?;
                self.note_blob(blob, read.bytes().len());
                Ok(read)
            }
            ContentRef::Chunks { layer, chunks } => {
                self.read_chunks(layer, &chunks, size, range, deadline).await.map(Served::Proved)
            }
        }
    }

    async fn read_chunks(
        &self,
        layer: u16,
        chunks: &[Chunk],
        size: u64,
        range: ByteRange,
        deadline: Deadline,
    ) -> Result<Proved> {
        let reader = &self.readers[usize::from(layer)];
        let slices = plan::plan_read(chunks, size, range);
        if let [Slice { tar: Some(tar), .. }] = slices[..] {
            reader.note_needed(tar);
            let bytes = reader.read(tar, deadline.renewed()).await?;
            reader.used().got(range.len());
            return Ok(bytes);
        }
        let mut out = Filling::zeroed(range.len() as usize);
        for slice in slices {
            let Some(tar) = slice.tar else { continue };
            reader.note_needed(tar);
            let bytes = reader.read(tar, deadline.renewed()).await?;
            out.place(positions(slice.buffer)).copy(&bytes, 0..bytes.len());
        }
        reader.used().got(range.len());
        Ok(out.finish())
    }

    fn note_blob(&self, blob: &Blob, got: usize) {
        let used = self.store.uses.of(blob);
        used.need_whole();
        used.got(got as u64);
    }
}

/// A range of a buffer as `usize`: a read is at most a few MiB.
fn positions(range: ByteRange) -> std::ops::Range<usize> {
    range.start as usize..range.end as usize
}
