# SPDX-License-Identifier: Apache-2.0
"""FlashMLA's interface over AMLA, for CPU tensors and, where the library has its cuda backend, for
CUDA tensors:

    from amla import flash_mla          # instead of: import flash_mla

`get_mla_metadata` and `flash_mla_with_kvcache` take the old and the new call forms, and
`flash_mla_sparse_fwd` is there. What FlashMLA has and this has not (dense prefill, several KV
heads) raises NotImplementedError by name. More than FlashMLA: `attn_sink` with dense attention,
float32, any page size, any number of heads, lists over caches of any type, dense fp8 caches.
"""

from __future__ import annotations

import ctypes
import dataclasses
import operator
from typing import Any, NoReturn

import torch

from . import _torch_op
from ._arrays import integers, is_torch, refuse_gradients, refuse_unplain
from ._decode import decode
from ._library import checked_number
from ._plan import Call, find_call, remember
from ._problem import Arguments, options_of
from ._scopes import Scope

__all__ = [
    "FlashMLASchedMeta",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd",
    "flash_mla_with_kvcache",
    "get_mla_metadata",
]


@dataclasses.dataclass
class FlashMLASchedMeta:
    """What FlashMLA keeps between calls. There is nothing to keep here: plans are cached by
    shape."""


def get_mla_metadata(
    cache_seqlens: torch.Tensor | None = None,
    num_q_tokens_per_head_k: int | None = None,
    num_heads_k: int | None = None,
    num_heads_q: int | None = None,
    is_fp8_kvcache: bool = False,
    topk: int | None = None,
) -> tuple[Any, torch.Tensor | None]:
    """Scheduling metadata, which this library has no use for.

    New form, without arguments: (FlashMLASchedMeta, None). Old form, with cache_seqlens [b] int32
    first: two int32 tensors shaped as the old releases return them, [1, 8] and [b + 1], for callers
    that copy them into buffers of their own. Pass either pair on to `flash_mla_with_kvcache`.
    Numbers of tokens and query heads, is_fp8_kvcache and topk make no difference; num_heads_k other
    than 1 is NotImplementedError, cache_seqlens that is no tensor TypeError.
    """
    if num_heads_k not in (None, 1):
        raise NotImplementedError(f"num_heads_k={num_heads_k}: MLA decode needs 1")
    if cache_seqlens is None:
        return FlashMLASchedMeta(), None
    _check_tensor("cache_seqlens", cache_seqlens, 1)
    device = cache_seqlens.device
    return torch.zeros(1, 8, dtype=torch.int32, device=device), torch.arange(
        cache_seqlens.shape[0] + 1, dtype=torch.int32, device=device
    )


