//! Mounts come and go cleanly, whatever happens to their daemon or their registry.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use layoutfs::layout::Digest;

use crate::support::faults::{Action, Fault};
use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder};
use crate::support::mount::{Mount, Room, mountpoints};
use crate::support::registry::Registry;
use crate::support::until::until;

fn setting() -> (Registry, Image, Arc<Room>, String) {
    let (registry, room) = (Registry::start(), Room::new());
    let layer = LayerBuilder::text("dir etc\nfile etc/name = layoutfs\\n\nfile etc/other *300000");
    let image = ImageBuilder::new().layer(layer, Compression::Gzip).build();
    image.push(&registry, "team/app", "v1");
    let layout = room.path().join("layout").display().to_string();
    room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &layout]);
    (registry, image, room, layout)
}

fn pid(mount: &Mount) -> i64 {
    let path = mount.path().display().to_string();
    let json = mount.room().layoutfs(&["status", "--json", &path]);
    let status: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    status["pid"].as_i64().expect("a process")
}

fn signal(pid: i64, signal: &str) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

fn is_mounted(path: &Path) -> bool {
    mountpoints().iter().any(|mounted| mounted == path)
}

#[test]
fn a_killed_daemon_leaves_a_mount_that_mount_and_unmount_clear() {
    let (_registry, _, room, layout) = setting();
    let mount = room.mount(&layout, &[]);
    let mnt = mount.path().display().to_string();
    signal(pid(&mount), "-9");
    until("the mount dies", || fs::read_dir(mount.path()).is_err());
    let outcome = room.run(&["status", &mnt]);
    assert_eq!(outcome.code(), Some(5), "{outcome}");
    room.layoutfs(&["mount", &layout, &mnt]);
    assert_eq!(fs::read(mount.path().join("etc/name")).expect("read"), b"layoutfs\n");
    signal(pid(&mount), "-9");
    until("the mount dies", || fs::read_dir(mount.path()).is_err());
    room.layoutfs(&["unmount", &mnt]);
    assert!(!is_mounted(mount.path()));
    // Idempotent; and the guard does it once more.
    room.layoutfs(&["unmount", &mnt]);
}

#[test]
fn sigterm_unmounts_even_with_open_files() {
    let (_registry, _, room, layout) = setting();
    let mount = room.mount(&layout, &[]);
    let file = File::open(mount.path().join("etc/name")).expect("opened");
    let daemon = pid(&mount);
    signal(daemon, "-TERM");
    until("it is unmounted", || !is_mounted(mount.path()));
    until("the daemon ends", || !Path::new(&format!("/proc/{daemon}")).exists());
    drop(file);
}

#[test]
fn a_busy_mount_is_refused_with_9_and_detached_with_lazy() {
    let (_registry, _, room, layout) = setting();
    let mount = room.mount(&layout, &[]);
    let mnt = mount.path().display().to_string();
    let file = File::open(mount.path().join("etc/name")).expect("opened");
    let outcome = room.run(&["unmount", &mnt]);
    assert_eq!(outcome.code(), Some(9), "{outcome}");
    assert!(outcome.stderr.contains("--lazy"), "{outcome}");
    assert!(is_mounted(mount.path()));
    room.layoutfs(&["unmount", "--lazy", &mnt]);
    assert!(!is_mounted(mount.path()));
    // The name is free at once, and what the old daemon cleans up later is not the new one's.
    room.layoutfs(&["mount", &layout, &mnt]);
    drop(file);
    assert_eq!(fs::read(mount.path().join("etc/name")).expect("read"), b"layoutfs\n");
    std::thread::sleep(Duration::from_millis(300));
    assert!(pid(&mount) > 0, "status still knows it");
}

#[test]
fn a_live_mount_is_not_mounted_over() {
    let (_registry, _, room, layout) = setting();
    let mount = room.mount(&layout, &[]);
    let outcome = room.run(&["mount", &layout, &mount.path().display().to_string()]);
    assert_eq!(outcome.code(), Some(9), "{outcome}");
}

#[test]
fn no_wait_returns_before_the_first_byte_came_and_lookups_wait() {
    let (registry, image, room, layout) = setting();
    registry.inject(Fault::new(Action::Stall).blob(&image.layers[0].digest).times(1));
    let mount = room.mount(&layout, &["--no-wait", "--deadline", "1s"]);
    // The first attempt stalls until its deadline, and is tried again.
    until("the tree answers", || {
        fs::read(mount.path().join("etc/name")).is_ok_and(|bytes| bytes == b"layoutfs\n")
    });
}

