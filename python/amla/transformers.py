# SPDX-License-Identifier: Apache-2.0
"""Hugging Face models with Multi-head Latent Attention that decode through AMLA:

    from amla.transformers import patch
    patch(model)                         # then model.generate(...) as before

transformers caches MLA's latent rows, but expands all of them to keys and values of every head in
each step. A patched model keeps its projections, rotary embedding, cache protocol and prefill, and
changes three things in every attention layer:

  - the cache layer keeps latent and rope part of a token side by side, 576 numbers, in one buffer
    that grows in place;
  - a decode step takes the key half of kv_b_proj into the query (`q_nope @ W_UK`), attends to the
    latent rows where they lie, and takes the value half (`@ W_UV`) afterwards: nothing is expanded;
  - padding masks become lengths and block tables, so hidden keys cost nothing. Where a model has
    an indexer, its lists say which rows are read, and no mask over all of them is made.

A step is a decode step if it has a past and at most MAX_DECODE_QUERIES queries; it must be causal
up to padding and a sliding window. All others (prefill, training, output_attentions, other masks)
run the model's own attention on the same cache. `stats(model)` counts both. A decode step that AMLA
cannot take, or only with a copy of the cache, warns once per model and reason.

torch.compile traces a step as far as shapes decide; what masks hold, and the counting, is inside
the operator amla::latent_attention.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from ._decode import decode
from ._latent_cache import PAGE, LatentLayer, ShardedLayer, latent_layer
from ._log import count, log

__all__ = ["LatentLayer", "ShardedLayer", "Stats", "patch", "stats", "unpatch"]

MAX_DECODE_QUERIES = 16  # tokens of one step: speculative decoding; above, expanding the keys pays
_PREFIX = "amla_"  # of the names under which attention functions are registered


_MASK = "their mask is not causal up to padding and a window, or is no tensor"


@dataclasses.dataclass
class Stats:
    """Layer calls of a patched model since `patch`. Graphs of torch.compile count decode steps
    only."""

    amla: int = 0  # decoded through AMLA
    own: int = 0  # through the model's own attention
    # Of those through AMLA: with a copy of the layer's whole cache, as it was not kept in place
    copies: int = 0
    reasons: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  # decode steps that were copied or the model's own: why, how often

    def count(self, why_copied: str = "", why_own: str = "", own: bool = False) -> None:
        """A call of a layer; own, or why a decode step is the model's own. The first for a reason
        is told."""
        own = own or bool(why_own)
        self.own, self.amla, self.copies = (
            self.own + own,
            self.amla + (not own),
            self.copies + bool(why_copied),
        )
        if why_own:
            count(refusals=1)
        reason = f"decode steps stay the model's own: {why_own}" if why_own else why_copied
        if reason and reason not in self.reasons:
            warnings.warn(f"amla: {reason}", RuntimeWarning, stacklevel=2)
            log(reason)
        if reason:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1


# ---- The cache ----


def _use_latent_layer(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before an attention layer runs: its dynamic cache layer, empty or filled, becomes a
    LatentLayer. Static, quantised and offloaded caches stay as they are; decode steps then join the
    two parts in a copy."""
    patched = attention._amla
    patched.cache_layer = patched.why_copied = None
    # Found by type: the argument is past_key_values up to transformers 5.23, cache from 5.24 on.
    cache = next((x for x in (*args, *kwargs.values()) if isinstance(x, Cache)), None)
    if cache is None:
        patched.why_copied = (
            "no argument of the attention layer is a transformers Cache: every step copies its rows"
        )
    elif getattr(cache, "offloading", False):
        patched.why_copied = f"{type(cache).__name__} is offloaded: every step copies its rows"
    else:
        i: Any = _row_layer(attention)  # an index, or _unfit had refused
        patched.cache_layer = layer = latent_layer(cache, i, patched.context)
        if isinstance(layer, ShardedLayer) and i == attention.layer_idx:  # which updates it
            layer.may_lend = patched.context is not None
        if layer is None:
            patched.why_copied = _why_copied(cache, i)
    if patched.context and cache is not None:
        _refuse_context(type(cache).__name__, patched.cache_layer)


