# SPDX-License-Identifier: Apache-2.0
"""What works without NumPy, PyTorch and ml_dtypes: in processes that cannot import them."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
TORCH = """
    import torch
    q, kv = torch.ones(1, 1, 4, 576), torch.ones(3, 8, 576)
    table = torch.tensor([[2, 0, 1]])
    n = torch.tensor([17])
    want = 1 + torch.tensor(17.0).log()
"""
REFUSED = """
    def refused(kind, words, call, *arguments, **options):
        try:
            call(*arguments, **options)
        except kind as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)
"""


HIDE = """
    import sys
    class Hidden:
        def __init__(self, finder):
            self.finder = finder
        def find_spec(self, name, *more):
            return None if name.split(".")[0] in ABSENT else self.finder.find_spec(name, *more)
    sys.meta_path[:] = [Hidden(finder) for finder in sys.meta_path]
"""


def run(absent, *parts):
    """The code as if these packages were not installed."""
    code = f"ABSENT = {absent}\n" + "".join(textwrap.dedent(part) for part in (HIDE, *parts))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_needs_nothing():
    run(["numpy", "torch", "ml_dtypes"], "import amla\nassert 'cpu' in amla.backends()")


@needs_torch
def test_torch_tensors_need_no_numpy():
    run(
        ["numpy", "ml_dtypes"],
        TORCH,
        """
        import amla
        from amla import flash_mla, flashinfer
        for dtype in (torch.float32, torch.bfloat16):
            arrays = q.to(dtype), kv.to(dtype), table, n
            out, lse = amla.decode(*arrays, scale=1 / 576, causal=True, out_dtype="float32")
            assert torch.allclose(out, torch.ones(1, 1, 4, 512))
            assert torch.allclose(lse, want)
            plan = amla.Plan.like(*arrays, scale=1 / 576)
            assert torch.allclose(plan.run(*arrays)[1], want)
        both = amla.merge(torch.stack((out, out)), torch.stack((lse, lse)))
        assert torch.allclose(both[1], want + torch.tensor(2.0).log())
        assert torch.allclose(amla.merge_parts(torch.stack((out,)), torch.stack((lse,)))[1], want)
        cache, latent, rope = torch.zeros(2, 4, 576), torch.ones(1, 512), torch.ones(1, 64)
        amla.cache_write(latent, rope, cache, torch.tensor([5]))
        assert cache[1, 1].sum() == cache.sum() == 576
        out, lse = flash_mla.flash_mla_with_kvcache(q, kv[:, :, None], table, n, 512)
        assert torch.allclose(out, torch.ones(1, 1, 4, 512))
        """,
    )


@needs_torch
def test_what_needs_numpy_says_so():
    """Lists, DLPack objects and bench. What is no array is what it was."""
    run(
        ["numpy", "ml_dtypes"],
        TORCH,
        REFUSED,
        """
        import amla
        class Foreign:
            __dlpack__, __dlpack_device__ = kv.__dlpack__, kv.__dlpack_device__
        words = "NumPy is not installed (pip install numpy)"
        refused(ImportError, words, amla.decode, q, kv, table, [17], scale=1.0)
        refused(ImportError, words, amla.decode, q, Foreign(), table, n, scale=1.0)
        refused(ImportError, words, amla.bench, sk=10)
        refused(TypeError, "q: str: must be", amla.decode, "q", kv, scale=1.0)
        refused(ValueError, "scale='1': must be", amla.decode, q, kv, scale="1")
        refused(ValueError, "out_dtype=3", amla.decode, q, kv, scale=1.0, out_dtype=3)
        """,
    )


def test_numpy_arrays_need_no_torch():
    run(
        ["torch", "ml_dtypes"],
        REFUSED,
        """
        import importlib, amla, numpy as np
        q, kv = np.ones((1, 1, 4, 576), np.float32), np.ones((1, 7, 576), np.float32)
        out, lse = amla.decode(q, kv, scale=1 / 576)
        assert (out == 1).all() and np.allclose(lse, 1 + np.log(7))
        words = "bfloat16 in NumPy needs the package ml_dtypes"
        refused(ValueError, words, amla.decode, q, kv, scale=1.0, out_dtype="bfloat16")
        for name in ("flash_mla", "flashinfer", "transformers"):
            refused(ImportError, "torch", importlib.import_module, "amla." + name)
        """,
    )


@needs_torch
def test_first_call_inside_a_graph():
    """amla comes before torch, so that nothing has registered its operators."""
    run(
        [],
        """
        import amla, torch
        o, lse = torch.ones(2, 3, 8), torch.zeros(2, 3)
        merge = torch.compile(amla.merge_parts, fullgraph=True, backend="eager")
        assert torch.allclose(merge(o, lse)[1], torch.tensor(2.0).log())
        """,
    )
