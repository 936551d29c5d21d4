//! What a mount shows: content of a `Tree` through a `Store`. No FUSE types; tested without a mount.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::fetch::arrival::{Arrival, Until};
use crate::fetch::cache::read_exact_at;
use crate::fetch::layer::LayerReader;
use crate::fetch::store::Store;
use crate::fetch::{Deadline, Error, ErrorKind, Result};
use crate::layout::Blob;
use crate::layout::entry::Chunk;
use crate::layout::plan;
use crate::layout::range::ByteRange;
use crate::layout::tree::{Content, NodeId, NodeKind, Tree};

/// When the bytes of a whole blob (layout view) may be served. The one place that decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Policy {
    /// Nothing before the digest of the whole blob matches.
    Strict,
    /// In order, as it arrives; but no read that reaches the end before the digest matches.
    Stream,
}

impl Policy {
    /// What a read of `range` of `blob` has to wait for.
    fn waits_for(self, blob: &Blob, range: ByteRange) -> Until {
        match self {
            Policy::Strict => Until::Proved,
            Policy::Stream if range.end >= blob.size => Until::Proved,
            Policy::Stream => Until::Resident(range.end),
        }
    }
}

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

    /// Where content comes from.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Content and the part of `offset..offset + len` that lies within the file.
    fn content(&self, id: NodeId, offset: u64, len: u32) -> Result<(&Content, u64, ByteRange)> {
        match self.tree.node(id).map(|n| &n.kind) {
            Some(NodeKind::Regular { size, content }) => {
                let range = ByteRange::at(offset, len.into());
                let clipped = ByteRange::new(range.start.min(*size), range.end.min(*size));
                Ok((content, *size, clipped))
            }
            _ => Err(Error::new(ErrorKind::Invalid, format!("inode {} has no content", id.0))),
        }
    }

    /// Reads what can be had without waiting: inline, decoded or proved local bytes. `None`: it
    /// needs the network or a decoder; use [`View::read`].
    pub fn read_now(&self, id: NodeId, offset: u64, len: u32) -> Option<Result<Bytes>> {
        let (content, size, range) = match self.content(id, offset, len) {
            Ok(found) => found,
            Err(error) => return Some(Err(error)),
        };
        match content {
            Content::Inline(bytes) => Some(Ok(slice_inline(bytes, range))),
            _ if range.is_empty() => Some(Ok(Bytes::new())),
            Content::Blob(blob) => {
                let arrival = self.store.proved_now(blob)?;
                Some(read_exact_at(&arrival.file, range).map(Bytes::from))
            }
            Content::Chunks { layer, chunks } => {
                let reader = &self.readers[usize::from(*layer)];
                let mut out = BytesMut::zeroed(range.len() as usize);
                for slice in plan::plan_read(chunks, size, range) {
                    // What has no place in the layer is a hole, and is zero already.
                    let Some(tar) = slice.tar else { continue };
                    if let Err(error) = reader.read_now(tar, &mut out[positions(slice.buffer)])? {
                        return Some(Err(error));
                    }
                }
                Some(Ok(out.freeze()))
            }
        }
    }

    /// Reads, fetching and decoding what is missing. Short only at the end of the file.
    ///
    /// # Errors
    /// The bytes cannot be had before the deadline, or are not what their digest says.
    pub async fn read(
        &self,
        id: NodeId,
        offset: u64,
        len: u32,
        deadline: Deadline,
    ) -> Result<Bytes> {
        let (content, size, range) = self.content(id, offset, len)?;
        match content {
            Content::Inline(bytes) => Ok(slice_inline(bytes, range)),
            _ if range.is_empty() => Ok(Bytes::new()),
            Content::Blob(blob) => self.read_blob(blob, range, deadline).await,
            Content::Chunks { layer, chunks } => {
                self.read_chunks(*layer, chunks, size, range, deadline).await
            }
        }
    }

    async fn read_blob(&self, blob: &Blob, range: ByteRange, deadline: Deadline) -> Result<Bytes> {
        let until = self.policy.waits_for(blob, range);
        let arrival = match until {
            Until::Proved => self.store.proved(blob, deadline).await?,
            Until::Resident(_) => {
                let arrival = self.store.arrival(blob, deadline).await?;
                arrival.wait(until, deadline).await?;
                arrival
            }
        };
        read_arrival(arrival, range).await
    }

    async fn read_chunks(
        &self,
        layer: u16,
        chunks: &[Chunk],
        size: u64,
        range: ByteRange,
        deadline: Deadline,
    ) -> Result<Bytes> {
        let reader = &self.readers[usize::from(layer)];
        let mut out = BytesMut::zeroed(range.len() as usize);
        for slice in plan::plan_read(chunks, size, range) {
            let Some(tar) = slice.tar else { continue };
            let bytes = reader.read(tar, deadline.renewed()).await?;
            out[positions(slice.buffer)].copy_from_slice(&bytes);
        }
        Ok(out.freeze())
    }
}

/// A range of a buffer as `usize`: a read is at most a few MiB.
fn positions(range: ByteRange) -> std::ops::Range<usize> {
    range.start as usize..range.end as usize
}

fn slice_inline(bytes: &[u8], range: ByteRange) -> Bytes {
    // `range` was clipped to the file's size, which is the length of inline bytes.
    let (start, end) = (range.start as usize, range.end as usize);
    Bytes::copy_from_slice(bytes.get(start..end).unwrap_or_default())
}

async fn read_arrival(arrival: Arc<Arrival>, range: ByteRange) -> Result<Bytes> {
    tokio::task::spawn_blocking(move || read_exact_at(&arrival.file, range).map(Bytes::from))
        .await
        .map_err(|e| Error::new(ErrorKind::Local, format!("a read ended early: {e}")))?
}
