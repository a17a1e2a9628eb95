# SPDX-License-Identifier: Apache-2.0
"""amla.flash_mla: FlashMLA's published correctness grid with its poison and tolerances, the call
forms, sinks, refusals, compile.

The grid has 1008 cases (h_kv = 1). A normal run takes a sample in which every pair of values of two
parameters occurs, and 100 more of the smaller ones; AMLA_LONG=1 takes all, in bfloat16 and
float16."""

import itertools
import math
import random

import numpy as np
import pytest
import torch

from amla import flash_mla
from conftest import LONG

GRID = list(
    itertools.product(
        [1, 2, 6, 64],
        [1, 2, 4],
        [20, 140, 4096],
        [1, 3, 9, 63, 64, 126, 128],
        [False, True],
        [False, True],
    )
)
SMALL, SHORT = 600_000, 65_536  # (row, key) pairs of a case; its keys, most of what making it takes


def pairwise(cases):
    """Cases, cheapest first, until every pair of values of two parameters has occurred."""
    seen, sample = set(), []
    for case in sorted(cases, key=lambda c: (math.prod(c[:4]), c)):
        pairs = {(i, case[i], j, case[j]) for i, j in itertools.combinations(range(len(case)), 2)}
        if not pairs <= seen:
            seen |= pairs
            sample.append(case)
    return sample


def cases():
    if LONG:
        return [(*c, t) for c in GRID for t in (torch.bfloat16, torch.float16)]
    small = [c for c in GRID if math.prod(c[:4]) <= SMALL and c[0] * c[2] <= SHORT]
    some = random.Random(3).sample(small, 100)
    return [(*c, torch.bfloat16) for c in dict.fromkeys(pairwise(GRID) + some)] + [
        (2, 2, 140, 9, True, True, torch.float16)
    ]


