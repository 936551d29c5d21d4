//! What is in the cache, and what goes when it is too much: least recently used first.
//!
//! Files lose their names, never their bytes: who has one open reads on, and lets go of it soon
//! (`Store::release_evicted`). Decoded spans in memory have a bound of their own (`spans.rs`).

use std::fs::{File, FileTimes, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use super::cache::Cache;
use super::error::{Error, Result};
use crate::layout::oci::ImageIndex;
use crate::layout::{Digest, oci};

/// A temporary file that nobody holds a lock on is one that a crash left, unless it is so new that
/// it may not be locked yet.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// `<registry>/<repository>/<tag>`: a repository of more components than this is nobody's.
const LAYOUT_DEPTH_MAX: usize = 32;

/// What containers have as scratch directories, where no other place will do (`fs/scratch.rs`).
const SCRATCH_PREFIX: &str = "layoutfs-";

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
    /// The sparse layout of a `docker://` image.
    Layout,
}

/// One file in the cache, or one layout.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// Digest of the blob, DiffID of a decoded layer, digest of a layout's manifest.
    pub digest: String,
    /// Of a layout: where it is among the layouts, `<registry>/<repository>/<tag>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Bytes on disk (a sparse file uses less than its length).
    pub disk_bytes: u64,
    /// Seconds since 1970 of the last use.
    pub used: i64,
    /// The same, nanoseconds more.
    #[serde(skip)]
    used_nanos: i64,
    #[serde(skip)]
    path: PathBuf,
}

