//! What the log says about reads that fail: everything that a person needs, and once.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::ops::View;
use crate::fetch::{Error, ErrorKind};
use crate::layout::tree::NodeId;

/// The kernel repeats a failed read page by page, and a reader its `read`: what begins so soon after
/// a failure is part of it.
const REPEATED_WITHIN: Duration = Duration::from_secs(1);

/// Who tries again all the time is told again after so long.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Files whose last complaint is remembered.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not zero");

/// The complaints of one mount.
pub struct Complaints {
    image: String,
    said: Mutex<LruCache<NodeId, Said>>,
}

/// When something was said of a file, and when a read of it failed last.
struct Said {
    at: Instant,
    failed: Instant,
}

impl Complaints {
    /// None yet; `image` as the user named it.
    pub fn new(image: &str) -> Self {
        Complaints { image: image.to_owned(), said: Mutex::new(LruCache::new(FILES_MAX)) }
    }

    /// A read of the file `id` failed, which began at `began`.
    pub fn read_failed(&self, view: &View, id: NodeId, error: &Error, began: Instant) {
        if self.is_repeated(id, began, Instant::now()) {
            return tracing::debug!(inode = id.0, %error, "a read failed again");
        }
        let path = String::from_utf8_lossy(&view.tree().path(id)).into_owned();
        let layer = view.blob_of(id).map(|blob| blob.to_string()).unwrap_or_default();
        let source = view.store().source().map_or("none".to_owned(), |source| source.name());
        let (image, advice) = (&self.image, advice(error.kind));
        tracing::error!(path, image, layer, source, %error, advice, "a read failed");
    }

    /// A read of `id` that began at `began` and failed `now` is part of what was said already.
    fn is_repeated(&self, id: NodeId, began: Instant, now: Instant) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(said) = said.get_mut(&id) {
            let is_soon = began.saturating_duration_since(said.failed) < REPEATED_WITHIN;
            if is_soon && now.saturating_duration_since(said.at) < SAID_AGAIN_AFTER {
                said.failed = now;
                return true;
            }
        }
        said.put(id, Said { at: now, failed: now });
        false
    }
}

/// What to try. Reading again is always worth it: nothing but success is remembered for long.
fn advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Authentication => {
            "check the credentials for the registry (podman login), then read again"
        }
        ErrorKind::NotFound => "name a registry that has it: mount with --source REGISTRY/REPO",
        ErrorKind::Network | ErrorKind::DeadlinePassed => {
            "check the way to the registry, then read again; --source adds a mirror, --deadline \
             more patience"
        }
        ErrorKind::DigestMismatch | ErrorKind::Invalid => {
            "the source has other bytes than the image names: push the image again, or mount with \
             --source of another registry; or an index from elsewhere is wrong: mount with --index off"
        }
        ErrorKind::Protocol => {
            "a proxy may stand in the way: mount with --source of another registry"
        }
        ErrorKind::Offline => "mount without --offline, or run \"layoutfs hydrate\" first",
        ErrorKind::Local => "check the cache directory: its disk, its permissions",
        ErrorKind::CannotMount | ErrorKind::Busy | ErrorKind::Usage => "read again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_read_has_one_line_however_long_it_is_repeated_and_who_goes_on_is_told_again() {
        let complaints = Complaints::new("image");
        let begin = Instant::now();
        let after = |ms| begin + Duration::from_millis(ms);
        let (one, other) = (NodeId(1), NodeId(2));
        assert!(!complaints.is_repeated(one, begin, after(1200)));
        // Each repetition takes longer than what is soon, and begins at once.
        for ms in (1200..59_000).step_by(1300) {
            assert!(complaints.is_repeated(one, after(ms + 1), after(ms + 1300)), "{ms} ms");
        }
        assert!(!complaints.is_repeated(other, after(9000), after(9001)));
        assert!(complaints.is_repeated(other, begin, after(9002)), "they failed side by side");
        assert!(!complaints.is_repeated(other, after(10_003), after(10_004)), "another read");
        assert!(!complaints.is_repeated(one, after(59_701), after(61_300)), "a minute later");
    }
}
