//! The order in which blobs are looked for: local layout, cache, registry. Nothing else.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use lru::LruCache;
use rustix::fs::OFlags;
use tokio::sync::Semaphore;

use super::arrival::{Arrival, Origin, Progress, Until};
use super::cache::{Cache, StreamLock};
use super::error::{Error, ErrorKind, Result};
use super::flight::Flights;
use super::line::{Behind, Line};
use super::pledge::Pledged;
use super::proved::Proved;
use super::spans::Spans;
use super::tables::Known;
use super::uses::Uses;
use super::{Deadline, Source, fresh};
use crate::layout::range::ByteRange;
use crate::layout::{Blob, Digest};

/// A stream that nobody has read for so long ends; what has come is kept. A reader between two
/// reads, or one that opens the same blob again, takes less.
const UNREAD_MAX: Duration = Duration::from_secs(5);

/// How often that is looked at.
const UNREAD_LOOK: Duration = Duration::from_millis(500);

/// How often a process that waits for another one's stream looks again.
const OTHER_STREAM_POLL: Duration = Duration::from_millis(50);

/// So many bytes or more that came wrong, and that nobody is left to ask for, are not
/// fetched again at once: the kernel repeats a failed read page by page, and programs go on to the
/// next file. (Fewer cost less than the wait.)
const DEAR_BYTES: u64 = 1 << 20;

/// How long they are not. (Longer if fetching took longer.)
const DISPROVED_FOR_MIN: Duration = Duration::from_secs(1);

/// Failed proofs remembered: more than a reader meets in that time.
const DISPROVED_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not zero");

/// The longest time without a byte of a blob that nobody waits for. Its requests have deadlines of
/// their own, from when they are made; this is for the time that readers go first.
const BEHIND_STALL_MAX: Duration = Duration::from_secs(3600);

/// Attempts to bring one blob whose bytes are wrong: one for each source that anybody names, and
/// for what may lie around locally.
pub const ATTEMPTS_MAX: u32 = 16;

/// How a store is put together.
pub struct Config {
    /// The cache that everything fetched goes to.
    pub cache: Cache,
    /// The image layout directory whose own blobs are preferred.
    pub layout_dir: Option<PathBuf>,
    /// Where missing bytes come from; `None`: nowhere (`--offline`, or nothing recorded).
    pub source: Option<Arc<dyn Source>>,
    /// Why there is no source, for the error.
    pub no_source: Error,
    /// The longest wait without a byte.
    pub stall: Duration,
    /// Bytes of decoded spans kept in memory.
    pub spans_bytes_max: usize,
    /// What first passes decode is there for a while: see [`Fresh`](fresh::Fresh).
    pub keeps_fresh: bool,
    /// Layers are not read by indexes that are neither ours nor in the layers themselves.
    pub own_indexes_only: bool,
}

/// Whoever reads an arrival holds it: one that only this map holds is one that nobody reads.
type Arrivals = HashMap<Digest, Arc<Arrival>>;

/// Blobs by digest, wherever they are.
pub struct Store {
    config: Config,
    /// Decoded spans of all layers.
    pub spans: Spans,
    /// What readers needed.
    pub uses: Uses,
    /// Indexes that were looked at.
    pub(super) known: Known,
    /// Readers, before whom nobody asks who fetches ahead of them.
    pub line: Arc<Line>,
    /// Bytes of blobs, as stored, that first passes have decoded so far.
    pub passed: AtomicU64,
    /// As many spans as there are processors are decoded ahead of readers at a time, in the order
    /// in which they are going to be read.
    pub(super) decoding_ahead: Semaphore,
    /// For what first passes have decoded.
    fresh: fresh::Room,
    readers: AtomicU64,
    arrivals: Arc<Mutex<Arrivals>>,
    flights: Flights<Digest>,
    damaged_locally: Mutex<HashSet<Digest>>,
    /// What was found wrong, from which byte on: until when it stays so, and how it was.
    disproved: Mutex<LruCache<(Digest, u64), (Instant, Error)>>,
}

impl Store {
    /// A store over `config`.
    pub fn new(config: Config) -> Self {
        Store {
            spans: Spans::new(config.spans_bytes_max),
            uses: Uses::default(),
            known: Known::default(),
            line: Arc::default(),
            passed: AtomicU64::new(0),
            decoding_ahead: Semaphore::new(available_parallelism().map_or(1, usize::from)),
            fresh: fresh::Room::of(&config.cache),
            readers: AtomicU64::new(0),
            config,
            arrivals: Arc::default(),
            flights: Flights::default(),
            damaged_locally: Mutex::default(),
            disproved: Mutex::new(LruCache::new(DISPROVED_MAX)),
        }
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.config.cache
    }

