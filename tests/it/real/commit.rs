//! Other tools read a committed image as we do.

use super::debian::tool;
use crate::commit::{changed, comparable, setting};
use crate::support::image::Names;
use crate::support::listing::Listing;

/// umoci gives some directories the time of unpacking.
fn without_times_of_directories(mut listing: Listing) -> Listing {
    for facts in listing.0.values_mut().filter(|facts| facts.kind == 'd') {
        (facts.mtime, facts.mtime_ns) = (0, 0);
    }
    listing
}

#[test]
fn umoci_unpacks_and_skopeo_copies_a_committed_image() {
    let setting = setting(Names::Oci);
    let expected = without_times_of_directories(changed(&setting));
    let [out, bundle, copied] = ["out", "bundle", "copied"].map(|name| setting.text(name));
    setting.commit(&["--to", &out, "--exclude", "cnb"]);
    setting.room.layoutfs(&["hydrate", &out]);
    tool("umoci", &["unpack", "--image", &format!("{out}:v1"), &bundle]).success();
    let unpacked = comparable(&setting.path("bundle/rootfs"));
    expected.assert_same(&without_times_of_directories(unpacked));
    let from = format!("oci:{out}:v1");
    tool("skopeo", &["copy", "-q", &from, &format!("dir:{copied}")]).success();
}
