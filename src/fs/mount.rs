//! Mount options and kernel capabilities, each with its reason; the session; unmounting.
//!
//! A message between kernel and daemon costs 25 to 80 µs of wake-ups, so the flags are chosen to
//! have few: OPENDIR, FLUSH and ACCESS are answered ENOSYS once and never come again, and OPEN where no
//! file needs to be told apart; the kernel keeps names, attributes, absent names, links and pages for good (an image never changes),
//! and directories come with their attributes.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fuser::{Config, InitFlags, KernelConfig, MountOption, Notifier, Session, SessionACL};
use rustix::mount::UnmountFlags;

use super::fuse::Shell;
use crate::fetch::{Error, ErrorKind, Result};

/// How long the kernel keeps names and attributes: an image never changes. Ten years, not u64::MAX,
/// because the kernel computes with it.
pub const TTL: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Read-ahead requests that the kernel may have under way; its default of 12 starves fast readers.
const BACKGROUND_MAX: u16 = 64;

/// Whoever pushes may wait for another event thread: see [`Pusher::listed`](super::push::Pusher::listed).
const EVENT_THREADS_TO_PUSH: usize = 2;

/// More event threads than this only contend for the queue.
const EVENT_THREADS_MAX: usize = 4;

/// A program that has just ended, or is just being started by a process that reads here, holds files
/// for moments after everybody thinks that it is over.
const BUSY_ENDS_WITHIN: Duration = Duration::from_millis(500);

/// How often to try again meanwhile.
const BUSY_POLL: Duration = Duration::from_millis(20);

/// Read-ahead of a mount. The kernel offers FUSE 128 KiB; 1 MiB reads cost a third less a byte.
const READ_AHEAD_KIB: &str = "1024";

/// Filesystems on top of each other that a mount counts as whose blobs the kernel reads by itself: it
/// and the one beneath. The kernel allows two, and an overlay on it is one more.
const PASSED_STACK_DEPTH: u32 = 1;

/// How a mount is served. Only tests want any other way than the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving {
    /// Event threads at most, at least 1.
    pub event_threads_max: usize,
    /// Small files may be sent with their directory, if there are two event threads.
    pub pushes: bool,
    /// The kernel asks for as little at a time as it can: a page.
    pub small_reads: bool,
    /// Messages may be asked for without sleeping.
    pub polls: bool,
    /// The kernel may read whole blobs by itself.
    pub passes: bool,
}

impl Default for Serving {
    fn default() -> Self {
        Serving {
            event_threads_max: EVENT_THREADS_MAX,
            pushes: true,
            small_reads: false,
            polls: true,
            passes: true,
        }
    }
}

impl Serving {
    /// Files may be pushed: one thread alone would wait for itself.
    pub fn may_push(self) -> bool {
        self.pushes && self.event_threads_max >= EVENT_THREADS_TO_PUSH
    }

    /// How many threads serve a mount.
    pub fn event_threads(self) -> usize {
        processors().max(EVENT_THREADS_TO_PUSH).min(self.event_threads_max)
    }
}

/// Asks the kernel for what saves messages. What it does not have, it does without.
pub fn request_capabilities(config: &mut KernelConfig, serving: Serving) {
    if serving.small_reads {
        // Less than a page: no read-ahead.
        let _ = config.set_max_readahead(1);
    }
    for capability in [
        // Attributes come with the names: a walk needs no LOOKUP.
        InitFlags::FUSE_DO_READDIRPLUS,
        // Lookups and listings of one directory do not wait for each other.
        InitFlags::FUSE_PARALLEL_DIROPS,
        // One READLINK a link, not one a use.
        InitFlags::FUSE_CACHE_SYMLINKS,
        // Several READs of one file at once.
        InitFlags::FUSE_ASYNC_READ,
        // Blobs that are not proved yet are read past the page cache, and can be mapped all the same.
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    ] {
        // An error names what the kernel lacks; nothing depends on it.
        let _ = config.add_capabilities(capability);
    }
    if serving.passes {
        // What the kernel lacks it refuses at the first open. Files on a filesystem that is itself
        // on another are refused as well; and on this mount there can be one overlay, not two.
        let _ = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH);
        let _ = config.set_max_stack_depth(PASSED_STACK_DEPTH);
    }
    // Errors give the nearest value that works; the default is as good.
    let _ = config.set_max_background(BACKGROUND_MAX);
}

fn options(root: bool, serving: Serving) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        // A writable mount invalidates times on each read, and the next stat asks again.
        MountOption::RO,
        // The kernel checks permissions from cached attributes.
        MountOption::DefaultPermissions,
        MountOption::FSName("layoutfs".to_owned()),
        MountOption::Subtype("layoutfs".to_owned()),
    ];
    if root {
        // A rootfs needs its setuid programs and device nodes, and users other than root.
        config.mount_options.extend([MountOption::Suid, MountOption::Dev]);
        config.acl = SessionACL::All;
    }
    config.n_threads = Some(serving.event_threads());
    // All read one descriptor: see `Poll`.
    config.clone_fd = false;
    config
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A mounted view, served by threads of this process until it ends.
pub struct Mounted {
    mountpoint: PathBuf,
    /// The mount's device number: tells it from another mount that took the mount point since.
    device: Option<String>,
    ended: Arc<AtomicBool>,
}

