//! From a challenge to an Authorization header.
//!
//! Registries are asked without credentials first; what a 401 wants decides the rest. Secrets are
//! in [`Credential`] and in header values marked sensitive, and neither prints them.

pub mod basic;
pub mod bearer;
pub mod challenge;
pub mod config_file;
pub mod external;
pub mod keychain;

use std::fmt;
use std::sync::{Mutex, PoisonError};

use reqwest::Url;
use reqwest::header::HeaderValue;

use super::http::Http;
use super::{Deadline, Error, ErrorKind, Result};

use bearer::{Service, Tokens};
use challenge::{Challenge, parse_challenges};
use keychain::Keychain;

/// What proves to a registry who we are.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Nothing: most images are public.
    Anonymous,
    /// A user and a password, for Basic or for a token endpoint.
    Login {
        /// The user.
        username: String,
        /// The password or access key.
        password: String,
    },
    /// A token that the token endpoint takes instead of a password (OAuth 2 refresh token).
    Identity(String),
    /// A token that the registry itself takes.
    Registry(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credential::Anonymous => "Anonymous",
            Credential::Login { .. } => "Login(..)",
            Credential::Identity(_) => "Identity(..)",
            Credential::Registry(_) => "Registry(..)",
        })
    }
}

/// The header that shows a token.
fn bearer_header(token: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

/// Everything that answering a challenge needs, shared by the registries of a process.
pub struct Access {
    /// The connections, for token endpoints.
    pub http: Http,
    /// Where credentials are looked up.
    pub keychain: Keychain,
    /// The tokens that hold now.
    pub tokens: Tokens,
}

/// What is to be done in a repository: what a token must permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Reading.
    Pull,
    /// Reading and writing.
    Push,
}

/// The state of one repository's authorization, for one purpose: a token that may write is not
/// shown where reading is enough.
pub struct Authorization {
    registry: String,
    repository: String,
    purpose: Purpose,
    known: Mutex<Known>,
}

/// What the last challenge taught us.
#[derive(Clone)]
enum Known {
    Nothing,
    Header(HeaderValue),
    Token(Service),
}

impl Authorization {
    /// Nothing is known yet about this repository.
    pub fn new(registry: &str, repository: &str, purpose: Purpose) -> Self {
        Authorization {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            purpose,
            known: Mutex::new(Known::Nothing),
        }
    }

    /// The header to show before anybody asked: `None` until the first challenge. A token that is
    /// about to expire is renewed here.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub async fn current(
        &self,
        access: &Access,
        deadline: Deadline,
    ) -> Result<Option<HeaderValue>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Known::Nothing => Ok(None),
            Known::Header(header) => Ok(Some(header)),
            Known::Token(service) => {
                let header = self.token(access, &service, None, deadline).await?;
                Ok(Some(header))
            }
        }
    }

    /// The header that answers the challenges of a 401 from `url`. `shown` is what was refused.
    /// `None` when there is nothing that could be shown.
    ///
    /// # Errors
    /// [`ErrorKind::Authentication`] when the token endpoint refuses us, and whatever reaching it
    /// or reading credentials fails with.
    pub async fn answer(
        &self,
        access: &Access,
        url: &Url,
        headers: &[String],
        shown: Option<&HeaderValue>,
        deadline: Deadline,
    ) -> Result<Option<HeaderValue>> {
        let challenges: Vec<Challenge> = headers.iter().flat_map(|h| parse_challenges(h)).collect();
        let of_scheme = |scheme: &str| challenges.iter().find(|c| c.scheme == scheme);
        let credential =
            async || access.keychain.credential(&self.registry, &self.repository, deadline).await;
        let (known, header) = if let Some(bearer) = of_scheme("bearer") {
            if let Credential::Registry(token) = credential().await? {
                let header = bearer_header(&token).ok_or_else(|| self.unusable())?;
                (Known::Header(header.clone()), Some(header))
            } else {
                let service = self.service(bearer, url)?;
                let header = self.token(access, &service, shown, deadline).await?;
                (Known::Token(service), Some(header))
            }
        } else if of_scheme("basic").is_some() {
            let header = match credential().await? {
                Credential::Login { username, password } => {
                    Some(basic::header(&username, &password))
                }
                Credential::Registry(token) => bearer_header(&token),
                Credential::Anonymous | Credential::Identity(_) => None,
            };
            (header.clone().map_or(Known::Nothing, Known::Header), header)
        } else {
            (Known::Nothing, None)
        };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
        // What was refused a moment ago is refused again.
        Ok(header.filter(|header| Some(header) != shown))
    }

    async fn token(
        &self,
        access: &Access,
        service: &Service,
        refused: Option<&HeaderValue>,
        deadline: Deadline,
    ) -> Result<HeaderValue> {
        let credential = access.keychain.credential(&self.registry, &self.repository, deadline);
        access.tokens.header(&access.http, service, credential, refused, deadline).await
    }

    /// The token endpoint that a challenge names, with the access that we need there.
    fn service(&self, challenge: &Challenge, url: &Url) -> Result<Service> {
        let wrong = |reason: &str| {
            Error::new(
                ErrorKind::Protocol,
                format!("registry {}: the bearer challenge {reason}", self.registry),
            )
        };
        let realm = challenge.parameter("realm").ok_or_else(|| wrong("has no realm"))?;
        let realm: Url = realm.parse().map_err(|_| wrong("has a realm that is not a URL"))?;
        if !matches!((url.scheme(), realm.scheme()), (_, "https") | ("http", "http")) {
            return Err(wrong("would send credentials without TLS"));
        }
        let wanted = challenge.parameter("scope").filter(|scope| !scope.is_empty());
        let scope = match (wanted, self.purpose) {
            (Some(scope), Purpose::Pull) => scope.to_owned(),
            (Some(scope), Purpose::Push) => with_push(scope),
            (None, Purpose::Pull) => format!("repository:{}:pull", self.repository),
            (None, Purpose::Push) => format!("repository:{}:pull,push", self.repository),
        };
        Ok(Service {
            registry: self.registry.clone(),
            realm,
            service: challenge.parameter("service").unwrap_or_default().to_owned(),
            scope,
        })
    }

    fn unusable(&self) -> Error {
        Error::new(
            ErrorKind::Authentication,
            format!("the token for {} has characters that no header can carry", self.registry),
        )
    }
}

/// A scope whose repositories may be written to. The first request of a push is a read, and its
/// challenge would give a token that is refused by the next one. The name stays what the registry
/// called it.
fn with_push(scope: &str) -> String {
    let widened = scope.split_ascii_whitespace().map(|one| {
        let (resource, actions) = one.rsplit_once(':').unwrap_or((one, ""));
        match resource.starts_with("repository:") {
            true if ["", "pull", "push", "push,pull"].contains(&actions) => {
                format!("{resource}:pull,push")
            }
            _ => one.to_owned(),
        }
    });
    widened.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_to_push_keeps_the_names_and_all_that_is_not_a_repository() {
        for (scope, widened) in [
            ("repository:a/b:pull", "repository:a/b:pull,push"),
            ("repository:h:5000/a:push", "repository:h:5000/a:pull,push"),
            ("repository:a:pull,push", "repository:a:pull,push"),
            ("repository:a:*", "repository:a:*"),
            ("registry:catalog:* repository:a:pull", "registry:catalog:* repository:a:pull,push"),
            ("odd", "odd"),
        ] {
            assert_eq!(with_push(scope), widened);
        }
    }
}
