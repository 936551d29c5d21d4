use proptest::prelude::*;

use super::*;
use crate::layout::entry::{Attributes, Time};

/// A header under construction: ustar, mode 0644, everything else zero.
struct Raw([u8; RECORD_BYTES]);

impl Raw {
    fn new(name: &[u8], typeflag: u8, size: u64) -> Self {
        let mut record = [0; RECORD_BYTES];
        record[257..265].copy_from_slice(b"ustar\x0000");
        record[156] = typeflag;
        Raw(record).with(0, name).with(100, b"0000644").with(124, format!("{size:011o}").as_bytes())
    }

    fn gnu(name: &[u8], typeflag: u8, size: u64) -> Self {
        Raw::new(name, typeflag, size).with(257, b"ustar  \0")
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The header with its checksum, and the padded content.
    fn then(mut self, content: &[u8]) -> Vec<u8> {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        self.0[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut bytes = [&self.0, content].concat();
        bytes.resize(bytes.len().next_multiple_of(RECORD_BYTES), 0);
        bytes
    }

    fn done(self) -> Vec<u8> {
        self.then(b"")
    }
}

fn pax(typeflag: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (key, value) in records {
        let body = 3 + key.len() + value.len();
        let length = (body..).find(|n| *n == body + n.to_string().len()).unwrap();
        payload.extend(format!("{length} {key}=").bytes().chain(value.iter().copied()));
        payload.push(b'\n');
    }
    Raw::new(b"pax", typeflag, payload.len() as u64).then(&payload)
}

fn parse(archive: &[u8]) -> Result<Vec<Entry>> {
    parse_in_pieces(archive, archive.len().max(1))
}

fn parse_in_pieces(archive: &[u8], size: usize) -> Result<Vec<Entry>> {
    let (mut parser, mut entries) = (TarParser::new(), Vec::new());
    for piece in archive.chunks(size) {
        parser.push(piece, &mut entries)?;
    }
    parser.finish().map(|()| entries)
}

fn one(parts: &[Vec<u8>]) -> Entry {
    let mut entries = parse(&parts.concat()).unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

/// Path, and logical size of regular files.
fn names(archive: &[u8]) -> Vec<(String, Option<u64>)> {
    let name = |entry: &Entry| {
        let size = match entry.kind {
            EntryKind::Regular { size, .. } => Some(size),
            _ => None,
        };
        (String::from_utf8_lossy(&entry.path).into_owned(), size)
    };
    parse(archive).unwrap().iter().map(name).collect()
}

fn refusal(parts: &[Vec<u8>]) -> (u64, String) {
    match parse(&parts.concat()) {
        Err(Error::Tar { offset, reason }) => (offset, reason),
        other => panic!("not refused: {other:?}"),
    }
}

fn chunk(file_offset: u64, tar: std::ops::Range<u64>) -> Chunk {
    Chunk { file_offset, tar: ByteRange::new(tar.start, tar.end) }
}

#[test]
fn a_ustar_header_has_prefix_owner_time_and_content() {
    let file = Raw::new(b"name", b'0', 5)
        .with(345, b"some/prefix")
        .with(100, b"0104755")
        .with(108, b"0001750")
        .with(116, b"0001751")
        .with(136, b"14371573520");
    let entry = one(&[file.then(b"hello")]);
    let mtime = Time { seconds: 0o14371573520, nanos: 0 };
    let attributes = Attributes { mode: 0o4755, uid: 1000, gid: 1001, mtime, xattrs: vec![] };
    let kind = EntryKind::Regular { size: 5, chunks: vec![chunk(0, 512..517)] };
    assert_eq!(entry, Entry { path: b"some/prefix/name".to_vec(), offset: 0, kind, attributes });
}

#[test]
fn every_type_has_its_kind_and_only_files_have_content() {
    let size = 3000; // What old tools leave in the size field of a hard link.
    let archive = [
        Raw::new(b"link", b'1', size).with(157, b"./a//b").done(),
        Raw::new(b"symlink", b'2', size).with(157, b"../a//b/").done(),
        Raw::new(b"char", b'3', size).with(329, b"0000001\x000000003").done(),
        Raw::new(b"disk", b'4', size).with(329, b"0000010\x000000377").done(),
        Raw::new(b"dir/", b'5', size).done(),
        Raw::new(b"fifo", b'6', size).done(),
        Raw::new(b"contiguous", b'7', 1).then(b"x"),
        Raw::new(b"old", b'\0', 0).done(),
        Raw::new(b"old-dir/", b'\0', 0).done(),
        Raw::new(b"volume", b'V', 600).then(&[1; 600]),
        Raw::new(b"unknown", b'9', 1).then(b"x"),
    ];
    let entries = parse(&archive.concat()).unwrap();
    let kinds: Vec<_> = entries.into_iter().map(|entry| entry.kind).collect();
    let file = |start| EntryKind::Regular { size: 1, chunks: vec![chunk(0, start..start + 1)] };
    let expected = [
        EntryKind::Hardlink { target: b"a/b".to_vec() },
        EntryKind::Symlink { target: b"../a//b/".to_vec() },
        EntryKind::CharDevice { major: 1, minor: 3 },
        EntryKind::BlockDevice { major: 8, minor: 255 },
        EntryKind::Directory,
        EntryKind::Fifo,
        file(7 * 512),
        EntryKind::Regular { size: 0, chunks: vec![] },
        EntryKind::Directory,
        file(14 * 512),
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn device_numbers_of_pax_count_in_pairs_and_old_headers_have_none() {
    let header = || Raw::new(b"x", b'4', 0).with(329, b"0000001\x000000003");
    let (major, minor) = (("SCHILY.devmajor", &b"4294967295"[..]), ("SCHILY.devminor", &b"7"[..]));
    let device = |major, minor| EntryKind::BlockDevice { major, minor };
    let both = pax(b'x', &[major, minor]);
    assert_eq!(one(&[both, header().done()]).kind, device(u32::MAX, 7));
    assert_eq!(one(&[pax(b'x', &[minor]), header().done()]).kind, device(1, 3));
    let old = header().with(257, &[0; 8]).with(345, b"no prefix").done();
    let old = one(&[old]);
    assert_eq!((old.path, old.kind), (b"x".to_vec(), device(0, 0)));
    for number in ["4294967296", "9223372036854775808"] {
        let record = pax(b'x', &[("SCHILY.devmajor", number.as_bytes()), minor]);
        assert!(refusal(&[record, header().done()]).1.contains("device numbers"));
    }
}

#[test]
fn a_prefix_of_star_ends_in_front_of_its_times() {
    let prefix = [b'p'; 131];
    let times = b"14371573520\x0014371573520\0";
    let star = Raw::new(b"name", b'0', 0).with(345, &prefix).with(476, times);
    let path = [&prefix[..], b"/name"].concat();
    assert_eq!(one(&[star.with(508, b"tar\0").done()]).path, path);
    let path = [&prefix[..], b"14371573520/name"].concat();
    let ustar = Raw::new(b"name", b'0', 0).with(345, &prefix).with(476, times);
    assert_eq!(one(&[ustar.done()]).path, path);
}

#[test]
fn long_names_and_links_of_gnu_replace_those_of_the_header() {
    let long = [b"d/".repeat(200).as_slice(), b"f"].concat();
    let nul = [long.as_slice(), b"\0ignored"].concat();
    let entry = one(&[
        Raw::gnu(b"././@LongLink", b'K', nul.len() as u64).then(&nul),
        Raw::gnu(b"././@LongLink", b'L', nul.len() as u64).then(&nul),
        Raw::gnu(b"short", b'2', 0).with(157, b"short").done(),
    ]);
    assert_eq!(entry.path, long);
    assert_eq!(entry.kind, EntryKind::Symlink { target: long });
    assert_eq!(entry.offset, 2 * (512 + 512));
    // Empty ones replace nothing.
    let entry = one(&[
        Raw::gnu(b"././@LongLink", b'K', 1).then(b"\0"),
        Raw::gnu(b"././@LongLink", b'L', 1).then(b"\0"),
        Raw::gnu(b"short", b'2', 0).with(157, b"target").done(),
    ]);
    assert_eq!(entry.path, b"short");
    assert_eq!(entry.kind, EntryKind::Symlink { target: b"target".to_vec() });
}

#[test]
fn symbolic_links_have_targets_that_linux_could_follow() {
    let link = |target: &[u8]| [pax(b'x', &[("linkpath", target)]), Raw::new(b"l", b'2', 0).done()];
    let target = vec![b't'; path::PATH_BYTES_MAX];
    assert_eq!(one(&link(&target)).kind, EntryKind::Symlink { target: target.clone() });
    for bad in [&[&target[..], b"t"].concat()[..], b"a\0b"] {
        assert!(refusal(&link(bad)).1.contains("symbolic link target"));
    }
}

#[test]
fn pax_records_override_the_next_header_only() {
    let records: [(&str, &[u8]); 7] = [
        ("path", b"\xffnew\n"),
        ("size", b"3"),
        ("uid", b"4294967295"),
        ("gid", b"3000000"),
        ("mtime", b"-1.5"),
        ("SCHILY.xattr.user.x", b"a\n\0=b"),
        ("comment", b"means nothing"),
    ];
    let archive = [
        pax(b'x', &records),
        Raw::new(b"old", b'0', 0).with(108, b"garbage").then(b"abc"),
        Raw::new(b"next", b'0', 0).done(),
    ];
    let entries = parse(&archive.concat()).unwrap();
    let kind = EntryKind::Regular { size: 3, chunks: vec![chunk(0, 1536..1539)] };
    let attributes = Attributes {
        mode: 0o644,
        uid: u32::MAX,
        gid: 3_000_000,
        mtime: Time { seconds: -2, nanos: 500_000_000 },
        xattrs: vec![(b"user.x".to_vec(), b"a\n\0=b".to_vec())],
    };
    assert_eq!(entries[0], Entry { path: b"\xffnew\n".to_vec(), offset: 1024, kind, attributes });
    assert_eq!(entries[1].path, b"next");
    assert_eq!(entries[1].attributes.xattrs, []);
}

#[test]
fn global_records_hold_for_all_later_members() {
    let archive = [
        Raw::new(b"a", b'0', 0).done(),
        pax(b'g', &[("uid", b"7"), ("SCHILY.xattr.user.g", b"1")]),
        Raw::new(b"b", b'0', 0).done(),
        pax(b'x', &[("uid", b"8")]),
        Raw::new(b"c", b'0', 0).done(),
        Raw::new(b"d", b'0', 0).done(),
    ];
    let entries = parse(&archive.concat()).unwrap();
    let owners: Vec<_> = entries.iter().map(|entry| entry.attributes.uid).collect();
    assert_eq!(owners, [0, 7, 8, 7]);
    assert_eq!(entries[3].attributes.xattrs, [(b"user.g".to_vec(), b"1".to_vec())]);
}

#[test]
fn base_256_carries_sizes_beyond_eight_gibibytes_and_times_before_1970() {
    let header = Raw::gnu(b"big", b'0', 0)
        .with(124, b"\x80\0\0\0\0\0\0\x03\0\0\0\0")
        .with(136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe");
    let mut parser = TarParser::new();
    let mut entries = Vec::new();
    parser.push(&header.done(), &mut entries).unwrap();
    let chunks = vec![chunk(0, 512..512 + (12 << 30))];
    assert_eq!(entries[0].kind, EntryKind::Regular { size: 12 << 30, chunks });
    assert_eq!(entries[0].attributes.mtime.seconds, -2);
}

#[test]
fn early_docker_layers_have_a_prefix_in_a_gnu_header() {
    let entry = one(&[Raw::gnu(b"name", b'0', 0).with(345, b"usr/share/long").done()]);
    assert_eq!(entry.path, b"usr/share/long/name");
    let times = Raw::gnu(b"name", b'0', 0).with(345, b"00000000001\x0000000000002\0");
    assert_eq!(one(&[times.done()]).path, b"name");
    let digits = Raw::gnu(b"name", b'0', 0).with(345, b"012345670123/usr");
    assert_eq!(one(&[digits.done()]).path, b"012345670123/usr/name");
    // A first time alone, and what else GNU keeps behind it.
    let one_time = Raw::gnu(b"name", b'0', 0).with(345, b"00000000001\0\0offset");
    assert_eq!(one(&[one_time.done()]).path, b"name");
}

#[test]
fn two_zero_records_end_the_archive_and_one_means_nothing() {
    let [a, b, c] = [b"a", b"b", b"c"].map(|name| Raw::new(name, b'0', 0).done());
    let zero = vec![0; RECORD_BYTES];
    let archive = [&a, &zero, &b, &zero, &zero, &c].map(Vec::as_slice).concat();
    let expected = [("a".to_owned(), Some(0)), ("b".to_owned(), Some(0))];
    assert_eq!(names(&archive), expected);
    // Nothing behind the end counts, garbage included, and the end itself may be missing or cut.
    assert_eq!(names(&[archive.as_slice(), b"garbage"].concat()), expected);
    for size in 3 * RECORD_BYTES..archive.len() - RECORD_BYTES {
        assert_eq!(names(&archive[..size]), expected, "{size}");
    }
    assert_eq!(names(b""), []);
}

#[test]
fn what_is_cut_off_is_refused_with_its_offset() {
    let file = Raw::new(b"a", b'0', 600).then(&[1; 600]);
    let header = Raw::new(b"b", b'0', 0).done();
    let records = pax(b'x', &[("path", b"c")]);
    let parts = [file, records, header];
    let archive = parts.concat();
    for (size, offset) in [
        (1, 0),
        (511, 0),
        (512, 0),
        (1111, 0),
        (1600, 1536),
        (2048, 1536),
        (2060, 1536),
        (2560, 1536),
        (2600, 2560),
    ] {
        assert_eq!(refusal(&[archive[..size].to_vec()]).0, offset, "{size}");
    }
    // The padding of the last member says nothing.
    assert_eq!(names(&archive[..1112]).len(), 1);
    // Nor do headers of no member, where the archive ends.
    let zero = [0; RECORD_BYTES];
    assert_eq!(names(&[&pax(b'x', &[("path", b"c")])[..], &zero].concat()), []);
    assert_eq!(names(&pax(b'g', &[("uid", b"7")])), []);
}

#[test]
fn entries_take_no_more_memory_than_their_limit() {
    let plain = one(&[Raw::new(b"f", b'0', 0).done()]);
    let bytes = metadata_bytes(&plain);
    let grown = |change: fn(&mut Entry)| {
        let mut entry = plain.clone();
        change(&mut entry);
        metadata_bytes(&entry) - bytes
    };
    assert!(bytes > size_of::<Entry>() as u64);
    assert_eq!(grown(|e| e.path.extend(b"1234")), 4);
    assert_eq!(grown(|e| e.kind = EntryKind::Symlink { target: b"123".to_vec() }), 3);
    assert_eq!(grown(|e| e.kind = EntryKind::Hardlink { target: b"12345".to_vec() }), 5);
    let chunks = vec![chunk(0, 0..1), chunk(5, 1..2), chunk(8, 2..3)];
    let kind = EntryKind::Regular { size: 9, chunks };
    let entry = Entry { kind, ..plain.clone() };
    assert_eq!(metadata_bytes(&entry) - bytes, 3 * size_of::<Chunk>() as u64);
    let pair = size_of::<(Vec<u8>, Vec<u8>)>() as u64;
    let xattrs = |e: &mut Entry| {
        e.attributes.xattrs =
            vec![(b"name".to_vec(), b"1234567".to_vec()), (b"n".to_vec(), b"v".to_vec())];
    };
    assert_eq!(grown(xattrs), 2 * pair + 4 + 7 + 2);

    let mut parser = TarParser::new();
    parser.metadata_bytes = METADATA_BYTES_MAX - bytes;
    let mut entries = Vec::new();
    parser.push(&Raw::new(b"f", b'0', 0).done(), &mut entries).unwrap();
    assert_eq!(entries, [plain]);
    let refused = parser.push(&Raw::new(b"g", b'5', 0).done(), &mut entries);
    let refused = refused.expect_err("beyond the limit").to_string();
    assert!(refused.contains("the entries up to here take more than"), "{refused}");
}

#[test]
fn hostile_headers_are_refused_with_their_offset() {
    let first = Raw::new(b"first", b'0', 0).done();
    let long = vec![b'n'; 300];
    let negative = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe";
    for (what, bad) in [
        ("checksum", {
            let mut header = Raw::new(b"x", b'0', 0).done();
            header[0] ^= 1;
            header
        }),
        ("leaves the root", Raw::new(b"../x", b'0', 0).done()),
        ("leaves the root", Raw::new(b"x", b'1', 0).with(157, b"a/../../x").done()),
        ("means the root", Raw::new(b"./", b'6', 0).done()),
        ("negative size", Raw::gnu(b"x", b'0', 0).with(124, negative).done()),
        ("invalid size", Raw::new(b"x", b'0', 0).with(124, b"12345678 9a").done()),
        ("symbolic link target", Raw::new(b"x", b'2', 0).done()),
        ("uid", Raw::gnu(b"x", b'0', 0).with(108, b"\x80\0\0\x01\0\0\0\0").done()),
        ("gid", Raw::gnu(b"x", b'0', 0).with(116, &negative[4..]).done()),
        ("device", Raw::gnu(b"x", b'3', 0).with(329, &negative[4..]).done()),
        ("extended header of", Raw::new(b"x", b'x', EXTENSION_BYTES_MAX + 1).done()),
        ("not GNU's", Raw::new(b"x", b'S', 0).done()),
        ("PAX record", Raw::new(b"x", b'x', 4).then(b"9 a=")),
        ("a name of 300 bytes", {
            let name = Raw::gnu(b"x", b'L', 300).then(&long);
            [name, Raw::gnu(b"x", b'0', 0).done()].concat()
        }),
        ("impossible size", {
            [pax(b'x', &[("size", b"9223372036854775808")]), Raw::new(b"x", b'0', 0).done()]
                .concat()
        }),
        ("impossible size", {
            [pax(b'x', &[("size", b"9223372036854775807")]), Raw::new(b"x", b'0', 0).done()]
                .concat()
        }),
    ] {
        let (offset, reason) = refusal(&[first.clone(), bad.clone()]);
        assert!(reason.contains(what), "{what}: {reason}");
        assert_eq!(offset, bad.len() as u64 - if what.starts_with("PAX") { 512 } else { 0 });
    }
}

#[test]
fn old_gnu_sparse_maps_go_on_in_records_behind_the_header() {
    let map = |starts: std::ops::Range<u64>| -> Vec<u8> {
        starts.flat_map(|n| format!("{:011o}\0{:011o}\0", 10 * n, 2).into_bytes()).collect()
    };
    let record = |starts, more: u8| {
        let mut record = map(starts);
        record.resize(504, 0);
        record.push(more);
        record.resize(RECORD_BYTES, 0);
        record
    };
    let header = |size| Raw::gnu(b"s", b'S', size).with(386, &map(0..4)).with(483, b"00000001000");
    let chunks = |pieces: u64, at: u64| -> Vec<Chunk> {
        (0..pieces).map(|n| chunk(10 * n, at + 2 * n..at + 2 * n + 2)).collect()
    };
    let next = Raw::new(b"next", b'0', 0).done();
    let short = [header(8).then(&[1; 8]), next.clone()].concat();
    let extended = [header(54).with(482, b"\x01").done(), record(4..25, 1), record(25..27, 0)];
    let long = [&extended.concat()[..], &[1; 512], &next].concat();
    for (archive, pieces, at) in [(short, 4, 512), (long, 27, 3 * 512)] {
        for size in [1, 7, 512, archive.len()] {
            let entries = parse_in_pieces(&archive, size).unwrap();
            let chunks = chunks(pieces, at);
            assert_eq!(entries[0].kind, EntryKind::Regular { size: 512, chunks });
            assert_eq!((entries[1].path.as_slice(), entries[1].offset), (&b"next"[..], at + 512));
        }
    }
    assert_eq!(refusal(&extended[..2]).0, 0);
}

#[test]
fn a_sparse_map_of_pax_1_0_is_the_first_part_of_the_content() {
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"real"),
        ("GNU.sparse.realsize", b"9223372036854775807"),
    ];
    let archive = |pieces: u64, stored: u64| -> Vec<u8> {
        let mut content = format!("{pieces}\n").into_bytes();
        content.extend((1..=pieces).flat_map(|n| format!("{}\n1\n", 100 * n).into_bytes()));
        content.resize(content.len().next_multiple_of(RECORD_BYTES), 0);
        content.resize(content.len() + pieces as usize, b'c');
        let header = Raw::new(b"GNUSparseFile.0/s", b'0', stored);
        [pax(b'x', &records), header.then(&content), Raw::new(b"next", b'0', 0).done()].concat()
    };
    for (pieces, map_bytes) in [(3, 512), (100, 1024)] {
        let archive = archive(pieces, map_bytes + pieces);
        let start = 3 * 512 + map_bytes;
        let chunks: Vec<_> =
            (0..pieces).map(|n| chunk(100 * n + 100, start + n..start + n + 1)).collect();
        for size in [1, 7, 512, archive.len()] {
            let entries = parse_in_pieces(&archive, size).unwrap();
            assert_eq!((entries.len(), entries[0].path.as_slice()), (2, &b"real"[..]));
            let EntryKind::Regular { size: logical, chunks: found } = &entries[0].kind else {
                panic!("{entries:?}");
            };
            assert_eq!((*logical, found), (i64::MAX as u64, &chunks));
        }
    }
    assert_eq!(refusal(&[archive(100, 1023)]).1, "the sparse map exceeds the content");
    let beyond =
        pax(b'x', &[("GNU.sparse.map", b"0,0"), ("GNU.sparse.size", b"9223372036854775808")]);
    let reason = refusal(&[beyond, Raw::new(b"s", b'0', 0).done()]).1;
    assert!(reason.contains("impossible sparse size"), "{reason}");
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_give_the_same_entries_or_the_same_refusal(
        seed in prop::collection::vec((0usize..6, any::<u16>(), any::<u8>()), 0..8),
        size in 1usize..1500,
    ) {
        let mut archive = Vec::new();
        for (shape, at, byte) in seed {
            let mut part = match shape {
                0 => Raw::new(b"file", b'0', 700).then(&[1; 700]),
                1 => pax(b'x', &[("path", b"p"), ("SCHILY.xattr.user.a", b"\n")]),
                2 => Raw::gnu(b"l", b'L', 5).then(b"long\0"),
                3 => [
                    pax(b'x', &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"),
                        ("GNU.sparse.realsize", b"9000")]),
                    Raw::new(b"s", b'0', 515).then(&[b"1\n8000\n3\n".as_slice(), &[0; 506]].concat()),
                ].concat(),
                4 => vec![0; 512],
                _ => Raw::new(b"dir/", b'5', 0).done(),
            };
            // Some damage, mostly in content and numbers.
            let at = usize::from(at);
            if at < part.len() {
                part[at] = byte;
            }
            archive.extend(part);
        }
        prop_assert_eq!(parse_in_pieces(&archive, size), parse(&archive));
    }
}
