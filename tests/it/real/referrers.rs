//! Indexes pushed to Debian's own registry, which keeps no lists of referrers: a tag has them.

use bytes::Bytes;
use layoutfs::fetch::ErrorKind;
use layoutfs::fetch::auth::keychain::KeychainConfig;
use layoutfs::fetch::registry::{Listed, Registries, Registry as Client};
use layoutfs::layout::oci::referrer::{self, INDEX_ARTIFACT, IndexArtifact, LayerIndexBlob};
use layoutfs::layout::oci::{Descriptor, OCI_MANIFEST};
use layoutfs::layout::{Blob, Digest};

use super::debian::Registry;
use crate::source_suite::patient;
use crate::support::layer::generated;

fn client(registry: &Registry) -> Client {
    let registries = Registries::new(&KeychainConfig::default(), false).unwrap();
    registries.repository(&format!("{}/a/b:latest", registry.address).parse().unwrap())
}

/// The manifest of an index of `bytes` that were pushed.
async fn pushed(client: &Client, bytes: Bytes) -> (IndexArtifact, Bytes) {
    let blob = client.push_blob(&bytes, patient()).await.unwrap().blob;
    let image = Blob { digest: Digest::sha256_of(b"an image"), size: 8 };
    let layer = Digest::sha256_of(b"a layer");
    let subject = Descriptor::new(OCI_MANIFEST, image);
    let artifact = IndexArtifact { subject, layers: vec![LayerIndexBlob { layer, index: blob }] };
    let manifest = artifact.to_bytes().unwrap();
    (artifact, manifest.into())
}

#[tokio::test]
async fn debians_registry_keeps_indexes_under_a_tag() {
    let storage = tempfile::tempdir().unwrap();
    let registry = Registry::serve(storage.path().to_owned(), false);
    let client = client(&registry);
    client.push_blob(&Bytes::from_static(referrer::EMPTY), patient()).await.unwrap();
    let mut expected = Vec::new();
    for size in [10, 3 << 20] {
        let bytes = generated("an index", size);
        let (artifact, manifest) = pushed(&client, bytes.clone()).await;
        let attached = client.attach(&manifest, patient()).await.unwrap();
        let tag = referrer::tag_of(&artifact.subject.blob.digest);
        assert_eq!(attached.listed, Listed::UnderTag(tag.clone()));
        expected.push((artifact.clone(), bytes));

        let subject = artifact.subject.blob.digest;
        let found = client.referrers(&subject, Some(INDEX_ARTIFACT), patient()).await.unwrap();
        assert_eq!(found.len(), expected.len());
        for (descriptor, (artifact, bytes)) in found.iter().zip(&expected) {
            let name = descriptor.blob.digest.to_string();
            let manifest = client.manifest(&name, patient()).await.unwrap();
            assert_eq!(IndexArtifact::parse(&name, &manifest.bytes).unwrap(), *artifact);
            let blob = artifact.layers[0].index;
            let read = client.blob_bytes(&blob, blob.size, patient()).await.unwrap();
            assert!(read == *bytes && registry.blob(&blob.digest.to_string()) == bytes[..]);
        }
        let again = client.attach(&manifest, patient()).await.unwrap();
        assert_eq!(again, attached);
        let list = client.manifest(&tag, patient()).await.unwrap();
        assert_eq!(registry.manifest_digest("a/b", &tag), list.digest.to_string());
    }
}

#[tokio::test]
async fn a_registry_that_is_read_only_says_so() {
    let storage = tempfile::tempdir().unwrap();
    let registry = Registry::serve(storage.path().to_owned(), true);
    let pushed = client(&registry).push_blob(&Bytes::from_static(b"x"), patient()).await;
    let error = pushed.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("405"), "{error}");
    assert!(error.to_string().contains("read-only"), "{error}");
}
