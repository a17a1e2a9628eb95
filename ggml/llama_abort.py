# SPDX-License-Identifier: Apache-2.0
"""Ends a long prompt in an unmodified llama.cpp by its abort callback, in the middle of it, and
says in JSON how often that was asked. A process of its own, since a plug-in stays loaded.

python llama_abort.py MODEL FOLDER PLUGIN
"""

import ctypes
import json
import sys

import numpy as np

from llama_prebuilt import Llama

TOKENS = 512
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)


def prompt(llama, end_at):
    """The status of the prompt in a context of its own (0: all well), how often it was asked, and
    the logits."""
    asked = 0

    def ask(data):
        nonlocal asked
        asked += 1
        return asked == end_at

    callback = CALLBACK(ask)
    context = llama.open(TOKENS, threads=1)
    set_callback = llama.lib.llama_set_abort_callback
    set_callback.argtypes = [ctypes.c_void_p, CALLBACK, ctypes.c_void_p]
    set_callback(context.handle, callback, None)
    tokens = np.random.default_rng(7).integers(259, llama.n_vocab, TOKENS).tolist()
    try:
        logits = context.decode(tokens, list(range(TOKENS)), [0] * TOKENS, [TOKENS - 1]).tolist()
        status = 0
    except RuntimeError as error:
        status, logits = int(str(error).removeprefix("llama_decode: ")), None
    context.close()
    return status, asked, logits


if __name__ == "__main__":
    llama = Llama(*sys.argv[2:4])
    llama.load(sys.argv[1])
    whole = prompt(llama, 0)
    ended = prompt(llama, whole[1] // 2)
    after = prompt(llama, 0)
    print(
        json.dumps(
            {
                "status": [x[0] for x in (whole, ended, after)],
                "asked": [x[1] for x in (whole, ended, after)],
                "same": whole[2] == after[2],
            }
        )
    )
