"""kill -9 at any moment, then `make run` again: it goes on, ends with the same results, and MLflow has no ghost."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.e2e import checkout

pytestmark = pytest.mark.e2e


def start(place: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["make", "run", *more],
        cwd=place,
        env=checkout.environment(),
        stdin=subprocess.DEVNULL,
        text=True,
        stdout=(place / "make.log").open("a"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def find(place: Path, *words: str) -> psutil.Process | None:
    for each in checkout.processes(place):
        try:
            line = each.cmdline()
        except psutil.Error:
            continue
        if all(any(word in part for part in line) for word in words) and "-c" not in line:
            return each
    return None


def wait_for(place: Path, process: subprocess.Popen[str], what: str) -> psutil.Process:
    """Wait until a stage of that name has a checkpoint or a journal: it is in the middle of its work."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        assert process.poll() is None, (place / "make.log").read_text()[-4000:]
        stage = find(place, "-m", f"stages.{what}")
        begun = [*(place / "work").glob(f"{what}*/*/state/**/*"), *(place / "work/cache").glob(f"{what}*/*/*")]
        if stage is not None and any(each.is_file() for each in begun):
            return stage
        time.sleep(0.1)
    raise AssertionError(f"{what} never began:\n{(place / 'make.log').read_text()[-4000:]}")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A checkout with one tuned candidate."""
    return checkout.make(tmp_path, more=checkout.FEW)


def test_kill_the_stage_then_dvc_then_make_and_end_the_same(small: Path, finished: Path) -> None:
    place = small
    # 1. The stage itself, in the middle of training.
    process = start(place)
    wait_for(place, process, "lora").kill()
    assert process.wait(timeout=120) != 0
    assert checkout.all_gone(place, 20) == []

    # 2. Only dvc, in the middle of training again: the stage must not go on behind its back.
    process = start(place)
    wait_for(place, process, "lora")
    dvc = find(place, "flows.dvc_process", "lora")
    assert dvc is not None
    dvc.kill()
    assert process.wait(timeout=120) != 0
    assert checkout.all_gone(place, 20) == []

    # 3. Only make, while candidates are evaluated.
    process = start(place)
    wait_for(place, process, "evaluate")
    process.kill()
    process.wait()
    assert checkout.all_gone(place, 20) == []

    # 4. Undisturbed.
    checkout.run(place, "make", "run", "JOBS=2")
    ours, theirs = checkout.locked(place), checkout.locked(finished)
    del ours["scope"]  # the other checkout has more candidates, and criteria that name them
    assert {"collect", "validate", "select", "lora", "evaluate@base", "evaluate@lora"} <= {*ours}
    assert ours == {name: theirs[name] for name in ours}
    told = [
        path
        for path in sorted((place / "metrics").rglob("*.json"))
        if "timing" not in path.name and "compare" not in path.parts and path.stem not in ("scope", *checkout.TIMED)
    ]
    assert len(told) > 6
    for path in told:
        assert (finished / path.relative_to(place)).read_text() == path.read_text(), path.name
    runs = checkout.runs(place)
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = Counter(run.data.tags["tunemill.stage"] for run in runs)
    assert set(names.values()) == {1}, names


def test_ctrl_c_ends_everything_within_seconds(small: Path) -> None:
    place = small
    process = start(place)
    wait_for(place, process, "lora")
    import os

    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    began = time.monotonic()
    assert process.wait(timeout=60) != 0
    assert checkout.all_gone(place, 15) == []
    assert time.monotonic() - began < 30
    assert "Traceback" not in (place / "make.log").read_text()


def test_two_runs_at_once_the_second_says_who_holds_it(small: Path) -> None:
    place = small
    first = start(place, "UNTIL=lora")
    stage = wait_for(place, first, "lora")
    stage.suspend()  # on a fast machine it would end while the second one waits for it
    second = checkout.run(place, "make", "run", check=False, timeout=120)
    stage.resume()
    assert second.returncode != 0
    assert "held by process" in second.stdout + second.stderr
    assert first.wait(timeout=900) == 0, (place / "make.log").read_text()[-4000:]
    assert "up to date" in checkout.run(place, "dvc", "repro", "lora").stdout
