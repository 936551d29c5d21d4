//! A proved blob as one file, for whom the kernel lets read it by itself: which files may be, and
//! whether they are still what they were.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};

use super::Deadline;
use super::arrival::{Arrival, Origin, Until};
use super::error::Result;
use super::pledge::hash_file;
use super::stamp::Stamp;
use super::store::Store;
use crate::layout::Blob;

/// Others than its owner may write to a file.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A file that has all of a blob, and was proved.
#[derive(Debug)]
pub struct WholeFile {
    blob: Blob,
    file: Arc<File>,
    /// What it looked like when it was.
    proved_as: Mutex<Stamp>,
}

/// What is known of a blob's file without waiting.
#[derive(Debug)]
pub enum Known {
    /// It may be read without us.
    Whole(WholeFile),
    /// It is here, and not proved yet.
    Unproved,
    /// It is not here, or not whole, or others can write to it.
    Not,
}

impl WholeFile {
    /// `file` has all of `blob`, and was proved when it looked like `proved_as`.
    pub(super) fn new(blob: Blob, file: Arc<File>, proved_as: Stamp) -> Self {
        WholeFile { blob, file, proved_as: Mutex::new(proved_as) }
    }

    /// Which blob it is.
    pub fn blob(&self) -> &Blob {
        &self.blob
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Nobody wrote to it since it was proved, as far as its times tell.
    pub fn is_unchanged(&self) -> bool {
        let proved_as = *self.proved_as.lock().unwrap_or_else(PoisonError::into_inner);
        proved_as.is_still_of(&self.file)
    }

    /// Hashes it once more. Takes as long as that takes.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`](super::ErrorKind::DigestMismatch): it has other bytes now.
    pub fn prove(&self) -> Result<()> {
        let now = self.proved_as.lock().unwrap_or_else(PoisonError::into_inner).anew(&self.file)?;
        hash_file(&self.file, self.blob, |_| {})?;
        *self.proved_as.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Ok(())
    }
}

/// What is known of the file of `blob` now.
///
/// A file of the layout directory counts if nobody but its owner can write to it, and that is root:
/// who reads without us is not told of later writes, and root alone may do that to others.
pub fn known(store: &Store, blob: &Blob) -> Known {
    if let Some(arrival) = store.proved_now(blob) {
        return of_arrival(store, &arrival).map_or(Known::Not, Known::Whole);
    }
    match store.open_local(blob) {
        Ok(Some((file, is_ours))) if is_ours || is_roots(&file) => Known::Unproved,
        _ => Known::Not,
    }
}

/// The file of a blob that is here, once it is proved. `None`: it is none that may be read without
/// us, or not what it should be, which whoever reads it is told.
pub async fn prove(store: &Store, blob: &Blob, deadline: Deadline) -> Option<WholeFile> {
    let arrival = store.arrival(blob, deadline).await.ok()?;
    // What is on its way from a source is read as it comes.
    if arrival.origin() == Origin::Source {
        return None;
    }
    arrival.wait(Until::Proved, deadline.renewed()).await.ok()?;
    of_arrival(store, &arrival)
}

fn of_arrival(store: &Store, arrival: &Arrival) -> Option<WholeFile> {
    let whole = arrival.whole_file()?;
    let may_pass = match arrival.origin() {
        Origin::Cache => true,
        Origin::Layout => is_roots(whole.file()),
        // One that did not get its name is still a part, and somebody else may go on with it.
        Origin::Source => {
            let named = store.cache().open_blob(whole.blob());
            named.is_some_and(|named| is_same(&named, whole.file()))
        }
    };
    may_pass.then_some(whole)
}

fn is_roots(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| meta.uid() == 0 && meta.mode() & WRITABLE_BY_OTHERS == 0)
}

fn is_same(one: &File, other: &File) -> bool {
    let inode = |file: &File| file.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
    inode(one).is_some() && inode(one) == inode(other)
}
