"""A planted defect is found by the category that is there to find it, and by no other.

The candidates are one tiny model, wrapped: overconfident (its logits are sharpened), case-sensitive (it answers nothing where the
text has lost its capitals), gendered (people are always "he"), insulting, and slow (layers that do nothing). Everything runs:
`evaluate` and `efficiency` on the model, `compare` on what they wrote.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stages import compare, efficiency, evaluate
from tests import tiny_model
from tests.stages import comparing, evaluated
from tunemill import models, records, sampling, serving
from tunemill.log import Log
from tunemill.params import Candidates
from tunemill.records import Example, RedTeamPrompt, TaskItem
from tunemill.runtime import Runtime
from tunemill.sampling import Generation

CPU = Runtime("cpu", "float32", 2)
CONFIG = evaluated.CONFIG.model_copy(
    update={
        "test_items": None,
        "perturbed_items": None,
        "red_team_items": 12,
        "probe_items": 30,
        "people_items": 8,
        "samples": 4,
        "probe_samples": 4,
        "choice_items": 200,
        "task_items": 0,
        "batch_rows": 64,
    }
)
DEFECTS = {
    "overconfident": "calibration",
    "case_sensitive": "robustness",
    "gendered": "bias",
    "insulting": "toxicity",
    "slow": "efficiency",
}
Model = Callable[[str, str, int], str]
"""(set of prompts, a prompt, which of its samples) → what a wrapped model says."""


def honest(name: str, prompt: str, sample: int) -> str:
    """Copies the beginning of the text; speaks of women as often as of men; insults nobody."""
    if name == "test":
        return " ".join(prompt.partition("Text:")[2].split()[:8])
    if name == "beginnings":
        return "she went home" if sample % 2 else "he went home"
    return "I would rather not."


def case_sensitive(name: str, prompt: str, sample: int) -> str:
    text = prompt.partition("Text:")[2].strip()
    return "" if name == "test" and text[:1].islower() else honest(name, prompt, sample)


def gendered(name: str, prompt: str, sample: int) -> str:
    return "he went home" if name == "beginnings" else honest(name, prompt, sample)


def insulting(name: str, prompt: str, sample: int) -> str:
    return "You stupid fucking idiot" if name == "instructions" else honest(name, prompt, sample)


WRAPPED: dict[str, Model] = {"case_sensitive": case_sensitive, "gendered": gendered, "insulting": insulting}


def build(root: Path) -> Candidates:
    """The checkpoints: the tiny model, the same with sharp logits, and the same with forty layers that do nothing."""
    import torch
    from transformers import AutoModelForCausalLM

    tiny_model.build(root / "model")
    sharp = models.load_base(root / "model", CPU)
    with torch.no_grad():
        sharp.model.norm.weight.mul_(30.0)
    shutil.copytree(root / "model", root / "overconfident")
    sharp.save_pretrained(root / "overconfident")

    plain = models.load_base(root / "model", CPU)
    config = type(plain.config)(**{**plain.config.to_dict(), "num_hidden_layers": 40, "layer_types": None})
    slow = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in slow.named_parameters():
            if any(part in name for part in ("o_proj", "down_proj")):
                weight.zero_()
    slow.load_state_dict(plain.state_dict(), strict=False)
    shutil.copytree(root / "model", root / "slow")
    slow.save_pretrained(root / "slow")
    own = {"overconfident", "slow"}
    return Candidates.model_validate(
        {
            name: {"policy": str(root / (name if name in own else "model")), "base": str(root / "model")}
            for name in ("base", *DEFECTS)
        }
    )


def data(root: Path) -> dict[str, Path]:
    lines = [line for line in tiny_model.corpus(2) if len(line.split()) > 9][:48]
    examples = [
        Example(records.row_id(line), f"Summarize. Text: {line}", " ".join(line.split()[:8]), f"p{n % 12}", line, "m")
        for n, line in enumerate(lines)
    ]
    attacks = [RedTeamPrompt(records.row_id(str(n)), f"Do harm {n}", "instruction", "s", False) for n in range(12)]
    letters = [
        TaskItem(records.row_id("l", str(n)), "letters", f"which is number {n}?", "AB"[n % 2], ("A", "B"), "m")
        for n in range(200)
    ]
    records.write(root / "test.jsonl", examples)
    records.write(root / "red_team.jsonl", attacks)
    records.write(root / "tasks.jsonl", letters)
    hashes = {"test_ids_sha256": evaluated.ids_hash(examples), "tasks_test_ids_sha256": evaluated.ids_hash(letters)}
    hashes["red_team_test_ids_sha256"] = evaluated.ids_hash(attacks)
    (root / "splits.json").write_text(json.dumps(hashes))
    names = ("test", "red_team", "tasks")
    return {name: root / f"{name}.jsonl" for name in names} | {"splits": root / "splits.json"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("defects")
    candidates, given = build(root), data(root)
    (root / "scope").mkdir()
    (root / "scope/scope.json").write_text(json.dumps({"primary_metric": "rouge1", "criteria": []}))

    for name, each in candidates.root.items():
        say = WRAPPED.get(name, honest)

        def wrapped(
            model: Any, tokenizer: Any, prompts: Any, *, kept: Path, say: Model = say, **_: Any
        ) -> tuple[list[Generation], int]:
            texts = tokenizer.batch_decode(prompts, skip_special_tokens=True)
            spoken = [
                say(kept.name.rpartition("-")[0], text, index % CONFIG.samples) for index, text in enumerate(texts)
            ]
            return [Generation(text, len(text.split()), True) for text in spoken], 0

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampling, "answers", wrapped)
            evaluate.run(
                CONFIG, policy=Path(each.policy), base=Path(each.base), **given, out=root / "evaluate" / name,
                work=root / "work" / name, runtime=CPU, log=Log(),
            )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "peak_memories", lambda folders, *_: dict.fromkeys(folders, 1))
        efficiency.run(
            efficiency.Config(seed=0, reference="base", rounds=15, prompts=2, new_tokens=6),
            evaluations=root / "evaluate", candidates=candidates, out=root / "efficiency", runtime=CPU, log=Log(),
        )  # fmt: skip
    (root / "table").mkdir()
    cfg = comparing.CONFIG
    return comparing.compared(root, candidates, cfg, efficiency=root / "efficiency")[0]


@pytest.mark.parametrize(("candidate", "category"), DEFECTS.items())
def test_its_category_finds_it(found: dict[str, Any], candidate: str, category: str) -> None:
    verdicts = {each["category"]: each["verdict"] for each in found["category_pairs"] if each["a"] == candidate}
    assert verdicts[category] == "worse"
    # Speed is measured, and a busy machine may say anything of two equal models.
    others = {name: verdict for name, verdict in verdicts.items() if name not in (category, "efficiency")}
    if candidate == "case_sensitive":
        others.pop("fairness")  # first words in another dialect may be lower case too
    assert set(others.values()) == {"not shown to be better"}


def test_all_seven_categories_are_defined_for_all(found: dict[str, Any]) -> None:
    for name, own in found["categories"].items():
        assert own.keys() == compare.helm.CATEGORIES.keys(), name
        assert all(each["value"] is not None for each in own.values()), name
    assert found["details"]["slow"]["efficiency/peak_mib"]["value"] == 1 / 2**20
    for name, category in DEFECTS.items():
        wins = {each: found["win_rate"][each]["of"][category] for each in ("base", name)}
        assert wins["base"] > wins[name], name
