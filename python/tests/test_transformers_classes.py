# SPDX-License-Identifier: Apache-2.0
"""amla.transformers by protocol: every class that speaks it is patched, and decodes as it did; what
does not fit is refused by name and reason. The table of docs/transformers.md is what was found
here: AMLA_WRITE_TABLE=1 writes it, AMLA_LONG=1 decodes 64 tokens instead of a few."""

import itertools
import math
import os
import pathlib
import re

import pytest
import torch
import transformers
from transformers import DynamicCache

import amla.transformers as patching
import mla_classes
from amla.transformers import patch, stats, unpatch
from conftest import LONG
from deepseek_models import CACHE
from test_transformers_patch import greedy, prompts, step_logits

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "transformers.md"
STEPS = 64 if LONG else 5
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*generation flags.*"),
    pytest.mark.filterwarnings("error:amla", "ignore:amla.*every step copies"),
]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def tokens(lengths):
    inputs = prompts(lengths)
    inputs["input_ids"].remainder_(300)
    inputs["input_ids"].masked_fill_(inputs["attention_mask"] == 0, 2)
    return inputs


ATTEMPTS = {  # the prompts' lengths, and options of generate
    "greedy": ([23], {}),
    "left-padded": ([23, 9, 16], {}),
    "static cache": ([23, 9], dict(cache_implementation="static")),
    "beams": ([23, 9], dict(num_beams=3)),
    "assisted": ([23], dict(prompt_lookup_num_tokens=4, max_matching_ngram_size=1)),
}


def attempt(model, lengths, options):
    """Tokens of the patched model against the unpatched one's."""
    inputs = tokens(lengths)
    options = dict(max_new_tokens=STEPS, min_new_tokens=STEPS, **options)
    try:
        want = greedy(model, inputs, **options)
    except (ValueError, NotImplementedError, RuntimeError, AttributeError, TypeError):
        return "not in the model"
    try:
        got = greedy(patch(model), inputs, **options)
        found = stats(model)
    finally:
        unpatch(model)
    assert torch.equal(got, want)
    layers = layers_of(model)
    in_windows = sum(bool(getattr(x, "sliding_window", None)) for x in layers)
    layers, windows = len(layers), found.amla * in_windows // len(layers)
    most = 1 + options.get("prompt_lookup_num_tokens", 0)  # tokens of a step
    assert found.own == layers  # the prefill
    assert found.amla * most >= layers * (STEPS - 1) and found.copies in (windows, found.amla)
    if found.copies == found.amla:
        return "copies"
    return "windows" if windows else "yes"


def logits_in_bf16(name):
    """As near to the fp32 model with the same weights as the unpatched model's."""
    model, inputs = mla_classes.make(name, torch.bfloat16), tokens([20, 9])
    own = step_logits(model, inputs, 4)
    got = step_logits(patch(model), inputs, 4)
    assert stats(model).amla >= 4
    exact = step_logits(unpatch(model).float(), inputs, 4)
    own_error, our_error = ((x.float() - exact).norm() / exact.norm() for x in (own, got))
    print(f"{name}: relative error of bf16 logits: {our_error:.1e}, its own {own_error:.1e}")
    assert our_error < 1.5 * own_error
    return "yes"


def layers_of(model):
    return [m for m in model.modules() if hasattr(m, "kv_b_proj")]


@pytest.mark.parametrize("name", mla_classes.SIZES)
def test_class(name):
    model = mla_classes.make(name)
    if model is None:
        pytest.skip(f"this release of transformers has no {name}")
    layers = [(x.kv_lora_rank, x.qk_rope_head_dim, x.scaling) for x in layers_of(model)]
    rows = [f"{rank + rope} / {rank}" for rank, rope, _ in layers]
    cells = [", ".join(dict.fromkeys(x)) for x in (rows, [f"{x[2]:.4f}" for x in layers])]
    cells += [attempt(model, *arguments) for arguments in ATTEMPTS.values()]
    row = "| " + " | ".join([name, *cells, logits_in_bf16(name)]) + " |"
    lines = PAGE.read_text().splitlines()
    if os.environ.get("AMLA_WRITE_TABLE"):
        kept = [row if line.startswith(f"| {name} |") else line for line in lines]
        PAGE.write_text("\n".join(kept) + "\n")
    else:
        assert row in lines, f"docs/transformers.md has another row than {row}"


