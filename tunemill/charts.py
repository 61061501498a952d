"""The arithmetic of a chart: scales, ticks and paths. No drawing, no I/O; the templates in `report/` turn the numbers into SVG.

Positions are percentages of the plot's width (from the left) or height (from the top), so that a chart stretches with
the page while its text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Scale:
    """A linear map from values in [low, high] to percent; `flip` puts high values at 0 (the top of a plot)."""

    low: float
    high: float
    flip: bool = False

    def __call__(self, value: float) -> float:
        """Position in percent, cut to [0, 100] and rounded to 0.01, which is finer than a screen shows."""
        share = (value - self.low) / (self.high - self.low)
        share = min(1.0, max(0.0, 1.0 - share if self.flip else share))
        return round(100.0 * share, 2) + 0.0

    def ticks(self, most: int = 6) -> tuple[float, ...]:
        """At most `most` round values inside the scale, 1, 2 or 5 times a power of ten apart."""
        step = _round_step((self.high - self.low) / (most + 1))
        first, last = _inside(self.low, self.high, step)
        while last - first + 1 > most:
            step = _round_step(step * 1.5)
            first, last = _inside(self.low, self.high, step)
        digits = max(0, -math.floor(math.log10(step)))
        return tuple(round(each * step, digits) + 0.0 for each in range(first, last + 1))


def scale(values: Iterable[float | None], *, zero: bool = False, margin: float = 0.06, flip: bool = False) -> Scale:
    """A scale that holds all of `values` with some air at both ends.

    Args:
        values: what has to fit; None and values that are not finite are passed over.
        zero: whether 0 has to fit too.
        margin: air at each end, as a share of the range; an end at 0 that no value crosses gets none.
        flip: see `Scale`.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if zero:
        known.append(0.0)
    if not known:
        return Scale(0.0, 1.0, flip)
    low, high = min(known), max(known)
    if low == high:
        reach = abs(low) * 0.1 or 1.0
        return Scale(low - reach, high + reach, flip)
    air = (high - low) * margin
    return Scale(low - air if low else low, high + air if high else high, flip)


def line(points: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    """An SVG path through `points`, for a view box of 100 by 100."""
    return " ".join(f"{'L' if index else 'M'}{x(across):g} {y(up):g}" for index, (across, up) in enumerate(points))


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and up to `window` − 1 values before it: a smoothed curve that never looks ahead."""
    means: list[float] = []
    for end in range(1, len(values) + 1):
        part = values[max(0, end - window) : end]
        means.append(math.fsum(part) / len(part))
    return means


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points: means of equal runs of neighbours, for curves with more steps than a screen has pixels."""
    if len(points) <= most:
        return list(points)
    bounds = [round(index * len(points) / most) for index in range(most + 1)]
    runs = [points[start:end] for start, end in pairwise(bounds) if end > start]
    return [(math.fsum(x for x, _ in run) / len(run), math.fsum(y for _, y in run) / len(run)) for run in runs]


def _inside(low: float, high: float, step: float) -> tuple[int, int]:
    # A hair of tolerance: 0.3 is a multiple of 0.1, whatever binary fractions say.
    return math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))
