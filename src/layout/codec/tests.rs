use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::layout::index::{Point, Proof, Segments, Span};
use crate::layout::range::ByteRange;

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// A gzip member whose header has all optional fields.
fn gzip_with_fields(content: &[u8]) -> Vec<u8> {
    let plain = gzip(content);
    let fields = b"\x05\x00extraname\0comment\0\xaa\xbb";
    [&plain[..3], &[0x1f], &plain[4..10], fields, &plain[10..]].concat()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    ::zstd::bulk::compress(content, 1).unwrap()
}

fn skippable(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap();
    [b"\x5e\x2a\x4d\x18".as_slice(), &length.to_le_bytes(), content].concat()
}

/// Codec, content, and the starts as (blob, tar).
type Whole = (Codec, Vec<u8>, Vec<(u64, u64)>);

fn decode(blob: &[u8], size: usize) -> Result<Whole> {
    let (mut content, mut starts) = (Vec::new(), Vec::new());
    let mut sink = |decoded: Decoded<'_>| {
        match decoded {
            Decoded::Bytes(bytes) => content.extend_from_slice(bytes),
            Decoded::Start(start) => starts.push((start.blob, start.tar)),
        }
        Ok::<(), Error>(())
    };
    let mut decoder = Decoder::new();
    for piece in blob.chunks(size) {
        decoder.push(piece, &mut sink)?;
    }
    let codec = decoder.finish(&mut sink)?;
    assert_eq!(decoder.tar_bytes(), content.len() as u64);
    Ok((codec, content, starts))
}

/// Some bytes that neither repeat nor refuse to compress.
fn content(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|n| (n.wrapping_mul(n) >> 9) as u8).collect()
}

/// Bytes as texts have them: some of few, and words that come again.
fn text(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut text = Vec::new();
    while text.len() < bytes {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.extend_from_slice(format!("{:x} ", (state >> 8) % 60_000).as_bytes());
    }
    text.truncate(bytes);
    text
}

#[test]
fn members_and_frames_follow_each_other_and_their_starts_are_known() {
    let [a, b] = [content(300_000), content(10)];
    let members = [gzip(&a), gzip_with_fields(&b), gzip(b""), gzip(&a)];
    let frames = [zstd(&a), skippable(b"toc"), zstd(&b), zstd(&a)];
    for (codec, parts, tar_starts) in [
        (Codec::Gzip, members, [0, 300_000, 300_010, 300_010]),
        (Codec::Zstd, frames, [0, 300_000, 300_000, 300_010]),
    ] {
        let blob = parts.concat();
        let mut at = 0;
        let mut starts = Vec::new();
        for (part, tar) in parts.iter().zip(tar_starts) {
            starts.push((at, tar));
            at += part.len() as u64;
        }
        let expected = Ok((codec, [a.as_slice(), &b, &a].concat(), starts));
        for size in [1, 7, 1000, blob.len()] {
            assert_eq!(decode(&blob, size), expected, "{codec:?} in pieces of {size}");
        }
    }
}

#[test]
fn the_bytes_say_the_codec() {
    for (blob, codec) in [
        (&b""[..], Codec::Stored),
        (b"\x1f", Codec::Stored),
        (b"abc", Codec::Stored),
        (b"plain tar", Codec::Stored),
        (&gzip(b"x"), Codec::Gzip),
        (&zstd(b"x"), Codec::Zstd),
        (&[skippable(b"first"), zstd(b"x")].concat(), Codec::Zstd),
    ] {
        assert_eq!(decode(blob, 1).map(|d| d.0), Ok(codec), "{}", blob.escape_ascii());
    }
    assert_eq!(decode(b"plain tar", 2), Ok((Codec::Stored, b"plain tar".to_vec(), vec![])));
}

#[test]
fn gzip_checks_are_left_to_the_digests() {
    let mut blob = gzip(b"right bytes");
    let crc = blob.len() - 8;
    blob[crc..].fill(0xee);
    assert_eq!(decode(&blob, 3).map(|d| d.1), Ok(b"right bytes".to_vec()));
}

#[test]
fn zeros_behind_gzip_are_padding_and_all_else_is_garbage() {
    let blob = gzip(b"x");
    assert_eq!(decode(&[&blob, [0; 700].as_slice()].concat(), 100).map(|d| d.1), Ok(b"x".to_vec()));
    for garbage in [&b"\0\0x"[..], b"x", b"\x1f", b"\x1f\x8c", b"\0\x1f\x8b\x08"] {
        assert!(decode(&[&blob, garbage].concat(), 5).is_err(), "{}", garbage.escape_ascii());
    }
    assert!(decode(&[zstd(b"x"), vec![0; 4]].concat(), 5).is_err());
}

