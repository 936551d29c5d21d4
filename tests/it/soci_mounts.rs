//! Images with a SOCI index: mounted by it on first contact, or as without it, and told which.

use std::fs;
use std::sync::Arc;

use layoutfs::layout::index::{Proof, Segments, saved};
use layoutfs::layout::oci::referrer::{EMPTY, IndexArtifact, LayerIndexBlob};
use layoutfs::layout::oci::{Descriptor, OCI_MANIFEST};
use layoutfs::layout::soci::Writer;
use layoutfs::layout::soci::manifest::{CONFIG, INDEX_DIGEST, SociIndex, Version, ZtocRef};
use layoutfs::layout::{Blob, Digest};
use serde_json::Value;

use crate::own_tables::{contents, sparse};
use crate::soci::{fixtures, pass, tar_of};
use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::Compression;
use crate::support::mount::{Mount, Room};
use crate::support::registry::Registry;

const REPOSITORY: &str = "team/app";
const FILES: usize = 16;
const FILE_BYTES: usize = 1 << 20;

fn blob_of(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::sha256_of(bytes), size: bytes.len() as u64 }
}

/// A layer of files that are hard to compress: more than one span of SOCI's.
fn big_layer() -> (Vec<u8>, Vec<u8>) {
    let tar = tar_of(FILES, FILE_BYTES);
    let blob = Compression::Gzip.compress(&tar);
    (tar, blob)
}

/// The zTOC of a layer, with digests of spans as if its blob were `passed`.
fn ztoc_of(blob: &[u8], passed: &[u8]) -> Vec<u8> {
    let (index, tar) = pass(blob);
    let mut writer = Writer::new(&index, blob.len() as u64).unwrap();
    writer.push_blob(passed).unwrap();
    writer.push_tar(&tar).unwrap();
    writer.finish("layoutfs tests").unwrap()
}

/// Puts a SOCI index with a zTOC of `layer` into the registry; gives its digest.
pub fn put_index(registry: &Registry, subject: Option<Blob>, layer: Digest, ztoc: &[u8]) -> Digest {
    registry.put_blob(REPOSITORY, ztoc.to_vec());
    put_claim(registry, subject, layer, blob_of(ztoc))
}

fn put_claim(registry: &Registry, subject: Option<Blob>, layer: Digest, ztoc: Blob) -> Digest {
    registry.put_blob(REPOSITORY, CONFIG);
    let ztocs = vec![ZtocRef { ztoc, layer, layer_media_type: None, span_bytes: None }];
    let version = if subject.is_some() { Version::V1 } else { Version::V2 };
    let subject = subject.map(|subject| Descriptor::new(OCI_MANIFEST, subject));
    let index = SociIndex { version, subject, ztocs };
    registry.put_manifest(REPOSITORY, OCI_MANIFEST, index.to_json("layoutfs tests"))
}

fn compression_of(blob: &[u8]) -> Compression {
    if blob.starts_with(&[0x1f, 0x8b]) { Compression::Gzip } else { Compression::Plain }
}

/// An image of one layer, whose manifest names `index`.
pub fn image(tar: &[u8], blob: &[u8], index: Option<&str>) -> Image {
    let image = ImageBuilder::new().layer_of_blob(tar, blob.to_vec(), compression_of(blob));
    index.into_iter().fold(image, |image, index| image.annotate(INDEX_DIGEST, index)).build()
}

/// A registry with the big layer in an image that names an index with this zTOC; a sparse layout.
fn setting(ztoc: &[u8]) -> (Registry, Image, Arc<Room>, String) {
    let registry = Registry::start();
    let (tar, blob) = big_layer();
    let index = put_index(&registry, None, Digest::sha256_of(&blob), ztoc);
    let image = image(&tar, &blob, Some(&index.to_string()));
    let (room, layout) = sparse(&registry, &image, "v1");
    registry.clear();
    (registry, image, room, layout)
}

fn good_ztoc() -> Vec<u8> {
    let (_, blob) = big_layer();
    ztoc_of(&blob, &blob)
}

