//! Layout directories whose files are no files: links, pipes, devices, directories; other versions.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::{Canary, Scene};
use crate::support::image::{Image, ImageBuilder};
use crate::support::layer::{Compression, LayerBuilder};

fn image() -> Image {
    let layer = LayerBuilder::new().file("file", 0o644, "text");
    ImageBuilder::new().layer(layer, Compression::Gzip).build()
}

/// What can stand where a file should.
const STANDS: [&str; 7] = ["link", "dangling", "circle", "pipe", "device", "directory", "terminal"];

/// Puts it there.
fn replace(path: &Path, what: &str, canary: &Canary) {
    let moved = path.with_extension("moved");
    fs::rename(path, &moved).unwrap();
    let node = |kind, device| mknodat(CWD, path, kind, Mode::RWXU, device).unwrap();
    match what {
        // To the very file: what is wrong is the link.
        "link" => symlink(&moved, path).unwrap(),
        "dangling" => symlink(Path::new(canary.path()).join("new"), path).unwrap(),
        "circle" => symlink(path, path).unwrap(),
        "pipe" => node(FileType::Fifo, 0),
        // Endless zeros, and a terminal that would be ours.
        "device" => node(FileType::CharacterDevice, makedev(1, 5)),
        "terminal" => node(FileType::CharacterDevice, makedev(5, 0)),
        _ => fs::create_dir(path).unwrap(),
    }
}

#[test]
fn documents_that_are_no_files_are_refused_and_not_waited_for() {
    let canary = Canary::new();
    let image = image();
    for name in ["index.json", "oci-layout"] {
        for what in STANDS {
            let scene = Scene::of(&image);
            replace(&scene.layout.join(name), what, &canary);
            scene.fails(&["inspect", scene.image()], 3, &[name, "regular file"]);
            scene.refused(3, &[name, "regular file"]);
        }
    }
    canary.assert_untouched();
}

#[test]
fn blobs_that_are_no_files_are_not_read() {
    let canary = Canary::new();
    let image = image();
    for digest in [image.digest, image.config_digest, image.layers[0].digest] {
        for what in STANDS {
            let scene = Scene::of(&image);
            replace(&scene.blob_path(&digest), what, &canary);
            let at = scene.room.path().join("at");
            fs::create_dir(&at).unwrap();
            // They are as good as absent, and there is nobody to ask.
            scene.fails(&["mount", scene.image(), at.to_str().unwrap()], 5, &[&digest.to_string()]);
            let layout = scene.room.try_mount(scene.image(), &["--view", "layout"]);
            if let Ok(mount) = layout {
                let shown = mount.path().join("blobs/sha256").join(digest.hex());
                assert_eq!(fs::read(shown).unwrap_err().raw_os_error(), Some(5), "{what}");
            }
        }
    }
    canary.assert_untouched();
}

#[test]
fn layouts_of_other_versions_are_refused() {
    let image = image();
    for (text, words) in [
        (r#"{"imageLayoutVersion":"1.1.0"}"#, &["\"1.1.0\"", "expected \"1.0.0\""][..]),
        (r#"{"imageLayoutVersion":"2.0.0"}"#, &["\"2.0.0\""]),
        (r#"{"imageLayoutVersion":1}"#, &["oci-layout"]),
        (r#"{"imageLayoutVersion":null}"#, &["oci-layout"]),
        ("{}", &["oci-layout"]),
        ("[]", &["oci-layout"]),
        ("", &["oci-layout"]),
        ("not JSON", &["oci-layout"]),
    ] {
        let scene = Scene::of(&image);
        fs::write(scene.layout.join("oci-layout"), text).unwrap();
        scene.refused(3, words);
    }
    let long = format!(r#"{{"imageLayoutVersion":"{}"}}"#, "\\u001b[31m".repeat(100_000));
    let scene = Scene::of(&image);
    fs::write(scene.layout.join("oci-layout"), long).unwrap();
    scene.refused(3, &["oci-layout"]);
    fs::remove_file(scene.layout.join("oci-layout")).unwrap();
    scene.refused(3, &["oci-layout"]);
}
