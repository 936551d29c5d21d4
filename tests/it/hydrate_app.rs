//! Applications that the lifecycle exported on a sparse run image: where their base layers come
//! from, who is asked for them and who is not, and what `hydrate` leaves in the layout.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use layoutfs::layout::Digest;
use rustix::fs::inotify;
use serde_json::Value;

use crate::support::app::{App, Base, CNB_GID, CNB_UID, EXPORTED, label};
use crate::support::faults::{Action, Fault};
use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::mount::{LIMIT, Outcome, Room, run};
use crate::support::registry::Registry;
use crate::support::tokens::{Auth, Login};

/// The run image's layout path; its registry is not on any network.
const ALIAS: &str = "reg.example/cnb/run:base";

/// The same, as the lifecycle's container sees it.
const ALIAS_PATH: &str = "/layout-repo/reg.example/cnb/run/base";

/// More than one request brings.
const BIG_BYTES: usize = 9 << 20;

/// More than a stream brings before it notes how far it is.
const NOTED_BYTES: usize = 26 << 20;

/// What every test starts from: the run image in its registry, and the registry of applications,
/// which has nothing of it.
struct Setting {
    room: Arc<Room>,
    run: Registry,
    apps: Registry,
    base: Image,
}

/// Four layers: one twice, and an empty one.
fn base_image(big_bytes: usize) -> Image {
    let os = LayerBuilder::new().dir("etc", 0o755).file("etc/os-release", 0o644, "ID=test\n").file(
        "big",
        0o644,
        generated("big", big_bytes),
    );
    let more = LayerBuilder::new().dir("workspace", 0o755).file("workspace/below", 0o644, "below");
    ImageBuilder::new()
        .layer(os, Compression::Gzip)
        .layer(more.clone(), Compression::Gzip)
        .layer(LayerBuilder::new(), Compression::Gzip)
        .layer(more, Compression::Gzip)
        .build()
}

/// An extension's layer, a layer of the launcher and the application's own twice.
fn app_layers() -> Vec<LayerBuilder> {
    let app = LayerBuilder::new().dir("/workspace", 0o755).file("/workspace/app", 0o644, "app");
    let launcher = LayerBuilder::new()
        .dir("/cnb", 0o755)
        .dir("/cnb/process", 0o755)
        .file("/cnb/launcher", 0o755, "launcher")
        .symlink("/cnb/process/web", "/cnb/launcher");
    let extension = LayerBuilder::new().file("extended.txt", 0o644, "extended");
    vec![extension, launcher, app.clone(), app]
}

impl Setting {
    fn new() -> Self {
        Self::with(BIG_BYTES)
    }

    fn with(big_bytes: usize) -> Self {
        let (room, run, apps) = (Room::new(), Registry::start(), Registry::start());
        let base = base_image(big_bytes);
        base.push(&run, "cnb/run", "base");
        Setting { room, run, apps, base }
    }

    fn layout_dir(&self) -> PathBuf {
        self.room.path().join("layout-repo")
    }

    /// Exports an application to `<layout dir>/<registry of applications>/team/app/latest`.
    fn export(&self, label: &str) -> App {
        self.export_to(label, self.layout_dir().join(self.apps.host()).join("team/app/latest"))
    }

    fn export_to(&self, label: &str, layout: PathBuf) -> App {
        let Image { manifest, config, .. } = &self.base;
        let base = Base { manifest, config, layer_type: EXPORTED };
        App::export(&base, &app_layers(), label, &layout)
    }

    /// `sparse --as`: the base's layout, below `dir`.
    fn sparse(&self, dir: &std::path::Path) {
        let dir = dir.to_str().expect("plain letters");
        let reference = self.run.reference("cnb/run", "base");
        self.room.layoutfs(&["sparse", &reference, "--layout-dir", dir, "--as", ALIAS]);
        self.run.clear();
    }

    fn hydrate(&self, app: &App) -> Outcome {
        self.room.run(&["hydrate", app.path()])
    }

    /// The layout has every blob, each right; the run image's registry gave each layer once, and
    /// the applications' was not asked.
    #[track_caller]
    fn assert_filled(&self, app: &App) {
        self.assert_whole(app);
        for layer in &self.base.layers {
            let sent = self.run.bytes_sent(&layer.digest);
            assert_eq!(sent, layer.blob.len() as u64, "{}", layer.digest);
        }
        assert_eq!(self.apps.requests().len(), 0, "{:?}", self.apps.requests());
    }

