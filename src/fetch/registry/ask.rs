//! One request to a registry, answered: by the scheme that it speaks, with the credentials that it
//! wants.

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};

use super::super::auth::{Authorization, Purpose};
use super::super::http::{Answer, Content, Request};
use super::super::{Deadline, Error, ErrorKind, Result};
use super::Registry;

/// What is asked of a registry.
pub(super) struct Call {
    pub method: Method,
    pub target: Target,
    pub headers: HeaderMap,
    pub content: Content,
    pub purpose: Purpose,
}

/// Where a call goes.
pub(super) enum Target {
    /// Below the repository's own address.
    Path(String),
    /// An address that the registry gave; credentials go there only if it is its own.
    Given(Url),
}

impl Call {
    /// A read below the repository's address.
    pub fn get(path: String, headers: HeaderMap) -> Self {
        Call {
            method: Method::GET,
            target: Target::Path(path),
            headers,
            content: Content::Nothing,
            purpose: Purpose::Pull,
        }
    }

    /// A part of a push.
    pub fn push(method: Method, target: Target, headers: HeaderMap, content: Content) -> Self {
        Call { method, target, headers, content, purpose: Purpose::Push }
    }
}

impl Registry {
    /// Asks the registry, with credentials once it wants them.
    pub(super) async fn ask(&self, call: &Call, deadline: Deadline) -> Result<Answer> {
        if let Target::Given(url) = &call.target
            && !self.is_own(url)
        {
            return self.ask_at(url.clone(), call, None, deadline).await;
        }
        let access = &self.shared.access;
        let authorization = self.authorization(call.purpose);
        let mut shown = authorization.current(access, deadline).await?;
        let mut is_answered = false;
        loop {
            let mut answer = self.ask_once(call, shown.as_ref(), deadline).await?;
            if !self.is_own(answer.url()) || is_answered {
                return Ok(answer);
            }
            let mut refused = None;
            if answer.status() == StatusCode::FORBIDDEN && shown.is_some() {
                // Some say so when a token has expired, and send no challenge with it: the one that
                // comes without credentials tells where to get others.
                let anew = self.ask_once(call, None, deadline).await?;
                if anew.status() != StatusCode::UNAUTHORIZED || !self.is_own(anew.url()) {
                    return Ok(if anew.status().is_success() { anew } else { answer });
                }
                refused = Some(std::mem::replace(&mut answer, anew));
            }
            if answer.status() != StatusCode::UNAUTHORIZED {
                return Ok(answer);
            }
            is_answered = true;
            let (url, challenges) = (answer.url().clone(), answer.challenges());
            let header =
                authorization.answer(access, &url, &challenges, shown.as_ref(), deadline).await?;
            let Some(header) = header else { return Ok(refused.unwrap_or(answer)) };
            // Read to its end, the connection is free for the next request.
            drop(answer.into_error("").await);
            shown = Some(header);
        }
    }

    fn authorization(&self, purpose: Purpose) -> &Authorization {
        match purpose {
            Purpose::Pull => &self.to_pull,
            Purpose::Push => &self.to_push,
        }
    }

    async fn ask_at(
        &self,
        url: Url,
        call: &Call,
        authorization: Option<&HeaderValue>,
        deadline: Deadline,
    ) -> Result<Answer> {
        let request = Request {
            method: call.method.clone(),
            url,
            headers: call.headers.clone(),
            authorization: authorization.cloned(),
            content: call.content.clone(),
        };
        self.shared.access.http.send(&request, deadline).await
    }

