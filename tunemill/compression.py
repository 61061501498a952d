"""What compression gives and costs: the Pareto frontier of quality against a cost, and which variant to take. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from tunemill.statistics import Comparison, Interval


class Measured(NamedTuple):
    """What decides about a variant."""

    quality: float
    """In points, more is better."""
    bytes: int
    """Of its weights on disk."""
    speed: float
    """Tokens per second written for one prompt, as a share of the parent's."""


class Compared(NamedTuple):
    """A variant's quality beside its parent's, on the same rows."""

    value: Interval
    """Points."""
    difference: Comparison
    """Points more than the parent."""
    share: Interval
    """Of the parent's quality."""


def frontier(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The Pareto frontier: whom no other surpasses in one without being worse in the other.

    Args:
        points: name → (cost, quality); less cost and more quality are better.

    Returns:
        Names, by cost. Of two that are the same in both, both.
    """

    def surpassed(name: str) -> bool:
        cost, quality = points[name]
        return any(
            other_cost <= cost and other >= quality and (other_cost < cost or other > quality)
            for other_cost, other in points.values()
        )

    return sorted((name for name in points if not surpassed(name)), key=lambda name: (points[name], name))


def advise(measured: Mapping[str, Measured], tolerance: float, slowest: float) -> str:
    """The smallest variant that is within `tolerance` of the best quality, and not slower than `slowest`.

    Args:
        measured: name → what decides, the parent among them.
        tolerance: share of the best quality that may be lost, 0.01 for a hundredth.
        slowest: least speed, as a share of the parent's.

    Returns:
        Its name; where none is fast enough, the smallest within the tolerance. Of equals the first by name.
    """
    best = max(each.quality for each in measured.values())
    within = {name: each for name, each in measured.items() if each.quality >= (1 - tolerance) * best}
    fast = {name: each for name, each in within.items() if each.speed >= slowest}
    return min(fast or within, key=lambda name: (within[name].bytes, name))


def compared(
    ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str], resamples: int, seed: int, level: float
) -> Compared:
    """Means of a score over rows, paired, with intervals of a bootstrap of groups.

    Args:
        ours: the variant's score of each row.
        theirs: the parent's.
        groups: what is resampled whole.
        resamples: how many.
        seed: of the draws.
        level: of confidence.
    """
    import numpy as np

    from tunemill import statistics

    table = np.column_stack([ours, theirs, np.ones(len(ours))])
    sums = statistics.cluster_sums(table, groups)
    total, draws = table.sum(axis=0), statistics.resampled_sums(sums, resamples, seed)
    units = len(sums)

    def share(of: np.ndarray) -> np.ndarray:
        whole = of[..., 1]
        found: np.ndarray = np.divide(of[..., 0], whole, out=np.full(np.shape(whole), np.nan), where=whole != 0)
        return found

    return Compared(
        statistics.interval(float(total[0] / total[2]), draws[:, 0] / draws[:, 2], units, level),
        statistics.compare(
            float((total[0] - total[1]) / total[2]), (draws[:, 0] - draws[:, 1]) / draws[:, 2], units, level
        ),
        statistics.interval(float(share(total)), share(draws), units, level),
    )


def perplexities(
    ours: Sequence[tuple[float, int]],
    theirs: Sequence[tuple[float, int]],
    groups: Sequence[str],
    resamples: int,
    seed: int,
    level: float,
) -> tuple[Interval, Interval]:
    """Perplexity exp(-Σ log p / Σ tokens) of the rows, and its ratio to the parent's, with intervals.

    Args:
        ours: (log-probability, tokens) of each row.
        theirs: the parent's.
        groups: what is resampled whole.
        resamples: how many.
        seed: of the draws.
        level: of confidence.
    """
    import numpy as np

    from tunemill import statistics

    table = np.column_stack([np.array(ours, dtype=float), np.array(theirs, dtype=float)])  # (n, 4)
    sums = statistics.cluster_sums(table, groups)
    total, draws = table.sum(axis=0), statistics.resampled_sums(sums, resamples, seed)

    def own(of: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.exp(-of[..., 0] / of[..., 1])
        return found

    def ratio(of: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.exp(of[..., 2] / of[..., 3] - of[..., 0] / of[..., 1])
        return found

    return (
        statistics.interval(float(own(total)), own(draws), len(sums), level),
        statistics.interval(float(ratio(total)), ratio(draws), len(sums), level),
    )
