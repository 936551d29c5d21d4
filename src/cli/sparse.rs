//! `layoutfs sparse`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args;
use super::context::{Context, print_json};
use crate::fetch::registry::Registry;
use crate::fetch::sparse::{EMPTY_LAYER_DIFF_ID, SparseImage};
use crate::fetch::{Deadline, Error, ErrorKind, Result};
use crate::layout::oci::{self, Descriptor, Document, ImageConfig, Manifest, NESTED_INDEXES_MAX};
use crate::layout::reference::Reference;
use crate::layout::{Blob, Digest};

/// An empty layer, compressed, is some 30 bytes; a larger one is not fetched for kaniko.
const EMPTY_LAYER_BYTES_MAX: u64 = 4096;

pub fn run(context: &Context, args: &args::Sparse) -> Result<()> {
    let text = args.reference.strip_prefix("docker://").unwrap_or(&args.reference);
    let reference: Reference = text.parse().map_err(Error::from)?;
    if context.options.offline {
        let message = "sparse asks the registry, and --offline is set";
        return Err(Error::new(ErrorKind::Offline, message));
    }
    let directory = target(args, &reference)?;
    let digest = write(context, &reference, &directory, args.kaniko.as_deref())?;
    if context.options.json {
        let reference = reference.to_string();
        return print_json(&json!({
            "digest": digest.to_string(),
            "directory": directory,
            "reference": reference,
        }));
    }
    println!("{digest}");
    Ok(())
}

/// Where the layout goes.
fn target(args: &args::Sparse, reference: &Reference) -> Result<PathBuf> {
    if let Some(directory) = &args.to {
        return Ok(directory.clone());
    }
    let base = args.layout_dir.clone().unwrap_or_default();
    let usage = |e: crate::layout::Error| Error::new(ErrorKind::Usage, e.to_string());
    let path = match &args.alias {
        Some(alias) => {
            let alias: Reference = alias.parse().map_err(|e| usage(e).context("--as"))?;
            alias.checked_layout_path()
        }
        None => reference.checked_layout_path(),
    };
    Ok(base.join(path.map_err(usage)?))
}

/// Writes the sparse layout of `reference` to `directory`, and below `kaniko` what the extender
/// needs; returns the manifest's digest.
pub fn write(
    context: &Context,
    reference: &Reference,
    directory: &Path,
    kaniko: Option<&Path>,
) -> Result<Digest> {
    let registry = context.registries()?.repository(reference);
    let fetched = context.runtime.block_on(fetch(context, &registry, reference, kaniko.is_some()));
    let (image, empty_layers) = fetched?;
    image.write(directory, &[])?;
    let digest = image.manifest_blob().digest;
    if let Some(kaniko) = kaniko {
        // The extender finds it by this name, colon and all.
        let base = kaniko.join("cache/base").join(digest.to_string());
        image.write(&base, &empty_layers)?;
    }
    Ok(digest)
}

/// Manifest and configuration for this platform; with `empty_layers` also the blobs of layers
/// without entries, which kaniko wants to see.
async fn fetch(
    context: &Context,
    registry: &Registry,
    reference: &Reference,
    empty_layers: bool,
) -> Result<(SparseImage, Vec<(Blob, Vec<u8>)>)> {
    let deadline = || Deadline::after(context.options.deadline);
    let mut wanted = reference.identifier();
    for _ in 0..=NESTED_INDEXES_MAX {
        let found = registry.manifest(&wanted, deadline()).await?;
        let (bytes, media_type, digest) = (found.bytes, found.media_type, found.digest);
        let blob = Blob { digest, size: bytes.len() as u64 };
        match oci::parse_document(&Descriptor::new(media_type.clone(), blob), &bytes)? {
            Document::Index(index) => {
                let chosen = oci::choose_platform(&index.manifests, &context.platform)
                    .map_err(|e| Error::from(e).context(reference))?;
                wanted = chosen.blob.digest.to_string();
            }
            Document::Manifest(manifest) => {
                let (config, blob) = config(context, registry, &manifest).await?;
                let mut empty = Vec::new();
                if empty_layers {
                    empty = fetch_empty_layers(context, registry, &manifest, &config).await?;
                }
                let image = SparseImage {
                    manifest: bytes.to_vec(),
                    manifest_digest: digest,
                    media_type: manifest.media_type.clone().unwrap_or(media_type),
                    config,
                    config_blob: blob,
                    tag: reference.tag().map(str::to_owned),
                    source: format!("{}/{}", reference.registry(), reference.repository()),
                };
                return Ok((image, empty));
            }
        }
    }
    let message = format!("{reference}: more than {NESTED_INDEXES_MAX} indexes inside each other");
    Err(Error::new(ErrorKind::Invalid, message))
}

async fn config(
    context: &Context,
    registry: &Registry,
    manifest: &Manifest,
) -> Result<(Vec<u8>, Blob)> {
    let blob = manifest.config.blob;
    let bytes = match &manifest.config.data {
        Some(data) => data.clone(),
        None => {
            let deadline = Deadline::after(context.options.deadline);
            registry.blob_bytes(&blob, oci::DOCUMENT_BYTES_MAX, deadline).await?.to_vec()
        }
    };
    // An artifact has no rootfs to make sparse: say so now.
    let parsed = ImageConfig::parse(&manifest.config, &bytes)?;
    oci::rootfs_layers(manifest, &parsed)?;
    Ok((bytes, blob))
}

async fn fetch_empty_layers(
    context: &Context,
    registry: &Registry,
    manifest: &Manifest,
    config: &[u8],
) -> Result<Vec<(Blob, Vec<u8>)>> {
    let config = ImageConfig::parse(&manifest.config, config)?;
    let mut blobs: Vec<(Blob, Vec<u8>)> = Vec::new();
    for layer in oci::rootfs_layers(manifest, &config)? {
        let is_empty = layer.diff_id.to_string() == EMPTY_LAYER_DIFF_ID;
        if is_empty && blobs.iter().all(|(blob, _)| *blob != layer.blob) {
            let deadline = Deadline::after(context.options.deadline);
            let bytes = registry.blob_bytes(&layer.blob, EMPTY_LAYER_BYTES_MAX, deadline).await?;
            blobs.push((layer.blob, bytes.to_vec()));
        }
    }
    Ok(blobs)
}
