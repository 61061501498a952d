"""Distances whose chance can show one value only; how often the intervals hold is shown where distances are measured.

Those are tests/tunemill/test_calibration.py and tests/tunemill/test_bias.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from tunemill import distances


def test_what_chance_shows_every_time_is_within_chance_however_it_is_rounded() -> None:
    # The same sum in two orders: 0.6 and 0.6000000000000001.
    value, chance = 0.1 + 0.2 + 0.3, np.full(200, 0.3 + 0.2 + 0.1)
    assert value > chance[0]
    draws = np.random.default_rng(0).normal(value, 0.01, size=2000)
    assert distances.interval(value, draws, chance, 40).low == 0.0
    assert distances.interval(value + 0.01, draws, chance, 40).low == pytest.approx(value - 0.01, abs=0.015)


def test_a_difference_that_chance_makes_every_time_shows_nothing() -> None:
    # Each of many targets stands in one text: 0.5 away beside one word, 1/6 beside three that do not agree. Nobody could be less.
    chances = np.full(200, 0.5), np.full(200, (2 / 3 - 1 / 3) / 2)
    values = 0.5, 1 / 6
    draws = np.random.default_rng(0).normal(1 / 3, 0.01, size=2000)
    found = distances.compare(values, draws, chances, 40)
    assert found.p == 1.0 and found.low is not None and found.low <= 0.0
    assert distances.detectable(values, draws, chances, 40) == pytest.approx(1 / 3, abs=0.02)
    # Where no chance accounts for either, so small a spread shows a difference.
    far = distances.compare(values, draws, (np.full(200, 0.1), np.full(200, 0.1)), 40)
    assert far.low is not None and far.low > 0.3 and far.p is not None and far.p < 0.01


def test_no_interval_leaves_the_range() -> None:
    draws = np.random.default_rng(0).normal(0.45, 0.05, size=2000)
    none = np.zeros(200)
    assert distances.interval(0.45, draws, none, 40, span=(0.0, 0.5)).high == 0.5
    high = distances.interval(0.45, draws, none, 40).high
    assert high is not None and high > 0.5


def test_chances_that_were_simulated_with_one_seed_are_two_samples() -> None:
    chance = np.abs(np.random.default_rng(1).normal(0, 0.1, size=2000))
    draws = np.random.default_rng(2).normal(0.13, 0.005, size=2000)
    found = distances.compare((0.15, 0.02), draws, (chance, chance.copy()), 40)
    ideal = np.abs(np.random.default_rng(3).normal(0, 0.1, size=(2, 100_000)))
    assert found.p == pytest.approx(2 * float((ideal[0] - ideal[1] >= 0.13).mean()), abs=0.02)
    assert found.low is not None and found.low <= 0.0
