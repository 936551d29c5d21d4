//! Log lines: on standard error, for people or as JSON.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;

use super::args::{LogFormat, Options};

/// Starts logging. A daemon says more than a command: its log is read after the fact. A panic is a
/// line of it like any other.
pub fn start(options: &Options, daemon: bool) {
    let level = match (options.quiet, options.verbose, daemon) {
        (true, ..) => LevelFilter::ERROR,
        (false, 0, false) => LevelFilter::WARN,
        (false, 0, true) | (false, 1, _) => LevelFilter::INFO,
        (false, 2, _) => LevelFilter::DEBUG,
        (false, ..) => LevelFilter::TRACE,
    };
    // Only our own lines above that: libraries log what only their authors understand.
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,layoutfs={level}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match options.log_format {
        LogFormat::Json => {
            builder.json().init();
            std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
        }
        LogFormat::Text => {
            // A daemon's lines end in a file.
            let colours = !daemon && std::io::stderr().is_terminal();
            builder.with_ansi(colours).with_target(false).init();
        }
    }
}
