//! Several sources, slow ones, wrong ones, and readers that leave: seen through a mount.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use layoutfs::fetch::failover::Failover;
use layoutfs::fetch::http::connections::CONNECTIONS_MAX;
use layoutfs::fetch::record::Counters;
use layoutfs::fetch::{Distrust, Source};
use layoutfs::layout::Blob;
use layoutfs::layout::range::ByteRange;
use serde_json::Value;

use crate::source_suite::{client_of, patient, read};
use crate::support::faults::{Action, Fault};
use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::mount::{Mount, Room};
use crate::support::registry::Registry;
use crate::support::until::until;

/// More than is decoded for one read: a layer of one gzip member is then read whole.
const FILE_BYTES: usize = 9 << 20;

/// A mirror and an origin, both with the image, whose indexes are known and whose blobs are not here.
struct Setting {
    mirror: Registry,
    origin: Registry,
    image: Image,
    room: Arc<Room>,
    layout: String,
}

impl Setting {
    fn new() -> Self {
        let (mirror, origin, room) = (Registry::start(), Registry::start(), Room::new());
        let layer = |name: &str| LayerBuilder::new().file(name, 0o644, content(name));
        let image = ImageBuilder::new()
            .layer(layer("spans"), Compression::GzipMembers(64 << 10))
            .layer(layer("whole"), Compression::Zstd)
            .build();
        image.push(&mirror, "m/app", "v1");
        image.push(&origin, "team/app", "v1");
        let layout = room.path().join("layout").display().to_string();
        room.layoutfs(&["sparse", &origin.reference("team/app", "v1"), "--to", &layout]);
        room.mount(&layout, &[]).unmount();
        room.layoutfs(&["cache", "prune"]);
        origin.clear();
        Setting { mirror, origin, image, room, layout }
    }

    /// The mirror is asked first.
    fn mount(&self, options: &[&str]) -> Mount {
        let mirror = format!("{}/m/app", self.mirror.host());
        let origin = format!("{}/team/app", self.origin.host());
        let sources = ["--source", &mirror, "--source", &origin];
        self.room.mount(&self.layout, &[&sources[..], options].concat())
    }

    fn on_blobs(&self, registry: &Registry, action: &Action) {
        for layer in &self.image.layers {
            registry.inject(Fault::new(action.clone()).blob(&layer.digest).always());
        }
    }

    fn blob(&self, at: usize) -> (Blob, &[u8]) {
        let layer = &self.image.layers[at];
        (Blob { digest: layer.digest, size: layer.blob.len() as u64 }, &layer.blob)
    }
}

fn content(name: &str) -> Vec<u8> {
    generated(name, FILE_BYTES).to_vec()
}

fn status(mount: &Mount) -> Value {
    let path = mount.path().display().to_string();
    let json = mount.room().layoutfs(&["status", "--json", &path]);
    serde_json::from_str(&json).expect("status prints JSON")
}

#[test]
fn a_read_that_one_source_breaks_off_goes_on_at_the_next() {
    let setting = Setting::new();
    setting.on_blobs(&setting.mirror, &Action::CutBodyAt(100_000));
    setting.mirror.inject(Fault::new(Action::Status(404, vec![])));
    let mount = setting.mount(&["--deadline", "5s"]);
    for name in ["spans", "whole"] {
        assert!(fs::read(mount.path().join(name)).expect("read") == content(name), "{name}");
    }
}

#[test]
fn a_source_that_dies_in_the_middle_of_a_read_is_no_error() {
    let setting = Setting::new();
    let slow = Action::Drip { bytes: 200_000, every: Duration::from_millis(50) };
    setting.on_blobs(&setting.mirror, &slow);
    let mount = setting.mount(&["--deadline", "5s"]);
    let path = mount.path().join("whole");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read(&path).expect("the origin has the rest"));
        until("bytes come", || setting.mirror.bytes_sent(&setting.blob(1).0.digest) > 500_000);
        setting.mirror.pause();
        assert!(reader.join().expect("no panic") == content("whole"));
    });
    let from_origin = setting.origin.bytes_sent(&setting.blob(1).0.digest);
    assert!(from_origin < setting.blob(1).0.size, "what had come was not fetched again");
}

