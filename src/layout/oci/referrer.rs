//! Indexes of an image's layers as a manifest that refers to the image, and the lists of such
//! manifests under a tag (image-spec 1.1 `manifest.md`; distribution-spec 1.1, "Referrers Tag
//! Schema").

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::append::{array, object};
use super::{Descriptor, ImageIndex, LAYERS_MAX, Manifest, OCI_INDEX, OCI_MANIFEST, parse_json};
use crate::layout::digest::{Blob, Digest};
use crate::layout::error::{Error, Result};

/// What the manifest is. The version is that of all that is in it.
pub const INDEX_ARTIFACT: &str = "application/vnd.layoutfs.index.v4";

/// One layer's saved index.
pub const LAYER_INDEX: &str = "application/vnd.layoutfs.layer-index.v4";

/// On a layer's saved index: the digest of the layer as stored.
pub const LAYER_DIGEST: &str = "io.layoutfs.layer.digest";

/// The media type of [`EMPTY`] (image-spec `manifest.md`, "Guidance for an Empty Descriptor").
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// The blob that stands where a manifest must have one and has nothing to say.
pub const EMPTY: &[u8] = b"{}";

/// Tags are cut to these (distribution-spec, "Referrers Tag Schema").
const TAG_ALGORITHM_CHARS: usize = 32;
const TAG_HEX_CHARS: usize = 64;

/// The saved index of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerIndexBlob {
    /// The layer as stored.
    pub layer: Digest,
    /// Its saved index.
    pub index: Blob,
}

/// Saved indexes of the layers of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexArtifact {
    /// The manifest of the image.
    pub subject: Descriptor,
    /// Each layer once, in any order. Not every layer of the image needs to be here.
    pub layers: Vec<LayerIndexBlob>,
}

impl IndexArtifact {
    /// The manifest that says so. The same content gives the same bytes; of a layer that is there
    /// twice, as images have them, the first counts.
    ///
    /// # Errors
    /// [`Error::Document`] without any layer, [`Error::Limit`] above [`LAYERS_MAX`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let name = "manifest of indexes";
        if self.layers.is_empty() {
            return Err(Error::document(name, "there is no index to put into it"));
        }
        let mut seen = HashSet::new();
        let layers: Vec<Value> = self
            .layers
            .iter()
            .filter(|one| seen.insert(one.layer))
            .map(|one| {
                let mut value = reference(LAYER_INDEX, &one.index);
                value["annotations"] = json!({ LAYER_DIGEST: one.layer.to_string() });
                value
            })
            .collect();
        check_count(name, layers.len())?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": INDEX_ARTIFACT,
            "config": reference(OCI_EMPTY, &empty()),
            "layers": layers,
            "subject": reference(&self.subject.media_type, &self.subject.blob),
        });
        Ok(manifest.to_string().into_bytes())
    }

    /// Reads such a manifest; `name` names it in errors. That its `subject` is the image that one
    /// wants is for the caller to see. Layers of other media types are passed over.
    ///
    /// # Errors
    /// [`Error::Document`] for anything else, and for a layer that is named twice;
    /// [`Error::Limit`] as [`Manifest::parse`].
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        let manifest = Manifest::parse(name, bytes)?;
        let artifact_type = artifact_type(&manifest);
        if artifact_type != INDEX_ARTIFACT {
            let reason = format!("artifact type {artifact_type:?}, expected {INDEX_ARTIFACT:?}");
            return Err(Error::document(name, reason));
        }
        let subject = manifest.subject.ok_or_else(|| Error::document(name, "it has no subject"))?;
        let mut seen = HashSet::new();
        let mut layers = Vec::new();
        for descriptor in manifest.layers.iter().filter(|d| d.media_type == LAYER_INDEX) {
            let index = descriptor.blob;
            let named = descriptor.annotations.get(LAYER_DIGEST).ok_or_else(|| {
                let reason = format!("index {} has no annotation {LAYER_DIGEST}", index.digest);
                Error::document(name, reason)
            })?;
            let layer: Digest =
                named.parse().map_err(|e: Error| Error::document(name, e.to_string()))?;
            if !seen.insert(layer) {
                return Err(Error::document(name, format!("it has two indexes of layer {layer}")));
            }
            layers.push(LayerIndexBlob { layer, index });
        }
        Ok(IndexArtifact { subject, layers })
    }
}

/// The descriptor of [`EMPTY`].
pub fn empty() -> Blob {
    Blob { digest: Digest::sha256_of(EMPTY), size: EMPTY.len() as u64 }
}

/// The tag under which referrers of `subject` are listed where the registry does not list them.
pub fn tag_of(subject: &Digest) -> String {
    let cut = |text: &str, chars| text.chars().take(chars).collect::<String>();
    let algorithm = cut(subject.algorithm(), TAG_ALGORITHM_CHARS);
    format!("{algorithm}-{}", cut(&subject.hex(), TAG_HEX_CHARS))
}