#[test]
fn a_dead_registry_fails_a_read_within_the_deadline_and_not_a_cached_one() {
    let (registry, image, room, layout) = setting();
    let mount = room.mount(&layout, &["--view", "all", "--deadline", "500ms"]);
    let name = mount.path().join("rootfs/etc/name");
    assert_eq!(fs::read(&name).expect("read"), b"layoutfs\n");
    room.layoutfs(&["cache", "prune"]);
    registry.pause();
    assert_eq!(fs::read(&name).expect("cached by the kernel"), b"layoutfs\n");
    assert!(mount.path().join("rootfs/etc/other").exists(), "the tree answers");
    let second = room.mount(&layout, &["--view", "layout", "--deadline", "500ms"]);
    let blob = second.path().join("blobs/sha256").join(image.layers[0].digest.hex());
    let error = fs::read(&blob).expect_err("nobody has it");
    assert!(matches!(error.raw_os_error(), Some(5 | 110)), "EIO or ETIMEDOUT: {error}");
    registry.resume();
    // Who joins an attempt that began before shares its end, and so short a deadline may pass on a
    // busy machine: not each read need succeed, but the next ones.
    let recovered = || fs::read(&blob).is_ok_and(|bytes| bytes == image.layers[0].blob);
    until("it has recovered without a remount", recovered);
}

#[test]
fn a_stalled_read_is_etimedout() {
    let (registry, image, room, layout) = setting();
    registry.inject(Fault::new(Action::Stall).blob(&image.layers[0].digest).always());
    let mount = room.mount(&layout, &["--view", "layout", "--deadline", "300ms"]);
    let blob = mount.path().join("blobs/sha256").join(image.layers[0].digest.hex());
    let error = fs::read(&blob).expect_err("it stalls");
    assert_eq!(error.raw_os_error(), Some(110), "ETIMEDOUT: {error}");
}

