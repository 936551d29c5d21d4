//! Indexes of layers in the cache: ours, and those in an artifact that somebody named.
//!
//! What a pass of ours found is in a file of its own, and counts whatever others say. An index of
//! others is in another, which begins with a line that has the artifact's digest.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::cache::{Cache, open_existing, persist};
use super::error::{Error, ErrorKind, Result};
use super::seal::{SEAL_BYTES, seal};
use crate::layout::Digest;
use crate::layout::error::Error as LayoutError;
use crate::layout::index::{LayerIndex, saved};

/// A saved index beyond this is not read: 2^20 entries need about 200 MB.
const INDEX_BYTES_MAX: u64 = 1 << 30;

/// What the two kinds are sealed as.
const OWN: &str = "index";
const NAMED: &str = "named index";

impl Cache {
    /// The saved index of a layer blob. A damaged one, or one of another version, counts as absent
    /// and is removed.
    pub fn load_index(&self, digest: &Digest) -> Option<LayerIndex> {
        self.load(&self.keyed("indexes", digest), |bytes| opened(OWN, digest, b"", bytes))
    }

    /// The same, of the one in an artifact that somebody named: [`LayerIndex::artifact`] says which.
    pub fn load_named_index(&self, digest: &Digest) -> Option<LayerIndex> {
        self.load(&self.named_path(digest), |bytes| {
            let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(0);
            let (artifact, sealed) = bytes.split_at(end);
            let artifact_digest = std::str::from_utf8(artifact).ok().and_then(|a| a.parse().ok());
            let sealed = sealed.get(1..).unwrap_or_default();
            let index = opened(NAMED, digest, artifact, sealed)?;
            Ok(LayerIndex { artifact: artifact_digest, ..index })
        })
    }

    /// Saves the index of a layer blob whose digest and DiffID were both proved, or that the image
    /// itself vouches for.
    ///
    /// # Errors
    /// Local trouble.
    pub fn save_index(&self, digest: &Digest, index: &LayerIndex) -> Result<()> {
        self.save(
            &self.keyed("indexes", digest),
            (OWN, digest, String::new()),
            saved::encode(index)?,
        )
    }

    /// The same of a table that somebody waits for, and that can be had again: quickly, in some more
    /// bytes.
    ///
    /// # Errors
    /// Local trouble.
    pub fn save_table(&self, key: &Digest, index: &LayerIndex) -> Result<()> {
        let encoded = saved::encode_quickly(index)?;
        self.save(&self.keyed("indexes", key), (OWN, key, String::new()), encoded)
    }

    /// Saves the index of a layer blob that was in `artifact`, which somebody named.
    ///
    /// # Errors
    /// Local trouble.
    pub fn save_named_index(
        &self,
        digest: &Digest,
        artifact: &Digest,
        index: &LayerIndex,
    ) -> Result<()> {
        let whose = (NAMED, digest, artifact.to_string());
        self.save(&self.named_path(digest), whose, saved::encode(index)?)
    }

    fn named_path(&self, digest: &Digest) -> PathBuf {
        self.keyed("indexes", digest).with_extension("named")
    }

    fn load(
        &self,
        path: &Path,
        open: impl FnOnce(&[u8]) -> std::result::Result<LayerIndex, LayoutError>,
    ) -> Option<LayerIndex> {
        let failed =
            |e: &std::io::Error| Error::local(format!("cannot read {}", path.display()), e);
        let read = || -> Result<Option<Vec<u8>>> {
            let Some(file) = open_existing(path).map_err(|e| failed(&e))? else { return Ok(None) };
            let mut bytes = Vec::new();
            file.take(INDEX_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
            Ok(Some(bytes))
        };
        let bytes = self.found(read())?;
        match open(&bytes) {
            Ok(index) => Some(index),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "discarding a saved index");
                let _ = std::fs::remove_file(path);
                None
            }
        }
    }

    /// `what` it is sealed as, whose it is, and the line in front of it.
    fn save(
        &self,
        path: &Path,
        (what, digest, line): (&str, &Digest, String),
        encoded: Vec<u8>,
    ) -> Result<()> {
        let mut file = self.temporary("indexes")?;
        if !self.make_room(encoded.len() as u64) {
            return Err(Error::new(ErrorKind::Local, "no room for an index within --cache-limit"));
        }
        let head = if line.is_empty() { String::new() } else { format!("{line}\n") };
        file.write_all(head.as_bytes())
            .and_then(|()| file.write_all(&encoded))
            .and_then(|()| file.write_all(&sealing(what, digest, line.as_bytes(), &encoded)))
            .map_err(|e| Error::local("cannot write a layer index", &e))?;
        persist(file, path)
    }
}

/// The seal of an encoded index, for which the sum at its end stands, and of the line in front of it.
fn sealing(what: &str, digest: &Digest, line: &[u8], encoded: &[u8]) -> [u8; SEAL_BYTES] {
    let sum = encoded.last_chunk::<32>().map_or(encoded, |sum| sum);
    seal(what, digest, &[line, sum].concat())
}

fn opened(
    what: &str,
    digest: &Digest,
    line: &[u8],
    sealed: &[u8],
) -> std::result::Result<LayerIndex, LayoutError> {
    let (encoded, found) = sealed.split_at(sealed.len().saturating_sub(SEAL_BYTES));
    let index = saved::decode(encoded)?;
    if sealing(what, digest, line, encoded) != found {
        let reason = "it is another blob's, or is not sealed".to_owned();
        return Err(LayoutError::SavedIndex(reason));
    }
    Ok(index)
}
