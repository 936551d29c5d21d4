//! `layoutfs extend`: run-image extension around the lifecycle's own extender.
//!
//! The extender runs in a container whose root filesystem is the lazily mounted run image. What it
//! writes appears in `<layers>/extended/run` when all of it is right, and not before.

mod mode;
mod phases;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use serde_json::{Value, json};

use super::announce::{Told, announce};
use super::commit::{Commission, Outcome, Target, commit, former_images};
use super::container::{self, LateBinds, Wanted};
use super::context::{Context, OpenImage, print_json};
use super::units::size;
use super::{args, oci_runtime};
use crate::fetch::image::{Selected, document};
use crate::fetch::kaniko::write_base;
use crate::fetch::layer_file::Compression;
use crate::fetch::layout_dir::read_blob_document;
use crate::fetch::{Error, ErrorKind, Result};
use crate::fs::images::ViewKind;
use crate::fs::scratch::Scratch;
use crate::layout::buildpacks::joined_history;
use crate::layout::changeset::Excluded;
use crate::layout::oci::{Document, ImageConfig, parse_document};
use crate::layout::runtime::{Bind, ROOTFS};
use crate::layout::shadow::top_directories;
use crate::layout::tree::Tree;
use mode::{Case, Decision};
use phases::{Phases, find_layout, variable};

/// Where the lifecycle's programs are in containers, and the one that is started.
const LIFECYCLE: &str = "/cnb/lifecycle";
const EXTENDER: &str = "/cnb/lifecycle/extender";

/// Where it finds what the phases left, the application, and its own directory.
const LAYERS: &str = "/layers";
const APP: &str = "/workspace";
const KANIKO: &str = "/kaniko";

/// Top-level directories that the container has mounts in or for: they are not the image's.
const TAKEN: [&str; 5] = ["cnb", "kaniko", "layers", "platform", "workspace"];

/// What the extender and kaniko ignore beside mount points, and the mount points themselves.
const NOT_COMMITTED: [&str; 6] =
    ["cnb/lifecycle", "etc/mtab", "kaniko", "layers", "platform", "var/run"];

/// What the phases get from the platform, and the extender too. (What it must not get: credentials,
/// which a `RUN` would see.)
const PASSED_ON: [&str; 14] = [
    "CNB_PLATFORM_API",
    "CNB_EXPERIMENTAL_MODE",
    "CNB_USER_ID",
    "CNB_GROUP_ID",
    "CNB_LOG_LEVEL",
    "CNB_NO_COLOR",
    "CNB_KANIKO_CACHE_TTL",
    "SNAPSHOT_TIMEOUT_DURATION",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
];

/// What temporary directories of ours are called.
const TEMPORARY: &str = ".layoutfs-";

/// Everything that is known before something is mounted.
struct Extension<'a> {
    context: &'a Context,
    args: &'a args::Extend,
    phases: Phases,
    open: Arc<OpenImage>,
    /// The extender, as it will be seen in the container.
    extender: Bind,
    /// Where the extender writes: beside `<layers>/extended/run`.
    written: tempfile::TempDir,
    scratch: Scratch,
}

pub fn run(context: &Context, args: &args::Extend) -> Result<i32> {
    let phases = Phases::read(args)?;
    let _alone = lock(&phases.layers)?;
    let extended = phases.extended();
    clear_former(&extended)?;
    let Some(run_image) = &phases.run_image else {
        context.say(format_args!("nothing to extend: analyzed.toml does not ask for it"));
        return match context.options.json {
            true => print_json(&json!({ "mode": "none", "digest": Value::Null })).map(|()| 0),
            false => Ok(0),
        };
    };
    let runtime = oci_runtime::find(args.runtime.as_deref())?;
    let extender = find_extender(&args.lifecycle)?;
    let layout = find_layout(run_image, &args.layout_dir)?;
    container::clear_dead(context)?;
    let digest = run_image.digest().map(|digest| digest.to_string());
    let open = Arc::new(context.open_layout(&layout, digest.as_deref())?);
    let written = new_directory(&extended)?;
    let scratch = container::scratch(context)?;
    let extension = Extension { context, args, phases, open, extender, written, scratch };
    extension.run(&layout, &runtime)
}

