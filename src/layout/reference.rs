//! Image references: `[registry/]repository[:tag][@digest]`, with the defaults that people expect.
//!
//! The rules are those of docker and of the lifecycle's own parser, so that a name means the same
//! image everywhere. Paths in a layout directory are in [`layout_path`](super::layout_path).

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use super::error::{Error, Result};

/// The registry of a name that has none. Credentials of Docker Hub are kept under this name.
pub const DOCKER_HUB: &str = "index.docker.io";

/// What Docker Hub answers on.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// Other names of Docker Hub.
const DOCKER_HUB_ALIASES: [&str; 2] = ["docker.io", DOCKER_HUB_HOST];

/// The namespace of a Docker Hub repository that has none.
const DOCKER_HUB_NAMESPACE: &str = "library";

/// The tag of a reference with neither tag nor digest.
const TAG_DEFAULT: &str = "latest";

/// The longest repository name: registries and file systems agree on 255.
const REPOSITORY_CHARS_MAX: usize = 255;

/// The longest tag (distribution-spec, "Pulling manifests").
const TAG_CHARS_MAX: usize = 128;

/// The longest host name with its port: 253 characters of DNS and `:65535`.
const REGISTRY_CHARS_MAX: usize = 259;

/// An image in a registry: where it is and which one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The reference of these parts; `docker.io` becomes [`DOCKER_HUB`].
    ///
    /// # Errors
    /// [`Error::Document`] for a part that no registry would accept.
    pub fn new(
        registry: &str,
        repository: &str,
        tag: Option<&str>,
        digest: Option<Digest>,
    ) -> Result<Self> {
        let invalid = |reason: String| {
            let name: String = format!("{registry}/{repository}").chars().take(300).collect();
            Error::document(format!("image reference {name:?}"), reason)
        };
        check_registry(registry).map_err(invalid)?;
        if let Some(tag) = tag {
            check_tag(tag).map_err(invalid)?;
        }
        let registry = if DOCKER_HUB_ALIASES.contains(&registry) { DOCKER_HUB } else { registry };
        let in_namespace = registry != DOCKER_HUB || repository.contains('/');
        let repository = match in_namespace || repository.is_empty() {
            true => repository.to_owned(),
            false => format!("{DOCKER_HUB_NAMESPACE}/{repository}"),
        };
        // With its namespace: what is written can then be read again.
        check_repository(&repository).map_err(invalid)?;
        let tag = match (tag, digest) {
            (None, None) => Some(TAG_DEFAULT),
            _ => tag,
        };
        Ok(Reference {
            registry: registry.to_owned(),
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// `registry.example:5000`: the name that credentials are kept under.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` when the reference was given neither tag nor digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference has one; it then decides, and the tag is decoration.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What a registry is asked for: the digest if there is one, else the tag.
    pub fn identifier(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => TAG_DEFAULT.to_owned(),
        }
    }

    /// Host and port that requests go to: as [`registry`](Self::registry), but for Docker Hub.
    pub fn registry_host(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_HOST } else { &self.registry }
    }

    /// The registry is on this machine (`localhost`, `127.0.0.0/8`, `[::1]`): plain HTTP is fine.
    pub fn is_loopback(&self) -> bool {
        is_loopback_host(host_without_port(&self.registry))
    }

    /// The same repository, by digest alone.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Reference { tag: None, digest: Some(digest), ..self.clone() }
    }
}

/// `host` (without port; IPv6 with or without brackets) names this machine.
pub fn is_loopback_host(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The registry names of Docker Hub are one registry.
pub fn canonical_registry(registry: &str) -> &str {
    if DOCKER_HUB_ALIASES.contains(&registry) { DOCKER_HUB } else { registry }
}

/// `text` can be a tag: a word character, then at most 127 of those, dots and dashes.
pub fn is_tag(text: &str) -> bool {
    check_tag(text).is_ok()
}

impl FromStr for Reference {
    type Err = Error;

    /// Parses `[docker://][registry/]repository[:tag][@digest]`.
    ///
    /// The first component is a registry only when it has a dot or a colon, or is `localhost`.
    fn from_str(text: &str) -> Result<Self> {
        let name = text.strip_prefix("docker://").unwrap_or(text);
        let (name, digest) = match name.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse()?)),
            None => (name, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, rest)
            }
            _ => (DOCKER_HUB, name),
        };
        Reference::new(registry, repository, tag, digest)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// `host`, `[::1]`: the part before the port.
fn host_without_port(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => registry,
    }
}

