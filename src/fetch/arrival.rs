//! `Arrival`: one blob on its way into a file, hashed as it passes, read by others meanwhile.
//!
//! The bytes come in order, so a prefix is always resident; they are proved all at once, when the
//! last one has come and the digest matches. Whoever reads chooses how long to wait: until its
//! bytes are resident, or until the blob is proved. What the disk does not take is in `overflow.rs`;
//! who hashes it if a reader does, in `pledge.rs`.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::cache::{Cache, StreamLock};
use super::error::{Error, ErrorKind, Result};
use super::overflow::{Follower, Overflow};
use super::pledge::{Pledged, prove};
use super::proved::Proved;
use super::stamp::Stamp;
use super::whole_file::WholeFile;
use super::writing::{Kept, Writing};
use super::{Body, Deadline, Distrust, Source};
use crate::layout::Blob;
use crate::layout::range::ByteRange;

/// One request of a stream: from 4 MiB on, two to four requests saturate a 1 Gbit/s, 10 ms link.
const STREAM_REQUEST_BYTES: u64 = 4 << 20;

/// Requests of one stream at once. With [`STREAM_REQUEST_BYTES`] this bounds its memory: 12 MiB.
const STREAM_REQUESTS_IN_FLIGHT: usize = 3;

/// Pieces (mostly 300 KiB each) between the network and the thread that writes them.
const QUEUED_PIECES: usize = 8;

/// How far an arrival is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Bytes from the start that are in the file.
    pub resident: u64,
    /// Bytes that have come, also out of order: any growth means that the source is alive.
    pub arrived: u64,
    /// How often somebody who hashes it has shown that this gets on.
    pub signs: u64,
    /// Set once: proved, or failed.
    pub outcome: Option<Result<()>>,
}

/// What a reader waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// This many bytes from the start are resident (not proved).
    Resident(u64),
    /// The whole blob has its digest.
    Proved,
}

/// One blob on its way.
#[derive(Debug)]
pub struct Arrival {
    /// Which.
    pub blob: Blob,
    /// Where the bytes go, as far as they are kept.
    file: Option<Arc<File>>,
    /// Where the others are.
    overflow: Option<Arc<Overflow>>,
    /// What the file looked like when it was proved; a foreign one, when it was opened.
    proved_as: Arc<OnceLock<Stamp>>,
    progress: watch::Receiver<Progress>,
    origin: Origin,
    /// Since it was last asked for.
    is_used: AtomicBool,
    fetch: Option<AbortHandle>,
}

/// What has come stays in the part; what was to come is asked for no more.
impl Drop for Arrival {
    fn drop(&mut self) {
        if let Some(fetch) = &self.fetch {
            fetch.abort();
        }
    }
}

/// Where an arrival has its bytes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A source; the file is the cache's part.
    Source,
    /// The cache, where it was whole already.
    Cache,
    /// A file that is not ours.
    Layout,
}

