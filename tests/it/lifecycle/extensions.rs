//! More than one extension, more than one run, and what a `RUN` finds around it.

use std::os::unix::fs::MetadataExt as _;

use super::application::Image;
use super::build::{Build, RUN_IMAGE, read};
use crate::support::mount::LIMIT;

const HEAD: &str = "ARG base_image\nFROM ${base_image}\n";

fn prepared(extensions: &[(&str, &str)]) -> Build {
    let build = Build::new("0.13");
    let digest = build.sparse(&build.debian.reference("stack"), RUN_IMAGE);
    let with_head = extensions.iter().map(|(id, body)| (*id, format!("{HEAD}{body}")));
    let texts: Vec<(&str, String)> = with_head.collect();
    let texts: Vec<(&str, &str)> = texts.iter().map(|(id, text)| (*id, &**text)).collect();
    build.write_phases_for(&digest, &texts);
    build
}

#[test]
fn extensions_build_on_each_other() {
    for mode in ["shadow", "plain"] {
        let build = prepared(&[
            (
                "ex/first",
                "USER root\nENV FIRST=1\nRUN echo first >/extended.txt && echo x >/opt/gone\n",
            ),
            ("ex/second", "RUN echo $FIRST second >>/extended.txt && rm /opt/gone\nUSER cnb\n"),
        ]);
        build.extend(mode);
        let base = Image::read(&build.run_image());
        let extended = build.extended();
        assert!(extended.environment().contains(&"FIRST=1"));
        assert_eq!(extended.config["config"]["User"], "cnb");
        assert_eq!(extended.label("io.buildpacks.rebasable"), Some("true"), "the base's own");
        let history = extended.history();
        let new = &history[base.history().len()..];
        assert!(new.iter().all(|by| by.contains("Created by extension: ex/")), "{history:#?}");
        let exported = build.export();
        assert_eq!(exported.layers()[..base.layers().len()], base.layers());
        let application = build.finalize();
        assert_eq!(application.config["config"]["User"], "cnb");
        let mount = build.room.mount(build.application().to_str().unwrap(), &[]);
        assert_eq!(read(&mount.path().join("extended.txt")), "first\n1 second\n");
        assert!(!mount.path().join("opt/gone").exists());
    }
}

#[test]
fn commands_run_as_the_user_of_the_image() {
    for mode in ["shadow", "plain"] {
        let build =
            prepared(&[("ex/ext", "RUN id -un >/home/cnb/who && echo $HOME >>/home/cnb/who\n")]);
        build.extend(mode);
        let mount = build.mount_extended();
        let who = mount.path().join("home/cnb/who");
        assert_eq!(read(&who), "cnb\n/home/cnb\n", "{mode}");
        let owner = std::fs::metadata(&who).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (1000, 1000), "{mode}");
    }
}

#[test]
fn what_shadow_mode_leaves_does_not_mislead_a_later_plain_run() {
    let dockerfile = "USER root\nRUN echo once >>/srv/count && echo x >/etc/new\nUSER cnb\n";
    let build = prepared(&[("ex/ext", dockerfile)]);
    for mode in ["shadow", "plain", "plain", "shadow"] {
        build.extend(mode);
        let mount = build.mount_extended();
        assert_eq!(read(&mount.path().join("srv/count")), "once\n", "{mode}");
        assert_eq!(read(&mount.path().join("etc/new")), "x\n", "{mode}");
    }
}

#[test]
fn credentials_do_not_reach_what_runs() {
    let build = prepared(&[("ex/ext", "USER root\nRUN env >/env.txt\nUSER cnb\n")]);
    let mut command = build.extend_command(&[]);
    command.env("CNB_REGISTRY_AUTH", r#"{"registry.example": "Basic c2VjcmV0OnNlY3JldA=="}"#);
    command.env("AWS_SECRET_ACCESS_KEY", "c2VjcmV0");
    crate::support::mount::run(&mut command, LIMIT).success();
    let mount = build.mount_extended();
    let environment = read(&mount.path().join("env.txt"));
    assert!(environment.contains("FIXTURE=debian"), "{environment}");
    assert!(!environment.contains("c2VjcmV0"), "{environment}");
}
