# SPDX-License-Identifier: Apache-2.0
"""What of llama-bench's output is a run, where the plug-in's lines stand amid it.

pytest test_bench_server.py
"""

import os
import time

import bench_server

LINES = [  # what a process writes, and its CPU seconds by then
    ("build: 7000 (abc) with GNU 14\n", 0.1),
    ("llama-bench: benchmark 1/1: starting\n", 0.2),
    ("amla: plan b=1 s_q=32 h_q=16: cpu avx2\n", 0.3),
    ("llama-bench: benchmark 1/1: depth run 1/2\n", 0.5),
    ("llama-bench: benchmark 1/1: generation run 1/2\n", 1.0),
    ("amla: plan b=1 s_q=1 h_q=16: cpu avx2\n", 1.0),
    ("llama-bench: benchmark 1/1: depth run 2/2\n", 1.75),
    ("llama-bench: benchmark 1/1: generation run 2/2\n", 2.0),
    ('{"samples_ns": [1, 2]}\n', 2.5),
    ("amla: 8 attention operations done\n", 2.75),
]


def test_runs_end_with_lines_of_llama_bench():
    assert bench_server.cpu_of_runs(LINES) == [0.75, 0.5]


def test_a_run_that_nothing_ends_is_none():
    assert bench_server.cpu_of_runs(LINES[:6]) == []


def test_cpu_seconds_are_finer_than_a_tick():
    """The same clock as a process's own, of any process."""
    before = time.process_time()
    seen = bench_server.cpu_seconds(os.getpid())
    assert before <= seen <= time.process_time()
    assert len({bench_server.cpu_seconds(os.getpid()) for _ in range(100)}) > 10
