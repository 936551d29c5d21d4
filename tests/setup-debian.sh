#!/bin/sh
# Installs Debian packages: `setup-debian.sh build|demo|tests`, each set within the next, and
# `extension`, for the demo's second half. Quick when everything is there, and fails when anything is
# missing afterwards, because a test that cannot run must not look like one that passed.
set -eu

# Debian keeps some of these where only root's PATH looks.
PATH=$PATH:/usr/sbin:/sbin
want=${1:-tests}
packages="gcc libc6-dev ca-certificates"
programs="cc"
case $want in build) ;; demo | extension | tests)
    packages="$packages fuse3 skopeo"
    programs="$programs fusermount3 skopeo"
esac
case $want in build | demo) ;; extension)
    packages="$packages runc busybox-static"
    programs="$programs runc busybox"
    ;;
tests)
    # A registry, TLS in front of it, the tools that layoutfs is compared with, and what builds the
    # fixture image; zlib for SOCI's snapshotter, which the benchmark builds.
    packages="$packages docker-registry umoci runc podman zstd gzip tar curl debootstrap
              debian-archive-keyring attr libcap2-bin python3 dpkg util-linux passwd uidmap
              nginx openssl procps pigz zlib1g-dev"
    programs="$programs docker-registry umoci runc podman debootstrap setfattr setcap zstd python3
              gzip tar dpkg-deb curl flock useradd newuidmap newgidmap setpriv unshare nginx openssl ps unpigz"
    ;;
*) echo "usage: setup-debian.sh build|demo|extension|tests" >&2; exit 2 ;;
esac

have_programs() {
    for program in $programs; do
        command -v "$program" >/dev/null || { missing_program=$program; return 1; }
    done
}

installed() {
    dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'
}

missing=
# For all but the tests any distribution will do that has the programs.
if [ "$want" = tests ] || ! have_programs; then
    for package in $packages; do
        installed "$package" || missing="$missing $package"
    done
fi

if [ -n "$missing" ]; then
    missing=${missing# }
    command -v apt-get >/dev/null || { echo "setup: please install: $missing" >&2; exit 1; }
    [ "$(id -u)" = 0 ] || { echo "setup: as root: apt-get install $missing" >&2; exit 1; }
    echo "setup: installing" $missing
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # docker-registry would start a daemon on port 5000 at installation; the tests start their own.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    # shellcheck disable=SC2086 # a list of words on purpose
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

have_programs || { echo "setup: no $missing_program" >&2; exit 1; }
[ "$want" != build ] || exit 0
[ -c /dev/fuse ] || modprobe fuse 2>/dev/null || true
[ -c /dev/fuse ] || {
    echo "setup: no /dev/fuse: modprobe fuse; for a container --device /dev/fuse" >&2
    exit 1
}
[ -w /dev/fuse ] || { echo "setup: as root: chmod 666 /dev/fuse" >&2; exit 1; }
case $want in extension | tests) ;; *) exit 0 ;; esac
grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || true
grep -qw overlay /proc/filesystems || { echo "setup: no overlay filesystem" >&2; exit 1; }

# An ordinary user, with ids to give to user namespaces: useradd adds them where these files are.
user=layoutfs-test
if ! id "$user" >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || { echo "setup: as root: useradd $user" >&2; exit 1; }
    touch /etc/subuid /etc/subgid
    useradd --no-create-home --shell /usr/sbin/nologin "$user"
fi
for file in /etc/subuid /etc/subgid; do
    grep -q "^$user:" "$file" || { echo "setup: $file has no range for $user" >&2; exit 1; }
done
# As most distributions have it: who cannot open it cannot mount.
case $(stat -c %a /dev/fuse) in
*[67]) ;;
*) chmod 666 /dev/fuse || { echo "setup: as root: chmod 666 /dev/fuse" >&2; exit 1; } ;;
esac