def test_scales_are_the_models_own(monkeypatch):
    """mscale^2 with YaRN, and widths before absorption: no factor of q . k is the 576^-0.5 of the
    absorbed row."""
    for name, width, factor in (
        ("DeepseekV3", 192, 40),
        ("Glm4MoeLite", 256, 1),
        ("Youtu", 192, 1),
        ("Mistral4", 128, 128),
    ):
        model, seen = mla_classes.make(name), []
        if model is None:
            continue
        real = patching.decode

        def spy(*arrays, real=real, seen=seen, **options):
            seen.append(options["scale"])
            return real(*arrays, **options)

        monkeypatch.setattr(patching, "decode", spy)
        greedy(patch(model), tokens([9]), max_new_tokens=2, min_new_tokens=2)
        monkeypatch.undo()
        want = width**-0.5 * (0.1 * math.log(factor) + 1) ** 2
        assert seen == [pytest.approx(want, 1e-6)] * 2


def several_tokens(model, cache, chunks):
    """Logits of steps of so many tokens each, of two sequences, one padded."""
    inputs, begin, found = tokens([sum(chunks), sum(chunks) - 3]), 0, []
    for end in itertools.accumulate(chunks):
        found.append(
            model(
                input_ids=inputs["input_ids"][:, begin:end],
                attention_mask=inputs["attention_mask"][:, :end],
                **{CACHE: cache},
            ).logits
        )
        begin = end
    return torch.cat(found, 1)


@pytest.mark.parametrize("kind", ["windows", "whole"])
def test_steps_of_several_tokens_in_sliding_windows(kind):
    """From caches that keep a window, and from those that keep every row: then in place."""
    model = mla_classes.make("Dots3Note", layer_types=["sliding_attention"] * 2)
    if model is None:
        pytest.skip("this release of transformers has no Dots3Note")
    chunks, config = (5, 4, 1, 16, 1, 3), model.config if kind == "windows" else None
    want = several_tokens(model, DynamicCache(config=config), chunks)
    got = several_tokens(patch(model), DynamicCache(config=config), chunks)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    assert (stats(model).own, stats(model).amla) == (2, 10)
    assert stats(model).copies == (10 if kind == "windows" else 0)
    assert all("SlidingWindowLayer: every" in reason for reason in stats(model).reasons)


@pytest.mark.parametrize("n_dims", [2, 4])
def test_a_window_inside_a_graph(n_dims):
    n, s_q, window = 30, 3, 7
    patched = patching._Patched(patching.Stats(), patching._Memo(), None, "sdpa")
    q, rows = torch.randn(2, s_q, 4, 576), torch.randn(2, n + patching.PAGE, 576)
    behind = torch.arange(n - s_q, n)[:, None] - torch.arange(n)
    seen = ((behind >= 0) & (behind < window)).expand(2, 1, s_q, n)
    mask = seen if n_dims == 4 else torch.ones(2, n)  # padding alone
    more = (patched.stats_id, "", None, window)
    out = torch.ops.amla.latent_attention(q, rows, n, mask, 0.1, 512, *more)
    logits = 0.1 * torch.einsum("bshd,bnd->bhsn", q, rows[:, :n])
    weights = torch.softmax(logits.masked_fill(~seen, -torch.inf), -1)
    want = torch.einsum("bhsn,bnd->bshd", weights, rows[:, :n, :512])
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    assert (patched.stats.amla, patched.stats.own) == (1, 0)


