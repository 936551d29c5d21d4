//! A second request for bytes that do not come: at most one more, and whichever is done first.
//!
//! For the few bytes that a reader waits for. A stream of a whole blob has requests ahead instead.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::arrival::crop;
use super::{Deadline, Distrust, Result, Source};
use crate::layout::Blob;
use crate::layout::range::ByteRange;

/// A request that brought less than [`SLOW_BYTES`] in this time is slow. (In a quarter of the
/// deadline, if that is less.) Most answers take a tenth of it, and a second request is not free.
const SLOW_AFTER: Duration = Duration::from_secs(1);

/// A line that brings less in [`SLOW_AFTER`] has stalled, or might as well have.
const SLOW_BYTES: u64 = 16 << 10;

/// How long a request may take for its first bytes before it is slow.
pub(super) fn slow_after(deadline: Deadline) -> Duration {
    SLOW_AFTER.min(deadline.stall() / 4)
}

/// The bytes of `range`, whole. Not proved.
///
/// # Errors
/// Those of the last request that failed.
pub async fn read(
    source: &Arc<dyn Source>,
    blob: &Blob,
    range: ByteRange,
    deadline: Deadline,
) -> Result<Bytes> {
    let arrived_bytes = AtomicU64::new(0);
    let mut first = pin!(collect(source, blob, range, deadline, &arrived_bytes));
    let mut seen = 0;
    loop {
        tokio::select! {
            done = &mut first => return done,
            () = tokio::time::sleep(slow_after(deadline)) => {}
        }
        let arrived = arrived_bytes.load(Ordering::Relaxed);
        if arrived - seen < SLOW_BYTES {
            break;
        }
        seen = arrived;
    }
    // Another source, if there is one; else another connection to the same, unless it has asked to
    // be left alone.
    if !source.distrust(blob, range, Distrust::Slow) {
        return first.await;
    }
    let deadline = if seen > 0 { deadline.renewed() } else { deadline };
    let uncounted = AtomicU64::new(0);
    let mut second = pin!(collect(source, blob, range, deadline, &uncounted));
    tokio::select! {
        done = &mut first => match done {
            Err(_) => second.await,
            done => done,
        },
        done = &mut second => match done {
            Err(_) => first.await,
            done => done,
        },
    }
}

/// As [`read`], with one request.
pub(super) async fn collect(
    source: &Arc<dyn Source>,
    blob: &Blob,
    range: ByteRange,
    deadline: Deadline,
    arrived_bytes: &AtomicU64,
) -> Result<Bytes> {
    let mut body = source.read(blob, range, deadline).await?;
    let mut bytes = BytesMut::with_capacity(range.len() as usize);
    crop(&mut body, range, |piece| {
        arrived_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        bytes.extend_from_slice(&piece);
        std::future::ready(Ok(()))
    })
    .await?;
    Ok(bytes.freeze())
}
