//! What each fuzz target does with its bytes. Here once, so that the fuzzer (`fuzz_targets/`) and
//! the tests on stable (`tests/it/formats.rs`) do the same.

use std::collections::BTreeMap;

use layoutfs::fetch::auth::challenge::parse_challenges;
use layoutfs::fetch::auth::config_file::ConfigFile;
use layoutfs::fetch::registry::content_range::parse_content_range;
use layoutfs::fetch::registry::link::next_page;
use layoutfs::layout::accounts::Accounts;
use layoutfs::layout::buildpacks::{Extension, PlatformApi, RunImage};
use layoutfs::layout::codec::inflate::WINDOW_BYTES_MAX;
use layoutfs::layout::codec::{Decoded, Decoder, SpanDecoder, Start, Within};
use layoutfs::layout::entry::Entry;
use layoutfs::layout::error::{Error, Result};
use layoutfs::layout::image_argument::ImageArgument;
use layoutfs::layout::index::scan::Scanner;
use layoutfs::layout::index::spans::SpanBuilder;
use layoutfs::layout::index::window::Tracer;
use layoutfs::layout::index::{
    Codec, LayerIndex, Origin, Point, Proof, Segments, Span, check, is_seekable, saved,
};
use layoutfs::layout::oci::finalize::{self, Configs};
use layoutfs::layout::oci::referrer::{self, IndexArtifact};
use layoutfs::layout::oci::trace_artifact::TraceArtifact;
use layoutfs::layout::oci::{self, Descriptor, ImageConfig, ImageIndex, Manifest, Platform};
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::reference::Reference;
use layoutfs::layout::shadow::{Judge, SourceKind};
use layoutfs::layout::soci::manifest::SociIndex;
use layoutfs::layout::soci::parse_ztoc;
use layoutfs::layout::tar::TarParser;
use layoutfs::layout::toc::{self, Place};
use layoutfs::layout::trace::{Needed, Trace};
use layoutfs::layout::tree::Builder;
use layoutfs::layout::{Blob, Digest, codec};

/// A target's body.
pub type Body = fn(&[u8]);

/// Uncompressed bytes after which a scan is given up: bombs would only keep the fuzzer waiting.
const SCAN_BYTES_MAX: u64 = 4 << 20;

/// Splits the input: the first byte says into which pieces the rest is cut.
fn split(bytes: &[u8]) -> (usize, &[u8]) {
    match bytes.split_first() {
        Some((first, rest)) => (1 + usize::from(*first) * 3, rest),
        None => (1, bytes),
    }
}

