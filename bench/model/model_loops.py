# SPDX-License-Identifier: Apache-2.0
"""Inner loops of the rows of Arm and of AVX2, modelled by llvm-mca: MODELLED cycles.

    python3 bench/model/model_loops.py arm|zen BUILD_FOLDER [LLVM_MCA]

Reads the machine code that a build made (./dev model --arm, ./dev model --zen). Of each kernel it
takes every innermost loop with 12 multiply-adds or more, as a straight line. A share is of
multiply-adds in what the pipes would do in those cycles, in brackets that of everything which the
pipes do. The peak loops are what `amla info` runs. Exit status 1 if a loop but those of last
columns is below the goal on a CPU that is judged. Where types leave it out of reach, as what their
conversion takes of the pipes is no multiply-add, the pipes are to be busy.
"""

import dataclasses
import re
import subprocess
import sys
import tempfile


@dataclasses.dataclass
class Family:
    """CPUs of one instruction set, and what its assembly looks like."""

    objdump: str
    mca: list
    comment: str  # behind an instruction
    branch: str  # one that may close a loop; group 1 is its target
    end: list  # instructions in place of that branch
    multiply_adds: str
    store: str
    pipes: str  # llvm-mca's names of those for multiply-adds
    # Of a CPU its pipes, and the instructions dispatched a cycle, of which llvm-mca may know
    # nothing.
    cpus: dict
    judged: tuple
    # What a loop that stores does on the side, by the first instruction that only it has there.
    sides: dict
    copies: str  # with none of these
    kernels: dict  # of an object its functions


GOAL, BUSY_GOAL = 0.90, 0.95
KERNELS, PEAK = "amla_objects.dir/src/cpu", "amla_peak_fma.dir/harness"
ARM = Family(
    objdump="aarch64-linux-gnu-objdump",
    mca=["-march=aarch64", "-mattr=+bf16"],
    comment="//.*|<.*",
    branch=r"(?:b\.\w+|b|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\d+,)\s+([0-9a-f]+)$",
    end=["subs x30, x30, #1"],
    multiply_adds="fmla|bfmmla",
    store="st",
    pipes=r"UnitV\d*$",
    # Source: LLVM's AArch64SchedNeoverse*.td, after Arm's software optimisation guides; dispatch
    # constraints in those.
    cpus={"neoverse-v1": (4, 8), "neoverse-v2": (4, 8), "neoverse-n2": (2, 5)},
    judged=("neoverse-v1", "neoverse-v2"),
    sides={
        "ushl": "converts 4 or 5 bits",
        "fsub": "converts q8_0",
        "fcvtl": "converts f16",
        "zip1": "converts bf16",
    },
    copies="copies f32",
    kernels={
        f"{KERNELS}/ukr__neon.c.o": {
            "qk_6x16": "scores, 16 rows",
            "qk_12x8": "scores, 8 rows",
            "amla_ukr_pv_f32_4x24__neon": "output",
            "amla_ukr_pv_f32_8x8__neon": "output, last columns",
        },
        f"{KERNELS}/ukr__neonbf16.c.o": {
            "qk_12x8": "scores",
            "pv_bf16x2_4x24": "output, p=bf16x2",
            "pv_bf16_4x24": "output, p=bf16",
            "pv_bf16x2_8x8": "output, last columns, p=bf16x2",
            "pv_bf16_8x8": "output, last columns, p=bf16",
        },
        f"{PEAK}/peak_fma__neon.c.o": {"harness_peak_fma__neon": "peak"},
        f"{PEAK}/peak_fma__neonbf16.c.o": {"harness_peak_fma__neonbf16": "peak"},
    },
)
ZEN = Family(
    objdump="objdump",
    mca=["-mtriple=x86_64"],
    comment="#.*|<.*",
    branch=r"j\w+\s+([0-9a-f]+)$",
    end=[],  # it is fused with the comparison before it, which is there
    multiply_adds=r"vfmadd\d+ps",
    store=r"vmov(aps|dqa) %ymm\d+,.*\(",
    pipes="Zn3FP[01]$",
    cpus={"znver3": (2, 6)},  # source: LLVM's X86ScheduleZnver3.td
    judged=(),
    sides={
        "vpsrlw": "converts 4 bits",  # of 5 there are fewer multiply-adds than is asked for
        "vpmovsxbd": "converts q8_0",
        "vmulps": "converts fp8",
        "vcvtph2ps": "converts f16",
        "vpshufb": "converts bf16",
    },
    copies="copies f32",
    kernels={
        f"{KERNELS}/ukr__avx2.c.o": {
            "qk_6x16": "scores, 16 rows",
            "qk_staged": "scores, 16 rows",
            "qk_12x8": "scores, 8 rows",
            "pv_4x24": "output",
            "pv_8x8": "output, last columns",
        },
        f"{PEAK}/peak_fma__avx2.c.o": {"harness_peak_fma__avx2": "peak"},
    },
)
LIMITED = {"converts 4 or 5 bits", "converts q8_0", "converts f16"}
# Functions of neonbf16 whose first loop with ZIPs moves keys or values.
MOVES = {"stage": "run_stage", "bf16": "turn_bf16", "f32": "turn_f32"}


