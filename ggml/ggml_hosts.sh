#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fetches unmodified, prebuilt llama.cpp and ggml from PyPI and npm into FOLDER, for tests and bench, and a Python environment that
# drives them. What is there already is kept.
#
#     ggml_hosts.sh FOLDER
#
#     FOLDER/venv               Python with ggml_requirements.txt
#     FOLDER/new/lib            llama.cpp of September 2026 (ggml 0.25.1): backends as shared objects, threads of its own
#     FOLDER/old/lib            llama.cpp of October 2025 (ggml 0.9.4): the oldest that is supported
#     FOLDER/pypi/lib           ggml 0.20.2, with the CPU backend linked in
#     FOLDER/node               node-llama-cpp, a program that uses the new one
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"

[ -e venv/ready ] || {
  rm -rf venv
  python3 -m venv venv
  venv/bin/pip install -q --disable-pip-version-check -r "$here/ggml_requirements.txt"
  touch venv/ready
}
PATH="$PWD/venv/bin:$PATH" # its node and npm

unpack_npm() { # FOLDER VERSION: the package is a tar file, its libraries are in one folder
  [ -e "$1/ready" ] && return
  rm -rf "$1"
  mkdir -p "$1"
  (
    cd "$1"
    npm pack --silent "@node-llama-cpp/linux-x64@$2" > /dev/null
    tar xzf ./*.tgz
    mv package/bins/linux-x64 lib
    rm -r package ./*.tgz
    touch ready
  )
}
unpack_npm new 3.22.1
unpack_npm old 3.14.2

[ -e pypi/ready ] || {
  rm -rf pypi
  venv/bin/pip install -q --disable-pip-version-check --no-deps --target pypi/package libggml-python==0.20.2.post1
  ln -s package/libggml/lib64 pypi/lib
  touch pypi/ready
}

[ -e node/ready ] || {
  rm -rf node
  mkdir -p node
  (
    cd node
    npm init -y > /dev/null
    npm install --silent --no-audit --no-fund --ignore-scripts --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
    touch ready
  )
}
