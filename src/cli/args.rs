//! Every command, option and help text; and nothing that acts on them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use super::index_choice::IndexChoice;
use crate::fetch::layer_file::Compression;
use crate::fs::images::ViewKind;
use crate::fs::policy::Policy;
use crate::layout::oci::Platform;
use crate::layout::runtime::Bind;

/// A lazy filesystem for OCI image layouts: mount a sparse layout, pull what is read, prove every
/// byte.
#[derive(Debug, Parser)]
#[command(name = "layoutfs", version, disable_help_subcommand = true, infer_subcommands = false)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub options: Options,
    /// The process that serves in the background: ready on standard output; whose child it is
    #[arg(long, hide = true, value_name = "PID")]
    pub background_child: Option<i32>,
}

/// The options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Options {
    /// Where missing blobs come from, instead of where the layout says; repeat for mirrors, in
    /// order
    #[arg(long, global = true, value_name = "REGISTRY/REPO")]
    pub source: Vec<String>,
    /// Which image of an index [default: this machine's]
    #[arg(long, global = true, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// Where fetched bytes are kept [default: $XDG_CACHE_HOME/layoutfs; /var/cache/layoutfs for
    /// root]
    #[arg(long, global = true, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The most that the cache may use: 500M, 20G; the least recently used goes first
    #[arg(long, global = true, value_name = "SIZE", value_parser = super::units::parse_size)]
    pub cache_limit: Option<u64>,
    /// Never ask a registry; what is not local fails
    #[arg(long, global = true)]
    pub offline: bool,
    /// Refuse to mount when a layer would have to be read whole first
    #[arg(long, global = true)]
    pub require_lazy: bool,
    /// Whose indexes of layers to use beside our own: off (none), auto (none, but say what the
    /// registry has), or the artifact of this digest, which is trusted
    #[arg(
        long,
        global = true,
        value_name = "auto|off|[REGISTRY/REPO@]DIGEST",
        default_value = "auto"
    )]
    pub index: IndexChoice,
    /// What to fetch before anybody asks: none, all, what the registry's trace of a use has (auto), or
    /// what a FILE of --record has (./FILE, if it has such a name) [default: what landmarks of eStargz
    /// layers say]
    #[arg(long, global = true, value_name = "none|all|auto[:USE]|FILE")]
    pub prefetch: Option<String>,
    /// When the layout view serves bytes of a blob: strict (only proved blobs) or stream (as they
    /// come, but the end only when proved)
    #[arg(long, global = true, value_enum, default_value = "stream")]
    pub verify: Policy,
    /// The longest a read waits while no byte that it needs arrives: 60s, 2m, 500ms
    #[arg(long, global = true, value_name = "DURATION", default_value = "60s",
          value_parser = super::units::parse_deadline)]
    pub deadline: Duration,
    /// Credentials, instead of the usual places
    #[arg(long, global = true, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Allow plain HTTP and unknown certificates (loopback registries need no permission)
    #[arg(long, global = true)]
    pub insecure: bool,
    /// Results as JSON on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more; twice: say everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say nothing but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a sparse layout: index, manifest and configuration, but no layer
    Sparse(Sparse),
    /// Mount an image; what is missing comes when it is read
    Mount(Mount),
    /// Unmount; also clears what a crash left
    Unmount(Unmount),
    /// Run a command in a container on an image
    Run(Run),
    /// Prepare a container on an image for a runtime of your own: DIR/rootfs and DIR/config.json
    Bundle(Bundle),
    /// Fill a sparse layout in place, verified; can be interrupted and run again
    Hydrate(Hydrate),
    /// Make a layer of an overlay's upper directory, on top of a sparse layout
    Commit(Commit),
    /// Extend a run image: the lifecycle's extender on the lazy rootfs, between restorer and exporter
    Extend(Extend),
    /// Give an exported application image what a run image extension set: environment, user, labels
    Finalize(Finalize),
    /// Check every blob that is there against its digest
    Verify(Verify),
    /// What is in an image, from which layer, and how it will be read
    Inspect(Inspect),
    /// Indexes of layers, by which only what is read is fetched: make them, share them
    #[command(subcommand)]
    Index(Index),
    /// What a mount fetched, used and waits for
    Status(Status),
    /// The cache: list it, shrink it, find it
    #[command(subcommand)]
    Cache(Cache),
}

