//! Images whose layers bring a table of contents: mounted by it, and shown as without it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layoutfs::layout::Digest;
use layoutfs::layout::codec::{Decoded, Decoder};
use layoutfs::layout::error::Error;
use serde_json::Value;

use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, Member};
use crate::support::mount::{Mount, Room};
use crate::support::registry::Registry;
use crate::traces::until_prefetched;

/// Fixtures, their compression, and how they are said to be read.
const LAYERS: [(&str, Compression, &str); 6] = [
    ("estargz.tar.gz", Compression::Gzip, "lazy, by eStargz"),
    ("estargz-inner.tar.gz", Compression::Gzip, "lazy, by eStargz"),
    ("estargz-kept.tar.gz", Compression::Gzip, "lazy, by eStargz"),
    ("zstd-chunked.tar.zst", Compression::Zstd, "lazy, by zstd:chunked"),
    ("zstd-chunked-skopeo.tar.zst", Compression::Zstd, "lazy, by zstd:chunked"),
    ("zstd-chunked-nerdctl.tar.zst", Compression::Zstd, "lazy, by zstd:chunked"),
];

const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
const CHUNKED_CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
const CHUNKED_POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";

type Annotations = BTreeMap<String, String>;

pub fn fixture(name: &str) -> (Vec<u8>, BTreeMap<String, String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let annotations = std::fs::read(format!("{}.annotations", path.display())).expect("beside it");
    (std::fs::read(path).expect("there"), serde_json::from_slice(&annotations).expect("JSON"))
}

pub fn tar_of(blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut sink = |decoded: Decoded<'_>| {
        if let Decoded::Bytes(bytes) = decoded {
            tar.extend_from_slice(bytes);
        }
        Ok::<(), Error>(())
    };
    Decoder::new().push(blob, &mut sink).expect("it decodes");
    tar
}

fn image_of(name: &str, compression: Compression, annotations: &Annotations) -> Image {
    image_of_blob(fixture(name).0, compression, annotations)
}

fn image_of_blob(blob: Vec<u8>, compression: Compression, annotations: &Annotations) -> Image {
    let mut image = ImageBuilder::new().layer_of_blob(&tar_of(&blob), blob, compression);
    for (name, value) in annotations {
        image = image.annotate_layer(name, value);
    }
    image.build()
}

/// A registry with the image as `team/app:TAG`, and a sparse layout of it in a room of its own.
pub fn sparse(registry: &Registry, image: &Image, tag: &str) -> (Arc<Room>, String) {
    image.push(registry, "team/app", tag);
    let room = Room::new();
    let layout = room.path().join("layout").display().to_string();
    room.layoutfs(&["sparse", &registry.reference("team/app", tag), "--to", &layout]);
    (room, layout)
}

/// Every regular file's content by its path, and where links lead.
pub fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a directory").map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().expect("a type"));
            let name = path.strip_prefix(root).expect("below").to_owned();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_symlink() {
                let target = std::fs::read_link(&path).expect("a link");
                found.insert(name, target.into_os_string().into_encoded_bytes());
            } else if kind.is_file() {
                found.insert(name, std::fs::read(&path).expect("it is read"));
            } else {
                found.insert(name, Vec::new());
            }
        }
    }
    found
}

#[test]
fn a_layer_is_read_by_its_own_table_and_shows_what_a_pass_shows() {
    for (name, compression, how) in LAYERS {
        let registry = Registry::start();
        let (_, annotations) = fixture(name);
        let with = image_of(name, compression, &annotations);
        let (room, layout) = sparse(&registry, &with, "with");
        let lazy = room.mount(&layout, &["--require-lazy"]);
        assert!(lazy.said().contains(how), "{name}: {}", lazy.said());
        let without = image_of(name, compression, &BTreeMap::new());
        let (room, layout) = sparse(&registry, &without, "without");
        let pass = room.mount(&layout, &[]);
        assert!(pass.said().contains("needs one pass"), "{name}: {}", pass.said());
        let (by_table, by_pass) = (contents(lazy.path()), contents(pass.path()));
        assert!(by_pass.len() > 3, "{name}");
        assert_eq!(
            by_table.keys().collect::<Vec<_>>(),
            by_pass.keys().collect::<Vec<_>>(),
            "{name}"
        );
        for (path, content) in by_pass {
            assert!(by_table[&path] == content, "{name}: {}", path.display());
        }
    }
}

#[test]
fn what_a_table_told_is_known_to_the_next_mount() {
    let registry = Registry::start();
    let (name, compression, how) = LAYERS[0];
    let (_, annotations) = fixture(name);
    let image = image_of(name, compression, &annotations);
    let (room, layout) = sparse(&registry, &image, "v1");
    contents(room.mount(&layout, &[]).path());
    registry.clear();
    let again = room.mount(&layout, &[]);
    assert!(again.said().contains(how), "{}", again.said());
    contents(again.path());
    assert_eq!(registry.blob_requests(&image.layers[0].digest).len(), 0);
}

#[test]
fn what_a_use_needs_of_such_layers_is_recorded_and_prefetched_on_first_contact() {
    for (name, compression, _) in LAYERS {
        let registry = Registry::start();
        let (_, annotations) = fixture(name);
        let image = image_of(name, compression, &annotations);
        let (room, layout) = sparse(&registry, &image, "v1");
        let trace = room.path().join("use.trace").display().to_string();
        let recorded = room.mount(&layout, &["--record", &trace]);
        let content = contents(recorded.path());
        recorded.unmount();
        for prefetched in [trace.as_str(), "all"] {
            let (room, layout) = sparse(&registry, &image, "v1");
            let mount = room.mount(&layout, &["--prefetch", prefetched]);
            let prefetch = until_prefetched(&mount);
            assert_eq!(prefetch["errors"], 0, "{name}: {prefetch}");
            registry.clear();
            assert!(contents(mount.path()) == content, "{name}");
            let asked = registry.requests();
            assert_eq!(asked.len(), 0, "{name}, {prefetched}: {asked:?}");
        }
    }
}

