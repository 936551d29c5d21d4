//! Which open blobs the kernel reads by itself (FUSE passthrough), and from which file.
//!
//! It wants all open files of an inode to be read the same way, from one file. So whoever opens a
//! blob first decides, until the last one closes it. Where it refuses once, nobody asks it again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuser::BackingId;

use crate::fetch::whole_file::WholeFile;
use crate::layout::tree::NodeId;

/// The open blobs of one mount. `B` is what the kernel calls a file that it reads.
#[derive(Debug)]
pub struct Passthrough<B = BackingId> {
    is_wanted: bool,
    is_refused: AtomicBool,
    open: Mutex<HashMap<NodeId, Open<B>>>,
}

/// A blob that is open.
#[derive(Debug)]
struct Open<B> {
    handles: u64,
    /// `None`: every read is a message.
    passed: Option<Passed<B>>,
}

/// What the kernel reads by itself.
#[derive(Debug)]
pub struct Passed<B> {
    /// The file.
    pub file: Arc<WholeFile>,
    /// The kernel's name of it.
    pub backing: Arc<B>,
}

impl<B> Clone for Passed<B> {
    fn clone(&self) -> Self {
        Passed { file: self.file.clone(), backing: self.backing.clone() }
    }
}

/// How those read who have a blob open.
#[derive(Debug)]
pub enum Held {
    /// Nobody has it open.
    No,
    /// By messages.
    Ordinary,
    /// By themselves, from this file.
    Passed(Arc<WholeFile>),
}

impl<B> Passthrough<B> {
    /// Nothing is open yet. `is_wanted`: blobs may be read past us.
    pub fn new(is_wanted: bool) -> Self {
        let (is_refused, open) = (AtomicBool::default(), Mutex::default());
        Passthrough { is_wanted, is_refused, open }
    }

    /// Blobs may be read past us, so that every open of one has to be told.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// The kernel has not refused yet.
    pub fn may_ask(&self) -> bool {
        self.is_wanted && !self.is_refused.load(Ordering::Relaxed)
    }

    /// How those read who have the blob `id` open.
    pub fn held(&self, id: NodeId) -> Held {
        match self.lock().get(&id) {
            None => Held::No,
            Some(Open { passed: None, .. }) => Held::Ordinary,
            Some(Open { passed: Some(passed), .. }) => Held::Passed(passed.file.clone()),
        }
    }

    /// One more has the blob `id` open, and reads as those do who have it open already. If nobody
    /// has: past us if there is a `file` and `register` makes it known to the kernel. `None`: every
    /// read is a message.
    pub fn open(
        &self,
        id: NodeId,
        file: Option<Arc<WholeFile>>,
        register: impl FnOnce(&File) -> io::Result<B>,
    ) -> Option<Passed<B>> {
        if !self.is_wanted {
            return None;
        }
        match self.lock().entry(id) {
            Entry::Occupied(mut open) => {
                open.get_mut().handles += 1;
                open.get().passed.clone()
            }
            Entry::Vacant(vacant) => {
                let file = file.filter(|_| self.may_ask());
                let passed = file.and_then(|file| {
                    let backing = register(file.file()).map_err(|error| self.refused(&error));
                    Some(Passed { file, backing: Arc::new(backing.ok()?) })
                });
                vacant.insert(Open { handles: 1, passed: passed.clone() });
                passed
            }
        }
    }

    /// One of those who have the inode `id` open has closed it. The last one's file, if it was
    /// written to while it was read past us.
    pub fn release(&self, id: NodeId) -> Option<Arc<WholeFile>> {
        let mut open = self.lock();
        let Entry::Occupied(mut held) = open.entry(id) else { return None };
        held.get_mut().handles -= 1;
        if held.get().handles > 0 {
            return None;
        }
        let passed = held.remove().passed?;
        (!passed.file.is_unchanged()).then_some(passed.file)
    }

