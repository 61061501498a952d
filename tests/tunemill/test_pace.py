"""Calibration: how long tuning will take here, from two small models."""

from __future__ import annotations

import io
from typing import Any

import pytest

from tunemill import pace, planning, runtime
from tunemill.log import Log

CPU = runtime.Runtime("cpu", "float32", 2)


def test_what_all_layers_take_lies_on_the_line() -> None:
    assert pace._on_the_line({1: 0.5, 3: 0.7}, 30) == pytest.approx(0.5 + 29 * 0.1)
    assert pace._on_the_line({1: 0.5, 3: 0.4}, 30) == 0.5  # a busy machine: a layer takes no negative time


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
    found = pace.seconds(config, methods, assumed.batch, CPU, Log())
    assert sorted(found) == ["full", "generation", "lora", "prompt_tuning"]
    assert all(0 < each < 60 for each in found.values())
    assert config.num_hidden_layers == 6  # what was asked about is left as it was


def test_what_does_not_fit_is_not_timed_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=2
    )
    assumed = planning.Assumptions(planning.Batch(2, 24, 8), steps=10, rank=2, virtual_tokens=3, devices=1)
    methods = {name: each for name, each in planning.methods(assumed).items() if name != "qlora"}
    small = planning.with_layers(config, 3)
    full, lora = (planning.step_memory(small, methods[name], assumed.batch).total for name in ("full", "lora"))
    assert lora < full
    monkeypatch.setattr(pace, "free_bytes", lambda device: (lora + full) // 2)
    steps = pace._step_seconds

    def step(*given: Any, method: planning.Method, **more: Any) -> float:
        if method.name == "prompt_tuning":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")
        return steps(*given, method=method, **more)

    monkeypatch.setattr(pace, "_step_seconds", step)
    said = io.StringIO()
    found = pace.seconds(config, methods, assumed.batch, CPU, Log("text", stream=said))
    assert sorted(found) == ["generation", "lora"]
    assert "full is not timed: it takes 0.0 GiB, 0.0 are free" in said.getvalue()
    assert "prompt_tuning is not timed: memory ran out" in said.getvalue()
    monkeypatch.setattr(pace, "_step_seconds", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pace.seconds(config, methods, assumed.batch, CPU, Log())


def test_halves_of_unequal_depth_count_with_their_mean() -> None:
    from transformers import BartConfig, LlamaConfig

    assert pace._half(BartConfig(encoder_layers=2, decoder_layers=6)) == 4
    assert pace._half(LlamaConfig(num_hidden_layers=7)) == 7
