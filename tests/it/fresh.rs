//! What a first pass has decoded is read without decoding it again, as long as it is there.

use std::path::Path;
use std::sync::Arc;

use layoutfs::fetch::cache::Cache;
use layoutfs::fetch::first_pass::{self, Keep, Pass};
use layoutfs::fetch::layer::LayerReader;
use layoutfs::fetch::local::Local;
use layoutfs::fetch::proved::Filling;
use layoutfs::fetch::store::{Config, Store};
use layoutfs::fetch::{Error, ErrorKind};
use layoutfs::layout::Digest;
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::tree::Layer;

use crate::source_suite::patient;
use crate::support::layer::{self, Compression, LayerBuilder, generated};

fn store(layout: &Path, cache: &Path, limit: Option<u64>, keeps_fresh: bool) -> Arc<Store> {
    Arc::new(Store::new(Config {
        cache: Cache::open(cache, limit).expect("cache"),
        layout_dir: None,
        source: Some(Arc::new(Local::new(layout))),
        no_source: Error::new(ErrorKind::Offline, "unused"),
        stall: patient().stall(),
        spans_bytes_max: 64 << 20,
        keeps_fresh,
        own_indexes_only: false,
    }))
}

/// A blob put into a layout: the layer that it is, of one file, and its tar.
fn layer(layout: &Path, compression: Compression, file_bytes: usize) -> (Layer, Vec<u8>) {
    let tar = LayerBuilder::new().file("big", 0o644, generated("x", file_bytes)).tar();
    let blob = compression.compress(&tar);
    let layer = layer::named(&blob, Digest::sha256_of(&tar));
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("folders");
    std::fs::write(blobs.join(layer.blob.digest.hex()), &blob).expect("written");
    (layer, tar)
}

async fn pass(store: &Arc<Store>, layer: &Layer, keep: Keep) -> (bool, Arc<LayerReader>) {
    let pass = first_pass::run(store, layer, keep).await.expect("a pass");
    let Pass { index, decoded, fresh } = pass;
    let is_fresh = fresh.is_some();
    let reader = LayerReader::new(store.clone(), layer.clone(), &index, decoded).expect("a reader");
    (is_fresh, Arc::new(reader.with_fresh(fresh)))
}

/// Everything that is there without waiting, in pieces that no span ends with.
fn now(reader: &LayerReader, tar: &[u8]) -> usize {
    let mut there = 0;
    for (at, expected) in (0..).step_by(70_001).zip(tar.chunks(70_001)) {
        let mut out = Filling::zeroed(expected.len());
        let range = ByteRange::at(at, expected.len() as u64);
        if let Some(read) = reader.read_now(range, out.place(0..expected.len())) {
            read.expect("right");
            assert!(*out.finish() == *expected, "{range}");
            there += expected.len();
        }
    }
    there
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pass_has_decoded_is_read_without_decoding_it_again() {
    let room = tempfile::tempdir().expect("room");
    for compression in [Compression::GzipMembers(50_000), Compression::ZstdFrames(50_000)] {
        let (layer, tar) = layer(room.path(), compression, 3 << 20);
        let caches = tempfile::tempdir().expect("caches");
        let with =
            |name: &str, limit, keeps| store(room.path(), &caches.path().join(name), limit, keeps);
        let (is_fresh, reader) = pass(&with("a", None, true), &layer, Keep::ToRead).await;
        assert!(is_fresh);
        assert_eq!(now(&reader, &tar), tar.len(), "{compression:?}");
        // Nobody asked for it, a limit has no room for it, it is switched off: all of it has to be
        // decoded, and is right all the same.
        for (store, keep) in [
            (with("b", None, true), Keep::WhatHelps),
            (with("c", Some(1 << 30), true), Keep::ToRead),
            (with("d", None, false), Keep::ToRead),
        ] {
            let (is_fresh, reader) = pass(&store, &layer, keep).await;
            assert!(!is_fresh);
            assert_eq!(now(&reader, &tar), 0, "{compression:?}");
            let whole = reader.read(ByteRange::new(0, tar.len() as u64), patient()).await;
            assert!(*whole.expect("read") == tar[..], "{compression:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_seek_is_in_its_decoded_file_and_nowhere_else() {
    let room = tempfile::tempdir().expect("room");
    let (layer, tar) = layer(room.path(), Compression::Zstd, 9 << 20);
    let store = store(room.path(), &room.path().join("cache"), None, true);
    let (is_fresh, reader) = pass(&store, &layer, Keep::ToRead).await;
    assert!(!is_fresh);
    assert_eq!(now(&reader, &tar), tar.len());
}
