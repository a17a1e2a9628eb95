# SPDX-License-Identifier: Apache-2.0
"""patch(model, context_parallel=...) on 1, 2 and 4 processes: tokens of the unpatched model, logits
bit for bit those of one process, and a cache of which each process has its share."""

import contextlib
import copy
import functools
import importlib.util
import io
import pathlib
import pickle
import re

import pytest
import torch
from transformers import DynamicCache, StaticCache

import amla
import deepseek_models
import mla_classes
from amla._shards import query_plan
from conftest import LONG
from deepseek_models import CACHE
from test_transformers_patch import greedy, prompts, step_logits

F32 = dict.fromkeys(("q_type", "kv_type", "out_type"), "float32")
EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "examples" / "distributed_decode.py"
SPLIT = query_plan(amla.Plan(scale=1.0, **F32)).tile_tokens  # short splits, as prefills take long
PROMPT = 3 * SPLIT - 5  # the tokens to come begin a split
NEW = 12
few = dict(max_new_tokens=NEW, min_new_tokens=NEW)
models = ["v2-lite", *deepseek_models.SPARSE[:1]]
SHARING = "MistralLarge4"  # whose layers share rows


def context(groups, n, **options):
    from amla.distributed import DecodeContextParallel

    return DecodeContextParallel(groups[n], split_tokens=SPLIT, **options)


@functools.lru_cache(1)
def own_model(name):
    """Few heads, as all ranks share this machine."""
    if name in mla_classes.SIZES:
        return mla_classes.make(name, vocab_size=4000)
    heads = dict(num_attention_heads=4, num_key_value_heads=4)
    if name in deepseek_models.SPARSE:
        heads["index_n_heads"] = 4
    return deepseek_models.make(name, initializer_range=0.1, **heads)


def make(name, groups, n):
    """A model, patched over n ranks; 0: not patched."""
    from amla.transformers import patch, unpatch

    model = own_model(name)
    with contextlib.suppress(ValueError):
        unpatch(model)
    return patch(model, context_parallel=context(groups, n)) if n else model


def tokens_and_logits(groups, name, lengths, sizes):
    """Of each number of ranks, the first ones; rank 0 has all."""
    inputs, found = prompts(lengths), []
    for n in sizes:
        if torch.distributed.get_rank() < max(n, 1):
            model = make(name, groups, n)
            found.append((greedy(model, inputs, **few), step_logits(model, inputs, 7)))
    return found


@pytest.mark.parametrize(
    "name, lengths",
    [
        ("v2-lite", [PROMPT]),
        (SHARING, [SPLIT + 20]),
        *((name, [PROMPT, SPLIT + 20]) for name in models),
    ],
)
def test_tokens_and_logits_on_1_2_and_4_ranks(ranks, name, lengths):
    sizes = (0, 1, 2) if name == SHARING and not LONG else (0, 1, 2, 4)
    (own, own_logits), *others = ranks.run(tokens_and_logits, name, lengths, sizes)[0]
    assert len(set(own[:, max(lengths) :].flatten().tolist())) > NEW / 2, "tokens repeat"
    for tokens, logits in others:
        assert torch.equal(tokens, own)
        assert torch.equal(logits, others[0][1]), "other bits than one rank's"
    assert (others[0][1] - own_logits).norm() / own_logits.norm() < 2e-5


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("side", ["left", "right", "holes", "none"])
def test_what_padding_and_window_hide_is_masked_for_every_query(side, window):
    from amla.transformers import _visible

    n, s_q = 40, 3
    last = torch.ones(2, n, dtype=torch.bool)
    if side == "holes":
        last = torch.rand(2, n, generator=torch.Generator().manual_seed(1)) < 0.6
        last[:, -s_q:] = True
    elif side != "none":
        last[0, slice(0, 7) if side == "left" else slice(30, n)] = False
    want = torch.zeros(2, s_q, n, dtype=torch.bool)
    for sequence, i in [(s, i) for s in range(2) for i in range(s_q)]:
        seen = last[sequence].nonzero()[:, 0]
        seen = seen[: len(seen) - (s_q - 1 - i)]
        want[sequence, i, seen[-window:]] = True
    mask = _visible(want[:, None], 2, s_q, n, window).as_mask(s_q, n)
    assert torch.equal(mask == 0, want) if window or side != "none" else mask is None
    assert _visible(torch.ones_like(want[:, None, :1]), 2, 1, n).as_mask(1, n) is None


