"""How long `evaluate` takes for each candidate, and where the time goes.

    python benchmarks/evaluation.py [--artifacts artifacts] [--candidates base lora] [--rounds 3] [--limit 60]

What is measured is a process from its start to its end: the command of dvc.yaml (with `--json`, so that its log can be read), with
the parameters of params.yaml and the artifacts of a finished run, which are not written to. Every time it works in a folder that has
no journal and no result of an earlier one; its MLflow run goes to a database of its own. Candidates take turns (A, B, C, A, …).

Printed are seconds for each candidate (smallest, median, largest), then median seconds of each phase, as the log tells them apart: a
phase lasts from one line of the log to the next, a bar's work from its first line to its last. With `--limit` the command
fails where a candidate's median is above it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


class Round(NamedTuple):
    """One evaluation of one candidate."""

    seconds: float
    phases: dict[str, float]


def commands(names: Sequence[str]) -> dict[str, list[str]]:
    """Candidate → the words of its command, as DVC would run it; all candidates where none is named."""
    from dvc.repo import Repo

    found = {each.name: each.cmd for each in Repo(str(ROOT)).index.stages if getattr(each, "name", None)}
    known = {name.partition("@")[2]: cmd for name, cmd in found.items() if name.startswith("evaluate@")}
    missing = sorted(set(names) - set(known))
    if missing:
        raise SystemExit(f"no candidate {', '.join(missing)}; there are {', '.join(known)}")
    # The stages' commands say `python`: this one.
    return {name: [sys.executable, *shlex.split(known[name])[1:], "--json"] for name in names or known}


def prepare(place: Path, artifacts: Path) -> None:
    """Lay code, parameters and artifacts where the commands look for them."""
    for name in ("stages", "tunemill", "recipes", "params.yaml", "dvc.yaml", "pyproject.toml", "requirements.lock"):
        (place / name).symlink_to(ROOT / name)
    (place / "artifacts").mkdir()
    for each in artifacts.iterdir():
        if each.name != "evaluate":
            (place / "artifacts" / each.name).symlink_to(each.resolve())
    # Which number format is faster was measured once for all stages of the run.
    machine = artifacts.resolve().parent / "work/machine.json"
    if machine.is_file():
        (place / "work").mkdir()
        shutil.copy(machine, place / "work")


def phases(events: Sequence[Mapping[str, Any]], began: float, ended: float) -> dict[str, float]:
    """What the log says was going on → seconds, in the order of the log."""
    found: dict[str, float] = {}
    name, since = "start", began
    for each in events:
        over = each["event"] == "progress" and each["step"] == each["total"]
        if each["event"] in ("note", "start") or over:
            found[name] = found.get(name, 0.0) + each["time"] - since
            name = f"after {name}" if over else str(each.get("label") or each["text"])
            name = "end" if name.startswith("done in") else name
            since = each["time"]
    found[name] = found.get(name, 0.0) + ended - since
    return found


def measure(name: str, command: Sequence[str], place: Path, environment: Mapping[str, str]) -> Round:
    """Evaluate one candidate."""
    for left in (place / "artifacts/evaluate" / name, place / "work" / f"evaluate@{name}"):
        shutil.rmtree(left, ignore_errors=True)
    began, clock = time.time(), time.perf_counter()
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - clock
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stderr}")
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"time"')]
    return Round(seconds, phases(events, began, began + seconds))


def main() -> int:
    """Measure and print tables and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--artifacts", type=Path, default=ROOT / "artifacts", help="of a finished run")
    parser.add_argument("--candidates", nargs="+", default=[], help="all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, help="fail where a candidate's median is above so many seconds")
    arguments = parser.parse_args()
    asked = commands(arguments.candidates)
    rounds: dict[str, list[Round]] = {name: [] for name in asked}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place, arguments.artifacts)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        for name in ("MLFLOW_TRACKING_URI", "TUNEMILL_TRACKING"):
            environment.pop(name, None)
        # Making the database's tables is no part of an evaluation.
        begin = [sys.executable, "-m", "tunemill.tracking", "begin", "--workspace", str(place)]
        told = subprocess.run(begin, cwd=place, env=environment, capture_output=True, text=True, check=True).stdout
        environment["TUNEMILL_LIFECYCLE"] = told.split()[-1]
        for _ in range(arguments.rounds):
            for name, command in asked.items():
                rounds[name].append(measure(name, command, place, environment))
                print(f"{name}: {rounds[name][-1].seconds:.1f} s", file=sys.stderr, flush=True)
    seconds = {name: [each.seconds for each in found] for name, found in rounds.items()}
    print("| candidate | smallest s | median s | largest s |\n|---|---|---|---|")
    for name, took in seconds.items():
        print(f"| {name} | {min(took):.1f} | {statistics.median(took):.1f} | {max(took):.1f} |")
    told_apart = list(dict.fromkeys(phase for found in rounds.values() for each in found for phase in each.phases))
    print(f"\n| phase, median s | {' | '.join(rounds)} |\n|---|{'---|' * len(rounds)}")
    for phase in told_apart:
        cells = [statistics.median(each.phases.get(phase, 0.0) for each in found) for found in rounds.values()]
        if max(cells) >= 0.05:
            print(f"| {phase} | {' | '.join(f'{each:.1f}' for each in cells)} |")
    print(json.dumps({name: [round(each, 2) for each in took] for name, took in seconds.items()}))
    slow = [name for name, took in seconds.items() if statistics.median(took) > (arguments.limit or float("inf"))]
    if slow:
        print(f"above {arguments.limit:g} s: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
