"""Criteria: every kind of metric, thresholds met to the digit, what is undefined; and a newcomer against the champion."""

from __future__ import annotations

import math
from typing import Any

import pytest

from stages import __main__ as checks
from tunemill import promotion
from tunemill.promotion import Measured

# Rounds with ratios 0.8, 0.9, 1.0, 1.1, 1.25: by hand, the middle three have the geometric mean (0.9 · 1.0 · 1.1)^(1/3) = 0.99666.
OURS, THEIRS = (8.0, 18.0, 10.0, 22.0, 12.5), (10.0, 20.0, 10.0, 20.0, 10.0)
SPAN = {"ci_low": 1.0, "ci_high": 3.0, "n": 40}
COMPARISON: dict[str, Any] = {
    "reference": "base",
    "level": 0.95,
    "candidates": {
        "base": {"rouge1": {"value": 20.0, "ci_low": 18.0, "ci_high": 22.0, "n": 40}},
        "lora": {"rouge1": {"value": 30.0, "ci_low": 27.0, "ci_high": 33.0, "n": 40}, "bleu": {"value": 4.0, **SPAN}},
        "first-sentence": {"rouge1": {"value": 19.0, "ci_low": 17.0, "ci_high": 21.0, "n": 40}},
    },
    "pairs": [
        {"a": "lora", "b": "base", "metric": "rouge1", "diff": 10.0, "ci_low": 7.5, "ci_high": 12.5, "n": 40},
        {"a": "lora", "b": "first-sentence", "metric": "rouge1", "diff": 11.0, "ci_low": 9.0, "ci_high": 13.0, "n": 40},
    ],
    "details": {
        "base": {
            "toxicity/test/offence": {"value": 0.04, "ci_low": 0.02, "ci_high": 0.06, "n": 40},
            "bias/race_professions": {"value": None, "ci_low": None, "ci_high": None, "n": 0, "reason": "nobody was named"},
            "efficiency/peak_mib": {"value": 1000.0, "ci_low": None, "ci_high": None, "n": 1, "reason": "measured once"},
        },
        "lora": {
            "toxicity/test/offence": {"value": 0.05, "ci_low": 0.03, "ci_high": 0.07, "n": 40}
            | {"diff": 0.01, "diff_low": -0.01, "diff_high": 0.03},
            "bias/race_professions": {"value": None, "ci_low": None, "ci_high": None, "n": 0, "reason": "nobody was named"}
            | {"diff": None, "diff_low": None, "diff_high": None, "diff_reason": "nobody was named"},
            "efficiency/peak_mib": {"value": 1100.0, "ci_low": None, "ci_high": None, "n": 1, "reason": "measured once"}
            | {"diff": 100.0, "diff_low": None, "diff_high": None, "diff_reason": "measured once"},
        },
    },
    "figure_pairs": [
        {"a": "lora", "b": "ppo", "metric": "toxicity/test/offence", "diff": 0.02, "ci_low": 0.01, "ci_high": 0.03, "n": 40}
    ],
    "alignment": [
        {
            "name": "ppo",
            "against": "lora",
            "measures": {"harm": {"diff": -0.1, "ci_low": -0.2, "ci_high": -0.02, "n": 500}},
            "continuation": {"harm": {"diff": 0.0, "ci_low": -0.1, "ci_high": 0.1, "n": 300}},
            "harmless": {"helpful": {"diff": None, "ci_low": None, "ci_high": None, "n": 0, "reason": "nobody judges it"}},
        }
    ],
    "forgetting": [
        {"candidate": "lora", "task": "mmlu", "measure": "nll", "diff": 9.0, "ci_low": 8.0, "ci_high": 9.5, "n": 9},
        {"candidate": "lora", "task": None, "measure": "nll", "diff": 0.2, "ci_low": 0.1, "ci_high": 0.3, "n": 90},
    ],
}  # fmt: skip
EFFICIENCY: dict[str, Any] = {
    "candidates": {
        "base": {"memory_bytes": 2000, "disk_bytes": 200 * 2**20},
        "lora": {"memory_bytes": 3000, "disk_bytes": 210 * 2**20},
    },
    "samples": {
        name: [{"decode_tokens_per_second": each, "first_token_seconds": 1 / each} for each in rounds]
        for name, rounds in (("base", THEIRS), ("lora", OURS))
    },
}


