//! What refers to a manifest: listed, and added to (distribution-spec 1.1, "Listing Referrers" and
//! "Pushing Manifests with Subject"), also where the registry keeps no such lists.

use std::collections::HashSet;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{
    ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH, LINK,
};

use super::super::http::Answer;
use super::super::http::redirect::resolve;
use super::super::{Deadline, Error, ErrorKind, Result, Source as _};
use super::ask::{Call, Target};
use super::tries::Tries;
use super::{MANIFEST_BYTES_MAX, Manifest, Registry, link, media_type};
use crate::layout::oci::{self, Descriptor, ImageIndex, OCI_INDEX, OCI_MANIFEST, referrer};
use crate::layout::{Blob, Digest};

/// Most referrers that one list may have, after filtering. Images have some tens: signatures and
/// bills of materials of each build.
pub const REFERRERS_MAX: usize = 1000;

/// Most pages of one list: as many as there may be referrers, some to a page.
pub const REFERRERS_PAGES_MAX: usize = 100;

/// Most bytes of all pages together: four documents of the largest size, or 40,000 referrers.
const REFERRERS_BYTES_MAX: u64 = 4 * MANIFEST_BYTES_MAX;

/// How often a list under a tag is written because others wrote to it meanwhile.
const ROUNDS_MAX: usize = 5;

/// Which filters the registry has applied.
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// A manifest that refers to another, and is found by that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Digest and size of the manifest that was pushed.
    pub blob: Blob,
    /// Who lists it.
    pub listed: Listed,
}

/// Who lists a referrer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// The registry itself.
    ByRegistry,
    /// An image index under this tag, which clients keep.
    UnderTag(String),
}

/// The referrers found so far.
struct Found<'a> {
    artifact_type: Option<&'a str>,
    list: Vec<Descriptor>,
    seen: HashSet<Digest>,
}

/// A page of the registry's own list.
struct Page {
    index: ImageIndex,
    bytes: u64,
    is_filtered: bool,
    next: Option<Target>,
}

impl Registry {
    /// The manifests whose `subject` is `subject`; with `artifact_type` only those of that type. In
    /// the registry's order, each once. None is no error, nor is it that the repository has no such
    /// subject. Nothing here is proved: each is to be read by its digest. Each request has the
    /// patience of `deadline` anew; what is temporary is tried again.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] beyond [`REFERRERS_MAX`] and [`REFERRERS_PAGES_MAX`] and for a list
    /// that is no image index, [`ErrorKind::Protocol`] for pages that lead elsewhere, and what
    /// requests fail with.
    pub async fn referrers(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
        deadline: Deadline,
    ) -> Result<Vec<Descriptor>> {
        let what = format!("{}: referrers of {subject}", self.name());
        let mut found = Found { artifact_type, list: Vec::new(), seen: HashSet::new() };
        let query = artifact_type.map(|t| format!("?artifactType={}", percent_encoded(t)));
        let mut target = Target::Path(format!("referrers/{subject}{}", query.unwrap_or_default()));
        let mut left_bytes = REFERRERS_BYTES_MAX;
        for number in 0..REFERRERS_PAGES_MAX {
            let page = self.page(target, &what, left_bytes, deadline.renewed()).await?;
            let Some(page) = page else {
                if number > 0 {
                    let message = format!("{what}: page {} is missing", number + 1);
                    return Err(Error::new(ErrorKind::Protocol, message));
                }
                let tag = referrer::tag_of(subject);
                if let Some((list, _)) = self.list_under_tag(&tag, deadline.renewed()).await? {
                    found.add(ImageIndex::parse(&what, &list.bytes)?, false, &what)?;
                }
                return Ok(found.list);
            };
            found.add(page.index, page.is_filtered, &what)?;
            left_bytes = left_bytes.saturating_sub(page.bytes);
            match page.next {
                Some(next) => target = next,
                None => return Ok(found.list),
            }
        }
        let message = format!("{what}: more than {REFERRERS_PAGES_MAX} pages");
        Err(Error::new(ErrorKind::Invalid, message))
    }

    /// Pushes a manifest that has a `subject`, by its digest, and sees to it that it is found as a
    /// referrer of that. Its config and layers must be in the repository.
    ///
    /// Where the registry keeps no lists, there is an image index under a tag, which every client
    /// reads, changes and writes. Promised is that the list had this manifest when it was read last,
    /// after our write, and that we took out nothing that we had read. What two clients write at
    /// once can still undo each other, theirs ours or ours theirs, unless the registry respects
    /// `If-Match` and `If-None-Match`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for what is no such manifest, [`ErrorKind::Busy`] when others change
    /// the list as often as we do, and as [`push_manifest`](Self::push_manifest).
    pub async fn attach(&self, manifest: &Bytes, deadline: Deadline) -> Result<Attached> {
        let blob = Blob { digest: Digest::sha256_of(manifest), size: manifest.len() as u64 };
        let parsed = oci::Manifest::parse(&format!("manifest {}", blob.digest), manifest)?;
        let own_type = parsed.media_type.clone().unwrap_or_else(|| OCI_MANIFEST.to_owned());
        let Some(subject) = parsed.subject.as_ref().map(|subject| subject.blob.digest) else {
            let message = format!("manifest {}: it has no subject to be attached to", blob.digest);
            return Err(Error::new(ErrorKind::Invalid, message));
        };
        let identifier = blob.digest.to_string();
        let pushed = self.push_manifest(manifest, &own_type, &identifier, deadline).await?;
        if pushed.subject == Some(subject) {
            return Ok(Attached { blob, listed: Listed::ByRegistry });
        }
        let entry = referrer::entry(&parsed, own_type, blob);
        let tag = referrer::tag_of(&subject);
        self.add_under_tag(&tag, &entry, deadline).await?;
        Ok(Attached { blob, listed: Listed::UnderTag(tag) })
    }

