//! Writes sparse layouts: index, manifest and configuration, original bytes, no layer.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use super::error::{Error, ErrorKind, Result};
use super::image::SOURCE_ANNOTATION;
use super::layout_dir::{blob_path, is_present, read_document};
use crate::layout::oci::{self, Manifest};
use crate::layout::{Blob, Digest};

/// The file `oci-layout`, as every writer has it (image-spec `image-layout.md`).
const OCI_LAYOUT: &str = "{\"imageLayoutVersion\": \"1.0.0\"}";

/// What a layout directory has in it; one with anything else is not ours to replace.
const LAYOUT_NAMES: [&str; 3] = ["blobs", "index.json", "oci-layout"];

/// An image without its layers.
#[derive(Debug, Clone)]
pub struct SparseImage {
    /// The manifest's bytes, as the registry has them.
    pub manifest: Vec<u8>,
    /// The digest that the registry gives them.
    pub manifest_digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// The configuration's bytes.
    pub config: Vec<u8>,
    /// The configuration's digest and size.
    pub config_blob: Blob,
    /// The bare tag, if it was named by one.
    pub tag: Option<String>,
    /// Where it came from: `registry/repository`, if that is known.
    pub source: Option<String>,
}

impl SparseImage {
    /// The manifest's digest and size.
    pub fn manifest_blob(&self) -> Blob {
        Blob { digest: self.manifest_digest, size: self.manifest.len() as u64 }
    }

    /// `index.json`: exactly this manifest. (The lifecycle takes no layout with two.)
    fn index(&self) -> Vec<u8> {
        let blob = self.manifest_blob();
        let mut annotations = serde_json::Map::new();
        if let Some(tag) = &self.tag {
            annotations.insert("org.opencontainers.image.ref.name".to_owned(), json!(tag));
        }
        if let Some(source) = &self.source {
            annotations.insert(SOURCE_ANNOTATION.to_owned(), json!(source));
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": oci::OCI_INDEX,
            "manifests": [{
                "mediaType": self.media_type,
                "size": blob.size,
                "digest": blob.digest.to_string(),
                "annotations": annotations,
            }],
        });
        index.to_string().into_bytes()
    }

    /// Writes the layout to `directory`, atomically: it is there as a whole or not at all. A layout
    /// that is there already is replaced, and keeps those layers of its own that the new manifest
    /// refers to; one that says the same is left alone. `more` are further blobs to write.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a directory that holds something else; local trouble.
    pub fn write(&self, directory: &Path, more: &[(Blob, Vec<u8>)]) -> Result<()> {
        self.write_with(directory, more, &[])
    }

    /// As [`SparseImage::write`]; `files` are blobs that are files already, on the filesystem of
    /// `directory` if they are not to be copied.
    ///
    /// # Errors
    /// As [`SparseImage::write`].
    pub fn write_with(
        &self,
        directory: &Path,
        more: &[(Blob, Vec<u8>)],
        files: &[(Blob, PathBuf)],
    ) -> Result<()> {
        let manifest = self.manifest_blob();
        let blobs: Vec<(Blob, &[u8])> =
            [(manifest, &*self.manifest), (self.config_blob, &*self.config)]
                .into_iter()
                .chain(more.iter().map(|(blob, bytes)| (*blob, &**bytes)))
                .collect();
        let index = self.index();
        let are_there = files.iter().all(|(blob, _)| is_present(directory, blob));
        if are_there && is_written(directory, &index, &blobs) {
            return Ok(());
        }
        check_replaceable(directory)?;
        let parent = match directory.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let failed = |e: &std::io::Error| cannot_write(directory, e);
        std::fs::create_dir_all(&parent).map_err(|e| failed(&e))?;
        let new = tempfile::Builder::new()
            .prefix(".layoutfs-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in(&parent)
            .map_err(|e| failed(&e))?;
        for (blob, bytes) in &blobs {
            write_file(&blob_path(new.path(), &blob.digest), bytes)?;
        }
        for (blob, from) in files {
            place(from, &blob_path(new.path(), &blob.digest))?;
        }
        self.keep_layers(directory, new.path())?;
        write_file(&new.path().join("oci-layout"), OCI_LAYOUT.as_bytes())?;
        write_file(&new.path().join("index.json"), &index)?;
        put_in_place(new, directory)
    }

    /// Layers that a former hydrate left in `old`: linked into `new`, not copied.
    fn keep_layers(&self, old: &Path, new: &Path) -> Result<()> {
        if !old.join("blobs").is_dir() {
            return Ok(());
        }
        let manifest = Manifest::parse("manifest", &self.manifest)?;
        for layer in &manifest.layers {
            let (from, to) =
                (blob_path(old, &layer.blob.digest), blob_path(new, &layer.blob.digest));
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).map_err(|e| cannot_write(&to, &e))?;
            }
            match std::fs::hard_link(&from, &to) {
                Err(e) if !is_absent_or_there(&e) => return Err(cannot_write(&to, &e)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Gives a finished blob a name in a layout: a link, or a copy where no link can lead.
fn place(from: &Path, to: &Path) -> Result<()> {
    let failed = |e: &std::io::Error| cannot_write(to, e);
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(|e| failed(&e))?;
    }
    match std::fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(_) => std::fs::copy(from, to).map(drop).map_err(|e| failed(&e)),
    }
}

fn is_absent_or_there(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{AlreadyExists, NotFound};
    matches!(error.kind(), NotFound | AlreadyExists)
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Error {
    Error::local(format!("cannot write {}", path.display()), error)
}

fn is_written(directory: &Path, index: &[u8], blobs: &[(Blob, &[u8])]) -> bool {
    let same = |path: PathBuf, bytes: &[u8]| {
        read_document(&path).is_ok_and(|is| is.as_deref() == Some(bytes))
    };
    same(directory.join("index.json"), index)
        && same(directory.join("oci-layout"), OCI_LAYOUT.as_bytes())
        && blobs.iter().all(|(blob, bytes)| same(blob_path(directory, &blob.digest), bytes))
}

/// Only what is a layout, or empty, or absent, is replaced.
fn check_replaceable(directory: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
    let is_ours = |name: &std::ffi::OsStr| LAYOUT_NAMES.iter().any(|ours| name == *ours);
    if entries.flatten().all(|entry| is_ours(&entry.file_name())) {
        return Ok(());
    }
    let message = format!(
        "{} is neither empty nor an image layout: choose another directory",
        directory.display()
    );
    Err(Error::new(ErrorKind::Usage, message))
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |e: &std::io::Error| cannot_write(path, e);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| failed(&e))?;
    }
    std::fs::write(path, bytes).map_err(|e| failed(&e))
}

