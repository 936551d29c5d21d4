//! `layoutfs finalize`: an exported application image gets what the extension set.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args;
use super::context::{Context, absolute, directory_of, print_json};
use crate::fetch::in_place::replace_config;
use crate::fetch::layout_dir::read_document;
use crate::fetch::local_image::LocalImage;
use crate::fetch::run_image;
use crate::fetch::{Error, ErrorKind, Result};
use crate::layout::Digest;
use crate::layout::buildpacks::{LAYOUT_REPO, RunImage};
use crate::layout::image_argument::{ImageArgument, Selector};
use crate::layout::oci::finalize::{Changes, Configs, finalize};

/// Names between a layout directory and an image in it: registry, repository and tag at least.
const LAYOUT_PATH_NAMES_MIN: usize = 3;

/// The images that the application's was made of.
struct Below {
    base: LocalImage,
    extended: LocalImage,
    /// The base, as the lifecycle's labels name it.
    identifier: String,
}

/// What there was to do.
enum Outcome {
    /// Nothing, and why.
    Unchanged(String),
    /// The new manifest, what its configuration has now, and how many layers have another media type.
    Changed(Digest, Changes, usize),
}

pub fn run(context: &Context, args: &args::Finalize) -> Result<()> {
    let exported = open(context, &args.app_layout)?;
    let below = match below(context, &args.extended, exported.directory())? {
        Ok(below) => below,
        Err(reason) => {
            return report(context, &exported, None, &Outcome::Unchanged(reason));
        }
    };
    if exported.selected.descriptor.blob.digest == below.base.selected.descriptor.blob.digest {
        let message = format!(
            "{} is the run image itself: expected the layout of the application that was exported",
            exported.directory().display()
        );
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let configs = Configs {
        base: &below.base.config_bytes,
        extended: &below.extended.config_bytes,
        exported: &exported.config_bytes,
    };
    let finalized = finalize(configs, &below.identifier).map_err(|e| {
        Error::from(e).context(format_args!(
            "{} on {}, extended by {}",
            exported.directory().display(),
            below.base.directory().display(),
            below.extended.directory().display()
        ))
    })?;
    let outcome = match finalized {
        None => Outcome::Unchanged("it has the extended image's settings already".to_owned()),
        Some(finalized) => {
            let (digest, retyped) = replace_config(&exported, &finalized.config)?;
            Outcome::Changed(digest, finalized.changes, retyped)
        }
    };
    report(context, &exported, Some(&below), &outcome)
}

fn open(context: &Context, layout: &str) -> Result<LocalImage> {
    if !layout.contains(':') && !Path::new(layout).exists() {
        let message = format!("{layout}: no such directory: the exporter writes it");
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    let ImageArgument::Layout { directory, selector } = context.argument(layout)? else {
        let message = "finalize changes a layout on disk: oci:DIR or a directory";
        return Err(Error::new(ErrorKind::Usage, message));
    };
    let reference = selector.map(|selector| match selector {
        Selector::Tag(tag) => tag,
        Selector::Digest(digest) => digest.to_string(),
    });
    LocalImage::open(&absolute(&directory)?, reference.as_deref(), &context.platform)
}

/// The extended image and its base; or why the application's image needs nothing of them.
fn below(
    context: &Context,
    extended: &Path,
    exported: &Path,
) -> Result<std::result::Result<Below, String>> {
    let parent = absolute(extended)?;
    let run = parent.join("run");
    let Some(extended) = extended_image(context, &run)? else {
        return Ok(Err(format!("there is no extended image in {}", run.display())));
    };
    let analyzed = parent.join("../analyzed.toml");
    let analyzed = analyzed.canonicalize().unwrap_or(analyzed);
    let Some(bytes) = read_document(&analyzed)? else {
        let message = format!(
            "{}: no such file: it names the run image that was extended",
            analyzed.display()
        );
        return Err(Error::new(ErrorKind::NotFound, message));
    };
    let run_image = RunImage::parse_analyzed(&bytes)
        .map_err(|e| Error::from(e).context(analyzed.display()))?
        .ok_or_else(|| {
            let message = format!("{}: it has no [run-image]", analyzed.display());
            Error::new(ErrorKind::Invalid, message)
        })?;
    if !run_image.extend {
        return Ok(Err(format!("{} does not say extend = true", analyzed.display())));
    }
    let base = base_image(context, &run_image, exported)?;
    let identifier = run_image.identifier(&base.selected.descriptor.blob.digest);
    Ok(Ok(Below { base, extended, identifier }))
}

/// The only image in `run`, if it has one. (The exporter takes no second one either.)
fn extended_image(context: &Context, run: &Path) -> Result<Option<LocalImage>> {
    let failed = |e: &std::io::Error| Error::local(format!("cannot list {}", run.display()), e);
    let entries = match std::fs::read_dir(run) {
        Ok(entries) => entries.collect::<std::io::Result<Vec<_>>>().map_err(|e| failed(&e))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(&e)),
    };
    match &entries[..] {
        [] => Ok(None),
        [entry] => LocalImage::open(&entry.path(), None, &context.platform).map(Some),
        [first, second, ..] => {
            let message = format!(
                "{}: expected one extended image, got {} entries: {}, {}, ...",
                run.display(),
                entries.len(),
                first.file_name().display(),
                second.file_name().display()
            );
            Err(Error::new(ErrorKind::Invalid, message))
        }
    }
}

fn base_image(context: &Context, run_image: &RunImage, exported: &Path) -> Result<LocalImage> {
    let mounted_at = directory_of("CNB_LAYOUT_DIR");
    let directories = layout_directories(mounted_at.as_deref(), exported);
    let mounted_at = mounted_at.as_ref().and_then(|path| path.to_str());
    let directory = run_image::find(run_image, mounted_at, &directories)?;
    let digest = run_image.digest().map(|digest| digest.to_string());
    LocalImage::open(&directory, digest.as_deref(), &context.platform)
}

/// Where the layout directory may be, likeliest first: `$CNB_LAYOUT_DIR` (that of the phases, which
/// need not be here), then those in which the application's layout lies.
fn layout_directories(mounted_at: Option<&Path>, exported: &Path) -> Vec<PathBuf> {
    let exported = exported.canonicalize().unwrap_or_else(|_| exported.to_owned());
    let mut all: Vec<PathBuf> =
        mounted_at.into_iter().filter(|path| path.is_dir()).map(Path::to_owned).collect();
    let ancestors = || exported.ancestors().skip(LAYOUT_PATH_NAMES_MIN).map(Path::to_owned);
    all.extend(ancestors().filter(|path| path.file_name().is_some_and(|n| n == LAYOUT_REPO)));
    all.extend(ancestors());
    let mut seen = std::collections::HashSet::new();
    all.retain(|path| seen.insert(path.clone()));
    all
}

fn report(
    context: &Context,
    exported: &LocalImage,
    below: Option<&Below>,
    outcome: &Outcome,
) -> Result<()> {
    let directory = exported.directory();
    let none = Changes::default();
    let (digest, changes, retyped, reason) = match outcome {
        Outcome::Unchanged(reason) => {
            (exported.selected.descriptor.blob.digest, &none, 0, Some(reason))
        }
        Outcome::Changed(digest, changes, retyped) => (*digest, changes, *retyped, None),
    };
    if context.options.json {
        let named = |image: &LocalImage| image.selected.descriptor.blob.digest.to_string();
        return print_json(&json!({
            "digest": digest.to_string(),
            "changed": reason.is_none(),
            "reason": reason,
            "directory": directory,
            "base": below.map(|below| named(&below.base)),
            "extended": below.map(|below| named(&below.extended)),
            "env": changes.env,
            "labels": changes.labels,
            "settings": changes.settings,
            "layers_retyped": retyped,
        }));
    }
    let list = |what: &str, names: &[String]| match names {
        [] => format!("no {what}"),
        names => format!("{what} {}", names.join(", ")),
    };
    match reason {
        Some(reason) => {
            context.say(format_args!("{}: nothing to change: {reason}", directory.display()));
        }
        None => context.say(format_args!(
            "{}: changed {}; {}; {}{}",
            directory.display(),
            list("environment", &changes.env),
            list("labels", &changes.labels),
            list("settings", &changes.settings),
            match retyped {
                0 => String::new(),
                _ => format!("; the media types of {retyped} layers"),
            }
        )),
    }
    out!("{digest}");
    Ok(())
}
