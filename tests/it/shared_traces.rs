//! Traces that one machine records and another finds: hints, whoever wrote them.

use layoutfs::layout::oci::referrer::EMPTY;
use layoutfs::layout::oci::trace_artifact::TraceArtifact;
use layoutfs::layout::oci::{Descriptor, OCI_MANIFEST};
use layoutfs::layout::range::ByteRange;
use layoutfs::layout::trace::{Needed, Trace};
use layoutfs::layout::{Blob, Digest};
use serde_json::Value;

use crate::support::mount::Outcome;
use crate::traces::{Setting, setting, some_use, until_prefetched};

const REPOSITORY: &str = "team/app";

fn blob_of(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::sha256_of(bytes), size: bytes.len() as u64 }
}

/// Puts an artifact into the registry that says that `trace` is one of the image.
fn put(setting: &Setting, used_for: &str, trace: Blob) {
    setting.registry.put_blob(REPOSITORY, EMPTY);
    let subject = Descriptor::new(OCI_MANIFEST, blob_of(&setting.image.manifest));
    let artifact = TraceArtifact { subject, used_for: used_for.to_owned(), trace };
    setting.registry.put_manifest(REPOSITORY, OCI_MANIFEST, artifact.to_bytes());
}

#[test]
fn a_trace_that_was_pushed_is_found_by_its_use() {
    let setting = setting();
    setting.record(some_use);
    let file = setting.trace_path().display().to_string();
    let push = |options: &[&str]| {
        let args = [&["index", "push", &setting.layout, "--trace", &file], options].concat();
        setting.room.layoutfs(&args)
    };
    let python = push(&["--use", "python"]);
    assert!(setting.registry.manifest(REPOSITORY, python.trim()).is_some());
    let mount = setting.mount(&["--prefetch", "auto"]);
    let said = mount.said();
    assert!(said.contains("use default: there is none (there are some of python)"), "{said}");
    some_use(mount.path());
    mount.unmount();

    push(&[]);
    for option in ["auto", "auto:python"] {
        setting.forget();
        let mount = setting.mount(&["--prefetch", option]);
        let prefetch = until_prefetched(&mount);
        assert_eq!(prefetch["errors"], 0, "{prefetch}");
        let sent: u64 = (0..4).map(|layer| setting.sent(layer)).sum();
        assert!(sent > 0 && sent < setting.image.layer_bytes() / 3, "{sent}");
        setting.registry.clear();
        some_use(mount.path());
        assert_eq!(setting.registry.requests().len(), 0, "{:?}", setting.registry.requests());
    }
    setting.forget();
    let offline = setting.mount(&["--prefetch", "auto", "--offline"]);
    assert!(offline.said().contains("--offline is set"), "{}", offline.said());
    assert_eq!(setting.registry.requests().len(), 0);
}

#[test]
fn ls_lists_the_traces_beside_the_indexes() {
    let setting = setting();
    let ls = |options: &[&str]| {
        let args = [&["index", "ls", &setting.layout], options].concat();
        setting.room.run(&args)
    };
    let json = |outcome: Outcome| -> Value { serde_json::from_str(&outcome.success()).unwrap() };
    assert_eq!(json(ls(&["--json"]))["traces"], serde_json::json!([]));
    let trace = blob_of(setting.record(some_use).encode().as_bytes());
    let file = setting.trace_path().display().to_string();
    let push = ["index", "push", &setting.layout, "--trace", &file, "--use", "py\x1bthon"];
    let artifact = setting.room.layoutfs(&push);
    // What is listed and is none, or another image's, is passed over.
    put(&setting, "default", blob_of(b"nothing there"));
    let shown = json(ls(&["--json"]));
    let first = &shown["traces"][0];
    assert_eq!(first["use"], "py\x1bthon", "{shown}");
    assert_eq!(first["artifact"], artifact.trim(), "{shown}");
    assert_eq!(
        (&first["digest"], &first["size"]),
        (&trace.digest.to_string().into(), &trace.size.into())
    );
    let human = ls(&[]).success();
    let line = human.lines().find(|line| line.contains("trace of use")).expect("a line");
    assert!(line.contains(&trace.digest.to_string()) && !line.contains('\x1b'), "{line}");
    assert!(human.contains("spans; lazy, by own index"), "{human}");
    let offline = ls(&["--offline", "--json"]);
    assert!(offline.stderr.contains("traces in the registry are not known"), "{offline}");
    assert_eq!(json(offline)["traces"], Value::Null);
}

#[test]
fn only_a_trace_of_this_image_is_pushed() {
    let setting = setting();
    let trace = setting.record(some_use);
    let other = Trace { image: Digest::sha256_of(b"other"), ..trace };
    let file = setting.trace_path();
    for content in [other.encode(), "nothing".to_owned()] {
        std::fs::write(&file, content).unwrap();
        let file = file.display().to_string();
        let refused = setting.room.run(&["index", "push", &setting.layout, "--trace", &file]);
        assert_eq!(refused.code(), Some(2), "{refused}");
        assert!(refused.stderr.contains(&file), "{refused}");
    }
    assert_eq!(setting.registry.requests().len(), 0);
}

#[test]
fn a_hostile_trace_fetches_nothing_beyond_the_image_and_fails_no_mount() {
    let setting = setting();
    let image = setting.image.digest;
    let layers = [setting.image.layers[0].digest, Digest::sha256_of(b"none of the image")];
    let range = |layer, start, end| Needed { layer, range: ByteRange::new(start, end) };
    let wild = Trace {
        image,
        layers: layers.to_vec(),
        needed: vec![range(0, 0, u64::MAX), range(1, 0, 9), range(0, u64::MAX - 1, u64::MAX)],
    };
    let of_other = Trace { image: layers[1], ..wild.clone() }.encode();
    let keep = |text: &str| {
        setting.registry.put_blob(REPOSITORY, text.as_bytes().to_vec());
        blob_of(text.as_bytes())
    };
    put(&setting, "wild", keep(&wild.encode()));
    put(&setting, "other", keep(&of_other));
    put(&setting, "nothing", keep("nothing"));
    put(&setting, "absent", blob_of(b"absent"));
    put(&setting, "huge", Blob { size: 1 << 40, ..blob_of(b"huge") });
    for (used_for, why) in [
        ("other", "and this image is"),
        ("nothing", "line 1"),
        ("absent", "trace sha256:"),
        ("huge", "expected at most"),
    ] {
        let mount = setting.mount(&["--prefetch", &format!("auto:{used_for}")]);
        assert!(mount.said().contains(why), "{used_for}: {}", mount.said());
        some_use(mount.path());
    }
    setting.forget();
    let mount = setting.mount(&["--prefetch", "auto:wild"]);
    let prefetch = until_prefetched(&mount);
    assert_eq!(prefetch["errors"], 0, "{prefetch}");
    let size = setting.image.layers[0].blob.len() as u64;
    assert!(setting.sent(0) <= size + size / 1000, "each byte once at most");
    assert_eq!((1..4).map(|layer| setting.sent(layer)).sum::<u64>(), 0);
    some_use(mount.path());
}
