"""What ships, loaded by the libraries that users have: transformers, peft, llama-cpp-python say what the pipeline measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

FORMS = {
    "lora": ("peft", "artifacts/lora/adapter"),
    "int8": ("transformers", "artifacts/quantize/int8/model"),
    "pruned": ("transformers", "artifacts/prune/narrow/model"),
    "student": ("transformers", "artifacts/distill/student/model"),
    "gguf": ("llama_cpp", "artifacts/quantize/gguf/model"),
}


@pytest.mark.parametrize("name", FORMS)
def test_it_says_what_was_measured(finished: Path, tmp_path: Path, name: str) -> None:
    kind, folder = FORMS[name]
    python = os.environ.get("LLAMA_CPP_PYTHON") if kind == "llama_cpp" else sys.executable
    if python is None:
        reason = (
            "no llama-cpp-python: compile it into an environment of its own, and name its python in LLAMA_CPP_PYTHON"
        )
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    lines = (finished / f"artifacts/variant/{name}/rows.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    examples = (finished / "artifacts/validate/validation.jsonl").read_text().splitlines()
    prompts = {each["id"]: each["prompt"] for each in map(json.loads, examples)}
    told = json.loads((finished / f"artifacts/variant/{name}/variant.json").read_text())
    asked = {"prompts": [prompts[row["id"]] for row in rows], "max_new_tokens": 12, "dtype": told["dtype"]}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [python, Path(__file__).with_name("speak.py"), kind, folder, "artifacts/select/model", tmp_path / "asked.json"],
        cwd=finished, text=True, capture_output=True, check=False, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    same = [one == row["prediction"] for one, row in zip(said, rows, strict=True)]
    # An untrained model finds many tokens about as likely, and sums are taken in another order here. llama.cpp rounds activations
    # too, each build of it in its own way.
    assert len(rows) == 8 and sum(same) >= (5 if kind == "llama_cpp" else 7), [
        (one, row["prediction"]) for one, row in zip(said, rows, strict=True)
    ]
