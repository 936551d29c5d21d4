//! Traces in files: written whole or not at all, read up to a limit.

use std::fs::{File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

use super::error::{Error, ErrorKind, Result};
use crate::layout::trace::{TRACE_BYTES_MAX, Trace};

/// Whoever may read the directory may read the trace, as far as the umask says so.
const MODE: u32 = 0o666;

/// Reads the trace in `path`.
///
/// # Errors
/// [`ErrorKind::Usage`]: it cannot be read, or is no trace.
pub fn read(path: &Path) -> Result<Trace> {
    let usage = |why: String| Error::new(ErrorKind::Usage, format!("{}: {why}", path.display()));
    // A FIFO would be waited for without NONBLOCK.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|e| usage(e.to_string()))?;
    let mut bytes = Vec::new();
    let read = file.take(TRACE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|e| usage(e.to_string()))?;
    Trace::parse(&bytes).map_err(|e| usage(e.to_string()))
}

/// Writes `trace` to `path`, in place of what is there.
///
/// # Errors
/// Local trouble; then `path` is as it was.
pub fn write(path: &Path, trace: &Trace) -> Result<()> {
    let mut file = beside(path)?;
    file.write_all(trace.encode().as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .map_err(|e| failed(path, &e))?;
    file.persist(path).map_err(|e| failed(path, &e.error))?;
    Ok(())
}

/// Finds out whether a trace can be written to `path`.
///
/// # Errors
/// It cannot.
pub fn check(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::new(ErrorKind::Usage, format!("{} is a directory", path.display())));
    }
    beside(path).map(drop)
}

fn beside(path: &Path) -> Result<tempfile::NamedTempFile> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    tempfile::Builder::new()
        .prefix(".trace-")
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(directory)
        .map_err(|e| failed(path, &e))
}

fn failed(path: &Path, error: &std::io::Error) -> Error {
    Error::local(format!("cannot write a trace to {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Digest;

    #[test]
    fn a_trace_replaces_the_former_one_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("use.trace");
        check(&path).expect("it can be written");
        assert!(!path.exists(), "a check makes nothing");
        for image in [b"first", b"other"] {
            let image = Digest::sha256_of(image);
            let trace = Trace { image, layers: Vec::new(), needed: Vec::new() };
            write(&path, &trace).expect("written");
            assert_eq!(read(&path).expect("read"), trace);
        }
        assert_eq!(directory.path().read_dir().expect("a listing").count(), 1);
        std::fs::write(&path, "layoutfs trace 1\n").expect("cut");
        for (bad, kind) in
            [(path.as_path(), ErrorKind::Usage), (directory.path(), ErrorKind::Usage)]
        {
            assert_eq!(read(bad).expect_err("no trace").kind, kind);
        }
        assert!(check(directory.path()).is_err());
        let nowhere = directory.path().join("none/use.trace");
        assert_eq!(check(&nowhere).expect_err("no directory").kind, ErrorKind::Local);
    }
}
