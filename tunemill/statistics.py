"""How sure a score is: bootstrap intervals, paired differences, corrections, verdicts, and what a test set can show at all.

One set of resamples serves every system and metric (the comparison is paired), and every statistic used here is a function
of sums over items, so a resample is a vector of cluster counts and all of them are one matrix product.

Intervals are expanded percentile intervals (Hesterberg 2015, "What teachers should know about the bootstrap", section
4.1.2): the bootstrap's spread is too small by sqrt((n-1)/n) and ignores that the spread is estimated, which matters with
a few dozen clusters. The p-value is that of the same interval: p < 0.05 exactly where the 95% interval excludes zero.
Below six units there is no interval. Where all units show the same there is nothing to resample, and an interval of no width would
claim that nothing else can happen: see `_unseen`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

if TYPE_CHECKING:
    import numpy as np

Verdict = Literal["better", "worse", "not shown to be better"]
Guard = Literal["no worse", "worse", "not shown"]

FEWEST = 6
"""Fewest independent units that are resampled for an interval. Of fewer, the expanded percentiles are the smallest and the largest
draw, however little they were stretched: of two units a "95%" interval would cover half the time, of five nine times in ten."""
TRIMMED = 0.2
"""Share of the rounds of a measurement that is left out at either end."""
_ROUNDING = 1e-12
"""What differs by less (of a value about 1) is equal: sums of the same numbers in another order differ by as much."""
_CHUNK = 4_000_000
"""Cluster counts drawn at a time: bounds memory, whatever the size of the test set."""


Span = tuple[float, float]
"""The ends of what can be seen."""


class Interval(NamedTuple):
    """An estimate with its interval; None where the data do not define it."""

    value: float | None
    low: float | None
    high: float | None


class Comparison(NamedTuple):
    """A paired difference, its interval and its two-sided p-value."""

    diff: float | None
    low: float | None
    high: float | None
    p: float | None


class Trimmed(NamedTuple):
    """A mean without its extremes, and how sure it is."""

    mean: float
    error: float | None
    """Its standard error; None of one value."""
    degrees: int
    """Of freedom."""


class McNemar(NamedTuple):
    """Two systems on the same right-or-wrong items."""

    n: int
    only_a: int
    """Items that the first alone got right."""
    only_b: int
    """Items that the second alone got right."""
    diff: float | None
    """The first's accuracy minus the second's; None of no items."""
    p: float | None


class Hierarchy(NamedTuple):
    """A mean over training seeds, resampled by seed and by test set."""

    value: float
    draws: np.ndarray
    """(R,) the mean on each resample."""
    seed_sd: float | None
    """Standard deviation between seeds, each seed's mean being one observation; None of a single seed."""


