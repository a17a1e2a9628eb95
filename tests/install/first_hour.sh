#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The first hour of a newcomer: README.md's own commands in clean Debians, by a user who is not root
# and has sudo, from a fresh clone. Prints how long each takes and what it downloads.
#
#     first_hour.sh SOURCE_DIR WORK_DIR SUITE...     the main job, ./dev demo
#     AMLA_LONG=1 first_hour.sh ...                  the tests too
set -eu
source_dir=$1 work=$2
shift 2
. "$source_dir/tests/install/chroot.sh"
fail() { echo "FAIL: $*" >&2; exit 1; }

can_make_chroots
[ -e "$source_dir/.git" ] || skip "no repository that a newcomer could clone"
# The commands under README.md's "Two commands": the main job, and the tests.
commands=$(awk '/^## / { inside = /Two commands/ } inside && /^    \.\/dev / { print $1, $2 }' \
  "$source_dir/README.md")
[ "$commands" = "./dev demo
./dev test" ] || fail "README.md's two commands are others: $commands"
[ "${AMLA_LONG-}" ] || commands="./dev demo"

# What the newcomer's session has: pip tells what it fetches, and where this machine trusts more
# certificates than Debian does, so do pip and npm.
set_environment() { # ROOT
  echo PIP_LOG=/srv/newcomer/pip.log >> "$1/etc/environment" # su reads that
  own=usr/local/share/ca-certificates all=/etc/ssl/certs/ca-certificates.crt
  ls /$own/*.crt > /dev/null 2>&1 || return 0
  cp /$own/*.crt "$1/$own"
  in_chroot "$1" update-ca-certificates > /dev/null 2>&1
  printf '%s=%s\n' PIP_CERT $all NODE_EXTRA_CA_CERTS $all >> "$1/etc/environment"
}

downloaded() { # LOG HOME: MB that apt and pip said they fetched, and what npm keeps
  kept=$(du -sb "$2/.npm" 2> /dev/null | cut -f 1)
  awk -v kept="${kept:-0}" '
    BEGIN { unit["B"] = unit["bytes"] = 1; unit["kB"] = 1e3; unit["MB"] = 1e6; unit["GB"] = 1e9 }
    FILENAME == ARGV[1] && /^Fetched / { n += $2 * unit[$3] }
    FILENAME == ARGV[2] && / Downloading .*\(.*B\)$/ {
      gsub(/[()]/, ""); n += $(NF - 1) * unit[$NF]
    }
    END { printf "%.1f MB", (n + kept) / 1e6 }' "$1" "$2/pip.log"
}

for suite; do
  root=$work/first_hour_$suite
  newcomer=$root/srv/newcomer
  make_chroot "$suite" "$root" sudo ca-certificates git # with which they cloned
  set_environment "$root"
  in_chroot "$root" sh -c 'useradd -m -b /srv -s /bin/sh newcomer &&
    echo "newcomer ALL=(ALL) NOPASSWD: ALL" > /etc/sudoers.d/newcomer'
  git clone -q "file://$(cd "$source_dir" && pwd)" "$newcomer/amla"
  touch "$newcomer/pip.log"
  chroot "$root" chown -R newcomer: /srv/newcomer
  echo "$commands" | while read -r command; do
    log=$root.${command#./dev }.log
    began=$(date +%s)
    in_chroot "$root" su newcomer -c "cd ~/amla && $command" > "$log" 2>&1 < /dev/null ||
      { tail -n 30 "$log"; fail "$suite: $command"; }
    echo "$suite: $command: $(($(date +%s) - began)) s, downloaded $(downloaded "$log" "$newcomer")"
    grep '^[0-9]* passed, ' "$log" || : # of the tests
  done
  grep -A 3 'deepseek_v3_decode' "$root.demo.log" | grep -m 1 ' ok' ||
    fail "$suite: ./dev demo shows no right result"
  rm -rf --one-file-system "$root"
done
