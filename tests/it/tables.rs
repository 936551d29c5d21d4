//! Layers with tables of contents, as foreign tools write them (`tests/fixtures/`): what the table
//! tells is what a pass over the layer finds.

use std::collections::BTreeMap;
use std::path::Path;

use layoutfs::layout::Digest;
use layoutfs::layout::codec::decode_span;
use layoutfs::layout::entry::{Entry, EntryKind};
use layoutfs::layout::error::Error;
use layoutfs::layout::index::scan::Scanner;
use layoutfs::layout::index::window::unpack;
use layoutfs::layout::index::{Codec, LayerIndex, Origin, Proof, Span, saved};
use layoutfs::layout::toc::{self, Location, Place};

type Annotations = BTreeMap<String, String>;

fn fixture(name: &str) -> (Vec<u8>, Annotations) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let annotations = std::fs::read(format!("{}.annotations", path.display())).unwrap();
    (std::fs::read(path).unwrap(), serde_json::from_slice(&annotations).unwrap())
}

fn located(blob: &[u8], annotations: &Annotations) -> Location {
    let size = blob.len() as u64;
    match toc::locate(annotations, size).unwrap() {
        Place::At(location) => location,
        Place::Footer(tail) => {
            let tail = &blob[tail.start as usize..tail.end as usize];
            toc::locate_in_tail(annotations, size, tail).unwrap().unwrap()
        }
        Place::Nowhere => panic!("no table is announced in {annotations:?}"),
    }
}

fn stored<'a>(blob: &'a [u8], location: &Location) -> &'a [u8] {
    &blob[location.blob.start as usize..location.blob.end as usize]
}

fn index_of(blob: &[u8], annotations: &Annotations) -> Result<LayerIndex, Error> {
    let location = located(blob, annotations);
    toc::parse(&location, stored(blob, &location), Digest::sha256_of(b"diff"))
}

/// Entries and uncompressed bytes.
fn scanned(blob: &[u8]) -> (Vec<Entry>, Vec<u8>) {
    let (mut scanner, mut tar) = (Scanner::new(), Vec::new());
    let mut sink = |bytes: &[u8]| {
        tar.extend_from_slice(bytes);
        Ok::<(), Error>(())
    };
    scanner.push(blob, &mut sink).unwrap();
    let layer = scanner.finish(&mut sink).unwrap();
    (layer.entries, tar)
}

/// What one span decodes to, proved.
fn proved(index: &LayerIndex, span: &Span, blob: &[u8]) -> Vec<u8> {
    let bytes = &blob[span.blob.start as usize..span.blob.end as usize];
    let window = match span.codec {
        Codec::Deflate(point) => {
            let packed = &index.windows[point.window.start as usize..point.window.end as usize];
            unpack(packed).unwrap()
        }
        _ => vec![],
    };
    let content = decode_span(span, &window, bytes).unwrap();
    match &span.proof {
        Proof::Decoded(sha256) => assert_eq!(Digest::sha256_of(&content), Digest::Sha256(*sha256)),
        Proof::Stored(segments) => assert_eq!(segments.verify(0..segments.count(), bytes), Ok(())),
    }
    content
}

