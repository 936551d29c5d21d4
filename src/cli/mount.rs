//! `layoutfs mount`: checks, then serves, in the background by a process of its own.

use std::path::{Path, PathBuf};

use super::args;
use super::background::serve_in_background;
use super::context::Context;
use super::{rootless, serve, unmount};
use crate::fetch::{Error, ErrorKind, Result};
use crate::fs::images::ViewKind;
use crate::fs::mounts::{Claim, canonical_mountpoint, find_mount};

pub fn run(context: &Context, args: &args::Mount) -> Result<i32> {
    check(args)?;
    let (mountpoint, claim) = free_mountpoint(context, &args.mountpoint)?;
    if args.foreground || context.starter.is_some() {
        return serve::run(context, args, mountpoint, claim);
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
    match args.upper {
        Some(_) => rootless::need_root("mount --upper"),
        None => Ok(()),
    }
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
