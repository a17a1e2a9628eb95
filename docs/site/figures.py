# SPDX-License-Identifier: Apache-2.0
"""The site's figures, as SVG: results as they lie in docs/results, the loop and the merge tree from
what the library says of a plan. No figure has a number of its own."""

from __future__ import annotations

import itertools
import pathlib
import re

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot  # noqa: E402

# Okabe and Ito's, which stay apart for every kind of colour vision.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKS = "osD^vPX"
pyplot.rcParams.update(
    {
        "svg.fonttype": "path",  # no font of the reader's machine can move a label
        "svg.hashsalt": "amla",
        "font.size": 11,
        "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "figure.constrained_layout.use": True,
    }
)
WIDTH = 6.4


def save(figure, path: pathlib.Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def rows_of(path: pathlib.Path, pattern: str) -> list[dict[str, str]]:
    """The lines that match, as their named groups; none is an error."""
    found = [re.match(pattern, line) for line in path.read_text().splitlines()]
    rows = [match.groupdict() for match in found if match]
    if not rows:
        raise ValueError(f"{path}: no line matches {pattern}")
    return rows


def counted(threads: str) -> str:
    return f"{threads} thread{'s' * (threads != '1')}"


# ---- Results ----


def cpu(results: pathlib.Path, out: pathlib.Path) -> None:
    line = (
        r"  (?P<case>\S+) +(?P<threads>\d) (?P<isa>\w+) +[\d.]+ +[\d.]+ +\d+ % +(?P<lazy>[\d.]+)"
        r".* of peak "
    )
    tables = {"bench_cpu": "AVX-512", "bench_cpu_zen3": "Zen 3, AVX2"}
    cases: dict[str, int] = {}
    figure, axes = pyplot.subplots(figsize=(WIDTH, 8))
    for i, (name, label) in enumerate(tables.items()):
        rows = [r for r in rows_of(results / f"{name}.txt", line) if r["isa"] in ("avx512", "avx2")]
        names = [f"{r['case']}, {counted(r['threads'])}" for r in rows]
        at = [cases.setdefault(n, len(cases)) for n in names]
        axes.plot([float(r["lazy"]) for r in rows], at, MARKS[i], label=label)
    axes.axvline(1, color="black", lw=1.5)
    axes.set(xlim=(0, 1.02), xlabel="fraction of the FMA peak (line)")
    axes.set_yticks(range(len(cases)), list(cases), fontsize=9)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    axes.set_title("CPU backend, mode lazy, best rounds")
    save(figure, out)


def ggml(results: pathlib.Path, out: pathlib.Path) -> None:
    rows = rows_of(
        results / "bench_ggml.txt",
        r" +1 +(?P<heads>\d+) +(?P<n>\d+) (?P<type>\w+) +1 +[\d.]+ +[\d.]+ +(?P<ggml>[\d.]+)"
        r" +(?P<amla>[\d.]+) (?!.*V apart)",
    )
    rows = [r for r in rows if r["heads"] == "128"]
    figure, axes = pyplot.subplots(figsize=(WIDTH, 4))
    for i, kind in enumerate(dict.fromkeys(r["type"] for r in rows)):
        mine = [r for r in rows if r["type"] == kind]
        x = [int(r["n"]) for r in mine]
        for who, style in (("amla", "-"), ("ggml", "--")):
            y = [float(r[who]) for r in mine]
            axes.plot(x, y, style + MARKS[i], color=COLOURS[i], label=f"{who}, {kind}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [str(n) for n in x])
    axes.set(xlabel="tokens in the cache", ylabel="GFLOP/s", ylim=(0, None))
    axes.set_title("One token, 128 heads, one thread, AVX-512: AMLA and ggml's CPU backend")
    axes.grid(alpha=0.3)
    axes.legend(ncols=3, loc="center", bbox_to_anchor=(0.5, 0.5), fontsize=9)
    save(figure, out)


def server(results: pathlib.Path, out: pathlib.Path) -> None:
    path = results / "llama_server.txt"
    rows = rows_of(
        path,
        r"server +(?P<heads>\d+) (?P<type>\w+) +(?P<threads>\d+) +(?P<depth>\d+)"
        r" +[\d.]+ +[\d.]+ +(?P<ratio>[\d.]+)x ",
    )
    models = re.search(r"bench_server.py: (.*)", path.read_text())[1]
    threads, heads, types, depths = (
        list(dict.fromkeys(r[key] for r in rows)) for key in ("threads", "heads", "type", "depth")
    )
    shape, size = (len(heads), len(threads)), (WIDTH, 0.9 + 2 * len(heads))
    figure, grid = pyplot.subplots(*shape, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes, (h, n) in zip(grid.flat, itertools.product(heads, threads)):
        for i, kind in enumerate(types):
            mine = [r for r in rows if (r["heads"], r["threads"], r["type"]) == (h, n, kind)]
            x, y = ([float(r[key]) for r in mine] for key in ("depth", "ratio"))
            axes.plot(x, y, marker=MARKS[i], ls=("-", "--", ":")[i % 3], label=kind)
        axes.axhline(1, color="black", lw=1.5)
        axes.set_xscale("symlog", base=4, linthresh=1024)
        axes.set_xticks([int(d) for d in depths], depths, fontsize=9)
        axes.set_xticks([], minor=True)
        axes.set_title(f"{h} heads, {counted(n)}")
        axes.grid(alpha=0.3)
    axes.set_ylim(0, None)  # of all: they share it
    grid[0, 0].legend(loc="upper left", fontsize=9)
    figure.supxlabel("tokens of context", fontsize=11)
    figure.supylabel("times as fast as ggml (line: 1)", fontsize=11)
    figure.suptitle(f"A token of llama-server: {models}", fontsize=11)
    save(figure, out)


def prompts(results: pathlib.Path, out: pathlib.Path) -> None:
    path = results / "prompts.txt"
    rows = rows_of(
        path,
        r" +(?P<heads>\d+) +(?P<threads>\d+) +(?P<ggml_ms>[\d.]+) +(?P<amla_ms>[\d.]+) +[\d.]+"
        r" +[\d.]+x +[\d.]+ +(?P<alone>[\d.]+) +(?P<amla>[\d.]+) ",
    )
    names = [f"{r['heads']} heads, {counted(r['threads'])}" for r in rows]
    amla = [float(r["amla"]) for r in rows]
    ggml = [a * float(r["amla_ms"]) / float(r["ggml_ms"]) for a, r in zip(amla, rows)]
    figure, axes = pyplot.subplots(figsize=(WIDTH, 0.4 * len(rows) + 1.6))
    alone = [float(r["alone"]) for r in rows]
    lists = {"ggml": ggml, "llama.cpp's plug-in": amla, "the library alone": alone}
    for i, (label, values) in enumerate(lists.items()):
        axes.plot(values, range(len(rows)), MARKS[i], label=label, mfc="none", mew=2, ms=8)
    axes.axvline(1, color="black", lw=1.5)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel="fraction of the FMA peak (line)")
    what, machine = (
        re.search(pattern, path.read_text(), re.MULTILINE)[1]
        for pattern in ("^(prompts of .*)", "its CPU backend on (.*) against")
    )
    axes.set_title(f"{what.capitalize()}, {machine}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    save(figure, out)


def accuracy(results: pathlib.Path, out: pathlib.Path) -> None:
    text = (results / "accuracy.txt").read_text()
    table = text.split("Relative error of O")[1].split("\n\n")[0].splitlines()[1:]
    names = table[0].split()[2:]
    columns = list(zip(*(line.split()[2:] for line in table[1:])))
    figure, axes = pyplot.subplots(figsize=(WIDTH, 5.5))
    for i, (name, column) in enumerate(zip(names, columns)):
        guarded = not name.startswith("unguard")
        values = [float(v) for v in column if v != "-"]
        axes.plot(values, [i] * len(values), "o" if guarded else "X", alpha=0.6, ms=5,
                  color=COLOURS[0 if guarded else 1])  # fmt: skip
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="relative error of O against fp64, a dot a case")
    axes.set_title("Rescale mode and type of P. Crosses: the paper's unguarded add")
    axes.grid(alpha=0.3)
    save(figure, out)


def sim(results: pathlib.Path, out: pathlib.Path) -> None:
    rows = rows_of(
        results / "sim.txt",
        r" {6}(?P<schedule>\w+) +(?P<mode>\w+) +96 +(?P<sq>[12]) +128 +16384 +(?P<peak>[\d.]+) ",
    )[:18]
    names = list(dict.fromkeys(f"{r['schedule']} {r['mode']}" for r in rows))
    figure, axes = pyplot.subplots(figsize=(WIDTH, 4.5))
    for i, sq in enumerate("21"):
        values = [float(r["peak"]) for r in rows if r["sq"] == sq]
        at = [n + 0.4 * i for n in range(len(names))]
        axes.barh(at, values, 0.38, label=f"s_q = {sq}", hatch="//" * i, edgecolor="white")
    axes.set_yticks([n + 0.2 for n in range(len(names))], names)
    axes.invert_yaxis()
    axes.axvline(100, color="black", lw=1.5)
    axes.set(xlim=(0, 101), xlabel="% of the cube's peak (line: the peak)")
    axes.set_title("SIMULATED Ascend 910: b = 96, 128 heads, 16384 keys")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.98))
    save(figure, out)


