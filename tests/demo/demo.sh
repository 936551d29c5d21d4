#!/usr/bin/env bash
# What layoutfs does, shown with a registry of its own on loopback: a sparse layout, both views,
# and how few bytes moved, counted by the registry. Leaves nothing behind but the build.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo build --release --locked --bin layoutfs --example demo-registry
dir=$(mktemp -d "${TMPDIR:-/tmp}/layoutfs-demo.XXXXXX")
mkdir "$dir/rootfs" "$dir/layout"
registry_pid=

# A cache of its own, so that the demo begins with nothing.
layoutfs() { target/release/layoutfs "$@" --cache-dir "$dir/cache"; }

finish() {
    local status=$? mountpoint
    for mountpoint in "$dir/rootfs" "$dir/layout"; do
        if mountpoint -q "$mountpoint"; then
            layoutfs unmount "$mountpoint" --lazy || fusermount3 -uz "$mountpoint" || true
        fi
    done
    if [ -n "$registry_pid" ]; then
        kill "$registry_pid" 2>/dev/null || true
        wait "$registry_pid" 2>/dev/null || true
    fi
    if [ "$status" != 0 ]; then
        echo "demo: failed (exit $status); the registry said:" >&2
        tail -n 5 "$dir/registry.log" >&2 || true
    fi
    rm -rf "$dir"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
# Shows a command as one would type it, and runs it.
run() {
    local shown="$*"
    printf '$ %s\n' "${shown//"$dir/"/}"
    "$@"
}
die() { echo "demo: $*" >&2; exit 1; }
# What moved since the last time that this was asked, as the registry and the disk tell it.
told=0
moved() {
    local requests
    requests=$(wc -l < "$dir/requests")
    echo "-> $((requests - told)) requests to the registry; $(du -sk "$dir/cache" | cut -f 1) KiB in the cache"
    told=$requests
}

title '1. A registry with an image in it, on loopback'
target/release/examples/demo-registry --port-file "$dir/port" --with-sample --log \
    >"$dir/requests" 2>"$dir/registry.log" &
registry_pid=$!
for _ in $(seq 100); do
    [ -s "$dir/port" ] && break
    kill -0 "$registry_pid" 2>/dev/null || die 'the registry does not start'
    sleep 0.1
done
[ -s "$dir/port" ] || die 'the registry does not answer'
reference=127.0.0.1:$(cat "$dir/port")/demo/app:latest
cat "$dir/registry.log"

title '2. A sparse layout of it: the manifest, the configuration, no layer'
run layoutfs sparse "$reference" --to "$dir/image"
run du -ab "$dir/image"
moved

title '3. The layout view: the complete layout, of which nothing is here yet'
run layoutfs mount "oci:$dir/image" "$dir/layout" --view layout
run ls -l "$dir/layout/blobs/sha256"
moved
layer=$(find "$dir/layout/blobs" -type f -size +64k -printf '%s %f\n' | sort -n | sed -n '1s/.* //p')
echo "A blob's name is its sha256. Reading one layer fetches that layer, and no other:"
run sha256sum "$dir/layout/blobs/sha256/$layer"
[ "$(sha256sum < "$dir/layout/blobs/sha256/$layer")" = "$layer  -" ] || die 'wrong bytes'
moved

title '4. The root filesystem: the first contact reads each layer once, and what is here not again'
run layoutfs mount "oci:$dir/image" "$dir/rootfs"
run ls -l "$dir/rootfs"
moved
run cat "$dir/rootfs/etc/os-release"
run layoutfs inspect "oci:$dir/image" /etc/os-release
run layoutfs status "$dir/rootfs"

title '5. skopeo takes a complete, ordinary layout out of the view'
run skopeo copy --quiet "oci:$dir/layout" "oci:$dir/complete"
run layoutfs verify "oci:$dir/complete" --deep
moved

title '6. Again, without the registry: what was proved once is still here'
run layoutfs unmount "$dir/rootfs"
run layoutfs unmount "$dir/layout"
kill "$registry_pid"
wait "$registry_pid" 2>/dev/null || true
registry_pid=
run layoutfs mount "oci:$dir/image" "$dir/rootfs" --offline
run cat "$dir/rootfs/etc/os-release"
run layoutfs unmount "$dir/rootfs"

title 'Done'
echo "The sparse layout is $(du -sk "$dir/image" | cut -f 1) KiB, the complete one $(du -sk "$dir/complete" | cut -f 1) KiB."
echo "layoutfs is in $PWD/target/release/; README.md has a tour with an image of yours."
