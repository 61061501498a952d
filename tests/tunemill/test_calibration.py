"""Calibration against numbers of HELM's own package, scikit-learn, examples worked by hand and models whose truth is known."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from tunemill import calibration, distances, statistics

NAN, INF = float("nan"), float("inf")


def answers(n: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Confidences from 0.25 to 0.99, and answers that are right less often than those say."""
    i = np.arange(n)
    confidences = (7 * i * i + 3 * i) % levels / levels * 0.74 + 0.25
    return confidences, (11 * i * i + 5 * i) % 97 / 97 < confidences**2


def once(n: int) -> np.ndarray:
    return np.ones((1, n), dtype=int)


# ------------------------------------------------------------ confidence


def test_confidence_is_the_softmax_of_log_probabilities_per_token() -> None:
    from scipy.special import softmax

    assert calibration.confidence([-6.0, -1.0, -9.0], [3, 1, 2]) == pytest.approx(softmax([-2.0, -1.0, -4.5]).max())
    assert calibration.confidence([-5000.0, -5000.0], [1, 1]) == 0.5
    assert calibration.confidence([-5000.0, -1.0], [1, 1]) == 1.0


@pytest.mark.parametrize("logprobs", [[NAN, -1.0], [-1.0, -INF], [INF, -1.0], [-1.0], []])
def test_no_confidence_without_two_finite_options(logprobs: list[float]) -> None:
    assert calibration.confidence(logprobs, [1] * len(logprobs)) is None


def test_an_option_without_a_token_is_no_option() -> None:
    with pytest.raises(ValueError, match=r"\[2, 0\] tokens"):
        calibration.confidence([-1.0, 0.0], [2, 0])
    with pytest.raises(ValueError, match="2 log-probabilities"):
        calibration.confidence([-1.0, 0.0], [2])


# ------------------------------------------------------------ the figures


# uncertainty-calibration 0.1.4, HELM's package, on `answers(n, levels)`: get_ece_em(num_bins=10), get_ece(num_bins=1),
# get_selective_stats, get_platt_scaler. The third has four levels of confidence, each shared by 80 items.
@pytest.mark.parametrize(
    ("n", "levels", "ten", "one", "area", "top", "slope", "intercept"),
    [
        (7, 1009, 0.471829251026476, 0.105231488036245, 0.404081632653061, 0.0, 0.33823862, -0.03328507),
        (122, 1009, 0.200042080293750, 0.189803083721913, 0.646519826978427, 1.0, 1.09195148, -1.02489537),
        (320, 12, 0.233562500000000, 0.233562500000000, None, None, 1.08061925, -1.27094521),
        (
            320,
            100003,
            0.210252800540984,
            0.210252800540984,
            0.586836564419849,
            0.818181818181818,
            1.08194232,
            -1.15637912,
        ),
    ],
)
def test_figures_are_those_of_helms_package(
    n: int, levels: int, ten: float, one: float, area: float | None, top: float | None, slope: float, intercept: float
) -> None:
    confidences, correct = answers(n, levels)
    found = calibration.measure([str(i) for i in range(n)], confidences, correct)
    assert (found.ece_10, found.ece_1) == pytest.approx((ten, one), abs=1e-12)
    if area is not None:  # among equal confidences HELM's figure depends on how they were sorted
        assert (found.coverage_accuracy_area, found.selective_accuracy) == pytest.approx((area, top), abs=1e-12)
    logits = np.log(confidences / (1 - confidences))
    assert calibration.platt_fit(logits, correct) == pytest.approx((slope, intercept), abs=2e-3)  # theirs stops sooner
    assert found.reason is None


def test_ten_bins_are_those_of_scikit_learn() -> None:
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(4)
    confidences = rng.uniform(0.2, 1, size=200)
    correct = rng.random(200) < confidences - 0.15
    accuracy, mean = calibration_curve(correct, confidences, n_bins=10, strategy="quantile")
    # Ten bins of twenty each.
    assert calibration.ece(confidences, correct, 10) == pytest.approx(np.abs(accuracy - mean).mean(), abs=1e-12)


