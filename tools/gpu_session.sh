#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What is worth knowing of a GPU that is at hand for minutes, in the order in which one wants to
# know it.
#
#     tools/gpu_session.sh prepare FOLDER [CMAKE_ARGUMENT...]
#     tools/gpu_session.sh run FOLDER OUT
#
# prepare builds what runs into FOLDER, where nvcc is. run takes about nine minutes, where the GPU
# is. FOLDER brings the libraries; /build*/ is ignored by git, so build-gpu can be carried. The
# GPU's machine needs a driver and coreutils. nvidia-smi, compute-sanitizer, ncu and a python3 with
# PyTorch are used if they are there. Each step is a process of its own with a limit of its own. A
# failure or a hang stops no other step. Three files are written as results come: all.txt,
# summary.txt (a line a step), clocks.csv.
#
#     AMLA_SESSION_SECONDS   560: no step begins when they are over
#     AMLA_SESSION_DRY=1     the same commands on shapes that an emulation can bear, with long
#                            limits
#     AMLA_LIMIT_step        seconds of the step of that name
set -eu

usage() { sed -n '7,8p' "$0" >&2; exit 2; }

# ---- Where nvcc is ----

prepare() { # FOLDER [CMAKE_ARGUMENT...]
  source_dir=$(cd "$(dirname "$0")/.." && pwd)
  mkdir -p "$1"
  folder=$(cd "$1" && pwd)
  shift
  rm -rf "$folder/bin" "$folder/lib"
  cmake -S "$source_dir" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DAMLA_BUILD_CLI=ON \
    -DAMLA_BUILD_TESTS=ON -DAMLA_BUILD_CUDA=ON -DAMLA_BUILD_GGML=OFF "$@"
  native=
  [ "$(uname -m)" != x86_64 ] || native=native_rows
  # shellcheck disable=SC2086 # none or one
  cmake --build "$folder/build" -j "$(getconf _NPROCESSORS_ONLN)" \
    --target amla_cli test_cuda_decode amla_cuda $native
  mkdir -p "$folder/bin" "$folder/lib"
  for file in amla amla_peak amla_probe test_cuda_decode $native; do
    cp "$folder/build/$file" "$folder/bin"
  done
  cp -L "$folder"/build/libamla_cuda.so.* "$folder/bin"
  for library in $(ldd "$folder/build/amla" "$folder/build/test_cuda_decode" |
    sed -n 's/^.*=> \(\/[^ ]*\(jansson\|cmocka\|gomp\)[^ ]*\) .*$/\1/p' | sort -u); do
    cp -L "$library" "$folder/lib"
  done
  rm -rf "$folder/build"
  kib=$(du -sk "$folder" | cut -f 1)
  echo "$folder: $kib KiB"
  [ "$kib" -lt 65536 ] || { echo "More than 64 MiB: it cannot be carried" >&2; exit 1; }
}

# ---- Where the GPU is ----

left() { echo $((seconds - $(date +%s) + began)); }

# step NAME SECONDS COMMAND...: what it prints to all.txt, a line of verdict to summary.txt
step() {
  name=$1 limit=$2
  shift 2
  [ -z "$dry" ] || limit=$((20 * limit))
  eval "limit=\${AMLA_LIMIT_$name:-$limit}"
  if [ "$(left)" -le 8 ]; then
    echo "$name: no time left for $*" | tee -a "$out/summary.txt"
    return 0
  fi
  [ "$limit" -le "$(left)" ] || limit=$(left)
  start=$(date +%s) rc=0
  echo "## $name: $*" >> "$out/all.txt"
  timeout -k 5 "$limit" stdbuf -oL "$@" >> "$out/all.txt" 2>&1 || rc=$?
  printf '%-9s %4d s  exit %3d  %s\n' "$name" $(($(date +%s) - start)) "$rc" \
    "$(tail -n 1 "$out/all.txt" | cut -c1-110)" | tee -a "$out/summary.txt"
}

# problem STRING: the string, or a small one with the same options
problem() {
  if [ -z "$dry" ]; then echo "$1"; return; fi
  echo "$1" | sed 's/b=[0-9]*/b=1/; s/h=[0-9]*/h=3/; s/sk=4096/sk=70/; s/sk=16384/sk=71/
    s/sk=65536/sk=72/; s/sk=1024/sk=73/'
}

# bench NAME SECONDS KERNEL OPTIONS PROBLEM...: each a process, so that a hang takes one row
bench() {
  label=$1 bench_limit=$2 kernel=$3 bench_options=$4
  shift 4
  for text; do
    # shellcheck disable=SC2086 # options are words
    step "$label" "$bench_limit" env AMLA_CUDA_KERNEL="$kernel" "$bin/amla" bench --backend cuda \
      "$(problem "$text")" --for "$bench_seconds" $bench_options
  done
}

step_device() {
  nvidia-smi || :
  "$bin/amla" info
  # What the CPU side could time there.
  grep -o 'amx[^ ]*\|avx512[^ ]*' /proc/cpuinfo | sort -u | tr '\n' ' '
  echo
}

