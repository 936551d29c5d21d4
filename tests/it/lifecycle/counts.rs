//! How few bytes of a run image an extension costs: counted by the registry, not timed.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::Value;

use super::application::Image;
use super::build::{Build, RUN_IMAGE, read};
use super::fixture::DOCKERFILE;
use crate::real::debian::{REPOSITORY, Registry};

/// Changes the configuration, and no file.
const SETTINGS: &str =
    "ARG base_image\nFROM ${base_image}\nENV EXT_VAR=from-extension\nLABEL a=b\n";

/// What a registry sent: a layer's digest and how many bytes of it, for each request.
type Sent = Vec<(String, u64)>;

/// A build whose run image has been indexed, with no byte of its layers left on this machine.
struct Indexed {
    build: Build,
    base: Image,
    registry: Registry,
}

fn indexed(tag: &str, dockerfile: &str) -> Indexed {
    let build = Build::with_empty_cache("0.13");
    let registry = build.debian.own_registry();
    let digest = build.sparse(&format!("{}/{REPOSITORY}:{tag}", registry.address), RUN_IMAGE);
    let base = Image::read(&build.run_image());
    build.room.mount(build.run_image().to_str().unwrap(), &[]).unmount();
    build.room.layoutfs(&["cache", "prune"]);
    build.write_phases(&digest, dockerfile);
    Indexed { build, base, registry }
}

impl Indexed {
    /// Layers' digests and bytes that the registry sent, in the order of its log. The first `skip`
    /// lines are of an earlier time.
    fn sent(&self, log: &str, skip: usize) -> Sent {
        let layers = self.base.layers();
        let of_layer = |line: &str| {
            let digest = layers.iter().find(|digest| line.contains(*digest))?;
            // `"GET PATH HTTP/1.1" STATUS BYTES "" "agent"`
            let (_, answer) = line.split_once("HTTP/1.1\" ")?;
            let bytes = answer.split(' ').nth(1)?.parse().unwrap();
            line.contains("\"GET /v2/").then(|| ((*digest).to_owned(), bytes))
        };
        log.lines().skip(skip).filter_map(of_layer).collect()
    }

    /// Extends in `mode`; gives what is told, and what the registry sent: before the container was
    /// started, and in all.
    fn extend(&self, mode: &str) -> (Value, Sent, Sent) {
        let earlier = read(self.registry.access_log()).lines().count();
        let copy = self.build.path("access-at-start");
        let runtime = self.runtime_that_copies(&copy);
        let options = ["--mode", mode, "--json", "--runtime", runtime.to_str().unwrap()];
        let outcome = self.build.try_extend(&options);
        assert_eq!(outcome.code(), Some(0), "{outcome}\n{}", self.build.room.logs());
        let told = serde_json::from_str(&outcome.stdout).unwrap();
        let before = self.sent(&read(&copy), earlier);
        let sent = self.sent(&read(self.registry.access_log()), earlier);
        (told, before, sent)
    }

    /// A runtime that copies the registry's log, then is runc.
    fn runtime_that_copies(&self, copy: &std::path::Path) -> PathBuf {
        let path = self.build.path("runtime");
        let log = self.registry.access_log().display();
        let to = copy.display();
        let script = format!("#!/bin/sh\n[ -e '{to}' ] || cp '{log}' '{to}'\nexec runc \"$@\"\n");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn total(&self) -> u64 {
        let layers = self.base.manifest["layers"].as_array().unwrap().iter();
        layers.map(|layer| layer["size"].as_u64().unwrap()).sum()
    }
}

fn bytes(sent: &[(String, u64)]) -> u64 {
    sent.iter().map(|(_, bytes)| bytes).sum()
}

/// What is needed before there is an extender: the empty layer, which kaniko wants as a file, and
/// the layer with the image's accounts. No byte of the layer that has nearly all of the image.
#[track_caller]
fn assert_small(before: &[(String, u64)], base: &Image) {
    let layers = base.layers();
    let [.., empty, accounts] = layers[..] else { panic!("{layers:?}") };
    let touched: BTreeSet<&str> = before.iter().map(|(digest, _)| &**digest).collect();
    assert!(touched.is_subset(&[empty, accounts].into()), "{before:?} of {layers:?}");
}

#[test]
fn a_trivial_run_fetches_a_small_part_of_an_image_of_many_members() {
    let indexed = indexed("members", DOCKERFILE);
    let (told, before, sent) = indexed.extend("shadow");
    assert_small(&before, &indexed.base);
    assert_eq!(told["bytes_total"], indexed.total(), "{told}");
    assert_eq!(told["bytes_fetched"], bytes(&sent), "{told}: {sent:?}");
    assert_eq!(told["requests"], sent.len(), "{told}: {sent:?}");
    assert!(bytes(&sent) > 0 && bytes(&sent) * 10 <= indexed.total(), "{told}: {sent:?}");
    report("shadow, gzip members", &told);
}

#[test]
fn only_layers_that_are_touched_are_fetched() {
    let indexed = indexed("stack", DOCKERFILE);
    let (told, before, sent) = indexed.extend("shadow");
    assert_small(&before, &indexed.base);
    assert_eq!(told["bytes_fetched"], bytes(&sent), "{told}: {sent:?}");
    let touched: BTreeSet<&str> = sent.iter().map(|(digest, _)| &**digest).collect();
    // The shell and its libraries are in the first. The third has a file in `/`, which kaniko looks
    // at; of the second nobody needs anything.
    let layers = indexed.base.layers();
    let [base, oddities, ..] = layers[..] else { panic!("{layers:?}") };
    assert!(touched.contains(base), "{touched:?}");
    assert!(!touched.contains(oddities), "{touched:?} of {layers:?}");
    assert!(bytes(&sent) * 10 <= indexed.total(), "{told}: {sent:?}");
    report("shadow, one gzip member", &told);
}

#[test]
fn settings_alone_cost_what_the_extender_itself_reads() {
    for mode in ["plain", "shadow", "auto"] {
        let indexed = indexed("members", SETTINGS);
        let (told, before, sent) = indexed.extend(mode);
        assert_small(&before, &indexed.base);
        // Certificates and the time zone, which every program in Go reads.
        assert!(bytes(&sent) * 20 <= indexed.total(), "{told}: {sent:?}");
        let extended = indexed.build.extended();
        assert!(extended.environment().contains(&"EXT_VAR=from-extension"));
        report(&format!("settings, {mode}"), &told);
    }
}

/// Numbers for who runs the tests by hand; libtest keeps them from others.
fn report(what: &str, told: &Value) {
    let number = |name: &str| told[name].as_u64().unwrap();
    let (fetched, total) = (number("bytes_fetched"), number("bytes_total"));
    println!("{what}: {fetched} of {total} bytes in {} requests", number("requests"));
}
