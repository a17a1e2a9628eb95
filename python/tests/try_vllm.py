#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The plug-in in the real vLLM, which must be installed beside amla (docs/vllm.md): tiny random
models decode with and without it.

    try_vllm.py                    tokens and log-probabilities of every step, float32: DeepseekV2
                                   and V3; prefix caching, chunked prefill and pages of 53 tokens;
                                   the CPUs of the workers' threads, bound to one CPU and to two
    try_vllm.py --quick            DeepseekV2 alone and that way, against Hugging Face's model; the
                                   threads' CPUs, bound to one
    try_vllm.py --serve            the server on the loopback interface, 8 clients at once, whose
                                   prompts are texts; its graph is compiled, as is vLLM's default
    try_vllm.py --bench [HEADS...] [--threads N...]
                                   tokens per second at 128, 1024 and 4096 tokens of context, in
                                   turns; the backend's decode step against amla.decode

Everything is compared with vLLM without the plug-in (VLLM_PLUGINS=none), and that with Hugging
Face's model. Exit code 1 if a result differs, or with the plug-in a thread may use other CPUs or
more threads exist or work.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import os
import pathlib
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
import urllib.request

VOCABULARY = 512
STEPS = 24
CONTEXTS, ROUNDS = (128, 1024, 4096), 5  # of --bench
TOLERANCE = 1e-4  # of log-probabilities in float32
WATCHED_CONTEXT, WATCHED_STEPS = 2048, 32  # of decode steps whose threads are counted
# The least part of the workers' CPU time that a thread at work takes. OpenMP's second thread took
# 0.2; those of gloo and ZeroMQ, which only poll, at most 0.006.
AT_WORK = 0.05
# Without a compiled graph (enforce_eager) vLLM 0.32 rotates by a kernel of its own that takes
# [tokens, heads, 64] for rows of one head: it is wrong for models without YaRN. "none" names its
# PyTorch form, which compiled graphs have by themselves.
NATIVE = dict(compilation_config=dict(custom_ops=["none"]))
REUSE = dict(
    NATIVE,
    block_size=53,
    enable_prefix_caching=True,
    enable_chunked_prefill=True,
    max_num_batched_tokens=64,
    max_num_seqs=8,
)


