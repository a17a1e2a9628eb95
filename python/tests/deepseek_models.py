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

CACHE = (
    "cache"
    if "cache" in inspect.signature(DeepseekV3ForCausalLM.forward).parameters
    else "past_key_values"
)  # the latter up to 5.23
YARN = dict(
    rope_type="yarn",
    rope_theta=10000.0,
    factor=40.0,
    original_max_position_embeddings=4096,
    beta_fast=32.0,
    beta_slow=1.0,
)
SMALL = dict(
    num_hidden_layers=2,
    vocab_size=4000,
    intermediate_size=512,
    moe_intermediate_size=128,
    n_routed_experts=8,
    first_k_dense_replace=1,
    num_experts_per_tok=2,
    n_shared_experts=1,
    max_position_embeddings=163840,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
    initializer_range=0.05,
)
SIZES = {
    "v3": dict(
        hidden_size=256,
        num_attention_heads=128,
        num_key_value_heads=128,
        q_lora_rank=256,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_group=2,
        topk_group=1,
        rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0),
    ),
    "v2-lite": dict(
        hidden_size=256,
        num_attention_heads=16,
        num_key_value_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_group=1,
        topk_group=1,
        rope_parameters=dict(YARN, mscale=0.707, mscale_all_dim=0.707),
    ),
    "glm": dict(
        hidden_size=256,
        num_attention_heads=20,
        num_key_value_heads=20,
        q_lora_rank=256,
        kv_lora_rank=512,
        qk_nope_head_dim=192,
        qk_rope_head_dim=64,
        v_head_dim=256,
        n_group=1,
        topk_group=1,
    ),
    "v32": dict(
        hidden_size=256,
        num_attention_heads=128,
        num_key_value_heads=128,
        q_lora_rank=256,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_group=2,
        topk_group=1,
        index_n_heads=64,
        index_head_dim=128,
        index_topk=24,
        rope_parameters=dict(YARN, mscale=1.0, mscale_all_dim=1.0),
    ),
    "glm-dsa": dict(
        hidden_size=256,
        num_attention_heads=64,
        num_key_value_heads=64,
        q_lora_rank=256,
        kv_lora_rank=512,
        qk_nope_head_dim=192,
        qk_rope_head_dim=64,
        v_head_dim=256,
        n_group=1,
        topk_group=1,
        index_n_heads=32,
        index_head_dim=128,
        index_topk=24,
        indexer_types=["full", "shared"],
    ),
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
