"""How well scores tell which of two answers people prefer: accuracy, baselines, calibration. Pure: scores of pairs in, numbers out.

A margin is the score of the preferred answer less that of the other. Its pair is told right where it is above 0, and half right where
it is 0. Pairs weigh as in training, so that every prompt counts the same, and intervals resample groups of near-duplicate prompts:
pairs of one prompt share answers.

The baselines know less than a reward model. Length knows nothing but that people found the shorter answer better (in three of four of
the default pairs); a ridge regression on TF-IDF weights knows words, of the answer alone or with the prompt. A reward model that is
no better than these has learnt no more than they show.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tunemill import calibration, distances, roc, statistics
from tunemill.statistics import Comparison, Interval

if TYPE_CHECKING:
    import numpy as np

MATCHED = 1.25
"""Two answers are of about the same length where the longer has at most so many times the words of the shorter."""
BINS = ("at most half as long", "shorter", "about as long", "longer", "at least twice as long")
"""The preferred answer beside the other one, by words; "about" is `MATCHED`."""
RIDGE = 1.0
"""The penalty of the baselines: scikit-learn's own."""
SPREAD = 20
"""Bars of a histogram."""


class Calibrated(NamedTuple):
    """Whether σ(margin) is how often the margin is right."""

    ece: Interval | None
    """Expected calibration error, ten bins of equal mass; None where all pairs are told right, or all wrong."""
    expected: float | None
    """What chance alone makes of it."""
    nll: float
    """Mean −log σ(margin), in nats; log 2 knows nothing."""


# ── a linear reward in closed form ────────────────────────────────────────────────────────────────────────────────


def fit(gaps: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, penalty: float) -> np.ndarray:
    """The linear Bradley-Terry reward: its weights minimise the pairs' mean loss plus a penalty on their length.

    By Newton's method; the loss is convex. The penalty is measured in the features' own size: features that are twice as large, with
    weights half as large, cost the same.

    Args:
        gaps: (n, d) features of the preferred answer less those of the other.
        probabilities: (n,) how likely the first is preferred.
        weights: (n,) of the pairs.
        penalty: above 0; half of it is what weights of length one cost where features have size one.

    Returns:
        (d,).
    """
    import numpy as np
    from scipy.special import expit

    size = float(np.sqrt((gaps.astype(float) ** 2).mean()))
    if size == 0.0:
        return np.zeros(gaps.shape[1])
    design, share = gaps.astype(float) / size, weights / weights.sum()
    found = np.zeros(gaps.shape[1])

    def loss(at: np.ndarray) -> float:
        margins = design @ at
        each = probabilities * np.logaddexp(0.0, -margins) + (1.0 - probabilities) * np.logaddexp(0.0, margins)
        return float(share @ each + penalty / 2.0 * at @ at)

    current = loss(found)
    for _ in range(100):
        chance = expit(design @ found)
        slope = design.T @ (share * (chance - probabilities)) + penalty * found
        curvature = (design.T * (share * chance * (1.0 - chance))) @ design + penalty * np.eye(len(found))
        step = np.linalg.solve(curvature, slope)
        while (reached := loss(found - step)) > current and np.abs(step).max() > 1e-12:
            step /= 2.0  # too far
        found -= step
        if current - reached < 1e-12:
            break
        current = reached
    result: np.ndarray = found / size
    return result


# ── baselines ─────────────────────────────────────────────────────────────────────────────────────────────────────


def deal(groups: Sequence[str], folds: int, seed: int) -> list[int]:
    """Which fold each row is held out in: whole groups, dealt at random; it depends on the groups and not on their order."""
    import random

    order = sorted(set(groups))
    random.Random(seed).shuffle(order)
    dealt = {group: number % folds for number, group in enumerate(order)}
    return [dealt[group] for group in groups]


