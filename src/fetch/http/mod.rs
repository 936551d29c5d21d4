//! One HTTP request with its redirects, before a deadline.
//!
//! Redirects are followed here and not by the library, because the rules are ours: credentials
//! stay with the host that they are for, and HTTPS never turns into plain HTTP. What the bytes mean
//! is not known here.

mod body;
pub mod connections;
mod failure;
mod redact;
pub mod redirect;
mod upload;

use std::error::Error as _;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Method, StatusCode, Url};

use super::{Deadline, Error, ErrorKind, Result};
use crate::layout::reference::is_loopback_host;

pub use body::{Answer, Stream};
pub use failure::retry_after;
pub use redact::redacted;
use upload::Moved;

/// What we are to servers.
const USER_AGENT: &str = concat!("layoutfs/", env!("CARGO_PKG_VERSION"));

/// Idle connections kept per host: as many as a streaming read and a few random ones use.
const IDLE_CONNECTIONS_MAX: usize = 8;

/// A host that does not answer a SYN in this time is down. The deadline may be earlier.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// The connections of this process, shared by everything that speaks HTTP.
pub struct Http {
    insecure: bool,
    /// Speaks plain HTTP only, and without proxies: it is for this machine and for `--insecure`.
    plain: reqwest::Client,
    /// Made when first needed: without a certificate store it cannot be, and plain HTTP can.
    tls: OnceLock<reqwest::Client>,
    /// The same for this machine, which no proxy can reach.
    tls_loopback: OnceLock<reqwest::Client>,
}

/// What to ask for, and what to show for it.
#[derive(Clone)]
pub struct Request {
    /// What is asked of `url`.
    pub method: Method,
    /// Where; the redirects start here.
    pub url: Url,
    /// Sent on every hop.
    pub headers: HeaderMap,
    /// Sent only to the scheme, host and port of `url`.
    pub authorization: Option<HeaderValue>,
    /// What is sent along.
    pub content: Content,
}

/// The body of a request.
#[derive(Clone)]
pub enum Content {
    /// None.
    Nothing,
    /// A form, which may hold credentials: redirects are not followed.
    Form(Vec<(&'static str, String)>),
    /// These bytes. Sent again where a redirect asks for the same request elsewhere.
    Bytes(Bytes),
}

impl Request {
    /// A GET without headers or credentials.
    pub fn get(url: Url) -> Self {
        let (method, headers, content) = (Method::GET, HeaderMap::new(), Content::Nothing);
        Request { method, url, headers, authorization: None, content }
    }

    /// An answer of this status sends us elsewhere. What is pushed goes on only where the method
    /// and the body stay what they are (RFC 9110, 15.4).
    fn follows(&self, status: StatusCode) -> bool {
        let is_read = matches!(self.method, Method::GET | Method::HEAD);
        match (&self.content, status.as_u16()) {
            (Content::Form(_), _) => false,
            (_, 307 | 308) => true,
            (_, 301..=303) => is_read,
            _ => false,
        }
    }
}

impl Http {
    /// Connections that check certificates, unless `insecure`.
    ///
    /// # Errors
    /// [`ErrorKind::Local`] when the resolver's configuration cannot be read.
    pub fn new(insecure: bool) -> Result<Self> {
        // Another provider that is already installed serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // An empty trust store: this client cannot be led to a TLS server by mistake, and it
        // works where the system has no certificates.
        let plain = builder()
            .no_proxy()
            .tls_certs_only([])
            .build()
            .map_err(|e| client_failure("cannot set up HTTP", &e))?;
        Ok(Http { insecure, plain, tls: OnceLock::new(), tls_loopback: OnceLock::new() })
    }

    /// Certificates are not checked, and plain HTTP may leave this machine.
    pub fn is_insecure(&self) -> bool {
        self.insecure
    }

    /// Sends `request` and follows redirects until an answer comes. Its status may be any.
    ///
    /// # Errors
    /// [`ErrorKind::DeadlinePassed`], [`ErrorKind::Network`] for a connection that fails, and
    /// [`ErrorKind::Protocol`] for a redirect that must not be followed.
    pub async fn send(&self, request: &Request, deadline: Deadline) -> Result<Answer> {
        let mut visited: Vec<Url> = Vec::new();
        let mut url = request.url.clone();
        loop {
            let answer = self.send_once(request, &url, deadline).await?;
            let follows = request.follows(answer.status());
            let (true, Some(location)) = (follows, answer.header(LOCATION)) else {
                return Ok(answer);
            };
            visited.push(url.clone());
            url = redirect::next(&visited, location).and_then(|next| {
                self.check_scheme(&next)?;
                Ok(next)
            })?;
            tracing::debug!(from = redacted(&request.url), to = redacted(&url), "redirected");
        }
    }

    async fn send_once(&self, request: &Request, url: &Url, deadline: Deadline) -> Result<Answer> {
        self.check_scheme(url)?;
        let method = &request.method;
        let mut builder = self
            .client_for(url)?
            .request(method.clone(), url.clone())
            .headers(request.headers.clone());
        // Another origin never sees the credentials: not another port, not another scheme.
        if let Some(value) = &request.authorization
            && url.origin() == request.url.origin()
        {
            builder = builder.header(reqwest::header::AUTHORIZATION, value.clone());
        }
        let moved = Moved::default();
        match &request.content {
            Content::Nothing => {}
            Content::Form(form) => builder = builder.form(form),
            Content::Bytes(bytes) => {
                builder = builder.header(CONTENT_LENGTH, bytes.len()).body(moved.body(bytes));
            }
        }
        let what = format!("{method} {}", redacted(url));
        match moved.wait_for(builder.send(), deadline).await {
            None => Err(failure::deadline_passed(&what, deadline.stall())),
            Some(Err(error)) => Err(failure::transport(&what, &error)),
            Some(Ok(response)) => {
                Ok(Answer::new(what, url.clone(), response, moved.renewed(deadline)))
            }
        }
    }

    /// Plain HTTP is for this machine, or for a user who said so.
    fn check_scheme(&self, url: &Url) -> Result<()> {
        match url.scheme() {
            "https" => Ok(()),
            "http" if self.insecure || is_loopback(url) => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Protocol,
                format!(
                    "{}: plain HTTP is only for registries on this machine; \
                     pass --insecure to use it elsewhere",
                    redacted(url)
                ),
            )),
        }
    }

    fn client_for(&self, url: &Url) -> Result<&reqwest::Client> {
        if url.scheme() == "http" {
            return Ok(&self.plain);
        }
        let slot = if is_loopback(url) { &self.tls_loopback } else { &self.tls };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let mut builder = builder().tls_danger_accept_invalid_certs(self.insecure);
        if is_loopback(url) {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|e| {
            client_failure("no trusted certificates on this system: install ca-certificates", &e)
        })?;
        Ok(slot.get_or_init(|| client))
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(Policy::none())
        // Retries are `retry.rs`: only it knows how many and until when.
        .retry(reqwest::retry::never())
        .referer(false)
        // HTTP/2 costs 1.5 to 1.9 times the CPU and is not faster at ranges of 1 MiB and more.
        .http1_only()
        .connect_timeout(CONNECT_MAX)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
}

fn client_failure(doing: &str, error: &reqwest::Error) -> Error {
    let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    Error::new(ErrorKind::Local, format!("{doing}: {reason}"))
}

fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(is_loopback_host)
}

/// The statuses that carry what was read.
pub fn is_success(status: StatusCode) -> bool {
    matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT)
}
