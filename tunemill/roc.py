"""How well a score tells one kind of rows from another: the area under the ROC curve, also among comparable pairs only.

The area is the probability that a positive row scores above a negative one, ties half (Hanley and McNeil 1982): a mean over pairs.
So a pair may be left out (two answers of very different length tell how well length is read), and a bootstrap of clusters
weighs a pair by how often its two clusters were drawn (Field and Welsh 2007), and a pair within a cluster by how often that was.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from tunemill import statistics

if TYPE_CHECKING:
    import numpy as np


def auc(
    scores: np.ndarray,
    positive: np.ndarray,
    weights: np.ndarray | None = None,
    comparable: np.ndarray | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> np.ndarray:
    """The area under the ROC curve.

    Args:
        scores: (n,).
        positive: (n,), True where the score should be high.
        weights: (R, n), how often each row counts; one area for each of the R. None: once.
        comparable: (P, N), positives by negatives, True where a pair counts. None: all do.
        clusters: n labels of what `weights` drew, the rows of one all with one weight.

    Returns:
        (R,), from 0 to 1; nan where no pair counts.
    """
    import numpy as np

    weights = np.ones((1, len(scores))) if weights is None else weights
    high, low = scores[positive], scores[~positive]
    wins = (high[:, None] > low[None, :]) + 0.5 * (high[:, None] == low[None, :])  # (P, N)
    counts = np.ones_like(wins) if comparable is None else comparable.astype(float)
    of_high, of_low = weights[:, positive], weights[:, ~positive]

    # A cluster that was drawn twice is two: its own pairs are there twice, not four times.
    of_cluster = np.nonzero(np.zeros_like(wins) if clusters is None else same(clusters, positive))
    drawn_again = of_high[:, of_cluster[0]] - of_high[:, of_cluster[0]] ** 2  # (R, pairs within a cluster)

    def total(table: np.ndarray) -> np.ndarray:
        found: np.ndarray = ((of_high @ table) * of_low).sum(axis=1) + drawn_again @ table[of_cluster]
        return found

    won, pairs = total(wins * counts), total(counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = won / pairs
    return found


def drawn(groups: Sequence[Hashable], resamples: int, seed: int) -> np.ndarray:
    """How often each row is in each bootstrap resample of clusters.

    Args:
        groups: n labels of clusters.
        resamples: how many, R.
        seed: of the draws, those of `statistics.resampled_sums`.

    Returns:
        (R, n).
    """
    import numpy as np

    numbers: dict[Hashable, int] = {}
    index = [numbers.setdefault(group, len(numbers)) for group in groups]
    found: np.ndarray = statistics.resampled_sums(np.eye(len(numbers)), resamples, seed)[:, index]
    return found


def close(values: np.ndarray, positive: np.ndarray, most: float) -> np.ndarray:
    """Pairs whose values differ by `most` at most: (P, N) for `auc`."""
    import numpy as np

    found: np.ndarray = np.abs(values[positive][:, None] - values[~positive][None, :]) <= most
    return found


def same(labels: Sequence[Hashable], positive: np.ndarray) -> np.ndarray:
    """Pairs with the same label: (P, N) for `auc`."""
    import numpy as np

    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(label, len(numbers)) for label in labels])
    found: np.ndarray = index[positive][:, None] == index[~positive][None, :]
    return found


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one of the two does not vary."""
    import numpy as np

    centred = []
    for values in (one, other):
        _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(counts) < 2:
            return None
        ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[index]
        centred.append(ranks - ranks.mean())
    x, y = centred
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))
