//! Views: functions that build a `Tree`. The rootfs and one layer's changes are in
//! [`merge`](super::merge); here are the layout directory, and everything side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::digest::{Blob, Digest};
use super::entry::{Attributes, Time};
use super::error::{Error, Result};
use super::oci::{Descriptor, Document, ImageIndex, is_document, parse_document, parse_oci_layout};
use super::tree::{Builder, Content, NodeId, NodeKind, Tree};

/// The documents of one layout that are at hand. Their bytes are shown as they are.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    /// The file `oci-layout`.
    pub oci_layout: Arc<[u8]>,
    /// The file `index.json`.
    pub index: Arc<[u8]>,
    /// Nested indexes, manifests and configs, as far as they are at hand.
    pub blobs: BTreeMap<Digest, Arc<[u8]>>,
    /// The modification time of every file and directory.
    pub mtime: Time,
}

/// The complete layout directory (image-spec `image-layout.md`): `oci-layout`, `index.json`, and
/// `blobs/ALGORITHM/HEX` for everything that `index.json` leads to, as far as the documents at hand
/// tell. A document that is not at hand (another platform's manifest) is a blob like a layer, to
/// be fetched when it is read.
///
/// # Errors
/// [`Error::Document`] for a malformed document, and when descriptors disagree on a blob's size;
/// [`Error::DigestMismatch`] and [`Error::SizeMismatch`] for bytes that are not what a descriptor
/// promises; [`Error::Limit`] beyond [`NODES_MAX`](super::tree::NODES_MAX).
pub fn layout_view(documents: &Documents) -> Result<Tree> {
    parse_oci_layout(&documents.oci_layout)?;
    let index = ImageIndex::parse("index.json", &documents.index)?;
    let blobs = reachable(documents, index.manifests)?;
    let mut view = View { builder: Builder::new(Vec::new()), mtime: documents.mtime };
    view.builder.draft_mut(NodeId::ROOT).attributes.mtime = documents.mtime;
    view.file(NodeId::ROOT, b"oci-layout", inline(&documents.oci_layout))?;
    view.file(NodeId::ROOT, b"index.json", inline(&documents.index))?;
    let directory = view.directory(NodeId::ROOT, b"blobs")?;
    for (digest, (size, content)) in blobs {
        let algorithm = view.directory(directory, digest.algorithm().as_bytes())?;
        view.file(algorithm, digest.hex().as_bytes(), (size, content))?;
    }
    Ok(view.builder.finish())
}

/// `layout/`, `rootfs/`, and `layers/NN-HEX/` for each layer's own changes: `NN` is its number
/// from `00`, the lowest, with as many digits (two at least) as the highest needs, so that names
/// sort as layers stack; `HEX` is [`Digest::short`] of the layer as stored.
///
/// # Errors
/// [`Error::Limit`] when all of it together has too many nodes or layers.
pub fn all_view(layout: &Tree, rootfs: &Tree, layers: &[(usize, Digest, Tree)]) -> Result<Tree> {
    let mut view = View { builder: Builder::new(Vec::new()), mtime: Time::default() };
    view.builder.graft(NodeId::ROOT, b"layout", layout)?;
    view.builder.graft(NodeId::ROOT, b"rootfs", rootfs)?;
    let directory = view.directory(NodeId::ROOT, b"layers")?;
    let highest = layers.iter().map(|(number, ..)| *number).max().unwrap_or_default();
    let width = highest.to_string().len().max(2);
    for (number, digest, tree) in layers {
        let name = format!("{number:0width$}-{}", digest.short());
        view.builder.graft(directory, name.as_bytes(), tree)?;
    }
    Ok(view.builder.finish())
}

type Sized = (u64, Content);

fn inline(bytes: &Arc<[u8]>) -> Sized {
    (bytes.len() as u64, Content::Inline(Arc::clone(bytes)))
}

