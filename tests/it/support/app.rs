//! Application layouts as the lifecycle's exporter writes them on a sparse run image.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use layoutfs::layout::Digest;
use serde_json::{Value, json};

use super::layer::{Compression, LayerBuilder};

/// The user that the phases run as, once they have dropped root.
pub const CNB_UID: u32 = 1000;

/// Its group; another number, so that nobody takes one for the other.
pub const CNB_GID: u32 = 1001;

/// An exported application: base layers missing, its own there.
pub struct App {
    pub layout: PathBuf,
    pub digest: Digest,
    /// The layers of the base, lowest first.
    pub base: Vec<Digest>,
    /// The layers on top, and their blobs.
    pub own: Vec<(Digest, Bytes)>,
}

/// The media type that the exporter gives to the layers which it makes, whatever the manifest is.
pub const EXPORTED: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// What the exporter is given.
pub struct Base<'a> {
    /// The run image's documents.
    pub manifest: &'a [u8],
    pub config: &'a [u8],
    /// The media type of new layers.
    pub layer_type: &'a str,
}

/// The label `io.buildpacks.lifecycle.metadata`, as far as it speaks of the run image.
pub fn label(image: &str, mirrors: &[&str]) -> String {
    let reference = format!("{image}@{}", Digest::sha256_of(b"of an empty image, by mistake"));
    let run_image = json!({"topLayer": "sha256:0", "reference": reference, "image": image});
    let mut label = json!({"app": [{"sha": "sha256:1"}], "buildpacks": [], "runImage": run_image});
    label["stack"] = json!({"runImage": {"image": image}});
    if !mirrors.is_empty() {
        label["runImage"]["mirrors"] = json!(mirrors);
        label["stack"]["runImage"]["mirrors"] = json!(mirrors);
    }
    label.to_string()
}

impl App {
    /// Writes the layout: an OCI manifest whose upper layers have Docker's media type, blobs with
    /// mode 0600, and everything owned by [`CNB_UID`].
    pub fn export(base: &Base, layers: &[LayerBuilder], label: &str, layout: &Path) -> App {
        let parse = |bytes| serde_json::from_slice::<Value>(bytes).expect("JSON");
        let (mut manifest, mut config) = (parse(base.manifest), parse(base.config));
        let digests = manifest["layers"].as_array().expect("layers").iter();
        let layer_type = base.layer_type;
        let base = digests.map(|l| l["digest"].as_str().expect("a digest").parse().unwrap());
        let base = base.collect();
        let mut own = Vec::new();
        for layer in layers {
            let tar = layer.clone().tar();
            let blob = Bytes::from(Compression::Gzip.compress(&tar));
            let digest = Digest::sha256_of(&blob);
            push(
                &mut manifest["layers"],
                json!({
                    "mediaType": layer_type,
                    "size": blob.len(), "digest": digest.to_string(),
                }),
            );
            push(&mut config["rootfs"]["diff_ids"], json!(Digest::sha256_of(&tar).to_string()));
            push(
                &mut config["history"],
                json!({
                    "created": "1980-01-01T00:00:01Z", "created_by": "Application Layer",
                }),
            );
            own.push((digest, blob));
        }
        config["config"]["Labels"]["io.buildpacks.lifecycle.metadata"] = label.into();
        config["config"]["Entrypoint"] = json!(["/cnb/process/web"]);
        let config = config.to_string().into_bytes();
        manifest["config"]["digest"] = Digest::sha256_of(&config).to_string().into();
        manifest["config"]["size"] = config.len().into();
        let manifest = manifest.to_string().into_bytes();
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let digest = Digest::sha256_of(&manifest);
        let documents =
            [&manifest, &config].map(|b| (Digest::sha256_of(b), Bytes::copy_from_slice(b)));
        for (digest, bytes) in documents.iter().chain(&own) {
            let path = blobs.join(digest.hex());
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
        }
        write_index(layout, &digest, manifest.len());
        give(layout);
        App { layout: layout.to_owned(), digest, base, own }
    }

    /// As an argument of a command.
    pub fn path(&self) -> &str {
        self.layout.to_str().expect("plain letters")
    }

    /// Where a blob is, or would be.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.layout.join("blobs/sha256").join(digest.hex())
    }

    /// The base layers that are missing, each once.
    pub fn missing(&self) -> Vec<Digest> {
        let mut missing: Vec<Digest> =
            self.base.iter().filter(|d| !self.blob(d).exists()).copied().collect();
        missing.sort();
        missing.dedup();
        missing
    }
}

fn push(list: &mut Value, item: Value) {
    list.as_array_mut().expect("a list").push(item);
}

fn write_index(layout: &Path, digest: &Digest, size: usize) {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "size": size, "digest": digest.to_string(),
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }],
    });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
}

/// Gives a whole tree to the user of the phases.
fn give(path: &Path) {
    chown(path, Some(CNB_UID), Some(CNB_GID)).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    }
}
