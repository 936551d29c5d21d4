//! Which instructions are safe, and what is said of the others.

use super::*;
use crate::layout::entry::Attributes;
use crate::layout::tree::{Builder, NodeKind};

fn tree() -> Tree {
    let mut builder = Builder::new(Vec::new());
    let mut add = |parent, name: &str, kind| {
        let node = builder.add(kind, Attributes::default(), None).expect("node");
        builder.link(parent, name.as_bytes(), node);
        node
    };
    let directory = || NodeKind::Directory;
    let usr = add(NodeId::ROOT, "usr", directory());
    add(usr, "bin", directory());
    for name in ["etc", "opt", "proc", "workspace", "a b"] {
        add(NodeId::ROOT, name, directory());
    }
    add(NodeId::ROOT, "bin", NodeKind::Symlink { target: (*b"usr/bin").into() });
    builder.finish()
}

fn shadowed() -> BTreeSet<String> {
    top_directories(&tree(), &["workspace"])
}

/// `file` and `more/file` are files, `ball.tar` is an archive.
fn context(path: &str) -> SourceKind {
    match path {
        "file" | "more/file" => SourceKind::File,
        "ball.tar" => SourceKind::Archive,
        _ => SourceKind::Other,
    }
}

fn objections(instructions: &str) -> Vec<Objection> {
    let (tree, shadowed) = (tree(), shadowed());
    let mut judge = Judge::new(&tree, &shadowed, Some("/opt"));
    let text = format!("ARG base_image\nFROM ${{base_image}}\n{instructions}\n");
    judge.read("x/run.Dockerfile", &text, context).expect("a Dockerfile");
    judge.objections()
}

#[test]
fn real_directories_are_shadowed_unless_they_are_mounted_anyway() {
    assert_eq!(shadowed(), ["etc", "opt", "usr"].map(str::to_owned).into());
}

#[test]
fn what_only_changes_files_and_configuration_is_safe() {
    for safe in [
        "RUN apt-get update && apt-get install -y tree && rm -rf /var/lib/apt/lists/*",
        "RUN rm -rf /opt/* /usr/share/doc && mkdir /opt/x",
        "RUN ln -sf /opt/a /usr/b; cp -a /opt/x /usr/x; ln --symbolic --force a b",
        "RUN [\"/bin/sh\", \"-c\", \"echo a > /etc/b\"]",
        "RUN <<EOF\necho a > /etc/a\nEOF",
        "USER root\nENV A=b\nLABEL c=d\nSHELL [\"/bin/bash\", \"-c\"]\nCMD [\"x\"]\nEXPOSE 80",
        "COPY file /usr/bin/",
        "COPY --chown=1:1 file more/file /etc/",
        "COPY <<EOF /etc/made\nx\nEOF",
        "COPY ball.tar /opt/",
        "COPY more /new/place",
        "COPY more /workspace/x",
        "ADD file /etc/x",
        "WORKDIR /new\nCOPY more .",
        "ONBUILD RUN rm -r /opt",
    ] {
        assert_eq!(objections(safe), [], "{safe}");
    }
}

#[test]
fn directories_are_not_copied_into_what_is_shadowed() {
    for (unsafe_, top) in [
        ("COPY more /usr/x", Some("usr")),
        ("COPY more /bin/", Some("usr")),
        ("COPY more sub", Some("opt")),
        ("COPY . /etc", Some("etc")),
        ("COPY f* /etc/", Some("etc")),
        ("COPY $NAME /etc/", Some("etc")),
        ("COPY --from=other /x /etc/x", Some("etc")),
        ("COPY more /", None),
        ("COPY more ${WHERE}", None),
        ("WORKDIR $WHERE\nCOPY more x", None),
        ("WORKDIR /usr\nWORKDIR bin\nCOPY more .", Some("usr")),
        ("ADD ball.tar /opt/", Some("opt")),
        ("ADD https://example.com/file /opt/", Some("opt")),
        ("VOLUME /opt/v", None),
    ] {
        let found = objections(unsafe_);
        let [objection] = &found[..] else { panic!("{unsafe_}: {found:?}") };
        assert_eq!(objection.consequence, Consequence::WrongImage, "{unsafe_}");
        assert_eq!(objection.unless_shadowed.as_deref(), top, "{unsafe_}");
        let line = 2 + unsafe_.lines().count();
        assert_eq!(objection.at, format!("x/run.Dockerfile:{line}"), "{unsafe_}");
    }
}

#[test]
fn scripts_that_notice_mount_points_are_told() {
    for (script, top) in [
        ("rm -rf /opt", Some("opt")),
        ("cd / && mv '/opt/' /opt2", Some("opt")),
        ("/bin/rmdir /etc", Some("etc")),
        ("find / -xdev -perm /6000 -exec chmod a-s {} +", None),
        ("ln -f /opt/a /usr/b", None),
        ("cp -al /opt/a /usr/a", None),
    ] {
        let found = objections(&format!("RUN {script}"));
        let [objection] = &found[..] else { panic!("{script}: {found:?}") };
        assert_eq!(objection.consequence, Consequence::Differs, "{script}");
        assert_eq!(objection.unless_shadowed.as_deref(), top, "{script}");
    }
    assert_eq!(objections("RUN --mount=type=cache,target=/x true").len(), 1);
    assert_eq!(objections("RUN <<EOF\nrm -rf /opt\nEOF").len(), 1);
}

#[test]
fn what_is_no_dockerfile_is_refused() {
    let (tree, shadowed) = (tree(), shadowed());
    for text in ["", "FROM", "FROM x\nNOTHING y", "FROM x\nRUN <<EOF\nnever ends"] {
        let mut judge = Judge::new(&tree, &shadowed, None);
        judge.read("x", text, context).expect_err(text);
    }
}
