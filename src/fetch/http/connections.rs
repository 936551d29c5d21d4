//! How many bodies one registry delivers at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::{Deadline, Error, ErrorKind, Result};

/// Blob reads of one registry at a time, for all images of a process. Eight layers stream with three
/// requests each; the rest is for readers that wait. Some registries refuse clients that have more
/// than some tens.
pub const CONNECTIONS_MAX: usize = 32;

/// The limits of all registries, by host and port.
#[derive(Default)]
pub struct Connections(Mutex<HashMap<String, Connection>>);

/// The limit of one registry.
#[derive(Clone)]
pub struct Connection {
    host: String,
    free: Arc<Semaphore>,
}

impl Connections {
    /// The limit of `host`, which all of its repositories share.
    pub fn to(&self, host: &str) -> Connection {
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Connection {
            host: host.to_owned(),
            free: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        };
        hosts.entry(host.to_owned()).or_insert_with(new).clone()
    }
}

impl Connection {
    /// The right to read one body; ends when dropped. First come, first served.
    ///
    /// # Errors
    /// [`ErrorKind::DeadlinePassed`] when all of them stayed busy.
    pub async fn get(&self, deadline: Deadline) -> Result<OwnedSemaphorePermit> {
        let free = Arc::clone(&self.free).acquire_owned();
        match tokio::time::timeout_at(deadline.at().into(), free).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => {
                let (host, stall) = (&self.host, deadline.stall());
                let text =
                    format!("{host}: all {CONNECTIONS_MAX} connections stayed busy for {stall:?}");
                Err(Error::new(ErrorKind::DeadlinePassed, text))
            }
        }
    }
}