def test_ece_by_hand() -> None:
    confidences = np.array([0.9, 0.5, 0.8, 0.6])
    correct = np.array([True, False, False, True])
    # Two bins: {0.5, 0.6}, half of them right: |0.55 - 0.5|; {0.8, 0.9}, half right: |0.85 - 0.5|.
    assert calibration.ece(confidences, correct, 2) == pytest.approx((0.05 + 0.35) / 2)
    assert calibration.ece(confidences, correct, 1) == pytest.approx(0.2)
    # More bins than items: a bin for each.
    assert calibration.ece(confidences, correct, 10) == pytest.approx((0.1 + 0.5 + 0.8 + 0.4) / 4)


def test_items_of_equal_confidence_share_a_bin() -> None:
    confidences = np.array([0.5, 0.5, 0.5, 0.8])
    # Two bins of two would part the three: all go to the lower one, and their order decides nothing.
    for right in ([True, False, False], [False, False, True]):
        correct = np.array([*right, True])
        assert calibration.ece(confidences, correct, 2) == pytest.approx(0.75 * (0.5 - 1 / 3) + 0.25 * 0.2)


def test_selective_accuracy_by_hand() -> None:
    # The five most confident of 40 are the top tenth and one more; of the two that share the fifth place one is right.
    confidences = np.array([0.99, 0.98, 0.97, 0.96, 0.9, 0.9, *np.linspace(0.8, 0.3, 34)])
    correct = np.array([True, True, False, True, False, True, *[False] * 34])
    tops, areas = calibration.resampled_selective(confidences, correct, once(40))
    assert tops[0] == pytest.approx((3 + 0.5) / 5)
    assert areas[0] == pytest.approx(np.mean([1, 1, 2 / 3, 3 / 4, 3.5 / 5, *[4 / k for k in range(6, 41)]]))
    other, _ = calibration.resampled_selective(confidences[::-1], correct[::-1], once(40))
    assert other[0] == tops[0]


def test_a_confident_mistake_costs_selective_accuracy() -> None:
    confidences = np.linspace(0.3, 0.9, 50)
    knows = confidences > 0.6
    good, bad = (calibration.measure([str(i) for i in range(50)], confidences, each) for each in (knows, ~knows))
    assert (good.selective_accuracy, bad.selective_accuracy) == (1.0, 0.0)
    assert (good.coverage_accuracy_area or 0) > 0.8 > 0.2 > (bad.coverage_accuracy_area or 1)


# ------------------------------------------------------------ Platt scaling


def test_platt_is_scikit_learns_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    confidences, correct = answers(300, 1009)
    logits = np.log(confidences / (1 - confidences))
    # C = 1e10 as in HELM; a solver and a tolerance that go all the way.
    theirs = LogisticRegression(C=1e10, solver="newton-cholesky", tol=1e-12).fit(logits[:, None], correct)
    ours = calibration.platt_fit(logits, correct)
    assert ours == pytest.approx((theirs.coef_[0, 0], theirs.intercept_[0]), abs=1e-8)


def test_platt_is_cross_fitted() -> None:
    from sklearn.linear_model import LogisticRegression

    confidences, correct = answers(200, 1009)
    ids = [f"question {i}" for i in range(200)]
    logits = np.log(confidences / (1 - confidences))
    folds = np.array([calibration.fold(name) for name in ids])
    assert sorted(set(folds)) == list(range(calibration.FOLDS))
    scaled = calibration.platt(ids, confidences, correct)
    assert scaled is not None
    for number in range(calibration.FOLDS):
        inside = folds == number
        model = LogisticRegression(C=1e10, solver="newton-cholesky", tol=1e-12).fit(
            logits[~inside][:, None], correct[~inside]
        )
        assert scaled[inside] == pytest.approx(model.predict_proba(logits[inside][:, None])[:, 1], abs=1e-8)


