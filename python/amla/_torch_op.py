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
    p_form: str,
    q_form: str,
    kv_round: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See amla.decode."""
    options = dict(locals())
    a = Arguments(*(options.pop(name) for name in _ARRAYS))
    return find_call(a, options_of(**options)).run(a)


decode_op = torch.library.custom_op("amla::decode", _decode, mutates_args=())
_ARRAYS = ("q", "kv_cache", "block_table", "seqlens", "sinks", "mask")
_ARGUMENTS = tuple(inspect.signature(_decode).parameters)


@decode_op.register_fake
def _(*values: Any) -> Any:
    a = dict(zip(_ARGUMENTS, values))
    b, s_q, h_q, _ = a["q"].shape
    out = a["q"].new_empty((b, s_q, h_q, a["d_v"]), dtype=a["out_dtype"])
    return out, a["q"].new_empty((b, h_q, s_q), dtype=torch.float32)


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
    **options: Any,
) -> tuple[Any, Any]:
    """The operator with `decode`'s arguments. ValueError for what a graph cannot hold."""
    if out is not None or lse is not None:
        raise ValueError(
            "out, lse: must be None inside torch.compile, the operator returns new tensors"
        )
    arrays = dict(
        q=q, kv_cache=kv_cache, block_table=block_table, seqlens=seqlens, sinks=sinks, mask=mask
    )
    if not all(x is None or is_torch(x) for x in arrays.values()):
        raise ValueError("inside torch.compile all arrays must be torch tensors")
    for name, x in arrays.items():
        if x is not None and x.is_nested:
            refuse_unplain(name, x)
    refuse_gradients(q=q, kv_cache=kv_cache, sinks=sinks, mask=mask)
    options = {**OPTION_DEFAULTS, **options}
    options["lse_base"] = str(options["lse_base"])
    options["out_dtype"] = _torch_dtype(options["out_dtype"], q.dtype)
    return torch.ops.amla.decode(**arrays, scale=checked_number("scale", scale), **options)


def _torch_dtype(dtype: Any, default: torch.dtype) -> Any:
    if dtype is None:
        return default
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype
