//! Annotations and footers, right and wrong.
#![allow(clippy::unwrap_used)]

use super::*;

const STARGZ: &str = "containerd.io/snapshot/stargz/toc.digest";

fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn digest(byte: u8) -> String {
    Digest::Sha256([byte; 32]).to_string()
}

fn gzip_footer_with(extra: &[u8]) -> Vec<u8> {
    let header = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, extra.len() as u8, 0];
    [&header, extra, &[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]].concat()
}

fn zstd_footer_with(numbers: &[u64], magic: &[u8]) -> Vec<u8> {
    let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    let bytes = (numbers.len() + magic.len()) as u32;
    [&[0x50, 0x2a, 0x4d, 0x18], &bytes.to_le_bytes()[..], &numbers, magic].concat()
}

fn in_tail(tail: &[u8], blob_size: u64) -> Result<Option<Location>, Error> {
    locate_in_tail(&BTreeMap::new(), blob_size, tail)
}

#[test]
fn nothing_is_sought_where_nothing_is_announced() {
    let other = annotations(&[("org.opencontainers.image.title", "x")]);
    assert_eq!(locate(&other, 1000), Ok(Place::Nowhere));
    assert_eq!(locate(&BTreeMap::new(), 0), Ok(Place::Nowhere));
    for tail in [&b""[..], &[0; 39], &[0; 51], &[0x1f; 200]] {
        assert_eq!(in_tail(tail, tail.len() as u64), Ok(None));
    }
}

#[test]
fn an_announced_footer_is_at_the_end() {
    let named = annotations(&[(STARGZ, &digest(1))]);
    assert_eq!(locate(&named, 1000), Ok(Place::Footer(ByteRange::new(0, 1000))));
    let end = 5 * TAIL_BYTES;
    assert_eq!(locate(&named, end), Ok(Place::Footer(ByteRange::new(end - TAIL_BYTES, end))));
    let of = |size, bytes| Ok(Place::Footer(ByteRange::new(size - bytes, size)));
    assert_eq!(locate(&named, 60_000_000), of(60_000_000, 600_000));
    assert_eq!(locate(&named, 10 << 30), of(10 << 30, 1 << 20));
}

#[test]
fn a_footer_of_estargz_leads_to_its_table() {
    let footer = gzip_footer_with(b"SG\x16\x0000000000000003e8STARGZ");
    let tail = [&[9; 20], footer.as_slice()].concat();
    let named = annotations(&[(STARGZ, &digest(1))]);
    let location = locate_in_tail(&named, 2000, &tail).unwrap().unwrap();
    assert_eq!((location.origin, location.blob), (Origin::EStargz, ByteRange::new(1000, 1949)));
    assert_eq!((location.payload_end, location.codec()), (1000, Codec::Gzip));
    assert_eq!(location.digest(), Some(Digest::Sha256([1; 32])));
    assert_eq!(in_tail(&tail, 2000).unwrap().unwrap().digest(), None);
}

#[test]
fn footers_of_tables_that_cannot_be_used_are_refused() {
    let huge = 100 << 20;
    for (extra, blob_size, reason) in [
        (&b"SG\x16\x0000000000000007d0STARGZ"[..], 2000, "not inside the blob"),
        (b"SG\x16\x00000000000000079dSTARGZ", 2000, "not inside the blob"),
        (b"SG\x16\x00ffffffffffffffffSTARGZ", 2000, "not inside the blob"),
        (b"SG\x16\x00+00000000000003eSTARGZ", 2000, "no position"),
        (b"SG\x16\x00-00000000000003eSTARGZ", 2000, "no position"),
        (b"SG\x16\x00 00000000000003eSTARGZ", 2000, "no position"),
        (b"SG\x16\x000000000000000000STARGZ", huge, "stored bytes: at most"),
        (b"00000000000003e8STARGZ", 2000, "chunks have no digests"),
        (b"SG\x11\x00STARGZEXTERNALTOC", 2000, "in another image"),
    ] {
        let error = in_tail(&gzip_footer_with(extra), blob_size).unwrap_err().to_string();
        assert!(error.contains(reason), "expected {reason:?}, got {error}");
    }
}

#[test]
fn what_only_resembles_a_footer_is_none() {
    let named = annotations(&[(STARGZ, &digest(1))]);
    let right = gzip_footer_with(b"SG\x16\x0000000000000003e8STARGZ");
    for at in [0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 32, 37] {
        let mut footer = right.clone();
        footer[at] ^= 0x40;
        assert_eq!(in_tail(&footer, 2000), Ok(None), "byte {at}");
        let error = locate_in_tail(&named, 2000, &footer).unwrap_err().to_string();
        assert!(error.contains("no footer"), "{error}");
    }
    assert_eq!(in_tail(&right[1..], 2000), Ok(None));
}

