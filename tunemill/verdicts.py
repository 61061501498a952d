"""Who leads, what the scope's criteria come to, and whether a candidate was promoted. Pure, no I/O.

Where stage `promote` has decided (`artifacts/promote/decision.json`), its outcomes are taken over as they are; without
it the report holds the comparison against the scope's criteria itself, and nothing counts as promoted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tunemill import categories, plots, promotion
from tunemill.findings import MEASURES, Difference, Estimate, Json, difference, estimate, metric
from tunemill.material import Material, baselines, reference
from tunemill.wording import brief, number, signed, size, visible

Outcome = Literal["met", "missed", "undefined"]
IN_POINTS = ("points", "%")
"""Units of which one digit after the point is enough."""


@dataclass(frozen=True)
class Verdict:
    """What the run has shown on the primary metric."""

    metric: str
    reference: str
    challenger: str | None
    """Whom the page is about: the candidate that promote decided on, else the best besides the reference; None where there is only
    the reference, or it was decided on itself."""
    leader: str
    """Who the baselines are compared with: the challenger if there is one, else the reference."""
    is_picked: bool
    """Whether the leader was picked on the items that it is scored on."""
    difference: Difference | None
    baselines: tuple[Difference, ...]
    items: int | None
    groups: int | None


def verdict(material: Material) -> Verdict:
    """Who leads on the primary metric, and whether that is shown."""
    name, base = material.scope["primary_metric"], reference(material)
    scores = material.comparison.get("candidates", {})

    def value(candidate: str) -> float:
        found = estimate(scores.get(candidate, {}).get(name)).value
        return float("-inf") if found is None else -found if metric(name).lower_is_better else found

    decided = (material.promotion or {}).get("candidate")
    named = decided if decided in material.candidates else None
    others = [each for each in material.candidates if each != base]
    challenger = max(others, key=value) if others else None
    if named is not None:
        challenger = named if named != base else None
    leader = challenger or base
    items = material.comparison.get("items")
    groups = material.comparison.get("groups")
    if groups is not None and groups == items:
        groups = None  # without groups in the data every row is one of its own, and their number says nothing new
    return Verdict(
        metric=name,
        reference=base,
        challenger=challenger,
        leader=leader,
        is_picked=named is None and len(material.candidates) > 2,
        difference=difference(material.comparison, challenger, base, name) if challenger else None,
        baselines=tuple(difference(material.comparison, leader, each, name) for each in baselines(material)),
        items=items,
        groups=groups,
    )


def best(name: str, shown: Mapping[str, Estimate]) -> set[str]:
    """Who has the best value of a metric; nobody where there is no choice."""
    known = {each: found.value for each, found in shown.items() if found.value is not None}
    if len(known) < 2:
        return set()
    top = (min if metric(name).lower_is_better else max)(known.values())
    return {each for each, value in known.items() if value == top}


# ── the criteria ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Criterion:
    """One condition of the scope, and what became of it."""

    name: str
    """What is measured of whom: "lora over base on ROUGE-1"."""
    why: str
    threshold: float
    is_most: bool
    """Whether the threshold is the most that is allowed, not the least."""
    shown: Estimate
    outcome: Outcome
    shortfall: float | None
    """How far the decisive end of the interval lies on the wrong side; None where it does not."""
    unit: str
    is_difference: bool

    def said(self, value: float | None) -> str:
        """A value of this criterion for reading, without a unit that is a word."""
        if self.unit == "bytes":
            return size(value)
        if self.unit == "×" and value is not None:
            return f"{brief(value)}×"
        if self.unit in IN_POINTS:
            return signed(value) if self.is_difference else number(value)
        return brief(value, sign=self.is_difference)

    @property
    def asked(self) -> str:
        """The threshold in words."""
        unit = f" {self.unit}" if self.unit not in ("", "bytes", "×") else ""
        return f"{self.said(self.threshold)}{unit} or {'less' if self.is_most else 'more'}"

    @property
    def measured(self) -> str:
        """The value with its interval, in words; — and why where there is none."""
        if self.shown.value is None:
            return f"— ({self.shown.reason})" if self.shown.reason else "—"
        if self.shown.low is None or self.shown.high is None:
            return self.said(self.shown.value)
        return f"{self.said(self.shown.value)} ({self.said(self.shown.low)} to {self.said(self.shown.high)})"

    @property
    def slack(self) -> float:
        """How comfortably it is met, in lengths of the interval's decisive half; negative where it is not."""
        end = self.shown.high if self.is_most else self.shown.low
        if end is None or self.shown.value is None:
            return float("-inf")
        room = (self.threshold - end) if self.is_most else (end - self.threshold)
        return room / (abs(self.shown.value - end) or 1.0)

    @property
    def plot(self) -> plots.Plot:
        """The interval beside the threshold."""
        kind = {"met": "better", "missed": "worse"}.get(self.outcome, "unproven")
        return plots.threshold_plot(self.shown, self.threshold, kind)


def criteria(material: Material) -> list[Criterion]:
    """As promote judged them; where it has not, as it would."""
    if material.promotion:
        return [_decided(each) for each in material.promotion.get("criteria", ())]
    rules = material.scope.get("criteria", ())
    return [_decided(each.written()) for each in promotion.judged(rules, material.comparison, material.efficiency)]


def decisive(found: Sequence[Criterion]) -> Criterion | None:
    """The criterion that decides: the first that is not met, else the one that is met most narrowly."""
    lacking = [each for each in found if each.outcome != "met"]
    return lacking[0] if lacking else min(found, key=lambda each: each.slack, default=None)


def _decided(entry: Json) -> Criterion:
    told = str(entry.get("outcome"))
    outcome: Outcome = "met" if told == "met" else "missed" if told == "missed" else "undefined"
    found = Estimate(
        entry.get("value"),
        entry.get("ci_low"),
        entry.get("ci_high"),
        entry.get("n"),
        reason="" if entry.get("value") is not None else str(entry.get("reason") or "undefined on this test set"),
    )
    return _criterion(entry, found, outcome, entry.get("shortfall"), str(entry.get("unit") or ""))


def _criterion(rule: Json, found: Estimate, outcome: Outcome, shortfall: float | None, unit: str) -> Criterion:
    against, is_most = rule.get("against"), rule.get("at_most") is not None
    of = f"{rule['candidate']} over {against}" if against else str(rule["candidate"])
    return Criterion(
        name=visible(f"{of} on {label(rule['metric'])}" if against else f"{of}: {label(rule['metric'])}"),
        why=visible(str(rule.get("why") or "")),
        threshold=rule["at_most"] if is_most else rule["at_least"],
        is_most=is_most,
        shown=found,
        outcome=outcome,
        shortfall=shortfall,
        unit=visible(unit),
        is_difference=against is not None,
    )


def label(name: str) -> str:
    """A metric's name in words, whichever stage measured it."""
    stage, _, rest = name.partition("/")
    if name in MEASURES:
        return MEASURES[name].lower()
    if stage == "efficiency" and rest in MEASURES:
        return MEASURES[rest]
    return categories.measure(name) if rest else metric(name).label


def decision(material: Material) -> tuple[str, str, bool] | None:
    """The candidate, promote's own sentence, and whether it is promoted; None where nothing was decided."""
    told = material.promotion
    if not told:
        return None
    return visible(str(told["candidate"])), visible(str(told.get("sentence") or "")), told["verdict"] == "promoted"
