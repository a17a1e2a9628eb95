# SPDX-License-Identifier: Apache-2.0
"""amla.transformers against the unpatched models: greedy tokens, logits, masks, caches, memory; and
what is refused."""

import copy
from contextlib import nullcontext

import pytest
import torch
import transformers
from transformers import DynamicCache, StaticCache

import deepseek_models
from amla.transformers import LatentLayer, Stats, patch, stats, unpatch
from conftest import LONG
from deepseek_models import CACHE

MODELS = ["v3", "v2-lite"] + (["glm"] if hasattr(transformers, "Glm4MoeLiteForCausalLM") else [])
NEW_TOKENS = 64
# A fast path lost where no test expects it is a failure.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*generation flags.*"),
    pytest.mark.filterwarnings("error:amla"),
]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def prompts(lengths, seed=3):
    """Random tokens, padded on the left with their attention mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), 2)
    for row, n in zip(ids, lengths):
        row[-n:] = torch.randint(3, 4000, (n,), generator=generator)
    return dict(input_ids=ids, attention_mask=(ids != 2).long())


def greedy(model, inputs, **options):
    return model.generate(
        **inputs,
        **{
            **dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False),
            **options,
        },
    )


def step_logits(model, inputs, steps, cache=None, after=lambda: None):
    """Teacher-forced: prefill of all but the last `steps` tokens, then one by one. Logits [steps +
    1, b, vocab]."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, n, logits = (
        DynamicCache(config=model.config) if cache is None else cache,
        ids.shape[1] - steps,
        [],
    )
    for begin, end in [(0, n), *((i, i + 1) for i in range(n, n + steps))]:
        out = model(
            input_ids=ids[:, begin:end],
            attention_mask=mask[:, :end],
            position_ids=positions[:, begin:end],
            **{CACHE: cache},
        )
        logits.append(out.logits[:, -1])
        after()
    return torch.stack(logits)


# ---- Same results ----


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_the_models_own_in_fp32(name):
    """What the models make of the cache in every step takes most of the time: of many heads fewer
    tokens (AMLA_LONG=1: as many)."""
    model, inputs = deepseek_models.make(name, initializer_range=0.1), prompts([37, 9])
    n = NEW_TOKENS if LONG or name == "v2-lite" else NEW_TOKENS // 3
    some = dict(max_new_tokens=n, min_new_tokens=n)
    want = greedy(model, inputs, **some)
    got = greedy(patch(model), inputs, **some)
    assert torch.equal(got, want)
    assert len(set(got[:, 37:].flatten().tolist())) > n / 2, (
        "tokens repeat: the comparison says little"
    )
    assert stats(model) == Stats(amla=2 * (n - 1), own=2, copies=0, reasons={})
    if name == "v2-lite":
        assert torch.equal(greedy(unpatch(model), inputs), want)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 5e-2)], ids=str
)
def test_teacher_forced_logits(name, dtype, tolerance):
    """In bf16 the patched model is as near to the fp32 model with the same weights as the unpatched
    one is."""
    model, inputs, steps = deepseek_models.make(name, dtype), prompts([30, 9, 17]), 5
    own = step_logits(model, inputs, steps)
    got = step_logits(patch(model), inputs, steps)
    error = (got - own).float().norm() / own.float().norm()
    assert error < tolerance
    if dtype == torch.bfloat16:
        exact = step_logits(unpatch(model).float(), inputs, steps)
        own_error, our_error = ((x.float() - exact).norm() / exact.norm() for x in (own, got))
        print(
            f"{name}: relative error of logits against fp32: patched {our_error:.1e}, unpatched "
            f"{own_error:.1e}; apart {error:.1e}"
        )
        assert our_error < 1.5 * own_error


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["none", "left", "right", "holes"])
def test_padding_anywhere(attention, side):
    model, inputs = deepseek_models.make("v2-lite", attention=attention), prompts([90, 90, 90])
    mask = inputs["attention_mask"]
    if side == "left":
        mask[0, :40], mask[2, :81] = 0, 0
    elif side == "right":
        mask[0, 30:70], mask[1, 50:80] = 0, 0  # behind the prompt, before the decoded tokens
    elif side == "holes":
        mask[:, :80] = (torch.rand(3, 80) < 0.6).long()
    own = step_logits(model, inputs, 6)
    got = step_logits(patch(model), inputs, 6)
    torch.testing.assert_close(got, own, rtol=1e-3, atol=2e-4)
    assert stats(model).amla == 2 * 6


