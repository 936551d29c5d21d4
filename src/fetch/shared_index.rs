//! Indexes of layers in a registry, beside the image that they are of: found, fetched, pushed.
//!
//! An index says which bytes are shown as which file, and nobody can tell a wrong one from a right
//! one without reading the layer. So nothing here is used because a registry has it: whoever asks
//! names an artifact by its digest, and trusts all that is in it.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::first_pass::{self, Keep};
use super::registry::tries::Tries;
use super::registry::{Attached, Registry};
use super::span_reader::blocking;
use super::store::Store;
use super::{Deadline, Error, ErrorKind, Result, Source as _, tables};
use crate::layout::index::{LayerIndex, saved};
use crate::layout::oci::referrer::{self, INDEX_ARTIFACT, IndexArtifact, LayerIndexBlob};
use crate::layout::oci::{Descriptor, Manifest};
use crate::layout::soci::manifest::{ARTIFACT_TYPE_V1, SociIndex, Version};
use crate::layout::tree::Layer;
use crate::layout::{Blob, Digest, soci};

/// The largest index of one layer that is fetched. Ours have 0.6 % of their layer, so that this is
/// one of 40 GB.
const INDEX_BYTES_MAX: u64 = 256 << 20;

/// Most bytes of the indexes of one image: some of them are in memory at once.
const INDEXES_BYTES_MAX: u64 = 1 << 30;

/// Indexes that are fetched, or pushed, at a time: each is one request, and most are small.
const AT_ONCE: usize = 4;

/// What was fetched of one layer.
#[derive(Debug)]
pub struct Fetched {
    /// The layer.
    pub layer: Layer,
    /// Its index; why it cannot be used.
    pub index: Result<LayerIndex>,
}

/// What somebody can name: indexes of an image's layers.
#[derive(Debug)]
pub enum Artifact {
    /// As we push them.
    Own(IndexArtifact),
    /// SOCI's, of either version.
    Soci(SociIndex),
}

impl Artifact {
    /// Its indexes are zTOCs.
    pub fn is_soci(&self) -> bool {
        matches!(self, Artifact::Soci(_))
    }

    /// They are, and the image's manifest is to name it.
    pub fn is_soci_v2(&self) -> bool {
        matches!(self, Artifact::Soci(soci) if soci.version == Version::V2)
    }

    /// The index of a layer as it is stored, if it is in it.
    fn index_of(&self, layer: &Digest) -> Option<Blob> {
        match self {
            Artifact::Own(own) => own.layers.iter().find(|l| l.layer == *layer).map(|l| l.index),
            Artifact::Soci(soci) => soci.ztoc_of(layer).map(|ztoc| ztoc.ztoc),
        }
    }
}

/// Indexes in a registry.
#[derive(Debug)]
pub struct Shared {
    /// The artifact, and who lists it.
    pub attached: Attached,
    /// How many of the blobs the repository did not have before.
    pub blobs_sent: usize,
}

/// The layers of which the cache has no index, each once.
pub fn unknown<'a>(store: &Store, layers: &'a [Layer]) -> Vec<&'a Layer> {
    let mut seen = HashSet::new();
    let once = layers.iter().filter(|layer| seen.insert(layer.blob.digest));
    once.filter(|layer| !tables::is_known(store, layer)).collect()
}

/// The index of `layer` that can be shared: the cache's, else that of a pass over the whole layer,
/// which the cache then keeps. `true`: it took a pass. `None`: the layer brings a table of contents,
/// which everybody can read, and which only the manifest that names it can vouch for.
///
/// # Errors
/// As [`first_pass::run`].
pub async fn made(store: &Arc<Store>, layer: &Layer) -> Result<Option<(LayerIndex, bool)>> {
    if let Some(index) = tables::shareable_index(store, layer) {
        return Ok(Some((index, false)));
    }
    let brings_table = tables::saved_table(store, layer).is_some()
        || matches!(tables::own_table(store, layer).await, Ok(Some(_)));
    if brings_table {
        return Ok(None);
    }
    Ok(Some((first_pass::run(store, layer, Keep::WhatHelps).await?.index, true)))
}

