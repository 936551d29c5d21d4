//! The spans of one layer: proved, decoded, in few requests, each once, and ahead of who goes on.

mod pieces;
mod prefetch;
mod streamed;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::ahead::{Ahead, Next};
use super::arrival::hash_file;
use super::cache::{Part, read_exact_at};
use super::error::{Error, ErrorKind, Result};
use super::flight::{Flights, Turn};
use super::proved::{Filling, Place, Proved};
use super::store::{self, Store};
use super::{Deadline, Distrust, hedge};
use crate::layout::index::landmark::spans_in_front;
use crate::layout::index::{LayerIndex, Span};
use crate::layout::range::ByteRange;
use crate::layout::tree::Layer;
use pieces::{Coming, For, Pieces};

/// Spans of one read that are decoded at the same time. Other reads, and what is ahead of them, have
/// theirs.
const DECODED_AT_ONCE: usize = 2;

/// Spans that are fetched and decoded as one piece of work ahead of a reader: whoever needs the
/// first of them waits for the last.
const AHEAD_TOGETHER: usize = 4;

/// Reads the spans of a layer all of which are small.
pub struct SpanReader {
    store: Arc<Store>,
    layer: Layer,
    /// Without its entries: reading needs only spans and windows.
    index: LayerIndex,
    /// Tells its spans from those of other readers in memory.
    number: u64,
    /// How many spans are in front of the landmark of the layer's writer.
    early: usize,
    fetching: Flights<usize>,
    /// Spans that are fetched for no reader yet, and how to stop that.
    ahead_of_use: Mutex<HashMap<usize, Arc<Notify>>>,
    coming: Coming,
    part: Mutex<Option<Part>>,
    /// A blob that is here whole was hashed, and had its digest.
    has_proved_whole: OnceLock<bool>,
    ahead: Mutex<Ahead>,
    /// Where work ahead of a reader is done.
    runtime: Option<Handle>,
}

impl SpanReader {
    /// A reader of `layer`, to which `index` belongs.
    pub fn new(store: Arc<Store>, layer: Layer, index: &LayerIndex) -> Self {
        let (spans, windows) = (index.spans.clone(), index.windows.clone());
        SpanReader {
            number: store.new_reader(),
            early: spans_in_front(index),
            store,
            layer,
            index: LayerIndex { entries: Vec::new(), spans, windows, ..*index },
            fetching: Flights::default(),
            ahead_of_use: Mutex::default(),
            coming: Coming::default(),
            part: Mutex::default(),
            has_proved_whole: OnceLock::new(),
            ahead: Mutex::default(),
            runtime: Handle::try_current().ok(),
        }
    }

    /// The bytes at `tar`, not copied, if they are of one span, which is in memory.
    pub fn part_now(self: &Arc<Self>, tar: ByteRange) -> Option<Proved> {
        let wanted = self.index.spans_for(tar);
        let i = only(&wanted)?;
        let decoded = self.store.spans.get(&(self.number, i))?;
        self.go_ahead(wanted);
        Some(part_of(&self.index.spans[i], &decoded, tar))
    }

    /// Copies `tar` to `out`, which has its length, if all of it is in memory.
    pub fn read_now(self: &Arc<Self>, tar: ByteRange, out: &mut Place<'_>) -> Option<()> {
        let wanted = self.index.spans_for(tar);
        for i in wanted.clone() {
            let decoded = self.store.spans.get(&(self.number, i))?;
            copy_overlap(&self.index.spans[i], &decoded, tar, out);
        }
        self.go_ahead(wanted);
        Some(())
    }

    /// The bytes at `tar`, once they were fetched and decoded.
    ///
    /// # Errors
    /// They cannot be had, or are not what their digest says.
    pub async fn read(self: &Arc<Self>, tar: ByteRange, deadline: Deadline) -> Result<Proved> {
        let wanted = self.index.spans_for(tar);
        self.go_ahead(wanted.clone());
        let is_one = only(&wanted).is_some();
        let decoded = self.decode(wanted, true, deadline).await?;
        if let (true, [(i, decoded)]) = (is_one, &decoded[..]) {
            return Ok(part_of(&self.index.spans[*i], decoded, tar));
        }
        let len = tar.len() as usize;
        let mut out = Filling::zeroed(len);
        for (i, decoded) in decoded {
            copy_overlap(&self.index.spans[i], &decoded, tar, &mut out.place(0..len));
        }
        Ok(out.finish())
    }

