//! Tokens: asking a token endpoint, and keeping what it gives until shortly before it expires
//! (distribution, "Token Authentication" and "OAuth2").

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::HeaderValue;
use reqwest::{Method, Url};
use serde::Deserialize;

use super::super::http::{Content, Http, Request, is_success, redacted};
use super::super::{Deadline, Error, ErrorKind, Result};
use super::{Credential, basic, bearer_header};

/// How long a token holds whose giver does not say (distribution, "Token Response Fields").
const LIFETIME_DEFAULT: Duration = Duration::from_secs(60);

/// Longer than any endpoint gives; beyond it the number is nonsense.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// A token is renewed so long before it expires, or at three quarters of a short life: the
/// request that shows it takes time, and clocks differ.
const RENEWAL_MARGIN: Duration = Duration::from_secs(10);

/// The largest answer of a token endpoint. Tokens with many grants reach some tens of KiB.
const TOKEN_BYTES_MAX: u64 = 1 << 20;

/// Distinct services kept. A hostile registry could name a new one in every challenge.
const SERVICES_MAX: usize = 256;

/// What we call ourselves to OAuth 2 endpoints.
const CLIENT_ID: &str = "layoutfs";

/// Whom to ask for a token, and for what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Service {
    /// The registry that sent us there: its credentials are shown, so tokens are kept apart by it.
    pub registry: String,
    /// The endpoint.
    pub realm: Url,
    /// What the endpoint calls the registry.
    pub service: String,
    /// `repository:NAME:pull`, several separated by spaces.
    pub scope: String,
}

/// The tokens of a process.
#[derive(Default)]
pub struct Tokens {
    slots: Mutex<HashMap<Service, Arc<Slot>>>,
}

/// Locked while a token is fetched, so that readers that need the same one share the fetch.
type Slot = tokio::sync::Mutex<Option<Token>>;

struct Token {
    header: HeaderValue,
    renew_at: Instant,
}

#[derive(Deserialize)]
struct Response {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<f64>,
}

impl Tokens {
    /// A header with a token of `service` that still holds. `refused` was shown and refused: a
    /// token other than that one is taken, or a new one fetched.
    ///
    /// # Errors
    /// [`ErrorKind::Authentication`] when the endpoint refuses `credential`.
    pub async fn header(
        &self,
        http: &Http,
        service: &Service,
        credential: impl Future<Output = Result<Credential>>,
        refused: Option<&HeaderValue>,
        deadline: Deadline,
    ) -> Result<HeaderValue> {
        let slot = self.slot(service);
        let Ok(mut slot) = tokio::time::timeout_at(deadline.at().into(), slot.lock()).await else {
            let what = format!("token from {}", redacted(&service.realm));
            return Err(Error::new(
                ErrorKind::DeadlinePassed,
                format!("{what}: it did not come in time"),
            ));
        };
        let now = Instant::now();
        if let Some(token) = slot.as_ref()
            && token.renew_at > now
            && refused != Some(&token.header)
        {
            return Ok(token.header.clone());
        }
        let token = fetch(http, service, &credential.await?, now, deadline).await?;
        let header = token.header.clone();
        *slot = Some(token);
        Ok(header)
    }

    fn slot(&self, service: &Service) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= SERVICES_MAX && !slots.contains_key(service) {
            slots.clear();
        }
        Arc::clone(slots.entry(service.clone()).or_default())
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(..)")
    }
}

