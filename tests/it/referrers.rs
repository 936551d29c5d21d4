//! Referrers: listed from the registry or from a tag, and attached so that they are found.

use bytes::Bytes;
use layoutfs::fetch::ErrorKind;
use layoutfs::fetch::auth::keychain::KeychainConfig;
use layoutfs::fetch::registry::{
    Listed, REFERRERS_MAX, REFERRERS_PAGES_MAX, Registries, Registry as Client,
};
use layoutfs::layout::oci::referrer::{self, INDEX_ARTIFACT, IndexArtifact, LayerIndexBlob};
use layoutfs::layout::oci::{Descriptor, OCI_INDEX, OCI_MANIFEST};
use layoutfs::layout::{Blob, Digest};

use crate::source_suite::{client_of, patient};
use crate::support::faults::{Action, Fault};
use crate::support::referrers::ReferrersApi;
use crate::support::registry::Registry;
use crate::support::tokens::{Auth, Bearer};

const NO_API: fn() -> ReferrersApi = || ReferrersApi { is_there: false, ..ReferrersApi::default() };

fn subject() -> Descriptor {
    let blob = Blob { digest: Digest::sha256_of(b"the image"), size: 9 };
    Descriptor::new(OCI_MANIFEST, blob)
}

/// A manifest of `artifact_type` about the subject; `name` makes it another one.
fn artifact(artifact_type: &str, name: &str) -> Bytes {
    let reference = |blob: &Blob, media_type: &str| {
        serde_json::json!({"mediaType": media_type, "digest": blob.digest.to_string(),
            "size": blob.size})
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": artifact_type,
        "config": reference(&referrer::empty(), referrer::OCI_EMPTY),
        "layers": [], "subject": reference(&subject().blob, OCI_MANIFEST),
        "annotations": {"name": name},
    });
    Bytes::from(manifest.to_string())
}

/// A registry that has the empty blob, and a client of it.
fn registry_with(api: ReferrersApi) -> (Registry, Client) {
    let registry = Registry::start();
    registry.put_blob("a/b", referrer::EMPTY);
    registry.set_referrers(api);
    let client = client_of(&registry, "a/b");
    (registry, client)
}

async fn attach(client: &Client, artifact_type: &str, name: &str) -> Listed {
    client.attach(&artifact(artifact_type, name), patient()).await.unwrap().listed
}

/// The names of the referrers that are listed, sorted.
async fn names(client: &Client, artifact_type: Option<&str>) -> Vec<String> {
    let found = client.referrers(&subject().blob.digest, artifact_type, patient()).await.unwrap();
    let mut names: Vec<_> = found.iter().map(|d| d.annotations["name"].clone()).collect();
    names.sort();
    names
}

async fn listing_fails(client: &Client) -> layoutfs::fetch::Error {
    client.referrers(&subject().blob.digest, None, patient()).await.unwrap_err()
}

fn tag() -> String {
    referrer::tag_of(&subject().blob.digest)
}

/// Puts a list under the subject's tag, with these manifests.
fn put_list(registry: &Registry, entries: &[(Digest, &str)]) -> Digest {
    let manifests: Vec<_> = entries
        .iter()
        .map(|(digest, name)| {
            serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest.to_string(), "size": 3,
                "artifactType": "text/x", "annotations": {"name": name}})
        })
        .collect();
    let list = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": manifests});
    registry.put_manifest("a/b", OCI_INDEX, list.to_string())
}

/// Methods and last parts of the paths of all requests.
fn asked(registry: &Registry) -> Vec<(String, String, u16)> {
    let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    registry.requests().into_iter().map(|r| (r.method, last(&r.path), r.status)).collect()
}

