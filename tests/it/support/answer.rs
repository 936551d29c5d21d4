//! The registry's answers: manifests, blobs and their ranges, storage addresses.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Response, StatusCode};
use layoutfs::layout::Digest;

use super::faults::Action;
use super::referrers::referrers;
use super::registry::{Request, Shared, Store};
use super::uploads;
use super::wire::Flushes;

/// A request, taken apart.
pub struct Asked {
    pub method: Method,
    /// Percent-decoded, without the query.
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
}

/// An answer before it is put on the wire, where faults can still change it.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Where `body` starts in its blob.
    pub start: u64,
    /// What Content-Length says when it is not the body's length.
    pub declared_bytes: Option<u64>,
    pub pace: Pace,
}

/// How the body goes out.
#[derive(Clone, Copy, Default)]
pub struct Pace {
    /// The connection is cut after so many bytes.
    pub cut_at: Option<usize>,
    /// Nothing more comes after so many bytes.
    pub stall_at: Option<usize>,
    /// So many bytes, then a wait.
    pub drip: Option<(usize, Duration)>,
    /// Without Content-Length.
    pub chunked: bool,
}

/// Names what the path asks for below `/v2/`.
pub enum Route<'a> {
    Base,
    Manifest { repository: &'a str, reference: &'a str },
    Blob { repository: &'a str, digest: &'a str },
    Upload { repository: &'a str, id: &'a str },
    Tags { repository: &'a str },
    Referrers { repository: &'a str, digest: &'a str },
    Unknown,
}

impl Asked {
    /// Takes a request's head apart.
    pub fn of<T>(request: &hyper::Request<T>) -> Self {
        let query = request.uri().query().unwrap_or_default();
        Asked {
            method: request.method().clone(),
            path: percent_decode(request.uri().path()),
            query: parse_form(query),
            headers: request.headers().clone(),
        }
    }

    /// A header as text.
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The first value of a query parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Whom the request wants: the last of the words around which repository names end.
    pub fn route(&self) -> Route<'_> {
        let Some(rest) = self.path.strip_prefix("/v2/") else { return Route::Unknown };
        if rest.is_empty() {
            return Route::Base;
        }
        if let Some((repository, id)) = rest.rsplit_once("/blobs/uploads/") {
            return Route::Upload { repository, id };
        }
        if let Some((repository, digest)) = rest.rsplit_once("/blobs/") {
            return Route::Blob { repository, digest };
        }
        if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
            return Route::Manifest { repository, reference };
        }
        if let Some((repository, digest)) = rest.rsplit_once("/referrers/") {
            return Route::Referrers { repository, digest };
        }
        match rest.strip_suffix("/tags/list") {
            Some(repository) => Route::Tags { repository },
            None => Route::Unknown,
        }
    }

    fn to_record(&self, query: &str) -> Request {
        let header = |name| self.header(name).map(str::to_owned);
        let scheme = |value: String| value.split(' ').next().unwrap_or_default().to_owned();
        Request {
            method: self.method.to_string(),
            path: self.path.clone(),
            query: query.to_owned(),
            range: header(header::RANGE),
            host: header(header::HOST).unwrap_or_default(),
            authorization: header(header::AUTHORIZATION).map(scheme),
            status: 0,
            sent_bytes: 0,
        }
    }
}

impl Reply {
    /// An answer without a body.
    pub fn new(status: StatusCode) -> Self {
        Reply {
            status,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            start: 0,
            declared_bytes: None,
            pace: Pace::default(),
        }
    }

    /// The same with one header more.
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        let value = HeaderValue::from_str(&value.to_string()).expect("a header value");
        self.headers.insert(HeaderName::from_static(name), value);
        self
    }

    /// The same with a body.
    pub fn body(mut self, media_type: &str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.with("content-type", media_type)
    }

    /// The distribution-spec's error document.
    pub fn error(status: StatusCode, code: &str, message: &str) -> Self {
        let error = serde_json::json!({"errors": [{"code": code, "message": message}]});
        Reply::new(status).body("application/json", error.to_string())
    }

    /// 404 with a code.
    pub fn not_found(code: &str) -> Self {
        Reply::error(StatusCode::NOT_FOUND, code, "not here")
    }
}

/// The body type of every answer.
pub type Body =
    StreamBody<futures_util::stream::BoxStream<'static, Result<Frame<Bytes>, io::Error>>>;

