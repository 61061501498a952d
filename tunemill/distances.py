"""How sure a distance from an ideal is: an error of calibration, a distance from equal shares. Pure: values and draws in.

Such a figure is never negative, so chance alone makes it positive, the more so the fewer items it is made of, and resampling
adds chance to chance. Percentile intervals of `statistics` then leave the truth out where the truth is 0, and of two ideal models
the one that chance adds more to seems to be worse. So here stands beside the draws what chance shows: the same figure of an
ideal model, on one sample and another. Who measures a distance simulates it (`calibration.chance`, `bias.chance`).

Left is what chance adds where both models are far beyond it: of two that are equally far, the one with fewer items still shows a
little more. Of writers with stereotypes of one strength, a coin for each pronoun, 1.2 a text against 4, "worse" was said of the
first in 11% of trials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunemill import statistics
from tunemill.statistics import Comparison, Interval

if TYPE_CHECKING:
    import numpy as np

SIMULATIONS = 2000
"""Samples to simulate chance on: the standard error of its mean is then below two hundredths of it."""

_ROUNDING = 1e-9
"""The same sum in another order differs by less. Where chance can show few values, or one, equal ones must count as equal."""


def interval(
    value: float,
    draws: np.ndarray,
    chance: np.ndarray,
    clusters: int,
    level: float = 0.95,
    span: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Interval of a distance.

    The draws lie above the value as the value lies above the truth, and for an ideal model the percentile interval never
    covers 0. So the interval here is the hull of the percentile interval and of its reflection about the value (Davison and
    Hinkley 1997, section 5.2), and it begins at 0 where an ideal model would show as much.

    Args:
        value: the distance of the whole sample.
        draws: (R,) the distance on each resample.
        chance: (S,) what an ideal model shows.
        clusters: how many independent units were resampled.
        level: of confidence.
        span: 0 and the largest distance there is.
    """
    import numpy as np

    found = statistics.interval(value, draws, clusters, level, span)
    if found.low is None or found.high is None:
        return found
    low, high = min(found.low, 2.0 * value - found.high), max(found.high, 2.0 * value - found.low)
    ideal = value <= np.quantile(chance, level) + _ROUNDING
    return Interval(value, span[0] if ideal else max(span[0], low), min(span[1], high))


def compare(
    values: tuple[float, float],
    draws: np.ndarray,
    chances: tuple[np.ndarray, np.ndarray],
    clusters: int,
    level: float = 0.95,
) -> Comparison:
    """Interval and p-value of the difference of two models' distances, on the same items.

    A model that is nearly always sure has less of chance in its error of calibration than one that is not, and one that writes
    much has less of it in its distance from equal shares, though both are ideal: the percentile interval calls that a
    difference. So here zero is outside the interval only where it is outside the percentile interval and outside its reflection
    about the value; and, where either model's own distance is what an ideal one would show, where two ideal ones would not
    differ as much. p is the largest of these.

    Args:
        values: the two models' distances on the whole sample.
        draws: (R,) the difference on each resample, both models on the same one.
        chances: (S,) what an ideal model shows in the first one's place, and in the second one's; see `_gaps`.
        clusters: how many independent units were resampled.
        level: of confidence.
    """
    value = values[0] - values[1]
    plain = statistics.compare(value, draws, clusters, level, (-1.0, 1.0))
    turned = statistics.compare(value, 2.0 * value - draws, clusters, level, (-1.0, 1.0))
    if plain.low is None or plain.high is None or turned.low is None or turned.high is None:
        return plain
    low, high = min(plain.low, turned.low), max(plain.high, turned.high)
    p = 0.0
    if _within_chance(values, chances, level):
        gaps = _gaps(chances)
        as_much = min(int((gaps >= value - _ROUNDING).sum()), int((gaps <= value + _ROUNDING).sum()))
        p = min(1.0, 2.0 * (1 + as_much) / (1 + len(gaps)))
        if p >= 1.0 - level:
            low, high = min(low, 0.0), max(high, 0.0)
    # Where the two intervals lie on different sides of zero, nothing is shown.
    p = 1.0 if plain.low > 0 > turned.high or turned.low > 0 > plain.high else max(p, plain.p or 0.0, turned.p or 0.0)
    return Comparison(value, low, high, p)


def detectable(
    values: tuple[float, float],
    draws: np.ndarray,
    chances: tuple[np.ndarray, np.ndarray],
    clusters: int,
    level: float = 0.95,
) -> float | None:
    """The smallest true difference that `compare` would usually find: see `statistics.minimum_detectable`.

    It has the reflected interval's distance to go too, which is what resampling adds to the difference; and where chance may
    account for either model's distance, the difference has to exceed what chance makes of two.
    """
    import numpy as np

    plain = statistics.minimum_detectable(draws, clusters, level)
    if plain is None:
        return None
    added = abs(float(np.nanmean(draws)) - (values[0] - values[1]))
    if _within_chance(values, chances, level):
        within = plain - (statistics.minimum_detectable(draws, clusters, level, power=0.5) or 0.0)  # t_power · SE
        return max(plain + added, float(np.quantile(np.abs(_gaps(chances)), level)) + within)
    return plain + added


def _within_chance(values: tuple[float, float], chances: tuple[np.ndarray, np.ndarray], level: float) -> bool:
    import numpy as np

    return any(value <= np.quantile(own, level) + _ROUNDING for value, own in zip(values, chances, strict=True))


def _gaps(chances: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """How far two ideal models are apart, (S,)."""
    import numpy as np

    # Each was simulated with the same seed, so the two at one place may be one draw: only neighbours are independent.
    found: np.ndarray = chances[0] - np.roll(chances[1], 1)
    return found
