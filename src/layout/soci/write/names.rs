//! Names as a layer's headers have them, while its tar passes by: an index has them cleaned.

use crate::layout::entry::{Entry, EntryKind};
use crate::layout::pax::PaxRecords;
use crate::layout::tar::header::{Header, RECORD_BYTES, text};
use crate::layout::tar::path::quoted;

const RECORD: u64 = RECORD_BYTES as u64;

/// Most bytes of the headers of one member: names and records of 1 MiB each, and some more.
const HEADERS_BYTES_MAX: u64 = 4 << 20;

/// What the headers of a member say, as they say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawMember {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) device: (i64, i64),
}

/// Reads the headers of entries whose places are known.
pub(super) struct Names<'a> {
    /// Bytes of the tar so far.
    at: u64,
    /// The entries whose headers have not passed by in full.
    entries: &'a [Entry],
    /// Where the headers of the next one begin: the content of the one before it is padded to here.
    begins: u64,
    /// As much of them as came.
    headers: Vec<u8>,
    members: Vec<RawMember>,
}

impl<'a> Names<'a> {
    pub(super) fn new(entries: &'a [Entry]) -> Self {
        Names { at: 0, entries, begins: 0, headers: Vec::new(), members: Vec::new() }
    }

    /// The next bytes of the tar.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while let Some((entry, rest)) = self.entries.split_first() {
            let described = |reason| format!("file {}: {reason}", quoted(&entry.path));
            let end = entry.offset.checked_add(RECORD).filter(|end| {
                let headers = end.checked_sub(self.begins);
                headers.is_some_and(|bytes| (RECORD..=HEADERS_BYTES_MAX).contains(&bytes))
            });
            let end = end.ok_or_else(|| {
                described(format!("headers from {} to {}", self.begins, entry.offset))
            })?;
            let until = if self.at < self.begins { self.begins } else { end };
            let left = usize::try_from(until - self.at).unwrap_or(usize::MAX);
            let (piece, behind) = bytes.split_at(left.min(bytes.len()));
            if self.at >= self.begins {
                self.headers.extend_from_slice(piece);
            }
            self.at += piece.len() as u64;
            bytes = behind;
            if self.at < until {
                return Ok(());
            }
            if until == end {
                self.members.push(read_headers(&self.headers).map_err(described)?);
                self.headers.clear();
                self.begins = content_end(entry, end).map_err(described)?;
                self.entries = rest;
            }
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// How many bytes have passed by, and what the entries are called in them.
    pub(super) fn finish(self) -> Result<(u64, Vec<RawMember>), String> {
        match self.entries.first() {
            None => Ok((self.at, self.members)),
            Some(entry) => Err(format!("file {} has not passed by", quoted(&entry.path))),
        }
    }
}

/// Where an entry ends whose content begins at `start`.
fn content_end(entry: &Entry, start: u64) -> Result<u64, String> {
    let EntryKind::Regular { size, chunks } = &entry.kind else { return Ok(start) };
    let is_plain = match chunks.as_slice() {
        [] => *size == 0,
        [chunk] => (chunk.file_offset, chunk.tar.start, chunk.tar.len()) == (0, start, *size),
        _ => false,
    };
    if !is_plain {
        return Err("it is sparse, and a zTOC cannot say where its pieces are".into());
    }
    let end = start.checked_add(*size).and_then(|end| end.checked_next_multiple_of(RECORD));
    end.ok_or_else(|| format!("impossible size {size}"))
}

/// Reads the headers of one member: any extensions, then its own. Go's order of precedence.
fn read_headers(mut headers: &[u8]) -> Result<RawMember, String> {
    let (mut pax, mut long_name, mut long_link) = (PaxRecords::default(), None, None);
    while let Some((record, rest)) = headers.split_first_chunk::<RECORD_BYTES>() {
        let header = Header::parse(record)?;
        if rest.is_empty() {
            let of_pax = |key: &[u8]| pax.get(key).map(<[u8]>::to_vec);
            let name = long_name.or_else(|| of_pax(b"path")).unwrap_or_else(|| header.name());
            let link = long_link.or_else(|| of_pax(b"linkpath"));
            let link = link.unwrap_or_else(|| header.link_name().to_vec());
            return Ok(RawMember { name, link, device: header.device().unwrap_or_default() });
        }
        let size = header.size().ok().and_then(|size| usize::try_from(size).ok());
        let payload =
            size.and_then(|size| rest.get(..size)).ok_or("an extended header is cut off")?;
        match header.typeflag() {
            b'x' => pax = PaxRecords::parse(payload)?,
            b'L' => long_name = Some(text(payload).to_vec()).filter(|name| !name.is_empty()),
            b'K' => long_link = Some(text(payload).to_vec()).filter(|link| !link.is_empty()),
            other => {
                let typeflag = other.escape_ascii();
                return Err(format!(
                    "in front of it is a header of type {typeflag}, unknown to SOCI"
                ));
            }
        }
        headers = rest.get(payload.len().next_multiple_of(RECORD_BYTES)..).unwrap_or_default();
    }
    Err("its headers are cut off".into())
}
