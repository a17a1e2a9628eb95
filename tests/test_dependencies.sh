#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# docs/dependencies.md has all that the tree's scripts install, of their versions, and the bill of
# materials, by its command, has all of its rows.
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

mkdir -p "$scratch/tree/include/amla"
cp -r "$source_dir/dev" "$source_dir/tools" "$source_dir/docs" "$scratch/tree"
cp "$source_dir/include/amla/amla.h" "$scratch/tree/include/amla"
(cd "$scratch/tree" && SOURCE_DATE_EPOCH=0 sh dev package --sbom > /dev/null) || fail "its command"
version=$(sed -n 's/^#define AMLA_VERSION_[MP][A-Z]* //p' "$source_dir/include/amla/amla.h" |
  paste -sd. -)
n=$(python3 -c 'import json, sys
bill = json.load(open(sys.argv[1]))
assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["version"] == sys.argv[2]
assert all(c["licenses"] and c["purl"].startswith("pkg:") for c in bill["components"])
print(len(bill["components"]))' "$scratch/tree/dist/amla-$version.cdx.json" "$version")
[ "$n" = $(($(grep -c '^| ' "$table") - 1)) ] || fail "the bill has $n components"
echo "ok: a bill of $n components"
