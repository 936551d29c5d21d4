//! Tables of contents that layers bring along, eStargz's and zstd:chunked's, to `LayerIndex`.
//!
//! Both list members and chunks of files as CRFS does, in one JSON document of which the manifest
//! names a digest: so a layer can be shown and read, every byte proved, without a pass over it.
//! [`locate`] says where the table is, [`parse`] reads it. Specifications: `docs/estargz.md` of
//! containerd/stargz-snapshotter; `pkg/chunked` of containers/storage.
//!
//! What is read must be what a pass over the layer would find, and is refused where it cannot be:
//!
//! - Members are applied in the order of the list, which writers keep to the tar's. Chunks may stand
//!   anywhere in the blob, but never in each other.
//! - Names that are not UTF-8 lost bytes on their way into JSON, and came out with U+FFFD: refused.
//! - eStargz keeps whole seconds, rounded; zstd:chunked keeps nanoseconds.
//! - Chunks of zeros (zstd:chunked) are holes: the table says so, and it is proved.
//! - eStargz puts its table into the tar, as the file `stargz.index.json`. A tar that was rewritten
//!   on the way has it as its last member (and a landmark, by which it is known); one that was kept
//!   as it was has ended before it. Only the former shows it.

mod chunks;
mod json;
mod member;
mod place;
#[cfg(test)]
mod tests;
mod time;

pub use place::{Location, Place, TAIL_BYTES, locate, locate_in_tail};

use super::codec::{Decoded, Decoder};
use super::digest::Digest;
use super::entry::{Attributes, Entry, EntryKind};
use super::error::Error;
use super::index::landmark::is_landmark;
use super::index::scan::Scanner;
use super::index::spans::SpanBuilder;
use super::index::{Codec, LayerIndex, Origin, Span, check, is_seekable};
use super::range::ByteRange;
use chunks::Chunks;

/// Largest table as stored. Digests do not compress: a third of the document is left of it.
pub const TOC_STORED_BYTES_MAX: u64 = 48 << 20;

/// Largest document: 300,000 files of eStargz, or half a million chunks of zstd:chunked.
pub const TOC_JSON_BYTES_MAX: u64 = 128 << 20;

/// What may stand around the document in eStargz's tar: headers, padding, the archive's end.
const TOC_TAR_EXTRA_BYTES_MAX: u64 = 1 << 20;

/// The name of eStargz's table in the tar.
const TOC_PATH: &[u8] = b"stargz.index.json";

/// Reads the table of contents of the layer with this DiffID: `stored` is what the blob has at
/// [`Location::blob`].
///
/// # Errors
/// [`Error::ForeignIndex`]: it is not what [`Location::digest`] names, it disagrees with itself or
/// the blob, or it cannot be read as lazily as it promises (chunks beyond what one read decodes).
pub fn parse(location: &Location, stored: &[u8], diff_id: Digest) -> Result<LayerIndex, Error> {
    let origin = location.origin;
    read(location, stored, diff_id).map_err(|reason| refused(origin, reason))
}

/// An error about a table of this origin.
fn refused(origin: Origin, reason: String) -> Error {
    let format = match origin {
        Origin::EStargz => "eStargz",
        _ => "zstd:chunked",
    };
    Error::ForeignIndex { format, reason }
}

fn read(location: &Location, stored: &[u8], diff_id: Digest) -> Result<LayerIndex, String> {
    let expected = location.blob.len();
    if stored.len() as u64 != expected {
        return Err(format!("expected {expected} bytes, got {}", stored.len()));
    }
    location.verify_stored(stored)?;
    let toc = match location.origin {
        Origin::EStargz => Toc::in_gzip(stored)?,
        _ => Toc::in_zstd(stored, location.json_bytes)?,
    };
    location.verify_json(toc.json())?;
    let mut chunks = Chunks::new(location.payload_end);
    let mut entries = json::read(toc.json(), &mut chunks)?;
    let (mut spans, mut tar_size) = chunks.finish(location.codec(), &mut entries)?;
    let mut windows = Vec::new();
    let has_landmark = entries.iter().any(|entry| is_landmark(&entry.path));
    if let Some(member) = toc.member.filter(|_| has_landmark) {
        let base = ByteRange::at(tar_size, member.tar_size);
        entries.push(shifted(member.entry, base.start));
        spans.extend(member.spans.into_iter().map(|span| moved(span, location.blob.start, base)));
        (tar_size, windows) = (base.end, member.windows);
    }
    if !is_seekable(&spans) {
        return Err("a chunk takes more of the blob than is fetched for one read".into());
    }
    let (origin, artifact) = (location.origin, None);
    let index = LayerIndex { origin, artifact, diff_id, tar_size, entries, spans, windows };
    check(&index)?;
    Ok(index)
}

