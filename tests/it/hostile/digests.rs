//! Digests: that do not match, that are none, of algorithms that nobody knows.

use std::fs;

use layoutfs::layout::Digest;
use serde_json::{Value, json};

use super::{Canary, OCI_MANIFEST, Scene, config, manifest};
use crate::support::image::{Fill, Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder};
use crate::support::registry::Registry;

fn image() -> Image {
    let layer = LayerBuilder::new().file("file", 0o644, "text");
    ImageBuilder::new().layer(layer, Compression::Gzip).build()
}

#[test]
fn whatever_does_not_have_its_digest_is_refused_and_named() {
    let image = image();
    let other = Digest::sha256_of(b"other");
    for (digest, what) in [
        (image.digest, "manifest"),
        (image.config_digest, "config"),
        (image.layers[0].digest, "layer"),
    ] {
        // As long as it should be: only its digest tells.
        let scene = Scene::of(&image);
        let path = scene.blob_path(&digest);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let got = Digest::sha256_of(&bytes).to_string();
        let at = scene.room.path().join("at");
        fs::create_dir(&at).unwrap();
        let (outcome, _) = super::measured(&mut scene.room.command(&[
            "mount",
            scene.image(),
            at.to_str().unwrap(),
        ]));
        // What is here is wrong, and nobody has another.
        assert!(matches!(outcome.code(), Some(5 | 7)), "{what}: {outcome}");
        assert!(outcome.stderr.contains(&digest.to_string()), "{what}: {outcome}");
        assert!(outcome.stderr.contains(&got), "{what}: {outcome}");
        // And from a registry that serves it.
        let registry = Registry::start();
        image.push(&registry, "team/app", "v1");
        registry.put_blob_as("team/app", digest, bytes.clone());
        if digest == image.digest {
            registry.put_manifest("team/app", &image.media_type, bytes);
            continue;
        }
        let name = format!("docker://{}", registry.reference("team/app", "v1"));
        let words = [&*digest.to_string(), &got];
        let fresh = Scene::new();
        let at = fresh.room.path().join("at");
        fs::create_dir(&at).unwrap();
        fresh.fails(&["mount", &name, at.to_str().unwrap()], 7, &words);
    }
    let scene = Scene::new();
    let layer = scene.blob("application/vnd.oci.image.layer.v1.tar+gzip", &image.layers[0].blob);
    scene.write_image(&config(&[other.to_string()]), std::slice::from_ref(&layer));
    let words = ["DiffID mismatch", &image.layers[0].diff_id.to_string(), &other.to_string()];
    scene.refused(7, &[&words[..], &[&image.layers[0].digest.to_string()]].concat());
    // As many DiffIDs as layers.
    for ids in [vec![], vec![other.to_string(), other.to_string()]] {
        scene.write_image(&config(&ids), std::slice::from_ref(&layer));
        scene.refused(3, &["diff_ids for the manifest's 1 layers"]);
    }
}

/// Everything that a digest must not be.
fn wrong(canary: &Canary) -> Vec<String> {
    let hex = "a".repeat(64);
    vec![
        format!("sha256:{}{}/secret", "../".repeat(30), canary.relative()),
        "sha256:../../x".into(),
        format!("../../{}:{hex}", canary.relative()),
        format!("sha256:{hex}/../../../x"),
        format!("sha256:{}", "A".repeat(64)),
        format!("sha256:{hex}a"),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}\0"),
        format!("sha256:{}", "é".repeat(32)),
        "sha256:".into(),
        "sha256".into(),
        String::new(),
        format!("SHA256:{hex}"),
        format!("md5:{}", "a".repeat(32)),
        format!("sha1:{}", "a".repeat(40)),
        format!("sha384:{}", "a".repeat(96)),
        format!("blake3:{hex}"),
        format!("sha256+b64:{hex}"),
        format!("sha512:{hex}"),
        "\u{1b}]0;title\u{7}\u{1b}[31m".repeat(100_000),
    ]
}

