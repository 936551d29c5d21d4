//! Where a layer's table of contents is, and what proves it: annotations and footers.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::{TOC_JSON_BYTES_MAX, TOC_STORED_BYTES_MAX, refused};
use crate::layout::digest::Digest;
use crate::layout::error::Error;
use crate::layout::index::{Codec, Origin};
use crate::layout::range::ByteRange;

/// How much of the end of a blob to read for its footer, at least: mostly the table, too, if the layer
/// has a thousand members or fewer.
pub const TAIL_BYTES: u64 = 128 << 10;

/// Of a large blob, so much: tables have 0.3 to 0.8 % of it, and another request for the rest of one
/// would take longer than these bytes.
const TAIL_PART: u64 = 100;

/// And no more than that.
const TAIL_BYTES_MAX: u64 = 1 << 20;

/// eStargz: digest of the JSON document.
const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// zstd:chunked, as it is called, and as it was called first (Skopeo 1.9, nerdctl).
const ZSTD_CHUNKED: [&str; 2] = ["io.github.containers.zstd-chunked", "io.containers.zstd-chunked"];

/// The only type of zstd:chunked tables.
const TYPE_CRFS: u64 = 1;

/// Header of a zstd frame that decoders pass over: magic and length (RFC 8878, 3.1.2).
const SKIPPABLE_BYTES: u64 = 8;

/// eStargz's footer: an empty gzip member with an extra field.
const FOOTER_BYTES: usize = 51;
const LEGACY_FOOTER_BYTES: usize = 47;
const EXTERNAL_FOOTER_BYTES: usize = 46;

/// A table of contents in a blob, and what is known of it before it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Its format: [`Origin::EStargz`] or [`Origin::ZstdChunked`].
    pub origin: Origin,
    /// Where it is stored: [`TOC_STORED_BYTES_MAX`] at most, and inside the blob.
    pub blob: ByteRange,
    /// Bytes of the document, where that is known: [`TOC_JSON_BYTES_MAX`] at most.
    pub(super) json_bytes: Option<u64>,
    /// One past the bytes of the blob in which chunks may lie.
    pub(super) payload_end: u64,
    /// Of the table as stored.
    stored_digest: Option<Digest>,
    /// Of the JSON document.
    json_digest: Option<Digest>,
}

/// What annotations tell about where a table of contents is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// No table is announced.
    Nowhere,
    /// The footer tells: read these bytes, and give them to [`locate_in_tail`].
    Footer(ByteRange),
    /// Here.
    At(Location),
}

impl Location {
    /// The digest of a layer descriptor's annotation that [`parse`](super::parse) holds the table
    /// against: who trusts the manifest can trust the table. `None`: nothing proves it.
    pub fn digest(&self) -> Option<Digest> {
        self.stored_digest.or(self.json_digest)
    }

    pub(super) fn codec(&self) -> Codec {
        match self.origin {
            Origin::EStargz => Codec::Gzip,
            _ => Codec::Zstd,
        }
    }

    pub(super) fn verify_stored(&self, stored: &[u8]) -> Result<(), String> {
        verify(self.stored_digest, stored)
    }

    pub(super) fn verify_json(&self, json: &[u8]) -> Result<(), String> {
        verify(self.json_digest, json)
    }
}

fn verify(digest: Option<Digest>, bytes: &[u8]) -> Result<(), String> {
    digest.map_or(Ok(()), |digest| digest.verify(bytes)).map_err(|e| e.to_string())
}

/// Where the table of contents of a layer is, by the annotations of its descriptor.
///
/// # Errors
/// [`Error::ForeignIndex`]: a table is announced, but not so that
/// it could be found.
pub fn locate(annotations: &BTreeMap<String, String>, blob_size: u64) -> Result<Place, Error> {
    if let Some(location) = announced_chunked(annotations, blob_size)
        .transpose()
        .map_err(|reason| refused(Origin::ZstdChunked, reason))?
    {
        return Ok(Place::At(location));
    }
    if annotations.contains_key(TOC_DIGEST) {
        return Ok(Place::Footer(tail(blob_size)));
    }
    Ok(Place::Nowhere)
}

/// The end of a blob, where a footer is.
fn tail(blob_size: u64) -> ByteRange {
    let bytes = (blob_size / TAIL_PART).clamp(TAIL_BYTES, TAIL_BYTES_MAX);
    ByteRange::new(blob_size.saturating_sub(bytes), blob_size)
}

/// Where the table of contents is, by the footer of the blob: `tail` is its end, of
/// [`TAIL_BYTES`] at least, or what there is. A footer is believed without annotations, too; then the table
/// has no [`Location::digest`].
///
/// # Errors
/// [`Error::ForeignIndex`]: there is a footer, but of a table
/// that cannot be used; or none, though the annotations promise a table.
pub fn locate_in_tail(
    annotations: &BTreeMap<String, String>,
    blob_size: u64,
    tail: &[u8],
) -> Result<Option<Location>, Error> {
    let eager = |reason| refused(Origin::EStargz, reason);
    let json_digest = digest_of(annotations, TOC_DIGEST).map_err(eager)?;
    if let Some(location) = gzip_footer(tail, blob_size).map_err(eager)? {
        return Ok(Some(Location { json_digest, ..location }));
    }
    let zstd = zstd_footer(tail, blob_size).map_err(|e| refused(Origin::ZstdChunked, e))?;
    if let Some(location) = zstd {
        return Ok(Some(Location { json_digest, ..location }));
    }
    match json_digest {
        None => Ok(None),
        Some(_) => {
            Err(eager("the blob has no footer, though an annotation names its table".into()))
        }
    }
}