/// Renames, or exchanges names with what is there, which then goes.
///
/// # Errors
/// Local trouble; then what was there still is.
pub fn put_in_place(new: tempfile::TempDir, directory: &Path) -> Result<()> {
    match renameat_with(CWD, new.path(), CWD, directory, RenameFlags::EXCHANGE) {
        // The former layout now has the temporary name, and is removed with it.
        Ok(()) => new.close().map_err(|e| cannot_write(directory, &e)),
        Err(rustix::io::Errno::NOENT) => {
            match renameat_with(CWD, new.path(), CWD, directory, RenameFlags::NOREPLACE) {
                Ok(()) => {
                    // It has its name: there is nothing temporary to remove any more.
                    let _ = new.keep();
                    Ok(())
                }
                // Somebody was quicker: exchange with theirs.
                Err(rustix::io::Errno::EXIST) => put_in_place(new, directory),
                Err(e) => Err(cannot_write(directory, &e.into())),
            }
        }
        Err(e) => Err(cannot_write(directory, &e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tag: &str) -> SparseImage {
        let config = b"{}".to_vec();
        let config_blob = Blob { digest: Digest::sha256_of(&config), size: 2 };
        let layer = Digest::sha256_of(b"layer");
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": oci::OCI_MANIFEST,
            "config": {"mediaType": oci::OCI_CONFIG, "size": 2,
                       "digest": config_blob.digest.to_string()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": 5,
                        "digest": layer.to_string()}],
        });
        let manifest = manifest.to_string().into_bytes();
        SparseImage {
            manifest_digest: Digest::sha256_of(&manifest),
            manifest,
            media_type: oci::OCI_MANIFEST.to_owned(),
            config,
            config_blob,
            tag: Some(tag.to_owned()),
            source: Some("localhost:5000/a/b".to_owned()),
        }
    }

    #[test]
    fn a_layout_is_replaced_as_a_whole_and_keeps_its_layers() {
        let base = tempfile::tempdir().expect("a directory");
        let directory = base.path().join("x/y/layout");
        image("v1").write(&directory, &[]).expect("written");
        let layer = blob_path(&directory, &Digest::sha256_of(b"layer"));
        assert!(!layer.exists());
        std::fs::write(&layer, b"layer").expect("hydrated");
        image("v2").write(&directory, &[]).expect("replaced");
        assert_eq!(std::fs::read(&layer).expect("kept"), b"layer");
        let index = std::fs::read_to_string(directory.join("index.json")).expect("index");
        assert!(index.contains("\"v2\"") && !index.contains("\"v1\""));
        let names = std::fs::read_dir(directory.parent().expect("parent")).expect("listing");
        assert_eq!(names.count(), 1, "nothing temporary stays");
    }

    #[test]
    fn a_directory_with_other_content_is_refused() {
        let base = tempfile::tempdir().expect("a directory");
        std::fs::write(base.path().join("precious"), b"x").expect("written");
        let error = image("v1").write(base.path(), &[]).expect_err("refused");
        assert_eq!(error.kind, ErrorKind::Usage);
        assert!(base.path().join("precious").exists());
    }

    #[test]
    fn writing_the_same_again_touches_nothing() {
        let base = tempfile::tempdir().expect("a directory");
        let directory = base.path().join("layout");
        image("v1").write(&directory, &[]).expect("written");
        let inode = |p: &Path| std::os::unix::fs::MetadataExt::ino(&p.metadata().expect("stat"));
        let before = inode(&directory);
        image("v1").write(&directory, &[]).expect("again");
        assert_eq!(inode(&directory), before);
    }
}
