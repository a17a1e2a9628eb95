# SPDX-License-Identifier: Apache-2.0
"""amla.decode as the torch operator amla::decode, with a fake kernel: for torch.compile,
torch.export and FakeTensorMode.

Eager calls of `amla.decode` do not come through here: torch's dispatcher costs more than all the
rest of a call.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

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


def _torch_dtype(dtype: Any, default: torch.dtype) -> Any:
    if dtype is None:
        return default
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype
