//! The steps of a first pass and of what follows it, in one thread, over a layer in memory: `decode.rs`
//! takes them in turns, `micro.rs` one by one.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;

use layoutfs::layout::Digest;
use layoutfs::layout::codec::{Decoded, Decoder, decode_span};
use layoutfs::layout::digest::{Blob, Hasher, Sha256};
use layoutfs::layout::error::Error;
use layoutfs::layout::index::scan::Scanner;
use layoutfs::layout::index::spans::SpanBuilder;
use layoutfs::layout::index::{LayerIndex, saved};
use layoutfs::layout::merge::{Changeset, merge};
use layoutfs::layout::plan::plan_spans;
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::tar::TarParser;
use layoutfs::layout::tree::Layer;

/// Of a step.
pub type Result<T> = std::result::Result<T, Box<dyn StdError>>;

/// As a first pass reads.
const READ_BYTES: usize = 64 << 10;

/// Places that are read at random in each round.
pub const PLACES: u64 = 200;

/// Reads that are planned in each round.
pub const PLANS: u64 = 10_000;

/// A layer, and what the steps need of it.
pub struct Sample {
    /// As it is stored.
    pub blob: Vec<u8>,
    /// Decoded.
    pub tar: Vec<u8>,
    /// Of the blob.
    pub index: LayerIndex,
    /// As it is saved.
    pub encoded: Vec<u8>,
}

impl Sample {
    /// Of a layer blob.
    pub fn of(blob: Vec<u8>) -> Result<Self> {
        let index = index_of(&blob)?;
        let encoded = saved::encode(&index)?;
        let mut tar = Vec::new();
        decoded_into(&blob, &mut |bytes| {
            tar.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(Sample { blob, tar, index, encoded })
    }

    /// Of 64 MiB of our own making.
    pub fn synthetic() -> Result<Self> {
        Self::of(synthetic()?)
    }
}

/// Decodes, and does nothing with it.
pub fn inflate(sample: &Sample) -> Result<()> {
    decoded_into(&sample.blob, &mut |_| Ok(()))
}

/// Makes what is saved of the index.
pub fn encode(sample: &Sample) -> Result<()> {
    black_box(saved::encode(&sample.index)?);
    Ok(())
}

/// Decodes everything into `sink`.
fn decoded_into(blob: &[u8], sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut decoder = Decoder::new();
    let mut take = |decoded: Decoded<'_>| match decoded {
        Decoded::Bytes(bytes) => sink(bytes).map_err(Stop::from),
        Decoded::Start(_) => Ok(()),
    };
    for piece in blob.chunks(READ_BYTES) {
        decoder.push(piece, &mut take)?;
    }
    decoder.finish(&mut take)?;
    Ok(())
}

/// Any error, for functions that want to make one of theirs.
#[derive(Debug)]
struct Stop(Box<dyn StdError>);

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop(error.into())
    }
}

impl From<Box<dyn StdError>> for Stop {
    fn from(error: Box<dyn StdError>) -> Self {
        Stop(error)
    }
}

impl From<Stop> for Box<dyn StdError> {
    fn from(stop: Stop) -> Self {
        stop.0
    }
}

/// What every pass has to do, index or not: inflate, read the tar, and both digests, as fast as both
/// can be had.
pub fn without_points(sample: &Sample) -> Result<()> {
    let (mut whole, mut diff_id) = (Sha256::default(), Hasher::sha256());
    let (mut tar, mut entries) = (TarParser::new(), Vec::new());
    let (mut decoder, mut decoded_bytes) = (Decoder::new(), Vec::new());
    let mut take = |decoded: Decoded<'_>, decoded_bytes: &mut Vec<u8>| match decoded {
        Decoded::Bytes(bytes) => {
            decoded_bytes.extend_from_slice(bytes);
            tar.push(bytes, &mut entries)
        }
        Decoded::Start(_) => Ok(()),
    };
    for piece in sample.blob.chunks(READ_BYTES) {
        decoded_bytes.clear();
        decoder.push(piece, &mut |decoded| take(decoded, &mut decoded_bytes))?;
        diff_id.update_with(&decoded_bytes, &mut whole, piece);
    }
    decoded_bytes.clear();
    decoder.finish(&mut |decoded| take(decoded, &mut decoded_bytes))?;
    diff_id.update(&decoded_bytes);
    tar.finish()?;
    black_box((whole.finish(), diff_id.finish(), entries));
    Ok(())
}

