"""lora: exactly these files, the same bytes for the same seed, and what is too long is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages import lora
from tests import tiny_model
from tunemill import models, records
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile
from tunemill.runtime import Runtime

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lora")
    tiny_model.build(place / "model")
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
    return place


def run(place: Path, tmp_path: Path, name: str, **change: object) -> dict[str, float | None]:
    values = ParamsFile(ROOT / "params.yaml").section("lora", lora.Config).model_dump()
    values |= {"steps": 4, "batch_size": 4, "validation_steps": 2, "checkpoint_steps": 2, "validation_items": 4}
    (tmp_path / f"work-{name}").mkdir()
    return dict(
        lora.run(
            lora.Config.model_validate(values | change),
            train=place / "train.jsonl",
            validation=place / "validation.jsonl",
            model=place / "model",
            out=tmp_path / name,
            work=tmp_path / f"work-{name}",
            runtime=Runtime("cpu", "float32", 2),
            log=Log(),
        )
    )


def test_outputs_are_exactly_these_and_the_same_every_time(place: Path, tmp_path: Path) -> None:
    metrics = run(place, tmp_path, "one", seeds=[3, 4])
    files = sorted(
        each.relative_to(tmp_path / "one").as_posix() for each in (tmp_path / "one").rglob("*") if each.is_file()
    )
    assert files == [
        "adapter-4/adapter_config.json",
        "adapter-4/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "curve.csv",
        "training.json",
    ]
    assert metrics["train/too_long"] == 1
    assert metrics["train/examples"] == 16
    assert metrics["validation/loss_last"] is not None
    training = json.loads((tmp_path / "one/training.json").read_text())
    assert training["trainable_parameters"] == metrics["parameters/trainable"]
    run(place, tmp_path, "two", seeds=[3, 4])
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")
    seeds = [(tmp_path / "one" / name / "adapter_model.safetensors").read_bytes() for name in ("adapter", "adapter-4")]
    assert seeds[0] != seeds[1]


def test_plain_peft_loads_the_adapter(place: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run(place, tmp_path, "one", targets=["q_proj", "v_proj"])
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "model"), tmp_path / "one/adapter")
    assert policy.peft_config["default"].target_modules == {"q_proj", "v_proj"}
    assert models.is_adapter(tmp_path / "one/adapter")


def test_data_that_is_all_too_long_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the 21 training pairs has at most 16 tokens"):
        run(place, tmp_path, "one", max_tokens=16)
