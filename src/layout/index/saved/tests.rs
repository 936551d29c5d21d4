use proptest::prelude::*;

use super::super::SPAN_DECODED_BYTES_MAX;
use super::*;
use crate::layout::entry::{Attributes, Chunk, Time};
use crate::layout::index::{Chain, Codec, Point, Proof, SEGMENT_BYTES, Segments};
use crate::layout::range::ByteRange;

const TAR_SIZE: u64 = 100_000;

fn entry(path: &str, kind: EntryKind) -> Entry {
    let attributes = Attributes {
        mode: 0o644,
        uid: 1000,
        gid: u32::MAX,
        mtime: Time { seconds: -2, nanos: 500_000_000 },
        xattrs: vec![(b"user.a".to_vec(), b"\0\n".to_vec()), (b"user.b".to_vec(), vec![])],
    };
    Entry { path: path.into(), offset: 1024, kind, attributes }
}

/// What proves a span of `len` bytes, `head` of which are before a block, if it has so many states.
fn chain(head: u8, len: u64, states: u8) -> Proof {
    let states: Vec<_> = (1..=states).map(|n| [n; 32]).collect();
    Proof::Stored(Segments::Chain(Chain::take(head, len, &mut &[5; 126][..], &states).unwrap()))
}

/// One of each kind.
fn small() -> LayerIndex {
    let chunk = |file_offset, tar| Chunk { file_offset, tar };
    let sparse =
        vec![chunk(0, ByteRange::new(2048, 2050)), chunk(1 << 40, ByteRange::new(2050, 2060))];
    let plain = vec![chunk(0, ByteRange::new(1536, 1546))];
    let proof = Proof::Stored(Segments::One([7; 32]));
    let span = |blob, tar, codec| Span { blob, tar, skip: 0, codec, proof: proof.clone() };
    let point =
        |bits, start, end| Codec::Deflate(Point { bits, window: ByteRange::new(start, end) });
    LayerIndex {
        origin: Origin::Soci,
        artifact: None,
        diff_id: Digest::sha256_of(b"tar"),
        tar_size: TAR_SIZE,
        entries: vec![
            entry("", EntryKind::Directory),
            entry("a/b", EntryKind::Regular { size: 10, chunks: plain }),
            entry("a/\u{fc}", EntryKind::Regular { size: 1 << 41, chunks: sparse }),
            entry("a/empty", EntryKind::Regular { size: 0, chunks: vec![] }),
            entry("c", EntryKind::Symlink { target: b"../x/".to_vec() }),
            entry("a/b/c", EntryKind::Hardlink { target: b"a/b".to_vec() }),
            entry("d", EntryKind::CharDevice { major: u32::MAX, minor: 1 }),
            entry("e", EntryKind::BlockDevice { major: 1, minor: u32::MAX }),
            entry("f", EntryKind::Fifo),
        ],
        spans: vec![
            span(ByteRange::new(0, 500), ByteRange::new(0, 1000), Codec::Gzip),
            span(ByteRange::new(499, 510), ByteRange::new(1000, 2000), point(3, 0, 2)),
            span(ByteRange::new(510, 511), ByteRange::new(2000, 3000), point(0, 2, 2)),
            Span {
                proof: chain(3, 2 * SEGMENT_BYTES + 1, 3),
                ..span(
                    ByteRange::new(510, 511 + 2 * SEGMENT_BYTES),
                    ByteRange::new(3000, TAR_SIZE - 1),
                    point(7, 2, 5),
                )
            },
            Span {
                skip: 99,
                proof: Proof::Decoded([9; 32]),
                ..span(
                    ByteRange::new(800_000, 800_001),
                    ByteRange::new(TAR_SIZE - 1, TAR_SIZE),
                    Codec::Zstd,
                )
            },
        ],
        windows: b"01234".to_vec(),
    }
}

/// The checksum of a damaged index, made right: what a stranger would do.
fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() - CHECKSUM_BYTES);
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

