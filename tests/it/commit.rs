//! `commit`: what an overlay shows is what the committed image shows; and the documents around it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use layoutfs::layout::Digest;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat,
    utimensat,
};
use serde_json::Value;

use crate::support::image::{Image, ImageBuilder, Names};
use crate::support::layer::{Compression, LayerBuilder};
use crate::support::listing::Listing;
use crate::support::mount::Room;
use crate::support::registry::Registry;

pub const LOWER: &str = "
    dir etc
    file etc/name @1600000000.123456789 = layoutfs\\n
    file etc/mode = x
    file etc/copied @1500000000.5 *70000
    file etc/rewritten @1500000000.5 = old
    dir old
    file old/a = a
    dir old/inner
    file old/inner/x = x
    file old/inner/y = y
    dir old/inner/deep
    file old/inner/deep/er = z
    dir swap
    file swap/f = f
    file tosym = s
    file hl-a = linked
    hardlink hl-b -> hl-a
    file noted +user.note=one
    file gone1 = 1
    file gone2 = 2
    dir kept
    file kept/f = f";

/// A capability set as the kernel keeps it, revision 2: cap_net_raw=ep.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub struct Setting {
    /// Answers while it lives.
    _registry: Registry,
    pub image: Image,
    pub room: Arc<Room>,
    /// A sparse layout of the image.
    pub base: String,
}

pub fn setting(names: Names) -> Setting {
    let (registry, room) = (Registry::start(), Room::new());
    let builder = ImageBuilder::new().names(names).setting("Env", serde_json::json!(["A=1"]));
    let first = LayerBuilder::text("dir first\nfile first/f = f");
    let builder = builder.layer(first, Compression::Gzip).empty_step("ENV A=1");
    let image = builder.layer(LayerBuilder::text(LOWER), Compression::Gzip).build();
    image.push(&registry, "team/app", "v1");
    let base = room.path().join("base").display().to_string();
    room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &base]);
    Setting { _registry: registry, image, room, base }
}

