"""Forgetting on made-up scores whose right answer is known."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tunemill import forgetting

TASKS = {"sums": 40, "names": 20, "lists": 30}


def rows(shift: dict[str, float], seed: int, right: float = 0.5) -> list[dict[str, Any]]:
    """Scores around the same questions' own level, `shift` nats worse; `names` has choices."""
    own, found = random.Random(seed), []
    for task, count in TASKS.items():
        shared = random.Random(task)
        for index in range(count):
            nll = shared.uniform(1, 5) + shift.get(task, 0.0) + own.gauss(0, 0.3)
            correct = own.random() < right if task == "names" else None
            found.append({"id": f"{task}{index}", "task": task, "nll": nll, "tokens": 3, "correct": correct})
    return found


def entry(table: list[dict[str, Any]], candidate: str, task: str | None, measure: str = "nll") -> dict[str, Any]:
    (found,) = [
        each for each in table if (each["candidate"], each["task"], each["measure"]) == (candidate, task, measure)
    ]
    return found


@pytest.fixture(scope="module")
def scores() -> dict[str, list[dict[str, Any]]]:
    return {
        "base": rows({}, 1, right=0.1),
        "lora": rows({"sums": 1.0, "names": -1.0}, 3, right=0.9),
        "same": rows({}, 1, right=0.1),
    }


@pytest.fixture(scope="module")
def table(scores: dict[str, Any]) -> list[dict[str, Any]]:
    return forgetting.table(scores, {"base": [], "lora": [], "same": []}, "base", 4000, 0)


def test_less_likely_is_worse_and_more_right_is_better(table: list[dict[str, Any]]) -> None:
    assert {task: entry(table, "lora", task)["verdict"] for task in TASKS} == {
        "sums": "worse",
        "names": "better",
        "lists": "not shown to be better",
    }
    assert entry(table, "lora", "names", "accuracy")["verdict"] == "better"
    assert entry(table, "lora", "names", "accuracy")["diff"] > 0.4
    assert entry(table, "lora", "sums")["diff"] == pytest.approx(1.0, abs=0.2)


def test_the_interval_is_that_of_a_paired_t_test(scores: dict[str, Any], table: list[dict[str, Any]]) -> None:
    from scipy.stats import ttest_1samp

    gaps = [
        ours["nll"] - theirs["nll"]
        for ours, theirs in zip(scores["lora"], scores["base"], strict=True)
        if ours["task"] == "names"
    ]
    oracle = ttest_1samp(gaps, 0.0).confidence_interval(0.95)
    found = entry(table, "lora", "names")
    assert found["diff"] == pytest.approx(np.mean(gaps)) and found["n"] == 20
    assert found["diff"] == pytest.approx(found["value"] - found["reference"])
    half = (oracle.high - oracle.low) / 2
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((oracle.low, oracle.high), abs=0.15 * half)


def test_families_are_corrected_apart(table: list[dict[str, Any]]) -> None:
    # Two candidates, of which one is the reference again: its p is 1. Single tasks: three for each of the two.
    tasks = sorted((each for each in table if each["measure"] == "nll" and each["task"]), key=lambda each: each["p"])
    assert [round(each["p_holm"] / each["p"]) for each in tasks[:2]] == [6, 5] and len(tasks) == 6
    assert entry(table, "lora", None)["p_holm"] == pytest.approx(min(1.0, 2 * entry(table, "lora", None)["p"]))
    assert entry(table, "lora", "names", "accuracy")["p_holm"] == 2 * entry(table, "lora", "names", "accuracy")["p"]