def _row_layer(attention: Any) -> int | None:
    """The layer that caches the rows to which this one attends; None if that is not known."""
    if getattr(attention, "kv_a_proj_with_mqa", None) is not None:
        return int(attention.layer_idx)
    sources = getattr(attention.config, "kv_source_layers", None)
    return int(sources[attention.layer_idx]) if sources else None


def _why_copied(cache: Cache, i: int) -> str:
    """Of a layer that stays as it is."""
    if i < len(cache.layers) and getattr(cache.layers[i], "is_sliding", False):
        return f"{type(cache.layers[i]).__name__}: every step copies its rows, a window of them"
    kinds = ", ".join({type(x).__name__: None for x in cache.layers})
    return (
        f"{type(cache).__name__} of {kinds}: every step copies its rows, "
        "DynamicCache keeps them in place"
    )


def _refuse_context(kind: str, layer: LatentLayer | None) -> None:
    """Of the cache and of what runs the model: what context_parallel has not got."""
    if layer is None:
        raise NotImplementedError(
            f"context_parallel: {kind}: must be a DynamicCache in memory, without sliding windows"
        )
    if torch.compiler.is_compiling():
        raise NotImplementedError("context_parallel: torch.compile: must run uncompiled")


# ---- Masks ----


@dataclasses.dataclass(frozen=True)
class _Visible:
    """Which cached tokens the step sees, per sequence: `starts` and `lengths` of one run of tokens
    each, or, where padding leaves holes, `tokens`, the visible ones in order (padded with 0). All
    keys of all sequences: starts is None. Of those that causality lets it see, a query sees the
    last `window`; 0: all."""

    lengths: torch.Tensor  # [b] int32
    starts: torch.Tensor | None = None  # [b] int32
    tokens: Any = None  # [b, longest] int32 or None
    window: int = 0
    masks: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)  # see as_mask

    @classmethod
    def all(cls, b: int, n: int, window: int = 0) -> _Visible:
        return cls(torch.full((b,), n, dtype=torch.int32, device="cpu"), window=window)

    def as_mask(self, s_q: int, n: int) -> torch.Tensor | None:
        """The same as a mask [b, s_q, n] for `decode`; None where queries see all of n tokens that
        causality lets them see."""
        if self.starts is None and self.tokens is None and not self.window:
            return None
        if s_q not in self.masks:
            seen = torch.stack(_causal(self._seen(n), s_q, self.window), 1)
            mask = torch.full(seen.shape, -torch.inf, dtype=torch.float16, device="cpu")
            self.masks[s_q] = mask.masked_fill(seen, 0)
        return self.masks[s_q]

    def _seen(self, n: int) -> torch.Tensor:
        """[b, n] bool: the tokens that any query sees."""
        positions = torch.arange(n, device="cpu").expand(len(self.lengths), n)
        if self.starts is None and self.tokens is None:
            return positions < self.lengths[:, None]
        if self.starts is not None:
            ahead = positions - self.starts[:, None]
            return (ahead >= 0) & (ahead < self.lengths[:, None])
        counts = torch.arange(self.tokens.shape[1], device="cpu") < self.lengths[:, None]
        seen = torch.zeros(len(self.lengths), n + 1, dtype=torch.bool, device="cpu")
        return seen.scatter(1, torch.where(counts, self.tokens, n).long(), True)[:, :n]


def _causal(seen: torch.Tensor, s_q: int, window: int) -> list[torch.Tensor]:
    """Which of the keys [b, s_k] that a step sees each of its queries sees."""
    rank = seen.cumsum(-1)
    ends = [rank[:, -1:] - behind for behind in reversed(range(s_q))]
    return [seen & (rank <= end) & (rank > end - (window or len(rank[0]))) for end in ends]


