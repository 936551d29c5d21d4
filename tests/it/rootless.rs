//! An ordinary user: containers in a user namespace that `run` makes, layers from them, and the
//! words where namespaces are forbidden.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::real::debian::{Debian, tool};
use crate::real::programs::paths_below;
use crate::support::ground::Ground;
use crate::support::mount::{LIMIT, Outcome, mountpoints, run};

/// `tests/setup-debian.sh` makes it, with a range of subordinate ids.
const USER: &str = "layoutfs-test";

const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Every kind of change whose owner or mark depends on the namespace.
const CHANGES: &str = "set -e; \
    touch /srv/owned; chown 5:60 /srv/owned; \
    touch /srv/last; chown 65536:65536 /srv/last; \
    cp /bin/true /srv/setuid; chown 33:33 /srv/setuid; chmod 4755 /srv/setuid; \
    cp /bin/true /srv/capable; setcap cap_net_raw=ep /srv/capable; \
    rm /etc/issue; rm -r /etc/apt; mkdir /etc/apt; touch /etc/apt/new; \
    mv /etc/default /etc/renamed; ln /srv/owned /srv/link; mkfifo /srv/fifo; chown 7 /etc/passwd";

/// The user's own files: the program, a sparse layout, a cache.
struct Home {
    debian: Arc<Debian>,
    dir: Ground,
}

impl Home {
    fn new() -> Self {
        let uid = tool("id", &["-u", USER]).stdout;
        let uid = uid.trim().parse().expect("no test user: run tests/setup-debian.sh");
        let dir = Ground::new();
        for name in ["", "run", "tmp"] {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).unwrap();
            chown(&path, Some(uid), Some(uid)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        // Cargo's directory may be in root's home.
        let built = Path::new(env!("CARGO_BIN_EXE_layoutfs"));
        let program = dir.path().join("layoutfs");
        fs::hard_link(built, &program).or_else(|_| fs::copy(built, &program).map(drop)).unwrap();
        let home = Home { debian: Debian::shared(), dir };
        home.layoutfs(&["sparse", &home.debian.reference("v1"), "--to", "v1"]).success();
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `program` with the user's environment.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().current_dir(self.dir.path()).env("PATH", PATH);
        command.env("HOME", self.dir.path()).env("TMPDIR", self.path("tmp"));
        command.env("XDG_RUNTIME_DIR", self.path("run")).env("SOURCE_DATE_EPOCH", "1500000000");
        command
    }

    /// The user's `program`, not yet run.
    fn as_user(&self, program: &[&str]) -> Command {
        let mut command = self.command("/usr/bin/setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--init-groups"]).args(program);
        command
    }

    fn layoutfs(&self, args: &[&str]) -> Outcome {
        run(&mut self.as_user(&[&["./layoutfs"], args].concat()), LIMIT)
    }

    /// `layoutfs run v1 ARGS`, of which nothing may be left.
    fn run_v1(&self, args: &[&str]) -> Outcome {
        let outcome = self.layoutfs(&[&["run", "--quiet", "v1"], args].concat());
        self.assert_clean(&outcome);
        outcome
    }

    #[track_caller]
    fn assert_clean(&self, after: &Outcome) {
        let mut mounted = mountpoints();
        mounted.retain(|path| path.starts_with(self.dir.path()));
        assert_eq!(mounted, [""; 0].map(PathBuf::from), "nothing stays mounted: {after}");
        assert_eq!(paths_below(&self.path("tmp")), BTreeSet::new(), "no file stays: {after}");
        let left = paths_below(&self.path("run"));
        assert!(left.iter().all(|path| !path.ends_with(".json")), "{left:?}: {after}");
    }
}

#[test]
fn a_user_is_root_of_a_container_with_all_ids() {
    let home = Home::new();
    let script = "id -u; touch /srv/x; chown 5:60 /srv/x; stat -c %u:%g /srv/x /etc/shadow /proc; \
        cat /proc/self/uid_map | wc -l; touch /sys/kernel/x 2>/dev/null || echo sealed; \
        grep CapEff /proc/self/status; hostname; su games -s /bin/sh -c 'id -u'; exit 7";
    let outcome = home.run_v1(&["--", "sh", "-c", script]);
    let expected =
        "0\n5:60\n0:42\n65534:65534\n2\nsealed\nCapEff:\t00000000a80425fb\nlayoutfs\n5\n";
    assert_eq!((outcome.code(), &*outcome.stdout), (Some(7), expected), "{outcome}");
    let games =
        home.run_v1(&["--user", "games", "sh", "-c", "id -u; touch /usr/x || echo refused"]);
    assert_eq!((games.code(), &*games.stdout), (Some(0), "5\nrefused\n"), "{games}");
    assert_eq!(home.run_v1(&["not-there"]).code(), Some(127));
}

