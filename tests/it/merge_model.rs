//! Merging against a model: a map from paths to inodes that follows image-spec `layer.md` sentence
//! by sentence, on random stacks of layers over few names, so that everything collides.

use std::collections::BTreeMap;

use layoutfs::layout::dump::{dump, parse};
use layoutfs::layout::entry::{Attributes, Chunk, Entry, EntryKind, Time};
use layoutfs::layout::merge::{Changeset, Merged, merge};
use layoutfs::layout::plan::plan_read;
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::tree::{ContentRef, KindRef, Layer, Node, NodeId, Tree};
use layoutfs::layout::{Blob, Digest};
use proptest::prelude::*;

/// Size of each layer's tar: room for a few chunks.
const TAR_BYTES: u64 = 64;

/// Symbolic links in the parents of one name before the model gives up, as Linux does.
const LINKS_MAX: usize = 40;

/// What stands at one or more paths.
#[derive(Debug, Clone, PartialEq)]
struct Inode {
    kind: Kind,
    attributes: Attributes,
    /// The layer that made it or last described it; none for a directory that no layer describes.
    origin: Option<u16>,
}

#[derive(Debug, Clone, PartialEq)]
enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    Fifo,
}

/// One path: its inode, and the layer that put it there.
#[derive(Debug, Clone)]
struct Name {
    inode: usize,
    layer: u16,
}

/// The filesystem as a flat map; "" is the root.
struct Model {
    names: BTreeMap<String, Name>,
    inodes: Vec<Inode>,
    left_out: usize,
}

/// Symbolic links went round in circles.
#[derive(Debug)]
struct Loop;

