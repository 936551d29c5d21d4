//! Documents: indexes in indexes, very many layers, media types that lie, JSON that is none.

use std::fs;

use layoutfs::layout::Digest;
use serde_json::{Value, json};

use super::{
    MEMORY_BYTES_MAX, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Scene, assert_within, config, manifest,
};
use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder};
use crate::support::registry::Registry;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn image() -> Image {
    let layer = LayerBuilder::new().file("file", 0o644, "text");
    ImageBuilder::new().layer(layer, Compression::Gzip).build()
}

fn index_of(descriptors: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors})
}

/// The image's manifest inside so many indexes.
fn nested(scene: &Scene, image: &Image, depth: usize) -> Value {
    let inner = json!({"mediaType": OCI_MANIFEST, "digest": image.digest.to_string(),
                       "size": image.manifest.len()});
    (0..depth).fold(inner, |inner, _| scene.document(OCI_INDEX, &index_of(&[inner])))
}

#[test]
fn indexes_inside_each_other_are_followed_so_far_and_no_further() {
    let image = image();
    for (depth, is_followed) in [(8, true), (9, false), (500, false)] {
        let scene = Scene::of(&image);
        scene.index(&[nested(&scene, &image, depth)]);
        if is_followed {
            let mount = scene.mounted();
            assert_eq!(fs::read_to_string(mount.path().join("rootfs/file")).unwrap(), "text");
        } else {
            scene.refused(3, &["more than 8 image indexes inside each other"]);
        }
        let registry = Registry::start();
        image.push(&registry, "team/app", "v1");
        let mut at = image.digest;
        for _ in 0..depth {
            let inner = json!({"mediaType": OCI_MANIFEST, "digest": at.to_string(), "size": 1});
            at = registry.put_manifest("team/app", OCI_INDEX, index_of(&[inner]).to_string());
        }
        registry.tag("team/app", "v1", at);
        let to = scene.room.path().join("to");
        let reference = registry.reference("team/app", "v1");
        let args = ["sparse", &*reference, "--to", to.to_str().unwrap()];
        match is_followed {
            true => drop(scene.room.layoutfs(&args)),
            false => scene.fails(&args, 3, &["more than 8 indexes inside each other"]),
        }
        assert!(registry.requests().len() < 24, "{:?}", registry.requests().len());
    }
}

#[test]
fn an_index_of_very_many_images_costs_what_its_document_costs() {
    let image = image();
    let scene = Scene::of(&image);
    let named = |n: usize| {
        json!({"mediaType": OCI_MANIFEST, "digest": Digest::sha256_of(&n.to_le_bytes()).to_string(),
               "size": 100, "annotations": {"org.opencontainers.image.ref.name": format!("n{n}")}})
    };
    let mut descriptors: Vec<_> = (0..10_000).map(named).collect();
    scene.index(&descriptors);
    let words = ["index.json: 10000 images, name one of them", "9980 more"];
    scene.fails(&["inspect", scene.image()], 3, &words);
    let mut own = nested(&scene, &image, 0);
    own["annotations"] = json!({"org.opencontainers.image.ref.name": "mine"});
    descriptors.push(own);
    scene.index(&descriptors);
    let mount = scene.room.mount(&format!("oci:{}:mine", scene.image()), &["--view", "all"]);
    assert_within(&mount, MEMORY_BYTES_MAX);
    assert_eq!(fs::read_dir(mount.path().join("layout/blobs/sha256")).unwrap().count(), 10_003);
    mount.unmount();
    scene.index(&(0..40_000).map(named).collect::<Vec<_>>());
    scene.refused(3, &["index.json exceeds the limit of 4194304"]);
}

