"""Collect: rows with the place they came from, exact files, and messages for what a user gets wrong."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages import collect
from tests import tiny_encoder
from tunemill import records
from tunemill.checkpoints import is_complete, tree_hash
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile

ROOT = Path(__file__).parents[2]


def table(folder: Path, name: str, rows: list[dict[str, Any]] | bytes) -> dict[str, Any]:
    """A pinned file source."""
    content = rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return {"source": "file", "path": str(folder / name), "sha256": hashlib.sha256(content).hexdigest()}


def config(folder: Path, examples: dict[str, Any], **more: Any) -> collect.Config:
    """A whole configuration with small ratings, red-team prompts, harmless questions and one other task."""
    ratings = [{"prompt": f"ask {n}", "response": f"answer {n}", "scores": [0.0, 0.5]} for n in range(4)]
    prompts = [{"prompt": f"do harm {n}"} for n in range(4)]
    red_team = {"mine": {"kind": "continuation", "toxic": True, "rows": table(folder, "red_team.jsonl", prompts)}}
    questions = [{"prompt": f"is {n} even?", "completion": ("yes", "no")[n % 2]} for n in range(12)]
    tasks = {"parity": {"choices": ["yes", "no"], "rows": table(folder, "parity.jsonl", questions)}}
    plain = [{"question": f"what is {n}?", "answer": [f"the number {n}", str(n)]} for n in range(5)]
    columns = {"columns": {"prompt": "question", "answers": "answer"}}
    told = {
        "examples": examples,
        "ratings": table(folder, "ratings.jsonl", ratings),
        "red_team": red_team,
        "harmless": {"plain": table(folder, "plain.jsonl", plain) | columns},
        "tasks": tasks,
        **more,
    }
    return collect.Config.model_validate(told)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    rows = b'{"prompt": "p", "completion": "c", "note": 1}\n{"prompt": "\xff"}\n{"prompt": null}\n{"question": "q"}\n'
    source = table(tmp_path / "in", "mine.jsonl", rows)
    metrics = collect.run(config(tmp_path / "in", source), out=tmp_path / "out", work=tmp_path / "work", log=Log())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "encoder",
        "examples.jsonl",
        "harmless.jsonl",
        "quarantine.jsonl",
        "ratings.jsonl",
        "red_team.jsonl",
        "refusals.jsonl",
        "sources.json",
        "tasks.jsonl",
    ]
    place = str(tmp_path / "in" / "mine.jsonl")
    assert [row for _, row in records.read_objects(tmp_path / "out" / "examples.jsonl")] == [
        {"prompt": "p", "completion": "c", "source": place, "line": 1},
        {"prompt": None, "source": place, "line": 3},
        {"source": place, "line": 4},
    ]
    unreadable = [row for _, row in records.read_objects(tmp_path / "out" / "quarantine.jsonl")]
    assert unreadable == [
        {"type": "examples", "source": place, "line": 2, "reason": "not_utf8", "detail": "byte 13 of the line is 0xff"}
    ]
    red_team = [row for _, row in records.read_objects(tmp_path / "out" / "red_team.jsonl")]
    assert red_team[0] == {
        "prompt": "do harm 0",
        "set": "mine",
        "kind": "continuation",
        "toxic": True,
        "source": str(tmp_path / "in" / "red_team.jsonl"),
        "line": 1,
    }
    harmless = [row for _, row in records.read_objects(tmp_path / "out" / "harmless.jsonl")]
    assert harmless[2] == {
        "prompt": "what is 2?",
        "answers": ["the number 2", "2"],
        "set": "plain",
        "source": str(tmp_path / "in" / "plain.jsonl"),
        "line": 3,
    }
    tasks = [row for _, row in records.read_objects(tmp_path / "out" / "tasks.jsonl")]
    assert tasks[1] == {
        "prompt": "is 1 even?",
        "completion": "no",
        "task": "parity",
        "choices": ["yes", "no"],
        "source": str(tmp_path / "in" / "parity.jsonl"),
        "line": 2,
    }
    assert metrics == {
        "rows/examples": 3,
        "rows/ratings": 4,
        "rows/refusals": 0,
        "rows/red_team": 4,
        "rows/red_team/mine": 4,
        "rows/harmless": 5,
        "rows/harmless/plain": 5,
        "rows/tasks": 12,
        "rows/tasks/parity": 12,
        "unreadable": 1,
    }


def test_without_harmless_questions(tmp_path: Path) -> None:
    cfg = config(tmp_path / "in", table(tmp_path / "in", "x.jsonl", []), harmless={})
    metrics = collect.run(cfg, out=tmp_path / "out", work=tmp_path / "work", log=Log())
    assert metrics["rows/harmless"] == 0 and (tmp_path / "out/harmless.jsonl").read_text() == ""
    assert "harmless" not in json.loads((tmp_path / "out/sources.json").read_text())


def test_rows_of_a_task_may_have_choices_of_their_own(tmp_path: Path) -> None:
    rows = [
        {"q": "1 + 1?", "a": "2", "option_1": "1", "option_2": "2"},
        {"q": "2 + 2?", "a": "4", "option_1": "4", "option_2": "5"},
    ]
    columns = {"prompt": "q", "completion": "a", "choices": "option_*"}
    sums = {"rows": {**table(tmp_path / "in", "sums.jsonl", rows), "columns": columns}}
    shared = {"choices": ["2", "3"], "rows": {**sums["rows"], "columns": {"prompt": "q", "completion": "a"}}}
    cfg = config(tmp_path / "in", table(tmp_path / "in", "x.jsonl", []), tasks={"sums": sums, "shared": shared})
    collect.run(cfg, out=tmp_path / "out", work=tmp_path / "work", log=Log())
    tasks = [row for _, row in records.read_objects(tmp_path / "out" / "tasks.jsonl")]
    assert [(row["task"], row["choices"]) for row in tasks] == [
        ("sums", ["1", "2"]),
        ("sums", ["4", "5"]),
        ("shared", ["2", "3"]),
        ("shared", ["2", "3"]),
    ]


def test_what_people_call_a_refusal(tmp_path: Path) -> None:
    content = b"# version=1\n# about\nask,answer,human_1,human_2\ndo harm,No.,1,0\ndo good,Yes.,0,\n"
    columns = {"prompt": "ask", "response": "answer", "refused": "human_*"}
    refusals = {**table(tmp_path / "in", "refusals.csv", content), "columns": columns}
    cfg = config(tmp_path / "in", table(tmp_path / "in", "x.jsonl", []), refusals=refusals)
    metrics = collect.run(cfg, out=tmp_path / "out", work=tmp_path / "work", log=Log())
    rows = [row for _, row in records.read_objects(tmp_path / "out" / "refusals.jsonl")]
    assert [(row["prompt"], row["response"], row["refused"], row["line"]) for row in rows] == [
        ("do harm", "No.", ["1", "0"], 4),
        ("do good", "Yes.", ["0"], 5),
    ]
    assert metrics["rows/refusals"] == 2
    assert json.loads((tmp_path / "out" / "sources.json").read_text())["refusals"]["source"] == "file"


def test_no_other_tasks(tmp_path: Path) -> None:
    cfg = config(tmp_path / "in", table(tmp_path / "in", "x.jsonl", []), tasks={})
    metrics = collect.run(cfg, out=tmp_path / "out", work=tmp_path / "work", log=Log())
    assert metrics["rows/tasks"] == 0
    assert (tmp_path / "out" / "tasks.jsonl").read_text() == ""


def test_an_encoder_is_kept_as_it_is(tmp_path: Path) -> None:
    tiny_encoder.build(tmp_path / "mine")
    encoder = {
        "source": "folder",
        "path": str(tmp_path / "mine"),
        "hash": tree_hash(tmp_path / "mine"),
        "license": "none",
    }
    cfg = config(tmp_path / "in", table(tmp_path / "in", "x.jsonl", []), encoder=encoder)
    collect.run(cfg, out=tmp_path / "out", work=tmp_path / "work", log=Log())
    kept = tmp_path / "out" / "encoder"
    assert is_complete(kept)
    assert json.loads((kept / "source.json").read_text()) == {"name": f"mine/ ({encoder['hash'][:12]})"}
    assert (kept / "model.safetensors").read_bytes() == (tmp_path / "mine" / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "out" / "sources.json").read_text())["encoder"]["license"] == "none"
    from tunemill import embeddings

    assert embeddings.embed(embeddings.load(kept, 16), ["the river"]).shape == (1, 32)


def test_without_an_encoder_its_folder_says_so(tmp_path: Path) -> None:
    cfg = config(tmp_path / "in", table(tmp_path / "in", "x.jsonl", []), encoder=None)
    collect.run(cfg, out=tmp_path / "out", work=tmp_path / "work", log=Log())
    assert json.loads((tmp_path / "out" / "encoder" / "source.json").read_text()) == {"name": None}
    assert sorted(path.name for path in (tmp_path / "out" / "encoder").iterdir()) == ["manifest.json", "source.json"]


def test_documentation(tmp_path: Path) -> None:
    docs = {
        "source": "docs",
        "instruction": "Summarise this.",
        "packages": [f"anyio=={importlib.metadata.version('anyio')}"],
        "summary_words": {"least": 4, "most": 20},
        "body_words": {"least": 40, "most": 250},
        "per_package": 10,
        "families": {"async": ["anyio"]},
    }
    cfg = collect.Config.model_validate_json(
        json.dumps(
            {**config(tmp_path / "in", table(tmp_path / "in", "x.jsonl", [])).model_dump(mode="json"), "examples": docs}
        )
    )
    metrics = collect.run(cfg, out=tmp_path / "out", work=tmp_path / "work", log=Log())
    rows = [row for _, row in records.read_objects(tmp_path / "out" / "examples.jsonl")]
    assert len(rows) == metrics["rows/examples"] == 10
    assert metrics["packages"] == 1
    for row in rows:
        instruction, signature, text = row["prompt"].split("\n\n", 2)
        assert instruction == "Summarise this."
        assert text == row["text"]
        assert signature.startswith("anyio.")
        assert signature.endswith(")")
        assert row["group"] == "async"
        assert row["source"].startswith("anyio==")
        assert row["name"] in signature
    told = json.loads((tmp_path / "out" / "sources.json").read_text())
    assert told["examples"]["pairs"] == {"anyio": 10}
    assert told["ratings"]["source"] == "file"


def test_what_the_edge_says(tmp_path: Path) -> None:
    """From the command line: a wrong pin is one line, exit 2, and no output appears."""
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n')
    text = (ROOT / "params.yaml").read_text()
    from ruamel.yaml import YAML

    yaml = YAML()
    params = yaml.load(text)
    params["collect"]["examples"] = {"source": "file", "path": "mine.jsonl"}
    with (tmp_path / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "stages.collect"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: mine.jsonl: its sha256 is not pinned; if the file is right, paste this: sha256: {actual}\n"
    )
    assert not (tmp_path / "artifacts").exists()
    assert not (tmp_path / "metrics").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            "examples: {source: fil, path: a.jsonl}",
            "input tag 'fil' found using 'source' does not match any of the expected tags",
        ),
        (
            "examples: {source: file, path: a.txt}",
            'collect.examples.path: "a.txt" is not allowed\n  expected: a file ending in .jsonl',
        ),
        (
            "examples: {source: file, pth: a.csv}",
            'unknown key (value "a.csv")\n  expected: one of columns, path, sha256, source, template\n'
            "  fix: did you mean 'path'?",
        ),
        (
            "examples: {source: file, path: a.csv, columns: {promt: q}}",
            "columns names 'promt', allowed are prompt, completion, messages, group, text",
        ),
        (
            "examples: {source: hub, repo: a/b, revision: main, split: train}",
            'collect.examples.revision: "main" is not allowed',
        ),
        (
            "tasks: {mine: {rows: {source: file, path: a.csv, columns: {answer: a}}}}\n  "
            "examples: {source: file, path: a.csv}",
            "columns names 'answer', allowed are prompt, completion, messages, choices",
        ),
        (
            "harmless: {mine: {source: file, path: a.csv, columns: {completion: a}}}\n  "
            "examples: {source: file, path: a.csv}",
            "columns names 'completion', allowed are prompt, answers",
        ),
        (
            "harmless: {My Set: {source: file, path: a.csv}}\n  examples: {source: file, path: a.csv}",
            "string should match pattern '^[a-z0-9][a-z0-9_-]*$'",
        ),
        (
            "tasks: {My Task: {rows: {source: file, path: a.csv}}}\n  examples: {source: file, path: a.csv}",
            "string should match pattern '^[a-z0-9][a-z0-9_-]*$'",
        ),
    ],
)
def test_mistakes_in_params(tmp_path: Path, wrong: str, message: str) -> None:
    table = "{source: file, path: a.csv}"
    tasks = "".join(f"  {name}: {{}}\n" for name in ("tasks", "harmless") if f"{name}:" not in wrong)
    rest = f"{tasks}  ratings: {table}\n  red_team: {{x: {{kind: instruction, rows: {table}}}}}\n"
    (tmp_path / "params.yaml").write_text(f"collect:\n  {wrong}\n{rest}")
    with pytest.raises(UserError) as error:
        ParamsFile(tmp_path / "params.yaml").section("collect", collect.Config)
    assert message in str(error.value)
    assert f"{tmp_path / 'params.yaml'}:2: " in str(error.value)
    assert error.value.exit_code == 2
