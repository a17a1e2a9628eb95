# SPDX-License-Identifier: Apache-2.0
"""amla.decode as the torch operator amla::decode, and its siblings, with fake kernels: for
torch.compile, torch.export and FakeTensorMode.

Eager calls of `amla.decode` do not come through here: torch's dispatcher costs more than all the
rest of a call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from . import _cache_write as _cache_write_module
from . import _index_topk as _index_topk_module
from . import _merge as _merge_module
from ._arrays import is_torch, refuse_gradients, refuse_unplain
from ._library import checked_number
from ._options import DECODE, DEFAULTS
from ._plan import find_call
from ._problem import Arguments, options_of
from ._scopes import FIRST_NAMES, NAMES, Scope, flat

_ARRAYS = ("q", "kv_cache", "block_table", "seqlens", "sinks", "mask")
# Graphs that were exported pass these by place. What is not here comes after them.
_IN_PLACE = ("causal", "d_v", "rescale", "backend", "threads", "lse_base", "out_dtype", "isa")
_OPTIONS = {name: (DECODE[name].operator, DECODE[name].default) for name in (*_IN_PLACE, *DECODE)}
_OPTIONS["out_dtype"] = (torch.dtype | None, None)


def _parameters() -> Iterator[inspect.Parameter]:
    def parameter(name: str, kind: Any, *default: Any) -> inspect.Parameter:
        value = default[0] if default else inspect.Parameter.empty
        return inspect.Parameter(name, _ANY_WAY, annotation=kind, default=value)

    for name in _ARRAYS:
        yield parameter(name, torch.Tensor if name in ("q", "kv_cache") else torch.Tensor | None)
    yield parameter("scale", float)
    for name, (kind, default) in _OPTIONS.items():
        yield parameter(name, kind, default)
    for name in NAMES:
        yield parameter(name, torch.Tensor | None, None)
    yield parameter("max_logits", bool, False)


_ANY_WAY = inspect.Parameter.POSITIONAL_OR_KEYWORD
_PARAMETERS = {p.name: p for p in _parameters()}
_DEFAULTS = {n: p.default for n, p in _PARAMETERS.items() if p.default is not p.empty}


def _bind(values: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    return {**_DEFAULTS, **dict(zip(_PARAMETERS, values)), **named}


def _decode(*values: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See amla.decode. max_logits are the third result, empty unless asked for."""
    options = _bind(values, named)
    want = options.pop("max_logits")
    arrays = {name: options.pop(name) for name in _ARRAYS}
    more = {name: options.pop(name) for name in NAMES}
    a = Arguments(**arrays, max_logits=want, more=more)
    out, lse, *rest = find_call(a, options_of(**options)).run(a)
    return out, lse, rest[0] if want else lse.new_empty((0,))


_RESULTS = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_SIGNATURE = inspect.Signature(list(_PARAMETERS.values()), return_annotation=_RESULTS)
_decode.__signature__ = _SIGNATURE  # type: ignore[attr-defined]
decode_op = torch.library.custom_op("amla::decode", _decode, mutates_args=())


@decode_op.register_fake
def _(*values: Any, **named: Any) -> Any:
    a = _bind(values, named)
    *lead, h_q, _ = a["q"].shape
    rows = (lead[0], h_q, *lead[1:])
    out = a["q"].new_empty((*lead, h_q, a["d_v"]), dtype=a["out_dtype"] or a["q"].dtype)
    lse = a["q"].new_empty(rows, dtype=torch.float32)
    return out, lse, lse.new_empty(rows if a["max_logits"] else (0,))