impl Arrival {
    /// Starts bringing `blob` from `source` into the cache's part of it, as far as there is room.
    /// What a former stream left there is hashed, not fetched. `lock` is held as long as somebody
    /// writes to the part. Who gave `pledged` hashes what it reads of it.
    pub fn start(
        cache: Cache,
        lock: Option<StreamLock>,
        source: Arc<dyn Source>,
        blob: Blob,
        stall: Duration,
        pledged: Option<Pledged>,
    ) -> Arc<Self> {
        let kept = open_kept(&cache, lock, &blob);
        let file = kept.as_ref().map(|kept| kept.file.clone());
        let overflow = Overflow::new(blob, source.clone(), stall);
        let (sender, progress) = watch::channel(Progress::default());
        let sender = Arc::new(sender);
        let (pieces, queue) = mpsc::channel(QUEUED_PIECES);
        let start = kept.as_ref().map_or(0, |kept| kept.part.prefix().min(blob.size));
        let fetching =
            Fetching { source: source.clone(), blob, stall, progress: sender.clone(), pieces };
        let fetch = tokio::spawn(async move { fetching.run(start).await });
        let fetch_handle = Some(fetch.abort_handle());
        let proved_as = Arc::new(OnceLock::new());
        let writing = Writing {
            cache,
            blob,
            kept,
            overflow: overflow.clone(),
            proved_as: proved_as.clone(),
            progress: sender.clone(),
        };
        tokio::spawn(async move {
            let written = writing.run(start, queue, pledged).await;
            let fetched = fetch.await.unwrap_or_else(|e| Err(crashed(&e)));
            // A failed fetch makes the writer see too few bytes, and a failed writer makes the fetch
            // find nobody to give them to: the cause comes first.
            let outcome = match (fetched, written) {
                (_, Err(error)) if error.kind == ErrorKind::Local => Err(error),
                (Err(ended), Err(error))
                    if ended.kind == ErrorKind::Local
                        && error.kind == ErrorKind::DigestMismatch =>
                {
                    // The writer ended first: the disk gave back other bytes than it took.
                    Err(Error { may_differ: true, ..error })
                }
                (Err(error), _) => Err(error),
                (Ok(()), Err(error)) if error.kind == ErrorKind::DigestMismatch => {
                    // What an earlier stream left may be what is wrong: then nobody is to blame.
                    let whole = ByteRange::new(0, blob.size);
                    let may_differ = start > 0 || source.distrust(&blob, whole, Distrust::Wrong);
                    Err(Error { may_differ, ..error.context(source.name()) })
                }
                (Ok(()), written) => written,
            };
            sender.send_modify(|p| p.outcome = Some(outcome));
        });
        let (overflow, origin, fetch) = (Some(overflow), Origin::Source, fetch_handle);
        let is_used = AtomicBool::default();
        Arc::new(Arrival { blob, file, overflow, proved_as, progress, origin, is_used, fetch })
    }

