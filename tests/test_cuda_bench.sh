#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# `amla bench --backend cuda` on emulated threads: every row is there as soon as it is known, and
# neither a wrong result nor an error keeps the next problem from its row.
#
#     AMLA_BACKEND_DIR=... test_cuda_bench.sh AMLA
set -eu
amla=$1
scratch=$(mktemp -d)
bench=
trap '[ -z "$bench" ] || kill "$bench" 2> /dev/null; rm -rf "$scratch"' EXIT
out=$scratch/out
fail() { echo "FAIL: $*"; cat "$out"; exit 1; }
bench() { rc=0; "$amla" bench --backend cuda --for 0.001 "$@" > "$out" 2> "$scratch/err" || rc=$?; }
row() { grep -Eq "^$1 +$2 " "$out" || fail "no row: $1 $2"; } # PROBLEM RESULT AND FIRST FIGURES
first=b=2,sq=2,h=5,sk=70 second=b=1,h=3,sk=71 third=b=1,h=2,sk=72
figure='[0-9.e+]+ (us|ms|s)'

bench $first $second
[ $rc = 0 ] || fail "exit $rc, not 0"
grep -q '^EMULATED' "$out" || fail "not said to be emulated"
row $first "right +$figure"
row $second "right +$figure"

AMLA_EMULATED_FAULT=wrong:71
export AMLA_EMULATED_FAULT
bench $first $second $third
[ $rc = 3 ] || fail "a wrong result: exit $rc, not 3"
row $first "right +$figure"
row $second 'WRONG +-'
row $third "right +$figure"
bench --json $first $second $third
[ $rc = 3 ] || fail "a wrong result, --json: exit $rc, not 3"
python3 - "$out" << 'END' || fail "--json: see above"
import json, sys
rows = json.load(open(sys.argv[1]))
assert [r["ok"] for r in rows] == [True, False, True], rows
assert [r["seconds"] is None for r in rows] == [False, True, False], rows
END

bench $first b=1,sk=0 $third
[ $rc = 1 ] || fail "an error: exit $rc, not 1"
grep -q 'sk=0' "$scratch/err" || fail "an error without its words"
row $third "right +$figure"

# The second problem never ends: the first one's row is there all the same.
AMLA_EMULATED_FAULT=hang:71
"$amla" bench --backend cuda --for 0.001 $first $second > "$out" 2>&1 &
bench=$!
tries=0
until grep -q "^$first " "$out"; do
  tries=$((tries + 1))
  [ $tries -lt 600 ] || fail "no row while the next problem runs"
  sleep 0.1
done
kill -0 "$bench" || fail "the second problem ended"
echo "ok: rows as they come, after a wrong result and after an error"
