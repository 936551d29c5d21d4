//! The test support itself: the registry speaks the protocol, faults are what they say, and what a
//! test leaves behind is found.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use layoutfs::layout::Digest;

use crate::support::faults::{Action, Fault};
use crate::support::ground::Ground;
use crate::support::image::ImageBuilder;
use crate::support::layer::{Compression, LayerBuilder};
use crate::support::mount::{Room, mountpoints};
use crate::support::registry::Registry;
use crate::support::tokens::{Auth, Bearer, Login};

/// An answer as it came over the socket.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// One request on its own connection; `None` when the connection ends without a whole head.
fn ask(method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<Answer> {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut head = format!("{method} /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut bytes = Vec::new();
    // A cut connection is an error or an end, as the kernel likes.
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Some(Answer { status, head, body: bytes.split_off(end + 4) })
}

fn get(url: &str, headers: &[(&str, &str)]) -> Answer {
    ask("GET", url, headers, b"").expect("an answer")
}

/// A registry with one blob of 100,000 bytes, and its address.
fn with_blob() -> (Registry, Digest, String, Vec<u8>) {
    let registry = Registry::start();
    let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    let digest = registry.put_blob("a/b", bytes.clone());
    let url = format!("{}/v2/a/b/blobs/{digest}", registry.url());
    (registry, digest, url, bytes)
}

#[test]
fn a_blob_is_served_whole_by_range_and_by_suffix() {
    let (registry, digest, url, bytes) = with_blob();
    let whole = get(&url, &[]);
    assert_eq!((whole.status, &whole.body), (200, &bytes));
    assert_eq!(whole.header("docker-content-digest"), Some(digest.to_string().as_str()));
    let head = ask("HEAD", &url, &[], b"").unwrap();
    assert_eq!((head.header("content-length"), head.body.len()), (Some("100000"), 0));
    for (range, start, end) in [
        ("bytes=0-0", 0, 1),
        ("bytes=99990-", 99_990, 100_000),
        ("bytes=10-200000", 10, 100_000),
        ("bytes=-5", 99_995, 100_000),
        ("bytes=-200000", 0, 100_000),
    ] {
        let part = get(&url, &[("range", range)]);
        assert_eq!((part.status, &part.body[..]), (206, &bytes[start..end]), "{range}");
        let expected = format!("bytes {start}-{}/100000", end - 1);
        assert_eq!(part.header("content-range"), Some(expected.as_str()));
    }
    for range in ["bytes=100000-", "bytes=-0"] {
        let refused = get(&url, &[("range", range)]);
        assert_eq!(
            (refused.status, refused.header("content-range")),
            (416, Some("bytes */100000"))
        );
    }
    for ignored in ["bytes=0-1,5-6", "lines=0-1", "bytes=9-2"] {
        assert_eq!(get(&url, &[("range", ignored)]).status, 200, "{ignored}");
    }
    assert_eq!(get(&url.replace("/a/b/", "/a/c/"), &[]).status, 404, "another repository");
    let seen = registry.blob_requests(&digest);
    assert_eq!((seen[0].sent_bytes, seen[1].sent_bytes, seen[2].sent_bytes), (100_000, 0, 1));
    assert_eq!((seen[2].range.as_deref(), seen[2].status), (Some("bytes=0-0"), 206));
}

#[test]
fn a_manifest_is_found_by_tag_and_by_digest_with_its_media_type() {
    let registry = Registry::start();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let digest = registry.put_manifest("a/b", media_type, "{}");
    registry.tag("a/b", "latest", digest);
    for reference in ["latest", &digest.to_string(), &digest.to_string().replace(':', "%3A")] {
        let found = get(&format!("{}/v2/a/b/manifests/{reference}", registry.url()), &[]);
        assert_eq!((found.status, &found.body[..]), (200, &b"{}"[..]));
        assert_eq!(found.header("content-type"), Some(media_type));
        assert_eq!(found.header("docker-content-digest"), Some(digest.to_string().as_str()));
    }
    let missing = get(&format!("{}/v2/a/b/manifests/other", registry.url()), &[]);
    assert_eq!(missing.json()["errors"][0]["code"], "MANIFEST_UNKNOWN");
}

#[test]
fn a_pushed_blob_and_manifest_can_be_read_back() {
    let registry = Registry::start();
    let base = registry.url();
    let opened = ask("POST", &format!("{base}/v2/r/blobs/uploads/"), &[], b"").unwrap();
    let at = format!("{base}{}", opened.header("location").unwrap());
    assert_eq!(ask("PATCH", &at, &[("content-range", "0-2")], b"abc").unwrap().status, 202);
    assert_eq!(ask("PATCH", &at, &[("content-range", "9-9")], b"x").unwrap().status, 416);
    let digest = Digest::sha256_of(b"abcdef");
    let finished = ask("PUT", &format!("{at}?digest={digest}"), &[], b"def").unwrap();
    assert_eq!(finished.status, 201);
    let mount = format!("{base}/v2/other/blobs/uploads/?mount={digest}&from=r");
    assert_eq!(ask("POST", &mount, &[], b"").unwrap().status, 201);
    assert_eq!(get(&format!("{base}/v2/other/blobs/{digest}"), &[]).body, b"abcdef");
    let wrong = format!("{base}/v2/r/blobs/uploads/?digest={digest}");
    assert_eq!(ask("POST", &wrong, &[], b"other").unwrap().status, 400);
    let manifest = format!("{{\"config\":{{\"digest\":\"{digest}\"}},\"layers\":[]}}");
    let headers = [("content-type", "application/json")];
    for (repository, status) in [("r", 201), ("without-blobs", 400)] {
        let url = format!("{base}/v2/{repository}/manifests/v1");
        assert_eq!(ask("PUT", &url, &headers, manifest.as_bytes()).unwrap().status, status);
    }
    assert_eq!(get(&format!("{base}/v2/r/manifests/v1"), &[]).body, manifest.as_bytes());
}

#[test]
fn a_token_opens_only_its_own_repository_until_it_dies() {
    let (registry, _, url, _) = with_blob();
    let login = Login::new("ann", "secret");
    let bearer = Bearer { login: Some(login.clone()), uses_max: Some(2), ..Bearer::default() };
    registry.set_auth(Auth::Bearer(bearer));
    let refused = get(&url, &[]);
    let challenge = refused.header("www-authenticate").unwrap();
    assert_eq!(refused.status, 401);
    assert!(challenge.contains("scope=\"repository:a/b:pull\""), "{challenge}");
    let token_url = |scope: &str| {
        format!("{}/token?service={}&scope=repository:{scope}", registry.url(), registry.host())
    };
    assert_eq!(get(&token_url("a/b:pull"), &[]).status, 401);
    let basic = login.header();
    let token = |scope: &str| {
        let given = get(&token_url(scope), &[("authorization", &basic)]).json();
        format!("Bearer {}", given["token"].as_str().unwrap())
    };
    let other = token("a/c:pull");
    let insufficient = get(&url, &[("authorization", &other)]);
    assert!(insufficient.header("www-authenticate").unwrap().contains("insufficient_scope"));
    let own = token("a/b:pull,push");
    let statuses = [(); 3].map(|()| get(&url, &[("authorization", &own)]).status);
    assert_eq!(statuses, [200, 200, 401]);
    let seen = registry.requests();
    assert_eq!(seen.last().unwrap().authorization.as_deref(), Some("Bearer"));
    registry.set_auth(Auth::Basic(login));
    assert_eq!(get(&url, &[("authorization", &basic)]).status, 200);
    assert_eq!(get(&url, &[("authorization", "Basic eA==")]).status, 401);
}

#[test]
fn an_identity_token_buys_a_token_by_post() {
    let (registry, _, url, _) = with_blob();
    let bearer = Bearer { identity_token: Some("id+1".into()), ..Bearer::default() };
    registry.set_auth(Auth::Bearer(bearer));
    let form = |identity: &str| {
        let host = registry.host();
        let form = format!(
            "grant_type=refresh_token&refresh_token={identity}&service={host}\
             &scope=repository%3Aa%2Fb%3Apull"
        );
        ask("POST", &format!("{}/token", registry.url()), &[], form.as_bytes()).unwrap()
    };
    assert_eq!(form("wrong").status, 401);
    let given = form("id%2B1").json();
    let token = format!("Bearer {}", given["access_token"].as_str().unwrap());
    assert_eq!(get(&url, &[("authorization", &token)]).status, 200);
    registry.revoke_tokens();
    assert_eq!(get(&url, &[("authorization", &token)]).status, 401);
}

#[test]
fn a_redirected_blob_is_behind_a_signature_that_can_be_revoked() {
    let (registry, digest, url, bytes) = with_blob();
    let storage = Registry::start_on("127.0.0.2:0");
    registry.redirect_blobs_to(&storage, Duration::from_secs(600));
    let sent_on = get(&url, &[]);
    let signed = sent_on.header("location").unwrap();
    assert_eq!((sent_on.status, sent_on.body.len()), (307, 0));
    let part = get(signed, &[("range", "bytes=10-19")]);
    assert_eq!((part.status, &part.body[..]), (206, &bytes[10..20]));
    assert_eq!(get(&signed.replace("signature=", "signature=0"), &[]).status, 403);
    registry.revoke_redirects();
    assert_eq!(get(signed, &[]).status, 403);
    assert_eq!(storage.blob_requests(&digest).len(), 3);
    let expired = Registry::start_on("127.0.0.2:0");
    registry.redirect_blobs_to(&expired, Duration::ZERO);
    let signed = get(&url, &[]);
    assert_eq!(get(signed.header("location").unwrap(), &[]).status, 403);
}

#[test]
fn each_fault_changes_the_answer_as_it_says_and_then_vanishes() {
    let (registry, digest, url, bytes) = with_blob();
    let range = [("range", "bytes=100-199")];
    let faulty = |action: Action| {
        registry.inject(Fault::new(action).blob(&digest));
        get(&url, &range)
    };
    let cut = faulty(Action::CutBodyAt(7));
    assert_eq!((cut.header("content-length"), &cut.body[..]), (Some("100"), &bytes[100..107]));
    let busy = faulty(Action::Status(503, vec![("retry-after", "7".into())]));
    assert_eq!((busy.status, busy.header("retry-after")), (503, Some("7")));
    let whole = faulty(Action::IgnoreRange);
    assert_eq!((whole.status, whole.body.len()), (200, 100_000));
    let shifted = faulty(Action::WrongContentRange);
    assert_eq!(shifted.header("content-range"), Some("bytes 101-200/100000"));
    assert_eq!(faulty(Action::MissingContentRange).header("content-range"), None);
    let long = faulty(Action::BodyTooLong(5));
    assert_eq!((long.header("content-length"), long.body.len()), (Some("105"), 105));
    let wrong = faulty(Action::WrongBytes { at: 150 });
    assert_eq!((wrong.body[49], wrong.body[50]), (bytes[149], !bytes[150]));
    assert_eq!(
        faulty(Action::RedirectTo("http://x/".into())).header("location"),
        Some("http://x/")
    );
    let around = faulty(Action::RedirectLoop);
    assert!(around.header("location").is_some_and(|to| url.ends_with(to)));
    let drip = faulty(Action::Drip { bytes: 40, every: Duration::from_millis(1) });
    assert_eq!(drip.body, &bytes[100..200]);
    let chunked = faulty(Action::Chunked);
    assert_eq!(chunked.header("transfer-encoding"), Some("chunked"));
    registry.inject(Fault::new(Action::WrongHeadSize(5)).method("HEAD"));
    let head = ask("HEAD", &url, &[], b"").unwrap();
    assert_eq!((head.header("content-length"), head.body.len()), (Some("5"), 0));
    registry.inject(Fault::new(Action::HangUp));
    assert!(ask("GET", &url, &[], b"").is_none());
    assert_eq!(registry.faults_left(), 0);
    assert_eq!(get(&url, &range).body, &bytes[100..200]);
}

#[test]
fn a_fault_waits_for_its_request_and_lasts_its_times() {
    let (registry, digest, url, _) = with_blob();
    let status = |code| Action::Status(code, Vec::new());
    registry.inject(Fault::new(status(500)).blob(&digest).after(1).times(2));
    registry.inject(Fault::new(status(429)).path("/manifests/").always());
    let statuses = [(); 4].map(|()| get(&url, &[]).status);
    assert_eq!(statuses, [200, 500, 500, 200]);
    let manifest = format!("{}/v2/a/b/manifests/x", registry.url());
    assert_eq!([(); 2].map(|()| get(&manifest, &[]).status), [429, 429]);
    registry.clear_faults();
    assert_eq!(get(&manifest, &[]).status, 404);
}

#[test]
fn a_stalled_answer_never_comes() {
    let (registry, digest, url, bytes) = with_blob();
    let host = registry.host();
    let path = url.split_once(&host).unwrap().1;
    for (action, body_bytes) in [(Action::StallAt(7), 7), (Action::Stall, 0)] {
        registry.inject(Fault::new(action).blob(&digest));
        let mut stream = TcpStream::connect(&host).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut seen = Vec::new();
        let mut byte = [0];
        while body_bytes > 0 && !seen.ends_with(&[b"\r\n\r\n", &bytes[..body_bytes]].concat()) {
            stream.read_exact(&mut byte).expect("what comes before the stall");
            seen.push(byte[0]);
        }
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let ended = stream.read_exact(&mut byte).unwrap_err();
        assert_eq!(ended.kind(), std::io::ErrorKind::WouldBlock, "the connection stands");
    }
}

#[test]
fn a_paused_registry_refuses_connections_and_comes_back_on_its_port() {
    let (registry, _, url, _) = with_blob();
    let mut idle = TcpStream::connect(registry.host()).unwrap();
    assert_eq!(get(&url, &[]).status, 200);
    registry.pause();
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0, "standing connections are cut");
    let refused = TcpStream::connect(registry.host()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    registry.resume();
    assert_eq!(get(&url, &[]).status, 200);
}

/// What it says when it panics.
#[track_caller]
fn panic_of(it: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(it)).expect_err("it does not panic");
    panic.downcast::<String>().map_or_else(|_| "without words".to_owned(), |text| *text)
}

fn is_mounted_below(dir: &Path) -> bool {
    mountpoints().iter().any(|path| path.starts_with(dir))
}

fn mount_tmpfs(at: &Path) {
    fs::create_dir(at).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(at).status();
    assert!(mounted.unwrap().success());
}

#[test]
fn a_mount_that_a_test_leaves_is_found_and_taken_away() {
    let ground = Ground::new();
    let at = ground.path().to_owned();
    mount_tmpfs(&at.join("left"));
    let said = panic_of(|| drop(ground));
    assert!(said.contains(&format!("mounted: {}/left", at.display())), "{said}");
    assert!(!is_mounted_below(&at) && !at.exists());
}

#[test]
fn a_daemon_that_a_test_leaves_is_found_with_its_mount_and_its_record() {
    let (registry, room) = (Registry::start(), Room::new());
    let layer = LayerBuilder::text("file name = x");
    let image = ImageBuilder::new().layer(layer, Compression::Gzip).build();
    image.push(&registry, "a", "v1");
    let at = room.path().to_owned();
    fs::create_dir(at.join("mnt")).unwrap();
    let reference = format!("docker://{}", registry.reference("a", "v1"));
    let mnt = at.join("mnt").display().to_string();
    let upper = at.join("upper").display().to_string();
    room.layoutfs(&["mount", &reference, &mnt, "--upper", &upper]);
    let status = room.layoutfs(&["status", "--json", &mnt]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let said = panic_of(|| drop(room));
    for left in ["mounted: ", "running: ", "recorded: "] {
        assert!(said.contains(left), "{left}: {said}");
    }
    assert!(said.contains(&format!("running: {}: ", status["pid"])), "{said}");
    assert!(!is_mounted_below(&at) && !at.exists());
    let daemon = format!("/proc/{}/cmdline", status["pid"]);
    assert!(fs::read(daemon).unwrap_or_default().is_empty(), "the daemon is dead");
}

#[test]
fn a_process_that_a_test_leaves_is_found_by_whatever_names_the_directory() {
    // A container's processes say nothing of where their root directory comes from.
    let script = "cd $1; mkdir lower root; mount -t overlay overlay -o lowerdir=$1/lower:/usr root; \
        cd root; pivot_root . share; cd /; exec /bin/env -i /bin/sleep 600";
    let in_container = ["unshare", "--mount", "sh", "-ec", script, "sh"];
    let environment = ["sh", "-c", "exec env -i WHERE=$1 sleep 600", "sh"];
    let arguments = ["sh", "-c", "read -r _; true"];
    let directory = ["sh", "-c", "cd $1; exec env -i sleep 600", "sh"];
    for way in [&in_container[..], &environment, &arguments, &directory] {
        let ground = Ground::with_patience(Duration::ZERO);
        let mut left = Command::new(way[0]);
        let mut left =
            left.args(&way[1..]).arg(ground.path()).stdin(Stdio::piped()).spawn().unwrap();
        let is_there = |comm: &str| comm == if way == arguments { "sh\n" } else { "sleep\n" };
        while !is_there(&fs::read_to_string(format!("/proc/{}/comm", left.id())).unwrap()) {
            assert!(left.try_wait().unwrap().is_none(), "{way:?} does not work");
            std::thread::sleep(Duration::from_millis(1));
        }
        let said = panic_of(|| drop(ground));
        assert!(said.contains(&format!("running: {}: ", left.id())), "{way:?}: {said}");
        assert!(!left.wait().unwrap().success(), "it was killed");
    }
}

#[test]
fn a_process_that_is_about_to_end_is_waited_for() {
    let ground = Ground::new();
    let mut ending = Command::new("sh");
    let mut ending =
        ending.args(["-c", "sleep 0.2; true", "sh"]).arg(ground.path()).spawn().unwrap();
    drop(ground);
    assert!(ending.wait().unwrap().success(), "it was not killed");
}

#[test]
fn a_file_that_a_test_keeps_open_is_found_when_the_last_one_leaves_the_room() {
    let room = Room::new();
    let at = room.path().join("kept");
    let kept = File::create(&at).unwrap();
    let shared = Arc::clone(&room);
    drop(room);
    // Also when its name is gone.
    fs::remove_file(&at).unwrap();
    let said = panic_of(|| drop(shared));
    assert!(said.contains(&format!("open: {}", at.display())), "{said}");
    drop(kept);
}

#[test]
fn a_test_that_fails_fails_with_its_own_words_and_leaves_nothing() {
    let ground = Ground::new();
    let at = ground.path().to_owned();
    let said = panic_of(|| {
        let ground = ground;
        mount_tmpfs(&ground.path().join("left"));
        panic!("{}", "the test's own words");
    });
    assert_eq!(said, "the test's own words");
    assert!(!is_mounted_below(&at) && !at.exists());
}
