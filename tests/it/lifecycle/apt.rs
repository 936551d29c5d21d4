//! `apt-get install` in an extension: from a repository on loopback, in both modes, with no layer
//! on this machine.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::application::Image;
use super::build::{Build, RUN_IMAGE, read};
use super::dockerfiles::{differences, members, seconds, settled};
use super::fixture::{file, program};
use crate::real::debian::{REPOSITORY, TOOL_LIMIT, digest_of, hex, tool};
use crate::support::listing::Listing;
use crate::support::mount::run;

const START_LIMIT: Duration = Duration::from_secs(20);

/// Two packages: a program with a file of settings and something to do when it is configured, and
/// what it depends on.
fn write_packages(dir: &Path) {
    let control = |name: &str, more: &str| {
        let text = format!(
            "Package: {name}\nVersion: 1.0\nArchitecture: all\n\
             Maintainer: layoutfs <layoutfs@example.org>\n{more}Description: to be installed\n"
        );
        file(&dir.join(name).join("DEBIAN/control"), &text);
    };
    control("greeting", "Depends: greeting-text (= 1.0)\n");
    let own = dir.join("greeting");
    let script =
        "#!/bin/sh\n. /etc/greeting.conf\ncat /usr/share/greeting/$TEXT /var/lib/greeting\n";
    program(&own.join("usr/bin/greeting"), script);
    file(&own.join("etc/greeting.conf"), "TEXT=text\n");
    file(&own.join("DEBIAN/conffiles"), "/etc/greeting.conf\n");
    program(&own.join("DEBIAN/postinst"), "#!/bin/sh\necho \"told to $1\" >/var/lib/greeting\n");
    // As every package with a library has it.
    file(&own.join("DEBIAN/triggers"), "activate-noawait ldconfig\n");
    control("greeting-text", "");
    file(&dir.join("greeting-text/usr/share/greeting/text"), "hello\n");
}

/// A repository for apt in `dir`, with the packages.
fn write_repository(dir: &Path) {
    write_packages(&dir.join("packages"));
    let mut index = String::new();
    for name in ["greeting", "greeting-text"] {
        let (from, to) = (dir.join("packages").join(name), dir.join(format!("{name}.deb")));
        let [from, path] = [&from, &to].map(|path| path.to_str().unwrap());
        tool("dpkg-deb", &["--root-owner-group", "-Zgzip", "-b", from, path]).success();
        let (size, digest) = (to.metadata().unwrap().len(), digest_of(&to));
        let fields = tool("dpkg-deb", &["-f", path]).success();
        let sum = hex(&digest);
        write!(index, "{fields}Filename: ./{name}.deb\nSize: {size}\nSHA256: {sum}\n\n").unwrap();
    }
    file(&dir.join("Packages"), &index);
}

/// Files by HTTP, on a free port of the loopback interface, while it lives.
struct Server {
    shell: Child,
    address: String,
}

impl Server {
    fn start(dir: &Path) -> Self {
        let log = dir.with_extension("log");
        // The shell's stdin closes when this process ends, however it ends; so does the server.
        let script = "python3 -u -m http.server --bind 127.0.0.1 --directory \"$1\" 0 & \
            read -r _; kill $!; wait";
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(dir).stdin(Stdio::piped());
        shell.stdout(File::create(&log).unwrap()).stderr(Stdio::null());
        let mut server = Server { shell: shell.spawn().unwrap(), address: String::new() };
        let started = Instant::now();
        while server.address.is_empty() {
            assert!(started.elapsed() < START_LIMIT, "it does not start: {}", read(&log));
            std::thread::sleep(Duration::from_millis(10));
            if let Some((_, rest)) = read(&log).split_once("(http://") {
                server.address =
                    rest.split_once("/)").map(|(a, _)| a.to_owned()).unwrap_or_default();
            }
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        // An error here means that the shell is gone, which is what we want.
        let _ = self.shell.wait();
    }
}

/// An extension that went through, of a run image whose layers were nowhere but in the registry.
struct Installed {
    build: Build,
    image: Image,
    base: Image,
    told: Value,
}

fn install(tag: &str, mode: &str, server: &Server) -> Installed {
    let build = Build::with_empty_cache("0.13");
    let digest = build.sparse(&build.debian.reference(tag), RUN_IMAGE);
    build.room.mount(build.run_image().to_str().unwrap(), &[]).unmount();
    build.room.layoutfs(&["cache", "prune"]);
    let dockerfile = format!(
        "ARG base_image\nFROM ${{base_image}}\nUSER root\n\
         RUN echo 'deb [trusted=yes] http://{} ./' >/etc/apt/sources.list && apt-get update && \\\n\
         apt-get install -y --no-install-recommends greeting\n\
         ARG user_id\nUSER ${{user_id}}\n",
        server.address
    );
    build.write_phases(&digest, &dockerfile);
    let mut command = build.extend_command(&["--mode", mode, "--json"]);
    for proxy in ["http_proxy", "HTTP_PROXY"] {
        command.env_remove(proxy);
    }
    let outcome = run(&mut command, TOOL_LIMIT);
    assert_eq!(outcome.code(), Some(0), "{outcome}\n{}", build.room.logs());
    let told = serde_json::from_str(&outcome.stdout).unwrap();
    let (image, base) = (build.extended(), Image::read(&build.run_image()));
    Installed { build, image, base, told }
}

impl Installed {
    fn source(&self) -> String {
        format!("{}/{REPOSITORY}", self.build.debian.registry.address)
    }

