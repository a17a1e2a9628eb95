# SPDX-License-Identifier: Apache-2.0
"""Random-weight models of every class of transformers that caches latent rows and expands them: the
head sizes of the published configs, 4 heads, 2 layers or 4, and little else."""

import torch
import transformers

TINY = dict(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=64,
    moe_intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    q_lora_rank=48,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_shared_experts=1,
    n_group=1,
    topk_group=1,
    max_position_embeddings=8192,
    initializer_range=0.2,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)
YARN = dict(
    rope_type="yarn",
    rope_theta=10000.0,
    factor=40.0,
    original_max_position_embeddings=4096,
    beta_fast=32.0,
    beta_slow=1.0,
    mscale=1.0,
    mscale_all_dim=1.0,
)
INDEXER = dict(index_n_heads=8, index_head_dim=128, index_topk=16)
HYBRID = dict(
    num_local_experts=4,
    layer_types=["linear_attention", "full_attention"],
    mlp_layer_types=["dense", "dense"],
    linear_head_dim=16,
    linear_num_heads=4,
)
SIZES = {
    "DeepseekV2": dict(q_lora_rank=None, rope_parameters=dict(YARN, mscale=0.707)),
    "DeepseekV3": dict(rope_parameters=YARN),
    "Glm4MoeLite": dict(qk_nope_head_dim=192, v_head_dim=256),
    "Mistral4": dict(qk_nope_head_dim=64, kv_lora_rank=256),
    "LongcatFlash": dict(
        num_layers=1,
        num_hidden_layers=2,
        ffn_hidden_size=64,
        expert_ffn_hidden_size=32,
        moe_topk=2,
        zero_expert_num=2,
    ),
    "Youtu": dict(embedding_initializer_range=0.5),
    "MiniCPM3": dict(qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64, kv_lora_rank=256),
    "AXK1": dict(rope_parameters=YARN),
    "KimiLinear": dict(HYBRID, q_lora_rank=None),
    "BailingHybrid": dict(HYBRID, head_dim=16),
    "DeepseekV32": dict(INDEXER, rope_parameters=YARN),
    "GlmMoeDsa": dict(INDEXER, qk_nope_head_dim=192, v_head_dim=256),
    "AXK2": dict(INDEXER, rope_parameters=YARN),
    "Dots3Note": dict(
        INDEXER,
        layer_types=["indexed_attention", "sliding_attention"],
        sliding_window=8,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=4,
    ),
    "Glm5Next": dict(
        HYBRID,
        **INDEXER,
        index_kpool=4,
        qk_nope_head_dim=256,
        qk_rope_head_dim=0,
        v_head_dim=256,
    ),
    "MistralLarge4": dict(  # layers of a kind, with rope or without, share the first one's rows
        INDEXER,
        num_hidden_layers=4,
        qk_nope_head_dim=64,
        no_rope_layers=[1, 0, 1, 0],
        kv_source_layers=[0, 1, 0, 1],
        indexer_types=["full", "full", "full", "shared"],
    ),
}
SINKS = dict(INDEXER, attn_implementation="eager")
REFUSED = {  # and why
    "HYV4": (SINKS, "HYV4Attention has attention sinks"),
    "HYV4VL": (SINKS, "HYV4VLAttention has attention sinks"),
}
WITH_IMAGES = "ForConditionalGeneration"
VISION = dict(  # of models that have images too, and are shown none
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    out_hidden_size=TINY["hidden_size"],
    projection_intermediate_size=32,
    max_image_size=64,
)


def make(name, dtype=torch.float32, **changes):
    """The model NAMEForCausalLM, or NAMEForConditionalGeneration where that is all; None if this
    release of transformers has none."""
    found = [getattr(transformers, name + what, None) for what in ("ForCausalLM", WITH_IMAGES)]
    if found == [None, None]:
        return None
    torch.manual_seed(0)
    sizes = {**TINY, **SIZES.get(name, {}), "attn_implementation": "sdpa", **changes}
    if found[0] is None:
        own = sizes["attn_implementation"]
        sizes = dict(text_config=sizes, vision_config=VISION, attn_implementation=own)
    kind = found[0] or found[1]
    return kind(kind.config_class(**sizes)).to(dtype).eval()