def cluster_sums(values: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Sums over each cluster, in order of first appearance.

    Args:
        values: (n, k).
        groups: n labels.

    Returns:
        (G, k).
    """
    import numpy as np

    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.intp)
    sums = np.zeros((len(numbers), values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def resampled_sums(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums over each bootstrap resample: G clusters drawn from G with replacement.

    Args:
        sums: (G, k) of `cluster_sums`.
        resamples: how many, R.
        seed: of the draws; equal seeds and equal G give equal draws, whatever k is.

    Returns:
        (R, k).
    """
    import numpy as np

    clusters = len(sums)
    rng = np.random.default_rng(seed)
    drawn = np.empty((resamples, sums.shape[1]))
    rows = max(1, _CHUNK // max(clusters, 1))
    for first in range(0, resamples, rows):
        last = min(first + rows, resamples)
        counts = rng.multinomial(clusters, np.full(clusters, 1.0 / clusters), size=last - first)  # (rows, G)
        drawn[first:last] = counts @ sums
    return drawn


def interval(value: float, draws: np.ndarray, clusters: int, level: float = 0.95, span: Span | None = None) -> Interval:
    """Expanded percentile interval of one estimate.

    Args:
        value: the estimate on the whole sample.
        draws: (R,) the estimate on each resample; nan where a resample does not define it.
        clusters: how many independent units were resampled.
        level: of confidence.
        span: the least and the most that a unit can show, (0, 1) of a share; None where it has no ends.

    Returns:
        The interval; no bounds of fewer than `FEWEST` units. Where all units show the same, that of `_unseen`, and no bounds
        without a span.
    """
    import numpy as np

    draws = draws[~np.isnan(draws)]
    if np.isnan(value):
        return Interval(None, None, None)
    if clusters < FEWEST or not len(draws):
        return Interval(float(value), None, None)
    if _alike(draws):
        return _unseen(float(value), clusters, level, span)
    tail = _expanded((1.0 - level) / 2.0, clusters)
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return Interval(float(value), float(low), float(high))


def compare(
    value: float, draws: np.ndarray, clusters: int, level: float = 0.95, span: Span | None = None
) -> Comparison:
    """Interval and p-value of a paired difference.

    Args:
        value: the difference on the whole sample.
        draws: (R,) the difference on each resample, both systems on the same one.
        clusters: how many independent units were resampled.
        level: of confidence.
        span: the least and the most that a unit's difference can be, (-1, 1) of two shares; None where it has no ends.

    Returns:
        The comparison. Where all units differ by the same, the interval is that of `_unseen` and p that of this interval; without
        a span there are no bounds, and p is 1 where they do not differ at all, else None.
    """
    import numpy as np

    diff, low, high = interval(value, draws, clusters, level, span)
    draws = draws[~np.isnan(draws)]
    if diff is None or clusters < FEWEST or not len(draws):
        return Comparison(diff, None, None, None)
    if _alike(draws):
        if span is None:
            return Comparison(diff, None, None, 1.0 if abs(diff) <= _ROUNDING else None)
        # Zero is where the interval ends once this share of unseen units lies at the far end.
        far = span[0] if diff > 0 else span[1]
        return Comparison(diff, low, high, min(1.0, 2.0 * (far / (far - diff)) ** clusters))
    # The share of resamples on the other side of zero; one is added so that p is never 0 (Davison and Hinkley 1997, 4.2).
    tail = (1 + min(int((draws <= 0).sum()), int((draws >= 0).sum()))) / (1 + len(draws))
    return Comparison(diff, low, high, min(1.0, 2.0 * _contracted(min(tail, 0.5), clusters)))


def no_interval(units: int) -> str:
    """Why `interval` has no bounds of a value that is defined."""
    if units >= FEWEST:
        return f"no interval: {units} independent units all show the same"
    return f"no interval from {units} independent {'unit' if units == 1 else 'units'}, at least {FEWEST} are needed"


def trimmed(values: np.ndarray) -> Trimmed:
    """The mean without a fifth of the values at either end, for a few measurements such as rounds of timing.

    Yuen (1974), "The two-sample trimmed t for unequal population variances": the spread is that of the values with those left
    out pulled in to the nearest that stays, (n − 1) s² / (h (h − 1)) with h that stay, and h − 1 degrees of freedom. One wild round of
    five changes next to nothing. It is an approximation: where nothing differs, five normal values show a difference at a level of 95%
    in 6% of cases, nine in 5%. Of fewer than five none is left out, and this is Student's.

    Args:
        values: (n,), n at least 1.
    """
    import numpy as np

    n = len(values)
    ends = int(TRIMMED * n)
    stay = n - 2 * ends
    ordered = np.sort(values)
    mean = float(ordered[ends : n - ends].mean())
    if stay < 2:
        return Trimmed(mean, None, 0)
    spread = float(np.clip(ordered, ordered[ends], ordered[n - 1 - ends]).var(ddof=1))
    return Trimmed(mean, ((n - 1) * spread / (stay * (stay - 1))) ** 0.5, stay - 1)


def yuen(values: np.ndarray, level: float = 0.95) -> Comparison:
    """A trimmed mean's interval, and p of its being zero: of paired differences, those that were measured in turns.

    Args:
        values: (n,).
        level: of confidence.

    Returns:
        The comparison; without bounds of a single value, or where all that stay are equal: then nothing tells how much they vary.
    """
    from scipy.special import stdtr, stdtrit

    if not len(values):
        return Comparison(None, None, None, None)
    mean, error, degrees = trimmed(values)
    if error is None:
        return Comparison(mean, None, None, None)
    if error <= _ROUNDING:
        return Comparison(mean, None, None, 1.0 if abs(mean) <= _ROUNDING else None)
    reach = float(stdtrit(degrees, (1.0 + level) / 2.0)) * error
    return Comparison(mean, mean - reach, mean + reach, 2.0 * float(stdtr(degrees, -abs(mean) / error)))


def yuen_detectable(values: np.ndarray, level: float = 0.95, power: float = 0.8) -> float | None:
    """The smallest true difference that `yuen` would find in so many rounds with this power: see `minimum_detectable`.

    By the noncentral t, since rounds are few: of five values Bloom's approximation promises a twentieth too much.

    Args:
        values: (n,) the differences.
        level: of confidence.
        power: probability of finding it.
    """
    from scipy.special import nctdtrinc, stdtrit

    _, error, degrees = trimmed(values) if len(values) else Trimmed(0.0, None, 0)
    if error is None or error <= _ROUNDING:
        return None
    return error * float(nctdtrinc(degrees, 1.0 - power, stdtrit(degrees, (1.0 + level) / 2.0)))


def middle(values: Sequence[float]) -> float:
    """What rounds of timing say: the mean of `trimmed`, taken of logarithms.

    Times and rates are compared by their ratios, and this is the same whichever of the two it is taken of.

    Args:
        values: at least one, all above 0.
    """
    import numpy as np

    return float(np.exp(trimmed(np.log(values)).mean))


def student_strata(gaps: Sequence[np.ndarray]) -> float | None:
    """Two-sided p-value of the mean of strata's means, each counting alike: Student's, with Satterthwaite's degrees of freedom.

    Of one stratum it is the paired t-test. For families of dozens: the share of R resamples is never below 1/R.

    Args:
        gaps: the paired differences in each stratum.

    Returns:
        p; None where a stratum has one value only.
    """
    import numpy as np
    from scipy.special import stdtr

    if min(map(len, gaps)) < 2:
        return None
    mean = float(np.mean([each.mean() for each in gaps]))
    variances = np.array([each.var(ddof=1) / len(each) for each in gaps])
    if not variances.any():
        return 1.0 if mean == 0 else 0.0
    degrees = variances.sum() ** 2 / sum(own**2 / (len(each) - 1) for own, each in zip(variances, gaps, strict=True))
    return 2.0 * float(stdtr(degrees, -abs(mean) * len(gaps) / variances.sum() ** 0.5))


def _expanded(tail: float, clusters: int) -> float:
    """The percentile that stands in for `tail`, so that the interval is as wide as Student's would be."""
    from scipy.special import ndtr, stdtrit

    return float(ndtr((clusters / (clusters - 1)) ** 0.5 * stdtrit(clusters - 1, tail)))


def _contracted(tail: float, clusters: int) -> float:
    """The inverse of `_expanded`: the tail for which an interval reaches this percentile."""
    from scipy.special import ndtri, stdtr

    return float(stdtr(clusters - 1, ((clusters - 1) / clusters) ** 0.5 * ndtri(tail)))


def _alike(draws: np.ndarray) -> bool:
    """Whether all resamples show the same, but for rounding."""
    return bool(draws.max() - draws.min() <= _ROUNDING * max(1.0, abs(draws.max())))


def _unseen(value: float, units: int, level: float, span: Span | None) -> Interval:
    """What may be true of a mean where all units show the same.

    After Clopper and Pearson (1934): where none of n units is otherwise, at most a share u = 1 − (α/2)^(1/n) of all units is (about 3.7
    of n), and these may lie at either end of the span. Where the units are 0 or 1 it is their exact interval.
    """
    if span is None:
        return Interval(value, None, None)
    assert span[0] - _ROUNDING <= value <= span[1] + _ROUNDING, "a value outside of its span"
    share = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / units)
    return Interval(value, value - share * (value - span[0]), value + share * (span[1] - value))


def minimum_detectable(draws: np.ndarray, clusters: int, level: float = 0.95, power: float = 0.8) -> float | None:
    """The smallest true difference that a test set of this size would find with this power.

    Bloom's (1995) minimum detectable effect, (t_{1-α/2} + t_{power}) · SE, Student's t with clusters − 1 degrees of freedom;
    SE is the bootstrap's spread times sqrt(G/(G-1)), as in `interval`. Why it must stand beside "not shown to be better":
    Card et al. 2020, "With little power comes great responsibility". It speaks of one comparison: for a family of m that
    Holm corrects, 1 − (1 − level) / m is the level that holds whatever the others show.

    Args:
        draws: (R,) the difference on each resample; nan where a resample does not define it.
        clusters: how many independent units were resampled.
        level: of confidence.
        power: probability of finding it.

    Returns:
        In the metric's own unit; None of fewer than `FEWEST` units, or where the draws are all one: then they tell nothing of
        how much the difference varies.
    """
    import numpy as np
    from scipy.special import stdtrit

    draws = draws[~np.isnan(draws)]
    if clusters < FEWEST or not len(draws) or _alike(draws):
        return None
    error = float(draws.std() * (clusters / (clusters - 1)) ** 0.5)
    reach = float(stdtrit(clusters - 1, (1.0 + level) / 2.0) + stdtrit(clusters - 1, power))
    return reach * error


def mcnemar(a_correct: Sequence[bool], b_correct: Sequence[bool]) -> McNemar:
    """McNemar's (1947) test of two accuracies on the same items: of those that one alone got right, are both's shares alike?

    The exact two-sided binomial test. The mid-p variant finds more, but may raise more false alarms than it says
    (Fagerland et al. 2013), and "better" is not to be said lightly. Items are taken as independent.

    Args:
        a_correct: whether the first is right, for each item.
        b_correct: whether the second is right, in the same order.
    """
    from scipy.special import bdtr

    gaps = [bool(a) - bool(b) for a, b in zip(a_correct, b_correct, strict=True)]
    only_a, only_b = gaps.count(1), gaps.count(-1)
    if not gaps:
        return McNemar(0, 0, 0, None, None)
    p = min(1.0, 2.0 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))
    return McNemar(len(gaps), only_a, only_b, (only_a - only_b) / len(gaps), p)


