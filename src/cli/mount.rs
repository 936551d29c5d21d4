//! `layoutfs mount`: checks, then serves in the background by a process of its own.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::args;
use super::context::{Context, OpenImage};
use super::units::size;
use super::{serve, unmount};
use crate::fetch::how::How;
use crate::fetch::{Error, ErrorKind, Result};
use crate::fs::images::ViewKind;
use crate::fs::mounts::{Claim, canonical_mountpoint, find_mount};

/// What the serving process writes to standard output when the tree answers.
const READY: &[u8] = b"ready\n";

/// The option that tells a process that it is the serving one. It comes first: what stands last may
/// belong to the command of a container.
const CHILD_OPTION: &str = "--background-child";

/// What [`announce`] tells people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// How each layer will be read.
    Everything,
    /// Only what will take time.
    Waiting,
}

pub fn run(context: &Context, args: &args::Mount, is_child: bool) -> Result<i32> {
    check(args)?;
    let (mountpoint, claim) = free_mountpoint(context, &args.mountpoint)?;
    if args.foreground || is_child {
        return serve::run(context, args, mountpoint, claim, is_child);
    }
    // The serving process claims it for itself.
    drop(claim);
    serve_in_background(args.ready_fd)
}

fn check(args: &args::Mount) -> Result<()> {
    let usage = |message: &str| Err(Error::new(ErrorKind::Usage, message));
    if args.upper.is_some() && args.view != ViewKind::Rootfs {
        return usage("--upper makes a rootfs writable: use it with --view rootfs");
    }
    if args.upper.is_some() && args.no_wait {
        return usage("--upper and --no-wait exclude each other: overlayfs needs the tree");
    }
    if args.upper.is_some() && !rustix::process::geteuid().is_root() {
        let message = "--upper mounts overlayfs, which needs root";
        return Err(Error::new(ErrorKind::CannotMount, message));
    }
    Ok(())
}

/// The canonical mount point; what a crash left there is cleared, what lives there is respected.
/// Nobody else takes it while the claim is held.
///
/// # Errors
/// It is no directory, or taken.
pub fn free_mountpoint(context: &Context, path: &Path) -> Result<(PathBuf, Claim)> {
    let mountpoint = canonical_mountpoint(path)?;
    let run = context.run_directory()?;
    let claim = run.claim(&mountpoint)?;
    let record = run.read(&mountpoint);
    match &record {
        // A daemon whose mount was detached lives until its last user ends; the name is free.
        Some(record) if record.is_alive() && find_mount(&mountpoint).is_none() => {}
        Some(record) if record.is_alive() => {
            let message = format!(
                "{} is mounted already, by process {} ({}): `layoutfs unmount` first",
                mountpoint.display(),
                record.pid,
                record.image
            );
            return Err(Error::new(ErrorKind::Busy, message));
        }
        // Nobody serves what is mounted there: reading it would hang or fail.
        Some(record) => unmount::clear(&run, &mountpoint, Some(record), true)?,
        None => clear_dead(&mountpoint)?,
    }
    let is_directory = std::fs::metadata(&mountpoint).map(|m| m.is_dir());
    match is_directory {
        Ok(true) => Ok((mountpoint, claim)),
        Ok(false) => Err(not_a_directory(&mountpoint, &"it is not a directory")),
        Err(error) => Err(not_a_directory(&mountpoint, &error)),
    }
}

/// A mount of ours without record and without daemon (the machine's /run was cleared).
fn clear_dead(mountpoint: &Path) -> Result<()> {
    let ours = find_mount(mountpoint).is_some_and(|m| m.source == "layoutfs");
    let dead = || {
        let stat = std::fs::metadata(mountpoint);
        let not_connected = rustix::io::Errno::NOTCONN.raw_os_error();
        stat.is_err_and(|e| e.raw_os_error() == Some(not_connected))
    };
    if ours && dead() {
        crate::fs::mount::unmount_path(mountpoint, true)?;
    }
    Ok(())
}

