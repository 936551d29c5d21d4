//! What a use needs is recorded and fetched ahead; readers go first, whatever becomes of that.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use layoutfs::fetch::cache::Cache;
use layoutfs::fetch::layer::LayerReader;
use layoutfs::fetch::local::Local;
use layoutfs::fetch::prefetch::{Progress, Target, What, run};
use layoutfs::fetch::record::{Call, Record as RecordCalls};
use layoutfs::fetch::store::{Config, Store};
use layoutfs::fetch::{Error, ErrorKind, trace_file};
use layoutfs::layout::Blob;
use layoutfs::layout::error::Error as LayoutError;
use layoutfs::layout::index::scan::Scanner;
use layoutfs::layout::index::spans::SpanBuilder;
use layoutfs::layout::trace::Trace;
use layoutfs::layout::tree::Layer as TreeLayer;
use serde_json::Value;

use crate::support::faults::{Action, Fault};
use crate::support::image::{Fill, Image, ImageBuilder, Layer};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::listing::Listing;
use crate::support::mount::{Mount, Room};
use crate::support::registry::Registry;
use crate::support::until::until;

const BIG_BYTES: usize = 12 << 20;

pub struct Setting {
    pub registry: Registry,
    pub image: Image,
    pub room: Arc<Room>,
    pub layout: String,
}

/// Layers that can be entered in several ways; their indexes are in the cache, their bytes are not.
pub fn setting() -> Setting {
    let (registry, room) = (Registry::start(), Room::new());
    let layer = |name: &str| {
        LayerBuilder::new()
            .dir(name, 0o755)
            .file(&format!("{name}/big"), 0o644, generated(name, BIG_BYTES))
            .file(&format!("{name}/small"), 0o644, name.to_owned())
    };
    let image = ImageBuilder::new()
        .layer(layer("a"), Compression::GzipMembers(64 << 10))
        .layer(layer("b"), Compression::Gzip)
        .layer(layer("c"), Compression::Plain)
        .layer(layer("d"), Compression::Zstd)
        .build();
    image.push(&registry, "team/app", "v1");
    let layout = room.path().join("layout").display().to_string();
    room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &layout]);
    room.mount(&layout, &[]).unmount();
    let setting = Setting { registry, image, room, layout };
    setting.forget();
    setting
}

impl Setting {
    /// Empties the cache of all but the indexes.
    pub fn forget(&self) {
        self.room.layoutfs(&["cache", "prune"]);
        self.registry.clear();
    }

    pub fn trace_path(&self) -> PathBuf {
        self.room.path().join("use.trace")
    }

    pub fn mount(&self, options: &[&str]) -> Mount {
        self.room.mount(&self.layout, options)
    }

    /// Records what `what` needs.
    pub fn record(&self, what: impl Fn(&Path)) -> Trace {
        let path = self.trace_path();
        let mount = self.mount(&["--record", &path.display().to_string()]);
        what(mount.path());
        mount.unmount();
        self.forget();
        trace_file::read(&path).expect("a trace")
    }

    pub fn sent(&self, layer: usize) -> u64 {
        self.registry.bytes_sent(&self.image.layers[layer].digest)
    }
}

pub fn status(mount: &Mount) -> Value {
    let path = mount.path().display().to_string();
    let json = mount.room().layoutfs(&["status", "--json", &path]);
    serde_json::from_str(&json).expect("status prints JSON")
}

/// The status of a prefetch that is over.
pub fn until_prefetched(mount: &Mount) -> Value {
    until("it is prefetched", || status(mount)["prefetch"]["done"] == true);
    status(mount)["prefetch"].clone()
}

/// The stalled requests of a prefetch are still on their way: who has its bytes has not waited for
/// them.
fn assert_prefetch_still_waits(mount: &Mount) {
    let prefetch = &status(mount)["prefetch"];
    assert_eq!((&prefetch["done"], &prefetch["errors"]), (&false.into(), &0.into()), "{prefetch}");
}

fn read_at(mount: &Path, name: &str, offset: u64) -> Vec<u8> {
    let file = fs::File::open(mount.join(name)).expect("it is there");
    // More than the kernel reads ahead would hide what is needed.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).expect("advice");
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, offset).expect("read");
    bytes
}

/// A little of each layer, backwards through the first.
pub fn some_use(mount: &Path) {
    for offset in [10 << 20, 5 << 20, 1 << 20] {
        let expected = &generated("a", BIG_BYTES)[offset..offset + 4096];
        assert_eq!(read_at(mount, "a/big", offset as u64), expected);
    }
    assert_eq!(fs::read(mount.join("b/small")).expect("read"), b"b");
    assert_eq!(read_at(mount, "c/big", 6 << 20), generated("c", BIG_BYTES)[6 << 20..][..4096]);
}

