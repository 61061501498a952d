"""Comparing what was evaluated, as tests have it lie: everything in one folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages import compare
from tunemill.log import Log
from tunemill.params import Candidates

MARGINS = compare.Margins(refusal=0.05, nonsense=0.05, surprise=0.25, offence=0.05, helpful=0.05, task=1.0)
CONFIG = compare.Config(
    seed=0,
    resamples=2000,
    reference="base",
    min_groups=6,
    pairs=(),
    seeds={},
    aligned={},
    controls={},
    margins=MARGINS,
)
"""Nothing but every candidate against `base`; tests say what they change."""


def named(names: Iterable[str]) -> Candidates:
    """Candidates of these names; their checkpoints are never looked at."""
    return Candidates.model_validate({name: {"policy": name, "base": "base"} for name in names})


def compared(
    root: Path, candidates: Candidates, cfg: compare.Config, **further: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare the candidates in `root`/evaluate by `root`/scope.

    Args:
        root: where everything lies.
        candidates: whom to compare.
        cfg: how.
        further: inputs of the stage beside these.

    Returns:
        comparison.json and the stage's metrics.
    """
    found = compare.run(
        cfg,
        evaluations=root / "evaluate",
        scope=root / "scope",
        candidates=candidates,
        out=root / "comparison.json",
        out_scores=root / "scores.csv",
        out_table=root / "table",
        log=Log(),
        **further,
    )
    # It is to hold no NaN, which JSON has no word for.
    written = json.loads((root / "comparison.json").read_text(), parse_constant=_no_number)
    return written, dict(found)


def _no_number(word: str) -> None:
    raise AssertionError(f"{word} in comparison.json")
