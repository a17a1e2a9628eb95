#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Programs that were linked with version 0.1 run with this library as they are, and abidiff finds
# nothing between the two but growth. Version 0.1 is commit 12fc171, built from the history.
#
#     test_abi.sh SOURCE_DIR BUILD_DIR CC
set -eu
source_dir=$1 build_dir=$2 cc=$3
old_commit=12fc171
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() { echo "FAIL: $*" >&2; exit 1; }

git -C "$source_dir" cat-file -e "$old_commit^{commit}" 2> /dev/null || {
  echo "skipped: this tree has no history with version 0.1, $old_commit"
  exit 77
}

# Types are the same whatever the optimisation.
build() { # SOURCE FOLDER
  { cmake -S "$1" -B "$2" -G Ninja -DCMAKE_C_COMPILER="$cc" -DCMAKE_BUILD_TYPE=Debug \
    -DAMLA_BUILD_CLI=OFF -DAMLA_BUILD_GGML=OFF -DAMLA_BUILD_CUDA=OFF -DAMLA_BUILD_MPI=OFF &&
    cmake --build "$2" --target amla; } > "$2.log" 2>&1 || { cat "$2.log"; fail "build $1"; }
}
old=$scratch/old-source
mkdir "$old"
git -C "$source_dir" archive "$old_commit" | tar -x -C "$old"
build "$old" "$scratch/old"

# The programs: two of 0.1's own, and one of today that uses all of it.
awk '/^```c$/ { inside = 1; next } /^```/ && inside { exit } inside' "$old/README.md" \
  > "$scratch/readme.c"
cp "$old/tests/install/consumer.c" "$source_dir/tests/install/edge_client.c" "$scratch"
for program in consumer edge_client readme; do
  "$cc" -std=c11 -I"$old/include" "$scratch/$program.c" -o "$scratch/$program" \
    -L"$scratch/old" -lamla -lm || fail "$program does not compile with 0.1"
  LC_ALL=C readelf -d "$scratch/$program" | grep -q 'NEEDED.*\[libamla\.so\.0\.1\]' ||
    fail "$program does not ask for libamla.so.0.1"
  for library in "$scratch/old" "$build_dir"; do
    LD_LIBRARY_PATH=$library "$scratch/$program" > "$scratch/said" ||
      fail "$program, linked with 0.1: exit $? with $library"
    echo "ok: $program of 0.1: $(cat "$scratch/said")"
  done
done
version=$(sed -n 's/^#define AMLA_VERSION_[MP][A-Z]* //p' "$source_dir/include/amla/amla.h" |
  paste -sd. -)
LD_LIBRARY_PATH=$build_dir "$scratch/edge_client" | grep -qx "$version ok" ||
  fail "edge_client does not run with version $version"

command -v abidiff > /dev/null || {
  echo "skipped: no abidiff (abigail-tools)"
  exit 77
}
build "$source_dir" "$scratch/new"
include=$scratch/include # types that these do not define are nobody's
mkdir "$include"
cp -r "$old/include" "$include/old"
cp -r "$source_dir/include" "$include/new"
difference() { # OLD NEW [OPTION...]: but for functions that are new
  before=$1 after=$2
  shift 2
  abidiff --no-added-syms --ignore-soname --drop-private-types --headers-dir1 "$include/$before" \
    --headers-dir2 "$include/$after" "$@" "$scratch/$before/libamla.so" "$scratch/$after/libamla.so"
}
# A struct that has grown at its end is left out, with all that it holds: enumerators are looked at
# once more.
cat > "$scratch/growth" << 'END'
[suppress_type]
  type_kind = struct
  has_data_member_inserted_at = end
END
only_grows() { # OLD NEW
  difference "$1" "$2" --suppressions "$scratch/growth" || return 1
  difference "$1" "$2" --harmless > "$scratch/all" || :
  ! grep -A 3 -E '[0-9]+ enumerator (change|deletion)' "$scratch/all"
}
difference new old --harmless > "$scratch/all" || :
grep -Eq '[0-9]+ enumerator (change|deletion)' "$scratch/all" || fail "abidiff sees no enumerators"
only_grows old new || fail "the ABI does not only grow since 0.1"
! only_grows new old > "$scratch/shrinks" || fail "abidiff does not see what is taken away"
grep -q 'Removed functions' "$scratch/shrinks" || fail "abidiff does not see removed functions"
echo "ok: the ABI only grows since 0.1"
