"""Ridge regression in closed form (Hoerl and Kennard 1970), its penalty chosen by grouped cross-validation.

A few hundred rows of a few hundred features need one small system of equations: no library is imported for it. Of more features than
rows (words) it is the dual one, as large as there are rows: the weights are a combination of the rows (Saunders et al. 1998).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

Features = Any
"""(n, d), an array or a sparse matrix of scipy: what a linear model reads of n rows."""


class Ridge(NamedTuple):
    """A linear model."""

    weight: np.ndarray
    """(d,)."""
    bias: float

    def predict(self, features: Features) -> np.ndarray:
        """Predictions (n,) for features (n, d)."""
        found: np.ndarray = features @ self.weight + self.bias
        return found


class Chosen(NamedTuple):
    """A penalty, and what it predicts for rows that the prediction was not fitted on."""

    alpha: float
    held_out: np.ndarray
    """(n,): each row's prediction by the model that was fitted without its group."""


def fit(features: Features, targets: np.ndarray, alpha: float) -> Ridge:
    """Minimise the sum of squared errors plus `alpha` times the squared length of the weights; the intercept is free.

    Args:
        features: (n, d).
        targets: (n,).
        alpha: the penalty, above 0.
    """
    import numpy as np

    rows, width = features.shape
    middle, level = np.asarray(features.mean(axis=0)).ravel(), float(targets.mean())
    if rows < width:
        # The combination of the rows sums to zero, as the centred targets do, so that the rows need no centring in it.
        products = inner(features)
        products = products - products.mean(axis=0) - products.mean(axis=1)[:, None] + products.mean()
        weight = np.asarray(features.T @ np.linalg.solve(products + alpha * np.eye(rows), targets - level))
    else:
        centred = dense(features) - middle
        weight = np.linalg.solve(centred.T @ centred + alpha * np.eye(width), centred.T @ (targets - level))
    return Ridge(weight, level - float(middle @ weight))


def choose(
    features: Features,
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
    import numpy as np

    features, fold = rotated(features), dealt(groups, folds, seed)
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


def dealt(groups: Sequence[Hashable], folds: int, seed: int) -> np.ndarray:
    """The fold of each row, 0 to folds − 1: groups are dealt whole and at random, (n,).

    Args:
        groups: n labels.
        folds: parts.
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
    number = {group: at % folds for at, group in enumerate(order)}
    return np.array([number[group] for group in groups])


def rotated(features: Features) -> np.ndarray:
    """The rows in as few dimensions as there are rows, (n, n) at most, every inner product as it was.

    A penalised linear model predicts the same of them, since the penalty knows no directions: what is to be fitted many times is
    fitted on these.
    """
    import numpy as np

    rows, width = features.shape
    if rows >= width:
        return dense(features)
    values, directions = np.linalg.eigh(inner(features))
    return np.asarray(directions * np.sqrt(np.clip(values, 0.0, None)))


def dense(features: Features) -> np.ndarray:
    """Features as an array."""
    import numpy as np

    return np.asarray(features.toarray() if hasattr(features, "toarray") else features)


def inner(features: Features) -> np.ndarray:
    """Inner products of the rows, (n, n)."""
    return dense(features @ features.T)
