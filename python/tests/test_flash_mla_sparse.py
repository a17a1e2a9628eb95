# SPDX-License-Identifier: Apache-2.0
"""amla.flash_mla with lists: FlashMLA's published sparse grid with its poison and tolerances,
thinned so that every pair of values of two parameters occurs (AMLA_LONG=1: all of it), against
fp64; its prefill twin; refusals; compile."""

import itertools
import math

import numpy as np
import pytest
import torch

import oracle
from amla import flash_mla
from conftest import LONG
from test_flash_mla import assert_close, pairwise

KEYS = [
    (512, 64, 2),
    (512, 64, 64),
    (512, 64, 69),
    (1024, 576, 2),
    (1024, 576, 61),
    (2046, 2048, 2),
    (2046, 2048, 64),
    (2046, 2048, 576),
]  # s_k, topk, page
BATCH = [4, 74, 321] if LONG else [1, 4]
GRID = list(
    itertools.product(
        BATCH,
        [1, 3],
        [1, 12, 20, 64, 96, 128],
        range(len(KEYS)),
        [576, 512],
        [0, 1],
        [0, 1],
        [0, 1],
    )
)
CASES = GRID if LONG else pairwise(GRID)


def make(b, s_q, h, s_k, topk, page, d, extra, lengths, sinks, dtype=torch.bfloat16):
    """Inputs as FlashMLA's tests make them: small normal numbers, NaN in every slot that no valid
    entry names, entries of -1 anywhere, the first query's list all -1, a length of 0."""
    g = torch.Generator().manual_seed(s_k + topk + page + d)
    cache, indices = _scope(g, b, s_q, s_k, topk, page, d, dtype)
    q = (torch.randn(b, s_q, h, d, generator=g) / 10).clamp_(-1, 1).to(dtype)
    more = dict(indices=indices)
    if lengths:
        more["topk_length"] = torch.randint(0, topk + 1, (b,), generator=g, dtype=torch.int32)
        more["topk_length"][0] = 0
    if extra:
        other, second = _scope(g, b, s_q, 256, 128, 53, d, dtype)
        more |= dict(extra_k_cache=other, extra_indices_in_kvcache=second)
        if lengths:
            more["extra_topk_length"] = torch.full((b,), 100, dtype=torch.int32)
            more["extra_topk_length"][0] = 0
    if sinks:
        more["attn_sink"] = torch.randn(h, generator=g) * 3
        more["attn_sink"][0] = math.inf if h > 1 else -math.inf
        more["attn_sink"][-1] = -math.inf
    return q, cache, more


