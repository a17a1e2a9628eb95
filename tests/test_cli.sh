#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The program amla as a user or a script meets it: help, exit codes (0 good, 1 error, 2 usage,
# 3 mismatch), messages, JSON, files in and out. Every check prints what it ran when it fails; all
# run before the verdict.
#
#     test_cli.sh AMLA SOURCE_DIR [FAIL_MALLOC]
#
# FAIL_MALLOC is fail_malloc.c as a shared object, to let allocations fail.
set -u
export LC_ALL=C
amla=$1 source_dir=$2 fail_malloc=${3-}
unset AMLA_ISA AMLA_NUM_THREADS AMLA_LOG
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
out=$scratch/stdout err=$scratch/stderr
checks=0 failures=0
case $(ldd "$amla" 2> /dev/null) in *lib?san*) sanitized=1 ;; *) sanitized= ;; esac
small=h=2,sk=20,dqk=8,dv=8

fail() {
  failures=$((failures + 1))
  echo "FAIL: $*"
  sed 's/^/  stdout: /' "$out" | head -5
  sed 's/^/  stderr: /' "$err" | head -5
}

# expect STATUS WORD ARGUMENT...: amla exits with STATUS, and WORD stands in what it prints. A run
# takes half a second for its timing, which is not what is asked here.
expect() {
  want=$1 word=$2
  shift 2
  [ "${1-}" != run ] || { shift && set -- run --for 0.01 "$@"; }
  checks=$((checks + 1))
  "$amla" "$@" > "$out" 2> "$err"
  status=$?
  [ $status = "$want" ] || { fail "amla $*: exit $status, want $want"; return; }
  [ -z "$word" ] || grep -qF -e "$word" "$out" "$err" ||
    { fail "amla $*: '$word' is not in its output"; return; }
  if [ "$want" = 0 ]; then
    # The address sanitizer warns of the simulator's coroutines, whatever they do.
    ! grep -qv "ASan doesn't fully support makecontext" "$err" ||
      fail "amla $*: good, but writes to stderr"
  else
    [ -s "$err" ] || [ "$want" = 3 ] || fail "amla $*: exit $want without a word on stderr"
  fi
}

# expect_json EXPRESSION ARGUMENT...: the output is JSON, and EXPRESSION is true of it as Python's
# `j`.
expect_json() {
  expression=$1
  shift
  expect 0 '' "$@"
  python3 -SE -c 'import json, sys
try: j = json.load(open(sys.argv[1]))
except ValueError: sys.exit("no JSON")
if not eval(sys.argv[2]): sys.exit("not true: " + sys.argv[2])' "$out" "$expression" 2> "$err" ||
    fail "amla $*"
}

# ---- Help and usage ----

expect 0 'Usage: amla' --help
expect 0 'amla 0.' --version
for command in info gen run check bench accuracy sim doctor; do
  expect 0 "Usage: amla $command" $command --help
  expect 0 'Examples:' $command --help
  expect 0 "amla $command" --help # the overview names it
  expect 2 --colour $command --colour
done
expect 2 'Usage: amla'
expect 2 "unknown command 'fly'" fly
expect 2 "unknown option '--fast'" --fast
expect 2 missing run
expect 2 'WHERE is missing' doctor
expect 1 'no such file' doctor "$scratch/none"
expect 2 missing gen $small
expect 2 missing gen -o "$scratch/none"
expect 2 "extra argument 'h=3'" run $small h=3
expect 2 "extra argument 'h=3'" gen $small h=3 -o "$scratch/none"
expect 2 --backend=gpu run $small --backend gpu
expect 2 --rescale=slow run $small --rescale slow
expect 2 --isa=sse9 run $small --isa sse9
expect 2 --threads=0 run $small --threads 0
expect 2 --threads=2x run $small --threads 2x
expect 2 --split=-4 run $small --split=-4
expect 2 --out=f64 run $small --out f64
expect 2 --out=q8_0 run $small --out q8_0
expect 2 --for=0 run $small --for 0
expect 2 --for=0 bench $small --for 0
expect 2 --for=abc bench $small --for abc
expect 2 --lengths= accuracy --lengths abc
expect 2 --lengths= accuracy --lengths 0
expect 2 --heads= accuracy --heads 0
[ ! -e "$scratch/none" ] || fail "a usage error wrote a file"

