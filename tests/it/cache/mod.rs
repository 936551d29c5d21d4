//! The cache: its limit, who may look into it, what is removed, other versions.

mod places;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::modes;
use crate::support::mount::{Mount, Room};
use crate::support::registry::Registry;

/// More than one span.
const BIG_BYTES: usize = 3 << 20;

fn small_image() -> Image {
    let layer = LayerBuilder::new().file("big", 0o644, generated("x", BIG_BYTES));
    ImageBuilder::new().layer(layer, Compression::Gzip).build()
}

fn kinds(room: &Room) -> Vec<(String, Value)> {
    let items: Value =
        serde_json::from_str(&room.layoutfs(&["cache", "ls", "--json"])).expect("JSON");
    let items = items.as_array().expect("a list").clone();
    items.into_iter().map(|i| (i["kind"].as_str().expect("a kind").to_owned(), i)).collect()
}

#[test]
fn layouts_of_docker_references_are_listed_and_pruned() {
    let (registry, image, room) = (Registry::start(), small_image(), Room::new());
    for (repository, tag) in [("team/app", "v1"), ("team/app/v1", "x")] {
        image.push(&registry, repository, tag);
        room.layoutfs(&["inspect", &format!("docker://{}", registry.reference(repository, tag))]);
    }
    let layouts = room.cache_dir().join("v1/layouts");
    let listed = kinds(&room);
    assert_eq!(listed.len(), 2, "{listed:?}");
    for (kind, item) in &listed {
        assert_eq!((kind.as_str(), &item["digest"]), ("layout", &image.digest.to_string().into()));
        let at = layouts.join(item["name"].as_str().expect("a name"));
        assert!(at.join("index.json").exists(), "{item}");
        assert!(item["disk_bytes"].as_u64() >= Some(3 * 512), "{item}");
    }
    let shown = room.layoutfs(&["cache", "ls"]);
    assert!(shown.contains("team/app/v1/x"), "{shown}");
    // A container's scratch directory can be among them: it is nobody's layout.
    let scratch = layouts.join("layoutfs-Ab12");
    fs::create_dir(&scratch).expect("made");
    fs::write(scratch.join("index.json"), b"{}").expect("written");
    room.layoutfs(&["cache", "prune"]);
    assert_eq!(kinds(&room).len(), 0);
    let left: Vec<_> = fs::read_dir(&layouts).expect("listing").flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(scratch.join("index.json").exists());
}

#[test]
fn a_layout_that_is_pruned_is_made_again_and_a_mount_of_it_goes_on() {
    let (registry, image, room) = (Registry::start(), small_image(), Room::new());
    image.push(&registry, "team/app", "v1");
    let reference = format!("docker://{}", registry.reference("team/app", "v1"));
    let mount = room.mount(&reference, &["--view", "all"]);
    room.layoutfs(&["cache", "prune", "--indexes"]);
    assert_eq!(kinds(&room).len(), 0, "nothing is left");
    let content = generated("x", BIG_BYTES);
    assert_eq!(fs::read(mount.path().join("rootfs/big")).expect("read"), content);
    let manifest = mount.path().join("layout/blobs/sha256").join(image.digest.hex());
    assert_eq!(fs::read(manifest).expect("read"), image.manifest);
    drop(mount);
    let mount = room.mount(&reference, &[]);
    assert_eq!(fs::read(mount.path().join("big")).expect("read"), content);
}

#[test]
fn the_cache_is_for_its_owner_and_no_one_elses_is_used() {
    let room = Room::new();
    let root = room.cache_dir().join("v1");
    room.layoutfs(&["cache", "ls"]);
    assert_eq!(root.metadata().expect("made").mode() & 0o777, 0o700);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).expect("opened");
    let outcome = room.run(&["cache", "ls"]);
    assert!(outcome.stderr.contains("open to others"), "{outcome}");
    assert_eq!(root.metadata().expect("made").mode() & 0o777, 0o700, "closed again");
    std::os::unix::fs::chown(&root, Some(12345), None).expect("root may");
    let outcome = room.run(&["cache", "ls"]);
    assert_eq!(outcome.code(), Some(2), "{outcome}");
    assert!(
        outcome.stderr.contains("12345") && outcome.stderr.contains("--cache-dir"),
        "{outcome}"
    );
}

#[test]
fn another_version_of_the_cache_is_left_alone() {
    let (registry, image, room) = (Registry::start(), small_image(), Room::new());
    image.push(&registry, "team/app", "v1");
    let newer = room.cache_dir().join("v2/blobs/new");
    fs::create_dir_all(newer.parent().expect("a parent")).expect("made");
    fs::write(&newer, b"of the future").expect("written");
    let reference = format!("docker://{}", registry.reference("team/app", "v1"));
    room.mount(&reference, &["--cache-limit", "1M"]).unmount();
    room.layoutfs(&["cache", "prune", "--indexes"]);
    assert_eq!(fs::read(&newer).expect("still there"), b"of the future");
}