def _scope(g, b, s_q, s_k, topk, page, d, dtype):
    pages = -(-s_k // page) + 1
    cache = (torch.randn(pages, page, 1, d, generator=g) / 10).clamp_(-1, 1).to(dtype)
    indices = torch.randint(0, pages * page, (b, s_q, topk), generator=g, dtype=torch.int32)
    indices[torch.rand(indices.shape, generator=g) < 0.1] = -1
    indices[0, 0] = -1
    named = torch.zeros(pages * page, dtype=torch.bool)
    named[indices[indices >= 0].long()] = True
    cache.view(-1, d)[~named] = math.nan
    return cache, indices


def truth(q, cache, more, scale):
    """fp64: out, LSE with FlashMLA's +inf where no key is seen, max_logits."""
    numbers = {n: (x.double() if x.is_floating_point() else x).numpy() for n, x in more.items()}
    sinks, extra = numbers.pop("attn_sink", None), None
    if "extra_k_cache" in numbers:
        extra = dict(
            kv_cache=numbers.pop("extra_k_cache")[:, :, 0],
            indices=numbers.pop("extra_indices_in_kvcache"),
            topk_length=numbers.pop("extra_topk_length", None),
        )
    out, lse, most = oracle.attend_keys(
        q.double().numpy(), cache.double().numpy()[:, :, 0], scale, 512, sinks, extra, **numbers
    )
    lse[np.isneginf(lse)] = np.inf
    return [torch.from_numpy(x) for x in (out, lse, most)]


def check(got, want, dtype=torch.bfloat16):
    out, lse = got[0], got[-1]
    assert out.dtype == dtype and out.shape == want[0].shape and lse.shape == want[1].shape
    assert_close("out", out, want[0], 1e-3, 2.01 / 128, 5e-6)
    assert_close("lse", lse, want[1], 1e-6, 8.01 / 65536)


@pytest.mark.parametrize("b, s_q, h, keys, d, extra, lengths, sinks", CASES)
def test_grid(b, s_q, h, keys, d, extra, lengths, sinks):
    q, cache, more = make(b, s_q, h, *KEYS[keys], d, extra, lengths, sinks)
    got = flash_mla.flash_mla_with_kvcache(q, cache, None, None, 512, **more)
    check(got, truth(q, cache, more, d**-0.5))
    if not extra or lengths:
        assert (got[1][0, :, 0] == math.inf).all() and not got[0][0, 0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_types_and_a_scale(dtype):
    q, cache, more = make(2, 2, 5, 512, 64, 64, 576, 1, 1, 1, dtype)
    got = flash_mla.flash_mla_with_kvcache(
        q, cache, None, None, 512, flash_mla.get_mla_metadata()[0], None, 0.3, **more
    )
    check(got, truth(q, cache, more, 0.3), dtype)


def test_pages_and_lengths_are_not_read_where_there_are_lists():
    q, cache, more = make(2, 1, 5, 512, 64, 64, 576, 0, 0, 0)
    meta = flash_mla.get_mla_metadata(is_fp8_kvcache=False, topk=64, num_heads_q=5)[0]
    want = flash_mla.flash_mla_with_kvcache(q, cache, None, None, 512, meta, **more)
    wild = torch.full((2, 3), 2147480000, dtype=torch.int32)
    got = flash_mla.flash_mla_with_kvcache(q, cache, wild, wild[:, 0], 512, meta, **more)
    assert all(torch.equal(x, y) for x, y in zip(got, want))


def test_dense_pages_and_then_a_list():
    q, cache, more = make(2, 1, 5, 512, 64, 64, 576, 1, 1, 1)
    cache, table = torch.nan_to_num(cache), torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.int32)
    lengths = torch.tensor([130, 0], dtype=torch.int32)
    scope = {name: x for name, x in more.items() if name not in ("indices", "topk_length")}
    got = flash_mla.flash_mla_with_kvcache(q, cache, table, lengths, 512, **scope)
    want = truth(q, cache, {**scope, "block_table": table, "seqlens": lengths}, 576**-0.5)
    check(got, want)


# ---- The prefill twin ----


@pytest.mark.parametrize(
    "s_q, h, s_kv, topk, d, lengths, sinks",
    [(1, 128, 1, 64, 576, 0, 0), (62, 5, 300, 128, 576, 1, 0), (7, 64, 4096, 2048, 512, 0, 1)],
)
def test_sparse_fwd(s_q, h, s_kv, topk, d, lengths, sinks):
    q, cache, more = make(s_q, 1, h, s_kv, topk, 1, d, 0, lengths, sinks)
    kv, indices = cache[:s_kv, 0], more["indices"].clone()  # [s_kv, 1, d]
    more["indices"][more["indices"] >= s_kv] = -1
    indices[0, 0, :9] = torch.tensor([-7, s_kv, s_kv + 1, 2**31 - 1, -1, -1, -(2**31), -1, -1])
    out, most, lse = flash_mla.flash_mla_sparse_fwd(
        q[:, 0],
        kv,
        indices,
        d**-0.5,
        512,
        more.get("attn_sink"),
        more.get("topk_length"),
        indexer_topk=0,
    )
    want = truth(q, torch.nan_to_num(cache[:s_kv]), more, d**-0.5)
    check((out[:, None], lse[..., None]), want)
    assert_close("max_logits", most[..., None], want[2], 1e-6, 8.01 / 65536)
    assert not out[0].any() and (most[0] == -math.inf).all() and (lse[0] == math.inf).all()


# ---- Refusals ----


def test_bad_arguments():
    q, cache, more = make(2, 1, 5, 512, 64, 64, 576, 1, 1, 0)
    slots = cache.shape[0] * 64

    def call(is_fp8_kvcache=False, causal=False, q=q, cache=cache, **change):
        return flash_mla.flash_mla_with_kvcache(
            q,
            cache,
            None,
            None,
            512,
            causal=causal,
            is_fp8_kvcache=is_fp8_kvcache,
            **{**more, **change},
        )

    for change, error, words in (
        (
            dict(topk_length=None, indices=more["indices"] + 9999),
            ValueError,
            rf"^indices\[.*the cache has {slots}",
        ),
        (dict(indices=more["indices"][0]), ValueError, "^indices: shape .* must have 3 dimensions"),
        (dict(indices=[[[1]]]), TypeError, "^indices: list: must be a torch tensor"),
        (dict(causal=True), ValueError, "^causal=1: must be 0 with topk > 0"),
        (dict(indices=None), TypeError, "^block_table: NoneType: must be a torch tensor"),
        (dict(topk_length=more["topk_length"] + 99), ValueError, r"^topk_length\[.*\]="),
        (dict(extra_k_cache=None), ValueError, "^extra_k_cache=None: must be a tensor where extra"),
        (
            dict(extra_indices_in_kvcache=None),
            ValueError,
            "^extra_indices_in_kvcache=None: must be a tensor where extra_k_cache is one",
        ),
        (dict(is_fp8_kvcache=True), ValueError, "^k_cache: shape .* 656 or 584 bytes"),
        (dict(cache=cache.half()), ValueError, "^k_cache: dtype torch.float16: must be q's"),
        (dict(cache=cache.expand(-1, -1, 2, -1)), NotImplementedError, "^k_cache: 2 KV heads"),
        (dict(q=q.clone().requires_grad_()), ValueError, "^q requires a gradient"),
    ):
        with pytest.raises(error, match=words):
            call(**change)

    def prefill(**change):
        given = dict(q=q[:, 0], kv=cache.view(-1, 1, 576), indices=more["indices"], sm_scale=0.1)
        return flash_mla.flash_mla_sparse_fwd(**{**given, **change})

    for change, error, words in (
        (dict(indexer_topk=64), NotImplementedError, "^indexer_topk=64: must be 0"),
        (dict(q=q), ValueError, "^q: shape .* must have 3 dimensions"),
        (dict(kv=cache.view(-1, 1, 576).half()), ValueError, "^kv: dtype torch.float16: must be"),
        (dict(kv=cache[:, :2, 0]), NotImplementedError, "^kv: 2 KV heads"),
        (dict(sm_scale=torch.tensor(1.0)), ValueError, "^sm_scale=tensor.* plain number"),
        (dict(d_v=600), ValueError, "^d_v=600: must be <= d_qk=576"),
    ):
        with pytest.raises(error, match=words):
            prefill(**change)


@pytest.mark.parametrize("extra", [0, 1])
def test_compile_full_graph(extra):
    q, cache, more = make(2, 1, 5, 512, 64, 64, 576, extra, 1, 1)

    def step(q, cache, more):
        decoded = flash_mla.flash_mla_with_kvcache(q, cache, None, None, 512, **more)
        prefilled = flash_mla.flash_mla_sparse_fwd(
            q[:, 0], cache.view(-1, 1, 576), more["indices"], 0.1
        )
        return *decoded, *prefilled

    torch._dynamo.reset()
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(q, cache, more)
    want = step(q, cache, more)
    assert len(got) == 5 and all(torch.equal(x, y) for x, y in zip(got, want))
    assert (got[1][0] == math.inf).all()
