# SPDX-License-Identifier: Apache-2.0
"""AVX512-BF16's micro-kernels in the emulator, bit for bit as their model in C, which runs here.
And a decode step of one block against fp64.

Keys, queries and outputs end at an unmapped page, so that a read or write past them faults.
"""

import ctypes
import itertools
import os

import numpy as np
import pytest

import instructions as ins
from conftest import same

F32, BF16, F16, Q8_0 = range(4)  # amla_dtype
ROWS, TOKENS, DEPTH = (32, 16), 12, (2, 4)  # by `narrow`
PV_ROWS, PV_COLS, TILE = 8, 32, 96
LOG2E = 1.4426950408889634

model = ctypes.CDLL(os.environ["AMLA_MODEL"])


class Buffer:
    """Memory of the guest that ends at an unmapped page."""

    def __init__(self, machine, array, align=64):
        self.machine, self.dtype, self.shape = machine, array.dtype, array.shape
        self.bytes = array.nbytes
        self.address = machine.allocate(max(1, self.bytes), align)
        self.put(array)

    def put(self, array):
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.machine.view(self.address, self.bytes)[:] = raw

    def get(self):
        raw = self.machine.view(self.address, self.bytes).copy()
        return raw.view(self.dtype).reshape(self.shape)


def on_model(name, *arguments):
    """Calls the model with the same arguments; arrays as pointers."""

    def pointer(x):
        if isinstance(x, np.ndarray):
            return ctypes.c_void_p(x.ctypes.data)
        if isinstance(x, (np.float32, float)):
            return ctypes.c_float(float(x))
        return ctypes.c_int64(int(x))

    getattr(model, name)(*map(pointer, arguments))


def both(machine, name, *arguments, align=64):
    """The kernel and its model on copies of the same arguments; their arrays afterwards."""
    mark = machine.mark()
    theirs = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
    buffers = [Buffer(machine, a, align) if isinstance(a, np.ndarray) else a for a in arguments]
    try:
        machine.call(name, *[b.address if isinstance(b, Buffer) else b for b in buffers])
        got = [b.get() for b in buffers if isinstance(b, Buffer)]
    finally:
        machine.release(mark)
    on_model(name, *theirs)
    return got, [t for t in theirs if isinstance(t, np.ndarray)]


def expect_same(machine, name, *arguments, align=64, only=None):
    got, want = both(machine, name, *arguments, align=align)
    for i, (g, w) in enumerate(zip(got, want)):
        if only is None or i in only:
            g, w = (x.view(np.uint32) if x.dtype == np.float32 else x for x in (g, w))
            at = np.flatnonzero(~_alike(g, w))
            assert at.size == 0, (name, i, at[:5], g.reshape(-1)[at[:5]], w.reshape(-1)[at[:5]])
    return want


def _alike(g, w):
    """The same bits; of f32 also two NaN."""
    g, w = g.reshape(-1), w.reshape(-1)
    if g.dtype != np.uint32:
        return g == w
    nan = [np.isnan(x.view(np.float32)) for x in (g, w)]
    return (g == w) | (nan[0] & nan[1])


# ---- Operands ----


def normal(rng, *shape):
    return ins.round_to_bf16(rng.standard_normal(shape).astype(np.float32))


def any_bits(rng, *shape):
    """Subnormals, infinities, NaNs, all exponents."""
    return rng.integers(0, 1 << 16, shape).astype(np.uint16)


def tiny(rng, *shape):
    """Products straddle the subnormal range."""
    sign = rng.integers(0, 2, shape) << 15
    return (sign | rng.integers(50, 72, shape) << 7 | rng.integers(0, 128, shape)).astype(np.uint16)


INPUTS = [normal, any_bits, tiny]


def any_floats(rng, *shape):
    return rng.integers(0, 1 << 32, shape).astype(np.uint32).view(np.float32)


def some_floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def qt_bytes(d):
    """Bytes of Q^T a row, as amla_ukr_qt_bytes."""
    return (d + 3) // 4 * 4 * 2 + 4


