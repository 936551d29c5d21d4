//! The fixed-size records of a saved index, and the tables that they point into.

use std::collections::HashMap;

use super::super::{Chain, Codec, Point, Proof, Segments, Span};
use super::is_contiguous;
use crate::layout::entry::{Attributes, Chunk, Entry, EntryKind, Time};
use crate::layout::error::Error;
use crate::layout::range::ByteRange;
use crate::layout::tar::METADATA_BYTES_MAX;
use crate::layout::tar::header::RECORD_BYTES;

/// offset u64 | value u64 | kind in the top byte, count below u32 | first chunk u32
/// | directory at u32 | name at u32 | attributes u32 | directory length u16 | name length u16
///
/// `value` is a size, a device (major above minor) or where a target lies; `count` is of chunks, or
/// a target's length.
pub(super) const ENTRY_BYTES: usize = 40;
/// file offset u64 | tar start u64 | tar end u64
pub(super) const CHUNK_BYTES: usize = 24;
/// seconds i64 | nanos u32 | uid u32 | gid u32 | mode u32 | first xattr u32 | xattr count u32
pub(super) const ATTRIBUTES_BYTES: usize = 32;
/// name at u32 | name length u32 | value at u32 | value length u32
pub(super) const XATTR_BYTES: usize = 16;
/// blob start, end, tar start, end, skip, window start, end: u64 each
/// | codec, bits, proof, head: a byte each | count of digests u32
pub(super) const SPAN_BYTES: usize = 64;
/// sha256, or a state of it
pub(super) const DIGEST_BYTES: usize = 32;

/// What fits below the kind.
const COUNT_MAX: usize = (1 << 24) - 1;

const STORED: u8 = 0;
const GZIP: u8 = 1;
const ZSTD: u8 = 2;
const DEFLATE: u8 = 3;

const PROOF_STORED: u8 = 0;
const PROOF_DECODED: u8 = 1;
const PROOF_CHAIN: u8 = 2;

const DIRECTORY: u32 = 0;
/// A regular file with its chunks in the table.
const REGULAR: u32 = 1;
/// A regular file of one chunk behind its header.
const CONTIGUOUS: u32 = 2;
const SYMLINK: u32 = 3;
const HARDLINK: u32 = 4;
const CHAR_DEVICE: u32 = 5;
const BLOCK_DEVICE: u32 = 6;
const FIFO: u32 = 7;

/// The chunk of a file whose content follows its header.
pub(super) fn contiguous(offset: u64, size: u64) -> Chunk {
    Chunk { file_offset: 0, tar: ByteRange::at(offset.saturating_add(RECORD_BYTES as u64), size) }
}

/// The sections under construction. Equal names and equal attributes are kept once.
#[derive(Default)]
pub(super) struct Tables<'a> {
    pub(super) entries: Vec<u8>,
    pub(super) chunks: Vec<u8>,
    pub(super) attributes: Vec<u8>,
    pub(super) xattrs: Vec<u8>,
    pub(super) heap: Vec<u8>,
    in_heap: HashMap<&'a [u8], u32>,
    in_attributes: HashMap<&'a Attributes, u32>,
}