/// The `number`th file of the big layer, as it is.
fn file(number: usize) -> Vec<u8> {
    let tar = tar_of(FILES, FILE_BYTES);
    let at = number * (512 + FILE_BYTES) + 512;
    tar[at..at + FILE_BYTES].to_vec()
}

fn read(mount: &Mount, number: usize) -> std::io::Result<Vec<u8>> {
    fs::read(mount.path().join(format!("files/{number}")))
}

/// What `status` and `inspect` say of the first layer.
fn told(mount: &Mount, layout: &str) -> (String, String) {
    let first = |json: String, field: &str| -> String {
        let json: Value = serde_json::from_str(&json).unwrap();
        json["layers"][0][field].as_str().unwrap_or_default().to_owned()
    };
    let path = mount.path().display().to_string();
    let status = first(mount.room().layoutfs(&["status", "--json", &path]), "how");
    (status, first(mount.room().layoutfs(&["inspect", "--json", layout]), "how"))
}

#[test]
fn a_layer_is_read_by_the_ztoc_that_its_manifest_leads_to() {
    let mut read = 0;
    for (path, ztoc, blob) in fixtures() {
        let (_, tar) = pass(&blob);
        let registry = Registry::start();
        let index = put_index(&registry, None, Digest::sha256_of(&blob), &ztoc);
        let with = image(&tar, &blob, Some(&index.to_string()));
        let (room, layout) = sparse(&registry, &with, "with");
        if path.to_str().unwrap().contains("sparse") {
            let pass = room.mount(&layout, &[]);
            assert!(pass.said().contains("its SOCI zTOC is not used"), "{}", pass.said());
            assert!(pass.said().contains("needs one pass"), "{}", pass.said());
            continue;
        }
        let lazy = room.mount(&layout, &["--require-lazy"]);
        assert!(lazy.said().contains("lazy, by SOCI"), "{}: {}", path.display(), lazy.said());
        let told = told(&lazy, &layout);
        assert_eq!(told, ("lazy, by SOCI".to_owned(), "soci".to_owned()));
        let (room, layout) = sparse(&registry, &image(&tar, &blob, None), "without");
        let pass = room.mount(&layout, &[]);
        assert!(pass.said().contains("needs one pass"), "{}", pass.said());
        assert_eq!(contents(lazy.path()), contents(pass.path()), "{}", path.display());
        read += 1;
    }
    assert_eq!(read, 10);
}

#[test]
fn only_spans_that_are_read_are_fetched_and_the_index_once() {
    let (registry, image, room, layout) = setting(&good_ztoc());
    let layer = &image.layers[0];
    let mount = room.mount(&layout, &["--require-lazy"]);
    assert_eq!(registry.bytes_sent(&layer.digest), 0);
    // The index, and the zTOC.
    assert_eq!(registry.requests().len(), 2, "{:?}", registry.requests());
    assert_eq!(read(&mount, 9).unwrap(), file(9));
    let (sent, size) = (registry.bytes_sent(&layer.digest), layer.blob.len() as u64);
    assert!(sent > 0 && sent * 100 < size * 65, "{sent} of {size}");
    mount.unmount();
    registry.clear();
    let mount = room.mount(&layout, &["--require-lazy"]);
    assert_eq!(read(&mount, 9).unwrap(), file(9));
    assert_eq!(registry.requests().len(), 0, "{:?}", registry.requests());
    for number in 0..FILES {
        assert_eq!(read(&mount, number).unwrap(), file(number));
    }
    let again = registry.bytes_sent(&layer.digest) + sent;
    assert!((size - 20..size + 100).contains(&again), "{again} of {size}: each byte once");
}

#[test]
fn a_ztoc_is_not_asked_for_where_it_is_of_no_use() {
    let (registry, _, room, layout) = setting(&good_ztoc());
    for options in [&["--view", "layout"][..], &["--index", "off"]] {
        room.mount(&layout, options).unmount();
        let asks = |path: &str| path.contains("/manifests/");
        let asked = registry.requests().iter().filter(|r| asks(&r.path)).count();
        assert_eq!(asked, 0, "{options:?}: {:?}", registry.requests());
    }
    room.layoutfs(&["cache", "prune", "--indexes"]);
    room.layoutfs(&["hydrate", &layout]);
    registry.clear();
    let mount = room.mount(&layout, &[]);
    assert!(mount.said().contains("local; needs one pass"), "{}", mount.said());
    assert_eq!(registry.requests().len(), 0, "what is here needs none");
    assert_eq!(read(&mount, 3).unwrap(), file(3));
}

