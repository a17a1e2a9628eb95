#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# One decode step over 1 to 8 ranks has the bits of one process; what one rank refuses, all ranks
# return by name; a rank that dies ends the job; stopped ranks change nothing.
#
#     test_mpi.sh AMLA_RANKS MPIEXEC [AMLA]
set -eu
program=$1
mpiexec=$2
amla=${3-}
output=$(mktemp) trace=$(mktemp)
trap 'rm -f "$output" "$trace"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none # containers forbid it
export ASAN_OPTIONS="detect_leaks=0 ${ASAN_OPTIONS-}" # MPI's own
more=
"$mpiexec" --version 2>&1 | grep -qi "open mpi\|openrte" &&
  more="--oversubscribe --mca btl self,vader,tcp"

ranks() { # N ARGUMENT...
  n=$1
  shift
  timeout 120 "$mpiexec" $more -n "$n" "$program" "$@"
}
# The shared library: amla_ranks has its sources, so that allocations can be made to fail.
timeout 120 "$mpiexec" $more -n 3 "$(dirname "$program")/mpi_step" > "$output" 2>&1 &&
  grep -q "^step .*3 ranks by libamla_mpi.so: 0 of [1-9][0-9]* rows" "$output" ||
  { cat "$output" && echo "FAIL: a step by libamla_mpi.so" && exit 1; }

expect() { # WORDS N ARGUMENT...
  words=$1
  shift
  if ! ranks "$@" > "$output" 2>&1 || ! grep -q "$words" "$output"; then
    cat "$output"
    echo "FAIL: ranks $*"
    exit 1
  fi
}

dense=b=2,sq=2,h=37,sk=1500,dqk=40,dv=36,page=16,causal=1,len=1500/700,sinks=1
for n in 3 7 8; do # and on 1, 2 and 4 of them
  expect " $n ranks against one process.*: the same bits" $n check $dense
done
lists=b=2,sq=2,h=9,sk=1500,dqk=40,dv=36,page=16,topk=300,index=position,invalid=20
scopes=b=2,sq=2,h=5,sk=900,dqk=40,dv=36,page=16,causal=1,window=400,scope2=sk:1100/page:5
expect "the same bits" 3 check $lists
expect "on 3 ranks, of capacities and lists of their own: the same bits" 3 fault slack \
  $lists,topklen=query
expect "the same bits" 4 check $scopes
expect "the same bits" 7 check b=3,sq=3,h=40,sk=900,dqk=40,dv=32,page=16,visible=1,ragged=1
expect "the same bits" 4 check h=130,sk=900,dqk=64,dv=64,kv=f16,q=f16,out=bf16 --threads 2
# Interleaved: within their bound of fp64, the same bits with more threads.
whole=b=2,sq=3,h=11,sk=900,dqk=40,dv=36,page=16,lsesink=1,sinks=1
interleaved() {
  expect " $1 ranks interleaved by $3.*the same; no other row" "$1" check "$2" --interleave "$3" \
    --max-logits 1
}
interleaved 5 $dense 1
interleaved 3 $lists 1
interleaved 4 $scopes 3
interleaved 3 $whole,index=position,topk=99,invalid=10,scope2=topk:80/sk:500/page:9 2
interleaved 2 $whole,visible=1,ragged=1,window=70,out=bf16,pad=2,lse=2 1
interleaved 3 b=2,h=70,sk=900,dqk=64,dv=32,qrope=8,kvrope=8,csr=1,len=900/1 64
for fault in interleave negative memory page buffer lengths mask shard; do
  expect "nothing written: ok" 3 fault $fault h=4,sk=2000,dqk=40,dv=36,page=16 --interleave 1
done
expect " 3 ranks against one process.*: the same bits" 3 check h=9,sk=1,dqk=40,dv=36,page=16
steps=300
[ "${AMLA_LONG-}" != 1 ] || steps=2000
growing="steps h=2,sk=2500,dqk=20,dv=16,page=16"
expect " 0 with other bits" 4 $growing --steps $steps
expect " 0 beyond the bound" 3 $growing --steps 40 --interleave 1
for fault in scale problem memory page buffer lengths hole; do
  expect "nothing written: ok" 3 fault $fault h=4,sk=2000,dqk=40,dv=36,page=16
done
for n in 1 2 4; do # blocks of rows: cancelled in one, ranks are at work on the next
  expect "the same bits: ok" $n fault cancel b=2,h=150,sk=2000,dqk=40,dv=36,page=16
done
expect "the same bits: ok" 4 fault cancel h=3,sk=2000,dqk=40,dv=36,page=16

# Blocks of rows come while the next one is computed, by the order of events.
blocks=h=64,sq=6,sk=3072,dqk=20,dv=16,page=16
expect "came while the next one was computed: ok" 2 overlap $blocks
expect "came while the next one was computed: ok" 4 overlap $blocks
expect "came while the next one was computed: ok" 4 overlap $blocks --interleave 1
ranks 3 bench $blocks --rounds 1 --trace "$trace" > "$output" 2>&1 &&
  [ "$(grep -c "^[0-2] [0-5] " "$trace")" = 18 ] ||
  { cat "$output" "$trace" && echo "FAIL: the trace of 6 blocks on 3 ranks" && exit 1; }