def test_every_model_file_is_tried_or_refused():
    """A model that a release of transformers brings cannot be missed."""
    folder, known = pathlib.Path(transformers.__file__).parent, {*mla_classes.SIZES}
    known |= {*mla_classes.REFUSED}
    texts = {x.name: x.read_text() for x in folder.glob("models/*/modeling_*.py")}
    model = rf"^class (\w+?)(?:ForCausalLM|{mla_classes.WITH_IMAGES})\("
    names = {x: {*re.findall(model, y, re.M)} for x, y in texts.items() if "def expand_kv" in y}
    missed = {x: y for x, y in names.items() if not y or not y <= known}
    assert names and not missed, f"neither in SIZES nor in REFUSED: {missed}"


# ---- What does not fit ----


def refusal(model):
    with pytest.raises(NotImplementedError) as caught:
        patch(model)
    assert not any("_amla" in m.__dict__ for m in model.modules())
    return str(caught.value)


@pytest.mark.parametrize("name", mla_classes.REFUSED)
def test_class_that_does_not_fit(name):
    changes, reason = mla_classes.REFUSED[name]
    model = mla_classes.make(name, **changes)
    if model is None:
        pytest.skip(f"this release of transformers has no {name}")
    assert reason in refusal(model)
    assert name in PAGE.read_text()


def test_refusals_name_class_and_reason():
    model = mla_classes.make("DeepseekV3")
    layer, other = model.model.layers[1].self_attn, model.model.layers[0].self_attn
    own = type(layer)

    class Normalised(own):
        def expand_kv(self, kv_nope, k_rot):
            key, value = own.expand_kv(self, kv_nope, k_rot)
            return torch.nn.functional.normalize(key, dim=-1), value

    class Elsewhere(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.__dict__.update(layer.__dict__)

        def expand_kv(self, kv_nope, k_rot):
            return own.expand_kv(self, kv_nope, k_rot)

        def forward(self, hidden_states, **kwargs):
            return hidden_states, None

    class Old(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.kv_b_proj, self.layer_idx = layer.kv_b_proj, 1

    sunk = mla_classes.make("DeepseekV3").model.layers[1].self_attn
    sunk.sinks = torch.nn.Parameter(torch.zeros(4))
    sharing = mla_classes.make("DeepseekV3").model.layers[1].self_attn
    sharing.kv_a_proj_with_mqa = None
    narrow = mla_classes.make("DeepseekV3").model.layers[1].self_attn
    del narrow.v_head_dim
    layer.__class__ = Normalised
    for replaced, words in (
        (layer, "layer 1: Normalised does more than multiply a row by kv_b_proj's weight"),
        (Elsewhere(), "layer 1: the forward of Elsewhere does not hand expand_kv's result"),
        (Old(), "expands keys before it caches them"),
        (sunk, "layer 1: DeepseekV3Attention has attention sinks"),
        (sharing, "layer 1: this DeepseekV3Attention attends to the rows of another layer"),
        (narrow, "layer 1: DeepseekV3Attention has no v_head_dim"),
    ):
        model.model.layers[1].self_attn = replaced
        assert words in refusal(model)
    assert "expand_kv" not in other.__dict__ and model.config._attn_implementation == "sdpa"


def test_a_class_of_ones_own_is_patched():
    """Derived, in a file without eager attention, which its prefill needs here."""
    model = mla_classes.make("DeepseekV3")
    model.config._attn_implementation = "eager"
    want = greedy(model, tokens([9]), max_new_tokens=4, min_new_tokens=4)
    for layer in model.model.layers:
        own = type(layer.self_attn)
        layer.self_attn.__class__ = type("Mine", (own,), {"__module__": __name__})
    got = greedy(patch(model), tokens([9]), max_new_tokens=4, min_new_tokens=4)
    assert torch.equal(got, want) and stats(model).amla == 6