/// Every blob that the descriptors lead to, each digest once.
fn reachable(documents: &Documents, roots: Vec<Descriptor>) -> Result<BTreeMap<Digest, Sized>> {
    let mut found: BTreeMap<Digest, Sized> = BTreeMap::new();
    let mut followed: BTreeSet<Digest> = BTreeSet::new();
    let mut waiting = roots;
    while let Some(descriptor) = waiting.pop() {
        let Blob { digest, size } = descriptor.blob;
        if let Some((known, _)) = found.get(&digest).filter(|(known, _)| *known != size) {
            let reason = format!("descriptors disagree on its size: {known} and {size} bytes");
            return Err(Error::document(format!("blob {digest}"), reason));
        }
        let embedded = descriptor.data.as_deref().map(Arc::from);
        let Some(bytes) = documents.blobs.get(&digest).cloned().or(embedded) else {
            found.entry(digest).or_insert((size, Content::Blob(descriptor.blob.into())));
            continue;
        };
        descriptor.blob.verify(&bytes)?;
        found.insert(digest, inline(&bytes));
        if !is_document(&descriptor) || !followed.insert(digest) {
            continue;
        }
        match parse_document(&descriptor, &bytes)? {
            Document::Index(index) => waiting.extend(index.manifests),
            Document::Manifest(manifest) => {
                waiting.push(manifest.config);
                waiting.extend(manifest.layers);
            }
        }
    }
    Ok(found)
}

/// A tree of files that nobody may write, all of one time.
struct View {
    builder: Builder,
    mtime: Time,
}

impl View {
    fn attributes(&self, mode: u32) -> Attributes {
        Attributes { mode, mtime: self.mtime, ..Attributes::default() }
    }

    /// The directory `name`, made when it is missing.
    fn directory(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId> {
        if let Some(there) = self.builder.child(parent, name) {
            return Ok(there);
        }
        let kind = NodeKind::Directory;
        let made = self.builder.add(kind, self.attributes(0o755), None)?;
        self.builder.link(parent, name, made);
        Ok(made)
    }

    fn file(&mut self, parent: NodeId, name: &[u8], (size, content): Sized) -> Result<()> {
        let kind = NodeKind::Regular { size, content };
        let made = self.builder.add(kind, self.attributes(0o644), None)?;
        self.builder.link(parent, name, made);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::layout::dump::dump;
    use crate::layout::oci::{DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const VERSION: &str = r#"{ "imageLayoutVersion": "1.0.0" }"#;

    fn descriptor(media_type: &str, bytes: &str) -> String {
        let digest = Digest::sha256_of(bytes.as_bytes());
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}}}"#, bytes.len())
    }