/// How a list of referrers describes `manifest`, whose media type and bytes are given.
pub fn entry(manifest: &Manifest, media_type: String, blob: Blob) -> Descriptor {
    Descriptor {
        artifact_type: Some(artifact_type(manifest).to_owned()).filter(|t| !t.is_empty()),
        annotations: manifest.annotations.clone(),
        ..Descriptor::new(media_type, blob)
    }
}

/// The list of referrers `list` with `entry` at its end; a new one for `None`. `None` when it is
/// there already. What is in it stays, also what is not understood.
///
/// # Errors
/// [`Error::Document`] when `list`, which `name` names, is no image index; [`Error::Limit`] when
/// it is, or would become, larger than a document may be.
pub fn add_to_list(name: &str, list: Option<&[u8]>, entry: &Descriptor) -> Result<Option<Vec<u8>>> {
    let mut value = match list {
        Some(bytes) => {
            let index = ImageIndex::parse(name, bytes)?;
            if index.manifests.iter().any(|known| known.blob.digest == entry.blob.digest) {
                return Ok(None);
            }
            parse_json(name, bytes)?
        }
        None => json!({"schemaVersion": 2, "mediaType": OCI_INDEX}),
    };
    let mut added = reference(&entry.media_type, &entry.blob);
    if let Some(artifact_type) = &entry.artifact_type {
        added["artifactType"] = artifact_type.as_str().into();
    }
    if !entry.annotations.is_empty() {
        added["annotations"] = json!(entry.annotations);
    }
    let fields: &mut Map<String, Value> = object(&mut value, name)?;
    array(fields, "manifests")?.push(added);
    let bytes = value.to_string().into_bytes();
    super::check_size(name, bytes.len() as u64)?;
    Ok(Some(bytes))
}

/// What an artifact is: its own word, else its config's media type (image-spec `manifest.md`).
pub(super) fn artifact_type(manifest: &Manifest) -> &str {
    let own = manifest.artifact_type.as_deref().filter(|own| !own.is_empty());
    own.unwrap_or(&manifest.config.media_type)
}

/// A descriptor.
pub(super) fn reference(media_type: &str, blob: &Blob) -> Value {
    json!({"mediaType": media_type, "digest": blob.digest.to_string(), "size": blob.size})
}