#[test]
fn a_recorded_use_makes_no_request_once_it_is_prefetched() {
    let setting = setting();
    let trace = setting.record(some_use);
    let starts: Vec<_> =
        trace.needed.iter().filter(|n| n.layer == 0).map(|n| n.range.start).collect();
    assert!(starts.len() >= 3 && starts.is_sorted_by(|a, b| a > b), "in order of need: {starts:?}");
    let mount = setting.mount(&["--prefetch", &setting.trace_path().display().to_string()]);
    let prefetch = until_prefetched(&mount);
    assert_eq!(prefetch["errors"], 0, "{prefetch}");
    // Of the spans that hold what was read, and little else.
    let spans: u64 = trace.needed.iter().map(|needed| needed.range.len()).sum();
    let sent: u64 = (0..4).map(|layer| setting.sent(layer)).sum();
    assert!(sent * 10 <= spans * 13, "{sent} bytes for spans of {spans}");
    assert!(sent < setting.image.layer_bytes() / 3, "{sent}");
    assert_eq!(setting.sent(3), 0, "nobody read the last layer");
    setting.registry.clear();
    some_use(mount.path());
    assert_eq!(setting.registry.requests().len(), 0, "{:?}", setting.registry.requests());
}

#[test]
fn all_is_prefetched_each_byte_once_and_then_nobody_is_asked() {
    let setting = setting();
    let mount = setting.mount(&["--prefetch", "all"]);
    let prefetch = until_prefetched(&mount);
    assert_eq!(prefetch["errors"], 0, "{prefetch}");
    for (number, layer) in setting.image.layers.iter().enumerate() {
        let (sent, size) = (setting.sent(number), layer.blob.len() as u64);
        // Neighbouring spans share a byte.
        assert!((size..size + size / 1000).contains(&sent), "layer {number}: {sent} of {size}");
    }
    setting.registry.clear();
    Listing::of(mount.path());
    mount.unmount();
    // Blobs that came in pieces are whole ones now.
    let mount = setting.mount(&["--view", "layout"]);
    for layer in &setting.image.layers {
        let path = mount.path().join("blobs/sha256").join(layer.digest.hex());
        assert_eq!(fs::read(path).expect("read"), layer.blob);
    }
    assert_eq!(setting.registry.requests().len(), 0, "{:?}", setting.registry.requests());
}

#[test]
fn the_layout_view_prefetches_whole_blobs() {
    let setting = setting();
    let mount = setting.mount(&["--view", "layout", "--prefetch", "all"]);
    until_prefetched(&mount);
    setting.registry.clear();
    for layer in &setting.image.layers {
        let path = mount.path().join("blobs/sha256").join(layer.digest.hex());
        assert_eq!(fs::read(path).expect("read"), layer.blob);
    }
    assert_eq!(setting.registry.requests().len(), 0);
}

#[test]
fn a_trace_of_another_image_and_what_is_no_trace_are_refused_with_2() {
    let setting = setting();
    let trace = setting.record(some_use);
    let other =
        ImageBuilder::new().layer(LayerBuilder::text("file x = y\\n"), Compression::Gzip).build();
    other.push(&setting.registry, "team/other", "v1");
    let layout = setting.room.path().join("other").display().to_string();
    let reference = setting.registry.reference("team/other", "v1");
    setting.room.layoutfs(&["sparse", &reference, "--to", &layout]);
    let path = setting.trace_path().display().to_string();
    let refused = setting.room.try_mount(&layout, &["--prefetch", &path]);
    let refused = refused.err().expect("refused");
    assert_eq!(refused.code(), Some(2), "{refused}");
    let digests = [trace.image.to_string(), other.digest.to_string()];
    assert!(digests.iter().all(|digest| refused.stderr.contains(digest)), "{refused}");
    let cut = fs::read(&path).expect("a trace");
    fs::write(&path, &cut[..cut.len() / 2]).expect("cut");
    for no_trace in [path, setting.room.path().join("none").display().to_string()] {
        let refused = setting.room.try_mount(&setting.layout, &["--prefetch", &no_trace]);
        let refused = refused.err().expect("refused");
        assert_eq!(refused.code(), Some(2), "{refused}");
        assert!(refused.stderr.contains(&no_trace), "{refused}");
    }
}

#[test]
fn readers_do_not_wait_for_a_prefetch_of_another_layer_nor_of_other_spans() {
    for action in [Action::Stall, Action::Drip { bytes: 1, every: Duration::from_secs(2) }] {
        let setting = setting();
        let layer = &setting.image.layers[0].digest;
        // As many as there are at once.
        setting.registry.inject(Fault::new(action).blob(layer).times(4));
        let mount = setting.mount(&["--prefetch", "all"]);
        until("the prefetch is stuck", || setting.registry.faults_left() == 0);
        assert_eq!(fs::read(mount.path().join("c/small")).expect("another layer"), b"c");
        assert_eq!(fs::read(mount.path().join("d/small")).expect("a whole layer"), b"d");
        assert_eq!(fs::read(mount.path().join("a/small")).expect("another span"), b"a");
        assert_prefetch_still_waits(&mount);
    }
}

