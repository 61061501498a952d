"""`python -m stages --check` tells every mistake with its line before anything runs."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages import __main__ as checks
from tests.stages import tuned
from tunemill import recipes
from tunemill.errors import UserError
from tunemill.params import ParamsFile
from tunemill.stage import contract

LORA_ONLY = {
    "base": {"policy": "artifacts/select/model", "base": "artifacts/select/model"},
    "lora": {"policy": "artifacts/lora/adapter", "base": "artifacts/select/model"},
}
ONE = {"candidates": LORA_ONLY, "compare": {"pairs": [], "aligned": {}}}
FOUR = {"launch": "torchrun --standalone --nproc_per_node 4"}
READ = {"model": "artifacts/select/model", "text": "artifacts/validate/train.jsonl"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("dvc.yaml", "constitution.yaml"):
        (tmp_path / name).write_text((tuned.ROOT / name).read_text())
    return tmp_path


PAYS = {"candidate": "lora", "at_least": 0.0, "why": "tuning must pay"}
LARGE = {
    "scope": {
        "criteria": [
            {**PAYS, "metric": metric, "against": against}
            for metric, against in (
                ("rouge1", "base"),
                ("rougeL", "base"),
                ("rouge1", "lead-10-words"),
                ("rouge1", "first-sentence"),
            )
        ],
    },
    "variants": {"lora": LORA_ONLY["lora"]},
    "extra": {"distill": {}, "quantize": {}, "prune": {}},
    "promote": {"candidate": "lora"},
}
"""What other candidates are laid over: `lora` ships as it is, and nothing is made smaller."""


def faults(place: Path, overlay: dict[str, Any]) -> list[str]:
    below = [(Path("large"), LARGE)] if "compact" not in overlay.get("candidates", {"compact": None}) else []
    merged = recipes.merged(tuned.ROOT / "params.yaml", [*below, (Path("overrides"), overlay)])
    (place / "params.yaml").write_text(merged)
    return checks.check(place)


def test_the_default_is_in_order(place: Path) -> None:
    assert faults(place, {}) == []


@pytest.mark.parametrize(
    ("overlay", "where", "told"),
    [
        ({"launch": ""}, "launch", "no program\n  expected: `python`, or `torchrun"),
        ({"launch": "tochrun --nproc_per_node 2"}, "launch", "no program 'tochrun'|did you mean 'torchrun'?"),
        ({"launch": "foobar 3"}, "launch", "no program 'foobar'|fix: set launch: python"),
        ({"launch": "torchrun 'a"}, "launch", "no program"),
        ({"lora": {"mixture": {"tasks": ["mmul"]}}}, "lora.mixture.tasks.0", "no task 'mmul'|did you mean 'mmlu'?"),
        (
            {"sft": {"mixture": {"tasks": ["mmlu", "x"]}}},
            "sft.mixture.tasks.1",
            "no task 'x'|one of born_first, heavier",
        ),
        (
            {"validate": {"red_team": {"advbnech": {"monitor": 9}}}},
            "validate.red_team.advbnech",
            "no red-team set 'advbnech'|did you mean 'advbench'?",
        ),
        (
            {"validate": {"harmless": {"truthfulaq": 9}}},
            "validate.harmless.truthfulaq",
            "no harmless set 'truthfulaq'|did you mean 'truthfulqa'?",
        ),
        (
            {"collect": {"harmless": {}}},
            "validate.harmless.truthfulqa",
            "no harmless set 'truthfulqa'|expected: none: collect.harmless has no set",
        ),
        (
            {"collect": {"harmless": {"truthfulqa": {"source": "file", "path": "nowhere.csv", "sha256": "0" * 64}}}},
            "collect.harmless.truthfulqa.path",
            "no file 'nowhere.csv'",
        ),
        ({"compare": {"pairs": [["lora", "stf"]]}}, "compare.pairs.0.1", "'stf' is no candidate|did you mean 'sft'?"),
        ({"compare": {"aligned": {"prmpt": "lora"}}}, "compare.aligned.prmpt", "'prmpt' is no candidate"),
        (
            {"compare": {"aligned": {"sft": "lroa"}}},
            "compare.aligned.sft",
            "'lroa' is no candidate|did you mean 'lora'?",
        ),
        ({"compare": {"controls": {"pop": ["lora"]}}}, "compare.controls", "'pop' is not aligned: name one of ppo"),
        (
            {"compare": {"controls": {"ppo": ["sftt"]}}},
            "compare.controls.ppo.0",
            "'sftt' is no candidate|did you mean 'sft'?",
        ),
        ({"compare": {"reference": "bas"}}, "compare.reference", "'bas' is no candidate|did you mean 'base'?"),
        ({"compare": {"reference": "first-sentence"}}, "compare.reference", "'first-sentence' is no candidate"),
        ({"efficiency": {"reference": "bse"}}, "efficiency.reference", "'bse' is no candidate|did you mean 'base'?"),
        ({"judge": {"folder": "models/judge"}}, "judge.folder", "'models/judge' is neither there nor made by a stage"),
        (
            {"judge": {"model": "folder", "against": "bse"}},
            "judge.against",
            "'bse' is no candidate|did you mean 'base'?",
        ),
        (
            {"judge": {"model": "endpoint", "endpoint": {"key_variable": "TUNEMILL_TEST_NO_SUCH_KEY"}}},
            "judge.endpoint.key_variable",
            "the environment variable TUNEMILL_TEST_NO_SUCH_KEY is not set|export TUNEMILL_TEST_NO_SUCH_KEY=",
        ),
        (
            {"candidates": LORA_ONLY, "compare": {"aligned": {}}},
            "compare.pairs.0.1",
            "'sft' is no candidate|take the entry out",
        ),
        (
            {"extra": {"ia3": {"tuned": {"model": "artifacts/select/modl"}}}},
            "extra.ia3.tuned.model",
            "'artifacts/select/modl' is neither there nor made by a stage|did you mean 'artifacts/select/model'?",
        ),
        (
            {"extra": {"pretrain": {"domain": {**READ, "text": "texts"}}}},
            "extra.pretrain.domain.text",
            "'texts' is neither there nor made by a stage",
        ),
        (
            {"extra": {"pretrain": {"domain": {**READ, "model": "models/x"}}}},
            "extra.pretrain.domain.model",
            "'models/x' is neither there nor made by a stage",
        ),
        ({"start": "artifacts/slect/model"}, "start", "neither there nor made by a stage|'artifacts/select/model'?"),
        ({"sft": {"sharding": "fsdp"}}, "sft.sharding", "one process has nobody to share the model with"),
        (
            {**FOUR, "lora": {"batch_size": 6, "accumulation": 3}},
            "lora.batch_size",
            "a step of 18 pairs (batch_size x accumulation) cannot be shared by 4 processes|a multiple of 4",
        ),
        ({"runtime": {"dtype": "float16"}}, "runtime.dtype", "float16 cannot be trained in"),
        (
            {"collect": {"examples": {"source": "file", "path": "my.csv"}}},
            "collect.examples.path",
            "no file 'my.csv'|from the repository's root",
        ),
        (
            {"collect": {"tasks": {"own": {"rows": {"source": "file", "path": "own.jsonl"}}}}},
            "collect.tasks.own.rows.path",
            "no file 'own.jsonl'",
        ),
        (
            {"collect": {"encoder": {"source": "folder", "path": "away", "hash": "", "license": "MIT"}}},
            "collect.encoder.path",
            "no model in 'away'",
        ),
        (
            {"select": {"candidates": {"mine": {"source": "folder", "path": "away", "hash": "", "license": "MIT"}}}},
            "select.candidates.mine.path",
            "no model in 'away'",
        ),
    ],
)
def test_each_mistake_is_told_with_its_line(place: Path, overlay: dict[str, Any], where: str, told: str) -> None:
    [fault] = faults(place, overlay)
    number, _, rest = fault.removeprefix(f"{place / 'params.yaml'}:").partition(": ")
    assert rest.startswith(f"{where}: ")
    line = (place / "params.yaml").read_text().splitlines()[int(number) - 1]
    assert any(each in line for each in [*where.split("."), *re.findall(r"'(.+?)'", told)]), line
    for each in told.split("|"):
        assert each in fault


def test_a_seed_that_is_not_trained_and_a_base_that_is_nowhere_are_told_at_once(place: Path) -> None:
    sft = {"policy": "artifacts/sft/model-18", "base": "x"}
    found = faults(place, {"candidates": {**LORA_ONLY, "sft": sft}, "compare": {"aligned": {}}})
    assert len(found) == 2
    assert "candidates.sft.policy: 'artifacts/sft/model-18' is neither there nor made by a stage" in found[0]
    assert "candidates.sft.base: 'x' is neither there" in found[1]


@pytest.mark.parametrize(
    "overlay",
    [
        ONE,
        {"judge": {"against": "nobody"}},  # it is off
        {"launch": "OMP_NUM_THREADS=1 torchrun --nproc_per_node=gpu", "sft": {"sharding": "fsdp"}},
        {"launch": "torchrun --nproc-per-node 2 --nnodes 2", "sft": {"sharding": "fsdp"}},
        {**FOUR, **ONE, "sft": {"batch_size": 3}, "prompt_tune": {"batch_size": 3}},  # no candidate uses them
        {**ONE, "sft": {"sharding": "fsdp"}},
        {"sft": {"seeds": [17, 18]}, "candidates": {"sft": {"policy": "artifacts/sft/model-18", "base": "."}}}
        | {"scope": {"criteria": []}},
    ],
)
def test_what_can_run_is_not_refused(place: Path, overlay: dict[str, Any]) -> None:
    if overlay.get("scope"):  # candidates that the rest of params.yaml does not name
        overlay = {
            **overlay,
            "scope": {"criteria": [{"metric": "rouge1", "candidate": "sft", "against": "first-sentence"}
            | {"at_least": 0.0, "why": "it must"}]},
            "compare": {"reference": "sft", "pairs": [], "aligned": {}}, "efficiency": {"reference": "sft"},
            "promote": {"candidate": "sft"},
        }  # fmt: skip
    assert faults(place, overlay) == []


def test_fsdp_and_odd_steps_are_told_of_what_is_read_before_too(place: Path) -> None:
    overlay = {
        **FOUR,
        **ONE,
        "start": "artifacts/pretrain/domain/model",
        "candidates": {**LORA_ONLY, "lora": {**LORA_ONLY["lora"], "base": "artifacts/pretrain/domain/model"}},
        "variants": {"lora": {**LORA_ONLY["lora"], "base": "artifacts/pretrain/domain/model"}},
        "extra": {"pretrain": {"domain": READ}},
        "pretrain": {"batch_size": 3},
    }
    [fault] = faults(place, overlay)
    assert "pretrain.batch_size: a step of 3 pairs" in fault


def test_an_ia3_adapter_on_another_model_is_told(place: Path) -> None:
    (place / "other").mkdir()
    ia3 = {"policy": "artifacts/ia3/tuned/adapter", "base": "artifacts/select/model"}
    [fault] = faults(
        place,
        {
            **ONE,
            "candidates": {**LORA_ONLY, "ia3": ia3},
            "extra": {"ia3": {"tuned": {"model": "other"}}},
        },
    )
    assert "candidates.ia3.base: an adapter of ia3 sits on 'other', not on 'artifacts/select/model'" in fault
    assert "the model that `extra.ia3.tuned.model` names" in fault


TUNED = {"policy": "artifacts/lora/adapter", "base": "artifacts/select/model"}


@pytest.mark.parametrize(("stage", "variant"), [("distill", "student"), ("prune", "wanda")])
def test_runs_that_make_a_smaller_model_are_checked_like_the_rest(place: Path, stage: str, variant: str) -> None:
    made = f"artifacts/{stage}/{variant}/model"

    def found(run: dict[str, str], name: str = variant, **change: Any) -> list[str]:
        candidates = {**LORA_ONLY, "small": {"policy": made.replace(variant, name), "base": "artifacts/select/model"}}
        return faults(place, {**ONE, "candidates": candidates, "extra": {stage: {name: run}}, **change})

    assert found(TUNED) == []
    [fault] = found(TUNED | {"policy": "artifacts/lora/adaptr"})
    assert f"extra.{stage}.{variant}.policy: 'artifacts/lora/adaptr' is neither there nor" in fault
    assert "did you mean 'artifacts/lora/adapter'?" in fault
    [fault] = found(TUNED | {"base": "artifacts/sft/model"})
    assert f"extra.{stage}.{variant}.base: an adapter of lora sits on 'artifacts/select/model'" in fault
    [fault] = found(TUNED, name=f"{variant}s")
    assert f"extra.{stage}.{variant}s: no variant '{variant}s'" in fault
    assert f"did you mean '{variant}'?" in fault
    training: dict[str, Any] = {"batch_size": 6, "accumulation": 3}
    [fault] = found(TUNED, runtime={"dtype": "float16"})
    assert "float16 cannot be trained in" in fault
    if stage == "distill":  # prune runs in one process
        [fault] = found(TUNED, **FOUR, distill=training)
        assert "distill.batch_size: a step of 18 pairs" in fault
        [fault] = found(TUNED, distill={"student": "artifacts/nowhere/model"})
        assert "distill.student: 'artifacts/nowhere/model' is neither there nor made by a stage" in fault
    # Another training than the first has its seed in its name.
    folder = {**LORA_ONLY, "small": {"policy": f"{made}-18", "base": "artifacts/select/model"}}
    seeds: dict[str, Any] = {"seeds": [17, 18]}
    overlay = {**ONE, "candidates": folder, "extra": {stage: {variant: TUNED}}}
    assert faults(place, overlay | {stage: seeds if stage == "distill" else {"recovery": seeds}}) == []


ALIGNED = {
    "dpo": {"model": "artifacts/feedback/policy", "preferences": "artifacts/feedback/preferences.jsonl"},
    "kto": {"model": "artifacts/feedback/policy", "preferences": "artifacts/feedback/preferences.jsonl"},
    "grpo": {"model": "artifacts/feedback/policy", "reward": "artifacts/reward/harm"},
    "rloo": {"model": "artifacts/feedback/policy", "reward": "artifacts/reward/harm"},
    "best_of": {"model": "artifacts/feedback/policy", "reward": "artifacts/reward/harm"},
}


@pytest.mark.parametrize("stage", ALIGNED)
def test_what_aligns_without_ppo_is_checked_like_the_rest(place: Path, stage: str) -> None:
    made = f"artifacts/{stage}/harm/{'model' if stage == 'best_of' else 'adapter'}"

    def found(item: dict[str, str], base: str = "artifacts/feedback/policy") -> list[str]:
        candidates = {**LORA_ONLY, stage: {"policy": made, "base": base}}
        return faults(place, {**ONE, "candidates": candidates, "extra": {stage: {"harm": item}}})

    assert found(ALIGNED[stage]) == []
    key = "preferences" if stage in ("dpo", "kto") else "reward"
    [fault] = found(ALIGNED[stage] | {key: "artifacts/nowhere/x"})
    assert f"extra.{stage}.harm.{key}: 'artifacts/nowhere/x' is neither there nor made by a stage" in fault
    [fault] = found(ALIGNED[stage] | {"model": "artifacts/feedback/polcy"})
    assert "did you mean 'artifacts/feedback/policy'?" in fault
    if stage != "best_of":
        [fault] = found(ALIGNED[stage], base="artifacts/select/model")
        assert f"an adapter of {stage} sits on 'artifacts/feedback/policy', not on 'artifacts/select/model'" in fault


HARM = {
    "policy": "artifacts/feedback/policy",
    "preferences": "artifacts/feedback/preferences.jsonl",
    "completions": "artifacts/feedback/completions.jsonl",
}
NOT_RUN: dict[str, Any] = {"reward": {"harm": HARM}, "sl_cai": {}, "rl_cai": {}, "ppo": {}}
OPTIMISED = {
    "policy": "artifacts/feedback/policy",
    "reward": "artifacts/reward/harm",
    "feedback": "artifacts/feedback/feedback.json",
}


@pytest.mark.parametrize(("mode", "result"), [("adapters", "adapter"), ("full", "model")])
def test_what_ppo_writes_is_known_by_its_mode_and_sits_on_the_starting_policy(
    place: Path, mode: str, result: str
) -> None:
    def found(base: str, result: str = result) -> list[str]:
        policy = {"policy": f"artifacts/ppo/harm/{result}-18", "base": base}
        setting = {"mode": mode, "seeds": [17, 18]}
        run = {"ppo": {"harm": OPTIMISED}}
        return faults(place, {**ONE, "candidates": {**LORA_ONLY, "ppo": policy}, "extra": run, "ppo": setting})

    policy = "artifacts/feedback/policy"
    assert found(policy if mode == "adapters" else f"artifacts/ppo/harm/{result}-18") == []
    other = "model" if result == "adapter" else "adapter"
    [fault, *_] = found(policy, other)
    assert f"candidates.ppo.policy: 'artifacts/ppo/harm/{other}-18' is neither there nor made by a stage" in fault
    if mode == "adapters":
        [fault] = found("artifacts/select/model")
        assert f"an adapter of ppo sits on '{policy}', not on 'artifacts/select/model'" in fault
        assert "the model that `extra.ppo.harm.policy` names" in fault


@pytest.mark.parametrize("key", OPTIMISED)
def test_a_run_of_ppo_says_what_it_starts_from_works_for_and_what_is_known_of_it(place: Path, key: str) -> None:
    run = {name: value for name, value in OPTIMISED.items() if name != key}
    [fault] = faults(place, {"extra": {**NOT_RUN, "ppo": {"mine": run}}, **ONE})
    assert f": extra.ppo.mine.{key}: missing" in fault and "fix: add the key" in fault
    lines = (place / "params.yaml").read_text().splitlines()
    assert "mine:" in lines[int(fault.removeprefix(f"{place / 'params.yaml'}:").partition(":")[0]) - 1]
    [fault] = faults(place, {**ONE, "extra": {**NOT_RUN, "ppo": {"harm": OPTIMISED | {key: "artifacts/nowhere"}}}})
    assert f"extra.ppo.harm.{key}: 'artifacts/nowhere' is neither there nor made by a stage" in fault


# ── by a constitution ─────────────────────────────────────────────────────────────────────────────────────────────


def constitution_of(place: Path, old: str, new: str) -> Path:
    """The committed one with a mistake."""
    path = place / "constitution.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "where", "told"),
    [
        ("{second}\n", "{secnd}\n", "templates.comparison", "no {secnd} in it ({second} is meant?)"),
        (
            "principle: no_accomplice",
            "principle: no_acomplice",
            "examples.critiques.1.principle",
            "no principle 'no_acomplice'|did you mean 'no_accomplice'?",
        ),
        ("better: (A)", "better: (B)", "examples.comparisons", "have (A) for the better answer"),
        (
            "comparison: Which answer does less harm?\n",
            "",
            "principles.harmless.comparison",
            "missing|fix: add the key",
        ),
        ("templates:", "tmplates:", "tmplates", "unknown section 'tmplates'|did you mean 'templates'?"),
    ],
)
def test_a_mistake_in_the_constitution_is_told(place: Path, old: str, new: str, where: str, told: str) -> None:
    path = constitution_of(place, old, new)
    found = faults(place, {})
    assert found
    for fault in found:  # of sl_cai, and of rl_cai
        assert re.match(rf"{re.escape(str(path))}:\d+: {re.escape(where)}: ", fault), fault
        assert all(each in fault for each in told.split("|")), fault


def test_a_mistake_in_a_constitution_that_two_stages_go_by_is_told_once(place: Path) -> None:
    constitution_of(place, "templates:", "tmplates:")
    assert len(faults(place, {})) == 1


def test_the_command_tells_a_mistake_in_the_constitution_in_about_a_second(place: Path) -> None:
    path = constitution_of(place, "{second}\n", "{secnd}\n")
    (place / "params.yaml").write_text((tuned.ROOT / "params.yaml").read_text())
    before = os.times().children_user
    command = [sys.executable, "-m", "stages", "--check"]
    done = subprocess.run(command, cwd=place, env=tuned.environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: constitution.yaml:") and path.name in done.stderr
    assert "({second} is meant?)" in done.stderr and "Traceback" not in done.stderr
    # What it computed, not what it waited for: about a second, more where much else runs beside.
    assert os.times().children_user - before < 4.0


def test_prompts_that_no_principle_is_meant_for_are_told(place: Path) -> None:
    path = constitution_of(place, "    prompts: [harmless]\n", "    prompts: [red_team]\n")
    text = path.read_text().replace("prompts: [red_team, harmless]", "prompts: [red_team]")
    path.write_text(text)
    assert faults(place, {}) == []  # no everyday question is asked
    [fault] = faults(place, {"sl_cai": {"prompts": {"red_team": 4, "harmless": 1, "task": 0}}})
    assert f"{path}: principles: no principle for harmless prompts" in fault


def test_a_constitution_that_is_nowhere_is_told(place: Path) -> None:
    run = {"constitution": "rules.yaml", "model": "artifacts/feedback/policy", "reward": "artifacts/reward/harm"}
    candidates = {**LORA_ONLY, "sl_cai": {"policy": "artifacts/sl_cai/cai/model", "base": "artifacts/feedback/policy"}}
    extra = {**NOT_RUN, "sl_cai": {"cai": run}}
    [fault] = faults(place, {**ONE, "candidates": candidates, "extra": extra})
    assert "rules.yaml: no constitution" in fault and "a YAML file with principles, examples and templates" in fault


@pytest.mark.parametrize(
    ("stage", "key", "run"),
    [
        ("ppo", "policy", {"feedback": "artifacts/feedback/feedback.json"}),
        ("sl_cai", "model", {"constitution": "constitution.yaml"}),
        ("best_of", "model", {}),
    ],
)
def test_a_reward_model_on_another_model_than_it_was_trained_on_is_told(
    place: Path, stage: str, key: str, run: dict[str, str]
) -> None:
    extra = {**NOT_RUN, "reward": {"harm": HARM}, stage: {"x": {**run, "reward": "artifacts/reward/harm"}}}
    extra[stage]["x"][key] = "artifacts/select/model"
    [fault] = faults(place, {**ONE, "extra": extra})
    assert f"extra.{stage}.x.{key}: the reward model artifacts/reward/harm sits on 'artifacts/feedback/policy'" in fault
    extra[stage]["x"][key] = "artifacts/feedback/policy"
    assert faults(place, {**ONE, "extra": extra}) == []


def test_a_run_that_another_stage_reads_and_that_is_gone_is_told(place: Path) -> None:
    (place / "recipes/rewards/length").mkdir(parents=True)
    run = {"policy": "artifacts/feedback/policy", "reward": "recipes/rewards/length"}
    extra = {**NOT_RUN, "reward": {}, "ppo": {"short": {**run, "feedback": "artifacts/feedback/feedback.json"}}}
    [fault] = faults(place, {**ONE, "extra": extra})
    assert "dvc.yaml: stages.ppo: it reads 'artifacts/reward/harm', which no stage makes" in fault
    assert "expected: the run `extra.reward.harm`" in fault


@pytest.mark.parametrize("key", HARM)
def test_what_a_reward_learns_from_is_somewhere(place: Path, key: str) -> None:
    extra = {**NOT_RUN, "reward": {"harm": {**HARM, key: "artifacts/nowhere"}}}
    [fault] = faults(place, {**ONE, "extra": extra})
    assert f"extra.reward.harm.{key}: 'artifacts/nowhere' is neither there nor made by a stage" in fault


@pytest.mark.parametrize(("stage", "key"), [("sl_cai", "critic"), ("rl_cai", "judge")])
def test_a_key_of_who_criticises_or_judges_is_missed_before_anything_runs(place: Path, stage: str, key: str) -> None:
    endpoint = {"model": "endpoint", "endpoint": {"key_variable": "TUNEMILL_TEST_NO_SUCH_KEY"}}
    [fault] = faults(place, {stage: {key: endpoint}})
    number, _, rest = fault.removeprefix(f"{place / 'params.yaml'}:").partition(": ")
    assert rest.startswith(f"{stage}.{key}.endpoint.key_variable: the environment variable TUNEMILL_TEST_NO_SUCH_KEY")
    assert "TUNEMILL_TEST_NO_SUCH_KEY" in (place / "params.yaml").read_text().splitlines()[int(number) - 1]
    # Nobody asks it where the stage does not run, or another model is named.
    assert faults(place, {**ONE, stage: {key: endpoint}, "extra": NOT_RUN}) == []
    assert faults(place, {stage: {key: endpoint | {"model": "self"}}}) == []


@pytest.mark.parametrize(("stage", "key"), [("sl_cai", "critic"), ("rl_cai", "judge")])
def test_who_criticises_or_judges_is_somewhere(place: Path, stage: str, key: str) -> None:
    [fault] = faults(place, {stage: {key: {"model": "folder", "folder": "artifacts/slect/model"}}})
    assert f"{stage}.{key}.folder: 'artifacts/slect/model' is neither there nor made by a stage" in fault
    assert "did you mean 'artifacts/select/model'?" in fault


def test_what_ppo_makes_of_the_constitution_sits_on_the_model_that_sl_cai_tuned(place: Path) -> None:
    values = ParamsFile(tuned.ROOT / "params.yaml").values("candidates")
    values["rl_cai"]["base"] = "artifacts/feedback/policy"
    [fault] = faults(place, {"candidates": values})
    assert "candidates.rl_cai.base: an adapter of ppo sits on 'artifacts/sl_cai/cai/model'" in fault
    assert "not on 'artifacts/feedback/policy'" in fault and "the model that `extra.ppo.rl_cai.policy` names" in fault


def test_a_seed_of_sl_cai_that_is_not_trained_is_told(place: Path) -> None:
    values = ParamsFile(tuned.ROOT / "params.yaml").values("candidates")
    values["sl_cai"]["policy"] = "artifacts/sl_cai/cai/model-18"
    overlay = {"candidates": values}
    [fault] = faults(place, overlay)
    assert "candidates.sl_cai.policy: 'artifacts/sl_cai/cai/model-18' is neither there" in fault
    assert faults(place, {**overlay, "sl_cai": {"seeds": [17, 18]}}) == []


@pytest.mark.parametrize(
    ("text", "told"), [("stages: [\n", r"dvc\.yaml:\d+: not valid YAML"), ("a: 1\n", r"dvc\.yaml: no stages")]
)
def test_a_dvc_yaml_that_is_none(place: Path, text: str, told: str) -> None:
    (place / "params.yaml").write_text((tuned.ROOT / "params.yaml").read_text())
    (place / "dvc.yaml").write_text(text)
    with pytest.raises(UserError, match=told):
        checks.check(place)


def test_start_is_where_every_stage_starts_that_is_said_to() -> None:
    stages = checks.graph(tuned.ROOT / "dvc.yaml")
    starting = [name for name, stage in stages.items() if "--model ${start} " in stage.get("cmd", "")]
    assert starting == list(checks.STARTED)
    assert all("${start}" in stages[name]["deps"] for name in starting)


def test_dvc_yaml_gives_every_stage_all_that_it_can_read() -> None:
    """An optional input that is forgotten there would only leave a part of the result out."""
    for name, stage in checks.graph(tuned.ROOT / "dvc.yaml").items():
        words = shlex.split(stage.get("do", stage)["cmd"])
        module = next(word for word in words if word.startswith("stages."))
        inputs = contract(importlib.import_module(module).run).inputs
        given = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
        assert inputs.keys() - given == set(), name


def test_nothing_heavy_is_imported() -> None:
    heavy = "torch transformers mlflow trl peft datasets numpy pandas dvc prefect great_expectations"
    code = (
        "import sys; from pathlib import Path; from stages import __main__ as checks\n"
        "assert checks.check(Path()) == []\n"
        f"print(sorted(set('{heavy}'.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tuned.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


RULE = {"metric": "rouge1", "candidate": "lora", "against": "base", "at_least": 0.0, "why": "it must"}


def criterion(**change: Any) -> dict[str, Any]:
    """The scope with one more criterion; a value of None that is no `against` leaves the key out."""
    rule = {name: value for name, value in (RULE | change).items() if value is not None or name == "against"}
    return {"scope": {"criteria": [RULE, rule]}, "promote": {"candidate": "lora"}}


@pytest.mark.parametrize(
    ("change", "where", "told"),
    [
        (
            {"metric": "rouge3"},
            "metric",
            "unknown metric 'rouge3'|did you mean 'rougeL'?|one of rouge1, rouge2, rougeL, bleu",
        ),
        (
            {"metric": "toxicity/instruction/harm_shar"},
            "metric",
            "unknown metric 'toxicity/instruction/harm_shar'|did you mean 'toxicity/instruction/harm_share'?",
        ),
        ({"metric": "decode_rato"}, "metric", "unknown metric 'decode_rato'|did you mean 'decode_ratio'?"),
        (
            {"metric": "alignment/hram", "candidate": "ppo", "against": "lora"},
            "metric",
            "did you mean 'alignment/harm'?",
        ),
        ({"metric": "zzz"}, "metric", "unknown metric 'zzz'|docs/promote.md lists them"),
        ({"metric": "disk_ratio", "against": None}, "against", "disk_ratio is always measured against a candidate"),
        (
            {"metric": "toxicity/test/offence", "against": "lead-10-words"},
            "against",
            "'lead-10-words' is copied text: toxicity/test/offence is not measured of it",
        ),
        ({"against": "lora"}, "against", "'lora' is compared with itself"),
        ({"against": "bas"}, "against", "'bas' is no candidate|did you mean 'base'?"),
        (
            {"metric": "forgetting/nll", "against": "sft"},
            "against",
            "forgetting/nll is measured against 'base', not against 'sft'",
        ),
        (
            {"metric": "alignment/harm"},
            "1",
            "no answers to red-team prompts of 'lora' are compared with those of 'base'|ppo against lora; sl_cai against lora",
        ),
        (
            {"metric": "alignment/harm", "candidate": "ppo", "against": None},
            "1",
            "no answers to red-team prompts of 'ppo' are compared with those of 'nobody'",
        ),
    ],
)
def test_a_criterion_that_nothing_could_meet_is_told(
    place: Path, change: dict[str, Any], where: str, told: str
) -> None:
    [fault] = faults(place, criterion(**change))
    at = "scope.criteria.1" if where == "1" else f"scope.criteria.1.{where}"
    assert re.match(rf"{re.escape(str(place))}/params.yaml:\d+: {re.escape(at)}: ", fault), fault
    for each in told.split("|"):
        assert each in fault


@pytest.mark.parametrize(
    "change",
    [
        {"at_least": None, "at_most": 3.0},
        {"against": None, "at_least": 20.0},
        {"metric": "calibration/ece_10", "at_least": None, "at_most": 0.05},
        {"metric": "toxicity/instruction/harm_share", "against": None, "at_least": None, "at_most": 0.5},
        {"metric": "tasks/mmlu/acc", "at_least": -0.1},  # known only once it was asked
        {"metric": "alignment/harmless/helpful", "candidate": "ppo", "against": "lora", "at_least": -0.05},
        {"metric": "forgetting/nll", "at_least": None, "at_most": 0.3},
        {"metric": "disk_mib", "against": None, "at_least": None, "at_most": 300.0},
        {"metric": "prefill_ratio", "at_least": 0.5},
    ],
)
def test_a_criterion_may_be_about_every_kind_of_figure(place: Path, change: dict[str, Any]) -> None:
    assert faults(place, criterion(**change)) == []


def test_a_criterion_of_a_method_of_several_seeds_stands_for_each(place: Path) -> None:
    overlay = criterion(metric="alignment/harm", candidate="pair", against="lora")
    overlay["compare"] = {"seeds": {"pair": ["ppo", "rl_cai"]}}
    overlay["promote"] = {"candidate": "ppo"}
    assert faults(place, overlay) == []


@pytest.mark.parametrize("change", [{"at_most": 3.0}, {"at_least": None}])
def test_a_criterion_has_one_threshold(place: Path, change: dict[str, Any]) -> None:
    [fault] = faults(place, criterion(**change))
    assert "scope.criteria.1: " in fault and "name one of at_least and at_most, and not both" in fault


def test_what_is_promoted_is_a_candidate_that_a_criterion_is_about(place: Path) -> None:
    [fault] = faults(place, {"promote": {"candidate": "lroa"}})
    assert "promote.candidate: 'lroa' is no candidate" in fault and "did you mean 'lora'?" in fault
    [fault] = faults(place, {"promote": {"candidate": "sft"}})
    assert "promote.candidate: no criterion is about 'sft', so nothing would decide whether it is promoted" in fault
    assert "expected: one of compact" in fault


def test_the_examples_of_the_page_are_in_order_and_it_names_every_kind_of_metric(place: Path) -> None:
    from ruamel.yaml import YAML

    page = (tuned.ROOT / "docs/promote.md").read_text(encoding="utf-8")
    criteria, promote = (
        YAML(typ="safe", pure=True).load(each)
        for each in re.findall(r"^```yaml\n(.+?)^```$", page, re.DOTALL | re.MULTILINE)
    )
    assert faults(place, criteria | promote) == []
    table = set(re.findall(r"`([\w/…]+)`", page[page.index("| metric | of |") :].partition("\n\n")[0]))
    for metric in checks.criteria_metrics():
        kind = metric.partition("/")[0]
        assert metric in table or f"{kind}/…" in table or kind == "alignment", metric


def test_a_file_for_llama_cpp_is_not_asked_of_an_encoder_decoder(place: Path) -> None:
    def found(family: str, **more: Any) -> list[str]:
        model = {"source": "random", "layers": 3, "width": 64, "seed": 1, "family": family, "license": "none"}
        merged = recipes.merged(
            tuned.ROOT / "params.yaml",
            [
                (tuned.ROOT / "recipes/tiny.yaml", None),
                (Path("more"), {"select": {"candidates": {"tiny": model}}, **more}),
            ],
        )
        (place / "params.yaml").write_text(merged)
        return checks.check(place)

    assert found("decoder-only") == []
    [fault] = found("encoder-decoder")
    assert "extra.quantize.gguf: 'gguf' is a file for llama.cpp, and the model is an encoder-decoder" in fault
    assert "fix: take it out here, and out of `variants`" in fault
    assert (
        found("encoder-decoder", quantize={"variants": {name: {"method": "int8"} for name in ("gguf", "int8")}}) == []
    )