impl Setting {
    pub fn path(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// An upper directory made by hand.
    fn upper(&self) -> PathBuf {
        let upper = self.path("upper");
        fs::create_dir_all(&upper).unwrap();
        upper
    }

    /// `layoutfs commit upper --base base --json ARGS`.
    pub fn commit(&self, args: &[&str]) -> Value {
        let upper = self.text("upper");
        let own = ["commit", &upper, "--base", &self.base, "--json"];
        serde_json::from_str(&self.room.layoutfs(&[&own[..], args].concat())).unwrap()
    }

    fn refused(&self, args: &[&str], code: i32, word: &str) {
        let upper = self.text("upper");
        let outcome = self.room.run(&[&["commit", &upper, "--base", &self.base], args].concat());
        assert_eq!(outcome.code(), Some(code), "{outcome}");
        assert!(outcome.stderr.contains(word), "{outcome}");
    }
}

/// Every kind of change once.
pub fn change(root: &Path) {
    let at = |name: &str| root.join(name);
    let mode = |name: &str, bits| {
        fs::set_permissions(at(name), fs::Permissions::from_mode(bits)).unwrap();
    };
    fs::write(at("etc/new"), "new").unwrap();
    mode("etc/new", 0o4755);
    mode("etc/mode", 0o600);
    drop(OpenOptions::new().append(true).open(at("etc/copied")).unwrap());
    let old = fs::metadata(at("etc/rewritten")).unwrap().modified().unwrap();
    fs::write(at("etc/rewritten"), "neu").unwrap();
    fs::File::options().write(true).open(at("etc/rewritten")).unwrap().set_modified(old).unwrap();
    fs::remove_file(at("gone1")).unwrap();
    fs::remove_file(at("gone2")).unwrap();
    fs::remove_dir_all(at("old")).unwrap();
    fs::create_dir_all(at("old/inner/deep")).unwrap();
    fs::write(at("old/inner/x"), "another x").unwrap();
    fs::remove_dir_all(at("swap")).unwrap();
    fs::write(at("swap"), "was a directory").unwrap();
    fs::remove_file(at("tosym")).unwrap();
    symlink("etc/\u{e9}\n", at("tosym")).unwrap();
    mode("hl-a", 0o700);
    fs::hard_link(at("etc/new"), at("etc/new-too")).unwrap();
    fs::hard_link(at("noted"), at("etc/noted")).unwrap();
    lsetxattr(at("etc/name"), "user.bin", b"a\n\0=\xff", XattrFlags::empty()).unwrap();
    lsetxattr(at("swap"), "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
    mknodat(CWD, at("etc/device"), FileType::CharacterDevice, Mode::RUSR, makedev(5, 1)).unwrap();
    mknodat(CWD, at("etc/fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    std::os::unix::fs::chown(at("etc/fifo"), Some(3_000_000), Some(7)).unwrap();
    fs::write(at(&format!("etc/{}", "long".repeat(40))), "long").unwrap();
    fs::write(at("etc/ancient"), "").unwrap();
    let time = Timespec { tv_sec: -2, tv_nsec: 500_000_000 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, at("etc/ancient"), &times, AtFlags::empty()).unwrap();
    fs::create_dir_all(at("cnb/stack")).unwrap();
    fs::write(at("cnb/stack/left-out"), "x").unwrap();
    fs::create_dir(at("proc")).unwrap();
}

/// A listing without what a commit does not promise: the root's attributes, which are those of the
/// upper directory, and counts of names, which an overlay takes from lower directories.
pub fn comparable(root: &Path) -> Listing {
    let mut listing = Listing::of(root);
    let left_out = |path: &[u8]| path.is_empty() || path == b"proc" || path.starts_with(b"cnb");
    listing.0.retain(|path, _| !left_out(path));
    listing.0.values_mut().for_each(|facts| facts.links = 0);
    listing
}

/// Changes the base through an overlay; what that overlay then shows. Mounted anew, because it gives
/// a link to a lower file an inode of its own until then.
pub fn changed(setting: &Setting) -> Listing {
    let mount = || setting.room.mount(&setting.base, &["--upper", &setting.text("upper")]);
    change(mount().path());
    comparable(mount().path())
}

#[test]
fn the_committed_image_shows_what_the_overlay_showed() {
    let setting = setting(Names::Oci);
    let expected = changed(&setting);
    let [first, second] = ["first", "second"].map(|to| {
        setting.commit(&["--to", &setting.text(to), "--exclude", "/cnb", "--created-by", "me"])
    });
    assert_eq!(first["digest"], second["digest"], "the same upper gives the same image");
    assert_eq!((&first["pruned"], &first["mount_points"]), (&1.into(), &1.into()), "{first}");
    assert!(
        !setting.path("first/blobs/sha256").join(setting.image.layers[1].digest.hex()).exists()
    );
    let committed = setting.room.mount(&setting.text("first"), &[]);
    let shown = comparable(committed.path());
    expected.assert_same(&shown);
    assert!(!committed.path().join("cnb").exists() && !committed.path().join("proc").exists());
    let fact = |path: &str| shown.get(path).unwrap_or_else(|| panic!("no {path}")).clone();
    assert_eq!((fact("etc/ancient").mtime, fact("etc/ancient").mtime_ns), (-2, 500_000_000));
    assert_eq!(fact("etc/new-too").same_as.as_deref(), Some(&b"etc/new"[..]));
    assert_eq!(fact("swap").xattrs[&b"security.capability"[..]], CAPABILITY);
    let xattrs = shown.0.values().flat_map(|facts| facts.xattrs.keys());
    assert_eq!(xattrs.filter(|name| name.starts_with(b"trusted.")).count(), 0);
    // Nothing of an unchanged file is in the layer, and whiteouts say what is gone.
    let layer = setting.room.mount(&setting.text("first"), &["--view", "all"]);
    let top = fs::read_dir(layer.path().join("layers")).unwrap().map(|e| e.unwrap().path()).max();
    let top = Listing::of(&top.unwrap()).paths();
    let gone: Vec<_> = top.iter().filter(|path| path.contains(".wh.")).collect();
    assert_eq!(
        gone,
        [".wh.gone1", ".wh.gone2", "old/.wh.a", "old/inner/.wh.y", "old/inner/deep/.wh.er"]
    );
    assert!(!top.contains(&"etc/copied".to_owned()) && !top.contains(&"kept".to_owned()));
}

#[test]
fn whiteouts_of_any_form_and_any_number_of_links_remove() {
    let setting = setting(Names::Oci);
    let upper = setting.upper();
    mknodat(CWD, upper.join("gone1"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    fs::hard_link(upper.join("gone1"), upper.join("gone2")).unwrap();
    fs::hard_link(upper.join("gone1"), upper.join("never-there")).unwrap();
    fs::create_dir(upper.join("etc")).unwrap();
    for namespace in ["trusted", "user"] {
        let set = |path: &Path, name: &str, value: &[u8]| {
            let name = format!("{namespace}.overlay.{name}");
            lsetxattr(path, &*name, value, XattrFlags::empty()).unwrap();
        };
        fs::write(upper.join("etc/mode"), "").unwrap();
        set(&upper.join("etc"), "opaque", b"x");
        set(&upper.join("etc/mode"), "whiteout", b"");
        fs::create_dir_all(upper.join("old")).unwrap();
        set(&upper.join("old"), "opaque", b"y");
        let counts = setting.commit(&["--to", &setting.text("out")]);
        assert_eq!(counts["removed"], 5, "gone1 gone2 etc/mode old/a old/inner: {counts}");
        fs::remove_dir_all(upper.join("old")).unwrap();
        fs::remove_file(upper.join("etc/mode")).unwrap();
        rustix::fs::removexattr(upper.join("etc"), &*format!("{namespace}.overlay.opaque"))
            .unwrap();
    }
    let mount = setting.room.mount(&setting.text("out"), &[]);
    assert!(mount.path().join("etc/name").exists() && !mount.path().join("etc/mode").exists());
    assert_eq!(fs::read_dir(mount.path().join("old")).unwrap().count(), 0);
}

#[test]
fn what_no_layer_can_say_is_refused_and_sockets_are_left_out() {
    let setting = setting(Names::Oci);
    let upper = setting.upper();
    let to = setting.text("out");
    let to = ["--to", to.as_str()];
    for mark in ["trusted.overlay.redirect", "user.overlay.metacopy"] {
        fs::write(upper.join("file"), "").unwrap();
        lsetxattr(upper.join("file"), mark, b"/x", XattrFlags::empty()).unwrap();
        setting.refused(&to, 3, mark);
        fs::remove_file(upper.join("file")).unwrap();
    }
    fs::write(upper.join(".wh.file"), "").unwrap();
    setting.refused(&to, 3, "--exclude");
    let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).unwrap();
    let counts = setting.commit(&["--to", to[1], "--exclude", ".wh.file"]);
    assert_eq!((&counts["sockets"], &counts["layer"]), (&1.into(), &Value::Null), "{counts}");
    setting.refused(&["--to", to[1], "--exclude", "../x"], 2, "leaves the root");
    setting.refused(&["--extended", to[1], "--compression", "zstd"], 2, "zstd");
}

/// The config of the only image in a layout.
fn config(layout: &Path) -> (Value, Value) {
    let json =
        |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob = |digest: &Value| {
        let digest: Digest = digest.as_str().unwrap().parse().unwrap();
        json(layout.join("blobs").join(digest.algorithm()).join(digest.hex()))
    };
    let index = json(layout.join("index.json"));
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    let manifest = blob(&index["manifests"][0]["digest"]);
    (blob(&manifest["config"]["digest"]), manifest)
}

#[test]
fn an_extended_image_stands_alone_in_run_without_the_layers_of_its_base() {
    let setting = setting(Names::Docker);
    fs::write(setting.upper().join("extended.txt"), "extended").unwrap();
    let extended = setting.text("extended");
    let created_by = "Layer: 'RUN x', Created by extension: ex/ext";
    let run = |upper: &str| {
        fs::write(setting.path("upper/extended.txt"), upper).unwrap();
        setting.commit(&["--extended", &extended, "--created-by", created_by])
    };
    run("former");
    let written = run("extended");
    let names = fs::read_dir(setting.path("extended/run")).unwrap();
    let names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names, [written["digest"].as_str().unwrap()]);
    assert_eq!(fs::read_dir(setting.path("extended")).unwrap().count(), 1);
    let layout = setting.path("extended/run").join(&names[0]);
    let (config, manifest) = config(&layout);
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers[2]["mediaType"], "application/vnd.docker.image.rootfs.diff.tar.gzip");
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap().count();
    assert_eq!((layers.len(), blobs), (3, 3), "manifest, config, new layer");
    let history = config["history"].as_array().unwrap();
    assert_eq!(history.len(), 4);
    assert_eq!(history[3]["created_by"], created_by);
    assert_eq!(config["rootfs"]["diff_ids"][2], written["diff_id"]);
    assert_eq!(config["config"]["Env"][0], "A=1");
    // Settings that the extender left there are kept: no upper directory shows them.
    fs::remove_file(setting.path("upper/extended.txt")).unwrap();
    let empty = setting.commit(&["--extended", &extended]);
    let (digest, none) = (setting.image.digest.to_string(), Value::Null);
    assert_eq!((&empty["digest"], &empty["layer"]), (&digest.into(), &none), "{empty}");
    fs::write(setting.path("upper/f"), "f").unwrap();
    setting.refused(&["--to", &setting.text("z"), "--compression", "zstd"], 2, "Docker");
    fs::write(setting.path("extended/run/precious"), "x").unwrap();
    setting.refused(&["--extended", &extended], 2, "precious");
}

#[test]
fn settings_of_the_former_extended_image_are_kept() {
    let setting = setting(Names::Oci);
    fs::write(setting.upper().join("f"), "f").unwrap();
    // What an extender leaves: more layers than the base, and settings from its instructions.
    let layer = |text: &str| LayerBuilder::text(text);
    let former = ImageBuilder::new()
        .layer(layer("dir first\nfile first/f = f"), Compression::Gzip)
        .layer(layer(LOWER), Compression::Gzip)
        .layer(layer("file by-extender = x"), Compression::Gzip)
        .setting("User", "1000".into())
        .build();
    let place = setting.path("extended/run").join(former.digest.to_string());
    fs::create_dir_all(&place).unwrap();
    former.write_layout(&place, "latest", crate::support::image::Fill::Sparse);
    let written = setting.commit(&["--extended", &setting.text("extended")]);
    let layout = PathBuf::from(written["directory"].as_str().unwrap());
    let (config, manifest) = config(&layout);
    assert_eq!(config["config"], serde_json::json!({"User": "1000"}));
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 3);
    assert!(!place.exists());
}

#[test]
fn an_epoch_bounds_every_time_and_a_second_commit_keeps_the_first_layer() {
    let setting = setting(Names::Oci);
    fs::write(setting.upper().join("f"), "f").unwrap();
    let (upper, first, second) =
        (setting.text("upper"), setting.text("first"), setting.text("second"));
    let commit = |base: &str, to: &str, epoch: &str| {
        let args = ["commit", &upper, "--base", base, "--to", to, "--compression", "zstd"];
        let mut command = setting.room.command(&args);
        crate::support::mount::run(
            command.env("SOURCE_DATE_EPOCH", epoch),
            std::time::Duration::from_secs(60),
        )
    };
    assert_eq!(commit(&setting.base, &first, "soon").code(), Some(2));
    commit(&setting.base, &first, "1000000000").success();
    fs::rename(setting.path("upper/f"), setting.path("upper/g")).unwrap();
    commit(&first, &second, "1000000001").success();
    let (config, _) = config(Path::new(&second));
    assert_eq!(config["created"], "2001-09-09T01:46:41Z");
    let mount = setting.room.mount(&second, &[]);
    let listing = Listing::of(mount.path());
    let mtime = |path| listing.get(path).map(|facts| (facts.mtime, facts.mtime_ns));
    assert_eq!(mtime("f"), Some((1_000_000_000, 0)));
    assert_eq!(mtime("g"), Some((1_000_000_001, 0)));
    setting.room.layoutfs(&["hydrate", &second]);
    setting.room.layoutfs(&["verify", "--deep", &second]);
}
