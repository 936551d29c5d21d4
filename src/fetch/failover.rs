//! Several sources in order as one Source: mirrors first, the origin last. What one does not
//! have, or cannot deliver, the next one is asked for. One that served wrong bytes of a blob is asked
//! for that blob last.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::record::Counters;
use super::resume::{Break, Reopen, Resumed};
use super::{Body, BoxFuture, Deadline, Distrust, Error, ErrorKind, Result, Source};
use crate::layout::range::{ByteRange, RangeSet};
use crate::layout::{Blob, Digest};

/// How long a source that could not be reached, or hardly delivered, is asked last.
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
    counters: Arc<Counters>,
}

struct State {
    /// For each source, until when it is asked last.
    resting_until: Vec<Option<Instant>>,
    blobs: LruCache<Digest, Known>,
}

/// What is known of the sources of one blob.
#[derive(Default)]
struct Known {
    /// Which one had it, so that the others are not asked for each range.
    had: Option<usize>,
    /// Which one was asked last for which bytes.
    asked: Vec<(usize, RangeSet)>,
    /// Those that served wrong bytes.
    wrong: Vec<Wrong>,
}

/// One source, of one blob.
struct Wrong {
    at: usize,
    last: Instant,
    /// It served all of what was wrong once. (Else it may have been another's part.)
    is_proved: bool,
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
        Failover::counting(sources, Arc::default())
    }

    /// The same; what is distrusted is counted in `counters`.
    pub fn counting(sources: Vec<Arc<dyn Source>>, counters: Arc<Counters>) -> Self {
        let resting_until = vec![None; sources.len()];
        let state = Mutex::new(State { resting_until, blobs: LruCache::new(BLOBS_MAX) });
        Failover { line: Arc::new(Line { sources, state, counters }) }
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

    fn distrust(&self, blob: &Blob, range: ByteRange, why: Distrust) -> bool {
        self.line.distrust(blob, range, why)
    }

    fn name(&self) -> String {
        let names: Vec<String> = self.line.sources.iter().map(|source| source.name()).collect();
        names.join(", ")
    }
}

impl Line {
    /// The sources for a blob, best first: the one that had it, then as given; then those that
    /// rest; last those that served wrong bytes of it, the latest of them at the very end.
    fn order(&self, digest: &Digest) -> Vec<usize> {
        let now = Instant::now();
        let mut state = self.lock();
        let State { resting_until, blobs } = &mut *state;
        let known = blobs.get_or_insert_mut(*digest, Known::default);
        let mut order: Vec<usize> = (0..self.sources.len()).collect();
        order.sort_by_key(|&at| {
            let rests = resting_until[at].is_some_and(|until| until > now);
            (known.wrong_at(at), rests, known.had != Some(at))
        });
        order
    }

    fn asks(&self, at: usize, digest: Digest, range: ByteRange) {
        let mut state = self.lock();
        let known = state.blobs.get_or_insert_mut(digest, Known::default);
        for (_, asked) in &mut known.asked {
            asked.remove(range);
        }
        match known.asked.iter_mut().find(|(other, _)| *other == at) {
            Some((_, asked)) => asked.insert(range),
            None => {
                let mut asked = RangeSet::new();
                asked.insert(range);
                known.asked.push((at, asked));
            }
        }
    }

    fn distrust(&self, blob: &Blob, range: ByteRange, why: Distrust) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        let State { resting_until, blobs } = &mut *state;
        let known = blobs.get_or_insert_mut(blob.digest, Known::default);
        let has_some = |asked: &RangeSet| asked.missing(range) != [range];
        let guilty: Vec<usize> =
            known.asked.iter().filter(|(_, a)| has_some(a)).map(|(at, _)| *at).collect();
        let all = 0..self.sources.len();
        match why {
            Distrust::Slow => {
                guilty.iter().for_each(|&at| resting_until[at] = Some(now + REST));
                let is_free = |at: &usize| !guilty.contains(at) && !known.is_proved_wrong(*at);
                let is_elsewhere = all.clone().any(|at| is_free(&at));
                drop(state);
                let can_again = self.tell(blob, range, why, &guilty);
                if is_elsewhere || can_again {
                    self.counters.count_hedge();
                }
                is_elsewhere || can_again
            }
            Distrust::Wrong | Distrust::Doubted(_) => {
                // Who is found wrong for the second time had its turn as nobody else delivers.
                let is_news = guilty.iter().any(|at| !known.is_proved_wrong(*at));
                let is_known = !guilty.is_empty() && !is_news;
                known.found_wrong(&guilty, now);
                let is_elsewhere = all.clone().any(|at| !known.is_proved_wrong(at));
                drop(state);
                self.tell(blob, range, why, &guilty);
                is_elsewhere && !is_known
            }
        }
    }

    /// `true`: all of the guilty can be asked again.
    fn tell(&self, blob: &Blob, range: ByteRange, why: Distrust, guilty: &[usize]) -> bool {
        let mut can_again = true;
        for &at in guilty {
            let source = &self.sources[at];
            can_again &= source.distrust(blob, range, why);
            let (source, digest) = (source.name(), blob.digest);
            match why {
                Distrust::Slow => tracing::debug!(source, %digest, %range, "slow to deliver"),
                Distrust::Wrong => {
                    tracing::warn!(source, %digest, %range, "wrong bytes: asked last for this blob");
                    if guilty.len() == 1 {
                        self.counters.set_aside(source, digest, None);
                    }
                }
                Distrust::Doubted(artifact) => {
                    tracing::warn!(
                        source, %digest, %range, %artifact,
                        "wrong bytes, or a wrong index: asked last for this blob"
                    );
                    if guilty.len() == 1 {
                        self.counters.set_aside(source, digest, Some(artifact));
                    }
                }
            }
        }
        can_again
    }

    fn note(&self, at: usize, digest: Digest, error: Option<&Error>) {
        let mut state = self.lock();
        match error.map(|error| error.kind) {
            None => {
                state.resting_until[at] = None;
                state.blobs.get_or_insert_mut(digest, Known::default).had = Some(at);
            }
            Some(kind) => {
                let known = state.blobs.get_or_insert_mut(digest, Known::default);
                known.had = known.had.filter(|had| *had != at);
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

impl Known {
    fn wrong_at(&self, at: usize) -> Option<Instant> {
        self.wrong.iter().find(|wrong| wrong.at == at).map(|wrong| wrong.last)
    }

    fn is_proved_wrong(&self, at: usize) -> bool {
        self.wrong.iter().any(|wrong| wrong.at == at && wrong.is_proved)
    }

    fn found_wrong(&mut self, guilty: &[usize], last: Instant) {
        for &at in guilty {
            let is_proved = guilty.len() == 1 || self.is_proved_wrong(at);
            self.wrong.retain(|wrong| wrong.at != at);
            self.wrong.push(Wrong { at, last, is_proved });
            self.had = self.had.filter(|had| *had != at);
        }
        self.asked.clear();
    }
}

impl Turn {
    async fn open(&mut self, blob: &Blob, range: ByteRange, deadline: Deadline) -> Result<Body> {
        while !self.left.is_empty() {
            let share = share(deadline, self.left.len());
            self.current = self.left.remove(0);
            let source = &self.line.sources[self.current];
            self.line.asks(self.current, blob.digest, range);
            match source.read(blob, range, share).await {
                Ok(body) => {
                    self.line.asks(self.current, blob.digest, body.range);
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
