# SPDX-License-Identifier: Apache-2.0
"""Four processes over gloo, started once, that run functions of the tests: all of them at a time,
in groups of 1, 2, 3 or 4. They are forked from a server that has imported what is slow."""

import datetime
import multiprocessing
import traceback

N_RANKS = 4
SECONDS = 60  # after which a collective that hangs fails


class Ranks:
    def __init__(self, folder):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed", "amla", "transformers"])
        self.pipes, self.processes = [], []
        for rank in range(N_RANKS):
            ours, theirs = context.Pipe()
            arguments = rank, f"{folder}/store", theirs
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def close(self):
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(SECONDS)

    def _call(self, function, arguments):
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers = []
        for pipe in self.pipes:
            assert pipe.poll(3 * SECONDS), f"{function.__name__}{arguments}: a rank hangs"
            answers.append(pipe.recv())
        return answers

    def run(self, function, *arguments):
        """What function(groups, *arguments) returns on each rank. groups[n]: the rank's group of n,
        None where it is in none."""
        answers = self._call(function, arguments)
        for rank, (error, value) in enumerate(answers):
            assert error is None, f"rank {rank}: {error}\n{value}"
        return [value for _, value in answers]

    def errors(self, function, *arguments):
        """The exceptions that it raises: "ValueError: text" of each rank, None where there is
        none."""
        return [error for error, _ in self._call(function, arguments)]


def _serve(rank, store, pipe):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    timeout = datetime.timedelta(seconds=SECONDS)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=N_RANKS, timeout=timeout
    )
    groups = {}
    for members in ([0], [1], [2], [3], [0, 1], [2, 3], [0, 1, 2], [0, 1, 2, 3]):
        group = dist.new_group(members, timeout=timeout)
        groups.setdefault(len(members), None)
        if rank in members:
            groups[len(members)] = group
    while (call := pipe.recv()) is not None:
        function, arguments = call
        try:
            answer = None, function(groups, *arguments)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}", traceback.format_exc()
        pipe.send(answer)
    dist.destroy_process_group()