def test_what_masks_become():
    """Padding on one side is a run of tokens, which overlapping pages walk at full speed; only
    holes need one page per token."""
    from amla.transformers import _visible

    last = torch.ones(3, 9, dtype=torch.bool)
    assert _visible(last[:, None, None], 3, 1, 9).starts is None
    last[0, :4], last[1, 7:] = False, False
    for mask in (
        last[:, None, None],
        last,
        torch.where(last, 0.0, torch.finfo(torch.float32).min)[:, None, None],
    ):
        seen = _visible(mask, 3, 1, 9)
        assert (
            seen.lengths.tolist() == [5, 7, 9]
            and seen.starts.tolist() == [4, 0, 0]
            and seen.tokens is None
        )
    last[2, 3:5] = False
    seen = _visible(last[:, None, None], 3, 1, 9)
    assert (
        seen.starts is None
        and seen.lengths.tolist() == [5, 7, 7]
        and seen.tokens[2].tolist() == [0, 1, 2, 5, 6, 7, 8]
    )
    assert _visible(torch.full((3, 1, 1, 9), 0.5), 3, 1, 9) is None  # a bias
    assert (
        _visible(None, 3, 2, 9) is None
        and _visible(last[:, None, None].expand(3, 2, 1, 9), 3, 1, 9) is None
    )  # unclear, per head


def test_several_tokens_at_once_and_long_ones():
    """Steps of up to 16 tokens, as speculative decoding makes them, are ours; longer ones are
    prefill and theirs."""
    model, inputs = deepseek_models.make("v2-lite"), prompts([100, 71])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for n, ours in ((2, 2), (16, 2), (17, 0)):
        runs = []
        for m in (model, patch(copy.deepcopy(model))):
            cache = DynamicCache(config=m.config)
            m(input_ids=ids[:, :-n], attention_mask=mask[:, :-n], **{CACHE: cache})
            runs.append(m(input_ids=ids[:, -n:], attention_mask=mask, **{CACHE: cache}).logits)
        torch.testing.assert_close(runs[1], runs[0], rtol=1e-3, atol=2e-4)
        assert stats(m).amla == ours


def test_a_mask_that_is_not_causal_stays_the_models_own():
    model = patch(deepseek_models.make("v2-lite"))
    ids = prompts([30])["input_ids"]
    tree = torch.ones(1, 1, 3, 33, dtype=torch.bool)
    tree[0, 0, 2, 31] = tree[0, 0, 1, 32] = tree[0, 0, 0, 31:] = (
        False  # the third token does not see the second: two branches
    )
    runs = []
    for m in (model, unpatch(copy.deepcopy(model))):
        cache = DynamicCache(config=m.config)
        m(input_ids=ids, **{CACHE: cache})
        with (
            pytest.warns(
                RuntimeWarning, match="^amla: decode steps stay the model's own: their mask is not"
            )
            if m is model
            else nullcontext()
        ):
            runs.append(
                m(
                    input_ids=ids[:, :3],
                    attention_mask=tree,
                    position_ids=torch.tensor([[30, 31, 31]]),
                    **{CACHE: cache},
                ).logits
            )
    assert (
        stats(model).amla == 0 and stats(model).own == 4 and sum(stats(model).reasons.values()) == 2
    )
    torch.testing.assert_close(runs[0], runs[1])


# ---- Caches ----


