# SPDX-License-Identifier: Apache-2.0
"""AVX-512's stage and load of fp8 rows and of ggml's blocks, whatever codes and scales they hold,
and the indexer's kernels, in the emulator: bit by bit what portable C makes of the same on this
machine. Rows end at unmapped memory."""

import ctypes
import os

import numpy as np
import pytest

from conftest import same
from decode_emulated import ISAS

C, AVX512 = 1, ISAS["avx512"]
TYPES = {"fp8_656": 4, "fp8_584": 5, "fp8_e4m3": 6}
TYPES |= {"q8_0": 3, "q4_0": 7, "q4_1": 8, "q5_0": 9, "q5_1": 10, "iq4_nl": 11}
BLOCK_BYTES = {"q8_0": 34, "q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "iq4_nl": 18}
FORMAT = np.dtype(
    [(x, np.int32) for x in ("type", "d", "d_latent")]
    + [(x, np.float32) for x in ("scale", "rope_scale")]
)
SHAPES = [("fp8_656", 576, 512), ("fp8_584", 512, 448)] + [
    ("fp8_e4m3", d, d_latent)
    for d, d_latent in ((576, 512), (512, 512), (96, 32), (96, 50), (64, 0), (100, 96), (33, 1))
]
WILD = ["tame", "codes", "scales", "one row"]
TOKENS, LANES = 12, (32, 16)  # by `narrow`

here = ctypes.CDLL(os.environ["AMLA_EMULATED"])


def on_this_machine(name, *arguments):
    def pass_on(x):
        if isinstance(x, np.ndarray):
            return ctypes.c_void_p(x.ctypes.data)
        return ctypes.c_int64(int(x))

    getattr(here, name)(*map(pass_on, arguments))


class Rows:
    """n rows [n][bytes] of a type, with scales [n][8] apart for fp8_584."""

    def __init__(self, rng, kind, d, d_latent, n, wild):
        codes = rng.integers(0, 256, (n, 656 if kind == "fp8_656" else 576 if d == 512 else d))
        if kind == "fp8_e4m3":
            codes = codes[:, :d]
        some = {"codes": slice(None), "one row": slice(n // 2, n // 2 + 1)}.get(wild, slice(0))
        tame = codes % 128 != 127
        tame[some] = True
        self.bytes = np.where(tame, codes, 0).astype(np.uint8)
        if kind in BLOCK_BYTES:
            width = d // 32 * BLOCK_BYTES[kind]
            self.bytes = rng.integers(0, 256, (n, width)).astype(np.uint8)
        self.scales = rng.integers(90, 154, (n, 8)).astype(np.uint8)
        self.format = np.zeros(1, FORMAT)
        self.format[0] = TYPES[kind], d, d_latent, 0.7, 0.3
        if kind == "fp8_656":
            of_rows = rng.standard_normal((n, 4)).astype(np.float32)
            if wild == "scales":
                of_rows = rng.integers(0, 1 << 32, (n, 4)).astype(np.uint32).view(np.float32)
                of_rows[:2] = [2.0**120, 1, 0.5, 1], [-(2.0**127), 2.0**-140, 1, np.inf]
            self.bytes[:, 512:528] = of_rows.view(np.uint8)
        elif wild == "scales":
            self.scales = rng.integers(0, 256, (n, 8)).astype(np.uint8)
            self.scales[0, :5] = 0, 1, 246, 247, 255
            self.format["scale"] = 1.5 * 2.0**122

    def converted(self):
        """By portable C, on this machine."""
        out = np.zeros((len(self.bytes), self.format["d"][0]), np.float32)
        for row, scales, to in zip(self.bytes, self.scales, out):
            on_this_machine("load_kv", C, self.format, row, scales, to)
        return out


@pytest.fixture(params=WILD)
def wild(request):
    return request.param


def check_load(machine, rng, kind, d, d_latent, wild):
    rows = Rows(rng, kind, d, d_latent, 5, wild)
    for row, scales, want in zip(rows.bytes, rows.scales, rows.converted()):
        mark = machine.mark()
        to = np.full(d + -d % 16 + 16, 7, np.float32)
        at = machine.place(row), machine.place(scales)
        machine.call("load_kv", AVX512, rows.format, *at, to)
        machine.release(mark)
        assert same(to[:d], want) and np.all(to[d:] == 7)


def stage(machine, narrow, n, rows, to, k, ld, qt):
    """Scores [n][lanes]. `to` takes the converted rows, which are the keys if k is None."""
    s, mark = np.zeros((TOKENS, LANES[narrow]), np.float32), machine.mark()
    at = [machine.place(x) for x in (rows.bytes, rows.scales, to)]
    machine.call(
        "stage_kv", narrow, n, rows.format, len(rows.bytes), at[0], rows.bytes.shape[1], at[1], 8,
        at[2], at[2] if k is None else k, ld, qt, s,
    )  # fmt: skip
    to[:] = machine.view(at[2], to.nbytes).copy().view(np.float32).reshape(to.shape)
    machine.release(mark)
    return s[:n]


def check_stage(machine, rng, narrow, kind, d, d_latent, wild):
    """A narrow panel's own rows; a wide one's next ones, beside the rows at hand."""
    ld = d + -d % 16 + 16
    qt = rng.standard_normal((d, LANES[narrow])).astype(np.float32)
    nothing = Rows(rng, kind, d, d_latent, 0, "tame")
    for n, n_rows in ((12, 12), (12, 7), (12, 3), (5, 5)):
        n = n_rows if narrow else n
        rows = Rows(rng, kind, d, d_latent, n_rows, wild)
        k = None if narrow else rng.standard_normal((TOKENS, ld)).astype(np.float32)
        to = np.full((TOKENS, ld), 7, np.float32)
        got = stage(machine, narrow, n, rows, to, k, ld, qt)
        assert same(to[:n_rows, :d], rows.converted())
        assert np.all(to[:, d:] == 7) and np.all(to[n_rows:] == 7)
        multiplied = to if narrow else k
        assert same(got, stage(machine, narrow, n, nothing, multiplied.copy(), multiplied, ld, qt))


@pytest.mark.parametrize("kind, d, d_latent", SHAPES)
def test_load(machine, rng, kind, d, d_latent, wild):
    check_load(machine, rng, kind, d, d_latent, wild)


@pytest.mark.parametrize("kind, d, d_latent", SHAPES)
@pytest.mark.parametrize("narrow", [0, 1])
def test_stage(machine, rng, narrow, kind, d, d_latent, wild):
    check_stage(machine, rng, narrow, kind, d, d_latent, wild)


@pytest.mark.parametrize("kind", BLOCK_BYTES)
def test_blocks(machine, rng, kind):
    for d in (32, 96, 576):
        check_load(machine, rng, kind, d, d, "tame")
        for narrow in (0, 1):
            check_stage(machine, rng, narrow, kind, d, d, "tame")


# ---- The indexer's kernels ----


def both(machine, name, *arguments):
    """The last argument, as AVX-512 in the emulator and as portable C here leave it."""
    theirs = [x.copy() if isinstance(x, np.ndarray) else x for x in arguments]
    mark = machine.mark()
    at = [machine.place(x) if isinstance(x, np.ndarray) else x for x in arguments]
    machine.call(name, AVX512, *at)
    last = arguments[-1]
    got = machine.view(at[-1], last.nbytes).copy().view(last.dtype).reshape(last.shape)
    machine.release(mark)
    on_this_machine(name, C, *theirs)
    return got, theirs[-1]


def test_index_loads(machine, rng):
    codes = np.concatenate([np.arange(256), rng.integers(0, 256, 128)]).astype(np.uint8)
    for n in (32, 64, 128, 384):
        assert same(*both(machine, "index_load_e4m3", n, codes[:n], np.zeros(n, np.float32)))
        bits = rng.integers(0, 1 << 16, n).astype(np.uint16)
        assert same(*both(machine, "index_load_bf16", n, bits, np.zeros(n, np.float32)))
    got, want = both(machine, "index_load_e4m3", 384, codes, np.zeros(384, np.float32))
    assert np.array_equal(np.flatnonzero(np.isnan(got[:256])), [127, 255]) and same(got, want)


@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize("scaled", [False, True])
def test_weighing_integers_is_exact(machine, rng, rows, scaled):
    for n in (1, 2, 11, 96):
        s, w, sums = (
            rng.integers(-99, 100, shape).astype(np.float32)
            for shape in ((n, rows), (rows,), (n, 16))
        )
        scales = 2.0 ** rng.integers(-3, 4, n).astype(np.float32) if scaled else 0
        got, want = both(machine, "index_weigh", n, rows, s, w, scales, sums)
        factors = scales[:, None] if scaled else 1.0
        exact = (np.maximum(0, s * factors) * w).reshape(n, -1, 16).astype(np.float64).sum(1)
        assert same(got, want) and np.array_equal(got, sums + exact)
        s[n // 2, 3] = np.nan
        got, want = both(machine, "index_weigh", n, rows, s, w, scales, sums)
        assert same(got, want) and np.isnan(got[n // 2, 3]) and np.isnan(got).sum() == 1


def test_index_sums_and_counts(machine, rng):
    for n in (1, 2, 15, 16, 17, 100):
        sums = rng.standard_normal((n, 16)).astype(np.float32)
        assert same(*both(machine, "index_add_lanes", n, sums, np.zeros(n, np.float32)))
        keys = rng.integers(-(2**31), 2**31, n).astype(np.int32)
        keys[: n // 2] = rng.integers(-2, 3, n // 2)
        for bound in (-(2**31), -1, 0, 1, int(keys[-1]), 2**31 - 1):
            got, want = both(machine, "index_count_above", n, keys, bound, np.zeros(1, np.int32))
            assert got[0] == want[0] == np.sum(keys > bound)
