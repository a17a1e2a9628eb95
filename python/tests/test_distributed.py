# SPDX-License-Identifier: Apache-2.0
"""amla.distributed: decode steps over 1 to 4 processes have the bits of amla.decode in one,
whoever owns which splits; what one rank refuses, all refuse."""

import itertools
import pathlib
import re

import numpy as np
import pytest
import torch

import amla
from amla._library import MAX_SHARDS
from amla._shards import (
    checked_owners,
    count_of,
    even_owners,
    most_entries,
    slots_of,
    tokens_of,
)

SPLIT = 384  # a multiple of every key tile
H, D_QK, D_V = 5, 40, 36  # heads that no number of ranks divides
PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "distributed.md"
GROUPS = (1, 2, 3, 4)

CASES = {
    "dense": dict(lengths=[2000]),
    "ragged lengths": dict(lengths=[1500, 0, 384, 1], s_q=2, causal=True),
    "fewer splits than ranks": dict(lengths=[500]),
    "sinks, max_logits": dict(lengths=[1200, 900], sinks=True, max_logits=True, lse_base=2),
    "bfloat16": dict(lengths=[1000, 1600], dtype=torch.bfloat16),
    "mask": dict(lengths=[1300, 800], s_q=2, mask=True),
    "lists": dict(lengths=[1700, 1100], s_q=2, topk=200),
    "window": dict(lengths=[1700], s_q=3, causal=True, window=500),
    "nothing": dict(lengths=[]),
}


def make(case, seed=0):
    """q, kv of whole sequences [b, longest, d_qk], lengths and the other arguments of a decode."""
    case = dict(CASES[case])
    lengths, s_q, dtype = case.pop("lengths"), case.pop("s_q", 1), case.pop("dtype", torch.float32)
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=generator)
    b, longest = len(lengths), max(lengths, default=0)
    q, kv = (random(b, n, *rest, D_QK).to(dtype) for n, rest in ((s_q, (H,)), (longest, ())))
    options = dict(scale=0.2, d_v=D_V)
    if case.pop("sinks", False):
        options["sinks"] = random(H)
    if case.pop("mask", False):
        hidden = random(b, s_q, longest) < -0.5
        options["mask"] = torch.zeros(b, s_q, longest).masked_fill(hidden, -torch.inf).half()
    if topk := case.pop("topk", 0):
        lists = random(b, s_q, longest).argsort(-1)[..., :topk].clamp(max=min(lengths) - 1)
        lists[lists % 7 == 0] = -1
        options.update(indices=lists.sort(-1)[0].int(), index_kind="position")
    return q, kv, lengths, {**options, **case}


