//! `Proved`: bytes whose digest was checked; nothing else gets into a reply of the rootfs view.
//!
//! The type is the guarantee: [`Proved::check`] is the way in, and what is made of proved bytes
//! (slices, decoded spans, files put together) stays proved. [`Proved::vouch`] is for the
//! modules that check a whole file and read it piece by piece afterwards; `tests/it/tidy.rs` lets
//! nobody else call it.

mod opened;

use std::ops::{Deref, Range};

use bytes::{Bytes, BytesMut};

use super::error::Result;
use crate::layout::index::Segments;
use crate::layout::range::ByteRange;
use crate::layout::tree::ContentRef;
use crate::layout::{Digest, codec};
pub use opened::{Opened, Read, bytes_if_begun};

/// Bytes that are what a checked digest says, or were made of such bytes alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proved(Bytes);

impl Proved {
    /// Checks `bytes` against `digest`.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`](super::ErrorKind::DigestMismatch) naming both digests.
    pub fn check(digest: &Digest, bytes: Bytes) -> Result<Self> {
        digest.verify(&bytes)?;
        Ok(Proved(bytes))
    }

    /// Checks `stored`, the segments `numbers` of a span's bytes, against what proves them.
    ///
    /// # Errors
    /// [`ErrorKind::DigestMismatch`](super::ErrorKind::DigestMismatch) of one that is wrong.
    pub fn check_segments(
        segments: &Segments,
        numbers: Range<usize>,
        stored: Bytes,
    ) -> Result<Self> {
        segments.verify(numbers, &stored)?;
        Ok(Proved(stored))
    }

    /// Takes the caller's word: the bytes are of a file that it has checked, and that nobody wrote
    /// to since.
    pub(super) fn vouch(bytes: Bytes) -> Self {
        Proved(bytes)
    }

    /// What a tree itself holds of a file: trees are made of documents that were checked. A range
    /// beyond the end gives nothing; `None` when the content is elsewhere.
    pub fn inline(content: ContentRef<'_>, range: ByteRange) -> Option<Self> {
        let ContentRef::Inline(bytes) = content else { return None };
        let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
        Some(Proved(Bytes::copy_from_slice(bytes.get(range).unwrap_or_default())))
    }

    /// The part at `range`, which lies within: the same bytes, not a copy.
    pub fn part(&self, range: Range<usize>) -> Self {
        Proved(self.0.slice(range))
    }
}

/// Decodes a proved blob from its start, piece by piece.
#[derive(Default)]
pub struct ProvedDecoder(codec::Decoder);

impl ProvedDecoder {
    /// Decodes the next bytes of the blob into `sink`.
    ///
    /// # Errors
    /// They cannot be decoded; whatever `sink` refuses.
    pub fn push(
        &mut self,
        stored: &Proved,
        sink: &mut dyn FnMut(Proved) -> Result<()>,
    ) -> Result<()> {
        self.0.push(stored, &mut |decoded| match decoded {
            codec::Decoded::Bytes(bytes) => sink(Proved(Bytes::copy_from_slice(bytes))),
            codec::Decoded::Start(_) => Ok(()),
        })
    }
}

impl Deref for Proved {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// The bytes of one read while they are put together. What nobody fills stays zero: the holes of a
/// sparse file.
#[derive(Debug)]
pub struct Filling(BytesMut);

impl Filling {
    /// So many zeros.
    pub fn zeroed(len: usize) -> Self {
        Filling(BytesMut::zeroed(len))
    }

    /// The place for the bytes at `range`, which lies within the whole.
    pub fn place(&mut self, range: Range<usize>) -> Place<'_> {
        Place(&mut self.0[range])
    }

    /// Nothing more comes.
    pub fn finish(self) -> Proved {
        Proved(self.0.freeze())
    }
}

/// A place in a [`Filling`]: takes proved bytes alone.
#[derive(Debug)]
pub struct Place<'a>(&'a mut [u8]);

impl Place<'_> {
    /// Bytes that have room here.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nothing has.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The part of this place at `range`.
    pub fn part(&mut self, range: Range<usize>) -> Place<'_> {
        Place(&mut self.0[range])
    }

    /// Copies `bytes`, which are as many as there is room for.
    pub fn copy(&mut self, bytes: &Proved, range: Range<usize>) {
        self.0.copy_from_slice(&bytes.0[range]);
    }

    /// The bytes themselves, for the caller to fill on its own word; see [`Proved::vouch`].
    pub(super) fn vouch(&mut self) -> &mut [u8] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::ErrorKind;

    #[test]
    fn bytes_become_proved_by_their_digest_alone() {
        let digest = Digest::sha256_of(b"right");
        let proved = Proved::check(&digest, Bytes::from_static(b"right")).expect("right");
        assert_eq!(&*proved, b"right");
        let wrong = Proved::check(&digest, Bytes::from_static(b"wrong")).expect_err("wrong");
        assert_eq!(wrong.kind, ErrorKind::DigestMismatch);
    }

    #[test]
    fn what_is_not_filled_is_zero() {
        let mut filling = Filling::zeroed(6);
        let digest = Digest::sha256_of(b"abcd");
        let proved = Proved::check(&digest, Bytes::from_static(b"abcd")).expect("right");
        filling.place(1..5).part(1..3).copy(&proved, 0..2);
        assert_eq!(&*filling.finish(), b"\0\0ab\0\0");
    }
}
