//! Bytes of the blob that spans need: from disk, from whoever fetches them at this moment, or
//! fetched. Spans share bytes, and what lies between two is fetched along; no byte comes twice.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{Notify, watch};

use super::{SpanReader, hedge, read_exact_at};
use crate::fetch::error::Result;
use crate::fetch::{Deadline, Source};
use crate::layout::plan;
use crate::layout::range::{ByteRange, RangeSet};

/// Bytes between two spans that are fetched along rather than asked for separately.
const GAP_BYTES: u64 = 256 << 10;

/// The longest single request for spans.
const REQUEST_BYTES_MAX: u64 = 4 << 20;

/// Requests on their way for one read: enough to fill a line of 1 Gbit/s and 10 ms, after which
/// only the waiting grows.
const REQUESTS_MAX: usize = 4;

/// Bytes of a blob, and where they are.
type Piece = (ByteRange, Bytes);

/// Bytes of a blob, by their start.
#[derive(Default)]
pub(super) struct Pieces {
    all: Vec<Piece>,
    /// Those that were asked for here: neither from disk nor from somebody else.
    fetched: RangeSet,
}

/// For whom bytes are fetched.
#[derive(Clone)]
pub(super) enum For {
    /// A reader, who is waiting.
    Reader(Deadline),
    /// Nobody yet; readers who have waited for it stop it.
    Later(Arc<Notify>),
}

/// Requests whose bytes are not on disk yet: what they bring, nobody else asks for.
#[derive(Default)]
pub(super) struct Coming(Mutex<Vec<Arc<Request>>>);

struct Request {
    range: ByteRange,
    outcome: watch::Sender<Outcome>,
    of: For,
}

/// What came of a request, as soon as anything did.
type Outcome = Option<Result<Bytes>>;

/// Requests of one who fetches spans, until those are on disk or nothing comes of it.
pub(super) struct Claim<'a> {
    coming: &'a Coming,
    requests: Vec<Arc<Request>>,
}

/// What is to be waited for, and how to stop it.
struct Awaited {
    range: ByteRange,
    outcome: watch::Receiver<Outcome>,
    of: For,
}

impl Coming {
    pub(super) fn claim(&self) -> Claim<'_> {
        Claim { coming: self, requests: Vec::new() }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut coming = self.coming.0.lock().unwrap_or_else(PoisonError::into_inner);
        coming.retain(|one| !self.requests.iter().any(|ours| Arc::ptr_eq(one, ours)));
    }
}

impl Awaited {
    /// The bytes; `None` if it was given up. A reader leaves whoever fetches for later no more time
    /// than a request has before it is made a second time.
    ///
    /// # Errors
    /// How it failed: whoever waited would only fail in turn.
    async fn wait(mut self, of: &For) -> Result<Option<Piece>> {
        if let (For::Reader(deadline), For::Later(stop)) = (of, &self.of) {
            let outcome = self.outcome.wait_for(Option::is_some);
            if tokio::time::timeout(hedge::slow_after(*deadline), outcome).await.is_err() {
                stop.notify_one();
            }
        }
        let outcome = self.outcome.wait_for(Option::is_some).await;
        let bytes = outcome.ok().and_then(|outcome| outcome.clone()).transpose()?;
        Ok(bytes.map(|bytes| (self.range, bytes)))
    }
}

impl Pieces {
    /// The bytes of `wanted`, as far as they are here.
    pub(super) fn assemble(&self, wanted: ByteRange) -> Bytes {
        let mut out = BytesMut::new();
        let mut at = wanted.start;
        for (range, bytes) in &self.all {
            let both = range.intersection(&ByteRange::new(at, wanted.end));
            if both.is_empty() {
                continue;
            }
            let slice = (both.start - range.start) as usize..(both.end - range.start) as usize;
            if both == wanted {
                return bytes.slice(slice);
            }
            out.extend_from_slice(&bytes[slice]);
            at = both.end;
        }
        out.freeze()
    }

    /// All bytes of `range` were asked for here.
    pub(super) fn is_fetched(&self, range: ByteRange) -> bool {
        self.fetched.contains(range)
    }

    fn ranges(&self) -> RangeSet {
        let mut ranges = RangeSet::new();
        self.all.iter().for_each(|(range, _)| ranges.insert(*range));
        ranges
    }
}

