# SPDX-License-Identifier: Apache-2.0
"""amla.decode, amla.Plan and amla.merge: arrays in, arrays out, thin over amla_plan_create, amla_plan_run and amla_merge.

A call looks up what was worked out for arguments of the same shapes, strides and types (`_bind`: the plan and every size), puts
the pointers into an amla_tensors struct and runs. Scratch is reused. Refusals of shapes are decided
here, since the library sees none; all others are the library's own, in its words.
"""
from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any, Sequence

import numpy as np

from . import _library as c
from ._arrays import View, integers, is_torch, loaded_torch, maker_like_kind, native, pointer, refuse_unplain, signature, view_of

Array = Any
"""A NumPy array, a torch tensor, or an object with __dlpack__."""

_INTEGERS = ("int32", "int64")  # of block_table and seqlens; the latter are int32 when they come here
_MAX_CALLS = 1024  # shapes remembered; a plan is a few kB


# ---- Scratch ----


class _Scratch:
    """Memory for one run at a time, and room for the words of a refusal. Runs take one from `_free` and put it back: as many exist as
    runs were ever at work at once, each as large as the largest plan that used it."""

    __slots__ = ("address", "bytes", "memory", "detail", "detail_address")

    def __init__(self) -> None:
        self.address, self.bytes = 0, 0
        self.memory: mmap.mmap | None = None
        self.detail = c.Detail()
        self.detail_address = ctypes.addressof(self.detail)

    def grow(self, n_bytes: int) -> None:
        """Whole pages, huge ones where the system gives them. Private: mmap's default is memory that a forked child shares, and then
        both would write their intermediate results into it."""
        self.memory = memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # a kernel without huge pages
        self.address, self.bytes = ctypes.addressof(ctypes.c_char.from_buffer(memory)), n_bytes


_free: list[_Scratch] = []  # pop and append are atomic


# ---- Shapes and strides ----


def _expect(name: str, view: View, shape: Sequence[int | str], values: dict[str, int] | None = None) -> None:
    """The view has these dimensions: a number must be equal, a word says what stands there."""
    wanted = "[" + ", ".join(f"{k}={values[k]}" if values and k in values else str(k) for k in shape) + "]"
    if len(view.shape) != len(shape):
        raise ValueError(f"{name}: shape {list(view.shape)}: must be {wanted}")
    for have, want in zip(view.shape, shape):
        number = values.get(want, have) if values and isinstance(want, str) else want
        if isinstance(number, int) and have != number:
            raise ValueError(f"{name}: shape {list(view.shape)}: must be {wanted}")


def _dtype(name: str, view: View, allowed: dict[str, int] | Sequence[str]) -> str:
    if view.dtype not in allowed:
        raise ValueError(f"{name}: dtype {view.dtype}: must be {' or '.join(allowed)}")
    return view.dtype


def _dtype_name(dtype: Any) -> str:
    """The name of a dtype given as a name, a torch dtype or a NumPy dtype or scalar type."""
    name = str(dtype)
    if isinstance(dtype, str) or name.startswith("torch."):
        return name.removeprefix("torch.")
    try:
        return np.dtype(dtype).name
    except TypeError:
        raise ValueError(f"out_dtype={dtype!r:.60}: must be one of {', '.join(c.DTYPES)}, as a name or a dtype of torch or NumPy") from None


def _stride(name: str, view: View, axis: int) -> int:
    """For a stride field of amla_problem, where 0 means packed and is right for an axis of one element and for no elements."""
    if view.shape[axis] <= 1 or 0 in view.shape:
        return 0
    if view.strides[axis] == 0:
        raise ValueError(f"{name}: stride 0 along axis {axis}: a broadcast array cannot be described to the library, copy it")
    return view.strides[axis]


def _contiguous_from(name: str, view: View, axis: int) -> None:
    """The axes from `axis` on are packed in order."""
    inner = 1
    for i in range(len(view.shape) - 1, axis - 1, -1):
        if view.shape[i] > 1 and view.strides[i] != inner and 0 not in view.shape:
            raise ValueError(f"{name}: strides {list(view.strides)}: must be contiguous from axis {axis} on")
        inner *= view.shape[i]


