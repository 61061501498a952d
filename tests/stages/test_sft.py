"""sft: exactly these files, the same bytes for the same seed, every weight moves, plain transformers loads the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stages import tuned
from tunemill.checkpoints import tree_hash


@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
def test_outputs_are_exactly_these_and_load_in_plain_transformers(family: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    tuned.prepare(tmp_path, family)
    given = {"max_tokens": 120, "store_dtype": "float32"}
    metrics = tuned.run("sft", tmp_path, tmp_path, "one", **given)
    chat = ["model/chat_template.jinja"] if family == "decoder-only" else []
    assert tuned.files(tmp_path / "one") == [
        "model/README.md",
        *chat,
        "model/config.json",
        "model/curve.csv",
        "model/generation_config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "model/training.json",
    ]
    assert metrics["parameters/share"] == 1
    assert json.loads((tmp_path / "one/model/training.json").read_text())["method"] == "full"
    kind = AutoModelForCausalLM if family == "decoder-only" else AutoModelForSeq2SeqLM
    before, after = kind.from_pretrained(tmp_path / "model"), kind.from_pretrained(tmp_path / "one/model")
    moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(moved)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "one/model")) == before.config.vocab_size
    tuned.run("sft", tmp_path, tmp_path, "two", **given)
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")
