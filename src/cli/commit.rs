//! `layoutfs commit`: an overlay's upper directory to one layer, on top of its base.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::args;
use super::context::{Context, OpenImage, absolute, print_json};
use super::index_choice::{bring_missing, bring_ztocs};
use super::rootless;
use super::units::size;
use crate::fetch::image::{Image, Selected, document};
use crate::fetch::layer_file::{self, Compression, LayerFile};
use crate::fetch::layout_dir::{blob_path, is_present, read_blob_document};
use crate::fetch::sparse::{SparseImage, put_in_place};
use crate::fetch::upper::Upper;
use crate::fetch::{Deadline, Error, ErrorKind, Result};
use crate::fs::images::{self, ViewKind};
use crate::fs::ops::View;
use crate::fs::user_namespace;
use crate::layout::changeset::{Change, Excluded, Member, plan};
use crate::layout::entry::Time;
use crate::layout::oci::append::{
    NewLayer, append_to_config, append_to_manifest, layer_media_type, settings,
};
use crate::layout::oci::{Document, ImageConfig, parse_document};
use crate::layout::{Blob, Digest};

/// What the history says when nobody says what it should.
const CREATED_BY: &str = "layoutfs commit";

/// The last second of the year 9999: RFC 3339 ends there.
const LAST_SECOND: i64 = 253_402_300_799;

/// The environment variable of reproducible-builds.org: no time in the result is later.
const SOURCE_DATE_EPOCH: &str = "SOURCE_DATE_EPOCH";

/// What was changed, and what was not taken for a change.
#[derive(Default)]
struct Counts {
    added: u64,
    changed: u64,
    removed: u64,
    pruned: u64,
    sockets: u64,
    mount_points: u64,
}

/// The image that was written.
struct Committed {
    image: SparseImage,
    layer: Option<(NewLayer, LayerFile)>,
}

/// What is to be committed, and to where.
pub struct Commission<'a> {
    /// The upper directory.
    pub upper: &'a Path,
    /// What lay below it.
    pub base: &'a OpenImage,
    /// What is left as it is in the base.
    pub excluded: Excluded,
    /// How the layer is compressed.
    pub compression: Compression,
    /// What the history says about the layer.
    pub created_by: &'a str,
    /// Where the image goes.
    pub target: Target,
    /// The directory in whose `run` the extender left an image: its settings are taken over.
    pub settings_from: Option<&'a Path>,
}

/// Where a committed image goes.
pub enum Target {
    /// A sparse layout of its own.
    Layout(PathBuf),
    /// `DIR/run/<digest>`.
    Extended(PathBuf),
}

/// What came of it.
pub struct Outcome {
    committed: Committed,
    counts: Counts,
    /// The layout that was written.
    pub directory: PathBuf,
}

pub fn run(context: &Context, args: &args::Commit) -> Result<()> {
    check(args)?;
    let paths = args.exclude.iter().map(|path| path.as_bytes());
    let excluded = Excluded::new(paths)
        .map_err(|why| Error::new(ErrorKind::Usage, format!("--exclude: {why}")))?;
    let extended = args.extended.as_ref().map(absolute).transpose()?;
    let target = match (&extended, &args.to) {
        (Some(extended), _) => Target::Extended(extended.clone()),
        (None, to) => Target::Layout(absolute(to.as_ref().unwrap_or(&args.upper))?),
    };
    let base = context.open(&args.base)?;
    bring_missing(context, &base)?;
    bring_ztocs(context, &base, &base.image.layers()?);
    let commission = Commission {
        upper: &absolute(&args.upper)?,
        base: &base,
        excluded,
        compression: args.compression,
        created_by: args.created_by.as_deref().unwrap_or(CREATED_BY),
        target,
        settings_from: extended.as_deref(),
    };
    report(context, &commit(context, &commission)?)
}

