"""One run of the lifecycle: what is about to happen, who holds the workspace, what came of each stage. No Prefect here.

`prepare` looks and starts nothing; `hold` takes the workspace's lock and opens the MLflow run; `reproduce` runs one stage.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flows import graph, processes, sharing
from tunemill import recipes, runtime, warm
from tunemill.errors import UserError

FREE_BYTES = 2 << 30
"""A run is not begun with less disk than this: a checkpoint of the default model and the data fit in it."""

TEMPORARY = 75
"""Exit status (sysexits' EX_TEMPFAIL) of a stage that a second try may mend: a hub that did not answer."""

PROMOTE = "promote"
"""The stage whose decision is registered at the end of a run."""

UNREGISTERED = Path("work", "registry.open")
"""Under the workspace, while a decision waits to be registered: after a kill, or where the registry was away, the next run does it."""

DECIDED = (0, 3, 5)
"""Exit statuses of `tunemill.registry` that are results: champion, refused, challenger."""

BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")

Result = Literal["ran", "restored", "unchanged", "failed", "not run"]


@dataclass
class Outcome:
    """What came of one stage."""

    result: Result
    seconds: float = 0.0
    reason: str = ""
    exit_code: int = 0
    temporary: bool = False
    """Whether trying again may mend the failure."""


@dataclass
class Run:
    """A prepared run."""

    root: Path
    """The checkout."""
    workspace: Path
    """The checkout, or the workspace of a recipe."""
    graph: graph.Graph
    idle: frozenset[str]
    """Stages that have nothing to do, and so have all that they need."""
    unneeded: tuple[str, ...] = ()
    """Stages that are not run, because no candidate uses what they make."""
    console: bool = False
    """Whether lines go to standard output as well as to Prefect."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    active: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    """Stages at work."""
    stopping: bool = False
    """Whether the stages at work are being ended: what DVC says of that is no news."""
    tracker: subprocess.Popen[str] | None = None
    """Opens the MLflow run that all stages belong to, and closes it; None where tracking is off."""
    warm: subprocess.Popen[str] | None = None
    """What stages are forked from (`tunemill.warm`); None where they start by themselves."""
    verdict: str = ""
    """What was decided and registered, in a line or two; empty where nothing was."""
    environment: dict[str, str] = field(default_factory=dict)
    """What stages are told: that MLflow run's id, once `begin` has it."""

    @property
    def failed(self) -> bool:
        """Whether any stage did."""
        return any(each.result == "failed" for each in self.outcomes.values())

    @property
    def report(self) -> Path:
        """Where the report is, or will be."""
        return self.workspace / "reports" / "report.html"

    def stop(self) -> None:
        """End what is at work."""
        self.stopping = True
        for process in list(self.active.values()):
            processes.end(process)

    def say(self, text: str) -> None:
        """One line for the person at the terminal."""
        if self.console:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()


_current: Run | None = None


def current() -> Run | None:
    """The run that this process holds."""
    return _current


def prepare(root: Path, until: str | None, recipe: str | None, overrides: Mapping[str, Any] | None) -> Run:
    """Check parameters and graph, and see what has changed.

    Args:
        root: the checkout.
        until: stage to stop at; the report, with everything it needs, if left out.
        recipe: overlay of params.yaml.
        overrides: single values over that; `{"lora": {"steps": 10}}` or `{"lora.steps": 10}`.

    Raises:
        UserError: a mistake in any of these, or in params.yaml or dvc.yaml.
    """
    if not (root / "dvc.yaml").is_file():
        raise UserError("no dvc.yaml here", where=str(root), fix="run from the repository's root", exit_code=2)
    workspace = recipes.workspace(root, recipe, overrides or {})
    with subprocess.Popen(
        [sys.executable, "-m", "stages", "--check"],
        cwd=workspace,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as checking:
        try:
            whole = graph.read(workspace)
            part = whole.until(until) if until else whole.needed()
            differing = graph.changed(workspace)
        except UserError:
            # The check's answer has file, line and key; DVC's is its parser's.
            _in_order(checking)
            raise
        _in_order(checking)
    unneeded = () if until else tuple(name for name in whole.stages if name not in part.stages)
    return Run(root, workspace, part, _idle(part, differing), unneeded)


def _in_order(checking: subprocess.Popen[str]) -> None:
    said, _ = checking.communicate()
    if checking.returncode != 0:
        raise UserError(said.strip().removeprefix("error: "), exit_code=checking.returncode) from None


def _idle(part: graph.Graph, differing: frozenset[str] | None) -> frozenset[str]:
    return frozenset() if differing is None else part.unchanged(differing)


@contextlib.contextmanager
def hold(run: Run) -> Iterator[Run]:
    """Own the workspace, and record the run in MLflow, while the body runs.

    Raises:
        UserError: another run holds it, or the disk is too full.
    """
    global _current
    free = shutil.disk_usage(run.workspace).free
    if free < FREE_BYTES:
        raise UserError(
            f"{free / 1e9:.1f} GB are free",
            where=str(run.workspace),
            expected=f"at least {FREE_BYTES / 1e9:.1f} GB",
            fix="make room; `dvc gc --workspace` lets go of results that no params.yaml asks for any more",
        )
    asked = time.monotonic()
    # An orphan of a killed run ends itself within a few seconds; a run that is alive is named.
    with runtime.ownership(run.workspace / "work" / "run.lock", "this checkout", patience=10.0):
        if time.monotonic() - asked > 0.5:
            run.idle = _idle(run.graph, graph.changed(run.workspace))
        _mend_dvc_locks(run.workspace)
        _warm_up(run)
        if os.environ.get("TUNEMILL_TRACKING", "on") != "off":
            # MLflow takes some seconds to import: meanwhile Prefect starts.
            run.tracker = _tracker(run.workspace)
        _current, status = run, "KILLED"
        try:
            yield run
            status = "FAILED" if run.failed else "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            run.stop()
            _current = None
            _cool_down(run)
            _finish(run, status)
            if status != "KILLED":
                _register(run)


def begin(run: Run) -> None:
    """Wait until MLflow has a run for the stages to belong to.

    Raises:
        UserError: its database cannot be opened.
    """
    if run.tracker is None or "TUNEMILL_LIFECYCLE" in run.environment:
        return
    assert run.tracker.stdout is not None
    said: list[str] = []
    for line in run.tracker.stdout:
        if line.startswith("lifecycle "):
            run.environment["TUNEMILL_LIFECYCLE"] = line.split()[1]
            return
        said.append(line.strip())
    status, run.tracker = run.tracker.wait(), None
    raise UserError(
        "MLflow cannot open its database: " + next(filter(None, reversed(said)), processes.describe(status)),
        where="mlflow.db",
        fix="python -m tunemill.tracking begin  shows more; TUNEMILL_TRACKING=off goes without",
    )


def _warm_up(run: Run) -> None:
    """Import what most stages import once for all of them; for one or two of them it would be of no use."""
    if os.environ.get(warm.VARIABLE) == "off" or len(run.graph.stages) - len(run.idle) < 3:
        return
    folder = Path(tempfile.mkdtemp(prefix="tunemill-"))  # a socket's path has to be short
    address = folder / "warm"
    if not warm.possible(str(address)):
        folder.rmdir()
        return
    log = run.workspace / "work" / "logs" / "warm.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output:
        run.warm = subprocess.Popen(
            [sys.executable, "-m", "tunemill.warm", str(address)],
            cwd=run.workspace,
            start_new_session=True,
            stdin=subprocess.PIPE,  # its end is the other one's
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    run.environment[warm.VARIABLE] = str(address)


def _cool_down(run: Run) -> None:
    if run.warm is not None:
        runtime.end_tree(run.warm.pid)  # with what it has forked; it may still be importing
        run.warm.communicate()
        shutil.rmtree(Path(run.environment.pop(warm.VARIABLE)).parent, ignore_errors=True)


def _finish(run: Run, status: str) -> None:
    if run.tracker is None:
        return
    # Never got as far as a first stage? Then what was opened is left to the next run.
    reached = "TUNEMILL_LIFECYCLE" in run.environment
    current = [name for name, each in run.outcomes.items() if each.result not in ("failed", "not run")]
    output, _ = run.tracker.communicate(json.dumps({"status": status, "stages": current}) + "\n" if reached else None)
    if reached and run.tracker.returncode != 0:
        lines = output.strip().splitlines() or [processes.describe(run.tracker.returncode)]
        print(f"warning: MLflow did not record the end of this run: {lines[-1]}", file=sys.stderr, flush=True)


def _register(run: Run) -> None:
    """Register what was decided; a registry that is away fails no run, and a refusal is a result."""
    outcome = run.outcomes.get(PROMOTE)
    if outcome is None or outcome.result in ("failed", "not run"):
        return
    waiting = run.workspace / UNREGISTERED
    waiting.touch()
    done = subprocess.run(
        [sys.executable, "-m", "tunemill.registry", "--workspace", str(run.workspace)],
        cwd=run.workspace,
        capture_output=True,
        text=True,
    )
    run.verdict = done.stdout.strip()
    if done.returncode in DECIDED:
        waiting.unlink()
        return
    lines = done.stderr.strip().splitlines() or [processes.describe(done.returncode)]
    said = lines[-1] if lines[0].startswith("Traceback") else "\n".join(lines).removeprefix("error: ")
    print(f"warning: the decision was not registered: {said}", file=sys.stderr, flush=True)


def _tracker(workspace: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tunemill.tracking", "follow", "--workspace", str(workspace)],
        cwd=workspace,
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _mend_dvc_locks(workspace: Path) -> None:
    """A DVC that was killed while it wrote its table of locks leaves half of it; entries of dead processes it clears itself."""
    table = workspace / ".dvc" / "tmp" / "rwlock"
    if not table.is_file():
        return
    try:
        json.loads(table.read_text(encoding="utf-8"))
    except ValueError:
        table.unlink()


def reproduce(run: Run, name: str, tell: Callable[[str], None]) -> Outcome:
    """Let DVC bring one stage up to date.

    Args:
        run: the run that is held.
        name: the stage.
        tell: gets every line that DVC and the stage say, as it comes.
    """
    if name in run.idle:
        tell(_labelled(name, "unchanged"))
        return Outcome("unchanged")
    began = time.monotonic()
    process = processes.spawn(
        "flows.dvc_process",
        name,
        *map(str, sharing.donors(run.root, run.workspace)),
        cwd=run.workspace,
        output=subprocess.PIPE,
        environment=run.environment,
    )
    run.active[name] = process
    assert process.stdout is not None
    last: collections.deque[str] = collections.deque(maxlen=200)
    result: Result = "ran"
    for line in process.stdout:
        text = line.rstrip()
        last.append(text)
        if "didn't change, skipping" in text:
            if result == "restored":  # brought in from another workspace: DVC has nothing left to do
                continue
            result = "unchanged"
        elif "is cached - skipping run" in text:
            result = "restored"
        shown = tidy(name, text)
        if shown is not None and not (run.stopping and not OWN_LINE.match(text)):
            tell(shown)
    status = process.wait()
    del run.active[name]
    seconds = time.monotonic() - began
    if status == 0:
        return Outcome(result, seconds)
    return _failure(status, list(last), seconds)


# What DVC says to somebody who runs it by hand.
CHATTER = re.compile(
    r"Running stage '|Updating lock file|Generating lock file|To track the changes with git|\tgit add |To enable auto staging|"
    r"\tdvc config core.autostage|Use `dvc push`|ERROR: failed to reproduce|\s*$"
)
OWN_LINE = re.compile(r"\S+\s* │ ")


def tidy(name: str, line: str) -> str | None:
    """A line as it is shown, marked with its stage; None for what only matters to somebody who runs DVC by hand."""
    if "didn't change, skipping" in line:
        return _labelled(name, "unchanged")
    if "is cached - skipping run" in line:
        return _labelled(name, "restored from the cache")
    if CHATTER.match(line):
        return None
    return line if OWN_LINE.match(line) else _labelled(name, line)


def _labelled(name: str, text: str) -> str:
    return f"{name:<10} │ {text}"


def _failure(status: int, lines: list[str], seconds: float) -> Outcome:
    """Why a stage failed, out of what was said."""
    said = "\n".join(lines)
    if status < 0:
        return Outcome("failed", seconds, f"DVC {processes.describe(status)}", 1)
    found = re.search(r"exited with (-?\d+)", said)
    code = int(found.group(1)) if found else 1
    stage = [line for line in lines if not line.startswith("ERROR: failed to reproduce")]
    errors = _last_errors(stage)
    if errors:
        reason = "\n".join(errors).removeprefix("error: ")
    elif code < 0 or code > 128:
        reason = f"the stage {processes.describe(code if code < 0 else 128 - code)}"
    elif "Traceback (most recent call last):" in stage:
        reason = next(line for line in reversed(stage) if line.strip())
    else:
        reason = next(
            (line for line in reversed(lines) if line.strip()), f"DVC {processes.describe(status)}"
        ).removeprefix("ERROR: ")
    busy = any(each in said for each in BUSY)
    return Outcome("failed", seconds, reason, 2 if code == 2 else 1, temporary=code == TEMPORARY or busy)


def _last_errors(lines: list[str]) -> list[str]:
    """The last error and those told right before it, each with the indented lines that follow it and each once."""
    found: list[str] = []
    inside = False
    for line in lines:
        if line.startswith("error: "):
            found = [*found, line] if inside else [line]
            inside = True
        elif inside and line.startswith("  "):
            found[-1] += f"\n{line}"
        else:
            inside = False
    return list(dict.fromkeys(found))  # several processes tell the same
