//! Bytes of a blob that find no place on disk: the last ones in memory, all others once more from
//! the source, each piece checked by the digest that it had when the blob was proved.
//!
//! That is how a blob is read while the cache is full, read-only, or smaller than the blob. It costs
//! bounded memory, and a second request for what is read again.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::runtime::Handle;

use super::arrival::crop;
use super::cache::read_exact_at;
use super::decoded::{PIECE_BYTES, Summing};
use super::error::{Error, ErrorKind, Result};
use super::{Deadline, Source};
use crate::layout::digest::Hasher;
use crate::layout::range::ByteRange;
use crate::layout::{Blob, Digest};

/// The last bytes of a stream that stay in memory: whoever follows it is not further behind, or the
/// stream waits.
const RECENT_BYTES_MAX: usize = 8 << 20;

/// Pieces that were fetched again and stay in memory: readers of two places do not get in each
/// other's way.
const AGAIN_MAX: usize = 2;

/// How long a stream that waits for its followers goes without looking for them.
const FOLLOWERS_LOOK: Duration = Duration::from_millis(100);

/// What there is of one blob beside its file.
pub struct Overflow {
    blob: Blob,
    source: Arc<dyn Source>,
    stall: Duration,
    runtime: Handle,
    state: Mutex<State>,
    moved: Condvar,
    /// Pieces by number. Held while one is fetched, so that each is fetched once.
    again: Mutex<VecDeque<(u64, Bytes)>>,
}

#[derive(Default)]
struct State {
    /// Nothing more is written to the file, which has so many bytes from the start.
    in_file: Option<u64>,
    /// Of everything that has come, piece by piece.
    sums: Summing,
    recent: VecDeque<Bytes>,
    /// Positions of the first and behind the last of them.
    recent_at: ByteRange,
    followers: BTreeMap<u64, u64>,
    followers_ever: u64,
    /// Nothing more comes.
    is_over: bool,
}

/// Whoever reads a stream in order, soon after the bytes come. Until it is dropped, the stream stays
/// near it.
pub struct Follower {
    overflow: Arc<Overflow>,
    number: u64,
}

impl std::fmt::Debug for Overflow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overflow").field("blob", &self.blob).finish_non_exhaustive()
    }
}

impl Overflow {
    /// None yet. Called on the runtime that requests run on.
    pub fn new(blob: Blob, source: Arc<dyn Source>, stall: Duration) -> Arc<Self> {
        let (runtime, state, moved) = (Handle::current(), Mutex::default(), Condvar::new());
        let again = Mutex::default();
        Arc::new(Overflow { blob, source, stall, runtime, state, moved, again })
    }

    /// Bytes are missing in the blob's file.
    pub fn is_on(&self) -> bool {
        self.lock().in_file.is_some()
    }

    /// From now on nothing goes to the file, which has the first `in_file` bytes; `so_far` has
    /// hashed them, if anybody here did. Gives what has hashed them now.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`]: the file gives back other bytes.
    pub fn begin(
        &self,
        file: Option<&File>,
        in_file: u64,
        so_far: Option<&Hasher>,
    ) -> Result<Hasher> {
        let (mut sums, mut hasher) = (Summing::default(), self.blob.digest.hasher());
        let mut at = 0;
        while let Some(file) = file
            && at < in_file
        {
            let range = ByteRange::at(at, PIECE_BYTES.min(in_file - at));
            let bytes = read_exact_at(file, range)?;
            hasher.update(&bytes);
            sums.update(&bytes);
            at = range.end;
        }
        if so_far.is_some_and(|so_far| so_far.clone().finish() != hasher.clone().finish()) {
            let message = format!("blob {}: its file has other bytes than came", self.blob.digest);
            return Err(Error::new(ErrorKind::DigestMismatch, message));
        }
        let mut state = self.lock();
        (state.sums, state.in_file) = (sums, Some(in_file));
        state.recent_at = ByteRange::new(in_file, in_file);
        Ok(hasher)
    }

