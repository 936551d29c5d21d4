//! Serves a view until it is unmounted or told to end: the daemon's side of `mount`, and beneath
//! what `run` and `bundle` do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::announce::{Told, announce};
use super::args;
use super::background::{ReadyDescriptor, Starter, detach};
use super::context::{Context, OpenImage, absolute};
use super::progress;
use super::traces::{self, Recording};
use crate::fetch::arrival::Progress;
use crate::fetch::how::How;
use crate::fetch::prefetch::{Progress as Prefetched, What};
use crate::fetch::record::Counters as AskedCounters;
use crate::fetch::{Error, ErrorKind, Result};
use crate::fs::complaints::Complaints;
use crate::fs::counters::Counters;
use crate::fs::fuse::Shell;
use crate::fs::images::{self, ViewKind};
use crate::fs::mount::{Mounted, Serving};
use crate::fs::mounts::{Claim, Record, RunDirectory, find_mount, started_ticks};
use crate::fs::overlay;
use crate::fs::passthrough::Passthrough;
use crate::fs::pending::Pending;
use crate::fs::poll::Poll;
use crate::fs::status::{self, LayerStatus, SetAside, Status};
use crate::fs::user_namespace;
use crate::layout::tree::{Layer, Tree};

/// How often to look whether the session has ended, or the overlay was unmounted by hand.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long a blob that the cache's limit has removed takes room on the disk at most.
const RELEASE_EVERY: Duration = Duration::from_secs(5);

/// How long open files may keep a detached mount, and with it the daemon, after SIGTERM.
const DETACHED_ENDS_WITHIN: Duration = Duration::from_secs(2);

/// What is to be mounted, and where.
pub struct Plan<'a> {
    /// The image argument as the user gave it.
    pub image: &'a str,
    /// What to show.
    pub view: ViewKind,
    /// How each layer is going to be read.
    pub hows: Vec<How>,
    /// The canonical mount point.
    pub mountpoint: PathBuf,
    /// The upper directory, absolute: an overlay is on the mount point, the view elsewhere.
    pub upper: Option<PathBuf>,
    /// What is removed with the mount, should this process not come to do it.
    pub scratch: Option<PathBuf>,
    /// Where to write what is needed.
    pub record: Option<PathBuf>,
    /// What is in the image is going to be started.
    pub starts: bool,
}

/// Everything that a running mount consists of.
pub struct Daemon<'a> {
    pub context: &'a Context,
    pub open: Arc<OpenImage>,
    kind: ViewKind,
    run: RunDirectory,
    record: Record,
    /// How each layer was going to be read when the mount began.
    hows: Vec<How>,
    pending: Arc<Pending>,
    counters: Arc<Counters>,
    recording: Option<Arc<Recording>>,
    /// What to fetch ahead, until that begins; and how far it is.
    ahead: Mutex<Option<What>>,
    prefetched: Option<Arc<Prefetched>>,
    /// Listened for from before the mount to its end: at no moment does one leave a dead mount, or
    /// go unheard.
    signals: tokio::sync::Mutex<Signals>,
}

/// Mounts and serves. Returns when the mount is gone.
///
/// # Errors
/// The image cannot be read, or the mount cannot be made.
pub fn run(
    context: &Context,
    args: &args::Mount,
    mountpoint: PathBuf,
    claim: Claim,
) -> Result<i32> {
    let open = Arc::new(context.open(&args.image)?);
    let (image, view) = (args.image.as_str(), args.view);
    let hows = announce(context, &open, view, Told::Everything)?;
    let upper = args.upper.as_ref().map(absolute).transpose()?;
    let record = args.record.as_ref().map(absolute).transpose()?;
    let plan = Plan { image, view, hows, mountpoint, upper, scratch: None, record, starts: true };
    let daemon = Daemon::new(context, open, plan)?;
    daemon.serve(Some(claim), |mounted| {
        if args.no_wait {
            context.runtime.spawn(daemon.build());
        } else {
            daemon.wait_for_view(mounted)?;
        }
        daemon.mount_overlay(None)?;
        // In the background, who has started this process tells.
        if let Some(number) = args.ready_fd.filter(|_| context.starter.is_none()) {
            ReadyDescriptor::open(number)?.tell()?;
        }
        daemon.serve_until_gone(mounted)
    })
}

