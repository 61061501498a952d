"""quantize: exactly these files, the same bytes, an adapter merged first, learning on while rounded, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages import quantize
from tests.stages import tuned
from tunemill import llama_cpp, models
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile

TOKENIZER = ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
COMMON = ["README.md", "config.json", "generation_config.json", "quantize.json", *TOKENIZER]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("quantize")
    tuned.prepare(place)
    models.make_random(place / "wide", 2, 64, 3, "float32")
    return place


def run(
    place: Path, out: Path, variant: dict[str, Any], *, policy: str = "model", base: str = "model", **change: Any
) -> Any:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("quantize", quantize.Config).model_dump()
    values |= {"variants": {"one": variant}} | change
    values["qat"] |= {"steps": 4, "batch_size": 4, "checkpoint_steps": 2}
    (work := out.with_name(f"work-{out.name}")).mkdir(exist_ok=True)
    return quantize.run(
        quantize.Config.model_validate(values), candidate="one", policy=place / policy, base=place / base,
        train=place / "train.jsonl", validation=place / "validation.jsonl", out=out, work=work, runtime=tuned.CPU, log=Log(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "weights"),
    [
        ({"method": "int8"}, "model.safetensors"),
        ({"method": "int8-dynamic", "smooth": 0.5}, "model.safetensors"),
        ({"method": "int8-static"}, "model.safetensors"),
        ({"method": "gguf", "type": "Q8_0"}, "model.gguf"),
    ],
)
def test_outputs_are_exactly_these_and_the_same_every_time(
    place: Path, tmp_path: Path, variant: dict[str, Any], weights: str
) -> None:
    metrics = run(place, tmp_path / "one", variant, policy="wide", base="wide")
    assert tuned.files(tmp_path / "one") == sorted(f"model/{name}" for name in [*COMMON, weights])
    told = json.loads((tmp_path / "one/model/quantize.json").read_text())
    assert told["bytes"] == metrics["bytes"] == (tmp_path / "one/model" / weights).stat().st_size
    assert told["parameters"] == sum(each.numel() for each in models.load_base(place / "wide", tuned.CPU).parameters())
    assert told["runtime"] == ("llama.cpp" if weights == "model.gguf" else "transformers")
    assert metrics["calibration_rows"] == (16 if variant["method"] == "int8-static" or "smooth" in variant else 0)
    run(place, tmp_path / "two", variant, policy="wide", base="wide")
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")


def test_an_adapter_is_merged_before_it_is_rounded(place: Path, tmp_path: Path) -> None:
    import torch

    tuned.run("lora", place, tmp_path, "lora", targets=["q_proj", "v_proj"], learning_rate=0.1)
    values = {"method": "gguf", "type": "F32"}
    run(place, tmp_path / "out", values, policy=str(tmp_path / "lora/adapter"))
    merged, _ = models.load_policy(tmp_path / "lora/adapter", place / "model", tuned.CPU)
    again = models.load_base(tmp_path / "out/model", tuned.CPU)
    for one, other in zip(merged.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    card = (tmp_path / "out/model/README.md").read_text()
    assert "library_name: llama.cpp" in card and "create_chat_completion" in card


def test_learning_on_while_rounded_helps_four_bits(place: Path, tmp_path: Path) -> None:
    from tunemill import losses, tuning

    tokenizer = models.load_tokenizer(place / "wide")
    rows = [tuning.encode(tokenizer, f"validation value {at}", f"return row {at}") for at in range(6)]

    def loss(folder: Path) -> float:
        return tuning.validation_loss(models.load_base(folder, tuned.CPU), rows, 4, 0)

    variant = {"method": "gguf", "type": "Q4_0"}
    run(place, tmp_path / "plain", variant, policy="wide", base="wide")
    run(place, tmp_path / "learnt", variant | {"qat": True}, policy="wide", base="wide")
    assert loss(tmp_path / "learnt/model") < loss(tmp_path / "plain/model")
    assert losses.start_token(models.load_base(tmp_path / "learnt/model", tuned.CPU)) is None
    prompts = [models.render_prompt(tokenizer, "validation value 1")]
    assert llama_cpp.Llama(tmp_path / "learnt/model/model.gguf", 2, 128).answers(prompts, 4)[0].tokens > 0


@pytest.mark.parametrize(
    ("variant", "what"),
    [
        ({"method": "gguf"}, "`type` belongs to the method gguf, which needs it"),
        ({"method": "int8", "type": "Q8_0"}, "`type` belongs to the method gguf"),
        ({"method": "int8", "smooth": 0.5}, "`smooth` belongs to methods that round activations"),
        ({"method": "nf4", "qat": True}, "choose gguf with a type of 4 bits"),
        ({"method": "int8-dynamic", "smooth": 1.0}, "less than 1"),
    ],
)
def test_what_does_not_go_together_is_refused(variant: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        quantize.Variant.model_validate(variant)


def test_mistakes_are_told(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="calibration_items is 0, and one must have seen activations"):
        run(place, tmp_path / "none", {"method": "int8-static"}, calibration_items=0)
    run(place, tmp_path / "one", {"method": "int8"})
    with pytest.raises(UserError, match="has been quantized already") as told:
        run(place, tmp_path / "twice", {"method": "int8"}, policy=str(tmp_path / "one/model"))
    assert "params.yaml: extra.quantize.one.policy" in str(told.value)
    models.make_random(place / "t5", 1, 32, 3, "float32", "encoder-decoder")
    with pytest.raises(UserError, match="no GGUF export of a model of the type 't5'"):
        run(place, tmp_path / "t5", {"method": "gguf", "type": "Q8_0"}, policy="t5", base="t5")


def test_an_encoder_decoder_is_quantized_and_says_the_same(place: Path, tmp_path: Path) -> None:
    import torch

    models.make_random(place / "t5", 1, 32, 3, "float32", "encoder-decoder")
    run(place, tmp_path / "int8", {"method": "int8-dynamic", "smooth": 0.5}, policy="t5", base="t5")
    small, exact = (models.load_base(each, tuned.CPU) for each in (tmp_path / "int8/model", place / "t5"))
    given = {"input_ids": torch.arange(4, 20)[None], "decoder_input_ids": torch.arange(5)[None]}
    with torch.inference_mode():
        ours, theirs = small(**given).logits, exact(**given).logits
    assert float((ours - theirs).abs().mean()) < 0.1 * float(theirs.std())
