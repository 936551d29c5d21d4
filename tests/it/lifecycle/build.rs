//! One build of an application, as a platform does it: its directories, its phases, layoutfs
//! between them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use super::application::Image;
use super::fixture;
use super::phases::{self, BuildRoot, FOLDERS, Phase};
use super::programs::Programs;
use crate::real::containers::assert_clean;
use crate::real::debian::{Debian, REPOSITORY, TOOL_LIMIT};
use crate::support::mount::{Mount, Outcome, Room, run};

/// What the run image is called in the layout directory; its registry's name has a port, which the
/// phases cannot read.
pub const RUN_IMAGE: &str = "reg.example/cnb/run:base";
pub const APPLICATION: &str = "reg.example/app:latest";

/// Who owns the build's files: the phases that start as root become this one.
const BUILDER: u32 = 1000;

pub struct Build {
    // Before what it reads from and stands on.
    root: Arc<BuildRoot>,
    pub debian: Arc<Debian>,
    /// Cache and run directory of layoutfs.
    pub room: Arc<Room>,
    /// Holds `FOLDERS`, and what a build needs beside.
    pub dir: PathBuf,
    api: &'static str,
    programs: PathBuf,
}

impl Build {
    /// A new build with the cache that all builds share.
    pub fn new(api: &'static str) -> Self {
        let debian = Debian::shared();
        let room = Arc::clone(&debian.room);
        Self::new_in(debian, room, api)
    }

    /// A new build with an empty cache.
    pub fn with_empty_cache(api: &'static str) -> Self {
        Self::new_in(Debian::shared(), Room::new(), api)
    }

    fn new_in(debian: Arc<Debian>, room: Arc<Room>, api: &'static str) -> Self {
        let dir = debian.new_dir("build");
        for folder in FOLDERS.iter().chain(&["tmp"]) {
            std::fs::create_dir(dir.join(folder)).unwrap();
        }
        let programs = phases::install(&Programs::shared().dir, &dir);
        let root = BuildRoot::shared(&debian);
        let build = Build { root, debian, room, dir, api, programs };
        build.write_fixture(fixture::DOCKERFILE);
        build
    }

    /// Buildpack, extension with this Dockerfile, application.
    pub fn write_fixture(&self, dockerfile: &str) {
        fixture::write(&self.path("cnb"), &self.path("workspace"), dockerfile);
        self.give_to_builder();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The run image's layout.
    pub fn run_image(&self) -> PathBuf {
        self.path("layout-repo/reg.example/cnb/run/base")
    }

    /// The exported application.
    pub fn application(&self) -> PathBuf {
        self.path("layout-repo/reg.example/app/latest")
    }

    /// Every file belongs to who builds.
    pub fn give_to_builder(&self) {
        for folder in FOLDERS {
            let mut chown = Command::new("chown");
            chown.args(["-hR", &format!("{BUILDER}:{BUILDER}"), &self.text(folder)]);
            // Not the programs, which builds share.
            if folder != "cnb" {
                run(&mut chown, TOOL_LIMIT).success();
            }
        }
    }

    /// `layoutfs sparse REFERENCE`, placed as `name`; gives the digest.
    pub fn sparse(&self, reference: &str, name: &str) -> String {
        let args = ["sparse", reference, "--layout-dir", &self.text("layout-repo"), "--as", name];
        let printed = self.room.layoutfs(&args);
        self.give_to_builder();
        printed.trim_end().to_owned()
    }

    /// Runs a phase with layouts, whatever comes out.
    pub fn phase(&self, user: u32, args: &[&str]) -> Outcome {
        let mut environment = vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            "CNB_USE_LAYOUT=true".to_owned(),
        ];
        let own = self.variables().map(|(name, value)| format!("{name}={value}"));
        environment.extend(own);
        let program = format!("/cnb/lifecycle/{}", args[0]);
        let args = [&[&*program], &args[1..]].concat();
        let root = self.root.path();
        Phase { build: &self.dir, root, user, environment: &environment, args: &args }.run()
    }

    /// What phases and `extend` read in their environment.
    fn variables(&self) -> [(&'static str, &'static str); 5] {
        [
            ("CNB_PLATFORM_API", self.api),
            ("CNB_EXPERIMENTAL_MODE", "warn"),
            ("CNB_LAYOUT_DIR", "/layout-repo"),
            ("CNB_USER_ID", "1000"),
            ("CNB_GROUP_ID", "1000"),
        ]
    }

    pub fn analyze(&self) {
        self.phase(0, &["analyzer", "-run-image", RUN_IMAGE, APPLICATION]).success();
    }

