//! A layer that cannot seek and finds no place on disk: how often it is decoded from its start by
//! readers of several pieces.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use layoutfs::fetch::cache::Cache;
use layoutfs::fetch::first_pass::{self, Keep};
use layoutfs::fetch::layer::LayerReader;
use layoutfs::fetch::store::{Config, Store};
use layoutfs::fetch::{Body, BoxFuture, Deadline, Error, ErrorKind, Result, Source};
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::{Blob, Digest};
use tokio::sync::Semaphore;

use crate::support::layer::{self, Compression, LayerBuilder, generated};

/// What is decoded at a time.
const PIECE: u64 = 1 << 20;

/// How many of them the layer has.
const PIECES: u64 = 12;

/// Serves one blob from memory while its gate is open, and counts.
struct Gated {
    blob: Bytes,
    gate: Mutex<Arc<Semaphore>>,
    fails: Mutex<bool>,
    requests: AtomicU64,
    sent: AtomicU64,
}

impl Gated {
    fn shut(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.gate.lock().unwrap() = gate.clone();
        gate
    }

    /// What was sent since it was asked last, in whole blobs.
    fn passes(&self) -> f64 {
        self.sent.swap(0, Ordering::Relaxed) as f64 / self.blob.len() as f64
    }
}

impl Source for Gated {
    fn read<'a>(
        &'a self,
        _: &'a Blob,
        range: ByteRange,
        _: Deadline,
    ) -> BoxFuture<'a, Result<Body>> {
        Box::pin(async move {
            self.requests.fetch_add(1, Ordering::Relaxed);
            let gate = self.gate.lock().unwrap().clone();
            let _open = gate.acquire().await.unwrap();
            if *self.fails.lock().unwrap() {
                return Err(Error::new(ErrorKind::Network, "gone"));
            }
            self.sent.fetch_add(range.len(), Ordering::Relaxed);
            let bytes = self.blob.slice(range.start as usize..range.end as usize);
            Ok(Body::ready(range, bytes))
        })
    }

    fn name(&self) -> String {
        "memory".to_owned()
    }
}

struct Setting {
    source: Arc<Gated>,
    reader: Arc<LayerReader>,
    tar: Vec<u8>,
}

/// A reader of a layer, for which the cache is too small; it is indexed and proved already.
async fn setting(cache: &Path) -> Setting {
    let len = ((PIECES - 1) * PIECE) as usize;
    let tar = LayerBuilder::new().file("big", 0o644, generated("rolling", len)).tar();
    let blob: Bytes = Compression::Zstd.compress(&tar).into();
    let layer = layer::named(&blob, Digest::sha256_of(&tar));
    let source = Arc::new(Gated {
        blob,
        gate: Mutex::new(Arc::new(Semaphore::new(1))),
        fails: Mutex::new(false),
        requests: AtomicU64::new(0),
        sent: AtomicU64::new(0),
    });
    let store = Arc::new(Store::new(Config {
        cache: Cache::open(cache, Some(1 << 20)).expect("a cache"),
        layout_dir: None,
        source: Some(source.clone()),
        no_source: Error::new(ErrorKind::Offline, "unused"),
        stall: Duration::from_secs(50),
        spans_bytes_max: 16 << 20,
        keeps_fresh: false,
        own_indexes_only: false,
    }));
    let pass = first_pass::run(&store, &layer, Keep::WhatHelps).await.expect("a pass");
    let reader = LayerReader::new(store, layer, &pass.index, None).expect("a reader");
    let setting = Setting { source, reader: Arc::new(reader), tar };
    setting.right(0).await;
    setting.source.passes();
    setting
}

impl Setting {
    async fn read(&self, piece: u64) -> Result<bool> {
        let range = ByteRange::at(piece * PIECE, 1000);
        let read = self.reader.read(range, Deadline::after(Duration::from_secs(50))).await?;
        Ok(*read == self.tar[range.start as usize..range.end as usize])
    }

    async fn right(&self, piece: u64) {
        assert!(self.read(piece).await.expect("read"), "piece {piece} has other bytes");
    }

    /// Reads `pieces` at the same time: nothing comes before all of them were asked for.
    async fn at_once(&self, pieces: &[u64]) -> Vec<Result<bool>> {
        let gate = self.source.shut();
        let reads = join_all(pieces.iter().map(|piece| self.read(*piece)));
        let open = async {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            gate.add_permits(1);
        };
        tokio::join!(reads, open).0
    }
}

// One thread polls all readers, so that each has asked before the gate opens.
#[tokio::test]
async fn readers_of_neighbours_in_any_order_share_one_pass() {
    let room = tempfile::tempdir().expect("room");
    for order in [[4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, 4], [6, 4, 9, 5, 8, 7]] {
        let setting = setting(room.path()).await;
        for read in setting.at_once(&order).await {
            assert!(read.expect("read"), "{order:?}");
        }
        let passes = setting.source.passes();
        assert!(passes <= 1.0, "{order:?}: {passes} passes over the blob");
    }
}

#[tokio::test]
async fn whoever_needs_what_was_just_passed_begins_no_other_pass() {
    let room = tempfile::tempdir().expect("room");
    let setting = setting(room.path()).await;
    for piece in [2, 1, 5, 4, 3, 8, 6, 7, 10, 9] {
        setting.right(piece).await;
    }
    let passes = setting.source.passes();
    assert!(passes <= 1.0, "{passes} passes over the blob");
}

#[tokio::test]
async fn who_waits_for_another_hears_of_its_failure_and_the_next_read_tries_anew() {
    let room = tempfile::tempdir().expect("room");
    let setting = setting(room.path()).await;
    *setting.source.fails.lock().unwrap() = true;
    setting.source.requests.store(0, Ordering::Relaxed);
    let order = [8, 10, 7, 9];
    for read in setting.at_once(&order).await {
        assert_eq!(read.expect_err("gone").kind, ErrorKind::Network);
    }
    assert_eq!(setting.source.requests.load(Ordering::Relaxed), 1, "nobody waits for each in turn");
    *setting.source.fails.lock().unwrap() = false;
    for read in setting.at_once(&order).await {
        assert!(read.expect("read"));
    }
}

#[tokio::test]
async fn places_far_apart_are_read_side_by_side() {
    let room = tempfile::tempdir().expect("room");
    let setting = setting(room.path()).await;
    // More than may decode at a time, the last ones first, so that each begins behind the others.
    for piece in (1..PIECES).rev() {
        setting.right(piece).await;
    }
    for read in setting.at_once(&[11, 2, 7, 4, 9, 0]).await {
        assert!(read.expect("read"));
    }
}