/// Entries do not depend on how the archive arrives, and keep the rules of an index. Checksums are
/// made right for a second try: a fuzzer would hardly ever change a header otherwise.
pub fn tar(bytes: &[u8]) {
    let (size, archive) = split(bytes);
    read_tar(size, archive);
    let mut sealed = archive.to_vec();
    let headers = sealed.chunks_exact_mut(512).filter(|record| record[257..].starts_with(b"ustar"));
    for header in headers {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    read_tar(size, &sealed);
}

fn read_tar(size: usize, archive: &[u8]) {
    let pieces = parse(archive.chunks(size));
    assert_eq!(pieces, parse([archive].into_iter()));
    let Ok(entries) = pieces else { return };
    let index = index_of(entries, archive.len() as u64);
    // Content that is not there makes a missing end, which `finish` has refused.
    assert_eq!(check(&index), Ok(()));
}

fn parse<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Vec<Entry>> {
    let (mut parser, mut entries) = (TarParser::new(), Vec::new());
    for piece in pieces {
        parser.push(piece, &mut entries)?;
    }
    parser.finish().map(|()| entries)
}

fn index_of(entries: Vec<Entry>, tar_size: u64) -> LayerIndex {
    let whole = ByteRange::new(0, tar_size);
    let proof = Proof::Stored(Segments::One([0; 32]));
    let span = Span { blob: whole, tar: whole, skip: 0, codec: Codec::Stored, proof };
    let spans = if tar_size == 0 { vec![] } else { vec![span] };
    let (origin, diff_id, windows) = (Origin::OnePass, Digest::sha256_of(b""), Vec::new());
    LayerIndex { origin, artifact: None, diff_id, tar_size, entries, spans, windows }
}

/// A layer does not depend on how its blob arrives; its spans decode alone to the same bytes; its
/// index survives being saved.
pub fn scan(bytes: &[u8]) {
    let (size, blob) = split(bytes);
    let whole = scan_pieces([blob].into_iter());
    let pieces = scan_pieces(blob.chunks(size));
    assert_eq!(whole.is_ok(), pieces.is_ok(), "{:?} {:?}", whole.err(), pieces.err());
    let Ok((index, tar)) = whole else { return };
    assert_eq!(pieces.as_ref(), Ok(&(index.clone(), tar.clone())));
    for span in &index.spans {
        let part = &blob[span.blob.start as usize..span.blob.end as usize];
        let content = &tar[span.tar.start as usize..span.tar.end as usize];
        let window = index.window(span).expect("windows of ours");
        assert_eq!(codec::decode_span(span, &window, part).as_deref(), Ok(content));
        assert_eq!(span.proof, Proof::Stored(Segments::of(blob, span.blob)));
    }
    let saved = saved::encode(&index).expect("a scanned layer keeps the rules");
    assert_eq!(saved::decode(&saved), Ok(index));
}

fn scan_pieces<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<(LayerIndex, Vec<u8>)> {
    let (mut scanner, mut spans, mut tar) = (Scanner::new(), SpanBuilder::default(), Vec::new());
    let mut sink = |bytes: &[u8]| {
        if (tar.len() + bytes.len()) as u64 > SCAN_BYTES_MAX {
            return Err(Error::Limit { what: "fuzzed layer".into(), limit: SCAN_BYTES_MAX });
        }
        tar.extend_from_slice(bytes);
        Ok(())
    };
    for piece in pieces {
        scanner.push(piece, &mut sink)?;
        spans.push(piece, scanner.take_starts());
    }
    let layer = scanner.finish(&mut sink)?;
    Ok((layer.into_index(Digest::sha256_of(&tar), spans), tar))
}

/// A blob is entered wherever a decoder says that it can be, with as much of the window as is
/// referred to, and gives the same bytes; and it says so wherever pieces end.
pub fn starts(bytes: &[u8]) {
    let (size, blob) = split(bytes);
    let spacing = size as u64;
    let Ok((starts, content)) = decode_starts([blob].into_iter(), spacing) else {
        assert!(decode_starts(blob.chunks(size), spacing).is_err());
        return;
    };
    let pieces = decode_starts(blob.chunks(size), spacing).expect("one piece was decoded");
    assert_eq!(pieces, (starts.clone(), content.clone()));
    let mut tracer = Tracer::default();
    for start in starts.into_iter().filter(|start| start.tar < content.len() as u64) {
        let behind = &blob[start.blob as usize..];
        let (codec, window) = match start.within {
            None => (codec::detect(blob), Vec::new()),
            Some(Within { bits, window }) => {
                let point = Point { bits, window: ByteRange::new(0, 0) };
                (Codec::Deflate(point), tracer.sparse(window, bits, behind))
            }
        };
        let tar = ByteRange::new(start.tar, content.len() as u64);
        let (blob, proof) =
            (ByteRange::new(start.blob, blob.len() as u64), Proof::Stored(Segments::One([0; 32])));
        let span = Span { blob, tar, skip: 0, codec, proof };
        let decoded = codec::decode_span(&span, &window, behind);
        assert_eq!(decoded.as_deref(), Ok(&content[start.tar as usize..]));
    }
}

/// Any bytes behind a window (the first one says how long it is, and how many bits of the next one are
/// to be read) decode to the same with as much of the window as they are said to refer to.
pub fn back_references(bytes: &[u8]) {
    let Some((first, behind)) = bytes.split_first() else { return };
    let (bits, cut) = (first & 7, usize::from(first >> 3) * 1057);
    // No byte of it is zero, as those are that nothing refers to.
    let byte = |at: usize| 1 + ((at * at * 2_654_435_761) >> 13) % 255;
    let window: Vec<u8> = (cut..WINDOW_BYTES_MAX).map(|at| byte(at) as u8).collect();
    let sparse = Tracer::default().sparse(window.clone(), bits, behind);
    assert!(sparse.iter().zip(&window).all(|(byte, whole)| *byte == 0 || byte == whole));
    assert!(decode_behind(&sparse, bits, behind) == decode_behind(&window, bits, behind));
}

/// As much as can be decoded, up to what a window can matter for.
fn decode_behind(window: &[u8], bits: u8, behind: &[u8]) -> Vec<u8> {
    let point = Point { bits, window: ByteRange::new(0, 0) };
    let tar = ByteRange::new(0, WINDOW_BYTES_MAX as u64);
    let proof = Proof::Stored(Segments::One([0; 32]));
    let span = Span { blob: tar, tar, skip: 0, codec: Codec::Deflate(point), proof };
    let Ok(mut decoder) = SpanDecoder::new(&span, window, behind.first().copied()) else {
        return Vec::new();
    };
    // Step by step: what is decoded in a step that fails is not told.
    for upto in (1..=tar.end).step_by(97).chain([tar.end]) {
        let rest = &behind[decoder.used().min(behind.len())..];
        if decoder.reach(rest, upto) != Ok(true) {
            break;
        }
    }
    decoder.into_decoded()
}

fn decode_starts<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    spacing: u64,
) -> Result<(Vec<Start>, Vec<u8>)> {
    let (mut starts, mut content) = (Vec::new(), Vec::new());
    let mut decoder = Decoder::with_starts(spacing);
    let mut sink = |decoded: Decoded<'_>| {
        match decoded {
            Decoded::Start(start) => starts.push(start),
            Decoded::Bytes(bytes) => content.extend_from_slice(bytes),
        }
        // Starts hold windows: their number is bounded, too.
        if starts.len() > 64 || content.len() as u64 > SCAN_BYTES_MAX {
            return Err(Error::Limit { what: "fuzzed blob".into(), limit: SCAN_BYTES_MAX });
        }
        Ok(())
    };
    for piece in pieces {
        decoder.push(piece, &mut sink)?;
    }
    decoder.finish(&mut sink)?;
    Ok((starts, content))
}

