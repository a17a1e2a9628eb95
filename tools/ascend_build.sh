#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# For somebody with a CANN toolkit: compiles the Ascend kernel over src/npu/asc_adapter.h with the
# toolkit's compiler, and says file by file what it takes and which names it does not know. It stops
# before linking: the adapter is a sketch (docs/ascend.md, To silicon), and a host program that
# launches the kernel is not written. UNTESTED on a toolkit: none was at hand.
#
#     . /PATH/TO/TOOLKIT/set_env.sh; tools/ascend_build.sh
#     COMPILER='c++ -std=c++17' tools/ascend_build.sh       against our own prototypes instead
#
# Exit status: 0 all files compile, 1 some do not, 77 no compiler.
set -u
source_dir=$(cd "$(dirname "$0")/.." && pwd)
npu=$source_dir/src/npu
files="cube softmax vector v0 v1 v2 rescale result merge"

if [ -z "${COMPILER:-}" ]; then
  bisheng=${ASCEND_HOME_PATH:-}/compiler/ccec_compiler/bin/bisheng
  [ -x "$bisheng" ] || bisheng=$(command -v bisheng) || {
    echo "no toolkit: ASCEND_HOME_PATH=${ASCEND_HOME_PATH:-} has no bisheng, and neither has PATH"
    exit 77
  }
  COMPILER="$bisheng -std=c++17 -x asc --npu-arch=${NPU_ARCH:-dav-2201} \
    -I$ASCEND_HOME_PATH/include"
else
  COMPILER="$COMPILER -x c++"
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
echo "compiler: $COMPILER"
n=0 good=0
for name in $files; do
  n=$((n + 1))
  # shellcheck disable=SC2086
  if $COMPILER -include "$npu/asc_adapter.h" -I"$npu" -c "$npu/ascend_$name.c" \
    -o "$scratch/$name.o" > "$scratch/$name.log" 2>&1; then
    good=$((good + 1))
    echo "ascend_$name.c: compiles"
  else
    echo "ascend_$name.c: $(grep -c 'error:' "$scratch/$name.log") errors, the first:" \
      "$(grep -m 1 'error:' "$scratch/$name.log" | sed 's/.*error: //')"
  fi
done
echo "$good of $n files compile"
unknown=$(cat "$scratch"/*.log | grep 'error:' | grep -o 'asc_[a-z0-9_]*' | sort -u | tr '\n' ' ')
[ -z "$unknown" ] || echo "vendor calls in errors (name or arguments): $unknown"
[ "$good" = "$n" ]
