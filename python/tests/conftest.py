# SPDX-License-Identifier: Apache-2.0
"""Options and fixtures of the Python tests. Tests that need torch or transformers skip with a
reason where those are absent, or fail if AMLA_REQUIRE_TORCH is set, as it is in CI."""

import importlib.util
import os
import pathlib
import tempfile

import numpy as np
import pytest

os.environ.setdefault(
    "HYPOTHESIS_STORAGE_DIRECTORY", os.path.join(tempfile.gettempdir(), "hypothesis")
)  # not into the tree
REQUIRED = bool(os.environ.get("AMLA_REQUIRE_TORCH"))
LONG = bool(os.environ.get("AMLA_LONG"))
NEEDS = {
    "test_decode_torch.py": ("torch",),
    "test_flash_mla.py": ("torch",),
    "test_flash_mla_sparse.py": ("torch",),
    "test_flashinfer.py": ("torch",),
    "test_transformers_patch.py": ("torch", "transformers"),
    "test_transformers_sparse.py": ("torch", "transformers"),
    "test_transformers_classes.py": ("torch", "transformers"),
    "test_vllm_plugin.py": ("torch",),
    "test_deepseek_example.py": ("torch", "transformers"),
    "test_distributed.py": ("torch",),
    "test_transformers_distributed.py": ("torch", "transformers"),
}

missing = {
    file: [m for m in modules if importlib.util.find_spec(m) is None]
    for file, modules in NEEDS.items()
}
collect_ignore = [file for file, modules in missing.items() if modules]


def pytest_report_header(config):
    import amla

    return [
        f"amla {amla.__version__} from {pathlib.Path(amla.__file__).parent}, backends "
        f"{amla.backends()}, long: {LONG}"
    ] + [
        f"SKIPPED {file}: {', '.join(modules)} not installed"
        for file, modules in missing.items()
        if modules
    ]


def pytest_terminal_summary(terminalreporter):
    for file, modules in missing.items():  # the header is not printed under -q
        if modules:
            terminalreporter.write_line(f"SKIPPED {file}: {', '.join(modules)} not installed")


def pytest_sessionstart(session):
    if REQUIRED and collect_ignore:
        raise pytest.UsageError(f"AMLA_REQUIRE_TORCH is set, but {missing} are not installed")


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """Four processes of a torch.distributed group."""
    from ranks import Ranks

    group = Ranks(tmp_path_factory.mktemp("ranks"))
    yield group
    group.close()


@pytest.fixture(scope="session")
def long():
    """Every input instead of a sample?"""
    return LONG
