# SPDX-License-Identifier: Apache-2.0
"""amla.decode: arrays in, arrays out, thin over amla_plan_create and amla_plan_run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import _arrays
from ._arrays import OPERATORS, is_traced, loaded_torch, refuse_gradients
from ._options import DecodeOptions
from ._plan import find_call, run_asking
from ._problem import Arguments, options_of
from ._scopes import Array, Scope, flat

if TYPE_CHECKING:
    from typing_extensions import Unpack


def decode(
    q: Array,
    kv_cache: Array,
    block_table: Array | None = None,
    seqlens: Array | None = None,
    *,
    scale: float,
    sinks: Array | None = None,
    mask: Array | None = None,
    out: Array | None = None,
    lse: Array | None = None,
    max_logits: Array | bool = False,
    indices: Array | None = None,
    topk_length: Array | None = None,
    visible: Array | None = None,
    extra: Scope | None = None,
    q_rope: Array | None = None,
    kv_rope: Array | None = None,
    q_indptr: Array | None = None,
    kv_indptr: Array | None = None,
    kv_indices: Array | None = None,
    cancel: Callable[[], Any] | None = None,
    **options: Unpack[DecodeOptions],
) -> tuple[Any, ...]:
    """Attention decoding in MLA's absorbed form: all heads share one KV row per token, whose first
    d_v elements are the value.

        S = scale * q . k      out = softmax(S) v      lse = log sum exp(S)

    Arguments
        q            [b, s_q, h_q, d_qk], float32, bfloat16 or float16
        kv_cache     paged: [n_pages, page_size, d_qk] or [n_pages, page_size, 1, d_qk]; contiguous
                     (no block_table): [b, sk, d_qk] or [b, sk, 1, d_qk]. float32, bfloat16 or
                     float16
        block_table  [b, max_pages] int32 page ids, or None. Entries past a sequence's end may hold
                     anything; no columns are enough where no sequence has keys. int64 is copied
                     into int32 in every call, and every entry must fit
        seqlens      [b] int32 lengths, 0 allowed; None: all as long as there is room. int64 as in
                     block_table
        scale        factor of q . k, a plain number. No default: models use 1/sqrt(192) times
                     YaRN's mscale^2, FlashMLA 1/sqrt(576)
        causal       query i of a sequence of length n sees its first n - s_q + i + 1 keys
        d_v          width of the value, at most d_qk
        rescale      "lazy", "amla" or "flash": same result within rounding
        backend      "auto", "ref", "cpu", "cuda" or "npu"
        threads      0: AMLA_NUM_THREADS if set, else torch.get_num_threads() for torch tensors,
                     else the library's default (docs/performance.md)
        lse_base     "e" or 2
        sinks        [h_q] float32 logits: out is scaled by exp(lse) / (exp(lse) + exp(sink)), lse
                     stays
        mask         [b, s_q, max_pages * page_size or sk] float16, added to the scaled scores; -inf
                     hides the key
        out_dtype    type of out: a name or a dtype of torch or NumPy; default out's if out is
                     given, else q's
        isa, split_tokens, p_form, q_form, kv_round and others  as in amla_options
        out, lse     arrays to write into: [b, s_q, h_q, d_v] in any of the types, and [b, h_q, s_q]
                     float32
        max_logits   True, or an array like lse to write into: a third result, the largest scaled
                     score of each row in natural-log units, -inf without keys

    What a query sees (docs/sparse.md); all but kv_cache and q may be lists of integers
        indices      [b, s_q, topk] int32, the only keys that a query sees. Negative entries are
                     none, repeated ones count as often
        index_kind   "slot": entries are page * page_size + offset (contiguous: sequence * sk +
                     position), and block_table and seqlens are not read; "position": positions in
                     the sequence. For both scopes
        topk_length  [b] or [b, s_q]: only so many entries of a list count, the first ones
        visible      [b, s_q]: a query sees the first so many keys; not with causal or indices
        window       of those that a query sees, only the last so many; needs causal or visible
        extra        amla.Scope: a second cache, whose keys come after those of the first
        q_rope, kv_rope  the last columns of q and kv_cache, where they lie apart:
                     [b, s_q, h_q, d_rope], and [n_pages, page_size, d_rope] or [b, sk, d_rope]
        q_indptr     [b + 1]: sequence i has queries [q_indptr[i], q_indptr[i + 1]) of q, which is
                     [total, h_q, d_qk]. Then out is [total, h_q, d_v], lse and max_logits are
                     [total, h_q], and every [b, s_q] above is [total]
        kv_indptr, kv_indices  [b + 1] and [n]: page ids as FlashInfer has them, instead of
                     block_table
        lse_sink     True: lse is of keys and sink together
        kv_type      what the bytes of a cache of uint8, int8 or float8_e4m3fn are: "fp8_656",
                     "fp8_584" (kv_cache [n_pages, page_size, 656 or 584]), "fp8_e4m3", or ggml's
                     "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl" (kv_cache [n_pages, page_size,
                     bytes of a row])
        kv_scale, kv_rope_scale  factors of fp8_e4m3 elements: of the latent and of the rope part
        cancel       a function without arguments, asked before each key tile by every thread of
                     the run; a true answer ends it with amla.Cancelled, and what it raises is
                     raised. out and lse then hold anything. On the CPU

    NumPy arrays (bfloat16 from ml_dtypes), torch tensors and objects with __dlpack__ mix freely.
    Nothing else is copied; strides are honoured where the last axis is contiguous (of seqlens,
    sinks and lse: all axes). Integer lists serve as block_table and seqlens.

    Returns (out, lse), or (out, lse, max_logits): out [b, s_q, h_q, d_v] and lse [b, h_q, s_q]
    float32, torch tensors if q is one, else NumPy arrays. A row that sees no key has out 0 and lse
    -inf. The same input gives the same bits with any number of threads and in any batch.

    Raises ValueError with field, value and rule for bad arguments, before any work;
    NotImplementedError for what is not built or not on this machine; TypeError for what is no
    array. The GIL is released while the library works. Inference only: torch tensors that require a
    gradient are refused unless gradients are switched off.
    """
    if is_traced(q):
        return _call_operator(**locals())  # nothing but the arguments as yet
    more = flat(
        extra,
        indices=indices,
        topk_length=topk_length,
        visible=visible,
        q_rope=q_rope,
        kv_rope=kv_rope,
        q_indptr=q_indptr,
        kv_indptr=kv_indptr,
        kv_indices=kv_indices,
    )
    torch = loaded_torch()
    if torch is not None:
        refuse_gradients(q=q, kv_cache=kv_cache, sinks=sinks, mask=mask, out=out, lse=lse, **more)
        if isinstance(q, torch.Tensor) and OPERATORS not in sys.modules:
            _arrays.register_operators()
    a = Arguments(q, kv_cache, block_table, seqlens, sinks, mask, out, lse, max_logits, more)
    o = options_of(scale, **options)
    call = find_call(a, o)
    return call.run(a) if cancel is None else run_asking(call.plan, a, o, cancel)


def _call_operator(cancel: Callable[[], Any] | None, **arguments: Any) -> tuple[Any, ...]:
    if cancel is not None:
        raise NotImplementedError("cancel: compiled graphs have no place for it")
    from . import _torch_op

    return _torch_op.call(**arguments)
