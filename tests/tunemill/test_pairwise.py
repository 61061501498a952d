"""Pairs: accuracies by hand, baselines as scikit-learn has them, a linear reward as its logistic regression finds it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunemill import pairwise, statistics

CHOSEN = ["no", "I will not help", "read the book", "go away now", "ask a friend", "I will not do it"]
REJECTED = ["yes", "I will help you", "burn the book", "go on", "hurt a friend today", "I do it"]
WEIGHTS = np.array([1.0, 0.5, 0.5, 1.0, 1.0, 1.0])
FOLDS = [0, 1, 1, 2, 0, 2]


def test_accuracy_is_weighted_and_ties_are_half_right() -> None:
    margins = {"reward": np.array([1.0, 0.0, -1.0, 2.0]), "other": np.array([-1.0, -1.0, 1.0, 1.0])}
    weights, groups = np.array([1.0, 0.5, 0.5, 1.0]), ["a", "b", "b", "c"]
    found, less = pairwise.accuracies(margins, "reward", weights, groups, 100, 0)
    assert found["reward"].value == pytest.approx((1 + 0.25 + 0 + 1) / 3)
    assert found["other"].value == pytest.approx((0 + 0 + 0.5 + 1) / 3)
    assert less["other"].diff == pytest.approx(0.25)
    assert found["reward"].low is None  # three groups are too few for an interval


def test_intervals_resample_groups_and_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    groups = [f"g{at // 10}" for at in range(300)]
    kind = np.repeat(rng.random(30) < 0.7, 10)  # whole groups are told right or wrong
    margins = {"reward": np.where(kind, 1.0, -1.0), "same": np.where(kind, 3.0, -2.0)}
    found, less = pairwise.accuracies(margins, "reward", np.ones(300), groups, 2000, 0)
    low, high = found["reward"].low, found["reward"].high
    assert low is not None and high is not None
    # As if there were thirty answers, not three hundred.
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.7 * 0.3 / 30), rel=0.25)
    assert less["same"].diff == 0.0 and less["same"].p == 1.0


def test_no_pair_is_undefined() -> None:
    found, less = pairwise.accuracies({"reward": np.zeros(0), "other": np.zeros(0)}, "reward", np.zeros(0), [], 100, 0)
    assert found["reward"] == statistics.Interval(None, None, None) and less["other"].diff is None


def test_length_prefers_the_shorter() -> None:
    assert pairwise.length_margins(["a b", "a", "a"], ["a", "b", "a b c"]).tolist() == [-1.0, 0.0, 2.0]


def test_tfidf_ridge_is_scikit_learns_on_differences() -> None:
    """By the normal equations in primal form, on the vectoriser's matrix."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    found = pairwise.tfidf_margins(CHOSEN, REJECTED, WEIGHTS, FOLDS)
    for fold in range(3):
        known = [at for at in range(6) if FOLDS[at] != fold]
        reader = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        reader.fit([CHOSEN[at] for at in known] + [REJECTED[at] for at in known])
        gaps = (reader.transform(CHOSEN) - reader.transform(REJECTED)).toarray()
        design, weights = gaps[known], WEIGHTS[known]
        solved = np.linalg.solve(design.T * weights @ design + np.eye(gaps.shape[1]), design.T @ weights)
        held_out = [at for at in range(6) if FOLDS[at] == fold]
        assert found[held_out] == pytest.approx(gaps[held_out] @ solved)


def test_answers_without_a_word_leave_tfidf_without_an_opinion() -> None:
    chosen, rejected = ["a", "b", "A?", "I", "a b", "!"], ["I", "c", "b", "", "x", "y z"]
    assert pairwise.tfidf_margins(chosen, rejected, WEIGHTS, FOLDS).tolist() == [0.0] * 6


def test_balanced_weights_leave_nothing_to_length() -> None:
    ratio = np.array([0.4, 0.3, 0.2, 2.5, 0.7, 0.7, 1.5, 1.0])
    weights = np.array([1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 3.0])
    found = pairwise.balanced(weights, ratio)
    # at most half as long 4 against 1: both 2.5; shorter 3 against 1: both 2; about as long stays.
    assert found == pytest.approx([0.625, 0.625, 1.25, 2.5, 2 / 3, 4 / 3, 2.0, 3.0])
    assert found.sum() == pytest.approx(weights.sum()) and weights[0] == 1.0
    alone = np.array([0.4, 0.3, 1.5])
    assert pairwise.balanced(np.ones(3), alone).tolist() == [1.0] * 3  # nothing to set against