# ---- Refusals of problems, backends, environment ----

expect 1 'sk=0: must be >= 1' run h=2,sk=0
expect 1 'colour: unknown key' run h=2,colour=red
expect 0 'topk:512/sk:4096/page:64' help problem
expect 1 'topk: the kernel does not have it' sim "$small,topk=4"
expect 1 'ragged: the kernel does not have it' sim "$small,ragged=1"
expect 0 'keys     topk=4 extra_sk=9 extra_topk=3 extra_page=2' \
  run "$small,topk=4,scope2=topk:3/sk:9/page:2"
# One key 201 times: equal terms all round the same way, and the bound knows.
expect 0 yes check -b ref "b=1,sq=4,h=20,sk=365,dqk=10,dv=10,page=16,q=f16,kv=fp8_e4m3,scale=0.01,\
topk=11,scope2=topk:201/sk:1/page:0,topklen=sequence,invalid=10,dist=zerov,len=uniform,seed=903985"
expect 1 'causal=1: must be 0 with topk' run "$small,topk=4,causal=1"
expect 1 'csr=1: files hold none' gen "$small,csr=1" -o "$scratch/none.safetensors"
expect 0 '' gen "$small,sq=2,topk=4,scope2=sk:9" --ref -o "$scratch/lists.safetensors"
expect 0 "out_ref and lse_ref: ok" run "$scratch/lists.safetensors"
expect 0 yes check "$scratch/lists.safetensors" --backend ref
expect 0 '' gen h=2,sk=20,dqk=512,kv=fp8_584,topk=9 --ref -o "$scratch/bytes.safetensors"
expect 0 "out_ref and lse_ref: ok" run "$scratch/bytes.safetensors"
expect 1 'dv=600: must be <= dqk=576' gen dv=600 -o "$scratch/none"
expect 1 'h=x: must be an integer' check h=x
expect 1 'h=x: must be an integer' bench h=x --for 0.1
export AMLA_BACKEND_DIR=nowhere
expect 1 'backend=cuda' run $small --backend cuda
expect 1 'backend=npu' run $small --backend npu
unset AMLA_BACKEND_DIR
[ ! -e "$scratch/none" ] || fail "a refusal wrote a file"

# Every command tells what the library says of its environment; none reads it its own way.
expect_refused_environment() {
  for arguments in "info" "info --json" "gen $small -o $scratch/none" "run $small" \
    "run $small --threads 1" "check $small" "check $small --json" "check $small --backend ref" \
    "bench $small --for 0.1" "bench --backend cuda" "accuracy --lengths 64 --heads 1" \
    "sim b=2,h=16,sk=100" "sim --costs" "sim --table=paper" "doctor $source_dir"; do
    # shellcheck disable=SC2086
    expect 1 "$1" $arguments
  done
}
for value in zzz AVX2; do
  export AMLA_ISA=$value
  expect_refused_environment "AMLA_ISA=$value: must be c, "
done
unset AMLA_ISA
for value in abc 0 -3 1025; do
  export AMLA_NUM_THREADS=$value
  expect_refused_environment "AMLA_NUM_THREADS=$value: must be a number in 1..1024"
done
expect 0 'Usage: amla run' run --help
unset AMLA_NUM_THREADS
[ ! -e "$scratch/none" ] || fail "a refused environment wrote a file"

# No row compared is never ok.
for command in run check bench; do expect 1 'b=0: must be >= 1' $command b=0; done
expect 0 '' gen b=0,h=2,sk=20,dqk=8,dv=8 -o "$scratch/empty.safetensors"
for command in run check bench; do
  expect 1 'b=0: must be >= 1' $command "$scratch/empty.safetensors"
done
expect 0 '' run b=0 --no-check

# ---- The main job ----

run_keys="all(k in j for k in 'rel_error max_abs_error lse_max_abs_error ok seconds gflops \
  peak_gflops utilization isa backend rescale threads'.split())"