#[test]
fn what_is_no_digest_is_refused_and_no_path() {
    let canary = Canary::new();
    let image = image();
    let good: Value = serde_json::from_slice(&image.manifest).unwrap();
    for digest in wrong(&canary) {
        let scene = Scene::of(&image);
        for at in ["/config/digest", "/layers/0/digest"] {
            let mut manifest = good.clone();
            *manifest.pointer_mut(at).unwrap() = digest.as_str().into();
            scene.write_manifest(&manifest);
            scene.fails(&["inspect", scene.image()], 3, &["manifest sha256:", "invalid digest"]);
        }
        scene.refused_as("layout", 3, &["manifest sha256:", "invalid digest"]);
        scene.index(&[json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": 7})]);
        scene.fails(&["hydrate", scene.image()], 3, &["index.json", "invalid digest"]);
        let layer = good["layers"][0].clone();
        scene.write_image(&config(std::slice::from_ref(&digest)), &[layer]);
        scene.fails(&["inspect", scene.image()], 3, &["config sha256:", "invalid digest"]);
    }
    canary.assert_untouched();
}

/// The same from a registry: neither a layout nor anything in the cache is made.
#[test]
fn sparse_writes_nothing_of_an_image_without_digests() {
    let canary = Canary::new();
    for digest in wrong(&canary) {
        let (registry, scene) = (Registry::start(), Scene::new());
        let good = json!({"mediaType": super::OCI_CONFIG, "size": 2,
                          "digest": registry.put_blob("team/app", "{}").to_string()});
        let wrong = json!({"mediaType": super::OCI_CONFIG, "size": 2, "digest": digest});
        let document = manifest(&good, std::slice::from_ref(&wrong)).to_string();
        let manifest = registry.put_manifest("team/app", OCI_MANIFEST, document);
        registry.tag("team/app", "v1", manifest);
        let to = scene.room.path().join("to");
        let reference = registry.reference("team/app", "v1");
        let args = ["sparse", &*reference, "--to", to.to_str().unwrap()];
        scene.fails(&args, 3, &[&manifest.to_string(), "invalid digest"]);
        assert!(!to.exists());
    }
    canary.assert_untouched();
}

/// `--layout-dir` makes a path of the name: it cannot leave the directory, whatever the image says.
#[test]
fn names_in_annotations_are_no_paths() {
    let canary = Canary::new();
    let image = image();
    let scene = Scene::of(&image);
    let climbing = format!("{}{}/secret", "../".repeat(30), canary.relative());
    let mut descriptor: Value = json!({"mediaType": OCI_MANIFEST, "size": image.manifest.len(),
                                       "digest": image.digest.to_string()});
    for name in [&*climbing, "../../evil", "/etc/passwd", "..", "", "\u{1b}[31mred\u{7}"] {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name,
                                           "io.containerd.image.name": name});
        scene.index(std::slice::from_ref(&descriptor));
        let mount = scene.mounted();
        assert_eq!(fs::read_to_string(mount.path().join("rootfs/file")).unwrap(), "text");
        mount.unmount();
        scene.room.layoutfs(&["hydrate", scene.image()]);
        let shown = scene.room.layoutfs(&["inspect", scene.image()]);
        assert!(!shown.contains('\u{1b}'), "{shown:?}");
        let upper = scene.room.path().join("upper");
        fs::create_dir_all(&upper).unwrap();
        fs::write(upper.join("new"), "new").unwrap();
        let to = scene.room.path().join("to").display().to_string();
        let upper = upper.display().to_string();
        scene.room.layoutfs(&["commit", &upper, "--base", scene.image(), "--to", &to]);
        scene.room.layoutfs(&["verify", &to, "--deep"]);
        let _ = fs::remove_dir_all(&to);
        canary.assert_untouched();
    }
    let mut other = descriptor.clone();
    other["digest"] = Digest::sha256_of(b"other").to_string().into();
    scene.index(&[descriptor, other]);
    scene.fails(&["inspect", scene.image()], 3, &["2 images, name one of them"]);
    let outcome = scene.room.run(&["inspect", scene.image()]);
    assert!(!outcome.stderr.contains('\u{1b}'), "{:?}", outcome.stderr);
    image.write_layout(&scene.layout, "v1", Fill::Full);
}
