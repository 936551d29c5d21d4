//! Writing to a repository: blobs and manifests, each by its digest, so that doing it twice does
//! no harm (distribution-spec 1.1, "Pushing Blobs", "Pushing Manifests").

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use reqwest::{Method, StatusCode, Url};

use super::super::http::redirect::resolve;
use super::super::http::{Answer, Content};
use super::super::{Deadline, Error, ErrorKind, Result, Source as _};
use super::ask::{Call, Target};
use super::tries::Tries;
use super::{DOCKER_CONTENT_DIGEST, MANIFEST_BYTES_MAX, Registry};
use crate::layout::reference::is_tag;
use crate::layout::{Blob, Digest};

/// A registry that knows what a manifest's `subject` is says so with this (distribution-spec,
/// "Pushing Manifests with Subject").
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// A blob that the repository has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// Digest and size.
    pub blob: Blob,
    /// Its bytes were sent: the repository did not have it before.
    pub is_new: bool,
}

/// A manifest that the repository has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PushedManifest {
    /// The digest of its bytes.
    pub digest: Digest,
    /// Whom the registry lists it as a referrer of; `None` from one that keeps no such lists.
    pub subject: Option<Digest>,
}

impl Registry {
    /// Sees to it that the repository has a blob of these bytes; sends them only if it has not.
    /// What is temporary is tried again, within the patience of `deadline`, which the time that
    /// bytes take does not count against.
    ///
    /// # Errors
    /// [`ErrorKind::Authentication`] without the right to push, and what requests fail with.
    pub async fn push_blob(&self, bytes: &Bytes, deadline: Deadline) -> Result<Pushed> {
        let blob = Blob { digest: Digest::sha256_of(bytes), size: bytes.len() as u64 };
        let mut tries = Tries::new(deadline);
        loop {
            match self.push_blob_once(&blob, bytes, &mut tries).await {
                Ok(is_new) => return Ok(Pushed { blob, is_new }),
                Err(error) => tries.again(error).await?,
            }
        }
    }

    /// Puts a manifest under `identifier`, a tag or its digest. All that it refers to must be in the
    /// repository; its `subject` need not be.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] beyond [`MANIFEST_BYTES_MAX`] and for an identifier that is none,
    /// [`ErrorKind::DigestMismatch`] for that of other bytes, and as [`push_blob`](Self::push_blob).
    pub async fn push_manifest(
        &self,
        bytes: &Bytes,
        media_type: &str,
        identifier: &str,
        deadline: Deadline,
    ) -> Result<PushedManifest> {
        let pushed = self.put_manifest(bytes, media_type, identifier, None, deadline).await?;
        pushed.ok_or_else(|| {
            let reason = "the registry refused a condition that was not set";
            Error::new(ErrorKind::Protocol, format!("{}: {identifier}: {reason}", self.name()))
        })
    }

