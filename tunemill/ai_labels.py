"""AI feedback: how likely a model finds one of two answers the better one, and how far such labels agree with people's.

A model is shown both answers and asked which is better by a principle (Bai et al. 2022, section 4.1); what counts is the probability P
of the label "(A)", scored as a full string, against that of "(B)". Each pair is asked in both orders:

    p = ½ [P(A | a first) + 1 − P(A | b first)]             how likely a is the better one: a *soft* label
    position bias = ½ [P(A | a first) + P(A | b first)] − ½

With chain of thought the model first thinks aloud and is then asked for the label. It is sure of itself then, whatever it thinks, so
p is clamped to 40-60% (the paper's section 4.1; without thoughts soft labels stay as they are).

Before any label is used, the same judge is asked about pairs that people have compared. A judge whose agreement with them is not shown
to be above chance teaches nothing, and is refused with the figure. So is one that agrees only where one answer is longer: people mostly
find the shorter of two answers less harmful, and a small model that is asked to judge does little more than that.

Deviation from the paper: it asks in one order.

Pure: probabilities in, labels and figures out. `tunemill.feedback` asks.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tunemill import judging, pairwise, records, statistics
from tunemill.errors import UserError
from tunemill.records import Preference

if TYPE_CHECKING:
    import numpy as np

CLAMP = (0.4, 0.6)
"""What labels that follow a chain of thought are clamped to."""
SAME_LENGTH = 1.25
"""Answers are about as long where one has at most so many times the words of the other (as `harm.same_length`)."""
SURE = 1e-6
"""Probabilities are kept so far from 0 and 1 where their logarithm is taken."""


class Label(NamedTuple):
    """What a judge makes of two answers, a and b."""

    p: float | None
    """That a is the better one, over both orders; None where an answer of the judge is unusable."""
    a_first: float | None
    """P of the label "(A)" where a stands first; None of a judge that reads the answers one by one."""
    b_first: float | None
    """The same where b stands first."""
    position_bias: float | None

    @property
    def contradictory(self) -> bool:
        """Whether the two orders prefer different answers."""
        return self.a_first is not None and self.b_first is not None and (self.a_first - 0.5) * (0.5 - self.b_first) < 0


UNUSABLE = Label(None, None, None, None)


def of_orders(a_first: float | None, b_first: float | None, *, thought: bool) -> Label:
    """The label of two orders.

    Args:
        a_first: P of the label "(A)" where a stands first; None: unusable.
        b_first: the same where b stands first.
        thought: whether the judge has thought aloud: p is clamped then.
    """
    if a_first is None or b_first is None:
        return Label(None, a_first, b_first, None)
    found = judging.judgement(a_first, b_first, 0.0)
    return Label(clamped(found.p) if thought else found.p, a_first, b_first, found.position_bias)


def of_rewards(a: float | None, b: float | None) -> Label:
    """The label of a reward model, by Bradley and Terry's model: σ(r(a) − r(b)). It reads one answer at a time, in no order."""
    if a is None or b is None:
        return UNUSABLE
    return Label(judging.probability(a - b, 0.0), None, None, None)


def clamped(p: float) -> float:
    """p, within `CLAMP`."""
    return min(max(p, CLAMP[0]), CLAMP[1])


def preference(prompt: str, a: str, b: str, p: float, group: str, weight: float) -> Preference | None:
    """A labelled pair as a record, the preferred answer first; None where neither is preferred.

    Args:
        prompt: what was asked.
        a: one answer.
        b: the other one.
        p: that a is the better one.
        group: cluster of near-duplicate prompts.
        weight: of the pair among all.
    """
    if p == 0.5:
        return None
    chosen, rejected = (a, b) if p > 0.5 else (b, a)
    probability = max(p, 1.0 - p)
    return Preference(
        records.row_id(prompt, chosen, rejected), prompt, chosen, rejected, probability, weight, group, "ai"
    )


# ── how good the labels are ───────────────────────────────────────────────────────────────────────────────────────


class Quality(NamedTuple):
    """A judge beside people, on pairs that they have compared."""

    pairs: int
    """That the judge had a usable label for."""
    groups: int
    """Independent units: groups of near-duplicate prompts."""
    unusable: int
    """Further pairs, without a usable label."""
    agreement: statistics.Interval
    """Share of the pairs (every prompt weighs the same) in which the judge prefers what people prefer; an even label counts half."""
    nll: float | None
    """Mean of −log p of what people prefer, nats; log 2 = 0.69 is that of one who always says one half."""
    ece: statistics.Interval | None
    """Expected calibration error of max(p, 1 − p); None where every pair is told right, or wrong."""
    position_bias: float | None
    """Mean over pairs; None of a judge that is asked in no order."""
    contradictory: float | None
    """Share of pairs whose two orders prefer different answers."""
    same_length: statistics.Interval
    """The agreement where both answers are about as long (`SAME_LENGTH`): what is left of a judge that counts words."""
    same_length_pairs: int
    """Such pairs."""

    @property
    def counts_words(self) -> bool:
        """Whether the agreement is above chance, but not where both answers are about as long, as far as that can be told."""
        above = self.agreement.low is not None and self.agreement.low > 0.5
        return above and self.same_length.low is not None and self.same_length.low <= 0.5

    @property
    def proven(self) -> bool | None:
        """Whether the agreement is above chance, at equal length too; None where that cannot be told (too few groups)."""
        return None if self.agreement.low is None else self.agreement.low > 0.5 and not self.counts_words

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            **self._asdict(),
            "agreement": self.agreement._asdict(),
            "ece": None if self.ece is None else self.ece._asdict(),
            "same_length": self.same_length._asdict(),
            "proven": self.proven,
        }


