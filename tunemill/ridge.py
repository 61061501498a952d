"""Ridge regression in closed form (Hoerl and Kennard 1970), its penalty chosen by grouped cross-validation.

A few hundred rows of a few hundred features need one small system of equations: no library is imported for it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Ridge(NamedTuple):
    """A linear model."""

    weight: np.ndarray
    """(d,)."""
    bias: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Predictions (n,) for features (n, d)."""
        found: np.ndarray = features @ self.weight + self.bias
        return found


class Chosen(NamedTuple):
    """A penalty, and what it predicts for rows that the prediction was not fitted on."""

    alpha: float
    held_out: np.ndarray
    """(n,): each row's prediction by the model that was fitted without its group."""


def fit(features: np.ndarray, targets: np.ndarray, alpha: float) -> Ridge:
    """Minimise the sum of squared errors plus `alpha` times the squared length of the weights; the intercept is free.

    Args:
        features: (n, d).
        targets: (n,).
        alpha: the penalty, above 0.
    """
    import numpy as np

    middle, level = features.mean(axis=0), float(targets.mean())
    centred = features - middle
    penalised = centred.T @ centred + alpha * np.eye(features.shape[1])
    weight = np.linalg.solve(penalised, centred.T @ (targets - level))
    return Ridge(weight, level - float(middle @ weight))


def choose(
    features: np.ndarray,
    targets: np.ndarray,
    groups: Sequence[Hashable],
    alphas: Sequence[float],
    folds: int,
    seed: int,
) -> Chosen:
    """The penalty with the least squared error on groups that were left out.

    Args:
        features: (n, d).
        targets: (n,).
        groups: n labels; rows of one group are left out together.
        alphas: penalties to try; of equals the largest is taken.
        folds: parts that the groups are dealt into at random.
        seed: of the deal, which depends on the labels and not on the order of rows.

    Raises:
        ValueError: there are fewer groups than folds.
    """
    import random

    import numpy as np

    order = sorted(set(groups), key=str)
    if len(order) < folds:
        raise ValueError(f"{len(order)} groups cannot be dealt into {folds} folds")
    random.Random(seed).shuffle(order)
    dealt = {group: number % folds for number, group in enumerate(order)}
    fold = np.array([dealt[group] for group in groups])
    best: tuple[float, Chosen] | None = None
    for alpha in sorted(alphas, reverse=True):
        held_out = np.zeros(len(targets))
        for number in range(folds):
            left = fold == number
            held_out[left] = fit(features[~left], targets[~left], alpha).predict(features[left])
        error = float(((held_out - targets) ** 2).mean())
        if best is None or error < best[0]:
            best = (error, Chosen(alpha, held_out))
    assert best is not None
    return best[1]
