# SPDX-License-Identifier: Apache-2.0
"""libamla through ctypes: the structs of include/amla/amla.h, the functions, and statuses as
exceptions. Nothing else.

A test compiles the header and compares every offset with the classes here. ctypes releases the GIL
during a call.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ._log import count
from ._numpy import np
from ._options import DECODE, LIBRARY, is_named_by_library

I32, I64, U32, SIZE, PTR = (
    ctypes.c_int32,
    ctypes.c_int64,
    ctypes.c_uint32,
    ctypes.c_size_t,
    ctypes.c_void_p,
)
INT32_MAX = 2**31 - 1

MEMORY_HOST, MEMORY_DEVICE = 0, 1


class Problem(ctypes.Structure):
    """amla_problem: shapes and types, no pointers."""

    _fields_ = [
        ("struct_bytes", U32),
        ("b", I32),
        ("s_q", I32),
        ("h_q", I32),
        ("h_kv", I32),
        ("sk", I32),
        ("d_qk", I32),
        ("d_v", I32),
        ("page_size", I32),
        ("max_pages", I32),
        ("n_pages", I64),
        ("q_type", I32),
        ("kv_type", I32),
        ("out_type", I32),
        ("causal", I32),
        ("scale", ctypes.c_float),
        ("memory", I32),
        ("q_stride_batch", I64),
        ("q_stride_query", I64),
        ("q_stride_head", I64),
        ("out_stride_batch", I64),
        ("out_stride_query", I64),
        ("out_stride_head", I64),
        ("kv_stride_page", I64),
        ("kv_stride_token", I64),
        ("mask_stride_batch", I64),
        ("mask_stride_query", I64),
        ("topk", I32),
        ("index_kind", I32),
        ("topk_length_per_query", I32),
        ("window", I32),
        ("q_d_rope", I32),
        ("kv_d_rope", I32),
        ("extra_sk", I32),
        ("extra_topk", I32),
        ("extra_page_size", I32),
        ("extra_max_pages", I32),
        ("kv_scale", ctypes.c_float),
        ("kv_rope_scale", ctypes.c_float),
        ("extra_n_pages", I64),
        ("extra_kv_stride_page", I64),
        ("extra_kv_stride_token", I64),
        ("indices_stride_batch", I64),
        ("indices_stride_query", I64),
        ("extra_indices_stride_batch", I64),
        ("extra_indices_stride_query", I64),
        ("q_rope_stride_batch", I64),
        ("q_rope_stride_query", I64),
        ("q_rope_stride_head", I64),
        ("kv_rope_stride_page", I64),
        ("kv_rope_stride_token", I64),
        ("k_begin", I64),
    ]


class Options(ctypes.Structure):
    """amla_options: how, never what."""

    # Callers' own functions, which Python does not offer, stand behind these.
    _functions = {"lse_base": "parallel", "kv_round": "cancel"}
    _fields_ = [("struct_bytes", U32)]
    for _name in LIBRARY:
        _fields_.append((_name, I32))
        if _name in _functions:
            _fields_ += [(_functions[_name], PTR), (_functions[_name] + "_context", PTR)]


class Tensors(ctypes.Structure):
    """amla_tensors: pointers, each with its capacity in bytes."""

    _fields_ = [
        ("struct_bytes", U32),
        ("q", PTR),
        ("q_bytes", SIZE),
        ("kv", PTR),
        ("kv_bytes", SIZE),
        ("block_table", PTR),
        ("block_table_bytes", SIZE),
        ("seqlens_k", PTR),
        ("seqlens_k_bytes", SIZE),
        ("sinks", PTR),
        ("sinks_bytes", SIZE),
        ("out", PTR),
        ("out_bytes", SIZE),
        ("lse", PTR),
        ("lse_bytes", SIZE),
        ("q_rope", PTR),
        ("kv_rope", PTR),
        ("mask", PTR),
        ("q_rope_bytes", SIZE),
        ("kv_rope_bytes", SIZE),
        ("mask_bytes", SIZE),
        ("stream", PTR),
        ("indices", PTR),
        ("indices_bytes", SIZE),
        ("topk_length", PTR),
        ("topk_length_bytes", SIZE),
        ("visible_k", PTR),
        ("visible_k_bytes", SIZE),
        ("q_indptr", PTR),
        ("q_indptr_bytes", SIZE),
        ("kv_indptr", PTR),
        ("kv_indptr_bytes", SIZE),
        ("kv_indices", PTR),
        ("kv_indices_bytes", SIZE),
        ("max_logits", PTR),
        ("max_logits_bytes", SIZE),
        ("extra_kv", PTR),
        ("extra_kv_bytes", SIZE),
        ("extra_block_table", PTR),
        ("extra_block_table_bytes", SIZE),
        ("extra_seqlens_k", PTR),
        ("extra_seqlens_k_bytes", SIZE),
        ("extra_visible_k", PTR),
        ("extra_visible_k_bytes", SIZE),
        ("extra_indices", PTR),
        ("extra_indices_bytes", SIZE),
        ("extra_topk_length", PTR),
        ("extra_topk_length_bytes", SIZE),
    ]


class Detail(ctypes.Structure):
    """amla_detail: why a call was refused."""

    _fields_ = [("text", ctypes.c_char * 256)]


class BackendInfo(ctypes.Structure):
    """amla_backend_info."""

    _fields_ = [
        ("struct_bytes", U32),
        ("available", I32),
        ("name", ctypes.c_char * 16),
        ("isa", ctypes.c_char * 16),
        ("reason", ctypes.c_char * 160),
    ]


class CacheWriteArgs(ctypes.Structure):
    """amla_cache_write_args."""

    _fields_ = [
        ("struct_bytes", ctypes.c_uint32),
        ("d_latent", I32),
        ("d_rope", I32),
        ("page_size", I32),
        ("n_pages", I64),
        ("n_tokens", I64),
        ("type", I32),
        ("kv_type", I32),
        ("kv_d_rope", I32),
        ("any_scale", I32),
        ("kv_scale", ctypes.c_float),
        ("kv_rope_scale", ctypes.c_float),
        ("latent_stride", I64),
        ("rope_stride", I64),
        ("kv_stride_page", I64),
        ("kv_stride_token", I64),
        ("kv_rope_stride_page", I64),
        ("kv_rope_stride_token", I64),
        ("latent", PTR),
        ("latent_bytes", SIZE),
        ("rope", PTR),
        ("rope_bytes", SIZE),
        ("slot_mapping", PTR),
        ("slot_mapping_bytes", SIZE),
        ("kv", PTR),
        ("kv_bytes", SIZE),
        ("kv_rope", PTR),
        ("kv_rope_bytes", SIZE),
    ]


class IndexArgs(ctypes.Structure):
    """amla_index_args."""

    _fields_ = [
        ("struct_bytes", U32),
        ("b", I32),
        ("s_q", I32),
        ("heads", I32),
        ("d", I32),
        ("sk", I32),
        ("topk", I32),
        ("page_size", I32),
        ("max_pages", I32),
        ("n_pages", I64),
        ("q_type", I32),
        ("keys", I32),
        ("index_kind", I32),
        ("causal", I32),
        ("q_stride_batch", I64),
        ("q_stride_query", I64),
        ("q_stride_head", I64),
        ("k_stride_page", I64),
        ("k_stride_token", I64),
        ("q", PTR),
        ("q_bytes", SIZE),
        ("q_scales", PTR),
        ("q_scales_bytes", SIZE),
        ("weights", PTR),
        ("weights_bytes", SIZE),
        ("k", PTR),
        ("k_bytes", SIZE),
        ("block_table", PTR),
        ("block_table_bytes", SIZE),
        ("seqlens_k", PTR),
        ("seqlens_k_bytes", SIZE),
        ("visible_k", PTR),
        ("visible_k_bytes", SIZE),
        ("indices", PTR),
        ("indices_bytes", SIZE),
        ("scores", PTR),
        ("scores_bytes", SIZE),
        ("k_type", I32),
    ]


class MergeArgs(ctypes.Structure):
    """amla_merge_args."""

    _fields_ = [
        ("struct_bytes", U32),
        ("n_parts", I32),
        ("n_rows", I64),
        ("d_v", I32),
        ("base", I32),
        ("empty", I32),
        ("out_type", I32),
        ("o", PTR),
        ("o_bytes", SIZE),
        ("o_stride_part", I64),
        ("o_stride_row", I64),
        ("lse_parts", PTR),
        ("lse_parts_bytes", SIZE),
        ("lse_parts_stride_part", I64),
        ("lse_parts_stride_row", I64),
        ("sinks", PTR),
        ("sinks_bytes", SIZE),
        ("n_heads", I32),
        ("head_rows", I32),
        ("lse_sink", I32),
        ("out", PTR),
        ("out_bytes", SIZE),
        ("out_stride_row", I64),
        ("lse", PTR),
        ("lse_bytes", SIZE),
        ("lse_stride_row", I64),
    ]


class PlanInfo(ctypes.Structure):
    """amla_plan_info: what a plan chose."""

    _fields_ = [
        ("struct_bytes", U32),
        ("backend", I32),
        ("rescale", I32),
        ("isa", I32),
        ("p_type", I32),
        ("threads", I32),
        ("block_rows", I32),
        ("tile_tokens", I32),
        ("split_tokens", I64),
        ("simulated", I32),
        ("kernel", ctypes.c_char * 32),
        ("p_form", I32),
        ("q_form", I32),
        ("key_type", I32),
        ("l2_bytes", I64),
    ]


class Shard(ctypes.Structure):
    """amla_shard."""

    _fields_ = [
        ("struct_bytes", U32),
        ("n_entries", I32),
        ("begin", PTR),
        ("end", PTR),
        ("begin_bytes", SIZE),
        ("end_bytes", SIZE),
        ("extra_begin", PTR),
        ("extra_end", PTR),
        ("extra_begin_bytes", SIZE),
        ("extra_end_bytes", SIZE),
        ("row_begin", I64),
        ("row_end", I64),
        ("head_begin", I32),
        ("head_end", I32),
        ("records", PTR),
        ("records_bytes", SIZE),
    ]


class ShardInfo(ctypes.Structure):
    """amla_shard_info."""

    _fields_ = [
        ("struct_bytes", U32),
        ("n_entries", I32),
        ("record_floats", I32),
        ("n_rows", I64),
        ("n_row_keys", I64),
        ("records_bytes", SIZE),
    ]


C_NAMES = {
    CacheWriteArgs: "amla_cache_write_args",
    IndexArgs: "amla_index_args",
    MergeArgs: "amla_merge_args",
    PlanInfo: "amla_plan_info",
    Shard: "amla_shard",
    ShardInfo: "amla_shard_info",
    Problem: "amla_problem",
    Options: "amla_options",
    Tensors: "amla_tensors",
    Detail: "amla_detail",
    BackendInfo: "amla_backend_info",
}


def _path() -> pathlib.Path:
    """AMLA_LIBRARY if set, else the library that the wheel put beside this file."""
    chosen = os.environ.get("AMLA_LIBRARY")
    return (
        pathlib.Path(chosen)
        if chosen
        else pathlib.Path(__file__).with_name(
            "libamla.dylib" if sys.platform == "darwin" else "libamla.so"
        )
    )


def _share_openmp() -> None:
    """One OpenMP runtime for libamla and PyTorch: whatever calls itself libgomp.so.1 first. Where
    only PyTorch has one, it is loaded here, in case that PyTorch comes after a decode."""
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        torch = importlib.util.find_spec("torch")
        for folder in (torch and torch.submodule_search_locations) or ():
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(pathlib.Path(folder, "lib", "libgomp.so.1")))


def _load() -> ctypes.CDLL:
    path = _path()
    _share_openmp()
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(
            f"amla: cannot load {path}: {error}. Install the package (pip install .) or set "
            "AMLA_LIBRARY to a libamla.so; one that is not from a wheel needs the OpenMP runtime "
            "libgomp.so.1 (Debian: libgomp1)"
        ) from error
    detail = ctypes.POINTER(Detail)
    lib.amla_version.restype = ctypes.c_char_p
    lib.amla_plan_create.argtypes = [
        ctypes.POINTER(PTR),
        ctypes.POINTER(Problem),
        ctypes.POINTER(Options),
        detail,
    ]
    lib.amla_plan_scratch_bytes.argtypes = [PTR]
    lib.amla_plan_scratch_bytes.restype = SIZE
    lib.amla_plan_describe.argtypes = [PTR, ctypes.c_char_p, SIZE]
    lib.amla_plan_run.argtypes = [PTR, PTR, PTR, SIZE, PTR]
    lib.amla_plan_destroy.argtypes = [PTR]
    lib.amla_plan_destroy.restype = None
    lib.amla_plan_query.argtypes = [PTR, PTR, detail]
    lib.amla_shard_scratch_bytes.argtypes = [PTR]
    lib.amla_shard_scratch_bytes.restype = SIZE
    lib.amla_shard_query.argtypes = [PTR, PTR, PTR, PTR, detail]
    lib.amla_shard_run.argtypes = [PTR, PTR, PTR, PTR, SIZE, detail]
    lib.amla_shard_check_outputs.argtypes = [PTR, PTR, detail]
    lib.amla_shard_finish.argtypes = [PTR, PTR, I32, PTR, PTR, SIZE, detail]
    lib.amla_cache_write.argtypes = [ctypes.POINTER(CacheWriteArgs), PTR, detail]
    lib.amla_index_scratch_bytes.argtypes = [PTR, PTR, ctypes.POINTER(SIZE), detail]
    lib.amla_index_topk.argtypes = [PTR, PTR, PTR, SIZE, detail]
    lib.amla_merge_parts.argtypes = [PTR, detail]
    lib.amla_merge.argtypes = [
        I32,
        I64,
        I32,
        I32,
        PTR,
        SIZE,
        PTR,
        SIZE,
        PTR,
        SIZE,
        PTR,
        SIZE,
        detail,
    ]
    lib.amla_backend_query.argtypes = [I32, ctypes.POINTER(BackendInfo), detail]
    return lib


lib = _load()
version: str = lib.amla_version().decode()


# ---- Kinds, as the library names them ----


def _kinds(kind: str) -> dict[str, int]:
    """The library's names of a kind and their numbers; amla_*_name gives NULL past the last one."""
    name_of = lib[f"amla_{kind}_name"]
    name_of.argtypes, name_of.restype = [I32], ctypes.c_char_p
    names: Iterator[bytes] = map(name_of, itertools.count())
    return {name.decode(): i for i, name in enumerate(itertools.takewhile(bool, names))}


