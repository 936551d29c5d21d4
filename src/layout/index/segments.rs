//! Segments: pieces of a span's stored bytes, each with a digest: its start is proved without its end.

use std::ops::Range;

use crate::layout::digest::{Digest, Hasher};
use crate::layout::error::Result;
use crate::layout::range::ByteRange;

/// Stored bytes of a segment; the last one of a span may have fewer. A read of one byte reads and hashes
/// up to so many that it does not decode, and each segment takes 32 bytes of an index.
pub const SEGMENT_BYTES: u64 = 64 << 10;

/// sha256 of each segment of a span, in their order. A span to which somebody else has given one digest
/// is one segment, however long it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments(Box<[[u8; 32]]>);

impl Segments {
    /// These digests. How many there may be is for [`check`](mod@super::check) to see.
    pub fn new(digests: impl IntoIterator<Item = [u8; 32]>) -> Self {
        Segments(digests.into_iter().collect())
    }

    /// One digest: of all of the span.
    pub fn one(sha256: [u8; 32]) -> Self {
        Segments(Box::new([sha256]))
    }

    /// Those of the span whose stored bytes these are.
    pub fn of(stored: &[u8]) -> Self {
        let mut hasher = SegmentsHasher::default();
        hasher.update_with(stored, &mut Hasher::sha256(), &[]);
        hasher.finish()
    }

    /// The digests.
    pub fn digests(&self) -> &[[u8; 32]] {
        &self.0
    }

    /// So many are right for a span of `len` stored bytes.
    pub fn fit(&self, len: u64) -> bool {
        self.0.len() == 1 || self.0.len() as u64 == len.div_ceil(SEGMENT_BYTES)
    }

    /// Where the segments `numbers` (there is one, at least) are in a span of `len` stored bytes.
    pub fn range(&self, numbers: Range<usize>, len: u64) -> ByteRange {
        let end = match numbers.end {
            end if end >= self.0.len() => len,
            end => SEGMENT_BYTES * end as u64,
        };
        ByteRange::new(SEGMENT_BYTES * numbers.start as u64, end)
    }

    /// Compares `stored`, all bytes of the segments `numbers`, with their digests.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`](crate::layout::error::Error::DigestMismatch) of one that is wrong.
    pub fn verify(&self, numbers: Range<usize>, stored: &[u8]) -> Result<()> {
        let Range { start: first, end } = numbers;
        // What is too much or too little is of the last one, and makes it wrong.
        let piece = |number: usize| {
            let at = |segments: usize| stored.len().min(segments * SEGMENT_BYTES as usize);
            let piece_end = if number + 1 == end { stored.len() } else { at(number + 1 - first) };
            &stored[at(number - first)..piece_end]
        };
        // Two at once take less time than one after the other.
        for one in (first..end).step_by(2) {
            let (mut hasher, mut other_hasher) = (Hasher::sha256(), Hasher::sha256());
            let other = Some(one + 1).filter(|other| *other < end);
            let other_piece = other.map_or(&[][..], piece);
            hasher.update_with(piece(one), &mut other_hasher, other_piece);
            Digest::Sha256(self.0[one]).compare(hasher)?;
            if let Some(other) = other {
                Digest::Sha256(self.0[other]).compare(other_hasher)?;
            }
        }
        Ok(())
    }
}

/// Hashes the segments of a span while its bytes pass.
pub(super) struct SegmentsHasher {
    ended: Vec<[u8; 32]>,
    hasher: Hasher,
    /// Bytes of the segment that has not ended.
    bytes: u64,
}

impl Default for SegmentsHasher {
    fn default() -> Self {
        SegmentsHasher { ended: Vec::new(), hasher: Hasher::sha256(), bytes: 0 }
    }
}

impl SegmentsHasher {
    /// Adds bytes, and others to `other`: see [`Hasher::update_with`].
    pub(super) fn update_with(&mut self, bytes: &[u8], other: &mut Hasher, others: &[u8]) {
        let (mut bytes, mut others) = (bytes, others);
        while !bytes.is_empty() {
            if self.bytes == SEGMENT_BYTES {
                self.end_segment();
            }
            let now = bytes.len().min((SEGMENT_BYTES - self.bytes) as usize);
            let (piece, others_piece);
            (piece, bytes) = bytes.split_at(now);
            (others_piece, others) = others.split_at(now.min(others.len()));
            self.hasher.update_with(piece, other, others_piece);
            self.bytes += now as u64;
        }
        other.update(others);
    }

