# SPDX-License-Identifier: Apache-2.0
#
# Clean Debians in folders, for scripts that source it: those beside this file,
# ggml/test_deb_sid.sh, tests/test_wheel_slim.sh. Mirror and proxies are those of this machine's own
# apt.

skip() { echo "skipped: $*"; exit 77; }

mirror() {
  apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' |
    sed -n 's/^Debian //p' | head -n 1
}

can_make_chroots() { # or the script ends, and says why
  [ "$(id -u)" = 0 ] || skip "a chroot needs root"
  command -v debootstrap > /dev/null || skip "no debootstrap"
  [ "$(mirror)" ] || skip "apt has no mirror of Debian"
  unshare -mpf mount -t devpts -o newinstance,ptmxmode=666 devpts /dev/pts 2> /dev/null ||
    skip "no mounts of one's own"
}

# SUITE FOLDER PACKAGE...: a Debian with these, copied from a smallest one, which stays beside
# FOLDER.
make_chroot() {
  suite=$1 root=$2 base=${2%/*}/debian_$1
  shift 2
  [ -e "$base/complete" ] || make_base
  rm -rf --one-file-system "$root"
  cp -a --reflink=auto "$base" "$root"
  in_chroot "$root" sh -c 'apt-get -qq update &&
    apt-get -qqy install --no-install-recommends "$@"' - "$@" > "$root.log" 2>&1 ||
    { tail -n 20 "$root.log"; skip "no $* in $suite"; }
}
make_base() {
  rm -rf --one-file-system "$base"
  mkdir -p "$base"
  eval "$(apt-config shell proxy Acquire::http::Proxy)"
  http_proxy=${proxy-} debootstrap --variant=minbase "$suite" "$base" "$(mirror)" \
    > "$base.log" 2>&1 || { tail -n 20 "$base.log"; skip "debootstrap of $suite failed"; }
  apt-config dump | grep -iE '^Acquire::(https?|ftp|Retries|Check-Valid-Until)[: ]' \
    > "$base/etc/apt/apt.conf.d/20here" || :
  touch "$base/complete"
}

# FOLDER COMMAND...: as root, with processes and mounts that end with it.
in_chroot() {
  unshare -mpf sh -euc '
    mount -t proc proc "$0/proc"
    mount -t sysfs -o ro sysfs "$0/sys" 2> /dev/null || :
    mount -t tmpfs tmpfs "$0/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=666 devpts "$0/dev/pts"
    exec chroot "$0" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 \
      DEBIAN_FRONTEND=noninteractive "$@"' "$@"
}
