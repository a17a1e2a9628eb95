#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Package libggml-amla, installed, used, turned off and removed in a chroot of Debian sid with its
# own llama.cpp. What a program or a service would find in its environment is asked of systemd; the
# plug-in's line "N attention operations done" says that it computed.
#
#     test_deb_sid.sh FOLDER PYTHON [DEB]
#
# FOLDER/root is the chroot, which is kept. PYTHON has gguf (ggml_requirements.txt). Without DEB it
# is what ./dev package makes. Skipped where no chroot can be made, and without AMLA_LONG unless
# chroot and package are there: together they take minutes.
set -eu
cd "$(dirname "$0")/.."
mkdir -p "$1"
folder=$(cd "$1" && pwd) python=$2 deb=${3-}
root=$folder/root

skip() {
  echo "skipped: $1"
  exit 77
}
fail() {
  echo "FAIL: $1" >&2
  exit 1
}

# ---- The chroot ----

inside() { # COMMAND...: with /proc, where ggml finds its program
  unshare -m -p -f sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' "$root" "$@"
}

make_root() {
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 2> /dev/null |
    grep '/debian/*$' | head -n 1) || skip "this machine has no apt with a Debian mirror"
  rm -rf "$root"
  debootstrap --variant=minbase --keyring=/usr/share/keyrings/debian-archive-keyring.gpg sid \
    "$root" "$mirror" > "$folder/log" 2>&1 ||
    { tail -n 3 "$folder/log" && rm -rf "$root" && skip "debootstrap cannot fetch sid"; }
  apt-config dump | grep -E '^Acquire::(Check|http|https|Retries)' \
    > "$root/etc/apt/apt.conf.d/90host" || :
  cp /etc/resolv.conf "$root/etc"
  inside env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get -q update && apt-get -qy install \
    --no-install-recommends llama.cpp-tools llama.cpp-services && apt-get clean' \
    > "$folder/log" 2>&1 ||
    { tail -n 3 "$folder/log" && rm -rf "$root" && skip "sid's llama.cpp cannot be fetched"; }
  touch "$folder/ready"
}

newest_deb() { ls -t dist/libggml-amla_*.deb 2> /dev/null | head -n 1; }

[ "$(id -u)" = 0 ] || skip "a chroot needs root"
[ "${AMLA_LONG:-0}" = 1 ] || { [ -e "$folder/ready" ] && [ "${deb:=$(newest_deb)}" ]; } ||
  skip "no chroot or no package yet, and they take minutes: AMLA_LONG=1 makes both"
command -v debootstrap > /dev/null || [ -e "$folder/ready" ] || skip "there is no debootstrap"
unshare -m -p -f true 2> /dev/null || skip "this machine has no namespaces to spare"
[ -e "$folder/ready" ] || make_root
if [ ! "$deb" ]; then
  ./dev package > "$folder/log" 2>&1 || { tail "$folder/log" && fail "./dev package"; }
  deb=$(newest_deb)
fi
echo "$(basename "$deb") in $(inside sh -c '. /etc/os-release && echo "$PRETTY_NAME"'), llama.cpp" \
  "$(inside dpkg-query -f '${Version}' -W llama.cpp-tools)"

# ---- What is asked ----

quietly() { "$@" > "$folder/log" 2>&1 || { tail "$folder/log" && fail "$*"; }; }

# decode [COMMAND...]: what the plug-in says of four tokens.
decode() {
  inside env -i PATH=/usr/bin AMLA_LOG=1 "$@" llama-completion -m /model.gguf -p abcdefgh -n 4 \
    -c 512 -t 2 -no-cnv --temp 0 < /dev/null 2>&1 > /dev/null | grep -a '^amla: ' || :
}
expect_done() { # WHAT [COMMAND...]
  what=$1
  shift
  said=$(decode "$@")
  case $said in
  *"amla: "[1-9]*" attention operations done"*) echo "ok: $what: $(echo "$said" | tail -n 1)" ;;
  *) fail "$what: '$said'" ;;
  esac
}
expect_nothing() { # WHAT [COMMAND...]
  what=$1
  shift
  said=$(decode "$@")
  [ ! "$said" ] || fail "$what: '$said'"
  echo "ok: $what: not used"
}
of_a_login() {
  inside /usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator
}
of_the_service() {
  inside env SYSTEMD_COLORS=0 systemd-analyze cat-config systemd/system/llama-server.service |
    sed -n 's/^Environment=//p' | grep -v LLAMA_CACHE || :
}
leftovers() { inside sh -c "find /etc /usr ~ -name '*amla*' -not -path '/usr/share/doc/*'"; }

# ---- The test ----

inside sh -c 'dpkg --purge libggml-amla > /dev/null 2>&1; rm -rf ~/.config; find /etc -name \
  60-amla.conf -delete'
"$python" ggml/tiny_deepseek.py "$root/model.gguf" --heads 16 --layers 2
cp "$deb" "$root/libggml-amla.deb"
expect_nothing "without the package"

quietly inside dpkg -i /libggml-amla.deb
ours=$(inside dpkg -L libggml-amla | grep '\.so')
[ "${ours##*/}" = libggml-amla.so ] || fail "it has other shared objects: $ours"
expect_done "llama-amla" llama-amla
# shellcheck disable=SC2046
expect_done "a program of a login" $(of_a_login)
# shellcheck disable=SC2046
expect_done "the service" $(of_the_service)

quietly inside llama-amla --disable
[ ! "$(of_a_login)" ] || fail "--disable leaves it on for the user: $(of_a_login)"
[ "$(of_the_service)" ] || fail "--disable of a user turns the service off"
quietly inside llama-amla --enable
quietly inside llama-amla --disable --system
[ ! "$(of_a_login)$(of_the_service)" ] || fail "--disable --system leaves it on"
# shellcheck disable=SC2046
expect_nothing "off by one command" $(of_a_login)
quietly inside llama-amla --enable --system
[ "$(of_a_login)" ] && [ "$(of_the_service)" ] || fail "--enable --system does not turn it on"

quietly inside dpkg --purge libggml-amla
[ ! "$(leftovers)" ] || fail "left behind: $(leftovers)"
expect_nothing "after its removal"
