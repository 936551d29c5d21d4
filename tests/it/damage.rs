//! Damage on disk, as a matrix: whatever is done to whichever file of the cache, and whenever, no
//! wrong byte is shown, nothing hangs, everything is right in the end, and the log names the file.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::support::image::{Image, ImageBuilder, Layer};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::mount::{Mount, Room, run};
use crate::support::registry::Registry;

/// Some spans, of which one is read first.
const SPANS_BYTES: usize = 2 << 20;

/// More than is decoded for one read: such a layer becomes a decoded file.
const DECODED_BYTES: usize = (8 << 20) + (64 << 10);

/// In every file, and in the first span of a part.
const FLIPPED_AT: usize = 20;

/// Times of files tick every few milliseconds: what is written in the tick of the last check is not
/// told from it.
const TICK: Duration = Duration::from_millis(20);

/// The layers, each of which has a directory of its name.
const NAMES: [&str; 4] = ["s1", "s2", "d1", "d2"];

/// What happens to a file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Damage {
    Truncated,
    Zeroed,
    Deleted,
    Flipped,
    OtherVersion,
    Swapped,
}

const DAMAGES: [Damage; 6] = [
    Damage::Truncated,
    Damage::Zeroed,
    Damage::Deleted,
    Damage::Flipped,
    Damage::OtherVersion,
    Damage::Swapped,
];

/// What it happens to.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Object {
    /// A whole blob.
    Blob,
    /// Some bytes of a blob.
    Part,
    /// Which of them are resident.
    Map,
    Index,
    Decoded,
    /// The digests that prove a decoded layer, piece by piece.
    Sums,
    /// A decoded layer together with its sums.
    DecodedWithSums,
}

const OBJECTS: [Object; 7] = [
    Object::Blob,
    Object::Part,
    Object::Map,
    Object::Index,
    Object::Decoded,
    Object::Sums,
    Object::DecodedWithSums,
];

/// When it happens.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Moment {
    /// While a mount reads the files.
    MountedAlready,
    /// Between two mounts.
    MountedAgain,
    /// While a mount reads the files; then all that can be evicted is.
    Evicted,
}

/// A registry with an image, and caches as mounts of it leave them.
struct Setting {
    registry: Registry,
    image: Image,
    room: Arc<Room>,
    layout: String,
    /// Everything is local.
    whole: PathBuf,
    /// Blobs of which some spans are local.
    partial: PathBuf,
}

/// Pairs of layers alike in everything but content, so that their files can be mistaken for each
/// other: two of spans, two that cannot seek.
fn image() -> Image {
    let layer = |name: &str, big: Bytes| {
        LayerBuilder::new()
            .dir(name, 0o755)
            .file(&format!("{name}/small"), 0o644, name.to_owned())
            .file(&format!("{name}/big"), 0o644, big)
    };
    let compressions =
        [Compression::Plain, Compression::Plain, Compression::Zstd, Compression::Zstd];
    let layers = NAMES.into_iter().zip(compressions);
    layers
        .fold(ImageBuilder::new(), |image, (name, c)| image.layer(layer(name, big(name)), c))
        .build()
}

