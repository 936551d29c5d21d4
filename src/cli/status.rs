//! `layoutfs status`.

use std::io::IsTerminal as _;
use std::time::Duration;

use super::args;
use super::context::{Context, print_json};
use super::units::size;
use crate::fetch::{Error, ErrorKind, Result};
use crate::fs::mounts::{Record, canonical_mountpoint};
use crate::fs::status::{LayerStatus, SetAside, Status, query};

/// How often `--watch` shows it again.
const WATCH_EVERY: Duration = Duration::from_secs(1);

pub fn run(context: &Context, args: &args::Status) -> Result<()> {
    loop {
        show(context, args)?;
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(WATCH_EVERY);
        if std::io::stdout().is_terminal() && !context.options.json {
            // Home and clear: the same place on the screen each time.
            print!("\x1b[H\x1b[2J");
        }
    }
}

fn show(context: &Context, args: &args::Status) -> Result<()> {
    let run = context.run_directory()?;
    if let Some(mountpoint) = &args.mountpoint {
        let mountpoint = canonical_mountpoint(mountpoint)?;
        let shown = mountpoint.display();
        let message = match run.read(&mountpoint) {
            None => format!("{shown}: no mount of layoutfs is known there"),
            Some(record) if !record.is_alive() => format!(
                "{shown}: its daemon (process {}) is gone; `layoutfs unmount {shown}` clears what \
                 it left, and its log is {}",
                record.pid,
                run.log(&mountpoint).display()
            ),
            Some(_) => String::new(),
        };
        if !message.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let status = query(&run.socket(&mountpoint))?;
        if context.options.json {
            return print_json(&status);
        }
        print(&status);
        return Ok(());
    }
    let (alive, dead): (Vec<_>, Vec<_>) = run.all().into_iter().partition(Record::is_alive);
    for record in dead {
        let (mountpoint, pid) = (record.mountpoint.display(), record.pid);
        context.say(format_args!(
            "{mountpoint}: its daemon (process {pid}) is gone; `layoutfs unmount {mountpoint}` clears it"
        ));
    }
    let statuses: Vec<Status> = alive
        .into_iter()
        .filter_map(|record| query(&run.socket(&record.mountpoint)).ok())
        .collect();
    if context.options.json {
        return print_json(&statuses);
    }
    statuses.iter().for_each(print);
    if statuses.is_empty() {
        context.say(format_args!("nothing is mounted"));
    }
    Ok(())
}

fn print(status: &Status) {
    let ready = if status.ready { "" } else { ", not ready yet" };
    out!(
        "{}: {} of {}{ready} (process {})",
        status.mountpoint.display(),
        status.view,
        status.image,
        status.pid
    );
    for (number, layer) in status.layers.iter().enumerate() {
        let digest = layer.digest.get(..19).unwrap_or(&layer.digest);
        let (resident, total) = (size(layer.resident), size(layer.size));
        out!("  layer {number:>2}  {digest}  {resident} of {total}  {}", layer.how);
        print_use(layer);
    }
    out!(
        "  fetched {} of {} in {} requests ({} tried again, {} twice because slow, {} failed)",
        size(status.bytes_fetched),
        size(status.bytes_total),
        status.requests,
        status.retries,
        status.hedges,
        status.errors
    );
    if let Some(prefetch) = &status.prefetch {
        let (done, wanted) = (size(prefetch.bytes_done), size(prefetch.bytes_wanted));
        let state = if prefetch.done { "prefetched" } else { "prefetching:" };
        out!("  {state} {done} of {wanted}; {} requests failed", prefetch.errors);
    }
    for aside in &status.set_aside {
        let SetAside { source, blob, or_index } = aside;
        let or = or_index.as_ref().map(|artifact| {
            format!(
                "; or the index is wrong by which it is read, that of artifact {artifact}: \
                 --index off reads it without"
            )
        });
        out!("  asked last: {source} served wrong bytes of {blob}{}", or.unwrap_or_default());
    }
    let messages: Vec<String> = status.messages.iter().map(|(n, c)| format!("{n} {c}")).collect();
    out!(
        "  read {}, {} files of it pushed; {} reads failed; messages: {}",
        size(status.bytes_read),
        status.files_pushed,
        status.read_errors,
        messages.join(", ")
    );
    if status.opens_passed_through > 0 {
        let opens = status.opens_passed_through;
        out!(
            "  {opens} opens of blobs passed through to their files: what was read of them is not counted"
        );
    }
    if let Some(trouble) = &status.cache_trouble {
        out!("  nothing is kept in the cache: {trouble}");
    }
    out!("  log {}", status.log.display());
}

/// What became of a layer's bytes, if anything did.
fn print_use(layer: &LayerStatus) {
    if layer.bytes_fetched + layer.bytes_used + layer.opens_passed_through == 0 {
        return;
    }
    let by = layer.amplification.map_or(String::new(), |a| format!(" (amplification {a:.2})"));
    let passed = match layer.opens_passed_through {
        0 => String::new(),
        opens => format!(" and what {opens} opens read past the daemon"),
    };
    out!(
        "            fetched {}, used {}{passed}{by}; never needed {}",
        size(layer.bytes_fetched),
        size(layer.bytes_used),
        size(layer.bytes_never_needed)
    );
}
