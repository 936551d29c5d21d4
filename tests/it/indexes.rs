//! Indexes that one machine makes and another uses: what is fetched, and who is believed.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use layoutfs::fetch::cache::Cache;
use layoutfs::layout::Digest;
use layoutfs::layout::index::{LayerIndex, Proof, Segments, saved};
use layoutfs::layout::oci::referrer::{EMPTY, IndexArtifact, LayerIndexBlob};
use layoutfs::layout::oci::{Descriptor, OCI_MANIFEST};
use layoutfs::layout::{Blob, reference::Reference};
use serde_json::Value;

use crate::own_tables;
use crate::support::faults::{Action, Fault};
use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder, generated};
use crate::support::mount::{Outcome, Room};
use crate::support::referrers::ReferrersApi;
use crate::support::registry::Registry;
use crate::support::tokens::{Auth, Bearer};

const REPOSITORY: &str = "team/app";

/// A machine: a room with a cache of its own, and a sparse layout of the image.
pub struct Machine {
    pub room: Arc<Room>,
    pub layout: String,
}

impl Machine {
    pub fn new(registry: &Registry) -> Self {
        let room = Room::new();
        let layout = room.path().join("layout").display().to_string();
        room.layoutfs(&["sparse", &registry.reference(REPOSITORY, "v1"), "--to", &layout]);
        Machine { room, layout }
    }

    fn run(&self, command: &str, options: &[&str]) -> Outcome {
        self.room.run(&[&["index", command, &self.layout], options].concat())
    }

    /// Makes the indexes and pushes them; gives the artifact.
    #[track_caller]
    pub fn push(&self) -> String {
        let printed = self.run("push", &[]).success();
        printed.trim().to_owned()
    }

    /// What `ls --json` says of the layers' indexes: spans, or nothing.
    #[track_caller]
    fn spans(&self) -> Vec<Option<u64>> {
        let json: Value = serde_json::from_str(&self.run("ls", &["--json"]).success()).unwrap();
        json["layers"].as_array().unwrap().iter().map(|layer| layer["spans"].as_u64()).collect()
    }

    /// What a mount with these options shows in a file.
    #[track_caller]
    pub fn shows(&self, name: &str, options: &[&str]) -> Vec<u8> {
        let mount = self.room.mount(&self.layout, options);
        fs::read(mount.path().join(name)).unwrap()
    }
}

/// A registry with the image.
pub fn registry_with(image: &Image) -> Registry {
    let registry = Registry::start();
    image.push(&registry, REPOSITORY, "v1");
    registry
}

/// An image of a layer with two files, whose names a liar can swap.
pub fn small() -> Image {
    let files = LayerBuilder::new().file("good", 0o644, "good").file("evil", 0o755, "evil");
    ImageBuilder::new().layer(files, Compression::Gzip).build()
}

/// The index of the image's first layer, as `machine` has made it.
pub fn index_of(machine: &Machine, image: &Image) -> LayerIndex {
    let cache = Cache::open(&machine.room.cache_dir(), None).unwrap();
    cache.load_index(&image.layers[0].digest).unwrap()
}

/// Puts an artifact into the registry that says `bytes` are the index of `layer`, of an image whose
/// manifest is `subject`.
pub fn put_artifact(registry: &Registry, subject: Digest, layer: Digest, bytes: &[u8]) -> String {
    let index = Blob { digest: Digest::sha256_of(bytes), size: bytes.len() as u64 };
    registry.put_blob(REPOSITORY, Bytes::copy_from_slice(bytes));
    put_claim(registry, subject, LayerIndexBlob { layer, index })
}

fn put_claim(registry: &Registry, subject: Digest, claim: LayerIndexBlob) -> String {
    registry.put_blob(REPOSITORY, EMPTY);
    let subject = Descriptor::new(OCI_MANIFEST, Blob { digest: subject, size: 9 });
    let artifact = IndexArtifact { subject, layers: vec![claim] };
    let manifest = artifact.to_bytes().unwrap();
    registry.put_manifest(REPOSITORY, OCI_MANIFEST, manifest).to_string()
}

/// An index with which the content of `evil` stands under the name `good`.
fn lie(mut index: LayerIndex) -> Vec<u8> {
    for entry in &mut index.entries {
        entry.path = if entry.path == b"good" { b"evil".into() } else { b"good".into() };
    }
    saved::encode(&index).unwrap()
}

/// Requests that ask what refers to something, at either place where that can be found.
fn asked_for_referrers(registry: &Registry) -> usize {
    let asks = |path: &str| path.contains("/referrers/") || path.contains("/manifests/sha256-");
    registry.requests().iter().filter(|request| asks(&request.path)).count()
}