def test_beam_search_and_assisted_generation():
    model, inputs = deepseek_models.make("v2-lite"), prompts([20, 20])
    one = {k: v[:1] for k, v in inputs.items()}
    draft = deepseek_models.make("v2-lite", num_hidden_layers=1, seed=9)
    forms = [
        lambda m: greedy(m, inputs, num_beams=3, max_new_tokens=12, min_new_tokens=12),
        lambda m: greedy(m, one, assistant_model=draft, max_new_tokens=20, min_new_tokens=20),
        lambda m: greedy(m, one, prompt_lookup_num_tokens=3, max_new_tokens=20, min_new_tokens=20),
    ]
    want = [form(model) for form in forms]
    patch(model)
    for form, expected in zip(forms, want):
        before = stats(model).amla
        assert torch.equal(form(model), expected)
        assert stats(model).amla > before


def test_a_cache_filled_before_patching_and_one_kept_after_unpatching():
    model, inputs = deepseek_models.make("v2-lite"), prompts([50])
    ids = inputs["input_ids"]
    want = step_logits(model, inputs, 8)
    cache, logits = DynamicCache(config=model.config), []
    model(input_ids=ids[:, :42], **{CACHE: cache})
    patch(model)
    for i in range(42, 46):
        logits.append(model(input_ids=ids[:, i : i + 1], **{CACHE: cache}).logits[:, -1])
    assert all(type(layer) is LatentLayer for layer in cache.layers) and stats(model).amla == 8
    unpatch(model)
    for i in range(46, 50):
        logits.append(model(input_ids=ids[:, i : i + 1], **{CACHE: cache}).logits[:, -1])
    torch.testing.assert_close(torch.stack(logits), want[1:], rtol=1e-3, atol=2e-4)


class Duck:
    """A cache that is no transformers.Cache, as one by a name or of a kind that is yet to come."""

    def __init__(self, cache):
        self.cache = cache

    def __getattr__(self, name):
        return getattr(self.cache, name)


@pytest.mark.parametrize(
    "kind, reason",
    [
        (
            "static",
            "^amla: StaticCache of StaticLayer: every step copies its rows, DynamicCache keeps "
            "them",
        ),
        ("duck", "^amla: no argument of the attention layer is a transformers Cache"),
        ("lazy", None),
    ],
)
def test_other_caches_are_copied_and_that_is_told(kind, reason, monkeypatch, capfd):
    model, inputs = deepseek_models.make("v2-lite"), prompts([30, 12])
    want = step_logits(model, inputs, 5)
    cache = DynamicCache() if kind == "lazy" else StaticCache(config=model.config, max_cache_len=64)
    monkeypatch.setattr("amla._log.on", True)
    with pytest.warns(RuntimeWarning, match=reason) if reason else nullcontext([]) as warned:
        got = step_logits(patch(model), inputs, 5, Duck(cache) if kind == "duck" else cache)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-4)
    copies = 10 if reason else 0
    assert sum(str(w.message).startswith("amla") for w in warned) == bool(
        reason
    )  # once, not in every step
    told = [x for x in capfd.readouterr().err.splitlines() if x.startswith("amla: ")]
    assert sum(not x.startswith("amla: plan ") for x in told) == bool(reason)
    assert (stats(model).amla, stats(model).copies, sum(stats(model).reasons.values())) == (
        10,
        copies,
        copies,
    )
    assert all(type(layer) is LatentLayer for layer in cache.layers) == (kind == "lazy")


def test_latent_layer_does_what_a_dynamic_layer_does():
    from transformers.cache_utils import DynamicLayer

    torch.manual_seed(0)
    ours, theirs = LatentLayer(), DynamicLayer()
    for n in (3, 1, 300, 1, 7):
        k, v = torch.randn(2, 1, n, 512), torch.randn(2, 1, n, 64)
        for a, b in zip(ours.update(k, v), theirs.update(k, v)):
            assert torch.equal(a, b)

    def same():
        assert ours.get_seq_length() == theirs.get_seq_length() and ours.get_mask_sizes(
            2
        ) == theirs.get_mask_sizes(2)
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)

    for change in (
        lambda x: x.crop(-5),
        lambda x: x.reorder_cache(torch.tensor([1, 0])),
        lambda x: x.batch_repeat_interleave(3),
        lambda x: x.batch_select_indices(torch.tensor([0, 5])),
        lambda x: x.update(torch.ones(2, 1, 1, 512), torch.ones(2, 1, 1, 64)),
    ):
        change(ours), change(theirs)
        same()
    with pytest.raises(ValueError, match="must be negative"):
        ours.crop(3)
    ours.reset()
    assert ours.get_seq_length() == 0 and not ours.is_initialized