def rule(metric: str, candidate: str = "lora", against: str | None = None, **threshold: float) -> dict[str, Any]:
    return {"metric": metric, "candidate": candidate, "against": against, "why": "it must", **threshold}


def judged(asked: dict[str, Any], comparison: Any = COMPARISON, efficiency: Any = EFFICIENCY) -> promotion.Criterion:
    [found] = promotion.judged([asked], comparison, efficiency)
    return found


@pytest.mark.parametrize(
    ("threshold", "outcome", "short"),
    [
        ({"at_least": 7.5}, "met", None),  # the lower end reaches it to the digit
        ({"at_least": 7.75}, "missed", 0.25),  # the value is far above it, and its lower end is not
        ({"at_least": 13.0}, "missed", 5.5),
        ({"at_most": 12.5}, "met", None),  # the upper end does not exceed it
        ({"at_most": 12.25}, "missed", 0.25),
        ({"at_most": 0.0}, "missed", 12.5),
    ],
)
def test_the_end_of_the_interval_decides(threshold: dict[str, float], outcome: str, short: float | None) -> None:
    found = judged(rule("rouge1", against="base", **threshold))
    assert (found.outcome, found.shortfall) == (outcome, short)
    assert (found.value, found.ci_low, found.ci_high, found.n, found.unit) == (10.0, 7.5, 12.5, 40, "points")


@pytest.mark.parametrize(
    ("asked", "value", "low", "high", "unit"),
    [
        (rule("rouge1", at_least=1.0), 30.0, 27.0, 33.0, "points"),
        (rule("rouge1", against="first-sentence", at_least=1.0), 11.0, 9.0, 13.0, "points"),
        (rule("rouge1", "base", "lora", at_least=1.0), -10.0, -12.5, -7.5, "points"),
        (rule("toxicity/test/offence", at_most=1.0), 0.05, 0.03, 0.07, ""),
        (rule("toxicity/test/offence", against="base", at_most=1.0), 0.01, -0.01, 0.03, ""),
        (rule("toxicity/test/offence", "base", "lora", at_most=1.0), -0.01, -0.03, 0.01, ""),
        (rule("toxicity/test/offence", against="ppo", at_most=1.0), 0.02, 0.01, 0.03, ""),
        (rule("alignment/harm", "ppo", "lora", at_most=0.0), -0.1, -0.2, -0.02, ""),
        (rule("alignment/continuation/harm", "ppo", "lora", at_most=0.0), 0.0, -0.1, 0.1, ""),
        (rule("forgetting/nll", against="base", at_most=1.0), 0.2, 0.1, 0.3, "nats per token"),
        (rule("memory_ratio", against="base", at_most=2.0), 1.5, None, None, "×"),
        (rule("disk_ratio", against="base", at_most=2.0), 1.05, None, None, "×"),
        (rule("disk_mib", at_most=210.0), 210.0, None, None, "MiB"),
        (rule("disk_mib", against="base", at_most=10.0), 10.0, None, None, "MiB"),
        (rule("efficiency/peak_mib", at_most=1100.0), 1100.0, None, None, "MiB"),
        (rule("efficiency/peak_mib", against="base", at_most=100.0), 100.0, None, None, "MiB"),
    ],
)
def test_every_kind_of_figure_is_found(
    asked: dict[str, Any], value: float, low: float | None, high: float | None, unit: str
) -> None:
    found = judged(asked)
    assert (found.value, found.ci_low, found.ci_high, found.unit) == (pytest.approx(value), low, high, unit)
    beyond = found.metric == "alignment/continuation/harm" or (found.candidate, found.metric) == ("base", "rouge1")
    assert found.outcome == ("missed" if beyond else "met")


