//! Indexes that somebody has named and that are wrong: they cost nobody a proved byte, and no source
//! is blamed for what they may have said.

use std::fs;

use layoutfs::layout::Digest;
use layoutfs::layout::index::{Proof, Segments, saved};

use crate::indexes::{Machine, index_of, put_artifact, registry_with, small};
use crate::support::image::Image;
use crate::support::mount::Mount;
use crate::support::registry::Registry;
use crate::traces::status;

/// An artifact with an index whose only span has another digest than the layer's bytes.
fn wrong_index(registry: &Registry, image: &Image) -> String {
    let maker = Machine::new(registry);
    maker.push();
    let mut index = index_of(&maker, image);
    index.spans[0].proof = match index.spans[0].proof {
        Proof::Stored(_) => Proof::Stored(Segments::One([7; 32])),
        Proof::Decoded(_) => Proof::Decoded([7; 32]),
    };
    let (image, layer) = (image.digest, image.layers[0].digest);
    put_artifact(registry, image, layer, &saved::encode(&index).unwrap())
}

#[track_caller]
fn fails_to_read(mount: &Mount) -> String {
    let error = fs::read(mount.path().join("good")).expect_err("its span does not pass");
    assert_eq!(error.raw_os_error(), Some(libc_eio()), "{error}");
    let log = status(mount)["log"].as_str().expect("a path").to_owned();
    fs::read_to_string(log).expect("its log")
}

fn libc_eio() -> i32 {
    rustix::io::Errno::IO.raw_os_error()
}

#[test]
fn a_blob_that_is_proved_is_not_lost_to_an_index_that_lies() {
    let image = small();
    let registry = registry_with(&image);
    let artifact = wrong_index(&registry, &image);
    let machine = Machine::new(&registry);
    let layer: Digest = image.layers[0].digest;
    let path = format!("blobs/sha256/{}", layer.hex());
    let whole = machine.room.mount(&machine.layout, &["--view", "layout"]);
    let blob = fs::read(whole.path().join(&path)).expect("all of it comes into the cache");
    whole.unmount();
    registry.clear();

    let mount = machine.room.mount(&machine.layout, &["--index", &artifact]);
    let log = fails_to_read(&mount);
    assert!(log.contains(&artifact) && log.contains("has its digest"), "{log}");
    let shown = status(&mount);
    assert_eq!(shown["set_aside"].as_array().map(Vec::len), Some(0), "{shown}");
    mount.unmount();
    assert_eq!(registry.blob_requests(&layer).len(), 0, "the blob is here");

    let offline = ["--view", "layout", "--offline"];
    let whole = machine.room.mount(&machine.layout, &offline);
    assert!(fs::read(whole.path().join(&path)).expect("it is still here") == blob);
    whole.unmount();
    assert_eq!(machine.shows("good", &["--index", "off", "--offline"]), b"good");
}

#[test]
fn a_source_is_not_blamed_for_what_may_be_the_fault_of_an_index() {
    let image = small();
    let registry = registry_with(&image);
    let artifact = wrong_index(&registry, &image);
    let machine = Machine::new(&registry);
    let mount = machine.room.mount(&machine.layout, &["--index", &artifact]);
    let log = fails_to_read(&mount);
    assert!(log.contains("or a wrong index") && log.contains(&artifact), "{log}");
    let shown = status(&mount);
    let aside = shown["set_aside"].as_array().expect("a list").clone();
    assert_eq!(aside.len(), 1, "{shown}");
    assert_eq!(aside[0]["or_index"], artifact.as_str(), "{shown}");
    let human = mount.room().layoutfs(&["status", &mount.path().display().to_string()]);
    let line = human.lines().find(|line| line.contains("asked last")).expect("it is told");
    let says = format!("or the index is wrong by which it is read, that of artifact {artifact}");
    assert!(line.contains(&says) && line.contains("--index off"), "{line}");
}
