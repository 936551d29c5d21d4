//! `layoutfs inspect`: what is in an image, from which layer, and how it will be read.

use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::args;
use super::context::{Context, OpenImage, print_json};
use super::index_choice::{bring_missing, bring_ztocs};
use super::progress;
use super::sources;
use super::units::size;
use crate::fetch::how::How;
use crate::fetch::kaniko::EMPTY_LAYER_DIFF_ID;
use crate::fetch::layout_dir::is_present;
use crate::fetch::{Error, ErrorKind, Result, tables};
use crate::fs::images::{self, ViewKind};
use crate::layout::dump;
use crate::layout::entry::Entry;
use crate::layout::error::readable;
use crate::layout::layout_path::check_existing_layout_path;
use crate::layout::provenance::{self, Event};
use crate::layout::tree::Layer;

/// One layer of the summary.
#[derive(Serialize)]
struct LayerSummary {
    number: usize,
    digest: String,
    diff_id: String,
    size: u64,
    media_type: String,
    /// It holds nothing: kaniko needs its blob all the same.
    empty: bool,
    /// `local` (in the layout), `cached`, or `missing`.
    state: &'static str,
    how: How,
}

/// What the lifecycle thinks of the layout's place.
#[derive(Serialize)]
struct LayoutPath {
    /// Relative to the layout directory.
    path: String,
    legal: bool,
    /// What it cannot be used for, and the way out.
    problem: Option<String>,
}

pub fn run(context: &Context, args: &args::Inspect) -> Result<()> {
    let open = context.open(&args.image)?;
    match &args.path {
        None => summary(context, &open),
        Some(path) => path_summary(context, &open, path),
    }
}

fn summary(context: &Context, open: &OpenImage) -> Result<()> {
    let layers = open.image.layers()?;
    let summaries = layers
        .iter()
        .enumerate()
        .map(|(number, layer)| summarise(open, number, layer))
        .collect::<Result<Vec<_>>>()?;
    let image = &open.image;
    let total: u64 = layers.iter().fold(0, |sum, l| l.blob.size.saturating_add(sum));
    let sources: Vec<String> =
        context.sources(&image.selected)?.iter().map(sources::repository).collect();
    let path = layout_path(&image.selected.directory);
    let has_empty_layer = summaries.iter().any(|layer| layer.empty);
    let mixed = image.manifest.has_mixed_media_types(&image.descriptor.media_type);
    if context.options.json {
        return print_json(&json!({
            "directory": image.selected.directory,
            "name": image.selected.descriptor.ref_name(),
            "source": image.selected.recorded_source(),
            "sources": sources,
            "layout_path": path,
            "manifest": image.descriptor.blob.digest.to_string(),
            "media_type": image.descriptor.media_type,
            "mixed_media_types": mixed,
            "config": image.manifest.config.blob.digest.to_string(),
            "platform": image.config.platform.to_string(),
            "size": total,
            "has_empty_layer": has_empty_layer,
            "layers": summaries,
        }));
    }
    out!("manifest   {}", image.descriptor.blob.digest);
    out!("type       {}", readable(&image.descriptor.media_type));
    out!("config     {}", image.manifest.config.blob.digest);
    out!("platform   {}", readable(&image.config.platform.to_string()));
    if let Some(name) = image.selected.descriptor.ref_name() {
        out!("name       {}", readable(name));
    }
    match (image.selected.recorded_source(), sources.is_empty()) {
        (Some(source), _) => out!("source     {}", readable(source)),
        (None, false) => {
            out!("source     not recorded; asked in this order: {}", sources.join(", "))
        }
        (None, true) => out!("source     not known"),
    }
    match path {
        Some(LayoutPath { path, problem: None, .. }) => out!("path       {path}"),
        Some(LayoutPath { problem: Some(problem), .. }) => out!("path       {problem}"),
        None => {}
    }
    if mixed {
        out!("types      OCI and Docker mixed: umoci and archives for Docker refuse that");
    }
    print_layers(&summaries, total);
    Ok(())
}

