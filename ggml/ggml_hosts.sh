#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fetches unmodified, prebuilt llama.cpp and ggml from PyPI, npm and Debian into FOLDER, for tests
# and bench, and a Python environment that drives them. What is there already is kept.
#
#     ggml_hosts.sh FOLDER
#
#     FOLDER/venv               Python with ggml_requirements.txt
#     FOLDER/new/lib            llama.cpp of September 2026 (ggml 0.25.1): backends as shared
#                               objects, threads of its own
#     FOLDER/old/lib            llama.cpp of October 2025 (ggml 0.9.4): the oldest that is supported
#     FOLDER/pypi/lib           ggml 0.20.2, with the CPU backend linked in
#     FOLDER/node               node-llama-cpp, a program that uses the new one
#     FOLDER/sid/run PROGRAM    Debian sid's llama.cpp, its programs and tests, on sid's own C
#                               library; without root or chroot. Where Debian's archive is not at
#                               hand, FOLDER/sid/why_not says so, and its tests are skipped
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"

say() { echo "ggml_hosts: $*" >&2; }
if ! ls venv/ready new/ready old/ready pypi/ready node/ready > /dev/null 2>&1; then
  say "prebuilt llama.cpp and ggml for tests and bench: about 520 MB in $PWD, a minute or a few"
fi

[ -e venv/ready ] || {
  say "1 of 6: Python with numpy, gguf, pytest and node (328 MB)"
  rm -rf venv
  python3 -m venv venv
  venv/bin/pip install -q --disable-pip-version-check -r "$here/ggml_requirements.txt"
  touch venv/ready
}
PATH="$PWD/venv/bin:$PATH" # its node and npm

unpack_npm() { # FOLDER VERSION TEXT: the package is a tar file, its libraries are in one folder
  [ -e "$1/ready" ] && return
  say "$3"
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
unpack_npm new 3.22.1 "2 of 6: llama.cpp of September 2026 (29 MB)"
unpack_npm old 3.14.2 "3 of 6: llama.cpp of October 2025 (11 MB)"

[ -e pypi/ready ] || {
  say "4 of 6: ggml of August 2026 (6 MB)"
  rm -rf pypi
  venv/bin/pip install -q --disable-pip-version-check --no-deps --target pypi/package \
    libggml-python==0.20.2.post1
  ln -s package/libggml/lib64 pypi/lib
  touch pypi/ready
}

[ -e node/ready ] || {
  say "5 of 6: node-llama-cpp (85 MB)"
  rm -rf node
  mkdir -p node
  (
    cd node
    npm init -y > /dev/null
    npm install --silent --no-audit --no-fund --ignore-scripts --omit=optional \
      node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
    touch ready
  )
}

# ---- Debian sid ----

sid_packages="llama.cpp-tests llama.cpp-tools libllama0 libggml0 libc6 libgcc-s1 libstdc++6 libgomp1
              libssl3t64 zlib1g libzstd1"

sid_apt() { # an apt that knows of nothing but sid, and keeps all it writes in this folder
  timeout 240 apt-get -q -o Dir::Etc::sourcelist="$PWD/sources.list" -o Dir::Etc::sourceparts=- \
    -o Dir::State="$PWD/apt" -o Dir::State::status="$PWD/apt/status" -o Dir::Cache="$PWD/apt" \
    -o Acquire::Languages=none -o APT::Sandbox::User="$(id -un)" -o APT::Architecture=amd64 \
    "$@" > apt.log 2>&1
}

sid_mirror() { # the one this machine gets its Debian packages from
  apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 2> /dev/null |
    grep '/debian/*$' | head -n 1
}

fetch_sid() { # fails with the reason in why_not
  keys=/usr/share/keyrings/debian-archive-keyring.gpg
  mkdir -p apt/lists/partial apt/archives/partial root
  touch apt/status
  echo "this machine has no apt with a Debian mirror" > why_not
  mirror=$(sid_mirror) && [ "$mirror" ] && [ -e "$keys" ] || return 1
  echo "deb [signed-by=$keys] $mirror sid main" > sources.list
  echo "the Debian mirror of this machine does not serve sid's lists" > why_not
  sid_apt update && [ -n "$(ls apt/lists/*Packages* 2> /dev/null)" ] || return 1
  echo "the Debian mirror of this machine does not serve sid's llama.cpp" > why_not
  sid_apt download $sid_packages || return 1
  for package in ./*.deb; do dpkg-deb -x "$package" root || return 1; done
  # ggml looks beside the running program, which is the dynamic linker.
  (cd root/usr/lib/x86_64-linux-gnu && ln -s ggml/backends0/*.so .)
  rm -rf apt ./*.deb why_not
}

write_sid_run() {
  cat > run << 'END'
#!/bin/sh
# run PROGRAM [ARGUMENT...]: a program of sid's llama.cpp, with sid's C library
here=$(cd "$(dirname "$0")" && pwd)
usr=$here/root/usr
library=$usr/lib/x86_64-linux-gnu
tests=$usr/libexec/x86_64-linux-gnu
for folder in "$usr/bin" "$tests/ggml" "$tests/llama.cpp-tests"; do
  [ -x "$folder/$1" ] && break
done
program=$folder/$1
shift
exec "$library/ld-linux-x86-64.so.2" --library-path "$library:$library/llama" "$program" "$@"
END
  chmod +x run
}

[ -e sid/ready ] || {
  say "6 of 6: Debian sid's llama.cpp (60 MB)"
  rm -rf sid
  mkdir -p sid
  (
    cd sid
    if fetch_sid; then write_sid_run && touch ready; else say "left out: $(cat why_not)"; fi
  )
}
