//! What a mount shows: content of a `Tree` through a `Store`. No FUSE types; tested without a mount.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};

use crate::fetch::arrival::{Arrival, Origin, Until};
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

/// One open file that reads a blob before it is proved. Everything that it reads is of one attempt
/// to bring the blob: were the beginning of one attempt and the end of the next joined, the end
/// would succeed although the beginning was wrong.
#[derive(Debug, Default)]
pub struct Pin {
    attempt: Mutex<Option<Arc<Arrival>>>,
    /// A byte was read that was not proved then.
    has_served: AtomicBool,
}

impl Pin {
    /// The attempt that this file reads. One that failed is given up only while nothing of it was
    /// read: afterwards the file has to be opened again.
    async fn attempt(&self, store: &Store, blob: &Blob, dl: Deadline) -> Result<Arc<Arrival>> {
        let lock = || self.attempt.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().clone();
        if let Some(arrival) = kept {
            let failed = matches!(arrival.progress().outcome, Some(Err(_)));
            if self.has_served.load(Ordering::Acquire) || !failed {
                return Ok(arrival);
            }
        }
        let arrival = store.arrival(blob, dl).await?;
        let mut attempt = lock();
        match &*attempt {
            // Two first reads at once: the one that came first decides.
            Some(first) if self.has_served.load(Ordering::Acquire) => Ok(first.clone()),
            _ => Ok(attempt.insert(arrival).clone()),
        }
    }

    /// Notes that unproved bytes of `arrival` go out; not if the file reads another attempt.
    fn serve(&self, arrival: &Arc<Arrival>) -> Result<()> {
        let attempt = self.attempt.lock().unwrap_or_else(PoisonError::into_inner);
        if !attempt.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, arrival)) {
            return Err(Error::new(ErrorKind::Network, "the blob was begun anew meanwhile"));
        }
        self.has_served.store(true, Ordering::Release);
        Ok(())
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

    /// Some file may be read before it is proved, so that the view has to know of every open.
    pub fn has_unproved_reads(&self) -> bool {
        let is_blob =
            |kind: &NodeKind| matches!(kind, NodeKind::Regular { content: Content::Blob(_), .. });
        self.policy == Policy::Stream && self.tree.nodes().any(|(_, node)| is_blob(&node.kind))
    }

    /// What an open of `id` needs to keep: `None` when everything that it reads is proved.
    pub fn pin(&self, id: NodeId) -> Option<Pin> {
        match self.tree.node(id).map(|n| &n.kind) {
            Some(NodeKind::Regular { content: Content::Blob(blob), .. })
                if self.policy == Policy::Stream && self.store.proved_now(blob).is_none() =>
            {
                Some(Pin::default())
            }
            _ => None,
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
                Some(read_unchanged(&arrival, range))
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
    ) -> Result<Bytes> {
        let (content, size, range) = self.content(id, offset, len)?;
        match content {
            Content::Inline(bytes) => Ok(slice_inline(bytes, range)),
            _ if range.is_empty() => Ok(Bytes::new()),
            Content::Blob(blob) => self.read_blob(blob, range, pin, deadline).await,
            Content::Chunks { layer, chunks } => {
                self.read_chunks(*layer, chunks, size, range, deadline).await
            }
        }
    }

    async fn read_blob(
        &self,
        blob: &Blob,
        range: ByteRange,
        pin: Option<&Pin>,
        deadline: Deadline,
    ) -> Result<Bytes> {
        // Without a pin nothing unproved is served, whatever the policy.
        let Some(pin) = pin else {
            let arrival = self.store.proved(blob, deadline).await?;
            return read_arrival(arrival, range).await;
        };
        let arrival = pin.attempt(&self.store, blob, deadline).await?;
        if arrival.origin() != Origin::Source {
            // A local file is soon hashed, and a damaged one is replaced before anything is seen.
            let arrival = self.store.proved(blob, deadline).await?;
            return read_arrival(arrival, range).await;
        }
        let until = self.policy.waits_for(blob, range);
        arrival.wait(until, deadline).await?;
        if until != Until::Proved {
            pin.serve(&arrival)?;
        }
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

/// Reads a file that may be somebody else's: what was written to it meanwhile is not proved.
fn read_unchanged(arrival: &Arrival, range: ByteRange) -> Result<Bytes> {
    let bytes = read_exact_at(&arrival.file, range)?;
    if !arrival.is_unchanged() {
        let message =
            format!("blob {}: its file was changed while it was read", arrival.blob.digest);
        return Err(Error::new(ErrorKind::DigestMismatch, message));
    }
    Ok(bytes.into())
}

async fn read_arrival(arrival: Arc<Arrival>, range: ByteRange) -> Result<Bytes> {
    tokio::task::spawn_blocking(move || read_unchanged(&arrival, range))
        .await
        .map_err(|e| Error::new(ErrorKind::Local, format!("a read ended early: {e}")))?
}