def threads(results: pathlib.Path, out: pathlib.Path) -> None:
    table = (results / "many_threads.txt").read_text().split("\n\n")[1].splitlines()[1:]
    x = [int(n) for n in table[0].split()[1:]]
    figure, axes = pyplot.subplots(figsize=(WIDTH, 4.2))
    for i, line in enumerate(table[1:]):
        name, values = re.match(r"(.*?)  +([\d. ]+)$", line).groups()
        y = [float(v) for v in values.split()]
        axes.plot(
            x, y, "--" * (i > 6) or "-", marker=MARKS[i % 7], color=COLOURS[i % 7], label=name
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(x, [str(n) for n in x])
    axes.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.set(xlabel="threads", ylabel="largest share / mean share")
    axes.set_title("How even the work is, counted from the schedule (1: perfectly)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    save(figure, out)


def what_differs(problems: list[str]) -> dict[str, str]:
    """Of each problem string the keys that not all have alike."""
    keys = {p: p.split(",") for p in problems}
    common = set.intersection(*(set(k) for k in keys.values()))
    return {p: ", ".join(key for key in k if key not in common) for p, k in keys.items()}


def sparse_groups(path: pathlib.Path) -> dict[str, list[dict[str, str]]]:
    """Rows of a run of bench_sparse by their headings, which say of what the figures are."""
    line = (
        r"  (?P<case>\w+=\S+) +(?P<threads>\d) .* (?P<figure>[\d.]+) +(?P<target>[\d.]+) (ok|miss) "
        r"|(?P<group>\S.*, of .*)"
    )
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows_of(path, line):
        if row["group"]:
            groups[row["group"]] = mine = []
        else:
            mine.append(row)
    return groups


def lists(results: pathlib.Path, out: pathlib.Path) -> None:
    groups = sparse_groups(results / "bench_sparse.txt")
    figure, axes = pyplot.subplots(figsize=(WIDTH, 5.2))
    labels: list[str] = []
    for group, rows in groups.items():
        labels.append(group)
        names = what_differs([r["case"] for r in rows])
        for case, name in names.items():
            for row in (r for r in rows if r["case"] == case):
                n = int(row["threads"])
                axes.plot(float(row["figure"]), len(labels), MARKS[n - 1], color=COLOURS[n - 1])
            axes.plot(float(row["target"]), len(labels), "k|", ms=12)
            labels.append(name)
    for n in (1, 2):
        axes.plot([], [], MARKS[n - 1], color=COLOURS[n - 1], label=f"{n} thread{'s' * (n > 1)}")
    axes.plot([], [], "k|", ms=12, label="target")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    for label in axes.get_yticklabels():
        if label.get_text() in groups:
            label.set_fontweight("bold")
    axes.invert_yaxis()
    axes.axvline(1, color="black", lw=1.5)
    axes.set(xlim=(0.8, 1.01), xlabel="fraction of the other's rate (line: 1)")
    axes.set_title("Lists, scopes and fp8 caches, Zen 3", loc="right")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize=9)
    save(figure, out)


def index(results: pathlib.Path, out: pathlib.Path) -> None:
    path = results / "bench_index.txt"
    target = float(re.search(r"scores ([\d.]+) of the FMA peak", path.read_text())[1])
    rows = rows_of(
        path,
        r"(?P<case>\d+ heads, \S+ \w+) +(?P<threads>\d) +[\d.]+ +[\d.]+ +(?P<peak>[\d.]+)"
        r" +(?P<median>[\d.]+) ",
    )
    names = [f"{r['case']}, {counted(r['threads'])}" for r in rows]
    figure, axes = pyplot.subplots(figsize=(WIDTH, 3.6))
    for i, (key, label) in enumerate((("peak", "best"), ("median", "median"))):
        values = [float(r[key]) for r in rows]
        axes.plot(values, range(len(rows)), MARKS[i], label=f"{label} of the rounds")
    axes.axvline(1, color="black", lw=1.5)
    axes.axvline(target, color="black", lw=1.5, ls="--", label=f"target, {target}")
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel="fraction of the FMA peak (line)")
    axes.set_title("Scores of the indexer, Zen 3")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize=9)
    save(figure, out)