#[tokio::test]
async fn indexes_are_shared_through_any_registry() {
    for api in [ReferrersApi::default(), NO_API()] {
        let registry = Registry::start();
        registry.set_referrers(api.clone());
        registry.set_auth(Auth::Bearer(Bearer::default()));
        let registries = Registries::new(&KeychainConfig::default(), false).unwrap();
        let reference = registry.reference("a/b", "latest").parse().unwrap();
        let client = registries.repository(&reference);

        let index = Bytes::from_static(b"the index of a layer");
        let layer = Digest::sha256_of(b"a layer");
        let pushed = client.push_blob(&index, patient()).await.unwrap();
        client.push_blob(&Bytes::from_static(referrer::EMPTY), patient()).await.unwrap();
        let layers = vec![LayerIndexBlob { layer, index: pushed.blob }];
        let artifact = IndexArtifact { subject: subject(), layers };
        let bytes = Bytes::from(artifact.to_bytes().unwrap());
        let attached = client.attach(&bytes, patient()).await.unwrap();
        assert_eq!(attached.listed == Listed::ByRegistry, api.is_there);

        let another = registries.repository(&reference);
        let digest = subject().blob.digest;
        let found = another.referrers(&digest, Some(INDEX_ARTIFACT), patient()).await.unwrap();
        let expected = Descriptor {
            artifact_type: Some(INDEX_ARTIFACT.to_owned()),
            ..Descriptor::new(OCI_MANIFEST, attached.blob)
        };
        assert_eq!(found, [expected]);
        let name = found[0].blob.digest.to_string();
        let manifest = another.manifest(&name, patient()).await.unwrap();
        assert_eq!(IndexArtifact::parse(&name, &manifest.bytes).unwrap(), artifact);
        let read = another.blob_bytes(&artifact.layers[0].index, 100, patient()).await.unwrap();
        assert_eq!(read, index);
    }
}

#[tokio::test]
async fn a_type_is_filtered_by_the_registry_or_else_here() {
    for filters in [true, false] {
        let (registry, client) = registry_with(ReferrersApi { filters, ..ReferrersApi::default() });
        for (artifact_type, name) in [("text/x", "1"), ("text/y+z", "2"), ("text/x", "3")] {
            assert_eq!(attach(&client, artifact_type, name).await, Listed::ByRegistry);
        }
        assert!(registry.manifest("a/b", &tag()).is_none(), "no list of ours");
        registry.clear();
        assert_eq!(names(&client, Some("text/x")).await, ["1", "3"]);
        assert_eq!(names(&client, Some("text/y+z")).await, ["2"]);
        assert_eq!(names(&client, Some("text/none")).await, [""; 0]);
        assert_eq!(names(&client, None).await, ["1", "2", "3"]);
        let queries: Vec<_> = registry.requests().into_iter().map(|r| r.query).collect();
        assert_eq!(queries[1], "artifactType=text%2Fy%2Bz");
        assert_eq!(queries.len(), 4, "one request each");
    }
}

#[tokio::test]
async fn all_pages_are_read_and_none_elsewhere() {
    let pages = ReferrersApi { page: Some(2), ..ReferrersApi::default() };
    let (registry, client) = registry_with(pages.clone());
    for number in 0..5 {
        attach(&client, if number < 4 { "text/x" } else { "text/y" }, &number.to_string()).await;
    }
    registry.clear();
    assert_eq!(names(&client, None).await, ["0", "1", "2", "3", "4"]);
    assert_eq!(registry.requests().len(), 3);
    assert_eq!(names(&client, Some("text/x")).await, ["0", "1", "2", "3"]);
    registry.set_referrers(ReferrersApi { next_base: registry.url(), ..pages.clone() });
    assert_eq!(names(&client, None).await.len(), 5);
    // A page that is not there any more is no end of the list.
    registry.inject(Fault::new(Action::Status(404, vec![])).after(1));
    assert_eq!(listing_fails(&client).await.kind, ErrorKind::Protocol);

    let other = Registry::start_on("127.0.0.2:0");
    registry.set_referrers(ReferrersApi { next_base: other.url(), ..pages });
    let error = listing_fails(&client).await;
    assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
    assert!(other.requests().is_empty());
    registry.clear();
    registry.set_referrers(ReferrersApi { page: Some(0), ..ReferrersApi::default() });
    let error = listing_fails(&client).await;
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert_eq!(registry.requests().len(), REFERRERS_PAGES_MAX);
}

#[tokio::test]
async fn a_list_under_a_tag_does_where_the_registry_has_none() {
    let (registry, client) = registry_with(NO_API());
    assert_eq!(names(&client, None).await, [""; 0], "nothing is known of the subject");
    registry.clear();
    let listed = attach(&client, "text/x", "1").await;
    assert_eq!(listed, Listed::UnderTag(tag()));
    let own = Digest::sha256_of(&artifact("text/x", "1")).to_string();
    let requests = asked(&registry);
    let expected =
        [("PUT", own, 201), ("GET", tag(), 404), ("PUT", tag(), 201), ("GET", tag(), 200)];
    assert_eq!(requests, expected.map(|(m, p, s)| (m.to_owned(), p, s)));
    attach(&client, "text/y", "2").await;
    assert_eq!(names(&client, None).await, ["1", "2"]);
    assert_eq!(names(&client, Some("text/y")).await, ["2"]);
    let before = registry.manifest("a/b", &tag()).unwrap().0;
    attach(&client, "text/x", "1").await;
    assert_eq!(registry.manifest("a/b", &tag()).unwrap().0, before, "it is there already");
}

