//! When bytes of a whole blob (layout view) go out: strict and stream. Nothing else decides it.
//!
//! [`Served`] is what a reply is made of. Of a layer's content it can only be [`Proved`];
//! [`Streamed`], bytes that nothing is known of yet, is made here alone, and only for a pinned file
//! under [`Policy::Stream`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::fetch::arrival::{Arrival, Origin, Until};
use crate::fetch::proved::Proved;
use crate::fetch::store::Store;
use crate::fetch::{Deadline, Error, ErrorKind, Result};
use crate::layout::Blob;
use crate::layout::range::ByteRange;

/// When the bytes of a whole blob (layout view) may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Policy {
    /// Nothing before the digest of the whole blob matches.
    Strict,
    /// In order, as it arrives; but no read that reaches the end before the digest matches.
    Stream,
}

/// The bytes of a reply.
#[derive(Debug)]
pub enum Served {
    /// Their digest was checked.
    Proved(Proved),
    /// The beginning or middle of a blob of the layout view, whose end will not be served unless
    /// all of it is right.
    Streamed(Streamed),
}

/// Bytes of a blob that is on its way. Nothing is known of them.
#[derive(Debug)]
pub struct Streamed(Bytes);

impl Served {
    /// For the reply.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Served::Proved(bytes) => bytes,
            Served::Streamed(Streamed(bytes)) => bytes,
        }
    }
}

impl From<Proved> for Served {
    fn from(bytes: Proved) -> Self {
        Served::Proved(bytes)
    }
}

impl Policy {
    /// What a read of `range` of `blob` has to wait for.
    fn waits_for(self, blob: &Blob, range: ByteRange) -> Until {
        match self {
            Policy::Strict => Until::Proved,
            Policy::Stream if range.end >= blob.size => Until::Proved,
            Policy::Stream => Until::Resident(range.end),
        }
    }

    /// What an open file of `blob` needs to keep: `None` when everything that it reads is proved.
    pub fn pin(self, store: &Store, blob: &Blob) -> Option<Pin> {
        let is_streamed = self == Policy::Stream && store.proved_now(blob).is_none();
        is_streamed.then(Pin::default)
    }

    /// Reads `range` of `blob`. Without a pin nothing unproved is served, whatever the policy.
    ///
    /// # Errors
    /// The bytes cannot be had before the deadline, or are not what their digest says.
    pub async fn read(
        self,
        store: &Store,
        blob: &Blob,
        range: ByteRange,
        pin: Option<&Pin>,
        deadline: Deadline,
    ) -> Result<Served> {
        let Some(pin) = pin else {
            return store.read_proved(blob, range, deadline).await.map(Served::Proved);
        };
        let arrival = pin.attempt(store, blob, deadline).await?;
        if arrival.origin() != Origin::Source {
            // A local file is soon hashed, and a damaged one is replaced before anything is seen.
            return store.read_proved(blob, range, deadline).await.map(Served::Proved);
        }
        let until = self.waits_for(blob, range);
        arrival.wait(until, deadline.renewed()).await?;
        let is_proved = until == Until::Proved;
        if !is_proved {
            pin.serve(&arrival)?;
        }
        let read = move || match is_proved {
            true => arrival.read_proved(range).map(Served::Proved),
            false => arrival.read_unproved(range).map(|b| Served::Streamed(Streamed(b))),
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|e| Error::new(ErrorKind::Local, format!("a read ended early: {e}")))?
    }
}

/// One open file that reads a blob before it is proved. Everything that it reads is of one attempt
/// to bring the blob: were the beginning of one attempt and the end of the next joined, the end
/// would succeed although the beginning was wrong.
#[derive(Debug, Default)]
pub struct Pin {
    attempt: Mutex<Option<Arc<Arrival>>>,
    /// A byte was read that was not proved then.
    has_served: AtomicBool,
}

impl Pin {
    /// The attempt that this file reads. One that failed is given up only while nothing of it was
    /// read: afterwards the file has to be opened again.
    async fn attempt(&self, store: &Store, blob: &Blob, dl: Deadline) -> Result<Arc<Arrival>> {
        let lock = || self.attempt.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().clone();
        if let Some(arrival) = kept {
            let failed = matches!(arrival.progress().outcome, Some(Err(_)));
            if self.has_served.load(Ordering::Acquire) || !failed {
                return Ok(arrival);
            }
        }
        let arrival = store.arrival(blob, dl).await?;
        let mut attempt = lock();
        match &*attempt {
            // Two first reads at once: the one that came first decides.
            Some(first) if self.has_served.load(Ordering::Acquire) => Ok(first.clone()),
            _ => Ok(attempt.insert(arrival).clone()),
        }
    }

    /// Notes that unproved bytes of `arrival` go out; not if the file reads another attempt.
    fn serve(&self, arrival: &Arc<Arrival>) -> Result<()> {
        let attempt = self.attempt.lock().unwrap_or_else(PoisonError::into_inner);
        if !attempt.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, arrival)) {
            return Err(Error::new(ErrorKind::Network, "the blob was begun anew meanwhile"));
        }
        self.has_served.store(true, Ordering::Release);
        Ok(())
    }
}