#[test]
fn a_reader_takes_over_the_span_that_a_prefetch_is_stuck_with() {
    let setting = setting();
    let layer = &setting.image.layers[0].digest;
    setting.registry.inject(Fault::new(Action::Stall).blob(layer).times(4));
    let mount = setting.mount(&["--prefetch", "all"]);
    until("the prefetch is stuck", || setting.registry.faults_left() == 0);
    assert_eq!(read_at(mount.path(), "a/big", 4096), generated("a", BIG_BYTES)[4096..8192]);
    assert_prefetch_still_waits(&mount);
}

#[test]
fn a_reader_does_not_fail_with_the_stream_that_a_prefetch_began() {
    let setting = setting();
    let layer = &setting.image.layers[3].digest;
    setting.registry.inject(Fault::new(Action::Stall).blob(layer).times(1));
    let mount = setting.mount(&["--prefetch", "all", "--deadline", "2s"]);
    until("the prefetch is stuck", || setting.registry.faults_left() == 0);
    // It waits for the same bytes, which fail; its own attempt does not.
    assert_eq!(fs::read(mount.path().join("d/small")).expect("read"), b"d");
    // The kernel would have asked once more.
    assert_eq!(status(&mount)["read_errors"], 0);
}

#[test]
fn what_fails_ahead_is_told_and_harms_nobody() {
    let setting = setting();
    let layer = &setting.image.layers[0].digest;
    setting.registry.inject(Fault::new(Action::Status(404, Vec::new())).blob(layer).times(1));
    setting.registry.inject(Fault::new(Action::WrongBytes { at: 3 << 20 }).blob(layer).times(2));
    let mount = setting.mount(&["--prefetch", "all"]);
    let prefetch = until_prefetched(&mount);
    assert!(prefetch["errors"].as_u64() >= Some(1), "{prefetch}");
    // What goes wrong before the daemon has left the terminal is told there.
    let told = format!("{}{}", mount.said(), mount.log());
    assert!(told.contains("cannot prefetch"), "{told}");
    Listing::of(mount.path());
    assert_eq!(status(&mount)["read_errors"], 0);
}

/// A reader of `layer`, whose index a pass would find.
fn reader_of(store: &Arc<Store>, layer: &Layer) -> LayerReader {
    let (mut scanner, mut spans) = (Scanner::new(), SpanBuilder::default());
    let mut nowhere = |_: &[u8]| Ok::<(), LayoutError>(());
    scanner.push(&layer.blob, &mut nowhere).expect("a layer");
    spans.push(&layer.blob, scanner.take_starts());
    let index = scanner.finish(&mut nowhere).expect("a layer").into_index(layer.diff_id, spans);
    let layer = TreeLayer {
        blob: Blob { digest: layer.digest, size: layer.blob.len() as u64 },
        diff_id: layer.diff_id,
        media_type: layer.media_type.clone(),
        annotations: BTreeMap::new(),
        soci_index: None,
    };
    LayerReader::new(store.clone(), layer, &index, None).expect("a reader")
}

#[test]
fn no_request_of_a_prefetch_begins_while_a_reader_waits() {
    let layer = |name: &str| LayerBuilder::new().file(name, 0o644, generated(name, 1 << 20));
    let image = ImageBuilder::new()
        .layer(layer("spans"), Compression::GzipMembers(64 << 10))
        .layer(layer("whole"), Compression::Gzip)
        .build();
    let directory = tempfile::tempdir().expect("a directory");
    image.write_layout(directory.path(), "v1", Fill::Full);
    let source = Arc::new(Local::new(directory.path()));
    let source = Arc::new(RecordCalls::with_log(source, Arc::default()));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let _inside = runtime.enter();
    let store = Arc::new(Store::new(Config {
        cache: Cache::open(&directory.path().join("cache"), None).expect("a cache"),
        layout_dir: None,
        source: Some(source.clone()),
        no_source: Error::new(ErrorKind::Offline, "unused"),
        stall: Duration::from_secs(50),
        spans_bytes_max: 1 << 20,
        keeps_fresh: true,
        own_indexes_only: false,
    }));
    let blob = |layer: &Layer| Blob { digest: layer.digest, size: layer.blob.len() as u64 };
    let reader = Some(Arc::new(reader_of(&store, &image.layers[0])));
    let targets = vec![
        Target { blob: blob(&image.layers[0]), reader },
        Target { blob: blob(&image.layers[1]), reader: None },
    ];
    let progress = Arc::<Progress>::default();
    let waiting = store.line.reader();
    let work = runtime.spawn(run(store.clone(), targets, What::All, progress.clone()));
    until("it knows what it wants", || progress.shown().bytes_wanted > 0);
    // A request that should not be made would be made at once.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(source.calls(), []);
    // What a reader wants is brought, whoever has begun it.
    store.line.ask_for(&image.layers[1].digest);
    until("it is on its way", || !source.calls().is_empty());
    let is_asked = |call: &Call| call.blob.digest == image.layers[1].digest;
    assert!(source.calls().iter().all(is_asked), "{:?}", source.calls());
    drop(waiting);
    runtime.block_on(work).expect("it ends");
    assert!(!source.calls().iter().all(is_asked));
    assert_eq!((progress.shown().done, progress.shown().errors), (true, 0));
}

