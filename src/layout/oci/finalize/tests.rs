//! An exporter that never saw the extension, finalized, gives what one that saw it gives.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const RUN_IMAGE: &str = "/layout-repo/reg.example/run/base@sha256:d";

fn config(diff_ids: &[&str], settings: Value) -> Value {
    json!({"os": "linux", "x-mine": [null, {"a": 1}], "config": settings,
           "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": []})
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Finalizes; and once more, which changes nothing.
fn run(base: &Value, extended: &Value, exported: &Value) -> Result<Option<(Value, Changes)>> {
    let (base, extended) = (bytes(base), bytes(extended));
    let once = |exported: &[u8]| {
        finalize(Configs { base: &base, extended: &extended, exported }, RUN_IMAGE)
    };
    let Some(done) = once(&bytes(exported))? else { return Ok(None) };
    assert_eq!(once(&done.config)?, None, "a second time");
    Ok(Some((serde_json::from_slice(&done.config).unwrap(), done.changes)))
}

/// The settings that come out for these, and what was changed.
fn merged(base: Value, extended: Value, exported: Value) -> (Value, Changes) {
    let of = |settings| config(&["b"], settings);
    let done = run(&of(base), &of(extended), &of(exported.clone())).unwrap();
    done.map_or((exported, Changes::default()), |(value, changes)| {
        (value["config"].clone(), changes)
    })
}

fn metadata(reference: &str) -> String {
    json!({"app": [{"sha": "sha256:x"}],
           "runImage": {"topLayer": "sha256:top", "reference": reference, "image": "reg/run"}})
    .to_string()
}

#[test]
fn the_application_keeps_what_it_set_and_has_the_rest_of_the_extension() {
    let base = json!({"Env": ["PATH=/bin", "A=1"], "User": "1000", "Shell": ["/bin/sh"],
        "Cmd": ["bash"], "StopSignal": "SIGTERM",
        "Labels": {"io.buildpacks.rebasable": "true", "l": "base", "os": "x"}});
    let extended = json!({"Env": ["PATH=/ext:/bin", "A=2", "EXT=e"], "User": "1001:1001",
        "Cmd": ["bash"], "WorkingDir": "/ext", "ExposedPorts": {"80/tcp": {}},
        "Volumes": {"/v": {}}, "x-extended": 1,
        "Labels": {"io.buildpacks.rebasable": "false", "l": "ext", "os": "x", "ext": "1"}});
    let exported = json!({"Env": ["PATH=/cnb:/bin", "A=1", "CNB_APP_DIR=/workspace"],
        "User": "1000", "Shell": ["/bin/sh"], "Entrypoint": ["/cnb/process/web"],
        "WorkingDir": "/workspace", "StopSignal": "SIGTERM", "x-app": {"y": null},
        "Labels": {"io.buildpacks.rebasable": "true", "l": "base", "os": "mine",
                   LIFECYCLE_METADATA: metadata("/layout-repo/run@sha256:empty")}});
    let (after, changes) = merged(base, extended, exported);
    let label: Value =
        serde_json::from_str(after["Labels"][LIFECYCLE_METADATA].as_str().unwrap()).unwrap();
    let expected: Value = serde_json::from_str(&metadata(RUN_IMAGE)).unwrap();
    assert_eq!(label, expected);
    let mut rest = after;
    rest["Labels"].as_object_mut().unwrap().remove(LIFECYCLE_METADATA);
    assert_eq!(
        rest,
        json!({"Env": ["PATH=/cnb:/ext:/bin", "A=2", "EXT=e", "CNB_APP_DIR=/workspace"],
            "User": "1001:1001", "Entrypoint": ["/cnb/process/web"], "WorkingDir": "/workspace",
            "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}, "x-extended": 1,
            "x-app": {"y": null},
            "Labels": {"io.buildpacks.rebasable": "false", "l": "ext", "os": "mine", "ext": "1"}})
    );
    assert_eq!(changes.env, ["A", "EXT", "PATH"]);
    assert_eq!(changes.labels, ["ext", LIFECYCLE_METADATA, "io.buildpacks.rebasable", "l"]);
    let settings = ["ExposedPorts", "Shell", "StopSignal", "User", "Volumes", "x-extended"];
    assert_eq!(changes.settings, settings);
}

#[test]
fn everything_outside_the_settings_is_left() {
    let (base, extended) = (config(&["b"], json!({})), config(&["b", "e"], json!({"User": "7"})));
    let mut exported = config(&["b", "e2", "app"], json!({}));
    exported["history"] = json!([{"created_by": "x", "x-unknown": 1}]);
    exported["created"] = "1980-01-01T00:00:01Z".into();
    let (after, _) = run(&base, &extended, &exported).unwrap().unwrap();
    exported["config"] = json!({"User": "7"});
    assert_eq!(after, exported);
}

#[test]
fn what_says_the_same_is_not_changed() {
    let nothing = Changes::default();
    for (extended, exported) in [
        (json!({}), Value::Null),
        (Value::Null, json!({"Env": null, "Labels": null, "Cmd": []})),
        (json!({"Env": [], "User": "", "Volumes": {}, "Tty": false, "Shell": null}), json!({})),
        (json!({"Env": ["A=1"]}), json!({"Env": ["A=1"], "WorkingDir": "/w"})),
    ] {
        let (_, changes) = merged(json!({}), extended.clone(), exported.clone());
        assert_eq!(changes, nothing, "{extended} {exported}");
    }
    let mut none = config(&["b"], Value::Null);
    none.as_object_mut().unwrap().remove("config");
    assert_eq!(run(&none, &none, &none), Ok(None));
    let (_, changes) =
        merged(json!({}), json!({"Env": ["A=1", "B=1"]}), json!({"Env": ["B=1", "A=1"]}));
    assert_eq!(changes.settings, ["Env"], "order alone");
}

#[test]
fn other_layers_below_are_refused() {
    let of = |diff_ids| config(diff_ids, json!({}));
    let base = of(&["b1", "b2"]);
    for (extended, exported, word) in [
        (of(&["b1", "x"]), of(&["b1", "b2", "app"]), "the extended image: its lowest layers"),
        (of(&["b1"]), of(&["b1", "b2", "app"]), "the extended image: its lowest layers"),
        (of(&["b1", "b2"]), of(&["b2", "b1"]), "the application: its lowest layers"),
        (of(&["b1", "b2", "e"]), of(&["b1", "b2"]), "2 layers, expected at least the 3"),
    ] {
        let error = run(&base, &extended, &exported).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn documents_that_are_none_are_refused() {
    let good = config(&["b"], json!({}));
    for (bad, word) in [
        (json!([]), "no rootfs"),
        (json!({"rootfs": {"diff_ids": "b"}}), "expected a list of digests"),
        (json!({"rootfs": {"diff_ids": ["b"]}, "config": []}), "config: it is no JSON object"),
        (config(&["b"], json!({"Env": "A=1"})), "Env: expected a list of strings"),
        (config(&["b"], json!({"Env": [1]})), "Env: expected a list of strings"),
        (config(&["b"], json!({"Labels": []})), "Labels: it is no JSON object"),
    ] {
        for place in 0..3 {
            let mut all = [&good, &good, &good];
            all[place] = &bad;
            let error = run(all[0], all[1], all[2]).unwrap_err().to_string();
            assert!(error.contains(word), "{place}: {error}");
        }
    }
    let label = json!({"Labels": {LIFECYCLE_METADATA: "{"}});
    let error = run(&good, &good, &config(&["b"], label)).unwrap_err().to_string();
    assert!(error.contains(LIFECYCLE_METADATA), "{error}");
}

#[test]
fn labels_of_other_exporters_are_left() {
    for text in ["{}", "[1]", r#"{"runImage":null}"#, r#"{"stack": {"runImage": {}}}"#] {
        let label = json!({"Labels": {LIFECYCLE_METADATA: text}});
        assert_eq!(merged(json!({}), json!({}), label.clone()), (label, Changes::default()));
    }
}

#[test]
fn an_index_names_the_new_manifest_and_keeps_what_it_says() {
    let (old, other) = (Digest::sha256_of(b"old"), Digest::sha256_of(b"other"));
    let new = Blob { digest: Digest::sha256_of(b"new"), size: 3 };
    let named = |digest: &Digest| {
        json!({"mediaType": "m", "digest": digest.to_string(), "size": 9,
               "annotations": {"org.opencontainers.image.ref.name": "latest"}, "x": 1})
    };
    let mut mine = named(&old);
    mine["data"] = "b2xk".into();
    let index =
        json!({"schemaVersion": 2, "y": [], "manifests": [mine, named(&other), named(&old)]});
    let after = replace_manifest(&bytes(&index), &old, &new).unwrap();
    let mut expected = named(&new.digest);
    expected["size"] = 3.into();
    assert_eq!(
        serde_json::from_slice::<Value>(&after).unwrap(),
        json!({"schemaVersion": 2, "y": [],
               "manifests": [expected.clone(), named(&other), expected]})
    );
    for bad in ["{}", "[]", r#"{"manifests":[1,null,{"digest":7}]}"#] {
        assert!(replace_manifest(bad.as_bytes(), &old, &new).is_err(), "{bad}");
    }
}

fn some_settings() -> impl Strategy<Value = Value> {
    let some = |values: &'static [&'static str]| {
        prop::option::of(prop::sample::select(values))
            .prop_map(|text| text.map_or(Value::Null, Value::from))
    };
    let env = prop::collection::vec("(PATH=(/a|/b|/c:/a)|[AB]=[12]|A|)", 0..4);
    let labels = prop::collection::btree_map("[ab]", "[12]", 0..3);
    let user = some(&["", "1000"]);
    let reference = some(&["/run@sha256:0", RUN_IMAGE]);
    (env, labels, user, reference, any::<[bool; 4]>()).prop_map(
        |(env, labels, user, reference, has)| {
            let mut settings = json!({"User": user, "Env": env, "Labels": labels, "Cmd": ["x"]});
            if let (Some(reference), true) = (reference.as_str(), has[3]) {
                settings["Labels"][LIFECYCLE_METADATA] = metadata(reference).into();
            }
            let names = ["User", "Env", "Labels"];
            let fields = settings.as_object_mut().unwrap();
            for (name, _) in names.iter().zip(has).filter(|(_, has)| !has) {
                fields.remove(*name);
            }
            settings
        },
    )
}

proptest! {
    #[test]
    fn finalizing_twice_is_finalizing_once(
        base in some_settings(), extended in some_settings(), exported in some_settings(),
    ) {
        // `merged` does it twice.
        let (after, _) = merged(base.clone(), extended.clone(), exported.clone());
        prop_assert_eq!(after.get("Cmd"), exported.get("Cmd"));
        // What neither of those below has is the application's own; no exporter sets one.
        if base.get("User").or(extended.get("User")).is_some() {
            prop_assert_eq!(said(after.get("User")), said(extended.get("User")));
        }
    }

    #[test]
    fn an_application_on_the_base_itself_becomes_the_extension(
        base in some_settings(), extended in some_settings(),
    ) {
        let mut expected = extended.clone();
        let mut labels = labels(extended.as_object().unwrap()).unwrap();
        if let Some(own) = base.pointer(&format!("/Labels/{LIFECYCLE_METADATA}")) {
            labels.insert(LIFECYCLE_METADATA.to_owned(), own.clone());
        }
        name_run_image(&mut labels, RUN_IMAGE).unwrap();
        if !labels.is_empty() {
            expected["Labels"] = labels.into();
        }
        let (after, _) = merged(base.clone(), extended, base);
        let same = compare(after.as_object().unwrap(), expected.as_object().unwrap());
        prop_assert_eq!(same, Ok(Changes::default()));
    }
}

#[test]
fn the_lifecycles_label_stays_even_where_the_base_says_the_same() {
    let of = |reference: &str| json!({"Labels": {LIFECYCLE_METADATA: metadata(reference)}});
    let (after, changes) = merged(of(RUN_IMAGE), json!({}), of("/run@sha256:0"));
    assert_eq!(changes.labels, [LIFECYCLE_METADATA]);
    assert_eq!(after, of(RUN_IMAGE));
}

#[test]
fn layers_get_the_media_types_of_their_manifest() {
    let [(gzip, docker_gzip), (plain, docker_plain)] = LAYER_TYPES;
    let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
    let manifest = |own: &str, layers: &[&str]| {
        let layers: Vec<Value> =
            layers.iter().map(|media_type| json!({"mediaType": media_type, "size": 1})).collect();
        json!({"mediaType": own, "x": 1, "layers": layers})
    };
    let typed = |own: &str, layers: &[&str]| {
        let (bytes, changed) = with_one_family(&bytes(&manifest(own, layers))).unwrap();
        (serde_json::from_slice::<Value>(&bytes).unwrap(), changed)
    };
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let mixed = [gzip, docker_gzip, docker_plain, zstd];
    assert_eq!(typed(oci, &mixed), (manifest(oci, &[gzip, gzip, plain, zstd]), 2));
    assert_eq!(typed("", &mixed).1, 2, "a manifest without a type of its own is OCI's");
    let expected = manifest(DOCKER_MANIFEST, &[docker_gzip, docker_gzip, docker_plain, zstd]);
    assert_eq!(typed(DOCKER_MANIFEST, &mixed), (expected, 1));
    let same = bytes(&manifest(oci, &[gzip]));
    assert_eq!(with_one_family(&same), Ok((same, 0)), "byte for byte");
    with_one_family(b"[]").expect_err("no manifest");
}
