//! Links: where a later entry needs a directory, in circles, out of the root; and commands that
//! write, on images of such links.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::{Canary, Scene, one_layer};
use crate::support::image::{Fill, Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder};
use crate::support::registry::Registry;

fn text(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Layers of text, lowest first.
fn layers(layers: &[&str]) -> Image {
    let add = |image: ImageBuilder, layer: &&str| {
        image.layer(LayerBuilder::text(layer), Compression::Gzip)
    };
    layers.iter().fold(ImageBuilder::new(), add).build()
}

/// An image whose every way leads to the canary, as far as it is up to the image; with the places
/// that a runtime mounts on, or without.
fn climbing(canary: &Canary, mounts: bool) -> Image {
    let (absolute, up) = (canary.path(), format!("{}{}", "../".repeat(40), canary.relative()));
    let mut lower = format!(
        "symlink out -> {absolute}
         symlink up -> {up}
         symlink etc -> {absolute}
         symlink hosts -> {absolute}/hosts\n"
    );
    if mounts {
        lower += &format!("symlink proc -> {up}\nsymlink sys -> {absolute}\nsymlink dev -> {up}");
    }
    let upper = format!(
        "file out/planted = planted
         file up/inner/planted = planted
         hardlink stolen -> out/secret
         hardlink stolen2 -> {}/secret
         whiteout out/secret
         opaque up/inner
         file etc/passwd = root:x:0:0::/:/bin/sh\\n",
        canary.relative()
    );
    let add =
        |image: ImageBuilder, text: &str| image.layer(LayerBuilder::text(text), Compression::Gzip);
    let image = ImageBuilder::new()
        .setting("WorkingDir", json!("/out/working/directory"))
        .setting("Volumes", json!({"/up/volume": {}, "/../../volume": {}}))
        .setting("Env", json!(["PATH=/out:/up"]));
    add(add(image, &lower), &upper).build()
}

#[test]
fn links_out_of_the_root_lead_into_it_and_nothing_outside_is_touched() {
    let canary = Canary::new();
    let scene = Scene::of(&climbing(&canary, true));
    let mount = scene.mounted();
    let rootfs = mount.path().join("rootfs");
    let inside = rootfs.join(canary.relative());
    assert_eq!(text(inside.join("planted")), "planted");
    assert_eq!(text(inside.join("inner/planted")), "planted");
    // What the whiteout names and the hard links want is not in the image.
    for absent in ["secret", "inner/secret"] {
        assert!(!inside.join(absent).exists(), "{absent}");
    }
    for absent in ["stolen", "stolen2"] {
        assert!(rootfs.join(absent).symlink_metadata().is_err(), "{absent}");
    }
    let mut said = mount.said().to_owned();
    said += &mount.log();
    assert!(said.contains("hard link stolen is left out"), "{said}");
    mount.unmount();
    canary.assert_untouched();
}

#[test]
fn commands_that_write_follow_no_link_of_the_image() {
    let canary = Canary::new();
    let image = climbing(&canary, false);
    let scene = Scene::of(&image);
    let room = &scene.room;
    let dir = |name: &str| room.path().join(name).display().to_string();
    for path in ["out/secret", "/up/inner/secret", "etc/passwd", "../../etc/passwd", "stolen"] {
        let shown = room.run(&["inspect", scene.image(), path]).success();
        assert!(!shown.contains("outsider"), "{shown}");
        canary.assert_untouched();
    }
    let (bundle, upper) = (dir("bundle"), dir("upper"));
    room.layoutfs(&["bundle", scene.image(), &bundle, "--upper", &upper, "--", "/x"]);
    room.layoutfs(&["unmount", &bundle]);
    canary.assert_untouched();
    let bind = format!("{}:/out/bound/here", dir(""));
    let options = ["--upper", &*upper, "--bind", &*bind, "--", "/x"];
    let run = |options: &[&str]| room.run(&[&["run", scene.image()], options].concat());
    // There is no such program, and no such user, in the image.
    assert_eq!(run(&options).code(), Some(127));
    let outcome = run(&["--user", "outsider", "--", "/x"]);
    assert!(outcome.code() == Some(3) && outcome.stderr.contains("outsider"), "{outcome}");
    canary.assert_untouched();
    climbing(&canary, true).write_layout(&scene.layout, "v1", Fill::Full);
    let outcome = run(&["--", "/x"]);
    // The runtime mounts on no link.
    assert!(outcome.code() == Some(1) && outcome.stderr.contains("proc"), "{outcome}");
    canary.assert_untouched();
    let committed = dir("committed");
    // An upper directory whose links lead out, too.
    std::os::unix::fs::symlink(canary.path(), Path::new(&upper).join("link")).unwrap();
    room.layoutfs(&["commit", &upper, "--base", scene.image(), "--to", &committed]);
    room.layoutfs(&["verify", &committed, "--deep"]);
    let again = room.mount(&committed, &[]);
    assert_eq!(fs::read_link(again.path().join("link")).unwrap(), Path::new(canary.path()));
    again.unmount();
    canary.assert_untouched();
}

#[test]
fn layout_directories_that_are_links_are_not_written_through() {
    let (canary, registry) = (Canary::new(), Registry::start());
    let image = layers(&["file name = text"]);
    image.push(&registry, "team/app", "v1");
    let source = format!("{}/team/app", registry.host());
    for link in ["blobs", "blobs/sha256"] {
        let scene = Scene::new();
        image.write_layout(&scene.layout, "v1", Fill::Sparse);
        let at = scene.layout.join(link);
        let held = scene.layout.join("held");
        fs::rename(&at, &held).unwrap();
        // The documents are where they were, so that hydrating gets as far as the layer.
        fs::rename(&held, canary_twin(&scene)).unwrap();
        std::os::unix::fs::symlink(canary_twin(&scene), &at).unwrap();
        let before = super::snapshot(&canary_twin(&scene));
        scene.fails(&["hydrate", scene.image(), "--source", &source], 3, &[link, "symbolic link"]);
        assert_eq!(super::snapshot(&canary_twin(&scene)), before);
    }
    canary.assert_untouched();
}

fn canary_twin(scene: &Scene) -> std::path::PathBuf {
    scene.room.path().join("elsewhere")
}

#[test]
fn an_entry_below_a_file_or_a_hard_link_takes_its_place() {
    let together = ["file a = kept\nhardlink b -> a\nfile c = gone\nfile b/in = 1\nfile c/in = 2"];
    let apart = ["file a = kept\nhardlink b -> a\nfile c = gone", "file b/in = 1\nfile c/in = 2"];
    for image in [layers(&together), layers(&apart)] {
        let scene = Scene::of(&image);
        let mount = scene.mounted();
        let rootfs = mount.path().join("rootfs");
        assert_eq!(text(rootfs.join("a")), "kept");
        assert_eq!(text(rootfs.join("b/in")), "1");
        assert_eq!(text(rootfs.join("c/in")), "2");
    }
}

#[test]
fn an_entry_below_a_link_lands_where_it_leads() {
    let together =
        ["symlink a -> absent/deep\nsymlink f -> file\nfile file = gone\nsymlink h -> a\n\
         hardlink hl -> a\nfile a/in = 1\nfile f/in = 2\nfile hl/also = 3\nfile h/third = 4"];
    let apart = [
        "symlink a -> absent/deep\nsymlink f -> file\nfile file = gone\nsymlink h -> a\n\
         hardlink hl -> a",
        "file a/in = 1\nfile f/in = 2\nfile hl/also = 3\nfile h/third = 4",
    ];
    for image in [layers(&together), layers(&apart)] {
        let scene = Scene::of(&image);
        let mount = scene.mounted();
        let rootfs = mount.path().join("rootfs");
        for (path, expected) in [
            ("absent/deep/in", "1"),
            ("file/in", "2"),
            ("absent/deep/also", "3"),
            ("absent/deep/third", "4"),
        ] {
            assert_eq!(text(rootfs.join(path)), expected, "{path}");
        }
    }
}

#[test]
fn links_in_circles_are_shown_and_what_needs_them_as_directories_is_refused() {
    let circles = "symlink a -> b\nsymlink b -> a\nsymlink self -> self\nsymlink dir -> dir/dir\n\
                   hardlink h -> i\nhardlink i -> h\nhardlink own -> own";
    let scene = Scene::of(&layers(&[circles]));
    let mount = scene.mounted();
    for name in ["a", "self", "dir/x"] {
        let error = fs::read(mount.path().join("rootfs").join(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(40), "{name}: {error}");
    }
    for name in ["h", "i", "own"] {
        assert!(mount.path().join("rootfs").join(name).symlink_metadata().is_err(), "{name}");
    }
    mount.unmount();
    for needs in ["file a/x = x", "dir self/x", "hardlink x -> dir/x", "whiteout b/x"] {
        // In one layer, behind the seven records of the links.
        let tar = LayerBuilder::text(&format!("{circles}\n{needs}")).tar();
        super::layer_refused(&tar, Compression::Gzip, 7 * 512, &["more than 40 symbolic links"]);
        // And over two.
        let image = layers(&[circles, needs]);
        let digest = image.layers[1].digest.short();
        Scene::of(&image).refused(3, &[&digest, "offset 0:", "more than 40 symbolic links"]);
    }
}

/// Each entry costs as many steps as forty targets have components, and almost no byte: here two
/// thousand of them cost what all of an image may.
#[test]
fn targets_that_take_millions_of_steps_to_follow_are_refused() {
    let mut layer = LayerBuilder::new().dir("d", 0o755);
    let round = "d/../".repeat(800);
    for link in 0..39 {
        layer = layer.symlink(&format!("l{link}"), &format!("{round}l{}", link + 1));
    }
    layer = layer.symlink("l39", "d");
    for file in 0..2_000 {
        layer = layer.file(&format!("l0/{file}"), 0o644, "");
    }
    let (scene, image) = one_layer(&layer.tar(), Compression::Zstd);
    let digest = image.layers[0].digest.short();
    scene.refused_as("rootfs", 3, &[&digest, "offset ", "steps"]);
}
