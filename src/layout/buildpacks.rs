//! What the lifecycle's phases tell each other: the run image in `analyzed.toml`, the extensions
//! in `group.toml` (Platform API 0.12 to 0.15, platform specification `platform.md`).

use serde::Deserialize;

use super::digest::Digest;
use super::error::{Error, Result};
use super::reference::Reference;

/// A layout path has a registry, a repository and a tag at least.
const LAYOUT_PATH_NAMES_MIN: usize = 3;

/// How the lifecycle writes the history of an extension's layer, before and after the instruction.
const HISTORY_START: &str = "Layer: '";
const HISTORY_MIDDLE: &str = "', Created by extension: ";

/// Most characters of instructions in one line of history: people read it.
const HISTORY_CHARS_MAX: usize = 1000;

/// The directory that `pack` shows its phases as the layout directory.
pub const LAYOUT_REPO: &str = "layout-repo";

/// The table `[run-image]` of `analyzed.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct RunImage {
    /// Which image exactly: `<layout path>@<digest>` when the phases use a layout; else a reference.
    pub reference: String,
    /// The name that it was asked for by: a layout path, or an image name.
    pub image: String,
    /// A Dockerfile is to be applied to it.
    pub extend: bool,
}

/// One of `[[group-extensions]]` of `group.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Extension {
    /// `vendor/name`.
    pub id: String,
    /// Its version.
    #[serde(default)]
    pub version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Analyzed {
    run_image: Option<RunImage>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Group {
    #[serde(default)]
    group_extensions: Vec<Extension>,
}

impl RunImage {
    /// The run image of `analyzed.toml`, if it has one.
    ///
    /// # Errors
    /// [`Error::Document`] for what is not such a file.
    pub fn parse_analyzed(bytes: &[u8]) -> Result<Option<RunImage>> {
        Ok(parse::<Analyzed>("analyzed.toml", bytes)?.run_image)
    }

    /// The digest of its manifest, if the reference has one.
    pub fn digest(&self) -> Option<Digest> {
        let (_, digest) = self.reference.rsplit_once('@')?;
        digest.parse().ok()
    }

    /// How the lifecycle names the image `digest` at the same place: `<path>@<digest>`, the path
    /// without what says nothing.
    pub fn identifier(&self, digest: &Digest) -> String {
        let place = self.reference.rsplit_once('@').map_or(&*self.reference, |(place, _)| place);
        let mut names: Vec<&str> = Vec::new();
        for name in place.split('/') {
            match name {
                "" | "." => {}
                ".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        let root = if place.starts_with('/') { "/" } else { "" };
        format!("{root}{}@{digest}", names.join("/"))
    }

    /// The paths below a layout directory where its layout may be, likeliest first. `mounted_at` is
    /// where the phases see the layout directory.
    pub fn layout_paths(&self, mounted_at: Option<&str>) -> Vec<String> {
        let place = self.reference.rsplit_once('@').map_or(&*self.reference, |(place, _)| place);
        let mut paths = Vec::new();
        for name in [place, &self.image, &self.reference] {
            if name.starts_with('/') {
                let place = name.rsplit_once('@').map_or(name, |(place, _)| place);
                paths.extend(paths_of_place(place, mounted_at));
            } else if let Ok(reference) = name.parse::<Reference>() {
                paths.push(reference.layout_path());
            }
        }
        paths.retain(|path| path.split('/').all(|name| !matches!(name, "" | "." | "..")));
        let mut seen = std::collections::HashSet::new();
        paths.retain(|path| seen.insert(path.clone()));
        paths
    }

    /// A name by which the image can be asked for again: what `sparse` takes.
    pub fn image_name(&self, mounted_at: Option<&str>) -> Option<Reference> {
        if !self.image.starts_with('/')
            && let Ok(reference) = self.image.parse()
        {
            return Some(reference);
        }
        let paths = self.layout_paths(mounted_at);
        paths.first().and_then(|path| Reference::from_layout_path(path))
    }
}

/// The part of `place` below the layout directory: what follows `mounted_at`, else every end of it
/// that is long enough, first that below a directory `layout-repo`.
fn paths_of_place(place: &str, mounted_at: Option<&str>) -> Vec<String> {
    let below = mounted_at.map(|at| at.trim_end_matches('/')).and_then(|at| place.strip_prefix(at));
    if let Some(path) = below.and_then(|rest| rest.strip_prefix('/')) {
        return vec![path.to_owned()];
    }
    let names: Vec<&str> = place.split('/').filter(|name| !name.is_empty()).collect();
    let ends = 0..(names.len() + 1).saturating_sub(LAYOUT_PATH_NAMES_MIN);
    let below_repo = names.iter().position(|name| *name == LAYOUT_REPO).map(|at| at + 1);
    let first = below_repo.filter(|from| ends.contains(from));
    first.into_iter().chain(ends).map(|from| names[from..].join("/")).collect()
}

impl Extension {
    /// The extensions of `group.toml`, in the order in which they are applied.
    ///
    /// # Errors
    /// [`Error::Document`] for what is not such a file.
    pub fn parse_group(bytes: &[u8]) -> Result<Vec<Extension>> {
        let extensions = parse::<Group>("group.toml", bytes)?.group_extensions;
        if let Some(other) = extensions.iter().find(|e| matches!(&*e.id, "" | "." | "..")) {
            let reason = format!("an extension has the id {:?}", other.id);
            return Err(Error::document("group.toml", reason));
        }
        Ok(extensions)
    }

    /// Its Dockerfile for the run image, relative to the directory of what was generated.
    pub fn dockerfile(&self, api: PlatformApi) -> String {
        let name = self.directory_name();
        match api.has_one_directory_an_extension() {
            true => format!("{name}/run.Dockerfile"),
            false => format!("run/{name}/Dockerfile"),
        }
    }

    /// Where its build context may be, relative to the same directory, best first; else it is the
    /// application.
    pub fn contexts(&self, api: PlatformApi) -> Vec<String> {
        let name = self.directory_name();
        match api.has_one_directory_an_extension() {
            true => vec![format!("{name}/context.run"), format!("{name}/context")],
            false => Vec::new(),
        }
    }

    /// The lifecycle escapes `/`, and nothing else. What leads elsewhere has no name.
    fn directory_name(&self) -> String {
        self.id.replace('/', "_")
    }
}

/// A version of the platform specification: `0.12` and later know run image extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlatformApi {
    major: u32,
    minor: u32,
}

impl PlatformApi {
    /// The first that can extend a run image.
    pub const FIRST: PlatformApi = PlatformApi { major: 0, minor: 12 };
    /// The last that this was tried with.
    pub const LAST_KNOWN: PlatformApi = PlatformApi { major: 0, minor: 15 };

    /// Since 0.13: `<generated>/<extension>/run.Dockerfile`, with build contexts beside it.
    fn has_one_directory_an_extension(self) -> bool {
        self >= PlatformApi { major: 0, minor: 13 }
    }
}

impl std::str::FromStr for PlatformApi {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('.').and_then(|(major, minor)| {
            Some(PlatformApi { major: major.parse().ok()?, minor: minor.parse().ok()? })
        });
        let shown: String = text.chars().take(40).collect();
        parsed.ok_or_else(|| {
            Error::document(format!("Platform API {shown:?}"), "expected two numbers, such as 0.13")
        })
    }
}

impl std::fmt::Display for PlatformApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What the history says of one layer in place of several: every instruction, every extension once.
/// Steps that the lifecycle did not write as an extension's are passed over; `None` if all are.
pub fn joined_history<'a>(created_by: impl Iterator<Item = &'a str>) -> Option<String> {
    let (mut instructions, mut extensions) = (Vec::new(), Vec::new());
    for step in created_by {
        let parts =
            step.strip_prefix(HISTORY_START).and_then(|rest| rest.rsplit_once(HISTORY_MIDDLE));
        let Some((instruction, extension)) = parts else { continue };
        instructions.push(instruction);
        if !extensions.contains(&extension) {
            extensions.push(extension);
        }
    }
    if extensions.is_empty() {
        return None;
    }
    Some(history(&instructions.join("; "), &extensions.join(", ")))
}

