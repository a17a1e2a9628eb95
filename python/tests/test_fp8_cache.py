# SPDX-License-Identifier: Apache-2.0
"""amla.cache_write into caches of every type, and decode from them, in NumPy and torch; what bytes
mean is ml_dtypes' word (oracle.fp8_rows)."""

import json
import pathlib

import numpy as np
import pytest

import amla
import oracle

ml_dtypes = pytest.importorskip("ml_dtypes")
SCALE = 192**-0.5
PAGE, PAGES, N = 16, 5, 60
FORMATS = {
    "fp8_656": (512, 576, 656, {}),
    "fp8_584": (448, 512, 584, {}),
    "fp8_e4m3": (512, 576, 576, dict(kv_scale=0.02, kv_rope_scale=0.5)),
}  # latent's width, row's elements, row's bytes, scales


def tokens(rng, kv_type, dtype=np.float32):
    d_latent = FORMATS[kv_type][0]
    rows = rng.standard_normal((N, d_latent + 64)).astype(dtype)
    return rows[:, :d_latent], rows[:, d_latent:]  # strided


def slots_of(rng):
    slots = rng.permutation(PAGE * PAGES)[:N]
    slots[3] = -1
    return slots


def empty(kv_type):
    return np.full((PAGES, PAGE, FORMATS[kv_type][2]), 0x7F, np.uint8)  # NaN throughout


def filled(rng, kv_type):
    latent, rope = tokens(rng, kv_type)
    slots, cache = slots_of(rng), empty(kv_type)
    scales = FORMATS[kv_type][3]
    amla.cache_write(latent, rope, cache, slots, kv_type=kv_type, **scales)
    return cache, slots, latent, rope, scales


@pytest.mark.parametrize("kv_type", FORMATS)
def test_what_is_written_is_near_what_was_given(rng, kv_type):
    cache, slots, latent, rope, scales = filled(rng, kv_type)
    rows = oracle.fp8_rows(cache, kv_type, **scales).reshape(PAGES * PAGE, -1)
    used = slots >= 0
    want = np.concatenate((latent, rope), -1)[used]
    assert oracle.rel_error(rows[slots[used]], want) < 0.04
    others = np.setdiff1d(np.arange(PAGES * PAGE), slots)
    assert np.isnan(rows[others][:, : latent.shape[1]]).all()


def captured(name):
    """Tensors and metadata of a file in examples/."""
    raw = (pathlib.Path(__file__).resolve().parents[2] / "examples" / name).read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:begin])
    types = dict(BF16=ml_dtypes.bfloat16, U8=np.uint8, I32=np.int32, F32=np.float32)
    tensors = {}
    about = header.pop("__metadata__")
    for key, x in header.items():
        first, last = (begin + at for at in x["data_offsets"])
        tensors[key] = np.frombuffer(raw[first:last], types[x["dtype"]]).reshape(x["shape"])
    return tensors, about


def test_a_captured_step_gives_its_references():
    t, about = captured("deepseek_v32_sparse.safetensors")
    q, scale = t["q"].astype(np.float32), float(about["scale"])
    got = amla.decode(q, t["kv_cache"], scale=scale, indices=t["indices"], kv_type=about["kv"])
    assert oracle.rel_error(got[0], t["out_ref"]) < 1e-5
    assert np.abs(got[1] - t["lse_ref"]).max() < 1e-4


@pytest.mark.parametrize("kv_type", FORMATS)
@pytest.mark.parametrize("view", [np.uint8, np.int8, ml_dtypes.float8_e4m3fn])
def test_decode_reads_what_the_bytes_mean(rng, kv_type, view):
    cache, slots, _, _, scales = filled(rng, kv_type)
    q = rng.standard_normal((2, 1, 5, FORMATS[kv_type][1])).astype(np.float32)
    indices = np.stack([rng.permutation(slots)[:40] for _ in range(2)]).reshape(2, 1, 40)
    rows = oracle.fp8_rows(cache, kv_type, **scales)
    want = oracle.attend_keys(q, rows, SCALE, indices=indices)
    typed = dict(kv_type=kv_type, **scales)
    got = amla.decode(q, cache.view(view), scale=SCALE, indices=indices, **typed)
    assert oracle.rel_error(got[0], want[0]) < 2e-6
    assert oracle.rel_error(got[1], want[1]) < 2e-6
    apart = np.full((2 * PAGES, PAGE, cache.shape[-1]), 0x7F, np.uint8)
    apart[::2] = cache
    again = amla.decode(q, apart[::2, :, None].view(view), scale=SCALE, indices=indices, **typed)
    assert all(np.array_equal(x, y) for x, y in zip(got, again))
    plan = amla.Plan.like(q, cache.view(view), scale=SCALE, indices=indices, **typed)
    again = plan.run(q, cache.view(view), indices=indices)
    assert all(np.array_equal(x, y) for x, y in zip(got, again))


