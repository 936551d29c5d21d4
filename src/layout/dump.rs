//! A tree as text, one line a path; and text as the entries of a layer.
//!
//! ```text
//! /etc/passwd f 0644 0:0 1700000000.000000005 size=12 layer=0 chunks=0@512-524 xattr.user.a=\x00
//! ```
//!
//! Path, type, mode, owner and modification time; then what only that type has. Types: `d`irectory,
//! `f`ile, `l`ink (symbolic), `h`ard link (a further name of an earlier line's inode), `c` and `b`
//! devices, `p`ipe. Times are whole seconds rounded down, and nanoseconds after that second.
//! Bytes that are not printable ASCII, spaces, `\` and (in names) `=` stand as `\xNN`. What is
//! written can be read again, content apart that is not in a layer.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::entry::{Attributes, Chunk, Entry, EntryKind, Time};
use super::error::{Error, Result};
use super::range::ByteRange;
use super::tree::{ContentRef, KindRef, Node, NodeId, Tree};

/// What a part of a line says, or what is wrong with it.
type Parsed<T> = std::result::Result<T, String>;

/// Every path of `tree`, in depth-first name order.
pub fn dump(tree: &Tree) -> String {
    let mut text = String::new();
    let mut seen: HashMap<NodeId, String> = HashMap::new();
    let mut waiting = vec![(NodeId::ROOT, String::new())];
    while let Some((id, path)) = waiting.pop() {
        let Some(node) = tree.node(id) else { continue };
        let shown = if path.is_empty() { "/" } else { &path };
        if let Some(first) = seen.get(&id) {
            line(&mut text, format_args!("{shown} h target={first}\n"));
            continue;
        }
        line(&mut text, format_args!("{shown} {}\n", describe(node)));
        if node.links > 1 && tree.children(id).is_none() {
            seen.insert(id, path.clone());
        }
        let children = tree.children(id).unwrap_or_default().rev();
        waiting.extend(children.map(|(name, id)| (id, format!("{path}/{}", escape(name)))));
    }
    text
}

fn line(text: &mut String, formatted: std::fmt::Arguments<'_>) {
    text.write_fmt(formatted).expect("writing to a String cannot fail");
}

/// A node without its path.
pub fn describe(node: Node<'_>) -> String {
    let Attributes { mode, uid, gid, mtime, xattrs } = node.attributes;
    let (letter, own) = match node.kind {
        KindRef::Directory => ('d', String::new()),
        KindRef::Regular { size, content } => ('f', format!(" size={size} {}", place(content))),
        KindRef::Symlink { target } => ('l', format!(" target={}", escape(target))),
        KindRef::CharDevice { major, minor } => ('c', format!(" device={major}:{minor}")),
        KindRef::BlockDevice { major, minor } => ('b', format!(" device={major}:{minor}")),
        KindRef::Fifo => ('p', String::new()),
    };
    let nanos = match mtime.nanos {
        0 => String::new(),
        nanos => format!(".{nanos:09}"),
    };
    let mut text = format!("{letter} {mode:04o} {uid}:{gid} {}{nanos}{own}", mtime.seconds);
    for (name, value) in xattrs {
        line(&mut text, format_args!(" xattr.{}={}", escape(name), escape(value)));
    }
    text
}

fn place(content: ContentRef<'_>) -> String {
    match content {
        ContentRef::Inline(bytes) => format!("inline={}", escape(bytes)),
        ContentRef::Blob(blob) => format!("blob={}", blob.digest),
        ContentRef::Chunks { layer, chunks } => {
            let piece = |c: &Chunk| format!("{}@{}-{}", c.file_offset, c.tar.start, c.tar.end);
            let pieces: Vec<String> = chunks.iter().map(piece).collect();
            format!("layer={layer} chunks={}", pieces.join(","))
        }
    }
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\\' | b'=' | 0..=b' ' | 0x7f.. => line(&mut text, format_args!("\\x{byte:02x}")),
            _ => text.push(char::from(*byte)),
        }
    }
    text
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'\\' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let digits = after.strip_prefix(b"x")?.get(..2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &after[3..];
    }
    Some(bytes)
}

/// The entries that a text describes. Mode, owner and time may be left out from the right (0755
/// for directories, else 0644; root; the epoch), as may `size` where chunks tell it. Empty lines
/// and those that begin with `#` mean nothing. Line `n` (from 0) has offset `512 * n`.
///
/// # Errors
/// [`Error::Document`] naming the line (from 1).
pub fn parse(text: &str) -> Result<Vec<Entry>> {
    let numbered = (0u64..).zip(text.lines());
    let meant = numbered.filter(|(_, l)| !l.trim().is_empty() && !l.trim().starts_with('#'));
    meant
        .map(|(number, line)| {
            let mut entry = parse_line(line)
                .map_err(|reason| Error::document(format!("line {}", number + 1), reason))?;
            entry.offset = number * 512;
            Ok(entry)
        })
        .collect()
}

