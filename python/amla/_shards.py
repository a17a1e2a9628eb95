# SPDX-License-Identifier: Apache-2.0
"""Shards of a call (include/amla/amla.h), for any transport: whose splits are whose, where their
tokens lie on a rank, and the records that a rank leaves and finishes. Nothing here communicates.

A sequence's tokens form splits of `split_tokens`, whatever its length. An *owner* is the rank that
has a split. Adjacent splits of one owner are a run, and a shard is a run of each sequence. Runs
are put into slots: slot number modulo ranks is the owner, and slots are in the order of tokens.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _library as c
from ._log import count
from ._plan import Call, Plan, give_scratch, take_scratch

Ints = np.ndarray[Any, np.dtype[np.int32]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

MAX_PAGE = 64  # tokens of a page of contiguous rows


# ---- Owners ----


def split_counts(lengths: Any, split_tokens: int) -> Any:
    """Splits of sequences of these lengths."""
    return -(-np.asarray(lengths, np.int64) // split_tokens)


def even_owners(n_splits: int, ranks: int) -> Ints:
    """[n_splits] where each rank has one run, as long as the others' but for one split."""
    ends: Any = n_splits * np.arange(ranks + 1, dtype=np.int64) // ranks
    return np.repeat(np.arange(ranks, dtype=np.int32), np.diff(ends))


def checked_owners(owners: Any, lengths: Ints, split_tokens: int, ranks: int) -> Ints:
    """[b, n_splits] with an owner of every split of every sequence; None: splits are dealt in
    turn."""
    b, counts = len(lengths), split_counts(lengths, split_tokens)
    most = int(counts.max()) if b else 0
    if owners is None:
        return np.broadcast_to(np.arange(most, dtype=np.int32) % ranks, (b, most))
    given = np.asarray(owners)
    if given.dtype.kind not in "iu" and given.size:
        raise ValueError(f"owners: dtype {given.dtype}: must be integers")
    if given.ndim not in (1, 2) or (given.ndim == 2 and len(given) != b):
        raise ValueError(f"owners: shape {list(given.shape)}: must be [n_splits] or [b={b}, ...]")
    if given.shape[-1] < most:
        raise ValueError(
            f"owners: shape {list(given.shape)}: must have {most} splits, those of "
            f"{lengths.max()} tokens with split_tokens={split_tokens}"
        )
    given = np.broadcast_to(given[..., :most], (b, most))
    given = np.where(np.arange(most) < counts[:, None], given, 0)  # the others are not read
    for sequence, split in np.argwhere((given < 0) | (given >= ranks))[:1]:
        raise ValueError(
            f"owners[{sequence}, {split}]={given[sequence, split]}: must be a rank, in [0, {ranks})"
        )
    return given.astype(np.int32)


def tokens_of(owners: Ints, length: int, split_tokens: int, rank: int, begin: int = 0) -> Any:
    """Positions of a rank's tokens [begin, length) of one sequence, whose owners are [n_splits],
    ascending."""
    first = begin // split_tokens
    own: Any = first + np.flatnonzero(owners[first : split_counts(length, split_tokens)] == rank)
    positions = (own[:, None] * split_tokens + np.arange(split_tokens)).reshape(-1)
    return positions[(positions >= begin) & (positions < length)]


def count_of(owners: Ints, length: int, split_tokens: int, rank: int) -> int:
    """How many of the first `length` tokens of a sequence a rank has."""
    n = int(split_counts(length, split_tokens))
    short = n * split_tokens - length if n and owners[n - 1] == rank else 0
    return int(np.count_nonzero(owners[:n] == rank)) * split_tokens - short


class Slots(NamedTuple):
    """begin and end [n_slots, b] in tokens, and of each slot the most splits of a sequence."""

    begin: Ints
    end: Ints
    splits: Any


