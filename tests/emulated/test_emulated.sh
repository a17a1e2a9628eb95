#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Machine code for CPUs that this machine is not, run by an emulator from PyPI (emulate.py). The
# first run downloads it; skipped where it is not to be had.
#
#     test_emulated.sh SOURCE_DIR BUILD_DIR PYTHON_FILE...
#     test_emulated.sh --prepare SOURCE_DIR BUILD_DIR      only the download
set -eu
prepare=
[ "$1" != --prepare ] || { prepare=1 && shift; }
tests=$1/tests/emulated work=$2/emulated
shift 2
python=$work/venv/bin/python wanted=$tests/emulated_requirements.txt
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
unset PYTHONPATH

has_fma() { grep -qw fma /proc/cpuinfo; }
install() {
  mkdir -p "$work"
  [ -x "$python" ] || python3 -m venv "$work/venv" || return
  cmp -s "$wanted" "$work/stamp" && return
  "$python" -m pip install -q -r "$wanted" && cp "$wanted" "$work/stamp"
}
reason=
if ! has_fma; then
  reason="the emulator needs a CPU with FMA"
elif ! install; then
  reason="bochscpu-python, the emulator, cannot be installed"
fi
[ -z "$prepare" ] || { [ -z "$reason" ] || echo "$reason" && exit 0; }
[ -z "$reason" ] || { echo "skipped: $reason" && exit 77; }
cd "$tests"
"$python" -m pytest -q -p no:cacheprovider --rootdir "$tests" "$@"
