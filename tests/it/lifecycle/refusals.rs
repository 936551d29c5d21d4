//! What cannot be extended, and what breaks on the way: said plainly, by the right exit code, and
//! nothing stays behind.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::application::Image;
use super::build::{Build, RUN_IMAGE, read};
use super::fixture::DOCKERFILE;
use super::images::{base_layer, served};
use crate::real::containers::assert_clean;
use crate::real::debian::{REPOSITORY, TOOL_LIMIT, tool};
use crate::support::faults::{Action, Fault};
use crate::support::mount::{LIMIT, Outcome, run};
use crate::support::registry::Registry;

/// The extender's own exit code for a failure.
const EXTENDER_FAILED: i32 = 102;
/// Ours.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const INVALID: i32 = 3;
const NOT_FOUND: i32 = 5;
const DIGEST_MISMATCH: i32 = 7;

const HEAD: &str = "ARG base_image\nFROM ${base_image}\nUSER root\n";
const TAIL: &str = "ARG user_id\nUSER ${user_id}\n";

/// A build of `tag` from `registry`, up to the extender.
fn prepared(build: &Build, registry: &Registry, tag: &str, dockerfile: &str) {
    let digest = build.sparse(&registry.reference(REPOSITORY, tag), RUN_IMAGE);
    build.write_phases(&digest, dockerfile);
}

/// Indexes of the layers stay, their bytes go.
fn index_and_forget(build: &Build) {
    build.room.mount(build.run_image().to_str().unwrap(), &[]).unmount();
    build.room.layoutfs(&["cache", "prune"]);
}

#[track_caller]
fn assert_failed(build: &Build, outcome: &Outcome, code: i32) {
    assert_eq!(outcome.code(), Some(code), "{outcome}\n{}", build.room.logs());
    let left = build.extended_directories();
    assert_eq!(left, [""; 0].map(PathBuf::from), "the exporter must not find half an image");
}

#[test]
fn empty_layers_of_the_base_are_no_trouble() {
    for (tag, mode) in [("topped", "shadow"), ("topped", "plain")] {
        let build = Build::new("0.13");
        let digest = build.sparse(&build.debian.reference(tag), RUN_IMAGE);
        build.write_phases(&digest, DOCKERFILE);
        build.extend(mode);
        let base = Image::read(&build.run_image());
        build.export().assert_exported_on(&base, &build.extended());
        build.finalize();
        let mount = build.room.mount(build.application().to_str().unwrap(), &[]);
        assert_eq!(read(&mount.path().join("extended.txt")), "extended\nsecond\n");
    }
}

#[test]
fn a_base_of_nothing_but_an_empty_layer_is_extended() {
    for mode in ["shadow", "plain"] {
        let build = Build::new("0.13");
        let digest = build.sparse(&build.debian.reference("bare"), RUN_IMAGE);
        let dockerfile = "ARG base_image\nFROM ${base_image}\nENV EXT_VAR=from-extension\n";
        build.write_phases(&digest, dockerfile);
        build.extend(mode);
        build.export();
        let application = build.finalize();
        assert!(application.environment().contains(&"EXT_VAR=from-extension"));
        let mount = build.room.mount(build.application().to_str().unwrap(), &[]);
        assert_eq!(read(&mount.path().join("workspace/file")), "of the application\n");
    }
}

#[test]
fn a_registry_that_dies_in_the_middle_fails_the_extender() {
    for mode in ["shadow", "plain"] {
        let build = Build::with_empty_cache("0.13");
        let registry = served(&build.debian, "stack");
        prepared(&build, &registry, "stack", DOCKERFILE);
        index_and_forget(&build);
        let layer = base_layer(&build.debian, "stack");
        registry.clear();
        // Slow enough that the registry is gone before the layer is here.
        let drip = Action::Drip { bytes: 64 << 10, every: Duration::from_millis(20) };
        registry.inject(Fault::new(drip).blob(&layer).always());
        let mut extend = Running::start(&build, &["--mode", mode, "--deadline", "3s"]);
        extend.wait_until(|| registry.bytes_sent(&layer) > 0);
        registry.pause();
        let outcome = extend.end();
        assert_failed(&build, &outcome, EXTENDER_FAILED);
        assert_clean(&build.path("tmp"));
        // It is the registry that failed: the same build goes on when it is back.
        registry.clear_faults();
        registry.resume();
        build.extend(mode);
        build.extended();
    }
}

