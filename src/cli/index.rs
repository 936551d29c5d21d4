//! `layoutfs index`: indexes of an image's layers, made, listed, and shared through a registry.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use serde_json::json;

use super::context::{Context, OpenImage, print_json};
use super::index_choice::{self, Brought, IndexChoice};
use super::units::size;
use super::{args, progress, sources, traces};
use crate::fetch::how::How;
use crate::fetch::registry::Listed;
use crate::fetch::{Deadline, Error, ErrorKind, Result};
use crate::fetch::{shared_index, shared_trace, tables};
use crate::layout::Digest;
use crate::layout::error::readable;
use crate::layout::index::saved;
use crate::layout::reference::Reference;
use crate::layout::tree::Layer;

/// One layer in `ls`.
#[derive(Serialize)]
struct LayerSummary {
    number: usize,
    digest: String,
    size: u64,
    how: How,
    /// Bytes of its index as it is shared, and spans in it; `None` without one.
    index_bytes: Option<u64>,
    spans: Option<usize>,
}

/// A trace in `ls`.
#[derive(Serialize)]
struct TraceSummary {
    /// What it is of.
    #[serde(rename = "use")]
    used_for: String,
    /// Of the trace, and its bytes.
    digest: String,
    size: u64,
    /// The manifest that refers to the image.
    artifact: String,
}

/// The longest time without a byte from the registry that is asked for traces.
const LISTED_WITHIN: Duration = Duration::from_secs(5);

/// An index that is ready to be shared.
struct Encoded {
    layer: Digest,
    bytes: Bytes,
    /// It took a pass over the layer.
    is_new: bool,
}

pub fn run(context: &Context, command: &args::Index) -> Result<()> {
    match command {
        args::Index::Build { image } => build(context, image),
        args::Index::Push { image, to, trace: Some(trace), used_for } => {
            push_trace(context, image, to.as_deref(), (trace, used_for))
        }
        args::Index::Push { image, to, trace: None, .. } => push(context, image, to.as_deref()),
        args::Index::Pull { image } => pull(context, image),
        args::Index::Ls { image } => list(context, &context.open(image)?),
    }
}

fn build(context: &Context, image: &str) -> Result<()> {
    let open = context.open(image)?;
    index_choice::bring_missing(context, &open)?;
    let encoded = complete(context, &open)?;
    let built = encoded.iter().filter(|one| one.is_new).count();
    if let Some(why) = open.store.cache().trouble() {
        return Err(Error::new(ErrorKind::Local, format!("an index cannot be kept: {why}")));
    }
    let known = encoded.len() - built;
    context.say(format_args!("indexes made: {built}; there already: {known}"));
    match context.options.json {
        true => list(context, &open),
        false => Ok(()),
    }
}

fn push(context: &Context, image: &str, to: Option<&str>) -> Result<()> {
    check_online(context, "index push")?;
    let open = context.open(image)?;
    let place = destination(context, &open, to)?;
    index_choice::bring_missing(context, &open)?;
    let encoded = complete(context, &open)?;
    if encoded.is_empty() {
        let message = "every layer brings its own table of contents: there is no index to share";
        return Err(Error::new(ErrorKind::Local, message));
    }
    let indexes: Vec<_> = encoded.into_iter().map(|one| (one.layer, one.bytes)).collect();
    let (count, bytes) = (indexes.len(), indexes.iter().map(|one| one.1.len() as u64).sum());
    let registry = context.registries()?.repository(&place);
    let deadline = Deadline::after(context.options.deadline);
    let pushed = shared_index::push(&registry, &open.image.descriptor, indexes, deadline);
    let shared = context.runtime.block_on(pushed)?;
    let repository = sources::repository(&place);
    let artifact = shared.attached.blob.digest.to_string();
    let tag = match &shared.attached.listed {
        Listed::ByRegistry => None,
        Listed::UnderTag(tag) => Some(tag.as_str()),
    };
    if context.options.json {
        return print_json(&json!({
            "artifact": artifact,
            "repository": repository,
            "image": open.image.descriptor.blob.digest.to_string(),
            "indexes": count,
            "bytes": bytes,
            "blobs_sent": shared.blobs_sent,
            "tag": tag,
        }));
    }
    let listed = tag.map(|tag| format!(", listed under the tag {tag}")).unwrap_or_default();
    context.say(format_args!(
        "indexes in {repository}{listed}: {count} ({}); to trust them: --index \
         {repository}@{artifact}",
        size(bytes)
    ));
    out!("{artifact}");
    Ok(())
}

fn push_trace(
    context: &Context,
    image: &str,
    to: Option<&str>,
    (file, used_for): (&Path, &str),
) -> Result<()> {
    check_online(context, "index push")?;
    let open = context.open(image)?;
    let trace = traces::read(&open, file).map_err(|e| e.context("--trace"))?;
    let place = destination(context, &open, to)?;
    let registry = context.registries()?.repository(&place);
    let deadline = Deadline::after(context.options.deadline);
    let image = &open.image.descriptor;
    let pushed = shared_trace::push(&registry, image, used_for, &trace, deadline);
    let artifact = context.runtime.block_on(pushed)?.blob.digest.to_string();
    if context.options.json {
        let (repository, image) = (sources::repository(&place), image.blob.digest.to_string());
        return print_json(&json!({
            "artifact": artifact, "repository": repository, "image": image, "use": used_for,
        }));
    }
    out!("{artifact}");
    Ok(())
}

