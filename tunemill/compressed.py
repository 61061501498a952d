"""What compress.json says of smaller variants of a model, as the report shows it: a table and two Pareto plots.

A variant lies on the frontier where none is at once smaller (or faster) and better; compress says which do. Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunemill import charts, plots
from tunemill.findings import Estimate, Json, judge, metric
from tunemill.wording import number, signed, size, visible

STYLES = 6
"""Line styles of the style sheet; more variants than that begin again, and are told apart by number."""
MADE_BY = {
    "parent": "the parent",
    "distill": "distilled",
    "quantize": "quantised",
    "prune": "pruned",
}
"""How a variant was made, in words."""


@dataclass(frozen=True)
class Variant:
    """One variant, measured beside its parent."""

    number: int
    """Of its coin in the plots."""
    name: str
    made_by: str
    method: str
    runtime: str
    is_parent: bool
    is_advised: bool
    bytes: float
    bytes_ratio: float | None
    parameters: int | None
    sparsity: float | None
    """Share of zeros among the linear layers' weights."""
    sparsity_all: float | None
    """Share of zeros among all weights."""
    memory: float | None
    memory_ratio: float | None
    prefill: Estimate
    prefill_ratio: Estimate
    decode: Estimate
    decode_ratio: Estimate
    perplexity: Estimate
    perplexity_ratio: Estimate
    quality: Estimate
    difference: Estimate
    """Quality minus the parent's, in points."""
    share: Estimate
    """Quality in percent of the parent's."""
    judgement: Literal["better", "worse", "unproven"]
    frontier: Mapping[str, bool]
    """Axis (bytes, decode) → whether it lies on that frontier."""

    @property
    def beats(self) -> tuple[str, ...]:
        """Axes on whose frontier it lies."""
        return tuple(axis for axis, lies in self.frontier.items() if lies)

    @property
    def style(self) -> int:
        """Its line style."""
        return (self.number - 1) % STYLES


@dataclass(frozen=True)
class Coin:
    """A variant's mark: percent from the left and from the top, with the ends of its intervals."""

    variant: Variant
    x: float
    y: float
    across: tuple[float, float] | None
    up: tuple[float, float] | None
    said: str


@dataclass(frozen=True)
class Pareto:
    """Quality against what it takes."""

    title: str
    across: str
    """What the horizontal axis is."""
    better: str
    """Which way is better, in words."""
    coins: tuple[Coin, ...]
    frontier: str
    """SVG path in a view box of 100 by 100; empty where no two variants lie on it."""
    tolerated: float | None
    """Where the line of the tolerated loss is, in percent from the top."""
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    summary: str


@dataclass(frozen=True)
class Compressed:
    """Everything about smaller variants."""

    parent: str
    metric: str
    tolerance: float
    variants: tuple[Variant, ...]
    plots: tuple[Pareto, ...]
    advised: str
    reason: str
    measured_on: str


def compressed(told: Json | None) -> Compressed | None:
    """compress.json as it is shown; None where the stage did not run."""
    if not told:
        return None
    advice = told.get("advice") or {}
    parent = str(told["parent"])
    # The parent first, then the largest first: from left to right as in the plot of sizes, read from its right end.
    order = sorted(told["variants"].items(), key=lambda each: (each[0] != parent, -each[1]["bytes"], each[0]))
    variants = tuple(
        _variant(at, name, entry, parent, str(advice.get("variant"))) for at, (name, entry) in enumerate(order, start=1)
    )
    machine = ", ".join(str(told[key]) for key in ("device", "dtype") if told.get(key))
    threads = f", {told['threads']} threads" if told.get("threads") else ""
    return Compressed(
        parent=visible(parent),
        metric=metric(told["metric"]).label,
        tolerance=told["tolerance"],
        variants=variants,
        plots=tuple(
            _pareto(variants, told, *axis)
            for axis in (
                ("bytes", "Quality against size", "size on disk, MiB", "further left is smaller"),
                ("decode", "Quality against speed", "tokens written per second", "further right is faster"),
            )
        ),
        advised=visible(str(advice.get("variant") or "")),
        reason=visible(str(advice.get("reason") or "")),
        measured_on=visible(f"{number(told.get('items'), 0)} validation items, {number(told.get('rounds'), 0)} rounds")
        + (visible(f" ({machine}{threads})") if machine else ""),
    )


