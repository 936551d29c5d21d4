//! One layer more: an image's documents to those of the image on top of it.
//!
//! What is not understood is kept: the documents are changed as JSON, not written anew from what
//! was parsed. Keys are sorted, so the same input gives the same bytes.

use serde_json::{Map, Value, json};

use super::{DOCKER_MANIFEST, Manifest, parse_json};
use crate::layout::digest::{Blob, Digest};
use crate::layout::error::{Error, Result};

/// A layer that is to lie on top.
#[derive(Debug, Clone)]
pub struct NewLayer {
    /// As [`layer_media_type`] has it.
    pub media_type: String,
    /// The layer as stored.
    pub blob: Blob,
    /// Digest of its tar.
    pub diff_id: Digest,
    /// When, as RFC 3339 has it.
    pub created: String,
    /// What made it, for the history.
    pub created_by: String,
}

/// The media type of a new layer in the family of `base`: that of its topmost layer, or of the
/// manifest. `None`: the family has no such compression (Docker's has no zstd).
pub fn layer_media_type(base: &Manifest, is_zstd: bool) -> Option<&'static str> {
    let is_docker = match base.layers.last() {
        Some(top) => top.media_type.starts_with("application/vnd.docker."),
        None => base.media_type.as_deref() == Some(DOCKER_MANIFEST),
    };
    match (is_docker, is_zstd) {
        (true, false) => Some("application/vnd.docker.image.rootfs.diff.tar.gzip"),
        (true, true) => None,
        (false, false) => Some("application/vnd.oci.image.layer.v1.tar+gzip"),
        (false, true) => Some("application/vnd.oci.image.layer.v1.tar+zstd"),
    }
}

/// The configuration `config` with `layer` on top, if there is one: DiffID, history, creation time.
/// `settings` replace its `config` (environment, user, labels). History and layers keep step: a
/// step is added for each lower layer that has none, because readers count.
///
/// # Errors
/// [`Error::Document`] when it is no image configuration.
pub fn append_to_config(
    config: &[u8],
    layer: Option<&NewLayer>,
    settings: Option<&Value>,
) -> Result<Vec<u8>> {
    let mut value: Value = parse_json("config", config)?;
    let fields = object(&mut value, "config")?;
    if let Some(settings) = settings {
        fields.insert("config".to_owned(), settings.clone());
    }
    if let Some(layer) = layer {
        put_on_top(fields, layer)?;
    }
    Ok(value.to_string().into_bytes())
}

fn put_on_top(fields: &mut Map<String, Value>, layer: &NewLayer) -> Result<()> {
    let rootfs = object(fields.entry("rootfs").or_insert_with(|| json!({})), "rootfs")?;
    let diff_ids = array(rootfs, "diff_ids")?;
    let lower = diff_ids.len();
    diff_ids.push(layer.diff_id.to_string().into());
    rootfs.entry("type").or_insert_with(|| json!("layers"));
    let history = array(fields, "history")?;
    let is_step = |step: &&Value| step.get("empty_layer").and_then(Value::as_bool) != Some(true);
    let steps = history.iter().filter(is_step).count();
    for _ in steps..lower {
        history.push(json!({}));
    }
    history.push(json!({"created": layer.created, "created_by": layer.created_by}));
    fields.insert("created".to_owned(), layer.created.as_str().into());
    Ok(())
}

/// The manifest `manifest` with `layer` on top, if there is one, and the configuration `config`.
///
/// # Errors
/// [`Error::Document`] when it is no image manifest.
pub fn append_to_manifest(
    manifest: &[u8],
    layer: Option<&NewLayer>,
    config: &Blob,
) -> Result<Vec<u8>> {
    let mut value: Value = parse_json("manifest", manifest)?;
    let fields = object(&mut value, "manifest")?;
    if let Some(layer) = layer {
        array(fields, "layers")?.push(json!({
            "mediaType": layer.media_type,
            "digest": layer.blob.digest.to_string(),
            "size": layer.blob.size,
        }));
    }
    let descriptor = object(fields.entry("config").or_insert_with(|| json!({})), "config")?;
    // Embedded bytes would be the old ones.
    descriptor.remove("data");
    descriptor.insert("digest".to_owned(), config.digest.to_string().into());
    descriptor.insert("size".to_owned(), config.size.into());
    Ok(value.to_string().into_bytes())
}

/// The `config` object inside a configuration, if it has one.
///
/// # Errors
/// [`Error::Document`] when it is no JSON.
pub fn settings(config: &[u8]) -> Result<Option<Value>> {
    let mut value: Value = parse_json("config", config)?;
    Ok(value.get_mut("config").map(Value::take))
}

/// The object that `value` is; `name` names it in errors.
pub(super) fn object<'v>(value: &'v mut Value, name: &str) -> Result<&'v mut Map<String, Value>> {
    value.as_object_mut().ok_or_else(|| Error::document(name, "it is no JSON object"))
}

/// The array `name`, made where it is missing or null (as Go writes an empty one).
pub(super) fn array<'v>(
    fields: &'v mut Map<String, Value>,
    name: &str,
) -> Result<&'v mut Vec<Value>> {
    let value = fields.entry(name).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().ok_or_else(|| Error::document(name, "it is no JSON array"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> NewLayer {
        let digest = Digest::sha256_of(b"layer");
        NewLayer {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            blob: Blob { digest, size: 5 },
            diff_id: Digest::sha256_of(b"tar"),
            created: "1970-01-01T00:00:00Z".to_owned(),
            created_by: "test".to_owned(),
        }
    }

    #[test]
    fn documents_keep_what_nobody_here_understands() {
        let config = br#"{"x-mine":{"b":[1,null]},"os":"linux","config":{"Env":["A=1"]},
            "rootfs":{"type":"layers","diff_ids":["sha256:a","sha256:b"]},
            "history":[{"created_by":"one"},{"empty_layer":true}]}"#;
        let bytes = append_to_config(config, Some(&layer()), None).expect("appended");
        let value: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(value["x-mine"], json!({"b": [1, null]}));
        assert_eq!(value["config"]["Env"], json!(["A=1"]));
        assert_eq!(value["rootfs"]["diff_ids"][2], layer().diff_id.to_string());
        let history = value["history"].as_array().expect("an array");
        assert_eq!(history.len(), 4, "one step was missing: {history:?}");
        assert_eq!(history[3]["created_by"], "test");
        assert_eq!(value["created"], "1970-01-01T00:00:00Z");
        let replaced = append_to_config(config, Some(&layer()), Some(&json!({"User": "7"})));
        let value: Value = serde_json::from_slice(&replaced.expect("appended")).expect("JSON");
        assert_eq!(value["config"], json!({"User": "7"}));
    }

    #[test]
    fn a_manifest_names_the_new_config_and_no_embedded_one() {
        let manifest = br#"{"schemaVersion":2,"annotations":{"a":"b"},"layers":null,
            "config":{"mediaType":"m","digest":"sha256:old","size":1,"data":"e30="}}"#;
        let blob = Blob { digest: Digest::sha256_of(b"{}"), size: 2 };
        let bytes = append_to_manifest(manifest, Some(&layer()), &blob).expect("appended");
        let value: Value = serde_json::from_slice(&bytes).expect("JSON");
        let digest = blob.digest.to_string();
        assert_eq!(value["config"], json!({"mediaType": "m", "digest": digest, "size": 2}));
        assert_eq!(value["annotations"], json!({"a": "b"}));
        assert_eq!(value["layers"][0]["size"], 5);
    }
}
