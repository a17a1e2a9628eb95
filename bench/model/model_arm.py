# SPDX-License-Identifier: Apache-2.0
"""Inner loops of the rows of Arm, modelled by llvm-mca: MODELLED cycles, no hardware has run them.

    python3 bench/model/model_arm.py BUILD_FOLDER [LLVM_MCA]

Reads the machine code that the cross build made (./dev test --aarch64, or ./dev model --arm). Of
each kernel it takes every innermost loop with 16 multiply-adds or more, as a straight line. A share
is of multiply-adds in what the pipes would do in those cycles, in brackets that of everything which
the pipes do. Exit status 1 if a loop but those of last columns is below the goal. Where types leave
it out of reach, as what their conversion takes of the pipes is no multiply-add, the pipes are to be
busy.
"""

import re
import subprocess
import sys
import tempfile

# llvm-mca's CPU, its pipes for FMLA and BFMMLA, and the instructions dispatched a cycle, of which
# llvm-mca knows nothing. Source: LLVM's AArch64SchedNeoverse*.td, after Arm's software optimisation
# guides; dispatch constraints in those.
CPUS = {"neoverse-v1": (4, 8), "neoverse-v2": (4, 8), "neoverse-n2": (2, 5)}
GOAL, BUSY_GOAL, JUDGED = 0.90, 0.95, ("neoverse-v1", "neoverse-v2")
OBJECTS = "CMakeFiles/amla_objects.dir/src/cpu"
KERNELS = {
    "ukr__neon.c.o": {
        "qk_6x16": "scores, 16 rows",
        "qk_12x8": "scores, 8 rows",
        "amla_ukr_pv_f32_4x24__neon": "output",
        "amla_ukr_pv_f32_8x8__neon": "output, last columns",
    },
    "ukr__neonbf16.c.o": {
        "qk_12x8": "scores",
        "pv_bf16x2_4x24": "output, p=bf16x2",
        "pv_bf16_4x24": "output, p=bf16",
        "pv_bf16x2_8x8": "output, last columns, p=bf16x2",
        "pv_bf16_8x8": "output, last columns, p=bf16",
    },
}
# Functions of neonbf16 whose first loop with ZIPs moves keys or values.
MOVES = {"stage": "run_stage", "bf16": "turn_bf16", "f32": "turn_f32"}
# What a loop does on the side, by the first instruction that only it has there.
SIDES = {
    "ushl": "converts 4 or 5 bits",
    "fsub": "converts q8_0",
    "fcvtl": "converts f16",
    "zip1": "converts bf16",
}
LIMITED = {"converts 4 or 5 bits", "converts q8_0", "converts f16"}


def instructions(path):
    """Of each function: [(address, text)]."""
    listing = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    functions, body = {}, []
    for line in listing.splitlines():
        if match := re.match(r"[0-9a-f]+ <([\w.]+)>:", line):
            body = functions.setdefault(match[1].split(".")[0], [])
        elif match := re.match(r"\s+([0-9a-f]+):\t(.*)", line):
            text = re.sub(r" <[^>]*>$", "", match[2].split("//")[0].strip())
            body.append((int(match[1], 16), text))
    return functions


def branch_target(text):
    match = re.match(r"(?:b\.\w+|b|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\d+,)\s+([0-9a-f]+)$", text)
    return int(match[1], 16) if match else None


def innermost_loops(body):
    """Lists of instructions, without the branch back."""
    place = {address: i for i, (address, _) in enumerate(body)}
    ends = {}
    for i, (address, text) in enumerate(body):
        head = branch_target(text)
        if head in place and head <= address:
            ends.setdefault(place[head], i)
    for head, end in sorted(ends.items()):
        if not any(head < h and e <= end for h, e in ends.items()):
            yield [text for _, text in body[head:end] if branch_target(text) is None]


def count(loop, name):
    return sum(text.split()[0] == name for text in loop)


def multiply_adds(loop):
    return count(loop, "fmla") + count(loop, "bfmmla")


class Modelled:
    """A loop on one CPU."""

    def __init__(self, mca, cpu, loop):
        with tempfile.NamedTemporaryFile("w", suffix=".s") as file:
            file.write("".join(f"\t{text}\n" for text in [*loop, "subs x30, x30, #1"]))
            file.flush()
            command = [mca, "-march=aarch64", f"-mcpu={cpu}", "-mattr=+bf16", "-iterations=200"]
            report = subprocess.run(
                [*command, file.name], check=True, capture_output=True, text=True
            ).stdout
        pipes, width = CPUS[cpu]
        total = int(re.search(r"Total Cycles:\s+(\d+)", report)[1]) / 200
        self.cycles = max(total, (len(loop) + 1) / width)
        self.share = multiply_adds(loop) / pipes / self.cycles
        self.busy = pipe_cycles(report) / pipes / self.cycles


