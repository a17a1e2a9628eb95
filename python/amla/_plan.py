# SPDX-License-Identifier: Apache-2.0
"""amla.Plan, and calls: a plan with all that is worked out once for arguments of the same shapes,
strides and types.

A call puts the pointers into an amla_tensors struct and runs. Scratch is reused. Refusals of what
the library can see are the library's own, in its words.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import weakref
from collections.abc import Callable
from typing import Any

from . import _library as c
from . import _log
from ._arrays import is_torch, loaded_torch, maker_like_kind
from ._numpy import np
from ._options import DEFAULTS, LIBRARY
from ._problem import (
    MAX_REMEMBERED,
    PROBLEM_DEFAULTS,
    Arguments,
    Options,
    options_struct,
    problem_fields,
    problem_struct,
    refuse_other_fields,
    sized_tensors,
)
from ._scopes import FIRST_NAMES, Array, Scope, flat
from ._shapes import one_device

_MAX_CALLS = MAX_REMEMBERED  # shapes remembered; a plan is a few kB


# ---- Scratch ----


class _Scratch:
    """Memory for one run at a time, and room for the words of a refusal. Runs take one from `_free`
    and put it back: as many exist as runs were ever at work at once, each as large as the largest
    plan that used it."""

    __slots__ = ("address", "bytes", "memory", "detail", "detail_address")

    def __init__(self) -> None:
        self.address, self.bytes = 0, 0
        self.memory: mmap.mmap | None = None
        self.detail = c.Detail()
        self.detail_address = ctypes.addressof(self.detail)

    def grow(self, n_bytes: int) -> None:
        """Whole pages, huge ones where the system gives them. Private: mmap's default is memory
        that a forked child shares, and then both would write their intermediate results into it."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.memory = memory = mmap.mmap(-1, n_bytes, flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # a kernel without huge pages
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.bytes = n_bytes


_free: list[_Scratch] = []  # pop and append are atomic


def take_scratch(n_bytes: int) -> _Scratch:
    """Scratch of at least so many bytes, for one run; `give_scratch` takes it back."""
    try:
        scratch = _free.pop()
    except IndexError:
        scratch = _Scratch()
    if scratch.bytes < n_bytes:
        scratch.grow(n_bytes)
    return scratch


give_scratch = _free.append


# ---- Plans ----


