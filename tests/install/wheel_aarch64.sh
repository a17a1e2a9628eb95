#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# A wheel for aarch64 on a machine that is none: a program is linked with the library in it and run
# under qemu, on a CPU without bf16 products and on one with them. Exit status 77: skipped.
#
#     wheel_aarch64.sh SOURCE_DIR WHEEL
set -eu
source_dir=$1 wheel=$2
sysroot=/usr/aarch64-linux-gnu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for tool in aarch64-linux-gnu-gcc qemu-aarch64-static; do
  command -v $tool > /dev/null || { echo "skipped: no $tool"; exit 77; }
done
python3 -m zipfile -e "$wheel" "$work"
aarch64-linux-gnu-gcc -std=c11 -Wall -Wextra -Werror -I"$source_dir/include" \
  "$source_dir/tests/install/consumer.c" -L"$work/amla" -lamla -Wl,-rpath,'$ORIGIN/amla' \
  -o "$work/consumer"

version=$(basename "$wheel" | cut -d- -f2)
for cpu in cortex-a57 max; do
  said=$(QEMU_CPU=$cpu qemu-aarch64-static -L $sysroot "$work/consumer") ||
    { echo "FAIL: $(basename "$wheel") on $cpu: exit status $?: $said"; exit 1; }
  [ "$said" = "$version ok" ] || { echo "FAIL: $(basename "$wheel") on $cpu: $said"; exit 1; }
done
echo "ok: $(basename "$wheel") under qemu"
