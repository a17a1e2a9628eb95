# SPDX-License-Identifier: Apache-2.0
"""amla.transformers on models with an indexer (DeepSeek-V3.2, GLM-5): tokens and logits against the
unpatched models, whose lists of 24 tokens are shorter than the prompts."""

import pytest
import torch
from transformers import StaticCache
from transformers.cache_utils import DynamicIndexedLayer

import amla.transformers
import deepseek_models
from amla._latent_cache import LatentIndexedLayer
from amla.transformers import Stats, patch, stats, unpatch
from deepseek_models import CACHE
from test_transformers_patch import greedy, no_grad, prompts, step_logits  # noqa: F401

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*generation flags.*"),
    pytest.mark.filterwarnings("error:amla"),
    pytest.mark.skipif(not deepseek_models.SPARSE, reason="this release has no such models"),
]
STEPS = 5
short = dict(max_new_tokens=STEPS, min_new_tokens=STEPS)


@pytest.mark.parametrize("name", deepseek_models.SPARSE)
def test_tokens_and_logits_are_the_models_own(name, monkeypatch):
    model, inputs = deepseek_models.make(name), prompts([40, 17])
    own_tokens, own = greedy(model, inputs, **short), step_logits(model, inputs, 2)
    lists, attend = [], amla.transformers._attend_to

    def spy(q, rows, entries, *rest):
        lists.append(entries)
        return attend(q, rows, entries, *rest)

    monkeypatch.setattr(amla.transformers, "_attend_to", spy)
    tokens = greedy(patch(model), inputs, **short)
    assert torch.equal(tokens, own_tokens) and len(set(tokens[:, 40:].flatten().tolist())) > STEPS
    assert stats(model) == Stats(amla=2 * (STEPS - 1), own=2, copies=0, reasons={})
    assert len(lists) == 2 * (STEPS - 1) and all(x.shape == (2, 1, 24) for x in lists)
    # The second sequence has 18 tokens and more: the indexer lists what padding hides, too.
    assert (lists[0][1] < 0).sum() == 24 - 18 and (lists[0][0] >= 0).all()
    if name == "glm-dsa":  # the second layer takes the first one's list
        assert torch.equal(lists[0], lists[1])
    logits = step_logits(model, inputs, 2)
    assert (logits - own).norm() / own.norm() < 2e-5
    assert torch.equal(greedy(unpatch(model), inputs, **short), own_tokens)


def test_several_tokens_at_once_beams_and_other_caches():
    name = deepseek_models.SPARSE[-1]
    model, inputs = deepseek_models.make(name, attention="eager"), prompts([40, 31])
    beams = dict(max_new_tokens=3, min_new_tokens=3, num_beams=2)
    static = lambda: StaticCache(config=model.config, max_cache_len=64)
    own = greedy(model, inputs, **beams), step_logits(model, inputs, 2, static())
    several = {}
    for patched in (False, True):
        if patched:
            patch(model)
        cache = None
        for part in (slice(0, 30), slice(30, 36), slice(36, 40)):  # steps of six and four tokens
            arguments = {} if cache is None else {CACHE: cache}
            mask = inputs["attention_mask"][:, : part.stop]
            out = model(inputs["input_ids"][:, part], attention_mask=mask, **arguments)
            cache = getattr(out, CACHE)
        several[patched] = out.logits
    torch.testing.assert_close(several[True], several[False], rtol=1e-3, atol=2e-4)
    assert isinstance(cache.layers[0], LatentIndexedLayer) and stats(model).amla == 4
    assert torch.equal(greedy(model, inputs, **beams), own[0])
    before = stats(model).copies
    with pytest.warns(RuntimeWarning, match="StaticCache of StaticIndexedLayer.*copies its rows"):
        got = step_logits(model, inputs, 2, static())
    torch.testing.assert_close(got, own[1], rtol=1e-3, atol=2e-4)
    assert stats(model).copies == before + 4


def test_the_indexed_layer_does_what_that_of_transformers_does():
    own = DynamicIndexedLayer()
    own.update(torch.randn(3, 1, 5, 512), torch.randn(3, 1, 5, 64))
    own.update_indexer(torch.randn(3, 5, 128))
    layer = LatentIndexedLayer.of(own)
    order = torch.tensor([1, 2, 0])  # of which twice is another than once
    reset = lambda x: x.reset()
    for change in (
        lambda x: x.reorder_cache(order),
        lambda x: x.crop(-2),
        lambda x: x.batch_repeat_interleave(2),
        lambda x: x.batch_select_indices(torch.tensor([5, 0])),
        lambda x: x.update_indexer(torch.ones(2, 1, 128)),
        reset,
    ):
        for x in (own, layer):
            change(x)
        for name in ("keys", "values", "indexer_keys"):
            want, got = getattr(own, name), getattr(layer, name)
            if change is not reset or name == "indexer_keys":
                assert got is want is None or torch.equal(got, want)
    assert layer.length == 0


def test_a_mask_that_is_a_bias_stays_the_models_own():
    model, inputs = (
        deepseek_models.make(deepseek_models.SPARSE[0], attention="eager"),
        prompts([30]),
    )
    ids = inputs["input_ids"]
    bias = torch.zeros(1, 1, 1, 30)
    bias[..., 3] = -1.0

    def last():
        cache = getattr(model(ids[:, :29]), CACHE)
        return model(ids[:, 29:], attention_mask=bias, **{CACHE: cache}).logits

    own = last()
    patch(model)
    with pytest.warns(RuntimeWarning, match="decode steps stay the model's own: their mask"):
        assert torch.equal(last(), own)
    assert stats(model).amla == 0
