//! Our own encoding of `LayerIndex`: versioned, self-checking.
//!
//! ```text
//! magic 8 | version u32 | diffID algorithm u32 | diffID 64 | tar size u64 | origin u64
//! counts: entries, chunks, attributes, xattrs, spans, digests, bytes of edges, heap bytes: u64 each
//! bytes of the tables u64 | bytes of the windows u64
//! tables, one zstd frame: the records of each in this order, edges, heap | windows | sha256 of all before
//! ```
//!
//! All numbers are little endian, all records have a fixed size. Names lie in the heap, each once:
//! directories and base names apart, since most are shared. The tables are read as a whole, when a
//! tree is made of them, so that they are compressed: records are some five times as many bytes. Windows
//! are frames of their own, unpacked one by one.
//!
//! The sum is sha256, not a CRC: the digests in here prove spans, so that damage must not go
//! unseen, and an index may come from elsewhere under the digest of the whole file.

mod records;
#[cfg(test)]
mod tests;

use std::io::Read as _;

use sha2::{Digest as _, Sha256};

use super::check::check;
use super::{LayerIndex, Origin, Span};
use crate::layout::digest::Digest;
use crate::layout::entry::{Entry, EntryKind};
use crate::layout::error::{Error, Result};
use crate::layout::tar::{METADATA_BYTES_MAX, metadata_bytes};
use records::{Cursor, Proofs, Tables, TablesRef, read_span, write_span};

/// The version that this program writes, and the only one that it reads: an index is quickly built
/// again.
pub const VERSION: u32 = 4;

const MAGIC: &[u8; 8] = b"LAYOUTIX";
const CHECKSUM_BYTES: usize = 32;

/// Written once, when a pass ends, and kept for ever; higher levels keep a mount waiting.
const ZSTD_LEVEL: i32 = 7;

/// While somebody waits for what is in a table that came with its layer.
const ZSTD_LEVEL_QUICK: i32 = 1;

const ORIGINS: [Origin; 4] = [Origin::OnePass, Origin::EStargz, Origin::ZstdChunked, Origin::Soci];

/// The index as bytes: the same for the same index.
///
/// # Errors
/// [`Error::SavedIndex`] if the index breaks a rule that [`decode`] would refuse it for, or
/// exceeds what the encoding can hold (4 GiB of names).
pub fn encode(index: &LayerIndex) -> Result<Vec<u8>> {
    encode_at(index, ZSTD_LEVEL)
}

/// As [`encode`], in a fifth of the time and some more bytes.
///
/// # Errors
/// Those of [`encode`].
pub fn encode_quickly(index: &LayerIndex) -> Result<Vec<u8>> {
    encode_at(index, ZSTD_LEVEL_QUICK)
}

fn encode_at(index: &LayerIndex, level: i32) -> Result<Vec<u8>> {
    check(index).map_err(Error::SavedIndex)?;
    let mut tables = Tables::default();
    for entry in &index.entries {
        tables.add_entry(entry)?;
    }
    let mut spans = Vec::with_capacity(index.spans.len() * records::SPAN_BYTES);
    let mut proofs = Proofs::default();
    for span in &index.spans {
        write_span(&mut spans, &mut proofs, span)?;
    }
    let counts = [
        tables.entries.len() / records::ENTRY_BYTES,
        tables.chunks.len() / records::CHUNK_BYTES,
        tables.attributes.len() / records::ATTRIBUTES_BYTES,
        tables.xattrs.len() / records::XATTR_BYTES,
        index.spans.len(),
        proofs.digests.len(),
        proofs.edges.len(),
        tables.heap.len(),
    ];
    let (algorithm, digest): (u32, &[u8]) = match &index.diff_id {
        Digest::Sha256(bytes) => (256, bytes),
        Digest::Sha512(bytes) => (512, bytes),
    };
    let mut padded_digest = [0; 64];
    padded_digest[..digest.len()].copy_from_slice(digest);
    let Tables { entries, chunks, attributes, xattrs, heap, .. } = &tables;
    let digests = proofs.digests.as_flattened();
    let plain: [&[u8]; 8] =
        [entries, chunks, attributes, xattrs, &spans, digests, &proofs.edges, heap];
    let plain = plain.concat();
    let packed = zstd::bulk::compress(&plain, level)
        .map_err(|e| Error::SavedIndex(format!("its tables cannot be compressed: {e}")))?;
    let origin = ORIGINS.iter().position(|origin| *origin == index.origin).unwrap_or_default();
    let mut bytes = Vec::new();
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&algorithm.to_le_bytes());
    bytes.extend_from_slice(&padded_digest);
    for number in [index.tar_size, origin as u64] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for count in counts.into_iter().chain([packed.len(), index.windows.len()]) {
        bytes.extend_from_slice(&(count as u64).to_le_bytes());
    }
    bytes.extend_from_slice(&packed);
    bytes.extend_from_slice(&index.windows);
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    Ok(bytes)
}

/// The index that [`encode`] made these bytes of.
///
/// # Errors
/// [`Error::SavedIndex`]: not an index, of another version, damaged, or breaking a rule.
pub fn decode(bytes: &[u8]) -> Result<LayerIndex> {
    let refused = |reason: &str| Error::SavedIndex(reason.to_owned());
    let body = bytes.strip_prefix(MAGIC).ok_or_else(|| refused("not a saved index"))?;
    let version = body.first_chunk().map(|version| u32::from_le_bytes(*version));
    match version {
        Some(VERSION) => {}
        Some(version) => {
            let reason = format!("written by another version: {version}, this is {VERSION}");
            return Err(Error::SavedIndex(reason));
        }
        None => return Err(refused("cut off")),
    }
    let (checked, checksum) =
        bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(|| refused("cut off"))?;
    if Sha256::digest(checked)[..] != checksum[..] {
        return Err(refused("its checksum is wrong: it is damaged or cut off"));
    }
    let index = read(Cursor(&checked[MAGIC.len() + 4..])).map_err(Error::SavedIndex)?;
    check(&index).map_err(Error::SavedIndex)?;
    Ok(index)
}

