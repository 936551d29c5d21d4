//! Tar stream to entries: a push parser for ustar, PAX and GNU headers.
//!
//! POSIX.1-2017 `pax`, "ustar Interchange Format", with GNU's long names, base-256 numbers and
//! sparse files, and star's attributes. Where the standards are silent or tools disagree:
//!
//! - Names are cleaned lexically ([`path::clean_path`]); one that leaves the root is an error.
//! - Order of precedence for a name: `GNU.sparse.name`, GNU long name, PAX, header (as Go has it).
//! - Links, devices, FIFOs and directories have no content, whatever their size field says (Go).
//! - A regular file whose name ends in a slash is a directory (before POSIX there was no type 5).
//! - Types `A` to `Z` that are not known here (volume labels, continued volumes) are skipped with
//!   their content. Other unknown types are regular files, as POSIX says.
//! - One zero record alone means nothing (GNU tar). After two nothing counts. A missing end of
//!   archive is accepted, a member without its whole content is not.

pub(crate) mod header;
mod member;
pub mod path;
#[cfg(test)]
mod tests;

use super::entry::{Chunk, Entry, EntryKind};
use super::error::{Error, Result};
use super::pax::{PaxRecords, PaxView};
use super::range::ByteRange;
use super::sparse::{MapText, PaxSparse, SparseMap};
use header::{Header, RECORD_BYTES};
pub(crate) use member::metadata_bytes;
use member::{Names, read_entry, sparse_size, stored_size};

/// Largest PAX header, long name or long link: what Go's reader, and so Docker and containerd,
/// accept.
pub const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// Most memory for the entries of one layer, and of all layers of an image: about five million files.
/// Global headers and shared names would otherwise turn a small archive into any amount.
pub const METADATA_BYTES_MAX: u64 = 1 << 30;

/// Where the furthest content ends: what a file position can say. Padding fits behind it.
const POSITION_MAX: u64 = i64::MAX as u64;

/// Reads a tar that arrives in pieces of any size. Content is skipped, never kept.
///
/// After an error the parser is of no further use.
#[derive(Debug)]
pub struct TarParser {
    /// Bytes of the tar seen so far.
    offset: u64,
    record: [u8; RECORD_BYTES],
    record_filled: usize,
    state: State,
    /// A zero record came, and nothing since.
    zero_record_seen: bool,
    global: PaxRecords,
    pending: Extensions,
    metadata_bytes: u64,
}

/// What the extension headers in front of a member say about it.
#[derive(Debug, Default)]
struct Extensions {
    /// Position of the first one.
    at: Option<u64>,
    pax: PaxRecords,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

#[derive(Debug)]
enum State {
    /// A header comes next.
    Header,
    /// The payload of an extension header of type `typeflag` at `at`.
    Extension { at: u64, typeflag: u8, left: u64, payload: Vec<u8> },
    /// Further records of an old GNU sparse map.
    SparseRecords { member: Box<Member>, map: SparseMap },
    /// A PAX 1.0 sparse map, which is the first part of the content.
    SparseText { member: Box<Member>, map: MapText },
    /// Content or padding up to `until`; `content_end` of it belongs to the member at `at`.
    Skip { at: u64, content_end: u64, until: u64 },
    /// The end of the archive was seen.
    Ended,
}

/// A regular file whose chunks are not known yet.
#[derive(Debug)]
struct Member {
    entry: Entry,
    /// Logical size.
    size: u64,
    /// Bytes of content that follow in the tar, a PAX 1.0 map included.
    stored: u64,
}

impl Default for TarParser {
    fn default() -> Self {
        Self::new()
    }
}

impl TarParser {
    /// A parser at the start of an archive.
    pub fn new() -> Self {
        TarParser {
            offset: 0,
            record: [0; RECORD_BYTES],
            record_filled: 0,
            state: State::Header,
            zero_record_seen: false,
            global: PaxRecords::default(),
            pending: Extensions::default(),
            metadata_bytes: 0,
        }
    }

    /// Reads the next bytes of the archive and appends the members whose headers they complete.
    ///
    /// # Errors
    /// [`Error::Tar`] with the offset of the header at fault, also when the entries exceed
    /// [`METADATA_BYTES_MAX`].
    pub fn push(&mut self, mut bytes: &[u8], entries: &mut Vec<Entry>) -> Result<()> {
        while !bytes.is_empty() {
            let taken = self.take(bytes);
            bytes = &bytes[taken..];
            self.offset = (self.offset.checked_add(taken as u64))
                .ok_or_else(|| Error::tar(self.offset, "the archive is longer than 2^64 bytes"))?;
            self.advance(entries)?;
        }
        Ok(())
    }