fn layer_bytes_sent(registry: &Registry, image: &Image) -> u64 {
    image.layers.iter().map(|layer| registry.bytes_sent(&layer.digest)).sum()
}

#[test]
fn what_one_machine_has_indexed_another_reads_lazily_at_once() {
    const FILE_BYTES: usize = 9 << 20;
    let layer = |name: &str| {
        let big = generated(name, FILE_BYTES);
        let builder = LayerBuilder::new().dir(name, 0o755).file(&format!("{name}/big"), 0o644, big);
        builder.file(&format!("{name}/small"), 0o644, name.to_owned())
    };
    let image = ImageBuilder::new()
        .layer(layer("a"), Compression::Gzip)
        .layer(layer("b"), Compression::Gzip)
        .build();
    for is_there in [true, false] {
        let registry = registry_with(&image);
        registry.set_auth(Auth::Bearer(Bearer::default()));
        registry.set_referrers(ReferrersApi { is_there, ..ReferrersApi::default() });
        let artifact = Machine::new(&registry).push();
        assert!(registry.manifest(REPOSITORY, &artifact).is_some());

        let machine = Machine::new(&registry);
        registry.clear();
        let mount = machine.room.mount(&machine.layout, &["--index", &artifact, "--require-lazy"]);
        assert_eq!(fs::read(mount.path().join("b/small")).unwrap(), b"b");
        let sent = layer_bytes_sent(&registry, &image);
        assert!(sent > 0 && sent * 10 <= image.layer_bytes(), "{sent} of {}", image.layer_bytes());
        assert!(fs::read(mount.path().join("a/big")).unwrap() == generated("a", FILE_BYTES));
        mount.unmount();

        registry.clear();
        assert_eq!(machine.shows("b/small", &["--index", &artifact]), b"b");
        assert_eq!(registry.requests().len(), 0, "what is known is not asked for");
    }
}

#[test]
fn by_default_an_index_of_strangers_is_told_and_not_used() {
    for is_there in [true, false] {
        let image = small();
        let registry = registry_with(&image);
        registry.set_referrers(ReferrersApi { is_there, ..ReferrersApi::default() });
        let maker = Machine::new(&registry);
        let artifact = maker.push();
        let machine = Machine::new(&registry);
        registry.clear();
        let mount = machine.room.mount(&machine.layout, &[]);
        let hint = format!("{}/{REPOSITORY} has an index of this image", registry.host());
        let option = format!("--index {artifact} ");
        assert!(mount.said().contains(&hint) && mount.said().contains(&option), "{}", mount.said());
        assert_eq!(layer_bytes_sent(&registry, &image), image.layer_bytes(), "a pass was made");
        assert_eq!(asked_for_referrers(&registry), if is_there { 1 } else { 2 });
        mount.unmount();
        // Now there is one of our own.
        registry.clear();
        assert_eq!(machine.shows("good", &[]), b"good");
        assert_eq!(registry.requests().len(), 0);
    }
}

#[test]
fn nothing_is_asked_when_that_is_off_or_would_be_of_no_use() {
    let image = small();
    let registry = registry_with(&image);
    Machine::new(&registry).push();
    for options in [&["--index", "off"][..], &["--quiet"], &["--view", "layout"]] {
        let machine = Machine::new(&registry);
        registry.clear();
        let mount = machine.room.mount(&machine.layout, options);
        assert!(!mount.said().contains("--index"), "{options:?}: {}", mount.said());
        assert_eq!(asked_for_referrers(&registry), 0, "{options:?}");
    }
    // What is local needs a pass, and no byte of the registry.
    let machine = Machine::new(&registry);
    machine.room.layoutfs(&["hydrate", &machine.layout]);
    registry.clear();
    assert_eq!(machine.shows("good", &[]), b"good");
    assert_eq!(registry.requests().len(), 0);
}

#[test]
fn a_registry_that_gives_no_answer_about_referrers_is_no_error() {
    let registry = registry_with(&small());
    for action in [Action::Status(403, vec![]), Action::Status(500, vec![]), Action::Stall] {
        registry.inject(Fault::new(action.clone()).path("/referrers/").always());
        let machine = Machine::new(&registry);
        assert_eq!(machine.shows("good", &[]), b"good", "{action:?}");
        registry.clear_faults();
    }
}