impl Mounted {
    /// Mounts `shell` on the directory `mountpoint` and serves it.
    ///
    /// # Errors
    /// [`ErrorKind::CannotMount`] with what is missing.
    pub fn start(shell: Shell, mountpoint: &Path) -> Result<Self> {
        let root = rustix::process::geteuid().is_root();
        let notifier: Arc<OnceLock<Notifier>> = shell.notifier.clone();
        let (ended, serving) = (shell.ended.clone(), shell.serving);
        let (poll, view, counters) =
            (shell.poll.clone(), shell.view.clone(), shell.counters.clone());
        let session = Session::new(shell, mountpoint, &options(root, serving))
            .map_err(|e| cannot_mount(mountpoint, &e))?;
        let _ = notifier.set(session.notifier());
        if serving.polls && processors() > 1 {
            let has_spare = move || view.get().is_none_or(|view| view.store().has_spare());
            poll.watch(session.as_fd(), counters, has_spare)?;
        }
        std::thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || session.run())
            .map_err(|e| Error::local("cannot start a thread", &e))?;
        let device = super::mounts::find_mount(mountpoint).map(|m| m.device);
        if let (true, Some(device)) = (root && !serving.small_reads, &device) {
            raise_read_ahead(device);
        }
        Ok(Mounted { mountpoint: mountpoint.to_owned(), device, ended })
    }

    /// The session has ended: somebody unmounted.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Unmounts, lazily when busy, so that the name is free in any case. A mount that somebody else
    /// has put there since is left alone.
    pub fn unmount(&self) {
        let there = super::mounts::find_mount(&self.mountpoint).map(|m| m.device);
        if self.has_ended() || there.is_none() || there != self.device {
            return;
        }
        if let Err(error) = unmount_path(&self.mountpoint, false) {
            tracing::info!(%error, "detaching the mount");
            if let Err(error) = unmount_path(&self.mountpoint, true) {
                tracing::warn!(%error, "cannot detach the mount");
            }
        }
    }
}

/// What whoever may not mount is told.
const NO_PRIVILEGE: &str =
    "no privilege: run as root, give CAP_SYS_ADMIN, or install fuse3 for fusermount3";

fn cannot_mount(mountpoint: &Path, error: &io::Error) -> Error {
    let hint = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        _ if !Path::new("/dev/fuse").exists() => {
            "there is no /dev/fuse: load the fuse module, or give the container --device /dev/fuse"
        }
        Some(rustix::io::Errno::ACCESS) if !may_open_device() => {
            "you may not open /dev/fuse: as root `chmod 666 /dev/fuse`, as most distributions have it"
        }
        _ if rustix::process::geteuid().is_root() && super::user_namespace::is_inside() => {
            "root of a user namespace mounts only in a mount namespace of its own: `unshare --mount`"
        }
        // Of a directory that is there, this means fusermount3.
        Some(rustix::io::Errno::NOENT) if mountpoint.is_dir() => NO_PRIVILEGE,
        Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => NO_PRIVILEGE,
        Some(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
            "the mount point must be an existing directory"
        }
        _ => "see dmesg for what the kernel says",
    };
    // fusermount3's own words end in a line break.
    let error = error.to_string();
    let message = format!("cannot mount on {}: {}; {hint}", mountpoint.display(), error.trim());
    Error::new(ErrorKind::CannotMount, message)
}

fn may_open_device() -> bool {
    use rustix::fs::Access;
    rustix::fs::access("/dev/fuse", Access::READ_OK | Access::WRITE_OK).is_ok()
}

/// Larger READs, where we may: through the mount's backing device in sysfs.
fn raise_read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB) {
        tracing::debug!(path, %error, "read-ahead stays at the kernel's default");
    }
}

/// Unmounts whatever is on top of `path`; `lazy` detaches a busy one. Without privilege,
/// `fusermount3` does it.
///
/// # Errors
/// [`ErrorKind::Busy`], or what the kernel says.
pub fn unmount_path(path: &Path, lazy: bool) -> Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= UnmountFlags::DETACH;
    }
    let until = Instant::now() + BUSY_ENDS_WITHIN;
    let result = loop {
        match rustix::mount::unmount(path, flags) {
            Err(rustix::io::Errno::PERM) => return fusermount(path, lazy),
            Err(rustix::io::Errno::BUSY) if Instant::now() < until => {
                std::thread::sleep(BUSY_POLL);
            }
            other => break other,
        }
    };
    match result {
        // Not a mount point, or nothing at all: what we want is already so.
        Ok(())
        | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
            Ok(())
        }
        Err(rustix::io::Errno::BUSY) => Err(busy(path)),
        Err(e) => Err(Error::local(format!("cannot unmount {}", path.display()), &e.into())),
    }
}

fn busy(path: &Path) -> Error {
    let beneath = super::mounts::mounts_below(path).into_iter().rfind(|m| m.mountpoint != path);
    let path = path.display();
    if let Some(beneath) = beneath {
        let beneath = beneath.mountpoint.display();
        let message = format!(
            "{path} is busy: something is mounted below it, on {beneath}: unmount that first"
        );
        return Error::new(ErrorKind::Busy, message);
    }
    let message = format!(
        "{path} is busy: a process has a file or its working directory there (`fuser -vm {path}` \
         shows which); end it, or use `unmount --lazy`"
    );
    Error::new(ErrorKind::Busy, message)
}

fn fusermount(path: &Path, lazy: bool) -> Result<()> {
    let mut command = std::process::Command::new("fusermount3");
    command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(path);
    let output = command.output().map_err(|e| Error::local("cannot run fusermount3", &e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.contains("busy") {
        return Err(busy(path));
    }
    Err(Error::new(ErrorKind::Local, format!("cannot unmount {}: {said}", path.display())))
}
