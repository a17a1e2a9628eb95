# SPDX-License-Identifier: Apache-2.0
"""amla.decode as the torch operator amla::decode, and its siblings, with fake kernels: for
torch.compile, torch.export and FakeTensorMode.

Eager calls of `amla.decode` do not come through here: torch's dispatcher costs more than all the
rest of a call.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from . import _cache_write as _cache_write_module
from . import _index_topk as _index_topk_module
from . import _merge as _merge_module
from ._arrays import is_torch, refuse_gradients, refuse_unplain
from ._library import checked_number
from ._plan import find_call
from ._problem import OPTION_DEFAULTS, Arguments, options_of
from ._scopes import FIRST_NAMES, NAMES, Scope, flat


def _decode(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor | None,
    seqlens: torch.Tensor | None,
    sinks: torch.Tensor | None,
    mask: torch.Tensor | None,
    scale: float,
    causal: bool,
    d_v: int,
    rescale: str,
    backend: str,
    threads: int,
    lse_base: str,
    out_dtype: torch.dtype,
    isa: str,
    split_tokens: int,
    p_form: str = "default",
    q_form: str = "default",
    kv_round: str = "exact",
    index_kind: str = "slot",
    window: int = 0,
    lse_sink: bool = False,
    kv_type: str | None = None,
    kv_scale: float = 1.0,
    kv_rope_scale: float = 1.0,
    indices: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
    visible: torch.Tensor | None = None,
    q_rope: torch.Tensor | None = None,
    kv_rope: torch.Tensor | None = None,
    q_indptr: torch.Tensor | None = None,
    kv_indptr: torch.Tensor | None = None,
    kv_indices: torch.Tensor | None = None,
    extra_kv_cache: torch.Tensor | None = None,
    extra_block_table: torch.Tensor | None = None,
    extra_seqlens: torch.Tensor | None = None,
    extra_indices: torch.Tensor | None = None,
    extra_topk_length: torch.Tensor | None = None,
    extra_visible: torch.Tensor | None = None,
    max_logits: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See amla.decode. max_logits are the third result, empty unless asked for."""
    options = dict(locals())
    want = options.pop("max_logits")
    arrays = {name: options.pop(name) for name in _ARRAYS}
    more = {name: options.pop(name) for name in NAMES}
    a = Arguments(**arrays, max_logits=want, more=more)
    out, lse, *rest = find_call(a, options_of(**options)).run(a)
    return out, lse, rest[0] if want else lse.new_empty((0,))


decode_op = torch.library.custom_op("amla::decode", _decode, mutates_args=())
_ARRAYS = ("q", "kv_cache", "block_table", "seqlens", "sinks", "mask")
_PARAMETERS = inspect.signature(_decode).parameters
_DEFAULTS = {n: p.default for n, p in _PARAMETERS.items() if p.default is not p.empty}


@decode_op.register_fake
def _(*values: Any, **named: Any) -> Any:
    a = {**_DEFAULTS, **dict(zip(_PARAMETERS, values)), **named}
    *lead, h_q, _ = a["q"].shape
    rows = (lead[0], h_q, *lead[1:])
    out = a["q"].new_empty((*lead, h_q, a["d_v"]), dtype=a["out_dtype"])
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
    options = {**OPTION_DEFAULTS, **others}
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
