//! One credential file: docker's `config.json` or containers-auth.json(5). Pure.

use std::collections::HashMap;

use serde::Deserialize;

use super::super::{Error, ErrorKind, Result};
use super::{Credential, basic};
use crate::layout::reference::{DOCKER_HUB, canonical_registry};

/// What docker calls Docker Hub in files and to credential programs.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// The parts of the file that hold credentials, or say who does.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConfigFile {
    auths: HashMap<String, Entry>,
    creds_store: String,
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// Where the credential of a registry is.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file.
    Here(Credential),
    /// A program has it.
    Program {
        /// `docker-credential-{name}`.
        name: String,
        /// What to ask it for.
        server: String,
        /// It is named for this registry, not for all.
        is_specific: bool,
    },
}

impl ConfigFile {
    /// Reads a file. `name` is for messages, which never show what is in the file.
    ///
    /// # Errors
    /// [`ErrorKind::Authentication`] with the line of the mistake.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|e| {
            let place = format!("line {} column {}", e.line(), e.column());
            Error::new(ErrorKind::Authentication, format!("{name}: not a credential file: {place}"))
        })
    }

    /// The places to look for the credential of `repository` at `registry`, best first: a program
    /// named for the registry, the most specific entry, the program for all.
    ///
    /// # Errors
    /// [`ErrorKind::Authentication`] for an entry that cannot be decoded; `name` is the file's.
    pub fn places(&self, registry: &str, repository: &str, name: &str) -> Result<Vec<Place>> {
        let registry = canonical_registry(registry);
        let mut places = Vec::new();
        let server = if registry == DOCKER_HUB { DOCKER_HUB_SERVER } else { registry };
        let mut program = |name: &str, is_specific| {
            if !name.is_empty() {
                let (name, server) = (name.to_owned(), server.to_owned());
                places.push(Place::Program { name, server, is_specific });
            }
        };
        let specific = self.cred_helpers.iter().find(|(key, _)| is_registry(key, registry));
        if let Some((_, name)) = specific {
            program(name, true);
        }
        let entry = self.entry(registry, repository);
        let here = match entry {
            Some((key, entry)) => entry.credential().ok_or_else(|| {
                Error::new(
                    ErrorKind::Authentication,
                    format!("{name}: the entry for {key} cannot be decoded"),
                )
            })?,
            None => None,
        };
        match here {
            Some(credential) => places.push(Place::Here(credential)),
            None => program(&self.creds_store, false),
        }
        Ok(places)
    }

    /// The entry with the longest key that is the repository, a namespace above it, or the
    /// registry (containers-auth.json(5), "FORMAT").
    fn entry(&self, registry: &str, repository: &str) -> Option<(&str, &Entry)> {
        let full = format!("{registry}/{repository}");
        let mut scope = full.as_str();
        while scope != registry {
            let same = |key: &&String| canonical_key(key) == scope;
            if let Some(key) = self.auths.keys().find(same) {
                return self.auths.get_key_value(key).map(|(k, e)| (k.as_str(), e));
            }
            scope = scope.rsplit_once('/').map_or(registry, |(parent, _)| parent);
        }
        let exact = self.auths.get_key_value(registry);
        exact
            .or_else(|| self.auths.iter().find(|(key, _)| is_registry(key, registry)))
            .map(|(key, entry)| (key.as_str(), entry))
    }
}

impl Entry {
    /// The credential; `Some(None)` when the entry is empty, as beside a credential program.
    fn credential(&self) -> Option<Option<Credential>> {
        if !self.identitytoken.is_empty() {
            return Some(Some(Credential::Identity(self.identitytoken.clone())));
        }
        if !self.registrytoken.is_empty() {
            return Some(Some(Credential::Registry(self.registrytoken.clone())));
        }
        if !self.auth.is_empty() {
            let (username, password) = basic::decode(&self.auth)?;
            return Some(Some(Credential::Login { username, password }));
        }
        if self.username.is_empty() {
            return Some(None);
        }
        let (username, password) = (self.username.clone(), self.password.clone());
        Some(Some(Credential::Login { username, password }))
    }
}

/// A key with its registry under its one name: `docker.io/a` is `index.docker.io/a`.
fn canonical_key(key: &str) -> String {
    match key.split_once('/') {
        Some((registry, rest)) => format!("{}/{rest}", canonical_registry(registry)),
        None => canonical_registry(key).to_owned(),
    }
}

