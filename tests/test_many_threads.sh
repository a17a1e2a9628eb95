#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# docs/results/many_threads.txt is what the schedule gives now.
#
#     test_many_threads.sh COUNT_SHARES TABLES
set -eu
unset AMLA_ISA
scratch=$(mktemp)
trap 'rm -f "$scratch"' EXIT
"$1" > "$scratch" || exit $?
diff "$2" "$scratch" || { echo "FAIL: ./dev model --threads > $2" >&2; exit 1; }
