//! The files that a zTOC lists to entries, as a pass over the layer would give them.

use super::flatbuffer::{References, Table};

use super::slot::{file, pax};
use crate::layout::entry::{Attributes, Chunk, Entry, EntryKind};
use crate::layout::pax::{PaxRecords, PaxView};
use crate::layout::range::ByteRange;
use crate::layout::rfc3339;
use crate::layout::tar::header::RECORD_BYTES;
use crate::layout::tar::path::{clean_path, quoted};
use crate::layout::tar::{METADATA_BYTES_MAX, metadata_bytes};

const RECORD: u64 = RECORD_BYTES as u64;

/// What reading a record costs besides its bytes.
const RECORD_COST: u64 = 16;

/// Reads the files, which are in the order of the tar and do not overlap.
pub(super) fn read_members(files: References<'_>) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    // Files may share names and records, which makes a small zTOC into any amount.
    let mut bytes: u64 = 0;
    let mut end = 0;
    for member in files.tables() {
        let member = member?;
        let name = member.bytes(file::NAME)?;
        let described = |reason| format!("file {}: {reason}", quoted(name));
        let mut cost = 0;
        let entry = read_member(&member, &mut end, &mut cost).map_err(described)?;
        bytes = bytes.saturating_add(metadata_bytes(&entry)).saturating_add(cost);
        if bytes > METADATA_BYTES_MAX {
            return Err(format!("its files take more than {METADATA_BYTES_MAX} bytes"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// `end` is where the member before this one ends, padded; it goes on to the end of this one.
fn read_member(member: &Table<'_>, end: &mut u64, cost: &mut u64) -> Result<Entry, String> {
    let name = member.bytes(file::NAME)?;
    let kind = member.bytes(file::TYPE)?;
    let (offset, size) = (member.i64(file::OFFSET)?, member.i64(file::SIZE)?);
    let (Ok(at), Ok(size)) = (u64::try_from(offset), u64::try_from(size)) else {
        return Err(format!("{size} bytes at {offset}"));
    };
    let header = at.checked_sub(RECORD).filter(|header| header >= end);
    let header = header.ok_or_else(|| format!("content at {at}: the one before ends at {end}"))?;
    let content = ByteRange::new(at, at.saturating_add(size));
    let stored_end = if kind == b"reg" { content.end } else { at };
    *end = stored_end.checked_next_multiple_of(RECORD).ok_or("it ends nowhere")?;
    let records = read_records(member, cost)?;
    let pax = PaxView { global: &PaxRecords::default(), own: &records };
    let path = clean_path(name)?;
    let kind = match kind {
        b"reg" if name.ends_with(b"/") => EntryKind::Directory,
        b"reg" => {
            let chunk = Chunk { file_offset: 0, tar: content };
            let chunks = if content.is_empty() { vec![] } else { vec![chunk] };
            EntryKind::Regular { size: content.len(), chunks }
        }
        b"dir" => EntryKind::Directory,
        b"symlink" => EntryKind::Symlink { target: member.bytes(file::LINK)?.to_vec() },
        b"hardlink" => EntryKind::Hardlink { target: clean_path(member.bytes(file::LINK)?)? },
        b"char" => {
            let (major, minor) = read_device(member, &pax)?;
            EntryKind::CharDevice { major, minor }
        }
        b"block" => {
            let (major, minor) = read_device(member, &pax)?;
            EntryKind::BlockDevice { major, minor }
        }
        b"fifo" => EntryKind::Fifo,
        other => return Err(format!("it is of an unknown type {}", quoted(other))),
    };
    Ok(Entry { path, offset: header, kind, attributes: read_attributes(member, &pax)? })
}

/// The PAX records of a file, which the schema calls its xattrs.
pub(super) fn read_records(member: &Table<'_>, cost: &mut u64) -> Result<PaxRecords, String> {
    let mut records = PaxRecords::default();
    for record in member.references(file::PAX)?.tables() {
        let record = record?;
        let (key, value) = (record.bytes(pax::KEY)?, record.bytes(pax::VALUE)?);
        *cost += RECORD_COST + (key.len() + value.len()) as u64;
        if *cost > METADATA_BYTES_MAX {
            return Err(format!("its records take more than {METADATA_BYTES_MAX} bytes"));
        }
        if key.starts_with(b"GNU.sparse.") {
            return Err("it is sparse, and a zTOC does not say where its pieces are".into());
        }
        records.add(key, value)?;
    }
    Ok(records)
}

fn read_device(member: &Table<'_>, pax: &PaxView<'_>) -> Result<(u32, u32), String> {
    let said = (pax.number("SCHILY.devmajor")?, pax.number("SCHILY.devminor")?);
    let device = match said {
        (Some(major), Some(minor)) => (u32::try_from(major).ok(), u32::try_from(minor).ok()),
        _ => {
            let (major, minor) = (member.i64(file::DEVICE_MAJOR)?, member.i64(file::DEVICE_MINOR)?);
            (u32::try_from(major).ok(), u32::try_from(minor).ok())
        }
    };
    match device {
        (Some(major), Some(minor)) => Ok((major, minor)),
        _ => Err("device numbers beyond 32 bits".into()),
    }
}

fn read_attributes(member: &Table<'_>, pax: &PaxView<'_>) -> Result<Attributes, String> {
    let id = |what: &str, slot| match pax.number(what)? {
        Some(id) => u32::try_from(id).map_err(|_| format!("{what} {id}: expected 32 bits")),
        None => member.u32(slot),
    };
    let mtime = match pax.mtime()? {
        Some(mtime) => mtime,
        None => {
            let text = member.bytes(file::MTIME)?;
            rfc3339::parse(text).ok_or_else(|| format!("modified at {}", quoted(text)))?
        }
    };
    // The twelve bits that are kept are the same in any width.
    let mode = (member.i64(file::MODE)? & 0o7777) as u32;
    let (uid, gid) = (id("uid", file::UID)?, id("gid", file::GID)?);
    Ok(Attributes { mode, uid, gid, mtime, xattrs: pax.xattrs() })
}
