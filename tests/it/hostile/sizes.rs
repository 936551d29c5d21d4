//! Sizes that lie: of members, of descriptors, of documents, on the wire.

use layoutfs::layout::Digest;
use serde_json::{Value, json};

use super::{Scene, config, layer_refused, manifest};
use crate::support::faults::{Action, Fault};
use crate::support::image::{Fill, Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, Member, fix_checksum, generated, header};
use crate::support::registry::Registry;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A header whose size field has these twelve bytes.
fn with_size(field: [u8; 12]) -> [u8; 512] {
    let mut record = header(&Member::new(b'0', "file", 0o644));
    record[124..136].copy_from_slice(&field);
    fix_checksum(&mut record);
    record
}

#[test]
fn a_member_that_is_larger_than_the_archive_is_cut_off() {
    // Beyond the end by a little, by a terabyte, by all that a header can say.
    for bytes in [2049, 1 << 32, 1 << 62, i64::MAX as u64 - 8192] {
        let before = LayerBuilder::new().file("before", 0o644, "x");
        let at = before.position();
        let field = [&[0x80, 0, 0, 0][..], &bytes.to_be_bytes()].concat();
        let tar = before.raw(&with_size(field.try_into().unwrap())).raw(&[b'x'; 1024]).tar();
        layer_refused(&tar, Compression::Gzip, at, &["cut off", "the member's content"]);
    }
    // Directories and links have no content, whatever they say.
    let lying = |kind| Member { declared_bytes: Some(1 << 40), ..Member::link(kind, "x", "y") };
    let layer = LayerBuilder::new().member(lying(b'2')).member(lying(b'5')).tar();
    super::one_layer(&layer, Compression::Gzip).0.mounted().unmount();
}

#[test]
fn sizes_that_no_file_has_are_refused() {
    let negative = [0xff; 12];
    let huge = [&[0x80, 0, 0, 0][..], &[0xff; 8]].concat();
    let beyond = [0xbf; 12];
    for field in [negative, huge.try_into().unwrap(), beyond, *b"-0000000001\0", *b"99999999999\0"]
    {
        let tar = LayerBuilder::new().raw(&with_size(field)).tar();
        layer_refused(&tar, Compression::Zstd, 0, &["size"]);
    }
    let texts: [&[u8]; 5] =
        [b"18446744073709551615", b"-1", b"1e3", b"9223372036854775808", b"99999999999999999999"];
    for text in texts {
        for key in ["size", "GNU.sparse.size", "GNU.sparse.realsize"] {
            let layer = LayerBuilder::new().pax(b'x', &[(key.as_bytes(), text)]);
            let at = layer.position();
            let tar = layer.file("file", 0o644, "x").tar();
            let (scene, image) = super::one_layer(&tar, Compression::Gzip);
            let digest = image.layers[0].digest.short();
            scene.refused_as("rootfs", 3, &[&digest, &format!("offset {at}:"), "size"]);
        }
    }
    // A size that is none where it stands, because its end is beyond what a position can be.
    let layer = LayerBuilder::new().pax(b'g', &[(b"size", b"9223372036854775807")]);
    let at = layer.position();
    let tar = layer.file("a", 0o644, "").file("b", 0o644, "").tar();
    layer_refused(&tar, Compression::Plain, at, &["impossible size"]);
}

fn small() -> Image {
    let content = generated("small", 20_000);
    ImageBuilder::new()
        .layer(LayerBuilder::new().file("file", 0o644, content), Compression::Gzip)
        .build()
}

/// The image's layer descriptor and configuration, each with another size.
fn with_sizes(image: &Image, layer: Option<Value>, config: Option<Value>) -> (Scene, Value) {
    let scene = Scene::of(image);
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    for (descriptor, size) in [("/layers/0", layer), ("/config", config)] {
        if let Some(size) = size {
            manifest.pointer_mut(descriptor).unwrap()["size"] = size;
        }
    }
    scene.write_manifest(&manifest);
    (scene, manifest)
}

#[test]
fn descriptors_of_sizes_that_nothing_has_are_refused() {
    let image = small();
    let absurd =
        [json!(-1), json!(i64::MIN), json!(1.5), json!(1e300), json!(u64::MAX), json!(1u64 << 63)];
    for size in absurd {
        for (layer, config) in [(Some(size.clone()), None), (None, Some(size.clone()))] {
            let (scene, _) = with_sizes(&image, layer, config);
            scene.refused_as("rootfs", 3, &["manifest sha256:", "size"]);
        }
        let scene = Scene::of(&image);
        let digest = image.digest.to_string();
        scene.index(&[json!({"mediaType": super::OCI_MANIFEST, "digest": digest, "size": size})]);
        scene.refused_as("layout", 3, &["index.json", "size"]);
    }
}

