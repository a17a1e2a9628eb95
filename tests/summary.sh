#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What was done and what was left out, over all stages of a run, one line a thing in a file:
#   summary.sh add FILE BUILD JUNIT     appends what CTest's JUnit file says of a build: tests, and
#                                       what cmocka or pytest skipped inside them
#   summary.sh note FILE passed|failed|skipped WORDS    appends one thing
#   summary.sh print FILE               every failure and every skip with its words, then the line
#                                       "N passed, N failed, N skipped"
set -eu
what=$1 file=$2
case $what in
add)
  awk -v build="$3" '
    function plain(text) {
      gsub(/&quot;/, "\"", text); gsub(/&apos;/, "\047", text)
      gsub(/&lt;/, "<", text); gsub(/&gt;/, ">", text); gsub(/&amp;/, "\\&", text)
      return text
    }
    function tell_skipped(words) { if (!seen[name, words]++) print "skipped " name ": " words }
    /<testcase / {
      match($0, / name="[^"]*"/); name = build ": " substr($0, RSTART + 7, RLENGTH - 8)
      state = "passed"; said = ""
    }
    /<failure/ { state = "failed" }
    /<skipped/ { state = "skipped" }
    /^\t*<system-out>/ { sub(/^\t*<system-out>/, "") }
    /\[  SKIPPED \] [a-z_A-Z0-9]+ *$/ { tell_skipped($NF) }
    / [0-9]+ skipped/ && / in [0-9.]+s/ {
      match($0, /[0-9]+ skipped/); tell_skipped(substr($0, RSTART, RLENGTH) " by pytest")
    }
    /skipped: / { said = $0; sub(/.*skipped: /, "", said); said = ": " plain(said) }
    /<\/testcase>/ { print state " " name (state == "skipped" ? said : "") }
  ' "$4" >> "$file"
  ;;
note)
  shift 2
  echo "$*" >> "$file"
  ;;
print)
  awk '
    { n[$1]++ }
    $1 == "failed" || $1 == "skipped" { $1 = toupper($1) ":"; print }
    END { printf "%d passed, %d failed, %d skipped\n", n["passed"], n["failed"], n["skipped"] }
  ' "$file"
  ;;
esac
