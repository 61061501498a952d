"""What tuning has made of other tasks: each candidate against the reference, on the same questions.

Catastrophic forgetting is a rise of the right answers' negative log-likelihood, or a fall of accuracy, on tasks that were not
trained on. Differences are paired. A task's interval resamples its questions. The mean over tasks counts every task alike and
resamples questions within each (a stratified bootstrap): it speaks of these tasks, not of tasks in general, for which there
are too few of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tunemill import statistics

if TYPE_CHECKING:
    import numpy as np

MEASURES: dict[str, tuple[str, int, statistics.Span | None]] = {
    "nll": ("nll", -1, None),
    "accuracy": ("correct", 1, (-1.0, 1.0)),
}
"""What is measured → its field in tasks.jsonl, the sign that makes more of it better, the ends of a question's difference."""


class Difference(NamedTuple):
    """A candidate beside the reference, on one task or on several that count alike."""

    value: float
    reference: float
    draws: np.ndarray
    """(R,) value - reference on each resample."""
    n: int
    """Questions."""
    units: int
    """Questions of the smallest task: how far the interval is to be trusted."""


def table(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    trained: Mapping[str, Collection[str]],
    reference: str,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> list[dict[str, Any]]:
    """Every candidate against the reference, on every task and on their mean.

    Args:
        rows: candidate → rows of tasks.jsonl (task, nll, correct); for all of them the same questions in the same order.
        trained: candidate → tasks that were mixed into its training; its mean leaves them out.
        reference: whom the others are compared with.
        resamples: bootstrap resamples.
        seed: of the resamples.
        level: of confidence.

    Returns:
        One entry for each candidate, measure and task. `value` and `reference` are means (nll in nats per token, accuracy as a
        share), `diff` is their difference with its interval and p, `verdict` is worse, better, the same or unclear. `task` is None for
        the mean over the tasks not trained on. Accuracy is there for tasks with choices only.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows[reference]))
    entries = []
    for candidate in [name for name in rows if name != reference]:
        for measure, (field, sign, span) in MEASURES.items():
            found = {}
            for task in tasks:
                both = [
                    (float(mine[field]), float(other[field]))
                    for mine, other in zip(rows[candidate], rows[reference], strict=True)
                    if mine["task"] == task and mine[field] is not None and other[field] is not None
                ]
                ours, theirs = [mine for mine, _ in both], [other for _, other in both]
                if ours:
                    found[task] = paired(ours, theirs, resamples, _seed(seed, task))
            about = {"candidate": candidate, "measure": measure}
            for task, difference in found.items():
                known = task in trained[candidate]
                entries.append({**about, "task": task, "trained": known, **judged(difference, sign, level, span)})
            unknown = [difference for task, difference in found.items() if task not in trained[candidate]]
            if unknown:
                entries.append({**about, "task": None, "trained": False, **judged(mean(unknown), sign, level, span)})
    return entries


def paired(ours: Sequence[float], theirs: Sequence[float], resamples: int, seed: int) -> Difference:
    """The difference of two means over the same questions.

    Args:
        ours: the candidate's values.
        theirs: the reference's, in the same order.
        resamples: bootstrap resamples, R.
        seed: of the resamples.
    """
    import numpy as np

    values = np.array([ours, theirs]).T  # (n, 2)
    drawn = statistics.resampled_sums(values, resamples, seed) / len(values)  # (R, 2)
    value, other = values.mean(axis=0)
    return Difference(float(value), float(other), drawn[:, 0] - drawn[:, 1], len(values), len(values))


def mean(differences: Sequence[Difference]) -> Difference:
    """The mean over tasks, each counting alike; their resamples are independent of one another."""
    import numpy as np

    return Difference(
        value=float(np.mean([each.value for each in differences])),
        reference=float(np.mean([each.reference for each in differences])),
        draws=np.mean([each.draws for each in differences], axis=0),
        n=sum(each.n for each in differences),
        units=min(each.units for each in differences),
    )


def judged(difference: Difference, sign: int, level: float, span: statistics.Span | None = None) -> dict[str, Any]:
    """A difference with its interval, p-value and verdict, as comparison.json has it.

    Args:
        difference: what was found.
        sign: 1 where more is better, -1 where less is.
        level: of confidence.
        span: the least and the most that a question's difference can be, where it has ends.
    """
    found = statistics.compare(difference.value - difference.reference, difference.draws, difference.units, level, span)
    verdict = "unclear"
    if difference.units >= statistics.FEWEST and not difference.draws.any():
        verdict = "the same"  # every question alike, as where tuning has left the model itself alone
    elif found.low is not None and found.high is not None and (found.low > 0 or found.high < 0):
        verdict = "better" if (found.low > 0) == (sign > 0) else "worse"
    return {
        "value": difference.value,
        "reference": difference.reference,
        "diff": found.diff,
        "ci_low": found.low,
        "ci_high": found.high,
        "p": found.p,
        "n": difference.n,
        "verdict": verdict,
        **({"reason": statistics.no_interval(difference.units)} if found.low is None else {}),
    }


def _seed(seed: int, task: str) -> int:
    """Another one for each task, so that tasks of equal size are not resampled alike."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{task}".encode()).digest()[:8])
