#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Ranks of one thread against as many threads in one process, interleaved in one run, verified: 128
# heads at 64K and 4K tokens. And what ranks add to a step of one token. Not for a machine where
# something else runs: a rank that waits keeps a core from the one it waits for. Set
# OMPI_MCA_mpi_yield_when_idle=1 there, and go by the medians.
#
#     bench_ranks.sh AMLA_RANKS MPIEXEC
set -eu
program=$1
mpiexec=$2
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=2
export OMPI_MCA_btl_vader_single_copy_mechanism=none # as in containers
more=
"$mpiexec" --version 2>&1 | grep -qi "open mpi\|openrte" && more="--oversubscribe --bind-to none"

duel() { # ROUNDS ARGUMENT...
  rounds=$1
  shift
  "$mpiexec" $more -n 2 "$program" duel "$@" --rounds "$rounds"
}
duel 11 h=128,sk=65536 --split 4096
duel 200 h=128,sk=4096 --split 1024
duel 300 h=128,sk=1 --split 4096
