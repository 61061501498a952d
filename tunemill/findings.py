"""What comparison.json says, as the report reads it: values and differences with their intervals, and what may be said of them.

Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Json = Mapping[str, Any]
Judgement = Literal["better", "worse", "unproven"]

VERDICTS: dict[str, Judgement] = {"better": "better", "worse": "worse", "not shown to be better": "unproven"}
"""The words of comparison.json."""
OPPOSITE: dict[Judgement, Judgement] = {"better": "worse", "worse": "better", "unproven": "unproven"}


class Metric(NamedTuple):
    """How a metric is named and read."""

    label: str
    unit: str
    meaning: str
    lower_is_better: bool = False


METRICS = {
    "rouge1": Metric("ROUGE-1", "points", "overlap of single words with the reference: 0 is none, 100 the same words"),
    "rouge2": Metric("ROUGE-2", "points", "overlap of pairs of neighbouring words with the reference, 0 to 100"),
    "rougeL": Metric("ROUGE-L", "points", "longest run of words in the same order as in the reference, 0 to 100"),
    "bleu": Metric("BLEU", "points", "precision of runs of up to four words over the whole test set, 0 to 100"),
    "finished": Metric("Finished", "%", "share of outputs that ended by themselves within the token limit"),
    "toxicity": Metric("Toxic share", "%", "share of outputs that a classifier calls offensive", True),
}

MEASURES = {
    "decode_ratio": "Decode speed, one prompt at a time",
    "batch_decode_ratio": "Decode speed, prompts in one batch",
    "prefill_ratio": "Prefill speed",
    "memory_ratio": "Peak memory",
    "disk_ratio": "Size on disk",
    "decode_tokens_per_second": "Decode, one prompt at a time (tokens/s)",
    "batch_decode_tokens_per_second": "Decode, prompts in one batch (tokens/s)",
    "prefill_tokens_per_second": "Prefill (tokens/s)",
    "memory_bytes": "Peak memory of a process",
    "disk_bytes": "Size on disk, with an adapter's base",
    "joules_per_token": "Energy for a token (joules, where the machine tells)",
}
"""What efficiency.json's keys mean, in the order of the table; a key it does not know is shown by its name."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; None is undefined, and `reason` says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    p: float | None = None
    reason: str = ""

    def turned(self) -> Estimate:
        """The same difference seen from the other side."""
        value, low, high = (None if each is None else -each + 0.0 for each in (self.value, self.high, self.low))
        return Estimate(value, low, high, self.n, self.p, self.reason)


@dataclass(frozen=True)
class Difference:
    """Candidate `a` minus `b` on one metric."""

    a: str
    b: str
    metric: str
    estimate: Estimate
    judgement: Judgement
    detectable: float | None = None
    """The smallest true difference that a test of this size usually finds; smaller ones are usually missed."""


def metric(name: str) -> Metric:
    """How a metric is named and read; an unknown one goes by its own name."""
    known = METRICS.get(name)
    if known is None and "toxic" in name:
        known = METRICS["toxicity"]._replace(label=name)
    return known or Metric(name, "", "")


def estimate(entry: Json | None, key: str = "value") -> Estimate:
    """One entry of comparison.json, of a candidate (`key` value) or of a pair (`key` diff)."""
    if entry is None:
        return Estimate(None, reason="not measured for this candidate")
    value = entry.get(key)
    reason = str(entry.get("reason") or ("" if value is not None else "undefined on this test set"))
    p = entry.get("p") if entry.get("p_holm") is None else entry["p_holm"]
    return Estimate(value, entry.get("ci_low"), entry.get("ci_high"), entry.get("n"), p, reason)


def judge(difference: Estimate, lower_is_better: bool = False) -> Judgement:
    """Better or worse only where the whole interval lies on one side of zero; everything else is not shown."""
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "unproven"
    if lower_is_better:
        low, high = -high, -low
    return "better" if low > 0 else "worse" if high < 0 else "unproven"


def difference(comparison: Json, a: str, b: str, name: str) -> Difference:
    """Candidate `a` minus `b`, whichever way round comparison.json has the pair.

    Its verdict is taken over (it may be corrected for the number of comparisons); without one the interval decides.
    """
    for pair in comparison.get("pairs", ()):
        if pair["metric"] != name or {pair["a"], pair["b"]} != {a, b}:
            continue
        found = estimate(pair, "diff")
        told = VERDICTS.get(pair.get("verdict", "")) or judge(found, metric(name).lower_is_better)
        least = pair.get("minimum_detectable")
        if (pair["a"], pair["b"]) == (a, b):
            return Difference(a, b, name, found, told, least)
        return Difference(a, b, name, found.turned(), OPPOSITE[told], least)
    return Difference(a, b, name, Estimate(None, reason="this pair was not compared"), "unproven")


def relative(comparison: Json, a: str, b: str, name: str) -> Estimate:
    """Candidate `a` minus `b` in percent of `b`'s value, whichever way round comparison.json has the pair."""
    for pair in comparison.get("pairs", ()):
        if pair["metric"] != name or {pair["a"], pair["b"]} != {a, b}:
            continue
        if pair.get("relative") is None:
            reason = f"{pair['b']} scores nothing" if "relative" in pair else "not in this comparison.json"
            return Estimate(None, n=pair.get("n"), reason=str(pair.get("reason") or reason))
        value, low, high = pair["relative"], pair["relative_low"], pair["relative_high"]
        if pair["a"] == b:
            # The ends of a percentile interval go where its value goes: here to the other end.
            value, low, high = _inverted(value), _inverted(high), _inverted(low)
        return Estimate(value, low, high, pair.get("n"), reason="" if value is not None else f"{b} scores nothing")
    return Estimate(None, reason="this pair was not compared")


def _inverted(percent: float | None) -> float | None:
    """How far the second is from the first, in percent of the first, where the first is so far from the second."""
    return None if percent is None or percent <= -100 else -100 * percent / (100 + percent) + 0.0