#[test]
fn an_index_of_version_1_is_used_by_those_who_name_it() {
    let registry = Registry::start();
    let (tar, blob) = big_layer();
    let image = image(&tar, &blob, None);
    let layer = image.layers[0].digest;
    let subject = Blob { digest: image.digest, size: image.manifest.len() as u64 };
    let index = put_index(&registry, Some(subject), layer, &good_ztoc()).to_string();
    let (room, layout) = sparse(&registry, &image, "v1");
    let refused = room.try_mount(&layout, &["--require-lazy"]).err().expect("refused");
    assert_eq!(refused.code(), Some(2), "{refused}");
    assert!(refused.stderr.contains(&format!("--index {index} ")), "{refused}");
    let named = format!("{}/{REPOSITORY}@{index}", registry.host());
    for option in [&index, &named] {
        let (room, layout) = sparse(&registry, &image, "v1");
        registry.clear();
        let mount = room.mount(&layout, &["--index", option, "--require-lazy"]);
        assert!(mount.said().contains("lazy, by SOCI"), "{}", mount.said());
        assert_eq!(registry.bytes_sent(&layer), 0);
        assert_eq!(read(&mount, 12).unwrap(), file(12));
    }
    let other = Blob { digest: Digest::sha256_of(b"other"), size: 5 };
    let of_other = put_index(&registry, Some(other), layer, &good_ztoc()).to_string();
    let refused = room.try_mount(&layout, &["--index", &of_other]).err().expect("refused");
    assert_eq!(refused.code(), Some(3), "{refused}");
    let images = [other.digest.to_string(), image.digest.to_string()];
    assert!(images.iter().all(|image| refused.stderr.contains(image)), "{refused}");
}

#[test]
fn an_index_that_cannot_be_used_is_told_and_a_pass_made() {
    let (tar, blob) = big_layer();
    let (layer, ztoc) = (Digest::sha256_of(&blob), good_ztoc());
    let other = Compression::Gzip.compress(&tar_of(2, 5000));
    let of_other = ztoc_of(&other, &other);
    let subject = Blob { digest: Digest::sha256_of(b"any"), size: 3 };
    let cut = &ztoc[..ztoc.len() - 40_000];
    type Put<'a> = Box<dyn Fn(&Registry) -> String + 'a>;
    let put = |ztoc: &[u8]| -> Put<'_> {
        let ztoc = ztoc.to_vec();
        Box::new(move |registry| put_index(registry, None, layer, &ztoc).to_string())
    };
    let claim = |size| -> Put<'_> {
        let ztoc = Blob { digest: Digest::sha256_of(b"nowhere"), size };
        Box::new(move |registry| put_claim(registry, None, layer, ztoc).to_string())
    };
    let cases: [(Put<'_>, &str); 8] = [
        (put(&of_other), "it is of a layer of"),
        (put(cut), "is not used"),
        (put(b"nothing"), "is not used"),
        (claim(100), "index of layer"),
        (claim(1 << 40), "expected at most"),
        (Box::new(|_| Digest::sha256_of(b"nowhere").to_string()), "there is no such artifact"),
        (Box::new(|_| "latest".to_owned()), "invalid digest"),
        (
            Box::new(|registry| put_index(registry, Some(subject), layer, &ztoc).to_string()),
            "not used",
        ),
    ];
    for (put, why) in cases {
        let registry = Registry::start();
        let image = image(&tar, &blob, Some(&put(&registry)));
        let (room, layout) = sparse(&registry, &image, "v1");
        let refused = room.try_mount(&layout, &["--require-lazy"]).err().expect(why);
        assert_eq!(refused.code(), Some(2), "{why}: {refused}");
        let mount = room.mount(&layout, &[]);
        assert!(mount.said().contains(why), "{why}: {}", mount.said());
        assert!(mount.said().contains("needs one pass"), "{why}: {}", mount.said());
        assert_eq!(read(&mount, 9).unwrap(), file(9), "{why}");
    }
}