/// An entry without where it lies, and its content.
fn shown(mut entry: Entry, tar: &[u8]) -> (Entry, Vec<u8>) {
    entry.offset = 0;
    let mut content = Vec::new();
    if let EntryKind::Regular { size, chunks } = &mut entry.kind {
        content.resize(*size as usize, 0);
        for chunk in std::mem::take(chunks) {
            let bytes = &tar[chunk.tar.start as usize..chunk.tar.end as usize];
            content[chunk.file_offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }
    (entry, content)
}

/// What writers lose on the way into their tables.
#[derive(Clone, Copy, PartialEq)]
enum Loses {
    Nothing,
    /// Fractions of seconds are rounded.
    Fractions,
    EmptyXattrs,
}

impl Loses {
    fn apply(self, entry: &mut Entry) {
        let attributes = &mut entry.attributes;
        match self {
            Loses::Nothing => {}
            Loses::Fractions => {
                attributes.mtime.seconds += i64::from(attributes.mtime.nanos >= 500_000_000);
                attributes.mtime.nanos = 0;
            }
            Loses::EmptyXattrs => attributes.xattrs.retain(|(_, value)| !value.is_empty()),
        }
    }
}

/// The fixtures, and how many of their members a table changes.
const FIXTURES: [(&str, Origin, Loses, usize); 6] = [
    ("estargz.tar.gz", Origin::EStargz, Loses::Fractions, 2),
    ("estargz-inner.tar.gz", Origin::EStargz, Loses::Fractions, 2),
    ("estargz-kept.tar.gz", Origin::EStargz, Loses::Fractions, 2),
    ("zstd-chunked.tar.zst", Origin::ZstdChunked, Loses::Nothing, 0),
    ("zstd-chunked-skopeo.tar.zst", Origin::ZstdChunked, Loses::EmptyXattrs, 1),
    ("zstd-chunked-nerdctl.tar.zst", Origin::ZstdChunked, Loses::Fractions, 2),
];

#[test]
fn a_table_tells_what_a_pass_finds_and_every_chunk_is_proved() {
    for (name, origin, loses, changed) in FIXTURES {
        let (blob, annotations) = fixture(name);
        let index = index_of(&blob, &annotations).unwrap();
        assert_eq!(index.origin, origin, "{name}");
        let tar: Vec<u8> = index.spans.iter().flat_map(|s| proved(&index, s, &blob)).collect();
        assert_eq!(tar.len() as u64, index.tar_size, "{name}");

        let (entries, layer_tar) = scanned(&blob);
        let told: Vec<_> = index.entries.iter().map(|e| shown(e.clone(), &tar)).collect();
        let mut found: Vec<_> = entries.into_iter().map(|e| shown(e, &layer_tar)).collect();
        let lost = |at: usize| told[at] != found[at];
        assert_eq!(told.len(), found.len(), "{name}");
        assert_eq!((0..told.len()).filter(|at| lost(*at)).count(), changed, "{name}");
        found.iter_mut().for_each(|(entry, _)| loses.apply(entry));
        for (told, found) in told.iter().zip(&found) {
            assert!(told == found, "{name}:\n{told:?}\n{found:?}");
        }
    }
}

#[test]
fn the_table_itself_is_shown_where_a_pass_shows_it() {
    let shows = |name: &str| {
        let (blob, annotations) = fixture(name);
        let index = index_of(&blob, &annotations).unwrap();
        index.entries.iter().any(|entry| entry.path == b"stargz.index.json")
    };
    assert!(shows("estargz.tar.gz"));
    assert!(shows("estargz-inner.tar.gz"));
    assert!(!shows("estargz-kept.tar.gz"));
    assert!(!shows("zstd-chunked-nerdctl.tar.zst"));
}

#[test]
fn the_manifest_says_by_which_digest_a_table_is_proved() {
    for (name, ..) in FIXTURES {
        let (blob, annotations) = fixture(name);
        let named = located(&blob, &annotations).digest().unwrap().to_string();
        assert!(annotations.values().any(|value| *value == named), "{name}");
        // Without annotations the footer leads to the same table, which then nothing proves.
        let tail = &blob[blob.len().saturating_sub(toc::TAIL_BYTES as usize)..];
        let size = blob.len() as u64;
        let found = toc::locate_in_tail(&Annotations::new(), size, tail).unwrap().unwrap();
        assert_eq!((found.digest(), found.blob), (None, located(&blob, &annotations).blob));
        assert_eq!(toc::locate(&Annotations::new(), size), Ok(Place::Nowhere));
        let diff_id = Digest::sha256_of(b"diff");
        let index = toc::parse(&found, stored(&blob, &found), diff_id);
        assert_eq!(index, index_of(&blob, &annotations), "{name}");
    }
}

#[test]
fn a_byte_that_changed_in_a_table_is_refused() {
    for (name, ..) in FIXTURES {
        let (mut blob, annotations) = fixture(name);
        let location = located(&blob, &annotations);
        // Not at the edges: gzip's header and trailer mean nothing.
        let at = (location.blob.start + location.blob.end) as usize / 2;
        blob[at] ^= 1;
        let error = index_of(&blob, &annotations).unwrap_err();
        assert!(matches!(error, Error::ForeignIndex { .. }), "{name}: {error}");
        let cut = &stored(&blob, &location)[1..];
        assert!(toc::parse(&location, cut, Digest::sha256_of(b"diff")).is_err(), "{name}");
    }
}

#[test]
fn a_name_that_json_could_not_say_is_refused() {
    for name in ["estargz-bytes.tar.gz", "zstd-chunked-bytes.tar.zst"] {
        let (blob, annotations) = fixture(name);
        let error = index_of(&blob, &annotations).unwrap_err().to_string();
        assert!(error.contains("may be a name that is not UTF-8"), "{name}: {error}");
        assert_eq!(scanned(&blob).0.iter().filter(|e| e.path == b"latin-\xe9").count(), 1);
    }
}

#[test]
fn zeros_are_holes_and_files_in_one_piece_are_one_chunk() {
    let (blob, annotations) = fixture("zstd-chunked.tar.zst");
    let index = index_of(&blob, &annotations).unwrap();
    let chunks = |path: &[u8]| {
        let entry = index.entries.iter().find(|entry| entry.path == path).unwrap();
        let EntryKind::Regular { chunks, .. } = &entry.kind else { panic!("{entry:?}") };
        chunks.iter().map(|c| (c.file_offset, c.tar.len())).collect::<Vec<_>>()
    };
    assert_eq!(chunks(b"holes"), [(0, 1500), (10_500, 1200)]);
    assert_eq!(chunks(b"zeros"), [(0, 5000)]);
    assert_eq!(chunks(b"bin/exact"), [(0, 8192)]);
}

#[test]
fn an_index_from_a_table_survives_being_saved() {
    for (name, ..) in FIXTURES {
        let (blob, annotations) = fixture(name);
        let index = index_of(&blob, &annotations).unwrap();
        let saved = saved::encode(&index).unwrap();
        assert_eq!(saved::decode(&saved), Ok(index), "{name}");
    }
}
