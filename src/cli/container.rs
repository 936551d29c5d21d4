//! What `run`, `bundle` and `extend` have in common: a container's root filesystem, its
//! `config.json`, and its life.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::ImageConfiguration;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::args;
use super::context::{Context, OpenImage, absolute};
use super::oci_runtime::{Container, Ended, Forwarding};
use super::serve::{Daemon, Plan};
use super::unmount;
use crate::fetch::how::How;
use crate::fetch::{Error, ErrorKind, Result};
use crate::fs::images::ViewKind;
use crate::fs::mount::Mounted;
use crate::fs::mounts::{Record, RunDirectory};
use crate::fs::scratch::{Scratch, make_mount_points};
use crate::fs::user_namespace;
use crate::layout::accounts::Accounts;
use crate::layout::mount_points;
use crate::layout::runtime::{self, Bind, Setup};
use crate::layout::tree::Tree;

/// The host name in a container.
const HOSTNAME: &str = "layoutfs";

/// Most bytes of an account file: 16 MiB hold some 200,000 users.
const ACCOUNTS_BYTES_MAX: u64 = 16 << 20;

/// The files that a container has from this machine, each as a copy of its own.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";

/// Leads from a bundle to the runtime that runs it, for who has to clean up after us.
const RUNTIME_LINK: &str = "runtime";

/// Binds that only the rootfs can tell.
#[derive(Debug, Default)]
pub struct LateBinds {
    /// Below all others.
    pub first: Vec<Bind>,
    /// Over all others.
    pub last: Vec<Bind>,
}

/// Says what else is to be bound, when the rootfs is known.
pub type BindLate<'a> = Box<dyn FnOnce(&Tree) -> Result<LateBinds> + 'a>;

/// A container that is wished for and not yet there.
pub struct Wanted<'a> {
    container: &'a args::Container,
    args: Vec<String>,
    binds: Vec<Bind>,
    terminal: bool,
    /// Instead of the image's.
    pub working_directory: Option<String>,
    /// What the command prints goes to standard error.
    pub quiet_stdout: bool,
    /// The command is one of the image's.
    pub starts: bool,
    /// Asked when the rootfs is known.
    pub bind_late: Option<BindLate<'a>>,
}

/// A scratch directory for a container.
///
/// # Errors
/// There is no place for it.
pub fn scratch(context: &Context) -> Result<Scratch> {
    let cache = context.cache()?.layouts().to_owned();
    Scratch::new(&[std::env::temp_dir(), PathBuf::from("/var/tmp"), cache])
}

impl<'a> Wanted<'a> {
    /// Checks everything that can be checked before something is mounted.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`]: there is nothing to run, or a bind of something that is not there.
    pub fn new(
        image: &ImageConfiguration,
        container: &'a args::Container,
        command: &[String],
        terminal: bool,
    ) -> Result<Self> {
        let usage = |message: String| Error::new(ErrorKind::Usage, message);
        let args = runtime::arguments(image, command);
        if args.first().is_none_or(String::is_empty) {
            let message = "the image has neither entrypoint nor command: say what to run";
            return Err(usage(message.to_owned()));
        }
        let mut binds = Vec::new();
        for bind in &container.bind {
            let source = bind.source.canonicalize();
            let source =
                source.map_err(|e| usage(format!("--bind {}: {e}", bind.source.display())))?;
            binds.push(Bind { source, ..bind.clone() });
        }
        Ok(Wanted {
            container,
            args,
            binds,
            terminal,
            working_directory: None,
            quiet_stdout: false,
            starts: true,
            bind_late: None,
        })
    }

    /// Where it will be mounted, with its changes in `--upper`, else in `scratch`.
    ///
    /// # Errors
    /// There is no working directory.
    pub fn plan<'p>(
        &self,
        image: &'p str,
        hows: Vec<How>,
        mountpoint: PathBuf,
        scratch: &Scratch,
    ) -> Result<Plan<'p>> {
        let upper = match &self.container.upper {
            Some(upper) => absolute(upper)?,
            None => scratch.path().join("upper"),
        };
        let scratch = Some(scratch.path().to_owned());
        let view = ViewKind::Rootfs;
        let record = self.container.record.as_deref().map(absolute).transpose()?;
        let (upper, starts) = (Some(upper), self.starts);
        Ok(Plan { image, view, hows, mountpoint, upper, scratch, record, starts })
    }

    /// Mounts the root filesystem at `rootfs` when its view is there, and writes `config.json`
    /// beside it.
    ///
    /// # Errors
    /// The kernel refuses the overlay, or the image does not know the user.
    pub fn prepare(
        mut self,
        daemon: &Daemon,
        mounted: &Mounted,
        scratch: &Scratch,
        rootfs: &Path,
    ) -> Result<()> {
        daemon.wait_for_view(mounted)?;
        let image = &daemon.open.image.config.configuration;
        // A bind of the user's comes later, and so is what is seen.
        self.binds.splice(0..0, copies_of_ours(scratch.path())?);
        let directory = self.working_directory;
        let directory = directory.unwrap_or_else(|| runtime::working_directory(image));
        let skeleton = scratch.path().join("skeleton");
        if let Some(tree) = daemon.tree() {
            if let Some(bind_late) = self.bind_late {
                let LateBinds { first, last } = bind_late(tree)?;
                self.binds.splice(0..0, first);
                self.binds.extend(last);
            }
            let is_directory =
                |bind: &Bind| bind.source.is_dir() || bind.source.starts_with(rootfs);
            let wanted = runtime::mount_points(&directory, &self.binds, is_directory);
            make_mount_points(&skeleton, &mount_points::missing(tree, &wanted)?)?;
        }
        daemon.mount_overlay(Some(&skeleton))?;
        let accounts = Accounts {
            passwd: read_in_root(rootfs, "etc/passwd")?,
            group: read_in_root(rootfs, "etc/group")?,
        };
        let user = self.container.user.as_deref().unwrap_or_else(|| runtime::user(image));
        let setup = Setup {
            args: self.args,
            env: self.container.env.clone(),
            credentials: accounts.resolve(user)?,
            binds: self.binds,
            terminal: self.terminal,
            working_directory: directory,
            hostname: HOSTNAME.to_owned(),
            user_namespace: user_namespace::is_inside(),
        };
        write(&rootfs.with_file_name("config.json"), &runtime::config_json(image, &setup)?)
    }
}

