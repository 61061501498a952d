"""The seven categories on rows small enough to work out by hand, and on rows where something is missing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tunemill import helm, metrics, perturbations, statistics

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
    shares = {name: found[f"fairness/changed_{name}"].value for name in perturbations.FAIRNESS}
    assert shares == {"dialect": 0.5, "gender": 0.5, "names": 0.0}
    assert found["fairness/rouge1"].n == 2 and found["fairness/rouge1"].method == "cluster"


def test_what_changes_nothing_or_was_not_asked_is_undefined() -> None:
    same = helm.Evidence([instance("a", 50.0)], [variant("a", "robustness", 50.0, False)])
    none = helm.Evidence([instance("a", 50.0)])
    assert figures(x=same)["x"]["robustness/rouge1"].reason == "no test item was changed by the perturbation"
    assert figures(x=same)["x"]["robustness/changed"].value == 0.0
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


def test_questions_of_one_template_are_one_unit() -> None:
    from scipy import stats

    rng = np.random.default_rng(5)
    right = rng.random((12, 1)) + 0.15 * rng.normal(size=(12, 4)) > 0.5  # a template is easy or hard
    rows = [
        {"question": f"people/t{template}/{number}", "perturbation": None, "correct": bool(right[template, number])}
        for number in range(4)
        for template in range(12)
    ]
    figure = figures(x=helm.Evidence([instance("a", 1.0)], people=rows))["x"]["fairness/people"]
    assert (figure.n, figure.units, figure.method) == (48, 12, "template")
    shown = helm.interval(figure, 0.95)
    assert shown.low is not None and shown.high is not None
    means = right.mean(axis=1)
    students = 2 * stats.t.ppf(0.975, 11) * stats.sem(means)
    assert shown.high - shown.low == pytest.approx(students, rel=0.1)
    assert students > 1.3 * 2 * stats.t.ppf(0.975, 47) * stats.sem(right.ravel())  # what single questions would say


@pytest.mark.parametrize(
    ("gendered", "asked", "stands"), [(6, True, "rouge1"), (5, True, "people"), (5, False, "rouge1")]
)
def test_fairness_is_no_matter_of_dialect_alone(gendered: int, asked: bool, stands: str) -> None:
    # Ten items, of which dialect changes all, names seven, gender as many as are given.
    counts = {"dialect": 10, "names": 7, "gender": gendered}
    items = [instance(f"i{n}", 50.0 + n) for n in range(10)]
    rows = [variant(f"i{n}", name, 40.0 + n, n < count) for n in range(10) for name, count in counts.items()]
    people = [{"question": "people/t/0", "perturbation": None, "correct": True}] if asked else []
    found = figures(x=helm.Evidence(items, rows, people))
    assert found["x"]["fairness/changed_gender"].value == gendered / 10
    assert helm.headline(found, "fairness", "rouge1") == f"fairness/{stands}"
    assert helm.headline(found, "robustness", "rouge1") == "robustness/rouge1"


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


def test_a_candidate_by_itself_that_gives_no_probability_is_undefined() -> None:
    # As `evaluate` asks: there is no other candidate to say how many questions there were.
    bad = [question(str(n), 0.6, True) | {"logprobs": [None, None], "correct": None} for n in range(5)]
    one = [instance("a", 1.0)]
    alone = figures(x=helm.Evidence(one, questions=bad))["x"]
    both = figures(x=helm.Evidence(one, questions=bad), y=helm.Evidence(one, questions=bad))
    for found in (alone, both["x"], both["y"]):
        for key in ("calibration/ece_10", "calibration/platt_ece_1", "calibration/expected_ece_10", "accuracy/choices"):
            assert math.isnan(found[key].value)
            assert found[key].reason == "5 of 5 questions: the model gave the choices no probability"


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
            attack("s", "continuation", True, [0.7, 0.8, 0.0, 0.0]),
        ],
    )
    found = figures(x=own)["x"]
    assert found["toxicity/instruction/harm_expected_maximum"].value == pytest.approx((0.9 + 0.3) / 2)
    assert found["toxicity/instruction/harm_share"].value == pytest.approx((0.5 + 0.0) / 2)
    assert found["toxicity/instruction/harm_any"].value == pytest.approx(0.5)
    assert found["toxicity/continuation/harm_share"].value == pytest.approx((0.25 + 0.5) / 2)
    # Instructions are no text to go on from, whoever calls them toxic.
    assert (
        found["toxicity/continuation_toxic/harm_share"].value == 0.5
        and found["toxicity/continuation_toxic/harm_share"].n == 1
    )
    assert (
        found["toxicity/continuation_other/harm_share"].value == 0.25
        and found["toxicity/continuation_other/harm_share"].n == 1
    )
    assert found["toxicity/empty"].value == 0.0 and found["toxicity/empty"].n == 4
    assert found["toxicity/instruction/offence_expected_maximum"].value == pytest.approx(0.1)

    silent = helm.Evidence([instance("a", 1.0)], red_team=[attack("p", "instruction", True, [None, None])])
    found = figures(x=silent)["x"]
    assert found["toxicity/instruction/harm_any"].reason == "there is no harm scorer"
    dumb = attack("p", "instruction", True, [None, None])
    dumb["samples"] = [{"harm": None, "offence": None, "prediction": ""}] * 2
    mute = figures(x=helm.Evidence([instance("a", 1.0)], red_team=[dumb]))["x"]
    assert mute["toxicity/instruction/offence_any"].value != mute["toxicity/instruction/offence_any"].value
    assert mute["toxicity/instruction/harm_any"].reason == "every answer is empty"
    assert mute["toxicity/empty"].value == mute["toxicity/instruction/empty"].value == 1.0
    key = helm.headline({"x": found}, "toxicity", "rouge1")
    assert key == "toxicity/instruction/offence_expected_maximum"


def attacks(*harms: list[float | None], kind: str = "instruction") -> helm.Evidence:
    """One prompt for each list: the harm of every sample, None of an empty one."""
    rows = [
        {
            "id": str(index),
            "kind": kind,
            "prompt_toxic": False,
            "samples": [{"harm": each, "prediction": "" if each is None else "said"} for each in own],
        }
        for index, own in enumerate(harms)
    ]
    return helm.Evidence([instance("a", 1.0)], red_team=rows)


def test_whoever_is_silent_gets_no_fewer_draws() -> None:
    x = attacks([0.2, 0.4, 0.6, 0.8], [0.3, 0.3, 0.3, 0.9], [0.1, 0.1, 0.1, 0.1])
    y = attacks([0.7, None, 0.1, None], [None, 0.2, None, None], [None, None, None, None])
    found = figures(x=x, y=y)
    # Prompt 0, two draws: of the six pairs of x the greater is .4 once, .6 twice, .8 three times; it is always 0.5 or more but
    # for one pair. Prompt 1, one draw. To prompt 2 y says nothing, so that it counts for neither.
    first, second = (0.4 + 2 * 0.6 + 3 * 0.8) / 6, (3 * 0.3 + 0.9) / 4
    key = "toxicity/instruction/harm_"
    assert found["x"][f"{key}expected_maximum"].value == pytest.approx((first + second) / 2)
    assert found["y"][f"{key}expected_maximum"].value == pytest.approx((0.7 + 0.2) / 2)
    assert found["x"][f"{key}any"].value == pytest.approx((5 / 6 + 1 / 4) / 2)
    assert found["y"][f"{key}any"].value == pytest.approx((1 + 0) / 2)
    assert found["x"][f"{key}share"].value == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert found["y"][f"{key}share"].value == pytest.approx((1 / 2 + 0) / 2)
    assert {own[f"{key}any"].n for own in found.values()} == {2}
    assert found["x"]["toxicity/empty"].value == 0.0
    assert found["y"]["toxicity/empty"].value == pytest.approx((2 / 4 + 3 / 4 + 4 / 4) / 3)
    # Alone, each has all of its own.
    assert figures(x=x)["x"][f"{key}expected_maximum"].value == pytest.approx((0.8 + 0.9 + 0.1) / 3)
    assert figures(y=y)["y"][f"{key}expected_maximum"].value == pytest.approx((0.7 + 0.2) / 2)


def test_whoever_never_speaks_takes_nothing_from_the_others() -> None:
    x = attacks([0.2, 0.4, None], [0.3, 0.5, 0.1])
    mute = attacks([None] * 3, [None] * 3)
    alone, found = figures(x=x), figures(x=x, mute=mute)
    for measure in helm.TOXICITY:
        key = f"toxicity/instruction/harm_{measure}"
        assert found["x"][key].value == alone["x"][key].value and found["x"][key].n == 2
        assert math.isnan(found["mute"][key].value) and found["mute"][key].reason == "every answer is empty"
    assert found["mute"]["toxicity/empty"].value == 1.0


@pytest.mark.parametrize("drawn", [1, 2, 3, 7])
def test_the_expected_maximum_is_that_of_all_draws(drawn: int) -> None:
    import itertools

    from scipy import stats

    scores = [0.3, 0.9, 0.9, 0.1, 0.5, 0.0, 0.7]
    every = [max(own) for own in itertools.combinations(scores, drawn)]
    assert helm.expected_maximum(scores, drawn) == pytest.approx(sum(every) / len(every))
    toxic = sum(score >= metrics.TOXIC for score in scores)
    none = stats.hypergeom(len(scores), toxic, drawn).pmf(0)
    assert helm.TOXICITY["any"](scores, drawn) == pytest.approx(1 - none)


def test_a_silent_model_of_equal_harm_is_not_called_safer() -> None:
    rng = np.random.default_rng(0)

    def model(silence: float) -> helm.Evidence:
        harms, silent = rng.beta(2, 2, size=(50, 4)), rng.random((50, 4)) < silence
        return attacks(*np.where(silent, None, harms).tolist())

    alarms = wrong = 0
    key = "toxicity/instruction/harm_expected_maximum"
    for trial in range(200):
        own = {"talks": model(0.0), "silent": model(0.7)}
        found = helm.toxic(own, 300, trial)
        gap = helm.difference(found["silent"][key], found["talks"][key], 0.95)
        alarms += statistics.verdict(gap, None, lower_is_better=True) != "not shown to be better"
        # The reading that this replaces: the greatest of what is left.
        alone = (
            {name: helm.toxic({name: each}, 1, 0)[name][key].value for name, each in own.items()} if trial < 20 else {}
        )
        wrong += bool(alone) and alone["silent"] < alone["talks"]
    print(f"of 200 equal pairs {alarms} were called different")
    assert alarms <= 18  # 10 are expected
    assert wrong == 20


def test_none_of_twelve_is_not_nought_for_sure() -> None:
    from scipy import stats

    harmless = helm.Evidence([instance("a", 1.0)], red_team=attacks(*[[0.1] * 4] * 12).red_team)
    found = figures(x=harmless)["x"]
    shown = helm.described(found["toxicity/instruction/harm_any"], 0.95)
    assert shown["ci_low"] == 0.0 and "reason" not in shown
    assert shown["ci_high"] == pytest.approx(stats.binomtest(0, 12).proportion_ci(0.95, method="exact").high)
    texts = [instance(str(n), 30.0, memorised_words=4, exact_match=0.0) for n in range(9)]
    found = figures(x=helm.Evidence(texts), y=helm.Evidence(texts))
    counted = helm.described(found["x"]["accuracy/memorised_words"], 0.95)
    assert (counted["value"], counted["ci_low"]) == (4.0, None)
    assert counted["reason"] == "no interval: 9 independent units all show the same"
    gap = helm.difference(found["x"]["accuracy/exact_match"], found["y"]["accuracy/exact_match"], 0.95)
    assert gap.diff == 0 and gap.p == 1 and gap.high is not None and gap.high > 0.3
    (part,) = [each for each in helm.slices(texts, "rouge1", R, 0, 0.95) if each["n"] == 9]
    assert (part["value"], part["ci_low"], part["reason"]) == (30.0, None, counted["reason"])


def rounds(*speeds: float, **more: Any) -> list[dict[str, Any]]:
    return [{"decode_tokens_per_second": each, "first_token_seconds": 0.1, **more} for each in speeds]


def test_speed_is_compared_round_by_round() -> None:
    from scipy import stats

    ours, theirs = [20.0, 11.0, 15.0, 17.0, 0.5], [100.0, 50.0, 80.0, 79.0, 90.0]  # y's last round went wrong
    one = [instance("a", 1.0)]
    found = figures(x=helm.Evidence(one, rounds=rounds(*theirs)), y=helm.Evidence(one, rounds=rounds(*ours)))
    x, y = (found[name]["efficiency/decode_seconds"] for name in "xy")
    assert x.value == pytest.approx(1 / stats.gmean([79, 80, 90])) and y.value == pytest.approx(
        1 / stats.gmean([11, 15, 17])
    )
    gap = helm.difference(y, x, 0.95)
    slower = np.log(theirs) - np.log(ours)
    oracle = stats.ttest_ind(slower, np.zeros(5), equal_var=False, trim=0.2)
    assert gap.p == pytest.approx(oracle.pvalue) and gap.p < 0.01
    assert gap.diff == pytest.approx(x.value * (np.exp(stats.trim_mean(slower, 0.2)) - 1))
    assert gap.low is not None and gap.high is not None and 0 < gap.low < gap.diff < gap.high
    # Twice as slow a round for both is no news.
    drifted = figures(
        x=helm.Evidence(one, rounds=rounds(50, *theirs[1:])), y=helm.Evidence(one, rounds=rounds(10, *ours[1:]))
    )
    again = helm.difference(drifted["y"]["efficiency/decode_seconds"], drifted["x"]["efficiency/decode_seconds"], 0.95)
    assert again.p == pytest.approx(gap.p)
    least = helm.detectable(y, x, 0.95)
    assert least is not None and 0 < least < gap.diff
    shown = helm.interval(y, 0.95)
    assert shown.low is not None and shown.high is not None and shown.low < y.value < shown.high
    # Of rates it says the same, turned round.
    rate = helm.Figure(1 / y.value, 1 / y.draws, 5, 5, "round", span=None)
    assert helm.interval(rate, 0.95)[1:] == pytest.approx((1 / shown.high, 1 / shown.low))


def test_what_the_machine_does_not_tell_is_undefined() -> None:
    one = [instance("a", 1.0)]
    told = rounds(10, 11, 12, prefill_tokens_per_second=400.0, joules_per_token=2.0)
    found = figures(
        x=helm.Evidence(one, rounds=told, memory_bytes=3 * 2**30),
        y=helm.Evidence(
            one, rounds=[told[0], told[1] | {"joules_per_token": None}, told[2] | {"joules_per_token": 0.0}]
        ),
    )
    assert found["x"]["efficiency/joules_per_token"].value == pytest.approx(2.0)
    assert found["y"]["efficiency/joules_per_token"].reason == "the machine did not tell in every round"
    assert found["y"]["efficiency/peak_mib"].reason == "memory was not measured"
    memory = helm.described(found["x"]["efficiency/peak_mib"], 0.95)
    assert (memory["value"], memory["ci_low"], memory["reason"]) == (3072.0, None, "measured once")
    found = {name: own | {"accuracy/rouge1": helm.undefined("not asked")} for name, own in found.items()}
    told_details = helm.categories(found, "rouge1", "y", 0.95)["details"]["x"]
    assert told_details["efficiency/prefill_tokens_per_second"]["value"] == pytest.approx(400.0)
    gap = told_details["efficiency/joules_per_token"]
    assert (gap["diff"], gap["diff_reason"]) == (None, "the machine did not tell in every round")
    # All rounds alike: nothing tells how much they vary.
    assert told_details["efficiency/first_token_seconds"]["reason"] == "the rounds all show the same"
    assert told_details["efficiency/first_token_seconds"]["p"] == 1.0


def test_categories_pairs_and_win_rates() -> None:
    one = [instance("a", 10.0, "p"), instance("b", 20.0, "q"), instance("c", 30.0, "r")]
    evidence = {name: helm.Evidence(one) for name in ("base", "better", "same")}
    found = helm.figures(evidence, R, 0, 2)
    for name, shifts in (("base", (0, 0, 0)), ("better", (4, 5, 6)), ("same", (0, 0, 0))):
        table = np.array([[row["scores"]["rouge1"] + shift, 1.0] for row, shift in zip(one, shifts, strict=True)])
        drawn = statistics.resampled_sums(table, R, 0)
        value, draws = float(table[:, 0].mean()), drawn[:, 0] / drawn[:, 1]
        found[name]["accuracy/rouge1"] = helm.Figure(value, draws, 12, 3, "cluster", span=None)
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
    assert (gap["diff"], gap["ci_low"], gap["ci_high"], gap["p"]) == (0.0, None, None, 1.0)
    assert gap["verdict"] == "not shown to be better" and gap["reason"].endswith("all show the same")
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


def test_questions_about_people_are_tested_as_they_are() -> None:
    def rows(flags: str) -> list[dict[str, Any]]:
        return [
            {"id": f"{at}{name}", "perturbation": name, "correct": (flag == "1") != (name is not None)}
            for at, flag in enumerate(flags)
            for name in (None, "gender")
        ]

    people = {name: helm.unperturbed(rows(flags)) for name, flags in (("base", "00000001"), ("x", "11111110"))}
    (found,) = helm.mcnemar(people, "base", 0.95)
    assert (found["task"], found["n"], found["only_a"], found["only_b"]) == ("people", 8, 7, 1)
    assert found["p"] == pytest.approx(2 * 9 * 0.5**8) and found["verdict"] == "not shown to be better"


def seed_figure(value: float, draws: np.ndarray | None, **more: Any) -> helm.Figure:
    return helm.Figure(value, draws, 30, 90, "prompt")._replace(**more)


def test_a_figure_over_seeds_has_what_lies_between_them() -> None:
    noise = np.random.default_rng(0).normal(0, 0.5, size=4000)
    other = seed_figure(1.0, 1.0 + noise)
    found = helm.over_seeds([seed_figure(value, value + noise) for value in (2.0, 3.0, 7.0)], other, 0, 0.95)
    assert (found["value"], found["least"], found["most"], found["reference"]) == (4.0, 2.0, 7.0, 1.0)
    assert found["seed_sd"] == pytest.approx(7**0.5)
    assert (found["n"], found["method"]) == (90, "prompt") and "reason" not in found
    # Test sets move all of them alike, so of the difference only the seeds are left: Student's interval of three numbers.
    assert found["diff"] == 3.0 and found["diff_high"] - 3.0 == pytest.approx(4.3027 * (7 / 3) ** 0.5, rel=0.04)
    # Of the value test sets are too: 7/3 with 2 degrees of freedom and 1/4 with 29 are 31/12 with 2.45.
    assert found["ci_high"] - 4.0 == pytest.approx(3.627 * (31 / 12) ** 0.5, rel=0.04)


@pytest.mark.parametrize(
    ("own", "other", "reason"),
    [
        ({"method": "round"}, {}, "rounds of timing"),
        ({"chance": np.zeros(3)}, {}, "chance makes a distance from an ideal positive"),
        ({"units": 5}, {}, "no interval from 5 independent units"),
        ({"draws": None}, {}, "only the values are known"),
        ({}, {"value": math.nan, "draws": None, "reason": "all silent"}, "all silent"),
        ({"value": math.nan, "draws": None, "reason": "nothing counted"}, {}, "nothing counted"),
    ],
)
def test_why_seeds_have_no_interval_is_said(own: dict[str, Any], other: dict[str, Any], reason: str) -> None:
    noise = np.random.default_rng(0).normal(0, 0.5, size=400)
    seeds = [seed_figure(value, value + noise)._replace(**own) for value in (2.0, 3.0)]
    found = helm.over_seeds(seeds, seed_figure(1.0, noise)._replace(**other), 0, 0.95)
    assert reason in found["reason"] and found["diff_low"] is None and found["p"] is None
    assert (found["value"] is None) == (reason == "nothing counted")
    assert (found["ci_low"] is None) == (reason != "all silent")


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
    assert helm.slices(rows, "bleu", R, 0, 0.95) == found and {each["metric"] for each in found} == {"rouge1"}


def test_every_key_is_known_beforehand() -> None:
    found = figures(base=helm.Evidence([instance("a", 10.0, "p")]))["base"]
    scores = {f"accuracy/{metric}" for metric in ("rouge1", "rouge2", "rougeL", "bleu")}  # compare adds them
    assert set(helm.keys()) == set(found) | scores and len(set(helm.keys())) == len(helm.keys())
