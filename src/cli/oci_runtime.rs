//! An OCI runtime and the container that it runs from a bundle: signals forwarded, exit code told.

use std::ffi::OsString;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::context::Context;
use crate::fetch::{Error, ErrorKind, Result};

/// The runtimes that we look for, and where they are even when PATH does not say so.
const RUNTIMES: [&str; 2] = ["runc", "crun"];
const SYSTEM_PATHS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// What the container's first process is sent when we are.
const FORWARDED: [Signal; 6] =
    [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

/// So many requests to end, and the container is killed: a first process without a handler of its
/// own never sees SIGINT or SIGTERM.
const PATIENCE: u32 = 3;

/// Exit codes of a command that cannot be started, as shells have them.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// `--runtime`, else the first of ours that is installed.
///
/// # Errors
/// [`ErrorKind::CannotMount`]: there is none.
pub fn find(wanted: Option<&Path>) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let find = |name: &Path| {
        if name.components().count() > 1 {
            return std::path::absolute(name).ok().filter(|name| name.is_file());
        }
        let system = SYSTEM_PATHS.into_iter().map(PathBuf::from);
        let mut folders = std::env::split_paths(&path).chain(system);
        folders.find_map(|folder| Some(folder.join(name)).filter(|found| found.is_file()))
    };
    let missing = |message: String| Error::new(ErrorKind::CannotMount, message);
    match wanted {
        Some(name) => find(name).ok_or_else(|| {
            missing(format!("--runtime {}: there is no such program", name.display()))
        }),
        None => RUNTIMES.iter().find_map(|name| find(Path::new(name))).ok_or_else(|| {
            missing(
                "no OCI runtime is installed: install runc or crun (Debian: apt-get install \
                 runc), or name one with --runtime"
                    .to_owned(),
            )
        }),
    }
}

/// How much of a runtime's log is read for the reason of a failure, which it writes last.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// How a container ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code of its first process; of one that could not be started, as shells have it.
    pub code: i32,
    /// It could not be started: the runtime's words.
    pub not_started: Option<String>,
    /// The last of our signals that asked it to end.
    pub asked_to_end: Option<Signal>,
}

/// A container that an OCI runtime runs from a bundle.
pub struct Container<'a> {
    runtime: &'a Path,
    bundle: &'a Path,
    /// Unique on this machine: names the container, and its cgroup.
    id: OsString,
    terminal: bool,
    /// Standard output is for somebody else: what the command prints goes to standard error.
    quiet_stdout: bool,
}

impl<'a> Container<'a> {
    /// The container of the bundle, whose directory has a unique name.
    pub fn new(runtime: &'a Path, bundle: &'a Path, terminal: bool) -> Self {
        let id = bundle.file_name().unwrap_or_default().to_owned();
        Container { runtime, bundle, id, terminal, quiet_stdout: false }
    }

    /// What the command prints goes to standard error.
    pub fn with_quiet_stdout(self, quiet_stdout: bool) -> Self {
        Container { quiet_stdout, ..self }
    }

    fn command(&self, log: &Path) -> Command {
        let mut command = Command::new(self.runtime);
        // A state of its own: nothing is left of it when the bundle goes.
        command.arg("--root").arg(self.bundle.join("state"));
        command.arg("--log").arg(log).args(["--log-format", "json"]);
        command
    }

    /// The runtime once more, for a container that may have ended meanwhile: that it cannot then be
    /// killed is nobody's failure, least of all of the command in it.
    fn afterwards(&self, args: &[&str]) -> Command {
        let mut command = self.command(Path::new("/dev/null"));
        command.args(args).arg(&self.id).stderr(Stdio::null());
        command
    }

    fn log(&self) -> PathBuf {
        self.bundle.join("runtime.log")
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// The runtime cannot be started.
    pub async fn run(&self, mut signals: Forwarding) -> Result<Ended> {
        let mut command = self.command(&self.log());
        command.arg("run").arg("--bundle").arg(self.bundle).arg(&self.id);
        if !self.terminal {
            // Else a terminal's Ctrl-C would reach the runtime twice: once from us.
            command.process_group(0);
        }
        if self.quiet_stdout {
            command.stdout(std::io::stderr());
        }
        let failed = |e: std::io::Error| {
            let message = format!("cannot start {}: {e}", self.runtime.display());
            Error::new(ErrorKind::CannotMount, message)
        };
        let mut child = command.spawn().map_err(failed)?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let (mut asked, mut asked_to_end) = (0, None);
        let status = loop {
            tokio::select! {
                status = child.wait() => break status.map_err(failed)?,
                signal = signals.next() => {
                    if matches!(signal, Signal::INT | Signal::TERM) {
                        asked += 1;
                        asked_to_end = Some(signal);
                    }
                    if asked >= PATIENCE {
                        self.kill().await;
                    } else if let Some(pid) = pid {
                        // It may have ended by now, which is what the loop sees next.
                        let _ = kill_process(pid, signal);
                    }
                }
            }
        };
        self.forget();
        let (code, not_started) = self.exit_code(status);
        Ok(Ended { code, not_started, asked_to_end })
    }

    async fn kill(&self) {
        let mut command = self.afterwards(&["kill"]);
        command.arg("KILL");
        if let Err(error) = command.status().await {
            tracing::warn!(%error, "cannot kill the container");
        }
    }

    /// A runtime that was killed itself leaves its container.
    pub fn forget(&self) {
        if !self.bundle.join("state").join(&self.id).exists() {
            return;
        }
        let mut command = self.afterwards(&["delete", "--force"]);
        if let Err(error) = command.as_std_mut().status() {
            tracing::warn!(%error, "cannot delete the container");
        }
    }

    /// The command's exit code; or that of a command that could not be started, which the runtime
    /// tells in its log only (its own code is 1 then, as a command's may be).
    fn exit_code(&self, status: ExitStatus) -> (i32, Option<String>) {
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
        if code == 0 {
            return (0, None);
        }
        let log = end_of(&self.log()).unwrap_or_default();
        let Some(said) = log.lines().rev().find_map(failure) else { return (code, None) };
        let message = said.to_lowercase();
        // The runtime has printed it.
        tracing::debug!(message, "the runtime failed");
        let code =
            if message.contains("executable file not found") || message.contains("no such file") {
                NOT_FOUND
            } else if message.contains("permission denied") && message.contains("exec") {
                NOT_EXECUTABLE
            } else {
                1
            };
        (code, Some(said))
    }
}

/// The last [`LOG_BYTES_MAX`] bytes of a file.
fn end_of(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(LOG_BYTES_MAX);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The message of a line of a runtime's log that tells of its failure.
fn failure(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let level = line.get("level")?.as_str()?;
    let message = line.get("msg")?.as_str()?;
    matches!(level, "error" | "fatal").then(|| message.to_owned())
}

/// The signals that are forwarded, as they come.
pub struct Forwarding {
    streams: Vec<(Signal, tokio::signal::unix::Signal)>,
}

impl Forwarding {
    /// From here on no signal ends this process.
    ///
    /// # Errors
    /// Local trouble.
    pub fn new(context: &Context) -> Result<Self> {
        let _runtime = context.runtime.enter();
        let listen = |number: Signal| {
            let stream = signal(SignalKind::from_raw(number.as_raw()));
            let stream = stream.map_err(|e| Error::local("cannot listen for signals", &e))?;
            Ok((number, stream))
        };
        Ok(Forwarding { streams: FORWARDED.into_iter().map(listen).collect::<Result<_>>()? })
    }

    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|task| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(task).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
