# SPDX-License-Identifier: Apache-2.0
"""Drives an unmodified, prebuilt llama.cpp through its C interface, as any program does that is
linked with it.

The libraries are loaded RTLD_LOCAL, which is how the hosts of many languages load them. The two
parameter structs are declared here as the header of that version has them; their defaults are
checked before use, so that another layout is an error and not a crash.
"""

import ctypes
import glob
import os
from ctypes import (
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int8,
    c_int32,
    c_uint32,
    c_void_p,
)

import numpy as np

KINDS = {  # of cache, by ggml's numbers
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}
FLASH_ATTENTION_OFF, FLASH_ATTENTION_ON = 0, 1


class ModelParams(Structure):
    _fields_ = [("head", c_void_p * 2), ("n_gpu_layers", c_int32), ("rest", ctypes.c_ubyte * 236)]


class ContextParams(Structure):
    _fields_ = (
        [
            (name, c_uint32)
            for name in [
                "n_ctx",
                "n_batch",
                "n_ubatch",
                "n_seq_max",
                "n_rs_seq",
                "n_outputs_max",
                "n_outputs_max_per_seq",
            ]
        ]
        + [
            (name, c_int32)
            for name in [
                "n_threads",
                "n_threads_batch",
                "ctx_type",
                "rope_scaling",
                "pooling",
                "attention",
                "flash_attn",
            ]
        ]
        + [
            (name, c_float)
            for name in [
                "rope_base",
                "rope_scale",
                "yarn_ext",
                "yarn_attn",
                "yarn_fast",
                "yarn_slow",
            ]
        ]
        + [
            ("yarn_orig_ctx", c_uint32),
            ("defrag_thold", c_float),
            ("cb_eval", c_void_p),
            ("cb_eval_data", c_void_p),
        ]
        + [("type_k", c_int32), ("type_v", c_int32), ("abort", c_void_p), ("abort_data", c_void_p)]
        + [
            (name, c_bool)
            for name in [
                "embeddings",
                "offload_kqv",
                "no_perf",
                "op_offload",
                "swa_full",
                "kv_unified",
            ]
        ]
        + [("rest", ctypes.c_ubyte * 256)]
    )


LATER = ("n_rs_seq", "n_outputs_max", "n_outputs_max_per_seq", "ctx_type")


class ContextParamsOf2025(Structure):
    _fields_ = [field for field in ContextParams._fields_ if field[0] not in LATER]


class Batch(Structure):
    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


def defaults(p):
    return (
        (
            p.n_ctx,
            p.n_batch,
            p.n_ubatch,
            p.n_seq_max,
            p.n_threads,
            p.flash_attn,
            p.type_k,
            p.type_v,
        ),
        (p.embeddings, p.offload_kqv, p.no_perf, p.op_offload, p.swa_full, p.kv_unified),
    )


# As llama.h states them for its version.
STATED = (
    (512, 2048, 512, 1, 4, -1, KINDS["f16"], KINDS["f16"]),
    (False, True, True, True, True, False),
)


def context_params(lib):
    """The structure whose defaults are those that llama.h states."""
    for params in (ContextParams, ContextParamsOf2025):
        lib.llama_context_default_params.restype = params
        if defaults(lib.llama_context_default_params()) == STATED:
            return params
    raise RuntimeError("this llama.cpp has other context parameters than are declared here")


