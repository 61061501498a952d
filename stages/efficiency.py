"""Efficiency: how fast each candidate generates, how much memory it takes and how much disk, beside the reference.

    python -m stages.efficiency --evaluations artifacts/evaluate

Absolute times depend on the machine and on what else it does. So all candidates stand in one process and take turns
(A, B, A, B …), and what counts is the ratio to the reference within a round. What stands for several rounds is their geometric mean
without the extremes (of five rounds the fastest and the slowest: `tunemill.statistics.middle`), so that one round in which the machine
did something else changes little; `compare` has its interval. Where not all candidates fit into memory together, each is loaded for
its turn, and warmed up before it is measured. A low-rank adapter is merged into its base, as one deploys it; a template, its shots and
a soft prompt are read with every prompt. Peak memory is that of a process of its own for each candidate. How this differs from HELM
is told in `tunemill.helm.timed`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from tunemill import checkpoints, profiling, records, serving, statistics
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Candidates, Params
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main, quieten


class Config(Params):
    """What is measured."""

    seed: int = Field(ge=0)
    """Of the choice of prompts."""
    reference: str
    """The candidate whose speed is 1."""
    rounds: int = Field(ge=1)
    """Measurements of each candidate, taking turns; one more round warms up and is not counted."""
    prompts: int = Field(ge=1)
    """Test prompts to measure with, and how many are answered in one batch."""
    new_tokens: int = Field(ge=1)
    """Tokens to generate for each prompt."""


def run(cfg: Config, *, evaluations: Path, candidates: Candidates, out: Path, runtime: Runtime, log: Log) -> Metrics:
    """Measure every candidate that was evaluated, and write efficiency.json under `out`."""
    if cfg.reference not in candidates.root:
        raise UserError(
            f"'{cfg.reference}' is no candidate",
            where="params.yaml: efficiency.reference",
            expected="one of " + ", ".join(candidates.root),
            exit_code=2,
        )
    # 1. Prompts that were evaluated, the same ones for every candidate.
    told = [row for _, row in records.read_objects(evaluations / cfg.reference / "instances.jsonl")]
    chosen = statistics.stratified([row["id"] for row in told], [row["group"] for row in told], cfg.prompts, cfg.seed)
    folders = {name: (Path(each.policy), Path(each.base)) for name, each in candidates.root.items()}

    # 2. Peak memory, before anything is timed.
    prompts = [told[index]["prompt"] for index in chosen]
    memory = serving.peak_memories(folders, runtime, prompts, cfg.new_tokens, quieten, log)
    disk = {name: profiling.disk_bytes(*folder) for name, folder in folders.items()}

    # 3. Speed: the candidates take turns.
    measured, together = serving.rounds(folders, runtime, prompts, cfg.new_tokens, cfg.rounds, log)

    # 4. Over the rounds, of the values and of their ratios to the reference within each.
    table: dict[str, dict[str, Any]] = {}
    for name, speeds in measured.items():
        table[name] = {}
        for field, ratio in (
            ("prefill_tokens_per_second", "prefill_ratio"),
            ("first_token_seconds", "first_token_ratio"),
            ("decode_tokens_per_second", "decode_ratio"),
            ("batch_decode_tokens_per_second", "batch_decode_ratio"),
        ):
            ours = [getattr(each, field) for each in speeds]
            theirs = [getattr(each, field) for each in measured[cfg.reference]]
            table[name][field] = statistics.middle(ours)
            table[name][ratio] = statistics.middle([a / b for a, b in zip(ours, theirs, strict=True)])
        # A counter that did not move within a round tells nothing of it.
        joules = [each.joules_per_token for each in speeds if each.joules_per_token]
        table[name]["joules_per_token"] = statistics.middle(joules) if len(joules) == len(speeds) else None
        table[name]["memory_bytes"] = memory[name]
        table[name]["memory_ratio"] = memory[name] / memory[cfg.reference]
        table[name]["disk_bytes"] = disk[name]
        table[name]["disk_ratio"] = disk[name] / disk[cfg.reference]
    checkpoints.write_json(
        out / "efficiency.json",
        {
            "candidates": table,
            "reference": cfg.reference,
            "in_memory": "all" if together else "one",
            "rounds": cfg.rounds,
            "prompts": len(chosen),
            "new_tokens": cfg.new_tokens,
            "device": runtime.device,
            "dtype": runtime.dtype,
            "threads": runtime.threads,
            "samples": {name: [each._asdict() for each in speeds] for name, speeds in measured.items()},
            "evaluated": {
                name: json.loads((evaluations / name / "scores.json").read_text(encoding="utf-8"))["policy_hash"]
                for name in table
            },
        },
    )
    return {f"{name}/{key}": value for name, row in table.items() for key, value in row.items()}


if __name__ == "__main__":
    main(run)
