//! Ordered changesets -> the tree of a rootfs (image-spec `layer.md`, "Applying Changesets").
//!
//! It reads no content, and knows nothing of how a layer is stored.
//!
//! What the specification leaves open is decided so:
//! - Entries apply one by one in tar order; the last of several for one path wins.
//! - A hard link binds to what stands at its target when it is applied, also in lower layers, and
//!   shares that inode with its attributes. A link to itself changes nothing. A link to what is
//!   absent or a directory is left out, with a warning.
//! - Whiteouts act on what lower layers put there, whatever their position in the tar. A lower
//!   directory that has to stay, since the same layer put something beneath it, loses its
//!   attributes unless the layer sets them.
//! - Parents that are symbolic links are followed inside the root; other parents that are no
//!   directories give way. Missing parents are directories 0755, root:root, the epoch.

pub(crate) mod resolve;

use std::collections::HashSet;

use super::entry::{Attributes, Chunk, Entry, EntryKind};
use super::error::{Error, Result};
use super::index::LayerIndex;
use super::oci::LAYERS_MAX;
use super::tree::{Builder, Content, Layer, NodeId, NodeKind, Tree};
use super::whiteout::{Name, classify};
use resolve::{Place, follow, split};

/// Most warnings that are kept: the first ones show what is wrong with an image.
const WARNINGS_MAX: usize = 100;

/// Most names in link targets that are followed for all entries of an image: a few seconds. Where
/// `lib` is a link, each entry below it takes two; forty links of four kilobytes take 80,000.
const LINK_STEPS_MAX: usize = 1 << 25;

/// One layer, ready to be applied.
#[derive(Debug, Clone)]
pub struct Changeset {
    /// The layer that has the content.
    pub layer: Layer,
    /// Size of the uncompressed tar in bytes: no content lies beyond.
    pub tar_size: u64,
    /// Members in tar order.
    pub entries: Vec<Entry>,
}

/// A tree, and what was left out of it.
#[derive(Debug, Clone)]
pub struct Merged {
    /// The tree.
    pub tree: Tree,
    /// One line for each entry that was left out (the first hundred), with layer and offset.
    pub warnings: Vec<String>,
}

impl Changeset {
    /// Takes the entries out of a layer's index: reading needs only its spans.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] when the index is of another layer.
    pub fn take(layer: Layer, index: &mut LayerIndex) -> Result<Self> {
        if layer.diff_id != index.diff_id {
            let (expected, actual) = (layer.diff_id.to_string(), index.diff_id.to_string());
            return Err(Error::DigestMismatch { expected, actual });
        }
        let entries = std::mem::take(&mut index.entries);
        Ok(Changeset { layer, tar_size: index.tar_size, entries })
    }
}

/// Applies the layers of an image, lowest first, to an empty root.
///
/// # Errors
/// [`Error::Changeset`] for a name that leaves the root, a loop of symbolic links, content outside
/// the tar, a root that is no directory; [`Error::Limit`] for too many layers or nodes.
pub fn merge(changesets: Vec<Changeset>) -> Result<Merged> {
    if changesets.len() > LAYERS_MAX {
        let what = "number of layers".to_owned();
        return Err(Error::Limit { what, limit: LAYERS_MAX as u64 });
    }
    let layers = changesets.iter().map(|c| c.layer.clone()).collect();
    let mut builder = Builder::new(layers);
    let mut spent = Spent::default();
    for (number, changeset) in (0u16..).zip(changesets) {
        Apply::new(&mut builder, &mut spent, number, &changeset, false).all(changeset.entries)?;
    }
    Ok(Merged { tree: builder.finish(), warnings: spent.warnings })
}

/// One layer's own changes: its entries, and its whiteouts as empty files of their own names.
/// Hard links into lower layers are left out, with a warning.
///
/// # Errors
/// As [`merge`].
pub fn layer_tree(changeset: Changeset) -> Result<Merged> {
    let mut builder = Builder::new(vec![changeset.layer.clone()]);
    let mut spent = Spent::default();
    Apply::new(&mut builder, &mut spent, 0, &changeset, true).all(changeset.entries)?;
    Ok(Merged { tree: builder.finish(), warnings: spent.warnings })
}

/// What all layers together have used of the limits.
#[derive(Default)]
struct Spent {
    warnings: Vec<String>,
    link_steps: usize,
}

/// One layer on its way into the tree.
struct Apply<'a> {
    builder: &'a mut Builder,
    spent: &'a mut Spent,
    number: u16,
    short: String,
    tar_size: u64,
    shows_whiteouts: bool,
    /// The first node that this layer made: those after it are its own.
    first: Option<NodeId>,
    /// Names that this layer gave to nodes of lower layers.
    linked: HashSet<(NodeId, Box<[u8]>)>,
    /// Directories beneath which this layer put something.
    holding: HashSet<NodeId>,
    /// Directories that are rid of lower layers: nothing lower comes back, so each is visited once.
    purged: HashSet<NodeId>,
}

