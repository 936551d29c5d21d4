//! A zTOC to a `LayerIndex`: everything in it is checked, since nothing proves it.

use super::checkpoints;
use super::flatbuffer::{References, Table};
use super::members::read_members;
use super::{ALGORITHM_GZIP, ALGORITHM_NONE, VERSION, slot};
use crate::layout::digest::Digest;
use crate::layout::error::{Error, Result};
use crate::layout::index::scan::LAYER_BYTES_MAX;
use crate::layout::index::window::Packer;
use crate::layout::index::{
    Codec, LayerIndex, Origin, Point, Proof, Segments, Span, check, is_seekable,
};
use crate::layout::range::ByteRange;
use crate::layout::tar::path::quoted;

/// Largest zTOC. Windows are most of one: at SOCI's 4 MiB a span they are 256 MiB for a layer of
/// 32 GiB, and as much again is left for names.
pub const ZTOC_BYTES_MAX: u64 = 512 << 20;

/// Most spans of a layer: the largest one in spans of 1 MiB.
pub const SPANS_MAX: usize = (LAYER_BYTES_MAX >> 20) as usize;

/// Most output of a byte of deflate: four pairs of length and distance, 258 bytes each.
const OUTPUT_OF_A_BYTE_MAX: u64 = 4 * 258;

/// Reads a zTOC of the layer whose blob has `blob_size` bytes and whose uncompressed tar has the
/// digest `diff_id`. Whoever calls this has proved the zTOC's own digest.
///
/// # Errors
/// [`Error::ForeignIndex`] with the reason why it cannot be used; [`Error::Limit`] above
/// [`ZTOC_BYTES_MAX`].
pub fn parse_ztoc(bytes: &[u8], blob_size: u64, diff_id: Digest) -> Result<LayerIndex> {
    if bytes.len() as u64 > ZTOC_BYTES_MAX {
        let what = "size in bytes of a zTOC".to_owned();
        return Err(Error::Limit { what, limit: ZTOC_BYTES_MAX });
    }
    let refused = |reason| Error::ForeignIndex { format: "SOCI", reason };
    let index = read(bytes, blob_size, diff_id).map_err(refused)?;
    check(&index).map_err(refused)?;
    if !is_seekable(&index.spans) {
        return Err(refused("a span decodes to more than is decoded for one read".into()));
    }
    Ok(index)
}

fn read(bytes: &[u8], blob_size: u64, diff_id: Digest) -> std::result::Result<LayerIndex, String> {
    let ztoc = Table::root(bytes)?;
    let version = ztoc.bytes(slot::ztoc::VERSION)?;
    if version != VERSION {
        return Err(format!("version {}, expected {}", quoted(version), quoted(VERSION)));
    }
    let compressed = ztoc.i64(slot::ztoc::COMPRESSED_SIZE)?;
    if u64::try_from(compressed) != Ok(blob_size) {
        return Err(format!("it is of a layer of {compressed} bytes, not {blob_size}"));
    }
    let uncompressed = ztoc.i64(slot::ztoc::UNCOMPRESSED_SIZE)?;
    let uncompressed = u64::try_from(uncompressed).ok().filter(|size| *size <= LAYER_BYTES_MAX);
    let counted = uncompressed.ok_or("an impossible size of the uncompressed layer")?;
    let compression = ztoc.table(slot::ztoc::COMPRESSION)?.ok_or("it has no spans")?;
    let Spans { spans, windows, tar_size } = read_spans(&compression, blob_size, counted)?;
    let entries = match ztoc.table(slot::ztoc::TOC)? {
        Some(toc) => read_members(toc.references(slot::toc::FILES)?)?,
        None => Vec::new(),
    };
    let (origin, artifact) = (Origin::Soci, None);
    Ok(LayerIndex { origin, artifact, diff_id, tar_size, entries, spans, windows })
}

#[derive(Default)]
struct Spans {
    spans: Vec<Span>,
    windows: Vec<u8>,
    tar_size: u64,
}

