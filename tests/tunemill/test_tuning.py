"""Tuning: little padding, loss on the completion only, LoRA starts as the base, a killed run ends the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tunemill import checkpoints, models, runtime, tuning
from tunemill.log import Log

CPU = runtime.Runtime("cpu", "float32", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tiny_model.build(path)
    return path


def pairs(folder: Path, count: int = 24) -> list[tuning.Encoded]:
    tokenizer = models.load_tokenizer(folder)
    return [
        tuning.encode(tokenizer, "read the " + "value " * (at % 7 + 1), "write the table " + "row " * (at % 3))
        for at in range(count)
    ]


def test_plan_uses_every_row_once_before_any_twice_and_pads_little() -> None:
    lengths = [(at * 37) % 200 + 10 for at in range(64)]
    plan = tuning.plan_batches(lengths, 8, 8, seed=3)
    assert sorted(row for batch in plan for row in batch) == list(range(64))
    padded = sum(max(lengths[row] for row in batch) * 8 for batch in plan)
    in_order = sum(max(lengths[at : at + 8]) * 8 for at in range(0, 64, 8))
    assert padded < 1.15 * sum(lengths) < in_order
    assert tuning.plan_batches(lengths, 8, 8, seed=3) == plan
    assert tuning.plan_batches(lengths, 8, 8, seed=4) != plan
    again = [row for batch in tuning.plan_batches(lengths, 8, 12, seed=3) for row in batch]
    assert {again.count(row) for row in range(64)} == {1, 2}


def train(folder: Path, work: Path, steps: int, seed: int = 5) -> tuple[Any, list[tuning.Point]]:
    from peft import LoraConfig

    runtime.seed_everything(seed)
    rows = pairs(folder)
    return tuning.train(
        models.load_base(folder, CPU),
        models.load_tokenizer(folder),
        rows,
        rows[:4],
        tuning.Schedule(steps, 4, 1, 1e-2, 2, 0.0, 1.0, 4, 4, seed),
        adapter=LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM"),
        device="cpu",
        work=work,
        log=Log(),
    )


def test_lora_learns_and_its_curve_tells(folder: Path, tmp_path: Path) -> None:
    _, points = train(folder, tmp_path, 12)
    validated = [point.validation_loss for point in points if point.validation_loss is not None]
    assert len(validated) == 4  # before the first step, then every four
    assert validated[-1] < validated[0] - 0.5
    lines = tuning.curve_csv(points).splitlines()
    assert lines[0] == "step,loss,validation_loss,learning_rate,tokens"
    assert len(lines) == 1 + 13
    assert lines[1].startswith("0,,")


def test_an_adapter_starts_as_the_base(folder: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    base = models.load_base(folder, CPU)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = base(ids).logits
        after = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))(ids).logits
    assert torch.equal(before, after)


def test_a_run_continued_from_a_checkpoint_ends_the_same(folder: Path, tmp_path: Path) -> None:
    import torch

    whole, curve = train(folder, tmp_path / "whole", 10)
    # What a kill after step 9 leaves: complete checkpoints at 4 and 8, the last one damaged.
    (tmp_path / "killed").mkdir()
    train(folder, tmp_path / "killed", 10)
    assert (tmp_path / "killed/checkpoint-8" / checkpoints.MANIFEST).is_file()
    shutil.rmtree(tmp_path / "killed/checkpoint-10", ignore_errors=True)
    (tmp_path / "killed/checkpoint-8/optimizer.pt").write_bytes(b"torn")
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    for each in (tmp_path / "other").glob("checkpoint-*"):
        if each.name != "checkpoint-8":
            shutil.rmtree(each)
    resumed, again = train(folder, tmp_path / "other", 10)
    assert again == curve
    for (name, one), (_, other) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert checkpoints.newest(tmp_path / "killed") is None  # the torn one is passed over; two are kept at most


def test_spread_is_even() -> None:
    rows = [tuning.Encoded([at], [0]) for at in range(10)]
    assert [row.prompt[0] for row in tuning.spread(rows, 4)] == [0, 2, 5, 7]
    assert tuning.spread(rows, 99) == rows
