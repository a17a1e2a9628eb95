#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# One decode step over ranks in network namespaces of their own, that meet over TCP on a veth pair,
# has the bits of one process. Open MPI's launcher enters the namespaces. It needs root and ip(8):
# skipped with a reason elsewhere (exit 77).
#
#     test_mpi_tcp.sh AMLA_RANKS MPIEXEC
set -eu
program=$1
mpiexec=$2
name=amla$$
scratch=$(mktemp -d)
clean() {
  for i in 1 2; do
    ip netns del $name.$i 2> /dev/null || :
  done
  rm -rf "$scratch"
}
trap clean EXIT
skip() { echo "skipped: $1" && exit 77; }
fail() { cat "$scratch/output" 2> /dev/null && echo "FAIL: $1" && exit 1; }

"$mpiexec" --version 2>&1 | grep -qi "open mpi\|openrte" || skip "$mpiexec is not Open MPI's"
command -v ip > /dev/null && command -v unshare > /dev/null || skip "no ip or no unshare"
ip netns add $name.1 2> "$scratch/why" || skip "$(cat "$scratch/why")"
ip netns add $name.2
ip -n $name.1 link add veth0 type veth peer name veth0 netns $name.2 2> "$scratch/why" ||
  skip "$(cat "$scratch/why")"
for i in 1 2; do
  ip -n $name.$i address add 10.77.0.$i/24 dev veth0
  ip -n $name.$i link set veth0 up
  ip -n $name.$i link set lo up
done

# Enters the namespace of host 10.77.0.N, under a host name of its own. What MPI calls it with is
# AGENT HOST COMMAND...
cat > "$scratch/enter" <<END
#!/bin/sh
host=\$1
shift
exec ip netns exec $name.\${host##*.} unshare -u sh -c "hostname rank-\${host##*.} && \$*"
END
chmod +x "$scratch/enter"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
export ASAN_OPTIONS="detect_leaks=0 ${ASAN_OPTIONS-}" # MPI's own
count() { ip netns exec $name.2 cat /sys/class/net/veth0/statistics/rx_bytes; }

check() { # ARGUMENT...
  before=$(count)
  timeout 60 "$scratch/enter" 10.77.0.1 "$mpiexec" --mca plm_rsh_agent "$scratch/enter" \
    --mca btl self,tcp --mca btl_tcp_if_include veth0 --mca oob_tcp_if_include veth0 \
    --mca pml ob1 --oversubscribe --host 10.77.0.1:2,10.77.0.2:2 -n 4 \
    "$program" check "$@" > "$scratch/output" 2>&1 || fail "check $*: exit $?"
  grep -q "$words" "$scratch/output" || fail "check $*: no '$words'"
  crossed=$(($(count) - before))
  [ "$crossed" -gt 30000 ] || fail "check $*: $crossed bytes crossed the wire"
}
problem=b=2,sq=2,h=37,sk=1500,dqk=40,dv=36,page=16,causal=1,len=1500/700,sinks=1
words=" 4 ranks against one process.*: the same bits"
check $problem
words=" 4 ranks interleaved by 1.*the same; no other row"
check $problem --interleave 1
echo "ok: the same bits over TCP between two network namespaces, $crossed bytes on the wire"
