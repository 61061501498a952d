"""Every recipe in recipes/ is valid offline, and what it tunes runs: a few steps on a tiny model of the same architecture."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages import __main__ as checks
from stages import lora, prompt_tune, scope, select, sft
from tests.stages import tuned
from tests.stages.test_pretrain import run as pretrained
from tunemill import models, planning, recipes, records, screening, tuning
from tunemill.params import Candidates, Launch, ParamsFile
from tunemill.runtime import Runtime

RECIPES = sorted(each.stem for each in (tuned.ROOT / "recipes").glob("*.yaml"))
TUNING = ("sft", "lora", "prompt_tune", "ia3", "pretrain")
FEW = {"steps": 2, "validation_items": 2, "validation_steps": 2, "checkpoint_steps": 2, "max_tokens": 120}
SHAPES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B-Instruct": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    },
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 8192, "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "google/flan-t5-base": {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True, "d_model": 768,
        "num_layers": 12, "num_heads": 12, "d_ff": 2048, "d_kv": 64, "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False, "decoder_start_token_id": 0,
    },
    "google/flan-t5-small": {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True, "d_model": 512,
        "num_layers": 8, "num_heads": 6, "d_ff": 1024, "d_kv": 64, "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False, "decoder_start_token_id": 0,
    },
}  # fmt: skip
"""What the config.json of the recipes' hub models says of their shapes."""

PARAMETERS = {
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "google/flan-t5-base": 247_577_856,
    "google/flan-t5-small": 76_961_152,
}
"""As their model cards count them."""

GPUS = {
    "llama-8b-qlora": (24, "bfloat16"), "smollm2-1.7b-one-gpu": (40, "bfloat16"), "multi-gpu-fsdp": (24, "bfloat16"),
    "flan-t5-dialogsum": (16, "float32"),
}  # fmt: skip
"""GiB of the GPU that a recipe's comment names, and the number format it has to do in."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder for a merged params.yaml, beside the graph and the constitution."""
    for name in ("dvc.yaml", "constitution.yaml"):
        (tmp_path / name).write_text((tuned.ROOT / name).read_text())
    (tmp_path / "recipes").symlink_to(tuned.ROOT / "recipes")  # the rewards among them are files that a run reads
    return tmp_path


def merge(place: Path, name: str) -> ParamsFile:
    overlay = (tuned.ROOT / "recipes" / f"{name}.yaml", None)
    (place / "params.yaml").write_text(recipes.merged(tuned.ROOT / "params.yaml", [overlay]))
    return ParamsFile(place / "params.yaml")


def used(params: ParamsFile) -> list[str]:
    """The tuning stages whose results a candidate of the recipe uses."""
    candidates = params.section("candidates", Candidates).root.values()
    paths = [Path(each).parts for candidate in candidates for each in (candidate.policy, candidate.base)]
    return [stage for stage in TUNING if any(parts[:2] == ("artifacts", stage) for parts in paths)]


def test_the_recipes_that_are_promised_are_there() -> None:
    assert {
        "tiny", "study", "flan-t5-dialogsum", "smollm2-1.7b-one-gpu", "llama-8b-qlora", "multi-gpu-fsdp", "ia3", "domain",
        "multi-task", "dpo", "grpo", "align-controls", "alignment", "cai", "compress", "toxicity-reward",
    } <= set(RECIPES)  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_valid(name: str, place: Path) -> None:
    merge(place, name)
    if name == "flan-t5-dialogsum":  # the user brings it
        [fault] = checks.check(place)
        assert "collect.examples.path: no file 'dialogsum.csv'" in fault
        (place / "dialogsum.csv").touch()
    assert checks.check(place) == []


def test_the_controls_of_alignment_are_of_its_size(place: Path) -> None:
    asked = merge(place, "alignment")
    controls = merge(place, "align-controls")
    for section in ("validate", "feedback", "reward", "evaluate", "efficiency"):
        assert controls.values(section) == asked.values(section), section
    assert {**asked.values("ppo"), "seeds": [17]} == controls.values("ppo")


@pytest.mark.parametrize("name", ["alignment", "cai"])
def test_the_study_aligns_as_the_recipes_that_align_alone_do(name: str, place: Path) -> None:
    sections = ("ppo", "sl_cai", "rl_cai", "compare", "candidates", "evaluate", "feedback", "validate")
    alone = {section: merge(place, name).values(section) for section in sections}
    study = {section: merge(place, "study").values(section) for section in sections}
    for key in ("sample_tokens", "temperature", "top_p", "max_new_tokens", "red_team_items"):
        assert study["evaluate"][key] == alone["evaluate"][key], key
    for key in ("max_new_tokens", "temperature", "completions"):
        assert study["feedback"][key] == alone["feedback"][key], key
    for key in ("seeds", "aligned"):
        assert alone["compare"][key].items() <= study["compare"][key].items(), key
    assert study["compare"]["margins"] == alone["compare"]["margins"]
    assert alone["candidates"].items() <= study["candidates"].items()


