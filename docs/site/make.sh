#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The site in BUILD_DIR/site/html, from a build of the library and the program.
#
#     make.sh BUILD_DIR [--check]
set -eu
build_dir=$(cd "$1" && pwd)
tree=$(cd "$(dirname "$0")/../.." && pwd)
site=$build_dir/site venv=$build_dir/site/venv wanted=$tree/docs/site/requirements-site.txt
cmp -s "$wanted" "$venv/complete" || {
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check -r "$wanted"
  cp "$wanted" "$venv/complete"
}
export PYTHONDONTWRITEBYTECODE=1
AMLA_LIBRARY=$build_dir/libamla.so PYTHONPATH=$tree/python \
  "$venv/bin/python" "$tree/docs/site/build.py" "$tree" "$site" "$build_dir"
[ "${2-}" != --check ] ||
  "$venv/bin/python" "$tree/docs/site/check.py" "$tree" "$site/html" "$site/screenshots"