def leading(d):
    """Elements a token of a key tile has."""
    return max(PV_COLS, (d + 31) // 32 * 32)


def packed(rng, narrow, d, make):
    """Q^T of a whole panel, by the model."""
    q, qt = make(rng, ROWS[narrow], d), np.zeros(ROWS[narrow] * qt_bytes(d), np.uint8)
    on_model("ukr_pack", narrow, ROWS[narrow], d, q, 2 * d, np.float32(0.19), qt)
    return qt


def key_tile(rng, n, d, make):
    """[n][leading] bf16, zero from d on."""
    k = np.zeros((n, leading(d)), np.uint16)
    k[:, :d] = make(rng, n, d)
    return k


# ---- pack, load ----


@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 75, 576])
def test_pack(machine, rng, narrow, d):
    for n in (1, 2, 15, 16) if narrow else (1, 15, 16, 17, 31, 32):
        q, qt = any_bits(rng, n, d), np.full(ROWS[narrow] * qt_bytes(d), 0xAB, np.uint8)
        factor = np.float32(-0.37)
        used = ROWS[narrow] * ((d + DEPTH[narrow] - 1) // DEPTH[narrow] * DEPTH[narrow] * 2 + 4)
        (_, got), (_, want) = pack_both(machine, narrow, n, d, q, factor, qt)
        assert np.array_equal(got, want), (n, d)
        assert np.all(got[used:] == 0xAB)


def pack_both(machine, narrow, n, d, q, factor, qt):
    mark = machine.mark()
    try:
        queries, out = Buffer(machine, q, 2), Buffer(machine, qt)
        machine.call("ukr_pack", narrow, n, d, queries.address, 2 * d, factor, out.address)
        got = queries.get(), out.get()
    finally:
        machine.release(mark)
    want = qt.copy()
    on_model("ukr_pack", narrow, n, d, q, 2 * d, factor, want)
    return got, (q, want)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 31, 32, 33, 64, 255, 256, 257, 576])
