# SPDX-License-Identifier: Apache-2.0
"""amla.index_topk against fp64: small integers have exact scores, so that the lists must be
fp64's."""

import numpy as np
import pytest

import amla
import oracle

ml_dtypes = pytest.importorskip("ml_dtypes")
B, S_Q, HEADS, D, PAGE, PAGES, COLUMNS = 3, 2, 8, 32, 16, 12, 4


def problem(rng, keys=None):
    """q, weights, the cache, fp64 rows of it, and how it is read."""
    q = rng.integers(-3, 4, (B, S_Q, HEADS, D)).astype(np.float32)
    weights = rng.integers(-2, 5, (B, S_Q, HEADS)).astype(np.float32)
    rows = rng.integers(-3, 4, (PAGES, PAGE, D)).astype(np.float64)
    table = np.stack([rng.permutation(PAGES)[:COLUMNS] for _ in range(B)])
    seqlens = np.array([64, 0, 37])
    if keys is None:
        return (
            q,
            weights,
            rows.astype(ml_dtypes.bfloat16),
            rows,
            dict(block_table=table, seqlens=seqlens),
        )
    scales = rng.choice([0.5, 1, 2], (PAGES, PAGE)).astype(np.float32)
    codes = rows.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    cache = np.concatenate((codes, scales[..., None].view(np.uint8)), -1)
    if keys == "fp8_page":
        parts = codes.reshape(PAGES, -1), scales.view(np.uint8).reshape(PAGES, -1)
        cache = np.concatenate(parts, -1).reshape(PAGES, PAGE, D + 4)
    how = dict(block_table=table, seqlens=seqlens, keys=keys)
    return q, weights, cache, rows * scales[..., None], how


def truth(q, weights, rows, topk, how, causal, slots, visible=None):
    table, seqlens = how["block_table"], how["seqlens"]
    lists = np.full((B, S_Q, topk), -1, np.int32)
    scores = np.full((B, S_Q, COLUMNS * PAGE), -np.inf)
    for i, j in np.ndindex(B, S_Q):
        keys = oracle.tokens_of(rows, table, int(seqlens[i]), i)
        n = max(0, len(keys) - S_Q + j + 1) if causal else len(keys)
        n = n if visible is None else int(visible[i, j])
        scores[i, j, :n] = oracle.index_scores(q[i, j], weights[i, j], keys[:n])
        lists[i, j] = chosen = oracle.best(scores[i, j, :n], topk)
        if slots:
            at = table[i][np.maximum(chosen, 0) // PAGE] * PAGE + chosen % PAGE
            lists[i, j] = np.where(chosen < 0, -1, at)
    return lists, scores


@pytest.mark.parametrize("keys", [None, "fp8_page", "fp8_token"])
@pytest.mark.parametrize("causal, kind", [(False, "slot"), (True, "position")])
def test_lists_and_scores_are_those_of_fp64(rng, keys, causal, kind):
    q, weights, cache, rows, how = problem(rng, keys)
    for topk in (5, 40, 100):
        want = truth(q, weights, rows, topk, how, causal, kind == "slot")
        options = dict(topk=topk, causal=causal, index_kind=kind, **how)
        got = amla.index_topk(q, weights, cache, scores=True, **options)
        assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1])
        assert np.array_equal(amla.index_topk(q, weights, cache, threads=2, **options), want[0])


def test_visible_and_strides(rng):
    q, weights, cache, rows, how = problem(rng)
    visible = np.array([[64, 1], [0, 0], [37, 20]])
    want = truth(q, weights, rows, 9, how, False, True, visible)[0]
    apart = np.zeros((2 * PAGES, PAGE, 1, D), cache.dtype)
    apart[1::2, :, 0] = cache
    wide = np.zeros((B, S_Q, 2 * HEADS, D), np.float32)
    wide[:, :, ::2] = q
    got = amla.index_topk(wide[:, :, ::2], weights, apart[1::2], visible=visible, topk=9, **how)
    assert np.array_equal(got, want)


def test_contiguous_keys_and_an_fp8_query(rng):
    q, weights, _, rows, _ = problem(rng)
    codes = q.astype(ml_dtypes.float8_e4m3fn)
    keys = rows[:B].astype(ml_dtypes.bfloat16)
    scales = rng.choice([0.5, 2], (B, S_Q, HEADS)).astype(np.float32)
    got = amla.index_topk(codes, weights, keys, q_scales=scales, topk=7)
    for i, j in np.ndindex(B, S_Q):
        exact = q[i, j] * scales[i, j][:, None]
        chosen = oracle.best(oracle.index_scores(exact, weights[i, j], rows[i]), 7)
        assert np.array_equal(got[i, j], chosen + i * PAGE)


def test_a_whole_step(rng):
    """Lists of the indexer are what decode takes."""
    q, weights, cache, _, how = problem(rng)
    query = rng.standard_normal((B, S_Q, 5, 96)).astype(np.float32)
    kv = rng.standard_normal((PAGES, PAGE, 96)).astype(np.float32)
    for kind, pages in (("slot", {}), ("position", how)):
        lists = amla.index_topk(q, weights, cache, topk=9, causal=True, index_kind=kind, **how)
        options = dict(indices=lists, index_kind=kind, **pages)
        out, lse = amla.decode(query, kv, scale=0.1, d_v=64, **options)
        want = oracle.attend_keys(query, kv, 0.1, 64, **options)
        np.testing.assert_allclose(out, want[0], rtol=1e-5, atol=1e-5)


def test_refusals(rng):
    q, weights, cache, _, how = problem(rng)
    base = dict(q=q, weights=weights, k_cache=cache, topk=9, **how)
    for change, error, words in (
        (dict(weights=weights[:, :1]), ValueError, "weights: shape [3, 1, 8]: must be [b=3, s_q=2"),
        (
            dict(k_cache=cache[..., :20]),
            ValueError,
            "k_cache: shape [12, 16, 20]: must be [n_pages",
        ),
        (dict(k_cache=cache.astype("f4")), ValueError, "k_cache: dtype float32: must be bfloat16"),
        (dict(keys="fp8_page"), ValueError, "k_cache: dtype bfloat16: must be uint8"),
        (
            dict(keys="fp4"),
            ValueError,
            "keys='fp4': must be one of 'bf16', 'fp8_page', 'fp8_token'",
        ),
        (dict(topk=-1), ValueError, "topk=-1: "),
        (dict(seqlens=[64, 0, 65]), ValueError, "seqlens_k[2]=65: "),
        (dict(q=None), TypeError, "q=None: must be an array"),
        (dict(scores=3), ValueError, "scores=3: must be True or False"),
    ):
        with pytest.raises(error) as caught:
            amla.index_topk(**{**base, **change})
        assert str(caught.value).startswith(words)


def test_the_torch_operator(rng):
    torch = pytest.importorskip("torch")
    q, weights, _, rows, how = problem(rng)
    arguments = [torch.from_numpy(x) for x in (q, weights)] + [torch.from_numpy(rows).bfloat16()]
    arguments += [torch.from_numpy(how[name]).int() for name in ("block_table", "seqlens")]

    def step(*arguments):
        return amla.index_topk(*arguments, topk=9, scores=True)

    want = step(*arguments)
    assert all(isinstance(x, torch.Tensor) for x in want)
    torch._dynamo.reset()
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(*arguments)
    assert all(torch.equal(x, y) for x, y in zip(got, want))
    named = dict(topk=9, scores=True)
    results = torch.library.opcheck(torch.ops.amla.index_topk.default, tuple(arguments), named)
    assert set(results.values()) == {"SUCCESS"}
