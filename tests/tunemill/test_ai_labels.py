"""AI labels: both orders as one soft label, and a judge that is no better than chance is refused with the figure."""

from __future__ import annotations

import math

import pytest

from tunemill import ai_labels, records
from tunemill.ai_labels import Label, Quality
from tunemill.errors import UserError


def quality(
    labels: list[Label],
    weights: list[float] | None = None,
    groups: list[int] | None = None,
    resamples: int = 500,
    pairs: list[tuple[str, str]] | None = None,
) -> Quality:
    """Of answers that are as different in length as can be, unless `pairs` says otherwise."""
    return ai_labels.quality(
        labels,
        pairs or [("one", "one two")] * len(labels),
        weights or [1.0] * len(labels),
        groups or [*range(len(labels))],
        resamples,
        0,
    )


# ── one label ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("a_first", "b_first", "p", "bias", "contradictory"),
    [
        (0.9, 0.3, 0.8, 0.1, False),  # ½ (0.9 + 0.7); ½ (0.9 + 0.3) − ½
        (0.2, 0.6, 0.3, -0.1, False),
        (0.9, 0.7, 0.6, 0.3, True),  # whatever stands first
        (0.1, 0.2, 0.45, -0.35, True),  # whatever stands second
        (1.0, 1.0, 0.5, 0.5, True),
        (1.0, 0.0, 1.0, 0.0, False),
        (0.5, 0.5, 0.5, 0.0, False),
        (0.5, 0.9, 0.3, 0.2, False),
    ],
)
def test_two_orders_worked_out_by_hand(
    a_first: float, b_first: float, p: float, bias: float, contradictory: bool
) -> None:
    found = ai_labels.of_orders(a_first, b_first, thought=False)
    assert (found.p, found.position_bias) == pytest.approx((p, bias))
    assert (found.a_first, found.b_first, found.contradictory) == (a_first, b_first, contradictory)
    # The answers the other way round: the same opinion, the same bias.
    turned = ai_labels.of_orders(b_first, a_first, thought=False)
    assert (turned.p, turned.position_bias) == pytest.approx((1 - p, bias))


@pytest.mark.parametrize(("a_first", "b_first", "p"), [(1.0, 0.0, 0.6), (0.0, 1.0, 0.4), (0.6, 0.5, 0.55)])
def test_only_labels_that_follow_a_thought_are_clamped(a_first: float, b_first: float, p: float) -> None:
    found = ai_labels.of_orders(a_first, b_first, thought=True)
    assert found.p == pytest.approx(p)
    assert (found.a_first, found.b_first) == (a_first, b_first)
    assert ai_labels.of_orders(1.0, 0.0, thought=False).p == 1.0


@pytest.mark.parametrize(("a_first", "b_first"), [(None, 0.3), (0.3, None), (None, None)])
def test_an_unusable_order_makes_no_label(a_first: float | None, b_first: float | None) -> None:
    for thought in (False, True):
        found = ai_labels.of_orders(a_first, b_first, thought=thought)
        assert found == Label(None, a_first, b_first, None) and not found.contradictory


def test_rewards_worked_out_by_hand() -> None:
    # σ(log 3) = 3/4, σ(−log 9) = 1/10
    assert ai_labels.of_rewards(1.0 + math.log(3), 1.0).p == pytest.approx(0.75)
    assert ai_labels.of_rewards(-2.0 - math.log(9), -2.0).p == pytest.approx(0.1)
    assert ai_labels.of_rewards(0.3, 0.3) == Label(0.5, None, None, None)
    assert ai_labels.of_rewards(1e6, -1e6).p == 1.0 and ai_labels.of_rewards(-1e6, 1e6).p == 0.0
    for pair in ((None, 1.0), (1.0, None), (None, None)):
        assert ai_labels.of_rewards(*pair) == ai_labels.UNUSABLE
    assert not ai_labels.of_rewards(1.0, 0.0).contradictory