#[test]
fn an_index_of_another_version_is_ignored_and_made_anew() {
    let (registry, image, room) = (Registry::start(), small_image(), Room::new());
    image.push(&registry, "team/app", "v1");
    let reference = format!("docker://{}", registry.reference("team/app", "v1"));
    room.mount(&reference, &[]).unmount();
    let index =
        room.cache_dir().join(format!("v1/indexes/sha256-{}", image.layers[0].digest.hex()));
    let right = fs::read(&index).expect("saved");
    let mut other = right.clone();
    // After the magic comes the version.
    let at = other.iter().position(|b| *b == 1).expect("version 1");
    other[at] = 99;
    fs::write(&index, &other).expect("written");
    registry.clear();
    let mount = room.mount(&reference, &[]);
    assert_eq!(fs::read(mount.path().join("big")).expect("read"), generated("x", BIG_BYTES));
    assert_eq!(registry.bytes_sent(&image.layers[0].digest), 0, "the blob is local");
    assert_eq!(fs::read(&index).expect("saved again"), right);
}

/// What the cache takes on disk.
fn disk_bytes(directory: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        bytes += match meta.is_dir() {
            true => disk_bytes(&entry.path()),
            false => meta.blocks() * 512,
        };
    }
    bytes
}

/// Files of one layer, in the order of the layer: name and size. None fits a piece exactly.
const FILES: [(&str, usize); 5] =
    [("a", 700_001), ("b", 3_100_000), ("c", 10), ("d", 1_500_000), ("e", 900_000)];

const LAYERS: [(&str, Compression); 5] = [
    ("gzip", Compression::Gzip),
    ("zstd", Compression::Zstd),
    ("members", Compression::GzipMembers(300 << 10)),
    ("frames", Compression::ZstdFrames(500 << 10)),
    ("plain", Compression::Plain),
];

/// About 31 MB in five layers.
fn large_image() -> Image {
    LAYERS
        .iter()
        .fold(ImageBuilder::new(), |image, (folder, compression)| {
            let layer =
                FILES.iter().fold(LayerBuilder::new().dir(folder, 0o755), |layer, (name, len)| {
                    let path = format!("{folder}/{name}");
                    let content = generated(&path, *len);
                    layer.file(&path, 0o644, content)
                });
            image.layer(layer, *compression)
        })
        .build()
}

fn setting(image: &Image) -> (Registry, Arc<Room>, String) {
    let (registry, room) = (Registry::start(), Room::new());
    image.push(&registry, "team/app", "v1");
    let reference = format!("docker://{}", registry.reference("team/app", "v1"));
    (registry, room, reference)
}

