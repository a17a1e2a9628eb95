# SPDX-License-Identifier: Apache-2.0
"""What users of llama.cpp get: llama-server with four slots and llama-bench, unmodified programs
of Debian sid's llama.cpp, with the plug-in and without it, by turns.

    PYTHONPATH=ggml AMLA_GGML_PLUGIN=libggml-amla.so AMLA_GGML_HOSTS=FOLDER
    python ggml/bench/bench_server.py ...
        --prepare              models and caches: once, takes minutes
        [--heads 16 ...]       measures what is not measured yet, or some of it
        --table                everything measured, as docs/results has it

All three keep what they make in --work. Models are random, of the real shape of MLA attention and
few layers. A cache does not depend on the number of heads, so a model of one head fills it, and
llama-server's slots are restored from that. llama-bench can only compute its depth: that is left
out where it takes too long (--fill).

Before a line is kept, the greedy tokens of all slots with and without the plug-in are compared.
They may part only where ggml's best does not lead clearly.
"""

import argparse
import atexit
import concurrent.futures
import itertools
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np

SLOTS, SPARE, ROPE_AND_LATENT, LATENT = 4, 256, 576, 512
CONTEXT = 16384 + SPARE
WORDS = 259  # the first token that is no byte: llama-server shows no half characters
PROGRAMS, NAMES = ("server", "bench"), ("ggml", "amla")


def flops_of_key(heads, layers):
    return 2.0 * heads * (ROPE_AND_LATENT + LATENT) * layers


def prompt_of(depth):
    return np.random.default_rng(3).integers(WORDS, 512, depth).tolist()


# ---- Programs ----


def start(arguments, name, *command, **pipes):
    """A program of sid's llama.cpp; of its environment the plug-in is all that differs."""
    kept = ("GGML_BACKEND_PATH", "AMLA_LOG", "LLAMA_ARG_FLASH_ATTN")
    environment = {k: v for k, v in os.environ.items() if k not in kept}
    if name == "amla":
        environment.update(GGML_BACKEND_PATH=arguments.plugin, AMLA_LOG="1")
    run = os.path.join(arguments.hosts, "sid", "run")
    process = subprocess.Popen([run, *command], env=environment, **pipes)
    started.append(process)
    return process


started = []


@atexit.register
def kill_all():  # what has ended already is left alone
    for process in started:
        process.kill()


def terminate(number, frame):
    kill_all()  # first: threads wait for their answers
    sys.exit("terminated")


def cpu_seconds(pid):
    """Of all threads of a process, the ones that have ended too, by Linux's clock of that process:
    /proc counts ticks, of which a few tokens take none or two."""
    return time.clock_gettime(~pid << 3 | 2)


def check_where(name, stderr):
    done = sum(int(n) for n in re.findall(r"amla: (\d+) attention operations done", stderr))
    if (done > 0) != (name == "amla"):
        sys.exit(f"attention did not go where it should ({name}):\n{stderr[-2000:]}")


# ---- llama-server ----


