//! Source: a repository of a registry, by ranged GET (OCI distribution-spec 1.1, Docker
//! Registry HTTP API V2). Its manifests too.

pub mod content_range;
mod locations;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RANGE,
};
use reqwest::{StatusCode, Url};

use super::auth::bearer::Tokens;
use super::auth::keychain::{Keychain, KeychainConfig};
use super::auth::{Access, Authorization};
use super::http::connections::{Connection, Connections};
use super::http::{Answer, Http, Request, is_success};
use super::{Body, BoxFuture, Deadline, Distrust, Error, ErrorKind, Result, Source};
use crate::layout::range::ByteRange;
use crate::layout::reference::{Reference, is_tag};
use crate::layout::{Blob, Digest};

use content_range::{parse_content_range, range_header};
use locations::Locations;

/// The largest manifest: registries must take this much, and need not take more
/// (distribution-spec, "Pushing Manifests").
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// Manifests and indexes that we understand, OCI's first.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What the registries of a process share: connections, credentials, tokens.
pub struct Registries {
    access: Access,
    connections: Connections,
}

/// One repository of one registry.
pub struct Registry {
    shared: Arc<Registries>,
    reference: Reference,
    authorization: Authorization,
    locations: Locations,
    connection: Connection,
    /// `https` or `http`, once an answer has shown which.
    scheme: OnceLock<&'static str>,
}

/// A manifest or index as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The exact bytes: their digest is the image's.
    pub bytes: Bytes,
    /// The media type, without parameters; from the document when the registry gives none.
    pub media_type: String,
    /// The digest of `bytes`, checked against all that was promised.
    pub digest: Digest,
}

impl Registries {
    /// Registries reached with the credentials that `keychain` describes. With `insecure`,
    /// certificates are not checked and plain HTTP may leave this machine.
    ///
    /// # Errors
    /// [`ErrorKind::Authentication`] for credentials in the environment that cannot be read.
    pub fn new(keychain: &KeychainConfig, insecure: bool) -> Result<Arc<Self>> {
        let access = Access {
            http: Http::new(insecure)?,
            keychain: Keychain::new(keychain)?,
            tokens: Tokens::default(),
        };
        Ok(Arc::new(Registries { access, connections: Connections::default() }))
    }

    /// The repository of `reference`; its tag and digest do not matter. Nothing is asked yet.
    pub fn repository(self: &Arc<Self>, reference: &Reference) -> Registry {
        Registry {
            shared: Arc::clone(self),
            authorization: Authorization::new(reference.registry(), reference.repository()),
            reference: reference.clone(),
            locations: Locations::new(),
            connection: self.connections.to(reference.registry_host()),
            scheme: OnceLock::new(),
        }
    }
}

