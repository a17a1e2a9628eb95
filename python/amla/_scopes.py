# SPDX-License-Identifier: Apache-2.0
"""What a query sees: a scope is a cache, and either everything of it up to a length or a list of
its tokens. amla.Scope, the arrays that only some calls have, and both as fields of amla_problem.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from . import _library as c
from ._arrays import View, integers, native
from ._shapes import (
    INTEGERS,
    expect,
    expect_contiguous,
    expect_dtype,
    expect_packed,
    extent_bytes,
    stride,
    strides,
)

Array = Any
"""A NumPy array, a torch tensor, or an object with __dlpack__."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scope:
    """The second scope of `decode`: a cache with pages of its own, whose keys follow those of the
    first under the same softmax. Everything as the arguments of `decode` with the same names;
    kv_cache is of the first one's type."""

    kv_cache: Array
    block_table: Array | None = None
    seqlens: Array | None = None
    indices: Array | None = None
    topk_length: Array | None = None
    visible: Array | None = None


_SCOPE_FIELDS = tuple(field.name for field in dataclasses.fields(Scope))

# ---- Arrays that only some calls have ----

_KINDS: dict[str, Callable[[str, Any], Any]] = {
    "indices": integers,
    "topk_length": integers,
    "visible": integers,
    "q_rope": native,
    "kv_rope": native,
    "q_indptr": integers,
    "kv_indptr": integers,
    "kv_indices": integers,
    "extra_kv_cache": native,
    "extra_block_table": integers,
    "extra_seqlens": integers,
    "extra_indices": integers,
    "extra_topk_length": integers,
    "extra_visible": integers,
}
NAMES = tuple(_KINDS)
FIRST_NAMES = tuple(name for name in NAMES if not name.startswith("extra_"))
_TENSOR_FIELDS = {
    "visible": "visible_k",
    "extra_kv_cache": "extra_kv",
    "extra_seqlens": "extra_seqlens_k",
    "extra_visible": "extra_visible_k",
}


def tensor_field(name: str) -> str:
    """The field of amla_tensors of that array."""
    return _TENSOR_FIELDS.get(name, name)


def flat(extra: Scope | None, **arrays: Any) -> dict[str, Any]:
    """The arrays that are there, those of the second scope as extra_*."""
    found = {name: x for name, x in arrays.items() if x is not None}
    if extra is None:
        return found
    if not isinstance(extra, Scope):
        raise TypeError(f"extra: {type(extra).__name__}: must be an amla.Scope")
    if extra.kv_cache is None:
        raise TypeError("extra_kv_cache=None: must be an array")
    for name in _SCOPE_FIELDS:
        x = getattr(extra, name)
        if x is not None:
            found[f"extra_{name}"] = x
    return found


def natives(arrays: dict[str, Any]) -> dict[str, Any]:
    """The same, native. ValueError for a name that is none of them."""
    unknown = set(arrays) - set(_KINDS)
    if unknown:
        raise TypeError(f"{min(unknown)}: no such array of a call")
    return {name: _KINDS[name](name, x) for name, x in arrays.items() if x is not None}


def most_queries(q: Any, indptr: Any) -> int:
    """Of ragged queries: those of the sequence that has the most. Their numbers are read here, as
    the library has to be told before it sees them."""
    shape = tuple(indptr.shape)
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(f"q_indptr: shape {list(shape)}: must be [b + 1]")
    last, total = int(indptr[-1]), q.shape[0]
    if last != total:
        raise ValueError(f"q_indptr[{shape[0] - 1}]={last}: must be {total}, the queries of q")
    return max(1, int((indptr[1:] - indptr[:-1]).max())) if shape[0] > 1 else 1


# ---- One scope as fields ----


@dataclasses.dataclass(frozen=True)
class _Names:
    """How the arrays and fields of a scope are called."""

    prefix: str

    def array(self, name: str, more: dict[str, View]) -> View | None:
        return more.get(self.prefix + name)

    def fields(self, **fields: Any) -> dict[str, Any]:
        return {self.prefix + name: value for name, value in fields.items()}


