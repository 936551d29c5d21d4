//! `finalize`: an exported application image gets the extension's settings, once, and nothing else
//! of its layout changes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layoutfs::layout::Digest;
use serde_json::{Value, json};

use crate::support::image::{Fill, Image, ImageBuilder, Names};
use crate::support::layer::{Compression, LayerBuilder};
use crate::support::mount::{Outcome, Room, run};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const METADATA: &str = "io.buildpacks.lifecycle.metadata";
/// Where the phases see the base.
const BASE: &str = "/layout-repo/reg.example/cnb/run/base";
/// The user of the build, who owns what the exporter writes.
const BUILDER: u32 = 12345;

/// What an export leaves: the base and the application in one layout directory, the extended image
/// and analyzed.toml in another.
struct Setting {
    room: Arc<Room>,
    base: Image,
    extended: Image,
    exported: Image,
}

/// An image with one layer for each name.
fn image(names: Names, layers: &[&str], settings: Value) -> ImageBuilder {
    let mut builder = ImageBuilder::new().names(names);
    for name in layers {
        let layer = LayerBuilder::text(&format!("file {name} = {name}"));
        builder = builder.layer(layer, Compression::Gzip);
    }
    for (name, value) in settings.as_object().unwrap() {
        builder = builder.setting(name, value.clone());
    }
    builder
}

fn metadata(reference: &str) -> String {
    json!({"runImage": {"reference": reference, "topLayer": "sha256:top"}, "x": 1}).to_string()
}

fn setting(names: Names) -> Setting {
    let base = json!({"Env": ["PATH=/bin", "A=1"], "User": "1000",
        "Labels": {"io.buildpacks.rebasable": "true"}});
    let extended = json!({"Env": ["PATH=/ext:/bin", "A=2", "EXT_VAR=from-extension"],
        "User": "1001", "Labels": {"io.buildpacks.rebasable": "false"}});
    let exported = json!({"Env": ["PATH=/cnb/process:/bin", "A=1", "CNB_APP_DIR=/workspace"],
        "User": "1000", "WorkingDir": "/workspace", "Entrypoint": ["/cnb/process/web"],
        "Labels": {"io.buildpacks.rebasable": "true", METADATA: metadata("/layout-repo@sha256:0")}});
    let exported = image(names, &["b1", "b2", "by-exporter", "app"], exported);
    let setting = Setting {
        room: Room::new(),
        base: image(names, &["b1", "b2"], base).build(),
        extended: image(names, &["b1", "b2", "by-extender"], extended).build(),
        exported: exported.annotate(REF_NAME, "latest").build(),
    };
    setting.base.write_layout(
        &setting.path("layout-repo/reg.example/cnb/run/base"),
        "base",
        Fill::Sparse,
    );
    setting.write_extended(&setting.extended);
    setting.write_analyzed("true");
    setting.exported.write_layout(&setting.app(), "latest", Fill::Layers(&[2, 3]));
    setting
}

impl Setting {
    fn path(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    fn app(&self) -> PathBuf {
        self.path("layout-repo/reg.example/app/latest")
    }

    fn write_extended(&self, extended: &Image) {
        let place = self.path("layers/extended/run").join(extended.digest.to_string());
        fs::create_dir_all(&place).unwrap();
        extended.write_layout(&place, "x", Fill::Layers(&[2]));
    }

    fn write_analyzed(&self, extend: &str) {
        let reference = format!("{BASE}@{}", self.base.digest);
        let text = format!(
            "[run-image]\nreference = \"{reference}\"\nimage = \"{BASE}\"\nextend = {extend}\n"
        );
        fs::write(self.path("layers/analyzed.toml"), text).unwrap();
    }

    fn run_as(&self, args: &[&str], layout_dir: Option<&str>) -> Outcome {
        let (app, extended) = (self.app(), self.path("layers/extended"));
        let [app, extended] = [&app, &extended].map(|path| path.to_str().unwrap());
        let own = ["finalize", app, "--extended", extended];
        let mut command = self.room.command(&[&own[..], args].concat());
        match layout_dir {
            Some(directory) => command.env("CNB_LAYOUT_DIR", directory),
            None => command.env_remove("CNB_LAYOUT_DIR"),
        };
        run(&mut command, std::time::Duration::from_secs(60))
    }

    fn finalize(&self) -> Value {
        serde_json::from_str(&self.run_as(&["--json"], None).success()).unwrap()
    }

    /// It is refused, and the layout is as it was.
    fn refused(&self, code: i32, words: &[&str]) {
        let before = snapshot(&self.app());
        let outcome = self.run_as(&[], None);
        assert_eq!(outcome.code(), Some(code), "{outcome}");
        for word in words {
            assert!(outcome.stderr.contains(word), "no {word:?}: {outcome}");
        }
        assert_eq!(snapshot(&self.app()), before);
    }

    /// It says that there is nothing to do, and does nothing.
    fn left_alone(&self, reason: &str) {
        let before = snapshot(&self.app());
        let outcome = self.run_as(&[], None);
        assert_eq!(outcome.code(), Some(0), "{outcome}");
        assert!(outcome.stderr.contains("nothing to change"), "{outcome}");
        assert!(outcome.stderr.contains(reason), "{outcome}");
        let digest = index(&self.app())["manifests"][0]["digest"].clone();
        assert_eq!(outcome.stdout.trim(), digest);
        let json = self.finalize();
        assert_eq!((&json["changed"], &json["digest"]), (&false.into(), &digest), "{json}");
        assert!(json["reason"].as_str().unwrap().contains(reason), "{json}");
        assert_eq!(snapshot(&self.app()), before);
    }
}

/// Every file with all that must stay: inode, time of change, mode, owner, content.
type Snapshot = BTreeMap<PathBuf, (u64, i64, i64, u32, u32, u32, Vec<u8>)>;

fn snapshot(directory: &Path) -> Snapshot {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let facts =
            (meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.mode(), meta.uid(), meta.gid());
        let (ino, time, nanos, mode, uid, gid) = facts;
        if meta.is_dir() {
            files.extend(snapshot(&path));
        }
        files.insert(path, (ino, time, nanos, mode, uid, gid, content));
    }
    files
}

