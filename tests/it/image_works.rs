//! The test support's images: read back by readers that we did not write.

use std::io::Read;

use serde_json::{Value, json};

use crate::support::image::{Fill, ImageBuilder, ImageIndex, Names};
use crate::support::layer::{Compression, Dialect, LayerBuilder, Member, generated};
use crate::support::registry::Registry;

/// What the `tar` crate reads: one line a member.
fn read_back(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let members = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let records = entry.pax_extensions().unwrap().into_iter().flatten().map(|record| {
            let record = record.unwrap();
            let value = String::from_utf8_lossy(record.value_bytes());
            format!(" {}={value}", record.key().unwrap())
        });
        let records: String = records.filter(|r| !r.contains("path=")).collect();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let header = entry.header().clone();
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry.link_name_bytes().map(|l| String::from_utf8_lossy(&l).into_owned());
        format!(
            "{} {path} {:o} {}:{} {}{}{records}",
            char::from(header.entry_type().as_byte()),
            header.mode().unwrap(),
            header.uid().unwrap(),
            header.gid().unwrap(),
            content.len(),
            link.map(|l| format!(" -> {l}")).unwrap_or_default(),
        )
    });
    members.collect()
}

#[test]
fn a_layer_written_as_text_is_read_as_written() {
    let layer = LayerBuilder::text(
        "dir   etc 01777 5:6
         file  etc/hosts 0600 @1.5 +user.a=b = 127.0.0.1 localhost\\n
         file  lib/big *70000
         symlink  bin -> usr/bin
         hardlink etc/h -> etc/hosts
         char  dev/null 0666 1,3
         whiteout etc/gone
         opaque   var/cache",
    );
    let expected = [
        "5 etc 1777 5:6 0",
        "0 etc/hosts 600 0:0 20 SCHILY.xattr.user.a=b mtime=1.500000000",
        "0 lib/big 644 0:0 70000",
        "2 bin 777 0:0 0 -> usr/bin",
        "1 etc/h 777 0:0 0 -> etc/hosts",
        "3 dev/null 666 0:0 0",
        "0 etc/.wh.gone 0 0:0 0",
        "0 var/cache/.wh..wh..opq 0 0:0 0",
    ];
    assert_eq!(read_back(&layer.tar()), expected);
}

#[test]
fn long_names_and_large_numbers_survive_in_both_dialects() {
    let (path, target) = (format!("d/{}", "n".repeat(200)), "t".repeat(300));
    let member = || Member { uid: 3_000_000, gid: 7, ..Member::link(b'2', &path, &target) };
    for (dialect, records) in [(Dialect::Pax, " uid=3000000"), (Dialect::Gnu, "")] {
        let tar = LayerBuilder::new().dialect(dialect).member(member()).tar();
        let expected = format!("2 {path} 777 3000000:7 0 -> {target}{records}");
        assert_eq!(read_back(&tar), [expected], "{dialect:?}");
    }
    let before_1970 = Member { mtime: -2, mtime_ns: 750_000_000, ..Member::file("f", 0o644, "") };
    let tar = LayerBuilder::new().member(before_1970).tar();
    assert_eq!(read_back(&tar), ["0 f 644 0:0 0 mtime=-1.250000000"]);
}

