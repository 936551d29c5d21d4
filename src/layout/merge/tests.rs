//! What each rule of applying changesets does to small layers written as text.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::layout::digest::{Blob, Digest};
use crate::layout::dump::{dump, parse};

/// Size of every layer's tar in these tests.
const TAR_BYTES: u64 = 10_000;

fn changeset(text: &str) -> Changeset {
    let digest = Digest::sha256_of(text.as_bytes());
    let media_type = "application/vnd.oci.image.layer.v1.tar".to_owned();
    let (blob, annotations) = (Blob { digest, size: TAR_BYTES }, Default::default());
    let layer = Layer { blob, diff_id: digest, media_type, annotations, soci_index: None };
    Changeset { layer, tar_size: TAR_BYTES, entries: parse(text).unwrap() }
}

fn merged(layers: &[&str]) -> Merged {
    merge(layers.iter().map(|text| changeset(text)).collect()).unwrap()
}

/// Merges the layers and compares; defaults are left out of `expected`, as of the layers.
#[track_caller]
fn check_merge(layers: &[&str], expected: &str) {
    let Merged { tree, warnings } = merged(layers);
    assert_eq!(brief(&dump(&tree)), brief(expected));
    assert!(warnings.is_empty(), "{warnings:?}");
}

fn brief(text: &str) -> String {
    let text = text.replace(" 0755 0:0 0\n", "\n").replace(" 0644 0:0 0 ", " ");
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && *l != "/ d");
    lines.map(|l| format!("{l}\n")).collect()
}

fn refusal(layers: &[&str]) -> String {
    let error = merge(layers.iter().map(|text| changeset(text)).collect()).unwrap_err();
    let short = changeset(layers.last().unwrap()).layer.blob.digest.short();
    let text = error.to_string();
    text.strip_prefix(&format!("layer {short}: entry at offset ")).unwrap().to_owned()
}

#[test]
fn later_layers_add_and_replace() {
    check_merge(
        &["a f chunks=0@0-1\nd d\nd/x f chunks=0@1-2", "a f chunks=0@5-7\nd/y f"],
        "/a f size=2 layer=1 chunks=0@5-7
         /d d
         /d/x f size=1 layer=0 chunks=0@1-2
         /d/y f size=0 layer=1 chunks=",
    );
}

#[test]
fn the_last_of_several_entries_for_one_path_wins() {
    check_merge(&["a f chunks=0@0-1\na f chunks=0@1-3"], "/a f size=2 layer=0 chunks=0@1-3");
}

#[test]
fn a_replacement_brings_all_attributes_and_drops_the_old_xattrs() {
    check_merge(
        &["a f 0600 1:1 5 xattr.user.a=1\nd d 0700 1:1 5 xattr.user.b=1", "a f\nd d 0711"],
        "/a f size=0 layer=1 chunks=\n/d d 0711 0:0 0",
    );
}

#[test]
fn a_directory_over_a_directory_changes_attributes_only() {
    check_merge(&["d d\nd/x p 0644 0:0 1", "d d 0700 7:7 9"], "/d d 0700 7:7 9\n/d/x p 0644 0:0 1");
}

#[test]
fn a_layer_without_an_entry_for_a_directory_leaves_its_attributes() {
    check_merge(&["d d 0700 7:7 9", "d/x d"], "/d d 0700 7:7 9\n/d/x d");
}

#[test]
fn a_file_replaces_a_directory_with_all_beneath_and_the_other_way_round() {
    check_merge(&["d/x/y d", "d p 0600 0:0 0"], "/d p 0600 0:0 0");
    check_merge(&["d p", "d d 0700"], "/d d 0700 0:0 0");
    check_merge(&["real/x d\nd l target=real", "d d"], "/d d\n/real d\n/real/x d");
}

#[test]
fn missing_parents_are_plain_directories_until_a_layer_describes_them() {
    check_merge(&["a/b/c d 0700", "a/b d 0711"], "/a d\n/a/b d 0711 0:0 0\n/a/b/c d 0700 0:0 0");
}

#[test]
fn a_parent_that_is_no_directory_gives_way() {
    check_merge(&["a p", "a/b d"], "/a d\n/a/b d");
}