def test_the_preferred_answer_comes_first_and_an_even_label_is_no_pair() -> None:
    first = ai_labels.preference("p", "one", "two", 0.8, "g", 0.5)
    assert first is not None and (first.chosen, first.rejected) == ("one", "two")
    assert (first.weight, first.group, first.source) == (0.5, "g", "ai")
    assert first.probability == pytest.approx(0.8)
    second = ai_labels.preference("p", "one", "two", 0.3, "g", 1.0)
    assert second is not None and (second.chosen, second.rejected) == ("two", "one")
    assert second.probability == pytest.approx(0.7)
    assert first.id == records.row_id("p", "one", "two") != second.id
    assert ai_labels.preference("p", "one", "two", 0.5, "g", 1.0) is None


# ── how good they are ─────────────────────────────────────────────────────────────────────────────────────────────


def test_agreement_is_weighted_and_an_even_label_counts_half() -> None:
    labels = [ai_labels.of_orders(p, 1 - p, thought=False) for p in (0.9, 0.2, 0.5, 0.7)]
    found = quality([*labels, ai_labels.UNUSABLE], [1.0, 2.0, 3.0, 4.0, 100.0], [0, 1, 2, 3, 4])
    # (1·1 + 2·0 + 3·½ + 4·1) / 10
    assert found.agreement.value == pytest.approx(0.65)
    assert (found.pairs, found.groups, found.unusable) == (4, 4, 1)
    assert found.position_bias == pytest.approx(0.0) and found.contradictory == 0.0


def test_the_surprise_at_people_worked_out_by_hand() -> None:
    # −¼ log(0.8 · 0.5 · 0.5 · 0.2) = ¼ · 3.2188758
    found = quality([ai_labels.of_orders(p, 1 - p, thought=False) for p in (0.8, 0.5, 0.5, 0.2)])
    assert found.nll == pytest.approx(0.8047190, abs=1e-6)
    half = quality([ai_labels.of_orders(1.0, 1.0, thought=False)] * 7)
    assert half.nll == pytest.approx(math.log(2))
    # A certain judge that is wrong is surprised, and not without end.
    wrong = quality([Label(0.0, None, None, None), Label(1.0, None, None, None)])
    assert wrong.nll is not None and 5.0 < wrong.nll < 10.0