    fn listing(&self, dir: &Path, since: i64) -> Listing {
        let mount = self.build.room.mount(dir.to_str().unwrap(), &["--source", &self.source()]);
        settled(Listing::of(mount.path()), since)
    }

    /// What a command of the extended image prints.
    #[track_caller]
    fn printed(&self, command: &[&str]) -> String {
        let (image, source) = (self.image.dir.to_str().unwrap(), self.source());
        let options = ["run", image, "--source", &source, "--"];
        let mut run_it = self.build.room.command(&[&options[..], command].concat());
        run(run_it.env("TMPDIR", self.build.path("tmp")), TOOL_LIMIT).success()
    }

    fn fetched(&self) -> u64 {
        self.told["bytes_fetched"].as_u64().unwrap()
    }

    fn layer_sizes(&self) -> Vec<u64> {
        let layers = self.base.manifest["layers"].as_array().unwrap().iter();
        layers.map(|layer| layer["size"].as_u64().unwrap()).collect()
    }
}

#[test]
fn packages_are_installed_as_kaniko_would_have_it() {
    let since = seconds();
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("repository");
    write_repository(&repository);
    let server = Server::start(&repository);
    let shadow = install("stack", "shadow", &server);
    let plain = install("stack", "plain", &server);

    let sizes = shadow.layer_sizes();
    let total: u64 = sizes.iter().sum();
    // Of the second layer neither apt nor what it runs needs anything; kaniko reads it all.
    assert!(shadow.fetched() + sizes[1] <= total, "{}: {sizes:?}", shadow.told);
    // All but padding behind the archives; and once, but for a byte that neighbours share.
    let fetched = total - (64 << 10)..=total + plain.told["requests"].as_u64().unwrap();
    assert!(fetched.contains(&plain.fetched()), "everything, and nothing twice: {}", plain.told);
    println!("apt, one gzip member: {} and {} of {total}", shadow.fetched(), plain.fetched());

    assert_eq!(shadow.printed(&["greeting"]), "hello\ntold to configure\n");
    let query = ["dpkg-query", "-W", "-f", "${Package} ${Version} ${Status}\n"];
    let status = shadow.printed(&[&query[..], &["greeting", "greeting-text"]].concat());
    let installed = "greeting 1.0 install ok installed\ngreeting-text 1.0 install ok installed\n";
    assert_eq!(status, installed);
    assert_eq!(shadow.printed(&["dpkg", "--audit"]), "");

    let base = shadow.listing(&shadow.build.run_image(), since);
    let [of_shadow, of_plain] =
        [&shadow, &plain].map(|installed| installed.listing(&installed.image.dir, since));
    // Times and inode numbers are in their contents.
    let stamped = [
        "var/cache/apt/pkgcache.bin",
        "var/cache/apt/srcpkgcache.bin",
        "var/cache/ldconfig/aux-cache",
        "var/log/apt/history.log",
        "var/log/apt/term.log",
        "var/log/dpkg.log",
    ];
    for (path, how) in differences(&of_plain, &of_shadow) {
        assert!(stamped.contains(&&*path) && how == "content", "{path}: {how}");
    }
    let changed = differences(&base, &of_shadow);
    let removed: Vec<_> = base.0.keys().filter(|path| !of_shadow.0.contains_key(*path)).collect();
    assert!(removed.is_empty(), "installing removes nothing: {removed:?}");
    let said: BTreeSet<_> = changed.into_keys().collect();
    assert_eq!(members(&shadow.image), said, "every change, and nothing else");
}

#[test]
fn installing_fetches_a_part_of_an_image_that_can_be_read_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("repository");
    write_repository(&repository);
    let server = Server::start(&repository);
    let shadow = install("members", "shadow", &server);
    let total: u64 = shadow.layer_sizes().iter().sum();
    assert_eq!(shadow.told["bytes_total"], total);
    println!("apt, gzip members: {} of {total}", shadow.fetched());
    // Nobody reads documentation, locales, time zones, most programs: more than a quarter of it.
    assert!(shadow.fetched() * 4 <= total * 3, "{}", shadow.told);
}
