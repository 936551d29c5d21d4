//! A view that is still being built: `mount --no-wait` answers the first lookups when it is there.
//!
//! A build that fails is reported to whoever waits, and is tried again when somebody asks next: the
//! mount recovers when the registry does.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Notify, watch};

use super::ops::View;
use crate::fetch::{Error, ErrorKind, Result};

/// The least time between two builds, however many ask.
const REBUILD_EVERY: Duration = Duration::from_secs(1);

/// A view, now or later.
pub struct Pending {
    view: OnceLock<Arc<View>>,
    /// Number of builds that ended, and how the last one failed.
    builds: watch::Sender<(u64, Option<ErrorKind>)>,
    asked: Notify,
}

impl Default for Pending {
    fn default() -> Self {
        let (builds, _) = watch::channel((0, None));
        Pending { view: OnceLock::new(), builds, asked: Notify::new() }
    }
}

impl Pending {
    /// The view, if it is built.
    pub fn get(&self) -> Option<&Arc<View>> {
        self.view.get()
    }

    /// Builds until it works. Returns after the first success; each failure is handed to `failed`.
    pub async fn build<F>(&self, mut build: impl FnMut() -> F, mut failed: impl FnMut(&Error))
    where
        F: Future<Output = Result<View>>,
    {
        loop {
            // Whoever waits must hear of a panic, too, or would wait for good.
            let built = AssertUnwindSafe(async { build().await }).catch_unwind().await;
            let panicked = |_| Err(Error::new(ErrorKind::Local, "building the view panicked"));
            match built.unwrap_or_else(panicked) {
                Ok(view) => {
                    self.set(view);
                    return;
                }
                Err(error) => {
                    failed(&error);
                    self.builds.send_modify(|b| *b = (b.0 + 1, Some(error.kind)));
                }
            }
            self.asked.notified().await;
            tokio::time::sleep(REBUILD_EVERY).await;
        }
    }

    /// The view is built, and stays.
    pub fn set(&self, view: View) {
        // Set once: there is one builder.
        let _ = self.view.set(Arc::new(view));
        self.builds.send_modify(|b| *b = (b.0 + 1, None));
    }

    /// Waits for the build that runs, or for the next one after a failure. The build keeps the
    /// deadline: it fails when no byte arrives for too long.
    ///
    /// # Errors
    /// The kind of the build's error.
    pub async fn wait(&self) -> std::result::Result<Arc<View>, ErrorKind> {
        let mut builds = self.builds.subscribe();
        let (seen, former) = *builds.borrow_and_update();
        if former.is_some() {
            self.asked.notify_one();
        }
        loop {
            if let Some(view) = self.view.get() {
                return Ok(view.clone());
            }
            let (ended, failure) = *builds.borrow_and_update();
            if let (true, Some(kind)) = (ended > seen, failure) {
                return Err(kind);
            }
            if builds.changed().await.is_err() {
                return Err(ErrorKind::Local);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_build_that_panics_is_a_failed_one() {
        let pending = Arc::new(Pending::default());
        let builder = pending.clone();
        let task = tokio::spawn(async move {
            let build = || async { panic!("told to") };
            builder.build(build, |_: &Error| {}).await;
        });
        for _ in 0..2 {
            assert!(matches!(pending.wait().await, Err(ErrorKind::Local)));
        }
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_build_is_reported_and_tried_again_when_somebody_asks() {
        let pending = Arc::new(Pending::default());
        let builder = pending.clone();
        let (attempts, mut attempted) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let build = || async { Err(Error::new(ErrorKind::Network, "away")) };
            let failed = |error: &Error| {
                let _ = attempts.send(error.kind);
            };
            builder.build(build, failed).await;
        });
        assert!(matches!(pending.wait().await, Err(ErrorKind::Network)));
        assert!(matches!(pending.wait().await, Err(ErrorKind::Network)));
        assert_eq!(attempted.recv().await, Some(ErrorKind::Network));
        assert_eq!(attempted.recv().await, Some(ErrorKind::Network));
        assert!(attempted.try_recv().is_err(), "nobody asked for a third build");
        task.abort();
    }
}
