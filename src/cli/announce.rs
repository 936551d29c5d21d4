//! Says how an image will be read before it is, so that nobody is lazily surprised.

use futures_util::{StreamExt as _, stream};

use super::context::{Context, OpenImage};
use super::index_choice::{bring_missing, bring_ztocs, hint};
use super::units::size;
use crate::fetch::how::How;
use crate::fetch::{Error, ErrorKind, Result, tables};
use crate::fs::images::ViewKind;
use crate::layout::tree::Layer;

/// Tables that are read at the same time: some hundred KiB each.
const TABLES_AT_ONCE: usize = 4;

/// What [`announce`] tells people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// How each layer will be read.
    Everything,
    /// Only what will take time.
    Waiting,
}

/// Says per layer how it will be read, before it is; with `--require-lazy` refuses what is not. The
/// indexes that `--index` names are brought first.
///
/// # Errors
/// The layers are not to be had, or not lazily when that is required.
pub fn announce(
    context: &Context,
    open: &OpenImage,
    kind: ViewKind,
    told: Told,
) -> Result<Vec<How>> {
    if !kind.reads_layers() {
        context.say(format_args!("each blob is fetched whole when it is read"));
        return Ok(Vec::new());
    }
    bring_missing(context, open)?;
    let layers = open.image.layers()?;
    bring_ztocs(context, open, &layers);
    read_tables(context, open, &layers)?;
    let mut hows = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        let how = How::of(&open.store, layer)?;
        hows.push(how);
        let digest = layer.blob.digest.short();
        let described = how.describe(&size(layer.blob.size));
        if told == Told::Everything || !how.is_lazy() {
            context.say(format_args!("layer {number:>2}  {digest}  {described}"));
        }
    }
    hint(context, open, &hows);
    let eager = hows.iter().filter(|how| !how.is_lazy()).count();
    if context.options.require_lazy && eager > 0 {
        let message = format!(
            "{eager} of {} layers cannot be read lazily yet, and --require-lazy is set: mount once \
             without it, which indexes them, or name an artifact by --index",
            layers.len()
        );
        return Err(Error::new(ErrorKind::Usage, message));
    }
    Ok(hows)
}

/// Reads the tables of contents that layers bring, so that what is said next is certain.
fn read_tables(context: &Context, open: &OpenImage, layers: &[Layer]) -> Result<()> {
    let unknown = layers.iter().filter(|layer| !tables::is_known(&open.store, layer));
    let read = stream::iter(unknown.cloned().collect::<Vec<_>>())
        .map(|layer| async move { (tables::learn_own_table(&open.store, &layer).await, layer) })
        .buffered(TABLES_AT_ONCE)
        .collect::<Vec<_>>();
    for (table, layer) in context.runtime.block_on(read) {
        match table {
            Ok(()) => {}
            Err(error) if matches!(error.kind, ErrorKind::Invalid | ErrorKind::DigestMismatch) => {
                let digest = layer.blob.digest.short();
                tracing::warn!("layer {digest}: its table of contents is not used: {error}");
            }
            // The layer's bytes cannot be had either, which is told where they are needed.
            Err(error) => tracing::debug!(%error, "no table of contents"),
        }
    }
    Ok(())
}
