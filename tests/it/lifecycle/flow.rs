//! The whole flow, analyzer to application, for every Platform API, in both modes; and that the
//! mode makes no difference.

use std::path::Path;
use std::sync::Arc;

use super::application::Image;
use super::build::{Build, RUN_IMAGE, read};
use super::fixture::GREETING;
use crate::real::debian::{REPOSITORY, Registry, tool};
use crate::support::listing::{Facts, Listing};
use crate::support::mount::Room;

/// Requests for any of these blobs that a registry answered.
fn requests_for(registry: &Registry, digests: &[&str]) -> usize {
    let log = read(registry.access_log());
    log.lines().filter(|line| digests.iter().any(|digest| line.contains(digest))).count()
}

/// A build that goes through, up to the hydrated layout of the application.
fn flow(api: &'static str, tag: &str, mode: &str) -> Build {
    let build = Build::new(api);
    let registry = build.debian.own_registry();
    let reference = format!("{}/{REPOSITORY}:{tag}", registry.address);
    let digest = build.sparse(&reference, RUN_IMAGE);
    assert_eq!(digest, build.debian.manifest_digest(tag), "the registry's bytes are kept");
    let base = Image::read(&build.run_image());
    let layer_requests = || requests_for(&registry, &base.layers());

    build.analyze();
    build.detect();
    let analyzed = read(&build.path("layers/analyzed.toml"));
    assert!(analyzed.contains("extend = true"), "{analyzed}");
    build.restore();
    build.build();
    assert_eq!(layer_requests(), 0, "no phase before the extender needs a layer");

    let told = build.extend(mode);
    assert_eq!(told["mode"], mode, "{told}");
    let extended = build.extended();
    assert_eq!(told["digest"], extended.digest);
    let requests = layer_requests();
    let exported = build.export();
    exported.assert_exported_on(&base, &extended);
    let application = build.finalize();
    assert_finalized(&application, &exported, &base, api);
    assert_eq!(build.finalize().digest, application.digest, "a second time changes nothing");
    assert_eq!(layer_requests(), requests, "no layer is asked for after the extender");

    // The application's label names the run image, whose layout says where it came from.
    build.room.layoutfs(&["hydrate", build.application().to_str().unwrap()]);
    Image::read(&build.application()).assert_whole();
    build
}

/// The configuration is the extension's, with what the lifecycle adds; nothing else changes.
#[track_caller]
fn assert_finalized(application: &Image, exported: &Image, base: &Image, api: &str) {
    let lost = "EXT_VAR=from-extension";
    assert!(!exported.environment().contains(&lost), "the lifecycle has learnt it: {exported:?}");
    let api = format!("CNB_PLATFORM_API={api}");
    let path = "PATH=/cnb/process:/cnb/lifecycle:\
        /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let environment = application.environment();
    for expected in [lost, &*api, path, "FIXTURE=debian", "CNB_APP_DIR=/workspace"] {
        assert!(environment.contains(&expected), "{expected}: {environment:?}");
    }
    let config = &application.config["config"];
    assert_eq!(config["User"], "1000", "{config}");
    assert_eq!(config["WorkingDir"], "/workspace");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/cnb/process/web"]));
    assert_eq!(application.label("io.buildpacks.rebasable"), Some("true"));
    assert_eq!(application.label("io.buildpacks.base.id"), Some("io.example.debian"));
    let metadata = application.lifecycle_metadata();
    let reference = metadata["runImage"]["reference"].as_str().unwrap();
    assert!(reference.ends_with(&base.digest), "{metadata}");
    let told = exported.lifecycle_metadata();
    for part in ["app", "buildpacks", "config", "launcher", "process-types", "sbom"] {
        assert_eq!(metadata[part], told[part]);
    }
    assert_eq!(metadata["runImage"]["topLayer"], told["runImage"]["topLayer"]);
    assert_eq!(application.layers(), exported.layers());
    assert_eq!(application.media_types(), base.media_types(), "the exporter mixes families");
    assert_eq!(application.config["rootfs"], exported.config["rootfs"]);
    assert_eq!(application.config["history"], exported.config["history"]);
    let name = "org.opencontainers.image.ref.name";
    assert_eq!(application.index["manifests"][0]["annotations"][name], "latest");
    assert_eq!(application.manifest["annotations"], exported.manifest["annotations"]);
}

/// The application runs from its layout alone, as the user that the image names.
#[track_caller]
fn assert_answers(application: &Path) {
    let room = Room::new();
    let printed = room.layoutfs(&["run", application.to_str().unwrap(), "--offline"]);
    assert_eq!(printed, GREETING);
}

