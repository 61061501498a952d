"""The end of a run registers what was decided; a refusal, or a registry that is away, fails no run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import graph
from flows import run as runs
from tests.flows.conftest import DVC_YAML, REPOSITORY, Toy
from tests.stages import promoted
from tunemill import tracking

MODEL = "api-summaries"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout with a decision."""
    root = tmp_path / "decided"
    promoted.prepare(root)
    for name in ("dvc.yaml", "pyproject.toml"):
        (root / name).write_text("")
    (root / "work").mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("TUNEMILL_TRACKING", "on")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    promoted.decide(root)
    return root


def ended(place: Path, result: runs.Result = "ran") -> runs.Run:
    """A run at whose end everything is registered."""
    run = runs.Run(place, place, graph.Graph({}), frozenset(), outcomes={"promote": runs.Outcome(result)})
    runs._register(run)
    return run


def test_a_finished_run_is_registered_and_says_so(place: Path) -> None:
    run = ended(place)
    assert run.verdict.splitlines() == [
        "verdict    lora is promoted: all 2 criteria are met.",
        f"registry   {MODEL} version 1 is the champion: there was none before",
    ]
    assert not (place / runs.UNREGISTERED).exists()
    assert str(tracking.connect(place).get_model_version_by_alias(MODEL, "champion").version) == "1"


def test_what_the_registry_did_not_take_the_next_run_registers(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert ended(place).verdict == ""
    told = capsys.readouterr().err
    assert told.startswith(
        "warning: the decision was not registered: http://127.0.0.1:9: the registry cannot be reached"
    )
    assert "make promote, which continues where this stopped" in told
    assert (place / runs.UNREGISTERED).exists()  # so that the next run does not say that there is nothing to do


def test_a_refusal_is_a_result_and_what_was_not_decided_is_not_registered(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNEMILL_TRACKING", "off")
    promoted.decide(place, [{**promoted.RULE, "at_least": 50.0}])
    run = ended(place)
    first, second = run.verdict.splitlines()
    assert first.startswith("verdict    lora is refused: 1 of 1 criteria not met.") and "missed by" in first
    assert second == "registry   nothing was registered: TUNEMILL_TRACKING=off"
    assert not (place / runs.UNREGISTERED).exists()
    for result in ("failed", "not run"):
        assert ended(place, result).verdict == ""
    assert capsys.readouterr().err == "" and not (place / "mlflow.db").exists()


@pytest.mark.slow
def test_make_run_ends_with_the_verdict(toy: Toy, place: Path) -> None:
    params = json.loads((place / "params.yaml").read_text())
    promoted.decide(place, [{**promoted.RULE, "at_least": 50.0}])
    params = json.loads((place / "params.yaml").read_text())
    shutil.copytree(place / "artifacts/promote", toy.root / "given")
    for each in ("select", "lora", "evaluate"):  # what is registered, and what was said of it
        shutil.copytree(place / "artifacts" / each, toy.root / "artifacts" / each)
    toy.set("# What is collected.\n", "".join(f"{each}: {json.dumps(params[each])}\n" for each in ("scope", "promote")))
    lines = f"candidates: {json.dumps(params['candidates'])}\n"
    toy.set("candidates:\n  base: {policy: artifacts/collect}\n  lora: {policy: artifacts/lora}\n", lines)
    (toy.root / "dvc.yaml").write_text(
        DVC_YAML[: DVC_YAML.index("  lora:")]
        + "  scope:\n    cmd: mkdir -p artifacts/scope\n    params: [scope]\n    outs: [artifacts/scope]\n"
        "  promote:\n    cmd: cp -r given artifacts/promote\n    deps: [artifacts/scope]\n    params: [promote, candidates]\n"
        "    outs: [artifacts/promote]\n"
        "  report:\n    cmd: python -m stages.toy report reports/report.html\n    deps: [artifacts/promote]\n"
        "    outs: [reports/report.html]\n"
    )
    done = toy.run()
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout[done.stdout.index("verdict ") :].splitlines()
    assert told[0].startswith("verdict    lora is refused: 1 of 1 criteria not met.")
    assert told[1] == "registry   nothing was registered: TUNEMILL_TRACKING=off"
    assert told[2] == "report     reports/report.html"
    (toy.root / runs.UNREGISTERED).touch()  # as a kill while it was registered would leave it
    again = toy.run()
    assert "nothing to do" not in again.stdout and "verdict    lora is refused" in again.stdout
    assert toy.run().stdout.startswith("nothing to do")
