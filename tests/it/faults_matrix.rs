//! Every fault of a registry, seen from every view: right bytes or the documented errno, one log
//! line that says everything, an end within the deadline, and recovery without a remount.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::faults::{Action, Fault};
use crate::support::image::{Image, ImageBuilder, Layer};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::mount::{Mount, Room};
use crate::support::registry::Registry;

/// For what ends at the deadline: short enough to be waited for.
const DEADLINE: &str = "1s";

/// For what ends otherwise: all attempts fit into it, also those of a busy machine.
const PATIENT: &str = "15s";

/// A read ends within its deadline, and the kernel may ask once more. The rest is for the machine.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// More than what wrong bytes are forgotten at once.
const SPANS_BYTES: usize = 1_100_000;

/// More than is decoded for one read: a layer of one gzip member is then read whole.
const WHOLE_BYTES: usize = 9 << 20;

/// How a layer is read, and through which view.
#[derive(Debug, Clone, Copy, PartialEq)]
enum View {
    /// Only the spans that are needed.
    Spans,
    /// The whole layer, because it has one span.
    Whole,
    /// The blob as a file, in order as it comes.
    Stream,
    /// The blob as a file, once it is proved.
    Strict,
}

const VIEWS: [View; 4] = [View::Spans, View::Whole, View::Stream, View::Strict];

/// What a reader meets.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Expected {
    Right,
    Errno(i32),
}

use Expected::{Errno, Right};

const EIO: Expected = Errno(5);
const ETIMEDOUT: Expected = Errno(110);

/// An image whose indexes are known and whose blobs are not here.
struct Setting {
    registry: Registry,
    room: Arc<Room>,
    image: Image,
    layout: String,
}

impl Setting {
    fn new() -> Self {
        let (registry, room) = (Registry::start(), Room::new());
        let layer = |name: &str| LayerBuilder::new().file(name, 0o644, content(name));
        let image = ImageBuilder::new()
            .layer(layer("spans"), Compression::GzipMembers(64 << 10))
            .layer(layer("whole"), Compression::Zstd)
            .build();
        image.push(&registry, "team/app", "v1");
        let layout = room.path().join("layout").display().to_string();
        room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &layout]);
        room.mount(&layout, &[]).unmount();
        Setting { registry, room, image, layout }
    }

    fn layer(&self, view: View) -> &Layer {
        &self.image.layers[usize::from(view == View::Whole)]
    }

    fn mount(&self, view: View, options: &[&str]) -> Mount {
        self.room.layoutfs(&["cache", "prune"]);
        let of_view: &[&str] = match view {
            View::Spans | View::Whole => &[],
            View::Stream => &["--view", "layout"],
            View::Strict => &["--view", "layout", "--verify", "strict"],
        };
        let mount = self.room.mount(&self.layout, &[of_view, options].concat());
        self.registry.clear();
        mount
    }

    fn path(&self, view: View) -> PathBuf {
        match view {
            View::Spans => "spans".into(),
            View::Whole => "whole".into(),
            _ => Path::new("blobs/sha256").join(self.layer(view).digest.hex()),
        }
    }

    fn expected_bytes(&self, view: View) -> Vec<u8> {
        match view {
            View::Spans => content("spans"),
            View::Whole => content("whole"),
            _ => self.layer(view).blob.to_vec(),
        }
    }

    /// One fault, one view: what is read while it acts, what is logged, and what is read later.
    fn check(&self, view: View, action: &Action, times: u32, expected: Expected) {
        let deadline = if expected == ETIMEDOUT { DEADLINE } else { PATIENT };
        self.check_within(deadline, view, action, times, expected);
    }

    fn check_within(
        &self,
        deadline: &str,
        view: View,
        action: &Action,
        times: u32,
        expected: Expected,
    ) {
        let what = format!("{action:?} {times} times, {view:?}");
        let mount = self.mount(view, &["--deadline", deadline]);
        let (layer, path) = (self.layer(view), mount.path().join(self.path(view)));
        self.registry.inject(Fault::new(action.clone()).blob(&layer.digest).times(times));
        let began = Instant::now();
        let outcome = fs::read(&path);
        let took = began.elapsed();
        assert!(took < ENDS_WITHIN, "{what}: it took {took:?}");
        match (&outcome, expected) {
            (Ok(bytes), Right) => assert!(*bytes == self.expected_bytes(view), "{what}: wrong"),
            (Err(error), Errno(errno)) => {
                assert_eq!(error.raw_os_error(), Some(errno), "{what}: {error}");
                self.check_log(view, &failures(&mount), &what);
            }
            _ => panic!("{what}: {:?}\n{}", outcome.map(|b| b.len()), self.room.logs()),
        }
        self.registry.clear_faults();
        assert!(recovered(&path) == self.expected_bytes(view), "{what}: wrong afterwards");
    }

    fn check_log(&self, view: View, lines: &[String], what: &str) {
        let [line] = lines else { panic!("{what}: one line for one read, got {lines:#?}") };
        let source = format!("{}/team/app", self.registry.host());
        let digest = self.layer(view).digest.to_string();
        let path = self.path(view).display().to_string();
        for part in [&path, &self.layout, &digest, &source, "error=", "advice="] {
            assert!(line.contains(part), "{what}: {part:?} is not in {line}");
        }
    }
}

