# SPDX-License-Identifier: Apache-2.0
"""amla.decode on torch tensors: types, strides, threads, the custom operator under torch.compile,
opcheck and FakeTensorMode."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import amla
import oracle

SCALE = 192**-0.5
ERROR = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


def problem(dtype=torch.float32, b=2, s_q=1, h=5, page=16, per=4, seed=1):
    torch.manual_seed(seed)
    q = torch.randn(b, s_q, h, 576).to(dtype)
    kv = torch.randn(b * per, page, 1, 576).to(dtype)
    table = torch.randperm(b * per, dtype=torch.int32).view(b, per)
    lengths = torch.tensor([page * per - 13 * i for i in range(b)], dtype=torch.int32)
    return q, kv, table, lengths


def want(q, kv, table, lengths, **options):
    return oracle.decode(
        q.double().numpy(),
        kv[:, :, 0].double().numpy(),
        table.numpy(),
        lengths.numpy(),
        scale=SCALE,
        **options,
    )


@pytest.mark.parametrize("dtype", ERROR, ids=str)
def test_types_shapes_and_values(dtype):
    arguments = problem(dtype, s_q=2)
    out, lse = amla.decode(*arguments, scale=SCALE, causal=True)
    assert (
        out.shape == (2, 2, 5, 512)
        and out.dtype == dtype
        and lse.shape == (2, 5, 2)
        and lse.dtype == torch.float32
    )
    want_out, want_lse = want(*arguments, causal=True)
    assert oracle.rel_error(out.double(), want_out) < ERROR[dtype]
    assert np.abs(lse.numpy() - want_lse).max() < 1e-5
    for name in ("float32", torch.float32, np.float32):
        assert amla.decode(*arguments, scale=SCALE, out_dtype=name)[0].dtype == torch.float32


def test_the_same_bits_as_numpy_and_any_mixture():
    q, kv, table, lengths = problem()
    a = amla.decode(q, kv, table, lengths, scale=SCALE)
    b = amla.decode(q.numpy(), kv, table.numpy(), lengths, scale=SCALE)
    assert isinstance(a[0], torch.Tensor) and isinstance(b[0], np.ndarray)
    assert a[0].numpy().tobytes() == b[0].tobytes() and a[1].numpy().tobytes() == b[1].tobytes()


def test_strides_and_out():
    q, kv, table, lengths = problem(s_q=3)
    expected = amla.decode(q, kv, table, lengths, scale=SCALE)
    q2 = torch.zeros(5, 3, 2, 600)[..., :576].permute(2, 1, 0, 3).copy_(q)
    kv2 = torch.zeros(16, 8, 1, 640)[..., 64:].transpose(0, 1).copy_(kv)
    memory = torch.zeros(2, 5, 3, 512)
    out, _ = amla.decode(q2, kv2, table, lengths, scale=SCALE, out=memory.transpose(1, 2))
    assert torch.equal(out, expected[0]) and torch.equal(memory.transpose(1, 2), expected[0])
    with pytest.raises(ValueError, match="^q: stride 0 along axis 2: a broadcast"):
        amla.decode(q[:, :, :1].expand(-1, -1, 5, -1), kv, table, lengths, scale=SCALE)


def test_gradients_are_refused_not_lost():
    q, kv, table, lengths = problem()
    q.requires_grad_()
    with pytest.raises(ValueError, match="no backward pass, use torch.no_grad"):
        amla.decode(q, kv, table, lengths, scale=SCALE)
    with torch.no_grad():
        out, _ = amla.decode(q, kv, table, lengths, scale=SCALE)
    assert not out.requires_grad
    amla.decode(
        torch.nn.Parameter(q.detach(), requires_grad=False), kv, table, lengths, scale=SCALE
    )


def test_every_input_that_requires_a_gradient_is_refused():
    q, kv, table, lengths = problem()
    sinks = torch.zeros(5, requires_grad=True)
    with pytest.raises(ValueError, match="^sinks requires a gradient"):
        amla.decode(q, kv, table, lengths, scale=SCALE, sinks=sinks)
    with pytest.raises(ValueError, match="^kv_cache requires a gradient"):
        amla.decode(q.numpy(), kv.clone().requires_grad_(), table, lengths, scale=SCALE)
    with pytest.raises(ValueError, match="^o requires a gradient"):
        amla.merge(torch.zeros(2, 3, 8, requires_grad=True), torch.zeros(2, 3))


def test_tensors_that_are_not_what_their_memory_says():
    q, kv, table, lengths = problem()
    with pytest.raises(
        ValueError, match="^q: a tensor with its negative bit set: must be resolved"
    ):
        amla.decode(torch._neg_view(q), kv, table, lengths, scale=SCALE)
    with pytest.raises(ValueError, match=r"^scale=tensor\(0.1000\): must be a plain number"):
        amla.decode(q, kv, table, lengths, scale=torch.tensor(0.1))


def test_torch_set_num_threads_holds():
    q, kv, table, lengths = problem(per=40)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            amla.decode(q, kv, table, lengths, scale=SCALE)
            from amla import _plan

            assert f"{n} thread" in list(_plan._calls.values())[-1].plan.describe()
    finally:
        torch.set_num_threads(threads)


def test_int64_page_ids_and_lengths():
    """As vLLM and transformers hold them: the same bits, in decode, flash_mla and the operator."""
    from amla import flash_mla

    q, kv, table, lengths = problem()
    want = amla.decode(q, kv, table, lengths, scale=SCALE)
    wide = torch.stack((table, table), 2).long()[..., 0]
    for t, n in ((wide, lengths.long()), (table, lengths.long()), (wide, lengths)):
        for got in (
            amla.decode(q, kv, t, n, scale=SCALE),
            flash_mla.flash_mla_with_kvcache(q, kv, t, n, 512, softmax_scale=SCALE),
            torch.ops.amla.decode(
                q,
                kv,
                t,
                n,
                None,
                None,
                SCALE,
                False,
                512,
                "lazy",
                "auto",
                0,
                "e",
                torch.float32,
                "auto",
                0,
            ),
        ):
            assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    empty = flash_mla.flash_mla_with_kvcache(
        q, kv, wide, torch.tensor([9, 0]), 512
    )  # which reads the lengths itself
    assert (empty[1][1] == torch.inf).all() and torch.isfinite(empty[1][0]).all()
    wide = wide.contiguous()
    wide[1, 2] = 2**40
    for call in (
        lambda: amla.decode(q, kv, wide, lengths, scale=SCALE),
        lambda: flash_mla.flash_mla_with_kvcache(q, kv, wide, lengths, 512),
    ):
        with pytest.raises(
            ValueError, match=r"^block_table\[1\]\[2\]=1099511627776: must fit into int32"
        ):
            call()
    with pytest.raises(ValueError, match=r"^cache_seqlens\[0\]=-2147483649: must fit into int32"):
        flash_mla.flash_mla_with_kvcache(q, kv, table, torch.tensor([-(2**31) - 1, 3]), 512)


UNPLAIN = {
    "sparse": (
        lambda x, call: call(x.to_sparse()),
        "layout torch.sparse_coo: must be torch.strided, call to_dense()",
    ),
    "meta": (
        lambda x, call: call(x.to("meta")),
        "device meta: must be on the CPU or on a CUDA device",
    ),
    "vmap": (
        lambda x, call: torch.vmap(call)(x[None]),
        "a tensor inside torch.vmap or another transform of torch.func: must be a plain one",
    ),
    "nested": (
        lambda x, call: call(torch.nested.nested_tensor([*x.unsqueeze(-1)])),
        "a nested tensor: must be a plain one",
    ),
    "jagged": (
        lambda x, call: call(torch.nested.nested_tensor([*x.unsqueeze(-1)], layout=torch.jagged)),
        "a nested tensor: must be a plain one",
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", UNPLAIN)
@pytest.mark.parametrize("position", range(5))
def test_tensors_without_plain_memory_are_refused_by_name(kind, position):
    """Even after a call with plain tensors of the same shapes, whose checks are remembered."""
    from amla import flash_mla

    make, words = UNPLAIN[kind]
    arguments = [*problem(), torch.zeros(5)]
    decode = lambda a: amla.decode(*a[:4], scale=SCALE, sinks=a[4])[0]
    flash = lambda a: flash_mla.flash_mla_with_kvcache(*a[:4], 512, attn_sink=a[4])[0]
    if kind == "jagged" and position > 0:
        pytest.skip("the first argument decides whether a call goes to the operator")
    for call, names in (
        (decode, ("q", "kv_cache", "block_table", "seqlens", "sinks")),
        (flash, ("q", "k_cache", "block_table", "cache_seqlens", "attn_sink")),
    ):
        call(arguments)
        with pytest.raises(ValueError, match=f"^{names[position]}: {re.escape(words)}"):
            make(
                arguments[position],
                lambda x, call=call: call([*arguments[:position], x, *arguments[position + 1 :]]),
            )


def test_what_merge_refuses():
    for o, words in (
        (torch.zeros(2, 3, 8).to_sparse(), "layout torch.sparse_coo"),
        (torch.zeros(2, 3, 8, device="meta"), "device meta"),
    ):
        with pytest.raises(ValueError, match=f"^o: {words}"):
            amla.merge(o, torch.zeros(2, 3))


@pytest.mark.skipif(
    "AMLA_CUDA_EMULATED" not in os.environ,
    reason="needs the emulated CUDA backend of the build folder, see tests/test_python.sh",
)
def test_the_cuda_path_on_an_emulated_backend():
    """No GPU: the library's cuda backend on emulated threads, whose device memory is host memory,
    and torch.cuda played by stubs. Shows that backend, memory kind, scratch and stream are passed
    on; shows nothing about hardware."""
    code = """
