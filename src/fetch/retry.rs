//! Source around a Source: tries again what is temporary, and goes on at the byte where a body
//! broke. Never beyond the deadline; and without patience for a source that was gone a moment ago.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::record::Counters;
use super::resume::{Break, Reopen, Resumed};
use super::{Body, BoxFuture, Chunks, Deadline, Distrust, Error, ErrorKind, Result, Source};
use crate::layout::Blob;
use crate::layout::range::ByteRange;

/// Reads of the same bytes before we give up. Most trouble is over after one more; five with
/// back-off cover a restart of the server.
pub const ATTEMPTS_MAX: u32 = 5;

/// The longest wait before the second attempt; it doubles with each one.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);

/// The longest wait that we choose ourselves.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A body that brought so much before it broke starts the count of attempts anew: a long body on a
/// bad line breaks often and still arrives.
const PROGRESS_BYTES: u64 = 1 << 20;

/// A source that was tried in vain is on probation at least so long. (Longer if that took longer.)
const PROBATION_MIN: Duration = Duration::from_secs(5);

/// How long the first answer on probation may take; each failure halves it.
const PROBE_FIRST: Duration = Duration::from_millis(500);

/// No probe is shorter: a registry nearby answers within this.
const PROBE_MIN: Duration = Duration::from_millis(20);

/// A source that does not give up at once.
pub struct Retry {
    inner: Arc<dyn Source>,
    counters: Arc<Counters>,
    conduct: Arc<Conduct>,
    /// Reads that wait because the source wishes it.
    wishes: Arc<AtomicUsize>,
}

/// How a source has behaved. One that was tried in vain, as long as may be, is on probation: each
/// read asks it once, so that a source that is back is seen at once, and a thousand readers of one
/// that is not do not wait a thousand times.
#[derive(Default)]
struct Conduct(Mutex<Option<Probation>>);

#[derive(Debug, Clone, Copy)]
struct Probation {
    until: Instant,
    /// How long the first byte of the next answer may take.
    probe: Duration,
    /// How it failed: a probe is too short to tell.
    kind: ErrorKind,
}

/// How often the same bytes were tried.
struct Attempts {
    inner: Arc<dyn Source>,
    counters: Arc<Counters>,
    conduct: Arc<Conduct>,
    wishes: Arc<AtomicUsize>,
    began: Instant,
    failed: u32,
}

/// A read that waits because the source wishes it (Retry-After).
struct Granted<'a>(&'a AtomicUsize);

impl<'a> Granted<'a> {
    fn new(wishes: &'a AtomicUsize) -> Self {
        wishes.fetch_add(1, Ordering::Relaxed);
        Granted(wishes)
    }
}

impl Drop for Granted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body whose first bytes are here.
struct Begun {
    first: Option<Bytes>,
    rest: Body,
}

impl Retry {
    /// Tries `inner` again; the retries are counted in `counters`.
    pub fn new(inner: Arc<dyn Source>, counters: Arc<Counters>) -> Self {
        Retry { inner, counters, conduct: Arc::default(), wishes: Arc::default() }
    }

    async fn read_again(&self, blob: &Blob, range: ByteRange, deadline: Deadline) -> Result<Body> {
        let mut attempts = Attempts {
            inner: Arc::clone(&self.inner),
            counters: Arc::clone(&self.counters),
            conduct: Arc::clone(&self.conduct),
            wishes: Arc::clone(&self.wishes),
            began: Instant::now(),
            failed: 0,
        };
        let body = match self.conduct.probe() {
            Some(probation) => self.read_once(blob, range, deadline, probation).await?,
            None => match self.inner.read(blob, range, deadline).await {
                Ok(body) => body,
                Err(error) => {
                    let rest = range;
                    let broken = Break { error, blob: *blob, rest, arrived_bytes: 0, deadline };
                    attempts.reopen(broken).await?
                }
            },
        };
        Ok(Resumed::around(*blob, body, deadline, attempts))
    }

    /// One attempt, which has `probe` to bring the first bytes; the others then have the usual
    /// patience.
    async fn read_once(
        &self,
        blob: &Blob,
        range: ByteRange,
        deadline: Deadline,
        Probation { probe, kind, .. }: Probation,
    ) -> Result<Body> {
        let begin = async {
            let mut rest = self.inner.read(blob, range, deadline).await?;
            let first = rest.next().await?;
            Ok(Body::new(rest.range, Box::new(Begun { first, rest })))
        };
        let read = tokio::time::timeout(probe, begin).await.unwrap_or_else(|_| {
            let message = format!("{}: no answer within {probe:?}", self.inner.name());
            Err(Error::new(kind, message))
        });
        self.conduct.probed(read.as_ref().err());
        read.map_err(|error| error.context("asked once, because it failed a moment ago"))
    }
}

impl Conduct {
    fn lock(&self) -> MutexGuard<'_, Option<Probation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the next attempt may take; `None`: the source is not on probation.
    fn probe(&self) -> Option<Probation> {
        self.lock().filter(|probation| Instant::now() < probation.until)
    }

