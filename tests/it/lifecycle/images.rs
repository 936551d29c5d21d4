//! Run images of the fixture, put into a registry whose wire can fail.

use layoutfs::layout::Digest;

use crate::real::debian::{Debian, REPOSITORY, described};
use crate::support::registry::Registry;

/// The image `tag`, alone in a registry of this process.
pub fn served(debian: &Debian, tag: &str) -> Registry {
    let registry = Registry::start();
    let manifest = debian.manifest(tag);
    for digest in described(&manifest) {
        let bytes = debian.registry.blob(&digest);
        registry.put_blob_as(REPOSITORY, digest.parse().unwrap(), bytes);
    }
    let bytes = debian.registry.blob(&debian.manifest_digest(tag));
    let media_type = manifest["mediaType"].as_str().unwrap();
    let digest = registry.put_manifest(REPOSITORY, media_type, bytes);
    registry.tag(REPOSITORY, tag, digest);
    registry
}

/// The layer with nearly all of the image's bytes.
pub fn base_layer(debian: &Debian, tag: &str) -> Digest {
    debian.manifest(tag)["layers"][0]["digest"].as_str().unwrap().parse().unwrap()
}
