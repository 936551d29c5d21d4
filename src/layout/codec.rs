//! Decodes spans and streams: stored, gzip, zstd.
//!
//! The first bytes say which codec it is, not the media type: plain tars are stored under `+gzip`.
//! Members of gzip (RFC 1952) and frames of zstd (RFC 8878) may follow each other; each begins
//! anew, so that its start is a place to cut the blob at. Where members are long, a place between
//! two blocks of one is, too, together with the output in front of it.
//!
//! Checks are left to digests: gzip's CRC and length fields are skipped. Zero bytes behind the last
//! gzip member are padding, anything else there is an error.

pub(crate) mod back_references;
pub(crate) mod gzip;
pub mod inflate;
mod span;
#[cfg(test)]
mod tests;
mod zstd;

use super::error::{Error, Result};
use super::index::Codec;
use gzip::GzipStream;
pub use span::{SpanDecoder, decode_span};
use zstd::ZstdStream;

/// Largest piece of output: fits the second-level cache, and a write of it costs little.
const OUTPUT_BYTES: usize = 128 << 10;

/// Bytes that tell gzip, zstd and everything else apart.
const MAGIC_BYTES: usize = 4;

/// What comes out of a [`Decoder`].
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// The next bytes of the uncompressed layer.
    Bytes(&'a [u8]),
    /// Decoding can start here.
    Start(Start),
}

/// A place where decoding can start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Position in the blob of the first byte that is needed.
    pub blob: u64,
    /// Position in the uncompressed layer.
    pub tar: u64,
    /// `None`: a gzip member or zstd frame begins here, or the blob.
    pub within: Option<Within>,
}

/// What it takes to start between two blocks of a gzip member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Within {
    /// How many of the highest bits of the first byte come behind the place; 0: all of it does.
    pub bits: u8,
    /// The output in front of the place, at most [`inflate::WINDOW_BYTES_MAX`].
    pub window: Vec<u8>,
}

/// Decodes a blob that arrives in pieces of any size.
///
/// After an error the decoder is of no further use.
pub struct Decoder {
    stream: Stream,
    /// Bytes of the blob decoded so far.
    blob: u64,
    /// Bytes of the uncompressed layer so far.
    tar: u64,
    /// How many uncompressed bytes there should be between two starts; `None`: the starts of members
    /// and frames are told, and all of them.
    spacing: Option<u64>,
    /// The last start that was told: position in the uncompressed layer.
    started: Option<u64>,
    output: Box<[u8]>,
}

enum Stream {
    /// Too few bytes to tell.
    Unknown(Vec<u8>),
    Stored,
    Gzip(GzipStream),
    Zstd(ZstdStream),
}

/// What one step of a codec did.
#[derive(Debug, Default)]
struct Step {
    /// Bytes of input.
    consumed: usize,
    /// Bytes of output.
    produced: usize,
    /// Where it stands behind those.
    boundary: Option<Boundary>,
}

/// A place where decoding can start.
#[derive(Debug, Clone, Copy)]
enum Boundary {
    /// A member or frame.
    Start,
    /// Between two blocks, with so many bits of the last byte left.
    Within { bits: u8 },
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder that finds out the codec.
    pub fn new() -> Self {
        Self::with(Stream::Unknown(Vec::with_capacity(MAGIC_BYTES)))
    }

    /// The same, telling starts that are about `spacing` uncompressed bytes apart: those of members
    /// and frames at half of it or more, and places between blocks at all of it or more.
    pub fn with_starts(spacing: u64) -> Self {
        Decoder { spacing: Some(spacing), ..Self::new() }
    }

    fn with(stream: Stream) -> Self {
        let output = vec![0; OUTPUT_BYTES].into();
        Decoder { stream, blob: 0, tar: 0, spacing: None, started: None, output }
    }

    /// The codec, once the first four bytes are known.
    pub fn codec(&self) -> Option<Codec> {
        match self.stream {
            Stream::Unknown(_) => None,
            Stream::Stored => Some(Codec::Stored),
            Stream::Gzip(_) => Some(Codec::Gzip),
            Stream::Zstd(_) => Some(Codec::Zstd),
        }
    }

    /// Bytes of the uncompressed layer so far.
    pub fn tar_bytes(&self) -> u64 {
        self.tar
    }