#[test]
fn a_users_changes_are_committed_as_roots_are() {
    let home = Home::new();
    let commit = |upper: &str, to: &str| {
        let args = ["commit", "--json", upper, "--base", "v1", "--to", to];
        let [user, root] = [home.as_user(&["./layoutfs"]), home.command("./layoutfs")];
        [user, root].map(|mut command| run(command.args(args), LIMIT))
    };
    home.run_v1(&["--upper", "users", "--", "sh", "-c", CHANGES]).success();
    let beside = fs::read_dir(home.dir.path()).unwrap().map(|e| e.unwrap().file_name());
    let work: Vec<_> = beside.filter(|name| name.to_string_lossy().contains("work")).collect();
    assert_eq!(work, [""; 0], "the work directory is gone");
    let again = home.run_v1(&["--upper", "users", "stat", "-c", "%u", "/srv/owned"]);
    assert_eq!(again.success(), "5\n", "the next container goes on where this one ended");
    let mut by_root = home.command("./layoutfs");
    by_root.args(["run", "v1", "--cache-dir", "root-cache", "--upper", "roots", "--"]);
    run(by_root.args(["sh", "-c", CHANGES]), LIMIT).success();
    let [of_user, not_own] = commit("users", "users-image");
    let [refused, of_root] = commit("roots", "roots-image");
    let layer = |outcome: Outcome| {
        let value: serde_json::Value = serde_json::from_str(&outcome.success()).unwrap();
        (value["layer"].clone(), value["diff_id"].clone())
    };
    assert!(not_own.stderr.contains("written in a user namespace"), "{not_own}");
    assert_eq!(refused.code(), Some(8), "{refused}");
    assert!(refused.stderr.contains("commit it as whoever wrote it"), "{refused}");
    let (of_user, of_root, not_own) = (layer(of_user), layer(of_root), layer(not_own));
    assert_eq!(of_user, of_root, "the same owners, whiteouts, capabilities");
    assert_ne!(of_user, not_own, "seen from outside, owners are others");
}

#[test]
fn in_a_namespace_of_the_callers_bundle_and_upper_work_too() {
    let home = Home::new();
    let inside = |script: &str| {
        let unshare = ["unshare", "--user", "--map-root-user", "--map-auto", "--mount"];
        let outcome =
            run(&mut home.as_user(&[&unshare[..], &["sh", "-ec", script]].concat()), LIMIT);
        home.assert_clean(&outcome);
        outcome.success()
    };
    let printed = inside(
        "./layoutfs bundle -q v1 bundle -- sh -c 'echo in a bundle; chown 5 /srv; exit 3'
        code=0; /usr/sbin/runc --root $TMPDIR/state run --bundle bundle layoutfs-rootless || code=$?
        stat -c %u bundle/rootfs/srv
        ./layoutfs unmount bundle
        rmdir $TMPDIR/state
        grep -c $PWD /proc/self/mountinfo || echo $code",
    );
    assert_eq!(printed, "in a bundle\n5\n0\n3\n");
    let printed = inside(
        "mkdir mnt; ./layoutfs mount -q v1 mnt --upper changed
        rm -r mnt/etc/apt; mkdir mnt/etc/apt; chown 33 mnt/etc/apt
        ./layoutfs unmount mnt
        ls -A mnt; stat -c %u changed/etc/apt; getfattr --only-values -n user.overlay.opaque changed/etc/apt",
    );
    assert_eq!(printed, "33\ny");
    // A mount namespace of the caller's is not needed by what does not outlive the command.
    let alone = ["unshare", "--user", "--map-root-user", "--map-auto", "./layoutfs", "run", "-q"];
    let outcome = run(home.as_user(&alone).args(["v1", "echo", "ran"]), LIMIT);
    assert_eq!((outcome.code(), &*outcome.stdout), (Some(0), "ran\n"), "{outcome}");
    let alone = [&alone[..5], &["mount", "v1", "mnt", "--upper", "changed"]].concat();
    let outcome = run(&mut home.as_user(&alone), LIMIT);
    assert_eq!(outcome.code(), Some(8), "{outcome}");
    assert!(outcome.stderr.contains("unshare --mount"), "{outcome}");
    home.assert_clean(&outcome);
}

