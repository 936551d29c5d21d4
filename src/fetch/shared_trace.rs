//! Traces in a registry, beside the image that they are of: pushed, and found by their use.
//!
//! Anybody who may push there can have put one there. So a trace is a hint and no more: it is read
//! within limits, and says at most that all of the image's own layers be fetched early.

use bytes::Bytes;

use super::registry::tries::Tries;
use super::registry::{Attached, Registry};
use super::{Deadline, Error, ErrorKind, Result};
use crate::layout::Digest;
use crate::layout::oci::Descriptor;
use crate::layout::oci::referrer::EMPTY;
use crate::layout::oci::trace_artifact::{TRACE_ARTIFACT, TRACE_USE, TraceArtifact};
use crate::layout::trace::{TRACE_BYTES_MAX, Trace};

/// What a registry lists.
#[derive(Debug)]
pub struct Listed {
    /// The artifact of that use that is listed last.
    pub artifact: Option<Digest>,
    /// Uses of which there are traces, each once.
    pub uses: Vec<String>,
}

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
    let mut tries = Tries::new(deadline);
    let found = loop {
        match registry.manifest(&artifact.to_string(), tries.deadline()).await {
            Ok(manifest) => {
                break TraceArtifact::parse(&format!("trace {artifact}"), &manifest.bytes)?;
            }
            Err(error) => tries.again(error).await?,
        }
    };
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
