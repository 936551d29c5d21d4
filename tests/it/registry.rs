//! The registry client against a registry that misbehaves as told: ranges, redirects, retries.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use layoutfs::fetch::failover::Failover;
use layoutfs::fetch::local::Local;
use layoutfs::fetch::record::{Counters, Record};
use layoutfs::fetch::registry::MANIFEST_BYTES_MAX;
use layoutfs::fetch::retry::{ATTEMPTS_MAX, Retry};
use layoutfs::fetch::{Deadline, Error, ErrorKind, Source};
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::{Blob, Digest};

use crate::source_suite::{client_of, patient, read};
use crate::support::faults::{Action, Fault};
use crate::support::layer::generated;
use crate::support::registry::Registry;

const SIZE: u64 = 3 << 20;
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry with one blob.
fn with_blob() -> (Registry, Blob, Bytes) {
    let registry = Registry::start();
    let content = generated("registry", SIZE as usize);
    let digest = registry.put_blob("a/b", content.clone());
    (registry, Blob { digest, size: SIZE }, content)
}

fn slice(content: &Bytes, range: ByteRange) -> &[u8] {
    &content[range.start as usize..range.end as usize]
}

/// The ranges that the registry was asked for, with its answers.
fn asked(registry: &Registry, blob: &Blob) -> Vec<(String, u16)> {
    let requests = registry.blob_requests(&blob.digest);
    requests.into_iter().map(|r| (r.range.unwrap_or_default(), r.status)).collect()
}

/// The client with retries, and what they counted.
fn patient_client(registry: &Registry) -> (Retry, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    let record = Record::new(Arc::new(client_of(registry, "a/b")), Arc::clone(&counters));
    (Retry::new(Arc::new(record), Arc::clone(&counters)), counters)
}

async fn fails(registry: &Registry, blob: &Blob, range: ByteRange) -> Error {
    read(&client_of(registry, "a/b"), blob, range).await.unwrap_err()
}

