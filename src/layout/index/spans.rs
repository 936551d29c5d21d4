//! Cuts a blob into spans while it passes: what proves each, and a window where one is needed.

use super::segments::Cutter;
use super::window::{Packer, Tracer};
use super::{Codec, Point, Proof, Span};
use crate::layout::codec::{Start, Within};
use crate::layout::digest::{Digest, Hasher};
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
    cutter: Cutter,
    open: Open,
}

/// A span whose end has not come by.
struct Open {
    start: Start,
    head: Vec<u8>,
}

impl Open {
    fn new(start: Start) -> Self {
        Open { start, head: Vec::new() }
    }

    fn update(&mut self, bytes: &[u8]) {
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
        let (tracer, packer, cutter) = <(Tracer, Packer, Cutter)>::default();
        SpanBuilder { spans, windows, windows_bytes_max, tracer, packer, cutter, open }
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
        let (mut rest, mut others) = (bytes, others);
        // The first one is told when the codec is known: some bytes later.
        for start in starts.into_iter().filter(|start| start.blob > 0) {
            if start.within.is_some() && self.windows.len() >= self.windows_bytes_max {
                continue;
            }
            // A start between two blocks shares its first byte with the span before it, and that
            // byte may have come with the bytes before these.
            let is_shared = start.within.as_ref().is_some_and(|within| within.bits > 0);
            let end = start.blob + u64::from(is_shared);
            let until = rest.len().min(end.saturating_sub(self.cutter.at()) as usize);
            let along = others.split_off(..until.min(others.len())).unwrap_or_default();
            let before = rest.split_off(..until).unwrap_or_default();
            self.update(before, hasher, along);
            let mut next = Open::new(start);
            if let (true, Some(byte)) = (is_shared, self.cutter.last_byte()) {
                next.update(&[byte]);
            }
            self.close(next);
        }
        self.update(rest, hasher, others);
    }

    /// The digest of the blob so far.
    pub fn blob_sha256(&self) -> Digest {
        self.cutter.sha256()
    }

    fn update(&mut self, bytes: &[u8], hasher: &mut Hasher, others: &[u8]) {
        self.cutter.update_with(bytes, hasher, others);
        self.open.update(bytes);
    }

    /// Ends the open span, where `next` begins.
    fn close(&mut self, next: Open) {
        let blob_end = self.cutter.at();
        let segments = self.cutter.cut(next.start.blob);
        let Open { start, head } = std::mem::replace(&mut self.open, next);
        let tar = ByteRange::new(start.tar, self.open.start.tar);
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
        let (blob, proof) = (ByteRange::new(start.blob, blob_end), Proof::Stored(segments));
        self.spans.push(Span { blob, tar, skip: 0, codec, proof });
    }

    /// The spans of the blob, which has ended and was of this codec, and their windows.
    pub fn finish(mut self, codec: Codec, tar_size: u64) -> (Vec<Span>, Vec<u8>) {
        self.close(Open::new(Start { blob: self.cutter.at(), tar: tar_size, within: None }));
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