def sweep(results: pathlib.Path, out: pathlib.Path) -> None:
    path = results / "sim_sweep.txt"
    numbers = [rf"(?P<{n}> *[\d.]+)" for n in ("low2", "mid2", "top2", "low1", "mid1", "top1")]
    modes = rows_of(path, r"(?P<name>\w+ +(?:flash|amla|lazy)) " + " ".join(numbers) + "$")[:9]
    holds = rows_of(path, r"(?P<name>\w.*?)  +(?P<n2>\d+) +(?P<n1>\d+)  (?:yes|no|s_q=\d)$")
    settings = int(re.search(r"In how many of (\d+) an ordering holds", path.read_text())[1])
    figure, (above, below) = pyplot.subplots(2, figsize=(WIDTH, 8.5), height_ratios=(9, 13))
    for i, sq in enumerate("21"):
        label, style = f"s_q = {sq}", {"color": COLOURS[i], "marker": MARKS[i]}
        low, mid, top = ([float(r[f"{k}{sq}"]) for r in modes] for k in ("low", "mid", "top"))
        at = [n - 0.15 + 0.3 * i for n in range(len(modes))]
        above.hlines(at, low, top, color=COLOURS[i], lw=2)
        above.plot(mid, at, ls="", label=label, **style)
        at = [n - 0.15 + 0.3 * i for n in range(len(holds))]
        values = [100 * int(r[f"n{sq}"]) / settings for r in holds]
        below.plot(values, at, ls="", label=label, **style)
    above.set(xlim=(0, 103), xlabel="% of the cube's peak (line)")
    above.axvline(100, color="black", lw=1.5)
    below.set(xlim=(0, 103), xlabel="% of the settings (dashed: 90 %)")
    below.axvline(90, color="black", lw=1.5, ls="--")
    for axes, rows in ((above, modes), (below, holds)):
        names = [re.sub(" +", " ", r["name"]) for r in rows]
        axes.set_yticks(range(len(rows)), names, fontsize=9)
        axes.invert_yaxis()
        axes.grid(alpha=0.3)
    above.legend(loc="lower left", fontsize=9)
    above.set_title(f"SIMULATED Ascend 910, {settings} settings that meet one figure", loc="right")
    save(figure, out)


