# SPDX-License-Identifier: Apache-2.0
"""A step over up to 256 ranks of a simulated network, beside a formula: SIMULATED, not measured.

    python3 mpi/smpi/scale.py BUILD_FOLDER [OUTPUT_FOLDER]       ./dev mpi --scale
    python3 mpi/smpi/scale.py BUILD_FOLDER --check               few ranks, given charges; a test

The program is amla_ranks with all of its MPI (charge.c), run by SimGrid's SMPI. Compute is charged
by a law measured here (step_rates.c), on one core. The formula has the platform's latency and
bandwidth, the law, and counts of records, bytes and rounds; nothing in it is fitted to a simulated
time. Exit status 1 if communication of a step departs from it by more than 15 %.
"""

import json
import math
import os
import subprocess
import sys
import tempfile

HEADS, BLOCKS, ROWS = 128, 2, 64  # rows of a block: BLOCK_ROWS of amla_mpi.c
RECORD_BYTES = (512 + 2) * 4
HOSTS, LEAF = 256, 16  # of the tree, and below one switch
LINK_SECONDS = 1e-6
NETWORKS = {"100 Gbit/s": 12.5e9, "400 Gbit/s": 50e9}  # bytes a second of a link
RANKS = (1, 2, 3, 4, 7, 8, 16, 32, 64, 128, 256)
STRONG_SPLITS, WEAK_SPLITS, SPLIT_TILES = 256, 8, 43
FAST = 1000
LIMIT = 0.15

# Factors 1, no acknowledgements and no time injected into calls: the network is what the platform
# says. Collectives as Open MPI 4.1 chooses them: so many rounds, of so many bytes.
SETTINGS = """smpi/simulate-computation:no smpi/bw-factor:0:1 smpi/lat-factor:0:1
    network/crosstraffic:0 smpi/test:0 smpi/wtime:0 smpi/allgather:bruck""".split()


# ---- The simulation ----


def platform(bandwidth):
    """Two levels, as many links up as down: 16 switches of 16 hosts, 16 switches above them."""
    return f"""<?xml version='1.0'?>
<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">
<platform version="4.1">
  <cluster id="tree" prefix="n" suffix="" radical="0-{HOSTS - 1}" speed="1Gf"
           bw="{bandwidth:.0f}Bps" lat="{LINK_SECONDS:g}s" topology="FAT_TREE"
           topo_parameters="2;{LEAF},{HOSTS // LEAF};1,{LEAF};1,1"/>
</platform>
"""