#[test]
fn an_index_is_decoded_as_it_was_encoded() {
    let empty = LayerIndex::plain(Digest::sha256_of(b""), 0, vec![], vec![]);
    let sha512 = LayerIndex { diff_id: Digest::Sha512([9; 64]), ..small() };
    for index in [small(), sha512, empty] {
        let bytes = encode(&index).unwrap();
        assert_eq!(decode(&bytes), Ok(index));
    }
}

#[test]
fn every_truncation_and_every_flip_is_refused() {
    let bytes = encode(&small()).unwrap();
    for size in 0..bytes.len() {
        assert!(matches!(decode(&bytes[..size]), Err(Error::SavedIndex(_))), "{size}");
    }
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            assert!(matches!(decode(&damaged), Err(Error::SavedIndex(_))), "{at}");
        }
    }
    assert!(decode(&[bytes.as_slice(), &[0; 8]].concat()).is_err());
}

#[test]
fn another_version_is_named() {
    let mut bytes = encode(&small()).unwrap();
    bytes[8] = 3;
    let expected = "saved index: written by another version: 3, this is 4";
    assert_eq!(decode(&bytes).map_err(|e| e.to_string()), Err(expected.into()));
}

/// An index whose tables were changed as a stranger would: unpacked, changed, packed again.
fn with_tables(bytes: &[u8], change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let packed = number(PACKED_AT);
    let mut plain = unpack_tables(&bytes[TABLES_AT..TABLES_AT + packed]).unwrap();
    change(&mut plain);
    let repacked = zstd::bulk::compress(&plain, 1).unwrap();
    let mut changed = bytes[..PACKED_AT].to_vec();
    changed.extend_from_slice(&(repacked.len() as u64).to_le_bytes());
    changed.extend_from_slice(&bytes[PACKED_AT + 8..TABLES_AT]);
    changed.extend_from_slice(&repacked);
    changed.extend_from_slice(&bytes[TABLES_AT + packed..]);
    resealed(changed)
}

/// Where the size of the tables stands, and where they begin.
const PACKED_AT: usize = 8 + 4 + 4 + 64 + 8 + 8 + 8 * 8;
const TABLES_AT: usize = PACKED_AT + 16;

#[test]
fn what_a_stranger_sealed_is_valid_or_refused() {
    let bytes = encode(&small()).unwrap();
    let survives = |changed: &[u8], what: &str| {
        if let Ok(index) = decode(changed) {
            assert_eq!(encode(&index).and_then(|bytes| decode(&bytes)), Ok(index), "{what}");
        }
    };
    let tables = std::cell::Cell::new(0);
    with_tables(&bytes, |plain| tables.set(plain.len()));
    for flip in [0x01, 0x40, 0x80, 0xff] {
        for at in 12..bytes.len() - CHECKSUM_BYTES {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            survives(&resealed(changed), &format!("byte {at}"));
        }
        for at in 0..tables.get() {
            let changed = with_tables(&bytes, |plain| plain[at] ^= flip);
            survives(&changed, &format!("byte {at} of the tables"));
        }
    }
    for size in 8..bytes.len() - CHECKSUM_BYTES {
        let cut = resealed([&bytes[..size], &[0; CHECKSUM_BYTES]].concat());
        assert!(decode(&cut).is_err(), "{size}");
    }
    assert!(decode(&with_tables(&bytes, |plain| plain.push(0))).is_err());
    assert!(decode(&with_tables(&bytes, |plain| plain.truncate(100))).is_err());
}

/// Where the records of the spans of [`small`] end in its tables, and their digests begin.
fn digests_at(index: &LayerIndex) -> usize {
    let entries = index.entries.len() * records::ENTRY_BYTES + 2 * records::CHUNK_BYTES;
    let attributes = records::ATTRIBUTES_BYTES + 2 * records::XATTR_BYTES;
    entries + attributes + index.spans.len() * records::SPAN_BYTES
}