    /// Lets go of a file that the limit has removed.
    pub fn release_evicted(&self) {
        let mut part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        part.take_if(|part| part.is_abandoned());
    }

    /// Fetches and decodes what a reader of `wanted` will need next, if it goes from span to span.
    fn go_ahead(self: &Arc<Self>, wanted: std::ops::Range<usize>) {
        let Some(runtime) = &self.runtime else { return };
        let next = {
            let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
            ahead.touch(wanted, self.index.spans.len())
        };
        let Some(Next { spans: next, fetches }) = next else { return };
        // A request is for several. What is only decoded is decoded in the order of the reader.
        let together = if fetches { AHEAD_TOGETHER } else { 1 };
        for first in next.clone().step_by(together) {
            let spans = first..next.end.min(first + together);
            let reader = self.clone();
            runtime.spawn(async move {
                let _turn = match fetches {
                    true => None,
                    false => reader.store.decoding_ahead.acquire().await.ok(),
                };
                let _in_line = reader.store.line.reader();
                let deadline = reader.store.deadline();
                if let Err(error) = reader.decode(spans, fetches, deadline).await {
                    // Whoever needs them tries again, and tells.
                    tracing::debug!(%error, "reading ahead");
                }
            });
        }
    }

    /// The decoded spans `wanted`, from memory, disk or (if it `fetches`) the source, in any order.
    async fn decode(
        self: &Arc<Self>,
        wanted: std::ops::Range<usize>,
        fetches: bool,
        deadline: Deadline,
    ) -> Result<Vec<(usize, Proved)>> {
        // Entered in ascending order by everyone, so that no two wait for each other.
        let mut turns = Vec::new();
        for i in wanted.clone() {
            turns.push(self.enter(i, deadline).await?);
        }
        let outcome = self.decode_in_turn(wanted, fetches, deadline).await;
        for turn in turns {
            let shared = outcome.as_ref().map(|_| ()).map_err(Clone::clone);
            // The outcome is returned below; here those who wait get it.
            let _ = turn.end(shared);
        }
        outcome
    }

    /// Waits until nobody else works on span `i`. Whoever fetches it ahead of use is left no more
    /// time than a request has before it is made a second time.
    async fn enter(&self, i: usize, deadline: Deadline) -> Result<Turn> {
        let mut turn = pin!(self.fetching.enter(i));
        loop {
            tokio::select! {
                biased;
                turn = &mut turn => return turn,
                () = tokio::time::sleep(hedge::slow_after(deadline)) => {}
            }
            let ahead = self.ahead_of_use.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(stop) = ahead.get(&i) {
                stop.notify_one();
            }
        }
    }

    async fn decode_in_turn(
        self: &Arc<Self>,
        wanted: std::ops::Range<usize>,
        fetches: bool,
        deadline: Deadline,
    ) -> Result<Vec<(usize, Proved)>> {
        let (mut decoded, mut absent) = (Vec::new(), Vec::new());
        for i in wanted {
            match self.store.spans.get(&(self.number, i)) {
                Some(bytes) => decoded.push((i, bytes)),
                None => absent.push(i),
            }
        }
        let local: Vec<_> = absent
            .into_iter()
            .map(|i| {
                let reader = self.clone();
                blocking(move || Ok((i, reader.local_span(i)?)))
            })
            .collect();
        let local: Vec<_> = stream::iter(local).buffered(DECODED_AT_ONCE).try_collect().await?;
        let mut missing = Vec::new();
        for (i, bytes) in local {
            match bytes {
                Some(bytes) => decoded.push((i, bytes)),
                None if fetches => missing.push(i),
                None => {}
            }
        }
        if !missing.is_empty() {
            let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
            missing.iter().for_each(|&i| ahead.note_fetch(i));
        }
        let mut attempts = 0;
        while !missing.is_empty() {
            if attempts == store::ATTEMPTS_MAX {
                let message =
                    format!("layer {}: other wrong bytes each time", self.layer.blob.digest);
                return Err(Error::new(ErrorKind::DigestMismatch, message));
            }
            // What is here of a span, or somebody else fetches, may be what is wrong with it.
            let trusts_others = attempts == 0;
            missing = self.fetch_spans(&missing, &mut decoded, trusts_others, deadline).await?;
            attempts += 1;
        }
        for (i, bytes) in &decoded {
            self.store.spans.put((self.number, *i), bytes.clone());
        }
        Ok(decoded)
    }