    /// One request, by the scheme that the registry speaks; the first answer decides which.
    async fn ask_once(
        &self,
        call: &Call,
        authorization: Option<&HeaderValue>,
        deadline: Deadline,
    ) -> Result<Answer> {
        let path = match &call.target {
            Target::Path(path) => path,
            Target::Given(url) => {
                return self.ask_at(url.clone(), call, authorization, deadline).await;
            }
        };
        let send = async |scheme: &str| {
            self.ask_at(self.url(scheme, path)?, call, authorization, deadline).await
        };
        if let Some(scheme) = self.scheme.get() {
            return send(scheme).await;
        }
        let (first, second) = self.schemes();
        let outcome = send(first).await;
        let Some(second) = second.filter(|_| may_speak_another_scheme(&outcome)) else {
            if outcome.is_ok() {
                self.scheme.get_or_init(|| first);
            }
            return outcome;
        };
        match send(second).await {
            Ok(answer) => {
                self.scheme.get_or_init(|| second);
                Ok(answer)
            }
            // A refused certificate shows that the second scheme is the right one, and without a
            // certificate store it may be. Otherwise the first outcome is the one to tell.
            Err(error) if matches!(error.kind, ErrorKind::Protocol | ErrorKind::Local) => {
                Err(error)
            }
            Err(_) => outcome,
        }
    }

    /// The scheme to try first, and the other one where both may be right. A registry on this
    /// machine speaks plain HTTP until it shows that it does not; elsewhere plain HTTP is only for
    /// `insecure`, and last.
    fn schemes(&self) -> (&'static str, Option<&'static str>) {
        match (self.reference.is_loopback(), self.shared.access.http.is_insecure()) {
            (true, _) => ("http", Some("https")),
            (false, true) => ("https", Some("http")),
            (false, false) => ("https", None),
        }
    }

    pub(super) fn url(&self, scheme: &str, path: &str) -> Result<Url> {
        let (host, repository) = (self.reference.registry_host(), self.reference.repository());
        let text = format!("{scheme}://{host}/v2/{repository}/{path}");
        Url::parse(&text).map_err(|e| Error::new(ErrorKind::Invalid, format!("{text}: {e}")))
    }

    /// `url` is at the registry itself, not at a storage that it sends us to; and by the scheme
    /// that it speaks, once that is known.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        let scheme = self.scheme.get().copied().unwrap_or(url.scheme());
        self.url(scheme, "").is_ok_and(|own| own.origin() == url.origin())
    }

    /// The error that an answer is, with a hint that fits it.
    pub(super) async fn refusal(&self, answer: Answer, missing_hint: &str) -> Error {
        let registry = self.reference.registry();
        let hint = match answer.status().as_u16() {
            401 | 403 if !self.is_own(answer.url()) => {
                "the storage behind the registry refused the address that the registry gave"
                    .to_owned()
            }
            401 | 403 => format!(
                "check the repository name, and run \"podman login {registry}\" or pass --authfile"
            ),
            404 => missing_hint.to_owned(),
            416 => "the registry's blob is smaller than its descriptor says".to_owned(),
            _ => String::new(),
        };
        answer.into_error(&hint).await
    }
}

/// The other scheme may be the right one: no HTTP came back, or a server says 400, which is how
/// TLS servers answer plain HTTP. A passed deadline or a refused certificate stay what they are.
fn may_speak_another_scheme(outcome: &Result<Answer>) -> bool {
    match outcome {
        Ok(answer) => answer.status() == StatusCode::BAD_REQUEST,
        Err(error) => matches!(error.kind, ErrorKind::Network | ErrorKind::Protocol),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::auth::keychain::KeychainConfig;
    use super::super::Registries;
    use crate::layout::reference::Reference;

    #[test]
    fn each_registry_is_reached_by_the_scheme_that_is_safe_there() {
        for (reference, insecure, expected) in [
            ("r.io/a", false, ("https", None)),
            ("r.io/a", true, ("https", Some("http"))),
            ("localhost:5000/a", false, ("http", Some("https"))),
            ("[::1]:5000/a", true, ("http", Some("https"))),
        ] {
            let registries = Registries::new(&KeychainConfig::default(), insecure);
            let reference: Reference = reference.parse().expect("a reference");
            let registry = registries.expect("registries").repository(&reference);
            assert_eq!(registry.schemes(), expected, "{reference}");
        }
        let registries = Registries::new(&KeychainConfig::default(), false).expect("registries");
        let hub = registries.repository(&"debian:13".parse().expect("a reference"));
        let url = hub.url("https", "manifests/13").expect("a URL");
        assert_eq!(url.as_str(), "https://registry-1.docker.io/v2/library/debian/manifests/13");
    }
}