def owners_of(kind, lengths, ranks):
    """Owners of splits: None (in turn), contiguous, all of one rank, or at random."""
    n = [-(-x // SPLIT) for x in lengths]
    most = max(n, default=0)
    owners = np.full((len(n), most), -7)  # past a sequence's end anything
    if kind == "turn":
        return None
    for row, k in zip(owners, n):
        if kind == "even":
            row[:k] = even_owners(k, ranks)
        else:
            row[:k] = ranks - 1 if kind == "one" else np.random.default_rng(k).integers(0, ranks, k)
    return owners


def context(groups, ranks, **options):
    from amla.distributed import DecodeContextParallel

    if groups[ranks] is None:
        return None
    return DecodeContextParallel(groups[ranks], split_tokens=SPLIT, **options)


def local_rows(cp, kv, lengths, owners, slack=0):
    """This rank's rows of kv, and NaN behind them."""
    own = [cp.tokens(n, None if owners is None else owners[i]) for i, n in enumerate(lengths)]
    room = max((len(x) for x in own), default=0) + slack
    rows = kv.new_full((len(own), room, D_QK), torch.nan)
    for row, sequence, at in zip(rows, kv, own):
        row[: len(at)] = sequence[at]
    return rows


def decode(groups, ranks, case, kind, slack=0, **options):
    cp = context(groups, ranks, **options)
    if cp is None:
        return None
    q, kv, lengths, more = make(case)
    owners = owners_of(kind, lengths, ranks)
    rows = local_rows(cp, kv, lengths, owners, slack)
    return cp.decode(q, rows, None, lengths, owners=owners, **more), cp.work, cp.heads(H)


def alone(case):
    """The same in one call of amla.decode."""
    q, kv, lengths, more = make(case)
    options = dict(more, split_tokens=SPLIT)
    return amla.decode(q, kv, None, np.array(lengths, np.int32), **options)


def equal(got, want):
    assert len(got) == len(want)
    for x, y in zip(got, want):
        assert x.dtype == y.dtype and torch.equal(x, y)


# ---- Bits ----


@pytest.mark.parametrize("case", CASES)
def test_bits_are_those_of_one_process(ranks, case):
    want = alone(case)
    assert all(x.isfinite().any() for x in want) or case == "nothing"
    kinds = ("turn", "even", "random") if case != "nothing" else ("turn",)
    for n, kind in itertools.product(GROUPS, kinds):
        for answer in ranks.run(decode, n, case, kind):
            if answer is not None:
                equal(answer[0], want)


@pytest.mark.parametrize("kind", ["one", "even"])
def test_empty_shards_and_slack(ranks, kind):
    """Ranks without a token; and pages of any size, as there is more or less room behind rows."""
    want = alone("ragged lengths")
    for slack in (0, 1, 50, 400):
        for answer in ranks.run(decode, 4, "ragged lengths", kind, slack):
            equal(answer[0], want)


def test_each_rank_has_its_heads_where_they_are_not_gathered(ranks):
    want = alone("sinks, max_logits")
    for n in (2, 4):
        spans = []
        for answer in ranks.run(own_heads, n):
            got, begin, end = answer
            spans.append((begin, end))
            equal(got, [x.narrow(a, begin, end - begin) for x, a in zip(want, (2, 1, 1))])
        assert spans[:n] == spans[-n:] and sorted({x for s in spans for x in range(*s)}) == [
            *range(H)
        ]


def own_heads(groups, n):
    got, _, heads = decode(groups, n, "sinks, max_logits", "even", gather_heads=False)
    return got, *heads


def test_work_is_shared_and_contiguous_runs_send_few_records(ranks):
    """8 splits: on 4 ranks 2 each, of which contiguous ones are one node of the tree."""
    for kind, entries in (("even", 1), ("turn", 2)):
        work = [answer[1] for answer in ranks.run(big, kind)]
        assert [x.row_keys for x in work] == [H * 2 * SPLIT] * 4
        assert [x.entries for x in work] == [entries] * 4
        heads = [H * (r + 1) // 4 - H * r // 4 for r in range(4)]
        assert [x.sent_bytes for x in work] == [
            (H - own) * entries * (D_V + 2) * 4 for own in heads
        ]


def big(groups, kind):
    cp = context(groups, 4)
    q, kv, lengths = torch.randn(1, 1, H, D_QK), torch.randn(1, 8 * SPLIT, D_QK), [8 * SPLIT]
    q, kv = torch.ones_like(q), torch.ones_like(kv)
    owners = owners_of(kind, lengths, 4)
    rows = local_rows(cp, kv, lengths, owners)
    return cp.decode(q, rows, None, lengths, owners=owners, scale=0.1, d_v=D_V), cp.work


def test_pages_of_ones_own(ranks):
    """A paged cache, whose table has garbage where other ranks' tokens are."""
    want = alone("dense")
    for answer in ranks.run(paged, 3):
        if answer is not None:
            equal(answer, want)


def paged(groups, n):
    cp = context(groups, n)
    if cp is None:
        return None
    q, kv, (length,), more = make("dense")
    page, own = 64, cp.tokens(length)
    table = torch.full((1, -(-length // page)), 2**30, dtype=torch.int32)
    mine = own.div(page, rounding_mode="floor").unique()
    table[0, mine] = torch.arange(len(mine)).flip(0).int() + 1
    pages = torch.full((len(mine) + 1, page, D_QK), torch.nan)
    flat = pages.view(-1, D_QK)
    flat[table[0, own // page] * page + own % page] = kv[0, own]
    return cp.decode(q, pages, table, [length], **more)


def test_a_growing_cache_moves_no_row_and_keeps_its_bits(ranks):
    """Token by token: the last split's owner has one row more, the others what they had."""
    for answer in ranks.run(grow):
        assert answer == [True] * len(answer) and len(answer) == 13


def grow(groups):
    cp = context(groups, 4)
    generator = torch.Generator().manual_seed(1)
    kv = torch.randn(1, 4 * SPLIT + 6, D_QK, generator=generator)
    rows, same = torch.full((1, 2 * SPLIT, D_QK), torch.nan), []
    held = 0
    for n in range(4 * SPLIT - 6, 4 * SPLIT + 7):
        own = cp.tokens(n)
        rows[0, held : len(own)] = kv[0, own[held:]]
        held = len(own)
        q = torch.randn(1, 1, H, D_QK, generator=generator)
        got = cp.decode(q, rows, None, [n], scale=0.3, d_v=D_V)
        want = amla.decode(q, kv[:, :n], scale=0.3, d_v=D_V, split_tokens=SPLIT)
        same.append(all(torch.equal(x, y) for x, y in zip(got, want)))
    return same


def test_the_docs_block_runs(ranks):
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    block, n = re.subn(r"^dist\.init_process_group.*\n", "", block, flags=re.M)
    assert n == 1
    found = ranks.run(run_block, block)
    want = amla.decode(*found[0][2:4], scale=192**-0.5, causal=True, split_tokens=768)
    for out, lse, *_ in found:
        equal((out, lse), want)


def run_block(groups, block):
    names = {}
    exec(block, names)
    return [names[name] for name in ("out", "lse", "q", "kv")]


# ---- Refusals ----


FAULTS = {
    "a length": ("ValueError", "rank 1: seqlens: must be that of rank 0"),
    "a negative length": ("ValueError", "rank 1: seqlens[0]=-1: must be in [0, 2147483647]"),
    "a query": ("ValueError", "rank 1: q: must be that of rank 0"),
    "heads": ("ValueError", "rank 1: h_q: must be that of rank 0"),
    "scale": ("ValueError", "rank 1: scale: must be that of rank 0"),
    "owners": ("ValueError", "rank 1: owners: must be that of rank 0"),
    "an owner": ("ValueError", "rank 1: owners[0, 2]=9: must be a rank, in [0, 2)"),
    "few owners": ("ValueError", "rank 1: owners: shape [3]: must have 6 splits"),
    "a short cache": ("ValueError", "rank 1: local_kv: 3 rows a sequence: must be >= 848"),
    "a page": (
        "ValueError",
        "rank 1: block_table[0][1]=77: a used page id must be in [0, n_pages=3)",
    ),
    "no array": ("TypeError", "rank 1: q: list: must be a torch tensor"),
    "no such argument": ("TypeError", "rank 1: colour: no such argument"),
    "a backend": ("NotImplementedError", "rank 1: backend=ref: shards are of cpu"),
    "slots": ("NotImplementedError", "rank 1: index_kind=slot: shards need lists of positions"),
    "a second cache": ("NotImplementedError", "rank 1: extra: a second cache"),
    "the tile": ("ValueError", "rank 1: split_tokens=100: must be a multiple of "),
    "memory": ("MemoryError", "rank 1: no memory for this"),
    "a mask": ("ValueError", "rank 1: mask: shape [1, 1, 7]: must be [b, s_q, tokens >= 2000]"),
    "a narrow out": ("ValueError", "rank 1: out: shape [1, 1, 5, 35]: must be [b=1, s_q=1, h_q=5"),
    "another error": ("RuntimeError", "rank 1: ZeroDivisionError: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_ranks_fault_is_the_same_error_on_all(ranks, fault):
    """And nothing is written, and the next decode is right."""
    kind, text = FAULTS[fault]
    answers = ranks.errors(faulty, fault)
    assert len(set(answers)) == 1 and answers[0].startswith(f"{kind}: {text}"), answers
    equal(ranks.run(decode, 2, "dense", "turn")[3][0], alone("dense"))


def faulty(groups, fault):
    cp = context(groups, 2)
    q, kv, lengths, more = make("dense")
    out, lse = torch.full((1, 1, H, D_V), 5.0), torch.full((1, H, 1), 5.0)
    arguments = dict(more, out=out, lse=lse, owners=None)
    rows, table = local_rows(cp, kv, lengths, None), None
    if cp.rank == 1:
        q, rows, table, lengths = _spoil(fault, cp, q, rows, lengths, arguments)
    try:
        cp.decode(q, rows, table, lengths, **arguments)
    except Exception:
        assert bool((out == 5).all() and (lse == 5).all()), "outputs were written"
        raise


def _spoil(fault, cp, q, rows, lengths, arguments):
    table = None
    changes = {
        "scale": dict(scale=0.3),
        "owners": dict(owners=[0, 1, 0, 1, 0, 0]),
        "an owner": dict(owners=[0, 1, 9, 1, 0, 1]),
        "few owners": dict(owners=[0, 1, 0]),
        "no such argument": dict(colour=1),
        "a backend": dict(backend="ref"),
        "slots": dict(indices=torch.zeros(1, 1, 4, dtype=torch.int32)),
        "a second cache": dict(extra=amla.Scope(rows)),
        "a mask": dict(mask=torch.zeros(1, 1, 7).half()),
        "a narrow out": dict(out=torch.full((1, 1, H, D_V - 1), 5.0)),
    }
    arguments.update(changes.get(fault, {}))
    if fault == "a length":
        lengths = [1999]
    if fault == "a negative length":
        lengths = [-1]
    if fault == "a query":
        q[0, 0, 0, 0] += 1
    if fault == "heads":
        q = q[:, :, :3]
        arguments.update(out=None, lse=None)
    if fault == "a short cache":
        rows = rows[:, :3]
    if fault == "a page":
        table = torch.full((1, -(-lengths[0] // SPLIT)), 77, dtype=torch.int32)
        rows = torch.zeros(3, SPLIT, D_QK)
    if fault == "no array":
        q = [1.0]
    if fault == "the tile":
        cp.split_tokens = 100
        rows = torch.zeros(1, 2000, D_QK)
    if fault in ("memory", "another error"):
        from amla import distributed

        error = MemoryError("no memory for this") if fault == "memory" else ZeroDivisionError()

        def once(*_):
            distributed.take_scratch = take_scratch
            raise error

        take_scratch = distributed.take_scratch
        distributed.take_scratch = once
    return q, rows, table, lengths


def test_what_a_context_refuses(ranks):
    for rank, answer in enumerate(ranks.run(refused)):
        last = [] if rank == 0 else ["group: rank -1 of -1: must be a rank of it"]
        assert answer == [
            "split_tokens=0: must be >= 1",
            "split_tokens='a': must be an integer",
            "gather_heads=2: must be True or False",
            *last,
        ]


def refused(groups):
    from amla.distributed import DecodeContextParallel

    texts, of_one = [], torch.distributed.new_group([0])
    for group, options in (
        (groups[4], dict(split_tokens=0)),
        (groups[4], dict(split_tokens="a")),
        (groups[4], dict(gather_heads=2)),
        (of_one, dict()),
    ):
        try:
            DecodeContextParallel(group, **options)
        except ValueError as error:
            texts.append(str(error))
    return texts


# ---- Owners and slots, without processes ----


def test_slots_cover_every_split_once_in_order():
    rng = np.random.default_rng(2)
    for ranks, n in itertools.product((1, 2, 3, 7), (0, 1, 2, 9, 40)):
        lengths = np.array([n * 10, max(0, n * 10 - 3), 0], np.int32)
        owners = rng.integers(0, ranks, (3, n)).astype(np.int32)
        slots = slots_of(owners, lengths, 10, ranks)
        assert len(slots.begin) % ranks == 0
        for i, length in enumerate(lengths):
            at = 0
            for slot, (begin, end) in enumerate(zip(slots.begin[:, i], slots.end[:, i])):
                if begin == end:
                    continue
                assert (
                    begin == at and (owners[i, begin // 10 : -(-end // 10)] == slot % ranks).all()
                )
                at = end
            assert at == length


def test_a_ranks_tokens_are_counted_and_cut_without_the_others():
    rng = np.random.default_rng(3)
    for length, begin in itertools.product((0, 1, 9, 10, 11, 40, 47), (0, 1, 9, 10, 11, 39, 47)):
        owners = rng.integers(0, 3, 5).astype(np.int32)
        for rank in range(3):
            own = [i for i in range(length) if owners[i // 10] == rank]
            assert count_of(owners, length, 10, rank) == len(own)
            got = tokens_of(owners, length, 10, rank, begin)
            assert got.tolist() == [i for i in own if i >= begin]


def test_owners_behind_a_sequence_are_not_read():
    lengths = np.array([10, 20])
    found = checked_owners([[0, -7], [1, 0]], lengths, 10, 2)
    assert found[0, 0] == 0 and found[1].tolist() == [1, 0]
    with pytest.raises(ValueError, match=re.escape("owners[1, 0]=9: must be a rank")):
        checked_owners([[0, -7], [9, 0]], lengths, 10, 2)


def test_too_many_runs_are_refused():
    lengths = np.array([(MAX_SHARDS + 2) * 10], np.int32)
    owners = (np.arange(MAX_SHARDS + 2, dtype=np.int32) % 2)[None]
    with pytest.raises(
        ValueError, match=r"owners: 2049 runs of splits on each of 2 ranks: must be"
    ):
        slots_of(owners, lengths, 10, 2)


def test_most_entries_bounds_the_nodes_that_cover_a_run():
    def left(n):
        return 1 << ((n - 1).bit_length() - 1)

    def nodes(first, n, begin, end):
        if end <= first or first + n <= begin:
            return 0
        if begin <= first and first + n <= end:
            return 1
        half = left(n)
        return nodes(first, half, begin, end) + nodes(first + half, n - half, begin, end)

    for n in range(1, 40):
        for begin, end in itertools.combinations(range(n + 1), 2):
            assert nodes(0, n, begin, end) <= most_entries(end - begin)
