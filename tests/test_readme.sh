#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The first C blocks of README.md and docs/sparse.md compile against this build as they stand,
# without a warning, and run. So do README.md's Python blocks with this build's library, in the
# first Python that has what they import.
# Blocks that need torch are skipped where there is none.
#
#     test_readme.sh SOURCE_DIR BUILD_DIR CC [FLAG...]     a flag: a sanitizer, which no Python has
set -eu
source_dir=$1 build_dir=$2 cc=$3
shift 3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

for page in README.md docs/sparse.md; do
  awk '/^```c$/ && !seen { inside = seen = 1; next } /^```/ { inside = 0 } inside' \
    "$source_dir/$page" > "$scratch/block.c"
  [ -s "$scratch/block.c" ] || { echo "FAIL: $page has no \`\`\`c block" >&2; exit 1; }
  "$cc" -std=c11 -Wall -Wextra -Werror "$@" -I"$source_dir/include" "$scratch/block.c" \
    -o "$scratch/block" -L"$build_dir" -Wl,-rpath,"$build_dir" -lamla -lm
  "$scratch/block" > "$scratch/said"
  cat "$scratch/said"
  awk '/expected/ { if ($(NF - 2) + 0 != $NF + 0) exit 1 }' "$scratch/said" ||
    { echo "FAIL: $page: not what is expected" >&2; exit 1; }
done
[ $# -eq 0 ] || exit 0

awk -v base="$scratch/block" '/^```python$/ { inside = 1; n++; next } /^```/ { inside = 0 }
  inside { print > base n ".py" }' "$source_dir/README.md"
[ -s "$scratch/block1.py" ] || { echo "FAIL: README.md has no \`\`\`python block" >&2; exit 1; }
export PYTHONPATH="$source_dir/python" AMLA_LIBRARY="$build_dir/libamla.so"
export PYTHONDONTWRITEBYTECODE=1
for block in "$scratch"/block*.py; do
  needs=numpy
  ! grep -q 'flash_mla\|transformers' "$block" || needs='torch, transformers'
  for python in python3 "$build_dir/python/venv/bin/python" none; do
    if [ $python = none ]; then
      [ "$needs" != numpy ] && [ -z "${AMLA_REQUIRE_TORCH-}" ] ||
        { echo "FAIL: no Python with $needs" >&2; exit 1; }
      echo "skipped, no Python with $needs: $(head -1 "$block")"
    elif "$python" -c "import $needs" 2> /dev/null; then
      "$python" "$block"
      break
    fi
  done
done