#[test]
fn a_registry_that_says_nothing_more_is_waited_for_once() {
    let build = Build::with_empty_cache("0.13");
    let registry = served(&build.debian, "stack");
    prepared(&build, &registry, "stack", DOCKERFILE);
    index_and_forget(&build);
    let layer = base_layer(&build.debian, "stack");
    registry.inject(Fault::new(Action::Stall).blob(&layer).always());
    let outcome = build.try_extend(&["--mode", "shadow", "--deadline", "2s"]);
    assert_failed(&build, &outcome, EXTENDER_FAILED);
}

#[test]
fn wrong_bytes_of_a_first_contact_stop_it_before_the_extender() {
    let build = Build::with_empty_cache("0.13");
    let registry = served(&build.debian, "stack");
    prepared(&build, &registry, "stack", DOCKERFILE);
    let layer = base_layer(&build.debian, "stack");
    registry.inject(Fault::new(Action::WrongBytes { at: 1 << 20 }).blob(&layer).always());
    let outcome = build.try_extend(&[]);
    assert_failed(&build, &outcome, DIGEST_MISMATCH);
    assert!(outcome.stderr.contains(&layer.to_string()), "{outcome}");
}

#[test]
fn wrong_bytes_of_a_known_layer_are_never_read() {
    let build = Build::with_empty_cache("0.13");
    let registry = served(&build.debian, "stack");
    prepared(&build, &registry, "stack", DOCKERFILE);
    index_and_forget(&build);
    let layer = base_layer(&build.debian, "stack");
    registry.inject(Fault::new(Action::WrongBytes { at: 1 << 20 }).blob(&layer).always());
    // Wherever the byte is, somebody reads it.
    let outcome = build.try_extend(&["--mode", "plain"]);
    assert_failed(&build, &outcome, EXTENDER_FAILED);
    let told = format!("{}{}", outcome.stderr, build.room.logs());
    assert!(told.contains(&layer.short().to_string()) && told.contains("digest"), "{told}");
}

#[test]
fn a_layout_path_with_a_port_is_refused_with_advice() {
    let build = Build::new("0.13");
    let reference = build.debian.reference("stack");
    let layouts = build.path("layout-repo");
    let outcome =
        build.room.run(&["sparse", &reference, "--layout-dir", layouts.to_str().unwrap()]);
    assert_eq!(outcome.code(), Some(USAGE), "{outcome}");
    assert!(outcome.stderr.contains("--as"), "{outcome}");
    // And where somebody made one all the same.
    let digest = build.sparse(&reference, RUN_IMAGE);
    build.write_phases(&digest, DOCKERFILE);
    std::fs::create_dir_all(layouts.join("localhost:5000/cnb/run")).unwrap();
    let place = "localhost:5000/cnb/run/base";
    std::fs::rename(build.run_image(), layouts.join(place)).unwrap();
    let analyzed = build.path("layers/analyzed.toml");
    let text = read(&analyzed).replace("reg.example/cnb/run/base", place);
    std::fs::write(&analyzed, text).unwrap();
    let outcome = build.try_extend(&[]);
    assert_failed(&build, &outcome, INVALID);
    assert!(outcome.stderr.contains("--as") && outcome.stderr.contains(place), "{outcome}");
}