BLOCK_ELEMS = 32  # of ggml's blocks


def _block_sizes() -> dict[str, tuple[int, int]]:
    """Elements and bytes of the blocks of each type; one element mostly."""
    n = I32()
    lib.amla_dtype_block.argtypes = [I32, ctypes.POINTER(I32)]
    return {
        name: (lib.amla_dtype_block(number, ctypes.byref(n)), n.value)
        for name, number in _kinds("dtype").items()
    }


# By option, what its values stand for.
CHOICES: dict[str, dict[Any, int]] = {
    name: _kinds(name) if is_named_by_library(option) else option.choices or {}
    for name, option in DECODE.items()
    if option.choices or is_named_by_library(option)
}
BACKENDS, LSE_BASES, INDEX_KINDS = (CHOICES[x] for x in ("backend", "lse_base", "index_kind"))
# What arrays call the library's types. The others' arrays are bytes.
_ARRAY_TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
DTYPES = {
    _ARRAY_TYPES[name]: number for name, number in _kinds("dtype").items() if name in _ARRAY_TYPES
}
# Types of caches whose arrays are bytes, and the bytes of those that are records.
FP8_TYPES = {name: n for name, n in _kinds("dtype").items() if name.startswith("fp8_")}
RECORD_BYTES = {"fp8_656": 656, "fp8_584": 584}
BYTE_DTYPES = ("uint8", "int8", "float8_e4m3fn")
BLOCK_BYTES = {name: n for name, (elems, n) in _block_sizes().items() if elems == BLOCK_ELEMS}
BYTE_TYPES = {name: n for name, n in _kinds("dtype").items() if name not in _ARRAY_TYPES}
DTYPE_NAMES = {number: name for name, number in _kinds("dtype").items()}
KV_TYPES = {**DTYPES, **BYTE_TYPES}
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4, "int64": 8}
DTYPE_BYTES.update(dict.fromkeys(BYTE_DTYPES, 1))
INDEX_KEYS = {"bf16": 0, "fp8_page": 1, "fp8_token": 2}
EMPTY_LSE = {"-inf": 0, "+inf": 1}
MAX_SHARDS = 4096  # that amla_shard_finish takes


