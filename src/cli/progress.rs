//! Progress bars: one a blob, on standard error, silent when that is not a terminal.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::fetch::store::Store;
use crate::layout::{Blob, Digest};

/// How often the bars move.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// Runs `work` while bars show how far `blobs` are.
pub async fn show<T>(
    store: &Arc<Store>,
    blobs: &[Blob],
    quiet: bool,
    work: impl Future<Output = T>,
) -> T {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let all = MultiProgress::with_draw_target(target);
    let mut bars: HashMap<Digest, ProgressBar> = HashMap::new();
    let mut ticks = tokio::time::interval(DRAW_EVERY);
    tokio::pin!(work);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = ticks.tick() => draw(store, blobs, &all, &mut bars),
        }
    };
    let _ = all.clear();
    result
}

fn draw(
    store: &Store,
    blobs: &[Blob],
    all: &MultiProgress,
    bars: &mut HashMap<Digest, ProgressBar>,
) {
    for blob in blobs {
        let Some(progress) = store.progress(blob) else { continue };
        let done = matches!(progress.outcome, Some(Ok(())));
        if done && !bars.contains_key(&blob.digest) {
            // It was here before anybody could see it come.
            continue;
        }
        let bar = bars.entry(blob.digest).or_insert_with(|| {
            let style = ProgressStyle::with_template(
                "{prefix} {bar:30} {bytes:>10} of {total_bytes:<10} {bytes_per_sec:>12} {eta}",
            );
            let bar = ProgressBar::new(blob.size).with_prefix(blob.digest.short());
            // The template is a constant: it parses, or the bar looks plain.
            all.add(style.map(|style| bar.clone().with_style(style)).unwrap_or(bar))
        });
        bar.set_position(progress.resident);
        if done {
            bar.finish();
        }
    }
}
