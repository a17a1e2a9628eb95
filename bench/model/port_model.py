# SPDX-License-Identifier: Apache-2.0
"""Cycles of the CPU's 16-bit rows by a port model: modelled, not measured.

    ./dev model

The emulator of tests/emulated runs a plan of the library and says which instructions were executed
in which order.  port_costs.py gives each its ports and cycles.  Two figures come of it: `limit`,
the cycles of the busiest unit, port or stage, and `played`, those of an out-of-order core that is
given the trace (port_player.c).
"""

import argparse
import collections
import ctypes
import os
import pathlib
import re
import subprocess
import sys

import numpy as np

from port_costs import CORES

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests/emulated"))
import emulate  # noqa: E402
from decode_emulated import Plan, make_job, to_type  # noqa: E402

LOAD, STORE, MAX_PORTS = 14, 15, 16  # as in port_player.c
OP = np.dtype(
    [(n, np.int32) for n in ("ports", "cycles", "latency", "uops", "loads", "stores")]
    + [("load_latency", np.int32), ("writes", np.int32), ("reads", np.int32, 4)]
    + [("loads_less", np.int32), ("loads_tile", np.int32)]
)
CORE = np.dtype(
    [
        ("width", np.int32),
        ("window", np.int32),
        ("store_buffer", np.int32),
        ("slots", np.int32, MAX_PORTS),
    ]
    + [("renamed", np.int32)]
)
REGISTER = re.compile(r"%([xyz]mm\d+|tmm\d+|k\d)")