fn check_count(name: &str, layers: usize) -> Result<()> {
    if layers <= LAYERS_MAX {
        return Ok(());
    }
    Err(Error::Limit { what: format!("number of layers of {name}"), limit: LAYERS_MAX as u64 })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::slice::from_ref;

    use proptest::prelude::*;

    use super::*;
    use crate::layout::oci::DOCKER_MANIFEST;

    fn blob(text: &str) -> Blob {
        Blob { digest: Digest::sha256_of(text.as_bytes()), size: text.len() as u64 }
    }

    fn indexed(layer: &str, index: &str) -> LayerIndexBlob {
        LayerIndexBlob { layer: blob(layer).digest, index: blob(index) }
    }

    fn artifact() -> IndexArtifact {
        let subject = Descriptor::new(DOCKER_MANIFEST, blob("image"));
        IndexArtifact { subject, layers: vec![indexed("layer", "index")] }
    }

    #[test]
    fn the_manifest_has_these_bytes() {
        let layer = blob("layer").digest;
        let (index, image) = (blob("index").digest, blob("image").digest);
        let expected = format!(
            r#"{{"artifactType":"application/vnd.layoutfs.index.v4","config":{{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","mediaType":"application/vnd.oci.empty.v1+json","size":2}},"layers":[{{"annotations":{{"io.layoutfs.layer.digest":"{layer}"}},"digest":"{index}","mediaType":"application/vnd.layoutfs.layer-index.v4","size":5}}],"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2,"subject":{{"digest":"{image}","mediaType":"application/vnd.docker.distribution.manifest.v2+json","size":5}}}}"#
        );
        assert_eq!(String::from_utf8(artifact().to_bytes().unwrap()).unwrap(), expected);
    }

    #[test]
    fn a_manifest_without_what_it_needs_is_refused() {
        assert!(IndexArtifact { layers: vec![], ..artifact() }.to_bytes().is_err());
        let bytes = artifact().to_bytes().unwrap();
        let with = |path: &str, change: Value| {
            let mut value: Value = serde_json::from_slice(&bytes).unwrap();
            *value.pointer_mut(path).unwrap() = change;
            IndexArtifact::parse("it", value.to_string().as_bytes())
        };
        let twice = serde_json::from_slice::<Value>(&bytes).unwrap()["layers"][0].clone();
        for (path, change, words) in [
            ("/artifactType", json!("application/vnd.layoutfs.index.v2"), "index.v2"),
            ("/artifactType", Value::Null, OCI_EMPTY),
            ("/subject", Value::Null, "no subject"),
            ("/layers/0/annotations", json!({}), "no annotation"),
            ("/layers/0/annotations", json!({ LAYER_DIGEST: "sha256:x" }), "invalid digest"),
            ("/layers", json!([twice, twice]), "two indexes"),
        ] {
            let refused = with(path, change.clone()).unwrap_err().to_string();
            assert!(refused.contains(words), "{path} {change}: {refused}");
        }
        let other = with("/layers/0/mediaType", json!("application/x")).unwrap();
        assert_eq!(other.layers, [], "a layer of another kind is nobody's index");
    }

    #[test]
    fn a_tag_is_cut_as_the_specification_says() {
        let hex = "ab".repeat(32);
        assert_eq!(tag_of(&format!("sha256:{hex}").parse().unwrap()), format!("sha256-{hex}"));
        let long: Digest = format!("sha512:{hex}{hex}").parse().unwrap();
        assert_eq!(tag_of(&long), format!("sha512-{hex}"));
    }

    #[test]
    fn a_list_keeps_what_nobody_here_understands_and_names_each_once() {
        let bytes = artifact().to_bytes().unwrap();
        let manifest = Manifest::parse("it", &bytes).unwrap();
        let own = Blob { digest: Digest::sha256_of(&bytes), size: bytes.len() as u64 };
        let entry = entry(&manifest, OCI_MANIFEST.to_owned(), own);
        assert_eq!(entry.artifact_type.as_deref(), Some(INDEX_ARTIFACT));
        let first = add_to_list("list", None, &entry).unwrap().unwrap();
        assert_eq!(ImageIndex::parse("list", &first).unwrap().manifests[..], *from_ref(&entry));
        assert_eq!(add_to_list("list", Some(&first), &entry), Ok(None));

        let other = blob("other").digest;
        let list = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","x-mine":[1,null],"manifests":[
                {{"mediaType":"m","digest":"{other}","size":5,"x-own":true}}]}}"#
        );
        let both = add_to_list("list", Some(list.as_bytes()), &entry).unwrap().unwrap();
        let value: Value = serde_json::from_slice(&both).unwrap();
        assert_eq!(value["x-mine"], json!([1, null]));
        assert_eq!(value["manifests"][0]["x-own"], true);
        assert_eq!(ImageIndex::parse("list", &both).unwrap().manifests[1], entry);
        assert!(add_to_list("list", Some(&bytes), &entry).is_err(), "a manifest is no list");
        let nulls = br#"{"schemaVersion":2,"manifests":null}"#;
        assert!(add_to_list("list", Some(nulls), &entry).unwrap().is_some());
        let annotations = [("a".to_owned(), "x".repeat(super::super::DOCUMENT_BYTES_MAX as usize))];
        let large = Descriptor { annotations: annotations.into(), ..entry };
        assert!(matches!(add_to_list("list", None, &large), Err(Error::Limit { .. })));
    }

    #[test]
    fn an_artifact_without_a_type_is_what_its_config_is() {
        let digest = blob("x").digest;
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/x","digest":"{digest}",
                "size":1}},"layers":[],"annotations":{{"a":"b"}}}}"#
        );
        let manifest = Manifest::parse("it", text.as_bytes()).unwrap();
        let entry = entry(&manifest, OCI_MANIFEST.to_owned(), blob("x"));
        assert_eq!(entry.artifact_type.as_deref(), Some("application/x"));
        assert_eq!(entry.annotations["a"], "b");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            layers in prop::collection::btree_map(any::<[u8; 32]>(), any::<([u8; 32], u64)>(), 1..20),
            subject in any::<[u8; 32]>(),
        ) {
            let layers = layers.into_iter().map(|(layer, (digest, size))| LayerIndexBlob {
                layer: Digest::Sha256(layer),
                // Of an int64.
                index: Blob { digest: Digest::Sha256(digest), size: size >> 1 },
            });
            let blob = Blob { digest: Digest::Sha256(subject), size: 7 };
            let subject = Descriptor::new(OCI_MANIFEST, blob);
            let artifact = IndexArtifact { subject, layers: layers.collect() };
            let bytes = artifact.to_bytes().unwrap();
            prop_assert_eq!(IndexArtifact::parse("it", &bytes), Ok(artifact.clone()));
            // A layer that the image has twice is there once.
            let twice = [artifact.layers.clone(), artifact.layers.clone()].concat();
            let twice = IndexArtifact { layers: twice, ..artifact };
            prop_assert_eq!(twice.to_bytes(), Ok(bytes));
        }
    }
}
