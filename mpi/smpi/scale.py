# SPDX-License-Identifier: Apache-2.0
"""A step over up to 512 ranks of a simulated network, beside a formula: SIMULATED, not measured.

    python3 mpi/smpi/scale.py BUILD_FOLDER [--ranks 1,2,16] [--rates FILE] [--to FOLDER]

    --ranks   instead of 1 to 512
    --rates   what build/step_rates printed; else it is run now
    --to      writes smpi_scaling.txt and smpi_scaling.svg there; else the table is printed

The program is amla_ranks with all of its MPI (charge.c), run by SimGrid's SMPI. Compute is charged
by a law measured here (step_rates.c), on one core. The formula has the platform's latency and
bandwidth, the law, and counts of records, bytes and rounds; nothing in it is fitted to a simulated
time. Exit status 1 if a step's communication, or where it takes over, is off by more than 15 %.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import typing

HEADS, BLOCKS, ROWS = 128, 2, 64  # rows of a block: BLOCK_ROWS of amla_mpi.c
RECORD_BYTES = (512 + 2) * 4
HOSTS, LEAF = 512, 16  # of the tree, and below one switch
LINK_SECONDS = 1e-6
NETWORKS = {"100 Gbit/s": 12.5e9, "400 Gbit/s": 50e9}  # bytes a second of a link
RANKS = (1, 2, 3, 4, 7, 8, 16, 32, 64, 128, 256, 512)
STRONG_SPLITS, WEAK_SPLITS, SPLIT_TILES = 512, 16, 21
FAST = 1000
LIMIT = 0.15

# Factors 1, no acknowledgements, no time injected into calls, no message buffered at its sender:
# the network is what the platform says. Shares of links are worked out in full at each event. (By
# SimGrid 3.32's default, Lazy, a link carries more than it can when messages do not leave at once:
# 7 ranks, 25 % more.) The gathering of what ranks say takes as many rounds and bytes as Open MPI
# 4.1's choice for so few bytes (recursive doubling, up to 511 ranks).
SETTINGS = [
    "smpi/simulate-computation:no",
    "smpi/bw-factor:0:1",
    "smpi/lat-factor:0:1",
    "network/crosstraffic:0",
    "smpi/test:0",
    "smpi/wtime:0",
    "smpi/allgather:bruck",
    "smpi/send-is-detached-thresh:0",
    "network/optim:Full",
]


# ---- The simulation ----


def platform(bandwidth):
    """Two levels, as many links up as down: 32 switches of 16 hosts, 16 switches above them."""
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
        where = {**os.environ, "TMPDIR": folder, **environment}
        done = subprocess.run(command, env=where, capture_output=True, text=True)
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


def own_links(rank, rows, own, block, last):
    """What goes into the rank and out of it of the blocks up to the last: when it leaves, records,
    records of its sender's link. It leaves when it is computed: its receive was posted a block
    before, and no rank takes twice as long as another."""
    into, out = [], []
    for b, rows_here in enumerate(rows[: last + 1]):
        for i, (n, seconds) in enumerate(zip(own, block)):
            sender = (ROWS - rows_here[i]) * n
            link, records = (out, sender) if i == rank else (into, rows_here[rank] * n)
            if records > 0:
                link.append(((b + 1) * seconds, records, sender))
    return into, out


def carried(link, bandwidth):
    """When a link has carried all: of any time at which some leaves, and the time for what has not
    come by then, the latest sum. A sender's link carries its messages side by side."""
    each = RECORD_BYTES / bandwidth
    ends = [
        at + sum(n * max(0.0, each - max(0.0, at - t) / sender) for t, n, sender in link)
        for at in {t for t, _, _ in link}
    ]
    return max(ends, default=0.0)


