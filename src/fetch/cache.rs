//! The cache directory: blobs, their parts, layer indexes, decoded layers. Atomic and versioned.
//!
//! ```text
//! <dir>/v1/blobs/<alg>/<hex>         a whole blob, proved before it got this name
//! <dir>/v1/blobs/<alg>/<hex>.<size>.part  a sparse file: some bytes of a blob, proved or not
//! <dir>/v1/blobs/<alg>/<hex>.<size>.map   which of them are resident (`start end` a line)
//! <dir>/v1/blobs/<alg>/<hex>.lock    held by the one process that streams the blob
//! <dir>/v1/indexes/<alg>-<hex>       the `LayerIndex` of the layer blob of that digest, sealed
//! <dir>/v1/indexes/<alg>-<hex>.named one of others, and the artifact that somebody named (`index_files.rs`)
//! <dir>/v1/decoded/<alg>-<hex>       an uncompressed layer, by DiffID, proved before it got this name
//! <dir>/v1/decoded/<alg>-<hex>.sums  sha256 of each of its pieces (`decoded.rs`), sealed
//! <dir>/v1/layouts/<host>/...        sparse layouts made for `docker://` images
//! ```
//!
//! A final name is given by rename, after the bytes were synced: what has it is whole. Residency is
//! not proof: bytes of a part count only after their digest was checked. What proves others is sealed
//! (`seal.rs`), so that it cannot be taken for another's. Everything may be deleted
//! at any time; open files stay readable. Bytes in memory are bounded elsewhere (`spans.rs`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use super::decoded::{Decoded, PIECE_BYTES};
use super::error::{Error, Result};
use super::room::Room;
use super::seal::{SEAL_BYTES, opened, seal};
use crate::layout::range::{ByteRange, RangeSet};
use crate::layout::{Blob, Digest};

/// A residency map line is under 42 bytes; a map beyond this is not ours (a 1 TiB blob in 1 MiB
/// spans needs 42 MB).
const MAP_BYTES_MAX: u64 = 64 << 20;

/// One step of copying a blob.
const COPY_BYTES: u64 = 4 << 20;

/// A cache directory, shared by any number of mounts and processes.
#[derive(Debug, Clone)]
pub struct Cache {
    pub(super) root: PathBuf,
    pub(super) room: Arc<Room>,
}

/// The exclusive right to stream one blob; other processes wait for it. Ends when dropped.
#[derive(Debug)]
pub struct StreamLock {
    _file: File,
}

/// The sparse file of a blob that is not whole yet, and which of its bytes are there.
#[derive(Debug)]
pub struct Part {
    /// Bytes lie at their position in the blob.
    pub file: File,
    /// Resident bytes. Not proved.
    pub resident: RangeSet,
    map: File,
}

impl Cache {
    /// Opens or creates the cache in `dir`, for its owner only. All processes together keep it at
    /// `limit_bytes`. One that cannot be written to is used as it is.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`](super::ErrorKind::Usage) for a cache that others can write to; `dir`
    /// cannot be a directory.
    pub fn open(dir: &Path, limit_bytes: Option<u64>) -> Result<Self> {
        let (root, trouble) = super::cache_dir::open(dir)?;
        let cache = Cache { root, room: Arc::new(Room::new(limit_bytes)) };
        if let Some(error) = trouble {
            cache.tell_trouble(&error);
        }
        Ok(cache)
    }