import contextlib, types, torch, amla
from amla import _plan
torch.manual_seed(0)
q, kv = torch.randn(2, 2, 16, 576).bfloat16(), torch.randn(8, 64, 1, 576).bfloat16()
table = torch.randperm(8, dtype=torch.int32).view(2, 4)
lengths = torch.tensor([250, 70], dtype=torch.int32)
call = lambda: amla.decode(q, kv, table, lengths, scale=192**-0.5, causal=True)
want = call()
_plan._calls.clear()
real, used = torch.empty, []
_plan.one_device = lambda **views: "cuda:0"
torch.cuda.device = lambda device: contextlib.nullcontext()
torch.cuda.current_stream = lambda *a: types.SimpleNamespace(cuda_stream=0)
torch.empty = lambda *a, device=None, **k: (used.append(str(device)), real(*a, **k))[1]
got = call()
assert "cuda" in list(_plan._calls.values())[0].plan.describe() and "cuda:0" in used, used
torch.testing.assert_close(got[0], want[0], rtol=2e-2, atol=2e-3)
torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-3)
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "AMLA_BACKEND_DIR": os.environ["AMLA_CUDA_EMULATED"]},
    )


def test_cuda_tensors_without_the_backend_say_why():
    from amla import _plan

    if amla.backends()["cuda"].startswith("absent"):
        with pytest.raises(NotImplementedError, match="^tensors on cuda:0 need backend cuda: ."):
            _plan.backend_for("cuda:0", "auto")
    with pytest.raises(ValueError, match="^backend='cpu': tensors on cuda:0 need 'cuda'"):
        _plan.backend_for("cuda:0", "cpu")


