"""Promotion: whether a candidate fulfils what the scope asks for, criterion by criterion. Nothing else decides.

A criterion names a metric, a candidate, what it is compared with (or nothing: then the value itself counts) and a threshold.
`at_least` is met where the *lower* end of the 95% interval reaches it, `at_most` where the *upper* end does not exceed it: what is
claimed is shown, not guessed. What is counted (bytes on disk) or measured once (peak memory) has no interval, and its value decides.
What is undefined, or has no interval where it needs one, counts as not met.

    rouge1 rouge2 rougeL bleu               points of the test items; against a candidate or a baseline the paired difference
    accuracy/… robustness/… toxicity/… …    HELM's figures by their keys in comparison.json; the paired difference
    tasks/<task>/<metric>                   benchmarks, alike
    alignment/harm alignment/refusal …      answers to red-team prompts, against what a candidate was aligned from
    forgetting/nll forgetting/accuracy      other tasks, the mean, against compare's reference
    decode_ratio prefill_ratio …            ratios within a round of timing, the interval over the rounds (`statistics.yuen`)
    memory_ratio disk_ratio disk_mib        ratios of peak memory and of bytes on disk; mebibytes on disk

Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from tunemill import findings, statistics
from tunemill.findings import Json
from tunemill.wording import brief, tick

Outcome = Literal["met", "missed", "undefined"]

SCORES = ("rouge1", "rouge2", "rougeL", "bleu")
"""Metrics that baselines are measured by, too."""
TIMED = {
    "decode_ratio": "decode_tokens_per_second",
    "batch_decode_ratio": "batch_decode_tokens_per_second",
    "prefill_ratio": "prefill_tokens_per_second",
    "first_token_ratio": "first_token_seconds",
}
"""Ratio → what is measured in each round of timing."""
COUNTED = {"memory_ratio": "memory_bytes", "disk_ratio": "disk_bytes"}
"""Ratio → what is counted, or measured once."""
RATIOS = (*TIMED, *COUNTED)
"""Metrics that are always against something."""
DISK = "disk_mib"
ONCE = {"efficiency/peak_mib": "MiB"}
"""Figures of comparison.json that are measured once → their unit."""
ALIGNMENT = "alignment/"
FORGETTING = {"forgetting/nll": "nats per token", "forgetting/accuracy": ""}
UNITS = {
    "efficiency/decode_seconds": "s",
    "efficiency/first_token_seconds": "s",
    "efficiency/prefill_tokens_per_second": "tokens/s",
    "efficiency/joules_per_token": "J",
    "accuracy/memorised_words": "words",
    "alignment/surprise": "nats per token",
    "alignment/words": "words",
    "alignment/continuation/words": "words",
    "alignment/harmless/words": "words",
    **ONCE,
}
"""What is no share, no ratio and no points."""
MIB = 2**20


class Measured(NamedTuple):
    """A figure as it stands to be judged."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    """Items, prompts, questions or rounds."""
    reason: str = ""
    """Why it is undefined, or has no interval."""
    certain: bool = False
    """Counted or measured once: the value decides."""


@dataclass(frozen=True)
class Criterion:
    """One condition of the scope, and what became of it; decision.json has its fields."""

    metric: str
    candidate: str
    against: str | None
    at_least: float | None
    at_most: float | None
    why: str
    value: float | None
    """The figure, or with `against` its difference or ratio to that one's."""
    ci_low: float | None
    ci_high: float | None
    n: int | None
    outcome: Outcome
    shortfall: float | None
    """By how much the deciding end misses the threshold; None where it does not, or is undefined."""
    unit: str
    reason: str
    sentence: str

    def written(self) -> dict[str, Any]:
        """As decision.json has it: of the two thresholds the one that was asked for."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value is not None or name not in ("at_least", "at_most")
        }


def read(entry: Json) -> Criterion:
    """A criterion as decision.json has it."""
    return Criterion(**{"at_least": None, "at_most": None, **entry})


def judged(rules: Sequence[Json], comparison: Json, efficiency: Json | None) -> list[Criterion]:
    """Every criterion of the scope.

    Args:
        rules: as scope.json has them.
        comparison: comparison.json.
        efficiency: efficiency.json; None where no speed was measured.
    """
    return [decide(rule, measured(rule, comparison, efficiency)) for rule in rules]


def decide(rule: Json, found: Measured) -> Criterion:
    """Whether a criterion is met by what was measured."""
    at_least: float | None = rule.get("at_least")
    at_most: float | None = rule.get("at_most")
    low, high = (found.value, found.value) if found.certain else (found.low, found.high)
    outcome: Outcome = "undefined"
    short: float | None = None
    if low is not None and high is not None:
        beyond = at_least - low if at_least is not None else high - (at_most or 0.0)
        outcome = "missed" if beyond > 0 else "met"
        short = beyond if beyond > 0 else None
    reason = found.reason or ("" if outcome != "undefined" else "there is no interval")
    unit = unit_of(rule["metric"])
    return Criterion(
        metric=rule["metric"],
        candidate=rule["candidate"],
        against=rule.get("against"),
        at_least=at_least,
        at_most=at_most,
        why=rule.get("why", ""),
        value=found.value,
        ci_low=found.low,
        ci_high=found.high,
        n=found.n,
        outcome=outcome,
        shortfall=short,
        unit=unit,
        reason=reason,
        sentence=_sentence(rule, found, outcome, short, unit, reason),
    )


def unit_of(metric: str) -> str:
    """What a metric's values are in: points, × (a ratio), MiB, …; empty of shares and probabilities."""
    if metric in RATIOS:
        return "×"
    if metric == DISK:
        return "MiB"
    if metric in SCORES or metric.rpartition("/")[2].removesuffix("_unperturbed") in SCORES:
        return "points"
    return FORGETTING.get(metric) or UNITS.get(metric, "")


