//! Layers that decode to a thousand and more times their size: memory and disk stay within limits,
//! and the files in front are read.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use flate2::{Compress, FlushCompress};
use layoutfs::layout::Digest;
use sha2::{Digest as _, Sha256};

use super::{MEMORY_BYTES_MAX, Scene, assert_within, config};
use crate::support::layer::{Member, header};

/// Zeros of one bomb: far more than memory and disk may hold of it, and hashed in half a second.
const ZEROS: u64 = 1 << 29;

/// What the cache may hold in the tests that set a limit.
const LIMIT_BYTES: u64 = 32 << 20;

/// The most that the cache may have of a bomb without a limit: what any mount may keep beyond 64
/// times the size of its blobs.
const KEPT_BYTES_MAX: u64 = 260 << 20;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Codec {
    Gzip,
    Zstd,
}

/// `front`, so many zeros, `back`: compressed, without ever being in memory.
fn bomb(codec: Codec, front: &[u8], zeros: u64, back: &[u8]) -> Vec<u8> {
    match codec {
        Codec::Gzip => gzip(front, zeros, back),
        Codec::Zstd => zstd(front, zeros, back),
    }
}

/// Each piece ends on a byte, and refers to nothing in front of it: one of zeros can be repeated.
fn gzip(front: &[u8], zeros: u64, back: &[u8]) -> Vec<u8> {
    const PIECE: usize = 16 << 20;
    let piece = |bytes: &[u8], flush| {
        let mut deflated = Vec::with_capacity(bytes.len() + (64 << 10));
        Compress::new(flate2::Compression::best(), false)
            .compress_vec(bytes, &mut deflated, flush)
            .unwrap();
        deflated
    };
    let mut blob = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    blob.extend(piece(front, FlushCompress::Full));
    blob.extend(piece(&vec![0; PIECE], FlushCompress::Full).repeat(zeros as usize / PIECE));
    blob.extend(piece(back, FlushCompress::Finish));
    blob.extend([0; 8]);
    blob
}

/// RFC 8878: raw blocks, and blocks of one byte that is repeated 128 Ki times.
fn zstd(front: &[u8], zeros: u64, back: &[u8]) -> Vec<u8> {
    const BLOCK: u32 = 128 << 10;
    // No checksum, no content size; a window of 128 KiB.
    let mut blob = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (17 - 10) << 3];
    let block = |kind: u32, size: u32, is_last: bool| {
        (u32::from(is_last) | kind << 1 | size << 3).to_le_bytes()[..3].to_vec()
    };
    let raw =
        |bytes: &[u8], is_last| [block(0, bytes.len() as u32, is_last), bytes.to_vec()].concat();
    blob.extend(raw(front, false));
    blob.extend(
        [&block(1, BLOCK, false)[..], &[0]].concat().repeat((zeros / u64::from(BLOCK)) as usize),
    );
    blob.extend(raw(back, true));
    blob
}

/// A small file, the bomb, and a small file behind it.
fn tar_ends() -> (Vec<u8>, Vec<u8>) {
    let file = |name: &str, text: &str| {
        let mut content = text.as_bytes().to_vec();
        content.resize(512, 0);
        [&header(&Member::file(name, 0o644, text.to_owned()))[..], &content].concat()
    };
    let huge = Member { declared_bytes: Some(ZEROS), ..Member::file("huge", 0o644, "") };
    let front = [&file("front", "in front")[..], &header(&huge)].concat();
    (front, [&file("back", "behind")[..], &[0; 1024]].concat())
}

fn digest_of(front: &[u8], back: &[u8]) -> Digest {
    let mut hasher = Sha256::new();
    hasher.update(front);
    let zeros = vec![0; 1 << 20];
    (0..ZEROS >> 20).for_each(|_| hasher.update(&zeros));
    hasher.update(back);
    Digest::Sha256(hasher.finalize().into())
}

/// A layout of one bomb; `diff_id` is what its configuration says.
fn scene(codec: Codec, diff_id: impl FnOnce(&[u8], &[u8]) -> Digest) -> (Scene, Digest) {
    let (front, back) = tar_ends();
    let blob = bomb(codec, &front, ZEROS, &back);
    assert!((blob.len() as u64) < ZEROS / 900, "{codec:?}: {} bytes", blob.len());
    let scene = Scene::new();
    let layer = scene.blob("application/vnd.oci.image.layer.v1.tar", &blob);
    scene.write_image(&config(&[diff_id(&front, &back).to_string()]), &[layer]);
    (scene, Digest::sha256_of(&blob))
}

