#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The Python package as its users get it: a wheel is built from this tree, installed and tried in a
# clean virtual environment that has nothing but numpy, then installed beside torch, transformers
# and the test tools, where pytest runs python/tests against it. What needs transformers runs again
# with the newest release, from an environment that shares all else with the first. The first run
# downloads (torch is large); later ones need no network. AMLA_REQUIRE_TORCH=1: to do without torch
# is a failure.
#
#     test_python.sh SOURCE_DIR BUILD_DIR [PYTEST_ARGUMENT...]
#     test_python.sh --prepare SOURCE_DIR BUILD_DIR      only the downloads
set -eu
prepare=
[ "$1" != --prepare ] || { prepare=1 && shift; }
source_dir=$(cd "$1" && pwd)
work=$(cd "$2" && pwd)/python
shift 2
tests=$source_dir/python/tests
venv=$work/venv/bin clean=$work/clean/bin newest=$work/newest/bin
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
unset PYTHONPATH AMLA_LIBRARY

once() { # STAMP FILE COMMAND...: unless FILE is what it was when the command last succeeded
  stamp=$work/$1 file=$2
  shift 2
  cmp -s "$file" "$stamp" || { "$@" && cp "$file" "$stamp"; }
}

mkdir -p "$work"
[ -x "$venv/python" ] || python3 -m venv "$work/venv"
[ -x "$clean/python" ] || python3 -m venv "$work/clean"
once tools.stamp "$tests/requirements.txt" "$venv/pip" install -q -r "$tests/requirements.txt"
once clean.stamp "$source_dir/pyproject.toml" "$clean/pip" install -q 'numpy>=1.24'
torch=$tests/requirements-torch.txt with_newest=$tests/requirements-newest.txt
must_have() { # WHAT: to do without it may be a failure
  [ -z "${AMLA_REQUIRE_TORCH-}" ] || { echo "FAIL: $1 cannot be installed"; exit 1; }
}
once torch.stamp "$torch" "$venv/pip" install -q -r "$torch" || {
  must_have "torch and transformers"
  echo "torch and transformers cannot be installed: tests that need them are skipped"
}
if "$venv/python" -c 'import transformers' 2> /dev/null && [ ! -x "$newest/python" ]; then
  rm -f "$work/newest.stamp"
  python3 -m venv "$work/newest"
  purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
  "$venv/python" -c "$purelib" > "$("$newest/python" -c "$purelib")/beside.pth"
fi
[ ! -x "$newest/python" ] ||
  once newest.stamp "$with_newest" "$newest/pip" install -q -U -r "$with_newest" || {
  must_have "the newest transformers"
  echo "the newest transformers cannot be installed: not tested"
  rm -rf "$work/newest"
}
[ -z "$prepare" ] || exit 0

rm -rf "$work/dist"
"$venv/pip" wheel -q --no-deps --no-build-isolation --wheel-dir "$work/dist" \
  --config-settings=build-dir="$work/build" \
  --config-settings=cmake.define.AMLA_BUILD_CUDA=OFF "$source_dir" # minutes of nvcc
wheel=$(ls "$work"/dist/amla-*-py3-none-*.whl) ||
  { ls "$work/dist"; echo "FAIL: not one wheel for every Python 3"; exit 1; }

"$clean/python" "$source_dir/tools/check_wheel.py" "$wheel" # what ./dev wheel would call it

"$clean/pip" install -q --no-deps --force-reinstall "$wheel"
cd "$work" # away from the tree, so that what is imported is what was installed
PATH=$work/clean/bin "$clean/python" - << 'END' # no compiler, nothing else
import sys

import amla
import numpy as np

q, kv = np.ones((1, 1, 4, 576), np.float32), np.ones((1, 7, 576), np.float32)
out, lse = amla.decode(q, kv, scale=1 / 576)
assert (out == 1).all() and np.allclose(lse, 1 + np.log(7)) and "torch" not in sys.modules
print(f"clean environment: amla {amla.__version__}, {amla.backends()}")
END

"$venv/pip" install -q --no-deps --force-reinstall "$wheel"
emulated=${work%/python}/tests/cuda_emulated
if ls "$emulated"/libamla_cuda.so.0.* > /dev/null 2>&1; then
  export AMLA_CUDA_EMULATED="$emulated"
fi
"$venv/python" -m pytest -q -p no:cacheprovider --rootdir "$source_dir" "$@" "$tests"
[ -x "$newest/python" ] || exit 0
"$newest/python" -c 'import transformers
print("again with transformers", transformers.__version__)'
"$newest/python" -m pytest -q -p no:cacheprovider --rootdir "$source_dir" "$@" \
  "$tests/test_transformers_patch.py" "$tests/test_transformers_sparse.py" \
  "$tests/test_transformers_classes.py" "$tests/test_deepseek_example.py" \
  "$tests/test_transformers_distributed.py" ||
  [ $? = 5 ] # 5: "$@" selects none of these
