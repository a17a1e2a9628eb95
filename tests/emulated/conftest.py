# SPDX-License-Identifier: Apache-2.0
"""The emulated machine, one a process, and the objects that CMake built for it."""

import os
import sys

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(__file__))
import emulate  # noqa: E402

_machine = None


@pytest.fixture(scope="module")
def machine():
    """With the code that CMake named AMLA_EMULATED, an object or a shared object."""
    global _machine
    if _machine is None:
        _machine = emulate.Machine()
    _machine.reset()
    _machine.load_elf(os.environ["AMLA_EMULATED"])
    return _machine


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def same(a, b):
    """Bit for bit, NaNs aside."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind == "f":
        nan = np.isnan(a) & np.isnan(b)
        return bool(np.all(nan | (a.view(np.uint32) == b.view(np.uint32))))
    return np.array_equal(a, b)
