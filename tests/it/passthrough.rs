//! Blobs of the layout view that the kernel reads by itself: which, and what is lost by it: nothing.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::support::image::{Fill, Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::modes;
use crate::support::mount::{LIMIT, Mount, Room, run};
use crate::support::registry::Registry;
use crate::support::until::until;

const LAYOUT: [&str; 2] = ["--view", "layout"];

/// Several READs.
const BIG_BYTES: usize = 3 << 20;

fn image() -> Image {
    let layer = LayerBuilder::new().file("big", 0o644, generated("x", BIG_BYTES));
    ImageBuilder::new().layer(layer, Compression::Gzip).build()
}

/// An image whose layout directory has all of it.
fn full() -> (Arc<Room>, Image, PathBuf) {
    let (room, image) = (Room::new(), image());
    let layout = room.path().join("layout");
    image.write_layout(&layout, "v1", Fill::Full);
    (room, image, layout)
}

/// An image whose layout directory has its documents alone.
fn sparse() -> (Registry, Arc<Room>, Image, PathBuf) {
    let (registry, room, image) = (Registry::start(), Room::new(), image());
    image.push(&registry, "team/app", "v1");
    let layout = room.path().join("layout");
    let to = layout.to_str().expect("text");
    room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", to]);
    (registry, room, image, layout)
}

fn mounted(room: &Arc<Room>, layout: &Path) -> Mount {
    room.mount(layout.to_str().expect("text"), &LAYOUT)
}

fn blob_in(directory: &Path, image: &Image) -> PathBuf {
    directory.join("blobs/sha256").join(image.layers[0].digest.hex())
}

fn cached(room: &Room, image: &Image) -> PathBuf {
    blob_in(&room.cache_dir().join("v1"), image)
}

fn status(mount: &Mount) -> Value {
    let path = mount.path().to_str().expect("text");
    serde_json::from_str(&mount.room().layoutfs(&["status", "--json", path])).expect("JSON")
}

/// Opens that were passed through, and READ messages.
fn passed_and_reads(mount: &Mount) -> (u64, u64) {
    let status = status(mount);
    let reads = status["messages"]["read"].as_u64().unwrap_or(0);
    (status["opens_passed_through"].as_u64().expect("a number"), reads)
}

fn read_all(file: &File, image: &Image) {
    let mut bytes = vec![0; image.layers[0].blob.len()];
    file.read_exact_at(&mut bytes, 0).expect("read");
    assert!(bytes == image.layers[0].blob, "other bytes");
}

/// Opens and reads the blob until that is passed through: those who closed it before may not be
/// known to have. Nothing else is awaited.
fn until_passed(mount: &Mount, image: &Image) {
    let before = passed_and_reads(mount).0;
    until("it is passed through", || {
        assert!(fs::read(blob_in(mount.path(), image)).expect("read") == image.layers[0].blob);
        passed_and_reads(mount).0 > before
    });
}

/// A mode of the suite has it switched off.
fn is_off() -> bool {
    modes::is_skipped_with("no-passthrough", "nothing is passed through")
}

#[test]
fn a_whole_blob_is_read_without_a_message() {
    if is_off() {
        return;
    }
    let (room, image, layout) = full();
    for options in [&[][..], &["--verify", "strict"]] {
        let mount = room.mount(layout.to_str().expect("text"), &[&LAYOUT, options].concat());
        let path = blob_in(mount.path(), &image);
        for _ in 0..3 {
            assert!(fs::read(&path).expect("read") == image.layers[0].blob);
        }
        let (out, all) = (room.path().join("out"), image.layers[0].blob.len() as u64);
        assert_eq!(fs::copy(&path, &out).expect("copied"), all);
        assert!(fs::read(&out).expect("read") == image.layers[0].blob);
        assert_eq!(passed_and_reads(&mount), (4, 0));
        let status = status(&mount);
        assert_eq!((&status["bytes_read"], &status["read_errors"]), (&0.into(), &0.into()));
        let layer = &status["layers"][0];
        assert_eq!(layer["opens_passed_through"], 4);
        assert_eq!((&layer["bytes_never_needed"], &layer["bytes_used"]), (&0.into(), &0.into()));
        assert_eq!(layer["amplification"], Value::Null, "nobody knows");
        let shown = room.layoutfs(&["status", mount.path().to_str().expect("text")]);
        assert!(shown.contains("4 opens of blobs passed through"), "{shown}");
        let manifest = mount.path().join("blobs/sha256").join(image.digest.hex());
        assert_eq!(fs::read(manifest).expect("read"), image.manifest);
    }
}