#[test]
fn a_final_root_user_is_the_extenders_refusal() {
    for mode in ["shadow", "plain"] {
        let build = Build::new("0.13");
        let digest = build.sparse(&build.debian.reference("stack"), RUN_IMAGE);
        build.write_phases(&digest, &format!("{HEAD}RUN echo x >/extended.txt\n"));
        let outcome = build.try_extend(&["--mode", mode]);
        assert_failed(&build, &outcome, EXTENDER_FAILED);
        assert!(
            outcome.stderr.contains("the final user ID is 0 (root)")
                || outcome.stdout.contains("the final user ID is 0 (root)"),
            "{outcome}"
        );
    }
}

#[test]
fn a_switched_run_image_is_needed_in_the_layout_directory() {
    let build = Build::new("0.13");
    build.sparse(&build.debian.reference("topped"), RUN_IMAGE);
    let other = "reg.example/cnb/other:base";
    let dockerfile = format!("FROM {other}\nUSER root\nRUN echo extended >/extended.txt\n{TAIL}");
    build.write_fixture(&dockerfile);
    build.analyze();
    build.detect();
    let outcome = build.try_extend(&[]);
    assert_failed(&build, &outcome, NOT_FOUND);
    let layouts = build.path("layout-repo").display().to_string();
    let advice = format!("layoutfs sparse {other} --layout-dir {layouts}");
    assert!(outcome.stderr.contains(&advice), "{outcome}");
    // As advised, but for a registry that is there under another name.
    build.sparse(&build.debian.reference("stack"), other);
    build.restore();
    build.build();
    build.extend("auto");
    build.export();
    build.finalize();
    let mount = build.room.mount(build.application().to_str().unwrap(), &[]);
    assert_eq!(read(&mount.path().join("extended.txt")), "extended\n");
    let application = Image::read(&build.application());
    let base = Image::read(&build.path("layout-repo/reg.example/cnb/other/base"));
    assert_eq!(application.layers()[..base.layers().len()], base.layers());
}

#[test]
fn a_full_disk_fails_the_command_and_the_extender() {
    for mode in ["shadow", "plain"] {
        let build = Build::new("0.13");
        let digest = build.sparse(&build.debian.reference("stack"), RUN_IMAGE);
        let command = "RUN head -c 64M /dev/zero >/srv/large\n";
        build.write_phases(&digest, &format!("{HEAD}{command}{TAIL}"));
        let outcome = {
            let _small = SmallDisk::on(build.path("tmp"));
            run(&mut build.extend_command(&["--mode", mode]), TOOL_LIMIT)
        };
        assert_clean(&build.path("tmp"));
        assert_failed(&build, &outcome, EXTENDER_FAILED);
        let told = format!("{}{}", outcome.stdout, outcome.stderr);
        assert!(told.contains("No space left on device"), "{outcome}");
    }
}

#[test]
fn a_full_disk_of_the_layers_leaves_no_image() {
    let build = Build::new("0.13");
    let digest = build.sparse(&build.debian.reference("stack"), RUN_IMAGE);
    let command = "RUN head -c 32M /dev/urandom >/srv/large\n";
    build.write_phases(&digest, &format!("{HEAD}{command}{TAIL}"));
    let extended = build.path("layers/extended");
    std::fs::create_dir(&extended).unwrap();
    let _small = SmallDisk::on(extended);
    let outcome = build.try_extend(&["--mode", "shadow"]);
    assert_failed(&build, &outcome, FAILED);
    assert!(outcome.stderr.contains("No space left on device"), "{outcome}");
}

#[test]
fn a_full_disk_of_the_cache_is_told_and_does_not_matter() {
    let build = Build::with_empty_cache("0.13");
    let digest = build.sparse(&build.debian.reference("stack"), RUN_IMAGE);
    build.write_phases(&digest, DOCKERFILE);
    std::fs::remove_dir_all(build.room.cache_dir()).unwrap();
    std::fs::create_dir(build.room.cache_dir()).unwrap();
    let _small = SmallDisk::on(build.room.cache_dir());
    let outcome = build.try_extend(&["--mode", "shadow"]);
    assert!(outcome.stderr.contains("No space left on device"), "{outcome}");
    outcome.success();
    build.extended();
}

