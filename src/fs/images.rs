//! Builds views: the trees of one image, and readers for their layers. The one place where `fetch`
//! and `layout` meet to make a `Tree`.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};

use super::ops::View;
use super::policy::Policy;
use crate::fetch::first_pass::{self, Keep, Pass};
use crate::fetch::image::Image;
use crate::fetch::layer::LayerReader;
use crate::fetch::store::Store;
use crate::fetch::{Error, ErrorKind, Result, tables};
use crate::layout::index::LayerIndex;
use crate::layout::merge::{self, Changeset, Merged};
use crate::layout::tar::METADATA_BYTES_MAX;
use crate::layout::tree::{Layer, Tree};
use crate::layout::view;
use crate::layout::{self, Digest};

/// Layers that are read for the first time at once, on a machine with many cores: each has three
/// requests under way, and a slow line that is shared by more would leave some without a byte for
/// the length of a deadline.
const PASSES_MAX: usize = 8;

/// What a mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ViewKind {
    /// The merged filesystem.
    Rootfs,
    /// The complete layout directory.
    Layout,
    /// `layout/`, `rootfs/` and `layers/<nn>-<12 hex>/`.
    All,
}

impl ViewKind {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            ViewKind::Rootfs => "rootfs",
            ViewKind::Layout => "layout",
            ViewKind::All => "all",
        }
    }

    /// Needs the tables of contents of all layers.
    pub fn reads_layers(self) -> bool {
        self != ViewKind::Layout
    }
}

/// A layer whose table of contents is known.
struct Opened {
    index: LayerIndex,
    reader: Arc<LayerReader>,
}

/// Builds the view of `image`. Layers without a saved index are read whole, once.
///
/// # Errors
/// A layer cannot be had, proved or applied.
pub async fn build(
    store: &Arc<Store>,
    image: &Image,
    kind: ViewKind,
    policy: Policy,
) -> Result<View> {
    if kind == ViewKind::Layout {
        let tree = layout_tree(store, image).await?;
        return View::new(tree, Vec::new(), store.clone(), policy);
    }
    let layers = image.layers()?;
    let mut opened = open_layers(store, &layers).await?;
    let alone = match kind {
        ViewKind::All => layer_trees(&layers, &opened)?,
        _ => Vec::new(),
    };
    let rootfs = merge_layers(&layers, &mut opened)?;
    let tree = match kind {
        ViewKind::All => view::all_view(&layout_tree(store, image).await?, &rootfs, &alone)?,
        _ => rootfs,
    };
    let reader_of = |layer: &Layer| {
        let found = opened.get(&layer.blob.digest).map(|o| o.reader.clone());
        found.ok_or_else(|| Error::new(ErrorKind::Invalid, "a layer of the tree was not opened"))
    };
    let readers = tree.layers().iter().map(reader_of).collect::<Result<Vec<_>>>()?;
    View::new(tree, readers, store.clone(), policy)
}

async fn layout_tree(store: &Store, image: &Image) -> Result<Tree> {
    Ok(view::layout_view(&image.documents(store).await)?)
}

/// Opens every layer (each digest once), twice as many at a time as there are cores: inflating is
/// what takes the time, and the last one alone would leave cores idle.
async fn open_layers(store: &Arc<Store>, layers: &[Layer]) -> Result<HashMap<Digest, Opened>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let passes = (2 * cores).min(PASSES_MAX);
    let unique: HashMap<Digest, &Layer> = layers.iter().map(|l| (l.blob.digest, l)).collect();
    let mut ordered: Vec<&Layer> = unique.into_values().collect();
    // The largest first: it bounds the whole.
    ordered.sort_by_key(|l| std::cmp::Reverse((l.blob.size, l.blob.digest)));
    let mut opening = futures_util::stream::iter(ordered.into_iter().cloned())
        .map(|layer| async move {
            let digest = layer.blob.digest;
            open_layer(store, layer).await.map(|opened| (digest, opened))
        })
        .buffer_unordered(passes);
    let (mut all, mut bytes) = (HashMap::new(), 0_u64);
    while let Some((digest, opened)) = opening.try_next().await? {
        bytes = bytes.saturating_add(opened.index.metadata_bytes());
        if bytes > METADATA_BYTES_MAX {
            let what = "memory in bytes for the entries of all layers".to_owned();
            let error = Error::from(layout::Error::Limit { what, limit: METADATA_BYTES_MAX });
            return Err(error.context(format!("layer {digest}")));
        }
        all.insert(digest, opened);
    }
    Ok(all)
}

async fn open_layer(store: &Arc<Store>, layer: Layer) -> Result<Opened> {
    let known = match tables::saved_index(store, &layer) {
        Some(index) => Some(index),
        None => tables::own_table(store, &layer).await.or_else(useless)?,
    };
    let pass = match known {
        Some(index) => Pass { index, decoded: None, fresh: None },
        None => first_pass::run(store, &layer, Keep::ToRead).await?,
    };
    let Pass { index, decoded, fresh } = pass;
    let reader = LayerReader::new(store.clone(), layer, &index, decoded)?.with_fresh(fresh);
    let reader = Arc::new(reader);
    Ok(Opened { index, reader })
}

/// A table of contents that is of no use is none; what cannot be had is an error.
fn useless(error: Error) -> Result<Option<LayerIndex>> {
    match error.kind {
        // Who is told in time has been: see `cli/announce.rs`.
        ErrorKind::Invalid | ErrorKind::DigestMismatch => Ok(None),
        _ => Err(error),
    }
}

/// The rootfs. Takes the entries out of the indexes: from here on only spans are needed.
fn merge_layers(layers: &[Layer], opened: &mut HashMap<Digest, Opened>) -> Result<Tree> {
    let mut uses: HashMap<Digest, usize> = HashMap::new();
    for layer in layers {
        *uses.entry(layer.blob.digest).or_default() += 1;
    }
    let mut changesets = Vec::with_capacity(layers.len());
    for layer in layers {
        let Some(opened) = opened.get_mut(&layer.blob.digest) else { continue };
        let left = uses.entry(layer.blob.digest).or_default();
        *left -= 1;
        // The same layer may stand in an image twice: all but its last use take a copy.
        changesets.push(match *left {
            0 => Changeset::take(layer.clone(), &mut opened.index)?,
            _ => Changeset::take(layer.clone(), &mut opened.index.clone())?,
        });
    }
    Ok(warned(merge::merge(changesets)?))
}

fn layer_trees(
    layers: &[Layer],
    opened: &HashMap<Digest, Opened>,
) -> Result<Vec<(usize, Digest, Tree)>> {
    let mut trees = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        let Some(opened) = opened.get(&layer.blob.digest) else { continue };
        let changeset = Changeset::take(layer.clone(), &mut opened.index.clone())?;
        trees.push((number, layer.blob.digest, warned(merge::layer_tree(changeset)?)));
    }
    Ok(trees)
}

fn warned(merged: Merged) -> Tree {
    for warning in merged.warnings {
        tracing::warn!("{warning}");
    }
    merged.tree
}
