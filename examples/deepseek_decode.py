#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A DeepSeek-shaped model that decodes through AMLA, step by step. Read it from `main` on; run it:

    pip install '.[transformers]' matplotlib     from the root of this repository; matplotlib only
                                                 for --plot
    python examples/deepseek_decode.py           DeepSeek-V3's attention, 128 heads; about 5 minutes
                                                 on 2 cores, 12 GB of memory
    python examples/deepseek_decode.py --heads 16 --contexts 256,1024 --dtype bfloat16 \\
        --plot decode.png

What it shows: 1. an unmodified transformers model generates, is patched, and generates the same
tokens, faster. 2. The time of one layer's attention against the context length: transformers' own
(expand the cache to keys and values of every head, then SDPA), PyTorch on the absorbed form (no
expansion), and ours on the same. 3. Tokens per second of the whole model. Weights are random, so
nothing is downloaded; sizes of the attention are the published ones. Every result is compared
before it is timed.
"""

import argparse
import inspect
import sys
import time

import torch
import torch.nn.functional as F
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import amla
from amla.transformers import patch, stats, unpatch

CACHE = (
    "cache"
    if "cache" in inspect.signature(DeepseekV3ForCausalLM.forward).parameters
    else "past_key_values"
)  # the latter up to 5.23
TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 2e-2,
}  # relative Frobenius error between two ways to compute the same


def make_model(heads, layers, dtype):
    """DeepSeek-V3's attention; everything around it small, as it is not what is looked at."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        hidden_size=1024,
        num_hidden_layers=layers,
        first_k_dense_replace=layers,
        intermediate_size=1024,
        vocab_size=8000,
        max_position_embeddings=163840,
        initializer_range=0.05,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=10000.0,
            factor=40.0,
            original_max_position_embeddings=4096,
            beta_fast=32.0,
            beta_slow=1.0,
            mscale=1.0,
            mscale_all_dim=1.0,
        ),
    )
    return DeepseekV3ForCausalLM(config).to(dtype).eval()


def best_seconds(run, budget):
    """The best of as many runs as fit into `budget` seconds, but at least two: neighbours on the
    machine disturb some."""
    times, end = [], time.perf_counter() + budget
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def rel_error(got, want):
    return float((got.float() - want.float()).norm() / want.float().norm())


def demand(what, error, limit):
    if not error <= limit:
        sys.exit(f"{what}: relative error {error:.1e}, must be <= {limit:.0e}: nothing is timed")


# ---- 1. The same tokens ----


def show_tokens(model, n_prompt, n_new):
    ids = torch.randint(3, 8000, (1, n_prompt))
    options = dict(
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n_new,
        min_new_tokens=n_new,
        do_sample=False,
    )

    def generate():
        start = time.perf_counter()
        tokens = model.generate(ids, **options)[0, n_prompt:]
        return tokens, time.perf_counter() - start

    own, own_seconds = generate()
    patch(model)
    ours, our_seconds = generate()
    unpatch(model)
    same = int((own == ours).long().cumprod(0).sum())
    print(
        f"1. {n_prompt} tokens of prompt, {n_new} new ones: transformers {own_seconds:.2f} s, "
        f"patched {our_seconds:.2f} s; "
        f"the first {same} of {n_new} tokens are the same\n   {ours.tolist()[:12]} ..."
    )
    if same < n_new and model.dtype == torch.float32:
        sys.exit("in fp32 all tokens must be the same")


# ---- 2. One layer's attention ----


def torch_absorbed_matmul(q, rows, scale):
    """All heads are rows of one matrix, as they share the keys: two products and a softmax."""
    keys = rows[0]
    weights = torch.softmax((q[0, 0] @ keys.T).float() * scale, -1).to(q.dtype)
    return (weights @ keys[:, :512])[None, None]


def torch_absorbed_sdpa(q, rows, scale):
    """The same through scaled_dot_product_attention, heads in the place of queries, which is its
    fastest form here."""
    return F.scaled_dot_product_attention(q, rows[:, None], rows[:, None, :, :512], scale=scale)


