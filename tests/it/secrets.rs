//! Credentials through the life of a mount: renewed when they must be, and seen by nobody else.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::faults::{Action, Fault};
use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::mount::{Mount, Room};
use crate::support::registry::Registry;
use crate::support::tokens::{Auth, Bearer, Login, base64};

const PASSWORD: &str = "a-password-that-nobody-else-may-see";
/// More than is decoded for one read: a layer of one gzip member is then read whole.
const FILE_BYTES: usize = 9 << 20;

/// A registry that wants a login, its storage on another host, and an image there.
struct Setting {
    registry: Registry,
    storage: Registry,
    room: Arc<Room>,
    image: Image,
    authfile: PathBuf,
}

impl Setting {
    fn new(auth: Auth) -> Self {
        let (registry, room) = (Registry::start(), Room::new());
        let storage = Registry::start_on("127.0.0.2:0");
        let file = |name: &str| LayerBuilder::new().file(name, 0o644, content(name));
        let image = ImageBuilder::new()
            .layer(file("spans"), Compression::GzipMembers(64 << 10))
            .layer(file("whole"), Compression::Zstd)
            .build();
        image.push(&registry, "team/app", "v1");
        registry.redirect_blobs_to(&storage, Duration::from_secs(300));
        registry.set_auth(auth);
        let authfile = room.path().join("auth.json");
        let setting = Setting { registry, storage, room, image, authfile };
        setting.log_in("ann", PASSWORD);
        setting
    }

    fn log_in(&self, user: &str, password: &str) {
        let auth = base64(format!("{user}:{password}").as_bytes());
        let file = json!({"auths": {self.registry.host(): {"auth": auth}}});
        fs::write(&self.authfile, file.to_string()).expect("written");
    }

    /// A mount with everything in its log, whose indexes are known and whose blobs are not here.
    fn mount(&self) -> Mount {
        let authfile = self.authfile.display().to_string();
        let layout = self.room.path().join("layout").display().to_string();
        let reference = self.registry.reference("team/app", "v1");
        let options = ["--authfile", &authfile, "-vvv", "--deadline", "5s"];
        if !self.room.path().join("layout").exists() {
            let args = ["sparse", &reference, "--to", &layout];
            self.room.layoutfs(&[&args[..], &options[..2]].concat());
            self.room.mount(&layout, &options).unmount();
        }
        self.room.layoutfs(&["cache", "prune"]);
        self.room.mount(&layout, &options)
    }
}

fn ann() -> Login {
    Login::new("ann", PASSWORD)
}

fn content(name: &str) -> Vec<u8> {
    generated(name, FILE_BYTES).to_vec()
}

fn status(mount: &Mount) -> Value {
    let path = mount.path().display().to_string();
    let json = mount.room().layoutfs(&["status", "--json", &path]);
    serde_json::from_str(&json).expect("status prints JSON")
}

/// Everything that others may see of a mount's daemon, or that stays of it.
fn seen_of(mount: &Mount) -> String {
    let status = status(mount);
    let log = fs::read_to_string(status["log"].as_str().expect("a path")).expect("its log");
    let pid = status["pid"].as_i64().expect("a pid");
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).expect("it runs");
    let ps = Command::new("ps").args(["axww", "-o", "args"]).output().expect("ps runs").stdout;
    let human = mount.room().layoutfs(&["status", &mount.path().display().to_string()]);
    let texts = [arguments, ps].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let [arguments, ps] = texts;
    assert!(arguments.contains("mount") && ps.contains("layoutfs"), "they are what we think");
    assert!(log.contains("DEBUG"), "everything is logged:\n{log}");
    [log, arguments, ps, human, status.to_string()].concat()
}

fn assert_secret(seen: &str) {
    let basic = base64(format!("ann:{PASSWORD}").as_bytes());
    for secret in [PASSWORD, &basic, "Bearer token-", "token-1", "token-2"] {
        assert!(!seen.contains(secret), "{secret} is in what others see:\n{seen}");
    }
    // Addresses that the registry signed are as good as credentials while they hold.
    for line in seen.lines().filter(|line| line.contains("signature=")) {
        assert!(line.contains("signature=REDACTED"), "{line}");
    }
}

