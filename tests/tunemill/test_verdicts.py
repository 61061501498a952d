"""Who leads, what the criteria come to, and what promote decided."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests import report_artifacts as made
from tests.tunemill.test_report import material
from tunemill import verdicts


def rule(**changes: Any) -> dict[str, Any]:
    return {**made.CRITERION, **changes}


def judged(criterion: dict[str, Any], **entries: Any) -> verdicts.Criterion:
    found = material(
        scope={**made.scope(), "criteria": [criterion]}, comparison={"candidates": {}, "pairs": [], **entries}
    )
    [told] = verdicts.criteria(found)
    return told


@pytest.mark.parametrize(
    ("at_most", "outcome", "shortfall"), [(9.0, "met", None), (6.0, "missed", 1.0), (2.0, "missed", 5.0)]
)
def test_a_most_is_met_by_the_upper_end_of_the_interval(at_most: float, outcome: str, shortfall: float | None):
    of = {"metric": "bleu", "candidate": "lora", "against": None, "at_most": at_most, "why": ""}
    value = {"value": 5.0, "ci_low": 3.0, "ci_high": 7.0}
    told = judged(of, candidates={"lora": {"bleu": value}})
    assert (told.outcome, told.shortfall, told.name) == (outcome, shortfall, "lora: BLEU")
    assert told.measured == "5.0 (3.0 to 7.0)" and told.asked == f"{at_most} points or less"


def test_a_shortfall_is_from_the_decisive_end():
    pair = {"a": "lora", "b": "base", "metric": "rouge1", "diff": 5.0, "ci_low": 3.0, "ci_high": 7.0}
    assert judged(rule(at_least=4.5), pairs=[pair]).shortfall == 1.5
    assert judged(rule(at_least=2.0), pairs=[pair]).shortfall is None


def test_what_promote_decided_is_taken_over_as_it_is():
    found = verdicts.criteria(material(promotion=made.promoted(refused=True)))
    assert [each.outcome for each in found] == ["missed", "met", "undefined", "met"]
    assert [each.name for each in found] == [
        "lora over base on ROUGE-1", "lora over first-sentence on ROUGE-1",
        "lora: Decode speed, one prompt at a time", "lora: Peak memory of a process",
    ]  # fmt: skip
    assert found[3].asked == "4.00 GiB or less" and found[3].measured == "1.21 GiB"
    assert found[0].measured == "+10.2 (+8.1 to +12.3)" and found[0].said(found[0].shortfall) == "+0.9"
    assert verdicts.decision(material(promotion=made.promoted())) == (
        "lora",
        "lora is promoted: all 4 criteria are met",
        True,
    )
    assert verdicts.decision(material()) is None


def test_the_criterion_that_decides_is_the_first_missed_or_the_most_narrowly_met():
    refused = verdicts.criteria(material(promotion=made.promoted(refused=True)))
    assert verdicts.decisive(refused) is refused[0]
    told = made.promoted()
    close = {**told["criteria"][1], "at_least": 6.0}  # of an interval whose half is 2.3, 0.4 are left
    met = verdicts.criteria(
        material(promotion={**told, "criteria": [*told["criteria"][:1], close, told["criteria"][2]]})
    )
    assert verdicts.decisive(met) is met[1]
    assert verdicts.decisive([]) is None


def test_the_page_is_about_the_candidate_that_was_decided_on():
    three = material({"base": 0.0, "weak": 3.0, "strong": 12.0})
    assert verdicts.verdict(three).leader == "strong" and verdicts.verdict(three).is_picked
    told = verdicts.verdict(replace(three, promotion=made.promoted("weak")))
    assert (told.challenger, told.leader, told.is_picked) == ("weak", "weak", False)
    told = verdicts.verdict(replace(three, promotion=made.promoted("base")))
    assert (told.challenger, told.leader, told.difference) == (None, "base", None)
