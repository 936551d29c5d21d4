//! What an exported application image lacks of the extended run image that its layers lie on: three
//! configurations to one.
//!
//! The lifecycle exports to a layout on the base's configuration, though it adds the extension's
//! layers. So three are compared, as one merges changes: what the application changed stays, and
//! everything else becomes what the extension says. As in [`super::append`], what is not understood
//! is kept, and keys are sorted.

mod environment;

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::append::object;
use super::{DOCKER_MANIFEST, check_size, parse_json};
use crate::layout::digest::{Blob, Digest};
use crate::layout::error::{Error, Result};

/// In this label the lifecycle describes what it exported (Platform specification, "Layer
/// Metadata").
pub const LIFECYCLE_METADATA: &str = "io.buildpacks.lifecycle.metadata";

/// What only the application can know.
const OF_THE_APPLICATION: [&str; 3] = ["WorkingDir", "Entrypoint", "Cmd"];

/// The media types of equal layers, in OCI's words and in Docker's.
const LAYER_TYPES: [(&str, &str); 2] = [
    (
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ),
    ("application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"),
];

/// The configurations of three images.
#[derive(Debug, Clone, Copy)]
pub struct Configs<'a> {
    /// The run image.
    pub base: &'a [u8],
    /// The run image with the extension's layers and settings.
    pub extended: &'a [u8],
    /// The application, with the extension's layers but without its settings.
    pub exported: &'a [u8],
}

/// A configuration that had to be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finalized {
    /// The application's configuration.
    pub config: Vec<u8>,
    /// What is another than before.
    pub changes: Changes,
}

/// Names of what was changed, each sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Variables of the environment.
    pub env: Vec<String>,
    /// Labels.
    pub labels: Vec<String>,
    /// Other settings: `User`. `Env`, if only the order of its entries changed.
    pub settings: Vec<String>,
}

/// The exported configuration with the settings of the extended one; `None`, if it has them. Doing
/// it twice is doing it once. `run_image` is the run image as the lifecycle names it in a layout
/// directory, `<path>@<digest>`: an unpatched one exports the digest of an image that is empty.
///
/// # Errors
/// [`Error::Document`] for what is no image configuration, and for layers that do not lie on the
/// base's; [`Error::Limit`] above [`super::DOCUMENT_BYTES_MAX`].
pub fn finalize(configs: Configs<'_>, run_image: &str) -> Result<Option<Finalized>> {
    let base: Value = parse_json("configuration of the run image", configs.base)?;
    let extended: Value = parse_json("configuration of the extended image", configs.extended)?;
    let mut exported: Value = parse_json("configuration of the application", configs.exported)?;
    check_layers(&base, &extended, &exported)?;
    let before = settings(&exported, "the application")?;
    let base = settings(&base, "the run image")?;
    let extended = settings(&extended, "the extended image")?;
    let after = merge(&base, &extended, &before, run_image)?;
    let changes = compare(&before, &after)?;
    if changes == Changes::default() {
        return Ok(None);
    }
    object(&mut exported, "configuration of the application")?
        .insert("config".to_owned(), Value::Object(after));
    let config = exported.to_string().into_bytes();
    check_size("the finalized configuration", config.len() as u64)?;
    Ok(Some(Finalized { config, changes }))
}

/// `manifest` with the media types of one family, its own; and how many layers had others. The
/// lifecycle puts layers of Docker's types on a base of OCI's: the bytes are the same, but tools that
/// convert between the families refuse such a manifest.
///
/// # Errors
/// [`Error::Document`] when it is no manifest.
pub fn with_one_family(manifest: &[u8]) -> Result<(Vec<u8>, usize)> {
    let mut value: Value = parse_json("manifest", manifest)?;
    object(&mut value, "manifest")?;
    let of = |value: &Value| value.get("mediaType").and_then(Value::as_str).map(str::to_owned);
    let is_docker = of(&value).as_deref() == Some(DOCKER_MANIFEST);
    let layers = value.get_mut("layers").and_then(Value::as_array_mut);
    let mut changed = 0;
    for layer in layers.into_iter().flatten() {
        let Some(media_type) = of(layer) else { continue };
        let pair = LAYER_TYPES
            .iter()
            .find(|(oci, docker)| media_type == *(if is_docker { oci } else { docker }));
        if let Some((oci, docker)) = pair {
            let own = if is_docker { docker } else { oci };
            object(layer, "manifest")?.insert("mediaType".to_owned(), (*own).into());
            changed += 1;
        }
    }
    match changed {
        0 => Ok((manifest.to_vec(), 0)),
        _ => Ok((value.to_string().into_bytes(), changed)),
    }
}

