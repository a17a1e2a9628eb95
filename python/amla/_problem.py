# SPDX-License-Identifier: Apache-2.0
"""What the arrays and options of a call mean to the library: the fields of amla_problem and of
amla_options, and an amla_tensors struct with every size in it.

Refusals of shapes are decided here, since the library sees none.
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _library as c
from . import _scopes
from ._arrays import View, dtype_name, integers, native, pointer, refuse_unplain, signature, view_of
from ._options import DEFAULTS, DecodeOptions
from ._scopes import Array
from ._shapes import INTEGERS, expect, expect_dtype, expect_packed, extent_bytes, strides

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_REMEMBERED = 1024


# ---- Options ----


class Options:
    """How to decode, as `decode` takes it. Compared by identity, which makes it a cheap key: see
    `options_of`."""

    __slots__ = ("scale", *DEFAULTS)
    scale: float

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, scale: float, **given: Unpack[DecodeOptions]) -> None:
        self.scale = c.checked_number("scale", scale)
        for name, value in _complete(given).items():
            checked = value if DEFAULTS[name] is None else c.checked_option(name, value)
            setattr(self, name, checked if isinstance(DEFAULTS[name], float) else value)


def _complete(given: DecodeOptions) -> dict[str, Any]:
    values = {**DEFAULTS, **given}
    if len(values) > len(DEFAULTS):
        raise TypeError(f"{next(n for n in given if n not in DEFAULTS)}: no such argument")
    return values


@functools.lru_cache(MAX_REMEMBERED, typed=True)  # as 512.0 is no width though it equals 512
def _remembered(scale: float, *values: Any) -> Options:
    return Options(scale, **dict(zip(DEFAULTS, values)))


def options_of(scale: float, **given: Unpack[DecodeOptions]) -> Options:
    """The same object for the same values."""
    values = _complete(given)
    try:
        return _remembered(scale, *values.values())
    except TypeError:  # a value that cannot be hashed: whoever checks it says which
        return Options(scale, **values)


# ---- Arrays ----


class Views(NamedTuple):
    """The arrays of one call as `view_of` sees them, None for those that are absent."""

    q: View
    kv_cache: View
    block_table: View | None
    seqlens: View | None
    sinks: View | None
    mask: View | None
    out: View | None
    lse: View | None
    max_logits: View | None
    more: dict[str, View]  # those of `_scopes.NAMES` that are there

    def all(self) -> dict[str, View | None]:
        """By name, those of `more` among them."""
        arrays = self._asdict()
        more = arrays.pop("more")
        return {**arrays, **more}


class Arguments:
    """The arrays of one call, native. q first, as results are of its kind. max_logits may be True
    where they are wanted in a new array. more: as in Views."""

    __slots__ = (*Views._fields, "most_queries")

    def __init__(
        self,
        q: Array,
        kv_cache: Array,
        block_table: Array,
        seqlens: Array,
        sinks: Array = None,
        mask: Array = None,
        out: Array = None,
        lse: Array = None,
        max_logits: Array | bool = None,
        more: dict[str, Array] | None = None,
    ) -> None:
        self.q, self.kv_cache = native("q", q), native("kv_cache", kv_cache)
        self.block_table = integers("block_table", block_table)
        self.seqlens = integers("seqlens", seqlens)
        self.sinks, self.mask = native("sinks", sinks, "float32"), native("mask", mask)
        self.out, self.lse = native("out", out), native("lse", lse)
        self.max_logits = max_logits or None if isinstance(max_logits, bool) else max_logits
        if self.max_logits is not True:
            self.max_logits = native("max_logits", self.max_logits)
        if self.q is None:
            raise TypeError("q=None: must be an array")
        if self.kv_cache is None:
            raise TypeError("kv_cache=None: must be an array")
        self.more, self.most_queries = _scopes.natives(more) if more else {}, 0
        if "q_indptr" in self.more:
            self.most_queries = _scopes.most_queries(self.q, self.more["q_indptr"])

    def signature(self) -> tuple[Any, ...]:
        """All of the arrays but where they lie; hashable."""
        try:
            return (
                signature(self.q),
                signature(self.kv_cache),
                signature(self.block_table),
                signature(self.seqlens),
                signature(self.sinks),
                signature(self.mask),
                signature(self.out),
                signature(self.lse),
                None if self.max_logits is True else signature(self.max_logits),
                tuple((name, signature(x)) for name, x in self.more.items()),
                self.most_queries,
            )
        except RuntimeError:
            self.refuse_unplain()
            raise

    def views(self) -> Views:
        """What the signature means."""
        arrays = {name: view_of(name, x) for name, x in self._named()}
        views: dict[str, Any] = {name: arrays.get(name) for name in Views._fields[:-1]}
        return Views(**views, more={name: arrays[name] for name in self.more})

    def _named(self) -> list[tuple[str, Any]]:
        arrays = [(name, getattr(self, name)) for name in Views._fields[:-1]]
        return [(n, x) for n, x in (*arrays, *self.more.items()) if x is not None and x is not True]

    def fill(self, tensors: c.Tensors, out: Array, lse: Array, max_logits: Array) -> None:
        """Puts the pointers in, of these results. The caller keeps the memory alive."""
        try:
            tensors.q = pointer(self.q)
            tensors.kv = pointer(self.kv_cache)
            tensors.block_table = pointer(self.block_table)
            tensors.seqlens_k = pointer(self.seqlens)
            tensors.sinks = pointer(self.sinks)
            tensors.mask = pointer(self.mask)
            tensors.out = pointer(out)
            tensors.lse = pointer(lse)
            tensors.max_logits = pointer(max_logits)
            for name, x in self.more.items():
                setattr(tensors, _scopes.tensor_field(name), pointer(x))
        except RuntimeError:  # torch: no storage
            self.refuse_unplain()
            raise

    def refuse_unplain(self) -> None:
        """ValueError for the array that torch refused to describe: asked only then, as it costs."""
        for name, x in self._named():
            refuse_unplain(name, x)


# ---- Arrays to a problem ----


def problem_fields(v: Views, o: Options, device: str, most_queries: int = 0) -> dict[str, Any]:
    """The fields of amla_problem for these arrays, ValueError if they do not fit together. The
    scale is not among them. most_queries: of a sequence, where they are ragged."""
    known = _known(v, o, most_queries)
    lead = ("total",) if "total" in known else ("b", "s_q")
    axes = ("query", "head") if "total" in known else ("batch", "query", "head")
    kv_type = _scopes.cache_type("kv_cache", v.kv_cache, o.kv_type)
    fields: dict[str, Any] = dict(
        {name: known[name] for name in ("b", "s_q", "h_q", "d_qk")},
        d_v=o.d_v,
        causal=o.causal,
        memory=c.MEMORY_HOST if device == "cpu" else c.MEMORY_DEVICE,
        q_type=expect_dtype("q", v.q, c.DTYPES),
        kv_type=kv_type,
        out_type=_out_type(v, o),
        index_kind=o.index_kind,
        window=o.window,
        kv_scale=o.kv_scale,
        kv_rope_scale=o.kv_rope_scale,
        topk_length_per_query=_scopes.per_query(v.more, known),
    )
    fields.update(strides("q", v.q, "q", axes))
    fields.update(_scopes.rope_fields(v.more, v.q, v.kv_cache, v.q.dtype, kv_type, known))
    fields.update(_both_scopes(v, o, known, kv_type, known["d_qk"] - fields.get("kv_d_rope", 0)))
    if v.out:
        expect("out", v.out, (*lead, "h_q", "d_v"), known)
        fields.update(strides("out", v.out, "out", axes))
    if v.mask:
        fields.update(_mask_fields(v.mask, dict(known, sk=fields["sk"]), v.more, o))
    if not _has_slots(v, o):
        expect_packed("seqlens", v.seqlens, ("b",), INTEGERS, known)
    expect_packed("sinks", v.sinks, ("h_q",), ("float32",), known)
    rows = ("total", "h_q") if "total" in known else ("b", "h_q", "s_q")
    expect_packed("lse", v.lse, rows, ("float32",), known)
    expect_packed("max_logits", v.max_logits, rows, ("float32",), known)
    return fields


def _known(v: Views, o: Options, most_queries: int) -> dict[str, int]:
    """The dimensions that q fixes: total is there where queries are ragged."""
    expect("q", v.q, ("total" if most_queries else "b", "s_q", "h_q", "d_qk")[bool(most_queries) :])
    *lead, h_q, d_q = v.q.shape
    d_rope = v.more["q_rope"].shape[-1:] if "q_rope" in v.more else ()
    known = dict(h_q=h_q, d_qk=d_q + sum(d_rope), d_v=c.checked_int("d_v", o.d_v))
    if not most_queries:
        return dict(known, b=lead[0], s_q=lead[1])
    ends = v.more["q_indptr"]
    expect_packed("q_indptr", ends, ("b + 1",), ("int32",), {})
    return dict(known, b=ends.shape[0] - 1, s_q=most_queries, total=lead[0])


def _has_slots(v: Views, o: Options) -> bool:
    return "indices" in v.more and o.index_kind == "slot"


def _both_scopes(
    v: Views, o: Options, known: dict[str, int], kv_type: str, d_row: int
) -> dict[str, Any]:
    slots, kv = o.index_kind == "slot", v.more.get("extra_kv_cache")
    fields = _scopes.scope_fields(
        "", v.kv_cache, v.block_table, v.more, known, kv_type, d_row, slots
    )
    if kv is None:
        return fields
    extra_type = _scopes.cache_type("extra_kv_cache", kv, o.kv_type)
    if extra_type != kv_type:
        raise ValueError(f"extra_kv_cache: dtype {kv.dtype}: must be kv_cache's, {kv_type}")
    table, d_qk = v.more.get("extra_block_table"), known["d_qk"]
    extra = _scopes.scope_fields("extra_", kv, table, v.more, known, kv_type, d_qk, slots)
    return {**fields, **extra}


def _mask_fields(
    mask: View, known: dict[str, int], more: dict[str, View], o: Options
) -> dict[str, int]:
    for name in ("indices", "extra_kv_cache", "q_indptr"):
        if name in more:
            raise ValueError(f"mask: must be None with {name.removesuffix('_kv_cache')}")
    if o.window:
        raise ValueError(f"mask: must be None with window={o.window}")
    expect("mask", mask, ("b", "s_q", "sk"), known)
    expect_dtype("mask", mask, ("float16",))
    return strides("mask", mask, "mask", ("batch", "query"))


def _out_type(v: Views, o: Options) -> str:
    if not v.out:
        return dtype_name(o.out_dtype) if o.out_dtype else expect_dtype("q", v.q, c.DTYPES)
    if o.out_dtype and dtype_name(o.out_dtype) != v.out.dtype:
        name = dtype_name(o.out_dtype)
        raise ValueError(f"out_dtype={name}: must be out's, {v.out.dtype}, or not be given")
    return v.out.dtype


def sized_tensors(v: Views, f: dict[str, Any]) -> c.Tensors:
    """An amla_tensors that lacks only its pointers.

    Of the block table the library reads used entries only, so a view of some columns of a wider
    table is passed with the capacity of whole rows."""
    rows = math.prod(v.q.shape[:-1])
    return c.Tensors(
        struct_bytes=ctypes.sizeof(c.Tensors),
        q_bytes=extent_bytes(v.q),
        kv_bytes=extent_bytes(v.kv_cache),
        block_table_bytes=f["b"] * f["max_pages"] * 4 if v.block_table else 0,
        seqlens_k_bytes=f["b"] * 4,
        sinks_bytes=f["h_q"] * 4,
        out_bytes=extent_bytes(v.out) if v.out else rows * f["d_v"] * c.DTYPE_BYTES[f["out_type"]],
        lse_bytes=rows * 4,
        mask_bytes=extent_bytes(v.mask) if v.mask else 0,
        max_logits_bytes=rows * 4,
        **_scopes.sizes(v.more, f),
    )


# ---- Fields to the library's structs ----

PROBLEM_DEFAULTS: dict[str, Any] = dict(
    b=1,
    s_q=1,
    h_q=128,
    h_kv=1,
    sk=1,
    d_qk=576,
    d_v=512,
    page_size=0,
    max_pages=0,
    n_pages=0,
    q_type="bfloat16",
    kv_type="bfloat16",
    out_type="bfloat16",
    causal=False,
    scale=0.0,
    memory=c.MEMORY_HOST,
    q_stride_batch=0,
    q_stride_query=0,
    q_stride_head=0,
    out_stride_batch=0,
    out_stride_query=0,
    out_stride_head=0,
    kv_stride_page=0,
    kv_stride_token=0,
    mask_stride_batch=0,
    mask_stride_query=0,
    topk=0,
    index_kind="slot",
    topk_length_per_query=0,
    window=0,
    q_d_rope=0,
    kv_d_rope=0,
    extra_sk=0,
    extra_topk=0,
    extra_page_size=0,
    extra_max_pages=0,
    kv_scale=1.0,
    kv_rope_scale=1.0,
    extra_n_pages=0,
    extra_kv_stride_page=0,
    extra_kv_stride_token=0,
    indices_stride_batch=0,
    indices_stride_query=0,
    extra_indices_stride_batch=0,
    extra_indices_stride_query=0,
    q_rope_stride_batch=0,
    q_rope_stride_query=0,
    q_rope_stride_head=0,
    kv_rope_stride_page=0,
    kv_rope_stride_token=0,
    k_begin=0,
)


def problem_struct(fields: dict[str, Any]) -> c.Problem:
    """amla_problem, every field checked to be of its type and to fit."""
    problem = c.Problem(struct_bytes=ctypes.sizeof(c.Problem))
    for name, value in fields.items():
        setattr(problem, name, _checked_field(name, value))
    return problem


def _checked_field(name: str, value: Any) -> int | float:
    if name.endswith("_type"):
        return c.choice(name, value, c.KV_TYPES if name == "kv_type" else c.DTYPES)
    if name == "index_kind":
        return c.choice(name, value, c.INDEX_KINDS)
    if name.endswith("scale"):
        return c.checked_number(name, value)
    if name == "causal":
        return c.checked_flag(name, value)
    is_wide = "stride" in name or name.endswith("n_pages")
    return c.checked_int(name, value, 2**63 - 1 if is_wide else c.INT32_MAX)


def options_struct(values: dict[str, Any]) -> c.Options:
    """amla_options; what is not there is 0."""
    numbers = {name: c.checked_option(name, value) for name, value in values.items()}
    return c.Options(struct_bytes=ctypes.sizeof(c.Options), **numbers)


# ---- One problem against another ----


def refuse_other_fields(fields: dict[str, Any], plan_fields: dict[str, Any]) -> None:
    """ValueError unless arrays with these fields are what the plan was made for."""
    theirs, ours = _effective(plan_fields), _effective({**PROBLEM_DEFAULTS, **fields})
    for name in PROBLEM_DEFAULTS:
        if name != "scale" and ours[name] != theirs[name]:
            raise ValueError(f"{name}={ours[name]}: the plan was made for {name}={theirs[name]}")


def _effective(f: dict[str, Any]) -> dict[str, Any]:
    """The fields with every 0 that stands for a default resolved as the library does, and without
    those that lists of slots make meaningless."""
    resolved = dict(f)
    for prefix in ("", "extra_"):
        page_size, sk = f[f"{prefix}page_size"], f[f"{prefix}sk"]
        pages = f[f"{prefix}max_pages"] or (-(-sk // page_size) if page_size else 0)
        resolved[f"{prefix}max_pages"] = pages
        if f[f"{prefix}topk"] > 0 and f["index_kind"] == "slot":
            resolved.update({f"{prefix}sk": 0, f"{prefix}max_pages": 0})
    return {**resolved, **_effective_strides(resolved)}


def _cache_axes(f: dict[str, Any], prefix: str) -> tuple[tuple[str, int], ...]:
    page_size = f[f"{prefix}page_size"]
    tokens, pages = (page_size, f[f"{prefix}n_pages"]) if page_size else (f[f"{prefix}sk"], f["b"])
    return ("token", tokens), ("page", pages)


def _effective_strides(f: dict[str, Any]) -> dict[str, int | None]:
    """Every stride; None along an axis of one element."""
    rows = (("head", f["h_q"]), ("query", f["s_q"]), ("batch", f["b"]))
    row = c.RECORD_BYTES.get(f["kv_type"], f["d_qk"] - f["kv_d_rope"])
    strides: dict[str, int | None] = {}
    for tensor, run, axes in (
        ("q_stride", f["d_qk"] - f["q_d_rope"], rows),
        ("q_rope_stride", f["q_d_rope"], rows),
        ("out_stride", f["d_v"], rows),
        ("kv_stride", row, _cache_axes(f, "")),
        ("kv_rope_stride", f["kv_d_rope"], _cache_axes(f, "")),
        ("extra_kv_stride", row, _cache_axes(f, "extra_")),
        ("mask_stride", f["sk"], rows[1:]),
        ("indices_stride", f["topk"], rows[1:]),
        ("extra_indices_stride", f["extra_topk"], rows[1:]),
    ):
        packed = run
        for axis, n in axes:
            stride = f.get(f"{tensor}_{axis}", 0) or packed
            strides[f"{tensor}_{axis}"] = stride if n > 1 else None
            packed = n * stride
    return strides