#[test]
fn an_entry_for_the_root_sets_its_attributes() {
    check_merge(&["/ d 0700 1:2 3", "a d"], "/ d 0700 1:2 3\n/a d");
    assert_eq!(refusal(&["/ f"]), "0: the root is not a directory");
}

#[test]
fn a_whiteout_removes_the_lower_name_and_never_shows() {
    check_merge(&["a/x d\na/y d\nb p", "a/.wh.x f\n.wh.b f\n.wh.absent f"], "/a d\n/a/y d");
    check_merge(&["a d", "b/.wh.x f\na/b/.wh..wh..opq f"], "/a d");
}

#[test]
fn whiteouts_act_on_lower_layers_only_whatever_their_position() {
    for layer in [".wh.a f\na/new d 0700", "a/new d 0700\n.wh.a f"] {
        check_merge(&["a d 0711\na/old d", layer], "/a d\n/a/new d 0700 0:0 0");
    }
    for layer in [".wh.a f\na d 0700", "a d 0700\n.wh.a f"] {
        check_merge(&["a d 0711\na/old d", layer], "/a d 0700 0:0 0");
    }
    check_merge(&["a d", "a p 0600 0:0 1\n.wh.a f"], "/a p 0600 0:0 1");
    check_merge(&["a/b/old d", "a/b/new d\n.wh.a f"], "/a d\n/a/b d\n/a/b/new d");
}

#[test]
fn an_opaque_whiteout_hides_lower_children_only() {
    let lower = "d d 0711\nd/s d 0711\nd/s/old d\nd/old d\nother d";
    for layer in [
        "d/.wh..wh..opq f\nd/new d\nd/s/new d",
        "d/new d\nd/.wh..wh..opq f\nd/s/new d",
        "d/new d\nd/s/new d\nd/.wh..wh..opq f",
    ] {
        let expected = "/d d 0711 0:0 0\n/d/new d\n/d/s d\n/d/s/new d\n/other d";
        check_merge(&[lower, layer], expected);
    }
    check_merge(&[lower, ".wh..wh..opq f\nnew d"], "/new d");
}

#[test]
fn an_opaque_directory_that_replaces_a_link_leaves_the_links_target_alone() {
    check_merge(
        &["real/x d\nl l target=real", "l d\nl/.wh..wh..opq f\nl/y d"],
        "/l d\n/l/y d\n/real d\n/real/x d",
    );
}

#[test]
fn names_that_begin_like_whiteouts_never_show() {
    check_merge(
        &[
            ".wh..wh.plnk d\n.wh..wh.plnk/1.2 f\n.wh. f\n.wh.. f\na/.wh.... f\n.wh.d/x d\n.wh..wh.x f",
        ],
        "",
    );
}

#[test]
fn a_hard_link_shares_its_targets_inode_and_attributes() {
    check_merge(
        &["a f 0600 1:1 1 chunks=0@0-1", "b h 0777 9:9 9 target=a"],
        "/a f 0600 1:1 1 size=1 layer=0 chunks=0@0-1\n/b h target=/a",
    );
    let tree = merged(&["a p\nb h target=a\nc h target=b"]).tree;
    assert_eq!(tree.node(tree.find(b"a").unwrap()).unwrap().links, 3);
}

#[test]
fn a_hard_link_keeps_what_its_target_was_when_it_was_applied() {
    check_merge(
        &["a f chunks=0@0-1\nb h target=a\na f chunks=0@1-3", "c h target=a\n.wh.a f"],
        "/b f size=1 layer=0 chunks=0@0-1\n/c f size=2 layer=0 chunks=0@1-3",
    );
}

#[test]
fn a_whiteout_leaves_a_name_that_its_own_layer_linked_to_a_lower_file() {
    let expected = "/a p 0600 0:0 1\n/b h target=/a";
    check_merge(&["a p 0600 0:0 1", "b h target=a\n.wh.b f"], expected);
}

#[test]
fn a_hard_link_may_have_its_targets_name_in_another_directory() {
    let expected = "/a d\n/a/x p 0600 0:0 1\n/b d\n/b/x h target=/a/x";
    check_merge(&["a/x p 0600 0:0 1\nb d\nb/x h target=a/x"], expected);
}