#[test]
fn a_source_with_wrong_bytes_is_named_and_asked_last_and_no_reader_sees_it() {
    let setting = Setting::new();
    setting.on_blobs(&setting.mirror, &Action::WrongBytes { at: 300_000 });
    let views: [&[&str]; 2] = [&[], &["--view", "layout", "--verify", "strict"]];
    for (view, path, expected) in [
        (views[0], "spans".to_owned(), content("spans")),
        (views[0], "whole".to_owned(), content("whole")),
        (
            views[1],
            format!("blobs/sha256/{}", setting.blob(1).0.digest.hex()),
            setting.blob(1).1.to_vec(),
        ),
    ] {
        setting.room.layoutfs(&["cache", "prune"]);
        let mount = setting.mount(view);
        assert!(fs::read(mount.path().join(&path)).expect("right") == expected, "{path}");
        let shown = status(&mount);
        let aside = shown["set_aside"].as_array().expect("a list").clone();
        assert_eq!(aside.len(), 1, "{path}: {shown}");
        let mirror = format!("{}/m/app", setting.mirror.host());
        assert_eq!(aside[0]["source"], mirror, "{path}");
        let log = fs::read_to_string(shown["log"].as_str().expect("a path")).expect("its log");
        assert!(log.contains(&mirror) && log.contains("wrong bytes"), "{log}");
        let human = mount.room().layoutfs(&["status", &mount.path().display().to_string()]);
        assert!(human.contains(&format!("asked last: {mirror}")), "{human}");
    }
}

#[tokio::test]
async fn blame_falls_on_who_served_the_bytes_and_both_are_tried_alone_when_it_may_be_either() {
    let setting = Setting::new();
    let (blob, content) = setting.blob(1);
    let counters = Arc::new(Counters::default());
    let sources: Vec<Arc<dyn Source>> = vec![
        Arc::new(client_of(&setting.mirror, "m/app")),
        Arc::new(client_of(&setting.origin, "team/app")),
    ];
    let failover = Failover::counting(sources, counters.clone());
    let whole = ByteRange::new(0, blob.size);
    setting.mirror.inject(Fault::new(Action::CutBodyAt(100_000)).blob(&blob.digest));
    assert!(read(&failover, &blob, whole).await.unwrap() == content);
    // The first 100,000 bytes are the mirror's, the others the origin's.
    assert!(failover.distrust(&blob, whole, Distrust::Wrong), "each alone is worth a try");
    assert_eq!(counters.all_set_aside(), []);
    let (mirror, origin) = (&setting.mirror, &setting.origin);
    let asked = |registry: &Registry| {
        let count = registry.blob_requests(&blob.digest).len();
        registry.clear();
        count
    };
    asked(mirror);
    asked(origin);
    assert!(read(&failover, &blob, whole).await.unwrap() == content);
    // The mirror broke off a moment ago.
    assert_eq!((asked(mirror), asked(origin)), (0, 1));
    assert!(failover.distrust(&blob, whole, Distrust::Wrong), "the mirror is left");
    assert_eq!(counters.all_set_aside().len(), 1);
    assert!(read(&failover, &blob, whole).await.unwrap() == content);
    assert_eq!((asked(mirror), asked(origin)), (1, 0));
    assert!(!failover.distrust(&blob, whole, Distrust::Wrong), "nobody is left");
    // Later reads ask the one whose last lie is older: what nobody else has is still asked for.
    assert!(read(&failover, &blob, whole).await.unwrap() == content);
    assert_eq!((asked(mirror), asked(origin)), (0, 1));
}

