# SPDX-License-Identifier: Apache-2.0
"""One pool of threads: a process that has libamla and PyTorch, in either order, has no more threads
than one of them asks for, and one without any OpenMP runtime decodes with a pool of its own."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

import amla

THREADS = 3
DECODE = """
    import amla, numpy as np
    q, kv = np.ones((1, 1, 64, 576), np.float32), np.ones((1, 2000, 576), np.float32)
    for threads in (0, 2, 3):
        assert np.allclose(amla.decode(q, kv, scale=1 / 576, threads=threads)[0], 1)
"""
TORCH = """
    import torch
    a = torch.ones(1500, 1500)
    (a @ a), a.exp().sum()
"""
COUNT = """
    import os
    print(len(os.listdir("/proc/self/task")), [line.split()[-1] for line in open("/proc/self/maps")
          if "libgomp" in line and " 00000000 " in line])
"""


IN_TURNS = """
    import statistics, sys, time
    calls = dict(torch=lambda: a @ a, amla=lambda: amla.decode(q, kv, scale=1 / 576))
    def seconds(*names):
        found = {name: [] for name in names}
        for _ in range(9):
            for name in names:
                start = time.perf_counter()
                calls[name]()
                found[name].append(time.perf_counter() - start)
        return [f"{name} {statistics.median(x) * 1e3:.2f} ms" for name, x in found.items()]
    alone = seconds("torch") + seconds("amla")
    print("alone", *alone, "in turns", *seconds("torch", "amla"), file=sys.stderr)
"""


def run(*parts, folder=None):
    """The number of threads of a process, and the OpenMP runtimes in it."""
    env = dict(os.environ, OMP_NUM_THREADS=str(THREADS), OPENBLAS_NUM_THREADS="1")
    env.pop("AMLA_NUM_THREADS", None)
    if folder:
        env["LD_LIBRARY_PATH"] = str(folder)
    code = "".join(textwrap.dedent(part) for part in (*parts, COUNT))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stderr)
    n, found = done.stdout.split(maxsplit=1)
    return int(n), eval(found)


@pytest.fixture
def no_openmp(tmp_path):
    """A folder where the system's OpenMP runtime is found first, and cannot be loaded."""
    symbols = subprocess.run(
        ["readelf", "-d", amla._library.lib._name], capture_output=True, text=True
    )
    if symbols.returncode or "libgomp" in symbols.stdout:
        pytest.skip("libamla is not a wheel's: it is linked with libgomp")
    (tmp_path / "libgomp.so.1").touch()
    return tmp_path


needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")


@needs_torch
@pytest.mark.parametrize("order", [(TORCH, DECODE), (DECODE, TORCH)], ids=["torch", "amla"])
def test_beside_torch(order):
    n, runtimes = run(*order)
    assert 1 < n <= THREADS + 1 and len(runtimes) == 1, runtimes


@needs_torch
def test_in_turns_with_torch():
    """No thread more than for one of them. Both are timed alone and in turns, which -s prints."""
    n, runtimes = run(TORCH, DECODE, IN_TURNS)
    assert 1 < n <= THREADS + 1 and len(runtimes) == 1, runtimes


@needs_torch
@pytest.mark.parametrize("order", [(TORCH, DECODE), (DECODE, TORCH)], ids=["torch", "amla"])
def test_torch_has_the_only_runtime(no_openmp, order):
    order = (TORCH.replace("import", "import amla,"), order[1]) if order[0] == TORCH else order
    n, runtimes = run(*order, folder=no_openmp)
    assert 1 < n <= THREADS + 1 and len(runtimes) == 1 and "torch" in runtimes[0], runtimes


def test_own_pool(no_openmp):
    """Also of two callers at once, and in a child."""
    hide = """
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *more: name != "torch" and real(name, *more)
    """
    more = """
        import threading
        want = amla.decode(q, kv, scale=1 / 576, threads=3)
        callers = [threading.Thread(target=amla.decode, args=(q, kv),
                                    kwargs=dict(scale=1 / 576, threads=3)) for _ in range(2)]
        [caller.start() for caller in callers], [caller.join() for caller in callers]
        child = os.fork() if (os := __import__("os")) else 0
        if child == 0:
            got = amla.decode(q, kv, scale=1 / 576, threads=1)
            os._exit(0 if all((x == y).all() for x, y in zip(got, want)) else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    assert run(hide, DECODE, more, folder=no_openmp) == (THREADS, [])