/// The index (or `index.json`) `index` with manifest `new` wherever it names `old`; annotations
/// stay.
///
/// # Errors
/// [`Error::Document`] when it is no index, or does not name `old`.
pub fn replace_manifest(index: &[u8], old: &Digest, new: &Blob) -> Result<Vec<u8>> {
    let mut value: Value = parse_json("index.json", index)?;
    let old = old.to_string();
    let manifests = value.get_mut("manifests").and_then(Value::as_array_mut);
    let mut replaced = 0;
    for descriptor in manifests.into_iter().flatten() {
        if descriptor.get("digest").and_then(Value::as_str) != Some(&old) {
            continue;
        }
        let fields = object(descriptor, "index.json")?;
        // Embedded bytes would be the old ones.
        fields.remove("data");
        fields.insert("digest".to_owned(), new.digest.to_string().into());
        fields.insert("size".to_owned(), new.size.into());
        replaced += 1;
    }
    if replaced == 0 {
        return Err(Error::document("index.json", format!("it does not name manifest {old}")));
    }
    Ok(value.to_string().into_bytes())
}

/// The extension's layers lie on the base's, and the application's on those of the extension. (Not
/// by their DiffIDs: the lifecycle writes an extension's layers anew, with other times.)
fn check_layers(base: &Value, extended: &Value, exported: &Value) -> Result<()> {
    let base = diff_ids(base, "the run image")?;
    let extended = diff_ids(extended, "the extended image")?;
    let exported = diff_ids(exported, "the application")?;
    for (upper, whose) in [(&extended, "the extended image"), (&exported, "the application")] {
        if !upper.starts_with(&base) {
            let reason = format!(
                "its lowest layers are not the {} of the run image: another run image lies below it",
                base.len()
            );
            return Err(Error::document(whose, reason));
        }
    }
    if exported.len() < extended.len() {
        let reason = format!(
            "{} layers, expected at least the {} of the extended image: was the exporter given \
             another directory of extended images?",
            exported.len(),
            extended.len()
        );
        return Err(Error::document("the application", reason));
    }
    Ok(())
}

fn diff_ids<'v>(config: &'v Value, whose: &str) -> Result<Vec<&'v str>> {
    let Some(rootfs) = config.get("rootfs") else {
        return Err(Error::document(whose, "it has no rootfs: it is no container image"));
    };
    let list = match rootfs.get("diff_ids") {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(list) => list.as_array().and_then(|ids| ids.iter().map(Value::as_str).collect()),
    };
    list.ok_or_else(|| Error::document(whose, "diff_ids: expected a list of digests"))
}

/// The `config` object inside a configuration; null is an empty one, as for Go.
fn settings(config: &Value, whose: &str) -> Result<Map<String, Value>> {
    match config.get("config") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(settings)) => Ok(settings.clone()),
        Some(_) => Err(Error::document(whose, "config: it is no JSON object")),
    }
}

