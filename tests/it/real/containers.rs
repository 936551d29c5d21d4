//! Containers on the lazy root filesystem, by an OCI runtime that everybody has.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::debian::{Debian, TOOL_LIMIT, tool};
use super::programs::{GREETING, paths_below};
use crate::support::mount::{LIMIT, Outcome, Room, mountpoints, run};
use crate::traces::until_prefetched;

/// `layoutfs run` of the image `v1`, with a `TMPDIR` of its own.
fn run_v1(debian: &Debian, args: &[&str]) -> Outcome {
    let image = debian.sparse("v1");
    let temporary = debian.new_dir("tmp");
    let all = [&["run", image.to_str().unwrap()], args].concat();
    let outcome = run(debian.room.command(&all).env("TMPDIR", &temporary), LIMIT);
    assert_clean(&temporary);
    outcome
}

/// Nothing is left in `directory`, nor mounted there.
#[track_caller]
pub fn assert_clean(directory: &Path) {
    let mounted: Vec<_> =
        mountpoints().into_iter().filter(|path| path.starts_with(directory)).collect();
    assert_eq!(mounted, [""; 0].map(PathBuf::from), "nothing stays mounted");
    assert_eq!(paths_below(directory), BTreeSet::new(), "no file stays");
}

#[test]
fn run_runs_the_images_programs_and_gives_their_exit_code() {
    let debian = Debian::shared();
    let image = debian.sparse("v1");
    let image = image.to_str().unwrap();
    let printed = debian.room.layoutfs(&["run", image, "--", "python3", "main.py"]);
    assert_eq!(printed, GREETING, "the working directory is the image's");
    let script = "echo $FIXTURE; touch /usr/bin/written && exit 7";
    let outcome = debian.room.run(&["run", image, "--", "sh", "-c", script]);
    assert_eq!((outcome.code(), &*outcome.stdout), (Some(7), "debian\n"), "{outcome}");
    assert!(!debian.rootfs("v1").path().join("usr/bin/written").exists());
}

#[test]
fn run_without_a_command_runs_the_images_own() {
    assert_eq!(run_v1(&Debian::shared(), &[]).success(), GREETING);
}

#[test]
fn a_container_is_isolated_as_docker_does_it() {
    let script = "hostname; echo $$; grep -E '^(CapEff|NoNewPrivs)' /proc/self/status; \
        stat -c '%a %U' / /dev/shm; touch /sys/kernel/x 2>/dev/null || echo sealed; \
        ls /proc/acpi | wc -l; grep -c layoutfs /etc/hosts; touch /etc/hosts /etc/resolv.conf; \
        mknod /tmp/disk b 259 0; head -c 1 /tmp/disk 2>&1 | grep -o 'Operation not permitted'";
    let outcome = run_v1(&Debian::shared(), &["sh", "-c", script]);
    let expected = "layoutfs\n1\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t0\n755 root\n1777 root\n\
        sealed\n0\n1\nOperation not permitted\n";
    assert_eq!(outcome.stdout, expected, "{outcome}");
}

#[test]
fn users_are_those_of_the_image() {
    let debian = Debian::shared();
    let who = "echo $(id -un):$(id -gn) $(id -u):$(id -g) $HOME; touch /usr/bin/x || echo refused";
    let printed = |user: &str| {
        let outcome = run_v1(&debian, &["--user", user, "sh", "-c", who]);
        assert_eq!(outcome.code(), Some(0), "{outcome}");
        outcome.stdout
    };
    assert_eq!(printed("games"), "games:games 5:60 /usr/games\nrefused\n");
    assert_eq!(printed("5"), "games:games 5:60 /usr/games\nrefused\n");
    assert_eq!(printed("games:tty"), "games:tty 5:5 /usr/games\nrefused\n");
    assert_eq!(printed("0:0"), "root:root 0:0 /root\n");
    let unknown = run_v1(&debian, &["--user", "nobody-here", "true"]);
    assert_eq!(unknown.code(), Some(3), "{unknown}");
    assert!(unknown.stderr.contains("no such user in the image's /etc/passwd"), "{unknown}");
}

#[test]
fn the_environment_and_binds_are_as_asked() {
    let debian = Debian::shared();
    let shared = debian.new_dir("shared");
    std::fs::write(shared.join("file"), "ours\n").unwrap();
    let ro = format!("{}:/srv/fixed:ro", shared.display());
    let rw = format!("{}:/not/there/yet", shared.display());
    let script = "cat /srv/fixed/file; echo x >/srv/fixed/file || echo fixed; \
        echo more >>/not/there/yet/file; echo $FIXTURE $OTHER";
    let options = ["--bind", &ro, "--bind", &rw, "--env", "FIXTURE=mine", "--env", "OTHER=a=b"];
    let outcome = run_v1(&debian, &[&options[..], &["sh", "-c", script]].concat());
    assert_eq!(outcome.stdout, "ours\nfixed\nmine a=b\n", "{outcome}");
    assert_eq!(std::fs::read_to_string(shared.join("file")).unwrap(), "ours\nmore\n");
    let absent = run_v1(&debian, &["--bind", "/not/here:/x", "true"]);
    assert_eq!(absent.code(), Some(2), "{absent}");
}

