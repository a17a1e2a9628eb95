# SPDX-License-Identifier: Apache-2.0
"""What a query sees: lists, two scopes, windows, visible lengths, ragged queries, pages as
FlashInfer has them, rope parts that lie apart; against fp64 and the same thing said otherwise."""

import itertools

import numpy as np
import pytest

import amla
import oracle

SCALE = 192**-0.5
D, D_V = 96, 64
B, S_Q, H, PAGE, PAGES = 3, 2, 5, 8, 12


def cache(rng, n_pages=PAGES, page=PAGE, d=D):
    return rng.standard_normal((n_pages, page, d)).astype(np.float32)


def queries(rng, b=B, s_q=S_Q, d=D):
    return rng.standard_normal((b, s_q, H, d)).astype(np.float32)


def lists(rng, room, topk, b=B, s_q=S_Q):
    """Entries of all kinds: some -1, one twice."""
    indices = rng.integers(0, room, (b, s_q, topk)).astype(np.int32)
    indices[rng.random(indices.shape) < 0.2] = -1
    indices[..., -1] = indices[..., 0]
    return indices


def tables(rng, n_pages=PAGES, columns=3, b=B):
    return np.stack([rng.permutation(n_pages)[:columns] for _ in range(b)]).astype(np.int32)


def check(got, want):
    for name, x, y in zip(("out", "lse", "max_logits"), got, want):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape, name
        assert np.array_equal(np.isneginf(x), np.isneginf(y)), name
        finite = np.isfinite(y)
        np.testing.assert_allclose(x[finite], y[finite], rtol=2e-5, atol=2e-5, err_msg=name)


def decode(q, kv, **arguments):
    return amla.decode(q, kv, scale=SCALE, d_v=D_V, max_logits=True, **arguments)


@pytest.mark.parametrize(
    "topk, lengths, sinks", list(itertools.product([1, 40], [0, 1, 2], [0, 1]))
)
def test_a_list_of_slots(rng, topk, lengths, sinks):
    q, kv, indices = queries(rng), cache(rng), lists(rng, PAGES * PAGE, topk)
    scope = dict(indices=indices)
    if lengths:
        shape = (B,) if lengths == 1 else (B, S_Q)
        n = scope["topk_length"] = rng.integers(0, topk + 1, shape).astype(np.int32)
        hidden = np.arange(topk) >= np.broadcast_to(n.reshape(B, -1), (B, S_Q))[..., None]
        indices[hidden] = 2**31 - 1  # anything may lie behind them
    more = dict(sinks=rng.standard_normal(H).astype(np.float32)) if sinks else {}
    seen = {tuple(divmod(int(x), PAGE)) for x in indices[(indices >= 0) & (indices < 2**30)]}
    for page, token in itertools.product(range(PAGES), range(PAGE)):
        if (page, token) not in seen:
            kv[page, token] = np.nan
    got = decode(q, kv, **scope, **more)
    check(got, oracle.attend_keys(q, kv, SCALE, D_V, **scope, **more))


@pytest.mark.parametrize("paged", [True, False])
def test_a_list_of_positions(rng, paged):
    q, kv = queries(rng), cache(rng) if paged else cache(rng, B, 24)
    scope = dict(indices=lists(rng, 17, 30), index_kind="position")
    scope["seqlens"] = np.array([17, 24, 20], np.int32)
    if paged:
        scope["block_table"] = tables(rng)
    check(decode(q, kv, **scope), oracle.attend_keys(q, kv, SCALE, D_V, **scope))


def test_a_contiguous_cache_has_slots_too(rng):
    q, kv, indices = queries(rng), cache(rng, B, 24), lists(rng, B * 24, 30)
    check(decode(q, kv, indices=indices), oracle.attend_keys(q, kv, SCALE, D_V, indices=indices))


@pytest.mark.parametrize(
    "first, second", list(itertools.product(["list", "dense", "window"], [1, 0]))
)
def test_two_scopes(rng, first, second):
    q, kv, other = queries(rng), cache(rng), cache(rng, 7, 16)
    scope = dict(block_table=tables(rng), seqlens=np.array([17, 0, 20], np.int32))
    if first == "list":
        scope = dict(indices=lists(rng, PAGES * PAGE, 9))
    if first == "window":
        scope |= dict(causal=True, window=5)
    extra = dict(kv_cache=other, indices=lists(rng, 7 * 16, 20))
    extra["topk_length"] = np.array([20, 0, 3], np.int32)
    if not second:
        extra = dict(kv_cache=other, block_table=tables(rng, 7, 2))
        extra["seqlens"] = np.array([32, 0, 5], np.int32)
    sinks = rng.standard_normal(H).astype(np.float32)
    got = decode(q, kv, **scope, extra=amla.Scope(**extra), sinks=sinks)
    check(got, oracle.attend_keys(q, kv, SCALE, D_V, sinks=sinks, extra=extra, **scope))