#[test]
fn foreground_stays_until_it_is_unmounted_and_tells_ready_on_a_descriptor() {
    let (_registry, _, room, layout) = setting();
    let mnt = room.path().join("mnt");
    fs::create_dir(&mnt).expect("a directory");
    let mnt = mnt.display().to_string();
    let mut command = room.command(&["mount", &layout, &mnt, "--foreground", "--ready-fd", "1"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("started");
    let mut ready = [0; 6];
    let mut out = child.stdout.take().expect("piped");
    std::io::Read::read_exact(&mut out, &mut ready).expect("it says so");
    assert_eq!(&ready, b"ready\n");
    assert_eq!(fs::read(Path::new(&mnt).join("etc/name")).expect("read"), b"layoutfs\n");
    assert!(child.try_wait().expect("asked").is_none(), "it stays");
    room.layoutfs(&["unmount", &mnt]);
    assert!(child.wait().expect("ended").success());
}

#[test]
fn changes_go_to_the_upper_directory_and_nothing_else_does() {
    let (_registry, _, room, layout) = setting();
    let upper = room.path().join("up:per, with \\ all");
    let mount = room.mount(&layout, &["--upper", &upper.display().to_string()]);
    fs::write(mount.path().join("etc/new"), b"new").expect("written");
    fs::remove_file(mount.path().join("etc/other")).expect("removed");
    fs::rename(mount.path().join("etc/new"), mount.path().join("etc/newer")).expect("renamed");
    assert!(!mount.path().join("etc/other").exists());
    mount.unmount();
    let mut names: Vec<_> = fs::read_dir(upper.join("etc"))
        .expect("the upper directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    assert_eq!(names, ["newer", "other"]);
    let beside = fs::read_dir(room.path()).expect("listed").filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().contains("layoutfs-work")
    });
    assert_eq!(beside.count(), 0, "the work directory is gone");
    let again = room.mount(&layout, &["--upper", &upper.display().to_string()]);
    assert_eq!(fs::read(again.path().join("etc/newer")).expect("kept"), b"new");
}

/// A mount of an image with files `f0`, `f1`, ... whose index is known, whose bytes are not local, and
/// whose registry says nothing; and the digest of its layer.
fn silent(registry: &Registry, room: &Arc<Room>, files: usize, deadline: &str) -> (Mount, Digest) {
    let files = (0..files).map(|i| format!("file f{i} *1000\n")).collect::<String>();
    let image = ImageBuilder::new().layer(LayerBuilder::text(&files), Compression::Gzip).build();
    image.push(registry, "team/app", "v1");
    let reference = format!("docker://{}", registry.reference("team/app", "v1"));
    room.mount(&reference, &[]).unmount();
    room.layoutfs(&["cache", "prune"]);
    let digest = image.layers[0].digest;
    registry.inject(Fault::new(Action::Stall).blob(&digest).always());
    let mount = room.mount(&reference, &["--deadline", deadline]);
    registry.clear();
    (mount, digest)
}

#[test]
fn readers_that_wait_together_fail_together() {
    let (registry, room) = (Registry::start(), Room::new());
    // The first read needs the one span that there is.
    let (mount, digest) = silent(&registry, &room, 6, "2s");
    std::thread::scope(|scope| {
        for i in 0..6 {
            let path = mount.path().join(format!("f{i}"));
            scope.spawn(move || assert!(fs::read(path).is_err()));
        }
    });
    // One stalled attempt for all, and at most one more for a reader that came late; each with one
    // second request, as nothing comes.
    let made = registry.blob_requests(&digest).len();
    assert!(made <= 4, "{made} attempts");
    registry.clear_faults();
    assert!(fs::read(mount.path().join("f0")).is_ok(), "the next read tries again");
}

#[test]
fn many_files_of_a_source_that_is_gone_fail_as_soon_as_one() {
    let (registry, room) = (Registry::start(), Room::new());
    let (mount, _) = silent(&registry, &room, 40, "4s");
    let began = Instant::now();
    for i in 0..40 {
        assert!(fs::read(mount.path().join(format!("f{i}"))).is_err());
    }
    // One waits its deadline. The others ask, and have little time for it.
    let long = Duration::from_secs(8 * 4);
    assert!(began.elapsed() < long, "{:?} for 40 files", began.elapsed());
    registry.clear_faults();
    assert!(fs::read(mount.path().join("f0")).is_ok(), "the next read tries again");
}

#[test]
fn a_fifo_in_place_of_a_blob_is_not_waited_for() {
    let (_registry, image, room, layout) = setting();
    let blob = Path::new(&layout).join("blobs/sha256").join(image.layers[0].digest.hex());
    let made = Command::new("mkfifo").arg(&blob).status().expect("mkfifo runs");
    assert!(made.success());
    let mount = room.mount(&layout, &[]);
    assert_eq!(fs::read(mount.path().join("etc/name")).expect("read"), b"layoutfs\n");
}

#[test]
fn a_prune_during_a_first_contact_loses_nothing() {
    let (registry, image, room, layout) = setting();
    let digest = image.layers[0].digest;
    let slowly = Action::Drip { bytes: 30_000, every: Duration::from_millis(50) };
    registry.inject(Fault::new(slowly).blob(&digest).times(1));
    let mount = room.mount(&layout, &["--no-wait"]);
    until("bytes arrive", || registry.bytes_sent(&digest) > 60_000);
    room.layoutfs(&["cache", "prune"]);
    until("the tree answers", || mount.path().join("etc/name").exists());
    assert_eq!(fs::read(mount.path().join("etc/name")).expect("read"), b"layoutfs\n");
    assert_eq!(registry.blob_requests(&digest).len(), 1, "nothing came twice");
}

#[test]
fn a_daemon_that_is_killed_under_a_reader_and_an_overlay_is_cleared_away() {
    let (_registry, _, room, layout) = setting();
    let upper = room.path().join("upper").display().to_string();
    let mnt = room.path().join("mnt");
    fs::create_dir(&mnt).expect("a directory");
    let mnt_text = mnt.display().to_string();
    for clear in ["unmount", "mount", "unmount"] {
        room.layoutfs(&["mount", &layout, &mnt_text, "--upper", &upper]);
        let open = File::open(mnt.join("etc/name")).expect("opened");
        let json = room.layoutfs(&["status", "--json", &mnt_text]);
        let status: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        signal(status["pid"].as_i64().expect("a process"), "-9");
        drop(open);
        until("the view dies", || fs::read(mnt.join("etc/other")).is_err());
        if clear == "mount" {
            room.layoutfs(&["mount", &layout, &mnt_text, "--upper", &upper]);
            assert_eq!(fs::read(mnt.join("etc/name")).expect("read"), b"layoutfs\n");
            fs::write(mnt.join("etc/kept"), b"kept").expect("writable");
        }
        room.layoutfs(&["unmount", &mnt_text]);
        assert!(!mountpoints().iter().any(|path| path.starts_with(room.path())));
    }
    assert_eq!(fs::read(Path::new(&upper).join("etc/kept")).expect("kept"), b"kept");
}

#[test]
fn unmounting_does_not_wait_for_a_registry_that_is_gone() {
    let (registry, image, room, layout) = setting();
    registry.inject(Fault::new(Action::Stall).blob(&image.layers[0].digest).always());
    // A first contact that waits for bytes, and nobody who waits for it.
    let mount = room.mount(&layout, &["--no-wait", "--deadline", "600s"]);
    until("bytes are asked for", || !registry.blob_requests(&image.layers[0].digest).is_empty());
    let daemon = pid(&mount);
    mount.unmount();
    until("its daemon ends, too", || !Path::new(&format!("/proc/{daemon}")).exists());
    // A reader that waits: it keeps the mount busy, and is let go when its mount is detached.
    let mount = room.mount(&layout, &["--view", "layout", "--deadline", "600s"]);
    let blob = mount.path().join("blobs/sha256").join(image.layers[0].digest.hex());
    let reader = std::thread::spawn(move || fs::read(blob));
    registry.clear();
    until("the reader asks", || !registry.blob_requests(&image.layers[0].digest).is_empty());
    let (daemon, mnt) = (pid(&mount), mount.path().display().to_string());
    let outcome = room.run(&["unmount", &mnt]);
    assert_eq!(outcome.code(), Some(9), "{outcome}");
    registry.pause();
    room.layoutfs(&["unmount", "--lazy", &mnt]);
    assert!(!is_mounted(mount.path()));
    signal(daemon, "-TERM");
    assert!(reader.join().expect("a reader").is_err(), "the registry is gone");
    until("the daemon ends", || !Path::new(&format!("/proc/{daemon}")).exists());
    registry.resume();
}

#[test]
fn sigterm_ends_a_mount_whose_registry_is_gone_under_a_reader() {
    let (registry, image, room, layout) = setting();
    registry.inject(Fault::new(Action::Stall).blob(&image.layers[0].digest).always());
    let mount = room.mount(&layout, &["--view", "layout", "--deadline", "600s"]);
    let blob = mount.path().join("blobs/sha256").join(image.layers[0].digest.hex());
    let reader = std::thread::spawn(move || fs::read(blob));
    until("the reader asks", || !registry.blob_requests(&image.layers[0].digest).is_empty());
    let daemon = pid(&mount);
    signal(daemon, "-TERM");
    until("it is unmounted", || !is_mounted(mount.path()));
    until("the daemon ends", || !Path::new(&format!("/proc/{daemon}")).exists());
    assert!(reader.join().expect("a reader").is_err());
}

#[test]
fn two_mounts_of_one_image_live_and_die_on_their_own() {
    let (_registry, _, room, layout) = setting();
    let (first, second) = (room.mount(&layout, &[]), room.mount(&layout, &[]));
    assert_ne!(pid(&first), pid(&second));
    signal(pid(&first), "-9");
    until("the first dies", || fs::read_dir(first.path()).is_err());
    assert_eq!(fs::read(second.path().join("etc/name")).expect("read"), b"layoutfs\n");
    drop(first);
    assert_eq!(fs::read(second.path().join("etc/other")).expect("read").len(), 300_000);
    let third = room.mount(&layout, &[]);
    second.unmount();
    assert_eq!(fs::read(third.path().join("etc/name")).expect("read"), b"layoutfs\n");
}

#[test]
fn a_mount_below_another_keeps_it_busy_and_both_go_in_order() {
    let (_registry, _, room, layout) = setting();
    let outer = room.mount(&layout, &[]);
    let (outer_text, inner) = (outer.path().display().to_string(), outer.path().join("etc"));
    let inner_text = inner.display().to_string();
    room.layoutfs(&["mount", &layout, &inner_text]);
    assert_eq!(fs::read(inner.join("etc/name")).expect("read"), b"layoutfs\n");
    let outcome = room.run(&["unmount", &outer_text]);
    assert_eq!(outcome.code(), Some(9), "{outcome}");
    assert!(outcome.stderr.contains(&inner_text), "it says what keeps it: {outcome}");
    assert_eq!(fs::read(inner.join("etc/name")).expect("both live"), b"layoutfs\n");
    // The outer one's daemon dies: the inner one can still be named, and taken away.
    signal(pid(&outer), "-9");
    let asked = || fs::symlink_metadata(outer.path().join("nowhere"));
    until("the outer one dies", || asked().is_err_and(|e| e.raw_os_error() == Some(107)));
    room.layoutfs(&["unmount", &inner_text]);
    room.layoutfs(&["unmount", &outer_text]);
    assert!(!mountpoints().iter().any(|path| path.starts_with(outer.path())));
    // A mount over a directory above hides it.
    let above = room.path().join("above");
    fs::create_dir_all(above.join("mnt")).expect("directories");
    let [above_text, below_text] =
        [above.clone(), above.join("mnt")].map(|p| p.display().to_string());
    room.layoutfs(&["mount", &layout, &below_text]);
    room.layoutfs(&["mount", &layout, &above_text]);
    assert_eq!(fs::read(above.join("etc/name")).expect("read"), b"layoutfs\n");
    let outcome = room.run(&["unmount", &below_text]);
    assert_eq!(outcome.code(), Some(9), "hidden: {outcome}");
    room.layoutfs(&["unmount", &above_text]);
    room.layoutfs(&["unmount", &below_text]);
    assert!(!mountpoints().iter().any(|path| path.starts_with(&above)));
}
