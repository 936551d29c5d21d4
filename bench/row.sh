#!/bin/sh
# row.sh HEADING ROW: puts ROW at the end of the table below "## HEADING" of results.md.
set -eu
cd "$(dirname "$0")"
new=$(mktemp ./results.XXXXXX)
trap 'rm -f "$new"' EXIT
heading="## $1" row=$2 awk '
    # The table of this heading has begun, and this line is no more of it.
    inside && seen && !/^\|/ { print ENVIRON["row"]; inside = 0; done = 1 }
    { print }
    /^## / { inside = ($0 == ENVIRON["heading"]); seen = 0 }
    inside && /^\|/ { seen = 1 }
    END { if (inside && seen) { print ENVIRON["row"]; done = 1 }; exit !done }
' results.md >"$new" || { echo "row.sh: no table below \"## $1\" in results.md" >&2; exit 1; }
cat "$new" >results.md
