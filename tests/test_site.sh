#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The documentation as a site: builds it without a warning, follows its links, finds every name of
# the headers in its reference, and opens every page in headless Chromium, narrow and wide, light
# and dark. Where there is a Chromium, with AMLA_LONG=1 or after ./dev docs.
#
#     test_site.sh SOURCE_DIR BUILD_DIR
set -eu
source_dir=$1 build_dir=$2
skip() { echo "skipped: $*"; exit 77; }

command -v chromium > /dev/null && { [ -n "${AMLA_LONG-}" ] || [ -d "$build_dir/site/venv" ]; } ||
  skip "Chromium and Sphinx take 200 MB: ./dev docs --check"
exec sh "$source_dir/docs/site/make.sh" "$build_dir" --check
