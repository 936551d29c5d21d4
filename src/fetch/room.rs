//! How much the cache may use on disk, and what is told when it cannot be used.
//!
//! The limit holds for all processes on one directory. Each asks for room before it writes, a grant
//! at a time, under one lock; who grants removes what was least recently used. A limit that does
//! not allow a file, a full disk and a read-only directory end alike: the bytes are not kept, and
//! whoever reads them does not notice.

use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

use super::cache::Cache;
use super::error::{Error, Result};

/// What one process may write between two looks at the directory. With the limit this is what the
/// directory can hold at most, for each process that writes to it.
const GRANT_BYTES_MAX: u64 = 4 << 20;

/// Of a small limit, a grant is this part.
const GRANTS_PER_LIMIT: u64 = 16;

/// Of the limit, one file may have this part: else one blob would drive out all others, itself
/// included.
const FILES_PER_LIMIT: u64 = 2;

/// A decoded layer is kept up to so many times the size of its blob: layers have two to ten times,
/// and a few megabytes must not fill a disk. What has more is decoded anew when it is read.
const DECODED_PER_STORED: u64 = 64;

/// What all decoded layers together may have beyond that, in one process: small blobs of text or of
/// zeros that are honest.
const DECODED_SPARE_BYTES: u64 = 256 << 20;

/// The limit, and what went wrong last.
#[derive(Debug)]
pub struct Room {
    limit_bytes: Option<u64>,
    /// What is left of [`DECODED_SPARE_BYTES`].
    spare: Mutex<u64>,
    /// Granted, and not yet written.
    granted: Mutex<u64>,
    trouble: Mutex<Option<String>>,
}

impl Room {
    /// At most `limit_bytes` in the whole directory; `None`: as much as the disk has.
    pub fn new(limit_bytes: Option<u64>) -> Self {
        let spare = Mutex::new(DECODED_SPARE_BYTES);
        Room { limit_bytes, spare, granted: Mutex::default(), trouble: Mutex::default() }
    }

    fn spare(&self) -> MutexGuard<'_, u64> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How large a decoded layer may become. What it took goes back with it, unless it is kept.
#[derive(Debug)]
pub struct Allowance {
    cache: Cache,
    stored_bytes: u64,
    bytes: u64,
}

impl Allowance {
    /// It is to get so many bytes more. `false`: it has too many for its blob, or for the limit.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let then = self.bytes.saturating_add(bytes);
        let more = beyond(self.stored_bytes, then) - beyond(self.stored_bytes, self.bytes);
        let mut spare = self.cache.room.spare();
        let Some(left) = spare.checked_sub(more) else { return false };
        (*spare, self.bytes) = (left, then);
        self.cache.may_keep(then)
    }

    /// It is kept.
    pub fn spend(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        *self.cache.room.spare() += beyond(self.stored_bytes, self.bytes);
    }
}

/// How much of a decoded layer's size its blob's does not account for.
fn beyond(stored_bytes: u64, decoded_bytes: u64) -> u64 {
    decoded_bytes.saturating_sub(stored_bytes.saturating_mul(DECODED_PER_STORED))
}

impl Cache {
    /// Files go when others need their room.
    pub fn has_limit(&self) -> bool {
        self.room.limit_bytes.is_some()
    }

    /// Whether a file of so many bytes is worth keeping.
    pub fn may_keep(&self, bytes: u64) -> bool {
        self.room.limit_bytes.is_none_or(|limit| bytes <= limit / FILES_PER_LIMIT)
    }

    /// Whether a decoded layer is worth keeping that has so many bytes, where its blob has
    /// `stored_bytes`.
    pub fn may_decode(&self, stored_bytes: u64, decoded_bytes: u64) -> bool {
        beyond(stored_bytes, decoded_bytes) <= *self.room.spare()
    }

    /// For the decoded layer of a blob of so many bytes, while it is written.
    pub fn allow_decoded(&self, stored_bytes: u64) -> Allowance {
        Allowance { cache: self.clone(), stored_bytes, bytes: 0 }
    }

    /// Makes room for `bytes` more, least recently used files go for them. `false`: there is none,
    /// because what is there is in use, or the limit is too small.
    pub fn make_room(&self, bytes: u64) -> bool {
        let Some(limit) = self.room.limit_bytes else { return true };
        let mut granted = self.room.granted.lock().unwrap_or_else(PoisonError::into_inner);
        if *granted < bytes {
            let grant = bytes.max(GRANT_BYTES_MAX.min(limit / GRANTS_PER_LIMIT));
            match self.grant(grant, limit) {
                Ok(true) => *granted += grant,
                Ok(false) => return false,
                Err(error) => {
                    self.tell_trouble(&error);
                    return false;
                }
            }
        }
        *granted -= bytes;
        true
    }

    /// Looks and removes while no other process does.
    fn grant(&self, bytes: u64, limit: u64) -> Result<bool> {
        let Some(target) = limit.checked_sub(bytes) else { return Ok(false) };
        let path = self.root.join("limit.lock");
        let failed = |e: &io::Error| Error::local(format!("cannot lock {}", path.display()), e);
        let options = || File::options().write(true).create(true).truncate(false).open(&path);
        let lock = options().map_err(|e| failed(&e))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| failed(&e.into()))?;
        self.shrink(target)
    }

    /// What can be read of the cache: trouble is told, and nothing is there.
    pub(super) fn found<T>(&self, read: Result<Option<T>>) -> Option<T> {
        read.inspect_err(|error| self.tell_trouble(error)).ok().flatten()
    }

    /// Something could not be written, or read: the log has it once, `status` as long as it lasts.
    /// The first trouble is the cause of those that follow.
    pub fn tell_trouble(&self, error: &Error) {
        let mut trouble = self.room.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.is_none() {
            tracing::warn!(%error, "the cache cannot be used: reading on without keeping bytes");
            *trouble = Some(error.to_string());
        }
    }

    /// A whole file was written.
    pub(super) fn tell_kept(&self) {
        let mut trouble = self.room.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.take().is_some() {
            tracing::info!("the cache can be used again");
        }
    }

    /// What keeps the cache from being used, if anything does.
    pub fn trouble(&self) -> Option<String> {
        self.room.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