# ---- torch.compile ----


@pytest.mark.parametrize("backend, padded", [("eager", False), ("aot_eager", True)])
def test_compiled_models_keep_their_graphs(backend, padded):
    """A few graphs, of the prefill and the first steps; however long the sequence grows, no
    more."""
    from torch._dynamo.utils import counters

    model, inputs = (
        patch(deepseek_models.make("v2-lite", num_hidden_layers=1)),
        prompts([40, 33] if padded else [40, 40]),
    )
    want = step_logits(model, inputs, 22)
    torch._dynamo.reset()
    counters.clear()
    compiled, cache, graphs = (
        torch.compile(model, backend=backend, fullgraph=True),
        DynamicCache(config=model.config),
        [],
    )
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        got = step_logits(
            compiled, inputs, 22, cache, lambda: graphs.append(counters["stats"]["unique_graphs"])
        )
    assert graphs[4] == graphs[-2] <= 3, (
        graphs
    )  # in the last step the mask happens to be as wide as the prompt: torch adds a graph
    torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-4)
    assert type(cache.layers[0]) is LatentLayer and stats(model) == Stats(
        amla=44, own=1, copies=0, reasons={}
    )


def test_any_mask_inside_a_graph():
    """A graph cannot turn back to the model's own attention when it sees the mask: the operator
    attends as that would, and tells."""
    from amla.transformers import PAGE, _Memo, _Patched

    patched = _Patched(Stats(), _Memo(), None, "sdpa")
    q, rows, n = torch.randn(2, 3, 4, 576), torch.randn(2, 30 + PAGE, 576), 30
    mask = torch.randn(2, 1, 3, n)
    with pytest.warns(RuntimeWarning, match="their mask is not causal up to padding"):
        out = torch.ops.amla.latent_attention(q, rows, n, mask, 0.1, 512, patched.stats_id, "")
    weights = torch.softmax(0.1 * torch.einsum("bshd,bnd->bhsn", q, rows[:, :n]) + mask, -1)
    torch.testing.assert_close(
        out, torch.einsum("bhsn,bnd->bshd", weights, rows[:, :n, :512]), rtol=1e-4, atol=1e-5
    )
    assert (patched.stats.amla, patched.stats.own) == (0, 1)


# ---- Memory ----


def test_memory_per_token():
    """576 numbers per token and layer in the cache; what the unpatched model makes of them in every
    step is 128 * 320, 71.1 times as many. (transformers 5.23 caches the 576 too; releases that
    cached what they expand kept all of it.)"""
    model, inputs = deepseek_models.make("v3"), prompts([300])
    expanded = []

    def watch(module, query, key, value, *args, **kwargs):
        expanded.append((key.numel() + value.numel()) / key.shape[2])
        return own(module, query, key, value, *args, **kwargs)

    own = transformers.AttentionInterface()["sdpa"]
    transformers.AttentionInterface.register("watch", watch)
    model.set_attn_implementation("watch")
    step_logits(model, inputs, 1)
    assert set(expanded) == {128 * 320}

    model.set_attn_implementation("sdpa")
    patch(model)
    cache = DynamicCache(config=model.config)
    step_logits(model, inputs, 1, cache)
    for layer in cache.layers:
        used = layer.keys.numel() + layer.values.numel()
        assert used / 300 == 576 and pytest.approx(71.1, abs=0.05) == 128 * 320 / 576
        assert layer.rows.numel() <= used + (256 + 64) * 576  # room to grow, and a page to spare
        assert layer.keys.untyped_storage().data_ptr() == layer.values.untyped_storage().data_ptr()


# ---- Patching ----