def subject(rule: Json) -> str:
    """What a criterion is about."""
    return f"{rule['metric']} of {rule['candidate']}" + (f" against {rule['against']}" if rule.get("against") else "")


def asked(rule: Json) -> str:
    """What a criterion asks for."""
    most = rule.get("at_most")
    threshold = rule.get("at_least") if most is None else most
    return f"at {'least' if most is None else 'most'} {'—' if threshold is None else tick(threshold)}"


def with_unit(text: str, unit: str) -> str:
    """A number and its unit."""
    return f"{text}{unit}" if unit == "×" else f"{text} {unit}".rstrip()


def _sentence(rule: Json, found: Measured, outcome: Outcome, short: float | None, unit: str, reason: str) -> str:
    sign = bool(rule.get("against")) and rule["metric"] not in RATIOS
    head = subject(rule)
    if outcome == "undefined":
        shown = f" {with_unit(brief(found.value, sign=sign), unit)} but" if found.value is not None else ""
        return f"{head}:{shown} undefined ({reason}), which counts as not met; {asked(rule)} was asked"
    span = "" if found.certain else f" [{brief(found.low, sign=sign)}, {brief(found.high, sign=sign)}]"
    once = f" ({reason})" if found.certain and reason else ""
    shown = f"{with_unit(brief(found.value, sign=sign) + span, unit)}{once}"
    if outcome == "met":
        return f"{head}: {shown}, {asked(rule)} was asked: met"
    end = "" if found.certain else f" at the {'lower' if rule.get('at_most') is None else 'upper'} end of its interval"
    return f"{head}: {shown}, {asked(rule)} was asked: missed by {with_unit(brief(short), unit)}{end}"


def verdict(candidate: str, criteria: Sequence[Criterion]) -> tuple[Literal["promoted", "refused"], str]:
    """Whether all criteria are met, and that in a sentence."""
    failed = [each for each in criteria if each.outcome != "met"]
    count = len(criteria)
    if not failed:
        every = "its criterion is" if count == 1 else f"all {count} criteria are"
        return "promoted", f"{candidate} is promoted: {every} met."
    told = "; ".join(each.sentence for each in failed)
    return "refused", f"{candidate} is refused: {len(failed)} of {count} criteria not met. {told}."


# ── what was measured ─────────────────────────────────────────────────────────────────────────────────────────────


