"""What one workspace has made, another restores; what differs in anything it does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import sharing

DVC_YAML = """\
stages:
  collect:
    cmd: >-
      mkdir -p artifacts/collect metrics && cp source.txt artifacts/collect/rows && echo collect >> ran.txt
      && echo '{}' > metrics/collect.json
    deps: [source.txt]
    outs: [artifacts/collect, metrics/collect.json: {cache: false}]
  lora:
    cmd: >-
      mkdir -p artifacts/lora && cp artifacts/collect/rows artifacts/lora/weights && echo lora >> ran.txt
      && echo '{"steps": ${lora.steps}}' > metrics/lora.json && echo '{"seconds": 9}' > metrics/lora.timing.json
    deps: [artifacts/collect/rows]
    params: [lora]
    outs: [artifacts/lora, metrics/lora.json: {cache: false}]
"""


def workspace(root: Path, place: Path, steps: int = 1, source: str = "one") -> Path:
    """A DVC repository without git, whose cache is that of `root`."""
    (place / ".dvc" / "tmp").mkdir(parents=True)
    (place / ".dvc/config").write_text(f"[core]\n    no_scm = true\n[cache]\n    dir = {root / 'cache'}\n")
    (place / "dvc.yaml").write_text(DVC_YAML)
    (place / "params.yaml").write_text(f"lora: {{steps: {steps}}}\n")
    (place / "source.txt").write_text(source)
    return place


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout in which everything has run."""
    place = workspace(tmp_path / "checkout", tmp_path / "checkout")
    assert repro(place, "collect") == "ran" and repro(place, "lora") == "ran"
    return place


def recipe(root: Path, name: str, **change: object) -> Path:
    return workspace(root, root / "work" / "recipes" / name, **change)  # type: ignore[arg-type]


def repro(place: Path, name: str, root: Path | None = None) -> str:
    """Bring a stage up to date as the flow does."""
    others = sharing.donors(root or place, place)
    before = ran(place)
    done = subprocess.run(
        [sys.executable, "-m", "flows.dvc_process", name, *map(str, others)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    restored = "is cached - skipping run" in done.stdout
    assert not restored or "didn't change, skipping" in done.stdout  # DVC agrees
    assert not (restored and ran(place) != before)
    return "restored" if restored else "ran" if ran(place) != before else "unchanged"


def ran(place: Path) -> list[str]:
    path = place / "ran.txt"
    return path.read_text().split() if path.is_file() else []


def test_the_same_is_restored_with_its_metrics_and_its_time(root: Path) -> None:
    place = recipe(root, "same")
    assert repro(place, "collect", root) == repro(place, "lora", root) == "restored"
    assert (place / "artifacts/lora/weights").read_text() == "one"
    assert json.loads((place / "metrics/lora.json").read_text()) == {"steps": 1}
    assert json.loads((place / "metrics/lora.timing.json").read_text()) == {"seconds": 9}
    assert repro(place, "lora", root) == "unchanged"
    assert ran(place) == []


def test_another_parameter_or_another_input_is_not_restored(root: Path) -> None:
    place = recipe(root, "steps", steps=2)
    assert repro(place, "collect", root) == "restored" and repro(place, "lora", root) == "ran"
    assert json.loads((place / "metrics/lora.json").read_text()) == {"steps": 2}
    other = recipe(root, "source", source="two")
    assert repro(other, "collect", root) == "ran" and repro(other, "lora", root) == "ran"
    assert (other / "artifacts/lora/weights").read_text() == "two"
    # From a sibling, and by the checkout from a recipe.
    third = recipe(root, "third", steps=2)
    assert repro(third, "collect", root) == repro(third, "lora", root) == "restored"
    (root / "params.yaml").write_text("lora: {steps: 2}\n")
    assert repro(root, "lora") == "restored"
    assert json.loads((root / "metrics/lora.json").read_text()) == {"steps": 2}


def test_what_was_deleted_comes_back(root: Path) -> None:
    (root / "artifacts/lora/weights").unlink()
    assert repro(root, "lora") == "restored"
    assert (root / "artifacts/lora/weights").read_text() == "one"


def test_metrics_that_are_no_longer_those_of_the_lock_are_made_anew(root: Path) -> None:
    (root / "metrics/lora.json").write_text('{"steps": 1000}')
    place = recipe(root, "same")
    assert repro(place, "collect", root) == "restored" and repro(place, "lora", root) == "ran"
    assert json.loads((place / "metrics/lora.json").read_text()) == {"steps": 1}


def test_what_left_the_cache_is_made_anew(root: Path) -> None:
    shutil.rmtree(root / "cache")
    place = recipe(root, "same")
    assert repro(place, "collect", root) == "ran" and repro(place, "lora", root) == "ran"
