"""What is shown item by item, and why just that: rules, ties by id, marks that lose nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tunemill import evidence
from tunemill.evidence import Piece


def instance(name: str, score: float | None, **more: Any) -> dict[str, Any]:
    found = {
        "id": name,
        "group": "g",
        "prompt": f"Say the word {name} now.",
        "reference": "r",
        "prediction": f"p {name}",
    }
    return found | {"finished": True, "scores": {"rouge1": score}} | more


def perturbed(name: str, score: float | None, way: str = "robustness", changed: bool = True) -> dict[str, Any]:
    row = instance(name, score, prompt=f"say  the word {name} now.", prediction=f"after {name}")
    return row | {"perturbation": way, "changed": changed}


def examples(before: dict[str, float | None], after: dict[str, float | None], **options: Any) -> list[tuple[str, str]]:
    [found] = evidence.perturbations(
        [perturbed(name, score) for name, score in after.items()],
        [instance(name, score) for name, score in before.items()],
        **{"metric": "rouge1", "lower_is_better": False, "seed": 1, **options},
    )
    return [(each.why, each.id) for each in found.examples]


# ------------------------------------------------------------ perturbed prompts


def test_changed_words_are_marked_and_nothing_is_lost():
    before, after = "Do not open  the Door, please", "do not open  the   Door please now"
    pieces = evidence.changes(before, after)
    assert pieces == [
        Piece("before", "Do"),
        Piece("after", "do"),
        Piece("same", " not open  the "),
        Piece("after", "  "),
        *pieces[4:],
    ]
    assert "".join(text for kind, text in pieces if kind != "after") == before
    assert "".join(text for kind, text in pieces if kind != "before") == after


@pytest.mark.parametrize(
    ("before", "after"), [("", ""), ("", "new"), ("old", ""), ("a b c", "a x y c"), ("a\nb", "a b")]
)
def test_both_texts_can_be_read_from_the_marks(before: str, after: str):
    pieces = evidence.changes(before, after)
    assert "".join(text for kind, text in pieces if kind != "after") == before
    assert "".join(text for kind, text in pieces if kind != "before") == after
    assert all(first.kind != second.kind for first, second in pairwise(pieces))


def test_long_and_hidden_text_is_cut_and_made_visible():
    pieces = [Piece("same", "abc"), Piece("after", "\u202ed\x00"), Piece("same", "efgh")]
    assert evidence.shortened(pieces, 7) == (
        [Piece("same", "abc"), Piece("after", "�d␀"), Piece("same", "e"), Piece("same", "…")],
        3,
    )
    assert evidence.shortened(pieces, 10)[1] == 0


def test_the_largest_drops_come_first_and_ties_go_by_id():
    before: dict[str, float | None] = dict.fromkeys("abcde", 50.0)
    after: dict[str, float | None] = {"a": 49.0, "d": 30.0, "c": 30.0, "b": 60.0, "e": 50.0}
    found = examples(before, after)
    assert found[:2] == [("largest drop", "c"), ("largest drop", "d")]
    assert found[2][0] == "random" and found[2][1] in "abe" and len(found) == 3
    # Where lower is better, b has become the worst.
    assert examples(before, after, lower_is_better=True)[0] == ("largest drop", "b")


def test_what_did_not_become_worse_is_no_drop_and_what_has_no_score_may_be_drawn():
    assert examples({"a": 5.0, "b": None}, {"a": 5.0, "b": 9.0})[0][0] == "random"
    drawn = {examples({"a": 5.0, "b": None}, {"a": 5.0, "b": 9.0}, seed=seed)[0][1] for seed in range(20)}
    assert drawn == {"a", "b"}


def test_every_perturbation_is_listed_with_how_much_it_changed():
    rows = [perturbed("a", 1.0, way, changed=way != "gender") for way in ("names", "gender", "robustness")]
    found = evidence.perturbations(rows, [instance("a", 9.0)], metric="rouge1", lower_is_better=False, seed=1)
    assert [(each.name, each.changed, each.n) for each in found] == [
        ("robustness", 1, 1), ("gender", 0, 1), ("names", 1, 1),
    ]  # fmt: skip
    assert found[1].examples == ()
    [example] = found[0].examples
    assert (example.drop, example.before.score, example.after.score) == (8.0, 9.0, 1.0)
    assert (example.before.text, example.after.text) == ("p a", "after a")


# ------------------------------------------------------------ the worst


def test_the_worst_ten_are_the_worst_ten_in_order():
    rows = [instance(f"i{index:02}", float(score)) for index, score in enumerate([5, 3, 3, 9, 0, 8, 7, 6, 2, 4, 1, 10])]
    rows.append(instance("none", None))
    found = evidence.worst(rows, metric="rouge1", lower_is_better=False)
    assert [each.id for each in found] == ["i04", "i10", "i08", "i01", "i02", "i09", "i00", "i07", "i06", "i05"]
    assert [each.output.score for each in found] == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8]
    upside_down = evidence.worst(rows, metric="rouge1", lower_is_better=True)
    assert [each.output.score for each in upside_down] == [10, 9, 8, 7, 6, 5, 4, 3, 3, 2]
    assert [each.id for each in upside_down][7:9] == ["i01", "i02"]
    assert evidence.worst([instance("none", None)], metric="rouge1", lower_is_better=False) == []


# ------------------------------------------------------------ answers to provocation


def provoking(*scores: tuple[float | None, float | None]) -> list[dict[str, Any]]:
    return [
        {"id": "r", "kind": "instruction", "source": "s", "prompt": "p", "prompt_toxic": True}
        | {
            "samples": [
                {"prediction": f"{offence} {harm}", "finished": True, "offence": offence, "harm": harm}
                for offence, harm in scores
            ]
        }
    ]


def test_each_scorer_has_its_worst_answer_and_one_is_drawn():
    found = evidence.provoked(provoking((0.1, 0.9), (0.8, 0.2), (0.3, 0.3)), seed=1)
    assert [(each.why, each.output.text) for each in found] == [
        ("most offensive", "0.8 0.2"), ("most harmful", "0.1 0.9"), ("random", "0.3 0.3"),
    ]  # fmt: skip
    assert {each.prompt_toxic for each in found} == {True}
    both = evidence.provoked(provoking((0.9, 0.9), (0.9, 0.1)), seed=1)
    assert [each.why for each in both] == ["most offensive, most harmful", "random"]


def test_without_scores_answers_are_drawn():
    assert [each.why for each in evidence.provoked(provoking((None, None)), seed=1)] == ["random"]
    assert evidence.provoked([], seed=1) == []
