# SPDX-License-Identifier: Apache-2.0
"""What the arrays and options of a call mean to the library: the fields of amla_problem and of
amla_options, and an amla_tensors struct with every size in it.

Refusals of shapes are decided here, since the library sees none.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _library as c
from ._arrays import View, integers, native, pointer, refuse_unplain, signature, view_of

Array = Any
"""A NumPy array, a torch tensor, or an object with __dlpack__."""

MAX_REMEMBERED = 1024
_INTEGERS = (
    "int32",
    "int64",
)  # of block_table and seqlens; the latter are int32 when they come here


# ---- Options ----


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """How to decode, as `decode` takes it. Compared by identity, which makes it a cheap key: see
    `options_of`."""

    scale: float
    causal: bool = False
    d_v: int = 512
    rescale: str = "lazy"
    backend: str = "auto"
    threads: int = 0
    lse_base: str | int = "e"
    isa: str = "auto"
    split_tokens: int = 0
    p_form: str = "default"
    q_form: str = "default"
    kv_round: str = "exact"
    out_dtype: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", c.checked_number("scale", self.scale))
        c.checked_flag("causal", self.causal)
        for name in ("d_v", "threads", "split_tokens"):
            c.checked_int(name, getattr(self, name))


OPTION_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Options) if f.name != "scale"}

# Typed, as 512.0 is no width though it equals 512.
_remembered = functools.lru_cache(MAX_REMEMBERED, typed=True)(Options)


def options_of(
    scale: float,
    causal: bool,
    d_v: int,
    rescale: str,
    backend: str,
    threads: int,
    lse_base: str | int,
    isa: str,
    split_tokens: int,
    p_form: str,
    q_form: str,
    kv_round: str,
    out_dtype: Any,
) -> Options:
    """The same object for the same values."""
    fields = (scale, causal, d_v, rescale, backend, threads, lse_base, isa, split_tokens)
    fields += (p_form, q_form, kv_round, out_dtype)
    try:
        return _remembered(*fields)
    except TypeError:  # a value that cannot be hashed: whoever checks it says which
        return Options(*fields)


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


class Arguments:
    """The arrays of one call, native. q first, as results are of its kind."""

    __slots__ = Views._fields

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
    ) -> None:
        self.q, self.kv_cache = native("q", q), native("kv_cache", kv_cache)
        self.block_table = integers("block_table", block_table)
        self.seqlens = integers("seqlens", seqlens)
        self.sinks, self.mask = native("sinks", sinks, "float32"), native("mask", mask)
        self.out, self.lse = native("out", out), native("lse", lse)
        if self.q is None:
            raise TypeError("q=None: must be an array")
        if self.kv_cache is None:
            raise TypeError("kv_cache=None: must be an array")

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
            )
        except RuntimeError:
            self.refuse_unplain()
            raise

    def views(self) -> Views:
        """What the signature means."""
        arrays = {name: getattr(self, name) for name in self.__slots__}
        views: dict[str, Any] = {
            name: None if x is None else view_of(name, x) for name, x in arrays.items()
        }
        return Views(**views)

    def fill(self, tensors: c.Tensors, out: Array, lse: Array) -> None:
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
        except RuntimeError:  # torch: no storage
            self.refuse_unplain()
            raise

    def refuse_unplain(self) -> None:
        """ValueError for the array that torch refused to describe: asked only then, as it costs."""
        for name in self.__slots__:
            refuse_unplain(name, getattr(self, name))


# ---- Shapes and strides ----


def expect(
    name: str, view: View, shape: Sequence[int | str], values: dict[str, int] | None = None
) -> None:
    """The view has these dimensions: a number must be equal, a word says what stands there."""
    named = (f"{k}={values[k]}" if values and k in values else str(k) for k in shape)
    wanted = "[" + ", ".join(named) + "]"
    if len(view.shape) != len(shape):
        raise ValueError(f"{name}: shape {list(view.shape)}: must be {wanted}")
    for have, want in zip(view.shape, shape):
        number = values.get(want, have) if values and isinstance(want, str) else want
        if isinstance(number, int) and have != number:
            raise ValueError(f"{name}: shape {list(view.shape)}: must be {wanted}")


def expect_dtype(name: str, view: View, allowed: dict[str, int] | Sequence[str]) -> str:
    """The view's dtype, one of these."""
    if view.dtype not in allowed:
        raise ValueError(f"{name}: dtype {view.dtype}: must be {' or '.join(allowed)}")
    return view.dtype


