//! The test registry as a program, for `make demo` and for trying things out: `demo-registry --port-file F [--with-sample] [--with-buildpack-images BUSYBOX] [--log]` serves
//! until it is killed.

#![allow(clippy::unwrap_used, dead_code)] // The demo uses a part of the test support.

#[path = "../it/support/answer.rs"]
mod answer;
#[path = "../it/support/faults.rs"]
mod faults;
#[path = "../it/support/image.rs"]
mod image;
#[path = "../it/support/layer.rs"]
mod layer;
#[path = "../it/support/referrers.rs"]
mod referrers;
#[path = "../it/support/registry.rs"]
mod registry;
mod sample;
#[path = "../it/support/tokens.rs"]
mod tokens;
#[path = "../it/support/uploads.rs"]
mod uploads;
#[path = "../it/support/wire.rs"]
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use registry::Registry;

const USAGE: &str = "usage: demo-registry --port-file FILE [--with-sample] \
    [--with-buildpack-images BUSYBOX] [--log]";

fn main() -> ExitCode {
    let mut port_file = None;
    let mut busybox = None;
    let (mut with_sample, mut log) = (false, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--port-file" => port_file = args.next().map(PathBuf::from),
            "--with-sample" => with_sample = true,
            "--with-buildpack-images" => busybox = args.next().map(PathBuf::from),
            "--log" => log = true,
            _ => {
                port_file = None;
                break;
            }
        }
    }
    let Some(port_file) = port_file else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let registry = Registry::start();
    if with_sample {
        let image = sample::image();
        image.push(&registry, "demo/app", "latest");
        eprintln!("{} holds {} MB", registry.reference("demo/app", "latest"), {
            image.layer_bytes() / 1_000_000
        });
    }
    if let Some(busybox) = busybox {
        let bytes = match std::fs::read(&busybox) {
            Ok(bytes) => bytes,
            Err(error) => {
                eprintln!("cannot read {}: {error}", busybox.display());
                return ExitCode::FAILURE;
            }
        };
        let images = sample::buildpack_images(&bytes);
        for (image, repository) in images.iter().zip(["demo/build", "demo/run"]) {
            image.push(&registry, repository, "latest");
            let megabytes = image.layer_bytes() / 1_000_000;
            eprintln!("{} holds {megabytes} MB", registry.reference(repository, "latest"));
        }
    }
    if log {
        registry.print_requests();
    }
    if let Err(error) = write_port(&port_file, &registry) {
        eprintln!("cannot write {}: {error}", port_file.display());
        return ExitCode::FAILURE;
    }
    loop {
        std::thread::park();
    }
}

/// Writes the port under another name first: whoever waits for the file finds it complete.
fn write_port(path: &Path, registry: &Registry) -> std::io::Result<()> {
    let host = registry.host();
    let (_, port) = host.rsplit_once(':').expect("an address and port");
    let unfinished = path.with_extension("new");
    std::fs::write(&unfinished, format!("{port}\n"))?;
    std::fs::rename(unfinished, path)
}