def test_visible_lengths_and_window(rng):
    q, kv, table = queries(rng), cache(rng), tables(rng)
    visible = rng.integers(0, 25, (B, S_Q))
    for window in (0, 6):
        scope = dict(block_table=table, visible=visible, window=window)
        check(decode(q, kv, **scope), oracle.attend_keys(q, kv, SCALE, D_V, **scope))
    extra = dict(kv_cache=cache(rng, 7), block_table=tables(rng, 7))
    extra["visible"] = rng.integers(0, 25, (B, S_Q)).tolist()
    got = decode(q, kv, block_table=table, extra=amla.Scope(**extra))
    check(got, oracle.attend_keys(q, kv, SCALE, D_V, block_table=table, extra=extra))


# ---- The same thing said otherwise: the same bits ----


def same(a, b):
    assert all(np.array_equal(x, y) for x, y in zip(a, b))


def test_all_positions_in_order_are_dense(rng):
    q, kv, table = queries(rng, s_q=1), cache(rng), tables(rng)
    want = decode(q, kv, block_table=table)
    positions = np.tile(np.arange(24, dtype=np.int64), (B, 1, 1))  # int64: copied
    same(decode(q, kv, block_table=table, indices=positions, index_kind="position"), want)
    slots = (table[:, :, None] * PAGE + np.arange(PAGE)).reshape(B, 1, 24)
    same(decode(q, kv, indices=slots), want)
    same(decode(q, kv, indices=slots.tolist()), want)
    same(decode(q, kv, indices=np.insert(slots, [0, 7, 24], -1, axis=2)), want)


def test_two_lists_are_one(rng):
    q, kv, indices = queries(rng), cache(rng), lists(rng, PAGES * PAGE, 40)
    want = decode(q, kv, indices=indices)
    extra = amla.Scope(kv, indices=indices[..., 13:])
    same(decode(q, kv, indices=indices[..., :13], extra=extra), want)


def test_strided_lists_are_read_in_place(rng):
    q, kv, indices = queries(rng), cache(rng), lists(rng, PAGES * PAGE, 40)
    want = decode(q, kv, indices=indices[:, :, 3:20].copy())
    same(decode(q, kv, indices=indices[:, :, 3:20]), want)
    with pytest.raises(ValueError, match=r"^indices: strides .* must be contiguous from axis 2"):
        decode(q, kv, indices=indices[:, :, ::2])


@pytest.mark.parametrize("causal", [False, True])
def test_ragged_queries(rng, causal):
    table, seqlens = tables(rng), np.array([17, 24, 20], np.int32)
    q, kv, ends = queries(rng, 1, 5)[0], cache(rng), np.array([0, 3, 3, 5])
    out, lse, most = decode(q, kv, block_table=table, seqlens=seqlens, causal=causal, q_indptr=ends)
    for i in (0, 2):
        part = slice(ends[i], ends[i + 1])
        want = decode(
            q[None, part],
            kv,
            block_table=table[i : i + 1],
            seqlens=seqlens[i : i + 1],
            causal=causal,
        )
        same((out[None, part], lse[part].T[None], most[part].T[None]), want)
    indices, n = lists(rng, PAGES * PAGE, 9, 1, 5)[0], np.array([9, 0, 4, 9, 1], np.int32)
    got = decode(q, kv, indices=indices, topk_length=n, q_indptr=ends)
    want = decode(q[:, None], kv, indices=indices[:, None], topk_length=n)
    same((got[0], got[1], got[2]), (want[0][:, 0], want[1][..., 0], want[2][..., 0]))


def test_pages_as_flashinfer_has_them(rng):
    q, kv, table = queries(rng), cache(rng), tables(rng)
    seqlens = np.array([17, 3, 20], np.int32)
    want = decode(q, kv, block_table=table, seqlens=seqlens)
    ends, pages = np.array([0, 3, 4, 7]), np.concatenate((table[0], table[1][:1], table[2]))
    same(decode(q, kv, seqlens=seqlens, kv_indptr=ends, kv_indices=pages), want)