    /// Whether an index may be used that is neither ours nor in its layer itself.
    pub fn uses_indexes_of_others(&self) -> bool {
        !self.config.own_indexes_only
    }

    /// A number that no other reader of this store has.
    pub fn new_reader(&self) -> u64 {
        self.readers.fetch_add(1, Ordering::Relaxed)
    }

    /// Where what a first pass of this store decodes may go for a while.
    pub(super) fn fresh_room(&self) -> Option<fresh::Room> {
        self.config.keeps_fresh.then(|| self.fresh.clone())
    }

    /// A processor is left beside one for a reader: not all of them decode ahead of readers.
    pub fn has_spare(&self) -> bool {
        self.decoding_ahead.available_permits() > 1
    }

    /// The longest wait without a byte, from now.
    pub fn deadline(&self) -> Deadline {
        Deadline::after(self.config.stall)
    }

    /// Where missing bytes come from.
    ///
    /// # Errors
    /// Why there is nowhere to ask.
    pub fn source(&self) -> Result<&Arc<dyn Source>> {
        self.config.source.as_ref().ok_or_else(|| self.config.no_source.clone())
    }

    /// The blob on its way, or here. Starts whatever is needed; a former failure is tried again. May
    /// take longer than the deadline while another process gets on with it.
    ///
    /// # Errors
    /// The blob is nowhere, or local trouble.
    pub async fn arrival(&self, blob: &Blob, deadline: Deadline) -> Result<Arc<Arrival>> {
        self.line.ask_for(&blob.digest);
        self.arrival_from(blob, deadline, Arc::clone, None).await
    }

    /// The same, for somebody who is going to hash all of it. Not counted on if it is begun.
    ///
    /// # Errors
    /// As [`Store::arrival`].
    pub async fn arrival_hashed_by(
        &self,
        pledged: Pledged,
        blob: &Blob,
        deadline: Deadline,
    ) -> Result<Arc<Arrival>> {
        self.line.ask_for(&blob.digest);
        self.arrival_from(blob, deadline, Arc::clone, Some(pledged)).await
    }

    /// Brings the whole blob behind the readers' backs: none of them waits for its sake.
    ///
    /// # Errors
    /// As [`Store::arrival`], and [`Arrival::wait`].
    pub async fn bring_behind(&self, blob: &Blob) -> Result<()> {
        let behind = |source: &Arc<dyn Source>| -> Arc<dyn Source> {
            Arc::new(Behind::new(source.clone(), self.line.clone()))
        };
        let arrival = self.arrival_from(blob, self.deadline(), behind, None).await?;
        arrival.wait(Until::Proved, Deadline::after(BEHIND_STALL_MAX)).await
    }

    async fn arrival_from(
        &self,
        blob: &Blob,
        deadline: Deadline,
        from: impl FnOnce(&Arc<dyn Source>) -> Arc<dyn Source>,
        pledged: Option<Pledged>,
    ) -> Result<Arc<Arrival>> {
        if let Some(arrival) = self.running(blob) {
            return Ok(arrival);
        }
        let turn = self.flights.enter(blob.digest).await?;
        if let Some(arrival) = self.running(blob) {
            return Ok(arrival);
        }
        let started = self.start(blob, deadline, from, pledged).await;
        if let Ok(arrival) = &started {
            let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            arrivals.insert(blob.digest, arrival.clone());
            if arrival.origin() == Origin::Source {
                tokio::spawn(end_unread(Arc::downgrade(&self.arrivals), blob.digest));
            }
        }
        turn.end(started)
    }

    /// The whole blob, proved.
    ///
    /// # Errors
    /// As [`Store::arrival`] and [`Arrival::wait`]. Wrong bytes are asked for again, as long as
    /// others may come: from another source, or in place of what was found locally.
    pub async fn proved(&self, blob: &Blob, mut deadline: Deadline) -> Result<Arc<Arrival>> {
        let began = Instant::now();
        self.just_disproved(blob, whole(blob))?;
        for _ in 1..ATTEMPTS_MAX {
            let arrival = self.arrival(blob, deadline).await?;
            match arrival.wait(Until::Proved, deadline.renewed()).await {
                Err(error) if error.may_differ => {
                    tracing::warn!(digest = %blob.digest, %error, "trying a blob once more");
                    deadline = deadline.renewed();
                }
                Err(error) => return Err(self.disproved(blob, whole(blob), began, error)),
                Ok(()) => return Ok(arrival),
            }
        }
        let message = format!("blob {}: other wrong bytes at each attempt", blob.digest);
        Err(self.disproved(
            blob,
            whole(blob),
            began,
            Error::new(ErrorKind::DigestMismatch, message),
        ))
    }

