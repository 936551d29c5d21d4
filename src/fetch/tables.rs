//! What is known of a layer without reading it: an index in the cache, or the layer's own table.
//!
//! Of several indexes the first of these counts: that of a pass of ours, which was proved; the one
//! in an artifact that somebody named; the layer's own table; the zTOC that the manifest leads to.
//!
//! A table of contents is used when the layer's descriptor names its digest: whoever trusts the
//! manifest can trust it. It is saved under the blob *and* the annotations, because another manifest
//! may name another table for the same blob, and may lie.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::error::{Error, ErrorKind, Result};
use super::hedge;
use super::span_reader::blocking;
use super::store::Store;
use crate::layout::Digest;
use crate::layout::index::{LayerIndex, Origin};
use crate::layout::range::ByteRange;
use crate::layout::tar::METADATA_BYTES_MAX;
use crate::layout::toc::{self, Place};
use crate::layout::tree::Layer;

/// Memory for indexes that were looked at and are not yet used: those beyond it are read again.
const KNOWN_BYTES_MAX: u64 = METADATA_BYTES_MAX / 4;

/// Indexes that somebody has looked at and nobody has used yet: a mount says how it will read its
/// layers before it does. With their memory in bytes.
#[derive(Default)]
pub struct Known(Mutex<HashMap<Key, (u64, LayerIndex)>>);

/// Of a layer: blob, DiffID, what its table and its zTOC are saved under.
type Key = (Digest, Digest, Option<Digest>, Option<Digest>);

impl Known {
    fn take(&self, layer: &Layer) -> Option<LayerIndex> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&key_of(layer))
            .map(|(_, index)| index)
    }

    fn put(&self, layer: &Layer, index: LayerIndex) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = index.metadata_bytes();
        let all = known.values().fold(bytes, |sum, (bytes, _)| sum.saturating_add(*bytes));
        if all <= KNOWN_BYTES_MAX {
            known.insert(key_of(layer), (bytes, index));
        }
    }
}

fn key_of(layer: &Layer) -> Key {
    (layer.blob.digest, layer.diff_id, table_key(layer), soci_key(layer))
}

/// The index of `layer` that is here, whoever made it: the one that was looked at last, else the
/// cache's.
pub fn saved_index(store: &Store, layer: &Layer) -> Option<LayerIndex> {
    store.known.take(layer).or_else(|| in_cache(store, layer))
}

/// What `look` finds in the index of `layer` that is here. Who asks for it next does not read it
/// again.
pub fn look<T>(store: &Store, layer: &Layer, look: impl FnOnce(&LayerIndex) -> T) -> Option<T> {
    let index = saved_index(store, layer)?;
    let found = look(&index);
    store.known.put(layer, index);
    Some(found)
}

/// An index of `layer` is here.
pub fn is_known(store: &Store, layer: &Layer) -> bool {
    look(store, layer, |_| ()).is_some()
}

/// Reads the table of contents that `layer` brings, so that it is known; see [`own_table`].
///
/// # Errors
/// Those of [`own_table`].
pub async fn learn_own_table(store: &Arc<Store>, layer: &Layer) -> Result<()> {
    if let Some(index) = own_table(store, layer).await? {
        store.known.put(layer, index);
    }
    Ok(())
}

fn in_cache(store: &Store, layer: &Layer) -> Option<LayerIndex> {
    load(store, layer, &layer.blob.digest)
        .or_else(|| named_index(store, layer))
        .or_else(|| saved_table(store, layer))
        .or_else(|| saved_soci(store, layer))
}

/// The index of `layer` in an artifact that somebody named.
fn named_index(store: &Store, layer: &Layer) -> Option<LayerIndex> {
    let named = || store.cache().load_named_index(&layer.blob.digest);
    let index = store.uses_indexes_of_others().then(named)??;
    (index.diff_id == layer.diff_id).then_some(index)
}

/// The index of `layer` that can be shared with those who name it: what a pass has found, here or
/// where it came from.
pub fn shareable_index(store: &Store, layer: &Layer) -> Option<LayerIndex> {
    let is_of_pass = |index: &LayerIndex| index.origin == Origin::OnePass;
    load(store, layer, &layer.blob.digest).or_else(|| named_index(store, layer)).filter(is_of_pass)
}

/// The index of the table of contents that `layer` brings, if it was read before.
pub fn saved_table(store: &Store, layer: &Layer) -> Option<LayerIndex> {
    load(store, layer, &table_key(layer)?)
}

fn saved_soci(store: &Store, layer: &Layer) -> Option<LayerIndex> {
    let key = soci_key(layer).filter(|_| store.uses_indexes_of_others())?;
    let index = load(store, layer, &key)?;
    Some(LayerIndex { artifact: layer.soci_index, ..index })
}

fn load(store: &Store, layer: &Layer, key: &Digest) -> Option<LayerIndex> {
    store.cache().load_index(key).filter(|index| index.diff_id == layer.diff_id)
}