impl<'a> Tables<'a> {
    pub(super) fn add_entry(&mut self, entry: &'a Entry) -> Result<(), Error> {
        let split = entry.path.iter().rposition(|b| *b == b'/');
        let (directory, name) = match split {
            Some(slash) => (&entry.path[..slash], &entry.path[slash + 1..]),
            None => (&[][..], entry.path.as_slice()),
        };
        let (directory_at, name_at) = (self.intern(directory)?, self.intern(name)?);
        let attributes = self.intern_attributes(&entry.attributes)?;
        let first_chunk = self.chunks.len() / CHUNK_BYTES;
        let (kind, value, count) = match &entry.kind {
            EntryKind::Directory => (DIRECTORY, 0, 0),
            EntryKind::Regular { size, .. } if is_contiguous(entry) => (CONTIGUOUS, *size, 0),
            EntryKind::Regular { size, chunks } => {
                for chunk in chunks {
                    put(&mut self.chunks, [chunk.file_offset, chunk.tar.start, chunk.tar.end]);
                }
                (REGULAR, *size, chunks.len())
            }
            EntryKind::Symlink { target } => (SYMLINK, self.intern(target)?.into(), target.len()),
            EntryKind::Hardlink { target } => (HARDLINK, self.intern(target)?.into(), target.len()),
            EntryKind::CharDevice { major, minor } => (CHAR_DEVICE, device(*major, *minor), 0),
            EntryKind::BlockDevice { major, minor } => (BLOCK_DEVICE, device(*major, *minor), 0),
            EntryKind::Fifo => (FIFO, 0, 0),
        };
        let count = fits("pieces of one file", count, COUNT_MAX)?;
        put(&mut self.entries, [entry.offset, value]);
        put32(
            &mut self.entries,
            [
                kind << 24 | count,
                fits("chunks", first_chunk, u32::MAX as usize)?,
                directory_at,
                name_at,
                attributes,
                // Lengths of a path that was checked: below 2^16.
                (directory.len() as u32) | (name.len() as u32) << 16,
            ],
        );
        Ok(())
    }

    /// Where in the heap these bytes are.
    fn intern(&mut self, bytes: &'a [u8]) -> Result<u32, Error> {
        if let Some(at) = self.in_heap.get(bytes) {
            return Ok(*at);
        }
        let at = fits("bytes of names", self.heap.len(), u32::MAX as usize)?;
        self.heap.extend_from_slice(bytes);
        self.in_heap.insert(bytes, at);
        Ok(at)
    }

    fn intern_attributes(&mut self, attributes: &'a Attributes) -> Result<u32, Error> {
        if let Some(at) = self.in_attributes.get(attributes) {
            return Ok(*at);
        }
        let at = fits("attributes", self.attributes.len() / ATTRIBUTES_BYTES, u32::MAX as usize)?;
        let Attributes { mode, uid, gid, mtime, xattrs } = attributes;
        let first = fits("xattrs", self.xattrs.len() / XATTR_BYTES, u32::MAX as usize)?;
        let count = fits("xattrs", xattrs.len(), u32::MAX as usize)?;
        self.attributes.extend_from_slice(&mtime.seconds.to_le_bytes());
        put32(&mut self.attributes, [mtime.nanos, *uid, *gid, *mode, first, count]);
        for (name, value) in xattrs {
            let (name_at, value_at) = (self.intern(name)?, self.intern(value)?);
            // Lengths that were checked: 64 KiB at most.
            let lengths = (name.len() as u32, value.len() as u32);
            put32(&mut self.xattrs, [name_at, lengths.0, value_at, lengths.1]);
        }
        self.in_attributes.insert(attributes, at);
        Ok(at)
    }
}

fn fits(what: &str, count: usize, limit: usize) -> Result<u32, Error> {
    u32::try_from(count)
        .ok()
        .filter(|_| count <= limit)
        .ok_or_else(|| Error::SavedIndex(format!("more than {limit} {what}")))
}

fn device(major: u32, minor: u32) -> u64 {
    u64::from(major) << 32 | u64::from(minor)
}

fn put<const N: usize>(bytes: &mut Vec<u8>, numbers: [u64; N]) {
    numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
}

fn put32<const N: usize>(bytes: &mut Vec<u8>, numbers: [u32; N]) {
    numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
}

/// What spans are proved by.
#[derive(Default)]
pub(super) struct Proofs {
    pub(super) digests: Vec<[u8; DIGEST_BYTES]>,
    pub(super) edges: Vec<u8>,
}

