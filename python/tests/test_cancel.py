# SPDX-License-Identifier: Apache-2.0
"""cancel of amla.decode and Plan.run: asked before every key tile, and obeyed."""

import threading
import time

import numpy as np
import pytest

import amla

SCALE, KEYS = 0.1, 2000


@pytest.fixture(scope="module")
def step():
    random = np.random.default_rng(3)
    q = random.standard_normal((1, 2, 4, 64), dtype=np.float32)
    return q, random.standard_normal((1, KEYS, 64), dtype=np.float32)


def decode(step, **more):
    return amla.decode(*step, scale=SCALE, d_v=32, causal=True, **more)


def run(step, **more):
    return amla.Plan.like(*step, scale=SCALE, d_v=32, causal=True).run(*step, **more)


class Cancel:
    """Ends the run at one question. Later ones, of other threads, wait until that answer has had
    time to arrive: a thread may lose its core between its answer and the library's note of it.
    """

    def __init__(self, end_at=0):
        self.asked, self.end_at, self.lock = 0, end_at, threading.Lock()

    def __call__(self):
        with self.lock:
            self.asked += 1
            at = self.asked
        if 0 < self.end_at < at:
            time.sleep(0.5)
        return at == self.end_at


@pytest.mark.parametrize("call", [decode, run])
def test_it_ends_at_the_next_question(step, call):
    want = call(step)
    never, third = Cancel(), Cancel(3)
    for got, expected in zip(call(step, cancel=never), want):
        np.testing.assert_array_equal(got, expected)  # the same bits
    assert never.asked >= KEYS // 128
    with pytest.raises(amla.Cancelled, match="cancel: it asked for the end of the run"):
        call(step, cancel=third)
    assert third.asked == 3
    for got, expected in zip(call(step), want):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_what_it_raises_is_raised(step, error):
    def cancel():
        raise error("no more")

    with pytest.raises(error, match="no more"):
        decode(step, cancel=cancel)


def test_threads(step):
    """One is told, and all end: no thread asks more than once after that."""
    q = np.repeat(step[0], 64, axis=0)
    kv = np.repeat(step[1], 64, axis=0)
    cancel = Cancel(5)
    with pytest.raises(amla.Cancelled):
        amla.decode(q, kv, scale=SCALE, d_v=32, threads=3, cancel=cancel)
    assert 5 <= cancel.asked <= 5 + 2


def test_backends(step):
    assert decode(step, backend="ref", cancel=Cancel())[0].shape == (1, 2, 4, 32)
    with pytest.raises(amla.Cancelled):
        decode(step, backend="ref", cancel=Cancel(1))


def test_what_is_not_a_function(step):
    with pytest.raises(TypeError, match="cancel=True: must be a function"):
        decode(step, cancel=True)
