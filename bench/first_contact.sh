#!/usr/bin/env bash
# First contact with an image, against pull and unpack; second read, against the unpacked tree.
# Everything runs over loopback, interleaved, and the medians' ratios are appended to results.md.
#
#   BENCH_IMAGE=oci:DIR:TAG   the image (default: one made from this machine's /usr)
#   BENCH_ROUNDS=5            rounds; the median counts
#   BENCH_DIR=target/bench    where both sides put their files: one file system for both
#   LAYOUTFS=...              the program (default: target/release/layoutfs)
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${BENCH_ROUNDS:-5}
layoutfs=${LAYOUTFS:-target/release/layoutfs}
mkdir -p "${BENCH_DIR:-target/bench}"
dir=$(mktemp -d "$(realpath "${BENCH_DIR:-target/bench}")/run.XXXXXX")
registry_pid=

die() { echo "bench: $*" >&2; exit 1; }
say() { echo "bench: $*" >&2; }

finish() {
    local mountpoint
    for mountpoint in "$dir"/*/mnt; do
        if mountpoint -q "$mountpoint"; then
            "$layoutfs" unmount "$mountpoint" >&2 || umount -l "$mountpoint"
        fi
    done
    if [ -n "$registry_pid" ]; then kill "$registry_pid" || true; fi
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

[ "$(id -u)" = 0 ] || die "needs root: drops caches, unpacks with owners"
for tool in docker-registry skopeo umoci tar; do
    command -v "$tool" >/dev/null || die "$tool is missing (make setup)"
done
[ -x "$layoutfs" ] || die "$layoutfs is missing (make build)"

# An image of three layers with the file mix of a distribution. Its content is this machine's, so
# absolute times of two machines do not compare; ratios do.
make_image() {
    local folder
    umoci init --layout "$dir/image" >&2
    umoci new --image "$dir/image:bench" >&2
    for folder in bin share lib; do
        first_files "/usr/$folder" | tar -C / --null -T - -cf "$dir/layer.tar" 2>/dev/null
        umoci raw add-layer --image "$dir/image:bench" "$dir/layer.tar" >&2
    done
    rm "$dir/layer.tar"
    echo "oci:$dir/image:bench"
}

# Files and links of a folder by name, until they make 200 MB: relative to /, NUL between.
first_files() {
    find "$1" -xdev \( -type f -printf '%s\t%p\n' -o -type l -printf '0\t%p\n' \) |
        LC_ALL=C sort -t $'\t' -k 2 |
        awk -F '\t' '(total += $1) <= 200e6 { printf "%s%c", substr($2, 2), 0 }'
}

# A registry of our own on a free port, with the image in it. Prints nothing; sets `reference`.
start_registry() {
    local port attempt
    for attempt in 1 2 3 4 5; do
        port=$((20000 + RANDOM % 20000))
        printf 'version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nhttp: {addr: "127.0.0.1:%s"}\nstorage: {filesystem: {rootdirectory: %s/registry}}\n' \
            "$port" "$dir" > "$dir/registry.yml"
        docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
        registry_pid=$!
        for _ in $(seq 50); do
            kill -0 "$registry_pid" 2>/dev/null || break
            if (: > "/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
                reference=127.0.0.1:$port/bench/image:latest
                skopeo copy -q --dest-tls-verify=false "$1" "docker://$reference"
                return
            fi
            sleep 0.1
        done
        say "attempt $attempt: port $port does not answer"
        kill "$registry_pid" 2>/dev/null || true
        registry_pid=
    done
    die "docker-registry does not start: $(tail -n 3 "$dir/registry.log")"
}

# Runs a command and prints its seconds; its output goes to the log.
seconds() {
    local start=$EPOCHREALTIME
    "$@" >>"$dir/log" 2>&1 || die "failed: $* ($(tail -n 3 "$dir/log"))"
    echo "$start $EPOCHREALTIME" | awk '{ printf "%.3f\n", $2 - $1 }'
}

# Everything below a folder, every byte once. (GNU tar does not read when it writes to /dev/null.)
read_all() { tar -C "$1" -cf - . | cat >/dev/null; }

# One line for names, types, modes, owners, times, link targets and content of a tree.
fingerprint() {
    (cd "$1" &&
        { find . -printf '%p %y %m %U %G %l\n'; find . ! -type d -printf '%p %Ts %n\n'; } | LC_ALL=C sort &&
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum) | sha256sum
}

drop_caches() {
    sync
    echo 3 > /proc/sys/vm/drop_caches
}

# Ours: nothing here -> sparse layout -> mount -> every byte.
ours_first() {
    "$layoutfs" sparse "$reference" --to "$1/sparse" --cache-dir "$1/cache"
    ours_mount "$1"
    read_all "$1/mnt"
}
ours_mount() { "$layoutfs" mount "oci:$1/sparse" "$1/mnt" --cache-dir "$1/cache"; }
ours_offline() {
    "$layoutfs" mount "oci:$1/sparse" "$1/mnt" --cache-dir "$1/cache" --offline
    read_all "$1/mnt"
}
ours_list() {
    ours_mount "$1"
    ls -l "$1/mnt"
}
ours_unmount() { "$layoutfs" unmount "$1/mnt" >>"$dir/log" 2>&1; }

# Theirs: nothing here -> layout -> unpacked tree -> every byte.
theirs_first() {
    skopeo copy -q --src-tls-verify=false "docker://$reference" "oci:$1/layout:bench"
    umoci unpack --image "$1/layout:bench" "$1/bundle"
    read_all "$1/bundle/rootfs"
}

# One measurement: `row name seconds`.
record() { echo "$2" >> "$dir/$1.times"; }

# What each side makes stays until the end: ext4 takes long to reuse inodes that were just freed,
# and the next round would pay for the deletion.
round() {
    local ours=$dir/ours$1 theirs=$dir/theirs$1 side
    mkdir -p "$ours/mnt" "$theirs"
    local sides=(ours theirs)
    if [ $(($1 % 2)) = 0 ]; then sides=(theirs ours); fi
    for side in "${sides[@]}"; do
        drop_caches
        record "first_$side" "$(seconds "${side}_first" "${!side}")"
    done
    # The second side's dropping of caches took those of the first: both are warmed again.
    read_all "$ours/mnt"
    read_all "$theirs/bundle/rootfs"
    for side in "${sides[@]}"; do
        local tree=$ours/mnt
        if [ "$side" = theirs ]; then tree=$theirs/bundle/rootfs; fi
        record "second_$side" "$(seconds read_all "$tree")"
    done
    if [ "$1" = 1 ]; then
        [ "$(fingerprint "$ours/mnt")" = "$(fingerprint "$theirs/bundle/rootfs")" ] ||
            die "the two trees differ: nothing to compare"
    fi
    ours_unmount "$ours"
    for side in "${sides[@]}"; do
        drop_caches
        if [ "$side" = ours ]; then
            record again_ours "$(seconds ours_offline "$ours")"
        else
            record again_theirs "$(seconds read_all "$theirs/bundle/rootfs")"
        fi
    done
    ours_unmount "$ours"
    record list_ours "$(seconds ours_list "$ours")"
    ours_unmount "$ours"
}

median() { sort -n "$dir/$1.times" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
spread() { sort -n "$dir/$1.times" | awk 'NR == 1 { low = $1 } { high = $1 } END { print low ".." high }'; }

row() {
    local ours theirs
    ours=$(median "$1_ours")
    theirs=$(median "$1_theirs")
    ratio=$(echo "$ours $theirs" | awk '{ printf "%.2f", $1 / $2 }')
    printf '%-44s %7s s [%s]  %7s s [%s]  %s x\n' "$2" "$ours" "$(spread "$1_ours")" \
        "$theirs" "$(spread "$1_theirs")" "$ratio"
}

image=${BENCH_IMAGE:-$(make_image)}
start_registry "$image"
size_mb=$(du -sm "$dir/registry/docker/registry/v2/blobs" | cut -f 1)
say "image of $size_mb MB compressed; $rounds rounds in $dir ($(stat -f -c %T "$dir"))"
for n in $(seq "$rounds"); do
    say "round $n"
    round "$n"
done

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
cells=
printf '%-44s %s\n' '' 'layoutfs  |  skopeo copy + umoci unpack, native  |  ratio'
row first 'first contact, cold, every byte once'
cells+=" $ratio |"
row second 'second read, warm'
cells+=" $ratio |"
row again 'remount, caches dropped, offline, every byte'
cells+=" $ratio |"
list_ms=$(median list_ours | awk '{ print $1 * 1000 }')
echo "mount of a known image until ls -l answers: $list_ms ms"
commit=$(git describe --always --dirty 2>/dev/null || echo unknown)
line="| $(date +%F) | $commit | $(nproc) x ${cpu:-unknown}, Linux $(uname -r | cut -d - -f 1) | $size_mb MB |$cells $list_ms ms |"
bench/row.sh 'First contact' "$line"
echo "$line"
