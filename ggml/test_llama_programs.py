# SPDX-License-Identifier: Apache-2.0
"""What users type: the programs of a packaged llama.cpp (Debian sid's), unmodified, and what the
plug-in says to them.

    AMLA_GGML_PLUGIN=libggml-amla.so AMLA_GGML_HOSTS=FOLDER pytest test_llama_programs.py

FOLDER is what ggml_hosts.sh has filled.
"""

import os
import re
import subprocess

import pytest

import tiny_deepseek

PLUGIN = os.path.abspath(os.environ["AMLA_GGML_PLUGIN"])
SID = os.path.join(os.path.abspath(os.environ["AMLA_GGML_HOSTS"]), "sid")

pytestmark = pytest.mark.skipif(
    not os.path.exists(os.path.join(SID, "ready")), reason="Debian sid is not here"
)
ON, OFF_BY_AUTO, OFF = "on", "off by auto", "off"


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("model") / "tiny.gguf")
    tiny_deepseek.write(path, heads=16, layers=2)
    return path


def run(*command, cwd=None, **environment):
    """What the plug-in says: its lines, without "amla: "; and the status."""
    kept = ("GGML_BACKEND_PATH", "AMLA_LOG", "LLAMA_ARG_FLASH_ATTN")
    inherited = {k: v for k, v in os.environ.items() if k not in kept}
    done = subprocess.run(
        [os.path.join(SID, "run"), *command],
        env={**inherited, "GGML_BACKEND_PATH": PLUGIN, **environment},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, errors="replace", timeout=120, cwd=cwd,
    )  # fmt: skip
    return re.findall("amla: (.*)", done.stderr), done.returncode


def decode(model, *options, **rest):
    command = ["llama-completion", "-m", model, "-p", "abcdefgh", "-n", "4", "-c", "512", "-t", "2"]
    lines, status = run(*command, "-no-cnv", "--temp", "0", *options, **rest)
    assert status == 0
    return lines


def n_done(lines):
    return sum(
        int(n) for line in lines for n in re.findall(r"^(\d+) attention operations done", line)
    )


# ---- Flash attention ----


def test_auto_is_off_and_told(model):
    """llama.cpp's default: one line at the end, and how to do better."""
    (line,) = decode(model)
    assert line.startswith("0 attention operations done: flash attention was off; -fa on or ")
    assert "LLAMA_ARG_FLASH_ATTN=on" in line and "`auto'" in line and "AMLA_LOG=0" in line
    (line,) = decode(model, "-fa", "off")
    assert line.startswith("0 attention operations done: flash attention was off;")
    assert "`auto'" not in line


def test_told_in_quiet(model):
    assert decode(model, AMLA_LOG="0") == []


@pytest.mark.parametrize(
    "options, variables",
    [
        (["-fa", "on"], {}),
        ([], {"LLAMA_ARG_FLASH_ATTN": "on"}),
        (["-dev", "AMLA"], {}),
        (["-fa", "on", "-ctk", "q8_0", "-ctv", "q8_0"], {}),
        (["-fa", "on", "-ctk", "q4_0", "-ctv", "q4_0"], {}),
        (["-fa", "on", "-ctk", "iq4_nl", "-ctv", "iq4_nl"], {}),
        (["-fa", "on", "-ctk", "f32", "-ctv", "f32"], {}),
    ],
    ids=["fa", "variable", "dev", "q8_0", "q4_0", "iq4_nl", "f32"],
)
def test_it_decodes_through_the_plugin(model, options, variables):
    lines = decode(model, *options, AMLA_LOG="1", **variables)
    assert n_done(lines) > 0 and not any("left to the CPU" in line for line in lines)
    plans = [line for line in lines if line.startswith("plan ")]
    shape = r"plan b=1 s_q=\d+ h_q=16 sk=\d+ d_qk=576 d_v=512( causal=1)? q=f32 kv=\w+ out=f32: "
    assert plans and all(re.fullmatch(shape + r"cpu \w+ lazy, .*, \d threads?", x) for x in plans)
    rest = r"tokens=[1-9]\d* GFLOP/s=\d+\.\d refusals=0"
    assert re.fullmatch(rf"done plans={len(plans)} runs={n_done(lines)} {rest}", lines[-1])


def test_relative_path(model):
    """Relative to where the program runs; a bare name is looked for as any library is."""
    folder, name = os.path.split(PLUGIN)
    assert (
        n_done(decode(model, "-fa", "on", cwd=folder, GGML_BACKEND_PATH=f"./{name}", AMLA_LOG="1"))
        > 0
    )
    assert decode(model, "-fa", "on", cwd=folder, GGML_BACKEND_PATH=name, AMLA_LOG="1") == []


# ---- Why nothing was computed, and when nothing is said ----


def test_models_without_mla(tmp_path):
    run("test-llama-archs", "-a", "llama|mamba", "-s", "1", "-o", str(tmp_path), AMLA_LOG="0")
    for name, says in (
        ("llama", "K/V are not 576/512, 512/512 or 320/256 ("),
        ("mamba", "no attention was offered: "),
    ):
        model = str(tmp_path / f"{name}-dense.gguf")
        (line,), status = run(
            "llama-bench", "-m", model, "-n", "2", "-p", "4", "-fa", "1", "-t", "1"
        )
        assert status == 0 and line.startswith(f"0 attention operations done: {says}")


@pytest.mark.parametrize(
    "command",
    [
        "llama-server --help",
        "llama-server --list-devices",
        "llama-completion --version",
        "llama-completion -m none",
    ],
)
def test_nothing_without_a_model(command):
    lines, _ = run(*command.split())
    assert lines == []


def test_nothing_when_it_was_used(model):
    assert decode(model, "-fa", "on") == []