    /// Fetches the spans `wanted`, and puts them into `decoded` once they are proved. Gives those
    /// that were wrong and are worth another attempt.
    async fn fetch_spans(
        self: &Arc<Self>,
        wanted: &[usize],
        decoded: &mut Vec<(usize, Proved)>,
        trusts_others: bool,
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
        let mut claim = self.coming.claim();
        let of = For::Reader(deadline);
        let pieces = self.pieces(source, &ranges, trusts_others, &of, &mut claim).await;
        let pieces = pieces.map_err(named)?;
        let opening: Vec<_> = wanted
            .iter()
            .copied()
            .map(|i| {
                let (reader, stored) = (self.clone(), pieces.assemble(self.index.spans[i].blob));
                blocking(move || Ok((i, reader.open_and_keep(i, stored))))
            })
            .collect();
        let opened: Vec<_> = stream::iter(opening).buffered(DECODED_AT_ONCE).try_collect().await?;
        let mut wrong = Vec::new();
        for (i, opened) in opened {
            let span = &self.index.spans[i];
            match opened {
                Ok(bytes) => decoded.push((i, bytes)),
                Err(error) if error.kind != ErrorKind::DigestMismatch => return Err(error),
                Err(error) => {
                    let is_fetched = pieces.is_fetched(span.blob);
                    let why = self.index.artifact.map_or(Distrust::Wrong, Distrust::Doubted);
                    if is_fetched && !source.distrust(blob, span.blob, why) {
                        let error = self.doubted(error.context(source.name()));
                        return Err(self.store.disproved(blob, span.blob, began, error));
                    }
                    tracing::warn!(%error, "trying a span once more");
                    wrong.push(i);
                }
            }
        }
        self.keep_along(wanted, pieces).await?;
        Ok(wrong)
    }

    /// Whole spans that were fetched because they lie between others are kept, too.
    async fn keep_along(self: &Arc<Self>, wanted: &[usize], pieces: Pieces) -> Result<()> {
        let (Some(first), Some(last)) = (wanted.first(), wanted.last()) else { return Ok(()) };
        let along: Vec<usize> =
            (*first..*last).filter(|i| wanted.binary_search(i).is_err()).collect();
        if along.is_empty() {
            return Ok(());
        }
        let reader = self.clone();
        blocking(move || {
            for i in along.into_iter().filter(|i| pieces.is_fetched(reader.range_of(*i))) {
                if let Err(error) = reader.keep_proved(i, pieces.assemble(reader.range_of(i))) {
                    // Whoever needs it fetches it, and tells.
                    tracing::debug!(%error, "what came along");
                }
            }
            Ok(())
        })
        .await
    }

    fn open_and_keep(&self, i: usize, stored: Bytes) -> Result<Proved> {
        let decoded = self.open(i, stored.clone())?;
        self.keep(self.index.spans[i].blob, &stored);
        Ok(decoded)
    }

    /// What span `i` decodes to, whose bytes of the blob are `stored`.
    fn open(&self, i: usize, stored: Bytes) -> Result<Proved> {
        let span = &self.index.spans[i];
        let named =
            |e: Error| e.context(format!("layer {}, bytes {}", self.layer.blob.digest, span.blob));
        let window = self.index.window(span);
        let window = window.map_err(|e| named(Error::new(ErrorKind::Invalid, e)))?;
        let decoded = Proved::decode(span, &window, stored).map_err(named);
        // Right bytes that do not decode: nobody but the index can be wrong.
        decoded.map_err(|e| if e.kind == ErrorKind::Invalid { self.doubted(e) } else { e })
    }