#[test]
fn a_sparse_blob_is_passed_through_when_it_is_whole_and_closed() {
    if is_off() {
        return;
    }
    let (registry, room, image, layout) = sparse();
    let mount = mounted(&room, &layout);
    let path = blob_in(mount.path(), &image);
    // One that is open before the blob is whole makes all others read as it does.
    let first = File::open(&path).expect("opened");
    first.read_exact_at(&mut [0], 0).expect("read");
    read_all(&first, &image);
    let second = File::open(&path).expect("opened");
    read_all(&second, &image);
    drop(first);
    read_all(&second, &image);
    let (passed, reads) = passed_and_reads(&mount);
    assert!(passed == 0 && reads > 0, "{passed} passed, {reads} READs");
    let layer = &status(&mount)["layers"][0];
    assert!(layer["bytes_used"].as_u64() > Some(image.layer_bytes()), "{layer}");
    drop(second);
    until_passed(&mount, &image);
    let reads = passed_and_reads(&mount).1;
    let (third, fourth) = (File::open(&path).expect("opened"), File::open(&path).expect("opened"));
    read_all(&third, &image);
    drop(third);
    read_all(&fourth, &image);
    assert_eq!(passed_and_reads(&mount).1, reads);
    assert_eq!(registry.bytes_sent(&image.layers[0].digest), image.layer_bytes(), "fetched once");
    drop((fourth, mount));
    // The cache has it now: the first open of the next mount proves it.
    registry.clear();
    let mount = mounted(&room, &layout);
    read_all(&File::open(blob_in(mount.path(), &image)).expect("opened"), &image);
    assert_eq!(passed_and_reads(&mount), (1, 0));
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn who_wants_no_page_cache_is_answered_by_messages_and_needs_no_alignment() {
    if is_off() {
        return;
    }
    let (room, image, layout) = full();
    let mount = mounted(&room, &layout);
    let path = blob_in(mount.path(), &image);
    let direct = || {
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = File::options().read(true).custom_flags(flags).open(&path).expect("opened");
        let mut bytes = [0; 1001];
        file.read_exact_at(&mut bytes, 333).expect("read at any byte");
        assert_eq!(bytes[..], image.layers[0].blob[333..1334]);
    };
    direct();
    assert!(matches!(passed_and_reads(&mount), (0, 1..)));
    until_passed(&mount, &image);
    let passed = File::open(&path).expect("opened");
    direct();
    read_all(&passed, &image);
    assert_eq!(status(&mount)["read_errors"], 0);
}

#[test]
fn a_blob_that_is_evicted_while_it_is_open_reads_on_and_is_fetched_again_later() {
    if is_off() {
        return;
    }
    let (registry, room, image, layout) = sparse();
    let mount = mounted(&room, &layout);
    until_passed(&mount, &image);
    let path = blob_in(mount.path(), &image);
    let file = File::open(&path).expect("opened");
    room.layoutfs(&["cache", "prune"]);
    assert!(!cached(&room, &image).exists());
    registry.clear();
    read_all(&file, &image);
    let other = File::open(&path).expect("opened");
    read_all(&other, &image);
    let (passed, _) = passed_and_reads(&mount);
    assert!(passed >= 3, "{passed}");
    assert_eq!(registry.requests().len(), 0);
    drop((file, other, mount));
    let mount = mounted(&room, &layout);
    assert!(fs::read(blob_in(mount.path(), &image)).expect("read") == image.layers[0].blob);
    assert_eq!(registry.bytes_sent(&image.layers[0].digest), image.layer_bytes());
    assert_eq!(passed_and_reads(&mount).0, 0);
}

#[test]
fn a_file_that_somebody_writes_to_is_given_to_no_newcomer_unless_it_is_right() {
    if is_off() {
        return;
    }
    let (registry, room, image, layout) = sparse();
    let mount = mounted(&room, &layout);
    until_passed(&mount, &image);
    let path = blob_in(mount.path(), &image);
    let reader = File::open(&path).expect("opened");
    let backing = File::options().write(true).open(cached(&room, &image)).expect("opened");
    // Written to, and right.
    backing.set_modified(SystemTime::now() - Duration::from_secs(60)).expect("touched");
    let (passed, _) = passed_and_reads(&mount);
    read_all(&File::open(&path).expect("proved again"), &image);
    assert_eq!(passed_and_reads(&mount).0, passed + 1);
    // Written to, and wrong.
    let wrong = [!image.layers[0].blob[5000]];
    backing.write_all_at(&wrong, 5000).expect("written");
    backing.set_modified(SystemTime::now() - Duration::from_secs(30)).expect("touched");
    let mut seen = [0];
    reader.read_exact_at(&mut seen, 5000).expect("read");
    assert_eq!(seen, wrong, "that is what passing through means");
    let error = File::open(&path).expect_err("others are reading wrong bytes");
    assert_eq!(error.raw_os_error(), Some(5), "EIO: {error}");
    drop(reader);
    registry.clear();
    until("it is fetched anew", || {
        fs::read(&path).is_ok_and(|bytes| bytes == image.layers[0].blob)
    });
    assert_eq!(registry.bytes_sent(&image.layers[0].digest), image.layer_bytes());
    let log = mount.log();
    assert!(log.contains("changed while it is open"), "{log}");
    assert!(log.contains("written to while the kernel read it"), "{log}");
}

#[test]
fn a_damaged_blob_is_never_passed_through() {
    let (registry, room, image, layout) = sparse();
    mounted(&room, &layout).unmount();
    room.mount(layout.to_str().expect("text"), &[]).unmount();
    let mut bytes = fs::read(cached(&room, &image)).expect("it was kept");
    bytes[5000] ^= 1;
    fs::write(cached(&room, &image), &bytes).expect("damaged");
    registry.clear();
    let mount = mounted(&room, &layout);
    assert!(fs::read(blob_in(mount.path(), &image)).expect("read") == image.layers[0].blob);
    assert_eq!(passed_and_reads(&mount).0, 0);
    assert_eq!(registry.bytes_sent(&image.layers[0].digest), image.layer_bytes());
}

#[test]
fn what_others_than_root_can_write_to_is_read_by_messages() {
    let (room, image, layout) = full();
    let file = blob_in(&layout, &image);
    let outcomes = [(1000, 0o644, false), (0, 0o664, false), (0, 0o646, false), (0, 0o600, true)];
    for (owner, mode, passes) in outcomes {
        chown(&file, Some(owner), None).expect("root may");
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(&file, permissions).expect("set");
        let mount = mounted(&room, &layout);
        for _ in 0..2 {
            assert!(fs::read(blob_in(mount.path(), &image)).expect("read") == image.layers[0].blob);
        }
        let (passed, reads) = passed_and_reads(&mount);
        let passes = passes && !modes::is_on("no-passthrough");
        assert_eq!((passed > 0, reads == 0), (passes, passes), "{owner} {mode:o}");
    }
}

#[test]
fn views_with_a_rootfs_and_mounts_that_record_see_every_read() {
    let (room, image, layout) = full();
    let (text, trace) = (layout.to_str().expect("text"), room.path().join("trace"));
    for (options, path) in [
        (&["--view", "all"][..], "layout"),
        (&["--view", "all", "--verify", "strict"], "layout"),
        (&["--view", "layout", "--record", trace.to_str().expect("text")], ""),
    ] {
        let mount = room.mount(text, options);
        let blob = blob_in(&mount.path().join(path), &image);
        assert!(fs::read(blob).expect("read") == image.layers[0].blob);
        assert!(matches!(passed_and_reads(&mount), (0, 1..)), "{options:?}");
        let used = status(&mount)["layers"][0]["bytes_used"].clone();
        assert_eq!(used, image.layer_bytes(), "{options:?}");
    }
    let trace = fs::read_to_string(&trace).expect("recorded");
    let whole = format!(" 0 {}", image.layer_bytes());
    assert!(trace.lines().any(|line| line.contains(&whole) || line.ends_with(&whole)), "{trace}");
}

/// Something mounted by a test, which is gone with it.
struct Mounted(PathBuf);

impl Mounted {
    fn overlay(at: &Path, lower: &Path) -> io::Result<Self> {
        let dirs = ["upper", "work"].map(|name| at.with_extension(name));
        for dir in dirs.iter().chain([&at.to_owned()]) {
            fs::create_dir_all(dir)?;
        }
        let [upper, work] = dirs.each_ref().map(|dir| dir.display());
        let options = format!("lowerdir={},upperdir={upper},workdir={work}", lower.display());
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(at);
        match run(&mut mount, LIMIT) {
            outcome if outcome.status.success() => Ok(Mounted(at.to_owned())),
            outcome => Err(io::Error::other(outcome.to_string())),
        }
    }

    fn tmpfs(at: &Path) -> Self {
        let mut mount = Command::new("mount");
        run(mount.args(["-t", "tmpfs", "-o", "mode=700", "tmpfs"]).arg(at), LIMIT).success();
        Mounted(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0), LIMIT);
    }
}