def _extent_bytes(view: View, item_bytes: int) -> int:
    """Bytes from the first element to the end of the last one; 0 for an empty array."""
    if 0 in view.shape:
        return 0
    return max(0, 1 + sum((n - 1) * s for n, s in zip(view.shape, view.strides))) * item_bytes


# ---- Plans ----

_PROBLEM_DEFAULTS: dict[str, Any] = dict(
    b=1, s_q=1, h_q=128, h_kv=1, sk=1, d_qk=576, d_v=512, page_size=0, max_pages=0, n_pages=0, q_type="bfloat16", kv_type="bfloat16",
    out_type="bfloat16", causal=False, scale=0.0, memory=c.MEMORY_HOST, q_stride_batch=0, q_stride_query=0, q_stride_head=0,
    out_stride_batch=0, out_stride_query=0, out_stride_head=0, kv_stride_page=0, kv_stride_token=0, mask_stride_batch=0,
    mask_stride_query=0)


class Plan:
    """A decode problem, checked and scheduled once; run it as often as you like with other data, lengths and block tables.

    The arguments are the fields of amla_problem and amla_options (include/amla/amla.h), all by keyword: shapes b, s_q, h_q,
    sk (the maximum length), d_qk, d_v; page_size (0 = contiguous KV), max_pages, n_pages; q_type, kv_type, out_type
    ("float32", "bfloat16", "float16"); causal; scale (required); strides in elements, 0 = packed; and backend, rescale, threads, isa,
    split_tokens, lse_base as in `decode`. `Plan.like` takes them from arrays instead.

    Immutable, and safe to run from several threads at once. Raises ValueError for what breaks a rule and NotImplementedError
    for what is not built or not on this machine, both in the library's words.
    """

    def __init__(self, *, scale: float, backend: str = "auto", rescale: str = "lazy", threads: int = 0, isa: str = "auto",
                 split_tokens: int = 0, lse_base: str | int = "e", **problem: Any) -> None:
        unknown = set(problem) - set(_PROBLEM_DEFAULTS)
        if unknown:
            raise ValueError(f"{min(unknown)}: no such field of a plan")
        fields = {**_PROBLEM_DEFAULTS, **problem, "scale": scale}
        self.fields = dict(fields, backend=backend, rescale=rescale, threads=threads, isa=isa, split_tokens=split_tokens,
                           lse_base=lse_base)
        p = c.Problem(struct_bytes=ctypes.sizeof(c.Problem))
        for name, value in fields.items():
            if name.endswith("_type"):
                value = c.choice(name, value, c.DTYPES)
            elif name == "scale":
                value = c.checked_number(name, value)
            elif name == "causal":
                value = c.checked_flag(name, value)
            else:
                value = c.checked_int(name, value, 2**63 - 1 if "stride" in name or name == "n_pages" else c.INT32_MAX)
            setattr(p, name, value)
        o = c.Options(ctypes.sizeof(c.Options), c.choice("backend", backend, c.BACKENDS), c.choice("rescale", rescale, c.RESCALES),
                      c.checked_int("threads", threads), c.choice("isa", isa, c.ISAS), c.checked_int("split_tokens", split_tokens),
                      c.choice("lse_base", lse_base, c.LSE_BASES))
        handle, detail = ctypes.c_void_p(), c.Detail()
        status = c.lib.amla_plan_create(ctypes.byref(handle), ctypes.byref(p), ctypes.byref(o), ctypes.byref(detail))
        if status:
            c.raise_status(status, detail)
        self._handle = handle
        self._calls: dict[tuple[Any, ...], _Call] = {}
        weakref.finalize(self, c.lib.amla_plan_destroy, handle).atexit = False  # daemon threads and exit handlers may still run it
        self.scratch_bytes: int = c.lib.amla_plan_scratch_bytes(handle)

    @classmethod
    def like(cls, q: Array, kv_cache: Array, block_table: Array | None = None, seqlens: Array | None = None, *, scale: float,
             **options: Any) -> Plan:
        """The plan that `decode` would use for these arrays and options."""
        unknown = set(options) - set(_OPTION_DEFAULTS)
        if unknown:
            raise ValueError(f"{min(unknown)}: no such option of a plan")
        a, options = _Arguments(q, kv_cache, block_table, seqlens, None, None, None, None), {**_OPTION_DEFAULTS, **options}
        return _Call(a, scale, **options).plan

    def run(self, q: Array, kv_cache: Array, block_table: Array | None = None, seqlens: Array | None = None, *,
            sinks: Array | None = None, mask: Array | None = None, out: Array | None = None, lse: Array | None = None) -> tuple[Any, Any]:
        """`decode` with this plan. ValueError if the arrays' shapes, strides or types are not the plan's; arguments and
        results as in `decode`."""
        a = _Arguments(q, kv_cache, block_table, seqlens, sinks, mask, out, lse)
        f = self.fields
        key = a.signature()
        call = self._calls.get(key)
        if call is None:
            call = _Call(a, f["scale"], causal=bool(f["causal"]), d_v=f["d_v"], rescale=f["rescale"], backend=f["backend"],
                         threads=f["threads"], lse_base=f["lse_base"], isa=f["isa"], split_tokens=f["split_tokens"],
                         out_dtype=f["out_type"], plan=self)
            if len(self._calls) >= _MAX_CALLS:
                self._calls.clear()
            self._calls[key] = call
        return call.run(a)

    def describe(self) -> str:
        """One line such as "cpu avx512 lazy, 128 rows x 96 tokens, ..., 2 threads"."""
        text = ctypes.create_string_buffer(512)
        c.lib.amla_plan_describe(self._handle, text, len(text))
        return text.value.decode()

    def __repr__(self) -> str:
        f = self.fields
        return f"<amla.Plan b={f['b']} s_q={f['s_q']} h_q={f['h_q']} sk={f['sk']} page_size={f['page_size']}: {self.describe()}>"


