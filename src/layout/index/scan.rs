//! One pass over a plain layer: bytes of the blob to `LayerIndex` and DiffID.
//!
//! The scanner decodes and parses. It hashes nothing: whoever reads the blob hashes it on another
//! thread, and the decoded bytes that the scanner hands out become the DiffID there.

#[cfg(test)]
mod tests;

use std::io::{self, Read};

use super::{Codec, LayerIndex, Span};
use crate::layout::codec::{Decoded, Decoder};
use crate::layout::digest::{Digest, Hasher};
use crate::layout::entry::Entry;
use crate::layout::error::Error;
use crate::layout::range::ByteRange;
use crate::layout::tar::TarParser;

/// Uncompressed bytes that a span aims at: short members are joined up to it, a plain tar is cut at
/// its multiples. A read of one byte decodes at most this (or one member), and a layer has few
/// enough spans to keep a digest of each.
pub const SPAN_BYTES: u64 = 1 << 20;

/// Largest uncompressed layer: 1 TiB. Stops a blob of a few megabytes that decodes without end.
pub const LAYER_BYTES_MAX: u64 = 1 << 40;

/// Scans a layer whose blob arrives in pieces of any size.
///
/// After an error the scanner is of no further use.
pub struct Scanner {
    decoder: Decoder,
    tar: TarParser,
    entries: Vec<Entry>,
    cuts: Cuts,
    blob_size: u64,
}

/// What one pass found. `sha256` of the spans is still zero: see [`ScannedLayer::hash_spans`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedLayer {
    /// Members in tar order.
    pub entries: Vec<Entry>,
    /// As [`LayerIndex::spans`]: none if the tar is empty. They cover the blob without a gap.
    pub spans: Vec<Span>,
    /// Size of the uncompressed tar in bytes.
    pub tar_size: u64,
    /// Size of the blob in bytes.
    pub blob_size: u64,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// A scanner at the start of a blob. Finds out the codec itself.
    pub fn new() -> Self {
        Scanner {
            decoder: Decoder::new(),
            tar: TarParser::new(),
            entries: Vec::new(),
            cuts: Cuts::default(),
            blob_size: 0,
        }
    }

    /// A place to start decoding at, other than the beginning, has come by: the layer is stored, or
    /// has several members or frames.
    pub fn can_seek(&self) -> bool {
        self.decoder.codec() == Some(Codec::Stored) || self.cuts.last.tar > 0
    }

    /// Reads the next bytes of the blob; `sink` gets the uncompressed bytes in order.
    ///
    /// # Errors
    /// What is wrong with the blob or the tar in it; whatever `sink` refuses.
    pub fn push<E: From<Error>>(
        &mut self,
        blob: &[u8],
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.blob_size += blob.len() as u64;
        let (tar, entries, cuts) = (&mut self.tar, &mut self.entries, &mut self.cuts);
        self.decoder.push(blob, &mut |decoded| accept(decoded, tar, entries, cuts, sink))
    }

    /// Ends the blob; `sink` gets what is left.
    ///
    /// # Errors
    /// When the blob or the tar in it is cut off.
    pub fn finish<E: From<Error>>(
        mut self,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<ScannedLayer, E> {
        let (tar, entries, cuts) = (&mut self.tar, &mut self.entries, &mut self.cuts);
        let mut accept = |decoded: Decoded<'_>| accept(decoded, tar, entries, cuts, sink);
        let codec = self.decoder.finish(&mut accept)?;
        self.tar.finish()?;
        let (tar_size, blob_size) = (self.cuts.tar_size, self.blob_size);
        let spans = match codec {
            Codec::Stored => stored_spans(tar_size),
            Codec::Gzip | Codec::Zstd => self.cuts.into_spans(codec, blob_size),
        };
        Ok(ScannedLayer { entries: self.entries, spans, tar_size, blob_size })
    }
}

fn accept<E: From<Error>>(
    decoded: Decoded<'_>,
    tar: &mut TarParser,
    entries: &mut Vec<Entry>,
    cuts: &mut Cuts,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    match decoded {
        Decoded::Start { blob, tar } => cuts.add(Position { blob, tar }),
        Decoded::Bytes(bytes) => {
            cuts.tar_size += bytes.len() as u64;
            if cuts.tar_size > LAYER_BYTES_MAX {
                let what = "size in bytes of the uncompressed layer".to_owned();
                return Err(Error::Limit { what, limit: LAYER_BYTES_MAX }.into());
            }
            tar.push(bytes, entries)?;
            sink(bytes)?;
        }
    }
    Ok(())
}

