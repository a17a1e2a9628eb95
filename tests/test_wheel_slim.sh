#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# The wheel where its users have least: a Debian without a compiler, an OpenMP runtime or anything
# but Python, in a chroot made by debootstrap. It is installed by pip without a network and decodes
# with nothing, with NumPy, and with PyTorch if the build's own environment has this Python's. With
# AMLA_LONG=1 only, as it takes minutes; needs root.
#
#     test_wheel_slim.sh SOURCE_DIR BUILD_DIR
set -eu
source_dir=$(cd "$1" && pwd)
build_dir=$(cd "$2" && pwd)
work=$build_dir/slim
root=$work/root
. "$source_dir/tests/install/chroot.sh"

[ -n "${AMLA_LONG-}" ] || skip "debootstrap takes minutes: ./dev test --long -R wheel_slim"
can_make_chroots
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 PIP_ROOT_USER_ACTION=ignore
unset PYTHONPATH AMLA_LIBRARY

leave() { # PyTorch of the host does not stay mounted
  ! mountpoint -q "$root/torch" || umount "$root/torch"
}
trap leave EXIT
leave
mkdir -p "$work/wheels"
make_chroot bookworm "$root" python3 python3-venv
for tool in cc gcc g++ c++ clang make cmake; do
  ! in_chroot "$root" sh -c "command -v $tool" || { echo "FAIL: the chroot has $tool"; exit 1; }
done
! find "$root/usr/lib" "$root/lib" -name 'libgomp*' | grep . ||
  { echo "FAIL: the chroot has an OpenMP runtime"; exit 1; }

sh "$source_dir/tests/test_python.sh" --prepare "$source_dir" "$build_dir"
venv=$build_dir/python/venv
rm -f "$work"/wheels/amla-*
"$venv/bin/pip" wheel -q --no-deps --no-build-isolation --wheel-dir "$work/wheels" \
  --config-settings=build-dir="$work/build" \
  --config-settings=cmake.define.AMLA_BUILD_CUDA=OFF "$source_dir"
version=$(in_chroot "$root" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ls "$work"/wheels/numpy-* > /dev/null 2>&1 ||
  "$venv/bin/pip" download -q --no-deps --only-binary :all: --python-version "$version" \
    --dest "$work/wheels" 'numpy>=1.24' || skip "NumPy cannot be had"
cp -r "$work/wheels" "$root/wheels"

in_chroot "$root" python3 -m venv /amla
inside() { in_chroot "$root" env -i PATH=/amla/bin:/usr/bin:/bin "$@"; }
inside sh -c 'pip install -q --no-index --no-deps /wheels/amla-*.whl'
inside python -c 'import amla; print("nothing but the wheel:", amla.backends()["cpu"])'

inside pip install -q --no-index --find-links /wheels numpy
inside python - << 'END'
import amla
import numpy as np

q, kv = np.ones((1, 1, 64, 576), np.float32), np.ones((1, 3000, 576), np.float32)
for threads in (1, 2):
    out, lse = amla.decode(q, kv, scale=1 / 576, threads=threads)
    assert (out == 1).all() and np.allclose(lse, 1 + np.log(3000))
print("with NumPy:", amla.Plan.like(q, kv, scale=1 / 576).describe())
END

packages=$venv/lib/python$version/site-packages
without_torch() { echo "$1"; echo "[  SKIPPED ] pytorch_in_the_chroot"; exit; }
[ -d "$packages/torch" ] || without_torch "there is no PyTorch for Python $version"
mkdir -p "$root/torch"
mount --bind -o ro "$packages" "$root/torch" 2> /dev/null ||
  without_torch "nothing can be mounted here"
inside python - << 'END'
import sys

sys.path.append("/torch")  # behind what is installed
import amla
import torch

q, kv = torch.ones(1, 1, 64, 576), torch.ones(1, 3000, 576)
out, lse = amla.decode(q, kv, scale=1 / 576)
assert torch.allclose(out, torch.ones(())) and torch.allclose(lse, 1 + torch.tensor(3000.0).log())
print("with PyTorch:", torch.__version__, amla.__file__)
END
