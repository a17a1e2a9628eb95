#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The commands of docs/performance.md run, and its tables are lines of many_threads.txt.
#
#     test_performance_page.sh SOURCE_DIR PROGRAM
set -eu
page=$1/docs/performance.md tables=$1/docs/results/many_threads.txt
PATH=$(dirname "$2"):$PATH
export PATH
unset AMLA_ISA AMLA_NUM_THREADS OMP_NUM_THREADS
scratch=$(mktemp)
trap 'rm -f "$scratch"' EXIT

awk '/^```sh$/ { inside = 1; next } /^```/ { inside = 0 } inside' "$page" > "$scratch"
[ -s "$scratch" ] || { echo "FAIL: the page has no \`\`\`sh block" >&2; exit 1; }
unbound=$(amla run h=16,sk=1000 | grep -o '[0-9]* threads*' | head -n 1)
while read -r line; do
  if [ "${line%% *}" = numactl ] && ! command -v numactl > /dev/null; then
    echo "skipped, no numactl: $line"
    continue
  fi
  said=$(sh -c "$line") || { echo "FAIL: $line" >&2; exit 1; }
  case $line in
  *NUM_THREADS=2*) want='2 threads' ;;
  *taskset*) want='1 thread$' ;;
  OMP_PLACES*) want=$unbound ;; # though the thread that plans is bound to one core
  *) want='thread' ;;
  esac
  echo "$said" | grep -q "$want" || { echo "FAIL: $line: not '$want': $said" >&2; exit 1; }
done < "$scratch"

sed -n 's/^| \(h=[^|]*[^ |]\) *|\(.*\)|$/\1\2/p' "$page" | tr -d '|' | tr -s ' ' > "$scratch"
[ -s "$scratch" ] || { echo "FAIL: the page has no table of shapes" >&2; exit 1; }
while read -r row; do
  tr -s ' ' < "$tables" | grep -qxF "$row" || { echo "FAIL: not in $tables: $row" >&2; exit 1; }
done < "$scratch"