/// `layoutfs sparse`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("where").required(true).args(["layout_dir", "to"])))]
pub struct Sparse {
    /// The image in its registry, such as docker.io/library/debian:12
    pub reference: String,
    /// Place it as the lifecycle does: DIR/<registry>/<repository>/<tag>
    #[arg(long, value_name = "DIR")]
    pub layout_dir: Option<PathBuf>,
    /// The name to place it under, where the real one has a port or upper case
    #[arg(long = "as", value_name = "NAME", requires = "layout_dir")]
    pub alias: Option<String>,
    /// Place it in exactly this directory
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Also write DIR/cache/base/<digest>, which the extender reads
    #[arg(long, value_name = "DIR")]
    pub kaniko: Option<PathBuf>,
}

/// `layoutfs mount`.
#[derive(Debug, Args)]
pub struct Mount {
    /// oci:DIR[:REF], a layout directory, or docker://REFERENCE
    pub image: String,
    /// An existing directory
    pub mountpoint: PathBuf,
    /// What to show
    #[arg(long, value_enum, default_value = "rootfs")]
    pub view: ViewKind,
    /// A writable rootfs: changes go to DIR
    #[arg(long, value_name = "DIR")]
    pub upper: Option<PathBuf>,
    /// Write to FILE which parts of the layers are needed, in order, for --prefetch
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Return at once; the first lookups wait
    #[arg(long)]
    pub no_wait: bool,
    /// Stay in the foreground until unmounted
    #[arg(long)]
    pub foreground: bool,
    /// Write a line to this file descriptor when the tree answers
    #[arg(long, value_name = "N")]
    pub ready_fd: Option<u32>,
}

/// `layoutfs unmount`.
#[derive(Debug, Args)]
pub struct Unmount {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    /// Detach a busy mount now; it ends with its last user
    #[arg(long)]
    pub lazy: bool,
}

/// `layoutfs run`.
#[derive(Debug, Args)]
pub struct Run {
    /// oci:DIR[:REF], a layout directory, or docker://REFERENCE
    pub image: String,
    /// What the container is to be.
    #[command(flatten)]
    pub container: Container,
    /// The runtime: a path or a name [default: runc, else crun]
    #[arg(long, value_name = "PATH")]
    pub runtime: Option<PathBuf>,
    /// The command, instead of the image's entrypoint and its arguments
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// `layoutfs bundle`.
#[derive(Debug, Args)]
pub struct Bundle {
    /// oci:DIR[:REF], a layout directory, or docker://REFERENCE
    pub image: String,
    /// Where: is made if it is missing
    pub directory: PathBuf,
    /// What the container is to be.
    #[command(flatten)]
    pub container: Container,
    /// The command, instead of the image's entrypoint and its arguments
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// What `run` and `bundle` can be told about a container.
#[derive(Debug, Args)]
pub struct Container {
    /// Show a path of this machine in the container; repeat for more
    #[arg(long, value_name = "SRC:DST[:ro]")]
    pub bind: Vec<Bind>,
    /// Set an environment variable, over the image's; repeat for more
    #[arg(long, value_name = "K=V", value_parser = parse_variable)]
    pub env: Vec<String>,
    /// Who runs it, by name or number, instead of whom the image says
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Keep the changes in DIR [default: forget them]
    #[arg(long, value_name = "DIR")]
    pub upper: Option<PathBuf>,
    /// Write to FILE which parts of the layers are needed, in order, for --prefetch
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
}

fn parse_variable(text: &str) -> Result<String, &'static str> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("expected NAME=VALUE"),
    }
}

/// `layoutfs hydrate`.
#[derive(Debug, Args)]
pub struct Hydrate {
    /// oci:DIR[:REF] or a layout directory
    pub image: String,
    /// Blobs fetched at once
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u8).range(1..=64))]
    pub jobs: u8,
}

/// `layoutfs commit`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("result").required(true).args(["to", "extended"])))]
pub struct Commit {
    /// The directory with the changes: that of `mount --upper`
    pub upper: PathBuf,
    /// What lay below: oci:DIR[:REF], a layout directory, or docker://REFERENCE
    #[arg(long, value_name = "IMAGE")]
    pub base: String,
    /// Write a sparse layout: the base's layers as they are there, and the new one
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// Write DIR/run/<digest>, which the lifecycle's exporter reads, in place of what is in DIR/run
    #[arg(long, value_name = "DIR")]
    pub extended: Option<PathBuf>,
    /// Leave a path of the image as it is in the base; repeat for more
    #[arg(long, value_name = "PATH")]
    pub exclude: Vec<std::ffi::OsString>,
    /// What the image's history says about the layer
    #[arg(long, value_name = "TEXT")]
    pub created_by: Option<String>,
    /// How the layer is compressed; zstd only with --to
    #[arg(long, value_enum, default_value = "gzip")]
    pub compression: Compression,
}