/// A saved index is refused, or it keeps the rules and survives being saved again. What a fuzzer
/// would never get past is done for it: the checksum is made right, and tables are compressed.
pub fn saved_index(bytes: &[u8]) {
    let seal = |body: &[u8]| [body, &sha256(body)].concat();
    let sealed = bytes.len().checked_sub(32).map(|body| seal(&bytes[..body]));
    let packed = bytes.split_at_checked(SAVED_COUNTS).map(|(head, plain)| {
        let tables = zstd::bulk::compress(plain, 1).expect("it compresses");
        let sizes = [tables.len() as u64, 0].map(u64::to_le_bytes).concat();
        seal(&[head, &sizes, &tables].concat())
    });
    for bytes in [Some(bytes.to_vec()), sealed, packed].into_iter().flatten() {
        let Ok(index) = saved::decode(&bytes) else { continue };
        assert_eq!(check(&index), Ok(()));
        let again = saved::encode(&index).expect("a decoded index keeps the rules");
        assert_eq!(saved::decode(&again), Ok(index));
    }
}

/// Where the counts of a saved index end, and the sizes of its tables and windows follow.
const SAVED_COUNTS: usize = 8 + 4 + 4 + 64 + 8 + 8 + 8 * 8;

fn sha256(bytes: &[u8]) -> [u8; 32] {
    match Digest::sha256_of(bytes) {
        Digest::Sha256(sha256) => sha256,
        Digest::Sha512(_) => unreachable!("sha256_of gives a sha256"),
    }
}

