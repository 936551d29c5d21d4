//! `LayerReader`: proved bytes of one uncompressed layer.
//!
//! A layer whose spans are small is decoded span by span, each proved by its own digest. A layer
//! that cannot seek is decoded once into a file, which is proved as a whole. Reading chooses
//! between them by the spans alone.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use super::decoded::Decoded;
use super::error::{Error, ErrorKind, Result};
use super::flight::Flights;
use super::fresh::Fresh;
use super::proved::{Filling, Place, Proved};
use super::rolling::Rolling;
use super::span_reader::{SpanReader, blocking};
use super::store::Store;
use super::uses::Use;
use super::{Deadline, first_pass};
use crate::layout::index::{LayerIndex, is_seekable};
use crate::layout::range::ByteRange;
use crate::layout::tree::Layer;

/// Reads one uncompressed layer.
pub struct LayerReader {
    store: Arc<Store>,
    layer: Layer,
    tar_size: u64,
    /// `None`: it has a span that is too large to be decoded for one read.
    spans: Option<Arc<SpanReader>>,
    decoded: RwLock<Option<Arc<Decoded>>>,
    /// What its first pass has just decoded.
    fresh: RwLock<Option<Fresh>>,
    /// Instead of a decoded file, once there was no place for one.
    rolling: OnceLock<Rolling>,
    decoding: Flights<()>,
    used: Arc<Use>,
}

impl LayerReader {
    /// A reader of `layer`, whose index is known. `decoded` is the decoded file, if it is here.
    pub fn new(
        store: Arc<Store>,
        layer: Layer,
        index: &LayerIndex,
        decoded: Option<Decoded>,
    ) -> Result<Self> {
        let is_seekable = is_seekable(&index.spans);
        let decoded = match decoded {
            Some(decoded) => Some(decoded),
            None if is_seekable => None,
            None => store.cache().open_decoded(&layer.diff_id, index.tar_size),
        };
        let spans =
            is_seekable.then(|| Arc::new(SpanReader::new(store.clone(), layer.clone(), index)));
        Ok(LayerReader {
            tar_size: index.tar_size,
            spans,
            decoded: RwLock::new(decoded.map(Arc::new)),
            fresh: RwLock::default(),
            rolling: OnceLock::new(),
            decoding: Flights::default(),
            used: store.uses.of(&layer.blob),
            store,
            layer,
        })
    }

    /// The same with what its first pass has decoded.
    pub fn with_fresh(self, fresh: Option<Fresh>) -> Self {
        LayerReader { fresh: RwLock::new(fresh), ..self }
    }

    /// The layer.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// Notes what a reader needs, and in the end that it got it.
    pub fn used(&self) -> &Use {
        &self.used
    }

    /// Notes that a reader needs `tar`.
    pub fn note_needed(&self, tar: ByteRange) {
        match &self.spans {
            Some(spans) => spans.stored(tar).for_each(|range| self.used.need(range)),
            None => self.used.need_whole(),
        }
    }

    /// Where it is read span by span.
    pub(super) fn spans(&self) -> Option<&Arc<SpanReader>> {
        self.spans.as_ref()
    }

    /// Bytes of its blob that are here, of a layer that is read span by span and is not here whole.
    pub fn resident_bytes(&self) -> u64 {
        self.spans.as_ref().map_or(0, |spans| spans.resident_bytes())
    }

    /// All of it is in a file of the cache.
    pub(super) fn is_decoded(&self) -> bool {
        self.decoded().is_some()
    }

    /// The bytes at `tar`, without copying any, if they lie in memory side by side.
    pub fn part_now(&self, tar: ByteRange) -> Option<Proved> {
        if tar.end > self.tar_size || self.decoded().is_some() {
            return None;
        }
        self.spans.as_ref()?.part_now(tar)
    }

    /// Reads `tar` into `out` (of the same length) if that needs neither the network nor decoding.
    /// `None`: it does, and `out` may hold anything; use [`LayerReader::read`]. A range beyond the
    /// layer is refused.
    pub fn read_now(&self, tar: ByteRange, mut out: Place<'_>) -> Option<Result<()>> {
        if tar.end > self.tar_size {
            return Some(Err(self.outside(tar)));
        }
        if let Some(decoded) = self.decoded() {
            return match decoded.read(tar, out) {
                Err(error) if error.kind == ErrorKind::DigestMismatch => {
                    self.discard_decoded(&error);
                    None
                }
                read => Some(read),
            };
        }
        if self.read_fresh(tar, &mut out).is_some() {
            return Some(Ok(()));
        }
        match &self.spans {
            Some(spans) => spans.read_now(tar, &mut out).map(Ok),
            None => self.rolling.get()?.read_now(tar, out).map(Ok),
        }
    }

    fn read_fresh(&self, tar: ByteRange, out: &mut Place<'_>) -> Option<()> {
        let fresh = self.fresh.read().unwrap_or_else(PoisonError::into_inner);
        fresh.as_ref()?.read(tar, out)
    }

