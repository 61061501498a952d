"""lora: exactly these files, the same bytes for the same seed, what is too long is counted, merged equals unmerged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stages import tuned
from tunemill import models
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lora")
    tuned.prepare(place)
    return place


def test_outputs_are_exactly_these_and_the_same_every_time(place: Path, tmp_path: Path) -> None:
    metrics = tuned.run("lora", place, tmp_path, "one", seeds=[3, 4])
    assert tuned.files(tmp_path / "one") == [
        f"{name}/{file}"
        for name in ("adapter-4", "adapter")
        for file in ("README.md", "adapter_config.json", "adapter_model.safetensors", "curve.csv", "training.json")
    ]
    assert metrics["train/too_long"] == 1
    assert metrics["train/examples"] == 16
    assert metrics["validation/loss_last"] is not None
    training = json.loads((tmp_path / "one/adapter/training.json").read_text())
    assert training["trainable_parameters"] == metrics["parameters/trainable"]
    tuned.run("lora", place, tmp_path, "two", seeds=[3, 4])
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")
    seeds = [(tmp_path / "one" / name / "adapter_model.safetensors").read_bytes() for name in ("adapter", "adapter-4")]
    assert seeds[0] != seeds[1]


def test_plain_peft_loads_the_adapter_and_the_merged_model_answers_the_same(place: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tuned.run("lora", place, tmp_path, "one", targets=["q_proj", "v_proj"], learning_rate=0.1)
    folder = tmp_path / "one/adapter"
    assert models.is_adapter(folder)
    base = AutoModelForCausalLM.from_pretrained(place / "model")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before = base(ids).logits
        policy = PeftModel.from_pretrained(base, folder)
        unmerged = policy(ids).logits
        merged = models.load_policy(folder, place / "model", tuned.CPU)[0](ids).logits
    assert policy.peft_config["default"].target_modules == {"q_proj", "v_proj"}
    assert (unmerged - before).abs().max() > 0.1  # the adapter does something
    assert torch.allclose(merged, unmerged, atol=1e-4)


def test_adapters_swap_on_one_base(place: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tuned.run("lora", place, tmp_path, "one", seeds=[3, 4], learning_rate=0.1)
    ids = torch.arange(40)[None]
    policy = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(place / "model"), tmp_path / "one/adapter", adapter_name="first"
    )
    policy.load_adapter(tmp_path / "one/adapter-4", adapter_name="second")
    for name, folder in (("second", "adapter-4"), ("first", "adapter")):
        policy.set_adapter(name)
        alone = models.load_policy(tmp_path / "one" / folder, place / "model", tuned.CPU)[0]
        with torch.no_grad():
            assert torch.allclose(policy(ids).logits, alone(ids).logits, atol=1e-4)


def test_data_that_is_all_too_long_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the 21 training pairs has at most 16 tokens"):
        tuned.run("lora", place, tmp_path, "one", max_tokens=16)


def test_an_encoder_decoder_is_tuned_by_changing_the_model_alone(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    tuned.prepare(tmp_path / "t5", "encoder-decoder")
    metrics = tuned.run("lora", tmp_path / "t5", tmp_path, "one", max_tokens=120)
    policy = PeftModel.from_pretrained(
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "t5/model"), tmp_path / "one/adapter"
    )
    assert policy.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    assert metrics["parameters/trainable"]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_qlora_keeps_the_frozen_weights_in_few_bits_and_learns(kind: str, place: Path, tmp_path: Path) -> None:
    import torch

    model = models.load_quantized(place / "model", tuned.CPU, kind)
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert weight.dtype == (torch.uint8 if kind == "nf4" else torch.int8)
    assert weight.numel() * (2 if kind == "nf4" else 1) == 64 * 64
    metrics = tuned.run("lora", place, tmp_path, "one", quantize=kind, steps=12, learning_rate=0.02)
    assert metrics["validation/loss_last"] < metrics["validation/loss_first"] - 0.5  # type: ignore[operator]
    assert json.loads((tmp_path / "one/adapter/training.json").read_text())["method"] == "qlora"
    merged, _ = models.load_policy(tmp_path / "one/adapter", place / "model", tuned.CPU)
    assert merged.model.layers[0].self_attn.q_proj.weight.dtype == torch.float32