/// A document is refused, or what it refers to can be chosen from without a panic; and it is never
/// both an index and a manifest.
pub fn documents(bytes: &[u8]) {
    let _ = oci::parse_oci_layout(bytes);
    let index = ImageIndex::parse("index", bytes);
    let manifest = Manifest::parse("manifest", bytes);
    assert!(index.is_err() || manifest.is_err());
    if let Ok(index) = index {
        let platform = Platform::new("linux", "arm64", Some("v8"));
        let _ = oci::choose_platform(&index.manifests, &platform);
        let _ = oci::choose_image(&index, None, &platform);
        for descriptor in &index.manifests {
            let Some(name) = descriptor.ref_name() else { continue };
            let chosen = oci::choose_image(&index, Some(name), &platform);
            assert!(chosen.is_ok_and(|c| index.manifests.contains(c)) || index.manifests.len() > 1);
        }
    }
    if let Ok(artifact) = IndexArtifact::parse("artifact", bytes)
        && let Ok(again) = artifact.to_bytes()
    {
        let again = IndexArtifact::parse("artifact", &again).expect("what we write is read");
        assert_eq!(again.layers, artifact.layers);
    }
    if let Ok(artifact) = TraceArtifact::parse("artifact", bytes) {
        let again = TraceArtifact::parse("artifact", &artifact.to_bytes());
        let again = again.expect("what we write is read");
        assert_eq!((again.used_for, again.trace), (artifact.used_for, artifact.trace));
    }
    let blob = Blob { digest: Digest::sha256_of(bytes), size: bytes.len() as u64 };
    let entry = Descriptor::new(oci::OCI_MANIFEST, blob);
    if let Ok(Some(list)) = referrer::add_to_list("list", Some(bytes), &entry) {
        assert_eq!(referrer::add_to_list("list", Some(&list), &entry), Ok(None));
    }
    let config = ImageConfig::parse(&Descriptor::new(oci::OCI_CONFIG, blob), bytes);
    if let (Ok(manifest), Ok(config)) = (manifest, config) {
        let _ = oci::rootfs_layers(&manifest, &config);
    }
}

