//! Entries to tar headers: ustar, with PAX records for what a plain header cannot hold.
//!
//! The reverse of [`tar`](super::tar), bytes in both senses: names and attribute values are not
//! text. The same entry gives the same bytes. Written here and not by a library, because a name of
//! arbitrary bytes above 100, a time before 1970 and a binary attribute have to come out in the one
//! dialect that every reader of layers has (Go's: PAX, `SCHILY.xattr.`, no GNU long names).

use super::entry::{Attributes, EntryKind, Time};
use super::error::{Error, Result};
use super::tar::EXTENSION_BYTES_MAX;
use super::tar::header::RECORD_BYTES;

/// What ends an archive: two zero records.
pub const END_OF_ARCHIVE: [u8; 2 * RECORD_BYTES] = [0; 2 * RECORD_BYTES];

/// Bytes of a name or link target in a plain header. (The ustar prefix is not used: a PAX record
/// says the same without a rule on where to split.)
const NAME_BYTES: usize = 100;

/// The largest numbers of fields of 8 and 12 bytes: octal, with a NUL behind them.
const OCTAL_7_MAX: u64 = 0o7_777_777;
const OCTAL_11_MAX: u64 = 0o77_777_777_777;

/// The header of one member, with the extended header in front of it. Content of a regular file
/// and [`padding`] follow; its chunks do not count.
///
/// `path` is cleaned, as [`Entry::path`](super::entry::Entry::path) has it.
///
/// # Errors
/// [`Error::Limit`] when name, link and attributes together exceed what readers accept.
pub fn header(path: &[u8], kind: &EntryKind, attributes: &Attributes) -> Result<Vec<u8>> {
    let mut name = path.to_vec();
    if *kind == EntryKind::Directory {
        name.push(b'/');
    }
    let records = records(&name, kind, attributes);
    let mut out = Vec::with_capacity(RECORD_BYTES);
    if !records.is_empty() {
        if records.len() as u64 > EXTENSION_BYTES_MAX {
            let what = format!("bytes of attributes of {}", path.escape_ascii());
            return Err(Error::Limit { what, limit: EXTENSION_BYTES_MAX });
        }
        let mut extended = Header::new(&extended_name(&name), b'x');
        extended.octal(100, 8, 0o644);
        extended.octal(124, 12, records.len() as u64);
        out.extend_from_slice(&extended.finish());
        out.extend_from_slice(&records);
        out.resize(out.len() + padding(records.len() as u64), 0);
    }
    out.extend_from_slice(&plain(&name, kind, attributes));
    Ok(out)
}

/// Zero bytes behind a content of `size` bytes.
pub fn padding(size: u64) -> usize {
    let record = RECORD_BYTES as u64;
    // Smaller than a record.
    ((record - size % record) % record) as usize
}

/// The member's own header; what does not fit is cut, for a PAX record says it.
fn plain(name: &[u8], kind: &EntryKind, attributes: &Attributes) -> [u8; RECORD_BYTES] {
    let (typeflag, size, link, device) = match kind {
        EntryKind::Regular { size, .. } => (b'0', *size, &[][..], None),
        EntryKind::Directory => (b'5', 0, &[][..], None),
        EntryKind::Symlink { target } => (b'2', 0, &target[..], None),
        EntryKind::Hardlink { target } => (b'1', 0, &target[..], None),
        EntryKind::CharDevice { major, minor } => (b'3', 0, &[][..], Some((*major, *minor))),
        EntryKind::BlockDevice { major, minor } => (b'4', 0, &[][..], Some((*major, *minor))),
        EntryKind::Fifo => (b'6', 0, &[][..], None),
    };
    let mut header = Header::new(name, typeflag);
    header.octal(100, 8, u64::from(attributes.mode & 0o7777));
    header.octal(108, 8, u64::from(attributes.uid));
    header.octal(116, 8, u64::from(attributes.gid));
    header.octal(124, 12, size);
    header.octal(136, 12, u64::try_from(attributes.mtime.seconds).unwrap_or(0));
    header.text(157, NAME_BYTES, link);
    if let Some((major, minor)) = device {
        header.octal(329, 8, u64::from(major));
        header.octal(337, 8, u64::from(minor));
    }
    header.finish()
}

