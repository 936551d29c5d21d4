//! Images in layout directories, and what an exported application has to be like.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::real::debian::{digest_of, hex};

/// The one image of a layout, its documents checked against their digests.
#[derive(Debug)]
pub struct Image {
    pub dir: PathBuf,
    pub digest: String,
    pub index: Value,
    pub manifest: Value,
    pub config: Value,
}

impl Image {
    pub fn read(dir: &Path) -> Self {
        let index = document(&dir.join("index.json"));
        let manifests = index["manifests"].as_array().unwrap();
        assert_eq!(manifests.len(), 1, "phases read layouts of one image only: {index}");
        let digest = manifests[0]["digest"].as_str().unwrap().to_owned();
        let manifest_path = blob(dir, &digest);
        let manifest = document(&manifest_path);
        let config_path = blob(dir, manifest["config"]["digest"].as_str().unwrap());
        for path in [&manifest_path, &config_path] {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(hex(&digest_of(path)), name, "the digest of a document");
        }
        let config = document(&config_path);
        Image { dir: dir.to_owned(), digest, index, manifest, config }
    }

    /// Digests of the layers' blobs.
    pub fn layers(&self) -> Vec<&str> {
        let layers = self.manifest["layers"].as_array().unwrap();
        layers.iter().map(|layer| layer["digest"].as_str().unwrap()).collect()
    }

    /// Of the manifest, the configuration and the layers: what they are called.
    pub fn media_types(&self) -> BTreeSet<&str> {
        let layers = self.manifest["layers"].as_array().unwrap().iter();
        let config = &self.manifest["config"];
        let described = layers.chain([&self.index["manifests"][0], config]);
        described.map(|described| described["mediaType"].as_str().unwrap()).collect()
    }

    pub fn diff_ids(&self) -> Vec<&str> {
        texts(&self.config["rootfs"]["diff_ids"])
    }

    /// What made each layer.
    pub fn history(&self) -> Vec<&str> {
        let entries = self.config["history"].as_array().unwrap().iter();
        let entries = entries.filter(|entry| entry["empty_layer"] != true);
        entries.map(|entry| entry["created_by"].as_str().unwrap_or_default()).collect()
    }

    pub fn environment(&self) -> Vec<&str> {
        texts(&self.config["config"]["Env"])
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.config["config"]["Labels"][name].as_str()
    }

    /// What the lifecycle says of the image's parts.
    pub fn lifecycle_metadata(&self) -> Value {
        serde_json::from_str(self.label("io.buildpacks.lifecycle.metadata").unwrap()).unwrap()
    }

    /// Blobs of layers that are not there.
    pub fn missing(&self) -> BTreeSet<&str> {
        self.layers().into_iter().filter(|digest| !blob(&self.dir, digest).exists()).collect()
    }

    /// Every layer's blob is there, with the bytes and the size that the manifest says.
    pub fn assert_whole(&self) {
        for layer in self.manifest["layers"].as_array().unwrap() {
            let digest = layer["digest"].as_str().unwrap();
            let path = blob(&self.dir, digest);
            assert_eq!(digest_of(&path), digest);
            assert_eq!(std::fs::metadata(&path).unwrap().len(), layer["size"]);
        }
    }

    /// What an unpatched exporter makes of `base` with `extended` on it: everything but the
    /// configuration.
    pub fn assert_exported_on(&self, base: &Image, extended: &Image) {
        let name = "org.opencontainers.image.ref.name";
        assert_eq!(self.index["manifests"][0]["annotations"][name], "latest");
        assert_eq!(self.manifest["annotations"][name], "latest");
        let (layers, history) = (self.layers(), self.history());
        assert_eq!(layers.len(), self.diff_ids().len());
        assert_eq!(layers.len(), history.len(), "{history:#?}");
        let count = base.layers().len();
        let descriptors =
            |image: &Image| image.manifest["layers"].as_array().unwrap()[..count].to_vec();
        assert_eq!(descriptors(self), descriptors(base), "the base's layers are what they were");
        assert_eq!(self.diff_ids()[..count], base.diff_ids());
        assert_eq!(history[..count], base.history());
        self.assert_history(base, extended);
        let metadata = self.lifecycle_metadata();
        assert_eq!(
            metadata["runImage"]["topLayer"],
            *base.diff_ids().last().unwrap(),
            "{metadata}"
        );
        let expected: BTreeSet<_> = base.layers().into_iter().collect();
        assert_eq!(self.missing(), expected, "the base's blobs are missing, and no others");
    }

    /// Behind the base's layers come those of the extension, then those of the application.
    fn assert_history(&self, base: &Image, extended: &Image) {
        let (history, base_history) = (self.history(), base.history());
        let rest = &history[base_history.len()..];
        let is_extension = |by: &&&str| {
            by.starts_with("Layer: '") && by.ends_with("', Created by extension: ex/ext")
        };
        // A base with an empty layer: its blob is beside those of kaniko, and is exported with them.
        let again = rest.iter().take_while(|by| !is_extension(by)).count();
        assert!(rest[..again].iter().all(|by| *by == "empty"), "{history:#?}");
        let added = rest[again..].iter().take_while(is_extension).count();
        assert_eq!(added, extended.layers().len() - base.layers().len(), "{history:#?}");
        assert!(added > 0, "{history:#?}");
        let rest = &rest[again + added..];
        assert!(!rest.iter().any(|by| is_extension(&by)), "{history:#?}");
        assert!(rest.contains(&"Application Layer"), "{history:#?}");
    }
}

fn document(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn blob(dir: &Path, digest: &str) -> PathBuf {
    dir.join("blobs/sha256").join(hex(digest))
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|text| text.as_str().unwrap()).collect()
}
