"""dpo and grpo in two processes on gloo: pairs give what one process gives, rollouts are shared out, and one of the two writes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.stages import aligned, tuned
from tests.tunemill.test_backbone import reward_folder
from tunemill.params import ParamsFile


def start(place: Path, stage: str, name: str, processes: int, **change: Any) -> Path:
    """Run a stage as a command in its own folder, under torchrun where there are several processes."""
    folder = place / name
    folder.mkdir()
    module: Any = importlib.import_module(f"stages.{stage}")
    values = ParamsFile(tuned.ROOT / "params.yaml").section(stage, module.Config).model_dump(mode="json")
    few = aligned.PAIRS if stage == "dpo" else aligned.ROLLOUTS
    sections = {
        stage: values | few | change,
        "runtime": {"device": "cpu", "dtype": "float32", "threads": 1},
        "scope": {"name": "test"},
    }
    (folder / "params.yaml").write_text(json.dumps(sections))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    flags = [f"--model={place / 'model'}", "--out=out"]
    flags += [f"--preferences={place / 'preferences.jsonl'}"] if stage == "dpo" else []
    flags += [f"--prompts={place / 'prompts.jsonl'}", f"--reward={place / 'reward'}"] if stage == "grpo" else []
    ended = subprocess.run(
        [sys.executable, "-m", *(torchrun if processes > 1 else []), f"stages.{stage}", *flags],
        cwd=folder,
        env={**tuned.environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder / "out/adapter"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    aligned.prepare(folder)
    reward_folder(folder / "model", folder / "reward")
    return folder


@pytest.mark.slow
def test_pairs_shared_by_two_processes_make_the_same_steps(place: Path) -> None:
    one, two = (start(place, "dpo", f"dpo-{count}", count, batch_size=2, accumulation=2) for count in (1, 2))
    for row, other in zip(aligned.curve(one), aligned.curve(two), strict=True):
        for name in ("loss", "margin", "accuracy", "chosen"):
            assert row[name] == pytest.approx(other[name], rel=2e-3, abs=1e-5), name
    told = json.loads((two / "training.json").read_text())
    assert (told["batch_size"], told["micro_batch"]) == (4, 2)


@pytest.mark.slow
def test_rollouts_are_shared_by_two_processes(place: Path) -> None:
    folder = start(place, "grpo", "grpo-2", 2, updates=2)
    first, second = aligned.curve(folder)
    told = json.loads((folder / "training.json").read_text())
    assert told["micro_batch"] == 6  # of twelve responses, half on each
    assert first["reward"] == pytest.approx(told["normalization"][0], rel=1e-3)  # of the responses of both
    assert first["kl"] != second["kl"]