#[tokio::test]
async fn a_list_that_others_write_meanwhile_has_ours_too() {
    let (registry, client) = registry_with(NO_API());
    let rival = put_list(&registry, &[(Digest::sha256_of(b"rival"), "rival")]);
    registry.overtake_next_tag(rival);
    attach(&client, "text/x", "own").await;
    assert_eq!(names(&client, None).await, ["own", "rival"]);
    (0..5).for_each(|_| registry.overtake_next_tag(rival));
    let error = client.attach(&artifact("text/x", "other"), patient()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy, "{error}");
    assert_eq!(names(&client, None).await, ["rival"], "nothing is taken out by us");
}

#[tokio::test]
async fn who_attaches_at_once_loses_nothing_where_versions_are_respected() {
    let (registry, client) = registry_with(NO_API());
    registry.set_versions();
    let client = &client;
    tokio::join!(
        attach(client, "text/x", "1"),
        attach(client, "text/x", "2"),
        attach(client, "text/x", "3"),
    );
    assert_eq!(names(client, None).await, ["1", "2", "3"]);
    // A condition that does not hold is no failure: what is there is read instead.
    registry.clear();
    registry.inject(Fault::new(Action::Status(412, vec![])).path(tag()).method("PUT"));
    attach(client, "text/x", "4").await;
    assert_eq!(names(client, None).await, ["1", "2", "3", "4"]);
    let writes = asked(&registry).into_iter().filter(|(m, path, _)| m == "PUT" && *path == tag());
    assert_eq!(writes.map(|(.., status)| status).collect::<Vec<_>>(), [412, 201]);
}

#[tokio::test]
async fn what_answers_every_address_knows_no_referrers() {
    let (registry, client) = registry_with(NO_API());
    attach(&client, "text/x", "1").await;
    for status in [405, 200] {
        registry.inject(Fault::new(Action::Status(status, vec![])).path("/referrers/"));
        assert_eq!(names(&client, None).await, ["1"], "{status}");
    }
    registry.inject(Fault::new(Action::Status(503, vec![])).path("/referrers/").times(2));
    registry.inject(Fault::new(Action::HangUp).path(tag()));
    assert_eq!(names(&client, None).await, ["1"]);
    assert_eq!(registry.faults_left(), 0);
    // A refusal is not the same as none.
    registry.inject(Fault::new(Action::Status(403, vec![])).path("/referrers/"));
    assert_eq!(listing_fails(&client).await.kind, ErrorKind::Authentication);
}

#[tokio::test]
async fn a_list_that_is_none_or_too_long_is_refused() {
    let (registry, client) = registry_with(NO_API());
    let many: Vec<_> = (0..=REFERRERS_MAX as u32).map(u32::to_le_bytes).collect();
    let mut many: Vec<_> = many.iter().map(|n| (Digest::sha256_of(n), "x")).collect();
    registry.tag("a/b", &tag(), put_list(&registry, &many));
    let error = listing_fails(&client).await;
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("more than 1000"), "{error}");
    // One that is there twice counts once.
    many[0] = many[1];
    registry.tag("a/b", &tag(), put_list(&registry, &many));
    assert_eq!(names(&client, None).await.len(), REFERRERS_MAX);

    let manifest = registry.put_manifest("a/b", OCI_MANIFEST, artifact("text/x", "a manifest"));
    registry.tag("a/b", &tag(), manifest);
    assert_eq!(listing_fails(&client).await.kind, ErrorKind::Invalid);
    let error = client.attach(&artifact("text/x", "own"), patient()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains(&tag()), "{error}");
    assert_eq!(registry.manifest("a/b", &tag()).unwrap().0, manifest, "it is not ours to replace");
}

#[tokio::test]
async fn only_what_has_a_subject_is_attached() {
    let (registry, client) = registry_with(ReferrersApi::default());
    let text = String::from_utf8(artifact("text/x", "1").to_vec()).unwrap();
    for bytes in [text.replace("\"subject\"", "\"object\""), "{}".to_owned()] {
        let error = client.attach(&Bytes::from(bytes), patient()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    }
    assert!(registry.requests().is_empty());
}