def _visible(mask: Any, b: int, s_q: int, s_k: int, window: int = 0) -> _Visible | None:
    """The mask of a step over s_k cached tokens as _Visible; None if it is not causal up to padding
    and the window, or no tensor (flex attention's)."""
    if window >= s_k:
        window = 0
    if mask is None:
        return _Visible.all(b, s_k, window) if s_q == 1 else None
    if not isinstance(mask, torch.Tensor) or mask.dim() not in (2, 4) or mask.shape[-1] < s_k:
        return None
    if mask.dim() == 2:  # padding only: causality and window are understood
        seen = mask[:, :s_k].bool()
    else:
        if s_q == 1:
            window = 0  # the mask has it
        mask = mask[..., :s_k]
        if mask.shape[1] != 1 or mask.shape[2] != s_q:
            return None
        allowed = mask if mask.dtype == torch.bool else mask == 0
        if mask.dtype != torch.bool and not bool(
            (allowed | (mask <= torch.finfo(mask.dtype).min)).all()
        ):
            return None  # a bias, not a mask
        seen = allowed[:, 0].any(1)
        if not torch.equal(allowed[:, 0], torch.stack(_causal(seen, s_q, window), 1)):
            return None
    return _runs(seen.expand(b, s_k).cpu(), window)


def _runs(seen: torch.Tensor, window: int) -> _Visible:
    """seen [b, s_k] bool: the keys that each sequence sees."""
    b, s_k = seen.shape
    lengths = seen.sum(-1, dtype=torch.int32)
    if int(lengths.min()) == s_k:
        return _Visible.all(b, s_k, window)
    starts = seen.int().argmax(-1).int()  # the first visible one
    ends = s_k - seen.flip(-1).int().argmax(-1).int()
    if bool(((ends - starts == lengths) | (lengths == 0)).all()):
        return _Visible(lengths, starts=starts, window=window)
    tokens = torch.zeros(b, int(lengths.max()), dtype=torch.int32, device="cpu")
    for i in range(b):
        tokens[i, : lengths[i]] = seen[i].nonzero()[:, 0].int()
    return _Visible(lengths, tokens=tokens, window=window)


def _folded(mask: Any, indices: torch.Tensor, n: int, dtype: torch.dtype) -> torch.Tensor:
    """The mask [b, 1, s_q, n] of a step that sees listed tokens only, as these models make it for
    attention that takes no lists."""
    hidden = indices.new_ones((*indices.shape[:2], n), dtype=torch.bool)
    hidden = hidden.scatter(-1, indices.long(), False)[:, None]
    if mask.dtype == torch.bool:
        return mask & ~hidden
    return mask.masked_fill(hidden, torch.finfo(dtype).min)


def _listed(mask: Any, indices: torch.Tensor, n: int) -> torch.Tensor | None:
    """The lists [b, s_q, topk] of positions without those that the mask hides: an indexer lists
    them where a query sees fewer than topk. None if the mask is more than a mask."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4 or mask.shape[1] != 1:
        return None
    allowed = mask[:, 0, :, :n]
    if mask.dtype != torch.bool:
        least = torch.finfo(mask.dtype).min
        if not bool(((allowed == 0) | (allowed <= least)).all()):
            return None
        allowed = allowed == 0
    allowed = allowed.expand(*indices.shape[:2], n)
    return torch.where(allowed.gather(-1, indices.long()), indices, -1)


# ---- A decode step ----


class _Memo:
    """Of a model: the last step's mask and what became of it, for all layers. Copies and pickles
    begin empty."""

    last: tuple[Any, ...] = (
        None,
        None,
        None,
    )  # (step, mask, _Visible); replaced as a whole, as threads may share the model

    def __getstate__(self) -> dict[str, Any]:
        return {}


_all_patched: weakref.WeakSet[_Patched] = weakref.WeakSet()
_all_stats: weakref.WeakValueDictionary[int, Stats] = weakref.WeakValueDictionary()


@dataclasses.dataclass(eq=False)
class _Patched:
    """What a patched attention layer carries."""

    stats: Stats
    memo: _Memo
    config: Any
    config_name: str  # the attention implementation it had
    context: Any = None  # a DecodeContextParallel, or None
    cache_layer: LatentLayer | None = None
    why_copied: str | None = None  # of a cache_layer that is None

    def __post_init__(self) -> None:
        _all_patched.add(self)
        self.stats_id = id(self.stats)  # which is what a graph can hold
        _all_stats[self.stats_id] = self.stats

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__, cache_layer=None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, or a model from a file: this process may not know its attention function yet."""
        self.__dict__.update(state)
        _register(self.config_name)
        self.__post_init__()

    def visible(self, mask: Any, b: int, s_q: int, s_k: int, window: int = 0) -> _Visible | None:
        version = None
        if isinstance(mask, torch.Tensor):
            if mask.is_inference():  # has no version: whether it was written since cannot be known
                return _visible(mask, b, s_q, s_k, window)
            version = mask._version
        step, last = (b, s_q, s_k, window, version), self.memo.last
        if last[0] != step or last[1] is not mask:
            self.memo.last = last = (step, mask, _visible(mask, *step[:4]))
        return last[2]


