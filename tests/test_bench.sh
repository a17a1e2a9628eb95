#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# bench_cpu as a script meets it: what was not measured, not written or not allowed is never good,
# and a target is one of the instruction set that was measured. The figures are not looked at.
#
#     test_bench.sh BENCH_CPU
set -u
export LC_ALL=C
bench=$1
unset AMLA_ISA AMLA_NUM_THREADS
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
out=$scratch/stdout err=$scratch/stderr
failures=0

fail() {
  failures=$((failures + 1))
  echo "FAIL: bench_cpu $*"
  head -3 "$err"
}

# expect STATUS WORD ARGUMENT...
expect() {
  want=$1 word=$2
  shift 2
  "$bench" "$@" > "$out" 2> "$err"
  status=$?
  [ $status = "$want" ] || fail "$*: exit $status, want $want"
  grep -qF -e "$word" "$out" "$err" || fail "$*: '$word' is not in its output"
}

one="--only h=128,sk=64 --for 0.01 --threads 1"
expect 2 'no case contains it' --only nothing
expect 2 '--threads=1.5: must be an integer' --threads 1.5
AMLA_NUM_THREADS=2x expect 1 'AMLA_NUM_THREADS=2x: must be a number' --only h=128,sk=64
AMLA_NUM_THREADS=3 expect 0 '"threads": 3' --only h=16,sk=4096 --for 0.01 --json
# shellcheck disable=SC2086
for value in zzz AVX2; do
  AMLA_ISA=$value expect 1 "AMLA_ISA=$value: must be c, " $one
done
# shellcheck disable=SC2086
if [ -w /dev/full ]; then
  for json in '' --json; do
    "$bench" $one $json > /dev/full 2> "$err"
    status=$?
    [ $status = 1 ] || fail "$one $json > /dev/full: exit $status, want 1"
    grep -q 'cannot write' "$err" || fail "$one $json > /dev/full: no message"
  done
fi
# shellcheck disable=SC2086
for isa in c avx2 avx512; do
  AMLA_ISA=$isa expect 0 '"isa": ' $one --json
  python3 - "$out" << 'PYTHON' 2> "$err" || fail "the targets under AMLA_ISA=$isa"
import json, sys

target = {"c": None, "avx2": 0.75, "avx512": 0.8} # of the peak, 64 tokens
(row,) = json.load(open(sys.argv[1]))
assert row.get("of_peak", {}).get("target") == target[row["isa"]], row
PYTHON
done

[ $failures = 0 ] || exit 1
echo ok