#[test]
fn overlays_stack_on_a_rootfs_as_before_and_one_on_a_layout_view() {
    let (room, image, layout) = full();
    let [first, second, third] = ["first", "second", "third"].map(|name| room.path().join(name));
    let rootfs = room.mount(layout.to_str().expect("text"), &[]);
    let below = Mounted::overlay(&first, rootfs.path()).expect("one overlay");
    let above = Mounted::overlay(&second, &first).expect("one more, as builders in containers do");
    assert!(fs::read(second.join("big")).expect("read") == generated("x", BIG_BYTES));
    drop(above);
    drop(below);
    let view = mounted(&room, &layout);
    let over = Mounted::overlay(&third, view.path()).expect("one overlay");
    assert!(fs::read(blob_in(&third, &image)).expect("read") == image.layers[0].blob);
    drop(over);
}

#[test]
fn a_cache_on_another_filesystem_is_read_all_the_same() {
    let log = |mount: &Mount| mount.log().matches("does not read blobs by itself").count();
    for is_overlay in [true, false] {
        let (_registry, room, image, layout) = sparse();
        let (cache, lower) = (room.cache_dir(), room.path().join("lower"));
        fs::create_dir(&lower).expect("made");
        let _cache = match is_overlay {
            true => Mounted::overlay(&cache, &lower).expect("an overlay"),
            false => Mounted::tmpfs(&cache),
        };
        let options = [&LAYOUT[..], &["-vv"]].concat();
        let mount = room.mount(layout.to_str().expect("text"), &options);
        for _ in 0..5 {
            let path = blob_in(mount.path(), &image);
            assert!(fs::read(path).expect("read") == image.layers[0].blob);
        }
        if modes::is_on("no-passthrough") {
            assert_eq!((passed_and_reads(&mount).0, log(&mount)), (0, 0));
        } else if is_overlay {
            // Until the kernel has seen the first one, each may have been opened too early.
            until("it is refused", || {
                fs::read(blob_in(mount.path(), &image)).expect("read");
                log(&mount) > 0
            });
            fs::read(blob_in(mount.path(), &image)).expect("read");
            assert_eq!((passed_and_reads(&mount).0, log(&mount)), (0, 1));
        } else {
            until_passed(&mount, &image);
            assert_eq!(log(&mount), 0);
        }
        assert_eq!(status(&mount)["read_errors"], 0);
    }
}

