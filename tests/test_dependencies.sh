#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# docs/dependencies.md has all that the tree's scripts install, of their versions, and the bill of
# materials has all of its rows.
#
#     test_dependencies.sh SOURCE_DIR
set -eu
source_dir=$1
table=$source_dir/docs/dependencies.md
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fail() { echo "FAIL: $*" >&2; exit 1; }
sbom() { python3 -B "$source_dir/tools/sbom.py" "$@"; }

sbom --check "$table" "$source_dir" || fail "docs/dependencies.md"

# That it can fail: a row taken away, and another version.
sed '/^| debhelper /d' "$table" > "$scratch/without"
! sbom --check "$scratch/without" "$source_dir" 2> "$scratch/said" || fail "a row is not missed"
grep -q 'dev installs debhelper' "$scratch/said" || fail "said: $(cat "$scratch/said")"
sed 's/^| torch | [0-9.]* /| torch | 1.0.0 /' "$table" > "$scratch/older"
! sbom --check "$scratch/older" "$source_dir" 2> "$scratch/said" || fail "a version is not seen"
grep -q 'torch 2' "$scratch/said" || fail "said: $(cat "$scratch/said")"

SOURCE_DATE_EPOCH=0 sbom "$table" 1.2.3 > "$scratch/bill.json"
n=$(python3 -c 'import json, sys
bill = json.load(open(sys.argv[1]))
assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["version"] == "1.2.3"
assert all(c["licenses"] and c["purl"].startswith("pkg:") for c in bill["components"])
print(len(bill["components"]))' "$scratch/bill.json")
[ "$n" = $(($(grep -c '^| ' "$table") - 1)) ] || fail "the bill has $n components"
echo "ok: a bill of $n components"
