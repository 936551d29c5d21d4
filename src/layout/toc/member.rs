//! One element of a table of contents to an entry.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::TOC_PATH;
use super::json::Element;
use super::time::parse_rfc3339;
use crate::layout::entry::{Attributes, Entry, EntryKind, Time};
use crate::layout::tar::path::{clean_path, quoted};

/// What JSON writers put in the place of bytes that are not UTF-8.
const REPLACEMENT: char = '\u{fffd}';

/// The entry of an element that is not a chunk: a regular file's chunks are not known yet. `number`
/// counts elements: the table does not say where headers lie.
pub(super) fn entry_of(element: &Element, number: u64) -> Result<Entry, String> {
    let described = |reason: String| format!("{}: {reason}", quoted(element.name.as_bytes()));
    let path = clean_path(kept(&element.name)?).map_err(described)?;
    if path == TOC_PATH {
        return Err("it lists itself".into());
    }
    let kind = kind_of(element).map_err(described)?;
    let attributes = attributes_of(element).map_err(described)?;
    Ok(Entry { path, offset: number, kind, attributes })
}

fn kind_of(element: &Element) -> Result<EntryKind, String> {
    let Element { link_name, dev_major: major, dev_minor: minor, .. } = element;
    let (major, minor) = (*major, *minor);
    Ok(match element.kind.as_str() {
        "dir" => EntryKind::Directory,
        // A pass takes it for a directory, the table gives it content.
        "reg" if element.name.ends_with('/') => {
            return Err("a file whose name ends in a slash".into());
        }
        "reg" => EntryKind::Regular { size: element.size, chunks: Vec::new() },
        "symlink" => EntryKind::Symlink { target: kept(link_name)?.to_vec() },
        "hardlink" => EntryKind::Hardlink { target: clean_path(kept(link_name)?)? },
        "char" => EntryKind::CharDevice { major, minor },
        "block" => EntryKind::BlockDevice { major, minor },
        "fifo" => EntryKind::Fifo,
        kind => return Err(format!("type {}", quoted(kind.as_bytes()))),
    })
}

fn attributes_of(element: &Element) -> Result<Attributes, String> {
    let mtime = match element.modtime.as_str() {
        "" => Time::default(),
        text => {
            parse_rfc3339(text).ok_or_else(|| format!("modtime {}", quoted(text.as_bytes())))?
        }
    };
    let xattrs = element.xattrs.iter().map(|(name, value)| {
        let value = STANDARD.decode(value);
        let value = value.map_err(|_| format!("attribute {name:?} is not in base64"))?;
        Ok((kept(name)?.to_vec(), value))
    });
    Ok(Attributes {
        // The twelve bits that are kept are the same in any width.
        mode: (element.mode & 0o7777) as u32,
        uid: element.uid,
        gid: element.gid,
        mtime,
        xattrs: xattrs.collect::<Result<_, String>>()?,
    })
}

/// The bytes of a name, if none were lost.
fn kept(name: &str) -> Result<&[u8], String> {
    if name.contains(REPLACEMENT) {
        return Err(format!("{} may be a name that is not UTF-8", quoted(name.as_bytes())));
    }
    Ok(name.as_bytes())
}