/// Serves the container's root filesystem, runs it to its end by `runtime`, and takes everything
/// down.
///
/// # Errors
/// The image cannot be read, or the container cannot be made.
pub fn run_to_end(
    context: &Context,
    open: &Arc<OpenImage>,
    plan: Plan,
    wanted: Wanted<'_>,
    scratch: &Scratch,
    runtime: &Path,
) -> Result<Ended> {
    let rootfs = plan.mountpoint.clone();
    std::fs::create_dir(&rootfs).map_err(|e| Error::local("cannot make the rootfs", &e))?;
    let (terminal, quiet_stdout) = (wanted.terminal, wanted.quiet_stdout);
    let daemon = Daemon::new(context, open.clone(), plan)?;
    // From here on no signal ends this process: what comes too early waits for the container.
    let signals = Forwarding::new(context)?;
    // Nobody else knows the mount point: there is no need to claim it.
    daemon.serve(None, |mounted| {
        wanted.prepare(&daemon, mounted, scratch, &rootfs)?;
        std::os::unix::fs::symlink(runtime, scratch.path().join(RUNTIME_LINK))
            .map_err(|e| Error::local("cannot note the runtime", &e))?;
        let container = Container::new(runtime, scratch.path(), terminal);
        context.runtime.block_on(container.with_quiet_stdout(quiet_stdout).run(signals))
    })
}

/// Clears what a command left whose process was killed: its container, its mounts, its files.
///
/// # Errors
/// Local trouble.
pub fn clear_dead(context: &Context) -> Result<()> {
    let run = context.run_directory()?;
    end_dead(&run);
    for record in dead(&run) {
        if let Err(error) = unmount::clear(&run, &record.mountpoint, Some(&record), true) {
            tracing::warn!(%error, "cannot clear it");
        }
    }
    Ok(())
}

/// Ends the containers of commands that were killed. Starts no thread.
pub fn end_dead(run: &RunDirectory) {
    for scratch in dead(run).filter_map(|record| record.scratch) {
        tracing::info!(at = %scratch.display(), "clearing what a killed command left");
        let runtime = scratch.join(RUNTIME_LINK);
        if runtime.exists() {
            Container::new(&runtime, &scratch, false).forget();
        }
    }
}

/// What commands wrote down that have a container, and were killed.
fn dead(run: &RunDirectory) -> impl Iterator<Item = Record> {
    let in_scratch = |record: &Record| {
        record.scratch.as_ref().is_some_and(|scratch| record.mountpoint.starts_with(scratch))
    };
    run.all().into_iter().filter(move |record| in_scratch(record) && !record.is_alive())
}

/// Copies of this machine's `resolv.conf` and `hosts`: what a container writes there is its own.
fn copies_of_ours(scratch: &Path) -> Result<Vec<Bind>> {
    // A machine without these files gives empty ones.
    let resolv_conf = std::fs::read(RESOLV_CONF).unwrap_or_default();
    let mut hosts = std::fs::read(HOSTS).unwrap_or_default();
    hosts.extend_from_slice(format!("\n127.0.1.1\t{HOSTNAME}\n").as_bytes());
    let mut binds = Vec::new();
    for (path, bytes) in [(RESOLV_CONF, resolv_conf), (HOSTS, hosts)] {
        let source = scratch.join(path.trim_start_matches("/etc/"));
        write(&source, &bytes)?;
        binds.push(Bind { source, destination: path.to_owned(), read_only: false });
    }
    Ok(binds)
}

/// A file that everybody may read, whatever the umask.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let readable = std::fs::Permissions::from_mode(0o644);
    std::fs::write(path, bytes)
        .and_then(|()| std::fs::set_permissions(path, readable))
        .map_err(|e| Error::local(format!("cannot write {}", path.display()), &e))
}

/// A file of the merged filesystem, its links followed inside `root` only; empty if there is none.
fn read_in_root(root: &Path, path: &str) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::local(format!("cannot read the image's /{path}"), &e);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty());
    let directory = directory.map_err(|e| failed(e.into()))?;
    // What is no file (a FIFO, say) must not keep us waiting.
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = match rustix::fs::openat2(directory, path, flags, Mode::empty(), inside) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(Vec::new()),
        Err(e) => return Err(failed(e.into())),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    file.take(ACCOUNTS_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > ACCOUNTS_BYTES_MAX {
        let message = format!("the image's /{path} is larger than {ACCOUNTS_BYTES_MAX} bytes");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(bytes)
}
