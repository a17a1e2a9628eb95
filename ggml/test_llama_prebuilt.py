# SPDX-License-Identifier: Apache-2.0
"""Unmodified, prebuilt llama.cpp, whole models, with and without the plug-in.

    AMLA_GGML_PLUGIN=libggml-amla.so AMLA_GGML_HOSTS=FOLDER pytest test_llama_prebuilt.py

FOLDER is what ggml_hosts.sh has filled.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import tiny_deepseek

HERE = os.path.dirname(os.path.abspath(__file__))
LAYERS, STEPS, NMSE_BOUND = 3, 64, 5e-4
FEW = ["--lengths", "30", "--steps", "2"]  # where it only counts that there are any


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = {heads: str(folder / f"deepseek2-{heads}.gguf") for heads in (16, 128)}
    for heads, path in paths.items():
        tiny_deepseek.write(path, heads, LAYERS)
    return paths


@pytest.fixture(scope="session")
def plugin():
    return os.path.abspath(os.environ["AMLA_GGML_PLUGIN"])


@pytest.fixture(scope="session")
def hosts():
    return os.path.abspath(os.environ["AMLA_GGML_HOSTS"])


def run_forced(tmp_path, model, folder, options, plugin=None, through_environment=False):
    """All logits, and how many operations went through the plug-in (-1: it is not there). And what
    was said on stderr."""
    out = str(tmp_path / "logits.npz")
    command = [
        sys.executable,
        os.path.join(HERE, "llama_forced.py"),
        model,
        folder,
        out,
        "--steps",
        str(STEPS),
        *options,
    ]
    environment = {
        k: v for k, v in os.environ.items() if k not in ("GGML_BACKEND_PATH", "AMLA_LOG")
    }
    if plugin and through_environment:
        environment["GGML_BACKEND_PATH"] = plugin
    elif plugin:
        command += ["--plugin", plugin]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with np.load(out) as file:
        return file["logits"].astype(np.float64), int(file["n_done"]), done.stderr


def divergence(reference, logits):
    """Kullback-Leibler, in nats, the mean over steps."""
    p, q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (reference, logits))
    return np.mean(np.sum(np.exp(p) * (p - q), -1))


def normalised_error(logits, reference):
    """NMSE of all logits."""
    return np.sum((logits - reference) ** 2) / np.sum(reference**2)


# With a coarse cache ggml rounds q as well, and fewer steps are decided. What the cache type costs
# is ggml's own distance from a cache in f32.
COARSE = ("q4_0", "q5_1")


def compare_coarse(name, fine, reference, logits):
    """The plug-in is no farther from a cache in f32 than ggml with the same type, and it differs
    from ggml by a quarter of that at most."""
    cost, own = normalised_error(reference, fine), normalised_error(logits, fine)
    kld, own_kld = divergence(fine, reference), divergence(fine, logits)
    print(
        f"{name}: from a cache in f32, NMSE {own:.1e} and ggml's {cost:.1e}, KLD {own_kld:.1e} and "
        f"ggml's {kld:.1e}"
    )
    assert own <= 1.1 * cost and own_kld <= 1.1 * kld
    return cost / 4


def compare(name, reference, logits, bound=NMSE_BOUND):
    """Logits by NMSE; the most likely token wherever its lead is more than four times the largest
    error of that step."""
    nmse = normalised_error(logits, reference)
    error = np.abs(logits - reference).max(axis=-1)
    top = np.sort(reference, axis=-1)
    decided = top[..., -1] - top[..., -2] > 4 * error
    same = reference.argmax(-1) == logits.argmax(-1)
    print(
        f"{name}: logits NMSE {nmse:.1e}, KLD {divergence(reference, logits):.1e}; greedy token "
        f"the same in {np.sum(decided & same)} of {np.sum(decided)} decided steps of {decided.size}"
    )
    assert nmse <= bound
    assert error.max() > 0, "not one bit differs: did it take the same path?"
    least = 0.1 if any(kind in name for kind in COARSE) else 0.6
    assert np.sum(decided) >= decided.size * least, (
        "too few steps qualify for the test to mean anything"
    )
    assert np.all(same[decided])


# Prompts of more than the 512 tokens of a batch; of 128 heads less, where their number counts.
ONE, THREE, SHORT = (["--lengths", lengths] for lengths in ("530", "300,215,38", "70"))
CASES = [  # heads, options, through GGML_BACKEND_PATH
    (16, ["--kv", "f16", *ONE, "--threads", "2"], True),
    (16, ["--kv", "bf16", *ONE], False),
    (16, ["--kv", "q8_0", *ONE], True),
    (16, ["--kv", "q4_0", *SHORT], False),
    (16, ["--kv", "q5_1", *SHORT], False),
    (16, ["--kv", "f32", *THREE], True),
    (16, ["--kv", "f16", *THREE], False),
    (16, ["--kv", "bf16", *THREE], True),
    (16, ["--kv", "q8_0", *THREE, "--threads", "2"], False),
    (16, ["--kv", "f16", *THREE, "--unified"], True),
    (128, ["--kv", "f16", *SHORT], False),
]


@pytest.mark.parametrize(
    "heads, options, through_environment",
    CASES,
    ids=lambda x: "-".join(x).replace("--", "") if isinstance(x, list) else str(x),
)
def test_forced_steps(tmp_path, models, plugin, hosts, heads, options, through_environment):
    folder = os.path.join(hosts, "new", "lib")
    reference, absent, _ = run_forced(tmp_path, models[heads], folder, options)
    logits, n_done, _ = run_forced(
        tmp_path, models[heads], folder, options, plugin, through_environment
    )
    assert absent == -1
    # Every layer of every step, and of the prompt in batches of 512 tokens or less.
    least = LAYERS * (STEPS + (1 if options[2:4] == SHORT else 2))
    assert n_done >= least and n_done % LAYERS == 0
    if options[2:4] != THREE:
        assert n_done == least
    name, bound = f"heads={heads} {' '.join(options)}", NMSE_BOUND
    if options[1] in COARSE:
        fine, _, _ = run_forced(tmp_path, models[heads], folder, ["--kv", "f32", *options[2:]])
        bound = compare_coarse(name, fine, reference, logits)
    compare(name, reference, logits, bound)


def test_values_beside_keys(tmp_path, models, plugin, hosts):
    """llama.cpp of 2025 has a cache of V beside that of K."""
    folder = os.path.join(hosts, "old", "lib")
    options = ["--kv", "f16", *SHORT]
    reference, _, _ = run_forced(tmp_path, models[16], folder, options)
    logits, n_done, _ = run_forced(tmp_path, models[16], folder, options, plugin)
    assert n_done == LAYERS * (STEPS + 1)
    compare("ggml 0.9.4, V beside K", reference, logits)


def test_a_long_prompt_is_aborted(models, plugin, hosts):
    """llama.cpp's abort callback is asked throughout attention, key tile by key tile, and obeyed at
    once."""
    script, folder = os.path.join(HERE, "llama_abort.py"), os.path.join(hosts, "new", "lib")
    done = subprocess.run(
        [sys.executable, script, models[16], folder, plugin],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    whole, ended, after = said["asked"]
    row_blocks, tiles = 512 * 16 // 128, 512 // 128  # of a layer; causal: half of the tiles
    assert whole == after >= LAYERS * row_blocks * tiles // 2 and ended == whole // 2
    assert said["status"] == [0, 2, 0] and said["same"]


def patched_version(hosts, tmp_path, version):
    """A copy of the prebuilt libraries that says it is another version of the same length."""
    folder = str(tmp_path / version)
    shutil.copytree(os.path.join(hosts, "new", "lib"), folder)
    path = os.path.join(folder, "libggml-base.so")
    with open(path, "rb") as file:
        image = file.read()
    assert len(version) == len("0.25.1") and image.count(b"0.25.1\0") == 1
    with open(path, "wb") as file:
        file.write(image.replace(b"0.25.1\0", version.encode() + b"\0"))
    return folder


@pytest.mark.parametrize("version", ["0.99.1", "1.00.0", "0.9.03"])
def test_unknown_version_is_refused(tmp_path, models, plugin, hosts, version):
    """One line on stderr, and the program goes on without."""
    _, n_done, stderr = run_forced(
        tmp_path,
        models[16],
        patched_version(hosts, tmp_path, version),
        FEW,
        plugin,
        through_environment=True,
    )
    assert n_done == -1
    assert [line for line in stderr.splitlines() if "amla" in line and not line.startswith("ggml")][
        0
    ].startswith(f"amla: not used: ggml {version} ")
    assert stderr.count("amla: ") == 1


def test_known_version_in_range_is_taken(tmp_path, models, plugin, hosts):
    _, n_done, _ = run_forced(
        tmp_path,
        models[16],
        patched_version(hosts, tmp_path, "0.26.0"),
        FEW,
        plugin,
        through_environment=True,
    )
    assert n_done == LAYERS * 3  # a batch and two steps


def test_any_version_on_request(tmp_path, models, plugin, hosts, monkeypatch):
    monkeypatch.setenv("AMLA_GGML_ANY_VERSION", "1")
    _, n_done, _ = run_forced(
        tmp_path,
        models[16],
        patched_version(hosts, tmp_path, "0.99.1"),
        FEW,
        plugin,
        through_environment=True,
    )
    assert n_done == LAYERS * 3  # a batch and two steps


def test_node_llama_cpp(tmp_path, models, plugin, hosts):
    """A program written for node-llama-cpp, which knows nothing of us, compares with itself through
    GGML_BACKEND_PATH."""

    def run(backend):
        script = os.path.join(HERE, "node_decode.mjs")
        command = [os.path.join(hosts, "venv", "bin", "node"), script, models[16], "300", "24"]
        environment = {**os.environ, "AMLA_LOG": "1", "GGML_BACKEND_PATH": backend}
        done = subprocess.run(
            command,
            cwd=os.path.join(hosts, "node"),
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines(), done.stderr

    lines, stderr = run(plugin)
    assert len(json.loads(lines[0])) == 24
    assert lines[-1] == "equal: 24 tokens with and without the plug-in"
    assert stderr.count(f"amla: {LAYERS * 24} attention operations done") == 1
    assert stderr.count("amla: AMLA ") == 1, "the other run had it too"