    /// Reads the list until it has `entry`, and writes it there when it has not.
    async fn add_under_tag(&self, tag: &str, entry: &Descriptor, deadline: Deadline) -> Result<()> {
        let what = format!("{}: tag {tag}", self.name());
        for round in 0..=ROUNDS_MAX {
            let (list, version) = self.list_under_tag(tag, deadline.renewed()).await?.unzip();
            let bytes = list.as_ref().map(|list| &list.bytes[..]);
            let added = referrer::add_to_list(&what, bytes, entry)?;
            let Some(added) = added else { return Ok(()) };
            if round < ROUNDS_MAX {
                let condition = match (&list, version.flatten()) {
                    (None, _) => Some((IF_NONE_MATCH, HeaderValue::from_static("*"))),
                    (Some(_), version) => version.map(|version| (IF_MATCH, version)),
                };
                let deadline = deadline.renewed();
                // Where the condition does not hold, the next round reads what is there instead.
                self.put_manifest(&added.into(), OCI_INDEX, tag, condition, deadline).await?;
            }
        }
        let message = format!(
            "{what}: others changed the list of referrers {ROUNDS_MAX} times while it was written; \
             try again"
        );
        Err(Error::new(ErrorKind::Busy, message))
    }

    /// The document under a tag and its version, if it has one; `None` when there is no such tag.
    async fn list_under_tag(
        &self,
        tag: &str,
        deadline: Deadline,
    ) -> Result<Option<(Manifest, Option<HeaderValue>)>> {
        let mut tries = Tries::new(deadline);
        loop {
            match self.versioned_manifest(tag, tries.deadline()).await {
                Ok(list) => return Ok(Some(list)),
                Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
                Err(error) => tries.again(error).await?,
            }
        }
    }

    /// A page of the registry's list; `None` when the registry has no such thing.
    async fn page(
        &self,
        target: Target,
        what: &str,
        limit_bytes: u64,
        deadline: Deadline,
    ) -> Result<Option<Page>> {
        let accepted = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(OCI_INDEX))]);
        let call = Call { target, ..Call::get(String::new(), accepted) };
        let mut tries = Tries::new(deadline);
        loop {
            match self.page_once(&call, what, limit_bytes, tries.deadline()).await {
                Ok(page) => return Ok(page),
                Err(error) => tries.again(error).await?,
            }
        }
    }

    async fn page_once(
        &self,
        call: &Call,
        what: &str,
        limit_bytes: u64,
        deadline: Deadline,
    ) -> Result<Option<Page>> {
        let answer = self.ask(call, deadline).await?;
        match answer.status() {
            StatusCode::OK => {}
            // Unknown addresses are not found, or take no method at all.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => return Ok(None),
            _ => return Err(self.refusal(answer, "").await),
        }
        let content_type = answer.text_header(CONTENT_TYPE).unwrap_or_default().to_owned();
        let filters = answer.text_header(OCI_FILTERS_APPLIED).unwrap_or_default();
        let is_filtered = filters.split(',').any(|filter| filter.trim() == "artifactType");
        let next = self.next_page(&answer)?;
        let bytes = answer.read_all(limit_bytes.min(MANIFEST_BYTES_MAX)).await?;
        if media_type(&content_type, &bytes) != OCI_INDEX {
            // Whatever answers every address with a page of its own knows nothing of referrers.
            return Ok(None);
        }
        let index = ImageIndex::parse(what, &bytes)?;
        Ok(Some(Page { index, bytes: bytes.len() as u64, is_filtered, next }))
    }

    /// The page after the one that `answer` brings: of this registry, or it is an error.
    fn next_page(&self, answer: &Answer) -> Result<Option<Target>> {
        let links = answer.text_headers(LINK);
        let Some(next) = links.iter().find_map(|link| link::next_page(link)) else {
            return Ok(None);
        };
        let next = HeaderValue::from_str(next).map_err(|_| answer.wrong("a Link is no URL"))?;
        let url = resolve("next page", answer.url(), &next)?;
        if !self.is_own(&url) {
            return Err(answer.wrong("the next page is at another server"));
        }
        Ok(Some(Target::Given(url)))
    }
}

impl Found<'_> {
    /// Adds what is new and of the right type; a list that is filtered already is taken as it is.
    fn add(&mut self, index: ImageIndex, is_filtered: bool, what: &str) -> Result<()> {
        let wanted = self.artifact_type.filter(|_| !is_filtered);
        for descriptor in index.manifests {
            let own = descriptor.artifact_type.as_deref();
            if wanted.is_some_and(|wanted| own != Some(wanted))
                || !self.seen.insert(descriptor.blob.digest)
            {
                continue;
            }
            if self.list.len() == REFERRERS_MAX {
                let message = format!("{what}: more than {REFERRERS_MAX}");
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            self.list.push(descriptor);
        }
        Ok(())
    }
}

/// `text` as the value of a query parameter: all but unreserved characters encoded (RFC 3986, 2.3).
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_one_value_of_a_query() {
        assert_eq!(percent_encoded("application/vnd.x+json"), "application%2Fvnd.x%2Bjson");
        assert_eq!(percent_encoded("a&b=c ü~"), "a%26b%3Dc%20%C3%BC~");
    }
}
