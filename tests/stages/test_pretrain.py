"""pretrain: both families read the domain's text and know it better afterwards; plain transformers loads the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages import pretrain
from tests.stages import tuned
from tunemill import models
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile


def run(place: Path, text: Path, **change: Any) -> dict[str, float | None]:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("pretrain", pretrain.Config).model_dump()
    values |= tuned.SHORT | {"steps": 12, "max_tokens": 64, "learning_rate": 3e-3, "store_dtype": "float32"}
    (place / "work").mkdir()
    return dict(
        pretrain.run(
            pretrain.Config.model_validate(values | change),
            text=text,
            model=place / "model",
            out=place / "out",
            work=place / "work",
            runtime=tuned.CPU,
            log=Log(),
        )
    )


@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
def test_the_text_becomes_likelier(family: str, tmp_path: Path) -> None:
    tuned.prepare(tmp_path, family)
    documents = [f"Return the value of row {at}, or the default if there is none in the table." for at in range(40)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    metrics = run(tmp_path, tmp_path / "text.txt")
    assert metrics["validation/loss_last"] < metrics["validation/loss_first"] - 0.1  # type: ignore[operator]
    assert {"model/curve.csv", "model/training.json", "model/model.safetensors", "model/README.md"} <= set(
        tuned.files(tmp_path / "out")
    )
    assert models.load_base(tmp_path / "out/model", tuned.CPU).config.is_encoder_decoder == (family != "decoder-only")


def test_documents_of_every_kind_are_read(tmp_path: Path) -> None:
    rows = [{"text": "a body", "prompt": "unused", "completion": "a summary"}, {"text": "alone"}, {"prompt": "only"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert pretrain.read(tmp_path / "rows.jsonl") == ["a summary\n\na body", "alone", "only"]
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n[1]\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:2: not a JSON object"):
        pretrain.read(tmp_path / "bad.jsonl")
    (tmp_path / "empty.txt").write_text("\n\n \n")
    with pytest.raises(UserError, match="no text"):
        pretrain.read(tmp_path / "empty.txt")
