//! Everything at once: eight readers on two mounts that come and go, a cache that is pruned under
//! them and is too small for one of them, faults at random. What is read is right, what fails says
//! so, in the end all is there.
//!
//! A few seconds in `make test`; `make soak` sets `LAYOUTFS_SOAK_SECONDS` to a minute.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::support::chance::Chance;
use crate::support::faults::{Action, Fault};
use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::mount::Room;
use crate::support::registry::Registry;

const READERS: usize = 8;

/// One read; some go over the end of a span.
const READ_BYTES_MAX: u64 = 600 << 10;

/// No fault may keep a reader waiting for longer.
const DEADLINE: &str = "500ms";

/// Less than the layers: a mount that has it evicts what it or the other one has just fetched.
const CACHE_LIMIT: &str = "6M";

/// What a read may wait: the kernel asks twice, and the machine may be busy.
const READ_LASTS_AT_MOST: Duration = Duration::from_secs(60);

/// A file, and what is in it.
type Known = (PathBuf, Bytes);

fn image() -> Image {
    let layer = |name: &str, content: Bytes| {
        LayerBuilder::new().dir(name, 0o755).file(&format!("{name}/big"), 0o644, content)
    };
    let whole: Bytes = generated("whole", 16 << 10).repeat(520).into();
    ImageBuilder::new()
        .layer(layer("plain", generated("plain", 3 << 20)), Compression::Plain)
        .layer(layer("members", generated("members", 3 << 20)), Compression::GzipMembers(100 << 10))
        .layer(layer("frames", generated("frames", 3 << 20)), Compression::ZstdFrames(200 << 10))
        .layer(layer("whole", whole), Compression::Zstd)
        .build()
}

fn rootfs_files(root: &Path) -> Vec<Known> {
    let whole: Bytes = generated("whole", 16 << 10).repeat(520).into();
    let file = |name: &str, content| (root.join(name).join("big"), content);
    let mut files: Vec<Known> = ["plain", "members", "frames"]
        .map(|name| file(name, generated(name, 3 << 20)))
        .into_iter()
        .collect();
    files.push(file("whole", whole));
    files
}

fn duration() -> Duration {
    let seconds = std::env::var("LAYOUTFS_SOAK_SECONDS").ok();
    Duration::from_secs(seconds.map_or(6, |seconds| seconds.parse().expect("a number")))
}

/// Trouble that passes: at most three requests each.
fn fault(chance: &mut Chance) -> Fault {
    let position = chance.below(2 << 20);
    let action = match chance.below(11) {
        0 => Action::HangUp,
        1 => Action::Stall,
        2 => Action::StallAt(position as usize),
        3 => Action::CutBodyAt(position as usize),
        4 => Action::Drip { bytes: 64 << 10, every: Duration::from_millis(5) },
        5 => Action::Status(500, Vec::new()),
        6 => Action::Status(429, vec![("retry-after", "1".to_owned())]),
        7 => Action::IgnoreRange,
        8 => Action::WrongBytes { at: position },
        9 => Action::WrongContentRange,
        _ => Action::MissingContentRange,
    };
    Fault::new(action).path("/blobs/").times(1 + chance.below(3) as u32)
}

/// Reads a random part of a random file, past what the kernel has of it.
fn read_somewhere(files: &[Known], chance: &mut Chance) -> io::Result<()> {
    let (path, expected) = &files[chance.below(files.len() as u64) as usize];
    let at = chance.below(expected.len() as u64);
    let len = (1 + chance.below(READ_BYTES_MAX)).min(expected.len() as u64 - at);
    let file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut bytes = vec![0; len as usize];
    let started = Instant::now();
    let read = file.read_exact_at(&mut bytes, at);
    assert!(started.elapsed() < READ_LASTS_AT_MOST, "{} hangs", path.display());
    read?;
    let right = &expected[at as usize..(at + len) as usize];
    assert!(bytes == right, "wrong bytes in {} at {at}+{len}", path.display());
    Ok(())
}

/// What mounts and readers of one run share.
struct Soak {
    registry: Registry,
    image: Image,
    room: Arc<Room>,
    layout: String,
    over: AtomicBool,
    reads: AtomicU64,
    failures: AtomicU64,
    mounts: AtomicU64,
}