# ---- A call: what is worked out once for arguments of the same signature ----


class _Arguments:
    """The arrays of one call, native. q first, as results are of its kind."""

    __slots__ = ("q", "kv", "table", "lens", "sinks", "mask", "out", "lse")

    def __init__(self, q: Array, kv: Array, table: Array, lens: Array, sinks: Array, mask: Array, out: Array, lse: Array) -> None:
        self.q, self.kv = native("q", q), native("kv_cache", kv)
        self.table, self.lens = integers("block_table", table), integers("seqlens", lens)
        self.sinks, self.mask = native("sinks", sinks, "float32"), native("mask", mask)
        self.out, self.lse = native("out", out), native("lse", lse)
        for name, x in (("q", self.q), ("kv_cache", self.kv)):
            if x is None:
                raise TypeError(f"{name}=None: must be an array")

    def signature(self) -> tuple[Any, ...]:
        try:
            return (signature(self.q), signature(self.kv), signature(self.table), signature(self.lens), signature(self.sinks), signature(self.mask),
                    signature(self.out), signature(self.lse))
        except RuntimeError:
            self.refuse_unplain()
            raise

    def pointers(self, out: Array, lse: Array) -> tuple[int, ...]:
        try:
            return (pointer(self.q), pointer(self.kv), pointer(self.table), pointer(self.lens), pointer(self.sinks), pointer(self.mask),
                    pointer(out), pointer(lse))
        except RuntimeError:  # torch: no storage
            self.refuse_unplain()
            raise

    def refuse_unplain(self) -> None:
        """ValueError for the array that torch refused to describe: asked only then, as it costs."""
        for name, x in (("q", self.q), ("kv_cache", self.kv), ("block_table", self.table), ("seqlens", self.lens), ("sinks", self.sinks),
                        ("mask", self.mask), ("out", self.out), ("lse", self.lse)):
            refuse_unplain(name, x)