    /// The directory with the version in it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where sparse layouts for `docker://` images are made.
    pub fn layouts(&self) -> PathBuf {
        self.root.join("layouts")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm()).join(digest.hex())
    }

    pub(super) fn keyed(&self, directory: &str, digest: &Digest) -> PathBuf {
        self.root.join(directory).join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    /// The part's file, or its map. The size is in the name: an image whose descriptor lies about it
    /// must not touch the bytes of one that does not.
    fn part_path(&self, blob: &Blob, suffix: &str) -> PathBuf {
        self.blob_path(&blob.digest).with_extension(format!("{}.{suffix}", blob.size))
    }

    /// The whole, proved blob, if it is here. A file of another size is none: it is damaged, and the
    /// next stream replaces it, or the size is not true, and it stays.
    pub fn open_blob(&self, blob: &Blob) -> Option<File> {
        self.found(open_sized(&self.blob_path(&blob.digest), blob.size))
    }

    /// Removes a blob whose bytes are no longer what they were.
    pub fn remove_blob(&self, blob: &Blob) {
        let _ = std::fs::remove_file(self.blob_path(&blob.digest));
    }

    /// A whole blob of which the bytes `damaged` are wrong becomes a part without them: the rest is
    /// not fetched again.
    ///
    /// # Errors
    /// Local trouble.
    pub fn demote_blob(&self, blob: &Blob, damaged: ByteRange) -> Result<()> {
        self.destroy_part(blob);
        let (whole, part) = (self.blob_path(&blob.digest), self.part_path(blob, "part"));
        match std::fs::rename(&whole, &part) {
            // Another mount has found the same, or somebody pruned.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed
                .map_err(|e| Error::local(format!("cannot rename {}", whole.display()), &e))?,
        }
        let mut part = self.open_part(blob)?;
        for range in [ByteRange::new(0, damaged.start), ByteRange::new(damaged.end, blob.size)] {
            part.mark_resident(range)?;
        }
        Ok(())
    }

    /// The uncompressed layer `diff_id` of `size` bytes, if it is here with its sums.
    pub fn open_decoded(&self, diff_id: &Digest, size: u64) -> Option<Decoded> {
        let path = self.keyed("decoded", diff_id);
        let file = self.found(open_sized(&path, size))?;
        // One byte more than there should be, so that a longer file does not pass.
        let most = SEAL_BYTES as u64 + 32 * size.div_ceil(PIECE_BYTES) + 1;
        let mut sealed = Vec::new();
        if let Ok(sums) = File::open(path.with_extension("sums")) {
            let read = sums.take(most).read_to_end(&mut sealed);
            sealed.truncate(read.unwrap_or(0));
        }
        let sums = opened("sums", diff_id, &sealed).map(|sums| sums.as_chunks::<32>().0.to_vec());
        let decoded = sums.and_then(|sums| Decoded::new(file, size, sums, false));
        if decoded.is_none() {
            let path = path.display();
            tracing::warn!(%path, "discarding a decoded layer: its sums are damaged or not its own");
            self.remove_decoded(diff_id);
        }
        decoded
    }

    /// Removes a decoded layer that is damaged.
    pub fn remove_decoded(&self, diff_id: &Digest) {
        let path = self.keyed("decoded", diff_id);
        let _ = std::fs::remove_file(&path);
        let _ = std::fs::remove_file(path.with_extension("sums"));
    }

    /// The part of a blob that is resident; a new, empty one if there is none.
    ///
    /// # Errors
    /// Local trouble.
    pub fn open_part(&self, blob: &Blob) -> Result<Part> {
        let open = |suffix: &str| {
            let path = self.part_path(blob, suffix);
            let mut options = OpenOptions::new();
            let options = options.read(true).append(suffix == "map").write(true);
            let options = options.create(true).truncate(false);
            self.in_folders(|| options.open(&path))
                .map_err(|e| Error::local(format!("cannot open {}", path.display()), &e))
        };
        let file = open("part")?;
        let map = open("map")?;
        let resident = read_map(&map, &blob.digest, file_len(&file)?.min(blob.size))
            .map_err(|e| Error::local(format!("cannot read the map of {}", blob.digest), &e))?;
        Ok(Part { file, resident, map })
    }

    /// What changes while some process streams the blob. `None`: there is no part.
    pub fn part_state(&self, blob: &Blob) -> Option<(u64, i64, i64)> {
        let meta = self.part_path(blob, "part").metadata().ok()?;
        Some((meta.blocks(), meta.mtime(), meta.mtime_nsec()))
    }

    /// Throws the part away: its bytes are wrong. The map first: without it nothing is resident.
    pub fn destroy_part(&self, blob: &Blob) {
        for suffix in ["map", "part"] {
            let _ = std::fs::remove_file(self.part_path(blob, suffix));
        }
    }

    /// Gives the proved part its final name. `file` is the part, whatever its name stands for now:
    /// somebody may have pruned it, and somebody else begun another.
    ///
    /// # Errors
    /// Local trouble.
    pub fn publish_blob(&self, blob: &Blob, file: &File) -> Result<()> {
        let (path, part) = (self.blob_path(&blob.digest), self.part_path(blob, "part"));
        let inode = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let ours = file.metadata().map(inode);
        let is_named = matches!((ours, part.metadata().map(inode)), (Ok(a), Ok(b)) if a == b);
        if is_named {
            publish(file, &part, &path)?;
        } else {
            let mut copy = self.temporary("decoded")?;
            let mut at = 0;
            while at < blob.size {
                let range = ByteRange::at(at, COPY_BYTES.min(blob.size - at));
                copy.write_all(&read_exact_at(file, range)?)
                    .map_err(|e| Error::local("cannot copy a blob", &e))?;
                at = range.end;
            }
            persist(copy, &path)?;
        }
        let _ = std::fs::remove_file(self.part_path(blob, "map"));
        let _ = std::fs::remove_file(path.with_extension("lock"));
        Ok(())
    }

    /// A file without a name in the directory of decoded layers.
    ///
    /// # Errors
    /// Local trouble.
    pub fn create_decoded(&self) -> Result<tempfile::NamedTempFile> {
        self.temporary("decoded")
    }

    /// Gives a decoded layer its name, after its bytes were proved.
    ///
    /// # Errors
    /// Local trouble.
    pub fn publish_decoded(
        &self,
        diff_id: &Digest,
        file: tempfile::NamedTempFile,
        sums: &[[u8; 32]],
    ) -> Result<()> {
        let path = self.keyed("decoded", diff_id);
        let mut sums_file = self.temporary("decoded")?;
        sums_file
            .write_all(sums.as_flattened())
            .and_then(|()| sums_file.write_all(&seal("sums", diff_id, sums.as_flattened())))
            .map_err(|e| Error::local("cannot write the sums of a layer", &e))?;
        // The sums first: a decoded layer without them counts as absent.
        persist(sums_file, &path.with_extension("sums"))?;
        persist(file, &path)
    }

    /// The exclusive right to stream a blob, unless another process has it.
    ///
    /// # Errors
    /// Local trouble.
    pub fn try_lock(&self, digest: &Digest) -> Result<Option<StreamLock>> {
        let path = self.blob_path(digest).with_extension("lock");
        let failed = |e: &io::Error| Error::local(format!("cannot lock {}", path.display()), e);
        loop {
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(false);
            let file = self.in_folders(|| options.open(&path)).map_err(|e| failed(&e))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(failed(&e.into())),
            }
            // The holder before us may have removed the name meanwhile: then lock the new file.
            let ours = file.metadata().map_err(|e| failed(&e))?.ino();
            if std::fs::metadata(&path).is_ok_and(|named| named.ino() == ours) {
                return Ok(Some(StreamLock { _file: file }));
            }
        }
    }

    /// Makes a file; its directory first, if somebody has removed the whole cache.
    fn in_folders<T>(&self, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match make() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                super::cache_dir::make_folders(&self.root)?;
                make()
            }
            made => made,
        }
    }

    /// Locked as long as it is open: what a crash leaves is told from what somebody writes.
    pub(super) fn temporary(&self, directory: &str) -> Result<tempfile::NamedTempFile> {
        let directory = self.root.join(directory);
        let make = || tempfile::Builder::new().prefix(".new-").tempfile_in(&directory);
        let made = self.in_folders(make);
        let file = made.map_err(|e| {
            Error::local(format!("cannot make a file in {}", directory.display()), &e)
        })?;
        // Nobody else has it yet; where there are no locks, its age must do.
        let _ = flock(file.as_file(), FlockOperation::NonBlockingLockExclusive);
        Ok(file)
    }
}

