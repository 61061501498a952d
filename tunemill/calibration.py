"""Calibration: whether a model that is 70% sure is right 70% of the time. Pure: confidences and right answers in, numbers out.

As HELM computes it (Liang et al. 2022, section 4.4; helm/benchmark/metrics/basic_metrics.py, `compute_calibration_metrics`, over
Ananya Kumar's package uncertainty-calibration): expected calibration error (ECE) over ten bins of equal mass and over one bin,
both again after Platt scaling (Platt 1999), and selective accuracy (El-Yaniv and Wiener 2010). Confidence is the largest
softmax of the options' log-probabilities per token, as in HELM's `BasicReferenceMetric`. Deviations:

- Platt scaling is cross-fitted: an item's probability comes from a scaler fitted to other items. HELM fits and measures on
  the same ones, which looks better than it is. Folds go by a hash of the item's id, so they never change.
- Where all answers are right, or all wrong, the figures are undefined; HELM calls the error after scaling 0.
- Items of equal confidence count alike in selective accuracy; in HELM, what stands first among them is left to the sort.
- An item whose log-probabilities are no numbers has no confidence and is left out; HELM stops.
- HELM's joint multiple choice takes the probability of the generated letter; here every option is scored.

ECE is never negative, so chance alone makes it positive, the more so the fewer the items: see `expected` (0.10 at 122 items).
Its intervals and differences are those of `tunemill.distances`, which reckon with that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tunemill import distances

if TYPE_CHECKING:
    import numpy as np

BINS = 10
FOLDS = 5
"""Parts that the cross-fit splits the items into."""
COVERAGE = 10
"""Selective accuracy is that of the most confident of so many items each."""

_CHUNK = 4_000_000
"""Item counts worked on at a time: bounds memory, whatever the size of the test set."""


class Calibration(NamedTuple):
    """How well confidence tells right from wrong; None is undefined, and `reason` says why."""

    ece_10: float | None
    """Expected calibration error, ten bins of equal mass, 0 to 1."""
    ece_1: float | None
    """One bin: mean confidence against accuracy."""
    platt_ece_10: float | None
    """Ten bins, after Platt scaling."""
    platt_ece_1: float | None
    """One bin, after Platt scaling."""
    selective_accuracy: float | None
    """Accuracy on the most confident tenth."""
    coverage_accuracy_area: float | None
    """Mean accuracy over all coverages."""
    scaled: np.ndarray | None
    """(n,) confidences after Platt scaling."""
    reason: str | None


FIGURES = Calibration._fields[:6]
"""What is a number of it."""


def confidence(logprobs: Sequence[float], tokens: Sequence[int]) -> float | None:
    """How sure a model is of the option that it prefers.

    Args:
        logprobs: of each option, summed over its tokens, in nats.
        tokens: of each option, at least one.

    Returns:
        The largest softmax of the log-probabilities per token; None where one of them is no finite number, or there are
        fewer than two options to choose from.

    Raises:
        ValueError: there are more of the one than of the other, or an option has no token.
    """
    if len(logprobs) != len(tokens) or any(count < 1 for count in tokens):
        raise ValueError(f"{len(logprobs)} log-probabilities of options that have {list(tokens)} tokens")
    if len(logprobs) < 2 or not all(math.isfinite(each) for each in logprobs):
        return None
    means = [logprob / count for logprob, count in zip(logprobs, tokens, strict=True)]
    return 1.0 / math.fsum(math.exp(each - max(means)) for each in means)


def measure(ids: Sequence[str], confidences: np.ndarray, correct: np.ndarray) -> Calibration:
    """All figures of one model.

    Args:
        ids: names of the n items; who is scaled by whom depends on them.
        confidences: (n,) of `confidence`, 0 to 1.
        correct: (n,), whether the preferred option is the right one.

    Raises:
        ValueError: a confidence is no probability.
    """
    import numpy as np

    if len(confidences) and not (confidences.min() >= 0.0 and confidences.max() <= 1.0):
        raise ValueError(f"confidences from {confidences.min()} to {confidences.max()}, which are no probabilities")
    if not len(ids) or correct.all() or not correct.any():
        reason = (
            "no item has a confidence" if not len(ids) else f"all answers are {'right' if correct.all() else 'wrong'}"
        )
        return Calibration(None, None, None, None, None, None, None, reason)
    scaled = platt(ids, confidences, correct)
    selected, area = (float(each[0]) for each in resampled_selective(confidences, correct, np.ones((1, len(ids)), int)))
    return Calibration(
        ece(confidences, correct, BINS),
        ece(confidences, correct, 1),
        None if scaled is None else ece(scaled, correct, BINS),
        None if scaled is None else ece(scaled, correct, 1),
        selected,
        area,
        scaled,
        "too few answers of one kind to fit Platt scaling on parts of them" if scaled is None else None,
    )


def ece(confidences: np.ndarray, correct: np.ndarray, bins: int) -> float:
    """Expected calibration error: the sum over bins of n_b/N · |mean confidence − accuracy|.

    Bins are of equal mass: the sorted items cut into parts whose sizes differ by one at most. Items of equal confidence
    are never parted: they go to the lower bin. Fewer items than bins make a bin of each.

    Args:
        confidences: (n,), 0 to 1.
        correct: (n,), whether each is right.
        bins: how many.
    """
    import numpy as np

    return float(resampled_ece(confidences, correct, np.ones((1, len(confidences)), dtype=int), bins)[0])


def resampled_ece(confidences: np.ndarray, correct: np.ndarray, counts: np.ndarray, bins: int) -> np.ndarray:
    """Expected calibration error of each bootstrap resample, its bins cut anew.

    Args:
        confidences: (n,), 0 to 1.
        correct: (n,), whether each is right.
        counts: (R, n) whole numbers, how often each item is in each resample.
        bins: how many; see `ece`.

    Returns:
        (R,); nan of a resample without an item.
    """
    import numpy as np

    _, index = np.unique(confidences, return_inverse=True)
    starts, order = _levels(index)
    gaps = (np.asarray(confidences, dtype=float) - correct)[order]
    found = np.empty(len(counts))
    for part in _parts(*counts.shape):
        drawn = counts[part][:, order]
        weights = np.add.reduceat(drawn, starts, axis=1)  # (rows, levels)
        found[part] = _binned(weights, np.add.reduceat(drawn * gaps, starts, axis=1), bins)
    return found


def _binned(weights: np.ndarray, gaps: np.ndarray, bins: int) -> np.ndarray:
    """ECE from what stands at each level of confidence, levels ascending.

    Args:
        weights: (R, L) items there.
        gaps: (R, L) sums of confidence − correct there.
        bins: how many.
    """
    import numpy as np

    rows, levels = weights.shape
    reached, sums = weights.cumsum(axis=1), gaps.cumsum(axis=1)
    items = reached[:, -1:]  # (R, 1)
    part = np.arange(1, bins)
    ranks = part * (items // bins) + np.minimum(part, items % bins)  # the last item of every bin but the last one
    # One search for all rows: each row's running counts lie in a range of their own.
    shift = np.arange(rows)[:, None] * (int(items.max()) + 1)
    ends = np.searchsorted((reached + shift).ravel(), (ranks + shift).ravel()).reshape(ranks.shape)
    ends = np.append(ends - np.arange(rows)[:, None] * levels, np.full((rows, 1), levels - 1), axis=1)
    errors = np.abs(np.diff(np.take_along_axis(sums, ends, axis=1), axis=1, prepend=0.0)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = errors / items[:, 0]
    return found


def resampled_selective(
    confidences: np.ndarray, correct: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Selective accuracy of each bootstrap resample.

    Of the k most confident items, those of equal confidence at the border count in parts: what is expected where a
    random choice among them is made.

    Args:
        confidences: (n,), 0 to 1.
        correct: (n,), whether each is right.
        counts: (R, n) whole numbers, how often each item is in each resample.

    Returns:
        (R,) accuracy on the most confident tenth (as in HELM one item more than a tenth rounded down), and (R,) the mean
        over k of the accuracy on the k most confident: the area under the curve of accuracy by coverage. nan of a resample without
        an item.
    """
    import numpy as np

    _, index = np.unique(-np.asarray(confidences, dtype=float), return_inverse=True)  # the most confident first
    starts, order = _levels(index)
    right = np.asarray(correct, dtype=float)[order]
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, max(1, int(counts.sum(axis=1).max())) + 1))])
    tops, areas = np.empty(len(counts)), np.empty(len(counts))
    for part in _parts(*counts.shape):
        drawn = counts[part][:, order]
        weights = np.add.reduceat(drawn, starts, axis=1)  # (rows, levels)
        hits = np.add.reduceat(drawn * right, starts, axis=1)
        until, above = weights.cumsum(axis=1), hits.cumsum(axis=1) - hits
        before, items = until - weights, until[:, -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(weights == 0, 0.0, hits / weights)
            chosen = items // COVERAGE + 1
            taken = np.clip(chosen[:, None] - before, 0, weights)
            tops[part] = np.where(items == 0, np.nan, (taken * rate).sum(axis=1) / chosen)
            # Within a level the accuracy of the k first is rate + (above - before · rate) / k: a harmonic sum.
            inside = weights * rate + (above - before * rate) * (harmonic[until] - harmonic[before])
            areas[part] = inside.sum(axis=1) / items
    return tops, areas


def platt(ids: Sequence[str], confidences: np.ndarray, correct: np.ndarray) -> np.ndarray | None:
    """Confidences after Platt scaling: a logistic regression of `correct` on the logit of the confidence.

    Each fold is scaled by what was fitted to the others. For an interval resample items with these probabilities as they
    are: fitted to a resample, a scaler would have seen the items that it is measured on.

    Args:
        ids: names of the n items; the fold of each is a hash of it.
        confidences: (n,), 0 to 1.
        correct: (n,), whether each is right.

    Returns:
        (n,) probabilities; None where the items outside some fold are all right or all wrong.
    """
    import numpy as np
    from scipy.special import expit

    logits = _logits(confidences)
    folds = np.array([fold(name) for name in ids])
    scaled = np.empty(len(ids))
    for number in np.unique(folds):
        inside = folds == number
        known = correct[~inside]
        if known.all() or not known.any():
            return None
        slope, intercept = platt_fit(logits[~inside], known)
        scaled[inside] = expit(slope * logits[inside] + intercept)
    return scaled


def fold(name: str) -> int:
    """Which part of the cross-fit the item of this name is in, 0 to `FOLDS` − 1."""
    import hashlib

    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % FOLDS


def platt_fit(logits: np.ndarray, correct: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the logistic regression, by Newton's method.

    Without regularisation to speak of, as HELM has it (C = 1e10); Platt's (1999) smoothed targets are not used there either.

    Args:
        logits: (n,), finite.
        correct: (n,), some right and some wrong.
    """
    import numpy as np
    from scipy.special import expit

    middle, width = float(logits.mean()), float(logits.std()) or 1.0
    design = np.stack([(logits - middle) / width, np.ones(len(logits))], axis=1)  # (n, 2)
    sign = np.where(correct, 1.0, -1.0)

    def loss(at: np.ndarray) -> float:
        return float(np.logaddexp(0.0, -sign * (design @ at)).sum())

    weights, current = np.zeros(2), loss(np.zeros(2))
    for _ in range(100):
        chance = expit(design @ weights)
        slopes = design.T @ (chance - correct)
        curvature = design.T @ (design * (chance * (1.0 - chance))[:, None]) + 1e-10 * np.eye(2)
        step = np.linalg.solve(curvature, slopes)
        while (reached := loss(weights - step)) > current and np.abs(step).max() > 1e-12:
            step /= 2.0  # too far: the loss is convex, so some shorter step lowers it
        weights -= step
        # Where confidence parts right from wrong there is no best slope; any steep one gives the same probabilities.
        if np.abs(step).max() < 1e-10 or reached < 1e-10:
            break
        current = reached
    return float(weights[0]) / width, float(weights[1] - weights[0] * middle / width)


def chance(confidences: Sequence[float] | np.ndarray, bins: int = BINS) -> np.ndarray:
    """What ECE a perfectly calibrated model with such confidences shows on one test set and another.

    Simulated, with a fixed seed: each item is right with the probability that the model says.

    Args:
        confidences: of the model, 0 to 1.
        bins: how many; see `ece`.

    Returns:
        (S,), S of `distances.SIMULATIONS`.

    Raises:
        ValueError: there is no confidence.
    """
    import numpy as np

    if not len(confidences):
        raise ValueError("no confidences: there is nothing to simulate")
    levels, held = np.unique(np.asarray(confidences, dtype=float), return_counts=True)
    rng = np.random.default_rng(0)
    found = np.empty(distances.SIMULATIONS)
    for part in _parts(len(found), len(levels)):
        drawn = np.broadcast_to(held, (len(found[part]), len(levels)))
        found[part] = _binned(drawn, drawn * levels - rng.binomial(drawn, levels), bins)
    return found


def expected(confidences: Sequence[float] | np.ndarray, bins: int = BINS) -> float:
    """The mean of `chance`: the ECE that chance alone accounts for, to stand beside the measured one."""
    return float(chance(confidences, bins).mean())


def _logits(confidences: np.ndarray) -> np.ndarray:
    import numpy as np

    inner = np.clip(np.asarray(confidences, dtype=float), 1e-12, 1.0 - 1e-12)
    found: np.ndarray = np.log(inner / (1.0 - inner))
    return found


def _levels(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each level begins among the sorted items, and the order that sorts them."""
    import numpy as np

    order = np.argsort(index, kind="stable")
    return np.flatnonzero(np.diff(index[order], prepend=-1)), order


def _parts(rows: int, columns: int) -> list[slice]:
    step = max(1, _CHUNK // max(1, columns))
    return [slice(first, first + step) for first in range(0, rows, step)]