def length_margins(chosen: Sequence[str], rejected: Sequence[str]) -> np.ndarray:
    """Words of the other answer less words of the preferred one: the shorter is said to be better, (n,)."""
    import numpy as np

    return np.array(
        [len(other.split()) - len(own.split()) for own, other in zip(chosen, rejected, strict=True)], dtype=float
    )


def tfidf_margins(
    chosen: Sequence[str], rejected: Sequence[str], weights: np.ndarray, folds: Sequence[int]
) -> np.ndarray:
    """Margins of a ridge regression on TF-IDF weights of words and pairs of words, each pair's by the other folds: (n,).

    It regresses one on the difference of the two answers' features, without an intercept: the square loss in the place of the
    logistic one.

    Args:
        chosen: the preferred texts.
        rejected: the others.
        weights: (n,) of the pairs.
        folds: which fold each pair is held out in.

    Returns:
        (n,); 0, which is no opinion, where no text that is learnt from has a word of two letters or more.
    """
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    dealt = np.array(folds)
    found = np.zeros(len(chosen))
    for fold in sorted(set(folds)):
        known, held_out = np.flatnonzero(dealt != fold), np.flatnonzero(dealt == fold)
        reader = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        learnt = sorted({text for at in known.tolist() for text in (chosen[at], rejected[at])})
        words = reader.build_tokenizer()
        if not any(words(text) for text in learnt):
            continue
        reader.fit(learnt)

        def gaps(items: np.ndarray, reader: TfidfVectorizer = reader) -> object:
            both = ([texts[at] for at in items.tolist()] for texts in (chosen, rejected))
            own, other = (reader.transform(texts) for texts in both)
            return own - other

        model = Ridge(RIDGE, fit_intercept=False, solver="cholesky")
        model.fit(gaps(known), np.ones(len(known)), sample_weight=weights[known])
        found[held_out] = model.predict(gaps(held_out))
    return found


# ── accuracy ──────────────────────────────────────────────────────────────────────────────────────────────────────


def credit(margins: np.ndarray) -> np.ndarray:
    """1 where a pair is told right, ½ where the scores are equal, 0 where it is told wrong: (n,)."""
    import numpy as np

    found: np.ndarray = np.where(margins > 0, 1.0, np.where(margins == 0, 0.5, 0.0))
    return found


def accuracies(
    margins: Mapping[str, np.ndarray],
    against: str,
    weights: np.ndarray,
    groups: Sequence[Hashable],
    resamples: int,
    seed: int,
) -> tuple[dict[str, Interval], dict[str, Comparison]]:
    """Pairwise accuracy of each system, and what one of them has more of than each other, on the same resamples of groups.

    Args:
        margins: system → (n,).
        against: the one that the others are compared with.
        weights: (n,) of the pairs.
        groups: n labels of what is resampled.
        resamples: how many.
        seed: of the resamples.

    Returns:
        System → accuracy with interval, undefined of no pairs; other system → the difference, `against` less it.
    """
    import numpy as np

    names = list(margins)
    if not len(weights):
        nothing = Interval(None, None, None), Comparison(None, None, None, None)
        return dict.fromkeys(names, nothing[0]), {name: nothing[1] for name in names if name != against}
    columns = np.stack([*(weights * credit(margins[name]) for name in names), weights], axis=1)
    sums = statistics.cluster_sums(columns, groups)
    drawn = statistics.resampled_sums(sums, resamples, seed)
    whole, parts = sums.sum(axis=0), {name: drawn[:, at] / drawn[:, -1] for at, name in enumerate(names)}
    values = {name: float(whole[at] / whole[-1]) for at, name in enumerate(names)}
    clusters = len(sums)
    return (
        {name: statistics.interval(values[name], parts[name], clusters, span=(0.0, 1.0)) for name in names},
        {
            name: statistics.compare(
                values[against] - values[name], parts[against] - parts[name], clusters, span=(-1.0, 1.0)
            )
            for name in names
            if name != against
        },
    )