impl Part {
    /// Notes that the bytes of `range` are in the file.
    ///
    /// # Errors
    /// Local trouble; the bytes are then fetched again another time.
    pub fn mark_resident(&mut self, range: ByteRange) -> Result<()> {
        self.resident.insert(range);
        let line = format!("{} {}\n", range.start, range.end);
        // One short write in append mode: lines of several writers do not mix.
        (&self.map)
            .write_all(line.as_bytes())
            .map_err(|e| Error::local("cannot write a residency map", &e))
    }

    /// The file has no name any more: somebody has pruned it.
    pub fn is_abandoned(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.nlink() == 0)
    }

    /// How many bytes from the start are resident without a gap.
    pub fn prefix(&self) -> u64 {
        self.resident.ranges().first().filter(|r| r.start == 0).map_or(0, |r| r.end)
    }
}

/// Reads exactly `range` of `file`.
///
/// # Errors
/// Local trouble, also when the file ends too soon.
pub fn read_exact_at(file: &File, range: ByteRange) -> Result<Vec<u8>> {
    let len = usize::try_from(range.len())
        .map_err(|_| Error::new(super::ErrorKind::Invalid, "range does not fit in memory"))?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, range.start)
        .map_err(|e| Error::local(format!("cannot read bytes {range} of a cached file"), &e))?;
    Ok(bytes)
}

