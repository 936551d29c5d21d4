use super::checkpoints::{Checkpoint, WINDOW_BYTES, write_head, write_one};
use super::flatbuffer::{Builder, Field};
use super::slot;
use super::*;
use crate::layout::digest::Digest;
use crate::layout::entry::{Entry, EntryKind};
use crate::layout::error::Error;
use crate::layout::index::{self, Codec, LayerIndex, Proof};
use crate::layout::range::ByteRange;

const BLOB_BYTES: u64 = 1000;
const TAR_BYTES: u64 = 100_000;

/// A file as a zTOC has it.
#[derive(Clone)]
struct File {
    name: &'static [u8],
    kind: &'static str,
    offset: i64,
    size: i64,
    link: &'static [u8],
    mtime: &'static str,
    device: (i64, i64),
    pax: Vec<(&'static [u8], &'static [u8])>,
}

/// A zTOC before it is written: a test changes what it wants.
struct Parts {
    version: &'static str,
    compressed: i64,
    uncompressed: i64,
    algorithm: Option<i8>,
    last_span: i32,
    digests: Vec<String>,
    checkpoints: Vec<u8>,
    files: Vec<File>,
}

fn digest(of: u8) -> String {
    Digest::sha256_of(&[of]).to_string()
}

fn file(name: &'static [u8], offset: i64, size: i64) -> File {
    let (kind, link, mtime) = ("reg", &b""[..], "2023-11-14T22:13:20.5Z");
    File { name, kind, offset, size, link, mtime, device: (0, 0), pax: vec![] }
}

