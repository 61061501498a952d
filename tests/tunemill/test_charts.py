"""Scales, ticks and paths, by hand."""

from __future__ import annotations

import math

import pytest

from tunemill.charts import Scale, line, running_mean, scale, thin


def test_a_scale_maps_its_ends_and_its_middle_and_cuts_what_lies_outside():
    across = Scale(-10.0, 30.0)
    assert [across(value) for value in (-10, 0, 10, 30, -99, 99)] == [0, 25, 50, 100, 0, 100]
    assert [Scale(0, 4, flip=True)(value) for value in (0, 1, 4)] == [100, 75, 0]


def test_no_position_is_minus_zero():
    assert math.copysign(1, Scale(0, 1)(-0.0)) == 1


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (0, 10, 6, (0, 2, 4, 6, 8, 10)),
        (23.0, 38.5, 4, (25, 30, 35)),
        (-2.7, 13.1, 5, (0, 5, 10)),
        (0.0012, 0.0047, 4, (0.002, 0.003, 0.004)),
        (-0.3, 0.3, 7, (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)),
        (0, 98_000, 6, (0, 20_000, 40_000, 60_000, 80_000)),
    ],
)
def test_ticks_are_round_inside_and_not_too_many(low: float, high: float, most: int, ticks: tuple[float, ...]):
    assert Scale(low, high).ticks(most) == ticks


@pytest.mark.parametrize("most", [2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("reach", [1e-6, 0.3, 1.0, 7.7, 950.0, 3e9])
def test_there_are_never_more_ticks_than_asked_for(reach: float, most: int):
    for start in (-reach / 3, 0.0, 0.123 * reach, 11 * reach):
        ticks = Scale(start, start + reach).ticks(most)
        assert len(ticks) <= most
        assert all(start - reach * 1e-6 <= each <= start + reach * 1.000001 for each in ticks)


def test_a_scale_leaves_air_but_none_below_a_natural_zero():
    assert scale([10.0, 20.0], margin=0.1) == Scale(9.0, 21.0)
    assert scale([10.0, 20.0], zero=True, margin=0.1) == Scale(0.0, 22.0)
    assert scale([-10.0], zero=True, margin=0.1) == Scale(-11.0, 0.0)


def test_a_scale_survives_nothing_one_value_and_undefined_values():
    assert scale([]) == scale([None, math.nan]) == Scale(0.0, 1.0)
    assert scale([5.0]) == Scale(4.5, 5.5)
    assert scale([-2.0]) == Scale(-2.2, -1.8)
    assert scale([0.0, 0.0]) == Scale(-1.0, 1.0)


def test_a_line_starts_with_a_move_and_goes_on_with_lines():
    assert line([(0, 0), (5, 10), (10, 5)], Scale(0, 10), Scale(0, 10, flip=True)) == "M0 100 L50 0 L100 50"
    assert line([], Scale(0, 1), Scale(0, 1)) == ""


def test_a_running_mean_looks_only_back():
    assert running_mean([4.0, 2.0, 6.0, 0.0], 2) == [4.0, 3.0, 4.0, 3.0]
    assert running_mean([4.0, 2.0], 1) == [4.0, 2.0]


def test_thinning_keeps_short_curves_and_averages_long_ones():
    short = [(0.0, 1.0), (1.0, 3.0)]
    assert thin(short, 2) == short
    assert thin([(float(step), float(step)) for step in range(10)], 5) == [
        (0.5, 0.5),
        (2.5, 2.5),
        (4.5, 4.5),
        (6.5, 6.5),
        (8.5, 8.5),
    ]
    assert len(thin([(float(step), 1.0) for step in range(40_001)], 600)) == 600
