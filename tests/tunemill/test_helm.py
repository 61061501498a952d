"""The seven categories on rows small enough to work out by hand, and on rows where something is missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tunemill import helm, statistics

R = 2000


def instance(key: str, score: float | None, group: str = "g", **more: Any) -> dict[str, Any]:
    scores = {"rouge1": score, "rouge2": score, "rougeL": score}
    return {"id": key, "group": group, "prompt": "a b c", "scores": scores, "source_words": 10, **more}


def variant(key: str, name: str, score: float | None, changed: bool = True, group: str = "g") -> dict[str, Any]:
    return {**instance(key, score, group), "perturbation": name, "changed": changed}


def figures(**evidence: helm.Evidence) -> dict[str, helm.Figures]:
    return helm.figures(evidence, R, 0, 2)


def question(key: str, sure: float, correct: bool, task: str = "t") -> dict[str, Any]:
    """Two choices; the model gives the one that it prefers the probability `sure`."""
    chances = [math.log(sure), math.log(1 - sure)]
    return {
        "id": key,
        "task": task,
        "choices": ["a", "b"],
        "right": 0 if correct else 1,
        "logprobs": chances,
        "tokens": [1, 1],
        "nll": -chances[0 if correct else 1],
        "correct": correct,
    }


def test_the_worst_of_original_and_perturbed() -> None:
    own = helm.Evidence(
        [instance("a", 50.0, "p"), instance("b", 30.0, "q"), instance("c", 90.0, "r")],
        [
            variant("a", "robustness", 40.0, group="p"),
            variant("a", "dialect", 60.0, group="p"),
            variant("a", "gender", 10.0, group="p"),
            variant("a", "names", 50.0, False, group="p"),
            variant("b", "robustness", 35.0, group="q"),
            variant("b", "dialect", 30.0, False, group="q"),
            variant("b", "gender", 30.0, False, group="q"),
            variant("b", "names", 30.0, False, group="q"),
        ],
    )
    found = figures(x=own)["x"]
    assert found["robustness/rouge1"].value == pytest.approx((40 + 30) / 2)  # the better answer of b does not count
    assert found["robustness/rouge1_unperturbed"].value == pytest.approx((50 + 30) / 2)  # c was not perturbed
    assert found["robustness/changed"].value == 1.0
    assert found["fairness/rouge1"].value == pytest.approx((10 + 30) / 2)
    assert found["fairness/changed"].value == 0.5
    assert found["fairness/rouge1"].n == 2 and found["fairness/rouge1"].method == "cluster"


def test_what_changes_nothing_or_was_not_asked_is_undefined() -> None:
    same = helm.Evidence([instance("a", 50.0)], [variant("a", "robustness", 50.0, False)])
    none = helm.Evidence([instance("a", 50.0)])
    assert figures(x=same)["x"]["robustness/rouge1"].reason == "no test item was changed by the perturbation"
    found = figures(x=none)["x"]
    reasons = {
        "robustness/rouge1": "no test item was perturbed",
        "fairness/people": "no questions about people were asked",
        "calibration/ece_10": "no questions with choices were asked",
        "bias/gender_representation": "no beginnings of texts were asked to go on",
        "toxicity/instruction/harm_expected_maximum": "no red-team prompts of this kind were asked",
        "efficiency/decode_seconds": "speed was not measured",
    }
    for key, reason in reasons.items():
        assert math.isnan(found[key].value) and found[key].reason == reason
        shown = helm.described(found[key], 0.95)
        assert shown["value"] is None and shown["ci_low"] is None and shown["reason"] == reason
    assert figures(x=same)["x"].keys() == found.keys()


def test_an_item_that_one_candidate_has_no_score_for_is_left_out_for_all() -> None:
    rows = [variant("a", "robustness", 10.0), variant("b", "robustness", 20.0)]
    x = helm.Evidence([instance("a", 50.0), instance("b", 50.0)], rows)
    y = helm.Evidence([instance("a", 50.0), instance("b", None)], [rows[0], variant("b", "robustness", None)])
    found = figures(x=x, y=y)
    assert found["x"]["robustness/rouge1"].value == 10.0 and found["x"]["robustness/rouge1"].n == 1


def test_people_count_as_right_only_if_every_wording_is_answered_rightly() -> None:
    def rows(*flags: tuple[str, str | None, bool]) -> list[dict[str, Any]]:
        return [{"id": f"{q}/{p}", "question": q, "perturbation": p, "correct": flag} for q, p, flag in flags]

    own = helm.Evidence(
        [instance("a", 1.0)],
        people=rows(("q", None, True), ("q", "gender", True), ("r", None, True), ("r", "names", False)),
    )
    found = figures(x=own)["x"]
    assert found["fairness/people"].value == 0.5 and found["fairness/people_unperturbed"].value == 1.0
    # A task without anything to perturb falls back to the questions about people.
    assert helm.headline({"x": found}, "fairness", "rouge1") == "fairness/people"


def test_an_overconfident_model_is_calibrated_worse() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.7
    honest = [question(str(index), 0.7, bool(flag)) for index, flag in enumerate(right)]
    boasting = [question(str(index), 0.99, bool(flag)) for index, flag in enumerate(right)]
    one = [instance("a", 1.0)]
    found = figures(x=helm.Evidence(one, questions=honest), y=helm.Evidence(one, questions=boasting))
    gap = helm.difference(found["y"]["calibration/ece_1"], found["x"]["calibration/ece_1"], 0.95)
    assert gap.diff is not None and gap.low is not None and gap.low > 0.1
    assert found["y"]["calibration/ece_1"].value == pytest.approx(0.99 - right.mean())
    assert statistics.verdict(gap, None, lower_is_better=True) == "worse"
    assert found["x"]["accuracy/choices"].value == pytest.approx(right.mean())


def test_damaged_probabilities_leave_a_question_out_for_all() -> None:
    good = [question(str(index), 0.6, index % 2 == 0) for index in range(6)]
    bad = [dict(row) for row in good]
    bad[0] |= {"logprobs": [None, None], "correct": None}
    one = [instance("a", 1.0)]
    found = figures(x=helm.Evidence(one, questions=good), y=helm.Evidence(one, questions=bad))
    assert found["x"]["accuracy/choices"].n == found["y"]["accuracy/choices"].n == 5


def test_toxicity_over_samples_by_hand() -> None:
    def attack(key: str, kind: str, toxic: bool, harms: list[float | None]) -> dict[str, Any]:
        samples = [{"harm": each, "offence": 0.1, "prediction": "said"} for each in harms]
        return {"id": key, "kind": kind, "prompt_toxic": toxic, "samples": samples}

    own = helm.Evidence(
        [instance("a", 1.0)],
        red_team=[
            attack("p", "instruction", True, [0.1, 0.9, 0.6, 0.2]),
            attack("q", "instruction", False, [0.1, 0.2, 0.3, 0.2]),
            attack("r", "continuation", False, [0.5, 0.0, 0.0, 0.0]),
        ],
    )
    found = figures(x=own)["x"]
    assert found["toxicity/instruction/harm_expected_maximum"].value == pytest.approx((0.9 + 0.3) / 2)
    assert found["toxicity/instruction/harm_share"].value == pytest.approx((0.5 + 0.0) / 2)
    assert found["toxicity/instruction/harm_any"].value == pytest.approx(0.5)
    assert found["toxicity/continuation/harm_share"].value == pytest.approx(0.25)
    assert (
        found["toxicity/toxic_prompts/harm_any"].value == 1.0 and found["toxicity/other_prompts/harm_any"].value == 0.5
    )
    assert found["toxicity/instruction/offence_expected_maximum"].value == pytest.approx(0.1)

    silent = helm.Evidence([instance("a", 1.0)], red_team=[attack("p", "instruction", True, [None, None])])
    found = figures(x=silent)["x"]
    assert found["toxicity/instruction/harm_any"].reason == "there is no harm scorer"
    dumb = attack("p", "instruction", True, [None, None])
    dumb["samples"] = [{"harm": None, "offence": None, "prediction": ""}] * 2
    mute = figures(x=helm.Evidence([instance("a", 1.0)], red_team=[dumb]))["x"]
    assert mute["toxicity/instruction/offence_any"].value != mute["toxicity/instruction/offence_any"].value
    assert mute["toxicity/instruction/harm_any"].reason == "every answer is empty"
    key = helm.headline({"x": found}, "toxicity", "rouge1")
    assert key == "toxicity/instruction/offence_expected_maximum"


def test_speed_is_compared_round_by_round() -> None:
    from scipy.stats import ttest_rel

    def rounds(*speeds: float) -> list[dict[str, float]]:
        return [{"decode_tokens_per_second": each, "first_token_seconds": 0.1} for each in speeds]

    one = [instance("a", 1.0)]
    found = figures(x=helm.Evidence(one, rounds=rounds(100, 50, 80)), y=helm.Evidence(one, rounds=rounds(20, 10, 16)))
    x, y = (found[name]["efficiency/decode_seconds"] for name in "xy")
    assert x.value == pytest.approx((1 / 100 + 1 / 50 + 1 / 80) / 3)
    gap = helm.difference(y, x, 0.95)
    oracle = ttest_rel([1 / 20, 1 / 10, 1 / 16], [1 / 100, 1 / 50, 1 / 80])
    assert gap.p == pytest.approx(oracle.pvalue)
    interval = oracle.confidence_interval()
    assert (gap.low, gap.high) == pytest.approx((interval.low, interval.high))


def test_categories_pairs_and_win_rates() -> None:
    one = [instance("a", 10.0, "p"), instance("b", 20.0, "q"), instance("c", 30.0, "r")]
    evidence = {name: helm.Evidence(one) for name in ("base", "better", "same")}
    found = helm.figures(evidence, R, 0, 2)
    for name, shift in (("base", 0.0), ("better", 5.0), ("same", 0.0)):
        table = np.array([[row["scores"]["rouge1"] + shift, 1.0] for row in one])
        drawn = statistics.resampled_sums(table, R, 0)
        value, draws = float(table[:, 0].mean()), drawn[:, 0] / drawn[:, 1]
        found[name]["accuracy/rouge1"] = helm.Figure(value, draws, 12, 3, "cluster")
    told = helm.categories(found, "rouge1", "base", 0.95)
    assert list(told["categories"]["better"]) == [
        "accuracy",
        "calibration",
        "robustness",
        "fairness",
        "bias",
        "toxicity",
        "efficiency",
    ]
    assert told["categories"]["better"]["accuracy"]["value"] == 25.0
    assert told["win_rate"]["better"] == {
        "mean": 1.0,
        "of": {"accuracy": 1.0} | dict.fromkeys(list(helm.CATEGORIES)[1:]),
    }
    assert told["win_rate"]["base"]["of"]["accuracy"] == 0.25  # beaten once, tied once
    (gap,) = [each for each in told["category_pairs"] if each["a"] == "better" and each["category"] == "accuracy"]
    assert gap["diff"] == pytest.approx(5.0) and gap["verdict"] == "better"
    (gap,) = [each for each in told["category_pairs"] if each["a"] == "same" and each["category"] == "accuracy"]
    assert (gap["diff"], gap["ci_low"], gap["ci_high"], gap["p"]) == (0.0, 0.0, 0.0, 1.0)
    assert gap["verdict"] == "not shown to be better"
    undefined = [each for each in told["category_pairs"] if each["category"] == "bias"]
    assert [each["a"] for each in undefined] == ["better", "same"]
    assert all(each["diff"] is None and each["verdict"] == "not shown to be better" for each in undefined)


def test_mcnemar_pools_the_tasks_and_tells_each() -> None:
    def rows(flags: str, task: str) -> list[dict[str, Any]]:
        return [question(f"{task}{index}", 0.6, flag == "1", task) for index, flag in enumerate(flags)]

    base = rows("0000000000", "s") + rows("10", "t") + [{**question("u", 0.6, True, "free"), "correct": None}]
    ours = rows("1111111110", "s") + rows("01", "t") + [{**question("u", 0.6, True, "free"), "correct": None}]
    whole, s, t = helm.mcnemar({"base": base, "x": ours}, "base", 0.95)
    assert (whole["task"], whole["n"], whole["only_a"], whole["only_b"]) == (None, 12, 10, 1)
    assert (s["task"], s["only_a"], s["only_b"], s["verdict"]) == ("s", 9, 0, "better")
    assert s["p"] == pytest.approx(2 * 0.5**9)
    assert (t["task"], t["only_a"], t["only_b"], t["p"], t["verdict"]) == ("t", 1, 1, 1.0, "not shown to be better")


def test_slices_by_length_and_group() -> None:
    rows = [instance(str(n), float(n), "p" if n < 4 else "q") | {"source_words": 10 * n} for n in range(9)]
    found = helm.slices(rows, "rouge1", R, 0, 0.95)
    assert [(each["slice"], each["name"], each["n"], each["value"]) for each in found] == [
        ("length", "under 30 words", 3, 1.0),
        ("length", "30 to 59 words", 3, 4.0),
        ("length", "60 words or more", 3, 7.0),
        ("group", "p", 4, 1.5),
        ("group", "q", 5, 6.0),
    ]
    assert helm.slices([instance("a", None)], "rouge1", R, 0, 0.95) == []
    (alone,) = helm.slices([instance("a", 3.0)], "rouge1", R, 0, 0.95)
    assert alone["n"] == 1 and alone["ci_low"] is None
