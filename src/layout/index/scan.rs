//! One pass over a plain layer: bytes of the blob to `LayerIndex` and DiffID.
//!
//! The scanner decodes and parses. It hashes nothing: whoever reads the blob hands it, with the starts
//! that the scanner has found, to a [`SpanBuilder`] on another thread, and the decoded bytes become
//! the DiffID there.

#[cfg(test)]
mod tests;

use super::spans::{SPAN_BYTES, SpanBuilder};
use super::{Codec, LayerIndex, Origin};
use crate::layout::codec::{Decoded, Decoder, Start};
use crate::layout::digest::Digest;
use crate::layout::entry::Entry;
use crate::layout::error::Error;
use crate::layout::tar::TarParser;

/// Largest uncompressed layer: 1 TiB. Stops a blob of a few megabytes that decodes without end.
pub const LAYER_BYTES_MAX: u64 = 1 << 40;

/// Scans a layer whose blob arrives in pieces of any size.
///
/// After an error the scanner is of no further use.
pub struct Scanner {
    decoder: Decoder,
    tar: TarParser,
    entries: Vec<Entry>,
    starts: Vec<Start>,
    /// A start other than the beginning has come by.
    has_starts: bool,
    blob_size: u64,
}

/// What one pass found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedLayer {
    /// Members in tar order.
    pub entries: Vec<Entry>,
    /// The blob's.
    pub codec: Codec,
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
            decoder: Decoder::with_starts(SPAN_BYTES),
            tar: TarParser::new(),
            entries: Vec::new(),
            starts: Vec::new(),
            has_starts: false,
            blob_size: 0,
        }
    }

    /// A place to start decoding at, other than the beginning, has come by.
    pub fn can_seek(&self) -> bool {
        self.has_starts || self.decoder.codec() == Some(Codec::Stored)
    }

    /// The starts in what was pushed since the last call: for [`SpanBuilder::push`].
    pub fn take_starts(&mut self) -> Vec<Start> {
        std::mem::take(&mut self.starts)
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
        let known = self.starts.len();
        let (tar, entries, starts) = (&mut self.tar, &mut self.entries, &mut self.starts);
        let mut size = self.decoder.tar_bytes();
        self.decoder.push(blob, &mut |decoded| match decoded {
            Decoded::Start(start) => {
                starts.push(start);
                Ok(())
            }
            Decoded::Bytes(bytes) => accept(bytes, &mut size, tar, entries, sink),
        })?;
        self.has_starts |= self.starts[known..].iter().any(|start| start.tar > 0);
        Ok(())
    }

    /// Ends the blob; `sink` gets what is left.
    ///
    /// # Errors
    /// When the blob or the tar in it is cut off.
    pub fn finish<E: From<Error>>(
        mut self,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<ScannedLayer, E> {
        let (tar, entries) = (&mut self.tar, &mut self.entries);
        let mut size = self.decoder.tar_bytes();
        let codec = self.decoder.finish(&mut |decoded| match decoded {
            // What is not decoded until now is too short to have another than its first.
            Decoded::Start(_) => Ok(()),
            Decoded::Bytes(bytes) => accept(bytes, &mut size, tar, entries, sink),
        })?;
        self.tar.finish()?;
        let (tar_size, blob_size) = (self.decoder.tar_bytes(), self.blob_size);
        Ok(ScannedLayer { entries: self.entries, codec, tar_size, blob_size })
    }
}

fn accept<E: From<Error>>(
    bytes: &[u8],
    size: &mut u64,
    tar: &mut TarParser,
    entries: &mut Vec<Entry>,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    *size += bytes.len() as u64;
    if *size > LAYER_BYTES_MAX {
        let what = "size in bytes of the uncompressed layer".to_owned();
        return Err(Error::Limit { what, limit: LAYER_BYTES_MAX }.into());
    }
    tar.push(bytes, entries)?;
    sink(bytes)
}

impl ScannedLayer {
    /// The index of the layer whose uncompressed bytes have the digest `diff_id`, and whose blob
    /// was handed to `spans`.
    pub fn into_index(self, diff_id: Digest, spans: SpanBuilder) -> LayerIndex {
        let ScannedLayer { entries, codec, tar_size, .. } = self;
        let (spans, windows) = spans.finish(codec, tar_size);
        let (origin, artifact) = (Origin::OnePass, None);
        LayerIndex { origin, artifact, diff_id, tar_size, entries, spans, windows }
    }
}