def pipe_cycles(report):
    """Of an iteration, all pipes together."""
    names = re.findall(r"^\[([\d.]+)\]\s+- (\w+)$", report, re.MULTILINE)
    pressure = re.search(r"pressure per iteration:\n.*\n(.*)\n", report)[1].split()
    return sum(
        float(cycles)
        for (_, name), cycles in zip(names, pressure, strict=True)
        if re.search(r"UnitV\d*$", name) and cycles != "-"
    )


def side_of(loop):
    stores = sum(text.startswith(("st", "str")) for text in loop)
    found = [side for name, side in SIDES.items() if count(loop, name)]
    if not stores:
        return ""
    return found[0] if found else "copies f32"


def named_loops(functions, kernels):
    """(name, side, loop) of each; of loops of one name, which types have, the longest."""
    longest = {}
    for kernel, what in kernels.items():
        for loop in innermost_loops(functions[kernel]):
            n, side = multiply_adds(loop), side_of(loop)
            name = f"{what}, {side}" if side else what
            # Merges, and the loop over the last columns, are once a tile.
            if n < 16 or 2 * n < 0.8 * len(loop):
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
    print(f"{'q':4} {'P':7} {'rows':>4}" + "".join(f"{cpu:>20}" for cpu in CPUS))
    forms = [(q, p) for q in ("bf16", "f16", "f32") for p in ("f32", "bf16x2", "bf16")]
    for q, p in forms:
        parts = 1 + ("bf16", "f16", "f32").index(q)
        for rows in (16, 128):
            cells = ""
            for of_cpu in loops.values():
                ours = neonbf16_cycles(of_cpu["neon"], of_cpu["neonbf16"], rows, parts, p)
                cells += f"{neon_cycles(of_cpu['neon'], rows) / ours:10.2f} ({ours:7.0f})"
            print(f"{q:4} {p:7} {rows:4}{cells}")


def moves(functions):
    for name, function in MOVES.items():
        yield name, next(x for x in innermost_loops(functions[function]) if count(x, "zip1"))


def main():
    folder = sys.argv[1]
    mca = sys.argv[2] if len(sys.argv) > 2 else "llvm-mca-19"
    version = subprocess.run([mca, "--version"], check=True, capture_output=True, text=True).stdout
    print("MODELLED by llvm-mca,", re.search(r"LLVM version \S+", version)[0], end="\n\n")
    headings = "".join(f"{cpu:>16}" for cpu in CPUS)
    print(f"{'row':9} {'loop':40} {'multiply-adds':>13} {'instructions':>12}{headings}")
    missed, judged, modelled = [], 0, {cpu: {} for cpu in CPUS}
    for file, kernels in KERNELS.items():
        row = re.search(r"__(\w+)\.", file)[1]
        functions = instructions(f"{folder}/{OBJECTS}/{file}")
        for name, side, loop in named_loops(functions, kernels):
            on = {cpu: Modelled(mca, cpu, loop) for cpu in CPUS}
            for cpu, m in on.items():
                modelled[cpu].setdefault(row, {})[name] = m
            of_pipes = "".join(f"{m.share:9.3f} ({m.busy:.2f})" for m in on.values())
            print(f"{row:9} {name:40} {multiply_adds(loop):13} {len(loop) + 1:12}{of_pipes}")
            judged += "last" not in name
            missed += [f"{row} {name} {c}" for c in JUDGED if is_below(name, side, on[c])]
    for cpu, of_cpu in modelled.items():  # `functions` are the last file's, neonbf16's
        of_cpu["neonbf16"] |= {name: Modelled(mca, cpu, loop) for name, loop in moves(functions)}
    print_tiles(modelled)
    print(f"\nGoal: {GOAL} of the pipes on {' and '.join(JUDGED)}, or {BUSY_GOAL} busy:", end=" ")
    print(", ".join(missed) + " below" if missed else f"held by {judged} loops")
    return 1 if missed or not judged else 0


if __name__ == "__main__":
    sys.exit(main())
