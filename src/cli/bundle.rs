//! `layoutfs bundle`: a container's root filesystem and `config.json`, for a runtime of the
//! caller's.

use std::path::Path;
use std::sync::Arc;

use super::announce::{Told, announce};
use super::args;
use super::background::serve_in_background;
use super::container::{self, Wanted};
use super::context::{Context, absolute};
use super::mount::free_mountpoint;
use super::rootless;
use super::serve::Daemon;
use crate::fetch::{Error, Result};
use crate::fs::images::ViewKind;
use crate::layout::runtime::ROOTFS;

pub fn run(context: &Context, args: &args::Bundle) -> Result<i32> {
    rootless::need_root("bundle")?;
    let rootfs = absolute(&args.directory)?.join(ROOTFS);
    make_rootfs(&rootfs)?;
    let (rootfs, claim) = free_mountpoint(context, &rootfs)?;
    if context.starter.is_none() {
        // The serving process claims it for itself.
        drop(claim);
        return serve_in_background(None);
    }
    let open = Arc::new(context.open(&args.image)?);
    let image = &open.image.config.configuration;
    // Whoever starts it decides about a terminal.
    let wanted = Wanted::new(image, &args.container, &args.command, false)?;
    let hows = announce(context, &open, ViewKind::Rootfs, Told::Everything)?;
    let scratch = container::scratch(context)?;
    let plan = wanted.plan(&args.image, hows, rootfs.clone(), &scratch)?;
    let daemon = Daemon::new(context, open, plan)?;
    daemon.serve(Some(claim), |mounted| {
        wanted.prepare(&daemon, mounted, &scratch, &rootfs)?;
        daemon.serve_until_gone(mounted)
    })
}

/// A dead mount that stands there counts as made: it is cleared next.
fn make_rootfs(rootfs: &Path) -> Result<()> {
    if crate::fs::mounts::find_mount(rootfs).is_some() {
        return Ok(());
    }
    std::fs::create_dir_all(rootfs)
        .map_err(|e| Error::local(format!("cannot make {}", rootfs.display()), &e))
}
