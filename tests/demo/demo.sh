#!/usr/bin/env bash
# What layoutfs does, shown with a registry of its own on loopback: a sparse layout, both views,
# and how few bytes moved, counted by the registry. Then extension.sh, where it can. Leaves nothing
# behind but the build.
set -euo pipefail
cd "$(dirname "$0")/../.."

echo 'Building; the first time takes some minutes.'
cargo build --release --locked --bin layoutfs --example demo-registry
here=$PWD
bin=$here/target/release
dir=$(mktemp -d "${TMPDIR:-/tmp}/layoutfs-demo.XXXXXX")
registry_pid=

# A cache of its own, so that the demo begins with nothing.
layoutfs() { "$bin/layoutfs" "$1" --cache-dir "$dir/cache" "${@:2}"; }

stop_registry() {
    [ -n "$registry_pid" ] || return 0
    kill "$registry_pid" 2>/dev/null || true
    wait "$registry_pid" 2>/dev/null || true
    registry_pid=
}

finish() {
    local status=$? mountpoint
    trap '' INT TERM
    cd "$here"
    for mountpoint in "$dir/rootfs" "$dir/layout"; do
        layoutfs unmount "$mountpoint" --lazy -q || fusermount3 -uz "$mountpoint" || true
    done
    stop_registry
    case $status in
    0) ;;
    130) echo 'demo: interrupted; nothing is left behind' >&2 ;;
    *)
        echo "demo: failed (exit $status); the registry said:" >&2
        tail -n 5 "$dir/registry.log" >&2 || true
        ;;
    esac
    rm -rf --one-file-system "$dir"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
# Shows a command as one would type it, and runs it.
run() {
    printf '$ %s\n' "$*"
    "$@"
}
die() { echo "demo: $*" >&2; exit 1; }
# What moved since the last time that this was asked, as the registry's log tells it: lines of
# "GET path bytes=FIRST-LAST -> status".
moved() {
    tail -n "+$((told + 1))" requests | awk -F '[ =-]+' '
        $3 == "bytes" { bytes += $5 - $4 + 1 }
        END { printf "-> %d requests to the registry, %.2f MB of blobs\n", NR, bytes / 1e6 }'
    told=$(wc -l < requests)
}

# Starts it with these options; its log begins anew. Gives its address.
start_registry() {
    rm -f port
    "$bin/examples/demo-registry" --port-file port --log "$@" >requests 2>registry.log &
    registry_pid=$!
    for _ in $(seq 300); do
        [ ! -s port ] || break
        kill -0 "$registry_pid" 2>/dev/null || die 'the registry does not start'
        sleep 0.1
    done
    [ -s port ] || die 'the registry does not answer'
    told=0
    address=127.0.0.1:$(cat port)
}

mkdir "$dir/rootfs" "$dir/layout"
cd "$dir"

title '1. A registry with an image in it, on loopback'
start_registry --with-sample
reference=$address/demo/app:latest
cat registry.log

title '2. A sparse layout of it: the manifest, the configuration, no layer'
run layoutfs sparse "$reference" --to image
run ls -s image/blobs/sha256
moved

title '3. The layout view: the complete layout, of which no layer is here yet'
run layoutfs mount oci:image layout --view layout
run ls -l layout/blobs/sha256
moved
layer=$(find layout/blobs -type f -size +64k -printf '%s %f\n' | sort -n | sed -n '1s/.* //p')
echo 'A blob is named by its sha256. Reading one layer fetches that layer, and no other:'
run sha256sum "layout/blobs/sha256/$layer"
[ "$(sha256sum < "layout/blobs/sha256/$layer")" = "$layer  -" ] || die 'wrong bytes'
moved

title '4. The root filesystem: the first contact reads each layer once, and what is here not again'
run layoutfs mount oci:image rootfs
run ls rootfs
moved
run cat rootfs/etc/os-release
run layoutfs inspect oci:image /etc/os-release
run layoutfs status rootfs

title '5. skopeo takes a complete, ordinary layout out of the view'
run skopeo copy --quiet oci:layout oci:complete
run layoutfs verify oci:complete --deep -q
run du -sh image complete
moved

title '6. Now the cache forgets every blob and keeps the indexes; a program reads 1 KB'
run layoutfs unmount layout
run layoutfs unmount rootfs
run layoutfs cache prune
run layoutfs mount oci:image rootfs
run ls -l rootfs/app
moved
echo '$ head -c 1000 rootfs/app/model.bin | wc -c'
head -c 1000 rootfs/app/model.bin | wc -c
moved
echo 'Layers of many gzip members or zstd frames are read span by span, others whole:'
run cat rootfs/etc/os-release
moved

title '7. Without the registry: what was proved once is still here'
run layoutfs unmount rootfs
stop_registry
run layoutfs mount oci:image rootfs --offline -q
run cat rootfs/etc/os-release
run layoutfs unmount rootfs

# shellcheck source=tests/demo/extension.sh
. "$here/tests/demo/extension.sh"

title 'Done'
echo "The program is $bin/layoutfs; README.md has a tour with an image of yours."