def sparse(results: pathlib.Path, out: pathlib.Path) -> None:
    text = (results / "bench_sparse_torch.txt").read_text()
    rows = re.findall(
        r"^== (.*) threads (\d)\n(?:.*\n)*?amla is ([\d.]+) times", text, re.MULTILINE
    )
    names = [f"{case.replace(',', ', ')}, {counted(n)}" for case, n, _ in rows]
    figure, axes = pyplot.subplots(figsize=(WIDTH, 0.4 * len(rows) + 1.2))
    bars = axes.barh(range(len(rows)), [float(ratio) for *_, ratio in rows], color=COLOURS[0])
    axes.bar_label(bars, padding=3, fontsize=9)
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.invert_yaxis()
    axes.axvline(1, color="black", lw=1.5)
    axes.set(xlabel="times as fast as PyTorch (line: 1)")
    axes.set_title("2048 listed tokens of 32768, Zen 3")
    save(figure, out)


def ranks(results: pathlib.Path, out: pathlib.Path) -> None:
    text = (results / "smpi_scaling.txt").read_text()
    found = re.findall(r"^(.* tokens.*), (\d+ Gbit/s)\n ranks.*\n((?: +\d.*\n)+)", text, re.M)
    kinds = list(dict.fromkeys(kind for kind, _, _ in found))
    nets = list(dict.fromkeys(net for _, net, _ in found))
    figure, panels = pyplot.subplots(2, figsize=(WIDTH, 8.5), sharex=True)
    for kind, net, table in found:
        colour, mark = COLOURS[kinds.index(kind)], MARKS[kinds.index(kind)]
        inside = "white" if nets.index(net) else colour
        rows = [[float(n) for n in re.findall(r"[\d.]+", line)] for line in table.splitlines()]
        x, time, computing, merging, sent, formula, *_ = zip(*(r for r in rows if len(r) == 8))
        whole = [c + m + f / 1000 for c, m, f in zip(computing, merging, formula)]
        for axes, points, line in zip(panels, (time, sent), (whole, formula)):
            axes.plot(x, line, color=colour, ls="--" if nets.index(net) else "-", lw=1)
            axes.plot(x, points, mark, color=colour, mfc=inside, label=f"{kind}, {net}")
    for axes, name in zip(panels, ("time of a step, ms", "communication of a step, us")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(x, [f"{n:.0f}" for n in x], fontsize=9)
        axes.set(ylabel=name)
        axes.grid(alpha=0.3)
    panels[1].set_xlabel("ranks")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=9)
    panels[0].set_title("SIMULATED network, modelled compute: points simulated, lines a formula")
    save(figure, out)