fn parse_line(line: &str) -> Parsed<Entry> {
    let mut words = line.split_whitespace();
    let path = words.next().and_then(unescape).ok_or("expected a path")?;
    let letter = words.next().ok_or("expected a type")?;
    let (fields, plain): (Vec<&str>, Vec<&str>) = words.partition(|w| w.contains('='));
    let mut values: HashMap<&str, &str> = HashMap::new();
    let mut attributes = positional(letter, &plain)?;
    for (key, value) in fields.iter().filter_map(|f| f.split_once('=')) {
        let bytes = || unescape(value).ok_or(format!("bad escape in {value}"));
        match key.strip_prefix("xattr.") {
            Some(name) => {
                let name = unescape(name).ok_or("bad escape in an xattr name")?;
                attributes.xattrs.push((name, bytes()?));
            }
            None => drop(values.insert(key, value)),
        }
    }
    let target = || values.get("target").and_then(|t| unescape(t)).ok_or("expected target=");
    let device = || pair(values.get("device").copied().ok_or("expected device=")?);
    let kind = match letter {
        "d" => EntryKind::Directory,
        "f" => regular(&values)?,
        "l" => EntryKind::Symlink { target: target()? },
        "h" => EntryKind::Hardlink { target: clean(target()?) },
        "c" => device().map(|(major, minor)| EntryKind::CharDevice { major, minor })?,
        "b" => device().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
        "p" => EntryKind::Fifo,
        other => return Err(format!("unknown type {other}")),
    };
    Ok(Entry { path: clean(path), offset: 0, kind, attributes })
}

fn clean(path: Vec<u8>) -> Vec<u8> {
    path.strip_prefix(b"/").map(<[u8]>::to_vec).unwrap_or(path)
}

fn positional(letter: &str, plain: &[&str]) -> Parsed<Attributes> {
    let mode = match plain.first() {
        Some(mode) => u32::from_str_radix(mode, 8).map_err(|e| format!("mode {mode}: {e}"))?,
        None if letter == "d" => 0o755,
        None => 0o644,
    };
    let (uid, gid) = plain.get(1).map_or(Ok((0, 0)), |owner| pair(owner))?;
    let mtime = match plain.get(2) {
        Some(time) => {
            let (seconds, nanos) = time.split_once('.').unwrap_or((time, "0"));
            Time { seconds: number(seconds)?, nanos: number(nanos)? }
        }
        None => Time::default(),
    };
    Ok(Attributes { mode, uid, gid, mtime, xattrs: Vec::new() })
}

fn regular(values: &HashMap<&str, &str>) -> Parsed<EntryKind> {
    if values.contains_key("inline") || values.contains_key("blob") {
        return Err("the content of an entry is in its layer".to_owned());
    }
    let pieces = values.get("chunks").filter(|p| !p.is_empty()).map(|p| p.split(','));
    let chunk = |piece: &str| -> Parsed<Chunk> {
        let (file_offset, tar) = piece.split_once('@').ok_or("expected OFFSET@START-END")?;
        let (start, end) = tar.split_once('-').ok_or("expected OFFSET@START-END")?;
        let tar = ByteRange::new(number(start)?, number(end)?);
        Ok(Chunk { file_offset: number(file_offset)?, tar })
    };
    let chunks = pieces.into_iter().flatten().map(chunk).collect::<Parsed<Vec<_>>>()?;
    let filled = chunks.last().map_or(0, |c| c.file_offset.saturating_add(c.tar.len()));
    let size = values.get("size").map_or(Ok(filled), |s| number(s))?;
    Ok(EntryKind::Regular { size, chunks })
}

fn pair(text: &str) -> Parsed<(u32, u32)> {
    let (first, second) = text.split_once(':').ok_or(format!("{text}: expected A:B"))?;
    Ok((number(first)?, number(second)?))
}

fn number<T: std::str::FromStr>(text: &str) -> Parsed<T> {
    text.parse().map_err(|_| format!("{text}: expected a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_all_that_an_entry_says() {
        let text = "a\\x20b/\\xff f 4755 1:2 -2.500000000 size=9 chunks=0@512-515,6@515-518 \
                    xattr.user.a\\x3d=\\x00=\n\n# nothing\nd d\nl l target=../\\x5c\nh h target=/d/x\n\
                    n c 0600 0:0 0 device=1:3\n/ d 1777";
        let entries = parse(text).expect("entries");
        let first = Entry {
            path: b"a b/\xff".to_vec(),
            offset: 0,
            kind: EntryKind::Regular {
                size: 9,
                chunks: vec![
                    Chunk { file_offset: 0, tar: ByteRange::new(512, 515) },
                    Chunk { file_offset: 6, tar: ByteRange::new(515, 518) },
                ],
            },
            attributes: Attributes {
                mode: 0o4755,
                uid: 1,
                gid: 2,
                mtime: Time { seconds: -2, nanos: 500_000_000 },
                xattrs: vec![(b"user.a=".to_vec(), b"\0=".to_vec())],
            },
        };
        assert_eq!(entries[0], first);
        assert_eq!((entries[1].offset, entries[1].attributes.mode), (3 * 512, 0o755));
        assert_eq!(entries[2].kind, EntryKind::Symlink { target: b"../\\".to_vec() });
        assert_eq!(entries[3].kind, EntryKind::Hardlink { target: b"d/x".to_vec() });
        assert_eq!(entries[4].kind, EntryKind::CharDevice { major: 1, minor: 3 });
        assert!(entries[5].path.is_empty());
    }

    #[test]
    fn a_bad_line_is_named() {
        for bad in ["a", "a x", "a l", "a c", "a f 9", "a f chunks=1", "a\\xz d", "a f 0644 1"] {
            let error = parse(&format!("ok d\n{bad}")).expect_err(bad).to_string();
            assert!(error.starts_with("line 2: "), "{error}");
        }
    }
}
