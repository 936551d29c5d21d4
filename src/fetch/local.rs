//! Source: the blobs of a layout directory (image-spec `image-layout.md`). Missing ones are
//! normal: the layout may be sparse.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::OFlags;

use super::{Body, BoxFuture, Chunks, Deadline, Error, ErrorKind, Result, Source};
use crate::layout::range::ByteRange;
use crate::layout::{Blob, Digest};

/// How much is read at once: few calls, and little memory for many readers.
const CHUNK_BYTES_MAX: u64 = 256 << 10;

/// A layout directory.
pub struct Local {
    directory: PathBuf,
}

impl Local {
    /// The layout in `directory`. Nothing is opened before it is read.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Local { directory: directory.into() }
    }

    /// Where a blob is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    /// The layout has this blob, and it has the right size.
    pub fn has(&self, blob: &Blob) -> bool {
        open(&self.path(&blob.digest), blob).is_ok()
    }

    async fn read_range(&self, blob: &Blob, range: ByteRange, deadline: Deadline) -> Result<Body> {
        if range.is_empty() || range.end > blob.size {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("range {range} is not in blob {} of {} bytes", blob.digest, blob.size),
            ));
        }
        let path: Arc<Path> = self.path(&blob.digest).into();
        let (blob, opened) = (*blob, Arc::clone(&path));
        let file = off_thread(&path, deadline, move || open(&opened, &blob)).await?;
        let chunks = FileChunks { file: Arc::new(file), path, rest: range, deadline };
        Ok(Body::new(range, Box::new(chunks)))
    }
}

impl Source for Local {
    fn read<'a>(
        &'a self,
        blob: &'a Blob,
        range: ByteRange,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Body>> {
        Box::pin(self.read_range(blob, range, deadline))
    }

    fn name(&self) -> String {
        format!("layout {}", self.directory.display())
    }
}

struct FileChunks {
    file: Arc<File>,
    path: Arc<Path>,
    rest: ByteRange,
    deadline: Deadline,
}

impl Chunks for FileChunks {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move {
            if self.rest.is_empty() {
                return Ok(None);
            }
            let (file, path) = (Arc::clone(&self.file), Arc::clone(&self.path));
            let start = self.rest.start;
            let len = self.rest.len().min(CHUNK_BYTES_MAX);
            let read = move || {
                let mut chunk = vec![0; len as usize];
                file.read_exact_at(&mut chunk, start)
                    .map_err(|e| Error::local(format_args!("read {}", path.display()), &e))?;
                Ok(Bytes::from(chunk))
            };
            let chunk = off_thread(&self.path, self.deadline.renewed(), read).await?;
            self.rest = ByteRange::new(start + len, self.rest.end);
            Ok(Some(chunk))
        })
    }
}

/// Opens a blob that is a regular file of the right size. A link could lead out of the layout, and
/// opening a FIFO would wait.
fn open(path: &Path, blob: &Blob) -> Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // The flags' bits are the kernel's, which std takes as the i32 that open(2) takes.
    let flags = flags.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|e| {
        let mut error = Error::local(format_args!("open {}", path.display()), &e);
        if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            error.kind = ErrorKind::NotFound;
        }
        error
    })?;
    let doing = format_args!("look at {}", path.display());
    let metadata = file.metadata().map_err(|e| Error::local(doing, &e))?;
    if !metadata.is_file() {
        let text = format!("{}: not a regular file", path.display());
        return Err(Error::new(ErrorKind::Local, text));
    }
    let (expected, actual) = (blob.size, metadata.len());
    if expected != actual {
        let error = crate::layout::Error::SizeMismatch { expected, actual };
        return Err(Error::from(error).context(path.display()));
    }
    Ok(file)
}

/// Runs what may wait for a disk where waiting is allowed.
async fn off_thread<T: Send + 'static>(
    path: &Path,
    deadline: Deadline,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let work = tokio::task::spawn_blocking(work);
    match tokio::time::timeout_at(deadline.at().into(), work).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => {
            let text = format!("read {}: the reading task ended: {error}", path.display());
            Err(Error::new(ErrorKind::Local, text))
        }
        Err(_) => {
            let text = format!("read {}: the file system did not answer in time", path.display());
            Err(Error::new(ErrorKind::DeadlinePassed, text))
        }
    }
}
