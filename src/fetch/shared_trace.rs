//! Traces in a registry, beside the image that they are of: pushed, and found by their use.
//!
//! Anybody who may push there can have put one there. So a trace is a hint and no more: it is read
//! within limits, and says at most that all of the image's own layers be fetched early.

use bytes::Bytes;

use super::registry::tries::Tries;
use super::registry::{Attached, Registry};
use super::{Deadline, Error, ErrorKind, Result};
use crate::layout::oci::Descriptor;
use crate::layout::oci::referrer::EMPTY;
use crate::layout::oci::trace_artifact::{TRACE_ARTIFACT, TRACE_USE, TraceArtifact};
use crate::layout::trace::{TRACE_BYTES_MAX, Trace};
use crate::layout::{Blob, Digest};

/// What a registry lists.
#[derive(Debug)]
pub struct Listed {
    /// The artifact of that use that is listed last.
    pub artifact: Option<Digest>,
    /// Uses of which there are traces, each once.
    pub uses: Vec<String>,
}

/// A trace that a registry has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// The manifest that says which use it is of.
    pub artifact: Digest,
    /// The use.
    pub used_for: String,
    /// The trace itself, which was not looked at.
    pub trace: Blob,
}

/// Traces of one image that are told: more than a person reads.
pub const TOLD_MAX: usize = 64;

/// Pushes the trace of a use of `image`, which has been read as one.
///
/// # Errors
/// As [`Registry::push_blob`] and [`Registry::attach`].
pub async fn push(
    registry: &Registry,
    image: &Descriptor,
    used_for: &str,
    trace: &Trace,
    deadline: Deadline,
) -> Result<Attached> {
    let bytes = Bytes::from(trace.encode());
    let trace = registry.push_blob(&bytes, deadline.renewed()).await?.blob;
    registry.push_blob(&Bytes::from_static(EMPTY), deadline.renewed()).await?;
    let (subject, used_for) = (image.clone(), used_for.to_owned());
    let manifest = TraceArtifact { subject, used_for, trace }.to_bytes().into();
    registry.attach(&manifest, deadline.renewed()).await
}

/// What `registry` lists for the image whose manifest is `image`.
///
/// # Errors
/// As [`Registry::referrers`].
pub async fn listed(
    registry: &Registry,
    image: &Digest,
    used_for: &str,
    deadline: Deadline,
) -> Result<Listed> {
    let found = registry.referrers(image, Some(TRACE_ARTIFACT), deadline).await?;
    let mut listed = Listed { artifact: None, uses: Vec::new() };
    for one in found {
        let Some(of) = one.annotations.get(TRACE_USE) else { continue };
        if of == used_for {
            listed.artifact = Some(one.blob.digest);
        }
        if !listed.uses.contains(of) {
            listed.uses.push(of.clone());
        }
    }
    Ok(listed)
}

/// The traces that `registry` lists for the image whose manifest is `image`, the first [`TOLD_MAX`] of
/// them. What is none, or of another image, is left out.
///
/// # Errors
/// As [`Registry::referrers`], and what requests fail with.
pub async fn all(registry: &Registry, image: &Digest, deadline: Deadline) -> Result<Vec<Shared>> {
    let found = registry.referrers(image, Some(TRACE_ARTIFACT), deadline).await?;
    let mut all = Vec::new();
    for one in found.iter().take(TOLD_MAX) {
        let artifact = one.blob.digest;
        match manifest(registry, &artifact, deadline.renewed()).await {
            Ok(of) if of.subject.blob.digest == *image => {
                all.push(Shared { artifact, used_for: of.used_for, trace: of.trace });
            }
            Ok(_) => tracing::debug!(%artifact, "a trace of another image"),
            Err(error) if matches!(error.kind, ErrorKind::Invalid | ErrorKind::NotFound) => {
                tracing::debug!(%artifact, %error, "listed, and no trace");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// The trace in `artifact`, if it is of the image whose manifest is `image`.
///
/// # Errors
/// [`ErrorKind::Invalid`] for another image's and what is none, [`ErrorKind::DigestMismatch`], and
/// what requests fail with.
pub async fn fetch(
    registry: &Registry,
    artifact: &Digest,
    image: &Digest,
    deadline: Deadline,
) -> Result<Trace> {
    let found = manifest(registry, artifact, deadline).await?;
    let mut tries = Tries::new(deadline.renewed());
    let bytes = loop {
        match registry.blob_bytes(&found.trace, TRACE_BYTES_MAX, tries.deadline()).await {
            Ok(bytes) => break bytes,
            Err(error) => tries.again(error).await?,
        }
    };
    let trace = Trace::parse(&bytes)?;
    for of in [trace.image, found.subject.blob.digest] {
        if of != *image {
            let message = format!("it is of the image {of}, and this image is {image}");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
    }
    Ok(trace)
}

async fn manifest(
    registry: &Registry,
    artifact: &Digest,
    deadline: Deadline,
) -> Result<TraceArtifact> {
    let mut tries = Tries::new(deadline);
    loop {
        match registry.manifest(&artifact.to_string(), tries.deadline()).await {
            Ok(manifest) => {
                let name = format!("trace {artifact}");
                return Ok(TraceArtifact::parse(&name, &manifest.bytes)?);
            }
            Err(error) => tries.again(error).await?,
        }
    }
}
