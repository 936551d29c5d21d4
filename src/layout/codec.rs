//! Decodes spans and streams: stored, gzip, zstd.
//!
//! The first bytes say which codec it is, not the media type: plain tars are stored under `+gzip`.
//! Members of gzip (RFC 1952) and frames of zstd (RFC 8878) may follow each other; each begins
//! anew, so that its start is a place to cut the blob at.
//!
//! Checks are left to digests: gzip's CRC and length fields are skipped. Zero bytes behind the last
//! gzip member are padding, anything else there is an error.

mod gzip;
#[cfg(test)]
mod tests;
mod zstd;

use super::error::{Error, Result};
use super::index::Codec;
use gzip::GzipStream;
use zstd::ZstdStream;

/// Largest piece of output: fits the second-level cache, and a write of it costs little.
const OUTPUT_BYTES: usize = 128 << 10;

/// Bytes that tell gzip, zstd and everything else apart.
const MAGIC_BYTES: usize = 4;

/// Memory for a span's content before any of it was decoded: a length from outside may lie.
const SPAN_RESERVE_BYTES_MAX: u64 = 16 << 20;

/// What comes out of a [`Decoder`].
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// The next bytes of the uncompressed layer.
    Bytes(&'a [u8]),
    /// A gzip member or zstd frame begins here; the first one, too.
    Start {
        /// Position in the blob.
        blob: u64,
        /// Position in the uncompressed layer.
        tar: u64,
    },
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
    /// A member or frame begins at the first byte of input.
    starts: bool,
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

    fn with(stream: Stream) -> Self {
        Decoder { stream, blob: 0, tar: 0, output: vec![0; OUTPUT_BYTES].into() }
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
            self.blob += input.len() as u64;
            self.tar += input.len() as u64;
            return if input.is_empty() { Ok(()) } else { sink(Decoded::Bytes(input)) };
        }
        loop {
            let step = match &mut self.stream {
                Stream::Unknown(_) | Stream::Stored => return Ok(()),
                Stream::Gzip(gzip) => gzip.step(self.blob, input, &mut self.output)?,
                Stream::Zstd(zstd) => zstd.step(self.blob, input, &mut self.output)?,
            };
            if step.starts {
                sink(Decoded::Start { blob: self.blob, tar: self.tar })?;
            }
            self.blob += step.consumed as u64;
            self.tar += step.produced as u64;
            input = &input[step.consumed..];
            if step.produced > 0 {
                sink(Decoded::Bytes(&self.output[..step.produced]))?;
            }
            let more_output = step.produced == self.output.len();
            if input.is_empty() && !more_output {
                return Ok(());
            }
            if step.consumed == 0 && step.produced == 0 && !step.starts {
                return Err(Error::codec(self.blob, "the decoder does not advance").into());
            }
        }
    }
}

impl Stream {
    fn of(codec: Codec) -> Result<Self> {
        Ok(match codec {
            Codec::Stored => Stream::Stored,
            Codec::Gzip => Stream::Gzip(GzipStream::new()),
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

/// Decodes a span: `bytes` are exactly its part of the blob.
///
/// # Errors
/// [`Error::Codec`] when it does not decode, or not to exactly `expected_bytes`. Positions are
/// relative to the span.
pub fn decode_span(codec: Codec, bytes: &[u8], expected_bytes: u64) -> Result<Vec<u8>> {
    let wrong_size = |got: &str| {
        Error::codec(0, format!("the span decodes to {got} bytes, expected {expected_bytes}"))
    };
    if codec == Codec::Stored {
        if bytes.len() as u64 != expected_bytes {
            return Err(wrong_size(&bytes.len().to_string()));
        }
        return Ok(bytes.to_vec());
    }
    let reserve = expected_bytes.min(SPAN_RESERVE_BYTES_MAX) as usize;
    let mut content: Vec<u8> = Vec::with_capacity(reserve);
    let mut sink = |decoded: Decoded<'_>| {
        if let Decoded::Bytes(piece) = decoded {
            if (content.len() + piece.len()) as u64 > expected_bytes {
                return Err(wrong_size("more"));
            }
            content.extend_from_slice(piece);
        }
        Ok(())
    };
    let mut decoder = Decoder::with(Stream::of(codec)?);
    decoder.push(bytes, &mut sink)?;
    decoder.finish(&mut sink)?;
    if content.len() as u64 != expected_bytes {
        return Err(wrong_size(&content.len().to_string()));
    }
    Ok(content)
}
