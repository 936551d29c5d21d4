use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::layout::codec::decode_span;
use crate::layout::entry::EntryKind;
use crate::layout::index::{Proof, Segments};

/// A tar of files with these sizes, their content different everywhere.
fn tar_of(sizes: &[usize]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (n, size) in sizes.iter().enumerate() {
        let content: Vec<u8> =
            (0..*size).map(|at| (at * at / 7 + n + at / 900 * (at % 90)) as u8).collect();
        let mut header = tar::Header::new_ustar();
        header.set_size(*size as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("file{n}"), content.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(content, 1).unwrap()
}

/// The index of a blob that arrives in pieces, and its uncompressed bytes.
fn scan(blob: &[u8], size: usize) -> Result<(LayerIndex, Vec<u8>), Error> {
    let mut tar = Vec::new();
    let mut sink = |bytes: &[u8]| {
        tar.extend_from_slice(bytes);
        Ok(())
    };
    let (mut scanner, mut spans) = (Scanner::new(), SpanBuilder::default());
    for piece in blob.chunks(size.max(1)) {
        scanner.push(piece, &mut sink)?;
        spans.push(piece, scanner.take_starts());
    }
    let layer = scanner.finish(&mut sink)?;
    assert_eq!(layer.blob_size, blob.len() as u64);
    Ok((layer.into_index(Digest::sha256_of(&tar), spans), tar))
}

/// Spans are gapless in the tar, and each alone gives its bytes and has its digest.
fn assert_spans_are_proved_parts(layer: &LayerIndex, blob: &[u8], tar: &[u8]) {
    assert_eq!(crate::layout::index::check(layer), Ok(()));
    for span in &layer.spans {
        let bytes = &blob[span.blob.start as usize..span.blob.end as usize];
        let content = &tar[span.tar.start as usize..span.tar.end as usize];
        let window = layer.window(span).unwrap();
        assert_eq!(decode_span(span, &window, bytes).as_deref(), Ok(content));
        assert_eq!(span.proof, Proof::Stored(Segments::of(blob, span.blob)));
    }
    assert_eq!(tar.len() as u64, layer.tar_size);
}

/// `tar` as members or frames of `sizes` bytes (the last one is what is left).
fn in_parts(tar: &[u8], sizes: &[usize], compress: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let (mut rest, mut blob) = (tar, Vec::new());
    for &size in sizes {
        let (part, after) = rest.split_at(size.min(rest.len()));
        blob.extend(compress(part));
        rest = after;
    }
    blob.extend(compress(rest));
    blob
}

#[test]
fn a_plain_tar_is_cut_at_every_span_bytes() {
    let tar = tar_of(&[3 << 20, 100]);
    let (layer, decoded) = scan(&tar, 100_000).unwrap();
    assert_eq!(decoded, tar);
    assert_spans_are_proved_parts(&layer, &tar, &tar);
    assert_eq!(layer.spans.len(), 4);
    assert!(layer.spans.iter().all(|span| span.codec == Codec::Stored));
    assert_eq!(layer.entries.len(), 2);
}

#[test]
fn a_long_gzip_member_has_a_span_for_each_mebibyte() {
    let tar = tar_of(&[5 << 20, 100]);
    let blob = [gzip(&tar), vec![0; 1000]].concat();
    let (layer, decoded) = scan(&blob, 4096).unwrap();
    assert_spans_are_proved_parts(&layer, &blob, &decoded);
    assert_eq!(layer.spans.len(), 5);
    let lengths: Vec<_> = layer.spans.iter().map(|span| span.tar.len() >> 10).collect();
    assert!(lengths[..4].iter().all(|kib| (1024..1200).contains(kib)), "{lengths:?}");
    assert!(layer.spans.iter().skip(1).all(|span| matches!(span.codec, Codec::Deflate(_))));
    assert!(layer.windows.len() < (4 * 32) << 10, "{} bytes of windows", layer.windows.len());
}

#[test]
fn one_zstd_frame_is_one_span() {
    let tar = tar_of(&[3 << 20, 100]);
    let blob = zstd(&tar);
    let (layer, decoded) = scan(&blob, 4096).unwrap();
    assert_spans_are_proved_parts(&layer, &blob, &decoded);
    assert_eq!(layer.spans.len(), 1);
}

#[test]
fn short_members_share_a_span_and_long_ones_have_their_own() {
    const KIB: usize = 1 << 10;
    let tar = tar_of(&[6 << 20]);
    let sizes = [600 * KIB, 400 * KIB, 200 * KIB, 1000 * KIB, 100 * KIB, 0, 0, 900 * KIB];
    for compress in [gzip, zstd] {
        let blob = in_parts(&tar, &sizes, compress);
        let (layer, decoded) = scan(&blob, 4096).unwrap();
        assert_spans_are_proved_parts(&layer, &blob, &decoded);
        let lengths: Vec<_> = layer.spans.iter().map(|span| span.tar.len() as usize).collect();
        // The last one is cut in the middle where it is of gzip.
        assert_eq!(lengths[..3], [600 * KIB, 600 * KIB, 1000 * KIB]);
    }
}

#[test]
fn a_million_empty_members_need_no_memory() {
    let tar = tar_of(&[100]);
    let blob = [gzip(&tar), gzip(b"").repeat(100_000)].concat();
    let (layer, decoded) = scan(&blob, 65_536).unwrap();
    assert_eq!(layer.spans.len(), 1);
    assert_spans_are_proved_parts(&layer, &blob, &decoded);
}

#[test]
fn an_empty_layer_has_no_spans() {
    for blob in [vec![], gzip(b""), zstd(b"")] {
        let (layer, tar) = scan(&blob, 10).unwrap();
        assert_eq!((layer.tar_size, tar), (0, vec![]));
        assert_eq!(layer.spans, []);
    }
}

#[test]
fn bytes_behind_the_end_of_the_archive_belong_to_the_layer() {
    let tar = [tar_of(&[5]), b"trailing".to_vec()].concat();
    for blob in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let (layer, decoded) = scan(&blob, 100).unwrap();
        assert_eq!(decoded, tar);
        assert_spans_are_proved_parts(&layer, &blob, &tar);
    }
}

#[test]
fn a_refusal_of_the_sink_ends_the_scan() {
    #[derive(Debug)]
    enum Refused {
        Here,
        Layout,
    }
    impl From<Error> for Refused {
        fn from(_: Error) -> Self {
            Refused::Layout
        }
    }
    let blob = gzip(&tar_of(&[100]));
    let refused = Scanner::new().push(&blob, &mut |_| Err(Refused::Here));
    assert!(matches!(refused, Err(Refused::Here)));
    let refused = Scanner::new().push(&gzip(&[b'x'; 512]), &mut |_| Ok::<_, Refused>(()));
    assert!(matches!(refused, Err(Refused::Layout)));
}

#[test]
fn the_index_has_what_the_scan_found() {
    let tar = tar_of(&[5]);
    let (index, _) = scan(&tar, 100).unwrap();
    assert_eq!((index.origin, index.diff_id), (Origin::OnePass, Digest::sha256_of(&tar)));
    let EntryKind::Regular { chunks, .. } = &index.entries[0].kind else { unreachable!() };
    assert_eq!(index.spans_for(chunks[0].tar), 0..1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn pieces_of_any_size_give_the_same_layer(
        files in prop::collection::vec(0usize..400_000, 0..8),
        parts in prop::collection::vec(0usize..900_000, 0..6),
        size in 1usize..300_000,
        codec in 0usize..3,
    ) {
        let tar = tar_of(&files);
        let blob = match codec {
            0 => tar.clone(),
            1 => in_parts(&tar, &parts, gzip),
            _ => in_parts(&tar, &parts, zstd),
        };
        let (layer, decoded) = scan(&blob, size).unwrap();
        prop_assert_eq!(&decoded, &tar);
        prop_assert_eq!(layer.entries.len(), files.len());
        assert_spans_are_proved_parts(&layer, &blob, &tar);
        prop_assert_eq!(&layer, &scan(&blob, blob.len()).unwrap().0);
        // All but the last hold something; none is longer than two starts are apart, and a member.
        let (last, spans) = layer.spans.split_last().map_or((None, &[][..]), |(l, s)| (Some(l), s));
        prop_assert!(spans.iter().all(|span| span.tar.len() >= SPAN_BYTES / 2));
        prop_assert!(last.is_none() || codec == 2 || crate::layout::index::is_seekable(&layer.spans));
    }
}

#[test]
fn one_byte_at_a_time_gives_the_same_layer() {
    let tar = tar_of(&[700, 0, 3]);
    for blob in [tar.clone(), in_parts(&tar, &[600, 0, 512], gzip), in_parts(&tar, &[9], zstd)] {
        assert_eq!(scan(&blob, 1), scan(&blob, blob.len()));
    }
}
