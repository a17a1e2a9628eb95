# SPDX-License-Identifier: Apache-2.0
"""amla.flashinfer against fp64: page lists in CSR form, ragged queries, causality, LSE of both
bases, poison behind the last tokens; merges; refusals by name."""

import math

import numpy as np
import pytest
import torch

import oracle
from amla import flashinfer

CKV, KPE = 512, 64
SCALE = 192**-0.5
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}


def case(lengths, queries, h=16, page=16, dtype=torch.float32, seed=1):
    """A plan's arguments and a run's: pages in any order, NaN behind the last token of a sequence,
    in pages of nobody, and list entries of nobody beyond the last sequence's."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.tensor([-(-n // page) for n in lengths], dtype=torch.int32)
    used = int(counts.sum())
    ids = torch.randperm(used + 2, generator=g)[:used].int()
    ends = [torch.tensor([0]), counts.cumsum(0)]
    kv = torch.full((used + 2, page, CKV + KPE), math.nan)
    rows = [torch.randn(n, CKV + KPE, generator=g) for n in lengths]
    for i, row in enumerate(rows):
        for j in range(int(counts[i])):
            part = row[j * page : (j + 1) * page]
            kv[ids[int(ends[1][i] - counts[i]) + j], : len(part)] = part
    q = torch.randn(sum(queries), h, CKV + KPE, generator=g).to(dtype)
    kv = kv.to(dtype)
    plan = dict(
        qo_indptr=torch.tensor([0, *np.cumsum(queries)], dtype=torch.int32),
        kv_indptr=torch.cat(ends).int(),
        kv_indices=torch.cat((ids, torch.tensor([2147480000], dtype=torch.int32))),
        kv_len_arr=torch.tensor(lengths, dtype=torch.int32),
        num_heads=h,
        head_dim_ckv=CKV,
        head_dim_kpe=KPE,
        page_size=page,
        causal=False,
        sm_scale=SCALE,
        q_data_type=dtype,
        kv_data_type=dtype,
    )
    run = dict(
        q_nope=q[..., :CKV].contiguous(),
        q_pe=q[..., CKV:].contiguous(),
        ckv_cache=kv[..., :CKV].contiguous(),
        kpe_cache=kv[..., CKV:].contiguous(),
    )
    return plan, run, q.double().numpy(), [row.to(dtype).double().numpy() for row in rows]


def truth(plan, q, rows):
    """out [total, h, 512] and the natural LSE [total, h]."""
    ends = plan["qo_indptr"].tolist()
    found = [
        oracle.attend(q[first:last], row, SCALE, CKV, plan["causal"])
        for first, last, row in zip(ends, ends[1:], rows)
    ]
    return np.concatenate([x for x, _ in found]), np.concatenate([x.T for _, x in found])


def wrapper():
    return flashinfer.mla.BatchMLAPagedAttentionWrapper(torch.empty(1024, dtype=torch.int8))


def planned(plan):
    w = wrapper()
    w.plan(**plan)
    return w


@pytest.mark.parametrize(
    "lengths,queries,causal,page,h,dtype",
    [
        ([7, 130, 64], [1, 1, 1], False, 1, 16, torch.float32),
        ([7, 130, 64], [1, 1, 1], True, 64, 128, torch.bfloat16),
        ([33, 0, 5, 200], [4, 2, 1, 7], True, 16, 20, torch.float32),
        ([33, 0, 5, 200], [3, 1, 0, 2], False, 61, 8, torch.float16),
        ([2, 40], [5, 1], True, 16, 3, torch.float32),
    ],
)
def test_against_fp64(lengths, queries, causal, page, h, dtype):
    plan, run, q, rows = case(lengths, queries, h, page, dtype)
    plan["causal"] = causal
    w = planned(plan)
    out, lse = w.run(**run, return_lse=True)
    want, want_lse = truth(plan, q, rows)
    assert out.dtype == dtype and lse.shape == out.shape[:2]
    assert oracle.rel_error(out.float(), want) < TOLERANCE[dtype]
    np.testing.assert_allclose(lse, want_lse / math.log(2), rtol=1e-5, atol=1e-5)
    natural = w.run(**run, return_lse=True, return_lse_base_on_e=True)[1]
    np.testing.assert_allclose(natural, want_lse, rtol=1e-5, atol=1e-5)
    assert torch.equal(w.run(**run), out)


def test_strides_out_and_lse():
    """Halves of wider tensors, results into the caller's, and a plan that holds copies."""
    plan, run, q, rows = case([9, 50], [2, 3])
    w = planned(plan)
    want = w.run(**run, return_lse=True)
    wide = torch.cat((run["ckv_cache"], run["kpe_cache"]), -1)
    wide_q = torch.cat((run["q_nope"], run["q_pe"]), -1)
    views = dict(
        q_nope=wide_q[..., :CKV],
        q_pe=wide_q[..., CKV:],
        ckv_cache=wide[..., :CKV],
        kpe_cache=wide[..., CKV:],
    )
    for name in ("qo_indptr", "kv_indptr", "kv_indices", "kv_len_arr"):
        plan[name].fill_(-1)
    out, lse = torch.empty_like(want[0]), torch.empty_like(want[1])
    got = w.run(**views, out=out, lse=lse, return_lse=True)
    assert got[0] is out and got[1] is lse
    assert all(torch.equal(x, y) for x, y in zip(got, want))