    /// Decodes the next bytes of the blob into `sink`.
    ///
    /// # Errors
    /// [`Error::Codec`] with the position in the blob; whatever `sink` refuses.
    pub fn push<E: From<Error>>(
        &mut self,
        mut input: &[u8],
        sink: &mut dyn FnMut(Decoded<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        if let Stream::Unknown(head) = &mut self.stream {
            let wanted = input.len().min(MAGIC_BYTES - head.len());
            head.extend_from_slice(&input[..wanted]);
            input = &input[wanted..];
            if head.len() < MAGIC_BYTES {
                return Ok(());
            }
            let head = std::mem::take(head);
            self.stream = Stream::of(detect(&head))?;
            self.decode(&head, sink)?;
        }
        self.decode(input, sink)
    }

    /// Ends the blob, and says what codec it was.
    ///
    /// # Errors
    /// [`Error::Codec`] when it ends inside a member or frame.
    pub fn finish<E: From<Error>>(
        &mut self,
        sink: &mut dyn FnMut(Decoded<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<Codec, E> {
        if let Stream::Unknown(head) = &mut self.stream {
            let head = std::mem::take(head);
            self.stream = Stream::of(detect(&head))?;
            self.decode(&head, sink)?;
        }
        let begun = match &self.stream {
            Stream::Unknown(_) | Stream::Stored => None,
            Stream::Gzip(gzip) => gzip.unfinished(),
            Stream::Zstd(zstd) => zstd.unfinished(),
        };
        if let Some(begun) = begun {
            let reason = format!("cut off: a member or frame begins at {begun} and does not end");
            return Err(Error::codec(self.blob, reason).into());
        }
        Ok(self.codec().unwrap_or(Codec::Stored))
    }

    fn decode<E: From<Error>>(
        &mut self,
        mut input: &[u8],
        sink: &mut dyn FnMut(Decoded<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        if matches!(self.stream, Stream::Stored) {
            return self.pass_on(input, sink);
        }
        loop {
            let (limit, to_boundary) = self.reach();
            let output = &mut self.output[..limit];
            let step = match &mut self.stream {
                Stream::Unknown(_) | Stream::Stored => return Ok(()),
                Stream::Gzip(gzip) => gzip.step(self.blob, input, output, to_boundary)?,
                Stream::Zstd(zstd) => zstd.step(self.blob, input, output)?,
            };
            self.blob += step.consumed as u64;
            self.tar += step.produced as u64;
            input = &input[step.consumed..];
            if step.produced > 0 {
                sink(Decoded::Bytes(&self.output[..step.produced]))?;
            }
            if let Some(start) = step.boundary.and_then(|boundary| self.start(boundary)) {
                self.started = Some(start.tar);
                sink(Decoded::Start(start))?;
            }
            let more_output = step.produced == limit;
            if input.is_empty() && !more_output {
                return Ok(());
            }
            if step.consumed == 0 && step.produced == 0 && step.boundary.is_none() {
                return Err(Error::codec(self.blob, "the decoder does not advance").into());
            }
        }
    }

    /// How much output the next step may give, and whether it ends at the next place between two
    /// blocks. From one byte in front of where a start is due, which makes the places independent of
    /// the pieces that the blob comes in: whether a step that is full has gone past a place depends
    /// on its input.
    fn reach(&self) -> (usize, bool) {
        let Some(spacing) = self.spacing else { return (OUTPUT_BYTES, false) };
        let passed = self.tar - self.started.unwrap_or_default();
        match spacing.saturating_sub(passed + 1) {
            0 => (OUTPUT_BYTES, true),
            left => (left.min(OUTPUT_BYTES as u64) as usize, false),
        }
    }

    /// Stored bytes: what goes in comes out, and may be cut anywhere.
    fn pass_on<E: From<Error>>(
        &mut self,
        mut input: &[u8],
        sink: &mut dyn FnMut(Decoded<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        while !input.is_empty() {
            let passed = self.started.map(|started| self.tar - started);
            let left = match (self.spacing, passed) {
                (None, _) => u64::MAX,
                (Some(spacing), Some(passed)) if passed < spacing => spacing - passed,
                (Some(spacing), _) => {
                    self.started = Some(self.tar);
                    sink(Decoded::Start(Start { blob: self.blob, tar: self.tar, within: None }))?;
                    spacing
                }
            };
            let (now, later) = input.split_at(left.min(input.len() as u64) as usize);
            self.blob += now.len() as u64;
            self.tar += now.len() as u64;
            sink(Decoded::Bytes(now))?;
            input = later;
        }
        Ok(())
    }

    /// What to tell of a place where decoding can start, if it is far enough from the last one.
    fn start(&mut self, boundary: Boundary) -> Option<Start> {
        let passed = self.started.map(|started| self.tar - started);
        let far = |least| passed.is_none_or(|passed| passed >= least);
        let spacing = self.spacing.unwrap_or_default();
        let (blob, tar) = (self.blob, self.tar);
        match (boundary, &mut self.stream) {
            (Boundary::Start, _) => far(spacing / 2).then_some(Start { blob, tar, within: None }),
            (Boundary::Within { bits }, Stream::Gzip(gzip)) if far(spacing) => {
                let within = Some(Within { bits, window: gzip.window() });
                Some(Start { blob: blob - u64::from(bits > 0), tar, within })
            }
            (Boundary::Within { .. }, _) => None,
        }
    }
}

impl Stream {
    fn of(codec: Codec) -> Result<Self> {
        Ok(match codec {
            Codec::Stored => Stream::Stored,
            Codec::Gzip | Codec::Deflate(_) => Stream::Gzip(GzipStream::new()?),
            Codec::Zstd => Stream::Zstd(ZstdStream::new()?),
        })
    }
}

/// The codec of a blob that begins with `head`: four bytes are enough, fewer mean a short blob.
pub fn detect(head: &[u8]) -> Codec {
    match head {
        [0x1f, 0x8b, ..] => Codec::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Codec::Zstd,
        // A skippable frame, as pzstd and zstd:chunked put in front or behind.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Codec::Zstd,
        _ => Codec::Stored,
    }
}
