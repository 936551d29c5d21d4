//! Which image of `index.json` a REF means.

use super::platform::choose_among;
use super::{Descriptor, ImageIndex, Platform, is_document};
use crate::layout::digest::Digest;
use crate::layout::error::{Error, Result};
use crate::layout::reference::Reference;

/// Most candidates that an error lists: enough to see the pattern.
const CANDIDATES_SHOWN_MAX: usize = 20;

/// The image in a layout that `reference` means: a digest, a name in the annotation
/// `org.opencontainers.image.ref.name` or a full reference in `io.containerd.image.name`. Without
/// one: the only image there is. Several manifests of the one name are told apart by platform.
/// What comes out may be a nested index; then [`choose_platform`](super::choose_platform) goes on.
///
/// # Errors
/// [`Error::Document`] that lists the candidates.
pub fn choose_image<'a>(
    index: &'a ImageIndex,
    reference: Option<&str>,
    platform: &Platform,
) -> Result<&'a Descriptor> {
    let chosen: Vec<&Descriptor> = match reference {
        Some(reference) => named(&index.manifests, reference),
        None => {
            let image = |d: &&Descriptor| {
                is_document(d) && d.artifact_type.is_none() && !d.is_attestation()
            };
            index.manifests.iter().filter(image).collect()
        }
    };
    let Some(first) = chosen.first() else {
        return Err(not_there(&index.manifests, reference));
    };
    if chosen.iter().all(|d| d.blob == first.blob) {
        return Ok(first);
    }
    let same_name = chosen.iter().all(|d| d.ref_name() == first.ref_name());
    if same_name && chosen.iter().all(|d| d.platform.is_some()) {
        return choose_among(chosen.into_iter(), platform);
    }
    let reason = format!("{} images, name one of them: {}", chosen.len(), list(&chosen));
    Err(Error::document("index.json", reason))
}

/// The descriptors that `reference` names, by the most literal reading that finds any.
fn named<'a>(descriptors: &'a [Descriptor], reference: &str) -> Vec<&'a Descriptor> {
    let select = |matches: &dyn Fn(&Descriptor) -> bool| -> Vec<&'a Descriptor> {
        descriptors.iter().filter(|d| matches(d)).collect()
    };
    let after_at = reference.rsplit('@').next().unwrap_or(reference);
    if let Ok(digest) = after_at.parse::<Digest>() {
        return select(&|d| d.blob.digest == digest);
    }
    let literal = select(&|d| d.ref_name() == Some(reference));
    if !literal.is_empty() {
        return literal;
    }
    let literal = select(&|d| d.image_name() == Some(reference));
    if !literal.is_empty() {
        return literal;
    }
    let Ok(wanted) = reference.parse::<Reference>() else { return Vec::new() };
    let same = |name: Option<&str>| {
        name.and_then(|n| n.parse::<Reference>().ok()).is_some_and(|n| n == wanted)
    };
    select(&|d| same(d.image_name()))
}

fn not_there(descriptors: &[Descriptor], reference: Option<&str>) -> Error {
    let all: Vec<&Descriptor> = descriptors.iter().collect();
    let there = if all.is_empty() { "nothing".to_owned() } else { list(&all) };
    let reason = match reference {
        Some(reference) => format!("no image {reference:?}: there is {there}"),
        None => format!("no image: there is {there}"),
    };
    Error::document("index.json", reason)
}

/// Each candidate by the shortest name that [`choose_image`] would accept for it.
fn list(candidates: &[&Descriptor]) -> String {
    let name = |d: &&Descriptor| {
        let name = d.ref_name().or(d.image_name());
        let name = name.map_or_else(|| d.blob.digest.to_string(), str::to_owned);
        match &d.platform {
            Some(platform) => format!("{name} ({platform})"),
            None => name,
        }
    };
    let mut names: Vec<String> = candidates.iter().take(CANDIDATES_SHOWN_MAX).map(name).collect();
    if candidates.len() > CANDIDATES_SHOWN_MAX {
        names.push(format!("{} more", candidates.len() - CANDIDATES_SHOWN_MAX));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::layout::digest::Blob;
    use crate::layout::oci::{DOCKER_MANIFEST, OCI_MANIFEST};

    fn image(tag: Option<&str>, full: Option<&str>, platform: Option<&str>) -> Descriptor {
        let seed = format!("{tag:?}{full:?}{platform:?}");
        let blob = Blob { digest: Digest::sha256_of(seed.as_bytes()), size: 1 };
        let mut d = Descriptor::new(DOCKER_MANIFEST, blob);
        let keys = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
        for (key, value) in keys.iter().zip([tag, full]) {
            d.annotations.extend(value.map(|v| ((*key).to_owned(), v.to_owned())));
        }
        d.platform = platform.map(|p| p.parse().unwrap());
        d
    }

    fn choose<'a>(index: &'a ImageIndex, reference: Option<&str>) -> Result<&'a Descriptor> {
        choose_image(index, reference, &"linux/amd64".parse().unwrap())
    }

    fn index(manifests: Vec<Descriptor>) -> ImageIndex {
        ImageIndex { media_type: None, manifests, annotations: Default::default() }
    }

    #[test]
    fn a_ref_is_a_tag_a_full_reference_or_a_digest() {
        let a = image(Some("12"), Some("docker.io/library/debian:12"), None);
        let b = image(Some("13"), Some("docker.io/library/debian:13"), None);
        let digest = b.blob.digest.to_string();
        let index = index(vec![a.clone(), b.clone()]);
        assert_eq!(choose(&index, Some("12")), Ok(&a));
        assert_eq!(choose(&index, Some("debian:13")), Ok(&b));
        assert_eq!(choose(&index, Some("docker.io/library/debian:13")), Ok(&b));
        assert_eq!(choose(&index, Some(&digest)), Ok(&b));
        assert_eq!(choose(&index, Some(&format!("12@{digest}"))), Ok(&b));
        let error = choose(&index, Some("14")).unwrap_err().to_string();
        assert_eq!(error, "index.json: no image \"14\": there is 12, 13");
        let error = choose(&index, None).unwrap_err().to_string();
        assert_eq!(error, "index.json: 2 images, name one of them: 12, 13");
    }

    #[test]
    fn without_a_ref_the_only_image_is_meant_whatever_lies_beside_it() {
        let only = image(Some("x"), None, Some("linux/s390x"));
        let attestation = image(None, None, Some("unknown/unknown"));
        let mut signature = image(Some("x.sig"), None, None);
        signature.artifact_type = Some("application/vnd.example.signature".to_owned());
        let other = Descriptor::new("application/json", only.blob);
        let again = Descriptor { annotations: Default::default(), ..only.clone() };
        let index = index(vec![attestation, signature, other, only.clone(), again]);
        assert_eq!(choose(&index, None), Ok(&only));
    }

    #[test]
    fn manifests_of_one_name_are_told_apart_by_platform() {
        let arm = image(Some("x"), None, Some("linux/arm64"));
        let amd = image(Some("x"), None, Some("linux/amd64"));
        let unnamed = Descriptor::new(OCI_MANIFEST, arm.blob);
        let index = index(vec![arm, amd.clone(), unnamed]);
        assert_eq!(choose(&index, Some("x")), Ok(&amd));
        assert!(choose(&index, None).is_err());
    }

    #[test]
    fn an_empty_layout_says_so() {
        let index = index(Vec::new());
        assert_eq!(
            choose(&index, None).unwrap_err().to_string(),
            "index.json: no image: there is nothing"
        );
    }
}
