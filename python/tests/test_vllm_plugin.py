# SPDX-License-Identifier: Apache-2.0
"""The plug-in for vLLM without vLLM: its modules are stood in for by the names that the plug-in
takes from them, as release 0.32 has them. What is registered, what is left alone, what becomes of
the platform's choices, and the backend's three functions against fp64. python/tests/try_vllm.py
runs the real one, in the long run."""

import contextlib
import os
import sys
import types

import numpy as np
import pytest
import torch

import oracle
from amla import _cache_write, _plan
from amla import vllm as plugin

B, H, RANK, ROPE, NOPE, D_V, PAGE = 3, 4, 64, 16, 24, 20, 8
SCALE = 0.2


class Platform:
    """What CpuPlatform does to a model with CPU_MLA."""

    @staticmethod
    def is_cpu():
        return True

    @classmethod
    def check_and_update_config(cls, config):
        config.seen = True
        config.cache_config.block_size = 16
        config.cache_config.enable_prefix_caching = False
        config.scheduler_config.enable_chunked_prefill = False
        config.scheduler_config.max_num_batched_tokens = 99999


def config(asked=True, use_mla=True, model_type="deepseek_v3", backend=None):
    new = types.SimpleNamespace
    return new(
        cache_config=new(
            user_specified_block_size=asked, block_size=64, enable_prefix_caching=True
        ),
        scheduler_config=new(enable_chunked_prefill=True, max_num_batched_tokens=2048),
        model_config=new(use_mla=use_mla, hf_config=new(model_type=model_type)),
        attention_config=new(backend=backend),
    )


@pytest.fixture
def host(monkeypatch):
    """vLLM 0.32, as far as the plug-in sees it."""
    registered = {}

    class CPUMLAImpl:
        def forward_mha(self, *arguments):
            self.own_prefill = arguments

    class MLACommonMetadataBuilder:
        def build(self, common_prefix_len, common, fast_build=False):
            return common.made

    modules = {
        "vllm.platforms": dict(current_platform=type("Current", (Platform,), {})()),
        "vllm.v1.attention.backends.registry": dict(
            AttentionBackendEnum=types.SimpleNamespace(CPU_MLA="CPU_MLA"),
            register_backend=registered.__setitem__,
        ),
        "vllm.model_executor.layers.attention.mla_attention": dict(
            MLACommonMetadataBuilder=MLACommonMetadataBuilder
        ),
        "vllm.model_executor.layers.quantization.utils.quant_utils": dict(
            get_and_maybe_dequant_weights=lambda layer, out_dtype: layer.weight.to(out_dtype)
        ),
        "vllm.v1.attention.backend": dict(MultipleOf=lambda n: ("multiple of", n)),
        "vllm.v1.attention.backends.mla.cpu_mla": dict(
            CPUMLABackend=type("CPUMLABackend", (), {}), CPUMLAImpl=CPUMLAImpl
        ),
    }
    for name, members in modules.items():
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            package = ".".join(parts[:i])
            if package not in sys.modules or i == len(parts):
                module = types.ModuleType(package)
                module.__path__ = []
                monkeypatch.setitem(sys.modules, package, module)
        vars(sys.modules[name]).update(members)
    monkeypatch.delitem(sys.modules, "amla._vllm_mla", raising=False)
    monkeypatch.setattr(plugin, "_version", lambda: "0.32.0")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr("amla._log.on", True)
    yield types.SimpleNamespace(
        registered=registered, platform=modules["vllm.platforms"]["current_platform"]
    )
    sys.modules.pop("amla._vllm_mla", None)


# ---- register ----


