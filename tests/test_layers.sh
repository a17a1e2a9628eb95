#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The layer check: who may include or import whom (the arrows of DESIGN.md), and the habits of the
# tree that a machine can see. Then it plants violations of each kind in a copy of the tree and
# demands that each is found.
#
#     test_layers.sh SOURCE_DIR
set -eu
export LC_ALL=C
source_dir=$(cd "$1" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

list_files() { # of the tree in the current folder, without builds and other people's folders
  find . -name .git -prune -o -path './build*' -prune -o -path './shared' -prune -o \
    -path './fuzz/corpus' -prune -o -name __pycache__ -prune -o -name '.*_cache' -prune -o \
    -name .cache -prune -o -type f -print | sed 's|^\./||' | sort
}

# Includes of every file in C, C++ or CUDA: "FILE DELIMITER NAME".
list_includes() {
  list_files | grep -E '\.(c|h|def|cu|cuh|cpp|hpp)$' | tr '\n' '\0' | xargs -0 awk '
    /^[ \t]*#[ \t]*include[ \t]*[<"]/ {
    match($0, /[<"][^>"]*[>"]/)
    print FILENAME, substr($0, RSTART, 1), substr($0, RSTART + 1, RLENGTH - 2) }'
}

check_includes() {
  list_files | grep -E '\.(h|def|cuh|hpp)$' > "$scratch/headers" || :
  list_includes | awk '
    BEGIN {
      # A layer, and the folders whose headers it may include ("src" is src/*.h itself).
      allowed["include"] = "include"
      allowed["spec"] = "spec"
      allowed["src/base"] = "src/base include"
      allowed["src/ref"] = "src/ref src src/base include spec"
      allowed["src/cpu"] = "src/cpu src src/base include"
      allowed["src"] = "src src/ref src/cpu src/base include"
      allowed["src/cuda"] = "src/cuda src src/base include"
      allowed["src/npu"] = "src/npu src src/base include sim"
      allowed["sim"] = "sim"
      allowed["harness"] = "harness include spec"
      allowed["cli"] = "cli include harness spec"
      allowed["fuzz"] = "fuzz include harness spec"
      allowed["bench"] = "bench include harness spec"
      allowed["tests/cuda_emulated"] = "tests/cuda_emulated include src/base src/cuda"
      twin["src/cuda/cuda_machine.cuh"] = "cuda_machine_emulated.hpp" # for want of nvcc
      allowed["tests"] = "tests include harness spec sim " \
                         "src src/base src/cpu src/ref src/npu src/cuda"
      allowed["examples"] = "include"
      allowed["ggml"] = "ggml include"
      allowed["ggml/bench"] = "ggml/bench ggml include harness"
      allowed["mpi"] = "mpi include harness"
      # Headers that are not ours: ISO C everywhere; POSIX and libraries where they belong.
      n = split("assert ctype errno fenv float inttypes limits math stdalign stdarg stdatomic " \
                "stdbool stddef stdint stdio stdlib string time", iso)
      for (i = 1; i <= n; i++) is_iso[iso[i] ".h"] = 1
      # Detection, and permission for tiles.
      system_of["src/base"] = "cpuid.h unistd.h sys/auxv.h sys/syscall.h"
      system_of["src/ref"] = "omp.h"
      system_of["src/cpu"] = "omp.h sched.h"
      system_of["src/cuda"] = "cuda.h cuda_runtime.h cuda_bf16.h cuda_fp16.h mutex vector"
      system_of["include"] = "mpi.h" # amla_mpi.h
      system_of["mpi"] = "POSIX mpi.h simgrid/barrier.h"
      system_of["src"] = "omp.h dlfcn.h fcntl.h pthread.h sched.h unistd.h sys/stat.h"
      system_of["src/npu"] = "c_api/asc_simd.h"
      system_of["sim"] = "ucontext.h sys/mman.h"
      system_of["fuzz"] = "omp.h jansson.h POSIX"
      system_of["harness"] = system_of["fuzz"] " dlfcn.h"
      system_of["cli"] = system_of["fuzz"] " argp.h dlfcn.h"
      system_of["bench"] = system_of["fuzz"] " cblas.h oneapi/dnnl/dnnl.h"
      system_of["ggml"] = "dlfcn.h cmocka.h setjmp.h POSIX"
      system_of["ggml/bench"] = "POSIX"
      system_of["tests"] = "dlfcn.h omp.h jansson.h cmocka.h setjmp.h fenv.h fnmatch.h POSIX"
      system_of["tests/cuda_emulated"] = "ucontext.h sanitizer/common_interface_defs.h " \
        "chrono cmath cstdarg cstdint cstdio cstdlib cstring deque functional map memory mutex " \
        "thread vector"
    }
    function folder(path) {
      sub(/\/[^\/]*$/, "", path)
      return path ~ /^include/ ? "include" : path
    }
    function has(list, word) { return index(" " list " ", " " word " ") > 0 }
    function bad(why) { print $1 ": includes " $3 ": " why; failed = 1 }
    FILENAME != "-" { name = $1; sub(/.*\//, "", name); home[name] = folder($1); next }
    {
      from = folder($1)
      name = $3; sub(/.*\//, "", name)
      # tests/install is of tests
      if (from !~ /^(include|src|spec)/ && !(from in allowed)) sub(/\/.*/, "", from)
      if (!(from in allowed)) { bad("no layer is called " from); next }
      if (name in home) {
        if (!has(allowed[from], home[name]) && twin[$1] != name)
          bad(from " must not see " home[name])
        next
      }
      if ($2 == "\"") { bad("no such file in the tree"); next }
      if ($3 ~ /(immintrin|intrin|arm_neon|arm_sve)\.h$/) {
        if ($1 !~ /__[a-z0-9]+\.c$/ || $1 ~ /__c\.c$/)
          bad("intrinsics belong in files named after their ISA, *__avx2.c")
        next
      }
      posix = $3 ~ /^(sys\/.*|(unistd|fcntl|dirent|getopt|pthread|sched|signal|strings)\.h)$/ ||
              $3 ~ /^(libgen|glob|locale)\.h$/
      if (is_iso[$3] || has(system_of[from], $3) || (posix && has(system_of[from], "POSIX"))) next
      bad("not a header for " from)
    }
    END { exit failed }' "$scratch/headers" -
}

# Imports between the modules of the Python package, also inside functions: "FILE NAME". What is no
# module is a name of the package itself, __init__.py. Docstrings may import their own module.
list_imports() {
  modules=$(list_files | sed -n 's|^python/amla/\([^/]*\)\.py$|\1|p' | tr '\n' ' ')
  list_files | grep '^python/amla/[^/]*\.py$' | tr '\n' '\0' | xargs -0 awk -v modules=" $modules" '
    function module(name) {
      sub(/[. ].*/, "", name)
      return index(modules, " " name " ") ? name : "__init__"
    }
    function say(name) { if (FILENAME !~ "/" name "\\.py$") print FILENAME, name ".py" }
    function say_all(list, names, n, i) {
      gsub(/[()]|#[^\n]*/, "", list)
      gsub(/[ \n]+/, " ", list)
      n = split(list, names, / *, */)
      for (i = 1; i <= n; i++) {
        sub(/^ /, "", names[i])
        if (names[i] != "") say(module(names[i]))
      }
    }
    { sub(/^[ \t]+/, "") }
    /^from +(\.|amla) +import / {
      list = $0
      sub(/^from +(\.|amla) +import +/, "", list)
      if (list ~ /^\(/) while (list !~ /\)/ && (getline line) > 0) list = list "\n" line
      say_all(list)
      next
    }
    /^from +(\.|amla\.)[A-Za-z_]/ { name = $2; sub(/^(amla)?\./, "", name); say(module(name)) }
    /^import +amla( |\.|,|$)/ { name = $2; sub(/^amla\.?/, "", name); say(module(name)) }'
}

check_imports() { # a module imports from tiers below and, without circles, from its own
  list_imports | awk '
    BEGIN {
      n = split("_options _numpy _log;_library _bench_plot;_arrays;_shapes _scopes;_problem;" \
                "_plan;_decode _merge _cache_write _index_topk _torch_op _shards _latent_cache;" \
                "_bench distributed flash_mla flashinfer transformers vllm _vllm_mla;__init__", \
                tiers, ";")
      for (i = 1; i <= n; i++) {
        m = split(tiers[i], names, " ")
        for (j = 1; j <= m; j++) tier[names[j] ".py"] = i
      }
    }
    { from = $1; sub(/.*\//, "", from) }
    !(from in tier) { print $1 ": no tier has this module"; failed = 1 }
    !($2 in tier) || tier[$2] > tier[from] { print $1 ": must not import " $2; failed = 1 }
    END { exit failed }'
}

# No file includes or imports itself by way of others: tsort prints such circles.
check_circles() {
  { list_includes | awk '{ print $1, $3 }' && list_imports; } |
    sed 's|[^ ]*/||g' | tsort 2>&1 > /dev/null
}

# Calls between the .c files of a folder, by names: "FILE FILE". Two passes: who defines a function
# that others see, then who mentions it.
list_calls() { # FOLDER
  ls "$1"/*.c 2> /dev/null | awk '
    function code(line) {
      gsub(/\/\*[^*]*\*\//, "", line)
      gsub(/"([^"\\]|\\.)*"/, "", line)
      sub(/\/\*.*/, "", line)
      return line ~ /^ *\*/ ? "" : line
    }
    { files[++n] = $0 }
    END {
      for (i = 1; i <= n; i++) while ((getline line < files[i]) > 0)
        if (line ~ /^[a-z][^=]*\(/ && line !~ /^(static|typedef|extern) |;$/) {
          match(line, /[a-z_0-9]+\(/)
          home[substr(line, RSTART, RLENGTH - 1)] = files[i]
        }
      delete home["main"]
      for (i = 1; i <= n; i++) {
        close(files[i])
        while ((getline line < files[i]) > 0)
          for (line = code(line); match(line, /[A-Za-z_][A-Za-z_0-9]*/); ) {
            name = substr(line, RSTART, RLENGTH)
            line = substr(line, RSTART + RLENGTH)
            if (name in home && home[name] != files[i]) print files[i], home[name]
          }
      }
    }' | sort -u
}

# No file calls another that calls it back, by way of others too. harness is not asked yet, nor are
# tests, which are programs of their own.
check_calls() {
  failed_calls=0
  for folder in spec src src/* sim cli ggml ggml/bench bench fuzz; do
    list_calls "$folder" | tsort 2>&1 > /dev/null || failed_calls=1
  done
  return $failed_calls
}

check_isa_ifdefs() { # the loop and everything else outside the ISA files is ISA-free
  ! grep -nE '__(AVX|SSE|FMA__|F16C|BMI|ARM_NEON|ARM_FEATURE)' \
    $(list_files | grep -E '^src/.*\.(c|h|cu|cuh)$' | grep -vE '__[a-z0-9]+\.c$')
}

check_names() { # file names are unique in the tree, so that a name alone says which file
  list_files | sed 's|.*/||' |
    grep -vE '^(CMakeLists\.txt|README\.md|__init__\.py|conftest\.py)$' | sort |
    uniq -d | awk '{ print $0 ": more than one file has this name"; found = 1 } END { exit found }'
}

check_spdx() { # within the first three lines of everything that is source, script or prose
  list_files | grep -E -e '\.(c|h|def|cu|cuh|cpp|hpp|py|sh|md|mjs|cmake|in|toml)$' \
    -e '(^|/)CMakeLists\.txt$|^dev$|^\.ci/|^\.(clang-format|editorconfig)$' | awk '
    { seen = 0
      for (i = 0; i < 3 && (getline line < $0) > 0; i++)
        if (line ~ /SPDX-License-Identifier: Apache-2\.0/) seen = 1
      close($0)
      if (!seen) { print $0 ": no SPDX line"; failed = 1 } }
    END { exit failed }'
}

check_tests_are_listed() { # every test that is a file has its row in tests/README.md
  list_files | grep -E '^(tests|ggml|mpi)/(.*/)?test_[^/]*\.(c|sh|py)$' | (
    failed=0
    while read -r file; do
      grep -qF "${file##*/}" tests/README.md || { echo "$file: not in tests/README.md"; failed=1; }
    done
    ! sort tests/README.md | uniq -d | sed -n 's/^| `/tests\/README.md: twice: &/p' | grep . ||
      failed=1 # as merges leave them
    exit $failed
  )
}

check_paths() { # nothing that only one machine has
  ! list_files | grep -vE '\.(safetensors|png)$' | tr '\n' '\0' |
    xargs -0 grep -nIE '(^|[^A-Za-z0-9_.)}-])/(work|root|home|tmp|Users|mnt)/'
}

check_tree() { # in the current folder; every check reports before the verdict
  failed=0
  for check in check_includes check_imports check_circles check_calls check_isa_ifdefs check_names \
    check_spdx check_tests_are_listed check_paths; do
    $check || { echo "FAIL: $check"; failed=1; }
  done
  return $failed
}

cd "$source_dir"
check_tree || exit 1
echo "ok: $(list_includes | wc -l) includes and $(list_imports | wc -l) imports" \
  "in $(list_files | wc -l) files"

# ---- Can it fail? ----

tree=$scratch/tree
mkdir "$tree"
list_files | grep -v '\.safetensors$' | tr '\n' '\0' | xargs -0 cp --parents -t "$tree"
plant() { # CHECK FILE TEXT: the copy of the tree with TEXT appended to FILE must fail CHECK
  mkdir -p "$tree/$(dirname "$2")"
  printf '%s\n' "$3" >> "$tree/$2"
  if (cd "$tree" && $1) > "$scratch/output" 2>&1; then
    echo "FAIL: $1 does not see '$3' in $2"
    exit 1
  fi
  grep -q "${2##*/}" "$scratch/output" || {
    cat "$scratch/output"
    echo "FAIL: $1 does not name $2"
    exit 1
  }
  rm "$tree/$2"
  [ ! -e "$2" ] || cp "$2" "$tree/$2"
  planted=$((planted + 1))
}
planted=0
intrinsics='#include <immintrin.h>'
plant check_includes include/amla/amla.h '#include "spec/spec.h"'
plant check_includes include/amla/amla.h '#include <unistd.h>'
plant check_includes spec/amla.c '#include <amla/amla.h>'
plant check_includes src/base/isa.c '#include "../cpu/ukernels.h"'
plant check_includes src/npu/ascend_cube.c '#include "../cpu/ukernels.h"'
plant check_includes src/cpu/decode.c "$intrinsics"
plant check_includes src/cpu/ukr__c.c "$intrinsics"
plant check_includes src/cpu/decode.c '#include "spec/spec.h"'
plant check_includes src/cpu/decode.c '#include "../cuda/cuda_params.h"'
plant check_includes src/cuda/cuda_backend.c '#include <omp.h>'
plant check_includes src/cpu/decode.c '#include <stdnoreturn.h>'
plant check_includes src/api.c '#  include "harness/truth.h"'
plant check_includes harness/truth.c '#include "../src/cpu/ukernels.h"'
plant check_includes cli/main.c '#include "src/cpu/ukernels.h"'
plant check_includes bench/bench_cpu.c '#include "cli/cli_job.h"'
plant check_includes fuzz/replay.c '#include "nowhere.h"'
plant check_includes ggml/ggml_plugin.c '#include "harness/truth.h"'
plant check_includes src/cuda/kernel_mma.cu '#include "../cpu/ukernels.h"'
plant check_includes src/cuda/kernel_mma.cu '#include <thread>'
plant check_includes src/cuda/decode_mma.cuh '#include "harness/truth.h"'
plant check_includes src/cuda/decode_mma.cuh '#include "cuda_machine_emulated.hpp"'
plant check_includes src/cuda/cuda_machine.cuh '#include "cuda_emulator.hpp"'
plant check_includes src/base/float16.h '#include "../cuda/cuda_machine.cuh"'
plant check_includes tests/cuda_emulated/cuda_emulator.cpp '#include "src/cpu/ukernels.h"'
plant check_includes tests/cuda_emulated/cuda_emulator.hpp '#include <omp.h>'
plant check_includes tests/test_spec.c '#include "cuda_emulated/cuda_emulator.hpp"'
plant check_imports python/amla/_library.py 'from ._arrays import View'
plant check_imports python/amla/_arrays.py '    from . import _library as c, flash_mla'
plant check_imports python/amla/_arrays.py 'from . import (
    _library,  # below
    transformers)'
plant check_imports python/amla/_decode.py '    from amla.transformers import patch'
plant check_imports python/amla/_bench.py 'import amla'
plant check_imports python/amla/flash_mla.py 'from amla import decode'
plant check_imports python/amla/newcomer.py 'from . import _library'
plant check_circles python/amla/_arrays.py 'from ._decode import Plan'
plant check_circles src/cuda/cuda_params.h '#include "decode_common.cuh"'
plant check_circles tests/cuda_emulated/cuda_emulator.hpp '#include "cuda_machine_emulated.hpp"'
plant check_circles src/backend.h '#include "plan.h"'
plant check_calls sim/npu_time.c 'void npu_turn(void) { npu_issue(NULL); }'
plant check_calls src/problem.c 'int any(void) { return amla_plan_create != NULL; }'
plant check_isa_ifdefs src/cpu/decode.c '#ifdef __AVX512F__'
plant check_isa_ifdefs src/cuda/decode_mma.cuh '#ifdef __AVX512F__'
plant check_names tests/ukernels.c '/* SPDX-License-Identifier: Apache-2.0 */'
plant check_names src/cuda/cuda_emulator.hpp '// SPDX-License-Identifier: Apache-2.0'
plant check_spdx tests/unmarked.c 'int unmarked;'
plant check_spdx src/cuda/unmarked.cuh 'int unmarked;'
plant check_tests_are_listed ggml/test_newcomer.c '/* SPDX-License-Identifier: Apache-2.0 */'
plant check_tests_are_listed tests/README.md "$(grep -m 1 '^| `' tests/README.md)"
plant check_paths docs/local.md "see /""home/me/notes"
plant check_paths dev "cd /""tmp/build"
echo "ok: $planted planted violations found"
