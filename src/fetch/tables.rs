//! What is known of a layer without reading it: an index in the cache, or the layer's own table.
//!
//! A table of contents is used when the layer's descriptor names its digest: whoever trusts the
//! manifest can trust it. It is saved under the blob *and* the annotations, because another manifest
//! may name another table for the same blob, and may lie.

use std::sync::Arc;

use super::error::{Error, ErrorKind, Result};
use super::hedge;
use super::span_reader::blocking;
use super::store::Store;
use crate::layout::Digest;
use crate::layout::index::LayerIndex;
use crate::layout::range::ByteRange;
use crate::layout::toc::{self, Location, Place};
use crate::layout::tree::Layer;

/// The index of `layer` that the cache has, whoever made it.
pub fn saved_index(store: &Store, layer: &Layer) -> Option<LayerIndex> {
    let load = |key: &Digest| store.cache().load_index(key).filter(|i| i.diff_id == layer.diff_id);
    load(&layer.blob.digest).or_else(|| load(&table_key(layer)?))
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
    let index = parsed(location, stored, layer.diff_id).await?;
    // This mount has it in memory; the next one asks again.
    if let Err(error) = store.cache().save_index(&key, &index) {
        store.cache().tell_trouble(&error);
    }
    Ok(Some(index))
}

async fn parsed(location: Location, stored: bytes::Bytes, diff_id: Digest) -> Result<LayerIndex> {
    blocking(move || Ok(toc::parse(&location, &stored, diff_id)?)).await
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
