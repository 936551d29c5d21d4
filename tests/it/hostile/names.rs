//! Names: those that leave the root, absolute ones, long ones, deep ones, a million of them.

use std::fs::{self, File};
use std::io::Write as _;

use layoutfs::layout::Digest;
use rustix::fs::{Mode, OFlags, openat};
use sha2::{Digest as _, Sha256};

use super::{Canary, MEMORY_BYTES_MAX, Scene, assert_within, config, layer_refused, one_layer};
use crate::support::image::ImageBuilder;
use crate::support::layer::{
    Compression, Dialect, LayerBuilder, MTIME, Member, fix_checksum, header,
};

/// Entries of the large layer, and what the daemon may have resident for them: 1 KiB each, of which
/// half is for the time in which entries become a tree.
const ENTRIES: usize = 1_000_000;
const ENTRY_BYTES_MAX: u64 = 1 << 10;

/// How deep the deepest directory is.
const DEPTH: usize = 10_000;

/// Levels that one name spans: with its slashes within what a name may have.
const LEVELS: usize = 2000;

fn long(name: &str) -> Vec<u8> {
    let filler = "./".repeat(60);
    format!("{filler}{name}").into_bytes()
}

#[test]
fn a_name_that_leaves_the_root_is_refused_where_it_stands() {
    let names = ["../x", "a/../../x", "/../x", "..", "../.wh.x", "a/b/../../../.wh..wh..opq"];
    for name in names {
        let before = LayerBuilder::new().file("before", 0o644, "");
        let (at, words) = (before.position(), ["leaves the root"]);
        layer_refused(&before.file(name, 0o644, "x").tar(), Compression::Gzip, at, &words);
    }
    for dialect in [Dialect::Pax, Dialect::Gnu] {
        let before = LayerBuilder::new().dialect(dialect).file("before", 0o644, "");
        // The extension's header, its content, then the member's.
        let at = before.position() + 1024;
        let member = Member::file(long("../../x"), 0o644, "x");
        layer_refused(&before.member(member).tar(), Compression::Zstd, at, &["leaves the root"]);
    }
    for target in ["../x", "/../../etc/passwd", "a/../../x"] {
        let layer = LayerBuilder::new().hardlink("link", target);
        layer_refused(&layer.tar(), Compression::Plain, 0, &["leaves the root"]);
    }
}

#[test]
fn absolute_names_and_whiteouts_of_dots_stay_inside() {
    let canary = Canary::new();
    let tar = LayerBuilder::new()
        .file(&format!("{}/absolute", canary.path()), 0o644, "in")
        .file(&format!("//{}/./doubled", canary.path()), 0o644, "in")
        .file("dir/.wh..", 0o644, "")
        .file("dir/.wh...", 0o644, "")
        .file(".wh..", 0o644, "")
        .file(".wh...", 0o644, "")
        .file(&format!("{}/.wh.secret", canary.path()), 0o644, "")
        .tar();
    let (scene, _) = one_layer(&tar, Compression::Gzip);
    let mount = scene.mounted();
    let inside = mount.path().join("rootfs").join(canary.relative());
    assert_eq!(fs::read_to_string(inside.join("absolute")).unwrap(), "in");
    assert_eq!(fs::read_to_string(inside.join("doubled")).unwrap(), "in");
    assert!(!inside.join("secret").exists());
    mount.unmount();
    canary.assert_untouched();
}

#[test]
fn names_longer_than_a_filesystem_has_them_are_refused() {
    let refused = |member: Member, dialect, extension: usize, words: &[&str]| {
        let layer = LayerBuilder::new().dialect(dialect).member(member);
        layer_refused(&layer.tar(), Compression::Zstd, extension, words);
    };
    let name = "n".repeat(256);
    refused(Member::file(&name, 0o644, ""), Dialect::Gnu, 1024, &["256 bytes", "at most 255"]);
    let deep = "d/".repeat(DEPTH) + "f";
    let words = ["a path of 20001 bytes: at most 4095"];
    // 20 KB of name are 40 records.
    refused(Member::file(&deep, 0o644, ""), Dialect::Gnu, 512 + 40 * 512, &words);
    let target = Member::link(b'2', "link", "t".repeat(4096));
    refused(target, Dialect::Pax, 512 + 9 * 512, &["symbolic link target", "1 to 4095 bytes"]);
}

