//! A daemon keeps no descriptor of its caller's, and has no more of its own after a long life.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::mount::{Room, mountpoints};
use crate::support::registry::Registry;

/// Two of these do not fit into the cache below.
const BIG_BYTES: usize = 3 << 20;
const CACHE_LIMIT: &str = "5M";

/// How a layer is compressed is how its files are kept open.
fn image() -> Image {
    let layer = |name: &str| LayerBuilder::new().file(name, 0o644, generated(name, BIG_BYTES));
    ImageBuilder::new()
        .layer(layer("plain"), Compression::Plain)
        .layer(layer("members"), Compression::GzipMembers(100 << 10))
        .layer(layer("gzip"), Compression::Gzip)
        .layer(layer("frames"), Compression::ZstdFrames(200 << 10))
        .layer(layer("zstd"), Compression::Zstd)
        .build()
}

fn setting() -> (Registry, Arc<Room>, String) {
    let (registry, room) = (Registry::start(), Room::new());
    image().push(&registry, "team/app", "v1");
    let layout = room.path().join("layout").display().to_string();
    room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &layout]);
    (registry, room, layout)
}

fn pid(room: &Room, mnt: &Path) -> i64 {
    let json = room.layoutfs(&["status", "--json", &mnt.display().to_string()]);
    let status: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    status["pid"].as_i64().expect("a process")
}

/// What the process has open, by number.
fn open_files(pid: i64) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives");
    let mut open: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.to_owned();
            Some((number, fs::read_link(path).ok()?))
        })
        .collect();
    open.sort();
    open
}

#[test]
fn a_daemon_keeps_no_descriptor_of_its_caller() {
    let (_registry, room, layout) = setting();
    let mnt = room.path().join("mnt");
    fs::create_dir(&mnt).expect("a directory");
    let theirs = room.path().join("theirs");
    let name = |name: &str| theirs.join(name).display().to_string();
    fs::create_dir(&theirs).expect("a directory");
    fs::write(name("in"), "").expect("written");
    let mount =
        room.command(&["mount", &layout, &mnt.display().to_string(), "--ready-fd", "3", "--quiet"]);
    let script = "cd \"$1\"; shift; exec <in >out 2>err 3>ready 4<in 9>lock; exec \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-ec", script, "sh"]).arg(&theirs).arg(mount.get_program()).args(mount.get_args());
    shell.envs(mount.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert!(shell.status().expect("run").success(), "{}", fs::read_to_string(name("err")).unwrap());
    assert_eq!(fs::read_to_string(name("ready")).expect("read"), "ready\n");
    let daemon = pid(&room, &mnt);
    let open = open_files(daemon);
    let standard: Vec<_> = open.iter().filter(|(number, _)| number.len() == 1).take(3).collect();
    assert_eq!(standard[0].1, Path::new("/dev/null"), "{open:#?}");
    assert_eq!(standard[1].1, Path::new("/dev/null"), "{open:#?}");
    assert!(standard[2].1.extension().is_some_and(|e| e == "log"), "{open:#?}");
    assert!(!open.iter().any(|(_, path)| path.starts_with(&theirs)), "{open:#?}");
    assert!(!open.iter().any(|(_, path)| path.to_string_lossy().starts_with("pipe:")), "{open:#?}");
    let cwd = fs::read_link(format!("/proc/{daemon}/cwd")).expect("it lives");
    assert_eq!(cwd, Path::new("/"), "it keeps no directory of the caller's busy");
    room.layoutfs(&["unmount", &mnt.display().to_string()]);
}

#[test]
fn whoever_waits_for_the_line_hears_the_end_of_it_or_nothing_is_mounted() {
    let (_registry, room, layout) = setting();
    let mnt = room.path().join("mnt");
    fs::create_dir(&mnt).expect("a directory");
    let mnt_text = mnt.display().to_string();
    let mount = |fd: &str| room.command(&["mount", &layout, &mnt_text, "--ready-fd", fd, "-q"]);
    let mut child = mount("1").stdout(Stdio::piped()).spawn().expect("started");
    let mut said = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut said).expect("it ends");
    assert!(child.wait().expect("ended").success());
    assert_eq!(said, "ready\n");
    room.layoutfs(&["unmount", &mnt_text]);
    // Nothing is open there; nobody can write there.
    let full = File::options().write(true).open("/dev/full").expect("opened");
    // Its daemon is told to end as soon as it serves: whenever that is, nothing is left of it.
    for fd in ["77", "1", "1", "1", "1", "1"] {
        let mut command = mount(fd);
        command.stdout(full.try_clone().expect("one more")).stderr(Stdio::null());
        assert_eq!(command.status().expect("run").code(), Some(1), "{command:?}");
        assert!(!mountpoints().contains(&mnt), "{command:?}");
    }
}

/// Reads every file below `dir` to its end.
fn read_all(dir: &Path) {
    for entry in fs::read_dir(dir).expect("listed") {
        let entry = entry.expect("an entry");
        if entry.file_type().expect("its type").is_dir() {
            read_all(&entry.path());
        } else {
            let file = File::open(entry.path()).expect("opened");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("dropped");
            std::io::copy(&mut &file, &mut std::io::sink()).expect("read");
        }
    }
}

#[test]
fn reading_evicting_and_fetching_again_leaves_no_descriptor_open() {
    let (registry, room, layout) = setting();
    let mount = room.mount(&layout, &["--view", "all", "--cache-limit", CACHE_LIMIT]);
    let daemon = pid(&room, mount.path());
    let round = || {
        read_all(mount.path());
        room.layoutfs(&["cache", "prune"]);
        read_all(mount.path());
        room.layoutfs(&["cache", "prune"]);
        // Connections that are kept for the next request are not what is looked for.
        registry.pause();
        registry.resume();
    };
    round();
    let first = settled(daemon, usize::MAX).len();
    let requests = registry.requests().len();
    for _ in 0..3 {
        round();
    }
    assert!(registry.requests().len() >= requests + 15, "everything was fetched again");
    // Panics when they have become more.
    settled(daemon, first);
}

/// What the process has open when that is not more than `most`, and nothing that was evicted takes
/// room; or at last.
#[track_caller]
fn settled(pid: i64, most: usize) -> Vec<(String, PathBuf)> {
    let began = Instant::now();
    loop {
        let open = open_files(pid);
        let evicted_bytes: u64 = open
            .iter()
            .filter(|(_, path)| path.to_string_lossy().ends_with("(deleted)"))
            .filter_map(|(number, _)| fs::metadata(format!("/proc/{pid}/fd/{number}")).ok())
            .map(|metadata| metadata.len())
            .sum();
        if evicted_bytes == 0 && open.len() <= most {
            return open;
        }
        // They are let go of every few seconds.
        let is_late = began.elapsed() > Duration::from_secs(60);
        assert!(!is_late, "{evicted_bytes} bytes for nothing, {most} before: {open:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
