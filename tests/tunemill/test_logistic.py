"""Logistic regression against scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold, cross_val_predict

from tunemill import logistic

RNG = np.random.default_rng(0)
GROUPS = [f"g{n % 15}" for n in range(60)]


def data(width: int) -> tuple[np.ndarray, np.ndarray]:
    features = RNG.normal(size=(60, width)) + 1.0
    return features, features[:, 0] + RNG.normal(size=60) > 1.0


@pytest.mark.parametrize("width", [5, 60, 200])
@pytest.mark.parametrize("alpha", [0.05, 1.0, 50.0])
def test_it_is_that_of_scikit_learn(width: int, alpha: float) -> None:
    features, positive = data(width)
    oracle = LogisticRegression(C=1 / alpha, tol=1e-12, solver="newton-cholesky").fit(features, positive)
    found = logistic.fit(features, positive, alpha)
    assert found.weight == pytest.approx(oracle.coef_[0], abs=1e-5)
    assert found.bias == pytest.approx(oracle.intercept_[0], abs=1e-5)
    assert found.predict(features) == pytest.approx(oracle.predict_proba(features)[:, 1], abs=1e-5)


def test_sparse_features_are_the_same_as_dense_ones() -> None:
    features, positive = data(90)
    features = np.where(np.abs(features) > 1.5, features, 0.0)
    one = logistic.fit(features, positive, 0.3)
    other = logistic.fit(scipy.sparse.csr_matrix(features), positive, 0.3)
    assert other.weight == pytest.approx(one.weight, abs=1e-8) and other.bias == pytest.approx(one.bias, abs=1e-8)


def test_rows_of_one_kind_have_the_odds_of_half_a_row_of_the_other() -> None:
    features, _ = data(4)
    for kind in (True, False):
        found = logistic.fit(features, np.full(60, kind), 1.0).predict(features)
        assert found == pytest.approx(np.full(60, 60.5 / 61 if kind else 0.5 / 61))


def test_what_parts_the_kinds_wholly_ends() -> None:
    features = np.array([[float(n > 5)] for n in range(12)])
    found = logistic.fit(features, features[:, 0] > 0.5, 1e-9)
    assert all(math.isfinite(each) for each in (*found.weight, found.bias))
    assert ((found.predict(features) > 0.5) == (features[:, 0] > 0.5)).all()


def test_the_penalty_with_the_least_log_loss_on_what_was_left_out_is_chosen() -> None:
    alphas, chosen = [1e-3, 3.0, 1e3], set()
    for strength in (3.0, 1.0, 0.0):
        rng = np.random.default_rng(4)
        features = rng.normal(size=(60, 6))
        positive = strength * features[:, 0] + rng.normal(size=60) > 0
        losses = {}
        for alpha in alphas:
            model = LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=100_000)
            predicted = cross_val_predict(
                model, features, positive, groups=GROUPS, cv=GroupKFold(15), method="predict_proba"
            )
            losses[alpha] = log_loss(positive, predicted)
        found = logistic.choose(features, positive, GROUPS, alphas, folds=15, seed=0)
        assert found.alpha == min(losses, key=losses.__getitem__)
        assert logistic.log_loss(found.held_out, positive) == pytest.approx(losses[found.alpha], abs=1e-5)
        chosen.add(found.alpha)
    assert len(chosen) > 1