#[test]
fn a_kept_upper_directory_holds_the_change_and_no_mount_point() {
    let debian = Debian::shared();
    let upper = debian.new_dir("kept").join("upper");
    let shared = debian.new_dir("shared");
    let bind = format!("{}:/cnb/deep/place", shared.display());
    let options = ["--upper", upper.to_str().unwrap(), "--bind", &bind];
    let script = "rm /etc/issue; echo x >/srv/new; touch /cnb/deep/place/shared; chmod 1777 /tmp";
    let outcome = run_v1(&debian, &[&options[..], &["--", "sh", "-c", script]].concat());
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    let changed = ["etc", "etc/issue", "srv", "srv/new", "tmp"];
    assert_eq!(paths_below(&upper), changed.map(str::to_owned).into());
    assert!(shared.join("shared").exists());
    let beside = paths_below(upper.parent().unwrap());
    assert!(beside.iter().all(|path| path.starts_with("upper")), "{beside:?}");
    assert!(!beside.iter().any(|path| path.contains("layoutfs-work")), "{beside:?}");
    let again = run_v1(&debian, &[&options[..2], &["cat", "/srv/new"]].concat());
    assert_eq!(again.success(), "x\n", "the next container goes on where this one ended");
}

#[test]
fn a_command_that_cannot_be_started_is_told_as_shells_do() {
    let debian = Debian::shared();
    for (command, code) in [("not-there", 127), ("/not/there", 127), ("/etc/passwd", 126)] {
        let outcome = run_v1(&debian, &[command]);
        assert_eq!(outcome.code(), Some(code), "{outcome}");
        assert!(outcome.stderr.contains(command), "the runtime says what: {outcome}");
    }
    // The first container says how the layers are read.
    let failed = run_v1(&debian, &["--quiet", "sh", "-c", "exit 1"]);
    assert_eq!((failed.code(), &*failed.stderr), (Some(1), ""), "{failed}");
    let no_runtime = run_v1(&debian, &["--runtime", "/not/a/runtime", "true"]);
    assert_eq!(no_runtime.code(), Some(8), "{no_runtime}");
}

/// A `layoutfs run` of a script that has printed "started".
struct Running {
    /// Its directories live as long as somebody holds it.
    _debian: Arc<Debian>,
    child: Child,
    out: PathBuf,
    err: PathBuf,
    temporary: PathBuf,
}

impl Running {
    fn start(debian: &Arc<Debian>, script: &str) -> Self {
        Self::start_with(debian, &[], script)
    }