impl Cache {
    /// Everything in the cache, least recently used first.
    ///
    /// # Errors
    /// Local trouble.
    pub fn items(&self) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        for directory in ["blobs/sha256", "blobs/sha512", "indexes", "decoded"] {
            let path = self.root.join(directory);
            for (entry, meta) in entries(&path)? {
                let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if let Some((kind, digest)) = classify(directory, &name) {
                    items.push(Item::new(kind, digest, entry, &meta));
                }
            }
        }
        let layouts = self.layouts();
        find_layouts(&layouts, &layouts, LAYOUT_DEPTH_MAX, &mut items)?;
        let key = |i: &Item| (i.used, i.used_nanos, i.digest.clone(), i.kind);
        items.sort_by_cached_key(key);
        Ok(items)
    }

    /// Bytes on disk of everything, also of what is being written and of the little files beside.
    ///
    /// # Errors
    /// Local trouble.
    fn disk_bytes(&self) -> Result<u64> {
        let mut bytes = 0;
        let mut folders = vec![self.root.clone()];
        while let Some(folder) = folders.pop() {
            for (path, meta) in entries(&folder)? {
                match meta.is_dir() {
                    true if is_scratch(&path) => {}
                    true => folders.push(path),
                    false => bytes += disk_bytes_of(&meta),
                }
            }
        }
        Ok(bytes)
    }

    /// Removes files that a crash kept from getting a name. Their makers hold a lock on them.
    fn remove_abandoned(&self) {
        for directory in ["indexes", "decoded"] {
            for (path, meta) in entries(&self.root.join(directory)).unwrap_or_default() {
                let name = path.file_name().unwrap_or_default().as_encoded_bytes();
                let age = meta.modified().map(|at| at.elapsed());
                let is_old = matches!(age, Ok(Ok(age)) if age > ABANDONED_AFTER);
                if name.starts_with(b".new-") && is_old && lock_now(&path).is_some() {
                    let _ = std::fs::remove_file(path);
                }
            }
        }
    }

    /// Removes items, least recently used first, until the rest uses at most `limit_bytes`.
    /// Indexes are kept unless `indexes` is set: they are small, and spare a whole first pass.
    ///
    /// # Errors
    /// Local trouble.
    pub fn prune(&self, limit_bytes: u64, indexes: bool) -> Result<Vec<Item>> {
        self.remove_abandoned();
        let mut used = self.disk_bytes()?;
        self.remove_until(limit_bytes, &mut used, |kind| indexes || kind != ItemKind::Index)
    }

    /// Removes items, least recently used first and indexes last, until the rest uses at most
    /// `limit_bytes`. `false`: what is left is in use.
    ///
    /// # Errors
    /// Local trouble.
    pub(super) fn shrink(&self, limit_bytes: u64) -> Result<bool> {
        let mut used = self.disk_bytes()?;
        if used <= limit_bytes {
            return Ok(true);
        }
        self.remove_abandoned();
        for are_indexes in [false, true] {
            let chosen = |kind| (kind == ItemKind::Index) == are_indexes;
            for item in self.remove_until(limit_bytes, &mut used, chosen)? {
                let Item { kind, digest, disk_bytes, .. } = item;
                tracing::debug!(?kind, digest, disk_bytes, "made room in the cache");
            }
        }
        Ok(used <= limit_bytes)
    }

    fn remove_until(
        &self,
        limit_bytes: u64,
        used: &mut u64,
        chosen: impl Fn(ItemKind) -> bool,
    ) -> Result<Vec<Item>> {
        let mut removed = Vec::new();
        for item in self.items()? {
            if *used <= limit_bytes {
                break;
            }
            if chosen(item.kind) && self.remove(&item)? {
                *used = used.saturating_sub(item.disk_bytes);
                removed.push(item);
            }
        }
        Ok(removed)
    }

    /// Removes one item. `false`: somebody writes to it.
    fn remove(&self, item: &Item) -> Result<bool> {
        // Held until the item is gone: nobody streams into it, or opens it, meanwhile.
        let _lock = match (item.kind, item.digest.parse()) {
            (ItemKind::Part, Ok(digest)) => match self.try_lock(&digest)? {
                Some(lock) => Some(lock),
                None => return Ok(false),
            },
            (ItemKind::Layout, _) => {
                match self.lock_layouts(FlockOperation::NonBlockingLockExclusive) {
                    Some(lock) => {
                        remove_layout(&item.path, &self.layouts());
                        drop(lock);
                        return Ok(true);
                    }
                    None => return Ok(false),
                }
            }
            _ => None,
        };
        if item.kind == ItemKind::Part {
            let _ = std::fs::remove_file(item.path.with_extension("map"));
        }
        match std::fs::remove_file(&item.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::local(format!("cannot remove {}", item.path.display()), &e));
            }
            _ => {}
        }
        if item.kind == ItemKind::Decoded {
            let _ = std::fs::remove_file(item.path.with_extension("sums"));
        }
        Ok(true)
    }

    /// While the result lives, no layout is removed. `None`: nobody can lock here, so that nobody
    /// removes, either.
    pub fn hold_layouts(&self) -> Option<File> {
        self.lock_layouts(FlockOperation::LockShared)
    }

    /// A layout is used now; a cache that cannot be written to does not remember it.
    pub fn note_layout_used(&self, layout: &Path) {
        let times = FileTimes::new().set_accessed(SystemTime::now());
        let _ = File::open(layout.join("index.json")).and_then(|file| file.set_times(times));
    }

    fn lock_layouts(&self, how: FlockOperation) -> Option<File> {
        let path = self.root.join("layouts.lock");
        let file = File::options().write(true).create(true).truncate(false).open(path).ok()?;
        flock(&file, how).ok().map(|()| file)
    }
}

impl Item {
    fn new(kind: ItemKind, digest: String, path: PathBuf, meta: &Metadata) -> Self {
        let written = (meta.mtime(), meta.mtime_nsec());
        let (used, used_nanos) = written.max((meta.atime(), meta.atime_nsec()));
        let disk_bytes = disk_bytes_of(meta);
        Item { kind, digest, name: None, disk_bytes, used, used_nanos, path }
    }
}

fn disk_bytes_of(meta: &Metadata) -> u64 {
    meta.blocks() * 512
}

fn is_scratch(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(SCRATCH_PREFIX.as_bytes()))
}