def _variant(at: int, name: str, entry: Json, parent: str, advised: str) -> Variant:
    difference = _estimate(entry.get("difference"), "diff")
    return Variant(
        number=at,
        name=visible(name),
        made_by=MADE_BY.get(entry["made_by"], visible(str(entry["made_by"]))),
        method=visible(str(entry.get("method") or "")),
        runtime=visible(str(entry.get("runtime") or "")),
        is_parent=name == parent,
        is_advised=name == advised,
        bytes=entry["bytes"],
        bytes_ratio=entry.get("bytes_ratio"),
        parameters=entry.get("parameters"),
        sparsity=entry.get("sparsity"),
        sparsity_all=entry.get("sparsity_all"),
        memory=entry.get("memory_bytes"),
        memory_ratio=entry.get("memory_ratio"),
        prefill=_estimate(entry.get("prefill_tokens_per_second")),
        prefill_ratio=_estimate(entry.get("prefill_ratio")),
        decode=_estimate(entry.get("decode_tokens_per_second")),
        decode_ratio=_estimate(entry.get("decode_ratio")),
        perplexity=_estimate(entry.get("perplexity")),
        perplexity_ratio=_estimate(entry.get("perplexity_ratio")),
        quality=_estimate(entry.get("quality")),
        difference=difference,
        share=_estimate(entry.get("share"), factor=100.0),
        judgement=judge(difference),
        frontier=dict(entry.get("on_frontier") or {}),
    )


def _estimate(entry: Any, key: str = "value", factor: float = 1.0) -> Estimate:
    told: Json = entry or {}
    value, low, high = (None if told.get(each) is None else factor * told[each] for each in (key, "ci_low", "ci_high"))
    return Estimate(value, low, high, p=told.get("p"), reason="" if value is not None else "not measured")


# ── the plots ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _across(axis: str, variant: Variant) -> Estimate:
    return Estimate(variant.bytes / 2**20) if axis == "bytes" else variant.decode


def _pareto(variants: tuple[Variant, ...], told: Json, axis: str, title: str, across: str, better: str) -> Pareto:
    shown = [each for each in variants if each.quality.value is not None and _across(axis, each).value is not None]
    parent = next((each.quality.value for each in variants if each.is_parent), None)
    least = None if parent is None else parent * (1 - told["tolerance"])
    x = charts.scale(
        (
            end
            for each in shown
            for end in (_across(axis, each).value, _across(axis, each).low, _across(axis, each).high)
        ),
        zero=True,
    )
    ends = [end for each in shown for end in (each.quality.value, each.quality.low, each.quality.high)]
    y = charts.scale([*ends, least], flip=True)
    coins = tuple(
        Coin(each, x(found.value or 0.0), y(each.quality.value or 0.0), _ends(found, x), _ends(each.quality, y), said)
        for each in shown
        for found in (_across(axis, each),)
        for said in (_said(each, axis, told),)
    )
    best = sorted((each for each in coins if each.variant.frontier.get(axis)), key=lambda each: (each.x, -each.y))
    return Pareto(
        title=title,
        across=across,
        better=better,
        coins=coins,
        frontier=_stairs([(each.x, each.y) for each in best], rises=axis == "bytes"),
        tolerated=None if least is None or not shown else y(least),
        x_ticks=plots.ticks(x, 5),
        y_ticks=plots.ticks(y, 5),
        summary=f"{title}. On the frontier: {', '.join(each.variant.name for each in best) or 'nothing'}",
    )


def _ends(found: Estimate, scale: charts.Scale) -> tuple[float, float] | None:
    return None if found.low is None or found.high is None else (scale(found.low), scale(found.high))


def _stairs(points: list[tuple[float, float]], *, rises: bool) -> str:
    # Between two of its points a frontier promises what the lesser of them has, never a mixture: quality rises with size
    # only where the larger variant is reached, and falls with speed as soon as the slower one is left.
    if len(points) < 2:
        return ""
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for across, up in points[1:]:
        path += f" H{across:g} V{up:g}" if rises else f" V{up:g} H{across:g}"
    return path


def _said(variant: Variant, axis: str, told: Json) -> str:
    quality = f"{metric(told['metric']).label} {number(variant.quality.value)}"
    if variant.quality.low is not None:
        quality += f" ({number(variant.quality.low)} to {number(variant.quality.high)})"
    if not variant.is_parent and variant.difference.value is not None:
        quality += f", {signed(variant.difference.value)} to {told['parent']}"
    if axis == "bytes":
        return visible(f"{variant.name}: {size(variant.bytes)}, {quality}")
    speed = f"{number(variant.decode.value)} tokens/s"
    if variant.decode.low is not None:
        speed += f" ({number(variant.decode.low)} to {number(variant.decode.high)})"
    return visible(f"{variant.name}: {speed}, {quality}")
