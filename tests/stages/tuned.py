"""A tiny model with a handful of pairs, and the tuning stages run on them."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from tests import tiny_model
from tunemill import models, records
from tunemill.log import Log
from tunemill.params import ParamsFile
from tunemill.runtime import Runtime

ROOT = Path(__file__).resolve().parents[2]
CPU = Runtime("cpu", "float32", 2)
SHORT = {"steps": 4, "batch_size": 4, "validation_steps": 2, "checkpoint_steps": 2, "validation_items": 4}


def prepare(place: Path, family: str = "decoder-only") -> None:
    """Write a model, 21 training and 7 validation pairs; one of each is far too long."""
    if family == "decoder-only":
        tiny_model.build(place / "model")
    else:
        models.make_random(place / "model", 2, 32, 3, "float32", "encoder-decoder")
    for name, count in (("train", 20), ("validation", 6)):
        rows = [
            records.Example(
                id=f"{at:012x}",
                prompt=f"{name} value {at} " + "word " * (at % 5),
                completion=f"return row {at}",
                group="all",
                text=None,
                source=f"made:{at}",
            )
            for at in range(count)
        ]
        rows.append(
            records.Example(id="f" * 12, prompt="long " * 400, completion="x", group="all", text=None, source="made")
        )
        records.write(place / f"{name}.jsonl", rows)


def run(
    stage: str, place: Path, tmp_path: Path, name: str, tasks: Path | None = None, **change: object
) -> dict[str, float | None]:
    """Run a tuning stage with the values of params.yaml, few steps and what `change` says; its outputs are in `tmp_path/name`."""
    module: Any = importlib.import_module(f"stages.{stage}")
    values = ParamsFile(ROOT / "params.yaml").section(stage, module.Config).model_dump()
    (tmp_path / f"work-{name}").mkdir()
    return dict(
        module.run(
            module.Config.model_validate(values | SHORT | change),
            train=place / "train.jsonl",
            validation=place / "validation.jsonl",
            model=place / "model",
            **({"tasks": tasks} if tasks else {}),
            out=tmp_path / name,
            work=tmp_path / f"work-{name}",
            runtime=CPU,
            log=Log(),
        )
    )


def environment() -> dict[str, str]:
    """Of a stage that is started as a command anywhere."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TUNEMILL_TRACKING": "off"}


def files(folder: Path) -> list[str]:
    """Relative paths of all files under `folder`."""
    return sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file())
