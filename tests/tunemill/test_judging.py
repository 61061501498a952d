"""Judging: values computed by hand, templates that data cannot break, labels read out of what judges write."""

from __future__ import annotations

import math

import pytest

from tunemill import judging
from tunemill.judging import Judgement, judgement

TEMPLATE = "{criterion}|{prompt}|{first}|{second}|{other}"


def test_fields_are_filled_once_whatever_stands_in_them() -> None:
    shown = judging.fill(
        TEMPLATE,
        prompt="{second} {first} {} {0} {prompt!r}",
        first=r"\1 \g<0> {criterion}",
        second="%s $x {",
        criterion="best",
    )
    assert shown == r"best|{second} {first} {} {0} {prompt!r}|\1 \g<0> {criterion}|%s $x {|{other}"


def test_a_template_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a text with \{second\}, \{criterion\} in it"):
        judging.checked("{prompt} {first}")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (math.log(0.3), math.log(0.1), 0.75),
        (math.log(0.1), math.log(0.3), 0.25),
        (-5.0, -5.0, 0.5),
        (-1e4, -1.0, 0.0),  # exp(9999) is no float
        (-1.0, -1e4, 1.0),
        (-math.inf, -3.0, 0.0),
        (-math.inf, -math.inf, None),
        (math.nan, -1.0, None),
    ],
)
def test_probability_of_the_label(first: float, second: float, expected: float | None) -> None:
    assert judging.probability(first, second) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("a_first", "b_first", "p", "bias", "contradictory", "outcome"),
    [
        (1.0, 1.0, 0.5, 0.5, True, "tie"),  # always "(A)"
        (0.0, 0.0, 0.5, -0.5, True, "tie"),  # always "(B)"
        (1.0, 0.0, 1.0, 0.0, False, "win"),  # a, wherever it stands
        (0.0, 1.0, 0.0, 0.0, False, "loss"),
        (0.9, 0.4, 0.75, 0.15, False, "win"),
        (0.6, 0.9, 0.35, 0.25, True, "tie"),  # 0.35 is no tie by the margin, but a wins when first and b when first
        (0.55, 0.48, 0.535, 0.015, False, "tie"),  # both for a, by less than the margin
        (0.5, 0.2, 0.65, -0.15, False, "win"),  # no preference in one order contradicts nothing
    ],
)
def test_both_orders_by_hand(
    a_first: float, b_first: float, p: float, bias: float, contradictory: bool, outcome: str
) -> None:
    found = judgement(a_first, b_first, margin=0.05)
    assert (found.p, found.position_bias) == (pytest.approx(p), pytest.approx(bias))
    assert (found.contradictory, found.outcome) == (contradictory, outcome)


def test_swapping_the_answers_turns_the_judgement_round() -> None:
    there, back = judgement(0.8, 0.3, 0.01), judgement(0.3, 0.8, 0.01)
    assert there.p == pytest.approx(1 - back.p) and (there.outcome, back.outcome) == ("win", "loss")
    assert there.position_bias == back.position_bias


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(A)", 1.0),
        ("(B)", 0.0),
        (" (A).\n", 1.0),
        ("The answer is (B), because it is shorter.", 0.0),
        ("**(A)**", 1.0),
        ("A", 1.0),
        ("B.", 0.0),
        ("**B**", 0.0),
        ("A: it is true", 1.0),
        ("Answer: B", 0.0),
        ("The better one is A.", 1.0),
        ("(A) is better than (B)", None),
        ("A good summary names what matters.", None),  # an article
        ("Both are fine", None),
        ("Sorry, I cannot say.", None),
        ("AB", None),
        ("(C)", None),
        ("", None),
    ],
)
def test_labels_in_words(text: str, expected: float | None) -> None:
    assert judging.read(text) == expected


def test_the_token_that_tells_the_label_is_read_with_its_alternatives() -> None:
    # 0.6 A and 0.2 B, in two spellings each; 0.1 says something else.
    told = (("A", math.log(0.5)), (" B", math.log(0.15)), ("A)", math.log(0.1)), ("(B", math.log(0.05)), ("C", -2.3))
    certain = (("(", -0.01), ("A", -5.0))
    assert judging.read("(A)", [("(", certain), ("A", told), (")", ())]) == pytest.approx(0.75)
    assert judging.read("A", [("A", told)]) == pytest.approx(0.75)
    # Spaces before it, and the token that ends it, stand among the tokens alone.
    assert judging.read("(A)", [("\n", ()), ("(", certain), ("A", told), (")", ()), ("<|end|>", ())]) == pytest.approx(
        0.75
    )
    # What is not listed counts as nothing.
    assert judging.read("(B)", [("(", certain), ("B", (("B", -0.1),)), (")", ())]) == 0.0


