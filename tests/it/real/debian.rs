//! The fixture image, served by Debian's own registry; and mounts of it that tests share.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use layoutfs::layout::digest::Digest;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::listing::Listing;
use crate::support::mount::{Mount, Outcome, Room, run};

/// The first time, a Debian is bootstrapped: two minutes of work, and slow mirrors exist.
const BUILD_LIMIT: Duration = Duration::from_secs(900);
/// Foreign tools unpack the whole image; three suites may share two cores.
pub const TOOL_LIMIT: Duration = Duration::from_secs(300);
const REGISTRY_START_LIMIT: Duration = Duration::from_secs(20);

/// The repository of the image's variants; the script says what each tag is.
pub const REPOSITORY: &str = "debian/run";

/// What the tests of this group share while any of them runs.
pub struct Debian {
    // Fields are dropped in this order: mounts go before the registries that they read.
    mounts: Mutex<BTreeMap<String, Arc<Mount>>>,
    v1_listing: OnceLock<Listing>,
    pub room: Arc<Room>,
    /// Read-only: its storage outlives the tests.
    pub registry: Registry,
    /// Empty at first: to push to.
    pub scratch: Registry,
    dir: PathBuf,
}

/// A weak reference, because statics are never dropped and mounts have to be.
static SHARED: Mutex<Weak<Debian>> = Mutex::new(Weak::new());

impl Debian {
    /// The fixture, started by the first test that asks and stopped with the last one.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(debian) = shared.upgrade() {
            return debian;
        }
        let debian = Arc::new(Self::start());
        *shared = Arc::downgrade(&debian);
        debian
    }

    fn start() -> Self {
        assert!(rustix::process::geteuid().is_root(), "the real-tools tests must run as root");
        assert!(Path::new("/dev/fuse").exists(), "no /dev/fuse: run tests/setup-debian.sh");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut script = Command::new(sources.join("tests/fixtures/debian-image.sh"));
        // CARGO_TARGET_TMPDIR is target/tmp of whatever target directory is in use.
        script.arg(Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("fixtures"));
        let dir = PathBuf::from(run(&mut script, BUILD_LIMIT).success().trim_end());
        let room = Room::new();
        let scratch = room.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        Debian {
            mounts: Mutex::default(),
            v1_listing: OnceLock::new(),
            registry: Registry::serve(dir.join("registry"), true),
            scratch: Registry::serve(scratch, false),
            room,
            dir,
        }
    }

    /// `127.0.0.1:PORT/debian/run:TAG`.
    pub fn reference(&self, tag: &str) -> String {
        format!("{}/{REPOSITORY}:{tag}", self.registry.address)
    }

    /// What the registry has under the tag: the manifest's digest.
    pub fn manifest_digest(&self, tag: &str) -> String {
        self.registry.manifest_digest(REPOSITORY, tag)
    }

    pub fn manifest(&self, tag: &str) -> Value {
        serde_json::from_slice(&self.registry.blob(&self.manifest_digest(tag))).unwrap()
    }

    /// What umoci made of `plain`.
    pub fn umoci_rootfs(&self) -> PathBuf {
        self.dir.join("umoci/rootfs")
    }

    /// A small package.
    pub fn probe_package(&self) -> PathBuf {
        self.dir.join("probe.deb")
    }

    /// The rootfs view of a sparse layout of `tag`, shared.
    pub fn rootfs(&self, tag: &str) -> Arc<Mount> {
        self.mount(tag, "rootfs")
    }

    /// The layout view of a sparse layout of `tag`, shared.
    pub fn layout(&self, tag: &str) -> Arc<Mount> {
        self.mount(tag, "layout")
    }

    fn mount(&self, tag: &str, view: &str) -> Arc<Mount> {
        let sparse = self.sparse(tag);
        let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
        let mount = mounts.entry(format!("{view} of {tag}")).or_insert_with(|| {
            Arc::new(self.room.mount(sparse.to_str().unwrap(), &["--view", view]))
        });
        Arc::clone(mount)
    }

    /// A new sparse layout of `tag`.
    pub fn sparse(&self, tag: &str) -> PathBuf {
        let dir = self.new_dir("sparse").join(tag);
        let digest =
            self.room.layoutfs(&["sparse", &self.reference(tag), "--to", dir.to_str().unwrap()]);
        assert_eq!(digest, format!("{}\n", self.manifest_digest(tag)));
        dir
    }

    /// The fixture once more, from a registry whose requests are one's own.
    pub fn own_registry(&self) -> Registry {
        Registry::serve(self.dir.join("registry"), true)
    }

    /// An empty directory in the room.
    pub fn new_dir(&self, name: &str) -> PathBuf {
        let prefix = format!("{name}-");
        tempfile::Builder::new().prefix(&prefix).tempdir_in(self.room.path()).unwrap().keep()
    }

    /// Every path of `v1` through the mount, every byte read; made once.
    pub fn v1_listing(&self) -> &Listing {
        self.v1_listing.get_or_init(|| Listing::of(self.rootfs("v1").path()))
    }
}