_OPTION_DEFAULTS: dict[str, Any] = dict(causal=False, d_v=512, rescale="lazy", backend="auto", threads=0, lse_base="e", isa="auto",
                                        split_tokens=0, out_dtype=None)


class _Call:
    """Checked shapes, a plan, and an amla_tensors struct that lacks only its pointers."""

    def __init__(self, a: _Arguments, scale: float, *, causal: bool, d_v: int, rescale: str, backend: str, threads: int,
                 lse_base: str | int, isa: str, split_tokens: int, out_dtype: str | None, plan: Plan | None = None) -> None:
        q, kv = view_of("q", a.q), view_of("kv_cache", a.kv)
        table, lens, sinks, mask, out, lse = (view_of(n, x) if x is not None else None for n, x in (
            ("block_table", a.table), ("seqlens", a.lens), ("sinks", a.sinks), ("mask", a.mask), ("out", a.out), ("lse", a.lse)))
        self.device = _one_device(q=q, kv_cache=kv, block_table=table, seqlens=lens, sinks=sinks, mask=mask, out=out, lse=lse)

        _expect("q", q, ("b", "s_q", "h_q", "d_qk"))
        b, s_q, h_q, d_qk = q.shape
        known = dict(b=b, s_q=s_q, h_q=h_q, d_qk=d_qk, d_v=c.checked_int("d_v", d_v))
        if out and out_dtype and plan is None and _dtype_name(out_dtype) != out.dtype:
            raise ValueError(f"out_dtype={_dtype_name(out_dtype)}: must be out's, {out.dtype}, or not be given")
        self.out_dtype = out.dtype if out else _dtype_name(out_dtype) if out_dtype else _dtype("q", q, c.DTYPES)
        fields: dict[str, Any] = dict(
            b=b, s_q=s_q, h_q=h_q, d_qk=d_qk, d_v=d_v, causal=causal, memory=c.MEMORY_HOST if self.device == "cpu" else c.MEMORY_DEVICE,
            q_type=_dtype("q", q, c.DTYPES), kv_type=_dtype("kv_cache", kv, c.DTYPES), out_type=self.out_dtype,
            q_stride_batch=_stride("q", q, 0), q_stride_query=_stride("q", q, 1), q_stride_head=_stride("q", q, 2))
        _contiguous_from("q", q, 3)
        fields.update(_kv_fields(kv, table, known))
        if out:
            _expect("out", out, ("b", "s_q", "h_q", "d_v"), known)
            _contiguous_from("out", out, 3)
            fields.update(out_stride_batch=_stride("out", out, 0), out_stride_query=_stride("out", out, 1), out_stride_head=_stride("out", out, 2))
        if mask:
            _expect("mask", mask, ("b", "s_q", "sk"), dict(known, sk=fields["sk"]))
            _dtype("mask", mask, ("float16",))
            _contiguous_from("mask", mask, 2)
            fields.update(mask_stride_batch=_stride("mask", mask, 0), mask_stride_query=_stride("mask", mask, 1))
        for name, view, shape, dtypes in (("seqlens", lens, ("b",), _INTEGERS), ("sinks", sinks, ("h_q",), ("float32",)),
                                          ("lse", lse, ("b", "h_q", "s_q"), ("float32",))):
            if view:
                _expect(name, view, shape, known)
                _dtype(name, view, dtypes)
                _contiguous_from(name, view, 0)

        if plan is None:
            if not os.environ.get("AMLA_NUM_THREADS"):  # which goes before torch's number
                threads = _threads(a, threads)
            plan = Plan(scale=scale, rescale=rescale, backend=_backend(self.device, backend), threads=threads, isa=isa,
                        split_tokens=split_tokens, lse_base=lse_base, **fields)
        else:
            _check_plan(plan, fields)
        self.plan, self.handle, self.scratch_bytes = plan, plan._handle.value, plan.scratch_bytes
        self.out_shape, self.lse_shape = (b, s_q, h_q, d_v), (b, h_q, s_q)
        self.make_out = maker_like_kind(a.q, self.out_shape, self.out_dtype)
        self.make_lse = maker_like_kind(a.q, self.lse_shape, "float32")
        out_bytes = _extent_bytes(out, c.DTYPE_BYTES[out.dtype]) if out else b * s_q * h_q * d_v * c.DTYPE_BYTES[self.out_dtype]
        # Of the block table the library reads used entries only, so a view of some columns of a wider table is passed with the
        # capacity of whole rows.
        self.template = bytes(c.Tensors(
            struct_bytes=ctypes.sizeof(c.Tensors), q_bytes=_extent_bytes(q, c.DTYPE_BYTES[q.dtype]), kv_bytes=_extent_bytes(kv, c.DTYPE_BYTES[kv.dtype]),
            block_table_bytes=b * fields["max_pages"] * 4 if table else 0, seqlens_k_bytes=b * 4, sinks_bytes=h_q * 4,
            out_bytes=out_bytes, lse_bytes=b * h_q * s_q * 4, mask_bytes=_extent_bytes(mask, 2) if mask else 0))

    def run(self, a: _Arguments) -> tuple[Any, Any]:
        """The results: a.out and a.lse where given, else new arrays."""
        out, lse = a.out, a.lse
        for name, x in (("out", out), ("lse", lse)):
            if x is not None and isinstance(x, np.ndarray) and not x.flags.writeable:
                raise ValueError(f"{name}: read-only: must be writable")
        if out is None:
            out = self.make_out()
        if lse is None:
            lse = self.make_lse()
        self.run_pointers(*a.pointers(out, lse))
        return out, lse

    def run_pointers(self, q: int, kv: int, table: int, lens: int, sinks: int, mask: int, out: int, lse: int) -> None:
        """amla_plan_run. The caller keeps the memory alive."""
        if self.device != "cpu":
            return self._run_on_device(q, kv, table, lens, sinks, mask, out, lse)
        try:
            scratch = _free.pop()
        except IndexError:
            scratch = _Scratch()
        if scratch.bytes < self.scratch_bytes:
            scratch.grow(self.scratch_bytes)
        t = _from_buffer_copy(self.template)
        t.q, t.kv, t.block_table, t.seqlens_k, t.sinks, t.mask, t.out, t.lse = q, kv, table, lens, sinks, mask, out, lse
        status = _run(self.handle, ctypes.addressof(t), scratch.address, scratch.bytes, scratch.detail_address)
        if status:
            c.raise_status(status, scratch.detail)
        _free.append(scratch)

    def _run_on_device(self, q: int, kv: int, table: int, lens: int, sinks: int, mask: int, out: int, lse: int) -> None:
        """On the current stream of the tensors' device, with scratch from torch's allocator. Not tested on hardware."""
        torch, plan, detail = loaded_torch(), self.plan, c.Detail()
        t = c.Tensors.from_buffer_copy(self.template)
        t.q, t.kv, t.block_table, t.seqlens_k, t.sinks, t.mask, t.out, t.lse = q, kv, table, lens, sinks, mask, out, lse
        with torch.cuda.device(self.device):
            t.stream = torch.cuda.current_stream().cuda_stream
            scratch = torch.empty(plan.scratch_bytes, dtype=torch.uint8, device=self.device)
            status = c.lib.amla_plan_run(plan._handle, ctypes.addressof(t), scratch.data_ptr(), plan.scratch_bytes, ctypes.addressof(detail))
        if status:
            c.raise_status(status, detail)