def test_registers_and_keeps_the_users_choices(host, capsys):
    plugin.register()
    plugin.register()  # vLLM calls it in each of its processes, perhaps twice
    assert host.registered == {"CPU_MLA": "amla._vllm_mla.AmlaMLABackend"}
    assert "amla: decodes for vLLM's backend CPU_MLA" in capsys.readouterr().err
    update = type(host.platform).check_and_update_config
    kept = config()
    update(kept)
    assert kept.seen and kept.cache_config.block_size == 64
    assert kept.cache_config.enable_prefix_caching and kept.scheduler_config.enable_chunked_prefill
    assert kept.scheduler_config.max_num_batched_tokens == 2048
    assert capsys.readouterr().err == (
        "amla: block_size=64, enable_prefix_caching=True, enable_chunked_prefill=True\n"
    )
    default = config(asked=False)
    update(default)
    assert default.cache_config.block_size == 16


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize(
    "options,served",
    [
        (dict(), "without AMX"),
        (dict(backend="CPU_MLA"), "always"),
        (dict(use_mla=False), "never"),
        (dict(model_type="deepseek_v4"), "never"),
    ],
)
def test_other_models_are_left_to_the_platform(host, monkeypatch, amx, options, served):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    plugin.register()
    found = config(**options)
    type(host.platform).check_and_update_config(found)
    kept = served == "always" or (served == "without AMX" and not amx)
    assert found.cache_config.block_size == (64 if kept else 16)


@pytest.mark.parametrize(
    "version,reason",
    [
        ("0.33.1", "release 0.33.1 is not known, 0.32 are"),
        ("0.3.2", "release 0.3.2 is not known"),
        (None, "no release of vLLM is installed"),
    ],
)
def test_unknown_releases_are_left_alone_with_one_line(host, monkeypatch, capsys, version, reason):
    monkeypatch.setattr(plugin, "_version", lambda: version)
    before = type(host.platform).check_and_update_config
    plugin.register()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"amla: vLLM is left alone: {reason}")
    assert host.registered == {} and type(host.platform).check_and_update_config == before


def test_other_platforms_are_left_alone(host, monkeypatch, capsys):
    monkeypatch.setattr(Platform, "is_cpu", staticmethod(lambda: False))
    plugin.register()
    assert "its platform is not a CPU" in capsys.readouterr().err and host.registered == {}


# ---- The backend ----


@pytest.fixture
def backend(host):
    from amla import _vllm_mla

    return _vllm_mla


@pytest.fixture
def impl(backend):
    made = backend.AmlaMLAImpl()
    vars(made).update(
        num_heads=H,
        kv_lora_rank=RANK,
        qk_rope_head_dim=ROPE,
        qk_nope_head_dim=NOPE,
        v_head_dim=D_V,
        scale=SCALE,
    )
    weight = torch.randn(H * (NOPE + D_V), RANK, generator=torch.Generator().manual_seed(2)) / 8
    made.kv_b_proj = types.SimpleNamespace(weight=weight)
    made.process_weights_after_loading(torch.float32)
    return made


@pytest.fixture
def cached():
    """A cache in pages, NaN behind the last token of a sequence, its table and lengths."""
    g = torch.Generator().manual_seed(1)
    lengths, table = [19, 8, 30], torch.randperm(12, generator=g).int().view(B, 4)
    rows = [torch.randn(n, RANK + ROPE, generator=g) for n in lengths]
    cache = torch.full((12, PAGE, RANK + ROPE), torch.nan)
    for i, row in enumerate(rows):
        slots = (table[i][:, None].long() * PAGE + torch.arange(PAGE)).flatten()
        cache.view(-1, RANK + ROPE)[slots[: len(row)]] = row
    return cache, table, torch.tensor(lengths, dtype=torch.int32), rows


def test_what_the_backend_offers(backend):
    made = backend.AmlaMLABackend
    assert all(made.supports_block_size(n) for n in (None, 1, 16, 53, 128))
    assert not made.supports_block_size(0)
    assert made.get_supported_kernel_block_sizes() == [("multiple of", 1)]
    assert 576 in made.get_supported_head_sizes()
    assert made.get_impl_cls() is backend.AmlaMLAImpl
    assert backend.AmlaMLAImpl.can_return_lse_for_decode


