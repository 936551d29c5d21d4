//! A daemon that is killed at any moment loses nothing that was proved, and leaves nothing that
//! `mount` and `unmount` cannot clear.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use layoutfs::layout::Digest;

use crate::support::chance::Chance;
use crate::support::faults::{Action, Fault};
use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::mount::{Mount, Room};
use crate::support::registry::{Registry, Request};
use crate::support::until::until;

const KILLS: u64 = 100;

/// One layer; more than one request of a stream.
const BIG_BYTES: usize = (4 << 20) + (200 << 10);

/// With this pace a first contact takes some tenths of a second, most of them on the wire.
const PACE: Action = Action::Drip { bytes: 256 << 10, every: Duration::from_millis(4) };

/// How long a first contact takes here and now: most kills come before its end, some after.
fn first_contact_ms(registry: &Registry, room: &Arc<Room>, layout: &str) -> u64 {
    registry.inject(Fault::new(PACE).path("/blobs/").always());
    let began = Instant::now();
    room.mount(layout, &[]).unmount();
    registry.clear_faults();
    began.elapsed().as_millis() as u64
}

const NAMES: [&str; 3] = ["plain", "members", "whole"];

fn image() -> Image {
    let layer = |name: &str| {
        let path = format!("{name}/big");
        LayerBuilder::new().dir(name, 0o755).file(&path, 0o644, generated(name, BIG_BYTES))
    };
    ImageBuilder::new()
        .layer(layer("plain"), Compression::Plain)
        .layer(layer("members"), Compression::GzipMembers(64 << 10))
        .layer(layer("whole"), Compression::Zstd)
        .build()
}

fn setting() -> (Registry, Image, Arc<Room>, String) {
    let (registry, image, room) = (Registry::start(), image(), Room::new());
    image.push(&registry, "team/app", "v1");
    let layout = room.path().join("layout").display().to_string();
    room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &layout]);
    (registry, image, room, layout)
}

/// What the cache says that needs no request any more: proved blobs whole, and the resident ranges
/// of the others.
#[derive(Debug, Default)]
struct Kept(BTreeMap<String, Vec<(u64, u64)>>);

impl Kept {
    fn of(room: &Room, image: &Image) -> Self {
        let blobs = room.cache_dir().join("v1/blobs/sha256");
        let mut kept = Kept::default();
        for layer in &image.layers {
            let (hex, size) = (layer.digest.hex(), layer.blob.len() as u64);
            let ranges = if blobs.join(&hex).exists() {
                vec![(0, size)]
            } else {
                let map = fs::read_to_string(blobs.join(format!("{hex}.{size}.map")));
                let line = |line: &str| {
                    let (start, end) = line.split_once(' ').expect("two numbers");
                    (start.parse().expect("a number"), end.parse().expect("a number"))
                };
                map.unwrap_or_default().lines().map(line).collect()
            };
            kept.0.insert(hex, ranges);
        }
        kept
    }

    /// None of `requests` asks for a byte that was kept.
    fn assert_not_asked_for(&self, registry: &Registry, digest: &Digest, case: &str) {
        for request in registry.blob_requests(digest) {
            let (start, end) = range(&request);
            for kept in &self.0[&digest.hex()] {
                assert!(
                    end <= kept.0 || start >= kept.1,
                    "{case}: {digest}: bytes {start}..{end} are fetched again: {kept:?} was kept"
                );
            }
        }
    }
}

fn range(request: &Request) -> (u64, u64) {
    let range = request.range.as_deref().expect("every request has a range");
    let (first, last) = range.trim_start_matches("bytes=").split_once('-').expect("a range");
    (first.parse().expect("a number"), last.parse::<u64>().expect("a number") + 1)
}

fn kill(child: &mut Child) {
    child.kill().expect("killed");
    child.wait().expect("ended");
}

fn assert_right(mount: &Mount, case: &str) {
    for name in NAMES {
        let bytes = fs::read(mount.path().join(name).join("big"));
        let bytes = bytes.unwrap_or_else(|e| panic!("{case}: {name}: {e}"));
        assert!(bytes == generated(name, BIG_BYTES), "{case}: {name} is wrong");
    }
}

fn start(room: &Room, layout: &str, mnt: &Path) -> Child {
    let _ = fs::create_dir(mnt);
    let mnt = mnt.display().to_string();
    let mut command = room.command(&["mount", layout, &mnt, "--foreground", "--quiet"]);
    command.spawn().expect("started")
}

