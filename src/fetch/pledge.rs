//! `Pledge`: whoever reads all of a blob anyway also hashes it, in place of the arrival.
//!
//! Two streams that one thread hashes together cost much less than each alone (see
//! [`Hasher::update_with`](crate::layout::digest::Hasher::update_with)), and a first pass hashes one
//! already, the tar. Nothing depends on it: who took a pledge that is broken reads and hashes the
//! file.

use std::fs::File;
use std::sync::Arc;

use tokio::sync::watch;

use super::arrival::blocking;
use super::cache::read_exact_at;
use super::error::{Error, ErrorKind, Result};
use crate::layout::range::ByteRange;
use crate::layout::{Blob, Digest};

/// Bytes of any kind that are hashed between two signs of life: some milliseconds of work.
const SIGN_EVERY_BYTES: u64 = 4 << 20;

/// One read of a file while it is hashed.
pub(super) const HASH_READ_BYTES: u64 = 1 << 20;

/// Given by who is going to read and hash all of a blob, in order. Dropped without a digest, it is
/// broken.
pub struct Pledge {
    told: watch::Sender<Option<Digest>>,
    /// Since the last sign of life.
    hashed_bytes: u64,
}

/// The other end, for whoever is to have the digest.
pub struct Pledged(watch::Receiver<Option<Digest>>);

impl Pledge {
    /// Both ends of one.
    pub fn new() -> (Pledge, Pledged) {
        let (told, heard) = watch::channel(None);
        (Pledge { told, hashed_bytes: 0 }, Pledged(heard))
    }

    /// Somebody counts on it.
    pub fn is_wanted(&self) -> bool {
        !self.told.is_closed()
    }

    /// So many more bytes were hashed, of the blob or of what comes out of it: whoever waits has
    /// more patience.
    pub fn advance(&mut self, bytes: u64) {
        self.hashed_bytes += bytes;
        if self.hashed_bytes >= SIGN_EVERY_BYTES {
            self.hashed_bytes = 0;
            self.told.send_replace(None);
        }
    }

    /// All bytes of the blob together have this digest.
    pub fn keep(self, digest: Digest) {
        self.told.send_replace(Some(digest));
    }
}

impl Pledged {
    /// The digest; `None`: it will not come. `gets_on` is called at each sign of life.
    async fn kept(mut self, gets_on: impl Fn()) -> Option<Digest> {
        loop {
            self.0.changed().await.ok()?;
            let told = *self.0.borrow_and_update();
            if told.is_some() {
                return told;
            }
            gets_on();
        }
    }
}

/// All of `blob` is in `file`, and has its digest: as the pledge says, or else as we find. `gets_on`
/// is told now and then how far we are; 0 stands for the other one.
///
/// # Errors
/// [`ErrorKind::DigestMismatch`]: it has another one, or cannot be read.
pub(super) async fn prove(
    pledged: Option<Pledged>,
    file: Arc<File>,
    blob: Blob,
    gets_on: impl Fn(u64) + Send + Sync + 'static,
) -> Result<()> {
    if let Some(pledged) = pledged {
        if let Some(actual) = pledged.kept(|| gets_on(0)).await {
            return Ok(blob.digest.compare_with(actual)?);
        }
        tracing::debug!(blob = %blob.digest, "who was to hash it has not read it to its end");
    }
    blocking(move || hash_file(&file, blob, gets_on)).await
}

/// All of a blob is in `file`, and has its digest. `told` hears how far that is.
pub(super) fn hash_file(file: &File, blob: Blob, told: impl Fn(u64)) -> Result<()> {
    let mut hasher = blob.digest.hasher();
    let mut at = 0;
    while at < blob.size {
        let range = ByteRange::at(at, HASH_READ_BYTES.min(blob.size - at));
        // A disk that cannot read its bytes has lost them: they are replaced as wrong ones are.
        let bytes = read_exact_at(file, range).map_err(|e| {
            Error::new(ErrorKind::DigestMismatch, e.message)
                .context(format!("blob {}", blob.digest))
        })?;
        hasher.update(&bytes);
        at = range.end;
        told(at);
    }
    Ok(blob.digest.compare(hasher)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const CONTENT: &[u8] = b"the bytes of a blob";

    fn file() -> Arc<File> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(CONTENT).expect("written");
        Arc::new(file)
    }

    fn blob(content: &[u8]) -> Blob {
        Blob { digest: Digest::sha256_of(content), size: content.len() as u64 }
    }

    #[tokio::test]
    async fn a_digest_that_was_pledged_counts_and_the_file_is_not_read() {
        let empty = || Arc::new(tempfile::tempfile().expect("a file"));
        let (pledge, pledged) = Pledge::new();
        pledge.keep(Digest::sha256_of(CONTENT));
        prove(Some(pledged), empty(), blob(CONTENT), |_| {}).await.expect("kept");
        let (pledge, pledged) = Pledge::new();
        pledge.keep(Digest::sha256_of(b"else"));
        let error = prove(Some(pledged), file(), blob(CONTENT), |_| {}).await.expect_err("wrong");
        assert_eq!(error.kind, ErrorKind::DigestMismatch);
        let found = Digest::sha256_of(b"else").to_string();
        assert!(error.to_string().contains(&found), "{error}");
    }

    #[tokio::test]
    async fn of_a_pledge_that_is_broken_or_was_never_given_the_file_says_what_is_right() {
        for is_given in [true, false] {
            let pledged = || is_given.then(|| Pledge::new().1);
            prove(pledged(), file(), blob(CONTENT), |_| {}).await.expect("right");
            let other: Vec<u8> = CONTENT.iter().rev().copied().collect();
            let error = prove(pledged(), file(), blob(&other), |_| {}).await.expect_err("wrong");
            assert_eq!(error.kind, ErrorKind::DigestMismatch);
            let short = Arc::new(tempfile::tempfile().expect("a file"));
            let error = prove(pledged(), short, blob(CONTENT), |_| {}).await.expect_err("lost");
            assert_eq!(error.kind, ErrorKind::DigestMismatch);
        }
    }

    #[tokio::test]
    async fn who_waits_hears_that_hashing_gets_on_and_who_hashes_that_nobody_waits() {
        let (mut pledge, pledged) = Pledge::new();
        assert!(pledge.is_wanted());
        let signs = Arc::new(AtomicU64::new(0));
        let heard = signs.clone();
        let gets_on = move |_| {
            heard.fetch_add(1, Ordering::Relaxed);
        };
        let proved = tokio::spawn(prove(Some(pledged), file(), blob(CONTENT), gets_on));
        for sign in 1..=3 {
            pledge.advance(SIGN_EVERY_BYTES - 1);
            pledge.advance(1);
            while signs.load(Ordering::Relaxed) < sign {
                tokio::task::yield_now().await;
            }
        }
        assert!(pledge.is_wanted() && !proved.is_finished());
        pledge.keep(Digest::sha256_of(CONTENT));
        proved.await.expect("no panic").expect("kept");
        let (pledge, pledged) = Pledge::new();
        drop(pledged);
        assert!(!pledge.is_wanted());
    }
}