impl Extension<'_> {
    fn run(self, layout: &Path, runtime: &Path) -> Result<i32> {
        let (context, open) = (self.context, &self.open);
        let kaniko = self.args.kaniko.clone().unwrap_or_else(|| self.scratch.path().join("cache"));
        context.runtime.block_on(write_base(&open.store, &open.image, &kaniko))?;
        let hows = announce(context, open, ViewKind::Rootfs, Told::Waiting)?;
        let has_triggers = self.has_triggers()?;
        let rootfs = self.scratch.path().join(ROOTFS);
        let decided = OnceCell::new();
        let container = self.container(&kaniko)?;
        let command = [EXTENDER, "-kind", "run", "-app", APP, "-layers", LAYERS];
        let command = command.map(str::to_owned);
        let image = &open.image.config.configuration;
        let mut wanted = Wanted::new(image, &container, &command, false)?;
        wanted.working_directory = Some("/".to_owned());
        wanted.quiet_stdout = context.options.json;
        wanted.starts = false;
        wanted.bind_late = Some(Box::new(|tree| {
            let decision = self.decide(tree, has_triggers)?;
            context.say(format_args!("mode: {}: {}", decision.name(), decision.reason));
            let binds = late_binds(&decision, &rootfs, &kaniko)?;
            decided.get_or_init(|| decision);
            Ok(binds)
        }));
        let name = layout.to_string_lossy();
        let plan = wanted.plan(&name, hows, rootfs.clone(), &self.scratch)?;
        let ended = container::run_to_end(context, open, plan, wanted, &self.scratch, runtime)?;
        if let Some(said) = ended.not_started {
            let message = format!("the runtime could not start the extender: {said}");
            return Err(Error::new(ErrorKind::CannotMount, message));
        }
        let Some(decision) = decided.into_inner() else {
            return Err(Error::new(ErrorKind::Local, "the container ended before it began"));
        };
        match (ended.code, ended.asked_to_end) {
            (0, _) => self.succeed(&decision),
            // Its own code for that, 2, means something else here.
            (_, Some(signal)) => self.fail(128 + signal.as_raw(), &decision),
            (code, None) => self.fail(code, &decision),
        }
    }

    /// What the extender's container is to be.
    fn container(&self, kaniko: &Path) -> Result<args::Container> {
        let own = self.scratch.path();
        let make = |path: PathBuf| {
            std::fs::create_dir_all(&path)
                .map_err(|e| Error::local(format!("cannot make {}", path.display()), &e))?;
            Ok::<_, Error>(path)
        };
        // The extender's own directory ends with it; what is kept of it is mounted in.
        let kaniko_dir = make(own.join("kaniko"))?;
        make(kaniko_dir.join("cache/layers"))?;
        make(kaniko_dir.join("cache/base"))?;
        let app = match &self.phases.app {
            Some(app) => app.clone(),
            None => make(own.join("app"))?,
        };
        let bind = |source: &Path, destination: &str, read_only| Bind {
            source: source.to_owned(),
            destination: destination.to_owned(),
            read_only,
        };
        let mut env: Vec<String> = PASSED_ON
            .iter()
            .filter_map(|name| Some(format!("{name}={}", variable(name)?)))
            .collect();
        env.push(format!("KANIKO_DIR={KANIKO}"));
        Ok(args::Container {
            bind: vec![
                self.extender.clone(),
                bind(&self.phases.layers, LAYERS, false),
                bind(self.written.path(), &format!("{LAYERS}/extended"), false),
                bind(&app, APP, false),
                bind(&kaniko_dir, KANIKO, false),
                bind(&kaniko.join("cache/base"), &format!("{KANIKO}/cache/base"), true),
            ],
            env,
            user: Some("0:0".to_owned()),
            upper: Some(own.join("upper")),
            record: None,
        })
    }

    fn decide(&self, tree: &Tree, has_triggers: bool) -> Result<Decision> {
        let configuration = &self.open.image.config.configuration;
        let directory = configuration.config().as_ref().and_then(|c| c.working_dir().as_deref());
        let case = Case {
            tree,
            directories: top_directories(tree, &TAKEN),
            working_directory: directory.filter(|path| !path.is_empty()),
            has_triggers,
            dockerfiles: &self.phases.dockerfiles,
        };
        case.decide(self.args.mode)
    }

    /// The image has instructions (`ONBUILD`) for whoever builds on it: kaniko follows them.
    fn has_triggers(&self) -> Result<bool> {
        let OpenImage { image, store, .. } = &*self.open;
        let directory = &image.selected.directory;
        let config = document(store, directory, &image.manifest.config);
        let bytes = self.context.runtime.block_on(config)?;
        let config: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let triggers = config.pointer("/config/OnBuild").and_then(Value::as_array);
        Ok(triggers.is_some_and(|triggers| !triggers.is_empty()))
    }

    /// The extender did its work: puts what came of it in place.
    fn succeed(&self, decision: &Decision) -> Result<i32> {
        let written = former_images(&self.written.path().join("run"))?;
        let [image] = &written[..] else {
            let message = format!("the extender left {} images, expected one", written.len());
            return Err(Error::new(ErrorKind::Invalid, message));
        };
        let name = image.file_name().unwrap_or_default().to_owned();
        let (digest, outcome) = match decision.is_shadow {
            true => {
                let outcome = self.commit(&self.created_by(image)?)?;
                (outcome.digest().to_string(), Some(outcome))
            }
            false => {
                let (from, to) = (self.written.path().join("run"), self.phases.extended());
                std::fs::rename(&from, to.join("run"))
                    .map_err(|e| Error::local(format!("cannot write in {}", to.display()), &e))?;
                (name.to_string_lossy().into_owned(), None)
            }
        };
        self.report(decision, &digest, outcome.as_ref())?;
        Ok(0)
    }

    fn commit(&self, created_by: &str) -> Result<Outcome> {
        let excluded = NOT_COMMITTED.iter().map(|path| path.as_bytes());
        let excluded = excluded.chain([&APP.as_bytes()[1..]]);
        let excluded = Excluded::new(excluded).map_err(|why| Error::new(ErrorKind::Local, why))?;
        let outcome = commit(
            self.context,
            &Commission {
                upper: &self.scratch.path().join("upper"),
                base: &self.open,
                excluded,
                // The exporter reads nothing else.
                compression: Compression::Gzip,
                created_by,
                target: Target::Extended(self.phases.extended()),
                settings_from: Some(self.written.path()),
            },
        )?;
        outcome.say(self.context);
        Ok(outcome)
    }

    /// One line of history for all that the extender's image says it did.
    fn created_by(&self, image: &Path) -> Result<String> {
        let selected = Selected::open(image, None, &self.context.platform)?;
        let missing = || {
            let message = format!("{}: the extender's image is not whole", image.display());
            Error::new(ErrorKind::Invalid, message)
        };
        let descriptor = &selected.descriptor;
        let bytes = read_blob_document(image, &descriptor.blob)?.ok_or_else(missing)?;
        let Document::Manifest(manifest) = parse_document(descriptor, &bytes)? else {
            return Err(missing());
        };
        let bytes = read_blob_document(image, &manifest.config.blob)?.ok_or_else(missing)?;
        let config = ImageConfig::parse(&manifest.config, &bytes)?;
        let history = config.configuration.history().as_deref().unwrap_or_default();
        let steps = history.iter().filter_map(|step| step.created_by().as_deref());
        Ok(joined_history(steps).unwrap_or_else(|| self.phases.created_by()))
    }

    /// The extender's exit code is this command's; nothing is in `<layers>/extended/run`.
    fn fail(&self, code: i32, decision: &Decision) -> Result<i32> {
        let extended = self.phases.extended();
        self.context.say(format_args!(
            "layoutfs: the extender failed (exit code {code}, mode {}): what it says stands above; \
             {} is as empty as before",
            decision.name(),
            extended.join("run").display()
        ));
        let asked = self.open.asked.now();
        if asked.errors > 0 {
            self.context.say(format_args!(
                "layoutfs: {} requests for the run image failed meanwhile: see the log lines above",
                asked.errors
            ));
        }
        Ok(code)
    }

    fn report(&self, decision: &Decision, digest: &str, outcome: Option<&Outcome>) -> Result<()> {
        let asked = self.open.asked.now();
        let layers = self.open.image.layers()?;
        let total = layers.iter().fold(0, |sum: u64, l| sum.saturating_add(l.blob.size));
        let directory = self.phases.extended().join("run").join(digest);
        if self.context.options.json {
            let layer = outcome.and_then(Outcome::layer);
            return print_json(&json!({
                "mode": decision.name(),
                "reason": decision.reason,
                "digest": digest,
                "directory": directory,
                "layer": layer.map(|layer| layer.digest.to_string()),
                "bytes_fetched": asked.bytes,
                "bytes_total": total,
                "requests": asked.requests,
            }));
        }
        self.context.say(format_args!(
            "extended: fetched {} of {} of layers, in {} requests",
            size(asked.bytes),
            size(total),
            asked.requests
        ));
        out!("{digest}");
        Ok(())
    }
}

