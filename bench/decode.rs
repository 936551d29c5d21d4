//! What each step of a first pass costs, in one thread: `cargo bench --bench decode -- [LAYER [ROUNDS
//! [STEP]]]`.
//!
//! All steps, or the one that is named, take turns in every round, over a layer blob in memory (64 MiB
//! of our own making when none is named). Prints the medians for people on standard error, and one JSON
//! document with the seconds of each round. Of the two that differ only in seek points, each is the
//! other one's comparison.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::time::Instant;

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

type Result<T> = std::result::Result<T, Box<dyn StdError>>;
type Step<'a> = (&'static str, Box<dyn Fn() -> Result<()> + 'a>);

/// As a first pass reads.
const READ_BYTES: usize = 64 << 10;

/// Places that are read at random in each round.
const PLACES: u64 = 200;

/// Reads that are planned in each round.
const PLANS: u64 = 10_000;

/// Decodes everything into `sink`.
fn inflate(blob: &[u8], sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
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
fn without_points(blob: &[u8]) -> Result<()> {
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
    for piece in blob.chunks(READ_BYTES) {
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
fn with_points(blob: &[u8]) -> Result<()> {
    black_box(saved::encode(&index_of(blob)?)?);
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
fn inflating_thread(blob: &[u8], has_points: bool) -> Result<()> {
    if has_points {
        let mut scanner = Scanner::new();
        for piece in blob.chunks(READ_BYTES) {
            scanner.push::<Error>(piece, &mut |_| Ok(()))?;
            black_box(scanner.take_starts());
        }
        black_box(scanner.finish::<Error>(&mut |_| Ok(()))?);
        return Ok(());
    }
    let (mut tar, mut entries) = (TarParser::new(), Vec::new());
    inflate(blob, &mut |bytes| Ok(tar.push(bytes, &mut entries)?))?;
    black_box(entries);
    Ok(())
}

/// Decodes the span of each of [`PLACES`] places, and looks at nothing twice.
fn random_spans(blob: &[u8], index: &LayerIndex) -> Result<()> {
    for n in 0..PLACES {
        // Odd multiples modulo the size: all over the layer, the same in each round.
        let at = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % index.tar_size;
        for span in plan_spans(index, &[ByteRange::at(at, 1)]) {
            let span = &index.spans[span];
            let stored = &blob[span.blob.start as usize..span.blob.end as usize];
            black_box(decode_span(span, &index.window(span)?, stored)?);
        }
    }
    Ok(())
}

/// The headers of an uncompressed layer, and past its content.
fn scanned(tar_bytes: &[u8]) -> Result<()> {
    let (mut tar, mut entries) = (TarParser::new(), Vec::new());
    for piece in tar_bytes.chunks(READ_BYTES) {
        tar.push(piece, &mut entries)?;
    }
    tar.finish()?;
    black_box(entries);
    Ok(())
}

/// The spans of [`PLANS`] reads of 128 KiB.
fn planned(index: &LayerIndex) {
    for n in 0..PLANS {
        let at = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % index.tar_size;
        let size = (128 << 10).min(index.tar_size - at);
        black_box(plan_spans(index, &[ByteRange::at(at, size)]));
    }
}

fn opened(encoded: &[u8]) -> Result<()> {
    black_box(saved::decode(encoded)?);
    Ok(())
}

fn merged(blob: &[u8], index: &LayerIndex) -> Result<()> {
    let layer = Layer {
        blob: Blob { digest: Digest::sha256_of(&[]), size: blob.len() as u64 },
        diff_id: index.diff_id,
        media_type: String::new(),
        annotations: BTreeMap::new(),
        soci_index: None,
    };
    black_box(merge(vec![Changeset::take(layer, &mut index.clone())?])?);
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

fn main() -> Result<()> {
    // cargo adds `--bench`.
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let blob = arguments.next().map_or_else(synthetic, |path| Ok(std::fs::read(path)?))?;
    let rounds: usize = arguments.next().map_or(Ok(7), |n| n.parse())?;
    let index = index_of(&blob)?;
    let encoded = saved::encode(&index)?;
    let mut tar_bytes = Vec::new();
    inflate(&blob, &mut |bytes| {
        tar_bytes.extend_from_slice(bytes);
        Ok(())
    })?;
    let wanted = arguments.next();
    let mut steps: Vec<Step<'_>> = vec![
        ("inflate", Box::new(|| inflate(&blob, &mut |_| Ok(())))),
        ("pass without seek points", Box::new(|| without_points(&blob))),
        ("pass with seek points", Box::new(|| with_points(&blob))),
        ("inflating thread without", Box::new(|| inflating_thread(&blob, false))),
        ("inflating thread with", Box::new(|| inflating_thread(&blob, true))),
        ("tar scan", Box::new(|| scanned(&tar_bytes))),
        (
            "10000 plans",
            Box::new(|| {
                planned(&index);
                Ok(())
            }),
        ),
        (
            "index encode",
            Box::new(|| {
                black_box(saved::encode(&index)?);
                Ok(())
            }),
        ),
        ("index open", Box::new(|| opened(&encoded))),
        ("merge", Box::new(|| merged(&blob, &index))),
        ("200 random spans", Box::new(|| random_spans(&blob, &index))),
    ];
    steps.retain(|step| wanted.as_ref().is_none_or(|name| name == step.0));
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); steps.len()];
    for round in 0..rounds {
        for n in 0..steps.len() {
            let step = (round + n) % steps.len();
            let start = Instant::now();
            (steps[step].1)()?;
            seconds[step].push(start.elapsed().as_secs_f64());
        }
    }
    for (step, taken) in steps.iter().zip(&seconds) {
        let mut ordered = taken.clone();
        ordered.sort_by(f64::total_cmp);
        eprintln!("{:<26} {:>10.3} ms", step.0, 1000.0 * ordered[ordered.len() / 2]);
    }
    let seconds: BTreeMap<_, _> = steps.iter().map(|step| step.0).zip(seconds).collect();
    let told = serde_json::json!({
        "blob_bytes": blob.len(),
        "tar_bytes": index.tar_size,
        "index_bytes": encoded.len(),
        "spans": index.spans.len(),
        "entries": index.entries.len(),
        "seconds": seconds,
    });
    println!("{told}");
    Ok(())
}