def make_model(folder, kind="DeepseekV2", heads=16):
    """Random weights whose logits vary, and a tokenizer of words."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    import mla_classes

    torch.manual_seed(0)
    sizes = dict(
        mla_classes.TINY,
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        q_lora_rank=None if kind == "DeepseekV2" else 128,
        first_k_dense_replace=2,
        initializer_range=0.1,
        dtype="float32",
    )
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float()
    model.save_pretrained(folder)
    # A special token is found within words too, so that its name must not begin one.
    names = {word(i): i for i in range(VOCABULARY)}
    words = Tokenizer(models.WordLevel(names, unk_token=word(2)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token=word(2))
    fast.save_pretrained(folder)
    return str(folder)


def word(token):
    return "<unk>" if token == 2 else f"w{token}"


def prompts():
    """Of several lengths; the last one begins as the third does."""
    numbers = random.Random(1)
    found = [[numbers.randrange(3, VOCABULARY) for _ in range(n)] for n in (37, 9, 200, 64)]
    return [*found, found[2][:150] + [5, 6, 7]]


# ---- In a process with vLLM ----


def load(job, length=4096):
    """The model in this process."""
    from vllm import LLM

    options = dict(enforce_eager=True, dtype="float32", max_model_len=length)
    options |= dict(skip_tokenizer_init=True, max_logprobs=VOCABULARY, **job["options"])
    if job.get("cpus"):  # vLLM binds workers that are processes of their own, as the server's are
        options["distributed_executor_backend"] = "mp"
    return LLM(job["model"], **options)


def generate(job):
    """Tokens and all log-probabilities of every step, and the threads that made them."""
    from vllm import SamplingParams

    llm = load(job)
    more = dict(temperature=0, ignore_eos=True, detokenize=False)
    params = SamplingParams(max_tokens=STEPS, logprobs=VOCABULARY, **more)
    found = []
    for batch in (job["prompts"][:4], job["prompts"][4:]):
        for result in llm.generate([dict(prompt_token_ids=p) for p in batch], params):
            step = result.outputs[0]
            rows = [[row[i].logprob for i in range(VOCABULARY)] for row in step.logprobs]
            found.append(dict(tokens=list(step.token_ids), logprobs=rows))
            found[-1]["cached"] = result.num_cached_tokens or 0
    return dict(answers=found, threads=watch(llm.llm_engine) if job["cpus"] else [])


def watch(engine):
    """Each thread that the workers had in decode steps: the CPUs that it may use, and its part of
    the CPU time of those that are left."""
    fill(engine, WATCHED_CONTEXT, WATCHED_CONTEXT)
    workers = [child.pid for child in multiprocessing.active_children()]
    before = thread_seconds(*workers)
    with seen_threads(workers) as allowed:
        for _ in range(WATCHED_STEPS):
            engine.step()
        after = thread_seconds(*workers)
    spent = {thread: seconds - before.get(thread, 0) for thread, seconds in after.items()}
    total = sum(spent.values())
    parts = {thread: seconds / total for thread, seconds in spent.items()}
    return [dict(cpus=cpus, part=parts.get(thread, 0)) for thread, cpus in allowed.items()]


@contextlib.contextmanager
def seen_threads(processes):
    """The CPUs of every thread that these have in the meantime. OpenMP ends threads that its next
    team has no use for, so that what is there afterwards is not all that worked."""
    allowed, ended = {}, threading.Event()

    def look():
        while not ended.wait(0.0005):
            allowed.update(allowed_cpus(processes, but=allowed))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield allowed
    finally:
        ended.set()
        looking.join()
        allowed.update(allowed_cpus(processes))


def allowed_cpus(processes, but=()):
    """Of their threads that are there now, but for those."""
    found = {}
    for process in processes:
        for thread in set(os.listdir(f"/proc/{process}/task")).difference(but):
            with contextlib.suppress(ProcessLookupError):  # it has ended
                found[thread] = sorted(os.sched_getaffinity(int(thread)))
    return found


def reference(model, prompts, steps):
    """Greedy tokens and log-probabilities of Hugging Face's model, without a cache."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for prompt in prompts:
        tokens, rows = [], []
        for _ in range(steps):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + tokens])).logits[0, -1]
            tokens.append(int(logits.argmax()))
            rows.append(logits.log_softmax(-1).tolist())
        found.append(dict(tokens=tokens, logprobs=rows))
    return found


# ---- Bench, in a process with vLLM: one command a line of stdin, one answer of stdout ----


def answer_commands(job):
    llm = load(job, max(CONTEXTS) + 256)
    commands = dict(fill=fill, steps=time_steps, backend=time_backend)
    print(json.dumps(dict(answer="ready")), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(dict(answer=commands[name](llm.llm_engine, *arguments))), flush=True)


def fill(engine, context, prompt):
    """Ends the last request, begins one of `prompt` tokens and decodes it to `context`."""
    from vllm import SamplingParams

    engine.abort_request(getattr(engine, "_bench", []))
    numbers, engine._bench = random.Random(context), [f"context {context}"]
    params = SamplingParams(temperature=0, ignore_eos=True, detokenize=False)
    params.max_tokens = 256 + context - prompt
    ids = [numbers.randrange(3, VOCABULARY) for _ in range(prompt)]
    engine.add_request(engine._bench[0], dict(prompt_token_ids=ids), params)
    tokens = 0
    while tokens <= context - prompt:
        tokens += len(engine.step())


def time_steps(engine, n):
    """Seconds and CPU seconds of each of n decode steps, this process's threads, those of them that
    took a tenth of the time, and its OpenMP runtimes."""
    before, start = thread_seconds("self"), time.perf_counter()
    times = []
    for _ in range(n):
        wall, cpu = time.perf_counter(), time.process_time()
        engine.step()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    after, least = thread_seconds("self"), (time.perf_counter() - start) / 10
    busy = sum(seconds - before.get(thread, 0) > least for thread, seconds in after.items())
    maps = pathlib.Path("/proc/self/maps").read_text().split()
    runtimes = {pathlib.Path(x).name for x in maps if "/libgomp" in x or "/libiomp" in x}
    return dict(times=times, threads=len(after), busy=busy, runtimes=sorted(runtimes))


