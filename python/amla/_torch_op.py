# SPDX-License-Identifier: Apache-2.0
"""amla.decode as the torch operator amla::decode, with a fake kernel: for torch.compile,
torch.export and FakeTensorMode.

Eager calls of `amla.decode` do not come through here: torch's dispatcher costs more than all the
rest of a call.
"""

from __future__ import annotations

from typing import Any

import torch

from ._arrays import is_torch, refuse_gradients, refuse_unplain
from ._library import checked_number
from ._plan import find_call
from ._problem import OPTION_DEFAULTS, Arguments, options_of


@torch.library.custom_op("amla::decode", mutates_args=())
def decode_op(
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """See amla.decode."""
    a = Arguments(q, kv_cache, block_table, seqlens, sinks=sinks, mask=mask)
    options = options_of(
        scale=scale,
        causal=causal,
        d_v=d_v,
        rescale=rescale,
        backend=backend,
        threads=threads,
        lse_base=lse_base,
        isa=isa,
        split_tokens=split_tokens,
        out_dtype=out_dtype,
    )
    return find_call(a, options).run(a)


@decode_op.register_fake
def _(
    q: Any,
    kv_cache: Any,
    block_table: Any,
    seqlens: Any,
    sinks: Any,
    mask: Any,
    scale: Any,
    causal: Any,
    d_v: Any,
    rescale: Any,
    backend: Any,
    threads: Any,
    lse_base: Any,
    out_dtype: Any,
    isa: Any,
    split_tokens: Any,
) -> Any:
    b, s_q, h_q, _ = q.shape
    out = q.new_empty((b, s_q, h_q, d_v), dtype=out_dtype)
    return out, q.new_empty((b, h_q, s_q), dtype=torch.float32)


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
