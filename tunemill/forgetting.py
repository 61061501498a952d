"""What tuning has made of other tasks: each candidate against the reference, on the same questions.

Catastrophic forgetting is a rise of the right answers' negative log-likelihood, or a fall of accuracy, on tasks that were not
trained on. Differences are paired. A task's interval resamples its questions. The mean over tasks counts every task alike and
resamples questions within each (a stratified bootstrap): it speaks of these tasks, not of tasks in general, for which there
are too few of them.

"Better" and "worse" are corrected after Holm, in two families of each measure: the mean, over the candidates; and single tasks, over
candidates and tasks. These families are large and some tasks small, so p-values are Student's: resamples could never tell one that
is small enough. A task's accuracy has the p-value of McNemar's exact test, on the same answers and in the same family as in
`tunemill.helm.mcnemar`, so that the two say the same. (The mean counts tasks alike, and leaves out those trained on; McNemar's
test of all tasks together counts questions alike, and all of them.)
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
    gaps: tuple[np.ndarray, ...]
    """(n,) value - reference of the questions of each task."""
    p: float | None = None
    """Of an exact test, which stands in for Student's; None where there is none."""


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
        share), `diff` is their difference with its interval, p, and p_holm corrected for the family; `verdict` is worse, better, not
        shown to be better, or the same. `task` is None for the mean over the tasks not trained on. Accuracy is there for tasks
        with choices only.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows[reference]))
    entries: list[dict[str, Any]] = []
    for candidate in [name for name in rows if name != reference]:
        for measure, (field, _, span) in MEASURES.items():
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
                    if measure == "accuracy":
                        exact = statistics.mcnemar([bool(each) for each in ours], [bool(each) for each in theirs])
                        found[task] = found[task]._replace(p=exact.p)
            about = {"candidate": candidate, "measure": measure}
            for task, difference in found.items():
                known = task in trained[candidate]
                entries.append({**about, "task": task, "trained": known, **compared(difference, level, span)})
            unknown = [difference for task, difference in found.items() if task not in trained[candidate]]
            if unknown:
                entries.append({**about, "task": None, "trained": False, **compared(mean(unknown), level, span)})
    for measure, (_, sign, _) in MEASURES.items():
        for of_mean in (True, False):
            judge(
                [each for each in entries if each["measure"] == measure and (each["task"] is None) == of_mean],
                sign,
                level,
            )
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
    gaps = (values[:, 0] - values[:, 1],)
    return Difference(float(value), float(other), drawn[:, 0] - drawn[:, 1], len(values), len(values), gaps)


def mean(differences: Sequence[Difference]) -> Difference:
    """The mean over tasks, each counting alike; their resamples are independent of one another. Of one task it is that task."""
    import numpy as np

    return Difference(
        value=float(np.mean([each.value for each in differences])),
        reference=float(np.mean([each.reference for each in differences])),
        draws=np.mean([each.draws for each in differences], axis=0),
        n=sum(each.n for each in differences),
        units=min(each.units for each in differences),
        gaps=tuple(gaps for each in differences for gaps in each.gaps),
        p=differences[0].p if len(differences) == 1 else None,
    )


def compared(difference: Difference, level: float, span: statistics.Span | None = None) -> dict[str, Any]:
    """A difference with its interval and p-value, as comparison.json has it; its verdict already where nothing differs.

    Args:
        difference: what was found.
        level: of confidence.
        span: the least and the most that a question's difference can be, where it has ends.
    """
    found = statistics.compare(difference.value - difference.reference, difference.draws, difference.units, level, span)
    p = difference.p
    if p is None and found.p is not None:
        p = statistics.student_strata(difference.gaps)
    # Every question alike, as where tuning has left the model itself alone.
    same = difference.units >= statistics.FEWEST and not difference.draws.any()
    return {
        "value": difference.value,
        "reference": difference.reference,
        "diff": found.diff,
        "ci_low": found.low,
        "ci_high": found.high,
        "p": p,
        "n": difference.n,
        "verdict": "the same" if same else None,
        **({"reason": statistics.no_interval(difference.units)} if found.low is None else {}),
    }


def judge(family: Sequence[dict[str, Any]], sign: int, level: float) -> None:
    """Add to differences that are tested together what may be said of each.

    Args:
        family: entries of `table`, which are changed.
        sign: 1 where more is better, -1 where less is.
        level: of confidence.
    """
    for each, p in zip(family, statistics.holm([each["p"] for each in family]), strict=True):
        found = statistics.Comparison(each["diff"], each["ci_low"], each["ci_high"], each["p"])
        told = each["verdict"] or statistics.verdict(found, p, level, lower_is_better=sign < 0)
        each |= {"p_holm": p, "verdict": told}


def _seed(seed: int, task: str) -> int:
    """Another one for each task, so that tasks of equal size are not resampled alike."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{task}".encode()).digest()[:8])
