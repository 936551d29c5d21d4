//! Programs run on the mounted rootfs, and what they write is only in the upper directory.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use super::debian::{Debian, tool};
use super::layout_view::podman;
use crate::support::mount::{LIMIT, run};

pub const GREETING: &str = "{\"hello\": \"layoutfs\"}\n";

/// What a session does in its chroot: each kind of change once, a compiler, a package.
const SESSION: &str = r#"
cd /opt/odd
echo more >>hard-a
rm -r opaque
mv real/file real/moved
chmod 600 setuid
mkdir fresh
echo x >fresh/file
printf '%s\n' '#include <stdio.h>' 'int main(void){puts("compiled");return 0;}' >/tmp/p.c
gcc -o /usr/local/bin/p /tmp/p.c
/usr/local/bin/p
dpkg -i /tmp/probe.deb >/dev/null
rm /tmp/p.c /tmp/probe.deb
cat hard-a real/moved /usr/share/layoutfs-probe/state
"#;

/// What the session leaves in the upper directory, and nothing else.
const CHANGED: &str = "opt opt/odd opt/odd/fresh opt/odd/fresh/file opt/odd/hard-a opt/odd/opaque \
    opt/odd/real opt/odd/real/file opt/odd/real/moved opt/odd/setuid tmp usr usr/local \
    usr/local/bin usr/local/bin/p usr/share usr/share/layoutfs-probe \
    usr/share/layoutfs-probe/file usr/share/layoutfs-probe/state var var/lib var/lib/dpkg \
    var/lib/dpkg/info var/lib/dpkg/info/layoutfs-probe.list \
    var/lib/dpkg/info/layoutfs-probe.md5sums var/lib/dpkg/info/layoutfs-probe.postinst \
    var/lib/dpkg/lock var/lib/dpkg/lock-frontend var/lib/dpkg/status var/lib/dpkg/status-old \
    var/lib/dpkg/triggers var/lib/dpkg/triggers/Lock var/lib/dpkg/updates var/log \
    var/log/dpkg.log";

pub fn paths_below(dir: &Path) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            paths.insert(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            }
        }
    }
    paths
}

/// The kernel's form of "removed".
fn is_overlay_whiteout(path: &Path) -> bool {
    let meta = std::fs::symlink_metadata(path).unwrap();
    meta.file_type().is_char_device() && meta.rdev() == 0
}

#[test]
fn podman_runs_a_program_on_the_mounted_rootfs() {
    let debian = Debian::shared();
    let rootfs = format!("{}:O", debian.rootfs("v1").path().display());
    // podman asks for more than a hard limit allows, which not every root may raise.
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
    let args =
        [&["run", "--rm", "--network", "none"], &limits[..], &["--rootfs", &rootfs]].concat();
    let printed = podman(&debian, &[&args[..], &["python3", "/workspace/main.py"]].concat());
    assert_eq!(printed, GREETING);
}

#[test]
fn a_program_that_needs_rights_of_its_file_gets_them() {
    let debian = Debian::shared();
    let rootfs = debian.rootfs("v1");
    let capable = rootfs.path().join("usr/bin/capable-env");
    let printed = tool("getcap", &[capable.to_str().unwrap()]).success();
    assert_eq!(printed.trim_end(), format!("{} cap_net_raw=ep", capable.display()));
}

#[test]
fn the_upper_directory_holds_exactly_what_programs_changed() {
    let debian = Debian::shared();
    let image = debian.sparse("v1");
    let upper = debian.new_dir("upper").join("changes");
    std::fs::create_dir(&upper).unwrap();
    let options = ["--upper", upper.to_str().unwrap()];
    let mount = debian.room.mount(image.to_str().unwrap(), &options);
    std::fs::copy(debian.probe_package(), mount.path().join("tmp/probe.deb")).unwrap();
    let mut session = Command::new("chroot");
    session.arg(mount.path()).args(["/bin/sh", "-euc", SESSION]).env_clear();
    session.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
    let printed = run(&mut session, LIMIT).success();
    assert_eq!(
        printed, "compiled\none inode, three names\nmore\nwithout xattrs\nconfigured\n",
        "compiled and installed"
    );
    mount.unmount();
    let expected = CHANGED.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(paths_below(&upper), expected);
    assert!(is_overlay_whiteout(&upper.join("opt/odd/opaque")));
    assert!(is_overlay_whiteout(&upper.join("opt/odd/real/file")));
    let setuid = std::fs::metadata(upper.join("opt/odd/setuid")).unwrap();
    assert_eq!(setuid.permissions().mode() & 0o7777, 0o600);
    let odd = std::fs::metadata(upper.join("opt/odd/real/moved")).unwrap();
    assert_eq!(odd.mtime_nsec(), 123_456_818, "copied up with its time");
    // The shared mount of the same image shows nothing of it.
    assert!(debian.rootfs("v1").path().join("opt/odd/opaque/new").exists());
}
