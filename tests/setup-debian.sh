#!/bin/sh
# Installs what the real-tools tests need on Debian: a registry, the tools that layoutfs is compared
# with, and what builds the fixture image. Quick when everything is there; fails when anything is
# missing afterwards, because a test that cannot run must not look like one that passed.
set -eu

packages="docker-registry skopeo umoci runc podman fuse3 zstd gzip tar curl ca-certificates
          debootstrap debian-archive-keyring attr libcap2-bin python3 dpkg util-linux
          gcc libc6-dev"
# Debian keeps some of these where only root's PATH looks.
PATH=$PATH:/usr/sbin:/sbin

installed() {
    dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null | grep -q '^ii'
}

missing=
for package in $packages; do
    installed "$package" || missing="$missing $package"
done

if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || { echo "setup-debian: run as root to install:$missing" >&2; exit 1; }
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
    apt-get install -y -qq --no-install-recommends $missing
fi

for program in docker-registry skopeo umoci runc podman fusermount3 debootstrap setfattr setcap \
    zstd python3 gzip tar dpkg-deb curl flock; do
    command -v "$program" >/dev/null || { echo "setup-debian: no $program" >&2; exit 1; }
done
[ -c /dev/fuse ] || modprobe fuse 2>/dev/null || true
[ -c /dev/fuse ] || { echo "setup-debian: no /dev/fuse: load the fuse module" >&2; exit 1; }
grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || true
grep -qw overlay /proc/filesystems || { echo "setup-debian: no overlay filesystem" >&2; exit 1; }