#[test]
fn a_lie_is_shown_to_nobody_who_has_not_named_it() {
    let image = small();
    let registry = registry_with(&image);
    let maker = Machine::new(&registry);
    let good = maker.push();
    let lying = lie(index_of(&maker, &image));
    let evil = put_artifact(&registry, image.digest, image.layers[0].digest, &lying);
    for options in [&["--index", &good][..], &[], &["--index", "off"]] {
        let machine = Machine::new(&registry);
        assert_eq!(machine.shows("good", options), b"good", "{options:?}");
    }
    // Whoever names it believes it, for as long as the cache has it.
    let machine = Machine::new(&registry);
    assert_eq!(machine.shows("good", &["--index", &evil]), b"evil");
    assert_eq!(machine.shows("good", &["--index", &good]), b"evil", "what is here stays");
    machine.room.layoutfs(&["cache", "prune", "--indexes"]);
    assert_eq!(machine.shows("good", &["--index", &good]), b"good");
}

#[test]
fn what_is_known_already_is_not_replaced() {
    let image = small();
    let registry = registry_with(&image);
    let machine = Machine::new(&registry);
    machine.run("build", &[]).success();
    let lying = lie(index_of(&machine, &image));
    let evil = put_artifact(&registry, image.digest, image.layers[0].digest, &lying);
    machine.run("pull", &["--index", &evil]).success();
    assert_eq!(machine.shows("good", &["--index", &evil]), b"good");
}

#[test]
fn what_is_not_of_this_image_is_refused_and_leaves_nothing() {
    let image = small();
    let registry = registry_with(&image);
    let maker = Machine::new(&registry);
    maker.run("build", &[]).success();
    let index = index_of(&maker, &image);
    let bytes = saved::encode(&index).unwrap();
    let (layer, other) = (image.layers[0].digest, Digest::sha256_of(b"other"));
    let put = |subject, bytes: &[u8]| put_artifact(&registry, subject, layer, bytes);
    let beyond = {
        let mut index = index.clone();
        let last = index.spans.last_mut().unwrap();
        last.blob.end += 1;
        // As many segments as it then has: one, whatever its length.
        last.proof = Proof::Stored(Segments::One([0; 32]));
        saved::encode(&index).unwrap()
    };
    let of_other = saved::encode(&LayerIndex { diff_id: other, ..index }).unwrap();
    let claim = |size| {
        let index = Blob { digest: other, size };
        put_claim(&registry, image.digest, LayerIndexBlob { layer, index })
    };
    let cut = &bytes[..bytes.len() - 1];
    let manifest = image.digest.to_string();
    for (artifact, code, words) in [
        (put(other, &bytes), 3, format!("and this image is {manifest}")),
        (put(image.digest, &of_other), 3, format!("the image says {}", image.layers[0].diff_id)),
        (put(image.digest, &beyond), 3, "a span of bytes".to_owned()),
        (put(image.digest, cut), 3, "damaged or cut off".to_owned()),
        (claim(1 << 40), 3, "expected at most".to_owned()),
        (claim((256 << 20) + 1), 3, "expected at most".to_owned()),
        (claim(100), 5, format!("index of layer {layer}")),
        (manifest.clone(), 3, "artifact type".to_owned()),
        (other.to_string(), 5, format!("--index {other}")),
    ] {
        let machine = Machine::new(&registry);
        let outcome = machine.run("pull", &["--index", &artifact]);
        assert_eq!(outcome.code(), Some(code), "{words}: {outcome}");
        assert!(outcome.stderr.contains(&words), "{words}: {outcome}");
        let mounted = machine.room.try_mount(&machine.layout, &["--index", &artifact]);
        let Err(outcome) = mounted else { panic!("{words}") };
        assert_eq!(outcome.code(), Some(code), "{words}: {outcome}");
        assert_eq!(machine.spans(), [None], "{words}");
    }
}

#[test]
fn bytes_that_change_on_the_way_are_found() {
    let image = small();
    let registry = registry_with(&image);
    let maker = Machine::new(&registry);
    let artifact = maker.push();
    let index = Digest::sha256_of(&saved::encode(&index_of(&maker, &image)).unwrap());
    for changed in [index.to_string(), artifact.clone()] {
        let machine = Machine::new(&registry);
        registry.inject(Fault::new(Action::WrongBytes { at: 9 }).path(&changed).always());
        let Err(outcome) = machine.room.try_mount(&machine.layout, &["--index", &artifact]) else {
            panic!("{changed}");
        };
        assert_eq!(outcome.code(), Some(7), "{outcome}");
        assert_eq!(machine.spans(), [None]);
        registry.clear_faults();
        // What is temporary is tried again.
        registry.inject(Fault::new(Action::Status(503, vec![])).path(&changed));
        registry.inject(Fault::new(Action::HangUp).path(&changed));
        machine.run("pull", &["--index", &artifact]).success();
        assert_eq!(registry.faults_left(), 0);
        assert_eq!(machine.spans(), [Some(1)]);
    }
}

