//! First contact with an unindexed layer: one pass over its blob that proves it and indexes it.
//!
//! Three threads a layer, connected by bounded queues: the arrival fetches and writes the blob; this
//! module inflates and scans what is resident; a third thread makes the spans, hashes the blob and
//! the uncompressed tar and, for a layer that cannot seek, writes the tar to a decoded file. The
//! arrival has the blob's digest from there (`pledge.rs`), unless it hashed already when the pass
//! came. Nothing is published before both that digest and the DiffID were found right.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use bytes::Bytes;
use tokio::runtime::Handle;

use super::arrival::{Arrival, Until};
use super::cache::Cache;
use super::decoded::{Decoded, Summing, Sums};
use super::error::{Error, ErrorKind, Result};
use super::fresh::{self, Fresh};
use super::pledge::Pledge;
use super::room::Allowance;
use super::store::{self, Store};
use crate::layout::codec::Start;
use crate::layout::digest::Hasher;
use crate::layout::index::scan::{ScannedLayer, Scanner};
use crate::layout::index::spans::SpanBuilder;
use crate::layout::index::{LayerIndex, SPAN_DECODED_BYTES_MAX, is_seekable};
use crate::layout::range::ByteRange;
use crate::layout::tree::Layer;
use crate::layout::{Blob, Digest};

/// One read of the blob's file.
const READ_BYTES: u64 = 64 << 10;

/// Decoded bytes of a batch, or stored ones where few come out of them. A power of two: what is
/// written to a file in such pieces takes the kernel two thirds of the time. Five of a layer at most
/// are somewhere, and keep their memory until its pass has ended.
const BATCH_BYTES: usize = 256 << 10;

/// Batches that wait for the hashing thread. One more each is being filled and hashed.
const QUEUED_BATCHES: usize = 2;

/// Stored bytes that are decoded at a time as long as what comes out is held in memory.
const UNDECIDED_BYTES: usize = 4 << 10;

/// Most decoded bytes that are held in memory, seek point or not: a few stored bytes can be any
/// number of decoded ones. A file that is written in vain is removed.
const UNDECIDED_DECODED_BYTES_MAX: u64 = 2 * SPAN_DECODED_BYTES_MAX;

/// Whether the uncompressed layer is kept as a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Only if the layer cannot seek.
    WhatHelps,
    /// The same; and it is going to be read soon: see [`Fresh`].
    ToRead,
    /// In any case: a decoded file is what the caller is after.
    Decoded,
}

/// What a pass found.
pub struct Pass {
    /// The layer's index, saved in the cache already.
    pub index: LayerIndex,
    /// The uncompressed layer, if it was kept.
    pub decoded: Option<Decoded>,
    /// What it decoded, of a layer that can seek and is going to be read.
    pub fresh: Option<Fresh>,
}

/// Reads the whole of `layer` once; again when the bytes are wrong, and others may come.
///
/// # Errors
/// The blob cannot be had, is not what its digests say, or is not a layer.
pub async fn run(store: &Arc<Store>, layer: &Layer, keep: Keep) -> Result<Pass> {
    let mut attempts = 1;
    loop {
        match run_once(store, layer, keep).await {
            Err(error) if error.may_differ && attempts < store::ATTEMPTS_MAX => {
                tracing::warn!(layer = %layer.blob.digest, %error, "reading a layer once more");
                attempts += 1;
            }
            pass => return pass,
        }
    }
}

async fn run_once(store: &Arc<Store>, layer: &Layer, keep: Keep) -> Result<Pass> {
    let (pledge, pledged) = Pledge::new();
    let arrival = store.arrival_hashed_by(pledged, &layer.blob, store.deadline()).await?;
    let (store, layer) = (store.clone(), layer.clone());
    let handle = Handle::current();
    let pass = move || scan_arrival(&handle, &store, &layer, &arrival, pledge, keep);
    tokio::task::spawn_blocking(pass)
        .await
        .map_err(|e| Error::new(ErrorKind::Local, format!("a first pass ended early: {e}")))?
}

