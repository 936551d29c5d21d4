//! Digests: parsing, hashing while reading, comparing with a descriptor.

mod sha256;

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha512};

use super::error::{Error, Result};
pub use sha256::{BLOCK_BYTES, Sha256, State};

/// A digest of a registered algorithm (image-spec `descriptor.md`, "Registered algorithms").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// `sha256:` and 64 hexadecimal digits.
    Sha256([u8; 32]),
    /// `sha512:` and 128 hexadecimal digits.
    Sha512([u8; 64]),
}

/// A blob: a digest and the exact number of bytes that have it. What a [`fetch`](crate::fetch)
/// source is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Blob {
    /// Digest of the bytes as stored (usually compressed).
    pub digest: Digest,
    /// Size in bytes, as the descriptor says.
    pub size: u64,
}

impl Digest {
    /// The digest of `bytes` under sha256.
    pub fn sha256_of(bytes: &[u8]) -> Self {
        Digest::Sha256(sha2::Sha256::digest(bytes).into())
    }

    /// `sha256` or `sha512`: the directory below `blobs/` (image-spec `image-layout.md`).
    pub fn algorithm(&self) -> &'static str {
        match self {
            Digest::Sha256(_) => "sha256",
            Digest::Sha512(_) => "sha512",
        }
    }

    /// The encoded part: lower-case hexadecimal.
    pub fn hex(&self) -> String {
        let bytes: &[u8] = match self {
            Digest::Sha256(b) => b,
            Digest::Sha512(b) => b,
        };
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The first twelve hexadecimal digits: enough for people.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    /// A hasher of the same algorithm.
    pub fn hasher(&self) -> Hasher {
        match self {
            Digest::Sha256(_) => Hasher::Sha256(Sha256::default()),
            Digest::Sha512(_) => Hasher::Sha512(Box::new(Sha512::new())),
        }
    }

    /// Compares `bytes` with this digest.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] naming both digests.
    pub fn verify(&self, bytes: &[u8]) -> Result<()> {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        self.compare(hasher)
    }

    /// Compares what `hasher` has seen with this digest.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] naming both digests.
    pub fn compare(&self, hasher: Hasher) -> Result<()> {
        self.compare_with(hasher.finish())
    }

    /// Compares the digest that bytes have, `actual`, with this one, which they should have.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] naming both digests.
    pub fn compare_with(&self, actual: Digest) -> Result<()> {
        if actual == *self {
            return Ok(());
        }
        Err(Error::DigestMismatch { expected: self.to_string(), actual: actual.to_string() })
    }
}

impl Blob {
    /// Compares size and digest of `bytes` with what this blob promises.
    ///
    /// # Errors
    /// [`Error::SizeMismatch`] first, then [`Error::DigestMismatch`].
    pub fn verify(&self, bytes: &[u8]) -> Result<()> {
        let actual = bytes.len() as u64;
        if actual != self.size {
            return Err(Error::SizeMismatch { expected: self.size, actual });
        }
        self.digest.verify(bytes)
    }
}

/// Hashes while bytes pass.
#[derive(Clone)]
pub enum Hasher {
    /// sha256 so far.
    Sha256(Sha256),
    /// sha512 so far.
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// A sha256 hasher: the algorithm of diffIDs and of span digests.
    pub fn sha256() -> Self {
        Hasher::Sha256(Sha256::default())
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::Sha512(h) => h.update(bytes),
        }
    }

    /// Adds bytes to this one, and others to a SHA-256: less work than one after the other, if this
    /// one is sha256, too.
    pub fn update_with(&mut self, bytes: &[u8], other: &mut Sha256, others: &[u8]) {
        match self {
            Hasher::Sha256(h) => h.update_with(bytes, other, others),
            Hasher::Sha512(h) => {
                h.update(bytes);
                other.update(others);
            }
        }
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(h) => Digest::Sha256(h.finish()),
            Hasher::Sha512(h) => Digest::Sha512(h.finalize().into()),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::InvalidDigest(text.chars().take(200).collect());
        let (algorithm, encoded) = text.split_once(':').ok_or_else(invalid)?;
        match algorithm {
            "sha256" => decode_hex(encoded).map(Digest::Sha256),
            "sha512" => decode_hex(encoded).map(Digest::Sha512),
            _ => None,
        }
        .ok_or_else(invalid)
    }
}

/// Exactly `2 * N` lower-case hexadecimal digits.
fn decode_hex<const N: usize>(encoded: &str) -> Option<[u8; N]> {
    let digits = encoded.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let nibble = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_printed_as_it_was_parsed() {
        let digest: Digest = EMPTY.parse().expect("a digest");
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest.short(), "e3b0c44298fc");
        assert_eq!(Digest::sha256_of(b""), digest);
        let long = format!("sha512:{}", "ab".repeat(64));
        assert_eq!(long.parse::<Digest>().expect("a digest").to_string(), long);
    }

    #[test]
    fn upper_case_short_and_unknown_digests_are_refused() {
        for text in ["", "sha256:", "sha256:00", &EMPTY.to_uppercase(), "md5:00", "../../x"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn two_that_are_hashed_together_are_what_they_are_alone() {
        let text: Vec<u8> = (0..1000u32).map(|n| ((n * n) >> 3) as u8).collect();
        let (one, other) = (Digest::sha256_of(&text), Digest::sha256_of(&text[7..]));
        for step in [1, 3, 63, 64, 65, 128, 200, 1000] {
            for ahead in [0, 1, 64, 100, 993] {
                let (mut first, mut second) = (Hasher::sha256(), Sha256::default());
                // The second one is `ahead` bytes further on, and so ends earlier.
                second.update(&text[7..7 + ahead]);
                let mut rest = &text[7 + ahead..];
                for piece in text.chunks(step) {
                    let (now, later) = rest.split_at(rest.len().min(step));
                    first.update_with(piece, &mut second, now);
                    rest = later;
                }
                let second = Digest::Sha256(second.finish());
                assert_eq!((first.finish(), second), (one, other), "{step} {ahead}");
            }
        }
        let (mut short, mut long) = (Sha256::default(), Hasher::Sha512(Box::default()));
        long.update_with(b"b", &mut short, b"a");
        assert_eq!(Digest::Sha256(short.finish()), Digest::sha256_of(b"a"));
        assert_eq!(long.finish(), Digest::Sha512(Sha512::digest(b"b").into()));
    }

    #[test]
    fn a_blob_is_checked_by_size_then_by_digest() {
        let blob = Blob { digest: EMPTY.parse().expect("a digest"), size: 0 };
        assert_eq!(blob.verify(b""), Ok(()));
        assert_eq!(blob.verify(b"x"), Err(Error::SizeMismatch { expected: 0, actual: 1 }));
        let wrong = Blob { size: 1, ..blob };
        assert!(matches!(wrong.verify(b"x"), Err(Error::DigestMismatch { .. })));
    }
}