def predict(ranks, splits, tokens, charges, gathered, bandwidth, link_seconds=LINK_SECONDS):
    """Seconds of a step. Without network (inf, 0) they are its work: computing and merging."""
    per_run, per_row_key, per_shard, per_byte = charges
    cuts = [splits * i // ranks for i in range(ranks + 1)]
    own = [entries(cuts[i], cuts[i + 1], splits) for i in range(ranks)]
    block = [per_run + per_row_key * ROWS * (cuts[i + 1] - cuts[i]) * tokens for i in range(ranks)]
    rows = [[rows_of(i, ranks, b) for i in range(ranks)] for b in range(BLOCKS)]
    latency = link_seconds * (2 if ranks <= LEAF else 4)

    def arrival(b):  # of the last of all ranks' records
        links = [link for i in range(ranks) for link in own_links(i, rows, own, block, b)]
        return latency + max(carried(link, bandwidth) for link in links)

    def finish(rank, b):
        return per_shard * ranks + per_byte * rows[b][rank] * sum(own) * RECORD_BYTES

    arrivals = [arrival(b) if ranks > 1 else 0.0 for b in range(BLOCKS)]
    last = 0.0
    for rank in range(ranks):
        at = BLOCKS * block[rank]
        for b in range(BLOCKS):
            if rows[b][rank]:
                at = max(at, arrivals[b]) + finish(rank, b)
        last = max(last, at)
    return last + math.ceil(math.log2(ranks)) * latency + (ranks - 1) * gathered / bandwidth


# ---- Tables ----


class Series:
    """One kind of step over several numbers of ranks."""

    def __init__(self, kind, name, network, splits_of, charges):
        self.kind, self.name, self.network = kind, name, network
        self.splits_of, self.charges = splits_of, charges
        self.rows, self.gathered = [], 0.0

    def simulate(self, build, ranks, tile):
        bandwidth, splits = NETWORKS[self.network], self.splits_of(ranks)
        result = simulate(build, bandwidth, ranks, splits, tile, self.charges)
        parts = parts_of_step(ranks, splits, SPLIT_TILES * tile, self.charges, result, bandwidth)
        self.rows.append(Row(ranks, result["seconds"], *parts))
        self.gathered = result["gathered_bytes"]

    def departures(self):
        return [abs(row.communication() / row.formula - 1) for row in self.rows if row.formula > 0]

    def takes_over(self):
        """Ranks from which on communication takes more time than computing: simulated, formula."""
        rows = [row for row in self.rows if row.formula > 0]
        return (
            crossing([(row.ranks, row.communication() / row.computing) for row in rows]),
            crossing([(row.ranks, row.formula / row.computing) for row in rows]),
        )

    def table(self):
        yield f"{self.name}, {self.network}"
        yield (
            " ranks     time, ms   computing     merging  communication  formula, us      off"
            "  efficiency"
        )
        for row in self.rows:
            share = self.rows[0].seconds / row.seconds * self.splits_of(row.ranks) / row.ranks
            share *= self.rows[0].ranks / self.splits_of(self.rows[0].ranks)
            simulated, formula = 1e6 * row.communication(), 1e6 * row.formula
            wire = " " * 37
            if formula > 0:
                off = 100 * (simulated / formula - 1)
                wire = f"{simulated:11.2f} us {formula:12.2f} {off:6.1f} %"
            yield (
                f"{row.ranks:6d} {1e3 * row.seconds:12.3f} {1e3 * row.computing:11.3f}"
                f" {1e3 * row.merging:11.3f} {wire} {share:11.3f}"
            )


class Row(typing.NamedTuple):
    """A step; seconds are simulated, the others the formula's."""

    ranks: int
    seconds: float
    computing: float
    merging: float
    formula: float  # of communication

    def communication(self):
        return self.seconds - self.computing - self.merging


def parts_of_step(ranks, splits, tokens, charges, result, bandwidth):
    """By the formula: seconds of computing, then of merging, then of communication."""
    gathered = result["gathered_bytes"]
    computing = predict(ranks, splits, tokens, (*charges[:2], 0.0, 0.0), gathered, math.inf, 0.0)
    work = predict(ranks, splits, tokens, charges, gathered, math.inf, 0.0)
    return (
        computing,
        work - computing,
        predict(ranks, splits, tokens, charges, gathered, bandwidth) - work,
    )


def crossing(points):
    """Where a ratio reaches 1, on a line between logarithms; None if it does not."""
    for (n, ratio), (n_next, ratio_next) in zip(points, points[1:]):
        if ratio < 1 <= ratio_next:
            return n * (n_next / n) ** (math.log(1 / ratio) / math.log(ratio_next / ratio))
    return None


def crossings_on_paper(tokens, charges, gathered, bandwidth):
    """Of merging and of communication, on any power of two of ranks with a node of the tree each.
    Two levels of switches still."""
    per_run, per_row_key, per_shard, per_byte = charges
    merging, communication = [], []
    for i in range(int(math.log2(LEAF)) + 1, 17):
        ranks = 2**i
        record = max(1, HEADS // ranks) * RECORD_BYTES
        computing = BLOCKS * (per_run + per_row_key * ROWS * tokens / ranks)
        wire = (i + 1) * 4 * LINK_SECONDS + (ranks - 1) * (gathered + record) / bandwidth
        merging.append((ranks, ranks * (per_shard + per_byte * record) / computing))
        communication.append((ranks, wire / computing))
    return crossing(merging), crossing(communication)


# ---- What compute is charged ----


def law(rates):
    """Lines through the first and the last point: of run with a constant, of finish by shards and
    bytes."""
    (_, work, seconds), (_, work_last, seconds_last) = rates["run"][0], rates["run"][-1]
    per_row_key = (seconds_last - seconds) / (work_last - work)
    (n, size, seconds_1), (n_last, size_last, seconds_2) = rates["finish"][0], rates["finish"][-1]
    area = n * size_last - n_last * size
    per_shard = (seconds_1 * size_last - seconds_2 * size) / area
    per_byte = (n * seconds_2 - n_last * seconds_1) / area
    charges = (seconds - per_row_key * work, per_row_key, per_shard, per_byte)
    if min(charges) <= 0:
        sys.exit(f"step_rates: {rates}: times do not rise; is the machine busy?")
    return charges


def cpu_name():
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else "a CPU without a name"


def law_table(rates, charges):
    per_run, per_row_key, per_shard, per_byte = charges
    flops = 2 * (576 + 512) / per_row_key
    yield f"Compute: measured on one core of {cpu_name()}, {rates['isa']}."
    yield (
        f"run of {ROWS} rows     {1e6 * per_run:.1f} us + {1e9 * per_row_key:.2f} ns a row-key"
        f" ({flops / 1e9:.1f} GFLOP/s)"
    )
    yield f"finish of a block  {1e6 * per_shard:.3f} us a shard + {1e9 * per_byte:.4f} ns a byte"
    yield "             measured, us   charged, us"
    for n, work, seconds in rates["run"]:
        charged = per_run + per_row_key * work
        yield f"{n:6d} tokens {1e6 * seconds:12.1f} {1e6 * charged:13.1f}"
    for n, work, seconds in rates["finish"]:
        charged = per_shard * n + per_byte * work
        yield f"{n:6d} shards {1e6 * seconds:12.1f} {1e6 * charged:13.1f}"


# ---- Output ----


def picture(all_series):
    """gnuplot's commands: times, and communication alone."""
    blocks, times, parts = [], [], []
    for i, s in enumerate(all_series):
        rows = "\n".join(
            f"{r.ranks} {r.seconds} {r.computing + r.merging + r.formula}"
            f" {1e6 * r.communication() if r.formula else 'NaN'}"
            f" {1e6 * r.formula if r.formula else 'NaN'}"
            for r in s.rows
        )
        blocks.append(f"$s{i} << END\n{rows}\nEND")
        title = f"{s.name}, {s.network}".replace("'", "")
        style = f"lc {i + 1}"
        times.append(f"$s{i} using 1:2 with points {style} pt {i + 4} title '{title}'")
        times.append(f"$s{i} using 1:3 with lines {style} notitle")
        if "fast" not in s.kind:
            parts.append(f"$s{i} using 1:4 with points {style} pt {i + 4} notitle")
            parts.append(f"$s{i} using 1:5 with lines {style} notitle")
    return "\n".join(
        [
            "set terminal svg size 1000,640 dynamic background 'white' font 'sans,12'",
            *blocks,
            "set multiplot layout 1,2 title 'SIMULATED network, modelled compute:"
            " points are simulated, lines the formula'",
            "set logscale xy 2",
            "set logscale y 10",
            "set grid",
            "set xlabel 'ranks'",
            "set format y '%g'",
            "set key bottom left Left reverse samplen 1 font 'sans,8'",
            "set yrange [1e-6:10]",
            "set ylabel 'time of a step, s'",
            "plot " + ", ".join(times),
            "set yrange [1:1000]",
            "set ylabel 'communication of a step, us'",
            "plot " + ", ".join(parts),
            "unset multiplot",
        ]
    )


HEAD = """SIMULATED network, modelled compute: ./dev mpi --scale

amla_ranks with all of its MPI under SimGrid's SMPI. Two levels of switches, 32 x 16 hosts, as many
links up as down, 1 us a link. One step of 128 heads, bf16 KV of 576 and 512 columns; one core a
rank. Time is the slowest rank's. Computing and merging, in ms, are what a network without latency
and of endless bandwidth would leave. Communication is the rest. Efficiency: the time of one rank
over this time, per rank and key.
Not in it: packing records, MPI's own time for a message, other programs."""


def report(all_series, rates, charges):
    yield HEAD
    yield ""
    yield from law_table(rates, charges)
    for s in all_series:
        yield ""
        yield from s.table()
        simulated, formula = s.takes_over()
        if simulated and formula:
            yield (
                f"Communication takes more time than computing from {simulated:.0f} ranks on;"
                f" formula: {formula:.0f}."
            )
        if s.kind == "strong":
            tokens = STRONG_SPLITS * SPLIT_TILES * rates["tile_tokens"]
            at = crossings_on_paper(tokens, charges, s.gathered, NETWORKS[s.network])
            yield (
                "Not simulated, by the formula: more time than computing takes merging from"
                f" {at[0]:.0f} ranks on,\ncommunication from {at[1]:.0f} on."
            )


def make_series(tile, charges):
    tokens = SPLIT_TILES * tile
    total, each = STRONG_SPLITS * tokens, WEAK_SPLITS * tokens
    fast = [x / FAST for x in charges]
    for network in NETWORKS:
        yield Series("strong", f"{total:,} tokens", network, lambda ranks: STRONG_SPLITS, charges)
        yield Series(
            "weak", f"{each:,} tokens a rank", network, lambda ranks: WEAK_SPLITS * ranks, charges
        )
        yield Series(
            "fast",
            f"{total:,} tokens, supposed {FAST:,} times as fast",
            network,
            lambda ranks: STRONG_SPLITS,
            fast,
        )


def worst_departure(all_series):
    worst = max(max(s.departures(), default=0.0) for s in all_series)
    for s in all_series:
        simulated, formula = s.takes_over()
        if simulated and formula:
            worst = max(worst, abs(simulated / formula - 1))
        elif simulated or formula:
            worst = math.inf
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build")
    parser.add_argument("--ranks", default=",".join(str(n) for n in RANKS))
    parser.add_argument("--rates")
    parser.add_argument("--to")
    options = parser.parse_args()
    if options.rates:
        with open(options.rates) as file:
            text = file.read()
    else:
        command = [os.path.join(options.build, "step_rates")]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rates = json.loads(text)
    charges = law(rates)
    all_series = list(make_series(rates["tile_tokens"], charges))
    for s in all_series:
        for ranks in (int(n) for n in options.ranks.split(",")):
            print(f"{s.name}, {s.network}: {ranks} ranks", file=sys.stderr, flush=True)
            s.simulate(options.build, ranks, rates["tile_tokens"])
    table = "\n".join(report(all_series, rates, charges)) + "\n"
    worst = worst_departure(all_series)
    table += f"\nLargest departure from the formula: {100 * worst:.1f} %, of {100 * LIMIT:.0f}\n"
    print(table, end="")
    if options.to:
        with open(os.path.join(options.to, "smpi_scaling.txt"), "w") as file:
            file.write(table)
        drawn = subprocess.run(
            ["gnuplot"], input=picture(all_series), check=True, capture_output=True, text=True
        )
        with open(os.path.join(options.to, "smpi_scaling.svg"), "w") as file:
            file.write(drawn.stdout)
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
