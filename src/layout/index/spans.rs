//! Cuts a blob into spans while it passes: digests for each, and a window where one is needed.

use super::segments::SegmentsHasher;
use super::window::{Packer, Tracer};
use super::{Codec, Point, Proof, Span};
use crate::layout::codec::{Start, Within};
use crate::layout::digest::Hasher;
use crate::layout::range::ByteRange;

/// What is kept of the beginning of a span to find out what it refers to. As many bytes decode to
/// more than a window in all but contrived streams; there the window is kept whole.
const HEAD_BYTES: usize = 34 << 10;

/// Uncompressed bytes that a span aims at. A read of one byte decodes at most this (or one member
/// or block), and a layer has few enough spans to keep a digest and a window of each.
pub const SPAN_BYTES: u64 = 1 << 20;

/// Most memory for the windows of one layer: those of some 11 GB of ordinary gzip, or of 2 GB
/// of content whose windows cannot be packed. Beyond it no place between two blocks is taken, and the layer is one
/// that cannot be entered there.
const WINDOWS_BYTES_MAX: usize = 64 << 20;

/// Makes spans of the bytes of a blob, which come in order, and of the starts in them.
pub struct SpanBuilder {
    spans: Vec<Span>,
    windows: Vec<u8>,
    windows_bytes_max: usize,
    tracer: Tracer,
    packer: Packer,
    open: Open,
    /// Bytes of the blob so far, and the last of them.
    at: u64,
    last_byte: Option<u8>,
}

/// A span whose end has not come by.
struct Open {
    start: Start,
    hasher: SegmentsHasher,
    head: Vec<u8>,
}

/// Bytes of something else that are hashed along: see [`Hasher::update_with`].
struct Along<'a> {
    hasher: &'a mut Hasher,
    bytes: &'a [u8],
}

impl Open {
    fn new(start: Start) -> Self {
        Open { start, hasher: SegmentsHasher::default(), head: Vec::new() }
    }

    fn update(&mut self, bytes: &[u8], along: &mut Along<'_>) {
        let now = along.bytes.split_off(..bytes.len().min(along.bytes.len()));
        self.hasher.update_with(bytes, along.hasher, now.unwrap_or_default());
        if self.start.within.is_some() {
            let room = HEAD_BYTES.saturating_sub(self.head.len());
            self.head.extend_from_slice(&bytes[..room.min(bytes.len())]);
        }
    }
}

impl Default for SpanBuilder {
    fn default() -> Self {
        Self::with_limit(WINDOWS_BYTES_MAX)
    }
}

impl SpanBuilder {
    fn with_limit(windows_bytes_max: usize) -> Self {
        let (spans, windows) = (Vec::new(), Vec::new());
        let open = Open::new(Start { blob: 0, tar: 0, within: None });
        let (tracer, packer) = (Tracer::default(), Packer::default());
        SpanBuilder {
            spans,
            windows,
            windows_bytes_max,
            tracer,
            packer,
            open,
            at: 0,
            last_byte: None,
        }
    }

    /// The next bytes of the blob, and the starts (ascending) that decoding them has told.
    pub fn push(&mut self, bytes: &[u8], starts: Vec<Start>) {
        self.push_along(bytes, starts, &mut Hasher::sha256(), &[]);
    }

    /// The same; and `others` to `hasher`, which costs less than doing so apart.
    pub fn push_along(
        &mut self,
        bytes: &[u8],
        starts: Vec<Start>,
        hasher: &mut Hasher,
        others: &[u8],
    ) {
        let mut along = Along { hasher, bytes: others };
        let mut done = 0;
        // The first one is told when the codec is known: some bytes later.
        for start in starts.into_iter().filter(|start| start.blob > 0) {
            if start.within.is_some() && self.windows.len() >= self.windows_bytes_max {
                continue;
            }
            // A start between two blocks shares its first byte with the span before it, and that
            // byte may have come with the bytes before these.
            let is_shared = start.within.as_ref().is_some_and(|within| within.bits > 0);
            let end = start.blob + u64::from(is_shared);
            let until = (end.saturating_sub(self.at) as usize).clamp(done, bytes.len());
            self.update(&bytes[done..until], &mut along);
            done = until;
            let mut next = Open::new(start);
            if let (true, Some(byte)) = (is_shared, self.last_byte) {
                next.update(&[byte], &mut along);
            }
            let tar = next.start.tar;
            let ended = std::mem::replace(&mut self.open, next);
            self.close(ended, self.at + done as u64, tar);
        }
        self.update(&bytes[done..], &mut along);
        along.hasher.update(along.bytes);
        self.at += bytes.len() as u64;
    }

    fn update(&mut self, bytes: &[u8], along: &mut Along<'_>) {
        self.open.update(bytes, along);
        self.last_byte = bytes.last().copied().or(self.last_byte);
    }

    fn close(&mut self, ended: Open, blob_end: u64, tar_end: u64) {
        let Open { start, hasher, head } = ended;
        let tar = ByteRange::new(start.tar, tar_end);
        if tar.is_empty() {
            return;
        }
        let codec = match start.within {
            None => Codec::Stored,
            Some(Within { bits, window }) => {
                let stored = self.packer.pack(&self.tracer.sparse(window, bits, &head));
                let window = ByteRange::at(self.windows.len() as u64, stored.len() as u64);
                self.windows.extend_from_slice(&stored);
                Codec::Deflate(Point { bits, window })
            }
        };
        let blob = ByteRange::new(start.blob, blob_end);
        let proof = Proof::Stored(hasher.finish());
        self.spans.push(Span { blob, tar, skip: 0, codec, proof });
    }

    /// The spans of the blob, which has ended and was of this codec, and their windows.
    pub fn finish(mut self, codec: Codec, tar_size: u64) -> (Vec<Span>, Vec<u8>) {
        let last =
            std::mem::replace(&mut self.open, Open::new(Start { blob: 0, tar: 0, within: None }));
        self.close(last, self.at, tar_size);
        for span in self.spans.iter_mut().filter(|span| span.codec == Codec::Stored) {
            span.codec = codec;
        }
        (self.spans, self.windows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_have_a_limit_and_the_spans_stay_gapless() {
        let window: Vec<u8> = (0..32_768u32).map(|n| ((n * n) >> 7) as u8).collect();
        let start = |n: u64| {
            let within = Some(Within { bits: 0, window: window.clone() });
            Start { blob: n * 10, tar: n * 1000, within }
        };
        let mut builder = SpanBuilder::with_limit(20_000);
        builder.push(&[7; 100], (1..10).map(start).collect());
        let (spans, windows) = builder.finish(Codec::Gzip, 10_000);
        assert!(
            windows.len() < 20_000 + 33_000 && spans.len() < 5,
            "{} {}",
            windows.len(),
            spans.len()
        );
        assert!(spans.len() > 1);
        assert!(spans.windows(2).all(|pair| pair[0].tar.end == pair[1].tar.start));
        assert_eq!(spans.last().map(|span| span.tar.end), Some(10_000));
    }
}