    #[track_caller]
    fn assert_whole(&self, app: &App) {
        assert_eq!(app.missing(), []);
        let said = self.room.layoutfs(&["verify", "--deep", app.path()]);
        assert!(!said.contains("missing") && !said.contains("damaged"), "{said}");
        for (digest, blob) in &app.own {
            assert_eq!(fs::read(app.blob(digest)).expect("there"), *blob, "{digest}");
        }
    }
}

#[test]
fn base_layers_come_from_where_the_layout_of_the_run_image_says() {
    let setting = Setting::new();
    setting.sparse(&setting.layout_dir());
    let app = setting.export(&label(ALIAS_PATH, &[]));
    assert_eq!(app.missing().len(), 3, "one layer is there twice");
    let outcome = setting.hydrate(&app);
    assert!(outcome.stderr.contains("3 of 8 blobs were missing"), "{outcome}");
    outcome.success();
    setting.assert_filled(&app);
    let documents: Vec<_> =
        setting.run.requests().into_iter().filter(|r| r.path.contains("/manifests/")).collect();
    assert!(documents.is_empty(), "{documents:?}");
}

#[test]
fn the_layout_of_the_run_image_is_found_by_its_name_and_in_the_layout_directory_too() {
    let setting = Setting::new();
    let elsewhere = setting.room.path().join("elsewhere");
    setting.sparse(&elsewhere);
    // run.toml gave the name, not the path.
    let app = setting.export(&label(ALIAS, &[]));
    let mut command = setting.room.command(&["hydrate", app.path()]);
    run(command.env("CNB_LAYOUT_DIR", &elsewhere), LIMIT).success();
    setting.assert_filled(&app);
}

#[test]
fn without_a_layout_of_the_run_image_its_name_is_asked() {
    let setting = Setting::new();
    let image = setting.run.reference("cnb/run", "base");
    let path = format!("/layout-repo/{}/cnb/run/base", setting.run.host());
    for (number, name) in [image, path].iter().enumerate() {
        let place = setting.layout_dir().join(setting.apps.host()).join(format!("team/{number}/v"));
        let app = setting.export_to(&label(name, &[]), place);
        setting.room.layoutfs(&["cache", "prune"]);
        setting.run.clear();
        setting.hydrate(&app).success();
        setting.assert_filled(&app);
    }
}

#[test]
fn a_mirror_delivers_what_the_first_name_cannot() {
    let answers = |registry: &Registry, status: u16| {
        registry.inject(Fault::new(Action::Status(status, vec![])).always());
    };
    for trouble in ["does not have it", "wants a password", "forbids", "fails", "is not there"] {
        let (setting, first) = (Setting::new(), Registry::start());
        match trouble {
            "wants a password" => first.set_auth(Auth::Basic(Login::new("somebody", "secret"))),
            "forbids" => answers(&first, 403),
            "fails" => answers(&first, 500),
            "is not there" => first.pause(),
            _ => {}
        }
        let mirror = setting.run.reference("cnb/run", "base");
        let app = setting.export(&label(&first.reference("a/run", "base"), &[&mirror]));
        let outcome = setting.hydrate(&app);
        assert_eq!(outcome.code(), Some(0), "{trouble}: {outcome}");
        setting.assert_filled(&app);
    }
}

#[test]
fn a_registry_that_nobody_knows_keeps_no_mirror_from_being_asked() {
    let setting = Setting::new();
    let mirror = setting.run.reference("cnb/run", "base");
    let app = setting.export(&label("no-such-host.invalid/cnb/run:base", &[&mirror]));
    setting.hydrate(&app).success();
    setting.assert_filled(&app);
}

#[test]
fn the_applications_own_repository_is_asked_last() {
    let setting = Setting::new();
    let first = Registry::start();
    let app = setting.export(&label(&first.reference("cnb/run", "base"), &[]));
    setting.base.push(&setting.apps, "team/app", "latest");
    setting.hydrate(&app).success();
    setting.assert_whole(&app);
    for layer in &setting.base.layers {
        assert_eq!(first.blob_requests(&layer.digest).len(), 1, "asked before");
        assert_eq!(setting.apps.bytes_sent(&layer.digest), layer.blob.len() as u64);
    }
}

#[test]
fn a_layout_without_a_usable_label_is_of_its_own_repository() {
    let setting = Setting::new();
    setting.base.push(&setting.apps, "team/app", "latest");
    for label in ["no JSON", "{}", r#"{"runImage": {"image": "not a name"}}"#] {
        let app = setting.export(label);
        setting.room.layoutfs(&["cache", "prune"]);
        setting.hydrate(&app).success();
        setting.assert_whole(&app);
        fs::remove_dir_all(&app.layout).expect("removed");
    }
}