    /// Starts hashing a file that is whole already: the same waiting, no copy. What was right when
    /// it was written is proved again, once a mount: disks forget. Who gave `pledged` hashes it.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn start_local(
        blob: Blob,
        file: File,
        origin: Origin,
        pledged: Option<Pledged>,
    ) -> Result<Arc<Self>> {
        let stamp = match origin {
            Origin::Layout => Stamp::of(&file)?,
            Origin::Cache | Origin::Source => Stamp::of_ours(&file)?,
        };
        let (file, proved_as) = (Arc::new(file), Arc::new(OnceLock::from(stamp)));
        let (sender, progress) = watch::channel(Progress::default());
        let (hashed, sender) = (file.clone(), Arc::new(sender));
        tokio::spawn(async move {
            let told = {
                let sender = sender.clone();
                move |at| {
                    sender.send_modify(|p| {
                        p.resident = p.resident.max(at);
                        p.signs += 1;
                    });
                }
            };
            if pledged.is_some() {
                // Nobody else is ahead of who reads it.
                told(blob.size);
            }
            // Another attempt has the bytes from elsewhere: see `Store`.
            let outcome = prove(pledged, hashed, blob, told).await.map_err(|error| Error {
                may_differ: error.kind == ErrorKind::DigestMismatch,
                ..error
            });
            sender.send_modify(|p| p.outcome = Some(outcome));
        });
        let (file, overflow, is_used) = (Some(file), None, AtomicBool::default());
        let fetch = None;
        Ok(Arc::new(Arrival { blob, file, overflow, proved_as, progress, origin, is_used, fetch }))
    }

    /// Where the bytes come from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Nobody wrote to the file since it was proved (as far as its times tell); a foreign one, since
    /// it was opened.
    pub fn is_unchanged(&self) -> bool {
        // Without a file every piece is checked when it is read.
        let Some(file) = &self.file else { return true };
        // Not proved yet: it is being written.
        self.proved_as.get().is_none_or(|seen| seen.is_still_of(file))
    }

    /// The file, if all of the blob is in it, and proved.
    pub fn whole_file(&self) -> Option<WholeFile> {
        let is_proved = matches!(self.progress.borrow().outcome, Some(Ok(())));
        if !is_proved || self.overflow().is_some() {
            return None;
        }
        let (file, stamp) = (self.file.clone()?, *self.proved_as.get()?);
        self.is_used.store(true, Ordering::Relaxed);
        stamp.is_still_of(&file).then(|| WholeFile::new(self.blob, file, stamp))
    }

    /// Whoever brought the blob has gone without a word.
    pub fn is_abandoned(&self) -> bool {
        self.progress.has_changed().is_err() && self.progress.borrow().outcome.is_none()
    }

    /// Bytes are missing in the file: reading them can take a request.
    pub(super) fn overflow(&self) -> Option<&Arc<Overflow>> {
        self.overflow.as_ref().filter(|overflow| overflow.is_on())
    }

    /// Somebody has removed the file: it takes room as long as it is open. One that was read since
    /// the last call is noted as used.
    pub fn is_evicted(&self) -> bool {
        let Some(file) = self.file.as_ref().filter(|_| self.origin != Origin::Layout) else {
            return false;
        };
        if self.is_used.swap(false, Ordering::Relaxed) {
            super::cache::note_used(file);
        }
        let Some(meta) = file.metadata().ok().filter(|meta| meta.nlink() == 0) else {
            return false;
        };
        // As long as it is too short, nobody has made a blob of it that others may be reading.
        if self.overflow().is_some() && meta.len() < self.blob.size {
            // Its digests of pieces are worth a whole stream: only the bytes go.
            let _ = file.set_len(0);
            return false;
        }
        true
    }

    /// As [`Arrival::read_proved`], if all bytes are in the file.
    pub fn read_proved_now(&self, range: ByteRange) -> Option<Result<Proved>> {
        self.overflow().is_none().then(|| self.read_proved(range))
    }

    /// Bytes of the blob, once it is proved. What the cache could not keep is fetched again: not
    /// for a thread of the runtime.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`]: it is not proved, or somebody wrote to its file since; they
    /// cannot be had again.
    pub fn read_proved(&self, range: ByteRange) -> Result<Proved> {
        self.is_used.store(true, Ordering::Relaxed);
        let is_proved = matches!(self.progress.borrow().outcome, Some(Ok(())));
        let bytes = self.read_unproved(range);
        if !is_proved || !self.is_unchanged() {
            let message =
                format!("blob {}: its file was changed while it was read", self.blob.digest);
            return Err(Error::new(ErrorKind::DigestMismatch, message));
        }
        Ok(Proved::vouch(bytes?))
    }

    /// Bytes of the blob that have come. Nothing is known of them. As [`Arrival::read_proved`], not
    /// for a thread of the runtime.
    ///
    /// # Errors
    /// Local trouble; what was not kept cannot be had again.
    pub fn read_unproved(&self, range: ByteRange) -> Result<Bytes> {
        match (self.overflow(), &self.file) {
            (Some(overflow), file) => overflow.read(file.as_deref(), range),
            (None, Some(file)) => Ok(super::cache::read_exact_at(file, range)?.into()),
            (None, None) => Ok(Bytes::new()),
        }
    }

    /// Announces that the whole blob is going to be read, in order, as it comes.
    pub fn follow(&self) -> Option<Follower> {
        self.overflow.as_ref().map(Overflow::follow)
    }

    /// How far it is now.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits until `until` is true. Every byte that arrives renews the deadline, and every sign
    /// that what has come is being hashed.
    ///
    /// # Errors
    /// Why the blob will not come, or [`ErrorKind::DeadlinePassed`].
    pub async fn wait(&self, until: Until, mut deadline: Deadline) -> Result<()> {
        let mut progress = self.progress.clone();
        let mut seen = (0, 0);
        loop {
            let changed = {
                let now = progress.borrow_and_update();
                if let Some(outcome) = &now.outcome {
                    return outcome.clone();
                }
                if let Until::Resident(bytes) = until
                    && now.resident >= bytes
                {
                    return Ok(());
                }
                std::mem::replace(&mut seen, (now.arrived, now.signs)) != seen
            };
            if changed {
                deadline = deadline.renewed();
            }
            let at = tokio::time::Instant::from_std(deadline.at());
            match tokio::time::timeout_at(at, progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::new(ErrorKind::Network, "the stream was dropped")),
                Err(_) => return Err(self.stalled(seen.0, deadline)),
            }
        }
    }

    fn stalled(&self, arrived: u64, deadline: Deadline) -> Error {
        let message = format!(
            "blob {}: no byte arrived for {:?} (after {arrived} of {} bytes)",
            self.blob.digest,
            deadline.stall(),
            self.blob.size
        );
        Error::new(ErrorKind::DeadlinePassed, message)
    }
}

