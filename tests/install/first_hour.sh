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
# The commands under README.md's "Two commands": the main job, and the tests.
commands=$(awk '/^## / { inside = /Two commands/ } inside && /^    \.\/dev / { print $1, $2 }' \
  "$source_dir/README.md")
[ "$commands" = "./dev demo
./dev test" ] || fail "README.md's two commands are others: $commands"
[ "${AMLA_LONG-}" ] || commands="./dev demo"

downloaded() { # LOG ROOT: MB that apt said it fetched, and what pip and npm keep
  in_caches=$(du -sb "$2"/srv/newcomer/.cache/pip "$2"/srv/newcomer/.npm 2> /dev/null |
    awk '{ n += $1 } END { print n + 0 }')
  awk -v in_caches="$in_caches" '
    BEGIN { unit["B"] = 1; unit["kB"] = 1e3; unit["MB"] = 1e6; unit["GB"] = 1e9 }
    /^Fetched / { n += $2 * unit[$3] }
    END { printf "%.1f MB", (n + in_caches) / 1e6 }' "$1"
}

for suite; do
  root=$work/first_hour_$suite
  make_chroot "$suite" "$root" sudo ca-certificates
  in_chroot "$root" sh -c 'useradd -m -b /srv -s /bin/sh newcomer &&
    echo "newcomer ALL=(ALL) NOPASSWD: ALL" > /etc/sudoers.d/newcomer'
  git clone -q "file://$(cd "$source_dir" && pwd)" "$root/srv/newcomer/amla"
  chroot "$root" chown -R newcomer: /srv/newcomer/amla
  echo "$commands" | while read -r command; do
    log=$root.${command#./dev }.log
    began=$(date +%s)
    in_chroot "$root" su newcomer -c "cd ~/amla && $command" > "$log" 2>&1 < /dev/null ||
      { tail -n 30 "$log"; fail "$suite: $command"; }
    echo "$suite: $command: $(($(date +%s) - began)) s, downloaded $(downloaded "$log" "$root")"
  done
  grep -A 3 'deepseek_v3_decode' "$root.demo.log" | grep -m 1 ' ok' ||
    fail "$suite: ./dev demo shows no right result"
  rm -rf --one-file-system "$root"
done
