# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of a whole model, in an unmodified llama.cpp with and without the plug-in, by
turns.

    PYTHONPATH=ggml AMLA_GGML_PLUGIN=libggml-amla.so AMLA_GGML_HOSTS=FOLDER
    python ggml/bench/bench_llama.py [--heads 128] [--layers 4] [--context 8192] [--threads 2]

The model is random, its sizes are DeepSeek-V3's but for the layers, the embedding and the
feed-forward part. The context is computed once, by the plug-in, and handed to all runs as a file.
Logits of all runs are compared before anything is printed.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

# The context is filled as so many short ones and joined: attention of a long prompt would take
# minutes
SEQUENCES = 64


def fill(context, llama, tokens):
    """Every piece sees only itself while it is computed; then all pieces are one sequence."""
    lib, piece = llama.lib, len(tokens) // SEQUENCES
    for first in range(0, len(tokens), 2048):
        at = range(first, min(first + 2048, len(tokens)))
        context.decode([tokens[i] for i in at], list(at), [i // piece for i in at], [len(at) - 1])
    lib.llama_get_memory.argtypes, lib.llama_get_memory.restype = [ctypes.c_void_p], ctypes.c_void_p
    lib.llama_memory_seq_cp.argtypes = [ctypes.c_void_p] + [ctypes.c_int32] * 4
    for sequence in range(1, SEQUENCES):
        lib.llama_memory_seq_cp(lib.llama_get_memory(context.handle), sequence, 0, -1, -1)


def state_function(llama, name, *types):
    function = getattr(llama.lib, name)
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_char_p, *types], ctypes.c_bool
    return function


def child(arguments):
    from llama_prebuilt import Llama

    llama = Llama(arguments.folder, arguments.plugin)
    llama.load(arguments.model)
    filling = not os.path.exists(arguments.state)
    context = llama.open(
        (arguments.context + 256) // SEQUENCES,
        sequences=SEQUENCES,
        threads=arguments.threads,
        unified=True,
    )
    if filling:
        fill(
            context,
            llama,
            np.random.default_rng(3).integers(259, llama.n_vocab, arguments.context).tolist(),
        )
        state_function(llama, "llama_state_save_file", ctypes.c_void_p, ctypes.c_size_t)(
            context.handle, arguments.state.encode(), None, 0
        )
        return
    count = ctypes.c_size_t()
    load = state_function(
        llama, "llama_state_load_file", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
    )
    if not load(context.handle, arguments.state.encode(), None, 0, ctypes.byref(count)):
        raise RuntimeError("llama.cpp cannot load the state")
    seconds, logits = [], []
    for i in range(arguments.tokens):
        start = time.perf_counter()
        logits.append(context.decode([300 + i], [arguments.context + i], [0], [0])[0])
        seconds.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "seconds": seconds[1:],
                "n_done": llama.n_done() if llama.n_done else 0,
                "logits": np.array(logits).tolist(),
                "version": llama.version,
            }
        )
    )


def run(arguments, plugin, threads):
    command = [
        sys.executable,
        os.path.abspath(__file__),
        "--child",
        "--model",
        arguments.model,
        "--state",
        arguments.state,
    ]
    command += [
        "--folder",
        arguments.folder,
        "--context",
        str(arguments.context),
        "--tokens",
        str(arguments.tokens),
        "--threads",
        str(threads),
    ]
    done = subprocess.run(
        command + (["--plugin", plugin] if plugin else []), capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    return json.loads(done.stdout) if done.stdout else None


def measure(arguments, threads):
    best, logits = {}, {}
    for _ in range(arguments.rounds):
        for name, plugin in (("ggml", None), ("amla", arguments.plugin)):
            result = run(arguments, plugin, threads)
            if (result["n_done"] > 0) != (plugin is not None):
                sys.exit("attention did not go where it should")
            logits[name] = np.array(result["logits"])
            best.setdefault(name, []).append(result["seconds"])
    nmse = np.sum((logits["amla"] - logits["ggml"]) ** 2) / np.sum(logits["ggml"] ** 2)
    if not nmse <= 5e-4:
        sys.exit(f"wrong logits: NMSE {nmse:.1e}")
    rates = {name: 1 / min(np.median(s) for s in runs) for name, runs in best.items()}
    print(
        f"ggml {result['version']}, {arguments.heads} heads, {arguments.layers} layers, "
        f"{arguments.context} tokens of context, f16, threads {threads}: "
        f"{rates['ggml']:.1f} -> {rates['amla']:.1f} tokens/s, "
        f"{rates['amla'] / rates['ggml']:.2f}x (logits NMSE {nmse:.0e})",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=0, help="default: 1, then all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", default=os.path.join(os.environ.get("AMLA_GGML_HOSTS", ""), "new", "lib")
    )
    parser.add_argument("--plugin", default=None)
    for name in ("--model", "--state"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments)
    import tiny_deepseek

    arguments.plugin = arguments.plugin or os.path.abspath(os.environ["AMLA_GGML_PLUGIN"])
    with tempfile.TemporaryDirectory() as folder:
        arguments.model, arguments.state = (
            os.path.join(folder, "model.gguf"),
            os.path.join(folder, "state"),
        )
        tiny_deepseek.write(
            arguments.model, arguments.heads, arguments.layers, embedding=2048, feed_forward=4096
        )
        run(arguments, arguments.plugin, os.cpu_count())
        for threads in [arguments.threads] if arguments.threads else sorted({1, os.cpu_count()}):
            measure(arguments, threads)


if __name__ == "__main__":
    main()