def time_attention(attention, context, budget):
    """Seconds: transformers' own, PyTorch absorbed (two forms), ours, and the two products with
    kv_b_proj's halves that both absorbed forms add."""
    dtype, heads, scale = attention.kv_b_proj.weight.dtype, attention.num_heads, attention.scaling
    rows = torch.randn(1, context, 576).to(dtype)
    query = torch.randn(1, heads, 1, 192).to(dtype)
    latent, rope = rows[:, None, :, :512], rows[:, None, :, 512:]
    w_uk, w_uv = attention.kv_b_proj.weight.view(heads, 256, 512).split(128, dim=1)

    def own():
        keys, values = attention.expand_kv(latent, rope)
        return sdpa_attention_forward(attention, query, keys, values, None, scaling=scale)[0]

    def absorb():
        return (
            torch.cat((torch.bmm(query[0, :, :, :128], w_uk), query[0, :, :, 128:]), -1)[None]
            .transpose(1, 2)
            .contiguous()
        )

    def expand(out):
        return torch.bmm(out[0].transpose(0, 1), w_uv.transpose(1, 2)).transpose(0, 1)[None]

    q, want = absorb(), own()
    forms = {
        "matmul": lambda: torch_absorbed_matmul(q, rows, scale),
        "sdpa": lambda: torch_absorbed_sdpa(q, rows, scale),
        "ours": lambda: amla.decode(q, rows, scale=scale)[0],
    }
    for name, form in forms.items():
        demand(f"{name}, {context} tokens", rel_error(expand(form()), want), TOLERANCE[dtype])
    seconds = dict.fromkeys(forms, float("inf"))
    for _ in range(4):  # in turns, so that a disturbance meets all
        for name, form in forms.items():
            seconds[name] = min(seconds[name], best_seconds(form, budget / 12))
    return dict(
        seconds,
        own=best_seconds(own, 0),
        products=best_seconds(lambda: (absorb(), expand(q[..., :512])), 0.1),
    )


def show_attention(model, contexts, budget):
    attention = model.model.layers[0].self_attn
    print(
        "\n2. Attention of one layer, one new token, milliseconds (best)\n"
        "   context   transformers   torch absorbed    AMLA     transformers/AMLA   torch/AMLA"
    )
    table = []
    for context in contexts:
        s = time_attention(attention, context, budget)
        form = min(("matmul", "sdpa"), key=lambda name: s[name])
        table.append((context, s["own"], s[form], s["ours"]))
        print(
            f"   {context:7d} {s['own'] * 1e3:14.2f} {s[form] * 1e3:9.3f} {form:6s} "
            f"{s['ours'] * 1e3:7.3f} {s['own'] / s['ours']:19.1f} {s[form] / s['ours']:12.2f}",
            flush=True,
        )
    print(
        "   Both absorbed forms add the products with the halves of kv_b_proj, "
        f"{s['products'] * 1e3:.2f} ms, not in these columns."
    )
    return table


# ---- 3. The whole model ----


def filled_cache(model, context):
    """A cache of `context` random tokens: what a prefill would leave, without waiting for it."""
    cache = DynamicCache(config=model.config)
    for layer in cache.layers:
        rows = torch.randn(1, 1, context, 576).to(model.dtype)
        layer.update(rows[..., :512], rows[..., 512:])
    return cache


def seconds_per_token(model, context, budget):
    cache, token = filled_cache(model, context), torch.tensor([[7]])
    model(token, **{CACHE: cache})  # the first step takes the cache over
    return best_seconds(lambda: model(token, **{CACHE: cache}), budget)