    /// Reads `tar`, fetching and decoding what is missing.
    ///
    /// # Errors
    /// The bytes cannot be had, or are not what their digest says.
    pub async fn read(self: &Arc<Self>, tar: ByteRange, deadline: Deadline) -> Result<Proved> {
        if tar.end > self.tar_size {
            return Err(self.outside(tar));
        }
        if self.spans.is_none() || self.decoded().is_some() {
            let len = tar.len() as usize;
            let mut out = Filling::zeroed(len);
            if let Some(read) = self.read_now(tar, out.place(0..len)) {
                return read.map(|()| out.finish());
            }
        }
        if let Some(spans) = &self.spans {
            return spans.read(tar, deadline).await;
        }
        match self.read_decoded(tar).await {
            // What another mount has left behind may be damaged; what we decode now is not.
            Err(error) if error.kind == ErrorKind::DigestMismatch && self.decoded().is_some() => {
                self.discard_decoded(&error);
                self.read_decoded(tar).await
            }
            read => read,
        }
    }

    /// No span would be found for what lies beyond, and zeros would pass for content.
    fn outside(&self, tar: ByteRange) -> Error {
        let message = format!("range {tar} is outside of a layer of {} bytes", self.tar_size);
        Error::new(ErrorKind::Invalid, message)
    }

    async fn read_decoded(&self, tar: ByteRange) -> Result<Proved> {
        if let Some(rolling) = self.rolling.get() {
            return rolling.read(tar).await;
        }
        let Some(decoded) = self.decode_whole().await? else {
            return self.roll().read(tar).await;
        };
        let read = move || {
            let len = tar.len() as usize;
            let mut out = Filling::zeroed(len);
            decoded.read(tar, out.place(0..len)).map(|()| out.finish())
        };
        blocking(read).await
    }

    fn roll(&self) -> &Rolling {
        let size = self.tar_size;
        self.rolling.get_or_init(|| Rolling::new(self.store.clone(), self.layer.clone(), size))
    }

    /// Lets go of files that the limit has removed: see [`Store::release_evicted`].
    pub fn release_evicted(&self) {
        let mut fresh = self.fresh.write().unwrap_or_else(PoisonError::into_inner);
        let over = fresh.take_if(|fresh| fresh.is_over());
        drop(fresh);
        // To give so much memory back takes a while: readers need not wait for it.
        drop(over);
        if !self.store.may_release() {
            return;
        }
        let mut decoded = self.decoded.write().unwrap_or_else(PoisonError::into_inner);
        decoded.take_if(|decoded| decoded.is_evicted());
        drop(decoded);
        if let Some(spans) = &self.spans {
            spans.release_evicted();
        }
    }

    fn decoded(&self) -> Option<Arc<Decoded>> {
        self.decoded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The disk has changed a byte: decode again.
    fn discard_decoded(&self, error: &Error) {
        tracing::warn!(layer = %self.layer.blob.digest, %error, "decoding a layer again");
        self.store.cache().remove_decoded(&self.layer.diff_id);
        *self.decoded.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The decoded file: made once, by a pass over the whole blob, which keeps the deadline: it
    /// fails when no byte arrives for too long. Wrong bytes are fetched at most half of the time:
    /// whoever reads a thousand files must not fetch the layer a thousand times.
    ///
    /// `None`: there is no place for it.
    async fn decode_whole(&self) -> Result<Option<Arc<Decoded>>> {
        let turn = self.decoding.enter(()).await?;
        if let Some(decoded) = self.decoded() {
            return Ok(Some(decoded));
        }
        let began = Instant::now();
        let whole = ByteRange::new(0, self.layer.blob.size);
        self.store.just_disproved(&self.layer.blob, whole)?;
        let decoded = self.open_or_decode().await.map(|decoded| decoded.map(Arc::new));
        let decoded = decoded.map_err(|e| self.store.disproved(&self.layer.blob, whole, began, e));
        if let Ok(decoded) = &decoded {
            let mut kept = self.decoded.write().unwrap_or_else(PoisonError::into_inner);
            kept.clone_from(decoded);
        }
        turn.end(decoded)
    }

    async fn open_or_decode(&self) -> Result<Option<Decoded>> {
        let (cache, diff_id) = (self.store.cache().clone(), self.layer.diff_id);
        let size = self.tar_size;
        let found = blocking(move || Ok(cache.open_decoded(&diff_id, size))).await?;
        if found.is_some() {
            return Ok(found);
        }
        let cache = self.store.cache();
        let is_worth_it = cache.may_keep(size) && cache.may_decode(self.layer.blob.size, size);
        if !is_worth_it || cache.trouble().is_some() {
            return Ok(None);
        }
        let pass = first_pass::run(&self.store, &self.layer, first_pass::Keep::Decoded).await?;
        Ok(pass.decoded)
    }
}
