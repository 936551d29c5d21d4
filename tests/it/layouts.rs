//! Layouts that other tools write: nested indexes, several images, documents that are missing.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::json;

use crate::support::image::{Fill, Image, ImageBuilder, ImageIndex, Names};
use crate::support::layer::{Compression, LayerBuilder};
use crate::support::mount::Room;
use crate::support::registry::Registry;

fn image(name: &str, architecture: &str, names: Names) -> Image {
    ImageBuilder::new()
        .platform("linux", architecture, None)
        .names(names)
        .layer(LayerBuilder::new().file("name", 0o644, name.to_owned()), Compression::Gzip)
        .build()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("read")
}

#[test]
fn an_index_of_platforms_shows_all_of_them_and_mounts_one() {
    let room = Room::new();
    let images = vec![image("amd", "amd64", Names::Oci), image("arm", "arm64", Names::Docker)];
    let index = ImageIndex::new(images);
    let layout = room.path().join("layout");
    index.write_layout(&layout, "v1", Fill::Full);
    let path = layout.display().to_string();
    let amd = room.mount(&path, &["--platform", "linux/amd64"]);
    assert_eq!(text(&amd.path().join("name")), "amd");
    let arm = room.mount(&format!("oci:{path}:v1"), &["--platform", "linux/arm64"]);
    assert_eq!(text(&arm.path().join("name")), "arm");
    let whole = room.mount(&path, &["--view", "layout"]);
    for image in &index.images {
        for digest in [image.digest, image.config_digest, image.layers[0].digest] {
            let shown = whole.path().join("blobs/sha256").join(digest.hex());
            let original = layout.join("blobs/sha256").join(digest.hex());
            assert_eq!(fs::read(shown).expect("shown"), fs::read(original).expect("there"));
        }
    }
}

#[test]
fn manifests_that_the_layout_lacks_come_from_the_registry() {
    let (registry, room) = (Registry::start(), Room::new());
    let index = ImageIndex::new(vec![image("amd", "amd64", Names::Oci)]);
    index.push(&registry, "team/app", "v1");
    let layout = room.path().join("layout");
    index.write_layout(&layout, "v1", Fill::Sparse);
    let image = &index.images[0];
    for digest in [image.digest, image.config_digest] {
        fs::remove_file(layout.join("blobs/sha256").join(digest.hex())).expect("removed");
    }
    let source = format!("{}/team/app", registry.host());
    let options = ["--source", &*source, "--platform", "linux/amd64"];
    let path = layout.display().to_string();
    let rootfs = room.mount(&path, &options);
    assert_eq!(text(&rootfs.path().join("name")), "amd");
    let whole = room.mount(&path, &[&options[..], &["--view", "layout"]].concat());
    let blobs = whole.path().join("blobs/sha256");
    assert_eq!(fs::read(blobs.join(image.digest.hex())).expect("read"), image.manifest);
    assert_eq!(fs::read(blobs.join(image.config_digest.hex())).expect("read"), image.config);
}

#[test]
fn several_images_are_told_apart_by_reference_and_digest() {
    let room = Room::new();
    let (one, two) = (image("one", "amd64", Names::Oci), image("two", "amd64", Names::Docker));
    let layout = room.path().join("layout");
    one.write_layout(&layout, "one", Fill::Full);
    two.write_layout(&layout, "two", Fill::Full);
    let manifests: Vec<_> = [(&one, "one"), (&two, "two")]
        .map(|(image, tag)| {
            json!({
                "mediaType": image.media_type,
                "digest": image.digest.to_string(),
                "size": image.manifest.len(),
                "annotations": {"org.opencontainers.image.ref.name": tag},
            })
        })
        .into();
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(layout.join("index.json"), index.to_string()).expect("written");
    let path = layout.display().to_string();
    let by_tag = room.mount(&format!("oci:{path}:two"), &[]);
    assert_eq!(text(&by_tag.path().join("name")), "two");
    let by_digest = room.mount(&format!("oci:{path}:{}", one.digest), &[]);
    assert_eq!(text(&by_digest.path().join("name")), "one");
    let outcome = room.run(&["inspect", &path]);
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    assert!(outcome.stderr.contains("one") && outcome.stderr.contains("two"), "{outcome}");
    let both = room.mount(&format!("oci:{path}:one"), &["--view", "layout"]);
    for image in [&one, &two] {
        let blob = both.path().join("blobs/sha256").join(image.layers[0].digest.hex());
        assert_eq!(fs::read(blob).expect("read"), image.layers[0].blob);
    }
}

#[test]
fn blobs_are_regular_files_with_one_inode_and_a_type_in_the_listing() {
    let room = Room::new();
    let layout = room.path().join("layout");
    image("one", "amd64", Names::Oci).write_layout(&layout, "one", Fill::Full);
    let mount = room.mount(&layout.display().to_string(), &["--view", "layout"]);
    let mut seen = 0;
    for entry in fs::read_dir(mount.path().join("blobs/sha256")).expect("listed") {
        let entry = entry.expect("an entry");
        // From the listing, not from a stat.
        assert!(entry.file_type().expect("d_type").is_file());
        let by_name = fs::symlink_metadata(entry.path()).expect("lstat");
        let by_handle = fs::File::open(entry.path()).and_then(|f| f.metadata()).expect("fstat");
        assert_eq!((by_name.dev(), by_name.ino()), (by_handle.dev(), by_handle.ino()));
        seen += 1;
    }
    assert_eq!(seen, 3);
}
