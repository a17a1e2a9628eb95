# SPDX-License-Identifier: Apache-2.0
"""Random-weight models of transformers with the attention sizes of the published DeepSeek and GLM
configs, and little else."""

import inspect

import torch
import transformers
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
)

from mla_classes import TINY, YARN

CACHE = (
    "cache"
    if "cache" in inspect.signature(DeepseekV3ForCausalLM.forward).parameters
    else "past_key_values"
)  # the latter up to 5.23
SMALL = dict(
    TINY,
    vocab_size=4000,
    hidden_size=256,
    intermediate_size=512,
    moe_intermediate_size=128,
    q_lora_rank=256,
    n_routed_experts=8,
    first_k_dense_replace=1,
    max_position_embeddings=163840,
    initializer_range=0.05,
)
LITE = dict(YARN, mscale=0.707, mscale_all_dim=0.707)
GLM = dict(qk_nope_head_dim=192, v_head_dim=256)


def heads(n, **sizes):
    return dict(num_attention_heads=n, num_key_value_heads=n, **sizes)


def indexer(n):
    return dict(index_n_heads=n, index_head_dim=128, index_topk=24)


SIZES = {
    "v3": heads(128, n_group=2, rope_parameters=YARN),
    "v2-lite": heads(16, q_lora_rank=None, rope_parameters=LITE),
    "glm": heads(20, **GLM),
    "v32": heads(128, n_group=2, rope_parameters=YARN, **indexer(64)),
    "glm-dsa": heads(64, indexer_types=["full", "shared"], **GLM, **indexer(32)),
}
# Those that a release may lack, and how its classes are called.
CLASSES = {"glm": "Glm4MoeLite", "v32": "DeepseekV32", "glm-dsa": "GlmMoeDsa"}
SPARSE = [name for name in ("v32", "glm-dsa") if hasattr(transformers, f"{CLASSES[name]}Config")]


def make(name, dtype=torch.float32, attention="sdpa", seed=0, **changes):
    """ "v3" (DeepSeek-V3: 128 heads), "v2-lite" (16 heads, no query rank), "glm" (GLM-4.7-Flash: 20
    heads), "v32" (DeepSeek-V3.2: 128 heads and an indexer of 64), "glm-dsa" (GLM-5: 64 heads, an
    indexer of 32 in the first layer, whose lists the second one takes)."""
    config_class, model_class = DeepseekV3Config, DeepseekV3ForCausalLM
    if name == "v2-lite":
        config_class, model_class = DeepseekV2Config, DeepseekV2ForCausalLM
    if name in CLASSES:
        config_class, model_class = (
            getattr(transformers, CLASSES[name] + what) for what in ("Config", "ForCausalLM")
        )
    torch.manual_seed(seed)
    config = config_class(**{**SMALL, **SIZES[name], **changes}, attn_implementation=attention)
    return model_class(config).to(dtype).eval()
