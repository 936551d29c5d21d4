//! The mounts of this machine: what the kernel says, and what our daemons wrote down.
//!
//! Each daemon keeps `<key>.json` (what is mounted where, by which process), `<key>.sock` (for
//! `status`) and `<key>.log` in the run directory; `<key>` stands for the mount point. A record
//! whose process is gone is stale, and whoever finds it cleans up.

use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::fetch::{Error, Result};
use crate::layout::Digest;

/// Long enough to look into what happened over a weekend.
const LEFT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// So many logs are kept at most: whoever mounts a thousand times an hour looks into the last ones,
/// and every mount lists this directory.
const LOGS_MAX: usize = 128;

/// The most that is read of a record, which is a few paths: longer ones are none.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// Where records are kept.
#[derive(Debug, Clone)]
pub struct RunDirectory {
    path: PathBuf,
}

/// The exclusive right to mount on one mount point. Ends when dropped, or with its process.
#[derive(Debug)]
pub struct Claim {
    _file: std::fs::File,
    path: PathBuf,
}

impl Drop for Claim {
    /// The name goes first, while it is held: whoever waits for it takes the new one.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What a daemon wrote down about its mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The canonical mount point.
    pub mountpoint: PathBuf,
    /// The daemon.
    pub pid: i32,
    /// When the daemon started, in clock ticks since boot: tells it from another with its number.
    pub started_ticks: u64,
    /// The image argument as the user gave it.
    pub image: String,
    /// `rootfs`, `layout` or `all`.
    pub view: String,
    /// Where the view itself is mounted when an overlay is on the mount point.
    pub lower: Option<PathBuf>,
    /// The upper directory of that overlay.
    pub upper: Option<PathBuf>,
    /// A directory that is removed with the mount: what a container needs beside its image.
    #[serde(default)]
    pub scratch: Option<PathBuf>,
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelMount {
    /// Unique among the mounts of this moment.
    pub id: String,
    /// `major:minor`.
    pub device: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// `fuse.layoutfs`, `overlay`, ...
    pub filesystem: String,
    /// The mount's source.
    pub source: String,
}

impl RunDirectory {
    /// Opens or creates the run directory at `path` (mode 0700).
    ///
    /// # Errors
    /// Local trouble.
    pub fn open(path: PathBuf) -> Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|e| Error::local(format!("cannot make {}", path.display()), &e))?;
        check_private(&path)?;
        Ok(RunDirectory { path })
    }

    fn file(&self, mountpoint: &Path, suffix: &str) -> PathBuf {
        let key = Digest::sha256_of(mountpoint.as_os_str().as_bytes()).short();
        self.path.join(format!("{key}.{suffix}"))
    }

    /// The socket that the daemon of `mountpoint` answers `status` on.
    pub fn socket(&self, mountpoint: &Path) -> PathBuf {
        self.file(mountpoint, "sock")
    }

    /// What the daemon of `mountpoint` logs once it serves in the background.
    pub fn log(&self, mountpoint: &Path) -> PathBuf {
        self.file(mountpoint, "log")
    }

    /// A directory for the view when an overlay is to be on `mountpoint`.
    ///
    /// # Errors
    /// Local trouble.
    pub fn make_lower(&self, mountpoint: &Path) -> Result<PathBuf> {
        let path = self.file(mountpoint, "lower");
        match std::fs::create_dir(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(Error::local(format!("cannot make {}", path.display()), &e))
            }
            _ => Ok(path),
        }
    }

    /// The exclusive right to look whether `mountpoint` is free and to mount on it.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`](crate::fetch::ErrorKind::Busy) while another process has it; local
    /// trouble.
    pub fn claim(&self, mountpoint: &Path) -> Result<Claim> {
        use rustix::fs::{FlockOperation, flock};
        let path = self.file(mountpoint, "lock");
        let failed =
            |e: &std::io::Error| Error::local(format!("cannot lock {}", path.display()), e);
        let mut options = std::fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(false);
        loop {
            let file = options.open(&path).map_err(|e| failed(&e))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Who cleans up may have removed the name meanwhile: then lock the new file.
                Ok(()) if is_named(&file, &path) => return Ok(Claim { _file: file, path }),
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mountpoint = mountpoint.display();
                    let message = format!("{mountpoint}: somebody else is mounting there");
                    return Err(Error::new(crate::fetch::ErrorKind::Busy, message));
                }
                Err(e) => return Err(failed(&e.into())),
            }
        }
    }

    /// Writes a record, atomically.
    ///
    /// # Errors
    /// Local trouble.
    pub fn write(&self, record: &Record) -> Result<()> {
        let path = self.file(&record.mountpoint, "json");
        let failed =
            |e: &std::io::Error| Error::local(format!("cannot write {}", path.display()), e);
        let mut file = tempfile::NamedTempFile::new_in(&self.path).map_err(|e| failed(&e))?;
        serde_json::to_writer(&mut file, record).map_err(|e| failed(&e.into()))?;
        file.persist(&path).map_err(|e| failed(&e.error))?;
        Ok(())
    }

    /// The record of a mount point, if there is one.
    pub fn read(&self, mountpoint: &Path) -> Option<Record> {
        read_record(&self.file(mountpoint, "json"))
    }

    /// Removes logs of mounts that are no more, when they are old or many, and old locks that nobody
    /// holds: a process that was killed leaves its own.
    pub fn remove_leftovers(&self) {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return };
        let now = SystemTime::now();
        let is_old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age > LEFT_FOR);
        let mut logs = Vec::new();
        for path in entries.filter_map(|e| Some(e.ok()?.path())) {
            // By name first: the other things here may be mounts, whose daemons would have to answer.
            let is_log = path.extension().is_some_and(|e| e == "log");
            let is_lock = path.extension().is_some_and(|e| e == "lock");
            if !is_log && !is_lock {
                continue;
            }
            let Ok(modified) = path.metadata().and_then(|m| m.modified()) else { continue };
            if is_log && !path.with_extension("json").exists() {
                logs.push((modified, path));
            } else if is_lock && is_old(modified) {
                // Removed while it is held: whoever waits for it takes the new one.
                let held = lock_unheld(&path);
                if held.is_some() {
                    let _ = std::fs::remove_file(path);
                }
            }
        }
        logs.sort_unstable_by(|a, b| b.cmp(a));
        for (i, (modified, path)) in logs.into_iter().enumerate() {
            if i >= LOGS_MAX || is_old(modified) {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    /// All records, sorted by mount point.
    pub fn all(&self) -> Vec<Record> {
        let Ok(entries) = std::fs::read_dir(&self.path) else { return Vec::new() };
        let paths = entries.filter_map(|e| Some(e.ok()?.path()));
        let json = paths.filter(|p| p.extension().is_some_and(|e| e == "json"));
        let mut records: Vec<Record> = json.filter_map(|p| read_record(&p)).collect();
        records.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
        records
    }

    /// Forgets a mount that is no more, unless another daemon has taken its mount point since. The
    /// log stays, for whoever asks why.
    pub fn remove(&self, record: &Record) {
        let mountpoint = &record.mountpoint;
        let is_same =
            |other: &Record| (other.pid, other.started_ticks) == (record.pid, record.started_ticks);
        if self.read(mountpoint).is_some_and(|other| !is_same(&other)) {
            return;
        }
        for suffix in ["json", "sock"] {
            let _ = std::fs::remove_file(self.file(mountpoint, suffix));
        }
        let _ = std::fs::remove_dir(self.file(mountpoint, "lower"));
    }
}

/// The lock at `path`, unless somebody holds it.
fn lock_unheld(path: &Path) -> Option<std::fs::File> {
    use rustix::fs::{FlockOperation, flock};
    let file = std::fs::File::options().write(true).open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}

/// The open file is the one that `path` names.
fn is_named(file: &std::fs::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let inode = |meta: std::io::Result<std::fs::Metadata>| meta.map(|m| (m.dev(), m.ino())).ok();
    inode(file.metadata()).is_some_and(|ours| Some(ours) == inode(std::fs::metadata(path)))
}

/// The directory is ours, and nobody else may write to it: records say what to unmount and which
/// directories to remove.
fn check_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let failed = |e: &std::io::Error| Error::local(format!("cannot look at {}", path.display()), e);
    let meta = path.symlink_metadata().map_err(|e| failed(&e))?;
    let is_ours = meta.uid() == rustix::process::geteuid().as_raw();
    if meta.is_dir() && is_ours && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    let message = format!(
        "{} is not a directory of this user's that only this user may write to: remove it, or set \
         XDG_RUNTIME_DIR",
        path.display()
    );
    Err(Error::new(crate::fetch::ErrorKind::Local, message))
}

