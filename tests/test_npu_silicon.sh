#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The road to silicon stays open: the kernel's programs compile as C++ over asc_adapter.h, against
# our own prototypes of the vendor's C API, and leave nothing undefined but those calls (and each
# other). Then a call that the adapter lacks must be found. Compiles only: UNTESTED ON SILICON.
#
#     test_npu_silicon.sh SOURCE_DIR [C++ compiler]
set -eu
source_dir=$(cd "$1" && pwd)
npu=$source_dir/src/npu
cxx=${2:-c++}
command -v "$cxx" > /dev/null || { echo "skipped: no C++ compiler"; exit 77; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

compile() { # FILE...: objects in the scratch folder
  for file; do
    "$cxx" -std=c++17 -O1 -Wall -Wextra -Werror -include "$npu/asc_adapter.h" -I"$npu" \
      -x c++ -c "$file" -o "$scratch/$(basename "$file").o" || return 1
  done
}

# undefined_calls: what the objects need beside the vendor's calls, themselves and the C library's
undefined_calls() {
  nm -u "$scratch"/*.o | sed -n 's/^ *U //p' |
    grep -vE 'asc_|ascend_|^_GLOBAL|^__stack_chk|^mem(set|cpy)$' || :
}

compile "$npu"/ascend_cube.c "$npu"/ascend_softmax.c "$npu"/ascend_vector.c "$npu"/ascend_v[012].c \
  "$npu"/ascend_rescale.c "$npu"/ascend_result.c "$npu"/ascend_merge.c
left=$(undefined_calls)
[ -z "$left" ] || { echo "FAIL: the adapter lacks: $left"; exit 1; }
calls=$(nm -u "$scratch"/*.o | grep -o 'asc_[a-z0-9_]*[a-z0-9]' | sort -u | wc -l)
[ "$calls" -ge 25 ] || { echo "FAIL: only $calls vendor calls: too few to be the kernel"; exit 1; }
echo "ok: the kernel needs $calls calls of the vendor's API"

sed 's/npu_mmad_bf16/npu_mmad_absent/' "$npu/ascend_cube.c" > "$scratch/planted.c"
sed -i "s|\"ascend_|\"$npu/ascend_|" "$scratch/planted.c"
if compile "$scratch/planted.c" > "$scratch/output" 2>&1; then
  echo "FAIL: a call that does not exist was not found"
  exit 1
fi
grep -q npu_mmad_absent "$scratch/output" || { cat "$scratch/output"; exit 1; }
echo "ok: a call that the adapter lacks is found"

# The script for a real toolkit, on our prototypes; and what it says of a call that is not there.
COMPILER="$cxx -std=c++17" "$source_dir/tools/ascend_build.sh" > "$scratch/report" ||
  { cat "$scratch/report"; exit 1; }
grep -qx '9 of 9 files compile' "$scratch/report" || { cat "$scratch/report"; exit 1; }
if COMPILER="$cxx -std=c++17 -Dasc_brcb=asc_absent(x)" "$source_dir/tools/ascend_build.sh" \
  > "$scratch/report"; then
  echo "FAIL: tools/ascend_build.sh takes a call with other arguments"
  exit 1
fi
grep -q '^vendor calls in errors.*asc_' "$scratch/report" || { cat "$scratch/report"; exit 1; }
status=0
(unset COMPILER; ASCEND_HOME_PATH=$scratch PATH=/usr/bin:/bin "$source_dir/tools/ascend_build.sh") \
  > "$scratch/report" || status=$?
[ "$status" = 77 ] || { cat "$scratch/report"; echo "FAIL: status $status, no toolkit"; exit 1; }
echo "ok: tools/ascend_build.sh reports"
