//! `--record` and `--prefetch`: what a use needs into a file, and from a file into the cache.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::context::{Context, OpenImage, absolute};
use crate::fetch::prefetch::{self, Progress, Target, What};
use crate::fetch::{Error, ErrorKind, Result, trace_file};
use crate::fs::pending::Pending;
use crate::layout::Digest;

/// How often a trace is written that has grown: what a killed daemon loses of it.
const WRITE_EVERY: Duration = Duration::from_secs(2);

/// How often to look whether the view is there.
const LOOK_EVERY: Duration = Duration::from_millis(50);

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

/// What `--prefetch` says to fetch of `open`.
///
/// # Errors
/// [`ErrorKind::Usage`]: the file is no trace, or one of another image.
pub fn wanted(context: &Context, open: &OpenImage) -> Result<Option<What>> {
    let path = match context.options.prefetch.as_str() {
        "none" => return Ok(None),
        "all" => return Ok(Some(What::All)),
        path => Path::new(path),
    };
    let trace = trace_file::read(path).map_err(|e| e.context("--prefetch"))?;
    let image = open.image.descriptor.blob.digest;
    if trace.image != image {
        let (path, other) = (path.display(), trace.image);
        let message = format!("--prefetch {path}: a trace of {other}, and this image is {image}");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(Some(What::Trace(trace)))
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
