//! Where the missing blobs of a layout are: who is asked, in which order.

use std::path::{Path, PathBuf};

use super::context::directory_of;
use crate::fetch::image::Selected;
use crate::fetch::{Error, ErrorKind, Result};
use crate::layout::buildpacks::LAYOUT_REPO;
use crate::layout::oci::Platform;
use crate::layout::reference::Reference;
use crate::layout::run_image_label::{METADATA_LABEL, RunImageName, run_image_names};

/// The repository without tag, as `sparse` records it.
pub fn repository(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// What `--source` says; nobody else is asked then.
///
/// # Errors
/// One of them is no reference.
pub fn given(sources: &[String]) -> Result<Vec<Reference>> {
    let parsed = sources.iter().map(|source| source.parse());
    let parsed: std::result::Result<Vec<Reference>, _> = parsed.collect();
    parsed.map_err(|e| Error::new(ErrorKind::Usage, format!("--source: {e}")))
}

/// What the layout tells. Where `sparse` recorded its source, that is all there is to ask. An
/// application that the lifecycle exported to a layout lacks its run image's layers, and those are
/// where the run image came from: the application's own repository, which may not even exist, is
/// asked last.
pub fn known(selected: &Selected, platform: &Platform) -> Vec<Reference> {
    if let Some(source) = recorded(selected) {
        return vec![source];
    }
    let named = || selected.descriptor.image_name().and_then(|name| name.parse().ok());
    let own = reference_of_path(&selected.directory).or_else(named);
    let mut sources: Vec<Reference> = Vec::new();
    for source in run_image_sources(selected, platform).into_iter().chain(own) {
        if !sources.iter().any(|known| repository(known) == repository(&source)) {
            sources.push(source);
        }
    }
    sources
}

fn recorded(selected: &Selected) -> Option<Reference> {
    selected.recorded_source().and_then(|source| source.parse().ok())
}

/// Where the run image of an application comes from: for each name in the label what the layout of
/// that name recorded, if it is here (the name may be one that `sparse --as` made up), else the
/// name. Empty for any other image.
fn run_image_sources(selected: &Selected, platform: &Platform) -> Vec<Reference> {
    let Some(config) = selected.local_config(platform) else { return Vec::new() };
    let Some(label) = config.label(METADATA_LABEL) else { return Vec::new() };
    let names = match run_image_names(label) {
        Ok(names) => names,
        Err(error) => {
            tracing::warn!(%error, "the run image of this application is not known");
            return Vec::new();
        }
    };
    let roots = roots(&selected.directory);
    let source =
        |name| recorded_for(name, &roots, platform).or_else(|| RunImageName::reference(name));
    names.iter().filter_map(source).collect()
}

/// What the layout of a run image recorded as its source, if there is such a layout.
fn recorded_for(name: &RunImageName, roots: &[PathBuf], platform: &Platform) -> Option<Reference> {
    let paths = name.layout_paths();
    let places = roots.iter().flat_map(|root| paths.iter().map(move |path| root.join(path)));
    // Most are not there, and some may be something else: no trouble of theirs is ours.
    let layouts = places.filter_map(|place| Selected::open(&place, None, platform).ok());
    layouts.filter_map(|layout| recorded(&layout)).next()
}

/// Where layouts of other images may be: in `$CNB_LAYOUT_DIR`, and below any directory that this
/// layout is in.
fn roots(directory: &Path) -> Vec<PathBuf> {
    let layout_dir = directory_of("CNB_LAYOUT_DIR");
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    layout_dir.into_iter().chain(directory.ancestors().skip(1).map(Path::to_owned)).collect()
}

/// The reference that a layout's place stands for.
fn reference_of_path(directory: &Path) -> Option<Reference> {
    paths_in_layout_dirs(directory).iter().find_map(|path| Reference::from_layout_path(path))
}

/// A layout's place as the lifecycle would name it: relative to `$CNB_LAYOUT_DIR`, and relative to
/// a directory called `layout-repo`.
pub fn paths_in_layout_dirs(directory: &Path) -> Vec<String> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    let layout_dir = directory_of("CNB_LAYOUT_DIR").and_then(|base| base.canonicalize().ok());
    let repo = directory.ancestors().find(|a| a.file_name().is_some_and(|n| n == LAYOUT_REPO));
    let bases = layout_dir.as_deref().into_iter().chain(repo);
    bases.filter_map(|base| Some(directory.strip_prefix(base).ok()?.to_str()?.to_owned())).collect()
}