def quality(
    labels: Sequence[Label],
    pairs: Sequence[tuple[str, str]],
    weights: Sequence[float],
    groups: Sequence[Hashable],
    resamples: int,
    seed: int,
) -> Quality:
    """How far a judge agrees with people.

    Args:
        labels: of pairs (a, b) of which people prefer a.
        pairs: the answers a and b.
        weights: of the pairs.
        groups: what is resampled for the intervals.
        resamples: how many.
        seed: of the resamples.
    """
    import numpy as np

    usable = [at for at, each in enumerate(labels) if each.p is not None]
    p = np.array([labels[at].p for at in usable], dtype=float)
    weight = np.array([weights[at] for at in usable], dtype=float)
    own = [groups[at] for at in usable]
    found, _ = pairwise.accuracies({"judge": p - 0.5}, "judge", weight, own, resamples, seed)
    close = [at for at, pair in enumerate(usable) if _about_as_long(*pairs[pair])]
    near, _ = pairwise.accuracies(
        {"judge": p[close] - 0.5}, "judge", weight[close], [own[at] for at in close], resamples, seed
    )
    biases = [each for at in usable if (each := labels[at].position_bias) is not None]
    calibrated = pairwise.calibrated(log_odds(p), own, resamples, seed) if len(usable) else None
    return Quality(
        len(usable),
        len(set(own)),
        len(labels) - len(usable),
        found["judge"],
        calibrated.nll if calibrated else None,
        calibrated.ece if calibrated else None,
        math.fsum(biases) / len(biases) if biases else None,
        sum(labels[at].contradictory for at in usable) / len(usable) if biases else None,
        near["judge"],
        len(close),
    )


def _about_as_long(a: str, b: str) -> bool:
    short, long = sorted((len(a.split()), len(b.split())))
    return long <= SAME_LENGTH * short


def log_odds(p: np.ndarray) -> np.ndarray:
    """log(p / (1 − p)), finite."""
    import numpy as np

    kept = p.clip(SURE, 1.0 - SURE)
    found: np.ndarray = np.log(kept) - np.log1p(-kept)
    return found


def sentence(who: str, found: Quality) -> str:
    """The figures in words."""
    value = found.agreement.value
    if value is None:
        if not found.unusable:
            return f"people have compared no pair, so nobody knows how good the labels of {who} are"
        return f"{who} gave no usable label on {found.unusable} pairs that people have compared"
    between = _between(found.agreement)
    near = ""
    if found.same_length.value is not None:
        near = (
            f", {found.same_length.value:.2f}{_between(found.same_length)} of the {found.same_length_pairs} "
            "whose answers are about as long"
        )
    bias = "" if found.position_bias is None else f", position bias {found.position_bias:+.2f}"
    contradict = (
        "" if found.contradictory is None else f", the two orders contradict each other in {found.contradictory:.0%}"
    )
    unusable = f", {found.unusable} unusable" if found.unusable else ""
    return f"{who} agrees with people on {value:.2f}{between} of {found.pairs} pairs{near}{bias}{contradict}{unusable}"


def _between(found: statistics.Interval) -> str:
    return "" if found.low is None or found.high is None else f" [{found.low:.2f}, {found.high:.2f}]"


def check(who: str, found: Quality, where: str) -> None:
    """Refuse a judge that is not shown to be better than chance.

    Args:
        who: the judge, for the message.
        found: of `quality`.
        where: the key in params.yaml that names it.

    Raises:
        UserError: it agrees with people no more often than a coin would, as far as the interval tells, or does so only where one
            answer is longer; there are too few groups of prompts for an interval; or it has no usable label.
    """
    if found.proven:
        return
    why = ""
    if found.counts_words:
        why = ": no better than chance where length tells nothing, so its labels would teach length"
    elif found.agreement.low is not None:
        why = ": no better than chance, so its labels would teach nothing"
    elif found.pairs:
        why = f": from {found.groups} groups of prompts nobody can tell whether that is better than chance"
    raise UserError(
        sentence(who, found) + why,
        where=f"params.yaml: {where}",
        expected="a judge whose agreement with people is above one half, its whole 95% interval, also where both answers are "
        "about as long",
        fix="name a better judge, like a larger model (folder, hub or endpoint) or a reward model with more pairs to learn from; "
        "or set rl_cai.unproven: use, to see the stages at work",
    )