/// Makes a layer of what the upper directory changed, and an image with it on top.
///
/// # Errors
/// The upper directory cannot be said as a layer, the base cannot be had, or local trouble.
pub fn commit(context: &Context, commission: &Commission<'_>) -> Result<Outcome> {
    let latest = source_date()?;
    let upper = Upper::read(commission.upper, &commission.excluded)?;
    if upper.of_user_namespace && !user_namespace::is_inside() {
        tracing::warn!(
            upper = %commission.upper.display(),
            "written in a user namespace, whose owners are others here: commit it as whoever wrote it"
        );
    }
    let beside = match &commission.target {
        Target::Layout(target) => target.parent().unwrap_or(Path::new("/")),
        Target::Extended(target) => target,
    };
    std::fs::create_dir_all(beside)
        .map_err(|e| Error::local(format!("cannot make {}", beside.display()), &e))?;
    let view = build(context, commission.base)?;
    let (members, counts) = changes(context, &upper, &view, &commission.excluded)?;
    let layer = match members.is_empty() {
        true => None,
        false => Some(layer_file::write(&upper, &members, beside, commission.compression, latest)?),
    };
    let committed = document_image(context, commission, layer, latest)?;
    let directory = match &commission.target {
        Target::Extended(target) => write_extended(&committed, target)?,
        Target::Layout(target) => write_layout(&committed, &commission.base.image, target)?,
    };
    Ok(Outcome { committed, counts, directory })
}

fn check(args: &args::Commit) -> Result<()> {
    if args.extended.is_some() && args.compression == Compression::Zstd {
        let message = "--compression zstd: the lifecycle's exporter reads only gzip, use it with \
                       --to";
        return Err(Error::new(ErrorKind::Usage, message));
    }
    // Without what it hides a layer would lack what was removed, and nobody would know.
    rootless::check_upper(&args.upper)
}

/// `SOURCE_DATE_EPOCH`, if it is set.
fn source_date() -> Result<Option<Time>> {
    let Some(value) = std::env::var_os(SOURCE_DATE_EPOCH).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let seconds = value.to_str().and_then(|text| text.parse::<i64>().ok());
    let Some(seconds) = seconds.filter(|s| (0..=LAST_SECOND).contains(s)) else {
        let message = format!(
            "{SOURCE_DATE_EPOCH}={}: expected seconds since 1970, up to {LAST_SECOND}",
            value.as_bytes().escape_ascii()
        );
        return Err(Error::new(ErrorKind::Usage, message));
    };
    Ok(Some(Time { seconds, nanos: 0 }))
}

fn build(context: &Context, base: &OpenImage) -> Result<View> {
    let policy = context.options.verify;
    context.runtime.block_on(images::build(&base.store, &base.image, ViewKind::Rootfs, policy))
}

/// The members of the layer. A copy that overlayfs made of a file that was opened for writing, and
/// not written, is none.
fn changes<'a>(
    context: &Context,
    upper: &'a Upper,
    view: &View,
    excluded: &Excluded,
) -> Result<(Vec<Member<'a>>, Counts)> {
    let plan = plan(&upper.children, view.tree(), excluded);
    let mut counts = Counts {
        pruned: plan.pruned,
        mount_points: plan.mount_points,
        sockets: upper.sockets,
        ..Counts::default()
    };
    let mut members = Vec::with_capacity(plan.members.len());
    for member in plan.members {
        let count = match &member.change {
            Change::Removed => &mut counts.removed,
            Change::Put { node, unchanged_if_content_of: Some(id), .. }
                if layer_file::compare(upper, &member.path, node, |at, bytes| {
                    let deadline = Deadline::after(context.options.deadline);
                    // A piece is at most a few hundred kilobytes.
                    let read = view.read(*id, at, bytes.len() as u32, None, deadline);
                    Ok(context.runtime.block_on(read)?.bytes() == bytes)
                })? =>
            {
                counts.pruned += 1;
                continue;
            }
            Change::Put { replaces: true, .. } | Change::Link { replaces: true, .. } => {
                &mut counts.changed
            }
            Change::Put { .. } | Change::Link { .. } => &mut counts.added,
        };
        *count += 1;
        members.push(member);
    }
    Ok((members, counts))
}