@pytest.mark.parametrize("rope", [32, 8])
def test_rope_parts_that_lie_apart(rng, rope):
    q, kv, table = queries(rng), cache(rng), tables(rng)
    want = decode(q, kv, block_table=table)
    apart_q = dict(q_rope=np.ascontiguousarray(q[..., -rope:]))
    apart_kv = dict(kv_rope=kv[..., -rope:])  # strided: read in place
    for more in (apart_q, apart_kv, {**apart_q, **apart_kv}):
        q_left = q[..., :-rope] if "q_rope" in more else q
        kv_left = kv[..., :-rope] if "kv_rope" in more else kv
        same(decode(q_left, kv_left, block_table=table, **more), want)


def test_lse_with_the_sink_and_max_logits_in_place(rng):
    q, kv, indices = queries(rng), cache(rng), lists(rng, PAGES * PAGE, 40)
    indices[1] = -1
    sinks = rng.standard_normal(H).astype(np.float32)
    out, lse, most = decode(q, kv, indices=indices, sinks=sinks)
    got, both = amla.decode(
        q, kv, scale=SCALE, d_v=D_V, indices=indices, sinks=sinks, lse_sink=True
    )
    assert np.array_equal(got, out)
    seen = np.isfinite(lse)
    assert not seen[1].any() and np.array_equal(np.isfinite(both), seen)
    want = np.logaddexp(lse.astype(np.float64), sinks[None, :, None])
    np.testing.assert_allclose(both[seen], want[seen], rtol=1e-6, atol=1e-6)
    place = np.empty_like(lse)
    result = amla.decode(
        q, kv, scale=SCALE, d_v=D_V, indices=indices, sinks=sinks, max_logits=place
    )
    assert result[2] is place and np.array_equal(place, most)


# ---- Plans ----


def test_a_plan_runs_what_it_was_made_for(rng):
    q, kv, indices = queries(rng), cache(rng), lists(rng, PAGES * PAGE, 40)
    extra = amla.Scope(cache(rng, 7, 16), indices=lists(rng, 7 * 16, 6))
    want = decode(q, kv, indices=indices, extra=extra)
    plan = amla.Plan.like(q, kv, scale=SCALE, d_v=D_V, indices=indices, extra=extra)
    same(plan.run(q, kv, indices=indices, extra=extra, max_logits=True), want)
    for more, words in (
        (dict(indices=indices), "^extra_topk=0: the plan was made for extra_topk=6"),
        (dict(block_table=tables(rng)), "^sk=24: the plan was made for sk=0"),
        (dict(indices=indices[..., :9], extra=extra), "^topk=9: the plan was made for topk=40"),
    ):
        with pytest.raises(ValueError, match=words):
            plan.run(q, kv, **more)
    with pytest.raises(TypeError, match="^lists: no such array"):
        plan.run(q, kv, lists=indices)
    numbers = dict(b=B, s_q=S_Q, h_q=H, d_qk=D, d_v=D_V, page_size=PAGE, n_pages=PAGES, topk=40)
    types = dict.fromkeys(("q_type", "kv_type", "out_type"), "float32")
    plan = amla.Plan(scale=SCALE, **numbers, **types)
    same(plan.run(q, kv, indices=indices), decode(q, kv, indices=indices))


def test_a_plan_for_ragged_queries(rng):
    q, kv, indices = queries(rng, 1, 5)[0], cache(rng), lists(rng, PAGES * PAGE, 9, 1, 5)[0]
    plan = amla.Plan.like(
        q, kv, scale=SCALE, d_v=D_V, indices=indices, q_indptr=np.array([0, 4, 5])
    )
    for ends in ([0, 4, 5], [0, 2, 5]):
        want = decode(q, kv, indices=indices, q_indptr=ends)
        same(plan.run(q, kv, indices=indices, q_indptr=ends), want)
    with pytest.raises(ValueError, match="^s_q=5: the plan was made for s_q=4"):
        plan.run(q, kv, indices=indices, q_indptr=[0, 5, 5])


# ---- Refusals ----


TABLE = dict(indices=None, block_table=np.zeros((B, 3), np.int32))


def base(rng):
    return dict(q=queries(rng), kv_cache=cache(rng), indices=lists(rng, PAGES * PAGE, 40))


