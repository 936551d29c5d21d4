//! `Arrival`: one blob on its way into a file, hashed as it passes, read by others meanwhile.
//!
//! The bytes come in order, so a prefix is always resident; they are proved all at once, when the
//! last one has come and the digest matches. Whoever reads chooses how long to wait: until its
//! bytes are resident, or until the blob is proved.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::cache::{Cache, Part, StreamLock};
use super::error::{Error, ErrorKind, Result};
use super::proved::Proved;
use super::{Body, Deadline, Distrust, Source};
use crate::layout::Blob;
use crate::layout::digest::Hasher;
use crate::layout::range::ByteRange;

/// One request of a stream: from 4 MiB on, two to four requests saturate a 1 Gbit/s, 10 ms link.
const STREAM_REQUEST_BYTES: u64 = 4 << 20;

/// Requests of one stream at once. With [`STREAM_REQUEST_BYTES`] this bounds its memory: 12 MiB.
const STREAM_REQUESTS_IN_FLIGHT: usize = 3;

/// Pieces (16 to 256 KiB each) between the network and the hashing thread.
const QUEUED_PIECES: usize = 32;

/// Bytes of a stream after which its residency map gets a line, for whoever resumes it: a line costs
/// some microseconds, a byte that comes twice costs more.
const MAP_EVERY_BYTES: u64 = 1 << 20;

/// Bytes of a resumed prefix after which others are told that its hashing gets on: 40 ms of work.
const TOUCH_EVERY_BYTES: u64 = 64 << 20;

/// One read of a local blob while it is hashed.
const HASH_READ_BYTES: u64 = 1 << 20;

/// How far an arrival is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Bytes from the start that are in the file.
    pub resident: u64,
    /// Bytes that have come, also out of order: any growth means that the source is alive.
    pub arrived: u64,
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
    /// Where the bytes go; readable up to [`Progress::resident`].
    pub(super) file: Arc<File>,
    /// What the file looked like when it was proved; a foreign one, when it was opened.
    proved_as: Arc<OnceLock<Stamp>>,
    progress: watch::Receiver<Progress>,
    origin: Origin,
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

