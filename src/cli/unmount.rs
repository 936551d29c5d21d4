//! `layoutfs unmount`: in the right order, idempotent, and able to clear what a crash left.

use std::path::Path;
use std::time::{Duration, Instant};

use super::args;
use crate::fetch::{Error, ErrorKind, Result};
use crate::fs::mount::unmount_path;
use crate::fs::mounts::{KernelMount, Record, RunDirectory, canonical_mountpoint, find_mount};
use crate::fs::{overlay, scratch};
use crate::layout::runtime::ROOTFS;

/// How long a daemon may take to end after its last mount is gone.
const DAEMON_ENDS_WITHIN: Duration = Duration::from_secs(10);

/// How often to look whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What our mounts say that their source is, in the kernel's table.
const OUR_SOURCE: &str = "layoutfs";

pub fn run(run: &RunDirectory, args: &args::Unmount) -> Result<()> {
    let mut mountpoint = canonical_mountpoint(&args.mountpoint)?;
    let in_bundle = mountpoint.join(ROOTFS);
    if run.read(&mountpoint).is_none() && run.read(&in_bundle).is_some() {
        // What `bundle` was given.
        mountpoint = in_bundle;
    }
    let record = run.read(&mountpoint);
    refuse_foreign(&mountpoint, record.is_some())?;
    clear(run, &mountpoint, record.as_ref(), args.lazy)?;
    let Some(record) = record else { return Ok(()) };
    if !args.lazy {
        wait_for_end(&record)?;
    }
    Ok(())
}

fn refuse_foreign(mountpoint: &Path, recorded: bool) -> Result<()> {
    match find_mount(mountpoint) {
        Some(top) if top.source != OUR_SOURCE && !recorded => {
            let message = format!(
                "{} is not a mount of layoutfs but {} from {}",
                mountpoint.display(),
                top.filesystem,
                top.source
            );
            Err(Error::new(ErrorKind::Usage, message))
        }
        _ => Ok(()),
    }
}

/// Takes our mounts away: overlay first, then the view beneath it; and forgets a dead daemon.
pub fn clear(
    run: &RunDirectory,
    mountpoint: &Path,
    record: Option<&Record>,
    lazy: bool,
) -> Result<()> {
    while let Some(top) = find_mount(mountpoint).filter(|top| top.source == OUR_SOURCE) {
        take_away(mountpoint, &top, lazy)?;
    }
    let Some(record) = record else { return Ok(()) };
    if let Some(lower) = &record.lower {
        while let Some(top) = find_mount(lower) {
            take_away(lower, &top, lazy)?;
        }
    }
    if !record.is_alive() {
        if let Some(upper) = &record.upper {
            overlay::remove_work_directory(upper);
        }
        run.remove(record);
        if let Some(scratch) = &record.scratch {
            scratch::remove(scratch);
        }
    }
    Ok(())
}

/// Takes `top` away from `path`.
///
/// # Errors
/// It stays: another mount lies over a directory above it, and hides it from every path.
fn take_away(path: &Path, top: &KernelMount, lazy: bool) -> Result<()> {
    unmount_path(path, lazy)?;
    if find_mount(path).is_some_and(|still| still.id == top.id) {
        let message = format!(
            "{} is hidden: something else is mounted on a directory above it; unmount that first",
            path.display()
        );
        return Err(Error::new(ErrorKind::Busy, message));
    }
    Ok(())
}

fn wait_for_end(record: &Record) -> Result<()> {
    let until = Instant::now() + DAEMON_ENDS_WITHIN;
    while record.is_alive() {
        if Instant::now() >= until {
            let message = format!(
                "{} is unmounted, but its daemon (process {}) still runs: another mount namespace \
                 may hold the mount",
                record.mountpoint.display(),
                record.pid
            );
            return Err(Error::new(ErrorKind::Busy, message));
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}
