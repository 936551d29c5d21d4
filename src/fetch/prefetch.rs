//! Fetches what readers are going to need, before they do, and behind those who need something now.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::{StreamExt as _, stream};

use super::error::{Error, Result};
use super::layer::LayerReader;
use super::span_reader::{SpanReader, blocking};
use super::store::Store;
use crate::layout::Blob;
use crate::layout::plan::{AheadLimits, Together, plan_ahead};
use crate::layout::range::ByteRange;
use crate::layout::trace::Trace;

/// Requests at once: as many as one reader has.
const REQUESTS_MAX: usize = 4;

/// A request is short: readers that come while it runs share the line with it, and who needs one of
/// its spans waits for all of it.
const LIMITS: AheadLimits = AheadLimits { gap: 256 << 10, len_max: 1 << 20, wave: 8 << 20 };

/// How often the same spans are tried when readers take them over.
const TRIES_MAX: usize = 3;

/// Bytes of all layers together that are fetched because their writers say that a start needs them:
/// half a second of a fast line. Starts need some MB; a landmark can say anything.
const EARLY_BYTES_MAX: u64 = 64 << 20;

/// What to fetch.
#[derive(Debug)]
pub enum What {
    /// What is in front of the landmarks of layers.
    Early,
    /// That, and then everything.
    All,
    /// What a use needed, in its order.
    Trace(Trace),
}

/// A layer of the mount.
pub struct Target {
    /// As stored.
    pub blob: Blob,
    /// `None`: nobody reads it but whole (layout view).
    pub reader: Option<Arc<LayerReader>>,
}

/// How far it is.
#[derive(Debug, Default)]
pub struct Progress {
    wanted_bytes: AtomicU64,
    done_bytes: AtomicU64,
    failed: AtomicU64,
    last_error: RwLock<Option<String>>,
    is_done: AtomicBool,
}

/// The same at one moment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shown {
    /// There is nothing left to try.
    pub done: bool,
    /// Bytes of blobs that were not here when it began.
    pub bytes_wanted: u64,
    /// How many of them were tried.
    pub bytes_done: u64,
    /// Requests that failed.
    pub errors: u64,
    /// The last of them.
    pub last_error: Option<String>,
}

