//! Shadow mounts: top-level directories that are mounted on themselves, so that the extender's
//! snapshots pass over them, and the instructions of a Dockerfile that would then do something else.
//!
//! kaniko skips every mount point, both when it looks for changes and when it copies directories.
//! What `RUN` changes is not lost: it is in the overlay's upper directory.

mod script;

use std::collections::BTreeSet;

use parse_dockerfile::{
    AddInstruction, Command, CopyInstruction, Flag, Instruction, RunInstruction, Source, Span,
    UnescapedString,
};

use super::error::{Error, Result};
use super::merge::resolve::follow;
use super::tar::header::{Header, RECORD_BYTES};
use super::tree::{KindRef, NodeId, Tree};

/// Mounted anyway in every container.
const MOUNTED: [&[u8]; 3] = [b"dev", b"proc", b"sys"];

/// Options of `COPY` and `ADD` that do not change what is copied.
const HARMLESS_OPTIONS: [&str; 3] = ["chown", "chmod", "link"];

/// What a path of a build context is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A regular file.
    File,
    /// A regular file that `ADD` unpacks.
    Archive,
    /// A directory, a link, or nothing.
    Other,
}

impl SourceKind {
    /// So many of a file's first bytes tell whether it is an archive: a tar header.
    pub const BYTES_TO_TELL: u64 = RECORD_BYTES as u64;
}

/// What `ADD` unpacks: a tar, or anything compressed, by its first
/// [`BYTES_TO_TELL`](SourceKind::BYTES_TO_TELL) bytes.
pub fn is_archive(first: &[u8]) -> bool {
    const COMPRESSED: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    let is_tar = <&[u8; RECORD_BYTES]>::try_from(first).is_ok_and(|r| Header::parse(r).is_ok());
    is_tar || COMPRESSED.iter().any(|magic| first.starts_with(magic))
}

/// What happens if it is done all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consequence {
    /// A command may fail, or do something else: a guess from the words of a script.
    Differs,
    /// The image would lack what the instruction says, or have more.
    WrongImage,
}

/// An instruction that shadow mounts do not leave alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objection {
    /// `ex_ext/run.Dockerfile:7`.
    pub at: String,
    /// What it is about: lower case, no full stop.
    pub reason: String,
    /// If it is done all the same.
    pub consequence: Consequence,
    /// It is harmless if this top-level directory is not shadowed; `None`: nothing helps.
    pub unless_shadowed: Option<String>,
}

/// The top-level directories of `tree` that can be shadowed: not those that are mounted anyway, nor
/// `taken` (names), nor what the extender could not recognise in its list of mounts.
pub fn top_directories(tree: &Tree, taken: &[&str]) -> BTreeSet<String> {
    let children = tree.children(NodeId::ROOT).unwrap_or_default();
    let directories = children.filter(|(name, node)| {
        let node = tree.node(*node);
        node.is_some_and(|node| node.kind == KindRef::Directory) && !MOUNTED.contains(name)
    });
    let is_plain = |name: &str| {
        // The kernel escapes the rest in its list, and kaniko does not take that back; a colon or a
        // comma means something to mount.
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+@".contains(c);
        name.chars().all(plain) && !taken.contains(&name)
    };
    directories
        .filter_map(|(name, _)| std::str::from_utf8(name).ok())
        .filter(|name| is_plain(name))
        .map(str::to_owned)
        .collect()
}

/// Reads Dockerfiles in the order in which they are applied to an image.
pub struct Judge<'t> {
    tree: &'t Tree,
    shadowed: &'t BTreeSet<String>,
    /// `None`: a variable decides.
    working_directory: Option<String>,
    objections: Vec<Objection>,
}

impl<'t> Judge<'t> {
    /// For an image with this rootfs and working directory, of which `shadowed` are to be shadowed.
    pub fn new(
        tree: &'t Tree,
        shadowed: &'t BTreeSet<String>,
        working_directory: Option<&str>,
    ) -> Self {
        let working_directory = Some(working_directory.unwrap_or("/").to_owned());
        Judge { tree, shadowed, working_directory, objections: Vec::new() }
    }

    /// Reads one more Dockerfile, called `name`; `source` knows its build context.
    ///
    /// # Errors
    /// [`Error::Document`] for what is no Dockerfile.
    pub fn read(
        &mut self,
        name: &str,
        text: &str,
        source: impl Fn(&str) -> SourceKind,
    ) -> Result<()> {
        let parsed = parse_dockerfile::parse(text)
            .map_err(|e| Error::document(name, format!("no Dockerfile: {e}")))?;
        for instruction in &parsed.instructions {
            let (span, found) = match instruction {
                Instruction::Copy(copy) => (&copy.copy.span, self.copies(copy, &source)),
                Instruction::Add(add) => (&add.add.span, self.adds(add, &source)),
                Instruction::Run(run) => (&run.run.span, self.runs(run)),
                Instruction::Workdir(workdir) => {
                    self.enter(&workdir.arguments.value);
                    continue;
                }
                Instruction::Volume(volume) => (
                    &volume.volume.span,
                    vec![Finding::wrong(
                        "VOLUME: what is changed there afterwards would be kept",
                        None,
                    )],
                ),
                // These change the configuration only.
                _ => continue,
            };
            let line = line_of(text, span);
            self.objections.extend(found.into_iter().map(|finding| Objection {
                at: format!("{name}:{line}"),
                reason: finding.reason,
                consequence: finding.consequence,
                unless_shadowed: finding.unless_shadowed,
            }));
        }
        Ok(())
    }

