//! Sends small files along with their directory when everything is read anyway, so that the kernel
//! has them before anybody asks. A READ costs two wake-ups, and most files are small.
//!
//! It happens inside the answer that ends a listing: the kernel knows the files by then, and the
//! reader still waits. Only what needs neither the network nor decoding is pushed, and only proved
//! bytes can be.

use std::sync::{Mutex, OnceLock, PoisonError};

use fuser::Notifier;

use super::attr::ino;
use super::counters::Counters;
use super::ops::View;
use super::scan::Scan;
use crate::layout::tree::NodeId;

/// Larger files are left to READ, whose cost is small beside theirs.
const FILE_BYTES_MAX: u64 = 512 << 10;

/// As much of one directory as the kernel is sure to keep until its reader comes to it.
const DIRECTORY_BYTES_MAX: u64 = 16 << 20;

/// Pushes into one mount.
#[derive(Debug, Default)]
pub struct Pusher {
    scan: Mutex<Scan>,
    /// One thread pushes at a time: see [`Pusher::listed`].
    turn: Mutex<()>,
}

impl Pusher {
    /// Somebody began to read `file`.
    pub fn read(&self, view: &View, file: NodeId) {
        let Some(node) = view.tree().node(file) else { return };
        self.scan().read(node.parent);
    }

    /// `directory` was listed to its end, which the kernel is about to be told.
    ///
    /// The kernel lets the page of a READ that is under way be changed only after its answer, and
    /// makes this thread wait. That answer has to come from another event thread: there are two at
    /// least, and one of them never waits here. (Where it sleeps in [`Poll`](super::poll::Poll), it is
    /// back as soon as no message is taken for a while.)
    pub fn listed(
        &self,
        view: &View,
        directory: NodeId,
        notifier: &OnceLock<Notifier>,
        counters: &Counters,
    ) {
        let files = view.small_files(directory, FILE_BYTES_MAX);
        let mut left = files.len();
        let turn = self.turn.try_lock();
        let skipped = {
            let mut scan = self.scan();
            let goes_on = turn.is_ok() && scan.is_scan();
            goes_on.then(|| usize::from(scan.leaves_one_out()))
        };
        if let (Some(skipped), Some(notifier)) = (skipped, notifier.get()) {
            let mut room = DIRECTORY_BYTES_MAX;
            for &(file, size) in files.iter().skip(skipped) {
                let Some(rest) = room.checked_sub(size) else { break };
                let Some(Ok(bytes)) = view.read_now(file, 0, size as u32) else { continue };
                if notifier.store(ino(file), 0, &bytes).is_err() {
                    // The mount is going, or the kernel has no such thing: READ tells which.
                    break;
                }
                counters.count_push(bytes.len());
                (room, left) = (rest, left - 1);
            }
        }
        self.scan().listed(directory, left as u32);
    }

    fn scan(&self) -> std::sync::MutexGuard<'_, Scan> {
        self.scan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
