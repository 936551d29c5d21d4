#!/bin/sh
# Makes the buildpacks lifecycle that the tests run, or finds it made: `build.sh CACHE` prints the
# directory, CACHE/lifecycle-built-<key> or CACHE/lifecycle-given-<key>. There:
#
#   lifecycle, launcher    static programs, version 0.21.17
#   analyzer detector restorer builder exporter extender    symlinks to lifecycle
#   KIND                   one line, `real: ...` or `stand-in: ...`: from where, and why
#
# A stand-in is the real lifecycle, but for the two files of it that call kaniko (README.md beside).
#
# LIFECYCLE_DIR, when set, names a directory with lifecycle and launcher: those two are used. Else
# they are built, which takes Go >= 1.26.6 ($GO, `go` on PATH, /usr/local/go/bin/go) and, the first
# time, a Go module proxy and minutes. `build.sh --check` fails when there is neither.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
version=0.21.17
go_minimum=1.26.6
module=github.com/buildpacks/lifecycle

say() { echo "lifecycle: $*" >&2; }
fail() { say "$*"; exit 1; }

[ $# = 1 ] || { echo "usage: build.sh CACHE|--check" >&2; exit 2; }

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

# Symlinks and KIND, for the programs in "$1"; "$2" says where they are from. Both witnesses, the
# version and the code, must agree about the kind, and with "$3" when that is known.
finish() {
    for phase in analyzer detector restorer builder exporter extender; do
        ln -s lifecycle "$1/$phase"
    done
    if has_kaniko "$1/lifecycle"; then kind=real; else kind=stand-in; fi
    case $("$1/lifecycle" -version)/$kind/${3:-$kind} in
    *+stand-in/stand-in/stand-in) ;;
    *+stand-in/*) fail "$1/lifecycle calls itself a stand-in, and has kaniko in it" ;;
    */real/real) ;;
    *) fail "$1/lifecycle has no kaniko in it, and does not call itself a stand-in" ;;
    esac
    echo "$kind: $2" >"$1/KIND"
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
    case $go in /*) ;; *) go=$(pwd)/$go ;; esac
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
install_programs() {
    GOBIN=$work/done "$go" install -mod=readonly -trimpath -buildvcs=false "$@" \
        ./cmd/lifecycle ./cmd/launcher >&2 ||
        fail "lifecycle $version does not build with $go"
}

build() {
    sources=$(module_dir "$module@v$version") || fail "cannot fetch $module: $sources"
    kaniko=$(sed -n 's|^[[:space:]]*\(github.com/osscontainertools/kaniko\) \(v[^ ]*\)$|\1@\2|p' \
        "$sources/go.mod")
    [ -n "$kaniko" ] || fail "$sources/go.mod names no kaniko"
    ldflags="-X $module/cmd.Version=$version"
    cd "$sources"
    if answer=$(module_dir "$kaniko"); then
        say "building lifecycle $version with $kaniko (minutes, the first time)"
        install_programs -ldflags "$ldflags"
        finish "$work/done" "built from $module@v$version and $kaniko" real
        return
    fi
    # Only a server's plain no: whoever has no network shall hear that, and not get something else.
    refusal=$(echo "$answer" | sed -n \
    's,^[[:space:]]*"Error": "\(.*reading [^ ]*/@v/[^ ]*: \(403\|404\|410\) [A-Za-z ]*\).*,\1,p')
    [ -n "$refusal" ] || fail "cannot fetch $kaniko: $answer"
    say "building lifecycle $version without kaniko, which cannot be had (minutes, the first time)"
    # A copy, because Go replaces nothing in its module cache. All but internal/extend/kaniko stays.
    cp -r "$sources" "$work/sources"
    chmod -R u+w "$work/sources"
    cd "$work/sources"
    package=$work/sources/internal/extend/kaniko
    {
        printf '{"Replace": {"%s": ""' "$package/dockerfile_applier_test.go"
        for file in "$here"/stand-in/*.go; do
            printf ', "%s": "%s"' "$package/$(basename "$file")" "$file"
        done
        echo '}}'
    } >"$work/overlay.json"
    "$go" vet -mod=readonly -overlay "$work/overlay.json" ./internal/extend/kaniko >&2 ||
        fail "go vet does not accept $here/stand-in"
    install_programs -overlay "$work/overlay.json" \
        -ldflags "$ldflags -X $module/cmd.SCMCommit=stand-in"
    finish "$work/done" "built from $module@v$version, with tests/lifecycle/stand-in in place of \
kaniko, because: $refusal" stand-in
}

given=
if [ -n "${LIFECYCLE_DIR:-}" ]; then
    given=$(cd "$LIFECYCLE_DIR" && pwd) || fail "LIFECYCLE_DIR=$LIFECYCLE_DIR is no directory"
    check_programs "$given"
else
    find_go
fi
[ "$1" != --check ] || exit 0
mkdir -p "$1"
cache=$(cd "$1" && pwd)
if [ -n "$given" ]; then
    origin=given
    key=$({ cat "$here/build.sh" "$given/lifecycle" "$given/launcher"; echo "$given"; } |
        sha256sum | cut -c 1-16)
else
    origin=built
    key=$({ cat "$here/build.sh" "$here"/stand-in/*.go; echo "$found"; "$go" env GOARCH GOPROXY; } |
        sha256sum | cut -c 1-16)
fi
final=$cache/lifecycle-$origin-$key

# The last words, on every run: nobody shall take one kind for the other.
announce() {
    case $(cat "$final/KIND") in
    real:*) say "$(cat "$final/KIND")" ;;
    *)
        say "******************************************************************************"
        say "NOT THE REAL KANIKO: $(cat "$final/KIND")"
        [ -n "$given" ] || say "to try again: rm -r $final"
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

# Whoever left one was killed: it had the lock.
rm -rf "$cache"/lifecycle-work-*
work=$(mktemp -d "$cache/lifecycle-work-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
mkdir "$work/done"
if [ -n "$given" ]; then
    cp -L "$given/lifecycle" "$given/launcher" "$work/done/"
    finish "$work/done" "as found in $given, which LIFECYCLE_DIR names"
else
    # In a process of its own, which changes directories.
    (build) 9>&-
    check_programs "$work/done"
fi
mv "$work/done" "$final"
# Older keys are of no use any more.
find "$cache" -maxdepth 1 -name "lifecycle-$origin-*" ! -path "$final" -exec rm -rf {} +
announce