def test_folds_go_by_the_id_and_not_by_the_place() -> None:
    confidences, correct = answers(60, 1009)
    ids = [f"q{i}" for i in range(60)]
    ahead = calibration.platt(ids, confidences, correct)
    back = calibration.platt(ids[::-1], confidences[::-1], correct[::-1])
    assert ahead is not None and back is not None
    assert back[::-1] == pytest.approx(ahead, abs=1e-9)


def test_cross_fitting_does_not_flatter() -> None:
    # Answers that confidence says nothing about: fitted and measured on the same 20 items, the error seems smaller than it is.
    rng = np.random.default_rng(0)
    gaps = []
    for _ in range(60):
        confidences, correct = rng.uniform(0.3, 0.9, 20), rng.random(20) < 0.5
        scaled = calibration.platt([str(each) for each in rng.random(20)], confidences, correct)
        assert scaled is not None
        slope, intercept = calibration.platt_fit(calibration._logits(confidences), correct)
        within = 1 / (1 + np.exp(-(slope * calibration._logits(confidences) + intercept)))
        gaps.append(calibration.ece(scaled, correct, 1) - calibration.ece(within, correct, 1))
    assert np.mean(gaps) > 0.01


def test_scaling_mends_overconfidence() -> None:
    rng = np.random.default_rng(2)
    truth = rng.uniform(0.3, 0.8, 2000)
    correct = rng.random(2000) < truth
    logits = np.log(truth / (1 - truth))
    sure = 1 / (1 + np.exp(-(3 * logits + 1)))
    found = calibration.measure([str(i) for i in range(2000)], sure, correct)
    assert found.ece_10 is not None and found.platt_ece_10 is not None
    assert found.ece_10 > 0.15
    assert found.platt_ece_10 < 1.8 * calibration.expected(truth)


@pytest.mark.parametrize("confidences", [[0.2, 0.3, 0.4, 0.7, 0.8, 0.9] * 5, [0.5] * 30, [1.0, 0.0] * 15])
def test_platt_of_what_has_no_best_slope(confidences: list[float]) -> None:
    sure = np.array(confidences)
    correct = sure > 0.5 if len(set(confidences)) > 1 else np.arange(30) % 3 == 0
    scaled = calibration.platt([str(i) for i in range(30)], sure, correct)
    assert scaled is not None and np.isfinite(scaled).all()
    if len(set(confidences)) > 1:  # parted perfectly
        assert scaled == pytest.approx(correct.astype(float), abs=1e-4)
    else:
        assert scaled == pytest.approx(np.full(30, 1 / 3), abs=0.1)


# ------------------------------------------------------------ undefined


@pytest.mark.parametrize(("right", "said"), [(True, "all answers are right"), (False, "all answers are wrong")])
def test_all_right_or_all_wrong_is_undefined(right: bool, said: str) -> None:
    found = calibration.measure(list("abc"), np.array([0.3, 0.5, 0.9]), np.array([right] * 3))
    assert found == (*[None] * 7, said)


def test_nothing_to_measure() -> None:
    assert calibration.measure([], np.array([]), np.array([])) == (*[None] * 7, "no item has a confidence")


def test_platt_alone_may_be_undefined() -> None:
    found = calibration.measure(["a", "b"], np.array([0.4, 0.8]), np.array([False, True]))
    assert found.ece_10 == pytest.approx((0.4 + 0.2) / 2)
    assert found.platt_ece_10 is None and found.platt_ece_1 is None
    assert found.reason is not None and "Platt" in found.reason


def test_a_confidence_is_a_probability() -> None:
    with pytest.raises(ValueError, match=r"from 0\.5 to 1\.5"):
        calibration.measure(["a", "b"], np.array([0.5, 1.5]), np.array([True, False]))
    with pytest.raises(ValueError, match="no probabilities"):
        calibration.measure(["a", "b"], np.array([0.5, NAN]), np.array([True, False]))


# ------------------------------------------------------------ chance