def flash_mla_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: Any,
    cache_seqlens: Any,
    head_dim_v: int,
    tile_scheduler_metadata: Any = None,
    num_splits: Any = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    is_fp8_kvcache: bool = False,
    indices: Any = None,
    attn_sink: torch.Tensor | None = None,
    extra_k_cache: Any = None,
    extra_indices_in_kvcache: Any = None,
    topk_length: Any = None,
    extra_topk_length: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """MLA decoding over a paged cache: dense, or over lists of tokens.

    Arguments
        q              [b, s_q, h_q, 576], bfloat16, float16 or float32, last axis contiguous
        k_cache        [n_pages, page_size, 1, 576] of q's dtype, last axis contiguous, any page
                       stride; or, with is_fp8_kvcache, [n_pages, page_size, 1, 656] or
                       [..., 584] of uint8, int8 or float8_e4m3fn
        block_table    [b, max_pages] int32; entries past a sequence's end may hold anything. int64
                       is copied in every call, every entry must fit
        cache_seqlens  [b] int32, or int64 as in block_table
        head_dim_v     512 (anything up to q's width)
        tile_scheduler_metadata, num_splits  what `get_mla_metadata` returned; ignored
        softmax_scale  a plain number; default q's width to the -0.5
        causal         bottom-right aligned
        attn_sink      [h_q] float32: out is scaled by exp(lse) / (exp(lse) + exp(sink)); lse is
                       left alone
        is_fp8_kvcache k_cache holds records of 656 bytes (q's width is 576), or of 584 bytes in
                       pages with their scales behind (q's width is 512). Their page stride is
                       free; a stride of 584 between tokens is nominal
        indices        [b, s_q, topk] int32 slots, page * page_size + offset; negative ones are
                       none. Then block_table and cache_seqlens are not read and may be None
        topk_length    [b] int32: only so many entries of a list count, the first ones
        extra_k_cache, extra_indices_in_kvcache, extra_topk_length
                       a second cache of k_cache's type with a page size of its own, and its
                       lists, under the same softmax

    Returns out [b, s_q, h_q, head_dim_v] of q's dtype and lse [b, h_q, s_q] float32, natural
    logarithm; a row that sees no key has out 0 and lse +inf. Whatever lies in unused slots and
    pages of the cache, NaN included, reaches no result.

    Raises ValueError for bad shapes, dtypes, lengths and page ids, and for tensors that require a
    gradient unless gradients are switched off (there is no backward pass); TypeError for what is no
    tensor.
    """
    if (
        is_fp8_kvcache
        or indices is not None
        or extra_k_cache is not None
        or extra_indices_in_kvcache is not None
        or topk_length is not None
        or extra_topk_length is not None
    ):
        lists = dict(
            indices=indices,
            topk_length=topk_length,
            extra_k_cache=extra_k_cache,
            extra_indices_in_kvcache=extra_indices_in_kvcache,
            extra_topk_length=extra_topk_length,
        )
        return _sparse(
            q,
            k_cache,
            block_table,
            cache_seqlens,
            attn_sink,
            lists,
            is_fp8_kvcache=is_fp8_kvcache,
            scale=_scale("softmax_scale", softmax_scale, q),
            causal=causal,
            d_v=head_dim_v,
        )
    if _is_compiling() or type(q) is not torch.Tensor:
        return _traced(
            q, k_cache, block_table, cache_seqlens, head_dim_v, softmax_scale, causal, attn_sink
        )

    key: Any
    try:
        key = (
            _describe(q),
            q.stride(),
            _describe(k_cache),
            k_cache.stride(),
            _describe(block_table),
            block_table.stride(),
            _describe(cache_seqlens),
            cache_seqlens.stride(),
            type(head_dim_v),
            head_dim_v,
            softmax_scale,
            causal,
            _get_num_threads(),
            q.is_neg() or k_cache.is_neg(),
            None
            if attn_sink is None
            else (_describe(attn_sink), attn_sink.stride(), attn_sink.is_neg()),
        )
        call = _calls.get(key)
    except (
        AttributeError,
        TypeError,
        RuntimeError,
    ):  # no tensors, or numbers that cannot be hashed: _remember says which
        key = call = None
    if call is None:
        call = _remember(
            key,
            q,
            k_cache,
            block_table,
            cache_seqlens,
            head_dim_v,
            softmax_scale,
            causal,
            attn_sink,
        )
    if _is_grad_enabled() and (q.requires_grad or k_cache.requires_grad or attn_sink is not None):
        refuse_gradients(q=q, k_cache=k_cache, attn_sink=attn_sink)
    if block_table.dtype is _int64 or cache_seqlens.dtype is _int64:
        block_table, cache_seqlens = (
            integers("block_table", block_table),
            integers("cache_seqlens", cache_seqlens),
        )
    out, lse = call.make_out(), call.make_lse()
    tensors = call.new_tensors()
    try:
        tensors.q = q.data_ptr()
        tensors.kv = k_cache.data_ptr()
        tensors.block_table = block_table.data_ptr()
        tensors.seqlens_k = cache_seqlens.data_ptr()
        if attn_sink is not None:
            tensors.sinks = attn_sink.data_ptr()
        tensors.out = out.data_ptr()
        tensors.lse = lse.data_ptr()
    except RuntimeError:  # torch: no storage
        _refuse_unplain(q, k_cache, block_table, cache_seqlens, attn_sink)
        raise
    call.run_tensors(tensors)
    if _has_empty_rows(call, cache_seqlens, causal):
        lse.masked_fill_(lse == -torch.inf, torch.inf)
    return out, lse


# Bound once: a call's overhead is mostly such look-ups, from caches that the kernel has just
# emptied.
_int64, _get_num_threads = torch.int64, torch.get_num_threads
_is_compiling, _is_grad_enabled = torch.compiler.is_compiling, torch.is_grad_enabled
_describe = operator.attrgetter("shape", "dtype", "device")
_calls: dict[tuple[Any, ...], Call] = {}


def _scale(name: str, scale: Any, q: Any) -> float:
    return q.shape[-1] ** -0.5 if scale is None else checked_number(name, scale)


def _check_tensor(name: str, x: Any, n_dims: int) -> None:
    if not is_torch(x):
        raise TypeError(f"{name}: {type(x).__name__}: must be a torch tensor")
    refuse_unplain(name, x)
    if x.dim() != n_dims:
        raise ValueError(f"{name}: shape {list(x.shape)}: must have {n_dims} dimensions")


def _refuse_unplain(
    q: Any, k_cache: Any, block_table: Any, cache_seqlens: Any, attn_sink: Any
) -> None:
    for name, x in (
        ("q", q),
        ("k_cache", k_cache),
        ("block_table", block_table),
        ("cache_seqlens", cache_seqlens),
        ("attn_sink", attn_sink),
    ):
        refuse_unplain(name, x)


