//! zTOCs as SOCI's own tool writes them (`tests/fixtures/`), ours in its form, and its indexes.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use layoutfs::layout::codec::decode_span;
use layoutfs::layout::error::Error;
use layoutfs::layout::index::scan::Scanner;
use layoutfs::layout::index::spans::SpanBuilder;
use layoutfs::layout::index::{Codec, LayerIndex, Proof, Segments};
use layoutfs::layout::oci::{Descriptor, Manifest, OCI_MANIFEST};
use layoutfs::layout::soci::manifest::{CONFIG, SociIndex, Version, ZtocRef, index_of};
use layoutfs::layout::soci::{SPAN_BYTES, Writer, parse_ztoc};
use layoutfs::layout::{Blob, Digest};

/// The fixtures' zTOCs, each with the layer that it is of.
pub fn fixtures() -> Vec<(PathBuf, Vec<u8>, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut ztocs: Vec<_> = files.filter(|f| f.extension().is_some_and(|e| e == "ztoc")).collect();
    ztocs.sort();
    let read = |path: &Path| std::fs::read(path).unwrap();
    ztocs.into_iter().map(|z| (z.clone(), read(&z), read(&z.with_extension("")))).collect()
}

/// What a pass finds, and the uncompressed layer.
pub fn pass(blob: &[u8]) -> (LayerIndex, Vec<u8>) {
    let (mut scanner, mut spans, mut tar) = (Scanner::new(), SpanBuilder::default(), Vec::new());
    let mut sink = |bytes: &[u8]| {
        tar.extend_from_slice(bytes);
        Ok::<(), Error>(())
    };
    for piece in blob.chunks(64 << 10) {
        scanner.push(piece, &mut sink).unwrap();
        spans.push(piece, scanner.take_starts());
    }
    let layer = scanner.finish(&mut sink).unwrap();
    (layer.into_index(Digest::sha256_of(&tar), spans), tar)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    match Digest::sha256_of(bytes) {
        Digest::Sha256(sha256) => sha256,
        Digest::Sha512(_) => panic!("sha256_of gives a sha256"),
    }
}

/// Every span is proved by its bytes of the blob, and decodes alone to its bytes of the tar.
fn assert_decodes(index: &LayerIndex, blob: &[u8], tar: &[u8]) {
    for span in &index.spans {
        let part = &blob[span.blob.start as usize..span.blob.end as usize];
        assert_eq!(span.proof, Proof::Stored(Segments::One(sha256(part))), "{span:?}");
        let decoded = decode_span(span, &index.window(span).unwrap(), part).unwrap();
        assert!(decoded == tar[span.tar.start as usize..span.tar.end as usize], "{span:?}");
    }
    let uncounted = &tar[index.tar_size as usize..];
    assert!(uncounted.iter().all(|b| *b == 0), "only zeros are not counted");
}