fn merge(
    base: &Map<String, Value>,
    extended: &Map<String, Value>,
    exported: &Map<String, Value>,
    run_image: &str,
) -> Result<Map<String, Value>> {
    let mut merged = extended.clone();
    let env = environment::merge(&env(base)?, &env(extended)?, &env(exported)?);
    if !env.is_empty() {
        merged.insert("Env".to_owned(), env.into());
    }
    let mut labels = merge_labels(&labels(base)?, labels(extended)?, &labels(exported)?);
    name_run_image(&mut labels, run_image)?;
    if !labels.is_empty() {
        merged.insert("Labels".to_owned(), labels.into());
    }
    for name in OF_THE_APPLICATION {
        match exported.get(name) {
            Some(value) => merged.insert(name.to_owned(), value.clone()),
            None => merged.remove(name),
        };
    }
    // What neither image below ever heard of came with the application.
    for (name, value) in exported {
        if !base.contains_key(name) {
            merged.entry(name.as_str()).or_insert_with(|| value.clone());
        }
    }
    Ok(merged)
}

fn env(settings: &Map<String, Value>) -> Result<Vec<String>> {
    let entries = match settings.get("Env") {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(list) => list
            .as_array()
            .and_then(|list| list.iter().map(|entry| entry.as_str().map(str::to_owned)).collect()),
    };
    entries.ok_or_else(|| Error::document("config", "Env: expected a list of strings"))
}

fn labels(settings: &Map<String, Value>) -> Result<Map<String, Value>> {
    match settings.get("Labels") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(labels)) => Ok(labels.clone()),
        Some(_) => Err(Error::document("config", "Labels: it is no JSON object")),
    }
}

/// `extended`, and what `exported` has other than `base`. (`io.buildpacks.rebasable` needs no rule
/// of its own: the extender writes it into the extended image, and the exporter does not touch it.)
/// The lifecycle's own label is the application's, even where it says what the base's says: a base
/// may be an application image itself.
fn merge_labels(
    base: &Map<String, Value>,
    mut extended: Map<String, Value>,
    exported: &Map<String, Value>,
) -> Map<String, Value> {
    for (name, value) in exported {
        if name == LIFECYCLE_METADATA || base.get(name) != Some(value) {
            extended.insert(name.clone(), value.clone());
        }
    }
    extended
}

/// Makes `runImage.reference` of the lifecycle's own label name the run image.
fn name_run_image(labels: &mut Map<String, Value>, run_image: &str) -> Result<()> {
    let Some(Value::String(text)) = labels.get(LIFECYCLE_METADATA) else { return Ok(()) };
    let mut metadata: Value = parse_json(&format!("label {LIFECYCLE_METADATA}"), text.as_bytes())?;
    let Some(Value::Object(described)) = metadata.get_mut("runImage") else { return Ok(()) };
    if described.get("reference").and_then(Value::as_str) == Some(run_image) {
        return Ok(());
    }
    described.insert("reference".to_owned(), run_image.into());
    labels.insert(LIFECYCLE_METADATA.to_owned(), metadata.to_string().into());
    Ok(())
}

fn compare(before: &Map<String, Value>, after: &Map<String, Value>) -> Result<Changes> {
    let (env_before, env_after) = (env(before)?, env(after)?);
    let (labels_before, labels_after) = (labels(before)?, labels(after)?);
    let variables = environment::changed(&env_before, &env_after);
    let is_reordered = variables.is_empty() && env_before != env_after;
    let others = names_of(before, after).filter(|name| match *name {
        "Env" => is_reordered,
        "Labels" => false,
        name => said(before.get(name)) != said(after.get(name)),
    });
    Ok(Changes {
        settings: others.map(str::to_owned).collect(),
        labels: names_of(&labels_before, &labels_after)
            .filter(|name| labels_before.get(*name) != labels_after.get(*name))
            .map(str::to_owned)
            .collect(),
        env: variables,
    })
}

fn names_of<'v>(
    before: &'v Map<String, Value>,
    after: &'v Map<String, Value>,
) -> impl Iterator<Item = &'v str> {
    let names: BTreeSet<&str> = before.keys().chain(after.keys()).map(String::as_str).collect();
    names.into_iter()
}

/// A setting that says something: Go writes nothing, null or an empty value for the same.
fn said(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    })
}

#[cfg(test)]
mod tests;
