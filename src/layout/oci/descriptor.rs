//! Descriptors: how one document refers to another (image-spec `descriptor.md`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Number;

use super::platform::Platform;
use super::{DOCUMENT_BYTES_MAX, REFERENCE_TYPE};
use crate::layout::digest::Blob;
use crate::layout::error::{Error, Result};

/// Media type, digest and size, with what else the referring document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Verbatim.
    pub media_type: String,
    /// Digest and size.
    pub blob: Blob,
    /// What an artifact is; never set for container images.
    pub artifact_type: Option<String>,
    /// Annotations of the reference, not of what it refers to.
    pub annotations: BTreeMap<String, String>,
    /// What the image runs on, in an index.
    pub platform: Option<Platform>,
    /// The referenced bytes themselves, decoded and proved.
    pub data: Option<Vec<u8>>,
}

/// A descriptor as JSON has it. `oci_spec`'s own refuses null annotations and a platform without
/// an `os`, both of which tools have written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawDescriptor {
    media_type: Option<String>,
    digest: String,
    size: Number,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, Option<String>>>,
    platform: Option<RawPlatform>,
    data: Option<String>,
}

#[derive(Deserialize)]
struct RawPlatform {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
}

impl Descriptor {
    /// A descriptor with nothing but the required fields.
    pub fn new(media_type: impl Into<String>, blob: Blob) -> Self {
        Descriptor {
            media_type: media_type.into(),
            blob,
            artifact_type: None,
            annotations: BTreeMap::new(),
            platform: None,
            data: None,
        }
    }

    /// The image's name in this layout: usually the bare tag (image-spec `annotations.md`).
    pub fn ref_name(&self) -> Option<&str> {
        self.annotations.get("org.opencontainers.image.ref.name").map(String::as_str)
    }

    /// The full reference, as containerd and Docker write it.
    pub fn image_name(&self) -> Option<&str> {
        self.annotations.get("io.containerd.image.name").map(String::as_str)
    }

    /// Something about an image (provenance, SBOM, signature) rather than an image.
    pub fn is_attestation(&self) -> bool {
        self.annotations.contains_key(REFERENCE_TYPE)
            || self.platform.as_ref().is_some_and(Platform::is_unknown)
    }
}

impl RawDescriptor {
    /// Checks what JSON cannot: digest syntax and embedded bytes.
    pub(super) fn check(self, document: &str) -> Result<Descriptor> {
        let named = |e: Error| Error::document(document, e.to_string());
        let digest = self.digest.parse().map_err(named)?;
        // "This REQUIRED property specifies the size, in bytes", an int64; and so are sizes of files.
        let size = self.size.as_u64().filter(|size| *size <= i64::MAX as u64).ok_or_else(|| {
            let reason = format!("size {}: expected 0 to {}", self.size, i64::MAX);
            Error::document(document, reason)
        })?;
        let blob = Blob { digest, size };
        let data = self.data.map(|text| embedded(&text, &blob)).transpose().map_err(named)?;
        Ok(Descriptor {
            media_type: self.media_type.unwrap_or_default(),
            blob,
            artifact_type: self.artifact_type.filter(|t| !t.is_empty()),
            annotations: annotations(self.annotations),
            platform: self.platform.map(|raw| {
                Platform::new(
                    &raw.os.unwrap_or_default(),
                    &raw.architecture.unwrap_or_default(),
                    raw.variant.as_deref(),
                )
            }),
            data,
        })
    }
}

/// Annotations without those that are null.
pub(super) fn annotations(
    raw: Option<BTreeMap<String, Option<String>>>,
) -> BTreeMap<String, String> {
    raw.unwrap_or_default().into_iter().filter_map(|(k, v)| Some((k, v?))).collect()
}

/// Decodes and proves a descriptor's `data` (image-spec `descriptor.md`, "Embedded Content").
fn embedded(text: &str, blob: &Blob) -> Result<Vec<u8>> {
    let document = || format!("data embedded in the descriptor of {}", blob.digest);
    if blob.size > DOCUMENT_BYTES_MAX {
        return Err(Error::Limit { what: document(), limit: DOCUMENT_BYTES_MAX });
    }
    let bytes =
        decode_base64(text).ok_or_else(|| Error::document(document(), "it is not base64"))?;
    blob.verify(&bytes).map_err(|e| Error::document(document(), e.to_string()))?;
    Ok(bytes)
}

/// RFC 4648 section 4: the standard alphabet, padded, no line breaks.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(4) {
        return None;
    }
    let padding = digits.iter().rev().take_while(|b| **b == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    for group in digits[..digits.len() - padding].chunks(4) {
        let mut bits = 0u32;
        for digit in group {
            bits = bits << 6 | sextet(*digit)?;
        }
        bits <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

fn sextet(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn base64_decodes_as_rfc_4648_says() {
        let cases: [(&str, &[u8]); 7] = [
            ("", b""),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYg==", b"foob"),
            ("Zm9vYmE=", b"fooba"),
            ("/+8A", &[0xff, 0xef, 0x00]),
        ];
        for (text, bytes) in cases {
            assert_eq!(decode_base64(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["Z", "Zg", "Zg=", "Z===", "====", "Zm9v\n", "Zm=v", "Zm-_"] {
            assert_eq!(decode_base64(text), None, "{text:?}");
        }
    }
}