def test_what_chance_shows_at_122_items() -> None:
    confidences = np.linspace(0.25, 1, 122)
    assert calibration.expected(confidences) == pytest.approx(0.10, abs=0.005)
    # One bin of n items: E|mean error| = sqrt(2/pi · p(1-p)/n).
    assert calibration.expected([0.7] * 400, bins=1) == pytest.approx(math.sqrt(2 / math.pi * 0.21 / 400), rel=0.05)


def test_a_calibrated_forecaster_shows_what_is_expected_and_an_overconfident_one_far_more() -> None:
    rng = np.random.default_rng(3)
    confidences = rng.uniform(0.3, 0.95, size=320)
    honest = [calibration.ece(confidences, rng.random(320) < confidences, 10) for _ in range(200)]
    vain = [calibration.ece(confidences, rng.random(320) < confidences - 0.25, 10) for _ in range(200)]
    expected = calibration.expected(confidences)
    assert np.mean(honest) == pytest.approx(expected, rel=0.06)
    assert np.mean(vain) == pytest.approx(0.25, abs=0.01)
    assert min(vain) > 2 * expected


def test_chance_needs_something_to_simulate() -> None:
    with pytest.raises(ValueError, match="nothing to simulate"):
        calibration.expected([])


# ------------------------------------------------------------ resamples


def test_a_resample_is_what_its_items_written_out_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_CHUNK", 47 * 7)  # several chunks
    for levels in (1009, 8):
        confidences, correct = answers(47, levels)
        counts = np.random.default_rng(levels).multinomial(47, np.full(47, 1 / 47), size=40)
        counts[0], counts[1, 5:] = 0, 0  # none at all; fewer levels than bins
        for bins in (1, 10):
            found = calibration.resampled_ece(confidences, correct, counts, bins)
            tops, areas = calibration.resampled_selective(confidences, correct, counts)
            assert np.isnan([found[0], tops[0], areas[0]]).all()
            for row in range(1, 40):
                sure, right = np.repeat(confidences, counts[row]), np.repeat(correct, counts[row])
                assert found[row] == pytest.approx(by_parts(sure, right, bins), abs=1e-12)
                top, area = by_expectation(sure, right)
                assert (tops[row], areas[row]) == pytest.approx((top, area), abs=1e-12)


def by_parts(confidences: np.ndarray, correct: np.ndarray, bins: int) -> float:
    """The definition, one item at a time: numpy cuts, ties follow the last of a part, bins are summed."""
    order = np.argsort(confidences, kind="stable")
    tops = [part.max() for part in np.array_split(confidences[order], bins) if len(part)]
    place = [next(at for at, top in enumerate(tops) if value <= top) for value in confidences]
    total = 0.0
    for at in set(place):
        members = np.array(place) == at
        total += members.sum() * abs(confidences[members].mean() - correct[members].mean())
    return total / len(confidences)