#[tokio::test]
async fn a_range_is_one_request_with_inclusive_ends() {
    let (registry, blob, content) = with_blob();
    let range = ByteRange::new(10, 20);
    let bytes = read(&client_of(&registry, "a/b"), &blob, range).await.unwrap();
    assert_eq!(bytes, slice(&content, range));
    assert_eq!(asked(&registry, &blob), [("bytes=10-19".to_owned(), 206)]);
    assert_eq!(registry.requests().len(), 1, "nothing else is asked");
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_sends_the_whole_blob() {
    let (registry, blob, content) = with_blob();
    registry.inject(Fault::new(Action::IgnoreRange).always());
    let client = client_of(&registry, "a/b");
    let range = ByteRange::new(1000, 1010);
    let body = client.read(&blob, range, patient()).await.unwrap();
    assert_eq!(body.range, ByteRange::new(0, SIZE));
    assert_eq!(read(&client, &blob, range).await.unwrap(), slice(&content, range));
}

#[tokio::test]
async fn an_answer_with_other_bytes_than_asked_for_is_refused() {
    let (registry, blob, _) = with_blob();
    let range = ByteRange::new(10, 2000);
    for action in [
        Action::WrongContentRange,
        Action::MissingContentRange,
        Action::BodyTooLong(5),
        Action::Status(204, vec![]),
        Action::Status(304, vec![]),
        Action::Status(416, vec![]),
    ] {
        registry.inject(Fault::new(action.clone()));
        let error = fails(&registry, &blob, range).await;
        assert_eq!(error.kind, ErrorKind::Protocol, "{action:?}: {error}");
    }
    // What is chunked has no length to compare beforehand.
    let larger = Blob { size: SIZE + 1, ..blob };
    let error = fails(&registry, &larger, range).await;
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    registry.inject(Fault::new(Action::IgnoreRange));
    let error = fails(&registry, &larger, range).await;
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
}

#[tokio::test]
async fn each_refusal_has_its_kind_and_the_registrys_words() {
    let (registry, blob, _) = with_blob();
    for (status, kind) in [
        (401, ErrorKind::Authentication),
        (403, ErrorKind::Authentication),
        (404, ErrorKind::NotFound),
        (429, ErrorKind::Network),
        (503, ErrorKind::Network),
    ] {
        let wait = vec![("retry-after", "7".to_owned())];
        registry.inject(Fault::new(Action::Status(status, wait)));
        let error = fails(&registry, &blob, ByteRange::new(0, 5)).await;
        assert_eq!(error.kind, kind, "{error}");
        let url = format!("GET {}/v2/a/b/blobs/{}", registry.url(), blob.digest);
        assert!(error.to_string().starts_with(&format!("{url}: {status}")), "{error}");
        assert!(error.to_string().contains("UNAVAILABLE: told to fail"), "{error}");
        assert_eq!(error.retry_after, Some(Duration::from_secs(7)));
    }
}

#[tokio::test]
async fn a_silent_server_is_left_at_the_deadline_and_a_slow_one_is_not() {
    let (registry, blob, content) = with_blob();
    let client = client_of(&registry, "a/b");
    let range = ByteRange::new(0, 4000);
    let stall = Deadline::after(Duration::from_millis(300));
    registry.inject(Fault::new(Action::Stall));
    let error = client.read(&blob, range, stall).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::DeadlinePassed, "{error}");

    registry.inject(Fault::new(Action::StallAt(1000)));
    let stall = Deadline::after(Duration::from_millis(300));
    let mut body = client.read(&blob, range, stall).await.unwrap();
    let mut arrived = 0;
    let error = loop {
        match body.next().await {
            Ok(chunk) => arrived += chunk.unwrap().len(),
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind, arrived), (ErrorKind::DeadlinePassed, 1000), "{error}");

    // Forty arrivals of 40 ms each take longer than the deadline, and each renews it.
    let every = Duration::from_millis(40);
    registry.inject(Fault::new(Action::Drip { bytes: 100, every }));
    let deadline = Deadline::after(Duration::from_millis(1000));
    let mut body = client.read(&blob, range, deadline).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await.unwrap() {
        bytes.extend_from_slice(&chunk);
    }
    assert_eq!(bytes, slice(&content, range));
}

#[tokio::test]
async fn a_cut_body_is_resumed_at_the_byte() {
    let (registry, blob, content) = with_blob();
    registry.inject(Fault::new(Action::CutBodyAt(1_000_000)));
    registry.inject(Fault::new(Action::CutBodyAt(500_000)));
    let (client, counters) = patient_client(&registry);
    let range = ByteRange::new(100, SIZE);
    assert!(read(&client, &blob, range).await.unwrap() == slice(&content, range));
    let last = SIZE - 1;
    let expected = [
        (format!("bytes=100-{last}"), 206),
        (format!("bytes=1000100-{last}"), 206),
        (format!("bytes=1500100-{last}"), 206),
    ];
    assert_eq!(asked(&registry, &blob), expected);
    let counted = counters.now();
    assert_eq!((counted.requests, counted.retries, counted.errors), (3, 2, 2));
    assert_eq!(counted.bytes, range.len(), "no byte came twice");
}

#[tokio::test]
async fn a_cut_body_that_resumes_as_a_whole_one_is_still_right() {
    let (registry, blob, content) = with_blob();
    registry.inject(Fault::new(Action::CutBodyAt(700_000)));
    registry.inject(Fault::new(Action::IgnoreRange));
    let (client, _) = patient_client(&registry);
    let range = ByteRange::new(50, 2_000_000);
    assert!(read(&client, &blob, range).await.unwrap() == slice(&content, range));
}

