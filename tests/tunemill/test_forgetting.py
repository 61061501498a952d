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
        "lists": "unclear",
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
    assert (found["ci_low"], found["p"], found["verdict"], found["n"]) == (None, None, "unclear", 1)


def test_no_questions() -> None:
    assert forgetting.table({"base": [], "lora": []}, {"base": [], "lora": []}, "base", 1000, 0) == []
