//! A cache in a place that cannot be written to: full, read-only, deleted. Reading goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use super::{assert_blobs_right, assert_right, large_image, setting, small_image, status};
use crate::support::image::Image;
use crate::support::mount::{LIMIT, Room, run};

/// A filesystem on the room's cache directory, for as long as it lives.
struct On(PathBuf);

impl On {
    fn mount(room: &Room, arguments: &[&str]) -> On {
        let at = room.cache_dir();
        run(Command::new("mount").args(arguments).arg(&at), LIMIT).success();
        On(at)
    }

    /// One with so much room, and room for so many files.
    fn small(room: &Room, bytes: usize, files: usize) -> On {
        let options = format!("mode=0700,size={bytes},nr_inodes={files}");
        On::mount(room, &["-t", "tmpfs", "-o", &options, "none"])
    }

    /// What is there, and no writing.
    fn read_only(room: &Room) -> On {
        let at = room.cache_dir().display().to_string();
        let on = On::mount(room, &["--bind", &at]);
        run(Command::new("mount").args(["-o", "remount,bind,ro", &at]), LIMIT).success();
        on
    }
}

impl Drop for On {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.0), LIMIT);
    }
}

/// What the daemon of a mount wrote.
fn log(status: &Value) -> String {
    fs::read_to_string(status["log"].as_str().expect("a path")).expect("a log")
}

/// Reads an image through both views with the cache as it is; gives what the logs say.
fn read_all(room: &Arc<Room>, reference: &str, image: &Image) -> (String, Value) {
    let mount = room.mount(reference, &[]);
    assert_right(mount.path(), false);
    let shown = status(&mount);
    let (logs, trouble) = (log(&shown), shown["cache_trouble"].clone());
    drop(mount);
    let mount = room.mount(reference, &["--view", "layout"]);
    assert_blobs_right(mount.path(), image);
    drop(mount);
    (logs, trouble)
}

#[test]
fn a_full_disk_keeps_nobody_from_reading_whatever_it_has_room_for() {
    let image = large_image();
    let (_registry, room, reference) = setting(&image);
    // From nothing at all, over some of the first blob, all blobs, decoded layers, to everything.
    for kib in [4, 64, 1 << 10, 5 << 10, 9 << 10, 17 << 10, 29 << 10, 33 << 10, 37 << 10, 64 << 10]
    {
        let _on = On::small(&room, kib << 10, 0);
        let (logs, trouble) = read_all(&room, &reference, &image);
        if kib < 33 << 10 {
            assert!(
                trouble.as_str().is_some_and(|t| t.contains("No space left")),
                "{kib}: {trouble}"
            );
        }
        assert!(!logs.contains(" ERROR "), "{kib} KiB: {logs}");
    }
}

#[test]
fn a_disk_without_room_for_another_file_keeps_nobody_from_reading() {
    let image = large_image();
    let (_registry, room, reference) = setting(&image);
    for files in 2..26 {
        let _on = On::small(&room, 128 << 20, files);
        let (logs, _) = read_all(&room, &reference, &image);
        assert!(!logs.contains(" ERROR "), "{files} files: {logs}");
    }
}

#[test]
fn a_read_only_cache_is_read_and_what_it_lacks_is_fetched() {
    let image = large_image();
    let (registry, room, reference) = setting(&image);
    let sent = || image.layers.iter().map(|l| registry.bytes_sent(&l.digest)).sum::<u64>();
    // Empty: one pass, one more stream for each of the layers that cannot seek, spans again.
    {
        let _on = On::read_only(&room);
        let (logs, trouble) = read_all(&room, &reference, &image);
        assert!(trouble.as_str().is_some_and(|t| t.contains("Read-only")), "{trouble}");
        assert!(!logs.contains(" ERROR "), "{logs}");
        let (sent, size) = (sent(), image.layer_bytes());
        assert!(sent <= 5 * size, "{sent} of {size}");
    }
    // Indexes alone.
    room.mount(&reference, &[]).unmount();
    room.layoutfs(&["cache", "prune"]);
    {
        let _on = On::read_only(&room);
        registry.clear();
        let mount = room.mount(&reference, &[]);
        assert_eq!(sent(), 0, "indexes are read");
        assert_right(mount.path(), true);
        drop(mount);
    }
    // Everything.
    read_all(&room, &reference, &image);
    let _on = On::read_only(&room);
    registry.clear();
    read_all(&room, &reference, &image);
    assert_eq!(sent(), 0, "everything is local");
}