def length_ratio(chosen: Sequence[str], rejected: Sequence[str]) -> np.ndarray:
    """Words of the preferred answer over words of the other one, (n,); an answer without a word counts as one."""
    import numpy as np

    return np.array(
        [max(1, len(own.split())) / max(1, len(other.split())) for own, other in zip(chosen, rejected, strict=True)]
    )


def bins(ratio: np.ndarray) -> np.ndarray:
    """Which of `BINS` each pair is in: (n,) of their places, by its `length_ratio`."""
    import numpy as np

    extent = np.maximum(ratio, 1.0 / ratio)
    level = (extent > MATCHED).astype(int) + (extent >= 2.0)
    found: np.ndarray = 2 + np.sign(ratio - 1.0).astype(int) * level
    return found


def balanced(weights: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Weights by which the longer answer is preferred as often as the shorter one, at each extent: (n,), with the same sum.

    Where people mostly prefer the short answer, a reward learns to like short answers, and a policy learns to write them (Singhal et
    al. 2024, "A Long Way to Go", of the other direction). An extent at which only one of the two is ever preferred stays as it is.

    Args:
        weights: (n,) of the pairs.
        ratio: of `length_ratio`.
    """
    import numpy as np

    places, found = bins(ratio), weights.astype(float).copy()
    for low in range(len(BINS) // 2):
        sides = [np.flatnonzero(places == place) for place in (low, len(BINS) - 1 - low)]
        sums = [float(found[side].sum()) for side in sides]
        if min(sums) > 0:
            for side, own in zip(sides, sums, strict=True):
                found[side] *= sum(sums) / 2.0 / own
    return found


# ── calibration ───────────────────────────────────────────────────────────────────────────────────────────────────


def calibrated(margins: np.ndarray, groups: Sequence[Hashable], resamples: int, seed: int) -> Calibrated:
    """Calibration of σ(margin): the model is σ(|margin|) sure of the answer that it scores higher.

    Args:
        margins: (n,).
        groups: n labels of what is resampled.
        resamples: how many.
        seed: of the resamples.
    """
    import numpy as np
    from scipy.special import expit

    sure, right = expit(np.abs(margins)), margins > 0
    nll = float(np.logaddexp(0.0, -margins).mean())
    if right.all() or not right.any():
        return Calibrated(None, None, nll)
    counts = roc.drawn(groups, resamples, seed).astype(int)
    draws = calibration.resampled_ece(sure, right, counts, calibration.BINS)
    chance = calibration.chance(sure)
    value = calibration.ece(sure, right, calibration.BINS)
    return Calibrated(distances.interval(value, draws, chance, len(set(groups))), calibration.expected(sure), nll)


class Bar(NamedTuple):
    """One bin of a reliability diagram."""

    confidence: float
    """Mean σ(|margin|)."""
    accuracy: float
    pairs: int


def reliability(margins: np.ndarray, bins: int = calibration.BINS) -> list[Bar]:
    """Bins of equal mass, the least sure first; fewer pairs than bins make a bin of each."""
    import numpy as np
    from scipy.special import expit

    sure = expit(np.abs(margins))
    order = np.argsort(sure, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [Bar(float(sure[part].mean()), float(credit(margins[part]).mean()), len(part)) for part in parts]


class Column(NamedTuple):
    """One bar of a histogram."""

    low: float
    high: float
    chosen: int
    rejected: int


def histogram(chosen: np.ndarray, rejected: np.ndarray) -> list[Column]:
    """How rewards of the preferred answers and of the others lie; equally wide bars from the lowest to the highest.

    Args:
        chosen: (n,).
        rejected: (n,).
    """
    import numpy as np

    both = np.concatenate([chosen, rejected])
    edges = np.histogram_bin_edges(both, SPREAD)
    heights = [np.histogram(each, edges)[0] for each in (chosen, rejected)]
    return [
        Column(float(edges[at]), float(edges[at + 1]), int(heights[0][at]), int(heights[1][at])) for at in range(SPREAD)
    ]