def hierarchical(values: np.ndarray, draws: np.ndarray, seed: int) -> Hierarchy:
    """Bootstrap of a mean over training seeds and test sets: what another training and another test set would give.

    Seeds and test sets are resampled apart, since every seed answered the same items (crossed, as in Bouthillier et al.
    2021, "Accounting for variance in machine learning benchmarks"). Resampling S seeds makes their spread too small by
    sqrt((S-1)/S), a third of the variance at S = 3: their weights are stretched by the inverse (Rao and Wu 1988). What is
    averaged may be any statistic, of the items or of the whole test set (BLEU). `over_seeds` makes the interval; how much a
    handful of seeds vary is hardly known, so their number and `seed_sd` belong beside it.

    Args:
        values: (S,) of each seed's model on the whole test set; a value, or its difference to another model's.
        draws: (S, R) the same on each resample of the test set, all seeds on the same one; nan where it is undefined.
        seed: of the draws of seeds.
    """
    import numpy as np

    seeds, resamples = draws.shape
    drawn = np.random.default_rng([seed, 1]).multinomial(seeds, np.full(seeds, 1.0 / seeds), size=resamples)  # (R, S)
    weights = 1.0 + (drawn - 1.0) * ((seeds / (seeds - 1)) ** 0.5 if seeds > 1 else 0.0)
    spread = float(np.std(values, ddof=1)) if seeds > 1 else None
    return Hierarchy(float(np.mean(values)), (weights * draws.T).mean(axis=1), spread)


