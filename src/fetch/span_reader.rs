//! The spans of one layer: proved, decoded, in few requests, each once, and ahead of who goes on.

mod local;
mod pieces;
mod prefetch;
mod streamed;

use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::ahead::{Ahead, Next};
use super::cache::{Part, read_exact_at};
use super::error::{Error, ErrorKind, Result};
use super::flight::{Flights, Turn};
use super::proved::{Filling, Opened, Place, Proved};
use super::store::{self, Store};
use super::{Deadline, Distrust, hedge};
use crate::layout::index::LayerIndex;
use crate::layout::index::landmark::spans_in_front;
use crate::layout::range::ByteRange;
use crate::layout::tree::Layer;
use pieces::{Coming, For, Pieces};

/// Spans of one read that are decoded at the same time. Other reads, and what is ahead of them, have
/// theirs.
const DECODED_AT_ONCE: usize = 2;

/// Spans that are fetched and decoded as one piece of work ahead of a reader: whoever needs the
/// first of them waits for the last.
const AHEAD_TOGETHER: usize = 4;

/// What is to be decoded.
#[derive(Clone, Copy)]
struct Wanted {
    tar: ByteRange,
    /// All of each span that has some of it: somebody will need the rest.
    is_whole: bool,
    /// What is not here is to be fetched.
    fetches: bool,
}

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

    /// The bytes at `tar`, if they are of one span and in memory. Not copied where that is whole.
    pub fn part_now(self: &Arc<Self>, tar: ByteRange) -> Option<Proved> {
        let wanted = self.index.spans_for(tar);
        let i = only(&wanted)?;
        let part = self.store.spans.part(&(self.number, i), self.within(i, tar))?;
        self.go_ahead(wanted);
        Some(part)
    }

    /// Copies `tar` to `out`, which has its length, if all of it is in memory.
    pub fn read_now(self: &Arc<Self>, tar: ByteRange, out: &mut Place<'_>) -> Option<()> {
        let wanted = self.index.spans_for(tar);
        for i in wanted.clone() {
            let part = self.store.spans.part(&(self.number, i), self.within(i, tar))?;
            self.put_together(i, &part, tar, out);
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
        let is_whole = self.go_ahead(wanted.clone());
        let parts = self.decode(Wanted { tar, is_whole, fetches: true }, deadline).await?;
        if let (Some(_), [(_, part)]) = (only(&wanted), &parts[..]) {
            return Ok(part.clone());
        }
        let len = tar.len() as usize;
        let mut out = Filling::zeroed(len);
        for (i, part) in parts {
            self.put_together(i, &part, tar, &mut out.place(0..len));
        }
        Ok(out.finish())
    }

    /// What span `i` has of `tar`, as positions in what it decodes to.
    fn within(&self, i: usize, tar: ByteRange) -> Range<usize> {
        let span = self.index.spans[i].tar;
        let both = span.intersection(&tar);
        (both.start - span.start) as usize..(both.end - span.start) as usize
    }

    /// Copies `part`, what span `i` has of `tar`, to its place in `out`.
    fn put_together(&self, i: usize, part: &Proved, tar: ByteRange, out: &mut Place<'_>) {
        let to = self.index.spans[i].tar.start.saturating_sub(tar.start) as usize;
        out.part(to..to + part.len()).copy(part, 0..part.len());
    }

    /// Lets go of a file that the limit has removed.
    pub fn release_evicted(&self) {
        let mut part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        part.take_if(|part| part.is_abandoned());
    }

    /// Fetches and decodes what a reader of `wanted` will need next, if it goes from span to span;
    /// whether it does.
    fn go_ahead(self: &Arc<Self>, wanted: Range<usize>) -> bool {
        let Some(runtime) = &self.runtime else { return false };
        let (next, goes_on) = {
            let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
            (ahead.touch(wanted, self.index.spans.len()), ahead.goes_on())
        };
        let Some(Next { spans: next, fetches }) = next else { return goes_on };
        // A request is for several. What is only decoded is decoded in the order of the reader.
        let together = if fetches { AHEAD_TOGETHER } else { 1 };
        for first in next.clone().step_by(together) {
            let last = next.end.min(first + together) - 1;
            let spans = &self.index.spans;
            let tar = ByteRange::new(spans[first].tar.start, spans[last].tar.end);
            let wanted = Wanted { tar, is_whole: true, fetches };
            let reader = self.clone();
            runtime.spawn(async move {
                let _turn = match fetches {
                    true => None,
                    false => reader.store.decoding_ahead.acquire().await.ok(),
                };
                let _in_line = reader.store.line.reader();
                let deadline = reader.store.deadline();
                if let Err(error) = reader.decode(wanted, deadline).await {
                    // Whoever needs them tries again, and tells.
                    tracing::debug!(%error, "reading ahead");
                }
            });
        }
        goes_on
    }

    /// What each span has of `wanted`, from memory, disk or the source, in any order.
    async fn decode(
        self: &Arc<Self>,
        wanted: Wanted,
        deadline: Deadline,
    ) -> Result<Vec<(usize, Proved)>> {
        // Entered in ascending order by everyone, so that no two wait for each other.
        let mut turns = Vec::new();
        for i in self.index.spans_for(wanted.tar) {
            turns.push(self.enter(i, deadline).await?);
        }
        let outcome = self.decode_in_turn(wanted, deadline).await;
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
        wanted: Wanted,
        deadline: Deadline,
    ) -> Result<Vec<(usize, Proved)>> {
        let Wanted { tar, fetches, .. } = wanted;
        let (mut parts, mut absent) = (Vec::new(), Vec::new());
        for i in self.index.spans_for(tar) {
            match self.store.spans.part(&(self.number, i), self.within(i, tar)) {
                Some(part) => parts.push((i, part)),
                None => absent.push(i),
            }
        }
        let local: Vec<_> = absent
            .into_iter()
            .map(|i| {
                let reader = self.clone();
                blocking(move || Ok((i, reader.local_part(i, wanted)?)))
            })
            .collect();
        let local: Vec<_> = stream::iter(local).buffered(DECODED_AT_ONCE).try_collect().await?;
        let mut missing = Vec::new();
        for (i, part) in local {
            match part {
                Some(part) => parts.push((i, part)),
                None if fetches => missing.push(i),
                None => {}
            }
        }
        if !missing.is_empty() {
            let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
            missing.iter().for_each(|&i| ahead.note_fetch(i));
        }
        let (mut attempts, mut fetched) = (0, Vec::new());
        while !missing.is_empty() {
            if attempts == store::ATTEMPTS_MAX {
                let message =
                    format!("layer {}: other wrong bytes each time", self.layer.blob.digest);
                return Err(Error::new(ErrorKind::DigestMismatch, message));
            }
            // What is here of a span, or somebody else fetches, may be what is wrong with it.
            let trusts_others = attempts == 0;
            missing = self.fetch_spans(&missing, &mut fetched, trusts_others, deadline).await?;
            attempts += 1;
        }
        for (i, whole) in fetched {
            parts.push((i, whole.part(self.within(i, tar))));
            self.store.spans.put((self.number, i), Opened::Whole(whole));
        }
        Ok(parts)
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
        let decoded = self.open(i, &stored)?;
        self.keep(self.index.spans[i].blob, &stored);
        Ok(decoded)
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
fn only(spans: &Range<usize>) -> Option<usize> {
    (spans.len() == 1).then_some(spans.start)
}
