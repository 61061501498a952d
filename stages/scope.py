"""Scope: define the use case as narrowly as possible, and write down what success means before anything is tried.

python -m stages.scope --out artifacts/scope
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from tunemill.checkpoints import write_json
from tunemill.params import Params
from tunemill.stage import Metrics, main

MetricName = Literal["rouge1", "rouge2", "rougeL", "bleu"]


class Constraints(Params):
    """What the result may cost, and on what terms."""

    licenses: tuple[str, ...] = Field(min_length=1)
    """Licences of a base model's weights that are allowed."""
    memory_gib: float = Field(gt=0)
    """Most memory that training and serving may take, GiB."""
    disk_gib: float = Field(gt=0)
    """Most disk that one run may take, GiB."""
    minutes: float = Field(gt=0)
    """Longest that one run may take."""
    decode_ratio: float = Field(gt=0)
    """Slowest generation allowed, as a share of the base model's tokens per second."""


class Criterion(Params):
    """One condition of success: what `metric` of `candidate` is to reach, or not to exceed (`tunemill.promotion`)."""

    metric: str
    """What is measured: a figure of the comparison, such as rouge1, toxicity/instruction/harm_share, decode_ratio or disk_mib."""
    candidate: str
    """Name of the candidate that must fulfil it."""
    against: str | None
    """Name of the candidate or baseline it is compared with, by difference or (…_ratio) by ratio; null: the value itself counts."""
    at_least: float | None = None
    """What the lower end of the 95% interval must reach."""
    at_most: float | None = None
    """What the upper end of the 95% interval must not exceed."""
    why: str
    """The reason, for whoever reads the report."""

    @model_validator(mode="after")
    def _one_threshold(self) -> Criterion:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("name one of at_least and at_most, and not both")
        return self


class Config(Params):
    """The use case."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """Short name: lower-case letters, digits, hyphens. It names the MLflow experiment."""
    title: str
    """What a person calls it."""
    task: str
    """The task, in a sentence."""
    audience: str
    """Who uses the result."""
    kind: Literal["summarisation", "translation", "text-generation", "classification", "token-classification"]
    """Kind of task; it says which families of models fit (`tunemill/planning.py`: FAMILIES)."""
    harms: tuple[str, ...]
    """What the result must not do to anybody."""
    limits: tuple[str, ...]
    """What is known to be weak about the data or the method; printed in the report."""
    constraints: Constraints
    """What the result may cost."""
    primary_metric: MetricName
    """The one metric that decides."""
    criteria: tuple[Criterion, ...] = Field(min_length=1)
    """The contract: success is exactly this."""


def run(cfg: Config, *, out: Path) -> Metrics:
    """Write the use case down under `out`."""
    # As it was asked: of a criterion's two thresholds only the one that was named.
    asked = cfg.model_dump(mode="json", exclude_unset=True)
    write_json(out / "scope.json", asked)
    # What a base model must fulfil, by itself: a criterion that is changed is no reason to choose the model again.
    write_json(out / "requirements.json", {name: asked[name] for name in ("kind", "primary_metric", "constraints")})
    return {"criteria": len(cfg.criteria)}


if __name__ == "__main__":
    main(run)