@pytest.mark.parametrize("s_q", [1, 2])
@pytest.mark.parametrize("split", [True, False])
def test_decode(impl, cached, s_q, split):
    cache, table, lengths, rows = cached
    q = torch.randn(B * s_q, H, RANK + ROPE)
    metadata = types.SimpleNamespace(
        decode=types.SimpleNamespace(block_table=table, seq_lens=lengths)
    )
    arguments = q.split((RANK, ROPE), dim=-1) if split else q
    out, lse = impl.forward_mqa(arguments, cache, metadata, None)
    assert out.shape == (B * s_q, H, RANK) and lse.shape == (B * s_q, H)
    for i, row in enumerate(rows):
        mine = slice(i * s_q, (i + 1) * s_q)
        want, want_lse = oracle.attend(q[mine].numpy(), row.double().numpy(), SCALE, RANK, True)
        assert oracle.rel_error(out[mine], want) < 1e-5
        np.testing.assert_allclose(lse[mine], want_lse.T, rtol=1e-5, atol=1e-5)


def test_decode_of_the_same_shapes_reads_the_new_tensors(impl, cached):
    """What is remembered of a shape has no pointers in it. Lengths and page ids of int64 too."""
    cache, table, lengths, rows = cached
    shorter, shuffled = lengths - 3, torch.roll(table, 1, 0)
    moved = torch.roll(lengths, 1, 0)
    for t, n, mine in (
        (table, lengths, rows),
        (table, shorter, [row[:-3] for row in rows]),
        (shuffled.long(), moved.long(), [rows[-1], *rows[:-1]]),
    ):
        q = torch.randn(B, H, RANK + ROPE)
        metadata = types.SimpleNamespace(decode=types.SimpleNamespace(block_table=t, seq_lens=n))
        out, lse = impl.forward_mqa(q.split((RANK, ROPE), -1), cache.clone(), metadata, None)
        for i, row in enumerate(mine):
            want, want_lse = oracle.attend(q[i : i + 1].numpy(), row.double().numpy(), SCALE, RANK)
            assert oracle.rel_error(out[i : i + 1], want) < 1e-5
            np.testing.assert_allclose(lse[i], want_lse[:, 0], rtol=1e-5, atol=1e-5)


def test_prefill_behind_cached_tokens(impl, cached):
    """Keys and values of every head, expanded, in fp64."""
    cache, table, lengths, rows = cached
    new, expanded = [5, 8, 1], []
    q = torch.randn(sum(new), H, NOPE + ROPE)
    weight = impl.kv_b_proj.weight.double().view(H, NOPE + D_V, RANK)
    begin = 0
    for row, n in zip(rows, new):
        for h in range(H):
            both = row[:, :RANK].double() @ weight[h].T
            keys = torch.cat((both[:, :NOPE], row[:, RANK:].double(), both[:, NOPE:]), -1).numpy()
            query = np.pad(q[begin : begin + n, h : h + 1].numpy(), ((0, 0), (0, 0), (0, D_V)))
            p = SCALE * query[:, 0] @ keys.T
            p[np.arange(len(row)) > np.arange(len(row) - n, len(row))[:, None]] = -np.inf
            p = np.exp(p - p.max(-1, keepdims=True))
            expanded.append(p / p.sum(-1, keepdims=True) @ keys[:, NOPE + ROPE :])
        begin += n
    prefill = types.SimpleNamespace(
        chunked_context="some",
        block_table=table,
        amla_seqlens=lengths,
        query_start_loc=torch.tensor([0, 5, 13, 14], dtype=torch.int32),
    )
    output = torch.empty(sum(new), H * D_V)
    metadata = types.SimpleNamespace(prefill=prefill)
    impl.forward_mha(q, None, None, cache, metadata, None, output)
    begin = 0
    for i, n in enumerate(new):
        got = output[begin : begin + n].view(n, H, D_V)
        for h in range(H):
            assert oracle.rel_error(got[:, h], expanded[i * H + h]) < 1e-5
        begin += n