    pub fn detect(&self) {
        self.phase(BUILDER, &["detector", "-order", "/cnb/order.toml"]).success();
    }

    pub fn restore(&self) {
        self.phase(0, &["restorer"]).success();
    }

    pub fn build(&self) {
        self.phase(BUILDER, &["builder"]).success();
    }

    /// Exports the application; gives it as it is before `finalize`.
    pub fn export(&self) -> Image {
        self.give_to_builder();
        self.phase(0, &["exporter", APPLICATION]).success();
        Image::read(&self.application())
    }

    /// `layoutfs extend` on this build, not yet run. Its temporary files are in `tmp`.
    pub fn extend_command(&self, options: &[&str]) -> Command {
        let [layers, layouts, kaniko, workspace] =
            ["layers", "layout-repo", "kaniko", "workspace"].map(|name| self.text(name));
        let places = ["--layers", &layers, "--layout-dir", &layouts, "--kaniko", &kaniko];
        let programs = self.programs.to_str().unwrap();
        let others = ["--app", &workspace, "--lifecycle", programs];
        let args = [&["extend"], &places[..], &others, options].concat();
        let mut command = self.room.command(&args);
        command.envs(self.variables()).env("TMPDIR", self.path("tmp"));
        command
    }

    /// Extends the run image, whatever comes out; nothing stays behind in any case.
    pub fn try_extend(&self, options: &[&str]) -> Outcome {
        let outcome = run(&mut self.extend_command(options), TOOL_LIMIT);
        assert_clean(&self.path("tmp"));
        outcome
    }

    /// Extends the run image; gives what is told as JSON.
    pub fn extend(&self, mode: &str) -> Value {
        let outcome = self.try_extend(&["--mode", mode, "--json"]);
        assert_eq!(outcome.code(), Some(0), "{outcome}\n{}", self.room.logs());
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome}"))
    }

    /// The one extended image that there is to be.
    pub fn extended(&self) -> Image {
        let found = self.extended_directories();
        assert_eq!(found.len(), 1, "the exporter takes exactly one: {found:?}");
        let image = Image::read(&found[0]);
        assert_eq!(found[0].file_name().unwrap().to_str().unwrap(), image.digest);
        image
    }

    pub fn extended_directories(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path("layers/extended/run"));
        entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }

    pub fn finalize(&self) -> Image {
        let application = self.application();
        let extended = self.text("layers/extended");
        let args = ["finalize", application.to_str().unwrap(), "--extended", &extended];
        self.room.layoutfs(&args);
        Image::read(&application)
    }

    /// Writes what the phases before the extender would have written, for one extension.
    pub fn write_phases(&self, digest: &str, dockerfile: &str) {
        self.write_phases_for(digest, &[("ex/ext", dockerfile)]);
    }

    /// The same for extensions by id, which are applied in this order.
    pub fn write_phases_for(&self, digest: &str, extensions: &[(&str, &str)]) {
        let place = "/layout-repo/reg.example/cnb/run/base";
        let analyzed = format!(
            "[run-image]\nreference = \"{place}@{digest}\"\nimage = \"{place}\"\nextend = true\n"
        );
        let mut group =
            "[[group]]\nid = \"ex/bp\"\nversion = \"0.0.1\"\napi = \"0.10\"\n".to_owned();
        for (id, dockerfile) in extensions {
            group += &format!(
                "[[group-extensions]]\nid = \"{id}\"\nversion = \"0.0.1\"\napi = \"0.10\"\n"
            );
            let name = id.replace('/', "_");
            let generated = match self.api {
                "0.12" => format!("layers/generated/run/{name}/Dockerfile"),
                _ => format!("layers/generated/{name}/run.Dockerfile"),
            };
            fixture::file(&self.path(&generated), dockerfile);
        }
        let metadata = "[[buildpacks]]\nid = \"ex/bp\"\nversion = \"0.0.1\"\napi = \"0.10\"\n\
            [[processes]]\ntype = \"web\"\ncommand = [\"cat\", \"/extended.txt\"]\n\
            direct = true\nbuildpack-id = \"ex/bp\"\n";
        fixture::file(&self.path("layers/analyzed.toml"), &analyzed);
        fixture::file(&self.path("layers/group.toml"), &group);
        fixture::file(&self.path("layers/config/metadata.toml"), metadata);
        self.give_to_builder();
    }

    /// The extended image, mounted.
    pub fn mount_extended(&self) -> Mount {
        let source = format!("{}/{REPOSITORY}", self.debian.registry.address);
        let image = self.extended();
        self.room.mount(image.dir.to_str().unwrap(), &["--source", &source])
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        // Space is short where many suites run. What cannot be removed goes with the room.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// What `path` holds, as text.
pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