for name in deepseek_v3_decode deepseek_v2_lite_decode deepseek_v32_sparse; do
  file=$source_dir/examples/$name.safetensors
  expect 0 'GFLOP/s' run "$file"
  expect_json "$run_keys and j['ok'] is True and j['reference'] == 'file' and \
    j['rel_error'] < 1e-5 and j['lse_max_abs_error'] < 1e-4" run "$file" --json
  expect_json "len(j) == 3 and all(r['ok'] and r['rel_error'] < 1e-5 for r in j)" \
    check "$file" --backend cpu --json
done
expect_json "$run_keys and j['ok'] is True and j['reference'] == 'fp64'" \
  run b=2,sq=2,h=6,sk=300,len=ragged --json
expect_json "j['backend'] == 'ref' and j['ok'] is True" run $small --backend ref --json
expect_json "j['ok'] is None and 'rel_error' not in j" run $small --no-check --json
expect_json "j['ok'] and j['rel_error'] < 1e-2" run $small --out bf16 --json
expect_json "j['ok'] and j['threads'] == 3" run $small --threads 3 --json
expect_json "j['ok'] and j['isa'] == 'c'" run $small --isa c --json
export AMLA_ISA=c AMLA_NUM_THREADS=2
expect_json "j['ok'] and j['isa'] == 'c' and j['threads'] == 2" run $small --isa avx512 --json
expect_json "j['isa'] == 'c'" info --json
unset AMLA_ISA AMLA_NUM_THREADS
expect_json "{b['name'] for b in j['backends']} >= {'ref', 'cpu', 'cuda', 'npu'} and \
  all(b['available'] or b['reason'] for b in j['backends']) and \
  j['isa'] not in j['isas_missing'] and all(j['isas_missing'].values())" info --json
expect_json "j['ok']" run $small --p-form bf16 --q-form bf16x2 --kv-round bf16 --json

# ---- Measuring commands ----

bench_keys="all(k in r for r in j for k in 'gflops peak_gflops utilization median_utilization \
  seconds bytes_per_second limit threads isa backend rescale'.split())"
expect_json "len(j) == 6 and $bench_keys and \
  all(r['limit'] in ('compute', 'memory', 'fma', 'FMA') for r in j)" \
  bench $small h=3,sk=50,dqk=8,dv=8 --rescale all --for 0.1 --json
expect 0 GFLOP/s bench $small --for 0.1
expect_json "all(r['ok'] for r in j) and \
  {r['rescale'] for r in j} == {'lazy', 'amla', 'flash'} and \
  {r['backend'] for r in j} >= {'ref', 'cpu'} and \
  all(k in r for r in j for k in 'rel_error max_abs_error lse_max_abs_error ok'.split())" \
  check $small b=2,h=5,sk=99,len=ragged --json
expect 0 yes check $small
expect_json "j['backend'] == 'npu' and j['ok'] and j['simulated']" \
  run h=16,sk=300 --backend npu --json
expect_json "len(j) == 3 and all(r['ok'] for r in j)" check h=16,sk=300,sq=2 --backend npu --json
expect_json "j['simulated'] and j['races'] == 0 and j['cycles'] > 11000 and \
  0 < j['utilization'] < 1 and j['tflops'] > 0 and \
  {'cube', 'mte1', 'mte2', 'fix', 'vector'} <= set(j['pipes'])" \
  sim b=4,sq=2,sk=2000,len=ragged --json
expect 0 'races: 0' sim b=2,h=16,sk=600 --schedule serial --rescale flash --races \
  --trace "$scratch/trace.json"
python3 -c "import json, sys
t = json.load(open(sys.argv[1]))
assert any(e.get('ph') == 'X' and 'mmad' in e['name'] for e in t['traceEvents'])" \
  "$scratch/trace.json" || fail "the trace of amla sim"
