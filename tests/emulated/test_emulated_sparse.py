# SPDX-License-Identifier: Apache-2.0
"""Lists, scopes, windows, ragged queries and rows in two pieces on rows of the table that this
machine cannot run. What says the same has the same bits; against f64 within the bound of
harness/truth.h; and memory that no query names is not there."""

import numpy as np
import pytest

from decode_emulated import ISAS, LOG2E, Plan, make_job, narrow, to_type, widen

D, D_V, H_Q, PAGE, ROPE = 96, 64, 40, 16, 32
ENGINES = [
    ("avx512", "f32"), ("avx512bf16", "bf16"),
    ("amxbf16", "f32"), ("amxbf16", "bf16x2"), ("amxbf16", "bf16"),
]  # fmt: skip
SLOT, POSITION = 0, 1
OF_SEQUENCES = ("block_table", "seqlens_k")
U_OF_P = {"f32": 0, "bf16x2": 2.0**-15, "bf16": 2.0**-7}


@pytest.fixture(params=ENGINES, ids="-".join)
def engine(request, machine):
    """run(tensors, **job): the results, by name."""
    isa, p_form = request.param

    def run(tensors, **job):
        values = dict(h_q=H_Q, d_qk=D, d_v=D_V) | job
        plan = Plan(machine, make_job(isa=isa, p_form=p_form, **values))
        assert plan["isa"] == ISAS[isa]
        return plan.run_tensors(max_logits=True, **tensors)

    run.machine, run.p_form = machine, p_form
    return run


def expect_same(got, want):
    for name in want:
        a, b = (np.ascontiguousarray(x[name]) for x in (got, want))
        assert a.tobytes() == b.tobytes(), f"{name}: {np.sum(a != b)} of {a.size} differ"


def bf16(rng, *shape):
    return narrow(rng.standard_normal(shape))


def int32(*values):
    return np.array(values, np.int32)


