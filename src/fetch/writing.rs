//! The disk's side of an arrival: keeps what comes where there is room, hashes it unless somebody
//! who reads it does, and gives the proved blob its name.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::arrival::{Progress, blocking};
use super::cache::{Cache, Part, StreamLock, read_exact_at};
use super::error::{Error, ErrorKind, Result};
use super::overflow::Overflow;
use super::pledge::{HASH_READ_BYTES, Pledged, prove};
use super::stamp::Stamp;
use crate::layout::Blob;
use crate::layout::digest::Hasher;
use crate::layout::range::ByteRange;

/// Bytes of a stream after which its residency map gets a line, for whoever resumes it: a line costs
/// some microseconds, a byte that comes twice costs more.
const MAP_EVERY_BYTES: u64 = 1 << 20;

/// Bytes of a resumed prefix after which others are told that its hashing gets on: 40 ms of work.
const TOUCH_EVERY_BYTES: u64 = 64 << 20;

/// One blob being written.
pub(super) struct Writing {
    pub cache: Cache,
    pub blob: Blob,
    /// Where it goes; `None`: nothing can be kept.
    pub kept: Option<Kept>,
    pub overflow: Arc<Overflow>,
    pub proved_as: Arc<OnceLock<Stamp>>,
    pub progress: Arc<watch::Sender<Progress>>,
}

/// The cache's part of a blob, while this process alone writes to it.
pub(super) struct Kept {
    pub part: Part,
    pub file: Arc<File>,
    /// Where locks can be made.
    pub _lock: Option<StreamLock>,
}

/// Who hashes what comes.
enum Hashing {
    /// We do.
    Here(Hasher),
    /// Who reads it from the file. Only as long as everything goes there.
    Elsewhere(Pledged, Arc<File>),
}

impl Hashing {
    fn so_far(&self) -> Option<&Hasher> {
        match self {
            Hashing::Here(hasher) => Some(hasher),
            Hashing::Elsewhere(..) => None,
        }
    }
}

impl Writing {
    /// Takes `pieces` until they end; the first `start` bytes are in the part already. The blob is
    /// then proved by what `pledged` says, if everything is in the file.
    pub async fn run(
        self,
        start: u64,
        pieces: mpsc::Receiver<Bytes>,
        pledged: Option<Pledged>,
    ) -> Result<()> {
        let hashing = match (pledged, &self.kept) {
            (Some(pledged), Some(kept)) => Hashing::Elsewhere(pledged, kept.file.clone()),
            _ => Hashing::Here(self.blob.digest.hasher()),
        };
        let (writing, hashing, synced) =
            blocking(move || self.take(start, pieces, hashing)).await?;
        let proved = match hashing {
            Hashing::Here(hasher) => writing.blob.digest.compare(hasher).map_err(Error::from),
            Hashing::Elsewhere(pledged, file) => {
                let (progress, touched) = (writing.progress.clone(), file.clone());
                let gets_on = move |_| {
                    progress.send_modify(|p| p.signs += 1);
                    touch(&touched);
                };
                prove(Some(pledged), file, writing.blob, gets_on).await
            }
        };
        blocking(move || writing.publish(proved, synced)).await
    }

    /// The bytes to their places. Gives also whether the disk has what somebody else hashes.
    fn take(
        mut self,
        start: u64,
        mut pieces: mpsc::Receiver<Bytes>,
        mut hashing: Hashing,
    ) -> Result<(Self, Hashing, Result<()>)> {
        if let Hashing::Here(hasher) = &mut hashing {
            self.hash_prefix(hasher, start)?;
        }
        self.progress.send_modify(|p| (p.resident, p.arrived) = (start, start));
        if self.kept.is_none() {
            self.overflow.begin(None, 0, None)?;
        }
        let mut at = start;
        let mut mapped = start;
        while let Some(piece) = pieces.blocking_recv() {
            let end = at + piece.len() as u64;
            if !self.keep(&piece, at, &mut hashing)? {
                self.overflow.append(piece.clone());
            }
            if let Hashing::Here(hasher) = &mut hashing {
                hasher.update(&piece);
            }
            at = end;
            self.progress.send_modify(|p| p.resident = at);
            if at - mapped >= MAP_EVERY_BYTES || at == self.blob.size {
                self.note_resident(at);
                mapped = at;
            }
        }
        self.overflow.end();
        if at != self.blob.size {
            self.note_resident(at);
            let message =
                format!("blob {}: got {at} of {} bytes", self.blob.digest, self.blob.size);
            return Err(Error::new(ErrorKind::Network, message));
        }
        let synced = match &hashing {
            Hashing::Here(_) => Ok(()),
            // While the rest is hashed. What goes wrong is told here, and not once more when the
            // blob gets its name.
            Hashing::Elsewhere(_, file) => file.sync_data(),
        };
        Ok((self, hashing, synced.map_err(|e| Error::local("cannot write to the cache", &e))))
    }

