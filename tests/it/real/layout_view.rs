//! Other tools take the layout view of a sparse layout for a complete layout.

use std::process::Command;

use super::debian::{Debian, TOOL_LIMIT, described, digest_of, hex, tool};
use crate::support::mount::{Room, run};

/// Runs a podman that shares nothing with the machine's, in the room: it makes a repository name
/// of an `oci:` path, and a temporary path has upper-case letters, which such a name may not have.
pub fn podman(debian: &Debian, args: &[&str]) -> String {
    podman_in(&debian.room, args)
}

/// The same with the images of another room.
pub fn podman_in(room: &Room, args: &[&str]) -> String {
    let dir = room.path().join("podman");
    let [root, runroot] = ["root", "run"].map(|name| dir.join(name).to_str().unwrap().to_owned());
    let own = ["--root", &root, "--runroot", &runroot, "--storage-driver", "overlay"];
    // The runtime that the set-up installs: another one may be there, and not fit the machine.
    let runtime = ["--runtime", "runc"];
    let mut command = Command::new("podman");
    run(command.args(own).args(runtime).args(args).current_dir(room.path()), TOOL_LIMIT).success()
}

#[test]
fn skopeo_copies_the_layout_view_to_a_directory() {
    let debian = Debian::shared();
    let from = format!("oci:{}:v1", debian.layout("v1").path().display());
    let out = debian.new_dir("skopeo");
    let to = format!("dir:{}", out.display());
    tool("skopeo", &["copy", "-q", "--preserve-digests", &from, &to]).success();
    assert_eq!(digest_of(&out.join("manifest.json")), debian.manifest_digest("v1"));
    for digest in described(&debian.manifest("v1")) {
        assert_eq!(digest_of(&out.join(hex(&digest))), digest);
    }
}

#[test]
fn skopeo_copies_the_layout_view_to_an_empty_registry() {
    let debian = Debian::shared();
    let from = format!("oci:{}:v1", debian.layout("v1").path().display());
    let to = format!("docker://{}/copied/run:v1", debian.scratch.address);
    let copy = ["copy", "-q", "--preserve-digests", "--dest-tls-verify=false"];
    tool("skopeo", &[&copy[..], &[&from, &to]].concat()).success();
    assert_eq!(debian.scratch.manifest_digest("copied/run", "v1"), debian.manifest_digest("v1"));
    for digest in described(&debian.manifest("v1")) {
        assert_eq!(debian.scratch.blob(&digest), debian.registry.blob(&digest), "{digest}");
    }
}

#[test]
fn umoci_unpacks_the_layout_view() {
    let debian = Debian::shared();
    let image = format!("{}:plain", debian.layout("plain").path().display());
    let bundle = debian.new_dir("umoci").join("bundle");
    let listed = tool("umoci", &["ls", "--layout", image.trim_end_matches(":plain")]).success();
    assert_eq!(listed, "plain\n");
    tool("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]).success();
    // umoci checks digests and diffIDs itself, and names its record after the manifest.
    let record = format!("sha256_{}.mtree", hex(&debian.manifest_digest("plain")));
    assert!(bundle.join(record).is_file());
    assert_eq!(
        digest_of(&bundle.join("rootfs/usr/bin/gcc")),
        digest_of(&debian.umoci_rootfs().join("usr/bin/gcc"))
    );
    // Space is short where many suites run: this is the whole image once more.
    std::fs::remove_dir_all(&bundle).unwrap();
}

#[test]
fn podman_pulls_the_layout_view() {
    let debian = Debian::shared();
    let mount = debian.layout("everyday");
    let name = mount.path().file_name().unwrap().to_str().unwrap();
    let image = format!("oci:{name}:everyday");
    let id = podman(&debian, &["pull", "-q", &image]);
    let id = id.trim_end();
    let digest = podman(&debian, &["image", "inspect", "--format", "{{.Digest}}", id]);
    assert_eq!(digest.trim_end(), debian.manifest_digest("everyday"));
    let config = debian.manifest("everyday")["config"]["digest"].as_str().unwrap().to_owned();
    assert_eq!(id, hex(&config));
    podman(&debian, &["rmi", "-f", id]);
}