fn scan_arrival(
    handle: &Handle,
    store: &Store,
    layer: &Layer,
    arrival: &Arrival,
    pledge: Pledge,
    keep: Keep,
) -> Result<Pass> {
    let named = |e: Error| e.context(format!("layer {}", layer.blob.digest));
    let (batches, queue) = sync_channel(QUEUED_BATCHES);
    let (hashed, used) = channel();
    let stored_bytes = layer.blob.size;
    let cache = store.cache();
    let fresh = match keep {
        Keep::ToRead => {
            store.fresh_room().and_then(|room| fresh::Writing::begin(cache, room, stored_bytes))
        }
        Keep::WhatHelps | Keep::Decoded => None,
    };
    let files = Files {
        cache: cache.clone(),
        decoded: Some(DecodedFile::begin(cache, stored_bytes)),
        fresh,
    };
    let (hasher, blob) = (layer.diff_id.hasher(), arrival.blob);
    let hashing = std::thread::Builder::new()
        .name("diffid".to_owned())
        .spawn(move || hash_and_write(files, hasher, (pledge, blob), &queue, &hashed))
        .map_err(|e| Error::local("cannot start a thread", &e))?;
    let mut sink = Sink::new(batches, used, keep);
    let scanned = scan(handle, store, arrival, &mut sink);
    // The arrival waits for the digest of what the hashing thread was given.
    drop(sink);
    let hashed = hashing.join().map_err(|_| Error::new(ErrorKind::Local, "a thread panicked"));
    // The scan may have failed because the bytes are wrong: then that is the better message.
    handle.block_on(arrival.wait(Until::Proved, store.deadline())).map_err(named)?;
    let scanned = scanned.map_err(named)?;
    let Hashed { diff_id, spans, decoded, fresh } = hashed?;
    if diff_id != layer.diff_id {
        let message = format!(
            "layer {}: DiffID mismatch: the image configuration says {}, the layer has {diff_id}; \
             the image is broken, build or push it again",
            layer.blob.digest, layer.diff_id
        );
        return Err(Error::new(ErrorKind::DigestMismatch, message));
    }
    // The digests of its spans are of the bytes that were decoded: those that the DiffID proved.
    let index = scanned.into_index(diff_id, spans);
    match store.cache().save_index(&layer.blob.digest, &index) {
        Ok(()) => {}
        // This mount has it in memory; the next one makes it anew.
        Err(error) if error.kind == ErrorKind::Local => store.cache().tell_trouble(&error),
        Err(error) => return Err(error),
    }
    let decoded = match decoded {
        Some((file, sums, allowance)) if keep == Keep::Decoded || !is_seekable(&index.spans) => {
            allowance.spend();
            let handle = file.reopen().map_err(|e| Error::local("cannot open a layer", &e))?;
            if let Err(error) = store.cache().publish_decoded(&diff_id, file, &sums) {
                // It can be read as long as it is open.
                store.cache().tell_trouble(&error);
            }
            Decoded::new(handle, index.tar_size, sums, true)
        }
        _ => None,
    };
    let fresh = fresh.filter(|_| is_seekable(&index.spans)).map(fresh::Writing::proved);
    Ok(Pass { index, decoded, fresh })
}