def test_block_table_without_columns():
    q, kv, table, _ = problem()
    none, zeros = table[:, :0], torch.zeros(2, dtype=torch.int32)
    out, lse = amla.decode(q, kv, none, zeros, scale=SCALE)
    assert not out.any() and torch.isneginf(lse).all()
    compiled = torch.compile(lambda *a: amla.decode(*a, scale=SCALE), backend="aot_eager")
    for got, want in zip(compiled(q, kv, none, zeros), (out, lse)):
        assert torch.equal(got, want)


def test_merge_takes_tensors():
    q, kv, table, lengths = problem(s_q=2)
    halves = [
        amla.decode(
            q,
            kv,
            table[:, i : i + 2].contiguous(),
            (lengths - 32 * (i > 0)).clamp(0, 32),
            scale=SCALE,
        )
        for i in (0, 2)
    ]
    out, lse = amla.merge(*(torch.stack(x) for x in zip(*halves)))
    whole = amla.decode(q, kv, table, lengths, scale=SCALE)
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out, whole[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse, whole[1], rtol=1e-5, atol=1e-5)


# ---- The operator ----


def operator_arguments(dtype=torch.float32, **options):
    q, kv, table, lengths = problem(dtype)
    return (
        options.get("q", q),
        options.get("kv", kv),
        options.get("table", table),
        options.get("lengths", lengths),
        options.get("sinks"),
        None,
        SCALE,
        options.get("causal", True),
        512,
        "lazy",
        "auto",
        0,
        "e",
        dtype,
        "auto",
        0,
    )


def test_opcheck():
    amla.decode(*problem(), scale=SCALE)
    contiguous = operator_arguments(table=None, lengths=None)
    q, kv = contiguous[0], contiguous[1].reshape(2, 64, 1, 576)
    for arguments in (
        operator_arguments(),
        operator_arguments(torch.bfloat16, sinks=torch.zeros(5)),
        (q, kv, *contiguous[2:]),
    ):
        results = torch.library.opcheck(torch.ops.amla.decode.default, arguments)
        assert set(results.values()) == {"SUCCESS"}