    /// Bytes of the whole, proved blob. Somebody may write to its file while we read: then it is
    /// proved anew, once.
    ///
    /// # Errors
    /// As [`Store::proved`].
    pub async fn read_proved(
        &self,
        blob: &Blob,
        range: ByteRange,
        deadline: Deadline,
    ) -> Result<Proved> {
        let read = |arrival: Arc<Arrival>| async move {
            tokio::task::spawn_blocking(move || arrival.read_proved(range))
                .await
                .map_err(|e| Error::new(ErrorKind::Local, format!("a read ended early: {e}")))?
        };
        match read(self.proved(blob, deadline).await?).await {
            Err(error) if error.kind == ErrorKind::DigestMismatch => {
                tracing::warn!(%error, "proving a blob anew");
                read(self.proved(blob, deadline.renewed()).await?).await
            }
            read => read,
        }
    }

    /// `range` of `blob` was found wrong a moment ago, and would be again.
    ///
    /// # Errors
    /// How it was wrong.
    pub fn just_disproved(&self, blob: &Blob, range: ByteRange) -> Result<()> {
        let mut disproved = self.disproved.lock().unwrap_or_else(PoisonError::into_inner);
        match disproved.get(&(blob.digest, range.start)) {
            Some((until, error)) if Instant::now() < *until => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Remembers that `range` of `blob` is wrong, if that is what `error` is, which is given back.
    /// `began`: when finding out did.
    pub fn disproved(&self, blob: &Blob, range: ByteRange, began: Instant, error: Error) -> Error {
        if error.kind == ErrorKind::DigestMismatch && range.len() >= DEAR_BYTES {
            let until = Instant::now() + began.elapsed().max(DISPROVED_FOR_MIN);
            let mut disproved = self.disproved.lock().unwrap_or_else(PoisonError::into_inner);
            disproved.put((blob.digest, range.start), (until, error.clone()));
        }
        error
    }

    /// The whole blob if this store has proved it (or found it proved in the cache) before.
    pub fn proved_now(&self, blob: &Blob) -> Option<Arc<Arrival>> {
        let arrival = self.running(blob)?;
        matches!(arrival.progress().outcome, Some(Ok(()))).then_some(arrival)
    }

    /// Bytes of a blob that this store has brought found no place in the cache.
    pub fn is_partly_kept(&self, blob: &Blob) -> bool {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.get(&blob.digest).is_some_and(|a| a.overflow().is_some())
    }

    /// How far a blob is that this store is bringing, or has brought.
    pub fn progress(&self, blob: &Blob) -> Option<Progress> {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.get(&blob.digest).map(|a| a.progress())
    }

    /// The whole blob's file if it is local: no request, no wait, and no proof. `true`: it is the
    /// cache's.
    ///
    /// # Errors
    /// Local trouble.
    pub fn open_local(&self, blob: &Blob) -> Result<Option<(File, bool)>> {
        match self.open_layout_blob(blob)? {
            Some(file) => Ok(Some((file, false))),
            None => Ok(self.cache().open_blob(blob).map(|file| (file, true))),
        }
    }

    /// What is let go of can be had again.
    pub fn may_release(&self) -> bool {
        self.cache().has_limit() && self.config.source.is_some()
    }

    /// Lets go of blobs whose files the limit has removed: they take room as long as they are open.
    /// Who is reading one keeps it a little longer; the next read fetches it anew.
    pub fn release_evicted(&self) {
        if self.may_release() {
            let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            arrivals.retain(|_, arrival| {
                let is_proved = matches!(arrival.progress().outcome, Some(Ok(())));
                !(is_proved && arrival.is_evicted())
            });
        }
    }

    /// An arrival that runs or has succeeded. A failed one is forgotten, and so is a file that
    /// somebody has changed since; a damaged file of the layout directory is not asked again.
    fn running(&self, blob: &Blob) -> Option<Arc<Arrival>> {
        let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let arrival = arrivals.get(&blob.digest)?;
        let failed = match arrival.progress().outcome {
            Some(Err(error)) => {
                if arrival.origin() != Origin::Source {
                    let digest = blob.digest;
                    tracing::warn!(%digest, %error, "a local blob is damaged, and is not used");
                }
                Some(error.kind)
            }
            _ => None,
        };
        if failed.is_none() && !arrival.is_abandoned() && arrival.is_unchanged() {
            return Some(arrival.clone());
        }
        if failed == Some(ErrorKind::DigestMismatch) {
            match arrival.origin() {
                Origin::Layout => {
                    let damaged = self.damaged_locally.lock();
                    damaged.unwrap_or_else(PoisonError::into_inner).insert(blob.digest);
                }
                Origin::Cache => self.cache().remove_blob(blob),
                Origin::Source => {}
            }
        }
        arrivals.remove(&blob.digest);
        None
    }

    async fn start(
        &self,
        blob: &Blob,
        deadline: Deadline,
        from: impl FnOnce(&Arc<dyn Source>) -> Arc<dyn Source>,
        pledged: Option<Pledged>,
    ) -> Result<Arc<Arrival>> {
        if let Some(file) = self.open_layout_blob(blob)? {
            return Arrival::start_local(*blob, file, Origin::Layout, pledged);
        }
        if let Some(file) = self.cache().open_blob(blob) {
            return Arrival::start_local(*blob, file, Origin::Cache, pledged);
        }
        let source = self.source().map_err(|e| e.context(format!("blob {}", blob.digest)))?;
        match self.lock_stream(blob, deadline).await? {
            Ok(lock) => {
                let (cache, stall) = (self.cache().clone(), self.config.stall);
                Ok(Arrival::start(cache, lock, from(source), *blob, stall, pledged))
            }
            Err(file) => Arrival::start_local(*blob, file, Origin::Cache, pledged),
        }
    }

    /// The right to stream the blob, or the blob itself once another process has brought it. Waits
    /// for that process as long as it gets on. Without a lock: nobody can write there.
    async fn lock_stream(
        &self,
        blob: &Blob,
        mut deadline: Deadline,
    ) -> Result<std::result::Result<Option<StreamLock>, File>> {
        let mut seen = None;
        loop {
            let lock = match self.cache().try_lock(&blob.digest) {
                Ok(lock) => lock,
                Err(error) => {
                    self.cache().tell_trouble(&error);
                    return Ok(Ok(None));
                }
            };
            if let Some(lock) = lock {
                // Whoever held the lock may just have finished.
                return Ok(match self.cache().open_blob(blob) {
                    Some(file) => Err(file),
                    None => Ok(Some(lock)),
                });
            }
            let now = self.cache().part_state(blob);
            if now != seen {
                (seen, deadline) = (now, deadline.renewed());
            } else if deadline.passed() {
                let message = format!(
                    "blob {}: another process streams it, and has had no byte for {:?}",
                    blob.digest,
                    deadline.stall()
                );
                return Err(Error::new(ErrorKind::DeadlinePassed, message));
            }
            tokio::time::sleep(OTHER_STREAM_POLL).await;
        }
    }

    /// A blob that the layout directory has itself: a regular file of the right size. Whatever else
    /// stands there (a link, a FIFO, a file that we may not read) is named in the log, and the blob
    /// comes from elsewhere.
    fn open_layout_blob(&self, blob: &Blob) -> Result<Option<File>> {
        let Some(directory) = &self.config.layout_dir else { return Ok(None) };
        let damaged = self.damaged_locally.lock().unwrap_or_else(PoisonError::into_inner);
        if damaged.contains(&blob.digest) {
            return Ok(None);
        }
        drop(damaged);
        let path = super::layout_dir::blob_path(directory, &blob.digest);
        // A FIFO would be waited for without NONBLOCK.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let opened = File::options().read(true).custom_flags(flags).open(&path);
        match opened.and_then(|file| Ok((file.metadata()?, file))) {
            Ok((meta, file)) if meta.is_file() && meta.len() == blob.size => Ok(Some(file)),
            Ok((meta, _)) => {
                let (path, expected, actual) = (path.display(), blob.size, meta.len());
                tracing::warn!(%path, expected, actual, "ignoring what is no blob of this size");
                Ok(None)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "ignoring a local blob");
                Ok(None)
            }
        }
    }
}

fn whole(blob: &Blob) -> ByteRange {
    ByteRange::new(0, blob.size)
}

/// Ends a stream that its readers have left: a file that was closed after its first bytes, or whose
/// reader was killed.
async fn end_unread(arrivals: Weak<Mutex<Arrivals>>, digest: Digest) {
    let mut read_last = Instant::now();
    loop {
        tokio::time::sleep(UNREAD_LOOK).await;
        let Some(arrivals) = arrivals.upgrade() else { return };
        let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(arrival) = arrivals.get(&digest) else { return };
        let Progress { resident, outcome, .. } = arrival.progress();
        if outcome.is_some() {
            return;
        }
        if Arc::strong_count(arrival) > 1 {
            read_last = Instant::now();
        } else if read_last.elapsed() >= UNREAD_MAX {
            let size = arrival.blob.size;
            tracing::info!(%digest, resident, size, "a stream ends, because nobody reads it");
            arrivals.remove(&digest);
            return;
        }
    }
}
