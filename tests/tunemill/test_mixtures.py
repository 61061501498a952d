"""Mixtures: rates by hand and by the paper's limits, draws that follow them and spend a task before repeating it."""

from __future__ import annotations

from collections import Counter

import pytest

from tunemill import mixtures

SIZES = {"large": 9000, "middle": 900, "small": 100}


def test_temperature_one_is_proportional() -> None:
    assert mixtures.rates(SIZES, 1.0, 1_000_000) == pytest.approx({"large": 0.9, "middle": 0.09, "small": 0.01})


def test_a_large_temperature_makes_tasks_equal() -> None:
    assert mixtures.rates(SIZES, 1e9, 1_000_000) == pytest.approx(dict.fromkeys(SIZES, 1 / 3))


def test_temperature_two_takes_roots() -> None:
    rates = mixtures.rates({"large": 900, "middle": 225, "small": 25}, 2.0, 1_000_000)
    assert rates == pytest.approx({"large": 30 / 50, "middle": 15 / 50, "small": 5 / 50})


def test_the_cap_counts_before_the_temperature() -> None:
    # min(9000, 400) = 400 and min(900, 400) = 400: roots 20 : 20 : 10
    assert mixtures.rates(SIZES, 2.0, 400) == pytest.approx({"large": 0.4, "middle": 0.4, "small": 0.2})


def test_a_small_temperature_leaves_the_largest() -> None:
    assert mixtures.rates(SIZES, 1e-3, 1_000_000) == pytest.approx({"large": 1.0, "middle": 0.0, "small": 0.0})


@pytest.mark.parametrize(
    ("sizes", "temperature", "cap"),
    [({}, 1.0, 10), ({"a": 0}, 1.0, 10), ({"a": 1}, 0.0, 10), ({"a": 1}, -1.0, 10), ({"a": 1}, 1.0, 0)],
)
def test_what_cannot_be_mixed(sizes: dict[str, int], temperature: float, cap: int) -> None:
    with pytest.raises(ValueError, match="needs a row|must be positive"):
        mixtures.rates(sizes, temperature, cap)


def test_draws_follow_the_rates() -> None:
    rates = mixtures.rates(SIZES, 2.0, 2000)
    counts = Counter(task for task, _ in mixtures.draw(SIZES, rates, 20_000, 3))
    for task, rate in rates.items():
        # four standard errors of a binomial share
        assert abs(counts[task] / 20_000 - rate) < 4 * (rate * (1 - rate) / 20_000) ** 0.5


def test_a_task_is_spent_before_a_row_comes_again() -> None:
    sizes = {"a": 5, "b": 40}
    drawn = mixtures.draw(sizes, {"a": 0.5, "b": 0.5}, 60, 0)
    rows = [row for task, row in drawn if task == "a"]
    rounds = [rows[at : at + 5] for at in range(0, len(rows), 5)]
    assert len(rounds) > 3
    assert all(sorted(each) == list(range(5)) for each in rounds[:-1])
    assert len(set(rounds[-1])) == len(rounds[-1])
    assert rounds[0] != rounds[1]
    assert all(0 <= row < sizes[task] for task, row in drawn)


def test_draws_depend_on_the_seed_and_go_on() -> None:
    rates = mixtures.rates(SIZES, 2.0, 2000)
    drawn = mixtures.draw(SIZES, rates, 50, 7)
    assert drawn == mixtures.draw(SIZES, dict(reversed(rates.items())), 50, 7)
    assert drawn == mixtures.draw(SIZES, rates, 80, 7)[:50]
    assert drawn != mixtures.draw(SIZES, rates, 50, 8)
