//! The command line: wires `layout`, `fetch` and `fs` together. Configuration and the environment
//! enter here and nowhere else.

/// A line of the result, on standard output.
macro_rules! out {
    ($($line:tt)*) => {
        $crate::cli::write_line(format_args!($($line)*))
    };
}

mod announce;
pub mod args;
mod background;
mod bundle;
mod cache;
mod commit;
mod container;
mod context;
mod exit;
mod extend;
mod finalize;
mod hydrate;
mod index;
mod index_choice;
mod inspect;
mod logging;
mod modes;
mod mount;
mod oci_runtime;
mod progress;
mod rootless;
mod run;
mod serve;
mod sources;
mod sparse;
mod status;
mod traces;
mod units;
mod unmount;
mod verify;

use std::io::Write as _;

use clap::Parser as _;

use args::{Cli, Command};
use context::Context;

use crate::fetch::Result;

/// Parses the arguments of this process, does what they say, and ends it. (Ends it here: dropping
/// the runtime would wait for streams that nobody wants any more.)
pub fn main() -> ! {
    // clap ends the process itself: 0 after --help and --version, 2 for wrong usage.
    let cli = Cli::parse();
    logging::start(&cli.options, cli.background_child.is_some());
    // First of all: only a process of one thread can change its user namespace.
    let context = rootless::enter(&cli.command)
        .and_then(|()| Context::new(&cli.options, cli.background_child));
    let result = context.as_ref().map_err(Clone::clone).and_then(|c| run(c, &cli));
    if let Ok(context) = &context {
        context.clean_up();
    }
    let code = match result {
        Ok(code) => code,
        Err(error) => {
            // Whoever read the words may be gone; the exit code is for somebody else.
            let _ = writeln!(std::io::stderr(), "layoutfs: {error}");
            exit::code(error.kind)
        }
    };
    std::process::exit(code)
}

/// Writes a line to standard output. Nothing is left to do when nobody reads it (`| head`).
fn write_line(line: std::fmt::Arguments<'_>) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(exit::code(crate::fetch::ErrorKind::Local));
    }
}

/// The exit code of a command that has not failed.
fn run(context: &Context, cli: &Cli) -> Result<i32> {
    match &cli.command {
        Command::Sparse(args) => sparse::run(context, args)?,
        Command::Mount(args) => return mount::run(context, args),
        Command::Run(args) => return run::run(context, args),
        Command::Bundle(args) => return bundle::run(context, args),
        Command::Unmount(args) => unmount::run(&context.run_directory()?, args)?,
        Command::Hydrate(args) => hydrate::run(context, args)?,
        Command::Commit(args) => commit::run(context, args)?,
        Command::Extend(args) => return extend::run(context, args),
        Command::Finalize(args) => finalize::run(context, args)?,
        Command::Verify(args) => verify::run(context, args)?,
        Command::Inspect(args) => inspect::run(context, args)?,
        Command::Index(args) => index::run(context, args)?,
        Command::Status(args) => status::run(context, args)?,
        Command::Cache(args) => cache::run(context, args)?,
    }
    Ok(0)
}
