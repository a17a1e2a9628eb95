# SPDX-License-Identifier: Apache-2.0
"""Plans of the library in the emulator: emulated_decode.c, field by field; and the truth."""

import numpy as np

LOG2E = 1.4426950408889634
DTYPES = {"f32": 0, "bf16": 1, "f16": 2}
KV_TYPES = DTYPES | {"fp8_656": 4, "fp8_584": 5, "fp8_e4m3": 6}
ISAS = {"avx512": 3, "avx512bf16": 4, "amxbf16": 5}
RESCALES = {"lazy": 1, "amla": 2, "flash": 3}
P_FORMS = {"default": 0, "f32": 1, "bf16x2": 2, "bf16": 3}
MAX_SPLITS = 32

# As in emulated_decode.c, in its order.
FIELDS = """
b s_q h_q sk d_qk d_v page_size n_pages q_type kv_type out_type causal
topk index_kind topk_length_per_query window q_d_rope kv_d_rope
extra_sk extra_topk extra_page_size extra_n_pages
kv_stride_page kv_stride_token extra_kv_stride_page extra_kv_stride_token
kv_rope_stride_page kv_rope_stride_token
rescale threads isa split_tokens p_form q_form kv_round lse_sink
"""
TENSORS = """
q kv block_table seqlens_k sinks mask q_rope kv_rope
indices topk_length visible_k q_indptr kv_indptr kv_indices
extra_kv extra_block_table extra_seqlens_k extra_visible_k
extra_indices extra_topk_length out lse max_logits
"""
JOB = np.dtype(
    [(name, np.int64) for name in FIELDS.split()]
    + [(name, np.float32) for name in ("scale", "kv_scale", "kv_rope_scale", "unused")]
)
PLAN_INFO = np.dtype(
    [("isa", np.int32), ("p_form", np.int32), ("n_splits", np.int32)]
    + [("split_begin", np.int32, MAX_SPLITS), ("unused", np.int32)]
    + [("scratch_bytes", np.int64), ("message", "S256")]
)


def widen(bits):
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def narrow(x):
    """bfloat16 bits, nearest even; subnormals stay."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def to_type(x, name):
    """Elements of a type, and what they are in f64."""
    if name == "bf16":
        bits = narrow(x)
        return bits, widen(bits).astype(np.float64)
    y = np.asarray(x, {"f32": np.float32, "f16": np.float16}[name])
    return y, y.astype(np.float64)


def from_type(x, name):
    return widen(x) if name == "bf16" else x.astype(np.float32)


def make_job(**fields):
    """One sequence of MLA's shapes unless told otherwise; names of kinds, not numbers."""
    values = dict(
        b=1, s_q=1, h_q=64, sk=96, d_qk=576, d_v=512, q_type="bf16", kv_type="bf16", out_type="f32",
        rescale="lazy", threads=1, isa="amxbf16", scale=192**-0.5,
    )  # fmt: skip
    values |= fields
    job = np.zeros(1, JOB)
    kinds = dict(q_type=DTYPES, kv_type=KV_TYPES, out_type=DTYPES, isa=ISAS, rescale=RESCALES)
    for name, value in values.items():
        table = {**kinds, "p_form": P_FORMS}.get(name)
        job[name] = table[value] if table else value
    return job


class Plan:
    """What the library makes of a job, in the machine's memory."""

    def __init__(self, machine, job):
        self.machine, self.job = machine, job
        self.info = np.zeros(1, PLAN_INFO)
        out = np.zeros(1, np.uint64)
        status = machine.call("decode_plan", job, self.info, out)
        if status.integer:
            raise ValueError(self.info["message"][0].decode())
        self.address = int(out[0])

    def __getitem__(self, name):
        return self.info[name][0]

    @property
    def splits(self):
        return list(self["split_begin"][: self["n_splits"] + 1])

    def run(self, q, kv, block_table=None, seqlens_k=None, mask=None):
        """out in its own type, lse in log2 units."""
        tensors = dict(block_table=block_table, seqlens_k=seqlens_k, mask=mask)
        results = self.run_tensors(q=q, kv=kv, **tensors)
        return results["out"], results["lse"]

    def results(self, ragged, max_logits):
        """Empty ones; `ragged`: of how many queries."""
        j = self.job[0]
        item = np.float32 if j["out_type"] == DTYPES["f32"] else np.uint16
        rows = (j["b"], j["s_q"]) if ragged is None else (ragged,)
        of_lse = (j["b"], j["h_q"], j["s_q"]) if ragged is None else (ragged, j["h_q"])
        empty = dict(
            out=np.zeros((*rows, j["h_q"], j["d_v"]), item), lse=np.zeros(of_lse, np.float32)
        )
        return empty | (dict(max_logits=np.zeros(of_lse, np.float32)) if max_logits else {})

    def run_tensors(self, max_logits=False, **tensors):
        """Tensors by name, arrays or addresses; arrays lie before unmapped memory."""
        ragged = tensors.get("q_indptr")
        results = self.results(None if ragged is None else int(ragged[-1]), max_logits)
        mark = self.machine.mark()
        try:
            at = {k: self.machine.place(v) for k, v in {**tensors, **results}.items()}
            scratch = self.machine.allocate(int(self["scratch_bytes"]))
            self.machine.view(scratch, int(self["scratch_bytes"]))[:] = 0xFF  # NaN
            addresses = {name: at.pop(name, 0) for name in TENSORS.split()}
            assert not at
            table = np.array(list(addresses.values()), np.uint64)
            self.result = self.machine.call("decode_run", self.address, table, scratch, self.info)
            for name, array in results.items():
                raw = self.machine.view(addresses[name], array.nbytes)
                array.reshape(-1).view(np.uint8)[:] = raw
        finally:
            self.machine.release(mark)
        if self.result.integer:
            raise ValueError(self.info["message"][0].decode())
        return results


def truth(q, kv, scale, d_v, visible=None, bias=None):
    """O, LSE in log2 units and sum P |v| in f64: q [rows][d], kv [n][d], visible [rows]."""
    with np.errstate(all="ignore"):
        t = q @ kv.T * (float(scale) * LOG2E)
        if bias is not None:
            t = t + bias * LOG2E
        if visible is not None:
            t = np.where(np.arange(len(kv)) < np.asarray(visible)[:, None], t, -np.inf)
        top = t.max(1, keepdims=True)
        w = np.exp2(t - np.where(np.isfinite(top), top, 0))
        total = w.sum(1, keepdims=True)
        lse = np.where(total > 0, top + np.log2(total), -np.inf)[:, 0]
        w = np.where(total > 0, w / total, 0)
        return w @ kv[:, :d_v], lse, w @ np.abs(kv[:, :d_v])
