//! zstd frames (RFC 8878), skippable ones too, in pieces of any size.

use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::{Boundary, Step};
use crate::layout::error::{Error, Result};

/// Largest window as a power of two: 128 MiB, what zstd itself decodes unless told otherwise. A
/// frame may ask for 3.75 TiB, and its window is memory.
const WINDOW_LOG_MAX: u32 = 27;

pub(super) struct ZstdStream {
    decoder: Decoder<'static>,
    /// Where the current frame begins in the blob.
    begun: Option<u64>,
}

impl ZstdStream {
    pub(super) fn new() -> Result<Self> {
        let failed = |e: std::io::Error| Error::codec(0, format!("cannot start zstd: {e}"));
        let mut decoder = Decoder::new().map_err(failed)?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(failed)?;
        Ok(ZstdStream { decoder, begun: None })
    }

    /// Where the frame begins that is not complete.
    pub(super) fn unfinished(&self) -> Option<u64> {
        self.begun
    }

    /// Decodes some of `input`, which begins at `at` in the blob.
    pub(super) fn step(&mut self, at: u64, input: &[u8], output: &mut [u8]) -> Result<Step> {
        if self.begun.is_none() {
            if input.is_empty() {
                return Ok(Step::default());
            }
            self.begun = Some(at);
            return Ok(Step { boundary: Some(Boundary::Start), ..Step::default() });
        }
        let status = self.decoder.run_on_buffers(input, output);
        let status = status.map_err(|error| {
            let begun = self.begun.unwrap_or(at);
            Error::codec(at, format!("invalid zstd frame that begins at {begun}: {error}"))
        })?;
        if status.remaining == 0 {
            self.begun = None;
        }
        Ok(Step { consumed: status.bytes_read, produced: status.bytes_written, boundary: None })
    }
}