def test_prefill_of_a_whole_prompt_is_the_hosts(impl):
    metadata = types.SimpleNamespace(prefill=types.SimpleNamespace(chunked_context=None))
    impl.forward_mha(1, 2, 3, 4, metadata, 5, 6)
    assert impl.own_prefill == (1, 2, 3, 4, metadata, 5, 6, None)


@pytest.fixture
def bound():
    """The caller is bound to one CPU, torch's number of threads may be set, and nothing of other
    tests is remembered."""
    threads, cpus = torch.get_num_threads(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AMLA_NUM_THREADS", raising=False)
        patch.setattr(_plan, "_calls", {})
        patch.setattr(_cache_write, "_remembered", {})
        yield {min(cpus)}
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cpus)


def allowed_cpus():
    """Of each thread of this process."""
    found = {}
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            found[thread] = os.sched_getaffinity(int(thread))
    return found


def test_threads_are_torchs_and_their_cpus_stay(impl, bound, monkeypatch):
    """Decode, prefill and the write of rows ask for as many as torch has then. The CPUs of the
    process's threads stay as they are, and those that begin have their caller's."""
    asked, real = [], _plan.options_struct
    monkeypatch.setattr(_plan, "options_struct", lambda o: asked.append(o["threads"]) or real(o))
    cache, new = torch.randn(8, 512, RANK + ROPE), types.SimpleNamespace
    table, lengths = torch.arange(8).int()[None], torch.tensor([4096]).int()
    metadata = new(decode=new(block_table=table, seq_lens=lengths))
    metadata.prefill = new(chunked_context="some", block_table=table, amla_seqlens=lengths)
    metadata.prefill.query_start_loc = torch.tensor([0, 2]).int()
    for n in (1, 4, 2):
        torch.set_num_threads(n)
        before = allowed_cpus()
        impl.forward_mqa(torch.randn(1, H, RANK + ROPE), cache, metadata, None)
        q, out = torch.randn(2, H, NOPE + ROPE), torch.empty(2, H * D_V)
        impl.forward_mha(q, None, None, cache, metadata, None, out)
        rows, slots = torch.randn(4096, RANK), torch.arange(4096)
        impl.do_kv_cache_update(rows, torch.randn(4096, 1, ROPE), cache, slots, "auto", None)
        assert asked == [n, n, n]
        asked.clear()
        after = allowed_cpus()
        begun = after.keys() - before.keys()
        assert len(begun) < n and all(after[thread] == bound for thread in begun)
        assert all(after[thread] == before[thread] for thread in after.keys() & before.keys())


def test_new_rows_are_written(impl):
    cache = torch.zeros(4, PAGE, RANK + ROPE)
    latent, rope = torch.randn(4, RANK), torch.randn(4, 1, ROPE)
    slots = torch.tensor([9, -1, 0])  # one row more than slots: padding
    impl.do_kv_cache_update(latent, rope, cache, slots, "auto", None)
    flat = cache.view(-1, RANK + ROPE)
    assert torch.equal(flat[9], torch.cat((latent[0], rope[0, 0])))
    assert torch.equal(flat[0], torch.cat((latent[2], rope[2, 0])))
    assert flat.count_nonzero() == 2 * (RANK + ROPE)
    impl.do_kv_cache_update(latent, rope, torch.empty(0), slots, "auto", None)


def test_lengths_of_prefilled_sequences(backend):
    new = types.SimpleNamespace
    made = new(num_decodes=2, num_prefills=2, prefill=new())
    common = new(seq_lens=torch.tensor([3, 4, 50, 60]), made=made)
    assert backend.AmlaMLAMetadataBuilder().build(0, common) is made
    assert made.prefill.amla_seqlens.tolist() == [50, 60]
    common.made = new(prefill=None)
    assert backend.AmlaMLAMetadataBuilder().build(0, common).prefill is None
