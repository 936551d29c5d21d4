//! The `layoutfs` binary in a room of its own, and mounts that cannot be forgotten.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::ground::Ground;
use super::modes;

/// No command of a test may take longer. Generous: a busy machine must not fail a test.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A private cache and run directory for the binary, so that tests do not meet. Nothing that was
/// started or mounted in it may outlive it.
pub struct Room {
    ground: Ground,
    words: &'static str,
    mounts_made: AtomicU32,
}

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// A mount made by `layoutfs mount`. Dropping it unmounts, and panics when that does not work.
pub struct Mount {
    room: Arc<Room>,
    path: PathBuf,
    mounted: bool,
    said: String,
}

impl Room {
    /// An empty room.
    pub fn new() -> Arc<Self> {
        Room::with("")
    }

    /// An empty room, whose commands have these words of `LAYOUTFS_TEST` beside those that the suite
    /// runs with.
    pub fn with(words: &'static str) -> Arc<Self> {
        let ground = Ground::new();
        for name in ["cache", "run", "home"] {
            // As login makes XDG_RUNTIME_DIR: for its owner only.
            DirBuilder::new().mode(0o700).create(ground.path().join(name)).unwrap();
        }
        Arc::new(Room { ground, words, mounts_made: AtomicU32::new(0) })
    }

    /// Where tests may put their own files.
    pub fn path(&self) -> &Path {
        self.ground.path()
    }

    /// The cache of every command in this room.
    pub fn cache_dir(&self) -> PathBuf {
        self.path().join("cache")
    }

    /// `layoutfs ARGS`, not yet run: nothing of the user's reaches it. The cache is named right
    /// after the subcommand, because what follows `--` belongs to somebody else.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_layoutfs"));
        let (subcommand, rest) = args.split_first().expect("a subcommand");
        command.arg(subcommand).arg("--cache-dir").arg(self.cache_dir()).args(rest);
        command
            .env("XDG_CACHE_HOME", self.path().join("cache"))
            .env("XDG_RUNTIME_DIR", self.path().join("run"))
            .env("HOME", self.path().join("home"))
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("DOCKER_CONFIG")
            .env_remove("REGISTRY_AUTH_FILE")
            .env_remove("CNB_REGISTRY_AUTH")
            .env_remove("NOTIFY_SOCKET");
        if !self.words.is_empty() {
            let suite = std::env::var(modes::VARIABLE).unwrap_or_default();
            command.env(modes::VARIABLE, format!("{suite},{}", self.words));
        }
        command
    }

    /// Runs `layoutfs ARGS`, whatever comes out.
    pub fn run(&self, args: &[&str]) -> Outcome {
        run(&mut self.command(args), LIMIT)
    }

    /// Runs `layoutfs ARGS`, which must work; gives its stdout.
    #[track_caller]
    pub fn layoutfs(&self, args: &[&str]) -> String {
        self.run(args).success()
    }

    /// Mounts `image` at a new directory; `options` are more arguments of `layoutfs mount`.
    #[track_caller]
    pub fn mount(self: &Arc<Self>, image: &str, options: &[&str]) -> Mount {
        match self.try_mount(image, options) {
            Ok(mount) => mount,
            Err(outcome) => panic!("{outcome}\n{}", self.logs()),
        }
    }

    /// The same, where the mount may fail: nothing is mounted then.
    #[track_caller]
    pub fn try_mount(self: &Arc<Self>, image: &str, options: &[&str]) -> Result<Mount, Outcome> {
        let number = self.mounts_made.fetch_add(1, Ordering::Relaxed);
        let path = self.path().join(format!("mnt-{number}"));
        std::fs::create_dir(&path).unwrap();
        let said = String::new();
        let mut mount = Mount { room: Arc::clone(self), path, mounted: true, said };
        let outcome = self.run(&[&["mount", image, mount.path_text()], options].concat());
        mount.mounted = !mount.standing().is_empty();
        assert_eq!(mount.mounted, outcome.status.success(), "{outcome}\n{}", self.logs());
        if !mount.mounted {
            return Err(outcome);
        }
        mount.said = outcome.stderr;
        Ok(mount)
    }

    /// What daemons wrote into this room's logs.
    pub fn logs(&self) -> String {
        let mut logs = String::new();
        let mut folders = vec![self.path().join("run"), self.path().join("cache")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "log") {
                    let text = std::fs::read(&path).unwrap_or_default();
                    let text = String::from_utf8_lossy(&text);
                    logs += &format!("--- {}\n{text}\n", path.display());
                }
            }
        }
        logs
    }
}

impl Mount {
    /// Mounts `image` in a room of its own.
    #[track_caller]
    pub fn new(image: &str, options: &[&str]) -> Self {
        Room::new().mount(image, options)
    }

    /// The mountpoint.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `layoutfs mount` said on stderr; later words are in the log.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// What its daemon has logged so far. (The logs of root are in one place for the machine.)
    #[track_caller]
    pub fn log(&self) -> String {
        let status = self.room.layoutfs(&["status", "--json", self.path_text()]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        let path = status["log"].as_str().expect("it logs somewhere");
        String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
    }

    /// The room, for more commands with the same cache.
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Unmounts now, as dropping does.
    pub fn unmount(self) {}

    fn path_text(&self) -> &str {
        self.path.to_str().expect("a temporary path of plain letters")
    }

    /// Our mountpoint and what is mounted below it, deepest first.
    fn standing(&self) -> Vec<PathBuf> {
        let mut standing = mountpoints();
        standing.retain(|path| path.starts_with(&self.path));
        standing.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        standing
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        // Other tests start programs all the time, and each holds our files until its exec.
        let unmount = || self.room.run(&["unmount", self.path_text()]);
        let mut outcome = unmount();
        for _ in 0..10 {
            if outcome.code() != Some(9) {
                break;
            }
            outcome = unmount();
        }
        let left = self.standing();
        for path in &left {
            // The last means: a test that fails must not make the machine fail.
            run(Command::new("umount").arg("-l").arg(path), LIMIT);
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "still mounted: {left:?}\n{outcome}\n{}", self.room.logs());
            assert!(outcome.status.success(), "{outcome}\n{}", self.room.logs());
        } else {
            eprintln!("{}", self.room.logs());
        }
    }
}

impl Outcome {
    /// The exit code; a signal has none.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The stdout of a command that must have worked.
    #[track_caller]
    pub fn success(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { command, status, stdout, stderr } = self;
        write!(f, "{command}\n{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Runs a command to its end with nothing on stdin. Output goes through files, because a daemon
/// that keeps a pipe open would keep the reader waiting. Kills it, and panics, after `limit`.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let [out, err] = ["stdout", "stderr"].map(|name| dir.path().join(name));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let text = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            let (stdout, stderr) = (text(&out), text(&err));
            panic!("{command:?} takes more than {limit:?}\n{stdout}\n{stderr}");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Outcome { command: format!("{command:?}"), status, stdout: text(&out), stderr: text(&err) }
}

/// Where anything is mounted, as the kernel tells it.
pub fn mountpoints() -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect()
}

/// Undoes the kernel's `\040`.
pub fn unescape(text: &str) -> PathBuf {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => path.extend([char::from(code)].into_iter().chain(part[3..].chars())),
            None => path.extend(['\\'].into_iter().chain(part.chars())),
        }
    }
    PathBuf::from(path)
}