/// A layer's history as the lifecycle writes it.
pub fn history(instructions: &str, extensions: &str) -> String {
    let instructions: String = instructions.chars().take(HISTORY_CHARS_MAX).collect();
    format!("{HISTORY_START}{instructions}{HISTORY_MIDDLE}{extensions}")
}

fn parse<'a, T: Deserialize<'a>>(document: &str, bytes: &'a [u8]) -> Result<T> {
    // A message of the parser shows the line; one line of it is enough.
    let first_line = |e: toml::de::Error| {
        Error::document(document, e.message().lines().next().unwrap_or_default())
    };
    toml::from_slice(bytes).map_err(first_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn analyzed(reference: &str, image: &str) -> RunImage {
        let text = format!(
            "[image]\nreference = \"x\"\n[run-image]\nreference = \"{reference}\"\n\
             image = \"{image}\"\nextend = true\n[run-image.target]\nos = \"linux\"\n"
        );
        RunImage::parse_analyzed(text.as_bytes()).expect("parsed").expect("a run image")
    }

    #[test]
    fn the_path_is_what_follows_the_layout_directory_of_the_phases() {
        let run = analyzed(
            &format!("/layout-repo/reg.example/cnb/run/base@sha256:{HEX}"),
            "/layout-repo/reg.example/cnb/run/base",
        );
        assert!(run.extend);
        assert_eq!(run.digest().map(|d| d.hex()), Some(HEX.to_owned()));
        assert_eq!(run.layout_paths(Some("/layout-repo/")), ["reg.example/cnb/run/base"]);
        let guessed = run.layout_paths(None);
        assert_eq!(
            guessed,
            ["reg.example/cnb/run/base", "layout-repo/reg.example/cnb/run/base", "cnb/run/base"]
        );
        for mounted_at in [Some("/layout-repo"), None] {
            let name = run.image_name(mounted_at).map(|r| r.to_string());
            assert_eq!(name.as_deref(), Some("reg.example/cnb/run:base"));
        }
    }

    #[test]
    fn an_identifier_has_the_clean_path() {
        let digest = Digest::sha256_of(b"");
        for (reference, expected) in [
            ("/layout-repo/reg/run/base@sha256:0", "/layout-repo/reg/run/base"),
            ("//layout-repo/./x/../reg//run/base/", "/layout-repo/reg/run/base"),
            ("reg.example/run@sha256:0", "reg.example/run"),
        ] {
            assert_eq!(analyzed(reference, "").identifier(&digest), format!("{expected}@{digest}"));
        }
    }

    #[test]
    fn a_switched_run_image_is_found_by_name_and_by_digest() {
        let run = analyzed("reg.example/other/run:2", "reg.example/other/run:2");
        assert_eq!(run.layout_paths(Some("/layout-repo")), ["reg.example/other/run/2"]);
        assert_eq!(run.digest(), None);
        let run = analyzed(&format!("reg.example/a/b@sha256:{HEX}"), "reg.example/a/b:v1");
        let paths = run.layout_paths(None);
        assert!(paths.contains(&format!("reg.example/a/b/sha256/{HEX}")), "{paths:?}");
        assert!(paths.contains(&"reg.example/a/b/v1".to_owned()), "{paths:?}");
    }

    #[test]
    fn no_path_leaves_the_layout_directory() {
        let run = analyzed("/layout-repo/../../etc/x/y/z", "");
        for path in run.layout_paths(Some("/layout-repo")) {
            assert!(!path.contains(".."), "{path}");
        }
    }

    #[test]
    fn extensions_come_in_their_order_with_their_files() {
        let text = "[[group]]\nid = \"ex/bp\"\n[[group-extensions]]\nid = \"ex/ext\"\n\
                    version = \"1\"\napi = \"0.10\"\n[[group-extensions]]\nid = \"b\"\n";
        let extensions = Extension::parse_group(text.as_bytes()).expect("parsed");
        let [first, second] = &extensions[..] else { panic!("{extensions:?}") };
        let api = |text: &str| text.parse::<PlatformApi>().expect("a version");
        assert_eq!(first.dockerfile(api("0.12")), "run/ex_ext/Dockerfile");
        assert_eq!(first.dockerfile(api("0.13")), "ex_ext/run.Dockerfile");
        assert_eq!(second.contexts(api("0.15")), ["b/context.run", "b/context"]);
        assert_eq!(second.contexts(api("0.12")), [""; 0]);
    }

    #[test]
    fn one_layer_says_what_several_said() {
        let steps = [
            "debootstrap",
            "Layer: 'RUN echo 'a'', Created by extension: ex/ext",
            "Layer: 'COPY x /y', Created by extension: ex/ext",
            "Layer: 'RUN z', Created by extension: other",
        ];
        let joined = joined_history(steps.into_iter());
        let expected =
            "Layer: 'RUN echo 'a'; COPY x /y; RUN z', Created by extension: ex/ext, other";
        assert_eq!(joined.as_deref(), Some(expected));
        assert_eq!(joined_history(["debootstrap"].into_iter()), None);
    }

    #[test]
    fn what_is_not_such_a_file_is_refused() {
        for bytes in [&b"run-image = 3"[..], b"[run-image]\nextend = \"yes\"", b"\xff", b"= "] {
            RunImage::parse_analyzed(bytes).expect_err("no analyzed.toml");
        }
        assert_eq!(RunImage::parse_analyzed(b"").expect("parsed"), None);
        Extension::parse_group(b"[[group-extensions]]\nid = \"..\"\n").expect_err("no id");
        for text in ["", "1", "0.x", "0.12.1", "-1.2"] {
            text.parse::<PlatformApi>().expect_err(text);
        }
    }
}
