"""What a run's artifacts say, as they were read: the one thing that every part of the report is made from.

Pure, no I/O. `stages/report.py` fills it; what is missing there is None or empty here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunemill import aligned, constitutional
from tunemill.adaptation import Tuned
from tunemill.findings import METRICS, Json


@dataclass(frozen=True)
class Material:
    """The artifacts of a run, as read; what is missing is None or empty."""

    scope: Json
    candidates: tuple[str, ...]
    comparison: Json
    splits: Json = field(default_factory=dict)
    instances: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    scores: Mapping[str, Json] = field(default_factory=dict)
    perturbed: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    choices: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    """Candidate → questions with choices, and how likely it finds each."""
    red_team: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    plan: Json | None = None
    decision: Json | None = None
    """select's table of candidates."""
    policies: Mapping[str, str] = field(default_factory=dict)
    """Candidate → path of its policy, which names the stage that made it."""
    bases: Mapping[str, str] = field(default_factory=dict)
    """Candidate → path of the model that its policy sits on; the policy itself where it is whole."""
    trainings: Sequence[Tuned] = ()
    prompt: Json | None = None
    """The grid of prompts and the choice."""
    asked: Json | None = None
    """The chosen prompt itself: template, worked examples, decoding."""
    feedback: Json | None = None
    """What was fed back: feedback.json."""
    reward: Json | None = None
    """How well the reward model tells what people prefer: reward.json."""
    reward_histogram: Sequence[aligned.Row] = ()
    reward_reliability: Sequence[aligned.Row] = ()
    supervised: Sequence[constitutional.Supervised] = ()
    """The candidates that learnt revisions of a model's own answers."""
    labelled: Sequence[constitutional.Labelled] = ()
    """Those that were rewarded by what learnt a judge's labels."""
    optimised: Sequence[aligned.Run] = ()
    """The candidates that PPO made."""
    beside: Sequence[aligned.Beside] = ()
    """Those that another way aligned."""
    efficiency: Json | None = None
    compress: Json | None = None
    """What the smaller variants take and keep: compress.json."""
    promotion: Json | None = None
    """Whether the scope's criteria let a candidate through: promote's decision.json."""
    timings: Mapping[str, Json] = field(default_factory=dict)
    lock: Json | None = None


def baselines(material: Material) -> tuple[str, ...]:
    """What was compared that is no candidate: the extractive baselines."""
    return tuple(name for name in material.comparison.get("candidates", {}) if name not in material.candidates)


def metric_names(material: Material) -> tuple[str, ...]:
    """Every metric of comparison.json: the primary one first, then in the order of `METRICS`, then the others."""
    found = {name for scores in material.comparison.get("candidates", {}).values() for name in scores}
    order = {name: index for index, name in enumerate((material.scope["primary_metric"], *METRICS))}
    return tuple(
        sorted(
            found,
            key=lambda name: (0 if name == material.scope["primary_metric"] else 1, order.get(name, len(order)), name),
        )
    )


def reference(material: Material) -> str:
    """Whom the others are measured against: as comparison.json says, else `base`, else the first candidate."""
    named = (material.comparison.get("reference"), "base")
    return next((name for name in named if name in material.candidates), material.candidates[0])