/// The PAX records that the member needs, in the order of their keys.
fn records(name: &[u8], kind: &EntryKind, attributes: &Attributes) -> Vec<u8> {
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut add = |key: &str, value: &[u8]| records.push((key.into(), value.to_vec()));
    if name.len() > NAME_BYTES {
        add("path", name);
    }
    match kind {
        EntryKind::Symlink { target } | EntryKind::Hardlink { target }
            if target.len() > NAME_BYTES =>
        {
            add("linkpath", target);
        }
        EntryKind::Regular { size, .. } if *size > OCTAL_11_MAX => {
            add("size", size.to_string().as_bytes());
        }
        EntryKind::CharDevice { major, minor } | EntryKind::BlockDevice { major, minor }
            if u64::from(*major.max(minor)) > OCTAL_7_MAX =>
        {
            add("SCHILY.devmajor", major.to_string().as_bytes());
            add("SCHILY.devminor", minor.to_string().as_bytes());
        }
        _ => {}
    }
    for (key, id) in [("uid", attributes.uid), ("gid", attributes.gid)] {
        if u64::from(id) > OCTAL_7_MAX {
            add(key, id.to_string().as_bytes());
        }
    }
    let Time { seconds, nanos } = attributes.mtime;
    if nanos != 0 || u64::try_from(seconds).is_ok_and(|s| s > OCTAL_11_MAX) || seconds < 0 {
        add("mtime", time(attributes.mtime).as_bytes());
    }
    for (key, value) in &attributes.xattrs {
        records.push(([b"SCHILY.xattr.", &key[..]].concat(), value.clone()));
    }
    records.sort();
    records.iter().flat_map(|(key, value)| record(key, value)).collect()
}

/// Seconds with their fraction, which counts away from zero as the sign does: second -2 and half a
/// second is `-1.5`.
fn time(time: Time) -> String {
    let total = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, part) = (total.abs() / 1_000_000_000, total.abs() % 1_000_000_000);
    if part == 0 {
        return format!("{sign}{whole}");
    }
    format!("{sign}{whole}.{part:09}").trim_end_matches('0').to_owned()
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// What tools show that know no PAX: the member's last name.
fn extended_name(name: &[u8]) -> Vec<u8> {
    let trimmed = name.strip_suffix(b"/").unwrap_or(name);
    let last = trimmed.rsplit(|b| *b == b'/').next().unwrap_or(trimmed);
    [b"PaxHeaders.0/", last].concat()
}

/// A ustar header that is being filled in.
struct Header([u8; RECORD_BYTES]);

impl Header {
    fn new(name: &[u8], typeflag: u8) -> Self {
        let mut header = Header([0; RECORD_BYTES]);
        header.text(0, NAME_BYTES, name);
        for at in [100, 108, 116, 329, 337] {
            header.octal(at, 8, 0);
        }
        header.octal(124, 12, 0);
        header.octal(136, 12, 0);
        header.0[156] = typeflag;
        header.text(257, 8, b"ustar\x0000");
        header
    }

    fn text(&mut self, at: usize, bytes: usize, value: &[u8]) {
        let len = value.len().min(bytes);
        self.0[at..at + len].copy_from_slice(&value[..len]);
    }

    /// Zero where the field is too small: then a PAX record has the number.
    fn octal(&mut self, at: usize, bytes: usize, value: u64) {
        let max = if bytes == 8 { OCTAL_7_MAX } else { OCTAL_11_MAX };
        let value = if value > max { 0 } else { value };
        self.text(at, bytes - 1, format!("{value:0width$o}", width = bytes - 1).as_bytes());
    }

