//! Pushing: what is sent, where to, with which credentials, and what happens when it goes wrong.

use std::time::Duration;

use bytes::Bytes;
use layoutfs::fetch::auth::keychain::KeychainConfig;
use layoutfs::fetch::registry::{MANIFEST_BYTES_MAX, Registries, Registry as Client};
use layoutfs::fetch::retry::ATTEMPTS_MAX;
use layoutfs::fetch::{Deadline, Error, ErrorKind};
use layoutfs::layout::{Blob, Digest};

use crate::source_suite::{client_of, patient};
use crate::support::faults::{Action, Fault};
use crate::support::layer::generated;
use crate::support::registry::{Registry, UploadPlace};
use crate::support::tokens::{Auth, Bearer, Login, base64};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Larger than one piece of a body.
fn content() -> Bytes {
    generated("pushed", 300_000)
}

fn blob_of(bytes: &Bytes) -> Blob {
    Blob { digest: Digest::sha256_of(bytes), size: bytes.len() as u64 }
}

/// Methods and statuses of all requests, in order.
fn seen(registry: &Registry) -> Vec<(String, u16)> {
    registry.requests().into_iter().map(|r| (r.method, r.status)).collect()
}

fn is_like(seen: &[(String, u16)], expected: &[(&str, u16)]) -> bool {
    seen.iter().map(|(method, status)| (method.as_str(), *status)).eq(expected.iter().copied())
}

fn ann() -> Login {
    Login::new("ann", "secret-password")
}

/// A client with ann's credentials in a file of `dir`.
fn client_of_ann(registry: &Registry, dir: &tempfile::TempDir) -> Client {
    let auth = base64(b"ann:secret-password");
    let json = serde_json::json!({"auths": {registry.host(): {"auth": auth}}});
    let file = dir.path().join("auth.json");
    std::fs::write(&file, json.to_string()).unwrap();
    let keychain = KeychainConfig { authfile: Some(file), ..KeychainConfig::default() };
    let registries = Registries::new(&keychain, false).unwrap();
    registries.repository(&registry.reference("a/b", "latest").parse().unwrap())
}

async fn push_fails(registry: &Registry) -> Error {
    client_of(registry, "a/b").push_blob(&content(), patient()).await.unwrap_err()
}

#[tokio::test]
async fn a_blob_is_sent_once() {
    let registry = Registry::start();
    let client = client_of(&registry, "a/b");
    for bytes in [content(), Bytes::new(), Bytes::from_static(b"{}")] {
        registry.clear();
        let pushed = client.push_blob(&bytes, patient()).await.unwrap();
        assert_eq!((pushed.blob, pushed.is_new), (blob_of(&bytes), true));
        assert_eq!(registry.blob(&pushed.blob.digest).unwrap(), bytes);
        let sent = seen(&registry);
        assert!(is_like(&sent, &[("HEAD", 404), ("POST", 202), ("PUT", 201)]), "{sent:?}");
        registry.clear();
        let again = client.push_blob(&bytes, patient()).await.unwrap();
        assert_eq!((again.blob, again.is_new), (blob_of(&bytes), false));
        assert!(is_like(&seen(&registry), &[("HEAD", 200)]), "{:?}", seen(&registry));
    }
}

#[tokio::test]
async fn a_blob_of_another_size_is_sent_anew() {
    let registry = Registry::start();
    registry.put_blob("a/b", content());
    registry.inject(Fault::new(Action::WrongHeadSize(5)));
    let pushed = client_of(&registry, "a/b").push_blob(&content(), patient()).await.unwrap();
    assert!(pushed.is_new);
}

#[tokio::test]
async fn an_upload_goes_on_where_the_registry_says_with_what_it_says() {
    let registry = Registry::start();
    let state = Some("a%2F b&c=d".to_owned());
    for base in [String::new(), registry.url()] {
        registry.set_upload_place(UploadPlace { base, state: state.clone(), is_elsewhere: false });
        let bytes = generated(&registry.requests().len().to_string(), 10);
        assert!(client_of(&registry, "a/b").push_blob(&bytes, patient()).await.unwrap().is_new);
    }
}

#[tokio::test]
async fn an_upload_elsewhere_sees_no_credentials() {
    for auth in [
        Auth::Anonymous,
        Auth::Basic(ann()),
        Auth::Bearer(Bearer { login: Some(ann()), ..Bearer::default() }),
    ] {
        // The same host with another port is another server.
        for address in ["127.0.0.2:0", "127.0.0.1:0"] {
            let (registry, storage) = (Registry::start(), Registry::start_on(address));
            registry.set_auth(auth.clone());
            registry.send_uploads_to(&storage);
            let dir = tempfile::tempdir().unwrap();
            let client = client_of_ann(&registry, &dir);
            assert!(client.push_blob(&content(), patient()).await.unwrap().is_new);
            assert_eq!(registry.blob(&blob_of(&content()).digest).unwrap(), content());
            let shown: Vec<_> = storage.requests().into_iter().map(|r| r.authorization).collect();
            assert_eq!(shown, [None]);
        }
    }
}

