//! Documents of both families as tools write them, and hostile ones.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::layout::digest::{Blob, Digest};

const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn blob(bytes: &str) -> Blob {
    Blob { digest: Digest::sha256_of(bytes.as_bytes()), size: bytes.len() as u64 }
}

fn layer(media_type: &str) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{D}","size":0,"urls":["http://x/"]}}"#)
}

fn manifest(own_type: &str, layers: &[&str]) -> String {
    let layers: Vec<String> = layers.iter().map(|t| layer(t)).collect();
    let config = layer(DOCKER_CONFIG);
    let layers = layers.join(",");
    format!(r#"{{"schemaVersion":2,{own_type}"config":{config},"layers":[{layers}]}}"#)
}

fn parse(descriptor_type: &str, text: &str) -> Result<Document> {
    parse_document(&Descriptor::new(descriptor_type, blob(text)), text.as_bytes())
}

fn config(text: &str) -> Result<ImageConfig> {
    ImageConfig::parse(&Descriptor::new(OCI_CONFIG, blob(text)), text.as_bytes())
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn only_version_1_0_0_layouts_are_read() {
    assert_eq!(parse_oci_layout(br#"{"imageLayoutVersion": "1.0.0", "x": 1}"#), Ok(()));
    assert_eq!(
        message(parse_oci_layout(br#"{"imageLayoutVersion": "2.0.0"}"#)),
        "oci-layout: image layout version \"2.0.0\" is not supported, expected \"1.0.0\""
    );
    assert!(parse_oci_layout(b"").is_err());
}

#[test]
fn the_kind_is_the_documents_own_type_then_its_shape_then_the_descriptors_type() {
    let is_manifest = |r: Result<Document>| matches!(r, Ok(Document::Manifest(_)));
    let docker = format!(r#""mediaType":"{DOCKER_MANIFEST}","#);
    assert!(is_manifest(parse(OCI_MANIFEST, &manifest("", &[]))));
    assert!(is_manifest(parse(OCI_MANIFEST, &manifest(&docker, &[]))));
    assert!(is_manifest(parse("application/json", &manifest("", &[]))));
    assert!(is_manifest(parse(OCI_INDEX, &manifest(&docker, &[]))));
    assert!(parse(OCI_INDEX, &manifest("", &[])).is_err());
    let nothing = r#"{"schemaVersion":2}"#;
    assert!(matches!(parse(DOCKER_INDEX, nothing), Ok(Document::Index(_))));
    assert!(message(parse("application/json", nothing)).contains("application/json"));
    let nulls = r#"{"schemaVersion":2,"manifests":null,"annotations":null}"#;
    assert!(matches!(parse(OCI_INDEX, nulls), Ok(Document::Index(_))));
}

#[test]
fn what_is_no_image_is_refused_by_its_type() {
    let artifact = "application/vnd.oci.artifact.manifest.v1+json";
    let text = format!(r#"{{"mediaType":"{artifact}","blobs":[]}}"#);
    assert!(message(parse(artifact, &text)).ends_with(&format!(
        "media type {artifact} is not supported, expected an image index or manifest"
    )));
    for schema1 in [r#"{"schemaVersion":1}"#, r#"{"schemaVersion":2,"fsLayers":[]}"#] {
        assert!(message(parse(OCI_MANIFEST, schema1)).contains("skopeo copy --format oci"));
    }
    let index_type = format!(r#""mediaType":"{OCI_INDEX}","#);
    let error = message(parse(OCI_MANIFEST, &manifest(&index_type, &[])));
    assert!(error.contains("it has the fields of an image manifest"), "{error}");
    let both = format!(r#"{{"manifests":[],"config":{},"layers":[]}}"#, layer(OCI_CONFIG));
    assert!(message(parse(OCI_MANIFEST, &both)).contains("both manifests and layers"));
    assert!(message(Manifest::parse("m", br#"{"manifests":[]}"#)).contains("an image index"));
    assert!(message(ImageIndex::parse("i", br#"{"layers":[]}"#)).contains("an image manifest"));
    assert!(message(Manifest::parse("m", br#"{"layers":[]}"#)).contains("no config"));
}

#[test]
fn documents_are_proved_and_bounded() {
    let text = manifest("", &[]);
    let other = Descriptor::new(OCI_MANIFEST, blob("x"));
    assert!(matches!(parse_document(&other, text.as_bytes()), Err(Error::SizeMismatch { .. })));
    let long = " ".repeat(DOCUMENT_BYTES_MAX as usize + 1);
    let error = message(ImageIndex::parse("index.json", long.as_bytes()));
    assert_eq!(error, "size in bytes of index.json exceeds the limit of 4194304");
}

#[test]
fn media_types_annotations_and_data_are_kept() {
    let text = format!(
        r#"{{"manifests":[
            {{"mediaType":"{DOCKER_MANIFEST}","digest":"{}","size":3,"data":"Zm9v",
              "annotations":{{"a":"b","n":null}},"platform":{{"architecture":"aarch64"}}}},
            {{"mediaType":"x/y","digest":"{D}","size":0,"platform":null,"artifactType":"t"}}]}}"#,
        Digest::sha256_of(b"foo")
    );
    let index = ImageIndex::parse("index.json", text.as_bytes()).unwrap();
    let [first, second] = index.manifests.as_slice() else { panic!("two manifests") };
    assert_eq!(first.media_type, DOCKER_MANIFEST);
    assert_eq!(first.data.as_deref(), Some(&b"foo"[..]));
    assert_eq!(first.annotations.len(), 1);
    assert_eq!(first.platform.as_ref().unwrap().to_string(), "/arm64");
    assert_eq!((second.media_type.as_str(), &second.platform), ("x/y", &None));
    assert_eq!(second.artifact_type.as_deref(), Some("t"));
}

#[test]
fn embedded_bytes_that_are_not_the_blobs_are_refused() {
    for (data, size) in [("Zm9v", 4), ("Zm9w", 3), ("?", 3)] {
        let digest = Digest::sha256_of(b"foo");
        let text = format!(
            r#"{{"manifests":[{{"mediaType":"x/y","digest":"{digest}","size":{size},"data":"{data}"}}]}}"#
        );
        let error = message(ImageIndex::parse("index.json", text.as_bytes()));
        assert!(error.contains("data embedded in the descriptor"), "{error}");
    }
}

#[test]
fn malformed_descriptors_are_errors_that_name_the_document() {
    for (good, bad) in
        [("\"size\":0", "\"size\":-1"), (D, "md5:00"), ("\"size\":0", "\"other\":0"), (D, "../x")]
    {
        let text = format!(r#"{{"manifests":[{{"digest":"{D}","size":0}}]}}"#);
        let text = text.replace(good, bad);
        let error = message(ImageIndex::parse("index.json", text.as_bytes()));
        assert!(error.starts_with("index.json: "), "{error}");
    }
}

#[test]
fn a_config_as_go_writes_it_is_read() {
    let text = format!(
        r#"{{"architecture":"arm","variant":"v6","os":"linux","created":null,
            "config":{{"Env":["A=b"],"Cmd":null,"Volumes":{{"/v":null}},"Labels":null,
                       "ExposedPorts":{{"80/tcp":{{}}}},"User":"1000","Healthcheck":{{}}}},
            "history":[{{"created_by":"x","comment":null}},{{"empty_layer":true}}],
            "rootfs":{{"type":"layers","diff_ids":["{D}"]}}}}"#
    );
    let parsed = config(&text).unwrap();
    assert_eq!(parsed.diff_ids, [D.parse().unwrap()]);
    assert_eq!(parsed.platform.to_string(), "linux/arm/v6");
    let inner = parsed.configuration.config().as_ref().unwrap();
    assert_eq!(inner.env().as_deref(), Some(&["A=b".to_owned()][..]));
    assert_eq!(inner.volumes().as_deref(), Some(&["/v".to_owned()][..]));
    assert_eq!(parsed.configuration.history().as_ref().unwrap().len(), 2);
    let scratch = config(r#"{"rootfs":{"type":"layers","diff_ids":null}}"#).unwrap();
    assert!(scratch.diff_ids.is_empty());
}

#[test]
fn what_is_no_image_configuration_is_refused() {
    assert!(message(config("{}")).ends_with("it has no rootfs"));
    assert!(message(config(r#"{"rootfs":{"type":"x"}}"#)).contains("expected \"layers\""));
    let text = "{}";
    let empty = Descriptor::new("application/vnd.oci.empty.v1+json", blob(text));
    let error = message(ImageConfig::parse(&empty, text.as_bytes()));
    assert!(error.contains("application/vnd.oci.empty.v1+json"), "{error}");
    assert!(message(config(r#"{"rootfs":{"diff_ids":["x"]}}"#)).contains("diff_ids: invalid"));
}

#[test]
fn layers_and_diff_ids_are_paired_in_order_and_must_be_as_many() {
    let oci = "application/vnd.oci.image.layer.v1.tar+zstd";
    let docker = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let mixed = Manifest::parse("m", manifest("", &[oci, docker]).as_bytes()).unwrap();
    let one = config(&format!(r#"{{"rootfs":{{"diff_ids":["{D}"]}}}}"#)).unwrap();
    let two = config(&format!(r#"{{"rootfs":{{"diff_ids":["{D}","{D}"]}}}}"#)).unwrap();
    let layers = rootfs_layers(&mixed, &two).unwrap();
    assert_eq!(layers.iter().map(|l| l.media_type.as_str()).collect::<Vec<_>>(), [oci, docker]);
    let error = message(rootfs_layers(&mixed, &one));
    assert!(error.ends_with("1 diff_ids for the manifest's 2 layers"), "{error}");
    let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    let foreign = Manifest::parse("m", manifest("", &[oci, encrypted]).as_bytes()).unwrap();
    assert!(message(rootfs_layers(&foreign, &two)).contains(encrypted));
}

#[test]
fn layer_media_types_of_both_families_hint_at_their_compression() {
    use LayerCompression::{Gzip, None as Plain, Zstd};
    for (media_type, expected) in [
        ("application/vnd.oci.image.layer.v1.tar", Some(Plain)),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Gzip)),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Zstd)),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Some(Gzip)),
        ("application/vnd.docker.image.rootfs.diff.tar", Some(Plain)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Gzip)),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", Some(Zstd)),
        ("application/vnd.oci.image.layer.v1.tarball", None),
        ("text/plain", None),
    ] {
        assert_eq!(layer_compression(media_type), expected, "{media_type}");
    }
}

#[test]
fn media_types_of_both_families_are_mixed_wherever_they_stand() {
    let [oci, docker] = [
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ];
    let mixed = |own: &str, config: &str, layers: &[&str]| {
        let blob = Blob { digest: Digest::sha256_of(b""), size: 0 };
        let manifest = Manifest {
            media_type: None,
            artifact_type: None,
            config: Descriptor::new(config, blob),
            layers: layers.iter().map(|layer| Descriptor::new(*layer, blob)).collect(),
            subject: None,
            annotations: BTreeMap::new(),
        };
        manifest.has_mixed_media_types(own)
    };
    assert!(!mixed(OCI_MANIFEST, OCI_CONFIG, &[oci, oci]));
    assert!(!mixed(DOCKER_MANIFEST, DOCKER_CONFIG, &[docker]));
    assert!(!mixed("", OCI_CONFIG, &[]));
    assert!(mixed(OCI_MANIFEST, OCI_CONFIG, &[oci, docker]));
    assert!(mixed(OCI_MANIFEST, DOCKER_CONFIG, &[]));
    assert!(mixed(DOCKER_MANIFEST, DOCKER_CONFIG, &[oci]));
}