/// The same with seek points, spans and their digests, and the index as it is saved.
pub fn with_points(sample: &Sample) -> Result<()> {
    black_box(saved::encode(&index_of(&sample.blob)?)?);
    Ok(())
}

fn index_of(blob: &[u8]) -> Result<LayerIndex> {
    let mut diff_id = Hasher::sha256();
    let (mut scanner, mut spans) = (Scanner::new(), SpanBuilder::default());
    let mut decoded = Vec::new();
    for piece in blob.chunks(READ_BYTES) {
        decoded.clear();
        scanner.push(piece, &mut |bytes| {
            decoded.extend_from_slice(bytes);
            Ok::<(), Error>(())
        })?;
        spans.push_along(piece, scanner.take_starts(), &mut diff_id, &decoded);
    }
    let scanned = scanner.finish(&mut |bytes| {
        diff_id.update(bytes);
        Ok::<(), Error>(())
    })?;
    black_box(spans.blob_sha256());
    Ok(scanned.into_index(diff_id.finish(), spans))
}

/// What the inflating thread does, with and without seek points; the rest is on others.
pub fn inflating_thread(sample: &Sample, has_points: bool) -> Result<()> {
    if has_points {
        let mut scanner = Scanner::new();
        for piece in sample.blob.chunks(READ_BYTES) {
            scanner.push::<Error>(piece, &mut |_| Ok(()))?;
            black_box(scanner.take_starts());
        }
        black_box(scanner.finish::<Error>(&mut |_| Ok(()))?);
        return Ok(());
    }
    let (mut tar, mut entries) = (TarParser::new(), Vec::new());
    decoded_into(&sample.blob, &mut |bytes| Ok(tar.push(bytes, &mut entries)?))?;
    black_box(entries);
    Ok(())
}

/// Decodes the span of each of [`PLACES`] places, and looks at nothing twice.
pub fn random_spans(sample: &Sample) -> Result<()> {
    let index = &sample.index;
    for n in 0..PLACES {
        // Odd multiples modulo the size: all over the layer, the same in each round.
        let at = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % index.tar_size;
        for span in plan_spans(index, &[ByteRange::at(at, 1)]) {
            let span = &index.spans[span];
            let stored = &sample.blob[span.blob.start as usize..span.blob.end as usize];
            black_box(decode_span(span, &index.window(span)?, stored)?);
        }
    }
    Ok(())
}

/// The headers of an uncompressed layer, and past its content.
pub fn scan(sample: &Sample) -> Result<()> {
    let (mut tar, mut entries) = (TarParser::new(), Vec::new());
    for piece in sample.tar.chunks(READ_BYTES) {
        tar.push(piece, &mut entries)?;
    }
    tar.finish()?;
    black_box(entries);
    Ok(())
}

/// The spans of [`PLANS`] reads of 128 KiB.
pub fn plan(sample: &Sample) -> Result<()> {
    let index = &sample.index;
    for n in 0..PLANS {
        let at = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % index.tar_size;
        let size = (128 << 10).min(index.tar_size - at);
        black_box(plan_spans(index, &[ByteRange::at(at, size)]));
    }
    Ok(())
}

/// The index as it was saved, read and checked.
pub fn open(sample: &Sample) -> Result<()> {
    black_box(saved::decode(&sample.encoded)?);
    Ok(())
}

/// The tree of the layer alone.
pub fn merge_one(sample: &Sample) -> Result<()> {
    let layer = Layer {
        blob: Blob { digest: Digest::sha256_of(&[]), size: sample.blob.len() as u64 },
        diff_id: sample.index.diff_id,
        media_type: String::new(),
        annotations: BTreeMap::new(),
        soci_index: None,
    };
    black_box(merge(vec![Changeset::take(layer, &mut sample.index.clone())?])?);
    Ok(())
}

/// A layer of words in lines, which compress about as files do.
fn synthetic() -> Result<Vec<u8>> {
    let mut state = 1u32;
    let mut words = |size: usize| {
        let mut text = String::with_capacity(size + 16);
        while text.len() < size {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let _ = write!(text, "{:x} ", (state >> 8) % 40_009);
        }
        text
    };
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    let mut builder = tar::Builder::new(encoder);
    for n in 0..2048 {
        let content = words(32 << 10);
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("dir{}/file{n}", n % 32), content.as_bytes())?;
    }
    let mut encoder = builder.into_inner()?;
    encoder.flush()?;
    Ok(encoder.finish()?)
}
