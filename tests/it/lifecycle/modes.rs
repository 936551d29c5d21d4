//! What an extension may do to files, once each: the layer that we make of the upper directory says
//! the same as the layers that kaniko makes by comparing everything.

use std::time::SystemTime;

use super::build::{Build, RUN_IMAGE, read};
use crate::support::listing::{Facts, Listing};

/// More than this test may take, less than until the times that the fixture has in the future.
const LIMIT_SECONDS: i64 = 3600;

const DOCKERFILE: &str = r#"ARG base_image
FROM ${base_image}
USER root
RUN echo new >/at-the-root && mkdir -p /made/deep && echo x >/made/deep/file && rm /top-file
RUN chmod 600 /opt/odd/setuid && chown 5:60 /opt/odd/noted && chmod 711 /home/cnb
RUN mv /opt/odd/kept /opt/odd/moved && mv /opt/odd/real /srv/real
RUN rm -r /opt/odd/late && echo file >/opt/odd/late
RUN rm /opt/odd/file-to-link && mkdir /opt/odd/file-to-link && echo x >/opt/odd/file-to-link/x
RUN rm /opt/odd/dotted && ln -s hard-a /opt/odd/dotted && ln /opt/odd/doubled /opt/odd/linked
RUN setcap cap_net_raw+ep /usr/bin/env && setfattr -n user.more -v value /opt/odd/empty-file
RUN cp -a /opt/odd/sparse-1.0 /opt/odd/copied && mknod /opt/odd/disk b 259 7 && mkfifo /opt/odd/pipe
RUN rm -rf /srv/made-anew && mkdir -p /srv/made-anew/inner && touch -d @1.5 /srv/made-anew/inner/x
RUN touch -d @1600000000.123456789 /etc/issue && echo more >>/etc/hostname && touch /opt/odd/absolute
RUN rm /opt/odd/hard-b && echo changed >/opt/odd/hard-a && echo "back" >/opt/odd/gone/file
RUN rm -r /srv/made-anew && mkdir /srv/made-anew && chown 7:8 /srv/made-anew && chmod 1777 /mnt
RUN echo 1 >/tmp/left && echo 2 >/run/left && echo 3 >/var/tmp/left && mkdir -p /var/lib/x/y
RUN useradd --create-home --uid 1234 someone && su someone -c 'echo mine >/home/someone/file'
COPY file /usr/share/copied
COPY --chown=5:60 file /new/place/
WORKDIR /work/here
RUN echo relative >file
ARG user_id
USER ${user_id}
"#;

fn extended(mode: &str) -> Listing {
    let build = Build::new("0.13");
    let digest = build.sparse(&build.debian.reference("stack"), RUN_IMAGE);
    build.write_phases(&digest, DOCKERFILE);
    build.extend(mode);
    let mount = build.mount_extended();
    assert_eq!(read(&mount.path().join("work/here/file")), "relative\n");
    Listing::of(mount.path())
}

/// What kaniko's layers cannot say and ours can; explained one by one.
fn as_kaniko_tells_it(mut listing: Listing) -> Listing {
    let mut facts = |path: &str, change: fn(&mut Facts)| {
        change(listing.0.get_mut(path.as_bytes()).unwrap_or_else(|| panic!("no {path}")));
    };
    // Of a file that it puts into a layer it keeps one attribute, security.capability.
    for path in ["opt/odd/noted", "opt/odd/empty-file"] {
        facts(path, |facts| {
            assert!(!facts.xattrs.is_empty(), "nothing is lost here");
            facts.xattrs.clear();
        });
    }
    // A new name of a file that did not change itself becomes a copy.
    for path in ["opt/odd/doubled", "opt/odd/linked"] {
        facts(path, |facts| {
            assert_eq!(facts.links, 2);
            (facts.links, facts.same_as) = (1, None);
        });
    }
    listing
}

/// Without the times of what was made since `then`, which no two runs share.
fn without_times_since(then: i64, mut listing: Listing) -> Listing {
    for facts in listing.0.values_mut() {
        if (then..then + LIMIT_SECONDS).contains(&facts.mtime) {
            (facts.mtime, facts.mtime_ns) = (0, 0);
        }
    }
    listing
}

#[test]
fn every_kind_of_change_is_the_same_in_both_modes() {
    let then = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let [shadow, plain] = ["shadow", "plain"]
        .map(|mode| without_times_since(i64::try_from(then).unwrap() - 1, extended(mode)));
    plain.assert_same(&as_kaniko_tells_it(shadow));
}
