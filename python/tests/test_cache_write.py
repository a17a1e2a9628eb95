# SPDX-License-Identifier: Apache-2.0
"""amla_cache_write against other people's e4m3 and e8m0: ml_dtypes, byte by byte."""

import ctypes

import numpy as np
import pytest

from amla import _library

ml_dtypes = pytest.importorskip("ml_dtypes")
BF16, E4M3 = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e4m3fn)
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
KV_TYPES = {"fp8_656": 4, "fp8_584": 5, "fp8_e4m3": 6}
PAGE, PAGES, TOKENS = 16, 3, 40


def tokens(d):
    rng = np.random.default_rng(d)
    x = rng.standard_normal((TOKENS, d)) * 2.0 ** rng.integers(-20, 20, (TOKENS, 1))
    x[3] = 0
    x[4, ::7] *= 1e-3
    return x.astype(np.float32)


def write(latent, rope, kv_type, page_bytes, **fields):
    kv = np.full((PAGES, page_bytes), 0xA5, np.uint8)
    slots = np.random.default_rng(1).permutation(PAGE * PAGES)[:TOKENS].astype(np.int64)
    slots[7] = -1
    args = _library.CacheWriteArgs(
        ctypes.sizeof(_library.CacheWriteArgs),
        latent.shape[1],
        rope.shape[1],
        PAGE,
        PAGES,
        TOKENS,
        kv_type=KV_TYPES[kv_type],
        kv_stride_page=page_bytes,
        **fields,
    )
    arrays = dict(latent=latent, rope=rope, slot_mapping=slots, kv=kv)
    for name, array in arrays.items():
        setattr(args, name, array.ctypes.data)
        setattr(args, f"{name}_bytes", array.nbytes)
    detail = _library.Detail()
    status = _library.lib.amla_cache_write(ctypes.byref(args), None, ctypes.byref(detail))
    assert status == 0, detail.text
    return kv, slots


def codes(x, scale):
    """x / scale as e4m3, saturated: ml_dtypes makes NaN of what is too large."""
    limit = np.float32(448)
    return np.clip(x / scale, -limit, limit).astype(E4M3).view(np.uint8)


def scales(x, group, any_scale):
    largest = np.abs(x.reshape(TOKENS, -1, group)).max(-1)
    scale = np.maximum(largest / np.float32(448), np.float32(1e-4))
    return scale if any_scale else np.exp2(np.ceil(np.log2(scale.astype(np.float64)))).astype("f4")


@pytest.mark.parametrize("any_scale", [0, 1])
def test_fp8_656(any_scale):
    latent, rope = tokens(512), tokens(64)
    kv, slots = write(latent, rope, "fp8_656", 656 * PAGE, any_scale=any_scale)
    scale = scales(latent, 128, any_scale)
    for t, slot in enumerate(slots):
        row = kv.reshape(-1, 656)[slot]
        if slot >= 0:
            assert (row[:512] == codes(latent[t], scale[t].repeat(128))).all()
            assert (row[512:528] == scale[t].view(np.uint8)).all()
            assert (row[528:] == rope[t].astype(BF16).view(np.uint8)).all()


def test_fp8_584():
    latent, rope = tokens(448), tokens(64)
    page_bytes = -(-584 * PAGE // 576) * 576
    kv, slots = write(latent, rope, "fp8_584", page_bytes)
    scale = scales(latent, 64, 0)
    for t, slot in enumerate(slots):
        page, k = kv[slot // PAGE], slot % PAGE
        row, footer = page[576 * k : 576 * k + 576], page[576 * PAGE + 8 * k :][:8]
        if slot >= 0:
            assert (row[:448] == codes(latent[t], scale[t].repeat(64))).all()
            assert (row[448:] == rope[t].astype(BF16).view(np.uint8)).all()
            assert (footer[:7] == scale[t].astype(E8M0).view(np.uint8)).all()
            assert footer[7] == 0
    assert (kv[:, 584 * PAGE :] == 0xA5).all()


def test_fp8_per_tensor():
    latent, rope = tokens(512), tokens(64)
    kv, slots = write(latent, rope, "fp8_e4m3", 576 * PAGE, kv_scale=0.03, kv_rope_scale=1.7)
    for t, slot in enumerate(slots):
        row = kv.reshape(-1, 576)[slot]
        if slot >= 0:
            assert (row[:512] == codes(latent[t], np.float32(0.03))).all()
            assert (row[512:] == codes(rope[t], np.float32(1.7))).all()
