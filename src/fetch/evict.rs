//! What is in the cache, and what goes when it is too much: least recently used first.
//!
//! Mounts that read a removed file keep it open, or fetch it again. Decoded spans in memory have a
//! bound of their own (`spans.rs`).

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use super::cache::Cache;
use super::error::{Error, Result};
use crate::layout::Digest;

/// A file that was not written to for so long has no writer any more: a first pass writes all the
/// time, and a stalled one ends at its deadline.
const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

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

impl Cache {
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
                    let (disk_bytes, used) = (meta.blocks() * 512, meta.atime().max(meta.mtime()));
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
            // Held until the part is gone: nobody streams into it meanwhile.
            let lock = match (item.kind, item.digest.parse()) {
                (ItemKind::Part, Ok(digest)) => match self.try_lock(&digest)? {
                    Some(lock) => Some(lock),
                    None => continue,
                },
                _ => None,
            };
            if item.kind == ItemKind::Part {
                let _ = std::fs::remove_file(item.path.with_extension("map"));
            }
            if let Err(e) = std::fs::remove_file(&item.path)
                && e.kind() != io::ErrorKind::NotFound
            {
                return Err(Error::local(format!("cannot remove {}", item.path.display()), &e));
            }
            if item.kind == ItemKind::Decoded {
                let _ = std::fs::remove_file(item.path.with_extension("sums"));
            }
            drop(lock);
            used = used.saturating_sub(item.disk_bytes);
            removed.push(item);
        }
        Ok(removed)
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
    let kind = if directory == "indexes" { ItemKind::Index } else { ItemKind::Decoded };
    let digest = name.replacen('-', ":", 1);
    digest.parse::<Digest>().ok().map(|_| (kind, digest))
}
