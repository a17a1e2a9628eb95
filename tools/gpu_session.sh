#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Everything that is to be measured on a GPU, in the order in which it is worth knowing, within 25 minutes.
#
#     tools/gpu_session.sh prepare FOLDER            where nvcc and the build's packages are: builds, and fills FOLDER with what runs
#     tools/gpu_session.sh run FOLDER OUT [STEP...]  where the GPU is: each step's output to OUT/STEP.txt, one line of verdict per step
#
# The GPU's machine needs a driver and nothing else: FOLDER brings the libraries. compute-sanitizer, nvidia-smi and a python3 with PyTorch are
# used if they are there. Steps, with their time limits in seconds:
#
#     device     60   what it is; the rate of a large matrix product through PyTorch, if there
#     peak       60   the micro-benchmark: where Q should be (docs/cuda-kernel.md, "Questions for the first GPU")
#     correct   300   the tests of the CUDA backend: every kernel, shapes, properties, 1,000 random problems against fp64
#     sanitize  240   memcheck and racecheck on small shapes
#     targets   360   the project's targets: kernel and end to end, useful and FlashMLA's counting, limits of the same run
#     portable  120   the mma.sync kernels on the same GPU
#     small     120   latency at 16 heads and small batches: split_tokens=auto beside the batch-invariant rule; flash beside lazy
set -eu

usage() { sed -n '5,8p' "$0" >&2; exit 2; }

prepare() { # FOLDER
  source_dir=$(cd "$(dirname "$0")/.." && pwd)
  mkdir -p "$1"
  folder=$(cd "$1" && pwd)
  cmake -S "$source_dir" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DAMLA_BUILD_TESTS=ON -DAMLA_BUILD_CUDA=ON -DAMLA_BUILD_GGML=OFF
  cmake --build "$folder/build" -j "$(getconf _NPROCESSORS_ONLN)" --target amla_cli test_cuda_decode amla_cuda
  mkdir -p "$folder/bin" "$folder/lib"
  cp "$folder/build/amla" "$folder/build/amla_peak" "$folder/build/test_cuda_decode" "$folder"/build/libamla_cuda.so.*.* "$folder/bin"
  for library in $(ldd "$folder/build/amla" "$folder/build/test_cuda_decode" | sed -n 's/^.*=> \(\/[^ ]*\(jansson\|cmocka\|gomp\)[^ ]*\) .*$/\1/p' | sort -u); do
    cp -L "$library" "$folder/lib"
  done
  rm -rf "$folder/build"
  du -sh "$folder"
}

# step NAME SECONDS COMMAND...: to OUT/NAME.txt; a failure does not stop the others
step() {
  name=$1 limit=$2
  shift 2
  case " $steps " in *" $name "*) ;; *) return 0 ;; esac
  start=$(date +%s)
  rc=0
  timeout "$limit" "$@" > "$out/$name.txt" 2>&1 || rc=$?
  printf '%-9s %3d s  exit %d  %s\n' "$name" $(($(date +%s) - start)) "$rc" "$(tail -n 1 "$out/$name.txt" | cut -c1-100)" | tee -a "$out/summary.txt"
}

step_device() {
  nvidia-smi || :
  "$bin/amla" info
  python3 - << 'END' || :
import torch
a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
times = []
for i in range(23):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(); a @ b; end.record(); end.synchronize()
    times.append(start.elapsed_time(end))
times = sorted(times[3:])
print("torch bf16 8192^3: best %.1f, median %.1f TFLOP/s" % tuple(2 * 8192**3 / t * 1e-9 for t in (times[0], times[10])))
END
}
step_sanitize() {
  command -v compute-sanitizer || { echo "compute-sanitizer is not here"; exit 1; }
  for tool in memcheck racecheck; do
    for filter in 'bad_*' 'nan_*' 'slots_*'; do compute-sanitizer --tool "$tool" --error-exitcode 1 "$bin/test_cuda_decode" "$filter"; done
  done
}
step_portable() {
  for kernel in mma64 mma32; do AMLA_CUDA_KERNEL=$kernel "$bin/amla" bench --backend cuda b=128,sq=2,sk=4096 b=128,sk=4096 b=128,h=16,sk=4096 --for 0.5; done
}
step_small() {
  shapes='b=1,h=16,sk=1024 b=1,h=16,sk=4096 b=1,h=16,sk=16384 b=1,h=16,sk=65536 b=2,h=16,sk=4096 b=4,h=16,sk=4096 b=8,h=16,sk=1024 b=8,h=16,sk=16384 b=8,h=16,sk=65536'
  echo "split by length: batch-invariant"
  "$bin/amla" bench --backend cuda $shapes --for 0.2
  echo "split auto"
  "$bin/amla" bench --backend cuda --split auto $shapes --for 0.2
  echo "flash instead of lazy"
  "$bin/amla" bench --backend cuda --rescale flash b=128,sq=2,sk=4096 b=128,sk=4096 --for 0.5
}

run() { # FOLDER OUT [STEP...]
  bin=$(cd "$1" && pwd)/bin
  LD_LIBRARY_PATH=$(cd "$1" && pwd)/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  AMLA_BACKEND_DIR=$bin
  mkdir -p "$2"
  out=$(cd "$2" && pwd)
  shift 2
  steps=${*:-device peak correct sanitize targets portable small}
  export LD_LIBRARY_PATH AMLA_BACKEND_DIR bin
  self=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
  step device 60 sh "$self" inner device
  step peak 60 "$bin/amla_peak"
  step correct 300 "$bin/test_cuda_decode"
  step sanitize 240 sh "$self" inner sanitize
  step targets 360 "$bin/amla" bench --backend cuda --for 0.5
  step portable 120 sh "$self" inner portable
  step small 120 sh "$self" inner small
}

case ${1-} in
prepare) [ $# -eq 2 ] || usage; prepare "$2" ;;
run) [ $# -ge 3 ] || usage; shift; run "$@" ;;
inner) "step_$2" ;;
*) usage ;;
esac
