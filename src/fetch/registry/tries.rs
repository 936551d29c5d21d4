//! How often a request to a registry is made again, and until when. (Reads of blobs have `Retry`,
//! which goes on at the byte where a body broke.)

use std::time::Instant;

use super::super::retry::{given_up, jitter, schedule};
use super::super::{Deadline, Error, Result};

/// The attempts at one thing.
pub struct Tries {
    deadline: Deadline,
    failed: u32,
}

impl Tries {
    /// None yet.
    pub fn new(deadline: Deadline) -> Self {
        Tries { deadline, failed: 0 }
    }

    /// The deadline of the next attempt.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// A body was sent: the time that it took was not idle. The number of attempts bounds how often.
    pub fn renew(&mut self) {
        self.deadline = self.deadline.renewed();
    }

    /// Waits until it is time for another attempt.
    ///
    /// # Errors
    /// `error`, when trying again cannot help, or not before the deadline.
    pub async fn again(&mut self, error: Error) -> Result<()> {
        if !error.is_temporary() {
            return Err(error);
        }
        self.failed += 1;
        let left = self.deadline.at().saturating_duration_since(Instant::now());
        let Some(wait) = schedule(self.failed, jitter(), error.retry_after, left) else {
            return Err(given_up(error, self.failed));
        };
        tracing::debug!(?wait, "trying again: {error}");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}
