"""Which rows are read together: against trying every way."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from tunemill import packing


@pytest.mark.parametrize("seed", range(6))
def test_batches_cost_the_least_there_is(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(packing, "PASS", rng.choice([1, 12, 80]))
    sizes = [rng.randrange(10, 60) for _ in range(9)]
    known, tokens, rows = rng.choice([0, 9]), rng.choice([50, 120, 300]), rng.choice([2, 4, 9])

    def cost(batches: Sequence[Sequence[int]]) -> float:
        fits = all(
            len(each) == 1 or (len(each) <= rows and len(each) * max(sizes[at] for at in each) <= tokens)
            for each in batches
        )
        spent = sum(len(each) * (max(sizes[at] for at in each) - known) + packing.PASS for each in batches)
        return spent if fits else float("inf")

    order = sorted(range(9), key=lambda at: -sizes[at])
    ways = []
    for cuts in itertools.product([False, True], repeat=8):
        batches = [[order[0]]]
        for at, cut in zip(order[1:], cuts, strict=True):
            batches = [*batches, [at]] if cut else [*batches[:-1], [*batches[-1], at]]
        ways.append(cost(batches))
    found = packing.plan(sizes, known, tokens, rows)
    assert sorted(at for each in found for at in each) == list(range(9))
    assert cost(found) == min(ways)
    assert sizes[found[0][0]] == max(sizes)
