#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The first C block of README.md compiles against this build as it stands, without a warning, and runs.
#
#     test_readme.sh SOURCE_DIR BUILD_DIR CC [FLAG...]
set -eu
source_dir=$1 build_dir=$2 cc=$3
shift 3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

awk '/^```c$/ && !seen { inside = seen = 1; next } /^```/ { inside = 0 } inside' "$source_dir/README.md" > "$scratch/readme.c"
[ -s "$scratch/readme.c" ] || { echo "FAIL: README.md has no \`\`\`c block" >&2; exit 1; }
"$cc" -std=c11 -Wall -Wextra -Werror "$@" -I"$source_dir/include" "$scratch/readme.c" -o "$scratch/readme" \
  -L"$build_dir" -Wl,-rpath,"$build_dir" -lamla -lm
"$scratch/readme"
