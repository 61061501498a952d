"""pretrain: both families read the domain's text and know it better afterwards; plain transformers loads the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages import pretrain
from tests.stages import tuned
from tunemill import models, pretraining
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
    # JSON allows U+2028 in a string, and str.splitlines would cut the row there.
    (tmp_path / "breaks.jsonl").write_text('{"text": "one\u2028row"}\n\n{"text": "two"}\n', encoding="utf-8")
    assert pretrain.read(tmp_path / "breaks.jsonl") == ["one\u2028row", "two"]
    (tmp_path / "texts").mkdir()
    for name, content in (("b.txt", "third"), ("a.txt", "first\n\nsecond"), ("c.md", "unread")):
        (tmp_path / "texts" / name).write_text(content)
    assert pretrain.read(tmp_path / "texts") == ["first", "second", "third"]


def test_what_is_no_text_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n[1]\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:2: not a JSON object"):
        pretrain.read(tmp_path / "bad.jsonl")
    (tmp_path / "empty.txt").write_text("\n\n \n")
    with pytest.raises(UserError, match="no text"):
        pretrain.read(tmp_path / "empty.txt")
    (tmp_path / "number.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    with pytest.raises(UserError, match=r"number\.jsonl:2: no text"):
        pretrain.read(tmp_path / "number.jsonl")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt: not UTF-8 \(byte 2\)"):
        pretrain.read(tmp_path / "latin.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"no text\n.*in a file that ends in \.txt"):
        pretrain.read(tmp_path / "folder")


@pytest.mark.parametrize(
    ("density", "span", "possible"), [(0.15, 3, True), (0.4, 1, True), (0.6, 1, False), (0.5, 1, False)]
)
def test_more_holes_than_text_are_refused_beforehand(density: float, span: float, possible: bool) -> None:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("pretrain", pretrain.Config).model_dump()
    change = {"density": density, "span": span}
    if not possible:
        with pytest.raises(ValueError, match=f"longer spans, or a smaller density than {density}"):
            pretrain.Config.model_validate(values | change)
        return
    cfg = pretrain.Config.model_validate(values | change)
    for length in range(pretraining.SHORTEST, 129):
        found = pretraining.corrupt(range(length), range(1000, 1200), 1, cfg.density, cfg.span, "0")
        assert len(found.prompt) + len(found.completion) > length
