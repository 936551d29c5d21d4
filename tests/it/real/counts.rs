//! What programs cost on a Debian with python3, gcc and clang whose indexes are known and whose bytes
//! are not here: counted by the registry, byte by byte.
//!
//! The image is the fixture's large one, in layers of gzip.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use layoutfs::layout::Digest;
use serde_json::Value;

use super::debian::{Debian, TOOL_LIMIT, described};
use crate::support::mount::{Mount, Room, run};
use crate::support::registry::Registry;
use crate::writers::{asked, once};

const REPOSITORY: &str = "debian/run";
const TAG: &str = "large";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The least that the files of the image are together: counts on a small one would say little.
const UNPACKED_BYTES_MIN: u64 = 500_000_000;

/// The image in a registry that remembers ranges, and a machine that has indexed it.
struct Indexed {
    registry: Registry,
    layers: Vec<Digest>,
    room: Arc<Room>,
    layout: String,
}

impl Indexed {
    fn new() -> Self {
        let (debian, registry, room) = (Debian::shared(), Registry::start(), Room::new());
        let digests: Vec<String> = described(&debian.manifest(TAG));
        for digest in &digests {
            let bytes = debian.registry.blob(digest);
            registry.put_blob_as(REPOSITORY, digest.parse().unwrap(), bytes);
        }
        let manifest = debian.registry.blob(&debian.manifest_digest(TAG));
        let digest = registry.put_manifest(REPOSITORY, MANIFEST, manifest);
        registry.tag(REPOSITORY, TAG, digest);
        let layout = room.path().join("layout").display().to_string();
        room.layoutfs(&["sparse", &registry.reference(REPOSITORY, TAG), "--to", &layout]);
        let mount = room.mount(&layout, &[]);
        let unpacked = unpacked_bytes(mount.path());
        assert!(unpacked >= UNPACKED_BYTES_MIN, "the image is too small: {unpacked} bytes");
        mount.unmount();
        let layers = digests[1..].iter().map(|digest| digest.parse().unwrap()).collect();
        Indexed { registry, layers, room, layout }
    }

    /// A mount without any byte of a layer in the cache.
    fn mount_cold(&self) -> Mount {
        self.room.layoutfs(&["cache", "prune"]);
        self.registry.clear();
        self.room.mount(&self.layout, &["--require-lazy"])
    }

    /// Bytes of layers that were fetched; none of them twice.
    fn fetched(&self) -> u64 {
        self.layers.iter().map(|digest| once(&asked(&self.registry, digest)).len()).sum()
    }
}

/// Bytes of the spans that hold what was read.
fn needed(mount: &Mount) -> u64 {
    let path = mount.path().display().to_string();
    let status: Value =
        serde_json::from_str(&mount.room().layoutfs(&["status", "--json", &path])).unwrap();
    let layers = status["layers"].as_array().unwrap().iter();
    let number = |layer: &Value, name: &str| layer[name].as_u64().unwrap();
    layers.map(|layer| number(layer, "size") - number(layer, "bytes_never_needed")).sum()
}

fn in_root(mount: &Mount, command: &[&str]) -> String {
    let mut chroot = Command::new("chroot");
    run(chroot.arg(mount.path()).args(command), TOOL_LIMIT).success()
}

#[test]
fn programs_fetch_little_more_than_the_spans_of_what_they_read() {
    let indexed = Indexed::new();
    for (command, printed) in [
        (&["python3", "-B", "-c", "import json; print(json.dumps([1]))"][..], "[1]"),
        (&["cat", "/etc/os-release"], "Debian"),
    ] {
        let mount = indexed.mount_cold();
        let path = mount.path().display().to_string();
        run(Command::new("ls").args(["-lR", &path]), TOOL_LIMIT).success();
        assert_eq!(indexed.registry.requests().len(), 0, "ls -lR");
        let output = in_root(&mount, command);
        assert!(output.contains(printed), "{command:?}: {output}");
        let (fetched, needed) = (indexed.fetched(), needed(&mount));
        println!("{command:?}: {fetched} bytes fetched, {needed} of the spans that it read");
        assert!(needed > 0 && fetched * 10 <= needed * 13, "{command:?}: {fetched} of {needed}");
    }
}

fn files_below(root: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files
}

/// The sizes of the files, of those with several names once.
fn unpacked_bytes(root: &Path) -> u64 {
    let status = files_below(root).into_iter().map(|path| path.symlink_metadata().unwrap());
    let sizes: BTreeMap<u64, u64> = status.map(|status| (status.ino(), status.size())).collect();
    println!("{} files of {} bytes", sizes.len(), sizes.values().sum::<u64>());
    sizes.values().sum()
}

/// Every byte, by several readers at once.
fn scan(mount: &Mount) {
    let files = files_below(mount.path());
    std::thread::scope(|scope| {
        for number in 0..4 {
            let files = files.iter().skip(number).step_by(4);
            scope.spawn(|| files.for_each(|path| drop(std::fs::read(path).unwrap())));
        }
    });
}

#[test]
fn a_scan_by_several_readers_fetches_no_byte_twice_and_after_it_none() {
    let indexed = Indexed::new();
    let mount = indexed.mount_cold();
    scan(&mount);
    let (fetched, needed) = (indexed.fetched(), needed(&mount));
    println!("{fetched} bytes fetched, {needed} of the spans that were read");
    // Read-ahead brings some of the files that later layers replace.
    assert!(fetched >= needed && fetched * 10 <= needed * 11, "{fetched} of {needed}");
    mount.unmount();
    indexed.registry.clear();
    scan(&indexed.room.mount(&indexed.layout, &[]));
    let requests = indexed.registry.requests();
    assert_eq!(requests.len(), 0, "{requests:?}");
}