def generate(
    b, s_q, s_k, h_q, varlen, dtype, zero_lengths=False, page=64, seed=0, first_lengths=()
):
    """Inputs as FlashMLA's tests make them: small normal numbers, shuffled pages, NaN in every
    unused slot and page, 2147480000 in every unused table entry."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    lengths = [max(int(rng.normalvariate(s_k, s_k / 2)), s_q) if varlen else s_k for _ in range(b)]
    if zero_lengths:
        lengths = [0 if rng.random() < 0.5 else n for n in lengths]
    lengths[: len(first_lengths)] = first_lengths
    per = max(1, -(-max(lengths) // 256) * 256 // page)
    q = (torch.randn(b, s_q, h_q, 576, generator=generator) / 10).clamp_(-1, 1).to(dtype)
    table = torch.randperm(b * per, generator=generator).int().view(b, per)
    cache = (torch.randn(b * per, page, 1, 576, generator=generator) / 10).clamp_(-1, 1).to(dtype)
    for i, n in enumerate(lengths):
        used = -(-n // page)
        cache[table[i, used:].long()] = math.nan
        if n % page:
            cache[table[i, used - 1].long(), n % page :] = math.nan
        table[i, used:] = 2147480000
    return q, cache, table, torch.tensor(lengths, dtype=torch.int32)


def reference(q, cache, table, lengths, causal, scale=576**-0.5, d_v=512):
    """out and lse in fp32, straight from the definition; +inf where no key is seen. Reads used
    slots only."""
    b, s_q, h, d = q.shape
    out, lse = torch.zeros(b, s_q, h, d_v), torch.full((b, h, s_q), math.inf)
    for i, n in enumerate(lengths.tolist()):
        if n == 0:
            continue
        used = -(-n // cache.shape[1])
        kv = cache[table[i, :used].long()].reshape(-1, d)[:n].float()
        scores = torch.einsum("shd,kd->hsk", q[i].float(), kv) * scale
        if causal:
            hidden = torch.arange(n)[None] > torch.arange(n - s_q, n)[:, None]
            scores.masked_fill_(hidden, -math.inf)
        row = scores.logsumexp(-1)
        p = torch.softmax(scores, -1).nan_to_num(0.0)
        out[i] = torch.einsum("hsk,kd->shd", p, kv[:, :d_v])
        lse[i] = torch.where(row == -math.inf, math.inf, row)
    return out.to(q.dtype), lse


def assert_close(name, got, want, absolute, relative, cosine=None):
    """FlashMLA's rule: same infinities, no NaN, every element within the absolute or the relative
    tolerance; directions agree."""
    got, want = got.double(), want.double()
    assert not got.isnan().any(), f"{name} has NaN"
    infinite = want.isinf()
    assert torch.equal(got.isinf(), infinite) and torch.equal(got[infinite], want[infinite]), (
        f"{name}: infinities differ"
    )
    got, want = got.masked_fill(infinite, 0), want.masked_fill(infinite, 0)
    error = (got - want).abs()
    bad = (error > absolute) & (error > relative * want.abs())
    assert not bad.any(), (
        f"{name}: {int(bad.sum())} elements off, worst {float(error[bad].max()):.2e}"
    )
    if cosine is not None and want.any():
        difference = 1 - 2 * float((got * want).sum()) / float((got * got + want * want).sum())
        assert abs(difference) < cosine, f"{name}: cos_diff {difference:.2e}"


def check(q, cache, table, lengths, causal, got):
    out, lse = got
    want_out, want_lse = reference(q, cache, table, lengths, causal)
    assert (
        out.dtype == q.dtype
        and out.shape == want_out.shape
        and lse.dtype == torch.float32
        and lse.shape == want_lse.shape
    )
    assert_close("out", out, want_out, 8e-4, 2.01 / 128, 5e-6)
    assert_close("lse", lse, want_lse, 1e-6, 8.01 / 65536)


@pytest.mark.parametrize(
    "b, s_q, s_k, h_q, varlen, causal, dtype", cases(), ids=lambda x: str(x).replace("torch.", "")
)
def test_grid(b, s_q, s_k, h_q, varlen, causal, dtype):
    q, cache, table, lengths = generate(b, s_q, s_k, h_q, varlen, dtype)
    meta, num_splits = flash_mla.get_mla_metadata()
    got = flash_mla.flash_mla_with_kvcache(
        q, cache, table, lengths, 512, meta, num_splits, causal=causal
    )
    check(q, cache, table, lengths, causal, got)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("h_q", [1, 3, 9, 63, 64, 126, 128] if LONG else [3, 64])
def test_zero_lengths(h_q, causal):
    b, s_k = (128, 4096) if LONG else (9, 300)
    # one key, two queries: under a causal mask the first query sees nothing
    q, cache, table, lengths = generate(
        b, 2, s_k, h_q, True, torch.bfloat16, zero_lengths=True, first_lengths=[1, 0]
    )
    got = flash_mla.flash_mla_with_kvcache(
        q, cache, table, lengths, 512, flash_mla.get_mla_metadata()[0], causal=causal
    )
    check(q, cache, table, lengths, causal, got)
    assert (got[1][1] == math.inf).all() and (got[0][1] == 0).all()
    assert ((got[1][0, :, 0] == math.inf) == causal).all()


# ---- Call forms ----


def small(dtype=torch.bfloat16):
    return generate(2, 2, 100, 5, True, dtype)


@pytest.mark.parametrize("page", [64, 0])
def test_block_table_without_columns(page):
    q, cache = torch.ones(2, 1, 4, 576), torch.ones(3, page, 1, 576)
    table, lengths = torch.zeros(2, 0, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    out, lse = flash_mla.flash_mla_with_kvcache(q, cache, table, lengths, 512)
    assert not out.any() and torch.isposinf(lse).all()
    with pytest.raises(ValueError, match=r"^seqlens_k\[0\]=1: must be in \[0, sk=0\]"):
        flash_mla.flash_mla_with_kvcache(q, cache, table, torch.ones_like(lengths), 512)


def test_call_forms_agree():
    q, cache, table, lengths = small()
    want = flash_mla.flash_mla_with_kvcache(
        q, cache, table, lengths, 512, flash_mla.get_mla_metadata()[0], None, None, True
    )
    metadata, num_splits = flash_mla.get_mla_metadata(
        lengths, 2 * 5 // 1, 1
    )  # the old form: two int32 tensors
    assert (
        metadata.dtype == num_splits.dtype == torch.int32
        and num_splits.shape == (3,)
        and metadata.dim() == 2
    )
    assert flash_mla.get_mla_metadata(
        cache_seqlens=lengths, num_q_tokens_per_head_k=10, num_heads_k=1
    )[1].shape == (3,)
    meta, none = flash_mla.get_mla_metadata()
    assert isinstance(meta, flash_mla.FlashMLASchedMeta) and none is None
    for got in (
        flash_mla.flash_mla_with_kvcache(
            q, cache, table, lengths, 512, metadata.clone(), num_splits.clone(), causal=True
        ),
        flash_mla.flash_mla_with_kvcache(
            q=q,
            k_cache=cache,
            block_table=table,
            cache_seqlens=lengths,
            head_dim_v=512,
            tile_scheduler_metadata=meta,
            num_splits=None,
            softmax_scale=576**-0.5,
            causal=True,
        ),
        flash_mla.flash_mla_with_kvcache(
            q,
            cache,
            table,
            lengths,
            512,
            meta,
            None,
            None,
            True,
            False,
            None,
            None,
            None,
            None,
            None,
            None,
        ),
    ):
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_scale_strides_and_float32():
    q, cache, table, lengths = small(torch.float32)
    got = flash_mla.flash_mla_with_kvcache(q, cache, table, lengths, 512, softmax_scale=0.3)
    want = reference(q, cache, table, lengths, False, 0.3)
    torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-5)
    gaps = torch.full((len(cache), 2, 64, 1, 576), math.nan)
    gaps[:, 1] = cache
    again = flash_mla.flash_mla_with_kvcache(q, gaps[:, 1], table, lengths, 512, softmax_scale=0.3)
    assert torch.equal(again[0], got[0])
    every_other = torch.stack((lengths, lengths - lengths), 1)[
        :, 0
    ]  # a strided view of lengths is refused, not misread
    with pytest.raises(ValueError, match="^seqlens: strides"):
        flash_mla.flash_mla_with_kvcache(q, cache, table, every_other, 512, softmax_scale=0.3)


def test_sink_scales_out_and_leaves_lse_alone():
    q, cache, table, lengths = small(torch.float32)
    sink = torch.tensor([0.0, 4.0, math.inf, -math.inf, -3.0])
    plain, lse = flash_mla.flash_mla_with_kvcache(q, cache, table, lengths, 512)
    out, lse_sink = flash_mla.flash_mla_with_kvcache(q, cache, table, lengths, 512, attn_sink=sink)
    assert torch.equal(lse, lse_sink)
    factor = 1 / (1 + torch.exp(sink[None, :, None] - lse))
    torch.testing.assert_close(out, plain * factor.transpose(1, 2)[..., None], rtol=1e-5, atol=1e-7)
    assert (out[:, :, 2] == 0).all()


def test_lengths_may_change_between_calls_of_one_shape():
    q, cache, table, lengths = generate(2, 2, 100, 5, False, torch.bfloat16)
    for n in (100, 1, 0, 64, 65):
        lengths.fill_(n)
        check(
            q,
            cache,
            table,
            lengths,
            True,
            flash_mla.flash_mla_with_kvcache(q, cache, table, lengths, 512, causal=True),
        )


@pytest.mark.parametrize(
    "name",
    [
        "flash_attn_varlen_func",
        "flash_attn_varlen_qkvpacked_func",
        "flash_attn_varlen_kvpacked_func",
    ],
)
def test_other_functions_of_flash_mla_are_refused_by_name(name):
    with pytest.raises(NotImplementedError, match=f"^{name}: not supported"):
        getattr(flash_mla, name)(torch.zeros(1))


def test_bad_arguments():
    q, cache, table, lengths = small()
    call = flash_mla.flash_mla_with_kvcache
    for arguments, error, words in (
        (
            (q, cache.half(), table, lengths, 512),
            ValueError,
            "^k_cache: dtype torch.float16: must be q's",
        ),
        (
            (q, cache[:, :, 0], table, lengths, 512),
            ValueError,
            "^k_cache: shape .*must have 4 dimensions",
        ),
        (
            (q, cache.expand(-1, -1, 2, -1), table, lengths, 512),
            NotImplementedError,
            "^k_cache: 2 KV heads",
        ),
        (
            (q, cache, table.short(), lengths, 512),
            ValueError,
            "^block_table: dtype int16: must be int32 or int64",
        ),
        (
            (q, cache, table, lengths.double(), 512),
            ValueError,
            "^seqlens: dtype float64: must be int32 or int64",
        ),
        ((q, cache, table, lengths + 9999, 512), ValueError, r"^seqlens_k\[0\]="),
        ((q, cache, table, lengths, 600), ValueError, "^d_v=600: must be <= d_qk=576"),
        ((q, cache, table, lengths, 512.0), ValueError, "^d_v=512.0: must be an integer"),
        (
            (q, cache, None, lengths, 512),
            TypeError,
            "^block_table: NoneType: must be a torch tensor",
        ),
        ((q, cache, table, [1, 2], 512), TypeError, "^cache_seqlens: list: must be a torch tensor"),
        (
            (q, cache, table, lengths, 512, None, None, torch.tensor(0.1)),
            ValueError,
            "^softmax_scale=tensor.*: must be a plain number",
        ),
        (
            (torch._neg_view(q.float()), cache.float(), table, lengths, 512),
            ValueError,
            "^q: a tensor with its negative bit set",
        ),
        (
            (q.clone().requires_grad_(), cache, table, lengths, 512),
            ValueError,
            "^q requires a gradient",
        ),
    ):
        call(q, cache, table, lengths, 512)  # remembered, and no excuse
        with pytest.raises(error, match=words):
            call(*arguments)
    with pytest.raises(TypeError, match="^attn_sink: ndarray: must be a torch tensor"):
        call(q, cache, table, lengths, 512, attn_sink=np.zeros(5, np.float32))
    for options, error, words in (
        (dict(num_heads_k=2), NotImplementedError, "^num_heads_k=2"),
        (dict(cache_seqlens=[1]), TypeError, "^cache_seqlens: list"),
        (dict(foo=3), TypeError, "foo"),
    ):
        with pytest.raises(error, match=words):
            flash_mla.get_mla_metadata(**options)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_full_graph(backend):
    q, cache, table, lengths = generate(3, 2, 100, 5, True, torch.bfloat16)
    lengths[1] = 0

    def step(q, cache, table, lengths):
        return flash_mla.flash_mla_with_kvcache(q, cache, table, lengths, 512, causal=True)

    torch._dynamo.reset()
    got, want = (
        torch.compile(step, fullgraph=True, backend=backend)(q, cache, table, lengths),
        step(q, cache, table, lengths),
    )
    assert (
        torch.equal(got[0], want[0])
        and torch.equal(got[1], want[1])
        and (got[1][1] == math.inf).all()
    )