#[test]
fn digests_are_those_of_their_span_and_no_more() {
    let index = small();
    let (bytes, digests) = (encode(&index).unwrap(), digests_at(&index));
    let count_of = |span: usize| digests - (index.spans.len() - span) * records::SPAN_BYTES + 60;
    with_tables(&bytes, |plain| {
        assert_eq!(plain[digests..][..32], [7; 32]);
        assert_eq!(plain[count_of(3)..][..4], [3, 0, 0, 0]);
    });
    let told = |change: &dyn Fn(&mut Vec<u8>)| {
        decode(&with_tables(&bytes, change)).map_err(|e| e.to_string()).expect_err("refused")
    };
    let counted = |span, count| told(&|plain| plain[count_of(span)] = count);
    assert!(counted(3, 5).contains("digests outside of their table"), "{}", counted(3, 5));
    assert!(counted(4, 0).contains("a span with 0 digests as proof 1"), "{}", counted(4, 0));
    assert!(counted(3, 2).contains("digests"), "{}", counted(3, 2));
    let edges = digests + 7 * 32;
    // How many of its bytes are before a block, which takes more or fewer edges.
    let head_of = |span: usize| count_of(span) - 1;
    with_tables(&bytes, |plain| {
        assert_eq!((plain[head_of(3)], &plain[edges..][..65]), (3, &[5; 65][..]));
    });
    let wrong = told(&|plain| plain[head_of(3)] = 64);
    assert!(wrong.contains("64 of 131073 bytes before a block"), "{wrong}");
    let wrong = told(&|plain| plain[head_of(3)] = 1);
    assert!(wrong.contains("digests or edges that belong to no span"), "{wrong}");
    let wrong = told(&|plain| plain[head_of(0)] = 1);
    assert!(wrong.contains("a span with more than belongs to it"), "{wrong}");
}

type Break = fn(&mut LayerIndex);

/// Rules, broken one at a time; and the reason that is told.
const BREAKS: [(Break, &str); 20] = [
    (|index| index.tar_size += 1, "its spans end at 100000, the tar at 100001"),
    (|index| index.spans[1].tar.start -= 1, "cannot follow blob 0 and tar 1000"),
    (|index| index.spans[2].blob.start = 498, "cannot follow blob 499 and tar 2000"),
    (|index| index.spans[2].blob.end = 510, "cannot follow blob 499 and tar 2000"),
    (|index| index.spans[0].codec = Codec::Stored, ": stored, and tar "),
    (|index| index.spans[4].skip = SPAN_DECODED_BYTES_MAX + 1, ": it passes over 8388609 bytes"),
    (|index| index.windows.push(0), "windows of 5 bytes, not 6"),
    (|index| index.spans[3].blob.end -= 1, ": other segments than it has"),
    (
        |index| index.spans[3].proof = chain(3, 2 * SEGMENT_BYTES + 1, 2),
        ": other segments than it has",
    ),
    (|index| index.spans[0].proof = chain(0, 500, 0), ": other segments than it has"),
    (|index| index.spans[3].codec = index.spans[2].codec, "windows of 2 bytes, not 5"),
    (
        |index| {
            index.spans[1].codec = Codec::Deflate(Point { bits: 8, window: ByteRange::new(0, 2) });
        },
        ": 8 bits, and a window at ",
    ),
    (|index| index.entries[1].path = b"a/../b".to_vec(), "a/../b"),
    (|index| index.entries[4].path = b"".to_vec(), "the root is not a directory"),
    (|index| index.entries[1].attributes.mode = 0o10000, "mode or nanoseconds out of range"),
    (
        |index| index.entries[1].attributes.mtime.nanos = 1_000_000_000,
        "mode or nanoseconds out of range",
    ),
    (
        |index| index.entries[1].attributes.xattrs.reverse(),
        "invalid or unsorted extended attributes",
    ),
    (
        |index| index.entries[4].kind = EntryKind::Symlink { target: vec![] },
        "invalid symbolic link target",
    ),
    (
        |index| index.entries[5].kind = EntryKind::Hardlink { target: b"/a".to_vec() },
        "the path is not clean",
    ),
    (
        |index| {
            let tar = ByteRange::new(TAR_SIZE - 1, TAR_SIZE + 1);
            let chunks = vec![Chunk { file_offset: 0, tar }];
            index.entries[1].kind = EntryKind::Regular { size: 10, chunks };
        },
        "at 0 of 10 bytes",
    ),
];

