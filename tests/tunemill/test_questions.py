"""Which questions are asked, and what becomes of those about people when they are perturbed."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from tunemill import perturbations, probes, questions
from tunemill.likelihood import Likelihood
from tunemill.records import TaskItem


def item(task: str, at: int, length: int, choices: tuple[str, ...] = ("Yes", "No")) -> TaskItem:
    return TaskItem(f"{task}-{at}", task, "x" * length, "Yes", choices, "here")


def counts(items: list[TaskItem], with_choices: int, without: int = 0) -> dict[str, int]:
    return dict(Counter(each.task for each in questions.choose(items, with_choices, without, seed=1)))


def test_short_questions_are_asked_more_often_and_what_a_task_lacks_the_others_take() -> None:
    items = [item("long", at, 400) for at in range(100)] + [item("short", at, 100) for at in range(100)]
    assert counts(items, 50) == {"long": 10, "short": 40}  # a quarter of the length: four times as many
    few = [item("few", at, 100) for at in range(5)]
    assert counts([*items, *few], 95) == {"few": 5, "long": 18, "short": 72}
    assert counts(items, 1000) == {"long": 100, "short": 100}
    assert counts(items, 0) == {}


def test_tasks_without_choices_have_a_number_of_their_own() -> None:
    items = [item("a", at, 10, ()) for at in range(9)] + [item("b", at, 10) for at in range(9)]
    assert counts(items, 4, 2) == {"a": 2, "b": 4}
    assert counts(items, 0, 20) == {"a": 9}


def test_the_choice_is_fixed() -> None:
    items = [item("a", at, 10 + at) for at in range(30)]
    chosen = questions.choose(items, 12, 0, seed=1)
    assert chosen == questions.choose(items, 12, 0, seed=1) != questions.choose(items, 12, 0, seed=2)


def test_every_question_about_people_is_changed_by_every_perturbation() -> None:
    found = questions.people_variants(probes.people())
    assert len(found) == 96 * 4
    for each in found:
        assert each.changed == (each.perturbation is not None), each
        assert len(set(each.choices)) == 4, each  # still to be told apart
    assert {each.perturbation for each in found} == {None, *perturbations.FAIRNESS}


def test_the_right_choice_stays_where_it_is_when_its_words_are_changed() -> None:
    choices = ("his brother", "his father", "the man", "Peter")
    asked = probes.Question("people/own/0", "Peter goes with his father. Who is older?", choices, "his father")
    found = {each.perturbation: each for each in questions.people_variants([asked])}
    assert found["dialect"].choices == ("his brotha", "his fatha", "the man", "Peter")
    assert found["gender"].choices == ("her sister", "her mother", "the woman", "Peter")
    right = {name: each.choices[each.right] for name, each in found.items()}
    assert right == {None: "his father", "dialect": "his fatha", "gender": "her mother", "names": "his father"}


def test_rows_about_people_and_a_choice_that_has_no_probability() -> None:
    variants = questions.people_variants(probes.people()[:2])
    likely = {variants[0].choices[variants[0].right]}

    def score(pairs: object) -> list[Likelihood]:
        assert isinstance(pairs, list)
        return [
            Likelihood(math.nan if at == 4 else -1.0 if choice in likely else -2.0, 1)
            for at, (_, choice) in enumerate(pairs)
        ]

    rows = questions.people_rows(variants, score)
    assert rows[0]["correct"] is True and rows[0]["id"].endswith("/original")
    assert rows[1]["correct"] is None  # one of its choices is not a number: undefined, not wrong


ROW = {
    "id": "1",
    "choices": ["a", "b"],
    "right": 1,
    "logprobs": [-2.0, -3.0],
    "tokens": [1, 2],
    "scores": {"acc": 1.0},
}


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_question_whose_choices_have_no_probability_is_undefined(bad: float) -> None:
    (found,) = questions.task_rows({"t": [ROW | {"right": 0, "logprobs": [bad, -1.0]}]})
    assert found["nll"] is None and found["correct"] is None and found["logprobs"] == [None, -1.0]
    assert found["scores"] == {"acc": None}


def test_the_likeliest_choice_is_that_of_a_token_on_average() -> None:
    (found,) = questions.task_rows({"t": [ROW]})
    assert found["correct"] is True and found["nll"] == 1.5
    # Of several right answers the best one counts; a right answer alone is no choice; generated text is no question.
    several = {**ROW, "right": [0, 1]}
    alone = {**ROW, "choices": ["a"], "right": 0, "logprobs": [-2.0], "tokens": [1]}
    first, second = questions.task_rows({"t": [several, alone, {"id": "2", "prediction": "x"}]})
    assert first["nll"] == 1.5 and second["correct"] is None and second["choices"] == []


def test_a_generated_row_with_what_is_no_number_can_be_written() -> None:
    row = {"task": "t", "prediction": "x", "scores": {"bleu": math.nan, "exact_match": 1.0}}
    assert questions.defined(row)["scores"] == {"bleu": None, "exact_match": 1.0}
    rolling = {"task": "t", "logprobs": [-math.inf], "tokens": [3], "scores": {"word_perplexity": 1.0}}
    assert questions.defined(rolling) == rolling | {"logprobs": [None], "scores": {"word_perplexity": None}}