#[test]
fn what_a_killed_extend_left_is_cleared_by_the_next() {
    let build = Build::new("0.13");
    let digest = build.sparse(&build.debian.reference("stack"), RUN_IMAGE);
    let command = "RUN touch /layers/started && exec sleep 596.1\n";
    build.write_phases(&digest, &format!("{HEAD}{command}{TAIL}"));
    let mut extend = Running::start(&build, &["--mode", "shadow"]);
    extend.wait_until(|| build.path("layers/started").exists());
    extend.child.kill().unwrap();
    extend.child.wait().unwrap();
    assert_eq!(build.extended_directories(), [""; 0].map(PathBuf::from));
    build.write_phases(&digest, DOCKERFILE);
    build.extend("shadow");
    build.extended();
    let left = tool("pgrep", &["-fx", "sleep 596.1"]);
    assert_eq!((left.code(), &*left.stdout), (Some(1), ""), "no process is left");
    let others = std::fs::read_dir(build.path("layers/extended")).unwrap();
    let others: Vec<_> = others.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(others, ["run"], "no temporary file is left");
}

#[test]
fn a_signal_ends_the_extender_and_takes_everything_down() {
    let build = Build::new("0.13");
    let digest = build.sparse(&build.debian.reference("stack"), RUN_IMAGE);
    let command = "RUN touch /layers/started && exec sleep 597.3\n";
    build.write_phases(&digest, &format!("{HEAD}{command}{TAIL}"));
    let mut extend = Running::start(&build, &["--mode", "shadow"]);
    extend.wait_until(|| build.path("layers/started").exists());
    kill_process(Pid::from_child(&extend.child), Signal::TERM).unwrap();
    let outcome = extend.end();
    assert_eq!(outcome.code(), Some(128 + 15), "{outcome}");
    assert_eq!(build.extended_directories(), [""; 0].map(PathBuf::from));
    assert_clean(&build.path("tmp"));
    let left = tool("pgrep", &["-fx", "sleep 597.3"]);
    assert_eq!((left.code(), &*left.stdout), (Some(1), ""), "no process is left");
}

/// A filesystem of 16 MB, for as long as this lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn on(at: PathBuf) -> Self {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(&at);
        run(&mut mount, LIMIT).success();
        SmallDisk(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let outcome = run(Command::new("umount").arg("-R").arg(&self.0), LIMIT);
        assert!(outcome.status.success() || std::thread::panicking(), "{outcome}");
    }
}

/// A `layoutfs extend` that goes on while a test looks at it.
struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    started: Instant,
}

impl Running {
    fn start(build: &Build, options: &[&str]) -> Self {
        let [out, err] = ["stdout", "stderr"].map(|name| build.path(name));
        let mut command = build.extend_command(options);
        command.stdin(Stdio::null());
        command.stdout(std::fs::File::create(&out).unwrap());
        command.stderr(std::fs::File::create(&err).unwrap());
        Running { child: command.spawn().unwrap(), out, err, started: Instant::now() }
    }

    fn said(&self) -> String {
        [&self.out, &self.err].map(|path| read(path)).concat()
    }

    #[track_caller]
    fn wait_until(&mut self, happened: impl Fn() -> bool) {
        while !happened() {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && self.started.elapsed() < LIMIT, "{ended:?} {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end.
    fn end(&mut self) -> Outcome {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.started.elapsed() > LIMIT {
                panic!("it does not end: {}", self.said());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let (stdout, stderr) = (read(&self.out), read(&self.err));
        Outcome { command: "layoutfs extend".to_owned(), status, stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            // A test has failed; errors here would hide why.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