#[test]
fn bytes_that_do_not_fit_a_ztoc_are_shown_to_nobody_and_the_index_is_named() {
    let (_, blob) = big_layer();
    let mut passed = blob.clone();
    let last = passed.len() - 100;
    passed[last] ^= 1;
    let (registry, _, room, layout) = setting(&ztoc_of(&blob, &passed));
    let mount = room.mount(&layout, &["--require-lazy"]);
    assert_eq!(read(&mount, 0).unwrap(), file(0), "in another span");
    let error = read(&mount, FILES - 1).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    let index = registry.requests().iter().find_map(|request| {
        request.path.split_once("/manifests/").map(|(_, digest)| digest.to_owned())
    });
    let index = index.unwrap();
    assert!(mount.log().contains(&format!("of artifact {index}: --index off")), "{}", mount.log());
    mount.unmount();
    let without = room.mount(&layout, &["--index", "off"]);
    assert!(without.said().contains("needs one pass"), "{}", without.said());
    assert_eq!(read(&without, FILES - 1).unwrap(), file(FILES - 1));
    without.unmount();
    // That pass has proved what it found: from now on it counts.
    let own = room.mount(&layout, &[]);
    assert_eq!(read(&own, FILES - 1).unwrap(), file(FILES - 1));
    assert_eq!(told(&own, &layout).1, "local");
}

#[test]
fn our_own_index_takes_over_where_a_pass_was_made() {
    let (registry, image, room, layout) = setting(&good_ztoc());
    room.mount(&layout, &[]).unmount();
    room.layoutfs(&["index", "build", &layout]);
    room.layoutfs(&["cache", "prune"]);
    registry.clear();
    let mount = room.mount(&layout, &[]);
    assert!(mount.said().contains("lazy, by own index"), "{}", mount.said());
    assert_eq!(read(&mount, 9).unwrap(), file(9));
    assert!(registry.bytes_sent(&image.layers[0].digest) * 3 < image.layer_bytes());
}

#[test]
fn an_index_of_ours_that_somebody_named_is_told_and_named_when_bytes_do_not_fit() {
    let registry = Registry::start();
    let (tar, blob) = big_layer();
    let image = image(&tar, &blob, None);
    let (room, layout) = sparse(&registry, &image, "v1");
    let (mut index, _) = pass(&blob);
    index.spans[0].proof = Proof::Stored(Segments::One([7; 32]));
    let bytes = saved::encode(&index).unwrap();
    registry.put_blob(REPOSITORY, bytes.clone());
    registry.put_blob(REPOSITORY, EMPTY);
    let layers = vec![LayerIndexBlob { layer: image.layers[0].digest, index: blob_of(&bytes) }];
    let subject = Descriptor::new(OCI_MANIFEST, blob_of(&image.manifest));
    let artifact = IndexArtifact { subject, layers }.to_bytes().unwrap();
    let artifact = registry.put_manifest(REPOSITORY, OCI_MANIFEST, artifact).to_string();
    let mount = room.mount(&layout, &["--index", &artifact, "--require-lazy"]);
    assert!(mount.said().contains("lazy, by shared index"), "{}", mount.said());
    let shared = ("lazy, by shared index".to_owned(), "shared-index".to_owned());
    assert_eq!(told(&mount, &layout), shared);
    assert_eq!(read(&mount, 9).unwrap(), file(9), "in another span");
    assert_eq!(read(&mount, 0).unwrap_err().raw_os_error(), Some(5));
    let (log, layer) = (mount.log(), image.layers[0].digest.to_string());
    let wrong = format!("sha256:{}", "07".repeat(32));
    for named in [&layer, &wrong, &format!("of artifact {artifact}: --index off")] {
        assert!(log.contains(named), "{named}: {log}");
    }
    mount.unmount();
    let without = room.mount(&layout, &["--index", "off"]);
    assert_eq!(read(&without, 0).unwrap(), file(0));
}