/// The documents of the image with the new layer; the base's own, if there is none.
fn document_image(
    context: &Context,
    commission: &Commission<'_>,
    layer: Option<LayerFile>,
    latest: Option<Time>,
) -> Result<Committed> {
    let OpenImage { image, store, .. } = commission.base;
    let directory = &image.selected.directory;
    let bytes = |descriptor| context.runtime.block_on(document(store, directory, descriptor));
    let mut manifest = bytes(&image.descriptor)?;
    let mut config = bytes(&image.manifest.config)?;
    let (mut manifest_digest, mut config_blob) =
        (image.descriptor.blob.digest, image.manifest.config.blob);
    let adopted = match commission.settings_from {
        Some(extended) => adopted_settings(context, extended, &image.config)?,
        None => None,
    };
    let adopted = adopted.filter(|s| settings(&config).is_ok_and(|own| own.as_ref() != Some(s)));
    let layer = match layer {
        Some(file) => Some((described(commission, &file, latest)?, file)),
        None => None,
    };
    if layer.is_some() || adopted.is_some() {
        let on_top = layer.as_ref().map(|(layer, _)| layer);
        config = append_to_config(&config, on_top, adopted.as_ref())?;
        config_blob = Blob { digest: Digest::sha256_of(&config), size: config.len() as u64 };
        manifest = append_to_manifest(&manifest, on_top, &config_blob)?;
        manifest_digest = Digest::sha256_of(&manifest);
    }
    let media_type = image.manifest.media_type.clone();
    let image = SparseImage {
        manifest,
        manifest_digest,
        media_type: media_type.unwrap_or_else(|| image.descriptor.media_type.clone()),
        config,
        config_blob,
        tag: image.selected.descriptor.ref_name().map(str::to_owned),
        source: context.source_of(&image.selected)?,
    };
    Ok(Committed { image, layer })
}

fn described(
    commission: &Commission<'_>,
    file: &LayerFile,
    latest: Option<Time>,
) -> Result<NewLayer> {
    let base = &commission.base.image;
    let is_zstd = commission.compression == Compression::Zstd;
    let Some(media_type) = layer_media_type(&base.manifest, is_zstd) else {
        let message = "--compression zstd: the base has Docker's media types, which have no zstd; \
                       use gzip";
        return Err(Error::new(ErrorKind::Usage, message));
    };
    // Without a clock: the same upper directory gives the same image.
    let created = match (latest, base.config.configuration.created()) {
        (Some(latest), _) => rfc3339(latest.seconds),
        // Whiteouts alone have no time.
        (None, Some(created)) if file.newest == Time::default() => created.clone(),
        (None, _) => rfc3339(file.newest.seconds),
    };
    Ok(NewLayer {
        media_type: media_type.to_owned(),
        blob: file.blob,
        diff_id: file.diff_id,
        created,
        created_by: commission.created_by.to_owned(),
    })
}

/// Seconds since 1970 for a document; what RFC 3339 cannot say is brought into its range.
fn rfc3339(seconds: i64) -> String {
    let since = Duration::from_secs(seconds.clamp(0, LAST_SECOND).unsigned_abs());
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

/// The settings (environment, user, labels) of the image that the extender left in `extended`, if
/// it extends the same base: they come from instructions that no upper directory shows.
fn adopted_settings(
    context: &Context,
    extended: &Path,
    base: &ImageConfig,
) -> Result<Option<Value>> {
    let former = former_images(&extended.join("run"))?;
    let [directory] = &former[..] else { return Ok(None) };
    let selected = Selected::open(directory, None, &context.platform)?;
    let descriptor = &selected.descriptor;
    let Some(bytes) = read_blob_document(directory, &descriptor.blob)? else { return Ok(None) };
    let Document::Manifest(manifest) = parse_document(descriptor, &bytes)? else {
        return Ok(None);
    };
    let Some(bytes) = read_blob_document(directory, &manifest.config.blob)? else {
        return Ok(None);
    };
    let config = ImageConfig::parse(&manifest.config, &bytes)?;
    if !config.diff_ids.starts_with(&base.diff_ids) {
        return Ok(None);
    }
    tracing::info!(image = %directory.display(), "taking over its configuration");
    Ok(settings(&bytes)?)
}

/// What stands in `<extended>/run`. Only image layouts may be replaced.
///
/// # Errors
/// There is something else.
pub fn former_images(run: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: &std::io::Error| Error::local(format!("cannot list {}", run.display()), e);
    let entries = match std::fs::read_dir(run) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(&e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| failed(&e))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let is_digest = name.is_some_and(|name| name.parse::<Digest>().is_ok());
        if !is_digest || !path.join("index.json").is_file() {
            let message =
                format!("{}: expected only extended images in {}", path.display(), run.display());
            return Err(Error::new(ErrorKind::Usage, message));
        }
        found.push(path);
    }
    Ok(found)
}