#[tokio::test]
async fn an_upload_is_not_sent_where_nothing_may_be_sent() {
    let registry = Registry::start();
    let base = "http://192.0.2.1".to_owned();
    registry.set_upload_place(UploadPlace { base, ..UploadPlace::default() });
    let error = push_fails(&registry).await;
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("--insecure"), "{error}");
    registry.inject(Fault::new(Action::Status(202, vec![])).method("POST"));
    let error = push_fails(&registry).await;
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("202 without Location"), "{error}");
}

#[tokio::test]
async fn one_token_to_pull_and_push_serves_the_whole_push() {
    let registry = Registry::start();
    registry.set_auth(Auth::Bearer(Bearer { login: Some(ann()), ..Bearer::default() }));
    let dir = tempfile::tempdir().unwrap();
    let client = client_of_ann(&registry, &dir);
    client.push_blob(&content(), patient()).await.unwrap();
    client.push_blob(&Bytes::from_static(b"{}"), patient()).await.unwrap();
    let sent = seen(&registry);
    let first = [("HEAD", 401), ("GET", 200), ("HEAD", 404), ("POST", 202), ("PUT", 201)];
    assert!(is_like(&sent, &[&first[..], &first[2..]].concat()), "{sent:?}");
    let scope = "scope=repository%3Aa%2Fb%3Apull%2Cpush";
    assert!(registry.requests()[1].query.contains(scope), "{}", registry.requests()[1].query);
    // Who reads shows a token that cannot write.
    registry.clear();
    let blob = blob_of(&content());
    client.blob_bytes(&blob, blob.size, patient()).await.unwrap();
    assert!(registry.requests()[1].query.ends_with("%3Apull&account=ann"));
    // One that dies between the parts of a push is asked for anew.
    registry.clear();
    registry.revoke_tokens();
    client.push_blob(&generated("other", 10), patient()).await.unwrap();
    assert!(is_like(&seen(&registry), &first), "{:?}", seen(&registry));
}

#[tokio::test]
async fn a_refusal_says_what_to_do() {
    let registry = Registry::start();
    let blob = blob_of(&content());
    for (method, status, kind, words) in [
        ("POST", 401, ErrorKind::Authentication, "podman login"),
        ("POST", 403, ErrorKind::Authentication, "right to write"),
        ("POST", 404, ErrorKind::NotFound, "create it there first"),
        ("POST", 405, ErrorKind::Protocol, "read-only"),
        ("PUT", 413, ErrorKind::Protocol, "a blob of 300000 bytes is more than"),
        ("PUT", 400, ErrorKind::Protocol, "UNAVAILABLE: told to fail"),
        ("HEAD", 403, ErrorKind::Authentication, "right to write"),
    ] {
        registry.clear();
        registry.inject(Fault::new(Action::Status(status, vec![])).method(method));
        let error = push_fails(&registry).await;
        assert_eq!(error.kind, kind, "{method} {status}: {error}");
        assert!(error.to_string().contains(words), "{method} {status}: {error}");
        let start = format!("{method} {}/v2/a/b/blobs/", registry.url());
        assert!(error.to_string().starts_with(&start), "{error}");
        let asked = registry.requests().iter().filter(|r| r.method == method).count();
        assert_eq!(asked, 1, "what lasts is not tried again: {method} {status}");
    }
    // A proxy that forbids HEAD forbids no push.
    registry.inject(Fault::new(Action::Status(405, vec![])).method("HEAD"));
    let client = client_of(&registry, "a/b");
    assert_eq!(client.push_blob(&content(), patient()).await.unwrap().blob, blob);
}