@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(indices=np.full((B, S_Q, 3), 96)), ValueError, "indices[0][0][0]=96: the cache has"),
        (dict(indices=[[[2**31]]]), ValueError, "indices[0][0][0]=2147483648: must fit into int32"),
        (dict(indices=np.zeros((B, 3), np.int32)), ValueError, "indices: shape [3, 3]: must be [b"),
        (
            dict(indices=np.zeros((B, S_Q, 0), np.int32)),
            ValueError,
            "indices: shape [3, 2, 0]: topk must be >= 1",
        ),
        (dict(indices=np.zeros((B, S_Q, 3))), ValueError, "indices: dtype float64: must be int32"),
        (
            dict(index_kind="page"),
            ValueError,
            "index_kind='page': must be one of 'slot', 'position'",
        ),
        (dict(topk_length=[1, 2]), ValueError, "topk_length: shape [2]: must be [b=3]"),
        (dict(topk_length=[1, 2, 41]), ValueError, "topk_length[2]=41: must be in [0, topk=40]"),
        (dict(causal=True), ValueError, "causal=1: must be 0 with topk > 0"),
        (dict(window=3), ValueError, "window=3: must be 0 with topk > 0"),
        (dict(window=1.5), ValueError, "window=1.5: must be an integer"),
        (dict(visible=np.ones((B, S_Q), np.int32)), ValueError, "visible_k="),
        (dict(TABLE, window=3), ValueError, "window=3: needs causal=1 or visible_k"),
        (dict(TABLE, visible=[[1], [2], [3]]), ValueError, "visible: shape [3, 1]: must be"),
        (dict(extra=cache), TypeError, "extra: function: must be an amla.Scope"),
        (dict(extra=amla.Scope(None)), TypeError, "extra_kv_cache=None: must be an array"),
        (
            dict(extra=amla.Scope(np.zeros((B, 4, D), np.float16))),
            ValueError,
            "extra_kv_cache: dtype float16: must be kv_cache's, float32",
        ),
        (
            dict(extra=amla.Scope(np.zeros((B, 4, 7), np.float32))),
            ValueError,
            "extra_kv_cache: shape [3, 4, 7]: must be [b=3, sk, d_qk=96]",
        ),
        (
            dict(extra=amla.Scope(np.zeros((9, 4, D), np.float32), indices=[[[36, 0]] * S_Q] * B)),
            ValueError,
            "extra_indices[0][0][0]=36: the cache has 36 slots",
        ),
        (
            dict(
                topk_length=[1, 2, 3],
                extra=amla.Scope(
                    np.zeros((9, 4, D), np.float32),
                    indices=[[[0, 0]] * S_Q] * B,
                    topk_length=[[1, 1]] * B,
                ),
            ),
            ValueError,
            "extra_topk_length: shape [3, 2]: must be [b=3]",
        ),
        (
            dict(mask=np.zeros((B, S_Q, 96), np.float16)),
            ValueError,
            "mask: must be None with indices",
        ),
        (
            dict(q_rope=np.zeros((B, S_Q, 4, 8), np.float32)),
            ValueError,
            "q_rope: shape [3, 2, 4, 8]: must be [3, 2, 5, d_rope]",
        ),
        (
            dict(kv_rope=np.zeros((PAGES, PAGE, 8), np.float32)),
            ValueError,
            "kv_cache: shape [12, 8, 96]: must be [n_pages, page_size, row=88]",
        ),
        (dict(kv_indptr=[0, 1, 2, 3]), ValueError, "kv_indptr="),
        (
            dict(indices=None, kv_indptr=[0, 1, 2, 3]),
            ValueError,
            "kv_indices=None: must be an array where kv_indptr is one",
        ),
        (dict(q_indptr=[0, 1]), ValueError, "q_indptr[1]=1: must be 3, the queries of q"),
        (dict(max_logits=3), TypeError, "max_logits: int: must be"),
        (dict(lse_sink=2), ValueError, "lse_sink=2: must be True or False"),
        (dict(kv_type="float16"), ValueError, "kv_cache: dtype float32: must be kv_type=float16"),
    ],
    ids=lambda x: x.split(":")[0] if isinstance(x, str) else "",
)
def test_refusals(rng, change, error, words):
    arguments = {**base(rng), **change}
    with pytest.raises(error) as caught:
        amla.decode(scale=SCALE, d_v=D_V, **arguments)
    assert str(caught.value).startswith(words)


def test_outputs_are_untouched_by_a_refusal(rng):
    arguments = base(rng)
    arguments["indices"][2, 1, 39] = 96
    places = dict(out=np.full((B, S_Q, H, D_V), 7, np.float32))
    places |= {name: np.full((B, H, S_Q), 7, np.float32) for name in ("lse", "max_logits")}
    with pytest.raises(ValueError, match=r"^indices\[2\]\[1\]\[39\]=96: the cache has 96 slots"):
        amla.decode(scale=SCALE, d_v=D_V, **arguments, **places)
    assert all((x == 7).all() for x in places.values())
