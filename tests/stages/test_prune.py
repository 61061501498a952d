"""prune: exactly these files, zeros and shapes as they lie on the disk, the same bytes after a kill; mistakes are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages import prune
from tests.stages import tuned
from tunemill import blocks, checkpoints, models
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile

WANDA = {"method": "wanda", "sparsity": 0.5, "recover": True}
MAGNITUDE = {"method": "magnitude", "sparsity": 0.5, "recover": True}
LAYERS = {"method": "structured", "sparsity": 0.4, "layers": 1, "groups": 1, "recover": True}
FILES = ["README.md", "chat_template.jinja", "config.json", "curve.csv", "generation_config.json", "model.safetensors"]
FILES += ["prune.json", "tokenizer.json", "tokenizer_config.json", "training.json"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prune")
    tuned.prepare(place)
    return place


def run(place: Path, out: Path, variant: dict[str, Any], dtype: str = "bfloat16", **change: Any) -> Any:
    """Run the stage with the values of params.yaml, few steps of recovery and what `change` says of that."""
    values = ParamsFile(tuned.ROOT / "params.yaml").section("prune", prune.Config).model_dump()
    candidate = change.pop("candidate", "made")
    values |= {"variants": {"made": variant}, "store_dtype": dtype, "calibration_items": 8}
    values["recovery"] |= tuned.SHORT | {"learning_rate": 1e-2} | change
    out.with_name(f"{out.name}-work").mkdir(exist_ok=True)
    return prune.run(
        prune.Config.model_validate(values),
        candidate=candidate,
        policy=place / "model",
        base=place / "model",
        train=place / "train.jsonl",
        validation=place / "validation.jsonl",
        out=out,
        work=out.with_name(f"{out.name}-work"),
        runtime=tuned.CPU,
        log=Log(),
    )


@pytest.mark.parametrize("variant", [WANDA, MAGNITUDE, LAYERS], ids=["wanda", "magnitude", "structured"])
def test_outputs_are_exactly_these_and_the_same_every_time(
    variant: dict[str, Any], place: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    metrics = run(place, tmp_path / "one", variant, steps=12)
    assert tuned.files(tmp_path / "one") == [f"model/{each}" for each in FILES]
    told = json.loads((tmp_path / "one/model/prune.json").read_text())
    # As plain transformers loads it, in the number format of the file.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one/model")
    weights = [each.weight for block in model.model.layers for each in blocks.linears(block).values()]
    zeros = sum(int(each.eq(0).sum()) for each in weights) / sum(each.numel() for each in weights)
    assert str(model.dtype) == "torch.bfloat16"
    assert told["made_by"] == "prune" and told["method"] == variant["method"]
    assert told["sparsity"] == metrics["sparsity"] == pytest.approx(zeros)
    assert told["parameters"] == metrics["parameters"] == sum(each.numel() for each in model.parameters())
    assert metrics["parameters_before"] == 246_336
    if variant is LAYERS:
        assert zeros < 0.01
        assert metrics["parameters"] < metrics["parameters_before"]
        assert (model.config.num_hidden_layers, model.config.num_key_value_heads) == (3, 1)
        assert len(told["removed"]["layers"]["decoder"]) == 1
        assert [len(each) for each in told["removed"]["groups"]["decoder"]] == [1, 1, 1]
    else:
        assert zeros == 0.5
        assert metrics["parameters"] == metrics["parameters_before"]
        assert told["removed"] == {}
        assert metrics["sparsity_all"] == pytest.approx(0.5 * 147_456 / 246_336, abs=1e-3)
    before, pruned, after = (metrics[f"perplexity/{at}"] for at in ("before", "pruned", "stored"))
    assert after < pruned and before != pruned
    run(place, tmp_path / "two", variant, steps=12)
    assert tree_hash(tmp_path / "one") == tree_hash(tmp_path / "two")


def test_without_recovery_it_is_what_was_pruned(place: Path, tmp_path: Path) -> None:
    metrics = run(place, tmp_path / "one", WANDA | {"recover": False}, "float32")
    assert tuned.files(tmp_path / "one") == [
        f"model/{each}" for each in FILES if each not in ("curve.csv", "training.json")
    ]
    assert metrics["perplexity/stored"] == pytest.approx(metrics["perplexity/pruned"])
    assert "mended" not in (tmp_path / "one/model/README.md").read_text()
    told = json.loads((tmp_path / "one/model/prune.json").read_text())
    assert told["perplexity_pruned"] == metrics["perplexity/pruned"] and told["sparsity"] == 0.5
    # What recovers has the same zeros.
    run(place, tmp_path / "two", WANDA, "float32", steps=4)
    zeros = []
    for name in ("one", "two"):
        model = models.load_base(tmp_path / name / "model", tuned.CPU)
        zeros.append({key: each.eq(0) for key, each in model.named_parameters() if "proj" in key})
    assert all(bool((each == zeros[1][key]).all()) for key, each in zeros[0].items())


@pytest.mark.parametrize("variant", [WANDA, LAYERS], ids=["wanda", "structured"])
def test_a_killed_run_goes_on_and_ends_the_same(
    variant: dict[str, Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(place, tmp_path / "whole", variant)
    seal, sealed = checkpoints.seal, []

    def dies(folder: Path) -> None:
        seal(folder)
        sealed.append(folder.name)
        if len(sealed) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "seal", dies)
    with pytest.raises(KeyboardInterrupt):
        run(place, tmp_path / "killed", variant)
    assert sealed[1] == "checkpoint-2"
    monkeypatch.setattr(checkpoints, "seal", seal)
    shutil.rmtree(tmp_path / "killed", ignore_errors=True)
    monkeypatch.setattr(prune, "pruned", None)  # what was pruned is there
    run(place, tmp_path / "killed", variant)
    assert tree_hash(tmp_path / "whole") == tree_hash(tmp_path / "killed")


def test_an_encoder_decoder_is_pruned_and_recovers(tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    tuned.prepare(tmp_path / "t5", "encoder-decoder")
    models.make_random(tmp_path / "t5/model", 3, 32, 3, "float32", "encoder-decoder")
    given = {"max_tokens": 120, "steps": 8}
    for name, variant in (("wanda", WANDA), ("structured", LAYERS | {"groups": 0})):
        metrics = run(tmp_path / "t5", tmp_path / name, variant, **given)
        assert metrics["perplexity/stored"] < metrics["perplexity/pruned"]
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name / "model")
        assert [len(each.blocks) for each in blocks.stacks(model)] == ([3, 3] if name == "wanda" else [2, 2])
        assert metrics["sparsity"] == (pytest.approx(0.5, abs=0.01) if name == "wanda" else pytest.approx(0, abs=0.01))


@pytest.mark.parametrize("sparsity", [0, 1, -0.5, 1.5])
@pytest.mark.parametrize("variant", [WANDA, LAYERS], ids=["wanda", "structured"])
def test_a_sparsity_of_0_or_1_is_refused(variant: dict[str, Any], sparsity: float, tmp_path: Path) -> None:
    from tunemill import recipes

    overlay = {"prune": {"variants": {"wanda": variant | {"sparsity": sparsity}}}}
    (tmp_path / "params.yaml").write_text(recipes.merged(tuned.ROOT / "params.yaml", [(Path("overrides"), overlay)]))
    with pytest.raises(UserError) as caught:
        ParamsFile(tmp_path / "params.yaml").section("prune", prune.Config)
    told = str(caught.value)
    assert f"prune.variants.wanda.sparsity: {sparsity} is not allowed" in told
    assert "at 0 nothing would go, at 1 nothing would be left" in told


def test_no_calibration_is_refused(tmp_path: Path) -> None:
    values = ParamsFile(tuned.ROOT / "params.yaml").section("prune", prune.Config).model_dump()
    with pytest.raises(ValueError, match=r"calibration_items\n.*greater than or equal to 1"):
        prune.Config.model_validate(values | {"calibration_items": 0})


def test_what_cannot_be_cut_and_what_is_not_named_are_told(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prune\.variants\.made\.layers: 3 of 4 blocks"):
        run(place, tmp_path / "out", LAYERS | {"layers": 3})
    with pytest.raises(UserError, match=r"prune\.variants: no variant 'mad'\n.*one of made\n.*did you mean 'made'"):
        run(place, tmp_path / "out", LAYERS, candidate="mad")
    with pytest.raises(UserError, match=r"prune\.recovery\.max_tokens"):
        run(place, tmp_path / "out", LAYERS, max_tokens=16)