def _attend(
    q: torch.Tensor, rows: torch.Tensor, visible: _Visible, scale: float, d_v: int
) -> torch.Tensor:
    """q [b, s_q, h, 576], rows [b, room, 576] contiguous, the last PAGE of a sequence to spare ->
    [b, s_q, h, d_v].

    A run of tokens that begins in the middle of the buffer needs no copy, for pages may overlap:
    with a page stride of one token, page number p is the PAGE tokens from p on, and a block table
    start, start + PAGE, ... walks any run."""
    b, room, width = rows.shape
    lengths = visible.lengths.to(q.device)
    how: dict[str, Any] = dict(scale=scale, causal=True, window=visible.window, d_v=d_v)
    if visible.starts is None and visible.tokens is None:
        return decode(q, rows[:, : room - PAGE], None, lengths, **how)[0]
    page = PAGE if visible.starts is not None else 1
    pages = rows.as_strided((b * room - page + 1, page, width), (width, width, 1))
    if visible.starts is not None:
        table = visible.starts[:, None] + PAGE * torch.arange(
            room // PAGE, dtype=torch.int32, device="cpu"
        )
    else:
        table = visible.tokens
    table = table + room * torch.arange(b, dtype=torch.int32, device="cpu")[:, None]
    return decode(q, pages, table.to(q.device), lengths, **how)[0]


def _attend_to(
    q: torch.Tensor, rows: torch.Tensor, lists: torch.Tensor, scale: float, d_v: int
) -> torch.Tensor:
    """_attend to the positions [b, s_q, topk] alone; negative ones are none."""
    options: dict[str, Any] = dict(indices=lists, index_kind="position")
    return decode(q, rows, scale=scale, d_v=d_v, **options)[0]


def _attend_over_ranks(
    layer: ShardedLayer, q: torch.Tensor, visible: Any, scale: float, d_v: int
) -> torch.Tensor:
    """_attend to a _Visible or _attend_to lists, each rank over the rows that it has. Splits stay
    where they are, so what padding hides is masked."""
    b, s_q = q.shape[:2]
    n = layer.length
    how: dict[str, Any]
    if isinstance(visible, _Visible):
        mask = visible.as_mask(s_q, n)
        how = dict(mask=mask, causal=mask is None)
    else:
        how = dict(indices=visible.sort(-1)[0], index_kind="position")
    how.update(owners=layer.owners, scale=scale, d_v=d_v)
    return layer.context.decode(q, layer.rows, None, [n] * b, **how)[0]


