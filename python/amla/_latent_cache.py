# SPDX-License-Identifier: Apache-2.0
"""The cache layer of a patched model: latent and rope part of a token side by side, in one buffer
that grows in place; or the part of one that a rank has."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicIndexedLayer, DynamicLayer

from ._shards import count_of, split_counts, tokens_of

PAGE = 64  # tokens at the end of a buffer that belong to no sequence: room for its last page


class LatentLayer(DynamicLayer):
    """A cache layer for MLA: the rows [latent | rope] of all tokens in one buffer [b, capacity +
    PAGE, 576]. `keys` and `values` are views of it, as transformers expects them: [b, 1, n, 512]
    and [b, 1, n, 64]. Who assigns to them has the buffer rebuilt before it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: Any = None  # Tensor [b, capacity + PAGE, 576] after the first update
        self._keys: Any = None
        self._values: Any = None
        self._assigned = False  # keys or values were set from outside: rows are no longer theirs
        self._recorded = (
            False  # written while gradients were recorded: a backward pass may need these very rows
        )

    @property
    def length(self) -> int:
        """Tokens in the buffer."""
        return 0 if self._keys is None else self._keys.shape[2]

    @property
    def held(self) -> int:
        """Rows of a sequence in the buffer."""
        return self.length

    @property
    def keys(self) -> Any:
        """[b, 1, n, 512], None when empty."""
        return self._keys

    @keys.setter
    def keys(self, keys: Any) -> None:
        self._keys, self._assigned = keys, True

    @property
    def values(self) -> Any:
        """[b, 1, n, 64], None when empty."""
        return self._values

    @values.setter
    def values(self, values: Any) -> None:
        self._values, self._assigned = values, True

    def _settle(self) -> None:
        """Takes over keys and values that were assigned."""
        if not getattr(self, "_assigned", False):
            return
        keys, values = self._keys, self._values
        self.rows, self._assigned, self._keys, self._values = None, False, None, None
        if keys is None or values is None:
            return
        if keys.shape[:3] != values.shape[:3]:
            raise ValueError(
                f"values: shape {list(values.shape)}: must be that of keys, {list(keys.shape)}, "
                "but for the last axis"
            )
        if keys.numel() > 0:
            self.update(keys, values)

    @classmethod
    def of(cls, layer: DynamicLayer, *context: Any) -> LatentLayer:
        """The same content as a layer that may have been filled before the model was patched.
        context: of a ShardedLayer."""
        new = cls(*context)
        if (
            layer.is_initialized
            and layer.keys is not None
            and layer.values is not None
            and layer.keys.numel() > 0
        ):
            new.update(layer.keys, layer.values)
        return new

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends [b, 1, n, 512] and [b, 1, n, 64]; returns views of all tokens so far."""
        self._settle()
        b, _, n, width = key_states.shape
        end = self.length + n
        if self.rows is None or end > self.rows.shape[1] - PAGE or not self._may_write():
            self._grow(b, end, width, width + value_states.shape[-1], key_states)
        self.rows[:, self.length : end, :width] = key_states[:, 0]
        self.rows[:, self.length : end, width:] = value_states[:, 0]
        self._set_length(end, width)
        return self.keys, self.values

    def _may_write(self) -> bool:
        """May the buffer be written in place? Not while or after gradients are recorded, and not
        outside inference mode if it was made there, which torch.compile cannot ask."""
        recorded, self._recorded = self._recorded, torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            return not (recorded or self._recorded)
        return not (
            recorded
            or self._recorded
            or (self.rows.is_inference() and not torch.is_inference_mode_enabled())
        )

    def _grow(self, b: int, n_tokens: int, width: int, row_width: int, like: torch.Tensor) -> None:
        """By a quarter, so that appending costs a constant per token; the first time, with room for
        256 tokens more."""
        old, self.dtype, self.device, self.is_initialized = self.rows, like.dtype, like.device, True
        self._recorded = torch.is_grad_enabled()
        self.rows = like.new_empty(b, n_tokens + max(256, n_tokens // 4) + PAGE, row_width)
        if old is not None:
            self.rows[:, : self.held] = old[:, : self.held]

    def _set_length(self, length: int, width: int) -> None:
        self._keys, self._values = (
            self.rows[:, None, :length, :width],
            self.rows[:, None, :length, width:],
        )

    def _replace(self, rows: torch.Tensor) -> None:
        """Other sequences; the buffer may be a copy or a view."""
        width = self.keys.shape[-1]
        self.rows, self.device = rows, rows.device
        self._set_length(self.length, width)

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last -tokens_to_remove tokens (a negative number or 0, as in
        transformers)."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}): must be negative, the number of tokens to remove"
            )
        self._settle()
        if tokens_to_remove and self.rows is not None:
            self._set_length(max(0, self.length + tokens_to_remove), self.keys.shape[-1])

    def reset(self) -> None:
        """Empty, as new."""
        self.rows, self._keys, self._values, self.is_initialized = None, None, None, False
        self._assigned = self._recorded = False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beam search: sequence i becomes what beam_idx[i] was."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these sequences."""
        self._select(indices)

    def _select(self, indices: torch.Tensor) -> None:
        self._settle()
        if self.rows is not None:
            self._replace(self.rows[indices.to(self.rows.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence so many times."""
        self._settle()
        if self.rows is not None:
            self._replace(self.rows.repeat_interleave(repeats, dim=0))

    def offload(self) -> None:
        """To the CPU."""
        self._settle()
        if self.rows is not None:
            self._replace(self.rows.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Rows stay where they are computed with."""


_Indexed: Any = DynamicIndexedLayer  # whose annotations are not those of its own base


class LatentIndexedLayer(_Indexed, LatentLayer):
    """A LatentLayer that also keeps the keys of an indexer, as transformers does."""

    @classmethod
    def of(cls, layer: DynamicLayer, *context: Any) -> LatentIndexedLayer:
        """The same content, the indexer's too."""
        new: Any = super().of(layer, *context)
        for name, value in layer.__dict__.items():
            if "indexer" in name:
                setattr(new, name, value)
        return new


class ShardedLayer(LatentLayer):
    """A LatentLayer whose tokens are shared out over the ranks of a DecodeContextParallel: `rows`
    are those of this rank's splits. The prompt is one run of splits a rank. Each split that begins
    later goes to the rank that has the fewest, so that generation keeps ranks level.

    `keys` and `values` have the shape of all tokens, but NaN in the place of numbers. `update`
    hands them out if the caller has set `may_lend`, as a patched attention layer does, which reads
    `rows`. Others get all tokens, gathered from all ranks."""

    def __init__(self, context: Any = None) -> None:
        super().__init__()
        self.context, self.may_lend = context, False
        self.owners: list[int] = []

    @property
    def held(self) -> int:
        """Rows of a sequence on this rank."""
        owners = np.array(self.owners, np.int32)
        return count_of(owners, self.length, self.context.split_tokens, self.context.rank)

    def _positions(self, rank: int, length: int, begin: int = 0) -> torch.Tensor:
        """Those of tokens [begin, length) that a rank has."""
        owners = np.array(self.owners, np.int32)
        return torch.from_numpy(tokens_of(owners, length, self.context.split_tokens, rank, begin))

    def _deal(self, begin: int, end: int) -> None:
        """Owners for the splits of tokens [begin, end)."""
        if begin == 0:
            self.owners = self.context.even_owners(end).tolist()
        while len(self.owners) * self.context.split_tokens < end:
            counts = np.bincount(self.owners, minlength=self.context.ranks)
            self.owners.append(int(counts.argmin()))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends those of this rank's tokens; returns all tokens, or what stands for them."""
        may_lend, self.may_lend = self.may_lend, False
        self._settle()
        b, _, n, width = key_states.shape
        begin, held = self.length, self.held
        self._deal(begin, begin + n)
        own = self._positions(self.context.rank, begin + n, begin) - begin
        end = held + len(own)
        if self.rows is None or end > self.rows.shape[1] - PAGE or not self._may_write():
            self._grow(b, end, width, width + value_states.shape[-1], key_states)
        self.rows[:, held:end, :width] = key_states[:, 0, own]
        self.rows[:, held:end, width:] = value_states[:, 0, own]
        self._set_length(begin + n, width)
        if begin == 0:
            return key_states, value_states
        return (self.keys, self.values) if may_lend else self.whole()

    def _set_length(self, length: int, width: int) -> None:
        """What stands for so many tokens takes one number."""
        b, row_width = self.rows.shape[0], self.rows.shape[2]
        nan = self.rows.new_full((1, 1, 1, 1), torch.nan)
        self._keys = nan.expand(b, 1, length, width)
        self._values = nan.expand(b, 1, length, row_width - width)
        self.owners = self.owners[: split_counts(length, self.context.split_tokens)]

    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """keys and values of all tokens, from all ranks, which all have to ask."""
        own = [self._positions(rank, self.length) for rank in range(self.context.ranks)]
        width, most = self.keys.shape[-1], max(len(x) for x in own)
        mine = self.rows.new_zeros(self.rows.shape[0], most, self.rows.shape[2])
        mine[:, : self.held] = self.rows[:, : self.held]
        whole = mine.new_empty(len(mine), 1, self.length, mine.shape[2])
        for positions, rows in zip(own, self.context.gather(mine)):
            whole[:, 0, positions] = rows[:, : len(positions)]
        return whole[..., :width], whole[..., width:]

    def reset(self) -> None:
        """Empty, as new."""
        super().reset()
        self.owners = []


class ShardedIndexedLayer(LatentIndexedLayer, ShardedLayer):
    """A ShardedLayer that also keeps the keys of an indexer, all of them on every rank."""

    def __init__(self, context: Any) -> None:
        super().__init__()
        self.context = context


_LATENT: dict[type, type] = {DynamicLayer: LatentLayer, DynamicIndexedLayer: LatentIndexedLayer}
_SHARDED: dict[type, type] = {DynamicLayer: ShardedLayer, DynamicIndexedLayer: ShardedIndexedLayer}
_SHARDED.update({_LATENT[kind]: sharded for kind, sharded in _SHARDED.items()})


def latent_layer(cache: Cache, i: int, context: Any = None) -> LatentLayer | None:
    """Layer i of the cache as a LatentLayer, or with a context as a ShardedLayer, if its kind is
    known to be a DynamicLayer's."""
    layers: list[Any] = cache.layers
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        while len(layers) <= i:
            layers.append(DynamicLayer())
    kinds, wanted = (_SHARDED, ShardedLayer) if context else (_LATENT, LatentLayer)
    if i < len(layers) and type(layers[i]) in kinds:
        kind: Any = kinds[type(layers[i])]
        layers[i] = kind.of(layers[i], *((context,) if context else ()))
    return layers[i] if i < len(layers) and isinstance(layers[i], wanted) else None
