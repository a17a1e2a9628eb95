#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The layer check: who may include whom (the arrows of DESIGN.md), and the habits of the tree that a machine can see. Then
# it plants one violation of each kind in a copy of the tree and demands that each is found.
#
#     test_layers.sh SOURCE_DIR
set -eu
export LC_ALL=C
source_dir=$(cd "$1" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

list_files() { # of the tree in the current folder, without builds and other people's folders
  find . -name .git -prune -o -path './build*' -prune -o -path './shared' -prune -o -path './fuzz/corpus' -prune -o \
    -name __pycache__ -prune -o -name .cache -prune -o -type f -print | sed 's|^\./||' | sort
}

# Includes of every C file: "FILE LINE DELIMITER NAME".
list_includes() {
  list_files | grep '\.[ch]$' | tr '\n' '\0' | xargs -0 awk '/^[ \t]*#[ \t]*include[ \t]*[<"]/ {
    match($0, /[<"][^>"]*[>"]/)
    print FILENAME, substr($0, RSTART, 1), substr($0, RSTART + 1, RLENGTH - 2) }'
}

check_includes() {
  list_files | grep -E '\.(h|def)$' > "$scratch/headers" || :
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
      allowed["tests"] = "tests include harness spec src src/base src/cpu src/ref src/npu src/cuda sim"
      allowed["examples"] = "include"
      allowed["ggml"] = "ggml include"
      # Headers that are not ours: ISO C everywhere; POSIX and libraries where they belong.
      n = split("assert ctype errno fenv float inttypes limits math stdalign stdarg stdatomic stdbool stddef stdint stdio stdlib string time", iso)
      for (i = 1; i <= n; i++) is_iso[iso[i] ".h"] = 1
      system_of["src/base"] = "cpuid.h"
      system_of["src/ref"] = system_of["src/cpu"] = "omp.h"
      system_of["src/cuda"] = "cuda.h cuda_runtime.h"
      system_of["src"] = "omp.h dlfcn.h pthread.h unistd.h sys/stat.h"
      system_of["src/npu"] = "c_api/asc_simd.h"
      system_of["sim"] = "ucontext.h sys/mman.h"
      system_of["harness"] = system_of["cli"] = system_of["fuzz"] = system_of["bench"] = "omp.h jansson.h POSIX"
      system_of["harness"] = system_of["harness"] " dlfcn.h"
      system_of["cli"] = system_of["cli"] " argp.h dlfcn.h"
      system_of["bench"] = system_of["bench"] " cblas.h oneapi/dnnl/dnnl.h"
      system_of["ggml"] = "dlfcn.h cmocka.h setjmp.h POSIX"
      system_of["tests"] = "omp.h jansson.h cmocka.h setjmp.h fenv.h POSIX"
    }
    function folder(path) { sub(/\/[^\/]*$/, "", path); return path ~ /^include/ ? "include" : path }
    function has(list, word) { return index(" " list " ", " " word " ") > 0 }
    function bad(why) { print $1 ": includes " $3 ": " why; failed = 1 }
    FILENAME != "-" { name = $1; sub(/.*\//, "", name); home[name] = folder($1); next }
    {
      from = folder($1)
      name = $3; sub(/.*\//, "", name)
      if (from !~ /^(include|src|spec)/ && !(from in allowed)) sub(/\/.*/, "", from) # tests/install is of tests
      if (!(from in allowed)) { bad("no layer is called " from); next }
      if (name in home) {
        if (!has(allowed[from], home[name])) bad(from " must not see " home[name])
        next
      }
      if ($2 == "\"") { bad("no such file in the tree"); next }
      if ($3 ~ /(immintrin|intrin|arm_neon|arm_sve)\.h$/) {
        if ($1 !~ /__[a-z0-9]+\.c$/ || $1 ~ /__c\.c$/) bad("intrinsics belong in files named after their ISA, *__avx2.c")
        next
      }
      posix = $3 ~ /^(sys\/.*|unistd|fcntl|dirent|getopt|pthread|sched|signal|strings|libgen|glob|locale|fenv)(\.h)?$/
      if (is_iso[$3] || has(system_of[from], $3) || (posix && has(system_of[from], "POSIX"))) next
      bad("not a header for " from)
    }
    END { exit failed }' "$scratch/headers" -
}

check_isa_ifdefs() { # the loop and everything else outside the ISA files is ISA-free
  ! grep -nE '__(AVX|SSE|FMA__|F16C|BMI|ARM_NEON|ARM_FEATURE)' $(list_files | grep '^src/.*\.[ch]$' | grep -vE '__[a-z0-9]+\.c$')
}

check_names() { # file names are unique in the tree, so that a name alone says which file
  list_files | sed 's|.*/||' | grep -vE '^(CMakeLists\.txt|README\.md|__init__\.py)$' | sort | uniq -d | sed 's/$/: more than one file has this name/' |
    awk '{ print; found = 1 } END { exit found }'
}

check_spdx() { # within the first three lines of everything that is source, script or prose
  list_files | grep -E '\.(c|h|def|cu|cpp|py|sh|md|cmake|in)$|(^|/)CMakeLists\.txt$|^dev$|^\.ci/|^\.clang-format$' | awk '
    { seen = 0
      for (i = 0; i < 3 && (getline line < $0) > 0; i++) if (line ~ /SPDX-License-Identifier: Apache-2\.0/) seen = 1
      close($0)
      if (!seen) { print $0 ": no SPDX line"; failed = 1 } }
    END { exit failed }'
}

check_paths() { # nothing that only one machine has
  ! list_files | grep -vE '\.(safetensors|png)$' | tr '\n' '\0' | xargs -0 grep -nIE '(^|[^A-Za-z0-9_.)}-])/(work|root|home|tmp|Users|mnt)/'
}

check_tree() { # in the current folder; every check reports before the verdict
  failed=0
  for check in check_includes check_isa_ifdefs check_names check_spdx check_paths; do
    $check || { echo "FAIL: $check"; failed=1; }
  done
  return $failed
}

cd "$source_dir"
check_tree || exit 1
echo "ok: $(list_includes | wc -l) includes in $(list_files | wc -l) files"

# ---- Can it fail? ----

plant() { # CHECK FILE TEXT: a copy of the tree with TEXT appended to FILE must fail CHECK
  rm -rf "$scratch/tree"
  mkdir "$scratch/tree"
  list_files | grep -v '\.safetensors$' | tr '\n' '\0' | xargs -0 cp --parents -t "$scratch/tree"
  mkdir -p "$scratch/tree/$(dirname "$2")"
  printf '%s\n' "$3" >> "$scratch/tree/$2"
  if (cd "$scratch/tree" && $1) > "$scratch/output" 2>&1; then
    echo "FAIL: $1 does not see '$3' in $2"
    exit 1
  fi
  grep -q "${2##*/}" "$scratch/output" || { cat "$scratch/output"; echo "FAIL: $1 does not name $2"; exit 1; }
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
plant check_isa_ifdefs src/cpu/decode.c '#ifdef __AVX512F__'
plant check_names tests/ukernels.c '/* SPDX-License-Identifier: Apache-2.0 */'
plant check_spdx tests/unmarked.c 'int unmarked;'
plant check_paths docs/local.md "see /""home/me/notes"
plant check_paths dev "cd /""tmp/build"
echo "ok: $planted planted violations found"
