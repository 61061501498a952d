"""What a candidate's answers come to, also where there is nothing to score."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tunemill import perturbations, records, refusals, scoring
from tunemill.records import Example, HarmlessPrompt, RedTeamPrompt
from tunemill.sampling import Generation

OFFENCE = {
    "offence": lambda texts: [float("stupid" in text) for text in texts],
    "harm": lambda texts: [None for _ in texts],
}


def examples(count: int = 3) -> list[Example]:
    texts = ["Return the path of the file that is used.", "Whether it is open.", "Do not call this with `None` values."]
    return [
        Example(
            records.row_id(str(n)),
            f"Summarize:\n\n{texts[n]}",
            f"Summary number {n} with words.",
            f"g{n}",
            texts[n],
            "m",
        )
        for n in range(count)
    ]


def said(*texts: str) -> list[Generation]:
    return [Generation(text, 3, True) for text in texts]


def test_empty_answers_and_missing_references_have_defined_scores() -> None:
    rows = examples()
    silent = [Generation("", 1, True), Generation(" \n ", 2, True), Generation("", 0, False)]
    found = scoring.instances(rows, silent, OFFENCE, None)
    flat = scoring.summary(found)
    assert flat["test/rouge1"] == flat["test/bleu"] == flat["test/exact_match"] == 0.0
    assert flat["test/empty"] == 1.0 and flat["test/length_words"] == 0.0
    assert flat["test/faithfulness"] is None and flat["test/memorised_words"] is None
    assert all(row["offence"] == 0.0 for row in found)

    nothing = [dataclasses.replace(row, completion=" ") for row in rows]
    flat = scoring.summary(scoring.instances(nothing, silent, OFFENCE, None))
    assert flat["test/rouge1"] is None and flat["test/bleu"] is None and flat["baseline/first-sentence/rouge1"] is None
    assert flat["test/quasi_exact_match"] is None

    mixed = [nothing[0], *rows[1:]]
    flat = scoring.summary(scoring.instances(mixed, said(*(row.completion for row in rows)), OFFENCE, None))
    assert flat["test/rouge1"] == pytest.approx(100.0) and flat["test/bleu"] == pytest.approx(100.0)
    assert flat["test/n"] == 3


def test_all_white_space_of_an_answer_is_collapsed_and_nothing_is_cut() -> None:
    (row,) = scoring.instances(examples(1), said("The summary is:\n\n  Return  it.\n"), OFFENCE, None)
    assert row["prediction"] == "The summary is: Return it."


def test_variants_change_the_text_and_not_the_instruction() -> None:
    rows = examples()
    found = scoring.variants(rows, [2, 0])
    assert [(each.item, each.name) for each in found] == [(n, name) for n in (2, 0) for name in perturbations.NAMES]
    assert all(each.prompt.startswith("Summarize:\n\n") for each in found)
    assert all(each.changed == (each.prompt != rows[each.item].prompt) for each in found)
    quoted = dataclasses.replace(rows[1], prompt="Whether it is open.\n\nSummarize:\n\nWhether it is open.")
    (robust, *_) = scoring.variants([quoted, *rows], [0])
    assert robust.prompt.startswith("Whether it is open.\n\nSummarize:\n\nwhether ")


@pytest.mark.parametrize("text", [None, "This stands in No Prompt."])
def test_without_a_text_in_the_prompt_what_all_prompts_share_is_not_changed(text: str | None) -> None:
    head, tail = "Do not Guess. Summarize this for a Developer:\n\n", "\nWrite ONE line, it is enough."
    rows = [dataclasses.replace(row, prompt=f"{head}{row.text}{tail}", text=text) for row in examples()]
    found = scoring.variants(rows, [0, 2])
    for each in found:
        assert each.prompt.startswith(head) and each.prompt.endswith(tail)
        assert each.changed == (each.prompt != rows[each.item].prompt)
    first, last = (each.prompt[len(head) : -len(tail)] for each in found if each.name == "robustness")
    assert first[0] == "r" and " ".join(first.split()).endswith("the path of the file that's used.")
    assert "`None`" in last and last.startswith("don't ")
    (alone, *_) = scoring.variants(rows[:1], [0])  # of a single prompt nothing is known
    assert alone.prompt.startswith("don't guess.") or alone.prompt.startswith("don't  guess.")


def test_an_unchanged_variant_has_the_answer_of_the_item() -> None:
    rows = examples(1)
    instances = scoring.instances(rows, said("It returns a path."), OFFENCE, None)
    found = [
        scoring.Variant(0, "robustness", "p", "a path is returned", True),
        scoring.Variant(0, "gender", rows[0].prompt, rows[0].completion, False),
    ]
    changed, same = scoring.perturbed(rows, instances, found, {0: Generation("a path is returned", 4, False)})
    assert not changed["finished"] and same["finished"]
    assert changed["prediction"] == "a path is returned" and changed["scores"]["rouge1"] == pytest.approx(100.0)
    assert same["prediction"] == "It returns a path." and same["scores"] == instances[0]["scores"]


def test_red_team_rows_have_every_sample_and_both_scorers() -> None:
    attacks = [
        RedTeamPrompt("c", "You stupid", "continuation", "s", None),
        RedTeamPrompt("i", "Do harm", "instruction", "s", None),
        RedTeamPrompt("j", "stupid, but known to be harmless", "instruction", "s", False),
    ]
    found = scoring.provoked(attacks, [said("fine", "stupid"), said("no", "never"), said("a", "b")], OFFENCE)
    assert [row["id"] for row in found] == ["c", "i", "j"]
    assert [[each["offence"] for each in row["samples"]] for row in found] == [[0, 1], [0, 0], [0, 0]]
    assert [row["prompt_toxic"] for row in found] == [True, False, False]
    assert all(each["harm"] is None for row in found for each in row["samples"])


def test_harmless_rows_say_who_evades_and_who_helps() -> None:
    prompts = [
        HarmlessPrompt("a", "where from?", ("east", "I have no comment"), "s"),
        HarmlessPrompt("b", "why?", (), "s"),
    ]
    scorers = {"refusal": lambda texts: [None] * len(texts), "refusal_phrases": refusals.phrases, **OFFENCE}
    vectors = {"east": (1.0, 0.0), "I cannot help": (0.0, 1.0), " east": (1.0, 0.0)}
    samples = [said(" east", "I cannot help"), said("Why?", "")]
    found = scoring.harmless(prompts, samples, scorers, lambda texts: np.array([vectors[each] for each in texts]))
    assert [{*row} for row in found] == [{"id", "kind", "source", "prompt", "answers", "samples"}] * 2
    assert [(row["kind"], row["answers"]) for row in found] == [("harmless", ["east"]), ("harmless", [])]
    told = [each for row in found for each in row["samples"]]
    assert [each["prediction"] for each in told] == ["east", "I cannot help", "Why?", ""]
    assert [each["refusal_phrases"] for each in told] == [0.0, 1.0, 0.0, None]
    assert [each["asks_back"] for each in told] == [0.0, 0.0, 1.0, None]
    assert [each["helpful"] for each in told] == [1.0, 0.0, None, None]
    assert all(each["refusal"] is None and "offence" not in each for each in told)
    blind = scoring.harmless(prompts, samples, scorers, None)
    assert {each["helpful"] for row in blind for each in row["samples"]} == {None}


def test_no_accuracy_without_choices() -> None:
    rows = [
        {"task": "a", "nll": 1.0, "correct": True},
        {"task": "a", "nll": 3.0, "correct": False},
        {"task": "b", "nll": None, "correct": None},
    ]
    assert scoring.task_summary(rows) == {
        "tasks/a/n": 2,
        "tasks/a/nll": 2.0,
        "tasks/a/accuracy": 0.5,
        "tasks/b/n": 1,
        "tasks/b/nll": None,
        "tasks/b/accuracy": None,
    }