impl Progress {
    /// Now.
    pub fn shown(&self) -> Shown {
        Shown {
            done: self.is_done.load(Ordering::Acquire),
            bytes_wanted: self.wanted_bytes.load(Ordering::Relaxed),
            bytes_done: self.done_bytes.load(Ordering::Relaxed),
            errors: self.failed.load(Ordering::Relaxed),
            last_error: self.last_error.read().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn failed(&self, blob: &Blob, error: &Error) {
        tracing::warn!(layer = %blob.digest, %error, "cannot prefetch");
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut last = self.last_error.write().unwrap_or_else(PoisonError::into_inner);
        *last = Some(error.to_string());
    }
}

/// One piece that is wanted.
#[derive(Clone, Copy)]
enum Piece {
    Span(usize),
    Whole,
}

/// What is wanted, in order: target, range of its blob, and what that range is.
type Wanted = Vec<(usize, ByteRange, Piece)>;

/// Fetches `what` of `targets` into the cache. What goes wrong is logged, and no reader hears of it.
pub async fn run(store: Arc<Store>, targets: Vec<Target>, what: What, progress: Arc<Progress>) {
    let targets = Arc::new(targets);
    if let Err(error) = store.source() {
        match what {
            // Nobody has asked for it.
            What::Early => tracing::debug!(%error, "nothing is prefetched"),
            _ => tracing::info!(%error, "nothing is prefetched"),
        }
    } else {
        let is_all = matches!(what, What::All);
        if is_all || matches!(what, What::Early) {
            early(&store, &targets, &progress).await;
        }
        let (listing, of) = (store.clone(), targets.clone());
        match blocking(move || Ok(wanted(&listing, &of, &what))).await {
            Ok(wanted) => fetch(&store, &targets, &wanted, &progress).await,
            Err(error) => tracing::warn!(%error, "cannot prefetch"),
        }
        if is_all {
            name_whole(&store, &targets, &progress).await;
        }
    }
    progress.is_done.store(true, Ordering::Release);
}

/// Spans of a target that are fetched by one request.
struct Early {
    target: usize,
    spans: Vec<usize>,
    /// Bytes of those that are not here.
    bytes: u64,
}

/// Fetches what the writers of layers say that a start needs, by one request for each layer.
async fn early(store: &Arc<Store>, targets: &Arc<Vec<Target>>, progress: &Arc<Progress>) {
    let (listing, of) = (store.clone(), targets.clone());
    // It reads the disk, and does not fail.
    let listed = blocking(move || Ok(marked(&listing, &of, EARLY_BYTES_MAX))).await;
    let marked = listed.unwrap_or_default();
    let bytes = marked.iter().map(|early| early.bytes).sum();
    progress.wanted_bytes.fetch_add(bytes, Ordering::Relaxed);
    let works = marked.into_iter().map(|Early { target, spans, bytes }| {
        let (store, targets, progress) = (store.clone(), targets.clone(), progress.clone());
        async move {
            let target = &targets[target];
            if let Err(error) = bring_early(&store, target, &spans).await {
                progress.failed(&target.blob, &error);
            }
            progress.done_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    });
    stream::iter(works).buffer_unordered(REQUESTS_MAX).collect::<()>().await;
}

async fn bring_early(store: &Arc<Store>, target: &Target, spans: &[usize]) -> Result<()> {
    let Some(reader) = spans_of(target) else { return Ok(()) };
    for _ in 0..TRIES_MAX {
        store.line.free().await;
        if reader.stream(spans).await? {
            break;
        }
    }
    Ok(())
}

/// What is in front of the landmarks of `targets`, and not all here: `bytes_max` of it, from the
/// first layer on, whole spans. Reads the disk.
fn marked(store: &Store, targets: &[Target], bytes_max: u64) -> Vec<Early> {
    let (mut all, mut left) = (Vec::new(), bytes_max);
    for (number, target) in targets.iter().enumerate() {
        let Some(reader) = spans_of(target).filter(|_| !is_here(store, target)) else { continue };
        let ranges = (0..reader.early()).map(|i| reader.range_of(i));
        let spans: Vec<usize> = (0..fitting(ranges, &mut left)).collect();
        let absent = spans.iter().filter(|i| !reader.is_resident(**i));
        let bytes = absent.map(|i| reader.range_of(*i).len()).sum();
        if bytes > 0 {
            all.push(Early { target: number, spans, bytes });
        }
    }
    all
}

/// How many of `ranges`, from the first one on, have at most `left` bytes, which are taken from it.
fn fitting(ranges: impl Iterator<Item = ByteRange>, left: &mut u64) -> usize {
    let mut count = 0;
    for range in ranges {
        let Some(rest) = left.checked_sub(range.len()) else { break };
        (count, *left) = (count + 1, rest);
    }
    count
}

async fn fetch(
    store: &Arc<Store>,
    targets: &Arc<Vec<Target>>,
    wanted: &Wanted,
    progress: &Arc<Progress>,
) {
    let ranges: Vec<_> = wanted.iter().map(|(target, range, _)| (*target, *range)).collect();
    let bytes = ranges.iter().map(|(_, range)| range.len()).sum();
    progress.wanted_bytes.fetch_add(bytes, Ordering::Relaxed);
    let works: Vec<_> = plan_ahead(&ranges, LIMITS)
        .into_iter()
        .map(|together| {
            let pieces: Vec<Piece> = together.wanted.iter().map(|&i| wanted[i].2).collect();
            let bytes: u64 = together.wanted.iter().map(|&i| ranges[i].1.len()).sum();
            let (store, targets, progress) = (store.clone(), targets.clone(), progress.clone());
            async move {
                let target = &targets[together.layer];
                if let Err(error) = bring(&store, target, &together, &pieces).await {
                    progress.failed(&target.blob, &error);
                }
                progress.done_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
        })
        .collect();
    stream::iter(works).buffer_unordered(REQUESTS_MAX).collect::<()>().await;
}

async fn bring(
    store: &Arc<Store>,
    target: &Target,
    together: &Together,
    pieces: &[Piece],
) -> Result<()> {
    let span = |piece: &Piece| match piece {
        Piece::Span(i) => Some(*i),
        Piece::Whole => None,
    };
    let spans: BTreeSet<usize> = pieces.iter().filter_map(span).collect();
    let Some(reader) = spans_of(target).filter(|_| spans.len() == together.wanted.len()) else {
        return store.bring_behind(&target.blob).await;
    };
    let spans: Vec<usize> = spans.into_iter().collect();
    for _ in 0..TRIES_MAX {
        store.line.free().await;
        if reader.prefetch(&spans).await? {
            break;
        }
    }
    Ok(())
}

fn spans_of(target: &Target) -> Option<&Arc<SpanReader>> {
    target.reader.as_ref()?.spans()
}

/// What of `what` is not here, each piece once. Reads the disk.
fn wanted(store: &Store, targets: &[Target], what: &What) -> Wanted {
    let mut list = Listing { store, targets, seen: vec![None; targets.len()], wanted: Vec::new() };
    match what {
        What::Early => {}
        What::All => {
            for (target, Target { blob, .. }) in targets.iter().enumerate() {
                list.add(target, ByteRange::new(0, blob.size));
            }
        }
        What::Trace(trace) => {
            let numbers: HashMap<_, _> =
                targets.iter().enumerate().map(|(i, t)| (t.blob.digest, i)).collect();
            let known: Vec<_> = trace.layers.iter().map(|d| numbers.get(d).copied()).collect();
            for (layer, _) in trace.layers.iter().zip(&known).filter(|(_, t)| t.is_none()) {
                tracing::warn!(%layer, "the trace has a layer that this image has not");
            }
            for needed in &trace.needed {
                if let Some(target) = known.get(needed.layer).copied().flatten() {
                    list.add(target, needed.range);
                }
            }
        }
    }
    list.wanted
}

struct Listing<'a> {
    store: &'a Store,
    targets: &'a [Target],
    /// Of a target that was met: which spans were (one that stands for all where there are none).
    seen: Vec<Option<Vec<bool>>>,
    wanted: Wanted,
}

impl Listing<'_> {
    fn add(&mut self, number: usize, range: ByteRange) {
        let target = &self.targets[number];
        let spans = spans_of(target);
        let (store, count) = (self.store, spans.map_or(1, |spans| spans.count()));
        let seen = self.seen[number].get_or_insert_with(|| vec![is_here(store, target); count]);
        let mut once = |i: usize| !std::mem::replace(&mut seen[i], true);
        let whole = ByteRange::new(0, target.blob.size);
        match spans {
            Some(spans) => {
                let all = if range == whole { 0..count } else { spans.spans_in(range) };
                for i in all.filter(|i| once(*i) && !spans.is_resident(*i)) {
                    self.wanted.push((number, spans.range_of(i), Piece::Span(i)));
                }
            }
            // Whoever reads a blob reads it from its start: a part of it helps nobody.
            None if target.reader.is_none() && range != whole => {}
            None if once(0) => self.wanted.push((number, whole, Piece::Whole)),
            None => {}
        }
    }
}

/// Reading it asks nobody.
fn is_here(store: &Store, target: &Target) -> bool {
    let is_decoded = target.reader.as_ref().is_some_and(|reader| reader.is_decoded());
    is_decoded || store.open_local(&target.blob).is_ok_and(|local| local.is_some())
}

/// Blobs all of whose bytes came span by span are proved as a whole, which takes no request, and get
/// their names: then the layout view and `hydrate` have them, too.
async fn name_whole(store: &Arc<Store>, targets: &[Target], progress: &Progress) {
    for target in targets.iter().filter(|target| !is_here(store, target)) {
        let is_whole = spans_of(target).is_some_and(|spans| spans.is_whole());
        if is_whole && let Err(error) = store.bring_behind(&target.blob).await {
            progress.failed(&target.blob, &error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_at_the_end_of_a_large_layer_does_not_bring_all_of_it() {
        let gigabytes = (0..10_240u64).map(|i| ByteRange::at(i << 20, 1 << 20));
        let mut left = EARLY_BYTES_MAX;
        assert_eq!(fitting(gigabytes.clone(), &mut left), 64);
        assert_eq!(left, 0);
        assert_eq!(fitting(gigabytes, &mut left), 0, "the limit is of all layers together");
        let mut left = 100;
        let ranges = [60, 50, 40].map(|len| ByteRange::at(0, len));
        assert_eq!(fitting(ranges.into_iter(), &mut left), 1, "from the first one on");
        assert_eq!(left, 40);
    }
}