def slots_of(owners: Ints, lengths: Ints, split_tokens: int, ranks: int) -> Slots:
    """All shards, those of rank r in slots r, r + ranks, ...: ranks times as many as the most runs
    of a rank need. Slots without a run of a sequence are empty there."""
    runs = [_runs(row[:n], ranks) for row, n in zip(owners, split_counts(lengths, split_tokens))]
    rounds = max((int(slot[-1]) // ranks + 1 for slot, _, _ in runs if len(slot)), default=1)
    n_slots = rounds * ranks
    if n_slots > c.MAX_SHARDS:
        raise ValueError(
            f"owners: {rounds} runs of splits on each of {ranks} ranks: must be <= "
            f"{c.MAX_SHARDS // ranks}; take a larger split_tokens or longer runs"
        )
    begin: Ints = np.zeros((n_slots, len(lengths)), np.int32)
    end: Ints = np.zeros_like(begin)
    splits: Any = np.zeros(n_slots, np.int64)
    for i, (slot, first, last) in enumerate(runs):
        begin[slot, i] = first * split_tokens
        end[slot, i] = np.minimum(last * split_tokens, lengths[i])
        splits[slot] = np.maximum(splits[slot], last - first)
    return Slots(begin, end, splits)


def _runs(owners: Ints, ranks: int) -> tuple[Any, Any, Any]:
    """Slot, first split and end of every run of one sequence."""
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    of_run = owners[starts].astype(np.int64)
    steps = np.diff(of_run, prepend=0) % ranks  # to the next slot of that owner
    ends: Any = np.append(starts[1:], len(owners))
    return np.cumsum(steps), starts.astype(np.int64), ends


def most_entries(splits: int) -> int:
    """Most records of a row that a run of so many splits leaves: two nodes of each level of the
    tree but the lowest full one."""
    return max(1, 2 * (splits.bit_length() - 1)) if splits else 0


# ---- Contiguous rows as pages ----


class Pages(NamedTuple):
    """A rank's rows [b, room, d_qk] as pages that begin at any row, and a block table of whole
    sequences that has those of the rank's splits."""

    page_size: int
    table: Ints


def pages_of(
    owners: Ints, lengths: Ints, split_tokens: int, rank: int, room: int, apart: int
) -> Pages:
    """`room`: rows of a sequence; `apart`: from the first row of one sequence to that of the next.
    Pages are as large as divides a split and leaves none behind the last sequence's room."""
    b, counts = len(lengths), split_counts(lengths, split_tokens)
    own = [count_of(owners[i], int(lengths[i]), split_tokens, rank) for i in range(b)]
    for i, n in enumerate(own):
        if n > room:
            raise ValueError(
                f"local_kv: {room} rows a sequence: must be >= {n}, those of this rank's splits of "
                f"sequence {i}"
            )
    page = _page_size(split_tokens, [apart * (b - 1 - i) + room for i in range(b)], own)
    per_split = split_tokens // page
    table = np.zeros((b, max(counts.max(initial=1), 1) * per_split), np.int32)
    for i in range(b):
        mine = np.flatnonzero(owners[i, : counts[i]] == rank)
        pages = (mine[:, None] * per_split + np.arange(per_split)).reshape(-1)
        rows: Any = i * apart + np.arange(pages.size) * page
        used = pages < -(-int(lengths[i]) // page)
        table[i, pages[used]] = rows[used]
    return Pages(page, table)


def _page_size(split_tokens: int, rooms: Sequence[int], own: Sequence[int]) -> int:
    for page in range(min(MAX_PAGE, split_tokens), 1, -1):
        if split_tokens % page == 0 and all(-(-n // page) * page <= m for n, m in zip(own, rooms)):
            return page
    return 1


# ---- Records ----


def query_plan(plan: Plan) -> c.PlanInfo:
    """What the plan chose."""
    info, detail = c.PlanInfo(struct_bytes=ctypes.sizeof(c.PlanInfo)), c.Detail()
    c.check(c.lib.amla_plan_query(plan._handle, ctypes.byref(info), ctypes.byref(detail)), detail)
    return info


class Heads(NamedTuple):
    """A rank's heads, half-open."""

    begin: int
    end: int


def heads_of(h_q: int, rank: int, ranks: int) -> Heads:
    """Heads that a rank finishes."""
    return Heads(h_q * rank // ranks, h_q * (rank + 1) // ranks)


def _shard(begin: Ints, end: Ints) -> c.Shard:
    """Without records. The caller keeps the bounds alive."""
    return c.Shard(
        struct_bytes=ctypes.sizeof(c.Shard),
        begin=begin.ctypes.data,
        end=end.ctypes.data,
        begin_bytes=begin.nbytes,
        end_bytes=end.nbytes,
    )


class Records(NamedTuple):
    """Of one shard: [n_queries, h_q, n_entries * record_floats]."""

    n_entries: int
    record_floats: int
    n_row_keys: int
    floats: Floats


def run_shard(call: Call, tensors: c.Tensors, begin: Ints, end: Ints) -> Records:
    """Checks and computes one shard, bounds [b]."""
    shard, detail = _shard(begin, end), c.Detail()
    info = c.ShardInfo(struct_bytes=ctypes.sizeof(c.ShardInfo))
    at = [ctypes.addressof(x) for x in (tensors, shard, info)]
    c.check(c.lib.amla_shard_query(call.handle, *at, ctypes.byref(detail)), detail)
    h_q, width = call.plan.fields["h_q"], info.n_entries * info.record_floats
    floats = np.empty((info.n_rows // h_q, h_q, width), np.float32)
    if floats.size:
        shard.records, shard.records_bytes = floats.ctypes.data, floats.nbytes
        scratch = take_scratch(c.lib.amla_shard_scratch_bytes(call.handle))
        memory = scratch.address, scratch.bytes
        began = time.perf_counter()
        status = c.lib.amla_shard_run(call.handle, *at[:2], *memory, ctypes.byref(detail))
        seconds = time.perf_counter() - began
        give_scratch(scratch)
        c.check(status, detail)
        f = call.plan.fields
        flops = 2.0 * info.n_row_keys * (f["d_qk"] + f["d_v"])
        count(runs=1, tokens=info.n_rows // h_q, flops=flops, seconds=seconds)
    return Records(info.n_entries, info.record_floats, info.n_row_keys, floats)


def check_outputs(call: Call, tensors: c.Tensors) -> None:
    """Refuses what `finish` would of out, lse and max_logits, before there are records."""
    detail = c.Detail()
    at = ctypes.addressof(tensors)
    c.check(c.lib.amla_shard_check_outputs(call.handle, at, ctypes.byref(detail)), detail)


def finish(
    call: Call,
    tensors: c.Tensors,
    slots: Slots,
    heads: Heads,
    records: Sequence[tuple[int, Floats]],
    scratch: Any,
) -> None:
    """Results of these heads from n_entries and floats of every slot. scratch: from `take_scratch`,
    amla_shard_scratch_bytes of it. Checked before, it does not fail."""
    shards = (c.Shard * len(records))()
    for i, (n_entries, floats) in enumerate(records):
        shards[i] = _shard(slots.begin[i], slots.end[i])
        shards[i].n_entries, shards[i].records_bytes = n_entries, floats.nbytes
        shards[i].records = floats.ctypes.data
        shards[i].head_begin, shards[i].head_end = heads
    detail = c.Detail()
    status = c.lib.amla_shard_finish(
        call.handle,
        ctypes.addressof(tensors),
        len(shards),
        ctypes.addressof(shards),
        scratch.address,
        scratch.bytes,
        ctypes.byref(detail),
    )
    c.check(status, detail)
