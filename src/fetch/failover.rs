//! Several sources in order as one Source: mirrors first, the origin last. What one does not
//! have, or cannot deliver, the next one is asked for.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::resume::{Break, Reopen, Resumed};
use super::{Body, BoxFuture, Deadline, Error, ErrorKind, Result, Source};
use crate::layout::range::ByteRange;
use crate::layout::{Blob, Digest};

/// How long a source that could not be reached is asked last.
const REST: Duration = Duration::from_secs(30);

/// Blobs whose source is remembered: more than the layers of all images that one mount shows.
const BLOBS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not zero");

/// Sources in order.
pub struct Failover {
    line: Arc<Line>,
}

struct Line {
    sources: Vec<Arc<dyn Source>>,
    state: Mutex<State>,
}

struct State {
    /// For each source, until when it is asked last.
    resting_until: Vec<Option<Instant>>,
    /// Which source had a blob, so that the others are not asked for each range.
    had: LruCache<Digest, usize>,
}

/// One read: which sources it can still turn to, and why the others could not.
struct Turn {
    line: Arc<Line>,
    left: Vec<usize>,
    current: usize,
    failures: Vec<(usize, Error)>,
}

impl Failover {
    /// Asks `sources` in this order.
    pub fn new(sources: Vec<Arc<dyn Source>>) -> Self {
        let resting_until = vec![None; sources.len()];
        let state = Mutex::new(State { resting_until, had: LruCache::new(BLOBS_MAX) });
        Failover { line: Arc::new(Line { sources, state }) }
    }

    async fn read_somewhere(
        &self,
        blob: &Blob,
        range: ByteRange,
        deadline: Deadline,
    ) -> Result<Body> {
        let left = self.line.order(&blob.digest);
        let mut turn =
            Turn { line: Arc::clone(&self.line), left, current: 0, failures: Vec::new() };
        let body = turn.open(blob, range, deadline).await?;
        Ok(Resumed::around(*blob, body, deadline, turn))
    }
}

impl Source for Failover {
    fn read<'a>(
        &'a self,
        blob: &'a Blob,
        range: ByteRange,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Body>> {
        Box::pin(self.read_somewhere(blob, range, deadline))
    }

    fn name(&self) -> String {
        let names: Vec<String> = self.line.sources.iter().map(|source| source.name()).collect();
        names.join(", ")
    }
}

impl Line {
    /// The sources for a blob, best first: the one that had it, then as given; those that rest,
    /// last.
    fn order(&self, digest: &Digest) -> Vec<usize> {
        let now = Instant::now();
        let mut state = self.lock();
        let had = state.had.get(digest).copied();
        let mut order: Vec<usize> = (0..self.sources.len()).collect();
        order.sort_by_key(|&at| {
            let rests = state.resting_until[at].is_some_and(|until| until > now);
            (rests, had != Some(at))
        });
        order
    }

    fn note(&self, at: usize, digest: Digest, error: Option<&Error>) {
        let mut state = self.lock();
        match error.map(|error| error.kind) {
            None => {
                state.resting_until[at] = None;
                state.had.put(digest, at);
            }
            Some(kind) => {
                if state.had.peek(&digest) == Some(&at) {
                    state.had.pop(&digest);
                }
                if matches!(kind, ErrorKind::Network | ErrorKind::DeadlinePassed) {
                    state.resting_until[at] = Some(Instant::now() + REST);
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    async fn open(&mut self, blob: &Blob, range: ByteRange, deadline: Deadline) -> Result<Body> {
        while !self.left.is_empty() {
            let share = share(deadline, self.left.len());
            self.current = self.left.remove(0);
            let source = &self.line.sources[self.current];
            match source.read(blob, range, share).await {
                Ok(body) => {
                    self.line.note(self.current, blob.digest, None);
                    return Ok(body);
                }
                Err(error) => self.failed(blob, error),
            }
            if deadline.passed() {
                break;
            }
        }
        Err(self.verdict())
    }

    fn failed(&mut self, blob: &Blob, error: Error) {
        self.line.note(self.current, blob.digest, Some(&error));
        tracing::debug!(source = self.line.sources[self.current].name(), "next source: {error}");
        self.failures.push((self.current, error));
    }

    /// One error that names what each source said. Its kind is that of the first source that may
    /// have the blob: only when none has it, it is not found.
    fn verdict(&mut self) -> Error {
        let failures = std::mem::take(&mut self.failures);
        let (_, decisive) = match failures.as_slice() {
            [] => return Error::new(ErrorKind::NotFound, "there is no source to ask"),
            [(_, only)] if self.line.sources.len() == 1 => return only.clone(),
            [first, ..] => {
                failures.iter().find(|(_, e)| e.kind != ErrorKind::NotFound).unwrap_or(first)
            }
        };
        let told: Vec<String> = failures
            .iter()
            .map(|(at, error)| format!("[{}] {error}", self.line.sources[*at].name()))
            .collect();
        let message = format!(
            "no source could deliver: {}; --source REGISTRY/REPO says where else to ask",
            told.join("; ")
        );
        Error { message, ..decisive.clone() }
    }
}

impl Reopen for Turn {
    fn reopen(&mut self, broken: Break) -> BoxFuture<'_, Result<Body>> {
        Box::pin(async move {
            self.failed(&broken.blob, broken.error);
            self.open(&broken.blob, broken.rest, broken.deadline).await
        })
    }
}

/// The deadline for the first of `sources` still to ask: a silent one must leave time for the rest.
fn share(deadline: Deadline, sources: usize) -> Deadline {
    if sources <= 1 {
        return deadline;
    }
    let left = deadline.at().saturating_duration_since(Instant::now());
    Deadline::after(left / u32::try_from(sources).unwrap_or(u32::MAX))
}
