//! How many messages the kernel sent: deterministic, so that tests can pin them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// The kinds of message that a read-only mount can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// `LOOKUP`.
    Lookup,
    /// `GETATTR`.
    Getattr,
    /// `READLINK`.
    Readlink,
    /// `OPEN`: once a mount, answered ENOSYS, where no file needs to be told apart.
    Open,
    /// `READ`.
    Read,
    /// `FLUSH`: once a mount.
    Flush,
    /// `OPENDIR`: once a mount.
    Opendir,
    /// `READDIR`.
    Readdir,
    /// `READDIRPLUS`.
    Readdirplus,
    /// `GETXATTR`.
    Getxattr,
    /// `LISTXATTR`.
    Listxattr,
    /// `ACCESS`: once a mount.
    Access,
    /// `STATFS`.
    Statfs,
}

const NAMES: [&str; 13] = [
    "lookup",
    "getattr",
    "readlink",
    "open",
    "read",
    "flush",
    "opendir",
    "readdir",
    "readdirplus",
    "getxattr",
    "listxattr",
    "access",
    "statfs",
];

/// Counts of messages and of content bytes since the mount began.
#[derive(Debug, Default)]
pub struct Counters {
    messages: [AtomicU64; NAMES.len()],
    bytes_read: AtomicU64,
    pushes: AtomicU64,
    passed: AtomicU64,
    flows: AtomicU64,
    read_errors: AtomicU64,
}

impl Counters {
    /// One more message.
    pub fn count(&self, message: Message) {
        self.messages[message as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Content bytes that a reply carried.
    pub fn count_read(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A file of so many bytes that was sent with its directory, without a READ.
    pub fn count_push(&self, bytes: usize) {
        self.pushes.fetch_add(1, Ordering::Relaxed);
        self.count_read(bytes);
    }

    /// An open file that the kernel reads by itself.
    pub fn count_passed(&self) {
        self.passed.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Messages came one after the other, and were asked for without sleeping.
    pub fn count_flow(&self) {
        self.flows.fetch_add(1, Ordering::Relaxed);
    }

    /// How often they did.
    pub fn flows(&self) -> u64 {
        self.flows.load(Ordering::Relaxed)
    }

    /// A read that failed.
    pub fn count_error(&self) {
        self.read_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages by name, those that came at all.
    pub fn messages(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.messages.iter().map(|c| c.load(Ordering::Relaxed));
        NAMES.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// Files that were sent with their directory.
    pub fn pushes(&self) -> u64 {
        self.pushes.load(Ordering::Relaxed)
    }

    /// Content bytes sent to the kernel.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Reads that failed.
    pub fn read_errors(&self) -> u64 {
        self.read_errors.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_message_has_the_last_name() {
        let counters = Counters::default();
        counters.count(Message::Statfs);
        counters.count(Message::Lookup);
        let expected = BTreeMap::from([("lookup", 1), ("statfs", 1)]);
        assert_eq!(counters.messages(), expected);
    }
}
