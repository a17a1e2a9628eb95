# SPDX-License-Identifier: Apache-2.0
"""Properties of amla.decode over random shapes, strides, lengths and page layouts (hypothesis). A
failure prints the example."""

import numpy as np
import pytest

import amla
import oracle

hypothesis = pytest.importorskip("hypothesis")
ml_dtypes = pytest.importorskip("ml_dtypes")
from hypothesis import HealthCheck, given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from conftest import LONG  # noqa: E402

hypothesis.settings.register_profile(
    "amla",
    max_examples=5000 if LONG else 200,
    deadline=None,
    derandomize=not LONG,
    database=None,
    suppress_health_check=list(HealthCheck),
)
hypothesis.settings.load_profile("amla")
DTYPES = {
    "float32": (np.float32, 3e-6),
    "float16": (np.float16, 1e-3),
    "bfloat16": (ml_dtypes.bfloat16, 8e-3),
}


@st.composite
def shapes(draw):
    d_qk = draw(st.sampled_from([1, 16, 33, 64, 576]))
    return dict(
        b=draw(st.integers(0, 4)),
        s_q=draw(st.integers(1, 4)),
        h_q=draw(st.integers(1, 20)),
        d_qk=d_qk,
        d_v=draw(st.integers(1, d_qk)),
        page=draw(st.sampled_from([1, 2, 7, 16, 64])),
        pages=draw(st.integers(1, 5)),
        causal=draw(st.booleans()),
        dtype=draw(st.sampled_from(sorted(DTYPES))),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def strided(rng, shape, dtype, order, gaps):
    """An uninitialised view of that shape inside larger memory: axes before the last in the order
    given, with gaps."""
    lead = [shape[i] + gaps[i] for i in order]
    memory = np.full((*lead, shape[-1] + gaps[-1]), 77, dtype)
    view = memory.transpose(*np.argsort(order), len(shape) - 1)
    return view[tuple(slice(0, n) for n in shape)]


@given(shape=shapes(), data=st.data())
def test_any_shape_and_strides(shape, data):
    rng = np.random.default_rng(shape["seed"])
    dtype, tolerance = DTYPES[shape["dtype"]]
    b, s_q, h, d, page, per = (shape[k] for k in ("b", "s_q", "h_q", "d_qk", "page", "pages"))
    n_pages = max(1, b * per)
    gaps = st.lists(st.integers(0, 3), min_size=4, max_size=4)
    q = strided(rng, (b, s_q, h, d), dtype, data.draw(st.permutations([0, 1, 2])), data.draw(gaps))
    kv = strided(
        rng, (n_pages, page, d), dtype, data.draw(st.permutations([0, 1])), data.draw(gaps)[:3]
    )
    out = strided(
        rng,
        (b, s_q, h, shape["d_v"]),
        dtype,
        data.draw(st.permutations([0, 1, 2])),
        data.draw(gaps),
    )
    table = strided(rng, (b, per), np.int32, [0], data.draw(gaps)[:2])
    lengths = np.array(
        data.draw(st.lists(st.integers(0, page * per), min_size=b, max_size=b)), np.int32
    )
    q[:], kv[:] = rng.standard_normal(q.shape), rng.standard_normal(kv.shape)
    table[:] = rng.permutation(n_pages)[: b * per].reshape(b, per)

    options = dict(scale=d**-0.5, causal=shape["causal"], d_v=shape["d_v"])
    got, lse = amla.decode(q, kv, table, lengths, out=out, **options)
    assert got is out
    packed, packed_lse = amla.decode(q.copy(), kv.copy(), table.copy(), lengths, **options)
    assert (
        out.astype(np.float32).tobytes() == packed.astype(np.float32).tobytes()
        and lse.tobytes() == packed_lse.tobytes()
    )
    if b:
        want, want_lse = oracle.decode(
            q.astype(np.float64), kv.astype(np.float64), table, lengths, **options
        )
        assert oracle.rel_error(out, want) < tolerance
        np.testing.assert_allclose(lse, want_lse, rtol=1e-5, atol=1e-5)


@given(shape=shapes(), cut=st.floats(0, 1))
def test_two_parts_merge_to_the_whole(shape, cut):
    rng = np.random.default_rng(shape["seed"])
    n, b = shape["page"] * shape["pages"] + 1, max(1, shape["b"])
    q = rng.standard_normal((b, shape["s_q"], shape["h_q"], shape["d_qk"]), np.float32)
    kv = rng.standard_normal((b, n, shape["d_qk"]), np.float32)
    at = min(n - 1, max(1, int(cut * n)))
    options = dict(scale=shape["d_qk"] ** -0.5, d_v=shape["d_v"])
    parts = [amla.decode(q, kv[:, :at], **options), amla.decode(q, kv[:, at:], **options)]
    out, lse = amla.merge(*(np.stack(x) for x in zip(*parts)))
    whole, whole_lse = amla.decode(q, kv, **options)
    assert oracle.rel_error(out, whole) < 1e-5
    np.testing.assert_allclose(lse, whole_lse, rtol=1e-5, atol=1e-5)


@given(shape=shapes(), shift=st.integers(0, 40))
def test_overlapping_pages_walk_any_run(shape, shift):
    """Pages may overlap: with a page stride of one token a block table walks a run that begins
    anywhere. amla.transformers lives on it."""
    rng = np.random.default_rng(shape["seed"])
    d, page, n = shape["d_qk"], shape["page"], shape["page"] * shape["pages"]
    memory = rng.standard_normal((shift + n + page, d), np.float32)
    pages = np.lib.stride_tricks.as_strided(
        memory, (shift + n + 1, page, d), (d * 4, d * 4, 4), writeable=False
    )
    table = (shift + page * np.arange(shape["pages"], dtype=np.int32))[None]
    q = rng.standard_normal((1, shape["s_q"], shape["h_q"], d), np.float32)
    options = dict(scale=d**-0.5, d_v=shape["d_v"], causal=shape["causal"])
    got = amla.decode(q, pages, table, **options)
    direct = amla.decode(q, memory[None, shift : shift + n], **options)
    assert got[0].tobytes() == direct[0].tobytes() and got[1].tobytes() == direct[1].tobytes()


@given(
    shape=shapes(),
    wrong=st.sampled_from(["q", "kv_cache", "block_table", "seqlens"]),
    by=st.integers(1, 3),
)
def test_a_wrong_shape_is_a_value_error(shape, wrong, by):
    b, d = shape["b"] + 1, shape["d_qk"]
    sizes = dict(
        q=[b, 1, shape["h_q"], d], kv_cache=[4, shape["page"], d], block_table=[b, 2], seqlens=[b]
    )
    axis = {"q": 3, "kv_cache": 2, "block_table": 0, "seqlens": 0}[wrong]
    sizes[wrong][axis] += by
    arrays = {
        k: np.zeros(v, np.float32 if k in ("q", "kv_cache") else np.int32) for k, v in sizes.items()
    }
    with pytest.raises(ValueError, match="shape"):
        amla.decode(**arrays, scale=1.0, d_v=1)
