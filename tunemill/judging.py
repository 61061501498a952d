"""Judging: which of two answers a model prefers, asked in both orders (Zheng et al. 2023; Bai et al. 2022, section 4.1).

A judge is shown two answers, the first labelled "(A)" and the second "(B)", and what it says is P, the probability of the
label "(A)" against that of "(B)". It is asked twice, each answer standing first once. With P(A | a first) and
P(A | b first), both of the *label* "(A)", that is of whatever stands first:

    p = ½ [P(A | a first) + 1 − P(A | b first)]        how far it prefers the answer a
    position bias = ½ [P(A | a first) + P(A | b first)] − ½      how far it prefers what stands first

A judge that reads nothing and always says "(A)" has p = ½ and a position bias of +½.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator

from tunemill import statistics

LABELS = ("(A)", "(B)")
"""Of what stands first, and of what stands second."""
FIELDS = ("prompt", "first", "second", "criterion")
"""What a template has a place for."""

Outcome = Literal["win", "tie", "loss"]

_PLACE = re.compile(r"\{(" + "|".join(FIELDS) + r")\}")
# Where a label stands in a judge's words. In brackets it is one wherever it is; a bare letter is one only where it cannot be
# the article: with an end or a stop behind it at the beginning, or as the last word of "… is B." or "Answer: B".
_BRACKETED = re.compile(r"\(([AB])\)")
_LEADING = re.compile(r"^[\W_]*([AB])(?:[\W_]*$|[.):,;\]*\n])")
_TRAILING = re.compile(r"(?i:answer|option|choice|summary|response|verdict|is)[\s:=*\"'`]+([AB])[\W_]*$")
# A token that is a label, or the part of one that tells which.
_DECIDING = re.compile(r"^[\W_]*([AB])[\W_]*$")


def checked(template: str) -> str:
    """The template itself.

    Raises:
        ValueError: it has no place for one of the fields.
    """
    if missing := [name for name in FIELDS if f"{{{name}}}" not in template]:
        raise ValueError("a text with " + ", ".join(f"{{{name}}}" for name in missing) + " in it")
    return template


Template = Annotated[str, AfterValidator(checked)]
"""A judge's template in params.yaml."""


def fill(template: str, *, prompt: str, first: str, second: str, criterion: str) -> str:
    """The template with every field in its place; other braces stand for themselves, in the fields too.

    All places are found before any is filled: an answer that contains `{second}` shows those words and nothing else.

    Raises:
        ValueError: the template has no place for one of them.
    """
    fields = {"prompt": prompt, "first": first, "second": second, "criterion": criterion}
    return _PLACE.sub(lambda place: fields[place[1]], checked(template))


def probability(first: float, second: float) -> float | None:
    """P of the label "(A)" against "(B)".

    Args:
        first: log-probability of the label "(A)" as a whole string, in nats.
        second: that of "(B)".

    Returns:
        exp(first) / (exp(first) + exp(second)); None where one is not a number, or both are impossible.
    """
    if math.isnan(first) or math.isnan(second) or first == second == -math.inf:
        return None
    difference = first - second
    # Both ends: exp of a large positive number overflows.
    return 1 / (1 + math.exp(-difference)) if difference >= 0 else math.exp(difference) / (1 + math.exp(difference))


def read(text: str, tokens: Sequence[tuple[str, Sequence[tuple[str, float]]]] = ()) -> float | None:
    """P of the label "(A)" against "(B)" in what a judge has written.

    Args:
        text: its words.
        tokens: the same, token by token: (token, log-probabilities of what might have stood there); empty if unknown.

    Returns:
        Where the token that tells the label is known with its alternatives: the sum of the probabilities of those that say A,
        by that of those that say A or B (an alternative that is not listed counts as nothing). Otherwise 1 or 0.
        None where the text names no label, or both: an unusable answer.
    """
    if (found := _label(text)) is None:
        return None
    # Spaces around the words, and the token that ends them, may stand among the tokens alone.
    place = "".join(token for token, _ in tokens).find(text.strip()) + found.start(1) - len(text) + len(text.lstrip())
    start = 0
    for token, alternatives in tokens:
        if start <= place < start + len(token):
            mass = {"A": 0.0, "B": 0.0}
            for other, logprob in alternatives:
                if told := _DECIDING.match(other):
                    mass[told[1]] += math.exp(min(logprob, 0.0))
            if _DECIDING.match(token) and mass["A"] + mass["B"] > 0:
                return mass["A"] / (mass["A"] + mass["B"])
            break
        start += len(token)
    return 1.0 if found[1] == "A" else 0.0


