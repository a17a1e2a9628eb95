# SPDX-License-Identifier: Apache-2.0
"""FlashMLA's interface over AMLA, for CPU tensors and, where the library has its cuda backend, for
CUDA tensors:

    from amla import flash_mla          # instead of: import flash_mla

`get_mla_metadata` and `flash_mla_with_kvcache` take the old and the new call forms. What FlashMLA
has and this has not (fp8 caches, sparse attention, prefill) raises NotImplementedError by name.
More than FlashMLA: `attn_sink` with dense attention, float32, any page size, any number of heads.
"""

from __future__ import annotations

import ctypes
import dataclasses
import operator
from typing import Any, NoReturn

import torch

from . import _torch_op
from ._arrays import integers, is_torch, refuse_gradients, refuse_unplain
from ._library import checked_number
from ._plan import Call, find_call
from ._problem import OPTION_DEFAULTS, Arguments, options_of

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
    Numbers of tokens and query heads make no difference; is_fp8_kvcache, topk and num_heads_k other
    than 1 are NotImplementedError, cache_seqlens that is no tensor TypeError.
    """
    if is_fp8_kvcache or topk is not None:
        _refuse(is_fp8_kvcache=is_fp8_kvcache or None, topk=topk)
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
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
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
    """Dense MLA decoding over a paged cache.

    Arguments
        q              [b, s_q, h_q, 576], bfloat16, float16 or float32, last axis contiguous
        k_cache        [n_pages, page_size, 1, 576] of q's dtype, last axis contiguous, any page
                       stride
        block_table    [b, max_pages] int32; entries past a sequence's end may hold anything. int64
                       is copied in every call, every entry must fit
        cache_seqlens  [b] int32, or int64 as in block_table
        head_dim_v     512 (anything up to q's width)
        tile_scheduler_metadata, num_splits  what `get_mla_metadata` returned; ignored
        softmax_scale  a plain number; default q's width to the -0.5
        causal         bottom-right aligned
        attn_sink      [h_q] float32: out is scaled by exp(lse) / (exp(lse) + exp(sink)); lse is
                       left alone
        is_fp8_kvcache, indices, extra_k_cache, extra_indices_in_kvcache, topk_length,
        extra_topk_length: NotImplementedError if used

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
        _refuse(
            is_fp8_kvcache=is_fp8_kvcache or None,
            indices=indices,
            extra_k_cache=extra_k_cache,
            extra_indices_in_kvcache=extra_indices_in_kvcache,
            topk_length=topk_length,
            extra_topk_length=extra_topk_length,
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
_MAX_CALLS = 1024


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
    scale = (
        q.shape[-1] ** -0.5
        if softmax_scale is None
        else checked_number("softmax_scale", softmax_scale)
    )
    options: dict[str, Any] = dict(OPTION_DEFAULTS, causal=causal, d_v=head_dim_v)
    call = find_call(
        Arguments(q, k_cache, block_table, cache_seqlens, sinks=attn_sink),
        options_of(scale=scale, **options),
    )
    if key is not None:
        if len(_calls) >= _MAX_CALLS:
            _calls.clear()
        _calls[key] = call
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
    scale = (
        q.shape[-1] ** -0.5
        if softmax_scale is None
        else checked_number("softmax_scale", softmax_scale)
    )
    out, lse = _torch_op.call(
        q,
        k_cache,
        block_table,
        cache_seqlens,
        sinks=attn_sink,
        scale=scale,
        causal=causal,
        d_v=head_dim_v,
    )
    return out, torch.where(lse == -torch.inf, torch.inf, lse)


# ---- What is not here ----


def _refuse(**arguments: Any) -> NoReturn:
    name = next(name for name, value in arguments.items() if value is not None)
    raise NotImplementedError(
        f"{name}: not supported by amla.flash_mla: it decodes dense bfloat16, float16 and float32 "
        "caches"
    )


def _absent(name: str) -> NoReturn:
    raise NotImplementedError(
        f"{name}: not supported by amla.flash_mla: it has flash_mla_with_kvcache, dense decoding"
    )


def flash_mla_sparse_fwd(*args: Any, **kwargs: Any) -> NoReturn:
    """Sparse prefill: NotImplementedError."""
    _absent("flash_mla_sparse_fwd")


def flash_attn_varlen_func(*args: Any, **kwargs: Any) -> NoReturn:
    """Dense prefill: NotImplementedError."""
    _absent("flash_attn_varlen_func")


def flash_attn_varlen_qkvpacked_func(*args: Any, **kwargs: Any) -> NoReturn:
    """Dense prefill: NotImplementedError."""
    _absent("flash_attn_varlen_qkvpacked_func")


def flash_attn_varlen_kvpacked_func(*args: Any, **kwargs: Any) -> NoReturn:
    """Dense prefill: NotImplementedError."""
    _absent("flash_attn_varlen_kvpacked_func")
