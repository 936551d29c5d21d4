//! What is read from tables of contents written by hand, and what is refused with which reason.
#![allow(clippy::unwrap_used)]

mod stored;

use std::collections::BTreeMap;
use std::io::Write as _;

use super::*;
use crate::layout::entry::{Chunk, Time};
use crate::layout::index::{Proof, SPAN_DECODED_BYTES_MAX, Segments};

/// Where contents end and the table's frame begins in these blobs.
const PAYLOAD_END: u64 = 10_000;

const SKIPPABLE: u64 = 8;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn header_of(name: &str, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).unwrap();
    header.set_size(size);
    header.set_mode(mode);
    header.set_cksum();
    header
}

fn tar_of(name: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header_of(name, mode, content.len() as u64), content).unwrap();
    builder.into_inner().unwrap()
}

fn footer(offset: u64) -> Vec<u8> {
    footer_with(format!("SG\x16\0{offset:016x}STARGZ").as_bytes())
}

fn footer_with(extra: &[u8]) -> Vec<u8> {
    let header = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, extra.len() as u8, 0];
    [&header, extra, &[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]].concat()
}

fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

const STARGZ: &str = "containerd.io/snapshot/stargz/toc.digest";
const POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";

fn estargz_of(stored: &[u8], json: &[u8]) -> Result<LayerIndex, Error> {
    let digest = Digest::sha256_of(json).to_string();
    let tail = [stored, &footer(PAYLOAD_END)].concat();
    let size = PAYLOAD_END + tail.len() as u64;
    let location = locate_in_tail(&annotations(&[(STARGZ, &digest)]), size, &tail)?.unwrap();
    parse(&location, stored, Digest::sha256_of(b"diff"))
}

fn estargz(json: &str) -> Result<LayerIndex, Error> {
    estargz_of(&gzip(&tar_of("stargz.index.json", 0, json.as_bytes())), json.as_bytes())
}