def by_expectation(confidences: np.ndarray, correct: np.ndarray) -> tuple[float, float]:
    """Each item of a tie counts as much as the tie's mean."""
    means = {value: correct[confidences == value].mean() for value in set(confidences)}
    rights = np.cumsum([means[value] for value in sorted(confidences, reverse=True)])
    accuracies = rights / np.arange(1, len(rights) + 1)
    return float(accuracies[len(rights) // 10]), float(accuracies.mean())


def test_two_thousand_resamples_are_fast() -> None:
    confidences, correct = answers(320, 100003)
    counts = np.random.default_rng(0).multinomial(320, np.full(320, 1 / 320), size=2000)
    began = time.process_time()
    calibration.resampled_ece(confidences, correct, counts, 10)
    assert time.process_time() - began < 1  # 0.07 s on an idle machine


def drawn(rng: np.random.Generator, n: int, low: float, high: float, excess: float) -> tuple[np.ndarray, np.ndarray]:
    confidences = rng.uniform(low, high, size=n)
    return confidences, rng.random(n) < confidences - excess


def bootstrap(model: tuple[np.ndarray, np.ndarray], counts: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    return calibration.ece(*model, 10), calibration.resampled_ece(*model, counts, 10), calibration.chance(model[0])


@pytest.mark.parametrize("excess", [0.0, 0.1, 0.25])
def test_intervals_hold_the_truth(excess: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "SIMULATIONS", 500)
    rng = np.random.default_rng(17)
    trials, hits, plain = 80, 0, 0
    for _ in range(trials):
        counts = rng.multinomial(200, np.full(200, 1 / 200), size=500)
        value, draws, chances = bootstrap(drawn(rng, 200, 0.3, 1.0, excess), counts)
        found = distances.interval(value, draws, chances, 200)
        assert found.low is not None and found.high is not None and 0 <= found.low <= value <= found.high <= 1
        hits += found.low <= excess <= found.high
        percentile = statistics.interval(value, draws, 200)
        plain += percentile.low <= excess <= percentile.high  # type: ignore[operator]
    assert hits / trials >= 0.95 - 3 * (0.95 * 0.05 / trials) ** 0.5
    if not excess:
        assert plain == 0  # the percentile interval never reaches perfect calibration


def test_differences_in_chance_are_no_differences_in_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two calibrated models, one unsure and one nearly always sure: chance gives them an ECE of 0.08 and 0.04.
    monkeypatch.setattr(distances, "SIMULATIONS", 500)
    rng = np.random.default_rng(18)
    ours, percentile, found_gaps = 0, 0, 0
    for _ in range(60):
        counts = rng.multinomial(200, np.full(200, 1 / 200), size=500)
        unsure, sure, vain = (
            bootstrap(drawn(rng, 200, *each), counts) for each in ((0.25, 0.6, 0), (0.85, 1.0, 0), (0.5, 1.0, 0.25))
        )
        ours += excludes_zero(compared(unsure, sure))
        percentile += excludes_zero(statistics.compare(unsure[0] - sure[0], unsure[1] - sure[1], 200))
        found = compared(sure, vain)
        found_gaps += found.high is not None and found.high < 0
        assert found.p is not None and (found.p < 0.05) == excludes_zero(found)
    assert percentile > 20
    assert ours <= 7  # 5% of 60, and 2.4 standard errors
    assert found_gaps >= 50


def compared(a: tuple[Any, Any, Any], b: tuple[Any, Any, Any]) -> statistics.Comparison:
    return distances.compare((a[0], b[0]), a[1] - b[1], (a[2], b[2]), 200)


def test_two_models_far_from_calibrated_are_told_apart_by_their_answers() -> None:
    # Both err far beyond chance, and answer the same questions: what chance makes of perfect models is beside the point.
    rng = np.random.default_rng(7)
    confidences, correct = np.linspace(0.6, 0.95, 300), rng.random(300) < np.linspace(0.6, 0.95, 300) - 0.2
    counts = rng.multinomial(300, np.full(300, 1 / 300), size=1000)
    near, far = (bootstrap((np.minimum(confidences + more, 1.0), correct), counts) for more in (0.0, 0.04))
    assert distances._within_chance((near[0], far[0]), (near[2], far[2]), 0.95) is False
    found = distances.compare((far[0], near[0]), far[1] - near[1], (far[2], near[2]), 300)
    assert found.low is not None and 0 < found.low < found.diff and found.p is not None and found.p < 0.05
    least = distances.detectable((far[0], near[0]), far[1] - near[1], (far[2], near[2]), 300)
    assert least is not None and 0 < least < 0.04


def excludes_zero(found: statistics.Comparison) -> bool:
    assert found.low is not None and found.high is not None
    return not found.low <= 0 <= found.high


def test_a_model_does_not_differ_from_itself() -> None:
    rng = np.random.default_rng(5)
    model = bootstrap(drawn(rng, 100, 0.3, 1.0, 0.2), rng.multinomial(100, np.full(100, 0.01), size=1000))
    found = compared(model, model)
    assert (found.diff, found.p) == (0.0, 1.0)
    assert found.low is not None and -0.05 < found.low < 0  # what a hundred or more equal questions leave open
    assert distances.compare((0.25, 0.15), np.full(1000, 0.1), (model[2], model[2]), 1) == (
        pytest.approx(0.1),
        None,
        None,
        None,
    )
