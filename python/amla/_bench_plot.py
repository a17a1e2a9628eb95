# SPDX-License-Identifier: Apache-2.0
"""The picture of `amla.bench(plot=...)`: time, and fraction of the machine's limit, against
context: a decode call beside the same computation as two matrix products of PyTorch, or of NumPy
where PyTorch is not installed. Needs matplotlib.

The machine's limit is the FLOP/s of a large product of the same run, in float32 or in the type of
the data, whichever is faster.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import pathlib
import time
from collections.abc import Callable
from typing import Any

from ._numpy import np

Product = Callable[[Any, Any], Any]
PRODUCT = 512  # rows and columns of the product that is the limit


@dataclasses.dataclass(frozen=True)
class Peer:
    """Who computes the same beside us."""

    name: str
    array: Callable[[Any], Any]  # from float32 of NumPy
    wide: Callable[[Any], Any]  # the same, still float32
    product: Product
    softmax: Callable[[Any], Any]  # over the last axis


@dataclasses.dataclass(frozen=True)
class Point:
    """One context length."""

    context: int
    ours: float  # seconds
    theirs: float
    flops: float


def check_plot(plot: Any) -> None:
    """Can this picture be made? Asked before any work."""
    if not isinstance(plot, (str, pathlib.PurePath)):
        raise TypeError(f"plot: {type(plot).__name__}: must be a file name")
    if importlib.util.find_spec("matplotlib") is None:
        raise NotImplementedError(f"plot={str(plot)!r}: needs matplotlib, which is not installed")
    from matplotlib.figure import Figure

    known = sorted(Figure().canvas.get_supported_filetypes())
    if pathlib.PurePath(plot).suffix[1:].lower() not in known:
        raise ValueError(f"plot={str(plot)!r}: must end in one of {', '.join(known)}")
    if not pathlib.Path(plot).resolve().parent.is_dir():
        raise ValueError(f"plot={str(plot)!r}: there is no such folder")


def contexts(sk: int) -> list[int]:
    """Five lengths up to sk, each a quarter of the next."""
    return sorted({max(1, sk >> (2 * i)) for i in range(5)})


def find_peer(dtype: str) -> Peer:
    if importlib.util.find_spec("torch") is not None:
        import torch

        of_type = getattr(torch, dtype)
        return Peer(
            f"PyTorch, {dtype}",
            lambda x: torch.from_numpy(x).to(of_type),
            torch.from_numpy,
            torch.matmul,
            lambda s: torch.softmax(s.float(), -1).to(of_type),
        )
    return Peer("NumPy, float32", lambda x: x, lambda x: x, np.matmul, _softmax)


def _softmax(s: Any) -> Any:
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def best(run: Callable[[], Any], seconds: float) -> float:
    """The shortest of the calls that fit, at least two."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 2:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def peer_call(peer: Peer, q: Any, kv: Any, scale: float, d_v: int) -> Callable[[], Any]:
    """q [b, rows, d_qk] and kv [b, sk, d_qk] in float32 -> a call that gives [b, rows, d_v]. Its
    scale is in q already, as a model would have it."""
    queries, keys = peer.array(q * np.float32(scale)), peer.array(kv)
    transposed, values = keys.swapaxes(1, 2), keys[..., :d_v]
    return lambda: peer.product(peer.softmax(peer.product(queries, transposed)), values)


def product_calls(peer: Peer) -> list[Callable[[], Any]]:
    """Products of PRODUCT x PRODUCT matrices, of float32 and of the peer's type."""
    ones: Any = np.ones((PRODUCT, PRODUCT), np.float32)
    return [functools.partial(peer.product, a, a) for a in (peer.array(ones), peer.wide(ones))]


def draw(path: Any, points: list[Point], peak: float, peer: str, title: str) -> None:
    """peak: the limit in FLOP/s."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    times, fractions = figure.subplots(1, 2)
    x = [p.context for p in points]
    for name, style, values in (
        ("AMLA", "o-", [p.ours for p in points]),
        (peer, "s--", [p.theirs for p in points]),
    ):
        times.loglog(x, [1e3 * s for s in values], style, label=name)
        fractions.semilogx(
            x, [100 * p.flops / s / peak for p, s in zip(points, values)], style, label=name
        )
    times.set(xlabel="context, tokens", ylabel="time of a call, ms", title=title)
    fractions.set(xlabel="context, tokens", ylabel="% of a large product's FLOP/s", ylim=(0, None))
    for axes in (times, fractions):
        axes.grid(True, which="both", alpha=0.3)
        axes.set_xticks(x, [str(n) for n in x])
        axes.minorticks_off()
        axes.legend()
    figure.savefig(path, dpi=120)