impl<'a> Daemon<'a> {
    /// What `plan` says, not yet mounted.
    ///
    /// # Errors
    /// Local trouble.
    pub fn new(context: &'a Context, open: Arc<OpenImage>, plan: Plan) -> Result<Self> {
        // Started through /proc/self/exe, it would be called `exe`. A name is not worth failing
        // for.
        let _ = rustix::thread::set_name(c"layoutfs");
        let ahead = traces::wanted(context, &open, plan.starts)?;
        let begin = |path: PathBuf| Recording::begin(open.clone(), &path);
        let recording = plan.record.map(begin).transpose()?;
        let run = context.run_directory()?;
        let lower = match &plan.upper {
            Some(_) => Some(run.make_lower(&plan.mountpoint)?),
            None => None,
        };
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let record = Record {
            mountpoint: plan.mountpoint,
            pid,
            started_ticks: started_ticks(pid).unwrap_or(0),
            image: plan.image.to_owned(),
            view: plan.view.name().to_owned(),
            lower,
            upper: plan.upper,
            scratch: plan.scratch,
        };
        let signals = Signals::new(context)?.into();
        Ok(Daemon {
            context,
            open,
            kind: plan.view,
            hows: plan.hows,
            run,
            record,
            pending: Arc::default(),
            counters: Arc::default(),
            recording,
            prefetched: ahead.as_ref().map(|_| Arc::default()),
            ahead: Mutex::new(ahead),
            signals,
        })
    }

    /// Mounts the view, does `work`, and takes everything down, however `work` ends. `claim` keeps
    /// others from the mount point until the record says whose it is.
    ///
    /// # Errors
    /// The view cannot be mounted, or those of `work`.
    pub fn serve<T>(
        &self,
        claim: Option<Claim>,
        work: impl FnOnce(&Mounted) -> Result<T>,
    ) -> Result<T> {
        let modes = self.context.modes.serving;
        let serving = Serving { passes: modes.passes && self.may_pass(), ..modes };
        let shell = Shell {
            view: self.pending.clone(),
            counters: self.counters.clone(),
            runtime: self.context.runtime.handle().clone(),
            notifier: Arc::default(),
            complaints: Arc::new(Complaints::new(&self.record.image)),
            open_files: Arc::default(),
            passthrough: Arc::new(Passthrough::new(serving.passes)),
            pusher: Arc::default(),
            serving,
            poll: Arc::new(Poll::new(serving.event_threads())),
            ended: Arc::default(),
        };
        let view_at = self.record.lower.as_deref().unwrap_or(&self.record.mountpoint);
        let mounted = Mounted::start(shell, view_at)?;
        self.release_evicted();
        if let Some(recording) = &self.recording {
            self.context.runtime.spawn(recording.clone().keep(self.pending.clone()));
        }
        let served = self.answer_status(claim).and_then(|()| work(&mounted));
        self.end(&mounted);
        served
    }

    /// Whole blobs may be read past us: by the kernel's rules by root alone, where it is the view of a
    /// layout, on which nobody stacks overlays, and where no trace has to know of every read.
    fn may_pass(&self) -> bool {
        let is_root = rustix::process::geteuid().is_root() && !user_namespace::is_inside();
        is_root && self.kind == ViewKind::Layout && self.recording.is_none()
    }

    fn answer_status(&self, claim: Option<Claim>) -> Result<()> {
        let run = self.run.clone();
        // Nobody needs to wait for that, and there may be many.
        self.context.runtime.spawn_blocking(move || run.remove_leftovers());
        self.run.write(&self.record)?;
        drop(claim);
        status::serve(&self.run.socket(&self.record.mountpoint), self.reporter()?)
    }

    /// The merged filesystem, once [`Daemon::wait_for_view`] has worked.
    pub fn tree(&self) -> Option<&Tree> {
        self.pending.get().map(|view| view.tree())
    }