fn chunked_of(stored: &[u8], json_bytes: usize) -> Result<LayerIndex, Error> {
    let digest = Digest::sha256_of(stored).to_string();
    let position = format!("{}:{}:{json_bytes}:1", PAYLOAD_END + SKIPPABLE, stored.len());
    let size = PAYLOAD_END + SKIPPABLE + stored.len() as u64;
    let annotations = annotations(&[(POSITION, &position), (CHECKSUM, &digest)]);
    let Place::At(location) = locate(&annotations, size)? else { panic!("it is announced") };
    parse(&location, stored, Digest::sha256_of(b"diff"))
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

fn chunked(json: &str) -> Result<LayerIndex, Error> {
    chunked_of(&zstd_of(json.as_bytes()), json.len())
}

/// A document of these elements. `DIGEST` stands for some digest.
fn document(elements: &str) -> String {
    let digest = Digest::Sha256([7; 32]).to_string();
    format!(r#"{{"version":1,"entries":[{elements}]}}"#).replace("DIGEST", &digest)
}

/// Both formats read the elements alike.
#[track_caller]
fn read_both(elements: &str) -> LayerIndex {
    let json = document(elements);
    let (stargz, chunked) = (estargz(&json).unwrap(), chunked(&json).unwrap());
    assert_eq!(stargz.entries, chunked.entries);
    assert_eq!(stargz.tar_size, chunked.tar_size);
    stargz
}

/// Both formats refuse the elements, with this in their reasons.
#[track_caller]
fn refused_by_both(elements: &str, reason: &str) {
    document_refused_by_both(&document(elements), reason);
}

#[track_caller]
fn document_refused_by_both(json: &str, reason: &str) {
    let errors = [("eStargz", estargz(json)), ("zstd:chunked", chunked(json))];
    for (name, result) in errors {
        let error = result.expect_err(json);
        assert!(matches!(error, Error::ForeignIndex { format, .. } if format == name), "{error}");
        let text = error.to_string();
        assert!(text.contains(reason), "{json:.200}: expected {reason:?}, got {text}");
    }
}

fn spans(index: &LayerIndex) -> Vec<(u64, u64, u64, u64)> {
    let of = |s: &Span| (s.blob.start, s.blob.end, s.skip, s.tar.len());
    index.spans.iter().map(of).collect()
}

const FILE: &str = r#""type":"reg","size":10,"digest":"DIGEST""#;

#[test]
fn members_become_entries_with_all_attributes() {
    let index = read_both(
        r#"{"name":"./d//","type":"dir","mode":17389,"uid":1,"gid":4294967295,"modtime":"2001-09-09T01:46:40.5Z"},
           {"name":"d/s","type":"symlink","linkName":"../../x","xattrs":{"user.b":"AP8=","user.a":""}},
           {"name":"d/h","type":"hardlink","linkName":"/d/f","NumLink":0},
           {"name":"c","type":"char","devMajor":1,"devMinor":4294967295},
           {"name":"b","type":"block","devMajor":8},
           {"name":"p","type":"fifo","userName":"x","unknown":{"a":[1.5,null]}},
           {"name":"d/.wh.x","type":"reg"}"#,
    );
    let kinds = [
        EntryKind::Directory,
        EntryKind::Symlink { target: b"../../x".to_vec() },
        EntryKind::Hardlink { target: b"d/f".to_vec() },
        EntryKind::CharDevice { major: 1, minor: u32::MAX },
        EntryKind::BlockDevice { major: 8, minor: 0 },
        EntryKind::Fifo,
        EntryKind::Regular { size: 0, chunks: vec![] },
    ];
    let paths: [&[u8]; 7] = [b"d", b"d/s", b"d/h", b"c", b"b", b"p", b"d/.wh.x"];
    for ((entry, kind), path) in index.entries.iter().zip(kinds).zip(paths) {
        assert_eq!((&entry.kind, entry.path.as_slice()), (&kind, path));
    }
    let mtime = Time { seconds: 1_000_000_000, nanos: 500_000_000 };
    let expected = Attributes { mode: 0o1755, uid: 1, gid: u32::MAX, mtime, xattrs: vec![] };
    assert_eq!(index.entries[0].attributes, expected);
    let xattrs = [(b"user.a".to_vec(), vec![]), (b"user.b".to_vec(), vec![0, 0xff])];
    assert_eq!(index.entries[1].attributes.xattrs, xattrs);
    assert_eq!((index.tar_size, index.spans.len()), (0, 0));
}

#[test]
fn chunks_become_spans_in_the_order_of_the_blob() {
    let index = read_both(
        r#"{"name":"late","type":"reg","size":25,"offset":500,"chunkSize":10,"chunkDigest":"DIGEST"},
           {"type":"chunk","offset":600,"chunkOffset":10,"chunkSize":10,"chunkDigest":"DIGEST"},
           {"name":"late","type":"chunk","offset":700,"chunkOffset":20,"chunkDigest":"DIGEST"},
           {"name":"a","type":"reg","size":10,"offset":100,"digest":"DIGEST"},
           {"name":"b","type":"reg","size":10,"offset":100,"innerOffset":600,"chunkDigest":"DIGEST"},
           {"name":"c","type":"reg","size":10,"offset":200,"endOffset":450,"digest":"DIGEST","chunkDigest":"DIGEST"}"#,
    );
    let expected = [
        (100, 200, 0, 10),
        (100, 200, 600, 10),
        (200, 450, 0, 10),
        (500, 600, 0, 10),
        (600, 700, 0, 10),
        (700, PAYLOAD_END, 0, 5),
    ];
    assert_eq!(spans(&index), expected);
    assert!(index.spans.iter().all(|span| span.proof == Proof::Decoded([7; 32])));
    assert!(index.spans.iter().all(|span| span.codec == Codec::Gzip));
    let chunk = Chunk { file_offset: 0, tar: ByteRange::new(30, 55) };
    assert_eq!(index.entries[0].kind, EntryKind::Regular { size: 25, chunks: vec![chunk] });
}

#[test]
fn zeros_take_no_span_but_end_the_one_before_them() {
    let index = read_both(
        r#"{"name":"f","type":"reg","size":1099511627000,"offset":100,"endOffset":900,"chunkSize":10,"chunkDigest":"DIGEST"},
           {"type":"chunk","offset":200,"chunkOffset":10,"chunkSize":1099511626980,"chunkType":"zeros"},
           {"type":"chunk","offset":300,"chunkOffset":1099511626990,"chunkSize":10,"chunkDigest":"DIGEST"}"#,
    );
    assert_eq!(spans(&index), [(100, 200, 0, 10), (300, 900, 0, 10)]);
    assert_eq!(index.tar_size, 20);
}

#[test]
fn what_a_tar_may_have_twice_a_table_may_too() {
    let index = read_both(
        r#"{"name":"./","type":"dir","mode":448},{"name":"/","type":"dir","mode":493},
           {"name":"f","type":"reg","size":1,"offset":1,"digest":"DIGEST"},
           {"name":"f","type":"reg","size":2,"offset":2,"digest":"DIGEST"},
           {"name":"h","type":"hardlink","linkName":"h"},
           {"name":"i","type":"hardlink","linkName":"absent"}"#,
    );
    let paths: Vec<_> = index.entries.iter().map(|e| e.path.as_slice()).collect();
    assert_eq!(paths, [&b""[..], b"", b"f", b"f", b"h", b"i"]);
}

#[test]
fn chunks_that_do_not_fit_are_refused() {
    for (elements, reason) in [
        // Two files of the same bytes, of the same stream, and overlapping in it.
        (
            format!(r#"{{"name":"a",{FILE},"offset":9}},{{"name":"b",{FILE},"offset":9}}"#),
            "share bytes at 9",
        ),
        (
            format!(
                r#"{{"name":"a",{FILE},"offset":9}},{{"name":"b",{FILE},"offset":9,"innerOffset":9}}"#
            ),
            "share bytes at 9",
        ),
        // A frame that reaches into the next one, behind the contents, or nowhere.
        (
            format!(
                r#"{{"name":"a",{FILE},"offset":9,"endOffset":21}},{{"name":"b",{FILE},"offset":20}}"#
            ),
            "at 9 to 21",
        ),
        (format!(r#"{{"name":"a",{FILE},"offset":9,"endOffset":10001}}"#), "at 9 to 10001"),
        (format!(r#"{{"name":"a",{FILE},"offset":9,"endOffset":9}}"#), "at 9 to 9"),
        (format!(r#"{{"name":"a",{FILE},"offset":10000}}"#), "at 10000 to"),
        (
            format!(
                r#"{{"name":"a",{FILE},"offset":9}},{{"name":"b",{FILE},"offset":18446744073709551615}}"#
            ),
            "at 9 to",
        ),
        (format!(r#"{{"name":"a",{FILE},"offset":0}}"#), "at 0 to"),
        (format!(r#"{{"name":"a",{FILE}}}"#), "at 0 to"),
    ] {
        refused_by_both(&elements, reason);
    }
}

#[test]
fn chunks_that_do_not_sum_up_are_refused() {
    for (elements, reason) in [
        (format!(r#"{{"name":"a",{FILE},"offset":9,"chunkSize":9}}"#), "end at 9 of 10"),
        (format!(r#"{{"name":"a",{FILE},"offset":9,"chunkSize":11}}"#), "a chunk of 11 bytes"),
        (format!(r#"{{"name":"a",{FILE},"offset":9,"chunkOffset":1}}"#), "at 1, of 10 bytes at 0"),
        (
            format!(r#"{{"name":"a",{FILE},"offset":9}},{{"type":"chunk","offset":20}}"#),
            "of 0 bytes at 10",
        ),
        (
            format!(
                r#"{{"name":"a",{FILE},"offset":9,"chunkSize":5,"chunkDigest":"DIGEST"}},{{"type":"chunk","offset":20,"chunkOffset":4,"chunkDigest":"DIGEST"}}"#
            ),
            "at 4, of 5 bytes at 5",
        ),
        (
            format!(
                r#"{{"name":"a",{FILE},"offset":9,"chunkSize":5,"chunkDigest":"DIGEST"}},{{"type":"chunk","offset":20,"chunkOffset":6,"chunkDigest":"DIGEST"}}"#
            ),
            "at 6, of 5 bytes at 5",
        ),
        (
            format!(
                r#"{{"name":"a",{FILE},"offset":9,"chunkSize":5,"chunkDigest":"DIGEST"}},{{"type":"chunk","offset":20,"chunkOffset":5,"chunkSize":18446744073709551615}}"#
            ),
            "of 5 bytes at 5",
        ),
        // Chunks of nothing, of another, after all.
        (r#"{"type":"chunk","offset":9}"#.into(), "a chunk without its file"),
        (
            r#"{"name":"e","type":"reg"},{"type":"chunk","offset":9}"#.into(),
            "a chunk without its file",
        ),
        (
            format!(
                r#"{{"name":"a",{FILE},"offset":9,"chunkSize":5}},{{"name":"b","type":"chunk","chunkOffset":5,"offset":20}}"#
            ),
            "a chunk of \"b\" stands in it",
        ),
        (
            format!(
                r#"{{"name":"a",{FILE},"offset":9,"chunkSize":5}},{{"name":"d","type":"dir"}},{{"name":"a","type":"chunk","chunkOffset":5,"offset":20}}"#
            ),
            "end at 5 of 10",
        ),
        (format!(r#"{{"name":"a",{FILE},"offset":9,"chunkType":"ones"}}"#), "a chunk of type"),
    ] {
        refused_by_both(&elements, reason);
    }
}

#[test]
fn chunks_that_cost_too_much_are_refused() {
    let much = SPAN_DECODED_BYTES_MAX + 1;
    for (elements, reason) in [
        (format!(r#"{{"name":"a","type":"reg","size":{much},"offset":9,"digest":"DIGEST"}}"#), "not decoded for one read"),
        (format!(r#"{{"name":"a",{FILE},"offset":9,"innerOffset":{much}}}"#), "not decoded for one read"),
        (r#"{"name":"a","type":"reg","size":1099511627777,"chunkType":"zeros"}"#.into(), "contents of more than"),
        (r#"{"name":"a","type":"reg","size":1099511627776,"chunkType":"zeros"},{"name":"b","type":"reg","size":1,"chunkType":"zeros"}"#.into(), "contents of more than"),
    ] {
        refused_by_both(&elements, reason);
    }
}

#[test]
fn chunks_without_a_proof_are_refused() {
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"name":"a",{FILE},"offset":9,"chunkSize":5{first}}},{{"type":"chunk","offset":20,"chunkOffset":5{second}}}"#
        )
    };
    let digest = r#","chunkDigest":"DIGEST""#;
    assert_eq!(read_both(&two(digest, digest)).spans.len(), 2);
    let sha512 = format!("sha512:{}", "0".repeat(128));
    for (elements, reason) in [
        (two(digest, ""), "a chunk has no digest"),
        (two("", digest), "a chunk has no digest"),
        (r#"{"name":"a","type":"reg","size":1,"offset":9}"#.into(), "a chunk has no digest"),
        (
            format!(
                r#"{{"name":"a",{FILE},"offset":9,"chunkDigest":"sha256:{}"}}"#,
                "0".repeat(64)
            ),
            "its only chunk differ",
        ),
        (
            r#"{"name":"a","type":"reg","size":1,"offset":9,"digest":"sha256:00"}"#.into(),
            "invalid digest",
        ),
        (
            format!(r#"{{"name":"a","type":"reg","size":1,"offset":9,"chunkDigest":"{sha512}"}}"#),
            "expected sha256",
        ),
    ] {
        refused_by_both(&elements, reason);
    }
}

#[test]
fn members_that_no_tar_could_give_are_refused() {
    let long = "AAAA".repeat(65_536 / 3 + 1);
    for (elements, reason) in [
        (r#"{"name":"../f","type":"dir"}"#, "leaves the root"),
        (r#"{"name":"a/../../f","type":"dir"}"#, "leaves the root"),
        (r#"{"name":"a\u0000b","type":"dir"}"#, "has a NUL"),
        (r#"{"name":".","type":"fifo"}"#, "the root is not a directory"),
        (r#"{"name":"f/","type":"reg"}"#, "ends in a slash"),
        (r#"{"name":"l","type":"hardlink","linkName":"/../f"}"#, "leaves the root"),
        (r#"{"name":"l","type":"symlink"}"#, "invalid symbolic link target"),
        (r#"{"name":"l","type":"symlink","linkName":"a\u0000"}"#, "invalid symbolic link target"),
        (r#"{"name":"l\ufffd","type":"dir"}"#, "not UTF-8"),
        (r#"{"name":"l","type":"symlink","linkName":"\ufffd"}"#, "not UTF-8"),
        (r#"{"name":"d","type":"dir","xattrs":{"user.\ufffd":""}}"#, "not UTF-8"),
        (r#"{"name":"d","type":"dir","xattrs":{"user.a":"*"}}"#, "not in base64"),
        (r#"{"name":"d","type":"dir","xattrs":{"":"AA=="}}"#, "extended attributes"),
        (
            &format!(r#"{{"name":"d","type":"dir","xattrs":{{"user.a":"{long}"}}}}"#),
            "extended attributes",
        ),
        (r#"{"name":"d","type":"dir","modtime":"yesterday"}"#, "modtime"),
        (r#"{"name":"d","type":"socket"}"#, "type \"socket\""),
        (r#"{"name":"d"}"#, "type \"\""),
        (r#"{"name":"./stargz.index.json","type":"reg"}"#, "it lists itself"),
    ] {
        refused_by_both(elements, reason);
    }
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    for field in ["size", "offset", "chunkSize", "chunkOffset", "innerOffset", "endOffset"] {
        for number in ["-1", "1.0", "1e3", "1e400", "18446744073709551616", "\"1\"", "null"] {
            let elements = format!(r#"{{"name":"a","type":"reg","{field}":{number}}}"#);
            refused_by_both(&elements, "at line 1 column");
        }
    }
    for field in ["uid", "gid", "devMajor", "devMinor"] {
        for number in ["-1", "4294967296", "0.5"] {
            let elements = format!(r#"{{"name":"a","type":"char","{field}":{number}}}"#);
            refused_by_both(&elements, "at line 1 column");
        }
    }
}

#[test]
fn documents_that_are_not_whole_are_refused() {
    let nested = format!(r#"{{"version":1,"x":{}"#, "[".repeat(1 << 20));
    for (json, reason) in [
        (" ", "EOF"),
        ("[]", "expected a table of contents"),
        ("{}", "expected entries of version 1"),
        (r#"{"version":1}"#, "expected entries of version 1"),
        (r#"{"version":2,"entries":[]}"#, "got version Some(2)"),
        (r#"{"version":1,"version":1,"entries":[]}"#, "version twice"),
        (r#"{"version":1,"entries":[],"entries":[]}"#, "entries twice"),
        (r#"{"version":1,"entries":[]}{}"#, "trailing characters"),
        (r#"{"version":1,"entries":{}}"#, "expected a list of members"),
        (r#"{"version":1,"entries":[{"name":"a","type":"dir"}"#, "EOF"),
        (r#"{"version":1,"entries":[{"name":"a","name":"b","type":"dir"}]}"#, "duplicate field"),
        (&nested, "EOF"),
    ] {
        document_refused_by_both(json, reason);
    }
}