    /// Ends the part: with a name, or without its bytes if they were not `proved`.
    fn publish(self, proved: Result<()>, synced: Result<()>) -> Result<()> {
        if let Err(error) = proved {
            if self.kept.is_some() && error.kind == ErrorKind::DigestMismatch {
                self.cache.destroy_part(&self.blob);
            }
            return Err(error);
        }
        if let Some(kept) = &self.kept {
            let _ = self.proved_as.set(Stamp::of_ours(&kept.file)?);
            match synced.and_then(|()| self.cache.publish_blob(&self.blob, &kept.file)) {
                Ok(()) => self.cache.tell_kept(),
                // It is proved all the same, and can be read as long as it is open.
                Err(error) => self.cache.tell_trouble(&error),
            }
        }
        Ok(())
    }

    /// Writes a piece to the part. `false`: there is no place for it, nor for those that follow, and
    /// from now on we hash.
    fn keep(&mut self, piece: &Bytes, at: u64, hashing: &mut Hashing) -> Result<bool> {
        if self.kept.is_none() {
            return Ok(false);
        }
        let bytes = piece.len() as u64;
        if self.cache.may_keep(at + bytes) && self.cache.make_room(bytes) {
            let written = self.kept.as_ref().map(|kept| kept.file.write_all_at(piece, at));
            match written {
                Some(Err(e)) => {
                    self.cache.tell_trouble(&Error::local("cannot write to the cache", &e));
                }
                _ => return Ok(true),
            }
        }
        let blob = self.blob.digest;
        tracing::debug!(%blob, at, "no room in the cache: reading on without keeping bytes");
        self.note_resident(at);
        // Another process may stream it meanwhile, and have more luck.
        let Some(kept) = self.kept.take() else { return Ok(false) };
        // The digests by which the other bytes are found again are of those that are hashed here.
        match self.overflow.begin(Some(&kept.file), at, hashing.so_far()) {
            Ok(hasher) => *hashing = Hashing::Here(hasher),
            Err(error) => {
                self.cache.destroy_part(&self.blob);
                return Err(error);
            }
        }
        Ok(false)
    }

    /// For whoever resumes this stream; one that is not noted is fetched again.
    fn note_resident(&mut self, at: u64) {
        let Some(kept) = &mut self.kept else { return };
        if at > 0
            && let Err(error) = kept.part.mark_resident(ByteRange::new(0, at))
        {
            self.cache.tell_trouble(&error);
        }
    }

    fn hash_prefix(&self, hasher: &mut Hasher, start: u64) -> Result<()> {
        let mut at = 0;
        while at < start {
            let Some(kept) = &self.kept else { break };
            let range = ByteRange::at(at, HASH_READ_BYTES.min(start - at));
            let bytes = read_exact_at(&kept.file, range).map_err(|e| {
                // A disk that cannot read its bytes has lost them: the next attempt has new ones.
                self.cache.destroy_part(&self.blob);
                Error::new(ErrorKind::DigestMismatch, e.message)
            })?;
            hasher.update(&bytes);
            at = range.end;
            if at % TOUCH_EVERY_BYTES == 0 {
                touch(&kept.file);
            }
        }
        Ok(())
    }
}

/// Another process that waits for this stream sees that it gets on.
fn touch(file: &File) {
    let _ = file.set_modified(SystemTime::now());
}