class Server:
    def __init__(self, arguments, name, model, kind, threads):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self.log = os.path.join(arguments.work, f"{name}.log")
        options = [
            "-m", model, "-fa", "on", "-ngl", "0", "-np", str(SLOTS), "-c", str(SLOTS * CONTEXT),
            "-ctk", kind, "-ctv", kind, "-t", str(threads), "-tb", str(threads),
            "--port", str(port), "--slot-save-path", arguments.work, "--no-warmup",
            "--cache-ram", "0",
        ]  # fmt: skip
        with open(self.log, "w") as log:
            self.process = start(
                arguments, name, "llama-server", *options, stdout=subprocess.DEVNULL, stderr=log
            )
        self.wait()

    def wait(self):
        for _ in range(600):
            try:
                return urllib.request.urlopen(f"{self.url}/health", timeout=5).read()
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        sys.exit(f"llama-server does not start: {self.log}")

    def post(self, path, **body):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            return json.load(urllib.request.urlopen(request, timeout=600))
        except urllib.error.HTTPError as error:
            sys.exit(f"llama-server: {path}: {error.read().decode()}")

    def slot(self, slot, action, depth, kind):
        done = self.post(f"/slots/{slot}?action={action}", filename=f"{kind}-{depth}.bin")
        n = done["n_saved" if action == "save" else "n_restored"]
        if n != depth:
            sys.exit(f"{action} of {depth} tokens: {n}")

    def complete(self, prompt, slot, n):
        return self.post(
            "/completion", prompt=prompt, id_slot=slot, n_predict=n, temperature=0.0, n_probs=32,
            ignore_eos=True, cache_prompt=True, logit_bias=[[i, False] for i in range(WORDS)],
        )  # fmt: skip

    def step(self, depth, n):
        """n tokens in each slot at once: seconds, CPU seconds, and what came out."""
        cpu, began = cpu_seconds(self.process.pid), time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(SLOTS) as pool:
            answers = list(
                pool.map(lambda i: self.complete(prompt_of(depth) + [300 + i], i, n), range(SLOTS))
            )
        seconds = time.perf_counter() - began
        used = cpu_seconds(self.process.pid) - cpu
        if any(a["tokens_predicted"] != n or a["timings"]["prompt_n"] != 1 for a in answers):
            sys.exit(f"a slot did other work than {n} tokens: {answers[0]['timings']}")
        return seconds, used, [a["completion_probabilities"] for a in answers]

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        with open(self.log, errors="replace") as file:
            check_where(self.name, file.read())


def compare(answers):
    """The largest difference of a log probability, and how many tokens were compared. ggml rounds q
    to coarse types, and f16 sums: what is decided is what leads by more than four times the
    differences of that very step."""
    steps, n = [0.0], 0
    for ours, theirs in zip(answers["amla"], answers["ggml"], strict=True):
        for a, g in zip(ours, theirs, strict=True):
            of_a, of_g = (
                {t["id"]: t["logprob"] for t in step["top_logprobs"] if t["id"] >= WORDS}
                for step in (a, g)
            )
            off = max([abs(of_a[t] - of_g[t]) for t in of_g if t in of_a], default=np.inf)
            lead = np.diff(sorted(of_g.values())[-2:])[0]
            steps.append(off)
            if a["id"] != g["id"] and lead > 4 * off:
                sys.exit(f"token {a['id']}, not {g['id']}, which leads by {lead:.2f}")
            if a["id"] != g["id"]:
                break
            n += 1
    if n == 0:
        sys.exit("no token was compared")
    if np.median(steps) > 0.2:
        sys.exit(f"log probabilities differ: {np.median(steps):.2f} in the median")
    return max(steps), n


def keep_least(best, name, got):
    best[name] = [min(x) for x in zip(got, best.get(name, got), strict=True)]


def measure_server(arguments, heads, kind, threads, depths, keep):
    model = model_of(arguments, heads)
    servers = {name: Server(arguments, name, model, kind, threads) for name in NAMES}
    for depth in depths:
        for server, slot in itertools.product(servers.values(), range(SLOTS)):
            if depth > 0:
                server.slot(slot, "restore", depth, kind)
        flops = SLOTS * flops_of_key(heads, arguments.layers) * max(depth, 256)
        n = int(min(32, max(3, arguments.gflop * 1e9 / flops)))
        best, answers = {}, {}
        for _ in range(arguments.rounds):
            for name, server in servers.items():
                seconds, cpu, answers[name] = server.step(depth, n)
                keep_least(best, name, (seconds, cpu))
        worst, compared = compare(answers)
        per_token = {k: [1e3 * x / (n * SLOTS) for x in v] for k, v in best.items()}
        keep(depth, per_token, f"{compared} tokens, {worst:.0e}")
    for server in servers.values():
        server.stop()