def over_seeds(found: Hierarchy, seeds: int, clusters: int, level: float = 0.95) -> Comparison:
    """Interval and p-value of `hierarchical`'s mean: Student's, with Satterthwaite's (1946) degrees of freedom.

    The variance is a sum of two: that of seeds, known with S - 1 degrees of freedom, and the rest, with G - 1. Where seeds make
    most of it, a handful of them is all that is known. (Percentiles of the draws would take both to be known alike.)

    Args:
        found: of `hierarchical`, a mean or a difference.
        seeds: S.
        clusters: G, the independent units of which the test sets were drawn.
        level: of confidence.

    Returns:
        The comparison; without bounds of fewer than `FEWEST` clusters, or where the value is undefined or never differs.
    """
    import numpy as np
    from scipy.special import stdtr, stdtrit

    if np.isnan(found.value):
        return Comparison(None, None, None, None)
    spread = _seeds_error(found, seeds, clusters)
    if spread is None:
        return Comparison(found.value, None, None, None)
    error, degrees = spread
    if error <= _ROUNDING * max(1.0, abs(found.value)):
        return Comparison(found.value, None, None, 1.0 if abs(found.value) <= _ROUNDING else None)
    reach = float(stdtrit(degrees, (1.0 + level) / 2.0)) * error
    p = 2.0 * float(stdtr(degrees, -abs(found.value) / error))
    return Comparison(found.value, found.value - reach, found.value + reach, p)


