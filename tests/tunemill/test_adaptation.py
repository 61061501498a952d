"""How adapting is told: rows, incidents, curves, LoRA's loss against full tuning, the grid, the plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import report_artifacts as made
from tunemill import adaptation, statistics
from tunemill.adaptation import CurvePoint, Held, Tuned

POLICIES = made.policies(made.FIVE)


def tuned(name: str, curve: tuple[CurvePoint, ...] = (), **changes: Any) -> Tuned:
    return Tuned(name, {**made.training(name), **changes}, curve)


def compared(value: float | None, low: float, high: float, a: str = "lora", b: str = "sft") -> dict[str, Any]:
    """comparison.json in which `a` is so many percent above `b` on all metrics."""
    relative = {"relative": value, "relative_low": low, "relative_high": high}
    return {"pairs": [{"a": a, "b": b, "metric": metric, "n": 99, **relative} for metric in adaptation.LAB_LOSSES]}


# ------------------------------------------------------------ rows


def test_a_training_belongs_to_the_candidate_whose_policy_it_made():
    policies = {
        "base": "artifacts/select/model",
        "mine": "artifacts/lora/adapter",
        "second": "artifacts/lora/adapter-18",
    }
    assert adaptation.candidate_of("lora", policies) == "mine"
    assert adaptation.candidate_of("sft", policies) is None
    assert adaptation.candidate_of("model", policies) is None  # the policy's own name is no stage
    assert adaptation.candidate_of("mine", {"mine": "models/mine"}) == "mine"  # made elsewhere


def test_rows_without_plan_time_curve_or_candidate_say_so():
    found = adaptation.methods(
        [tuned("lora")], None, policies={"base": "artifacts/select/model"}, comparison={}, metric="rouge1",
        reference="base", timings={},
    )  # fmt: skip
    assert [row.name for row in found] == ["base", "lora"]
    lora = found[1]
    assert (lora.candidate, lora.quality.reason, lora.gain) == (None, "no candidate of this run", None)
    assert (lora.before, lora.after, lora.seconds, lora.memory) == (None, None, None, None)
    assert lora.share == pytest.approx(100 * 2442240 / 134515008)
    assert adaptation.methods([], None, policies={}, comparison={}, metric="", reference="base", timings={}) == []


def test_the_validation_loss_is_told_before_and_after():
    curve = (CurvePoint(0, None, 3.4), CurvePoint(1, 3.3, None), CurvePoint(2, 2.9, 2.8))
    [_, row] = adaptation.methods(
        [tuned("sft", curve)], None, policies=POLICIES, comparison={},
        metric="rouge1", reference="base", timings={"sft": {"seconds": 9.0, "peak_memory_bytes": 5}},
    )  # fmt: skip
    assert (row.before, row.after, row.seconds, row.memory, row.steps) == (3.4, 2.8, 9.0, 5, "100 × 8 pairs")


def test_incidents_are_said_in_words_and_only_where_there_were_any():
    assert adaptation.incidents([tuned("lora"), tuned("prompt_tune")]) == []
    assert adaptation.incidents([tuned("lora", micro_batch=1, learning_rate=2.4e-4)]) == [
        "lora computed the 8 pairs of a step 1 at a time: less memory, the same step.",
        "lora met a gradient that was no number: it went back to its last checkpoint, "
        "and on at a learning rate of 0.00024 instead of 0.0008.",
    ]


# ------------------------------------------------------------ curves


def test_curves_share_their_axes_and_differ_in_style():
    one = (CurvePoint(0, None, 4.0), CurvePoint(1, 3.9, None), CurvePoint(2, 3.0, 2.0))
    two = (CurvePoint(0, None, 4.0), CurvePoint(1, 3.9, 3.0))
    chart = adaptation.curves([tuned("sft", one), tuned("lora", two), tuned("prompt_tune")])
    assert chart is not None
    assert [(each.name, each.style) for each in chart.series] == [("sft", 0), ("lora", 1)]
    first, second = chart.series
    assert [x for x, _, _ in first.points] == [0.0, 100.0]
    assert [x for x, _, _ in second.points] == [0.0, 50.0]
    assert first.points[0][1] == second.points[0][1]  # the same loss at the same height
    assert chart.summary == "sft: validation loss from 4.00 to 2.00. lora: validation loss from 4.00 to 3.00"
    assert adaptation.curves([tuned("sft", (CurvePoint(1, None, None),))]) is None


def test_a_loss_that_rises_again_is_told_and_training_loss_stands_in_for_none():
    rises = (CurvePoint(0, None, 4.0), CurvePoint(1, 3.0, 2.0), CurvePoint(2, 2.0, 2.5))
    chart = adaptation.curves([tuned("sft", rises)])
    assert chart is not None
    assert chart.series[0].summary == "validation loss from 4.00 to 2.50, lowest 2.00 at step 1"
    chart = adaptation.curves([tuned("sft", (CurvePoint(1, 4.0, None), CurvePoint(2, 3.0, None)))])
    assert chart is not None
    assert (chart.series[0].summary, chart.series[0].thin, chart.series[0].points) == (
        "training loss from 4.00 to 3.00",
        "",
        (),
    )
    assert chart.series[0].line.count("L") == 1


# ------------------------------------------------------------ LoRA against full tuning


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-3.1, 1.2, "no worse"),  # at worst 3.1% are lost
        (-3.2, 1.2, "not shown"),  # the margin itself
        (-3.1, -0.2, "no worse"),  # shown to be lower, and by less than the margin
        (-7.5, -3.1, "not shown"),
        (-7.5, -3.3, "worse"),
        (0.5, 7.5, "no worse"),
        (-3.3, 2.9, "not shown"),  # half of it is 3.1%: a loss of nothing would be shown to be none
        (-3.4, 3.2, "not resolved"),  # and here it would not
        (-30.0, -20.0, "worse"),  # wide, and still beyond the margin
        (20.0, 30.0, "no worse"),
    ],
)
def test_no_worse_takes_a_bound_inside_the_margin(low: float, high: float, outcome: str):
    found = adaptation.losses("lora", "sft", compared((low + high) / 2, low, high))
    assert [each.outcome for each in found] == [outcome] * 3
    assert (found[0].lost.value, found[0].lost.low, found[0].lost.high) == (-(low + high) / 2, -high, -low)


def test_the_lab_comes_out_as_its_figures_say():
    # ROUGE-1 of FLAN-T5-base on DialogSum: 0.4216 tuned in full, 0.4081 with LoRA.
    relative = float(statistics.relative(np.array(0.4081), np.array(0.4216)))
    found = adaptation.losses("lora", "sft", compared(relative, -7.0, 0.7))
    assert round(found[0].lost.value or 0, 1) == found[0].reference == 3.2
    assert found[0].outcome == "not resolved"


def test_a_pair_that_was_compared_the_other_way_round_is_the_same_loss():
    # Full tuning 25% above LoRA: LoRA is 20% below it, and 50% is 33%.
    (lost, *_) = adaptation.losses("lora", "sft", compared(25.0, 0.0, 50.0, "sft", "lora"))
    assert (lost.lost.value, lost.lost.low) == pytest.approx((20.0, 0.0))
    assert lost.lost.high == pytest.approx(100 / 3)


def test_a_pair_that_was_not_compared_is_no_verdict():
    found = adaptation.losses("lora", "sft", {})
    assert {each.outcome for each in found} == {"not shown"}
    assert found[0].lost.reason == "this pair was not compared"
    (lost, *_) = adaptation.losses("lora", "sft", compared(None, 0.0, 0.0))
    assert lost.lost.value is None and lost.lost.reason == "sft scores nothing" and lost.outcome == "not shown"


def test_rivals_are_found_by_their_method():
    trainings = [tuned(name) for name in made.TRAININGS]
    assert adaptation.rivals(trainings, POLICIES) == ("lora", "sft")
    assert adaptation.rivals(trainings[:1], POLICIES) is None
    assert adaptation.rivals(trainings, {"base": POLICIES["base"], "lora": POLICIES["lora"]}) is None


# ------------------------------------------------------------ prompts


def test_the_grid_marks_exactly_the_chosen_cell():
    found = adaptation.cells(made.prompt())
    assert [(each.template, each.shots, each.decoding) for each in found if each.is_chosen] == [("short", 4, "greedy")]
    assert found[0].finished == 50.0 and found[0].score.n == 48


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"temperature": 0.0, "top_k": 0, "top_p": 1.0}, "the likeliest token every time, at most 24"),
        ({"temperature": 0.7, "top_k": 0, "top_p": 1.0}, "tokens drawn at random (temperature 0.7), at most 24"),
        (
            {"temperature": 1.0, "top_k": 50, "top_p": 0.9},
            "tokens drawn at random (temperature 1, the 50 likeliest tokens, the likeliest tokens with a probability of 0.9 together),"
            " at most 24",
        ),
    ],
)
def test_the_decoding_is_said_in_words(values: dict[str, Any], said: str):
    assert adaptation.decoding({"decoding": {"max_new_tokens": 24, **values}}) == said


# ------------------------------------------------------------ plans


@pytest.mark.parametrize(
    ("planned", "measured", "said", "is_off"),
    [
        (100.0, 127.0, "27% more than planned", True),
        (100.0, 120.0, "20% more than planned", False),
        (100.0, 79.0, "21% less than planned", True),
        (100.0, 100.2, "as planned", False),
        (None, 100.0, "not planned", False),
        (100.0, None, "not measured", False),
        (None, None, "not planned", False),
    ],
)
def test_a_plan_that_is_a_fifth_off_is_marked(planned: float | None, measured: float | None, said: str, is_off: bool):
    held = Held(planned, measured)
    assert (held.said, held.is_off) == (said, is_off)


def test_plans_stand_beside_what_was_measured():
    timings = {
        "select": {"seconds": 30.0, "step_seconds/full": 2.0, "step_tokens": 1514},
        "sft": {"seconds": 210.0, "training_seconds": 180.0, "peak_memory_bytes": 3_200_000_000},
    }
    sft, soft = adaptation.plans([tuned("sft"), tuned("prompt_tune")], timings)
    # By the tokens that were trained on, not by steps; held against the loop alone, not the whole stage.
    assert (sft.time.planned, sft.time.measured) == (2.0 * 151400 / 1514, 180.0)
    assert sum(size for _, size in sft.parts) == sft.memory.planned
    assert (soft.memory.said, soft.time.said, soft.parts) == ("not planned", "not planned", ())
    # A method whose step was not measured has no planned time.
    assert adaptation.plans([tuned("lora", method="qlora")], timings)[0].time.said == "not planned"
