//! An application that the lifecycle exported on a sparse run image, filled by `hydrate`: other
//! tools take it for an image like any other, and it starts.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use super::debian::{Debian, digest_of, hex, tool};
use super::layout_view::podman_in;
use crate::support::app::{App, Base, EXPORTED, label};
use crate::support::layer::LayerBuilder;
use crate::support::mount::{LIMIT, Room, run};

/// What the application prints: a file of its own layer, and what the extension made of a file of
/// the run image.
const PRINTED: &str = "from the application\nextended\n";

const PROGRAM: &str = "#!/bin/sh\ncat /workspace/greeting /opt/extended\n";

/// A layer's media type in OCI manifests.
const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A run image's name that is on no network.
const ALIAS: &str = "reg.example/cnb/run:base";

/// The documents of what `debian` serves as its `everyday` image. Docker's archives know no zstd:
/// for those, the layers below the first such one.
fn base_documents(debian: &Debian, with_zstd: bool) -> [Vec<u8>; 2] {
    let mut manifest = debian.manifest("everyday");
    let config = manifest["config"]["digest"].as_str().unwrap();
    let mut config: Value = serde_json::from_slice(&debian.registry.blob(config)).unwrap();
    let layers = manifest["layers"].as_array_mut().unwrap();
    let is_zstd = |layer: &Value| layer["mediaType"].as_str().unwrap().ends_with("zstd");
    let first = layers.iter().position(is_zstd).expect("a layer of zstd");
    if !with_zstd {
        assert!(first > 0, "a layer of gzip below it");
        layers.truncate(first);
        config["rootfs"]["diff_ids"].as_array_mut().unwrap().truncate(first);
        config["history"] = vec![serde_json::json!({"created_by": "base"}); first].into();
    }
    [manifest, config].map(|document| document.to_string().into_bytes())
}

/// The application, on the `everyday` image.
fn export(debian: &Debian, room: &Room, layer_type: &str) -> App {
    let layout_dir = room.path().join("layout-repo");
    let to = layout_dir.to_str().unwrap();
    let reference = debian.reference("everyday");
    room.layoutfs(&["sparse", &reference, "--layout-dir", to, "--as", ALIAS]);
    let extension = LayerBuilder::new().file("opt/extended", 0o644, "extended\n");
    let launcher = LayerBuilder::new()
        .dir("/cnb", 0o755)
        .dir("/cnb/process", 0o755)
        .file("/cnb/launcher", 0o755, PROGRAM)
        .symlink("/cnb/process/web", "/cnb/launcher");
    let own = LayerBuilder::new().dir("/workspace", 0o755).file(
        "/workspace/greeting",
        0o644,
        "from the application\n",
    );
    let layers = [extension, LayerBuilder::new(), launcher, own.clone(), own];
    let [manifest, config] = base_documents(debian, layer_type == EXPORTED);
    let base = Base { manifest: &manifest, config: &config, layer_type };
    let label = label("/layout-repo/reg.example/cnb/run/base", &[]);
    App::export(&base, &layers, &label, &layout_dir.join("reg.example/team/app/latest"))
}

/// The application, filled. (A room of its own: other suites must not have warmed its cache.)
fn filled(debian: &Debian, layer_type: &str) -> (Arc<Room>, App) {
    let room = Room::new();
    let app = export(debian, &room, layer_type);
    assert!(!app.missing().is_empty());
    room.layoutfs(&["hydrate", app.path()]);
    assert_eq!(app.missing(), []);
    room.layoutfs(&["verify", "--deep", app.path()]);
    (room, app)
}

fn image(app: &App) -> String {
    format!("oci:{}:latest", app.path())
}

/// Runs what `podman load` or `podman pull` made.
fn assert_starts(room: &Room, id: &str) {
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
    let args = [&["run", "--rm", "--network", "none"], &limits[..], &[id]].concat();
    assert_eq!(podman_in(room, &args), PRINTED);
}