/// `counted`: the uncompressed size as SOCI counts it, without what is behind two zero records.
fn read_spans(
    compression: &Table<'_>,
    blob_size: u64,
    counted: u64,
) -> std::result::Result<Spans, String> {
    let digests = compression.references(slot::compression::DIGESTS)?;
    let last = compression.i32(slot::compression::LAST_SPAN)?;
    if digests.count > SPANS_MAX || i64::from(last) + 1 != digests.count as i64 {
        return Err(format!("{} digests for {} spans", digests.count, i64::from(last) + 1));
    }
    let bytes = compression.bytes(slot::compression::CHECKPOINTS)?;
    match compression.i8(slot::compression::ALGORITHM)?.unwrap_or(ALGORITHM_GZIP) {
        ALGORITHM_GZIP => read_gzip(bytes, digests, blob_size, counted),
        ALGORITHM_NONE => read_plain(bytes, digests, blob_size, counted),
        other => Err(format!("compression {other}, expected gzip (1) or none (2)")),
    }
}

fn read_gzip(
    bytes: &[u8],
    digests: References<'_>,
    blob_size: u64,
    counted: u64,
) -> std::result::Result<Spans, String> {
    let checkpoints = checkpoints::read(bytes)?;
    if checkpoints.len() != digests.count {
        return Err(format!("{} digests for {} checkpoints", digests.count, checkpoints.len()));
    }
    let mut read = Spans { tar_size: counted, ..Spans::default() };
    let mut packer = Packer::default();
    for (n, (checkpoint, digest)) in checkpoints.iter().zip(digests.strings()).enumerate() {
        let next = checkpoints.get(n + 1);
        let blob = ByteRange::new(checkpoint.start(), next.map_or(blob_size, |next| next.blob));
        if checkpoint.blob >= blob.end || blob.end > blob_size {
            return Err(format!("span {n} of blob {blob}: the layer has {blob_size} bytes"));
        }
        let proof = Proof::Stored(Segments::One(sha256(digest?)?));
        let tar_end = next.map_or(counted, |next| next.tar.min(counted));
        if checkpoint.tar >= tar_end {
            // Nothing is left of it but what SOCI does not count.
            continue;
        }
        let tar = ByteRange::new(checkpoint.tar, tar_end);
        if tar.len() / OUTPUT_OF_A_BYTE_MAX > blob.len() {
            return Err(format!("span {n} of blob {blob} cannot decode to tar {tar}"));
        }
        let stored =
            if checkpoint.window.is_empty() { vec![] } else { packer.pack(checkpoint.window) };
        let place = ByteRange::at(read.windows.len() as u64, stored.len() as u64);
        read.windows.extend_from_slice(&stored);
        let codec = Codec::Deflate(Point { bits: checkpoint.bits, window: place });
        read.spans.push(Span { blob, tar, skip: 0, codec, proof });
    }
    Ok(read)
}

/// A plain tar is cut at the multiples of a size. Here the blob says how large the tar is.
fn read_plain(
    bytes: &[u8],
    digests: References<'_>,
    blob_size: u64,
    counted: u64,
) -> std::result::Result<Spans, String> {
    let tar = Table::root(bytes)?;
    let (size, span_bytes) = (tar.i64(slot::tar::SIZE)?, tar.i64(slot::tar::SPAN_BYTES)?);
    let (Ok(size), Ok(span_bytes @ 1..)) = (u64::try_from(size), u64::try_from(span_bytes)) else {
        return Err(format!("a plain tar of {size} bytes in spans of {span_bytes}"));
    };
    if size != blob_size || counted > size {
        return Err(format!("a plain tar of {size} and {counted} bytes, not {blob_size}"));
    }
    if digests.count as u64 != size.div_ceil(span_bytes) {
        let count = digests.count;
        return Err(format!("{count} digests for {size} bytes in spans of {span_bytes}"));
    }
    let mut read = Spans { tar_size: size, ..Spans::default() };
    for digest in digests.strings() {
        let start = read.spans.last().map_or(0, |span: &Span| span.tar.end);
        let range = ByteRange::new(start, start.saturating_add(span_bytes).min(size));
        let proof = Proof::Stored(Segments::One(sha256(digest?)?));
        read.spans.push(Span { blob: range, tar: range, skip: 0, codec: Codec::Stored, proof });
    }
    Ok(read)
}

fn sha256(digest: &[u8]) -> std::result::Result<[u8; 32], String> {
    match std::str::from_utf8(digest).map(str::parse) {
        Ok(Ok(Digest::Sha256(sha256))) => Ok(sha256),
        _ => Err(format!("a span's digest {}, expected sha256", quoted(digest))),
    }
}
