# SPDX-License-Identifier: Apache-2.0
"""What the dot-product instructions compute, in numpy, from Intel's manual."""

import numpy as np

SMALLEST_NORMAL = np.float32(2.0**-126)


def flush(x):
    """Subnormals to zero, the sign kept."""
    x = np.asarray(x, np.float32)
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def widen(bits):
    """bfloat16 bits to float32."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def round_to_bf16(x):
    """VCVTNEPS2BF16: nearest even; subnormals to zero; NaNs quiet."""
    x = flush(x)
    bits = x.view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), (bits >> 16 | 0x40).astype(np.uint16), rounded)


def fma(a, b, c):
    """float32 FMA with subnormals flushed, exact where a and b are bfloat16.

    The product then has at most 16 significant bits.  If the float64 sum is
    inexact, the smaller operand is too small to decide a float32 rounding.
    """
    a, b, c = flush(a), flush(b), flush(c)
    with np.errstate(all="ignore"):
        return flush((a.astype(np.float64) * b + c).astype(np.float32))


def add(a, b):
    with np.errstate(all="ignore"):
        return flush(flush(a) + flush(b))


def vdpbf16ps(a, b, c):
    """a, b: pairs of bfloat16; the odd product is added first."""
    a, b = widen(a), widen(b)
    return fma(a[0::2], b[0::2], fma(a[1::2], b[1::2], c))


def tdpbf16ps(a, b, c):
    """a: m x 2k, b: k x 2n bfloat16 bits, c: m x n.

    Even and odd products are summed apart, in order of k; then even + odd;
    then c + that.
    """
    a, b = widen(a), widen(b)
    even, odd = np.zeros_like(c), np.zeros_like(c)
    for k in range(b.shape[0]):
        even = fma(a[:, 2 * k, None], b[None, k, 0::2], even)
        odd = fma(a[:, 2 * k + 1, None], b[None, k, 1::2], odd)
    return add(c, add(even, odd))


def tdpb(a, b, c):
    """a: m x 4k, b: k x 4n bytes of either signedness, c: m x n int32 (wraps)."""
    n, k = b.shape[1] // 4, b.shape[0]
    b = b.reshape(k, n, 4).transpose(0, 2, 1).reshape(4 * k, n)
    total = a.astype(np.int64) @ b.astype(np.int64) + c
    return total.astype(np.uint64).astype(np.uint32).view(np.int32)


def vpdpbusd(a, b, c, saturate=False):
    total = (a.astype(np.int64) * b).reshape(-1, 4).sum(1) + c
    if saturate:
        return np.clip(total, -(2**31), 2**31 - 1).astype(np.int32)
    return total.astype(np.uint64).astype(np.uint32).view(np.int32)


def tile_config(*shapes):
    """The 64 bytes of LDTILECFG for tiles 0, 1, ... of (rows, bytes a row)."""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    for i, (rows, width) in enumerate(shapes):
        config[16 + 2 * i] = width
        config[48 + i] = rows
    return config