#[tokio::test]
async fn temporary_trouble_is_tried_so_often_and_lasting_trouble_once() {
    let (registry, blob, content) = with_blob();
    let (client, counters) = patient_client(&registry);
    let range = ByteRange::new(0, 10);
    for action in [Action::HangUp, Action::Status(503, vec![]), Action::CutBodyAt(0)] {
        registry.inject(Fault::new(action).times(2).blob(&blob.digest));
        assert_eq!(read(&client, &blob, range).await.unwrap(), slice(&content, range));
    }
    assert_eq!(counters.now().retries, 6);
    registry.clear();
    registry.inject(Fault::new(Action::Status(500, vec![])).always());
    let error = read(&client, &blob, range).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Network, "{error}");
    assert_eq!(asked(&registry, &blob).len(), ATTEMPTS_MAX as usize);
    registry.clear_faults();
    registry.clear();
    registry.inject(Fault::new(Action::Status(404, vec![])).always());
    let error = read(&client, &blob, range).await.unwrap_err();
    assert_eq!((error.kind, asked(&registry, &blob).len()), (ErrorKind::NotFound, 1));
}

#[tokio::test]
async fn a_retry_never_waits_beyond_the_deadline() {
    let (registry, blob, _) = with_blob();
    let (client, counters) = patient_client(&registry);
    let wait = vec![("retry-after", "3600".to_owned())];
    registry.inject(Fault::new(Action::Status(429, wait)).always());
    let error = client.read(&blob, ByteRange::new(0, 1), patient()).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Network, "{error}");
    assert_eq!(counters.now().requests, 1);
}

#[tokio::test]
async fn a_redirect_is_remembered_until_it_fails() {
    let (registry, blob, content) = with_blob();
    let storage = Registry::start_on("127.0.0.2:0");
    registry.redirect_blobs_to(&storage, Duration::from_secs(300));
    let client = client_of(&registry, "a/b");
    let range = ByteRange::new(5, 500);
    for _ in 0..3 {
        assert_eq!(read(&client, &blob, range).await.unwrap(), slice(&content, range));
    }
    assert_eq!((asked(&registry, &blob).len(), asked(&storage, &blob).len()), (1, 3));
    registry.revoke_redirects();
    assert_eq!(read(&client, &blob, range).await.unwrap(), slice(&content, range));
    let statuses: Vec<u16> = asked(&storage, &blob).iter().map(|(_, status)| *status).collect();
    assert_eq!((asked(&registry, &blob).len(), statuses), (2, vec![206, 206, 206, 403, 206]));
}

#[tokio::test]
async fn a_redirect_loop_ends_and_plain_http_stays_on_this_machine() {
    let (registry, blob, _) = with_blob();
    registry.inject(Fault::new(Action::RedirectLoop));
    let error = fails(&registry, &blob, ByteRange::new(0, 1)).await;
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    registry.inject(Fault::new(Action::RedirectTo("http://192.0.2.1/x?sig=abc".to_owned())));
    let error = fails(&registry, &blob, ByteRange::new(0, 1)).await;
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    assert!(error.to_string().contains("--insecure"), "{error}");
    assert!(!error.to_string().contains("abc"), "{error}");
}

