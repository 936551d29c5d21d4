//! Layers of every writer that we can get, read cold in random order with random sizes: each file is
//! what `umoci unpack` makes of it, no byte is fetched twice, and no lazy layer whole.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use layoutfs::layout::Digest;
use layoutfs::layout::range::{ByteRange, RangeSet};
use serde_json::Value;

use crate::own_tables::{contents, fixture, tar_of};
use crate::soci::{fixtures, pass};
use crate::soci_mounts::{image, put_index};
use crate::support::chance::Chance;
use crate::support::image::{Fill, Image, ImageBuilder};
use crate::support::layer::Compression;
use crate::support::mount::{LIMIT, Room, run};
use crate::support::registry::Registry;

/// One read: some go over the end of a span.
const READ_BYTES_MAX: u64 = 300 << 10;

/// What a gzip member begins with (RFC 1952, section 2.3.1).
const GZIP: &[u8] = &[0x1f, 0x8b];

fn plain_fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

/// Four files in 3.3 MB.
fn tar() -> Vec<u8> {
    tar_of(&plain_fixture("member.tar.gz"))
}

/// What a program makes of its stdin.
fn through(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(input).unwrap();
    let output = Command::new(program).args(args).arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{program}: {output:?}");
    output.stdout
}

/// The layer as skopeo compresses it, with its annotations.
fn by_skopeo(format: &str, tar: &[u8]) -> (Vec<u8>, Value) {
    let dir = tempfile::tempdir().unwrap();
    let [layout, out] = ["layout", "out"].map(|name| dir.path().join(name));
    fs::create_dir(&layout).unwrap();
    let image = ImageBuilder::new().layer_of_tar(tar, Compression::Plain).build();
    image.write_layout(&layout, "v1", Fill::Full);
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "-q", "--format", "oci", "--dest-compress"]);
    skopeo.args(["--dest-compress-format", format]);
    skopeo.arg(format!("oci:{}:v1", layout.display())).arg(format!("dir:{}", out.display()));
    run(&mut skopeo, LIMIT).success();
    let manifest: Value =
        serde_json::from_slice(&fs::read(out.join("manifest.json")).unwrap()).unwrap();
    let layer = &manifest["layers"][0];
    let digest = layer["digest"].as_str().unwrap().trim_start_matches("sha256:");
    (fs::read(out.join(digest)).unwrap(), layer["annotations"].clone())
}

/// An image of one layer; `annotations` are those of its descriptor.
fn image_of(blob: Vec<u8>, compression: Compression, annotations: &Value) -> Image {
    let mut image = ImageBuilder::new().layer_of_blob(&tar_of(&blob), blob, compression);
    for (name, value) in annotations.as_object().into_iter().flatten() {
        image = image.annotate_layer(name, value.as_str().unwrap());
    }
    image.build()
}

/// The layer's files as umoci unpacks them, in `dir`. It does not read zstd: what that holds is
/// given to it under gzip.
fn unpacked_by_umoci(image: &Image, dir: &Path) -> PathBuf {
    let tar = tar_of(&image.layers[0].blob);
    let gzip = image.layers[0].media_type.ends_with("gzip");
    let layout = dir.join("umoci");
    fs::create_dir(&layout).unwrap();
    let again = ImageBuilder::new().layer_of_tar(&tar, Compression::Gzip).build();
    (if gzip { image } else { &again }).write_layout(&layout, "v1", Fill::Full);
    let bundle = dir.join("bundle");
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--image", &format!("{}:v1", layout.display())]).arg(&bundle);
    run(&mut umoci, LIMIT).success();
    bundle.join("rootfs")
}

/// Reads all files below `root`, whose contents are known, in pieces at random.
fn read_at_random(root: &Path, files: &[(PathBuf, Vec<u8>)], chance: &mut Chance) {
    let mut left: Vec<(usize, RangeSet)> = Vec::new();
    for (number, (_, content)) in files.iter().enumerate().filter(|(_, (_, c))| !c.is_empty()) {
        let mut unseen = RangeSet::new();
        unseen.insert(ByteRange::new(0, content.len() as u64));
        left.push((number, unseen));
    }
    while !left.is_empty() {
        let one = chance.below(left.len() as u64) as usize;
        let (number, unseen) = &mut left[one];
        let (path, content) = &files[*number];
        // Somewhere in what was not seen, so that it ends.
        let gap = unseen.ranges()[chance.below(unseen.ranges().len() as u64) as usize];
        let start = gap.start + chance.below(gap.len());
        let size = 1 + chance.below(READ_BYTES_MAX);
        let range = ByteRange::new(start, (start + size).min(content.len() as u64));
        let mut bytes = vec![0; range.len() as usize];
        let file = File::open(root.join(path)).unwrap();
        file.read_exact_at(&mut bytes, start).unwrap();
        let right = &content[range.start as usize..range.end as usize];
        assert!(bytes == right, "{} at {range}, seed {}", path.display(), chance.seed());
        unseen.remove(range);
        if unseen.is_empty() {
            left.swap_remove(one);
        }
    }
}

/// Ranges of a blob that were asked for: bytes, inclusive, as HTTP has them.
pub fn asked(registry: &Registry, digest: &Digest) -> Vec<ByteRange> {
    let requests = registry.blob_requests(digest);
    let range = |text: &str| {
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        Some(ByteRange::new(first.parse().ok()?, last.parse::<u64>().ok()? + 1))
    };
    let ranges = requests.iter().map(|request| range(request.range.as_deref()?));
    ranges.map(|range| range.expect("only ranges are asked for")).collect()
}

