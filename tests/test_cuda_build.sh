#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What ptxas said of the CUDA kernels when they were compiled: every kernel for every target, no
# spills, no serialised wgmma. What it made of Hopper's kernels: as many groups of products as the
# source commits, so that a wait for the last but one is not a wait for the last. And that the
# object loads, or says why not, without a driver. Skipped (77) where nvcc was not found.
#
#     test_cuda_build.sh BUILD_DIR PROGRAM [CUOBJDUMP]
set -eu
logs=$1/src/cuda
program=$2
cuobjdump=${3-}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

[ -e "$logs/kernel_mma.log" ] || { echo "skipped: built without nvcc"; exit 77; }

fail() { echo "FAIL: $*"; exit 1; }

# check LOG KERNELS TARGETS: that many functions, of that many at least, none spilling
check() {
  functions=$(grep -c 'Function properties' "$1") || fail "$1 names no function"
  [ "$functions" -ge $(($2 * $3)) ] ||
    fail "$1: $functions functions, not $2 for each of $3 targets"
  clean=$(grep -c ' 0 bytes spill stores, 0 bytes spill loads' "$1") || clean=0
  [ "$functions" = "$clean" ] ||
    { grep spill "$1"; fail "$1: $((functions - clean)) of $functions functions spill"; }
  ! grep -E 'C75[0-9][0-9]|setmaxnreg.*ignored|warning' "$1" || fail "$1: see above"
  echo "ok: $functions functions in $(basename "$1"), no spills"
}
check "$logs/kernel_mma.log" 8 2
check "$logs/kernel_wgmma.log" 16 1
check "$logs/peak_mma.log" 1 2
check "$logs/peak_wgmma.log" 2 1
check "$logs/watchdog_wgmma.log" 2 1

# must_fail WHAT COMMAND...: a check that lets a planted fault pass is none
must_fail() {
  what=$1
  shift
  if ("$@") > /dev/null 2>&1; then fail "goes unnoticed: $what"; fi
}
plant() { # LOG CHANGE: a copy of the log with a fault
  sed "$2" "$logs/$1" > "$scratch/log"
  ! cmp -s "$logs/$1" "$scratch/log" || fail "nothing to change: $2"
}
for change in 's/ 0 bytes spill stores/ 16 bytes spill stores/' \
  's/ 0 bytes spill loads/ 4 bytes spill loads/' \
  '0,/Function properties/s/Function properties/nothing/' \
  '$a ptxas info : (C7514) serialized' '$a ptxas info : (C7507) setmaxnreg ignored'; do
  plant kernel_wgmma.log "$change"
  must_fail "$change" check "$scratch/log" 16 1
done

# groups PTX SASS: "KERNEL GROUPS" of each, which must agree and be so many kernels at least; ptxas
# marks the last product of a group
groups() {
  awk '/^\.visible \.entry/ { sub(/\(.*/, "", $3); name = $3 }
    /wgmma\.commit_group/ { n[name]++ }
    END { for (k in n) print k, n[k] }' "$1" | sort > "$scratch/commits"
  awk '/Function :/ { name = $3 }
    /HGMMA.*gsb0/ { n[name]++ }
    END { for (k in n) print k, n[k] }' "$2" | sort > "$scratch/marks"
  [ "$(grep -c . "$scratch/commits")" -ge "$3" ] || fail "$1: fewer than $3 kernels commit"
  cmp -s "$scratch/commits" "$scratch/marks" || {
    diff "$scratch/commits" "$scratch/marks"
    fail "ptxas ends other groups than the source"
  }
  counts=$(cut -d ' ' -f 2 "$scratch/marks" | sort -n | uniq -c |
    awk '{ printf "%s%d kernels of %d groups", (NR > 1 ? ", " : ""), $1, $2 }')
  echo "ok: $counts in $(basename "$1")"
}
products() { # SASS FUNCTION
  awk -v name="$2" '/Function :/ { wanted = $3 ~ name }
    wanted && /HGMMA/ { sub(/.*HGMMA/, "HGMMA"); n[$1 " A=" substr($3, 1, 1)]++ }
    END { for (k in n) print n[k], k }' "$1" | sort
}
# As many of the same shape, with A from the same place, as the kernel has.
same_products() { # SASS FUNCTION wgmma2|wgmma3
  products "$scratch/kernel_wgmma.sass" "amla_decode_wgmma.*$3ILb0ELi576E" > "$scratch/kernel"
  products "$1" "$2" > "$scratch/other"
  [ -s "$scratch/kernel" ] || fail "no products of $3"
  diff "$scratch/kernel" "$scratch/other" || fail "$2: other products than $3"
  echo "ok: the products of $2: $(tr '\n' ' ' < "$scratch/kernel")"
}

# traps SASS FUNCTION NUMBER: so many functions of that name end a wait in an error
traps() {
  found=$(awk -v name="$2" '/Function :/ { wanted = $3 ~ name ? $3 : "" }
    wanted && /BPT\.TRAP/ { traps[wanted] = 1 }
    END { for (k in traps) n++; print n + 0 }' "$1")
  [ "$found" = "$3" ] || fail "$2: $found functions end a wait in an error, not $3"
  echo "ok: $3 functions $2 end a wait in an error"
}

if [ -x "$cuobjdump" ]; then
  PATH=$(dirname "$cuobjdump"):$PATH
  for kernels in peak_wgmma:2 kernel_wgmma:16 watchdog_wgmma:2; do
    file=${kernels%:*}
    "$cuobjdump" -sass "$logs/$file.o" > "$scratch/$file.sass"
    groups "$logs/$file.ptx" "$scratch/$file.sass" "${kernels#*:}"
  done
  same_products "$scratch/peak_wgmma.sass" amla_peak_mix wgmma3
  for kernel in wgmma2 wgmma3; do
    same_products "$scratch/watchdog_wgmma.sass" "amla_watchdog.*$kernel" "$kernel"
  done
  must_fail "other products" same_products "$scratch/peak_wgmma.sass" amla_peak_wgmma wgmma3
  traps "$scratch/watchdog_wgmma.sass" amla_watchdog 2
  traps "$scratch/kernel_wgmma.sass" amla_decode 0
  sed '0,/\(HGMMA.*\) ;/s// \1, gsb0 ;/' "$scratch/kernel_wgmma.sass" > "$scratch/more"
  must_fail "a group that the source has not" groups "$logs/kernel_wgmma.ptx" "$scratch/more" 16
  sed '0,/HGMMA\(.*\), gsb0/s//HGMMA\1/' "$scratch/kernel_wgmma.sass" > "$scratch/fewer"
  must_fail "a group that is gone" groups "$logs/kernel_wgmma.ptx" "$scratch/fewer" 16
  must_fail "a kernel that is gone" groups "$logs/kernel_wgmma.ptx" "$scratch/kernel_wgmma.sass" 17
else
  echo "SKIPPED: the groups of products in Hopper's machine code: no cuobjdump beside nvcc" \
    "(AMLA_CUOBJDUMP)"
fi

# The object loads without a driver: the reason is the driver's absence, not the linker's.
reason=$("$program" info | grep '^backend *cuda') || fail "info does not name the backend"
echo "$reason"
case $reason in
*'cannot open'* | *undefined* | *'another build'*) fail "libamla_cuda does not load" ;;
esac
