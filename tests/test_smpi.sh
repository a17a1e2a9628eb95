#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# amla_ranks on a simulated network: the bits of one process, and the time that the formula says.
# Times are simulated, from given rates: they do not depend on the machine.
#
#     test_smpi.sh SOURCE_DIR BUILD_DIR
set -eu
source=$1
build=$2
[ -e "$build/amla_ranks_smpi.so" ] || {
  echo "skipped: no SimGrid (libsimgrid-dev, 200 MB with what it needs), or a sanitizer's build"
  exit 77
}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

PYTHONPATH=$source/mpi/smpi python3 -B - "$build" << 'END'
import sys

import scale

CHARGED = {"AMLA_CHARGE": "1e-6 1e-9 1e-7 1e-10", "AMLA_COMPUTE": "1"}
problem = "h=70,sk=1500,dqk=40,dv=36,page=16"
for ranks in (1, 2, 4):
    output = scale.run(sys.argv[1], 12.5e9, ranks, ["check", problem], CHARGED)
    if f"{ranks} ranks against" not in output or "the same bits" not in output:
        sys.exit(f"FAIL: {ranks} simulated ranks:\n{output}")
END

cat > "$scratch/rates" << 'END'
{"isa": "given", "tile_tokens": 96, "run": [[96, 6144, 271e-6], [33024, 2113536, 67672e-6]],
 "finish": [[2, 263168, 118e-6], [256, 526336, 300e-6]]}
END
ranks=2,3,7,20
[ "${AMLA_LONG-}" != 1 ] || ranks=1,2,3,4,7,8,16,20,32,64
python3 -B "$source/mpi/smpi/scale.py" "$build" --rates "$scratch/rates" --ranks $ranks \
  > "$scratch/output" 2>&1 || { cat "$scratch/output" && echo "FAIL: formula" && exit 1; }
tail -n 1 "$scratch/output"
