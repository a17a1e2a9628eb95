# SPDX-License-Identifier: Apache-2.0
"""The AMX-BF16 row: whole plans against portable C of the same roundings, bit by bit, and against
f64 within the stated bounds."""

import ctypes
import os

import numpy as np
import pytest

from conftest import same
from decode_emulated import DTYPES, LOG2E, P_FORMS, RESCALES, Plan, make_job, narrow, to_type, truth

BOUND = {"f32": 2.0**-19, "bf16x2": 2.0**-15, "bf16": 2.0**-7}
MODEL = ctypes.CDLL(os.environ["AMLA_AMX_MODEL"])
INTEGERS = "d d_v length visible rescale p_form n_parts"
POINTERS = "q kv mask o sums"
ROW = np.dtype(
    [(name, np.int32) for name in INTEGERS.split()]
    + [("scale", np.float32)]
    + [(name, np.uint64) for name in POINTERS.split()]
)


def pointer(x):
    return 0 if x is None else x.ctypes.data


def parts_of(job):
    if job["q_type"] == DTYPES["bf16"]:
        return 1
    return 2 if job["q_type"] == DTYPES["f16"] or job["q_form"] == 1 else 3


def modelled(job, plan, cuts, q, kv, visible, masks, rows):
    """out and LSE of `rows` of one sequence: q [rows][d] f32, kv [n][d] bf16, masks [rows]."""
    j = job[0]
    cuts = np.array(cuts, np.int32)
    out, lse = np.zeros((len(rows), j["d_v"]), np.float32), np.zeros(len(rows))
    for i, r in enumerate(rows):
        x, mask = np.ascontiguousarray(q[r], np.float32), None if masks is None else masks[r]
        o, sums = np.zeros(j["d_v"], np.float32), np.zeros(4, np.float32)
        row = np.zeros(1, ROW)
        row["d"], row["d_v"], row["length"], row["visible"] = (
            j["d_qk"],
            j["d_v"],
            len(kv),
            visible[r],
        )
        row["rescale"], row["p_form"], row["scale"] = j["rescale"], plan["p_form"], j["scale"]
        row["n_parts"] = parts_of(j)
        for name, array in dict(q=x, kv=kv, mask=mask, o=o, sums=sums).items():
            row[name] = pointer(array)
        MODEL.amx_model_row(ctypes.c_void_p(pointer(row)), ctypes.c_void_p(pointer(cuts)),
                            ctypes.c_int64(len(cuts) - 1))  # fmt: skip
        ref, exact, rounded, of_p = sums.astype(np.float64)
        with np.errstate(all="ignore"):
            divisor = exact * of_p if plan["p_form"] == P_FORMS["f32"] else rounded
            lse[i] = ref + np.log2(exact)
            out[i] = 0 if lse[i] == -np.inf else o * np.float32(1 / divisor)
    return out, lse


# ---- Inputs: q [rows][d], kv [n][d] ----


def normal(rng, rows, n, d):
    return rng.standard_normal((rows, d)), rng.standard_normal((n, d))


def large(rng, rows, n, d):
    """Logits of some hundred: one key takes all."""
    q, kv = normal(rng, rows, n, d)
    return q * 40, kv


def late(rng, rows, n, d):
    """The maximum grows all the way: references move in every tile, by up to 2^40."""
    q, kv = normal(rng, rows, n, d)
    kv[:, -64:] = np.linspace(0, 40, n)[:, None]
    return np.abs(q), kv


