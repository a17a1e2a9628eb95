# SPDX-License-Identifier: Apache-2.0
"""examples/deepseek_decode.py runs, in small."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "examples" / "deepseek_decode.py"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_example_runs(tmp_path, dtype):
    plot = (
        ["--plot", str(tmp_path / "decode.png")] if importlib.util.find_spec("matplotlib") else []
    )
    result = subprocess.run(
        [
            sys.executable,
            str(EXAMPLE),
            "--heads",
            "16",
            "--layers",
            "1",
            "--contexts",
            "64,200",
            "--tokens",
            "12",
            "--seconds",
            "0.2",
            "--dtype",
            dtype,
            *plot,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^ +(?:64|200) +[\d.]+", result.stdout, re.M)) == 4, result.stdout
    if dtype == "float32":
        assert "the first 12 of 12 tokens are the same" in result.stdout
    if plot:
        assert (tmp_path / "decode.png").read_bytes()[:4] == b"\x89PNG"


def test_example_refuses_nonsense():
    result = subprocess.run(
        [sys.executable, str(EXAMPLE), "--contexts", "many"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 2 and "--contexts=many: must be numbers" in result.stderr
