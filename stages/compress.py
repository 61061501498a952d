"""Compress: which smaller form of the tuned model to take: sizes, memory, speed and quality of all `variants`, and the Pareto frontier.

    python -m stages.compress --measured artifacts/variant --validation artifacts/validate/validation.jsonl --out artifacts/compress

Quality is what stage `variant` has measured on validation rows, paired with the parent's on the same rows. Speed is measured here, all
in one process, taking turns (as in stage `efficiency`, which says how); peak memory in a process of its own for each. Advised, and
copied to `model`, is the smallest within `tolerance` of the best quality that is not slower than `slowest` times the parent. It is the
candidate `compact`, which the test rows decide about.

Writes compress.json, and `model`: a copy of the advised one.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from tunemill import checkpoints, compression, records, serving, statistics
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import Params, Variants
from tunemill.runtime import Runtime
from tunemill.stage import Metrics, main, quieten

LEVEL = 0.95
RATES = ("prefill_tokens_per_second", "decode_tokens_per_second")


class Config(Params):
    """What is measured, and what decides."""

    parent: str
    """The one of `variants` that the others were made of."""
    metric: Literal["rouge1", "rouge2", "rougeL"]
    """Quality."""
    tolerance: float = Field(ge=0, lt=1)
    """Share of the best quality that may be lost."""
    slowest: float = Field(ge=0)
    """Least tokens per second written, as a share of the parent's."""
    rounds: int = Field(ge=1)
    """Measurements of each, taking turns, after one that warms up."""
    prompts: int = Field(ge=1)
    """Validation prompts to measure speed with."""
    new_tokens: int = Field(ge=1)
    """Tokens written for each."""
    seed: int = Field(ge=0)
    """Of the resamples, and of the choice of prompts."""
    resamples: int = Field(ge=100)
    """Bootstrap resamples."""


def run(
    cfg: Config,
    *,
    measured: Path,
    validation: Path,
    variants: Variants,
    out: Path,
    runtime: Runtime,
    log: Log,
) -> Metrics:
    """Measure all variants, write compress.json and the advised one under `out`."""
    names = tuple(variants.root)
    if cfg.parent not in names:
        raise UserError(
            f"'{cfg.parent}' is no variant",
            where="params.yaml: compress.parent",
            expected="one of " + ", ".join(names),
            exit_code=2,
        )
    folders = {name: (Path(each.policy), Path(each.base)) for name, each in variants.root.items()}

    # 1. What was measured of quality, all on the same rows.
    facts = {name: json.loads((measured / name / "variant.json").read_text(encoding="utf-8")) for name in names}
    rows = {name: read(measured / name / "rows.jsonl", cfg.metric) for name in names}
    likely = {name: read(measured / name / "likelihoods.jsonl", "logprob") for name in names}
    first = rows[cfg.parent]
    for name in names:
        if not all(math.isfinite(row["logprob"]) for row in likely[name]):
            raise UserError(
                f"'{name}' finds right answers neither likely nor unlikely: its logits are no numbers",
                where=str(measured / name),
                fix="leave it out of `variants`, or compute in another runtime.dtype",
            )
        if [row["id"] for row in rows[name]] != [row["id"] for row in first]:
            raise UserError(
                f"'{name}' and '{cfg.parent}' have answered other rows",
                where=str(measured / name),
                fix="run the stage that asks them again: dvc repro",
            )

    # 2. Memory and speed, in turns.
    by_id = {each.id: each.prompt for each in records.read(validation, records.Example)}
    picked = statistics.stratified([row["id"] for row in first], [row["group"] for row in first], cfg.prompts, cfg.seed)
    prompts = [by_id[first[index]["id"]] for index in picked]
    memory = serving.peak_memories(folders, runtime, prompts, cfg.new_tokens, quieten, log)
    speeds, together = serving.rounds(folders, runtime, prompts, cfg.new_tokens, cfg.rounds, log)

    # 3. Beside the parent.
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        groups = [row["group"] for row in rows[name]]
        own, theirs = ([row[cfg.metric] for row in each] for each in (rows[name], first))
        quality = compression.compared(own, theirs, groups, cfg.resamples, cfg.seed, LEVEL)
        sure, ratio = compression.perplexities(
            [(row["logprob"], row["tokens"]) for row in likely[name]],
            [(row["logprob"], row["tokens"]) for row in likely[cfg.parent]],
            [row["group"] for row in likely[name]],
            cfg.resamples,
            cfg.seed,
            LEVEL,
        )
        known = facts[name]
        table[name] = {
            "made_by": "parent" if name == cfg.parent else known["made_by"],
            **{key: known[key] for key in ("method", "runtime", "bytes", "parameters", "sparsity", "sparsity_all")},
            "bytes_ratio": known["bytes"] / facts[cfg.parent]["bytes"],
            "bytes_per_float32": known["bytes"] / (4 * known["parameters"]),
            "memory_bytes": memory[name],
            "memory_ratio": memory[name] / memory[cfg.parent],
            **rates(speeds[name], speeds[cfg.parent]),
            "perplexity": ends(sure),
            "perplexity_ratio": ends(ratio),
            "quality": ends(quality.value),
            "difference": {
                "diff": quality.difference.diff,
                "ci_low": quality.difference.low,
                "ci_high": quality.difference.high,
                "p": quality.difference.p,
            },
            "share": ends(quality.share),
            "policy_hash": known["policy_hash"],
        }

    # 4. The frontiers, and which one to take.
    small = compression.frontier({name: (row["bytes"], row["quality"]["value"]) for name, row in table.items()})
    fast = compression.frontier(
        {name: (-row["decode_ratio"]["value"], row["quality"]["value"]) for name, row in table.items()}
    )
    for name, row in table.items():
        row["on_frontier"] = {"bytes": name in small, "decode": name in fast}
    taken = compression.advise(
        {
            name: compression.Measured(row["quality"]["value"], row["bytes"], row["decode_ratio"]["value"])
            for name, row in table.items()
        },
        cfg.tolerance,
        cfg.slowest,
    )
    reason = advice(taken, table, cfg)
    log.note(reason)

    # 5. Write.
    shutil.copytree(folders[taken][0], out / "model")
    checkpoints.write_json(
        out / "compress.json",
        {
            "parent": cfg.parent,
            "metric": cfg.metric,
            "tolerance": cfg.tolerance,
            "slowest": cfg.slowest,
            "items": len(first),
            "groups": len({row["group"] for row in first}),
            "perplexity_items": len(likely[cfg.parent]),
            "rounds": cfg.rounds,
            "prompts": len(prompts),
            "new_tokens": cfg.new_tokens,
            "in_memory": "all" if together else "one",
            "device": runtime.device,
            "dtype": runtime.dtype,
            "threads": runtime.threads,
            "level": LEVEL,
            "variants": table,
            "advice": {"variant": taken, "reason": reason},
        },
    )
    told = ("bytes_ratio", "bytes_per_float32", "memory_ratio")
    valued = ("decode_ratio", "prefill_ratio", "perplexity_ratio", "quality", "share")
    return {
        **{f"{name}/{key}": row[key] for name, row in table.items() for key in told},
        **{f"{name}/{key}": row[key]["value"] for name, row in table.items() for key in valued},
    }