def test_tokens_that_do_not_tell_leave_the_words() -> None:
    assert judging.read("(A)", [("(A) b", (("(A) b", -0.1), ("(B) b", -0.2)))]) == 1.0
    assert judging.read("(B)", [("(", ()), ("B", ()), (")", ())]) == 0.0  # no alternatives
    assert judging.read("(B)", [("other", (("A", -0.1),))]) == 0.0  # other words


def test_tally_by_hand() -> None:
    found = [
        judgement(1.0, 0.0, 0.05),  # win, bias 0
        judgement(1.0, 1.0, 0.05),  # tie, bias 0.5, contradictory
        judgement(0.0, 0.8, 0.05),  # loss, bias -0.1
        judging.IDENTICAL,  # tie, not asked
        judgement(0.9, 0.1, 0.05),  # win, bias 0
    ]
    tally = judging.tally(found, ["x", "x", "y", "y", "z"], resamples=2000, seed=0)
    assert (tally.n, tally.wins, tally.ties, tally.losses, tally.identical) == (5, 2, 2, 1, 1)
    assert tally.win_rate.value == pytest.approx((2 + 0.5 * 2) / 5)
    assert tally.position_bias.value == pytest.approx((0 + 0.5 - 0.1 + 0) / 4)
    assert tally.contradictory == 0.25
    assert tally.clusters == 3
    assert tally.win_rate.low is None and tally.p is None  # five answers show nothing


def test_a_win_rate_far_from_one_half_is_significant_and_all_ties_are_not() -> None:
    wins = [judgement(0.9, 0.2, 0.05)] * 17 + [judgement(0.2, 0.9, 0.05)] * 3
    tally = judging.tally(wins, list(range(20)), resamples=4000, seed=1)
    assert tally.win_rate.value == 0.85
    # Student's interval of a mean of 20: 0.85 ± 2.09 · 0.366 / sqrt(20).
    assert (tally.win_rate.low, tally.win_rate.high) == (pytest.approx(0.68, abs=0.06), pytest.approx(1.0, abs=0.06))
    assert tally.p is not None and tally.p < 0.01
    ties = judging.tally([judgement(1.0, 1.0, 0.05)] * 20, list(range(20)), resamples=1000, seed=1)
    # Of 20 that are all alike, at most 17% of all are otherwise (the exact binomial interval): half a point each.
    assert ties.win_rate == pytest.approx((0.5, 0.5 - 0.1684 / 2, 0.5 + 0.1684 / 2), abs=1e-4) and ties.p == 1.0
    assert ties.position_bias == pytest.approx((0.5, 0.5 - 0.1684, 0.5), abs=1e-4)
    every = judging.tally([judgement(1.0, 0.0, 0.05)] * 20, list(range(20)), resamples=1000, seed=1)
    assert every.win_rate == pytest.approx((1.0, 1 - 0.1684, 1.0), abs=1e-4) and every.p == pytest.approx(2 * 0.5**20)


def test_nothing_and_one_are_undefined_with_their_counts() -> None:
    nothing = judging.tally([], [], resamples=1000, seed=0)
    assert nothing.win_rate == nothing.position_bias == (None, None, None)
    assert (nothing.n, nothing.p, nothing.contradictory) == (0, None, None)
    same = judging.tally([judging.IDENTICAL] * 3, ["x", "y", "z"], resamples=1000, seed=0)
    assert same.win_rate.value == 0.5 and same.position_bias.value is None and same.contradictory is None
    one = judging.tally([judgement(1.0, 0.0, 0.05)], ["x"], resamples=1000, seed=0)
    assert one.win_rate == (1.0, None, None) and one.p is None


def test_agreement_counts_what_both_prefer() -> None:
    found = [Judgement(p, 0.0, False, "tie") for p in (0.9, 0.4, 0.51, 0.5, 0.2, 0.7)]
    assert judging.agreement(found, [2.0, 1.0, 0.5, 3.0, None, 0.0]) == (2 / 3, 3)
    assert judging.agreement([], []) == (None, 0)