fn gzip(checkpoints: &[(u64, u64, u8)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_head(&mut bytes, checkpoints.len() as i32, 50_000);
    for (blob, tar, bits) in checkpoints {
        let window = &[7; WINDOW_BYTES];
        write_one(&mut bytes, &Checkpoint { blob: *blob, tar: *tar, bits: *bits, window });
    }
    bytes
}

fn plain(size: i64, span_bytes: i64) -> Vec<u8> {
    let (mut builder, root) = Builder::new();
    let [] = builder.table(root, &[(1, Field::I64(span_bytes)), (2, Field::I64(size))]);
    builder.finish()
}

impl Default for Parts {
    fn default() -> Self {
        Parts {
            version: "0.9",
            compressed: BLOB_BYTES as i64,
            uncompressed: TAR_BYTES as i64,
            algorithm: None,
            last_span: 1,
            digests: vec![digest(0), digest(1)],
            checkpoints: gzip(&[(18, 0, 0), (600, 60_000, 3)]),
            files: vec![file(b"./a", 512, 1000), file(b"b", 2048, 70_000)],
        }
    }
}

impl Parts {
    fn plain() -> Self {
        Parts {
            algorithm: Some(ALGORITHM_NONE),
            checkpoints: plain(BLOB_BYTES as i64, 600),
            uncompressed: 900,
            files: vec![file(b"a", 512, 300)],
            ..Parts::default()
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let (mut builder, root) = Builder::new();
        let fields = [
            (slot::ztoc::VERSION, Field::Reference),
            (slot::ztoc::COMPRESSED_SIZE, Field::I64(self.compressed)),
            (slot::ztoc::UNCOMPRESSED_SIZE, Field::I64(self.uncompressed)),
            (slot::ztoc::TOC, Field::Reference),
            (slot::ztoc::COMPRESSION, Field::Reference),
        ];
        let [version, toc, compression] = builder.table(root, &fields);
        builder.string(version, self.version.as_bytes());
        let [files] = builder.table(toc, &[(slot::toc::FILES, Field::Reference)]);
        for (open, file) in builder.references(files, self.files.len()).zip(&self.files) {
            file.write(&mut builder, open);
        }
        let mut fields = vec![
            (slot::compression::LAST_SPAN, Field::I32(self.last_span)),
            (slot::compression::DIGESTS, Field::Reference),
            (slot::compression::CHECKPOINTS, Field::Reference),
        ];
        fields.extend(self.algorithm.map(|a| (slot::compression::ALGORITHM, Field::I8(a))));
        let [digests, checkpoints] = builder.table(compression, &fields);
        for (open, digest) in builder.references(digests, self.digests.len()).zip(&self.digests) {
            builder.string(open, digest.as_bytes());
        }
        builder.string(checkpoints, &self.checkpoints);
        builder.finish()
    }
}

impl File {
    fn write(&self, builder: &mut Builder, open: super::flatbuffer::Open) {
        let fields = [
            (slot::file::NAME, Field::Reference),
            (slot::file::TYPE, Field::Reference),
            (slot::file::OFFSET, Field::I64(self.offset)),
            (slot::file::SIZE, Field::I64(self.size)),
            (slot::file::LINK, Field::Reference),
            (slot::file::MODE, Field::I64(0o100_4755)),
            (slot::file::UID, Field::U32(u32::MAX)),
            (slot::file::GID, Field::U32(7)),
            (slot::file::MTIME, Field::Reference),
            (slot::file::DEVICE_MAJOR, Field::I64(self.device.0)),
            (slot::file::DEVICE_MINOR, Field::I64(self.device.1)),
            (slot::file::PAX, Field::Reference),
        ];
        let [name, kind, link, mtime, pax] = builder.table(open, &fields);
        builder.string(name, self.name);
        builder.string(kind, self.kind.as_bytes());
        builder.string(link, self.link);
        builder.string(mtime, self.mtime.as_bytes());
        for (open, (key, value)) in builder.references(pax, self.pax.len()).zip(&self.pax) {
            let [k, v] = builder.table(open, &[(0, Field::Reference), (1, Field::Reference)]);
            builder.string(k, key);
            builder.string(v, value);
        }
    }
}

fn parse(parts: &Parts) -> Result<LayerIndex, Error> {
    parse_ztoc(&parts.bytes(), BLOB_BYTES, Digest::sha256_of(b"tar"))
}

fn parse_file(change: impl FnOnce(&mut File)) -> Result<Entry, Error> {
    let mut file = file(b"a", 512, 1000);
    change(&mut file);
    let index = parse(&Parts { files: vec![file], ..Parts::default() })?;
    Ok(index.entries[0].clone())
}

/// What is refused, and the part of the message that says why.
fn assert_refused(result: Result<impl std::fmt::Debug, Error>, why: &str) {
    match result {
        Err(Error::ForeignIndex { format: "SOCI", reason }) if reason.contains(why) => {}
        other => panic!("{other:?}, expected {why:?}"),
    }
}

#[test]
fn spans_are_where_the_checkpoints_are_and_the_first_needs_no_window() {
    let index = parse(&Parts::default()).unwrap();
    let [first, second] = index.spans.as_slice() else { panic!("{:?}", index.spans) };
    assert_eq!((first.blob, first.tar), (ByteRange::new(18, 600), ByteRange::new(0, 60_000)));
    assert_eq!(
        (second.blob, second.tar),
        (ByteRange::new(599, 1000), ByteRange::new(60_000, 100_000))
    );
    let Codec::Deflate(point) = second.codec else { panic!("{:?}", second.codec) };
    assert_eq!(point.bits, 3);
    assert_eq!(index.window(first), Ok(vec![]));
    assert_eq!(index.window(second), Ok(vec![7; WINDOW_BYTES]));
    let Digest::Sha256(sha256) = Digest::sha256_of(&[1]) else { panic!() };
    assert_eq!(second.proof, Proof::Stored(index::Segments::One(sha256)));
}

#[test]
fn what_soci_does_not_count_is_in_no_span() {
    let uncompressed = 60_000;
    let files = vec![file(b"a", 512, 1000)];
    let index = parse(&Parts { uncompressed, files, ..Parts::default() }).unwrap();
    assert_eq!((index.spans.len(), index.tar_size), (1, 60_000));
    assert_eq!(index.spans[0].blob, ByteRange::new(18, 600));
    let index = parse(&Parts { uncompressed: 0, files: vec![], ..Parts::default() }).unwrap();
    assert_eq!((index.spans.len(), index.tar_size), (0, 0));
}

#[test]
fn a_plain_tar_is_as_large_as_its_blob() {
    let index = parse(&Parts::plain()).unwrap();
    assert_eq!(index.tar_size, BLOB_BYTES);
    let ranges: Vec<_> = index.spans.iter().map(|span| (span.blob, span.codec)).collect();
    let stored = |start, end| (ByteRange::new(start, end), Codec::Stored);
    assert_eq!(ranges, [stored(0, 600), stored(600, 1000)]);
}

#[test]
fn attributes_are_those_of_a_pass() {
    let entry = parse_file(|file| {
        file.name = b"/x/./y";
        file.pax = vec![
            (b"SCHILY.xattr.user.b", b"\0\xff"),
            (b"SCHILY.xattr.user.a", b""),
            (b"LIBARCHIVE.xattr.user.c", b"eA"),
            (b"comment", b"x"),
        ];
    });
    let entry = entry.unwrap();
    assert_eq!((&entry.path[..], entry.offset), (&b"x/y"[..], 0));
    assert_eq!((entry.attributes.mode, entry.attributes.uid), (0o4755, u32::MAX));
    let xattrs = [(&b"user.a"[..], &b""[..]), (b"user.b", b"\0\xff")];
    assert_eq!(entry.attributes.xattrs, xattrs.map(|(n, v)| (n.to_vec(), v.to_vec())));
    assert_eq!(entry.attributes.mtime.nanos, 500_000_000);
    // PAX says the same more exactly, and where RFC 3339 has no words.
    let entry = parse_file(|file| {
        file.mtime = "";
        file.pax = vec![(b"mtime", b"-1.5"), (b"uid", b"5")];
    });
    let attributes = entry.unwrap().attributes;
    assert_eq!((attributes.mtime.seconds, attributes.mtime.nanos), (-2, 500_000_000));
    assert_eq!((attributes.uid, attributes.gid), (5, 7));
    let directory = parse_file(|file| file.name = b"old/").unwrap();
    assert_eq!(directory.kind, EntryKind::Directory);
    let device = parse_file(|file| (file.kind, file.device) = ("char", (1, 3))).unwrap();
    assert_eq!(device.kind, EntryKind::CharDevice { major: 1, minor: 3 });
}

#[test]
fn files_that_cannot_be_are_refused() {
    type Change = fn(&mut File);
    let changes: [(Change, &str); 20] = [
        (|file| file.name = b"../a", "leaves the root"),
        (|file| file.name = b"a\0b", "NUL"),
        (|file| file.name = b".", "root is not a directory"),
        (|file| (file.kind, file.link) = ("hardlink", b"../../b"), "leaves the root"),
        (|file| file.kind = "symlink", "symbolic link target"),
        (|file| file.kind = "socket", "unknown type"),
        (|file| file.kind = "", "unknown type"),
        (|file| file.offset = 511, "content at 511"),
        (|file| file.offset = -1, "at -1"),
        (|file| file.offset = i64::MAX, "a chunk of tar"),
        (|file| file.size = -1, "-1 bytes"),
        (|file| file.size = i64::MAX, "a chunk of tar"),
        (|file| file.size = TAR_BYTES as i64 - 511, "a chunk of tar"),
        (|file| file.mtime = "", "modified at"),
        (|file| file.mtime = "yesterday", "modified at"),
        (|file| (file.kind, file.device) = ("block", (8, 1 << 32)), "32 bits"),
        (|file| (file.kind, file.device) = ("char", (-1, 0)), "32 bits"),
        (|file| file.pax = vec![(b"uid", b"4294967296")], "uid 4294967296"),
        (|file| file.pax = vec![(b"SCHILY.xattr.", b"")], "attribute name"),
        (|file| file.pax = vec![(b"GNU.sparse.major", b"1")], "sparse"),
    ];
    for (change, why) in changes {
        assert_refused(parse_file(change), why);
    }
}

#[test]
fn files_are_in_the_order_of_the_tar_and_do_not_overlap() {
    let with = |files: &[File]| parse(&Parts { files: files.to_vec(), ..Parts::default() });
    let (a, b) = (file(b"a", 512, 1), file(b"b", 1536, 1));
    assert!(with(&[a.clone(), b.clone()]).is_ok());
    assert_refused(with(&[b.clone(), a.clone()]), "the one before ends at 2048");
    assert_refused(with(&[a.clone(), a.clone()]), "the one before ends at 1024");
    assert_refused(with(&[File { size: 513, ..a }, b]), "the one before ends at 1536");
}

#[test]
fn spans_that_cannot_be_are_refused() {
    type Change = fn(&mut Parts);
    let changes: [(Change, &str); 17] = [
        (|parts| parts.version = "1.0", "version"),
        (|parts| parts.compressed += 1, "of a layer of 1001 bytes, not 1000"),
        (|parts| parts.compressed = -1, "of a layer of -1 bytes"),
        (|parts| parts.uncompressed = -1, "impossible size"),
        (|parts| parts.uncompressed = i64::MAX, "impossible size"),
        (|parts| parts.uncompressed = 1 << 24, "cannot decode to"),
        (|parts| parts.algorithm = Some(3), "compression 3"),
        (|parts| parts.last_span = 2, "2 digests for 3 spans"),
        (|parts| parts.last_span = i32::MAX, "2 digests for 2147483648 spans"),
        (|parts| parts.digests[1] = "sha256:beef".into(), "digest"),
        (|parts| parts.digests[1] = format!("sha512:{}", "0".repeat(128)), "expected sha256"),
        (|parts| parts.checkpoints.truncate(40_000), "2 checkpoints in"),
        (|parts| parts.checkpoints = gzip(&[(18, 0, 0)]), "2 digests for 1 checkpoints"),
        (|parts| parts.checkpoints = gzip(&[(18, 0, 0), (18, 0, 0)]), "checkpoint 1 cannot be"),
        (|parts| parts.checkpoints = gzip(&[(18, 0, 0), (1000, 60_000, 0)]), "1000 bytes"),
        (|parts| parts.checkpoints = gzip(&[(18, 0, 0), (1200, 60_000, 0)]), "1000 bytes"),
        (|parts| parts.checkpoints = gzip(&[(18, 0, 0), (600, 60_000, 8)]), "8 bits"),
    ];
    for (change, why) in changes {
        let mut parts = Parts::default();
        change(&mut parts);
        assert_refused(parse(&parts), why);
    }
}

#[test]
fn plain_tars_that_cannot_be_are_refused() {
    type Change = fn(&mut Parts);
    let changes: [(Change, &str); 6] = [
        (|parts| parts.checkpoints = plain(1001, 600), "not 1000"),
        (|parts| parts.checkpoints = plain(1000, 0), "in spans of 0"),
        (|parts| parts.checkpoints = plain(1000, -600), "in spans of -600"),
        (|parts| parts.checkpoints = plain(1000, 400), "2 digests for 1000 bytes"),
        (|parts| parts.uncompressed = 1001, "1001 bytes"),
        (|parts| parts.checkpoints = vec![], "lie outside"),
    ];
    for (change, why) in changes {
        let mut parts = Parts::plain();
        change(&mut parts);
        assert_refused(parse(&parts), why);
    }
}

#[test]
fn a_damaged_ztoc_is_refused_or_still_an_index() {
    let files = vec![File { pax: vec![(b"SCHILY.xattr.user.a", b"b")], ..file(b"a", 512, 300) }];
    let bytes = Parts { files, ..Parts::plain() }.bytes();
    let parse = |bytes: &[u8]| parse_ztoc(bytes, BLOB_BYTES, Digest::sha256_of(b"tar"));
    let whole = parse(&bytes).unwrap();
    for length in 0..bytes.len() - 1 {
        assert!(parse(&bytes[..length]) != Ok(whole.clone()), "{length} bytes");
    }
    for at in 0..bytes.len() {
        for value in [0, 1, 4, 0x7f, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            if let Ok(index) = parse(&damaged) {
                assert_eq!(crate::layout::index::check(&index), Ok(()));
            }
        }
    }
}

#[test]
fn records_that_are_one_and_the_same_do_not_cost_without_end() {
    // 40,000 records of 64 KiB are in a zTOC of 230 kB.
    let (mut builder, root) = Builder::new();
    let [pax] = builder.table(root, &[(slot::file::PAX, Field::Reference)]);
    let opens: Vec<_> = builder.references(pax, 40_000).collect();
    let [key, value] = builder.table(opens[0], &[(0, Field::Reference), (1, Field::Reference)]);
    builder.string(key, b"comment");
    builder.string(value, &[b'v'; 64 << 10]);
    opens[1..].iter().for_each(|open| builder.share(*open, opens[0]));
    let bytes = builder.finish();
    let file = super::flatbuffer::Table::root(&bytes).unwrap();
    let refused = super::members::read_records(&file, &mut 0).unwrap_err();
    assert!(refused.contains("records take more than"), "{refused}");
}
