# SPDX-License-Identifier: Apache-2.0
"""amla.decode and amla.merge: arrays in, arrays out, thin over amla_plan_create, amla_plan_run and
amla_merge."""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import Any

import numpy as np

from . import _library as c
from ._arrays import (
    loaded_torch,
    maker_like_kind,
    native,
    pointer,
    refuse_gradients,
    refuse_unplain,
    view_of,
)
from ._plan import find_call
from ._problem import (
    Arguments,
    Array,
    expect,
    expect_contiguous,
    expect_dtype,
    one_device,
    options_of,
)


def decode(
    q: Array,
    kv_cache: Array,
    block_table: Array | None = None,
    seqlens: Array | None = None,
    *,
    scale: float,
    causal: bool = False,
    d_v: int = 512,
    rescale: str = "lazy",
    backend: str = "auto",
    threads: int = 0,
    lse_base: str | int = "e",
    sinks: Array | None = None,
    mask: Array | None = None,
    out_dtype: Any = None,
    isa: str = "auto",
    split_tokens: int = 0,
    p_form: str = "default",
    q_form: str = "default",
    kv_round: str = "exact",
    out: Array | None = None,
    lse: Array | None = None,
) -> tuple[Any, Any]:
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
                     else OpenMP's number
        lse_base     "e" or 2
        sinks        [h_q] float32 logits: out is scaled by exp(lse) / (exp(lse) + exp(sink)), lse
                     stays
        mask         [b, s_q, max_pages * page_size or sk] float16, added to the scaled scores; -inf
                     hides the key
        out_dtype    type of out: a name or a dtype of torch or NumPy; default out's if out is
                     given, else q's
        isa, split_tokens, p_form, q_form, kv_round  as in amla_options
        out, lse     arrays to write into: [b, s_q, h_q, d_v] in any of the types, and [b, h_q, s_q]
                     float32

    NumPy arrays (bfloat16 from ml_dtypes), torch tensors and objects with __dlpack__ mix freely.
    Nothing else is copied; strides are honoured where the last axis is contiguous (of seqlens,
    sinks and lse: all axes). Integer lists serve as block_table and seqlens.

    Returns (out, lse): out [b, s_q, h_q, d_v] and lse [b, h_q, s_q] float32, torch tensors if q is
    one, else NumPy arrays. A row that sees no key has out 0 and lse -inf. The same input gives the
    same bits with any number of threads and in any batch.

    Raises ValueError with field, value and rule for bad arguments, before any work;
    NotImplementedError for what is not built or not on this machine; TypeError for what is no
    array. The GIL is released while the library works. Inference only: torch tensors that require a
    gradient are refused unless gradients are switched off.
    """
    if _is_traced(q):
        return _call_operator(**locals())  # nothing but the arguments as yet
    torch = loaded_torch()
    if torch is not None:
        refuse_gradients(q=q, kv_cache=kv_cache, sinks=sinks, mask=mask, out=out, lse=lse)
        if isinstance(q, torch.Tensor) and _OPERATOR not in sys.modules:
            importlib.import_module(_OPERATOR)
    a = Arguments(q, kv_cache, block_table, seqlens, sinks, mask, out, lse)
    options = options_of(
        scale=scale,
        causal=causal,
        d_v=d_v,
        rescale=rescale,
        backend=backend,
        threads=threads,
        lse_base=lse_base,
        isa=isa,
        split_tokens=split_tokens,
        p_form=p_form,
        q_form=q_form,
        kv_round=kv_round,
        out_dtype=out_dtype,
    )
    return find_call(a, options).run(a)


def _is_traced(q: Array) -> bool:
    torch = loaded_torch()
    if torch is None:
        return False
    is_plain = not isinstance(q, torch.Tensor) or type(q) in (torch.Tensor, torch.nn.Parameter)
    return torch.compiler.is_compiling() or not is_plain


def _call_operator(**arguments: Any) -> tuple[Any, Any]:
    from . import _torch_op

    return _torch_op.call(**arguments)


# Registers torch.ops.amla.decode: with the first tensor where amla was imported before torch.
_OPERATOR = f"{__package__}._torch_op"


def merge(o: Array, lse: Array, *, lse_base: str | int = "e") -> tuple[Any, Any]:
    """Merges partial results over disjoint sets of keys, as split or context-parallel decoding
    leaves them, in the order of the parts:

        LSE = log sum_p exp(lse[p])      out = sum_p exp(lse[p] - LSE) o[p]

    Arguments
        o         float32 [n_parts, b, s_q, h_q, d_v] with lse [n_parts, b, h_q, s_q] (stacked
                  results of `decode`), or [n_parts, n_rows, d_v] with lse [n_parts, n_rows];
                  contiguous. `decode` with out_dtype="float32" gives such parts
        lse       float32; parts with -inf (no key seen) are left out. amla.flash_mla marks such
                  rows with +inf: replace it by -inf first, or the merged row is NaN
        lse_base  "e" or 2, as the parts were made

    Returns (out, lse) without the first axis, of o's kind. Sinks: apply them once, after the merge.
    Raises ValueError for bad shapes, types or strides.
    """
    refuse_gradients(o=o, lse=lse)
    o, lse = native("o", o), native("lse", lse)
    for name, x in (("o", o), ("lse", lse)):
        refuse_unplain(name, x)
    o_view, lse_view = view_of("o", o), view_of("lse", lse)
    if len(o_view.shape) == 5:
        n_parts, b, s_q, h_q, d_v = o_view.shape
        expect("lse", lse_view, (n_parts, b, h_q, s_q))
        n_rows = b * s_q * h_q
        lse = lse.swapaxes(-1, -2)  # [.., s_q, h_q], the order of o's rows
        lse = np.ascontiguousarray(lse) if isinstance(lse, np.ndarray) else lse.contiguous()
        merged, merged_lse = merge(
            o.reshape(n_parts, n_rows, d_v), lse.reshape(n_parts, n_rows), lse_base=lse_base
        )
        return merged.reshape(b, s_q, h_q, d_v), merged_lse.reshape(b, s_q, h_q).swapaxes(-1, -2)
    expect("o", o_view, ("n_parts", "n_rows", "d_v"))
    n_parts, n_rows, d_v = o_view.shape
    expect("lse", lse_view, (n_parts, n_rows))
    if one_device(o=o_view, lse=lse_view) != "cpu":
        raise NotImplementedError(f"o: device {o_view.device}: amla_merge works on the CPU")
    for name, view in (("o", o_view), ("lse", lse_view)):
        expect_dtype(name, view, ("float32",))
        expect_contiguous(name, view, 0)
    out, out_lse = (
        maker_like_kind(o, (n_rows, d_v), "float32")(),
        maker_like_kind(o, (n_rows,), "float32")(),
    )
    detail = c.Detail()
    status = c.lib.amla_merge(
        c.checked_int("n_parts", n_parts),
        n_rows,
        c.checked_int("d_v", d_v),
        c.choice("lse_base", lse_base, c.LSE_BASES),
        pointer(o),
        n_parts * n_rows * d_v * 4,
        pointer(lse),
        n_parts * n_rows * 4,
        pointer(out),
        n_rows * d_v * 4,
        pointer(out_lse),
        n_rows * 4,
        ctypes.byref(detail),
    )
    if status:
        c.raise_status(status, detail)
    return out, out_lse
