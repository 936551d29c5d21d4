//! One member's header, with the extension headers in front of it, to its entry.

use super::header::{Format, Header};
use super::path::{PATH_BYTES_MAX, clean_path, quoted};
use crate::layout::entry::{Attributes, Entry, EntryKind, Time};
use crate::layout::pax::{PaxRecords, PaxView};

/// GNU's long name and long link, where they came.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    pub(super) long_name: Option<&'a [u8]>,
    pub(super) long_link: Option<&'a [u8]>,
}

/// About how much memory an entry takes.
pub(crate) fn metadata_bytes(entry: &Entry) -> u64 {
    let of_kind = match &entry.kind {
        EntryKind::Regular { chunks, .. } => size_of_val(chunks.as_slice()),
        EntryKind::Symlink { target } | EntryKind::Hardlink { target } => target.len(),
        _ => 0,
    };
    let xattrs = &entry.attributes.xattrs;
    let of_xattrs = size_of_val(xattrs.as_slice())
        + xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    (size_of::<Entry>() + entry.path.len() + of_kind + of_xattrs) as u64
}

/// Bytes of content in the archive, if this type has content.
pub(super) fn stored_size(header: &Header<'_>, pax: &PaxView<'_>) -> Result<u64, String> {
    let size = match pax.number("size")? {
        Some(size) => i64::try_from(size).map_err(|_| format!("impossible size {size}"))?,
        None => header.size()?,
    };
    u64::try_from(size).map_err(|_| format!("negative size {size}"))
}

/// Logical size of a sparse file, where the headers tell it.
pub(super) fn sparse_size(header: &Header<'_>, pax: &PaxRecords) -> Result<Option<u64>, String> {
    let size = if header.typeflag() == b'S' {
        if header.format() != Format::Gnu {
            return Err("a sparse file of type S in an archive that is not GNU's".into());
        }
        let size = header.sparse_size()?;
        Some(u64::try_from(size).map_err(|_| format!("negative sparse size {size}"))?)
    } else {
        match pax.number("GNU.sparse.size")? {
            Some(size) => Some(size),
            None => pax.number("GNU.sparse.realsize")?,
        }
    };
    match size {
        Some(size) if size > i64::MAX as u64 => Err(format!("impossible sparse size {size}")),
        size => Ok(size),
    }
}

/// The entry, except for a regular file's size and chunks.
pub(super) fn read_entry(
    at: u64,
    header: &Header<'_>,
    pax: &PaxView<'_>,
    names: Names<'_>,
) -> Result<Entry, String> {
    let name = match (pax.own.get(b"GNU.sparse.name"), names.long_name) {
        (Some(name), _) => name.to_vec(),
        (None, Some(name)) if !name.is_empty() => name.to_vec(),
        _ => pax.get("path").map_or_else(|| header.name(), <[u8]>::to_vec),
    };
    let link = match names.long_link {
        Some(link) if !link.is_empty() => link,
        _ => pax.get("linkpath").unwrap_or(header.link_name()),
    };
    let path = clean_path(&name)?;
    let kind = read_kind(header, pax, &name, link)?;
    if path.is_empty() && kind != EntryKind::Directory {
        return Err(format!("name {} means the root, which must be a directory", quoted(&name)));
    }
    Ok(Entry { path, offset: at, kind, attributes: read_attributes(header, pax)? })
}

fn read_kind(
    header: &Header<'_>,
    pax: &PaxView<'_>,
    name: &[u8],
    link: &[u8],
) -> Result<EntryKind, String> {
    Ok(match header.typeflag() {
        b'0' | b'\0' if name.ends_with(b"/") => EntryKind::Directory,
        b'1' => EntryKind::Hardlink { target: clean_path(link)? },
        b'2' => EntryKind::Symlink { target: check_symlink_target(link)?.to_vec() },
        b'3' => {
            let (major, minor) = read_device(header, pax)?;
            EntryKind::CharDevice { major, minor }
        }
        b'4' => {
            let (major, minor) = read_device(header, pax)?;
            EntryKind::BlockDevice { major, minor }
        }
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        _ => EntryKind::Regular { size: 0, chunks: Vec::new() },
    })
}

fn check_symlink_target(target: &[u8]) -> Result<&[u8], String> {
    if target.is_empty() || target.contains(&0) || target.len() > PATH_BYTES_MAX {
        return Err(format!(
            "symbolic link target {}: expected 1 to {PATH_BYTES_MAX} bytes without NUL, got {}",
            quoted(target),
            target.len()
        ));
    }
    Ok(target)
}

fn read_device(header: &Header<'_>, pax: &PaxView<'_>) -> Result<(u32, u32), String> {
    let (major, minor) = match (pax.number("SCHILY.devmajor")?, pax.number("SCHILY.devminor")?) {
        (Some(major), Some(minor)) => (i64::try_from(major), i64::try_from(minor)),
        _ => header.device().map(|(major, minor)| (Ok(major), Ok(minor)))?,
    };
    match (major.map(u32::try_from), minor.map(u32::try_from)) {
        (Ok(Ok(major)), Ok(Ok(minor))) => Ok((major, minor)),
        _ => Err("device numbers beyond 32 bits".into()),
    }
}

fn read_attributes(header: &Header<'_>, pax: &PaxView<'_>) -> Result<Attributes, String> {
    let id = |what: &str| {
        let id = match pax.number(what)? {
            Some(id) => i64::try_from(id).unwrap_or(i64::MAX),
            None if what == "uid" => header.uid()?,
            None => header.gid()?,
        };
        u32::try_from(id).map_err(|_| format!("{what} {id}: expected 0 to {}", u32::MAX))
    };
    let mtime = match pax.mtime()? {
        Some(mtime) => mtime,
        None => Time { seconds: header.mtime()?, nanos: 0 },
    };
    // The twelve bits that are kept are the same in any width.
    let mode = (header.mode()? & 0o7777) as u32;
    Ok(Attributes { mode, uid: id("uid")?, gid: id("gid")?, mtime, xattrs: pax.xattrs() })
}
