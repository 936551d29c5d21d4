//! Source: a repository of a registry, by ranged GET (OCI distribution-spec 1.1, Docker
//! Registry HTTP API V2). Its manifests too; writing is in `push` and `referrers`.

mod ask;
pub mod content_range;
pub mod link;
mod locations;
mod push;
mod referrers;
pub(super) mod tries;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    RANGE,
};

use super::auth::bearer::Tokens;
use super::auth::keychain::{Keychain, KeychainConfig};
use super::auth::{Access, Authorization, Purpose};
use super::http::connections::{Connection, Connections};
use super::http::{Answer, Http, Request, is_success};
use super::{Body, BoxFuture, Deadline, Distrust, Error, ErrorKind, Result, Source};
use crate::layout::range::ByteRange;
use crate::layout::reference::{Reference, is_tag};
use crate::layout::{Blob, Digest};

use ask::Call;
use content_range::{parse_content_range, range_header};
use locations::Locations;

pub use push::{Pushed, PushedManifest};
pub use referrers::{Attached, Listed, REFERRERS_MAX, REFERRERS_PAGES_MAX};

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
    to_pull: Authorization,
    to_push: Authorization,
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
        let authorization =
            |purpose| Authorization::new(reference.registry(), reference.repository(), purpose);
        Registry {
            shared: Arc::clone(self),
            to_pull: authorization(Purpose::Pull),
            to_push: authorization(Purpose::Push),
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
        Ok(self.versioned_manifest(identifier, deadline).await?.0)
    }

    /// The same with its entity tag, if the registry gives one that `If-Match` may have.
    async fn versioned_manifest(
        &self,
        identifier: &str,
        deadline: Deadline,
    ) -> Result<(Manifest, Option<HeaderValue>)> {
        let asked: Option<Digest> = identifier.parse().ok();
        if asked.is_none() && !is_tag(identifier) {
            let what = format!("{}: {identifier:?}", self.name());
            return Err(Error::new(ErrorKind::Invalid, format!("{what} is no tag and no digest")));
        }
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))]);
        let call = Call::get(format!("manifests/{identifier}"), headers);
        let answer = self.ask(&call, deadline).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.refusal(answer, "check the repository name and the tag").await);
        }
        let announced = answer.text_header(DOCKER_CONTENT_DIGEST).and_then(|d| d.parse().ok());
        let content_type = answer.text_header(CONTENT_TYPE).unwrap_or_default().to_owned();
        let version = answer.header(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")).cloned();
        let bytes = answer.read_all(MANIFEST_BYTES_MAX).await?;
        for promised in [asked, announced].iter().flatten() {
            promised.verify(&bytes).map_err(|e| {
                Error::from(e).context(format!("{}: manifest {identifier}", self.name()))
            })?;
        }
        let digest = asked.or(announced).unwrap_or_else(|| Digest::sha256_of(&bytes));
        Ok((Manifest { media_type: media_type(&content_type, &bytes), digest, bytes }, version))
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
        let call = Call::get(format!("blobs/{}", blob.digest), headers);
        let answer = self.ask(&call, deadline).await?;
        if !is_success(answer.status()) {
            return Err(self.refusal(answer, "the repository does not have this blob").await);
        }
        if !self.is_own(answer.url()) {
            self.locations.remember(blob.digest, answer.url().clone());
        }
        Ok(answer)
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
}