    fn finish(mut self) -> [u8; RECORD_BYTES] {
        self.text(148, 8, b"        ");
        let sum: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        self.text(148, 8, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::entry::{Chunk, Entry};
    use crate::layout::range::ByteRange;
    use crate::layout::tar::TarParser;

    fn parsed(tar: &[u8]) -> Vec<Entry> {
        let (mut parser, mut entries) = (TarParser::new(), Vec::new());
        parser.push(tar, &mut entries).expect("readable");
        parser.finish().expect("complete");
        entries
    }

    fn archive(path: &[u8], kind: &EntryKind, attributes: &Attributes, content: &[u8]) -> Vec<u8> {
        let mut tar = header(path, kind, attributes).expect("within limits");
        tar.extend_from_slice(content);
        tar.resize(tar.len() + padding(content.len() as u64), 0);
        tar.extend_from_slice(&END_OF_ARCHIVE);
        tar
    }

    #[test]
    fn times_before_1970_count_away_from_zero() {
        for (seconds, nanos, text) in [
            (-2, 500_000_000, "-1.5"),
            (-1, 999_999_999, "-0.000000001"),
            (-3, 0, "-3"),
            (7, 10, "7.00000001"),
            (1 << 40, 0, "1099511627776"),
        ] {
            assert_eq!(time(Time { seconds, nanos }), text);
        }
    }

    #[test]
    fn a_plain_entry_needs_one_record_and_a_second_tool_reads_the_rest() {
        let kind = EntryKind::Regular { size: 3, chunks: Vec::new() };
        let attributes = Attributes { mode: 0o4755, uid: 7, ..Attributes::default() };
        assert_eq!(header(b"a/b", &kind, &attributes).expect("fits").len(), RECORD_BYTES);
        let attributes = Attributes {
            mtime: Time { seconds: 1, nanos: 5 },
            xattrs: vec![(b"user.x".to_vec(), b"a=b\0\xff".to_vec())],
            ..attributes
        };
        let path = [b'p'; 130];
        let tar = archive(&path, &kind, &attributes, b"abc");
        let mut archive = tar::Archive::new(&tar[..]);
        let mut members = archive.entries().expect("an archive");
        let mut member = members.next().expect("one").expect("readable");
        assert_eq!(&*member.path_bytes(), path);
        assert_eq!(member.header().mode().expect("mode"), 0o4755);
        let records = member.pax_extensions().expect("readable").expect("extended");
        let records: Vec<_> = records.map(|r| r.expect("a record")).collect();
        let keys: Vec<_> = records.iter().map(|r| r.key_bytes()).collect();
        assert_eq!(keys, [&b"SCHILY.xattr.user.x"[..], b"mtime", b"path"]);
        assert_eq!(records[0].value_bytes(), b"a=b\0\xff");
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut member, &mut content).expect("read");
        assert_eq!(content, b"abc");
    }

    #[test]
    fn attributes_beyond_what_readers_accept_are_refused() {
        let value = vec![0; 60_000];
        let xattrs = (0..20).map(|n| (format!("user.{n}").into_bytes(), value.clone())).collect();
        let attributes = Attributes { xattrs, ..Attributes::default() };
        let refused = header(b"a", &EntryKind::Directory, &attributes);
        assert!(matches!(refused, Err(Error::Limit { .. })), "{refused:?}");
    }

    fn names() -> impl Strategy<Value = Vec<u8>> {
        let byte = any::<u8>().prop_filter("a byte of a name", |b| !matches!(b, 0 | b'/'));
        let name = prop::collection::vec(byte, 1..120)
            .prop_filter("a plain name", |n| n != b"." && n != b"..");
        prop::collection::vec(name, 1..4).prop_map(|names| names.join(&b'/'))
    }

    fn kinds() -> impl Strategy<Value = EntryKind> {
        let target = || prop::collection::vec(1u8.., 1..300);
        let number = || prop_oneof![0..2000u32, any::<u32>()];
        prop_oneof![
            (0..2000u64).prop_map(|size| EntryKind::Regular { size, chunks: Vec::new() }),
            Just(EntryKind::Directory),
            target().prop_map(|target| EntryKind::Symlink { target }),
            names().prop_map(|target| EntryKind::Hardlink { target }),
            (number(), number()).prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
            (number(), number()).prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
            Just(EntryKind::Fifo),
        ]
    }

    fn attributes() -> impl Strategy<Value = Attributes> {
        let id = || prop_oneof![0..70_000u32, any::<u32>()];
        let seconds =
            prop_oneof![-3..3i64, any::<i32>().prop_map(i64::from), -(1i64 << 60)..1 << 60];
        let nanos = prop_oneof![Just(0), 0..1_000_000_000u32];
        let value = prop::collection::vec(any::<u8>(), 0..200);
        let xattrs = prop::collection::btree_map("user\\.[a-z=\n]{1,9}", value, 0..4);
        (0..0o10000u32, id(), id(), seconds, nanos, xattrs).prop_map(
            |(mode, uid, gid, seconds, nanos, xattrs)| {
                let xattrs = xattrs.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect();
                let xattrs: Vec<(Vec<u8>, Vec<u8>)> = xattrs;
                // A key ends at the first equals sign, so an attribute's name has none.
                let xattrs = xattrs.into_iter().filter(|(k, _)| !k.contains(&b'=')).collect();
                Attributes { mode, uid, gid, mtime: Time { seconds, nanos }, xattrs }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            path in names(), kind in kinds(), attributes in attributes(),
        ) {
            let size = match kind { EntryKind::Regular { size, .. } => size, _ => 0 };
            let tar = archive(&path, &kind, &attributes, &vec![b'c'; size as usize]);
            prop_assert_eq!(tar.len() % RECORD_BYTES, 0);
            let entries = parsed(&tar);
            let start = tar.len() as u64 - END_OF_ARCHIVE.len() as u64 - size - padding(size) as u64;
            let chunk = Chunk { file_offset: 0, tar: ByteRange::at(start, size) };
            let kind = match kind {
                EntryKind::Regular { size, .. } => {
                    let chunks = if size == 0 { Vec::new() } else { vec![chunk] };
                    EntryKind::Regular { size, chunks }
                }
                kind => kind,
            };
            let expected = Entry { path, offset: start - RECORD_BYTES as u64, kind, attributes };
            prop_assert_eq!(entries, vec![expected]);
        }
    }
}