class Llama:
    """The libraries in a folder, with or without the plug-in. One in a process: what is loaded
    stays loaded."""

    def __init__(self, folder, plugin=None):
        ggml = ctypes.CDLL(only(folder, "libggml.*"))
        self.lib = ctypes.CDLL(only(folder, "libllama.*"))
        self.base = ctypes.CDLL(only(folder, "libggml-base.so"))
        self.base.ggml_version.restype = c_char_p
        self.version = self.base.ggml_version().decode()
        ggml.ggml_backend_load_all_from_path(folder.encode())  # and what GGML_BACKEND_PATH names
        ggml.ggml_backend_load.restype = c_void_p
        if plugin and not ggml.ggml_backend_load(plugin.encode()):
            raise RuntimeError(f"{plugin}: ggml_backend_load refused it")
        self.n_done = find_counter(ggml, self.base)
        lib = self.lib
        lib.llama_model_default_params.restype = ModelParams
        params = context_params(lib)
        lib.llama_model_load_from_file.argtypes, lib.llama_model_load_from_file.restype = (
            [c_char_p, ModelParams],
            c_void_p,
        )
        lib.llama_init_from_model.argtypes, lib.llama_init_from_model.restype = (
            [c_void_p, params],
            c_void_p,
        )
        lib.llama_decode.argtypes = [c_void_p, Batch]
        lib.llama_get_logits_ith.argtypes, lib.llama_get_logits_ith.restype = (
            [c_void_p, c_int32],
            POINTER(c_float),
        )
        lib.llama_model_get_vocab.argtypes, lib.llama_model_get_vocab.restype = [c_void_p], c_void_p
        lib.llama_vocab_n_tokens.argtypes = [c_void_p]
        lib.llama_free.argtypes = [c_void_p]
        lib.llama_synchronize.argtypes = [c_void_p]
        self.quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)(
            lambda level, text, data: None
        )
        if not os.environ.get("LLAMA_VERBOSE"):
            lib.llama_log_set(self.quiet, None)
        lib.llama_backend_init()

    def load(self, path):
        self.model = self.lib.llama_model_load_from_file(
            path.encode(), self.lib.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"{path}: llama.cpp cannot load this model")
        self.n_vocab = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))

    def open(
        self,
        n_ctx,
        kv=KINDS["f16"],
        sequences=1,
        threads=2,
        flash=FLASH_ATTENTION_ON,
        unified=False,
    ):
        p = self.lib.llama_context_default_params()
        p.n_ctx, p.n_seq_max, p.n_threads, p.n_threads_batch = (
            n_ctx * sequences,
            sequences,
            threads,
            threads,
        )
        p.flash_attn, p.type_k, p.type_v, p.kv_unified = flash, kv, kv, unified
        context = self.lib.llama_init_from_model(self.model, p)
        if not context:
            raise RuntimeError("llama.cpp cannot make this context")
        return Context(self, context)


class Context:
    def __init__(self, llama, handle):
        self.llama, self.handle = llama, handle

    def decode(self, tokens, positions, sequences, wanted):
        """One batch; the logits of the tokens at the places `wanted`."""
        n = len(tokens)
        ids = [(c_int32 * 1)(s) for s in sequences]
        flags = (c_int8 * n)(*(int(i in set(wanted)) for i in range(n)))
        batch = Batch(
            n,
            (c_int32 * n)(*tokens),
            None,
            (c_int32 * n)(*positions),
            (c_int32 * n)(*([1] * n)),
            (POINTER(c_int32) * n)(*(ctypes.cast(i, POINTER(c_int32)) for i in ids)),
            flags,
        )
        status = self.llama.lib.llama_decode(self.handle, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode: {status}")
        rows = [self.llama.lib.llama_get_logits_ith(self.handle, i) for i in wanted]
        return np.array([np.ctypeslib.as_array(row, (self.llama.n_vocab,)) for row in rows])

    def close(self):
        self.llama.lib.llama_free(self.handle)


def only(folder, pattern):
    found = sorted(glob.glob(os.path.join(folder, pattern)))
    if not found:
        raise FileNotFoundError(f"{folder}: no {pattern}")
    return found[0]


def find_counter(ggml, base):
    """A function that says how many operations the plug-in has computed; None if it is not
    loaded."""
    ggml.ggml_backend_reg_by_name.argtypes, ggml.ggml_backend_reg_by_name.restype = (
        [c_char_p],
        c_void_p,
    )
    base.ggml_backend_reg_get_proc_address.argtypes = [c_void_p, c_char_p]
    base.ggml_backend_reg_get_proc_address.restype = c_void_p
    registry = ggml.ggml_backend_reg_by_name(b"AMLA")
    if not registry:
        return None
    return ctypes.CFUNCTYPE(ctypes.c_int64)(
        base.ggml_backend_reg_get_proc_address(registry, b"amla_ggml_n_done")
    )