/// An entry whose chunks are counted from `base`.
fn shifted(mut entry: Entry, base: u64) -> Entry {
    if let EntryKind::Regular { chunks, .. } = &mut entry.kind {
        for chunk in chunks {
            chunk.tar = ByteRange::at(base + chunk.tar.start, chunk.tar.len());
        }
    }
    entry
}

fn moved(span: Span, blob: u64, tar: ByteRange) -> Span {
    Span {
        blob: ByteRange::at(blob + span.blob.start, span.blob.len()),
        tar: ByteRange::at(tar.start + span.tar.start, span.tar.len()),
        ..span
    }
}

/// The document, decoded.
struct Toc {
    decoded: Vec<u8>,
    json: std::ops::Range<usize>,
    /// It as a member of the tar.
    member: Option<TocMember>,
}

/// eStargz's table as a file. Positions are relative to where it begins, in the blob and in the tar.
struct TocMember {
    entry: Entry,
    spans: Vec<Span>,
    windows: Vec<u8>,
    tar_size: u64,
}

impl Toc {
    fn json(&self) -> &[u8] {
        &self.decoded[self.json.clone()]
    }

    /// A tar of one file. It is read as a layer is, so that the file can be shown: its bytes are
    /// proved by the document's digest, and so are the stored ones that decode to them.
    fn in_gzip(stored: &[u8]) -> Result<Self, String> {
        let mut kept = Kept::up_to(TOC_JSON_BYTES_MAX + TOC_TAR_EXTRA_BYTES_MAX);
        let (mut scanner, mut spans) = (Scanner::new(), SpanBuilder::default());
        scanner.push(stored, &mut |bytes| kept.add(bytes)).map_err(|e| e.to_string())?;
        spans.push(stored, scanner.take_starts());
        let layer = scanner.finish(&mut |bytes| kept.add(bytes)).map_err(|e| e.to_string())?;
        if layer.codec != Codec::Gzip {
            return Err(format!("expected gzip, got {:?}", layer.codec));
        }
        let index = layer.into_index(Digest::Sha256([0; 32]), spans);
        let LayerIndex { entries, spans, windows, tar_size, .. } = index;
        let Ok([entry]) = <[Entry; 1]>::try_from(entries) else {
            return Err("expected a tar of one file".into());
        };
        let json = member_content(&entry)?;
        if json.len() > TOC_JSON_BYTES_MAX {
            return Err(too_long());
        }
        let json = json.start as usize..json.end as usize;
        let decoded = kept.bytes;
        Ok(Toc { decoded, json, member: Some(TocMember { entry, spans, windows, tar_size }) })
    }

    /// Frames of zstd, of `expected` bytes if somebody said so.
    fn in_zstd(stored: &[u8], expected: Option<u64>) -> Result<Self, String> {
        let mut kept = Kept::up_to(expected.unwrap_or(TOC_JSON_BYTES_MAX));
        let mut sink = |output: Decoded<'_>| match output {
            Decoded::Bytes(bytes) => kept.add(bytes),
            Decoded::Start(_) => Ok(()),
        };
        let mut decoder = Decoder::new();
        decoder.push(stored, &mut sink).map_err(|e| e.to_string())?;
        let codec = decoder.finish(&mut sink).map_err(|e: Error| e.to_string())?;
        let got = kept.bytes.len();
        if codec != Codec::Zstd {
            return Err(format!("expected zstd, got {codec:?}"));
        }
        if let Some(bytes) = expected.filter(|bytes| *bytes != got as u64) {
            return Err(format!("expected a document of {bytes} bytes, got {got}"));
        }
        Ok(Toc { json: 0..got, decoded: kept.bytes, member: None })
    }
}

/// Where in its tar the table lies. Nothing proves its header, so it must be as all writers make it.
fn member_content(entry: &Entry) -> Result<ByteRange, String> {
    if entry.path != TOC_PATH || entry.attributes != Attributes::default() {
        return Err("its tar header is not that of a table of contents".into());
    }
    match &entry.kind {
        EntryKind::Regular { size, chunks } => match chunks.as_slice() {
            [chunk] if chunk.tar.len() == *size => Ok(chunk.tar),
            _ => Err("it is empty or has holes".into()),
        },
        _ => Err("it is not a regular file".into()),
    }
}

fn too_long() -> String {
    format!("a document of more than {TOC_JSON_BYTES_MAX} bytes")
}

/// Decoded bytes, but not those of a bomb.
struct Kept {
    bytes: Vec<u8>,
    limit: u64,
}

impl Kept {
    fn up_to(limit: u64) -> Self {
        Kept { bytes: Vec::new(), limit }
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if (self.bytes.len() + bytes.len()) as u64 > self.limit {
            let what = "decoded size in bytes of a table of contents".to_owned();
            return Err(Error::Limit { what, limit: self.limit });
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}