# ---- llama-bench ----


def cpu_of_runs(lines):
    """Of llama-bench's runs, by its lines of progress and the CPU seconds at each: (line, seconds).
    A run ends with the next line that is llama-bench's. The plug-in's, of plans, come amid it."""
    used, began = [], None
    for line, now in lines:
        if not line.startswith(("llama-bench: ", "{")):
            continue
        if began is not None:
            used.append(now - began)
        began = now if ": generation run" in line else None
    return used


def run_bench(arguments, name, heads, kind, threads, depth, n):
    """Milliseconds and CPU milliseconds of a token, by llama-bench's clock and by the kernel's."""
    process = start(
        arguments, name, "llama-bench", "-m", model_of(arguments, heads), "-fa", "1", "-ngl", "0",
        "-p", "0", "-n", str(n), "-d", str(depth), "-r", str(arguments.rounds), "-t", str(threads),
        "-ctk", kind, "-ctv", kind, "-o", "jsonl", "--progress",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    lines = [(line, cpu_seconds(process.pid)) for line in process.stdout]  # it is not waited for
    text, used = "".join(line for line, _ in lines), cpu_of_runs(lines)
    results = [json.loads(line) for line, _ in lines if line.startswith("{")]
    if process.wait() != 0 or len(results) != 1 or len(used) != arguments.rounds:
        sys.exit(f"llama-bench: {len(used)} runs seen:\n{text[-2000:]}")
    check_where(name, text)
    return min(results[0]["samples_ns"]) * 1e-6 / n, 1e3 * min(used) / n


def measure_bench(arguments, heads, kind, threads, depths, keep):
    for depth in depths:
        flops = flops_of_key(heads, arguments.layers)
        if flops * depth * depth / 2 > arguments.fill * 1e9:
            continue
        n = int(min(64, max(8, arguments.gflop * 1e9 / (flops * max(depth, 256)))))
        best = {}
        for _ in range(arguments.rounds):
            for name in NAMES:
                got = run_bench(arguments, name, heads, kind, threads, depth, n)
                keep_least(best, name, got)
        keep(depth, best, "")


# ---- Models and caches ----


def model_of(arguments, heads):
    return os.path.join(arguments.work, f"{heads}-heads.gguf")


def prepare(arguments):
    import tiny_deepseek

    for heads in [1, *arguments.heads]:
        if not os.path.exists(model_of(arguments, heads)):
            tiny_deepseek.write(
                model_of(arguments, heads), heads, arguments.layers, context=2 * CONTEXT
            )
    for kind in arguments.types:
        file = os.path.join(arguments.work, f"{kind}-{max(arguments.depths)}.bin")
        if os.path.exists(file):
            continue
        server = Server(arguments, "amla", model_of(arguments, 1), kind, os.cpu_count())
        for depth in sorted(d for d in arguments.depths if d > 0):
            server.complete(prompt_of(depth), 0, 0)
            server.slot(0, "save", depth, kind)
        server.stop()


# ---- Lines ----


def machine():
    with open("/proc/cpuinfo") as file:
        model = re.search(r"model name\s*: (.*)", file.read())
    return model.group(1) if model else platform.machine()


def lines_file(arguments):
    return os.path.join(arguments.work, "lines.jsonl")


def read_lines(arguments):
    if not os.path.exists(lines_file(arguments)):
        return {}
    with open(lines_file(arguments)) as file:
        rows = [json.loads(line) for line in file]
    return {tuple(row["case"]): row for row in rows}  # the last one stays


def measure(arguments):
    known = {} if arguments.again else read_lines(arguments)
    end = time.monotonic() + arguments.seconds
    groups = itertools.product(
        arguments.programs, arguments.heads, arguments.types, arguments.threads
    )
    for program, heads, kind, threads in groups:
        depths = [d for d in arguments.depths if (program, heads, kind, threads, d) not in known]
        if not depths or time.monotonic() > end:
            continue

        def keep(depth, best, check, case=(program, heads, kind, threads)):
            row = {"case": [*case, depth], "ms": best, "check": check, "machine": machine(),
                   "load": os.getloadavg()[0], "layers": arguments.layers}  # fmt: skip
            with open(lines_file(arguments), "a") as file:
                print(json.dumps(row), file=file)
            print(text_of(row), flush=True)

        which = measure_server if program == "server" else measure_bench
        which(arguments, heads, kind, threads, depths, keep)


HEADER = (
    "                               ms a token              CPU ms a token               the same\n"
    "program heads K  threads depth     ggml    amla   ratio     ggml    amla  ratio  load  "
    "tokens, log prob. off by"
)


def ratio(row, of):
    return row["ms"]["ggml"][of] / row["ms"]["amla"][of]


def text_of(row):
    program, heads, kind, threads, depth = row["case"]
    (g, g_cpu), (a, a_cpu) = row["ms"]["ggml"], row["ms"]["amla"]
    columns = (
        f"{program:7} {heads:5} {kind:4} {threads:5} {depth:5}",
        f"{g:8.2f} {a:7.2f} {ratio(row, 0):6.2f}x {g_cpu:8.2f} {a_cpu:7.2f} {ratio(row, 1):5.2f}x",
        f"{row['load']:5.1f}  {row['check']}",
    )
    return " ".join(columns)


def print_table(arguments):
    order = ("server", "bench", "f16", "q8_0", "q4_0")
    rows = sorted(
        read_lines(arguments).values(),
        key=lambda r: [order.index(x) if isinstance(x, str) else x for x in r["case"]],
    )
    machines = ", ".join(sorted({row["machine"] for row in rows}))
    layers = " or ".join(sorted({str(row["layers"]) for row in rows}))
    print(f"# ggml/bench/bench_server.py: {machines}, {os.cpu_count()} cores, {layers} layers")
    print("# llama.cpp of Debian sid with and without the plug-in, by turns; least of a few rounds")
    print("# load: of one minute, after, its own included. CPU time does not count waiting")
    print(HEADER)
    for row in rows:
        print(text_of(row))
    slower = [row for row in rows if ratio(row, 1) < 0.95]
    print(f"{len(rows)} lines; by CPU time {len(slower)} are slower by 5 %")
    for row in slower:
        print(text_of(row))


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, kind, default in (
        ("programs", str, PROGRAMS),
        ("heads", int, (16, 64, 128)),
        ("types", str, ("f16", "q8_0", "q4_0")),
        ("depths", int, (0, 1024, 4096, 16384)),
        ("threads", int, (1, 2)),
    ):
        parser.add_argument(f"--{name}", nargs="+", type=kind, default=list(default))
    for name, kind, default, text in (
        ("layers", int, 2, "of the models"),
        ("rounds", int, 2, ""),
        ("gflop", float, 40.0, "of attention, about, in a round"),
        ("fill", float, 300.0, "GFLOP that llama-bench may spend on a depth"),
        ("seconds", float, 1e9, "no group of lines is begun after so many"),
        ("work", str, "build/bench-server", "folder of models, caches and lines"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    for name in ("prepare", "table", "again"):
        parser.add_argument(f"--{name}", action="store_true")
    a = parser.parse_args()
    a.work = os.path.join(os.path.abspath(a.work), f"{a.layers}-layers")
    a.hosts = os.path.abspath(os.environ["AMLA_GGML_HOSTS"])
    a.plugin = os.path.abspath(os.environ["AMLA_GGML_PLUGIN"])
    return a


def main():
    arguments = parse()
    signal.signal(signal.SIGTERM, terminate)
    os.makedirs(arguments.work, exist_ok=True)
    if arguments.prepare:
        return prepare(arguments)
    if arguments.table:
        return print_table(arguments)
    print(HEADER)
    measure(arguments)


if __name__ == "__main__":
    main()