def known(comparison: Json) -> tuple[str, ...]:
    """Every metric that a criterion of this comparison may name."""
    scores = [name for name in SCORES if any(name in own for own in comparison.get("candidates", {}).values())]
    figures = sorted({key for own in (comparison.get("details") or {}).values() for key in own})
    aligned = [
        prefix + measure
        for prefix, part in _ALIGNED.items()
        for measure in dict.fromkeys(key for entry in comparison.get("alignment", ()) for key in entry[part])
    ]
    return (*scores, *RATIOS, DISK, *figures, *aligned, *FORGETTING)


_ALIGNED = {
    ALIGNMENT: "measures",
    f"{ALIGNMENT}continuation/": "continuation",
    f"{ALIGNMENT}harmless/": "harmless",
}
"""How a metric begins → the part of an entry of comparison.json's `alignment` that has it; the longest that fits."""


def measured(rule: Json, comparison: Json, efficiency: Json | None) -> Measured:
    """The figure that a criterion is about, out of comparison.json and efficiency.json."""
    metric, candidate, against = rule["metric"], rule["candidate"], rule.get("against")
    if metric in TIMED:
        return _ratio_of_rounds(efficiency, TIMED[metric], candidate, against, comparison.get("level", 0.95))
    if metric in COUNTED or metric == DISK:
        return _counted(efficiency, metric, candidate, against)
    if metric in SCORES:
        entry = comparison.get("candidates", {}).get(candidate, {}).get(metric)
        told = (
            findings.estimate(entry)
            if against is None
            else findings.difference(comparison, candidate, against, metric).estimate
        )
        return Measured(told.value, told.low, told.high, told.n, "" if told.low is not None else told.reason)
    if metric.startswith(ALIGNMENT):
        return _aligned(comparison, metric, candidate, against)
    if metric in FORGETTING:
        return _forgotten(comparison, metric, candidate, against)
    return _figure(comparison, metric, candidate, against)


def _ratio_of_rounds(
    efficiency: Json | None, field: str, candidate: str, against: str | None, level: float
) -> Measured:
    """The ratio within each round, the middle of these, and an interval over the rounds."""
    import numpy as np

    rounds = (efficiency or {}).get("samples", {})
    ours, theirs = ([each.get(field) for each in rounds.get(name, ())] for name in (candidate, against))
    if not ours or not theirs or None in (*ours, *theirs):
        return Measured(None, reason="speed was not measured")
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    found = statistics.yuen(np.log(ratios), level)
    low, high = (None if end is None else float(np.exp(end)) for end in (found.low, found.high))
    few = "no interval from one round" if len(ratios) == 1 else "the rounds all show the same"
    return Measured(statistics.middle(ratios), low, high, len(ratios), few if low is None else "")


def _counted(efficiency: Json | None, metric: str, candidate: str, against: str | None) -> Measured:
    rows = (efficiency or {}).get("candidates", {})
    field = COUNTED.get(metric, "disk_bytes")
    own, other = (rows.get(name, {}).get(field) for name in (candidate, against))
    if own is None or (against is not None and other is None):
        what = "memory" if field == "memory_bytes" else "size on disk"
        return Measured(None, reason=f"{what} was not measured")
    how = "measured once" if field == "memory_bytes" else "counted"
    value = own / other if metric in COUNTED else own / MIB if other is None else (own - other) / MIB
    return Measured(value, n=1, reason=how, certain=True)


def _figure(comparison: Json, metric: str, candidate: str, against: str | None) -> Measured:
    """One of HELM's figures, or its difference to another candidate's."""
    details, reference = comparison.get("details") or {}, comparison.get("reference")
    if metric not in details.get(candidate, {}):
        return Measured(None, reason="not measured for this candidate")
    own = details[candidate][metric]
    certain = metric in ONCE
    if against is None:
        return _of(own, ("value", "ci_low", "ci_high"), own.get("reason", ""), certain)
    keys = ("diff", "diff_low", "diff_high")
    if against == reference:
        return _of(own, keys, own.get("diff_reason", ""), certain)
    if candidate == reference:
        other = details.get(against, {}).get(metric, {})
        return _turned(_of(other, keys, other.get("diff_reason", ""), certain))
    for pair in comparison.get("figure_pairs", ()):
        if pair["metric"] == metric and {pair["a"], pair["b"]} == {candidate, against}:
            found = _of(pair, ("diff", "ci_low", "ci_high"), pair.get("reason", ""), certain)
            return found if pair["a"] == candidate else _turned(found)
    return Measured(None, reason="this pair was not compared")


