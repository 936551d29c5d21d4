//! What a mount tells about itself: one JSON document for each connection to its socket.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fetch::prefetch::Shown;
use crate::fetch::{Error, ErrorKind, Result};

/// A status is a few KiB; a reader does not wait longer than this for it.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The most that a reader of a status takes.
const STATUS_BYTES_MAX: u64 = 16 << 20;

/// A mount, as `layoutfs status` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Where.
    pub mountpoint: PathBuf,
    /// The image argument.
    pub image: String,
    /// `rootfs`, `layout` or `all`.
    pub view: String,
    /// The daemon.
    pub pid: i32,
    /// The tree answers.
    pub ready: bool,
    /// Layers, lowest first.
    pub layers: Vec<LayerStatus>,
    /// Requests for blobs that went to a source.
    pub requests: u64,
    /// Requests that were tried again.
    pub retries: u64,
    /// Second requests for bytes that did not come.
    #[serde(default)]
    pub hedges: u64,
    /// Which sources served wrong bytes, and are asked last.
    #[serde(default)]
    pub set_aside: Vec<SetAside>,
    /// Requests that failed for good.
    pub errors: u64,
    /// Bytes that came from a source.
    pub bytes_fetched: u64,
    /// Bytes of blobs, as stored, that first passes of this mount have decoded.
    #[serde(default)]
    pub bytes_passed: u64,
    /// Content bytes that the kernel was sent; not those that it read by itself.
    pub bytes_read: u64,
    /// Open files that the kernel read by itself: nobody here knows how many bytes.
    #[serde(default)]
    pub opens_passed_through: u64,
    /// Files that the kernel was sent with their directory, because everything was read.
    #[serde(default)]
    pub files_pushed: u64,
    /// How often messages came one after the other, so that they were asked for without sleeping.
    #[serde(default)]
    pub flows: u64,
    /// Bytes of all layers, as stored.
    pub bytes_total: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// FUSE messages by name.
    pub messages: BTreeMap<String, u64>,
    /// How far `--prefetch` is.
    #[serde(default)]
    pub prefetch: Option<Shown>,
    /// Why bytes are not kept in the cache, if they are not.
    #[serde(default)]
    pub cache_trouble: Option<String>,
    /// The daemon's log.
    pub log: PathBuf,
}

/// A source that served wrong bytes of a blob, or so it seems.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    /// As the registry and repository.
    pub source: String,
    /// Digest of the blob.
    pub blob: String,
    /// The artifact with the index that says so, where nothing else does: that may be wrong instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub or_index: Option<String>,
}

/// One layer of a mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerStatus {
    /// Digest of the blob.
    pub digest: String,
    /// DiffID.
    pub diff_id: String,
    /// Bytes as stored.
    pub size: u64,
    /// Verbatim.
    pub media_type: String,
    /// How it is read: see [`How`](crate::fetch::how::How).
    pub how: String,
    /// Bytes that this mount brought, or found whole.
    pub resident: u64,
    /// Bytes of it that came from a source.
    #[serde(default)]
    pub bytes_fetched: u64,
    /// Bytes that readers got of what it decodes to (of itself, in the layout view); not those that
    /// the kernel read by itself.
    #[serde(default)]
    pub bytes_used: u64,
    /// Open files of the blob that the kernel read by itself.
    #[serde(default)]
    pub opens_passed_through: u64,
    /// Bytes of it that no reader needed: those of spans that nobody read.
    #[serde(default)]
    pub bytes_never_needed: u64,
    /// Bytes fetched by bytes used; `None` as long as none was used, or when the kernel read some by
    /// itself.
    #[serde(default)]
    pub amplification: Option<f64>,
}

/// Answers each connection to `socket` with `status()`. Runs until the process ends.
///
/// # Errors
/// The socket cannot be made.
pub fn serve(socket: &Path, status: impl Fn() -> Status + Send + 'static) -> Result<()> {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)
        .map_err(|e| Error::local(format!("cannot listen on {}", socket.display()), &e))?;
    let answer = move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let _ = stream.set_write_timeout(Some(ANSWER_WITHIN));
            let Ok(json) = serde_json::to_vec(&status()) else { continue };
            // Whoever asked may be gone; the next one is answered all the same.
            let _ = stream.write_all(&json);
        }
    };
    std::thread::Builder::new()
        .name("status".to_owned())
        .spawn(answer)
        .map_err(|e| Error::local("cannot start a thread", &e))?;
    Ok(())
}

/// Asks the daemon behind `socket`.
///
/// # Errors
/// [`ErrorKind::NotFound`] when nobody listens there.
pub fn query(socket: &Path) -> Result<Status> {
    let failed = |e: &std::io::Error| {
        let message = format!("no daemon answers on {}: {e}", socket.display());
        Error::new(ErrorKind::NotFound, message)
    };
    let stream = UnixStream::connect(socket).map_err(|e| failed(&e))?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).map_err(|e| failed(&e))?;
    let mut json = Vec::new();
    stream.take(STATUS_BYTES_MAX).read_to_end(&mut json).map_err(|e| failed(&e))?;
    serde_json::from_slice(&json).map_err(|e| failed(&e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_gets_the_status_of_that_moment() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("s");
        let count = std::sync::atomic::AtomicU64::new(0);
        serve(&socket, move || Status {
            mountpoint: PathBuf::from("/mnt"),
            image: "oci:/x".to_owned(),
            view: "rootfs".to_owned(),
            pid: 1,
            ready: true,
            layers: Vec::new(),
            requests: count.fetch_add(1, std::sync::atomic::Ordering::SeqCst),
            retries: 0,
            hedges: 0,
            set_aside: Vec::new(),
            errors: 0,
            bytes_fetched: 0,
            bytes_passed: 0,
            bytes_read: 0,
            opens_passed_through: 0,
            files_pushed: 0,
            flows: 0,
            bytes_total: 0,
            read_errors: 0,
            messages: BTreeMap::new(),
            prefetch: None,
            cache_trouble: None,
            log: PathBuf::new(),
        })
        .expect("serving");
        assert_eq!(query(&socket).expect("a status").requests, 0);
        assert_eq!(query(&socket).expect("a status").requests, 1);
        assert_eq!(query(&directory.path().join("none")).unwrap_err().kind, ErrorKind::NotFound);
    }
}