def test_empty_batch():
    plan, run, _, _ = case([], [])
    run["ckv_cache"], run["kpe_cache"] = torch.zeros(1, 16, CKV), torch.zeros(1, 16, KPE)
    assert planned(plan).run(**run).shape == (0, 16, CKV)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merges_are_the_whole(dtype):
    """Each sequence's keys in three parts, one of them without keys."""
    plan, run, q, rows = case([40, 40], [1, 1], page=8, dtype=dtype)
    whole = planned(plan).run(**run, return_lse=True)
    ids = plan["kv_indices"][:10].view(2, 5)
    parts = []
    for first, last in ((0, 2), (2, 2), (2, 5)):
        n = last - first
        parts.append(
            planned(
                dict(
                    plan,
                    kv_indices=ids[:, first:last].reshape(-1),
                    kv_indptr=torch.tensor([0, n, 2 * n], dtype=torch.int32),
                    kv_len_arr=torch.tensor([8 * n, 8 * n], dtype=torch.int32),
                )
            ).run(**run, return_lse=True)
        )
    v, s = (torch.stack(x, 1) for x in zip(*parts))
    (v_a, s_a), empty, (v_b, s_b) = parts
    assert torch.isneginf(empty[1]).all()
    in_place = v_a.clone(), s_a.clone()
    flashinfer.merge_state_in_place(*in_place, v_b, s_b)
    for got in (
        flashinfer.merge_states(v, s),
        flashinfer.merge_state(v_a, s_a, v_b, s_b),
        in_place,
    ):
        assert got[0].dtype == dtype and got[1].dtype == torch.float32
        assert oracle.rel_error(got[0].float(), whole[0].float()) < TOLERANCE[dtype]
        np.testing.assert_allclose(got[1], whole[1], rtol=1e-6, atol=1e-6)
    nothing = flashinfer.merge_state(*empty, *empty)
    assert not nothing[0].any() and torch.isneginf(nothing[1]).all()
    half = v_a.clone(), s_a.clone()
    flashinfer.merge_state_in_place(*half, v_b, s_b, mask=torch.tensor([True, False]))
    for x, merged, old in zip(half, in_place, (v_a, s_a)):
        assert torch.equal(x[0], merged[0]) and torch.equal(x[1], old[1])


PLAN_REFUSALS = [
    (dict(qo_indptr=[1, 1, 2]), ValueError, "qo_indptr[0]=1: must be 0"),
    (dict(qo_indptr=[0, 2, 1]), ValueError, "qo_indptr[2]=1: must be >= qo_indptr[1]=2"),
    (dict(kv_indptr=[0, 2, 1]), ValueError, "kv_indptr[2]=1: must be >= kv_indptr[1]=2"),
    (dict(kv_indptr=[0, 1]), ValueError, "kv_indptr: shape [2]: must be [3]"),
    (dict(kv_indptr=[0, 1, 9]), ValueError, "kv_indptr[2]=9: must be <= 5"),
    (dict(kv_len_arr=[17, 40]), ValueError, "kv_len_arr[0]=17: must be 0 to 16"),
    (dict(kv_len_arr=[9, -1]), ValueError, "kv_len_arr[1]=-1: must be 0 to 48"),
    (dict(num_heads=0), ValueError, "num_heads=0: must be >= 1"),
    (dict(page_size=2.5), ValueError, "page_size=2.5"),
    (dict(sm_scale="big"), ValueError, "sm_scale"),
    (dict(q_data_type=torch.float64), NotImplementedError, "q_data_type=torch.float64"),
    (dict(kv_data_type=torch.float8_e4m3fn), NotImplementedError, "kv_data_type"),
    (dict(use_profiler=True), NotImplementedError, "use_profiler: not supported"),
    (dict(metadata=object()), NotImplementedError, "metadata: not supported"),
    (dict(skip_softmax=True), NotImplementedError, "skip_softmax: not supported"),
]