#[test]
fn root_of_a_user_namespace_does_not_try() {
    let (room, image, layout) = full();
    let mnt = room.path().join("inner");
    fs::create_dir(&mnt).expect("made");
    let [program, layout, mnt] = [Path::new(env!("CARGO_BIN_EXE_layoutfs")), &layout, &mnt]
        .map(|path| path.to_str().expect("text"));
    let blob = blob_in(Path::new(mnt), &image);
    let script = "set -e; \"$1\" mount -vv --cache-dir \"$5\" --view layout \"$2\" \"$3\"; cat \"$4\" >/dev/null; \
                  sha256sum <\"$4\"; \"$1\" status --json \"$3\"; log=$(\"$1\" status \"$3\" | \
                  sed -n 's/^  log //p'); cat \"$log\"; \"$1\" unmount \"$3\"";
    let cache = room.path().join("inner-cache");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    command.args([program, layout, mnt]).args([&blob, &cache]);
    command.env("XDG_RUNTIME_DIR", room.path().join("run")).env_remove("NOTIFY_SOCKET");
    let said = run(&mut command, LIMIT).success();
    assert!(said.starts_with(&image.layers[0].digest.hex()), "{said}");
    assert!(said.contains("\"opens_passed_through\": 0"), "{said}");
    assert!(!said.contains("does not read blobs by itself"), "{said}");
}

