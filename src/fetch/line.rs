//! Readers first: who fetches ahead of them waits until no reader waits.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::{Body, BoxFuture, Chunks, Deadline, Distrust, Error, Result, Source};
use crate::layout::range::ByteRange;
use crate::layout::{Blob, Digest};

/// Who stands in line for the sources of one store.
#[derive(Debug)]
pub struct Line(watch::Sender<Standing>);

#[derive(Debug, Default)]
struct Standing {
    readers: usize,
    /// Whole blobs that a reader has asked for: whoever else brings them does it for that reader.
    asked: HashSet<Digest>,
}

/// A reader that waits; until it is dropped.
#[derive(Debug)]
pub struct Reader<'a>(&'a Line);

impl Default for Line {
    fn default() -> Self {
        Line(watch::Sender::new(Standing::default()))
    }
}

impl Line {
    /// A reader waits from now on.
    pub fn reader(&self) -> Reader<'_> {
        self.0.send_modify(|standing| standing.readers += 1);
        Reader(self)
    }

    /// A reader wants all of the blob.
    pub fn ask_for(&self, digest: &Digest) {
        self.0.send_if_modified(|standing| standing.asked.insert(*digest));
    }

    /// Waits until no reader waits.
    pub async fn free(&self) {
        self.until(|standing| standing.readers == 0).await;
    }

    /// Waits until no reader waits, or one waits for this very blob.
    async fn free_for(&self, digest: &Digest) {
        self.until(|standing| standing.readers == 0 || standing.asked.contains(digest)).await;
    }

    async fn until(&self, is_free: impl Fn(&Standing) -> bool) {
        // Fails only without a sender, which is here.
        let _ = self.0.subscribe().wait_for(is_free).await;
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|standing| standing.readers -= 1);
    }
}

/// Source around a Source: each request waits for its turn, readers first. What goes wrong is worth
/// another attempt: a reader that came later must not fail with whoever went ahead.
pub struct Behind {
    inner: Arc<dyn Source>,
    line: Arc<Line>,
}

impl Behind {
    /// Asks `inner` when `line` is free.
    pub fn new(inner: Arc<dyn Source>, line: Arc<Line>) -> Self {
        Behind { inner, line }
    }
}

impl Source for Behind {
    fn read<'a>(
        &'a self,
        blob: &'a Blob,
        range: ByteRange,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Body>> {
        Box::pin(async move {
            self.line.free_for(&blob.digest).await;
            let body = self.inner.read(blob, range, deadline.renewed()).await;
            let body = body.map_err(worth_another)?;
            Ok(Body::new(body.range, Box::new(BehindChunks(body))))
        })
    }

    fn distrust(&self, blob: &Blob, range: ByteRange, why: Distrust) -> bool {
        self.inner.distrust(blob, range, why)
    }

    fn name(&self) -> String {
        self.inner.name()
    }
}

struct BehindChunks(Body);

impl Chunks for BehindChunks {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async { self.0.next().await.map_err(worth_another) })
    }
}

fn worth_another(error: Error) -> Error {
    Error { may_differ: true, ..error }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::local::Local;
    use super::*;
    use crate::fetch::ErrorKind;

    #[tokio::test(start_paused = true)]
    async fn a_request_behind_readers_waits_for_all_of_them_but_not_for_its_own() {
        let line = Arc::new(Line::default());
        let (first, second) = (line.reader(), line.reader());
        let mut free = std::pin::pin!(line.free());
        let brief = Duration::from_millis(1);
        assert!(tokio::time::timeout(brief, &mut free).await.is_err());
        drop(first);
        assert!(tokio::time::timeout(brief, &mut free).await.is_err());
        let digest = Digest::sha256_of(b"x");
        let mut ours = std::pin::pin!(line.free_for(&digest));
        assert!(tokio::time::timeout(brief, &mut ours).await.is_err());
        line.ask_for(&digest);
        ours.await;
        drop(second);
        free.await;
    }

    #[tokio::test]
    async fn what_fails_ahead_of_a_reader_is_worth_another_attempt() {
        let blob = Blob { digest: Digest::sha256_of(b"x"), size: 1 };
        let behind = Behind::new(Arc::new(Local::new("/nonexistent")), Arc::default());
        let deadline = Deadline::after(Duration::from_secs(1));
        let error = behind.read(&blob, ByteRange::new(0, 1), deadline).await.err();
        let error = error.expect("nobody has it");
        assert!(error.may_differ && error.kind == ErrorKind::NotFound);
    }
}
