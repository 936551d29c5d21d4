//! The test support's listings and commands.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use crate::support::listing::Listing;
use crate::support::mount::{self, Room};

fn tree(content: &str) -> (tempfile::TempDir, Listing) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("d")).unwrap();
    std::fs::write(at("d/a"), content).unwrap();
    std::fs::hard_link(at("d/a"), at("b")).unwrap();
    symlink("d/a", at("l")).unwrap();
    std::fs::set_permissions(at("b"), PermissionsExt::from_mode(0o4750)).unwrap();
    rustix::fs::lsetxattr(at("b"), "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let time = UNIX_EPOCH + Duration::new(1_700_000_000, 5);
    std::fs::File::open(at("b")).unwrap().set_modified(time).unwrap();
    let mut listing = Listing::of(dir.path());
    for path in ["", "d", "l"] {
        let facts = listing.0.get_mut(path.as_bytes()).unwrap();
        (facts.mtime, facts.mtime_ns) = (0, 0);
    }
    (dir, listing)
}

#[test]
fn a_listing_tells_types_modes_times_links_attributes_and_content() {
    let (_dir, listing) = tree("abc");
    assert_eq!(listing.paths(), ["", "b", "d", "d/a", "l"]);
    let b = listing.get("b").unwrap();
    let line = "3 1700000000.000000005 x2 ba7816bf8f01 = b user.x=1";
    assert_eq!(b.to_string(), format!("-4750 {}:{} {line}", b.uid, b.gid));
    assert_eq!(listing.get("d/a"), Some(b), "two names of one file");
    assert_eq!(listing.get("l").unwrap().target.as_deref(), Some(&b"d/a"[..]));
}

#[test]
fn a_difference_names_its_paths_and_nothing_else() {
    let (_one, one) = tree("abc");
    let (_two, two) = tree("abd");
    let (_same, same) = tree("abc");
    one.assert_same(&same);
    let lines: Vec<String> = one.diff(&two).lines().map(|l| l[..3].to_owned()).collect();
    assert_eq!(lines, ["- b", "+ b", "- d", "+ d"]);
}

#[test]
fn a_command_is_heard_and_one_that_hangs_is_ended() {
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo out; echo err >&2; exit 3"]);
    let outcome = mount::run(&mut shell, mount::LIMIT);
    assert_eq!((outcome.code(), &*outcome.stdout, &*outcome.stderr), (Some(3), "out\n", "err\n"));
    let hung = std::panic::catch_unwind(|| {
        mount::run(Command::new("sleep").arg("1000"), Duration::from_millis(20))
    });
    assert!(hung.is_err());
}

#[test]
fn a_room_leaves_nothing_behind() {
    let room = Room::new();
    let path = room.path().to_owned();
    assert!(path.join("cache").is_dir() && room.cache_dir().starts_with(&path));
    assert_eq!(room.logs(), "");
    drop(room);
    assert!(!path.exists());
    assert!(mount::mountpoints().iter().any(|at| at.to_str() == Some("/")));
}
