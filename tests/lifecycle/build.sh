#!/bin/sh
# Makes the buildpacks lifecycle that the tests run, or finds it made: `build.sh CACHE` prints the
# directory, CACHE/lifecycle-built-<key> or CACHE/lifecycle-given-<key>. There:
#
#   lifecycle, launcher    static programs, version 0.21.17
#   analyzer detector restorer builder exporter extender    symlinks to lifecycle
#   KIND                   `real` or `stand-in`, then why, in one line
#
# LIFECYCLE_DIR, when set, names a directory with lifecycle and launcher: those two are used. Else
# they are built, which takes Go >= 1.26.6 ($GO, `go` on PATH, /usr/local/go/bin/go) and, the first
# time, a Go module proxy and two minutes.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
version=0.21.17
go_minimum=1.26.6
module=github.com/buildpacks/lifecycle

say() { echo "lifecycle: $*" >&2; }
fail() { say "$*"; exit 1; }

[ $# = 1 ] || { echo "usage: build.sh CACHE" >&2; exit 2; }
mkdir -p "$1"
cache=$(cd "$1" && pwd)

# Whether the program has kaniko in it. Nobody is believed about that but the program itself.
has_kaniko() { grep -a -q 'osscontainertools/kaniko/pkg/executor\.DoBuild' "$1"; }

# Fails unless "$1" holds both programs, of the right version.
check_programs() {
    for program in lifecycle launcher; do
        [ -f "$1/$program" ] && [ -x "$1/$program" ] ||
            fail "$1/$program is not there, or cannot be executed"
    done
    found=$("$1/lifecycle" -version 2>&1) || fail "$1/lifecycle -version failed: $found"
    [ "${found%%+*}" = "$version" ] ||
        fail "$1/lifecycle is version $found, the tests are written for $version"
}

# Symlinks and KIND, for the programs in "$1"; "$2" says where they are from.
finish() {
    for phase in analyzer detector restorer builder exporter extender; do
        ln -s lifecycle "$1/$phase"
    done
    if has_kaniko "$1/lifecycle"; then kind=real; else kind=stand-in; fi
    echo "$kind $2" >"$1/KIND"
}

# $1 >= $2, both dotted numbers.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

find_go() {
    how="install Go $go_minimum or later (https://go.dev/dl), set GO to its go program, or set"
    how="$how LIFECYCLE_DIR to a directory with lifecycle and launcher $version"
    if [ -n "${GO:-}" ]; then
        go=$(command -v "$GO") || fail "GO=$GO is no program"
    elif go=$(command -v go); then :
    elif [ -x /usr/local/go/bin/go ]; then
        go=/usr/local/go/bin/go
    else
        fail "no Go, neither \$GO, nor on PATH, nor in /usr/local/go: $how"
    fi
    # What is of no use here, and what would change what is built.
    export GOWORK=off CGO_ENABLED=0
    unset GOOS GOARCH GOEXPERIMENT
    found=$(cd / && GOTOOLCHAIN=local "$go" env GOVERSION) || fail "$go does not work: $how"
    if ! at_least "${found#go}" "$go_minimum"; then
        # Since 1.21 Go can fetch another Go.
        at_least "${found#go}" 1.21 || fail "$go is ${found:-too old}: $how"
        say "$go is $found, which fetches Go $go_minimum"
        export GOTOOLCHAIN="go$go_minimum"
        found=$(cd / && "$go" env GOVERSION) ||
            fail "$go is too old and could not fetch Go $go_minimum: $how"
    fi
    say "$go, $found"
}

# Fetches a module, checked against Go's checksum database, and prints the directory. On failure
# prints Go's answer.
module_dir() {
    answer=$(cd / && "$go" mod download -json "$1") || { echo "$answer"; return 1; }
    echo "$answer" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",\{0,1\}$/\1/p'
}

# In the module's own directory, with its own go.sum. `go install MODULE/...@VERSION` would do the
# same, but asks for a list of versions that not every proxy gives.
build() {
    sources=$(module_dir "$module@v$version") || fail "cannot fetch $module: $sources"
    say "building lifecycle $version (about a minute)"
    (cd "$sources" && GOBIN=$work/done "$go" install -mod=readonly -trimpath \
        -ldflags "-X $module/cmd.Version=$version" ./cmd/lifecycle ./cmd/launcher) >&2 ||
        fail "lifecycle $version does not build with $go"
    finish "$work/done" "built from $module@v$version"
}

if [ -n "${LIFECYCLE_DIR:-}" ]; then
    origin=given
    given=$(cd "$LIFECYCLE_DIR" && pwd) || fail "LIFECYCLE_DIR=$LIFECYCLE_DIR is no directory"
    check_programs "$given"
    key=$({ cat "$here/build.sh"; cat "$given/lifecycle" "$given/launcher"; echo "$given"; } |
        sha256sum | cut -c 1-16)
else
    origin=built
    given=
    find_go
    key=$({ cat "$here/build.sh"; echo "$found"; "$go" env GOARCH GOPROXY; } |
        sha256sum | cut -c 1-16)
fi
final=$cache/lifecycle-$origin-$key

# The last words, on every run: nobody shall take one kind for the other.
announce() {
    case $(cat "$final/KIND") in
    real*) say "$(cat "$final/KIND")" ;;
    *)
        say "******************************************************************************"
        say "NOT THE REAL KANIKO: $(cat "$final/KIND")"
        say "to try again: rm -r $final"
        say "******************************************************************************"
        ;;
    esac
    echo "$final"
}

# Two test processes may start at once: the second waits and finds the work done.
exec 9>"$cache/lifecycle.lock"
flock 9
if [ -d "$final" ]; then
    announce
    exit 0
fi

work=$(mktemp -d "$cache/lifecycle-work-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
mkdir "$work/done"
if [ -n "$given" ]; then
    cp -L "$given/lifecycle" "$given/launcher" "$work/done/"
    finish "$work/done" "as found in $given (LIFECYCLE_DIR)"
else
    build 9>&-
    check_programs "$work/done"
fi
mv "$work/done" "$final"
# Older keys are of no use any more.
find "$cache" -maxdepth 1 -name "lifecycle-$origin-*" ! -path "$final" -exec rm -rf {} +
announce
