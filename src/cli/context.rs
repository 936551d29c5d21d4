//! What every command needs: the environment, the cache, and stores over an image's sources.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::args::Options;
use super::background::Starter;
use super::index_choice::IndexChoice;
use super::modes::Modes;
use super::sources;
use crate::fetch::auth::keychain::KeychainConfig;
use crate::fetch::cache::Cache;
use crate::fetch::failover::Failover;
use crate::fetch::image::{Image, Selected};
use crate::fetch::record::{Counters, Record};
use crate::fetch::registry::{Registries, Registry};
use crate::fetch::resolve::resolve;
use crate::fetch::retry::Retry;
use crate::fetch::store::{self, Store};
use crate::fetch::{Deadline, Error, ErrorKind, Result, Source};
use crate::fs::mounts::RunDirectory;
use crate::fs::user_namespace;
use crate::layout::image_argument::{ImageArgument, Selector};
use crate::layout::oci::Platform;
use crate::layout::reference::Reference;

/// The options and the environment.
pub struct Context {
    /// As given.
    pub options: Options,
    /// What images are chosen for.
    pub platform: Platform,
    /// Runs everything that waits.
    pub runtime: tokio::runtime::Runtime,
    /// What tests change.
    pub modes: Modes,
    /// This process serves in the background; whoever started it waits until the tree answers.
    pub starter: Option<Starter>,
    cache: OnceLock<Cache>,
    /// Where layouts for `docker://` are made when the cache cannot be written to.
    scratch_layouts: OnceLock<PathBuf>,
}

/// An image that can be read.
pub struct OpenImage {
    /// The image.
    pub image: Image,
    /// Where its blobs are.
    pub store: Arc<Store>,
    /// What was asked of the sources.
    pub asked: Arc<Counters>,
}

impl Context {
    /// Reads the environment.
    ///
    /// # Errors
    /// Local trouble.
    pub fn new(options: &Options, starter: Option<i32>) -> Result<Self> {
        let modes = Modes::from_env()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name("fetch")
            .build()
            .map_err(|e| Error::local("cannot start threads", &e))?;
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let (cache, scratch_layouts) = (OnceLock::new(), OnceLock::new());
        let (options, starter) = (options.clone(), starter.map(Starter));
        Ok(Context { options, platform, runtime, modes, starter, cache, scratch_layouts })
    }

    /// Removes what was made for this process alone.
    pub fn clean_up(&self) {
        if let Some(path) = self.scratch_layouts.get() {
            let _ = std::fs::remove_dir_all(path);
        }
    }

    /// The cache: `--cache-dir`, else below `$XDG_CACHE_HOME` or `~/.cache`, for root in
    /// `/var/cache`. One that cannot be written to is told once.
    ///
    /// # Errors
    /// It is not to be trusted, or cannot be a directory.
    pub fn cache(&self) -> Result<Cache> {
        if let Some(cache) = self.cache.get() {
            return Ok(cache.clone());
        }
        let cache = Cache::open(&self.cache_directory()?, self.options.cache_limit)?;
        Ok(self.cache.get_or_init(|| cache).clone())
    }

    fn cache_directory(&self) -> Result<PathBuf> {
        if let Some(directory) = &self.options.cache_dir {
            return absolute(directory);
        }
        if let Some(cache) = directory_of("XDG_CACHE_HOME") {
            return Ok(cache.join("layoutfs"));
        }
        if user_namespace::owns_machine() {
            return Ok(PathBuf::from("/var/cache/layoutfs"));
        }
        let home = directory_of("HOME").ok_or_else(|| {
            let message = "neither XDG_CACHE_HOME nor HOME is set: use --cache-dir";
            Error::new(ErrorKind::Usage, message)
        })?;
        Ok(home.join(".cache/layoutfs"))
    }

    /// See [`run_directory`].
    ///
    /// # Errors
    /// Local trouble.
    pub fn run_directory(&self) -> Result<RunDirectory> {
        run_directory()
    }