/// Three configurations, a line each (base, extended, exported), are refused or merged; merging them
/// again changes nothing. The same with the settings alone: a fuzzer would hardly ever get past the
/// layers.
pub fn finalize(bytes: &[u8]) {
    let mut lines = bytes.splitn(3, |byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let configs = [line(), line(), line()];
    finalize_twice(configs.map(<[u8]>::to_vec));
    let around = |settings: &[u8]| {
        [&br#"{"rootfs":{"diff_ids":["b"]},"config":"#[..], settings, b"}"].concat()
    };
    finalize_twice(configs.map(around));
}

fn finalize_twice([base, extended, exported]: [Vec<u8>; 3]) {
    let run = |exported: &[u8]| {
        let configs = Configs { base: &base, extended: &extended, exported };
        finalize::finalize(configs, "/layout-repo/run@sha256:d")
    };
    let Ok(Some(done)) = run(&exported) else { return };
    assert_eq!(run(&done.config), Ok(None));
}

/// A name is refused, or it means the same when it is written and read again; and so does its path.
pub fn references(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = ImageArgument::parse(text, |directory| directory.len() % 2 == 0);
    let _ = text.parse::<Platform>();
    let Ok(reference) = text.parse::<Reference>() else { return };
    assert_eq!(reference.to_string().parse(), Ok(reference.clone()));
    let path = reference.layout_path();
    assert!(!path.split('/').any(|part| matches!(part, "" | "." | "..")), "{path}");
    // A repository of this name with a digest for its tag has the path of another image's digest.
    let last = reference.repository().rsplit('/').next();
    let is_ambiguous = matches!(last, Some("sha256" | "sha512"));
    if reference.checked_layout_path().is_ok() && !is_ambiguous {
        let back = Reference::from_layout_path(&path).expect("a path that we made");
        assert_eq!(back.repository(), reference.repository());
    }
}

/// A user, a line of an account file and a line of a group file are resolved or refused; a number
/// is always itself.
pub fn accounts(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let user = String::from_utf8_lossy(part()).into_owned();
    let accounts = Accounts { passwd: part().to_vec(), group: part().to_vec() };
    if let (Ok(found), Ok(uid)) = (accounts.resolve(&user), user.parse::<u32>()) {
        assert_eq!(found.uid, uid);
    }
}

/// What the lifecycle's phases and extensions wrote is read or refused: no path leads out, and
/// whatever is said of a Dockerfile is said of a line that it has.
pub fn phases(bytes: &[u8]) {
    if let Ok(Some(run_image)) = RunImage::parse_analyzed(bytes) {
        for mounted_at in [None, Some("/layout-repo"), Some("")] {
            for path in run_image.layout_paths(mounted_at) {
                assert!(path.split('/').all(|n| !matches!(n, "" | "." | "..")), "{path}");
            }
            let _ = run_image.image_name(mounted_at);
        }
    }
    let api = PlatformApi::FIRST;
    for extension in Extension::parse_group(bytes).unwrap_or_default() {
        assert!(!extension.dockerfile(api).split('/').any(|name| name == ".."));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let tree = Builder::new(Vec::new()).finish();
    let shadowed = ["usr", "opt"].map(str::to_owned).into();
    let mut judge = Judge::new(&tree, &shadowed, None);
    let kind = |path: &str| match path.len() % 3 {
        0 => SourceKind::File,
        1 => SourceKind::Archive,
        _ => SourceKind::Other,
    };
    if judge.read("x", text, kind).is_ok() {
        for objection in judge.objections() {
            let line = objection.at.strip_prefix("x:").and_then(|line| line.parse().ok());
            let lines = text.bytes().filter(|byte| *byte == b'\n').count() + 1;
            assert!(line.is_some_and(|line: usize| (1..=lines).contains(&line)), "{objection:?}");
        }
    }
}

/// Headers and credential files of strangers are read or refused.
pub fn headers(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        for challenge in parse_challenges(text) {
            let _ = challenge.parameter("realm");
        }
        assert!(next_page(text).is_none_or(|page| text.contains(page)));
        if let Some((range, total)) = parse_content_range(text) {
            assert!(!range.is_empty() && total.is_none_or(|total| range.end <= total));
        }
    }
    if let Ok(file) = ConfigFile::parse(bytes, "fuzzed") {
        let _ = file.places("registry.example", "team/app", "fuzzed");
    }
}

/// A document, as eStargz and zstd:chunked store it, is refused, or its index keeps the rules.
pub fn tables(bytes: &[u8]) {
    let payload: u64 = 1 << 20;
    let stored = in_gzip(&in_tar("stargz.index.json", bytes));
    let extra = format!("SG\x16\0{payload:016x}STARGZ");
    let header = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0";
    let end = [&stored, &header[..], extra.as_bytes(), &[0; 13]].concat();
    let tail = &end[end.len().saturating_sub(toc::TAIL_BYTES as usize)..];
    let found = toc::locate_in_tail(&BTreeMap::new(), payload + end.len() as u64, tail);
    let location = found.expect("the footer is right").expect("there is a footer");
    table(&location, &stored, payload + stored.len() as u64);

    let stored = in_zstd(bytes);
    let position = format!("{payload}:{}:{}:1", stored.len(), bytes.len());
    let key = "io.github.containers.zstd-chunked.manifest-position".to_owned();
    let blob_size = payload + stored.len() as u64;
    match toc::locate(&BTreeMap::from([(key, position)]), blob_size) {
        Ok(Place::At(location)) => table(&location, &stored, blob_size),
        place => panic!("{place:?} for a position that is right"),
    }
}

fn table(location: &toc::Location, stored: &[u8], blob_size: u64) {
    let Ok(index) = toc::parse(location, stored, Digest::sha256_of(b"")) else { return };
    assert_eq!(check(&index), Ok(()));
    assert!(is_seekable(&index.spans));
    assert!(index.spans.iter().all(|span| span.blob.end <= blob_size));
    let saved = saved::encode(&index).expect("a table's index keeps the rules");
    assert_eq!(saved::decode(&saved), Ok(index));
}

/// Annotations (`key value` lines up to an empty one) and a blob behind them: a table that is found
/// lies inside the blob, and can be tried.
pub fn table_places(bytes: &[u8]) {
    let at = bytes.windows(2).position(|two| two == b"\n\n");
    let (head, blob) = at.map_or((&b""[..], bytes), |at| (&bytes[..at], &bytes[at + 2..]));
    let lines = std::str::from_utf8(head).unwrap_or_default().lines();
    let pairs = lines.filter_map(|line| line.split_once(' '));
    let annotations = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let size = blob.len() as u64;
    let tail = &blob[blob.len().saturating_sub(toc::TAIL_BYTES as usize)..];
    let announced = match toc::locate(&annotations, size) {
        Ok(Place::At(location)) => Some(location),
        _ => None,
    };
    let found = toc::locate_in_tail(&annotations, size, tail).ok().flatten();
    for location in announced.into_iter().chain(found) {
        let range = location.blob;
        assert!(!range.is_empty() && range.end <= size);
        table(&location, &blob[range.start as usize..range.end as usize], size);
    }
}

/// One member and the end of the archive.
fn in_tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    [&header, content, &vec![0; content.len().next_multiple_of(512) - content.len() + 1024]]
        .concat()
}

/// A gzip member of stored pieces; nobody looks at its checksum.
fn in_gzip(content: &[u8]) -> Vec<u8> {
    let mut member = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    for piece in content.chunks(0xffff) {
        let len = piece.len() as u16;
        member.push(0);
        member.extend(len.to_le_bytes().into_iter().chain((!len).to_le_bytes()));
        member.extend_from_slice(piece);
    }
    member.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    member
}

/// A zstd frame of raw pieces, with a window of 4 MiB.
fn in_zstd(content: &[u8]) -> Vec<u8> {
    let mut frame = b"\x28\xb5\x2f\xfd\x00\x60".to_vec();
    for piece in content.chunks(128 << 10) {
        frame.extend(&(piece.len() as u32 * 8).to_le_bytes()[..3]);
        frame.extend_from_slice(piece);
    }
    frame.extend([1, 0, 0]);
    frame
}

/// A zTOC behind the size of its layer's blob (four bytes) is refused, or it keeps the rules of an
/// index, and its windows can be used. A SOCI index is refused, or survives being written again.
pub fn soci(bytes: &[u8]) {
    if let Some((size, ztoc)) = bytes.split_first_chunk() {
        let size = u64::from(u32::from_le_bytes(*size));
        if let Ok(index) = parse_ztoc(ztoc, size, Digest::sha256_of(b"")) {
            assert_eq!(check(&index), Ok(()));
            assert!(index.spans.iter().all(|span| index.window(span).is_ok()));
            assert!(index.spans.iter().all(|span| span.blob.end <= size));
        }
    }
    let blob = |bytes: &[u8]| Blob { digest: Digest::sha256_of(bytes), size: bytes.len() as u64 };
    let Ok(index) = SociIndex::parse(&blob(bytes), bytes) else { return };
    let again = index.to_json("fuzzed");
    let ztocs = SociIndex::parse(&blob(&again), &again).map(|again| again.ztocs);
    assert_eq!(ztocs, Ok(index.ztocs));
}

/// A trace is refused, or keeps to what is said of one and survives being written again.
pub fn traces(bytes: &[u8]) {
    let Ok(trace) = Trace::parse(bytes) else { return };
    let is_sound = |n: &Needed| n.layer < trace.layers.len() && !n.range.is_empty();
    assert!(trace.needed.iter().all(is_sound));
    assert_eq!(Trace::parse(trace.encode().as_bytes()).as_ref(), Ok(&trace));
}