/// The artifacts with indexes that `registry` lists for the image whose manifest is `image`: ours, and
/// SOCI's where there is none of ours. Anybody who may push there can have put them there.
///
/// # Errors
/// As [`Registry::referrers`].
pub async fn listed(
    registry: &Registry,
    image: &Digest,
    deadline: Deadline,
) -> Result<Vec<Descriptor>> {
    let own = registry.referrers(image, Some(INDEX_ARTIFACT), deadline).await?;
    match own.is_empty() {
        true => registry.referrers(image, Some(ARTIFACT_TYPE_V1), deadline).await,
        false => Ok(own),
    }
}

/// The artifact that `digest` names, if it is of the image whose manifest is `image`.
///
/// # Errors
/// [`ErrorKind::DigestMismatch`] for other bytes, [`ErrorKind::Invalid`] for another image's artifact
/// and for what is none, and what requests fail with.
pub async fn artifact(
    registry: &Registry,
    digest: &Digest,
    image: &Digest,
    deadline: Deadline,
) -> Result<Artifact> {
    let mut tries = Tries::new(deadline);
    let manifest = loop {
        match registry.manifest(&digest.to_string(), tries.deadline()).await {
            Ok(manifest) => break manifest,
            Err(error) if error.kind == ErrorKind::NotFound => {
                let message = "there is no such artifact (one that is in another repository than \
                               the image is named as REGISTRY/REPO@sha256:…)";
                return Err(Error::new(ErrorKind::NotFound, message));
            }
            Err(error) => tries.again(error).await?,
        }
    };
    let name = format!("artifact {digest}");
    let blob = Blob { digest: *digest, size: manifest.bytes.len() as u64 };
    let (artifact, subject) = match is_soci(&name, &manifest.bytes)? {
        true => {
            let index = SociIndex::parse(&blob, &manifest.bytes)?;
            let subject = index.subject.as_ref().map(|subject| subject.blob.digest);
            (Artifact::Soci(index), subject)
        }
        false => {
            let artifact = IndexArtifact::parse(&name, &manifest.bytes)?;
            let subject = artifact.subject.blob.digest;
            (Artifact::Own(artifact), Some(subject))
        }
    };
    match subject.filter(|subject| subject != image) {
        None => Ok(artifact),
        Some(other) => {
            let message =
                format!("its indexes are of the image {other}, and this image is {image}");
            Err(Error::new(ErrorKind::Invalid, message))
        }
    }
}

fn is_soci(name: &str, manifest: &[u8]) -> Result<bool> {
    let manifest = Manifest::parse(name, manifest)?;
    Ok(Version::of(&manifest.config.media_type).is_some())
}

/// The indexes in `artifact` of those `layers` that it has, each checked against its layer as far as
/// that can be without reading it: DiffID (which a zTOC does not have), and no span beyond the layer's
/// end. Nothing is saved.
///
/// Of a layer: [`ErrorKind::DigestMismatch`] for other bytes; [`ErrorKind::Invalid`] for an index that
/// is too large, of another version, damaged, or another layer's; and what requests fail with.
///
/// # Errors
/// [`ErrorKind::Invalid`]: all of them together are too large.
pub async fn fetch(
    registry: &Registry,
    artifact: &Artifact,
    layers: &[&Layer],
    deadline: Deadline,
) -> Result<Vec<Fetched>> {
    let found = |layer: &&Layer| Some((artifact.index_of(&layer.blob.digest)?, (*layer).clone()));
    let wanted: Vec<(Blob, Layer)> = layers.iter().filter_map(found).collect();
    let bytes = wanted.iter().fold(0, |sum: u64, (index, _)| sum.saturating_add(index.size));
    if bytes > INDEXES_BYTES_MAX {
        let message = format!("indexes of {bytes} bytes, expected at most {INDEXES_BYTES_MAX}");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let is_soci = artifact.is_soci();
    let fetching = futures_util::stream::iter(wanted).map(|(index, layer)| async move {
        let fetched = fetch_one(registry, &index, &layer, is_soci, deadline.renewed()).await;
        let named = |e: Error| e.context(format!("index of layer {}", layer.blob.digest));
        Fetched { index: fetched.map_err(named), layer }
    });
    Ok(fetching.buffer_unordered(AT_ONCE).collect().await)
}

async fn fetch_one(
    registry: &Registry,
    index: &Blob,
    layer: &Layer,
    is_soci: bool,
    deadline: Deadline,
) -> Result<LayerIndex> {
    let bytes = fetch_blob(registry, index, deadline).await?;
    let layer = layer.clone();
    blocking(move || match is_soci {
        true => Ok(soci::parse_ztoc(&bytes, layer.blob.size, layer.diff_id)?),
        false => checked(&bytes, &layer),
    })
    .await
}

async fn fetch_blob(registry: &Registry, blob: &Blob, deadline: Deadline) -> Result<Bytes> {
    let mut tries = Tries::new(deadline);
    loop {
        match registry.blob_bytes(blob, INDEX_BYTES_MAX, tries.deadline()).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => tries.again(error).await?,
        }
    }
}