/// In shadow mode the directories on themselves; in plain mode kaniko's cache of layers (those of
/// shadow mode are incomplete, and are forgotten).
fn late_binds(decision: &Decision, rootfs: &Path, kaniko: &Path) -> Result<LateBinds> {
    let bind = |source, destination| Bind { source, destination, read_only: false };
    if decision.is_shadow {
        let on_itself = |name: &String| bind(rootfs.join(name), format!("/{name}"));
        let first = decision.shadowed.iter().map(on_itself).collect();
        return Ok(LateBinds { first, last: Vec::new() });
    }
    let layers = kaniko.join("cache/layers");
    std::fs::create_dir_all(&layers)
        .map_err(|e| Error::local(format!("cannot make {}", layers.display()), &e))?;
    let last = vec![bind(layers, format!("{KANIKO}/cache/layers"))];
    Ok(LateBinds { first: Vec::new(), last })
}

/// The lifecycle's programs in `directory`, so that the extender is at [`EXTENDER`]: all of them, or
/// the one program of all phases under that name, if its link would lead nowhere in a container.
fn find_extender(directory: &Path) -> Result<Bind> {
    let bind = |source: PathBuf, destination: &str| Bind {
        source,
        destination: destination.to_owned(),
        read_only: true,
    };
    let place = directory.join("extender");
    let inside = match std::fs::read_link(&place) {
        // The link may say where the program is in the lifecycle's own image.
        Ok(link) if link.is_absolute() => link.strip_prefix(LIFECYCLE).ok().map(Path::to_owned),
        Ok(link) => Some(link),
        Err(_) => Some(PathBuf::from("extender")),
    };
    if let (Some(inside), Ok(directory)) = (inside, directory.canonicalize())
        && let Ok(program) = directory.join(inside).canonicalize()
        && program.is_file()
        && program.starts_with(&directory)
    {
        return Ok(bind(directory, LIFECYCLE));
    }
    let alone = ["extender", "lifecycle"]
        .iter()
        .find_map(|name| directory.join(name).canonicalize().ok().filter(|path| path.is_file()));
    alone.map(|program| bind(program, EXTENDER)).ok_or_else(|| {
        let message = format!(
            "no extender in {}: say with --lifecycle where the lifecycle's binaries are (in its \
             image: {LIFECYCLE})",
            directory.display()
        );
        Error::new(ErrorKind::NotFound, message)
    })
}

