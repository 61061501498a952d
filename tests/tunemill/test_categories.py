"""The seven categories: order, direction, ranks with ties, undefined values, and positions on the axes by hand."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import pytest

from tunemill import categories, helm
from tunemill.categories import CATEGORIES, SHADES

NAMES = ("base", "a", "b", "c")


def entry(value: float | None, *, lower: bool = False, half: float | None = None, **more: Any) -> dict[str, Any]:
    low, high = (None, None) if value is None or half is None else (value - half, value + half)
    found = {"metric": "m", "label": "a metric", "value": value, "ci_low": low, "ci_high": high, "n": 9}
    return found | {"lower_is_better": lower, "method": "item"} | more


def told(category: str, values: dict[str, float | None], **about: Any) -> dict[str, Any]:
    reason = {"reason": "too few words"}
    return {
        "categories": {
            name: {category: entry(value, **about, **(reason if value is None else {}))}
            for name, value in values.items()
        }
    }


def row(category: str, values: dict[str, float | None], **about: Any) -> categories.Category:
    found = categories.table(told(category, values, **about), tuple(values), "base")
    return next(each for each in found if each.name == category)


# ------------------------------------------------------------ the table


def test_the_order_is_that_of_helm_whatever_the_order_of_the_file():
    comparison = {"categories": {"base": {name: entry(1.0) for name in ("taste", *reversed(CATEGORIES))}}}
    assert [each.name for each in categories.table(comparison, ("base",), "base")] == [*CATEGORIES, "taste"]
    assert CATEGORIES == (
        "accuracy", "calibration", "robustness", "fairness", "bias", "toxicity", "efficiency",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lower", "ranks", "shades"),
    [
        (False, {"base": 4, "a": 2, "b": 2, "c": 1}, {"base": 0, "a": 2, "b": 2, "c": 4}),
        (True, {"base": 1, "a": 2, "b": 2, "c": 4}, {"base": 4, "a": 2, "b": 2, "c": 0}),
    ],
)
def test_ranks_and_shades_follow_the_direction_and_ties_share_them(
    lower: bool, ranks: dict[str, int], shades: dict[str, int]
):
    # a and b beat one of three others and tie with one: 1.5 / 3 of the way from the first shade to the fifth.
    cells = row("bias", {"base": 1.0, "a": 2.0, "b": 2.0, "c": 7.5}, lower=lower).cells
    assert {name: cell.rank for name, cell in cells.items()} == ranks
    assert {name: cell.shade for name, cell in cells.items()} == shades
    assert {name for name, cell in cells.items() if cell.tied} == {"a", "b"}


def test_five_candidates_take_the_five_shades_and_more_share_them():
    values: dict[str, float | None] = {str(number): float(number) for number in range(SHADES)}
    assert [categories.shade(name, values, False) for name in values] == [0, 1, 2, 3, 4]
    values = {str(number): float(number) for number in range(9)}
    assert [categories.shade(name, values, False) for name in values] == [0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_all_tied_is_the_middle_and_one_candidate_has_nobody_to_beat():
    tied = row("toxicity", dict.fromkeys(NAMES, 0.0), lower=True).cells.values()
    assert {(cell.rank, cell.tied, cell.shade) for cell in tied} == {(1, True, 2)}
    [alone] = row("toxicity", {"base": 0.0}).cells.values()
    assert (alone.rank, alone.tied, alone.shade) == (None, False, None)


def test_undefined_has_its_reason_no_rank_and_no_shade_and_the_others_are_ranked_without_it():
    cells = row("bias", {"base": None, "a": 2.0, "b": 1.0}, lower=True).cells
    assert (cells["base"].shown.value, cells["base"].shown.reason) == (None, "too few words")
    assert (cells["base"].rank, cells["base"].shade) == (None, None)
    assert [(cells[name].rank, cells[name].shade) for name in "ab"] == [(2, 0), (1, 4)]


def test_a_category_that_a_candidate_lacks_is_not_measured():
    comparison = told("bias", {"base": 1.0})
    found = {each.name: each for each in categories.table(comparison, ("base", "late"), "base")}
    assert found["bias"].cells["late"].shown.reason == "not measured for this candidate"
    assert found["accuracy"].cells["base"].shown.reason == "not measured for this candidate"
    assert categories.table({}, ("base",), "base") == categories.table({"categories": {}}, ("base",), "base") == ()


@pytest.mark.parametrize(("rank", "said"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (22, "22nd")])
def test_ranks_are_words(rank: int, said: str):
    assert categories.ordinal(rank) == said


def test_the_verdict_of_the_comparison_is_taken_over_and_else_the_interval_decides_by_direction():
    pair = {"a": "a", "b": "base", "category": "bias", "metric": "m", "diff": -2.0, "ci_low": -3.0, "ci_high": -1.0}
    pair |= {"p": 0.01, "n": 9, "minimum_detectable": 1.5}
    about = told("bias", {"base": 4.0, "a": 2.0}, lower=True)
    for verdict, judgement in (("not shown to be better", "unproven"), (None, "better")):
        found = categories.table(about | {"category_pairs": [pair | {"verdict": verdict}]}, ("base", "a"), "base")
        against = next(each for each in found if each.name == "bias").cells["a"].against
        assert against is not None and (against.judgement, against.detectable) == (judgement, 1.5)
        assert found[0].cells["base"].against is None
        told_of = categories.tally(found, "a")
        assert told_of == (int(judgement == "better"), 0, int(judgement == "unproven"), 6)


def test_win_rates_are_percent_and_say_over_how_many_categories():
    comparison = {
        "win_rate": {
            "base": {"mean": 0.25, "of": {"accuracy": 0.5, "bias": None, "toxicity": 0.0}},
            "a": {"mean": None},
        }
    }
    found = categories.win_rates(comparison, ("base", "a"))
    assert found is not None
    assert (found["base"].value, found["base"].n) == (25.0, 2)
    assert (found["a"].value, found["a"].reason) == (None, "nobody to beat in any category")
    assert categories.win_rates({}, ("base",)) is None


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ((25.31, 4.0), 1),
        ((0.0071, 0.00692), 5),
        ((0.214, None), 3),
        ((131.0,), 0),
        ((0.0, None), 1),
        ((), 1),
        ((5e6,), 0),
    ],
)
def test_a_row_is_rounded_by_its_largest_value(values: tuple[float | None, ...], places: int):
    assert categories.digits(values) == places


# ------------------------------------------------------------ the plot


def test_the_better_end_is_at_the_right_and_intervals_fit_on_the_axis():
    # Ends 8 and 22: with 6% of 14 as air the axis reaches from 7.16 to 22.84, 15.68 wide.
    found = {
        lower: categories.profile([row("bias", {"base": 10.0, "a": 20.0}, lower=lower, half=2.0)], ("base", "a"))
        for lower in (False, True)
    }
    assert found[False] is not None and found[True] is not None
    [up], [down] = found[False].axes, found[True].axes
    assert [(point.x, point.low, point.high) for point in up.points] == [(18.11, 5.36, 30.87), (81.89, 69.13, 94.64)]
    assert [point.x for point in down.points] == [81.89, 18.11]
    assert (50.0, "15") in up.ticks


def test_rows_of_marks_and_the_line_through_them():
    rows = [row("accuracy", {"base": 1.0, "a": 3.0}), row("bias", {"base": None, "a": 3.0}, lower=True)]
    rows.append(row("toxicity", {"base": 0.0, "a": 0.0}))
    found = categories.profile(rows, ("base", "a"))
    assert found is not None
    # Two candidates: 8 + 2 · 16 pixels of marks and 28 of numbers are 68 for each of three axes.
    assert (found.height, [axis.top for axis in found.axes], found.axes[0].zone) == (204, [0, 68, 136], 40)
    assert [point.y for point in found.axes[0].points] == [12, 28]
    (_, base, broken), (_, a, line) = found.lines
    assert (base, a) == ("base", "a")
    # 12 of 204 pixels; nothing in bias; 136 + 12 of 204. A line that stops starts again.
    assert broken == "M5.36 5.882 M50 72.549"
    assert line.count("M") == 1 and line.count("L") == 2
    # All values 0: one number at the middle, and none below zero.
    assert found.axes[2].ticks == ((50.0, "0"),)
    assert "Bias, best first: a 3.00." in found.summary + "."


def test_without_any_value_there_is_no_plot():
    assert categories.profile([row("bias", {"base": None, "a": None})], ("base", "a")) is None
    assert categories.profile([], ()) is None


# ------------------------------------------------------------ what stands behind it


def test_details_stand_by_category_in_order_and_none_is_lost():
    one = {"value": 1.0, "n": 3}
    comparison = {
        "details": {
            "base": {
                "toxicity/instruction/any": one,
                "calibration/platt_ece_10": {"value": None, "reason": "all right"},
            },
            "a": {"calibration/ece_1": one, "perplexity": one},
        }
    }
    found = categories.details(comparison, ("base", "a"))
    assert [(name, [each.label for each in rows]) for name, rows in found] == [
        ("calibration", ["platt ece 10", "ece 1"]),
        ("toxicity", ["instruction: any"]),
        ("other", ["perplexity"]),
    ]
    platt, ece = found[0][1]
    assert platt.shown["base"].reason == "all right"
    assert ece.shown["base"].reason == "not measured for this candidate"


def test_slices_keep_their_order_and_miss_nobody():
    part = {"slice": "length", "name": "short", "n": 4, "metric": "rouge2", "value": 1.0, "ci_low": 0.5, "ci_high": 1.5}
    comparison = {"slices": {"base": [part, part | {"name": "long"}], "a": [part | {"slice": "group", "name": "p"}]}}
    found = categories.slices(comparison, ("base", "a"))
    assert {by: [each.name for each in parts] for by, parts in found.items()} == {
        "length": ["short", "long"],
        "group": ["p"],
    }
    assert found["length"][0].shown["a"].value is None and found["group"][0].metric == "rouge2"


def test_a_judge_is_told_with_its_bias_and_a_pair_with_its_interval():
    pair = {"a": "x", "b": "base", "win_rate": 0.75, "win_rate_low": 0.5, "win_rate_high": 0.9, "n": 40, "p": 0.05}
    pair |= {"p_holm": 0.1, "wins": 25, "ties": 10, "losses": 5, "position_bias": 0.25, "unusable": None}
    tied = {"a": "y", "b": "base", "win_rate": None, "reason": "no item has two usable answers of the judge"}
    found = categories.judged(
        {"judge": {"model": {"kind": "folder", "name": "m"}, "position_bias": 0.25, "position_bias_low": 0.1}
        | {"position_bias_high": 0.4, "both_orders": True, "label_mass": None, "items": 40, "pairs": [pair, tied]}}
    )  # fmt: skip
    assert found is not None
    assert dict(found.facts) == {
        "Model: Kind": "folder", "Model: Name": "m", "Position bias": "0.250 (0.100 to 0.400)", "Both orders": "yes",
        "Label mass": "—", "Items": "40",
    }  # fmt: skip
    first, second = found.pairs
    assert (first.rate.value, first.rate.low, first.rate.high, first.rate.n, first.rate.p) == (
        75.0,
        50.0,
        90.0,
        40,
        0.1,
    )
    assert (first.judgement, first.counts) == (
        "unproven",
        "25, 10, 5",
    )  # an interval that touches one half shows nothing
    assert dict(first.figures)["Position bias"] == "0.25" and dict(first.figures)["Unusable answers"] == "—"
    assert (second.rate.value, second.rate.reason) == (None, "no item has two usable answers of the judge")
    better = categories.judged({"judge": {"pairs": [pair | {"win_rate_low": 0.51}]}})
    held_back = categories.judged(
        {"judge": {"pairs": [pair | {"win_rate_low": 0.51, "verdict": "not shown to be better"}]}}
    )
    assert better is not None and held_back is not None
    assert (better.pairs[0].judgement, held_back.pairs[0].judgement) == ("better", "unproven")


@pytest.mark.parametrize("block", [{}, {"judge": None}, {"judge": {"model": None}}])
def test_where_no_judge_was_asked_there_is_none(block: dict[str, Any]):
    assert categories.judged(block) is None


# ------------------------------------------------------------ the reliability diagram


def question(confidence: float, correct: bool, tokens: int = 1) -> dict[str, Any]:
    """Two choices, the first one with this probability after softmax over log-probabilities per token."""
    logs = [math.log(confidence) * tokens, math.log(1 - confidence)]
    return {
        "choices": ["x", "y"],
        "right": 0 if correct else 1,
        "logprobs": logs,
        "tokens": [tokens, 1],
        "correct": correct,
    }


def test_confidence_is_the_softmax_per_token_and_bins_are_of_equal_size():
    rows = [question(0.6, index < 3) for index in range(10)] + [
        question(0.9, index < 8, tokens=3) for index in range(10)
    ]
    random.Random(1).shuffle(rows)
    found = categories.reliability("base", rows)
    assert [(round(each.confidence, 9), each.accuracy, each.n) for each in found.bins] == [
        (0.6, 0.3, 10),
        (0.9, 0.8, 10),
    ]
    assert [(x, y) for x, y, _ in found.points] == [(60.0, 70.0), (90.0, 20.0)]
    assert found.summary == "base: mean confidence 0.75, right in 0.55 of 20 questions"


def test_the_diagram_agrees_with_scikit_learn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sklearn.calibration import calibration_curve
    noise = random.Random(3)
    rows = [question(0.5 + noise.random() / 2.01, noise.random() < 0.6) for _ in range(400)]
    sure = [math.exp(row["logprobs"][0]) for row in rows]
    accuracy, confidence = calibration_curve([row["correct"] for row in rows], sure, n_bins=10, strategy="quantile")
    found = categories.reliability("base", rows).bins
    assert [each.confidence for each in found] == pytest.approx(list(confidence), abs=1e-9)
    assert [each.accuracy for each in found] == pytest.approx(list(accuracy), abs=1e-9)


@pytest.mark.parametrize("broken", [None, math.nan, -math.inf])
def test_questions_without_log_probabilities_are_counted_and_left_out(broken: float | None):
    bad = {**question(0.6, True), "logprobs": [broken, -1.0], "correct": None}
    found = categories.reliability(
        "base", [bad, {"choices": None, "right": None}, *(question(0.7, True) for _ in range(10))]
    )
    assert (found.n, found.unusable, len(found.bins)) == (10, 1, 1)
    few = categories.reliability("base", [question(0.7, True)] * 9)
    assert few.bins == () and few.reason == "9 questions with choices, at least 10 are needed"
    assert few.summary == "base: 9 questions with choices, at least 10 are needed"


def test_questions_of_one_confidence_stay_in_one_bin():
    rows = [question(0.5, index % 2 == 0) for index in range(100)]
    (one,) = categories.reliability("base", rows).bins
    assert (one.confidence, one.accuracy, one.n) == (0.5, 0.5, 100)
    mixed = rows + [question(0.9, True) for _ in range(60)]
    assert [(each.n, each.accuracy) for each in categories.reliability("base", mixed).bins] == [(100, 0.5), (60, 1.0)]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("accuracy/rouge1", "ROUGE-1"),
        ("accuracy/bleu", "BLEU"),
        ("robustness/rougeL", "ROUGE-L, worst of two wordings"),
        ("fairness/people", "right about people, worst of four"),
        ("efficiency/decode_seconds", "seconds for a token"),
        ("something/else", "something/else"),
    ],
)
def test_a_category_says_what_it_is_measured_by(key: str, said: str):
    assert categories.measure(key) == said


def test_every_figure_that_may_stand_for_a_category_has_a_name():
    keys = [key.format(metric="rouge1") for each in helm.CATEGORIES.values() for key in each.keys]
    assert all(categories.measure(key) != key for key in keys)
