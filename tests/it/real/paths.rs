//! Where `sparse` puts layouts for the lifecycle and kaniko; and how `hydrate` completes them.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::debian::{Debian, described, digest_of, hex, tool};

/// The diffID of the tar that holds nothing.
const EMPTY_DIFF_ID: &str =
    "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";

fn blobs_in(layout: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The one manifest that `index.json` names: its descriptor.
fn only_manifest(layout: &Path) -> Value {
    let index = std::fs::read(layout.join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["schemaVersion"], 2);
    let [manifest] = &index["manifests"].as_array().unwrap()[..] else {
        panic!("not exactly one manifest: {index}")
    };
    manifest.clone()
}

#[test]
fn a_name_that_the_lifecycle_cannot_parse_back_is_refused_with_advice() {
    let debian = Debian::shared();
    let dir = debian.new_dir("layouts");
    let reference = debian.reference("v1").replace("127.0.0.1", "localhost");
    let args = ["sparse", &reference, "--layout-dir", dir.to_str().unwrap()];
    let outcome = debian.room.run(&args);
    assert_eq!(outcome.code(), Some(2), "{outcome}");
    assert!(outcome.stderr.contains("--as"), "{outcome}");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "nothing was written");
}

#[test]
fn a_sparse_layout_has_the_registrys_bytes_and_no_layers() {
    let debian = Debian::shared();
    for tag in ["v1", "docker"] {
        let dir = debian.new_dir("layouts");
        let name = format!("registry.local/a/b:{tag}");
        let reference = debian.reference(tag);
        let to = ["--layout-dir", dir.to_str().unwrap(), "--as", &name];
        let printed = debian.room.layoutfs(&[&["sparse", &reference], &to[..]].concat());
        let digest = debian.manifest_digest(tag);
        assert_eq!(printed, format!("{digest}\n"));
        let layout = dir.join("registry.local/a/b").join(tag);
        let manifest = only_manifest(&layout);
        assert_eq!(manifest["digest"], *digest);
        assert_eq!(manifest["annotations"]["org.opencontainers.image.ref.name"], *tag);
        assert_eq!(manifest["mediaType"], debian.manifest(tag)["mediaType"]);
        let config = described(&debian.manifest(tag)).swap_remove(0);
        let expected = [&digest, &config].map(|digest| hex(digest).to_owned());
        assert_eq!(blobs_in(&layout), BTreeSet::from(expected));
        for digest in [&digest, &config] {
            let bytes = std::fs::read(layout.join("blobs/sha256").join(hex(digest))).unwrap();
            assert_eq!(bytes, debian.registry.blob(digest));
        }
        let marker = std::fs::read(layout.join("oci-layout")).unwrap();
        let marker: Value = serde_json::from_slice(&marker).unwrap();
        assert_eq!(marker["imageLayoutVersion"], "1.0.0");
    }
}

#[test]
fn kaniko_finds_its_base_with_the_empty_layer() {
    let debian = Debian::shared();
    let [dir, kaniko] = ["layouts", "kaniko"].map(|name| debian.new_dir(name));
    let to = ["--to", dir.to_str().unwrap(), "--kaniko", kaniko.to_str().unwrap()];
    debian.room.layoutfs(&[&["sparse", &debian.reference("v1")], &to[..]].concat());
    let digest = debian.manifest_digest("v1");
    let bases = std::fs::read_dir(kaniko.join("cache/base")).unwrap();
    let bases: Vec<_> = bases.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(bases, [&*digest]);
    let base = kaniko.join("cache/base").join(&digest);
    assert_eq!(only_manifest(&base)["digest"], *digest);

    let described = described(&debian.manifest("v1"));
    let config: Value = serde_json::from_slice(&debian.registry.blob(&described[0])).unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    let empty = diff_ids.iter().position(|id| id == EMPTY_DIFF_ID).expect("an empty layer");
    let expected = [&digest, &described[0], &described[empty + 1]];
    assert_eq!(blobs_in(&base), expected.map(|digest| hex(digest).to_owned()).into());
    for digest in expected {
        assert_eq!(digest_of(&base.join("blobs/sha256").join(hex(digest))), *digest);
    }
}

#[test]
fn a_hydrated_layout_is_complete_and_a_flipped_bit_is_named() {
    let debian = Debian::shared();
    let layout = debian.sparse("everyday");
    let path = layout.to_str().unwrap();
    debian.room.layoutfs(&["hydrate", path]);
    let manifest = debian.manifest_digest("everyday");
    let described = described(&debian.manifest("everyday"));
    let expected = described.iter().chain([&manifest]).map(|digest| hex(digest).to_owned());
    assert_eq!(blobs_in(&layout), expected.collect());
    debian.room.layoutfs(&["verify", "--deep", path]);
    let image = format!("oci:{path}:everyday");
    let out = format!("dir:{}", debian.new_dir("hydrated").display());
    tool("skopeo", &["copy", "-q", "--preserve-digests", &image, &out]).success();

    let damaged = described.last().unwrap();
    let blob = layout.join("blobs/sha256").join(hex(damaged));
    let mut bytes = std::fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    let outcome = debian.room.run(&["verify", path]);
    assert_eq!(outcome.code(), Some(7), "{outcome}");
    let said = [&*outcome.stdout, &*outcome.stderr].concat();
    assert!(said.contains(hex(damaged)), "{outcome}");
}