class Plan:
    """A decode problem, checked and scheduled once; run it as often as you like with other data,
    lengths and block tables.

    The arguments are the fields of amla_problem and amla_options (include/amla/amla.h), all by
    keyword: shapes b, s_q, h_q, sk (the maximum length), d_qk, d_v; page_size (0 = contiguous KV),
    max_pages, n_pages; q_type, kv_type, out_type ("float32", "bfloat16", "float16"); causal; scale
    (required); strides in elements, 0 = packed; and of amla_options backend, threads and the
    others as in `decode`. `Plan.like` takes them from arrays instead.

    Immutable, and safe to run from several threads at once. Raises ValueError for what breaks a
    rule and NotImplementedError for what is not built or not on this machine, both in the library's
    words.
    """

    def __init__(
        self,
        *,
        scale: float,
        _question: Question | None = None,
        **given: Any,
    ) -> None:
        options = {name: given.pop(name, option.default) for name, option in LIBRARY.items()}
        _refuse_unknown(given, PROBLEM_DEFAULTS, "field")
        fields = {**PROBLEM_DEFAULTS, **given, "scale": scale}
        self.fields = {**fields, **options}
        p, o = problem_struct(fields), options_struct(options)
        self._question = _question  # the library calls it
        if _question is not None:
            o.cancel = _question.address
        handle, detail = ctypes.c_void_p(), c.Detail()
        status = c.lib.amla_plan_create(
            ctypes.byref(handle), ctypes.byref(p), ctypes.byref(o), ctypes.byref(detail)
        )
        if status:
            c.raise_status(status, detail)
        self._handle = handle
        self._calls: dict[tuple[Any, ...], Call] = {}
        # Not at exit: daemon threads and exit handlers may still run it.
        weakref.finalize(self, c.lib.amla_plan_destroy, handle).atexit = False
        self.scratch_bytes: int = c.lib.amla_plan_scratch_bytes(handle)
        if _log.on:
            types = {x: c.DTYPE_NAMES[getattr(p, f"{x}_type")] for x in ("q", "kv", "out")}
            _log.plan_made(self.fields, types, self.describe())

    @classmethod
    def like(
        cls,
        q: Array,
        kv_cache: Array,
        block_table: Array | None = None,
        seqlens: Array | None = None,
        *,
        scale: float,
        extra: Scope | None = None,
        **more: Any,
    ) -> Plan:
        """The plan that `decode` would use for these arrays and options."""
        arrays = {name: more.pop(name) for name in FIRST_NAMES if name in more}
        _refuse_unknown(more, DEFAULTS, "option")
        a = Arguments(q, kv_cache, block_table, seqlens, more=flat(extra, **arrays))
        return Call(a, Options(scale, **more)).plan

    def run(
        self,
        q: Array,
        kv_cache: Array,
        block_table: Array | None = None,
        seqlens: Array | None = None,
        *,
        sinks: Array | None = None,
        mask: Array | None = None,
        out: Array | None = None,
        lse: Array | None = None,
        max_logits: Array | bool = False,
        extra: Scope | None = None,
        cancel: Callable[[], Any] | None = None,
        **more: Array,
    ) -> tuple[Any, ...]:
        """`decode` with this plan. ValueError if the arrays' shapes, strides or types are not the
        plan's; arguments and results as in `decode`, whose other arrays are taken by name."""
        arrays = (q, kv_cache, block_table, seqlens, sinks, mask, out, lse, max_logits)
        a = Arguments(*arrays, more=flat(extra, **more))
        if cancel is not None:
            return run_asking(self, a, self._options(a), cancel)
        key = a.signature()
        call = self._calls.get(key)
        if call is None:
            call = Call(a, self._options(a), self)
            remember(self._calls, key, call)
        return call.run(a)

    def _options(self, a: Arguments) -> Options:
        """As `decode` would be given them for these arrays."""
        f = self.fields
        values = {name: f[name] for name in DEFAULTS if name in f}
        values["causal"] = bool(f["causal"])
        if f["kv_type"] in c.DTYPES:  # which arrays say themselves
            values["kv_type"] = None
        out_dtype = None if a.out is not None else f["out_type"]
        return Options(f["scale"], out_dtype=out_dtype, **values)

    def describe(self) -> str:
        """One line such as "cpu avx512 lazy, 128 rows x 96 tokens, ..., 2 threads"."""
        text = ctypes.create_string_buffer(512)
        c.lib.amla_plan_describe(self._handle, text, len(text))
        return text.value.decode()

    def __repr__(self) -> str:
        names = ("b", "s_q", "h_q", "sk", "page_size")
        fields = " ".join(f"{name}={self.fields[name]}" for name in names)
        return f"<amla.Plan {fields}: {self.describe()}>"


def _refuse_unknown(given: dict[str, Any], known: dict[str, Any], kind: str) -> None:
    unknown = set(given) - set(known)
    if unknown:
        raise ValueError(f"{min(unknown)}: no such {kind} of a plan")


# ---- A call ----