/// `key` names the whole registry: `host`, `https://host`, `https://host/v1/`.
fn is_registry(key: &str, registry: &str) -> bool {
    let without_scheme = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let host = match without_scheme {
        Some(rest) => rest.split('/').next().unwrap_or(rest),
        None => {
            let key = key.strip_suffix('/').unwrap_or(key);
            key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key)
        }
    };
    canonical_registry(host) == registry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(username: &str) -> Place {
        let (username, password) = (username.to_owned(), "pw".to_owned());
        Place::Here(Credential::Login { username, password })
    }

    fn places(file: &str, registry: &str, repository: &str) -> Vec<Place> {
        let file = ConfigFile::parse(file.as_bytes(), "config.json").expect("a file");
        file.places(registry, repository, "config.json").expect("places")
    }

    #[test]
    fn the_most_specific_entry_wins() {
        let entry = |user: &str| format!(r#"{{"username":"{user}","password":"pw"}}"#);
        let file = format!(
            r#"{{"auths":{{"r.io/a/b":{},"r.io/a":{},"https://r.io/v2/":{},"r.io:5000":{}}}}}"#,
            entry("repository"),
            entry("namespace"),
            entry("registry"),
            entry("port"),
        );
        for (registry, repository, user) in [
            ("r.io", "a/b", "repository"),
            ("r.io", "a/b/c", "repository"),
            ("r.io", "a/c", "namespace"),
            ("r.io", "ab", "registry"),
            ("r.io:5000", "a/b", "port"),
        ] {
            assert_eq!(places(&file, registry, repository), [login(user)], "{repository}");
        }
        assert_eq!(places(&file, "other.io", "a/b"), []);
    }

    #[test]
    fn docker_hub_has_many_names() {
        for key in [
            "https://index.docker.io/v1/",
            "index.docker.io",
            "docker.io",
            "registry-1.docker.io",
            "https://docker.io",
            "docker.io/library",
        ] {
            let file = format!(r#"{{"auths":{{"{key}":{{"auth":"YW5uOnB3"}}}}}}"#);
            assert_eq!(places(&file, DOCKER_HUB, "library/debian"), [login("ann")], "{key}");
        }
    }

    #[test]
    fn a_program_for_the_registry_comes_first_and_one_for_all_last() {
        let file = r#"{"credsStore":"all","credHelpers":{"r.io":"one","docker.io":"hub"},
            "auths":{"e.io":{},"f.io":{"auth":"YW5uOnB3"}}}"#;
        let program = |name: &str, server: &str, is_specific| Place::Program {
            name: name.to_owned(),
            server: server.to_owned(),
            is_specific,
        };
        let both = [program("one", "r.io", true), program("all", "r.io", false)];
        assert_eq!(places(file, "r.io", "a"), both);
        assert_eq!(places(file, "e.io", "a"), [program("all", "e.io", false)]);
        assert_eq!(places(file, "f.io", "a"), [login("ann")]);
        let hub = places(file, DOCKER_HUB, "a/b");
        assert_eq!(hub[0], program("hub", "https://index.docker.io/v1/", true));
    }

    #[test]
    fn tokens_come_before_passwords() {
        let file = r#"{"auths":{"i.io":{"auth":"YW5uOnB3","identitytoken":"it"},
            "t.io":{"registrytoken":"rt"}}}"#;
        let identity = Credential::Identity("it".to_owned());
        assert_eq!(places(file, "i.io", "a"), [Place::Here(identity)]);
        let registry = Credential::Registry("rt".to_owned());
        assert_eq!(places(file, "t.io", "a"), [Place::Here(registry)]);
    }

    #[test]
    fn errors_do_not_show_what_is_in_the_file() {
        let broken = r#"{"auths":{"r.io":{"auth":["secret"]}}}"#;
        let error = ConfigFile::parse(broken.as_bytes(), "config.json").err().expect("an error");
        assert!(error.to_string().contains("config.json"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        let file = ConfigFile::parse(br#"{"auths":{"r.io":{"auth":"secret"}}}"#, "config.json");
        let error = file.expect("a file").places("r.io", "a", "config.json").expect_err("no login");
        assert_eq!(error.kind, ErrorKind::Authentication);
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