# Against one process: of runs and of interleaved shards, each compared first.
small=h=4,sk=900,dqk=40,dv=36
duel() { # WORDS ARGUMENT...
  words=$1
  shift
  expect "duel .* 2 ranks: " 2 duel $small --rounds 2 "$@"
  grep -q "$words" "$output" || { cat "$output" && echo "FAIL: duel $*" && exit 1; }
}
duel "2 ranks against one process.*: the same bits"
duel "2 ranks interleaved by 1, .*the same; no other row" --interleave 1

# What a command does not know is refused by name, once.
refused() { # WORDS ARGUMENT...
  words=$1 status=0
  shift
  ranks 2 "$@" > "$output" 2>&1 || status=$?
  [ "$status $(grep -c -e "$words" "$output")" = "2 1" ] ||
    { cat "$output" && echo "FAIL: ranks $*: exit $status, not once '$words'" && exit 1; }
}
refused "measure: must be one of run check bench time duel overlap steps fault" measure $small
for command in run check time duel overlap steps; do
  refused "trace: must not be given but to bench" $command $small --trace "$trace"
done

# As a command of the program: one rank prints, files too, and usage is ours alone.
run_amla() { timeout 120 "$mpiexec" $more -n 2 "$amla" "$@" > "$output" 2>&1; }
says() { # WHAT WORDS...
  what=$1
  shift
  for words in "$@"; do
    [ "$(grep -c -e "$words" "$output")" = 1 ] ||
      { cat "$output" && echo "FAIL: $what: not once '$words'" && exit 1; }
  done
}
if [ -n "$amla" ]; then
  run_amla check --ranks $small || :
  says "amla check --ranks" "^fp64 .*ok" "^ranks *2 ranks.*same bits"
  run_amla bench $small,page=0 --ranks --rounds=2 || :
  says "amla bench --ranks" "^time .* bytes a rank.* not hidden"
  "$amla" gen -o "$trace" $small > "$output"
  run_amla run --ranks "$trace" || :
  says "amla run --ranks FILE" "^fp64 .*ok" "^time "
  ! run_amla check --ranks h=1,sk=9,topk=3 || { echo "FAIL: slots were taken" && exit 1; }
  says "a refusal" "index_kind=slot"
  status=0
  "$amla" check --ranks > "$output" 2>&1 || status=$?
  [ "$status $(wc -l < "$output")" = "2 1" ] ||
    { cat "$output" && echo "FAIL: amla check --ranks without a problem: exit $status" && exit 1; }
  alone=$(mktemp -d) status=0
  cp "$amla" "$alone/amla"
  "$alone/amla" check --ranks $small > "$output" 2>&1 || status=$?
  rm -r "$alone"
  [ $status = 1 ] || { echo "FAIL: amla without amla_ranks: exit $status" && exit 1; }
  says "amla without amla_ranks" "--ranks: there is no amla_ranks"
fi

# Ranks that stop and go on at random, in the middle of messages.
descendants() {
  for child in $(cat "/proc/$1/task/"*/children 2> /dev/null); do
    echo "$child"
    descendants "$child"
  done
}
rank_pids() {
  for pid in $(descendants "$1"); do
    [ "$(readlink "/proc/$pid/exe")" != "$(readlink -f "$program")" ] || echo "$pid"
  done
}
is_stopped() { grep -q "^State:[[:space:]]*T" "/proc/$1/status" 2> /dev/null; }
timeout 120 "$mpiexec" $more -n 4 "$program" $growing --steps 300 > "$output" 2>&1 &
job=$!
stopped=0 tries=0
for round in 1 2 3 4 5 6 7 8; do
  until pids=$(rank_pids "$job") && [ -n "$pids" ] || [ $((tries += 1)) -gt 100 ]; do
    sleep 0.05
  done
  for pid in $pids; do
    [ $((pid % 3)) = $((round % 3)) ] || kill -STOP "$pid" 2> /dev/null || :
  done
  sleep 0.1
  for pid in $pids; do
    ! is_stopped "$pid" || stopped=$((stopped + 1))
    kill -CONT "$pid" 2> /dev/null || :
  done
  sleep 0.05
done
wait "$job" && grep -q " 0 with other bits" "$output" ||
  { cat "$output" && echo "FAIL: stopped ranks" && exit 1; }
[ "$stopped" -gt 0 ] || { echo "FAIL: no rank was seen to stop" && exit 1; }

status=0
ranks 3 fault kill h=4,sk=2000,dqk=40,dv=36,page=16 > "$output" 2>&1 || status=$?
case $status in
0) echo "FAIL: a job without one of its ranks ended well" && exit 1 ;;
124) echo "FAIL: a job without one of its ranks ended at the time-out only" && exit 1 ;;
esac
echo "ok: bits, faults; $stopped stops of ranks; a killed rank ended its job"
