//! Tables as they are stored: what proves them, how they are packed, and eStargz's as a file.

use super::*;
use crate::layout::codec::decode_span;
use crate::layout::index::window::unpack;

#[test]
fn a_table_that_is_not_the_one_that_the_manifest_names_is_refused() {
    let json = document("");
    let stored = gzip(&tar_of("stargz.index.json", 0, json.as_bytes()));
    let error = estargz_of(&stored, b"another").unwrap_err().to_string();
    assert!(error.contains("digest mismatch"), "{error}");

    let stored = zstd_of(json.as_bytes());
    let place = |stargz: &[u8], checksum: &[u8]| {
        let position = format!("10008:{}:{}:1", stored.len(), json.len());
        let [stargz, checksum] = [stargz, checksum].map(|b| Digest::sha256_of(b).to_string());
        let pairs = [(POSITION, position.as_str()), (CHECKSUM, &checksum), (STARGZ, &stargz)];
        match locate(&annotations(&pairs), 20_000).unwrap() {
            Place::At(location) => parse(&location, &stored, Digest::sha256_of(b"diff")),
            place => panic!("{place:?}"),
        }
    };
    // Of the bytes as stored, and of the document: where both are named, both must be right.
    assert!(place(json.as_bytes(), &stored).is_ok());
    for error in [place(json.as_bytes(), b"another"), place(b"another", &stored)] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains("digest mismatch"), "{error}");
    }
}

#[test]
fn a_document_of_another_length_than_said_is_refused() {
    let json = document("");
    let stored = zstd_of(json.as_bytes());
    assert!(chunked_of(&stored, json.len()).is_ok());
    for bytes in [0, json.len() - 1, json.len() + 1] {
        assert!(chunked_of(&stored, bytes).is_err(), "{bytes}");
    }
}

#[test]
fn what_decodes_to_more_than_a_document_may_have_is_refused_before_it_is_decoded() {
    // 256 MiB of spaces in some kilobytes.
    let piece = vec![b' '; 1 << 20];
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(header_of("stargz.index.json", 0, 256 << 20).as_bytes()).unwrap();
    let mut frames = zstd::Encoder::new(Vec::new(), 1).unwrap();
    for _ in 0..256 {
        encoder.write_all(&piece).unwrap();
        frames.write_all(&piece).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    let error = estargz_of(&bomb, b"").unwrap_err().to_string();
    assert!(error.contains("decoded size in bytes of a table"), "{error}");
    let bomb = frames.finish().unwrap();
    let error = chunked_of(&bomb, 1000).unwrap_err().to_string();
    assert!(error.contains("exceeds the limit of 1000"), "{error}");
}

#[test]
fn a_tar_around_the_document_that_no_writer_makes_is_refused() {
    let json = document("");
    let json = json.as_bytes();
    let tar = tar_of("stargz.index.json", 0, json);
    let second = tar_of("another", 0, b"");
    let two = [&tar[..tar.len() - 1024], &second].concat();
    let directory = tar_of("stargz.index.json/", 0, b"");
    for (stored, reason) in [
        (gzip(&tar_of("other.json", 0, json)), "not that of a table"),
        (gzip(&tar_of("stargz.index.json", 0o644, json)), "not that of a table"),
        (gzip(&directory), "not a regular file"),
        (gzip(&tar_of("stargz.index.json", 0, b"")), "empty or has holes"),
        (gzip(&two), "a tar of one file"),
        (gzip(&[0; 1024]), "a tar of one file"),
        (gzip(json), "tar entry at offset 0"),
        (gzip(&tar)[..100].to_vec(), "cut off"),
        (zstd_of(&tar), "expected gzip"),
        (tar.clone(), "expected gzip"),
    ] {
        let error = estargz_of(&stored, json).unwrap_err().to_string();
        assert!(error.contains(reason), "expected {reason:?}, got {error}");
    }
    let error = chunked_of(&gzip(json), json.len()).unwrap_err().to_string();
    assert!(error.contains("expected zstd, got Gzip"), "{error}");
}

#[test]
fn a_landmark_tells_that_the_table_is_a_file_of_the_layer() {
    let landmark =
        r#"{"name":".no.prefetch.landmark","type":"reg","size":1,"offset":100,"digest":"DIGEST"}"#;
    // Long and without repetition, so that the table has several spans.
    let mut seed = 1u32;
    let names = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!(r#",{{"name":"{seed:08x}","type":"dir","mode":{}}}"#, seed >> 16)
    });
    let json = document(&format!("{landmark}{}", names.take(80_000).collect::<String>()));
    let stored = gzip(&tar_of("stargz.index.json", 0, json.as_bytes()));
    let index = estargz_of(&stored, json.as_bytes()).unwrap();
    assert_eq!(index.entries.len(), 80_002);
    let entry = index.entries.last().unwrap();
    assert_eq!((entry.path.as_slice(), &entry.attributes), (TOC_PATH, &Attributes::default()));
    let EntryKind::Regular { size, chunks } = &entry.kind else { panic!("{entry:?}") };
    assert_eq!((*size, chunks.len()), (json.len() as u64, 1));
    assert!(index.spans.len() >= 3, "{}", index.spans.len());

    let mut content = vec![0];
    for span in &index.spans[1..] {
        let range = |r: ByteRange, base: u64| (r.start - base) as usize..(r.end - base) as usize;
        let window = match span.codec {
            Codec::Deflate(point) => unpack(&index.windows[range(point.window, 0)]).unwrap(),
            _ => vec![],
        };
        let ByteRange { start, end } = span.blob;
        let of_toc = ByteRange::new(start - PAYLOAD_END, end - PAYLOAD_END);
        let bytes = &stored[range(of_toc, 0)];
        assert_eq!(Proof::Stored(Segments::of(&stored, of_toc)), span.proof);
        content.extend(decode_span(span, &window, bytes).unwrap());
    }
    let tar = chunks[0].tar;
    assert!(content[tar.start as usize..tar.end as usize] == *json.as_bytes());

    // Elsewhere, or without one, the table is no file of the layer.
    for other in [landmark.replace(".no", "d/.no"), landmark.replace(".no.prefetch", ".prefetched")]
    {
        let json = document(&other);
        assert_eq!(estargz(&json).unwrap().entries.len(), 1, "{json}");
    }
    assert_eq!(chunked(&document(landmark)).unwrap().entries.len(), 1);
}
