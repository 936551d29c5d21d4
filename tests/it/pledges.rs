//! A blob that is hashed by whoever reads it, and not where it is written: the same verdicts, and
//! the same blob in the cache, whatever becomes of the reader.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use layoutfs::fetch::arrival::{Arrival, Origin, Until};
use layoutfs::fetch::cache::Cache;
use layoutfs::fetch::first_pass::{self, Keep, Pass};
use layoutfs::fetch::pledge::Pledge;
use layoutfs::fetch::store::{Config, Store};
use layoutfs::fetch::{
    Body, BoxFuture, Chunks, Deadline, Distrust, Error, ErrorKind, Result, Source,
};
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::tree::Layer;
use layoutfs::layout::{Blob, Digest};

use crate::source_suite::patient;
use crate::support::layer::{self, Compression, LayerBuilder, generated};

/// A piece of a body, so that a blob comes in several.
const PIECE_BYTES: usize = 100_000;

/// Damage to a file.
type Harm = fn(&mut [u8]);

/// Serves one blob; after it was distrusted, what is right instead, if it has that.
struct Memory {
    blob: Bytes,
    instead: Option<Bytes>,
    distrusted: AtomicU64,
    sent: AtomicU64,
}

struct Pieces(Bytes);

impl Chunks for Pieces {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        let len = self.0.len().min(PIECE_BYTES);
        let next = (len > 0).then(|| self.0.split_to(len));
        Box::pin(std::future::ready(Ok(next)))
    }
}

impl Source for Memory {
    fn read<'a>(
        &'a self,
        _: &'a Blob,
        range: ByteRange,
        _: Deadline,
    ) -> BoxFuture<'a, Result<Body>> {
        let is_distrusted = self.distrusted.load(Ordering::Relaxed) > 0;
        let blob = self.instead.as_ref().filter(|_| is_distrusted).unwrap_or(&self.blob);
        self.sent.fetch_add(range.len(), Ordering::Relaxed);
        let bytes = blob.slice(range.start as usize..range.end as usize);
        Box::pin(std::future::ready(Ok(Body::new(range, Box::new(Pieces(bytes))))))
    }

    fn distrust(&self, _: &Blob, _: ByteRange, _: Distrust) -> bool {
        self.distrusted.fetch_add(1, Ordering::Relaxed) == 0 && self.instead.is_some()
    }

    fn name(&self) -> String {
        "memory".to_owned()
    }
}

/// A source of one blob, and a store over an empty cache that asks it.
struct Setting {
    source: Arc<Memory>,
    store: Arc<Store>,
    room: tempfile::TempDir,
}

impl Setting {
    fn new(blob: &[u8], instead: Option<&[u8]>) -> Self {
        Setting::limited(blob, instead, None)
    }

    fn limited(blob: &[u8], instead: Option<&[u8]>, limit: Option<u64>) -> Self {
        let source = Arc::new(Memory {
            blob: Bytes::copy_from_slice(blob),
            instead: instead.map(Bytes::copy_from_slice),
            distrusted: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        });
        let room = tempfile::tempdir().expect("a room");
        let store = store(room.path(), Some(source.clone()), limit);
        Setting { source, store, room }
    }

    /// Another store over the same cache, as a later mount has it.
    fn again(&self) -> Arc<Store> {
        store(self.room.path(), Some(self.source.clone()), None)
    }

    fn sent(&self) -> u64 {
        self.source.sent.load(Ordering::Relaxed)
    }

    fn distrusted(&self) -> u64 {
        self.source.distrusted.load(Ordering::Relaxed)
    }

    /// What there is of blobs in the cache, by the end of its name: `part`, or nothing.
    fn files(&self, suffix: Option<&str>) -> Vec<PathBuf> {
        let blobs = self.room.path().join("v1/blobs/sha256");
        let all = std::fs::read_dir(blobs).expect("folders").map(|e| e.expect("a name").path());
        all.filter(|path| path.extension().map(|e| e.to_str().expect("text")) == suffix).collect()
    }
}