/// Feeds the scanner with what is resident, as it comes.
fn scan(
    handle: &Handle,
    store: &Store,
    arrival: &Arrival,
    sink: &mut Sink,
) -> Result<ScannedLayer> {
    let mut scanner = Scanner::new();
    let follower = arrival.follow();
    let mut at = 0;
    while at < arrival.blob.size {
        let resident = match arrival.progress().resident {
            resident if resident > at => resident,
            _ => {
                handle.block_on(arrival.wait(Until::Resident(at + 1), store.deadline()))?;
                arrival.progress().resident
            }
        };
        let range = ByteRange::at(at, READ_BYTES.min(resident - at));
        let bytes = arrival.read_unproved(range)?;
        // Until it is known whether the layer can seek, what is decoded is held in memory.
        let steps = if sink.is_undecided() { UNDECIDED_BYTES } else { bytes.len() };
        for step in bytes.chunks(steps.max(1)) {
            scanner.push(step, &mut |piece| {
                sink.take(piece);
                Ok::<(), Error>(())
            })?;
            sink.decide(scanner.can_seek());
        }
        sink.take_blob(bytes, scanner.take_starts());
        at = range.end;
        store.passed.fetch_add(range.len(), Ordering::Relaxed);
        if let Some(follower) = &follower {
            follower.advance(at);
        }
    }
    scanner.finish(&mut |piece| {
        sink.take(piece);
        Ok(())
    })
}

/// What the hashing thread is given, each kind of bytes in order.
#[derive(Default)]
struct Batch {
    /// Of the uncompressed layer.
    decoded: Vec<u8>,
    /// Whether those are worth a file.
    write: bool,
    /// Of the blob, and the starts in them.
    blob: Vec<(Bytes, Vec<Start>)>,
    blob_bytes: usize,
}

/// Passes batches on, and finds out whether what is decoded is worth a file: if the first
/// [`SPAN_DECODED_BYTES_MAX`] bytes hold a seek point, the layer can seek, and they are not.
struct Sink {
    batches: SyncSender<Batch>,
    /// Memory of batches that were hashed.
    used: Receiver<Vec<u8>>,
    filling: Batch,
    undecided: Vec<Batch>,
    undecided_bytes: u64,
    write: Option<bool>,
}

impl Sink {
    fn new(batches: SyncSender<Batch>, used: Receiver<Vec<u8>>, keep: Keep) -> Self {
        let write = (keep == Keep::Decoded).then_some(true);
        let decoded = Vec::with_capacity(BATCH_BYTES);
        let (filling, undecided) = (Batch { decoded, ..Batch::default() }, Vec::new());
        Sink { batches, used, filling, undecided, undecided_bytes: 0, write }
    }

    fn take(&mut self, mut piece: &[u8]) {
        if self.write.is_none() {
            self.undecided_bytes += piece.len() as u64;
            if self.undecided_bytes > UNDECIDED_DECODED_BYTES_MAX {
                self.settle(true);
            }
        }
        while !piece.is_empty() {
            let room = BATCH_BYTES - self.filling.decoded.len();
            let (now, later) = piece.split_at(room.min(piece.len()));
            self.filling.decoded.extend_from_slice(now);
            if self.filling.decoded.len() == BATCH_BYTES {
                self.pass_on();
            }
            piece = later;
        }
    }

    fn is_undecided(&self) -> bool {
        self.write.is_none()
    }

    fn decide(&mut self, can_seek: bool) {
        let decided = can_seek || self.undecided_bytes > SPAN_DECODED_BYTES_MAX;
        if self.write.is_none() && decided {
            self.settle(!can_seek);
        }
    }

    fn settle(&mut self, write: bool) {
        self.write = Some(write);
        for batch in std::mem::take(&mut self.undecided) {
            self.send(batch, write);
        }
    }

    fn take_blob(&mut self, bytes: Bytes, starts: Vec<Start>) {
        self.filling.blob_bytes += bytes.len();
        self.filling.blob.push((bytes, starts));
        if self.filling.blob_bytes >= BATCH_BYTES {
            self.pass_on();
        }
    }

    fn pass_on(&mut self) {
        let mut batch = std::mem::take(&mut self.filling);
        match self.write {
            Some(write) => self.send(batch, write),
            None => {
                batch.decoded.shrink_to_fit();
                self.undecided.push(batch);
            }
        }
        let used = self.used.try_recv();
        self.filling.decoded = used.unwrap_or_else(|_| Vec::with_capacity(BATCH_BYTES));
    }

