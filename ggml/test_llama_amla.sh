#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The wrapper llama-amla: what a program then sees, on and off for a user and for all, with and
# without the files of a package, and what it refuses.
#
#     test_llama_amla.sh WRAPPER PLUGIN
set -eu
wrapper=$1 plugin=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unset GGML_BACKEND_PATH LLAMA_ARG_FLASH_ATTN XDG_CONFIG_HOME || :
export HOME="$scratch" AMLA_GGML_PLUGIN="$plugin" DESTDIR="$scratch/root"
file=$scratch/.config/environment.d/60-amla.conf
name=environment.d/60-amla.conf service=systemd/system/llama-server.service.d/60-amla.conf
etc=$DESTDIR/etc lib=$DESTDIR/usr/lib

fail() {
  echo "llama-amla: $1" >&2
  exit 1
}
expect() { # STATUS COMMAND...
  want=$1 got=0
  shift
  "$@" > "$scratch/out" 2> "$scratch/err" || got=$?
  [ "$got" = "$want" ] || fail "$* ended with $got, not $want: $(cat "$scratch/err")"
}

expect 0 sh "$wrapper" env
grep -qx "GGML_BACKEND_PATH=$plugin" "$scratch/out" || fail "no GGML_BACKEND_PATH"
grep -qx "LLAMA_ARG_FLASH_ATTN=on" "$scratch/out" || fail "no LLAMA_ARG_FLASH_ATTN"
expect 0 env LLAMA_ARG_FLASH_ATTN=off sh "$wrapper" env
grep -qx "LLAMA_ARG_FLASH_ATTN=off" "$scratch/out" || fail "the caller's own value is lost"
expect 7 sh "$wrapper" sh -c 'exit 7'

expect 0 sh "$wrapper" --enable
printf 'GGML_BACKEND_PATH=%s\nLLAMA_ARG_FLASH_ATTN=on\n' "$plugin" | cmp -s - "$file" ||
  fail "--enable wrote something else"
expect 0 sh "$wrapper" --disable
[ ! -e "$file" ] || fail "--disable left its file"
expect 0 sh "$wrapper" --disable

# For all, without a package.
expect 0 sh "$wrapper" --enable --system
printf 'GGML_BACKEND_PATH=%s\nLLAMA_ARG_FLASH_ATTN=on\n' "$plugin" | cmp -s - "$etc/$name" ||
  fail "--enable --system wrote something else"
printf '[Service]\nEnvironment=GGML_BACKEND_PATH=%s\nEnvironment=LLAMA_ARG_FLASH_ATTN=on\n' \
  "$plugin" | cmp -s - "$etc/$service" || fail "--enable --system wrote another drop-in"
expect 0 sh "$wrapper" --disable
[ -L "$file" ] || fail "--disable leaves on what is on for all"
expect 0 sh "$wrapper" --enable
[ ! -L "$file" ] && [ ! -e "$file" ] || fail "--enable repeats what is on for all"
expect 0 sh "$wrapper" --disable --system
[ ! -e "$etc/$name" ] && [ ! -e "$etc/$service" ] || fail "--disable --system left its files"

# A package has turned it on.
mkdir -p "$lib/${name%/*}" "$lib/${service%/*}"
echo GGML_BACKEND_PATH=another > "$lib/$name"
echo Environment=GGML_BACKEND_PATH=another > "$lib/$service"
expect 0 sh "$wrapper" --disable --system
for masked in "$etc/$name" "$etc/$service"; do
  [ "$(readlink "$masked")" = /dev/null ] || fail "--disable --system left $masked on"
done
expect 0 sh "$wrapper" --enable
[ -f "$file" ] && [ ! -L "$file" ] || fail "--enable is not what stands above all's off"
expect 0 sh "$wrapper" --disable
[ ! -e "$file" ] || fail "--disable hides what is off"
expect 0 sh "$wrapper" --enable --system
[ ! -L "$etc/$name" ] && [ ! -L "$etc/$service" ] || fail "--enable --system left its masks"
grep -qx "GGML_BACKEND_PATH=$plugin" "$etc/$name" || fail "the package's other plug-in stays on"
printf 'GGML_BACKEND_PATH=%s\n' "$plugin" > "$lib/$name"
expect 0 sh "$wrapper" --enable --system
[ ! -e "$etc/$name" ] || fail "--enable --system repeats the package"

# What cannot be turned off says so.
mkdir -p "$file/full"
touch "$file/full/of"
expect 1 sh "$wrapper" --disable
rm -r "$file"

# Through a link, as people have them in folders of their own.
mkdir -p "$scratch/usr/bin" "$scratch/own"
cp "$wrapper" "$scratch/usr/bin"
ln -s "$scratch/usr/bin/llama-amla" "$scratch/own/amla-link"
expect 1 env -u AMLA_GGML_PLUGIN sh "$scratch/own/amla-link" --print
grep -q "$scratch/usr/.*/amla/libggml-amla.so: no such file" "$scratch/err" ||
  fail "the plug-in is not looked for where the wrapper is installed: $(cat "$scratch/err")"

expect 2 sh "$wrapper"
grep -q -- "--help" "$scratch/err" || fail "a line without a program is not told of --help"
expect 0 env -u AMLA_GGML_PLUGIN sh "$wrapper" --help
for option in $(sed -n 's/^\(--[a-z]*\)).*/\1/p' "$wrapper"); do
  grep -q "^  $option " "$scratch/out" || fail "--help lacks $option"
done
expect 0 env -u AMLA_GGML_PLUGIN sh "$wrapper" --version
grep -Eqx "llama-amla [0-9]+\.[0-9]+\.[0-9]+" "$scratch/out" || fail "--version gives no version"
expect 2 sh "$wrapper" --enalbe
expect 1 env AMLA_GGML_PLUGIN="$scratch/none.so" sh "$wrapper" true
grep -q "none.so: no such file" "$scratch/err" || fail "the missing plug-in is not named"
