# SPDX-License-Identifier: Apache-2.0
"""Cycles of instructions, a source for each row.  The first pattern that matches counts.

A  Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter on AMX
B  LLVM 19's scheduling tables: skylake-avx512 for ports 0 and 5, as its sapphirerapids has one
   port for 512-bit FMA; sapphirerapids for conversions
C  a guess, where nothing is published or sources differ
D  AMD, Software Optimization Guide for the Zen 4 (Zen 5) Microarchitecture: 512-bit operations
   take a 256-bit pipe twice (Zen 5 of servers: once); BF16 at twice the FP32 rate
"""

import collections

Cost = collections.namedtuple("Cost", "pattern ports cycles latency uops source")
Core = collections.namedtuple(
    "Core", "name costs width window store_buffer loads stores products latencies"
)

P0, P5, BOTH, SCALAR = ("p0",), ("p5",), ("p0", "p5"), ("p1", "p6", "p10")

# Tiles: 16 loads and an address in a tileloadd, 16 stores of 2 in a tilestored.
SAPPHIRE_RAPIDS = [
    Cost("tdpbf16ps", ("tmul",), 16, 52, 1, "A"),
    Cost("tileloadd", (), 0, 45, 17, "A: 8 cycles of both load ports; micro-operations: C"),
    Cost("tilestored", (), 0, 16, 33, "A: 16 cycles of the store port; micro-operations: C"),
    Cost("tilezero", (), 0, 16, 1, "A"),
    Cost("ldtilecfg|tilerelease", ("tmul",), 16, 100, 30, "C"),
    Cost("vdpbf16ps", P0, 1, 6, 1, "C: 1 a cycle; B has 2 cycles"),
    Cost("vcvtne2ps2bf16", BOTH, 2, 8, 4, "B"),
    Cost("vcvtneps2bf16", BOTH, 1, 7, 3, "B"),
    Cost("vrndscale", BOTH, 2, 8, 2, "B"),
    Cost("vscalef|vfn?m(add|sub)|v(add|sub|mul|max|min)ps", BOTH, 1, 4, 1, "B"),
    Cost("vcvt", BOTH, 1, 4, 1, "B"),
    Cost("vpermw|vpermt2|vpermi2", P5, 1, 4, 2, "B"),
    Cost("vp?unpck|vp?shuf|vperm|valign|vinsert|vextract|vpmov|vp?broadcast", P5, 1, 3, 1, "B"),
    Cost("vp?cmp|vptest", P5, 1, 3, 1, "B"),
    Cost("vps[lr]l|vpsra", P0, 1, 1, 1, "B"),
    Cost("k", P0, 1, 3, 1, "B"),
    Cost("vp?(and|or|xor|add|sub|ternlog|blend|mul|max|min)|vmov", BOTH, 1, 1, 1, "B"),
    Cost("v", BOTH, 1, 4, 1, "C"),
    Cost("", SCALAR, 1, 1, 1, "C"),
]
FMA, ADD, ALL = ("fma",), ("add",), ("fma", "add")
ZEN_4 = [
    Cost("vdpbf16ps", FMA, 1, 6, 1, "D: 1 a cycle, as FMA"),
    Cost("vfn?m(add|sub)|vmul", FMA, 1, 4, 1, "D"),
    Cost("vcvtne2ps2bf16", ADD, 2, 6, 4, "C"),
    Cost("vrndscale|vscalef|v(add|sub|max|min)ps|vcvt|vp?cmp|vptest", ADD, 1, 3, 1, "D"),
    Cost("vp?unpck|vp?shuf|vperm|valign|vinsert|vextract|vpmov|vp?broadcast", ("shuffle",), 1, 2, 1,
         "D"),
    Cost("k", ("shuffle",), 1, 1, 1, "C"),
    Cost("v", ALL, 1, 1, 1, "D"),
    Cost("", ("i0", "i1", "i2", "i3"), 1, 1, 1, "D"),
]  # fmt: skip
ZEN_5 = [c._replace(ports=tuple(p + n for p in c.ports for n in ("", "'"))) for c in ZEN_4]

# width and window in micro-operations; loads and stores of 64 bytes a cycle; multiply-adds a cycle
# of the instructions that count; latency of a load
CORES = {
    "spr": Core("Sapphire Rapids", SAPPHIRE_RAPIDS, 6, 512, 112, 2, 1,
                {"tdpbf16ps": 512, "vdpbf16ps": 32, "vfmadd": 32}, 7),
    "genoa": Core("Genoa (Zen 4)", ZEN_4, 6, 320, 64, 1, 0.5, {"vdpbf16ps": 32, "vfmadd": 16}, 7),
    "turin": Core("Turin (Zen 5)", ZEN_5, 8, 448, 104, 2, 1, {"vdpbf16ps": 64, "vfmadd": 32}, 7),
}  # fmt: skip