#[test]
fn skopeo_copies_it_whole() {
    let debian = Debian::shared();
    let (room, app) = filled(&debian, EXPORTED);
    let out = room.path().join("copied");
    let to = format!("dir:{}", out.display());
    tool("skopeo", &["copy", "-q", "--preserve-digests", &image(&app), &to]).success();
    assert_eq!(digest_of(&out.join("manifest.json")), app.digest.to_string());
    for digest in app.base.iter().chain(app.own.iter().map(|(digest, _)| digest)) {
        assert_eq!(digest_of(&out.join(digest.hex())), digest.to_string());
    }
}

#[test]
fn podman_pulls_and_starts_it() {
    let debian = Debian::shared();
    let (room, app) = filled(&debian, EXPORTED);
    // podman makes a name of the path, and a temporary path has upper-case letters: a link has not.
    std::os::unix::fs::symlink(&app.layout, room.path().join("application")).unwrap();
    let id = podman_in(&room, &["pull", "-q", "oci:application:latest"]);
    let digest = podman_in(&room, &["image", "inspect", "--format", "{{.Digest}}", id.trim_end()]);
    assert_eq!(digest.trim_end(), app.digest.to_string());
    assert_starts(&room, id.trim_end());
}

#[test]
fn an_archive_of_it_is_loaded_and_starts() {
    let debian = Debian::shared();
    let (room, app) = filled(&debian, EXPORTED);
    let archive = room.path().join("app.tar");
    let to = format!("oci-archive:{}:latest", archive.display());
    tool("skopeo", &["copy", "-q", &image(&app), &to]).success();
    assert_starts(&room, &load(&room, &archive));
}

#[test]
fn an_archive_for_docker_is_made_of_it_where_media_types_are_of_one_family() {
    let debian = Debian::shared();
    let (room, app) = filled(&debian, OCI_GZIP);
    let archive = room.path().join("app.tar");
    let to = format!("docker-archive:{}:team/app:latest", archive.display());
    tool("skopeo", &["copy", "-q", &image(&app), &to]).success();
    assert_docker_reads(&archive, &app);
    assert_starts(&room, &load(&room, &archive));
}

/// `podman load`: what it says that it made.
fn load(room: &Room, archive: &Path) -> String {
    let printed = podman_in(room, &["load", "-q", "-i", archive.to_str().unwrap()]);
    printed.trim_end().rsplit(' ').next().unwrap().to_owned()
}

/// What `docker load` goes by: each layer that `manifest.json` names is a tar with the DiffID that
/// the configuration has at its place.
fn assert_docker_reads(archive: &Path, app: &App) {
    let out = archive.with_extension("unpacked");
    std::fs::create_dir(&out).unwrap();
    let mut tar = Command::new("tar");
    run(tar.arg("-xf").arg(archive).arg("-C").arg(&out), LIMIT).success();
    let read = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(out.join(name)).unwrap()).unwrap()
    };
    let manifest = read("manifest.json");
    let layers = manifest[0]["Layers"].as_array().unwrap();
    assert_eq!(layers.len(), app.base.len() + app.own.len());
    let config = read(manifest[0]["Config"].as_str().unwrap());
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        assert_eq!(digest_of(&out.join(layer.as_str().unwrap())), *diff_id.as_str().unwrap());
    }
}

#[test]
fn skopeo_copies_its_layout_view_before_anything_was_filled() {
    let debian = Debian::shared();
    let room = Room::new();
    let app = export(&debian, &room, EXPORTED);
    let whole = room.mount(app.path(), &["--view", "layout"]);
    let to = format!("docker://{}/copied/app:latest", debian.scratch.address);
    let from = format!("oci:{}:latest", whole.path().display());
    let copy = ["copy", "-q", "--preserve-digests", "--dest-tls-verify=false"];
    tool("skopeo", &[&copy[..], &[&from, &to]].concat()).success();
    let copied = debian.scratch.manifest_digest("copied/app", "latest");
    assert_eq!(hex(&copied), app.digest.hex());
    for digest in &app.base {
        let digest = digest.to_string();
        assert_eq!(debian.scratch.blob(&digest), debian.registry.blob(&digest));
    }
    assert!(!app.missing().is_empty(), "the layout itself is as it was");
}
