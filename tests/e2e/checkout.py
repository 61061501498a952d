"""A checkout of its own for a test: the repository's files, with a recipe's values, under git and DVC."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from tunemill import warm
from tunemill.recipes import merged

ROOT = Path(__file__).resolve().parents[2]


FEW = {
    "candidates": {
        "base": {"policy": "artifacts/select/model", "base": "artifacts/select/model"},
        "lora": {"policy": "artifacts/lora/adapter", "base": "artifacts/select/model"},
    },
    "scope": {
        "criteria": [{"metric": "rouge1", "candidate": "lora", "against": "base", "at_least": 0.0, "why": "better"}],
    },
    "variants": {"lora": {"policy": "artifacts/lora/adapter", "base": "artifacts/select/model"}},
    "compare": {"pairs": [], "aligned": {}},
    "promote": {"candidate": "lora"},
    "extra": {stage: {} for stage in ("reward", "sl_cai", "rl_cai", "ppo", "distill", "quantize", "prune")},
}
"""For tests that one tuned candidate is enough for: nothing aligns it, nothing makes it smaller."""

TIMED = ("compress", "efficiency", "compare", "promote", "report")
"""Stages in whose output measured time stands: it is another in each run."""


def make(place: Path, recipe: str | None = "tiny", more: Mapping[str, Any] | None = None) -> Path:
    """Copy what git tracks (or would), lay a recipe and `more` over params.yaml and commit it all."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and name not in ("dvc.lock",) and not name.startswith("metrics/"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    overlays: list[tuple[Path, Mapping[str, Any] | None]] = [(ROOT / "recipes" / f"{recipe}.yaml", None)]
    overlays = (overlays if recipe else []) + ([(Path("more"), more)] if more else [])
    (place / "params.yaml").write_text(merged(ROOT / "params.yaml", overlays))
    (place / ".venv").symlink_to(Path(sys.prefix))
    # What the user has set for commits may ask for a signature or run a hook.
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "a checkout"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t.invalid", *command], cwd=place, check=True)
    return place


def environment(**more: str) -> dict[str, str]:
    """Tracking on, as for a user; nothing of the test's own."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "MAKELEVEL", "MAKEFLAGS", "MFLAGS")
    }
    return {
        **kept,
        "TUNEMILL_TRACKING": "on",
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@t.invalid",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@t.invalid",
        **more,
    }


def run(
    place: Path, *command: str, check: bool = True, timeout: float = 1700, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in the checkout; its output is shown where it fails."""
    done = subprocess.run(
        command,
        cwd=place,
        env=environment(**env),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        )
    return done


@contextlib.contextmanager
def warmed(place: Path) -> Iterator[dict[str, str]]:
    """What to set so that the stages of a plain `dvc repro` start warm, as those of `make run` do: minutes less to wait for."""
    address = Path(tempfile.mkdtemp(prefix="tunemill-")) / "warm"
    if not warm.possible(str(address)):
        address.parent.rmdir()
        yield {"TUNEMILL_WARM": "off"}
        return
    with subprocess.Popen(
        [sys.executable, "-m", "tunemill.warm", str(address)],
        cwd=place,
        env=environment(PYTHONPATH=str(place)),
        stdin=subprocess.PIPE,
    ) as server:
        yield {"TUNEMILL_WARM": str(address)}
        server.communicate()
        assert server.returncode == 0


def processes(place: Path) -> list[psutil.Process]:
    """Living processes that work in the checkout."""
    found = []
    for each in psutil.process_iter():
        try:
            if each.status() != psutil.STATUS_ZOMBIE and each.pid != os.getpid() and each.cwd().startswith(str(place)):
                found.append(each)
        except psutil.Error:
            continue
    return found


def all_gone(place: Path, within: float) -> list[str]:
    """Wait until no process works in the checkout; what is left after `within` seconds."""
    deadline = time.monotonic() + within
    while (left := processes(place)) and time.monotonic() < deadline:
        time.sleep(0.2)
    told = []
    for each in left:
        try:
            told.append(" ".join(each.cmdline()))
        except psutil.Error:
            continue
    return told


def locked(place: Path) -> dict[str, Any]:
    """Stage → MD5 of its outputs, from dvc.lock; without the stages in whose output measured time stands."""
    from ruamel.yaml import YAML

    stages = YAML(typ="safe", pure=True).load((place / "dvc.lock").read_text())["stages"]
    return {
        name: {out["path"]: out["md5"] for out in entry["outs"]} for name, entry in stages.items() if name not in TIMED
    }


def runs(place: Path) -> list[Any]:
    """All MLflow runs of the checkout's experiment, oldest first."""
    from tunemill import tracking

    client = tracking.connect(place)
    found = client.get_experiment_by_name(tracking.scope_name(place / "params.yaml"))
    assert found is not None
    return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"], max_results=1000))
