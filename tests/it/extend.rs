//! `layoutfs extend` before anything is mounted: what the phases left, and what is missing.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use crate::support::image::{Fill, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder};
use crate::support::mount::{LIMIT, Outcome, Room, run};

const PLACE: &str = "reg.example/cnb/run/base";

/// A layout directory with a sparse run image, and what the phases left.
struct Phases {
    room: Arc<Room>,
    digest: String,
}

impl Phases {
    fn new() -> Self {
        let room = Room::new();
        let layer = LayerBuilder::new().file("a", 0o644, "content");
        let image = ImageBuilder::new().layer(layer, Compression::Gzip).build();
        image.write_layout(&room.path().join("layout-repo").join(PLACE), "base", Fill::Sparse);
        let lifecycle = room.path().join("lifecycle");
        fs::create_dir_all(room.path().join("layers/generated")).expect("a directory");
        fs::create_dir(&lifecycle).expect("a directory");
        fs::write(lifecycle.join("extender"), "#!/bin/sh\n").expect("written");
        fs::write(room.path().join("layers/group.toml"), "").expect("written");
        let phases = Phases { room, digest: image.digest.to_string() };
        phases.analyzed(&format!("/layout-repo/{PLACE}@{}", phases.digest), true);
        phases
    }

    fn path(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    fn analyzed(&self, reference: &str, extend: bool) {
        let text = format!("[run-image]\nreference = \"{reference}\"\nextend = {extend}\n");
        fs::write(self.path("layers/analyzed.toml"), text).expect("written");
    }

    fn extend(&self, api: Option<&str>, more: &[&str]) -> Outcome {
        let [layers, layouts, lifecycle] =
            ["layers", "layout-repo", "lifecycle"].map(|name| self.path(name));
        let texts = [&layers, &layouts, &lifecycle].map(|path| path.to_str().expect("text"));
        let options =
            ["extend", "--layers", texts[0], "--layout-dir", texts[1], "--lifecycle", texts[2]];
        let mut command = self.room.command(&[&options[..], more].concat());
        command.env_remove("CNB_PLATFORM_API").env("CNB_LAYOUT_DIR", "/layout-repo");
        if let Some(api) = api {
            command.env("CNB_PLATFORM_API", api);
        }
        run(&mut command, LIMIT)
    }

    /// It fails with this code, and says all of this.
    #[track_caller]
    fn refused(&self, code: i32, words: &[&str]) {
        let outcome = self.extend(Some("0.13"), &[]);
        assert_eq!(outcome.code(), Some(code), "{outcome}");
        for word in words {
            assert!(outcome.stderr.contains(word), "no {word:?}: {outcome}");
        }
        assert!(!self.path("layers/extended/run").exists(), "nothing is written");
    }
}

#[test]
fn the_platform_api_says_where_dockerfiles_are_and_has_to_be_known() {
    let phases = Phases::new();
    for (api, word) in
        [(None, "CNB_PLATFORM_API is not set"), (Some("0.11"), "since"), (Some("x"), "0.13")]
    {
        let outcome = phases.extend(api, &[]);
        assert_eq!(outcome.code(), Some(2), "{outcome}");
        assert!(outcome.stderr.contains(word), "{outcome}");
    }
}

#[test]
fn nothing_to_extend_is_no_failure_and_no_former_image_is_exported() {
    let phases = Phases::new();
    phases.analyzed(&format!("/layout-repo/{PLACE}@{}", phases.digest), false);
    let stale = phases.path("layers/extended/run").join(&phases.digest);
    fs::create_dir_all(&stale).expect("a directory");
    fs::write(stale.join("index.json"), "{}").expect("written");
    let outcome = phases.extend(Some("0.12"), &["--json"]);
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    assert!(outcome.stdout.contains("\"mode\": \"none\""), "{outcome}");
    assert!(!phases.path("layers/extended/run").exists());
}

#[test]
fn what_is_no_extended_image_is_not_removed() {
    let phases = Phases::new();
    let precious = phases.path("layers/extended/run/precious");
    fs::create_dir_all(&precious).expect("a directory");
    let outcome = phases.extend(Some("0.13"), &[]);
    assert_eq!(outcome.code(), Some(2), "{outcome}");
    assert!(precious.exists());
}

#[test]
fn files_of_earlier_phases_are_named_when_they_are_missing() {
    let phases = Phases::new();
    fs::remove_file(phases.path("layers/group.toml")).expect("removed");
    phases.refused(5, &["group.toml", "the detector writes it"]);
    fs::remove_file(phases.path("layers/analyzed.toml")).expect("removed");
    phases.refused(5, &["analyzed.toml", "the analyzer writes it"]);
    fs::write(phases.path("layers/analyzed.toml"), "[run-image\n").expect("written");
    phases.refused(3, &["analyzed.toml"]);
}

#[test]
fn a_run_image_without_a_layout_is_told_with_the_command_that_makes_it() {
    let phases = Phases::new();
    // A Dockerfile switched it.
    phases.analyzed("reg.example/other/run:2", true);
    let layouts = phases.path("layout-repo");
    let advice =
        format!("layoutfs sparse reg.example/other/run:2 --layout-dir {}", layouts.display());
    phases.refused(5, &[&advice, "reg.example/other/run/2"]);
}

#[test]
fn a_run_image_that_has_moved_or_was_not_restored_is_not_taken() {
    let phases = Phases::new();
    let other = format!("sha256:{}", "0".repeat(64));
    phases.analyzed(&format!("/layout-repo/{PLACE}@{other}"), true);
    phases.refused(3, &[&other, &phases.digest, "analyze again"]);
    phases.analyzed("reg.example/cnb/run:base", true);
    phases.refused(3, &["has no digest", "restorer"]);
}

#[test]
fn a_path_that_the_exporter_cannot_parse_is_refused_before_the_work() {
    let phases = Phases::new();
    let (from, to) = ("layout-repo/reg.example", "layout-repo/localhost:5599");
    fs::rename(phases.path(from), phases.path(to)).expect("renamed");
    phases.analyzed(&format!("/layout-repo/localhost:5599/cnb/run/base@{}", phases.digest), true);
    phases.refused(3, &["':'", "--as"]);
}

#[test]
fn a_missing_extender_is_told_with_the_option_that_names_it() {
    let phases = Phases::new();
    fs::remove_file(phases.path("lifecycle/extender")).expect("removed");
    phases.refused(5, &["no extender in", "--lifecycle"]);
}

#[test]
fn only_one_extends_into_a_layers_directory_at_a_time() {
    let phases = Phases::new();
    let directory = fs::File::open(phases.path("layers")).expect("a directory");
    rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    phases.refused(9, &["another `extend` is at work"]);
}