#[test]
fn annotations_of_zstd_chunked_lead_to_its_table() {
    for prefix in ZSTD_CHUNKED {
        let (position, checksum) =
            (format!("{prefix}.manifest-position"), format!("{prefix}.manifest-checksum"));
        let with_both = annotations(&[(&position, "100:50:200:1"), (&checksum, &digest(2))]);
        let Ok(Place::At(location)) = locate(&with_both, 150) else { panic!("{prefix}") };
        assert_eq!(location.origin, Origin::ZstdChunked);
        assert_eq!((location.blob, location.payload_end), (ByteRange::new(100, 150), 92));
        assert_eq!((location.json_bytes, location.codec()), (Some(200), Codec::Zstd));
        assert_eq!(location.digest(), Some(Digest::Sha256([2; 32])));
        let Ok(Place::At(location)) = locate(&annotations(&[(&position, "100:50:200:1")]), 150)
        else {
            panic!("{prefix}")
        };
        assert_eq!(location.digest(), None);
    }
}

#[test]
fn positions_that_lead_nowhere_are_refused() {
    let position = "io.github.containers.zstd-chunked.manifest-position";
    for (value, reason) in [
        ("", "annotation"),
        ("100:50:200", "annotation"),
        ("100:50:200:1:1", "annotation"),
        ("100:50:200:1:x", "annotation"),
        ("100:50:200:2", "annotation"),
        ("100:50:200:x", "annotation"),
        ("+100:50:200:1", "annotation"),
        ("-1:50:200:1", "annotation"),
        ("18446744073709551616:50:200:1", "annotation"),
        ("100:51:200:1", "not inside the blob"),
        ("100:0:200:1", "not inside the blob"),
        ("18446744073709551615:2:200:1", "not inside the blob"),
        ("100:50:134217729:1", "a document of 134217729 bytes"),
    ] {
        let error = locate(&annotations(&[(position, value)]), 150).unwrap_err().to_string();
        assert!(error.contains(reason), "{value}: expected {reason:?}, got {error}");
    }
    let too_large = annotations(&[(position, "100:50331649:200:1")]);
    let error = locate(&too_large, 1 << 30).unwrap_err().to_string();
    assert!(error.contains("stored bytes: at most"), "{error}");
}

#[test]
fn digests_that_are_none_are_refused() {
    let prefix = ZSTD_CHUNKED[0];
    let (position, checksum) =
        (format!("{prefix}.manifest-position"), format!("{prefix}.manifest-checksum"));
    let wrong = annotations(&[(&position, "100:50:200:1"), (&checksum, "sha256:00")]);
    assert!(locate(&wrong, 150).unwrap_err().to_string().contains(&checksum));
    let wrong = annotations(&[(&position, "100:50:200:1"), (STARGZ, "md5:00")]);
    assert!(locate(&wrong, 150).unwrap_err().to_string().contains(STARGZ));
    let wrong = annotations(&[(STARGZ, "")]);
    assert!(locate_in_tail(&wrong, 150, &[]).unwrap_err().to_string().contains(STARGZ));
}

#[test]
fn footers_of_zstd_chunked_lead_to_its_table() {
    let long = zstd_footer_with(&[100, 50, 200, 1, 160, 10, 20], b"GNUlInUx");
    let short = zstd_footer_with(&[100, 50, 200, 1], b"GnUlInUx");
    for footer in [&long, &short] {
        let blob_size = 150 + footer.len() as u64;
        let location = in_tail(footer, blob_size).unwrap().unwrap();
        assert_eq!((location.blob, location.payload_end), (ByteRange::new(100, 150), 92));
        assert_eq!((location.json_bytes, location.digest()), (Some(200), None));
        // The table would reach into the footer.
        assert!(in_tail(footer, blob_size - 1).is_err());
        let json = locate_in_tail(&annotations(&[(STARGZ, &digest(3))]), blob_size, footer);
        assert_eq!(json.unwrap().unwrap().digest(), Some(Digest::Sha256([3; 32])));
    }
    let other_type = zstd_footer_with(&[100, 50, 200, 2], b"GnUlInUx");
    assert!(in_tail(&other_type, 1000).unwrap_err().to_string().contains("another type"));
    // The magic of the one with the length of the other.
    let mixed = zstd_footer_with(&[100, 50, 200, 1], b"GNUlInUx");
    assert_eq!(in_tail(&mixed, 1000), Ok(None));
}
