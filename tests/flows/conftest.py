"""A toy pipeline in a folder of its own: the same shape as the real one, stages that only sleep and write a line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

DVC_YAML = """\
stages:
  collect:
    cmd: python -m stages.toy collect artifacts/collect
    params: [collect]
    outs: [artifacts/collect, metrics/collect.json: {cache: false}]
  lora:
    cmd: python -m stages.toy lora artifacts/lora
    deps: [artifacts/collect]
    params: [lora]
    outs: [artifacts/lora, metrics/lora.json: {cache: false}]
  evaluate:
    foreach: ${candidates}
    do:
      cmd: python -m stages.toy evaluate@${key} artifacts/evaluate/${key}
      deps: ["${item.policy}"]
      params: [evaluate]
      outs: ["artifacts/evaluate/${key}", "metrics/evaluate/${key}.json": {cache: false}]
  efficiency:
    cmd: python -m stages.toy efficiency artifacts/efficiency
    deps: [artifacts/evaluate]
    params: [efficiency]
    outs: [artifacts/efficiency]
    meta: {alone: true}
  report:
    cmd: python -m stages.toy report reports/report.html
    deps: [artifacts/evaluate, artifacts/efficiency]
    params: [candidates]
    outs: [reports/report.html]
"""

PARAMS_YAML = """\
# What is collected.
collect: {seconds: 0, exit: 0}
lora:
  seconds: 0 # of sleep
  exit: 0
evaluate: {seconds: 0, exit: 0}
efficiency: {seconds: 0, exit: 0}
candidates:
  base: {policy: artifacts/collect}
  lora: {policy: artifacts/lora}
"""

# Appends its name to work/ran.txt, so that a test sees what really ran.
STAGE = """\
import json, signal, sys, time
from pathlib import Path
from ruamel.yaml import YAML
from tunemill import runtime

runtime.die_with(runtime.owners())
name, out = sys.argv[1], Path(sys.argv[2])
stage, _, key = name.partition("@")
params = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text()).get(stage) or {}
Path("work").mkdir(exist_ok=True)
with Path("work/ran.txt").open("a") as file:
    file.write(f"{name}\\n")
if params.get("deaf"):  # in the middle of something long, as a stage within a batch
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(f"{name:<10} │ working", flush=True)
time.sleep(params.get("seconds", 0))
if params.get("exit"):
    print("error: data.jsonl:3: empty prompt\\n  fix: write one", file=sys.stderr, flush=True)
    sys.exit(params["exit"])
out.parent.mkdir(parents=True, exist_ok=True)
out.write_text(f"{name} {params}")
metrics = Path("metrics", stage, f"{key}.json") if key else Path("metrics", f"{stage}.json")
if stage not in ("report", "efficiency"):
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps({"score": 1.5, "n": 3, "undefined": None}))
"""

CHECK = """\
import sys
from pathlib import Path
if "wrong" in Path("params.yaml").read_text():
    sys.exit("error: params.yaml:2: collect.wrong: unknown key")
print("in order")
"""


@dataclass
class Toy:
    """A toy checkout and what can be done with it."""

    root: Path

    def set(self, old: str, new: str) -> None:
        """Change params.yaml."""
        path = self.root / "params.yaml"
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    @property
    def environment(self) -> dict[str, str]:
        """What `make` would set, and no tracking: that is tested with the real stages."""
        hidden = ("PREFECT_", "MAKE", "MFLAGS", "TUNEMILL_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {
            **kept,
            "PATH": path,
            "PYTHONPATH": str(REPOSITORY),
            "TUNEMILL_TRACKING": "off",
            "TUNEMILL_WARM": "off",
            "DO_NOT_TRACK": "1",
            "DVC_NO_ANALYTICS": "1",
            "PREFECT_HOME": str(self.root / "work" / "prefect"),
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in the checkout, in a process group of its own."""
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            start_new_session=True,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=(self.root / "work.log").open("w"),
            stderr=subprocess.STDOUT,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -m flows` in the checkout, until it has ended."""
        return subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            cwd=self.root,
            env=self.environment,
            text=True,
            capture_output=True,
            timeout=180,
        )

    @property
    def log(self) -> str:
        """What the started command has said."""
        return (self.root / "work.log").read_text(encoding="utf-8")

    @property
    def ran(self) -> list[str]:
        """Stages whose command was started, in order."""
        path = self.root / "work" / "ran.txt"
        return path.read_text(encoding="utf-8").split() if path.exists() else []

    def processes(self) -> list[psutil.Process]:
        """Everything that works in this checkout."""
        found = []
        for each in psutil.process_iter():
            try:
                if Path(each.cwd()).is_relative_to(self.root) and each.status() != psutil.STATUS_ZOMBIE:
                    found.append(each)
            except (psutil.Error, OSError):
                continue
        return found

    def find(self, part: str) -> psutil.Process:
        """The process with `part` in its command."""
        found = [each for each in self.processes() if part in " ".join(each.cmdline())]
        assert found, f"no process '{part}'"
        return found[0]

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait until a condition holds; the seconds it took."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}\n{self.log}"
            time.sleep(0.1)
        return time.monotonic() - began


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    """A fresh toy checkout; nothing of it is left running."""
    root = tmp_path / "checkout"
    for folder in ("stages", ".dvc", "recipes", "work"):
        (root / folder).mkdir(parents=True)
    files = {
        "dvc.yaml": DVC_YAML,
        "params.yaml": PARAMS_YAML,
        "stages/toy.py": STAGE,
        "stages/__main__.py": CHECK,
        "stages/__init__.py": "",
        "pyproject.toml": "",
        ".dvc/config": (REPOSITORY / ".dvc" / "config").read_text(),
        "recipes/slow.yaml": "lora: {seconds: 300}\n",
        "Makefile": "run:\n\t@export TUNEMILL_MAKE=$$PPID; exec python -m flows\n",
        ".gitignore": "/artifacts/\n/work/\n/work.log\n/reports/\n",
    }
    for name, text in files.items():
        (root / name).write_text(text, encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    made = Toy(root)
    yield made
    for each in made.processes():
        each.send_signal(signal.SIGKILL)