/// What proves it goes behind what proves the spans before it.
pub(super) fn write_span(
    bytes: &mut Vec<u8>,
    proofs: &mut Proofs,
    span: &Span,
) -> Result<(), Error> {
    let Span { blob, tar, skip, codec, proof } = span;
    let (codec, bits, window) = match codec {
        Codec::Stored => (STORED, 0, ByteRange::new(0, 0)),
        Codec::Gzip => (GZIP, 0, ByteRange::new(0, 0)),
        Codec::Zstd => (ZSTD, 0, ByteRange::new(0, 0)),
        Codec::Deflate(Point { bits, window }) => (DEFLATE, *bits, *window),
    };
    let (proof, head, digests) = match proof {
        Proof::Stored(Segments::One(sha256)) => (PROOF_STORED, 0, std::slice::from_ref(sha256)),
        Proof::Stored(Segments::Chain(chain)) => {
            proofs.edges.extend_from_slice(chain.edges());
            (PROOF_CHAIN, chain.head(), chain.states())
        }
        Proof::Decoded(sha256) => (PROOF_DECODED, 0, std::slice::from_ref(sha256)),
    };
    put(bytes, [blob.start, blob.end, tar.start, tar.end, *skip, window.start, window.end]);
    bytes.extend_from_slice(&[codec, bits, proof, head]);
    put32(bytes, [fits("digests of one span", digests.len(), u32::MAX as usize)?]);
    proofs.digests.extend_from_slice(digests);
    Ok(())
}

/// A span, whose digests and edges are the next ones: `digests` and `edges` go on behind them.
pub(super) fn read_span(
    mut record: Cursor<'_>,
    digests: &mut &[[u8; DIGEST_BYTES]],
    edges: &mut &[u8],
) -> Result<Span, String> {
    let (blob, tar) = (record.range()?, record.range()?);
    let (skip, window) = (record.u64()?, record.range()?);
    let [codec, bits, proof, head] = record.array()?;
    let count = record.u32()? as usize;
    let own = digests.split_off(..count).ok_or("digests outside of their table")?;
    let codec = match codec {
        STORED => Codec::Stored,
        GZIP => Codec::Gzip,
        ZSTD => Codec::Zstd,
        DEFLATE => Codec::Deflate(Point { bits, window }),
        codec => return Err(format!("a span of unknown codec {codec}")),
    };
    let is_point = matches!(codec, Codec::Deflate(_));
    if head != 0 && proof != PROOF_CHAIN
        || !is_point && (bits != 0 || window != ByteRange::new(0, 0))
    {
        return Err("a span with more than belongs to it".to_owned());
    }
    let proof = match (proof, own) {
        (PROOF_STORED, [sha256]) => Proof::Stored(Segments::One(*sha256)),
        (PROOF_CHAIN, states) => {
            Proof::Stored(Segments::Chain(Chain::take(head, blob.len(), edges, states)?))
        }
        (PROOF_DECODED, [sha256]) => Proof::Decoded(*sha256),
        (proof, _) => return Err(format!("a span with {count} digests as proof {proof}")),
    };
    Ok(Span { blob, tar, skip, codec, proof })
}

/// The sections that entries point into.
pub(super) struct TablesRef<'a> {
    pub(super) chunks: &'a [u8],
    pub(super) attributes: &'a [u8],
    pub(super) xattrs: &'a [u8],
    pub(super) heap: &'a [u8],
}