/// Notes the time of the last use, for eviction, where that can be written.
pub(super) fn note_used(file: &File) {
    let _ = file.set_times(std::fs::FileTimes::new().set_accessed(SystemTime::now()));
}

pub(super) fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn file_len(file: &File) -> Result<u64> {
    file.metadata().map(|m| m.len()).map_err(|e| Error::local("cannot stat a cached file", &e))
}

fn open_sized(path: &Path, size: u64) -> Result<Option<File>> {
    let failed = |e: &io::Error| Error::local(format!("cannot open {}", path.display()), e);
    let Some(file) = open_existing(path).map_err(|e| failed(&e))? else { return Ok(None) };
    let actual = file_len(&file)?;
    if actual != size {
        let path = path.display();
        tracing::warn!(%path, expected = size, actual, "a cached file has another size");
        return Ok(None);
    }
    // The time of the last use, for eviction; another user's cache may refuse it. Not the time of
    // the last change, which tells whether somebody wrote to a file since it was proved.
    note_used(&file);
    Ok(Some(file))
}

/// Lines that do not parse end the map: a crash can tear only its last line.
fn read_map(map: &File, digest: &Digest, len: u64) -> io::Result<RangeSet> {
    let mut bytes = Vec::new();
    map.take(MAP_BYTES_MAX).read_to_end(&mut bytes)?;
    let mut resident = RangeSet::new();
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let line = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        let parsed = line
            .and_then(|line| line.split_once(' '))
            .and_then(|(s, e)| Some((s.parse().ok()?, e.parse().ok()?)));
        match parsed {
            Some((start, end)) if start <= end && end <= len => {
                resident.insert(ByteRange::new(start, end));
            }
            _ => {
                tracing::warn!(%digest, "a residency map is damaged: using what stands before that");
                break;
            }
        }
    }
    Ok(resident)
}

/// Syncs, then renames: a final name never shows bytes that a crash can take back.
fn publish(file: &File, from: &Path, to: &Path) -> Result<()> {
    let failed = |e: &io::Error| Error::local(format!("cannot publish {}", to.display()), e);
    file.sync_data().map_err(|e| failed(&e))?;
    std::fs::rename(from, to).map_err(|e| failed(&e))
}

pub(super) fn persist(file: tempfile::NamedTempFile, to: &Path) -> Result<()> {
    let failed = |e: &io::Error| Error::local(format!("cannot publish {}", to.display()), e);
    file.as_file().sync_data().map_err(|e| failed(&e))?;
    file.persist(to).map_err(|e| failed(&e.error))?;
    Ok(())
}
