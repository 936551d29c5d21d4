//! The cache directory: blobs, their parts, layer indexes, decoded layers. Atomic and versioned.
//!
//! ```text
//! <dir>/v1/blobs/<alg>/<hex>         a whole blob, proved before it got this name
//! <dir>/v1/blobs/<alg>/<hex>.part    a sparse file: some bytes of a blob, proved or not
//! <dir>/v1/blobs/<alg>/<hex>.map     which bytes of the part are resident (`start end` a line)
//! <dir>/v1/blobs/<alg>/<hex>.lock    held by the one process that streams the blob
//! <dir>/v1/indexes/<alg>-<hex>       the `LayerIndex` of the layer blob of that digest
//! <dir>/v1/decoded/<alg>-<hex>       an uncompressed layer, by DiffID, proved before it got this name
//! <dir>/v1/decoded/<alg>-<hex>.sums  sha256 of each of its pieces (`decoded.rs`)
//! <dir>/v1/layouts/<host>/...        sparse layouts made for `docker://` images
//! ```
//!
//! A final name is given by rename, after the bytes were synced: what has it is whole. Residency is
//! not proof: bytes of a part count only after their digest was checked. Everything may be deleted
//! at any time; open files stay readable. Bytes in memory are bounded elsewhere (`spans.rs`).

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use super::decoded::Decoded;
use super::error::{Error, Result};
use crate::layout::index::{LayerIndex, saved};
use crate::layout::range::{ByteRange, RangeSet};
use crate::layout::{Blob, Digest};

/// The directory of this version of the format; other versions live beside it, untouched.
const VERSION: &str = "v1";

/// A residency map line is under 42 bytes; a map beyond this is not ours (a 1 TiB blob in 1 MiB
/// spans needs 42 MB).
const MAP_BYTES_MAX: u64 = 64 << 20;

/// A saved index beyond this is not read: 2^20 entries need about 200 MB.
const INDEX_BYTES_MAX: u64 = 1 << 30;

/// A file that was not written to for so long has no writer any more: a first pass writes all the
/// time, and a stalled one ends at its deadline.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// A cache directory, shared by any number of mounts and processes.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// What a file in the cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemKind {
    /// A whole blob.
    Blob,
    /// Some bytes of a blob.
    Part,
    /// A layer index.
    Index,
    /// An uncompressed layer.
    Decoded,
}