    /// The next bytes. Waits for followers that are about to read what would leave memory.
    pub fn append(&self, bytes: Bytes) {
        let mut state = self.lock();
        state.sums.update(&bytes);
        state.recent_at.end += bytes.len() as u64;
        state.recent.push_back(bytes);
        while state.recent_at.len() > RECENT_BYTES_MAX as u64 {
            let first = state.recent.front().map_or(0, |first| first.len() as u64);
            let begun = state.recent_at.start..state.recent_at.start + first;
            if state.followers.values().any(|at| begun.contains(at)) {
                let waited = self.moved.wait_timeout(state, FOLLOWERS_LOOK);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            state.recent.pop_front();
            state.recent_at.start += first;
        }
    }

    /// Nothing more comes.
    pub fn end(&self) {
        let mut state = self.lock();
        state.sums.end();
        state.is_over = true;
        state.forget_recent();
    }

    /// Announces a reader in order from the start.
    pub fn follow(self: &Arc<Self>) -> Follower {
        let mut state = self.lock();
        state.followers_ever += 1;
        let number = state.followers_ever;
        state.followers.insert(number, 0);
        Follower { overflow: self.clone(), number }
    }

    /// Bytes that have come; those that are not at hand are fetched again. Not on a thread of the
    /// runtime.
    ///
    /// # Errors
    /// They cannot be had, or are not those that came before.
    pub fn read(&self, file: Option<&File>, range: ByteRange) -> Result<Bytes> {
        let mut out = BytesMut::with_capacity(range.len() as usize);
        let mut at = range.start;
        while at < range.end {
            if let Some(bytes) = self.recent(ByteRange::new(at, range.end)) {
                at += bytes.len() as u64;
                out.extend_from_slice(&bytes);
                continue;
            }
            let number = at / PIECE_BYTES;
            let piece = self.piece(file, number)?;
            let from = (at - number * PIECE_BYTES) as usize;
            let upto = piece.len().min(from + (range.end - at) as usize);
            if from >= upto {
                let message = format!("byte {at} of blob {} has not come", self.blob.digest);
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            out.extend_from_slice(&piece[from..upto]);
            at += (upto - from) as u64;
        }
        Ok(out.freeze())
    }

    /// The beginning of `range`, if that is in memory.
    fn recent(&self, range: ByteRange) -> Option<Bytes> {
        let state = self.lock();
        let mut start = state.recent_at.start;
        for bytes in &state.recent {
            let end = start + bytes.len() as u64;
            if (start..end).contains(&range.start) {
                let upto = end.min(range.end);
                return Some(bytes.slice((range.start - start) as usize..(upto - start) as usize));
            }
            start = end;
        }
        None
    }

    /// A piece that is whole: from the file, if that still has it, or from the source.
    fn piece(&self, file: Option<&File>, number: u64) -> Result<Bytes> {
        let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = again.iter().find(|(found, _)| *found == number) {
            return Ok(bytes.clone());
        }
        let (sum, in_file) = {
            let state = self.lock();
            let sum = usize::try_from(number).ok().and_then(|n| state.sums.sums().get(n).copied());
            (sum, state.in_file.unwrap_or(0))
        };
        let whole = ByteRange::new(0, self.blob.size);
        let range = ByteRange::at(number * PIECE_BYTES, PIECE_BYTES).intersection(&whole);
        let Some(sum) = sum else {
            // The rest of the piece is still to come, to memory: what is in the file counts as what
            // came does.
            let begun = range.intersection(&ByteRange::new(0, in_file));
            return match file.filter(|_| !begun.is_empty()) {
                Some(file) => Ok(read_exact_at(file, begun)?.into()),
                None => Ok(Bytes::new()),
            };
        };
        let right = |bytes: &Bytes| Digest::Sha256(sum).verify(bytes);
        let local = file.filter(|_| range.end <= in_file);
        let local = local.and_then(|file| read_exact_at(file, range).ok()).map(Bytes::from);
        let bytes = match local.filter(|bytes| right(bytes).is_ok()) {
            Some(bytes) => bytes,
            None => {
                let bytes = self.runtime.block_on(self.fetch(range))?;
                right(&bytes).map_err(|e| {
                    Error::from(e).context(format!("blob {}, bytes {range}", self.blob.digest))
                })?;
                bytes
            }
        };
        again.push_back((number, bytes.clone()));
        if again.len() > AGAIN_MAX {
            again.pop_front();
        }
        Ok(bytes)
    }

    async fn fetch(&self, range: ByteRange) -> Result<Bytes> {
        let deadline = Deadline::after(self.stall);
        let mut body = self.source.read(&self.blob, range, deadline).await?;
        let mut bytes = BytesMut::with_capacity(range.len() as usize);
        crop(&mut body, range, |piece| {
            bytes.extend_from_slice(&piece);
            std::future::ready(Ok(()))
        })
        .await?;
        Ok(bytes.freeze())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Memory is for those who are behind.
    fn forget_recent(&mut self) {
        if self.is_over && self.followers.is_empty() {
            self.recent.clear();
            self.recent_at.start = self.recent_at.end;
        }
    }
}

impl Follower {
    /// It has read everything before `at`.
    pub fn advance(&self, at: u64) {
        self.overflow.lock().followers.insert(self.number, at);
        self.overflow.moved.notify_all();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut state = self.overflow.lock();
        state.followers.remove(&self.number);
        state.forget_recent();
        drop(state);
        self.overflow.moved.notify_all();
    }
}
