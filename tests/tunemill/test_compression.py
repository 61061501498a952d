"""Pareto frontiers, advice, paired intervals, perplexity and sparsity, by hand."""

from __future__ import annotations

import math

import pytest

from tunemill import compression
from tunemill.compression import Measured


def test_the_frontier_is_whom_nobody_surpasses() -> None:
    points = {"a": (1.0, 1.0), "b": (2.0, 3.0), "c": (2.0, 2.0), "d": (3.0, 3.0), "e": (4.0, 4.0), "twin": (4.0, 4.0)}
    assert compression.frontier(points) == ["a", "b", "e", "twin"]
    assert compression.frontier({"alone": (5.0, 0.0)}) == ["alone"]


@pytest.mark.parametrize(
    ("tolerance", "slowest", "taken"),
    [
        (0.01, 1.0, "eight"),  # four has lost 2%
        (0.03, 1.0, "four"),
        (0.03, 2.0, "four"),
        (0.01, 1.5, "eight"),
        (0.01, 9.0, "slow"),  # nobody is as fast: the smallest that is as good
        (0.0, 1.0, "parent"),
        (0.5, 0.0, "broken"),
    ],
)
def test_the_advice_is_the_smallest_that_is_good_and_fast_enough(tolerance: float, slowest: float, taken: str) -> None:
    measured = {
        "parent": Measured(50.0, 400, 1.0),
        "eight": Measured(49.8, 110, 1.9),
        "slow": Measured(49.9, 100, 0.4),
        "four": Measured(49.0, 60, 2.5),
        "broken": Measured(30.0, 10, 3.0),
    }
    assert compression.advise(measured, tolerance, slowest) == taken


def test_paired_means_and_their_share() -> None:
    ours, theirs = [40.0, 20.0, 30.0, 50.0] * 6, [44.0, 22.0, 33.0, 55.0] * 6
    groups = [f"g{at % 12}" for at in range(24)]
    found = compression.compared(ours, theirs, groups, 2000, 0, 0.95)
    assert found.value.value == pytest.approx(35.0)
    assert found.difference.diff == pytest.approx(-3.5)
    assert found.difference.high is not None and found.difference.high < 0
    # A tenth less of every row is a tenth less of every resample too: what does not vary has no interval but itself.
    assert found.share.value == pytest.approx(1 / 1.1)
    same = compression.compared(ours, ours, groups, 2000, 0, 0.95)
    assert (same.difference.diff, same.difference.p) == (0.0, 1.0)


def test_perplexity_is_of_all_tokens_and_its_ratio_is_paired() -> None:
    theirs = [(-2.0, 2), (-9.0, 3), (-4.0, 4), (-5.0, 1)] * 6
    ours = [(logprob - 0.1 * tokens, tokens) for logprob, tokens in theirs]
    groups = [f"g{at}" for at in range(24)]
    own, ratio = compression.perplexities(ours, theirs, groups, 2000, 0, 0.95)
    assert own.value == pytest.approx(math.exp(20 / 10 + 0.1))
    assert ratio.value == pytest.approx(math.exp(0.1))
    assert own.low is not None and own.high is not None and own.low < own.value < own.high