def test_a_linear_reward_is_a_logistic_regression_on_differences() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    gaps = rng.normal(size=(40, 5)) * 3.0
    weights = rng.uniform(0.2, 1.0, 40)
    share = np.where(rng.random(40) < 0.5, 1.0, 0.75)
    found = pairwise.fit(gaps, share, weights, 0.1)
    size = np.sqrt((gaps**2).mean())
    # A pair with a soft label is two: one for it and one against it. C is one over the penalty on a sum.
    both = np.concatenate([gaps, -gaps]) / size
    each = np.concatenate([weights * share, weights * (1 - share)]) / weights.sum()
    mirrored = np.concatenate([both, -both])
    oracle = LogisticRegression(C=1 / 0.1, fit_intercept=False, tol=1e-10, max_iter=1000)
    oracle.fit(mirrored, np.repeat([1, 0], len(both)), sample_weight=np.tile(each, 2) / 2)
    assert found == pytest.approx(oracle.coef_[0] / size, abs=1e-5)
    assert pairwise.fit(gaps * 7, share, weights, 0.1) == pytest.approx(found / 7)
    assert not pairwise.fit(np.zeros((3, 2)), np.ones(3), np.ones(3), 0.1).any()


def test_folds_keep_groups_whole_and_depend_on_nothing_but_them() -> None:
    groups = [f"g{at % 7}" for at in range(50)]
    folds = pairwise.deal(groups, 3, 0)
    assert {len({fold for group, fold in zip(groups, folds, strict=True) if group == name}) for name in groups} == {1}
    assert sorted(np.bincount(folds, minlength=3) > 0) == [True] * 3
    turned = pairwise.deal(groups[::-1], 3, 0)
    assert turned == folds[::-1]


def test_bins_of_length() -> None:
    ratio = pairwise.length_ratio(
        ["a"] * 2 + ["a b c d", "a b c d e", "a b c"] + ["a b"], ["a b", "a"] + ["a b c d e"] * 2 + ["a b", ""]
    )
    assert ratio.tolist() == [0.5, 1.0, 0.8, 1.0, 1.5, 2.0]
    assert [pairwise.BINS[place] for place in pairwise.bins(ratio)] == [
        "at most half as long",
        "about as long",
        "about as long",
        "about as long",
        "longer",
        "at least twice as long",
    ]


def test_a_margin_that_says_how_often_it_is_right_is_calibrated() -> None:
    rng = np.random.default_rng(2)
    size = rng.exponential(1.0, 2000)
    margins = np.where(rng.random(2000) < 1 / (1 + np.exp(-size)), size, -size)
    groups = [str(at // 4) for at in range(2000)]
    true = pairwise.calibrated(margins, groups, 200, 0)
    bold = pairwise.calibrated(4 * margins, groups, 200, 0)
    assert true.ece is not None and true.ece.low == 0.0 and true.ece.value is not None and true.ece.value < 0.04
    assert bold.ece is not None and bold.ece.low is not None and bold.ece.low > 0.08
    assert true.nll < bold.nll
    assert true.nll == pytest.approx(float(np.log1p(np.exp(-margins)).mean()))
    bars = pairwise.reliability(margins)
    assert len(bars) == 10 and sum(bar.pairs for bar in bars) == 2000
    assert all(abs(bar.confidence - bar.accuracy) < 0.1 for bar in bars)
    assert pairwise.calibrated(np.ones(8), ["a"] * 8, 100, 0).ece is None
    assert pairwise.calibrated(np.zeros(8), ["a"] * 8, 100, 0) == (None, None, pytest.approx(math.log(2)))


def test_histogram_counts_every_reward_once() -> None:
    columns = pairwise.histogram(np.array([0.0, 1.0, 2.0]), np.array([-2.0, 0.0, 0.0]))
    assert (columns[0].low, columns[-1].high, len(columns)) == (-2.0, 2.0, 20)
    assert sum(each.chosen for each in columns) == sum(each.rejected for each in columns) == 3
    assert (columns[0].rejected, columns[-1].chosen) == (1, 1)
    assert sum(each.chosen + each.rejected for each in pairwise.histogram(np.zeros(2), np.zeros(2))) == 4
