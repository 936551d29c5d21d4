//! Shadow or plain: which, and why.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

use super::super::args::ExtendMode;
use super::phases::Dockerfile;
use crate::fetch::{Error, ErrorKind, Result};
use crate::layout::shadow::{Consequence, Judge, Objection, SourceKind, is_archive};
use crate::layout::tree::Tree;

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The top-level directories that are mounted on themselves; none in plain mode.
    pub shadowed: BTreeSet<String>,
    /// kaniko is kept from looking, and the layer is made of the upper directory.
    pub is_shadow: bool,
    /// Why, for people.
    pub reason: String,
}

impl Decision {
    /// `shadow` or `plain`.
    pub fn name(&self) -> &'static str {
        if self.is_shadow { "shadow" } else { "plain" }
    }

    fn plain(reason: impl Into<String>) -> Self {
        Decision { shadowed: BTreeSet::new(), is_shadow: false, reason: reason.into() }
    }

    fn shadow(shadowed: BTreeSet<String>, reason: impl Into<String>) -> Self {
        Decision { shadowed, is_shadow: true, reason: reason.into() }
    }
}

/// What is known about the image and what is to be done to it.
pub struct Case<'a> {
    /// The rootfs.
    pub tree: &'a Tree,
    /// What can be shadowed.
    pub directories: BTreeSet<String>,
    /// The image's working directory.
    pub working_directory: Option<&'a str>,
    /// The image has instructions for whoever builds on it.
    pub has_triggers: bool,
    /// In the order in which they are applied.
    pub dockerfiles: &'a [Dockerfile],
}

impl Case<'_> {
    /// Decides as `mode` asks.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: shadow is asked for, and would give a wrong image.
    pub fn decide(self, mode: ExtendMode) -> Result<Decision> {
        if mode == ExtendMode::Plain {
            return Ok(Decision::plain("as asked for"));
        }
        let objections = self.objections();
        match (mode, objections) {
            (ExtendMode::Shadow, Ok(objections)) => self.insist(&objections),
            (ExtendMode::Shadow, Err(error)) => Err(error.context("--mode shadow")),
            (_, Ok(objections)) => Ok(match objections.first() {
                None => Decision::shadow(self.directories, "every instruction is safe under it"),
                Some(first) => Decision::plain(said(first)),
            }),
            // What we cannot read may be fine for kaniko.
            (_, Err(error)) => Ok(Decision::plain(error.message)),
        }
    }

    /// Shadow was asked for: leave out what has to be, if that is enough.
    fn insist(self, objections: &[Objection]) -> Result<Decision> {
        let mut shadowed = self.directories;
        let mut spared = BTreeSet::new();
        for objection in objections {
            match (&objection.unless_shadowed, objection.consequence) {
                (Some(top), _) => {
                    shadowed.remove(top);
                    spared.insert(format!("/{top}"));
                }
                (None, Consequence::Differs) => {
                    tracing::warn!("{}, under shadow mounts", said(objection));
                }
                (None, Consequence::WrongImage) => {
                    let message = format!(
                        "--mode shadow would give a wrong image: {}; use --mode plain, or auto",
                        said(objection)
                    );
                    return Err(Error::new(ErrorKind::Usage, message));
                }
            }
        }
        let spared: Vec<String> = spared.into_iter().collect();
        let reason = match spared.is_empty() {
            true => "as asked for".to_owned(),
            false => format!("as asked for, but for {}", spared.join(", ")),
        };
        Ok(Decision::shadow(shadowed, reason))
    }

    fn objections(&self) -> Result<Vec<Objection>> {
        if self.has_triggers {
            return Ok(vec![Objection {
                at: "the run image".to_owned(),
                reason: "ONBUILD: its instructions are not looked at".to_owned(),
                consequence: Consequence::WrongImage,
                unless_shadowed: None,
            }]);
        }
        let mut judge = Judge::new(self.tree, &self.directories, self.working_directory);
        for Dockerfile { name, text, context, .. } in self.dockerfiles {
            let kind = |path: &str| source_kind(context.as_deref(), path);
            judge.read(name, text, kind)?;
        }
        Ok(judge.objections())
    }
}

fn said(objection: &Objection) -> String {
    format!("{}: {}", objection.at, objection.reason)
}

/// What `path` is in a build context. Nothing is followed: a link is no file.
fn source_kind(context: Option<&Path>, path: &str) -> SourceKind {
    let is_inside = path.split('/').all(|name| name != "..");
    let Some(context) = context.filter(|_| is_inside) else { return SourceKind::Other };
    let path = context.join(path.trim_start_matches('/'));
    if !path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
        return SourceKind::Other;
    }
    let mut first = Vec::new();
    let read = std::fs::File::open(&path)
        .and_then(|file| file.take(SourceKind::BYTES_TO_TELL).read_to_end(&mut first));
    match read {
        Ok(_) if !is_archive(&first) => SourceKind::File,
        Ok(_) => SourceKind::Archive,
        Err(_) => SourceKind::Other,
    }
}