    /// A hashing thread that is gone has an error to tell; nothing more can be done here.
    fn send(&self, batch: Batch, write: bool) {
        let _ = self.batches.send(Batch { write, ..batch });
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.pass_on();
        if self.write.is_none() {
            self.settle(false);
        }
    }
}

/// Where decoded pieces are written, as long as that works.
struct Files {
    cache: Cache,
    decoded: Option<DecodedFile>,
    fresh: Option<fresh::Writing>,
}

impl Files {
    /// Appends to one of the two.
    fn write(&mut self, bytes: &[u8], is_worth_a_file: bool) {
        if !is_worth_a_file {
            if let Some(fresh) = &mut self.fresh {
                fresh.write(bytes);
            }
            return;
        }
        let Some(decoded) = &mut self.decoded else { return };
        match decoded.write(&self.cache, bytes) {
            Ok(true) => {}
            Ok(false) => self.decoded = None,
            Err(error) => {
                self.cache.tell_trouble(&error);
                self.decoded = None;
            }
        }
    }
}

/// What the hashing thread made of its pieces.
struct Hashed {
    diff_id: Digest,
    spans: SpanBuilder,
    /// The file of those pieces that were to be written.
    decoded: Option<(tempfile::NamedTempFile, Sums, Allowance)>,
    fresh: Option<fresh::Writing>,
}

fn hash_and_write(
    mut files: Files,
    mut hasher: Hasher,
    (mut pledge, whole): (Pledge, Blob),
    queue: &Receiver<Batch>,
    used: &Sender<Vec<u8>>,
) -> Hashed {
    let mut spans = SpanBuilder::default();
    // sha256 of the blob is what proves the spans, and is taken in any case.
    let is_sha512 = matches!(whole.digest, Digest::Sha512(_));
    let mut sha512 = (is_sha512 && pledge.is_wanted()).then(|| whole.digest.hasher());
    let mut blob_bytes = 0;
    for Batch { mut decoded, write, blob, .. } in queue {
        files.write(&decoded, write);
        let mut rest = &decoded[..];
        pledge.advance(decoded.len() as u64);
        for (bytes, starts) in blob {
            if let Some(hasher) = &mut sha512 {
                hasher.update(&bytes);
            }
            blob_bytes += bytes.len() as u64;
            pledge.advance(bytes.len() as u64);
            let along = rest.split_off(..bytes.len().min(rest.len())).unwrap_or_default();
            spans.push_along(&bytes, starts, &mut hasher, along);
        }
        hasher.update(rest);
        decoded.clear();
        // Nobody wants it any more at the end.
        let _ = used.send(decoded);
    }
    let digest = if is_sha512 { sha512.map(Hasher::finish) } else { Some(spans.blob_sha256()) };
    // A scan that failed may have read no more than a part of it.
    if let Some(digest) = digest.filter(|_| blob_bytes == whole.size) {
        pledge.keep(digest);
    }
    let Files { decoded, fresh, .. } = files;
    let decoded = decoded.and_then(|w| Some((w.file?, w.summing.finish(), w.allowance)));
    Hashed { diff_id: hasher.finish(), spans, decoded, fresh }
}

/// A decoded layer while it is written.
struct DecodedFile {
    file: Option<tempfile::NamedTempFile>,
    allowance: Allowance,
    summing: Summing,
}

impl DecodedFile {
    fn begin(cache: &Cache, stored_bytes: u64) -> Self {
        let allowance = cache.allow_decoded(stored_bytes);
        DecodedFile { file: None, allowance, summing: Summing::default() }
    }

    /// Appends. `false`: the cache may not use so much; `Rolling` does without.
    fn write(&mut self, cache: &Cache, bytes: &[u8]) -> Result<bool> {
        let len = bytes.len() as u64;
        if !self.allowance.grow(len) || !cache.make_room(len) {
            return Ok(false);
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(cache.create_decoded()?),
        };
        self.summing.update(bytes);
        let written = file.write_all(bytes);
        written.map_err(|e| Error::local("cannot write a decoded layer to the cache", &e))?;
        Ok(true)
    }
}
