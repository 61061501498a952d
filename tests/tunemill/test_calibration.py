"""Calibration: how long tuning will take here, from two small models."""

from __future__ import annotations

import pytest

from tunemill import calibration, planning, runtime

CPU = runtime.Runtime("cpu", "float32", 2)


def test_what_all_layers_take_lies_on_the_line() -> None:
    assert calibration._on_the_line({1: 0.5, 3: 0.7}, 30) == pytest.approx(0.5 + 29 * 0.1)
    assert calibration._on_the_line({1: 0.5, 3: 0.4}, 30) == 0.5  # a busy machine: a layer takes no negative time


@pytest.mark.parametrize("family", ["decoder-only", "encoder-decoder"])
def test_every_method_and_generation_are_timed(family: str) -> None:
    from transformers import LlamaConfig, T5Config

    if family == "decoder-only":
        config = LlamaConfig(
            vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=2
        )
    else:
        config = T5Config(
            vocab_size=128, d_model=32, d_ff=64, d_kv=16, num_layers=6, num_heads=2, decoder_start_token_id=0
        )
    assumed = planning.Assumptions(planning.Batch(2, 24, 8), steps=10, rank=2, virtual_tokens=3, devices=1)
    methods = {name: each for name, each in planning.methods(assumed).items() if name != "qlora"}
    found = calibration.seconds(config, methods, assumed.batch, CPU)
    assert sorted(found) == ["full", "generation", "lora", "prompt_tuning"]
    assert all(0 < each < 60 for each in found.values())
    assert config.num_hidden_layers == 6  # what was asked about is left as it was
