# SPDX-License-Identifier: Apache-2.0
"""amla.decode as the torch operator amla::decode, with a fake kernel: for torch.compile, torch.export and FakeTensorMode.

Eager calls of `amla.decode` do not come through here: torch's dispatcher costs more than all the rest of a call.
"""
from __future__ import annotations

from typing import Any

import torch

from . import _decode
from . import _library as c
from ._arrays import is_torch, refuse_unplain

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@torch.library.custom_op("amla::decode", mutates_args=())
def decode_op(q: torch.Tensor, kv_cache: torch.Tensor, block_table: torch.Tensor | None, seqlens: torch.Tensor | None,
              sinks: torch.Tensor | None, mask: torch.Tensor | None, scale: float, causal: bool, d_v: int, rescale: str, backend: str,
              threads: int, lse_base: str, out_dtype: torch.dtype, isa: str, split_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See amla.decode."""
    a = _decode._Arguments(q, kv_cache, block_table, seqlens, sinks, mask, None, None)
    return _decode.find_call(a, scale, (causal, d_v, rescale, backend, threads, lse_base, isa, split_tokens, out_dtype)).run(a)


@decode_op.register_fake
def _(q: Any, kv_cache: Any, block_table: Any, seqlens: Any, sinks: Any, mask: Any, scale: Any, causal: Any, d_v: Any, rescale: Any,
      backend: Any, threads: Any, lse_base: Any, out_dtype: Any, isa: Any, split_tokens: Any) -> Any:
    b, s_q, h_q, _ = q.shape
    return q.new_empty((b, s_q, h_q, d_v), dtype=out_dtype), q.new_empty((b, h_q, s_q), dtype=torch.float32)


def call(q: Any, kv_cache: Any, block_table: Any, seqlens: Any, sinks: Any, mask: Any, out: Any, lse: Any, scale: float, causal: bool, d_v: int,
         rescale: str, backend: str, threads: int, lse_base: str | int, out_dtype: Any, isa: str, split_tokens: int) -> tuple[Any, Any]:
    """The operator with `decode`'s arguments. ValueError for what a graph cannot hold."""
    if out is not None or lse is not None:
        raise ValueError("out, lse: must be None inside torch.compile, the operator returns new tensors")
    if not all(x is None or is_torch(x) for x in (q, kv_cache, block_table, seqlens, sinks, mask)):
        raise ValueError("inside torch.compile all arrays must be torch tensors")
    for name, x in (("q", q), ("kv_cache", kv_cache), ("block_table", block_table), ("seqlens", seqlens), ("sinks", sinks), ("mask", mask)):
        if x is not None and x.is_nested:
            refuse_unplain(name, x)
    _decode.refuse_gradients(q=q, kv_cache=kv_cache, sinks=sinks, mask=mask)
    dtype = q.dtype if out_dtype is None else getattr(torch, out_dtype) if isinstance(out_dtype, str) else out_dtype
    return torch.ops.amla.decode(q, kv_cache, block_table, seqlens, sinks, mask, c.checked_number("scale", scale), causal, d_v, rescale, backend, threads,
                                 str(lse_base), dtype, isa, split_tokens)
