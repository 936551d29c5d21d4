//! Bytes that are not what their digest says are never passed off as good.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use crate::support::faults::{Action, Fault};
use crate::support::image::{Fill, Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::mount::Room;
use crate::support::registry::Registry;

/// More than a span, and more than what is decoded for one read.
const BIG_BYTES: usize = 9 << 20;

fn setting() -> (Registry, Image, Arc<Room>, String) {
    let (registry, room) = (Registry::start(), Room::new());
    let layer = LayerBuilder::new().file("big", 0o644, generated("x", BIG_BYTES));
    let image = ImageBuilder::new().layer(layer, Compression::Zstd).build();
    image.push(&registry, "team/app", "v1");
    let layout = room.path().join("layout").display().to_string();
    room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &layout]);
    (registry, image, room, layout)
}

fn read_at(file: &File, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

#[test]
fn a_rootfs_is_not_mounted_from_a_wrong_blob_and_is_from_a_right_one() {
    let (registry, image, room, layout) = setting();
    let digest = image.layers[0].digest;
    registry.inject(Fault::new(Action::WrongBytes { at: 4000 }).blob(&digest).always());
    let mnt = room.path().join("mnt").display().to_string();
    fs::create_dir(&mnt).expect("a directory");
    let outcome = room.run(&["mount", &layout, &mnt]);
    assert_eq!(outcome.code(), Some(7), "{outcome}");
    assert!(outcome.stderr.contains(&digest.to_string()), "{outcome}");
    assert_eq!(fs::read_dir(&mnt).expect("not mounted").count(), 0);
    registry.clear_faults();
    let mount = room.mount(&layout, &[]);
    assert_eq!(fs::read(mount.path().join("big")).expect("read"), generated("x", BIG_BYTES));
}

#[test]
fn a_streamed_blob_ends_in_eio_when_its_last_byte_is_wrong_and_is_fetched_again() {
    let (registry, image, room, layout) = setting();
    let layer = &image.layers[0];
    let last = layer.blob.len() as u64 - 1;
    registry.inject(Fault::new(Action::WrongBytes { at: last }).blob(&layer.digest).always());
    let mount = room.mount(&layout, &["--view", "layout"]);
    let path = mount.path().join("blobs/sha256").join(layer.digest.hex());
    let file = File::open(&path).expect("opened");
    // What comes before the end may be seen in order, as it arrives.
    assert_eq!(read_at(&file, 0, 4096).expect("the beginning"), layer.blob[..4096]);
    let end = read_at(&file, last - 10, 11).expect_err("never the end");
    assert_eq!(end.raw_os_error(), Some(5), "EIO: {end}");
    let whole = fs::read(&path).expect_err("nor the whole");
    assert_eq!(whole.raw_os_error(), Some(5), "EIO: {whole}");
    registry.clear_faults();
    assert_eq!(fs::read(&path).expect("the next read tries again"), layer.blob);
}

#[test]
fn an_open_file_never_joins_a_wrong_beginning_to_a_right_end() {
    let (registry, image, room, layout) = setting();
    let layer = &image.layers[0];
    registry.inject(Fault::new(Action::WrongBytes { at: 100 }).blob(&layer.digest).always());
    let mount = room.mount(&layout, &["--view", "layout"]);
    let path = mount.path().join("blobs/sha256").join(layer.digest.hex());
    let (first, second) = (File::open(&path).expect("opened"), File::open(&path).expect("opened"));
    for file in [&first, &second] {
        assert_ne!(read_at(file, 0, 4096).expect("wrong, and not known yet"), layer.blob[..4096]);
    }
    registry.clear_faults();
    let last = layer.blob.len() as u64 - 1;
    assert_eq!(fs::read(&path).or_else(|_| fs::read(&path)).expect("anew"), layer.blob);
    for file in [&first, &second] {
        for _ in 0..2 {
            let end = read_at(file, last, 1).expect_err("its beginning was wrong");
            assert_eq!(end.raw_os_error(), Some(5), "EIO: {end}");
        }
    }
}

#[test]
fn wrong_bytes_in_the_middle_are_gone_from_every_cache_after_the_right_ones_came() {
    let (registry, image, room, layout) = setting();
    let layer = &image.layers[0];
    registry.inject(Fault::new(Action::WrongBytes { at: 100 }).blob(&layer.digest).always());
    let mount = room.mount(&layout, &["--view", "layout"]);
    let path = mount.path().join("blobs/sha256").join(layer.digest.hex());
    assert!(fs::read(&path).is_err());
    registry.clear_faults();
    // The kernel drops the pages after the failed read was answered: a reader may be quicker.
    for _ in 0..100 {
        match fs::read(&path) {
            Ok(bytes) if bytes == layer.blob => return,
            _ => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    }
    panic!("the right bytes never came");
}

#[test]
fn a_layer_that_comes_wrong_is_not_fetched_for_every_file() {
    let (registry, room) = (Registry::start(), Room::new());
    let mut layer = LayerBuilder::new().file("big", 0o644, generated("x", BIG_BYTES));
    for i in 0..40 {
        layer = layer.file(&format!("f{i}"), 0o644, generated(&i.to_string(), 1000));
    }
    let image = ImageBuilder::new().layer(layer, Compression::Zstd).build();
    image.push(&registry, "team/app", "v1");
    let reference = format!("docker://{}", registry.reference("team/app", "v1"));
    room.mount(&reference, &[]).unmount();
    // The index stays: that it cannot be entered in the middle is known, too.
    room.layoutfs(&["cache", "prune"]);
    let layer = &image.layers[0];
    registry.inject(Fault::new(Action::WrongBytes { at: 4000 }).blob(&layer.digest).always());
    let mount = room.mount(&reference, &[]);
    registry.clear();
    for i in 0..40 {
        let error = fs::read(mount.path().join(format!("f{i}"))).expect_err("wrong bytes");
        assert_eq!(error.raw_os_error(), Some(5), "EIO: {error}");
    }
    // Twice for the first, in case it was an accident; and a machine may be busy.
    let copies = registry.bytes_sent(&layer.digest) / layer.blob.len() as u64;
    assert!((1..=10).contains(&copies), "fetched {copies} times");
    registry.clear_faults();
    for _ in 0..500 {
        if let Ok(bytes) = fs::read(mount.path().join("f7")) {
            assert_eq!(bytes, generated("7", 1000));
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("the right bytes never came");
}

#[test]
fn strict_shows_no_byte_of_a_wrong_blob() {
    let (registry, image, room, layout) = setting();
    let layer = &image.layers[0];
    let last = layer.blob.len() as u64 - 1;
    registry.inject(Fault::new(Action::WrongBytes { at: last }).blob(&layer.digest).always());
    let mount = room.mount(&layout, &["--view", "layout", "--verify", "strict"]);
    let path = mount.path().join("blobs/sha256").join(layer.digest.hex());
    let file = File::open(&path).expect("opened");
    let first = read_at(&file, 0, 1).expect_err("not even the first byte");
    assert_eq!(first.raw_os_error(), Some(5), "EIO: {first}");
    registry.clear_faults();
    // Wrong bytes that nobody else could replace are remembered for a second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(fs::read(&path).expect("a later read tries again"), layer.blob);
}

#[test]
fn a_damaged_blob_of_the_layout_itself_is_fetched_instead() {
    let (registry, image, room, _) = setting();
    let layout = room.path().join("full");
    image.write_layout(&layout, "v1", Fill::Full);
    let blob = layout.join("blobs/sha256").join(image.layers[0].digest.hex());
    let mut bytes = fs::read(&blob).expect("read");
    bytes[5000] ^= 1;
    fs::write(&blob, &bytes).expect("damaged");
    let source = format!("{}/team/app", registry.host());
    let mount = room.mount(&layout.display().to_string(), &["--source", &source]);
    assert_eq!(fs::read(mount.path().join("big")).expect("read"), generated("x", BIG_BYTES));
}

#[test]
fn a_layer_with_another_diff_id_is_refused() {
    let room = Room::new();
    let registry = Registry::start();
    let tar = LayerBuilder::new().file("a", 0o644, "true").tar();
    let other = LayerBuilder::new().file("a", 0o644, "else").tar();
    let blob = Compression::Zstd.compress(&other);
    let image = ImageBuilder::new().layer_of_blob(&tar, blob, Compression::Zstd).build();
    image.push(&registry, "team/app", "v1");
    let mnt = room.path().join("mnt").display().to_string();
    fs::create_dir(&mnt).expect("a directory");
    let reference = format!("docker://{}", registry.reference("team/app", "v1"));
    let outcome = room.run(&["mount", &reference, &mnt]);
    assert_eq!(outcome.code(), Some(7), "{outcome}");
    assert!(outcome.stderr.contains("DiffID"), "{outcome}");
}

#[test]
fn a_span_that_was_damaged_on_disk_is_fetched_again() {
    let (registry, room) = (Registry::start(), Room::new());
    let layer = LayerBuilder::new().file("big", 0o644, generated("x", BIG_BYTES));
    let image = ImageBuilder::new().layer(layer, Compression::Plain).build();
    image.push(&registry, "team/app", "v1");
    let reference = format!("docker://{}", registry.reference("team/app", "v1"));
    room.mount(&reference, &[]).unmount();
    let digest = image.layers[0].digest;
    let blob = room.cache_dir().join("v1/blobs/sha256").join(digest.hex());
    let mut bytes = fs::read(&blob).expect("it was kept");
    bytes[2 << 20] ^= 1;
    fs::write(&blob, &bytes).expect("damaged");
    registry.clear();
    let mount = room.mount(&reference, &[]);
    assert_eq!(fs::read(mount.path().join("big")).expect("read"), generated("x", BIG_BYTES));
    let sent = registry.bytes_sent(&digest);
    assert!(sent > 0 && sent <= 2 << 20, "only the damaged span: {sent}");
}

#[test]
fn a_decoded_layer_that_was_damaged_on_disk_is_decoded_again() {
    let (registry, image, room, layout) = setting();
    room.mount(&layout, &[]).unmount();
    let diff_id = image.layers[0].diff_id;
    let decoded = room.cache_dir().join(format!("v1/decoded/sha256-{}", diff_id.hex()));
    let mut bytes = fs::read(&decoded).expect("it was kept");
    bytes[2 << 20] ^= 1;
    fs::write(&decoded, &bytes).expect("damaged");
    registry.clear();
    let mount = room.mount(&layout, &[]);
    assert_eq!(fs::read(mount.path().join("big")).expect("read"), generated("x", BIG_BYTES));
    assert_eq!(registry.requests().len(), 0, "the blob was local");
}

#[test]
fn a_whole_blob_that_was_damaged_in_the_cache_is_fetched_again() {
    let (registry, image, room, layout) = setting();
    room.mount(&layout, &[]).unmount();
    let digest = image.layers[0].digest;
    let blob = room.cache_dir().join("v1/blobs/sha256").join(digest.hex());
    let mut bytes = fs::read(&blob).expect("it was kept");
    bytes[1 << 20] ^= 1;
    fs::write(&blob, &bytes).expect("damaged");
    registry.clear();
    let mount = room.mount(&layout, &["--view", "layout"]);
    let path = mount.path().join("blobs/sha256").join(digest.hex());
    assert_eq!(fs::read(path).expect("read"), image.layers[0].blob);
    assert_eq!(registry.bytes_sent(&digest), image.layers[0].blob.len() as u64);
}

#[test]
fn a_layer_whose_diff_id_is_sha512_is_read() {
    let room = Room::new();
    let tar = LayerBuilder::new().file("a", 0o644, "true").tar();
    let mut image = ImageBuilder::new().layer_of_tar(&tar, Compression::Gzip).build();
    let mut hasher = layoutfs::layout::Digest::Sha512([0; 64]).hasher();
    hasher.update(&tar);
    let long = hasher.finish().to_string();
    let short = image.layers[0].diff_id.to_string();
    let replaced = |bytes: &[u8], from: &str, to: &str| {
        String::from_utf8(bytes.to_vec()).expect("JSON").replace(from, to).into_bytes()
    };
    let config = replaced(&image.config, &short, &long);
    let digest = layoutfs::layout::Digest::sha256_of(&config);
    let manifest = replaced(&image.manifest, &image.config_digest.to_string(), &digest.to_string());
    let (old, new) = (image.config.len(), config.len());
    let manifest = replaced(&manifest, &format!("\"size\":{old}"), &format!("\"size\":{new}"));
    image.digest = layoutfs::layout::Digest::sha256_of(&manifest);
    (image.config, image.config_digest) = (config.into(), digest);
    image.manifest = manifest.into();
    let layout = room.path().join("layout");
    image.write_layout(&layout, "v1", Fill::Full);
    let mount = room.mount(&layout.display().to_string(), &[]);
    assert_eq!(fs::read(mount.path().join("a")).expect("read"), b"true");
}

#[test]
fn a_descriptor_that_lies_about_a_size_harms_no_other_image() {
    let (registry, image, room, layout) = setting();
    room.mount(&layout, &[]).unmount();
    let digest = image.layers[0].digest;
    let blob = room.cache_dir().join("v1/blobs/sha256").join(digest.hex());
    assert!(blob.exists());
    let liar = room.path().join("liar");
    image.write_layout(&liar, "v1", Fill::Sparse);
    let manifest = String::from_utf8(image.manifest.to_vec()).expect("JSON");
    let size = format!("\"size\":{}", image.layers[0].blob.len());
    let manifest = manifest.replace(&size, "\"size\":77").into_bytes();
    let lie = layoutfs::layout::Digest::sha256_of(&manifest);
    fs::write(liar.join("blobs/sha256").join(lie.hex()), &manifest).expect("written");
    let index = fs::read_to_string(liar.join("index.json")).expect("read");
    let index = index.replace(&image.digest.to_string(), &lie.to_string()).replace(
        &format!("\"size\":{}", image.manifest.len()),
        &format!("\"size\":{}", manifest.len()),
    );
    fs::write(liar.join("index.json"), index).expect("written");
    let source = format!("{}/team/app", registry.host());
    let mnt = room.path().join("mnt").display().to_string();
    fs::create_dir(&mnt).expect("a directory");
    // Its digest is known, so it may even be read; what it says of its size changes nothing.
    room.run(&["inspect", &liar.display().to_string()]).success();
    room.run(&["mount", &liar.display().to_string(), &mnt, "--source", &source]);
    room.run(&["unmount", &mnt]).success();
    assert!(blob.exists(), "the blob of the honest image is still there");
    registry.clear();
    room.mount(&layout, &[]).unmount();
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn hydrate_replaces_a_damaged_blob_and_fetches_no_other() {
    let (registry, image, room, layout) = setting();
    room.layoutfs(&["hydrate", &layout]);
    let digest = image.layers[0].digest;
    let blob = std::path::Path::new(&layout).join("blobs/sha256").join(digest.hex());
    let mut bytes = fs::read(&blob).expect("hydrated");
    bytes[1 << 20] ^= 1;
    fs::write(&blob, &bytes).expect("damaged");
    room.layoutfs(&["cache", "prune"]);
    registry.clear();
    room.layoutfs(&["hydrate", &layout]);
    assert_eq!(fs::read(&blob).expect("right again"), image.layers[0].blob);
    registry.clear();
    room.layoutfs(&["hydrate", &layout]);
    assert_eq!(registry.requests().len(), 0);
}