def _per_head(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x [b, s, h, m] times w [h, m, n] -> [b, s, h, n]. A w that is a transposed view goes to the
    left in 16 bits: 5 times faster on a CPU."""
    b, s, h, m = x.shape
    x = x.permute(2, 0, 1, 3).reshape(h, b * s, m)
    if w.stride(2) != 1 and w.dtype != torch.float32:
        y = torch.bmm(w.transpose(1, 2), x.transpose(1, 2)).transpose(1, 2)
    else:
        y = torch.bmm(x, w)
    return y.reshape(h, b, s, -1).permute(1, 2, 0, 3)


def _decode_step(
    attention: Any,
    query: torch.Tensor,
    latent: torch.Tensor,
    rope: torch.Tensor,
    mask: Any,
    scale: float,
    indices: torch.Tensor | None,
    window: int,
) -> torch.Tensor | None:
    """query [b, h, s_q, nope + rope], latent [b, 1, n, 512], rope [b, 1, n, 64] -> [b, s_q, h,
    v_head_dim]; None if the mask is not causal up to padding and the window (0: none) or, with
    indices [b, s_q, topk], not only a mask."""
    (b, h, s_q, _), (_, _, n, rank), nope = query.shape, latent.shape, attention.qk_nope_head_dim
    patched, traced = attention._amla, torch.compiler.is_compiling()
    visible: Any = None
    if not traced and indices is not None:
        visible = _listed(mask, indices, n)
    elif not traced:
        visible = patched.visible(mask, b, s_q, n, window)
    if visible is None and not (
        traced and (isinstance(mask, torch.Tensor) or (mask is None and s_q == 1))
    ):
        return None
    w_uk, w_uv = attention.kv_b_proj.weight.view(h, -1, rank).split(
        (nope, attention.v_head_dim), dim=1
    )

    q = query.new_empty(b, s_q, h, rank + rope.shape[-1])
    q[..., :rank] = _per_head(query[..., :nope].transpose(1, 2), w_uk)
    q[..., rank:] = query[..., nope:].transpose(1, 2)
    layer, why_copied = patched.cache_layer, ""
    if isinstance(layer, ShardedLayer) and latent is layer.keys:
        patched.stats.count()
        out = _attend_over_ranks(layer, q, visible, scale, rank)
        return _per_head(out, w_uv.transpose(1, 2))
    if layer is not None and latent is layer.keys:
        rows = layer.rows  # where they lie
    else:  # another kind of cache: side by side in a copy, with room for the last page
        rows = nn.functional.pad(torch.cat((latent, rope), -1)[:, 0], (0, 0, 0, PAGE))
        why_copied = (
            patched.why_copied
            or "the cache handed out other rows than its layer's: every step copies them"
        )
    if traced:
        out = torch.ops.amla.latent_attention(
            q, rows, n, mask, scale, rank, patched.stats_id, why_copied, indices, window
        )
    else:
        patched.stats.count(why_copied)
        attend: Any = _attend if indices is None else _attend_to
        out = attend(q, rows, visible, scale, rank)
    return _per_head(out, w_uv.transpose(1, 2))


@torch.library.custom_op("amla::latent_attention", mutates_args=())
def _latent_attention(
    q: torch.Tensor,
    rows: torch.Tensor,
    n: int,
    mask: torch.Tensor | None,
    scale: float,
    d_v: int,
    stats_id: int,
    why_copied: str,
    indices: torch.Tensor | None = None,
    window: int = 0,
) -> torch.Tensor:
    """_attend or _attend_to for a graph of torch.compile, over the first n rows and with any
    mask."""
    visible: Any
    attend: Any
    if indices is None:
        visible, attend = _visible(mask, q.shape[0], q.shape[1], n, window), _attend
    else:
        visible, attend = _listed(mask, indices, n), _attend_to
    stats = _all_stats.get(stats_id)
    if stats is not None:
        stats.count(why_copied, _MASK if visible is None else "")
    if visible is not None:
        return attend(q, rows, visible, scale, d_v)
    assert mask is not None
    if indices is not None:
        mask = _folded(mask[..., :n], indices, n, q.dtype)
    keys = rows[:, None, :n].expand(-1, q.shape[2], -1, -1)
    return (
        nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2), keys, keys[..., :d_v], mask[..., :n], scale=scale
        )
        .transpose(1, 2)
        .contiguous()
    )


@_latent_attention.register_fake
def _(
    q: Any,
    rows: Any,
    n: Any,
    mask: Any,
    scale: Any,
    d_v: Any,
    stats_id: Any,
    why_copied: Any,
    indices: Any = None,
    window: Any = 0,
) -> Any:
    return q.new_empty((*q.shape[:3], d_v))


def _is_plain(projection: Any) -> bool:
    """Is the projection its weight and nothing more? Adapters, hooks and weights that are fetched
    when it is called need the call."""
    return (
        type(projection) is nn.Linear
        and projection.bias is None
        and not projection._forward_hooks
        and not projection._forward_pre_hooks
        and "forward" not in projection.__dict__
        and not projection.weight.is_meta
    )


def _records_gradients(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _obstacle(
    module: Any, query: torch.Tensor, latent: torch.Tensor, kwargs: dict[str, Any]
) -> str:
    """Why a decode step must be the model's own, whatever its mask is; empty if AMLA may take
    it."""
    if module.training:
        return "the model is in training mode, call eval()"
    if not _is_plain(module.kv_b_proj):
        return "kv_b_proj has got a wrapper, a hook, a bias or an offloaded weight"
    if _records_gradients(query, latent, module.kv_b_proj.weight):
        return "gradients are recorded, use torch.no_grad()"
    if kwargs.get("output_attentions") or module.config.output_attentions:
        return "attention weights are asked for"
    for name in ("s_aux", "softcap"):  # what only some models have, and AMLA's step has not
        if kwargs.get(name) is not None:
            return f"{name} is given"
    return "is_causal=False" if kwargs.get("is_causal") is False else ""


def _through_amla(
    module: Any,
    query: torch.Tensor,
    latent: torch.Tensor,
    rope: torch.Tensor,
    mask: Any,
    scale: float,
    kwargs: dict[str, Any],
) -> torch.Tensor | None:
    """The step's result; None if the model's own attention is to make it."""
    reason, out = "", None
    if query.shape[2] < latent.shape[2] and query.shape[2] <= MAX_DECODE_QUERIES:
        reason = _obstacle(module, query, latent, kwargs)
        if not reason:
            indices, window = kwargs.get("indices"), kwargs.get("sliding_window") or 0
            out = _decode_step(module, query, latent, rope, mask, scale, indices, window)
            reason = _MASK
    if out is None and not torch.compiler.is_compiling():
        module._amla.stats.count(own=True, why_own=reason)
    return out


def _attention_function(own_name: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The attention function that replaces `own_name`: decode steps through AMLA, everything else
    as before."""

    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if (
            "_amla" in module.__dict__
        ):  # key and value are the latent rows and their rope part, see _keep_latent
            out = _through_amla(module, query, key, value, attention_mask, scaling, kwargs)
            if out is not None:
                return out, None
            key, value = type(module).expand_kv(module, *_whole(module, key, value))
        indices = kwargs.get("indices")
        if indices is not None and own_name in ("eager", "sdpa"):  # which take no lists
            attention_mask = _folded(attention_mask, indices, key.shape[2], query.dtype)
            kwargs["indices"] = None
        eager = _eager_of(type(module))
        return ALL_ATTENTION_FUNCTIONS.get_interface(own_name, eager)(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )

    return attention


def _eager_of(kind: type) -> Any:
    """The eager attention of the file that the class, or the class it derives from, is in."""
    for base in kind.__mro__:
        eager = getattr(sys.modules[base.__module__], "eager_attention_forward", None)
        if eager is not None:
            return eager
    raise NotImplementedError(f"{kind.__name__}: no eager_attention_forward in its module")


def _keep_latent(
    attention: Any, latent: torch.Tensor, rope: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of expand_kv: hands the rows on to our attention function; expands them if another
    one was set since."""
    if str(attention.config._attn_implementation).startswith(_PREFIX):
        return latent, rope
    return type(attention).expand_kv(attention, *_whole(attention, latent, rope))


def _whole(
    attention: Any, latent: torch.Tensor, rope: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to be expanded, where they lie on several ranks."""
    layer = attention._amla.cache_layer
    is_lent = isinstance(layer, ShardedLayer) and latent is layer.keys
    return layer.whole() if is_lent else (latent, rope)


# ---- Patching ----


# What an attention layer has whose keys and values are `expand_kv` of the latent rows it caches.
# transformers has had such layers since 5.23, each in a class of its own, all with kv_b_proj.
_PROTOCOL = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank", "num_heads")


def _attentions(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(getattr(m, "kv_b_proj", None), nn.Module)]


def _hands_on(kind: type) -> bool:
    """Does the forward of the class, or of one it derives from, call expand_kv and one of
    transformers' attention functions?"""
    forwards = [
        inspect.unwrap(vars(base)["forward"]) for base in kind.__mro__ if "forward" in vars(base)
    ]
    names = [set(getattr(f, "__code__", _hands_on.__code__).co_names) for f in forwards]
    return any({"expand_kv", "ALL_ATTENTION_FUNCTIONS"} <= used for used in names)


def _unfit(attention: Any) -> str:
    """Why a layer with kv_b_proj does not speak the protocol; empty if it does."""
    kind = type(attention)
    if not hasattr(kind, "expand_kv"):
        return (
            f"transformers {transformers.__version__} expands keys before it caches them; 5.23 and "
            "5.24 are known to work"
        )
    missing = [name for name in (*_PROTOCOL, "config", "layer_idx") if not hasattr(attention, name)]
    if missing:
        return f"{kind.__name__} has no {missing[0]}"
    if not _hands_on(kind):
        return f"the forward of {kind.__name__} does not hand expand_kv's result to attention"
    if _row_layer(attention) is None:
        return f"this {kind.__name__} attends to the rows of another layer"
    if isinstance(getattr(attention, "sinks", None), torch.Tensor):
        return f"{kind.__name__} has attention sinks, which are not supported here"
    return ""


def _expands_by_weight(attention: Any) -> bool:
    """Does expand_kv multiply a latent row by kv_b_proj's weight, key parts of a head first, and
    append the rope part as it is? Tried on two rows: that is what a decode step absorbs."""
    h, rank = attention.num_heads, attention.kv_lora_rank
    nope, d_v, weight = attention.qk_nope_head_dim, attention.v_head_dim, attention.kv_b_proj.weight
    if tuple(weight.shape) != (h * (nope + d_v), rank):
        return False
    latent = torch.linspace(-1, 1, 2 * rank).to(weight).view(1, 1, 2, rank)
    rope = torch.linspace(1, 2, 2 * attention.qk_rope_head_dim).to(weight).view(1, 1, 2, -1)
    with torch.no_grad():
        found = type(attention).expand_kv(attention, latent, rope)
        rows = nn.functional.linear(latent[0, 0], weight).view(2, h, nope + d_v).transpose(0, 1)
    want = torch.cat((rows[..., :nope], rope[0].expand(h, -1, -1)), -1), rows[..., nope:]
    return all(x.shape[1:] == y.shape and torch.allclose(x[0], y) for x, y in zip(found, want))


def _check(model: nn.Module) -> list[Any]:
    """The model's attention layers, or why it cannot be patched."""
    found = _attentions(model)
    if not found:
        raise NotImplementedError(
            f"{type(model).__name__}: no attention layer with kv_b_proj, which expands latent rows"
        )
    tried: set[tuple[Any, ...]] = set()
    for attention in found:
        name = f"{type(model).__name__}, layer {getattr(attention, 'layer_idx', '?')}"
        reason = _unfit(attention)
        if reason:
            raise NotImplementedError(f"{name}: {reason}")
        if not _is_plain(attention.kv_b_proj):
            raise NotImplementedError(
                f"{name}: kv_b_proj is {type(attention.kv_b_proj).__name__}: must be a plain "
                "nn.Linear without bias, hooks "
                "or offloaded weight, as its weight is taken into query and output"
            )
        if "_amla" in attention.__dict__:
            raise ValueError(f"{name}: patched already")
        kind = type(attention)
        form = kind, attention.kv_b_proj.weight.shape, getattr(attention, "qk_rope_head_dim", 0)
        if form not in tried and not _expands_by_weight(attention):
            raise NotImplementedError(
                f"{name}: {kind.__name__} does more than multiply a row by kv_b_proj's weight"
            )
        tried.add(form)
    return found


def _register(own: str) -> None:
    """Makes the attention function that replaces `own` known to transformers, with the same kind of
    mask."""
    AttentionInterface.register(_PREFIX + own, _attention_function(own))
    masks: dict[str, Any] = AttentionMaskInterface._global_mapping
    if own in masks:
        AttentionMaskInterface.register(_PREFIX + own, masks[own])


def _check_context(context: Any) -> None:
    if context is None:
        return
    from .distributed import DecodeContextParallel

    if not isinstance(context, DecodeContextParallel):
        kind = type(context).__name__
        raise TypeError(
            f"context_parallel: {kind}: must be an amla.distributed.DecodeContextParallel"
        )
    if not context.gather_heads:
        raise ValueError("context_parallel: gather_heads=False: must be True")


def patch(model: nn.Module, *, context_parallel: Any = None) -> nn.Module:
    """Makes a model of transformers whose attention layers cache latent rows and expand them decode
    through AMLA, in place; returns it. Layers are told by that protocol, not by a list of classes;
    docs/transformers.md has the classes that were tried. Those with an indexer attend to its lists.

    Greedy tokens are those of the unpatched model up to rounding; the cache takes kv_lora_rank +
    qk_rope_head_dim numbers per token and layer, and a step no more than that, where the unpatched
    model expands num_heads * (qk_head_dim + v_head_dim). A cache that was filled before is taken
    over. Call the model under torch.no_grad() (generate does): steps that record gradients stay the
    model's own.

    context_parallel: an `amla.distributed.DecodeContextParallel`. Every rank of its group runs the
    whole model on the same tokens, and keeps the latent rows of its own splits only. Needs a
    DynamicCache; steps that AMLA does not take gather the rows of a layer for that step. Such a
    model is not pickled and not compiled.

    Raises NotImplementedError with class and reason for what cannot be patched, ValueError for what
    is patched already; then nothing is changed.
    """
    layers, shared, memo = _check(model), Stats(), _Memo()
    _check_context(context_parallel)
    for attention in layers:
        config = attention.config
        own = (config._attn_implementation or "eager").removeprefix(
            _PREFIX
        )  # the layers share one config
        _register(own)
        config._attn_implementation = _PREFIX + own
        attention._amla = _Patched(shared, memo, config, own, context_parallel)
        attention._amla_hook = attention.register_forward_pre_hook(
            _use_latent_layer, with_kwargs=True
        )
        attention.expand_kv = functools.partial(
            _keep_latent, attention
        )  # a bound method could not be pickled
    return model


def unpatch(model: nn.Module) -> nn.Module:
    """Undoes `patch`; returns the model. Caches made meanwhile go on working, and so do patched
    models that share its config. ValueError if the model is not patched."""
    layers = [a for a in _attentions(model) if "_amla" in a.__dict__]
    if not layers:
        raise ValueError(f"{type(model).__name__}: not patched")
    for attention in layers:
        patched, config = attention._amla, attention.config
        _all_patched.discard(patched)
        shared = any(other.config is config for other in list(_all_patched))
        if not shared and config._attn_implementation == _PREFIX + patched.config_name:
            config._attn_implementation = patched.config_name
        attention._amla_hook.remove()
        del attention._amla, attention._amla_hook, attention.expand_kv
    return model


def stats(model: nn.Module) -> Stats:
    """How often the layers of a patched model decoded through AMLA and through their own attention.
    ValueError if it is not patched."""
    for attention in _attentions(model):
        if "_amla" in attention.__dict__:
            return attention._amla.stats
    raise ValueError(f"{type(model).__name__}: not patched")