def _one_device(**views: View | None) -> str:
    devices = {view.device for view in views.values() if view}
    if len(devices) > 1:
        raise ValueError("all arrays must be on one device: " + ", ".join(f"{n} on {v.device}" for n, v in views.items() if v))
    return devices.pop()


def _backend(device: str, backend: str) -> str:
    """The backend for a device; NotImplementedError with the library's reason if it has none."""
    if device == "cpu":
        return backend
    if not device.startswith("cuda"):
        raise NotImplementedError(f"device {device}: arrays must be on the CPU or on a CUDA device")
    if backend not in ("auto", "cuda"):
        raise ValueError(f"backend={backend!r}: tensors on {device} need 'cuda'")
    info = c.backend_info("cuda")
    if not info.available:
        raise NotImplementedError(f"tensors on {device} need backend cuda: {info.reason.decode()}")
    return "cuda"


def _kv_fields(kv: View, table: View | None, known: dict[str, int]) -> dict[str, Any]:
    """The fields of amla_problem that say where KV lies."""
    paged = table is not None
    axes = ("n_pages" if paged else "b", "page_size" if paged else "sk")
    if len(kv.shape) == 4:
        _expect("kv_cache", kv, (*axes, "h_kv", "d_qk"), known)
    else:
        _expect("kv_cache", kv, (*axes, "d_qk"), known)
    _contiguous_from("kv_cache", kv, len(kv.shape) - 1)
    h_kv = kv.shape[2] if len(kv.shape) == 4 else 1
    fields = dict(h_kv=h_kv, kv_stride_page=_stride("kv_cache", kv, 0), kv_stride_token=_stride("kv_cache", kv, 1))
    if table is None:
        return dict(fields, sk=kv.shape[1], page_size=0, n_pages=0, max_pages=0)
    _expect("block_table", table, ("b", "max_pages"), known)
    _dtype("block_table", table, _INTEGERS)
    _contiguous_from("block_table", table, 1)
    rows, cols = table.shape
    row_stride = _stride("block_table", table, 0) or cols
    if row_stride < cols:
        raise ValueError(f"block_table: strides {list(table.strides)}: rows overlap")
    if kv.shape[1] == 0:
        raise ValueError(f"kv_cache: shape {list(kv.shape)}: page_size must be >= 1")
    return dict(fields, page_size=kv.shape[1], n_pages=kv.shape[0], max_pages=row_stride, sk=min(cols * kv.shape[1], c.INT32_MAX))