    /// The overlay, where an upper directory is given; `skeleton` lies below the view. Then, as
    /// the options say, layers are fetched behind the readers' backs.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn mount_overlay(&self, skeleton: Option<&Path>) -> Result<()> {
        if let (Some(lower), Some(upper)) = (&self.record.lower, &self.record.upper) {
            let lowers: Vec<&Path> = std::iter::once(lower.as_path()).chain(skeleton).collect();
            overlay::mount(&lowers, upper, &self.record.mountpoint)?;
        }
        self.prefetch();
        Ok(())
    }

    /// Says that the tree answers, and serves until somebody unmounts it or ends this process.
    ///
    /// # Errors
    /// Nobody can be told.
    pub fn serve_until_gone(&self, mounted: &Mounted) -> Result<i32> {
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::debug!(%error, "no service manager to tell");
        }
        if self.context.starter.is_some() {
            detach(&self.run.log(&self.record.mountpoint))?;
        }
        self.context.runtime.block_on(self.wait_for_end(mounted));
        Ok(0)
    }

    /// Builds the view; after a failure anew whenever somebody asks.
    fn build(&self) -> impl Future<Output = ()> + Send + 'static {
        let (open, pending) = (self.open.clone(), self.pending.clone());
        let (kind, policy) = (self.kind, self.context.options.verify);
        async move {
            let build = || images::build(&open.store, &open.image, kind, policy);
            let failed = |error: &Error| tracing::error!(%error, "cannot build the view");
            pending.build(build, failed).await;
        }
    }

    /// Waits for the view, with progress bars. A failure ends the mount.
    ///
    /// # Errors
    /// A layer cannot be had, or somebody ends this process meanwhile.
    pub fn wait_for_view(&self, mounted: &Mounted) -> Result<()> {
        let (open, kind, policy) = (&self.open, self.kind, self.context.options.verify);
        let blobs: Vec<_> = open.image.manifest.layers.iter().map(|l| l.blob).collect();
        let build = images::build(&open.store, &open.image, kind, policy);
        let shown = progress::show(&open.store, &blobs, self.context.options.quiet, build);
        // Nobody would learn that the tree is there: then it is not fetched for nobody.
        let is_alone = || self.context.starter.is_some_and(Starter::is_gone);
        let view = self.context.runtime.block_on(async {
            tokio::select! {
                view = shown => view,
                () = self.end_of(|| mounted.has_ended() || is_alone()) => Err(interrupted()),
            }
        })?;
        self.pending.set(view);
        Ok(())
    }

    /// As long as this process lives, every now and then.
    fn release_evicted(&self) {
        let pending = self.pending.clone();
        self.context.runtime.spawn(async move {
            let mut ticks = tokio::time::interval(RELEASE_EVERY);
            loop {
                ticks.tick().await;
                if let Some(view) = pending.get() {
                    view.release_evicted();
                }
            }
        });
    }

    /// Brings what is not local of what the options say, behind the readers' backs.
    fn prefetch(&self) {
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(what), Some(progress)) = (ahead, &self.prefetched) {
            let (open, pending) = (self.open.clone(), self.pending.clone());
            self.context.runtime.spawn(traces::prefetch(open, pending, what, progress.clone()));
        }
    }

    async fn wait_for_end(&self, mounted: &Mounted) {
        let overlay_at = self.record.lower.as_ref().map(|_| self.record.mountpoint.as_path());
        let is_bare = || overlay_at.is_some_and(|path| find_mount(path).is_none());
        self.end_of(|| mounted.has_ended() || is_bare()).await;
    }

    /// Waits for a signal that ends a mount, or until `gone` says yes.
    async fn end_of(&self, gone: impl Fn() -> bool) {
        self.signals.lock().await.wait(gone).await;
    }

    /// Takes down what is still there: overlay, view, record.
    fn end(&self, mounted: &Mounted) {
        if self.record.lower.is_some() && find_mount(&self.record.mountpoint).is_some() {
            let unmounted = crate::fs::mount::unmount_path(&self.record.mountpoint, true);
            if let Err(error) = unmounted {
                tracing::warn!(%error, "cannot unmount the overlay");
            }
        }
        mounted.unmount();
        let until = std::time::Instant::now() + DETACHED_ENDS_WITHIN;
        while !mounted.has_ended() && std::time::Instant::now() < until {
            std::thread::sleep(LOOK_EVERY);
        }
        if let (Some(recording), Some(_)) = (&self.recording, self.pending.get()) {
            recording.write();
        }
        if let Some(upper) = &self.record.upper {
            overlay::remove_work_directory(upper);
        }
        self.run.remove(&self.record);
    }

    fn reporter(&self) -> Result<impl Fn() -> Status + Send + 'static> {
        let (open, pending) = (self.open.clone(), self.pending.clone());
        let (counters, prefetched) = (self.counters.clone(), self.prefetched.clone());
        let (record, is_asked) = (self.record.clone(), self.context.options.prefetch.is_some());
        let log = self.run.log(&record.mountpoint);
        let layers = match self.kind {
            ViewKind::Layout => open.image.layers().unwrap_or_default(),
            _ => open.image.layers()?,
        };
        let hows = self.hows.iter().copied().map(Some).chain(std::iter::repeat(None));
        let layers: Vec<_> = layers.into_iter().zip(hows).collect();
        Ok(move || {
            let prefetch = prefetched.as_ref().map(|prefetched| prefetched.shown());
            // Nobody has asked for what landmarks say: where there is none, nothing is told.
            let prefetch = prefetch.filter(|shown| is_asked || shown.bytes_wanted > 0);
            let status = report(&record, &open, &layers, &pending, &counters, &log);
            Status { prefetch, ..status }
        })
    }
}