/// One file in the cache.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// Digest of the blob, or DiffID of a decoded layer.
    pub digest: String,
    /// Bytes on disk (a sparse file uses less than its length).
    pub disk_bytes: u64,
    /// Seconds since 1970 of the last use.
    pub used: i64,
    #[serde(skip)]
    path: PathBuf,
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
    /// Opens or creates the cache in `dir` (mode 0700: what one user read is not another's to see).
    ///
    /// # Errors
    /// [`ErrorKind::Local`](super::ErrorKind::Local) when a directory cannot be made.
    pub fn open(dir: &Path) -> Result<Self> {
        let root = dir.join(VERSION);
        for sub in ["blobs/sha256", "blobs/sha512", "indexes", "decoded", "layouts"] {
            let path = root.join(sub);
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|e| Error::local(format!("cannot make {}", path.display()), &e))?;
        }
        Ok(Cache { root })
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

    fn keyed(&self, directory: &str, digest: &Digest) -> PathBuf {
        self.root.join(directory).join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    /// The whole, proved blob, if it is here. One of another size is damaged, and is removed.
    ///
    /// # Errors
    /// Local trouble other than absence.
    pub fn open_blob(&self, blob: &Blob) -> Result<Option<File>> {
        open_sized(&self.blob_path(&blob.digest), blob.size)
    }

    /// Removes a blob whose bytes are no longer what they were.
    pub fn remove_blob(&self, blob: &Blob) {
        let _ = std::fs::remove_file(self.blob_path(&blob.digest));
    }

    /// The uncompressed layer `diff_id` of `size` bytes, if it is here with its sums.
    ///
    /// # Errors
    /// Local trouble other than absence.
    pub fn open_decoded(&self, diff_id: &Digest, size: u64) -> Result<Option<Decoded>> {
        let path = self.keyed("decoded", diff_id);
        let Some(file) = open_sized(&path, size)? else { return Ok(None) };
        let sums = match std::fs::read(path.with_extension("sums")) {
            Ok(bytes) => bytes.as_chunks::<32>().0.to_vec(),
            Err(_) => Vec::new(),
        };
        let decoded = Decoded::new(file, size, sums, false);
        if decoded.is_none() {
            self.remove_decoded(diff_id);
        }
        Ok(decoded)
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
        let path = self.blob_path(&blob.digest);
        let open = |suffix: &str| {
            let path = path.with_extension(suffix);
            OpenOptions::new()
                .read(true)
                .append(suffix == "map")
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(|e| Error::local(format!("cannot open {}", path.display()), &e))
        };
        let file = open("part")?;
        let map = open("map")?;
        let resident = read_map(&map, file_len(&file)?.min(blob.size))
            .map_err(|e| Error::local(format!("cannot read the map of {}", path.display()), &e))?;
        Ok(Part { file, resident, map })
    }

    /// How far the part of a blob reaches: grows while some process streams it. 0: there is none.
    pub fn part_len(&self, blob: &Blob) -> u64 {
        let path = self.blob_path(&blob.digest).with_extension("part");
        path.metadata().map_or(0, |meta| meta.len())
    }

    /// Throws the part away: its bytes are wrong.
    pub fn destroy_part(&self, blob: &Blob) {
        let path = self.blob_path(&blob.digest);
        for suffix in ["part", "map"] {
            let _ = std::fs::remove_file(path.with_extension(suffix));
        }
    }

    /// Gives the proved part its final name. `file` is the part.
    ///
    /// # Errors
    /// Local trouble; the part stays, and is tried again by the next stream.
    pub fn publish_blob(&self, blob: &Blob, file: &File) -> Result<()> {
        let path = self.blob_path(&blob.digest);
        publish(file, &path.with_extension("part"), &path)?;
        let _ = std::fs::remove_file(path.with_extension("map"));
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
            .map_err(|e| Error::local("cannot write the sums of a layer", &e))?;
        // The sums first: a decoded layer without them counts as absent.
        persist(sums_file, &path.with_extension("sums"))?;
        persist(file, &path)
    }

    /// The exclusive right to stream `blob`, unless another process has it.
    ///
    /// # Errors
    /// Local trouble.
    pub fn try_lock(&self, blob: &Blob) -> Result<Option<StreamLock>> {
        let path = self.blob_path(&blob.digest).with_extension("lock");
        let failed = |e: &io::Error| Error::local(format!("cannot lock {}", path.display()), e);
        loop {
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(false);
            let file = options.open(&path).map_err(|e| failed(&e))?;
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

    /// The saved index of a layer blob. A damaged one, or one of another version, counts as absent
    /// and is removed.
    ///
    /// # Errors
    /// Local trouble other than absence.
    pub fn load_index(&self, digest: &Digest) -> Result<Option<LayerIndex>> {
        let path = self.keyed("indexes", digest);
        let failed = |e: &io::Error| Error::local(format!("cannot read {}", path.display()), e);
        let Some(file) = open_existing(&path).map_err(|e| failed(&e))? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(INDEX_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
        match saved::decode(&bytes) {
            Ok(index) => Ok(Some(index)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "discarding a saved index");
                let _ = std::fs::remove_file(&path);
                Ok(None)
            }
        }
    }

    /// Saves the index of a layer blob whose digest and DiffID were both proved.
    ///
    /// # Errors
    /// Local trouble.
    pub fn save_index(&self, digest: &Digest, index: &LayerIndex) -> Result<()> {
        let mut file = self.temporary("indexes")?;
        file.write_all(&saved::encode(index)?)
            .map_err(|e| Error::local("cannot write a layer index", &e))?;
        persist(file, &self.keyed("indexes", digest))
    }

    fn temporary(&self, directory: &str) -> Result<tempfile::NamedTempFile> {
        let directory = self.root.join(directory);
        tempfile::Builder::new()
            .prefix(".new-")
            .tempfile_in(&directory)
            .map_err(|e| Error::local(format!("cannot make a file in {}", directory.display()), &e))
    }

    /// Everything in the cache, least recently used first.
    ///
    /// # Errors
    /// Local trouble.
    pub fn items(&self) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        for directory in ["blobs/sha256", "blobs/sha512", "indexes", "decoded"] {
            let path = self.root.join(directory);
            let failed = |e: &io::Error| Error::local(format!("cannot list {}", path.display()), e);
            for entry in std::fs::read_dir(&path).map_err(|e| failed(&e))? {
                let entry = entry.map_err(|e| failed(&e))?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if let (Ok(meta), Some((kind, digest))) =
                    (entry.metadata(), classify(directory, &name))
                {
                    let (disk_bytes, used) = (meta.blocks() * 512, meta.mtime());
                    items.push(Item { kind, digest, disk_bytes, used, path: entry.path() });
                }
            }
        }
        items.sort_by(|a, b| (a.used, &a.digest, a.kind).cmp(&(b.used, &b.digest, b.kind)));
        Ok(items)
    }

    /// Removes files that a crash kept from getting a name.
    fn remove_abandoned(&self) {
        for directory in ["indexes", "decoded"] {
            let Ok(entries) = std::fs::read_dir(self.root.join(directory)) else { continue };
            for entry in entries.flatten() {
                let is_temporary = entry.file_name().as_encoded_bytes().starts_with(b".new-");
                let age = entry.metadata().and_then(|m| m.modified()).map(|m| m.elapsed());
                let is_old = matches!(age, Ok(Ok(age)) if age > ABANDONED_AFTER);
                if is_temporary && is_old {
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
    }

    /// Removes items, least recently used first, until the rest uses at most `limit_bytes`.
    /// Indexes are kept unless `indexes` is set: they are small, and spare a whole first pass.
    /// Mounts that read a removed file keep it open, or fetch it again.
    ///
    /// # Errors
    /// Local trouble.
    pub fn prune(&self, limit_bytes: u64, indexes: bool) -> Result<Vec<Item>> {
        self.remove_abandoned();
        let items = self.items()?;
        let mut used: u64 = items.iter().map(|i| i.disk_bytes).sum();
        let mut removed = Vec::new();
        for item in items {
            if used <= limit_bytes || (item.kind == ItemKind::Index && !indexes) {
                continue;
            }
            if let Err(e) = std::fs::remove_file(&item.path)
                && e.kind() != io::ErrorKind::NotFound
            {
                return Err(Error::local(format!("cannot remove {}", item.path.display()), &e));
            }
            let beside = match item.kind {
                ItemKind::Part => Some("map"),
                ItemKind::Decoded => Some("sums"),
                ItemKind::Blob | ItemKind::Index => None,
            };
            if let Some(suffix) = beside {
                let _ = std::fs::remove_file(item.path.with_extension(suffix));
            }
            used = used.saturating_sub(item.disk_bytes);
            removed.push(item);
        }
        Ok(removed)
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

fn classify(directory: &str, name: &str) -> Option<(ItemKind, String)> {
    if let Some(algorithm) = directory.strip_prefix("blobs/") {
        let (hex, kind) = match name.split_once('.') {
            None => (name, ItemKind::Blob),
            Some((hex, "part")) => (hex, ItemKind::Part),
            Some(_) => return None,
        };
        return Some((kind, format!("{algorithm}:{hex}")));
    }
    let kind = if directory == "indexes" { ItemKind::Index } else { ItemKind::Decoded };
    let digest = name.replacen('-', ":", 1);
    digest.parse::<Digest>().ok().map(|_| (kind, digest))
}

fn open_existing(path: &Path) -> io::Result<Option<File>> {
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
        let shown = path.display();
        tracing::warn!(path = %shown, expected = size, actual, "removing a file of the wrong size");
        let _ = std::fs::remove_file(path);
        return Ok(None);
    }
    // The time of the last use, for eviction; another user's cache may refuse it.
    let _ = file.set_modified(SystemTime::now());
    Ok(Some(file))
}

/// Lines that do not parse end the map: a crash can tear only its last line.
fn read_map(map: &File, len: u64) -> io::Result<RangeSet> {
    let mut text = String::new();
    map.take(MAP_BYTES_MAX).read_to_string(&mut text).or_else(|e| match e.kind() {
        io::ErrorKind::InvalidData => Ok(0),
        _ => Err(e),
    })?;
    let mut resident = RangeSet::new();
    for line in text.lines() {
        let parsed =
            line.split_once(' ').and_then(|(s, e)| Some((s.parse().ok()?, e.parse().ok()?)));
        match parsed {
            Some((start, end)) if start <= end && end <= len => {
                resident.insert(ByteRange::new(start, end));
            }
            _ => break,
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

fn persist(file: tempfile::NamedTempFile, to: &Path) -> Result<()> {
    let failed = |e: &io::Error| Error::local(format!("cannot publish {}", to.display()), e);
    file.as_file().sync_data().map_err(|e| failed(&e))?;
    file.persist(to).map_err(|e| failed(&e.error))?;
    Ok(())
}