def _effective_strides(f: dict[str, Any]) -> dict[str, int | None]:
    """Every stride of a problem with 0 resolved as the library does; None along an axis of one element."""
    tokens, pages = (f["page_size"], f["n_pages"]) if f["page_size"] else (f["sk"], f["b"])
    strides: dict[str, int | None] = {}
    for tensor, run, axes in (
            ("q_stride", f["d_qk"], (("head", f["h_q"]), ("query", f["s_q"]), ("batch", f["b"]))),
            ("out_stride", f["d_v"], (("head", f["h_q"]), ("query", f["s_q"]), ("batch", f["b"]))),
            ("kv_stride", f["d_qk"], (("token", tokens), ("page", pages))),
            ("mask_stride", f["sk"], (("query", f["s_q"]), ("batch", f["b"])))):
        packed = run
        for axis, n in axes:
            stride = f.get(f"{tensor}_{axis}", 0) or packed
            strides[f"{tensor}_{axis}"] = stride if n > 1 else None
            packed = n * stride
    return strides


def _check_plan(plan: Plan, fields: dict[str, Any]) -> None:
    """The arrays are what the plan was made for."""
    mine, theirs = ({**f, "max_pages": f["max_pages"] or -(-f["sk"] // max(f["page_size"], 1)) * bool(f["page_size"]),
                     **_effective_strides(f)} for f in (fields, plan.fields))
    for name, value in mine.items():
        if value != theirs[name]:
            raise ValueError(f"{name}={value}: the plan was made for {name}={theirs[name]}")


_run, _from_buffer_copy = c.lib.amla_plan_run, c.Tensors.from_buffer_copy
_calls: dict[tuple[Any, ...], _Call] = {}


def _threads(a: _Arguments, threads: int) -> int:
    """threads as asked for, or, for torch tensors, torch.get_num_threads(), so that torch.set_num_threads holds here too."""
    return loaded_torch().get_num_threads() if threads == 0 and is_torch(a.q) else threads


def find_call(a: _Arguments, scale: float, options: tuple[Any, ...]) -> _Call:
    """The call for these arguments, from memory or worked out now. options: in the order of _OPTION_DEFAULTS."""
    causal, d_v, _, _, threads, _, _, split_tokens, _ = options
    if type(scale) is not float or type(causal) is not bool or type(d_v) is not int or type(threads) is not int or type(split_tokens) is not int:
        scale = c.checked_number("scale", scale)  # before the look-up, where 512.0 would be 512
        c.checked_flag("causal", causal), c.checked_int("d_v", d_v), c.checked_int("threads", threads), c.checked_int("split_tokens", split_tokens)
    key = (a.signature(), scale, options, _threads(a, threads))
    try:
        call = _calls.get(key)
    except TypeError:  # an option that cannot be hashed: _Call says which
        call = None
    if call is None:
        if is_torch(a.q):
            from . import _torch_op as _  # registers torch.ops.amla.decode, where amla was imported before torch
        call = _Call(a, scale, **dict(zip(_OPTION_DEFAULTS, options)))
        if len(_calls) >= _MAX_CALLS:
            _calls.clear()
        _calls[key] = call
    return call


# ---- The public functions ----


def refuse_gradients(**arrays: Any) -> None:
    """ValueError if one of them is a tensor that requires a gradient while gradients are recorded: it would be lost silently."""
    torch = loaded_torch()
    if torch is not None and torch.is_grad_enabled():
        for name, x in arrays.items():
            if isinstance(x, torch.Tensor) and x.requires_grad:
                raise ValueError(f"{name} requires a gradient: decoding has no backward pass, use torch.no_grad()")


def decode(q: Array, kv_cache: Array, block_table: Array | None = None, seqlens: Array | None = None, *, scale: float,
           causal: bool = False, d_v: int = 512, rescale: str = "lazy", backend: str = "auto", threads: int = 0,
           lse_base: str | int = "e", sinks: Array | None = None, mask: Array | None = None, out_dtype: Any = None,
           isa: str = "auto", split_tokens: int = 0, out: Array | None = None, lse: Array | None = None) -> tuple[Any, Any]:
    """Attention decoding in MLA's absorbed form: all heads share one KV row per token, whose first d_v elements are the value.

        S = scale * q . k      out = softmax(S) v      lse = log sum exp(S)

    Arguments
        q            [b, s_q, h_q, d_qk], float32, bfloat16 or float16
        kv_cache     paged: [n_pages, page_size, d_qk] or [n_pages, page_size, 1, d_qk]; contiguous (no block_table): [b, sk, d_qk] or
                     [b, sk, 1, d_qk]. float32, bfloat16 or float16
        block_table  [b, max_pages] int32 page ids, or None. Entries past a sequence's end may hold anything. int64 is copied into int32 in
                     every call, and every entry must fit
        seqlens      [b] int32 lengths, 0 allowed; None: all as long as there is room. int64 as in block_table
        scale        factor of q . k, a plain number. No default: models use 1/sqrt(192) times YaRN's mscale^2, FlashMLA 1/sqrt(576)
        causal       query i of a sequence of length n sees its first n - s_q + i + 1 keys
        d_v          width of the value, at most d_qk
        rescale      "lazy", "amla" or "flash": same result within rounding
        backend      "auto", "ref", "cpu", "cuda" or "npu"
        threads      0: AMLA_NUM_THREADS if set, else torch.get_num_threads() for torch tensors, else OpenMP's number
        lse_base     "e" or 2
        sinks        [h_q] float32 logits: out is scaled by exp(lse) / (exp(lse) + exp(sink)), lse stays
        mask         [b, s_q, max_pages * page_size or sk] float16, added to the scaled scores; -inf hides the key
        out_dtype    type of out: a name or a dtype of torch or NumPy; default out's if out is given, else q's
        isa, split_tokens  as in amla_options
        out, lse     arrays to write into: [b, s_q, h_q, d_v] in any of the types, and [b, h_q, s_q] float32

    NumPy arrays (bfloat16 from ml_dtypes), torch tensors and objects with __dlpack__ mix freely. Nothing else is copied; strides are
    honoured where the last axis is contiguous (of seqlens, sinks and lse: all axes). Integer lists serve as block_table and seqlens.

    Returns (out, lse): out [b, s_q, h_q, d_v] and lse [b, h_q, s_q] float32, torch tensors if q is one, else NumPy arrays. A row
    that sees no key has out 0 and lse -inf. The same input gives the same bits with any number of threads and in any batch.

    Raises ValueError with field, value and rule for bad arguments, before any work; NotImplementedError for what is not built or not on
    this machine; TypeError for what is no array. The GIL is released while the library works. Inference only: torch tensors
    that require a gradient are refused unless gradients are switched off.
    """
    torch = loaded_torch()
    if torch is not None:
        if torch.compiler.is_compiling() or (isinstance(q, torch.Tensor) and type(q) not in (torch.Tensor, torch.nn.Parameter)):
            from . import _torch_op

            return _torch_op.call(q, kv_cache, block_table, seqlens, sinks, mask, out, lse, scale, causal, d_v, rescale, backend,
                                  threads, lse_base, out_dtype, isa, split_tokens)
        refuse_gradients(q=q, kv_cache=kv_cache, sinks=sinks, mask=mask, out=out, lse=lse)
    a = _Arguments(q, kv_cache, block_table, seqlens, sinks, mask, out, lse)
    return find_call(a, scale, (causal, d_v, rescale, backend, threads, lse_base, isa, split_tokens, out_dtype)).run(a)


def merge(o: Array, lse: Array, *, lse_base: str | int = "e") -> tuple[Any, Any]:
    """Merges partial results over disjoint sets of keys, as split or context-parallel decoding leaves them:
    LSE = log sum_p exp(lse[p]), out = sum_p exp(lse[p] - LSE) o[p], in the order of the parts.

    Arguments
        o         float32 [n_parts, b, s_q, h_q, d_v] with lse [n_parts, b, h_q, s_q] (stacked results of `decode`), or
                  [n_parts, n_rows, d_v] with lse [n_parts, n_rows]; contiguous. `decode` with out_dtype="float32" gives such parts
        lse       float32; parts with -inf (no key seen) are left out. amla.flash_mla marks such rows with +inf: replace it by -inf first,
                  or the merged row is NaN
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
        _expect("lse", lse_view, (n_parts, b, h_q, s_q))
        swap = (lambda x: x.swapaxes(-1, -2))  # [.., h_q, s_q] <-> [.., s_q, h_q], the order of o's rows
        lse_rows = np.ascontiguousarray(swap(lse)) if isinstance(lse, np.ndarray) else swap(lse).contiguous()
        merged, merged_lse = merge(o.reshape(n_parts, b * s_q * h_q, d_v), lse_rows.reshape(n_parts, b * s_q * h_q), lse_base=lse_base)
        return merged.reshape(b, s_q, h_q, d_v), swap(merged_lse.reshape(b, s_q, h_q))
    _expect("o", o_view, ("n_parts", "n_rows", "d_v"))
    n_parts, n_rows, d_v = o_view.shape
    _expect("lse", lse_view, (n_parts, n_rows))
    if _one_device(o=o_view, lse=lse_view) != "cpu":
        raise NotImplementedError(f"o: device {o_view.device}: amla_merge works on the CPU")
    for name, view in (("o", o_view), ("lse", lse_view)):
        _dtype(name, view, ("float32",))
        _contiguous_from(name, view, 0)
    out, out_lse = maker_like_kind(o, (n_rows, d_v), "float32")(), maker_like_kind(o, (n_rows,), "float32")()
    detail = c.Detail()
    status = c.lib.amla_merge(c.checked_int("n_parts", n_parts), n_rows, c.checked_int("d_v", d_v), c.choice("lse_base", lse_base, c.LSE_BASES),
                              pointer(o), n_parts * n_rows * d_v * 4, pointer(lse), n_parts * n_rows * 4, pointer(out), n_rows * d_v * 4,
                              pointer(out_lse), n_rows * 4, ctypes.byref(detail))
    if status:
        c.raise_status(status, detail)
    return out, out_lse
