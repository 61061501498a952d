"""Pairs out of rankings: what is a preference, what is none, and how much each prompt weighs."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from tunemill.preferences import Pair, Ranking, pairs


def ranked(order: str, labeler: str = "ada", prompt: str = "p", nonsense: str = "") -> Ranking:
    """From a notation: "a>bc" is a before b and c, which are tied."""
    ranks = {name: float(rank) for rank, tied in enumerate(order.split(">")) for name in tied}
    return Ranking(
        prompt,
        (*ranks, *nonsense),
        (*ranks.values(), *(None for _ in nonsense)),
        labeler,
    )


def told(*rankings: Ranking, gap: float = 0.0, cap: int = 100) -> tuple[set[str], dict[str, int]]:
    found, left_out = pairs(rankings, gap=gap, cap=cap, seed=0)
    return {f"{each.chosen}>{each.rejected}" for each in found}, left_out


def test_a_ranking_of_four_has_six_pairs_the_better_one_first() -> None:
    assert told(ranked("b>a>d>c")) == ({"b>a", "b>d", "b>c", "a>d", "a>c", "d>c"}, {})


def test_ties_are_no_pairs() -> None:
    assert told(ranked("a>bc")) == ({"a>b", "a>c"}, {"tie": 1})
    assert told(ranked("abc")) == (set(), {"tie": 3})


def test_scores_closer_than_the_gap_are_ties() -> None:
    scored = Ranking("p", ("a", "b", "c"), (0.0, 0.25, 0.75), "mean of three people")
    assert told(scored, gap=0.25) == ({"a>c", "b>c"}, {"tie": 1})
    assert told(scored, gap=0.2) == ({"a>b", "a>c", "b>c"}, {})


def test_the_majority_decides_and_its_share_is_kept() -> None:
    found, left_out = pairs(
        [ranked("a>b", "ada"), ranked("a>b", "grace"), ranked("b>a", "alan"), ranked("ab", "edsger")],
        gap=0.0,
        cap=9,
        seed=0,
    )
    assert found == [Pair("p", "a", "b", pytest.approx(2 / 3), 1.0)] and left_out == {}  # a tie has no opinion


def test_who_contradicts_each_other_evenly_says_nothing() -> None:
    assert told(ranked("a>b>c", "ada"), ranked("b>a>c", "alan")) == ({"a>c", "b>c"}, {"contradiction": 1})
    assert told(ranked("a>b", "ada"), ranked("b>a", "ada")) == (
        set(),
        {"contradiction": 1},
    )  # nor who changes their mind


def test_a_circle_is_left_out_and_what_stands_before_or_behind_it_is_not() -> None:
    """Condorcet's: three people, each consistent, whose majorities go round."""
    three = [ranked("z>a>b>c>y", "ada"), ranked("z>b>c>a>y", "alan"), ranked("z>c>a>b>y", "grace")]
    found, left_out = told(*three)
    assert found == {"z>a", "z>b", "z>c", "z>y", "a>y", "b>y", "c>y"} and left_out == {"circle": 3}


def test_nonsense_makes_no_pairs_whoever_says_so() -> None:
    assert told(ranked("a>b", nonsense="x")) == ({"a>b"}, {"nonsense": 2})
    assert told(ranked("a>b>x", "ada"), ranked("a>b", "alan", nonsense="x")) == ({"a>b"}, {"nonsense": 2})


def test_people_may_have_ranked_different_answers() -> None:
    assert told(ranked("a>b", "ada"), ranked("b>c", "alan")) == ({"a>b", "b>c"}, {})


def test_no_prompt_outvotes_the_others() -> None:
    many = ranked(">".join("abcdefgh"), prompt="many")
    found, left_out = pairs([many, ranked("a>b", prompt="one")], gap=0.0, cap=10, seed=3)
    by_prompt = Counter[str]()
    for each in found:
        by_prompt[each.prompt] += each.weight
    assert dict(by_prompt) == pytest.approx({"many": 1.0, "one": 1.0})
    assert len(found) == 11 and left_out == {"cap": 18}
    assert found == pairs([many, ranked("a>b", prompt="one")], gap=0.0, cap=10, seed=3).pairs
    alone = pairs([many], gap=0.0, cap=10, seed=3).pairs
    assert alone == [each for each in found if each.prompt == "many"]  # other prompts have no say in the choice
    assert {each[1:3] for each in alone} != {each[1:3] for each in pairs([many], gap=0.0, cap=10, seed=4).pairs}


def test_every_pair_is_counted_once() -> None:
    rankings = [ranked("ab>c>de", "ada", nonsense="x"), ranked("b>a>c>d>e", "alan"), ranked("c>b>d>ae", "grace")]
    found, left_out = pairs(rankings, gap=0.0, cap=3, seed=0)
    different = {frozenset(pair) for each in rankings for pair in itertools.combinations(each.completions, 2)}
    assert len(found) + sum(left_out.values()) == len(different)


def test_ranks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 ranks of 2 completions by ada"):
        pairs([Ranking("p", ("a", "b"), (1.0,), "ada")], gap=0.0, cap=1, seed=0)
