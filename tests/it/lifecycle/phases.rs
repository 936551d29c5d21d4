//! One phase of the lifecycle in a container of its own, by runc, on the build image.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::{Value, json};

use crate::real::debian::{Debian, TOOL_LIMIT};
use crate::support::mount::{Mount, Outcome, run};

/// What a build has in its directory, and its phases at `/`.
pub const FOLDERS: [&str; 6] = ["cnb", "kaniko", "layers", "layout-repo", "platform", "workspace"];

/// The capabilities that Docker leaves to a container.
const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP \
    SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE";

/// The build image, for every build at once: a writable root filesystem over a lazy mount.
pub struct BuildRoot {
    mount: Mount,
    _debian: Arc<Debian>,
}

/// Statics are never dropped, mounts have to be.
static SHARED: Mutex<Weak<BuildRoot>> = Mutex::new(Weak::new());

impl BuildRoot {
    pub fn shared(debian: &Arc<Debian>) -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(root) = shared.upgrade() {
            return root;
        }
        let upper = debian.new_dir("build-root");
        let image = debian.sparse("stack");
        let options = ["--upper", upper.to_str().unwrap()];
        let mount = debian.room.mount(image.to_str().unwrap(), &options);
        // Else the runtimes of two builds make them at once.
        for folder in FOLDERS {
            std::fs::create_dir(mount.path().join(folder)).unwrap();
        }
        let root = Arc::new(BuildRoot { mount, _debian: Arc::clone(debian) });
        *shared = Arc::downgrade(&root);
        root
    }

    pub fn path(&self) -> &Path {
        self.mount.path()
    }
}

/// A phase of the build in `build`: which program with which arguments, as whom.
pub struct Phase<'a> {
    pub build: &'a Path,
    pub root: &'a Path,
    /// User and group: the detector and the builder refuse to be root.
    pub user: u32,
    pub environment: &'a [String],
    pub args: &'a [&'a str],
}

impl Phase<'_> {
    /// Runs it to its end, whatever comes out.
    pub fn run(&self) -> Outcome {
        let name = self.args[0].rsplit('/').next().unwrap();
        let bundle = tempfile::tempdir_in(self.build).unwrap();
        // The build's directory has a unique name.
        let build = self.build.file_name().unwrap().to_str().unwrap();
        let id = format!("layoutfs-{build}-{name}");
        let config = self.config(&id).to_string();
        std::fs::write(bundle.path().join("config.json"), config).unwrap();
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(bundle.path().join("state"));
        run(runc.args(["run", "--bundle"]).arg(bundle.path()).arg(&id), TOOL_LIMIT)
    }

    fn config(&self, id: &str) -> Value {
        let capabilities: Vec<_> =
            CAPABILITIES.split_whitespace().map(|name| format!("CAP_{name}")).collect();
        let mut mounts = vec![
            json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
            json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                    "options": ["nosuid", "strictatime", "mode=755"] }),
            json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] }),
            json!({ "destination": "/sys", "type": "none", "source": "/sys",
                    "options": ["rbind", "ro"] }),
        ];
        mounts.extend(FOLDERS.map(|folder| {
            let access = if folder == "cnb" { "ro" } else { "rw" };
            json!({ "destination": format!("/{folder}"), "type": "bind",
                    "source": self.build.join(folder), "options": ["rbind", access] })
        }));
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": self.user, "gid": self.user }, "cwd": "/", "args": self.args,
                "env": self.environment, "noNewPrivileges": true,
                "capabilities": { "bounding": capabilities, "effective": capabilities,
                                  "permitted": capabilities },
            },
            "root": { "path": self.root }, "mounts": mounts,
            "linux": {
                "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
                               { "type": "mount" }],
                "cgroupsPath": format!("/{id}"),
            },
        })
    }
}

/// Copies what a phase needs of the lifecycle into `build`, as `/cnb/lifecycle`.
pub fn install(programs: &Path, build: &Path) -> PathBuf {
    let dir = build.join("cnb/lifecycle");
    std::fs::create_dir_all(&dir).unwrap();
    for entry in std::fs::read_dir(programs).unwrap().map(Result::unwrap) {
        let to = dir.join(entry.file_name());
        if entry.file_type().unwrap().is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path()).unwrap(), to).unwrap();
        } else if std::fs::hard_link(entry.path(), &to).is_err() {
            // Another filesystem.
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
    dir
}
