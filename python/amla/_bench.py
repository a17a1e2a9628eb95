# SPDX-License-Identifier: Apache-2.0
"""amla.bench: how long a decode call takes from Python, overhead of the call included. Checks the
result before it times."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from ._arrays import numpy_dtype
from ._library import checked_int, checked_number
from ._plan import Plan

_TOLERANCE = {
    "float32": 1e-5,
    "bfloat16": 5e-3,
    "float16": 1e-3,
}  # relative Frobenius error: a few roundings of the output type


@dataclasses.dataclass(frozen=True)
class BenchResult:
    """What `bench` measured. Best and median are over single calls."""

    plan: str  # what ran, in the library's words
    rel_error: (
        float  # relative Frobenius error of out against fp64, of the sequence that was checked
    )
    calls: int
    seconds: float  # best
    median_seconds: float
    gflops: float  # useful FLOPs (visible keys only) over the best time
    bytes_per_second: float  # KV bytes over the best time

    def __str__(self) -> str:
        return (
            f"{self.seconds * 1e6:.1f} us (median {self.median_seconds * 1e6:.1f}), "
            f"{self.gflops:.1f} GFLOP/s, KV at "
            f"{self.bytes_per_second / 1e9:.2f} GB/s, {self.calls} calls, error "
            f"{self.rel_error:.1e}: {self.plan}"
        )


def attention_f64(q: Any, kv: Any, scale: float, d_v: int, causal: bool) -> tuple[Any, Any]:
    """q [s_q, h_q, d_qk], kv [s_k, d_qk] as float64 -> out [s_q, h_q, d_v], lse [h_q, s_q]: the
    truth, straight from the definition. Rows that see no key: 0 and -inf."""
    s_q, s_k = len(q), len(kv)
    s = scale * np.einsum("ihd,jd->hij", q, kv, optimize=True)
    if causal:
        s[:, np.arange(s_k) > np.arange(s_k - s_q, s_k)[:, None]] = -np.inf
    top = s.max(-1, keepdims=True, initial=-np.inf)
    p = np.exp(s - np.where(np.isfinite(top), top, 0))
    total = p.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0]
    return np.einsum(
        "hij,jd->ihd", p / np.where(total > 0, total, 1), kv[:, :d_v], optimize=True
    ), lse


def bench(
    *,
    b: int = 1,
    s_q: int = 1,
    h_q: int = 128,
    sk: int = 4096,
    d_qk: int = 576,
    d_v: int = 512,
    page_size: int = 64,
    dtype: str = "bfloat16",
    causal: bool = False,
    scale: float = 192**-0.5,
    seconds: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> BenchResult:
    """Times decode calls on random data: b sequences of sk tokens, in shuffled pages (page_size 0:
    contiguous), q and KV of `dtype` (bfloat16 needs ml_dtypes). `options` are those of `decode`:
    backend, rescale, threads, isa, split_tokens, lse_base, p_form, q_form, kv_round.

    One sequence is compared with fp64 first; RuntimeError if it is wrong. Then calls are timed one
    by one for `seconds`. Raises ValueError for impossible sizes. Prints nothing.
    """
    for name, value, low in (
        ("b", b, 1),
        ("s_q", s_q, 1),
        ("h_q", h_q, 1),
        ("sk", sk, 1),
        ("d_qk", d_qk, 1),
        ("page_size", page_size, 0),
    ):
        if checked_int(name, value) < low:
            raise ValueError(f"{name}={value}: must be >= {low}")
    if not checked_number("seconds", seconds) > 0:
        raise ValueError(f"seconds={seconds}: must be > 0")
    if dtype not in _TOLERANCE:
        raise ValueError(f"dtype={dtype!r}: must be one of {', '.join(_TOLERANCE)}")
    rng, np_dtype = np.random.default_rng(seed), numpy_dtype(dtype)
    q = rng.standard_normal((b, s_q, h_q, d_qk), np.float32).astype(np_dtype)
    lengths: Any = np.full(b, sk, np.int32)
    table: Any = None
    if page_size:
        per_sequence = -(-sk // page_size)
        kv = rng.standard_normal((b * per_sequence, page_size, d_qk), np.float32).astype(np_dtype)
        table = rng.permutation(b * per_sequence).astype(np.int32).reshape(b, per_sequence)
    else:
        kv = rng.standard_normal((b, sk, d_qk), np.float32).astype(np_dtype)

    plan = Plan.like(q, kv, table, lengths, scale=scale, causal=causal, d_v=d_v, **options)
    out, lse = plan.run(q, kv, table, lengths)
    rows = (kv[table[-1]].reshape(-1, d_qk) if table is not None else kv[-1])[:sk]
    want, _ = attention_f64(q[-1].astype(np.float64), rows.astype(np.float64), scale, d_v, causal)
    error = float(np.linalg.norm(out[-1].astype(np.float64) - want) / np.linalg.norm(want))
    if not error <= _TOLERANCE[dtype]:
        raise RuntimeError(
            f"bench: relative error {error:.1e} against fp64, must be <= {_TOLERANCE[dtype]:.0e}: "
            "nothing was timed"
        )

    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not times:
        start = time.perf_counter()
        plan.run(q, kv, table, lengths, out=out, lse=lse)
        times.append(time.perf_counter() - start)
    keys = sum(min(max(sk - s_q + i + 1, 0), sk) if causal else sk for i in range(s_q)) * b
    best = min(times)
    return BenchResult(
        plan.describe(),
        error,
        len(times),
        best,
        float(np.median(times)),
        2.0 * keys * h_q * (d_qk + d_v) / best / 1e9,
        b * sk * d_qk * np_dtype.itemsize / best,
    )