#[test]
fn a_hard_link_may_name_a_symbolic_link_and_passes_linked_parents() {
    check_merge(
        &[
            "usr/lib/x p 0600 0:0 1\nlib l 0777 0:0 1 target=usr/lib\ny h target=lib/x\nz h target=lib",
        ],
        "/lib l 0777 0:0 1 target=usr/lib
         /usr d
         /usr/lib d
         /usr/lib/x p 0600 0:0 1
         /y h target=/usr/lib/x
         /z h target=/lib",
    );
}

#[test]
fn a_link_to_itself_changes_nothing() {
    check_merge(&["a p 0600 0:0 1", "a h 0777 target=a"], "/a p 0600 0:0 1");
    check_merge(&["a p", "a h target=a\n.wh.a f"], "");
    check_merge(
        &["d/a p 0600 0:0 1\nl l 0777 0:0 1 target=d", "l/a h target=d/a\n.wh.l f"],
        "/d d\n/d/a p 0600 0:0 1",
    );
}

#[test]
fn links_to_nothing_and_to_directories_are_left_out_with_a_warning() {
    let Merged { tree, warnings } = merged(&["d d", "x d\na/b h target=no\nb h target=d"]);
    assert_eq!(brief(&dump(&tree)), "/d d\n/x d\n");
    let [first, second] = warnings.as_slice() else { panic!("{warnings:?}") };
    let end = "entry at offset 512: hard link a/b is left out: its target no does not exist";
    assert!(first.starts_with("layer ") && first.ends_with(end), "{first}");
    assert!(second.ends_with("hard link b is left out: its target d is a directory"), "{second}");
    let many: String = (0..500).map(|n| format!("{n} h target=no\n")).collect();
    assert_eq!(merged(&[&many]).warnings.len(), WARNINGS_MAX);
}

#[test]
fn symbolic_links_in_parents_are_followed_inside_the_root() {
    let expected = "/l l 0777 0:0 1 target=TARGET\n/u d\n/u/x d\n/v d";
    for target in ["u", "/u", "../../u", "./u/", "//v/../u", "v/../u", "absent/../u"] {
        let lower = format!("v d\nu d\nl l 0777 0:0 1 target={target}");
        check_merge(&[&lower, "l/x d"], &expected.replace("TARGET", target));
        check_merge(&[&lower, "u/x d\nu/y d", "l/.wh.y f"], &expected.replace("TARGET", target));
    }
    check_merge(
        &["l l 0777 0:0 1 target=a/b", "l/x d"],
        "/a d\n/a/b d\n/a/b/x d\n/l l 0777 0:0 1 target=a/b",
    );
    let expected = "/d d\n/d/l l 0777 0:0 1 target=TARGET\n/d/u d\n/d/u/x d\n/u d";
    for target in ["u", "/d/u", "../d/u", "absent/../u", "/../../absent/../d/u"] {
        let lower = format!("d/u d\nu d\nd/l l 0777 0:0 1 target={target}");
        check_merge(&[&lower, "d/l/x d"], &expected.replace("TARGET", target));
    }
    let lower = "d/m l 0777 0:0 1 target=/u\nl l 0777 0:0 1 target=../d/m\nu d\n";
    let expected = "/d d\n/d/m l 0777 0:0 1 target=/u\n/l l 0777 0:0 1 target=../d/m\n/u d\n/u/x d";
    check_merge(&[lower, "l/x d"], expected);
}

#[test]
fn loops_of_links_are_errors_that_name_layer_and_offset() {
    let expected = "512: more than 40 symbolic links in the parents";
    assert_eq!(refusal(&["a l target=b\nb l target=a", "x d\na/x d"]), expected);
    assert_eq!(refusal(&["a l target=a", "x d\ny h target=a/x"]), expected);
    let long = format!("a l target={}", "./".repeat(3000));
    assert_eq!(refusal(&[&long, "a/x d"]), "0: a parent is a symbolic link of 6000 bytes");
}