#[test]
fn every_compression_gives_the_tar_back() {
    let tar = LayerBuilder::new().file("f", 0o644, generated("f", 300_000)).tar();
    let gzip = |blob: &[u8]| {
        let mut out = Vec::new();
        flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut out).unwrap();
        out
    };
    let zstd = |blob: &[u8]| zstd::decode_all(blob).unwrap();
    let blob = |c: Compression| c.compress(&tar);
    assert_eq!(blob(Compression::Plain), tar);
    assert_eq!(gzip(&blob(Compression::Gzip)), tar);
    assert_eq!(gzip(&blob(Compression::GzipMembers(65_536))), tar);
    assert_eq!(zstd(&blob(Compression::Zstd)), tar);
    assert_eq!(zstd(&blob(Compression::ZstdFrames(65_536))), tar);
    let magic = |blob: Vec<u8>, magic: &[u8]| {
        blob.windows(magic.len()).filter(|window| *window == magic).count()
    };
    let members = blob(Compression::GzipMembers(65_536));
    assert_eq!(magic(members, b"\x1f\x8b\x08\0\0\0\0\0"), tar.len().div_ceil(65_536));
    let frames = blob(Compression::ZstdFrames(65_536));
    assert_eq!(magic(frames, b"\x28\xb5\x2f\xfd"), tar.len().div_ceil(65_536));
}

fn sample() -> ImageBuilder {
    ImageBuilder::new()
        .layer(LayerBuilder::text("file a = 1"), Compression::Gzip)
        .empty_step("ENV A=1")
        .layer(LayerBuilder::text("file b *9000"), Compression::Zstd)
        .setting("Env", json!(["A=1"]))
}

#[test]
fn an_image_is_the_same_each_time_and_its_parts_fit_together() {
    let image = sample().build();
    assert_eq!(image.digest, sample().build().digest);
    let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    let config: Value = serde_json::from_slice(&image.config).unwrap();
    let types: Vec<_> = manifest["layers"].as_array().unwrap().iter().collect();
    assert_eq!(types[0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    assert_eq!(types[1]["mediaType"], "application/vnd.oci.image.layer.v1.tar+zstd");
    assert_eq!(manifest["config"]["digest"], image.config_digest.to_string());
    let diff_ids = &config["rootfs"]["diff_ids"];
    assert_eq!(diff_ids[1], image.layers[1].diff_id.to_string());
    let history = config["history"].as_array().unwrap();
    let layers = history.iter().filter(|step| step.get("empty_layer").is_none()).count();
    assert_eq!((layers, history.len()), (2, 3));
    let docker = sample().names(Names::Docker).build();
    let manifest: Value = serde_json::from_slice(&docker.manifest).unwrap();
    let media_type = &manifest["layers"][0]["mediaType"];
    assert_eq!(media_type, "application/vnd.docker.image.rootfs.diff.tar.gzip");
}

#[test]
fn a_layout_holds_the_layers_it_is_told_to_hold() {
    let dir = tempfile::tempdir().unwrap();
    let image = sample().build();
    let blobs =
        |dir: &std::path::Path| std::fs::read_dir(dir.join("blobs/sha256")).unwrap().count();
    for (name, fill, count) in
        [("full", Fill::Full, 4), ("sparse", Fill::Sparse, 2), ("part", Fill::Layers(&[1]), 3)]
    {
        let dir = dir.path().join(name);
        image.write_layout(&dir, "v1", fill);
        assert_eq!(blobs(&dir), count, "{name}");
        let index: Value =
            serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["digest"], image.digest.to_string());
        let annotations = &index["manifests"][0]["annotations"];
        assert_eq!(annotations["org.opencontainers.image.ref.name"], "v1");
    }
}

#[test]
fn a_pushed_index_leads_to_each_platform() {
    let registry = Registry::start();
    let arm = sample().platform("linux", "arm64", Some("v8")).build();
    let index = ImageIndex::new(vec![sample().build(), arm.clone()]);
    let digest = index.push(&registry, "a/b", "latest");
    let (found, document) = registry.manifest("a/b", "latest").unwrap();
    assert_eq!((found, &document.bytes), (digest, &index.document));
    let document: Value = serde_json::from_slice(&document.bytes).unwrap();
    let second = &document["manifests"][1];
    assert_eq!(second["platform"]["variant"], "v8");
    assert_eq!(second["digest"], arm.digest.to_string());
    assert!(registry.manifest("a/b", &arm.digest.to_string()).is_some());
    assert!(registry.blob(&arm.layers[1].digest).is_some());
}