/// A mount that was made in spite of a table of no use.
fn mounted_without(image: &Image) -> (Mount, Registry) {
    let registry = Registry::start();
    let (room, layout) = sparse(&registry, image, "v1");
    let refused = room.try_mount(&layout, &["--require-lazy"]).err().expect("it is no use");
    assert_eq!(refused.code(), Some(2), "{refused}");
    (room.mount(&layout, &[]), registry)
}

/// It is told why the table is not used, a pass is made, and what the layer holds is shown.
#[track_caller]
fn assert_told_and_passed(image: &Image, why: &str) {
    let (mount, _registry) = mounted_without(image);
    let said = mount.said();
    let digest = image.layers[0].digest.to_string();
    assert!(said.contains("its table of contents is not used"), "{said}");
    assert!(said.contains(why) && said.contains(&digest[7..19]), "expected {why:?}: {said}");
    assert!(said.contains("needs one pass"), "{said}");
    let shown = contents(mount.path());
    assert!(shown.len() > 3 && !shown.contains_key(Path::new("escaped")), "{:?}", shown.keys());
}

#[test]
fn a_table_that_is_not_what_the_manifest_names_is_told_and_a_pass_made() {
    for ((name, compression, _), key) in [(LAYERS[0], TOC_DIGEST), (LAYERS[3], CHUNKED_CHECKSUM)] {
        let (_, mut annotations) = fixture(name);
        let wrong = format!("sha256:{}", "5".repeat(64));
        annotations.insert(key.to_owned(), wrong.clone());
        assert_told_and_passed(&image_of(name, compression, &annotations), &wrong);
    }
}

type Lie = fn(&mut Value);

/// What a producer may say that nobody else changed: the digest that the manifest names is right.
const LIES: [(Lie, &str); 5] = [
    (|table| file(table)["name"] = "../escaped".into(), "leaves the root"),
    (|table| file(table)["size"] = (1u64 << 40).into(), "not decoded for one read"),
    (|table| file(table)["offset"] = (1u64 << 50).into(), "1125899906842624"),
    (|table| file(table)["digest"] = "sha256:00".into(), "invalid digest"),
    (|table| table["version"] = 9.into(), "version"),
];

/// A file with content.
fn file(table: &mut Value) -> &mut Value {
    let entries = table["entries"].as_array_mut().expect("members");
    let is_file = |entry: &&mut Value| entry["type"] == "reg" && entry["size"].as_u64() > Some(0);
    entries.iter_mut().find(is_file).expect("a file")
}

fn told_by(json: &[u8], lie: Lie) -> Vec<u8> {
    let mut table = serde_json::from_slice(json).expect("JSON");
    lie(&mut table);
    table.to_string().into_bytes()
}

/// The layer with another table in the place of its own, before the footer, which stays.
fn lying_estargz(lie: Lie) -> (Vec<u8>, Annotations) {
    let (blob, mut annotations) = fixture(LAYERS[0].0);
    let (rest, footer) = blob.split_at(blob.len() - 51);
    let hex = std::str::from_utf8(&footer[16..32]).expect("digits");
    let at = usize::from_str_radix(hex, 16).expect("where the table is");
    let tar = tar_of(&rest[at..]);
    let end = tar.iter().rposition(|byte| *byte == b'}').expect("a document");
    let json = told_by(&tar[512..=end], lie);
    annotations.insert(TOC_DIGEST.to_owned(), Digest::sha256_of(&json).to_string());
    let member = Member { mtime: 0, ..Member::file("stargz.index.json", 0, json) };
    let table = LayerBuilder::new().member(member).tar();
    let stored = Compression::Gzip.compress(&table);
    ([&rest[..at], &stored, footer].concat(), annotations)
}

/// The layer with another table behind it, in a skippable frame.
fn lying_chunked(lie: Lie) -> (Vec<u8>, Annotations) {
    let (blob, mut annotations) = fixture(LAYERS[3].0);
    let numbers: Vec<usize> =
        annotations[CHUNKED_POSITION].split(':').map(|n| n.parse().expect("a number")).collect();
    let json = told_by(&tar_of(&blob[numbers[0]..numbers[0] + numbers[1]]), lie);
    let stored = Compression::Zstd.compress(&json);
    let size = u32::try_from(stored.len()).expect("small").to_le_bytes();
    let position = format!("{}:{}:{}:1", blob.len() + 8, stored.len(), json.len());
    annotations.insert(CHUNKED_POSITION.to_owned(), position);
    annotations.insert(CHUNKED_CHECKSUM.to_owned(), Digest::sha256_of(&stored).to_string());
    ([&blob[..], b"\x50\x2a\x4d\x18", &size, &stored].concat(), annotations)
}

#[test]
fn a_table_that_lies_is_told_and_a_pass_made() {
    for (lie, why) in LIES {
        let (blob, annotations) = lying_estargz(lie);
        assert_told_and_passed(&image_of_blob(blob, Compression::Gzip, &annotations), why);
        let (blob, annotations) = lying_chunked(lie);
        assert_told_and_passed(&image_of_blob(blob, Compression::Zstd, &annotations), why);
    }
}