def expect_contiguous(name: str, view: View, axis: int) -> None:
    """The axes from `axis` on are packed in order."""
    inner = 1
    for i in range(len(view.shape) - 1, axis - 1, -1):
        if view.shape[i] > 1 and view.strides[i] != inner and 0 not in view.shape:
            raise ValueError(
                f"{name}: strides {list(view.strides)}: must be contiguous from axis {axis} on"
            )
        inner *= view.shape[i]


def one_device(**views: View | None) -> str:
    """The device that all views are on."""
    devices = {view.device for view in views.values() if view}
    if len(devices) > 1:
        where = ", ".join(f"{name} on {view.device}" for name, view in views.items() if view)
        raise ValueError(f"all arrays must be on one device: {where}")
    return devices.pop()


def _dtype_name(dtype: Any) -> str:
    """The name of a dtype given as a name, a torch dtype or a NumPy dtype or scalar type."""
    name = str(dtype)
    if isinstance(dtype, str) or name.startswith("torch."):
        return name.removeprefix("torch.")
    try:
        return np.dtype(dtype).name
    except TypeError:
        known = ", ".join(c.DTYPES)
        raise ValueError(
            f"out_dtype={dtype!r:.60}: must be one of {known}, as a name or a dtype of torch or "
            "NumPy"
        ) from None


def _stride(name: str, view: View, axis: int) -> int:
    """For a stride field of amla_problem, where 0 means packed and is right for an axis of one
    element and for no elements."""
    if view.shape[axis] <= 1 or 0 in view.shape:
        return 0
    if view.strides[axis] == 0:
        raise ValueError(
            f"{name}: stride 0 along axis {axis}: "
            "a broadcast array cannot be described to the library, copy it"
        )
    return view.strides[axis]


def _strides(name: str, view: View, prefix: str, axes: Sequence[str]) -> dict[str, int]:
    """The stride fields of the view's first axes. Its last axis is contiguous."""
    fields = {f"{prefix}_stride_{axis}": _stride(name, view, i) for i, axis in enumerate(axes)}
    expect_contiguous(name, view, len(view.shape) - 1)
    return fields


def _extent_bytes(view: View) -> int:
    """Bytes from the first element to the end of the last one; 0 for an empty array."""
    if 0 in view.shape:
        return 0
    last = sum((n - 1) * stride for n, stride in zip(view.shape, view.strides))
    return max(0, 1 + last) * c.DTYPE_BYTES[view.dtype]


# ---- Arrays to a problem ----


