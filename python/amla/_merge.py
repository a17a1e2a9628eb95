# SPDX-License-Identifier: Apache-2.0
"""amla.merge and amla.merge_parts: results over disjoint keys become one, thin over amla_merge and
amla_merge_parts."""

from __future__ import annotations

import ctypes
import math
from typing import Any

from . import _library as c
from ._arrays import (
    call_operator,
    dtype_name,
    is_traced,
    maker_like_kind,
    native,
    pointer,
    refuse_gradients,
    refuse_unplain,
    view_of,
)
from ._numpy import np
from ._scopes import Array
from ._shapes import (
    expect,
    expect_contiguous,
    expect_dtype,
    expect_packed,
    extent_bytes,
    one_device,
    stride,
)


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


def merge_parts(
    o: Array,
    lse: Array,
    *,
    lse_base: str | int = "e",
    empty: str = "-inf",
    sinks: Array | None = None,
    lse_sink: bool = False,
    out_dtype: Any = None,
) -> tuple[Any, Any]:
    """`merge` with parts that may lie apart, a sink, a type of its results, and FlashMLA's mark of
    rows that see no key.

    Arguments
        o          float32 [n_parts, b, s_q, h_q, d_v] with lse [n_parts, b, h_q, s_q], or [n_parts,
                   n_rows, d_v] with lse [n_parts, n_rows]; any stride between parts, else
                   contiguous
        lse        float32. It is copied where s_q > 1
        lse_base   "e" or 2, as the parts were made
        empty      "-inf" or "+inf": lse of rows without keys, in the parts and the result; with
                   "+inf", as amla.flash_mla has it, -inf means the same
        sinks      [h_q] float32 logits, or [n_heads] where row r is of head r % n_heads: one key
                   more, without a value, for parts that have not had it
        lse_sink   True: lse is of keys and sink together
        out_dtype  type of out: a name or a dtype of torch or NumPy; default float32

    Returns (out, lse) without the first axis, of o's kind. Raises ValueError for bad arguments.
    """
    if is_traced(o):
        arguments = dict(locals(), lse_base=str(lse_base), out_dtype=out_dtype or "float32")
        arguments["out_dtype"] = dtype_name(arguments["out_dtype"])
        return call_operator("merge_parts", ("o", "lse", "sinks"), arguments)
    refuse_gradients(o=o, lse=lse, sinks=sinks)
    o, lse, sinks = native("o", o), native("lse", lse), native("sinks", sinks, "float32")
    for name, x in (("o", o), ("lse", lse)):
        if x is None:
            raise TypeError(f"{name}=None: must be an array")
    o_view, lse_view = view_of("o", o), view_of("lse", lse)
    sinks_view = None if sinks is None else view_of("sinks", sinks)
    if one_device(o=o_view, lse=lse_view, sinks=sinks_view) != "cpu":
        raise NotImplementedError(f"o: device {o_view.device}: amla_merge_parts works on the CPU")
    heads = len(o_view.shape) == 5
    names = ("n_parts", "b", "s_q", "h_q", "d_v") if heads else ("n_parts", "n_rows", "d_v")
    expect("o", o_view, names)
    known = dict(zip(names, o_view.shape))
    rows = ("n_parts", "b", "h_q", "s_q") if heads else ("n_parts", "n_rows")
    expect("lse", lse_view, rows, known)
    for name, view in (("o", o_view), ("lse", lse_view)):
        expect_dtype(name, view, ("float32",))
        expect_contiguous(name, view, 1)
    if sinks_view:
        wanted = ("h_q",) if heads else ("n_heads",)
        expect_packed("sinks", sinks_view, wanted, ("float32",), known)
    if heads:  # [.., s_q, h_q], the order of o's rows
        lse = lse.swapaxes(-1, -2)
        lse = np.ascontiguousarray(lse) if isinstance(lse, np.ndarray) else lse.contiguous()
    out_type = dtype_name(out_dtype) if out_dtype else "float32"
    c.choice("out_dtype", out_type, c.DTYPES)
    out = maker_like_kind(o, o_view.shape[1:], out_type)()
    merged = maker_like_kind(o, o_view.shape[1:-1], "float32")()
    n_rows = math.prod(o_view.shape[1:-1])
    lse_view = view_of("lse", lse)
    args = c.MergeArgs(
        struct_bytes=ctypes.sizeof(c.MergeArgs),
        n_parts=c.checked_int("n_parts", known["n_parts"]),
        n_rows=n_rows,
        d_v=c.checked_int("d_v", known["d_v"]),
        base=c.choice("lse_base", lse_base, c.LSE_BASES),
        empty=c.choice("empty", empty, c.EMPTY_LSE),
        out_type=c.DTYPES[out_type],
        o=pointer(o),
        o_bytes=extent_bytes(o_view),
        o_stride_part=stride("o", o_view, 0),
        lse_parts=pointer(lse),
        lse_parts_bytes=extent_bytes(lse_view),
        lse_parts_stride_part=stride("lse", lse_view, 0),
        sinks=pointer(sinks),
        sinks_bytes=extent_bytes(sinks_view) if sinks_view else 0,
        n_heads=sinks_view.shape[0] if sinks_view else 0,
        lse_sink=c.checked_flag("lse_sink", lse_sink),
        out=pointer(out),
        out_bytes=n_rows * known["d_v"] * c.DTYPE_BYTES[out_type],
        lse=pointer(merged),
        lse_bytes=n_rows * 4,
    )
    detail = c.Detail()
    c.check(c.lib.amla_merge_parts(ctypes.addressof(args), ctypes.byref(detail)), detail)
    return out, merged.swapaxes(-1, -2) if heads else merged