def zeros(rng, rows, n, d):
    """V columns that are 0 in the first keys and not later, with a late maximum."""
    q, kv = late(rng, rows, n, d)
    kv[: n // 2, 10:20] = 0
    kv[: n // 2, 20:25] = -0.0
    return q, kv


def subnormal(rng, rows, n, d):
    """Operands around 2^-126; V from 2^-133 to 2^-100."""
    q, kv = normal(rng, rows, n, d)
    bits = rng.integers(0, 27 << 7, (n, d // 2)) | rng.integers(0, 2, (n, d // 2)) << 15
    kv[:, : d // 2] = (bits.astype(np.uint32) << 16).view(np.float32)
    q[:, :32] = (rng.integers(0, 1 << 7, (rows, 32)).astype(np.uint32) << 16).view(np.float32)
    return q, kv


def huge(rng, rows, n, d):
    """V up to the largest number, of keys that hardly count in scores."""
    q, kv = normal(rng, rows, n, d)
    kv[:, :40] = rng.choice([-1.0, 1.0], (n, 40)) * 3.38e38
    q[:, :40] = 0
    return q, kv


def poisoned(rng, rows, n, d):
    """Infinities and NaNs in some rows of q and in a key."""
    q, kv = normal(rng, rows, n, d)
    q[rows // 3, 5], q[rows // 2, d - 1] = np.inf, np.nan
    if n > 20:
        kv[n // 3, d // 3] = np.inf
    return q, kv


def negative_infinity(rng, rows, n, d):
    """A key whose score is -inf in every row."""
    q, kv = normal(rng, rows, n, d)
    q[:, 3] = 1
    kv[n // 2, 3] = -np.inf
    return q, kv


INPUTS = [normal, large, late, zeros, subnormal, huge, poisoned, negative_infinity]


# ---- A sequence, in pages or not ----


class Pages:
    """Keys [n][d] in pages with unmapped memory behind each, in an order of their own."""

    def __init__(self, machine, rng, kv, size, item, odd_bytes=0):
        n, row = len(kv), kv[0].nbytes
        count = -(-n // size)
        used = size * row
        step = -(-(used + odd_bytes) // 4096) * 4096 + 4096
        self.step = step // item
        base = machine.allocate(count * step)
        offset = step - 4096 - used - odd_bytes
        self.base = base + offset
        order = rng.permutation(count)
        for i, page in enumerate(order):
            at = self.base + int(page) * step
            raw = kv[i * size : (i + 1) * size].reshape(-1).view(np.uint8)
            machine.view(at, used)[:] = 0xFF  # NaN behind the last key
            machine.view(at, raw.size)[:] = raw
            machine.unmap(at + used + odd_bytes, 4096)
        self.table = order.astype(np.int32)[None]
        self.count = count


def keys_of_block(masks, visible, n):
    """Positions that are keys of a row block with these queries: what one of them sees, and what
    lies behind the last of these."""
    seen = np.flatnonzero(((masks != -np.inf) & (np.arange(n) < visible[:, None])).any(0))
    end = seen[-1] + 1 if len(seen) else 0
    return np.concatenate((seen, np.arange(end, n)))


def run_case(machine, rng, make, n, page=0, masks=None, lengths=None, check=True, rows=None, **job):
    """Runs one sequence; compares with the model bit by bit, and with f64."""
    h_q, s_q = job.get("h_q", 64), job.get("s_q", 1)
    d_qk, d_v = job.setdefault("d_qk", 576), job.setdefault("d_v", 512)
    q_type, kv_type = job.get("q_type", "bf16"), job.get("kv_type", "bf16")
    q, kv = make(rng, s_q * h_q, n, d_qk)
    q, q64 = to_type(q, q_type)
    kv, kv64 = to_type(kv, kv_type)
    mark = machine.mark()
    try:
        if page:
            pages = Pages(machine, rng, kv, page, kv.itemsize)
            job |= dict(page_size=page, n_pages=pages.count, kv_stride_page=pages.step)
        fields, job = job, make_job(sk=n, **job)
        plan = Plan(machine, job)
        assert plan["isa"] == 5
        kv_at, table = (pages.base, pages.table) if page else (kv, None)
        out, lse = plan.run(q.reshape(1, s_q, h_q, d_qk), kv_at, table, None, masks)
        j = job[0]
        causal = np.arange(s_q) + n - s_q + 1 if j["causal"] else np.full(s_q, n)
        line = np.arange(n) if masks is None else keys_of_block(masks[0], causal, n)
        bare = plan if len(line) == n else Plan(machine, make_job(sk=len(line), **fields))
    finally:
        machine.release(mark)
    # Fixed splits begin at multiples of positions, others are those of a line without hidden keys.
    cuts = np.searchsorted(line, plan.splits) if j["split_tokens"] > 0 else bare.splits
    visible = np.repeat(causal.clip(0), h_q)
    of_rows = None if masks is None else np.repeat(masks[0], h_q, 0)
    rows = np.arange(s_q * h_q) if rows is None else rows
    got, got_lse = out.reshape(-1, d_v)[rows], lse[0].T.reshape(-1)[rows]
    keys = kv if kv_type == "bf16" else narrow(kv.astype(np.float32))
    on_line = None if masks is None else np.ascontiguousarray(of_rows[:, line])
    want, want_lse = modelled(
        job,
        bare,
        cuts,
        q64.astype(np.float32),
        keys[line],
        np.searchsorted(line, visible),
        on_line,
        rows,
    )
    assert same(got + 0.0, want + 0.0), f"{np.sum(got != want)} of {got.size} differ"
    nan = np.isnan(got_lse) & np.isnan(want_lse)
    with np.errstate(all="ignore"):
        close = np.abs(got_lse - want_lse) <= 2.0**-22 * np.abs(want_lse)
    assert np.all(nan | close | (got_lse == want_lse))
    if check and make not in (poisoned, negative_infinity, huge, subnormal):
        check_errors(job, plan, q64, kv64, got, got_lse, visible, of_rows, rows)
    return out, lse, plan


def check_errors(job, plan, q, kv, got, got_lse, visible, masks, rows):
    j = job[0]
    bias = None if masks is None else masks[rows].astype(np.float64)
    o, lse, size = truth(q[rows], kv, j["scale"], j["d_v"], visible[rows], bias)
    # f32 sums of the products, of logits up to |t|, in O's exponent
    logit = (np.abs(q) @ np.abs(kv).T).max() * abs(float(j["scale"])) * LOG2E
    slack = 64 * 2.0**-24 * max(1, logit * np.log(2) / 16)
    name = next(k for k, v in P_FORMS.items() if v == plan["p_form"])
    error = (np.abs(got - o) / np.maximum(size, 2.0**-100)).max()
    assert error < BOUND[name] + slack
    seen = np.isfinite(lse)
    assert np.array_equal(np.isfinite(got_lse), seen)
    assert np.abs(got_lse[seen] - lse[seen]).max(initial=0) < 2.0**-18 + slack


# ---- Tests ----


@pytest.mark.parametrize("p_form", BOUND)
@pytest.mark.parametrize("make", INPUTS)
def test_inputs(machine, rng, make, p_form):
    run_case(machine, rng, make, 300, h_q=48, p_form=p_form, rows=np.r_[0:48:5, 16, 24])


@pytest.mark.parametrize("p_form", BOUND)
def test_a_decode_step(machine, rng, p_form):
    """64 rows x 96 keys, all of them."""
    run_case(machine, rng, normal, 96, h_q=64, p_form=p_form)


@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("p_form", BOUND)
def test_modes(machine, rng, p_form, rescale):
    run_case(machine, rng, late, 300, h_q=32, p_form=p_form, rescale=rescale, rows=np.r_[0:32:9])


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 32, 33, 48, 63, 64, 80, 128, 130])
def test_rows(machine, rng, rows):
    """Row blocks of whole and partial tiles, and two of them; first and last rows."""
    some = np.unique(np.r_[0, rows // 2, rows - 1, min(rows, 128) - 1, min(rows - 1, 32)])
    run_case(machine, rng, normal, 140, h_q=rows, p_form="bf16x2", rows=some)


@pytest.mark.parametrize("p_form", BOUND)
@pytest.mark.parametrize("n", [1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 127, 128, 129])
def test_tails(machine, rng, n, p_form):
    run_case(machine, rng, normal, n, h_q=48, p_form=p_form, rows=np.r_[0, 33, 47])


@pytest.mark.parametrize("p_form", BOUND)
@pytest.mark.parametrize("page", [1, 5, 15, 16, 17, 64, 100])
def test_pages_end_where_they_end(machine, rng, page, p_form):
    run_case(machine, rng, late, 161, page=page, h_q=16, p_form=p_form, rows=np.r_[0, 9, 15])


@pytest.mark.parametrize("p_form", BOUND)
@pytest.mark.parametrize("d_qk, d_v", [(576, 500), (64, 64), (96, 96), (40, 24), (33, 1), (70, 33)])
def test_depths(machine, rng, d_qk, d_v, p_form):
    run_case(machine, rng, normal, 150, page=16, h_q=48, d_qk=d_qk, d_v=d_v, p_form=p_form)


@pytest.mark.parametrize("p_form", BOUND)
def test_splits_and_merges(machine, rng, p_form):
    job = dict(h_q=48, d_qk=128, d_v=96, p_form=p_form, page=64)
    _, _, plan = run_case(machine, rng, late, 1500, split_tokens=128, **job)
    assert plan["n_splits"] == 12
    for rescale in RESCALES:
        run_case(machine, rng, late, 900, rescale=rescale, **job, rows=np.arange(0, 48, 7))


@pytest.mark.parametrize("q_type", DTYPES)
@pytest.mark.parametrize("q_form", [0, 1, 2])
def test_parts_of_q(machine, rng, q_type, q_form):
    run_case(machine, rng, normal, 70, h_q=33, p_form="bf16x2", q_type=q_type, q_form=q_form,
             rows=np.r_[0:33:4])  # fmt: skip


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_keys_that_are_rounded(machine, rng, kv_type):
    run_case(machine, rng, normal, 70, h_q=16, kv_type=kv_type, kv_round=1, check=False, page=16,
             d_qk=96, d_v=64)  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, -0.07, 2.0**-20, 3e-3])
def test_scales(machine, rng, scale):
    run_case(machine, rng, normal, 100, h_q=16, scale=scale, d_qk=128, d_v=64, p_form="f32")


@pytest.mark.parametrize("p_form", BOUND)
def test_causality(machine, rng, p_form):
    job = dict(s_q=5, h_q=9, d_qk=96, d_v=64, p_form=p_form)
    run_case(machine, rng, normal, 3, causal=1, **job)
    run_case(machine, rng, late, 261, causal=1, page=32, **job)


def make_mask(rng, s_q, n):
    """Biases, hidden keys, hidden tiles; a row that sees nothing, and one that sees one key."""
    mask = np.where(rng.random((1, s_q, n)) < 0.4, -np.inf, rng.standard_normal((1, s_q, n)))
    mask[:, :, 128:256] = -np.inf
    mask[:, 1] = -np.inf
    mask[:, 2] = -np.inf
    mask[:, 2, n // 3] = -2.5
    return mask.astype(np.float16)


@pytest.mark.parametrize("p_form", BOUND)
@pytest.mark.parametrize("rescale", RESCALES)
def test_masks(machine, rng, p_form, rescale):
    job = dict(s_q=4, h_q=12, d_qk=96, d_v=64, p_form=p_form, rescale=rescale)
    run_case(machine, rng, normal, 400, masks=make_mask(rng, 4, 400), split_tokens=256, **job)


@pytest.mark.parametrize("p_form", BOUND)
@pytest.mark.parametrize("n", [200, 290, 330, 420])
@pytest.mark.parametrize("d_qk", [96, 70])
def test_keys_hidden_one_by_one(machine, rng, d_qk, n, p_form):
    """Copied ahead: whole sixteens and others, in short splits too, whose keys are listed before
    they begin; rows of whole lines and others."""
    mask = np.where(rng.random((1, 1, n)) < 0.15, -np.inf, 0)
    mask[:, :, 40:90] = rng.standard_normal(50)  # biases in one tile only
    mask = mask.astype(np.float16)
    job = dict(h_q=40, d_qk=d_qk, d_v=64, p_form=p_form, page=48, rows=np.r_[0:40:13])
    run_case(machine, rng, normal, n, masks=mask, **job)
    run_case(machine, rng, normal, n, masks=mask, split_tokens=32, **job)


def test_scores_of_hidden_keys_that_are_not_hidden(machine):
    """Of -FLT_MAX, where one tile has a bias and the other has none: all keys count alike."""
    n, d, d_v = 200, 96, 32
    kv = np.random.default_rng(3).standard_normal((n, d))
    q = np.zeros((1, 1, 16, d))
    q[..., 93:] = -255 * 2.0 ** np.array([60, 52, 44])
    kv[:, 93:] = 2.0**60
    mask = np.zeros((1, 1, n), np.float16)
    mask[0, 0, 5] = -1
    job = make_job(h_q=16, sk=n, d_qk=d, d_v=d_v, p_form="bf16x2", scale=np.log(2))
    kv, kv64 = to_type(kv, "bf16")
    out, lse = Plan(machine, job).run(to_type(q, "bf16")[0], kv, mask=mask)
    assert np.all(lse < -3.4e38)
    assert np.abs(out - kv64[:, :d_v].mean(0)).max() < 2.0**-14


def test_masks_that_hide_nothing_new_change_no_bit(machine):
    job = dict(s_q=4, h_q=12, d_qk=96, d_v=64, p_form="bf16", check=False)

    def bits(**more):
        rng = np.random.default_rng(5)
        out, lse, _ = run_case(machine, rng, late, 300, rows=np.r_[0], **job, **more)
        return out.tobytes() + lse.tobytes()

    nothing = np.zeros((1, 4, 300), np.float16)
    future = np.where(np.arange(300) < np.arange(297, 301)[:, None], 0, -np.inf)[None]
    assert bits() == bits(masks=nothing)
    assert bits(causal=1) == bits(masks=future.astype(np.float16))


@pytest.mark.parametrize("p_form", BOUND)
def test_threads_and_company_change_no_bit(machine, rng, p_form):
    """Threads share splits and merge across them; a sequence has company of other lengths."""
    n, d, d_v, h_q = 1300, 96, 64, 40
    q, _ = to_type(rng.standard_normal((3, 1, h_q, d)), "bf16")
    kv, _ = to_type(rng.standard_normal((3, n, d)), "bf16")
    lengths = np.array([n, 70, 700], np.int32)
    job = dict(sk=n, h_q=h_q, d_qk=d, d_v=d_v, p_form=p_form)
    alone = [
        Plan(machine, make_job(b=1, **job)).run(
            q[i : i + 1], kv[i : i + 1], None, lengths[i : i + 1]
        )
        for i in range(3)
    ]
    for threads in (1, 2, 3, 8):
        out, lse = Plan(machine, make_job(b=3, threads=threads, **job)).run(q, kv, None, lengths)
        for i, (want, want_lse) in enumerate(alone):
            assert np.array_equal(out[i], want[0]) and np.array_equal(lse[i], want_lse[0])


@pytest.mark.parametrize("out_type", ["bf16", "f16"])
def test_output_types(machine, rng, out_type):
    n, d, d_v = 90, 96, 50
    q, _ = to_type(rng.standard_normal((1, 2, 20, d)), "bf16")
    kv, _ = to_type(rng.standard_normal((n, d)), "bf16")
    job = dict(sk=n, s_q=2, h_q=20, d_qk=d, d_v=d_v, p_form="bf16")
    wide, _ = Plan(machine, make_job(**job)).run(q, kv)
    got, _ = Plan(machine, make_job(out_type=out_type, **job)).run(q, kv)
    want = narrow(wide) if out_type == "bf16" else wide.astype(np.float16).view(np.uint16)
    assert np.array_equal(got, want)


def test_no_keys(machine):
    q = np.full((1, 1, 20, 576), 0x3F80, np.uint16)
    kv = np.zeros((1, 576), np.uint16)
    plan = Plan(machine, make_job(h_q=20, sk=1, out_type="bf16"))
    out, lse = plan.run(q, kv, None, np.zeros(1, np.int32))
    assert not out.any() and np.all(lse == -np.inf)