def test_steps_that_record_gradients_or_ask_for_weights_stay_the_models_own():
    model, ids = (
        patch(deepseek_models.make("v2-lite", attention="eager")),
        prompts([20])["input_ids"],
    )
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, **{CACHE: cache})
    with pytest.warns(RuntimeWarning, match="own: attention weights are asked for"):
        out = model(input_ids=ids[:, :1], **{CACHE: cache}, output_attentions=True)
    assert out.attentions[0].shape == (1, 16, 1, 21) and stats(model).amla == 0
    always = deepseek_models.make("v2-lite", attention="eager")
    always.config.output_attentions = True
    cache = DynamicCache(config=patch(always).config)
    always(input_ids=ids, **{CACHE: cache})
    with pytest.warns(RuntimeWarning, match="own: attention weights are asked for"):
        assert (
            always(input_ids=ids[:, :1], **{CACHE: cache}).attentions[0].shape == (1, 16, 1, 21)
            and stats(always).amla == 0
        )
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, **{CACHE: cache})
    with (
        torch.enable_grad(),
        pytest.warns(RuntimeWarning, match="own: gradients are recorded, use torch.no_grad"),
    ):
        model(input_ids=ids[:, :1], **{CACHE: cache}).logits.sum().backward()
    assert (
        stats(model).amla == 0 and model.model.layers[0].self_attn.kv_b_proj.weight.grad is not None
    )


def test_another_attention_implementation_set_after_patching_still_works():
    model, inputs = deepseek_models.make("v2-lite"), prompts([20])
    want = step_logits(model, inputs, 3)
    patch(model)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(step_logits(model, inputs, 3), want, rtol=1e-3, atol=2e-4)
    assert stats(model).amla == 0


def test_copies_and_a_shared_config():
    model, inputs = deepseek_models.make("v2-lite"), prompts([20])
    other = type(model)(model.config).eval()  # an unpatched model that shares the config object
    want = step_logits(other, inputs, 3)
    twin = copy.deepcopy(patch(model))  # counts for itself
    torch.testing.assert_close(step_logits(other, inputs, 3), want)
    torch.testing.assert_close(step_logits(twin, inputs, 3), step_logits(model, inputs, 3))
    assert stats(twin).amla == stats(model).amla == 6


def test_masks_written_in_place_are_seen():
    from amla.transformers import _Memo, _Patched

    patched = _Patched(Stats(), _Memo(), None, "sdpa")
    mask = torch.ones(1, 1, 1, 9, dtype=torch.bool)
    first = patched.visible(mask, 1, 1, 9)
    assert patched.visible(mask, 1, 1, 9) is first  # once for all layers
    mask[..., :4] = False
    assert patched.visible(mask, 1, 1, 9).lengths.tolist() == [5]
    with torch.inference_mode():
        mask = torch.ones(1, 1, 1, 9, dtype=torch.bool)
        for hidden in (1, 3):
            mask[..., :hidden] = False
            assert patched.visible(mask, 1, 1, 9).lengths.tolist() == [9 - hidden]
    assert patched.visible(object(), 1, 1, 9) is None  # flex attention's masks are no tensors


def test_projections_that_are_more_than_their_weight_stay_the_models_own():
    model, inputs = deepseek_models.make("v2-lite"), prompts([20])

    def hook(m):
        m.model.layers[0].self_attn.kv_b_proj.register_forward_hook(lambda module, x, y: 0.5 * y)
        return m

    own, ours = hook(copy.deepcopy(model)), hook(patch(copy.deepcopy(model)))
    with pytest.warns(RuntimeWarning, match="own: kv_b_proj has got a wrapper, a hook"):
        torch.testing.assert_close(
            step_logits(ours, inputs, 3), step_logits(own, inputs, 3), rtol=1e-3, atol=2e-4
        )
    assert stats(ours).amla == 3 and stats(ours).own == 2 + 3
    with pytest.raises(
        NotImplementedError,
        match="layer 0: kv_b_proj is Linear: must be a plain nn.Linear without bias, hooks",
    ):
        patch(own)