impl Soak {
    fn new() -> Self {
        let (registry, image, room) = (Registry::start(), image(), Room::new());
        image.push(&registry, "team/app", "v1");
        let layout = room.path().join("layout").display().to_string();
        room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &layout]);
        let [reads, failures, mounts] = [0; 3].map(AtomicU64::new);
        Soak { registry, image, room, layout, over: false.into(), reads, failures, mounts }
    }

    /// Every file of the complete view at `root`.
    fn files(&self, root: &Path) -> Vec<Known> {
        let mut files = rootfs_files(&root.join("rootfs"));
        let blobs = root.join("layout/blobs/sha256");
        files
            .extend(self.image.layers.iter().map(|l| (blobs.join(l.digest.hex()), l.blob.clone())));
        files
    }

    /// Mounts again and again; each mount lives for a while with its readers.
    fn keep_mounting(&self, options: &[&str], is_rootfs: bool, mut chance: Chance) {
        let options = [&["--deadline", DEADLINE], options].concat();
        while !self.over.load(Ordering::Relaxed) {
            let mount = match self.room.try_mount(&self.layout, &options) {
                Ok(mount) => mount,
                Err(refused) => {
                    // Network after retries, a wrong digest: faults outlast patience at times.
                    assert!(matches!(refused.code(), Some(6 | 7)), "{refused}");
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            };
            self.mounts.fetch_add(1, Ordering::Relaxed);
            let files = match is_rootfs {
                true => rootfs_files(mount.path()),
                false => self.files(mount.path()),
            };
            let until = Instant::now() + Duration::from_millis(200 + chance.below(2000));
            std::thread::scope(|scope| {
                for _ in 0..READERS / 2 {
                    let (files, chance) = (&files, Chance::of(chance.number()));
                    scope.spawn(move || self.keep_reading(files, until, chance));
                }
            });
        }
    }

    fn keep_reading(&self, files: &[Known], until: Instant, mut chance: Chance) {
        while Instant::now() < until && !self.over.load(Ordering::Relaxed) {
            match read_somewhere(files, &mut chance) {
                Ok(()) => self.reads.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    let errno = error.raw_os_error();
                    assert!(matches!(errno, Some(5 | 110)), "EIO or ETIMEDOUT: {error}");
                    self.failures.fetch_add(1, Ordering::Relaxed)
                }
            };
        }
    }

    /// Evictions and faults, at random, for as long as the run lasts.
    fn make_trouble(&self, chance: &mut Chance) {
        let until = Instant::now() + duration();
        // On a busy machine all may fail for some seconds, with so short a deadline.
        let (at_most, now) = (until + READ_LASTS_AT_MOST, Instant::now);
        let is_nothing_read = || self.reads.load(Ordering::Relaxed) == 0;
        while now() < until || is_nothing_read() && now() < at_most {
            match chance.below(8) {
                0 => drop(self.room.layoutfs(&["cache", "prune", "--cache-limit", "4M"])),
                1 => drop(self.room.layoutfs(&["cache", "prune"])),
                2 => drop(self.room.layoutfs(&["cache", "prune", "--indexes"])),
                _ if self.registry.faults_left() < 2 => self.registry.inject(fault(chance)),
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(chance.below(60)));
        }
    }
}

/// Ends the run also when the one who holds it panics: nobody waits for a run that goes on.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_evictions_and_faults_at_once_never_show_a_wrong_byte() {
    let soak = Soak::new();
    let mut chance = Chance::new();
    std::thread::scope(|scope| {
        let _ends = Ends(&soak.over);
        let (soak, first, second) =
            (&soak, Chance::of(chance.number()), Chance::of(chance.number()));
        scope.spawn(move || soak.keep_mounting(&["--cache-limit", CACHE_LIMIT], true, first));
        // Strict: a stream may show wrong bytes before its end, which then fails.
        let strict = ["--view", "all", "--verify", "strict"];
        scope.spawn(move || soak.keep_mounting(&strict, false, second));
        soak.make_trouble(&mut chance);
    });
    soak.registry.clear_faults();
    let [reads, failures, mounts] =
        [&soak.reads, &soak.failures, &soak.mounts].map(|count| count.load(Ordering::Relaxed));
    let requests = soak.registry.requests().len();
    eprintln!("{mounts} mounts, {reads} right reads, {failures} failures, {requests} requests");
    assert!(reads > 0 && mounts > 0 && requests > 10, "nothing happened");
    let mount = soak.room.mount(&soak.layout, &["--view", "all", "--verify", "strict"]);
    for (path, expected) in soak.files(mount.path()) {
        let read = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(read == expected, "{} is wrong in the end", path.display());
    }
}