/// Bytes on disk of everything below.
fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |path: &Path| match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(path),
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(|entry| of(&entry.path())).sum()
}

/// Mounts, reads what is small, and some of what is not.
fn read_all_around(codec: Codec, options: &[&str], kept_bytes_max: u64) {
    let (scene, _) = scene(codec, digest_of);
    let mount = scene.room.mount(scene.image(), options);
    assert_within(&mount, MEMORY_BYTES_MAX);
    let kept = disk_bytes(&scene.room.cache_dir());
    assert!(kept <= kept_bytes_max, "{codec:?} {options:?}: {} MiB kept", kept >> 20);
    let text = |name: &str| fs::read_to_string(mount.path().join(name)).unwrap();
    assert_eq!(text("front"), "in front");
    let huge = fs::File::open(mount.path().join("huge")).unwrap();
    assert_eq!(huge.metadata().unwrap().len(), ZEROS);
    let mut some = vec![1; 100_000];
    huge.read_exact_at(&mut some, ZEROS / 100).unwrap();
    assert!(some.iter().all(|byte| *byte == 0));
    let kept = disk_bytes(&scene.room.cache_dir());
    assert!(kept <= kept_bytes_max, "{codec:?} {options:?}: {} MiB kept", kept >> 20);
    assert_within(&mount, MEMORY_BYTES_MAX);
}

#[test]
fn a_gzip_bomb_fills_neither_memory_nor_disk() {
    read_all_around(Codec::Gzip, &[], KEPT_BYTES_MAX);
}

#[test]
fn a_zstd_bomb_fills_neither_memory_nor_disk() {
    read_all_around(Codec::Zstd, &[], KEPT_BYTES_MAX);
}

#[test]
fn a_bomb_keeps_to_the_caches_limit() {
    let limit = LIMIT_BYTES.to_string();
    read_all_around(Codec::Zstd, &["--cache-limit", &limit], LIMIT_BYTES + (4 << 20));
}

#[test]
fn a_bomb_whose_configuration_lies_leaves_nothing() {
    for codec in [Codec::Gzip, Codec::Zstd] {
        let (scene, digest) = scene(codec, |front, _| Digest::sha256_of(front));
        let at = scene.room.path().join("at");
        fs::create_dir(&at).unwrap();
        let args = ["mount", scene.image(), at.to_str().unwrap()];
        scene.fails(&args, 7, &[&digest.to_string(), "DiffID mismatch"]);
        let kept = disk_bytes(&scene.room.cache_dir());
        assert!(kept < 1 << 20, "{codec:?}: {kept} bytes kept");
    }
}

/// A terabyte in a blob of 33 MB, of which the first bytes are no tar: nothing decodes the rest.
#[test]
fn a_bomb_that_is_no_archive_is_refused_at_its_first_wrong_byte() {
    let blob = zstd(&[b'x'; 512], 1 << 40, &[]);
    let scene = Scene::new();
    let digest = Digest::sha256_of(&blob);
    let layer = scene.blob("application/vnd.oci.image.layer.v1.tar", &blob);
    scene.write_image(&config(&[digest.to_string()]), &[layer]);
    scene.refused(3, &[&digest.to_string(), "offset 0:"]);
}

/// Members that are empty, frames that are skipped: bytes that decode to nothing at all.
#[test]
fn three_hundred_thousand_empty_members_are_one_layer() {
    let whole = {
        let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.finish().unwrap()
    };
    let tar = crate::support::layer::LayerBuilder::new().file("file", 0o644, "text").tar();
    let mut blob = whole.repeat(300_000);
    let mut last = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    last.write_all(&tar).unwrap();
    blob.extend(last.finish().unwrap());
    let scene = Scene::new();
    let layer = scene.blob("application/vnd.oci.image.layer.v1.tar+gzip", &blob);
    scene.write_image(&config(&[Digest::sha256_of(&tar).to_string()]), &[layer]);
    let mount = scene.mounted();
    let mut text = String::new();
    let path = mount.path().join("rootfs/file");
    fs::File::open(path).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "text");
}
