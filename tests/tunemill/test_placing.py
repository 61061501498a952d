"""What the steps on the labelling page come to."""

from __future__ import annotations

import itertools

import pytest

from tunemill import placing
from tunemill.labels import Label
from tunemill.placing import Progress, Step
from tunemill.records import Completions, row_id


def item(*texts: str, prompt: str = "p") -> Completions:
    return Completions(row_id(prompt, *texts), prompt, texts, "set")


def steps(notation: str) -> list[Step]:
    """Digits are the next best, after a `=` tied, after an `x` nonsense."""
    kinds = {"=": "tie", "x": "nonsense"}
    found: list[Step] = []
    before = ""
    for each in notation:
        if each.isdigit():
            found.append(Step(kinds.get(before, "next"), int(each) - 1))  # type: ignore[arg-type]
        before = each
    return found


@pytest.mark.parametrize(
    ("done", "words"),
    [
        ("", ""),
        ("2143", "2 > 1 > 4 > 3"),
        ("2=14x3", "2 = 1 > 4, nonsense: 3"),
        ("=2", "2"),  # there is nothing yet to be tied with
        ("121", "2"),  # again takes back
        ("12x1", "2, nonsense: 1"),  # moved
        ("x1x1", ""),
        ("x11", "1"),
        ("12=2", "1 = 2"),
        ("1=232", "1 > 3"),
        ("x1x2x3x4", "nonsense: 1, 2, 3, 4"),
    ],
)
def test_steps_in_words(done: str, words: str) -> None:
    assert placing.in_words(steps(done)) == words


def test_every_prefix_of_the_steps_is_what_undo_leads_to() -> None:
    done = steps("2=1x342")
    assert [placing.in_words(done[:count]) for count in range(len(done) + 1)] == [
        "",
        "2",
        "2 = 1",
        "2 = 1, nonsense: 3",
        "2 = 1 > 4, nonsense: 3",
        "1 > 4, nonsense: 3",
    ]


def test_ranks_are_of_the_completions_as_they_stand_in_the_file() -> None:
    one = item("a", "b", "c", "d")
    assert placing.ranks(one, ["c", "a", "d", "b"], steps("2=14x3")) == (1.0, 2.0, 1.0, None)
    assert placing.ranks(one, ["c", "a", "d", "b"], steps("2=14")) is None
    twice = item("a", "b", "a")
    assert placing.ranks(twice, ["b", "a"], steps("21")) == (1.0, 2.0, 1.0)


def test_cards_are_shuffled_by_person_and_prompt_and_nothing_else() -> None:
    one, other = item("a", "b", "c", "d"), item("a", "b", "c", "d", prompt="q")
    orders = {tuple(placing.shown(name, each)) for name in ("ada", "grace", "alan") for each in (one, other)}
    assert len(orders) > 3 and all(sorted(each) == ["a", "b", "c", "d"] for each in orders)
    assert placing.shown("ada", one) == placing.shown("ada", one)
    first = [placing.shown("ada", item("a", "b", "c", "d", prompt=str(number))).index("a") for number in range(400)]
    assert all(70 < first.count(place) < 130 for place in range(4))  # 100 each, give or take 3.5 standard deviations
    assert sorted(placing.shown("ada", item("a", "b", "a"))) == ["a", "b"]


def test_what_was_saved_can_be_gone_on_with() -> None:
    one = item("a", "b", "c", "d")
    cards = placing.shown("ada", one)
    for ranks in itertools.product([1.0, 2.0, 3.0, None], repeat=4):
        label = Label(one.id, one.prompt, one.completions, ranks, "ada", "")
        found = placing.ranks(one, cards, placing.steps_of(label, cards))
        assert found is not None
        assert [each is None for each in found] == [each is None for each in ranks]
        for first, second in itertools.combinations(range(4), 2):
            before, after = (each[first] for each in (ranks, found)), (each[second] for each in (ranks, found))
            (a, b), (c, d) = tuple(before), tuple(after)
            if a is not None and c is not None and b is not None and d is not None:
                assert (a < c) == (b < d) and (a == c) == (b == d)
    assert placing.steps_of(Label(one.id, "p", one.completions, None, "ada", ""), cards) == []


@pytest.mark.parametrize(
    "damaged", ["", "{", "null", "7", '[["next"]]', '[["next", 4]]', '[["next", -1]]', '[["up", 1]]']
)
def test_a_draft_that_is_none_is_forgotten(damaged: str) -> None:
    assert placing.read_draft('[["next", 3], ["tie", 0]]', 4) == [Step("next", 3), Step("tie", 0)]
    assert placing.read_draft(damaged, 4) == []


def test_the_next_prompt_is_the_first_without_an_answer_after_this_one() -> None:
    items = [item("a", "b", prompt=str(number)) for number in range(5)]

    def said(*numbers: int) -> dict[str, Label]:
        return {items[each].id: Label(items[each].id, "p", ("a", "b"), None, "ada", "") for each in numbers}

    assert placing.next_open(items, {}) == 0
    assert placing.next_open(items, said(0, 1)) == 2
    assert placing.next_open(items, said(0, 3), after=2) == 4
    assert placing.next_open(items, said(0, 3, 4), after=3) == 1  # from the top again
    assert placing.next_open(items, said(0, 1, 2, 3, 4)) is None
    ranked = {items[0].id: Label(items[0].id, "p", ("a", "b"), (1.0, 2.0), "ada", ""), "gone": said(1)[items[1].id]}
    assert placing.progress(items, ranked | said(4)) == Progress(1, 1, 5)
    assert str(Progress(12, 3, 80)) == "12 of 80, 3 skipped" and str(Progress(0, 0, 8)) == "0 of 8"