    fn manifest(config: &str, layers: &[&str]) -> String {
        let config = descriptor(OCI_CONFIG, config);
        let layers: Vec<String> = layers.iter().map(|l| descriptor(LAYER, l)).collect();
        format!(r#"{{"config":{config},"layers":[{}]}}"#, layers.join(","))
    }

    fn index(descriptors: &[String]) -> String {
        format!(r#"{{"manifests":[{}]}}"#, descriptors.join(","))
    }

    fn documents(index: &str, blobs: &[&str]) -> Documents {
        let bytes = |b: &str| -> Arc<[u8]> { b.as_bytes().into() };
        Documents {
            oci_layout: bytes(VERSION),
            index: bytes(index),
            blobs: blobs.iter().map(|b| (Digest::sha256_of(b.as_bytes()), bytes(b))).collect(),
            mtime: Time { seconds: 7, nanos: 0 },
        }
    }

    fn content(tree: &Tree, bytes: &str) -> Option<(u64, Content)> {
        let path = format!("blobs/sha256/{}", Digest::sha256_of(bytes.as_bytes()).hex());
        match tree.node(tree.find(path.as_bytes())?)?.kind.into() {
            NodeKind::Regular { size, content } => Some((size, content)),
            _ => None,
        }
    }

    fn is_inline(tree: &Tree, bytes: &str) -> bool {
        content(tree, bytes) == Some((bytes.len() as u64, Content::Inline(bytes.as_bytes().into())))
    }

    fn is_blob(tree: &Tree, bytes: &str) -> bool {
        let digest = Digest::sha256_of(bytes.as_bytes());
        let size = bytes.len() as u64;
        content(tree, bytes) == Some((size, Content::Blob(Blob { digest, size }.into())))
    }

    #[test]
    fn documents_at_hand_are_inline_and_the_rest_are_blobs_each_once() {
        let (here, elsewhere) = (manifest("config", &["l1", "l2", "l1"]), manifest("c2", &["l3"]));
        let platforms = [descriptor(DOCKER_MANIFEST, &here), descriptor(OCI_MANIFEST, &elsewhere)];
        let nested = index(&platforms);
        let top = index(&[descriptor(OCI_INDEX, &nested), descriptor(OCI_MANIFEST, &here)]);
        let tree = layout_view(&documents(&top, &[&nested, &here, "config"])).unwrap();
        for document in [nested.as_str(), &here, "config"] {
            assert!(is_inline(&tree, document), "{document}");
        }
        for blob in ["l1", "l2", elsewhere.as_str()] {
            assert!(is_blob(&tree, blob), "{blob}");
        }
        assert_eq!(content(&tree, "l3"), None);
        let count = tree.children(tree.find(b"blobs/sha256").unwrap()).unwrap().len();
        assert_eq!(count, 6);
        let text = dump(&tree);
        assert!(text.starts_with("/ d 0755 0:0 7\n/blobs d 0755 0:0 7\n"), "{text}");
        assert!(text.contains("/index.json f 0644 0:0 7 size="), "{text}");
        assert!(text.ends_with(&format!(
            "/oci-layout f 0644 0:0 7 size={} inline={}\n",
            VERSION.len(),
            VERSION.replace(' ', "\\x20")
        )));
    }

    #[test]
    fn an_embedded_document_is_at_hand() {
        let inner = descriptor(OCI_CONFIG, "config").replace('}', r#","data":"Y29uZmln"}"#);
        let image = format!(r#"{{"config":{inner},"layers":[]}}"#);
        let top = index(&[descriptor(OCI_MANIFEST, &image)]);
        let tree = layout_view(&documents(&top, &[&image])).unwrap();
        assert!(is_inline(&tree, "config"));
    }

    #[test]
    fn an_empty_layout_has_an_empty_blobs_directory() {
        let tree = layout_view(&documents(&index(&[]), &[])).unwrap();
        assert_eq!(tree.children(tree.find(b"blobs").unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_blob_of_two_sizes_and_bytes_of_another_digest_are_refused() {
        let layer = descriptor(LAYER, "l1");
        let top = index(&[layer.clone(), layer.replace(r#""size":2"#, r#""size":3"#)]);
        let error = layout_view(&documents(&top, &[])).unwrap_err().to_string();
        assert!(error.contains("descriptors disagree on its size"), "{error}");
        let top = index(&[descriptor(OCI_MANIFEST, "ab")]);
        let mut wrong = documents(&top, &[]);
        wrong.blobs.insert(Digest::sha256_of(b"ab"), b"xy"[..].into());
        assert!(matches!(layout_view(&wrong), Err(Error::DigestMismatch { .. })));
    }

    #[test]
    fn everything_stands_side_by_side_and_layers_sort_as_they_stack() {
        let layout = layout_view(&documents(&index(&[]), &[])).unwrap();
        let rootfs = Builder::new(Vec::new()).finish();
        let digest = Digest::sha256_of(b"");
        let layer = |n| (n, digest, rootfs.clone());
        let tree = all_view(&layout, &rootfs, &[layer(1), layer(0)]).unwrap();
        assert!(tree.find(b"layout/blobs").is_some() && tree.find(b"rootfs").is_some());
        let names = |tree: &Tree| -> Vec<String> {
            let layers = tree.children(tree.find(b"layers").unwrap()).unwrap();
            layers.map(|(n, _)| String::from_utf8(n.to_vec()).unwrap()).collect()
        };
        assert_eq!(names(&tree), ["00-e3b0c44298fc", "01-e3b0c44298fc"]);
        let tree = all_view(&layout, &rootfs, &[layer(9), layer(100)]).unwrap();
        assert_eq!(names(&tree), ["009-e3b0c44298fc", "100-e3b0c44298fc"]);
    }
}