impl Record {
    /// The daemon lives: a process of its number that started when it did.
    pub fn is_alive(&self) -> bool {
        started_ticks(self.pid) == Some(self.started_ticks)
    }
}

fn read_record(path: &Path) -> Option<Record> {
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(RECORD_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Field 22 of `/proc/<pid>/stat` (proc(5)): the start time. `None`: no such process, or a zombie.
pub fn started_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command, in parentheses, may hold anything; the fields after it do not.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// The mount points at exactly `path`, the uppermost last. Looks at the kernel's table only: a dead
/// mount does not hang it.
pub fn mounts_at(path: &Path) -> Vec<KernelMount> {
    let Ok(table) = std::fs::read("/proc/self/mountinfo") else { return Vec::new() };
    parse_mountinfo(&table).into_iter().filter(|m| m.mountpoint == path).collect()
}

/// The uppermost mount at exactly `path`.
pub fn find_mount(path: &Path) -> Option<KernelMount> {
    mounts_at(path).pop()
}

/// The mounts at `path` and at everything beneath it.
pub fn mounts_below(path: &Path) -> Vec<KernelMount> {
    let Ok(table) = std::fs::read("/proc/self/mountinfo") else { return Vec::new() };
    let all = parse_mountinfo(&table).into_iter();
    all.filter(|m| m.mountpoint.starts_with(path)).collect()
}

fn parse_mountinfo(table: &[u8]) -> Vec<KernelMount> {
    table.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mnt rw,noatime shared:1 - ext3 /dev/root rw` (proc(5)).
fn parse_line(line: &[u8]) -> Option<KernelMount> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    Some(KernelMount {
        id: text(fields.first()?),
        device: text(fields.get(2)?),
        mountpoint: PathBuf::from(std::ffi::OsString::from_vec(unescaped(fields.get(4)?))),
        filesystem: text(fields.get(dash + 1)?),
        source: text(fields.get(dash + 2)?),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// The canonical form of a mount point without touching what is mounted there: a dead mount would
/// answer ENOTCONN, and one whose tree is still being built would not answer for as long as that takes.
/// Its parent is resolved, its own name is kept.
///
/// # Errors
/// The parent does not exist.
pub fn canonical_mountpoint(path: &Path) -> Result<PathBuf> {
    let failed = |e: &std::io::Error| {
        Error::new(
            crate::fetch::ErrorKind::CannotMount,
            format!("mount point {}: {e}", path.display()),
        )
    };
    let absolute = std::path::absolute(path).map_err(|e| failed(&e))?;
    if let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) {
        let named = parent.canonicalize().map_err(|e| failed(&e))?.join(name);
        // What is mounted on is no link.
        let is_link = || std::fs::symlink_metadata(&named).is_ok_and(|m| m.is_symlink());
        if find_mount(&named).is_some() || !is_link() {
            return Ok(named);
        }
    }
    absolute.canonicalize().map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_with_optional_fields_and_octal_escapes() {
        let table = b"36 35 0:44 / /mnt/a\\040b rw shared:1 master:2 - fuse.layoutfs layoutfs ro\n\
                      37 35 0:45 / /x rw - overlay layoutfs rw\n";
        let mounts = parse_mountinfo(table);
        assert_eq!(mounts[0].mountpoint, Path::new("/mnt/a b"));
        assert_eq!(mounts[0].id, "36");
        assert_eq!(mounts[0].device, "0:44");
        assert_eq!(mounts[0].filesystem, "fuse.layoutfs");
        assert_eq!(mounts[1].filesystem, "overlay");
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_another_process() {
        let pid = std::process::id() as i32;
        let ticks = started_ticks(pid).expect("we run");
        let record = Record {
            mountpoint: PathBuf::from("/mnt"),
            pid,
            started_ticks: ticks,
            image: String::new(),
            view: String::new(),
            lower: None,
            upper: None,
            scratch: None,
        };
        assert!(record.is_alive());
        assert!(!Record { started_ticks: ticks + 1, ..record }.is_alive());
    }

    #[test]
    fn a_run_directory_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run");
        std::fs::create_dir(&path).expect("made");
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&path, open).expect("opened up");
        assert!(RunDirectory::open(path.clone()).is_err());
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(&path, private).expect("closed");
        assert!(RunDirectory::open(path.clone()).is_ok());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        assert!(RunDirectory::open(link).is_err());
    }

    #[test]
    fn old_logs_of_mounts_that_are_gone_are_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let run = RunDirectory::open(directory.path().join("run")).expect("run directory");
        let old = SystemTime::now() - LEFT_FOR - Duration::from_secs(1);
        for (name, time) in [("a.log", old), ("b.log", SystemTime::now()), ("c.log", old)] {
            let file = std::fs::File::create(run.path.join(name)).expect("created");
            file.set_modified(time).expect("dated");
        }
        std::fs::write(run.path.join("c.json"), "{}").expect("written");
        run.remove_leftovers();
        let there = |name: &str| run.path.join(name).exists();
        assert_eq!([there("a.log"), there("b.log"), there("c.log")], [false, true, true]);
    }

    #[test]
    fn old_locks_are_removed_unless_somebody_holds_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let run = RunDirectory::open(directory.path().join("run")).expect("run directory");
        let old = SystemTime::now() - LEFT_FOR - Duration::from_secs(1);
        let [held, left] = [Path::new("/mnt/held"), Path::new("/mnt/left")];
        let claim = run.claim(held).expect("free");
        // Of a process that was killed.
        std::fs::write(run.file(left, "lock"), "").expect("written");
        for mountpoint in [held, left] {
            let lock = std::fs::File::options().write(true).open(run.file(mountpoint, "lock"));
            lock.and_then(|lock| lock.set_modified(old)).expect("dated");
        }
        run.remove_leftovers();
        assert!(run.claim(held).is_err(), "still held");
        assert!(!run.file(left, "lock").exists());
        drop(claim);
        assert!(run.claim(held).is_ok() && run.claim(left).is_ok());
        assert!(!run.file(held, "lock").exists(), "a claim that ends leaves nothing");
    }

    #[test]
    fn the_newest_logs_are_kept_however_many_there_were() {
        let directory = tempfile::tempdir().expect("a directory");
        let run = RunDirectory::open(directory.path().join("run")).expect("run directory");
        for age in 0..LOGS_MAX as u64 + 5 {
            let log = std::fs::File::create(run.path.join(format!("{age}.log"))).expect("created");
            log.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("dated");
        }
        run.remove_leftovers();
        let left = std::fs::read_dir(&run.path).expect("listed").count();
        assert_eq!(left, LOGS_MAX);
        assert!(run.path.join("0.log").exists());
    }

    #[test]
    fn a_record_is_found_by_its_mount_point_and_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let run = RunDirectory::open(directory.path().join("run")).expect("run directory");
        let record = Record {
            mountpoint: PathBuf::from("/mnt/x"),
            pid: 1,
            started_ticks: 0,
            image: "oci:/layout".to_owned(),
            view: "rootfs".to_owned(),
            lower: None,
            upper: None,
            scratch: None,
        };
        run.write(&record).expect("written");
        assert_eq!(run.read(Path::new("/mnt/x")).expect("found").image, "oci:/layout");
        assert_eq!(run.all().len(), 1);
        run.remove(&Record { pid: 2, ..record.clone() });
        assert_eq!(run.all().len(), 1, "another daemon's");
        run.remove(&record);
        assert!(run.all().is_empty());
    }
}
