//! What each fuzz target does with its bytes. Here once, so that the fuzzer (`fuzz_targets/`) and
//! the tests on stable (`tests/it/formats.rs`) do the same.

use layoutfs::fetch::auth::challenge::parse_challenges;
use layoutfs::fetch::auth::config_file::ConfigFile;
use layoutfs::fetch::registry::content_range::parse_content_range;
use layoutfs::layout::accounts::Accounts;
use layoutfs::layout::buildpacks::{Extension, PlatformApi, RunImage};
use layoutfs::layout::entry::Entry;
use layoutfs::layout::error::{Error, Result};
use layoutfs::layout::image_argument::ImageArgument;
use layoutfs::layout::index::scan::Scanner;
use layoutfs::layout::index::spans::SpanBuilder;
use layoutfs::layout::index::{LayerIndex, Proof, check, saved};
use layoutfs::layout::oci::finalize::{self, Configs};
use layoutfs::layout::oci::{self, Descriptor, ImageConfig, ImageIndex, Manifest, Platform};
use layoutfs::layout::reference::Reference;
use layoutfs::layout::shadow::{Judge, SourceKind};
use layoutfs::layout::tar::TarParser;
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
    use layoutfs::layout::index::{Codec, Origin, Span};
    use layoutfs::layout::range::ByteRange;
    let whole = ByteRange::new(0, tar_size);
    let proof = Proof::Stored([0; 32]);
    let span = Span { blob: whole, tar: whole, skip: 0, codec: Codec::Stored, proof };
    let spans = if tar_size == 0 { vec![] } else { vec![span] };
    let (origin, diff_id, windows) = (Origin::OnePass, Digest::sha256_of(b""), Vec::new());
    LayerIndex { origin, diff_id, tar_size, entries, spans, windows }
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
        assert_eq!(span.proof, Proof::Stored(sha256(part)));
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
const SAVED_COUNTS: usize = 8 + 4 + 4 + 64 + 8 + 8 + 6 * 8;

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
    let blob = Blob { digest: Digest::sha256_of(bytes), size: bytes.len() as u64 };
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
        if let Some((range, total)) = parse_content_range(text) {
            assert!(!range.is_empty() && total.is_none_or(|total| range.end <= total));
        }
    }
    if let Ok(file) = ConfigFile::parse(bytes, "fuzzed") {
        let _ = file.places("registry.example", "team/app", "fuzzed");
    }
}
