//! Without root: enters a user namespace in which this process is root, or says what forbids it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::Access;
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use super::context::run_directory;
use super::{args, container};
use crate::fetch::{Error, ErrorKind, Result};
use crate::fs::user_namespace;

/// Which ids a user may have in namespaces beside his own (subuid(5)), and the programs that may
/// write them into a namespace's map (package `uidmap` or `shadow-utils`).
const USERS: Kind = Kind { ranges: "/etc/subuid", program: "newuidmap", option: "--add-subuids" };
const GROUPS: Kind = Kind { ranges: "/etc/subgid", program: "newgidmap", option: "--add-subgids" };

/// Starts a shell in a namespace such as [`enter`] makes.
const SHELLS: &str = "`unshare --user --map-root-user --map-auto --mount` (util-linux 2.38 or later) or \
                     `podman unshare`";

/// Waits until the namespace is there: nobody in it may write its map, so who does is started
/// before.
const MAPPER: &str = "read -r _ && exec \"$@\"";

struct Kind {
    ranges: &'static str,
    program: &'static str,
    option: &'static str,
}

/// Ids that belong to a user, of whom he has none himself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

/// What the machine says about user namespaces.
#[derive(Debug, Clone, Copy, Default)]
struct Rules {
    /// `user.max_user_namespaces`.
    namespaces_max: Option<u64>,
    /// `kernel.unprivileged_userns_clone`, which Debian's kernels have.
    clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns`, which Ubuntu's kernels have.
    apparmor: Option<u64>,
    /// A filter of system calls is on.
    seccomp: bool,
    /// Setuid programs have no effect.
    no_new_privileges: bool,
}

/// Makes this process root in a user namespace, with a mount namespace of its own, if the command
/// mounts overlayfs or needs ids of an image, ends before this process does, and the user is not
/// root already. Must come before any thread is started.
///
/// # Errors
/// [`ErrorKind::CannotMount`] with what forbids it.
pub fn enter(command: &args::Command) -> Result<()> {
    let (name, has_container) = match command {
        args::Command::Run(_) => ("run", true),
        args::Command::Extend(_) => ("extend", true),
        args::Command::Commit(_) => ("commit", false),
        _ => return Ok(()),
    };
    let refused = |why: String| {
        let message = format!("`{name}` without root needs a user namespace: {why}");
        Error::new(ErrorKind::CannotMount, message)
    };
    if !rustix::process::geteuid().is_root() {
        let maps = prepare().map_err(refused)?;
        if has_container {
            // Only from here: root of another namespace may not end containers of this user's.
            container::end_dead(&run_directory()?);
        }
        return become_root(&maps).map_err(refused);
    }
    if has_container && user_namespace::is_inside() {
        // Whoever made the namespace may have left the mounts to somebody else's.
        return unshare(UnshareFlags::NEWNS).map_err(|e| {
            let why = match e {
                Errno::PERM => {
                    "it is a container's without CAP_SYS_ADMIN: start the container with `--cap-add \
                     SYS_ADMIN --device /dev/fuse`"
                }
                Errno::NOSPC => "user.max_mnt_namespaces is too small",
                _ => "see dmesg for what the kernel says",
            };
            refused(format!("in this one nothing can be mounted: {e}; {why}"))
        });
    }
    Ok(())
}

/// For commands whose mounts outlive them, so that a namespace of their own would be of no use.
///
/// # Errors
/// [`ErrorKind::CannotMount`] for anybody but root.
pub fn need_root(command: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let advice = match prepare() {
        Ok(_) => format!(
            "{SHELLS} starts a shell in one: run this command there, and what uses the mount, which \
             nobody outside sees"
        ),
        Err(why) => format!("and you cannot make one: {why}"),
    };
    let message = format!(
        "`{command}` mounts overlayfs, for which it has to be run by root, or in a user namespace \
         with a mount namespace of its own; {advice}"
    );
    Err(Error::new(ErrorKind::CannotMount, message))
}

/// In a user namespace, an upper directory of somebody who is not in it has owners and marks that
/// cannot be seen.
///
/// # Errors
/// [`ErrorKind::CannotMount`]: it is such a directory.
pub fn check_upper(upper: &Path) -> Result<()> {
    let hidden =
        || matches!(rustix::fs::access(upper, Access::WRITE_OK), Err(Errno::ACCESS | Errno::PERM));
    if !user_namespace::is_inside() || !hidden() {
        return Ok(());
    }
    let message = format!(
        "{} belongs to a user who is not in this user namespace, so it was written by root or in \
         another namespace: commit it as whoever wrote it",
        upper.display()
    );
    Err(Error::new(ErrorKind::CannotMount, message))
}

fn become_root(maps: &[Map; 2]) -> std::result::Result<(), String> {
    let mut mappers = Vec::new();
    for map in maps {
        mappers.push(map.start().map_err(|e| format!("cannot start /bin/sh: {e}"))?);
    }
    let entered = unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS);
    entered.map_err(|e| Rules::read().why_refused(e))?;
    for (map, mapper) in maps.iter().zip(mappers) {
        map.write(mapper)?;
    }
    // The mounts of a new namespace are downstream already: this only asks whether we may.
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", downstream).map_err(|e| Rules::read().why_powerless(e))
}

#[expect(deprecated, reason = "what is unsafe in it is another flag: separate descriptor tables")]
fn unshare(flags: UnshareFlags) -> std::result::Result<(), Errno> {
    rustix::thread::unshare(flags)
}

/// The maps of users and groups that this user may have.
fn prepare() -> std::result::Result<[Map; 2], String> {
    let rules = Rules::read();
    rules.check()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let find = |kind: &Kind| {
        let mut found = std::env::split_paths(&path).map(|folder| folder.join(kind.program));
        found.find(|program| program.is_file()).ok_or_else(|| {
            format!(
                "there is no {} in PATH: install it (Debian: apt-get install uidmap; Fedora: dnf \
                 install shadow-utils)",
                kind.program
            )
        })
    };
    let programs = [find(&USERS)?, find(&GROUPS)?];
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let user = user_name()?;
    let [users, groups] = programs;
    Ok([Map::new(&USERS, users, &user, uid, uid)?, Map::new(&GROUPS, groups, &user, uid, gid)?])
}

/// As the system's databases have it, which may be elsewhere than in `/etc/passwd`.
fn user_name() -> std::result::Result<String, String> {
    let output = Command::new("id").arg("-un").stderr(Stdio::null()).output();
    let output = output.map_err(|e| format!("cannot run `id -un`: {e}"))?;
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || name.is_empty() {
        let uid = rustix::process::getuid().as_raw();
        return Err(format!("user {uid} has no name on this machine, and so no subordinate ids"));
    }
    Ok(name)
}

/// A map of a namespace: 0 is this process' own id, from 1 on come the subordinate ones.
struct Map {
    program: PathBuf,
    arguments: Vec<String>,
}

impl Map {
    fn new(
        kind: &Kind,
        program: PathBuf,
        user: &str,
        uid: u32,
        own: u32,
    ) -> std::result::Result<Self, String> {
        // A file that is not there has no ranges.
        let text = std::fs::read_to_string(kind.ranges).unwrap_or_default();
        let ranges = subordinate(&text, user, uid);
        if ranges.is_empty() {
            return Err(format!(
                "{} has no range for {user}: as root `usermod {} 100000-165535 {user}` (a range \
                 that nobody else has)",
                kind.ranges, kind.option
            ));
        }
        let mut arguments = vec![std::process::id().to_string()];
        let mut inside = 0u32;
        let own = Range { first: own, count: 1 };
        for Range { first, count } in std::iter::once(own).chain(ranges) {
            arguments.extend([inside, first, count].map(|number| number.to_string()));
            inside = inside.saturating_add(count);
        }
        Ok(Map { program, arguments })
    }

    /// Who will write it, waiting for the word.
    fn start(&self) -> std::io::Result<Child> {
        Command::new("/bin/sh")
            .args(["-c", MAPPER, "sh"])
            .arg(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    }

    /// Gives the word, and waits until it is written.
    fn write(&self, mut mapper: Child) -> std::result::Result<(), String> {
        let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", self.program.display());
        if let Some(mut stdin) = mapper.stdin.take() {
            stdin.write_all(b"\n").map_err(|e| failed(&e))?;
        }
        let output = mapper.wait_with_output().map_err(|e| failed(&e))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(failed(&format!("{said} ({})", output.status)))
    }
}

/// The ranges of a user in the text of `/etc/subuid` or `/etc/subgid`: `name-or-uid:first:count` in
/// each line. What is malformed is passed over, as the programs that write maps do.
fn subordinate(text: &str, user: &str, uid: u32) -> Vec<Range> {
    let uid = uid.to_string();
    let parse = |line: &str| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let range = Range {
            first: fields.next()?.trim().parse().ok()?,
            count: fields.next()?.trim().parse().ok()?,
        };
        ((owner == user || owner == uid) && range.count > 0).then_some(range)
    };
    text.lines().filter_map(parse).collect()
}

impl Rules {
    fn read() -> Self {
        let number = |name: &str| {
            std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
        };
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let is_set = |field: &str| {
            let mut lines = status.lines().filter_map(|line| line.split_once(':'));
            lines.any(|(name, value)| name == field && value.trim() != "0")
        };
        Rules {
            namespaces_max: number("user/max_user_namespaces"),
            clone: number("kernel/unprivileged_userns_clone"),
            apparmor: number("kernel/apparmor_restrict_unprivileged_userns"),
            seccomp: is_set("Seccomp"),
            no_new_privileges: is_set("NoNewPrivs"),
        }
    }

    /// What is forbidden, whoever asks.
    fn check(&self) -> std::result::Result<(), String> {
        if self.namespaces_max == Some(0) {
            let advice = "user.max_user_namespaces is 0, which forbids them: as root \
                          `sysctl -w user.max_user_namespaces=15000`";
            return Err(advice.to_owned());
        }
        if self.clone == Some(0) {
            let advice = "kernel.unprivileged_userns_clone is 0, which forbids them to users: as \
                          root `sysctl -w kernel.unprivileged_userns_clone=1`";
            return Err(advice.to_owned());
        }
        if self.no_new_privileges {
            let advice = "setuid programs have no effect here (no_new_privs), and newuidmap is one: \
                          in a container, start it without `--security-opt no-new-privileges`";
            return Err(advice.to_owned());
        }
        Ok(())
    }

    /// The kernel does not make a namespace.
    fn why_refused(&self, error: Errno) -> String {
        let why = match error {
            Errno::NOSPC => {
                let most = self.namespaces_max.map_or("a number".to_owned(), |n| n.to_string());
                format!(
                    "user.max_user_namespaces allows {most}, and so many are there, or \
                     user.max_mnt_namespaces is too small"
                )
            }
            Errno::USERS => "user namespaces are nested too deep".to_owned(),
            Errno::INVAL | Errno::NOSYS => "this kernel has no user namespaces".to_owned(),
            _ if self.seccomp => "a filter of system calls forbids it: start the container with \
                                  `--security-opt seccomp=unconfined`"
                .to_owned(),
            _ => "a security module or chroot forbids it".to_owned(),
        };
        format!("the kernel does not make one: {error}; {why}")
    }

    /// The kernel has made a namespace in which root may do nothing.
    fn why_powerless(&self, error: Errno) -> String {
        if self.apparmor.is_some_and(|restricted| restricted != 0) {
            return format!(
                "it may not mount: {error}; kernel.apparmor_restrict_unprivileged_userns is on: as \
                 root `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or give layoutfs \
                 an AppArmor profile with `userns,`"
            );
        }
        format!(
            "it may not mount: {error}; a security module or a filter of system calls forbids it"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_user_by_name_or_number() {
        let text =
            "# comment\nann:100000:65536\nbob:1:1\n1000:300000:10\nann:5\nann:x:1\nann:7:0\n";
        let range = |first, count| Range { first, count };
        assert_eq!(subordinate(text, "ann", 1000), [range(100_000, 65_536), range(300_000, 10)]);
        assert_eq!(subordinate(text, "eve", 7), []);
    }

    #[test]
    fn each_rule_that_forbids_is_named() {
        let rules = Rules { namespaces_max: Some(0), ..Rules::default() };
        assert!(rules.check().expect_err("forbidden").contains("user.max_user_namespaces=15000"));
        let rules = Rules { clone: Some(0), ..Rules::default() };
        let why = rules.check().expect_err("forbidden");
        assert!(why.contains("kernel.unprivileged_userns_clone=1"), "{why}");
        let rules = Rules { namespaces_max: Some(9), seccomp: true, ..Rules::default() };
        assert!(rules.check().is_ok());
        let why = Rules { no_new_privileges: true, ..rules }.check().expect_err("forbidden");
        assert!(why.contains("no_new_privs"), "{why}");
        assert!(rules.why_refused(Errno::NOSPC).contains("max_user_namespaces allows 9"));
        assert!(rules.why_refused(Errno::PERM).contains("seccomp=unconfined"));
        assert!(rules.why_refused(Errno::INVAL).contains("no user namespaces"));
        let rules = Rules { apparmor: Some(1), ..Rules::default() };
        let why = rules.why_powerless(Errno::ACCESS);
        assert!(why.contains("kernel.apparmor_restrict_unprivileged_userns=0"), "{why}");
    }
}