/// `layoutfs run` of a container by `program`, and what it says when it cannot.
#[track_caller]
fn refused(home: &Home, command: &mut Command, word: &str) {
    let outcome = run(command, LIMIT);
    assert_eq!(outcome.code(), Some(8), "{outcome}");
    assert!(outcome.stderr.contains(word), "{word}: {outcome}");
    assert_eq!(outcome.stderr.lines().count(), 1, "one line says it: {outcome}");
    home.assert_clean(&outcome);
}

#[test]
fn what_forbids_user_namespaces_is_named() {
    let home = Home::new();
    let run_v1 = ["./layoutfs", "run", "-q", "v1", "true"];
    refused(&home, home.as_user(&run_v1).env("PATH", "/none"), "no newuidmap in PATH");
    let only_users = home.path("only-users");
    fs::create_dir(&only_users).unwrap();
    std::os::unix::fs::symlink("/usr/bin/newuidmap", only_users.join("newuidmap")).unwrap();
    refused(&home, home.as_user(&run_v1).env("PATH", &only_users), "no newgidmap in PATH");
    let mut nobody = home.command("setpriv");
    nobody.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]).args(run_v1);
    refused(&home, &mut nobody, "/etc/subuid has no range for nobody");
    let mut commit = home.as_user(&["./layoutfs", "commit", "v1", "--base", "v1", "--to", "x"]);
    refused(&home, commit.env("PATH", "/none"), "`commit` without root");
    let no_setuid = [&["setpriv", "--no-new-privs"], &run_v1[..]].concat();
    refused(&home, &mut home.as_user(&no_setuid), "no_new_privs");
    // A namespace has a limit of its own for those within it.
    let within = |limit: &str| {
        let script =
            format!("echo 0 >/proc/sys/user/{limit}; exec setpriv --reuid 5 {}", run_v1.join(" "));
        home.as_user(&["unshare", "--user", "--map-root-user", "--map-auto", "sh", "-c", &script])
    };
    refused(&home, &mut within("max_user_namespaces"), "user.max_user_namespaces is 0");
    let closed = home.path("fuse");
    let script = "mknod -m 600 $1 c 10 229; mount --bind $1 /dev/fuse; rm $1; shift; exec \"$@\"";
    let mut command = home.command("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]).arg(&closed);
    command.args(["setpriv", "--reuid", USER, "--regid", USER, "--init-groups"]).args(run_v1);
    let outcome = run(&mut command, LIMIT);
    assert_eq!(outcome.code(), Some(8), "{outcome}");
    assert!(outcome.stderr.contains("chmod 666 /dev/fuse"), "{outcome}");
}

#[test]
fn commands_whose_mounts_outlive_them_name_the_way() {
    let home = Home::new();
    fs::create_dir(home.path("mnt")).unwrap();
    for args in
        [&["bundle", "v1", "bundle", "true"][..], &["mount", "v1", "mnt", "--upper", "upper"]]
    {
        let command = || home.as_user(&[&["./layoutfs"], args].concat());
        refused(&home, &mut command(), "`unshare --user --map-root-user --map-auto --mount`");
        refused(
            &home,
            command().env("PATH", "/none"),
            "you cannot make one: there is no newuidmap",
        );
        assert!(!home.path("upper").exists() && !home.path("bundle").exists());
    }
}

#[test]
fn what_a_users_killed_run_left_is_cleared_by_his_next() {
    let home = Home::new();
    let marker = "sleep 597.6";
    let script = format!("echo started; exec {marker}");
    let out = home.path("out");
    // Whom root of the next one's namespace may not kill.
    let args = ["./layoutfs", "run", "-q", "--user", "games", "v1", "--", "sh", "-c", &script];
    let mut command = home.as_user(&args);
    let mut child = command.stdout(fs::File::create(&out).unwrap()).spawn().unwrap();
    let started = Instant::now();
    while fs::read_to_string(&out).unwrap() != "started\n" {
        assert!(started.elapsed() < LIMIT && child.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    home.run_v1(&["true"]).success();
    let left = tool("pgrep", &["-fx", marker]);
    assert_eq!((left.code(), &*left.stdout), (Some(1), ""), "no process is left");
}