#[test]
fn a_disk_that_is_full_for_a_while_is_used_again() {
    let image = small_image();
    let (registry, room, reference) = setting(&image);
    let _on = On::small(&room, 20 << 20, 0);
    let ballast = room.cache_dir().join("ballast");
    fs::write(&ballast, vec![1; 19 << 20]).expect("written");
    let mount = room.mount(&reference, &["--view", "layout"]);
    let path = mount.path().join("blobs/sha256").join(image.layers[0].digest.hex());
    assert!(fs::read(&path).expect("read") == image.layers[0].blob);
    assert!(status(&mount)["cache_trouble"].is_string());
    drop(mount);
    fs::remove_file(&ballast).expect("removed");
    registry.clear();
    let mount = room.mount(&reference, &["--view", "layout"]);
    let path = mount.path().join("blobs/sha256").join(image.layers[0].digest.hex());
    assert!(fs::read(&path).expect("read") == image.layers[0].blob);
    assert_eq!(status(&mount)["cache_trouble"], Value::Null);
    let sent = registry.bytes_sent(&image.layers[0].digest);
    assert!(sent <= image.layer_bytes(), "{sent}: what was kept is not fetched again");
    drop(mount);
    registry.clear();
    room.mount(&reference, &[]).unmount();
    assert_eq!(registry.bytes_sent(&image.layers[0].digest), 0);
}

#[test]
fn commands_that_are_no_mount_do_without_the_cache() {
    let image = small_image();
    let (_registry, room, reference) = setting(&image);
    let _on = On::read_only(&room);
    let outcome = room.run(&["inspect", &reference]);
    assert_eq!(outcome.stderr.matches("cannot be used").count(), 1, "{outcome}");
    let shown = outcome.success();
    assert!(shown.contains(&image.layers[0].digest.hex()[..12]), "{shown}");
    let layout = room.path().join("layout").display().to_string();
    room.layoutfs(&[
        "sparse",
        reference.strip_prefix("docker://").expect("prefix"),
        "--to",
        &layout,
    ]);
    room.layoutfs(&["hydrate", &layout]);
    let blob = Path::new(&layout).join("blobs/sha256").join(image.layers[0].digest.hex());
    assert!(fs::read(blob).expect("hydrated") == image.layers[0].blob);
    assert_eq!(room.layoutfs(&["cache", "ls"]), "");
}

#[test]
fn a_cache_that_is_deleted_below_a_mount_is_made_again() {
    let image = large_image();
    let (registry, _, reference) = setting(&image);
    // What the first pass has decoded would be read otherwise, and nothing else be needed.
    let room = Room::with("no-fresh");
    let mount = room.mount(&reference, &[]);
    fs::remove_dir_all(room.cache_dir().join("v1")).expect("removed");
    assert_right(mount.path(), false);
    drop(mount);
    fs::remove_dir_all(room.cache_dir().join("v1")).expect("removed");
    let mount = room.mount(&reference, &["--view", "layout"]);
    fs::remove_dir_all(room.cache_dir().join("v1")).expect("removed");
    assert_blobs_right(mount.path(), &image);
    assert_eq!(status(&mount)["cache_trouble"], Value::Null);
    drop(mount);
    registry.clear();
    room.mount(&reference, &[]).unmount();
    let sent: u64 = image.layers.iter().map(|l| registry.bytes_sent(&l.digest)).sum();
    assert_eq!(sent, 0, "what the second mount fetched was kept");
}

#[test]
fn trouble_that_comes_later_is_told_once_in_the_log() {
    let image = large_image();
    let (_registry, room, reference) = setting(&image);
    let mount = room.mount(&reference, &["--view", "layout"]);
    let _on = On::read_only(&room);
    assert_blobs_right(mount.path(), &image);
    let shown = status(&mount);
    let (logs, trouble) = (log(&shown), &shown["cache_trouble"]);
    assert_eq!(logs.matches("cannot be used").count(), 1, "{logs}");
    assert!(trouble.as_str().is_some_and(|t| t.contains("Read-only")), "{trouble}");
    let path = mount.path().display().to_string();
    let shown = room.layoutfs(&["status", &path]);
    assert!(shown.contains("nothing is kept in the cache: "), "{shown}");
}
