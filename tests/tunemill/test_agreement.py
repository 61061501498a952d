"""Agreement against published examples, scipy, and what the coefficients are at their ends."""

from __future__ import annotations

import random
from statistics import fmean

import pytest
from scipy import stats

from tunemill import agreement

_ = None
# Krippendorff (2011), "Computing Krippendorff's alpha-reliability", section C: four observers, twelve units, values missing.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]
UNITS = [list(each) for each in zip(*OBSERVERS, strict=True)]


@pytest.mark.parametrize(("scale", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_example_that_its_author_published(scale: agreement.Scale, published: float) -> None:
    assert agreement.krippendorff_alpha(UNITS, scale) == pytest.approx(published, abs=5e-4)


def test_alpha_at_its_ends() -> None:
    assert agreement.krippendorff_alpha([[1, 1], [2, 2], [3, 3, 3]], "ordinal") == 1.0
    assert agreement.krippendorff_alpha([[1, 2], [2, 1]], "nominal") == pytest.approx(-0.5)  # worse than chance
    draw = random.Random(0)
    by_chance = [[draw.randint(1, 5), draw.randint(1, 5)] for _ in range(4000)]
    assert agreement.krippendorff_alpha(by_chance, "interval") == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("units", [[], [[1], [2, None]], [[1, 1], [1, 1]]])
def test_alpha_is_undefined_of_one_person_or_one_value(units: list[list[float | None]]) -> None:
    assert agreement.krippendorff_alpha(units, "ordinal") is None


def test_concordance_is_friedmans_statistic_over_its_largest_value() -> None:
    """W = χ² / (m (n − 1)), ties and all; the statistic is scipy's."""
    draw = random.Random(1)
    for things, people in ((4, 3), (6, 5), (3, 12)):
        rankings = [[float(draw.randint(1, 4)) for _ in range(things)] for _ in range(people)]
        known = stats.friedmanchisquare(*zip(*rankings, strict=True)).statistic if things > 2 else 0.0
        assert agreement.kendall_w(rankings) == pytest.approx(known / (people * (things - 1)))


def test_concordance_at_its_ends() -> None:
    assert agreement.kendall_w([[1, 2, 3, 4]] * 3) == 1.0
    assert agreement.kendall_w([[1, 2, 3], [3, 2, 1]]) == 0.0
    draw = random.Random(2)
    by_chance = [agreement.kendall_w([draw.sample(range(5), 5) for _ in range(4)]) or 0.0 for _ in range(2000)]
    assert fmean(by_chance) == pytest.approx(1 / 4, abs=0.02)


def test_concordance_is_undefined_of_one_person_one_thing_or_nothing_but_ties() -> None:
    assert agreement.kendall_w([]) is None
    assert agreement.kendall_w([[1, 2, 3]]) is None
    assert agreement.kendall_w([[1], [1]]) is None
    assert agreement.kendall_w([[2, 2, 2], [1, 1, 1]]) is None
    with pytest.raises(ValueError, match=r"rankings of \[2, 3\] things"):
        agreement.kendall_w([[1, 2], [1, 2, 3]])
