"""Intervals that cover as often as they say, against analytic variances, scipy and numbers worked by hand."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from tunemill import metrics, statistics
from tunemill.statistics import Comparison

R = 10_000


def mean_table(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones_like(values)], axis=1)


def mean_interval(values: np.ndarray, groups: list[int], seed: int = 0, resamples: int = R) -> statistics.Interval:
    sums = statistics.cluster_sums(mean_table(values), groups)
    draws = statistics.ratio(0, 1)(statistics.resampled_sums(sums, resamples, seed))
    return statistics.interval(float(values.mean()), draws, len(sums))


def test_cluster_sums_by_hand() -> None:
    values = np.array([[1.0, 1], [2, 1], [4, 1], [8, 1]])
    assert statistics.cluster_sums(values, ["b", "a", "b", "c"]).tolist() == [[5, 2], [2, 1], [8, 1]]


def test_resamples_draw_whole_clusters_with_replacement() -> None:
    sums = np.array([[1.0, 1], [10, 1], [100, 1]])
    drawn = statistics.resampled_sums(sums, 5000, seed=1)
    assert (drawn[:, 1] == 3).all()
    # 27 equally likely draws of 3 from 3: all the same one has probability 1/27, one of each 6/27.
    shares = Counter(drawn[:, 0].tolist())
    assert shares[300.0] / 5000 == pytest.approx(1 / 27, abs=0.01)
    assert shares[111.0] / 5000 == pytest.approx(6 / 27, abs=0.02)


def test_resamples_depend_on_the_seed_alone() -> None:
    table = np.random.default_rng(0).normal(size=(30, 2))
    both = statistics.resampled_sums(table, 500, 7)
    assert np.array_equal(both, statistics.resampled_sums(table, 500, 7))
    np.testing.assert_allclose(both[:, :1], statistics.resampled_sums(table[:, :1], 500, 7))  # paired across columns
    assert not np.array_equal(both, statistics.resampled_sums(table, 500, 8))


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(0).normal(size=(30, 2))
    whole = statistics.resampled_sums(table, 1000, 3)
    monkeypatch.setattr(statistics, "_CHUNK", 30 * 64)
    np.testing.assert_allclose(statistics.resampled_sums(table, 1000, 3), whole)


def test_item_interval_is_students() -> None:
    # For a mean of normal data the expanded percentile interval should be Student's.
    from scipy import stats

    values = np.random.default_rng(5).normal(3, 2, size=25)
    found = mean_interval(values, list(range(25)), resamples=100_000)
    exact = stats.t.interval(0.95, 24, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(exact, abs=0.12)
    assert found.high - found.low == pytest.approx(exact[1] - exact[0], rel=0.05)


def test_spread_is_that_of_scipys_bootstrap() -> None:
    from scipy import stats

    values = np.random.default_rng(6).exponential(size=60)
    ours = statistics.resampled_sums(mean_table(values), R, 0)[:, 0] / 60
    theirs = stats.bootstrap((values,), np.mean, n_resamples=R, rng=np.random.default_rng(1), method="percentile")
    assert ours.std() == pytest.approx(theirs.standard_error, rel=0.04)
    assert np.quantile(ours, [0.025, 0.975]) == pytest.approx(
        [theirs.confidence_interval.low, theirs.confidence_interval.high], abs=0.03
    )


def test_cluster_interval_has_the_variance_of_cluster_means() -> None:
    # 40 clusters of 5; between clusters sd 3, within 1: Var(mean) = (9 + 1/5) / 40, and items alone would say 10 / 200.
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(40), 5)
    widths = {"cluster": [], "item": []}
    for trial in range(30):
        values = rng.normal(0, 3, size=40)[groups] + rng.normal(size=200)
        cluster = mean_interval(values, groups.tolist(), trial, 2000)
        item = mean_interval(values, list(range(200)), trial, 2000)
        widths["cluster"].append(cluster.high - cluster.low)  # type: ignore[operator]
        widths["item"].append(item.high - item.low)  # type: ignore[operator]
    assert np.mean(widths["cluster"]) == pytest.approx(2 * 2.02 * ((9 + 0.2) / 40) ** 0.5, rel=0.06)
    assert np.mean(widths["item"]) == pytest.approx(2 * 1.97 * (10 / 200) ** 0.5, rel=0.06)


@pytest.mark.parametrize("clusters", [12, 36])
def test_cluster_intervals_cover_as_often_as_they_say(clusters: int) -> None:
    rng = np.random.default_rng(clusters)
    trials, hits, item_hits = 400, 0, 0
    groups = np.repeat(np.arange(clusters), 6)
    for trial in range(trials):
        values = 1.0 + rng.normal(0, 2, size=clusters)[groups] + rng.normal(0, 2, size=len(groups))
        cluster = mean_interval(values, groups.tolist(), trial, 1000)
        item = mean_interval(values, list(range(len(groups))), trial, 1000)
        hits += cluster.low <= 1.0 <= cluster.high  # type: ignore[operator]
        item_hits += item.low <= 1.0 <= item.high  # type: ignore[operator]
    # 95% of 400 within three standard errors; items taken as independent cover far less, which is why they are not the main way.
    assert hits / trials == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / trials) ** 0.5)
    assert item_hits / trials < 0.85


def test_p_is_uniform_where_nothing_differs() -> None:
    rng = np.random.default_rng(11)
    p_values = []
    for trial in range(300):
        gaps = rng.normal(size=30)
        draws = statistics.resampled_sums(gaps[:, None], 1000, trial)[:, 0] / 30
        p_values.append(statistics.compare(float(gaps.mean()), draws, 30).p)
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.038)
    assert np.mean(np.array(p_values) < 0.5) == pytest.approx(0.5, abs=0.087)


def test_p_is_near_that_of_the_t_test() -> None:
    from scipy import stats

    gaps = np.random.default_rng(12).normal(0.35, 1, size=40)
    draws = statistics.resampled_sums(gaps[:, None], 100_000, 0)[:, 0] / 40
    assert statistics.compare(float(gaps.mean()), draws, 40).p == pytest.approx(
        stats.ttest_1samp(gaps, 0).pvalue, abs=0.01
    )


def test_p_agrees_with_the_interval() -> None:
    rng = np.random.default_rng(13)
    for trial in range(60):
        gaps = rng.normal(0.3, 1, size=40)
        draws = statistics.resampled_sums(gaps[:, None], 4000, trial)[:, 0] / 40
        found = statistics.compare(float(gaps.mean()), draws, 40)
        assert found.p is not None and found.low is not None and found.high is not None
        if not 0.045 < found.p < 0.055:
            assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_all_tied() -> None:
    draws = statistics.resampled_sums(np.zeros((20, 1)), 1000, 0)[:, 0]
    assert statistics.compare(0.0, draws, 20) == Comparison(0.0, None, None, 1.0)
    assert statistics.compare(0.3, draws + 0.3, 20) == Comparison(0.3, None, None, None)
    assert statistics.interval(0.0, draws, 20) == (0.0, None, None)
    assert statistics.no_interval(20) == "no interval: 20 independent units all show the same"
    # Sums of equal numbers in another order are equal but for rounding.
    tenths = statistics.resampled_sums(mean_table(np.full(20, 0.1)), 1000, 0)
    assert statistics.interval(0.1, tenths[:, 0] / tenths[:, 1], 20) == (0.1, None, None)


@pytest.mark.parametrize("units", [6, 12, 200])
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("level", [0.95, 0.9])
def test_none_or_all_of_n_has_the_exact_binomial_interval(units: int, value: float, level: float) -> None:
    from scipy import stats

    draws = np.full(1000, value)
    found = statistics.interval(value, draws, units, level, (0.0, 1.0))
    exact = stats.binomtest(int(value * units), units).proportion_ci(level, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    assert statistics.interval(value, draws, 5, level, (0.0, 1.0)) == (value, None, None)


def test_a_tie_at_another_value_reaches_towards_both_ends() -> None:
    # Of 6 units the exact interval of none reaches to 0.4593; as many unseen ones may all be 0, or all be 1.
    found = statistics.interval(0.25, np.full(100, 0.25), 6, 0.95, (0.0, 1.0))
    assert found == pytest.approx((0.25, 0.25 * (1 - 0.4593), 0.25 + 0.75 * 0.4593), abs=1e-4)


@pytest.mark.parametrize("units", [6, 9, 30])
def test_units_that_all_differ_by_the_same(units: int) -> None:
    from scipy import stats

    # One is right and the other wrong every time: the sign test, as McNemar's.
    always = statistics.compare(1.0, np.ones(500), units, 0.95, (-1.0, 1.0))
    assert always.p == pytest.approx(stats.binomtest(units, units).pvalue)
    for gap in np.linspace(-1, 1, 41):
        found = statistics.compare(float(gap), np.full(500, gap), units, 0.95, (-1.0, 1.0))
        assert found.p is not None and found.low is not None and found.high is not None
        assert -1 <= found.low <= gap <= found.high <= 1
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    same = statistics.compare(0.0, np.zeros(500), units, 0.95, (-1.0, 1.0))
    upper = stats.binomtest(0, units).proportion_ci(0.95, method="exact").high
    assert same == pytest.approx((0.0, -upper, upper, 1.0))
    assert statistics.verdict(same) == "not shown to be better"


def test_one_unit_has_a_value_and_no_interval() -> None:
    draws = statistics.resampled_sums(np.array([[5.0]]), 1000, 0)[:, 0]
    assert statistics.interval(5.0, draws, 1) == (5.0, None, None)
    assert statistics.compare(5.0, draws, 1) == (5.0, None, None, None)


def test_undefined_values() -> None:
    nothing = np.full(100, np.nan)
    assert statistics.interval(float("nan"), nothing, 10) == (None, None, None)
    assert statistics.compare(float("nan"), nothing, 10) == (None, None, None, None)
    some = np.where(np.arange(100) < 50, np.nan, 1.0)  # resamples that drew no defined item are left out
    assert statistics.interval(1.0, some, 10) == (1.0, None, None)
    varied = np.where(np.arange(100) < 50, np.nan, np.arange(100) / 100)
    assert statistics.interval(0.7, varied, 10)[1:] == pytest.approx((0.5, 0.99), abs=0.02)
    assert np.isnan(statistics.ratio(0, 1)(np.array([[0.0, 0.0]]))).all()


def test_holm_by_hand() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; made monotone the last is 0.06.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.9]) == [1.0, 1.0]
    assert statistics.holm([0.2]) == [0.2]
    assert statistics.holm([]) == []
    assert statistics.holm([0.01, None, 0.04]) == [0.02, None, 0.04]  # what was not tested is none of them


@pytest.mark.parametrize(
    ("found", "adjusted", "said"),
    [
        (Comparison(2.0, 0.5, 3.0, 0.01), None, "better"),
        (Comparison(2.0, 0.5, 3.0, 0.01), 0.04, "better"),
        (Comparison(2.0, 0.5, 3.0, 0.03), 0.06, "not shown to be better"),
        (Comparison(-2.0, -3.0, -0.5, 0.01), None, "worse"),
        (Comparison(0.5, -0.1, 1.0, 0.1), None, "not shown to be better"),
        (Comparison(0.0, 0.0, 0.0, 1.0), None, "not shown to be better"),
        (Comparison(5.0, None, None, None), None, "not shown to be better"),
    ],
)
def test_verdicts(found: Comparison, adjusted: float | None, said: str) -> None:
    assert statistics.verdict(found, adjusted) == said


def test_ten_thousand_resamples_of_a_thousand_items_are_fast() -> None:
    table = np.random.default_rng(0).normal(size=(1000, 40))
    began = time.process_time()
    statistics.resampled_sums(table, R, 0)
    assert time.process_time() - began < 10  # 0.7 s on an idle machine


def test_bleu_interval_from_counts() -> None:
    references = [f"alpha beta gamma delta item {i}" for i in range(30)]
    predictions = [text if i % 2 else "wholly other words stand right here" for i, text in enumerate(references)]
    sums = metrics.bleu_statistics(references, predictions)
    value = float(metrics.bleu(sums.sum(axis=0)))
    found = statistics.interval(value, metrics.bleu(statistics.resampled_sums(sums, 2000, 0)), 30)
    assert found.low is not None and found.high is not None
    assert 20 < found.low < value < found.high < 80


def test_a_subset_takes_equal_shares_and_ignores_the_order() -> None:
    ids = [f"item{i}" for i in range(300)]
    groups = [f"g{i % 3}" if i < 240 else "h" for i in range(300)]
    chosen = statistics.stratified(ids, groups, 50, seed=4)
    counts = Counter(groups[index] for index in chosen)
    assert len(chosen) == 50 and chosen == sorted(set(chosen))
    for group, size in Counter(groups).items():
        assert abs(counts[group] - 50 * size / 300) <= 1
    backwards = statistics.stratified(ids[::-1], groups[::-1], 50, seed=4)
    assert {ids[index] for index in chosen} == {ids[::-1][index] for index in backwards}
    assert statistics.stratified(ids, groups, 50, seed=5) != chosen
    assert statistics.stratified(ids, groups, 0, 0) == statistics.stratified(ids, groups, 999, 0) == list(range(300))
    assert statistics.stratified([], [], 5, 0) == []


# ------------------------------------------------------------ direction, margins, ranks


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Comparison(2.0, 0.5, 3.0, 0.01), "worse"),
        (Comparison(-2.0, -3.0, -0.5, 0.01), "better"),
        (Comparison(-0.5, -1.0, 0.1, 0.1), "not shown to be better"),
        (Comparison(-0.5, -1.0, 0.0, 0.05), "not shown to be better"),
        (Comparison(-5.0, None, None, None), "not shown to be better"),
    ],
)
def test_verdicts_where_lower_is_better(found: Comparison, said: str) -> None:
    assert statistics.verdict(found, lower_is_better=True) == said
    assert statistics.verdict(found, 0.06, lower_is_better=True) == "not shown to be better"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-0.9, 2.0, "no worse"),
        (-1.0, 2.0, "not shown"),  # the margin itself
        (-0.9, -0.1, "no worse"),  # shown to be lower, and by less than the margin
        (-3.0, 0.0, "not shown"),
        (-3.0, -1.1, "worse"),
        (0.5, 2.0, "no worse"),
    ],
)
def test_no_worse_is_a_bound_inside_the_margin(low: float, high: float, said: str) -> None:
    assert statistics.no_worse(Comparison((low + high) / 2, low, high, None), 1.0) == said
    turned = statistics.Interval(-(low + high) / 2, -high, -low)
    assert statistics.no_worse(turned, 1.0, lower_is_better=True) == said


def test_no_worse_needs_an_interval() -> None:
    assert statistics.no_worse(Comparison(5.0, None, None, None), 1.0) == "not shown"


def test_a_margin_is_resolved_by_half_an_interval_that_is_narrower() -> None:
    assert statistics.resolves(statistics.Interval(9.0, 8.0, 10.0), 1.1)
    assert not statistics.resolves(statistics.Interval(9.0, 8.0, 10.0), 1.0)
    assert not statistics.resolves(statistics.Interval(9.0, None, None), 100.0)


def test_percent_of_nothing_is_undefined() -> None:
    found = statistics.relative(np.array([3.0, 1.0, 0.0, 2.0]), np.array([4.0, 1.0, 5.0, 0.0]))
    assert found.tolist()[:3] == [-25.0, 0.0, -100.0] and np.isnan(found[3])


def test_the_interval_of_a_ratio_is_fiellers() -> None:
    # Fieller's (1954) interval of a ratio of two means: where the two depend on each other, it is not that of their difference.
    from scipy import stats

    rng = np.random.default_rng(8)
    shared = rng.normal(0, 6, size=60)
    a, b = 29 + shared + rng.normal(0, 2, size=60), 30 + shared + rng.normal(0, 2, size=60)
    drawn = statistics.resampled_sums(np.stack([a, b], axis=1), 20_000, 1)
    found = statistics.interval(
        float(statistics.relative(a.sum(), b.sum())), statistics.relative(drawn[:, 0], drawn[:, 1]), 60
    )
    t, (v_a, v_ab, v_b) = stats.t.ppf(0.975, 59), (np.cov(a, b).ravel()[[0, 1, 3]] / 60)
    roots = np.roots([b.mean() ** 2 - t**2 * v_b, -2 * (a.mean() * b.mean() - t**2 * v_ab), a.mean() ** 2 - t**2 * v_a])
    low, high = sorted(100 * (roots - 1))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06 * (high - low))


def test_a_mean_over_strata_is_tested_as_scipy_tests_it() -> None:
    from scipy import stats

    rng = np.random.default_rng(2)
    gaps = rng.normal(0.4, 1, size=23)
    assert statistics.student_strata([gaps]) == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
    # Of two strata, one turned round, it is Welch's test of their difference.
    ours, theirs = rng.normal(1.0, 1, size=9), rng.normal(0.2, 3, size=40)
    welch = stats.ttest_ind(ours, theirs, equal_var=False).pvalue
    assert statistics.student_strata([ours, -theirs]) == pytest.approx(welch)
    assert statistics.student_strata([gaps, np.array([1.0])]) is None
    assert statistics.student_strata([np.zeros(4), np.zeros(3)]) == 1.0
    assert statistics.student_strata([np.ones(4), np.zeros(3)]) == 0.0


def test_win_rates_by_hand() -> None:
    values = {"base": 1.0, "sft": 3.0, "lora": 3.0, "prompt": 2.0, "broken": None}
    # sft beats base and prompt and ties with lora: 2.5 of 3.
    assert statistics.win_rates(values) == pytest.approx(
        {"base": 0.0, "sft": 2.5 / 3, "lora": 2.5 / 3, "prompt": 1 / 3, "broken": None}
    )
    assert statistics.win_rates(values, lower_is_better=True) == pytest.approx(
        {"base": 1.0, "sft": 0.5 / 3, "lora": 0.5 / 3, "prompt": 2 / 3, "broken": None}
    )


def test_win_rates_need_two() -> None:
    assert statistics.win_rates({"a": 1.0, "b": None}) == {"a": None, "b": None}
    assert statistics.win_rates({"a": 2.0, "b": 2.0}) == {"a": 0.5, "b": 0.5}
    assert statistics.win_rates({}) == {}


# ------------------------------------------------------------ McNemar


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (9, 2), (2, 9), (60, 30), (0, 12)])
def test_mcnemar_is_scipys_binomial_test(only_a: int, only_b: int) -> None:
    from scipy import stats

    a = [True] * only_a + [False] * only_b + [True] * 20 + [False] * 7
    b = [False] * only_a + [True] * only_b + [True] * 20 + [False] * 7
    found = statistics.mcnemar(a, b)
    assert (found.n, found.only_a, found.only_b) == (len(a), only_a, only_b)
    assert found.diff == pytest.approx(np.mean(a) - np.mean(b))
    exact = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert found.p == pytest.approx(exact, rel=1e-9)


def test_mcnemar_of_nothing_and_of_unequal_lengths() -> None:
    assert statistics.mcnemar([], []) == (0, 0, 0, None, None)
    with pytest.raises(ValueError):
        statistics.mcnemar([True], [])


# ------------------------------------------------------------ the smallest difference a test set can show


@pytest.mark.parametrize("clusters", [12, 40, 200])
def test_minimum_detectable_has_the_power_of_the_noncentral_t(clusters: int) -> None:
    from scipy import stats

    error = 1.7
    draws = np.random.default_rng(0).normal(3, error * ((clusters - 1) / clusters) ** 0.5, size=200_000)
    found = statistics.minimum_detectable(draws, clusters)
    assert found is not None
    critical = stats.t.ppf(0.975, clusters - 1)
    assert stats.nct.sf(critical, clusters - 1, found / error) == pytest.approx(0.8, abs=0.005)
    stricter = statistics.minimum_detectable(draws, clusters, level=0.99, power=0.9)
    assert stricter is not None
    reached = stats.nct.sf(stats.t.ppf(0.995, clusters - 1), clusters - 1, stricter / error)
    assert reached == pytest.approx(0.9, abs=0.02)  # Bloom's formula is an approximation: 0.885 with 12 clusters


def test_minimum_detectable_is_undefined_without_spread_or_units() -> None:
    draws = np.random.default_rng(0).normal(size=100)
    assert statistics.minimum_detectable(draws, 1) is None
    assert statistics.minimum_detectable(np.zeros(100), 20) is None
    assert statistics.minimum_detectable(np.full(100, np.nan), 20) is None
    holed = np.concatenate([draws, [np.nan]])
    assert statistics.minimum_detectable(holed, 20) == statistics.minimum_detectable(draws, 20)


# ------------------------------------------------------------ rounds of timing


@pytest.mark.parametrize("rounds", [5, 9, 11, 30])
def test_a_trimmed_mean_is_tested_as_scipy_does(rounds: int) -> None:
    from scipy import stats

    values = np.random.default_rng(rounds).normal(0.4, 1, size=rounds)
    found = statistics.yuen(values)
    # Against a sample that does not vary, Yuen's test of two samples is that of one.
    oracle = stats.ttest_ind(values, np.zeros(rounds), equal_var=False, trim=0.2)
    assert (found.diff, found.p) == pytest.approx((stats.trim_mean(values, 0.2), oracle.pvalue))
    assert found.low is not None and found.high is not None
    for end in (found.low, found.high):  # where its own p would be 0.05
        shifted = stats.ttest_ind(values - end, np.zeros(rounds), equal_var=False, trim=0.2)
        assert shifted.pvalue == pytest.approx(0.05)


@pytest.mark.parametrize("rounds", [2, 3, 4])
def test_of_fewer_than_five_rounds_it_is_students_test(rounds: int) -> None:
    from scipy import stats

    values = np.random.default_rng(rounds).normal(0.4, 1, size=rounds)
    oracle = stats.ttest_1samp(values, 0.0)
    interval = oracle.confidence_interval(0.9)
    assert statistics.yuen(values, 0.9) == pytest.approx((values.mean(), interval.low, interval.high, oracle.pvalue))


def test_one_wild_round_of_five_changes_next_to_nothing() -> None:
    calm, wild = (np.array([1.0, 1.1, 1.2, 1.3, last]) for last in (1.35, 100.0))
    assert statistics.yuen(wild).diff == statistics.yuen(calm).diff == pytest.approx(1.2)
    assert statistics.yuen(wild) == pytest.approx(statistics.yuen(calm))
    assert statistics.middle([1, 2, 4, 8, 1000]) == pytest.approx(4.0)
    assert statistics.middle([1 / 1, 1 / 2, 1 / 4, 1 / 8, 1 / 1000]) == pytest.approx(1 / 4)


def test_rounds_that_are_too_few_or_all_alike() -> None:
    assert statistics.yuen(np.array([])) == (None, None, None, None)
    assert statistics.yuen(np.array([2.0])) == (2.0, None, None, None)
    assert statistics.yuen(np.zeros(5)) == (0.0, None, None, 1.0)
    assert statistics.yuen(np.array([0.1, 2.0, 2.0, 2.0, 9.0])) == (2.0, None, None, None)
    for values in ([], [2.0], [2.0, 2.0, 2.0]):
        assert statistics.yuen_detectable(np.array(values)) is None


@pytest.mark.parametrize("rounds", [2, 4])
def test_what_rounds_can_show_is_what_the_noncentral_t_says(rounds: int) -> None:
    from scipy import stats

    values = np.random.default_rng(rounds).normal(0, 1, size=rounds)
    found = statistics.yuen_detectable(values, level=0.9, power=0.7)
    assert found is not None
    critical = stats.t.ppf(0.95, rounds - 1)
    assert stats.nct.sf(critical, rounds - 1, found / stats.sem(values)) == pytest.approx(0.7, abs=1e-5)


@pytest.mark.parametrize("rounds", [5, 11])
def test_rounds_raise_few_false_alarms_and_find_what_they_promise(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    gaps = rng.normal(0, 0.05, size=(1000, rounds))
    gaps += (rng.random(gaps.shape) < 0.03) * rng.exponential(1.0, size=gaps.shape)  # now and then the machine is busy

    def called(effect: float) -> float:
        return float(np.mean([(statistics.yuen(own + effect).p or 0.0) < 0.05 for own in gaps]))

    promised = float(np.mean([statistics.yuen_detectable(own) for own in gaps]))
    print(f"{rounds} rounds: {called(0.0):.1%} called different, {promised:+.3f} found in {called(-promised):.0%}")
    assert called(0.0) <= 0.08
    assert 0.68 <= called(-promised) <= 0.92


# ------------------------------------------------------------ training seeds


def crossed(rng: np.random.Generator, seeds: int, clusters: int, items: int) -> tuple[np.ndarray, list[int]]:
    """Scores with an effect of the seed (sd 2), of the cluster (sd 3) and of the item (sd 4)."""
    groups = np.repeat(np.arange(clusters), items)
    values = rng.normal(0, 2, size=(seeds, 1)) + rng.normal(0, 3, size=clusters)[groups]
    return values + rng.normal(0, 4, size=(seeds, len(groups))), groups.tolist()


def hierarchical(values: np.ndarray, groups: list[int], resamples: int, seed: int) -> statistics.Hierarchy:
    """Of the mean over items, whose clusters are resampled; nan where a seed has no value for an item."""
    draws, means = [], []
    for own in values:
        known = ~np.isnan(own)
        sums = statistics.cluster_sums(np.stack([np.where(known, own, 0.0), known], axis=1), groups)
        draws.append(statistics.ratio(0, 1)(statistics.resampled_sums(sums, resamples, seed)))
        means.append(own[known].mean())
    return statistics.hierarchical(np.array(means), np.array(draws), seed)


@pytest.mark.parametrize("seeds", [3, 8])
def test_hierarchical_draws_vary_as_seeds_and_clusters_do(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    spreads, sds, flat = [], [], []
    for trial in range(150):
        values, groups = crossed(rng, seeds, 30, 4)
        found = hierarchical(values, groups, 1000, trial)
        assert found.value == pytest.approx(values.mean()) and found.draws.shape == (1000,)
        spreads.append(found.draws.var())
        sds.append(found.seed_sd)
        draws = statistics.resampled_sums(statistics.cluster_sums(mean_table(values.mean(axis=0)), groups), 1000, trial)
        flat.append(statistics.ratio(0, 1)(draws).var())
    # Var(mean) = 4/S between seeds + (9 + 16/(4·S))/30 between clusters and items; 16/120 is the items' part in a seed's mean.
    assert np.mean(np.square(sds)) == pytest.approx(4 + 16 / 120, rel=0.2)
    exact = 4 / seeds + (9 + 16 / (4 * seeds)) / 30
    # The items' own noise is resampled with the seeds and with the clusters, which adds a little: never too narrow.
    assert 0.9 * exact < np.mean(spreads) < 1.3 * exact
    assert np.mean(flat) < 0.6 * exact  # what taking the seeds' mean as known would say


def test_seeds_share_their_test_sets_and_miss_items() -> None:
    rng = np.random.default_rng(1)
    values, groups = crossed(rng, 4, 20, 3)
    same = hierarchical(values, groups, 500, 3)
    better = hierarchical(values + 5, groups, 500, 3)
    np.testing.assert_allclose(better.draws - same.draws, 5)  # paired
    values[1, 7] = values[2, 7] = np.nan
    holed = hierarchical(values, groups, 500, 3)
    assert holed.value == pytest.approx(np.nanmean(values, axis=1).mean())
    assert not np.isnan(holed.draws).any()


def test_one_seed_is_the_cluster_bootstrap() -> None:
    values, groups = crossed(np.random.default_rng(2), 1, 20, 3)
    found = hierarchical(values, groups, 500, 9)
    sums = statistics.resampled_sums(statistics.cluster_sums(mean_table(values[0]), groups), 500, 9)
    np.testing.assert_allclose(found.draws, statistics.ratio(0, 1)(sums))
    assert found.seed_sd is None


@pytest.mark.parametrize(("seeds", "spread"), [(3, 6.0), (3, 0.5), (6, 6.0)])
def test_an_interval_over_few_seeds_covers_as_often_as_it_says(seeds: int, spread: float) -> None:
    # Where seeds differ far more than items do, three of them are all that is known.
    rng = np.random.default_rng(seeds)
    hits = 0
    for trial in range(200):
        groups = np.repeat(np.arange(30), 2)
        values = rng.normal(0, spread, size=(seeds, 1)) + rng.normal(0, 2, size=30)[groups]
        found = hierarchical(values + rng.normal(0, 1, size=(seeds, 60)), groups.tolist(), 400, trial)
        best = statistics.over_seeds(found, seeds, 30)
        assert best.low is not None and best.high is not None and best.p is not None
        assert (best.p < 0.05) == (not best.low <= 0 <= best.high)
        hits += best.low <= 0 <= best.high
    assert hits >= 182  # 190, and 2.6 standard errors


def test_seeds_that_all_say_the_same() -> None:
    same = hierarchical(np.ones((3, 8)), list(range(8)), 100, 0)
    assert statistics.over_seeds(same, 3, 8) == (1.0, None, None, None)
    nothing = hierarchical(np.zeros((3, 8)), list(range(8)), 100, 0)
    assert statistics.over_seeds(nothing, 3, 8) == (0.0, None, None, 1.0)
    assert statistics.over_seeds(same, 3, 1) == (1.0, None, None, None)


def test_of_fewer_than_six_units_there_is_no_interval() -> None:
    draws = np.random.default_rng(0).normal(1, 0.1, 500)
    for units in range(2, statistics.FEWEST):
        assert statistics.interval(1.0, draws, units) == (1.0, None, None)
        assert statistics.compare(1.0, draws, units) == (1.0, None, None, None)
        assert statistics.minimum_detectable(draws, units) is None
    assert statistics.interval(1.0, draws, statistics.FEWEST).low is not None


def test_the_detectable_effect_of_a_family_is_found_by_holm_as_often_as_it_says() -> None:
    # Four comparisons of 34 units; the other three show nothing, so Holm's first step is what has to be passed.
    rng = np.random.default_rng(4)
    level, found, trials = statistics.within_family(0.95, 4), 0, 200
    for trial in range(trials):
        noise = rng.normal(0, 1, size=(34, 1))
        spread = statistics.resampled_sums(noise, 4000, trial)[:, 0] / 34
        effect = statistics.minimum_detectable(spread, 34, level)
        assert effect is not None
        shifted = statistics.compare(float(noise.mean()) + effect, spread + effect, 34)
        assert shifted.p is not None
        found += statistics.holm([shifted.p, 0.5, 0.6, 0.7])[0] < 0.05
    assert 0.72 < found / trials < 0.9


def test_what_several_seeds_could_have_found() -> None:
    """By the definition: a true difference so large is found in four of five repetitions, other seeds and other items."""
    rng = np.random.default_rng(0)
    seeds, items, found, least = 4, 40, 0, []
    effect = 0.0
    for repetition in range(400):
        values = rng.normal(effect, 0.1, size=(seeds, 1)) + rng.normal(0.0, 0.5, size=items)
        values += rng.normal(0.0, 0.3, size=(seeds, items))
        drawn = statistics.resampled_sums(values.T, 500, repetition) / items
        hierarchy = statistics.hierarchical(values.mean(axis=1), drawn.T, repetition)
        if repetition < 200:
            least.append(statistics.seeds_detectable(hierarchy, seeds, items) or 0.0)
            effect = float(np.mean(least)) if repetition == 199 else 0.0
            continue
        interval = statistics.over_seeds(hierarchy, seeds, items)
        found += interval.low is not None and interval.low > 0
    assert 0.7 < found / 200 < 0.9
    assert statistics.seeds_detectable(hierarchy, seeds, 5) is None
