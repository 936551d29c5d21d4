//! What a mount costs, counted: requests, bytes, FUSE messages. Never time.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::listing::Listing;
use crate::support::modes;
use crate::support::mount::{Mount, Room};
use crate::support::registry::Registry;

/// A layer of a gzip member for each 64 KiB: it can be read from many places.
const SEEKABLE: Compression = Compression::GzipMembers(64 << 10);

/// More than one span, which holds 1 MiB.
const BIG_BYTES: usize = 5 << 20;

/// The layers; each holds its own files.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn image() -> Image {
    let layer = |name: &str| {
        LayerBuilder::new()
            .dir(name, 0o755)
            .file(&format!("{name}/big"), 0o644, generated(name, BIG_BYTES))
            .file(&format!("{name}/small"), 0o644, name.to_owned())
    };
    ImageBuilder::new()
        .layer(layer("a"), SEEKABLE)
        .layer(layer("b"), Compression::Gzip)
        .layer(layer("c"), Compression::Plain)
        .layer(layer("d"), Compression::Zstd)
        .layer(layer("e"), Compression::ZstdFrames(100 << 10))
        .build()
}

/// A registry with the image, a sparse layout of it, and a room to mount it in.
fn setting() -> (Registry, Image, Arc<Room>, String) {
    let (registry, image, room) = (Registry::start(), image(), Room::new());
    image.push(&registry, "team/app", "v1");
    let layout = room.path().join("layout").display().to_string();
    room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &layout]);
    registry.clear();
    (registry, image, room, layout)
}

fn status(mount: &Mount) -> Value {
    let path = mount.path().display().to_string();
    let json = mount.room().layoutfs(&["status", "--json", &path]);
    serde_json::from_str(&json).expect("status prints JSON")
}

fn messages(mount: &Mount) -> u64 {
    let status = status(mount);
    let messages = status["messages"].as_object().expect("messages").clone();
    messages.values().filter_map(Value::as_u64).sum()
}

fn content(mount: &Path, name: &str) -> Vec<u8> {
    fs::read(mount.join(name)).expect("the file is read")
}

#[test]
fn a_mount_whose_indexes_are_cached_asks_nothing_and_reads_what_was_read() {
    let (registry, image, room, layout) = setting();
    let first = room.mount(&layout, &[]);
    let listing = Listing::of(first.path());
    let layers = || image.layers.iter().map(|layer| &layer.digest);
    for layer in &image.layers {
        let sent = registry.bytes_sent(&layer.digest);
        assert_eq!(sent, layer.blob.len() as u64, "each byte comes once: {}", layer.digest);
    }
    first.unmount();
    registry.clear();
    let second = room.mount(&layout, &[]);
    listing.assert_same(&Listing::of(second.path()));
    assert_eq!(registry.requests().len(), 0, "{:?}", registry.requests());
    assert_eq!(layers().map(|digest| registry.bytes_sent(digest)).sum::<u64>(), 0);
}

#[test]
fn a_second_walk_and_a_second_read_send_no_message_and_no_request() {
    let (registry, _, room, layout) = setting();
    let mount = room.mount(&layout, &[]);
    let listing = Listing::of(mount.path());
    // The listing asks for xattrs of every path; this image has none, so the first one says so.
    let (before, asked) = (messages(&mount), registry.requests().len());
    listing.assert_same(&Listing::of(mount.path()));
    assert_eq!(messages(&mount), before);
    assert_eq!(registry.requests().len(), asked);
}

#[test]
fn one_byte_of_one_layer_fetches_a_part_of_it_and_nothing_of_the_others() {
    let (registry, image, room, layout) = setting();
    room.mount(&layout, &[]).unmount();
    room.layoutfs(&["cache", "prune"]);
    registry.clear();
    let mount = room.mount(&layout, &[]);
    assert_eq!(registry.requests().len(), 0, "a mount with indexes asks nothing");
    assert_eq!(content(mount.path(), "a/small"), b"a");
    let sent = |i: usize| registry.bytes_sent(&image.layers[i].digest);
    assert!(sent(0) > 0 && sent(0) < image.layers[0].blob.len() as u64 / 2, "{}", sent(0));
    assert_eq!(registry.blob_requests(&image.layers[0].digest).len(), 1);
    assert_eq!([1, 2, 3, 4].map(sent), [0; 4]);
    for i in [1, 2, 4] {
        assert_eq!(content(mount.path(), &format!("{}/small", NAMES[i])), NAMES[i].as_bytes());
        assert!(sent(i) > 0 && sent(i) < image.layers[i].blob.len() as u64 / 2, "{i}: {}", sent(i));
        assert_eq!(registry.blob_requests(&image.layers[i].digest).len(), 1, "{i}");
    }
    assert_eq!(sent(3), 0, "of one frame, it is fetched whole by its first reader");
}