def _check(q: Any, k_cache: Any, block_table: Any, cache_seqlens: Any, attn_sink: Any) -> None:
    """What FlashMLA asks for and amla.decode does not."""
    for name, x, n_dims in (
        ("q", q, 4),
        ("k_cache", k_cache, 4),
        ("block_table", block_table, 2),
        ("cache_seqlens", cache_seqlens, 1),
    ):
        _check_tensor(name, x, n_dims)
    if attn_sink is not None:
        _check_tensor("attn_sink", attn_sink, 1)
    if k_cache.dtype != q.dtype:
        raise ValueError(f"k_cache: dtype {k_cache.dtype}: must be q's, {q.dtype}")
    if k_cache.shape[2] != 1:
        raise NotImplementedError(f"k_cache: {k_cache.shape[2]} KV heads: MLA decode needs 1")


def _remember(
    key: Any,
    q: Any,
    k_cache: Any,
    block_table: Any,
    cache_seqlens: Any,
    head_dim_v: int,
    softmax_scale: float | None,
    causal: bool,
    attn_sink: Any,
) -> Call:
    _check(q, k_cache, block_table, cache_seqlens, attn_sink)
    block_table, cache_seqlens = (
        integers("block_table", block_table),
        integers("cache_seqlens", cache_seqlens),
    )
    scale = _scale("softmax_scale", softmax_scale, q)
    call = find_call(
        Arguments(q, k_cache, block_table, cache_seqlens, sinks=attn_sink),
        options_of(scale, causal=causal, d_v=head_dim_v),
    )
    if key is not None:
        remember(_calls, key, call)
    return call


def _has_empty_rows(call: Call, cache_seqlens: torch.Tensor, causal: bool) -> bool:
    """Does some row see no key? On a device the lengths are not looked at: maybe."""
    if call.device != "cpu":
        return True
    b, s_q, _, _ = call.out_shape
    return b > 0 and min((ctypes.c_int32 * b).from_address(cache_seqlens.data_ptr())) < (
        s_q if causal else 1
    )


