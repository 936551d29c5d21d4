//! Files that are sent with their directory when everything is read, counted.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::support::image::{Fill, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::modes;
use crate::support::mount::{Mount, Room};

const DIRECTORIES: usize = 40;
const FILES: usize = 10;
const ALL: u64 = (DIRECTORIES * FILES) as u64;

fn name(directory: usize, file: usize) -> String {
    format!("d{directory:02}/f{file}")
}

fn content(directory: usize, file: usize) -> Vec<u8> {
    generated(&name(directory, file), 100 + 997 * file).to_vec()
}

/// A full layout of forty directories of ten small files and one large one.
fn mounted() -> Mount {
    let mut layer = LayerBuilder::new();
    for directory in 0..DIRECTORIES {
        layer = layer.dir(&format!("d{directory:02}"), 0o755);
        for file in 0..FILES {
            layer = layer.file(&name(directory, file), 0o644, content(directory, file));
        }
        layer = layer.file(&format!("d{directory:02}/large"), 0o644, generated("large", 600_000));
    }
    let room = Room::new();
    let layout = room.path().join("layout");
    let image = ImageBuilder::new().layer(layer, Compression::GzipMembers(64 << 10)).build();
    image.write_layout(&layout, "latest", Fill::Full);
    room.mount(&layout.display().to_string(), &[])
}

/// How many files were pushed, and how many READs there were.
fn pushed_and_reads(mount: &Mount) -> (u64, u64) {
    let path = mount.path().display().to_string();
    let json = mount.room().layoutfs(&["status", "--json", &path]);
    let status: Value = serde_json::from_str(&json).expect("status prints JSON");
    let reads = status["messages"]["read"].as_u64().unwrap_or(0);
    (status["files_pushed"].as_u64().expect("a number"), reads)
}

fn list(directory: &Path) -> usize {
    fs::read_dir(directory).expect("listed").filter(Result::is_ok).count()
}

/// Lists a directory and reads its small files.
fn scan(mount: &Path, directory: usize) {
    assert_eq!(list(&mount.join(format!("d{directory:02}"))), FILES + 1);
    for file in 0..FILES {
        let read = fs::read(mount.join(name(directory, file))).expect("read");
        assert!(read == content(directory, file), "{}", name(directory, file));
    }
}

#[test]
fn who_reads_everything_is_sent_most_files_with_their_directory() {
    let mount = mounted();
    (0..DIRECTORIES).for_each(|directory| scan(mount.path(), directory));
    let (pushed, reads) = pushed_and_reads(&mount);
    if modes::is_on("small-reads") {
        assert!(pushed + reads > ALL, "a READ for each page");
    } else {
        assert_eq!(pushed + reads, ALL, "each file comes once, large ones not at all");
    }
    match modes::pushes_nothing() {
        true => assert_eq!(pushed, 0),
        // Only what is decoded is pushed.
        false if modes::is_on("one-span-cache") || modes::is_on("no-fresh") => assert!(pushed > 0),
        false => assert!(pushed > ALL * 3 / 4, "{pushed} of {ALL}"),
    }
    (0..DIRECTORIES).for_each(|directory| scan(mount.path(), directory));
    assert_eq!(pushed_and_reads(&mount), (pushed, reads), "it stays in the kernel");
}

#[test]
fn who_lists_or_reads_here_and_there_is_sent_nothing() {
    let mount = mounted();
    for directory in 0..DIRECTORIES {
        list(&mount.path().join(format!("d{directory:02}")));
        let read = fs::read(mount.path().join(name(directory, 3))).expect("read");
        assert!(read == content(directory, 3));
    }
    assert_eq!(pushed_and_reads(&mount), (0, DIRECTORIES as u64));
}

#[test]
fn several_scans_at_once_read_what_is_right() {
    let mount = Arc::new(mounted());
    let readers: Vec<_> = (0..4)
        .map(|reader| {
            let mount = mount.clone();
            std::thread::spawn(move || {
                // Two of them side by side, and two against them.
                let turned = |i: usize| if reader < 2 { i } else { DIRECTORIES - 1 - i };
                (0..DIRECTORIES).for_each(|i| scan(mount.path(), turned(i)));
            })
        })
        .collect();
    for reader in readers {
        reader.join().expect("right, and to the end");
    }
}

/// Processor time of a process so far, in clock ticks (proc_pid_stat(5): 14 and 15).
fn ticks(pid: &Value) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields = stat.rsplit(')').next().unwrap_or_default();
    fields.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().expect("a number")).sum()
}

#[test]
fn messages_are_polled_for_while_they_come_and_not_when_nobody_reads() {
    let mount = mounted();
    let path = mount.path().display().to_string();
    let status = || -> Value {
        let json = mount.room().layoutfs(&["status", "--json", &path]);
        serde_json::from_str(&json).expect("status prints JSON")
    };
    let is_off = modes::is_on("no-poll")
        || std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
    // On a busy machine the reader may be too slow for a flow; dropped pages make the kernel ask again.
    for _ in 0..200 {
        (0..DIRECTORIES).for_each(|directory| scan(mount.path(), directory));
        if is_off || status()["flows"] != 0 {
            break;
        }
        for directory in 0..DIRECTORIES {
            for file in 0..FILES {
                let file = fs::File::open(mount.path().join(name(directory, file))).expect("open");
                let advice = rustix::fs::Advice::DontNeed;
                rustix::fs::fadvise(&file, 0, None, advice).expect("dropped");
            }
        }
    }
    let last = status();
    assert_eq!(last["flows"] == 0, is_off, "{last}");
    std::thread::sleep(std::time::Duration::from_millis(100));
    let before = ticks(&last["pid"]);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let used = ticks(&last["pid"]) - before;
    // Asking without sleeping would have taken two hundred of the usual ticks.
    assert!(used <= 10, "{used} ticks while nobody reads");
}
