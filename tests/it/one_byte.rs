//! One byte at a time: bodies that come in pieces of one byte, and readers that ask for no more.
//!
//! That is where a position that is off by one, a header that is taken for whole, or a piece that
//! is taken for the rest would show. Decoders and parsers have the same in tests of their own.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use layoutfs::fetch::cache::Cache;
use layoutfs::fetch::first_pass::{self, Keep};
use layoutfs::fetch::layer::LayerReader;
use layoutfs::fetch::store::{Config, Store};
use layoutfs::fetch::{Body, BoxFuture, Chunks, Deadline, Error, ErrorKind, Result, Source};
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::{Blob, Digest};

use crate::source_suite::patient;
use crate::support::image::ImageBuilder;
use crate::support::layer::{self, Compression, LayerBuilder, generated};
use crate::support::mount::Room;
use crate::support::registry::Registry;

const ALL: [Compression; 5] = [
    Compression::Plain,
    Compression::Gzip,
    Compression::GzipMembers(3000),
    Compression::Zstd,
    Compression::ZstdFrames(3000),
];

/// A blob whose bodies come byte by byte.
struct ByteByByte(Bytes);

struct Single(Bytes);

impl Chunks for Single {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        let next = (!self.0.is_empty()).then(|| self.0.split_to(1));
        Box::pin(std::future::ready(Ok(next)))
    }
}

impl Source for ByteByByte {
    fn read<'a>(
        &'a self,
        _: &'a Blob,
        range: ByteRange,
        _: Deadline,
    ) -> BoxFuture<'a, Result<Body>> {
        let bytes = self.0.slice(range.start as usize..range.end as usize);
        Box::pin(std::future::ready(Ok(Body::new(range, Box::new(Single(bytes))))))
    }

    fn name(&self) -> String {
        "byte by byte".to_owned()
    }
}

fn tar() -> Vec<u8> {
    LayerBuilder::new()
        .dir("d", 0o755)
        .file("d/a", 0o644, generated("a", 9000))
        .file("d/empty", 0o644, "")
        .symlink("d/link", "a")
        .file(&format!("d/{}", "long".repeat(50)), 0o600, generated("b", 700))
        .tar()
}

fn store(blob: &[u8], cache: &Path) -> Arc<Store> {
    Arc::new(Store::new(Config {
        cache: Cache::open(cache, None).unwrap(),
        layout_dir: None,
        source: Some(Arc::new(ByteByByte(blob.to_vec().into()))),
        no_source: Error::new(ErrorKind::Offline, "unused"),
        stall: patient().stall(),
        spans_bytes_max: 1 << 20,
        keeps_fresh: true,
        own_indexes_only: false,
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_come_and_are_read_byte_by_byte_are_what_they_are() {
    for compression in ALL {
        let tar = tar();
        let blob = compression.compress(&tar);
        let layer = layer::named(&blob, Digest::sha256_of(&tar));
        let cache = tempfile::tempdir().unwrap();
        let first = store(&blob, cache.path());
        let pass = first_pass::run(&first, &layer, Keep::WhatHelps).await.unwrap();
        let whole = ByteRange::new(0, layer.blob.size);
        let read = first.read_proved(&layer.blob, whole, patient()).await.unwrap();
        assert!(*read == blob[..], "{compression:?}");
        // Another mount that has the index alone.
        let elsewhere = tempfile::tempdir().unwrap();
        let second = store(&blob, elsewhere.path());
        let reader = Arc::new(LayerReader::new(second, layer, &pass.index, None).unwrap());
        for (at, byte) in (0..).zip(&tar) {
            let read = reader.read(ByteRange::at(at, 1), patient()).await.unwrap();
            assert_eq!(*read, [*byte], "{compression:?}: byte {at}");
        }
        let end = tar.len() as u64;
        let beyond = reader.read(ByteRange::at(end, 1), patient()).await;
        assert_eq!(beyond.unwrap_err().kind, ErrorKind::Invalid, "{compression:?}");
    }
}

/// Each byte by a read of its own, and none behind the last.
fn assert_bytes(path: &Path, expected: &[u8]) {
    let (file, mut byte) = (File::open(path).unwrap(), [0]);
    for (at, expected) in (0..).zip(expected) {
        assert_eq!(file.read_at(&mut byte, at).unwrap(), 1, "{}: {at}", path.display());
        assert_eq!(byte[0], *expected, "{}: {at}", path.display());
    }
    assert_eq!(file.read_at(&mut byte, expected.len() as u64).unwrap(), 0);
}

#[test]
fn files_and_blobs_of_a_mount_are_read_byte_by_byte() {
    let (registry, room) = (Registry::start(), Room::new());
    let layer = || LayerBuilder::new().file("a", 0o644, generated("a", 9000));
    for (number, compression) in ALL.into_iter().enumerate() {
        let (image, tag) =
            (ImageBuilder::new().layer(layer(), compression).build(), number.to_string());
        image.push(&registry, "team/app", &tag);
        let layout = room.path().join(&tag).display().to_string();
        room.layoutfs(&["sparse", &registry.reference("team/app", &tag), "--to", &layout]);
        // Past the page cache, since it is not proved before its last byte.
        let mount = room.mount(&layout, &["--view", "layout"]);
        let blob = &image.layers[0];
        assert_bytes(&mount.path().join("blobs/sha256").join(blob.digest.hex()), &blob.blob);
        let mount = room.mount(&layout, &[]);
        assert_bytes(&mount.path().join("a"), &generated("a", 9000));
    }
}