RESULTS = {
    f.__name__: f
    for f in (
        cpu,
        ggml,
        server,
        prompts,
        accuracy,
        sim,
        sweep,
        threads,
        ranks,
        sparse,
        lists,
        index,
    )
}


# ---- How it works ----


def box(axes, x, y, w, h, text, colour="white", **more) -> None:
    axes.add_patch(pyplot.Rectangle((x, y), w, h, fc=colour, ec="black", lw=1, **more))
    axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=9)


def canvas(height: float, top: float):
    figure, axes = pyplot.subplots(figsize=(WIDTH, height))
    axes.set(xlim=(0, 100), ylim=(0, top))
    axes.axis("off")
    return figure, axes


STEPS = [  # step, function of src/cpu/decode.c that does it, what it leaves
    ("scores", "scores", "S = q . k"),
    ("reference, P", "weights", "P = 2^(S - ref)"),
    ("rescale O", "rescale_rows", "O times 2^n"),
    ("PV", "add_pv", "O += P v"),
]


def loop(info: dict[str, int], code: str, out: pathlib.Path) -> None:
    """The tile loop: a split's key tiles, and the steps of one of them."""
    for _, function, _ in STEPS:
        if not re.search(rf"^static .*\b{function}\(", code, re.MULTILINE):
            raise ValueError(f"src/cpu/decode.c has no function {function}: mend the figure")
    rows, tile, split = info["block_rows"], info["tile_tokens"], info["split_tokens"]
    n = -(-split // tile)
    figure, axes = canvas(4.2, 66)
    axes.text(
        0, 63, f"One split: {split} keys of a sequence, in {n} key tiles of {tile}", fontsize=11
    )
    for i in range(n):
        colour = "#56B4E9" if i == 1 else "#e8f3fa"
        box(axes, 18 + 82 * i / n, 46, 82 / n - 0.6, 13, f"tile {i}", colour)
    box(axes, 0, 46, 16, 13, f"row block\n{rows} rows", "#fff0d0")
    axes.text(0, 36, "In every key tile, in this order:", fontsize=11)
    for i, (step, function, leaves) in enumerate(STEPS):
        box(axes, 25.3 * i, 12, 22, 20, f"{step}\n\n{leaves}\n{function}()", "#e8f3fa")
        if i < len(STEPS) - 1:
            at, to = (25.3 * i + 22.2, 22), (25.3 * i + 25.1, 22)
            axes.annotate("", to, at, arrowprops={"arrowstyle": "-|>", "color": "black"})
    axes.text(0, 3, f"S and P: {tile} x {rows}.   O: {rows} x 512.   K is read once: V is its first"
              " 512 columns.", fontsize=9)  # fmt: skip
    save(figure, out)


def left_leaves(n: int) -> int:
    """The largest power of two below n."""
    return 1 << ((n - 1).bit_length() - 1)


def tree_levels(begin: int, end: int, found: list) -> tuple[float, int]:
    """(place, height) of the node over leaves [begin, end); its lines are put into found."""
    if end - begin == 1:
        return begin + 0.5, 0
    middle = begin + left_leaves(end - begin)
    children = [tree_levels(begin, middle, found), tree_levels(middle, end, found)]
    height = 1 + max(h for _, h in children)
    place = sum(x for x, _ in children) / 2
    found += [((place, height), child) for child in children]
    return place, height


def tree(info: dict[str, int], sk: int, out: pathlib.Path, n_threads: int = 3) -> None:
    n = -(-sk // info["split_tokens"])
    lines: list = []
    _, top = tree_levels(0, n, lines)
    figure, axes = pyplot.subplots(figsize=(WIDTH, 4))
    for (x, y), (cx, cy) in lines:
        axes.plot([x, cx], [y, cy], color="black", lw=1, zorder=1)
    nodes = {node for node, _ in lines}
    axes.scatter(*zip(*nodes), s=60, color="white", edgecolor="black", zorder=2)
    for i in range(n):
        thread = int((i + 0.5) * n_threads / n)
        label = f"thread {thread}" if i * n_threads % n < n_threads else None
        style = {"color": COLOURS[thread], "marker": MARKS[thread], "label": label}
        axes.scatter(i + 0.5, 0, s=110, zorder=2, **style)
    axes.set_xticks([i + 0.5 for i in range(n)], [str(i) for i in range(n)])
    axes.set_yticks(range(top + 1), ["splits", *(f"merge {i}" for i in range(1, top + 1))])
    axes.set(ylim=(-0.5, top + 0.5), xlabel="split of the sequence")
    axes.set_title(f"{sk} keys in {n} splits: the tree knows nothing of threads")
    axes.legend(loc="upper left")
    save(figure, out)