/// Layers of which a zTOC would be of use, each once: nothing is known of them, they bring no table
/// of their own, and they are not here (then a pass tells more, for no request).
pub fn want_ztocs<'a>(store: &Store, layers: &'a [Layer]) -> Vec<&'a Layer> {
    let mut seen = HashSet::new();
    let wants = |layer: &&Layer| {
        layer.soci_index.is_some()
            && seen.insert(layer.blob.digest)
            && table_key(layer).is_none()
            && !is_known(store, layer)
            && store.open_local(&layer.blob).is_ok_and(|local| local.is_none())
    };
    layers.iter().filter(wants).collect()
}

/// Keeps the index that a zTOC of `layer` made, for images that name the same SOCI index.
///
/// # Errors
/// Local trouble.
pub fn save_soci(store: &Store, layer: &Layer, index: &LayerIndex) -> Result<()> {
    soci_key(layer).map_or(Ok(()), |key| store.cache().save_index(&key, index))
}

/// The index of a layer that brings a table of contents, which is read and saved. `None`: it brings
/// none, or all of it is here, and a pass over it tells more (see SEMANTICS.md) for no request.
///
/// # Errors
/// [`ErrorKind::Invalid`], [`ErrorKind::DigestMismatch`]: the table is of no use, and a pass is
/// needed. Others: it cannot be had, and neither can the rest of the layer.
pub async fn own_table(store: &Arc<Store>, layer: &Layer) -> Result<Option<LayerIndex>> {
    let Some(key) = table_key(layer) else { return Ok(None) };
    if store.open_local(&layer.blob)?.is_some() {
        return Ok(None);
    }
    let (tail, place) = match toc::locate(&layer.annotations, layer.blob.size)? {
        Place::Nowhere => return Ok(None),
        Place::At(location) => (None, Some(location)),
        Place::Footer(range) => {
            let tail = read(store, layer, range).await?;
            let place = toc::locate_in_tail(&layer.annotations, layer.blob.size, &tail)?;
            (Some((range, tail)), place)
        }
    };
    let Some(location) = place else { return Ok(None) };
    if location.digest().is_none() {
        let message = "nothing names the digest of its table of contents";
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let stored = match tail {
        Some((range, tail)) if range.contains(&location.blob) => {
            let from = (location.blob.start - range.start) as usize;
            tail.slice(from..from + location.blob.len() as usize)
        }
        _ => read(store, layer, location.blob).await?,
    };
    let (store, diff_id) = (store.clone(), layer.diff_id);
    let index = blocking(move || {
        let index = toc::parse(&location, &stored, diff_id)?;
        // This mount has it in memory; the next one asks again.
        if let Err(error) = store.cache().save_table(&key, &index) {
            store.cache().tell_trouble(&error);
        }
        Ok(index)
    });
    index.await.map(Some)
}

async fn read(store: &Store, layer: &Layer, range: ByteRange) -> Result<bytes::Bytes> {
    let named = |e: Error| e.context(format!("layer {}", layer.blob.digest));
    let source = store.source().map_err(named)?;
    hedge::read(source, &layer.blob, range, store.deadline()).await.map_err(named)
}

/// What the table of a layer is saved under; `None` if it announces none.
fn table_key(layer: &Layer) -> Option<Digest> {
    if matches!(toc::locate(&layer.annotations, layer.blob.size), Ok(Place::Nowhere)) {
        return None;
    }
    let mut key = layer.blob.digest.to_string();
    for (name, value) in &layer.annotations {
        // Lengths: no two lists of annotations have one key.
        key += &format!("\n{} {} {name}={value}", name.len(), value.len());
    }
    Some(Digest::sha256_of(key.as_bytes()))
}

/// What the index by a zTOC is saved under; `None` if the image names no SOCI index.
fn soci_key(layer: &Layer) -> Option<Digest> {
    let key = |soci| format!("{}\nsoci {soci}", layer.blob.digest);
    layer.soci_index.map(|soci| Digest::sha256_of(key(soci).as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Blob;

    fn layer(annotations: &[(&str, &str)]) -> Layer {
        let digest = Digest::sha256_of(b"blob");
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        Layer {
            blob: Blob { digest, size: 1 << 20 },
            diff_id: digest,
            media_type: String::new(),
            annotations: annotations.iter().map(owned).collect(),
            soci_index: None,
        }
    }

    #[test]
    fn tables_that_two_manifests_name_for_one_blob_are_kept_apart() {
        const NAME: &str = "containerd.io/snapshot/stargz/toc.digest";
        let [a, b] = [b"a", b"b"].map(|json| Digest::sha256_of(json).to_string());
        let key = |annotations: &[(&str, &str)]| table_key(&layer(annotations));
        assert_eq!(key(&[]), None);
        assert_eq!(key(&[("org.example", "nothing of a table")]), None);
        let keys = [key(&[(NAME, &a)]), key(&[(NAME, &b)]), key(&[(NAME, &a), ("x", "y")])];
        assert!(keys.iter().all(Option::is_some));
        assert!(keys[0] != keys[1] && keys[0] != keys[2]);
        assert_ne!(keys[0], Some(Digest::sha256_of(b"blob")), "a pass's is nobody's to replace");
    }
}