def _traced(
    q: Any,
    k_cache: Any,
    block_table: Any,
    cache_seqlens: Any,
    head_dim_v: int,
    softmax_scale: float | None,
    causal: bool,
    attn_sink: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same through the operator amla::decode, for torch.compile and tensor subclasses."""
    _check(q, k_cache, block_table, cache_seqlens, attn_sink)
    scale = _scale("softmax_scale", softmax_scale, q)
    out, lse = _torch_op.call(
        q,
        k_cache,
        block_table,
        cache_seqlens,
        sinks=attn_sink,
        scale=scale,
        options=dict(causal=causal, d_v=head_dim_v),
    )
    return out, torch.where(lse == -torch.inf, torch.inf, lse)


# ---- Lists, second caches, fp8 ----


def _cache_format(name: str, cache: Any, q: Any, is_fp8: bool) -> str | None:
    """What the bytes of a cache are, by the width of its rows; None: numbers of q's type."""
    if not is_fp8:
        if cache.dtype != q.dtype:
            raise ValueError(
                f"{name}: dtype {cache.dtype}: must be q's, {q.dtype}, unless is_fp8_kvcache"
            )
        return None
    width = cache.shape[-1]
    if width not in (656, 584):
        raise ValueError(
            f"{name}: shape {list(cache.shape)}: with is_fp8_kvcache a token has 656 or 584 bytes"
        )
    return f"fp8_{width}"


def _sparse(
    q: Any,
    k_cache: Any,
    block_table: Any,
    cache_seqlens: Any,
    attn_sink: Any,
    lists: dict[str, Any],
    *,
    is_fp8_kvcache: bool,
    scale: float,
    causal: bool,
    d_v: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whatever is not dense attention over numbers, by amla.decode."""
    dense = lists["indices"] is None
    given = dict(q=q, k_cache=k_cache, attn_sink=attn_sink, **lists)
    if dense:
        given |= dict(block_table=block_table, cache_seqlens=cache_seqlens)
    for name, x in given.items():
        if x is not None or name not in ("attn_sink", *lists):
            _check_tensor(name, x, _N_DIMS[name])
    _check_lists(lists)
    for name in ("k_cache", "extra_k_cache"):
        if given[name] is not None and given[name].shape[2] != 1:
            raise NotImplementedError(
                f"{name}: {given[name].shape[2]} KV heads: MLA decode needs 1"
            )
    kv_type = _cache_format("k_cache", k_cache, q, is_fp8_kvcache)
    extra = None
    if lists["extra_k_cache"] is not None:
        if _cache_format("extra_k_cache", lists["extra_k_cache"], q, is_fp8_kvcache) != kv_type:
            raise ValueError(
                f"extra_k_cache: shape {list(lists['extra_k_cache'].shape)}: must be of k_cache's "
                f"format, {kv_type}"
            )
        extra = Scope(
            lists["extra_k_cache"],
            indices=lists["extra_indices_in_kvcache"],
            topk_length=lists["extra_topk_length"],
        )
    out, lse = decode(
        q,
        k_cache,
        block_table if dense else None,
        cache_seqlens if dense else None,
        scale=scale,
        causal=causal,
        d_v=d_v,
        sinks=attn_sink,
        indices=lists["indices"],
        topk_length=lists["topk_length"],
        extra=extra,
        kv_type=kv_type,
    )[:2]
    return out, torch.where(lse == -torch.inf, torch.inf, lse)


_N_DIMS = dict(
    q=4,
    k_cache=4,
    block_table=2,
    cache_seqlens=1,
    attn_sink=1,
    indices=3,
    topk_length=1,
    extra_k_cache=4,
    extra_indices_in_kvcache=3,
    extra_topk_length=1,
)


def _check_lists(lists: dict[str, Any]) -> None:
    """Each of these needs another one."""
    for name, needed in (
        ("topk_length", "indices"),
        ("extra_k_cache", "extra_indices_in_kvcache"),
        ("extra_indices_in_kvcache", "extra_k_cache"),
        ("extra_topk_length", "extra_indices_in_kvcache"),
    ):
        if lists[name] is not None and lists[needed] is None:
            raise ValueError(f"{needed}=None: must be a tensor where {name} is one")


def flash_mla_sparse_fwd(
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
    indexer_topk: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention of s_q queries to lists of the tokens of one sequence: sparse prefill.

    Arguments
        q             [s_q, h_q, d_qk], bfloat16, float16 or float32
        kv            [s_kv, 1, d_qk] of q's dtype
        indices       [s_q, 1, topk] int32 tokens; negative ones and those from s_kv on are none
        sm_scale      a plain number
        attn_sink     [h_q] float32, as in `flash_mla_with_kvcache`
        topk_length   [s_q] int32: only so many entries of a list count, the first ones
        indexer_topk  0; else NotImplementedError

    Returns out [s_q, h_q, d_v] of q's dtype, and max_logits and lse [s_q, h_q] float32, natural
    logarithms. A row that sees no key has out 0, max_logits -inf and lse +inf. Raises as
    `flash_mla_with_kvcache` does.
    """
    if indexer_topk:
        raise NotImplementedError(f"indexer_topk={indexer_topk!r}: must be 0")
    for name, x in (("q", q), ("kv", kv), ("indices", indices)):
        _check_tensor(name, x, 3)
    optional = dict(attn_sink=attn_sink, topk_length=topk_length)
    for name, sizes in optional.items():
        if sizes is not None:
            _check_tensor(name, sizes, 1)
    if kv.dtype != q.dtype:
        raise ValueError(f"kv: dtype {kv.dtype}: must be q's, {q.dtype}")
    for name, x in (("kv", kv), ("indices", indices)):
        if x.shape[1] != 1:
            raise NotImplementedError(f"{name}: {x.shape[1]} KV heads: MLA decode needs 1")
    out, lse, max_logits = decode(
        q[:, None],  # every query is a sequence of its own, every token a page
        kv,
        scale=checked_number("sm_scale", sm_scale),
        d_v=d_v,
        sinks=attn_sink,
        indices=torch.where(indices < kv.shape[0], indices, -1),
        topk_length=topk_length,
        max_logits=True,
    )
    lse = torch.where(lse == -torch.inf, torch.inf, lse)
    return out[:, 0], max_logits[..., 0], lse[..., 0]


# ---- What is not here ----


def _absent(name: str) -> NoReturn:
    raise NotImplementedError(f"{name}: not supported by amla.flash_mla: it has no dense prefill")


def flash_attn_varlen_func(*args: Any, **kwargs: Any) -> NoReturn:
    """Dense prefill: NotImplementedError."""
    _absent("flash_attn_varlen_func")


def flash_attn_varlen_qkvpacked_func(*args: Any, **kwargs: Any) -> NoReturn:
    """Dense prefill: NotImplementedError."""
    _absent("flash_attn_varlen_qkvpacked_func")


def flash_attn_varlen_kvpacked_func(*args: Any, **kwargs: Any) -> NoReturn:
    """Dense prefill: NotImplementedError."""
    _absent("flash_attn_varlen_kvpacked_func")
