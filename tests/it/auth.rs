//! Credentials: which are found, to whom they are shown, and how long tokens are kept.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use layoutfs::fetch::auth::keychain::KeychainConfig;
use layoutfs::fetch::registry::{Registries, Registry as Client};
use layoutfs::fetch::{Deadline, ErrorKind, Source};
use layoutfs::layout::Blob;
use layoutfs::layout::range::ByteRange;

use crate::source_suite::read;
use crate::support::ground::Ground;
use crate::support::registry::Registry;
use crate::support::tokens::{Auth, Bearer, Login, base64};

const CONTENT: &[u8] = b"nobody may read this without asking";
const WHOLE: ByteRange = ByteRange { start: 0, end: CONTENT.len() as u64 };

/// A registry with one blob that wants `auth`.
fn guarded(auth: Auth) -> (Registry, Blob) {
    let registry = Registry::start();
    let digest = registry.put_blob("a/b", CONTENT);
    registry.set_auth(auth);
    (registry, Blob { digest, size: CONTENT.len() as u64 })
}

fn client(registry: &Registry, keychain: &KeychainConfig) -> Client {
    let registries = Registries::new(keychain, false).unwrap();
    registries.repository(&registry.reference("a/b", "latest").parse().unwrap())
}

fn ann() -> Login {
    Login::new("ann", "secret-password")
}

fn bearer_of_ann() -> Bearer {
    Bearer { login: Some(ann()), ..Bearer::default() }
}

/// A keychain of one file with these contents.
fn keychain_of(dir: &Path, json: &serde_json::Value) -> KeychainConfig {
    let file = dir.join("auth.json");
    std::fs::write(&file, json.to_string()).unwrap();
    KeychainConfig { authfile: Some(file), ..KeychainConfig::default() }
}

fn login_of_ann(registry: &Registry, dir: &Path) -> KeychainConfig {
    let auth = base64(b"ann:secret-password");
    keychain_of(dir, &serde_json::json!({"auths": {registry.host(): {"auth": auth}}}))
}

/// Paths and statuses of all requests, in order.
fn seen(registry: &Registry) -> Vec<(String, u16)> {
    let requests = registry.requests().into_iter();
    requests.map(|r| (r.path.rsplit('/').nth(1).unwrap_or_default().to_owned(), r.status)).collect()
}