#[tokio::test]
async fn a_source_that_is_wrong_twice_ends_the_search_although_another_lacks_the_blob() {
    let (wrong, empty) = (Registry::start(), Registry::start());
    let content = generated("wrong", 1000);
    let blob = Blob { digest: wrong.put_blob("a/b", content), size: 1000 };
    let sources: Vec<Arc<dyn Source>> =
        vec![Arc::new(client_of(&wrong, "a/b")), Arc::new(client_of(&empty, "a/b"))];
    let failover = Failover::new(sources);
    let whole = ByteRange::new(0, 1000);
    read(&failover, &blob, whole).await.unwrap();
    assert!(failover.distrust(&blob, whole, Distrust::Wrong), "the other may have it");
    read(&failover, &blob, whole).await.unwrap();
    assert!(!failover.distrust(&blob, whole, Distrust::Wrong), "it has not");
}

#[test]
fn a_reader_that_waits_for_a_silent_source_is_served_by_a_second_request() {
    let setting = Setting::new();
    let digest = setting.blob(0).0.digest;
    // The origin alone, silent once: the second request is another connection to it.
    setting.origin.inject(Fault::new(Action::Stall).blob(&digest));
    let mount = setting.room.mount(&setting.layout, &["--deadline", "60s"]);
    setting.origin.clear();
    let began = Instant::now();
    let file = File::open(mount.path().join("spans")).expect("opened");
    let mut bytes = [0; 4096];
    file.read_exact_at(&mut bytes, 0).expect("served");
    assert!(bytes[..] == content("spans")[..4096]);
    drop(file);
    assert!(began.elapsed() < Duration::from_secs(50), "it did not wait for the deadline");
    assert_eq!(status(&mount)["hedges"], 1);
    assert_eq!(setting.origin.blob_requests(&digest).len(), 2);
    drop(mount);
    // With a mirror that is silent for ever, the origin is asked; and from then on it is first.
    setting.room.layoutfs(&["cache", "prune"]);
    setting.on_blobs(&setting.mirror, &Action::Stall);
    let mount = setting.mount(&["--deadline", "60s"]);
    assert!(fs::read(mount.path().join("spans")).expect("read") == content("spans"));
    let asked = setting.mirror.blob_requests(&digest).len();
    assert!(asked <= 2, "{asked} requests to one that is silent");
    assert!(status(&mount)["hedges"].as_u64() >= Some(1));
}

#[test]
fn a_source_that_delivers_is_asked_once() {
    let setting = Setting::new();
    let mount = setting.mount(&[]);
    for name in ["spans", "whole"] {
        assert!(fs::read(mount.path().join(name)).expect("read") == content(name));
    }
    assert_eq!(status(&mount)["hedges"], 0);
    for at in [0, 1] {
        let (blob, _) = setting.blob(at);
        assert!(setting.mirror.bytes_sent(&blob.digest) <= blob.size);
        assert_eq!(setting.origin.bytes_sent(&blob.digest), 0);
    }
}

/// A stream that is dripped, so that it goes on for longer than the test.
fn dripped() -> (Setting, Mount, String) {
    let setting = Setting::new();
    let slow = Action::Drip { bytes: 20_000, every: Duration::from_millis(200) };
    setting.on_blobs(&setting.origin, &slow);
    let mount = setting.room.mount(&setting.layout, &["--view", "layout"]);
    let path = mount.path().join("blobs/sha256").join(setting.blob(1).0.digest.hex());
    let path = path.display().to_string();
    (setting, mount, path)
}

/// Waits until the stream has stopped, and checks that what had come is not fetched again.
fn ends_and_resumes(setting: &Setting, path: &str) {
    let (blob, content) = setting.blob(1);
    let sent = || setting.origin.bytes_sent(&blob.digest);
    until("the stream ends", || {
        let before = sent();
        std::thread::sleep(Duration::from_secs(1));
        sent() == before
    });
    assert!(sent() < blob.size / 2, "{} of {} bytes", sent(), blob.size);
    setting.origin.clear_faults();
    setting.origin.clear();
    assert!(fs::read(path).expect("begun again") == content);
    let first = setting.origin.blob_requests(&blob.digest).swap_remove(0);
    assert_ne!(first.range.as_deref().map(|r| r.starts_with("bytes=0-")), Some(true));
    assert!(sent() < blob.size, "what had come is kept");
}

