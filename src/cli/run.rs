//! `layoutfs run`: a command in a container, by an OCI runtime; this process serves its root
//! filesystem meanwhile.

use std::io::IsTerminal as _;
use std::sync::Arc;

use super::announce::{Told, announce};
use super::args;
use super::container::{self, Wanted};
use super::context::Context;
use super::oci_runtime;
use crate::fetch::Result;
use crate::fs::images::ViewKind;
use crate::layout::runtime::ROOTFS;

pub fn run(context: &Context, args: &args::Run) -> Result<i32> {
    let runtime = oci_runtime::find(args.runtime.as_deref())?;
    container::clear_dead(context)?;
    let open = Arc::new(context.open(&args.image)?);
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let image = &open.image.config.configuration;
    let wanted = Wanted::new(image, &args.container, &args.command, terminal)?;
    let hows = announce(context, &open, ViewKind::Rootfs, Told::Waiting)?;
    let scratch = container::scratch(context)?;
    let plan = wanted.plan(&args.image, hows, scratch.path().join(ROOTFS), &scratch)?;
    let ended = container::run_to_end(context, &open, plan, wanted, &scratch, &runtime)?;
    Ok(ended.code)
}