#[test]
fn a_blob_that_is_cut_off_is_refused() {
    for blob in [gzip_with_fields(&content(500)), zstd(&content(500)), skippable(b"12345")] {
        for size in 2..blob.len() {
            let is_stored = size < MAGIC_BYTES && blob[0] != 0x1f;
            assert_eq!(decode(&blob[..size], 64).is_ok(), is_stored, "{size} of {}", blob.len());
        }
    }
}

#[test]
fn hostile_headers_are_refused() {
    let mut method = gzip(b"x");
    method[2] = 7;
    let mut flags = gzip(b"x");
    flags[3] = 0x80;
    // A frame that asks for a window of 2 GiB.
    let window = b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00".to_vec();
    for blob in [method, flags, window] {
        assert!(matches!(decode(&blob, 64), Err(Error::Codec { .. })), "{}", blob.escape_ascii());
    }
}

fn span(codec: Codec, skip: u64, len: u64) -> Span {
    let (blob, tar) = (ByteRange::new(0, 1), ByteRange::new(7, 7 + len));
    Span { blob, tar, skip, codec, proof: Proof::Stored(Segments::One([0; 32])) }
}

#[test]
fn a_span_decodes_to_exactly_what_it_is_said_to() {
    let bytes = content(200_000);
    for (codec, blob) in
        [(Codec::Stored, bytes.clone()), (Codec::Gzip, gzip(&bytes)), (Codec::Zstd, zstd(&bytes))]
    {
        for (skip, len) in [(0, 200_000), (0, 199_999), (1, 10), (150_000, 50_000)] {
            let expected = &bytes[skip..skip + len];
            let decoded = decode_span(&span(codec, skip as u64, len as u64), &[], &blob);
            assert_eq!(decoded.as_deref(), Ok(expected), "{codec:?} {skip} {len}");
        }
        for (skip, len) in [(0, 200_001), (1, 200_000), (0, u64::MAX - 7)] {
            assert!(decode_span(&span(codec, skip, len), &[], &blob).is_err(), "{codec:?} {len}");
        }
        let cut = &blob[..blob.len() / 2];
        assert!(decode_span(&span(codec, 0, 200_000), &[], cut).is_err(), "{codec:?}");
    }
    assert!(decode_span(&span(Codec::Gzip, 0, 200_000), &[], &zstd(&bytes)).is_err());
}

#[test]
fn a_span_is_decoded_as_far_as_it_is_needed_and_no_further() {
    let bytes = content(300_000);
    for (codec, blob) in
        [(Codec::Stored, bytes.clone()), (Codec::Gzip, gzip(&bytes)), (Codec::Zstd, zstd(&bytes))]
    {
        let span = span(codec, 1000, 250_000);
        let mut decoder = SpanDecoder::new(&span, &[], blob.first().copied()).unwrap();
        // A place that was passed changes nothing, and there is no more than all.
        for (upto, expected) in
            [(0, 0), (1, 1), (200_000, 200_000), (7, 200_000), (u64::MAX, 250_000)]
        {
            assert!(decoder.reach(&blob[decoder.used()..], upto).unwrap());
            assert_eq!(decoder.decoded(), &bytes[1000..1000 + expected], "{codec:?} {upto}");
        }
        assert_eq!(decoder.into_decoded(), bytes[1000..251_000]);
    }
}

/// The starts that a blob tells in pieces of `size`.
fn starts(blob: &[u8], spacing: u64, size: usize) -> Vec<Start> {
    let mut starts = Vec::new();
    let mut sink = |decoded: Decoded<'_>| {
        if let Decoded::Start(start) = decoded {
            starts.push(start);
        }
        Ok::<(), Error>(())
    };
    let mut decoder = Decoder::with_starts(spacing);
    blob.chunks(size).for_each(|piece| decoder.push(piece, &mut sink).unwrap());
    decoder.finish(&mut sink).unwrap();
    starts
}

#[test]
fn a_long_member_is_entered_between_its_blocks() {
    let bytes = text(3_000_000);
    let blob = [gzip(&bytes), gzip(b"next")].concat();
    let told = starts(&blob, 500_000, blob.len());
    assert!(told.len() > 4, "{} starts", told.len());
    let (mut at, mut odd) = (0, 0);
    let (next, within) = told[1..].split_last().expect("several");
    assert_eq!((next.tar, &next.within), (3_000_000, &None));
    for start in within {
        assert!(start.tar - at >= 500_000 && start.tar - at < 700_000, "{at} {}", start.tar);
        at = start.tar;
        let within = start.within.as_ref().expect("between blocks");
        odd += u32::from(within.bits > 0);
        let before = &bytes[..start.tar as usize];
        assert_eq!(within.window, before[before.len() - inflate::WINDOW_BYTES_MAX..]);
        let point = Point { bits: within.bits, window: ByteRange::new(0, 0) };
        // To the end of the next member, past the end of this one.
        let len = bytes.len() as u64 + 4 - start.tar;
        let span = span(Codec::Deflate(point), 0, len);
        let decoded = decode_span(&span, &within.window, &blob[start.blob as usize..]).unwrap();
        assert!(decoded == [&bytes[start.tar as usize..], b"next"].concat());
    }
    assert!(odd > 0, "none begins inside of a byte");
}

