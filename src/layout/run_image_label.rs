//! The label in which the lifecycle says what an application image stands on: its run image's names.
//!
//! `io.buildpacks.lifecycle.metadata` (platform specification, "Layers Metadata Label"). An image
//! that was exported to a layout names its run image by the *path* of a layout in the lifecycle's
//! container, `/layout-repo/<registry>/<repository>/<tag>`.

use serde::Deserialize;

use super::buildpacks::LAYOUT_REPO;
use super::error::{Error, Result};
use super::reference::Reference;

/// Where the lifecycle keeps what it needs to rebase an image.
pub const METADATA_LABEL: &str = "io.buildpacks.lifecycle.metadata";

/// More names than anybody has mirrors; those beyond are not looked at.
const NAMES_MAX: usize = 16;

/// A registry, a repository and a tag: what every layout path has.
const PATH_PARTS_MIN: usize = 3;

/// Deeper than any layout directory in a container, with the repository's parts.
const PATH_PARTS_MAX: usize = 32;

/// One name of a run image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunImageName {
    /// In a registry.
    Reference(Reference),
    /// The path of a layout, as the lifecycle's container saw it: its parts, without digest.
    LayoutPath(Vec<String>),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawMetadata {
    run_image: Option<RawRunImage>,
    stack: Option<RawStack>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawStack {
    run_image: Option<RawRunImage>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawRunImage {
    reference: Option<String>,
    image: Option<String>,
    mirrors: Option<Vec<String>>,
}

/// The names of the run image, each once: first the one that it was read from, then the one that
/// the platform calls it by, then its mirrors. A name that is neither a path nor a reference (such
/// as the image ID that a daemon gives) is left out.
///
/// # Errors
/// [`Error::Document`] for a label that is not the JSON object that the lifecycle writes.
pub fn run_image_names(label: &str) -> Result<Vec<RunImageName>> {
    let metadata: RawMetadata = serde_json::from_str(label)
        .map_err(|e| Error::document(format!("label {METADATA_LABEL}"), e.to_string()))?;
    let own = metadata.run_image;
    // Before Platform API 0.12 only the stack names images.
    let stack = metadata.stack.and_then(|stack| stack.run_image);
    let mut names = Vec::new();
    let reference = own.as_ref().and_then(|run| run.reference.as_deref());
    let images = [&own, &stack].into_iter().flatten();
    let named =
        images.flat_map(|run| run.image.iter().chain(run.mirrors.iter().flatten())).map(|s| &**s);
    // A reference has a digest; without one it is the ID of an image in a daemon.
    for name in reference.filter(|r| r.contains('@')).into_iter().chain(named).filter_map(parse) {
        if names.len() < NAMES_MAX && !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

fn parse(name: &str) -> Option<RunImageName> {
    let Some(path) = name.strip_prefix('/') else {
        return name.parse().ok().map(RunImageName::Reference);
    };
    let path = path.rsplit_once('@').map_or(path, |(path, _)| path);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let is_usable = (PATH_PARTS_MIN..=PATH_PARTS_MAX).contains(&parts.len())
        && !parts.iter().any(|part| matches!(*part, "." | ".."));
    let owned = || parts.iter().map(|part| (*part).to_owned()).collect();
    is_usable.then(|| RunImageName::LayoutPath(owned()))
}

impl RunImageName {
    /// The reference that this name stands for. Of a path that is what follows `layout-repo`, else
    /// what begins with something like a registry; `None` when nothing does.
    pub fn reference(&self) -> Option<Reference> {
        let parts = match self {
            RunImageName::Reference(reference) => return Some(reference.clone()),
            RunImageName::LayoutPath(parts) => parts,
        };
        let start = match parts.iter().position(|part| part == LAYOUT_REPO) {
            Some(at) => at + 1,
            None => parts.iter().position(|part| part.contains(['.', ':']))?,
        };
        Reference::from_layout_path(&parts[start..].join("/"))
    }

    /// Where the layout of this name may be below a directory, longest path first. (The layout
    /// directory has another name here than in the lifecycle's container.)
    pub fn layout_paths(&self) -> Vec<String> {
        match self {
            RunImageName::Reference(reference) => {
                let path = reference.layout_path();
                vec![format!("{LAYOUT_REPO}/{path}"), path]
            }
            RunImageName::LayoutPath(parts) => {
                (0..=parts.len() - PATH_PARTS_MIN).map(|from| parts[from..].join("/")).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn names(label: &str) -> Vec<String> {
        let shown = |name: &RunImageName| match name {
            RunImageName::LayoutPath(parts) => format!("/{}", parts.join("/")),
            RunImageName::Reference(reference) => reference.to_string(),
        };
        run_image_names(label).unwrap().iter().map(shown).collect()
    }

    #[test]
    fn a_layout_export_names_the_path_once() {
        let path = "/layout-repo/reg.example/cnb/run/base";
        let label = format!(
            r#"{{"app": null, "runImage": {{"topLayer": "sha256:{HEX}",
                "reference": "{path}@sha256:{HEX}", "image": "{path}"}},
                "stack": {{"runImage": {{"image": "{path}"}}}}}}"#
        );
        assert_eq!(names(&label), [path]);
    }

    #[test]
    fn image_and_mirrors_follow_what_was_read() {
        let label = format!(
            r#"{{"runImage": {{"reference": "mirror.example/run@sha256:{HEX}",
                "image": "reg.example/run:base", "mirrors": ["mirror.example/run", "x y"]}},
                "stack": {{"runImage": {{"image": "old.example/run", "mirrors": null}}}}}}"#
        );
        let expected = [
            &*format!("mirror.example/run@sha256:{HEX}"),
            "reg.example/run:base",
            "mirror.example/run:latest",
            "old.example/run:latest",
        ];
        assert_eq!(names(&label), expected);
    }

    #[test]
    fn an_image_id_of_a_daemon_is_no_name() {
        let label = format!(r#"{{"runImage": {{"reference": "{HEX}"}}}}"#);
        assert_eq!(names(&label), [""; 0]);
        assert_eq!(names("{}"), [""; 0]);
    }

    #[test]
    fn what_the_lifecycle_does_not_write_is_an_error() {
        for label in ["", "null!", "3", r#"{"runImage": 3}"#, r#"{"runImage": {"mirrors": "a"}}"#] {
            let error = run_image_names(label).expect_err(label).to_string();
            assert!(error.contains(METADATA_LABEL), "{error}");
        }
    }

    #[test]
    fn a_label_with_endless_mirrors_is_cut() {
        let mirrors: Vec<String> = (0..1000).map(|n| format!("\"r.io/m{n}\"")).collect();
        let label = format!(r#"{{"runImage": {{"mirrors": [{}]}}}}"#, mirrors.join(","));
        assert_eq!(names(&label).len(), NAMES_MAX);
    }

    fn name(text: &str) -> RunImageName {
        parse(text).expect(text)
    }

    #[test]
    fn a_path_stands_for_the_reference_below_the_layout_directory() {
        for (path, reference) in [
            ("/layout-repo/reg.example/cnb/run/base", Some("reg.example/cnb/run:base")),
            ("/a/b/layout-repo/localhost/run/base", Some("localhost/run:base")),
            ("/layouts/reg.example/cnb/run/base", Some("reg.example/cnb/run:base")),
            ("/layouts/run/base", None),
            ("/a/b/layout-repo", None),
        ] {
            let found = name(path).reference().map(|r| r.to_string());
            assert_eq!(found.as_deref(), reference, "{path}");
        }
    }

    #[test]
    fn its_layout_is_looked_for_under_every_end_of_the_path() {
        let path = "/layout-repo/reg.example/cnb/run/base";
        let ends =
            ["layout-repo/reg.example/cnb/run/base", "reg.example/cnb/run/base", "cnb/run/base"];
        assert_eq!(name(path).layout_paths(), ends);
        assert_eq!(name("reg.example/cnb/run:base").layout_paths(), ends[..2]);
    }

    #[test]
    fn a_path_that_climbs_or_never_ends_is_no_name() {
        for path in ["/", "/a/b", "/layout-repo/../../etc/x/y", &"/a".repeat(1000)] {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