impl ScannedLayer {
    /// Hashes each span's part of the blob, which `blob` reads from its start.
    ///
    /// # Errors
    /// What reading fails with; [`io::ErrorKind::UnexpectedEof`] if the blob ends before its spans.
    pub fn hash_spans(&mut self, mut blob: impl Read) -> io::Result<()> {
        let mut at = 0;
        let mut piece = vec![0; 64 << 10];
        for span in &mut self.spans {
            let gap = ByteRange::new(at, span.blob.start);
            read_range(&mut blob, gap, &mut piece, &mut |_| {})?;
            let mut hasher = Hasher::sha256();
            read_range(&mut blob, span.blob, &mut piece, &mut |bytes| hasher.update(bytes))?;
            if let Digest::Sha256(sha256) = hasher.finish() {
                span.sha256 = sha256;
            }
            at = span.blob.end;
        }
        Ok(())
    }

    /// Where one span is the whole blob, its sha256 is the blob's, and the blob needs no second
    /// reading. `false`: it is not so, and nothing changed.
    pub fn set_whole_sha256(&mut self, blob_sha256: [u8; 32]) -> bool {
        match self.spans.as_mut_slice() {
            [] => true,
            [span] if span.blob == ByteRange::new(0, self.blob_size) => {
                span.sha256 = blob_sha256;
                true
            }
            _ => false,
        }
    }

    /// The index of the layer whose uncompressed bytes have the digest `diff_id`.
    pub fn into_index(self, diff_id: Digest) -> LayerIndex {
        let ScannedLayer { entries, spans, tar_size, .. } = self;
        LayerIndex { diff_id, tar_size, entries, spans }
    }
}

/// Reads exactly the bytes of `range` from a reader that stands at its start.
fn read_range(
    reader: &mut impl Read,
    range: ByteRange,
    piece: &mut [u8],
    sink: &mut dyn FnMut(&[u8]),
) -> io::Result<()> {
    let mut left = range.len();
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        reader.read_exact(&mut piece[..wanted])?;
        sink(&piece[..wanted]);
        left -= wanted as u64;
    }
    Ok(())
}

/// A plain tar can be cut anywhere.
fn stored_spans(tar_size: u64) -> Vec<Span> {
    let cut = |start| {
        let range = ByteRange::new(start, tar_size.min(start + SPAN_BYTES));
        Span { blob: range, tar: range, codec: Codec::Stored, sha256: [0; 32] }
    };
    (0..tar_size.div_ceil(SPAN_BYTES)).map(|n| cut(n * SPAN_BYTES)).collect()
}

/// Where the blob and the uncompressed layer stand at the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Position {
    blob: u64,
    tar: u64,
}

/// Where to cut a blob of members or frames. Joins them as long as the span stays within
/// [`SPAN_BYTES`], so that any two neighbours together exceed it: a blob of a million empty members
/// has one span.
#[derive(Debug, Default)]
struct Cuts {
    /// Starts of the spans behind the first.
    cuts: Vec<Position>,
    /// The last start of a member that gave output since the start before it.
    last: Position,
    tar_size: u64,
}

impl Cuts {
    /// A member or frame begins here. What gives no output is left with what follows it.
    fn add(&mut self, now: Position) {
        let open = self.cuts.last().copied().unwrap_or_default();
        if now.tar == self.last.tar {
            return;
        }
        if now.tar - open.tar > SPAN_BYTES && self.last.tar > open.tar {
            self.cuts.push(self.last);
        }
        self.last = now;
    }

    fn into_spans(mut self, codec: Codec, blob_size: u64) -> Vec<Span> {
        if self.tar_size == 0 {
            return Vec::new();
        }
        let end = Position { blob: blob_size, tar: self.tar_size };
        self.add(end);
        let starts = std::iter::once(Position::default()).chain(self.cuts.iter().copied());
        let ends = self.cuts.iter().copied().chain(std::iter::once(end));
        let span = |(start, end): (Position, Position)| Span {
            blob: ByteRange::new(start.blob, end.blob),
            tar: ByteRange::new(start.tar, end.tar),
            codec,
            sha256: [0; 32],
        };
        starts.zip(ends).map(span).collect()
    }
}