def test_among_many_candidates_and_tasks_only_what_is_there_is_found() -> None:
    tasks, alarms, found = [f"t{index}" for index in range(8)], 0, 0
    for trial in range(30):
        rng = np.random.default_rng([1, trial])
        level = {task: rng.normal(3, 1, size=20) for task in tasks}

        def asked(planted: float, rng: Any = rng, level: Any = level) -> list[dict[str, Any]]:
            return [
                {"task": task, "nll": nll, "correct": None}
                for task in tasks
                for nll in level[task] + rng.normal(0, 0.3, size=20) + planted * (task == "t3")
            ]

        rows = {name: asked(0.6 if name == "d" else 0.0) for name in ("base", "a", "b", "c", "d")}
        table = forgetting.table(rows, dict.fromkeys(rows, ()), "base", 1000, trial)
        said = {(each["candidate"], each["task"]): each["verdict"] for each in table if each["task"]}
        assert len(said) == 32
        found += said.pop(("d", "t3")) == "worse"
        alarms += any(each != "not shown to be better" for each in said.values())
    # Some of 31 intervals of 95% miss zero in four trials of five: in 24. Planted are 0.6 nats, six standard errors.
    assert alarms <= 4 and found >= 27


@pytest.mark.parametrize("n", [6, 8, 20, 60])
def test_accuracy_is_judged_as_mcnemars_test_judges_it(n: int) -> None:
    from tunemill import helm

    own = random.Random(n)
    for only_a in range(n + 1):
        only_b = own.randrange(n + 1 - only_a)
        flags = [(True, False)] * only_a + [(False, True)] * only_b + [(True, True)] * (n - only_a - only_b)
        rows = {
            name: [{"task": "t", "nll": 1.0, "correct": flag[at]} for flag in flags]
            for at, name in enumerate(("lora", "base"))
        }
        (told,) = [
            each
            for each in forgetting.table(rows, dict.fromkeys(rows, ()), "base", 1000, 0)
            if each["measure"] == "accuracy" and each["task"]
        ]
        (test,) = helm.mcnemar(rows, "base", 0.95)
        assert (told["p"], told["p_holm"]) == (test["p"], test["p_holm"])
        assert told["verdict"].replace("the same", "not shown to be better") == test["verdict"]


def test_the_mean_counts_every_task_alike(table: list[dict[str, Any]]) -> None:
    found = entry(table, "lora", None)
    parts = [entry(table, "lora", task) for task in TASKS]
    assert found["diff"] == pytest.approx(np.mean([each["diff"] for each in parts]))
    assert found["n"] == sum(TASKS.values())
    # Tasks are independent: the variance of their mean is a ninth of their variances' sum.
    error = sum(((each["ci_high"] - each["ci_low"]) / 2) ** 2 for each in parts) ** 0.5 / 3
    assert (found["ci_high"] - found["ci_low"]) / 2 == pytest.approx(error, rel=0.15)
    # Only `names` has choices, so the mean of accuracy is its own.
    accuracy, own = entry(table, "lora", None, "accuracy"), entry(table, "lora", "names", "accuracy")
    assert (accuracy["diff"], accuracy["ci_low"]) == (own["diff"], own["ci_low"])


def test_the_same_scores_are_no_difference(table: list[dict[str, Any]]) -> None:
    for task in (*TASKS, None):
        found = entry(table, "same", task)
        assert (found["diff"], found["ci_low"], found["ci_high"], found["p"]) == (0, None, None, 1)
        assert found["verdict"] == "the same" and found["reason"].endswith("all show the same")


def test_a_task_trained_on_is_marked_and_left_out_of_the_mean(scores: dict[str, Any]) -> None:
    table = forgetting.table(scores, {"base": [], "lora": ["names"], "same": list(TASKS)}, "base", 2000, 0)
    assert [entry(table, "lora", task)["trained"] for task in TASKS] == [False, True, False]
    parts = [entry(table, "lora", task)["diff"] for task in ("sums", "lists")]
    assert entry(table, "lora", None)["diff"] == pytest.approx(np.mean(parts))
    assert not [each for each in table if each["candidate"] == "same" and each["task"] is None]


def test_one_question_has_no_interval(scores: dict[str, Any]) -> None:
    first = {name: found[:1] for name, found in scores.items()}
    found = entry(forgetting.table(first, dict.fromkeys(first, ()), "base", 1000, 0), "lora", "sums")
    assert (found["ci_low"], found["p"], found["verdict"], found["n"]) == (
        None,
        None,
        "not shown to be better",
        1,
    )


def test_no_questions() -> None:
    assert forgetting.table({"base": [], "lora": []}, {"base": [], "lora": []}, "base", 1000, 0) == []