#[test]
fn a_stream_whose_reader_has_left_ends_and_keeps_what_came() {
    let (setting, _mount, path) = dripped();
    let mut beginning = [0; 100];
    File::open(&path).expect("opened").read_exact(&mut beginning).expect("read");
    assert!(beginning[..] == setting.blob(1).1[..100]);
    ends_and_resumes(&setting, &path);
}

#[test]
fn a_stream_whose_reader_is_killed_ends_and_keeps_what_came() {
    let (setting, _mount, path) = dripped();
    let mut reader = Command::new("cat").arg(&path).stdout(Stdio::null()).spawn().expect("cat");
    let digest = setting.blob(1).0.digest;
    until("it reads", || setting.origin.bytes_sent(&digest) > 100_000);
    reader.kill().expect("killed");
    reader.wait().expect("gone");
    ends_and_resumes(&setting, &path);
}

#[test]
fn a_reader_that_is_killed_while_it_waits_leaves_nothing_that_outlives_the_deadline() {
    let setting = Setting::new();
    setting.on_blobs(&setting.origin, &Action::Stall);
    let blob = format!("blobs/sha256/{}", setting.blob(1).0.digest.hex());
    let layout = ["--view", "layout"];
    for (options, path, at) in
        [(&[][..], "spans", 0), (&[], "whole", 1), (&layout[..], blob.as_str(), 1)]
    {
        let options = [options, &["--deadline", "1s"]].concat();
        let mount = setting.room.mount(&setting.layout, &options);
        setting.origin.clear();
        let path = mount.path().join(path);
        let mut reader = Command::new("cat").arg(&path).stdout(Stdio::null()).spawn().expect("cat");
        let asked = || setting.origin.blob_requests(&setting.blob(at).0.digest).len();
        until("it waits", || asked() > 0);
        reader.kill().expect("killed");
        until("it is gone", || reader.try_wait().expect("asked").is_some());
        // What was asked for it ends with the deadline, and is not asked again.
        std::thread::sleep(Duration::from_secs(3));
        let then = asked();
        assert!(then <= 3, "{}: {then} requests", path.display());
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(asked(), then, "{}: nobody wants it", path.display());
    }
}

#[test]
fn a_stream_with_a_reader_that_thinks_goes_on() {
    let (setting, _mount, path) = dripped();
    let file = File::open(&path).expect("opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).expect("read");
    let digest = setting.blob(1).0.digest;
    let sent = setting.origin.bytes_sent(&digest);
    std::thread::sleep(Duration::from_secs(7));
    assert!(setting.origin.bytes_sent(&digest) > sent + 200_000, "it is open, so it is wanted");
}

#[tokio::test]
async fn no_more_than_so_many_bodies_are_asked_of_one_registry() {
    let registry = Registry::start();
    let content = generated("many", 10_000);
    let blob = Blob { digest: registry.put_blob("a/b", content.clone()), size: 10_000 };
    registry.inject(Fault::new(Action::StallAt(1)).times(CONNECTIONS_MAX as u32));
    let client = Arc::new(client_of(&registry, "a/b"));
    let mut bodies = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        bodies.push(client.read(&blob, ByteRange::new(0, 100), patient()).await.unwrap());
    }
    let one_more = {
        let client = client.clone();
        tokio::spawn(async move { read(&*client, &blob, ByteRange::new(0, 100)).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(registry.requests().len(), CONNECTIONS_MAX, "one more has to wait");
    bodies.pop();
    assert_eq!(one_more.await.unwrap().unwrap(), content[..100]);
}
