//! Hostile images, by the real program on real mounts: each is refused with its layer and the place
//! in it, or shown right; in bounded memory, and with nothing outside touched.

mod bombs;
mod digests;
mod documents;
mod layouts;
mod links;
mod names;
mod records;
mod sizes;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use layoutfs::layout::Digest;
use serde_json::{Value, json};

use crate::support::image::{Fill, Image, ImageBuilder};
use crate::support::layer::Compression;
use crate::support::mount::{LIMIT, Mount, Outcome, Room, mountpoints};

/// What any command or daemon here may have resident, unless a test says otherwise. Of this, about
/// 40 MiB are the program itself, built for debugging.
pub const MEMORY_BYTES_MAX: u64 = 128 << 20;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A room with one layout, and a directory outside of everything that nobody may touch.
pub struct Scene {
    pub room: Arc<Room>,
    pub layout: PathBuf,
}

impl Scene {
    /// An empty layout directory.
    pub fn new() -> Self {
        let room = Room::new();
        let layout = room.path().join("layout");
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Scene { room, layout }
    }

    /// A complete layout of `image`.
    pub fn of(image: &Image) -> Self {
        let scene = Scene::new();
        image.write_layout(&scene.layout, "v1", Fill::Full);
        scene
    }

    /// The IMAGE argument.
    pub fn image(&self) -> &str {
        self.layout.to_str().unwrap()
    }

    /// Writes a blob; gives its descriptor.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::sha256_of(bytes);
        fs::write(self.layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Writes a document as a blob; gives its descriptor.
    pub fn document(&self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, document.to_string().as_bytes())
    }

    /// Writes `index.json` with these descriptors.
    pub fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        fs::write(self.layout.join("index.json"), index.to_string()).unwrap();
    }

    /// An image of these documents, the only one of the layout.
    pub fn write_image(&self, config: &Value, layers: &[Value]) {
        let config = self.document(OCI_CONFIG, config);
        self.write_manifest(&manifest(&config, layers));
    }

    /// The only manifest of the layout.
    pub fn write_manifest(&self, manifest: &Value) {
        let manifest = self.document(OCI_MANIFEST, manifest);
        self.index(&[manifest]);
    }

    /// The file of a blob.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.layout.join("blobs/sha256").join(digest.hex())
    }

    /// `layoutfs ARGS` ends with this exit code, and its words have all of `words`; nothing is
    /// mounted, and memory is bounded.
    #[track_caller]
    pub fn fails(&self, args: &[&str], code: i32, words: &[&str]) {
        let (outcome, peak_bytes) = measured(&mut self.room.command(args));
        assert_eq!(outcome.code(), Some(code), "{outcome}");
        for word in words {
            assert!(outcome.stderr.contains(word), "no {word:?} in\n{outcome}");
        }
        assert!(!outcome.stderr.contains("panicked"), "{outcome}");
        assert!(outcome.stderr.len() < 64 << 10, "{} bytes of words", outcome.stderr.len());
        assert!(peak_bytes <= MEMORY_BYTES_MAX, "{} MiB\n{outcome}", peak_bytes >> 20);
        let left: Vec<_> =
            mountpoints().into_iter().filter(|at| at.starts_with(self.room.path())).collect();
        assert!(left.is_empty(), "{left:?} left mounted");
    }

    /// Neither the rootfs nor everything can be mounted.
    #[track_caller]
    pub fn refused(&self, code: i32, words: &[&str]) {
        self.refused_as("rootfs", code, words);
        self.refused_as("all", code, words);
    }

    /// This view cannot be mounted.
    #[track_caller]
    pub fn refused_as(&self, view: &str, code: i32, words: &[&str]) {
        let at = self.room.path().join(format!("refused-{view}"));
        fs::create_dir_all(&at).unwrap();
        self.fails(&["mount", self.image(), at.to_str().unwrap(), "--view", view], code, words);
    }

    /// Everything is mounted, in bounded memory.
    #[track_caller]
    pub fn mounted(&self) -> Mount {
        let mount = self.room.mount(self.image(), &["--view", "all"]);
        assert_within(&mount, MEMORY_BYTES_MAX);
        mount
    }
}