def problem_fields(v: Views, o: Options, device: str) -> dict[str, Any]:
    """The fields of amla_problem for these arrays, ValueError if they do not fit together. The
    scale is not among them."""
    expect("q", v.q, ("b", "s_q", "h_q", "d_qk"))
    b, s_q, h_q, d_qk = v.q.shape
    known = dict(b=b, s_q=s_q, h_q=h_q, d_qk=d_qk, d_v=c.checked_int("d_v", o.d_v))
    out_type = _out_type(v, o)
    fields: dict[str, Any] = dict(
        known,
        d_v=o.d_v,
        causal=o.causal,
        memory=c.MEMORY_HOST if device == "cpu" else c.MEMORY_DEVICE,
        q_type=expect_dtype("q", v.q, c.DTYPES),
        kv_type=expect_dtype("kv_cache", v.kv_cache, c.DTYPES),
        out_type=out_type,
    )
    fields.update(_strides("q", v.q, "q", ("batch", "query", "head")))
    fields.update(_kv_fields(v.kv_cache, v.block_table, known))
    if v.out:
        expect("out", v.out, ("b", "s_q", "h_q", "d_v"), known)
        fields.update(_strides("out", v.out, "out", ("batch", "query", "head")))
    if v.mask:
        expect("mask", v.mask, ("b", "s_q", "sk"), dict(known, sk=fields["sk"]))
        expect_dtype("mask", v.mask, ("float16",))
        fields.update(_strides("mask", v.mask, "mask", ("batch", "query")))
    _expect_packed("seqlens", v.seqlens, ("b",), _INTEGERS, known)
    _expect_packed("sinks", v.sinks, ("h_q",), ("float32",), known)
    _expect_packed("lse", v.lse, ("b", "h_q", "s_q"), ("float32",), known)
    return fields


def _expect_packed(
    name: str,
    view: View | None,
    shape: Sequence[str],
    dtypes: Sequence[str],
    known: dict[str, int],
) -> None:
    if view:
        expect(name, view, shape, known)
        expect_dtype(name, view, dtypes)
        expect_contiguous(name, view, 0)


def _out_type(v: Views, o: Options) -> str:
    if not v.out:
        return _dtype_name(o.out_dtype) if o.out_dtype else expect_dtype("q", v.q, c.DTYPES)
    if o.out_dtype and _dtype_name(o.out_dtype) != v.out.dtype:
        name = _dtype_name(o.out_dtype)
        raise ValueError(f"out_dtype={name}: must be out's, {v.out.dtype}, or not be given")
    return v.out.dtype


def _kv_fields(kv: View, table: View | None, known: dict[str, int]) -> dict[str, Any]:
    """The fields of amla_problem that say where KV lies."""
    paged = table is not None
    axes = ("n_pages" if paged else "b", "page_size" if paged else "sk")
    if len(kv.shape) == 4:
        expect("kv_cache", kv, (*axes, "h_kv", "d_qk"), known)
    else:
        expect("kv_cache", kv, (*axes, "d_qk"), known)
    expect_contiguous("kv_cache", kv, len(kv.shape) - 1)
    fields = dict(
        h_kv=kv.shape[2] if len(kv.shape) == 4 else 1,
        kv_stride_page=_stride("kv_cache", kv, 0),
        kv_stride_token=_stride("kv_cache", kv, 1),
    )
    if table is None:
        return dict(fields, sk=kv.shape[1], page_size=0, n_pages=0, max_pages=0)
    expect("block_table", table, ("b", "max_pages"), known)
    expect_dtype("block_table", table, _INTEGERS)
    expect_contiguous("block_table", table, 1)
    return dict(fields, **_page_fields(kv, table))


def _page_fields(kv: View, table: View) -> dict[str, int]:
    n_pages, page_size = kv.shape[:2]
    _, columns = table.shape
    row_stride = _stride("block_table", table, 0) or columns
    if row_stride < columns:
        raise ValueError(f"block_table: strides {list(table.strides)}: rows overlap")
    if columns == 0:
        page_size = max(1, page_size)  # of pages that nobody can use
    if page_size == 0:
        raise ValueError(f"kv_cache: shape {list(kv.shape)}: page_size must be >= 1")
    sk = min(columns * page_size, c.INT32_MAX)
    return dict(page_size=page_size, n_pages=n_pages, max_pages=row_stride, sk=sk)