def test_the_study_trains_and_asks_as_much_as_alignment_and_no_less_than_cai(place: Path) -> None:
    alignment, cai, study = (merge(place, name) for name in ("alignment", "cai", "study"))
    assert study.values("ppo") == alignment.values("ppo")
    for key in ("test_items", "red_team_items", "harmless_items"):
        assert study.values("evaluate")[key] is alignment.values("evaluate")[key] is None, key
    assert (
        study.values("evaluate")["samples"]
        == alignment.values("evaluate")["samples"]
        >= cai.values("evaluate")["samples"]
    )
    # Recipe cai costs less: fewer prompts and steps, and PPO from one seed; everything else is the same.
    less = {"sl_cai": {"prompts", "helpful", "steps"}, "rl_cai": {"prompts"}, "ppo": {"updates", "seeds"}}
    for section, keys in less.items():
        few, many = cai.values(section), study.values(section)
        assert {key for key in many if many[key] != few[key]} == keys, section
    assert study.values("sl_cai")["prompts"]["red_team"] > cai.values("sl_cai")["prompts"]["red_team"]
    assert study.values("rl_cai")["prompts"] > cai.values("rl_cai")["prompts"]


@functools.cache
def screened(repo: str, license_: str, limits: screening.Limits, batch: planning.Batch) -> screening.Verdict:
    """What a recipe's screening says on a GPU; several recipes ask the same of the same model."""
    found = screening.Description(SHAPES[repo], ("config.json", "model.safetensors"))
    return screening.screen(found, license_, limits, batch, Runtime("cuda", "bfloat16", 2))


@pytest.mark.parametrize("name", RECIPES)
def test_its_models_pass_its_own_screening_on_a_gpu(name: str, place: Path) -> None:
    params = merge(place, name)
    asked, chosen = params.section("scope", scope.Config), params.section("select", select.Config)
    limits = screening.Limits(asked.kind, asked.constraints.licenses, asked.constraints.memory_gib)
    hub = [each for each in chosen.candidates.values() if isinstance(each, select.HubModel)]
    assert hub or name not in GPUS
    for source in hub:
        verdict = screened(source.repo, source.license, limits, select.assumed(chosen.plan).batch)
        assert verdict.refusal is None
        assert verdict.parameters == PARAMETERS[source.repo]


@pytest.mark.parametrize("name", GPUS)
def test_its_largest_batch_fits_the_gpu_that_its_comment_names(name: str, place: Path) -> None:
    params, (size, dtype) = merge(place, name), GPUS[name]
    assert f"{size} GB" in (tuned.ROOT / "recipes" / f"{name}.yaml").read_text().partition("\n\nscope:")[0]
    [source] = params.section("select", select.Config).candidates.values()
    assert isinstance(source, select.HubModel)
    config = screening.configuration(SHAPES[source.repo])
    command = params.section("launch", Launch).root.split()
    processes = int(command[-1]) if command[0] == "torchrun" else 1
    stages: dict[str, tuple[type[tuning.Training], Any]] = {
        "sft": (sft.Config, lambda cfg: None),
        "lora": (lora.Config, lambda cfg: models.low_rank(cfg.rank, cfg.alpha, cfg.targets, cfg.dropout)),
        "prompt_tune": (prompt_tune.Config, prompt_tune.adapter),
    }
    for stage in used(params):
        kind, adapter = stages[stage]
        cfg = params.section(stage, kind)
        rows, _ = tuning.micro_batches(cfg.batch_size, cfg.accumulation, processes)
        batch = planning.Batch(rows, cfg.max_tokens, 128 if config.is_encoder_decoder else 32)
        quantised = {"nf4": "4-bit", "int8": "int8"}.get(getattr(cfg, "quantize", "none"))
        planned = planning.tuning_memory(
            config, adapter(cfg), batch, dtype, recompute=cfg.recompute, quantised=quantised
        )
        lasting = planned.weights + planned.optimizer + planned.gradients
        shards = processes if cfg.sharding == "fsdp" else 1
        # A tenth is left for what CUDA keeps for itself and for holes between tensors.
        assert planned.total - lasting + lasting / shards < 0.9 * size * 2**30, stage


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "multi-gpu-fsdp"])
def test_what_it_tunes_runs_on_a_tiny_model_of_the_same_architecture(name: str, place: Path) -> None:
    params = merge(place, name)
    stages = used(params)
    assert stages, "a recipe tunes something"
    tuned.prepare(place, "encoder-decoder" if "t5" in name else "decoder-only")
    for stage in stages:
        values = {**params.values(stage), **FEW}
        if stage == "pretrain":
            (place / "text.txt").write_text(
                "\n\n".join(f"Return the value of row {at} of a table." for at in range(40))
            )
            values["max_tokens"] = 64
            (place / "read").mkdir()
            (place / "read/model").symlink_to(place / "model")
            metrics = pretrained(place / "read", place / "text.txt", **values)
            trained = json.loads((place / "read/out/model/training.json").read_text())
        else:
            values["seeds"] = values["seeds"][:1]
            metrics = tuned.run(stage, place, place, stage, **values, **tasks(place, values))
            [path] = (place / stage).glob("*/training.json")
            trained = json.loads(path.read_text())
        assert trained["batch_size"] == values["batch_size"] * values["accumulation"]
        assert trained["steps"] == 2 and metrics["planned/memory_bytes"]
        if stage == "lora":
            assert trained["method"] == ("lora" if values["quantize"] == "none" else "qlora")
            assert trained["tasks"] == values["mixture"]["tasks"]


