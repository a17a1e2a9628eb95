# SPDX-License-Identifier: Apache-2.0
"""amla.cache_write: tokens into a KV cache of any type, thin over amla_cache_write."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from . import _library as c
from . import _scopes
from ._arrays import (
    View,
    call_operator,
    is_torch,
    is_traced,
    native,
    pointer,
    refuse_gradients,
    refuse_unplain,
    signature,
)
from ._numpy import np
from ._plan import cpu_options, default_threads, remember
from ._scopes import Array
from ._shapes import (
    expect,
    expect_contiguous,
    expect_dtype,
    expect_packed,
    host_views,
    put_arrays,
    stride,
)

_ARRAYS = ("latent", "rope", "kv_cache", "slot_mapping", "kv_rope")


def cache_write(
    latent: Array,
    rope: Array | None,
    kv_cache: Array,
    slot_mapping: Array,
    *,
    kv_rope: Array | None = None,
    kv_type: str | None = None,
    kv_scale: float = 1.0,
    kv_rope_scale: float = 1.0,
    any_scale: bool = False,
    threads: int = 0,
    isa: str = "auto",
) -> None:
    """Writes each token to its slot of kv_cache and nothing else; of several for a slot the last.

    Arguments
        latent        [n, d_latent], float32, bfloat16 or float16
        rope          [n, d_rope] of latent's type, or None
        kv_cache      [n_pages, page_size, row] or [n_pages, page_size, 1, row], contiguous caches
                      [b, sk, row]: as `decode` takes it; written in place
        slot_mapping  [n] int64, page * page_size + offset; -1 leaves the token out. int32 and lists
                      of integers are copied
        kv_rope       [n_pages, page_size, d_rope]: the cache of rope parts where they lie apart
        kv_type, kv_scale, kv_rope_scale  as in `decode`; of fp8_e4m3 the scales are given, not
                      found
        any_scale     fp8_656: scales as they come, as GLM writes them, not powers of two
        threads, isa  as in `decode`

    How elements are rounded and scales are found: include/amla/amla.h. Raises ValueError with
    field, value and rule before anything is written: also for a slot outside the cache.
    """
    if is_traced(latent):
        return call_operator("cache_write", _ARRAYS, locals())
    refuse_gradients(latent=latent, rope=rope, kv_cache=kv_cache, kv_rope=kv_rope)
    given = dict(latent=latent, rope=rope, kv_cache=kv_cache, kv_rope=kv_rope)
    arrays = {name: native(name, x) for name, x in given.items()}
    arrays["slot_mapping"] = _int64("slot_mapping", slot_mapping)
    for name in ("kv_cache", "kv_rope"):
        if isinstance(arrays[name], np.ndarray) and not arrays[name].flags.writeable:
            raise ValueError(f"{name}: read-only: must be writable")
    try:
        prepared = _find(arrays, (kv_type, kv_scale, kv_rope_scale, any_scale, threads, isa))
        args = c.CacheWriteArgs.from_buffer_copy(prepared.args)
        args.latent, args.rope = pointer(arrays["latent"]), pointer(arrays["rope"])
        args.kv, args.kv_rope = pointer(arrays["kv_cache"]), pointer(arrays["kv_rope"])
        args.slot_mapping = pointer(arrays["slot_mapping"])
    except RuntimeError:  # torch: no strides, no storage
        for name, x in arrays.items():
            refuse_unplain(name, x)
        raise
    detail = c.Detail()
    c.check(c.lib.amla_cache_write(ctypes.byref(args), prepared.options_at, detail), detail)


# ---- Worked out once for arrays of the same shapes, strides and types ----


class _Prepared(NamedTuple):
    """amla_cache_write_args that lacks only its pointers, and amla_options."""

    args: bytes
    options: c.Options
    options_at: int


_remembered: dict[tuple[Any, ...], _Prepared] = {}


def _find(arrays: dict[str, Any], how: tuple[Any, ...]) -> _Prepared:
    types = tuple(map(type, how))  # as True is no scale though it equals 1
    threads = default_threads(arrays["latent"], 0)
    key: Any = (*map(signature, arrays.values()), how, types, threads)
    try:
        found = _remembered.get(key)
    except TypeError:  # what cannot be hashed: _prepare says which
        key = found = None
    if found is None:
        found = _prepare(arrays, *how)
        if key is not None:
            remember(_remembered, key, found)
    return found


def _prepare(
    arrays: dict[str, Any],
    kv_type: Any,
    kv_scale: Any,
    kv_rope_scale: Any,
    any_scale: Any,
    threads: int,
    isa: str,
) -> _Prepared:
    views = host_views(arrays, ("latent", "kv_cache", "slot_mapping"))
    args = _args(views, _scopes.cache_type("kv_cache", views["kv_cache"], kv_type))
    args.any_scale = c.checked_flag("any_scale", any_scale)
    args.kv_scale = c.checked_number("kv_scale", kv_scale)
    args.kv_rope_scale = c.checked_number("kv_rope_scale", kv_rope_scale)
    put_arrays(args, arrays, views, {"kv_cache": "kv"})  # sizes stay, pointers are of one call
    options = cpu_options(arrays["latent"], threads, isa)
    return _Prepared(bytes(args), options, ctypes.addressof(options))


def _int64(name: str, x: Any) -> Any:
    x = native(name, x, "int64")
    if x is None or x.itemsize != 4:
        return x
    if is_torch(x):
        return x.long() if not x.dtype.is_floating_point else x
    return x.astype(np.int64) if x.dtype.kind == "i" else x


def _args(v: dict[str, View], kv_type: str) -> c.CacheWriteArgs:
    """amla_cache_write_args without its pointers; ValueError for shapes that do not fit."""
    latent, kv, rope, kv_rope = (v.get(n) for n in ("latent", "kv_cache", "rope", "kv_rope"))
    assert latent and kv
    expect("latent", latent, ("n", "d_latent"))
    n, d_latent = latent.shape
    known, d_rope = dict(n=n), 0
    for name, view in (("latent", latent), ("rope", rope)):
        if view:
            expect(name, view, ("n", f"d_{name}"), known)
            expect_dtype(name, view, c.DTYPES if name == "latent" else (latent.dtype,))
            expect_contiguous(name, view, 1)
            d_rope = view.shape[1] if name == "rope" else 0
    expect_packed("slot_mapping", v["slot_mapping"], ("n",), ("int64",), known)
    row = c.row_width(kv_type, d_latent + (0 if kv_rope else d_rope))
    sizes = dict(row=row, h_kv=1, d_rope=c.row_width(kv_type, d_rope) if kv_rope else d_rope)
    caches: dict[str, int] = {}
    for name, field, view, last in (
        ("kv_cache", "kv", kv, "row"),
        ("kv_rope", "kv_rope", kv_rope, "d_rope"),
    ):
        if view:
            heads = ("h_kv",) if len(view.shape) == 4 else ()
            expect(name, view, ("n_pages", "page_size", *heads, last), sizes)
            expect_contiguous(name, view, 1 if kv_type == "fp8_584" else len(view.shape) - 1)
            for axis, at in enumerate(("page", "token")):
                of_view = c.cache_stride(name, kv_type, stride(name, view, axis))
                caches[f"{field}_stride_{at}"] = of_view
            sizes |= dict(n_pages=view.shape[0], page_size=view.shape[1])
    if kv_rope:
        _scopes.cache_type("kv_rope", kv_rope, kv_type)
    if kv_type == "fp8_584":
        caches["kv_stride_token"] = 0
    return c.CacheWriteArgs(
        struct_bytes=ctypes.sizeof(c.CacheWriteArgs),
        d_latent=d_latent,
        d_rope=d_rope,
        page_size=c.checked_int("page_size", kv.shape[1]),
        n_pages=kv.shape[0],
        n_tokens=n,
        type=c.DTYPES[latent.dtype],
        kv_type=c.KV_TYPES[kv_type],
        kv_d_rope=d_rope if kv_rope else 0,
        latent_stride=stride("latent", latent, 0),
        rope_stride=stride("rope", rope, 0) if rope else 0,
        **caches,
    )
