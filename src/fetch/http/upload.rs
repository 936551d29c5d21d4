//! The body of a request on its way: in pieces, each with the patience of the deadline.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use reqwest::Body;

use super::super::Deadline;

/// A piece of a body. A server that takes less than one of them while a deadline passes (60 s: about
/// 1 KiB/s) counts as silent, as one does that sends so little.
const PIECE_BYTES: usize = 64 << 10;

/// When the last piece of a body left us.
#[derive(Clone, Default)]
pub struct Moved(Arc<Mutex<Option<Instant>>>);

impl Moved {
    /// `bytes` as a body whose pieces are noted here as they are taken.
    pub fn body(&self, bytes: &Bytes) -> Body {
        if bytes.len() <= PIECE_BYTES {
            return Body::from(bytes.clone());
        }
        let (bytes, moved) = (bytes.clone(), self.clone());
        let pieces = (0..bytes.len()).step_by(PIECE_BYTES).map(move |start| {
            *moved.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            let end = bytes.len().min(start + PIECE_BYTES);
            Ok::<Bytes, std::convert::Infallible>(bytes.slice(start..end))
        });
        Body::wrap_stream(futures_util::stream::iter(pieces))
    }

    /// What `sent` ends with; `None` when no piece was taken, and no answer came, for as long as
    /// the deadline allows.
    pub async fn wait_for<T>(
        &self,
        sent: impl Future<Output = T>,
        deadline: Deadline,
    ) -> Option<T> {
        let mut sent = pin!(sent);
        let mut until = deadline.at();
        loop {
            if let Ok(answer) = tokio::time::timeout_at(until.into(), &mut sent).await {
                return Some(answer);
            }
            let moved = self.last().map(|last| last + deadline.stall());
            until = moved.filter(|later| *later > until)?;
        }
    }

    /// The deadline for what follows: anew if a body was sent, whose time was not idle.
    pub fn renewed(&self, deadline: Deadline) -> Deadline {
        if self.last().is_some() { deadline.renewed() } else { deadline }
    }

    fn last(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_body_that_moves_has_time_and_one_that_stops_has_not() {
        let stall = Duration::from_millis(500);
        let moved = Moved::default();
        let silent = moved.wait_for(std::future::pending::<()>(), Deadline::after(stall)).await;
        assert_eq!(silent, None);
        // Twice the deadline, and never so long without a piece.
        let sending = async {
            for _ in 0..25 {
                tokio::time::sleep(stall / 12).await;
                *moved.0.lock().expect("a lock") = Some(Instant::now());
            }
        };
        assert_eq!(moved.wait_for(sending, Deadline::after(stall)).await, Some(()));
        let stopped = moved.wait_for(std::future::pending::<()>(), Deadline::after(stall)).await;
        assert_eq!(stopped, None);
    }
}
