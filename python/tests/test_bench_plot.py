# SPDX-License-Identifier: Apache-2.0
"""amla.bench(plot=...): five contexts, both lines, in the picture; refusals before any work."""

import re
import sys

import pytest

import amla
from amla import _bench_plot

SMALL = dict(h_q=8, sk=512, d_qk=96, d_v=64, page_size=16, dtype="float32", seconds=0.03)
TITLE = "heads: 8, queries: 1, sequences: 2, float32"


def test_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(
        _bench_plot, "draw", lambda *a, real=_bench_plot.draw: drawn.append(a) or real(*a)
    )
    for name, head in (("a.svg", b"<?xml"), ("b.png", b"\x89PNG")):
        result = amla.bench(**SMALL, b=2, plot=tmp_path / name)
        assert result.seconds > 0 and (tmp_path / name).read_bytes().startswith(head)
    _, points, peak, peer, title = drawn[0]
    assert [p.context for p in points] == [2, 8, 32, 128, 512]
    assert all(p.ours > 0 and p.theirs > 0 and p.flops > 0 for p in points) and peak > 0
    assert re.match("PyTorch|NumPy", peer) and title == TITLE
    assert "% of a large product" in (tmp_path / "a.svg").read_text()


def test_a_peer_that_is_wrong_draws_nothing(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    real = _bench_plot.peer_call
    monkeypatch.setattr(_bench_plot, "peer_call", lambda *a: lambda: real(*a)() * 2)
    with pytest.raises(RuntimeError, match="apart by 1.0e[+]00: nothing was drawn"):
        amla.bench(**SMALL, plot=tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_refusals(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("amla._bench.Plan", None)  # no work
    for options, error, words in (
        (dict(plot="x.doc"), ValueError, "^plot='x.doc': must end in one of .*svg"),
        (dict(plot=3), TypeError, "^plot: int: must be a file name"),
        (dict(plot=tmp_path / "no" / "x.svg"), ValueError, "there is no such folder"),
        (
            dict(plot=tmp_path / "x.svg", causal=True, s_q=2),
            NotImplementedError,
            "^plot: s_q=2: must be 1 with causal",
        ),
    ):
        with pytest.raises(error, match=words):
            amla.bench(**SMALL, **options)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(_bench_plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotImplementedError, match="needs matplotlib, which is not installed"):
        amla.bench(**SMALL, plot=tmp_path / "x.svg")