/// Every file, forwards or backwards, is what it should be.
#[track_caller]
fn assert_right(mount: &Path, is_backwards: bool) {
    let mut all: Vec<(String, usize)> = LAYERS
        .iter()
        .flat_map(|(folder, _)| FILES.iter().map(move |(n, len)| (format!("{folder}/{n}"), *len)))
        .collect();
    if is_backwards {
        all.reverse();
    }
    for (path, len) in all {
        let bytes = fs::read(mount.join(&path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(bytes == generated(&path, len), "{path} has other bytes");
    }
}

#[track_caller]
fn assert_blobs_right(mount: &Path, image: &Image) {
    for layer in &image.layers {
        let path = mount.join("blobs/sha256").join(layer.digest.hex());
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", layer.digest));
        assert!(bytes == layer.blob, "{} has other bytes", layer.digest);
    }
}

fn status(mount: &Mount) -> Value {
    let path = mount.path().display().to_string();
    serde_json::from_str(&mount.room().layoutfs(&["status", "--json", &path])).expect("JSON")
}

/// Does `work` while the size of the cache is looked at; gives the largest.
fn largest_while(room: &Room, work: impl FnOnce()) -> u64 {
    let (is_over, largest) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                largest.fetch_max(disk_bytes(&room.cache_dir()), Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        is_over.store(true, Ordering::Relaxed);
        if let Err(panic) = worked {
            std::panic::resume_unwind(panic);
        }
    });
    largest.into_inner()
}

/// As 200 MB are to 1 GB.
const LIMIT_BYTES: u64 = 6_000_000;

/// A grant, the blocks that files end in, and what is looked at while it is removed.
const SLACK_BYTES: u64 = LIMIT_BYTES / 16 + (256 << 10);

#[test]
fn an_image_of_five_times_the_limit_is_read_and_the_limit_holds() {
    let image = large_image();
    let (registry, room, reference) = setting(&image);
    let options = ["--cache-limit", &LIMIT_BYTES.to_string()];
    let largest = largest_while(&room, || {
        let mount = room.mount(&reference, &options);
        assert_right(mount.path(), false);
        assert_right(mount.path(), true);
        let shown = status(&mount);
        assert_eq!(shown["cache_trouble"], Value::Null, "a limit is no trouble");
        let how = shown["layers"][0]["how"].as_str().expect("said");
        assert!(how.contains("comes again"), "{how}: 6.2 MB is more than half of the limit");
    });
    assert!(largest <= LIMIT_BYTES + SLACK_BYTES, "{largest}");
    assert!(largest > LIMIT_BYTES / 2, "{largest}: it is used as far as it goes");
    let sent: u64 = image.layers.iter().map(|l| registry.bytes_sent(&l.digest)).sum();
    // The pass, forwards, backwards (each file of the two that cannot seek from the start).
    assert!(sent < 8 * image.layer_bytes(), "{sent} of {}", image.layer_bytes());
    let largest = largest_while(&room, || {
        let mount = room.mount(&reference, &[&options[..], &["--view", "layout"]].concat());
        assert_blobs_right(mount.path(), &image);
    });
    assert!(largest <= LIMIT_BYTES + SLACK_BYTES, "{largest}");
}

#[test]
fn one_layer_larger_than_the_limit_is_read_in_its_order_for_one_more_pass() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let files: Vec<(String, usize)> =
            (0..12).map(|i| (format!("f{i:02}"), 1_700_000)).collect();
        let layer = files.iter().fold(LayerBuilder::new(), |layer, (name, len)| {
            layer.file(name, 0o644, generated(name, *len))
        });
        let image = ImageBuilder::new().layer(layer, compression).build();
        let (registry, room, reference) = setting(&image);
        let largest = largest_while(&room, || {
            let mount = room.mount(&reference, &["--cache-limit", "4M"]);
            for (name, len) in &files {
                assert!(fs::read(mount.path().join(name)).expect(name) == generated(name, *len));
            }
        });
        assert!(largest <= 4_000_000 + SLACK_BYTES, "{largest}");
        let (sent, size) = (registry.bytes_sent(&image.layers[0].digest), image.layer_bytes());
        // Who asks for what was just pushed out of memory begins once more. In memory for one piece
        // that is what the kernel's requests have in common: one of four cursors stays behind each.
        let passes = if modes::is_on("one-span-cache") { 5 } else { 3 };
        assert!(sent <= passes * size, "{sent} of {size}");
    }
}

#[test]
fn several_daemons_and_commands_keep_one_limit() {
    let image = large_image();
    let (_registry, room, reference) = setting(&image);
    let limit = LIMIT_BYTES.to_string();
    let options = ["--cache-limit", limit.as_str()];
    let largest = largest_while(&room, || {
        std::thread::scope(|scope| {
            for i in 0..3 {
                let (room, reference) = (&room, &reference);
                scope.spawn(move || {
                    let mount = room.mount(reference, &options);
                    assert_right(mount.path(), i == 1);
                });
            }
            scope.spawn(|| {
                for _ in 0..20 {
                    room.layoutfs(&["cache", "prune", "--cache-limit", "3M"]);
                }
            });
        });
    });
    assert!(largest <= LIMIT_BYTES + 3 * SLACK_BYTES, "{largest}");
}

#[test]
fn pruning_all_the_time_breaks_no_reader() {
    let image = large_image();
    let (_registry, room, reference) = setting(&image);
    let rootfs = room.mount(&reference, &[]);
    let layout = room.mount(&reference, &["--view", "layout"]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                room.layoutfs(&["cache", "prune", "--indexes"]);
            }
        });
        let worked = std::panic::catch_unwind(|| {
            for is_backwards in [false, true] {
                assert_right(rootfs.path(), is_backwards);
                assert_blobs_right(layout.path(), &image);
                // Past what the kernel has.
                room.mount(&reference, &[]).unmount();
            }
        });
        is_over.store(true, Ordering::Relaxed);
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_file_that_is_open_reads_on_after_its_blob_was_evicted() {
    use std::os::unix::fs::FileExt as _;
    let image = large_image();
    let (_registry, room, reference) = setting(&image);
    let limit = LIMIT_BYTES.to_string();
    let mount = room.mount(&reference, &["--view", "layout", "--cache-limit", &limit]);
    let blobs = mount.path().join("blobs/sha256");
    let layer = &image.layers[0];
    let file = fs::File::open(blobs.join(layer.digest.hex())).expect("opened");
    let mut begin = vec![0; 4096];
    file.read_exact_at(&mut begin, 0).expect("read");
    assert_blobs_right(mount.path(), &image);
    // Longer than it takes to let go of what was evicted.
    std::thread::sleep(std::time::Duration::from_secs(6));
    let mut rest = vec![0; layer.blob.len() - 4096];
    file.read_exact_at(&mut rest, 4096).expect("read");
    assert!([begin, rest].concat() == layer.blob);
}