    /// A sentence for people, on standard error.
    pub fn say(&self, text: std::fmt::Arguments<'_>) {
        if !self.options.quiet {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Reads IMAGE as it was given.
    ///
    /// # Errors
    /// It is none of the forms.
    pub fn argument(&self, text: &str) -> Result<ImageArgument> {
        Ok(ImageArgument::parse(text, |directory| Path::new(directory).is_dir())?)
    }

    /// Opens IMAGE: its layout (made in the cache first for `docker://`), its sources, its
    /// manifest and configuration.
    ///
    /// # Errors
    /// Any of these cannot be had.
    pub fn open(&self, text: &str) -> Result<OpenImage> {
        let argument = self.argument(text)?;
        // Nobody prunes the layout between its making and its reading.
        let _held = match argument {
            ImageArgument::Registry(_) => self.cache()?.hold_layouts(),
            ImageArgument::Layout { .. } => None,
        };
        let (directory, selector) = match argument {
            ImageArgument::Layout { directory, selector } => (absolute(&directory)?, selector),
            ImageArgument::Registry(reference) => (self.layout_of(&reference)?, None),
        };
        let selector = selector.map(|s| match s {
            Selector::Tag(tag) => tag,
            Selector::Digest(digest) => digest.to_string(),
        });
        self.open_layout(&directory, selector.as_deref())
    }

    /// Opens the image of a layout directory that `reference` (a tag or a digest) names.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub fn open_layout(&self, directory: &Path, reference: Option<&str>) -> Result<OpenImage> {
        let selected = Selected::open(directory, reference, &self.platform)?;
        let asked = Arc::<Counters>::default();
        let store = self.store(&selected, &asked)?;
        let image = self.runtime.block_on(Image::load(&store, selected, &self.platform))?;
        Ok(OpenImage { image, store, asked })
    }

    /// The directory of a layout that is on disk.
    ///
    /// # Errors
    /// IMAGE is in a registry.
    pub fn layout_directory(&self, text: &str) -> Result<PathBuf> {
        match self.argument(text)? {
            ImageArgument::Layout { directory, .. } => absolute(&directory),
            ImageArgument::Registry(_) => {
                let message = "this needs a layout on disk: oci:DIR or a directory";
                Err(Error::new(ErrorKind::Usage, message))
            }
        }
    }

    /// As [`Context::open`], but nothing is asked of a registry.
    ///
    /// # Errors
    /// The documents are not all local.
    pub fn open_offline(&self, text: &str) -> Result<OpenImage> {
        let offline = Options { offline: true, ..self.options.clone() };
        Context::new(&offline, None)?.open(text)
    }

    /// The sparse layout of an image in a registry, in the cache. Asked anew each time, unless
    /// `--offline`: a tag can move.
    fn layout_of(&self, reference: &Reference) -> Result<PathBuf> {
        let cache = self.cache()?;
        let directory = cache.layouts().join(reference.layout_path());
        if self.options.offline {
            if !directory.join("index.json").exists() {
                let message =
                    format!("docker://{reference} is not in the cache, and --offline is set");
                return Err(Error::new(ErrorKind::Offline, message));
            }
        } else {
            let registry = self.registries()?.repository(reference);
            let deadline = Deadline::after(self.options.deadline);
            let resolved = resolve(&registry, reference, &self.platform, deadline);
            let image = self.runtime.block_on(resolved)?.image;
            if let Err(error) = image.write(&directory, &[]) {
                // It is small, and for this process alone: anywhere will do.
                cache.tell_trouble(&error);
                let directory = self.scratch_layouts()?.join(reference.layout_path());
                image.write(&directory, &[])?;
                return Ok(directory);
            }
        }
        cache.note_layout_used(&directory);
        Ok(directory)
    }

    fn scratch_layouts(&self) -> Result<&Path> {
        if let Some(path) = self.scratch_layouts.get() {
            return Ok(path);
        }
        let place = std::env::temp_dir();
        let made = tempfile::Builder::new().prefix("layoutfs-layouts-").tempdir_in(&place);
        let made = made.map_err(|e| {
            Error::local(format!("neither the cache nor {} can hold a layout", place.display()), &e)
        })?;
        Ok(self.scratch_layouts.get_or_init(|| made.keep()))
    }

    /// Registry clients with this command's credentials.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn registries(&self) -> Result<Arc<Registries>> {
        let mut keychain = KeychainConfig::from_env();
        if let Some(authfile) = &self.options.authfile {
            keychain.authfile = Some(absolute(authfile)?);
        }
        Registries::new(&keychain, self.options.insecure)
    }