def cache_type(name: str, kv: View, kv_type: str | None) -> str:
    """The KV type of a cache: the array's own, or, of bytes, what the caller says they are."""
    if kv_type is None:
        if kv.dtype == "float8_e4m3fn":
            return "fp8_e4m3"
        if kv.dtype in c.BYTE_DTYPES:
            raise ValueError(
                f"{name}: dtype {kv.dtype}: kv_type must say what its bytes are: "
                f"{' or '.join(c.BYTE_TYPES)}"
            )
        return expect_dtype(name, kv, c.KV_TYPES)
    c.choice("kv_type", kv_type, c.KV_TYPES)
    if kv_type in c.BYTE_TYPES:
        expect_dtype(name, kv, c.BYTE_DTYPES)
    elif kv.dtype != kv_type:
        raise ValueError(f"{name}: dtype {kv.dtype}: must be kv_type={kv_type}, or not be given")
    return kv_type


def _cache_strides(
    name: str, kv: View, kv_type: str, s: _Names, field: str = "kv"
) -> dict[str, Any]:
    """A page of fp8_584 holds its rows and then their scales: an array of such pages is [pages][P]
    [584] in name only, and its strides say nothing but where pages begin."""
    page, token = (c.cache_stride(name, kv_type, stride(name, kv, axis)) for axis in (0, 1))
    if kv_type == "fp8_584":
        expect_contiguous(name, kv, 1)
        token = 0
    return s.fields(**{f"{field}_stride_page": page, f"{field}_stride_token": token})


def scope_fields(
    prefix: str,
    kv: View,
    table: View | None,
    more: dict[str, View],
    known: dict[str, int],
    kv_type: str,
    d_row: int,
    slots: bool,
) -> dict[str, Any]:
    """The fields of amla_problem for one scope, whose rows have d_row elements. slots: its list is
    of slots, and then nothing but pages counts; a contiguous cache is one page per sequence."""
    s = _Names(prefix)
    name, indices = f"{prefix}kv_cache", s.array("indices", more)
    slots = slots and indices is not None
    paged = table is not None or slots or (not prefix and "kv_indptr" in more)
    axes = ["n_pages", "page_size"] if paged else ["b", "sk"]
    four = len(kv.shape) == 4
    row = c.row_width(kv_type, d_row)
    axes += ["h_kv"] * four + ["d_qk" if row == known["d_qk"] else "row"]
    expect(name, kv, axes, dict(known, row=row))
    expect_contiguous(name, kv, len(kv.shape) - 1)
    fields = _cache_strides(name, kv, kv_type, s)
    if not prefix:
        fields["h_kv"] = kv.shape[2] if four else 1
    elif four and kv.shape[2] != 1:
        raise ValueError(f"{name}: shape {list(kv.shape)}: h_kv must be 1")
    fields.update(_list_fields(s, indices, more, known))
    if slots:
        pages = dict(page_size=kv.shape[1], n_pages=kv.shape[0], max_pages=0, sk=0)
        if kv.shape[1] == 0:  # of no slots
            pages = dict(page_size=1, n_pages=0, max_pages=0, sk=0)
        return {**fields, **s.fields(**pages)}
    lead = ("total",) if "total" in known else ("b", "s_q")
    expect_packed(f"{prefix}visible", s.array("visible", more), lead, ("int32",), known)
    return {**fields, **s.fields(**_page_fields(prefix, kv, table, more, known))}


def _list_fields(
    s: _Names, indices: View | None, more: dict[str, View], known: dict[str, int]
) -> dict[str, Any]:
    if indices is None:
        return {}
    name, ragged = f"{s.prefix}indices", "total" in known
    lead = ("total",) if ragged else ("b", "s_q")
    expect(name, indices, (*lead, "topk"), known)
    expect_dtype(name, indices, ("int32",))
    topk = indices.shape[-1]
    if topk == 0:
        raise ValueError(f"{name}: shape {list(indices.shape)}: topk must be >= 1")
    axes = ("query",) if ragged else ("batch", "query")
    fields = strides(name, indices, f"{s.prefix}indices", axes)
    return {**fields, f"{s.prefix}topk": topk}


def per_query(more: dict[str, View], known: dict[str, int]) -> int:
    """topk_length_per_query, and the lengths of lists have that shape in both scopes. Of ragged
    queries there is one for each."""
    lengths = {n: more[n] for n in ("topk_length", "extra_topk_length") if n in more}
    if not lengths:
        return 0
    lead = ("total",) if "total" in known else ("b", "s_q")
    first = next(iter(lengths.values()))
    each = len(first.shape) == 2 or "total" in known
    for name, view in lengths.items():
        expect_packed(name, view, lead if each else ("b",), ("int32",), known)
    return int(each)


