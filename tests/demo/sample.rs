//! The demo's images, made from nothing and always the same. The first has four layers shaped like
//! an application image (system, language, its packages, the application): two are one gzip member,
//! as most builders write them; two can be entered in the middle, one of each format. The others
//! are for buildpacks.

use serde_json::json;

use super::image::{Image, ImageBuilder};
use super::layer::{Compression, LayerBuilder, generated};

/// Layers by how they are made and stored.
type Plan = (fn() -> LayerBuilder, Compression);

const SPAN_BYTES: usize = 1 << 20;
const PATH: &str = "PATH=/usr/local/bin:/usr/bin:/bin";

/// About 60 MB as stored; a program that starts needs a few files of it.
pub fn image() -> Image {
    let plan: [Plan; 4] = [
        (system, Compression::Gzip),
        (language, Compression::Gzip),
        (packages, Compression::GzipMembers(SPAN_BYTES)),
        (application, Compression::ZstdFrames(SPAN_BYTES)),
    ];
    with_layers(ImageBuilder::new(), &plan)
        .empty_step("CMD [\"/app/server\"]")
        .setting("Env", json!([PATH]))
        .setting("Cmd", json!(["/app/server"]))
        .setting("WorkingDir", json!("/app"))
        .build()
}

/// What buildpacks build in, and what their applications run on: the first is small, the second
/// about 30 MB as stored, in layers that can be entered in the middle. `busybox` is a static
/// program, which is the shell of both.
pub fn buildpack_images(busybox: &[u8]) -> [Image; 2] {
    let members = Compression::GzipMembers(SPAN_BYTES);
    let labels = json!({
        "io.buildpacks.base.id": "example.demo",
        "io.buildpacks.base.distro.name": "demo",
        "io.buildpacks.base.distro.version": "1",
        "io.buildpacks.rebasable": "true",
    });
    let accounts = LayerBuilder::text(
        "dir etc
         file etc/passwd = root:x:0:0:root:/root:/bin/sh\\ncnb:x:1000:1000::/home/cnb:/bin/sh\\n
         file etc/group = root:x:0:\\ncnb:x:1000:\\n",
    );
    let build = ImageBuilder::new()
        .layer(accounts.dir("tmp", 0o1777), members)
        .layer(shell(busybox, "build"), members);
    let plan: [Plan; 3] = [(system, members), (language, members), (packages, members)];
    let run = with_layers(ImageBuilder::new(), &plan).layer(shell(busybox, "run"), members);
    [build, run].map(|image| {
        let image = image.setting("Env", json!([PATH])).setting("Labels", labels.clone());
        image.setting("User", json!("1000:1000")).build()
    })
}

fn with_layers(builder: ImageBuilder, plan: &[Plan]) -> ImageBuilder {
    // Compressing takes nearly all the time, so each layer has a thread.
    let threads = plan.iter().map(|&(layer, compression)| {
        std::thread::spawn(move || {
            let tar = layer().tar();
            let blob = compression.compress(&tar);
            (tar, blob, compression)
        })
    });
    let threads: Vec<_> = threads.collect();
    threads.into_iter().fold(builder, |builder, layer| {
        let (tar, blob, compression) = layer.join().expect("layers are made from constants");
        builder.layer_of_blob(&tar, blob, compression)
    })
}

/// Of each image its own, so that none has it from the other.
fn shell(busybox: &[u8], image: &str) -> LayerBuilder {
    let layer = LayerBuilder::new()
        .dir("usr", 0o755)
        .dir("usr/bin", 0o755)
        .file("usr/bin/busybox", 0o755, busybox.to_vec())
        .file("etc/image", 0o644, format!("{image}\n"))
        .symlink("bin", "usr/bin");
    let programs = "sh cat chmod cp id mkdir rm true wc";
    programs
        .split(' ')
        .fold(layer, |layer, name| layer.symlink(&format!("usr/bin/{name}"), "busybox"))
}