fn json_of(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn index(layout: &Path) -> Value {
    json_of(layout.join("index.json"))
}

fn blob_path(layout: &Path, digest: &Digest) -> PathBuf {
    layout.join("blobs").join(digest.algorithm()).join(digest.hex())
}

/// The document that a descriptor leads to; its digest and size are right.
fn follow(layout: &Path, descriptor: &Value) -> Value {
    let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
    let bytes = fs::read(blob_path(layout, &digest)).unwrap();
    assert_eq!(Digest::sha256_of(&bytes), digest);
    assert_eq!(descriptor["size"], bytes.len());
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn the_application_gets_the_extensions_settings_and_nothing_else_changes() {
    for names in [Names::Oci, Names::Docker] {
        let setting = setting(names);
        let app = setting.app();
        let result = setting.finalize();
        let (old, new) = (json_of_bytes(&setting.exported.config), index(&app));
        assert_eq!(result["digest"], new["manifests"][0]["digest"]);
        assert_eq!(result["changed"], true);
        assert_eq!(result["directory"], app.to_str().unwrap());
        assert_eq!(result["base"], setting.base.digest.to_string());
        assert_eq!(result["extended"], setting.extended.digest.to_string());
        assert_eq!(result["env"], json!(["A", "EXT_VAR", "PATH"]));
        assert_eq!(result["labels"], json!([METADATA, "io.buildpacks.rebasable"]));
        assert_eq!(result["settings"], json!(["User"]));
        assert_eq!(new["manifests"][0]["annotations"], json!({REF_NAME: "latest"}));
        assert_eq!(new["manifests"][0]["mediaType"], setting.exported.media_type);
        let manifest = follow(&app, &new["manifests"][0]);
        let mut expected = json_of_bytes(&setting.exported.manifest);
        for field in ["digest", "size"] {
            expected["config"][field] = manifest["config"][field].clone();
        }
        assert_eq!(manifest, expected, "all but digest and size of the config");
        let config = follow(&app, &manifest["config"]);
        let mut expected = old;
        let reference = format!("{BASE}@{}", setting.base.digest);
        expected["config"] = json!({
            "Env": ["PATH=/cnb/process:/ext:/bin", "A=2", "EXT_VAR=from-extension",
                    "CNB_APP_DIR=/workspace"],
            "User": "1001", "WorkingDir": "/workspace", "Entrypoint": ["/cnb/process/web"],
            "Labels": {"io.buildpacks.rebasable": "false", METADATA: metadata(&reference)}});
        let label =
            |v: &Value| json_of_bytes(v["config"]["Labels"][METADATA].as_str().unwrap().as_bytes());
        assert_eq!(label(&config), label(&expected));
        expected["config"]["Labels"][METADATA] = config["config"]["Labels"][METADATA].clone();
        assert_eq!(config, expected);
        setting.left_alone("has the extended image's settings already");
        setting.room.layoutfs(&["verify", app.to_str().unwrap()]);
    }
}

fn json_of_bytes(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn the_run_image_itself_is_no_application() {
    let setting = setting(Names::Oci);
    let extended = setting.path("layers/extended");
    let extended = extended.to_str().unwrap();
    let run_image = setting.path("layout-repo/reg.example/cnb/run/base");
    let run_image = run_image.to_str().unwrap();
    let refused = setting.room.run(&["finalize", run_image, "--extended", extended]);
    assert_eq!(refused.code(), Some(2), "{refused}");
    assert!(refused.stderr.contains("the run image itself"), "{refused}");
    let absent = setting.room.run(&["finalize", "not/there", "--extended", extended]);
    assert_eq!(absent.code(), Some(5), "{absent}");
    assert!(absent.stderr.contains("the exporter writes it"), "{absent}");
}

#[test]
fn files_keep_owner_and_mode_and_layers_are_not_touched() {
    let setting = setting(Names::Oci);
    let app = setting.app();
    let before = snapshot(&app);
    let [config, manifest] = [&setting.exported.config_digest, &setting.exported.digest];
    for (path, mode) in [
        (blob_path(&app, config), 0o600),
        (blob_path(&app, manifest), 0o640),
        (app.join("index.json"), 0o604),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        lchown(&path, Some(BUILDER), Some(BUILDER + mode)).unwrap();
    }
    // In the place of the phases, and through a tag.
    let tagged = format!("oci:{}:latest", app.display());
    let extended = setting.path("layers/extended");
    let args = ["finalize", &tagged, "--extended", extended.to_str().unwrap()];
    let digest = setting.room.layoutfs(&args);
    let after = snapshot(&app);
    let descriptor = &index(&app)["manifests"][0];
    assert_eq!(descriptor["digest"], digest.trim());
    let config_digest = follow(&app, descriptor)["config"]["digest"].clone();
    for (name, mode) in [(config_digest, 0o600), (digest.trim().into(), 0o640)] {
        let path = blob_path(&app, &name.as_str().unwrap().parse().unwrap());
        let (_, _, _, is, uid, gid, _) = after[&path];
        assert_eq!((is & 0o7777, uid, gid), (mode, BUILDER, BUILDER + mode), "{name}");
    }
    let (_, _, _, is, uid, gid, _) = after[&app.join("index.json")];
    assert_eq!((is & 0o7777, uid, gid), (0o604, BUILDER, BUILDER + 0o604));
    // Two documents became two others; index.json is another; the rest has not even another time.
    let same = after.iter().filter(|(path, facts)| before.get(*path) == Some(facts)).count();
    assert_eq!((before.len(), after.len()), (8, 8), "{after:?}");
    assert_eq!(same, 4, "oci-layout, blobs, two layers: {after:?}");
    assert!(!blob_path(&app, config).exists() && !blob_path(&app, manifest).exists());
}

#[test]
fn a_layout_that_needs_nothing_is_left_as_it_is() {
    let setting = setting(Names::Docker);
    setting.write_analyzed("false");
    setting.left_alone("does not say extend = true");
    setting.write_analyzed("true");
    let extended = setting.path("layers/extended");
    fs::rename(extended.join("run"), setting.path("away")).unwrap();
    setting.left_alone("no extended image");
    fs::create_dir(extended.join("run")).unwrap();
    setting.left_alone("no extended image");
    fs::remove_dir_all(&extended).unwrap();
    setting.left_alone("no extended image");
}

#[test]
fn the_base_is_found_where_the_phases_saw_it() {
    let setting = setting(Names::Oci);
    fs::rename(setting.path("layout-repo/reg.example/cnb"), setting.path("away")).unwrap();
    let advice = "layoutfs sparse reg.example/cnb/run:base --layout-dir";
    let repo = setting.path("layout-repo");
    let looked_at = repo.join("reg.example/cnb/run/base").display().to_string();
    setting.refused(5, &[&looked_at, advice]);
    // Of the same name, but another image.
    let other = image(Names::Oci, &["b1", "b2"], json!({"User": "other"})).build();
    other.write_layout(&repo.join("reg.example/cnb/run/base"), "base", Fill::Sparse);
    setting.refused(3, &["the tag has moved", &other.digest.to_string()]);
    // $CNB_LAYOUT_DIR comes first, if it is a directory here.
    let elsewhere = setting.path("elsewhere/reg.example");
    fs::create_dir_all(&elsewhere).unwrap();
    fs::rename(setting.path("away"), elsewhere.join("cnb")).unwrap();
    let text = fs::read_to_string(setting.path("layers/analyzed.toml")).unwrap();
    let parent = setting.path("elsewhere").display().to_string();
    fs::write(setting.path("layers/analyzed.toml"), text.replace("/layout-repo", &parent)).unwrap();
    setting.run_as(&[], Some(&parent)).success();
    let config = follow(
        &setting.app(),
        &follow(&setting.app(), &index(&setting.app())["manifests"][0])["config"],
    );
    let label = json_of_bytes(config["config"]["Labels"][METADATA].as_str().unwrap().as_bytes());
    let reference = format!("{parent}/reg.example/cnb/run/base@{}", setting.base.digest);
    assert_eq!(label["runImage"]["reference"], reference);
}

#[test]
fn images_that_do_not_belong_together_are_refused() {
    let setting = setting(Names::Oci);
    let run = setting.path("layers/extended/run");
    let only = |layers: &[&str]| {
        fs::remove_dir_all(&run).unwrap();
        setting.write_extended(&image(Names::Oci, layers, json!({"User": "7"})).build());
    };
    only(&["b1", "other", "x"]);
    setting.refused(3, &["the extended image: its lowest layers are not the 2 of the run image"]);
    only(&["b1", "b2", "x", "y", "z"]);
    setting.refused(3, &["4 layers, expected at least the 5 of the extended image"]);
    only(&["b1", "b2", "x"]);
    setting.write_extended(&setting.extended);
    setting.refused(3, &["expected one extended image, got 2 entries"]);
    fs::remove_dir_all(&run).unwrap();
    fs::create_dir_all(run.join("sha256:0")).unwrap();
    setting.refused(3, &["no file oci-layout"]);
    only(&["b1", "b2", "x"]);
    let other = image(Names::Oci, &["b2", "b1", "x", "y"], json!({})).build();
    other.write_layout(&setting.app(), "latest", Fill::Sparse);
    setting.refused(3, &["the application: its lowest layers"]);
    fs::write(setting.path("layers/analyzed.toml"), "[image]\n").unwrap();
    setting.refused(3, &["no [run-image]"]);
    fs::remove_file(setting.path("layers/analyzed.toml")).unwrap();
    setting.refused(5, &["analyzed.toml: no such file"]);
    fs::write(blob_path(&setting.app(), &other.config_digest), "x").unwrap();
    setting.refused(7, &["size mismatch"]);
    let outcome = setting.room.run(&["finalize", "docker://x/y", "--extended", "/nowhere"]);
    assert_eq!(outcome.code(), Some(2), "{outcome}");
}

#[test]
fn what_something_else_refers_to_stays() {
    let setting = setting(Names::Oci);
    let app = setting.app();
    // A referrer of the old manifest (with the old configuration for its layer), unknown fields, and
    // bytes embedded in descriptors.
    let mut listed = index(&app);
    listed["x-mine"] = json!({"a": [null]});
    listed["manifests"][0]["x-mine"] = 1.into();
    let old = listed["manifests"][0].clone();
    let mut referrer = json_of_bytes(&setting.exported.manifest);
    referrer["subject"] = old.clone();
    referrer["subject"].as_object_mut().unwrap().remove("annotations");
    let bytes = referrer.to_string();
    let digest = Digest::sha256_of(bytes.as_bytes());
    fs::write(blob_path(&app, &digest), &bytes).unwrap();
    let named = json!({"mediaType": old["mediaType"], "digest": digest.to_string(),
        "size": bytes.len(), "annotations": {REF_NAME: "referrer"}});
    listed["manifests"].as_array_mut().unwrap().push(named.clone());
    fs::write(app.join("index.json"), listed.to_string()).unwrap();
    let tagged = format!("oci:{}:latest", app.display());
    let extended = setting.path("layers/extended");
    let args = ["finalize", &tagged, "--extended", extended.to_str().unwrap()];
    let new = setting.room.layoutfs(&args);
    for kept in [setting.exported.digest, setting.exported.config_digest, digest] {
        assert!(blob_path(&app, &kept).exists(), "{kept}");
    }
    let mut expected = listed;
    let written = index(&app);
    expected["manifests"][0]["digest"] = new.trim().into();
    expected["manifests"][0]["size"] = written["manifests"][0]["size"].clone();
    assert_eq!(written, expected);
    follow(&app, &written["manifests"][0]);
}

#[test]
fn a_run_that_was_interrupted_is_made_good_by_the_next() {
    let setting = setting(Names::Oci);
    let app = setting.app();
    let digest = setting.finalize()["digest"].clone();
    let new: Digest = digest.as_str().unwrap().parse().unwrap();
    // The old image again; of the new one a manifest that never got to the disk.
    setting.exported.write_layout(&app, "latest", Fill::Sparse);
    let size = fs::metadata(blob_path(&app, &new)).unwrap().len();
    fs::write(blob_path(&app, &new), vec![0; size as usize]).unwrap();
    assert_eq!(setting.finalize()["digest"], digest);
    follow(&app, &follow(&app, &index(&app)["manifests"][0])["config"]);
    assert!(!blob_path(&app, &setting.exported.digest).exists());
}

#[test]
fn nothing_is_written_through_links() {
    let setting = setting(Names::Oci);
    let app = setting.app();
    let away = setting.path("away");
    fs::rename(app.join("blobs"), &away).unwrap();
    symlink(&away, app.join("blobs")).unwrap();
    let before = snapshot(&away);
    setting.refused(3, &["symbolic link"]);
    assert_eq!(snapshot(&away), before);
}