def call(
    q: Any,
    kv_cache: Any,
    block_table: Any,
    seqlens: Any,
    *,
    scale: float,
    sinks: Any = None,
    mask: Any = None,
    out: Any = None,
    lse: Any = None,
    max_logits: Any = False,
    extra: Scope | None = None,
    options: dict[str, Any],
    **others: Any,
) -> tuple[Any, ...]:
    """The operator with `decode`'s arguments. ValueError for what a graph cannot hold."""
    if out is not None or lse is not None or not isinstance(max_logits, bool):
        raise ValueError(
            "out, lse, max_logits: must be None inside torch.compile, or max_logits True: the "
            "operator returns new tensors"
        )
    arrays = dict(
        q=q, kv_cache=kv_cache, block_table=block_table, seqlens=seqlens, sinks=sinks, mask=mask
    )
    more = flat(extra, **{name: others.pop(name, None) for name in FIRST_NAMES})
    given = {**arrays, **more}
    if not all(x is None or is_torch(x) for x in given.values()):
        raise ValueError("inside torch.compile all arrays must be torch tensors")
    for name, x in given.items():
        if x is not None and x.is_nested:
            refuse_unplain(name, x)
    refuse_gradients(q=q, kv_cache=kv_cache, sinks=sinks, mask=mask, **more)
    options = {**DEFAULTS, **options}
    options["lse_base"] = str(options["lse_base"])
    options["out_dtype"] = _torch_dtype(options["out_dtype"], q.dtype)
    for name in ("kv_scale", "kv_rope_scale"):
        options[name] = checked_number(name, options[name])
    scale = checked_number("scale", scale)
    results = torch.ops.amla.decode(**arrays, scale=scale, **options, **more, max_logits=max_logits)
    return tuple(results if max_logits else results[:2])


# ---- Other functions ----


def _cache_write(
    latent: torch.Tensor,
    rope: torch.Tensor | None,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_rope: torch.Tensor | None,
    kv_type: str | None = None,
    kv_scale: float = 1.0,
    kv_rope_scale: float = 1.0,
    any_scale: bool = False,
    threads: int = 0,
    isa: str = "auto",
) -> None:
    """See amla.cache_write."""
    _cache_write_module.cache_write(**locals())


cache_write_op = torch.library.custom_op(
    "amla::cache_write", _cache_write, mutates_args=("kv_cache", "kv_rope")
)


@cache_write_op.register_fake
def _(*values: Any, **named: Any) -> None:
    return None


def _index_topk(
    q: torch.Tensor,
    weights: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor | None,
    seqlens: torch.Tensor | None,
    visible: torch.Tensor | None = None,
    q_scales: torch.Tensor | None = None,
    topk: int = 2048,
    keys: str | None = None,
    causal: bool = False,
    index_kind: str = "slot",
    scores: bool = False,
    threads: int = 0,
    isa: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """See amla.index_topk. Scores are empty unless asked for."""
    found = _index_topk_module.index_topk(**locals())
    return found if scores else (found, q.new_empty((0,), dtype=torch.float32))


index_topk_op = torch.library.custom_op("amla::index_topk", _index_topk, mutates_args=())


@index_topk_op.register_fake
def _(
    q: Any,
    weights: Any,
    k_cache: Any,
    block_table: Any,
    seqlens: Any,
    visible: Any = None,
    q_scales: Any = None,
    topk: Any = 2048,
    keys: Any = None,
    causal: Any = False,
    index_kind: Any = "slot",
    scores: Any = False,
    threads: Any = 0,
    isa: Any = "auto",
) -> Any:
    b, s_q = q.shape[:2]
    sk = k_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    found = q.new_empty((b, s_q, sk) if scores else (0,), dtype=torch.float32)
    return q.new_empty((b, s_q, topk), dtype=torch.int32), found


def _merge_parts(
    o: torch.Tensor,
    lse: torch.Tensor,
    sinks: torch.Tensor | None,
    lse_base: str,
    empty: str,
    lse_sink: bool,
    out_dtype: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See amla.merge_parts."""
    out, merged = _merge_module.merge_parts(**locals())
    return out, merged.contiguous()


merge_parts_op = torch.library.custom_op("amla::merge_parts", _merge_parts, mutates_args=())


@merge_parts_op.register_fake
def _(
    o: Any, lse: Any, sinks: Any, lse_base: Any, empty: Any, lse_sink: Any, out_dtype: Any
) -> Any:
    out = o.new_empty(o.shape[1:], dtype=getattr(torch, out_dtype))
    return out, lse.new_empty(lse.shape[1:])


def _torch_dtype(dtype: Any, default: torch.dtype) -> Any:
    if dtype is None:
        return default
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype
