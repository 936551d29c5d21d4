use super::*;
use crate::layout::entry::Time;
use crate::layout::tree::{Builder, Content, NodeKind};

fn attributes(mode: u32, seconds: i64) -> Attributes {
    Attributes { mode, mtime: Time { seconds, nanos: 0 }, ..Attributes::default() }
}

/// A base from lines `d PATH` and `f PATH`, everything at second 1.
fn base(paths: &[&str]) -> Tree {
    let mut builder = Builder::new(Vec::new());
    let mut directories: HashMap<String, NodeId> = HashMap::from([(String::new(), NodeId::ROOT)]);
    for line in paths {
        let (kind, path) = line.split_once(' ').expect("a kind and a path");
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = directories[parent];
        let content = Content::Inline(path.as_bytes().into());
        let (mode, what) = match kind {
            "d" => (0o755, NodeKind::Directory),
            _ => (0o644, NodeKind::Regular { size: path.len() as u64, content }),
        };
        let id = builder.add(what, attributes(mode, 1), None).expect("few nodes");
        builder.link(parent, name.as_bytes(), id);
        if kind == "d" {
            directories.insert(path.to_owned(), id);
        }
    }
    builder.finish()
}

fn node(name: &str, kind: UpperKind, mode: u32, inode: u64) -> UpperNode {
    let name = name.as_bytes().into();
    UpperNode { name, kind, attributes: attributes(mode, 1), inode: (1, inode) }
}

fn file(name: &str, size: u64, inode: u64) -> UpperNode {
    let kind = EntryKind::Regular { size, chunks: Vec::new() };
    node(name, UpperKind::Other(kind), 0o644, inode)
}

fn whiteout(name: &str) -> UpperNode {
    node(name, UpperKind::Whiteout, 0, 0)
}

fn directory(name: &str, opaque: bool, children: Vec<UpperNode>) -> UpperNode {
    node(name, UpperKind::Directory { opaque, children }, 0o755, 0)
}

/// The members as text: `- removed`, `+ new`, `! replaced`, `? perhaps the same`, `= link`.
fn planned(children: &[UpperNode], base: &Tree, exclude: &[&str]) -> (Vec<String>, u64) {
    let excluded = Excluded::new(exclude.iter().map(|p| p.as_bytes())).expect("paths");
    let plan = plan(children, base, &excluded);
    let text = |member: &Member<'_>| {
        let path = String::from_utf8_lossy(&member.path).into_owned();
        match &member.change {
            Change::Removed => format!("-{path}"),
            Change::Put { unchanged_if_content_of: Some(_), .. } => format!("?{path}"),
            Change::Put { replaces: true, .. } => format!("!{path}"),
            Change::Put { .. } => format!("+{path}"),
            Change::Link { target, .. } => format!("={path} {}", String::from_utf8_lossy(target)),
        }
    };
    (plan.members.iter().map(text).collect(), plan.pruned)
}

#[test]
fn an_opaque_directory_whites_out_what_is_below_also_in_directories_made_anew_inside() {
    let base = base(&["d d", "d d/a", "f d/a/old", "f d/a/kept", "f d/gone", "d d/z", "f d/z/x"]);
    let inner = directory("a", false, vec![file("kept", 99, 5)]);
    let upper = [directory("d", true, vec![inner])];
    let (members, pruned) = planned(&upper, &base, &[]);
    assert_eq!(members, ["-d/gone", "-d/z", "-d/a/old", "!d/a/kept"]);
    assert_eq!(pruned, 0, "directories that are the same are not counted");
}

#[test]
fn opaque_marks_over_nothing_remove_nothing() {
    let base = base(&["f file"]);
    let upper = [
        directory("file", true, vec![file("x", 1, 1)]),
        directory("new", true, vec![file("y", 1, 2)]),
    ];
    assert_eq!(planned(&upper, &base, &[]).0, ["!file", "+file/x", "+new", "+new/y"]);
}

#[test]
fn whiteouts_remove_only_what_is_there() {
    let base = base(&["d d", "f d/a"]);
    let upper = [directory("d", false, vec![whiteout("a"), whiteout("b")]), whiteout("e")];
    assert_eq!(planned(&upper, &base, &[]).0, ["-d/a"]);
}

#[test]
fn unchanged_copies_wait_for_their_content_and_changed_ones_do_not() {
    let base = base(&["f aa", "f bb", "f cc"]);
    let mut changed = file("bb", 2, 2);
    changed.attributes.mode = 0o600;
    let upper = [file("aa", 2, 1), changed, file("cc", 3, 3)];
    assert_eq!(planned(&upper, &base, &[]).0, ["?aa", "!bb", "!cc"]);
}

#[test]
fn hard_links_refer_to_the_first_name_and_are_never_pruned() {
    let base = base(&["f aa", "d d"]);
    let upper = [file("aa", 2, 7), directory("d", false, vec![file("link", 2, 7)])];
    assert_eq!(planned(&upper, &base, &[]).0, ["!aa", "=d/link aa"]);
}

#[test]
fn a_directory_is_put_when_an_attribute_differs_but_not_for_the_hosts_attributes() {
    let mut builder = Builder::new(Vec::new());
    let mut below = attributes(0o755, 1);
    below.xattrs = vec![(b"security.selinux".to_vec(), b"x".to_vec())];
    let kind = NodeKind::Directory;
    let id = builder.add(kind, below, None).expect("a node");
    builder.link(NodeId::ROOT, b"d", id);
    let base = builder.finish();
    let mut upper = directory("d", false, Vec::new());
    assert_eq!(planned(std::slice::from_ref(&upper), &base, &[]).0, [""; 0]);
    upper.attributes.mtime.nanos = 1;
    assert_eq!(planned(&[upper], &base, &[]).0, ["!d"]);
}

#[test]
fn excluded_paths_stay_as_they_are_below() {
    let base = base(&["d d", "f d/a", "f d/b", "f w"]);
    let upper = [
        directory("cnb", true, vec![file("x", 1, 1)]),
        directory("d", true, Vec::new()),
        whiteout("w"),
    ];
    assert_eq!(planned(&upper, &base, &["/cnb/", "d/a", "./w"]).0, ["-d/b"]);
    assert!(Excluded::new([&b"/"[..]]).is_err());
    assert!(Excluded::new([&b"../x"[..]]).is_err());
}

#[test]
fn empty_mount_points_of_runtimes_are_no_changes_unless_something_is_in_them() {
    let base = base(&["d etc"]);
    let etc = || directory("etc", false, vec![file("hosts", 0, 1), file("resolv.conf", 3, 2)]);
    let dev = |children| directory("dev", true, children);
    let empty = [dev(vec![file("console", 0, 3)]), etc(), directory("proc", true, vec![])];
    assert_eq!(planned(&empty, &base, &[]).0, ["+etc/resolv.conf"]);
    let used = [dev(vec![file("other", 0, 3)])];
    assert_eq!(planned(&used, &base, &[]).0, ["+dev", "+dev/other"]);
}