#[tokio::test]
async fn a_manifest_is_checked_against_every_digest_that_was_promised() {
    let registry = Registry::start();
    let digest = registry.put_manifest("a/b", OCI_MANIFEST, "{}");
    registry.tag("a/b", "v1", digest);
    let client = client_of(&registry, "a/b");
    for identifier in ["v1".to_owned(), digest.to_string()] {
        let manifest = client.manifest(&identifier, patient()).await.unwrap();
        assert_eq!((&manifest.bytes[..], manifest.digest), (&b"{}"[..], digest));
        assert_eq!(manifest.media_type, OCI_MANIFEST);
        registry.inject(Fault::new(Action::WrongBytes { at: 1 }));
        let error = client.manifest(&identifier, patient()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::DigestMismatch, "{error}");
    }
    let error = client.manifest("v2", patient()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
    let error = client.manifest("../v2", patient()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn large_manifests_and_blobs_are_not_read_into_memory() {
    let registry = Registry::start();
    let large = vec![b' '; MANIFEST_BYTES_MAX as usize + 1];
    let digest = registry.put_manifest("a/b", OCI_MANIFEST, large);
    let client = client_of(&registry, "a/b");
    let error = client.manifest(&digest.to_string(), patient()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");

    let content = generated("config", 5000);
    let blob = Blob { digest: registry.put_blob("a/b", content.clone()), size: 5000 };
    assert_eq!(client.blob_bytes(&blob, 5000, patient()).await.unwrap(), content);
    let error = client.blob_bytes(&blob, 4999, patient()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    registry.inject(Fault::new(Action::WrongBytes { at: 9 }));
    let error = client.blob_bytes(&blob, 5000, patient()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DigestMismatch, "{error}");
    let empty = Blob { digest: Digest::sha256_of(b""), size: 0 };
    assert_eq!(client.blob_bytes(&empty, 0, patient()).await.unwrap(), Bytes::new());
}

#[tokio::test]
async fn a_mirror_without_the_blob_or_without_life_is_passed_over() {
    let (registry, blob, content) = with_blob();
    let (dead, mirror) = (Registry::start(), Registry::start());
    dead.pause();
    let failover = Failover::new(vec![
        Arc::new(client_of(&dead, "a/b")),
        Arc::new(client_of(&mirror, "a/b")),
        Arc::new(client_of(&registry, "a/b")),
    ]);
    let range = ByteRange::new(7, 70);
    for _ in 0..3 {
        assert_eq!(read(&failover, &blob, range).await.unwrap(), slice(&content, range));
    }
    assert_eq!((asked(&mirror, &blob).len(), asked(&registry, &blob).len()), (1, 3));
    registry.pause();
    let error = read(&failover, &blob, range).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Network);
    for source in [&dead, &mirror, &registry] {
        assert!(error.to_string().contains(&format!("[{}/a/b]", source.host())), "{error}");
    }
    mirror.put_blob("a/b", content.clone());
    assert_eq!(read(&failover, &blob, range).await.unwrap(), slice(&content, range));
}

#[tokio::test]
async fn a_body_cut_at_one_source_goes_on_at_the_next() {
    let (registry, blob, content) = with_blob();
    let mirror = Registry::start();
    mirror.put_blob("a/b", content.clone());
    mirror.inject(Fault::new(Action::CutBodyAt(1_000_000)).always());
    let failover = Failover::new(vec![
        Arc::new(client_of(&mirror, "a/b")),
        Arc::new(client_of(&registry, "a/b")),
    ]);
    let range = ByteRange::new(0, SIZE);
    assert!(read(&failover, &blob, range).await.unwrap() == content);
    let expected = [(format!("bytes=1000000-{}", SIZE - 1), 206)];
    assert_eq!(asked(&registry, &blob), expected);
    let nothing = Failover::new(vec![Arc::new(Local::new("/nonexistent"))]);
    let error = read(&nothing, &blob, range).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_log_holds_each_call() {
    let (registry, blob, _) = with_blob();
    let counters = Arc::new(Counters::default());
    let record = Record::with_log(Arc::new(client_of(&registry, "a/b")), counters);
    let ranges = [ByteRange::new(0, 10), ByteRange::new(50, 51)];
    for range in ranges {
        read(&record, &blob, range).await.unwrap();
    }
    let calls: Vec<ByteRange> = record.calls().iter().map(|call| call.range).collect();
    assert_eq!(calls, ranges);
    assert_eq!((record.counters().now().requests, record.counters().now().bytes), (2, 11));
}

#[tokio::test]
async fn a_byte_now_and_then_does_not_keep_a_reader() {
    let (registry, blob, _) = with_blob();
    let client = client_of(&registry, "a/b");
    let every = Duration::from_millis(100);
    registry.inject(Fault::new(Action::Drip { bytes: 1, every }));
    let stall = Deadline::after(Duration::from_millis(500));
    let mut body = client.read(&blob, ByteRange::new(0, 4000), stall).await.unwrap();
    let mut arrived = 0;
    let error = loop {
        match body.next().await {
            Ok(chunk) => arrived += chunk.unwrap().len(),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind, ErrorKind::DeadlinePassed, "{error}");
    assert!(error.to_string().contains("bytes arrived while"), "{error}");
    assert!((1..100).contains(&arrived), "{arrived} bytes came before it was left");
}
