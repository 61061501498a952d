"""Areas under the ROC curve against scikit-learn's, rank correlation against scipy's; pairs that may be left out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from tunemill import roc, statistics

RNG = np.random.default_rng(1)
SCORES = RNG.integers(0, 12, 80).astype(float)  # with many ties
POSITIVE = RNG.random(80) < 0.1 + 0.06 * SCORES
GROUPS = [f"p{n // 4}" for n in range(80)]


def test_it_is_that_of_scikit_learn_with_weights_too() -> None:
    assert roc.auc(SCORES, POSITIVE)[0] == pytest.approx(roc_auc_score(POSITIVE, SCORES), abs=1e-12)
    weights = np.random.default_rng(2).integers(0, 4, (5, 80)).astype(float)
    found = roc.auc(SCORES, POSITIVE, weights)
    for area, own in zip(found, weights, strict=True):
        assert area == pytest.approx(roc_auc_score(POSITIVE, SCORES, sample_weight=own), abs=1e-12)


def test_one_kind_only_is_undefined() -> None:
    assert np.isnan(roc.auc(SCORES, np.ones(80, bool))[0])
    assert np.isnan(roc.auc(SCORES, np.zeros(80, bool))[0])
    assert np.isnan(roc.auc(np.ones(2), np.array([True, False]), comparable=np.zeros((1, 1), bool))[0])


def test_all_tied_is_a_half() -> None:
    assert roc.auc(np.ones(80), POSITIVE)[0] == 0.5


def test_pairs_that_do_not_compare_are_left_out() -> None:
    scores, positive = np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False])
    assert roc.auc(scores, positive)[0] == 0.75  # 3>2, 3>0, 1<2, 1>0
    length = np.array([10.0, 20.0, 11.0, 21.0])
    assert roc.auc(scores, positive, comparable=roc.close(length, positive, 1.0))[0] == 1.0  # 3>2, 1>0
    assert roc.auc(scores, positive, comparable=roc.same(["a", "b", "b", "a"], positive))[0] == 0.5  # 3>0, 1<2


def test_a_score_that_is_length_tells_nothing_at_equal_length() -> None:
    rng = np.random.default_rng(3)
    length = rng.integers(1, 6, 400).astype(float)
    positive = rng.random(400) < length / 6
    assert roc.auc(length, positive)[0] > 0.7
    assert roc.auc(length, positive, comparable=roc.close(length, positive, 0.0))[0] == 0.5


def test_a_resample_of_clusters_is_the_area_of_its_rows() -> None:
    weights = roc.drawn(GROUPS, 20, seed=3)
    assert weights.shape == (20, 80) and (weights.sum(axis=1) == 80).all()
    assert (weights[:, 0] == weights[:, 3]).all()
    found = roc.auc(SCORES, POSITIVE, weights)
    for area, own in zip(found, weights.astype(int), strict=True):
        assert area == pytest.approx(roc_auc_score(np.repeat(POSITIVE, own), np.repeat(SCORES, own)), abs=1e-12)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Clusters of four answers that share half of their score: 95% intervals of a known area, 200 times."""
    from scipy.special import ndtr

    rng, truth, hits = np.random.default_rng(5), float(ndtr(1.0 / 2**0.5)), 0
    groups = [n // 4 for n in range(200)]
    for trial in range(200):
        positive = rng.random(200) < 0.5
        shared = np.repeat(rng.normal(size=50), 4)
        scores = positive + (shared + rng.normal(size=200)) / 2**0.5
        draws = roc.auc(scores, positive, roc.drawn(groups, 300, trial))
        _, low, high = statistics.interval(float(roc.auc(scores, positive)[0]), draws, 50)
        assert low is not None and high is not None
        hits += low <= truth <= high
    assert 180 <= hits <= 199


def test_rank_correlation_is_that_of_scipy() -> None:
    other = SCORES + np.random.default_rng(4).integers(0, 9, 80)
    assert roc.spearman(SCORES, other) == pytest.approx(spearmanr(SCORES, other).statistic, abs=1e-12)
    assert roc.spearman(SCORES, np.ones(80)) is None


def test_the_interval_among_answers_to_one_prompt_is_as_wide_as_other_prompts_make_it() -> None:
    # A prompt drawn twice is two prompts, each with its own pairs: not one with four times as many.
    rng = np.random.default_rng(11)

    def sample() -> tuple[np.ndarray, np.ndarray, list[str]]:
        prompts = [f"p{n // 4}" for n in range(240)]
        positive = rng.random(240) < 0.5
        return rng.normal(0, 1, 240) + 0.7 * positive, positive, prompts

    def area(own: tuple[np.ndarray, np.ndarray, list[str]], weights: np.ndarray | None = None) -> np.ndarray:
        scores, positive, prompts = own
        return roc.auc(scores, positive, weights, roc.same(prompts, positive), prompts)

    true = np.std([area(sample())[0] for _ in range(200)])
    told = np.mean([np.std(area(own, roc.drawn(own[2], 300, n))) for n in range(20) for own in [sample()]])
    assert told == pytest.approx(true, rel=0.25)


def test_a_cluster_drawn_twice_is_two_clusters() -> None:
    prompts = ["a", "a", "b", "b"]
    scores, positive = np.array([3.0, 1.0, 2.0, 4.0]), np.array([True, False, True, False])
    twice = roc.auc(scores, positive, np.array([[2.0, 2.0, 1.0, 1.0]]), clusters=prompts)[0]
    # By hand: a against a two pairs, both won; a against b two, both lost; b against a two, both won; b against b one, lost.
    assert twice == pytest.approx(4 / 7)
