"""Ridge regression against scikit-learn's."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict

from tunemill import ridge, tfidf, toxicity

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(60, 8)) + 3.0
TARGETS = FEATURES @ RNG.normal(size=8) + RNG.normal(size=60)
GROUPS = [f"g{n % 15}" for n in range(60)]


@pytest.mark.parametrize("alpha", [0.01, 1.0, 300.0])
def test_it_is_that_of_scikit_learn(alpha: float) -> None:
    oracle = Ridge(alpha=alpha).fit(FEATURES, TARGETS)
    found = ridge.fit(FEATURES, TARGETS, alpha)
    assert found.weight == pytest.approx(oracle.coef_, abs=1e-9)
    assert found.bias == pytest.approx(oracle.intercept_, abs=1e-9)
    assert found.predict(FEATURES) == pytest.approx(oracle.predict(FEATURES), abs=1e-9)


def test_more_features_than_rows() -> None:
    wide = np.random.default_rng(1).normal(size=(10, 40)) + 2.0
    oracle = Ridge(alpha=2.0).fit(wide, TARGETS[:10])
    for features in (wide, scipy.sparse.csr_matrix(wide)):
        found = ridge.fit(features, TARGETS[:10], 2.0)
        assert found.weight == pytest.approx(oracle.coef_, abs=1e-9)
        assert found.bias == pytest.approx(oracle.intercept_, abs=1e-9)
        assert found.predict(features) == pytest.approx(oracle.predict(wide), abs=1e-9)
    groups = [f"g{n}" for n in range(10)]
    left_out = cross_val_predict(Ridge(alpha=2.0), wide, TARGETS[:10], groups=groups, cv=GroupKFold(10))
    found_out = ridge.choose(scipy.sparse.csr_matrix(wide), TARGETS[:10], groups, [2.0], folds=10, seed=0)
    assert found_out.held_out == pytest.approx(left_out, abs=1e-9)


def test_words_are_judged_as_scikit_learn_would(tmp_path: Path) -> None:
    """TF-IDF and ridge together, and the same again to the last bit when they come back from disk."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    generator = random.Random(0)
    texts = [" ".join(generator.choices([f"word{n}" for n in range(30)], k=12)) for _ in range(60)]
    said = np.random.default_rng(0).random(40)
    counter = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit(texts[:40])
    oracle = Ridge(alpha=0.3).fit(counter.transform(texts[:40]).toarray(), said)
    expected = oracle.predict(counter.transform(texts).toarray()).clip(0, 1)
    words = tfidf.learn(texts[:40], 2, 2)
    model = ridge.fit(tfidf.vectors(words, texts[:40]), said, 0.3)
    judge = toxicity.Judge(words, model, {"auc": {"value": 0.8, "low": 0.7, "high": 0.9}})
    assert judge.score(texts) == pytest.approx(expected, abs=1e-12)
    judge.save(tmp_path / "harm")
    assert toxicity.Judge.load(tmp_path / "harm").score(texts) == judge.score(texts)


def test_a_group_is_left_out_whole() -> None:
    found = ridge.choose(FEATURES, TARGETS, GROUPS, [1.0], folds=15, seed=0)
    oracle = cross_val_predict(Ridge(alpha=1.0), FEATURES, TARGETS, groups=GROUPS, cv=GroupKFold(15))
    assert found.held_out == pytest.approx(oracle, abs=1e-9)  # a fold for each group: nothing is left to chance


def test_the_penalty_with_the_least_error_on_what_was_left_out_is_chosen() -> None:
    rng, alphas = np.random.default_rng(2), [1e-3, 30.0, 1e6]
    chosen = []
    for share in (1.0, 0.2, 0.05, 0.0, 0.0, 0.0):  # of what the features explain
        targets = share * FEATURES @ np.arange(8.0) + rng.normal(size=60)
        errors = {}
        for alpha in alphas:
            predicted = cross_val_predict(Ridge(alpha=alpha), FEATURES, targets, groups=GROUPS, cv=GroupKFold(15))
            errors[alpha] = float(((predicted - targets) ** 2).mean())
        chosen.append(ridge.choose(FEATURES, targets, GROUPS, alphas, folds=15, seed=0).alpha)
        assert chosen[-1] == min(errors, key=errors.__getitem__)
    assert set(chosen) == set(alphas)


def test_the_order_of_rows_changes_nothing() -> None:
    order = np.random.default_rng(3).permutation(60)
    one = ridge.choose(FEATURES, TARGETS, GROUPS, [1.0], folds=4, seed=7).held_out
    other = ridge.choose(FEATURES[order], TARGETS[order], [GROUPS[n] for n in order], [1.0], folds=4, seed=7).held_out
    assert other == pytest.approx(one[order], abs=1e-9)


def test_too_few_groups() -> None:
    with pytest.raises(ValueError, match="15 groups cannot be dealt into 16 folds"):
        ridge.choose(FEATURES, TARGETS, GROUPS, [1.0], folds=16, seed=0)
