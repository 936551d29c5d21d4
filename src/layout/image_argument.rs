//! The IMAGE argument of the command line: `oci:DIR[:REF]`, a bare directory, `docker://REFERENCE`.

use super::digest::Digest;
use super::error::{Error, Result};
use super::reference::{Reference, is_tag};

/// Which image a user means (containers-transports(5), `oci:` and `docker://`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageArgument {
    /// An image layout.
    Layout {
        /// The directory, as given.
        directory: String,
        /// Which image in it; `None` when the layout has to have exactly one.
        selector: Option<Selector>,
    },
    /// An image in a registry.
    Registry(Reference),
}

/// Which manifest of a layout's `index.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The one whose annotation `org.opencontainers.image.ref.name` is this.
    Tag(String),
    /// The one with this digest.
    Digest(Digest),
}

impl ImageArgument {
    /// Reads an argument. `is_directory` says whether a path is one: a directory name may have
    /// colons, so the longest reading of `DIR` that exists wins, and if none exists, the last colon
    /// that can separate a tag or a digest does.
    ///
    /// # Errors
    /// [`Error::Document`] when `text` is none of the three forms.
    pub fn parse(text: &str, is_directory: impl Fn(&str) -> bool) -> Result<ImageArgument> {
        if let Some(reference) = text.strip_prefix("docker://") {
            return Ok(ImageArgument::Registry(reference.parse()?));
        }
        if let Some(layout) = text.strip_prefix("oci:") {
            let mut candidates = layout_candidates(layout);
            let index = candidates.iter().position(|(dir, _)| is_directory(dir));
            let index = index.unwrap_or(candidates.len().saturating_sub(1));
            if let Some((directory, selector)) = candidates.get_mut(index)
                && !directory.is_empty()
            {
                let directory = std::mem::take(directory);
                return Ok(ImageArgument::Layout { directory, selector: selector.take() });
            }
        } else if is_directory(text) {
            return Ok(ImageArgument::Layout { directory: text.to_owned(), selector: None });
        }
        let shown: String = text.chars().take(300).collect();
        let reason = match text.parse::<Reference>() {
            Ok(reference) if !text.starts_with("oci:") => {
                format!("no such directory; for an image in a registry write docker://{reference}")
            }
            _ => "expected oci:DIR[:REF], a directory, or docker://REFERENCE".to_owned(),
        };
        Err(Error::document(format!("image {shown:?}"), reason))
    }
}

/// The ways to read `DIR[:REF]`, the longest directory first: all of it, then without a tag, then
/// without a digest. There are at most three, because a tag has no colon and a digest has one.
pub fn layout_candidates(text: &str) -> Vec<(String, Option<Selector>)> {
    let mut candidates = vec![(text.to_owned(), None)];
    let Some((before, last)) = text.rsplit_once(':') else {
        return candidates;
    };
    if let Some((directory, algorithm)) = before.rsplit_once(':')
        && let Ok(digest) = format!("{algorithm}:{last}").parse()
    {
        candidates.push((directory.to_owned(), Some(Selector::Digest(digest))));
        return candidates;
    }
    if is_tag(last) {
        candidates.push((before.to_owned(), Some(Selector::Tag(last.to_owned()))));
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn layout(directory: &str, selector: Option<Selector>) -> ImageArgument {
        ImageArgument::Layout { directory: directory.to_owned(), selector }
    }

    #[test]
    fn a_layout_is_named_with_or_without_tag_or_digest() {
        let tag = |tag: &str| Some(Selector::Tag(tag.to_owned()));
        let digest = || Some(Selector::Digest(DIGEST.parse().expect("a digest")));
        for (text, expected) in [
            ("oci:/a/b".to_owned(), layout("/a/b", None)),
            ("oci:/a/b:v1".to_owned(), layout("/a/b", tag("v1"))),
            ("oci:dir:latest".to_owned(), layout("dir", tag("latest"))),
            (format!("oci:/a/b:{DIGEST}"), layout("/a/b", digest())),
            ("oci:/a:5000/b".to_owned(), layout("/a:5000/b", None)),
            ("oci:/a:5000/b:v1".to_owned(), layout("/a:5000/b", tag("v1"))),
        ] {
            assert_eq!(ImageArgument::parse(&text, |_| false).expect(&text), expected);
        }
    }

    #[test]
    fn a_directory_that_exists_wins_over_a_tag() {
        let exists = |dir: &str| dir == "/cache/sha256:00" || dir == "bare";
        let found = ImageArgument::parse("oci:/cache/sha256:00", exists).expect("a layout");
        assert_eq!(found, layout("/cache/sha256:00", None));
        let bare = ImageArgument::parse("bare", exists).expect("a layout");
        assert_eq!(bare, layout("bare", None));
    }

    #[test]
    fn a_registry_is_named_with_its_transport() {
        let parsed = ImageArgument::parse("docker://debian:13", |_| true).expect("a reference");
        assert_eq!(parsed, ImageArgument::Registry("debian:13".parse().expect("a reference")));
        let error = ImageArgument::parse("debian:13", |_| false).expect_err("no directory");
        assert!(error.to_string().contains("docker://index.docker.io/library/debian:13"));
    }

    #[test]
    fn an_empty_argument_is_refused() {
        for text in ["", "oci:", "docker://", "oci::tag"] {
            assert!(ImageArgument::parse(text, |_| false).is_err(), "{text}");
        }
    }
}
