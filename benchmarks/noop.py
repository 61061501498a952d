"""How long `dvc repro` takes when nothing has changed, against the same graph whose commands are all `true`.

    python benchmarks/noop.py          in a checkout whose pipeline is up to date

Both graphs have the same stages, dependencies and outputs (the second in a copy made with hard links); rounds are interleaved,
and the ratio of medians is printed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

ROUNDS = 7


def link(source: str, target: str) -> None:
    """Hard links where the disk can: the copy is not what is measured."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def seconds(place: Path) -> float:
    """One no-op repro."""
    began = time.perf_counter()
    done = subprocess.run(["dvc", "repro"], cwd=place, capture_output=True, text=True, check=False)
    if done.returncode or "Running stage" in done.stdout:
        sys.exit(f"{place}: not up to date; run the pipeline first\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def main() -> None:
    """Measure and print one JSON object."""
    root = Path.cwd()
    with tempfile.TemporaryDirectory(dir=root / "work") as folder:
        place = Path(folder) / "true"
        skipped = shutil.ignore_patterns(
            ".venv", ".git", "work", "mlflow.db", "mlartifacts", ".mypy_cache", "__pycache__"
        )
        shutil.copytree(root, place, ignore=skipped, copy_function=link, symlinks=True)
        (place / ".dvc/config.local").unlink(missing_ok=True)
        subprocess.run(["dvc", "config", "--local", "core.no_scm", "true"], cwd=place, check=True, capture_output=True)
        graph = (place / "dvc.yaml").read_text(encoding="utf-8")
        (place / "dvc.yaml").unlink()
        (place / "dvc.yaml").write_text(
            re.sub(r"(?m)^( +)cmd: (?:>-\n(?:\1  .*\n)+|.*\n)", r'\1cmd: "true"\n', graph), encoding="utf-8"
        )
        # What is there counts as the result of those commands.
        yaml = YAML(typ="safe", pure=True)
        locked = yaml.load((root / "dvc.lock").read_text(encoding="utf-8"))
        for entry in locked["stages"].values():
            entry["cmd"] = "true"
        (place / "dvc.lock").unlink()
        with (place / "dvc.lock").open("w", encoding="utf-8") as file:
            yaml.dump(locked, file)
        seconds(root), seconds(place)
        rounds = [(seconds(root), seconds(place)) for _ in range(ROUNDS)]
    ours, empty = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(
        json.dumps({"noop_seconds": round(ours, 2), "true_seconds": round(empty, 2), "ratio": round(ours / empty, 3)})
    )


if __name__ == "__main__":
    main()
