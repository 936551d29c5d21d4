//! `LayerIndex`: what is in a layer and how to get at it, whatever it was learnt from.
//!
//! Every layer format is a parser to this one form; after parsing nobody asks which it was.

mod check;
pub mod landmark;
pub mod saved;
pub mod scan;
mod segments;
pub mod spans;
pub mod window;

pub use check::check;
pub use segments::{Chain, SEGMENT_BYTES, Segments};

use super::digest::Digest;
use super::entry::Entry;
use super::range::ByteRange;
use super::tar::metadata_bytes;

/// The table of contents of one layer.
///
/// `tar` is the space that its chunks and spans speak of. A pass over the layer and SOCI number the
/// bytes of the uncompressed tar; an index that does not say where its headers lie numbers the
/// contents of files alone, one behind the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerIndex {
    /// Where it was learnt.
    pub origin: Origin,
    /// The artifact that it came in, if it is neither ours nor the layer's own. For messages.
    pub artifact: Option<Digest>,
    /// Digest of the uncompressed tar, trailing bytes included (image-spec `config.md`, DiffID).
    pub diff_id: Digest,
    /// Size of `tar` in bytes.
    pub tar_size: u64,
    /// Members in tar order.
    pub entries: Vec<Entry>,
    /// Ascending and gapless in `tar`, from 0 to `tar_size`; not descending in `blob`.
    pub spans: Vec<Span>,
    /// What [`Point::window`] points into.
    pub windows: Vec<u8>,
}

/// Who made a table of contents. For messages: nothing else may depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A pass of ours.
    OnePass,
    /// The table of contents in an eStargz layer.
    EStargz,
    /// The manifest in a `zstd:chunked` layer.
    ZstdChunked,
    /// A SOCI zTOC.
    Soci,
}

/// A range of the blob that can be decoded on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Which bytes of the blob. Neighbours may share bytes: blocks of deflate end inside of one, and
    /// several spans may be parts of one gzip member.
    pub blob: ByteRange,
    /// Which bytes of `tar` they decode to.
    pub tar: ByteRange,
    /// Decoded bytes in front of those, to be passed over: at most [`SPAN_DECODED_BYTES_MAX`].
    pub skip: u64,
    /// How they decode. What comes behind `tar` is of no interest.
    pub codec: Codec,
    /// What proves the span without the rest of its blob.
    pub proof: Proof,
}

/// What a span is held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// Of the span's bytes of the blob.
    Stored(Segments),
    /// sha256 of the bytes that it decodes to, without those that are passed over.
    Decoded([u8; 32]),
}

/// How a span decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As it stands: a plain tar.
    Stored,
    /// From the start of a gzip member (RFC 1952).
    Gzip,
    /// From the start of a zstd frame (RFC 8878).
    Zstd,
    /// From between two blocks of a gzip member.
    Deflate(Point),
}

/// A place between two blocks of a deflate stream (RFC 1951) where decoding can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Point {
    /// How many bits of the span's first byte belong to it, from the highest down; 0: all of it.
    pub bits: u8,
    /// Where in [`LayerIndex::windows`] its window is, as [`window::Packer`] makes them. Empty: no
    /// window is needed.
    pub window: ByteRange,
}

impl LayerIndex {
    /// What a pass over a layer without windows finds.
    #[cfg(test)]
    pub fn plain(diff_id: Digest, tar_size: u64, entries: Vec<Entry>, spans: Vec<Span>) -> Self {
        let (origin, windows) = (Origin::OnePass, Vec::new());
        LayerIndex { origin, artifact: None, diff_id, tar_size, entries, spans, windows }
    }

    /// The output in front of the place where `span` starts to decode; empty if none is needed.
    ///
    /// # Errors
    /// It is damaged.
    pub fn window(&self, span: &Span) -> Result<Vec<u8>, String> {
        let Codec::Deflate(Point { window, .. }) = span.codec else { return Ok(Vec::new()) };
        if window.is_empty() {
            return Ok(Vec::new());
        }
        let range = window.start as usize..window.end as usize;
        window::unpack(self.windows.get(range).ok_or("a window that is not there")?)
    }

    /// About how much memory the entries and windows take.
    pub fn metadata_bytes(&self) -> u64 {
        let windows = self.windows.len() as u64;
        self.entries.iter().map(metadata_bytes).fold(windows, u64::saturating_add)
    }

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