/// The zTOC that we write of a layer, which comes in pieces of `size`.
fn write(index: &LayerIndex, blob: &[u8], tar: &[u8], size: usize) -> Result<Vec<u8>, Error> {
    let mut writer = Writer::new(index, blob.len() as u64)?;
    blob.chunks(size).try_for_each(|piece| writer.push_blob(piece))?;
    tar.chunks(size).try_for_each(|piece| writer.push_tar(piece))?;
    writer.finish("layoutfs tests")
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let header = flate2::GzBuilder::new().filename("a name").extra(vec![1, 2, 3]);
    let mut encoder = header.write(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// A tar of `count` files of `size` bytes that are hard to compress and easy to make.
pub fn tar_of(count: usize, size: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut state = 1u32;
    for n in 0..count {
        let mut header = tar::Header::new_ustar();
        header.set_size(size as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        let mut word = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 12 & 0xfff
        };
        let content: String =
            std::iter::repeat_with(|| format!("{:x} ", word())).take(size / 3).collect();
        let content = &content.as_bytes()[..size];
        builder.append_data(&mut header, format!("./files/{n}"), content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_ztoc_of_soci_says_what_a_pass_finds() {
    let (mut read, mut refused) = (0, 0);
    for (path, ztoc, blob) in fixtures() {
        let (passed, tar) = pass(&blob);
        let parsed = parse_ztoc(&ztoc, blob.len() as u64, passed.diff_id);
        if path.to_str().unwrap().contains("sparse") {
            let reason = parsed.unwrap_err().to_string();
            assert!(reason.contains("it is sparse"), "{}: {reason}", path.display());
            refused += 1;
            continue;
        }
        let index = parsed.unwrap();
        assert_eq!(index.entries, passed.entries, "{}", path.display());
        assert_decodes(&index, &blob, &tar);
        read += 1;
    }
    assert_eq!((read, refused), (10, 3));
}

#[test]
fn a_gzip_layer_is_entered_between_blocks_and_read_across_members() {
    let spans = |name: &str| {
        let (_, ztoc, blob) = fixtures().into_iter().find(|(p, ..)| p.ends_with(name)).unwrap();
        let size = blob.len() as u64;
        parse_ztoc(&ztoc, size, Digest::sha256_of(b"")).unwrap().spans
    };
    let bits: Vec<_> = spans("soci.tar.gz.ztoc")
        .iter()
        .map(|span| match span.codec {
            Codec::Deflate(point) => (point.bits, point.window.is_empty()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(bits, [(0, true), (3, false), (0, false)]);
    assert_eq!(spans("soci-members.tar.gz.ztoc").len(), 1);
}

#[test]
fn what_we_write_is_read_as_the_pass_had_it() {
    for (path, _, blob) in fixtures() {
        let (index, tar) = pass(&blob);
        let written = write(&index, &blob, &tar, blob.len());
        if path.to_str().unwrap().contains("sparse") {
            assert!(written.unwrap_err().to_string().contains("it is sparse"), "{path:?}");
            continue;
        }
        let written = written.unwrap();
        for size in [1, 511, 4096] {
            assert!(write(&index, &blob, &tar, size).as_ref() == Ok(&written), "{size}");
        }
        let again = parse_ztoc(&written, blob.len() as u64, index.diff_id).unwrap();
        assert_eq!((&again.entries, again.tar_size), (&index.entries, index.tar_size), "{path:?}");
        assert_decodes(&again, &blob, &tar);
    }
}

#[test]
fn large_layers_are_cut_at_members_and_between_blocks() {
    let tar = tar_of(13, 1 << 20);
    let (first, rest) = tar.split_at(5 << 20);
    let (second, third) = rest.split_at(700_000);
    let members = [gzip(first), gzip(b""), gzip(second), gzip(third)].concat();
    for blob in [gzip(&tar), members] {
        let (index, passed) = pass(&blob);
        assert!(passed == tar);
        let starts = index.spans.iter().map(|span| span.tar.start);
        assert!(index.spans.len() >= 8, "{:?}", starts.collect::<Vec<_>>());
        let written = write(&index, &blob, &tar, 10_000).unwrap();
        let again = parse_ztoc(&written, blob.len() as u64, index.diff_id).unwrap();
        assert_eq!(again.entries, index.entries);
        assert_decodes(&again, &blob, &tar);
        let lengths: Vec<_> = again.spans.iter().map(|span| span.tar.len()).collect();
        assert!(lengths.len() >= 3 && lengths.iter().all(|l| *l < 2 * SPAN_BYTES), "{lengths:?}");
    }
}

#[test]
fn what_soci_has_no_words_for_is_not_written() {
    let (index, tar) = pass(&tar_of(2, 5000));
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    let (of_zstd, _) = pass(&zstd);
    let global =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pax-global.tar"));
    let global = global.unwrap();
    let (of_global, _) = pass(&global);
    let mut late = index.clone();
    late.entries[0].attributes.mtime.seconds = i64::MAX;
    let mut moved = index.clone();
    moved.entries[1].offset += 512;
    for (index, blob, why) in [
        (&of_zstd, &zstd, "neither gzip nor a plain tar"),
        (&of_global, &global, "header of type g"),
        (&late, &tar, "modified"),
        (&moved, &tar, "files/1"),
    ] {
        let tar = if index == &of_global { &global } else { &tar };
        let error = write(index, blob, tar, 4096).unwrap_err().to_string();
        assert!(error.contains(why), "{error}, expected {why}");
    }
    let short = write(&index, &tar, &tar[..tar.len() - 1], 4096).unwrap_err().to_string();
    assert!(short.contains("bytes, expected"), "{short}");
    let (empty, _) = pass(b"");
    assert!(Writer::new(&empty, 0).is_err());
}

fn index_document(change: impl FnOnce(&mut serde_json::Value)) -> (Blob, Vec<u8>) {
    let digest = |of: &str| Digest::sha256_of(of.as_bytes()).to_string();
    let mut document = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.amazon.soci.index.v1+json",
            "digest": digest("{}"),
            "size": 2
        },
        "layers": [
            {
                "mediaType": "application/octet-stream",
                "digest": digest("ztoc 1"),
                "size": 1000,
                "annotations": {
                    "com.amazon.soci.image-layer-digest": digest("layer 1"),
                    "com.amazon.soci.image-layer-mediaType":
                        "application/vnd.oci.image.layer.v1.tar+gzip",
                    "com.amazon.soci.span-size": "4194304"
                }
            },
            {
                "mediaType": "application/octet-stream",
                "digest": digest("ztoc 3"),
                "size": 3000,
                "annotations": {"com.amazon.soci.image-layer-digest": digest("layer 3")}
            },
            {
                "mediaType": "application/vnd.amazon.soci.prefetch.v1+json",
                "digest": digest("prefetch"),
                "size": 100,
                "annotations": {"com.amazon.soci.image-layer-digest": digest("layer 1")}
            }
        ],
        "subject": {"mediaType": OCI_MANIFEST, "digest": digest("image"), "size": 500},
        "annotations": {"com.amazon.soci.build-tool-identifier": "AWS SOCI CLI v0.2"}
    });
    change(&mut document);
    let bytes = document.to_string().into_bytes();
    (Blob { digest: Digest::sha256_of(&bytes), size: bytes.len() as u64 }, bytes)
}

#[test]
fn an_index_of_soci_says_which_ztoc_is_of_which_layer() {
    let (blob, bytes) = index_document(|_| {});
    let index = SociIndex::parse(&blob, &bytes).unwrap();
    assert_eq!((index.version, index.ztocs.len()), (Version::V1, 2));
    let of = |text: &[u8]| Digest::sha256_of(text);
    let first = index.ztoc_of(&of(b"layer 1")).unwrap();
    assert_eq!((&first.ztoc.digest, first.ztoc.size), (&of(b"ztoc 1"), 1000));
    assert_eq!(first.span_bytes, Some(4 << 20));
    assert_eq!(index.ztoc_of(&of(b"layer 2")), None);
    assert_eq!(index.ztoc_of(&of(b"layer 3")).unwrap().span_bytes, None);
    assert!(index.is_of(&of(b"image")) && !index.is_of(&of(b"another")));
    let (blob, bytes) = index_document(|document| {
        document["config"]["mediaType"] = "application/vnd.amazon.soci.index.v2+json".into();
        document.as_object_mut().unwrap().remove("subject");
    });
    let index = SociIndex::parse(&blob, &bytes).unwrap();
    assert_eq!((index.version, &index.subject), (Version::V2, &None));
}

#[test]
fn an_index_that_cannot_be_is_refused() {
    type Change = fn(&mut serde_json::Value);
    let changes: [(Change, &str); 6] = [
        (|d| d["config"]["mediaType"] = "application/json".into(), "its configuration is"),
        (|d| drop(d.as_object_mut().unwrap().remove("subject")), "it has no subject"),
        (|d| drop(d["layers"][1].as_object_mut().unwrap().remove("annotations")), "of no layer"),
        (
            |d| d["layers"][0]["annotations"]["com.amazon.soci.image-layer-digest"] = "x".into(),
            "invalid digest",
        ),
        (
            |d| d["layers"][0]["annotations"]["com.amazon.soci.span-size"] = "-1".into(),
            "spans of \"-1\" bytes",
        ),
        (
            |d| {
                d["config"]["mediaType"] = "application/vnd.amazon.soci.index.v2+json".into();
            },
            "it has a subject",
        ),
    ];
    for (change, why) in changes {
        let (blob, bytes) = index_document(change);
        let error = SociIndex::parse(&blob, &bytes).unwrap_err().to_string();
        assert!(error.contains(why), "{error}, expected {why}");
    }
    let (blob, mut bytes) = index_document(|_| {});
    bytes[0] = b' ';
    assert!(matches!(SociIndex::parse(&blob, &bytes), Err(Error::DigestMismatch { .. })));
}

#[test]
fn an_index_that_we_write_is_one_of_soci() {
    let blob = |text: &[u8]| Blob { digest: Digest::sha256_of(text), size: text.len() as u64 };
    let ztoc = ZtocRef {
        ztoc: blob(b"ztoc"),
        layer: Digest::sha256_of(b"layer"),
        layer_media_type: Some("application/vnd.oci.image.layer.v1.tar+gzip".into()),
        span_bytes: Some(SPAN_BYTES),
    };
    let subject = Some(Descriptor::new(OCI_MANIFEST, blob(b"image")));
    for (version, subject) in [(Version::V1, subject), (Version::V2, None)] {
        let index = SociIndex { version, subject, ztocs: vec![ztoc.clone()] };
        let bytes = index.to_json("layoutfs tests");
        assert_eq!(SociIndex::parse(&blob(&bytes), &bytes).as_ref(), Ok(&index));
        let manifest = Manifest::parse("index", &bytes).unwrap();
        assert_eq!(manifest.config.blob, blob(CONFIG));
        assert_eq!(manifest.artifact_type, None);
        assert_eq!(manifest.media_type.as_deref(), Some(OCI_MANIFEST));
    }
}

#[test]
fn an_image_names_its_index_in_an_annotation() {
    let digest = Digest::sha256_of(b"index");
    let image = |annotations: &str| {
        let config = format!(r#"{{"mediaType":"c","digest":"{digest}","size":1}}"#);
        let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]{annotations}}}"#);
        Manifest::parse("image", text.as_bytes()).unwrap()
    };
    assert_eq!(index_of(&image("")), Ok(None));
    let named = format!(r#","annotations":{{"com.amazon.soci.index-digest":"{digest}"}}"#);
    assert_eq!(index_of(&image(&named)), Ok(Some(digest)));
    let wrong = r#","annotations":{"com.amazon.soci.index-digest":"latest"}"#;
    assert!(matches!(index_of(&image(wrong)), Err(Error::InvalidDigest(_))));
}
