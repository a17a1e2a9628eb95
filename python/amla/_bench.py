# SPDX-License-Identifier: Apache-2.0
"""amla.bench: how long a decode call takes from Python, overhead of the call included. Checks the
result before it times."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from . import _bench_plot
from ._arrays import numpy_dtype
from ._library import checked_int, checked_number
from ._numpy import np
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
    plot: Any = None,
    **options: Any,
) -> BenchResult:
    """Times decode calls on random data: b sequences of sk tokens, in shuffled pages (page_size 0:
    contiguous), q and KV of `dtype` (bfloat16 needs ml_dtypes). `options` are those of `decode`:
    backend, rescale, threads, isa, split_tokens, lse_base, p_form, q_form, kv_round.

    One sequence is compared with fp64 first; RuntimeError if it is wrong. Then calls are timed one
    by one for `seconds`. plot="x.svg" (or .png, .pdf) also times shorter contexts, and the same in
    matrix products of PyTorch or NumPy, in turns, and draws time and fraction of a large
    product's FLOP/s against context; it needs matplotlib, and causal only with s_q=1. Raises
    ValueError for impossible sizes. Prints nothing.
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
    if plot is not None:
        _bench_plot.check_plot(plot)
        if causal and s_q > 1:
            raise NotImplementedError(f"plot: s_q={s_q}: must be 1 with causal")
    case = _Case(b, s_q, h_q, d_qk, d_v, page_size, dtype, causal, scale, seed, options)
    call = _Call(case, sk)
    result = call.timed(seconds)
    if plot is not None:
        _plot(plot, case, sk, seconds)
    return result


@dataclasses.dataclass(frozen=True)
class _Case:
    """What is timed, but for the context."""

    b: int
    s_q: int
    h_q: int
    d_qk: int
    d_v: int
    page_size: int
    dtype: str
    causal: bool
    scale: float
    seed: int
    options: dict[str, Any]


class _Call:
    """A plan on random data of one context, checked."""

    def __init__(self, c: _Case, sk: int) -> None:
        rng, np_dtype = np.random.default_rng(c.seed), numpy_dtype(c.dtype)
        self.case, self.sk = c, sk
        self.q = rng.standard_normal((c.b, c.s_q, c.h_q, c.d_qk), np.float32).astype(np_dtype)
        self.lengths: Any = np.full(c.b, sk, np.int32)
        self.table: Any = None
        shape: tuple[int, ...] = (c.b, sk, c.d_qk)
        if c.page_size:
            per_sequence = -(-sk // c.page_size)
            shape = (c.b * per_sequence, c.page_size, c.d_qk)
        self.kv: Any = rng.standard_normal(shape, np.float32).astype(np_dtype)
        if c.page_size:
            self.table = rng.permutation(shape[0]).astype(np.int32).reshape(c.b, per_sequence)
        self.plan = Plan.like(
            self.q,
            self.kv,
            self.table,
            self.lengths,
            scale=c.scale,
            causal=c.causal,
            d_v=c.d_v,
            **c.options,
        )
        self.out, self.lse = self.plan.run(self.q, self.kv, self.table, self.lengths)
        self.error = self._error()

    def rows(self, i: int) -> Any:
        """The KV rows of sequence i."""
        kv = self.kv[i] if self.table is None else self.kv[self.table[i]]
        return kv.reshape(-1, self.case.d_qk)[: self.sk]

    def _error(self) -> float:
        c, last = self.case, self.q[-1].astype(np.float64)
        want, _ = attention_f64(last, self.rows(-1).astype(np.float64), c.scale, c.d_v, c.causal)
        error = float(np.linalg.norm(self.out[-1].astype(np.float64) - want) / np.linalg.norm(want))
        if not error <= _TOLERANCE[c.dtype]:
            raise RuntimeError(
                f"bench: relative error {error:.1e} against fp64, must be <= "
                f"{_TOLERANCE[c.dtype]:.0e}: nothing was timed"
            )
        return error

    def run(self) -> None:
        self.plan.run(self.q, self.kv, self.table, self.lengths, out=self.out, lse=self.lse)

    def flops(self) -> float:
        c, sk = self.case, self.sk
        per_query = [min(max(sk - c.s_q + i + 1, 0), sk) if c.causal else sk for i in range(c.s_q)]
        return 2.0 * sum(per_query) * c.b * c.h_q * (c.d_qk + c.d_v)

    def kv_bytes(self) -> int:
        return self.case.b * self.sk * self.case.d_qk * int(self.kv.itemsize)

    def timed(self, seconds: float) -> BenchResult:
        times: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or not times:
            start = time.perf_counter()
            self.run()
            times.append(time.perf_counter() - start)
        best = min(times)
        return BenchResult(
            self.plan.describe(),
            self.error,
            len(times),
            best,
            float(np.median(times)),
            self.flops() / best / 1e9,
            self.kv_bytes() / best,
        )


def _plot(path: Any, c: _Case, sk: int, seconds: float) -> None:
    """Times shorter contexts, a peer and a large product, in turns."""
    peer = _bench_plot.find_peer(c.dtype)
    products, product_seconds, points = _bench_plot.product_calls(peer), float("inf"), []
    for context in _bench_plot.contexts(sk):
        call = _Call(c, context)
        theirs = _peer_of(call, peer)
        best = [float("inf")] * 4
        for _ in range(3):
            for i, run in enumerate((call.run, theirs, *products)):
                best[i] = min(best[i], _bench_plot.best(run, seconds / 60))
        product_seconds = min(product_seconds, *best[2:])
        points.append(_bench_plot.Point(context, best[0], best[1], call.flops()))
    title = f"heads: {c.h_q}, queries: {c.s_q}, sequences: {c.b}, {c.dtype}"
    peak = 2 * _bench_plot.PRODUCT**3 / product_seconds
    _bench_plot.draw(path, points, peak, peer.name, title)


def _peer_of(call: _Call, peer: _bench_plot.Peer) -> Callable[[], Any]:
    """The same by a peer, compared first."""
    c = call.case
    rows = np.stack([call.rows(i) for i in range(c.b)]).astype(np.float32)
    q = call.q.reshape(c.b, -1, c.d_qk).astype(np.float32)
    theirs = _bench_plot.peer_call(peer, q, rows, c.scale, c.d_v)
    want = call.out.astype(np.float64).reshape(c.b, -1, c.d_v)
    error = np.linalg.norm(np.asarray(theirs().tolist()) - want) / np.linalg.norm(want)
    if not error <= 10 * _TOLERANCE[c.dtype]:
        raise RuntimeError(f"bench: {peer.name} is apart by {error:.1e}: nothing was drawn")
    return theirs
