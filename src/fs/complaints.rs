//! What the log says about reads that fail: everything that a person needs, and once.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::ops::View;
use crate::fetch::{Error, ErrorKind};
use crate::layout::tree::NodeId;

/// The kernel repeats a failed read page by page, and a reader its `read`: what begins so soon after
/// a complaint is part of it.
const REPEATED_WITHIN: Duration = Duration::from_secs(1);

/// Files whose last complaint is remembered.
const FILES_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not zero");

/// The complaints of one mount.
pub struct Complaints {
    image: String,
    said: Mutex<LruCache<NodeId, Instant>>,
}

impl Complaints {
    /// None yet; `image` as the user named it.
    pub fn new(image: &str) -> Self {
        Complaints { image: image.to_owned(), said: Mutex::new(LruCache::new(FILES_MAX)) }
    }

    /// A read of the file `id` failed, which began at `began`.
    pub fn read_failed(&self, view: &View, id: NodeId, error: &Error, began: Instant) {
        if self.is_repeated(id, began) {
            return tracing::debug!(inode = id.0, %error, "a read failed again");
        }
        let path = String::from_utf8_lossy(&view.tree().path(id)).into_owned();
        let layer = view.blob_of(id).map(|blob| blob.to_string()).unwrap_or_default();
        let source = view.store().source().map_or("none".to_owned(), |source| source.name());
        let (image, advice) = (&self.image, advice(error.kind));
        tracing::error!(path, image, layer, source, %error, advice, "a read failed");
    }

    fn is_repeated(&self, id: NodeId, began: Instant) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let is_after = |last: &Instant| began.saturating_duration_since(*last) < REPEATED_WITHIN;
        let is_repeated = said.get(&id).is_some_and(is_after);
        if !is_repeated {
            said.put(id, Instant::now());
        }
        is_repeated
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
