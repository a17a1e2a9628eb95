# SPDX-License-Identifier: Apache-2.0
"""amla.index_topk: the indexer of sparse attention, thin over amla_index_topk."""

from __future__ import annotations

import ctypes
from typing import Any

from . import _library as c
from ._arrays import (
    View,
    call_operator,
    integers,
    is_traced,
    maker_like_kind,
    native,
    pointer,
    refuse_gradients,
)
from ._plan import cpu_options, give_scratch, take_scratch
from ._scopes import Array, table_fields
from ._shapes import (
    expect,
    expect_contiguous,
    expect_dtype,
    expect_packed,
    host_views,
    put_arrays,
    stride,
    strides,
)

_FP8 = "float8_e4m3fn"
_ARRAYS = ("q", "weights", "k_cache", "block_table", "seqlens", "visible", "q_scales")


def index_topk(
    q: Array,
    weights: Array,
    k_cache: Array,
    block_table: Array | None = None,
    seqlens: Array | None = None,
    *,
    topk: int = 2048,
    keys: str | None = None,
    causal: bool = False,
    visible: Array | None = None,
    q_scales: Array | None = None,
    index_kind: str = "slot",
    scores: bool = False,
    threads: int = 0,
    isa: str = "auto",
) -> Any:
    """The lists of sparse attention: for each query, the topk keys of highest score

        score(t) = sum_h weights[h] * max(0, q[h] . k[t])

    Arguments
        q            [b, s_q, heads, d], float32, bfloat16, float16 or float8_e4m3fn
        weights      [b, s_q, heads] float32. Models fold their softmax scale into them
        k_cache      paged: [n_pages, page_size, d], contiguous (no block_table): [b, sk, d], or
                     either with one head, [.., 1, d]; bfloat16, or the bytes that `keys` names
        block_table, seqlens, causal, visible, threads, isa  as in `decode`
        keys         what bytes of k_cache are, whose last axis is then d + 4: "fp8_page", in each
                     page the e4m3 of all tokens, then their float32 scales; "fp8_token", a record
                     for each token
        q_scales     [b, s_q, heads] float32, factors of a q in float8_e4m3fn
        index_kind   of the lists: "slot" or "position"
        scores       True: also the scores, [b, s_q, sk] float32, -inf where the query sees no key

    Returns indices [b, s_q, topk] int32, what `decode` takes, or (indices, scores), of q's kind. In
    ascending position, then -1 where a query sees fewer keys than topk. Of equal scores the lower
    position goes first; the same lists for any number of threads (docs/indexer.md).

    Raises ValueError with field, value and rule for bad arguments, before any work.
    """
    if is_traced(q):
        found = call_operator("index_topk", _ARRAYS, locals())
        return found if scores else found[0]
    refuse_gradients(q=q, weights=weights, k_cache=k_cache, q_scales=q_scales)
    arrays = dict(q=native("q", q), weights=native("weights", weights, "float32"))
    arrays["k_cache"] = native("k_cache", k_cache)
    arrays["q_scales"] = native("q_scales", q_scales, "float32")
    for name, x in dict(block_table=block_table, seqlens=seqlens, visible=visible).items():
        arrays[name] = integers(name, x)
    views = host_views(arrays, ("q", "weights", "k_cache"))
    args = _args(views, keys)
    args.topk = c.checked_int("topk", topk)
    args.causal = c.checked_flag("causal", causal)
    args.index_kind = c.choice("index_kind", index_kind, c.INDEX_KINDS)
    want_scores = c.checked_flag("scores", scores)
    put_arrays(
        args, arrays, views, {"k_cache": "k", "seqlens": "seqlens_k", "visible": "visible_k"}
    )
    if "block_table" in views:  # whole rows: used entries are all that is read
        args.block_table_bytes = args.b * args.max_pages * 4
    return _run(args, arrays["q"], want_scores, cpu_options(q, threads, isa))


def _run(args: c.IndexArgs, q: Any, want_scores: bool, options: c.Options) -> Any:
    shape, detail, n_bytes = (args.b, args.s_q), c.Detail(), ctypes.c_size_t()
    at, how, why = ctypes.addressof(args), ctypes.addressof(options), ctypes.byref(detail)
    c.check(c.lib.amla_index_scratch_bytes(at, how, ctypes.byref(n_bytes), why), detail)
    indices = maker_like_kind(q, (*shape, args.topk), "int32")()
    args.indices, args.indices_bytes = pointer(indices), args.b * args.s_q * args.topk * 4
    found = None
    if want_scores:
        found = maker_like_kind(q, (*shape, args.sk), "float32")()
        args.scores, args.scores_bytes = pointer(found), args.b * args.s_q * args.sk * 4
    scratch = take_scratch(n_bytes.value)
    c.check(c.lib.amla_index_topk(at, how, scratch.address, scratch.bytes, why), detail)
    give_scratch(scratch)
    return (indices, found) if want_scores else indices


def _args(v: dict[str, View], keys: str | None) -> c.IndexArgs:
    """amla_index_args without its pointers; ValueError for shapes that do not fit."""
    q, k = v["q"], v["k_cache"]
    expect("q", q, ("b", "s_q", "heads", "d"))
    expect_dtype("q", q, (*c.DTYPES, _FP8))
    known = dict(zip(("b", "s_q", "heads", "d"), q.shape), h_k=1)
    kind = _keys_of(k, keys)
    known["row"] = known["d"] + (0 if kind == "bf16" else 4)
    for name in ("weights", "q_scales"):
        expect_packed(name, v.get(name), ("b", "s_q", "heads"), ("float32",), known)
    expect_packed("seqlens", v.get("seqlens"), ("b",), ("int32",), known)
    expect_packed("visible", v.get("visible"), ("b", "s_q"), ("int32",), known)
    axes = ["b", "sk"] if "block_table" not in v else ["n_pages", "page_size"]
    axes += ["h_k"] * (len(k.shape) == 4) + ["d" if kind == "bf16" else "row"]
    expect("k_cache", k, axes, known)
    expect_contiguous("k_cache", k, 1 if kind == "fp8_page" else len(k.shape) - 1)
    return c.IndexArgs(
        struct_bytes=ctypes.sizeof(c.IndexArgs),
        b=known["b"],
        s_q=known["s_q"],
        heads=known["heads"],
        d=known["d"],
        q_type=c.DTYPES.get(q.dtype, c.FP8_TYPES["fp8_e4m3"]),
        keys=c.INDEX_KEYS[kind],
        k_stride_page=stride("k_cache", k, 0),
        k_stride_token=0 if kind == "fp8_page" else stride("k_cache", k, 1),
        **strides("q", q, "q", ("batch", "query", "head")),
        **table_fields("k_cache", k, "block_table", v.get("block_table"), known),
    )


def _keys_of(k: View, keys: str | None) -> str:
    if keys is None:
        expect_dtype("k_cache", k, ("bfloat16",))
        return "bf16"
    c.choice("keys", keys, c.INDEX_KEYS)
    expect_dtype("k_cache", k, ("bfloat16",) if keys == "bf16" else c.BYTE_DTYPES)
    return keys