impl<'a> TablesRef<'a> {
    fn name(&self, at: u32, length: u32) -> Result<&'a [u8], String> {
        let (at, length) = (at as usize, length as usize);
        let bytes = self.heap.get(at..).and_then(|rest| rest.get(..length));
        bytes.ok_or_else(|| format!("{length} bytes at {at} lie outside of the heap"))
    }

    /// All attribute records. Each takes its xattrs where the one before it ended, so that no small
    /// file can name the same ones without end.
    pub(super) fn read_attributes(&self) -> Result<Vec<Attributes>, String> {
        let mut xattrs_left = self.xattrs.chunks_exact(XATTR_BYTES);
        let (all, mut bytes) = (xattrs_left.len(), 0);
        let mut attributes = Vec::with_capacity(self.attributes.len() / ATTRIBUTES_BYTES);
        for record in self.attributes.chunks_exact(ATTRIBUTES_BYTES) {
            let mut record = Cursor(record);
            let seconds = record.u64()?.cast_signed();
            let mtime = Time { seconds, nanos: record.u32()? };
            let (uid, gid, mode) = (record.u32()?, record.u32()?, record.u32()?);
            let (first, count) = (record.u32()? as usize, record.u32()? as usize);
            if first != all - xattrs_left.len() || count > xattrs_left.len() {
                return Err("extended attributes out of order".into());
            }
            let mut read = |record| {
                let mut record = Cursor(record);
                let name = self.name(record.u32()?, record.u32()?)?;
                let value = self.name(record.u32()?, record.u32()?)?;
                // Records may share a long value.
                bytes += (name.len() + value.len()) as u64;
                if bytes > METADATA_BYTES_MAX {
                    return Err(format!("xattrs of more than {METADATA_BYTES_MAX} bytes"));
                }
                Ok((name.to_vec(), value.to_vec()))
            };
            let xattrs = xattrs_left.by_ref().take(count).map(&mut read);
            let xattrs = xattrs.collect::<Result<_, String>>()?;
            attributes.push(Attributes { mode, uid, gid, mtime, xattrs });
        }
        if xattrs_left.len() > 0 {
            return Err("extended attributes that belong to nothing".into());
        }
        Ok(attributes)
    }

    /// One entry. Its chunks must be the next ones: `next_chunk` goes on behind them.
    pub(super) fn read_entry(
        &self,
        mut record: Cursor<'_>,
        attributes: &[Attributes],
        next_chunk: &mut usize,
    ) -> Result<Entry, String> {
        let (offset, value) = (record.u64()?, record.u64()?);
        let (kind, first_chunk) = (record.u32()?, record.u32()? as usize);
        let (directory_at, name_at) = (record.u32()?, record.u32()?);
        let attributes = attributes.get(record.u32()? as usize).ok_or("unknown attributes")?;
        let lengths = record.u32()?;
        let directory = self.name(directory_at, lengths & 0xffff)?;
        let name = self.name(name_at, lengths >> 16)?;
        let path =
            if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() };
        if first_chunk != *next_chunk {
            return Err("chunks out of order".into());
        }
        let count = kind & COUNT_MAX as u32;
        let target = || {
            let at = u32::try_from(value).map_err(|_| "a target outside of the heap")?;
            self.name(at, count).map(<[u8]>::to_vec)
        };
        let (major, minor) = ((value >> 32) as u32, (value & u64::from(u32::MAX)) as u32);
        let kind = match kind >> 24 {
            DIRECTORY => EntryKind::Directory,
            REGULAR => EntryKind::Regular {
                size: value,
                chunks: self.read_chunks(next_chunk, count as usize)?,
            },
            CONTIGUOUS => {
                EntryKind::Regular { size: value, chunks: vec![contiguous(offset, value)] }
            }
            SYMLINK => EntryKind::Symlink { target: target()? },
            HARDLINK => EntryKind::Hardlink { target: target()? },
            CHAR_DEVICE => EntryKind::CharDevice { major, minor },
            BLOCK_DEVICE => EntryKind::BlockDevice { major, minor },
            FIFO => EntryKind::Fifo,
            kind => return Err(format!("an entry of unknown kind {kind}")),
        };
        Ok(Entry { path, offset, kind, attributes: attributes.clone() })
    }

    fn read_chunks(&self, next: &mut usize, count: usize) -> Result<Vec<Chunk>, String> {
        let records = self.chunks.chunks_exact(CHUNK_BYTES).skip(*next).take(count);
        if records.len() != count {
            return Err("chunks outside of their table".into());
        }
        *next += count;
        let read = |record| {
            let mut record = Cursor(record);
            Ok(Chunk { file_offset: record.u64()?, tar: record.range()? })
        };
        records.map(read).collect()
    }
}

/// Reads numbers from the front of bytes.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a>(pub(super) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (array, rest) = self.0.split_first_chunk().ok_or("cut off")?;
        self.0 = rest;
        Ok(*array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn range(&mut self) -> Result<ByteRange, String> {
        let (start, end) = (self.u64()?, self.u64()?);
        if start > end {
            return Err(format!("an inverted range {start}..{end}"));
        }
        Ok(ByteRange::new(start, end))
    }

    /// `count` records of `record_bytes` each.
    pub(super) fn section(&mut self, count: u64, record_bytes: usize) -> Result<&'a [u8], String> {
        let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(record_bytes));
        let split = bytes.and_then(|bytes| self.0.split_at_checked(bytes));
        let (section, rest) =
            split.ok_or_else(|| format!("{count} records are more than there are"))?;
        self.0 = rest;
        Ok(section)
    }
}
