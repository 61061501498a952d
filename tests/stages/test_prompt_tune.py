"""prompt_tune: exactly these files, it starts as the words it was given, and nothing but the soft prompt moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages import prompt_tune
from tests.stages import tuned
from tunemill import models, tuning
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError
from tunemill.params import ParamsFile


def config(**change: object) -> prompt_tune.Config:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("prompt_tune", prompt_tune.Config).model_dump()
    return prompt_tune.Config.model_validate(values | change)


@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
def test_outputs_are_exactly_these_and_load_in_plain_peft(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    tuned.prepare(tmp_path, family)
    metrics = tuned.run("prompt_tune", tmp_path, tmp_path, "one", virtual_tokens=6, max_tokens=120)
    assert tuned.files(tmp_path / "one") == [
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/curve.csv",
        "adapter/training.json",
    ]
    base = models.load_base(tmp_path / "model", tuned.CPU)
    width = base.config.hidden_size
    assert metrics["parameters/trainable"] == 6 * width
    policy = PeftModel.from_pretrained(base, tmp_path / "one/adapter")
    soft = models.soft_prompt(policy)
    assert soft is not None
    assert soft.shape == (6, width)
    tuned.run("prompt_tune", tmp_path, tmp_path, "two", virtual_tokens=6, max_tokens=120)
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")


def test_the_soft_prompt_starts_as_the_text_or_as_words_of_the_vocabulary(tmp_path: Path) -> None:
    import torch

    tuned.prepare(tmp_path)
    tokenizer = models.load_tokenizer(tmp_path / "model")

    def start(cfg: prompt_tune.Config, seed: int = 1) -> Any:
        base = models.load_base(tmp_path / "model", tuned.CPU)
        policy = tuning.adapt(base, prompt_tune.adapter(cfg), "prompt_tune")
        prompt_tune.initialise(policy, tokenizer, cfg, seed)
        soft = models.soft_prompt(policy)
        assert soft is not None
        return soft.detach().clone(), base.get_input_embeddings().weight

    text = "write the table"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    soft, table = start(config(virtual_tokens=len(ids) + 2, initial_text=text))
    assert torch.equal(soft, table[torch.tensor([*ids, *ids[:2]])])
    soft, table = start(config(virtual_tokens=9, initial="vocabulary"))
    assert all(any(torch.equal(row, known) for known in table) for row in soft)
    assert not torch.equal(soft, start(config(virtual_tokens=9, initial="vocabulary"), seed=2)[0])
    with pytest.raises(UserError, match="no text"):
        start(config(initial_text=""))