#[test]
fn a_start_between_blocks_needs_its_bits_and_its_window() {
    let bytes = text(900_000);
    let blob = gzip(&bytes);
    let start = starts(&blob, 300_000, blob.len()).swap_remove(1);
    let within = start.within.expect("between blocks");
    let decode = |bits, window: &[u8], at: u64| {
        let point = Point { bits, window: ByteRange::new(0, 0) };
        decode_span(&span(Codec::Deflate(point), 0, 60_000), window, &blob[at as usize..])
    };
    let right = &bytes[start.tar as usize..][..60_000];
    assert_eq!(decode(within.bits, &within.window, start.blob).as_deref(), Ok(right));
    assert_ne!(
        decode(within.bits, &[0; inflate::WINDOW_BYTES_MAX], start.blob).as_deref(),
        Ok(right)
    );
    assert!(decode(within.bits, &[], start.blob).is_err(), "it refers to what is not there");
    assert_ne!(decode((within.bits + 1) % 8, &within.window, start.blob).as_deref(), Ok(right));
    assert!(decode(8, &within.window, start.blob).is_err());
    assert!(decode(0, &[0; inflate::WINDOW_BYTES_MAX + 1], start.blob).is_err());
    assert!(decode(3, &[], blob.len() as u64).is_err());
}

proptest! {
    #[test]
    fn starts_do_not_depend_on_the_pieces(
        size in 1usize..40_000,
        spacing in 1u64..400_000,
        len in 0usize..900_000,
        is_gzip in any::<bool>(),
    ) {
        let parts = [text(len), content(len / 9)];
        let blob = parts.map(|part| if is_gzip { gzip(&part) } else { zstd(&part) }).concat();
        prop_assert_eq!(starts(&blob, spacing, size), starts(&blob, spacing, blob.len()));
    }

    #[test]
    fn a_span_that_is_decoded_in_steps_is_the_same(
        steps in prop::collection::vec(0u64..70_000, 0..20),
        skip in 0u64..20_000,
        len in 1u64..200_000,
        spacing in 30_000u64..90_000,
        piece in 1usize..30_000,
    ) {
        let bytes = text(400_000);
        let blob = [gzip(&bytes[..150_000]), gzip(&bytes[150_000..])].concat();
        let start = starts(&blob, spacing, blob.len()).swap_remove(1);
        let (codec, window) = match start.within {
            Some(within) => {
                let point = Point { bits: within.bits, window: ByteRange::new(0, 0) };
                (Codec::Deflate(point), within.window)
            }
            None => (Codec::Gzip, Vec::new()),
        };
        let (span, stored) = (span(codec, skip, len), &blob[start.blob as usize..]);
        let expected = &bytes[(start.tar + skip) as usize..][..len as usize];
        let mut decoder = SpanDecoder::new(&span, &window, stored.first().copied()).unwrap();
        let (mut upto, mut here) = (0, decoder.used());
        for step in steps.into_iter().chain([len]) {
            upto = len.min(upto + step);
            while !decoder.reach(&stored[decoder.used()..here], upto).unwrap() {
                prop_assert_eq!(decoder.used(), here, "some of it is left");
                prop_assert!(here < stored.len(), "it is all here");
                here = stored.len().min(here + piece);
            }
            prop_assert!(decoder.decoded() == &expected[..upto as usize]);
        }
        prop_assert!(decoder.into_decoded() == expected);
    }

    #[test]
    fn damage_and_pieces_change_nothing_but_the_result(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        size in 1usize..5000,
        is_gzip in any::<bool>(),
    ) {
        let (a, b) = (content(20_000), content(3000));
        let parts = if is_gzip { [gzip(&a), gzip(&b)] } else { [zstd(&a), zstd(&b)] };
        let mut blob = parts.concat();
        let at = at.index(blob.len());
        blob[at] = byte;
        let whole = decode(&blob, blob.len());
        let pieces = decode(&blob, size);
        prop_assert_eq!(whole.is_ok(), pieces.is_ok());
        if whole.is_ok() {
            prop_assert_eq!(whole, pieces);
        }
    }
}