#[test]
fn when_nobody_delivers_everybody_is_named_with_a_reason() {
    let setting = Setting::new();
    let (locked, empty) = (Registry::start(), Registry::start());
    locked.set_auth(Auth::Basic(Login::new("somebody", "secret")));
    let mirror = empty.reference("b/run", "base");
    let app = setting.export(&label(&locked.reference("a/run", "base"), &[&mirror]));
    let outcome = setting.hydrate(&app);
    assert_eq!(outcome.code(), Some(4), "it may be where we may not look: {outcome}");
    let own = format!("{}/team/app", setting.apps.host());
    for part in [
        &*format!("[{}/a/run]", locked.host()),
        "401",
        &*format!("[{}/b/run]", empty.host()),
        &*format!("[{own}]"),
        "404",
        "--source",
    ] {
        assert!(outcome.stderr.contains(part), "{part}: {outcome}");
    }
    assert_eq!(app.missing().len(), 3);
    setting.room.layoutfs(&["verify", app.path()]);
}

#[test]
fn a_given_source_is_asked_and_nobody_else() {
    let setting = Setting::new();
    let other = Registry::start();
    let app = setting.export(&label(&other.reference("cnb/run", "base"), &[]));
    let source = format!("{}/cnb/run", setting.run.host());
    setting.room.layoutfs(&["hydrate", app.path(), "--source", &source]);
    setting.assert_filled(&app);
    assert_eq!(other.requests().len(), 0);
    let wrong = format!("{}/nothing/here", setting.run.host());
    let app = setting.export_to(&label(ALIAS_PATH, &[]), setting.layout_dir().join("other/app/v"));
    setting.room.layoutfs(&["cache", "prune"]);
    let outcome = setting.room.run(&["hydrate", app.path(), "--source", &wrong]);
    assert_eq!(outcome.code(), Some(5), "{outcome}");
}

#[test]
fn mounts_fetch_base_layers_alone_and_from_the_run_images_registry() {
    let setting = Setting::new();
    setting.sparse(&setting.layout_dir());
    let app = setting.export(&label(ALIAS_PATH, &[]));
    let whole = setting.room.mount(app.path(), &["--view", "layout"]);
    assert_eq!(setting.run.requests().len(), 0, "nothing was read yet");
    let shown = |digest: &Digest| whole.path().join("blobs/sha256").join(digest.hex());
    for (digest, blob) in &app.own {
        assert_eq!(fs::read(shown(digest)).expect("read"), *blob);
    }
    assert_eq!(setting.run.requests().len(), 0, "those were there");
    let small = &setting.base.layers[1];
    assert_eq!(fs::read(shown(&small.digest)).expect("read"), small.blob);
    assert_eq!(setting.run.requests().len(), 1);
    let rootfs = setting.room.mount(app.path(), &[]);
    let text = |name: &str| fs::read_to_string(rootfs.path().join(name)).expect(name);
    assert_eq!(text("etc/os-release"), "ID=test\n");
    assert_eq!(text("workspace/below"), "below");
    assert_eq!(text("workspace/app"), "app");
    assert_eq!(text("extended.txt"), "extended");
    let web = fs::read_link(rootfs.path().join("cnb/process/web")).expect("a link");
    assert_eq!(web.to_str(), Some("/cnb/launcher"));
    for layer in &setting.base.layers {
        assert_eq!(setting.run.bytes_sent(&layer.digest), layer.blob.len() as u64);
    }
    assert_eq!(setting.apps.requests().len(), 0, "{:?}", setting.apps.requests());
    assert_eq!(app.missing().len(), 3, "a mount writes nothing into the layout");
}

#[test]
fn what_root_brings_belongs_to_the_owner_of_the_layout() {
    let setting = Setting::new();
    setting.sparse(&setting.layout_dir());
    let app = setting.export(&label(ALIAS_PATH, &[]));
    setting.hydrate(&app).success();
    for digest in &app.base {
        let meta = fs::metadata(app.blob(digest)).expect("brought");
        assert_eq!((meta.uid(), meta.gid()), (CNB_UID, CNB_GID), "{digest}");
        assert_eq!(meta.permissions().mode() & 0o7777, 0o644, "{digest}");
        assert_eq!(meta.nlink(), 1, "{digest}");
    }
    for (digest, _) in &app.own {
        let meta = fs::metadata(app.blob(digest)).expect("there");
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600, "not touched: {digest}");
    }
}

