# SPDX-License-Identifier: Apache-2.0
"""The Python blocks of docs/python.md and docs/sparse.md run as they are printed, and say what
their comments say."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
BLOCKS = [
    block
    for page in ("python.md", "sparse.md")
    for block in re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
]


def test_blocks_are_found():
    assert [
        re.search(r"amla[\w., ]*(decode|flash_mla|flashinfer|patch)", block)[1] for block in BLOCKS
    ] == [
        "decode",
        "flash_mla",
        "flashinfer",
        "patch",
        "decode",
    ]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block(block):
    for module in re.findall(r"^(?:import|from) (torch|transformers)", block, re.M):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    result = subprocess.run(
        [sys.executable, "-W", "error:amla", "-c", block],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    printed = re.findall(r"print\(.*\) +# (.*)", block)
    assert result.stdout.splitlines() == printed