def seeds_detectable(
    found: Hierarchy, seeds: int, clusters: int, level: float = 0.95, power: float = 0.8
) -> float | None:
    """The smallest true difference that so many trainings and so large a test set would find with this power.

    `minimum_detectable` with the error and the degrees of freedom of `over_seeds`.

    Args:
        found: of `hierarchical`, a difference.
        seeds: S.
        clusters: G, the independent units of which the test sets were drawn.
        level: of confidence.
        power: probability of finding it.
    """
    from scipy.special import stdtrit

    spread = _seeds_error(found, seeds, clusters)
    if spread is None or spread[0] <= _ROUNDING * max(1.0, abs(found.value)):
        return None
    error, degrees = spread
    return float(stdtrit(degrees, (1.0 + level) / 2.0) + stdtrit(degrees, power)) * error


def _seeds_error(found: Hierarchy, seeds: int, clusters: int) -> tuple[float, float] | None:
    """Standard error and degrees of freedom of a mean over seeds; None where too few clusters were drawn."""
    import numpy as np

    draws = found.draws[~np.isnan(found.draws)]
    if clusters < FEWEST or not len(draws):
        return None
    of_seeds = 0.0 if found.seed_sd is None else found.seed_sd**2 / seeds
    rest = max(0.0, float(draws.var()) - of_seeds)
    error = (of_seeds + rest) ** 0.5
    between = of_seeds**2 / max(seeds - 1, 1) + rest**2 / (clusters - 1)
    return error, error**4 / between if between else float(clusters - 1)


def within_family(level: float, count: int) -> float:
    """The level at which one of `count` comparisons is surely found by `holm`, whatever the others show: Bonferroni's."""
    return 1.0 - (1.0 - level) / max(count, 1)


def ratio(numerator: int, denominator: int) -> Callable[[np.ndarray], np.ndarray]:
    """The statistic `sum of one column / sum of another`: a mean over items, however large the clusters are."""

    def of(sums: np.ndarray) -> np.ndarray:
        import numpy as np

        with np.errstate(divide="ignore", invalid="ignore"):
            found: np.ndarray = sums[..., numerator] / sums[..., denominator]
        return np.where(sums[..., denominator] == 0, np.nan, found)

    return of


def relative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far `a` is from `b`, in percent of `b`; nan where that is 0."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = 100.0 * (a / b - 1.0)
    return np.where(np.asarray(b) == 0, np.nan, found)


