//! What the writers of eStargz layers have marked for a start comes ahead of it: by one request for
//! each layer, no byte twice, and each file as soon as it is here.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use layoutfs::layout::Digest;
use layoutfs::layout::range::ByteRange;
use serde_json::{Value, json};

use crate::own_tables::{fixture, sparse, tar_of};
use crate::support::faults::{Action, Fault};
use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, Member, generated, header};
use crate::support::mount::{Mount, Room};
use crate::support::registry::Registry;
use crate::traces::{status, until_prefetched};
use crate::writers::{asked, once};

const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
const PREFETCH: &str = ".prefetch.landmark";
const NO_PREFETCH: &str = ".no.prefetch.landmark";

/// More than the end of a blob that is read for the table.
const FILE_BYTES: usize = 300_000;

/// An eStargz layer, and where in its blob each file's span begins.
struct Stargz {
    blob: Vec<u8>,
    toc: Digest,
    starts: Vec<u64>,
}

/// As stargz-snapshotter writes it: a gzip member for the headers in front of a content, one for the
/// content and its padding.
fn stargz(files: &[(String, Bytes)]) -> Stargz {
    let (mut blob, mut starts, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    for (name, content) in files {
        let member = Member { mtime: 0, ..Member::file(name, 0o644, content.clone()) };
        blob.extend(Compression::Gzip.compress(&header(&member)));
        starts.push(blob.len() as u64);
        let digest = Digest::sha256_of(content).to_string();
        entries.push(json!({
            "name": name, "type": "reg", "mode": 0o644, "size": content.len(),
            "offset": blob.len(), "digest": digest, "chunkDigest": digest,
        }));
        let padded = content.len().next_multiple_of(512);
        blob.extend(
            Compression::Gzip.compress(&[content, &vec![0; padded - content.len()][..]].concat()),
        );
    }
    let table = json!({"version": 1, "entries": entries}).to_string();
    let member = Member { mtime: 0, ..Member::file("stargz.index.json", 0, table.clone()) };
    let at = format!("{:016x}", blob.len());
    blob.extend(Compression::Gzip.compress(&LayerBuilder::new().member(member).tar()));
    let (estargz, _) = fixture("estargz.tar.gz");
    let footer = &estargz[estargz.len() - 51..];
    blob.extend([&footer[..16], at.as_bytes(), &footer[32..]].concat());
    Stargz { blob, toc: Digest::sha256_of(table.as_bytes()), starts }
}

fn content_of(name: &str) -> Bytes {
    match name {
        PREFETCH | NO_PREFETCH => Bytes::from_static(b"\x0f"),
        _ => generated(name, FILE_BYTES),
    }
}

/// An image whose layers have these files, in this order.
struct Marked {
    registry: Registry,
    image: Image,
    layers: Vec<Stargz>,
    room: Arc<Room>,
    layout: String,
}

impl Marked {
    fn new(layers: &[&[&str]]) -> Self {
        let files_of = |names: &&[&str]| -> Vec<(String, Bytes)> {
            names.iter().map(|name| (name.to_string(), content_of(name))).collect()
        };
        let layers: Vec<Stargz> = layers.iter().map(|names| stargz(&files_of(names))).collect();
        let mut image = ImageBuilder::new();
        for Stargz { blob, toc, .. } in &layers {
            image = image
                .layer_of_blob(&tar_of(blob), blob.clone(), Compression::Gzip)
                .annotate_layer(TOC_DIGEST, &toc.to_string());
        }
        let (registry, image) = (Registry::start(), image.build());
        let (room, layout) = sparse(&registry, &image, "v1");
        Marked { registry, image, layers, room, layout }
    }

    fn mount(&self, options: &[&str]) -> Mount {
        self.room.mount(&self.layout, options)
    }

    /// What was asked of a layer, but for the end with the table; no byte of it twice.
    #[track_caller]
    fn asked(&self, layer: usize) -> Vec<ByteRange> {
        let digest = &self.image.layers[layer].digest;
        let table = self.layers[layer].blob.len() as u64 - (128 << 10);
        let asked = asked(&self.registry, digest);
        assert_eq!(asked[0].start, table, "the end is read first");
        once(&asked[1..]);
        asked[1..].to_vec()
    }

    /// From one file's content to that of another.
    fn range(&self, layer: usize, from: usize, to: usize) -> ByteRange {
        ByteRange::new(self.layers[layer].starts[from], self.layers[layer].starts[to])
    }

    fn fault(&self, layer: usize, action: Action) {
        // Behind the request for the table.
        let fault = Fault::new(action).blob(&self.image.layers[layer].digest).after(1);
        self.registry.inject(fault);
    }
}

fn read(mount: &Mount, name: &str) -> bool {
    std::fs::read(mount.path().join(name)).expect("it is read") == content_of(name)
}

fn bytes(prefetch: &Value, name: &str) -> u64 {
    prefetch[name].as_u64().expect("a number")
}

#[test]
fn what_is_in_front_of_landmarks_comes_by_one_request_a_layer() {
    let layers: [&[&str]; 2] =
        [&["a", "b", "c", PREFETCH, "d", "e", "f"], &["g", "h", PREFETCH, "i", "j", "k"]];
    let marked = Marked::new(&layers);
    let mount = marked.mount(&[]);
    let prefetch = until_prefetched(&mount);
    let early = [marked.range(0, 0, 3), marked.range(1, 0, 2)];
    let len = early.iter().map(ByteRange::len).sum::<u64>();
    assert_eq!((bytes(&prefetch, "bytes_wanted"), bytes(&prefetch, "bytes_done")), (len, len));
    assert_eq!(bytes(&prefetch, "errors"), 0, "{prefetch}");
    for (layer, early) in early.into_iter().enumerate() {
        assert_eq!(marked.asked(layer), [early]);
    }
    assert!(["h", "c", "a", "g", "b"].iter().all(|name| read(&mount, name)));
    assert_eq!([marked.asked(0).len(), marked.asked(1).len()], [1, 1], "nothing is asked again");
    assert!(read(&mount, "e") && read(&mount, "i"));
    assert_eq!(marked.asked(0), [early[0], marked.range(0, 5, 6)]);
    assert_eq!(marked.asked(1), [early[1], marked.range(1, 3, 4)]);
    mount.unmount();
    // What is here is not fetched for the next mount, which has nothing to tell.
    marked.registry.clear();
    let again = marked.mount(&[]);
    assert!(read(&again, "a"));
    assert_eq!(status(&again)["prefetch"], Value::Null);
    assert_eq!(marked.registry.requests().len(), 0);
}

#[test]
fn nothing_is_fetched_early_without_a_mark_or_where_that_is_not_wanted() {
    for (names, options) in [
        (&["a", "b", NO_PREFETCH, "c"][..], &[][..]),
        (&["a", "b", "c"], &[]),
        (&["a", "b", NO_PREFETCH, PREFETCH, "c"], &[]),
        (&["a", "b", PREFETCH, "c"], &["--prefetch", "none"]),
    ] {
        let marked = Marked::new(&[names]);
        let mount = marked.mount(options);
        assert!(read(&mount, "b"));
        assert_eq!(status(&mount)["prefetch"], Value::Null, "{names:?}");
        assert_eq!(marked.asked(0), [marked.range(0, 1, 2)], "{names:?}");
    }
}

#[test]
fn everything_begins_with_what_is_marked() {
    let marked = Marked::new(&[&["a", "b", "c", "d"], &["e", "f", PREFETCH, "g", "h"]]);
    let mount = marked.mount(&["--prefetch", "all"]);
    let prefetch = until_prefetched(&mount);
    assert_eq!(bytes(&prefetch, "errors"), 0, "{prefetch}");
    let requests = marked.registry.requests();
    let mut content = requests.iter().filter_map(|request| {
        let layers = marked.image.layers.iter();
        let mut layer =
            layers.enumerate().filter(|(_, l)| request.path.contains(&l.digest.to_string()));
        Some((layer.next()?.0, request.range.clone()?))
    });
    let first = content.nth(2).expect("a request for content");
    let early = marked.range(1, 0, 2);
    assert_eq!(first, (1, format!("bytes={}-{}", early.start, early.end - 1)));
    once(&asked(&marked.registry, &marked.image.layers[0].digest)[1..]);
}

/// A mount that has got, and read, all of `a` and `b`, and some of `c`; what it told of that, and what it
/// asked for, the table first.
fn stalled_behind_two() -> (Marked, Mount, Value, Vec<ByteRange>) {
    for _ in 0..20 {
        let marked = Marked::new(&[&["a", "b", "c", "d", PREFETCH, "e", "f"]]);
        let enough = (marked.range(0, 0, 2).len() + 1000) as usize;
        marked.fault(0, Action::StallAt(enough));
        let mount = marked.mount(&[]);
        let began = Instant::now();
        assert!(read(&mount, "a") && read(&mount, "b"));
        let prefetch = status(&mount)["prefetch"].clone();
        let asked = asked(&marked.registry, &marked.image.layers[0].digest);
        // On a machine that is busy for a second, these readers have fetched alone, and what stalled
        // has come by another request.
        if began.elapsed() < Duration::from_secs(1) {
            return (marked, mount, prefetch, asked);
        }
    }
    panic!("a machine too busy to read two files within a second");
}

#[test]
fn a_file_that_has_come_is_read_while_the_rest_is_on_its_way() {
    let (marked, mount, prefetch, asked_first) = stalled_behind_two();
    let early = marked.range(0, 0, 4);
    assert_eq!((&prefetch["done"], &prefetch["errors"]), (&false.into(), &0.into()), "{prefetch}");
    assert_eq!(asked_first[1..], [early], "who reads waits for what is on its way");
    // Who has waited for too long fetches alone, and the rest comes behind.
    assert!(read(&mount, "d"));
    let prefetch = until_prefetched(&mount);
    assert_eq!(bytes(&prefetch, "errors"), 0, "{prefetch}");
    let asked = asked(&marked.registry, &marked.image.layers[0].digest);
    assert_eq!(asked[1..], [early, marked.range(0, 3, 4), marked.range(0, 2, 3)]);
    assert!(read(&mount, "c"));
}

#[test]
fn wrong_bytes_ahead_of_a_start_are_told_and_nobody_gets_them() {
    let marked = Marked::new(&[&["a", "b", "c", PREFETCH, "d", "e"]]);
    marked.fault(0, Action::WrongBytes { at: marked.range(0, 1, 2).start + 5000 });
    let mount = marked.mount(&[]);
    let prefetch = until_prefetched(&mount);
    assert_eq!(bytes(&prefetch, "errors"), 1, "{prefetch}");
    assert!(["a", "b", "c", "d"].iter().all(|name| read(&mount, name)));
    assert_eq!(status(&mount)["read_errors"], 0);
}

#[test]
fn marks_are_files_of_the_rootfs_as_unpacking_makes_them() {
    let marked = Marked::new(&[&["a", PREFETCH, "b"]]);
    let mount = marked.mount(&[]);
    let mark = std::fs::read(mount.path().join(PREFETCH)).expect("it is a member of the tar");
    assert_eq!(mark, b"\x0f");
    assert!(Path::new(mount.path()).join("stargz.index.json").exists());
}