fn not_a_directory(mountpoint: &Path, why: &dyn std::fmt::Display) -> Error {
    let message = format!("mount point {}: {why}", mountpoint.display());
    Error::new(ErrorKind::CannotMount, message)
}

/// Says per layer how it will be read, before it is; with `--require-lazy` refuses what is not.
///
/// # Errors
/// The layers are not to be had, or not lazily when that is required.
pub fn announce(
    context: &Context,
    open: &OpenImage,
    kind: ViewKind,
    told: Told,
) -> Result<Vec<How>> {
    if !kind.reads_layers() {
        context.say(format_args!("each blob is fetched whole when it is read"));
        return Ok(Vec::new());
    }
    let layers = open.image.layers()?;
    let mut hows = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        let how = How::of(&open.store, layer)?;
        hows.push(how);
        let digest = layer.blob.digest.short();
        let described = how.describe(&size(layer.blob.size));
        if told == Told::Everything || !how.is_lazy() {
            context.say(format_args!("layer {number:>2}  {digest}  {described}"));
        }
    }
    let eager = hows.iter().filter(|how| !how.is_lazy()).count();
    if context.options.require_lazy && eager > 0 {
        let message = format!(
            "{eager} of {} layers cannot be read lazily yet, and --require-lazy is set: mount once \
             without it, which indexes them",
            layers.len()
        );
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(hows)
}

/// Starts this program again to serve, passes its errors and its exit code on, and returns when
/// the tree answers.
///
/// # Errors
/// It cannot be started.
pub fn serve_in_background(ready_fd: Option<u32>) -> Result<i32> {
    let failed = |e: &std::io::Error| Error::local("cannot start the serving process", e);
    keep_descriptors_here(ready_fd).map_err(|e| failed(&e))?;
    // The program that runs now, even if its file was replaced meanwhile.
    let mut child = Command::new("/proc/self/exe")
        .arg0("layoutfs")
        .arg(CHILD_OPTION)
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed(&e))?;
    let mut said = Vec::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_end(&mut said).map_err(|e| failed(&e))?;
    }
    if said == READY {
        return Ok(0);
    }
    // It has printed why.
    let status = child.wait().map_err(|e| failed(&e))?;
    Ok(status.code().filter(|code| *code != 0).unwrap_or(1))
}

/// Descriptors that this process was given do not go on to the serving one, which would keep locks
/// held and pipes open for as long as the mount lives. Only `wanted` does.
fn keep_descriptors_here(wanted: Option<u32>) -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if number <= 2 || Some(number) == wanted {
            continue;
        }
        let Ok(raw) = i32::try_from(number) else { continue };
        // SAFETY: it was open a moment ago. If another thread has closed it since, the call fails
        // or marks a descriptor of ours, and ours are all marked already.
        #[expect(unsafe_code, reason = "there is no owner: the number is inherited")]
        let inherited = unsafe { std::os::fd::BorrowedFd::borrow_raw(raw) };
        let _ = rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Leaves the terminal: a session of our own, log lines to `log`, and the word to whoever waits.
///
/// # Errors
/// The log cannot be made.
pub fn detach(log: &Path) -> Result<()> {
    use std::io::Write as _;
    let failed = |e: &std::io::Error| Error::local(format!("cannot log to {}", log.display()), e);
    let log_file = File::create(log).map_err(|e| failed(&e))?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(|e| failed(&e))?;
    // Fails only for a process that leads a group, which has left the terminal already.
    let _ = rustix::process::setsid();
    let mut out = std::io::stdout();
    out.write_all(READY).and_then(|()| out.flush()).map_err(|e| failed(&e))?;
    rustix::stdio::dup2_stdout(&null).map_err(|e| failed(&e.into()))?;
    rustix::stdio::dup2_stderr(&log_file).map_err(|e| failed(&e.into()))?;
    // The mount must not keep the directory busy that the user called from.
    std::env::set_current_dir("/").map_err(|e| failed(&e))?;
    Ok(())
}
