#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The wrapper llama-amla: what a program then sees, on and off for a user, and what it refuses.
#
#     test_llama_amla.sh WRAPPER PLUGIN
set -eu
wrapper=$1 plugin=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unset GGML_BACKEND_PATH LLAMA_ARG_FLASH_ATTN XDG_CONFIG_HOME || :
export HOME="$scratch" AMLA_GGML_PLUGIN="$plugin"
file=$scratch/.config/environment.d/60-amla.conf

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

expect 2 sh "$wrapper"
expect 2 sh "$wrapper" --enalbe
expect 1 env AMLA_GGML_PLUGIN="$scratch/none.so" sh "$wrapper" true
grep -q "none.so: no such file" "$scratch/err" || fail "the missing plug-in is not named"
