//! What extensions do to files, kind by kind: the layer that we make of the upper directory says
//! what kaniko's own layers say, and nothing that is no change.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use std::time::SystemTime;

use super::application::Image;
use super::build::{Build, RUN_IMAGE};
use super::fixture::file;
use crate::real::debian::{REPOSITORY, hex};
use crate::support::listing::{Facts, Listing};

/// One Dockerfile, which is an extension of its own.
struct Case {
    name: &'static str,
    instructions: &'static str,
    /// Paths that it changes, and what is below them, as `escape_ascii` has them; `…` for any end.
    /// What other cases change is not among them.
    changes: &'static [&'static str],
    /// Paths that it touches, and leaves as they were.
    leaves: &'static [&'static str],
    /// Paths that kaniko tells otherwise: in which facts, and why.
    kaniko_differs: &'static [(&'static str, &'static str, &'static str)],
}

const NO_XATTR: &str = "kaniko keeps no extended attribute but security.capability";
const NO_LINK: &str = "kaniko writes a new name of a file that is the same as before as a copy";
const TARGET_TOO: &str =
    "kaniko writes what a changed link leads to as well, without its other names";

/// In this order, on top of each other.
const CASES: [Case; 14] = [
    Case {
        name: "directories",
        instructions: "\
RUN mv /srv/made-anew /srv/renamed && cd /opt/odd && \\
    mv link-to-dir elsewhere && mv elsewhere link-to-dir && \\
    rm -rf kept && echo file >kept && rm dotted && mkdir dotted && echo in >dotted/in
",
        changes: &["srv/made-anew", "srv/renamed", "opt/odd/kept", "opt/odd/dotted"],
        // Moved away and back, which overlayfs does by copying.
        leaves: &["opt/odd/link-to-dir", "opt/odd/link-to-dir/inner"],
        kaniko_differs: &[],
    },
    Case {
        name: "made-anew",
        instructions: "\
RUN cd /opt/odd && rm -rf late && mkdir -p late/sub && echo new >late/sub/newer && \\
    rm -rf file-to-dir && mkdir file-to-dir && \\
    cd dddd*/dddd*/dddd* && rm -rf d* && rm -rf /usr/share/doc/adduser /usr/share/doc/bash/*
",
        changes: &[
            "opt/odd/late",
            "opt/odd/file-to-dir",
            "usr/share/doc/adduser",
            "usr/share/doc/bash",
            "opt/odd/dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd",
        ],
        leaves: &[],
        kaniko_differs: &[],
    },
    Case {
        name: "hard-links",
        instructions: "\
RUN chmod 700 /opt/hl-a && cd /opt/odd && echo changed >>link-into-base && \\
    echo one >l1 && ln l1 l2 && mkdir ld && ln l1 ld/l3 && ln contiguous linked
",
        changes: &[
            "opt/hl-a",
            "opt/hl-b",
            "opt/odd/link-into-base",
            "etc/debian_version",
            "opt/odd/l1",
            "opt/odd/l2",
            "opt/odd/ld",
            "opt/odd/linked",
            "opt/odd/contiguous",
        ],
        leaves: &[],
        kaniko_differs: &[
            ("opt/odd/linked", "links same_as", NO_LINK),
            ("opt/odd/contiguous", "links same_as", NO_LINK),
        ],
    },
    Case {
        name: "symlinks",
        instructions: "\
RUN cd /opt/odd && ln -sfn elsewhere link-kept && rm -r dir-to-link && mkdir dir-to-link && \\
    ln -sf nowhere dir-to-file && rm file-to-link && echo file >file-to-link && \\
    rm -rf real && ln -s / real && touch -h -d @1500000001.5 soft && \\
    ln -s /$(printf 'n%.0s' $(seq 255))/$(printf 'm%.0s' $(seq 255)) long
",
        changes: &[
            "opt/odd/link-kept",
            "opt/odd/dir-to-link",
            "opt/odd/dir-to-file",
            "opt/odd/real",
            "opt/odd/file-to-link",
            "opt/odd/soft",
            "opt/odd/hard-soft",
            "opt/odd/long",
        ],
        leaves: &[],
        kaniko_differs: &[
            ("opt/odd/hard-a", "links same_as", TARGET_TOO),
            ("opt/odd/hard-b", "links same_as", TARGET_TOO),
            ("opt/odd/hard-c", "links same_as", TARGET_TOO),
            ("opt/odd/link-to-hard", "links same_as", TARGET_TOO),
        ],
    },
    Case {
        name: "attributes",
        instructions: r#"
RUN cd /opt/odd && chown 12:34 absolute && chmod 4711 global-one && chown :33 global-two && \
    chmod g+s global-two && chmod 1770 sticky && chown -h 7:8 soft-dangling && \
    chown 70000:80000 mode-zero && chmod 000 empty-file && chown 1:1 /usr/bin/capable && \
    perl -e '($name, $value) = ("security.capability", pack "V5", 0x02000001, 1 << 13, 0, 0, 0); \
        for (@ARGV) { syscall(188, $_, $name, $value, 20, 0) == 0 or die "$_: $!" }' \
        /usr/bin/env global-own && \
    perl -e 'syscall(197, $ARGV[0], $ARGV[1]) == 0 or die $!' capable security.capability
"#,
        changes: &[
            "opt/odd/absolute",
            "opt/odd/global-one",
            "opt/odd/global-two",
            "opt/odd/sticky",
            "opt/odd/soft-dangling",
            "opt/odd/mode-zero",
            "opt/odd/empty-file",
            "usr/bin/capable",
            "usr/bin/env",
            "opt/odd/global-own",
            "opt/odd/capable",
        ],
        leaves: &[],
        kaniko_differs: &[],
    },
    Case {
        name: "xattrs",
        instructions: r#"
RUN cd /opt/odd && echo new >attributed && echo more >>noted && chmod 700 noted-dir && \
    perl -e '($name, $value) = ("user.new", "a\0b"); \
        for (@ARGV) { syscall(188, $_, $name, $value, 3, 0) == 0 or die "$_: $!" }' \
        attributed before-1970-gnu
"#,
        changes: &[
            "opt/odd/attributed",
            "opt/odd/noted",
            "opt/odd/noted-dir",
            "opt/odd/before-1970-gnu",
        ],
        leaves: &[],
        kaniko_differs: &[
            ("opt/odd/attributed", "xattrs", NO_XATTR),
            ("opt/odd/before-1970-gnu", "xattrs", NO_XATTR),
            ("opt/odd/noted", "xattrs", NO_XATTR),
            ("opt/odd/noted-dir", "xattrs", NO_XATTR),
        ],
    },
    Case {
        name: "specials",
        instructions: "\
RUN cd /opt/odd && mknod char c 5 300 && mknod block b 259 70000 && mkfifo pipe && \\
    rm null && mknod null c 1 5 && rm loop && mkdir -p loop/dir && rm far-device && \\
    echo file >far-device && rm doubled && mkfifo doubled && \\
    perl -MSocket -e 'socket S, PF_UNIX, SOCK_STREAM, 0; bind S, sockaddr_un(\"socket\") or die'
",
        // Of the socket neither says anything: a tar has none.
        changes: &[
            "opt/odd/char",
            "opt/odd/block",
            "opt/odd/pipe",
            "opt/odd/null",
            "opt/odd/loop",
            "opt/odd/far-device",
            "opt/odd/doubled",
        ],
        leaves: &[],
        kaniko_differs: &[],
    },
    Case {
        name: "times",
        instructions: "\
RUN cd /opt/odd && touch -d @1500000000.123456789 uid-pax && touch /usr/share/doc/base-files && \\
    echo a >t1 && touch -d @-1.5 t1 && echo b >t2 && touch -d @8589934592.000000007 t2 && \\
    echo c >t3 && touch -d @-0.25 t3 && echo d >>before-1970 && touch -d @-86400 before-1970 && \\
    mkdir t4 && touch -d @0 t4
",
        changes: &[
            "opt/odd/uid-pax",
            "usr/share/doc/base-files",
            "opt/odd/t1",
            "opt/odd/t2",
            "opt/odd/t3",
            "opt/odd/before-1970",
            "opt/odd/t4",
        ],
        leaves: &[],
        kaniko_differs: &[],
    },
    Case {
        name: "contents",
        instructions: "\
RUN cd /opt/odd && : >>/etc/issue && echo x >passing && rm passing && chmod 755 /etc/apt && \\
    : >>uid-base256 && chmod 644 hard-fifo && chown -h 0:0 /etc/alternatives/awk && \\
    perl -e 'open F, \"+<\", \"/usr/bin/tac\" or die' && \\
    cp -a setuid /tmp/kept && rm setuid && cp -a /tmp/kept setuid && rm /tmp/kept && \\
    cat setgid >/tmp/kept && rm setgid && cp /tmp/kept setgid && rm /tmp/kept && \\
    truncate -s 8M holes && printf middle | dd of=holes bs=1 seek=3M conv=notrunc && \\
    truncate -s 2M sparse-gnu && printf x | dd of=sparse-1.0 bs=1 seek=500000 conv=notrunc
",
        changes: &["opt/odd/setgid", "opt/odd/holes", "opt/odd/sparse-gnu", "opt/odd/sparse-1.0"],
        leaves: &[
            "etc/issue",
            "usr/bin/tac",
            "opt/odd/setuid",
            "opt/odd/passing",
            "opt/odd/uid-base256",
            "opt/odd/hard-fifo",
            "etc/alternatives/awk",
            "etc/apt",
        ],
        kaniko_differs: &[],
    },
    Case {
        name: "names",
        instructions: r#"
RUN cd /opt/odd && echo a >"$(printf 'sp ace\nnl\ttab\\')" && echo b >"$(printf '\351\377')" && \
    mkdir "$(printf 'dir \nx')" && echo c >"$(printf 'dir \nx/ ')" && \
    rm "$(printf 'latin-\351\377')" "$(printf 'new\nline \\ tab\t')" && touch -- -dash '*' '$x' && \
    mkdir -p $(printf 'n%.0s' $(seq 255))/$(printf 'm%.0s' $(seq 255)) && rm mmm*
"#,
        changes: &[
            r"opt/odd/sp ace\nnl\ttab\\",
            r"opt/odd/\xe9\xff",
            r"opt/odd/dir \nx",
            r"opt/odd/latin-\xe9\xff",
            r"opt/odd/new\nline \\ tab\t",
            "opt/odd/-dash",
            "opt/odd/*",
            "opt/odd/$x",
            "opt/odd/nnn…",
            "opt/odd/mmm…",
        ],
        leaves: &[],
        kaniko_differs: &[],
    },
    Case {
        name: "copies",
        instructions: "\
WORKDIR /srv/work/dir
USER 1000:1000
WORKDIR /srv/work-of-user
WORKDIR relative
USER root
COPY file deep/
COPY --chown=1000:1000 --chmod=640 file /srv/copied/owned
COPY file program /srv/copied/
COPY file /opt/odd/copied
ADD program /opt/odd/link-to-file
",
        changes: &[
            "srv/work",
            "srv/work-of-user",
            "srv/copied",
            "opt/odd/copied",
            "opt/odd/link-to-file",
        ],
        leaves: &[],
        kaniko_differs: &[],
    },
    Case {
        name: "user",
        instructions: "\
USER cnb
RUN echo mine >/home/cnb/made && echo >>/home/cnb/.profile && mkdir -m 700 /home/cnb/.ssh && \\
    mktemp /tmp/of-cnb.XXXXXX >/dev/null && mv /tmp/of-cnb.* /tmp/of-cnb && ! touch /home/x
",
        changes: &["home/cnb", "tmp/of-cnb"],
        leaves: &[],
        kaniko_differs: &[],
    },
    Case {
        name: "root",
        instructions: "\
RUN mkdir -p /new-top/a && echo x >/new-top/a/b && echo y >/new-file && rm /top-file && \\
    mkdir -m 700 /empty-top && ln -s new-top /link-top && rmdir /mnt && echo x >/run/left && \\
    mkdir /srv/row && cd /srv/row && touch a b c same && echo once >>/etc/issue.net
RUN cd /srv/row && rm c && echo 2 >>b && mkdir d && echo 1 >d/e
",
        changes: &[
            "new-top",
            "new-file",
            "top-file",
            "link-top",
            "mnt",
            "run/left",
            "srv/row",
            "etc/issue.net",
        ],
        leaves: &[],
        kaniko_differs: &[],
    },
    Case {
        name: "on-top",
        instructions: "\
RUN cd /srv/row && rm a && mv b bb && rm -rf d && echo file >d && rm /etc/issue.net && \\
    rm -r /empty-top && echo 2 >>/new-file
RUN echo back >/etc/issue.net && cd /srv/row && mkdir a && echo again >c && touch /srv/on-top
",
        // The rest is what the one before made.
        changes: &["srv/on-top"],
        leaves: &["srv/row/b", "srv/row/d/e", "empty-top"],
        kaniko_differs: &[],
    },
];

/// What the tests started later than: times since then are those of the commands, which differ.
pub fn settled(mut listing: Listing, since: i64) -> Listing {
    let now = seconds();
    for facts in listing.0.values_mut().filter(|facts| (since..=now).contains(&facts.mtime)) {
        (facts.mtime, facts.mtime_ns) = (i64::MAX, 0);
    }
    listing
}

pub fn seconds() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    now.as_secs().try_into().unwrap()
}

/// The names of the facts that differ.
fn differing(one: Option<&Facts>, other: Option<&Facts>) -> String {
    let (Some(one), Some(other)) = (one, other) else { return "presence".to_owned() };
    let facts = [
        ("kind", one.kind != other.kind),
        ("mode", one.mode != other.mode),
        ("owner", (one.uid, one.gid) != (other.uid, other.gid)),
        ("time", (one.mtime, one.mtime_ns) != (other.mtime, other.mtime_ns)),
        ("content", (one.size_bytes, one.content) != (other.size_bytes, other.content)),
        ("target", one.target != other.target),
        ("device", one.device != other.device),
        ("links", one.links != other.links),
        ("same_as", one.same_as != other.same_as),
        ("xattrs", one.xattrs != other.xattrs),
    ];
    let names: Vec<_> = facts.iter().filter(|(_, differ)| *differ).map(|(name, _)| *name).collect();
    names.join(" ")
}

/// What is not the same, by path.
pub fn differences(one: &Listing, other: &Listing) -> BTreeMap<String, String> {
    let paths: BTreeSet<_> = one.0.keys().chain(other.0.keys()).collect();
    let differ = paths.into_iter().filter_map(|path| {
        let (one, other) = (one.0.get(path), other.0.get(path));
        (one != other).then(|| (path.escape_ascii().to_string(), differing(one, other)))
    });
    differ.collect()
}

/// `path` is `place`, or below it.
fn is_in(path: &str, place: &str) -> bool {
    match place.strip_suffix('…') {
        Some(start) => path.starts_with(start),
        None => {
            path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    }
}

/// Every change is one case's, or the time of a directory in which one changed a name; and every
/// case changes what it says.
#[track_caller]
fn assert_attributable(changed: &BTreeMap<String, String>) {
    for (path, how) in changed {
        let of = CASES.iter().filter(|case| case.changes.iter().any(|place| is_in(path, place)));
        let names: Vec<_> = of.map(|case| case.name).collect();
        let inside = format!("{path}/");
        let is_parent = || CASES.iter().any(|c| c.changes.iter().any(|p| p.starts_with(&inside)));
        assert!(names.len() == 1 || how == "time" && is_parent(), "{path}: {how}: {names:?}");
    }
    for (case, place) in CASES.iter().flat_map(|case| case.changes.iter().map(move |p| (case, p))) {
        let is_changed = changed.keys().any(|path| is_in(path, place));
        assert!(is_changed, "{}: {place} is as before", case.name);
    }
    for (case, path) in CASES.iter().flat_map(|case| case.leaves.iter().map(move |p| (case, p))) {
        assert_eq!(changed.get(*path), None, "{}: {path} is not as before", case.name);
    }
}

/// The paths that an image's top layer speaks of.
pub fn members(image: &Image) -> BTreeSet<String> {
    let layers = image.layers();
    let blob = image.dir.join("blobs/sha256").join(hex(layers.last().unwrap()));
    let mut tar = Vec::new();
    let compressed = std::fs::File::open(&blob).unwrap();
    flate2::read::MultiGzDecoder::new(compressed).read_to_end(&mut tar).unwrap();
    let mut archive = tar::Archive::new(&tar[..]);
    let paths = archive.entries().unwrap().map(|entry| {
        let path = entry.unwrap().path_bytes().into_owned();
        let path = path.strip_suffix(b"/").unwrap_or(&path).escape_ascii().to_string();
        path.replacen("/.wh.", "/", 1).trim_start_matches(".wh.").to_owned()
    });
    paths.collect()
}

/// What the phases left for all cases at once, in their order.
fn write_cases(build: &Build, digest: &str) {
    build.write_phases(digest, "");
    let mut group = String::new();
    for case in &CASES {
        let id = case.name;
        group +=
            &format!("[[group-extensions]]\nid = \"ex/{id}\"\nversion = \"1\"\napi = \"0.10\"\n");
        let generated = build.path("layers/generated").join(format!("ex_{id}"));
        let dockerfile = format!(
            "ARG base_image\nFROM ${{base_image}}\nUSER root\n{}ARG user_id\nUSER ${{user_id}}\n",
            case.instructions.trim_start()
        );
        file(&generated.join("run.Dockerfile"), &dockerfile);
        for (name, mode) in [("file", 0o644), ("program", 0o755)] {
            let path = generated.join("context").join(name);
            file(&path, name);
            set_mode(&path, mode);
        }
    }
    file(&build.path("layers/group.toml"), &group);
    build.give_to_builder();
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// All cases in one mode: the extended image, and its files.
fn extended(mode: &str, since: i64) -> (Build, Image, Listing) {
    let build = Build::new("0.13");
    let digest = build.sparse(&build.debian.reference("stack"), RUN_IMAGE);
    write_cases(&build, &digest);
    let told = build.extend(mode);
    assert_eq!(told["mode"], mode, "{told}");
    let image = build.extended();
    let source = format!("{}/{REPOSITORY}", build.debian.registry.address);
    let mount = build.room.mount(image.dir.to_str().unwrap(), &["--source", &source]);
    let listing = settled(Listing::of(mount.path()), since);
    drop(mount);
    (build, image, listing)
}

#[test]
fn commit_agrees_with_kanikos_own_layers() {
    let since = seconds();
    let (build, image, shadow) = extended("shadow", since);
    let mount = build.room.mount(build.run_image().to_str().unwrap(), &[]);
    let base = settled(Listing::of(mount.path()), since);
    drop(mount);
    let changed = differences(&base, &shadow);
    assert_attributable(&changed);
    let base_layers = Image::read(&build.run_image()).layers().len();
    assert_eq!(image.layers().len(), base_layers + 1);
    let unchanged: Vec<_> =
        members(&image).into_iter().filter(|path| !changed.contains_key(path)).collect();
    assert_eq!(unchanged, [""; 0], "the layer speaks of what did not change");

    let (_plain_build, _, plain) = extended("plain", since);
    let expected = CASES.iter().flat_map(|case| case.kaniko_differs);
    let expected: BTreeMap<_, _> =
        expected.map(|(path, how, _)| ((*path).to_owned(), (*how).to_owned())).collect();
    assert_eq!(differences(&plain, &shadow), expected, "{}", plain.diff(&shadow));
}

#[test]
fn a_name_that_no_layer_can_say_is_told_with_what_to_do() {
    let build = Build::new("0.13");
    let digest = build.sparse(&build.debian.reference("stack"), RUN_IMAGE);
    let head = "ARG base_image\nFROM ${base_image}\nUSER root\n";
    build.write_phases(&digest, &format!("{head}RUN touch /srv/.wh.name\nUSER 1000\n"));
    let outcome = build.try_extend(&["--mode", "shadow"]);
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    for word in ["/srv/.wh.name", "a file is removed", "rename it"] {
        assert!(outcome.stderr.contains(word), "no {word:?}: {outcome}");
    }
    assert!(build.extended_directories().is_empty());
}
