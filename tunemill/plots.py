"""Rows of marks with their intervals over one axis: what the report draws as strips beside names and numbers.

Pure: estimates in, positions in percent of the plot's width out (`charts.py` has the arithmetic).
"""

from __future__ import annotations

from dataclasses import dataclass

from tunemill import aligned, charts, constitutional
from tunemill.findings import Estimate, Json, difference, estimate, metric
from tunemill.material import Material, baselines, reference
from tunemill.wording import tick


@dataclass(frozen=True)
class Mark:
    """A point with its interval, in percent of the plot's width."""

    name: str
    kind: str
    """For the values plot candidate, leader or baseline; for the differences a judgement."""
    shown: Estimate
    at: float | None
    low: float | None
    high: float | None
    against: str = ""
    detectable: float | None = None
    """Smaller differences would usually be missed."""


@dataclass(frozen=True)
class Plot:
    """Rows of marks over one axis."""

    metric: str
    rows: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]
    zero: float | None = None
    """Where the line is that the marks are held against: no difference, chance, or a threshold."""


def values_plot(material: Material, name: str, leader: str) -> Plot:
    """Every candidate's and baseline's value with its interval, best first."""
    scores = material.comparison.get("candidates", {})
    found = {each: estimate(scores.get(each, {}).get(name)) for each in (*material.candidates, *baselines(material))}
    axis = charts.scale(end for each in found.values() for end in (each.value, each.low, each.high))

    def kind(each: str) -> str:
        return "leader" if each == leader else "candidate" if each in material.candidates else "baseline"

    sign = 1 if metric(name).lower_is_better else -1
    names = sorted(found, key=lambda each: (found[each].value is None, sign * (found[each].value or 0.0), each))
    return Plot(name, tuple(mark(each, kind(each), found[each], axis) for each in names), ticks(axis, 4))


def differences_plot(material: Material, name: str) -> Plot:
    """A forest plot: every candidate against the reference and against each baseline, over a zero line."""
    base = reference(material)
    gaps = [
        difference(material.comparison, candidate, other, name)
        for other in (base, *baselines(material))
        for candidate in material.candidates
        if candidate != other
    ]
    gaps = [gap for gap in gaps if gap.estimate.value is not None or gap.b == base]
    axis = charts.scale(
        (end for gap in gaps for end in (gap.estimate.value, gap.estimate.low, gap.estimate.high)), zero=True
    )
    rows = tuple(mark(gap.a, gap.judgement, gap.estimate, axis, gap.b, gap.detectable) for gap in gaps)
    return Plot(name, rows, ticks(axis, 5), axis(0.0))


def accuracies_plot(reward: Json) -> Plot:
    """Share of pairs that the reward model and each baseline tell right, in percent; the zero line is chance."""
    found = aligned.accuracies(reward)
    ends = [end for each in found.values() for end in (each.value, each.low, each.high)]
    axis = charts.scale([*ends, 50.0])
    rows = tuple(
        mark(aligned.SYSTEMS[name], "baseline" if name in ("length", "response", "text") else "leader", each, axis)
        for name, each in found.items()
    )
    return Plot("accuracy", rows, ticks(axis, 4), axis(50.0))


def learnt_plot(told: constitutional.Labelled) -> Plot:
    """Share of pairs that a judge, what learnt its labels, and length tell right, in percent; the zero line is chance."""
    found = constitutional.learnt(told)
    axis = charts.scale([50.0, *(end for *_, each in found for end in (each.value, each.low, each.high))])
    rows = tuple(mark(name, "baseline" if plain else "leader", each, axis) for name, plain, each in found)
    return Plot("accuracy", rows, ticks(axis, 4), axis(50.0))


def threshold_plot(shown: Estimate, threshold: float, kind: str) -> Plot:
    """One interval beside the threshold that it is held against."""
    axis = charts.scale([threshold, shown.value, shown.low, shown.high], margin=0.12)
    return Plot("", (mark("", kind, shown, axis),), (), axis(threshold))


def mark(
    name: str, kind: str, shown: Estimate, axis: charts.Scale, against: str = "", detectable: float | None = None
) -> Mark:
    """An estimate where the axis has it."""
    at, low, high = (None if each is None else axis(each) for each in (shown.value, shown.low, shown.high))
    return Mark(name, kind, shown, at, low, high, against, detectable)


def ticks(axis: charts.Scale, most: int) -> tuple[tuple[float, str], ...]:
    """Positions and words of an axis' numbers."""
    return tuple((axis(value), tick(value)) for value in axis.ticks(most))