    /// A store over the sources of a layout: the first that has a blob gives it. A given
    /// `--cache-limit` is enforced now.
    fn store(&self, selected: &Selected, asked: &Arc<Counters>) -> Result<Arc<Store>> {
        let (references, no_source) = self.references(selected)?;
        let registries = self.registries()?;
        let mut sources: Vec<Arc<dyn Source>> = Vec::new();
        for reference in &references {
            let registry: Arc<Registry> = Arc::new(registries.repository(reference));
            let counted = Arc::new(Record::new(registry, asked.clone()));
            sources.push(Arc::new(Retry::new(counted, asked.clone())));
        }
        let source: Option<Arc<dyn Source>> = match sources.is_empty() {
            true => None,
            false => Some(Arc::new(Failover::counting(sources, asked.clone()))),
        };
        let cache = self.cache()?;
        if let Some(limit) = self.options.cache_limit {
            cache.prune(limit, false)?;
        }
        Ok(Arc::new(Store::new(store::Config {
            cache,
            layout_dir: Some(selected.directory.clone()),
            source,
            no_source,
            stall: self.options.deadline,
            spans_bytes_max: self.modes.spans_bytes_max,
            keeps_fresh: self.modes.keeps_fresh,
            own_indexes_only: self.options.index == IndexChoice::Off,
        })))
    }

    /// Where the blobs of a layout come from, first of all: `registry/repository`, if that is known.
    ///
    /// # Errors
    /// A malformed `--source`.
    pub fn source_of(&self, selected: &Selected) -> Result<Option<String>> {
        Ok(self.sources(selected)?.first().map(sources::repository))
    }

    /// Where the blobs of a layout may be, in the order in which these are asked.
    ///
    /// # Errors
    /// A malformed `--source`.
    pub fn sources(&self, selected: &Selected) -> Result<Vec<Reference>> {
        match self.options.source.is_empty() {
            true => Ok(sources::known(selected, &self.platform)),
            false => sources::given(&self.options.source),
        }
    }

    /// The same, to be asked now; and the error for when that is nowhere.
    ///
    /// # Errors
    /// A malformed `--source`.
    pub fn references(&self, selected: &Selected) -> Result<(Vec<Reference>, Error)> {
        if self.options.offline {
            let message = "it is not local, and --offline is set";
            return Ok((Vec::new(), Error::new(ErrorKind::Offline, message)));
        }
        Ok((self.sources(selected)?, nowhere()))
    }
}

/// Where mounts are recorded: `/run/layoutfs` for root, else below `$XDG_RUNTIME_DIR`.
///
/// # Errors
/// Local trouble.
pub fn run_directory() -> Result<RunDirectory> {
    let path = match directory_of("XDG_RUNTIME_DIR") {
        _ if user_namespace::owns_machine() => PathBuf::from("/run/layoutfs"),
        Some(directory) => directory.join("layoutfs"),
        None => std::env::temp_dir().join(format!("layoutfs-{}", user_namespace::uid_outside())),
    };
    RunDirectory::open(path)
}

fn nowhere() -> Error {
    let message = "it is not local, and the layout does not say where it came from: \
                   use --source REGISTRY/REPO";
    Error::new(ErrorKind::NotFound, message)
}

/// An environment variable that holds an absolute path (the XDG base directory specification says
/// to ignore any other).
pub fn directory_of(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The same path whatever the working directory becomes.
///
/// # Errors
/// There is no working directory.
pub fn absolute(path: impl AsRef<Path>) -> Result<PathBuf> {
    let path = path.as_ref();
    std::path::absolute(path)
        .map_err(|e| Error::local(format!("cannot resolve {}", path.display()), &e))
}

/// A result on standard output.
///
/// # Errors
/// Standard output is gone.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|e| Error::new(ErrorKind::Local, format!("cannot write JSON: {e}")))?;
    out!("{json}");
    Ok(())
}
