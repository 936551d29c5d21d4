//! `commit` against the kernel: random changes through a real overlay, on few names so that
//! everything collides; then the committed image has to show what the overlay shows.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use crate::commit::comparable;
use crate::support::image::ImageBuilder;
use crate::support::layer::{Compression, LayerBuilder};
use crate::support::mount::Room;
use crate::support::registry::Registry;

/// Mounting five times a case is what takes the time.
const CASES: u32 = 12;

const LOWER: &str = "
    dir a
    dir a/a
    file a/a/a = aaa
    file a/a/b = aab
    dir a/a/c
    file a/a/c/a = deep
    file a/b @1600000000.5 +user.n=1 = ab
    symlink a/c -> b
    dir b
    file b/a = ba
    dir b/c
    file c = c";

/// What a container may do to a name; what is impossible there fails, and changes nothing.
#[derive(Debug, Clone)]
enum Step {
    Write(String, u8),
    /// Opened for writing, and not written: overlayfs copies it up.
    Open(String),
    MakeDirectory(String),
    /// With everything beneath it.
    Remove(String),
    /// Removed, and made anew with its directories, but without files.
    Anew(String),
    Mode(String, u32),
    Time(String, u32),
    Attribute(String, Vec<u8>),
    Rename(String, String),
    Link(String, String),
    Symlink(String, String),
    Fifo(String),
}

fn paths() -> impl Strategy<Value = String> {
    prop::collection::vec("[abc]", 1..5).prop_map(|names| names.join("/"))
}

fn steps() -> impl Strategy<Value = Step> {
    let value = prop::collection::vec(any::<u8>(), 0..4);
    prop_oneof![
        3 => (paths(), any::<u8>()).prop_map(|(p, n)| Step::Write(p, n)),
        1 => paths().prop_map(Step::Open),
        3 => paths().prop_map(Step::MakeDirectory),
        4 => paths().prop_map(Step::Remove),
        2 => paths().prop_map(Step::Anew),
        1 => (paths(), 0..0o10000u32).prop_map(|(p, mode)| Step::Mode(p, mode)),
        1 => (paths(), any::<u32>()).prop_map(|(p, ns)| Step::Time(p, ns)),
        1 => (paths(), value).prop_map(|(p, v)| Step::Attribute(p, v)),
        2 => (paths(), paths()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (paths(), paths()).prop_map(|(from, to)| Step::Link(from, to)),
        1 => (paths(), paths()).prop_map(|(p, to)| Step::Symlink(p, to)),
        1 => paths().prop_map(Step::Fifo),
    ]
}

/// The directory and those beneath it, parents first.
fn find_directories(at: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if fs::symlink_metadata(at)?.is_dir() {
        found.push(at.to_owned());
        for entry in fs::read_dir(at)? {
            find_directories(&entry?.path(), found)?;
        }
    }
    Ok(())
}

/// Links are never followed out of the mount: targets have no `..` and no leading slash.
fn apply(root: &Path, step: &Step) -> std::io::Result<()> {
    let at = |path: &str| root.join(path);
    let is_fifo = |path: &str| {
        use std::os::unix::fs::FileTypeExt;
        fs::metadata(at(path)).is_ok_and(|meta| meta.file_type().is_fifo())
    };
    match step {
        // Opening a FIFO waits for its other end.
        Step::Write(path, _) | Step::Open(path) if is_fifo(path) => Ok(()),
        Step::Write(path, n) => fs::write(at(path), vec![*n; usize::from(*n)]),
        Step::Open(path) => OpenOptions::new().append(true).open(at(path)).map(drop),
        Step::MakeDirectory(path) => fs::create_dir(at(path)),
        Step::Remove(path) => fs::remove_file(at(path)).or_else(|_| fs::remove_dir_all(at(path))),
        Step::Anew(path) => {
            let mut directories = Vec::new();
            find_directories(&at(path), &mut directories)?;
            fs::remove_dir_all(at(path))?;
            directories.iter().try_for_each(fs::create_dir)
        }
        Step::Mode(path, mode) => fs::set_permissions(at(path), Permissions::from_mode(*mode)),
        Step::Time(path, _) if is_fifo(path) => Ok(()),
        Step::Time(path, ns) => fs::File::open(at(path))?
            .set_modified(UNIX_EPOCH + Duration::new(1_500_000_000, *ns % 1_000_000_000)),
        Step::Attribute(path, value) => {
            Ok(lsetxattr(at(path), "user.m", value, XattrFlags::empty())?)
        }
        Step::Rename(from, to) => fs::rename(at(from), at(to)),
        Step::Link(from, to) => fs::hard_link(at(from), at(to)),
        Step::Symlink(path, to) => std::os::unix::fs::symlink(to, at(path)),
        Step::Fifo(path) => Ok(mknodat(CWD, at(path), FileType::Fifo, Mode::RUSR, 0)?),
    }
}

#[test]
fn random_changes_survive_a_commit() {
    let (registry, room) = (Registry::start(), Room::new());
    let image = ImageBuilder::new().layer(LayerBuilder::text(LOWER), Compression::Gzip).build();
    image.push(&registry, "team/app", "v1");
    let text = |name: String| room.path().join(name).display().to_string();
    let base = text("base".to_owned());
    room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &base]);
    let case = std::cell::Cell::new(0);
    let config = ProptestConfig {
        cases: CASES,
        max_shrink_iters: 40,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let changes = prop::collection::vec(steps(), 10..60);
    let outcome = TestRunner::new(config).run(&changes, |steps| {
        case.set(case.get() + 1);
        let [upper, out] = ["upper", "out"].map(|name| text(format!("{name}-{}", case.get())));
        let overlay = || room.mount(&base, &["--upper", &upper]);
        let changed = overlay();
        // Impossible steps fail, which is as good as not taking them.
        let taken = steps.iter().filter(|step| apply(changed.path(), step).is_ok()).count();
        changed.unmount();
        let expected = comparable(overlay().path());
        room.layoutfs(&["commit", &upper, "--base", &base, "--to", &out]);
        let shown = comparable(room.mount(&out, &[]).path());
        let difference = expected.diff(&shown);
        prop_assert!(difference.is_empty(), "after {taken} steps:\n{difference}");
        Ok(())
    });
    assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
}
