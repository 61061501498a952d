"""What may be said of an interval, and of a pair seen from either side."""

from __future__ import annotations

import pytest

from tunemill import findings
from tunemill.findings import Estimate


@pytest.mark.parametrize(
    ("low", "high", "higher", "lower"),
    [
        (0.1, 4.0, "better", "worse"),
        (-4.0, -0.1, "worse", "better"),
        (-0.1, 4.0, "unproven", "unproven"),
        (0.0, 4.0, "unproven", "unproven"),  # touching zero shows nothing
        (None, None, "unproven", "unproven"),
    ],
)
def test_better_needs_the_whole_interval(low: float | None, high: float | None, higher: str, lower: str):
    shown = Estimate(None if low is None else 2.0, low, high)
    assert findings.judge(shown) == higher
    assert findings.judge(shown, lower_is_better=True) == lower


def test_a_pair_reads_the_same_from_both_sides():
    comparison = {
        "pairs": [
            {"a": "x", "b": "y", "metric": "rouge1", "diff": 2.0, "ci_low": -1.0, "ci_high": 5.0, "n": 9, "p": 0.2}
        ]
    }
    there, back = (
        findings.difference(comparison, "x", "y", "rouge1"),
        findings.difference(comparison, "y", "x", "rouge1"),
    )
    assert (there.estimate.value, there.estimate.low, there.estimate.high) == (2.0, -1.0, 5.0)
    assert (back.estimate.value, back.estimate.low, back.estimate.high) == (-2.0, -5.0, 1.0)
    assert findings.difference(comparison, "x", "z", "rouge1").estimate.reason == "this pair was not compared"