fn content(name: &str) -> Vec<u8> {
    generated(name, if name == "whole" { WHOLE_BYTES } else { SPANS_BYTES }).to_vec()
}

fn status(mount: &Mount) -> serde_json::Value {
    let path = mount.path().display().to_string();
    let status = mount.room().layoutfs(&["status", "--json", &path]);
    serde_json::from_str(&status).expect("status prints JSON")
}

/// The lines about failed reads in the log of a mount.
fn failures(mount: &Mount) -> Vec<String> {
    let log = fs::read_to_string(status(mount)["log"].as_str().expect("a path")).expect("its log");
    log.lines().filter(|line| line.contains("a read failed")).map(str::to_owned).collect()
}

/// What a reader gets once the trouble is over: at once, or when wrong bytes are not remembered any
/// more.
fn recovered(path: &Path) -> Vec<u8> {
    let until = Instant::now() + ENDS_WITHIN;
    loop {
        match fs::read(path) {
            Ok(bytes) => return bytes,
            Err(error) if Instant::now() > until => panic!("{}: {error}", path.display()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// For ever, as long as a test goes.
const ALWAYS: u32 = 1_000_000;

fn retry_after(seconds: u32) -> Vec<(&'static str, String)> {
    vec![("retry-after", seconds.to_string())]
}

fn second() -> Duration {
    Duration::from_secs(1)
}

#[test]
fn what_ends_a_body_early_is_mended_or_told() {
    let setting = Setting::new();
    for view in VIEWS {
        setting.check(view, &Action::HangUp, 2, Right);
        setting.check(view, &Action::HangUp, ALWAYS, EIO);
        setting.check(view, &Action::CutBodyAt(0), 2, Right);
        setting.check(view, &Action::CutBodyAt(0), ALWAYS, EIO);
        setting.check(view, &Action::CutBodyAt(1), ALWAYS, EIO);
        setting.check(view, &Action::Chunked, ALWAYS, Right);
    }
}

#[test]
fn a_body_that_is_cut_anywhere_is_resumed_at_the_byte() {
    let setting = Setting::new();
    for view in [View::Whole, View::Stream, View::Strict] {
        let layer = setting.layer(view);
        let len = layer.blob.len();
        // Answers are of 4 MiB at most.
        let end = len.min(4 << 20);
        for at in [1, 511, 512, 4096, end / 2, end - 512, end - 2, end - 1] {
            let mount = setting.mount(view, &[]);
            let fault = Fault::new(Action::CutBodyAt(at)).blob(&layer.digest);
            setting.registry.inject(fault);
            let bytes = fs::read(mount.path().join(setting.path(view))).expect("it is mended");
            assert!(bytes == setting.expected_bytes(view), "{view:?}, cut at {at}");
            let asked: Vec<_> = setting.registry.blob_requests(&layer.digest);
            let ranges: Vec<_> = asked.iter().filter_map(|r| r.range.clone()).collect();
            let expected = [format!("bytes=0-{}", len - 1), format!("bytes={at}-{}", len - 1)];
            if view != View::Whole {
                assert_eq!(ranges, expected, "{view:?}");
            }
            // A machine that is busy for a second asks once more for what does not come.
            if status(&mount)["hedges"] == 0 {
                let sent = setting.registry.bytes_sent(&layer.digest);
                assert_eq!(sent, len as u64, "{view:?}, {at}");
            }
        }
    }
}

#[test]
fn silence_and_drips_end_at_the_deadline() {
    let setting = Setting::new();
    for view in VIEWS {
        setting.check(view, &Action::Stall, ALWAYS, ETIMEDOUT);
        setting.check(view, &Action::StallAt(5000), ALWAYS, ETIMEDOUT);
        let drip = Action::Drip { bytes: 1, every: second() / 5 };
        setting.check(view, &drip, ALWAYS, ETIMEDOUT);
        // Slow, and fast enough: it takes longer than the deadline in all.
        let bytes = setting.layer(view).blob.len().min(4 << 20) / 150;
        let slow = Action::Drip { bytes, every: second() / 100 };
        setting.check_within(DEADLINE, view, &slow, ALWAYS, Right);
    }
}

#[test]
fn refusals_are_retried_where_that_can_help() {
    let setting = Setting::new();
    for view in VIEWS {
        setting.check(view, &Action::Status(500, vec![]), 2, Right);
        setting.check(view, &Action::Status(503, vec![]), ALWAYS, EIO);
        setting.check(view, &Action::Status(429, retry_after(0)), 1, Right);
        setting.check(view, &Action::Status(429, retry_after(3600)), ALWAYS, EIO);
        setting.check(view, &Action::Status(403, vec![]), ALWAYS, EIO);
        setting.check(view, &Action::Status(404, vec![]), ALWAYS, EIO);
        setting.check(view, &Action::RedirectLoop, ALWAYS, EIO);
    }
}

#[test]
fn a_wish_to_be_left_alone_is_granted_within_the_deadline() {
    let setting = Setting::new();
    for view in VIEWS {
        let mount = setting.mount(view, &["--deadline", "20s"]);
        let digest = setting.layer(view).digest;
        let refusal = Action::Status(429, retry_after(2));
        setting.registry.inject(Fault::new(refusal).blob(&digest));
        let began = Instant::now();
        let bytes = fs::read(mount.path().join(setting.path(view))).expect("read");
        assert!(bytes == setting.expected_bytes(view), "{view:?}");
        assert!(began.elapsed() >= 2 * second(), "{view:?}: asked again too early");
    }
}

#[test]
fn answers_that_are_not_what_was_asked_for_are_refused_or_right() {
    let setting = Setting::new();
    for view in VIEWS {
        setting.check(view, &Action::IgnoreRange, ALWAYS, Right);
        setting.check(view, &Action::WrongContentRange, ALWAYS, EIO);
        setting.check(view, &Action::MissingContentRange, ALWAYS, EIO);
        setting.check(view, &Action::BodyTooLong(5), ALWAYS, EIO);
        setting.check(view, &Action::WrongHeadSize(7), ALWAYS, Right);
    }
}

#[test]
fn wrong_bytes_are_never_believed() {
    let setting = Setting::new();
    for view in VIEWS {
        let len = setting.layer(view).blob.len() as u64;
        // The file of the first layer ends before the archive's last records.
        let late = if view == View::Spans { len / 2 } else { len - 1 };
        for at in [0, 1000, len / 2, late] {
            setting.check(view, &Action::WrongBytes { at }, ALWAYS, EIO);
        }
    }
}

#[test]
fn one_reader_of_wrong_bytes_costs_one_fetch() {
    let setting = Setting::new();
    for view in [View::Whole, View::Stream, View::Strict] {
        let (layer, mount) = (setting.layer(view), setting.mount(view, &[]));
        let wrong = Action::WrongBytes { at: layer.blob.len() as u64 - 1 };
        setting.registry.inject(Fault::new(wrong).blob(&layer.digest).always());
        let began = Instant::now();
        let outcome = fs::read(mount.path().join(setting.path(view)));
        assert_eq!(outcome.expect_err("wrong").raw_os_error(), Some(5), "{view:?}");
        let sent = setting.registry.bytes_sent(&layer.digest);
        // A machine that is busy for longer than wrong bytes are remembered may fetch again.
        if began.elapsed() < second() {
            assert_eq!(sent, layer.blob.len() as u64, "{view:?}");
        }
        setting.registry.clear_faults();
    }
}

#[test]
fn a_registry_that_is_gone_and_comes_back_is_seen_at_once_and_what_is_here_stays_readable() {
    let setting = Setting::new();
    for view in VIEWS {
        let mount = setting.mount(view, &["--deadline", PATIENT]);
        let path = mount.path().join(setting.path(view));
        setting.registry.pause();
        let error = fs::read(&path).expect_err("nobody has it");
        assert_eq!(error.raw_os_error(), Some(5), "{view:?}: {error}");
        assert!(failures(&mount).iter().any(|l| l.contains("cannot connect")), "{view:?}");
        assert!(fs::symlink_metadata(&path).is_ok(), "the tree answers");
        setting.registry.resume();
        assert!(recovered(&path) == setting.expected_bytes(view), "{view:?}");
        setting.registry.pause();
        assert!(fs::read(&path).expect("it is here") == setting.expected_bytes(view), "{view:?}");
        let again = setting.room.mount(&setting.layout, &["--deadline", PATIENT]);
        if view == View::Whole {
            let read = fs::read(again.path().join("whole")).expect("cached on disk");
            assert!(read == content("whole"));
        }
        drop((again, mount));
        setting.registry.resume();
    }
}

#[test]
fn an_address_that_has_expired_is_asked_for_again() {
    let setting = Setting::new();
    let storage = Registry::start_on("127.0.0.2:0");
    for view in VIEWS {
        setting.registry.redirect_blobs_to(&storage, Duration::from_secs(300));
        let mount = setting.mount(view, &["--deadline", PATIENT]);
        let path = mount.path().join(setting.path(view));
        // Cut in the middle, and the address dies meanwhile.
        let digest = setting.layer(view).digest;
        storage.inject(Fault::new(Action::CutBodyAt(10_000)).blob(&digest));
        storage.inject(Fault::new(Action::Status(403, vec![])).blob(&digest));
        assert!(fs::read(&path).expect("mended") == setting.expected_bytes(view), "{view:?}");
        assert_eq!(storage.faults_left(), 0);
        assert!(storage.requests().iter().all(|r| r.authorization.is_none()));
        // Addresses that are dead when they are given.
        setting.registry.redirect_blobs_to(&storage, Duration::ZERO);
        let mount = setting.mount(view, &["--deadline", PATIENT]);
        let error = fs::read(mount.path().join(setting.path(view))).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(5), "{view:?}");
        let lines = failures(&mount);
        let last = lines.last().expect("it is told");
        assert!(last.contains("the storage behind the registry refused"), "{last}");
        assert!(last.contains("signature=REDACTED"), "{last}");
    }
}

/// A first contact is a command: it ends with an exit code, and leaves no mount.
fn first_contact(action: &Action) -> (Option<i32>, String) {
    let (registry, room) = (Registry::start(), Room::new());
    let layer = LayerBuilder::new().file("a", 0o644, content("a"));
    let image = ImageBuilder::new().layer(layer, Compression::Gzip).build();
    image.push(&registry, "team/app", "v1");
    let layout = room.path().join("layout").display().to_string();
    room.layoutfs(&["sparse", &registry.reference("team/app", "v1"), "--to", &layout]);
    let digest = image.layers[0].digest;
    registry.inject(Fault::new(action.clone()).blob(&digest).always());
    let mnt = room.path().join("mnt").display().to_string();
    fs::create_dir(&mnt).expect("a directory");
    let outcome = room.run(&["mount", &layout, &mnt, "--deadline", DEADLINE]);
    assert_eq!(fs::read_dir(&mnt).expect("not mounted").count(), 0, "{outcome}");
    assert!(outcome.stderr.contains(&digest.to_string()), "{action:?}: {outcome}");
    assert!(outcome.stderr.contains(&registry.host()), "{action:?}: {outcome}");
    registry.clear_faults();
    let mount = room.mount(&layout, &[]);
    assert!(fs::read(mount.path().join("a")).expect("read") == content("a"), "{action:?}");
    (outcome.code(), outcome.stderr)
}

#[test]
fn a_first_contact_that_fails_has_its_exit_code_and_names_layer_and_source() {
    for (action, code) in [
        (Action::HangUp, 6),
        (Action::CutBodyAt(1000), 6),
        (Action::Stall, 6),
        (Action::Drip { bytes: 1, every: second() / 5 }, 6),
        (Action::Status(500, vec![]), 6),
        (Action::Status(429, retry_after(3600)), 6),
        (Action::Status(401, vec![]), 4),
        (Action::Status(403, vec![]), 4),
        (Action::Status(404, vec![]), 5),
        (Action::WrongContentRange, 6),
        (Action::MissingContentRange, 6),
        (Action::BodyTooLong(1), 6),
        (Action::WrongBytes { at: 0 }, 7),
        (Action::WrongBytes { at: 5000 }, 7),
        (Action::RedirectLoop, 6),
    ] {
        let (exit, stderr) = first_contact(&action);
        assert_eq!(exit, Some(code), "{action:?}: {stderr}");
    }
}

#[test]
fn reads_of_a_slow_registry_do_not_wait_for_each_other_beyond_the_deadline() {
    let setting = Setting::new();
    let mount = setting.mount(View::Spans, &["--deadline", DEADLINE]);
    let digest = setting.layer(View::Spans).digest;
    setting.registry.inject(Fault::new(Action::Stall).blob(&digest).always());
    let began = Instant::now();
    std::thread::scope(|scope| {
        for reader in 0..8_u64 {
            let file = fs::File::open(mount.path().join("spans")).expect("opened");
            scope.spawn(move || {
                let mut byte = [0];
                let error = file.read_exact_at(&mut byte, reader * 80_000).expect_err("stalled");
                assert_eq!(error.raw_os_error(), Some(110), "{error}");
            });
        }
    });
    assert!(began.elapsed() < ENDS_WITHIN, "{:?}", began.elapsed());
    setting.registry.clear_faults();
}