/// Docker could load it: another tool reads the whole layout and proves what it reads.
#[track_caller]
fn assert_converts(build: &Build) {
    let from = format!("oci:{}", build.application().display());
    let to = format!("docker-archive:{}", build.path("application.tar").display());
    tool("skopeo", &["copy", "-q", &from, &to]).success();
}

/// Everything that an image's layers say together.
fn listing(room: &Arc<Room>, image: &Path) -> Listing {
    Listing::of(room.mount(image.to_str().unwrap(), &[]).path())
}

/// What the extension did to the run image.
#[track_caller]
fn assert_extended(listing: &Listing) {
    let facts = |path: &str| listing.get(path).unwrap_or_else(|| panic!("no {path}"));
    assert_eq!(facts("extended.txt").size_bytes, "extended\nsecond\n".len() as u64);
    assert_eq!(facts("usr/share/man").kind, 'd');
    let below = |dir: &str| -> Vec<String> {
        listing.paths().into_iter().filter(|path| path.starts_with(dir)).collect()
    };
    assert_eq!(below("usr/share/man/"), [""; 0]);
    assert_eq!(below("srv/made-anew/"), ["srv/made-anew/inner", "srv/made-anew/inner/new"]);
    assert!(listing.get("usr/share/doc/adduser/copyright").is_none());
    assert!(listing.get("usr/share/doc/adduser").is_some());
    assert_eq!((facts("opt/hl-a").mode, facts("opt/hl-b").mode), (0o700, 0o644));
    // What nobody touched is what the run image has, attributes too.
    assert_eq!((facts("home/cnb").uid, facts("home/cnb").mode), (1000, 0o750));
    let capability = facts("usr/bin/capable").xattrs.get(&b"security.capability"[..]);
    assert_eq!(capability.map(Vec::len), Some(20));
}

/// The time that an exporter gives to every entry of a layer that it writes.
const EXPORTED: i64 = 315_532_801;

/// What the extension touches nothing but the parents of. Both modes show the same files; but
/// kaniko writes every directory above a change into its layer, and the exporter then gives it a
/// time of its own. `commit` leaves out what did not change, so these keep the time that they have
/// in the run image.
const ABOVE_CHANGES: [&str; 3] = ["opt", "usr", "usr/share/doc"];

/// Both listings have the same paths, types, modes, owners, contents and attributes; and the times
/// differ where it can be explained.
#[track_caller]
fn assert_same_but_explained(base: &Listing, shadow: &Listing, plain: &Listing) {
    let mut explained = shadow.clone();
    for path in ABOVE_CHANGES {
        let facts = shadow.get(path).unwrap_or_else(|| panic!("no {path}"));
        assert_eq!(base.get(path), Some(facts), "{path} is as it was");
        let facts = Facts { mtime: EXPORTED, mtime_ns: 0, ..facts.clone() };
        explained.0.insert(path.as_bytes().to_vec(), facts);
    }
    explained.assert_same(plain);
}

/// Beside what the lifecycle adds, only what the extension says is new.
#[track_caller]
fn assert_nothing_else(base: &Listing, application: &Listing) {
    let places = ["cnb", "layers", "workspace", "extended.txt", "srv/made-anew"];
    let new = application.0.keys().filter(|path| !base.0.contains_key(*path));
    let paths = new.map(|path| path.escape_ascii().to_string());
    let of_nobody = |path: &String| {
        !places.iter().any(|place| {
            path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    };
    assert_eq!(paths.filter(of_nobody).collect::<Vec<_>>(), [""; 0]);
}

/// Both modes, from the same image: the same application.
fn both_modes(api: &'static str, tag: &str) {
    let builds = ["shadow", "plain"].map(|mode| flow(api, tag, mode));
    let base = listing(&builds[0].room, &builds[0].run_image());
    assert_converts(&builds[0]);
    let [shadow, plain] = builds.each_ref().map(|build| {
        assert_answers(&build.application());
        let listing = listing(&build.room, &build.application());
        assert_extended(&listing);
        assert_nothing_else(&base, &listing);
        listing
    });
    assert_same_but_explained(&base, &shadow, &plain);
}

#[test]
fn platform_api_0_12() {
    both_modes("0.12", "stack");
}

#[test]
fn platform_api_0_13() {
    both_modes("0.13", "stack-docker");
}

#[test]
fn platform_api_0_14() {
    both_modes("0.14", "stack");
}

#[test]
fn platform_api_0_15() {
    both_modes("0.15", "stack-docker");
}