#[test]
fn a_first_contact_that_is_killed_at_any_moment_goes_on_where_it_was() {
    let (registry, image, room, layout) = setting();
    let mut chance = Chance::new();
    let killed_at = room.path().join("killed");
    let latest_ms = first_contact_ms(&registry, &room, &layout);
    let mut was_mounted = 0;
    let mut went_on = 0;
    for number in 0..KILLS {
        fs::remove_dir_all(room.cache_dir()).expect("removed");
        let mut kept = Kept::default();
        let mut case = format!("seed {}, kill {number}", chance.seed());
        // Some are killed twice on the way.
        for _ in 0..=chance.below(2) {
            registry.clear();
            registry.inject(Fault::new(PACE).path("/blobs/").always());
            let mut child = start(&room, &layout, &killed_at);
            let moment = chance.below(latest_ms);
            case += &format!(" after {moment} ms");
            std::thread::sleep(Duration::from_millis(moment));
            was_mounted += u64::from(child.try_wait().expect("asked").is_none());
            kill(&mut child);
            for layer in image.layers.iter().filter(|_| !kept.0.is_empty()) {
                kept.assert_not_asked_for(&registry, &layer.digest, &case);
            }
            kept = Kept::of(&room, &image);
            registry.clear_faults();
        }
        room.layoutfs(&["unmount", &killed_at.display().to_string()]);
        went_on += u64::from(kept.0.values().any(|ranges| !ranges.is_empty()));
        registry.clear();
        let mount = room.mount(&layout, &[]);
        assert_right(&mount, &case);
        for layer in &image.layers {
            kept.assert_not_asked_for(&registry, &layer.digest, &case);
            let fetched: u64 =
                registry.blob_requests(&layer.digest).iter().map(range).map(|(s, e)| e - s).sum();
            assert!(fetched <= layer.blob.len() as u64, "{case}: {fetched} bytes for one blob");
        }
    }
    assert!(was_mounted > KILLS / 2 && went_on > KILLS / 4, "kills hit nothing: {went_on}");
}

#[test]
fn spans_that_a_killed_daemon_has_read_are_not_fetched_again() {
    let (registry, image, room, layout) = setting();
    let mut chance = Chance::new();
    let killed_at = room.path().join("killed");
    room.mount(&layout, &[]).unmount();
    room.layoutfs(&["cache", "prune"]);
    registry.inject(Fault::new(PACE).path("/blobs/").always());
    let mut asked_in_vain = 0;
    for number in 0..10 {
        let case = format!("seed {}, kill {number}", chance.seed());
        let before = Kept::of(&room, &image);
        registry.clear();
        let mut child = start(&room, &layout, &killed_at);
        let moment = Duration::from_millis(50 + chance.below(250));
        let names = [NAMES[0], NAMES[1]].map(|name| killed_at.join(name).join("big"));
        let (over, mut read) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            // Readers at random places, until the daemon dies under them.
            let readers = names.each_ref().map(|path| {
                let (over, chance) = (&over, Chance::of(chance.number()));
                scope.spawn(move || read_until(over, path, chance))
            });
            until("it answers", || names[0].exists());
            std::thread::sleep(moment);
            kill(&mut child);
            over.store(true, Ordering::Relaxed);
            read = readers.into_iter().map(|r| r.join().expect("a reader")).sum();
        });
        asked_in_vain += usize::from(read == 0);
        for layer in &image.layers[..2] {
            before.assert_not_asked_for(&registry, &layer.digest, &case);
        }
        room.layoutfs(&["unmount", &killed_at.display().to_string()]);
    }
    assert!(asked_in_vain < 10, "no reader ever got a byte");
    registry.clear_faults();
    let kept = Kept::of(&room, &image);
    registry.clear();
    let mount = room.mount(&layout, &[]);
    assert_right(&mount, "in the end");
    for layer in &image.layers {
        kept.assert_not_asked_for(&registry, &layer.digest, "in the end");
    }
}

/// Reads pieces of the file, which are right, until it is `over` (a dead mount still shows what the
/// kernel has of it); gives how many.
fn read_until(over: &AtomicBool, path: &Path, mut chance: Chance) -> usize {
    let name = path.parent().and_then(Path::file_name).expect("a name").to_owned();
    let expected = generated(name.to_str().expect("letters"), BIG_BYTES);
    let mut read = 0;
    while !over.load(Ordering::Relaxed) {
        let Ok(file) = File::open(path) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let at = chance.below(BIG_BYTES as u64 - 4096) as usize;
        let mut bytes = [0; 4096];
        if file.read_exact_at(&mut bytes, at as u64).is_ok() {
            assert!(bytes == expected[at..at + 4096], "{} at {at}", path.display());
            read += 1;
        }
    }
    read
}

#[test]
fn a_mount_whose_starter_is_killed_does_not_go_on_for_nobody() {
    let (registry, image, room, layout) = setting();
    for layer in &image.layers {
        registry.inject(Fault::new(Action::StallAt(1000)).blob(&layer.digest).always());
    }
    let mnt = room.path().join("mnt");
    fs::create_dir(&mnt).expect("a directory");
    let mut command = room.command(&["mount", &layout, &mnt.display().to_string()]);
    command.stdout(std::process::Stdio::piped());
    let mut starter = command.spawn().expect("started");
    let mut out = starter.stdout.take().expect("piped");
    let is_mounted = || crate::support::mount::mountpoints().contains(&mnt);
    until("it is mounted", is_mounted);
    let is_asked = || image.layers.iter().any(|l| !registry.blob_requests(&l.digest).is_empty());
    until("bytes are asked for", is_asked);
    kill(&mut starter);
    until("its daemon unmounts", || !is_mounted());
    // The daemon had the other end: it has ended.
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).expect("nobody writes any more");
    registry.clear_faults();
    let mount = room.mount(&layout, &[]);
    assert_right(&mount, "afterwards");
}
