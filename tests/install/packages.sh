#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The Debian packages, installed, used and removed in a clean Debian of this machine's release.
#
#     packages.sh SOURCE_DIR WORK_DIR PACKAGE.deb...
set -eu
source_dir=$1 root=$2/packages
shift 2
. "$source_dir/tests/install/chroot.sh"
fail() { echo "FAIL: $*" >&2; exit 1; }

can_make_chroots
suite=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
make_chroot "$suite" "$root" gcc libc6-dev pkg-config
mkdir "$root/srv/packages"
cp "$@" "$root/srv/packages"
cp "$source_dir/tests/install/consumer.c" "$source_dir/tests/install/program.sh" "$root/srv"
awk '/^```python$/ { inside = 1; next } /^```/ && inside { exit } inside' \
  "$source_dir/README.md" > "$root/srv/readme.py"
version=$(sed -n 's/^#define AMLA_VERSION_[MP][A-Z]* //p' "$source_dir/include/amla/amla.h" |
  paste -sd. -)

in_chroot "$root" sh -c 'apt-get -qq update && apt-get -qqy install --no-install-recommends \
  /srv/packages/*.deb' > "$root.log" 2>&1 || { tail -n 20 "$root.log"; fail "installation"; }
echo "ok: installed $# packages"

# What each package is for.
in_chroot "$root" sh -euc '
  cd /srv
  libraries=/usr/lib/$(gcc -print-multiarch)
  amla info | tee info
  grep -Eq "npu +available" info || { echo "FAIL: no backend npu"; exit 1; }
  sh program.sh /usr
  amla check b=2,h=16,sk=300,len=ragged
  amla check h=4,sk=300 --ranks | grep "the same bits" # one rank, without mpirun
  ! dpkg-query -W -f "\${Depends}" amla | grep -i mpi || { echo "FAIL: amla needs MPI"; exit 1; }
  cc -std=c11 -Wall -Wextra -Werror consumer.c -o consumer $(pkg-config --cflags --libs amla)
  ./consumer | grep -x "'"$version"' ok"
  cc -DAMLA_STATIC consumer.c -o static "$libraries/libamla.a" -fopenmp -lm
  ./static | grep -x "'"$version"' ok"
  python3 -B readme.py
  python3 -c "import ctypes, sys; ctypes.CDLL(sys.argv[1]).ggml_backend_init" \
    $(dpkg -L libggml-amla | grep "libggml-amla\.so$")
  for library in $(dpkg -L libamla0 libamla-mpi0 amla-npu | grep "\.so\."); do
    ! ldd "$library" | grep "not found" || exit 1
  done
  [ "$libraries/libamla.so.0.1" -ef "$libraries/libamla.so.0" ]
  for program in $(dpkg -L amla libggml-amla amla-mpi | sed -n "s,^/usr/bin/,,p"); do
    [ -e "/usr/share/man/man1/$program.1.gz" ] || { echo "FAIL: no page of $program"; exit 1; }
  done
  apt-get -qqy install --no-install-recommends python3-pip > apt.log 2>&1
  python3 -m pip list --format=freeze | grep -x "amla=='"$version"'"
  python3 -c "
from importlib import metadata
(plugin,) = metadata.distribution(\"amla\").entry_points.select(group=\"vllm.general_plugins\")
print(metadata.version(\"amla\"), plugin.load(), metadata.metadata(\"amla\")[\"Summary\"])"
' || fail "use"
build_id=$(in_chroot "$root" sh -c 'readelf -n /usr/lib/*/libamla.so.0' |
  sed -n 's/.*Build ID: //p')
[ -e "$root/usr/lib/debug/.build-id/${build_id%"${build_id#??}"}/${build_id#??}.debug" ] ||
  fail "no debug symbols of libamla.so.0"
echo "ok: used"

names=$(for deb; do dpkg-deb -f "$deb" Package; done)
# shellcheck disable=SC2086
in_chroot "$root" apt-get -qqy purge $names > "$root.log" 2>&1 ||
  { tail -n 20 "$root.log"; fail "removal"; }
left=$(cd "$root" && find . -name '*amla*' ! -path './srv/*' ! -path './var/cache/*')
[ -z "$left" ] || fail "removed, and still there: $left"
rm -rf --one-file-system "$root"
echo "ok: removed"