impl SpanReader {
    /// The bytes of `ranges`. What is here and what others fetch is taken from there, unless it is
    /// not trusted: it was wrong.
    ///
    /// # Errors
    /// They cannot be had.
    pub(super) async fn pieces(
        &self,
        source: &Arc<dyn Source>,
        ranges: &[ByteRange],
        trusts_others: bool,
        of: &For,
        claim: &mut Claim<'_>,
    ) -> Result<Pieces> {
        let mut pieces = Pieces::default();
        loop {
            let first = claim.requests.len();
            let (resident, awaited) =
                self.claim(ranges, trusts_others, &pieces, of, REQUEST_BYTES_MAX, claim);
            pieces.all.extend(self.read_part(&resident));
            let requests = &claim.requests[first..];
            let fetching: Vec<_> = requests.iter().map(|one| self.fetch(source, one)).collect();
            let at_once = match of {
                For::Reader(_) => REQUESTS_MAX,
                For::Later(_) => 1,
            };
            let fetched: Vec<Piece> =
                stream::iter(fetching).buffered(at_once).try_collect().await?;
            fetched.iter().for_each(|(range, _)| pieces.fetched.insert(*range));
            pieces.all.extend(fetched);
            let mut is_all = true;
            // What was claimed here has come: no two wait for each other.
            for one in awaited {
                let came = one.wait(of).await?;
                is_all &= came.is_some();
                pieces.all.extend(came);
            }
            if is_all {
                pieces.all.sort_by_key(|(range, _)| range.start);
                return Ok(pieces);
            }
        }
    }

    /// Claims what of `ranges` nobody has or fetches, however long that is: which requests bring it.
    pub(super) fn claim_long(
        &self,
        ranges: &[ByteRange],
        of: &For,
        claim: &mut Claim<'_>,
    ) -> Vec<ByteRange> {
        self.claim(ranges, true, &Pieces::default(), of, u64::MAX, claim);
        claim.requests.iter().map(|request| request.range).collect()
    }

    /// Claims what of `ranges` nobody has or fetches, in requests of up to `len_max` bytes. What of
    /// them is on disk, and whom to wait for.
    fn claim(
        &self,
        ranges: &[ByteRange],
        trusts_others: bool,
        pieces: &Pieces,
        of: &For,
        len_max: u64,
        claim: &mut Claim<'_>,
    ) -> (Vec<ByteRange>, Vec<Awaited>) {
        // Whoever ends a claim has put its bytes on disk before: the disk is looked at while none
        // can end.
        let mut coming = self.coming.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut resident, mut awaited) = (Vec::new(), Vec::new());
        let (mut known, mut missing) = (pieces.ranges(), RangeSet::new());
        ranges.iter().flat_map(|one| known.missing(*one)).for_each(|gap| missing.insert(gap));
        if trusts_others {
            let part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
            for here in part.iter().flat_map(|part| part.resident.ranges()) {
                resident.extend(both(&missing, here));
                missing.remove(*here);
                known.insert(*here);
            }
            for one in coming.iter().filter(|one| !both(&missing, &one.range).is_empty()) {
                let outcome = one.outcome.subscribe();
                awaited.push(Awaited { range: one.range, outcome, of: one.of.clone() });
            }
            coming.iter().for_each(|one| known.insert(one.range));
        }
        for range in requests_for(ranges, &known, len_max) {
            let (outcome, of) = (watch::Sender::new(None), of.clone());
            claim.requests.push(Arc::new(Request { range, outcome, of }));
            coming.extend(claim.requests.last().cloned());
        }
        (resident, awaited)
    }

    /// What of `ranges` can be read of the part.
    fn read_part(&self, ranges: &[ByteRange]) -> Vec<Piece> {
        let part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(part) = &*part else { return Vec::new() };
        let read = |range| Some((range, read_exact_at(&part.file, range).ok()?.into()));
        ranges.iter().filter_map(|range| read(*range)).collect()
    }

    async fn fetch(&self, source: &Arc<dyn Source>, one: &Request) -> Result<Piece> {
        let (blob, range) = (&self.layer.blob, one.range);
        let bytes = match &one.of {
            For::Reader(deadline) => {
                let bytes = hedge::read(source, blob, range, deadline.renewed()).await;
                one.outcome.send_replace(Some(bytes.clone()));
                bytes?
            }
            // No reader hears of its failures.
            For::Later(_) => {
                let (deadline, arrived) = (self.store.deadline(), AtomicU64::new(0));
                let bytes = hedge::collect(source, blob, range, deadline, &arrived).await?;
                one.outcome.send_replace(Some(Ok(bytes.clone())));
                bytes
            }
        };
        Ok((range, bytes))
    }
}

/// The bytes that are in both.
fn both(set: &RangeSet, range: &ByteRange) -> Vec<ByteRange> {
    let both = set.ranges().iter().map(|one| one.intersection(range));
    both.filter(|both| !both.is_empty()).collect()
}

/// What to ask for, so that `ranges` are here. What lies between two of them comes along, unless it
/// is `known` already.
fn requests_for(ranges: &[ByteRange], known: &RangeSet, len_max: u64) -> Vec<ByteRange> {
    let requests = plan::plan_fetch(ranges, known, GAP_BYTES, len_max);
    requests.into_iter().flat_map(|request| known.missing(request)).collect()
}
