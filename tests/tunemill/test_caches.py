"""The roomy cache: what transformers' own holds after the same calls, without copying what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tunemill import caches, models, runtime


@pytest.fixture(scope="module")
def model(decoder: Path) -> Any:
    return models.load_base(decoder, runtime.Runtime("cpu", "float32", 2))


def read(model: Any, cache: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, past_key_values=cache, use_cache=True).logits


def equal(cache: Any, other: Any) -> bool:
    return all(
        torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        for a, b in zip(cache.layers, other.layers, strict=True)
    )


@pytest.mark.parametrize("room", [2, 16, 40])
def test_holds_what_transformers_own_holds(model: Any, room: int) -> None:
    torch.manual_seed(1)
    ids = torch.randint(3, 200, (3, 12))
    ours, theirs = caches.roomy(model, 3, room, None), DynamicCache(config=model.config)
    for first, end in ((0, 7), (7, 8), (8, 12)):
        assert torch.allclose(read(model, ours, ids[:, first:end]), read(model, theirs, ids[:, first:end]), atol=1e-5)
        assert equal(ours, theirs) and ours.get_seq_length() == end
    keep = torch.tensor([2, 0])
    for cache in (ours, theirs):
        cache.batch_select_indices(keep)
        cache.batch_repeat_interleave(2)
    assert torch.allclose(
        read(model, ours, ids[:1].expand(4, -1)), read(model, theirs, ids[:1].expand(4, -1)), atol=1e-5
    )
    assert equal(ours, theirs) and ours.layers[0].keys.shape[0] == 4


def test_every_row_begins_with_the_beginning_which_stays_as_it_is(model: Any) -> None:
    ids = torch.arange(3, 12)[None]
    beginning = DynamicCache(config=model.config)
    read(model, beginning, ids)
    before = [layer.keys.clone() for layer in beginning.layers]
    cache = caches.roomy(model, 3, 20, beginning)
    read(model, cache, torch.tensor([[5, 6], [7, 8], [9, 10]]))
    assert all(
        torch.equal(layer.keys[:, :, :9], known.expand(3, -1, -1, -1))
        for layer, known in zip(cache.layers, before, strict=True)
    )
    assert all(torch.equal(layer.keys, known) for layer, known in zip(beginning.layers, before, strict=True))


def test_new_positions_are_written_beside_the_old_ones(model: Any) -> None:
    cache = caches.roomy(model, 1, 12, None)
    read(model, cache, torch.arange(3, 12)[None])
    place = cache.layers[0].keys.data_ptr()
    read(model, cache, torch.tensor([[5, 6]]))
    assert cache.layers[0].keys.data_ptr() == place