# ---- Memory ----


def held_rows(groups, n):
    """Tokens that this rank has of each layer after every step, and bytes of its buffers."""
    if torch.distributed.get_rank() >= n:
        return None
    model, inputs, rows = make("v2-lite", groups, n), prompts([4 * SPLIT + 9]), []
    cache = DynamicCache(config=model.config)
    step_logits(model, inputs, 20, cache, lambda: rows.append([x.held for x in cache.layers]))
    sizes = [x.rows.numel() * x.rows.element_size() for x in cache.layers]
    return rows, sizes, [x.keys.shape[2] for x in cache.layers]


def test_each_rank_keeps_its_share(ranks):
    """A prompt of 3 full splits and a fourth but for 11 tokens, and 20 tokens more. The fifth split
    is of the first of the ranks that have the fewest."""
    full, n_prompt, n = SPLIT, 4 * SPLIT - 11, 4 * SPLIT + 9
    for size in (1, 2, 4):
        answers = ranks.run(held_rows, size)[:size]
        per_rank = 4 // size * full
        begin = [[per_rank - 11 * (r == size - 1)] * 2 for r in range(size)]
        end = [[per_rank + 9 * (r == 0)] * 2 for r in range(size)]
        assert [rows[0] for rows, _, _ in answers] == begin
        assert [rows[-1] for rows, _, _ in answers] == end
        assert [length for *_, length in answers] == [[n] * 2] * size
        for rows, sizes, _ in answers:  # rows of 576 floats: those held, a quarter more, a page
            most = max(rows[0][0] + max(256, rows[0][0] // 4) + 64, 0)
            assert sizes == [most * 576 * 4] * 2
        assert n_prompt == sum(rows[0][0] for rows, _, _ in answers)


# ---- Everything else of a cache ----


def several(groups, n):
    """Beams, steps of several tokens, a cropped and a copied cache, a step that is the model's own,
    and models that are not patched on a cache that is shared out."""
    from amla.transformers import stats, unpatch

    model, inputs = make("v2-lite", groups, n), prompts([PROMPT, PROMPT])
    ids, found = inputs["input_ids"], []
    beams = dict(max_new_tokens=3, min_new_tokens=3, num_beams=2)
    found.append(greedy(model, inputs, **beams).float())
    cache = DynamicCache(config=model.config)

    def step(begin, end, **more):
        logits = model(ids[:, begin:end], **{CACHE: cache}, **more).logits
        found.append(logits[:, -1])

    step(0, PROMPT - 40)
    own = stats(model).own if n else 0
    step(PROMPT - 40, PROMPT - 20)  # 20 at once are the model's own, over all rows
    if n:
        assert stats(model).own == own + len(cache.layers)
    for layer in cache.layers:
        layer.crop(-(PROMPT - 20 - SPLIT + 3))
    kept, cache = cache, copy.deepcopy(cache)
    step(SPLIT - 3, SPLIT + 4)
    step(SPLIT + 4, SPLIT + 5)
    assert [x.get_seq_length() for x in kept.layers] == [SPLIT - 3] * 2
    cache = kept
    if n:
        assert stats(model).reasons == {}
        unpatch(model)
    step(SPLIT - 3, SPLIT + 4)
    return found


def test_beams_several_tokens_crops_copies_and_own_steps(ranks):
    want, got = (ranks.run(several, n)[0] for n in (0, 4))
    for x, y in zip(got, want):
        assert (x - y).norm() <= 2e-5 * y.norm()


def moved(groups, n):
    """A cache that was filled before the model was patched."""
    from amla.transformers import patch

    model, inputs = make("v2-lite", groups, 0), prompts([PROMPT])
    ids, cache = inputs["input_ids"], DynamicCache(config=model.config)
    model(ids[:, :-2], **{CACHE: cache})
    patch(model, context_parallel=context(groups, n) if n else None)
    logits = model(ids[:, -2:-1], **{CACHE: cache}).logits
    return logits, [x.held for x in cache.layers]


def test_a_filled_cache_is_taken_over(ranks):
    want, got = (ranks.run(moved, n) for n in (0, 2))
    assert [held for _, held in got[:2]] == [[SPLIT] * 2, [2 * SPLIT - 6] * 2]
    assert (got[0][0] - want[0][0]).norm() < 2e-5 * want[0][0].norm()


# ---- Refusals ----


def refused(groups, case):
    from amla.transformers import patch

    if case == "static":
        model = make("v2-lite", groups, 2)
        model(torch.tensor([[5, 6]]), **{CACHE: StaticCache(config=model.config, max_cache_len=8)})
    if case == "tokens":  # as sampling without one seed for all ranks would
        model, cp = make("v2-lite", groups, 2), context(groups, 2)
        cache = DynamicCache(config=model.config)
        model(torch.tensor([[5, 6, 7]]), **{CACHE: cache})
        model(torch.tensor([[8 + cp.rank]]), **{CACHE: cache})
    model = make("v2-lite", groups, 0)
    if case == "pickled":
        pickle.dumps(make("v2-lite", groups, 2))
    if case == "compiled":
        model = torch.compile(make("v2-lite", groups, 1), backend="eager", fullgraph=True)
        model(torch.tensor([[5, 6]]), **{CACHE: DynamicCache(config=own_model("v2-lite").config)})
    if case == "kind":
        patch(model, context_parallel=groups[2])
    patch(model, context_parallel=context(groups, 2, gather_heads=False))


REFUSALS = {
    "static": "NotImplementedError: context_parallel: StaticCache: must be a DynamicCache in "
    "memory, without sliding windows",
    "tokens": "ValueError: rank 1: q: must be that of rank 0",
    "pickled": "TypeError: DecodeContextParallel: cannot be pickled, as it is a rank of a group",
    "kind": "TypeError: context_parallel: ProcessGroup: must be an "
    "amla.distributed.DecodeContextParallel",
    "heads": "ValueError: context_parallel: gather_heads=False: must be True",
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused(ranks, case):
    assert ranks.errors(refused, case) == [REFUSALS[case]] * 4


def test_a_compiled_model_is_refused(ranks):
    for error in ranks.errors(refused, "compiled"):
        print(error)
        assert "context_parallel: torch.compile: must run uncompiled" in error


# ---- The example ----


def example(groups, *arguments):
    spec = importlib.util.spec_from_file_location("distributed_decode", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = module.main(arguments)
    return status, printed.getvalue()


def test_the_example_shows_memory_fall(ranks):
    few = [
        "--heads",
        "4",
        "--layers",
        "2",
        "--tokens",
        "12000",
        "--new",
        "3",
        "--split-tokens",
        "384",
    ]
    (status, text), *others = ranks.run(example, *few)
    assert status == 0 and "are those of one process" in text, text
    assert others == [(0, "")] * 3
    four, one = text.split("one process, ")[:2]
    row = re.compile(r"^ +(\d) +(\d+) +([\d.]+) +(-?[\d.]+) +([\d.]+)$", re.M)
    held = [(int(n), float(kept)) for _, n, kept, *_ in row.findall(four)]
    ((all_held, all_kept),) = ((int(n), float(kept)) for _, n, kept, *_ in row.findall(one))
    assert len(held) == 4 and sum(n for n, _ in held) == all_held == 12003
    assert max(kept for _, kept in held) < 0.3 * all_kept