def sized_tensors(v: Views, f: dict[str, Any]) -> c.Tensors:
    """An amla_tensors that lacks only its pointers.

    Of the block table the library reads used entries only, so a view of some columns of a wider
    table is passed with the capacity of whole rows."""
    rows = f["b"] * f["s_q"] * f["h_q"]
    return c.Tensors(
        struct_bytes=ctypes.sizeof(c.Tensors),
        q_bytes=_extent_bytes(v.q),
        kv_bytes=_extent_bytes(v.kv_cache),
        block_table_bytes=f["b"] * f["max_pages"] * 4 if v.block_table else 0,
        seqlens_k_bytes=f["b"] * 4,
        sinks_bytes=f["h_q"] * 4,
        out_bytes=_extent_bytes(v.out) if v.out else rows * f["d_v"] * c.DTYPE_BYTES[f["out_type"]],
        lse_bytes=rows * 4,
        mask_bytes=_extent_bytes(v.mask) if v.mask else 0,
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
)


def problem_struct(fields: dict[str, Any]) -> c.Problem:
    """amla_problem, every field checked to be of its type and to fit."""
    problem = c.Problem(struct_bytes=ctypes.sizeof(c.Problem))
    for name, value in fields.items():
        setattr(problem, name, _checked_field(name, value))
    return problem


def _checked_field(name: str, value: Any) -> int | float:
    if name.endswith("_type"):
        return c.choice(name, value, c.DTYPES)
    if name == "scale":
        return c.checked_number(name, value)
    if name == "causal":
        return c.checked_flag(name, value)
    is_wide = "stride" in name or name == "n_pages"
    return c.checked_int(name, value, 2**63 - 1 if is_wide else c.INT32_MAX)


def options_struct(
    *,
    backend: str,
    rescale: str,
    threads: int,
    isa: str,
    split_tokens: int,
    lse_base: str | int,
    p_form: str,
    q_form: str,
    kv_round: str,
) -> c.Options:
    """amla_options."""
    return c.Options(
        struct_bytes=ctypes.sizeof(c.Options),
        backend=c.choice("backend", backend, c.BACKENDS),
        rescale=c.choice("rescale", rescale, c.RESCALES),
        threads=c.checked_int("threads", threads),
        isa=c.choice("isa", isa, c.ISAS),
        split_tokens=c.checked_int("split_tokens", split_tokens),
        lse_base=c.choice("lse_base", lse_base, c.LSE_BASES),
        p_form=c.choice("p_form", p_form, c.P_FORMS),
        q_form=c.choice("q_form", q_form, c.Q_FORMS),
        kv_round=c.choice("kv_round", kv_round, c.KV_ROUNDS),
    )


# ---- One problem against another ----


def refuse_other_fields(fields: dict[str, Any], plan_fields: dict[str, Any]) -> None:
    """ValueError unless arrays with these fields are what the plan was made for."""
    theirs = _effective(plan_fields)
    for name, value in _effective(fields).items():
        if value != theirs[name]:
            raise ValueError(f"{name}={value}: the plan was made for {name}={theirs[name]}")


def _effective(f: dict[str, Any]) -> dict[str, Any]:
    """The fields with every 0 that stands for a default resolved as the library does."""
    pages = -(-f["sk"] // f["page_size"]) if f["page_size"] else 0
    return {**f, "max_pages": f["max_pages"] or pages, **_effective_strides(f)}


def _effective_strides(f: dict[str, Any]) -> dict[str, int | None]:
    """Every stride; None along an axis of one element."""
    tokens, pages = (f["page_size"], f["n_pages"]) if f["page_size"] else (f["sk"], f["b"])
    rows = (("head", f["h_q"]), ("query", f["s_q"]), ("batch", f["b"]))
    strides: dict[str, int | None] = {}
    for tensor, run, axes in (
        ("q_stride", f["d_qk"], rows),
        ("out_stride", f["d_v"], rows),
        ("kv_stride", f["d_qk"], (("token", tokens), ("page", pages))),
        ("mask_stride", f["sk"], rows[1:]),
    ):
        packed = run
        for axis, n in axes:
            stride = f.get(f"{tensor}_{axis}", 0) or packed
            strides[f"{tensor}_{axis}"] = stride if n > 1 else None
            packed = n * stride
    return strides