impl<'a> Apply<'a> {
    fn new(
        builder: &'a mut Builder,
        spent: &'a mut Spent,
        number: u16,
        changeset: &Changeset,
        shows_whiteouts: bool,
    ) -> Self {
        Apply {
            builder,
            spent,
            number,
            short: changeset.layer.blob.digest.short(),
            tar_size: changeset.tar_size,
            shows_whiteouts,
            first: None,
            linked: HashSet::new(),
            holding: HashSet::new(),
            purged: HashSet::new(),
        }
    }

    fn all(mut self, entries: Vec<Entry>) -> Result<()> {
        for entry in entries {
            let offset = entry.offset;
            let refused = |reason| Error::Changeset { layer: self.short.clone(), offset, reason };
            check(&entry, self.tar_size).map_err(refused)?;
            self.one(entry)?;
        }
        Ok(())
    }

    fn one(&mut self, entry: Entry) -> Result<()> {
        let Entry { path, offset, kind, attributes } = entry;
        let Some((parent, name)) = split(&path) else {
            return self.root(offset, kind, attributes);
        };
        if parent.split(|b| *b == b'/').any(|c| classify(c) != Name::Plain) {
            return Ok(());
        }
        match classify(name) {
            Name::Reserved => Ok(()),
            Name::Plain => match kind {
                EntryKind::Hardlink { target } => self.hard_link(offset, parent, name, &target),
                kind => self.put(offset, parent, name, kind, attributes),
            },
            _ if self.shows_whiteouts => {
                let kind = EntryKind::Regular { size: 0, chunks: Vec::new() };
                self.put(offset, parent, name, kind, attributes)
            }
            Name::Whiteout(of) => {
                if let Some(directory) = self.follow(offset, parent)?.directory() {
                    self.remove_lower(directory, of);
                }
                Ok(())
            }
            Name::Opaque => {
                if let Some(directory) = self.follow(offset, parent)?.directory() {
                    self.purge(directory);
                }
                Ok(())
            }
        }
    }

    fn root(&mut self, offset: u64, kind: EntryKind, attributes: Attributes) -> Result<()> {
        if kind != EntryKind::Directory {
            return Err(self.refuse(offset, "the root is not a directory".to_owned()));
        }
        self.set_directory(NodeId::ROOT, attributes);
        Ok(())
    }

    fn set_directory(&mut self, directory: NodeId, attributes: Attributes) {
        let draft = self.builder.draft_mut(directory);
        draft.attributes = attributes;
        draft.origin = Some(self.number);
    }

    fn put(
        &mut self,
        offset: u64,
        parent: &[u8],
        name: &[u8],
        kind: EntryKind,
        attributes: Attributes,
    ) -> Result<()> {
        let parent = self.open_parent(offset, parent)?;
        let stands = self.builder.child(parent, name);
        if let Some(stands) = stands
            && kind == EntryKind::Directory
            && self.builder.is_directory(stands)
        {
            self.set_directory(stands, attributes);
            return Ok(());
        }
        let kind = match kind {
            EntryKind::Regular { size, chunks } => {
                let content = Content::Chunks { layer: self.number, chunks: chunks.into() };
                NodeKind::Regular { size, content }
            }
            EntryKind::Directory => NodeKind::Directory,
            EntryKind::Symlink { target } => NodeKind::Symlink { target: target.into() },
            EntryKind::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
            EntryKind::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
            EntryKind::Fifo => NodeKind::Fifo,
            EntryKind::Hardlink { .. } => {
                return Err(self.refuse(offset, "a hard link is no inode".to_owned()));
            }
        };
        let node = self.add(kind, attributes, Some(self.number))?;
        self.builder.link(parent, name, node);
        Ok(())
    }

    fn hard_link(&mut self, offset: u64, parent: &[u8], name: &[u8], target: &[u8]) -> Result<()> {
        let Some((target_parent, target_name)) = split(target) else {
            self.leave_out(offset, parent, name, target, "is a directory");
            return Ok(());
        };
        let from = self.follow(offset, target_parent)?.directory();
        let node = from.and_then(|from| self.builder.child(from, target_name));
        let Some(node) = node else {
            self.leave_out(offset, parent, name, target, "does not exist");
            return Ok(());
        };
        if self.builder.is_directory(node) {
            self.leave_out(offset, parent, name, target, "is a directory");
            return Ok(());
        }
        if name == target_name && self.follow(offset, parent)?.directory() == from {
            return Ok(());
        }
        let parent = self.open_parent(offset, parent)?;
        self.builder.link(parent, name, node);
        if !self.is_own(node) {
            self.linked.insert((parent, name.into()));
        }
        Ok(())
    }

    fn leave_out(&mut self, offset: u64, parent: &[u8], name: &[u8], target: &[u8], why: &str) {
        if self.spent.warnings.len() >= WARNINGS_MAX {
            return;
        }
        let slash = if parent.is_empty() { "" } else { "/" };
        self.spent.warnings.push(format!(
            "layer {}: entry at offset {offset}: hard link {}{slash}{} is left out: its target \
             {} {why}",
            self.short,
            parent.escape_ascii(),
            name.escape_ascii(),
            target.escape_ascii(),
        ));
    }