#[test]
fn a_blob_has_no_other_name_before_its_own() {
    let setting = Setting::new();
    setting.sparse(&setting.layout_dir());
    let app = setting.export(&label(ALIAS_PATH, &[]));
    let mut expected: Vec<String> = app.missing().iter().map(Digest::hex).collect();
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).expect("inotify");
    let kinds = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, app.layout.join("blobs/sha256"), kinds).expect("watched");
    setting.hydrate(&app).success();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 64 << 10];
    let mut events = inotify::Reader::new(watch, &mut buffer);
    let mut made = Vec::new();
    while let Ok(event) = events.next() {
        made.extend(event.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    made.sort();
    expected.sort();
    assert_eq!(made, expected, "a killed hydrate leaves nothing but blobs");
}

#[test]
fn a_hydrate_that_was_killed_goes_on_where_it_was() {
    let setting = Setting::with(NOTED_BYTES);
    setting.sparse(&setting.layout_dir());
    let app = setting.export(&label(ALIAS_PATH, &[]));
    let big = &setting.base.layers[0];
    // The last request of the stream waits for ever.
    setting.run.inject(Fault::new(Action::StallAt(64 << 10)).blob(&big.digest).after(6).always());
    let name = format!("{}.{}.map", big.digest.hex(), big.blob.len());
    let map = setting.room.cache_dir().join("v1/blobs/sha256").join(name);
    let mut child = setting.room.command(&["hydrate", app.path()]).spawn().expect("started");
    let started = Instant::now();
    let noted = || -> Option<u64> {
        fs::read_to_string(&map).ok()?.lines().last()?.split_once(' ')?.1.parse().ok()
    };
    let is_noted = || noted().is_some_and(|bytes| bytes > big.blob.len() as u64 / 2);
    let has_stalled = || is_noted() && app.missing().len() == 1;
    while !has_stalled() && started.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(has_stalled(), "{:?}", setting.run.requests());
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_eq!(app.missing(), [big.digest], "the other layers are there");
    let said = setting.room.layoutfs(&["verify", app.path()]);
    assert!(said.contains(&format!("{}  missing", big.digest)), "{said}");
    setting.run.clear_faults();
    setting.run.clear();
    setting.hydrate(&app).success();
    setting.assert_whole(&app);
    let again = setting.run.bytes_sent(&big.digest);
    assert!(again > 0 && again < big.blob.len() as u64 / 2, "{again} of {}", big.blob.len());
    let requests = setting.run.requests();
    assert!(requests.iter().all(|r| r.path.ends_with(&big.digest.to_string())), "{requests:?}");
}

#[test]
fn inspect_tells_what_the_lifecycle_and_other_tools_will_meet() {
    let setting = Setting::new();
    setting.sparse(&setting.layout_dir());
    let inspected = |image: &str| -> Value {
        serde_json::from_str(&setting.room.layoutfs(&["inspect", "--json", image])).expect("JSON")
    };
    let app = setting.export(&label(ALIAS_PATH, &[]));
    let told = inspected(app.path());
    let host = setting.run.host();
    let own = format!("{}/team/app", setting.apps.host());
    assert_eq!(told["source"], Value::Null);
    assert_eq!(told["sources"], serde_json::json!([format!("{host}/cnb/run"), own]));
    assert_eq!(told["manifest"], app.digest.to_string());
    assert_eq!(told["mixed_media_types"], true);
    assert_eq!(told["has_empty_layer"], true);
    assert_eq!(told["layout_path"]["path"], format!("{own}/latest"));
    assert_eq!(told["layout_path"]["legal"], false, "it has a port");
    let problem = told["layout_path"]["problem"].as_str().expect("a problem");
    assert!(problem.contains("':'") && problem.contains("--as"), "{problem}");
    let layers = told["layers"].as_array().expect("layers");
    let states: Vec<_> = layers.iter().map(|l| l["state"].as_str().expect("a state")).collect();
    assert_eq!(states, [["missing"; 4], ["local"; 4]].concat());
    let empty: Vec<_> = layers.iter().map(|l| l["empty"] == true).collect();
    assert_eq!(empty, [false, false, true, false, false, false, false, false]);
    let base = setting.layout_dir().join("reg.example/cnb/run/base");
    let told = inspected(base.to_str().expect("plain letters"));
    assert_eq!(told["source"], format!("{host}/cnb/run"));
    assert_eq!(told["sources"], serde_json::json!([format!("{host}/cnb/run")]));
    assert_eq!(told["mixed_media_types"], false);
    assert_eq!(told["layout_path"]["legal"], true);
    assert_eq!(told["layout_path"]["problem"], Value::Null);
    assert_eq!(setting.run.requests().len(), 0, "inspect asks nobody");
    let text = setting.room.layoutfs(&["inspect", app.path()]);
    for part in ["asked in this order", "mixed", "--as", "(empty)"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