#[test]
fn a_directory_of_ten_thousand_levels_is_walked_to_its_end() {
    let levels = "d/".repeat(LEVELS);
    let mut layer = LayerBuilder::new();
    for round in 0..DEPTH / LEVELS {
        let from = if round == 0 { String::new() } else { format!("link{}/", round - 1) };
        layer = layer.member(Member::new(b'5', format!("{from}{levels}"), 0o755));
        let target = format!("{from}{levels}");
        layer = layer.symlink(&format!("link{round}"), target.trim_end_matches('/'));
    }
    let last = format!("link{}/bottom", DEPTH / LEVELS - 1);
    let (scene, _) = one_layer(&layer.file(&last, 0o644, "deep").tar(), Compression::Gzip);
    let mount = scene.mounted();
    let mut at = File::open(mount.path().join("rootfs")).unwrap();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for level in 0..DEPTH {
        let below = openat(&at, "d", flags | OFlags::DIRECTORY, Mode::empty());
        at = below.unwrap_or_else(|e| panic!("level {level}: {e}")).into();
    }
    let bottom: File = openat(&at, "bottom", flags, Mode::empty()).unwrap().into();
    assert_eq!(std::io::read_to_string(bottom).unwrap(), "deep");
    drop(at);
    mount.unmount();
    let shown = scene.room.layoutfs(&["inspect", scene.image(), &last]);
    assert!(shown.contains("now  absent") && shown.contains("sets /link4/bottom"), "{shown}");
}

#[test]
fn a_million_entries_take_memory_for_a_million_entries() {
    let scene = Scene::new();
    let (mut encoder, mut hasher) = (zstd::Encoder::new(Vec::new(), 1).unwrap(), Sha256::new());
    let mut record = header(&Member { mtime: MTIME, ..Member::new(b'0', "d000/f000000", 0o644) });
    let mut batch = Vec::with_capacity(512 * 1000);
    for directory in 0..ENTRIES / 1000 {
        for file in 0..1000 {
            let number = directory * 1000 + file;
            record[..12].copy_from_slice(format!("d{directory:03}/f{number:06}").as_bytes());
            fix_checksum(&mut record);
            batch.extend_from_slice(&record);
        }
        hasher.update(&batch);
        encoder.write_all(&batch).unwrap();
        batch.clear();
    }
    let diff_id = Digest::Sha256(hasher.finalize().into());
    let layer = scene.blob(super::LAYER_ZSTD, &encoder.finish().unwrap());
    scene.write_image(&config(&[diff_id.to_string()]), &[layer]);
    let mount = scene.room.mount(scene.image(), &[]);
    assert_within(&mount, MEMORY_BYTES_MAX + ENTRIES as u64 * ENTRY_BYTES_MAX);
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 1000);
    assert_eq!(fs::read_dir(mount.path().join("d999")).unwrap().count(), 1000);
    assert!(mount.path().join("d999/f999999").is_file());
}

#[test]
fn the_same_name_a_hundred_thousand_times_is_one_file() {
    let mut layer = LayerBuilder::new();
    let record = header(&Member::new(b'0', "same", 0o600));
    for _ in 0..100_000 {
        layer = layer.raw(&record);
    }
    let image = ImageBuilder::new().layer(layer.file("same", 0o644, "last"), Compression::Zstd);
    let scene = Scene::of(&image.build());
    let mount = scene.room.mount(scene.image(), &[]);
    assert_within(&mount, MEMORY_BYTES_MAX + 100_000 * ENTRY_BYTES_MAX);
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(mount.path().join("same")).unwrap(), "last");
}