    fn start_with(debian: &Arc<Debian>, options: &[&str], script: &str) -> Self {
        let image = debian.sparse("v1");
        let temporary = debian.new_dir("tmp");
        let [out, err] = ["stdout", "stderr"].map(|name| debian.new_dir("out").join(name));
        let args = [&["run", image.to_str().unwrap()], options, &["--", "sh", "-c", script]];
        let mut command = debian.room.command(&args.concat());
        command.env("TMPDIR", &temporary).stdin(Stdio::null());
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let mut child = command.spawn().unwrap();
        let started = Instant::now();
        while std::fs::read_to_string(&out).unwrap() != "started\n" {
            let said = std::fs::read_to_string(&err).unwrap();
            assert!(started.elapsed() < LIMIT && child.try_wait().unwrap().is_none(), "{said}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Running { _debian: debian.clone(), child, out, err, temporary }
    }

    fn send(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

#[test]
fn signals_reach_the_command_and_everything_is_taken_down() {
    let script = "trap 'echo ended; exit 5' TERM; echo started; while :; do sleep 0.05; done";
    let mut running = Running::start(&Debian::shared(), script);
    running.send(Signal::TERM);
    assert_eq!(running.child.wait().unwrap().code(), Some(5));
    assert_eq!(std::fs::read_to_string(&running.out).unwrap(), "started\nended\n");
    assert_clean(&running.temporary);
}

#[test]
fn the_third_signal_ends_a_command_that_does_not_listen() {
    let mut running = Running::start(&Debian::shared(), "echo started; exec sleep 600");
    let started = Instant::now();
    while running.child.try_wait().unwrap().is_none() {
        // Signals that come at once are one.
        running.send(Signal::TERM);
        std::thread::sleep(Duration::from_millis(50));
        assert!(started.elapsed() < LIMIT, "it does not end");
    }
    assert_eq!(running.child.wait().unwrap().code(), Some(137));
    assert_clean(&running.temporary);
}

#[test]
fn what_cannot_be_killed_because_it_has_ended_was_started_all_the_same() {
    let debian = Debian::shared();
    // Signals go on while the container ends, as impatient people have it.
    let runtime = debian.new_dir("runtime").join("runtime");
    let script = "#!/bin/sh\n\
        # --root STATE --log FILE --log-format json COMMAND\n\
        if [ $7 = run ]; then\n\
            trap '' TERM; echo started; while [ ! -e $0.killed ]; do sleep 0.01; done; exit 137\n\
        fi\n\
        echo '{\"level\":\"error\",\"msg\":\"container not running\"}' >>$4\n\
        echo 'container not running' >&2; touch $0.killed; exit 1\n";
    std::fs::write(&runtime, script).unwrap();
    std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o755)).unwrap();
    let options = ["--quiet", "--runtime", runtime.to_str().unwrap()];
    let mut running = Running::start_with(&debian, &options, "");
    let started = Instant::now();
    while running.child.try_wait().unwrap().is_none() {
        running.send(Signal::TERM);
        std::thread::sleep(Duration::from_millis(5));
        assert!(started.elapsed() < LIMIT, "it does not end");
    }
    assert_eq!(running.child.wait().unwrap().code(), Some(137));
    assert_eq!(std::fs::read_to_string(&running.err).unwrap(), "");
}

#[test]
fn what_a_killed_run_left_is_cleared_by_the_next() {
    let debian = Debian::shared();
    let mut running = Running::start(&debian, "echo started; exec sleep 598.7");
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    run_v1(&debian, &["true"]).success();
    assert_clean(&running.temporary);
    let left = tool("pgrep", &["-fx", "sleep 598.7"]);
    assert_eq!((left.code(), &*left.stdout), (Some(1), ""), "no process is left");
}

#[test]
fn a_bundle_is_for_any_runtime_and_is_taken_down_whole() {
    let debian = Debian::shared();
    let (image, bundle) = (debian.sparse("v1"), debian.new_dir("bundle"));
    let (temporary, bundle_text) = (debian.new_dir("tmp"), bundle.to_str().unwrap());
    let script = "echo in a bundle; cat main.py | wc -l >/srv/lines; exit 3";
    let args = ["bundle", image.to_str().unwrap(), bundle_text, "--", "sh", "-c", script];
    run(debian.room.command(&args).env("TMPDIR", &temporary), LIMIT).success();
    let mut runc = Command::new("runc");
    runc.arg("--root").arg(debian.new_dir("state")).args(["run", "--bundle", bundle_text]);
    let id = format!("layoutfs-test-{}", std::process::id());
    let outcome = run(runc.arg(id), TOOL_LIMIT);
    assert_eq!((outcome.code(), &*outcome.stdout), (Some(3), "in a bundle\n"), "{outcome}");
    assert!(bundle.join("rootfs/srv/lines").exists());
    let taken = debian.room.run(&args);
    assert_eq!(taken.code(), Some(9), "{taken}");
    debian.room.layoutfs(&["unmount", bundle_text]);
    assert_clean(&temporary);
    assert_clean(&bundle.join("rootfs"));
    debian.room.layoutfs(&["unmount", bundle_text]);
}

#[test]
fn a_container_that_was_recorded_starts_from_what_was_prefetched() {
    let debian = Debian::shared();
    let registry = debian.own_registry();
    let reference = debian.reference("v1").replace(&debian.registry.address, &registry.address);
    // A cache of its own: nothing is known of the image.
    let room = Room::new();
    let (image, trace) = (room.path().join("image"), room.path().join("use.trace"));
    let (image, trace) = (image.to_str().unwrap(), trace.to_str().unwrap());
    room.layoutfs(&["sparse", &reference, "--to", image]);
    let run = |options: &[&str], command: &[&str]| {
        room.layoutfs(&[&["run", image], options, &["--"], command].concat())
    };
    run(&[], &["true"]);
    room.layoutfs(&["cache", "prune"]);
    assert_eq!(run(&["--record", trace], &["python3", "main.py"]), GREETING);
    room.layoutfs(&["cache", "prune"]);
    let mount = room.mount(image, &["--prefetch", trace]);
    let prefetch = until_prefetched(&mount);
    mount.unmount();
    let asked = || std::fs::read_to_string(registry.access_log()).unwrap().lines().count();
    let before = asked();
    assert_eq!(run(&[], &["python3", "main.py"]), GREETING);
    let text = std::fs::read_to_string(trace).unwrap();
    // A line for each piece that was needed; the layers are 134 MB.
    assert!(text.len() < 4 << 10 && prefetch["errors"] == 0, "{prefetch}\n{text}");
    assert_eq!(asked(), before);
}
