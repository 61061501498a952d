"""Agreement against published examples, scipy, and what the coefficients are at their ends."""

from __future__ import annotations

import random
from statistics import fmean

import pytest
from scipy import stats

from tunemill import agreement
from tunemill.preferences import Ranking

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


def ranking(labeler: str, prompt: str = "p", **ranks: float | None) -> Ranking:
    return Ranking(prompt, tuple(ranks), tuple(ranks.values()), labeler)


def test_agreement_of_rankings_is_of_the_prompts_that_several_people_ranked() -> None:
    """By hand: sums of ranks 3, 3 and 6 give W = 12·6 / (4·24); observed disagreement 16/6, expected 192/30."""
    found = agreement.among(
        [
            ranking("ada", a=1, b=2, c=3),
            ranking("grace", c=9, a=2, b=1),  # the same answers in another order, on another scale
            ranking("ada", prompt="q", a=1, b=2),
            ranking("alan", prompt="r", a=1, b=2),
        ]
    )
    assert found == agreement.Agreement(3, 1, pytest.approx(0.75), pytest.approx(1 - (16 / 6) / (192 / 30)))
    assert "Kendall's W 0.75 on average, Krippendorff's alpha 0.58" in agreement.told(found)


def test_what_one_marks_as_nonsense_moves_nobodys_ranks() -> None:
    found = agreement.among([ranking("ada", x=None, a=1, b=2, c=2), ranking("grace", x=2, a=1, b=3, c=3)])
    assert found == agreement.Agreement(2, 1, 1.0, 1.0)
    nothing = agreement.among([ranking("ada", a=1, b=None), ranking("grace", a=None, b=1)])
    assert nothing == agreement.Agreement(2, 0, None, None)


def test_what_somebody_says_twice_counts_once_and_all_ties_are_undefined() -> None:
    changed = [ranking("ada", a=1, b=2), ranking("grace", a=1, b=2), ranking("ada", b=1, a=2)]
    assert agreement.among(changed).kendall_w == 0.0
    tied = agreement.among([ranking("ada", a=1, b=1), ranking("grace", a=1, b=1)])
    assert tied == agreement.Agreement(2, 1, None, None)
    assert "Kendall's W undefined" in agreement.told(tied)


def test_scores_in_the_same_order_as_ranks_agree_fully_however_far_apart_they_are() -> None:
    found = agreement.among([ranking("ada", a=1, b=2, c=3), ranking("grace", a=1, b=1.4, c=1.65)])
    assert found == agreement.Agreement(2, 1, 1.0, 1.0)


def test_a_model_is_none_of_the_people_who_agree() -> None:
    people = [ranking("ada", a=1, b=2, c=3), ranking("grace", a=1, b=3, c=2)]
    model = ranking("judge", a=3, b=2, c=1)._replace(ranked_by="model")
    assert agreement.among([*people, model]) == agreement.among(people)
    assert agreement.among([people[0], model]) == agreement.Agreement(1, 0, None, None)
    assert agreement.told(agreement.among([model])) == "no person has ranked: no agreement can be measured"


def test_agreement_that_cannot_be_measured_is_said_plainly() -> None:
    alone = agreement.among([ranking("ada", a=1, b=2), ranking("ada", prompt="q", a=1, b=2)])
    assert agreement.told(alone) == "one labeler only: no agreement can be measured"
    apart = agreement.among([ranking("ada", a=1, b=2), ranking("grace", prompt="q", a=1, b=2)])
    assert agreement.told(apart) == "no prompt was ranked by several people: no agreement can be measured"