@pytest.mark.parametrize("change,error,words", PLAN_REFUSALS, ids=range(len(PLAN_REFUSALS)))
def test_plan_refuses(change, error, words):
    plan, run, *_ = case([9, 40], [1, 1])
    w = planned(plan)
    want = w.run(**run)
    for name, x in change.items():
        plan[name] = torch.tensor(x, dtype=torch.int32) if isinstance(x, list) else x
    with pytest.raises(error) as refusal:
        w.plan(**plan)
    assert words in str(refusal.value)
    assert torch.equal(w.run(**run), want)  # the plan that was is kept


def test_run_refuses_and_leaves_out_alone():
    plan, run, *_ = case([9, 40], [1, 1])
    w = planned(plan)
    out = torch.full((2, 16, CKV), 7.0)
    for change, error, words in (
        (dict(q_nope=run["q_nope"][:1]), ValueError, "q_nope: shape [1, 16, 512]: must be [2, 16"),
        (dict(q_pe=run["q_pe"].half()), ValueError, "q_pe: dtype torch.float16: must be torch.fl"),
        (dict(ckv_cache=run["ckv_cache"][:, :8]), ValueError, "[n_pages, 16, 512]"),
        (dict(kpe_cache=run["kpe_cache"][:2]), ValueError, "kpe_cache: shape [2, 16, 64]: must be"),
        (dict(ckv_cache=run["ckv_cache"][:1], kpe_cache=run["kpe_cache"][:1]), ValueError, "page"),
        (dict(out=out[..., :5]), ValueError, "out: shape [2, 16, 5]"),
        (dict(lse=torch.empty(2, 16).double()), ValueError, "lse: dtype torch.float64"),
        (dict(q_nope=run["q_nope"].numpy()), TypeError, "q_nope: ndarray: must be a torch tensor"),
        (dict(q_nope=run["q_nope"].to("meta")), (ValueError, NotImplementedError), "q_nope"),
        (dict(kv_len=plan["kv_len_arr"]), NotImplementedError, "kv_len: not supported"),
        (dict(page_table=out), NotImplementedError, "page_table: not supported"),
        (dict(profiler_buffer=out), NotImplementedError, "profiler_buffer: not supported"),
        (dict(ckv_scale=0.5), NotImplementedError, "ckv_scale: not supported"),
    ):
        with pytest.raises(error) as refusal:
            w.run(**{**run, "out": out, **change})
        assert words in str(refusal.value)
    assert (out == 7).all()
    with pytest.raises(RuntimeError, match="plan must be called first"):
        wrapper().run(**run)


def test_what_is_absent_is_named():
    work = torch.empty(1)
    for words, call in (
        ("use_cuda_graph", lambda: flashinfer.BatchMLAPagedAttentionWrapper(work, True)),
        (
            "backend='cutlass'",
            lambda: flashinfer.BatchMLAPagedAttentionWrapper(work, backend="cutlass"),
        ),
        ("BatchDecodeMla", lambda: flashinfer.BatchDecodeMlaWithPagedKVCacheWrapper(work)),
        ("trtllm_batch", lambda: flashinfer.mla.trtllm_batch_decode_with_kv_cache_mla()),
        ("xqa_batch", lambda: flashinfer.xqa_batch_decode_with_kv_cache_mla()),
        (
            "float_workspace_buffer: device meta",
            lambda: flashinfer.BatchMLAPagedAttentionWrapper(torch.empty(1, device="meta")),
        ),
    ):
        with pytest.raises(NotImplementedError, match=words):
            call()
    v, s = torch.zeros(3, 2, 4), torch.zeros(3, 2)
    for words, arguments in (
        ("s_a: shape [3, 3]: must be [3, 2]", (v, torch.zeros(3, 3), v, s)),
        ("v_b: dtype torch.float16: must be torch.float32", (v, s, v.half(), s)),
    ):
        with pytest.raises(ValueError) as refusal:
            flashinfer.merge_state(*arguments)
        assert words in str(refusal.value)
    with pytest.raises(ValueError, match="must be .seq_len, num_states, num_heads, head_dim"):
        flashinfer.merge_states(v, s)