def disassemble(path):
    """Offset -> (mnemonic, operands); (offset, name) of functions, sorted."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code, functions = {}, []
    for line in text.splitlines():
        if m := re.match(r"([0-9a-f]+) <(.*)>:", line):
            functions.append((int(m[1], 16), m[2]))
        elif m := re.match(
            r" +([0-9a-f]+):\t(?:(?:rep|lock|notrack|cs|data16) )*(\S+) *(.*)", line
        ):
            code[int(m[1], 16)] = (m[2], re.sub(r" *[#<].*", "", m[3]))
    return code, sorted(functions)


def number(register):
    kind, n = re.match(r"(\D+)(\d+)", register).groups()
    return int(n) + {"k": 32, "tmm": 40}.get(kind, 0)


def split_operands(text):
    return re.split(r",(?![^(]*\))", text) if text else []


def encode(core, ports, name, operands):
    """The row of OP for an instruction; `ports` collects the names of ports."""
    parts = split_operands(operands)
    memory = ["(" in p for p in parts]
    cost = next(c for c in core.costs if re.match(c.pattern, name))
    op = np.zeros((), OP)
    op["writes"], op["reads"], op["load_latency"] = -1, -1, core.latencies
    op["latency"], op["uops"] = cost.latency, cost.uops
    mask = sum(1 << ports.setdefault(p, len(ports)) for p in cost.ports)
    op["ports"], op["cycles"] = mask, cost.cycles
    if name.startswith("tile") or name == "ldtilecfg":
        encode_tile(op, name, parts)
        return op
    fake = name.startswith(("lea", "nop", "j", "call", "ret", "push", "pop", "endbr"))
    stores = bool(parts) and memory[-1] and not fake and not re.match("cmp|test|prefetch", name)
    moves = re.match("v?p?mov|v?p?broadcast|prefetch", name)
    loads = any(memory) and not fake and not (stores and moves)
    op["loads"], op["stores"] = loads, stores
    op["loads_less"] = loads and "zmm" not in operands
    registers = [(i, number(r)) for i, p in enumerate(parts) for r in REGISTER.findall(p)]
    if loads and moves or name.startswith("vmov") and not any(memory) and "{" not in operands:
        op["ports"] = op["cycles"] = op["latency"] = 0  # a load alone; a renaming
    elif stores and moves:
        op["ports"], op["latency"], op["uops"] = 0, 1, 1
    target = [r for i, r in registers if i == len(parts) - 1 and not stores][:1]
    sources = [r for i, r in registers if not (target and r == target[0] and i == len(parts) - 1)]
    keeps = re.match("vf|vdpbf16|tdp|vpternlog|vperm[ti]2", name)
    if keeps or ("{%k" in operands and "{z}" not in operands):
        sources += target
    if re.match("v?p?xor", name) and len({r for _, r in registers}) == 1:  # zero
        sources, op["ports"], op["cycles"] = [], 0, 0
    if target:
        op["writes"] = target[0]
    op["reads"][: len(sources)] = sources[:4]
    return op


def encode_tile(op, name, parts):
    registers = [number(r) for p in parts for r in REGISTER.findall(p)]
    if name == "tileloadd":
        op["loads"], op["load_latency"], op["loads_tile"] = 16, 0, 1
    elif name == "tilestored":
        op["stores"], op["reads"][0] = 16, registers[0]
        return
    if registers:
        op["writes"] = registers[-1]


class Program:
    """The emulated library, its code for one core, and traces of it."""

    def __init__(self, path):
        self.machine = emulate.Machine(memory=256 << 20)
        self.machine.load_elf(path)
        self.code, self.functions = disassemble(path)
        at = next(a for a, n in self.functions if n == "decode_run")
        self.base = self.machine.symbols["decode_run"] - at
        self.player = ctypes.CDLL(os.environ["AMLA_PORT_PLAYER"])
        self.offsets = np.array(sorted(self.code))
        self.encoded = {}

    def trace(self, job, **tensors):
        """Indices into `offsets`, of one run."""
        plan = Plan(self.machine, job)
        if plan["isa"] != job["isa"][0]:
            raise ValueError(f"the plan has instruction set {plan['isa']}")
        self.machine.start_trace(self.base, int(self.offsets[-1]) + 16, 1 << 25)
        plan.run_tensors(**tensors)
        return np.searchsorted(self.offsets, self.machine.stop_trace()).astype(np.int32)

    def play(self, core, trace, renamed=True):
        """When each instruction had retired; the cycles of each port, by name."""
        if core.name not in self.encoded:
            ports = {}
            ops = [encode(core, ports, *self.code[o]) for o in self.offsets.tolist()]
            self.encoded[core.name] = np.array(ops, OP), ports
        ops, ports = self.encoded[core.name]
        c = np.zeros(1, CORE)
        c["width"], c["window"], c["renamed"], c["slots"] = core.width, core.window, renamed, 4
        c["store_buffer"] = core.store_buffer
        c["slots"][0, LOAD], c["slots"][0, STORE] = 4 * core.loads, 4 * core.stores
        at = np.zeros(len(trace))
        self.player.port_play(
            *(ctypes.c_void_p(x.ctypes.data) for x in (c, ops, trace)),
            ctypes.c_int64(len(trace)), ctypes.c_void_p(at.ctypes.data),
        )  # fmt: skip
        return at, ops, ports


def busy(core, ops, ports, trace):
    """Cycles that each unit is taken, at least: operations of several ports in equal parts."""
    count = np.bincount(trace, minlength=len(ops))
    units = collections.Counter()
    for name, i in ports.items():
        n_ports = np.array([bin(m).count("1") for m in ops["ports"]])
        mine = (ops["ports"] >> i & 1) / np.maximum(n_ports, 1)
        units[name] = float((count * ops["cycles"] * mine).sum())
    wide = 1 - ops["loads_less"]
    units["loads"] = float((count * ops["loads"] * wide).sum()) / core.loads
    units["small loads"] = float((count * ops["loads"] * ops["loads_less"]).sum())
    units["stores"] = float((count * ops["stores"]).sum()) / core.stores
    units["front end"] = float((count * ops["uops"]).sum()) / core.width
    return units


# ---- What is modelled ----

TILE = 128  # tokens that figures are given for
SHORT, LONG = 768, 1536  # whole key tiles of every row; their difference has no start and no end
D_QK, D_V = 576, 512


# What may be between q and the keys: tensors of s_q queries and n keys, and which keys each sees.


def no_mask(rng, s_q, n):
    return {}, np.ones((s_q, n), bool)


def causality(rng, s_q, n):
    return {}, np.arange(n) <= np.arange(n - s_q, n)[:, None]


def mask_of(bias):
    return dict(mask=bias[None].astype(np.float16)), bias != -np.inf


def mask_of_zeros(rng, s_q, n):
    """As llama.cpp gives it for one sequence."""
    return mask_of(np.zeros((s_q, n)))


def mask_of_biases(rng, s_q, n):
    return mask_of(rng.standard_normal((s_q, n)))


def mask_of_causality(rng, s_q, n):
    return mask_of(np.where(causality(rng, s_q, n)[1], 0, -np.inf))


def mask_of_gaps(rng, s_q, n):
    """A tenth of the keys hidden one by one, the same for all queries."""
    return mask_of(np.where(rng.random((1, n)) < 0.1, -np.inf, np.zeros((s_q, 1))))


def mask_of_biases_and_gaps(rng, s_q, n):
    return mask_of(np.where(rng.random((1, n)) < 0.1, -np.inf, rng.standard_normal((s_q, n))))


def list_of_half(rng, s_q, n):
    """An index list a query, in no order."""
    lists = [rng.permutation(n)[: n // 2] for _ in range(s_q)]
    sees = np.array([np.isin(np.arange(n), x) for x in lists])
    return dict(indices=np.array(lists, np.int32)[None]), sees


class Step:
    """A decode step of so many rows and tokens on a core, played."""

    def __init__(self, program, core, isa, p_form, rows, tokens, kind=no_mask, s_q=1, **job):
        rng = np.random.default_rng(1)
        tensors, sees = kind(rng, s_q, tokens)
        fields = dict(h_q=rows // s_q, s_q=s_q, sk=tokens, out_type="bf16", q_type="bf16") | job
        q, _ = to_type(rng.standard_normal((1, s_q, rows // s_q, D_QK)), fields["q_type"])
        kv, _ = to_type(rng.standard_normal((tokens, D_QK)), "bf16")
        if "indices" in tensors:
            fields |= dict(topk=tensors["indices"].shape[2])
        job = make_job(p_form=p_form, isa=isa, **fields)
        self.products = int(sees.sum()) * (rows // s_q) * (D_QK + D_V)  # hidden keys have none
        self.trace = program.trace(job, q=q, kv=kv, **tensors)
        at, self.ops, self.ports = program.play(core, self.trace)
        self.cycles = at[-1]
        self.busy = busy(core, self.ops, self.ports, self.trace)

    def share(self, per_cycle):
        """Of the cycles, those that the useful multiply-adds alone would take."""
        return self.products / per_cycle / self.cycles


def of_tile(program, core, isa, p_form, rows, **job):
    """Cycles, instructions, multiply-adds and units of TILE tokens in the middle of a split."""
    short, long = (
        Step(program, core, isa, p_form, rows, n, split_tokens=n, **job) for n in (SHORT, LONG)
    )
    share = TILE / (LONG - SHORT)
    not_renamed = (program.play(core, s.trace, False)[0][-1] for s in (long, short))
    units = {k: share * (v - short.busy[k]) for k, v in long.busy.items()}
    return {
        "cycles": share * (long.cycles - short.cycles),
        "not renamed": share * float(np.subtract(*not_renamed)),
        "instructions": share * (len(long.trace) - len(short.trace)),
        "products": share * (long.products - short.products),
        "units": units,
    }


def report_tile(name, core, rows, t, peak, unit):
    limit = max(t["units"], key=t["units"].get)
    products = t["units"].get(unit, 0)
    useful = t["products"] / peak
    text = f"{name:22} {rows:4} {t['instructions']:8.0f} {t['cycles']:8.0f}"
    text += f" {useful / t['cycles']:6.2f} {products / t['cycles']:6.2f}"
    text += f"  {limit} {t['units'][limit] / t['cycles']:.2f}"
    if unit == "tmul":
        text += f"; tiles not renamed {useful / t['not renamed']:.2f}"
    print(text, flush=True)
    return t["cycles"]


HEAD = f"{'row, P':22} rows  instr.   cycles  share   unit  busiest"


def model_amx(program):
    core = CORES["spr"]
    print(f"\nAMX-BF16 on {core.name}: of 512 multiply-adds a cycle. {TILE} tokens of a split")
    print(HEAD)
    for p_form in ("bf16", "bf16x2", "f32"):
        for rows in (16, 32, 64, 128):
            t = of_tile(program, core, "amxbf16", p_form, rows)
            report_tile(f"amxbf16 {p_form}", core, rows, t, 512, "tmul")
    print("Whole steps of 4096 tokens: Q packed, splits merged, O stored, nothing left out")
    for p_form in ("bf16", "bf16x2"):
        for rows in (16, 64, 128):
            report_step("no mask", program, core, p_form, rows)
        for name, options in STEPS.items():
            report_step(name, program, core, p_form, 64, **options)


# Of 64 rows.
STEPS = {
    "causal, 4 queries": dict(kind=causality, s_q=4, causal=1),
    "mask of zeros": dict(kind=mask_of_zeros),
    "mask, causal, 4 queries": dict(kind=mask_of_causality, s_q=4),
    "mask of biases": dict(kind=mask_of_biases),
    "mask hides a tenth": dict(kind=mask_of_gaps),
    "and has biases": dict(kind=mask_of_biases_and_gaps),
    "list of 2048 keys": dict(kind=list_of_half),
    "q in f16": dict(q_type="f16"),
    "q in f16, mask of zeros": dict(q_type="f16", kind=mask_of_zeros),
}


def report_step(name, program, core, p_form, rows, **options):
    s = Step(program, core, "amxbf16", p_form, rows, 4096, **options)
    not_renamed = program.play(core, s.trace, renamed=False)[0][-1]
    print(f"{p_form:7}{name:24} {rows:4} {len(s.trace):8} {s.cycles:8.0f} {s.share(512):6.2f}"
          f" {s.busy['tmul'] / s.cycles:6.2f}  tiles not renamed"
          f" {s.products / 512 / not_renamed:.2f}", flush=True)  # fmt: skip


def model_bf16(program):
    for name, core in CORES.items():
        peak = core.products["vdpbf16ps"]
        print(f"\nAVX512-BF16 on {core.name}: of {peak} multiply-adds a cycle. {TILE} tokens")
        print(HEAD)
        for rows in (16, 64):
            t = of_tile(program, core, "avx512", "f32", rows)
            fp32 = report_tile("avx512 f32", core, rows, t, peak, None)
            for p_form in ("f32", "bf16"):
                t = of_tile(program, core, "avx512bf16", p_form, rows)
                cycles = report_tile(f"avx512bf16 {p_form}", core, rows, t, peak, None)
                verdict = "slower than" if cycles > fp32 else "times as fast as"
                print(f"{'':28}{fp32 / cycles:.2f} {verdict} the FP32 row", name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library", help="emulated_decode.so")
    parser.add_argument("--amx", action="store_true", help="the AMX row alone")
    arguments = parser.parse_args()
    program = Program(arguments.library)
    print("Modelled, not measured.  share: useful multiply-adds, of the products' peak.  unit: how")
    print("much of the time tdpbf16ps keeps its unit.  busiest: unit, and how much of the time.")
    model_amx(program)
    if not arguments.amx:
        model_bf16(program)


if __name__ == "__main__":
    main()
