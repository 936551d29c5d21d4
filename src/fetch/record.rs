//! Source around a Source: remembers every call. `status` reads the counters, tests the calls too.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::{Body, BoxFuture, Chunks, Deadline, Distrust, Result, Source};
use crate::layout::range::ByteRange;
use crate::layout::{Blob, Digest};

/// Calls remembered, the first ones: a bound for a daemon that somebody left logging.
const CALLS_MAX: usize = 1 << 16;

/// Pairs of a source and a blob that are remembered as wrong: what a person reads, and more.
const SET_ASIDE_MAX: usize = 1024;

/// Blobs whose bytes are counted each: more than an image has layers. Others count in the sum alone.
const BLOBS_MAX: usize = 1 << 16;

/// What was asked of a source and what came, since the start. Cheap enough to be always on.
#[derive(Debug, Default)]
pub struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    retries: AtomicU64,
    errors: AtomicU64,
    hedges: AtomicU64,
    set_aside: Mutex<BTreeMap<(String, Digest), Option<Digest>>>,
    bytes_of: Mutex<HashMap<Digest, u64>>,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Reads started.
    pub requests: u64,
    /// Bytes that arrived, wanted or not.
    pub bytes: u64,
    /// Reads started because an earlier one failed; they are requests too.
    pub retries: u64,
    /// Reads that failed, at the start or in the middle.
    pub errors: u64,
    /// Second requests for bytes that did not come; they are requests too.
    pub hedges: u64,
}

/// One read that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Of which blob.
    pub blob: Blob,
    /// Which bytes.
    pub range: ByteRange,
}

/// A source that counts, and keeps a log when told to.
pub struct Record {
    inner: Arc<dyn Source>,
    counters: Arc<Counters>,
    calls: Option<Mutex<Vec<Call>>>,
}

impl Counters {
    /// The counters now.
    pub fn now(&self) -> Counted {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counted {
            requests: load(&self.requests),
            bytes: load(&self.bytes),
            retries: load(&self.retries),
            errors: load(&self.errors),
            hedges: load(&self.hedges),
        }
    }

    /// Bytes of one blob that arrived, wanted or not.
    pub fn bytes_of(&self, digest: &Digest) -> u64 {
        let bytes_of = self.bytes_of.lock().unwrap_or_else(PoisonError::into_inner);
        bytes_of.get(digest).copied().unwrap_or(0)
    }

    fn count_bytes(&self, digest: Digest, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut bytes_of = self.bytes_of.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes_of.len() < BLOBS_MAX || bytes_of.contains_key(&digest) {
            *bytes_of.entry(digest).or_default() += bytes;
        }
    }

    /// A read is started again.
    pub fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes that do not come are asked for a second time.
    pub fn count_hedge(&self) {
        self.hedges.fetch_add(1, Ordering::Relaxed);
    }

    /// `source` served wrong bytes of `blob`, unless the index in the artifact `or_index` is wrong by
    /// which they were found so.
    pub fn set_aside(&self, source: String, blob: Digest, or_index: Option<Digest>) {
        let mut known = self.set_aside.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < SET_ASIDE_MAX {
            // What is certain once stays so.
            let before = known.entry((source, blob)).or_insert(or_index);
            *before = before.and(or_index);
        }
    }

    /// Which sources served wrong bytes, of which blobs, or which index may be wrong instead.
    pub fn all_set_aside(&self) -> Vec<(String, Digest, Option<Digest>)> {
        let known = self.set_aside.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|((source, blob), or)| (source.clone(), *blob, *or)).collect()
    }
}

impl Record {
    /// Counts in `counters`, which others may share.
    pub fn new(inner: Arc<dyn Source>, counters: Arc<Counters>) -> Self {
        Record { inner, counters, calls: None }
    }

    /// Counts, and remembers each call.
    pub fn with_log(inner: Arc<dyn Source>, counters: Arc<Counters>) -> Self {
        Record { inner, counters, calls: Some(Mutex::default()) }
    }

    /// The counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The calls so far, in order; none without a log.
    pub fn calls(&self) -> Vec<Call> {
        let lock =
            |calls: &Mutex<Vec<Call>>| calls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.calls.as_ref().map(lock).unwrap_or_default()
    }

    async fn read_counted(
        &self,
        blob: &Blob,
        range: ByteRange,
        deadline: Deadline,
    ) -> Result<Body> {
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(calls) = &self.calls {
            let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
            if calls.len() < CALLS_MAX {
                calls.push(Call { blob: *blob, range });
            }
        }
        match self.inner.read(blob, range, deadline).await {
            Ok(body) => {
                let counters = Arc::clone(&self.counters);
                Ok(Body::new(
                    body.range,
                    Box::new(CountedChunks { body, counters, digest: blob.digest }),
                ))
            }
            Err(error) => {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}

impl Source for Record {
    fn read<'a>(
        &'a self,
        blob: &'a Blob,
        range: ByteRange,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Body>> {
        Box::pin(self.read_counted(blob, range, deadline))
    }

    fn distrust(&self, blob: &Blob, range: ByteRange, why: Distrust) -> bool {
        self.inner.distrust(blob, range, why)
    }

    fn name(&self) -> String {
        self.inner.name()
    }
}

struct CountedChunks {
    body: Body,
    counters: Arc<Counters>,
    digest: Digest,
}

impl Chunks for CountedChunks {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async {
            let chunk = self.body.next().await;
            match &chunk {
                Ok(Some(bytes)) => {
                    self.counters.count_bytes(self.digest, bytes.len() as u64);
                }
                Ok(None) => {}
                Err(_) => {
                    self.counters.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
            chunk
        })
    }
}