fn big(name: &str) -> Bytes {
    match name {
        "s1" | "s2" => generated(name, SPANS_BYTES),
        _ => generated(name, 16 << 10).repeat(DECODED_BYTES >> 14).into(),
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let mut cp = std::process::Command::new("cp");
    run(cp.args(["-a", "--sparse=always"]).arg(from).arg(to), Duration::from_secs(60)).success();
}

impl Setting {
    fn new() -> Self {
        let (registry, image, room) = (Registry::start(), image(), Room::new());
        image.push(&registry, "team/app", "v1");
        let layout = room.path().join("layout").display().to_string();
        room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &layout]);
        let [whole, partial] = ["whole", "partial"].map(|name| room.path().join(name));
        room.mount(&layout, &[]).unmount();
        copy(&room.cache_dir(), &whole);
        room.layoutfs(&["cache", "prune"]);
        let mount = room.mount(&layout, &[]);
        for name in ["s1", "s2"] {
            fs::read(mount.path().join(name).join("small")).expect("read");
        }
        mount.unmount();
        copy(&room.cache_dir(), &partial);
        Setting { registry, image, room, layout, whole, partial }
    }

    /// The file and the one that may be taken for it; and the layer that the first belongs to.
    fn files(&self, object: Object) -> (Vec<[PathBuf; 2]>, &Layer) {
        let cache = self.room.cache_dir().join("v1");
        let first = if is_decoded(object) { 2 } else { 0 };
        let pair = [&self.image.layers[first], &self.image.layers[first + 1]];
        let blob = |suffix: &str| {
            pair.map(|l| {
                let size =
                    if suffix.is_empty() { String::new() } else { format!(".{}", l.blob.len()) };
                cache.join(format!("blobs/sha256/{}{size}{suffix}", l.digest.hex()))
            })
        };
        let keyed = |suffix: &str| {
            pair.map(|l| cache.join(format!("decoded/sha256-{}{suffix}", l.diff_id.hex())))
        };
        let files = match object {
            Object::Blob => vec![blob("")],
            Object::Part => vec![blob(".part")],
            Object::Map => vec![blob(".map")],
            Object::Index => {
                vec![pair.map(|l| cache.join(format!("indexes/sha256-{}", l.digest.hex())))]
            }
            Object::Decoded => vec![keyed("")],
            Object::Sums => vec![keyed(".sums")],
            Object::DecodedWithSums => vec![keyed(""), keyed(".sums")],
        };
        (files, pair[0])
    }

    /// Every file of a pair of layers, and the layers themselves, are right; what fails does so with
    /// a documented errno, and not for long.
    fn read_pair(&self, object: Object, mount: &Mount, case: &str) {
        let pair = if is_decoded(object) { [2, 3] } else { [0, 1] };
        for name in pair.map(|i| NAMES[i]) {
            let directory = mount.path().join("rootfs").join(name);
            right(&directory.join("small"), name.as_bytes(), case);
            right(&directory.join("big"), &big(name), case);
        }
        for layer in pair.map(|i| &self.image.layers[i]) {
            let hex = layer.digest.hex();
            right(&mount.path().join("layout/blobs/sha256").join(hex), &layer.blob, case);
        }
    }

    fn mount(&self) -> Mount {
        self.room.mount(&self.layout, &["--view", "all"])
    }

    fn run_case(&self, object: Object, damage: Damage, moment: Moment) {
        let case = format!("{damage:?} x {object:?} x {moment:?}");
        eprintln!("{case}");
        let is_partial = matches!(object, Object::Part | Object::Map);
        copy(if is_partial { &self.partial } else { &self.whole }, &self.room.cache_dir());
        let (files, layer) = self.files(object);
        let mut said = String::new();
        let mount = if moment == Moment::MountedAgain {
            files.iter().for_each(|pair| harm(damage, pair));
            self.mount()
        } else {
            let mount = self.mount();
            if is_partial {
                right(&mount.path().join("rootfs/s1/small"), b"s1", &case);
            } else {
                self.read_pair(object, &mount, &case);
            }
            std::thread::sleep(TICK);
            files.iter().for_each(|pair| harm(damage, pair));
            mount
        };
        if moment == Moment::Evicted {
            self.room.layoutfs(&["cache", "prune"]);
        }
        self.read_pair(object, &mount, &case);
        said += &(mount.said().to_owned() + &mount.log());
        mount.unmount();
        let again = self.mount();
        self.read_pair(object, &again, &case);
        said += &(again.said().to_owned() + &again.log());
        again.unmount();
        if is_noticed(object, damage, moment) {
            let names = [layer.digest.hex(), layer.diff_id.hex()];
            assert!(
                names.iter().any(|name| said.contains(name)),
                "{case}: not in the log:\n{said}"
            );
        }
    }
}

/// It is found in the pair of layers that cannot seek.
fn is_decoded(object: Object) -> bool {
    matches!(object, Object::Decoded | Object::Sums | Object::DecodedWithSums)
}

/// Whether the log has to name it. What is gone has nothing to say, and what is evicted is not read.
/// A part's map may claim too little, and what it claims of bytes that nobody needs is harmless.
fn is_noticed(object: Object, damage: Damage, moment: Moment) -> bool {
    match (object, damage) {
        (_, Damage::Deleted) => false,
        (Object::Index, _) => true,
        _ if moment == Moment::Evicted => false,
        (Object::Map, Damage::Flipped | Damage::Swapped) => false,
        // A reader that has the right file open does not see what took its name, and proves the whole
        // of it again, in which a part has no part.
        (Object::Part, Damage::Swapped) => false,
        _ => true,
    }
}

fn harm(damage: Damage, [path, other]: &[PathBuf; 2]) {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = File::options().write(true).open(path).expect("opened");
    match damage {
        Damage::Truncated => file.set_len(bytes.len() as u64 / 2).expect("cut"),
        Damage::Zeroed => file.write_all_at(&vec![0; bytes.len()], 0).expect("zeroed"),
        Damage::Deleted => fs::remove_file(path).expect("removed"),
        Damage::Flipped => {
            let at = FLIPPED_AT.min(bytes.len() / 2);
            file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("flipped");
        }
        Damage::OtherVersion => {
            let mut other = b"LAYOUTIX\x63\0\0\0 of another version\n".to_vec();
            other.extend_from_slice(&bytes);
            file.write_all_at(&other, 0).expect("written");
        }
        Damage::Swapped => {
            let between = path.with_extension("between");
            fs::rename(path, &between).expect("renamed");
            fs::rename(other, path).expect("renamed");
            fs::rename(&between, other).expect("renamed");
        }
    }
}