/// `layoutfs extend`.
#[derive(Debug, Args)]
pub struct Extend {
    /// The phases' layers directory: analyzed.toml, group.toml, generated; extended/run is written
    #[arg(long, value_name = "DIR")]
    pub layers: PathBuf,
    /// The layout directory, which the phases see at $CNB_LAYOUT_DIR
    #[arg(long, value_name = "DIR")]
    pub layout_dir: PathBuf,
    /// DIR/cache/base/<digest> is written, DIR/cache/layers used in mode plain [default: forget
    /// both]
    #[arg(long, value_name = "DIR")]
    pub kaniko: Option<PathBuf>,
    /// The application, which is a build context [default: $CNB_APP_DIR, else nothing]
    #[arg(long, value_name = "DIR")]
    pub app: Option<PathBuf>,
    /// Where the lifecycle's binaries are
    #[arg(long, value_name = "DIR", default_value = "/cnb/lifecycle")]
    pub lifecycle: PathBuf,
    /// Whether kaniko looks for changes in the whole image (plain) or the overlay has them (shadow)
    #[arg(long, value_enum, default_value = "auto")]
    pub mode: ExtendMode,
    /// The OCI runtime: a path or a name [default: runc, else crun]
    #[arg(long, value_name = "PATH")]
    pub runtime: Option<PathBuf>,
}

/// Who finds out what the extender changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExtendMode {
    /// shadow when every instruction is safe under it, else plain.
    Auto,
    /// Top-level directories are mount points, which kaniko skips; the layer is made of the upper
    /// directory.
    Shadow,
    /// kaniko reads every byte before the first RUN, and again after each.
    Plain,
}

/// `layoutfs finalize`.
#[derive(Debug, Args)]
pub struct Finalize {
    /// The layout that the lifecycle's exporter wrote: oci:DIR[:REF] or a directory
    pub app_layout: String,
    /// The exporter's directory of extended images: DIR/run/<digest>, with DIR/../analyzed.toml
    #[arg(long, value_name = "DIR")]
    pub extended: PathBuf,
}

/// `layoutfs verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// oci:DIR[:REF] or a layout directory
    pub image: String,
    /// Also inflate every layer and compare its DiffID
    #[arg(long)]
    pub deep: bool,
}

/// `layoutfs inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// oci:DIR[:REF], a layout directory, or docker://REFERENCE
    pub image: String,
    /// A path in the rootfs: which layers have it, and what each does to it
    pub path: Option<String>,
}

/// `layoutfs index`.
#[derive(Debug, Subcommand)]
pub enum Index {
    /// Make an index of each layer that has none: reads each of these once, whole
    Build {
        /// oci:DIR[:REF], a layout directory, or docker://REFERENCE
        image: String,
    },
    /// Push the indexes, made where there is none, as a referrer of the image; prints its digest
    Push {
        /// oci:DIR[:REF], a layout directory, or docker://REFERENCE
        image: String,
        /// Where to [default: where the image comes from]
        #[arg(long, value_name = "REGISTRY/REPO")]
        to: Option<String>,
        /// Push this trace of --record instead, for --prefetch auto
        #[arg(long, value_name = "FILE")]
        trace: Option<PathBuf>,
        /// What the trace is of: --prefetch auto:USE finds it
        #[arg(long = "use", value_name = "USE", requires = "trace",
              default_value = super::traces::DEFAULT_USE)]
        used_for: String,
    },
    /// Fetch the indexes in the artifact that --index names, which is trusted
    Pull {
        /// oci:DIR[:REF], a layout directory, or docker://REFERENCE
        image: String,
    },
    /// List the layers: how each is read, its index, the spans in it; and the registry's traces
    Ls {
        /// oci:DIR[:REF], a layout directory, or docker://REFERENCE
        image: String,
    },
}

/// `layoutfs status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Where it is mounted [default: every mount]
    pub mountpoint: Option<PathBuf>,
    /// Show it again every second
    #[arg(long)]
    pub watch: bool,
}

/// `layoutfs cache`.
#[derive(Debug, Subcommand)]
pub enum Cache {
    /// List what is in the cache, least recently used first
    Ls,
    /// Remove blobs and layouts, least recently used first, down to --cache-limit [default: all]
    Prune {
        /// Layer indexes too: they are small, and spare reading a layer whole again
        #[arg(long)]
        indexes: bool,
    },
    /// Print where the cache is
    Path,
}
