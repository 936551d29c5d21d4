//! What tells that somebody wrote to a file, as far as its times do.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use super::error::{Error, Result};

/// Changes whenever somebody writes to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    len: u64,
    modified: (i64, i64),
    /// `None`: it changes without a write.
    changed: Option<(i64, i64)>,
}

impl Stamp {
    /// Of an open file.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn of(file: &File) -> Result<Self> {
        let meta = file.metadata().map_err(|e| Error::local("cannot stat a local blob", &e))?;
        Ok(Stamp {
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: Some((meta.ctime(), meta.ctime_nsec())),
        })
    }

    /// Of a file in the cache, where we ourselves note uses and rename: only what writing changes.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn of_ours(file: &File) -> Result<Self> {
        Ok(Stamp { changed: None, ..Stamp::of(file)? })
    }

    /// The stamp of the same kind that `file` has now.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn anew(&self, file: &File) -> Result<Self> {
        match self.changed {
            Some(_) => Stamp::of(file),
            None => Stamp::of_ours(file),
        }
    }

    /// Nobody has written to `file` since.
    pub fn is_still_of(&self, file: &File) -> bool {
        self.anew(file).is_ok_and(|now| now == *self)
    }
}
