//! The ground that a test stands on: a directory of its own, and nothing left that belongs to it
//! when the test ends: no mount, no process, no open file.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::mount::{LIMIT, run, unescape};

/// How long a process may take to end after what it served is gone: killed ones, and daemons of
/// mounts that were detached. (`layoutfs unmount` waits for its daemon.)
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Where the daemons of root write down what they have mounted.
const RECORDS: &str = "/run/layoutfs";

/// A temporary directory. Dropping it panics when something of it is left, and clears that away.
pub struct Ground {
    dir: TempDir,
    patience: Duration,
}

/// What is left of a directory.
#[derive(Debug, Default)]
struct Left {
    /// Mounted below it, or made of what is there.
    mounts: Vec<PathBuf>,
    processes: Vec<Process>,
    /// Open in this process.
    descriptors: Vec<PathBuf>,
    /// Mounts that somebody forgot to forget.
    records: Vec<PathBuf>,
}

/// A process whose command line, environment or place names the directory.
#[derive(Debug)]
struct Process {
    pid: i32,
    command: String,
}

impl Ground {
    /// An empty directory.
    pub fn new() -> Self {
        Self::with_patience(ENDS_WITHIN)
    }

    /// The same, where processes may take `patience` to end when it is dropped.
    pub fn with_patience(patience: Duration) -> Self {
        let dir = tempfile::Builder::new().prefix("layoutfs-test-").tempdir().unwrap();
        Ground { dir, patience }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Default for Ground {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let is_panicking = std::thread::panicking();
        let left = Left::of(self.path(), if is_panicking { Duration::ZERO } else { self.patience });
        if left.is_nothing() {
            return;
        }
        let found = left.to_string();
        // The last means: a test that fails must not make the machine fail.
        left.clear();
        if is_panicking {
            eprintln!("{found}");
        } else {
            panic!("{found}");
        }
    }
}

impl Left {
    /// What is left of `dir`; processes may take `patience` to end.
    fn of(dir: &Path, patience: Duration) -> Self {
        // These two are what the test itself still has: there is nothing to wait for.
        let (mounts, descriptors) = (mounts_of(dir), descriptors_below(dir));
        // The daemon of a mount that stands does not end.
        let until = Instant::now() + if mounts.is_empty() { patience } else { Duration::ZERO };
        let mut processes = processes_of(dir);
        while !processes.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
            processes = processes_of(dir);
        }
        // A daemon takes its record with it.
        Left { mounts, processes, descriptors, records: records_of(dir) }
    }

    fn is_nothing(&self) -> bool {
        let paths = [&self.mounts, &self.descriptors, &self.records];
        self.processes.is_empty() && paths.iter().all(|paths| paths.is_empty())
    }

    fn clear(&self) {
        // Before their daemons die: those take down what they can.
        for path in &self.mounts {
            run(Command::new("umount").arg("-l").arg(path), LIMIT);
        }
        for process in &self.processes {
            // It may be gone by itself.
            let _ = Pid::from_raw(process.pid).map(|pid| kill_process(pid, Signal::KILL));
        }
        for path in &self.records {
            run(Command::new("umount").arg("-lq").arg(path.with_extension("lower")), LIMIT);
            let _ = fs::remove_dir(path.with_extension("lower"));
            let _ = fs::remove_file(path.with_extension("sock"));
            let _ = fs::remove_file(path);
        }
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a test has left something behind:")?;
        for path in &self.mounts {
            write!(f, "\nmounted: {}", path.display())?;
        }
        for Process { pid, command } in &self.processes {
            write!(f, "\nrunning: {pid}: {command}")?;
        }
        for path in &self.descriptors {
            write!(f, "\nopen: {}", path.display())?;
        }
        for path in &self.records {
            let record = fs::read_to_string(path).unwrap_or_default();
            write!(f, "\nrecorded: {}: {record}", path.display())?;
        }
        Ok(())
    }
}

/// Mount points of this mount namespace that are below `dir`, or show what is there; the latest
/// first.
fn mounts_of(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = table.lines().rev().filter(|line| names(unescape(line).as_os_str(), dir));
    lines.filter_map(|line| line.split(' ').nth(4)).map(unescape).collect()
}

fn descriptors_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    let files = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    files.filter(|path| path.starts_with(dir)).collect()
}

fn processes_of(dir: &Path) -> Vec<Process> {
    let entries = fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let others = pids.filter(|pid: &u32| *pid != std::process::id());
    others.filter_map(|pid| process_of(pid, dir)).collect()
}

/// The process, if it has to do with `dir`. One that ends meanwhile, or has ended and was not
/// waited for, has nothing to do with anything.
fn process_of(pid: u32, dir: &Path) -> Option<Process> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let text = |name: &str| fs::read(proc.join(name)).unwrap_or_default();
    let command = text("cmdline");
    let said = [&command, &text("environ")].into_iter().any(|text| names_bytes(text, dir));
    let is_there = || {
        let links = ["cwd", "root", "exe"].map(|name| fs::read_link(proc.join(name)));
        links.into_iter().flatten().any(|path| path.starts_with(dir))
    };
    if !said && !is_there() && !is_rooted_in(&text("mountinfo"), dir) {
        return None;
    }
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    Some(Process { pid: i32::try_from(pid).ok()?, command })
}

/// The process's root directory is an overlay, or a mount, of what is in `dir`: so a container tells
/// nothing of where it came from, but for this.
fn is_rooted_in(mountinfo: &[u8], dir: &Path) -> bool {
    let table = String::from_utf8_lossy(mountinfo);
    let mut roots = table.lines().filter(|line| line.split(' ').nth(4) == Some("/"));
    roots.any(|line| names(unescape(line).as_os_str(), dir))
}

fn records_of(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(RECORDS).into_iter().flatten();
    let records = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let json = records.filter(|path| path.extension().is_some_and(|e| e == "json"));
    json.filter(|path| names_bytes(&fs::read(path).unwrap_or_default(), dir)).collect()
}

fn names(text: &std::ffi::OsStr, dir: &Path) -> bool {
    names_bytes(text.as_encoded_bytes(), dir)
}

/// A path that is `dir` or below it occurs in `text`.
fn names_bytes(text: &[u8], dir: &Path) -> bool {
    let dir = dir.as_os_str().as_encoded_bytes();
    text.windows(dir.len()).enumerate().any(|(at, found)| {
        let next = text.get(at + dir.len());
        found == dir && !next.is_some_and(u8::is_ascii_alphanumeric)
    })
}