/// Answers one request. An error makes the server hang up without an answer.
pub async fn answer(
    shared: &Arc<Shared>,
    flushes: &Flushes,
    request: hyper::Request<Incoming>,
) -> Result<Response<Body>, io::Error> {
    let mut asked = Asked::of(&request);
    let query = request.uri().query().unwrap_or_default();
    let (number, sent_bytes) = shared.record(asked.to_record(query));
    let action = shared.faults.take(asked.method.as_str(), &asked.path);
    match &action {
        Some(Action::Stall) => std::future::pending().await,
        Some(Action::HangUp) => return Err(io::Error::other("told to hang up")),
        Some(Action::IgnoreRange) => drop(asked.headers.remove(header::RANGE)),
        _ => {}
    }
    let mut reply = match action.as_ref().and_then(|a| a.reply(&asked)) {
        Some(reply) => reply,
        None => route(shared, &asked, request.into_body()).await,
    };
    if let Some(action) = &action {
        action.alter(&asked, &mut reply);
    }
    shared.answered(number, &sent_bytes, reply.status.as_u16());
    Ok(reply.send(&asked.method, sent_bytes, flushes.clone()))
}

async fn route(shared: &Arc<Shared>, asked: &Asked, body: Incoming) -> Reply {
    if asked.path == "/token" {
        let Ok(body) = uploads::collect(body).await else {
            return Reply::new(StatusCode::BAD_REQUEST);
        };
        return shared.tokens.give(asked, &body);
    }
    if let Some(digest) = asked.path.strip_prefix("/storage/") {
        return storage(&shared.store.lock().unwrap(), asked, digest);
    }
    if asked.path.starts_with("/uploads/") {
        return uploads::push_here_for_another(shared, asked, body).await;
    }
    if let Err(reply) = shared.tokens.admit(asked) {
        return *reply;
    }
    if !matches!(asked.method, Method::GET | Method::HEAD) {
        return uploads::push(shared, asked, body).await;
    }
    let store = shared.store.lock().unwrap();
    match asked.route() {
        Route::Base => Reply::new(StatusCode::OK).body("application/json", "{}"),
        Route::Manifest { repository, reference } => manifest(&store, repository, reference),
        Route::Blob { repository, digest } => match digest.parse() {
            Ok(digest) => blob(&store, asked, repository, &digest),
            Err(_) => Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", digest),
        },
        Route::Tags { repository } => tags(&store, repository),
        Route::Referrers { repository, digest } => referrers(&store, asked, repository, digest),
        Route::Upload { id, .. } => uploads::progress(&store, asked, id),
        Route::Unknown => Reply::not_found("NAME_UNKNOWN"),
    }
}

fn manifest(store: &Store, repository: &str, reference: &str) -> Reply {
    match store.manifest(repository, reference) {
        Some((digest, manifest)) => {
            let reply = Reply::new(StatusCode::OK).with("docker-content-digest", digest);
            let reply = match store.has_versions {
                true => reply.with("etag", format!("\"{digest}\"")),
                false => reply,
            };
            reply.body(&manifest.media_type, manifest.bytes)
        }
        None => Reply::not_found("MANIFEST_UNKNOWN"),
    }
}

fn blob(store: &Store, asked: &Asked, repository: &str, digest: &Digest) -> Reply {
    let Some(bytes) = store.blob(repository, digest) else {
        return Reply::not_found("BLOB_UNKNOWN");
    };
    if let (Some(redirect), &Method::GET) = (&store.redirect, &asked.method) {
        let expires_ms = now_ms() + redirect.lifetime.as_millis();
        let signature = sign(store, &digest.to_string(), expires_ms);
        let query = format!("expires={expires_ms}&signature={signature}");
        let location = format!("{}/storage/{digest}?{query}", redirect.base);
        return Reply::new(StatusCode::TEMPORARY_REDIRECT).with("location", location);
    }
    ranged(asked, bytes).with("docker-content-digest", digest)
}

/// A blob behind a signed address, as object stores have them: no registry headers, no challenge.
fn storage(store: &Store, asked: &Asked, digest: &str) -> Reply {
    let Ok(digest) = digest.parse::<Digest>() else { return Reply::new(StatusCode::NOT_FOUND) };
    let expires_ms = asked.parameter("expires").and_then(|e| e.parse().ok()).unwrap_or(0);
    for origin in &store.storage_of {
        let origin = origin.store.lock().unwrap();
        let signature = sign(&origin, &digest.to_string(), expires_ms);
        let signed = asked.parameter("signature") == Some(&signature);
        if let (true, true, Some(bytes)) =
            (signed, now_ms() < expires_ms, origin.blobs.get(&digest))
        {
            return ranged(asked, bytes.clone());
        }
    }
    Reply::new(StatusCode::FORBIDDEN).body("application/xml", "<Error>AccessDenied</Error>")
}

fn sign(store: &Store, path: &str, expires_ms: u128) -> String {
    Digest::sha256_of(format!("{} {path} {expires_ms}", store.signing_secret).as_bytes()).hex()
}