/// What is in a directory, as far as it can be looked at; nothing in one that is not there.
fn entries(directory: &Path) -> Result<Vec<(PathBuf, Metadata)>> {
    let failed = |e: &io::Error| Error::local(format!("cannot list {}", directory.display()), e);
    let listing = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.map_err(|e| failed(&e))?,
    };
    let mut found = Vec::new();
    for entry in listing {
        let path = entry.map_err(|e| failed(&e))?.path();
        // It may be gone by now.
        if let Ok(meta) = path.symlink_metadata() {
            found.push((path, meta));
        }
    }
    Ok(found)
}

/// The lock of a temporary file, unless its maker has it.
fn lock_now(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok().map(|()| file)
}

/// Layouts in `directory` and below: one image's can lie in another's (`app` with the tag `a`, and
/// `app/a`).
fn find_layouts(top: &Path, directory: &Path, depth: usize, items: &mut Vec<Item>) -> Result<()> {
    for (path, meta) in entries(directory)? {
        if !meta.is_dir() || depth == 0 || (directory == top && is_scratch(&path)) {
            continue;
        }
        if let Ok(meta) = path.join("index.json").symlink_metadata() {
            let digest = manifest_digest(&path).unwrap_or_default();
            let name = path.strip_prefix(top).unwrap_or(&path).display().to_string();
            let item = Item::new(ItemKind::Layout, digest, path.clone(), &meta);
            let disk_bytes = layout_files(&path).iter().map(|(_, meta)| disk_bytes_of(meta)).sum();
            items.push(Item { name: Some(name), disk_bytes, ..item });
        }
        find_layouts(top, &path, depth - 1, items)?;
    }
    Ok(())
}

fn manifest_digest(layout: &Path) -> Option<String> {
    let bytes = super::layout_dir::read_document(&layout.join("index.json")).ok()??;
    let index = ImageIndex::parse("index.json", &bytes).ok()?;
    index.manifests.first().map(|d: &oci::Descriptor| d.blob.digest.to_string())
}

/// The files of one layout, `index.json` first.
fn layout_files(layout: &Path) -> Vec<(PathBuf, Metadata)> {
    let mut files: Vec<(PathBuf, Metadata)> = ["index.json", "oci-layout"]
        .iter()
        .filter_map(|name| {
            let path = layout.join(name);
            path.symlink_metadata().ok().map(|meta| (path, meta))
        })
        .collect();
    for algorithm in ["sha256", "sha512"] {
        files.extend(entries(&layout.join("blobs").join(algorithm)).unwrap_or_default());
    }
    files.retain(|(_, meta)| !meta.is_dir());
    files
}

/// Without its index it is none any more, whatever becomes of the rest. Empty directories up to
/// `top` go with it.
fn remove_layout(layout: &Path, top: &Path) {
    for (path, _) in layout_files(layout) {
        let _ = std::fs::remove_file(path);
    }
    for folder in ["blobs/sha256", "blobs/sha512", "blobs"] {
        let _ = std::fs::remove_dir(layout.join(folder));
    }
    let above = layout.ancestors().take_while(|path| path.starts_with(top) && *path != top);
    for folder in above {
        if std::fs::remove_dir(folder).is_err() {
            break;
        }
    }
}

fn classify(directory: &str, name: &str) -> Option<(ItemKind, String)> {
    if let Some(algorithm) = directory.strip_prefix("blobs/") {
        let (hex, kind) = match name.split_once('.') {
            None => (name, ItemKind::Blob),
            Some((hex, rest)) if rest.ends_with(".part") => (hex, ItemKind::Part),
            Some(_) => return None,
        };
        return Some((kind, format!("{algorithm}:{hex}")));
    }
    let (kind, name) = match directory {
        "indexes" => (ItemKind::Index, name.strip_suffix(".named").unwrap_or(name)),
        _ => (ItemKind::Decoded, name),
    };
    let digest = name.replacen('-', ":", 1);
    digest.parse::<Digest>().ok().map(|_| (kind, digest))
}