fn pull(context: &Context, image: &str) -> Result<()> {
    if context.options.index == IndexChoice::Off {
        let message = "index pull fetches what --index names, and that says off";
        return Err(Error::new(ErrorKind::Usage, message));
    }
    check_online(context, "index pull")?;
    let open = context.open(image)?;
    if context.options.index == IndexChoice::Auto {
        let found = index_choice::listed(context, &open)?;
        let message = format!(
            "whoever makes an index decides what a layer shows: say whom you trust, by {}",
            index_choice::options(&found)
        );
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let layers = open.image.layers()?;
    let Brought { saved, lacking, trouble } = index_choice::bring(context, &open, &layers)?;
    if let Some(trouble) = trouble {
        return Err(trouble);
    }
    match context.options.json {
        true => print_json(&json!({ "saved": saved, "lacking": lacking })),
        false => Ok(()),
    }
}

fn check_online(context: &Context, command: &str) -> Result<()> {
    if context.options.offline {
        let message = format!("{command} asks the registry, and --offline is set");
        return Err(Error::new(ErrorKind::Offline, message));
    }
    Ok(())
}

/// Where indexes go: `--to`, else where the image comes from.
fn destination(context: &Context, open: &OpenImage, to: Option<&str>) -> Result<Reference> {
    if let Some(to) = to {
        let parsed: std::result::Result<Reference, _> = to.parse();
        return parsed.map_err(|e| Error::new(ErrorKind::Usage, format!("--to: {e}")));
    }
    context.sources(&open.image.selected)?.into_iter().next().ok_or_else(|| {
        let message = "the layout does not say where it came from: use --to REGISTRY/REPO";
        Error::new(ErrorKind::NotFound, message)
    })
}

/// An index of each layer, in the image's order, each layer once: made where there is none, as many
/// at a time as there are cores. Not of layers that bring a table of contents.
fn complete(context: &Context, open: &OpenImage) -> Result<Vec<Encoded>> {
    let mut seen = HashSet::new();
    let mut layers = open.image.layers()?;
    layers.retain(|layer| seen.insert(layer.blob.digest));
    let blobs: Vec<_> = layers.iter().map(|layer| layer.blob).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let store = &open.store;
    let work = futures_util::stream::iter(layers)
        .map(|layer: Layer| async move {
            let Some((index, is_new)) = shared_index::made(store, &layer).await? else {
                return Ok(None);
            };
            let encode = move || saved::encode(&index);
            let bytes = tokio::task::spawn_blocking(encode).await.map_err(|e| {
                Error::new(ErrorKind::Local, format!("an encoding ended early: {e}"))
            })??;
            Ok::<_, Error>(Some(Encoded { layer: layer.blob.digest, bytes: bytes.into(), is_new }))
        })
        .buffered(cores)
        .try_collect::<Vec<Option<Encoded>>>();
    let shown = progress::show(store, &blobs, context.options.quiet, work);
    Ok(context.runtime.block_on(shown)?.into_iter().flatten().collect())
}

fn list(context: &Context, open: &OpenImage) -> Result<()> {
    let layers = open.image.layers()?;
    let summaries = layers
        .iter()
        .enumerate()
        .map(|(number, layer)| summarise(open, number, layer))
        .collect::<Result<Vec<_>>>()?;
    let traces = listed_traces(context, open);
    if context.options.json {
        let image = open.image.descriptor.blob.digest.to_string();
        return print_json(&json!({ "image": image, "layers": summaries, "traces": traces }));
    }
    for layer in &summaries {
        let LayerSummary { number, digest, size: bytes, how, .. } = layer;
        let how = how.describe(&size(*bytes));
        let index = match (layer.index_bytes, layer.spans) {
            (Some(bytes), Some(spans)) => format!("index of {}, {spans} spans", size(bytes)),
            _ => "no index".to_owned(),
        };
        out!("{number:>3}  {digest}  {:>10}  {index}; {how}", size(*bytes));
    }
    for trace in traces.unwrap_or_default() {
        let TraceSummary { used_for, digest, size: bytes, .. } = trace;
        let used_for = readable(&used_for);
        out!("     {digest}  {:>10}  trace of use {used_for}", size(bytes));
    }
    Ok(())
}

/// The traces that the first source lists for the image. `None`: that is not known, and why was told.
fn listed_traces(context: &Context, open: &OpenImage) -> Option<Vec<TraceSummary>> {
    let asked = (|| {
        let (references, nowhere) = context.references(&open.image.selected)?;
        let place = references.first().ok_or(nowhere)?;
        let registry = context.registries()?.repository(place);
        let deadline = Deadline::after(LISTED_WITHIN);
        let image = open.image.descriptor.blob.digest;
        context.runtime.block_on(shared_trace::all(&registry, &image, deadline))
    })();
    let summary = |shared: shared_trace::Shared| TraceSummary {
        used_for: shared.used_for,
        digest: shared.trace.digest.to_string(),
        size: shared.trace.size,
        artifact: shared.artifact.to_string(),
    };
    match asked {
        Ok(traces) => Some(traces.into_iter().map(summary).collect()),
        Err(error) => {
            context.say(format_args!("traces in the registry are not known: {error}"));
            None
        }
    }
}

fn summarise(open: &OpenImage, number: usize, layer: &Layer) -> Result<LayerSummary> {
    let index = tables::saved_index(&open.store, layer);
    let bytes = index.as_ref().map(saved::encode).transpose()?;
    Ok(LayerSummary {
        number,
        digest: layer.blob.digest.to_string(),
        size: layer.blob.size,
        how: How::of(&open.store, layer)?,
        index_bytes: bytes.map(|bytes| bytes.len() as u64),
        spans: index.map(|index| index.spans.len()),
    })
}
