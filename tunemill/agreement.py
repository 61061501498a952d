"""How far people agree: Krippendorff's alpha of scores, Kendall's W of rankings. Pure: labels in, numbers out.

Both are 1 where all say the same. Alpha is 0 where they agree as often as chance would have them, and negative where they agree
less; W is 0 where the mean ranks are all the same, and 1/m on average where m people rank at random. An undefined value is None:
one person alone agrees with nobody.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from tunemill.preferences import Ranking

Scale = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(units: Sequence[Sequence[float | None]], scale: Scale) -> float | None:
    """Krippendorff's alpha (2011, "Computing alpha-reliability", section C): any number of people, values may be missing.

    Args:
        units: for each thing that was judged, what people said of it; None where one said nothing. Who said what does not count.
        scale: what a disagreement weighs: `nominal`, 1 between any two values; `interval`, the square of how far they are apart;
            `ordinal`, the square of how many values that were given lie between.

    Returns:
        Alpha; None where no unit has two values, or all values are the same, so that chance could not disagree.
    """
    paired = [[each for each in unit if each is not None] for unit in units]
    paired = [unit for unit in paired if len(unit) > 1]
    given = Counter(each for unit in paired for each in unit)
    total = given.total()
    if len(given) < 2:
        return None
    gap = _gaps(given, scale)
    observed = math.fsum(
        count * other * gap[a, b] / (len(unit) - 1)
        for unit in paired
        for counts in [Counter(unit)]
        for a, count in counts.items()
        for b, other in counts.items()
    )
    expected = math.fsum(given[a] * given[b] * gap[a, b] for a in given for b in given) / (total - 1)
    return 1.0 - observed / expected


def _gaps(given: Mapping[float, int], scale: Scale) -> dict[tuple[float, float], float]:
    """What a disagreement between two values weighs."""
    order = sorted(given)
    upto = dict(
        zip(order, accumulate(given[each] for each in order), strict=True)
    )  # values given up to and including this

    def gap(a: float, b: float) -> float:
        low, high = min(a, b), max(a, b)
        if a == b:
            return 0.0
        if scale == "nominal":
            return 1.0
        if scale == "interval":
            return (high - low) ** 2
        return (upto[high] - upto[low] + (given[low] - given[high]) / 2.0) ** 2

    return {(a, b): gap(a, b) for a in order for b in order}


def kendall_w(rankings: Sequence[Sequence[float]]) -> float | None:
    """Kendall's coefficient of concordance, with his correction for ties (Kendall and Gibbons 1990, chapter 6).

    Args:
        rankings: for each person a rank or score of each of the same n things; equal ones are ties.

    Returns:
        W; None of fewer than two people or two things, or where everybody ties everything.

    Raises:
        ValueError: people ranked different numbers of things.
    """
    if len({len(each) for each in rankings}) > 1:
        raise ValueError(f"rankings of {sorted({len(each) for each in rankings})} things")
    from scipy.stats import rankdata

    people, things = len(rankings), len(rankings[0]) if rankings else 0
    if people < 2 or things < 2:
        return None
    ranks = [rankdata(each).tolist() for each in rankings]
    sums = [math.fsum(own[thing] for own in ranks) for thing in range(things)]
    spread = math.fsum((each - people * (things + 1) / 2.0) ** 2 for each in sums)
    ties = sum(count**3 - count for each in rankings for count in Counter(each).values())
    most = people**2 * (things**3 - things) - people * ties
    return 12.0 * spread / most if most else None


class Agreement(NamedTuple):
    """How far those who ranked the same answers agree."""

    labelers: int
    """People who ranked anything at all; a model is none."""
    prompts: int
    """Prompts with two answers or more that several people ranked: the following is of these."""
    kendall_w: float | None
    """Mean over the prompts of Kendall's W; None where no prompt has one."""
    alpha: float | None
    """Krippendorff's alpha, ordinal, of the ranks; a unit is an answer."""


def among(rankings: Sequence[Ranking]) -> Agreement:
    """Agreement of people on the order of answers. What models ranked is left out.

    What one of them marked as nonsense has no rank to agree on, so each prompt is left with the answers that everybody ranked,
    and these are ranked anew (ties get their mean rank): how many answers others took out moves nobody's ranks.

    Args:
        rankings: of any number of labelers and prompts. The same answers in another order are the same; of one person's rankings of
            the same answers the last one counts.
    """
    from scipy.stats import rankdata

    of_people = [each for each in rankings if each.ranked_by == "person"]
    grouped: dict[tuple[str, frozenset[str]], dict[str, Mapping[str, float | None]]] = {}
    for each in of_people:
        own = dict(zip(each.completions, each.ranks, strict=True))
        grouped.setdefault((each.prompt, frozenset(own)), {})[each.labeler] = own
    units: list[list[float]] = []
    concordances: list[float | None] = []
    for people in grouped.values():
        # In the order of the first one's answers: a set has none that is the same twice.
        first = next(iter(people.values()))
        answers = [text for text in first if all(own[text] is not None for own in people.values())]
        if len(people) < 2 or len(answers) < 2:
            continue
        ranks = [rankdata([own[text] for text in answers]).tolist() for own in people.values()]
        units += [list(unit) for unit in zip(*ranks, strict=True)]
        concordances.append(kendall_w(ranks))
    defined = [each for each in concordances if each is not None]
    return Agreement(
        labelers=len({each.labeler for each in of_people}),
        prompts=len(concordances),
        kendall_w=math.fsum(defined) / len(defined) if defined else None,
        alpha=krippendorff_alpha(units, "ordinal"),
    )


def told(found: Agreement) -> str:
    """Agreement in words."""
    if not found.labelers:
        return "no person has ranked: no agreement can be measured"
    if found.labelers < 2:
        return "one labeler only: no agreement can be measured"
    if not found.prompts:
        return "no prompt was ranked by several people: no agreement can be measured"

    def shown(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.2f}"

    return (
        f"{found.prompts} prompts were ranked by several people: Kendall's W {shown(found.kendall_w)} on average, "
        f"Krippendorff's alpha {shown(found.alpha)} (ordinal); 1 is full agreement"
    )