/// A docker-registry process on a free loopback port, which ends with this one.
pub struct Registry {
    shell: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
    storage: PathBuf,
    access: PathBuf,
    _dir: TempDir,
}

impl Registry {
    /// Starts over a directory, which may be empty.
    pub fn serve(storage: PathBuf, read_only: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let configuration = dir.path().join("registry.json");
        let settings = serde_json::json!({
            "version": "0.1",
            "storage": {
                "filesystem": { "rootdirectory": storage },
                "maintenance": { "readonly": { "enabled": read_only } },
            },
            "http": { "addr": "127.0.0.1:0" },
        });
        // JSON is YAML.
        std::fs::write(&configuration, settings.to_string()).unwrap();
        let (log, access) = (dir.path().join("log"), dir.path().join("access"));
        // The shell's stdin closes when this process ends, however it ends; so does the registry.
        let mut shell = Command::new("sh")
            .args(["-c", "docker-registry serve \"$1\" & read -r _; kill $!; wait", "sh"])
            .arg(&configuration)
            .stdin(Stdio::piped())
            .stdout(File::create(&access).unwrap())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let started = Instant::now();
        let address = loop {
            let text = std::fs::read_to_string(&log).unwrap();
            if let Some(address) = listening(&text) {
                break address;
            }
            if started.elapsed() > REGISTRY_START_LIMIT {
                drop(shell.stdin.take());
                shell.wait().unwrap();
                panic!("docker-registry does not start:\n{text}");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Registry { shell, address, storage, access, _dir: dir }
    }

    /// Its access log, a line for each request: `… "GET /v2/NAME/blobs/DIGEST HTTP/1.1" 206 SIZE …`.
    pub fn access_log(&self) -> &Path {
        &self.access
    }

    /// A blob's bytes, from the storage itself.
    pub fn blob(&self, digest: &str) -> Vec<u8> {
        let hex = hex(digest);
        let path = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        let path = self.storage.join(path);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub fn manifest_digest(&self, repository: &str, tag: &str) -> String {
        let tags = format!("docker/registry/v2/repositories/{repository}/_manifests/tags");
        let link = self.storage.join(tags).join(tag).join("current/link");
        std::fs::read_to_string(&link).unwrap_or_else(|e| panic!("{}: {e}", link.display()))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // An error here means that the shell is gone, which is what we want.
        let _ = self.shell.wait();
    }
}

/// The address in the registry's own words.
fn listening(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("listening on ")?;
    let address = rest.split(|c: char| c != '.' && c != ':' && !c.is_ascii_digit()).next()?;
    // The terminator proves that the line was written whole.
    (address.len() < rest.len()).then(|| address.to_owned())
}

/// The part after `sha256:`.
pub fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or_else(|| panic!("not a sha256 digest: {digest}"))
}

/// Digests of the config and the layers of a manifest.
pub fn described(manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().unwrap();
    let all = std::iter::once(&manifest["config"]).chain(layers);
    all.map(|descriptor| descriptor["digest"].as_str().unwrap().to_owned()).collect()
}

/// The digest of a file's bytes.
pub fn digest_of(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Digest::sha256_of(&bytes).to_string()
}

/// Runs a foreign tool.
pub fn tool(program: &str, args: &[&str]) -> Outcome {
    run(Command::new(program).args(args), TOOL_LIMIT)
}