    fn refuse(&self, offset: u64, reason: String) -> Error {
        Error::Changeset { layer: self.short.clone(), offset, reason }
    }

    fn follow<'p>(&'p mut self, offset: u64, path: &'p [u8]) -> Result<Place<'p>> {
        let place = follow(self.builder, path);
        let steps = place.as_ref().map_or(0, |place| place.link_steps);
        self.spent.link_steps = self.spent.link_steps.saturating_add(steps);
        let refused = |reason| Error::Changeset { layer: self.short.clone(), offset, reason };
        if self.spent.link_steps > LINK_STEPS_MAX {
            let reason =
                format!("more than {LINK_STEPS_MAX} steps along symbolic links up to here");
            return Err(refused(reason));
        }
        place.map_err(refused)
    }

    /// The directory that `path` leads to, made where it is missing, and marked as holding
    /// something of this layer.
    fn open_parent(&mut self, offset: u64, path: &[u8]) -> Result<NodeId> {
        let place = self.follow(offset, path)?;
        let absent: Vec<Box<[u8]>> = place.absent.iter().map(|n| (*n).into()).collect();
        let mut at = place.last();
        for directory in place.trail.into_iter().rev() {
            if !self.holding.insert(directory) {
                break;
            }
        }
        for name in absent {
            let kind = NodeKind::Directory;
            let made = self.add(kind, synthesised(), None)?;
            self.builder.link(at, &name, made);
            at = made;
        }
        Ok(at)
    }

    fn add(
        &mut self,
        kind: NodeKind,
        attributes: Attributes,
        origin: Option<u16>,
    ) -> Result<NodeId> {
        let id = self.builder.add(kind, attributes, origin)?;
        self.first.get_or_insert(id);
        Ok(id)
    }

    /// This layer made the node, or set its attributes.
    fn is_own(&self, node: NodeId) -> bool {
        self.first.is_some_and(|first| node >= first)
            || self.builder.draft(node).origin == Some(self.number)
    }

    /// Takes away what lower layers put at `name` and beneath it.
    fn remove_lower(&mut self, parent: NodeId, name: &[u8]) {
        if let Some(directory) = self.strip(parent, name) {
            self.purge(directory);
        }
    }

    /// Takes away what lower layers put at `name`; a directory that has to stay is returned, and
    /// may still have lower children.
    fn strip(&mut self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let node = self.builder.child(parent, name)?;
        let is_own = self.is_own(node);
        if !self.builder.is_directory(node) {
            if !is_own && !self.linked.contains(&(parent, name.into())) {
                self.builder.unlink(parent, name);
            }
            return None;
        }
        if !is_own && !self.holding.contains(&node) {
            self.builder.unlink(parent, name);
            return None;
        }
        if !is_own {
            let draft = self.builder.draft_mut(node);
            draft.attributes = synthesised();
            draft.origin = None;
        }
        Some(node)
    }

    /// Takes away everything that lower layers put beneath `directory`.
    fn purge(&mut self, directory: NodeId) {
        let mut waiting = vec![directory];
        while let Some(directory) = waiting.pop() {
            if !self.purged.insert(directory) {
                continue;
            }
            let names: Vec<Box<[u8]>> =
                self.builder.children(directory).map(|(name, _)| name.into()).collect();
            waiting.extend(names.iter().filter_map(|name| self.strip(directory, name)));
        }
    }
}

/// The attributes of a directory that no layer describes.
fn synthesised() -> Attributes {
    Attributes { mode: 0o755, ..Attributes::default() }
}

/// Checks what a parser promises but a hostile index may not keep.
fn check(entry: &Entry, tar_size: u64) -> std::result::Result<(), String> {
    let climbs = |path: &[u8]| path.split(|b| *b == b'/').any(|c| c == b".." || c == b".");
    let unclean = |path: &[u8]| climbs(path) || path.starts_with(b"/") || path.ends_with(b"/");
    match &entry.kind {
        _ if unclean(&entry.path) => {
            Err(format!("the name {} leaves the root", entry.path.escape_ascii()))
        }
        EntryKind::Hardlink { target } if unclean(target) => {
            Err(format!("the link target {} leaves the root", target.escape_ascii()))
        }
        EntryKind::Regular { size, chunks } => check_chunks(*size, chunks, tar_size),
        _ => Ok(()),
    }
}

fn check_chunks(size: u64, chunks: &[Chunk], tar_size: u64) -> std::result::Result<(), String> {
    let mut filled = 0;
    for chunk in chunks {
        if chunk.tar.end > tar_size {
            return Err(format!(
                "content at {} lies outside the tar of {tar_size} bytes",
                chunk.tar
            ));
        }
        let end = chunk.file_offset.checked_add(chunk.tar.len());
        match end.filter(|end| chunk.file_offset >= filled && *end <= size) {
            Some(end) => filled = end,
            None => {
                let at = chunk.file_offset;
                return Err(format!("content for file offset {at} does not fit {size} bytes"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
