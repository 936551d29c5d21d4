//! Seals: what a file of the cache says it is, so that another one in its place is found out.
//!
//! A checksum tells that bytes are whole; it does not tell whose they are. A file that a rescued disk
//! or a careless copy put under another's name is whole, and would be believed.

use crate::layout::Digest;

/// The bytes of a seal.
pub const SEAL_BYTES: usize = 32;

/// The seal of `content` as `what` ("index", "sums") of the thing that `digest` names.
pub fn seal(what: &str, digest: &Digest, content: &[u8]) -> [u8; SEAL_BYTES] {
    let mut hasher = crate::layout::digest::Hasher::sha256();
    hasher.update(format!("layoutfs {what} of {digest}, {} bytes\n", content.len()).as_bytes());
    hasher.update(content);
    match hasher.finish() {
        Digest::Sha256(bytes) => bytes,
        Digest::Sha512(_) => [0; SEAL_BYTES],
    }
}

/// The content in front of its seal; `None` when it is not sealed as this.
pub fn opened<'a>(what: &str, digest: &Digest, sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (content, found) = sealed.split_last_chunk::<SEAL_BYTES>()?;
    (seal(what, digest, content) == *found).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_holds_for_its_own_content_and_name_only() {
        let (a, b) = (Digest::sha256_of(b"a"), Digest::sha256_of(b"b"));
        let mut sealed = b"content".to_vec();
        sealed.extend_from_slice(&seal("sums", &a, b"content"));
        assert_eq!(opened("sums", &a, &sealed), Some(&b"content"[..]));
        assert_eq!(opened("sums", &b, &sealed), None);
        assert_eq!(opened("index", &a, &sealed), None);
        sealed[0] ^= 1;
        assert_eq!(opened("sums", &a, &sealed), None);
        assert_eq!(opened("sums", &a, b"short"), None);
    }
}