impl Registry {
    /// The manifest or index that `identifier`, a tag or a digest, names.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`] when the bytes are not those that were asked for or
    /// announced, [`ErrorKind::Invalid`] beyond [`MANIFEST_BYTES_MAX`], and what requests fail with.
    pub async fn manifest(&self, identifier: &str, deadline: Deadline) -> Result<Manifest> {
        let asked: Option<Digest> = identifier.parse().ok();
        if asked.is_none() && !is_tag(identifier) {
            let what = format!("{}: {identifier:?}", self.name());
            return Err(Error::new(ErrorKind::Invalid, format!("{what} is no tag and no digest")));
        }
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))]);
        let path = format!("manifests/{identifier}");
        let answer = self.ask(&path, &headers, deadline).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.refusal(answer, "check the repository name and the tag").await);
        }
        let announced = answer.text_header(DOCKER_CONTENT_DIGEST).and_then(|d| d.parse().ok());
        let content_type = answer.text_header(CONTENT_TYPE).unwrap_or_default().to_owned();
        let bytes = answer.read_all(MANIFEST_BYTES_MAX).await?;
        for promised in [asked, announced].iter().flatten() {
            promised.verify(&bytes).map_err(|e| {
                Error::from(e).context(format!("{}: manifest {identifier}", self.name()))
            })?;
        }
        Ok(Manifest {
            media_type: media_type(&content_type, &bytes),
            digest: asked.or(announced).unwrap_or_else(|| Digest::sha256_of(&bytes)),
            bytes,
        })
    }

    /// A small blob, whole and checked.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it is larger than `limit_bytes`,
    /// [`ErrorKind::DigestMismatch`], and what requests fail with.
    pub async fn blob_bytes(
        &self,
        blob: &Blob,
        limit_bytes: u64,
        deadline: Deadline,
    ) -> Result<Bytes> {
        let what = || format!("{}: blob {}", self.name(), blob.digest);
        if blob.size > limit_bytes {
            let (size, what) = (blob.size, what());
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("{what}: {size} bytes, expected at most {limit_bytes}"),
            ));
        }
        let mut bytes = Vec::new();
        if blob.size > 0 {
            let mut body = self.read_range(blob, ByteRange::new(0, blob.size), deadline).await?;
            while let Some(chunk) = body.next().await? {
                bytes.extend_from_slice(&chunk);
            }
        }
        blob.verify(&bytes).map_err(|e| Error::from(e).context(what()))?;
        Ok(bytes.into())
    }

    /// A layout has manifests among its blobs; registries keep them at another address.
    async fn read_manifest(&self, blob: &Blob, missing: Error, deadline: Deadline) -> Result<Body> {
        if blob.size > MANIFEST_BYTES_MAX {
            return Err(missing);
        }
        match self.manifest(&blob.digest.to_string(), deadline).await {
            Ok(found) if found.bytes.len() as u64 == blob.size => {
                Ok(Body::ready(ByteRange::new(0, blob.size), found.bytes))
            }
            _ => Err(missing),
        }
    }

    async fn read_range(&self, blob: &Blob, range: ByteRange, deadline: Deadline) -> Result<Body> {
        if range.is_empty() || range.end > blob.size {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("range {range} is not in blob {} of {} bytes", blob.digest, blob.size),
            ));
        }
        let connection = self.connection.get(deadline).await?;
        let answer = self.blob_answer(blob, range, deadline).await?;
        let delivered = delivered_range(&answer, blob, range)?;
        if let Some(bytes) = answer.content_bytes()
            && bytes > delivered.len()
        {
            let due = delivered.len();
            return Err(answer.wrong(format!("the body has {bytes} bytes, expected {due}")));
        }
        Ok(Body::new(delivered, Box::new(answer.stream(delivered.len(), connection))))
    }

    /// The 200 or 206 for a range, from where the blob was found last or else from the registry.
    async fn blob_answer(
        &self,
        blob: &Blob,
        range: ByteRange,
        deadline: Deadline,
    ) -> Result<Answer> {
        let mut headers = HeaderMap::from_iter([(
            // A compressed copy would have other bytes at other positions.
            ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        )]);
        let value = HeaderValue::from_str(&range_header(range)).expect("digits are a header value");
        headers.insert(RANGE, value);
        if let Some(url) = self.locations.get(&blob.digest) {
            let request = Request { headers: headers.clone(), ..Request::get(url.clone()) };
            match self.shared.access.http.send(&request, deadline).await {
                Ok(answer) if is_success(answer.status()) => return Ok(answer),
                Err(error) if error.kind == ErrorKind::DeadlinePassed => {
                    self.locations.forget(&blob.digest, &url);
                    return Err(error);
                }
                // Expired, moved or down: the registry knows where the blob is now.
                _ => self.locations.forget(&blob.digest, &url),
            }
        }
        let answer = self.ask(&format!("blobs/{}", blob.digest), &headers, deadline).await?;
        if !is_success(answer.status()) {
            return Err(self.refusal(answer, "the repository does not have this blob").await);
        }
        if !self.is_own(answer.url()) {
            self.locations.remember(blob.digest, answer.url().clone());
        }
        Ok(answer)
    }

    /// Asks the registry, with credentials once it wants them.
    async fn ask(&self, path: &str, headers: &HeaderMap, deadline: Deadline) -> Result<Answer> {
        let access = &self.shared.access;
        let mut shown = self.authorization.current(access, deadline).await?;
        let mut is_answered = false;
        loop {
            let mut answer = self.ask_once(path, headers, shown.as_ref(), deadline).await?;
            if !self.is_own(answer.url()) || is_answered {
                return Ok(answer);
            }
            let mut refused = None;
            if answer.status() == StatusCode::FORBIDDEN && shown.is_some() {
                // Some say so when a token has expired, and send no challenge with it: the one that
                // comes without credentials tells where to get others.
                let anew = self.ask_once(path, headers, None, deadline).await?;
                if anew.status() != StatusCode::UNAUTHORIZED || !self.is_own(anew.url()) {
                    return Ok(if is_success(anew.status()) { anew } else { answer });
                }
                refused = Some(std::mem::replace(&mut answer, anew));
            }
            if answer.status() != StatusCode::UNAUTHORIZED {
                return Ok(answer);
            }
            is_answered = true;
            let (url, challenges) = (answer.url().clone(), answer.challenges());
            let header = self
                .authorization
                .answer(access, &url, &challenges, shown.as_ref(), deadline)
                .await?;
            let Some(header) = header else { return Ok(refused.unwrap_or(answer)) };
            // Read to its end, the connection is free for the next request.
            drop(answer.into_error("").await);
            shown = Some(header);
        }
    }

    /// One request, by the scheme that the registry speaks; the first answer decides which.
    async fn ask_once(
        &self,
        path: &str,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
        deadline: Deadline,
    ) -> Result<Answer> {
        let send = async |scheme: &str| {
            let request = Request {
                headers: headers.clone(),
                authorization: authorization.cloned(),
                ..Request::get(self.url(scheme, path)?)
            };
            self.shared.access.http.send(&request, deadline).await
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

    fn url(&self, scheme: &str, path: &str) -> Result<Url> {
        let (host, repository) = (self.reference.registry_host(), self.reference.repository());
        let text = format!("{scheme}://{host}/v2/{repository}/{path}");
        Url::parse(&text).map_err(|e| Error::new(ErrorKind::Invalid, format!("{text}: {e}")))
    }

    /// `url` is at the registry itself, not at a storage that it redirects to.
    fn is_own(&self, url: &Url) -> bool {
        self.url(url.scheme(), "").is_ok_and(|own| own.origin() == url.origin())
    }

    /// The error that an answer is, with a hint that fits it.
    async fn refusal(&self, answer: Answer, missing_hint: &str) -> Error {
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

impl Source for Registry {
    fn read<'a>(
        &'a self,
        blob: &'a Blob,
        range: ByteRange,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Body>> {
        Box::pin(async move {
            match self.read_range(blob, range, deadline).await {
                Err(missing) if missing.kind == ErrorKind::NotFound => {
                    self.read_manifest(blob, missing, deadline).await
                }
                other => other,
            }
        })
    }

    /// The storage that the registry sent us to is forgotten: it may be what is at fault.
    fn distrust(&self, blob: &Blob, _range: ByteRange, why: Distrust) -> bool {
        if let Some(url) = self.locations.get(&blob.digest) {
            self.locations.forget(&blob.digest, &url);
        }
        why == Distrust::Slow
    }

    fn name(&self) -> String {
        format!("{}/{}", self.reference.registry(), self.reference.repository())
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

/// The range that the body of a 200 or 206 holds, checked against what was asked for.
fn delivered_range(answer: &Answer, blob: &Blob, range: ByteRange) -> Result<ByteRange> {
    if answer.is_encoded() {
        return Err(answer.wrong("the body has a Content-Encoding that nobody asked for"));
    }
    if answer.status() == StatusCode::OK {
        return match answer.content_bytes() {
            Some(bytes) if bytes != blob.size => Err(answer.wrong(format!(
                "the blob has {bytes} bytes, expected {} as its descriptor says",
                blob.size
            ))),
            _ => Ok(ByteRange::new(0, blob.size)),
        };
    }
    let header = answer.text_header(CONTENT_RANGE).unwrap_or_default();
    let Some((delivered, total)) = parse_content_range(header) else {
        return Err(answer.wrong(format!("206 with Content-Range {header:?}")));
    };
    if let Some(total) = total
        && total != blob.size
    {
        return Err(answer.wrong(format!(
            "the blob has {total} bytes, expected {} as its descriptor says",
            blob.size
        )));
    }
    if !(delivered.start..delivered.end).contains(&range.start) || delivered.end > blob.size {
        return Err(answer.wrong(format!("got bytes {delivered}, asked for {range}")));
    }
    // A server may send less than it was asked for: that ends like any cut body.
    Ok(ByteRange::new(delivered.start, delivered.end.max(range.end)))
}

/// The media type of a manifest: what the registry says, else what the document says of itself.
fn media_type(content_type: &str, bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        #[serde(rename = "mediaType")]
        media_type: String,
    }
    let named = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if named.starts_with("application/vnd.") {
        return named;
    }
    serde_json::from_slice::<Document>(bytes).map_or(named, |document| document.media_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vague_content_type_gives_way_to_the_document() {
        let oci = "application/vnd.oci.image.manifest.v1+json";
        let document = format!(r#"{{"mediaType":"{oci}"}}"#);
        assert_eq!(media_type(&format!("{oci}; charset=utf-8"), b"{}"), oci);
        assert_eq!(media_type("", document.as_bytes()), oci);
        assert_eq!(media_type("application/json", document.as_bytes()), oci);
        assert_eq!(media_type("text/plain", b"{}"), "text/plain");
    }

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