fn digest_of(annotations: &BTreeMap<String, String>, key: &str) -> Result<Option<Digest>, String> {
    let digest = annotations.get(key).map(|text| text.parse());
    digest.transpose().map_err(|e: Error| format!("annotation {key}: {e}"))
}

fn announced_chunked(
    annotations: &BTreeMap<String, String>,
    blob_size: u64,
) -> Option<Result<Location, String>> {
    let key = |prefix: &str| format!("{prefix}.manifest-position");
    let prefix = ZSTD_CHUNKED.into_iter().find(|p| annotations.contains_key(&key(p)))?;
    let position = &annotations[&key(prefix)];
    Some((|| {
        let numbers: Option<Vec<u64>> = position.split(':').map(decimal).collect();
        let Some(&[offset, stored_bytes, json_bytes, TYPE_CRFS]) = numbers.as_deref() else {
            return Err(format!("annotation {}: {position:?}", key(prefix)));
        };
        let stored_digest = digest_of(annotations, &format!("{prefix}.manifest-checksum"))?;
        let json_digest = digest_of(annotations, TOC_DIGEST)?;
        let location = chunked(offset, stored_bytes, json_bytes, blob_size)?;
        Ok(Location { stored_digest, json_digest, ..location })
    })())
}

/// Digits and nothing else: `u64`'s parser takes a plus.
fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A zstd:chunked table, in a frame that is passed over.
fn chunked(offset: u64, stored: u64, json_bytes: u64, end: u64) -> Result<Location, String> {
    if json_bytes > TOC_JSON_BYTES_MAX {
        return Err(format!("a document of {json_bytes} bytes: at most {TOC_JSON_BYTES_MAX}"));
    }
    let blob = checked(offset, stored, end)?;
    Ok(Location {
        origin: Origin::ZstdChunked,
        blob,
        json_bytes: Some(json_bytes),
        payload_end: offset.saturating_sub(SKIPPABLE_BYTES),
        stored_digest: None,
        json_digest: None,
    })
}

/// The place of a table of some bytes in front of `end`.
fn checked(offset: u64, stored: u64, end: u64) -> Result<ByteRange, String> {
    let blob = ByteRange::at(offset, stored);
    if stored == 0 || offset.checked_add(stored).is_none_or(|table_end| table_end > end) {
        return Err(format!("{stored} bytes at {offset} are not inside the blob's {end} bytes"));
    }
    if stored > TOC_STORED_BYTES_MAX {
        return Err(format!("{stored} stored bytes: at most {TOC_STORED_BYTES_MAX}"));
    }
    Ok(blob)
}

/// The extra field of the gzip member that `tail` ends with, if it is a footer of so many bytes:
/// header, XLEN, field, an empty block, trailer.
fn extra_field(tail: &[u8], footer_bytes: usize) -> Option<&[u8]> {
    let footer = &tail[tail.len().checked_sub(footer_bytes)?..];
    let extra = &footer[12..footer_bytes - 13];
    let is_gzip = footer[..4] == [0x1f, 0x8b, 8, 4];
    let is_sized = footer[10..12] == (extra.len() as u16).to_le_bytes();
    (is_gzip && is_sized).then_some(extra)
}

fn gzip_footer(tail: &[u8], blob_size: u64) -> Result<Option<Location>, String> {
    let legacy = extra_field(tail, LEGACY_FOOTER_BYTES);
    if legacy.is_some_and(|extra| extra.ends_with(b"STARGZ")) {
        return Err("a layer of stargz, whose chunks have no digests".into());
    }
    let external = extra_field(tail, EXTERNAL_FOOTER_BYTES);
    if external == Some(b"SG\x11\0STARGZEXTERNALTOC") {
        return Err("its table is in another image".into());
    }
    let subfield = extra_field(tail, FOOTER_BYTES).and_then(|e| e.strip_prefix(b"SG\x16\0"));
    let Some(digits) = subfield.and_then(|text| text.strip_suffix(b"STARGZ")) else {
        return Ok(None);
    };
    let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
    let number = std::str::from_utf8(digits).ok().filter(|_| is_hex);
    let offset = number.and_then(|text| u64::from_str_radix(text, 16).ok());
    let offset = offset.ok_or("its footer has no position")?;
    let end = blob_size.saturating_sub(FOOTER_BYTES as u64);
    Ok(Some(Location {
        origin: Origin::EStargz,
        blob: checked(offset, end.saturating_sub(offset), end)?,
        json_bytes: None,
        payload_end: offset,
        stored_digest: None,
        json_digest: None,
    }))
}

/// zstd:chunked's footers, with and without room for what tar-split writes.
fn zstd_footer(tail: &[u8], blob_size: u64) -> Result<Option<Location>, String> {
    for (bytes, magic) in [(64, b"GNUlInUx"), (40, b"GnUlInUx")] {
        let Some(start) = tail.len().checked_sub(bytes + SKIPPABLE_BYTES as usize) else {
            continue;
        };
        let (header, footer) = tail[start..].split_at(SKIPPABLE_BYTES as usize);
        let is_frame = header == [0x50, 0x2a, 0x4d, 0x18, bytes as u8, 0, 0, 0];
        if !is_frame || !footer.ends_with(magic) {
            continue;
        }
        let numbers: Vec<u64> = footer[..32]
            .chunks_exact(8)
            .map(|field| field.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
            .collect();
        let &[offset, stored_bytes, json_bytes, TYPE_CRFS] = numbers.as_slice() else {
            return Err(format!("a footer of another type: {numbers:?}"));
        };
        let end = blob_size.saturating_sub(bytes as u64 + SKIPPABLE_BYTES);
        return chunked(offset, stored_bytes, json_bytes, end).map(Some);
    }
    Ok(None)
}
