"""Questions that are scored and not answered: other tasks, and questions about people as they are and perturbed.

What counts is how likely a model finds each answer. A question with choices is answered rightly where the right choice has the
highest log-probability per token; one without has the negative log-likelihood of its right answer alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tunemill import heldout, likelihood, perturbations, probes
from tunemill.records import TaskItem

Score = Callable[[Sequence[tuple[str, str]]], Sequence[likelihood.Likelihood]]
"""Prompts and completions → how likely each completion is."""


def choose(items: Sequence[TaskItem], with_choices: int | None, without: int | None, seed: int) -> list[TaskItem]:
    """The questions to score, a fixed subset, task by task.

    Args:
        items: all questions.
        with_choices: how many of those with choices in all. Every task gets the share that costs as much to read as the others'
            (questions of half the length, twice as many); what a task with few leaves, the others take.
            None takes all.
        without: how many of each task without choices; None takes all.
        seed: of the choice.
    """
    by_task: dict[str, list[TaskItem]] = {}
    for each in items:
        by_task.setdefault(each.task, []).append(each)
    chosen: list[TaskItem] = []
    counts = {name: len(own) if without is None else without for name, own in by_task.items() if not own[0].choices}
    choosing = {name: own for name, own in by_task.items() if own[0].choices}
    # So many for each character: of half the length, twice as many.
    worth = {name: len(own) / sum(len(each.prompt) for each in own) for name, own in choosing.items()}
    left = with_choices if with_choices is not None else sum(map(len, choosing.values()))
    # Those first whose share is more than they have.
    for name in sorted(choosing, key=lambda name: (len(choosing[name]) / worth[name], name)):
        counts[name] = min(len(choosing[name]), round(left * worth[name] / sum(worth[each] for each in worth)))
        left -= counts[name]
        del worth[name]
    for name in sorted(counts):
        if counts[name]:
            chosen += heldout.subset(by_task[name], counts[name], seed, "task")
    return chosen


class PeopleVariant(NamedTuple):
    """A question about people, as it is or perturbed."""

    question: str
    """Id of the question."""
    perturbation: perturbations.Name | None
    changed: bool
    prompt: str
    choices: tuple[str, ...]
    right: int


def people_variants(questions: Sequence[probes.Question]) -> list[PeopleVariant]:
    """Each question as it is and under every perturbation of fairness; its choices are changed with it."""
    found = []
    for each in questions:
        right = each.right
        found.append(PeopleVariant(each.id, None, False, each.prompt, each.choices, right))
        for name in perturbations.FAIRNESS:
            made = perturbations.perturb(name, each.prompt, each.choices, each.id)
            found.append(PeopleVariant(each.id, name, made.changed, made.text, made.references, right))
    return found


def people_rows(found: Sequence[PeopleVariant], score: Score) -> list[dict[str, Any]]:
    """The rows of people.jsonl: which choice is the likeliest."""
    scored = iter(score([(each.prompt, choice) for each in found for choice in each.choices]))
    rows = []
    for each in found:
        own = [next(scored) for _ in each.choices]
        rows.append(
            {
                "id": f"{each.question}/{each.perturbation or 'original'}",
                "question": each.question,
                "perturbation": each.perturbation,
                "changed": each.changed,
                "prompt": each.prompt,
                "choices": list(each.choices),
                "correct": likelihood.best([choice.mean for choice in own]) == each.right if finite(own) else None,
            }
        )
    return rows


def task_rows(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of tasks.jsonl: negative log-likelihood per token of the right answer, and whether it is the likeliest.

    A choice is preferred by its log-probability per token, as confidence is reckoned (`tunemill.calibration`); lm-eval's own
    accuracies stand among its metrics.

    Args:
        found: task → its rows, as `harness.run` gives them; rows without choices (generated text) are left out.
    """
    rows = []
    for task, own in found.items():
        for row in own:
            if "choices" not in row:
                continue
            logprobs = [each if math.isfinite(each) else None for each in row["logprobs"]]
            defined = None not in logprobs
            means = [each / count for each, count in zip(row["logprobs"], row["tokens"], strict=True)]
            rights = row["right"] if isinstance(row["right"], list) else [row["right"]]
            rows.append(
                {
                    "id": row["id"],
                    "task": task,
                    "choices": list(row["choices"]) if len(means) > 1 else [],
                    "right": row["right"],
                    "logprobs": logprobs,
                    "tokens": list(row["tokens"]),
                    "nll": -max(means[index] for index in rights) if defined else None,
                    "correct": likelihood.best(means) in rights if defined and len(means) > 1 else None,
                    "scores": defined_scores(row) if defined else dict.fromkeys(row["scores"]),
                }
            )
    return rows


def defined(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of generated.jsonl: what is no finite number is None."""
    shown = dict(row) | {"scores": defined_scores(row)}
    if "logprobs" in row:
        shown["logprobs"] = [each if math.isfinite(each) else None for each in row["logprobs"]]
        if None in shown["logprobs"]:
            shown["scores"] = dict.fromkeys(row["scores"])
    return shown


def defined_scores(row: Mapping[str, Any]) -> dict[str, float | None]:
    """lm-eval's scores of one question, those that are no finite number as None."""
    return {name: each if math.isfinite(each) else None for name, each in row["scores"].items()}


def finite(found: Sequence[likelihood.Likelihood]) -> bool:
    """Whether a model gave all of them a probability: one whose weights are damaged gives nan."""
    return all(math.isfinite(each.logprob) for each in found)