fn report(
    record: &Record,
    open: &OpenImage,
    layers: &[(Layer, Option<How>)],
    pending: &Pending,
    counters: &Counters,
    log: &Path,
) -> Status {
    let asked = open.asked.now();
    let reader_of = |layer: &Layer| {
        let mut readers = pending.get()?.readers().iter();
        readers.find(|reader| reader.layer().blob.digest == layer.blob.digest).cloned()
    };
    let layers_now = layers.iter().map(|(layer, how)| {
        let by_spans = reader_of(layer).map_or(0, |reader| reader.resident_bytes());
        layer_status(open, layer, *how, by_spans)
    });
    let messages: BTreeMap<String, u64> =
        counters.messages().into_iter().map(|(n, c)| (n.to_owned(), c)).collect();
    Status {
        mountpoint: record.mountpoint.clone(),
        image: record.image.clone(),
        view: record.view.clone(),
        pid: record.pid,
        ready: pending.get().is_some(),
        layers: layers_now.collect(),
        requests: asked.requests,
        retries: asked.retries,
        hedges: asked.hedges,
        set_aside: set_aside(&open.asked),
        errors: asked.errors,
        bytes_fetched: asked.bytes,
        bytes_passed: open.store.passed.load(Ordering::Relaxed),
        bytes_read: counters.bytes_read(),
        opens_passed_through: counters.passed(),
        files_pushed: counters.pushes(),
        flows: counters.flows(),
        bytes_total: layers.iter().fold(0, |sum, (l, _)| l.blob.size.saturating_add(sum)),
        read_errors: counters.read_errors(),
        messages,
        prefetch: None,
        cache_trouble: open.store.cache().trouble(),
        log: log.to_owned(),
    }
}

fn set_aside(asked: &AskedCounters) -> Vec<SetAside> {
    let known = asked.all_set_aside().into_iter();
    let told = known.map(|(source, blob, or_index)| {
        let or_index = or_index.map(|artifact| artifact.to_string());
        SetAside { source, blob: blob.to_string(), or_index }
    });
    told.collect()
}

/// Looks at memory only: a status is asked for again and again. `by_spans`: bytes of a layer that is
/// read span by span.
fn layer_status(open: &OpenImage, layer: &Layer, how: Option<How>, by_spans: u64) -> LayerStatus {
    let size = super::units::size(layer.blob.size);
    let began = how.map_or("fetched whole when it is read".to_owned(), |how| how.describe(&size));
    let (resident, how) = match open.store.progress(&layer.blob) {
        Some(Progress { outcome: Some(Ok(())), resident, .. }) => {
            let is_local = !open.store.is_partly_kept(&layer.blob);
            let how = if is_local { "local" } else { "proved; what the cache lacks comes again" };
            (resident, how.to_owned())
        }
        Some(Progress { outcome: Some(Err(error)), resident, .. }) => (resident, error.to_string()),
        Some(Progress { resident, .. }) => (resident, "streaming".to_owned()),
        None if how == Some(How::Local) => (layer.blob.size, began),
        None => (by_spans, began),
    };
    let used = open.store.uses.of(&layer.blob);
    let (bytes_fetched, bytes_used) = (open.asked.bytes_of(&layer.blob.digest), used.got_bytes());
    LayerStatus {
        digest: layer.blob.digest.to_string(),
        diff_id: layer.diff_id.to_string(),
        size: layer.blob.size,
        media_type: layer.media_type.clone(),
        how,
        resident,
        bytes_fetched,
        bytes_used,
        opens_passed_through: used.passed(),
        amplification: (bytes_used > 0 && used.passed() == 0)
            .then(|| bytes_fetched as f64 / bytes_used as f64),
        bytes_never_needed: used.never_needed_bytes(),
    }
}

/// The signals that end a mount.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new(context: &Context) -> Result<Self> {
        let _runtime = context.runtime.enter();
        let listen = |kind| signal(kind).map_err(|e| Error::local("cannot listen for signals", &e));
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal, or until `gone` says yes.
    async fn wait(&mut self, gone: impl Fn() -> bool) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => return,
                _ = ticks.tick() => if gone() { return },
            }
        }
    }
}

/// A view that is not ready when its mount ends.
fn interrupted() -> Error {
    Error::new(ErrorKind::Local, "interrupted before the tree was there")
}
