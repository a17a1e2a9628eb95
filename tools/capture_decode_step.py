#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Capture a decode step of Hugging Face transformers' own DeepSeek attention as safetensors for
`amla run`.

Why: a file whose numbers come from a model's code, not from ours, shows that shapes, RoPE layout,
scale and causal alignment mean the same thing on both sides. Sizes, norms, YaRN RoPE and the code
that runs are the model's; the weights are random, made from a config and a seed, so nothing is
downloaded and nothing here speaks about a trained model.

How: the attention module prefills a context and decodes one step in fp32 through its own forward
and its own cache. The cache holds the latent rows [kv_a_layernorm(c) | k_rope]; an attention
function registered with transformers sees the queries after RoPE. W_UK (the key half of kv_b_proj)
is absorbed into the queries, all is rounded to bf16 and the rows are scattered over shuffled pages.
`out_ref` and `lse_ref` are then computed in NumPy fp64 from the rounded tensors alone, and finally
taken through W_UV and o_proj and compared with what the module itself returned. The script fails if
they disagree.

    pip install torch==2.13.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6
    python tools/capture_decode_step.py     both files into examples/; 20 s on one core, 3 GB of
                                            memory

Another CPU may sum in another order, which can turn a bf16 rounding here and there; the seed fixes
all else.
"""

import json
import math
import pathlib
import sys

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save
from transformers import AttentionInterface, DeepseekV2Config, DeepseekV3Config, DynamicCache
from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2
from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

SEED = 20250922
PAGE_SIZE = 64  # tokens
SPARE_PAGES = 2  # pages of the cache that no sequence uses, all NaN
UNUSED_ENTRY = (
    2147480000  # block table entry past the sequence's end, FlashMLA's tests use the same
)
EXACT_LIMIT = (
    1e-5  # relative Frobenius error: the module (fp32) against the absorbed form in fp64, unrounded
)
BF16_LIMIT = 1e-2  # the same after rounding q and the cache to bf16


def yarn(mscale):
    """RoPE of the published DeepSeek configs; the score scale becomes 192^-0.5 * (0.1 * mscale * ln
    40 + 1)^2."""
    return dict(
        rope_type="yarn",
        rope_theta=10000.0,
        factor=40.0,
        original_max_position_embeddings=4096,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=mscale,
        mscale_all_dim=mscale,
    )


# Sizes are those of the published config.json files. q_gain: see randomize().
STEPS = [
    dict(
        file="deepseek_v3_decode.safetensors",
        model="DeepSeek-V3 (DeepseekV3Attention)",
        s_q=1,
        s_k=1009,
        causal=False,
        q_gain=1.2,
        attention=v3.DeepseekV3Attention,
        rotary=v3.DeepseekV3RotaryEmbedding,
        eager=v3.eager_attention_forward,
        config=DeepseekV3Config(
            hidden_size=7168,
            num_attention_heads=128,
            num_key_value_heads=128,
            q_lora_rank=1536,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            max_position_embeddings=163840,
            rope_parameters=yarn(1.0),
            rope_interleave=True,
        ),
    ),
    dict(
        file="deepseek_v2_lite_decode.safetensors",
        model="DeepSeek-V2-Lite (DeepseekV2Attention)",
        s_q=2,
        s_k=997,
        causal=True,
        q_gain=2.0,
        attention=v2.DeepseekV2Attention,
        rotary=v2.DeepseekV2RotaryEmbedding,
        eager=v2.eager_attention_forward,
        config=DeepseekV2Config(
            hidden_size=2048,
            num_attention_heads=16,
            num_key_value_heads=16,
            q_lora_rank=None,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
            max_position_embeddings=163840,
            rope_parameters=yarn(0.707),
        ),
    ),
]


def randomize(attn, q_gain):
    """Projections ~ N(0, 0.02^2), the models' initializer; norm weights log-normal, so that
    channels differ in size. The last query projection is multiplied, head by head, by q_gain times
    1/2 ... 2: diffuse heads first, peaked heads last."""
    for name, weight in attn.named_parameters():
        if "layernorm" in name:
            weight.copy_(torch.randn_like(weight).mul(0.3).exp())
        else:
            weight.normal_(std=0.02)
    head_gain = q_gain * torch.logspace(-1, 1, attn.num_heads, base=2.0)
    q_weight = (getattr(attn, "q_proj", None) or attn.q_b_proj).weight
    q_weight.view(attn.num_heads, -1, q_weight.shape[1]).mul_(head_gain[:, None, None])


def random_hidden(n_tokens, hidden_size):
    """[1][n_tokens][hidden_size] of unit RMS, as after the layer's input norm; neighbours correlate
    by 0.7, so scores do too."""
    hidden = torch.randn(1, n_tokens, hidden_size)
    for t in range(1, n_tokens):
        hidden[:, t] = 0.7 * hidden[:, t - 1] + math.sqrt(1 - 0.7**2) * hidden[:, t]
    return hidden * hidden.pow(2).mean(-1, keepdim=True).rsqrt()


def run_module(step):
    """The module's own prefill and decode step. Returns it, q [s_q][h_q][192] after RoPE, rows
    [s_k][576] and what it returned: output [s_q][hidden] and softmax weights [h_q][s_q][s_k]. All
    fp32."""
    config, seen = step["config"], {}

    def watch(module, query, *args, **kwargs):
        seen["q"] = query
        return step["eager"](module, query, *args, **kwargs)

    AttentionInterface.register("watch", watch)
    config._attn_implementation = "watch"
    attn, rotary, cache = (
        step["attention"](config, layer_idx=0).eval(),
        step["rotary"](config),
        DynamicCache(),
    )
    randomize(attn, step["q_gain"])
    hidden = random_hidden(step["s_k"], config.hidden_size)
    context = step["s_k"] - step["s_q"]
    for begin, end in ((0, context), (context, step["s_k"])):
        position = torch.arange(begin, end)[None]
        mask = torch.full((1, 1, end - begin, end), -math.inf).triu(begin + 1)
        output, weights = attn(
            hidden_states=hidden[:, begin:end],
            position_embeddings=rotary(hidden, position),
            attention_mask=mask,
            past_key_values=cache,
        )
    latent, k_rope = cache.layers[0].keys, cache.layers[0].values
    assert latent.shape[1:] == (1, step["s_k"], 512), (
        "this transformers release caches expanded keys, not latent rows"
    )
    return (
        attn,
        seen["q"][0].transpose(0, 1),
        torch.cat((latent, k_rope), -1)[0, 0],
        output[0],
        weights[0],
    )


def split_kv_b(attn):
    """W_UK and W_UV, each [h_q][128][512], fp64."""
    w = attn.kv_b_proj.weight.double().view(attn.num_heads, -1, attn.kv_lora_rank)
    return w.split((attn.qk_nope_head_dim, attn.v_head_dim), dim=1)


def to_pages(rows, unused=math.nan):
    """rows [s_k][576] bf16 -> kv_cache [pages][64][576] with NaN in every unused slot, block_table
    [1][max_pages]. Of records [s_k][bytes] the same."""
    used = math.ceil(len(rows) / PAGE_SIZE)
    order = torch.randperm(used + SPARE_PAGES)[:used]
    filled = torch.full((used * PAGE_SIZE, rows.shape[1]), unused, dtype=rows.dtype)
    filled[: len(rows)] = rows
    cache = torch.full((used + SPARE_PAGES, PAGE_SIZE, rows.shape[1]), unused, dtype=rows.dtype)
    cache[order] = filled.view(used, PAGE_SIZE, -1)
    return cache, torch.cat((order, torch.tensor([UNUSED_ENTRY])))[None].int()


def attend_f64(q, rows, scale, causal, d_v):
    """q [s_q][h_q][576], rows [s_k][576], NumPy fp64 -> out [s_q][h_q][d_v], lse [h_q][s_q]
    (natural log), scores."""
    (s_q, _, _), s_k = q.shape, len(rows)
    s = scale * np.einsum("ihd,jd->hij", q, rows)
    if causal:  # bottom-right aligned: query i sees s_k - s_q + i + 1 keys
        s[:, np.arange(s_k) > np.arange(s_k - s_q, s_k)[:, None]] = -np.inf
    top = s.max(-1, keepdims=True)
    lse = top + np.log(np.exp(s - top).sum(-1, keepdims=True))
    return np.einsum("hij,jd->ihd", np.exp(s - lse), rows[:, :d_v]), lse[..., 0], s


def write_file(path, tensors, metadata):
    """save() orders the metadata at random: sort it, in place, so that a rerun gives the same
    bytes."""
    data = save({name: t.contiguous() for name, t in tensors.items()}, metadata=metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    path.write_bytes(
        data[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(end - 8) + data[end:]
    )


def rel_error(got, want):
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def capture(step, path):
    torch.manual_seed(SEED)
    attn, q_full, rows, module_out, module_weights = run_module(step)
    w_uk, w_uv = split_kv_b(attn)
    q_nope, q_rope = q_full.double().split((attn.qk_nope_head_dim, attn.qk_rope_head_dim), -1)
    q = torch.cat((torch.einsum("ihn,hnc->ihc", q_nope, w_uk), q_rope), -1)  # [s_q][h_q][576] fp64
    q_bf16, rows_bf16 = q.bfloat16(), rows.bfloat16()

    out, lse, scores = attend_f64(
        q_bf16.double().numpy(), rows_bf16.double().numpy(), attn.scaling, step["causal"], 512
    )
    kv_cache, block_table = to_pages(rows_bf16)
    tensors = dict(
        q=q_bf16[None],
        kv_cache=kv_cache,
        block_table=block_table,
        seqlens_k=torch.tensor([step["s_k"]], dtype=torch.int32),
        out_ref=torch.from_numpy(out)[None].float(),
        lse_ref=torch.from_numpy(lse)[None].float(),
    )
    source = (
        f"one decode step of {step['model']}, random weights, transformers "
        f"{transformers.__version__}, "
        f"torch {torch.__version__.split('+')[0]}, seed {SEED}; references: NumPy fp64 from the "
        "bf16 tensors"
    )
    write_file(
        path,
        tensors,
        dict(
            scale=repr(float(attn.scaling)),
            causal=str(int(step["causal"])),
            d_v="512",
            source=source,
        ),
    )

    def to_hidden(latent_out):
        heads = torch.einsum("ihc,hvc->ihv", torch.as_tensor(latent_out, dtype=torch.float64), w_uv)
        return (heads.flatten(1) @ attn.o_proj.weight.double().T).numpy()

    with safe_open(path, "pt") as f:  # from the file, so that what was written is what is checked
        out_file, lse_file = f.get_tensor("out_ref")[0], f.get_tensor("lse_ref")[0].numpy()
    out_exact, lse_exact, scores_exact = attend_f64(
        q.numpy(), rows.double().numpy(), attn.scaling, step["causal"], 512
    )
    probs_exact, probs_file = (
        np.exp(s - lse[..., None]) for s, lse in ((scores_exact, lse_exact), (scores, lse_file))
    )
    errors = [
        ("output, fp64 absorbed", rel_error(to_hidden(out_exact), module_out.numpy()), EXACT_LIMIT),
        ("softmax, fp64 absorbed", rel_error(probs_exact, module_weights.numpy()), EXACT_LIMIT),
        (
            "output, out_ref of the file",
            rel_error(to_hidden(out_file), module_out.numpy()),
            BF16_LIMIT,
        ),
        ("softmax, lse_ref of the file", rel_error(probs_file, module_weights.numpy()), BF16_LIMIT),
    ]

    head_std = np.ma.masked_invalid(scores).std(-1)
    keys_seen = np.exp(
        (probs_file * (lse_file[..., None] - np.where(probs_file > 0, scores, 0))).sum(-1)
    )  # exp(entropy)
    print(f"{path.name}: {path.stat().st_size} bytes, scale {attn.scaling!r}")
    print(
        f"  score std per row {head_std.min():.2f} .. {head_std.max():.2f}, mean "
        f"{head_std.mean():.2f}; effective keys "
        f"{keys_seen.min():.1f} .. {keys_seen.max():.1f}; lse {lse_file.min():.3f} .. "
        f"{lse_file.max():.3f}"
    )
    for what, error, limit in errors:
        print(f"  {what:30s} relative error against the module {error:.2e} (limit {limit:.0e})")
    if not all(error <= limit for _, error, limit in errors):
        path.unlink()
        sys.exit(f"{path.name}: removed, the absorbed form is not the module's attention")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    examples = pathlib.Path(__file__).resolve().parent.parent / "examples"
    for decode_step in STEPS:
        capture(decode_step, examples / decode_step["file"])