fn count(registry: &Registry, path: &str) -> usize {
    registry.requests().iter().filter(|r| r.path == path).count()
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_and_kept() {
    let (registry, blob) = guarded(Auth::Bearer(Bearer::default()));
    let client = client(&registry, &KeychainConfig::default());
    for _ in 0..3 {
        assert_eq!(read(&client, &blob, WHOLE).await.unwrap(), CONTENT);
    }
    let statuses: Vec<u16> = seen(&registry).iter().map(|(_, status)| *status).collect();
    assert_eq!(statuses, [401, 200, 206, 206, 206]);
    assert!(registry.requests()[1].query.contains("scope=repository"));
}

#[tokio::test]
async fn readers_that_need_the_same_token_share_its_fetch() {
    let (registry, blob) = guarded(Auth::Bearer(Bearer::default()));
    let client = Arc::new(client(&registry, &KeychainConfig::default()));
    let reads = (0..8).map(|_| {
        let client = Arc::clone(&client);
        tokio::spawn(async move { read(&*client, &blob, WHOLE).await.unwrap() })
    });
    for read in reads.collect::<Vec<_>>() {
        assert_eq!(read.await.unwrap(), CONTENT);
    }
    assert_eq!(count(&registry, "/token"), 1);
}

#[tokio::test]
async fn user_and_password_open_basic_and_bearer_registries() {
    for auth in [Auth::Basic(ann()), Auth::Bearer(bearer_of_ann())] {
        let (registry, blob) = guarded(auth);
        let dir = Ground::new();
        let client = client(&registry, &login_of_ann(&registry, dir.path()));
        for _ in 0..2 {
            assert_eq!(read(&client, &blob, WHOLE).await.unwrap(), CONTENT);
        }
        let refused = registry.requests().iter().filter(|r| r.status == 401).count();
        assert_eq!(refused, 1, "the second read knows");
    }
}

#[tokio::test]
async fn a_token_that_dies_in_the_middle_is_renewed_once() {
    let bearer = Bearer { uses_max: Some(2), ..bearer_of_ann() };
    let (registry, blob) = guarded(Auth::Bearer(bearer));
    let dir = Ground::new();
    let client = client(&registry, &login_of_ann(&registry, dir.path()));
    for _ in 0..5 {
        assert_eq!(read(&client, &blob, WHOLE).await.unwrap(), CONTENT);
    }
    let statuses: Vec<u16> = registry.requests().iter().map(|r| r.status).collect();
    let renewal = [401, 200, 206, 206];
    assert_eq!(statuses, [&renewal[..], &renewal[..], &renewal[..3]].concat());
}

#[tokio::test]
async fn a_registry_that_refuses_its_own_tokens_is_not_asked_for_ever() {
    let bearer = Bearer { uses_max: Some(0), ..Bearer::default() };
    let (registry, blob) = guarded(Auth::Bearer(bearer));
    let client = client(&registry, &KeychainConfig::default());
    let error = read(&client, &blob, WHOLE).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Authentication, "{error}");
    assert_eq!(registry.requests().len(), 3);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let bearer = Bearer { lifetime: Duration::from_secs(1), ..Bearer::default() };
    let (registry, blob) = guarded(Auth::Bearer(bearer));
    let client = client(&registry, &KeychainConfig::default());
    assert_eq!(read(&client, &blob, WHOLE).await.unwrap(), CONTENT);
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(read(&client, &blob, WHOLE).await.unwrap(), CONTENT);
    let statuses: Vec<u16> = registry.requests().iter().map(|r| r.status).collect();
    assert_eq!(statuses, [401, 200, 206, 200, 206], "no second 401");
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let bearer = Bearer { identity_token: Some("it-secret".to_owned()), ..Bearer::default() };
    let (registry, blob) = guarded(Auth::Bearer(bearer));
    let dir = Ground::new();
    let entry = serde_json::json!({"auths": {registry.host(): {"identitytoken": "it-secret"}}});
    let client = client(&registry, &keychain_of(dir.path(), &entry));
    assert_eq!(read(&client, &blob, WHOLE).await.unwrap(), CONTENT);
    let token = registry.requests().into_iter().find(|r| r.path == "/token").unwrap();
    assert_eq!((token.method.as_str(), token.query.as_str()), ("POST", ""));
}

/// A keychain whose credentials a program has: this shell script.
fn keychain_of_program(dir: &Path, file: &serde_json::Value, script: &str) -> KeychainConfig {
    use std::os::unix::fs::PermissionsExt as _;

    let program = dir.join("docker-credential-safe");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    KeychainConfig { path: Some(dir.into()), ..keychain_of(dir, file) }
}

#[tokio::test]
async fn a_program_gives_a_login_or_an_identity_token() {
    let bearer = Bearer { identity_token: Some("it-secret".to_owned()), ..bearer_of_ann() };
    let (registry, blob) = guarded(Auth::Bearer(bearer));
    let dir = Ground::new();
    let (host, asked) = (registry.host(), dir.path().join("asked"));
    for (user, secret) in [("ann", "secret-password"), ("<token>", "it-secret")] {
        for file in [
            serde_json::json!({"credsStore": "safe", "auths": {&host: {}}}),
            serde_json::json!({"credHelpers": {&host: "safe"}}),
        ] {
            let answer = serde_json::json!({"Username": user, "Secret": secret});
            let asked = asked.display();
            let script = format!("[ $1 = get ] && read -r s; echo $s > {asked}; echo '{answer}'");
            let keychain = keychain_of_program(dir.path(), &file, &script);
            assert_eq!(read(&client(&registry, &keychain), &blob, WHOLE).await.unwrap(), CONTENT);
        }
    }
    assert_eq!(std::fs::read_to_string(asked).unwrap().trim(), host);
}