    fn end_segment(&mut self) {
        let hasher = std::mem::replace(&mut self.hasher, Hasher::sha256());
        // A hasher of sha256 gives no other.
        if let Digest::Sha256(sha256) = hasher.finish() {
            self.ended.push(sha256);
        }
        self.bytes = 0;
    }

    /// The digests of all bytes added; one if there were none.
    pub(super) fn finish(mut self) -> Segments {
        self.end_segment();
        Segments::new(self.ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: usize = SEGMENT_BYTES as usize;

    fn sha256(bytes: &[u8]) -> [u8; 32] {
        match Digest::sha256_of(bytes) {
            Digest::Sha256(sha256) => sha256,
            other => panic!("{other}"),
        }
    }

    fn stored(len: usize) -> Vec<u8> {
        (0..len as u32).map(|n| (n.wrapping_mul(n) >> 9) as u8).collect()
    }

    #[test]
    fn segments_are_cut_at_the_multiples_of_their_size_however_the_bytes_come() {
        for len in [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, 5 * SEGMENT + 77] {
            let stored = stored(len);
            let whole = Segments::of(&stored);
            let expected: Vec<_> = stored.chunks(SEGMENT).map(sha256).collect();
            match len {
                0 => assert_eq!(whole, Segments::one(sha256(b""))),
                _ => assert_eq!(whole.digests(), expected),
            }
            assert!(whole.fit(len as u64) && Segments::one([7; 32]).fit(len as u64), "{len}");
            for step in [777, SEGMENT - 3, SEGMENT, 3 * SEGMENT] {
                let (mut hasher, mut other) = (SegmentsHasher::default(), Hasher::sha256());
                let mut others = &stored[..len / 2];
                for piece in stored.chunks(step) {
                    let now = others.split_off(..others.len().min(piece.len() + 9));
                    hasher.update_with(piece, &mut other, now.unwrap_or_default());
                }
                assert_eq!(hasher.finish(), whole, "{len} {step}");
                other.update(others);
                assert_eq!(other.finish(), Digest::sha256_of(&stored[..len / 2]), "{len} {step}");
            }
        }
    }

    #[test]
    fn some_segments_are_verified_without_the_others() {
        let mut stored = stored(4 * SEGMENT + 10);
        let (segments, len) = (Segments::of(&stored), stored.len() as u64);
        assert!(!segments.fit(len + SEGMENT_BYTES) && !segments.fit(4 * SEGMENT_BYTES));
        assert_eq!(segments.range(0..5, len), ByteRange::new(0, len));
        assert_eq!(segments.range(3..4, len), ByteRange::new(3 * SEGMENT_BYTES, 4 * SEGMENT_BYTES));
        assert_eq!(segments.range(4..5, len), ByteRange::new(4 * SEGMENT_BYTES, len));
        assert_eq!(Segments::one([7; 32]).range(0..1, len), ByteRange::new(0, len));
        for first in 0..5 {
            for end in first + 1..=5 {
                let range = segments.range(first..end, len);
                let (start, behind) = (range.start as usize, range.end as usize);
                let bytes = &stored[start..behind];
                assert_eq!(segments.verify(first..end, bytes), Ok(()), "{first}..{end}");
                assert!(segments.verify(first..end, &bytes[..bytes.len() - 1]).is_err());
                assert!(segments.verify(first..end, &[bytes, b"x"].concat()).is_err());
                assert!(segments.verify(first..end, &[]).is_err());
                for at in [start, behind - 1, (start + behind) / 2] {
                    stored[at] ^= 1;
                    assert!(segments.verify(first..end, &stored[start..behind]).is_err(), "{at}");
                    stored[at] ^= 1;
                }
            }
        }
        assert_eq!(Segments::one(sha256(&stored)).verify(0..1, &stored), Ok(()));
        assert!(Segments::one(sha256(&stored)).verify(0..1, &stored[1..]).is_err());
    }
}
