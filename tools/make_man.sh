#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Manual pages by help2man, from what a program says of itself. Of amla: amla(1), a page for each
# command, and what `amla help TOPIC` prints in amla(1). Of llama-amla: llama-amla(1).
#
#     make_man.sh PROGRAM FOLDER
set -eu
program=$(readlink -f "$1") folder=$2
version=$("$program" --version)
mkdir -p "$folder"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# help2man takes a page's name from the program's: a command is a program for it.
page() { # NAME SUMMARY COMMAND [OPTION...]
  name=$1 summary=$2
  printf '#!/bin/sh\nexec %s %s "$@"\n' "$program" "$3" > "$scratch/$name"
  chmod +x "$scratch/$name"
  shift 3
  help2man --no-info --section=1 --manual="User Commands" --source="$version" \
    --version-string="${version#* }" --name="$summary" --output="$folder/$name.1" "$@" \
    "$scratch/$name"
}

if [ "${program##*/}" = llama-amla ]; then
  page llama-amla "run a program of llama.cpp with AMLA's plug-in" ""
  exit
fi

# The topics as they stand, each a section.
"$program" help | sed -n 's/^  amla help \([a-z]*\) .*/\1/p' | while read -r topic; do
  printf '[%s]\n.nf\n' "$topic"
  "$program" help "$topic" | sed 's/\\/\\\\/g; s/^\([.'"'"']\)/\\\&\1/; s/-/\\-/g; s/^$/.sp/'
  printf '.fi\n\n'
done > "$scratch/topics"

page amla "MLA attention decoding" "" --include="$scratch/topics"
"$program" help | sed -n 's/^  amla \([a-z]*\)  *\([a-z].*\)/\1 \2/p' |
  while read -r name summary; do
    [ "$name" = help ] || page "amla-$name" "$summary" "$name"
  done