#[test]
fn an_index_that_breaks_a_rule_is_not_saved_and_the_rule_is_told() {
    for (n, (break_rule, reason)) in BREAKS.iter().enumerate() {
        let mut index = small();
        break_rule(&mut index);
        let Err(Error::SavedIndex(told)) = encode(&index) else { panic!("{n}: {reason}") };
        assert!(told.contains(reason), "{n}: expected {reason:?}, got {told:?}");
    }
}

#[test]
fn names_and_attributes_that_are_shared_are_saved_once() {
    let file = |n: u64| {
        let kind = EntryKind::Regular { size: 0, chunks: vec![] };
        Entry { offset: n * 512, ..entry(&format!("usr/share/doc/p{}/copyright", n / 4), kind) }
    };
    let index = LayerIndex { entries: (0..4000).map(file).collect(), ..small() };
    let bytes_per_entry = encode(&index).unwrap().len() / 4000;
    assert!(bytes_per_entry <= 6, "{bytes_per_entry}");
}

fn any_kind() -> impl Strategy<Value = EntryKind> {
    let bytes = || prop::collection::vec(1u8..=255, 1..20);
    prop_oneof![
        Just(EntryKind::Directory),
        Just(EntryKind::Fifo),
        bytes().prop_map(|target| EntryKind::Symlink { target }),
        "[a-z]{1,9}(/[a-z]{1,9}){0,3}"
            .prop_map(|target| EntryKind::Hardlink { target: target.into_bytes() }),
        any::<(u32, u32)>().prop_map(|(major, minor)| EntryKind::CharDevice { major, minor }),
        any::<(u32, u32)>().prop_map(|(major, minor)| EntryKind::BlockDevice { major, minor }),
        (prop::collection::vec((0u64..1000, 1u64..1000), 0..4), any::<u32>()).prop_map(
            |(pieces, more)| {
                let (mut at, mut chunks) = (0, Vec::new());
                for (gap, len) in pieces {
                    let tar = ByteRange::at(1024 + at, len);
                    chunks.push(Chunk { file_offset: at + gap, tar });
                    at += gap + len;
                }
                EntryKind::Regular { size: at + u64::from(more), chunks }
            }
        ),
    ]
}

prop_compose! {
    fn any_entry()(
        path in "[a-z\u{fc} ]{1,9}(/[a-z]{1,9}){0,3}",
        offset in any::<u64>(),
        kind in any_kind(),
        mode in 0u32..=0o7777,
        uid in any::<u32>(),
        seconds in any::<i64>(),
        nanos in 0u32..1_000_000_000,
        xattrs in prop::collection::btree_map(
            prop::collection::vec(1u8..=255, 1..9),
            prop::collection::vec(any::<u8>(), 0..30),
            0..3,
        ),
    ) -> Entry {
        let mtime = Time { seconds, nanos };
        let xattrs = xattrs.into_iter().collect();
        let attributes = Attributes { mode, uid, gid: uid / 2, mtime, xattrs };
        Entry { path: path.into_bytes(), offset, kind, attributes }
    }
}

proptest! {
    #[test]
    fn any_index_survives(entries in prop::collection::vec(any_entry(), 0..20)) {
        let index = LayerIndex { entries, ..small() };
        let bytes = encode(&index).unwrap();
        prop_assert_eq!(decode(&bytes), Ok(index));
    }
}