@overload
def holm(p_values: Sequence[float]) -> list[float]: ...
@overload
def holm(p_values: Sequence[float | None]) -> list[float | None]: ...
def holm(p_values: Sequence[float | None]) -> Sequence[float | None]:
    """Holm's (1979) adjusted p-values: the family-wise error rate holds whatever the dependence.

    Args:
        p_values: of a family; None where nothing was tested, which then is not one of the m.

    Returns:
        In the order given; the k-th smallest is multiplied by m-k+1, made monotone, and cut at 1. None stays None.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(tested):
        highest = max(highest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = highest
    return adjusted


def verdict(
    found: Comparison, adjusted_p: float | None = None, level: float = 0.95, *, lower_is_better: bool = False
) -> Verdict:
    """What may be said of `a` against `b`.

    Args:
        found: the comparison, `a` minus `b`.
        adjusted_p: p after correction for the family that the comparison belongs to; None where it belongs to none.
        level: of confidence.
        lower_is_better: of the metric.
    """
    p = adjusted_p if adjusted_p is not None else found.p
    if found.low is None or found.high is None or (p is not None and p >= 1.0 - level):
        return "not shown to be better"
    if found.low <= 0 <= found.high:
        return "not shown to be better"
    return "better" if (found.high < 0) == lower_is_better else "worse"


def no_worse(found: Comparison | Interval, margin: float, *, lower_is_better: bool = False) -> Guard:
    """Non-inferiority: whether what `a` may have lost against `b` is shown to be less than a margin.

    "No worse" takes the interval's worse end inside the margin, "worse" its better end beyond it; the margin itself is not
    inside. A 95% interval makes it a one-sided test at 2.5% (Piaggio et al. 2012, the CONSORT extension).

    Args:
        found: the difference, `a` minus `b`, with its interval.
        margin: the loss that does not matter, above 0, in the difference's unit.
        lower_is_better: of the metric.
    """
    if found.low is None or found.high is None:
        return "not shown"
    least, most = (found.low, found.high) if lower_is_better else (-found.high, -found.low)  # lost
    return "no worse" if most < margin else "worse" if least > margin else "not shown"


def resolves(found: Interval, margin: float) -> bool:
    """Whether a test of this size could show a loss to be within a margin: whether half its interval is narrower.

    Where it is not, even a loss of nothing would not be called no worse.

    Args:
        found: the difference with its interval.
        margin: see `no_worse`.
    """
    return found.low is not None and found.high is not None and (found.high - found.low) / 2.0 < margin


def win_rates(values: Mapping[str, float | None], lower_is_better: bool = False) -> dict[str, float | None]:
    """Share of the other candidates that each beats on one metric; ties count half.

    As in HELM (helm/benchmark/presentation/summarize.py, `compute_aggregate_row_win_rates`). It ranks by value alone: see
    `verdict` for what is shown.

    Args:
        values: candidate → its value, None where it is undefined.
        lower_is_better: of the metric.

    Returns:
        Candidate → share, 0 to 1, among those with a value; None of one without, and of all where fewer than two have one.
    """
    known = {name: value for name, value in values.items() if value is not None}
    rates: dict[str, float | None] = dict.fromkeys(values)
    if len(known) < 2:
        return rates
    for name, value in known.items():
        beaten = sum(other > value if lower_is_better else other < value for other in known.values())
        ties = sum(other == value for other in known.values()) - 1
        rates[name] = (beaten + ties / 2) / (len(known) - 1)
    return rates


def stratified(ids: Sequence[str], groups: Sequence[Hashable], count: int, seed: int) -> list[int]:
    """A fixed random subset in which every group has its share.

    Args:
        ids: distinct names of the items; the choice depends on them and not on the order of the items.
        groups: the group of each item.
        count: how many to take; 0 or more than there are takes all.
        seed: of the choice.

    Returns:
        Indices of the chosen items, ascending.
    """
    import hashlib

    if count == 0 or count >= len(ids):
        return list(range(len(ids)))
    draw = [hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in ids]
    members: dict[Hashable, list[int]] = {}
    for index in sorted(range(len(ids)), key=lambda each: draw[each]):
        members.setdefault(groups[index], []).append(index)
    # The k-th of a group's n items stands at (k + u) / n, u random for each group: a cut anywhere takes equal shares.
    place = {}
    for group, items in members.items():
        start = int.from_bytes(hashlib.sha256(f"{seed}\0{group}".encode()).digest()[:6]) / 2**48
        place.update({index: (rank + start) / len(items) for rank, index in enumerate(items)})
    return sorted(sorted(place, key=lambda each: (place[each], draw[each]))[:count])