/// Changes whenever somebody writes to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of an open file.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn of(file: &File) -> Result<Self> {
        let meta = file.metadata().map_err(|e| Error::local("cannot stat a local blob", &e))?;
        Ok(Stamp {
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Of a file in the cache, where we ourselves note uses and rename: only what writing changes.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn of_ours(file: &File) -> Result<Self> {
        Ok(Stamp { changed: (0, 0), ..Stamp::of(file)? })
    }
}

impl Arrival {
    /// Starts bringing `blob` from `source` into the cache's part of it. What a former stream left
    /// there is hashed, not fetched. `lock` is held until the end.
    ///
    /// # Errors
    /// Local trouble. What happens to the bytes later is the outcome.
    pub fn start(
        cache: Cache,
        lock: StreamLock,
        source: Arc<dyn Source>,
        blob: Blob,
        stall: Duration,
    ) -> Result<Arc<Self>> {
        let part = cache.open_part(&blob)?;
        let file = part.file.try_clone().map_err(|e| Error::local("cannot open a part", &e))?;
        let file = Arc::new(file);
        let (sender, progress) = watch::channel(Progress::default());
        let sender = Arc::new(sender);
        let (pieces, queue) = mpsc::channel(QUEUED_PIECES);
        let start = part.prefix().min(blob.size);
        let fetching =
            Fetching { source: source.clone(), blob, stall, progress: sender.clone(), pieces };
        let fetch = tokio::spawn(async move { fetching.run(start).await });
        let fetch_handle = Some(fetch.abort_handle());
        let proved_as = Arc::new(OnceLock::new());
        let writing = Writing {
            cache,
            blob,
            part,
            file: file.clone(),
            proved_as: proved_as.clone(),
            progress: sender.clone(),
        };
        let write = tokio::task::spawn_blocking(move || writing.run(start, queue));
        tokio::spawn(async move {
            let written = write.await.unwrap_or_else(|e| Err(crashed(&e)));
            let fetched = fetch.await.unwrap_or_else(|e| Err(crashed(&e)));
            drop(lock);
            // A failed fetch makes the writer see too few bytes, and a failed writer makes the fetch
            // find nobody to give them to: the cause comes first.
            let outcome = match (fetched, written) {
                (_, Err(error)) if error.kind == ErrorKind::Local => Err(error),
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
        let origin = Origin::Source;
        Ok(Arc::new(Arrival { blob, file, proved_as, progress, origin, fetch: fetch_handle }))
    }

    /// Starts hashing a file that is whole already: the same waiting, no copy. What was right when
    /// it was written is proved again, once a mount: disks forget.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn start_local(blob: Blob, file: File, origin: Origin) -> Result<Arc<Self>> {
        let stamp = match origin {
            Origin::Layout => Stamp::of(&file)?,
            Origin::Cache | Origin::Source => Stamp::of_ours(&file)?,
        };
        let (file, proved_as) = (Arc::new(file), Arc::new(OnceLock::from(stamp)));
        let (sender, progress) = watch::channel(Progress::default());
        let hashed = file.clone();
        tokio::task::spawn_blocking(move || {
            // Another attempt has the bytes from elsewhere: see `Store`.
            let outcome = hash_file(&hashed, blob, &sender).map_err(|error| Error {
                may_differ: error.kind == ErrorKind::DigestMismatch,
                ..error
            });
            sender.send_modify(|p| p.outcome = Some(outcome));
        });
        Ok(Arc::new(Arrival { blob, file, proved_as, progress, origin, fetch: None }))
    }

    /// Where the bytes come from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Nobody wrote to the file since it was proved (as far as its times tell); a foreign one, since
    /// it was opened.
    pub fn is_unchanged(&self) -> bool {
        let now = match self.origin {
            Origin::Layout => Stamp::of(&self.file),
            Origin::Source | Origin::Cache => Stamp::of_ours(&self.file),
        };
        // Not proved yet: it is being written.
        self.proved_as.get().is_none_or(|seen| now.is_ok_and(|now| now == *seen))
    }

    /// Whoever brought the blob has gone without a word.
    pub fn is_abandoned(&self) -> bool {
        self.progress.has_changed().is_err() && self.progress.borrow().outcome.is_none()
    }

    /// Bytes of the blob, once it is proved.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`]: it is not proved, or somebody wrote to its file since.
    pub fn read_proved(&self, range: ByteRange) -> Result<Proved> {
        let is_proved = matches!(self.progress.borrow().outcome, Some(Ok(())));
        let bytes = super::cache::read_exact_at(&self.file, range);
        if !is_proved || !self.is_unchanged() {
            let message =
                format!("blob {}: its file was changed while it was read", self.blob.digest);
            return Err(Error::new(ErrorKind::DigestMismatch, message));
        }
        Ok(Proved::vouch(bytes?.into()))
    }

    /// Bytes of the blob that are resident. Nothing is known of them.
    ///
    /// # Errors
    /// Local trouble.
    pub fn read_unproved(&self, range: ByteRange) -> Result<Bytes> {
        Ok(super::cache::read_exact_at(&self.file, range)?.into())
    }

    /// How far it is now.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits until `until` is true. Every byte that arrives renews the deadline.
    ///
    /// # Errors
    /// Why the blob will not come, or [`ErrorKind::DeadlinePassed`].
    pub async fn wait(&self, until: Until, mut deadline: Deadline) -> Result<()> {
        let mut progress = self.progress.clone();
        let mut arrived = 0;
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
                let changed = now.arrived > arrived;
                arrived = now.arrived;
                changed
            };
            if changed {
                deadline = deadline.renewed();
            }
            let at = tokio::time::Instant::from_std(deadline.at());
            match tokio::time::timeout_at(at, progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Error::new(ErrorKind::Network, "the stream was dropped")),
                Err(_) => return Err(self.stalled(arrived, deadline)),
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

fn crashed(error: &tokio::task::JoinError) -> Error {
    Error::new(ErrorKind::Local, format!("a stream's task ended early: {error}"))
}

fn hash_file(file: &File, blob: Blob, progress: &watch::Sender<Progress>) -> Result<()> {
    let mut hasher = blob.digest.hasher();
    let mut at = 0;
    while at < blob.size {
        let range = ByteRange::at(at, HASH_READ_BYTES.min(blob.size - at));
        // A disk that cannot read its bytes has lost them: they are replaced as wrong ones are.
        let bytes = super::cache::read_exact_at(file, range).map_err(|e| {
            Error::new(ErrorKind::DigestMismatch, e.message)
                .context(format!("blob {}", blob.digest))
        })?;
        hasher.update(&bytes);
        at = range.end;
        progress.send_modify(|p| (p.resident, p.arrived) = (at, at));
    }
    Ok(blob.digest.compare(hasher)?)
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

/// The disk's side: hash, write, publish.
struct Writing {
    cache: Cache,
    blob: Blob,
    part: Part,
    file: Arc<File>,
    proved_as: Arc<OnceLock<Stamp>>,
    progress: Arc<watch::Sender<Progress>>,
}

impl Writing {
    fn run(mut self, start: u64, mut pieces: mpsc::Receiver<Bytes>) -> Result<()> {
        let mut hasher = self.blob.digest.hasher();
        self.hash_prefix(&mut hasher, start)?;
        let mut at = start;
        let mut mapped = start;
        while let Some(piece) = pieces.blocking_recv() {
            hasher.update(&piece);
            self.file
                .write_all_at(&piece, at)
                .map_err(|e| Error::local("cannot write to the cache", &e))?;
            at += piece.len() as u64;
            self.progress.send_modify(|p| p.resident = at);
            if at - mapped >= MAP_EVERY_BYTES || at == self.blob.size {
                self.part.mark_resident(ByteRange::new(0, at))?;
                mapped = at;
            }
        }
        if at != self.blob.size {
            self.part.mark_resident(ByteRange::new(0, at))?;
            let message =
                format!("blob {}: got {at} of {} bytes", self.blob.digest, self.blob.size);
            return Err(Error::new(ErrorKind::Network, message));
        }
        if let Err(error) = self.blob.digest.compare(hasher) {
            self.cache.destroy_part(&self.blob);
            return Err(error.into());
        }
        let _ = self.proved_as.set(Stamp::of_ours(&self.file)?);
        self.cache.publish_blob(&self.blob, &self.file)
    }

    fn hash_prefix(&self, hasher: &mut Hasher, start: u64) -> Result<()> {
        let mut at = 0;
        while at < start {
            let range = ByteRange::at(at, HASH_READ_BYTES.min(start - at));
            hasher.update(&super::cache::read_exact_at(&self.file, range)?);
            at = range.end;
            if at % TOUCH_EVERY_BYTES == 0 {
                // Another process that waits for this stream sees that it gets on.
                let _ = self.file.set_modified(std::time::SystemTime::now());
            }
        }
        self.progress.send_modify(|p| (p.resident, p.arrived) = (start, start));
        Ok(())
    }
}