def test_layers_across_modes_and_with_assigned_tensors():
    layer, new = LatentLayer(), lambda n: (torch.randn(1, 1, n, 512), torch.randn(1, 1, n, 64))
    with torch.inference_mode():
        layer.update(*new(3))
    layer.update(*new(1))  # outside inference mode its tensors must not be written
    assert not layer.rows.is_inference() and layer.get_seq_length() == 4
    layer.keys, layer.values = layer.keys[:, :, :2], layer.values[:, :, :2]
    want = layer.keys.clone()
    keys, values = layer.update(*new(1))
    assert (
        keys.shape[2] == values.shape[2] == 3 == layer.length
        and torch.equal(keys[:, :, :2], want)
        and keys is layer.keys
    )
    layer.keys = layer.keys[:, :, :1]
    with pytest.raises(ValueError, match="^values: shape"):
        layer.update(*new(1))


def test_gradients_through_several_cached_steps():
    model, ids = deepseek_models.make("v2-lite"), prompts([20])["input_ids"]
    norms = []
    for m in (model, patch(copy.deepcopy(model))):
        cache, total = DynamicCache(config=m.config), 0
        with (
            torch.enable_grad(),
            nullcontext()
            if m is model
            else pytest.warns(RuntimeWarning, match="gradients are recorded"),
        ):
            for i in range(4):
                total = (
                    total + m(input_ids=ids[:, i : i + 1], **{CACHE: cache}).logits.pow(2).mean()
                )
            with torch.no_grad():
                m(input_ids=ids[:, 4:5], **{CACHE: cache})
            total.backward()
        norms.append(m.model.layers[0].self_attn.kv_a_proj_with_mqa.weight.grad.norm())
    torch.testing.assert_close(norms[1], norms[0])


def test_pickled_models_decode_in_another_process(tmp_path):
    import subprocess
    import sys

    model, inputs = (
        patch(deepseek_models.make("v2-lite", num_hidden_layers=1, vocab_size=4000)),
        prompts([12]),
    )
    want = greedy(model, inputs, max_new_tokens=4, min_new_tokens=4)
    torch.save((model, inputs, want), tmp_path / "model.pt")
    code = """
import sys, torch
model, inputs, want = torch.load(sys.argv[1], weights_only=False)
from amla.transformers import stats
before = stats(model).amla
got = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
assert torch.equal(got, want) and stats(model).amla == before + 3
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], check=True)


def test_unpatching_one_of_two_models_with_one_config():
    model, inputs = patch(deepseek_models.make("v2-lite")), prompts([20])
    other = patch(type(model)(model.config).eval())
    want = step_logits(model, inputs, 3)
    before = stats(other).amla
    torch.testing.assert_close(step_logits(unpatch(model), inputs, 3), want, rtol=1e-3, atol=2e-4)
    step_logits(other, inputs, 3)
    assert stats(other).amla == before + 6
    assert unpatch(other).config._attn_implementation == "sdpa"


def test_refusals_change_nothing():
    with pytest.raises(
        NotImplementedError,
        match="^Linear: no attention layer with kv_b_proj, which expands latent rows",
    ):
        patch(torch.nn.Linear(2, 2))
    model = deepseek_models.make("v2-lite")
    last = model.model.layers[1].self_attn
    plain = last.kv_b_proj
    last.kv_b_proj = torch.nn.Sequential(plain)
    with pytest.raises(
        NotImplementedError,
        match="^DeepseekV2ForCausalLM, layer 1: kv_b_proj is Sequential: must be a plain nn.Linear",
    ):
        patch(model)
    assert (
        model.config._attn_implementation == "sdpa"
        and "expand_kv" not in model.model.layers[0].self_attn.__dict__
    )
    last.kv_b_proj = plain
    patch(model)
    with pytest.raises(ValueError, match="^DeepseekV2ForCausalLM, layer 0: patched already"):
        patch(model)
    unpatch(model)
    for function in (unpatch, stats):
        with pytest.raises(ValueError, match="^DeepseekV2ForCausalLM: not patched"):
            function(model)