    fn refused(&self, error: &io::Error) {
        if !self.is_refused.swap(true, Ordering::Relaxed) {
            tracing::debug!(%error, "the kernel does not read blobs by itself: each read is a message");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Open<B>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::FileExt as _;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::fetch::Deadline;
    use crate::fetch::arrival::{Arrival, Origin, Until};
    use crate::layout::{Blob, Digest};

    const ID: NodeId = NodeId(7);

    /// A proved blob of four bytes, and its file to write to.
    fn whole(origin: Origin) -> (Arc<WholeFile>, File) {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(b"blob", 0).expect("written");
        let blob = Blob { digest: Digest::sha256_of(b"blob"), size: 4 };
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let copy = file.try_clone().expect("the same file");
        let whole = runtime.block_on(async {
            let arrival = Arrival::start_local(blob, copy, origin, None).expect("started");
            arrival.wait(Until::Proved, Deadline::after(Duration::from_secs(5))).await?;
            Ok::<_, crate::fetch::Error>(arrival.whole_file())
        });
        (Arc::new(whole.expect("proved").expect("whole")), file)
    }

    /// Writes, at another time than before: a file's times may be coarse.
    fn write(file: &File, bytes: &[u8], seconds: u64) {
        file.write_all_at(bytes, 0).expect("written");
        file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).expect("said when");
    }

    fn accept(_: &File) -> io::Result<u32> {
        Ok(1)
    }

    #[test]
    fn who_opens_a_blob_first_decides_until_the_last_one_closes_it() {
        let opens = Passthrough::new(true);
        assert!(opens.open(ID, None, accept).is_none());
        // Whole meanwhile; the first still reads by messages.
        assert!(opens.open(ID, Some(whole(Origin::Cache).0), accept).is_none());
        assert!(matches!(opens.held(ID), Held::Ordinary));
        assert!(opens.release(ID).is_none());
        assert!(opens.open(ID, Some(whole(Origin::Cache).0), accept).is_none());
        opens.release(ID);
        opens.release(ID);
        assert!(matches!(opens.held(ID), Held::No));
        let first = opens.open(ID, Some(whole(Origin::Cache).0), accept).expect("passed");
        // From here on the kernel takes no other file.
        let other = |_: &File| -> io::Result<u32> { panic!("a second file of one inode") };
        let second = opens.open(ID, Some(whole(Origin::Cache).0), other).expect("passed");
        assert!(Arc::ptr_eq(&first.backing, &second.backing));
        opens.release(ID);
        assert!(opens.open(ID, None, other).is_some());
        opens.release(ID);
        let Held::Passed(file) = opens.held(ID) else { panic!("one still has it open") };
        opens.release(ID);
        // Whoever came while the last one closed it.
        assert!(opens.open(ID, Some(file), accept).is_some());
        opens.release(ID);
        assert!(opens.open(ID, None, accept).is_none());
    }

    #[test]
    fn a_kernel_that_refuses_once_is_not_asked_again() {
        let (opens, asked) = (Passthrough::<u32>::new(true), Cell::new(0));
        let refuse = |_: &File| {
            asked.set(asked.get() + 1);
            Err(io::Error::from_raw_os_error(rustix::io::Errno::LOOP.raw_os_error()))
        };
        for id in [1, 2, 2, 3].map(NodeId) {
            assert!(opens.open(id, Some(whole(Origin::Cache).0), refuse).is_none());
        }
        assert_eq!(asked.get(), 1);
        assert!(!opens.may_ask() && opens.is_wanted());
        let unwanted = Passthrough::new(false);
        assert!(unwanted.open(ID, Some(whole(Origin::Cache).0), refuse).is_none());
        assert!(unwanted.release(ID).is_none(), "nobody has counted it");
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn a_file_that_was_written_to_is_told_at_its_last_close_and_proved_anew_before_that() {
        for origin in [Origin::Cache, Origin::Layout] {
            let opens = Passthrough::new(true);
            let (whole, file) = whole(origin);
            let passed = opens.open(ID, Some(whole), accept).expect("passed");
            assert!(passed.file.is_unchanged());
            write(&file, b"blow", 1);
            assert!(!passed.file.is_unchanged());
            passed.file.prove().expect_err("other bytes");
            assert!(!passed.file.is_unchanged(), "wrong is not the new right");
            write(&file, b"blob", 2);
            passed.file.prove().expect("right again");
            assert!(passed.file.is_unchanged());
            write(&file, b"b", 3);
            assert_eq!(opens.release(ID).expect("told").blob().size, 4);
        }
    }
}