fn store(cache: &Path, source: Option<Arc<dyn Source>>, limit: Option<u64>) -> Arc<Store> {
    Arc::new(Store::new(Config {
        cache: Cache::open(cache, limit).expect("a cache"),
        layout_dir: None,
        source,
        no_source: Error::new(ErrorKind::Offline, "nobody to ask"),
        stall: patient().stall(),
        spans_bytes_max: 1 << 20,
        keeps_fresh: false,
        own_indexes_only: false,
    }))
}

/// A tar of one file as a layer, and its blob.
fn sample(compression: Compression) -> (Layer, Vec<u8>) {
    let tar = LayerBuilder::new().file("big", 0o644, generated("pledge", 3 << 20)).tar();
    let blob = compression.compress(&tar);
    (layer::named(&blob, Digest::sha256_of(&tar)), blob)
}

async fn pass(store: &Arc<Store>, layer: &Layer) -> Result<Pass> {
    first_pass::run(store, layer, Keep::WhatHelps).await
}

/// The blob as a reader of the layout view has it.
async fn read(store: &Store, blob: &Blob) -> Vec<u8> {
    let read = store.read_proved(blob, ByteRange::new(0, blob.size), patient()).await;
    read.expect("proved").to_vec()
}

async fn pledged(store: &Store, blob: &Blob) -> (Pledge, Arc<Arrival>) {
    let (pledge, pledged) = Pledge::new();
    let arrival = store.arrival_hashed_by(pledged, blob, patient()).await.expect("on its way");
    (pledge, arrival)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_named_thrown_away_and_replaced_whether_a_pass_can_read_them_or_not() {
    // In the content of the file, where a tar has no checksum; in the file's header, where it has.
    for at in [2 << 20, 100] {
        let (layer, right) = sample(Compression::Plain);
        let mut wrong = right.clone();
        wrong[at] ^= 1;
        let setting = Setting::new(&wrong, None);
        let error = pass(&setting.store, &layer).await.err().expect("wrong");
        assert_eq!(error.kind, ErrorKind::DigestMismatch, "{at}: {error}");
        let found = Digest::sha256_of(&wrong).to_string();
        for part in [&layer.blob.digest.to_string(), &found, "memory"] {
            assert!(error.to_string().contains(part), "{at}: {error}");
        }
        assert_eq!(setting.distrusted(), 1, "{at}");
        assert_eq!(setting.sent(), layer.blob.size, "{at}: nobody else to ask");
        assert_eq!((setting.files(None), setting.files(Some("part"))), (vec![], vec![]), "{at}");
        // Somebody else to ask: the pass is made anew, and is none the worse for it.
        let setting = Setting::new(&wrong, Some(&right));
        let made = pass(&setting.store, &layer).await.expect("once more");
        assert_eq!(made.index.entries.len(), 1, "{at}");
        assert_eq!((setting.distrusted(), setting.sent()), (1, 2 * layer.blob.size), "{at}");
        assert!(read(&setting.store, &layer.blob).await == right, "{at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_named_by_its_sha512_has_that_from_its_pass() {
    let (mut layer, blob) = sample(Compression::Gzip);
    let mut hasher = Digest::Sha512([0; 64]).hasher();
    hasher.update(&blob);
    layer.blob.digest = hasher.finish();
    let setting = Setting::new(&blob, None);
    pass(&setting.store, &layer).await.expect("a pass");
    assert!(read(&setting.store, &layer.blob).await == blob);
    assert_eq!(setting.sent(), layer.blob.size);
    let mut wrong = blob.clone();
    wrong[1 << 20] ^= 1;
    let error = pass(&Setting::new(&wrong, None).store, &layer).await.err().expect("wrong");
    assert_eq!(error.kind, ErrorKind::DigestMismatch, "{error}");
    assert!(error.to_string().contains(&layer.blob.digest.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn right_bytes_that_are_no_layer_or_another_one_are_proved_all_the_same() {
    let (mut layer, blob) = sample(Compression::Gzip);
    layer.diff_id = Digest::sha256_of(b"another tar");
    let garbage = generated("no tar", 3 << 20).to_vec();
    let mut torn = Compression::Gzip.compress(&garbage);
    torn.truncate(2 << 20);
    let named = |blob: &[u8]| layer::named(blob, Digest::sha256_of(blob));
    for (layer, blob, kind) in [
        (layer, blob, ErrorKind::DigestMismatch),
        (named(&garbage), garbage, ErrorKind::Invalid),
        (named(&torn), torn, ErrorKind::Invalid),
    ] {
        let setting = Setting::new(&blob, None);
        let error = pass(&setting.store, &layer).await.err().expect("no such layer");
        assert_eq!(error.kind, kind, "{error}");
        assert!(read(&setting.store, &layer.blob).await == blob, "{error}");
        assert_eq!((setting.sent(), setting.distrusted()), (layer.blob.size, 0), "{error}");
        assert_eq!(setting.files(None).len(), 1, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_the_blob_beside_its_pass_share_one_stream_with_it() {
    for compression in [Compression::Gzip, Compression::Zstd, Compression::Plain] {
        let (layer, blob) = sample(compression);
        let setting = Setting::new(&blob, None);
        let store = setting.store.clone();
        let (made, first, second) = tokio::join!(
            pass(&store, &layer),
            read(&store, &layer.blob),
            read(&store, &layer.blob)
        );
        made.expect("a pass");
        assert!(first == blob && second == blob, "{compression:?}");
        assert_eq!(setting.sent(), layer.blob.size, "{compression:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_arrival_believes_the_digest_that_it_was_pledged_and_nobody_hashes_twice() {
    let (layer, blob) = sample(Compression::Gzip);
    let right = layer.blob.digest;
    for (keeps, is_proved) in
        [(Some(right), true), (Some(Digest::sha256_of(b"x")), false), (None, true)]
    {
        let setting = Setting::new(&blob, None);
        let (pledge, arrival) = pledged(&setting.store, &layer.blob).await;
        arrival.wait(Until::Resident(layer.blob.size), patient()).await.expect("it comes");
        assert!(pledge.is_wanted() && arrival.progress().outcome.is_none());
        // Who comes later has nothing to do with it.
        let (late, same) = pledged(&setting.store, &layer.blob).await;
        assert!(!late.is_wanted() && Arc::ptr_eq(&same, &arrival));
        match keeps {
            Some(digest) => pledge.keep(digest),
            None => drop(pledge),
        }
        let outcome = arrival.wait(Until::Proved, patient()).await;
        assert_eq!(outcome.is_ok(), is_proved, "{keeps:?}: {outcome:?}");
        assert_eq!(setting.files(None).len(), usize::from(is_proved), "{keeps:?}");
        assert_eq!(setting.files(Some("part")), Vec::<PathBuf>::new(), "{keeps:?}");
    }
    // Started by somebody who makes no such offer.
    let setting = Setting::new(&blob, None);
    let arrival = setting.store.arrival(&layer.blob, patient()).await.expect("on its way");
    assert!(!pledged(&setting.store, &layer.blob).await.0.is_wanted());
    arrival.wait(Until::Proved, patient()).await.expect("proved");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_here_is_hashed_by_its_pass_too_and_replaced_if_it_is_damaged() {
    let (layer, blob) = sample(Compression::Gzip);
    let setting = Setting::new(&blob, None);
    read(&setting.store, &layer.blob).await;
    let (pledge, arrival) = pledged(&setting.again(), &layer.blob).await;
    assert_eq!(arrival.origin(), Origin::Cache);
    arrival.wait(Until::Resident(layer.blob.size), patient()).await.expect("all of it is here");
    assert!(pledge.is_wanted() && arrival.progress().outcome.is_none());
    pledge.keep(layer.blob.digest);
    arrival.wait(Until::Proved, patient()).await.expect("proved");
    assert_eq!(setting.sent(), layer.blob.size);
    // With a wrong byte, or cut and made as long again with zeros.
    let bit: Harm = |file| file[1 << 20] ^= 1;
    let zeros: Harm = |file| file[100_000..].fill(0);
    for harm in [bit, zeros] {
        let [path] = &setting.files(None)[..] else { panic!("one blob") };
        let mut file = blob.clone();
        harm(&mut file);
        std::fs::write(path, file).expect("damaged");
        let before = setting.sent();
        let store = setting.again();
        pass(&store, &layer).await.expect("a pass over what came instead");
        assert!(read(&store, &layer.blob).await == blob);
        assert_eq!((setting.sent() - before, setting.distrusted()), (layer.blob.size, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_former_stream_left_is_hashed_by_the_pass_and_not_believed() {
    let (layer, blob) = sample(Compression::Gzip);
    for is_damaged in [false, true] {
        let setting = Setting::new(&blob, None);
        let mut part = setting.store.cache().open_part(&layer.blob).expect("a part");
        let mut bytes = blob[..1 << 20].to_vec();
        bytes[5000] ^= u8::from(is_damaged);
        std::io::Write::write_all(&mut part.file, &bytes).expect("written");
        part.mark_resident(ByteRange::new(0, 1 << 20)).expect("noted");
        drop(part);
        pass(&setting.store, &layer).await.expect("a pass");
        assert!(read(&setting.store, &layer.blob).await == blob);
        // What may be a disk's fault is blamed on nobody.
        let whole_again = if is_damaged { layer.blob.size } else { 0 };
        let sent = layer.blob.size - (1 << 20) + whole_again;
        assert_eq!((setting.sent(), setting.distrusted()), (sent, 0), "{is_damaged}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_without_room_for_all_of_it_hashes_by_itself() {
    let (layer, blob) = sample(Compression::Gzip);
    for limit in [1, 1 << 20, 2 << 20] {
        let setting = Setting::limited(&blob, None, Some(limit));
        let (pledge, arrival) = pledged(&setting.store, &layer.blob).await;
        // No digest comes, and nobody waits for one.
        arrival.wait(Until::Proved, patient()).await.expect("proved");
        assert!(!pledge.is_wanted(), "{limit}");
        assert!(read(&setting.store, &layer.blob).await == blob, "{limit}");
        for at in [100, 1_500_000, blob.len() - 1] {
            let mut wrong = blob.clone();
            wrong[at] ^= 1;
            let setting = Setting::limited(&wrong, None, Some(limit));
            let error = pass(&setting.store, &layer).await.err().expect("wrong");
            assert_eq!(error.kind, ErrorKind::DigestMismatch, "{limit}, {at}: {error}");
            assert_eq!(setting.distrusted(), 1, "{limit}, {at}");
        }
        let setting = Setting::limited(&blob, None, Some(limit));
        pass(&setting.store, &layer).await.expect("a pass");
        assert_eq!(setting.distrusted(), 0, "{limit}");
        assert!(read(&setting.store, &layer.blob).await == blob, "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_the_proof_has_patience_as_long_as_hashing_gets_on() {
    let (layer, blob) = sample(Compression::Gzip);
    let stall = Duration::from_secs(2);
    for is_here in [false, true] {
        let setting = Setting::new(&blob, None);
        if is_here {
            read(&setting.store, &layer.blob).await;
        }
        let (mut pledge, arrival) = pledged(&setting.again(), &layer.blob).await;
        arrival.wait(Until::Resident(layer.blob.size), patient()).await.expect("it comes");
        // A reader of this process, and one of another: that can see no more than the part's file.
        let (other, named) = (setting.again(), layer.blob);
        let elsewhere = tokio::spawn(async move {
            let whole = ByteRange::new(0, named.size);
            other
                .read_proved(&named, whole, Deadline::after(stall))
                .await
                .map(|read| read.len() as u64)
        });
        let waiting =
            tokio::spawn(async move { arrival.wait(Until::Proved, Deadline::after(stall)).await });
        for _ in 0..30 {
            tokio::time::sleep(stall / 20).await;
            pledge.advance(64 << 20);
        }
        assert!(!waiting.is_finished(), "{is_here}");
        pledge.keep(layer.blob.digest);
        waiting.await.expect("no panic").expect("proved");
        let read = elsewhere.await.expect("no panic").expect("proved");
        assert_eq!((read, setting.sent()), (blob.len() as u64, blob.len() as u64), "{is_here}");
    }
}