/// A manifest's document.
pub fn manifest(config: &Value, layers: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers})
}

/// A configuration's document with these DiffIDs.
pub fn config(diff_ids: &[String]) -> Value {
    let rootfs = json!({"type": "layers", "diff_ids": diff_ids});
    json!({"os": "linux", "architecture": "amd64", "rootfs": rootfs})
}

/// An image of one layer, in a layout of its own.
pub fn one_layer(tar: &[u8], compression: Compression) -> (Scene, Image) {
    let image = ImageBuilder::new().layer_of_tar(tar, compression).build();
    (Scene::of(&image), image)
}

/// The layer is refused, with its digest and the place in it: in the view of the rootfs, layers and
/// layout.
#[track_caller]
pub fn layer_refused(tar: &[u8], compression: Compression, offset: usize, words: &[&str]) {
    let (scene, image) = one_layer(tar, compression);
    let place = format!("offset {offset}:");
    let digest = image.layers[0].digest.short();
    scene.refused_as("all", 3, &[&[&*digest, &*place], words].concat());
}

/// The daemon of `mount` never had more than this resident.
#[track_caller]
pub fn assert_within(mount: &Mount, bytes: u64) {
    let status = mount.room().layoutfs(&["status", "--json", mount.path().to_str().unwrap()]);
    let status: Value = serde_json::from_str(&status).unwrap();
    let peak_bytes = peak_bytes_of(status["pid"].as_u64().unwrap() as u32).expect("it runs");
    assert!(peak_bytes <= bytes, "{} MiB, expected at most {}", peak_bytes >> 20, bytes >> 20);
}

/// Runs a command to its end, as [`crate::support::mount::run`] does, and looks all the time at what
/// it and the processes that it starts have had resident.
#[track_caller]
pub fn measured(command: &mut Command) -> (Outcome, u64) {
    let dir = tempfile::tempdir().unwrap();
    let [out, err] = ["stdout", "stderr"].map(|name| dir.path().join(name));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let (started, mut peak_bytes) = (Instant::now(), 0);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        for pid in with_children(child.id()) {
            peak_bytes = peak_bytes.max(peak_bytes_of(pid).unwrap_or(0));
        }
        if started.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{command:?} takes more than {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let text = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let command = format!("{command:?}");
    (Outcome { command, status, stdout: text(&out), stderr: text(&err) }, peak_bytes)
}

fn with_children(pid: u32) -> Vec<u32> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let listed = listed.unwrap_or_default();
    let children = listed.split_whitespace().filter_map(|pid| pid.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// `VmHWM` of a process (proc(5)); `None` when it has ended, or still has our memory: a child that
/// has begun `exec` wakes its parent a moment before it has its own.
fn peak_bytes_of(pid: u32) -> Option<u64> {
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).ok();
    if program(&pid.to_string())? == program("self")? {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// A directory that an image wants to get at.
pub struct Canary {
    dir: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

impl Canary {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("layoutfs-canary-").tempdir().unwrap();
        for (name, text) in [
            ("secret", "outside\n"),
            ("passwd", "outsider:x:4242:4242::/:/bin/sh\n"),
            ("group", "outsiders:x:4242:\n"),
            ("hosts", "outside\n"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        fs::create_dir(dir.path().join("inner")).unwrap();
        fs::write(dir.path().join("inner/secret"), "outside\n").unwrap();
        let before = snapshot(dir.path());
        Canary { dir, before }
    }

    pub fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    /// Without the leading slash.
    pub fn relative(&self) -> &str {
        self.path().trim_start_matches('/')
    }

    #[track_caller]
    pub fn assert_untouched(&self) {
        assert_eq!(snapshot(self.dir.path()), self.before);
    }
}

/// Names, content, and what changes with whatever else is done to a file but reading it.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            let meta = path.symlink_metadata().unwrap();
            let stat = (meta.ino(), meta.mode(), meta.uid(), meta.gid(), meta.nlink());
            let text =
                if meta.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
            let times = (meta.ctime(), meta.ctime_nsec());
            if meta.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, format!("{stat:?} {times:?} {text}"));
        }
    }
    found
}
