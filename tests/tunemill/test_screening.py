"""Screening: what is known of a candidate before its weights are fetched."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from tunemill import planning, screening
from tunemill.runtime import Runtime

LIMITS = screening.Limits("summarisation", ("Apache-2.0", "MIT"), 12.0)
BATCH = planning.Batch(2, 24, 8)
CPU = Runtime("cpu", "float32", 2)
LLAMA = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 512, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2,
    "is_encoder_decoder": True, "decoder_start_token_id": 0,
}  # fmt: skip


def screen(config: dict[str, Any], license_: str = "MIT", files: tuple[str, ...] | None = None) -> screening.Verdict:
    return screening.screen(screening.Description(config, files), license_, LIMITS, BATCH, CPU)


def test_both_families_that_write_pass_for_summaries() -> None:
    for config, family in ((LLAMA, "decoder-only"), (T5, "encoder-decoder")):
        verdict = screen(config, "apache-2.0", ("config.json", "model.safetensors"))
        assert (verdict.refusal, verdict.family) == (None, family)
        assert verdict.parameters and verdict.training_bytes and verdict.serving_bytes
        assert verdict.training_bytes > planning.PROCESS_BYTES + 4 * verdict.parameters


def test_the_cheap_questions_come_first() -> None:
    # Eight billion parameters, but its licence is asked before its size is counted.
    large = {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    began = time.monotonic()
    assert screen(large, "CC-BY-NC-4.0").refusal == (
        "licence CC-BY-NC-4.0; scope.constraints.licenses allows Apache-2.0, MIT"
    )
    assert screen({**large, "auto_map": {"AutoModel": "x.Y"}}).refusal == (
        "it brings code of its own (auto_map in config.json), which is never run"
    )
    assert "pickle (pytorch_model.bin)" in str(screen(large, files=("config.json", "pytorch_model.bin")).refusal)
    assert time.monotonic() - began < 20
    assert "scope.constraints.memory_gib allows 12" in str(screen(large).refusal)


def test_it_is_asked_of_the_device_and_the_number_format_that_will_compute() -> None:
    # Wide enough that the weights count, with a vocabulary that is small beside them.
    found = screening.Description(
        {**LLAMA, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}, None
    )
    on_cpu = screening.screen(found, "MIT", LIMITS, BATCH, CPU)
    half = screening.screen(found, "MIT", LIMITS, BATCH, Runtime("cpu", "bfloat16", 2))
    on_gpu = screening.screen(found, "MIT", LIMITS, BATCH, Runtime("cuda", "bfloat16", 2))
    assert on_cpu.parameters and on_cpu.training_bytes and on_cpu.serving_bytes
    assert half.training_bytes and half.serving_bytes and on_gpu.training_bytes and on_gpu.serving_bytes
    weights = 2 * on_cpu.parameters
    assert on_cpu.serving_bytes - half.serving_bytes == pytest.approx(weights, rel=0.01)
    assert half.serving_bytes - on_gpu.serving_bytes == planning.PROCESS_BYTES  # the GPU holds no Python
    # A GPU can tune an adapter on weights in 4 bits.
    assert on_gpu.training_bytes < weights < half.training_bytes - planning.PROCESS_BYTES


def test_what_is_no_language_model_is_refused() -> None:
    assert "names no model_type" in str(screen({"hidden_size": 3}).refusal)
    assert "not a model that transformers knows" in str(screen({"model_type": "no-such-thing"}).refusal)
    assert "CLIPConfig is no language model" in str(screen({"model_type": "clip"}).refusal)


def test_a_hub_that_does_not_answer_is_given_up_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refused
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(screening.UnreachableError, match=r"127\.0\.0\.1 does not answer"):
            screening.describe_hub("nobody/nothing", "0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(screening.UnreachableError, match="the hub is not asked"):
        screening.describe_hub("nobody/nothing", "0" * 40)
