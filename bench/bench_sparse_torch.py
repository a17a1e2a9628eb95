# SPDX-License-Identifier: Apache-2.0
"""
Lists by torch (gather, matmul, softmax, matmul) beside amla.decode, on the inputs of a file.

    amla gen h=16,sk=32768,topk=2048,q=f32,kv=f32 --ref -o lists.safetensors
    python bench/bench_sparse_torch.py lists.safetensors [--threads N] [--for SECONDS]

Both are compared with the file's fp64 reference before they are timed, and take turns. Rows are of
the file's types; lists have no invalid entries.
"""

import argparse
import json
import struct
import sys
import time

import torch

import amla

TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I32": torch.int32}


def load(path):
    """Tensors of a safetensors file by name, and its metadata."""
    with open(path, "rb") as file:
        content = bytearray(file.read())
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    data = memoryview(content)[8 + length :]
    tensors = {
        name: torch.frombuffer(data[slice(*entry["data_offsets"])], dtype=TYPES[entry["dtype"]])
        .reshape(entry["shape"])
        .clone()
        for name, entry in header.items()
    }
    return tensors, metadata


def by_torch(t, scale, d_v):
    """One sequence and query after another, as gathers of a list are."""
    rows = t["kv_cache"].reshape(-1, t["kv_cache"].shape[-1])
    out = []
    for q, slots in zip(t["q"].flatten(0, 1), t["indices"].flatten(0, 1), strict=True):
        keys = rows.index_select(0, slots)
        p = torch.softmax((q @ keys.T).float() * scale, dim=-1)
        out.append(p.to(keys.dtype) @ keys[:, :d_v])
    return torch.stack(out)


def by_amla(t, scale, d_v):
    out = amla.decode(t["q"], t["kv_cache"], scale=scale, d_v=d_v, indices=t["indices"])
    return (out[0] if isinstance(out, tuple) else out).flatten(0, 1)


def best_times(contestants, seconds):
    """The best time of each; they take turns."""
    best = dict.fromkeys(contestants, float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--for", type=float, default=8, dest="seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    t, metadata = load(arguments.file)
    if "indices" not in t or (t["indices"] < 0).any() or metadata.get("index") != "slot":
        sys.exit(f"{arguments.file}: must have lists of slots without invalid entries")
    scale, d_v = float(metadata["scale"]), int(metadata["d_v"])
    contestants = {
        "torch": lambda: by_torch(t, scale, d_v),
        "amla": lambda: by_amla(t, scale, d_v),
    }
    expected = t["out_ref"].flatten(0, 1).double()
    exact = t["kv_cache"].dtype == torch.float32
    for name, run in contestants.items():
        error = ((run().double() - expected).norm() / expected.norm()).item()
        print(f"{name:6} relative error {error:.1e}")
        if not error < (1e-4 if exact else 2e-2):
            sys.exit(f"{name}: wrong result")
    best = best_times(contestants, arguments.seconds)
    for name, seconds in best.items():
        print(f"{name:6} {1e3 * seconds:8.3f} ms")
    print(f"amla is {best['torch'] / best['amla']:.2f} times as fast")


if __name__ == "__main__":
    main()