def test_a_ratio_is_taken_within_the_rounds_and_its_interval_over_them() -> None:
    found = judged(rule("decode_ratio", against="base", at_least=0.5))
    assert found.value == pytest.approx((0.9 * 1.0 * 1.1) ** (1 / 3)) and found.n == 5 and found.unit == "×"
    # Yuen (1974) by hand: the logarithms with their ends pulled in, (n − 1) s² / (h (h − 1)), Student's t of two degrees of freedom.
    logs = [math.log(each) for each in (0.9, 0.9, 1.0, 1.1, 1.1)]
    mean = sum(logs) / 5
    error = math.sqrt(sum((each - mean) ** 2 for each in logs) / (3 * 2))
    centre, reach = math.log(found.value or 0), 4.302652729911275 * error
    assert (found.ci_low, found.ci_high) == (
        pytest.approx(math.exp(centre - reach)),
        pytest.approx(math.exp(centre + reach)),
    )
    slower = judged(rule("first_token_ratio", against="base", at_most=9.0))
    assert slower.value == pytest.approx(1 / (0.9 * 1.0 * 1.1) ** (1 / 3))
    one = {**EFFICIENCY, "samples": {name: rows[:1] for name, rows in EFFICIENCY["samples"].items()}}
    alone = judged(rule("decode_ratio", against="base", at_least=0.5), efficiency=one)
    assert alone.outcome == "undefined" and alone.reason == "no interval from one round" and alone.value == 0.8


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (rule("bias/race_professions", at_most=0.5), "nobody was named"),
        (rule("bias/race_professions", against="base", at_most=0.5), "nobody was named"),
        (rule("alignment/harmless/helpful", "ppo", "lora", at_least=-0.1), "nobody judges it"),
        (rule("alignment/harm", "lora", "base", at_most=0.0), "this pair was not compared on red-team prompts"),
        (rule("forgetting/accuracy", against="base", at_least=0.0), "other tasks were not asked, or not compared with this one"),
        (rule("toxicity/test/offence", "ppo", at_most=0.5), "not measured for this candidate"),
        (rule("toxicity/test/offence", against="sft", at_most=0.5), "this pair was not compared"),
        (rule("rouge1", "sft", at_least=0.0), "not measured for this candidate"),
        (rule("rouge1", "sft", "base", at_least=0.0), "this pair was not compared"),
        (rule("decode_ratio", "sft", "base", at_least=0.5), "speed was not measured"),
        (rule("prefill_ratio", against="base", at_least=0.5), "speed was not measured"),
        (rule("memory_ratio", "sft", "base", at_most=1.0), "memory was not measured"),
        (rule("disk_mib", "sft", at_most=1.0), "size on disk was not measured"),
    ],
)  # fmt: skip
def test_what_is_undefined_is_not_met_and_says_why(asked: dict[str, Any], reason: str) -> None:
    found = judged(asked)
    assert (found.outcome, found.shortfall, found.reason) == ("undefined", None, reason)
    assert f"undefined ({reason}), which counts as not met" in found.sentence
    assert promotion.verdict("lora", [found])[0] == "refused"


def test_without_efficiency_speed_is_undefined() -> None:
    for metric in (*promotion.RATIOS, promotion.DISK):
        assert judged(rule(metric, against="base", at_least=0.0), efficiency=None).outcome == "undefined"


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            rule("rouge1", against="base", at_least=2.0),
            "rouge1 of lora against base: +10 [+7.5, +12.5] points, at least 2 was asked: met",
        ),
        (
            rule("rouge1", at_least=28.5),
            "rouge1 of lora: 30 [27, 33] points, at least 28.5 was asked: missed by 1.5 points at the lower end of its interval",
        ),
        (
            rule("toxicity/test/offence", against="base", at_most=0.02),
            "toxicity/test/offence of lora against base: +0.01 [−0.01, +0.03], at most 0.02 was asked: missed by 0.01 at the upper end"
            " of its interval",
        ),
        (
            rule("memory_ratio", against="base", at_most=1.25),
            "memory_ratio of lora against base: 1.5× (measured once), at most 1.25 was asked: missed by 0.25×",
        ),
        (rule("disk_mib", at_most=250.0), "disk_mib of lora: 210 MiB (counted), at most 250 was asked: met"),
        (
            rule("bias/race_professions", at_most=0.5),
            "bias/race_professions of lora: undefined (nobody was named), which counts as not met; at most 0.5 was asked",
        ),
    ],
)
def test_a_criterion_in_a_sentence(asked: dict[str, Any], sentence: str) -> None:
    assert judged(asked).sentence == sentence


