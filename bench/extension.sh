#!/usr/bin/env bash
# A run image extended by the lifecycle's own extender: `layoutfs extend` against pull, unpack and the
# same extender on an overlay over the unpacked tree. Everything runs over loopback, interleaved;
# medians, ratios and counted bytes are appended to results.md.
#
#   BENCH_ROUNDS=5            rounds; the median counts
#   BENCH_DIR=target/bench    where both sides put their files: one file system for both
#   BENCH_FIXTURES=target/fixtures   where the tests' image and the lifecycle are, or are made
#   BENCH_RECORD=yes          no: the lines are printed, results.md is left alone
#   LAYOUTFS=...              the program (default: target/release/layoutfs)
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${BENCH_ROUNDS:-5}
layoutfs=$(realpath "${LAYOUTFS:-target/release/layoutfs}")
fixtures=${BENCH_FIXTURES:-target/fixtures}
mkdir -p "${BENCH_DIR:-target/bench}"
dir=$(mktemp -d "$(realpath "${BENCH_DIR:-target/bench}")/run.XXXXXX")
registry_pid= server_pid= address=
kinds=(trivial apt)
sides=(shadow_indexed shadow_first plain_indexed plain_first theirs)

die() { echo "bench: $*" >&2; exit 1; }
say() { echo "bench: $*" >&2; }

