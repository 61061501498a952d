"""A cache of keys and values that writes new positions beside the old ones, into room that is kept for them.

transformers' own copies all it has for every token: at 600 positions that is half of what a token costs on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # the library's own way to another cache: override update
    """One layer's keys and values, (B, heads, positions, width) each: views of tensors with more positions."""

    keys: Any
    values: Any

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.stores: list[torch.Tensor] = []
        """Of keys and of values: (B, heads, room, width); empty where they have to be made (anew)."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Add positions; all there are come back."""
        first = self.get_seq_length()
        end = first + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not self.stores or self.stores[0].shape[-2] < end:
            known = (self.keys, self.values)
            shape = (*key_states.shape[:2], max(self.room, end))
            self.stores = [each.new_empty((*shape, each.shape[-1])) for each in (key_states, value_states)]
            for store, old in zip(self.stores, known, strict=True):
                if first:
                    store[:, :, :first] = old
        for store, new in zip(self.stores, (key_states, value_states), strict=True):
            store[:, :, first:end] = new
        self.keys, self.values = (store[:, :, :end] for store in self.stores)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows."""
        super().batch_select_indices(indices)
        self.stores = []  # of the rows there were

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Put each row there several times."""
        super().batch_repeat_interleave(repeats)
        self.stores = []


def roomy(model: Any, rows: int, room: int, beginning: Any) -> DynamicCache:
    """A cache for a batch.

    Args:
        model: one that keeps all keys and values.
        rows: of the batch, B.
        room: most positions there will be; more than that are copied once.
        beginning: cache of one row, what every row begins with; or None.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer(room) for _ in cache.layers]
    if beginning is not None:
        for layer, known in zip(cache.layers, beginning.layers, strict=True):
            layer.update(known.keys.expand(rows, -1, -1, -1), known.values.expand(rows, -1, -1, -1))
    return cache


def gathered(
    model: Any, parts: Sequence[tuple[Sequence[int], Any]], rows: int, width: int, room: int, beginning: Any
) -> DynamicCache:
    """One cache of what was read in parts, each row's positions aligned at their end.

    Args:
        model: one that keeps all keys and values.
        parts: rows, and the cache of what was read of them; every row in one part. A part's positions are what all rows begin
            with, then its own.
        rows: of the whole, B.
        width: positions of the whole, at least those of the longest part.
        room: most positions there will be.
        beginning: cache of one row, what every row begins with; or None.
    """
    whole = roomy(model, rows, room, beginning)
    known = beginning.get_seq_length() if beginning is not None else 0
    for at, layer in enumerate(whole.layers):
        for place, (chosen, part) in enumerate(parts):
            keys, values = part.layers[at].keys[:, :, known:], part.layers[at].values[:, :, known:]
            if not place:  # what no part fills is padding, which nothing looks at; but it must be a number
                shape = (rows, keys.shape[1], width - known)
                layer.update(*(each.new_zeros(()).expand(*shape, each.shape[3]) for each in (keys, values)))
            index = torch.tensor(list(chosen), device=keys.device)
            first = width - keys.shape[2]
            layer.keys[index, :, first:] = keys
            layer.values[index, :, first:] = values
    return whole