def thread_seconds(*processes):
    """CPU seconds of each of their threads so far."""
    found = {}
    for process in processes:
        for task in pathlib.Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                found[task.name] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def time_backend(_engine, heads, context, seconds):
    """forward_mqa and amla.decode on the same tensors as vLLM passes them, in turns: seconds."""
    import torch

    from amla import _vllm_mla, decode

    torch.manual_seed(0)
    impl = object.__new__(_vllm_mla.AmlaMLAImpl)
    vars(impl).update(kv_lora_rank=512, qk_rope_head_dim=64, scale=192**-0.5)
    cache, pages = torch.randn(-(-context // 16), 16, 576), -(-context // 16)
    table, lengths = torch.randperm(pages).int()[None], torch.tensor([context], dtype=torch.int32)
    step = types.SimpleNamespace(block_table=table, seq_lens=lengths)
    q = torch.randn(1, heads, 512), torch.randn(1, heads, 192)[..., 128:]
    whole, options = torch.cat(q, -1)[:, None], dict(scale=impl.scale, causal=True)
    calls = (
        lambda: impl.forward_mqa(q, cache, types.SimpleNamespace(decode=step), None),
        lambda: decode(whole, cache, table, lengths, **options),
    )
    assert torch.allclose(calls[0]()[0], calls[1]()[0][:, 0], atol=1e-4)
    times, end = ([], []), time.perf_counter() + seconds
    while time.perf_counter() < end:
        for call, found in zip(calls, times):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return times


# ---- The parent ----


def environment(plugin, threads=2, cpus=()):
    """cpus: that vLLM binds its workers to, a thread to each."""
    env = dict(os.environ, VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", AMLA_LOG="1")
    env |= dict(VLLM_CPU_KVCACHE_SPACE="1", OMP_NUM_THREADS=str(threads))
    env["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cpus)) or "nobind"
    env.pop("VLLM_PLUGINS", None)
    return env if plugin else env | dict(VLLM_PLUGINS="none")


def in_vllm(plugin, cpus=(), **job):
    """What `generate` returns in a process of its own, by name, and what AMLA `said` there."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "job.json")
        path.write_text(json.dumps(dict(job, cpus=cpus)))
        done = subprocess.run(
            [sys.executable, __file__, "--job", str(path)],
            env=environment(plugin, cpus=cpus) | dict(VLLM_ENABLE_V1_MULTIPROCESSING="0"),
            capture_output=True,
            text=True,
            timeout=600,
        )
        if done.returncode:
            sys.exit(f"vLLM failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        lines = [line.split("amla: ")[1] for line in done.stderr.splitlines() if "amla: " in line]
        return types.SimpleNamespace(**json.loads(path.read_text()), said=lines)


def compare(name, got, want):
    """Up to and with the first step where the tokens part: only a tie may part them, as that step's
    log-probabilities are compared too."""
    worst, same = 0.0, 0
    for x, y in zip(got, want):
        pairs = list(zip(x["tokens"], y["tokens"]))
        n = next((i for i, (s, t) in enumerate(pairs) if s != t), len(pairs))
        steps = zip(x["logprobs"][: n + 1], y["logprobs"][: n + 1])
        worst = max([worst, *(abs(p - q) for a, b in steps for p, q in zip(a, b))])
        same += n
    total = sum(len(y["tokens"]) for y in want)
    varied = max(len(set(y["tokens"])) for y in want)
    print(f"{name}: {same} of {total} tokens equal, log-probabilities apart by {worst:.1e}")
    if worst > TOLERANCE or same < 0.9 * total or varied < 8:
        sys.exit(f"{name}: not the same, or {varied} different tokens in {STEPS} steps")


def compare_threads(cpus, got, own):
    """Of the workers' threads with the plug-in and without, where vLLM was told these CPUs."""
    allowed = [{tuple(t["cpus"]) for t in run} for run in (got, own)]
    at_work = [sum(t["part"] >= AT_WORK for t in run) for run in (got, own)]
    print(
        f"binding: CPUs {','.join(map(str, cpus))}: {at_work[0]} of {len(got)} threads at work "
        f"with the plug-in, {at_work[1]} of {len(own)} without",
        flush=True,
    )
    if allowed[1] != {(cpu,) for cpu in cpus}:
        sys.exit(f"binding: vLLM's own threads may use {sorted(allowed[1])}, not {cpus}")
    if not allowed[0] <= allowed[1]:
        sys.exit(f"binding: with the plug-in threads may use {sorted(allowed[0])}, not {cpus}")
    if len(got) > len(own) or at_work[0] > at_work[1]:
        sys.exit("binding: more threads with the plug-in")


def decoded(said):
    """Was the plug-in there, and did it make a plan?"""
    there = "decodes for vLLM's backend CPU_MLA" in said
    return there and any(line.startswith("plan ") for line in said)


def first_cpus(n):
    """Of those that this process may use."""
    return sorted(os.sched_getaffinity(0))[:n]


def try_results(folder):
    for kind, cpus in (("DeepseekV2", first_cpus(1)), ("DeepseekV3", first_cpus(2))):
        model = make_model(folder / kind, kind)
        job = dict(model=model, prompts=prompts())
        own = in_vllm(False, cpus, **job, options=NATIVE)
        assert not own.said, own.said
        want = reference(model, job["prompts"], STEPS)
        compare(f"{kind}, vLLM and Hugging Face", own.answers, want)
        got = in_vllm(True, cpus, **job, options=NATIVE)
        assert decoded(got.said), got.said
        compare(kind, got.answers, own.answers)
        compare_threads(cpus, got.threads, own.threads)
        if kind == "DeepseekV2":
            reused = in_vllm(True, **job, options=REUSE)
            said, answers = reused.said, reused.answers
            assert any("block_size=53, enable_prefix_caching=True" in line for line in said), said
            compare(f"{kind}, chunked prefill and prefix caching", answers, own.answers)
            if not answers[4]["cached"] >= 106:
                sys.exit(f"no tokens came from the prefix cache: {answers[4]['cached']}")


def try_quickly(folder):
    job = dict(model=make_model(folder / "quick"), prompts=prompts())
    cpus = first_cpus(1)
    got = in_vllm(True, cpus, **job, options=REUSE)
    assert decoded(got.said), got.said
    want = reference(job["model"], job["prompts"], STEPS)
    compare("DeepseekV2, chunked prefill and prefix caching", got.answers, want)
    own = in_vllm(False, cpus, **job, options=NATIVE)
    compare_threads(cpus, got.threads, own.threads)


class Bench:
    """A process that answers commands."""

    def __init__(self, plugin, threads, model):
        env = environment(plugin, threads) | dict(VLLM_ENABLE_V1_MULTIPROCESSING="0")
        job = json.dumps(dict(model=model, options=NATIVE))
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--answer", job],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self):
        for line in self.process.stdout:
            if line.startswith('{"answer": '):
                return json.loads(line)["answer"]
        sys.exit("vLLM ended")

    def ask(self, *command):
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return self.answer()

    def end(self):
        self.process.stdin.close()
        self.process.wait(60)


def try_bench(folder, heads, threads):
    for h in heads:
        model = make_model(folder / f"heads{h}", heads=h)
        for n in threads:
            both = [Bench(plugin, n, model) for plugin in (False, True)]
            try:
                for bench in both:
                    bench.answer()
                print(f"\n{h} heads, {n} threads, float32, one sequence; steps in turns")
                for context in CONTEXTS:
                    # vLLM's prefill has the scores of a prompt thrice: in half of what is there.
                    most = int((available_gigabytes() / 2 * 1e9 / (12 * h)) ** 0.5)
                    bench_steps(both, context, min(context, most))
                bench_backend(both[1], h)  # last: a busy system makes who worked so long wait
            finally:
                for bench in both:
                    bench.end()


def available_gigabytes():
    text = pathlib.Path("/proc/meminfo").read_text()
    return int(re.search(r"MemAvailable: *(\d+)", text)[1]) / 1e6


def bench_backend(bench, heads):
    ours, bare = (sorted(times) for times in bench.ask("backend", heads, 1024, 4))
    middle = len(bare) // 2
    print(
        f"the backend's step at 1024 tokens over amla.decode: {ours[0] * 1e6:.0f} us against "
        f"{bare[0] * 1e6:.0f} ({ours[0] / bare[0]:.3f}), medians {ours[middle] * 1e6:.0f} and "
        f"{bare[middle] * 1e6:.0f} ({ours[middle] / bare[middle]:.3f}), {len(bare)} calls",
        flush=True,
    )


def bench_steps(both, context, prompt):
    """ROUNDS times 8 steps of each."""
    for bench in both:
        bench.ask("fill", context, prompt)
        bench.ask("steps", 4)
    rounds = [[bench.ask("steps", 8) for bench in both] for _ in range(ROUNDS)]
    found = []
    for mine in zip(*rounds):
        wall, cpu = zip(*(t for round in mine for t in round["times"]))
        found.append((statistics.median(wall), min(wall), statistics.median(cpu)))
        median, best, of_cpu = found[-1]
        print(
            f"{context:6d} tokens {'with' if len(found) == 2 else 'without':8}"
            f"{1 / median:7.1f} tokens/s, best {1 / best:6.1f}, {of_cpu * 1e3:6.2f} ms of CPU, "
            f"{max(r['busy'] for r in mine)} of {mine[-1]['threads']} threads at work, "
            f"{' '.join(mine[-1]['runtimes'])}",
            flush=True,
        )
    ratios = " ".join(f"{without / ours:.2f}" for without, ours in zip(*found))
    print(f"{context:6d} tokens times as fast, by median, best and CPU time: {ratios}", flush=True)


# ---- The server ----


def ask(port, prompt):
    """The step tokens of one answer with all log-probabilities, and the prompt's tokens."""
    body = dict(model="m", prompt=prompt, max_tokens=STEPS, temperature=0, ignore_eos=True)
    body |= dict(logprobs=VOCABULARY, return_tokens_as_token_ids=True, return_token_ids=True)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        found = json.load(answer)["choices"][0]
    steps = found["logprobs"]["top_logprobs"]
    rows = [[step[f"token_id:{i}"] for i in range(VOCABULARY)] for step in steps]
    keys = ("text", "prompt_token_ids")
    return dict(tokens=found["token_ids"], logprobs=rows, **{key: found[key] for key in keys})


def serve(model, plugin, texts):
    """The answers to all texts at once."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", "1024", "--dtype", "float32", "--max-logprobs", str(VOCABULARY)]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, env=environment(plugin), stdout=log, stderr=log)
        try:
            wait_for(server, port, log)
            with concurrent.futures.ThreadPoolExecutor(len(texts)) as clients:
                answers = list(clients.map(functools.partial(ask, port), texts))
        finally:
            server.terminate()
            server.wait(60)
        log.seek(0)
        return answers, [line for line in log if "amla: " in line]


def wait_for(server, port, log):
    for _ in range(500):
        if server.poll() is not None:
            log.seek(0)
            sys.exit(f"the server ended:\n{log.read()[-3000:]}")
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
        except OSError:
            time.sleep(1)
    sys.exit("the server did not come up within 500 s")


def try_server(folder):
    model = make_model(folder / "served")
    ids = [prompts()[2][: 9 + 24 * i] for i in range(8)]  # each begins as the others do
    texts = [" ".join(map(word, prompt)) for prompt in ids]
    own, said = serve(model, False, texts)
    assert not said, said
    got, said = serve(model, True, texts)
    assert any("decodes for vLLM's backend CPU_MLA" in line for line in said), said
    for answer, prompt in zip(own + got, ids * 2):
        if answer["prompt_token_ids"] != prompt:
            sys.exit(f"the server read {answer['prompt_token_ids']}, not {prompt}")
        if answer["text"].split() != [word(t) for t in answer["tokens"]]:
            sys.exit(f"{answer['text']} are not the words of {answer['tokens']}")
    offline = in_vllm(False, model=model, prompts=ids, options=NATIVE).answers
    compare("server without the plug-in, vLLM offline", own, offline)
    compare("server with the plug-in, vLLM offline", got, offline)
    compare("server with and without the plug-in", got, own)
    compare("server with the plug-in, Hugging Face", got, reference(model, ids, STEPS))


def main():
    parser = argparse.ArgumentParser(description="The plug-in in the real vLLM.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--bench", nargs="*", type=int, metavar="HEADS")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.answer:
        return answer_commands(json.loads(a.answer))
    if a.job:
        path = pathlib.Path(a.job)
        path.write_text(json.dumps(generate(json.loads(path.read_text()))))
        return
    with tempfile.TemporaryDirectory() as folder:
        if a.serve:
            try_server(pathlib.Path(folder))
        elif a.quick:
            try_quickly(pathlib.Path(folder))
        elif a.bench is not None:
            try_bench(pathlib.Path(folder), a.bench or [16, 128], a.threads)
        else:
            try_results(pathlib.Path(folder))


if __name__ == "__main__":
    main()
