# SPDX-License-Identifier: Apache-2.0
"""Caches of ggml's blocks as bytes: amla.cache_write and amla.decode, against what the blocks mean
by their own definition, in NumPy."""

import numpy as np
import pytest

import amla
import oracle

PAGE, PAGES, N, D_QK, D_V, SCALE = 16, 5, 60, 576, 512, 0.07
TABLE = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
BYTES = {"q8_0": 34, "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "iq4_nl": 18}


def values(cache, kv_type):
    """[..., row bytes] to [..., elements]."""
    blocks = cache.reshape(*cache.shape[:-1], -1, BYTES[kv_type])

    def half(at):
        pair = np.ascontiguousarray(blocks[..., at : at + 2])
        return pair.view(np.float16).astype(np.float32)

    if kv_type == "q8_0":
        codes = blocks[..., 2:].view(np.int8).astype(np.float32)
        return (codes * half(0)).reshape(*cache.shape[:-1], -1)
    nibbles = blocks[..., -16:]
    codes = np.concatenate((nibbles & 15, nibbles >> 4), -1)
    if kv_type.startswith("q5"):
        high = np.unpackbits(blocks[..., -20:-16], axis=-1, bitorder="little")
        codes = codes | high << 4
    codes = TABLE[codes] if kv_type == "iq4_nl" else codes.astype(np.float32)
    if kv_type in ("q4_0", "q5_0"):
        codes -= 8 if kv_type == "q4_0" else 16
    x = codes * half(0)
    return (x + half(2) if kv_type.endswith("_1") else x).reshape(*cache.shape[:-1], -1)


def filled(rng, kv_type, kv_rope=None):
    rows = rng.standard_normal((N, D_QK)).astype(np.float32)
    slots = rng.permutation(PAGE * PAGES)[:N]
    elems = D_QK if kv_rope is None else D_V
    cache = np.zeros((PAGES, PAGE, elems // 32 * BYTES[kv_type]), np.uint8)
    amla.cache_write(
        rows[:, :D_V], rows[:, D_V:], cache, slots, kv_rope=kv_rope, kv_type=kv_type, threads=2
    )
    return cache, slots, rows


@pytest.mark.parametrize("kv_type", BYTES)
def test_what_is_written_is_near_what_was_given(rng, kv_type):
    cache, slots, rows = filled(rng, kv_type)
    got = values(cache, kv_type).reshape(PAGES * PAGE, -1)[slots]
    assert oracle.rel_error(got, rows) < {"q8_0": 0.01, "q5_0": 0.06, "q5_1": 0.05}.get(
        kv_type, 0.12
    )


@pytest.mark.parametrize("kv_type", BYTES)
@pytest.mark.parametrize("apart", [False, True])
def test_decode_reads_what_the_bytes_mean(rng, kv_type, apart):
    rope = np.zeros((PAGES, PAGE, 64 // 32 * BYTES[kv_type]), np.uint8) if apart else None
    cache, slots, _ = filled(rng, kv_type, rope)
    q = rng.standard_normal((2, 1, 5, D_QK)).astype(np.float32)
    indices = np.stack([rng.permutation(slots)[:40] for _ in range(2)]).reshape(2, 1, 40)
    keys = values(cache, kv_type)
    if apart:
        keys = np.concatenate((keys, values(rope, kv_type)), -1)
    want = oracle.attend_keys(q, keys, SCALE, indices=indices)
    more = dict(kv_rope=rope) if apart else {}
    got = amla.decode(q, cache, scale=SCALE, indices=indices, kv_type=kv_type, **more)
    assert oracle.rel_error(got[0], want[0]) < 2e-6
    assert oracle.rel_error(got[1], want[1]) < 2e-6


def test_strides_are_whole_blocks(rng):
    cache = np.zeros((PAGES, PAGE, D_QK // 32 * 18 + 1), np.uint8)[..., :-1]
    q = rng.standard_normal((1, 1, 5, D_QK)).astype(np.float32)
    indices = np.zeros((1, 1, 4), np.int32)
    with pytest.raises(ValueError, match="must be whole blocks of q4_0, 18 bytes"):
        amla.decode(q, cache, scale=SCALE, indices=indices, kv_type="q4_0")
