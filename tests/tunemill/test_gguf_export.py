"""GGUF: written and read again without loss, block formats by hand, llama.cpp and transformers agreeing, and what cannot be said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import tiny_model
from tunemill import gguf_export, llama_cpp, models, sampling
from tunemill.errors import UserError
from tunemill.runtime import Runtime

CPU = Runtime("cpu", "float32", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gguf") / "model"
    models.make_random(place, 2, 64, 3, "float32")
    return place


def exported(folder: Path, out: Path, kind: gguf_export.Type) -> Any:
    model, tokenizer = models.load_policy(folder, folder, CPU)
    models.save_gguf(model, tokenizer, out, kind, "tiny")
    return model


def test_float32_comes_back_as_it_was(folder: Path, tmp_path: Path) -> None:
    import torch

    model = exported(folder, tmp_path / "f32", "F32")
    again = models.load_base(tmp_path / "f32", CPU)
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    exported(folder, tmp_path / "twice", "F32")
    assert (tmp_path / "f32/model.gguf").read_bytes() == (tmp_path / "twice/model.gguf").read_bytes()
    assert models.is_gguf(tmp_path / "f32") and models.is_quantized(tmp_path / "f32")


def test_blocks_are_what_the_formats_say() -> None:
    row = np.linspace(-3, 5, 32, dtype=np.float32)[None]
    q8 = gguf_export.decode(gguf_export.encode(row, "Q8_0"), "Q8_0")
    step = np.float32(np.float16(5 / 127))
    assert np.abs(q8 - np.round(row / step) * step).max() < 1e-6
    q4 = gguf_export.decode(gguf_export.encode(row, "Q4_0"), "Q4_0")
    step = np.float32(np.float16(5 / -8))
    assert set(np.round(q4[0] / step).astype(int)) <= set(range(-8, 8))
    assert np.abs(q4 - row).max() <= abs(step)  # the end of the range opposite to the largest is cut off by one step
    assert gguf_export.encode(row, "Q8_0").shape == (1, 34) and gguf_export.encode(row, "Q4_0").shape == (1, 18)
    assert (
        gguf_export.formats("Q4_0", embedding=True) == "Q8_0" and gguf_export.formats("Q8_0", embedding=True) == "Q8_0"
    )
    with pytest.raises(UserError, match=r"Q4_0 has blocks of 32 weights, and the rows of 'x' have 33"):
        gguf_export.encode(np.zeros((1, 33), dtype=np.float32), "Q4_0", "x")


def test_llama_cpp_writes_what_transformers_writes(folder: Path, tmp_path: Path) -> None:
    model = exported(folder, tmp_path / "f32", "F32")
    tokenizer = models.load_tokenizer(folder)
    prompts = [models.render_prompt(tokenizer, line) for line in ("return the value", "open a file", "close")]
    theirs = llama_cpp.Llama(tmp_path / "f32/model.gguf", 2, 128).answers(prompts, 12)
    plan = [tuple(range(len(prompts)))]
    ours = next(sampling.generate(model, tokenizer, prompts, max_new_tokens=12, batches=plan)).generations
    assert [each.text for each in theirs] == [each.text for each in ours]
    assert [each.finished for each in theirs] == [each.finished for each in ours]


def test_the_chat_template_and_the_special_tokens_are_in_the_file(folder: Path, tmp_path: Path) -> None:
    import gguf

    exported(folder, tmp_path / "q8", "Q8_0")
    fields = gguf.GGUFReader(tmp_path / "q8/model.gguf").fields
    tokenizer = models.load_tokenizer(folder)
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["general.architecture"].contents() == "llama"


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False},
        ]}, "smollm"),
        ({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": gguf_export.QWEN2}},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]}, "qwen2"),
    ],
)  # fmt: skip
def test_how_a_tokenizer_splits_text_has_a_name(told: dict[str, Any], name: str) -> None:
    assert gguf_export.split(told) == name


@pytest.mark.parametrize(
    "told", [{}, {"type": "Whitespace"}, {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}]
)
def test_or_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no name for how it splits text"):
        gguf_export.split(told)


def test_what_llama_cpp_has_no_name_for_is_refused(tmp_path: Path) -> None:
    models.make_random(tmp_path / "t5", 1, 32, 3, "float32", "encoder-decoder")
    with pytest.raises(UserError, match="no GGUF export of a model of the type 't5'") as told:
        exported(tmp_path / "t5", tmp_path / "out", "Q8_0")
    assert "llama, mistral, qwen2, qwen3" in str(told.value)
    with pytest.raises(UserError, match="is missing"):
        llama_cpp.Llama(tmp_path / "nowhere.gguf", 2, 64)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(UserError, match=r"llama.cpp cannot load broken.gguf"):
        llama_cpp.Llama(tmp_path / "broken.gguf", 2, 64)


def test_what_begins_a_text_without_a_chat_template_begins_it_in_llama_cpp_too(folder: Path, tmp_path: Path) -> None:
    import gguf
    from tokenizers import processors

    def told(out: Path) -> bool:
        return bool(gguf.GGUFReader(out / "model.gguf").fields["tokenizer.ggml.add_bos_token"].contents())

    exported(folder, tmp_path / "chat", "Q8_0")
    assert not told(tmp_path / "chat")
    model, tokenizer = models.load_policy(folder, folder, CPU)
    tokenizer.chat_template = None
    begin = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin[0]} $A", special_tokens=[begin]
    )
    models.save_gguf(model, tokenizer, tmp_path / "plain", "Q8_0", "tiny")
    assert told(tmp_path / "plain")


def test_pairs_and_halves_are_inverse() -> None:
    import torch

    rows = torch.arange(48.0).reshape(12, 4)
    assert torch.equal(gguf_export.in_halves(gguf_export.in_pairs(rows, 3), 3), rows)
    # Feature i is turned with i + width/2 before, 2i with 2i + 1 after.
    assert gguf_export.in_pairs(torch.arange(8.0), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_speed_of_llama_cpp_is_that_of_its_own_clock(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(folder, tmp_path / "q8", "Q8_0")
    tokenizer = models.load_tokenizer(folder)
    prompts = [models.render_prompt(tokenizer, line) for line in tiny_model.corpus()[:2]]
    model = llama_cpp.Llama(tmp_path / "q8/model.gguf", 2, 256, rows=2)
    told: list[dict[str, Any]] = []
    ask = model._ask

    def kept(*given: Any, **more: Any) -> dict[str, Any]:
        told.append(ask(*given, **more))
        return told[-1]

    monkeypatch.setattr(model, "_ask", kept)
    found = model.speed(prompts, 6)
    read, alone = [each["timings"] for each in told[:2]], told[2]["timings"]
    assert [each["prompt_n"] for each in read] == [len(prompt) for prompt in prompts]
    assert alone["predicted_n"] == 7  # one of them was there when its clock began
    assert found.decode_tokens_per_second == pytest.approx(6 / (alone["predicted_ms"] / 1e3))
    assert found.first_token_seconds == pytest.approx(sum(each["prompt_ms"] for each in read) / 2e3)
    one = found.decode_tokens_per_second
    assert one * 0.999 <= found.batch_decode_tokens_per_second <= 2.001 * one
    assert found.joules_per_token is None


def test_a_prompt_that_is_too_long_is_told(folder: Path, tmp_path: Path) -> None:
    exported(folder, tmp_path / "q8", "Q8_0")
    with pytest.raises(UserError, match=r"llama.cpp did not answer a prompt of 600 tokens: (.*)exceed") as error:
        llama_cpp.Llama(tmp_path / "q8/model.gguf", 2, 256).answers([[5] * 600], 4)
    assert "at most 256 tokens" in str(error.value)
