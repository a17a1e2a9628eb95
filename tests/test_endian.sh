#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# A big-endian machine is refused by name when the library is compiled, not by wrong numbers.
# Usage: test_endian.sh SOURCE_DIR CC
set -eu
source_dir=$1 cc=$2
main=$source_dir/src/plan.c
log=$(mktemp)
trap 'rm -f "$log"' EXIT

preprocess() { "$@" -I "$source_dir/include" -E "$main" > /dev/null 2> "$log"; }
expect_refusal() {
  if preprocess "$@"; then echo "FAIL: $* accepts a big-endian machine" && exit 1; fi
  grep -q 'AMLA needs a little-endian machine' "$log" || { cat "$log" && exit 1; }
}

preprocess "$cc" || { cat "$log" && exit 1; }
expect_refusal "$cc" -U__BYTE_ORDER__ -D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__
other=
for compiler in s390x-linux-gnu-gcc powerpc64-linux-gnu-gcc; do
  command -v $compiler > /dev/null || continue
  expect_refusal $compiler
  other="$other, $compiler"
done
echo "refused: $cc with the byte order defined away$other"
