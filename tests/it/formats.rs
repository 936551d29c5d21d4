//! Layers as foreign tools write them (`tests/fixtures/`), and the bodies of the fuzz targets over
//! their seeds.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use layoutfs::layout::Digest;
use layoutfs::layout::entry::{Entry, EntryKind};
use layoutfs::layout::error::Error;
use layoutfs::layout::index::scan::Scanner;
use layoutfs::layout::index::spans::SpanBuilder;
use layoutfs::layout::index::{Codec, LayerIndex, saved};

#[path = "../../fuzz/bodies.rs"]
mod bodies;

fn files_in(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::fs::read(folder.join(name)).unwrap()
}

fn scan(blob: &[u8], size: usize) -> (LayerIndex, Vec<u8>) {
    let (mut scanner, mut spans, mut tar) = (Scanner::new(), SpanBuilder::default(), Vec::new());
    let mut sink = |bytes: &[u8]| {
        tar.extend_from_slice(bytes);
        Ok::<(), Error>(())
    };
    for piece in blob.chunks(size) {
        scanner.push(piece, &mut sink).unwrap();
        spans.push(piece, scanner.take_starts());
    }
    let layer = scanner.finish(&mut sink).unwrap();
    (layer.into_index(Digest::sha256_of(&tar), spans), tar)
}

/// One line an entry: `OFFSET KIND "PATH" MODE UID:GID SECONDS.NANOS`, then the target, or the
/// size, the chunks (`position+bytes`) and the digest of what is stored; then `name=value` of xattrs.
fn render(entry: &Entry, tar: &[u8]) -> String {
    let quoted = |bytes: &[u8]| format!("\"{}\"", bytes.escape_ascii());
    let (kind, rest) = match &entry.kind {
        EntryKind::Directory => ("dir", String::new()),
        EntryKind::Fifo => ("fifo", String::new()),
        EntryKind::Symlink { target } => ("symlink", format!(" {}", quoted(target))),
        EntryKind::Hardlink { target } => ("hardlink", format!(" {}", quoted(target))),
        EntryKind::CharDevice { major, minor } => ("char", format!(" {major},{minor}")),
        EntryKind::BlockDevice { major, minor } => ("disk", format!(" {major},{minor}")),
        EntryKind::Regular { size, chunks } => {
            let mut rest = format!(" {size}");
            let mut stored = Vec::new();
            for chunk in chunks {
                write!(rest, " {}+{}", chunk.file_offset, chunk.tar.len()).unwrap();
                stored.extend_from_slice(&tar[chunk.tar.start as usize..chunk.tar.end as usize]);
            }
            write!(rest, " {}", Digest::sha256_of(&stored).short()).unwrap();
            ("file", rest)
        }
    };
    let attributes = &entry.attributes;
    let time = format!("{}.{:09}", attributes.mtime.seconds, attributes.mtime.nanos);
    let mut line = format!(
        "{} {kind} {} {:04o} {}:{} {time}{rest}",
        entry.offset,
        quoted(&entry.path),
        attributes.mode,
        attributes.uid,
        attributes.gid
    );
    for (name, value) in &attributes.xattrs {
        write!(line, " {}={}", quoted(name), quoted(value)).unwrap();
    }
    line + "\n"
}

#[test]
fn every_fixture_is_read_as_its_listing_says_in_pieces_of_any_size() {
    let listings: Vec<_> = files_in("tests/fixtures")
        .into_iter()
        .filter(|file| file.extension().is_some_and(|e| e == "entries"))
        .collect();
    assert_eq!(listings.len(), 15);
    for listing in listings {
        let blob = std::fs::read(listing.with_extension("")).unwrap();
        let expected = std::fs::read_to_string(&listing).unwrap();
        for size in [1, 511, 4096, blob.len()] {
            let (layer, tar) = scan(&blob, size);
            let lines: String = layer.entries.iter().map(|entry| render(entry, &tar)).collect();
            assert!(lines == expected, "{} in pieces of {size}:\n{lines}", listing.display());
        }
    }
}

#[test]
fn all_sparse_formats_give_the_same_files() {
    let logical = |name: &str| -> Vec<_> {
        let (layer, tar) = scan(&fixture(name), 4096);
        let render = |mut entry: Entry| {
            (entry.offset, entry.attributes) = Default::default();
            render(&entry, &tar)
        };
        layer.entries.into_iter().map(render).collect()
    };
    let gnu = logical("gnu-sparse.tar");
    for version in ["0.0", "0.1", "1.0"] {
        assert_eq!(logical(&format!("pax-sparse-{version}.tar")), gnu, "{version}");
    }
}

#[test]
fn members_and_frames_hold_the_same_tar() {
    let (gzip, gzip_tar) = scan(&fixture("members.tar.gz"), 100);
    let (zstd, zstd_tar) = scan(&fixture("frames.tar.zst"), 100);
    assert_eq!(gzip_tar, zstd_tar);
    assert_eq!(gzip.entries, zstd.entries);
}

#[test]
fn a_saved_index_is_what_a_scan_finds() {
    let saved_index = fixture("index-v4.layoutindex");
    let (index, _) = scan(&fixture("member.tar.gz"), 4096);
    assert!(index.spans.len() > 1 && !index.windows.is_empty(), "it is entered in its middle");
    let read = saved::decode(&saved_index).unwrap();
    assert_eq!(unpacked(read), unpacked(index));
}

/// The windows, and all else: how tightly they are packed may change from version to version.
fn unpacked(mut index: LayerIndex) -> (Vec<Vec<u8>>, LayerIndex) {
    let windows = index.spans.iter().map(|span| index.window(span).unwrap()).collect();
    for span in &mut index.spans {
        if let Codec::Deflate(point) = &mut span.codec {
            point.window = Default::default();
        }
    }
    index.windows.clear();
    (windows, index)
}

#[test]
fn an_index_of_an_older_version_is_named_as_such() {
    for version in [1, 2, 3] {
        let saved_index = fixture(&format!("index-v{version}.layoutindex"));
        let error = saved::decode(&saved_index).unwrap_err().to_string();
        assert_eq!(error, format!("saved index: written by another version: {version}, this is 4"));
    }
}

#[test]
fn the_fuzz_bodies_hold_for_their_seeds_and_all_fixtures() {
    let bodies: [(&str, bodies::Body); 15] = [
        ("tar", bodies::tar),
        ("scan", bodies::scan),
        ("starts", bodies::starts),
        ("back_references", bodies::back_references),
        ("saved_index", bodies::saved_index),
        ("documents", bodies::documents),
        ("references", bodies::references),
        ("headers", bodies::headers),
        ("finalize", bodies::finalize),
        ("accounts", bodies::accounts),
        ("phases", bodies::phases),
        ("tables", bodies::tables),
        ("table_places", bodies::table_places),
        ("soci", bodies::soci),
        ("traces", bodies::traces),
    ];
    for (target, body) in bodies {
        let seeds = files_in(&format!("fuzz/seeds/{target}"));
        assert!(!seeds.is_empty(), "{target} has no seeds");
        for file in seeds.into_iter().chain(files_in("tests/fixtures")) {
            let bytes = std::fs::read(file).unwrap();
            body(&bytes);
            // Fixtures lack the byte that tells the size of pieces.
            body(&[&[40], bytes.as_slice()].concat());
        }
    }
}