def test_the_verdict_names_what_failed() -> None:
    met, missed = (judged(rule("rouge1", against="base", at_least=each)) for each in (2.0, 8.0))
    assert promotion.verdict("lora", [met]) == ("promoted", "lora is promoted: its criterion is met.")
    assert promotion.verdict("lora", [met, met]) == ("promoted", "lora is promoted: all 2 criteria are met.")
    assert promotion.verdict("lora", [met, missed]) == (
        "refused",
        "lora is refused: 1 of 2 criteria not met. rouge1 of lora against base: +10 [+7.5, +12.5] points, at least 8 was asked:"
        " missed by 0.5 points at the lower end of its interval.",
    )


def test_a_criterion_survives_being_written() -> None:
    for asked in (rule("rouge1", against="base", at_least=2.0), rule("disk_mib", at_most=2.0)):
        found = judged(asked)
        assert promotion.read(found.written()) == found
        assert ("at_least" in found.written()) != ("at_most" in found.written())


def test_no_interval_where_one_is_needed_is_undefined() -> None:
    found = promotion.decide(rule("rouge1", at_least=0.0), Measured(5.0, None, None, 3, "no interval from 3 units"))
    assert found.outcome == "undefined" and found.value == 5.0
    assert found.sentence.startswith("rouge1 of lora: 5 points but undefined (no interval from 3 units)")


def test_what_can_be_known_beforehand_is_what_a_comparison_has() -> None:
    known = promotion.known(COMPARISON)
    assert {"rouge1", "bleu", "decode_ratio", "disk_mib", "toxicity/test/offence", "alignment/harm"} <= set(known)
    assert {"alignment/harmless/helpful", "alignment/continuation/harm", "forgetting/nll"} <= set(known)
    assert set(known) <= set(checks.criteria_metrics())


# ── the champion ──────────────────────────────────────────────────────────────────────────────────────────────────


def items(values: list[float | None]) -> dict[str, dict[str, Any]]:
    return {f"i{at}": {"group": f"g{at // 2}", "rouge1": each} for at, each in enumerate(values)}


def duel(ours: list[float | None], theirs: list[float | None], margin: float = 1.0) -> promotion.Duel:
    settings: dict[str, Any] = {"method": "cluster", "resamples": 2000, "seed": 0, "level": 0.95}
    return promotion.duel(items(ours), items(theirs), "rouge1", margin, **settings)


def test_a_newcomer_is_compared_item_by_item() -> None:
    theirs: list[float | None] = [float(10 * each % 37) for each in range(40)]
    shifted: list[float | None] = [(each or 0.0) + (2.0 if at % 4 < 2 else 0.0) for at, each in enumerate(theirs)]
    found = duel(shifted, theirs)
    assert found.diff == pytest.approx(1.0) and found.n == 40 and found.replaces
    assert found.low is not None and found.high is not None and 0 < found.low < 1 < found.high < 2
    turned = duel(theirs, shifted, margin=0.5)
    assert turned.diff == pytest.approx(-1.0) and not turned.replaces
    assert "worse by more than the margin of 0.5" in turned.sentence and "not worse" not in turned.sentence


def test_the_margin_itself_is_allowed_and_equals_replace() -> None:
    theirs: list[float | None] = [20.0] * 12
    assert duel([19.0] * 12, theirs, margin=1.0).replaces
    assert not duel([18.5] * 12, theirs, margin=1.0).replaces
    same = duel(theirs, theirs, margin=0.0)
    assert same.replaces and same.diff == 0.0 and same.low is None


def test_items_without_a_score_are_left_out_of_both() -> None:
    found = duel([20.0, None, 22.0, 24.0] * 4, [20.0, 50.0, None, 20.0] * 4)
    assert found.n == 8 and found.diff == pytest.approx(2.0)
    nothing = duel([None] * 4, [1.0] * 4)
    assert not nothing.replaces and nothing.n == 0 and "the champion stays" in nothing.sentence
