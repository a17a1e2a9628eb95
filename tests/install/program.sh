#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The program as it is installed: its completion in a bash, and its help. tests/test_man.sh has the
# rest of both, before they are installed.
#
#     program.sh PREFIX
set -eu
completion=$1/share/bash-completion/completions/amla # where bash looks when amla is typed
PATH=$1/bin:$PATH
fail() { echo "FAIL: $*" >&2; exit 1; }

[ "$(command -v amla)" = "$1/bin/amla" ] || fail "no program in $1/bin"
bash -n "$completion" || fail "bash does not take $completion"
cd "${completion%/*}" # no file there can be offered for a command
offers() { # "WORDS TYPED" OFFERED
  # shellcheck disable=SC2016
  offered=$(bash -c 'source "$0"
    COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS=($1) COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    handler=$(complete -p amla | sed -n "s/^complete -F \([a-z_]*\) amla$/\1/p")
    "$handler"; echo "${COMPREPLY[*]}"' "$completion" "$1") || fail "completion of '$1'"
  [ "$offered" = "$2" ] || fail "completion of '$1' offers '$offered', not '$2'"
}
offers "amla be" bench
offers "amla help prob" problem
offers "amla run b=2,kv=q8" q8_0
amla help problem | grep -q '^  kv=bf16  *type of the cache' || fail "amla help problem"
echo "ok: completion and help of $1/bin/amla"