#[tokio::test]
async fn a_program_that_fails_is_named_and_its_words_are_not_shown() {
    let (registry, blob) = guarded(Auth::Basic(ann()));
    let dir = Ground::new();
    let specific = serde_json::json!({"credHelpers": {registry.host(): "safe"}});
    for (script, deadline) in [
        ("echo secret-words; echo secret-words >&2; exit 3", 60_000),
        ("echo '{\"Username\":\"secret-words\"}'", 60_000),
        ("exec sleep 600", 300),
    ] {
        let keychain = keychain_of_program(dir.path(), &specific, script);
        let client = client(&registry, &keychain);
        let deadline = Deadline::after(Duration::from_millis(deadline));
        let error = client.read(&blob, WHOLE, deadline).await.err().unwrap();
        assert_eq!(error.kind, ErrorKind::Authentication, "{error}");
        assert!(error.to_string().contains("docker-credential-safe"), "{error}");
        assert!(!error.to_string().contains("secret-words"), "{error}");
    }
    // One that has nothing, and one for all that is not installed, leave us anonymous.
    let nothing = "echo credentials not found in native keychain; exit 1";
    let nothing = keychain_of_program(dir.path(), &specific, nothing);
    let missing = keychain_of(dir.path(), &serde_json::json!({"credsStore": "gone"}));
    for keychain in [nothing, missing] {
        let error = read(&client(&registry, &keychain), &blob, WHOLE).await.unwrap_err();
        assert!(error.to_string().contains("401"), "{error}");
    }
}

#[tokio::test]
async fn the_platforms_environment_variable_comes_first() {
    let (basic, blob) = guarded(Auth::Basic(ann()));
    let (bearer, _) = guarded(Auth::Bearer(Bearer {
        identity_token: Some("it-secret".to_owned()),
        ..bearer_of_ann()
    }));
    let dir = Ground::new();
    let environment = |registry: &Registry, value: &str| KeychainConfig {
        cnb_registry_auth: Some(serde_json::json!({registry.host(): value}).to_string()),
        authfile: Some(dir.path().join("missing")),
        ..KeychainConfig::default()
    };
    for (registry, value) in [
        (&basic, ann().header()),
        (&bearer, ann().header()),
        (&bearer, "X-Identity it-secret".to_owned()),
    ] {
        let client = client(registry, &environment(registry, &value));
        assert_eq!(read(&client, &blob, WHOLE).await.unwrap(), CONTENT, "{value}");
    }
    bearer.clear();
    let own = client(&bearer, &environment(&bearer, "Bearer not-a-live-token"));
    let error = read(&own, &blob, WHOLE).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Authentication, "{error}");
    assert_eq!(count(&bearer, "/token"), 0, "a registry token is shown, not exchanged");
    let shown: Vec<_> = bearer.requests().into_iter().map(|r| r.authorization).collect();
    assert_eq!(shown, [None, Some("Bearer".to_owned())]);
}

#[tokio::test]
async fn a_storage_behind_a_redirect_sees_no_credentials() {
    for auth in [Auth::Basic(ann()), Auth::Bearer(bearer_of_ann())] {
        let (registry, blob) = guarded(auth);
        // The same host with another port is another server.
        for address in ["127.0.0.2:0", "127.0.0.1:0"] {
            let storage = Registry::start_on(address);
            registry.redirect_blobs_to(&storage, Duration::from_secs(300));
            let dir = Ground::new();
            let client = client(&registry, &login_of_ann(&registry, dir.path()));
            for _ in 0..2 {
                assert_eq!(read(&client, &blob, WHOLE).await.unwrap(), CONTENT);
            }
            let shown: Vec<_> = storage.requests().into_iter().map(|r| r.authorization).collect();
            assert_eq!(shown, [None, None]);
        }
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_do_and_no_secret() {
    let (registry, blob) = guarded(Auth::Bearer(Bearer {
        login: Some(Login::new("bob", "other")),
        ..Bearer::default()
    }));
    let dir = Ground::new();
    for keychain in [KeychainConfig::default(), login_of_ann(&registry, dir.path())] {
        let error = read(&client(&registry, &keychain), &blob, WHOLE).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Authentication);
        let text = error.to_string();
        assert!(text.contains(&format!("podman login {}", registry.host())), "{text}");
        assert!(!text.contains("secret-password"), "{text}");
        assert!(!text.contains(&base64(b"ann:secret-password")), "{text}");
    }
}

#[tokio::test]
async fn a_named_file_that_is_missing_is_an_error_only_when_needed() {
    let keychain =
        KeychainConfig { authfile: Some("/nonexistent".into()), ..KeychainConfig::default() };
    let (open, blob) = guarded(Auth::Anonymous);
    assert_eq!(read(&client(&open, &keychain), &blob, WHOLE).await.unwrap(), CONTENT);
    let (closed, _) = guarded(Auth::Basic(ann()));
    let error = read(&client(&closed, &keychain), &blob, WHOLE).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Authentication);
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}