class Call:
    """Checked shapes, a plan, and an amla_tensors struct that lacks only its pointers."""

    def __init__(self, a: Arguments, o: Options, plan: Plan | None = None) -> None:
        views = a.views()
        self.device = one_device(**views.all())
        fields = problem_fields(views, o, self.device, a.most_queries)
        if plan is None:
            plan = _plan_for(a, o, self.device, fields)
        else:
            if 0 < a.most_queries <= plan.fields["s_q"]:
                fields["s_q"] = plan.fields["s_q"]
            refuse_other_fields(fields, plan.fields)
        self.plan, self.handle, self.scratch_bytes = plan, plan._handle.value, plan.scratch_bytes
        *lead, h_q, _ = views.q.shape
        self.out_shape = (*lead, h_q, o.d_v)
        self.lse_shape = (lead[0], h_q, *lead[1:])
        self.make_out = maker_like_kind(a.q, self.out_shape, fields["out_type"])
        self.make_lse = maker_like_kind(a.q, self.lse_shape, "float32")
        template = bytes(sized_tensors(views, fields))
        self.new_tensors = functools.partial(c.Tensors.from_buffer_copy, template)

    def results(self, a: Arguments) -> tuple[Any, ...]:
        """a.out, a.lse and a.max_logits where given, else new arrays; max_logits None unless asked
        for."""
        out, lse, max_logits = a.out, a.lse, a.max_logits
        for name, x in (("out", out), ("lse", lse), ("max_logits", max_logits)):
            if x is not None and isinstance(x, np.ndarray) and not x.flags.writeable:
                raise ValueError(f"{name}: read-only: must be writable")
        if out is None:
            out = self.make_out()
        if lse is None:
            lse = self.make_lse()
        if max_logits is True:
            max_logits = self.make_lse()
        return out, lse, max_logits

    def run(self, a: Arguments) -> tuple[Any, ...]:
        """The results, computed; max_logits only if asked for."""
        out, lse, max_logits = self.results(a)
        tensors = self.new_tensors()
        a.fill(tensors, out, lse, max_logits)
        self.run_tensors(tensors)
        return (out, lse) if max_logits is None else (out, lse, max_logits)

    @_log.counted
    def run_tensors(self, tensors: c.Tensors) -> None:
        """amla_plan_run. tensors: `new_tensors()` with its pointers; the caller keeps the memory
        alive."""
        if self.device != "cpu":
            return self._run_on_device(tensors)
        scratch = take_scratch(self.scratch_bytes)
        status = _run(
            self.handle, _addressof(tensors), scratch.address, scratch.bytes, scratch.detail_address
        )
        if status:
            c.raise_status(status, scratch.detail)
        give_scratch(scratch)

    def _run_on_device(self, tensors: c.Tensors) -> None:
        """On the current stream of the tensors' device, with scratch from torch's allocator. Not
        tested on hardware."""
        torch, n_bytes, detail = loaded_torch(), self.scratch_bytes, c.Detail()
        with torch.cuda.device(self.device):
            tensors.stream = torch.cuda.current_stream().cuda_stream
            scratch = torch.empty(n_bytes, dtype=torch.uint8, device=self.device)
            status = _run(
                self.handle,
                ctypes.addressof(tensors),
                scratch.data_ptr(),
                n_bytes,
                ctypes.addressof(detail),
            )
        if status:
            c.raise_status(status, detail)


_run, _addressof = c.lib.amla_plan_run, ctypes.addressof


def _plan_for(a: Arguments, o: Options, device: str, fields: dict[str, Any]) -> Plan:
    how = {name: getattr(o, name) for name in LIBRARY}
    how.update(backend=backend_for(device, o.backend), threads=threads_for(a.q, o.threads))
    return Plan(scale=o.scale, **how, **fields)


def backend_for(device: str, backend: str) -> str:
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


def default_threads(q: Array, threads: int) -> int:
    """threads as asked for, or, for torch tensors, torch.get_num_threads(), so that
    torch.set_num_threads holds here too."""
    return loaded_torch().get_num_threads() if threads == 0 and is_torch(q) else threads


def threads_for(q: Array, threads: int) -> int:
    """The same, but that AMLA_NUM_THREADS goes before torch's number."""
    return threads if os.environ.get("AMLA_NUM_THREADS") else default_threads(q, threads)


def cpu_options(q: Array, threads: int, isa: str) -> c.Options:
    """amla_options for functions that are not plans."""
    return options_struct(dict(threads=threads_for(q, threads), isa=isa))


# ---- Calls that may be ended ----

_CANCEL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


class Question:
    """A caller's `cancel` as the library asks it, on any of its threads. What it raises is a yes,
    and is kept."""

    def __init__(self, cancel: Callable[[], Any]) -> None:
        self.error: BaseException | None = None
        if not callable(cancel):
            raise TypeError(f"cancel={cancel!r}: must be a function without arguments")

        def ask(context: Any) -> int:
            try:
                return int(bool(cancel()))
            except BaseException as error:  # an interrupt from the keyboard too
                self.error = error
                return 1

        self._function = _CANCEL(ask)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value


def run_asking(plan: Plan, a: Arguments, o: Options, cancel: Callable[[], Any]) -> tuple[Any, ...]:
    """The call by a plan like this one that asks, for this one run."""
    question = Question(cancel)
    call = Call(a, o, Plan(**plan.fields, _question=question))
    try:
        return call.run(a)
    except c.Cancelled:
        if question.error is None:
            raise
    raise question.error


# ---- Calls remembered ----

_calls: dict[tuple[Any, ...], Call] = {}


def remember(calls: dict[tuple[Any, ...], Any], key: tuple[Any, ...], call: Any) -> None:
    """One more of them, of which there are not too many."""
    if len(calls) >= _MAX_CALLS:
        calls.clear()
    calls[key] = call


def find_call(a: Arguments, o: Options) -> Call:
    """The call for these arguments, from memory or worked out now. o: from `options_of`."""
    key = (a.signature(), o, default_threads(a.q, o.threads))
    call = _calls.get(key)
    if call is None:
        call = Call(a, o)
        remember(_calls, key, call)
    return call