/// The part to write to; `None` when the cache cannot be written to.
fn open_kept(cache: &Cache, lock: Option<StreamLock>, blob: &Blob) -> Option<Kept> {
    let opened = cache.open_part(blob).and_then(|part| {
        let file = part.file.try_clone().map_err(|e| Error::local("cannot open a part", &e))?;
        Ok(Kept { part, file: Arc::new(file), _lock: lock })
    });
    opened.inspect_err(|error| cache.tell_trouble(error)).ok()
}

/// Does `work` on a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(crashed(&e)))
}

fn crashed(error: &tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Local, format!("a stream's task ended early: {error}"))
}

/// The network's side: requests in order, a few ahead.
struct Fetching {
    source: Arc<dyn Source>,
    blob: Blob,
    stall: Duration,
    progress: Arc<watch::Sender<Progress>>,
    pieces: mpsc::Sender<Bytes>,
}

/// A request that runs ahead of its turn; dropping it ends it.
struct Ahead(JoinHandle<Result<Vec<Bytes>>>);

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Fetching {
    async fn run(&self, start: u64) -> Result<()> {
        if start >= self.blob.size {
            return Ok(());
        }
        let first = self.request_at(start);
        let mut body = self.read(first).await?;
        if body.range.end > first.end {
            // The source ignores ranges and sends everything: then one body is all we need.
            return self.forward(&mut body, ByteRange::new(start, self.blob.size)).await;
        }
        let mut next = first.end;
        let mut ahead = VecDeque::new();
        self.run_ahead(&mut ahead, &mut next);
        self.forward(&mut body, first).await?;
        while let Some(mut request) = ahead.pop_front() {
            self.run_ahead(&mut ahead, &mut next);
            let pieces = (&mut request.0).await.map_err(|e| crashed(&e))??;
            for piece in pieces {
                self.send(piece).await?;
            }
        }
        Ok(())
    }

    fn request_at(&self, start: u64) -> ByteRange {
        ByteRange::new(start, start.saturating_add(STREAM_REQUEST_BYTES).min(self.blob.size))
    }

    async fn read(&self, range: ByteRange) -> Result<Body> {
        self.source.read(&self.blob, range, Deadline::after(self.stall)).await
    }

    fn run_ahead(&self, ahead: &mut VecDeque<Ahead>, next: &mut u64) {
        while ahead.len() < STREAM_REQUESTS_IN_FLIGHT - 1 && *next < self.blob.size {
            let range = self.request_at(*next);
            *next = range.end;
            let (source, blob, stall) = (self.source.clone(), self.blob, self.stall);
            let progress = self.progress.clone();
            ahead.push_back(Ahead(tokio::spawn(async move {
                let mut body = source.read(&blob, range, Deadline::after(stall)).await?;
                let mut pieces = Vec::new();
                crop(&mut body, range, |piece| {
                    progress.send_modify(|p| p.arrived += piece.len() as u64);
                    pieces.push(piece);
                    std::future::ready(Ok(()))
                })
                .await?;
                Ok(pieces)
            })));
        }
    }

    async fn forward(&self, body: &mut Body, wanted: ByteRange) -> Result<()> {
        crop(body, wanted, |piece| {
            self.progress.send_modify(|p| p.arrived += piece.len() as u64);
            self.send(piece)
        })
        .await
    }

    async fn send(&self, piece: Bytes) -> Result<()> {
        let gone = |_| Error::new(ErrorKind::Local, "the writer of a stream has ended");
        self.pieces.send(piece).await.map_err(gone)
    }
}

/// Hands the bytes of `wanted` out of `body`, which may be wider, to `take`.
///
/// # Errors
/// What ended the body; a body that ends before `wanted` does.
pub(super) async fn crop<F>(
    body: &mut Body,
    wanted: ByteRange,
    mut take: impl FnMut(Bytes) -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut at = body.range.start;
    while at < wanted.end {
        let Some(chunk) = body.next().await? else {
            let message = format!("body ended at byte {at}, expected {}", wanted.end);
            return Err(Error::new(ErrorKind::Network, message));
        };
        let chunk_range = ByteRange::at(at, chunk.len() as u64);
        let part = chunk_range.intersection(&wanted);
        if !part.is_empty() {
            let slice = (part.start - at) as usize..(part.end - at) as usize;
            take(chunk.slice(slice)).await?;
        }
        at = chunk_range.end;
    }
    Ok(())
}