/// Every document of a layout is at most 4 MiB; there may be any number of them.
#[test]
fn documents_that_are_too_many_for_memory_are_shown_and_not_followed() {
    let image = image();
    let scene = Scene::of(&image);
    let large = |n: usize| {
        let filler = format!("{n}{}", " ".repeat(4_000_000));
        let document = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [],
                              "annotations": {"filler": filler}});
        scene.document(OCI_INDEX, &document)
    };
    let mut descriptors: Vec<_> = (0..40).map(large).collect();
    let mut own = nested(&scene, &image, 0);
    own["annotations"] = json!({"org.opencontainers.image.ref.name": "mine"});
    descriptors.push(own);
    scene.index(&descriptors);
    let mount = scene.room.mount(&format!("oci:{}:mine", scene.image()), &["--view", "layout"]);
    assert_within(&mount, MEMORY_BYTES_MAX);
    let said = mount.said().to_owned() + &mount.log();
    assert!(said.contains("more documents than"), "{said}");
    let blobs = mount.path().join("blobs/sha256");
    // Each is there, whether it was followed or not; and so is the image's layer.
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 43);
    assert_eq!(fs::read(blobs.join(image.layers[0].digest.hex())).unwrap(), image.layers[0].blob);
}

#[test]
fn a_manifest_of_ten_thousand_layers_is_mounted_and_one_of_forty_thousand_is_not() {
    let scene = Scene::new();
    let layers: Vec<_> = (0..2)
        .map(|n| {
            let tar = LayerBuilder::new().file(&format!("file{n}"), 0o644, "text").tar();
            let blob = Compression::Gzip.compress(&tar);
            (scene.blob(GZIP, &blob), Digest::sha256_of(&tar).to_string())
        })
        .collect();
    let many: Vec<_> = layers.iter().cycle().take(10_000).collect();
    let descriptors: Vec<_> = many.iter().map(|(descriptor, _)| descriptor.clone()).collect();
    let ids: Vec<_> = many.iter().map(|(_, id)| id.clone()).collect();
    scene.write_image(&config(&ids), &descriptors);
    let mount = scene.mounted();
    assert_eq!(fs::read_dir(mount.path().join("rootfs")).unwrap().count(), 2);
    assert_eq!(fs::read_dir(mount.path().join("layers")).unwrap().count(), 10_000);
    assert_eq!(fs::read_to_string(mount.path().join("rootfs/file1")).unwrap(), "text");
    mount.unmount();
    let digest = Digest::sha256_of(b"").to_string();
    let short: Vec<_> = (0..32_001).map(|_| json!({"digest": digest, "size": 0})).collect();
    scene.write_image(&config(&[]), &short);
    scene.refused(3, &["number of layers of manifest sha256:", "exceeds the limit of 32000"]);
    let long: Vec<_> = descriptors.iter().cycle().take(40_000).cloned().collect();
    scene.write_image(&config(&[]), &long);
    scene.refused(3, &["size in bytes of manifest sha256:", "exceeds the limit of 4194304"]);
}

#[test]
fn media_types_that_lie_change_nothing_or_are_refused() {
    let image = image();
    let scene = Scene::of(&image);
    let good: Value = serde_json::from_slice(&image.manifest).unwrap();
    // The first bytes say how a layer is compressed, whatever its type claims.
    for lie in
        ["application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.oci.image.layer.v1.tar"]
    {
        let mut manifest = good.clone();
        manifest["layers"][0]["mediaType"] = lie.into();
        scene.write_manifest(&manifest);
        let mount = scene.mounted();
        assert_eq!(fs::read_to_string(mount.path().join("rootfs/file")).unwrap(), "text");
    }
    let endless = "x".repeat(1 << 20);
    for (at, lie, words) in [
        ("/layers/0/mediaType", "text/html", &["layer sha256:", "text/html"][..]),
        ("/layers/0/mediaType", OCI_CONFIG, &["layer sha256:", OCI_CONFIG]),
        ("/layers/0/mediaType", &endless, &["layer sha256:", "media type xxx"]),
        ("/mediaType", OCI_INDEX, &["manifest sha256:", "the fields of an image manifest"]),
        ("/mediaType", "text/html", &["manifest sha256:", "text/html"]),
        ("/mediaType", &endless, &["manifest sha256:", "media type xxx"]),
    ] {
        let mut manifest = good.clone();
        *manifest.pointer_mut(at).unwrap() = lie.into();
        scene.write_manifest(&manifest);
        scene.refused(3, words);
    }
    // An index that is called a manifest, and the other way round.
    let mut own = nested(&scene, &image, 1);
    own["mediaType"] = OCI_MANIFEST.into();
    scene.index(&[own]);
    scene.mounted().unmount();
    let mut own = nested(&scene, &image, 0);
    own["mediaType"] = OCI_INDEX.into();
    scene.index(&[own]);
    scene.mounted().unmount();
}

