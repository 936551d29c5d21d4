//! `layoutfs hydrate`.

use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::json;

use super::args;
use super::context::{Context, print_json};
use super::progress;
use super::units::size;
use crate::fetch::{Result, hydrate};
use crate::layout::Blob;

pub fn run(context: &Context, args: &args::Hydrate) -> Result<()> {
    let open = context.open(&args.image)?;
    let blobs = hydrate::blobs(&open.image);
    let directory = &open.image.selected.directory;
    let store = &open.store;
    let work = futures_util::stream::iter(blobs.iter().copied())
        .map(|blob: Blob| async move {
            let brought = hydrate::bring(store, directory, &blob).await;
            brought.map(|brought| brought.then_some(blob))
        })
        .buffer_unordered(usize::from(args.jobs))
        .try_collect::<Vec<Option<Blob>>>();
    let outcomes =
        context.runtime.block_on(progress::show(store, &blobs, context.options.quiet, work))?;
    let fetched = open.asked.now();
    let brought: Vec<Blob> = outcomes.into_iter().flatten().collect();
    let bytes: u64 = brought.iter().fold(0, |sum, b| b.size.saturating_add(sum));
    if context.options.json {
        return print_json(&json!({
            "directory": directory,
            "blobs": brought.iter().map(|b| b.digest.to_string()).collect::<Vec<_>>(),
            "bytes": bytes,
            "bytes_fetched": fetched.bytes,
            "requests": fetched.requests,
        }));
    }
    context.say(format_args!(
        "{} of {} blobs were missing or damaged, {} ({} fetched); {} is complete",
        brought.len(),
        blobs.len(),
        size(bytes),
        size(fetched.bytes),
        directory.display()
    ));
    Ok(())
}
