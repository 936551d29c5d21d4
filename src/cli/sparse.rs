//! `layoutfs sparse`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args;
use super::context::{Context, absolute, print_json};
use super::index_choice::{IndexChoice, bring_missing};
use crate::fetch::kaniko::base_directory;
use crate::fetch::resolve::resolve;
use crate::fetch::{Deadline, Error, ErrorKind, Result};
use crate::layout::Digest;
use crate::layout::reference::Reference;

pub fn run(context: &Context, args: &args::Sparse) -> Result<()> {
    let text = args.reference.strip_prefix("docker://").unwrap_or(&args.reference);
    let reference: Reference = text.parse().map_err(Error::from)?;
    if context.options.offline {
        let message = "sparse asks the registry, and --offline is set";
        return Err(Error::new(ErrorKind::Offline, message));
    }
    let directory = target(args, &reference)?;
    let digest = write(context, &reference, &directory, args.kaniko.as_deref())?;
    if let IndexChoice::Trusted { .. } = context.options.index {
        let open = context.open_layout(&absolute(&directory)?, Some(&digest.to_string()))?;
        bring_missing(context, &open)?;
    }
    if context.options.json {
        let reference = reference.to_string();
        return print_json(&json!({
            "digest": digest.to_string(),
            "directory": directory,
            "reference": reference,
        }));
    }
    out!("{digest}");
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

/// Writes the sparse layout, and below `--kaniko` what the extender needs.
fn write(
    context: &Context,
    reference: &Reference,
    directory: &Path,
    kaniko: Option<&Path>,
) -> Result<Digest> {
    let registry = context.registries()?.repository(reference);
    let deadline = Deadline::after(context.options.deadline);
    let (image, empty_layers) = context.runtime.block_on(async {
        let resolved = resolve(&registry, reference, &context.platform, deadline).await?;
        let empty = match kaniko {
            Some(_) => resolved.empty_layers().await?,
            None => Vec::new(),
        };
        Ok::<_, Error>((resolved.image, empty))
    })?;
    image.write(directory, &[])?;
    let digest = image.manifest_digest;
    if let Some(kaniko) = kaniko {
        image.write(&base_directory(kaniko, &digest), &empty_layers)?;
    }
    Ok(digest)
}