def read(path: Path, needed: str) -> list[dict[str, Any]]:
    """Rows of one variant that have the value needed."""
    return [row for _, row in records.read_objects(path) if row[needed] is not None]


def ends(found: statistics.Interval) -> dict[str, float | None]:
    """An interval, as it is written; what is no finite number is undefined."""
    known = {"value": found.value, "ci_low": found.low, "ci_high": found.high}
    return {name: None if each is None or not math.isfinite(each) else each for name, each in known.items()}


def rates(ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, Any]:
    """Tokens per second, and as a ratio to the parent's within each round with an interval over the rounds (Yuen 1974)."""
    import numpy as np

    def over(values: Sequence[float]) -> dict[str, float | None]:
        sure = statistics.yuen(np.log(np.array(values)), LEVEL)
        low, high = (None if end is None else float(np.exp(end)) for end in (sure.low, sure.high))
        return {"value": statistics.middle(values), "ci_low": low, "ci_high": high}

    found: dict[str, Any] = {}
    for field in RATES:
        own, other = ([getattr(each, field) for each in measured] for measured in (ours, theirs))
        found[field] = over(own)
        found[field.replace("tokens_per_second", "ratio")] = over([a / b for a, b in zip(own, other, strict=True)])
    return found


def advice(taken: str, table: Mapping[str, Mapping[str, Any]], cfg: Config) -> str:
    """The sentence that says which one, and why."""
    row, parent = table[taken], table[cfg.parent]
    share, speed = row["share"], row["decode_ratio"]["value"]
    sure = "" if share["ci_low"] is None else f" [{100 * share['ci_low']:.1f}, {100 * share['ci_high']:.1f}]"
    kept = "" if share["value"] is None else f", {100 * share['value']:.1f}%{sure} of its {cfg.metric}"
    size, good = f"{row['bytes'] / 2**20:.0f} MiB", f"measured within {100 * cfg.tolerance:g}% of the best quality"
    if taken == cfg.parent:
        return f"{taken} itself, {size}: nothing smaller is {good} and writes at least {cfg.slowest:g} times as fast"
    fast = f"that writes at least {cfg.slowest:g} times as fast as {cfg.parent}"
    which = (
        f"the smallest {good} {fast}"
        if speed >= cfg.slowest
        else f"the smallest {good}, though none of these is one {fast}"
    )
    return f"{taken}, {which}: {size} instead of {parent['bytes'] / 2**20:.0f}, {speed:.2f} times as fast{kept}"


if __name__ == "__main__":
    main(run)