    /// Says whether the archive may end here.
    ///
    /// # Errors
    /// [`Error::Tar`] when a member's headers or content are cut off.
    pub fn finish(self) -> Result<()> {
        let cut = |at, what: &str| {
            let reason = format!("cut off: the archive ends at {} inside {what}", self.offset);
            Err(Error::tar(at, reason))
        };
        match self.state {
            State::Ended => Ok(()),
            State::Skip { at, content_end, .. } if self.offset < content_end => {
                cut(at, "the member's content")
            }
            State::Extension { at, .. } => cut(at, "an extended header"),
            State::SparseRecords { member, .. } | State::SparseText { member, .. } => {
                cut(member.entry.offset, "the member's sparse map")
            }
            State::Header | State::Skip { .. } => {
                if self.record[..self.record_filled].iter().any(|b| *b != 0) {
                    return cut(self.offset - self.record_filled as u64, "a header");
                }
                match self.pending.at {
                    Some(at) if !self.zero_record_seen => cut(at, "the member's headers"),
                    _ => Ok(()),
                }
            }
        }
    }

    /// Takes what the current state wants of `bytes`: how many that is. None only where there is
    /// nothing to skip, which ends that state.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let at_most = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        match &mut self.state {
            State::Ended => bytes.len(),
            State::Skip { until, .. } => at_most(*until - self.offset),
            State::Extension { left, payload, .. } => {
                let taken = at_most(*left);
                payload.extend_from_slice(&bytes[..taken]);
                *left -= taken as u64;
                taken
            }
            State::Header | State::SparseRecords { .. } | State::SparseText { .. } => {
                let taken = bytes.len().min(RECORD_BYTES - self.record_filled);
                let filled = self.record_filled + taken;
                self.record[self.record_filled..filled].copy_from_slice(&bytes[..taken]);
                self.record_filled = filled;
                taken
            }
        }
    }

    /// Goes on when what the state waits for is complete.
    fn advance(&mut self, entries: &mut Vec<Entry>) -> Result<()> {
        match &self.state {
            State::Skip { until, .. } if self.offset < *until => {}
            State::Skip { .. } => self.state = State::Header,
            State::Extension { left, .. } if *left > 0 => {}
            State::Extension { .. } => self.end_extension()?,
            // Nothing fills a record behind the end of the archive.
            _ if self.record_filled < RECORD_BYTES => {}
            _ => {
                self.record_filled = 0;
                self.end_record(entries)?;
            }
        }
        Ok(())
    }

    fn end_record(&mut self, entries: &mut Vec<Entry>) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Header) {
            State::SparseRecords { member, mut map } => {
                let at = member.entry.offset;
                map.add_old_gnu(&self.record[..504]).map_err(|e| Error::tar(at, e))?;
                if self.record[504] != 0 {
                    self.state = State::SparseRecords { member, map };
                    return Ok(());
                }
                self.end_sparse(*member, map, entries)
            }
            State::SparseText { mut member, mut map } => {
                let at = member.entry.offset;
                member.stored = (member.stored.checked_sub(RECORD_BYTES as u64))
                    .ok_or_else(|| Error::tar(at, "the sparse map exceeds the content"))?;
                if map.add_record(&self.record).map_err(|e| Error::tar(at, e))? {
                    return self.end_sparse(*member, map.into_map(), entries);
                }
                self.state = State::SparseText { member, map };
                Ok(())
            }
            _ if self.record.iter().all(|b| *b == 0) => {
                if self.zero_record_seen {
                    self.state = State::Ended;
                }
                self.zero_record_seen = true;
                Ok(())
            }
            _ => {
                self.zero_record_seen = false;
                let record = self.record;
                let at = self.offset - RECORD_BYTES as u64;
                let header = Header::parse(&record).map_err(|e| Error::tar(at, e))?;
                match header.typeflag() {
                    b'x' | b'g' | b'L' | b'K' => self.begin_extension(at, &header),
                    _ => self.begin_member(at, &header, entries),
                }
            }
        }
    }

    fn begin_extension(&mut self, at: u64, header: &Header<'_>) -> Result<()> {
        let size = header.size().map_err(|e| Error::tar(at, e))?;
        let left = u64::try_from(size).ok().filter(|size| *size <= EXTENSION_BYTES_MAX);
        let left = left.ok_or_else(|| {
            let limit = EXTENSION_BYTES_MAX;
            Error::tar(at, format!("an extended header of {size} bytes: at most {limit}"))
        })?;
        let typeflag = header.typeflag();
        if typeflag != b'g' {
            self.pending.at.get_or_insert(at);
        }
        self.state = State::Extension { at, typeflag, left, payload: Vec::new() };
        if left == 0 { self.end_extension() } else { Ok(()) }
    }

    fn end_extension(&mut self) -> Result<()> {
        let State::Extension { at, typeflag, payload, .. } =
            std::mem::replace(&mut self.state, State::Header)
        else {
            return Ok(());
        };
        match typeflag {
            b'L' => self.pending.long_name = Some(header::text(&payload).to_vec()),
            b'K' => self.pending.long_link = Some(header::text(&payload).to_vec()),
            _ => {
                let records = PaxRecords::parse(&payload).map_err(|e| Error::tar(at, e))?;
                if typeflag == b'g' {
                    self.global.update(records).map_err(|e| Error::tar(at, e))?;
                } else {
                    self.pending.pax = records;
                }
            }
        }
        self.skip(at, 0)
    }

    /// A member's header: the entry, if it needs no more than this, and what to read next.
    fn begin_member(
        &mut self,
        at: u64,
        header: &Header<'_>,
        entries: &mut Vec<Entry>,
    ) -> Result<()> {
        let own = std::mem::take(&mut self.pending);
        let pax = PaxView { global: &self.global, own: &own.pax };
        let names =
            Names { long_name: own.long_name.as_deref(), long_link: own.long_link.as_deref() };
        let tar_error = |reason| Error::tar(at, reason);
        let size = stored_size(header, &pax).map_err(tar_error)?;
        if header.typeflag().is_ascii_uppercase() && header.typeflag() != b'S' {
            return self.skip(at, size);
        }
        let entry = read_entry(at, header, &pax, names).map_err(tar_error)?;
        if !matches!(entry.kind, EntryKind::Regular { .. }) {
            self.emit(entry, entries)?;
            // Only a file that a slash made a directory can have content, as Go has it.
            let skipped = matches!(header.typeflag(), b'\0' | b'1'..=b'6');
            return self.skip(at, if skipped { 0 } else { size });
        }
        let logical = sparse_size(header, &own.pax).map_err(tar_error)?.unwrap_or(size);
        let member = Box::new(Member { entry, size: logical, stored: size });
        let sparse = PaxSparse::of(&own.pax).map_err(tar_error)?;
        match sparse {
            _ if header.typeflag() == b'S' => {
                let mut map = SparseMap::default();
                map.add_old_gnu(header.sparse_fields()).map_err(tar_error)?;
                if !header.sparse_is_extended() {
                    return self.end_sparse(*member, map, entries);
                }
                self.state = State::SparseRecords { member, map };
                Ok(())
            }
            Some(PaxSparse::Mapped(map)) => self.end_sparse(*member, map, entries),
            Some(PaxSparse::InPayload) => {
                self.state = State::SparseText { member, map: MapText::default() };
                Ok(())
            }
            None => {
                let tar = self.content(at, size)?;
                let chunk = Chunk { file_offset: 0, tar };
                let chunks = if tar.is_empty() { vec![] } else { vec![chunk] };
                let kind = EntryKind::Regular { size: tar.len(), chunks };
                self.emit(Entry { kind, ..member.entry }, entries)?;
                self.skip(at, size)
            }
        }
    }

    fn end_sparse(
        &mut self,
        member: Member,
        map: SparseMap,
        entries: &mut Vec<Entry>,
    ) -> Result<()> {
        let Member { entry, size, stored } = member;
        let at = entry.offset;
        let tar = self.content(at, stored)?;
        let chunks = map.into_chunks(size, tar).map_err(|e| Error::tar(at, e))?;
        self.emit(Entry { kind: EntryKind::Regular { size, chunks }, ..entry }, entries)?;
        self.skip(at, stored)
    }

    fn emit(&mut self, entry: Entry, entries: &mut Vec<Entry>) -> Result<()> {
        self.metadata_bytes = self.metadata_bytes.saturating_add(metadata_bytes(&entry));
        if self.metadata_bytes > METADATA_BYTES_MAX {
            let limit = METADATA_BYTES_MAX;
            let reason = format!("the entries up to here take more than {limit} bytes of memory");
            return Err(Error::tar(entry.offset, reason));
        }
        entries.push(entry);
        Ok(())
    }

    /// The next `size` bytes.
    fn content(&self, at: u64, size: u64) -> Result<ByteRange> {
        match self.offset.checked_add(size).filter(|end| *end <= POSITION_MAX) {
            Some(end) => Ok(ByteRange::new(self.offset, end)),
            None => Err(Error::tar(at, format!("impossible size {size}"))),
        }
    }

    /// Passes over content and the padding behind it.
    fn skip(&mut self, at: u64, size: u64) -> Result<()> {
        let content_end = self.content(at, size)?.end;
        let until = content_end.next_multiple_of(RECORD_BYTES as u64);
        self.state = State::Skip { at, content_end, until };
        Ok(())
    }
}