[ "$sanitized" ] || expect 0 'held out' sim --validate # minutes, and nothing new for a sanitizer
expect 2 'must go with a PROBLEM alone' sim --costs --json
expect 2 'must go with a PROBLEM alone' sim --table=paper --json
expect 2 'must go with a PROBLEM alone' sim b=2 --search --trace "$scratch/none"
expect 2 'schedule=fast: unknown' sim b=2 --schedule fast
expect 2 'rescale=slow: must be one of lazy, amla, flash' sim b=2 --rescale slow
expect 2 'must be ideas' sim --table=none
expect 1 'chip=911: must be' sim b=2 --chip 911
expect 1 'q_type=f32: backend npu' sim b=2,q=f32
expect 0 'published unguarded add' sim b=2,sk=300 --rescale amla
expect 0 'guarded amla' sim b=2,sk=300 --rescale amla --guard
expect 1 'no such row' sim b=2,sk=600 --cost NONE/none=1,1,1
expect_json "{r['p'] for r in j} == {'f32', 'bf16', 'f16', 'bf16x2'} and \
  all('rescales_per_row' in r and 'rel_error' in r for r in j)" \
  accuracy --lengths 256 --heads 1 --json

# ---- AMLA_LOG ----

# expect_lines VALUE STATUS EXPRESSIONS ARGUMENT...: with AMLA_LOG=VALUE stderr is as many lines as
# there are extended regular expressions, one a line, and each is matched by its own.
expect_lines() {
  value=$1 want=$2
  printf '%s' "$3" > "$scratch/expressions"
  shift 3
  checks=$((checks + 1))
  AMLA_LOG=$value "$amla" "$@" > "$out" 2> "$err"
  status=$?
  [ $status = "$want" ] || { fail "AMLA_LOG=$value amla $*: exit $status, want $want"; return; }
  grep -v "ASan doesn't fully support makecontext" "$err" > "$scratch/lines"
  awk -v file="$scratch/expressions" '
    { ok = (getline expression < file) > 0 && $0 ~ "^" expression "$" }
    !ok { exit failed = 1 }
    END { exit failed || (getline expression < file) > 0 }' "$scratch/lines" ||
    fail "AMLA_LOG=$value amla $*: other lines than $(cat "$scratch/expressions")"
}
shape='amla: plan b=2 s_q=1 h_q=2 sk=20 d_qk=8 d_v=8 causal=1 page_size=64'
shape="$shape q=bf16 kv=bf16 out=f32: "
rate='GFLOP/s=[0-9]+\.[0-9]'
for mode in lazy amla; do
  expect_lines 1 0 "${shape}cpu c $mode, .*, 2 threads
amla: done plans=1 runs=[0-9]+ tokens=[0-9]+ $rate refusals=0" \
    run b=2,$small,causal=1 --isa c --threads 2 --rescale $mode --for 0.01
done
expect_lines 1 0 "${shape}ref lazy, .*
${shape}ref lazy, .*
${shape}ref amla, .*
${shape}ref flash, .*
amla: done plans=4 runs=4 tokens=8 $rate refusals=0" \
  check b=2,$small,causal=1 --backend ref --rescale all
lists="topk=4 extra_sk=9 extra_topk=3 extra_page_size=64"
expect_lines 1 0 "${shape%causal*}page_size=64 $lists q=.*
amla: done plans=1 runs=[0-9]+ tokens=[0-9]+ $rate refusals=0" \
  bench "b=2,$small,topk=4,scope2=topk:3/sk:9" --for 0.01
for refused in "run $small --backend cuda" "check $small,kv=q8_0,pad=1" 'bench sk=0'; do
  expect_lines 1 1 "amla ${refused%% *}: .*
amla: done plans=0 runs=0 tokens=0 GFLOP/s=0.0 refusals=1" $refused
done
expect_lines 1 0 '' --version
for value in 0 ''; do
  expect_lines "$value" 0 '' run $small --for 0.01
done

# ---- Files: a round trip ----

expect 0 '' gen b=3,sq=2,h=5,sk=70,dqk=24,dv=16,len=ragged,kv=f16,sinks=1,pad=3 \
  -o "$scratch/plain.safetensors"
expect_json "j['ok'] and j['reference'] == 'fp64'" run "$scratch/plain.safetensors" --json
expect 0 '' gen b=3,sq=2,h=5,sk=70,dqk=24,dv=16,len=ragged,q=f32,kv=f32 --ref \
  -o "$scratch/ref.safetensors"
expect_json "j['ok'] and j['reference'] == 'file' and j['refs_ok']" \
  run "$scratch/ref.safetensors" --json
