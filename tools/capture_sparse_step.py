#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Capture a sparse decode step of Hugging Face transformers' own DeepSeek-V3.2 as safetensors for
`amla run` and `amla check`: its indexer's list, its cache as fp8_656.

Why: as capture_decode_step.py, whose pieces are used here. Two layers have the attention and
indexer sizes of the published config; vocabulary and MLPs are small. Weights and tokens are random,
from a seed. The step is the second layer's, so its hidden states come out of the first.

How: the model prefills through its own cache in parts, then decodes one token in fp32. Hooks see
the indexer's list and the layer's output, an attention function the queries after RoPE. The cached
rows become records of fp8_656: scales are powers of two, as DeepSeek writes them. Positions become
slots of shuffled pages. `out_ref` and `lse_ref` are computed in NumPy fp64 from the rounded tensors
and the listed slots alone. They are taken through W_UV and o_proj and compared with what the layer
itself returned; the script fails if they disagree.

    pip install torch==2.13.0 transformers==5.24.0 safetensors==0.8.0 numpy==2.4.6
    python tools/capture_sparse_step.py    # a minute and a half on one core, 6 GB of memory
"""

import math
import pathlib
import sys

import numpy as np
import torch
import transformers
from capture_decode_step import (
    EXACT_LIMIT,
    SEED,
    attend_f64,
    randomize,
    rel_error,
    split_kv_b,
    to_pages,
    write_file,
    yarn,
)
from safetensors import safe_open
from transformers import AttentionInterface, DeepseekV32Config, DeepseekV32Model, DynamicCache
from transformers.models.deepseek_v32.modeling_deepseek_v32 import eager_attention_forward

S_K = 3001
PART = 250  # tokens that are prefilled at once: scores of all heads take 128 * PART * S_K * 4 bytes
LATENT, GROUP = 512, 128  # e4m3 elements of a row, and how many share a scale
LEAST_SCALE = 1e-4
FP8_LIMIT = 5e-2  # relative Frobenius error that rounding to e4m3 may cause

CONFIG = dict(
    hidden_size=7168,
    num_attention_heads=128,
    num_key_value_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=LATENT,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    index_topk=2048,
    index_n_heads=64,
    index_head_dim=128,
    max_position_embeddings=163840,
    rope_parameters=yarn(1.0),
    num_hidden_layers=2,
    first_k_dense_replace=2,
    vocab_size=4000,
    intermediate_size=512,
)


def make_model():
    model = DeepseekV32Model(DeepseekV32Config(**CONFIG, attn_implementation="eager")).eval()
    for layer in model.layers:
        randomize(layer.self_attn, q_gain=1.2)
        layer.self_attn.indexer.k_norm.weight.fill_(1)
        layer.self_attn.indexer.k_norm.bias.zero_()
    return model


def run_model(model):
    """Prefill and one step. Returns of the second layer: q [h_q][192] after RoPE, rows [S_K][576],
    the list [topk] of positions and the output [hidden], all of the step."""
    attn, seen = model.layers[1].self_attn, {}

    def watch(module, query, *args, **kwargs):
        seen[module.layer_idx] = query
        return eager_attention_forward(module, query, *args, **kwargs)

    AttentionInterface.register("eager", watch)
    attn.indexer.register_forward_hook(lambda _m, _i, out: seen.update(list=out))
    attn.register_forward_hook(lambda _m, _i, out: seen.update(output=out[0]))
    tokens, cache = torch.randint(CONFIG["vocab_size"], (1, S_K)), DynamicCache(config=model.config)
    for begin in [*range(0, S_K - 1, PART), S_K - 1]:
        end = min(begin + PART, S_K - 1) if begin < S_K - 1 else S_K
        model(tokens[:, begin:end], cache=cache)
    rows = torch.cat((cache.layers[1].keys, cache.layers[1].values), -1)[0, 0]
    assert rows.shape == (S_K, 576), "this transformers release caches expanded keys"
    return seen[1][0, :, 0], rows, seen["list"][0, 0], seen["output"][0, 0]


def to_records(rows):
    """rows [n][576] f32 -> [n][656] bytes, and what they say, [n][576] f64."""
    latent, rope = rows[:, :LATENT].reshape(len(rows), -1, GROUP), rows[:, LATENT:].bfloat16()
    least = (latent.abs().amax(-1) / 448).clamp_min(LEAST_SCALE)
    scales = torch.exp2(torch.ceil(torch.log2(least.double()))).float()
    codes = (latent / scales[..., None]).to(torch.float8_e4m3fn)
    read = (codes.double() * scales.double()[..., None]).flatten(1)
    parts = (codes.flatten(1), scales, rope)
    records = torch.cat([x.contiguous().view(torch.uint8) for x in parts], -1)
    return records, torch.cat((read, rope.double()), -1).numpy()


def to_slots(positions, block_table, page_size):
    return block_table[0, positions // page_size] * page_size + positions % page_size


def absorb(attn, q):
    """q [h_q][192] -> [1][h_q][576] f64."""
    w_uk, _ = split_kv_b(attn)
    nope, rope = q.double().split((attn.qk_nope_head_dim, attn.qk_rope_head_dim), -1)
    return torch.cat((torch.einsum("hn,hnc->hc", nope, w_uk), rope), -1)[None]


def to_hidden(attn, latent_out):
    """What o_proj makes of [1][h_q][512]."""
    _, w_uv = split_kv_b(attn)
    heads = torch.einsum("ihc,hvc->ihv", torch.as_tensor(latent_out, dtype=torch.float64), w_uv)
    return (heads.flatten(1) @ attn.o_proj.weight.double().T)[0].numpy()


def write_step(path, attn, q, rows, positions):
    """Returns what of the file is compared: out_ref, read back."""
    records, read = to_records(rows)
    kv_cache, block_table = to_pages(records, unused=255)  # NaN in every part of a record
    slots = to_slots(positions.long(), block_table.long(), kv_cache.shape[1])
    q = q.bfloat16()
    listed = read[positions.numpy()]
    out, lse, _ = attend_f64(q.double().numpy(), listed, attn.scaling, False, LATENT)
    tensors = dict(
        q=q[None],
        kv_cache=kv_cache,
        indices=slots[None, None].int(),
        out_ref=torch.from_numpy(out)[None].float(),
        lse_ref=torch.from_numpy(lse)[None].float(),
    )
    source = (
        "one decode step of DeepSeek-V3.2 (DeepseekV32Model, second layer), random weights, list "
        f"of its indexer, transformers {transformers.__version__}, torch "
        f"{torch.__version__.split('+')[0]}, seed {SEED}; references: NumPy fp64 from the tensors"
    )
    metadata = dict(scale=repr(float(attn.scaling)), d_v=str(LATENT), kv="fp8_656", source=source)
    write_file(path, tensors, metadata)
    with safe_open(path, "pt") as f:
        return f.get_tensor("out_ref")[0]


def capture(path):
    torch.manual_seed(SEED)
    model = make_model()
    q_full, rows, positions, output = run_model(model)
    attn = model.layers[1].self_attn
    assert len(positions) == len(set(positions.tolist())) == CONFIG["index_topk"]
    q, exact = absorb(attn, q_full), rows.double().numpy()[positions.numpy()]
    out_file = write_step(path, attn, q, rows, positions)
    out, _, scores = attend_f64(q.numpy(), exact, attn.scaling, False, LATENT)
    dense, _, _ = attend_f64(q.numpy(), rows.double().numpy(), attn.scaling, False, LATENT)
    own = output.numpy()
    errors = [
        ("fp64 absorbed, listed rows", rel_error(to_hidden(attn, out), own), EXACT_LIMIT),
        ("out_ref of the file", rel_error(to_hidden(attn, out_file), own), FP8_LIMIT),
    ]
    print(f"{path.name}: {path.stat().st_size} bytes, score std {np.std(scores, -1).mean():.2f}")
    print(f"  all rows, not the listed ones: {rel_error(to_hidden(attn, dense), own):.2e} away")
    for what, error, limit in errors:
        print(f"  {what:28s} relative error against the layer {error:.2e} (limit {limit:.0e})")
    if not all(error <= limit for _, error, limit in errors) or math.isnan(own.sum()):
        path.unlink()
        sys.exit(f"{path.name}: removed, it is not the layer's attention")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    examples = pathlib.Path(__file__).resolve().parent.parent / "examples"
    capture(examples / "deepseek_v32_sparse.safetensors")
