//! A trace as a manifest that refers to its image, and says which use it is of.

use serde_json::json;

use super::referrer::{OCI_EMPTY, artifact_type, empty, reference};
use super::{Descriptor, Manifest, OCI_MANIFEST};
use crate::layout::digest::Blob;
use crate::layout::error::{Error, Result};

/// What the manifest is, and what is in it.
pub const TRACE_ARTIFACT: &str = "application/vnd.layoutfs.trace.v1";

/// On the manifest, and so in lists of referrers: the use that the trace is of.
pub const TRACE_USE: &str = "io.layoutfs.trace.use";

/// The trace of one use of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceArtifact {
    /// The manifest of the image.
    pub subject: Descriptor,
    /// The use.
    pub used_for: String,
    /// The trace, as [`Trace::encode`](crate::layout::trace::Trace::encode) writes it.
    pub trace: Blob,
}

impl TraceArtifact {
    /// The manifest that says so. The same content gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": TRACE_ARTIFACT,
            "config": reference(OCI_EMPTY, &empty()),
            "layers": [reference(TRACE_ARTIFACT, &self.trace)],
            "subject": reference(&self.subject.media_type, &self.subject.blob),
            "annotations": { TRACE_USE: self.used_for },
        });
        manifest.to_string().into_bytes()
    }

    /// Reads such a manifest; `name` names it in errors.
    ///
    /// # Errors
    /// [`Error::Document`] for anything else; [`Error::Limit`] as [`Manifest::parse`].
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        let manifest = Manifest::parse(name, bytes)?;
        let wrong = |reason: String| Error::document(name, reason);
        let kind = artifact_type(&manifest);
        if kind != TRACE_ARTIFACT {
            return Err(wrong(format!("artifact type {kind:?}, expected {TRACE_ARTIFACT:?}")));
        }
        let [trace] = manifest.layers.as_slice() else {
            return Err(wrong(format!("{} traces, expected one", manifest.layers.len())));
        };
        let trace = trace.blob;
        let subject = manifest.subject.ok_or_else(|| wrong("it has no subject".to_owned()))?;
        let used_for = manifest.annotations.get(TRACE_USE).cloned();
        let used_for = used_for.ok_or_else(|| wrong(format!("no annotation {TRACE_USE}")))?;
        Ok(TraceArtifact { subject, used_for, trace })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Value;

    use super::*;
    use crate::layout::digest::Digest;

    #[test]
    fn what_is_written_is_read_again_and_what_lacks_something_is_refused() {
        let blob = |text: &[u8]| Blob { digest: Digest::sha256_of(text), size: text.len() as u64 };
        let subject = Descriptor::new(OCI_MANIFEST, blob(b"image"));
        let artifact = TraceArtifact { subject, used_for: "a".to_owned(), trace: blob(b"trace") };
        let bytes = artifact.to_bytes();
        assert_eq!(TraceArtifact::parse("it", &bytes), Ok(artifact));
        for (path, change, words) in [
            ("/artifactType", json!("application/x"), "expected"),
            ("/subject", Value::Null, "no subject"),
            ("/annotations", json!({}), "no annotation"),
            ("/layers", json!([]), "0 traces"),
        ] {
            let mut value: Value = serde_json::from_slice(&bytes).unwrap();
            *value.pointer_mut(path).unwrap() = change;
            let refused = TraceArtifact::parse("it", value.to_string().as_bytes());
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains(words), "{path}: {refused}");
        }
    }
}