expect 0 '' run "$scratch/ref.safetensors" -o "$scratch/result.safetensors"
python3 - "$scratch/result.safetensors" "$scratch/ref.safetensors" > "$out" 2> "$err" \
  << 'PYTHON' || fail "the result file differs from the reference"
import json, struct, sys

def load(path, name):
    raw = open(path, "rb").read()
    n = struct.unpack("<Q", raw[:8])[0]
    t = json.loads(raw[8:8 + n])[name]
    a, b = t["data_offsets"]
    assert t["dtype"] == "F32"
    return t["shape"], struct.unpack("<%df" % ((b - a) // 4), raw[8 + n + a:8 + n + b])

for name, shape in ("out", [3, 2, 5, 16]), ("lse", [3, 5, 2]):
    got, want = load(sys.argv[1], name), load(sys.argv[2], name + "_ref")
    assert got[0] == want[0] == shape, got[0]
    assert all(x == y or abs(x - y) < 1e-5 for x, y in zip(got[1], want[1])), name
PYTHON
checks=$((checks + 1))
leftover=$(find "$scratch" -name '*.safetensors.*')
[ -z "$leftover" ] || fail "temporary files are left: $leftover"

# ---- Files: corrupted ----

# corrupt IN OUT TENSOR BIT WHICH: flips one exponent bit of the non-zero element nearest to the
# fraction WHICH of the tensor.
corrupt() {
  python3 - "$@" << 'PYTHON'
import json, struct, sys

source, target, name, bit, which = sys.argv[1:]
raw = bytearray(open(source, "rb").read())
n = struct.unpack("<Q", raw[:8])[0]
t = json.loads(bytes(raw[8:8 + n]))[name]
size, first_exponent_bit = {"F32": (4, 23), "BF16": (2, 7), "F16": (2, 10)}[t["dtype"]]
begin, end = (8 + n + x for x in t["data_offsets"])
at = begin + int(float(which) * ((end - begin) // size - 1)) * size
while not any(raw[at:at + size]):
    at += size
x = int.from_bytes(raw[at:at + size], "little") ^ 1 << first_exponent_bit + int(bit)
raw[at:at + size] = x.to_bytes(size, "little")
open(target, "wb").write(raw)
PYTHON
}

bad=$scratch/bad.safetensors
for name in deepseek_v3_decode deepseek_v2_lite_decode deepseek_v32_sparse; do
  file=$source_dir/examples/$name.safetensors
  for what in 'q 0 0' 'q 3 0.37' 'q 0 1' 'out_ref 0 0' 'out_ref 0 0.6' 'out_ref 3 1' \
    'lse_ref 0 0.5'; do
    # shellcheck disable=SC2086
    set -- $what
    corrupt "$file" "$bad" "$1" "$2" "$3" || fail "cannot corrupt $what"
    expect 3 MISMATCH run "$bad"
  done
done
expect 3 '"ok": false' run "$bad" --json
expect 3 '' run "$bad" --json --rescale flash
# A page in use or NaN of an unused one: never a crash.
corrupt "$scratch/ref.safetensors" "$bad" kv_cache 2 0.5
"$amla" run "$bad" > "$out" 2> "$err"
case $? in 0 | 3) ;; *) fail "a corrupted kv_cache: neither good nor a mismatch" ;; esac

size=$(wc -c < "$scratch/ref.safetensors")
for keep in 0 7 8 100 $((size / 2)) $((size - 1)); do
  head -c "$keep" "$scratch/ref.safetensors" > "$bad"
  expect 1 bad.safetensors run "$bad"
done
printf 'not a problem' > "$bad"
expect 1 'header length' run "$bad"
expect 1 'No such file' run "$scratch/nothing.safetensors"
expect 1 'not a directory' run "$scratch"
expect 1 'No such file' check "$scratch/nothing.safetensors"
expect 1 'No such file' bench "$scratch/nothing.safetensors" --for 0.1

# ---- Pipes ----

# expect_pipe STATUS WORD COMMAND: reads what COMMAND writes, perhaps for ever, in 2 GB of
# addresses.
expect_pipe() {
  checks=$((checks + 1))
  sh -c "$3" 2> /dev/null |
    (ulimit -v 2000000 && exec timeout 60 "$amla" run /dev/stdin > "$out" 2> "$err")
  status=$?
  [ $status = "$1" ] || fail "$3 | amla run /dev/stdin: exit $status, want $1"
  grep -qF -e "$2" "$out" "$err" || fail "$3 | amla run /dev/stdin: no '$2'"
}
# header TEXT: its length and itself
header() {
  python3 -c 'import sys
t = sys.argv[1].encode()
sys.stdout.buffer.write(len(t).to_bytes(8, "little") + t)' "$1" > "$scratch/header"
}
if [ -z "$sanitized" ]; then # sanitizers want terabytes of addresses
  expect_pipe 0 'ok' "cat '$scratch/ref.safetensors'"
  expect_pipe 1 'header length 754645927544294009: must be <= 100000000' "yes y"
  expect_pipe 1 'belongs to no tensor' "cat '$scratch/ref.safetensors' /dev/zero"
  expect_pipe 1 'bytes that follow' "head -c 100 '$scratch/ref.safetensors'"
  header '{"q":{"dtype":"U8","shape":[4611686018427387904],"data_offsets":[0,4611686018427387904]}}'
  expect_pipe 1 "half of this machine's memory" "cat '$scratch/header' /dev/zero"
  header '{"q":{"dtype":"U8","shape":[4000000000],"data_offsets":[0,4000000000]}}'
  # 4 GB: out of addresses, or half the memory.
  expect_pipe 1 '4000000' "cat '$scratch/header' /dev/zero"
fi

# ---- Output that cannot be written ----

expect 1 'cannot write' gen $small -o "$scratch/no/such/folder"
expect 1 'cannot write' gen $small -o "$scratch"
expect 1 'cannot write' run $small -o "$scratch/no/such/folder"
if [ -w /dev/full ]; then
  expect 1 'cannot write' gen $small -o /dev/full
  for arguments in "--help" "run --help" "run $small" "run $small --json" "check $small" \
    "check $small --json" "bench $small --for 0.1" "bench $small --for 0.1 --json" \
    "accuracy --lengths 64 --heads 1" "info --json"; do
    checks=$((checks + 1))
    # shellcheck disable=SC2086
    "$amla" $arguments > /dev/full 2> "$err"
    status=$?
    [ $status = 1 ] || fail "amla $arguments > /dev/full: exit $status, want 1"
    [ -s "$err" ] || fail "amla $arguments > /dev/full: no message"
  done
fi

# The end of a picture, a trace or a file is missing: ulimit counts blocks of 512 bytes, or of 1024.
expect_short() {
  checks=$((checks + 1))
  (ulimit -f 2 && exec "$amla" "$@" > /dev/null) 2> "$err"
  status=$?
  [ $status = 1 ] || fail "amla $* on a full disk: exit $status, want 1"
  [ -s "$err" ] || fail "amla $* on a full disk: no message"
}
expect_short gen h=2,sk=200,dqk=8,dv=8 -o "$scratch/short.safetensors"
expect_short sim b=2,h=16,sk=100 --trace "$scratch/short.json"
if command -v gnuplot > /dev/null; then
  for type in svg png; do
    expect 0 '' accuracy --lengths 64 --heads 1 --plot "$scratch/whole.$type"
    [ $type = png ] || grep -q 'distribution of the scores' "$scratch/whole.svg" ||
      fail "accuracy --plot: an axis without a title"
    expect_short accuracy --lengths 64 --heads 1 --plot "$scratch/short.$type"
    expect_short sim b=2,h=16,sk=100 --plot "$scratch/short.$type"
  done
  expect 0 '' bench h=2,sk=64 h=2,sk=128,kv=q8_0 h=2,sk=64,topk=32 --for 0.01 \
    --plot "$scratch/curves.svg"
  for curve in kv=bf16 kv=q8_0 kv=bf16,topk=32; do
    grep -q "<text>b=1,sq=1,h=2,$curve " "$scratch/curves.svg" || fail "bench --plot: no $curve"
  done
  # Text of 12 px: the legend's first line is 16 px or more below the axis title.
  awk '/translate/ { split($0, at, /[,()]/); y = at[3] } /<text>KV tokens/ { title = y }
    /<text>b=1/ && y - title < 16 { bad = 1 } END { exit bad || !title }' "$scratch/curves.svg" ||
    fail "bench --plot: the legend touches an axis title"
fi
leftover=$(find "$scratch" -name 'short.*' ! -name short.json) # the library writes traces in place
[ -z "$leftover" ] || fail "a full disk leaves $leftover"

# ---- Output over input ----

input=$scratch/input.safetensors
expect 0 '' gen h=2,sk=20,dqk=8,dv=8 -o "$input"
cp "$input" "$scratch/kept"
mkdir "$scratch/folder"
ln -s "$input" "$scratch/symbolic"
ln -s "$scratch" "$scratch/folder/up"
ln "$input" "$scratch/hard"
cp "$input" "$scratch/picture.svg"
for output in "$input" "$scratch/symbolic" "$scratch/hard" "$scratch/folder/../input.safetensors" \
  "$scratch/folder/up/input.safetensors"; do
  expect 1 "--output=$output: must not be the file $input" run "$input" -o "$output"
done
expect 1 "must not be the file $scratch/symbolic" run "$scratch/symbolic" -o "$input"
"$amla" run /dev/stdin -o "$input" < "$input" > "$out" 2> "$err" &&
  fail "run /dev/stdin -o its file: good"
cmp -s "$input" "$scratch/kept" || fail "run -o wrote over its input"
if command -v gnuplot > /dev/null; then
  expect 1 'must not be the file' bench "$small" "$scratch/picture.svg" \
    --plot "$scratch/picture.svg"
  cmp -s "$scratch/picture.svg" "$scratch/kept" || fail "bench --plot wrote over its input"
  both=$scratch/both.svg
  expect 1 'must not be the file' sim b=2,h=16,sk=100 --trace "$both" --plot "$both"
  [ ! -e "$both" ] || fail "a trace and a picture on one file"
fi
for arguments in "run $small --output" "sim b=2,h=16,sk=100 --trace"; do
  # shellcheck disable=SC2086
  "$amla" $arguments "$scratch/report" > "$scratch/report" 2> "$err" &&
    fail "amla $arguments onto its report: good"
  [ ! -s "$scratch/report" ] || fail "amla $arguments onto its report: wrote it"
done
expect 0 '' run "$input" -o "$scratch/other"

# ---- JSON that cannot be made ----

odd=$scratch/$(printf 'odd\377name')
cp "$input" "$odd"
for command in "run" "check" "bench --for 0.1"; do
  # shellcheck disable=SC2086
  expect_json "'\ufffdname' in (j if isinstance(j, dict) else j[0])['problem']" \
    $command "$odd" --json
done

mkdir "$odd.folder"
"$amla" doctor "$odd.folder" > "$out" 2> "$err"
grep -qF '�name' "$out" || fail "amla doctor $odd.folder: the finding is lost"

# Whichever allocation fails: all of the output, or exit 1 and words. glibc itself ends with 127
# where a thread's data has no room.
if [ -n "$fail_malloc" ]; then
  set -- check $small --backend ref --rescale lazy --json
  "$amla" "$@" > "$scratch/whole.json"
  total=$(AMLA_FAIL_AT=0 LD_PRELOAD=$fail_malloc "$amla" "$@" 2>&1 > /dev/null | tail -1)
  [ "$total" -gt 50 ] || fail "allocations are not counted: '$total'"
  for n in $(seq "$total"); do
    checks=$((checks + 1))
    AMLA_FAIL_AT=$n LD_PRELOAD=$fail_malloc "$amla" "$@" > "$out" 2> "$err"
    case $? in
    0)
      cmp -s "$out" "$scratch/whole.json" ||
        fail "amla $*: allocation $n of $total fails: good, but not whole"
      ;;
    1 | 127) [ -s "$err" ] || fail "amla $*: allocation $n of $total fails: no word" ;;
    *) fail "amla $*: allocation $n of $total fails: a crash" ;;
    esac
  done
fi

[ $failures = 0 ] || { echo "$failures of $checks checks failed"; exit 1; }
echo "ok: $checks checks"
