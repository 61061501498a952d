"""A run starts the process that stages are forked from where that is of use, and leaves nothing of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from flows import graph
from flows import run as runs
from tests.flows.conftest import REPOSITORY
from tunemill import warm


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    """A run of four stages, one of which has nothing to do."""
    (tmp_path / "params.yaml").write_text("runtime: {device: cpu, dtype: float32, threads: 1}\n")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.delenv(warm.VARIABLE, raising=False)
    monkeypatch.setattr(warm, "GPUS", ())
    whole = graph.Graph(dict.fromkeys(("scope", "collect", "lora", "report"), ()))
    return runs.Run(tmp_path, tmp_path, whole, frozenset({"scope"}))


def test_it_is_there_for_the_stages_and_gone_with_the_run(run: runs.Run) -> None:
    runs._warm_up(run)
    assert run.warm is not None
    address = Path(run.environment[warm.VARIABLE])
    assert address.parent.stat().st_mode & 0o077 == 0  # nobody else's to ask
    deadline = time.monotonic() + 120
    while not address.exists():
        assert run.warm.poll() is None and time.monotonic() < deadline, (run.root / "work/logs/warm.log").read_text()
        time.sleep(0.1)
    assert (run.root / "work/logs/warm.log").read_text() == ""
    runs._cool_down(run)
    assert run.warm.returncode is not None and not address.parent.exists() and warm.VARIABLE not in run.environment


def test_a_run_that_ends_while_it_still_imports(run: runs.Run) -> None:
    runs._warm_up(run)
    folder = Path(run.environment[warm.VARIABLE]).parent
    runs._cool_down(run)
    assert run.warm is not None and run.warm.returncode is not None and not folder.exists()


def test_there_is_none_where_it_is_of_no_use(run: runs.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(warm, "GPUS", (tmp_path,))
    runs._warm_up(run)
    monkeypatch.setattr(warm, "GPUS", ())
    monkeypatch.setenv(warm.VARIABLE, "off")
    runs._warm_up(run)
    monkeypatch.delenv(warm.VARIABLE)
    run.idle = frozenset({"scope", "collect"})
    runs._warm_up(run)
    assert run.warm is None and warm.VARIABLE not in run.environment
    runs._cool_down(run)