#[test]
fn as_many_and_as_long_links_are_followed_as_linux_follows() {
    let chain = |links: usize| -> String {
        let link = |n| format!("l{n} l target=l{}\n", n + 1);
        (1..links).map(link).collect::<String>() + &format!("l{links} l target=d")
    };
    let found = |lower: &str, path: &[u8]| merged(&[lower, "l1/x d"]).tree.find(path).is_some();
    assert!(found(&chain(40), b"d/x"));
    assert!(refusal(&[&chain(41), "l1/x d"]).contains("more than 40 symbolic links"));
    let long = |len: usize| format!("l1 l target=/{}d", "/".repeat(len - 2));
    assert!(found(&long(4095), b"d/x"));
    assert!(refusal(&[&long(4096), "l1/x d"]).contains("a symbolic link of 4096 bytes"));
}

#[test]
fn all_entries_of_an_image_have_so_many_steps_along_links() {
    // Three steps each for f and g: b and c, then d.
    let layer = changeset("a l target=b/c\nb l target=d\nd/c d\na/f d\na/g d");
    let apply = |steps_left: usize| {
        let mut builder = Builder::new(vec![layer.layer.clone()]);
        let mut spent = Spent { link_steps: LINK_STEPS_MAX - steps_left, ..Spent::default() };
        Apply::new(&mut builder, &mut spent, 0, &layer, false).all(layer.entries.clone())
    };
    assert_eq!(apply(6), Ok(()));
    let refused = apply(5).unwrap_err().to_string();
    assert!(refused.contains("offset 2048: more than 33554432 steps"), "{refused}");
}

#[test]
fn content_outside_the_tar_and_names_outside_the_root_are_refused() {
    let outside = "0: content at 9999..10001 lies outside the tar of 10000 bytes";
    assert_eq!(refusal(&["a f chunks=0@9999-10001"]), outside);
    check_merge(&["a f chunks=0@9999-10000"], "/a f size=1 layer=0 chunks=0@9999-10000");
    assert!(refusal(&["a f size=1 chunks=0@0-2"]).contains("does not fit 1 bytes"));
    assert!(refusal(&["a f size=9 chunks=0@0-2,1@5-6"]).contains("file offset 1 "));
    assert!(refusal(&["a f chunks=18446744073709551615@0-2"]).contains("does not fit"));
    assert!(refusal(&["a/../../b d"]).contains("leaves the root"));
    assert!(refusal(&["a h target=../b"]).contains("leaves the root"));
    for unclean in ["//a", "a/", "..", "a/.", "./a"] {
        assert!(refusal(&[&format!("{unclean} d")]).contains("leaves the root"), "{unclean}");
        let link = format!("a h target={unclean}");
        assert!(refusal(&[&link]).contains("leaves the root"), "{unclean}");
    }
}

#[test]
fn the_index_of_another_layer_is_refused() {
    let Changeset { layer, tar_size, entries } = changeset("a d");
    let mut index = LayerIndex::plain(layer.diff_id, tar_size, entries, Vec::new());
    let other = Layer { diff_id: Digest::sha256_of(b"other"), ..layer.clone() };
    assert!(matches!(Changeset::take(other, &mut index), Err(Error::DigestMismatch { .. })));
    assert_eq!(Changeset::take(layer, &mut index).unwrap().entries.len(), 1);
    assert!(index.entries.is_empty());
}

#[test]
fn layers_have_a_largest_number() {
    let empty = changeset("");
    assert!(merge(vec![empty.clone(); LAYERS_MAX]).is_ok());
    assert!(matches!(merge(vec![empty; LAYERS_MAX + 1]), Err(Error::Limit { .. })));
}

#[test]
fn one_layer_alone_shows_its_whiteouts_as_empty_files() {
    let text = "d/x f chunks=0@0-1\nd/.wh.y c 0 1:1 3 device=0:0\nd/.wh..wh..opq h target=z\n\
                .wh..wh.plnk d\nl h target=lower";
    let Merged { tree, warnings } = layer_tree(changeset(text)).unwrap();
    assert_eq!(
        brief(&dump(&tree)),
        brief(
            "/d d
             /d/.wh..wh..opq f size=0 layer=0 chunks=
             /d/.wh.y f 0000 1:1 3 size=0 layer=0 chunks=
             /d/x f size=1 layer=0 chunks=0@0-1"
        )
    );
    assert_eq!(warnings.len(), 1);
}
