//! The least that has to work: the real extender and the real exporter, around files that the other
//! phases would have written.

use super::application::Image;
use super::build::{Build, RUN_IMAGE, read};
use super::fixture::DOCKERFILE;

#[test]
fn extender_and_exporter_make_an_application_image() {
    let build = Build::new("0.13");
    let digest = build.sparse(&build.debian.reference("stack"), RUN_IMAGE);
    build.write_phases(&digest, DOCKERFILE);
    build.extend("auto");
    // What an earlier run left would be in the exporter's way.
    let told = build.extend("shadow");
    assert_eq!(told["mode"], "shadow");
    let extended = build.extended();
    assert_eq!(told["digest"], extended.digest);
    let base = Image::read(&build.run_image());
    let exported = build.export();
    exported.assert_exported_on(&base, &extended);
    let application = build.finalize();
    assert!(application.environment().contains(&"EXT_VAR=from-extension"), "{application:?}");
    let mount = build.room.mount(build.application().to_str().unwrap(), &[]);
    assert_eq!(read(&mount.path().join("extended.txt")), "extended\nsecond\n");
    assert_eq!(read(&mount.path().join("workspace/file")), "of the application\n");
    assert!(!mount.path().join("usr/share/doc/adduser/copyright").exists());
}
