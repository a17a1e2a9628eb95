# SPDX-License-Identifier: Apache-2.0
"""The tests' own truth: attention from its definition in NumPy fp64, over a paged or contiguous
cache. Knows nothing of the library."""

import numpy as np


def tokens_of(kv_cache, block_table, length, i):
    """The first `length` rows of sequence i, fp64 [length, d_qk]. Nothing else of the cache is
    looked at."""
    if block_table is None:
        return np.array(kv_cache[i, :length], np.float64)
    page = kv_cache.shape[1]
    pages = [
        np.array(kv_cache[block_table[i, j], : min(page, length - j * page)], np.float64)
        for j in range(-(-length // page))
    ]
    return np.concatenate(pages) if pages else np.zeros((0, kv_cache.shape[-1]))


def attend(q, kv, scale, d_v, causal=False, mask=None):
    """q [s_q, h, d], kv [n, d], mask [s_q, n] added to the scores -> out [s_q, h, d_v], lse [h,
    s_q], natural logarithm."""
    s_q, h, _ = q.shape
    out, lse = np.zeros((s_q, h, d_v)), np.full((h, s_q), -np.inf)
    for i in range(s_q):
        n = max(0, len(kv) - s_q + i + 1) if causal else len(kv)
        scores = scale * np.array(q[i], np.float64) @ kv[:n].T
        if mask is not None:
            scores = scores + mask[i, :n].astype(np.float64)
        seen = np.isfinite(scores).any(-1) if n else np.zeros(h, bool)
        for r in np.flatnonzero(seen):
            top = scores[r].max()
            p = np.exp(scores[r] - top)
            lse[r, i] = top + np.log(p.sum())
            out[i, r] = p @ kv[:n, :d_v] / p.sum()
    return out, lse


def decode(
    q,
    kv_cache,
    block_table=None,
    seqlens=None,
    *,
    scale,
    causal=False,
    d_v=512,
    mask=None,
    sinks=None,
):
    """amla.decode's results in fp64; arrays as NumPy, kv_cache 3-D."""
    b = len(q)
    room = kv_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    out, lse = zip(
        *(
            attend(
                q[i],
                tokens_of(kv_cache, block_table, room if seqlens is None else int(seqlens[i]), i),
                scale,
                d_v,
                causal,
                None if mask is None else mask[i],
            )
            for i in range(b)
        )
    )
    out, lse = np.stack(out), np.stack(lse)
    if sinks is not None:
        with np.errstate(over="ignore"):
            factor = np.where(
                np.isfinite(lse),
                1 / (1 + np.exp(np.asarray(sinks, np.float64)[None, :, None] - lse)),
                1,
            )
        out = out * factor.transpose(0, 2, 1)[..., None]
    return out, lse


def rel_error(got, want):
    """Relative Frobenius error; NaN stays NaN, so that comparisons with it fail."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)


def entries_of(indices, topk_length, i, j, room):
    """The valid entries of query j of sequence i, in order: those that are not negative and below
    `room`, of the first topk_length."""
    entries = np.asarray(indices)[i, j].astype(np.int64)
    if topk_length is not None:
        n = np.asarray(topk_length)
        entries = entries[: int(n[i] if n.ndim == 1 else n[i, j])]
    return entries[(entries >= 0) & (entries < room)]


def keys_of(
    kv_cache,
    i,
    j,
    s_q,
    block_table=None,
    seqlens=None,
    indices=None,
    topk_length=None,
    visible=None,
    index_kind="slot",
    causal=False,
    window=0,
):
    """The keys of one scope that query j of sequence i sees, fp64 [n, d]. Nothing else of the cache
    is looked at."""
    if indices is not None and index_kind == "slot":
        slots = kv_cache.reshape(-1, kv_cache.shape[-1])
        entries = entries_of(indices, topk_length, i, j, len(slots))
        return np.array(slots[entries], np.float64)
    room = kv_cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    length = room if seqlens is None else int(seqlens[i])
    tokens = tokens_of(kv_cache, block_table, length, i)
    if indices is not None:
        return tokens[entries_of(indices, topk_length, i, j, length)]
    end = max(0, length - s_q + j + 1) if causal else length
    if visible is not None:
        end = int(visible[i][j])
    return tokens[max(0, end - window) if window else 0 : end]


def attend_keys(q, keys, scale, d_v=512, sinks=None, extra=None, **scope):
    """amla.decode's out, lse and max_logits in fp64, whatever a query sees. keys: the cache of the
    first scope. `scope` and `extra`, which has a kv_cache too: keyword arguments of `keys_of`."""
    b, s_q, h, _ = q.shape
    out, lse = np.zeros((b, s_q, h, d_v)), np.full((b, h, s_q), -np.inf)
    most = lse.copy()
    for i, j in np.ndindex(b, s_q):
        rows = keys_of(keys, i, j, s_q, **scope)
        if extra is not None:
            second = {name: x for name, x in extra.items() if name != "kv_cache"}
            kind = scope.get("index_kind", "slot")
            second = keys_of(extra["kv_cache"], i, j, s_q, index_kind=kind, **second)
            rows = np.concatenate((rows, second))
        if len(rows) == 0:
            continue
        scores = scale * np.array(q[i, j], np.float64) @ rows.T
        most[i, :, j] = top = scores.max(-1)
        p = np.exp(scores - top[:, None])
        lse[i, :, j] = top + np.log(p.sum(-1))
        weight = 1 / p.sum(-1)
        if sinks is not None:
            with np.errstate(over="ignore"):
                weight /= 1 + np.exp(np.asarray(sinks, np.float64) - lse[i, :, j])
        out[i, j] = p @ rows[:, :d_v] * weight[:, None]
    return out, lse, most


# ---- fp8 caches and the indexer, with ml_dtypes' own e4m3 and e8m0 ----


def e4m3(codes):
    import ml_dtypes

    return np.ascontiguousarray(codes).view(ml_dtypes.float8_e4m3fn).astype(np.float64)


def fp8_rows(cache, kv_type, kv_scale=1.0, kv_rope_scale=1.0, d_v=512):
    """The fp64 rows [n_pages, page_size, d] of a cache of bytes, [n_pages, page_size, row]."""
    import ml_dtypes

    cache = np.ascontiguousarray(cache).view(np.uint8)
    pages, size, row = cache.shape
    if kv_type == "fp8_e4m3":
        scale = np.where(np.arange(row) < d_v, kv_scale, kv_rope_scale)
        return e4m3(cache) * scale.astype(np.float32)
    if kv_type == "fp8_656":
        scales = np.ascontiguousarray(cache[..., 512:528]).view(np.float32).repeat(128, -1)
        rope = np.ascontiguousarray(cache[..., 528:]).view(ml_dtypes.bfloat16)
        return np.concatenate((e4m3(cache[..., :512]) * scales, rope.astype(np.float64)), -1)
    flat = cache.reshape(pages, size * 584)
    rows = flat[:, : size * 576].reshape(pages, size, 576)
    footer = flat[:, size * 576 :].reshape(pages, size, 8)[..., :7]
    scales = np.ascontiguousarray(footer).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    rope = np.ascontiguousarray(rows[..., 448:]).view(ml_dtypes.bfloat16).astype(np.float64)
    return np.concatenate((e4m3(rows[..., :448]) * scales.repeat(64, -1), rope), -1)


def index_scores(q, weights, keys):
    """q [h, d], weights [h], keys [n, d] -> [n]."""
    return np.maximum(keys @ q.T, 0) @ weights


def best(scores, topk):
    """Positions of the best, ties to the lower one, in ascending order, then -1."""
    chosen = np.sort(np.lexsort((np.arange(len(scores)), -scores))[:topk])
    return np.concatenate((chosen, np.full(topk - len(chosen), -1))).astype(np.int32)