fn undescribed() -> Inode {
    let attributes = Attributes { mode: 0o755, ..Attributes::default() };
    Inode { kind: Kind::Directory, attributes, origin: None }
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

/// "" for a name in the root.
fn parent_and_name(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// `path` is `of`, or beneath it.
fn is_within(path: &str, of: &str) -> bool {
    of.is_empty() || path == of || path.strip_prefix(of).is_some_and(|rest| rest.starts_with('/'))
}

impl Model {
    fn new() -> Self {
        let root = Name { inode: 0, layer: 0 };
        let names = BTreeMap::from([(String::new(), root)]);
        Model { names, inodes: vec![undescribed()], left_out: 0 }
    }

    fn at(&self, path: &str) -> Option<&Inode> {
        self.names.get(path).map(|name| &self.inodes[name.inode])
    }

    fn is_directory(&self, path: &str) -> bool {
        self.at(path).is_some_and(|i| i.kind == Kind::Directory)
    }

    /// The path without symbolic links. Starts again whenever it has replaced one.
    fn real(&self, path: &str) -> Result<String, Loop> {
        let mut path = path.to_owned();
        for _ in 0..=LINKS_MAX {
            let mut done: Vec<&str> = Vec::new();
            let mut rest = path.split('/').filter(|c| !c.is_empty() && *c != ".");
            let link = loop {
                match rest.next() {
                    None => return Ok(done.join("/")),
                    Some("..") => drop(done.pop()),
                    Some(name) => {
                        let before = done.join("/");
                        match self.at(&join(&before, name)).map(|i| &i.kind) {
                            Some(Kind::Symlink(target)) => break (before, target),
                            _ => done.push(name),
                        }
                    }
                }
            };
            let after: Vec<&str> = rest.collect();
            let (before, target) = link;
            let start = if target.starts_with('/') { String::new() } else { before };
            path = format!("{start}/{target}/{}", after.join("/"));
        }
        Err(Loop)
    }

    fn remove(&mut self, path: &str) {
        self.names.retain(|p, _| !is_within(p, path));
    }

    fn insert(&mut self, path: &str, layer: u16, inode: Inode) {
        self.remove(path);
        self.names.insert(path.to_owned(), Name { inode: self.inodes.len(), layer });
        self.inodes.push(inode);
    }

    fn make_directories(&mut self, path: &str, layer: u16) {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for prefix in ends.map(|end| &path[..end]) {
            if !prefix.is_empty() && !self.is_directory(prefix) {
                self.insert(prefix, layer, undescribed());
            }
        }
    }

    /// "Whiteout files MUST only apply to resources in lower/parent layers."
    fn hide_lower(&mut self, layer: u16, hidden: impl Fn(&str) -> bool) {
        let lower = |(path, name): (&String, &Name)| {
            (hidden(path) && name.layer < layer).then(|| path.clone())
        };
        let mut paths: Vec<String> = self.names.iter().filter_map(lower).collect();
        paths.sort_by_key(|path| std::cmp::Reverse(path.len()));
        for path in paths {
            let kept_for = format!("{path}/");
            if self.names.keys().any(|other| other.starts_with(&kept_for)) {
                let inode = self.names[&path].inode;
                self.inodes[inode] = undescribed();
            } else {
                self.names.remove(&path);
            }
        }
    }

    fn apply(&mut self, layer: u16, entry: &Entry) -> Result<(), Loop> {
        let path = std::str::from_utf8(&entry.path).unwrap();
        let (parent, name) = parent_and_name(path);
        if parent.split('/').any(|c| c.starts_with(".wh.")) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(".wh.") {
            if hidden.is_empty() || hidden == "." || hidden == ".." {
                return Ok(());
            }
            if hidden.starts_with(".wh.") && hidden != ".wh..opq" {
                return Ok(());
            }
            let parent = self.real(parent)?;
            if !self.is_directory(&parent) {
                return Ok(());
            }
            if hidden == ".wh..opq" {
                self.hide_lower(layer, |p| p != parent && is_within(p, &parent));
            } else {
                let of = join(&parent, hidden);
                self.hide_lower(layer, |p| is_within(p, &of));
            }
            return Ok(());
        }
        if let EntryKind::Hardlink { target } = &entry.kind {
            return self.hard_link(layer, parent, name, std::str::from_utf8(target).unwrap());
        }
        let parent = self.real(parent)?;
        self.make_directories(&parent, layer);
        let path = join(&parent, name);
        let kind = match &entry.kind {
            EntryKind::Directory => Kind::Directory,
            EntryKind::Symlink { target } => {
                Kind::Symlink(String::from_utf8(target.clone()).unwrap())
            }
            EntryKind::Regular { size, chunks } => Kind::File(content(layer, *size, chunks)),
            _ => Kind::Fifo,
        };
        let inode = Inode { kind, attributes: entry.attributes.clone(), origin: Some(layer) };
        if inode.kind == Kind::Directory && self.is_directory(&path) {
            let name = self.names.get_mut(&path).unwrap();
            name.layer = layer;
            self.inodes[name.inode] = inode;
        } else {
            self.insert(&path, layer, inode);
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        layer: u16,
        parent: &str,
        name: &str,
        target: &str,
    ) -> Result<(), Loop> {
        let (target_parent, target_name) = parent_and_name(target);
        let target = join(&self.real(target_parent)?, target_name);
        if self.at(&target).is_none_or(|i| i.kind == Kind::Directory) {
            self.left_out += 1;
            return Ok(());
        }
        let parent = self.real(parent)?;
        let path = join(&parent, name);
        if path == target {
            return Ok(());
        }
        let inode = self.names[&target].inode;
        self.make_directories(&parent, layer);
        self.remove(&path);
        self.names.insert(path, Name { inode, layer });
        Ok(())
    }

    /// Each path with its inode and the first path of that inode.
    fn shown(&self) -> BTreeMap<String, (Inode, String)> {
        let mut first: BTreeMap<usize, &String> = BTreeMap::new();
        let mut shown = BTreeMap::new();
        for (path, name) in &self.names {
            let first = *first.entry(name.inode).or_insert(path);
            shown.insert(path.clone(), (self.inodes[name.inode].clone(), first.clone()));
        }
        shown
    }
}

/// A byte of a layer's tar: never zero, so that holes differ from content.
fn tar_byte(layer: u16, at: u64) -> u8 {
    (u64::from(layer) * 67 + at) as u8 | 1
}

fn content(layer: u16, size: u64, chunks: &[Chunk]) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    for chunk in chunks {
        for at in 0..chunk.tar.len() {
            bytes[(chunk.file_offset + at) as usize] = tar_byte(layer, chunk.tar.start + at);
        }
    }
    bytes
}

/// Reads a file of the tree as a reader would, `step` bytes at a time.
fn read(layer: u16, chunks: &[Chunk], size: u64, step: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < size {
        for slice in plan_read(chunks, size, ByteRange::at(at, step)) {
            match slice.tar {
                Some(tar) => bytes.extend((tar.start..tar.end).map(|p| tar_byte(layer, p))),
                None => bytes.extend(vec![0; slice.buffer.len() as usize]),
            }
        }
        at += step;
    }
    bytes
}

fn inode_of(node: Node<'_>, step: u64) -> Inode {
    let kind = match node.kind {
        KindRef::Directory => Kind::Directory,
        KindRef::Regular { size, content: ContentRef::Chunks { layer, chunks } } => {
            Kind::File(read(layer, &chunks, size, step))
        }
        KindRef::Symlink { target } => Kind::Symlink(String::from_utf8(target.to_vec()).unwrap()),
        KindRef::Fifo => Kind::Fifo,
        other => panic!("no layer had {other:?}"),
    };
    Inode { kind, attributes: node.attributes.clone(), origin: node.origin }
}

fn shown(tree: &Tree, step: u64) -> BTreeMap<String, (Inode, String)> {
    let mut paths: BTreeMap<String, NodeId> = BTreeMap::new();
    let mut waiting = vec![(String::new(), NodeId::ROOT)];
    while let Some((path, id)) = waiting.pop() {
        for (name, child) in tree.children(id).unwrap_or_default() {
            waiting.push((join(&path, std::str::from_utf8(name).unwrap()), child));
        }
        paths.insert(path, id);
    }
    let mut first: BTreeMap<NodeId, &String> = BTreeMap::new();
    let mut shown = BTreeMap::new();
    for (path, id) in &paths {
        let first = *first.entry(*id).or_insert(path);
        let node = tree.node(*id).unwrap();
        let links = match tree.children(*id) {
            Some(children) => 2 + children.filter(|(_, c)| tree.children(*c).is_some()).count(),
            None => paths.values().filter(|other| *other == id).count(),
        };
        assert_eq!(node.links as usize, links, "links of {path}");
        shown.insert(path.clone(), (inode_of(node, step), first.clone()));
    }
    shown
}

fn plain_path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|p| p.join("/"))
}