#[test]
fn skopeo_copies_an_image_whose_blobs_are_passed_through() {
    let (room, image, layout) = full();
    let mount = mounted(&room, &layout);
    let out = room.path().join("out");
    let from = format!("oci:{}:v1", mount.path().display());
    let to = format!("dir:{}", out.display());
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "-q", "--preserve-digests", &from, &to]);
    run(&mut skopeo, LIMIT).success();
    let copied = fs::read(out.join(image.layers[0].digest.hex())).expect("copied");
    assert!(copied == image.layers[0].blob);
    // Its documents are answered by messages.
    let (passed, _) = passed_and_reads(&mount);
    let read = status(&mount)["bytes_read"].as_u64().expect("a number");
    let passes = !modes::is_on("no-passthrough");
    assert_eq!((passed > 0, read < image.layer_bytes()), (passes, passes), "{passed}, {read}");
}

#[test]
fn a_mount_goes_while_the_kernel_reads_its_blobs() {
    for with_signal in [false, true] {
        let (room, image, layout) = full();
        let mount = mounted(&room, &layout);
        let file = File::open(blob_in(mount.path(), &image)).expect("opened");
        read_all(&file, &image);
        let daemon = status(&mount)["pid"].as_i64().expect("a process");
        let mnt = mount.path().to_str().expect("text").to_owned();
        let outcome = room.run(&["unmount", &mnt]);
        assert_eq!(outcome.code(), Some(9), "{outcome}");
        match with_signal {
            true => run(Command::new("kill").arg(daemon.to_string()), LIMIT).success(),
            false => room.layoutfs(&["unmount", "--lazy", &mnt]),
        };
        if with_signal {
            // It does not wait for the file, which the kernel goes on reading.
            until("it ends", || !Path::new(&format!("/proc/{daemon}")).exists());
        }
        if !is_off() {
            read_all(&file, &image);
        }
        drop(file);
        until("it ends", || !Path::new(&format!("/proc/{daemon}")).exists());
    }
}
