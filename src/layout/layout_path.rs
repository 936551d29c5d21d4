//! Where an image is in a layout directory, and which image a path there is.
//!
//! The scheme is the platform specification's ("Map an image reference to a path in the layout
//! directory"): `<registry>/<repository>/<tag>` or `<registry>/<repository>/<algorithm>/<hex>`.

use super::error::{Error, Result};
use super::reference::Reference;

/// The longest path that the lifecycle can parse again as a repository name.
const PATH_CHARS_MAX: usize = 255;

impl Reference {
    /// The path of this image, relative to the layout directory.
    pub fn layout_path(&self) -> String {
        let (registry, repository) = (self.registry(), self.repository());
        match self.digest() {
            Some(digest) => {
                format!("{registry}/{repository}/{}/{}", digest.algorithm(), digest.hex())
            }
            None => format!("{registry}/{repository}/{}", self.identifier()),
        }
    }

    /// The same, for a path that the lifecycle's phases can use.
    ///
    /// # Errors
    /// [`Error::Document`] when [`check_layout_path`] refuses it, and for the registry
    /// `localhost`: without a port the lifecycle takes it for a Docker Hub namespace.
    pub fn checked_layout_path(&self) -> Result<String> {
        let path = self.layout_path();
        if self.registry() == "localhost" {
            return Err(refused(
                &path,
                "the lifecycle takes localhost/ for a Docker Hub namespace",
            ));
        }
        check_layout_path(&path)?;
        Ok(path)
    }

    /// The reference that has `relative` as its path: the inverse of
    /// [`layout_path`](Self::layout_path). `None` for a path that no reference has.
    pub fn from_layout_path(relative: &str) -> Option<Reference> {
        let (registry, rest) = relative.trim_matches('/').split_once('/')?;
        let (parent, last) = rest.rsplit_once('/')?;
        if let Some((repository, algorithm)) = parent.rsplit_once('/')
            && let Ok(digest) = format!("{algorithm}:{last}").parse()
        {
            return Reference::new(registry, repository, None, Some(digest)).ok();
        }
        Reference::new(registry, parent, Some(last), None).ok()
    }
}

/// Checks that the lifecycle can use an image at `path` (relative to the layout directory). Its
/// exporter and extender parse the path as an image name again, so a port's colon or an upper-case
/// letter stops them long after this.
///
/// # Errors
/// [`Error::Document`] that names the character and the way out, `--as`.
pub fn check_layout_path(path: &str) -> Result<()> {
    if path.len() > PATH_CHARS_MAX {
        return Err(refused(path, &format!("it is longer than {PATH_CHARS_MAX} characters")));
    }
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._/-".contains(c);
    match path.chars().find(|&c| !is_allowed(c)) {
        Some(other) => Err(refused(path, &format!("it has {other:?}, expected a-z 0-9 . _ - /"))),
        None => Ok(()),
    }
}

/// Checks that the lifecycle can use a layout that is at `path` already.
///
/// # Errors
/// As [`Reference::checked_layout_path`]; also for a path that no image has.
pub fn check_existing_layout_path(path: &str) -> Result<()> {
    check_layout_path(path)?;
    match Reference::from_layout_path(path) {
        Some(reference) => reference.checked_layout_path().map(drop),
        None => Err(refused(path, "it is not REGISTRY/REPOSITORY/TAG")),
    }
}

fn refused(path: &str, reason: &str) -> Error {
    let shown: String = path.chars().take(PATH_CHARS_MAX).collect();
    Error::document(
        format!("layout path {shown:?}"),
        format!("the lifecycle cannot parse it: {reason}; give the image another name with --as"),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn reference(text: &str) -> Reference {
        text.parse().expect("a reference")
    }

    #[test]
    fn paths_are_those_of_the_platform_specification() {
        for (text, path) in [
            ("cnbs/run", "index.docker.io/cnbs/run/latest"),
            ("debian:13", "index.docker.io/library/debian/13"),
            ("r.io/a/b:c", "r.io/a/b/c"),
        ] {
            assert_eq!(reference(text).layout_path(), path);
            assert_eq!(reference(text).checked_layout_path().expect("a path"), path);
        }
        let by_digest = reference(&format!("r.io/a/b:v1@sha256:{HEX}"));
        assert_eq!(by_digest.layout_path(), format!("r.io/a/b/sha256/{HEX}"));
    }

    #[test]
    fn what_the_lifecycle_cannot_parse_is_refused_with_advice() {
        for text in ["r.io:5000/a:b", "r.io/a:V1", "R.io/a:b", "localhost/a:b"] {
            let error = reference(text).checked_layout_path().expect_err(text).to_string();
            assert!(error.contains("--as"), "{error}");
        }
        assert!(check_layout_path(&format!("r.io/{}", "a/".repeat(200))).is_err());
        assert!(check_layout_path("r.io/a+b").is_err());
    }

    #[test]
    fn a_layout_that_is_there_is_judged_by_its_path() {
        let long = format!("r.io/{}/v1", "a".repeat(255));
        for (path, problem) in [
            ("r.io/a/b", None),
            ("index.docker.io/library/debian/13", None),
            ("r.io:5000/a/b", Some("':'")),
            ("r.io/a/V1", Some("'V'")),
            ("localhost/a/b", Some("Docker Hub")),
            ("r.io/a", Some("TAG")),
            ("", Some("TAG")),
            (&long, Some("255")),
        ] {
            let refused = check_existing_layout_path(path).err().map(|e| e.to_string());
            match (&refused, problem) {
                (Some(error), Some(part)) => assert!(error.contains(part), "{path}: {error}"),
                _ => assert_eq!(refused.as_deref(), problem, "{path}"),
            }
        }
    }

    #[test]
    fn a_path_without_repository_or_tag_is_no_reference() {
        for path in ["", "/", "r.io", "r.io/a", "r.io/A/b", "r.io/a/../b"] {
            assert_eq!(Reference::from_layout_path(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn the_path_leads_back_to_the_reference(
            registry in "[a-z]{1,8}\\.(io|example)(:5000)?",
            repository in "[a-z0-9]{2,6}(/[a-z0-9._-]{2,6}[a-z]){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
            by_digest in any::<bool>(),
        ) {
            let name = format!("{registry}/{repository}");
            let given = if by_digest {
                reference(&format!("{name}@sha256:{HEX}"))
            } else {
                reference(&format!("{name}:{tag}"))
            };
            prop_assert_eq!(Reference::from_layout_path(&given.layout_path()), Some(given));
        }
    }
}