/// Everything behind the version. The checksum may be a stranger's: nothing here is trusted.
fn read(mut cursor: Cursor<'_>) -> std::result::Result<LayerIndex, String> {
    let algorithm = cursor.u32()?;
    let digest: [u8; 64] = cursor.array()?;
    let diff_id = match (algorithm, digest.split_at(32)) {
        (256, (sha256, rest)) if rest.iter().all(|b| *b == 0) => {
            Digest::Sha256(sha256.try_into().map_err(|_| "impossible digest")?)
        }
        (512, _) => Digest::Sha512(digest),
        _ => return Err(format!("diffID algorithm {algorithm}: expected 256 or 512")),
    };
    let (tar_size, origin) = (cursor.u64()?, cursor.u64()?);
    let origin = usize::try_from(origin).ok().and_then(|origin| ORIGINS.get(origin).copied());
    let origin = origin.ok_or("made by something unknown")?;
    let mut counts = [0; 10];
    for count in &mut counts {
        *count = cursor.u64()?;
    }
    let [entries, chunks, attributes, xattrs, spans, digests, edges, heap_bytes, packed, windows] =
        counts;
    let packed = cursor.section(packed, 1)?;
    let windows = cursor.section(windows, 1)?.to_vec();
    if !cursor.0.is_empty() {
        return Err("bytes behind its last section".into());
    }
    let plain = unpack_tables(packed)?;
    let mut cursor = Cursor(&plain);
    let entries = cursor.section(entries, records::ENTRY_BYTES)?;
    let tables = TablesRef {
        chunks: cursor.section(chunks, records::CHUNK_BYTES)?,
        attributes: cursor.section(attributes, records::ATTRIBUTES_BYTES)?,
        xattrs: cursor.section(xattrs, records::XATTR_BYTES)?,
        heap: &[],
    };
    let spans = cursor.section(spans, records::SPAN_BYTES)?;
    let digests = cursor.section(digests, records::DIGEST_BYTES)?;
    let edges = cursor.section(edges, 1)?;
    let tables = TablesRef { heap: cursor.section(heap_bytes, 1)?, ..tables };
    if !cursor.0.is_empty() {
        return Err("bytes behind its last table".into());
    }
    let (entries, spans) = (read_entries(entries, &tables)?, read_spans(spans, digests, edges)?);
    Ok(LayerIndex { origin, artifact: None, diff_id, tar_size, entries, spans, windows })
}

/// The tables as they were before they were compressed: at most what the entries of a layer may
/// take, and as much memory as there are bytes, whatever a frame promises.
fn unpack_tables(packed: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let failed = |e: std::io::Error| format!("its tables cannot be decompressed: {e}");
    let frame = zstd::stream::read::Decoder::with_buffer(packed).map_err(failed)?;
    let mut plain = Vec::new();
    frame.single_frame().take(METADATA_BYTES_MAX + 1).read_to_end(&mut plain).map_err(failed)?;
    if plain.len() as u64 > METADATA_BYTES_MAX {
        return Err(format!("tables of more than {METADATA_BYTES_MAX} bytes"));
    }
    Ok(plain)
}

fn read_entries(section: &[u8], tables: &TablesRef<'_>) -> std::result::Result<Vec<Entry>, String> {
    let attributes = tables.read_attributes()?;
    let records = section.chunks_exact(records::ENTRY_BYTES);
    let mut entries = Vec::with_capacity(records.len());
    let mut bytes: u64 = 0;
    let mut next_chunk = 0;
    for record in records {
        let entry = tables.read_entry(Cursor(record), &attributes, &mut next_chunk)?;
        // Shared names and attributes make a small file into any amount.
        bytes = bytes.saturating_add(metadata_bytes(&entry));
        if bytes > METADATA_BYTES_MAX {
            return Err(format!("its entries take more than {METADATA_BYTES_MAX} bytes"));
        }
        entries.push(entry);
    }
    if next_chunk != tables.chunks.len() / records::CHUNK_BYTES {
        return Err("chunks that belong to no entry".into());
    }
    Ok(entries)
}

/// Each span takes its digests and edges where the one before it ended: no small file can name the same
/// ones without end.
fn read_spans(
    section: &[u8],
    digests: &[u8],
    mut edges: &[u8],
) -> std::result::Result<Vec<Span>, String> {
    let (mut digests, _) = digests.as_chunks();
    let records = section.chunks_exact(records::SPAN_BYTES);
    let spans = records.map(|record| read_span(Cursor(record), &mut digests, &mut edges));
    let spans = spans.collect::<std::result::Result<_, String>>()?;
    if !digests.is_empty() || !edges.is_empty() {
        return Err("digests or edges that belong to no span".into());
    }
    Ok(spans)
}

/// Whether a file is one chunk that follows its header, as nearly all are: it needs no chunk
/// record.
fn is_contiguous(entry: &Entry) -> bool {
    match &entry.kind {
        EntryKind::Regular { size, chunks } => {
            matches!(chunks.as_slice(), [chunk] if *chunk == records::contiguous(entry.offset, *size))
        }
        _ => false,
    }
}