def _label(text: str) -> re.Match[str] | None:
    """Where the text names its one label; None where it names none or both."""
    bracketed = list(_BRACKETED.finditer(text))
    if bracketed:
        return bracketed[0] if len({each[1] for each in bracketed}) == 1 else None
    return _LEADING.search(text) or _TRAILING.search(text)


class Judgement(NamedTuple):
    """What a judge makes of the answers a and b to one prompt."""

    p: float
    """That a is better, over both orders."""
    position_bias: float | None
    """How far the judge prefers what stands first, −½ to ½; None where it was not asked, since a and b are the same."""
    contradictory: bool
    """Whether the two orders prefer different answers."""
    outcome: Outcome
    """For a; a tie where the orders contradict each other, or p is within the margin."""


IDENTICAL = Judgement(0.5, None, False, "tie")
"""Of two equal answers: nothing to ask."""


def judgement(a_first: float, b_first: float, margin: float) -> Judgement:
    """The two orders as one.

    Args:
        a_first: P of the label "(A)" where a stands first.
        b_first: the same where b stands first.
        margin: p within ½ ± margin is a tie.
    """
    p = 0.5 + 0.5 * (a_first - b_first)  # exactly one half where the orders say the same
    contradictory = (a_first - 0.5) * (0.5 - b_first) < 0
    outcome: Outcome = "tie" if contradictory or abs(p - 0.5) <= margin else "win" if p > 0.5 else "loss"
    return Judgement(p, 0.5 * (a_first + b_first) - 0.5, contradictory, outcome)


class Tally(NamedTuple):
    """Many judgements."""

    n: int
    """Usable ones: both orders answered."""
    wins: int
    ties: int
    losses: int
    identical: int
    """Ties that were not asked about."""
    win_rate: statistics.Interval
    """Of a, ties half."""
    p: float | None
    """Of a win rate of one half."""
    position_bias: statistics.Interval
    contradictory: float | None
    """Share of those asked about in which the orders prefer different answers."""
    clusters: int
    """Independent units that were resampled."""


def tally(
    judgements: Sequence[Judgement], groups: Sequence[Hashable], *, resamples: int, seed: int, level: float = 0.95
) -> Tally:
    """Win rate and position bias, with intervals that resample whole groups.

    Args:
        judgements: the usable ones.
        groups: the group of each.
        resamples: bootstrap resamples.
        seed: of the resamples.
        level: of confidence.
    """
    import numpy as np

    asked = [each for each in judgements if each.position_bias is not None]
    count = {name: sum(each.outcome == name for each in judgements) for name in ("win", "tie", "loss")}
    points = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    table = np.array(
        [[points[each.outcome], 1.0, each.position_bias or 0.0, each.position_bias is not None] for each in judgements],
        dtype=float,
    ).reshape(len(judgements), 4)
    rate, bias = statistics.ratio(0, 1), statistics.ratio(2, 3)
    sums = statistics.cluster_sums(table, groups)
    total = table.sum(axis=0)
    draws = statistics.resampled_sums(sums, resamples, seed) if len(sums) else np.full((1, 4), 0.0)
    value = float(rate(total))
    return Tally(
        len(judgements),
        count["win"],
        count["tie"],
        count["loss"],
        len(judgements) - len(asked),
        statistics.interval(value, rate(draws), len(sums), level, (0.0, 1.0)),
        statistics.compare(value - 0.5, rate(draws) - 0.5, len(sums), level, (-0.5, 0.5)).p,
        statistics.interval(float(bias(total)), bias(draws), len(sums), level, (-0.5, 0.5)),
        sum(each.contradictory for each in asked) / len(asked) if asked else None,
        len(sums),
    )


def agreement(judgements: Sequence[Judgement], differences: Sequence[float | None]) -> tuple[float | None, int]:
    """(share in which the judge prefers the answer that another measure prefers, of how many).

    What the judge prefers over both orders counts, ties for their margin or for orders that contradict each other included:
    its bias for a position is in none of it.

    Args:
        judgements: for a against b.
        differences: the measure's value for a less that for b; None where it has none. Left out are items in which either
            prefers neither.
    """
    pairs = [
        (each.p > 0.5, difference > 0)
        for each, difference in zip(judgements, differences, strict=True)
        if each.p != 0.5 and difference
    ]
    return (sum(one == other for one, other in pairs) / len(pairs) if pairs else None), len(pairs)