    /// All that was found.
    pub fn objections(self) -> Vec<Objection> {
        self.objections
    }

    fn enter(&mut self, directory: &str) {
        self.working_directory = self.absolute(directory);
    }

    /// A path of the image, as seen from the working directory; `None`: a variable decides.
    fn absolute(&self, path: &str) -> Option<String> {
        if path.contains('$') {
            return None;
        }
        if path.starts_with('/') {
            return Some(path.to_owned());
        }
        self.working_directory.as_ref().map(|directory| format!("{directory}/{path}"))
    }

    fn copies(
        &self,
        copy: &CopyInstruction<'_>,
        kind: &dyn Fn(&str) -> SourceKind,
    ) -> Vec<Finding> {
        let is_file = |path: &str| kind(path) != SourceKind::Other;
        self.transfers("COPY", &copy.options, &copy.src, &copy.dest, &is_file)
    }

    fn adds(&self, add: &AddInstruction<'_>, kind: &dyn Fn(&str) -> SourceKind) -> Vec<Finding> {
        let is_file = |path: &str| kind(path) == SourceKind::File;
        self.transfers("ADD", &add.options, &add.src, &add.dest, &is_file)
    }

    fn transfers(
        &self,
        name: &str,
        options: &[Flag<'_>],
        sources: &[Source<'_>],
        destination: &UnescapedString<'_>,
        is_file: &dyn Fn(&str) -> bool,
    ) -> Vec<Finding> {
        let other_option =
            options.iter().find(|o| !HARMLESS_OPTIONS.contains(&o.name.value.as_ref()));
        let not_a_file = sources.iter().find_map(|source| match source {
            Source::Path(path) if !is_known(&path.value) || !is_file(&path.value) => {
                Some(path.value.as_ref())
            }
            _ => None,
        });
        let what = match (other_option, not_a_file) {
            (Some(option), _) => format!("{name} --{}", option.name.value),
            (None, Some(path)) => format!("{name} {path}, which is not known to be one file"),
            (None, None) => return Vec::new(),
        };
        match self.top_of(&destination.value) {
            Top::Nowhere => Vec::new(),
            Top::Shadowed(top) => {
                vec![Finding::wrong(
                    format!("{what}: kaniko copies nothing into /{top}"),
                    Some(top),
                )]
            }
            Top::Unknown => {
                let to = &destination.value;
                vec![Finding::wrong(format!("{what}: the destination {to} may be shadowed"), None)]
            }
        }
    }

    /// The shadowed directory that a destination lies in.
    fn top_of(&self, destination: &str) -> Top {
        let Some(path) = self.absolute(destination) else { return Top::Unknown };
        let Ok(place) = follow(self.tree, path.as_bytes()) else { return Top::Unknown };
        match place.trail.first() {
            Some(top) => {
                let path = self.tree.path(*top);
                let name = String::from_utf8_lossy(&path).trim_start_matches('/').to_owned();
                if self.shadowed.contains(&name) { Top::Shadowed(name) } else { Top::Nowhere }
            }
            // What is copied into the root itself may be called as a directory there.
            None if place.absent.is_empty() => Top::Unknown,
            None => Top::Nowhere,
        }
    }

    fn runs(&self, run: &RunInstruction<'_>) -> Vec<Finding> {
        let mut text = match &run.arguments {
            Command::Shell(script) => script.value.to_owned(),
            Command::Exec(words) => {
                words.value.iter().map(|w| w.value.as_ref()).collect::<Vec<_>>().join(" ")
            }
            // The parser may come to know more forms; what they do is not known here.
            _ => return vec![Finding::differs("RUN in a form that is not known here", None)],
        };
        for document in &run.here_docs {
            text.push('\n');
            text.push_str(&document.value);
        }
        let mut found = script::findings(&text, self.shadowed);
        if run.options.iter().any(|option| option.name.value == "mount") {
            found.push(Finding::differs("RUN --mount: it mounts over what is shadowed", None));
        }
        found
    }
}

/// Where a destination is.
enum Top {
    /// In a directory that is shadowed.
    Shadowed(String),
    /// In none that is.
    Nowhere,
    /// That cannot be told.
    Unknown,
}

/// What is wrong with one instruction.
struct Finding {
    reason: String,
    consequence: Consequence,
    unless_shadowed: Option<String>,
}

impl Finding {
    fn wrong(reason: impl Into<String>, unless_shadowed: Option<String>) -> Self {
        Finding { reason: reason.into(), consequence: Consequence::WrongImage, unless_shadowed }
    }

    fn differs(reason: impl Into<String>, unless_shadowed: Option<String>) -> Self {
        Finding { reason: reason.into(), consequence: Consequence::Differs, unless_shadowed }
    }
}

/// Neither a variable, nor a pattern, nor something from elsewhere.
fn is_known(source: &str) -> bool {
    !source.contains(['$', '*', '?', '[']) && !source.contains("://") && !source.starts_with("git@")
}

/// The number of the line, from 1.
fn line_of(text: &str, span: &Span) -> usize {
    text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests;
