//! Open files that are read before their blob is proved, by file handle.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fuser::FileHandle;

use super::policy::Pin;

/// Pins by file handle. Handle 0 is every other file.
#[derive(Debug, Default)]
pub struct OpenFiles {
    pins: Mutex<HashMap<u64, Arc<Pin>>>,
    last: AtomicU64,
}

impl OpenFiles {
    /// A new handle for `pin`.
    pub fn add(&self, pin: Pin) -> FileHandle {
        let handle = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.lock().insert(handle, Arc::new(pin));
        FileHandle(handle)
    }

    /// The pin of a handle.
    pub fn get(&self, handle: FileHandle) -> Option<Arc<Pin>> {
        self.lock().get(&handle.0).cloned()
    }

    /// The file was closed.
    pub fn remove(&self, handle: FileHandle) {
        self.lock().remove(&handle.0);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Pin>>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