def test_load(machine, rng, n):
    sources = {BF16: any_bits(rng, n), F32: any_floats(rng, n), F16: any_bits(rng, n)}
    if n % 32 == 0:
        sources[Q8_0] = rng.integers(0, 256, n // 32 * 34).astype(np.uint8)
    for kind, source in sources.items():
        to = np.full(n, 0xABCD, np.uint16)
        expect_same(
            machine, "ukr_load", kind, n, source, to, align=source.itemsize if kind == F32 else 2
        )


# ---- Scores ----


def score(machine, narrow, n, d, k, qt, kind=BF16, stage=None, source=None):
    s = np.full((TOKENS, ROWS[narrow]), 7, np.float32)
    stage = stage if stage is not None else k[:0]
    source = source if source is not None else np.zeros((0, d), np.uint16)
    from_bytes = source.strides[0] if len(source) else 0
    got, want = both(
        machine, "ukr_qk", narrow, n, d, k, k.shape[1], qt, s, kind, len(source), source,
        from_bytes, stage,
    )  # fmt: skip
    for g, w in zip((got[2][:n], got[4]), (want[2][:n], want[4])):
        assert same(g, w)
    return want[2]


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("d", [1, 2, 3, 5, 31, 32, 33, 64, 75, 576])
def test_scores(machine, rng, narrow, d, make):
    for n in (1, 4, 5, 8, 9, 12) if d < 576 else (12,):
        score(machine, narrow, n, d, key_tile(rng, TOKENS, d, make), packed(rng, narrow, d, make))


@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("kind", [BF16, F16, F32])
def test_scores_with_a_stage(machine, rng, narrow, kind):
    """Other rows that are converted on the way; 12 of a narrow panel would be its own."""
    for d, n_rows in itertools.product((32, 64, 96, 75), (1, 3, 4, 5, 8, 12 - narrow)):
        n = TOKENS if not narrow else n_rows
        source = any_floats(rng, n_rows, d) if kind == F32 else any_bits(rng, n_rows, d)
        k = key_tile(rng, TOKENS, d, normal)
        stage = np.zeros((n_rows, leading(d)), np.uint16)
        score(machine, narrow, n, d, k, packed(rng, narrow, d, normal), kind, stage, source)


@pytest.mark.parametrize("d", [32, 576])
def test_narrow_scores_of_their_own_stage(machine, rng, d):
    """Keys that qk copies before it reads them."""
    source, qt = normal(rng, TOKENS, d), packed(rng, 1, d, normal)
    s = np.zeros((TOKENS, 16), np.float32)
    want, tile = s.copy(), key_tile(rng, TOKENS, d, normal)
    on_model("ukr_qk", 1, TOKENS, d, tile, leading(d), qt, want, BF16, TOKENS, source, 2 * d, tile)
    mark = machine.mark()
    try:
        keys, scores = Buffer(machine, np.full_like(tile, 0x7FC0)), Buffer(machine, s)
        machine.call(
            "ukr_qk", 1, TOKENS, d, keys.address, leading(d), Buffer(machine, qt).address,
            scores.address, BF16, TOKENS, Buffer(machine, source, 2).address, 2 * d, keys.address,
        )  # fmt: skip
        assert same(scores.get(), want)
        assert np.array_equal(keys.get()[:, :d], source)
    finally:
        machine.release(mark)


# ---- P ----


def scores_of(rng, n, rows):
    s = (rng.standard_normal((n, rows)) * 20).astype(np.float32)
    s[s > 16] = 16
    return s


@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 31, 95, 96])
def test_maximum_and_weights(machine, rng, narrow, n):
    rows = ROWS[narrow]
    for hide, p16 in itertools.product((0, 1), (0, 1)):
        s = scores_of(rng, n, rows)
        if hide and n:
            s[0, 1], s[n // 2, 2], s[n - 1, 3] = np.nan, np.inf, -np.inf
        visible = rng.integers(0, n + 1, rows) if hide else np.full(rows, n)
        visible = visible.astype(np.int32)
        expect_same(machine, "ukr_max", narrow, n, s, visible, np.zeros(rows, np.float32))
        ref, mul = some_floats(rng, rows), np.exp2(rng.integers(-40, 1, rows)).astype(np.float32)
        sums = np.zeros(2 * rows, np.float32)
        used = (n + 1) // 2 if p16 else n
        got, want = both(machine, "ukr_exp", p16, narrow, n, s, ref, mul, visible, sums)
        assert same_bits(got[0][:used], want[0][:used], p16)
        assert same(got[4], want[4]), (hide, p16)


def same_bits(a, b, pairs):
    """P as f32, or as pairs of bf16."""
    return np.array_equal(a.view(np.uint32), b.view(np.uint32)) if pairs else same(a, b)


# ---- PV ----


def weights_for(rng, p16, n, rows):
    """[n][rows] f32, or pairs with 0 for a token that is missing."""
    p = np.exp2(-8 * np.abs(rng.standard_normal((n, rows)))).astype(np.float32)
    if not p16:
        return p
    pairs = np.zeros(((n + 1) // 2, rows, 2), np.uint16)
    for j in range(n):
        pairs[j // 2, :, j % 2] = ins.round_to_bf16(p[j])
    return pairs


def pv(machine, rng, p16, n, make, first, n_merges, ldv=PV_COLS):
    p, v = weights_for(rng, p16, n, 16), np.zeros((max(n, 1), ldv), np.uint16)
    v[:n, :PV_COLS] = make(rng, n, PV_COLS)
    o = np.full((PV_ROWS, PV_COLS), np.nan, np.float32) if first else some_floats(rng, 8, 32)
    a = some_floats(rng, max(n_merges, 1), PV_ROWS, PV_COLS)
    of_a, of_b = some_floats(rng, max(n_merges, 1), 8), some_floats(rng, max(n_merges, 1), 8)
    of_b[0, 3] = -0.0
    out = np.zeros((PV_ROWS, PV_COLS), np.float32)
    expect_same(
        machine, "ukr_pv", p16, n, p, 16, v, ldv, first, o, n_merges, a, of_a, of_b, out, only=[6]
    )


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("p16", [0, 1])
def test_output(machine, rng, p16, make):
    for n in (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 95, 96):
        pv(machine, rng, p16, n, make, n % 2, 0)
    for n_merges in (1, 2, 4):
        pv(machine, rng, p16, 13, make, 0, n_merges, 3 * PV_COLS)
        pv(machine, rng, p16, 12, make, 1, n_merges)


def test_last_token_of_an_odd_number_reads_no_other(machine, rng):
    """Behind the tile there is no page; its neighbour would be there."""
    for n in (1, 3, 95):
        v = normal(rng, n, PV_COLS)
        pv_args = (weights_for(rng, 1, n, 16), 16, v, PV_COLS, 1)
        empty = np.zeros((PV_ROWS, PV_COLS), np.float32)
        few = np.zeros(8, np.float32)
        expect_same(machine, "ukr_pv", 1, n, *pv_args, empty, 0, empty, few, few, empty, only=[6])


@pytest.mark.parametrize("p16", [0, 1])
@pytest.mark.parametrize("kind", [F32, BF16, F16])
def test_store(machine, rng, p16, kind):
    for rows, cols in ((8, 32), (1, 1), (3, 15), (8, 16), (7, 17), (5, 31)):
        out = np.full((rows, cols * 2), 0xABAB, np.uint16) if kind == F32 else (
            np.full((rows, cols), 0xABAB, np.uint16)
        )  # fmt: skip
        o = np.full((PV_ROWS, PV_COLS), 3, np.float32)
        o[:rows] = any_floats(rng, rows, PV_COLS)
        o[np.isnan(o)] = np.inf  # whose bits the model does not say
        factors = some_floats(rng, rows)
        expect_same(
            machine, "ukr_store", p16, kind, rows, cols, o, factors, out, out.strides[0], 0,
            align=2 if kind else 4,
        )  # fmt: skip


def test_rescaling(machine, rng):
    for rows in (1, 7, 8, 64):
        o, b = any_floats(rng, rows, PV_COLS), any_floats(rng, rows, PV_COLS)
        f, g = any_floats(rng, rows), any_floats(rng, rows)
        expect_same(machine, "ukr_scale", rows, o, f)
        expect_same(machine, "ukr_shift", rows, o, rng.integers(-512, 513, rows).astype(np.int32))
        expect_same(machine, "ukr_merge", rows, o, f, b, g)


# ---- A decode step ----


class Step:
    """The kernels in the order of decode.c, in the emulator or on the model: 64 rows."""

    def __init__(self, call, put, get, p16):
        self.call, self.put, self.get, self.p16 = call, put, get, p16

    def run(self, q, kv, scale, d_v, mask=None):
        rows, d = q.shape
        n_cols, ld = d_v // PV_COLS, leading(d)
        factor = np.float32(scale * LOG2E)
        qt = [self.put(np.zeros(32 * qt_bytes(d), np.uint8)) for _ in range(rows // 32)]
        for i, panel in enumerate(qt):
            self.call("ukr_pack", 0, 32, d, self.put(q[32 * i : 32 * i + 32]), 2 * d, factor, panel)
        o = [[np.zeros((8, 32), np.float32) for _ in range(rows // 8)] for _ in range(n_cols)]
        ref = np.full(rows, -np.inf, np.float32)
        total, rounded = np.zeros((2, rows), np.float32)
        for begin in range(0, len(kv), TILE):
            keys = kv[begin : begin + TILE]
            n = len(keys)
            tile = np.zeros((TILE, ld), np.uint16)
            for j in range(n):
                row = self.put(np.zeros(d, np.uint16))
                self.call("ukr_load", BF16, d, self.put(keys[j], 2), row)
                tile[j, :d] = self.get(row, d, np.uint16)
            k = self.put(tile)
            for i, panel in enumerate(qt):
                at = slice(32 * i, 32 * i + 32)
                p, shift = self.weights(n, d, k, ld, panel, ref[at], total[at], rounded[at])
                for c, r in itertools.product(range(n_cols), range(4)):
                    self.output(p, n, k, ld, c, r, o[c][4 * i + r], shift, begin == 0)
        return self.finish(o, ref, total, rounded, d_v)

    def weights(self, n, d, k, ld, panel, ref, total, rounded):
        s = self.put(np.zeros((TILE, 32), np.float32))
        for j in range(0, n, TOKENS):
            m = min(TOKENS, n - j)
            keys = k + j * ld * 2
            self.call("ukr_qk", 0, m, d, keys, ld, panel, s + j * 128, BF16, 0, keys, 0, keys)
        visible = self.put(np.full(32, n, np.int32))
        largest = self.put(np.zeros(32, np.float32))
        self.call("ukr_max", 0, n, s, visible, largest)
        top = self.get(largest, 32, np.float32)
        new = np.where(top > ref + 8, np.ceil(top), ref).astype(np.float32)
        shift = np.where(np.isinf(ref), 0, ref - new).astype(np.int32)
        ref[:] = new
        sums = self.put(np.zeros(64, np.float32))
        ones = self.put(np.ones(32, np.float32))
        self.call("ukr_exp", self.p16, 0, n, s, self.put(ref.copy()), ones, visible, sums)
        sums = self.get(sums, 64, np.float32)
        by = np.exp2(shift).astype(np.float32)
        total[:] = total * by + sums[:32]
        rounded[:] = rounded * by + sums[32:]
        return s, shift

    def output(self, p, n, k, ld, c, r, o, shift, first):
        tile = self.put(o)
        if shift[8 * r : 8 * r + 8].any():
            self.call("ukr_shift", 8, tile, self.put(shift[8 * r : 8 * r + 8].copy()))
        self.call(
            "ukr_pv", self.p16, n, p + 8 * r * 4, 32, k + c * PV_COLS * 2, ld, int(first), tile, 0,
            tile, tile, tile, tile,
        )  # fmt: skip
        o[:] = self.get(tile, o.size, np.float32).reshape(o.shape)

    def finish(self, o, ref, total, rounded, d_v):
        rows = len(ref)
        out = np.zeros((rows, d_v), np.float32)
        divisor = (rounded if self.p16 else total).astype(np.float64)
        factors = (1 / divisor).astype(np.float32)
        for c, column in enumerate(o):
            for r, tile in enumerate(column):
                to = self.put(np.zeros((8, PV_COLS), np.float32))
                at = slice(8 * r, 8 * r + 8)
                self.call(
                    "ukr_store", self.p16, F32, 8, PV_COLS, self.put(tile),
                    self.put(factors[at].copy()), to, PV_COLS * 4, 0,
                )  # fmt: skip
                block = self.get(to, 8 * PV_COLS, np.float32).reshape(8, PV_COLS)
                out[at, c * PV_COLS : (c + 1) * PV_COLS] = block
        return out, ref.astype(np.float64) + np.log2(total.astype(np.float64))


def emulated_step(machine, p16):
    def put(array, align=64):
        return Buffer(machine, array, align).address

    def get(address, count, dtype):
        raw = machine.view(address, count * np.dtype(dtype).itemsize)
        return raw.copy().view(dtype)

    return Step(machine.call, put, get, p16)


def modelled_step(p16):
    alive = []

    def put(array, align=64):
        raw = np.zeros(array.nbytes + 64, np.uint8)
        start = -raw.ctypes.data % 64
        raw[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        alive.append(raw)
        return raw.ctypes.data + start

    def get(address, count, dtype):
        size = count * np.dtype(dtype).itemsize
        return np.frombuffer(ctypes.string_at(address, size), dtype).copy()

    return Step(on_model, put, get, p16)


def truth(q, kv, scale, d_v):
    """O, log2 of the sum, and sum P |v|, in fp64."""
    q, kv = (ins.widen(x).astype(np.float64) for x in (q, kv))
    t = q @ kv.T * (scale * LOG2E)
    top = t.max(1, keepdims=True)
    w = np.exp2(t - top)
    total = w.sum(1, keepdims=True)
    w /= total
    return w @ kv[:, :d_v], (top + np.log2(total))[:, 0], w @ np.abs(kv[:, :d_v])


@pytest.mark.parametrize("p16", [0, 1])
@pytest.mark.parametrize("n,d,d_v,size", [(96, 576, 512, 1), (96, 576, 512, 8), (217, 64, 64, 30)])
def test_decode_step_of_one_block(machine, rng, p16, n, d, d_v, size):
    """64 rows x 96 keys; and three tiles, in which references move."""
    q = ins.round_to_bf16((rng.standard_normal((64, d)) * size).astype(np.float32))
    kv, scale = normal(rng, n, d), 192**-0.5
    mark = machine.mark()
    try:
        out, lse = emulated_step(machine, p16).run(q, kv, scale, d_v)
    finally:
        machine.release(mark)
    same_out, same_lse = modelled_step(p16).run(q, kv, scale, d_v)
    assert same(out, same_out) and np.array_equal(lse, same_lse)
    exact, exact_lse, weight = truth(q, kv, scale, d_v)
    scores = np.abs(ins.widen(q)).astype(np.float64) @ np.abs(ins.widen(kv)).T.astype(np.float64)
    slack = (4 + d**0.5) * 2.0**-24 * scale * scores.max() + 64 * 2.0**-24
    error = (np.abs(out - exact) / weight).max()
    assert error <= (2.0**-7 if p16 else 0) + slack
    assert not p16 or error > 2.0**-14  # P is rounded
    assert np.abs(lse - exact_lse).max() * np.log(2) <= slack + 2.0**-24 * np.abs(exact_lse).max()