    /// An error that may be the fault of an index from elsewhere: says which, and the way out.
    fn doubted(&self, error: Error) -> Error {
        let Some(artifact) = self.index.artifact else { return error };
        let message = format!(
            "{}; or the index is wrong by which this layer is read, that of artifact {artifact}: \
             --index off reads the layer without it",
            error.message
        );
        Error { message, ..error }
    }

    /// A span of `whole`, all of the blob, did not pass: is it the index that is wrong? That of a pass
    /// and the layer's own are not; one from elsewhere is if the blob has its digest.
    fn is_index_wrong(&self, whole: &File) -> bool {
        let is_right = || {
            let hashed = hash_file(whole, self.layer.blob, |_| ());
            hashed.inspect_err(|error| tracing::debug!(%error, "the blob is not right")).is_ok()
        };
        // Once is enough: what the kernel repeats page by page would hash it again each time.
        self.index.artifact.is_some() && *self.has_proved_whole.get_or_init(is_right)
    }

    /// The error for a span that does not pass, of a blob that does.
    fn refuted(&self, error: &Error) -> Error {
        let artifact = self.index.artifact.map(|artifact| artifact.to_string());
        let message = format!(
            "{}: the index is wrong by which this layer is read, that of artifact {}, for the blob is \
             here and has its digest: --index off reads the layer without it",
            error.message,
            artifact.unwrap_or_default()
        );
        Error::new(ErrorKind::Invalid, message)
    }

    /// The span from a local file, if it is there and right. Wrong or unreadable bytes are named in
    /// the log, and fetched.
    fn local_span(&self, i: usize) -> Result<Option<Proved>> {
        let span = &self.index.spans[i];
        let blob = &self.layer.blob;
        let opened = self.store.open_local(blob)?;
        let is_cached = matches!(opened, Some((_, true)));
        let local = match &opened {
            Some((file, _)) => read_exact_at(file, span.blob).map(Some),
            None => self.resident_span(span),
        };
        let checked = local.and_then(|bytes| match bytes {
            Some(bytes) => self.open(i, bytes.into()).map(Some),
            None => Ok(None),
        });
        match checked {
            Err(error) if error.kind == ErrorKind::Invalid => Err(error),
            Err(error) if opened.is_some_and(|(file, _)| self.is_index_wrong(&file)) => {
                Err(self.refuted(&error))
            }
            Err(error) => {
                tracing::warn!(%error, "local bytes are damaged, fetching them again");
                if is_cached {
                    let cache = self.store.cache();
                    let demoted = cache.demote_blob(blob, span.blob);
                    let part = demoted.and_then(|()| cache.open_part(blob).map(Some));
                    *self.part.lock().unwrap_or_else(PoisonError::into_inner) = cache.found(part);
                } else if let Some(part) =
                    &mut *self.part.lock().unwrap_or_else(PoisonError::into_inner)
                {
                    part.resident.remove(span.blob);
                }
                Ok(None)
            }
            right => right,
        }
    }

    /// The part, opened. One that was pruned meanwhile is nobody's but ours.
    fn open_part(&self) -> MutexGuard<'_, Option<Part>> {
        let mut part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        if part.as_ref().is_none_or(Part::is_abandoned) {
            let cache = self.store.cache();
            *part = cache.found(cache.open_part(&self.layer.blob).map(Some));
        }
        part
    }

    fn resident_span(&self, span: &Span) -> Result<Option<Vec<u8>>> {
        let part = self.open_part();
        match &*part {
            Some(part) if part.resident.contains(span.blob) => {
                read_exact_at(&part.file, span.blob).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Keeps bytes on disk that were proved, in the blob or decoded. Failing to is no reason to fail
    /// the read.
    fn keep(&self, range: ByteRange, bytes: &[u8]) {
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
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(ErrorKind::Local, format!("a read ended early: {e}")))?
}

/// The span, if there is one and no other.
fn only(spans: &std::ops::Range<usize>) -> Option<usize> {
    (spans.len() == 1).then_some(spans.start)
}

/// `tar`, which lies within `span`, of what that decodes to.
fn part_of(span: &Span, decoded: &Proved, tar: ByteRange) -> Proved {
    let from = (tar.start - span.tar.start) as usize;
    decoded.part(from..from + tar.len() as usize)
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