#[test]
fn a_scan_of_layers_with_indexes_fetches_each_byte_once_in_few_requests() {
    let (registry, image, room, layout) = setting();
    room.mount(&layout, &[]).unmount();
    room.layoutfs(&["cache", "prune"]);
    registry.clear();
    let mount = room.mount(&layout, &[]);
    // From the middle first: what a scan meets again is not fetched again.
    for name in NAMES {
        assert_eq!(content(mount.path(), &format!("{name}/small")), name.as_bytes());
        assert_eq!(content(mount.path(), &format!("{name}/big")), generated(name, BIG_BYTES));
    }
    for (layer, name) in image.layers.iter().zip(NAMES) {
        let (sent, size) = (registry.bytes_sent(&layer.digest), layer.blob.len() as u64);
        // The tar's end and padding behind it are nobody's content.
        assert!(sent <= size && sent + (64 << 10) > size, "{name}: {sent} of {size}");
        let requests = registry.blob_requests(&layer.digest).len();
        // Who begins with little is fetched little at first.
        let most = if modes::is_on("small-reads") { 12 } else { 8 };
        assert!(requests <= most, "{name}: {requests} requests");
    }
    mount.unmount();
    registry.clear();
    let mount = room.mount(&layout, &[]);
    for name in NAMES {
        assert_eq!(content(mount.path(), &format!("{name}/big")), generated(name, BIG_BYTES));
    }
    assert_eq!(registry.requests().len(), 0, "all of it is here");
}

#[test]
fn readers_of_one_span_share_one_fetch() {
    let (registry, image, room, layout) = setting();
    room.mount(&layout, &[]).unmount();
    room.layoutfs(&["cache", "prune"]);
    registry.clear();
    let mount = room.mount(&layout, &[]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(content(mount.path(), "b/small"), b"b"));
        }
    });
    assert_eq!(registry.blob_requests(&image.layers[1].digest).len(), 1);
}

#[test]
fn spans_that_were_read_once_are_kept_on_disk() {
    let (registry, _, room, layout) = setting();
    room.mount(&layout, &[]).unmount();
    room.layoutfs(&["cache", "prune"]);
    let mount = room.mount(&layout, &[]);
    assert_eq!(content(mount.path(), "a/small"), b"a");
    mount.unmount();
    registry.clear();
    let mount = room.mount(&layout, &[]);
    assert_eq!(content(mount.path(), "a/small"), b"a");
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn a_layer_that_cannot_seek_is_fetched_once_for_all_its_readers() {
    let (registry, image, room, layout) = setting();
    room.mount(&layout, &[]).unmount();
    room.layoutfs(&["cache", "prune"]);
    registry.clear();
    let mount = room.mount(&layout, &[]);
    let path = mount.path();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(content(path, "d/big"), generated("d", BIG_BYTES)));
            scope.spawn(|| assert_eq!(content(path, "d/small"), b"d"));
        }
    });
    let layer = &image.layers[3];
    assert_eq!(registry.bytes_sent(&layer.digest), layer.blob.len() as u64);
}

#[test]
fn the_layout_view_knows_sizes_before_it_asks_for_anything() {
    let (registry, image, room, layout) = setting();
    let mount = room.mount(&layout, &["--view", "layout"]);
    for layer in &image.layers {
        let path = mount.path().join("blobs/sha256").join(layer.digest.hex());
        assert_eq!(fs::metadata(path).expect("it is there").len(), layer.blob.len() as u64);
    }
    assert_eq!(registry.requests().len(), 0);
    let digest = &image.layers[1].digest;
    let path = mount.path().join("blobs/sha256").join(digest.hex());
    assert_eq!(fs::read(&path).expect("read"), image.layers[1].blob);
    assert_eq!(registry.bytes_sent(digest), image.layers[1].blob.len() as u64);
    assert_eq!(registry.requests().len(), registry.blob_requests(digest).len());
}

#[test]
fn two_mounts_share_what_one_of_them_fetched() {
    let (registry, _, room, layout) = setting();
    let first = room.mount(&layout, &[]);
    let listing = Listing::of(first.path());
    registry.clear();
    let second = room.mount(&layout, &[]);
    listing.assert_same(&Listing::of(second.path()));
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn two_processes_that_mount_at_the_same_time_fetch_each_byte_once() {
    let (registry, image, room, layout) = setting();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mount = room.mount(&layout, &[]);
                assert_eq!(content(mount.path(), "b/big"), generated("b", BIG_BYTES));
            });
        }
    });
    for layer in &image.layers {
        assert_eq!(registry.bytes_sent(&layer.digest), layer.blob.len() as u64);
    }
}

#[test]
fn status_says_what_was_fetched_and_how_layers_are_read() {
    let (_registry, image, room, layout) = setting();
    let mount = room.mount(&layout, &[]);
    let shown = status(&mount);
    assert_eq!(shown["bytes_fetched"].as_u64(), Some(image.layer_bytes()));
    assert_eq!(shown["bytes_passed"].as_u64(), Some(image.layer_bytes()), "one pass, no more");
    assert_eq!(shown["layers"].as_array().map(Vec::len), Some(5));
    assert_eq!(shown["layers"][0]["how"], "local");
    assert_eq!(shown["ready"], true);
    assert!(shown["requests"].as_u64() >= Some(5));
}

#[test]
fn require_lazy_refuses_a_first_pass_and_accepts_an_indexed_image() {
    let (registry, _, room, layout) = setting();
    let mnt = room.path().join("refused");
    fs::create_dir(&mnt).expect("a directory");
    let mnt = mnt.display().to_string();
    let outcome = room.run(&["mount", &layout, &mnt, "--require-lazy"]);
    assert_eq!(outcome.code(), Some(2), "{outcome}");
    assert!(outcome.stderr.contains("--require-lazy"), "{outcome}");
    let asked: Vec<_> = registry.requests().into_iter().map(|request| request.path).collect();
    // For an index of ours, and then for one of SOCI's.
    let are_hints = asked.iter().all(|path| path.contains("/referrers/"));
    assert!(asked.len() == 2 && are_hints, "hints, no layer: {asked:?}");
    room.mount(&layout, &[]).unmount();
    room.mount(&layout, &["--require-lazy"]).unmount();
}
