"""An encoder-decoder, a tiny T5 made on the spot, goes through the whole pipeline by changing the model's entry alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.e2e import checkout

pytestmark = pytest.mark.e2e

CHANGE = "select.candidates.tiny.family=encoder-decoder"
EVALUATED = {
    "base": {"policy": "artifacts/select/model", "base": "artifacts/select/model"},
    "lora": {"policy": "artifacts/lora/adapter", "base": "artifacts/select/model"},
    "prompt_tune": {"policy": "artifacts/prompt_tune/adapter", "base": "artifacts/select/model"},
    "ppo": {"policy": "artifacts/ppo/harm/adapter", "base": "artifacts/feedback/policy"},
    "compact": {"policy": "artifacts/compress/model", "base": "artifacts/select/model"},
}
"""Those by which the longest ways through the graph are gone; every stage by itself is tested on a T5 in tests/stages."""

LORA = {"policy": "artifacts/lora/adapter", "base": "artifacts/select/model"}
FEWER = {
    "candidates": EVALUATED,
    "compare": {"pairs": [], "aligned": {"ppo": "lora"}},
    "extra": {
        **{stage: {} for stage in ("sl_cai", "rl_cai", "prune")},
        "reward": {
            "harm": {
                "policy": "artifacts/feedback/policy",
                "preferences": "artifacts/feedback/preferences.jsonl",
                "completions": "artifacts/feedback/completions.jsonl",
            }
        },
        "ppo": {
            "harm": {
                "policy": "artifacts/feedback/policy",
                "reward": "artifacts/reward/harm",
                "feedback": "artifacts/feedback/feedback.json",
            }
        },
        "quantize": {"int8": LORA},  # llama.cpp's files are of decoder-only models
    },
    "variants": {
        "lora": LORA,
        "int8": {"policy": "artifacts/quantize/int8/model", "base": "artifacts/select/model"},
        "student": {"policy": "artifacts/distill/student/model", "base": "artifacts/select/model"},
    },
}


@pytest.fixture(scope="module")
def place(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace of a whole run with that one change; what does not depend on it is restored from another run."""
    root = checkout.make(tmp_path_factory.mktemp("t5"), more=FEWER)
    shutil.copytree(finished / ".dvc/cache", root / ".dvc/cache", symlinks=True)
    shutil.copy(finished / "dvc.lock", root / "dvc.lock")
    shutil.copytree(finished / "metrics", root / "metrics")
    told = checkout.run(root, "make", "run", "JOBS=2", f"SET={CHANGE}").stdout
    assert re.search(r"^validate +│ restored from the cache", told, re.MULTILINE)
    [workspace] = (root / "work/recipes").iterdir()
    return workspace


def test_every_candidate_is_compared(place: Path) -> None:
    comparison = json.loads((place / "reports/comparison.json").read_text())
    assert set(EVALUATED) <= set(comparison["candidates"])
    for name in EVALUATED:
        scores = comparison["candidates"][name]["rouge1"]
        assert scores["n"] == 24
        if scores["ci_low"] is None:  # so small a T5 may have no word right
            assert scores["value"] == 0 and scores["reason"].endswith("all show the same")
        else:
            assert scores["ci_low"] <= scores["value"] <= scores["ci_high"]
    html = (place / "reports/report.html").read_text()
    assert all(f">{name}<" in html for name in EVALUATED)


def test_every_output_is_a_t5_that_plain_libraries_load(place: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    for folder in ("select/model", "distill/student/model", "feedback/policy"):
        model = AutoModelForSeq2SeqLM.from_pretrained(place / "artifacts" / folder)
        assert model.config.model_type == "t5", folder
    for folder in ("lora/adapter", "prompt_tune/adapter"):
        base = AutoModelForSeq2SeqLM.from_pretrained(place / "artifacts/select/model")
        policy = PeftModel.from_pretrained(base, place / "artifacts" / folder)
        tokenizer = AutoTokenizer.from_pretrained(place / "artifacts/select/model")
        given = tokenizer("Write the one-line summary.", return_tensors="pt")
        assert policy.generate(**given, max_new_tokens=4).shape[0] == 1


def test_what_was_tuned_learnt_something(place: Path) -> None:
    for name in ("lora", "prompt_tune"):
        metrics = json.loads((place / f"metrics/{name}.json").read_text())
        assert metrics["validation/loss_last"] < metrics["validation/loss_first"], name
        assert metrics["planned/memory_bytes"] > 0
    for name in ("base", "lora"):
        assert json.loads((place / f"metrics/evaluate/{name}.json").read_text())["test/n"] == 24