def _aligned(comparison: Json, metric: str, candidate: str, against: str | None) -> Measured:
    prefix = max((each for each in _ALIGNED if metric.startswith(each)), key=len)
    for entry in comparison.get("alignment", ()):
        if (entry["name"], entry["against"]) == (candidate, against):
            own = entry[_ALIGNED[prefix]].get(metric.removeprefix(prefix))
            if own is not None:
                return _of(own, ("diff", "ci_low", "ci_high"), own.get("reason", ""))
    return Measured(None, reason="this pair was not compared on red-team prompts")


def _forgotten(comparison: Json, metric: str, candidate: str, against: str | None) -> Measured:
    if against == comparison.get("reference"):
        for entry in comparison.get("forgetting", ()):
            mean_of_tasks = entry["task"] is None and entry["measure"] == metric.rpartition("/")[2]
            if mean_of_tasks and entry["candidate"] == candidate:
                return _of(entry, ("diff", "ci_low", "ci_high"), entry.get("reason", ""))
    return Measured(None, reason="other tasks were not asked, or not compared with this one")


def _of(entry: Json, keys: tuple[str, str, str], reason: str, certain: bool = False) -> Measured:
    value, low, high = (entry.get(key) for key in keys)
    return Measured(value, low, high, entry.get("n"), "" if low is not None else reason, certain and value is not None)


def _turned(found: Measured) -> Measured:
    """The same difference seen from the other side."""
    value, low, high = (None if each is None else -each + 0.0 for each in (found.value, found.high, found.low))
    return found._replace(value=value, low=low, high=high)


# ── the champion ──────────────────────────────────────────────────────────────────────────────────────────────────


class Duel(NamedTuple):
    """A newcomer against the present champion, on the test items that both answered."""

    metric: str
    diff: float
    """Points, the newcomer's mean minus the champion's."""
    low: float | None
    high: float | None
    n: int
    replaces: bool
    """Whether the newcomer becomes the champion."""
    sentence: str


def duel(
    ours: Mapping[str, Json],
    theirs: Mapping[str, Json],
    metric: str,
    margin: float,
    *,
    method: str,
    resamples: int,
    seed: int,
    level: float,
) -> Duel:
    """Whether a newcomer that meets all criteria takes the champion's place: unless it is worse by more than a margin.

    It is the difference itself that decides, not an end of its interval, which is told beside it: the criteria are what has to be
    shown. A test set that could show a newcomer to be within a point of the champion is larger than most, and with a smaller one
    no champion would ever be replaced.

    Args:
        ours: item → its row, with `group` and the metric; the newcomer's.
        theirs: the champion's, the same items.
        metric: of items.
        margin: points that a newcomer may be worse.
        method: what is resampled: cluster or item.
        resamples: bootstrap resamples.
        seed: of the resamples.
        level: of confidence.
    """
    import numpy as np

    items = sorted(key for key in ours if None not in (ours[key][metric], theirs[key][metric]))
    table = np.array([[ours[key][metric], theirs[key][metric], 1.0] for key in items]).reshape(-1, 3)
    if not items:
        return Duel(metric, 0.0, None, None, 0, False, f"no item has {metric} of both, so the champion stays")
    labels = [ours[key]["group"] for key in items] if method == "cluster" else items
    sums = statistics.cluster_sums(table, labels)
    drawn = statistics.resampled_sums(sums, resamples, seed)
    mean = [statistics.ratio(column, 2) for column in (0, 1)]
    total = sums.sum(axis=0)
    found = statistics.compare(
        float(mean[0](total) - mean[1](total)), mean[0](drawn) - mean[1](drawn), len(sums), level
    )
    diff = found.diff or 0.0
    replaces = diff >= -margin
    span = "" if found.low is None else f" [{brief(found.low, sign=True)}, {brief(found.high, sign=True)}]"
    told = f"{metric} {brief(diff, sign=True)}{span} points against the champion on the same {len(items)} items"
    allowed = f"{'not worse' if replaces else 'worse'} by more than the margin of {tick(margin)}"
    return Duel(metric, diff, found.low, found.high, len(items), replaces, f"{told}: {allowed}")
