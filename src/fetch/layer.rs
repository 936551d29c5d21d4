//! `LayerReader`: proved bytes of one uncompressed layer.
//!
//! A layer whose spans are small is decoded span by span, each proved by its own digest. A layer
//! that cannot seek is decoded once into a file, which is proved as a whole. Reading chooses
//! between them by the spans alone.

use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::cache::{Part, read_exact_at};
use super::decoded::Decoded;
use super::error::{Error, ErrorKind, Result};
use super::flight::Flights;
use super::proved::{Filling, Place, Proved};
use super::rolling::Rolling;
use super::store::{self, Store};
use super::{Deadline, Distrust, first_pass, hedge};
use crate::layout::index::{LayerIndex, Span, is_seekable};
use crate::layout::plan;
use crate::layout::range::{ByteRange, RangeSet};
use crate::layout::tree::Layer;

/// Bytes between two spans that are fetched along rather than asked for separately.
const GAP_BYTES: u64 = 256 << 10;

/// The longest single request for spans.
const REQUEST_BYTES_MAX: u64 = 4 << 20;

/// Reads one uncompressed layer.
pub struct LayerReader {
    store: Arc<Store>,
    layer: Layer,
    /// Without its entries: reading needs only spans.
    index: LayerIndex,
    seekable: bool,
    decoded: RwLock<Option<Arc<Decoded>>>,
    /// Instead of a decoded file, once there was no place for one.
    rolling: OnceLock<Rolling>,
    decoding: Flights<()>,
    fetching: Flights<usize>,
    part: Mutex<Option<Part>>,
}

impl LayerReader {
    /// A reader of `layer`, whose index is known. `decoded` is the decoded file, if it is here.
    pub fn new(
        store: Arc<Store>,
        layer: Layer,
        index: &LayerIndex,
        decoded: Option<Decoded>,
    ) -> Result<Self> {
        let seekable = is_seekable(&index.spans);
        let decoded = match decoded {
            Some(decoded) => Some(decoded),
            None if seekable => None,
            None => store.cache().open_decoded(&layer.diff_id, index.tar_size),
        };
        Ok(LayerReader {
            seekable,
            index: LayerIndex {
                entries: Vec::new(),
                spans: index.spans.clone(),
                windows: index.windows.clone(),
                ..*index
            },
            decoded: RwLock::new(decoded.map(Arc::new)),
            rolling: OnceLock::new(),
            decoding: Flights::default(),
            fetching: Flights::default(),
            part: Mutex::default(),
            store,
            layer,
        })
    }

