//! Where blobs were last found behind redirects. Asking there directly saves a request per range.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;
use reqwest::Url;

use crate::layout::Digest;

/// Blobs remembered: more than the layers of all images that one mount shows.
const LOCATIONS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("1024 is not zero");

/// Addresses by blob. They are often signed and expire; whoever sees one fail forgets it.
pub struct Locations(Mutex<LruCache<Digest, Url>>);

impl Locations {
    /// Nothing is remembered.
    pub fn new() -> Self {
        Locations(Mutex::new(LruCache::new(LOCATIONS_MAX)))
    }

    /// The address where `digest` was found last.
    pub fn get(&self, digest: &Digest) -> Option<Url> {
        self.cache().get(digest).cloned()
    }

    /// `digest` was found at `url`.
    pub fn remember(&self, digest: Digest, url: Url) {
        self.cache().put(digest, url);
    }

    /// `url` did not serve `digest`. Another address, found in the meantime, stays.
    pub fn forget(&self, digest: &Digest, url: &Url) {
        let mut cache = self.cache();
        if cache.peek(digest) == Some(url) {
            cache.pop(digest);
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, LruCache<Digest, Url>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