def _page_fields(
    prefix: str, kv: View, table: View | None, more: dict[str, View], known: dict[str, int]
) -> dict[str, int]:
    """Pages by block table, by kv_indptr and kv_indices, or none."""
    if not prefix and "kv_indptr" in more:
        return _csr_fields(kv, more, known)
    return table_fields(f"{prefix}kv_cache", kv, f"{prefix}block_table", table, known)


def table_fields(
    name: str, kv: View, table_name: str, table: View | None, known: dict[str, int]
) -> dict[str, int]:
    """page_size, n_pages, max_pages and sk of a cache [n_pages, page_size, ..] and its table, or of
    a contiguous one."""
    if table is None:
        return dict(sk=kv.shape[1], page_size=0, n_pages=0, max_pages=0)
    expect(table_name, table, ("b", "max_pages"), known)
    expect_dtype(table_name, table, INTEGERS)
    expect_contiguous(table_name, table, 1)
    n_pages, page_size = kv.shape[:2]
    _, columns = table.shape
    row_stride = stride(table_name, table, 0) or columns
    if row_stride < columns:
        raise ValueError(f"{table_name}: strides {list(table.strides)}: rows overlap")
    if columns == 0:
        page_size = max(1, page_size)  # of pages that nobody can use
    if page_size == 0:
        raise ValueError(f"{name}: shape {list(kv.shape)}: page_size must be >= 1")
    sk = min(columns * page_size, c.INT32_MAX)
    return dict(page_size=page_size, n_pages=n_pages, max_pages=row_stride, sk=sk)


def _csr_fields(kv: View, more: dict[str, View], known: dict[str, int]) -> dict[str, int]:
    pages = more.get("kv_indices")
    if pages is None:
        raise ValueError("kv_indices=None: must be an array where kv_indptr is one")
    expect_packed("kv_indptr", more["kv_indptr"], ("ends",), ("int32",), {"ends": known["b"] + 1})
    expect_packed("kv_indices", pages, ("n",), ("int32",), {})
    n_pages, page_size = kv.shape[:2]
    if page_size == 0:
        raise ValueError(f"kv_cache: shape {list(kv.shape)}: page_size must be >= 1")
    sk = min(pages.shape[0] * page_size, c.INT32_MAX)
    return dict(page_size=page_size, n_pages=n_pages, max_pages=0, sk=sk)


# ---- Rope parts that lie apart ----


def rope_fields(
    more: dict[str, View], q: View, kv: View, q_type: str, kv_type: str, known: dict[str, int]
) -> dict[str, Any]:
    """The fields of q_rope and kv_rope."""
    fields: dict[str, Any] = {}
    q_rope, kv_rope = more.get("q_rope"), more.get("kv_rope")
    if q_rope:
        ragged = "total" in known
        expect("q_rope", q_rope, (*q.shape[:-1], "d_rope"))
        expect_dtype("q_rope", q_rope, (q_type,))
        axes = ("query", "head") if ragged else ("batch", "query", "head")
        fields.update(strides("q_rope", q_rope, "q_rope", axes), q_d_rope=q_rope.shape[-1])
    if kv_rope:
        expect("kv_rope", kv_rope, (*kv.shape[:-1], "d_rope"))
        cache_type("kv_rope", kv_rope, kv_type)
        expect_contiguous("kv_rope", kv_rope, len(kv_rope.shape) - 1)
        fields.update(_cache_strides("kv_rope", kv_rope, kv_type, _Names(""), "kv_rope"))
        fields["kv_d_rope"] = c.cache_stride("kv_rope", kv_type, kv_rope.shape[-1])
    return fields


# ---- Sizes ----


def sizes(more: dict[str, View], f: dict[str, Any]) -> dict[str, int]:
    """The *_bytes fields of amla_tensors."""
    bytes_of = {f"{tensor_field(name)}_bytes": extent_bytes(x) for name, x in more.items()}
    if "extra_block_table" in more:  # whole rows, as of block_table
        bytes_of["extra_block_table_bytes"] = f["b"] * f["extra_max_pages"] * 4
    return bytes_of