def row_width(kv_type: str, elems: int) -> int:
    """The last axis of a cache whose rows have so many elements."""
    if kv_type in BLOCK_BYTES:
        return elems // BLOCK_ELEMS * BLOCK_BYTES[kv_type]
    return RECORD_BYTES.get(kv_type, elems)


def cache_stride(name: str, kv_type: str, stride: int) -> int:
    """A stride of a cache's array as the library counts it: in elements, of blocks too."""
    if kv_type not in BLOCK_BYTES:
        return stride
    blocks, rest = divmod(stride, BLOCK_BYTES[kv_type])
    if rest:
        raise ValueError(
            f"{name}: a stride of {stride} bytes: must be whole blocks of {kv_type}, "
            f"{BLOCK_BYTES[kv_type]} bytes"
        )
    return blocks * BLOCK_ELEMS


# ---- Statuses ----


class Cancelled(RuntimeError):
    """The caller's `cancel` ended a run, whose outputs hold anything."""


_EXCEPTIONS: dict[int, type[Exception]] = {
    1: ValueError,
    2: NotImplementedError,
    3: MemoryError,
    4: RuntimeError,
    5: Cancelled,
}


def raise_status(status: int, detail: Detail) -> NoReturn:
    """The status as an exception with the library's own words: a broken rule is a ValueError, what
    is not built or not on this machine a NotImplementedError, no memory a MemoryError, a failing
    driver a RuntimeError."""
    error = _EXCEPTIONS.get(status, RuntimeError)
    if error is not Cancelled:
        count(refusals=1)
    raise error(detail.text.decode("utf-8", "replace"))