#[test]
fn pull_takes_nothing_that_was_not_named() {
    let image = small();
    let registry = registry_with(&image);
    let machine = Machine::new(&registry);
    let nothing = machine.run("pull", &[]);
    assert_eq!(nothing.code(), Some(5), "{nothing}");
    assert!(nothing.stderr.contains("layoutfs index push"), "{nothing}");

    let artifact = Machine::new(&registry).push();
    let unnamed = machine.run("pull", &[]);
    assert_eq!(unnamed.code(), Some(2), "{unnamed}");
    assert!(unnamed.stderr.contains(&format!("--index {artifact}")), "{unnamed}");
    assert_eq!(machine.run("pull", &["--index", "off"]).code(), Some(2));
    assert_eq!(machine.run("pull", &["--index", "sha256:1"]).code(), Some(2));
    assert_eq!(machine.run("pull", &["--index", &artifact, "--offline"]).code(), Some(10));
    assert_eq!(machine.spans(), [None]);

    let json = machine.run("pull", &["--index", &artifact, "--json"]).success();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["saved"], &json["lacking"]), (&1.into(), &0.into()));
    assert_eq!(machine.spans(), [Some(1)]);
    assert_eq!(layer_bytes_sent(&registry, &image), image.layer_bytes(), "by the pusher alone");
}

#[test]
fn the_same_image_has_the_same_artifact_whoever_makes_it() {
    let registry = registry_with(&small());
    let (one, other) = (Machine::new(&registry), Machine::new(&registry));
    let artifact = one.push();
    let json: Value = serde_json::from_str(&other.run("push", &["--json"]).success()).unwrap();
    assert_eq!((&json["artifact"], &json["blobs_sent"]), (&artifact.as_str().into(), &0.into()));
    assert_eq!(other.run("push", &["--offline"]).code(), Some(10));
}

#[test]
fn indexes_may_be_in_another_repository_than_the_image() {
    let image = small();
    let (registry, other) = (registry_with(&image), Registry::start());
    let maker = Machine::new(&registry);
    let to = format!("{}/indexes/app", other.host());
    let artifact = maker.run("push", &["--to", &to]).success().trim().to_owned();
    assert!(other.manifest("indexes/app", &artifact).is_some());
    let machine = Machine::new(&registry);
    let elsewhere = machine.run("pull", &["--index", &artifact]);
    assert_eq!(elsewhere.code(), Some(5), "{elsewhere}");
    assert!(elsewhere.stderr.contains("named as REGISTRY/REPO@"), "{elsewhere}");
    let named: Reference = format!("{to}@{artifact}").parse().unwrap();
    machine.run("pull", &["--index", &named.to_string()]).success();
    assert_eq!(machine.spans(), [Some(1)]);
    assert_eq!(maker.run("push", &["--to", "UPPER//x"]).code(), Some(2));
}

#[test]
fn a_mirror_without_the_artifact_is_not_the_last_word() {
    let image = small();
    let (registry, mirror) = (registry_with(&image), Registry::start());
    image.push(&mirror, "m/app", "v1");
    let artifact = Machine::new(&registry).push();
    let machine = Machine::new(&registry);
    let mirror = format!("{}/m/app", mirror.host());
    let origin = format!("{}/{REPOSITORY}", registry.host());
    let sources = ["--source", &mirror, "--source", &origin];
    let unnamed = machine.run("pull", &sources);
    assert!(unnamed.stderr.contains(&artifact), "{unnamed}");
    machine.run("pull", &[&sources[..], &["--index", &artifact]].concat()).success();
}

#[test]
fn layers_that_an_artifact_lacks_are_read_as_ever() {
    let layer = |name: &str| LayerBuilder::new().file(name, 0o644, name.to_owned());
    let image = ImageBuilder::new()
        .layer(layer("a"), Compression::Gzip)
        .layer(layer("b"), Compression::Zstd)
        .build();
    let registry = registry_with(&image);
    let maker = Machine::new(&registry);
    let built = maker.run("build", &["--json"]).success();
    let built: Value = serde_json::from_str(&built).unwrap();
    assert_eq!(built["layers"][1]["spans"], 1);
    let bytes = saved::encode(&index_of(&maker, &image)).unwrap();
    assert_eq!(built["layers"][0]["index_bytes"], bytes.len());
    let artifact = put_artifact(&registry, image.digest, image.layers[0].digest, &bytes);
    let machine = Machine::new(&registry);
    registry.clear();
    let mount = machine.room.mount(&machine.layout, &["--index", &artifact]);
    assert!(mount.said().contains("layers without one: 1"), "{}", mount.said());
    assert_eq!(fs::read(mount.path().join("b")).unwrap(), b"b");
    assert_eq!(registry.bytes_sent(&image.layers[0].digest), 0);
    assert_eq!(fs::read(mount.path().join("a")).unwrap(), b"a");
}

