#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Manual pages that groff takes without a warning, one for each command; amla help; completion in a
# real bash.
#
#     test_man.sh AMLA COMPLETION [MAN_FOLDER...]      amla's folder first
set -eu
program=$1 completion=$2
shift 2
output=$(mktemp)
trap 'rm -f "$output"' EXIT
fail() {
  cat "$output"
  echo "FAIL: $1"
  exit 1
}

# ---- amla help ----

commands=$("$program" help | sed -n 's/^  amla \([a-z]*\)  *[a-z].*/\1/p' | grep -v help)
topics=$("$program" help | sed -n 's/^  amla help \([a-z]*\) .*/\1/p')
[ "$(echo "$commands" | wc -l)" -ge 8 ] && [ "$(echo "$topics" | wc -l)" -ge 3 ] ||
  fail "the overview has lost its lists"
for topic in $topics; do
  "$program" help "$topic" > "$output" && [ "$(wc -l < "$output")" -gt 3 ] || fail "help $topic"
done
for command in $commands; do
  "$program" help "$command" > "$output" || fail "help $command"
  "$program" "$command" --help | cmp -s - "$output" || fail "help $command is not its --help"
done
for words in nothing "run more"; do
  status=0
  # shellcheck disable=SC2086
  "$program" help $words > "$output" 2>&1 || status=$?
  [ $status = 2 ] && grep -q "no help on" "$output" || fail "help $words"
done
# Every default that help names is taken, and is the default.
"$program" help problem | sed -n 's/^  \([a-z0-9]*=[^ ]*\) .*/\1/p' > "$output"
[ "$(wc -l < "$output")" -ge 31 ] || fail "keys are missing"
defaults=$(paste -sd, "$output")
"$program" run "$defaults,h=1" --no-check --for 0.01 > "$output" 2>&1 && fail "a key given twice"
grep -q "h: given twice" "$output" || fail "the defaults do not parse"

# ---- Completion ----

complete() { # LINE: what bash would offer at its end
  bash -c 'source "$1"; shift
    COMP_LINE=$1 COMP_POINT=${#1}
    read -ra COMP_WORDS <<< "$1"
    COMP_WORDS[0]=$2
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    case $1 in *" ") COMP_CWORD=$((COMP_CWORD + 1)) ;; esac
    _amla; echo "${COMPREPLY[*]}"' - "$completion" "$1" "$program" 2>&1
}
offers() { # LINE WORDS
  complete "$1" > "$output"
  [ "$(cat "$output")" = "$2" ] || fail "completion of '$1': wanted '$2'"
}
offers "amla ben" "bench"
offers "amla help e" "environment"
offers "amla run --thr" "--threads="
offers "amla run --backend=n" "npu"
offers "amla sim --sch" "--schedule="
offers "amla run b=2,kv=q8" "q8_0"
offers "amla bench h=16,ind" "16,index="
offers "amla bench dist=on" "onehot"
offers "amla bench h=16,dist=normal:" "1"
offers "amla info k" ""
complete "amla run --" > "$output"
for option in $("$program" run --help | sed -n 's/^.* \(--[a-z-]*\).*/\1/p'); do
  case $option in --help | --usage) continue ;; esac # argp's own
  grep -q -- "$option" "$output" || fail "$option is not offered"
done
# As a terminal has it: the line is completed by the Tab key.
if command -v script > /dev/null; then
  printf 'source %s\n%s bench h=16,ind\t; exit\n' "$completion" "$program" > "$output.keys"
  PATH=$(dirname "$program"):$PATH script -qec "bash --norc --noprofile -i" /dev/null \
    < "$output.keys" > "$output" 2>&1 || :
  rm -f "$output.keys"
  grep -q 'h=16,index=' "$output" || fail "Tab in an interactive bash"
fi

# ---- Manual pages ----

[ $# -gt 0 ] || { echo "skipped: no help2man, so no manual pages" && exit 77; }
for name in amla $(echo "$commands" | sed 's/^/amla-/'); do
  [ -s "$1/$name.1" ] || fail "no page $name.1"
done
for folder; do
  [ "$(find "$folder" -name '*.1')" ] || fail "no page in $folder"
done
pages=$(find "$@" -name '*.1')
for page in $pages; do
  name=$(basename "$page" .1)
  groff -ww -man -Tutf8 -Z "$page" > /dev/null 2> "$output" && [ ! -s "$output" ] ||
    fail "groff has warnings on $name.1"
  groff -man -Tascii "$page" | grep -q "$name  *- " || fail "$name.1 has another name"
done
groff -man -Tascii "$1/amla.1" | grep -q "kv=bf16 *type of the cache" ||
  fail "amla.1 lacks problem strings"
echo "ok: help, completion," $(basename -s .1 -a $pages)
