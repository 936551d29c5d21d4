//! The command line where it meets other programs: pipes, locks, other mounts, odd files.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use crate::support::image::{Fill, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder};
use crate::support::mount::Room;

/// A room with a complete layout in it, and a directory to mount on.
fn setting() -> (Arc<Room>, String, String) {
    let room = Room::new();
    let layer = LayerBuilder::new().file("a", 0o644, "content");
    let layout = room.path().join("layout");
    ImageBuilder::new().layer(layer, Compression::Gzip).build().write_layout(
        &layout,
        "v1",
        Fill::Full,
    );
    let mnt = room.path().join("mnt");
    fs::create_dir(&mnt).expect("a directory");
    (room, layout.display().to_string(), mnt.display().to_string())
}

#[test]
fn of_many_that_mount_on_one_place_at_once_one_does() {
    let (room, layout, mnt) = setting();
    let mounts: Vec<_> = (0..4)
        .map(|_| room.command(&["mount", "-q", &layout, &mnt]).spawn().expect("started"))
        .collect();
    let codes: Vec<_> =
        mounts.into_iter().map(|mut child| child.wait().expect("ended").code()).collect();
    let table = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let standing = table.lines().filter(|line| line.contains(&format!(" {mnt} "))).count();
    room.layoutfs(&["unmount", &mnt]);
    assert!(codes.iter().all(|code| matches!(code, Some(0 | 9))), "{codes:?}");
    assert_eq!(standing, codes.iter().filter(|code| **code == Some(0)).count(), "{codes:?}");
    assert!(standing <= 1, "{codes:?}");
}

#[test]
fn names_may_stand_behind_two_dashes() {
    let (room, layout, mnt) = setting();
    room.layoutfs(&["mount", "--view", "rootfs", "--", &layout, &mnt]);
    let read = fs::read(format!("{mnt}/a"));
    room.layoutfs(&["unmount", "--", &mnt]);
    assert_eq!(read.expect("mounted"), b"content");
}

#[test]
fn a_daemon_keeps_no_descriptor_of_its_caller() {
    let (room, layout, mnt) = setting();
    let path = room.path().join("lock");
    let program = env!("CARGO_BIN_EXE_layoutfs");
    let script = "exec 9>\"$1\"; flock 9; exec \"$2\" mount --cache-dir \"$3\" \"$4\" \"$5\"";
    let cache = room.cache_dir();
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(&path).arg(program).arg(cache).args([&layout, &mnt]);
    let environment = room.command(&["status"]);
    for (name, value) in environment.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let status = shell.stdin(Stdio::null()).status().expect("a shell");
    let lock = File::open(&path).expect("made by the shell");
    let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive);
    room.layoutfs(&["unmount", &mnt]);
    assert!(status.success());
    assert_eq!(locked, Ok(()), "the lock went with the command");
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let (room, layout, _) = setting();
    let codes: Vec<_> = (0..20)
        .map(|_| {
            let mut command = room.command(&["inspect", &layout]);
            let mut child = command.stdout(Stdio::piped()).spawn().expect("started");
            drop(child.stdout.take());
            child.wait().expect("ended").code()
        })
        .collect();
    // Another test's child has our end of the pipe between its fork and its exec: then it is read.
    assert!(codes.iter().all(|code| matches!(code, Some(0 | 1))), "{codes:?}");
    assert!(codes.contains(&Some(1)), "{codes:?}");
}

#[test]
fn verify_waits_for_no_pipe_that_is_named_like_a_blob() {
    let (room, layout, _) = setting();
    let name = format!("{layout}/blobs/sha256/{}", "0".repeat(64));
    let made = rustix::fs::mkfifoat(rustix::fs::CWD, &name, rustix::fs::Mode::RUSR);
    assert_eq!(made, Ok(()));
    let outcome = room.run(&["verify", &layout]);
    assert_eq!(outcome.code(), Some(7), "{outcome}");
    assert!(outcome.stdout.contains("not a regular file"), "{outcome}");
}

#[test]
fn a_mount_that_is_hidden_by_another_is_told_and_not_waited_for() {
    let (room, layout, mnt) = setting();
    let inner = format!("{mnt}/inner");
    fs::create_dir(&inner).expect("a directory");
    room.layoutfs(&["mount", &layout, &inner]);
    let tmpfs = Command::new("mount").args(["-t", "tmpfs", "none", &mnt]).status();
    fs::create_dir(&inner).expect("the same name in what hides it");
    let hidden = room.run(&["unmount", &inner]);
    let uncovered = Command::new("umount").arg(&mnt).status();
    let outcome = room.run(&["unmount", &inner]);
    assert!(tmpfs.expect("mount").success() && uncovered.expect("umount").success());
    assert_eq!(hidden.code(), Some(9), "{hidden}");
    assert_eq!(outcome.code(), Some(0), "{outcome}");
}

#[test]
fn a_directory_with_more_than_a_layout_in_it_is_not_replaced() {
    let (room, layout, _) = setting();
    let precious = format!("{layout}/precious");
    fs::write(&precious, "x").expect("written");
    let registry = crate::support::registry::Registry::start();
    let image = ImageBuilder::new().layer(LayerBuilder::new(), Compression::Gzip).build();
    image.push(&registry, "a/b", "v1");
    let outcome = room.run(&["sparse", &registry.reference("a/b", "v1"), "--to", &layout]);
    assert_eq!(outcome.code(), Some(2), "{outcome}");
    assert!(fs::exists(&precious).expect("looked at"));
}
