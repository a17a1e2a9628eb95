# SPDX-License-Identifier: Apache-2.0
"""AMLA_LOG=1: what this process did, on stderr: a line for each plan, one when it ends.
docs/performance.md has their form. The environment is read once; nothing is counted without it."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

on = os.environ.get("AMLA_LOG", "") not in ("", "0")


def log(text: str) -> None:
    """A line."""
    if on:
        print(f"amla: {text}", file=sys.stderr)


# ---- Totals ----


class _Totals:
    """Of one process."""

    def __init__(self) -> None:
        self.lock, self.begun = threading.Lock(), False
        self.plans = self.runs = self.tokens = self.refusals = 0
        self.flops = self.seconds = 0.0

    def say(self) -> None:
        rate = self.flops / self.seconds / 1e9 if self.seconds else 0.0
        log(
            f"done plans={self.plans} runs={self.runs} tokens={self.tokens} GFLOP/s={rate:.1f} "
            f"refusals={self.refusals}"
        )


_totals = _Totals()


def _begin() -> None:
    global _totals
    _totals = _Totals()


if on:  # a forked process has lines of its own
    os.register_at_fork(after_in_child=_begin)


def count(**more: float) -> None:
    """Adds to the totals. The first time in a process also asks for the line at its end, which
    processes of multiprocessing, where atexit is not heard, have too."""
    if not on:
        return
    with _totals.lock:
        if not _totals.begun:
            from multiprocessing import util

            util.Finalize(None, _totals.say, exitpriority=0)
            _totals.begun = True
        for name, n in more.items():
            setattr(_totals, name, getattr(_totals, name) + n)


# ---- Plans and runs ----

_SHAPE = (
    *("b", "s_q", "h_q", "sk", "d_qk", "d_v", "causal"),
    *("page_size", "topk", "window", "extra_sk", "extra_topk", "extra_page_size"),
)


def plan_made(fields: dict[str, Any], types: dict[str, str], description: str) -> None:
    """types: of q, kv and out, as the library names them; description: amla_plan_describe."""
    shape = {**{name: int(fields[name]) for name in _SHAPE if fields[name]}, **types}
    log(f"plan {' '.join(f'{name}={x}' for name, x in shape.items())}: {description}")
    count(plans=1)


def _ints(address: int | None, n: int) -> Any:
    """[n] int32 at a pointer of amla_tensors; None where it is NULL."""
    return (ctypes.c_int32 * n).from_address(address) if address else None


def _keys(f: dict[str, Any], t: Any, scope: str, queries: list[int]) -> Iterator[int]:
    """Of each query the keys that it sees of one scope; of a list its entries, empty ones too.
    queries: of each sequence."""
    topk, sk, total = f[f"{scope}topk"], f[f"{scope}sk"], sum(queries)
    by_query = topk and f["topk_length_per_query"]
    entries = _ints(getattr(t, f"{scope}topk_length"), total if by_query else len(queries))
    lengths = _ints(getattr(t, f"{scope}seqlens_k"), len(queries))
    visible = _ints(getattr(t, f"{scope}visible_k"), total)
    window = f["window"] if not scope else 0
    first = 0
    for i, n in enumerate(queries):
        length = lengths[i] if lengths else sk
        for j in range(n):
            if topk:
                yield entries[first + j if by_query else i] if entries else topk
                continue
            hidden = n - 1 - j if f["causal"] and not scope else 0
            seen = visible[first + j] if visible else max(length - hidden, 0)
            yield min(seen, window) if window else seen
        first += n


def flops_of(f: dict[str, Any], tensors: Any) -> float:
    """2 * rows' visible keys * (d_qk + d_v), of a plan's fields and an amla_tensors in host memory;
    keys that a mask hides are taken for visible."""
    ends = _ints(tensors.q_indptr, f["b"] + 1)
    queries = [b - a for a, b in zip(ends, ends[1:])] if ends else [f["s_q"]] * f["b"]
    scopes = ["", "extra_"] if f["extra_sk"] or f["extra_topk"] else [""]
    keys = sum(sum(_keys(f, tensors, scope, queries)) for scope in scopes)
    return 2.0 * keys * f["h_q"] * (f["d_qk"] + f["d_v"])


def counted(run: Callable[..., None]) -> Callable[..., None]:
    """A method of a call that runs amla_tensors: as it is, or counting where lines are wanted. Of
    other memory than the host's and of simulated chips only runs and tokens."""
    if not on:
        return run

    @functools.wraps(run)
    def run_and_count(call: Any, tensors: Any) -> None:
        began = time.perf_counter()
        run(call, tensors)
        seconds = time.perf_counter() - began
        tokens = 1
        for n in call.out_shape[:-2]:
            tokens *= n
        count(runs=1, tokens=tokens)
        f = call.plan.fields
        if call.device == "cpu" and f["backend"] != "npu":
            count(flops=flops_of(f, tensors), seconds=seconds)

    return run_and_count