/// The index that `bytes` hold, if it can be one of `layer`.
fn checked(bytes: &[u8], layer: &Layer) -> Result<LayerIndex> {
    let index = saved::decode(bytes)?;
    let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
    if index.diff_id != layer.diff_id {
        let (expected, got) = (layer.diff_id, index.diff_id);
        return invalid(format!("it is of DiffID {got}, the image says {expected}"));
    }
    let size = layer.blob.size;
    match index.spans.iter().find(|span| span.blob.end > size) {
        Some(span) => invalid(format!("a span of bytes {} in a layer of {size}", span.blob)),
        None => Ok(index),
    }
}

/// Pushes the encoded indexes of layers of `image` into a repository, and an artifact that names
/// them. The same indexes give the same artifact.
///
/// # Errors
/// [`ErrorKind::Invalid`] without any index, and as [`Registry::push_blob`] and
/// [`Registry::attach`].
pub async fn push(
    registry: &Registry,
    image: &Descriptor,
    indexes: Vec<(Digest, Bytes)>,
    deadline: Deadline,
) -> Result<Shared> {
    if let Some((layer, bytes)) = indexes.iter().find(|one| one.1.len() as u64 > INDEX_BYTES_MAX) {
        let message = format!(
            "{}: the index of layer {layer} has {} bytes, and nobody would fetch more than \
             {INDEX_BYTES_MAX}",
            registry.name(),
            bytes.len()
        );
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let pushed: Vec<(LayerIndexBlob, bool)> = futures_util::stream::iter(indexes)
        .map(|(layer, bytes)| async move {
            let pushed = registry.push_blob(&bytes, deadline.renewed()).await?;
            Ok::<_, Error>((LayerIndexBlob { layer, index: pushed.blob }, pushed.is_new))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let blobs_sent = pushed.iter().filter(|(_, is_new)| *is_new).count();
    let layers = pushed.into_iter().map(|(layer, _)| layer).collect();
    let manifest: Bytes = IndexArtifact { subject: image.clone(), layers }.to_bytes()?.into();
    registry.push_blob(&Bytes::from_static(referrer::EMPTY), deadline.renewed()).await?;
    let attached = registry.attach(&manifest, deadline.renewed()).await?;
    Ok(Shared { attached, blobs_sent })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use super::*;
    use crate::layout::index::{Codec, Proof, Segments, Span};
    use crate::layout::range::ByteRange;

    #[test]
    fn an_index_is_of_its_layer_and_ends_with_it() {
        let span = Span {
            blob: ByteRange::new(0, 1024),
            tar: ByteRange::new(0, 1024),
            skip: 0,
            codec: Codec::Stored,
            proof: Proof::Stored(Segments::One([7; 32])),
        };
        let diff_id = Digest::sha256_of(b"tar");
        let index = LayerIndex::plain(diff_id, 1024, vec![], vec![span]);
        let bytes = saved::encode(&index).unwrap();
        let layer = |diff_id, size| Layer {
            blob: Blob { digest: Digest::sha256_of(b"blob"), size },
            diff_id,
            media_type: "tar".to_owned(),
            annotations: BTreeMap::new(),
            soci_index: None,
        };
        assert_eq!(checked(&bytes, &layer(diff_id, 1024)).unwrap(), index);
        for (layer, words) in [
            (layer(Digest::sha256_of(b"other"), 1024), "the image says"),
            (layer(diff_id, 1023), "in a layer of 1023"),
        ] {
            let error = checked(&bytes, &layer).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.to_string().contains(words), "{error}");
        }
        assert_eq!(checked(b"nothing", &layer(diff_id, 9)).unwrap_err().kind, ErrorKind::Invalid);
    }
}