def run(build, bandwidth, ranks, arguments, environment):
    """What the program prints on so many simulated ranks."""
    with tempfile.TemporaryDirectory() as folder:
        files = {"platform.xml": platform(bandwidth)}
        files["hosts"] = "".join(f"n{i}\n" for i in range(HOSTS))
        for name, text in files.items():
            with open(os.path.join(folder, name), "w") as file:
                file.write(text)
        command = ["smpirun", "-np", str(ranks), "-platform", os.path.join(folder, "platform.xml")]
        command += ["-hostfile", os.path.join(folder, "hosts")]
        command += [f"--cfg={setting}" for setting in SETTINGS]
        command += ["--log=root.thresh:error", "--log=xbt_cfg.thresh:error"]
        command += [os.path.join(build, "amla_ranks_smpi.so"), *arguments]
        done = subprocess.run(
            command, env={**os.environ, "TMPDIR": folder, **environment}, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(f"smpirun, {ranks} ranks, {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def simulate(build, bandwidth, ranks, splits, tile, charges):
    """Keys of `splits` splits, a tile of them in memory; nothing is computed."""
    tokens = SPLIT_TILES * tile
    problem = f"h={HEADS},sk={tile},page={tile}"
    arguments = ["time", problem, "--repeat", str(splits * SPLIT_TILES), "--split", str(tokens)]
    environment = {"AMLA_CHARGE": " ".join(f"{x:.12g}" for x in charges)}
    output = run(build, bandwidth, ranks, [*arguments, "--rounds", "1"], environment)
    result = {}
    for line in output.splitlines():
        result.update(json.loads(line))
    return result


# ---- The formula ----


def entries(begin, end, leaves, first=0):
    """Nodes that cover the leaves [begin, end) of a tree, whose left part is a power of two."""
    if end <= first or first + leaves <= begin:
        return 0
    if begin <= first and first + leaves <= end:
        return 1
    left = 1 << (leaves - 1).bit_length() - 1
    return entries(begin, end, left, first) + entries(begin, end, leaves - left, first + left)


def rows_of(rank, ranks, block):
    first, last = HEADS * rank // ranks, HEADS * (rank + 1) // ranks
    return max(0, min(last, ROWS * (block + 1)) - max(first, ROWS * block))


def predict(ranks, splits, tokens, charges, gathered, bandwidth, link_seconds=LINK_SECONDS):
    """Seconds of a step. Without network (inf, 0) they are its work: computing and merging."""
    per_run, per_row_key, per_shard, per_byte = charges
    cuts = [splits * i // ranks for i in range(ranks + 1)]
    own = [entries(cuts[i], cuts[i + 1], splits) for i in range(ranks)]
    block = [per_run + per_row_key * ROWS * (cuts[i + 1] - cuts[i]) * tokens for i in range(ranks)]
    late = [i for i in range(ranks) if block[i] == max(block)]
    latency = link_seconds * (2 if ranks <= LEAF else 4)

    def arrival(rank, b):  # of others' records; a late rank posts its receives late
        others = [i for i in (range(ranks) if rank in late else late) if i != rank]
        into = rows_of(rank, ranks, b) * sum(own[i] for i in others)
        out = max(((ROWS - rows_of(i, ranks, b)) * own[i] for i in others), default=0)
        wire = latency + max(into, out) * RECORD_BYTES / bandwidth
        return (b + 1) * max(block) + wire if others else 0.0

    def finish(rank, b):
        return per_shard * ranks + per_byte * rows_of(rank, ranks, b) * sum(own) * RECORD_BYTES

    last = 0.0
    for rank in range(ranks):
        at = BLOCKS * block[rank]
        for b in range(BLOCKS):
            if rows_of(rank, ranks, b):
                at = max(at, arrival(rank, b)) + finish(rank, b)
        last = max(last, at)
    return last + math.ceil(math.log2(ranks)) * latency + (ranks - 1) * gathered / bandwidth


# ---- Tables ----


class Series:
    """One kind of step over several numbers of ranks."""

    def __init__(self, name, network, splits_of, charges):
        self.name, self.network, self.splits_of, self.charges = name, network, splits_of, charges
        self.rows = []  # ranks, seconds, work, communication, communication of the formula, result

    def simulate(self, build, ranks, tile):
        bandwidth, splits = NETWORKS[self.network], self.splits_of(ranks)
        result = simulate(build, bandwidth, ranks, splits, tile, self.charges)
        what = (ranks, splits, SPLIT_TILES * tile, self.charges, result["gathered_bytes"])
        work, predicted = predict(*what, math.inf, 0.0), predict(*what, bandwidth)
        row = (ranks, result["seconds"], work, result["seconds"] - work, predicted - work, result)
        self.rows.append(row)

    def departures(self):
        return [abs(row[3] / row[4] - 1) for row in self.rows if row[4] > 0]

    def takes_over(self, column):
        """Ranks from which on communication takes more time than work, between two rows."""
        at = [(row[0], row[column] / row[2]) for row in self.rows]
        for (n, ratio), (n_next, ratio_next) in zip(at, at[1:]):
            if ratio < 1 <= ratio_next:
                share = math.log(1 / max(ratio, 1e-12)) / math.log(ratio_next / max(ratio, 1e-12))
                return n * (n_next / n) ** share
        return None

    def table(self):
        yield f"{self.name}, {self.network}"
        yield "ranks     time, ms     work, ms   communication, us  formula, us     off   efficiency"
        for ranks, seconds, work, simulated, formula, _ in self.rows:
            share = self.rows[0][1] / seconds * self.splits_of(ranks) / self.splits_of(1) / ranks
            off = f"{100 * (simulated / formula - 1):6.1f} %" if formula > 0 else "        "
            yield (
                f"{ranks:5d} {1e3 * seconds:12.3f} {1e3 * work:12.3f} {1e6 * simulated:19.2f}"
                f" {1e6 * formula:12.2f} {off} {share:12.3f}"
            )