#[test]
fn offline_nothing_is_asked() {
    let setting = setting();
    let mount = setting.mount(&["--prefetch", "all", "--offline"]);
    until_prefetched(&mount);
    assert_eq!(setting.registry.requests().len(), 0);
}

#[test]
fn a_killed_daemon_loses_little_of_a_trace_and_sigterm_nothing() {
    let setting = setting();
    let path = setting.trace_path();
    let layers_in = || -> Vec<usize> {
        let trace = trace_file::read(&path).ok();
        trace.into_iter().flat_map(|trace| trace.needed).map(|needed| needed.layer).collect()
    };
    for (signal, name) in [("-9", "a/small"), ("-TERM", "c/small")] {
        let mount = setting.mount(&["--record", &path.display().to_string()]);
        let daemon = status(&mount)["pid"].to_string();
        fs::read(mount.path().join(name)).expect("read");
        if signal == "-9" {
            until("the trace is written meanwhile", || layers_in() == [0]);
        }
        assert!(Command::new("kill").args([signal, &daemon]).status().expect("kill").success());
        until("it ends", || !Path::new(&format!("/proc/{daemon}")).exists());
    }
    assert_eq!(layers_in(), [2]);
    let refused = setting.room.try_mount(&setting.layout, &["--record", "/nonexistent/trace"]);
    assert_eq!(refused.err().expect("nobody could write it").code(), Some(1));
}

#[test]
fn readers_of_one_span_share_one_request() {
    let (registry, room) = (Registry::start(), Room::new());
    let names: Vec<String> = (0..24).map(|number| format!("file-{number}")).collect();
    let layer = names
        .iter()
        .fold(LayerBuilder::new(), |layer, name| layer.file(name, 0o644, generated(name, 8 << 10)));
    let image = ImageBuilder::new().layer(layer, Compression::GzipMembers(64 << 10)).build();
    image.push(&registry, "team/app", "v1");
    let layout = room.path().join("layout").display().to_string();
    room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &layout]);
    room.mount(&layout, &[]).unmount();
    room.layoutfs(&["cache", "prune"]);
    registry.clear();
    let mount = room.mount(&layout, &[]);
    std::thread::scope(|scope| {
        for name in &names {
            let path = mount.path().join(name);
            scope.spawn(move || {
                assert_eq!(fs::read(path).expect("read"), generated(name, 8 << 10));
            });
        }
    });
    assert_eq!(registry.blob_requests(&image.layers[0].digest).len(), 1);
}

#[test]
fn status_says_of_each_layer_what_came_and_what_it_was_good_for() {
    let setting = setting();
    let mount = setting.mount(&[]);
    assert_eq!(fs::read(mount.path().join("a/small")).expect("read"), b"a");
    let shown = status(&mount);
    let layer = |number: usize, field: &str| shown["layers"][number][field].clone();
    let number = |field: &str| layer(0, field).as_u64().expect(field);
    assert_eq!(number("bytes_fetched"), setting.sent(0));
    assert_eq!(number("bytes_used"), 1);
    assert_eq!(number("resident"), setting.sent(0), "what came span by span is here");
    assert_eq!(layer(2, "resident"), 0);
    assert_eq!(number("bytes_fetched") + number("bytes_never_needed"), number("size"));
    assert_eq!(layer(0, "amplification").as_f64(), Some(setting.sent(0) as f64));
    assert_eq!(layer(2, "bytes_fetched"), 0);
    assert_eq!(layer(2, "bytes_never_needed"), layer(2, "size"));
    assert_eq!((layer(2, "amplification"), &shown["prefetch"]), (Value::Null, &Value::Null));
    let path = mount.path().display().to_string();
    let text = setting.room.layoutfs(&["status", &path]);
    assert!(text.contains("never needed") && text.contains("amplification"), "{text}");
}
