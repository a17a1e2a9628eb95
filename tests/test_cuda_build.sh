#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What ptxas said of the CUDA kernels when they were compiled: every kernel for every target, no spills, no serialised wgmma. And that
# the object loads, or says why not, without a driver. Skipped (77) where nvcc was not found.
#
#     test_cuda_build.sh BUILD_DIR PROGRAM
set -eu
logs=$1/src/cuda
program=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

[ -e "$logs/kernel_mma.log" ] || { echo "skipped: built without nvcc"; exit 77; }

fail() { echo "FAIL: $*"; exit 1; }

# check LOG KERNELS TARGETS: that many functions, of that many at least, none spilling
check() {
  functions=$(grep -c 'Function properties' "$1") || fail "$1 names no function"
  [ "$functions" -ge $(($2 * $3)) ] || fail "$1: $functions functions, not $2 for each of $3 targets"
  clean=$(grep -c ' 0 bytes spill stores, 0 bytes spill loads' "$1") || clean=0
  [ "$functions" = "$clean" ] || { grep spill "$1"; fail "$1: $((functions - clean)) of $functions functions spill"; }
  ! grep -E 'C75[0-9][0-9]|setmaxnreg.*ignored|warning' "$1" || fail "$1: see above"
  echo "ok: $functions functions in $(basename "$1"), no spills"
}
check "$logs/kernel_mma.log" 8 2
check "$logs/kernel_wgmma.log" 4 1
check "$logs/peak_mma.log" 1 2
check "$logs/peak_wgmma.log" 1 1

# Can it fail?
for change in 's/ 0 bytes spill stores/ 16 bytes spill stores/' '0,/Function properties/s/Function properties/nothing/' '$a ptxas info : (C7514) serialized'; do
  sed "$change" "$logs/kernel_wgmma.log" > "$scratch/log"
  if (check "$scratch/log" 4 1) > /dev/null; then fail "$change goes unnoticed"; fi
done

# The object loads without a driver: the reason is the driver's absence, not the linker's.
reason=$("$program" info | grep '^ *cuda' || :)
echo "$reason"
case $reason in
*'cannot open'* | *undefined* | *'another build'*) fail "libamla_cuda does not load" ;;
esac