    /// As [`push_manifest`](Self::push_manifest); with a `condition` (If-Match, If-None-Match) only
    /// if it holds, else `None`. Registries may ignore it.
    pub(super) async fn put_manifest(
        &self,
        bytes: &Bytes,
        media_type: &str,
        identifier: &str,
        condition: Option<(HeaderName, HeaderValue)>,
        deadline: Deadline,
    ) -> Result<Option<PushedManifest>> {
        let what = format!("{}: manifest {identifier}", self.name());
        let invalid = |reason: String| Error::new(ErrorKind::Invalid, format!("{what}: {reason}"));
        let digest = match identifier.parse::<Digest>() {
            Ok(digest) => {
                digest.verify(bytes).map_err(|e| Error::from(e).context(&what))?;
                digest
            }
            Err(_) if is_tag(identifier) => Digest::sha256_of(bytes),
            Err(_) => return Err(invalid("this is no tag and no digest".to_owned())),
        };
        if bytes.len() as u64 > MANIFEST_BYTES_MAX {
            let size = bytes.len();
            return Err(invalid(format!("{size} bytes, expected at most {MANIFEST_BYTES_MAX}")));
        }
        let media_type = HeaderValue::from_str(media_type)
            .map_err(|_| invalid(format!("media type {media_type:?} is none")))?;
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, media_type)]);
        headers.extend(condition);
        let target = Target::Path(format!("manifests/{identifier}"));
        let call = Call::push(Method::PUT, target, headers, Content::Bytes(bytes.clone()));
        let mut tries = Tries::new(deadline);
        loop {
            match self.put_manifest_once(&call, digest, tries.deadline()).await {
                Ok(put) => return Ok(put),
                Err(error) => tries.again(error).await?,
            }
        }
    }

    async fn put_manifest_once(
        &self,
        call: &Call,
        digest: Digest,
        deadline: Deadline,
    ) -> Result<Option<PushedManifest>> {
        let answer = self.ask(call, deadline).await?;
        if answer.status() == StatusCode::PRECONDITION_FAILED {
            return Ok(None);
        }
        if !is_stored(answer.status()) {
            return Err(self.push_refusal(answer, "the manifest").await);
        }
        check_digest(&answer, &digest)?;
        let subject = answer.text_header(OCI_SUBJECT).and_then(|subject| subject.parse().ok());
        Ok(Some(PushedManifest { digest, subject }))
    }

    /// One attempt; `true` if bytes were sent. It begins with the question whether that is needed,
    /// which also tells whether the answer to the attempt before was all that was lost.
    async fn push_blob_once(&self, blob: &Blob, bytes: &Bytes, tries: &mut Tries) -> Result<bool> {
        if self.has_blob(blob, tries.deadline()).await? {
            return Ok(false);
        }
        let _connection = self.connection.get(tries.deadline()).await?;
        let mut url = self.open_upload(tries.deadline()).await?;
        // What is in the query stays: it is the registry's.
        url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let octets = HeaderValue::from_static("application/octet-stream");
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, octets)]);
        let content = Content::Bytes(bytes.clone());
        let call = Call::push(Method::PUT, Target::Given(url), headers, content);
        let answer = self.ask(&call, tries.deadline().renewed()).await;
        tries.renew();
        let answer = answer?;
        if answer.status() == StatusCode::NOT_FOUND {
            // A registry of several servers, or one that was started anew, has lost the upload.
            let lost = answer.into_error("the registry does not know the upload that it began");
            return Err(Error { kind: ErrorKind::Network, ..lost.await });
        }
        if !is_stored(answer.status()) {
            let what = format!("a blob of {} bytes", blob.size);
            return Err(self.push_refusal(answer, &what).await);
        }
        check_digest(&answer, &blob.digest)?;
        Ok(true)
    }

    /// The repository has this blob. Where the registry does not tell, it has not.
    async fn has_blob(&self, blob: &Blob, deadline: Deadline) -> Result<bool> {
        let target = Target::Path(format!("blobs/{}", blob.digest));
        let call = Call::push(Method::HEAD, target, HeaderMap::new(), Content::Nothing);
        let answer = self.ask(&call, deadline).await?;
        if answer.status() == StatusCode::OK {
            let size = answer.text_header(CONTENT_LENGTH).and_then(|size| size.parse().ok());
            // One that has another size is no blob of this digest: it is to be replaced.
            return Ok(size.is_none_or(|size: u64| size == blob.size));
        }
        let error = self.push_refusal(answer, "a blob").await;
        match error.kind {
            ErrorKind::Authentication | ErrorKind::Network => Err(error),
            _ => Ok(false),
        }
    }

    /// Where the bytes of a new upload go.
    async fn open_upload(&self, deadline: Deadline) -> Result<Url> {
        let target = Target::Path("blobs/uploads/".to_owned());
        let content = Content::Bytes(Bytes::new());
        let call = Call::push(Method::POST, target, HeaderMap::new(), content);
        let answer = self.ask(&call, deadline).await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(self.push_refusal(answer, "a blob").await);
        }
        match answer.header(LOCATION) {
            Some(location) => resolve("upload address", answer.url(), location),
            None => Err(answer.wrong("202 without Location, expected where the upload goes on")),
        }
    }

    /// The error that the answer to a part of a push is, with a hint that fits it.
    async fn push_refusal(&self, answer: Answer, what: &str) -> Error {
        let (name, registry) = (self.name(), self.reference.registry());
        let hint = match answer.status().as_u16() {
            401 | 403 if !self.is_own(answer.url()) => {
                "the storage that the registry sends uploads to refused it".to_owned()
            }
            401 | 403 => format!(
                "pushing to {name} needs the right to write there: run \"podman login {registry}\" \
                 as somebody who has it, or pass --authfile"
            ),
            404 => format!("the registry has no repository {name}: create it there first"),
            405 => format!("{registry} takes no pushes: it is read-only, or a mirror of another"),
            413 => format!(
                "{what} is more than the registry, or a proxy before it, takes: \
                 raise the limit there"
            ),
            429 => "the registry limits how much is asked of it: try again later".to_owned(),
            _ => String::new(),
        };
        answer.into_error(&hint).await
    }
}

/// What was sent is there: 201, which is in the specification, and what others answer.
fn is_stored(status: StatusCode) -> bool {
    matches!(status, StatusCode::CREATED | StatusCode::OK | StatusCode::NO_CONTENT)
}

/// The registry names what it stored by the digest that we know.
fn check_digest(answer: &Answer, expected: &Digest) -> Result<()> {
    let said: Option<Digest> =
        answer.text_header(DOCKER_CONTENT_DIGEST).and_then(|said| said.parse().ok());
    match said {
        // It may count in another algorithm than we do.
        Some(said) if said.algorithm() == expected.algorithm() && said != *expected => {
            Err(answer.wrong(format!("the registry stored {said}, expected {expected}")))
        }
        _ => Ok(()),
    }
}
