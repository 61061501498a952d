"""The evaluation that tests run, and what vouches for its test items."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from stages import evaluate
from tunemill.records import Example, HarmlessPrompt, Rating, RedTeamPrompt, TaskItem

CONFIG = evaluate.Config(
    seed=3,
    test_items=12,
    perturbed_items=5,
    red_team_items=6,
    harmless_items=3,
    probe_items=4,
    people_items=3,
    samples=2,
    probe_samples=2,
    temperature=1.0,
    top_p=0.9,
    sample_tokens=6,
    choice_items=4,
    task_items=4,
    shots=None,
    benchmarks=(),
    benchmark_folder="",
    benchmark_items=None,
    max_new_tokens=6,
    batch_tokens=10_000,
    batch_rows=5,
)
"""A few items of everything."""


def ids_hash(rows: Iterable[Example | Rating | RedTeamPrompt | HarmlessPrompt | TaskItem]) -> str:
    """What splits.json has of the items that were fixed before training."""
    return hashlib.sha256("\n".join(sorted(row.id for row in rows)).encode()).hexdigest()
