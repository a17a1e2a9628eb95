# SPDX-License-Identifier: Apache-2.0
"""Forces tokens through an unmodified llama.cpp and writes all logits to a file. A process of its
own, since a plug-in stays loaded.

python llama_forced.py MODEL FOLDER OUT.npz [--plugin FILE] [--kv f16] [--lengths 600,431,77]
[--unified] [--steps 64]
"""

import argparse
import time

import numpy as np

from llama_prebuilt import KINDS, Llama


def forced(llama, arguments):
    lengths = [int(n) for n in arguments.lengths.split(",")]
    rng = np.random.default_rng(7)
    tokens = [rng.integers(259, llama.n_vocab, n + arguments.steps).tolist() for n in lengths]
    context = llama.open(
        max(lengths) + arguments.steps,
        KINDS[arguments.kv],
        len(lengths),
        arguments.threads,
        unified=arguments.unified,
    )
    sequences = range(len(lengths))

    prompt = [(tokens[s][i], i, s) for s in sequences for i in range(lengths[s])]
    last = np.cumsum(lengths) - 1
    logits = [context.decode(*zip(*prompt), last.tolist())]
    start = time.perf_counter()
    for step in range(arguments.steps):
        at = [lengths[s] + step for s in sequences]
        logits.append(
            context.decode(
                [tokens[s][at[s]] for s in sequences], at, list(sequences), list(sequences)
            )
        )
    seconds = time.perf_counter() - start
    context.close()
    return np.array(logits), seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--plugin")
    parser.add_argument("--kv", default="f16", choices=list(KINDS))
    parser.add_argument("--lengths", default="600")
    parser.add_argument("--unified", action="store_true")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    llama = Llama(arguments.folder, arguments.plugin)
    llama.load(arguments.model)
    logits, seconds = forced(llama, arguments)
    np.savez(
        arguments.out,
        logits=logits,
        seconds=seconds,
        n_done=-1 if llama.n_done is None else llama.n_done(),
    )