fn system() -> LayerBuilder {
    let mut layer = LayerBuilder::text(
        "dir usr
         dir usr/bin
         dir usr/lib
         dir usr/share
         dir usr/share/doc
         dir etc
         dir tmp 01777
         dir var
         dir var/lib
         dir root 0700
         symlink bin -> usr/bin
         symlink lib -> usr/lib
         file etc/os-release = NAME=\"Demo Linux\"\\nID=demo\\nVERSION_ID=1\\n
         file etc/passwd = root:x:0:0:root:/root:/bin/sh\\napp:x:1000:1000::/app:/bin/sh\\n
         file etc/group = root:x:0:\\napp:x:1000:\\n
         file etc/hosts = 127.0.0.1 localhost\\n",
    );
    for (name, kilobytes) in [("libc.so.6", 2_000), ("libcrypto.so.3", 5_000), ("libz.so.1", 120)] {
        layer = layer.file(&format!("usr/lib/{name}"), 0o755, library(name, kilobytes << 10));
    }
    for number in 0..120 {
        let name = format!("tool-{number}");
        layer = layer.file(&format!("usr/bin/{name}"), 0o755, library(&name, 60 << 10));
        let package = format!("usr/share/doc/{name}");
        layer = layer.dir(&package, 0o755);
        layer = layer.file(&format!("{package}/README"), 0o644, prose(&name, 14_000));
        layer = layer.hardlink(&format!("{package}/README.txt"), &format!("{package}/README"));
    }
    layer
}

fn language() -> LayerBuilder {
    let mut layer = LayerBuilder::new().dir("usr/local", 0o755).dir("usr/local/lib", 0o755);
    layer = layer.dir("usr/local/lib/demo", 0o755);
    layer = layer.file("usr/local/lib/libdemo.so", 0o755, library("libdemo", 24 << 20));
    for number in 0..600 {
        let path = format!("usr/local/lib/demo/module{number}.txt");
        layer = layer.file(&path, 0o644, prose(&path, 3_000 + 61 * number));
    }
    layer
}

fn packages() -> LayerBuilder {
    let mut layer = LayerBuilder::new().dir("usr/local/lib/packages", 0o755);
    for number in 0..40 {
        let dir = format!("usr/local/lib/packages/p{number}");
        layer = layer.dir(&dir, 0o755);
        layer = layer.file(&format!("{dir}/native.so"), 0o755, library(&dir, (number + 5) << 15));
        for file in 0..25 {
            let path = format!("{dir}/part{file}.txt");
            layer = layer.file(&path, 0o644, prose(&path, 4_000 + 500 * file));
        }
    }
    layer.whiteout("usr/share/doc/tool-7")
}

fn application() -> LayerBuilder {
    LayerBuilder::text(
        "dir app 0755 1000:1000
         file app/config.toml 0644 1000:1000 = listen = \"127.0.0.1:8080\"\\nworkers = 4\\n
         file app/server 0755 1000:1000 = #!/bin/sh\\necho the demo application\\n
         opaque usr/share/doc/tool-8",
    )
    .file("app/model.bin", 0o644, library("model", 20 << 20))
}

/// Half of it compresses and half of it does not, in pages, as machine code and tables do.
fn library(seed: &str, len: usize) -> Vec<u8> {
    const PAGE_BYTES: usize = 4096;
    let random = generated(seed, len.div_ceil(2).next_multiple_of(PAGE_BYTES));
    let text = prose(seed, 16 * PAGE_BYTES);
    let mut bytes = Vec::with_capacity(len + 2 * PAGE_BYTES);
    for (page, hard) in random.chunks(PAGE_BYTES).enumerate() {
        let easy = page % 16 * PAGE_BYTES;
        bytes.extend_from_slice(hard);
        bytes.extend_from_slice(&text[easy..easy + PAGE_BYTES]);
    }
    bytes.truncate(len);
    bytes
}

/// Words and lines: compresses about as prose does.
fn prose(seed: &str, len: usize) -> Vec<u8> {
    const WORDS: &str = "layer blob digest manifest index range span tree the of a and read \
        proved resident source cache mount lower upper whiteout image reference config";
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut text = Vec::with_capacity(len + 16);
    for byte in generated(seed, len).iter() {
        let word = words[usize::from(*byte) % words.len()];
        text.extend_from_slice(word.as_bytes());
        text.push(if byte % 11 == 0 { b'\n' } else { b' ' });
        if text.len() >= len {
            break;
        }
    }
    text.truncate(len);
    text
}