step_torch() { # the limit that the targets are held against, beside our own amla_peak
  python3 - << 'END'
import torch
a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
times = []
for i in range(23):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(); a @ b; end.record(); end.synchronize()
    times.append(start.elapsed_time(end))
times = sorted(times[3:])
best, median = (2 * 8192**3 / t * 1e-9 for t in (times[0], times[10]))
print("torch bf16 8192^3: best %.1f, median %.1f TFLOP/s" % (best, median))
END
}

sanitize() { # TOOL SECONDS
  command -v compute-sanitizer > /dev/null || return 0
  step "$1" "$2" compute-sanitizer --tool "$1" --error-exitcode 1 "$bin/test_cuda_decode" 'bad_*'
}

profile() {
  command -v ncu > /dev/null || return 0
  step ncu 60 ncu --clock-control none -k regex:amla_decode -s 2 -c 1 --section SpeedOfLight \
    --section WarpStateStats --section MemoryWorkloadAnalysis_Tables \
    "$bin/amla" bench --backend cuda \
    "$(problem "b=128,h=128,sq=2,sk=4096$as_flashmla")" --for 0.01
}

steps() {
  inner="sh $self inner"
  as_flashmla=,page=64,out=bf16
  # shellcheck disable=SC2086 # $inner is words
  step device 15 $inner device
  # Every instruction alone: if a kernel is wrong, which one was misread.
  step probe 30 "$bin/amla_probe"
  for kernel in mma64 mma32 wgmma2 wgmma3; do bench smoke 15 $kernel '' b=1,h=16,sk=64,page=64; done
  for kernel in wgmma3 wgmma2; do bench smoke 15 $kernel '' b=3,sq=2,h=40,sk=200,page=64; done
  bench smoke 15 wgmma3c '' b=1,sq=22,h=3,sk=200,page=64
  bench smoke 15 wgmma16 '' b=1,h=16,sk=200,page=64
  sanitize memcheck 45
  for test in 'shapes_*' 'bad_*' 'nan_*' 'stages_*' 'slots_*' 'company_*' 'equal_*' \
    'pages_*' 'captured_*' 'clusters_*' 'few_*'; do
    step correct 30 "$bin/test_cuda_decode" "$test"
  done
  for pass in 1 2; do # the headlines, each kernel beside the other, twice
    for shape in b=128,h=128,sq=2,sk=4096 b=128,h=128,sk=4096; do
      for kernel in wgmma3 wgmma2 wgmma3c; do
        bench "target$pass" 25 $kernel '' $shape$as_flashmla
      done
    done
    # shellcheck disable=SC2086
    [ $pass = 2 ] || step torch 40 $inner torch
  done
  step peak 20 "$bin/amla_peak"
  bench small 20 wgmma3 '' b=128,h=16,sk=4096$as_flashmla b=1,h=16,sk=1024$as_flashmla \
    b=1,h=16,sk=65536$as_flashmla b=2,h=16,sk=4096$as_flashmla b=4,h=16,sk=4096$as_flashmla \
    b=8,h=16,sk=4096$as_flashmla
  bench small 20 wgmma16 '' b=128,h=16,sk=4096$as_flashmla b=8,h=16,sk=1024$as_flashmla
  bench long 25 wgmma3 '' b=128,h=128,sq=2,sk=16384$as_flashmla
  step random 90 "$bin/test_cuda_decode" 'random_*'
  bench portable 20 mma64 '' b=128,h=128,sq=2,sk=4096$as_flashmla b=128,h=16,sk=4096$as_flashmla
  bench flash 20 wgmma3 '--rescale flash' b=128,h=128,sq=2,sk=4096$as_flashmla
  bench auto 10 wgmma3 '--split auto' \
    b=1,h=16,sk=1024$as_flashmla b=1,h=16,sk=65536$as_flashmla b=2,h=16,sk=4096$as_flashmla \
    b=4,h=16,sk=4096$as_flashmla b=8,h=16,sk=4096$as_flashmla
  [ ! -x "$bin/native_rows" ] || step native 60 "$bin/native_rows" # the CPU's turn
  profile
  sanitize racecheck 60
}

run() { # FOLDER OUT
  bin=$(cd "$1" && pwd)/bin
  LD_LIBRARY_PATH=$(cd "$1" && pwd)/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  AMLA_BACKEND_DIR=$bin
  export LD_LIBRARY_PATH AMLA_BACKEND_DIR bin
  mkdir -p "$2"
  out=$(cd "$2" && pwd)
  self=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
  began=$(date +%s) seconds=${AMLA_SESSION_SECONDS:-560} dry=${AMLA_SESSION_DRY:-} bench_seconds=0.3
  [ -z "$dry" ] || bench_seconds=0.001
  smi=
  if command -v nvidia-smi > /dev/null; then # reads only
    nvidia-smi --query-gpu=timestamp,name,clocks.sm,clocks.mem,power.draw,temperature.gpu \
      --format=csv -lms 200 > "$out/clocks.csv" 2>&1 &
    smi=$!
  fi
  trap '[ -z "$smi" ] || kill "$smi" 2> /dev/null || :' EXIT
  steps
}

case ${1-} in
prepare) [ $# -ge 2 ] || usage; shift; prepare "$@" ;;
run) [ $# -eq 3 ] || usage; shift; run "$@" ;;
inner) "step_$2" ;;
*) usage ;;
esac