    /// The layer.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// Reads `tar` into `out` (of the same length) if that needs neither the network nor decoding.
    /// `None`: it does, and `out` may hold anything; use [`LayerReader::read`]. A range beyond the
    /// layer is refused.
    pub fn read_now(&self, tar: ByteRange, mut out: Place<'_>) -> Option<Result<()>> {
        if tar.end > self.index.tar_size {
            // No span would be found for what lies beyond, and zeros would pass for content.
            let message =
                format!("range {tar} is outside of a layer of {} bytes", self.index.tar_size);
            return Some(Err(Error::new(ErrorKind::Invalid, message)));
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
        if !self.seekable {
            return self.rolling.get()?.read_now(tar, out).map(Ok);
        }
        for i in self.index.spans_for(tar) {
            let decoded = self.store.spans.get(&(self.layer.blob.digest, i))?;
            copy_overlap(&self.index.spans[i], &decoded, tar, &mut out);
        }
        Some(Ok(()))
    }

    /// Reads `tar`, fetching and decoding what is missing.
    ///
    /// # Errors
    /// The bytes cannot be had, or are not what their digest says.
    pub async fn read(self: &Arc<Self>, tar: ByteRange, deadline: Deadline) -> Result<Proved> {
        let len = tar.len() as usize;
        let mut out = Filling::zeroed(len);
        if let Some(read) = self.read_now(tar, out.place(0..len)) {
            return read.map(|()| out.finish());
        }
        if !self.seekable {
            return match self.read_decoded(tar).await {
                // What another mount has left behind may be damaged; what we decode now is not.
                Err(error)
                    if error.kind == ErrorKind::DigestMismatch && self.decoded().is_some() =>
                {
                    self.discard_decoded(&error);
                    self.read_decoded(tar).await
                }
                read => read,
            };
        }
        let wanted = plan::plan_spans(&self.index, &[tar]);
        for (i, decoded) in self.decode_spans(&wanted, deadline).await? {
            copy_overlap(&self.index.spans[i], &decoded, tar, &mut out.place(0..len));
        }
        Ok(out.finish())
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
        let size = self.index.tar_size;
        self.rolling.get_or_init(|| Rolling::new(self.store.clone(), self.layer.clone(), size))
    }

    /// Lets go of files that the limit has removed: see [`Store::release_evicted`].
    pub fn release_evicted(&self) {
        if !self.store.may_release() {
            return;
        }
        let mut decoded = self.decoded.write().unwrap_or_else(PoisonError::into_inner);
        decoded.take_if(|decoded| decoded.is_evicted());
        let mut part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        part.take_if(|part| part.is_abandoned());
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
        let size = self.index.tar_size;
        let found = blocking(move || Ok(cache.open_decoded(&diff_id, size))).await?;
        if found.is_some() {
            return Ok(found);
        }
        let cache = self.store.cache();
        if !cache.may_keep(size) || cache.trouble().is_some() {
            return Ok(None);
        }
        let pass = first_pass::run(&self.store, &self.layer, first_pass::Keep::Decoded).await?;
        Ok(pass.decoded)
    }

    /// The decoded spans `wanted` (ascending), from memory, disk or the source.
    async fn decode_spans(
        self: &Arc<Self>,
        wanted: &[usize],
        deadline: Deadline,
    ) -> Result<Vec<(usize, Proved)>> {
        // Entered in ascending order by everyone, so that no two wait for each other.
        let mut turns = Vec::new();
        for &i in wanted {
            turns.push(self.fetching.enter(i).await?);
        }
        let outcome = self.decode_in_turn(wanted, deadline).await;
        for turn in turns {
            let shared = outcome.as_ref().map(|_| ()).map_err(Clone::clone);
            // The outcome is returned below; here those who wait get it.
            let _ = turn.end(shared);
        }
        outcome
    }

    async fn decode_in_turn(
        self: &Arc<Self>,
        wanted: &[usize],
        deadline: Deadline,
    ) -> Result<Vec<(usize, Proved)>> {
        let key = |i| (self.layer.blob.digest, i);
        let (mut decoded, mut missing) = (Vec::new(), Vec::new());
        for &i in wanted {
            match self.store.spans.get(&key(i)) {
                Some(bytes) => decoded.push((i, bytes)),
                None => missing.push(i),
            }
        }
        for (i, bytes) in self.missing_spans(&missing, deadline).await? {
            self.store.spans.put(key(i), bytes.clone());
            decoded.push((i, bytes));
        }
        Ok(decoded)
    }

    /// The spans `wanted`: local ones first, the rest in few requests.
    async fn missing_spans(
        self: &Arc<Self>,
        wanted: &[usize],
        deadline: Deadline,
    ) -> Result<Vec<(usize, Proved)>> {
        let mut decoded = Vec::new();
        let mut missing = Vec::new();
        for &i in wanted {
            let reader = self.clone();
            match blocking(move || reader.local_span(i)).await? {
                Some(bytes) => decoded.push((i, bytes)),
                None => missing.push(i),
            }
        }
        for _ in 0..store::ATTEMPTS_MAX {
            if missing.is_empty() {
                return Ok(decoded);
            }
            missing = self.fetch_spans(&missing, &mut decoded, deadline).await?;
        }
        let message = format!("layer {}: other wrong bytes each time", self.layer.blob.digest);
        Err(Error::new(ErrorKind::DigestMismatch, message))
    }

    /// Fetches the spans `wanted`, and puts them into `decoded` once they are proved. Gives those
    /// that were wrong and are worth another attempt, because another source is asked then.
    async fn fetch_spans(
        self: &Arc<Self>,
        wanted: &[usize],
        decoded: &mut Vec<(usize, Proved)>,
        deadline: Deadline,
    ) -> Result<Vec<usize>> {
        let blob = &self.layer.blob;
        let named = |e: Error| e.context(format!("layer {}", blob.digest));
        let source = self.store.source().map_err(named)?;
        let ranges: Vec<ByteRange> = wanted.iter().map(|&i| self.index.spans[i].blob).collect();
        let began = Instant::now();
        for range in &ranges {
            self.store.just_disproved(blob, *range)?;
        }
        let mut pieces = Vec::new();
        for request in plan::plan_fetch(&ranges, &RangeSet::new(), GAP_BYTES, REQUEST_BYTES_MAX) {
            let bytes = hedge::read(source, blob, request, deadline.renewed()).await;
            pieces.push((request, bytes.map_err(named)?));
        }
        let mut wrong = Vec::new();
        for &i in wanted {
            let span = &self.index.spans[i];
            let (reader, stored) = (self.clone(), assemble(span.blob, &pieces));
            let opened = blocking(move || {
                let decoded = reader.open(i, stored.clone())?;
                reader.keep(reader.index.spans[i].blob, &stored);
                Ok(decoded)
            });
            match opened.await {
                Ok(bytes) => decoded.push((i, bytes)),
                Err(error) if error.kind != ErrorKind::DigestMismatch => return Err(error),
                Err(error) => {
                    if !source.distrust(blob, span.blob, Distrust::Wrong) {
                        let error = error.context(source.name());
                        return Err(self.store.disproved(blob, span.blob, began, error));
                    }
                    tracing::warn!(%error, "trying a span once more");
                    wrong.push(i);
                }
            }
        }
        Ok(wrong)
    }

    /// What span `i` decodes to, whose bytes of the blob are `stored`.
    fn open(&self, i: usize, stored: Bytes) -> Result<Proved> {
        let span = &self.index.spans[i];
        let named =
            |e: Error| e.context(format!("layer {}, bytes {}", self.layer.blob.digest, span.blob));
        let window = self.index.window(span);
        let window = window.map_err(|e| named(Error::new(ErrorKind::Invalid, e)))?;
        Proved::decode(span, &window, stored).map_err(named)
    }

    /// The span from a local file, if it is there and right. Wrong or unreadable bytes are named in
    /// the log, and fetched.
    fn local_span(&self, i: usize) -> Result<Option<Proved>> {
        let span = &self.index.spans[i];
        let blob = &self.layer.blob;
        let opened = self.store.open_local(blob)?;
        let is_cached = matches!(opened, Some((_, true)));
        let local = match opened {
            Some((file, _)) => read_exact_at(&file, span.blob).map(Some),
            None => self.resident_span(span),
        };
        let checked = local.and_then(|bytes| match bytes {
            Some(bytes) => self.open(i, bytes.into()).map(Some),
            None => Ok(None),
        });
        match checked {
            Err(error) => {
                tracing::warn!(%error, "local bytes are damaged, fetching them again");
                if is_cached {
                    let cache = self.store.cache();
                    let demoted = cache.demote_blob(blob, span.blob);
                    let part = demoted.and_then(|()| cache.open_part(blob).map(Some));
                    *self.part.lock().unwrap_or_else(PoisonError::into_inner) = cache.found(part);
                }
                Ok(None)
            }
            right => right,
        }
    }

    fn resident_span(&self, span: &Span) -> Result<Option<Vec<u8>>> {
        let mut part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was pruned meanwhile is nobody's but ours.
        if part.as_ref().is_none_or(Part::is_abandoned) {
            let cache = self.store.cache();
            *part = cache.found(cache.open_part(&self.layer.blob).map(Some));
        }
        match &*part {
            Some(part) if part.resident.contains(span.blob) => {
                read_exact_at(&part.file, span.blob).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Keeps bytes on disk that were proved, in the blob or decoded. Failing to is no reason to fail
    /// the read.
    fn keep(&self, range: ByteRange, bytes: &Bytes) {
        let cache = self.store.cache();
        let mut kept_in = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(part) = &mut *kept_in else { return };
        if !cache.may_keep(part.resident.len() + range.len()) {
            // Half of the limit is in it: it begins anew, and what is read now is in it.
            cache.destroy_part(&self.layer.blob);
            *kept_in = None;
            return;
        }
        if !cache.make_room(range.len()) {
            return;
        }
        let kept = part
            .file
            .write_all_at(bytes, range.start)
            .map_err(|e| Error::local("cannot write to the cache", &e))
            .and_then(|()| part.mark_resident(range));
        if let Err(error) = kept {
            cache.tell_trouble(&error);
        }
    }
}

/// Runs what computes or reads disks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(ErrorKind::Local, format!("a read ended early: {e}")))?
}

/// The bytes of `wanted` out of fetched pieces (ascending), which together contain them.
fn assemble(wanted: ByteRange, pieces: &[(ByteRange, Bytes)]) -> Bytes {
    let mut out = BytesMut::with_capacity(wanted.len() as usize);
    for (range, bytes) in pieces {
        let both = range.intersection(&wanted);
        if both.is_empty() {
            continue;
        }
        let slice = (both.start - range.start) as usize..(both.end - range.start) as usize;
        if both == wanted {
            return bytes.slice(slice);
        }
        out.extend_from_slice(&bytes[slice]);
    }
    out.freeze()
}

/// Copies what `span` (decoded) has of `tar` to its place in `out`.
fn copy_overlap(span: &Span, decoded: &Proved, tar: ByteRange, out: &mut Place<'_>) {
    let both = span.tar.intersection(&tar);
    if both.is_empty() {
        return;
    }
    let from = (both.start - span.tar.start) as usize;
    let to = (both.start - tar.start) as usize;
    let len = both.len() as usize;
    out.part(to..to + len).copy(decoded, from..from + len);
}
