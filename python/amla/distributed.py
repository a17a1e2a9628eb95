# SPDX-License-Identifier: Apache-2.0
"""One decode step over the ranks of a torch.distributed group, each with the latent rows of its own
tokens:

    cp = DecodeContextParallel(group)
    owners = cp.even_owners(length)
    out, lse = cp.decode(q, kv[:, cp.tokens(length, owners)], None, [length], owners=owners, ...)

The bits are those of one process, `amla.decode(..., split_tokens=cp.split_tokens)`, on any number
of ranks: ranks exchange partial results and finish the very tree that one process walks. Messages
are CPU tensors, or CUDA tensors where the group's backend is NCCL, which has not been tried.
docs/distributed.md has the arithmetic.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from . import _library as c
from . import _shards
from ._arrays import refuse_gradients
from ._plan import find_call, give_scratch, take_scratch
from ._problem import Arguments, options_of
from ._scopes import FIRST_NAMES, flat
from ._shards import Heads

__all__ = ["DecodeContextParallel", "Work"]

SPLIT_TOKENS = 768  # a multiple of every key tile: 64, 96 and 128 tokens

_EXCEPTIONS = (ValueError, TypeError, NotImplementedError, MemoryError, RuntimeError)
# What ranks must agree on. Of the plan's fields:
_FIELDS = (
    *("b", "s_q", "h_q", "d_qk", "d_v", "q_type", "kv_type", "out_type", "causal", "scale"),
    *("topk", "index_kind", "topk_length_per_query", "window", "kv_scale", "kv_rope_scale"),
    *("rescale", "lse_base", "lse_sink", "kv_round"),
)
# Of what it chose, of the arrays, and of how it is asked:
_CHOSEN = ("isa", "tile_tokens", "split_tokens", "p_type", "p_form", "q_form", "key_type")
_ARRAYS = ("q", "q_rope", "seqlens", "visible", "indices", "topk_length", "q_indptr", "sinks")
_AGREED = (*_FIELDS, *_CHOSEN, *_ARRAYS, "owners", "max_logits", "gather_heads", "amla's version")


class Work(NamedTuple):
    """Of this rank, in its last decode."""

    row_keys: int  # keys of its tokens, summed over rows
    sent_bytes: int  # of records, to other ranks
    entries: int  # records of a row, in all runs


class DecodeContextParallel:
    """Decodes over a group of ranks. Every call is collective: all ranks make it, with the same
    queries, lengths and options, from one thread at a time.

    group         None: the default group
    split_tokens  tokens of a split: a multiple of the key tile (`Plan.describe`; 64, 96 or 128), so
                  768 suits every machine. Splits are what ranks own
    gather_heads  True: every rank gets the results of all heads. False: of h_q / ranks of them,
                  `heads(h_q)`, and these are what `decode` returns
    """

    def __init__(
        self, group: Any = None, *, split_tokens: int = SPLIT_TOKENS, gather_heads: bool = True
    ) -> None:
        self.group, self.gather_heads = group, c.checked_flag("gather_heads", gather_heads)
        self.split_tokens = c.checked_int("split_tokens", split_tokens)
        if self.split_tokens < 1:
            raise ValueError(f"split_tokens={split_tokens}: must be >= 1")
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        if not 0 <= self.rank < self.ranks <= c.MAX_SHARDS:
            raise ValueError(f"group: rank {self.rank} of {self.ranks}: must be a rank of it")
        on_gpu = dist.get_backend(group) == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else None
        self.work = Work(0, 0, 0)

    def even_owners(self, length: int) -> torch.Tensor:
        """Owners [n_splits] of a sequence's splits where each rank has one run of tokens, which
        makes the fewest records."""
        n = int(_shards.split_counts(length, self.split_tokens))
        return torch.from_numpy(_shards.even_owners(n, self.ranks))

    def tokens(self, length: int, owners: Any = None) -> torch.Tensor:
        """Positions of this rank's tokens in a sequence of that length; owners [n_splits] as in
        `decode`."""
        lengths = np.array([length], np.int32)
        all_owners = _shards.checked_owners(owners, lengths, self.split_tokens, self.ranks)
        own = _shards.tokens_of(all_owners[0], length, self.split_tokens, self.rank)
        return torch.from_numpy(own)

    def heads(self, h_q: int) -> Heads:
        """The heads [begin, end) that this rank finishes."""
        return _shards.heads_of(h_q, self.rank, self.ranks)

    def decode(
        self,
        q: torch.Tensor,
        local_kv: torch.Tensor,
        block_table: Any = None,
        seqlens: Any = None,
        *,
        owners: Any = None,
        scale: float,
        sinks: Any = None,
        mask: Any = None,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
        max_logits: Any = False,
        **more: Any,
    ) -> tuple[Any, ...]:
        """`amla.decode` over the caches of all ranks. What is not said here is as there.

        Arguments
            q            [b, s_q, h_q, d_qk], the same on all ranks
            local_kv     without a block table [b, room, d_qk]: row i of a sequence is the i-th
                         token of this rank's splits, `tokens(length, owners)`; room for more is
                         not read. Rows that follow one another at one stride. With a block table
                         this rank's pages [n_pages, page_size, d_qk]
            block_table  [b, max_pages] of whole sequences; entries of others' pages may hold
                         anything
            seqlens      [b], the lengths of whole sequences
            owners       [n_splits] or [b, n_splits]: the rank that has tokens
                         [i * split_tokens, (i + 1) * split_tokens) of a sequence. Entries behind
                         its last split are not read. None: rank i % ranks has split i, which keeps
                         ranks level while sequences grow, and makes a record for each split
            indices      with index_kind="position", ascending within splits
            mask, kv_rope, kv_indptr, kv_indices  the first [b, s_q, n tokens or more]; the others
                         with block_table or kv_indptr alone

        Not here: `extra`, lists of slots, backends other than cpu, CUDA tensors.

        Raises on all ranks, in the words of the first rank that refuses ("rank 2: ..."), what
        `amla.decode` raises there; ValueError names what a rank says otherwise than rank 0. Then
        nothing is written. A rank that dies, or does not call, ends the others' wait as the group
        does.
        """
        step, error = None, None
        arrays = (sinks, mask, out, lse, max_logits)
        try:
            step = _Step(self, q, local_kv, block_table, seqlens, owners, scale, arrays, more)
        except Exception as caught:
            error = caught
        verdicts = self._agree(step, error)
        assert step is not None
        self.work = step.work
        return step.finish(self, verdicts)

    def __deepcopy__(self, memo: Any) -> DecodeContextParallel:
        return self  # as the group is

    def __reduce__(self) -> Any:
        raise TypeError("DecodeContextParallel: cannot be pickled, as it is a rank of a group")

    # ---- Messages ----

    def exchange(
        self,
        parts: torch.Tensor,
        sizes: list[int],
        received: torch.Tensor,
        received_sizes: list[int],
    ) -> torch.Tensor:
        """Elements of `parts`, `sizes` of them to each rank; what came lies in `received`."""
        to = received[: sum(received_sizes)]
        at = to if self.device is None else to.to(self.device)
        dist.all_to_all_single(at, self._message(parts), received_sizes, sizes, group=self.group)
        return to if at is to else to.copy_(at)

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        """[ranks, ...] of all ranks' tensors of one shape and type, as bytes."""
        flat = mine.contiguous().view(-1).view(torch.uint8)
        bytes_ = self._message(flat)
        every = bytes_.new_empty(self.ranks * flat.numel())
        if flat.numel():
            dist.all_gather(list(every.view(self.ranks, -1).unbind()), bytes_, group=self.group)
        return every.cpu().view(mine.dtype).view(self.ranks, *mine.shape)

    def _message(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.device is None else x.to(self.device)

    def _agree(self, step: _Step | None, error: Exception | None) -> Any:
        """All ranks' verdicts, or the first refusal or difference as an exception on all."""
        verdict = np.zeros(1, _verdict_type(self.ranks))
        if error is not None:
            kinds = [i for i, kind in enumerate(_EXCEPTIONS) if isinstance(error, kind)]
            text = str(error) if kinds else f"{type(error).__name__}: {error}"
            verdict["refusal"] = 1 + (kinds or [len(_EXCEPTIONS) - 1])[0]
            verdict["text"] = text.encode()[:_TEXT_BYTES]
        else:
            assert step is not None
            verdict["said"] = step.said
            verdict["entries"][0, : len(step.entries)] = step.entries
        told = self.gather(torch.from_numpy(verdict.view(np.uint8)))
        verdicts = told.numpy().reshape(-1).view(verdict.dtype)
        for rank in np.flatnonzero(verdicts["refusal"])[:1]:
            kind = _EXCEPTIONS[verdicts["refusal"][rank] - 1]
            words = bytes(verdicts["text"][rank]).decode(errors="ignore")
            raise kind(f"rank {rank}: {words}") from error
        for rank, name in np.argwhere(verdicts["said"] != verdicts["said"][0])[:1]:
            raise ValueError(f"rank {rank}: {_AGREED[name]}: must be that of rank 0")
        return verdicts


# ---- What a rank says ----

_TEXT_BYTES = 240


def _verdict_type(ranks: int) -> np.dtype[Any]:
    """refusal: 0, or 1 + the number of an exception. entries: records of a row in each of the
    rank's slots."""
    fields = [("refusal", "u1"), ("text", f"S{_TEXT_BYTES}"), ("said", "u4", len(_AGREED))]
    return np.dtype([*fields, ("entries", "u1", c.MAX_SHARDS // ranks)])


def _sum(x: Any) -> int:
    """A check sum of an array's bytes, or of a value."""
    if isinstance(x, torch.Tensor):
        x = x.detach().contiguous().view(-1).view(torch.uint8).numpy()
    if isinstance(x, np.ndarray):
        return zlib.crc32(x.tobytes())
    return zlib.crc32(repr(x).encode())


# ---- One decode on one rank ----


def _lengths(seqlens: Any) -> Any:
    if seqlens is None:
        raise ValueError("seqlens=None: must be the lengths of whole sequences")
    lengths = np.asarray(seqlens)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" and lengths.size:
        raise ValueError(f"seqlens: {lengths.dtype} {list(lengths.shape)}: must be integers [b]")
    for i in np.flatnonzero((lengths < 0) | (lengths > c.INT32_MAX))[:1]:
        raise ValueError(f"seqlens[{i}]={lengths[i]}: must be in [0, {c.INT32_MAX}]")
    return lengths.astype(np.int32)


def _refuse(
    cp: DecodeContextParallel, q: Any, local_kv: Any, mask: Any, more: dict[str, Any]
) -> None:
    for name, x in (("q", q), ("local_kv", local_kv)):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name}: {type(x).__name__}: must be a torch tensor")
        if x.device.type != "cpu":
            raise NotImplementedError(f"{name}: device {x.device}: must be on the CPU")
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise TypeError(f"mask: {type(mask).__name__}: must be a torch tensor")
    if more.pop("extra", None) is not None:
        raise NotImplementedError("extra: a second cache is not shared out over ranks here")
    if "split_tokens" in more:
        raise ValueError(f"split_tokens: must not be given, it is the group's, {cp.split_tokens}")


def _refuse_paged(more: dict[str, Any]) -> None:
    if more.get("kv_rope") is not None:
        raise ValueError("kv_rope: must be None without block_table")
    if more.get("kv_type") == "fp8_584":
        raise ValueError("kv_type=fp8_584: must have a block_table, its pages end with scales")


def _as_pages(
    cp: DecodeContextParallel, local_kv: torch.Tensor, owners: Any, lengths: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contiguous rows as pages that begin at any row, and their block table."""
    b = len(lengths)
    if local_kv.dim() != 3 or local_kv.shape[0] != b:
        shape = list(local_kv.shape)
        raise ValueError(
            f"local_kv: shape {shape}: must be [b={b}, room, d_qk] without block_table"
        )
    _, room, width = local_kv.shape
    stride = local_kv.stride(1) if room > 1 else max(width, 1)
    apart = local_kv.stride(0) if b > 1 and room else room * stride
    if stride < width or apart % stride or apart < room * stride or local_kv.stride(2) != 1:
        raise ValueError(f"local_kv: strides {list(local_kv.stride())}: must be whole rows apart")
    apart //= stride
    page, table = _shards.pages_of(owners, lengths, cp.split_tokens, cp.rank, room, apart)
    rows = (b - 1) * apart + room if b and room else 0
    pages = (max(0, rows - page + 1), page, width)
    return local_kv.as_strided(pages, (stride, stride, 1)), torch.from_numpy(table)


def _widened(mask: torch.Tensor, lengths: Any, columns: int) -> torch.Tensor:
    """A mask [b, s_q, tokens] as wide as a block table's pages."""
    longest = int(lengths.max(initial=0))
    if mask.dim() != 3 or mask.shape[2] < longest:
        shape = list(mask.shape)
        raise ValueError(f"mask: shape {shape}: must be [b, s_q, tokens >= {longest}]")
    mask = mask[..., :columns]
    return torch.nn.functional.pad(mask, (0, columns - mask.shape[2]))


class _Step:
    """Everything of a decode that may be refused, this rank's records among it."""

    def __init__(
        self,
        cp: DecodeContextParallel,
        q: Any,
        local_kv: Any,
        block_table: Any,
        seqlens: Any,
        owners: Any,
        scale: float,
        arrays: tuple[Any, ...],
        more: dict[str, Any],
    ) -> None:
        sinks, mask, out, lse, max_logits = arrays
        _refuse(cp, q, local_kv, mask, more)
        lengths = _lengths(seqlens)
        owners = _shards.checked_owners(owners, lengths, cp.split_tokens, cp.ranks)
        self.slots = _shards.slots_of(owners, lengths, cp.split_tokens, cp.ranks)
        if block_table is None and more.get("kv_indptr") is None:
            _refuse_paged(more)
            local_kv, block_table = _as_pages(cp, local_kv, owners, lengths)
            if mask is not None:
                mask = _widened(mask, lengths, block_table.shape[1] * local_kv.shape[1])
        named = flat(None, **{n: more.pop(n) for n in FIRST_NAMES if n in more})
        refuse_gradients(q=q, local_kv=local_kv, sinks=sinks, mask=mask, out=out, lse=lse, **named)
        a = Arguments(q, local_kv, block_table, lengths, sinks, mask, out, lse, max_logits, named)
        self.call = find_call(a, options_of(scale, split_tokens=cp.split_tokens, **more))
        self.results = self.call.results(a)
        for name, x in zip(("out", "lse", "max_logits"), self.results):
            if x is not None and not isinstance(x, torch.Tensor):
                raise TypeError(f"{name}: {type(x).__name__}: must be a torch tensor")
        self.keep = a  # the memory that tensors points to
        self.tensors = self.call.new_tensors()
        a.fill(self.tensors, *self.results)
        _shards.check_outputs(self.call, self.tensors)
        self.said = self._say(cp, a, owners)
        self._compute(cp)

    def _say(self, cp: DecodeContextParallel, a: Arguments, owners: Any) -> list[int]:
        fields, info = self.call.plan.fields, _shards.query_plan(self.call.plan)
        if fields["split_tokens"] != info.split_tokens:
            raise ValueError(
                f"split_tokens={cp.split_tokens}: must be a multiple of {info.tile_tokens}, the "
                "key tile"
            )
        given = {name: getattr(a, name, None) for name in ("q", "seqlens", "sinks")}
        values = [fields[n] for n in _FIELDS] + [getattr(info, n) for n in _CHOSEN]
        values += [given.get(n, a.more.get(n)) for n in _ARRAYS]
        values += [owners, a.max_logits is not None, cp.gather_heads, c.version]
        return [_sum(x) for x in values]

    def _compute(self, cp: DecodeContextParallel) -> None:
        """This rank's records, as they are sent, and room for those of others."""
        mine = range(cp.rank, len(self.slots.begin), cp.ranks)
        shards = [
            _shards.run_shard(self.call, self.tensors, self.slots.begin[i], self.slots.end[i])
            for i in mine
        ]
        h_q = self.call.plan.fields["h_q"]
        self.queries, self.record_floats = len(shards[0].floats), shards[0].record_floats
        self.entries = [x.n_entries for x in shards]
        heads = [_shards.heads_of(h_q, rank, cp.ranks) for rank in range(cp.ranks)]
        parts = [torch.from_numpy(x.floats[:, a:b].reshape(-1)) for a, b in heads for x in shards]
        self.parts = torch.cat(parts)
        widths = sum(self.entries) * self.record_floats * self.queries
        self.sizes = [(b - a) * widths for a, b in heads]
        sent = 4 * (sum(self.sizes) - self.sizes[cp.rank])
        self.work = Work(sum(x.n_row_keys for x in shards), sent, sum(self.entries))
        most = sum(_shards.most_entries(int(n)) for n in self.slots.splits)
        a, b = heads[cp.rank]
        self.received = torch.empty((b - a) * self.queries * most * self.record_floats)
        self.scratch = take_scratch(c.lib.amla_shard_scratch_bytes(self.call.handle))

    def finish(self, cp: DecodeContextParallel, verdicts: Any) -> tuple[Any, ...]:
        """Exchanges records, merges those of this rank's heads and returns the results."""
        h_q = self.call.plan.fields["h_q"]
        heads = cp.heads(h_q)
        n_slots = len(self.slots.begin)
        entries = verdicts["entries"][:, : n_slots // cp.ranks].astype(int)
        of_entry = (heads.end - heads.begin) * self.queries * self.record_floats
        came = [of_entry * int(n) for n in entries.sum(1)]
        floats = cp.exchange(self.parts, self.sizes, self.received, came).numpy()
        ends = np.cumsum(entries.reshape(-1)) * of_entry
        pieces = np.split(floats, ends[:-1])  # of rank 0's slots, then rank 1's
        per_rank = n_slots // cp.ranks
        records = [
            (
                int(entries[i % cp.ranks, i // cp.ranks]),
                pieces[i % cp.ranks * per_rank + i // cp.ranks],
            )
            for i in range(n_slots)
        ]
        if of_entry:
            _shards.finish(self.call, self.tensors, self.slots, heads, records, self.scratch)
        give_scratch(self.scratch)
        found = [(x, axis) for x, axis in zip(self.results, (-2, 1, 1)) if x is not None]
        if not cp.gather_heads:
            return tuple(x.narrow(axis, heads.begin, heads.end - heads.begin) for x, axis in found)
        for x, axis in found:
            _gather_heads(cp, x, axis)
        return tuple(x for x, _ in found)


def _gather_heads(cp: DecodeContextParallel, x: torch.Tensor, axis: int) -> None:
    """Other ranks' heads into x, which has this rank's."""
    all_heads = [_shards.heads_of(x.shape[axis], rank, cp.ranks) for rank in range(cp.ranks)]
    shape = list(x.shape)
    shape[axis] = max(end - begin for begin, end in all_heads)
    mine = x.new_zeros(shape)
    begin, end = all_heads[cp.rank]
    mine.narrow(axis, 0, end - begin).copy_(x.narrow(axis, begin, end - begin))
    every = cp.gather(mine)
    for rank, (begin, end) in enumerate(all_heads):
        if rank != cp.rank:
            x.narrow(axis, begin, end - begin).copy_(every[rank].narrow(axis, 0, end - begin))