/// Only one command at a time extends into a layers directory; the lock ends with the file.
fn lock(layers: &Path) -> Result<std::fs::File> {
    let failed = |e: &std::io::Error| Error::local(format!("cannot open {}", layers.display()), e);
    let directory = std::fs::File::open(layers).map_err(|e| failed(&e))?;
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(directory),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let message = format!("another `extend` is at work in {}", layers.display());
            Err(Error::new(ErrorKind::Busy, message))
        }
        Err(e) => Err(failed(&e.into())),
    }
}

/// An extended image of another run must not be exported: the exporter takes what it finds.
fn clear_former(extended: &Path) -> Result<()> {
    let run = extended.join("run");
    let failed = |path: &Path, e: &std::io::Error| {
        Error::local(format!("cannot remove {}", path.display()), e)
    };
    for image in former_images(&run)? {
        std::fs::remove_dir_all(&image).map_err(|e| failed(&image, &e))?;
    }
    match std::fs::remove_dir(&run) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(&run, &e)),
        _ => Ok(()),
    }
}

/// A new directory in `extended`; those of commands that were killed go.
fn new_directory(extended: &Path) -> Result<tempfile::TempDir> {
    let failed =
        |e: std::io::Error| Error::local(format!("cannot write in {}", extended.display()), &e);
    std::fs::create_dir_all(extended).map_err(failed)?;
    for entry in std::fs::read_dir(extended).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            std::fs::remove_dir_all(entry.path()).map_err(failed)?;
        }
    }
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    let new = tempfile::Builder::new().prefix(TEMPORARY).permissions(readable).tempdir_in(extended);
    new.map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_extender_is_found_however_its_directory_is_made() {
        let base = tempfile::tempdir().expect("a directory");
        let base = base.path().canonicalize().expect("a path");
        let made = |name: &str, link: Option<&str>| {
            let directory = base.join(name);
            std::fs::create_dir(&directory).expect("made");
            std::fs::write(directory.join("lifecycle"), "x").expect("written");
            if let Some(link) = link {
                symlink(link, directory.join("extender")).expect("linked");
            }
            directory
        };
        let elsewhere = made("elsewhere", None).join("lifecycle");
        for (name, link, alone) in [
            ("relative", Some("lifecycle"), None),
            ("as-in-its-image", Some("/cnb/lifecycle/lifecycle"), None),
            ("absolute", elsewhere.to_str(), Some(&elsewhere)),
            ("away", Some("../elsewhere/lifecycle"), Some(&elsewhere)),
        ] {
            let directory = made(name, link);
            let bind = find_extender(&directory).expect("found");
            let expected = match alone {
                Some(program) => (program.clone(), EXTENDER),
                None => (directory, LIFECYCLE),
            };
            assert_eq!((bind.source, &*bind.destination), expected, "{name}");
        }
        let bind = find_extender(&made("bare", None)).expect("found");
        assert_eq!((bind.source, &*bind.destination), (base.join("bare/lifecycle"), EXTENDER));
        find_extender(&base).expect_err("none");
    }
}