def test_dense_pages_of_records(rng):
    cache, slots, *_ = filled(rng, "fp8_584")
    full = np.setdiff1d(np.arange(PAGES), np.setdiff1d(np.arange(PAGES * PAGE), slots) // PAGE)
    q = rng.standard_normal((1, 1, 5, 512)).astype(np.float32)
    page = int(full[0]) if len(full) else 0
    n = PAGE if len(full) else 0
    table, seqlens = np.array([[page]], np.int32), np.array([n], np.int32)
    want = oracle.attend_keys(
        q, oracle.fp8_rows(cache, "fp8_584"), SCALE, block_table=table, seqlens=seqlens
    )
    got = amla.decode(q, cache, table, seqlens, scale=SCALE, kv_type="fp8_584")
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_rows_of_numbers_keep_their_bits(rng, dtype):
    latent, rope = tokens(rng, "fp8_656", dtype)
    slots, cache = slots_of(rng), np.zeros((PAGES, PAGE, 1, 576), dtype)
    amla.cache_write(latent, rope, cache, slots.tolist(), threads=2)
    flat, used = cache.reshape(-1, 576), slots >= 0
    assert (flat[slots[used]] == np.concatenate((latent, rope), -1)[used]).all()
    apart, ropes = np.zeros((PAGES, PAGE, 512), dtype), np.zeros((PAGES, PAGE, 64), dtype)
    amla.cache_write(latent, rope, apart, slots, kv_rope=ropes)
    assert (apart == cache[:, :, 0, :512]).all() and (ropes == cache[:, :, 0, 512:]).all()
    whole = np.zeros((PAGES, PAGE, 512), dtype)
    amla.cache_write(latent, None, whole, slots.astype(np.int32))
    assert (whole == apart).all()
    again = np.zeros((PAGES, PAGE, 512), dtype)  # of shapes seen before
    amla.cache_write(latent[::-1].copy(), None, again, slots[::-1].astype(np.int32))
    assert (again == apart).all()


def test_refusals(rng):
    latent, rope = tokens(rng, "fp8_656")
    slots, cache = slots_of(rng), empty("fp8_656")
    base = dict(latent=latent, rope=rope, kv_cache=cache, slot_mapping=slots, kv_type="fp8_656")
    high = slots.copy()
    high[59] = PAGE * PAGES
    locked = cache.copy()
    locked.flags.writeable = False
    amla.cache_write(**{**base, "kv_cache": cache.copy()})  # of shapes seen before, too
    for change, error, words in (
        (dict(slot_mapping=high), ValueError, "slot_mapping[59]=80: "),
        (dict(slot_mapping=slots[1:]), ValueError, "slot_mapping: shape [59]: must be [n=60]"),
        (dict(slot_mapping=slots * 1.0), ValueError, "slot_mapping: dtype float64: must be int64"),
        (dict(kv_type=None), ValueError, "kv_cache: dtype uint8: kv_type must say"),
        (dict(kv_type="fp8_584"), ValueError, "kv_cache: shape [5, 16, 656]: must be [n_pages"),
        (dict(kv_cache=locked), ValueError, "kv_cache: read-only"),
        (dict(rope=rope.astype(np.float16)), ValueError, "rope: dtype float16: must be float32"),
        (dict(latent=latent[:, ::2]), ValueError, "latent: strides"),
        (dict(latent=None), TypeError, "latent=None: must be an array"),
        (dict(latent=latent[:, :500]), ValueError, "d_latent=500: must be 512"),
        (dict(any_scale=2), ValueError, "any_scale=2: must be True or False"),
        (dict(kv_scale=2.0), ValueError, "kv_scale=2: must be 0 or 1 for kv_type=fp8_656"),
        (dict(kv_scale=True), ValueError, "kv_scale=True: must be a plain number"),
        (dict(kv_type=["fp8_656"]), ValueError, "kv_type=['fp8_656']: must be one of"),
        (dict(threads=0.0), ValueError, "threads=0.0: must be an integer"),
        (dict(isa="mmx"), ValueError, "isa='mmx': must be one of"),
    ):
        with pytest.raises(error) as caught:
            amla.cache_write(**{**base, **change})
        assert str(caught.value).startswith(words)
    assert (cache == 0x7F).all()
    q = np.zeros((1, 1, 5, 576), np.float32)
    with pytest.raises(ValueError, match="^kv_cache: dtype uint8: kv_type must say what its bytes"):
        amla.decode(q, cache, scale=SCALE)
    with pytest.raises(
        ValueError, match="^kv_cache: dtype float32: must be uint8 or int8 or float8"
    ):
        amla.decode(q, cache.view(np.float32), scale=SCALE, kv_type="fp8_656")


# ---- torch ----


def test_flash_mla_takes_fp8_caches(rng):
    torch = pytest.importorskip("torch")
    from amla import flash_mla

    for kv_type in ("fp8_656", "fp8_584"):
        cache, slots, *_ = filled(rng, kv_type)
        rows = oracle.fp8_rows(cache, kv_type)
        width, row_bytes = FORMATS[kv_type][1:3]
        q = torch.randn(3, 2, 5, width).bfloat16()
        indices = rng.permutation(np.tile(slots, 4))[:240].reshape(3, 2, 40).astype(np.int32)
        more = rng.permutation(slots)[:54].reshape(3, 2, 9).astype(np.int32)
        indices[1], more[1] = -1, -1
        extra = dict(kv_cache=rows, indices=more)
        want = oracle.attend_keys(
            q.double().numpy(), rows, width**-0.5, 512, None, extra, indices=indices
        )
        page_bytes = -(-row_bytes * PAGE // 576) * 576 + 576  # as writers of 584 pad them
        padded = torch.full((PAGES, page_bytes), 0x7F, dtype=torch.uint8)
        padded[:, : row_bytes * PAGE] = torch.from_numpy(cache.reshape(PAGES, -1))
        strides = (page_bytes, row_bytes, row_bytes, 1)
        tensor = padded.view(torch.float8_e4m3fn).as_strided((PAGES, PAGE, 1, row_bytes), strides)
        out, lse = flash_mla.flash_mla_with_kvcache(
            q,
            tensor,
            None,
            None,
            512,
            is_fp8_kvcache=True,
            indices=torch.from_numpy(indices),
            extra_k_cache=torch.from_numpy(cache)[:, :, None],
            extra_indices_in_kvcache=torch.from_numpy(more),
        )
        assert oracle.rel_error(out.float().numpy(), want[0]) < 5e-3
        seen = np.isfinite(want[1])
        assert not seen[1].any() and (lse[1] == torch.inf).all() and not out[1].any()
        np.testing.assert_allclose(lse.numpy()[seen], want[1][seen], rtol=1e-5)


def test_the_torch_operator(rng):
    torch = pytest.importorskip("torch")
    latent, rope = (torch.from_numpy(x.copy()) for x in tokens(rng, "fp8_656"))
    slots, want = torch.from_numpy(slots_of(rng)), torch.from_numpy(empty("fp8_656"))
    got = want.clone()

    def step(latent, rope, cache, slots):
        amla.cache_write(latent * 2, rope, cache, slots, kv_type="fp8_656")
        return cache.sum()

    step(latent, rope, want, slots)
    torch._dynamo.reset()
    torch.compile(step, fullgraph=True, backend="aot_eager")(latent, rope, got, slots)
    assert torch.equal(got, want)
    arguments = (latent, rope, got, slots, None, "fp8_656")
    results = torch.library.opcheck(torch.ops.amla.cache_write.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    with pytest.raises(ValueError, match="^latent requires a gradient"):
        amla.cache_write(latent.requires_grad_(), rope, got, slots, kv_type="fp8_656")