#[test]
fn other_commands_bring_what_is_named_too() {
    let image = small();
    let registry = registry_with(&image);
    let artifact = Machine::new(&registry).push();
    let image_of = |machine: &Machine| machine.layout.clone();
    let machine = Machine::new(&registry);
    registry.clear();
    machine.room.layoutfs(&["inspect", &image_of(&machine), "/good", "--index", &artifact]);
    assert_eq!(layer_bytes_sent(&registry, &image), 0);

    let room = Room::new();
    let layout = room.path().join("layout").display().to_string();
    let reference = registry.reference(REPOSITORY, "v1");
    let printed = room.layoutfs(&["sparse", &reference, "--to", &layout, "--index", &artifact]);
    assert_eq!(printed.trim(), image.digest.to_string());
    let mount = room.mount(&layout, &[]);
    assert_eq!(layer_bytes_sent(&registry, &image), 0);
    assert!(Path::new(&mount.path().join("good")).exists());
}

#[test]
fn ls_fetches_no_layer_and_tells_how_each_is_read() {
    let image = small();
    let registry = registry_with(&image);
    let machine = Machine::new(&registry);
    registry.clear();
    let before = machine.run("ls", &[]).success();
    assert!(before.contains("no index; needs one pass of"), "{before}");
    assert_eq!(layer_bytes_sent(&registry, &image), 0);
    registry.clear();
    let offline = machine.run("ls", &["--offline"]);
    assert!(offline.stderr.contains("not known") && offline.stdout == before, "{offline}");
    assert_eq!(registry.requests().len(), 0);
    let built = machine.run("build", &[]);
    assert!(built.stderr.contains("indexes made: 1; there already: 0"), "{built}");
    let again = machine.run("build", &[]);
    assert!(again.stderr.contains("indexes made: 0; there already: 1"), "{again}");
    let after = machine.run("ls", &[]).success();
    assert!(after.contains(&image.layers[0].digest.to_string()), "{after}");
    assert!(after.contains("1 spans; local"), "{after}");
}

#[test]
fn a_layer_that_brings_a_table_of_contents_needs_no_index_of_ours() {
    let (blob, annotations) = own_tables::fixture("estargz.tar.gz");
    let tar = own_tables::tar_of(&blob);
    let mut builder = ImageBuilder::new().layer_of_blob(&tar, blob, Compression::Gzip);
    for (name, value) in &annotations {
        builder = builder.annotate_layer(name, value);
    }
    let alone = builder.clone().build();
    let registry = registry_with(&alone);
    let machine = Machine::new(&registry);
    let refused = machine.run("push", &[]);
    assert_eq!(refused.code(), Some(1), "{refused}");
    assert!(refused.stderr.contains("brings its own table"), "{refused}");
    machine.room.layoutfs(&["inspect", &machine.layout, "/"]);
    assert!(machine.spans()[0].is_some_and(|spans| spans > 1), "the table is its index");

    let files = LayerBuilder::new().file("good", 0o644, "good");
    let image = builder.layer(files, Compression::Gzip).build();
    let registry = registry_with(&image);
    let artifact = Machine::new(&registry).push();
    let (_, manifest) = registry.manifest(REPOSITORY, &artifact).unwrap();
    let shared = IndexArtifact::parse("it", &manifest.bytes).unwrap();
    assert_eq!(shared.layers.len(), 1);
    let machine = Machine::new(&registry);
    let options = ["--index", &artifact, "--require-lazy"];
    assert_eq!(machine.shows("good", &options), b"good");
    registry.clear();
    machine.shows("good", &options);
    let asked = registry.requests();
    assert!(asked.is_empty(), "the artifact lacks nothing that is needed: {asked:?}");
}

#[test]
fn a_cache_without_room_for_an_index_is_no_error_of_a_mount() {
    let image = small();
    let registry = registry_with(&image);
    let artifact = Machine::new(&registry).push();
    let machine = Machine::new(&registry);
    let options = ["--index", &artifact, "--cache-limit", "100"];
    let outcome = machine.run("pull", &options);
    assert_eq!(outcome.code(), Some(1), "{outcome}");
    assert!(outcome.stderr.contains("no room for an index"), "{outcome}");
    assert_eq!(machine.spans(), [None]);
    assert_eq!(machine.shows("good", &options), b"good");
}