def tasks(place: Path, values: dict[str, Any]) -> dict[str, Path]:
    """Rows of the other tasks that a stage mixes in, where it does."""
    names = values.get("mixture", {}).get("tasks", ())
    rows = [
        records.TaskItem(id=f"{at:012x}", task=name, prompt=f"{name} {at}", completion="A", choices=(), source="made")
        for name in names
        for at in range(12)
    ]
    records.write(place / "tasks.jsonl", rows)
    return {"tasks": place / "tasks.jsonl"} if rows else {}


@pytest.mark.slow
def test_several_processes_shard_what_the_recipe_shards(place: Path) -> None:
    params = merge(place, "multi-gpu-fsdp")
    launch = params.section("launch", Launch).root.split()
    assert launch[0] == "torchrun" and launch[-2:] == ["--nproc_per_node", "4"]
    assert used(params) == ["sft", "lora"]
    tuned.prepare(place)
    for stage in used(params):
        sections = {
            stage: {**params.values(stage), **FEW},
            "runtime": {"device": "cpu", "dtype": "float32", "threads": 1},
            "scope": {"name": "test"},
        }
        (place / "params.yaml").write_text(json.dumps(sections))
        flags = [f"--{each}={place / each}.jsonl" for each in ("train", "validation")]
        flags += [f"--model={place / 'model'}", f"--out={place / stage}"]
        ended = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *launch[1:-1], "2", "-m", f"stages.{stage}", *flags],
            cwd=place,
            env={**tuned.environment(), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        [path] = (place / stage).glob("*/training.json")
        assert json.loads(path.read_text())["micro_batch"] == 16  # of 32 pairs, half on each process


def test_a_candidate_of_a_run_that_nobody_asked_for_is_told(place: Path) -> None:
    text = (tuned.ROOT / "recipes/ia3.yaml").read_text().replace("tuned: {", "other: {")
    (place / "mine.yaml").write_text(text)
    merged = recipes.merged(tuned.ROOT / "params.yaml", [(place / "mine.yaml", None)])
    (place / "params.yaml").write_text(merged)
    [fault] = checks.check(place)
    assert "'artifacts/ia3/tuned/adapter' is neither there nor made by a stage" in fault
    assert "artifacts/ia3/other" in fault


def test_an_adapter_on_another_model_than_it_was_made_for_is_told(place: Path) -> None:
    merge(place, "domain")
    path = place / "params.yaml"
    text = path.read_text()
    wrong = text.replace("adapter, base: artifacts/pretrain/domain/model}", "adapter, base: artifacts/select/model}")
    assert wrong != text
    path.write_text(wrong)
    told = "an adapter of lora sits on 'artifacts/pretrain/domain/model', not on 'artifacts/select/model'"
    found = checks.check(place)  # the candidate, and the variant that it is
    assert len(found) == 2 and all(told in each for each in found), found


def test_every_recipe_says_how_it_is_started() -> None:
    for name in RECIPES:
        comment = (tuned.ROOT / "recipes" / f"{name}.yaml").read_text().split("\n\n")[0]
        assert {"tiny": "make quick", "study": "make study"}.get(name, f"make run RECIPE={name}") in comment
