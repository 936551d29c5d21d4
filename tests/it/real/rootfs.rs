//! The rootfs view is what other tools unpack.

use super::debian::Debian;
use crate::support::listing::Listing;

/// Where umoci 0.4.7 gives a directory the time of unpacking, and what the time must be.
struct Deviation {
    path: &'static str,
    mtime: (i64, i64),
    /// What umoci does.
    umoci: &'static str,
    /// The sentence of image-spec `layer.md` that says otherwise, or ours where it is silent.
    law: &'static str,
}

const DEVIATIONS: [Deviation; 4] = [
    Deviation {
        path: "opt/odd/late/sub",
        mtime: (1_600_000_000, 123_456_802),
        umoci: "an opaque whiteout after the entries of its directory removes lower children of \
                a new subdirectory, whose time is not restored",
        law: "If the entry and the existing path are both directories, then the existing path's \
              attributes MUST be replaced by those of the entry in the changeset.",
    },
    Deviation {
        path: "srv",
        mtime: (1_600_000_000, 500_000_000),
        umoci: "making a missing parent below it changes its time",
        law: "A tar archive is then created which contains only this changeset: [...] Added and \
              modified files and directories in their entirety. (It has no entry for srv.)",
    },
    Deviation {
        path: "srv/made",
        mtime: (0, 0),
        umoci: "a missing parent has the time of unpacking",
        law: "layer.md is silent; a missing parent is 0755, root:root, the epoch",
    },
    Deviation {
        path: "srv/made/by-reader",
        mtime: (0, 0),
        umoci: "a missing parent has the time of unpacking",
        law: "layer.md is silent; a missing parent is 0755, root:root, the epoch",
    },
];

/// What umoci unpacked, set right.
fn expected(debian: &Debian) -> Listing {
    let mut listing = Listing::of(&debian.umoci_rootfs());
    for Deviation { path, mtime, umoci, law } in DEVIATIONS {
        let facts = listing.0.get_mut(path.as_bytes()).unwrap_or_else(|| panic!("no {path}"));
        let found = (facts.mtime, facts.mtime_ns);
        assert_ne!(found, mtime, "umoci no longer differs at {path} ({umoci}; law: {law})");
        (facts.mtime, facts.mtime_ns) = mtime;
    }
    listing
}

#[test]
fn the_fixture_holds_what_it_is_for() {
    let debian = Debian::shared();
    let listing = expected(&debian);
    let get = |path: &str| listing.get(path).unwrap_or_else(|| panic!("no {path}"));
    let kinds: std::collections::BTreeSet<char> = listing.0.values().map(|f| f.kind).collect();
    assert_eq!(String::from_iter(kinds), "-bcdlp");
    assert!(get("usr/bin/capable-env").xattrs.contains_key(&b"security.capability"[..]));
    assert_eq!(get("etc/noted").xattrs[&b"user.note"[..]], b"one\ntwo");
    assert_eq!(get("opt/odd/link-to-hard").links, 4);
    assert_eq!(get("opt/odd/far-device").device, (259, 300_000));
    assert_eq!(get("opt/odd/uid-base256").uid, 3_000_001);
    assert_eq!(get("opt/odd/hard-soft").links, 1, "its other name was whited out");
    assert_eq!(get("opt/odd/sparse-gnu").content, get("opt/odd/sparse-1.0").content);
    assert!(listing.0.keys().any(|path| path.len() > 255 && path.ends_with(b"far-link")));
    assert!(listing.0.contains_key(&b"opt/odd/latin-\xe9\xff"[..]));
    assert!(listing.get("opt/odd/opaque/old").is_none() && listing.get("media").is_none());
    let layers = debian.manifest("v1")["layers"].as_array().unwrap().clone();
    let bytes: u64 = layers.iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
    assert!(bytes >= 100_000_000 && layers.len() >= 5, "{bytes} bytes, {} layers", layers.len());
    assert!(layers.iter().any(|layer| layer["mediaType"].as_str().unwrap().ends_with("+zstd")));
}

#[test]
fn rootfs_of_a_sparse_layout_is_what_umoci_unpacks() {
    let debian = Debian::shared();
    expected(&debian).assert_same(debian.v1_listing());
}

#[test]
fn docker_media_types_give_the_same_tree() {
    let debian = Debian::shared();
    debian.v1_listing().assert_same(&Listing::of(debian.rootfs("docker").path()));
}

#[test]
fn the_forms_of_tar_entries_do_not_show() {
    let debian = Debian::shared();
    debian.v1_listing().assert_same(&Listing::of(debian.rootfs("plain").path()));
}