fn check_registry(registry: &str) -> std::result::Result<(), String> {
    if registry.len() > REGISTRY_CHARS_MAX {
        return Err(format!("the registry is longer than {REGISTRY_CHARS_MAX} characters"));
    }
    let host = host_without_port(registry);
    if let Some(port) = registry[host.len()..].strip_prefix(':')
        && (port.starts_with('+') || !port.parse::<u16>().is_ok_and(|port| port > 0))
    {
        return Err(format!("{port:?} is not a port: expected 1 to 65535"));
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return match address.parse::<std::net::Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("{address:?} is not an IPv6 address")),
        };
    }
    let is_label = |label: &str| {
        let chars = || label.bytes();
        !label.is_empty()
            && chars().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.split('.').all(is_label) {
        return Ok(());
    }
    Err(format!("{host:?} is not a registry host: expected letters, digits, '-' and '.'"))
}

fn check_repository(repository: &str) -> std::result::Result<(), String> {
    if repository.is_empty() {
        return Err("the repository is missing: expected [registry/]repository[:tag]".to_owned());
    }
    if repository.len() > REPOSITORY_CHARS_MAX {
        return Err(format!("the repository is longer than {REPOSITORY_CHARS_MAX} characters"));
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("repository names are lower case".to_owned());
    }
    let is_allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-./".contains(&b);
    if let Some(other) = repository.chars().find(|&c| !c.is_ascii() || !is_allowed(c as u8)) {
        return Err(format!("{other:?} may not be in a repository name: expected a-z 0-9 . _ - /"));
    }
    // Dots alone would climb in a URL or a layout path.
    if repository.split('/').any(|part| part.bytes().all(|b| b == b'.')) {
        return Err("a part of the repository name is empty or only dots".to_owned());
    }
    Ok(())
}

fn check_tag(tag: &str) -> std::result::Result<(), String> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let is_valid = tag.bytes().next().is_some_and(is_word)
        && tag.len() <= TAG_CHARS_MAX
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-');
    if is_valid {
        return Ok(());
    }
    let shown: String = tag.chars().take(TAG_CHARS_MAX).collect();
    Err(format!("{shown:?} is not a tag: expected at most {TAG_CHARS_MAX} of A-Z a-z 0-9 _ . -"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn shown(text: &str) -> String {
        text.parse::<Reference>().expect(text).to_string()
    }

    #[test]
    fn a_short_name_is_on_docker_hub_and_latest() {
        for (text, expected) in [
            ("debian", "index.docker.io/library/debian:latest"),
            ("debian:13", "index.docker.io/library/debian:13"),
            ("cnbs/run", "index.docker.io/cnbs/run:latest"),
            ("docker.io/debian", "index.docker.io/library/debian:latest"),
            ("docker://docker.io/a/b:c", "index.docker.io/a/b:c"),
            ("registry-1.docker.io/a/b", "index.docker.io/a/b:latest"),
        ] {
            assert_eq!(shown(text), expected);
        }
        let hub: Reference = "debian".parse().expect("a reference");
        assert_eq!(hub.registry(), "index.docker.io");
        assert_eq!(hub.registry_host(), "registry-1.docker.io");
    }

    #[test]
    fn a_first_part_with_dot_or_colon_is_a_registry() {
        for text in [
            "ghcr.io/a/b:c",
            "registry:5000/a:c",
            "localhost/a:c",
            "127.0.0.1:5000/a/b/c:latest",
            "[::1]:5000/a:c",
        ] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("host:5000/a"), "host:5000/a:latest");
    }

    #[test]
    fn a_digest_decides_and_a_tag_may_stand_before_it() {
        let both: Reference = format!("r.io/a/b:v1@sha256:{HEX}").parse().expect("a reference");
        assert_eq!(both.tag(), Some("v1"));
        assert_eq!(both.identifier(), format!("sha256:{HEX}"));
        let only: Reference = format!("r.io/a/b@sha256:{HEX}").parse().expect("a reference");
        assert_eq!(only.tag(), None);
        assert_eq!(only, both.with_digest(both.digest().expect("a digest")));
    }

    #[test]
    fn what_no_registry_accepts_is_refused() {
        for text in [
            "",
            ":",
            "/",
            "a:",
            "a@",
            "Debian",
            "a//b",
            "a/../b",
            "r.io/",
            "r.io/a:b/c",
            "a b",
            "r.io:0/a",
            "r.io:+80/a",
            "r.io:99999/a",
            "-r.io/a",
            "[::g]:80/a",
            "a@sha256:00",
            "ä",
            "user@r.io/a",
            "r.io/a:-x",
            "r.io/a?x",
            "https://r.io/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        assert!("a".repeat(256).parse::<Reference>().is_err());
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for text in ["localhost:5000/a", "127.0.0.1/a", "127.9.9.9:1/a", "[::1]:5000/a"] {
            assert!(text.parse::<Reference>().expect(text).is_loopback(), "{text}");
        }
        for text in ["r.io/a", "debian", "128.0.0.1:5000/a", "[::2]:5000/a", "localhost.io/a"] {
            assert!(!text.parse::<Reference>().expect(text).is_loopback(), "{text}");
        }
    }
}
