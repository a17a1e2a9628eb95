# SPDX-License-Identifier: Apache-2.0
"""Attention decoding for Multi-head Latent Attention models, from Python.

    out, lse = amla.decode(q, kv_cache, block_table, seqlens, scale=192**-0.5, causal=True)

Everything here works on NumPy arrays, torch tensors and whatever speaks DLPack.
`amla.flash_mla` has FlashMLA's interface, `amla.flashinfer` FlashInfer's, `amla.transformers` makes
Hugging Face's DeepSeek models decode through this library. docs/python.md tells more.
"""

from __future__ import annotations

import sys as _sys

from . import _arrays, _library
from ._bench import BenchResult, bench
from ._cache_write import cache_write
from ._decode import decode
from ._index_topk import index_topk
from ._library import Cancelled
from ._merge import merge, merge_parts
from ._plan import Plan
from ._scopes import Scope

__version__ = _library.version
__all__ = [
    "BenchResult",
    "Cancelled",
    "Plan",
    "Scope",
    "backends",
    "bench",
    "cache_write",
    "decode",
    "index_topk",
    "merge",
    "merge_parts",
]


def backends() -> dict[str, str]:
    """What this machine offers: backend name -> its instruction set, "available", or "absent: " and
    the reason."""
    found = {}
    for name in list(_library.BACKENDS)[1:]:  # without "auto"
        info = _library.backend_info(name)
        found[name] = (
            (info.isa.decode() or "available")
            if info.available
            else f"absent: {info.reason.decode()}"
        )
    return found


def _register_operators() -> None:
    from . import _torch_op as _torch_op  # Dynamo traces this, and no importlib


_arrays.register_operators = _register_operators
if "torch" in _sys.modules:  # so that torch.ops.amla.decode is there without a first call
    _register_operators()
