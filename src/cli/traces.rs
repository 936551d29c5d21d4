//! `--record` and `--prefetch`: what a use needs into a file, and from a file into the cache.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::context::{Context, OpenImage, absolute};
use crate::fetch::prefetch::{self, Progress, Target, What};
use crate::fetch::registry::Registry;
use crate::fetch::{Deadline, Error, ErrorKind, Result, shared_trace, trace_file};
use crate::fs::pending::Pending;
use crate::layout::Digest;
use crate::layout::error::readable;
use crate::layout::trace::Trace;

/// How often a trace is written that has grown: what a killed daemon loses of it.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// How often to look whether the view is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long a mount waits for a trace: enough for a registry far away, and a token.
const FOUND_WITHIN: Duration = Duration::from_secs(5);

/// What a trace is of when nobody says.
pub const DEFAULT_USE: &str = "default";

/// A use that is being recorded.
pub struct Recording {
    path: PathBuf,
    open: Arc<OpenImage>,
    /// How many ranges, and bytes of them, the file has. Held while it is written: an older trace
    /// must not replace a newer one.
    written: Mutex<Option<(usize, u64)>>,
}

impl Recording {
    /// Begins to record what is needed of `open`.
    ///
    /// # Errors
    /// Nobody could write the file.
    pub fn begin(open: Arc<OpenImage>, path: &Path) -> Result<Arc<Self>> {
        let path = absolute(path)?;
        trace_file::check(&path)?;
        open.store.uses.record();
        Ok(Arc::new(Recording { path, open, written: Mutex::default() }))
    }

    /// Writes the file, if there is something new to write. Who reads has nothing to do with it:
    /// failing to is told in the log.
    pub fn write(&self) {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = &self.open.image.manifest;
        let layers: Vec<Digest> = manifest.layers.iter().map(|l| l.blob.digest).collect();
        let trace = self.open.store.uses.trace(self.open.image.descriptor.blob.digest, &layers);
        let size = (trace.needed.len(), trace.needed.iter().map(|n| n.range.len()).sum());
        if *written == Some(size) {
            return;
        }
        match trace_file::write(&self.path, &trace) {
            Ok(()) => *written = Some(size),
            Err(error) => tracing::warn!(%error, "a trace is not kept"),
        }
    }

    /// Writes it every now and then, once the view is there.
    pub async fn keep(self: Arc<Self>, pending: Arc<Pending>) {
        let mut ticks = tokio::time::interval(WRITE_EVERY);
        loop {
            ticks.tick().await;
            let recording = self.clone();
            if pending.get().is_some() {
                // A write that panics is told by its own message; the next one tries again.
                let _ = tokio::task::spawn_blocking(move || recording.write()).await;
            }
        }
    }
}

/// What `--prefetch` says to fetch of `open`; where it says nothing, what landmarks say if the image
/// is to be started.
///
/// # Errors
/// [`ErrorKind::Usage`]: the file is no trace, or one of another image.
pub fn wanted(context: &Context, open: &OpenImage, starts: bool) -> Result<Option<What>> {
    let found = |used_for| found(context, open, used_for).map_or(What::Early, What::Trace);
    let path = match context.options.prefetch.as_deref() {
        None => return Ok(starts.then_some(What::Early)),
        Some("none") => return Ok(None),
        Some("all") => return Ok(Some(What::All)),
        Some("auto") => return Ok(Some(found(DEFAULT_USE))),
        Some(path) => match path.strip_prefix("auto:") {
            Some(used_for) => return Ok(Some(found(used_for))),
            None => path,
        },
    };
    let trace = read(open, Path::new(path)).map_err(|e| e.context("--prefetch"))?;
    Ok(Some(What::Trace(trace)))
}

/// The trace in a file, if it is of this image.
///
/// # Errors
/// [`ErrorKind::Usage`]: it is no trace, or one of another image.
pub fn read(open: &OpenImage, path: &Path) -> Result<Trace> {
    let trace = trace_file::read(path)?;
    let image = open.image.descriptor.blob.digest;
    if trace.image != image {
        let (path, other) = (path.display(), trace.image);
        let message = format!("{path}: a trace of {other}, and this image is {image}");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(trace)
}

/// The trace of a use that the first source lists for the image. It is a hint: why there is none is
/// told, and nothing fails.
fn found(context: &Context, open: &OpenImage, used_for: &str) -> Option<Trace> {
    let image = open.image.descriptor.blob.digest;
    let ask = async |registry: &Registry| {
        let deadline = Deadline::after(FOUND_WITHIN);
        let listed = shared_trace::listed(registry, &image, used_for, deadline).await?;
        let Some(artifact) = listed.artifact else {
            let uses = readable(&listed.uses.join(", "));
            let others =
                if uses.is_empty() { uses } else { format!(" (there are some of {uses})") };
            return Err(Error::new(ErrorKind::NotFound, format!("there is none{others}")));
        };
        let fetched = shared_trace::fetch(registry, &artifact, &image, deadline.renewed()).await;
        fetched.map_err(|e| e.context(format!("trace {artifact}")))
    };
    let asked = (|| {
        let (references, nowhere) = context.references(&open.image.selected)?;
        let place = references.first().ok_or(nowhere)?;
        let registry = context.registries()?.repository(place);
        let asked = async { tokio::time::timeout(FOUND_WITHIN, ask(&registry)).await };
        let late = |_| {
            let message = format!("none was found within {FOUND_WITHIN:?}");
            Error::new(ErrorKind::DeadlinePassed, message)
        };
        context.runtime.block_on(asked).map_err(late)?
    })();
    match asked {
        Ok(trace) => Some(trace),
        Err(error) => {
            let used_for = readable(used_for);
            context
                .say(format_args!("nothing is prefetched by a trace of use {used_for}: {error}"));
            None
        }
    }
}

/// Fetches `what` as soon as the view is there.
pub async fn prefetch(
    open: Arc<OpenImage>,
    pending: Arc<Pending>,
    what: What,
    progress: Arc<Progress>,
) {
    let view = loop {
        match pending.get() {
            Some(view) => break view.clone(),
            None => tokio::time::sleep(LOOK_EVERY).await,
        }
    };
    let mut targets: Vec<Target> = Vec::new();
    for layer in &open.image.manifest.layers {
        if targets.iter().all(|target| target.blob.digest != layer.blob.digest) {
            let reader =
                view.readers().iter().find(|r| r.layer().blob.digest == layer.blob.digest).cloned();
            targets.push(Target { blob: layer.blob, reader });
        }
    }
    // The view is its readers', not ours: what it holds may be let go of.
    drop(view);
    prefetch::run(open.store.clone(), targets, what, progress).await;
}
