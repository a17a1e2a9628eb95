# SPDX-License-Identifier: Apache-2.0
"""AMLA_LOG: the lines of docs/performance.md, in processes of their own, since the environment is
read once."""

import importlib.util
import os
import re
import subprocess
import sys
import textwrap

import pytest

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
START = """
    import amla, numpy as np
    def ones(*shape, dtype=np.float32):
        return np.ones(shape, dtype)
    def ints(*numbers):
        return np.array(numbers, np.int32)
    q, kv = ones(2, 1, 4, 64), ones(2, 70, 64)
    def decode(*arrays, **options):
        return amla.decode(*arrays, scale=0.1, d_v=32, threads=1, **options)
"""


def lines(code, value="1", isa="c", start=START):
    """What the process of a program writes to stderr."""
    environment = {k: v for k, v in os.environ.items() if k not in ("AMLA_LOG", "AMLA_NUM_THREADS")}
    if value is not None:
        environment["AMLA_LOG"] = value
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(code)],
        env={**environment, "AMLA_ISA": isa}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def done(plans, runs, tokens, refusals):
    return re.compile(
        rf"amla: done plans={plans} runs={runs} tokens={tokens} GFLOP/s=\d+\.\d refusals={refusals}"
    )


def plan(shape):
    return re.compile(rf"amla: plan {shape}: cpu c lazy, .*, 1 thread")


def expect(found, *patterns):
    assert len(found) == len(patterns), found
    for line, pattern in zip(found, patterns):
        assert pattern.fullmatch(line), (line, pattern.pattern)


SHAPE = "b=2 s_q=1 h_q=4 sk=70 d_qk=64 d_v=32"
TYPES = "q=f32 kv=f32 out=f32"


def test_a_line_a_plan_and_one_at_the_end():
    expect(
        lines("""
            for _ in range(3):
                decode(q, kv)
            decode(q[:1], kv[:1], causal=True)
        """),
        plan(f"{SHAPE} {TYPES}"),
        plan(f"b=1 {SHAPE[4:]} causal=1 {TYPES}"),
        done(2, 4, 7, 0),
    )


def test_plans_made_by_hand_and_pages_and_lists():
    expect(
        lines("""
            pages, table = kv.reshape(14, 10, 64), ints(*range(14)).reshape(2, 7)
            plan = amla.Plan.like(q, pages, table, scale=0.1, d_v=32, threads=1)
            plan.run(q, pages, table)
            decode(q, pages, indices=ones(2, 1, 9, dtype=np.int32))
        """),
        plan(f"{SHAPE} page_size=10 {TYPES}"),
        plan(f"b=2 s_q=1 h_q=4 d_qk=64 d_v=32 page_size=10 topk=9 {TYPES}"),
        done(2, 2, 4, 0),
    )


@pytest.mark.parametrize("value", [None, "", "0"])
def test_nothing_otherwise(value):
    code = """
        decode(q, kv)
        assert not hasattr(amla._plan.Call.run_tensors, "__wrapped__")  # no cost either
        try:
            decode(q, kv[:1])
        except ValueError:
            pass
    """
    assert lines(code, value) == []
    assert lines("", "1") == []  # a process that only imports it


def test_refusals_are_counted():
    expect(
        lines("""
            for wrong in dict(split_tokens=-7), dict(seqlens=ints(70, 71)):
                try:
                    decode(q, kv, **wrong)
                except ValueError:
                    continue
                raise AssertionError(wrong)
        """),
        plan(f"{SHAPE} {TYPES}"),
        done(1, 0, 0, 2),
    )


def test_each_process_has_its_own_lines():
    """One of multiprocessing, where atexit is not heard, and one that was only forked too."""
    found = lines("""
        import multiprocessing
        decode(q, kv)
        child = multiprocessing.get_context("fork").Process(target=decode, args=(q[:1], kv[:1]))
        child.start()
        child.join()
        multiprocessing.get_context("fork").Process(target=int).start()
    """)
    shapes = plan(f"{SHAPE} {TYPES}"), plan(f"b=1 {SHAPE[4:]} {TYPES}")
    expect(found, *shapes, done(1, 1, 1, 0), done(1, 1, 2, 0))


# By case, arguments beside q and kv, and the keys that all queries see.
WORK = {
    "length": ("q, kv", 140),
    "lengths": ("q, kv, None, ints(3, 50)", 53),
    "causal": ("ones(2, 5, 4, 64), kv, None, ints(3, 50), causal=True", 1 + 2 + 3 + 5 * 48),
    "window": ("ones(2, 2, 4, 64), kv, None, ints(3, 50), causal=True, window=8", 2 + 3 + 8 + 8),
    "list": ("q, kv, indices=ones(2, 1, 9, dtype=np.int32)", 18),
    "list's length": (
        "q, kv, indices=ones(2, 1, 9, dtype=np.int32), topk_length=ints(4, 9)", 13),
    "visible": ("ones(1, 2, 4, 64), kv[:1], None, ints(50), visible=ints(7, 9).reshape(1, 2)", 16),
    "second scope": (
        "q, kv, None, ints(3, 50), extra=amla.Scope(ones(2, 10, 64), seqlens=ints(10, 4))", 67),
    "ragged": (
        "ones(6, 4, 64), kv, None, ints(3, 50), q_indptr=ints(0, 2, 6)", 2 * 3 + 4 * 50),
}  # fmt: skip


@pytest.mark.parametrize("case", WORK)
def test_work_is_that_of_visible_keys(case):
    arguments, keys = WORK[case]
    found = lines(f"""
        decode({arguments})
        from amla._log import _totals as total
        print(total.flops, total.seconds, file=__import__("sys").stderr)
    """)
    flops, seconds = map(float, found[1].split())
    assert flops == 2 * keys * 4 * (64 + 32) and seconds > 0
    assert f" GFLOP/s={flops / seconds / 1e9:.1f} " in found[2]


@needs_torch
def test_torch_and_flash_mla():
    found = lines("""
        import torch
        from amla.flash_mla import flash_mla_with_kvcache, get_mla_metadata
        torch.set_num_threads(1)
        q, kv = torch.ones(1, 2, 4, 576), torch.ones(3, 64, 1, 576)
        table, n = torch.tensor([[2, 0, 1]], dtype=torch.int32), torch.tensor([70]).int()
        for _ in range(3):
            flash_mla_with_kvcache(q, kv, table, n, 512, *get_mla_metadata(), causal=True)
        q, kv = torch.ones(2, 1, 4, 64), torch.ones(2, 70, 64)
        torch.compile(decode, backend="eager")(q, kv)
    """)
    expect(
        found,
        plan(f"b=1 s_q=2 h_q=4 sk=192 d_qk=576 d_v=512 causal=1 page_size=64 {TYPES}"),
        plan(f"{SHAPE} {TYPES}"),
        done(2, 4, 8, 0),
    )


@needs_torch
def test_shards():
    """A shard is a run over its keys."""
    found = lines("""
        import sys, torch
        import torch.distributed as dist
        from amla._log import _totals as total
        from amla.distributed import DecodeContextParallel
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        q, kv = torch.ones(2, 1, 4, 64), torch.ones(2, 70, 64)
        DecodeContextParallel(split_tokens=768).decode(
            q, kv, None, torch.tensor([70, 70]), scale=0.1, d_v=32, threads=1)
        print(total.flops, total.seconds > 0, file=sys.stderr)
        dist.destroy_process_group()
    """)
    assert [x for x in found if not x.startswith("amla: ")] == [f"{2 * 140 * 4 * 96.0} True"]
    assert done(1, 1, 2, 0).fullmatch(found[-1])
