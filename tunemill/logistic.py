"""Logistic regression with a quadratic penalty (le Cessie and van Houwelingen 1992), by Newton's method.

For a few hundred rows. Of more features than rows (words) it is fitted in the rows' own dimensions, which changes nothing
(`ridge.rotated`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tunemill import ridge
from tunemill.ridge import Features

if TYPE_CHECKING:
    import numpy as np


class Logistic(NamedTuple):
    """A linear model of the log-odds."""

    weight: np.ndarray
    """(d,)."""
    bias: float

    def predict(self, features: Features) -> np.ndarray:
        """Probabilities (n,) for features (n, d)."""
        from scipy.special import expit

        found: np.ndarray = expit(features @ self.weight + self.bias)
        return found


def fit(features: Features, positive: np.ndarray, alpha: float) -> Logistic:
    """Minimise the log-loss plus `alpha` / 2 times the squared length of the weights; the intercept is free.

    Where all rows are of one kind the features say nothing, and the odds are those of half a row of the other kind.

    Args:
        features: (n, d).
        positive: (n,), True where the probability should be high.
        alpha: the penalty, above 0.
    """
    import numpy as np
    from scipy.special import expit

    rows, width = features.shape
    if positive.all() or not positive.any():
        return Logistic(np.zeros(width), float(np.log(rows + 0.5) - np.log(0.5)) * (1.0 if positive.all() else -1.0))
    reduced = ridge.rotated(features)
    design = np.concatenate([reduced, np.ones((rows, 1))], axis=1)  # (n, r + 1), the intercept last
    penalty = np.append(np.full(reduced.shape[1], alpha), 0.0)
    sign = np.where(positive, 1.0, -1.0)

    def loss(at: np.ndarray) -> float:
        return float(np.logaddexp(0.0, -sign * (design @ at)).sum() + 0.5 * (penalty * at**2).sum())

    found = np.zeros(design.shape[1])
    current = loss(found)
    for _ in range(100):
        chance = expit(design @ found)
        slopes = design.T @ (chance - positive) + penalty * found
        curvature = design.T @ (design * (chance * (1.0 - chance))[:, None]) + np.diag(penalty + 1e-12)
        step = np.linalg.solve(curvature, slopes)
        while (reached := loss(found - step)) > current and np.abs(step).max() > 1e-12:
            step /= 2.0  # too far: the loss is convex, so some shorter step lowers it
        found -= step
        current = reached
        if np.abs(step).max() < 1e-9:
            break
    weight, bias = found[:-1], float(found[-1])
    if rows < width:
        # The weights of all features: the combination of the rows that gives the same log-odds.
        values, directions = np.linalg.eigh(ridge.inner(features))
        known = values > values.max() * 1e-12
        weight = features.T @ (directions[:, known] @ (weight[known] / np.sqrt(values[known])))
    return Logistic(np.asarray(weight), bias)


def choose(
    features: Features,
    positive: np.ndarray,
    groups: Sequence[Hashable],
    alphas: Sequence[float],
    folds: int,
    seed: int,
) -> ridge.Chosen:
    """The penalty with the least log-loss on groups that were left out; see `ridge.choose`."""
    import numpy as np

    features, fold = ridge.rotated(features), ridge.dealt(groups, folds, seed)
    best: tuple[float, ridge.Chosen] | None = None
    for alpha in sorted(alphas, reverse=True):
        held_out = np.zeros(len(positive))
        for number in range(folds):
            left = fold == number
            held_out[left] = fit(features[~left], positive[~left], alpha).predict(features[left])
        error = log_loss(held_out, positive)
        if best is None or error < best[0]:
            best = (error, ridge.Chosen(alpha, held_out))
    assert best is not None
    return best[1]


def log_loss(chances: np.ndarray, positive: np.ndarray) -> float:
    """Mean surprise in nats; a probability of exactly 0 or 1 is taken as one of 1e-12 or less than 1 by as much."""
    import numpy as np

    right = np.clip(np.where(positive, chances, 1.0 - chances), 1e-12, 1.0)
    return float(-np.log(right).mean())