fn odd_name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        ".wh.a",
        ".wh.b",
        ".wh.c",
        ".wh.a",
        ".wh.b",
        ".wh.c",
        ".wh..wh..opq",
        ".wh..wh..opq",
        ".wh.",
        ".wh..",
        ".wh..wh.plnk",
        ".wh.a/b",
    ])
}

fn odd_path() -> impl Strategy<Value = String> {
    let parent = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 0..3);
    (parent, odd_name()).prop_map(|(parent, name)| join(&parent.join("/"), name))
}

fn file() -> impl Strategy<Value = EntryKind> {
    let pieces = prop::collection::vec((0u64..4, 1u64..5, 0..TAR_BYTES - 5), 0..4);
    (pieces, 0u64..4).prop_map(|(pieces, tail)| {
        let mut size = 0;
        let mut chunks = Vec::new();
        for (hole, len, at) in pieces {
            chunks.push(Chunk { file_offset: size + hole, tar: ByteRange::at(at, len) });
            size += hole + len;
        }
        EntryKind::Regular { size: size + tail, chunks }
    })
}

fn kind() -> impl Strategy<Value = EntryKind> {
    let targets = vec![
        "a",
        "b",
        "c",
        "a/b",
        "/b/c",
        "../a",
        "../../c/./b",
        "..",
        ".",
        "/",
        "",
        "c/../a",
        "x/../b",
    ];
    let symlink = prop::sample::select(targets)
        .prop_map(|target| EntryKind::Symlink { target: target.as_bytes().to_vec() });
    let hard_link = plain_path().prop_map(|t| EntryKind::Hardlink { target: t.into_bytes() });
    prop_oneof![
        3 => file(),
        4 => Just(EntryKind::Directory),
        2 => symlink,
        3 => hard_link,
        1 => Just(EntryKind::Fifo),
    ]
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let xattrs = prop::collection::btree_map(1u8..3, 0u8..3, 0..3);
    (0u32..0o10000, 0u32..3, 0u32..3, -2i64..3, xattrs).prop_map(
        |(mode, uid, gid, seconds, xattrs)| {
            let xattrs = xattrs.into_iter().map(|(n, v)| (vec![b'u', n], vec![v])).collect();
            Attributes { mode, uid, gid, mtime: Time { seconds, nanos: 5 }, xattrs }
        },
    )
}

fn entry() -> impl Strategy<Value = Entry> {
    let path = prop_oneof![8 => plain_path(), 3 => odd_path()];
    let ordinary = (path, kind(), attributes());
    let root = attributes().prop_map(|a| (String::new(), EntryKind::Directory, a));
    prop_oneof![30 => ordinary, 1 => root].prop_map(|(path, kind, attributes)| Entry {
        path: path.into_bytes(),
        offset: 0,
        kind,
        attributes,
    })
}

fn changeset(number: usize, entries: &[Entry]) -> Changeset {
    let digest = Digest::sha256_of(&[number as u8]);
    let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
    let (blob, annotations) = (Blob { digest, size: TAR_BYTES }, Default::default());
    let layer = Layer { blob, diff_id: digest, media_type, annotations, soci_index: None };
    Changeset { layer, tar_size: TAR_BYTES, entries: entries.to_vec() }
}

fn model_of(layers: &[Vec<Entry>]) -> Result<Model, Loop> {
    let mut model = Model::new();
    for (number, entries) in (0u16..).zip(layers) {
        for entry in entries {
            if entry.path.is_empty() {
                let attributes = entry.attributes.clone();
                model.inodes[0] = Inode { kind: Kind::Directory, attributes, origin: Some(number) };
            } else {
                model.apply(number, entry)?;
            }
        }
    }
    Ok(model)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn merging_layers_gives_what_the_specification_says(
        layers in prop::collection::vec(prop::collection::vec(entry(), 0..12), 1..5),
        step in 1u64..9,
    ) {
        let changesets = layers.iter().enumerate().map(|(n, e)| changeset(n, e)).collect();
        match (merge(changesets), model_of(&layers)) {
            (Ok(Merged { tree, warnings }), Ok(model)) => {
                prop_assert_eq!(shown(&tree, step), model.shown());
                prop_assert_eq!(warnings.len(), model.left_out);
                if layers.len() == 1 {
                    let text = dump(&tree);
                    let again = merge(vec![changeset(0, &parse(&text).unwrap())]).unwrap();
                    prop_assert_eq!(dump(&again.tree), text);
                }
            }
            (Err(error), Err(Loop)) => {
                prop_assert!(error.to_string().contains("symbolic links"), "{}", error);
            }
            (merged, model) => {
                let model = model.map(|m| m.shown());
                prop_assert!(false, "merged {:?}\nmodel {:?}", merged, model);
            }
        }
    }
}