impl Committed {
    fn new_layer(&self) -> Vec<(Blob, PathBuf)> {
        let of = |(layer, file): &(NewLayer, LayerFile)| (layer.blob, file.file.path().to_owned());
        self.layer.iter().map(of).collect()
    }
}

/// A layout in `target`, with the layers that the base's layout has: an earlier commit's are
/// nowhere else.
fn write_layout(committed: &Committed, base: &Image, target: &Path) -> Result<PathBuf> {
    let from = &base.selected.directory;
    let mut files = committed.new_layer();
    for layer in base.layers()? {
        if is_present(from, &layer.blob) {
            files.push((layer.blob, blob_path(from, &layer.blob.digest)));
        }
    }
    committed.image.write_with(target, &[], &files)?;
    Ok(target.to_owned())
}

/// `<target>/run/<digest>`, alone there: the exporter takes no second one, and copies every layer
/// whose blob it finds.
fn write_extended(committed: &Committed, target: &Path) -> Result<PathBuf> {
    let run = target.join("run");
    former_images(&run)?;
    let new = tempfile::Builder::new()
        .prefix(".layoutfs-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in(target)
        .map_err(|e| Error::local(format!("cannot write in {}", target.display()), &e))?;
    let name = committed.image.manifest_digest.to_string();
    committed.image.write_with(&new.path().join(&name), &[], &committed.new_layer())?;
    put_in_place(new, &run)?;
    Ok(run.join(name))
}

fn report(context: &Context, outcome: &Outcome) -> Result<()> {
    let Outcome { committed, counts, directory } = outcome;
    let digest = committed.image.manifest_digest.to_string();
    let Counts { added, changed, removed, pruned, sockets, mount_points } = counts;
    if context.options.json {
        let layer = committed.layer.as_ref();
        return print_json(&json!({
            "digest": digest,
            "directory": directory,
            "layer": layer.map(|(layer, _)| layer.blob.digest.to_string()),
            "diff_id": layer.map(|(layer, _)| layer.diff_id.to_string()),
            "media_type": layer.map(|(layer, _)| &layer.media_type),
            "layer_bytes": layer.map_or(0, |(layer, _)| layer.blob.size),
            "tar_bytes": layer.map_or(0, |(_, file)| file.tar_bytes),
            "added": added,
            "changed": changed,
            "removed": removed,
            "pruned": pruned,
            "sockets": sockets,
            "mount_points": mount_points,
        }));
    }
    outcome.say(context);
    out!("{digest}");
    Ok(())
}

impl Outcome {
    /// The manifest's digest.
    pub fn digest(&self) -> Digest {
        self.committed.image.manifest_digest
    }

    /// The new layer's blob, if anything was changed.
    pub fn layer(&self) -> Option<Blob> {
        self.committed.layer.as_ref().map(|(layer, _)| layer.blob)
    }

    /// Tells people what was changed.
    pub fn say(&self, context: &Context) {
        let Counts { added, changed, removed, pruned, .. } = &self.counts;
        match &self.committed.layer {
            Some((layer, file)) => context.say(format_args!(
                "layer {}, {} ({} in the tar): {added} added, {changed} changed, {removed} \
                 removed; {pruned} unchanged copies left out",
                layer.blob.digest.short(),
                size(layer.blob.size),
                size(file.tar_bytes),
            )),
            None => context.say(format_args!(
                "no layer: nothing was changed ({pruned} unchanged copies left out)"
            )),
        }
    }
}
