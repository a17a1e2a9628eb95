#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Package libggml-amla, installed, used, turned off and removed in a chroot of Debian sid with its
# own llama.cpp. What a program or a service would find in its environment is asked of systemd; the
# plug-in's line "N attention operations done" says that it computed.
#
#     test_deb_sid.sh FOLDER PYTHON [DEB]
#
# FOLDER/root is the chroot. PYTHON has gguf (ggml_requirements.txt). Without DEB it is what
# ./dev package makes of the tree as it is. With AMLA_LONG only, as that takes minutes, and where a
# chroot can be made.
set -eu
cd "$(dirname "$0")/.."
mkdir -p "$1"
folder=$(cd "$1" && pwd) python=$2 deb=${3-}
root=$folder/root
. tests/install/chroot.sh
fail() {
  echo "FAIL: $1" >&2
  exit 1
}
inside() { in_chroot "$root" "$@"; }

[ "${AMLA_LONG-}" ] || skip "a chroot of sid and a package take minutes: AMLA_LONG=1"
can_make_chroots
make_chroot sid "$root" llama.cpp-tools llama.cpp-services
if [ ! "$deb" ]; then # which leaves one package of that name
  ./dev package > "$folder/log" 2>&1 || { tail "$folder/log" && fail "./dev package"; }
  deb=$(ls dist/libggml-amla_*.deb)
fi
echo "$(basename "$deb") in $(inside sh -c '. /etc/os-release && echo "$PRETTY_NAME"'), llama.cpp" \
  "$(inside dpkg-query -f '${Version}' -W llama.cpp-tools)"

# ---- What is asked ----

quietly() { "$@" > "$folder/log" 2>&1 || { tail "$folder/log" && fail "$*"; }; }

# decode [COMMAND...]: what the plug-in says of four tokens, of a program that ends well.
decode() {
  inside env -i PATH=/usr/bin AMLA_LOG=1 "$@" llama-completion -m /model.gguf -p abcdefgh -n 4 \
    -c 512 -t 2 -no-cnv --temp 0 < /dev/null > "$folder/tokens" 2> "$folder/said" ||
    { tail -n 5 "$folder/said" >&2 && fail "llama-completion after $* failed"; }
  [ -s "$folder/tokens" ] || fail "llama-completion after $* printed nothing"
  sed -n '/^amla: /p' "$folder/said"
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
rm -rf --one-file-system "$root"