def instructions(family, path):
    """Of each function: [(address, text)]."""
    listing = subprocess.run(
        [family.objdump, "-d", "--no-show-raw-insn", path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    functions, body = {}, []
    for line in listing.splitlines():
        if match := re.match(r"[0-9a-f]+ <([\w.]+)>:", line):
            body = functions.setdefault(match[1].split(".")[0], [])
        elif match := re.match(r"\s+([0-9a-f]+):\t(.*)", line):
            body.append((int(match[1], 16), re.sub(family.comment, "", match[2]).strip()))
    return functions


def branch_target(family, text):
    match = re.match(family.branch, text)
    return int(match[1], 16) if match else None


def innermost_loops(family, body):
    """Lists of instructions, without the branch back."""
    place = {address: i for i, (address, _) in enumerate(body)}
    ends = {}
    for i, (address, text) in enumerate(body):
        head = branch_target(family, text)
        if head in place and head <= address:
            ends.setdefault(place[head], i)
    for head, end in sorted(ends.items()):
        if not any(head < h and e <= end for h, e in ends.items()):
            yield [text for _, text in body[head:end] if branch_target(family, text) is None]


def count(loop, name):
    return sum(re.fullmatch(name, text.split()[0]) is not None for text in loop)


class Modelled:
    """A loop on one CPU."""

    def __init__(self, family, mca, cpu, loop):
        lines = [*loop, *family.end]
        with tempfile.NamedTemporaryFile("w", suffix=".s") as file:
            file.write("".join(f"\t{text}\n" for text in lines))
            file.flush()
            command = [mca, *family.mca, f"-mcpu={cpu}", "-iterations=200", file.name]
            report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        pipes, width = family.cpus[cpu]
        total = int(re.search(r"Total Cycles:\s+(\d+)", report)[1]) / 200
        self.cycles = max(total, len(lines) / width)
        self.share = count(loop, family.multiply_adds) / pipes / self.cycles
        self.busy = pipe_cycles(family, report) / pipes / self.cycles


def pipe_cycles(family, report):
    """Of an iteration, all pipes together."""
    names = re.findall(r"^\[([\d.]+)\]\s+- (\w+)$", report, re.MULTILINE)
    pressure = re.search(r"pressure per iteration:\n.*\n(.*)\n", report)[1].split()
    return sum(
        float(cycles)
        for (_, name), cycles in zip(names, pressure, strict=True)
        if re.search(family.pipes, name) and cycles != "-"
    )


def side_of(family, loop):
    if not any(re.match(family.store, text) for text in loop):
        return ""
    found = [side for name, side in family.sides.items() if count(loop, name)]
    return found[0] if found else family.copies


def named_loops(family, functions, kernels):
    """(name, side, loop) of each; of loops of one name, which types have, the longest."""
    longest = {}
    for kernel, what in kernels.items():
        for loop in innermost_loops(family, functions[kernel]):
            n, side = count(loop, family.multiply_adds), side_of(family, loop)
            name = f"{what}, {side}" if side else what
            # Merges, and the loop over the last columns, are once a tile.
            if n < 12 or 2 * n < 0.8 * len(loop):
                continue
            if name not in longest or len(loop) > len(longest[name][1]):
                longest[name] = (side, loop)
    return [(name, side, loop) for name, (side, loop) in longest.items()]


def is_below(name, side, modelled):
    if "last" in name:
        return False
    return modelled.busy < BUSY_GOAL if side in LIMITED else modelled.share < GOAL


# ---- A key tile of 96 bf16 keys, 576 columns of which 512 are values ----


def output_cycles(loops, tokens, rows, form):
    """21 column tiles of 24 for 4 rows, and the last 8 columns for 8; `tokens` an iteration."""
    tiles, last = loops[f"output{form}"].cycles, loops[f"output, last columns{form}"].cycles
    return 96 / tokens * (21 * rows / 4 * tiles + rows / 8 * last)


def neon_cycles(loops, rows):
    """The first panel converts, 8 columns an iteration; the others have 4."""
    converting = 72 * loops["scores, 16 rows, converts bf16"].cycles
    panels = converting + (rows / 16 - 1) * 144 * loops["scores, 16 rows"].cycles
    return 96 / 6 * panels + output_cycles(loops, 2, rows, "")


def neonbf16_cycles(neon, loops, rows, parts, form):
    """Iterations of 8 columns: of two tokens staged, 12 x 8 scores, two or four tokens turned."""
    scores = 96 / 2 * 72 * loops["stage"].cycles
    scores += rows / 8 * 96 / 12 * 72 * parts * loops["scores"].cycles
    if form == "f32":
        return scores + 96 / 2 * 64 * loops["f32"].cycles + output_cycles(neon, 2, rows, "")
    turned = 96 / 4 * 64 * loops["bf16"].cycles
    return scores + turned + output_cycles(loops, 4, rows, f", p={form}")


def print_tiles(loops):
    """loops: of each CPU those of both rows."""
    print("\nCycles of 96 keys (bf16), softmax apart: times as fast as row neon (cycles)\n")
    print(f"{'q':4} {'P':7} {'rows':>4}" + "".join(f"{cpu:>20}" for cpu in loops))
    forms = [(q, p) for q in ("bf16", "f16", "f32") for p in ("f32", "bf16x2", "bf16")]
    for q, p in forms:
        parts = 1 + ("bf16", "f16", "f32").index(q)
        for rows in (16, 128):
            cells = ""
            for of_cpu in loops.values():
                ours = neonbf16_cycles(of_cpu["neon"], of_cpu["neonbf16"], rows, parts, p)
                cells += f"{neon_cycles(of_cpu['neon'], rows) / ours:10.2f} ({ours:7.0f})"
            print(f"{q:4} {p:7} {rows:4}{cells}")


def add_moves(mca, folder, modelled):
    functions = instructions(ARM, f"{folder}/{KERNELS}/ukr__neonbf16.c.o")
    for name, function in MOVES.items():
        loops = innermost_loops(ARM, functions[function])
        loop = next(x for x in loops if count(x, "zip1"))
        for cpu, of_cpu in modelled.items():
            of_cpu["neonbf16"][name] = Modelled(ARM, mca, cpu, loop)


def print_loops(family, mca, folder):
    """Of each CPU and row the modelled loops, how many there are to judge, and those below."""
    headings = "".join(f"{cpu:>16}" for cpu in family.cpus)
    print(f"{'row':9} {'loop':40} {'multiply-adds':>13} {'instructions':>12}{headings}")
    modelled, judged, missed = {cpu: {} for cpu in family.cpus}, 0, []
    for file, kernels in family.kernels.items():
        row = re.search(r"__(\w+)\.", file)[1]
        functions = instructions(family, f"{folder}/{file}")
        for name, side, loop in named_loops(family, functions, kernels):
            on = {cpu: Modelled(family, mca, cpu, loop) for cpu in family.cpus}
            for cpu, m in on.items():
                modelled[cpu].setdefault(row, {})[name] = m
            n, length = count(loop, family.multiply_adds), len(loop) + len(family.end)
            of_pipes = "".join(f"{m.share:9.3f} ({m.busy:.2f})" for m in on.values())
            print(f"{row:9} {name:40} {n:13} {length:12}{of_pipes}")
            judged += "last" not in name
            missed += [f"{row} {name} {c}" for c in family.judged if is_below(name, side, on[c])]
    return modelled, judged, missed


def main():
    family, folder = {"arm": ARM, "zen": ZEN}[sys.argv[1]], f"{sys.argv[2]}/CMakeFiles"
    mca = sys.argv[3] if len(sys.argv) > 3 else "llvm-mca-19"
    version = subprocess.run([mca, "--version"], check=True, capture_output=True, text=True).stdout
    print("MODELLED by llvm-mca,", re.search(r"LLVM version \S+", version)[0], end="\n\n")
    modelled, judged, missed = print_loops(family, mca, folder)
    if family is ARM:
        add_moves(mca, folder, modelled)
        print_tiles(modelled)
    if family.judged:
        on = " and ".join(family.judged)
        print(f"\nGoal: {GOAL} of the pipes on {on}, or {BUSY_GOAL} busy:", end=" ")
        print(", ".join(missed) + " below" if missed else f"held by {judged} loops")
    return 1 if missed or not judged else 0


if __name__ == "__main__":
    sys.exit(main())