#[test]
fn configurations_that_are_none_are_refused() {
    let image = image();
    let layer = serde_json::from_slice::<Value>(&image.manifest).unwrap()["layers"][0].clone();
    let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let nested = format!(r#"{{"rootfs":{}1{}}}"#, r#"{"a":"#.repeat(500_000), "}".repeat(500_000));
    let text =
        format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#, "x".repeat(3 << 20));
    let typed = format!(r#"{{"rootfs":{{"type":"{}","diff_ids":[]}}}}"#, "\\u001b".repeat(500_000));
    for bytes in [
        "[]",
        "[[]]",
        "null",
        "7",
        "\"text\"",
        "",
        "{",
        "{}",
        "\u{0}",
        &deep,
        &nested,
        &text,
        &typed,
        r#"{"rootfs":[]}"#,
        r#"{"rootfs":{"type":"layers","diff_ids":{}}}"#,
        r#"{"rootfs":{"type":"layers","diff_ids":[7]}}"#,
        r#"{"config":[],"rootfs":{"type":"layers","diff_ids":[]}}"#,
        r#"{"config":{"Env":"x"},"rootfs":{"type":"layers","diff_ids":[]}}"#,
        r#"{"rootfs":{"type":"layers","diff_ids":[]},"rootfs":{"type":"layers","diff_ids":[]}}"#,
    ] {
        let scene = Scene::of(&image);
        let config = scene.blob(OCI_CONFIG, bytes.as_bytes());
        scene.write_manifest(&manifest(&config, std::slice::from_ref(&layer)));
        let at = scene.room.path().join("at");
        fs::create_dir(&at).unwrap();
        scene.fails(&["mount", scene.image(), at.to_str().unwrap()], 3, &["config sha256:"]);
    }
    for bytes in ["[]", "", "7", &deep, r#"{"layers":7}"#, r#"{"manifests":[],"layers":[]}"#] {
        let scene = Scene::of(&image);
        let manifest = scene.blob(OCI_MANIFEST, bytes.as_bytes());
        scene.index(&[manifest]);
        scene.refused(3, &["manifest sha256:"]);
        fs::write(scene.layout.join("index.json"), bytes).unwrap();
        scene.refused(3, &["index.json"]);
    }
}

/// A million values of two bytes each: what is parsed takes more than what is read.
#[test]
fn a_configuration_of_a_million_values_is_within_memory() {
    let image = image();
    let layer = serde_json::from_slice::<Value>(&image.manifest).unwrap()["layers"][0].clone();
    let scene = Scene::of(&image);
    let values = vec!["0"; 2_000_000].join(",");
    let ids = json!([image.layers[0].diff_id.to_string()]);
    let config = format!(r#"{{"x":[{values}],"rootfs":{{"type":"layers","diff_ids":{ids}}}}}"#);
    let config = scene.blob(OCI_CONFIG, config.as_bytes());
    scene.write_manifest(&manifest(&config, &[layer]));
    let mount = scene.room.mount(scene.image(), &[]);
    assert_within(&mount, 2 * MEMORY_BYTES_MAX);
    assert_eq!(fs::read_to_string(mount.path().join("file")).unwrap(), "text");
}