/// The file has these bytes. A read may fail with EIO, and another one then works: a stream that
/// began with damaged bytes ends in an error.
fn right(path: &Path, expected: &[u8], case: &str) {
    for attempt in 0..4 {
        match read_past_caches(path) {
            Ok(bytes) => {
                assert!(bytes == expected, "{case}: wrong bytes in {}", path.display());
                return;
            }
            Err(error) => {
                let at = path.display();
                assert_eq!(error.raw_os_error(), Some(5), "{case}: {at}: {error}");
                assert!(attempt < 3, "{case}: {at} stays unreadable: {error}");
            }
        }
    }
}

/// Reads a file of a mount anew: what the kernel has of it is dropped.
fn read_past_caches(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn run_matrix(moment: Moment) {
    let setting = Setting::new();
    for object in OBJECTS {
        for damage in DAMAGES {
            // The others are cases of the two files alone.
            if object != Object::DecodedWithSums || damage == Damage::Swapped {
                setting.run_case(object, damage, moment);
            }
        }
    }
    assert_eq!(setting.registry.faults_left(), 0);
}

#[test]
fn whatever_is_damaged_under_a_mount_is_never_shown() {
    run_matrix(Moment::MountedAlready);
}

#[test]
fn whatever_was_damaged_before_a_mount_is_never_shown() {
    run_matrix(Moment::MountedAgain);
}

#[test]
fn whatever_is_damaged_under_a_mount_and_then_evicted_is_never_shown() {
    run_matrix(Moment::Evicted);
}

#[test]
fn without_a_registry_damage_is_an_error_and_what_is_right_stays_readable() {
    let setting = Setting::new();
    for object in [Object::Blob, Object::Index, Object::Decoded, Object::Sums] {
        for damage in [Damage::Truncated, Damage::Zeroed, Damage::Flipped, Damage::Swapped] {
            let case = format!("{damage:?} x {object:?} without a registry");
            copy(&setting.whole, &setting.room.cache_dir());
            let (files, layer) = setting.files(object);
            files.iter().for_each(|pair| harm(damage, pair));
            let mount = setting.room.mount(&setting.layout, &["--view", "all", "--offline"]);
            for name in NAMES {
                let expected = big(name);
                match read_past_caches(&mount.path().join("rootfs").join(name).join("big")) {
                    Ok(bytes) => assert!(bytes == expected, "{case}: wrong bytes of {name}"),
                    Err(error) => {
                        assert_eq!(object, Object::Blob, "{case}: {name}: the rest is made anew");
                        assert!(name.starts_with('s'), "{case}: {name}: its decoded file is right");
                        assert_eq!(error.raw_os_error(), Some(5), "{case}: {name}: {error}");
                        let said = mount.said().to_owned() + &mount.log();
                        assert!(said.contains(&layer.digest.hex()), "{case}: {said}");
                    }
                }
            }
            mount.unmount();
        }
    }
}

#[test]
fn an_index_of_the_same_tar_in_another_blob_is_not_taken_for_its_own() {
    let (registry, room) = (Registry::start(), Room::new());
    let tar = LayerBuilder::new().file("big", 0o644, generated("x", SPANS_BYTES)).tar();
    let members = |bytes| Compression::GzipMembers(bytes);
    let mut digests = Vec::new();
    for (tag, bytes) in [("v1", 64 << 10), ("v2", 48 << 10)] {
        let image = ImageBuilder::new().layer_of_tar(&tar, members(bytes)).build();
        image.push(&registry, "team/app", tag);
        room.mount(&format!("docker://{}", registry.reference("team/app", tag)), &[]).unmount();
        digests.push(image.layers[0].digest);
    }
    let indexes = room.cache_dir().join("v1/indexes");
    let path = |i: usize| indexes.join(format!("sha256-{}", digests[i].hex()));
    harm(Damage::Swapped, &[path(0), path(1)]);
    room.layoutfs(&["cache", "prune"]);
    for (tag, digest) in [("v1", digests[0]), ("v2", digests[1])] {
        let mount = room.mount(&format!("docker://{}", registry.reference("team/app", tag)), &[]);
        assert!(mount.said().contains(&digest.hex()), "{}", mount.said());
        assert_eq!(fs::read(mount.path().join("big")).expect("read"), generated("x", SPANS_BYTES));
    }
}