#[tokio::test]
async fn temporary_trouble_is_tried_again() {
    let (hang_up, busy) = (Action::HangUp, Action::Status(503, vec![]));
    for (method, action) in [
        ("HEAD", hang_up.clone()),
        ("POST", busy.clone()),
        ("POST", hang_up.clone()),
        ("PUT", busy.clone()),
        ("PUT", hang_up),
        // The upload that was begun is not known any more.
        ("PUT", Action::Status(404, vec![])),
    ] {
        let registry = Registry::start();
        registry.inject(Fault::new(action.clone()).method(method).times(2));
        let client = client_of(&registry, "a/b");
        let pushed = client.push_blob(&content(), patient()).await;
        assert!(pushed.is_ok_and(|pushed| pushed.is_new), "{method} {action:?}");
        assert_eq!(registry.faults_left(), 0);
        let manifest = Bytes::from_static(b"{\"layers\":[]}");
        registry.inject(Fault::new(busy.clone()).method("PUT").times(2));
        client.push_manifest(&manifest, OCI_MANIFEST, "v1", patient()).await.unwrap();
        assert_eq!(registry.faults_left(), 0);
    }
    let registry = Registry::start();
    registry.inject(Fault::new(busy).method("POST").always());
    let error = push_fails(&registry).await;
    assert_eq!(error.kind, ErrorKind::Network, "{error}");
    let posts = registry.requests().iter().filter(|r| r.method == "POST").count();
    assert_eq!(posts, ATTEMPTS_MAX as usize);
}

#[tokio::test]
async fn a_push_ends_at_its_deadline() {
    for method in ["HEAD", "POST", "PUT"] {
        let registry = Registry::start();
        registry.inject(Fault::new(Action::Stall).method(method).always());
        let deadline = Deadline::after(Duration::from_millis(300));
        let client = client_of(&registry, "a/b");
        let error = client.push_blob(&content(), deadline).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::DeadlinePassed, "{method}: {error}");
        assert_eq!(seen(&registry).last().unwrap().0, method, "nothing is asked afterwards");
    }
    let registry = Registry::start();
    let wait = vec![("retry-after", "3600".to_owned())];
    registry.inject(Fault::new(Action::Status(429, wait)).method("POST").always());
    let error = push_fails(&registry).await;
    assert_eq!(error.kind, ErrorKind::Network, "{error}");
    assert!(error.to_string().contains("limits how much"), "{error}");
    assert!(is_like(&seen(&registry), &[("HEAD", 404), ("POST", 429)]));
}

#[tokio::test]
async fn a_manifest_is_put_by_digest_and_by_tag() {
    let registry = Registry::start();
    let client = client_of(&registry, "a/b");
    let bytes = Bytes::from_static(b"{\"layers\":[]}");
    let digest = Digest::sha256_of(&bytes);
    for identifier in [digest.to_string(), "v1".to_owned()] {
        let pushed = client.push_manifest(&bytes, OCI_MANIFEST, &identifier, patient()).await;
        assert_eq!(pushed.map(|p| (p.digest, p.subject)).unwrap(), (digest, None));
        let (found, manifest) = registry.manifest("a/b", &identifier).unwrap();
        assert_eq!((found, &manifest.bytes, &*manifest.media_type), (digest, &bytes, OCI_MANIFEST));
    }
    registry.clear();
    let large = Bytes::from(vec![b' '; MANIFEST_BYTES_MAX as usize + 1]);
    let other = Digest::sha256_of(b"other").to_string();
    for (bytes, identifier, kind) in [
        (&large, "v1", ErrorKind::Invalid),
        (&bytes, "../v1", ErrorKind::Invalid),
        (&bytes, &*other, ErrorKind::DigestMismatch),
    ] {
        let refused = client.push_manifest(bytes, OCI_MANIFEST, identifier, patient()).await;
        assert_eq!(refused.unwrap_err().kind, kind, "{identifier}");
    }
    assert!(seen(&registry).is_empty(), "none of these was sent");
    let lie = vec![("docker-content-digest", other)];
    registry.inject(Fault::new(Action::Status(201, lie)));
    let error = client.push_manifest(&bytes, OCI_MANIFEST, "v1", patient()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    registry.inject(Fault::new(Action::Status(412, vec![])));
    let error = client.push_manifest(&bytes, OCI_MANIFEST, "v1", patient()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn a_push_follows_a_redirect_that_keeps_its_method_and_no_other() {
    let (registry, other) = (Registry::start(), Registry::start_on("127.0.0.2:0"));
    registry.set_auth(Auth::Basic(ann()));
    let dir = tempfile::tempdir().unwrap();
    let client = client_of_ann(&registry, &dir);
    let bytes = Bytes::from_static(b"{\"layers\":[]}");
    let address = format!("{}/v2/a/b/manifests/v1", other.url());
    registry.inject(Fault::new(Action::RedirectTo(address.clone())).method("PUT").after(1));
    client.push_manifest(&bytes, OCI_MANIFEST, "v1", patient()).await.unwrap();
    assert_eq!(other.manifest("a/b", "v1").unwrap().1.bytes, bytes);
    assert_eq!(other.requests()[0].authorization, None);
    other.clear();
    registry.inject(Fault::new(Action::Status(303, vec![("location", address)])));
    let error = client.push_manifest(&bytes, OCI_MANIFEST, "v1", patient()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    assert!(other.requests().is_empty());
}