    /// Everything was tried since `began`.
    fn failed(&self, began: Instant, error: &Error) {
        let now = Instant::now();
        let mut probation = self.lock();
        if error.is_trouble() && probation.is_none_or(|probation| probation.until <= now) {
            let until = now + (now - began).max(PROBATION_MIN);
            *probation = Some(Probation { until, probe: PROBE_FIRST, kind: error.kind });
        }
    }

    fn probed(&self, error: Option<&Error>) {
        let mut probation = self.lock();
        *probation = match error {
            Some(error) if error.is_trouble() => {
                probation.map(|p| Probation { probe: (p.probe / 2).max(PROBE_MIN), ..p })
            }
            _ => None,
        };
    }
}

impl Chunks for Begun {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move {
            match self.first.take() {
                Some(first) => Ok(Some(first)),
                None => self.rest.next().await,
            }
        })
    }
}

impl Source for Retry {
    fn read<'a>(
        &'a self,
        blob: &'a Blob,
        range: ByteRange,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Body>> {
        Box::pin(self.read_again(blob, range, deadline))
    }

    fn distrust(&self, blob: &Blob, range: ByteRange, why: Distrust) -> bool {
        let is_granted = why == Distrust::Slow && self.wishes.load(Ordering::Relaxed) > 0;
        self.inner.distrust(blob, range, why) && !is_granted
    }

    fn name(&self) -> String {
        self.inner.name()
    }
}

impl Attempts {
    async fn again(&mut self, broken: Break) -> Result<Body> {
        let Break { mut error, blob, rest, arrived_bytes, deadline } = broken;
        if arrived_bytes >= PROGRESS_BYTES {
            self.failed = 0;
        }
        loop {
            if !error.is_temporary() {
                return Err(error);
            }
            self.failed += 1;
            let left = deadline.at().saturating_duration_since(Instant::now());
            let Some(wait) = schedule(self.failed, jitter(), error.retry_after, left) else {
                return Err(given_up(error, self.failed));
            };
            tracing::debug!(%rest, ?wait, "trying again: {error}");
            let granted = error.retry_after.map(|_| Granted::new(&self.wishes));
            tokio::time::sleep(wait).await;
            drop(granted);
            self.counters.count_retry();
            match self.inner.read(&blob, rest, deadline).await {
                Ok(body) => return Ok(body),
                // An attempt that had little time tells less than the one before it.
                Err(next)
                    if next.kind == ErrorKind::DeadlinePassed
                        && left.saturating_sub(wait) < deadline.stall() / 2 =>
                {
                    return Err(given_up(error, self.failed + 1));
                }
                Err(next) => error = next,
            }
        }
    }
}

impl Reopen for Attempts {
    fn reopen(&mut self, broken: Break) -> BoxFuture<'_, Result<Body>> {
        // Bytes that arrived were not waited for in vain.
        let began = if broken.arrived_bytes > 0 { Instant::now() } else { self.began };
        Box::pin(async move {
            let opened = self.again(broken).await;
            if let Err(error) = &opened {
                self.conduct.failed(began, error);
            }
            opened
        })
    }
}

/// How long to wait after the `failed`-th failure (from 1), or `None` to give up. `jitter` is in
/// `0.0..1.0`: all clients of a server that fell over must not come back together. `retry_after` is
/// the server's wish, `left` the time until the deadline.
pub fn schedule(
    failed: u32,
    jitter: f64,
    retry_after: Option<Duration>,
    left: Duration,
) -> Option<Duration> {
    if failed >= ATTEMPTS_MAX {
        return None;
    }
    let doublings = failed.saturating_sub(1);
    let backoff = BACKOFF_FIRST.saturating_mul(1 << doublings.min(16)).min(BACKOFF_MAX);
    let wait = backoff.mul_f64(jitter.clamp(0.0, 1.0)).max(retry_after.unwrap_or_default());
    (wait < left).then_some(wait)
}

/// A number in `0.0..1.0` from the standard library's only source of randomness.
pub(super) fn jitter() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 32;
    bits as f64 / 2f64.powi(32)
}

pub(super) fn given_up(mut error: Error, attempts: u32) -> Error {
    if attempts > 1 {
        error.message = format!("{} (attempt {attempts}, the last)", error.message);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn waits_double_up_to_a_bound_and_then_end() {
        let ms = |failed| schedule(failed, 1.0, None, LONG).map(|wait| wait.as_millis());
        let waits: Vec<_> = (1..=5).map(ms).collect();
        assert_eq!(waits, [Some(200), Some(400), Some(800), Some(1600), None]);
        assert_eq!(schedule(1, 0.0, None, LONG), Some(Duration::ZERO));
        assert_eq!(schedule(1, 0.5, None, LONG), Some(Duration::from_millis(100)));
    }

    #[test]
    fn a_server_that_asks_for_patience_gets_it_within_the_deadline() {
        let wish = Some(Duration::from_secs(7));
        assert_eq!(schedule(1, 0.3, wish, LONG), wish);
        assert_eq!(schedule(1, 0.3, wish, Duration::from_secs(7)), None);
        assert_eq!(schedule(1, 0.3, None, Duration::ZERO), None);
    }

    #[test]
    fn jitter_is_a_fraction() {
        for _ in 0..100 {
            assert!((0.0..1.0).contains(&jitter()));
        }
    }
}