async fn fetch(
    http: &Http,
    service: &Service,
    credential: &Credential,
    now: Instant,
    deadline: Deadline,
) -> Result<Token> {
    tracing::debug!(realm = redacted(&service.realm), scope = service.scope, "asking for a token");
    let answer = http.send(&request(service, credential), deadline).await?;
    if !is_success(answer.status()) {
        let registry = &service.registry;
        let hint = match credential {
            Credential::Anonymous => format!(
                "no credentials for {registry}: run \"podman login {registry}\" or pass --authfile"
            ),
            _ => format!(
                "the stored credentials for {registry} were refused: \
                 run \"podman login {registry}\" again"
            ),
        };
        return Err(answer.into_error(&hint).await);
    }
    let what = format!("token from {}", redacted(&service.realm));
    let body = answer.read_all(TOKEN_BYTES_MAX).await.map_err(|e| e.context(&what))?;
    // The body is a secret: errors about it say only where they are.
    let response: Response = serde_json::from_slice(&body).map_err(|e| {
        let place = format!("line {} column {}", e.line(), e.column());
        Error::new(ErrorKind::Protocol, format!("{what}: not a token response at {place}"))
    })?;
    let token = if response.token.is_empty() { &response.access_token } else { &response.token };
    let header = (!token.is_empty()).then(|| bearer_header(token)).flatten().ok_or_else(|| {
        Error::new(ErrorKind::Protocol, format!("{what}: the response has no usable token"))
    })?;
    Ok(Token { header, renew_at: now + usable_for(response.expires_in) })
}

fn request(service: &Service, credential: &Credential) -> Request {
    let mut request = Request::get(service.realm.clone());
    if let Credential::Identity(token) = credential {
        request.method = Method::POST;
        request.content = Content::Form(vec![
            ("grant_type", "refresh_token".to_owned()),
            ("service", service.service.clone()),
            ("client_id", CLIENT_ID.to_owned()),
            ("scope", service.scope.clone()),
            ("refresh_token", token.clone()),
        ]);
        return request;
    }
    {
        let mut query = request.url.query_pairs_mut();
        if !service.service.is_empty() {
            query.append_pair("service", &service.service);
        }
        for scope in service.scope.split_ascii_whitespace() {
            query.append_pair("scope", scope);
        }
        if let Credential::Login { username, .. } = credential {
            query.append_pair("account", username);
        }
    }
    if let Credential::Login { username, password } = credential {
        request.authorization = Some(basic::header(username, password));
    }
    request
}

/// How long from the request on a token is shown, given the `expires_in` (seconds) that came.
fn usable_for(expires_in: Option<f64>) -> Duration {
    let lifetime = expires_in
        .filter(|seconds| *seconds > 0.0)
        .map_or(LIFETIME_DEFAULT, |s| Duration::from_secs_f64(s.min(LIFETIME_MAX.as_secs_f64())));
    lifetime - RENEWAL_MARGIN.min(lifetime / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_it_expires() {
        for (expires_in, seconds) in [
            (None, 50.0),
            (Some(0.0), 50.0),
            (Some(-5.0), 50.0),
            (Some(f64::NAN), 50.0),
            (Some(300.0), 290.0),
            (Some(4.0), 3.0),
            (Some(1e300), 86_390.0),
        ] {
            assert_eq!(usable_for(expires_in), Duration::from_secs_f64(seconds), "{expires_in:?}");
        }
    }

    fn service() -> Service {
        Service {
            registry: "r.example".to_owned(),
            realm: "https://a.example/token?x=1".parse().expect("a URL"),
            service: "the service".to_owned(),
            scope: "repository:a/b:pull".to_owned(),
        }
    }

    #[test]
    fn a_login_asks_by_get_and_an_identity_token_by_post() {
        let login = Credential::Login { username: "ann".to_owned(), password: "pw".to_owned() };
        let request_of_login = request(&service(), &login);
        assert_eq!(
            request_of_login.url.as_str(),
            "https://a.example/token?x=1&service=the+service&scope=repository%3Aa%2Fb%3Apull\
             &account=ann"
        );
        assert_eq!(request_of_login.authorization, Some(basic::header("ann", "pw")));
        let request_of_identity = request(&service(), &Credential::Identity("it".to_owned()));
        assert_eq!(request_of_identity.url, service().realm);
        assert_eq!(request_of_identity.authorization, None);
        assert_eq!(request_of_identity.method, Method::POST);
        let Content::Form(form) = request_of_identity.content else { panic!("no form") };
        assert!(form.contains(&("grant_type", "refresh_token".to_owned())));
        assert!(form.contains(&("refresh_token", "it".to_owned())));
        assert!(request(&service(), &Credential::Anonymous).authorization.is_none());
    }
}