def check(status: int, detail: Detail) -> None:
    """Nothing, or the status as an exception."""
    if status:
        raise_status(status, detail)


def choice(name: str, value: Any, choices: dict[Any, int]) -> int:
    """The number of a named choice; ValueError lists what there is."""
    try:
        return choices[value]
    except (KeyError, TypeError):
        raise ValueError(
            f"{name}={value!r}: must be one of {', '.join(map(repr, choices))}"
        ) from None


def checked_int(name: str, value: Any, high: int = INT32_MAX) -> int:
    """value as an int that its C field can hold: ctypes would cut it off silently."""
    number = value.__index__() if hasattr(value, "__index__") else None
    if number is None:
        raise ValueError(f"{name}={value!r}: must be an integer")
    if not -high - 1 <= number <= high:
        raise ValueError(f"{name}={number}: must be <= {high}")
    return number


def checked_number(name: str, value: Any) -> float:
    """value as a float: a Python or NumPy number. Tensors and arrays are refused, since plans are
    remembered by value and these change theirs."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise ValueError(f"{name}={value!r:.60}: must be a plain number")
    return float(value)


def checked_flag(name: str, value: Any) -> bool:
    """value as a bool: True, False, 1 or 0."""
    if not isinstance(value, (bool, np.bool_, int)) or value not in (0, 1):
        raise ValueError(f"{name}={value!r}: must be True or False")
    return bool(value)


def checked_option(name: str, value: Any) -> int | float:
    """The value of an option as its C field has it."""
    if name in CHOICES:
        return choice(name, value, CHOICES[name])
    return _CHECKED[type(DECODE[name].default)](name, value)


_CHECKED: dict[type, Callable[[str, Any], int | float]] = {
    bool: checked_flag,
    int: checked_int,
    float: checked_number,
}


def backend_info(name: str) -> BackendInfo:
    """What the library says about a backend: available, its instruction set, or why it is
    absent."""
    info, detail = BackendInfo(struct_bytes=ctypes.sizeof(BackendInfo)), Detail()
    status = lib.amla_backend_query(
        choice("backend", name, BACKENDS), ctypes.byref(info), ctypes.byref(detail)
    )
    if status:
        raise_status(status, detail)
    return info