#[test]
fn no_credential_is_in_a_log_a_process_list_a_status_or_at_another_host() {
    for auth in [
        Auth::Basic(ann()),
        Auth::Bearer(Bearer { login: Some(ann()), uses_max: Some(2), ..Bearer::default() }),
    ] {
        let setting = Setting::new(auth);
        let mount = setting.mount();
        assert!(fs::read(mount.path().join("spans")).expect("read") == content("spans"));
        // And what fails says no more.
        let digest = setting.image.layers[1].digest;
        setting.registry.inject(Fault::new(Action::Status(403, vec![])).blob(&digest).always());
        setting.storage.inject(Fault::new(Action::Status(403, vec![])).blob(&digest).always());
        assert!(fs::read(mount.path().join("whole")).is_err());
        assert_secret(&seen_of(&mount));
        let shown = setting.storage.requests();
        assert!(!shown.is_empty() && shown.iter().all(|r| r.authorization.is_none()));
        setting.registry.clear_faults();
        setting.storage.clear_faults();
    }
}

#[test]
fn tokens_that_live_a_second_or_two_requests_are_no_error_to_a_full_scan() {
    let bearer = Bearer {
        login: Some(ann()),
        lifetime: Duration::from_secs(1),
        uses_max: Some(2),
        ..Bearer::default()
    };
    let setting = Setting::new(Auth::Bearer(bearer));
    let slow = Action::Drip { bytes: 60_000, every: Duration::from_millis(20) };
    let mount = setting.mount();
    // Addresses live as long as tokens, and bodies break, so that the rest is asked for anew.
    setting.registry.redirect_blobs_to(&setting.storage, Duration::from_secs(1));
    for _ in 0..3 {
        setting.storage.inject(Fault::new(Action::CutBodyAt(30_000)));
    }
    setting.storage.inject(Fault::new(slow).always());
    let began = Instant::now();
    for name in ["spans", "whole"] {
        assert!(fs::read(mount.path().join(name)).expect("no error") == content(name), "{name}");
    }
    assert!(began.elapsed() > Duration::from_secs(2), "tokens had the time to expire");
    assert_eq!(status(&mount)["read_errors"], 0);
    assert_secret(&seen_of(&mount));
}

#[test]
fn a_password_that_was_changed_during_a_mount_is_read_from_its_file() {
    let setting = Setting::new(Auth::Basic(ann()));
    let mount = setting.mount();
    assert!(fs::read(mount.path().join("spans")).expect("read") == content("spans"));
    setting.registry.set_auth(Auth::Basic(Login::new("ann", "another")));
    let error = fs::read(mount.path().join("whole")).expect_err("the old one is refused");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    setting.log_in("ann", "another");
    assert!(fs::read(mount.path().join("whole")).expect("the new one") == content("whole"));
}

#[test]
fn a_refusal_of_an_expired_token_by_403_is_answered_with_a_new_one() {
    let bearer = Bearer { login: Some(ann()), ..Bearer::default() };
    let setting = Setting::new(Auth::Bearer(bearer));
    let mount = setting.mount();
    assert!(fs::read(mount.path().join("spans")).expect("read") == content("spans"));
    let digest = setting.image.layers[1].digest;
    setting.registry.clear();
    setting.registry.inject(Fault::new(Action::Status(403, vec![])).blob(&digest));
    assert!(fs::read(mount.path().join("whole")).expect("renewed") == content("whole"));
    let asked = setting.registry.requests();
    let tokens = asked.iter().filter(|r| r.path == "/token").count();
    assert!(tokens >= 1, "a new token was asked for: {asked:#?}");
    // One that is refused for good costs one more attempt, and is told as what it is.
    setting.room.layoutfs(&["cache", "prune"]);
    let other = setting.room.mount(
        &setting.room.path().join("layout").display().to_string(),
        &["--authfile", &setting.authfile.display().to_string()],
    );
    setting.registry.clear();
    setting.registry.inject(Fault::new(Action::Status(403, vec![])).blob(&digest).always());
    assert!(fs::read(other.path().join("whole")).is_err());
    let log = fs::read_to_string(status(&other)["log"].as_str().expect("a path")).expect("a log");
    assert!(log.contains("403 Forbidden"), "{log}");
    assert!(setting.registry.blob_requests(&digest).len() <= 12, "it is not asked for ever");
    setting.registry.clear_faults();
}
