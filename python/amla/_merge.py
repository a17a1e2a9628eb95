# SPDX-License-Identifier: Apache-2.0
"""amla.merge and amla.merge_parts: results over disjoint keys become one, thin over amla_merge and
amla_merge_parts."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from . import _library as c
from ._arrays import maker_like_kind, native, pointer, refuse_gradients, refuse_unplain, view_of
from ._scopes import Array
from ._shapes import expect, expect_contiguous, expect_dtype, one_device


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
