//! One span, decoded as far as somebody needs it, and further later.

use super::gzip::GzipStream;
use super::zstd::ZstdStream;
use super::{OUTPUT_BYTES, Step, Stream};
use crate::layout::error::{Error, Result};
use crate::layout::index::{Codec, Span};

/// Memory for a span's content before any of it was decoded: a length from outside may lie.
const SPAN_RESERVE_BYTES_MAX: u64 = 16 << 20;

/// Decodes a span: `bytes` are its part of the blob, `window` is the output in front of it if its
/// codec is [`Codec::Deflate`] (else ignored).
///
/// # Errors
/// [`Error::Codec`] when it does not decode, or to fewer bytes than it should. Positions are
/// relative to the span.
pub fn decode_span(span: &Span, window: &[u8], bytes: &[u8]) -> Result<Vec<u8>> {
    let mut decoder = SpanDecoder::new(span, window, bytes.first().copied())?;
    match decoder.reach(&bytes[decoder.used().min(bytes.len())..], span.tar.len())? {
        true => Ok(decoder.into_decoded()),
        false => Err(decoder.too_short()),
    }
}

/// A span, decoded from its start up to some place.
///
/// After an error it is of no further use.
pub struct SpanDecoder {
    stream: Stream,
    /// Stored bytes that are used up.
    at: usize,
    /// Decoded bytes that are still to be passed over.
    skip: u64,
    /// What is behind `filled` has been decoded into, or is zero.
    decoded: Vec<u8>,
    filled: usize,
    wanted: u64,
}

impl SpanDecoder {
    /// A decoder that stands at the start of `span`, whose first byte of the blob is `first`; `window`
    /// as for [`decode_span`]. It may have [used](SpanDecoder::used) that byte already.
    ///
    /// # Errors
    /// [`Error::Codec`]: there is no such start.
    pub fn new(span: &Span, window: &[u8], first: Option<u8>) -> Result<Self> {
        let wanted = span.tar.len();
        let (stream, at) = match span.codec {
            Codec::Stored => (Stream::Stored, 0),
            Codec::Gzip => (Stream::Gzip(GzipStream::new()?), 0),
            Codec::Zstd => (Stream::Zstd(ZstdStream::new()?), 0),
            Codec::Deflate(point) => {
                let (byte, at) = match (point.bits, first) {
                    (0, _) => (0, 0),
                    (_, Some(byte)) => (byte, 1),
                    (_, None) => return Err(too_short(0, wanted)),
                };
                (Stream::Gzip(GzipStream::resume(point.bits, byte, window)?), at)
            }
        };
        let decoded = Vec::with_capacity(wanted.min(SPAN_RESERVE_BYTES_MAX) as usize);
        Ok(SpanDecoder { stream, at, skip: span.skip, decoded, filled: 0, wanted })
    }

    /// What is decoded so far.
    pub fn decoded(&self) -> &[u8] {
        &self.decoded[..self.filled]
    }

    /// The same, given away.
    pub fn into_decoded(mut self) -> Vec<u8> {
        self.decoded.truncate(self.filled);
        // What was passed over may have taken more.
        self.decoded.shrink_to_fit();
        self.decoded
    }

    /// How many of the span's stored bytes are used up.
    pub fn used(&self) -> usize {
        self.at
    }

    /// Decodes until `upto` bytes of the span are there, or all that it has. `stored` are the bytes of
    /// the blob behind those that are used up, as many as there are. `false`: it takes more, and
    /// these are used up.
    ///
    /// # Errors
    /// [`Error::Codec`] when it does not decode.
    pub fn reach(&mut self, mut stored: &[u8], upto: u64) -> Result<bool> {
        let upto = upto.min(self.wanted);
        while (self.filled as u64) < upto {
            // Also without any: the last ones may decode to more than there was room for.
            let step = self.step(stored, upto)?;
            stored = stored.get(step.consumed..).unwrap_or_default();
            if step.consumed == 0 && step.produced == 0 && step.boundary.is_none() {
                return match stored.is_empty() {
                    true => Ok(false),
                    false => Err(Error::codec(self.at as u64, "the decoder does not advance")),
                };
            }
        }
        Ok(true)
    }

    /// The error for a span that has no more stored bytes, and should decode to more.
    pub fn too_short(&self) -> Error {
        too_short(self.filled, self.wanted)
    }

    fn step(&mut self, input: &[u8], upto: u64) -> Result<Step> {
        let is_skipping = self.skip > 0;
        let left = if is_skipping { self.skip } else { upto - self.filled as u64 };
        let end = self.filled + left.min(OUTPUT_BYTES as u64) as usize;
        // Zeroed piece by piece, just before it is written to: it is in the processor's cache then.
        if self.decoded.len() < end {
            self.decoded.resize(end, 0);
        }
        let output = &mut self.decoded[self.filled..end];
        let step = match &mut self.stream {
            Stream::Unknown(_) => Step::default(),
            Stream::Stored => {
                let count = input.len().min(output.len());
                output[..count].copy_from_slice(&input[..count]);
                Step { consumed: count, produced: count, boundary: None }
            }
            Stream::Gzip(gzip) => gzip.step(self.at as u64, input, output, false)?,
            Stream::Zstd(zstd) => zstd.step(self.at as u64, input, output)?,
        };
        self.at += step.consumed;
        match is_skipping {
            // What comes next is written over it.
            true => self.skip -= step.produced as u64,
            false => self.filled += step.produced,
        }
        Ok(step)
    }
}

fn too_short(got: usize, wanted: u64) -> Error {
    Error::codec(0, format!("the span decodes to {got} bytes, expected {wanted}"))
}
