"""Two processes on gloo: really two, DDP and FSDP2 (really sharded) give what one process gives, and one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.stages import tuned
from tunemill.params import ParamsFile

WATCH = """
import json, os, sys
from pathlib import Path

import tunemill.tuning as tuning

real, steps = tuning.finite, []


def watched(model):
    steps.append(1)
    if len(steps) == int(os.environ.get("DIE_AT", "0")):
        os._exit(9)
    import torch.distributed as distributed
    from torch.distributed.tensor import DTensor

    parts = [each.to_local().numel() if isinstance(each, DTensor) else each.numel() for each in model.parameters()]
    seen = {
        "world": distributed.get_world_size() if distributed.is_initialized() else 1,
        "held": sum(parts),
        "all": sum(each.numel() for each in model.parameters()),
    }
    Path(os.environ["SEEN"], os.environ.get("RANK", "0")).write_text(json.dumps(seen))
    return real(model)


tuning.finite = watched
from stages import distill, lora, sft
from tunemill.stage import main

main({"distill": distill, "lora": lora, "sft": sft}[sys.argv[1]].run, sys.argv[2:], distributed=True)
"""

SMALL = {
    "layers": 3, "choose": "influence", "temperature": 2.0, "alpha": 0.5, "cosine": 0.3, "sequence_level": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("distributed")
    tuned.prepare(place)
    (place / "watch.py").write_text(WATCH)
    return place


def start(
    place: Path, stage: str, name: str, processes: int, die_at: int = 0, **change: Any
) -> subprocess.CompletedProcess[str]:
    """Run a tuning stage as a command in its own folder, under torchrun where there are several processes."""
    from importlib import import_module

    folder = place / name
    folder.mkdir(exist_ok=True)
    module: Any = import_module(f"stages.{stage}")
    values = ParamsFile(tuned.ROOT / "params.yaml").section(stage, module.Config).model_dump(mode="json")
    sections = {
        stage: values | tuned.SHORT | {"steps": 6} | change,
        "runtime": {"device": "cpu", "dtype": "float32", "threads": 1},
        "scope": {"name": "test"},
    }
    (folder / "params.yaml").write_text(json.dumps(sections))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    flags = [f"--{each}={place / each}.jsonl" for each in ("train", "validation")]
    named = ("policy", "base", "student") if stage == "distill" else ("model",)
    flags += [f"--{each}={place / 'model'}" for each in named] + (["--candidate=small"] if stage == "distill" else [])
    command = [*(torchrun if processes > 1 else []), place / "watch.py", stage, *flags]
    return subprocess.run(
        [sys.executable, *command, "--out=out"],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(tuned.ROOT),
            "SEEN": str(folder),
            "DIE_AT": str(die_at),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def curve(folder: Path) -> list[list[float]]:
    lines = next((folder / "out").glob("*/curve.csv")).read_text().splitlines()[1:]
    return [[float(value or "nan") for value in line.split(",")] for line in lines]


def seen(folder: Path, rank: int) -> dict[str, int]:
    found: dict[str, int] = json.loads((folder / str(rank)).read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "sharding", "change"),
    [
        ("lora", "none", {"batch_size": 2, "accumulation": 2}),  # two forward passes in one process, one in each of two
        ("sft", "fsdp", {}),
        ("distill", "none", {"variants": {"small": SMALL}}),
        ("distill", "fsdp", {"variants": {"small": SMALL}}),
    ],
    ids=["DDP", "FSDP2", "a student, DDP", "a student, FSDP2"],
)
def test_two_processes_give_what_one_gives(place: Path, stage: str, sharding: str, change: dict[str, Any]) -> None:
    import torch
    from safetensors.torch import load_file

    one, two = (f"{stage}-{sharding}-{count}" for count in (1, 2))
    if sharding == "fsdp":  # killed in the fifth step, and continued from the sharded checkpoint of the fourth
        start(place, stage, two, 2, **change, sharding=sharding, die_at=5)
        assert not (place / two / "out").exists()
    for name, count in ((one, 1), (two, 2)):
        done = start(place, stage, name, count, **change, sharding=sharding if count > 1 else "none")
        assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        found = seen(place / two, rank)
        assert found["world"] == 2
        share = found["held"] / found["all"]
        assert share == 1 if sharding == "none" else 0.45 < share < 0.55
    if sharding == "fsdp":
        assert "continuing at 4" in done.stderr
    assert seen(place / one, 0)["world"] == 1
    assert torch.allclose(
        torch.tensor(curve(place / one)), torch.tensor(curve(place / two)), rtol=2e-4, equal_nan=True
    ), (curve(place / one), curve(place / two))
    weights = "out/adapter/adapter_model.safetensors" if stage == "lora" else "out/model/model.safetensors"
    ours, theirs = (load_file(place / name / weights) for name in (one, two))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        # bfloat16 on disk; Adam's first steps have the size of the learning rate, whatever the gradient's.
        assert torch.allclose(tensor.float(), theirs[key].float(), atol=5e-3), key
    assert tuned.files(place / two / "out") == tuned.files(place / one / "out")
    name = "small" if stage == "distill" else stage
    assert [each.name for each in (place / two / "metrics").rglob("*.json")].count(f"{name}.json") == 1


def test_what_cannot_be_shared_is_refused(place: Path) -> None:
    done = start(place, "sft", "alone", 1, sharding="fsdp")
    assert done.returncode == 2
    assert "one process has nobody to share the model with" in done.stderr