def show_model(model, contexts, budget):
    print(
        "\n3. The whole model, tokens per second (best step; the cache is filled with random "
        "rows)\n   context   transformers    AMLA    ratio"
    )
    for context in contexts:
        own = seconds_per_token(model, context, 0)
        ours = seconds_per_token(patch(model), context, budget)
        if stats(model).reasons:
            sys.exit(f"the steps were not what is to be timed: {stats(model).reasons}")
        unpatch(model)
        print(f"   {context:7d} {1 / own:14.2f} {1 / ours:7.2f} {own / ours:8.1f}", flush=True)


def show_memory(model):
    heads = model.config.num_attention_heads
    print(
        "\n4. Cache, numbers per token and layer: 576, in one buffer. transformers 5 keeps as "
        f"many, but makes {heads} x 320 = {heads * 320} of them in every "
        f"step ({heads * 320 / 576:.1f} times as many), and a cache of expanded keys and values "
        "holds all of these."
    )


def product_speed(dtype):
    """FLOP/s of PyTorch's product of two large matrices, in float32 or in that type."""
    matrices = [torch.ones(1024, 1024, dtype=t) for t in (torch.float32, dtype)]
    return 2 * 1024**3 / min(best_seconds(lambda a=a: a @ a, 0.5) for a in matrices)


def plot(table, path, title, heads, dtype):
    """Time, and useful FLOP/s as a fraction of a large product's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, fractions) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    contexts, *lines = zip(*table)
    peak = product_speed(dtype)
    for seconds, name, marker in zip(
        lines, ("transformers (expand, SDPA)", "PyTorch, absorbed", "AMLA, absorbed"), "os^"
    ):
        useful = [2 * n * heads * (576 + 512) for n in contexts]
        times.loglog(contexts, [x * 1e3 for x in seconds], marker=marker, label=name)
        fractions.semilogx(
            contexts,
            [100 * f / x / peak for f, x in zip(useful, seconds)],
            marker=marker,
            label=name,
        )
    times.set(ylabel="attention of one layer, ms", title=title)
    fractions.set(ylabel="% of a large product's FLOP/s", ylim=(0, None))
    for axes in (times, fractions):
        axes.set(xlabel="context, tokens")
        axes.set_xticks(contexts, [str(n) for n in contexts])
        axes.minorticks_off()
        axes.grid(True, which="both", alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
    print(f"\nwrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--heads",
        type=int,
        default=128,
        help="query heads; 128 as in DeepSeek-V3, 16 as in V2-Lite (default 128)",
    )
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--contexts",
        default="1024,4096,16384",
        help="context lengths, comma-separated (default 1024,4096,16384)",
    )
    parser.add_argument("--tokens", type=int, default=64, help="new tokens in part 1 (default 64)")
    parser.add_argument(
        "--threads", type=int, help="threads of torch and of AMLA (default: torch's number)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        help="time to look for the best, per entry of a table (default 3)",
    )
    parser.add_argument("--plot", metavar="FILE", help="plot part 2 (needs matplotlib)")
    a = parser.parse_args()
    try:
        contexts = [int(x) for x in a.contexts.split(",")]
    except ValueError:
        parser.error(f"--contexts={a.contexts}: must be numbers, comma-separated")
    if min(contexts) < 1 or a.heads < 1 or a.layers < 1 or a.tokens < 1:
        parser.error("heads, layers, tokens and contexts must be >= 1")

    torch.set_grad_enabled(False)
    if a.threads:
        torch.set_num_threads(a.threads)
    model = make_model(a.heads, a.layers, getattr(torch, a.dtype))
    print(
        f"{a.heads} heads, {a.layers} layers, {a.dtype}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, amla {amla.__version__} "
        f"({amla.backends()['cpu']})\n"
    )
    show_tokens(model, 32, a.tokens)
    table = show_attention(model, contexts, a.seconds)
    show_model(model, contexts, a.seconds)
    show_memory(model)
    if a.plot:
        title = f"{a.heads} heads, {a.dtype}, {torch.get_num_threads()} threads"
        plot(table, a.plot, title, a.heads, getattr(torch, a.dtype))


if __name__ == "__main__":
    main()
