"""A tiny model, pairs, prompts and rewards, and the stages that align without PPO run on them."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path
from typing import Any

from tests.stages import tuned
from tunemill import models, records
from tunemill.log import Log
from tunemill.params import ParamsFile

PAIRS = {
    "learning_rate": 5e-3,
    "steps": 6,
    "batch_size": 4,
    "accumulation": 1,
    "warmup_steps": 0,
    "checkpoint_steps": 2,
}
ROLLOUTS = {
    "learning_rate": 5e-3,
    "prompts": 4,
    "samples": 3,
    "response_tokens": 5,
    "updates": 4,
    "micro_batch": 6,
    "warmup_updates": 0,
    "checkpoint_updates": 1,
}


def prepare(place: Path, family: str = "decoder-only") -> None:
    """Write a model, pairs whose better answer is a short one, and prompts."""
    models.make_random(place / "model", 2, 64, 0, "float32", family)  # type: ignore[arg-type]
    words = ["value", "name", "key", "type", "object", "class", "function", "method", "file", "path"]
    pairs = []
    for at, word in enumerate(words):
        count = 1 + at % 3
        for number in range(count):
            good, bad = f"return the {word} {number}", f"delete every {word} and stop all {number}"
            pairs.append(
                records.Preference(
                    records.row_id(word, good, bad), f"read the {word}", good, bad, 1.0, 1.0 / count, word, "ratings"
                )
            )
    long = "word " * 600
    pairs.append(records.Preference("f" * 12, "read the long", "yes", long, 1.0, 1.0, "long", "ratings"))
    records.write(place / "preferences.jsonl", pairs)
    prompts = [f"{one} the {other}" for one in ("read", "write", "delete") for other in words]
    rows = [records.RedTeamPrompt(records.row_id(each), each, "instruction", "made", None) for each in prompts]
    rows.append(records.RedTeamPrompt(records.row_id("x"), "once upon", "continuation", "made", None))
    rows.append(records.RedTeamPrompt(records.row_id("y"), "long " * 300, "instruction", "made", None))
    records.write(place / "prompts.jsonl", rows)


def reward(place: Path, **told: Any) -> Path:
    """A folder with a reward.json."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "reward.json").write_text(json.dumps(told))
    return place


def run(
    stage: str, place: Path, out: Path, log: Log | None = None, work: Path | None = None, **change: Any
) -> dict[str, float | None]:
    """Run a stage with the values of params.yaml and what `change` says; paths among it are the stage's inputs."""
    module: Any = importlib.import_module(f"stages.{stage}")
    values = ParamsFile(tuned.ROOT / "params.yaml").section(stage, module.Config).model_dump()
    few = PAIRS if stage in ("dpo", "kto") else ROLLOUTS if stage in ("grpo", "rloo") else {}
    inputs = {name: value for name, value in change.items() if isinstance(value, Path)}
    inputs |= {"preferences": place / "preferences.jsonl"} if stage in ("dpo", "kto") else {}
    inputs |= {"prompts": place / "prompts.jsonl"} if stage in ("grpo", "rloo") else {}
    change = {name: value for name, value in change.items() if name not in inputs}
    work = work or out.with_name(f"{out.name}-work")
    work.mkdir(exist_ok=True)
    if stage != "best_of":
        inputs["work"] = work
    return dict(
        module.run(
            module.Config.model_validate(values | few | change),
            **{"model": place / "model", **inputs},
            out=out,
            runtime=tuned.CPU,
            log=log or Log(),
        )
    )


def curve(folder: Path) -> list[dict[str, float]]:
    """The training curve."""
    with (folder / "updates.csv").open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