fn now_ms() -> u128 {
    SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_millis()
}

fn tags(store: &Store, repository: &str) -> Reply {
    let Some(found) = store.repositories.get(repository) else {
        return Reply::not_found("NAME_UNKNOWN");
    };
    let tags: Vec<_> = found.tags.keys().collect();
    let list = serde_json::json!({"name": repository, "tags": tags});
    Reply::new(StatusCode::OK).body("application/json", list.to_string())
}

/// The blob or the part that the `Range` header wants (RFC 9110, section 14).
fn ranged(asked: &Asked, bytes: Bytes) -> Reply {
    let size = bytes.len() as u64;
    let reply = |status| Reply::new(status).with("accept-ranges", "bytes");
    let whole = |b| reply(StatusCode::OK).body("application/octet-stream", b);
    let wanted = asked.header(header::RANGE).filter(|_| asked.method == Method::GET);
    match wanted.and_then(|text| parse_range(text, size)) {
        None => whole(bytes),
        Some(None) => {
            let range = format!("bytes */{size}");
            reply(StatusCode::RANGE_NOT_SATISFIABLE).with("content-range", range)
        }
        Some(Some((start, end))) => {
            let part = bytes.slice(start as usize..end as usize);
            let mut reply = reply(StatusCode::PARTIAL_CONTENT)
                .with("content-range", format!("bytes {start}-{}/{size}", end - 1))
                .body("application/octet-stream", part);
            reply.start = start;
            reply
        }
    }
}

/// `[start, end)` of one `bytes=` range; `Some(None)` when nothing can satisfy it, `None` when
/// the header is to be ignored: malformed, another unit, several ranges.
fn parse_range(text: &str, size: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = if first.is_empty() {
        let suffix: u64 = last.parse().ok()?;
        (size.saturating_sub(suffix), size)
    } else {
        let start: u64 = first.parse().ok()?;
        let last: u64 = if last.is_empty() { u64::MAX } else { last.parse().ok()? };
        if last < start {
            return None;
        }
        (start, last.saturating_add(1).min(size))
    };
    Some((start < end).then_some((start, end)))
}

impl Reply {
    /// Puts the answer on the wire, counting the body.
    fn send(
        mut self,
        method: &Method,
        sent_bytes: Arc<AtomicU64>,
        flushes: Flushes,
    ) -> Response<Body> {
        let length = self.declared_bytes.unwrap_or(self.body.len() as u64);
        if !self.pace.chunked && self.status != StatusCode::NO_CONTENT {
            self.headers.insert(header::CONTENT_LENGTH, length.into());
        }
        let body = if method == Method::HEAD { Bytes::new() } else { self.body };
        let steps = Box::pin(futures_util::stream::unfold(
            (body, 0, self.pace, sent_bytes, flushes),
            |(body, at, pace, sent_bytes, flushes)| async move {
                let step = step(&body, at, pace, &flushes).await?;
                let len = step.as_ref().map_or(0, Bytes::len);
                sent_bytes.fetch_add(len as u64, Ordering::Relaxed);
                Some((step.map(Frame::data), (body, at + len, pace, sent_bytes, flushes)))
            },
        ));
        let mut response = Response::new(StreamBody::new(steps as _));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// Small enough that a client's early leave shows in the count.
const STEP_BYTES: usize = 64 << 10;

/// The next bytes after `at`; an error cuts the connection.
async fn step(
    body: &Bytes,
    at: usize,
    pace: Pace,
    flushes: &Flushes,
) -> Option<Result<Bytes, io::Error>> {
    if pace.stall_at.is_some_and(|stop| at >= stop) {
        std::future::pending::<Infallible>().await;
    }
    if pace.cut_at.is_some_and(|cut| at >= cut) {
        flushes.next().await;
        return Some(Err(io::Error::other("told to cut the body")));
    }
    if at == body.len() {
        return None;
    }
    let mut end = body.len().min(at + STEP_BYTES);
    if let Some((bytes, every)) = pace.drip {
        tokio::time::sleep(if at == 0 { Duration::ZERO } else { every }).await;
        end = end.min(at + bytes);
    }
    for stop in [pace.cut_at, pace.stall_at].into_iter().flatten() {
        end = end.min(stop);
    }
    Some(Ok(body.slice(at..end)))
}

/// Decodes `%xx`; what is not valid stays as it is.
pub fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%').then(|| tail.get(..2)).flatten();
        let code = code.and_then(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok());
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `a=1&b=2`, with `+` for spaces.
pub fn parse_form(text: &str) -> Vec<(String, String)> {
    let decode = |part: &str| percent_decode(&part.replace('+', " "));
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}
