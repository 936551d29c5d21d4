//! `LayerIndex`: what is in a layer and how to get at it, whatever it was learnt from.
//!
//! Every layer format is a parser to this one form; after parsing nobody asks which it was.

mod check;
pub mod saved;
pub mod scan;

pub use check::check;

use super::digest::Digest;
use super::entry::Entry;
use super::range::ByteRange;

/// The table of contents of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerIndex {
    /// Digest of the uncompressed tar, trailing bytes included (image-spec `config.md`, DiffID).
    pub diff_id: Digest,
    /// Size of the uncompressed tar in bytes.
    pub tar_size: u64,
    /// Members in tar order.
    pub entries: Vec<Entry>,
    /// Ascending and gapless in `tar`, from 0 to `tar_size`; ascending in `blob`.
    pub spans: Vec<Span>,
}

/// A contiguous range of the blob that can be decoded on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Which bytes of the blob.
    pub blob: ByteRange,
    /// Which bytes of the uncompressed tar they decode to.
    pub tar: ByteRange,
    /// How they decode.
    pub codec: Codec,
    /// sha256 of the blob bytes of this span: proves the span without the rest of its blob.
    pub sha256: [u8; 32],
}

/// How a span decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As it stands: a plain tar.
    Stored,
    /// One or more whole gzip members (RFC 1952).
    Gzip,
    /// One or more whole zstd frames (RFC 8878).
    Zstd,
}

impl LayerIndex {
    /// The indexes (into `spans`) of the spans that hold the bytes `tar` of the uncompressed layer.
    pub fn spans_for(&self, tar: ByteRange) -> std::ops::Range<usize> {
        if tar.is_empty() {
            return 0..0;
        }
        let first = self.spans.partition_point(|s| s.tar.end <= tar.start);
        let last = self.spans.partition_point(|s| s.tar.start < tar.end);
        first..last.max(first)
    }
}

/// A span that decodes to more than this is too dear to decode for one read: its layer is decoded
/// into a file instead. Our own spans are 1 MiB, SOCI's 4 MiB.
pub const SPAN_DECODED_BYTES_MAX: u64 = 8 << 20;

/// A span of more stored bytes is too dear, too. Twice what an honest one of incompressible content
/// has.
pub const SPAN_STORED_BYTES_MAX: u64 = 2 * SPAN_DECODED_BYTES_MAX;

/// Every span is small enough to be fetched and decoded for one read. (Compressed bytes can be many
/// more than what they decode to: gzip allows any number of empty blocks.)
pub fn is_seekable(spans: &[Span]) -> bool {
    let is_small = |span: &Span| {
        span.tar.len() <= SPAN_DECODED_BYTES_MAX && span.blob.len() <= SPAN_STORED_BYTES_MAX
    };
    spans.iter().all(is_small)
}