fn print_layers(layers: &[LayerSummary], total: u64) {
    out!("layers     {} ({})", layers.len(), size(total));
    for layer in layers {
        out!("{:>3}  {}  {:>10}  {}", layer.number, layer.digest, size(layer.size), layer.state);
        out!("     DiffID {}{}", layer.diff_id, if layer.empty { " (empty)" } else { "" });
        out!("     {}", layer.media_type);
        out!("     {}", layer.how.describe(&size(layer.size)));
    }
}

/// The layout's place in a layout directory, if it is in one.
fn layout_path(directory: &Path) -> Option<LayoutPath> {
    let path = sources::paths_in_layout_dirs(directory).into_iter().next()?;
    let problem = check_existing_layout_path(&path).err().map(|e| e.to_string());
    Some(LayoutPath { path, legal: problem.is_none(), problem })
}

fn summarise(open: &OpenImage, number: usize, layer: &Layer) -> Result<LayerSummary> {
    let state = match is_present(&open.image.selected.directory, &layer.blob) {
        true => "local",
        false if open.store.cache().open_blob(&layer.blob).is_some() => "cached",
        false => "missing",
    };
    Ok(LayerSummary {
        number,
        digest: layer.blob.digest.to_string(),
        diff_id: layer.diff_id.to_string(),
        size: layer.blob.size,
        media_type: layer.media_type.clone(),
        empty: layer.diff_id.to_string() == EMPTY_LAYER_DIFF_ID,
        state,
        how: How::of(&open.store, layer)?,
    })
}

/// Which layers say something about a path, lowest first, and what is there in the end.
fn path_summary(context: &Context, open: &OpenImage, path: &str) -> Result<()> {
    bring_missing(context, open)?;
    let layers = open.image.layers()?;
    bring_ztocs(context, open, &layers);
    let (kind, policy) = (ViewKind::Rootfs, context.options.verify);
    let blobs: Vec<_> = layers.iter().map(|l| l.blob).collect();
    let build = images::build(&open.store, &open.image, kind, policy);
    let shown = progress::show(&open.store, &blobs, context.options.quiet, build);
    let view = context.runtime.block_on(shown)?;
    let cleaned = path.split('/').filter(|c| !c.is_empty() && *c != ".").collect::<Vec<_>>();
    let cleaned = cleaned.join("/");
    let mut found = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let Some(index) = tables::saved_index(&open.store, layer) else {
            let message = format!(
                "what layer {} says about it is not known: its index could not be kept in the cache",
                layer.blob.digest
            );
            return Err(Error::new(ErrorKind::Local, message));
        };
        for event in provenance::events(&index, cleaned.as_bytes()) {
            found.push(PathEvent {
                layer: number,
                digest: layer.blob.digest.to_string(),
                what: describe(event),
            });
        }
    }
    let tree = view.tree();
    let now = tree.find(cleaned.as_bytes()).and_then(|id| tree.node(id));
    let origin = now.and_then(|n| n.origin);
    let now = now.map(dump::describe);
    if context.options.json {
        let path = format!("/{cleaned}");
        return print_json(&json!({"path": path, "now": now, "layer": origin, "events": found}));
    }
    out!("/{cleaned}");
    for event in &found {
        out!("{:>3}  {}  {}", event.layer, event.digest, readable(&event.what));
    }
    match (now, origin) {
        (Some(line), Some(layer)) => out!("now  {line} (from layer {layer})"),
        (Some(line), None) => out!("now  {line} (in no layer: a missing parent)"),
        (None, _) => out!("now  absent"),
    }
    Ok(())
}

/// What one layer does to the path.
#[derive(Serialize)]
struct PathEvent {
    layer: usize,
    digest: String,
    what: String,
}

fn describe(event: Event<'_>) -> String {
    let at = |entry: &Entry| {
        format!("/{} (tar offset {})", String::from_utf8_lossy(&entry.path), entry.offset)
    };
    match event {
        Event::Sets(entry) => format!("sets {}", at(entry)),
        Event::Removes(entry) => format!("removes it by {}", at(entry)),
        Event::Hides(entry) => format!("hides it by {}", at(entry)),
    }
}