/// All bytes that were asked for; none of them twice.
#[track_caller]
pub fn once(asked: &[ByteRange]) -> RangeSet {
    let mut all = RangeSet::new();
    for range in asked {
        assert_eq!(all.missing(*range), [*range], "again, of {asked:?}");
        all.insert(*range);
    }
    all
}

/// How a layer is known when it is read.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// By its own table, on first contact.
    Table,
    /// By the index that a first mount has left.
    Index,
    /// By that, too, but it is one frame: it comes whole.
    IndexOfOneFrame,
}

#[track_caller]
fn assert_read_as_umoci_unpacks(name: &str, image: &Image, by: By) {
    assert_from(&Registry::start(), name, image, by);
}

#[track_caller]
fn assert_from(registry: &Registry, name: &str, image: &Image, by: By) {
    let (mut chance, room) = (Chance::new(), Room::new());
    image.push(registry, "team/app", "v1");
    let layout = room.path().join("layout").display().to_string();
    room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &layout]);
    if by != By::Table {
        room.mount(&layout, &[]).unmount();
        room.layoutfs(&["cache", "prune"]);
    }
    let rootfs = unpacked_by_umoci(image, room.path());
    let files: Vec<_> = contents(&rootfs)
        .into_iter()
        .filter(|(path, _)| fs::symlink_metadata(rootfs.join(path)).unwrap().is_file())
        .collect();
    assert!(files.len() > 3, "{name}: {} files", files.len());
    let mount = room.mount(&layout, &["--require-lazy"]);
    // What it takes to find a table is not counted: of these small blobs that is much.
    registry.clear();
    // One byte first: a long read may need every span of a blob that has two.
    let (path, content) = files.iter().find(|(_, content)| !content.is_empty()).unwrap();
    let mut byte = [0];
    File::open(mount.path().join(path)).unwrap().read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte[0], content[0], "{name}");
    let (digest, size) = (&image.layers[0].digest, image.layers[0].blob.len() as u64);
    let is_whole = asked(registry, digest).iter().any(|range| range.len() >= size);
    assert_eq!(is_whole, by == By::IndexOfOneFrame, "{name}");
    read_at_random(mount.path(), &files, &mut chance);
    let shown: Vec<PathBuf> = contents(mount.path()).into_keys().collect();
    let unpacked: Vec<PathBuf> = contents(&rootfs).into_keys().collect();
    assert_eq!(shown, unpacked, "{name}");
    once(&asked(registry, digest));
}

#[test]
fn gzip_of_docker_pigz_gnu_and_python_reads_as_umoci_unpacks_it() {
    for name in ["go-gzip.tar.gz", "pigz.tar.gz", "member.tar.gz"] {
        let image = image_of(plain_fixture(name), Compression::Gzip, &Value::Null);
        assert_read_as_umoci_unpacks(name, &image, By::Index);
    }
    for level in ["-1", "-6", "-9"] {
        let blob = through("gzip", &["-n", "-c", level], &tar());
        let image = image_of(blob, Compression::Gzip, &Value::Null);
        assert_read_as_umoci_unpacks(&format!("gzip {level}"), &image, By::Index);
    }
}

#[test]
fn what_skopeo_and_podman_compress_reads_as_umoci_unpacks_it() {
    for (format, compression, by) in [
        ("gzip", Compression::Gzip, By::Index),
        ("zstd", Compression::Zstd, By::IndexOfOneFrame),
        ("zstd:chunked", Compression::Zstd, By::Table),
    ] {
        let (blob, annotations) = by_skopeo(format, &tar());
        let image = image_of(blob, compression, &annotations);
        assert_read_as_umoci_unpacks(format, &image, by);
    }
}

#[test]
fn zstd_of_many_frames_and_plain_tars_read_as_umoci_unpacks_them() {
    let tar = tar();
    let frames = tar.chunks(200_000).flat_map(|part| through("zstd", &["-q", "-c"], part));
    let image = image_of(frames.collect(), Compression::Zstd, &Value::Null);
    assert_read_as_umoci_unpacks("frames", &image, By::Index);
    let image = image_of(tar, Compression::Plain, &Value::Null);
    assert_read_as_umoci_unpacks("plain", &image, By::Index);
}

#[test]
fn layers_with_tables_read_as_umoci_unpacks_them_on_first_contact() {
    for (name, compression) in [
        ("estargz.tar.gz", Compression::Gzip),
        ("estargz-inner.tar.gz", Compression::Gzip),
        ("estargz-kept.tar.gz", Compression::Gzip),
        ("zstd-chunked.tar.zst", Compression::Zstd),
        ("zstd-chunked-skopeo.tar.zst", Compression::Zstd),
        ("zstd-chunked-nerdctl.tar.zst", Compression::Zstd),
    ] {
        let (blob, annotations) = fixture(name);
        let image = image_of(blob, compression, &serde_json::to_value(annotations).unwrap());
        assert_read_as_umoci_unpacks(name, &image, By::Table);
    }
}

/// Its own tool's zTOCs of gzip layers. (Those of small plain tars are one span.)
#[test]
fn layers_with_a_soci_index_read_as_umoci_unpacks_them_on_first_contact() {
    for (path, ztoc, blob) in fixtures().into_iter().filter(|(_, _, b)| b.starts_with(GZIP)) {
        let registry = Registry::start();
        let index = put_index(&registry, None, Digest::sha256_of(&blob), &ztoc);
        let image = image(&pass(&blob).1, &blob, Some(&index.to_string()));
        assert_from(&registry, &path.display().to_string(), &image, By::Table);
    }
}