def test_the_interval_resamples_groups() -> None:
    labels = [Label(p, None, None, None) for p in (0.9, 0.1) for _ in range(32)]
    own = quality(labels).agreement
    together = quality(labels, groups=[at // 8 for at in range(64)]).agreement
    assert own.value == together.value == 0.5
    assert own.low is not None and own.high is not None and together.low is not None and together.high is not None
    assert 0.36 < own.low < 0.42 and 0.58 < own.high < 0.64  # ½ ± 1.96/√(4·64)
    assert together.high - together.low > 2 * (own.high - own.low)  # eight groups instead of 64
    assert quality(labels, groups=[at // 8 for at in range(64)]).groups == 8


def test_a_judge_that_always_says_a_agrees_by_half_and_is_refused() -> None:
    found = quality([ai_labels.of_orders(1.0, 1.0, thought=False)] * 40)
    assert found.agreement.value == 0.5 and found.position_bias == 0.5 and found.contradictory == 1.0
    assert found.proven is False
    with pytest.raises(UserError) as caught:
        ai_labels.check("some-judge", found, "rl_cai.judge")
    text = str(caught.value)
    assert text.startswith("params.yaml: rl_cai.judge: some-judge agrees with people on 0.50 [")
    assert "of 40 pairs, position bias +0.50, the two orders contradict each other in 100%" in text
    assert "no better than chance" in text and "fix: name a better judge" in text


def test_a_judge_that_is_worse_than_chance_is_refused() -> None:
    found = quality([Label(0.2, None, None, None)] * 40)
    assert found.agreement.value == 0.0
    with pytest.raises(UserError, match=r"0\.00 \[0\.00, 0\.\d\d\] of 40 pairs"):
        ai_labels.check("a judge", found, "x")


def test_a_judge_that_knows_passes_and_says_how_sure_it_is() -> None:
    labels = [ai_labels.of_orders(0.9, 0.2, thought=False)] * 36 + [ai_labels.of_orders(0.3, 0.5, thought=False)] * 4
    found = quality(labels)
    assert found.agreement.value == 0.9 and found.agreement.low is not None and found.agreement.low > 0.7
    assert found.proven is True
    ai_labels.check("a judge", found, "x")
    assert ai_labels.sentence("a judge", found).startswith(
        "a judge agrees with people on 0.90 [0.80, 0.97] of 40 pairs"
    )
    told = found.told()
    assert told["proven"] is True and told["agreement"]["value"] == 0.9
    assert told["ece"] is not None and 0.0 <= told["ece"]["value"] <= 0.2  # 0.85 or 0.6 sure, and right in 0.9 of all


def test_a_judge_that_counts_words_is_refused() -> None:
    """It likes what is shorter, as people mostly do; where both are about as long it knows nothing."""
    shorter, as_long = ("no", "well then yes"), ("well then yes and so", "no and then do it")
    labels = [Label(0.8, None, None, None)] * 60 + [Label(p, None, None, None) for p in (0.8, 0.2)] * 20
    found = quality(labels, pairs=[shorter] * 60 + [as_long] * 40)
    assert found.agreement.value == 0.8 and found.agreement.low is not None and found.agreement.low > 0.7
    assert (found.same_length.value, found.same_length_pairs) == (0.5, 40)
    assert found.counts_words and found.proven is False and found.told()["same_length"]["value"] == 0.5
    with pytest.raises(UserError) as caught:
        ai_labels.check("some-judge", found, "rl_cai.judge")
    assert "0.50 [0." in str(caught.value) and "of the 40 whose answers are about as long" in str(caught.value)
    assert "its labels would teach length" in str(caught.value)


@pytest.mark.parametrize(("words", "close"), [((4, 5), 1), ((5, 4), 1), ((4, 6), 0), ((0, 0), 1), ((0, 1), 0)])
def test_what_is_about_as_long(words: tuple[int, int], close: int) -> None:
    pair = (" ".join(["w"] * words[0]), " ".join(["w"] * words[1]))
    assert quality([Label(0.8, None, None, None)], pairs=[pair]).same_length_pairs == close


def test_what_cannot_be_told_at_equal_length_refuses_nobody() -> None:
    found = quality([Label(0.8, None, None, None)] * 40, pairs=[("a b", "c d")] * 2 + [("a", "b c d")] * 38)
    assert found.same_length == (1.0, None, None) and not found.counts_words and found.proven is True
    ai_labels.check("a judge", found, "x")
    assert "1.00 of the 2 whose answers are about as long" in ai_labels.sentence("a judge", found)


def test_a_judge_that_reads_one_answer_at_a_time_has_no_bias_for_a_place() -> None:
    found = quality([ai_labels.of_rewards(1.0, 0.0)] * 20)
    assert found.position_bias is None and found.contradictory is None and found.ece is None
    assert found.told()["ece"] is None and "position bias" not in ai_labels.sentence("r", found)


def test_no_usable_label_is_refused() -> None:
    found = quality([ai_labels.UNUSABLE] * 9)
    assert (found.pairs, found.unusable, found.agreement.value, found.nll, found.proven) == (0, 9, None, None, None)
    with pytest.raises(UserError, match="a judge gave no usable label on 9 pairs that people have compared"):
        ai_labels.check("a judge", found, "x")


def test_unusable_labels_are_told() -> None:
    found = quality([Label(0.8, None, None, None)] * 20 + [ai_labels.UNUSABLE] * 3)
    assert ai_labels.sentence("r", found).endswith("of 20 pairs, 3 unusable")


def test_too_few_groups_to_tell_are_refused() -> None:
    found = quality([Label(0.2, None, None, None)] * 6, groups=[0, 0, 0, 1, 1, 1])
    assert found.agreement == (0.0, None, None) and found.proven is None
    with pytest.raises(UserError, match="from 2 groups of prompts nobody can tell whether that is better than chance"):
        ai_labels.check("a judge", found, "x")
    assert ai_labels.sentence("a judge", found) == "a judge agrees with people on 0.00 of 6 pairs"
