# SPDX-License-Identifier: Apache-2.0
"""amla.merge_parts: parts of two scopes and a sink are one step over both."""

import numpy as np
import pytest

import amla

SCALE = 0.1


def parts(rng, s_q=2):
    """out and lse of two disjoint lists, of both together, and of both with a sink."""
    q = rng.standard_normal((3, s_q, 5, 96)).astype(np.float32)
    kv = rng.standard_normal((7, 16, 96)).astype(np.float32)
    lists = rng.permutation(96)[: 3 * 16 * s_q].reshape(3, s_q, 16).astype(np.int32)
    lists[1, :, :9] = -1
    lists[2] = -1
    sinks = rng.standard_normal(5).astype(np.float32)
    halves = [
        amla.decode(q, kv, scale=SCALE, d_v=64, indices=x) for x in (lists[..., :9], lists[..., 9:])
    ]
    o, lse = (np.stack(x) for x in zip(*halves))
    whole = [
        amla.decode(
            q, kv, scale=SCALE, d_v=64, indices=lists, lse_sink=x > 1, sinks=sinks if x else None
        )
        for x in range(3)
    ]
    return o, lse, sinks, whole


def near(got, want):
    for x, y in zip(got, want):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("s_q", [1, 2])
def test_parts_are_the_whole(rng, s_q):
    o, lse, sinks, (plain, sunk, both) = parts(rng, s_q)
    near(amla.merge_parts(o, lse), plain)
    near(amla.merge_parts(o, lse, sinks=sinks), sunk)
    got = amla.merge_parts(o, lse, sinks=sinks, lse_sink=True)
    np.testing.assert_allclose(got[1][:2], both[1][:2], rtol=1e-5)
    np.testing.assert_allclose(got[1][2], np.tile(sinks[:, None], (1, s_q)), rtol=1e-6)
    marked = np.where(np.isneginf(lse), np.inf, lse)
    merged, merged_lse = amla.merge_parts(o, marked, empty="+inf")
    near((merged[:2], merged_lse[:2]), (plain[0][:2], plain[1][:2]))
    assert np.isposinf(merged_lse[2]).all() and not merged[2].any()
    same = amla.merge(o, lse)
    assert all(np.array_equal(x, y) for x, y in zip(same, amla.merge_parts(o, lse)))


def test_parts_apart_rows_and_types(rng):
    o, lse, sinks, (plain, *_) = parts(rng)
    room = np.full((4, *o.shape[1:]), np.nan, np.float32)
    room[::2] = o
    want = amla.merge_parts(o, lse)
    near(amla.merge_parts(room[::2], lse), want)
    rows = o.reshape(2, -1, 64), np.ascontiguousarray(lse.swapaxes(-1, -2)).reshape(2, -1)
    flat = amla.merge_parts(*rows, sinks=sinks)
    near((flat[0].reshape(o.shape[1:]),), (amla.merge_parts(o, lse, sinks=sinks)[0],))
    half = amla.merge_parts(o, lse, out_dtype="float16")[0]
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, want[0].astype(np.float16))


def test_refusals(rng):
    o, lse, sinks, _ = parts(rng)
    for change, error, words in (
        (dict(lse=lse[..., :1]), ValueError, "lse: shape [2, 3, 5, 1]: must be [n_parts=2, b=3, h"),
        (dict(o=o[:, ::2], lse=lse[:, ::2]), ValueError, "o: strides"),
        (dict(o=o.astype(np.float16)), ValueError, "o: dtype float16: must be float32"),
        (dict(sinks=sinks[:4]), ValueError, "sinks: shape [4]: must be [h_q=5]"),
        (dict(empty="nan"), ValueError, "empty='nan': must be one of '-inf', '+inf'"),
        (dict(lse_sink=True), ValueError, "lse_sink=1: needs sinks"),
        (dict(out_dtype="int8"), ValueError, "out_dtype='int8': must be one of"),
        (dict(o=None), TypeError, "o=None: must be an array"),
    ):
        with pytest.raises(error) as caught:
            amla.merge_parts(**{**dict(o=o, lse=lse), **change})
        assert str(caught.value).startswith(words)


def test_the_torch_operator(rng):
    torch = pytest.importorskip("torch")
    o, lse, sinks = (torch.from_numpy(x) for x in parts(rng)[:3])

    def step(o, lse, sinks):
        return amla.merge_parts(o, lse, sinks=sinks, out_dtype=torch.bfloat16)

    want = step(o, lse, sinks)
    assert want[0].dtype == torch.bfloat16
    torch._dynamo.reset()
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(o, lse, sinks)
    assert all(torch.equal(x, y) for x, y in zip(got, want))
    arguments = (o, lse, sinks, "e", "-inf", False, "bfloat16")
    results = torch.library.opcheck(torch.ops.amla.merge_parts.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