#[test]
fn a_blob_that_is_not_of_its_descriptors_size_is_not_used() {
    let image = small();
    let true_bytes = image.layers[0].blob.len() as u64;
    let config_bytes = image.config.len() as u64;
    let registry = Registry::start();
    image.push(&registry, "team/app", "v1");
    let source = format!("{}/team/app", registry.host());
    for size in [0, 1, true_bytes - 1, true_bytes + 1, 1 << 40, i64::MAX as u64] {
        let (scene, _) = with_sizes(&image, Some(json!(size)), None);
        let digest = image.layers[0].digest.to_string();
        // Not there in that size, and nobody to ask.
        scene.refused_as("rootfs", 5, &[&digest]);
        let at = scene.room.path().join("at");
        std::fs::create_dir(&at).unwrap();
        let args = ["mount", scene.image(), at.to_str().unwrap(), "--source", &source];
        let outcome = scene.room.run(&args);
        assert!(matches!(outcome.code(), Some(3 | 6 | 7)), "{size}: {outcome}");
        assert!(outcome.stderr.contains(&digest), "{outcome}");
    }
    for size in [0, config_bytes - 1, config_bytes + 1] {
        let (scene, _) = with_sizes(&image, None, Some(json!(size)));
        scene.refused(5, &[&image.config_digest.to_string()]);
    }
    let (scene, _) = with_sizes(&image, None, Some(json!(100u64 << 20)));
    scene.refused(3, &[&image.config_digest.to_string(), "exceeds the limit of 4194304"]);
}

#[test]
fn a_layout_view_of_blobs_of_any_size_has_those_sizes_and_no_bytes() {
    let scene = Scene::new();
    let absent = Digest::sha256_of(b"absent");
    let layer = json!({"mediaType": GZIP, "digest": absent.to_string(), "size": i64::MAX});
    scene.write_image(&config(&[absent.to_string()]), &[layer]);
    let mount = scene.room.mount(scene.image(), &["--view", "layout"]);
    let blob = mount.path().join("blobs/sha256").join(absent.hex());
    assert_eq!(blob.metadata().unwrap().len(), i64::MAX as u64);
    assert_eq!(
        std::fs::File::open(&blob)
            .and_then(|f| {
                use std::os::unix::fs::FileExt as _;
                f.read_at(&mut [0; 10], 1 << 62)
            })
            .unwrap_err()
            .raw_os_error(),
        Some(5)
    );
    super::assert_within(&mount, super::MEMORY_BYTES_MAX);
}

/// What the registry says of lengths, against what it sends.
#[test]
fn lengths_that_lie_on_the_wire_end_in_an_error_or_in_the_right_bytes() {
    let image = small();
    let lies = [
        Action::BodyTooLong(1),
        Action::BodyTooLong(8 << 20),
        Action::WrongHeadSize(u64::MAX),
        Action::WrongContentRange,
        Action::MissingContentRange,
        Action::IgnoreRange,
        Action::Chunked,
        Action::CutBodyAt(7),
    ];
    for lie in lies {
        for path in ["/manifests/", "/blobs/"] {
            let registry = Registry::start();
            image.push(&registry, "team/app", "v1");
            registry.inject(Fault::new(lie.clone()).path(path).always());
            let scene = Scene::new();
            let name = format!("docker://{}", registry.reference("team/app", "v1"));
            match scene.room.try_mount(&name, &["--deadline", "2s"]) {
                Ok(mount) => {
                    let read = std::fs::read(mount.path().join("file")).unwrap();
                    assert!(read == generated("small", 20_000), "{lie:?} {path}");
                    super::assert_within(&mount, super::MEMORY_BYTES_MAX);
                }
                Err(outcome) => {
                    assert!(matches!(outcome.code(), Some(3 | 6 | 7)), "{lie:?} {path} {outcome}");
                    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
                }
            }
        }
    }
}

#[test]
fn documents_beyond_the_limit_are_not_read() {
    let scene = Scene::new();
    let big = json!({"mediaType": super::OCI_CONFIG, "digest": Digest::sha256_of(b"c").to_string(),
                     "size": 100u64 << 20});
    scene.write_manifest(&manifest(&big, &[]));
    let path = scene.blob_path(&Digest::sha256_of(b"c"));
    std::fs::File::create(path).unwrap().set_len(100 << 20).unwrap();
    scene.refused(3, &["exceeds the limit"]);
    // 100 MiB of manifest, and of index.json.
    scene.index(&[json!({"mediaType": super::OCI_MANIFEST, "size": 100u64 << 20,
                         "digest": Digest::sha256_of(b"c").to_string()})]);
    scene.refused(3, &["exceeds the limit"]);
    std::fs::File::create(scene.layout.join("index.json")).unwrap().set_len(100 << 20).unwrap();
    scene.refused(3, &["index.json", "104857600 bytes"]);
    let image = small();
    image.write_layout(&scene.layout, "v1", Fill::Full);
    scene.mounted().unmount();
}