finish() {
    local mountpoint
    for mountpoint in "$dir"/*/merged; do
        if mountpoint -q "$mountpoint"; then umount -l "$mountpoint"; fi
    done
    if [ -n "$registry_pid" ]; then kill "$registry_pid" || true; fi
    if [ -n "$server_pid" ]; then kill "$server_pid" || true; fi
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 130' INT TERM

[ "$(id -u)" = 0 ] || die "needs root: drops caches, mounts, runs containers"
for tool in docker-registry skopeo umoci runc python3 dpkg-deb; do
    command -v "$tool" >/dev/null || die "$tool is missing (make setup)"
done
[ -x "$layoutfs" ] || die "$layoutfs is missing (make build)"

# Waits until a server has said in its log, by a sed expression, where it listens; sets `address`.
wait_for() {
    local _
    for _ in $(seq 100); do
        address=$(sed -n "$2" "$1" | head -n 1)
        [ -z "$address" ] || return 0
        sleep 0.1
    done
    die "a server does not start: $(tail -n 3 "$1")"
}

# The tests' images, by Debian's registry, on a free port. Sets `registry`.
start_registry() {
    cat >"$dir/registry.yml" <<-YML
	version: 0.1
	log: {accesslog: {disabled: true}}
	storage:
	  filesystem: {rootdirectory: $1/registry}
	  maintenance: {readonly: {enabled: true}}
	http: {addr: 127.0.0.1:0}
	YML
    docker-registry serve "$dir/registry.yml" >"$dir/registry.log" 2>&1 &
    registry_pid=$!
    wait_for "$dir/registry.log" 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p'
    registry=$address/debian/run
}

# Two packages in a repository for apt, served on a free port. Sets `packages`.
start_packages() {
    local name deb root=$dir/packages
    for name in greeting greeting-text; do
        mkdir -p "$root/$name/DEBIAN" "$root/$name/usr/share/$name"
        echo hello >"$root/$name/usr/share/$name/text"
        {
            printf 'Package: %s\nVersion: 1.0\nArchitecture: all\n' "$name"
            [ "$name" = greeting-text ] || echo 'Depends: greeting-text'
            printf 'Maintainer: layoutfs <layoutfs@example.org>\nDescription: to be installed\n'
        } >"$root/$name/DEBIAN/control"
        echo 'activate-noawait ldconfig' >"$root/$name/DEBIAN/triggers"
        deb=$root/$name.deb
        dpkg-deb --root-owner-group -Zgzip -b "$root/$name" "$deb" >>"$dir/log"
        {
            dpkg-deb -f "$deb"
            printf 'Filename: ./%s.deb\nSize: %s\nSHA256: %s\n\n' "$name" "$(stat -c %s "$deb")" \
                "$(sha256sum "$deb" | cut -d ' ' -f 1)"
        } >>"$root/Packages"
    done
    python3 -u -m http.server --bind 127.0.0.1 --directory "$root" 0 >"$dir/server.log" 2>/dev/null &
    server_pid=$!
    wait_for "$dir/server.log" 's,.*(http://\([0-9.:]*\)/).*,\1,p'
    packages=$address
}

dockerfile() {
    printf 'ARG base_image\nFROM ${base_image}\nUSER root\n'
    case $1 in
    trivial) echo 'RUN echo extended >/extended.txt' ;;
    apt) echo "RUN echo 'deb [trusted=yes] http://$packages ./' >/etc/apt/sources.list &&" \
        "apt-get update && apt-get install -y --no-install-recommends greeting" ;;
    esac
    printf 'ARG user_id\nUSER ${user_id}\n'
}

# What the phases before the extender would have left in "$1", for the kind "$2".
write_phases() {
    mkdir -p "$1/layers/generated/ex_ext" "$1/app" "$1/tmp" "$1/kaniko"
    cat >"$1/layers/analyzed.toml" <<-TOML
	[run-image]
	reference = "/layout-repo/reg.example/cnb/run/base@$digest"
	image = "/layout-repo/reg.example/cnb/run/base"
	extend = true
	TOML
    printf '[[group]]\nid = "ex/bp"\nversion = "1"\napi = "0.10"\n[[group-extensions]]\nid = "ex/ext"\nversion = "1"\napi = "0.10"\n' \
        >"$1/layers/group.toml"
    dockerfile "$2" >"$1/layers/generated/ex_ext/run.Dockerfile"
}

# Ours, in "$1", from the cache "$2", in the mode "$3": the sparse layout, and what is made of it.
ours() {
    "$layoutfs" sparse "$registry:$tag" --layout-dir "$1/layout-repo" --as reg.example/cnb/run:base \
        --cache-dir "$2"
    TMPDIR=$1/tmp "$layoutfs" extend --layers "$1/layers" --layout-dir "$1/layout-repo" \
        --app "$1/app" --lifecycle "$lifecycle" --mode "$3" --cache-dir "$2" --json >"$1/told.json"
}

# Theirs: nothing here -> layout -> unpacked tree -> overlay -> the same extender, by runc.
theirs() {
    skopeo copy -q --src-tls-verify=false "docker://$registry:$tag" "oci:$1/layout:bench"
    umoci unpack --image "$1/layout:bench" "$1/unpacked"
    mkdir "$1/upper" "$1/work" "$1/merged" "$1/bundle"
    mount -t overlay overlay -o \
        "lowerdir=$1/unpacked/rootfs,upperdir=$1/upper,workdir=$1/work,index=off,redirect_dir=off,metacopy=off,xino=off" \
        "$1/merged"
    python3 - "$1" "$lifecycle" >"$1/bundle/config.json" <<-'PY'
	import json, sys
	own, lifecycle = sys.argv[1:]
	names = """CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP
	    NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE""".split()
	names = ["CAP_" + name for name in names]
	def bind(source, at):
	    return {"destination": at, "type": "bind", "source": source, "options": ["rbind", "rw"]}
	print(json.dumps({
	    "ociVersion": "1.0.2", "root": {"path": own + "/merged"},
	    "process": {
	        "user": {"uid": 0, "gid": 0}, "cwd": "/",
	        "args": ["/cnb/lifecycle/extender", "-kind", "run", "-app", "/workspace", "-layers", "/layers"],
	        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "KANIKO_DIR=/kaniko",
	                "CNB_PLATFORM_API=0.13", "CNB_EXPERIMENTAL_MODE=warn", "CNB_USER_ID=1000", "CNB_GROUP_ID=1000"],
	        "capabilities": {"bounding": names, "effective": names, "permitted": names},
	    },
	    "mounts": [
	        {"destination": "/proc", "type": "proc", "source": "proc"},
	        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
	         "options": ["nosuid", "strictatime", "mode=755"]},
	        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
	         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
	        bind("/sys", "/sys"), bind("/etc/resolv.conf", "/etc/resolv.conf"),
	        bind(lifecycle, "/cnb/lifecycle"), bind(own + "/layers", "/layers"),
	        bind(own + "/app", "/workspace"), bind(own + "/kaniko", "/kaniko"),
	    ],
	    "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
	}))
	PY
    runc --root "$1/state" run --bundle "$1/bundle" "layoutfs-bench-$$" </dev/null
    umount "$1/merged"
}

drop_caches() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
}

# Runs a command and prints its seconds; its output goes to the log.
seconds() {
    local start=$EPOCHREALTIME
    "$@" >>"$dir/log" 2>&1 || die "failed: $* ($(tail -n 3 "$dir/log"))"
    echo "$start $EPOCHREALTIME" | awk '{ printf "%.3f\n", $2 - $1 }'
}

# There is one extended image, and its new layers hold what the kind "$2" has made.
check() {
    local extended=("$1"/layers/extended/run/*) blob made
    [ ${#extended[@]} = 1 ] && [ -f "${extended[0]}/index.json" ] || die "$1: no extended image"
    case $2 in trivial) made=extended.txt ;; apt) made=usr/share/greeting/text ;; esac
    for blob in "${extended[0]}"/blobs/sha256/*; do
        ! tar -tzf "$blob" 2>/dev/null | sed 's,^/,,' | grep -qx "$made" || return 0
    done
    die "$1: no $made in the extended image"
}

# One measurement of the side "$2" for the kind "$3" in round "$1".
measure() {
    local own=$dir/$1-$2-$3 cache=$dir/$1-$2-$3/cache mode=shadow taken
    write_phases "$own" "$3"
    case $2 in plain_*) mode=plain ;; esac
    case $2 in
    *_indexed)
        cache=$dir/indexed
        "$layoutfs" cache prune --cache-dir "$cache" >>"$dir/log" 2>&1
        ;;
    theirs)
        # What restorer and analyzer leave, as small as it can be; not in the time.
        "$layoutfs" sparse "$registry:$tag" --to "$own/sparse" --kaniko "$own/kaniko" \
            --cache-dir "$dir/indexed" >>"$dir/log" 2>&1
        mkdir "$own/layers/extended"
        ;;
    esac
    drop_caches
    case $2 in
    theirs) taken=$(seconds theirs "$own") ;;
    *) taken=$(seconds ours "$own" "$cache" "$mode") ;;
    esac
    echo "$taken" >>"$dir/$3-$2.times"
    check "$own" "$3"
    case $2 in
    theirs) ;;
    *) python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["bytes_fetched"])' \
        "$own/told.json" >>"$dir/$3-$2.bytes" ;;
    esac
    # What was unpacked stays until the end (ext4 takes long to reuse inodes that were just freed);
    # space is short, so what is only large goes.
    rm -rf "$own/layout" "$own/cache"
}

# A known image, with its indexes alone in the cache.
index() {
    mkdir -p "$dir/known/mnt"
    "$layoutfs" sparse "$registry:$tag" --to "$dir/known/$tag" --cache-dir "$dir/indexed"
    "$layoutfs" mount "oci:$dir/known/$tag" "$dir/known/mnt" --cache-dir "$dir/indexed"
    "$layoutfs" unmount "$dir/known/mnt"
}

median() { sort -n "$dir/$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
spread() { sort -n "$dir/$1" | awk 'NR == 1 { low = $1 } { high = $1 } END { print low ".." high }'; }
percent() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.1f %%", 100 * a / b }'; }

layer_bytes() {
    skopeo inspect --raw --tls-verify=false "docker://$registry:$1" |
        python3 -c 'import json, sys; print(sum(l["size"] for l in json.load(sys.stdin)["layers"]))'
}

fixture=$(tests/fixtures/debian-image.sh "$fixtures")
lifecycle=$(realpath "$(tests/lifecycle/build.sh "$fixtures")")
extender=$(cut -d : -f 1 "$lifecycle/KIND")
export CNB_PLATFORM_API=0.13 CNB_EXPERIMENTAL_MODE=warn CNB_LAYOUT_DIR=/layout-repo
export CNB_USER_ID=1000 CNB_GROUP_ID=1000
unset http_proxy HTTP_PROXY
start_registry "$fixture"
start_packages

# The image in forms that umoci reads; each layer but the last is one gzip member.
tag=plain
digest=$(skopeo inspect --format '{{.Digest}}' --tls-verify=false "docker://$registry:$tag")
total=$(layer_bytes "$tag")
index >>"$dir/log" 2>&1
say "$((total / 1000000)) MB compressed, $extender extender; $rounds rounds in $dir ($(stat -f -c %T "$dir"))"
for n in $(seq "$rounds"); do
    for kind in "${kinds[@]}"; do
        order=("${sides[@]}")
        if [ $((n % 2)) = 0 ]; then order=(theirs plain_first plain_indexed shadow_first shadow_indexed); fi
        for side in "${order[@]}"; do
            measure "$n" "$side" "$kind"
        done
        say "round $n, $kind: $(for side in "${sides[@]}"; do tail -qn 1 "$dir/$kind-$side.times"; done | tr '\n' ' ')"
    done
done

# How much less it is where layers can be read in parts: counted once, and not compared in time.
tag=members
digest=$(skopeo inspect --format '{{.Digest}}' --tls-verify=false "docker://$registry:$tag")
members_total=$(layer_bytes "$tag")
index >>"$dir/log" 2>&1
for kind in "${kinds[@]}"; do
    measure 1 members_indexed "$kind"
done

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
# The groups before this one have added their lines to the results.
git diff --quiet HEAD -- ':/' ':(top,exclude)bench/results.md' ':(top,exclude)bench/*.svg' 2>/dev/null || commit+=-dirty
load=$(cut -d ' ' -f 2 /proc/loadavg)
for kind in "${kinds[@]}"; do
    theirs=$(median "$kind-theirs.times")
    cells=
    for side in shadow_indexed shadow_first plain_indexed plain_first; do
        ours=$(median "$kind-$side.times")
        ratio=$(awk -v a="$ours" -v b="$theirs" 'BEGIN { printf "%.2f", a / b }')
        printf '%-8s %-16s %7s s [%s]  %7s s [%s]  %s x  %s bytes\n' "$kind" "$side" "$ours" \
            "$(spread "$kind-$side.times")" "$theirs" "$(spread "$kind-theirs.times")" "$ratio" \
            "$(median "$kind-$side.bytes")"
        cells+=" $ratio |"
    done
    shadow=$(percent "$(median "$kind-shadow_indexed.bytes")" "$total")
    plain=$(percent "$(median "$kind-plain_indexed.bytes")" "$total")
    members=$(percent "$(cat "$dir/$kind-members_indexed.bytes")" "$members_total")
    line="| $(date +%F) | $commit | $(nproc) x ${cpu:-unknown}, load $load | $((total / 1000000)) MB, $extender | $kind |$cells $shadow | $members | $plain |"
    [ "${BENCH_RECORD:-yes}" = no ] || bench/row.sh Extension "$line"
    echo "$line"
done