def test_fake_tensors_have_the_real_shapes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        q, kv, table, lengths = (mode.from_tensor(x) for x in problem(torch.bfloat16, s_q=2))
        out, lse = amla.decode(q, kv, table, lengths, scale=SCALE, d_v=256, out_dtype="float16")
    assert (
        out.shape == (2, 2, 5, 256)
        and out.dtype == torch.float16
        and lse.shape == (2, 5, 2)
        and lse.dtype == torch.float32
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_full_graph(backend):
    if backend == "inductor":
        import shutil

        if shutil.which("c++") is None:
            pytest.skip("inductor needs a C++ compiler")

    def step(q, kv, table, lengths):
        out, lse = amla.decode(q * 0.5, kv, table, lengths, scale=SCALE, causal=True)
        return out.float().sum(-1) + lse.transpose(1, 2)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for seed in (1, 2):
        arguments = problem(torch.bfloat16, seed=seed)
        torch.testing.assert_close(compiled(*arguments), step(*arguments))
    with pytest.raises(Exception, match="must be None inside torch.compile"):
        torch.compile(
            lambda *a: amla.decode(*a, scale=SCALE, out=torch.empty(2, 1, 5, 512)),
            fullgraph=True,
            backend="eager",
        )(*problem())


# ---- Lists and scopes ----


def sparse_problem(seed=3):
    """q, kv and keyword arguments: a list of slots, then a list in another cache."""
    q, kv, _, _ = problem(torch.bfloat16, b=3, s_q=2, seed=seed)
    g = torch.Generator().manual_seed(seed)
    indices = torch.randint(-20, kv.shape[0] * kv.shape[1], (3, 2, 40), generator=g)
    other = torch.randn(7, 4, 576, generator=g).bfloat16()
    more = torch.randint(-9, 28, (3, 2, 11), generator=g, dtype=torch.int32)
    length = torch.tensor([11, 0, 5], dtype=torch.int32)
    return q, kv, dict(indices=indices), dict(kv_cache=other, indices=more, topk_length=length)


def test_lists_against_fp64_and_numpy():
    q, kv, scope, extra = sparse_problem()
    got = amla.decode(q, kv, scale=SCALE, **scope, extra=amla.Scope(**extra), max_logits=True)
    assert all(isinstance(x, torch.Tensor) for x in got)
    arrays = [x.float().numpy() for x in (q, kv)]
    numbers = {name: x.float().numpy() for name, x in extra.items() if name == "kv_cache"}
    numbers |= {name: x.numpy() for name, x in extra.items() if name != "kv_cache"}
    want = oracle.attend_keys(*arrays, SCALE, indices=scope["indices"].numpy(), extra=numbers)
    for x, y, bound in zip(got, want, (5e-3, 1e-6, 1e-6)):
        assert oracle.rel_error(x.float().numpy(), y) < bound
    mixed = amla.Scope(extra["kv_cache"], indices=numbers["indices"], topk_length=[11, 0, 5])
    again = amla.decode(
        q, kv, scale=SCALE, indices=scope["indices"].int().numpy(), extra=mixed, max_logits=True
    )
    assert all(torch.equal(x, y) for x, y in zip(got, again))


def test_opcheck_with_lists():
    q, kv, scope, extra = sparse_problem()
    named = {f"extra_{name}": x for name, x in extra.items()} | scope
    results = torch.library.opcheck(
        torch.ops.amla.decode.default,
        operator_arguments(torch.bfloat16, table=None, lengths=None, q=q, kv=kv, causal=False),
        dict(named, max_logits=True, index_kind="slot"),
    )
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_with_lists(backend):
    def step(q, kv, indices, other, more, length, sinks):
        extra = amla.Scope(other, indices=more, topk_length=length)
        out, lse, most = amla.decode(
            q * 2, kv, scale=SCALE, indices=indices, extra=extra, sinks=sinks, max_logits=True
        )
        ragged = amla.decode(
            q[:, 0],
            kv,
            scale=SCALE,
            indices=indices[:, 0],
            q_indptr=torch.tensor([0, 1, 3]),
            lse_sink=True,
            sinks=sinks,
        )
        return out + 1, lse, most, *ragged

    q, kv, scope, extra = sparse_problem()
    arguments = (q, kv, scope["indices"], *extra.values(), torch.zeros(5))
    torch._dynamo.reset()
    got = torch.compile(step, fullgraph=True, backend=backend)(*arguments)
    want = step(*arguments)
    assert len(got) == 5 and all(torch.equal(x, y) for x, y in zip(got, want))


def test_compile_when_amla_was_imported_before_torch():
    code = """
import amla, torch
decode = lambda q, kv: amla.decode(q, kv, scale=0.1)[0]
f = torch.compile(decode, fullgraph=True, backend="aot_eager")
q, kv = torch.ones(1, 1, 2, 576), torch.ones(1, 9, 576)
assert torch.equal(f(q, kv), torch.ones(1, 1, 2, 512)), f(q, kv)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_openmp_runtime_in_the_process():
    """libamla and torch share one pool of threads, whichever was imported first: two pools would
    compete for the cores."""
    for order in ("import amla, torch", "import torch, amla"):
        code = (
            order
            + """
amla.decode(torch.ones(1, 1, 128, 576), torch.ones(1, 999, 576), scale=1.0)
torch.ones(2000, 2000) @ torch.ones(2000, 2000)
print(len({line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}))
"""
        )
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert result.stdout.split() == ["1"], result.stdout