class Paged:
    """Sequences in pages: their queries, and the keys of all."""

    def __init__(self, rng, lengths, s_q=1, h_q=H_Q):
        self.lengths, self.b, self.s_q = int32(*lengths), len(lengths), s_q
        self.q = bf16(rng, self.b, s_q, h_q, D)
        per = -(-max(lengths) // PAGE)
        n_pages = per * self.b + 3
        self.kv = bf16(rng, n_pages, PAGE, D)
        self.kv[..., -8:] = narrow(np.linspace(0, 9, n_pages)[:, None, None])
        self.table = rng.permutation(n_pages)[: per * self.b].reshape(self.b, per).astype(np.int32)
        self.job = dict(b=self.b, s_q=s_q, sk=max(lengths), page_size=PAGE, n_pages=n_pages)

    @property
    def tensors(self):
        """Dense."""
        return dict(q=self.q, kv=self.kv, block_table=self.table, seqlens_k=self.lengths)

    def slot(self, i, positions):
        return self.table[i, positions // PAGE] * PAGE + positions % PAGE

    def listed(self, lists, kind=SLOT, gaps=0, **tensors):
        """Tensors and job that say lists[sequence][query] of positions."""
        topk = (1 + gaps) * max(len(x) for of_one in lists for x in of_one) + 1
        indices = np.full((self.b, self.s_q, topk), -1, np.int32)
        for i, of_one in enumerate(lists):
            for j, x in enumerate(of_one):
                at = gaps + (1 + gaps) * np.arange(len(x))
                indices[i, j, at] = x if kind == POSITION else self.slot(i, np.asarray(x))
        tensors = dict(q=self.q, kv=self.kv, indices=indices) | tensors
        if kind == POSITION:
            tensors |= dict(block_table=self.table, seqlens_k=self.lengths)
        return tensors, self.job | dict(topk=topk, index_kind=kind)


# ---- The same, said in other words ----


@pytest.mark.parametrize("split_tokens", [0, 128])
def test_a_list_of_all_positions_is_dense(engine, rng, split_tokens):
    c = Paged(rng, (300, 141))
    want = engine(c.tensors, split_tokens=split_tokens, **c.job)
    everything = [[np.arange(n)] for n in c.lengths]
    for kind, gaps in ((SLOT, 0), (POSITION, 0), (SLOT, 3), (POSITION, 1)):
        tensors, job = c.listed(everything, kind, gaps)
        expect_same(engine(tensors, split_tokens=split_tokens, **job), want)


def test_a_list_of_a_contiguous_cache_is_dense(engine, rng):
    """Keys at equal distances are multiplied where they are; others are copied."""
    n, q, kv = 200, bf16(rng, 2, 1, H_Q, D), bf16(rng, 2, 200, D)
    job = dict(b=2, sk=n)
    for order in (np.arange(n), np.arange(0, n, 2), np.arange(n)[::-1], np.arange(n) ^ 3):
        want = engine(dict(q=q, kv=np.ascontiguousarray(kv[:, order])), b=2, sk=len(order))
        lists = (np.arange(2)[:, None, None] * n + order).astype(np.int32)
        expect_same(engine(dict(q=q, kv=kv, indices=lists), topk=len(order), **job), want)


def test_two_lists_are_one(engine, rng):
    """The second scope is the same cache in smaller pages."""
    c = Paged(rng, (200, 200), s_q=2)
    first = rng.integers(-20, c.kv.shape[0] * PAGE, (2, 2, 150)).astype(np.int32)
    second = rng.integers(-60, c.kv.shape[0] * PAGE, (2, 2, 171)).astype(np.int32)
    one = dict(q=c.q, kv=c.kv, indices=np.concatenate([first, second], 2))
    two = dict(q=c.q, kv=c.kv, indices=first, extra_indices=second, extra_kv=c.kv)
    extra = dict(topk=150, extra_topk=171, extra_page_size=4, extra_n_pages=4 * len(c.kv))
    expect_same(engine(two, **(c.job | extra)), engine(one, **c.job, topk=321))


def test_a_dense_scope_beside_a_list_is_one_list(engine, rng):
    q, kv, n = bf16(rng, 1, 1, H_Q, D), bf16(rng, 1, 300, D), 133
    some = rng.integers(0, 300, (1, 1, 140)).astype(np.int32)
    beginning = np.arange(n, dtype=np.int32)[None, None]

    def as_list(*lists):
        return engine(dict(q=q, kv=kv, indices=np.concatenate(lists, 2)), sk=300, topk=n + 140)

    of_both = dict(q=q, kv=kv, extra_kv=kv)
    got = engine(
        of_both | dict(seqlens_k=int32(n), extra_indices=some), sk=300,
        extra_topk=140, extra_page_size=4, extra_n_pages=75,
    )  # fmt: skip
    expect_same(got, as_list(beginning, some))
    got = engine(
        of_both | dict(indices=some, extra_seqlens_k=int32(n)), sk=300, topk=140, extra_sk=300
    )
    expect_same(got, as_list(some, beginning))


def test_a_window_is_a_shorter_list(engine, rng):
    c = Paged(rng, (270, 40), s_q=3)
    visible = c.lengths[:, None] - 2 + np.arange(3, dtype=np.int32)
    tensors, job = c.listed([[np.arange(max(0, n - 150), n) for n in x] for x in visible])
    want = engine(tensors, **job)
    expect_same(engine(c.tensors, **c.job, causal=1, window=150), want)
    expect_same(engine(c.tensors | dict(visible_k=visible), **c.job, window=150), want)


def test_visible_lengths_may_be_those_of_causality(engine, rng):
    c = Paged(rng, (200, 2), s_q=3)
    visible = np.maximum(c.lengths[:, None] - 2 + np.arange(3), 0).astype(np.int32)
    want = engine(c.tensors, **c.job, causal=1)
    expect_same(engine(c.tensors | dict(visible_k=visible), **c.job), want)
    assert np.all(want["lse"][1, :, 0] == -np.inf) and np.all(want["out"][1, 0] == 0)
    assert np.all(want["max_logits"][1, :, 0] == -np.inf)


def test_padding_and_gaps_of_lists_change_no_bit(engine, rng):
    c = Paged(rng, (250, 250), s_q=2)
    counts = int32([211, 97], [0, 130])
    tight = rng.integers(0, len(c.kv) * PAGE, (2, 2, 211)).astype(np.int32)
    tensors = dict(q=c.q, kv=c.kv, topk_length=counts)
    job = c.job | dict(topk_length_per_query=1)
    want = engine(tensors | dict(indices=tight), **job, topk=211)
    wide, gappy = np.full((2, 2, 700), 2**31 - 1, np.int32), np.full((2, 2, 700), -1, np.int32)
    for at in np.ndindex(2, 2):
        wide[at][: counts[at]] = tight[at][: counts[at]]
        gappy[at][np.sort(rng.permutation(700)[: counts[at]])] = tight[at][: counts[at]]
    expect_same(engine(tensors | dict(indices=wide), **job, topk=700), want)
    tensors |= dict(indices=gappy, topk_length=np.full((2, 2), 700, np.int32))
    for threads in (1, 3):
        expect_same(engine(tensors, **job, topk=700, threads=threads, split_tokens=0), want)


@pytest.mark.parametrize("split", ["q", "kv", "both"])
def test_rows_in_two_pieces_are_rows(engine, rng, split):
    c = Paged(rng, (290, 130))
    some = [[rng.permutation(n)[: n - 3]] for n in c.lengths]
    parts, fields = {}, {}
    for name in ("q", "kv"):
        if split in (name, "both"):
            parts[name], parts[f"{name}_rope"] = np.split(getattr(c, name), [D - ROPE], -1)
            fields[f"{name}_d_rope"] = ROPE
    for tensors, job in ((c.tensors, c.job), c.listed(some, gaps=1)):
        expect_same(engine(tensors | parts, **job, **fields), engine(tensors, **job))


def test_lists_of_pages_are_block_tables(engine, rng):
    c = Paged(rng, (200, 95))
    counts = -(-c.lengths // PAGE)
    pages = dict(
        kv_indptr=int32(0, *np.cumsum(counts)),
        kv_indices=np.concatenate([c.table[i, :n] for i, n in enumerate(counts)]),
        block_table=None,
    )
    some = [[rng.permutation(n)[:90]] for n in c.lengths]
    for tensors, job in ((c.tensors, c.job), c.listed(some, POSITION)):
        expect_same(engine(tensors | pages, **job), engine(tensors, **job))


def test_ragged_queries_are_rectangles(engine, rng):
    """All of equal number; and each sequence of several alone."""
    c = Paged(rng, (200, 140), s_q=3)
    flat, job = c.tensors | dict(q=c.q.reshape(6, H_Q, D)), c.job | dict(causal=1)
    want = engine(c.tensors, **job)
    rows = dict(
        out=want["out"].reshape(6, H_Q, D_V),
        **{k: want[k].transpose(0, 2, 1).reshape(6, H_Q) for k in ("lse", "max_logits")},
    )
    expect_same(engine(flat | dict(q_indptr=int32(0, 3, 6)), **job), rows)
    mixed = dict(q=flat["q"][:4].copy(), q_indptr=int32(0, 1, 4))
    got = engine(flat | mixed, **job)
    for i, (begin, end) in enumerate(((0, 1), (1, 4))):
        of_one = {k: v[i : i + 1].copy() for k, v in c.tensors.items() if k in OF_SEQUENCES}
        tensors = of_one | dict(q=mixed["q"][None, begin:end].copy(), kv=c.kv)
        alone = engine(tensors, **(job | dict(b=1, s_q=end - begin)))
        assert got["out"][begin:end].tobytes() == alone["out"].tobytes()
        for name in ("lse", "max_logits"):
            assert np.array_equal(got[name][begin:end], alone[name][0].T)


# ---- Caches of fp8 ----


def e4m3(codes):
    x = codes.astype(np.int32)
    exponent, mantissa = x >> 3 & 15, x & 7
    size = np.where(exponent > 0, np.ldexp(8 + mantissa, exponent - 10), mantissa * 2.0**-9)
    return np.where(x & 128, -size, size).astype(np.float32)


def fp8_cache(rng, kind, n):
    """Bytes of n tokens in one page, and what they say."""
    latent, rope = {"fp8_656": (512, 64), "fp8_584": (448, 64), "fp8_e4m3": (D, 0)}[kind]
    codes = rng.integers(0, 126, (n, latent)) | rng.integers(0, 2, (n, latent)) << 7
    tail = bf16(rng, n, rope)
    values = e4m3(codes)
    rows, footer = [codes.astype(np.uint8)], np.zeros(0, np.uint8)
    if kind == "fp8_656":
        scales = rng.uniform(0.01, 0.02, (n, 4)).astype(np.float32)
        values = (values.reshape(n, 4, 128) * scales[..., None]).reshape(n, latent)
        rows.append(scales.view(np.uint8))
    if kind == "fp8_584":
        exponents = rng.integers(119, 124, (n, 8)).astype(np.uint8)
        of_groups = np.exp2(exponents[:, :7].astype(np.float32) - 127)
        values = (values.reshape(n, 7, 64) * of_groups[..., None]).reshape(n, latent)
        footer = exponents.reshape(-1)
    rows.append(tail.view(np.uint8).reshape(n, -1))
    raw = np.concatenate([np.concatenate(rows, 1).reshape(-1), footer])
    return raw, np.concatenate([values, widen(tail)], 1)


@pytest.mark.parametrize(
    "kind, kv_round, d, d_v",
    [("fp8_584", 0, 512, 512), ("fp8_656", 1, 576, 512)]
    + [("fp8_e4m3", 1, D, d_v) for d_v in (D, 32, 8, 1)],
)
def test_fp8_caches_are_caches_of_their_values(engine, rng, kind, kv_round, d, d_v):
    """Read by rows of bf16: what bf16 holds by itself, the rest when asked for."""
    n, q, scales = 70, bf16(rng, 1, 2, 17, d), {}
    raw, values = fp8_cache(rng, kind, n)
    job = dict(s_q=2, h_q=17, sk=n, d_qk=d, d_v=d_v, causal=1, scale=0.003)
    if kind == "fp8_e4m3":
        scales = dict(kv_scale=0.7, kv_rope_scale=0.3)
        values *= np.where(np.arange(d) < d_v, np.float32(0.7), np.float32(0.3))
    want = engine(dict(q=q, kv=values[None]), kv_type="f32", kv_round=1, **job)
    expect_same(engine(dict(q=q, kv=raw), kv_type=kind, kv_round=kv_round, **scales, **job), want)


# ---- Against f64 ----


def expect_near_truth(engine, q, keys, got, scale, sinks, with_sink, bias=None):
    """One query: q [h_q][d] and keys [n][d] in f64; got out, lse, max_logits [h_q]."""
    out, lse2, top = got
    u, n = 2.0**-24, len(keys)
    if n == 0:
        assert np.all(out == 0) and np.all(lse2 == -np.inf) and np.all(top == -np.inf)
        return
    bias = np.zeros(n) if bias is None else bias
    s = q @ keys.T * float(scale) + bias
    size = np.abs(q) @ np.abs(keys).T * abs(float(scale)) + np.where(np.isinf(bias), 0, abs(bias))
    score = (4 + D**0.5) * u * size.max(1)
    high = s.max(1)
    w = np.exp(s - high[:, None])
    lse = high + np.log(w.sum(1))
    w /= w.sum(1)[:, None]
    of_keys = 1 / (1 + np.exp(sinks - lse))
    bound = score + 65 * u * np.maximum(1, np.abs(lse))
    want = np.logaddexp(lse, sinks) if with_sink else lse
    assert np.all(np.abs(lse2 / LOG2E - want) <= bound + u * np.abs(want))
    assert np.all(np.abs(top - high) <= score + 2 * u * np.abs(high))
    o, o_abs = w @ keys[:, :D_V] * of_keys[:, None], w @ np.abs(keys[:, :D_V]) * of_keys[:, None]
    limit = (score + 64 * u + U_OF_P[engine.p_form])[:, None] * o_abs
    limit += ((1 - of_keys) * bound + u)[:, None] * np.abs(o) + n * 2.0**-84
    assert np.all(np.abs(out - o) <= limit), (np.abs(out - o) / limit).max()


@pytest.mark.parametrize("with_sink, scale", [(0, 0.11), (1, -0.07), (1, 1.0)])
def test_all_of_it_is_near_the_truth(engine, rng, with_sink, scale):
    """Ragged queries in two pieces, lists with gaps and doubles in two scopes, sinks."""
    c = Paged(rng, (260, 260))
    q, extra_kv = bf16(rng, 4, H_Q, D), bf16(rng, 60, 3, D)
    first = rng.integers(-30, len(c.kv) * PAGE, (4, 230)).astype(np.int32)
    second = rng.integers(-30, 180, (4, 190)).astype(np.int32)
    counts = (int32(230, 31, 0, 0), int32(190, 170, 12, 0))
    first[0, 50:60] = first[0, 49]
    sinks = rng.standard_normal(H_Q).astype(np.float32) * 3
    sinks[:2] = -np.inf, 60
    tensors = dict(
        q=q[..., :-ROPE].copy(), q_rope=q[..., -ROPE:].copy(), kv=c.kv, extra_kv=extra_kv,
        indices=first, topk_length=counts[0], extra_indices=second, extra_topk_length=counts[1],
        q_indptr=int32(0, 1, 4), sinks=sinks,
    )  # fmt: skip
    job = dict(
        b=2, s_q=3, sk=260, page_size=PAGE, n_pages=len(c.kv), topk=230, extra_topk=190,
        extra_page_size=3, extra_n_pages=60, topk_length_per_query=1, q_d_rope=ROPE,
    )  # fmt: skip
    scale = np.float32(scale)
    got = engine(tensors, **job, lse_sink=with_sink, scale=scale)
    for i in range(4):
        caches = (c.kv, first, counts[0]), (extra_kv, second, counts[1])
        keys = [cache.reshape(-1, D)[x[i][: n[i]][x[i][: n[i]] >= 0]] for cache, x, n in caches]
        of_query = got["out"][i], got["lse"][i], got["max_logits"][i]
        q64, keys = (widen(x).astype(np.float64) for x in (q[i], np.concatenate(keys)))
        expect_near_truth(engine, q64, keys, of_query, scale, sinks.astype(float), with_sink)


def test_sinks_and_largest_scores_under_a_mask(engine, rng):
    """Of several splits; one query sees nothing."""
    n, scale = 400, np.float32(0.09)
    q, q64 = to_type(rng.standard_normal((1, 3, 20, D)), "bf16")
    kv, kv64 = to_type(rng.standard_normal((1, n, D)) * np.linspace(0.5, 2, n)[:, None], "bf16")
    mask = rng.standard_normal((1, 3, n)) * 4
    mask[:, :, 100:270] = mask[:, 1] = -np.inf
    mask = mask.astype(np.float16)
    sinks = rng.standard_normal(20).astype(np.float32)
    tensors = dict(q=q, kv=kv, mask=mask, sinks=sinks)
    got = engine(tensors, s_q=3, h_q=20, sk=n, scale=scale, lse_sink=1, split_tokens=128)
    for i in range(3):
        bias = mask[0, i].astype(np.float64)
        seen = np.isfinite(bias)
        of_query = got["out"][0, i], got["lse"][0, :, i], got["max_logits"][0, :, i]
        expect_near_truth(
            engine, q64[0, i], kv64[0, seen], of_query, scale, sinks.astype(float), 1, bias[seen]
        )


# ---- What no query names is not there ----


class Islands:
    """Tokens [n][d] at ends of pages of memory of their own; those outside `kept` are unmapped."""

    def __init__(self, machine, tokens, kept):
        step, used = 4096, tokens[0].nbytes
        self.stride = step // tokens.itemsize
        base = machine.allocate(len(tokens) * step, flush=False)
        self.base = base + step - used
        for i, token in enumerate(tokens):
            machine.view(self.base + i * step, used)[:] = token.view(np.uint8)
            if i not in kept:
                machine.unmap(base + i * step, step)


def on_islands(engine, kv, kept, tensors, job, rope=0):
    """Runs with a contiguous cache kv [n][d], of which only the tokens of `kept` are there."""
    mark, kept = engine.machine.mark(), set(np.ravel(kept).tolist())
    try:
        whole = Islands(engine.machine, kv[:, : D - rope].copy(), kept)
        places = dict(kv=whole.base)
        strides = dict(kv_stride_token=whole.stride, kv_stride_page=whole.stride * len(kv))
        if rope:
            of_rope = Islands(engine.machine, kv[:, D - rope :].copy(), kept)
            places |= dict(kv_rope=of_rope.base)
            strides |= dict(kv_rope_stride_token=of_rope.stride, kv_d_rope=rope)
            strides |= dict(kv_rope_stride_page=of_rope.stride * len(kv))
        return engine(tensors | places, **job, **strides)
    finally:
        engine.machine.release(mark)


@pytest.mark.parametrize("kv_type, rope", [("bf16", 0), ("bf16", ROPE), ("f16", 0), ("f32", ROPE)])
def test_slots_that_no_list_names_are_not_touched(engine, rng, kv_type, rope):
    n, q, (kv, _) = 197, bf16(rng, 1, 2, H_Q, D), to_type(rng.standard_normal((400, D)), kv_type)
    even, mixed = np.arange(0, 2 * n, 2), rng.permutation(200)[:n] * 2 + 1
    lists = np.full((1, 2, 260), -1, np.int32)
    lists[0, 0, 20 : 20 + n], lists[0, 1, :n] = even, mixed[::-1]
    tensors, job = dict(q=q, indices=lists), dict(sk=400, topk=260, kv_type=kv_type)
    job |= dict(s_q=2, kv_round=1)
    got = on_islands(engine, kv, (even, mixed), tensors, job, rope)
    expect_same(got, engine(tensors | dict(kv=kv[None]), **job))
    one, job = dict(q=q[:, :1].copy(), indices=lists[:, :1].copy()), job | dict(s_q=1)
    got = on_islands(engine, kv, even, one, job, rope)
    expect_same(got, engine(one | dict(kv=kv[None]), **job))


def test_what_is_before_a_window_or_behind_a_length_is_not_touched(engine, rng):
    q, kv = bf16(rng, 1, 2, H_Q, D), bf16(rng, 420, D)
    tensors = dict(q=q, seqlens_k=int32(395))
    job = dict(s_q=2, sk=420, causal=1, window=140)
    got = on_islands(engine, kv, np.arange(395 - 141, 395), tensors, job)
    expect_same(got, engine(tensors | dict(kv=kv[None]), **job))
    tensors, job = dict(q=q, visible_k=int32([60, 149])), dict(s_q=2, sk=420)
    got = on_islands(engine, kv, np.arange(420), tensors, job)
    expect_same(got, engine(tensors | dict(kv=kv[None]), **job))
    got = on_islands(engine, kv, np.arange(149), tensors, job | dict(window=100))
    expect_same(got, engine(tensors | dict(kv=kv[None]), **job, window=100))
