# SPDX-License-Identifier: Apache-2.0
"""amla.decode, Plan, merge and bench on NumPy arrays and DLPack, against fp64; every refusal with
its words."""

import ctypes
import subprocess
import sys
import threading

import numpy as np
import pytest

import amla
import oracle
from conftest import LONG

ml_dtypes = pytest.importorskip("ml_dtypes")
BF16 = np.dtype(ml_dtypes.bfloat16)
ERROR = {
    "float32": 2e-6,
    "float16": 6e-4,
    "bfloat16": 5e-3,
}  # kernel error, or half a unit in the last place of the output
SCALE = 192**-0.5


def problem(rng, b=2, s_q=1, h=5, page=16, n_max=70, d=576, dtype=np.float32, lengths=None):
    """q, paged cache with NaN in all unused slots and pages, block table with wild unused entries,
    lengths."""
    lengths = np.array([n_max - 11 * i for i in range(b)] if lengths is None else lengths, np.int32)
    per = -(-n_max // page) + 1
    kv = np.full((b * per + 3, page, d), np.nan, np.float32)
    table = np.full((b, per), 2147480000, np.int32)
    ids = iter(rng.permutation(len(kv)))
    for i, n in enumerate(lengths):
        for j in range(-(-int(n) // page)):
            table[i, j] = p = next(ids)
            used = min(page, int(n) - j * page)
            kv[p, :used] = rng.standard_normal((used, d))
    q = rng.standard_normal((b, s_q, h, d))
    return q.astype(dtype), kv.astype(dtype), table, lengths


def check(got, want, dtype="float32", lse_error=1e-5):
    out, lse = got
    want_out, want_lse = want
    assert np.isfinite(np.asarray(out, np.float64)).all()
    assert oracle.rel_error(out, want_out) < ERROR[str(dtype)]
    empty = np.isneginf(want_lse)
    assert (np.isneginf(lse) == empty).all()
    assert (np.asarray(out, np.float64).transpose(0, 2, 1, 3)[empty] == 0).all()
    assert np.abs(lse[~empty] - want_lse[~empty]).max(initial=0) < lse_error


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("page", [1, 16, 64])
def test_paged(rng, dtype, causal, page):
    q, kv, table, lengths = problem(rng, b=3, s_q=3, page=page, dtype=dtype, lengths=[70, 0, 2])
    got = amla.decode(q, kv, table, lengths, scale=SCALE, causal=causal)
    assert (
        got[0].dtype == dtype
        and got[0].shape == (3, 3, 5, 512)
        and got[1].dtype == np.float32
        and got[1].shape == (3, 5, 3)
    )
    check(
        got, oracle.decode(q, kv, table, lengths, scale=SCALE, causal=causal), np.dtype(dtype).name
    )


def test_int64_page_ids_and_lengths(rng):
    q, kv, table, lengths = problem(rng)
    want = amla.decode(q, kv, table, lengths, scale=SCALE)
    wide = np.repeat(table.astype(np.int64), 2, 1)[:, ::2]  # any strides: it is copied
    plan = amla.Plan.like(q, kv, table, lengths, scale=SCALE)

    class Dl:  # not a NumPy array
        def __init__(self, x):
            self.x = x
            self.__dlpack__, self.__dlpack_device__ = (
                (lambda **k: x.__dlpack__(**k)),
                x.__dlpack_device__,
            )

    for t, n in (
        (wide, lengths.astype(np.int64)),
        (table, lengths.astype(np.int64)),
        (wide, lengths),
        (Dl(table.astype(np.int64)), Dl(lengths.astype(np.int64))),
    ):
        for got in (amla.decode(q, kv, t, n, scale=SCALE), plan.run(q, kv, t, n)):
            assert got[0].tobytes() == want[0].tobytes() and got[1].tobytes() == want[1].tobytes()


def test_contiguous_and_four_dimensional_caches(rng):
    q, kv = (
        rng.standard_normal((2, 1, 4, 576), np.float32),
        rng.standard_normal((2, 33, 576), np.float32),
    )
    lengths = np.array([33, 7], np.int32)
    want = oracle.decode(q, kv, None, lengths, scale=SCALE)
    for cache in (kv, kv[:, :, None]):
        check(amla.decode(q, cache, None, lengths, scale=SCALE), want)
    check(
        amla.decode(q, kv, scale=SCALE), oracle.decode(q, kv, scale=SCALE)
    )  # no lengths: all there is
    check(amla.decode(q, kv, None, [33, 7], scale=SCALE), want)  # a list


@pytest.mark.parametrize("rescale", ["lazy", "amla", "flash"])
@pytest.mark.parametrize("backend", ["auto", "ref", "cpu"])
def test_options(rng, rescale, backend):
    q, kv, table, lengths = problem(rng)
    want = oracle.decode(q, kv, table, lengths, scale=SCALE)
    for options in (
        dict(threads=1),
        dict(threads=2, split_tokens=1),
        dict(isa="c"),
        dict(p_form="bf16", q_form="bf16x2", kv_round="bf16", isa="c"),
        dict(split_tokens=-1),
    ):
        check(
            amla.decode(
                q, kv, table, lengths, scale=SCALE, rescale=rescale, backend=backend, **options
            ),
            want,
        )


def test_widths_lse_base_sinks_mask_and_out_dtype(rng):
    q, kv, table, lengths = problem(rng, s_q=2, d=96)
    want = oracle.decode(q, kv, table, lengths, scale=0.3, d_v=64)
    check(amla.decode(q, kv, table, lengths, scale=0.3, d_v=64), want)
    out, lse2 = amla.decode(q, kv, table, lengths, scale=0.3, d_v=64, lse_base=2)
    check((out, lse2 * np.log(2)), want)
    sinks = np.array([0.0, 3.0, -np.inf, np.inf, -2.0], np.float32)
    check(
        amla.decode(q, kv, table, lengths, scale=0.3, d_v=64, sinks=sinks),
        oracle.decode(q, kv, table, lengths, scale=0.3, d_v=64, sinks=sinks),
    )
    mask = np.where(
        rng.random((2, 2, table.shape[1] * 16)) < 0.4,
        -np.inf,
        rng.standard_normal((2, 2, table.shape[1] * 16)),
    ).astype(np.float16)
    mask[0, 1] = -np.inf
    check(
        amla.decode(q, kv, table, lengths, scale=0.3, d_v=64, mask=mask),
        oracle.decode(q, kv, table, lengths, scale=0.3, d_v=64, mask=mask),
    )
    for out_dtype in ("float16", np.float16, np.dtype(np.float16)):
        assert (
            amla.decode(q, kv, table, lengths, scale=0.3, d_v=64, out_dtype=out_dtype)[0].dtype
            == np.float16
        )


def test_strided_arguments_are_used_in_place(rng):
    q, kv, table, lengths = problem(rng, b=2, s_q=2, h=3)
    want = oracle.decode(q, kv, table, lengths, scale=SCALE)
    wide = rng.standard_normal(
        (3, 2, 2, 640), np.float32
    )  # [h][s_q][b] in memory, rows wider than d
    q_view = wide.transpose(2, 1, 0, 3)[..., 32:608]
    q_view[:] = q
    big = np.full((len(kv), 2, 16, 600), np.nan, np.float32)
    kv_view = big[:, 1, :, 7:583]
    kv_view[:] = kv
    table_view = np.full((2, table.shape[1] + 5), -1, np.int32)[:, : table.shape[1]]
    table_view[:] = table
    out_memory = np.full((2, 3, 2, 520), 7.0, np.float32)
    out = out_memory.transpose(0, 2, 1, 3)[..., 4:516]
    lse = np.empty((2, 3, 2), np.float32)
    got = amla.decode(q_view, kv_view, table_view, lengths, scale=SCALE, out=out, lse=lse)
    assert got[0] is out and got[1] is lse
    check(got, want)
    assert (out_memory[..., :4] == 7).all() and (out_memory[..., 516:] == 7).all()


def test_read_only_inputs_and_outputs(rng):
    q, kv, table, lengths = problem(rng)
    for x in (q, kv, table, lengths):
        x.flags.writeable = False
    out, _ = amla.decode(q, kv, table, lengths, scale=SCALE)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="^out: read-only"):
        amla.decode(q, kv, table, lengths, scale=SCALE, out=out)


def test_no_sequences():
    out, lse = amla.decode(
        np.zeros((0, 1, 4, 576), np.float32),
        np.zeros((3, 16, 576), np.float32),
        np.zeros((0, 2), np.int32),
        scale=1.0,
    )
    assert out.shape == (0, 1, 4, 512) and lse.shape == (0, 4, 1)


@pytest.mark.parametrize("page", [16, 0])
@pytest.mark.parametrize("n_pages", [3, 0])
@pytest.mark.parametrize("backend", ["cpu", "ref"])
def test_block_table_without_columns(page, n_pages, backend):
    """No sequence has keys: a table of no columns is enough, also as a view of a wider one."""
    q, kv = np.ones((2, 1, 4, 576), np.float32), np.ones((n_pages, page, 576), np.float32)
    lengths = np.zeros(2, np.int32)
    for table in (np.zeros((2, 0), np.int32), np.zeros((2, 5), np.int32)[:, :0]):
        for lens in (lengths, None):
            out, lse = amla.decode(q, kv, table, lens, scale=1.0, backend=backend)
            assert out.shape == (2, 1, 4, 512) and not out.any() and np.isneginf(lse).all()
        plan = amla.Plan.like(q, kv, table, lengths, scale=1.0, backend=backend)
        assert not plan.run(q, kv, table, lengths)[0].any()
        mask = np.zeros((2, 1, 0), np.float16)
        assert not amla.decode(q, kv, table, lengths, scale=1.0, mask=mask)[0].any()
        with pytest.raises(ValueError, match=r"^seqlens_k\[1\]=1: must be in \[0, sk=0\]"):
            amla.decode(q, kv, table, np.array([0, 1], np.int32), scale=1.0, backend=backend)


def test_contiguous_cache_without_tokens():
    q, kv = np.ones((2, 1, 4, 576), np.float32), np.ones((2, 0, 576), np.float32)
    for lens in (None, np.zeros(2, np.int32)):
        out, lse = amla.decode(q, kv, None, lens, scale=1.0)
        assert not out.any() and np.isneginf(lse).all()


def test_pages_of_no_tokens_are_refused():
    q, kv = np.ones((2, 1, 4, 576), np.float32), np.ones((3, 0, 576), np.float32)
    with pytest.raises(ValueError, match="^kv_cache: shape .3, 0, 576.: page_size must be >= 1"):
        amla.decode(q, kv, np.zeros((2, 1), np.int32), np.zeros(2, np.int32), scale=1.0)


def test_more_shapes_than_are_remembered(rng, monkeypatch):
    from amla import _plan

    monkeypatch.setattr(_plan, "_MAX_CALLS", 4)
    for n in range(1, 12):
        kv = rng.standard_normal((1, n, 64), np.float32)
        q = rng.standard_normal((1, 1, 2, 64), np.float32)
        check(amla.decode(q, kv, scale=1.0, d_v=64), oracle.decode(q, kv, scale=1.0, d_v=64))
    assert len(_plan._calls) <= 4


# ---- DLPack ----


class OnlyDlpack:
    """Shows nothing of an array but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack_is_used_in_place(rng):
    q, kv, table, lengths = problem(rng)
    want = oracle.decode(q, kv, table, lengths, scale=SCALE)
    out = np.zeros((2, 1, 5, 512), np.float32)
    got, lse = amla.decode(
        *map(OnlyDlpack, (q, kv, table, lengths)), scale=SCALE, out=OnlyDlpack(out)
    )
    check((out, lse), want)  # written through DLPack
    assert got.ctypes.data == out.ctypes.data
    strided = np.zeros((5, 2, 1, 576), np.float32).transpose(1, 2, 0, 3)
    strided[:] = q
    check(amla.decode(OnlyDlpack(strided), kv, table, lengths, scale=SCALE), want)


def test_dlpack_gives_its_memory_back(rng):
    import gc
    import weakref

    class Owner(np.ndarray):
        pass

    q, kv, table, lengths = problem(rng)
    owner = q.view(Owner)
    alive = weakref.ref(owner)
    amla.decode(OnlyDlpack(owner), kv, table, lengths, scale=SCALE)
    del owner
    gc.collect()
    assert alive() is None


def test_dlpack_byte_offset_and_missing_strides(rng):
    from amla import _arrays

    memory = rng.standard_normal(3 + 2 * 9 * 576).astype(np.float32)
    shape = (ctypes.c_int64 * 3)(2, 9, 576)
    tensor = _arrays._DLTensor(
        memory.ctypes.data, 1, 0, 3, 2, 32, 1, shape, None, 12
    )  # begins 12 bytes in; packed
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype, new_capsule.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )

    class Offset:
        def __dlpack__(self):
            return new_capsule(ctypes.addressof(tensor), b"dltensor", None)

        def __dlpack_device__(self):
            return (1, 0)

    q, kv = rng.standard_normal((2, 1, 3, 576), np.float32), memory[3:].reshape(2, 9, 576)
    check(amla.decode(q, Offset(), scale=SCALE), oracle.decode(q, kv, scale=SCALE))


def test_dlpack_types_are_checked(rng):
    q, kv, table, lengths = problem(rng)
    with pytest.raises(
        ValueError, match="^q: DLPack type code 2 with 64 bits: must be int32, int64, float32"
    ):
        amla.decode(OnlyDlpack(q.astype(np.float64)), kv, table, lengths, scale=SCALE)

    class OnGpu(OnlyDlpack):
        def __dlpack_device__(self):
            return (2, 0)

    with pytest.raises(NotImplementedError, match="^q: DLPack device type 2: only host memory"):
        amla.decode(OnGpu(q), kv, table, lengths, scale=SCALE)


# ---- Refusals ----


def refusals():
    f32 = np.float32
    return [
        (
            dict(q=np.zeros((2, 5, 576), f32)),
            ValueError,
            r"^q: shape \[2, 5, 576\]: must be \[b, s_q, h_q, d_qk\]",
        ),
        (
            dict(q="text"),
            TypeError,
            r"^q: str: must be a NumPy array, a torch tensor or an object with __dlpack__",
        ),
        (dict(q=None), TypeError, r"^q=None"),
        (
            dict(q=np.zeros((2, 1, 5, 576))),
            ValueError,
            r"^q: dtype float64: must be float32 or bfloat16 or float16",
        ),
        (
            dict(q=np.zeros((2, 1, 5, 576), ">f4")),
            ValueError,
            r"^q: dtype >f4: must be in native byte order",
        ),
        (
            dict(
                q=np.lib.stride_tricks.as_strided(
                    np.zeros(9999, f32), (2, 1, 5, 576), (4610, 4610, 922, 4)
                )
            ),
            ValueError,
            r"^q: strides .* bytes: must be multiples",
        ),
        (
            dict(q=np.zeros((2, 1, 5, 1152), f32)[..., ::2]),
            ValueError,
            r"^q: strides .*: must be contiguous from axis 3",
        ),
        (
            dict(q=np.zeros((2, 1, 5, 576), f32)[:, :, ::-1]),
            ValueError,
            r"^q_stride_head=-576: must be >= 0",
        ),
        (
            dict(q=np.broadcast_to(np.zeros((1, 1, 5, 576), f32), (2, 1, 5, 576))),
            ValueError,
            r"^q: stride 0 along axis 0: a broadcast",
        ),
        (
            dict(kv_cache=np.zeros((9, 16, 512), f32)),
            ValueError,
            r"^kv_cache: shape \[9, 16, 512\]: must be \[n_pages, page_size, d_qk=576\]",
        ),
        (dict(kv_cache=np.zeros((9, 16, 3, 576), f32)), ValueError, r"^h_kv=3: MLA decode needs 1"),
        (dict(kv_cache=np.zeros((9, 16, 576), np.int32)), ValueError, r"^kv_cache: dtype int32"),
        (
            dict(kv_cache=np.zeros((9, 0, 576), f32)),
            ValueError,
            r"^kv_cache: shape .*page_size must be >= 1",
        ),
        (
            dict(block_table=np.zeros((2, 6), np.uint32)),
            ValueError,
            r"^block_table: dtype uint32: must be int32 or int64",
        ),
        (
            dict(block_table=np.zeros((2, 6), np.float64)),
            ValueError,
            r"^block_table: dtype float64: must be int32 or int64",
        ),
        (
            dict(block_table=np.full((2, 6), 2**31)),
            ValueError,
            r"^block_table\[0\]\[0\]=2147483648: must fit into int32",
        ),
        (
            dict(seqlens=np.array([5, -(2**31) - 1])),
            ValueError,
            r"^seqlens\[1\]=-2147483649: must fit into int32",
        ),
        (
            dict(seqlens=np.array([5, -(2**31)])),
            ValueError,
            r"^seqlens_k\[1\]=-2147483648: must be in \[0, sk=",
        ),
        (
            dict(block_table=np.zeros((3, 6), np.int32)),
            ValueError,
            r"^block_table: shape \[3, 6\]: must be \[b=2, max_pages\]",
        ),
        (
            dict(block_table=np.zeros((2, 12), np.int32)[:, ::2]),
            ValueError,
            r"^block_table: strides .*contiguous from axis 1",
        ),
        (
            dict(block_table=np.broadcast_to(np.zeros(6, np.int32), (2, 6))),
            ValueError,
            r"^block_table: stride 0 along axis 0",
        ),
        (
            dict(block_table=np.full((2, 6), 99, np.int32)),
            ValueError,
            r"^block_table\[0\]\[0\]=99: a used page id must be in \[0, n_pages=",
        ),
        (
            dict(seqlens=np.array([5, -1], np.int32)),
            ValueError,
            r"^seqlens_k\[1\]=-1: must be in \[0, sk=",
        ),
        (dict(seqlens=np.array([500, 1], np.int32)), ValueError, r"^seqlens_k\[0\]=500"),
        (
            dict(seqlens=np.array([5], np.int32)),
            ValueError,
            r"^seqlens: shape \[1\]: must be \[b=2\]",
        ),
        (
            dict(seqlens=np.array([5, 6], ">i8")),
            ValueError,
            r"^seqlens: dtype >i8: must be in native byte order",
        ),
        (dict(seqlens=[5.9, 6]), ValueError, r"^seqlens\[0\]=5.9: must be an integer"),
        (dict(seqlens=[5, "6"]), ValueError, r"^seqlens\[1\]='6': must be an integer"),
        (dict(seqlens=[True, 6]), ValueError, r"^seqlens\[0\]=True: must be an integer"),
        (dict(seqlens=[5, 2**40]), ValueError, r"^seqlens\[1\]=1099511627776: must fit into int32"),
        (
            dict(block_table=[[0.6, 1], [2, 3]]),
            ValueError,
            r"^block_table\[0\]\[0\]=0.6: must be an integer",
        ),
        (
            dict(block_table=[[0], [2, 3]]),
            ValueError,
            r"^block_table\[0\]=\[0\]: all rows must be equally long",
        ),
        (dict(sinks=["a"] * 5), ValueError, r"^sinks\[0\]='a': must be a number"),
        (dict(q=np.ma.masked_array(np.zeros((2, 1, 5, 576), f32))), TypeError, r"^q: MaskedArray"),
        (dict(scale=None), ValueError, r"^scale=None: must be a plain number"),
        (dict(scale=np.array(0.1)), ValueError, r"^scale=array\(0.1\): must be a plain number"),
        (dict(causal="no"), ValueError, r"^causal='no': must be True or False"),
        (dict(d_v=512.0), ValueError, r"^d_v=512.0: must be an integer"),
        (dict(rescale=["lazy"]), ValueError, r"^rescale=\['lazy'\]: must be one of"),
        (
            dict(out_dtype="bfloat16"),
            ValueError,
            r"^out_dtype=bfloat16: must be out's, float32, or not be given",
        ),
        (dict(out_dtype=object(), out=None), ValueError, r"^out_dtype=<object"),
        (dict(sinks=np.zeros(4, f32)), ValueError, r"^sinks: shape \[4\]: must be \[h_q=5\]"),
        (
            dict(mask=np.zeros((2, 1, 96), f32)),
            ValueError,
            r"^mask: dtype float32: must be float16",
        ),
        (
            dict(mask=np.zeros((2, 1, 95), np.float16)),
            ValueError,
            r"^mask: shape \[2, 1, 95\]: must be \[b=2, s_q=1, sk=96\]",
        ),
        (dict(d_v=577, out=None), ValueError, r"^d_v=577: must be <= d_qk=576"),
        (dict(d_v=2**40, out=None), ValueError, r"^d_v=1099511627776: must be <= 2147483647"),
        (dict(scale=0.0), ValueError, r"^scale=0: must be finite and not 0"),
        (dict(scale=float("nan")), ValueError, r"^scale=nan"),
        (
            dict(rescale="slow"),
            ValueError,
            r"^rescale='slow': must be one of 'default', 'lazy', 'amla', 'flash'",
        ),
        (dict(backend="gpu"), ValueError, r"^backend='gpu': must be one of"),
        (dict(lse_base=10), ValueError, r"^lse_base=10: must be one of 'e', 2"),
        (dict(threads=-1), ValueError, r"^threads=-1"),
        (dict(threads=5000), ValueError, r"^threads=5000: must be <= "),
        (dict(threads="two"), ValueError, r"^threads='two': must be an integer"),
        (dict(backend="cuda"), (NotImplementedError, ValueError), r"^(backend=cuda|memory=host): "),
        (
            dict(out=np.zeros((2, 1, 5, 511), f32)),
            ValueError,
            r"^out: shape \[2, 1, 5, 511\]: must be \[b=2, s_q=1, h_q=5, d_v=512\]",
        ),
        (dict(out=np.zeros((2, 1, 5, 512))), ValueError, r"^out_type='float64'"),
        (
            dict(lse=np.zeros((2, 1, 5), f32)),
            ValueError,
            r"^lse: shape \[2, 1, 5\]: must be \[b=2, h_q=5, s_q=1\]",
        ),
        (
            dict(lse=np.zeros((2, 5, 2), f32)[..., :1]),
            ValueError,
            r"^lse: strides .*: must be contiguous from axis 0",
        ),
    ]


@pytest.mark.parametrize(
    "change, error, words", refusals(), ids=lambda x: x if isinstance(x, str) else None
)
def test_refusals(rng, change, error, words):
    q, kv, table, lengths = problem(rng, n_max=70)
    out = np.full((2, 1, 5, 512), 3.0, np.float32)
    arguments = {
        **dict(q=q, kv_cache=kv, block_table=table, seqlens=lengths, scale=SCALE, out=out),
        **change,
    }
    with pytest.raises(error, match=words):
        amla.decode(**arguments)
    assert (out == 3).all()


def test_overlap_is_refused(rng):
    q, kv, table, lengths = problem(rng)
    with pytest.raises(ValueError, match="^out=.*: must not overlap q"):
        amla.decode(q, kv, table, lengths, scale=SCALE, out=q[..., :512])


def test_a_number_of_another_type_is_refused_though_its_value_was_seen(rng):
    q, kv, table, lengths = problem(rng)
    amla.decode(q, kv, table, lengths, scale=SCALE, d_v=512)
    with pytest.raises(ValueError, match="^d_v=512.0: must be an integer"):
        amla.decode(q, kv, table, lengths, scale=SCALE, d_v=512.0)


def test_parent_and_forked_child_do_not_share_scratch():
    code = """
import os, numpy as np, amla
from amla import _plan
q, kv = np.ones((1, 1, 8, 576), np.float32), np.ones((1, 99, 576), np.float32)
call = lambda: amla.decode(q, kv, scale=1.0, threads=1)
call()
memory = _plan._free[0].memory
memory[0] = 7
if os.fork() == 0:
    memory[0] = 9
    os._exit(0 if call()[0].max() == 1 else 1)
assert os.wait()[1] == 0 and memory[0] == 7, memory[0]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_exit_handlers_may_still_decode():
    code = """
import atexit, numpy as np, amla
q, kv = np.ones((1, 1, 8, 576), np.float32), np.ones((1, 99, 576), np.float32)
call = lambda: amla.decode(q, kv, scale=1.0)
atexit.register(lambda: print(call()[0].max()))
call()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["1.0"]


# ---- Plan ----


def test_plan_runs_what_it_was_made_for(rng):
    q, kv, table, lengths = problem(rng, s_q=2)
    plan = amla.Plan.like(q, kv, table, lengths, scale=SCALE, causal=True, threads=1)
    assert (
        "lazy" in plan.describe()
        and "1 thread" in plan.describe()
        and plan.scratch_bytes > 0
        and "h_q=5" in repr(plan)
    )
    for _ in range(2):
        check(
            plan.run(q, kv, table, lengths),
            oracle.decode(q, kv, table, lengths, scale=SCALE, causal=True),
        )
    lengths2 = lengths // 2
    check(
        plan.run(q, kv, table, lengths2),
        oracle.decode(q, kv, table, lengths2, scale=SCALE, causal=True),
    )
    with pytest.raises(ValueError, match="^h_q=4: the plan was made for h_q=5"):
        plan.run(q[:, :, :4], kv, table, lengths)
    with pytest.raises(
        ValueError, match=r"^q_stride_\w+=\d+: the plan was made for q_stride_\w+=\d+"
    ):
        plan.run(np.repeat(q, 2, axis=2)[:, :, ::2], kv, table, lengths)
    with pytest.raises(ValueError, match="^kv_type=float16: the plan was made for kv_type=float32"):
        plan.run(q, kv.astype(np.float16), table, lengths)


def test_plan_from_numbers(rng):
    q, kv, table, lengths = problem(rng)
    plan = amla.Plan(
        b=2,
        h_q=5,
        sk=96,
        page_size=16,
        n_pages=len(kv),
        q_type="float32",
        kv_type="float32",
        out_type="float32",
        scale=SCALE,
    )
    check(plan.run(q, kv, table, lengths), oracle.decode(q, kv, table, lengths, scale=SCALE))
    with pytest.raises(
        ValueError, match=r"^q_stride_\w+=\d+: the plan was made for q_stride_\w+=\d+"
    ):
        plan.run(np.repeat(q, 2, axis=2)[:, :, ::2], kv, table, lengths)
    with pytest.raises(ValueError, match="^n_heads: no such field of a plan"):
        amla.Plan(n_heads=4, scale=1.0)
    with pytest.raises(ValueError, match="^max_pages=1: must be >= 2"):
        amla.Plan(sk=64, page_size=32, max_pages=1, n_pages=4, scale=1.0)
    with pytest.raises(ValueError, match="^b=2147483648: must be <= 2147483647"):
        amla.Plan(b=2**31, scale=1.0)


# ---- Threads ----


def test_the_gil_is_released_and_calls_may_run_at_once(rng):
    q = rng.standard_normal((8, 1, 128, 576), np.float32)
    kv = rng.standard_normal((8, 2000, 576), np.float32)
    want, _ = amla.decode(q, kv, scale=SCALE, threads=1)
    results, ticks, done = [None] * 3, 0, threading.Event()

    def work(i):
        results[i] = amla.decode(q, kv, scale=SCALE, threads=1)[0]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # without a release this thread gets no turn before the calls end
    try:
        for w in workers:
            w.start()
        while any(w.is_alive() for w in workers):
            ticks += 1
            done.wait(0.001)
    finally:
        sys.setswitchinterval(switch)
    assert ticks > 5
    for out in results:
        assert out.tobytes() == want.tobytes()


def test_same_bits_for_any_number_of_threads(rng):
    q, kv, table, lengths = problem(rng, b=3, s_q=2, h=16, page=64, n_max=2000)
    one = amla.decode(q, kv, table, lengths, scale=SCALE, threads=1)
    for threads in (2, 3, 8):
        many = amla.decode(q, kv, table, lengths, scale=SCALE, threads=threads)
        assert one[0].tobytes() == many[0].tobytes() and one[1].tobytes() == many[1].tobytes()


# ---- Merge ----


@pytest.mark.parametrize("base", ["e", 2])
def test_merge_of_parts_is_the_whole(rng, base):
    q = rng.standard_normal((2, 3, 4, 576), np.float32)
    kv = rng.standard_normal((2, 90, 576), np.float32)
    cuts = [0, 17, 18, 90]
    parts = [
        amla.decode(q, np.ascontiguousarray(kv[:, a:b]), scale=SCALE, lse_base=base)
        for a, b in zip(cuts, cuts[1:])
    ]
    parts.append(
        (np.full_like(parts[0][0], np.nan), np.full_like(parts[0][1], -np.inf))
    )  # saw nothing
    out, lse = amla.merge(
        np.stack([o for o, _ in parts]), np.stack([s for _, s in parts]), lse_base=base
    )
    assert out.shape == (2, 3, 4, 512) and lse.shape == (2, 4, 3)
    check((out, lse * (np.log(2) if base == 2 else 1)), oracle.decode(q, kv, scale=SCALE))
    rows, rows_lse = amla.merge(
        rng.standard_normal((2, 7, 16), np.float32), np.zeros((2, 7), np.float32)
    )
    assert rows.shape == (7, 16) and np.allclose(rows_lse, np.log(2))


@pytest.mark.parametrize(
    "o, lse, words",
    [
        (
            np.zeros((2, 3, 4), np.float16),
            np.zeros((2, 3), np.float32),
            "^o: dtype float16: must be float32",
        ),
        (
            np.zeros((2, 3, 4), np.float32),
            np.zeros((3, 2), np.float32),
            r"^lse: shape \[3, 2\]: must be \[2, 3\]",
        ),
        (np.zeros((2, 3, 8), np.float32)[..., ::2], np.zeros((2, 3), np.float32), "^o: strides"),
        (np.zeros((0, 3, 4), np.float32), np.zeros((0, 3), np.float32), "^n_parts=0: must be >= 1"),
        (
            np.zeros((2, 1, 3, 4, 8), np.float32),
            np.zeros((2, 1, 3, 4), np.float32),
            r"^lse: shape \[2, 1, 3, 4\]: must be \[2, 1, 4, 3\]",
        ),
    ],
)
def test_merge_refusals(o, lse, words):
    with pytest.raises(ValueError, match=words):
        amla.merge(o, lse)


# ---- The rest ----


def test_bench_checks_and_times(monkeypatch):
    result = amla.bench(b=2, s_q=2, h_q=4, sk=100, causal=True, seconds=0.02, threads=1)
    assert (
        result.seconds <= result.median_seconds
        and result.rel_error < 5e-3
        and result.calls >= 1
        and "1 thread" in str(result)
    )
    flops = 2 * 2 * (99 + 100) * 4 * (576 + 512)
    assert result.gflops == pytest.approx(flops / result.seconds / 1e9)
    monkeypatch.setattr(
        "amla._bench.attention_f64", lambda q, kv, scale, d_v, causal: (np.ones((2, 4, 512)), None)
    )
    with pytest.raises(RuntimeError, match="nothing was timed"):
        amla.bench(s_q=2, h_q=4, sk=100, seconds=0.02)
    for options, words in (
        (dict(b=0), "^b=0: must be >= 1"),
        (dict(b="x"), "^b='x': must be an integer"),
        (dict(page_size=-1), "^page_size=-1: must be >= 0"),
        (dict(dtype="int8"), "^dtype='int8': must be one of"),
        (dict(foo=1), "^foo: no such option"),
    ):
        with pytest.raises(ValueError, match=words):
            amla.bench(**options)


def test_backends():
    found = amla.backends()
    assert (
        set(found) == {"ref", "cpu", "cuda", "npu"}
        and found["ref"] == "available"
        and found["cpu"] in ("c", "avx2", "avx512")
    )


def test_import_is_light_and_a_missing_library_is_explained():
    code = "import sys, amla; assert 'torch' not in sys.modules and 'ml_dtypes' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    import os

    result = subprocess.run(
        [sys.executable, "-c", "import amla"],
        env={**os.environ, "AMLA_LIBRARY": "nowhere.so"},
        capture_output=True,
        text=True,
    )
    assert (
        result.returncode != 0
        and "amla: cannot load nowhere.so" in result.stderr
        and "set AMLA_LIBRARY" in result.stderr
    )


def test_statuses_become_exceptions():
    from amla import _library

    for status, error in (
        (1, ValueError),
        (2, NotImplementedError),
        (3, MemoryError),
        (4, RuntimeError),
    ):
        with pytest.raises(error, match="^why$"):
            _library.raise_status(status, _library.Detail(text=b"why"))


def test_mypy_is_content(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    import pathlib

    import amla as package

    folder = pathlib.Path(package.__file__).parent
    assert (folder / "py.typed").exists()
    config = pathlib.Path(__file__).resolve().parents[2] / "pyproject.toml"
    # What torch's own types add takes half a minute: in the long run only.
    fast = (
        []
        if LONG
        else [
            "--follow-imports=skip",
            "--disable-error-code=untyped-decorator",
            "--disable-error-code=misc",
        ]
    )
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(config),
            "--cache-dir",
            str(tmp_path),
            *fast,
            "-p",
            "amla",
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout
