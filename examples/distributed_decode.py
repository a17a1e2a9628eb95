#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A DeepSeek-shaped model that decodes over several processes, each with its share of the latent
cache:

    pip install '.[transformers]'          # from the root of this repository
    torchrun --nproc-per-node 4 examples/distributed_decode.py
    torchrun --nproc-per-node 2 examples/distributed_decode.py --tokens 200000 --layers 2

Every process runs the whole model on the same tokens, over gloo. Weights and the prompt's rows are
random, so nothing is downloaded. What it shows: tokens and bytes that each process keeps, how far
its resident memory grew by them, what a step sends, and that the tokens are those of one process,
which rank 0 then is.
"""

import argparse
import inspect
import os
import sys

import torch
import torch.distributed as dist
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache

from amla.distributed import DecodeContextParallel
from amla.transformers import ShardedLayer, patch, unpatch

CACHE = (
    "cache"
    if "cache" in inspect.signature(DeepseekV3ForCausalLM.forward).parameters
    else "past_key_values"
)  # the latter up to transformers 5.23
ROW = 576  # numbers that a layer keeps of a token
MIB = 2**20


def make_model(heads, layers):
    """DeepSeek-V3's attention; everything around it small."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        q_lora_rank=256,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        hidden_size=512,
        num_hidden_layers=layers,
        first_k_dense_replace=layers,
        intermediate_size=512,
        vocab_size=4000,
        max_position_embeddings=1 << 21,
        initializer_range=0.05,
    )
    return DeepseekV3ForCausalLM(config).eval()


def resident_bytes():
    """Memory of this process that is in RAM, without files."""
    with open("/proc/self/statm") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def filled_cache(model, context, n_tokens):
    """What a prefill of so many tokens would leave, without waiting for it. A layer's rows are
    made, dealt out and dropped, one layer after the other, as a prefill does."""
    cache = DynamicCache(config=model.config)
    generator = torch.Generator().manual_seed(1)
    for i in range(len(cache.layers)):
        cache.layers[i] = ShardedLayer(context)
        rows = torch.randn(1, 1, n_tokens, ROW, generator=generator)
        cache.layers[i].update(rows[..., :512], rows[..., 512:])
    return cache


def decode(model, context, n_tokens, n_new):
    """Greedy tokens, and of this rank: tokens and bytes kept, growth of its memory, bytes sent."""
    patch(model, context_parallel=context)
    before = resident_bytes()
    cache = filled_cache(model, context, n_tokens)
    grown = resident_bytes() - before
    token, tokens = torch.tensor([[7]]), []
    for _ in range(n_new):
        token = model(token, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        tokens.append(int(token))
    unpatch(model)
    kept = sum(x.rows.numel() * x.rows.element_size() for x in cache.layers)
    return tokens, (cache.layers[0].held, kept, grown, context.work.sent_bytes)


def show(title, n_tokens, measured):
    print(f"\n{title}, {n_tokens} tokens")
    print("  rank   tokens kept   cache, MiB   grown by, MiB   sent a layer and step, KiB")
    for rank, (held, kept, grown, sent) in enumerate(measured):
        print(
            f"  {rank:4d} {held:13d} {kept / MIB:12.1f} {grown / MIB:15.1f} {sent / 1024:28.1f}",
            flush=True,
        )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=65536, help="of the prompt (default 65536)")
    parser.add_argument("--new", type=int, default=16, help="new tokens (default 16)")
    parser.add_argument("--split-tokens", type=int, default=768)
    parser.add_argument("--threads", type=int, default=1, help="of a process (default 1)")
    a = parser.parse_args(arguments)
    if min(a.heads, a.layers, a.tokens, a.new, a.threads) < 1:
        parser.error("heads, layers, tokens, new and threads must be >= 1")
    own_group = not dist.is_initialized()
    if own_group:
        dist.init_process_group("gloo")
    torch.set_grad_enabled(False)
    torch.set_num_threads(a.threads)
    alone = dist.new_group([0])  # collective, as all ranks have to make it
    model, context = (
        make_model(a.heads, a.layers),
        DecodeContextParallel(None, split_tokens=a.split_tokens),
    )
    tokens, own = decode(model, context, a.tokens, a.new)
    measured = [None] * context.ranks
    dist.all_gather_object(measured, own)
    same = True
    if context.rank == 0:
        show(f"{context.ranks} processes", a.tokens, measured)
        one = DecodeContextParallel(alone, split_tokens=a.split_tokens)
        tokens_of_one, own = decode(model, one, a.tokens, a.new)
        show("one process", a.tokens, [own])
        same = tokens == tokens_of_one
        print(f"\ntokens {tokens}\n{'are' if same else 'ARE NOT'} those of one process")
    if own_group:
        dist.barrier()
        dist.destroy_process_group()
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
