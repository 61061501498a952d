"""`make run`: the lifecycle with a Prefect server of its own, or of `make up` where that is running.

    python -m flows [--recipe NAME] [--until STAGE] [--set section.key=value] [--jobs N]

Looks first: where nothing has changed it says so and starts nothing. Prefect is imported only after that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from flows import processes, server
from flows import run as runs
from tunemill import tracking
from tunemill.errors import UserError


def main() -> int:
    """The command line; the exit status: 0, 1 (a stage failed), 2 (a mistake in params.yaml or on the command line), 130."""
    arguments = _parser().parse_args()
    root = Path.cwd()
    processes.die_with_make()
    processes.interrupt_once()
    try:
        run = runs.prepare(root, arguments.until, arguments.recipe, overrides(arguments.set))
        # What a kill left open at the very end of a lifecycle is closed by going through it once more.
        closed = not any((run.workspace / each).exists() for each in (tracking.OPEN, runs.UNREGISTERED))
        if closed and run.idle.issuperset(run.graph.stages):
            where = f"; the report is {_shown(run.report)}" if run.report.is_file() else ""
            print(f"nothing to do: all {len(run.graph.stages)} stages are up to date{where}")
            return 0
        return _start(run, root, arguments.jobs)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted: what is finished is kept; the same command continues", file=sys.stderr)
        return 130


def overrides(settings: list[str]) -> dict[str, Any]:
    """`section.key=value` as a mapping; values are YAML, as in params.yaml.

    Raises:
        UserError: there is no equals sign.
    """
    from ruamel.yaml import YAML

    found: dict[str, Any] = {}
    for each in settings:
        key, equals, value = each.partition("=")
        if not equals or not key.strip():
            raise UserError(f"'{each}' sets nothing", where="--set", expected="section.key=value", exit_code=2)
        found[key.strip()] = YAML(typ="safe", pure=True).load(value)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows", description="Bring the whole lifecycle up to date.")
    parser.add_argument("--recipe", metavar="NAME", help="overlay of params.yaml: a file in recipes/")
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="one parameter, section.key=value"
    )
    parser.add_argument("--jobs", metavar="N", type=int, help="stages side by side (default: by cores and memory)")
    return parser


def _start(run: runs.Run, root: Path, jobs: int | None) -> int:
    began = time.monotonic()
    run.console = True
    todo = [name for name in run.graph.stages if name not in run.idle]
    run.say(f"lifecycle  │ {len(todo)} of {len(run.graph.stages)} stages to look at: {', '.join(todo)}")
    if run.unneeded:
        run.say(f"lifecycle  │ not run, since no candidate uses it: {', '.join(run.unneeded)}")
    with runs.hold(run), contextlib.ExitStack() as stack:
        log = root / "work" / "logs" / "prefect-server.log"
        own: server.Server | None = None
        url = _standing_server(root)
        if url is None:
            own = stack.enter_context(server.temporary(log))
            url = own.url
        # Before Prefect is imported: it reads its settings then. The terminal gets the stages' lines, not Prefect's.
        os.environ.update(
            {
                "PREFECT_API_URL": url,
                "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "DO_NOT_TRACK": "1",
            }
        )
        os.environ.setdefault("PREFECT_HOME", str(root / "work" / "prefect"))
        from flows.lifecycle import lifecycle, send_records

        if own is not None:
            own.wait()
        try:
            state = lifecycle(jobs=jobs, return_state=True)
        finally:
            send_records()
    if not run.outcomes or (not state.is_completed() and not run.failed):
        # Not a stage's failure: a mistake is told in a line, a defect with its traceback.
        if state.data is not None:
            state.result(raise_on_failure=True)
        raise UserError(str(state.message))
    return _summary(run, time.monotonic() - began)


def _standing_server(root: Path) -> str | None:
    """The API of the Prefect server that `make up` left running, if it answers: the run is then seen in its pages."""
    try:
        url = str(json.loads((root / "work" / "servers" / "prefect.json").read_text(encoding="utf-8"))["url"]) + "/api"
    except (OSError, ValueError, KeyError):
        return None
    return url if server.answers(f"{url}/health") else None


def _summary(run: runs.Run, seconds: float) -> int:
    width = max(len(name) for name in [*run.outcomes, "everything"])
    lines = ["", f"{'stage':<{width}}  {'':<10} {'time':>8}"]
    for name in run.graph.stages:
        outcome = run.outcomes[name]
        spent = clock(outcome.seconds) if outcome.seconds else ""
        lines.append(f"{name:<{width}}  {outcome.result:<10} {spent:>8}")
    lines += [f"{'everything':<{width}}  {'':<10} {clock(seconds):>8}", ""]
    broken = {name: each for name, each in run.outcomes.items() if each.result == "failed"}
    print("\n".join(lines), flush=True)
    for name, each in broken.items():
        print(f"error: {name} failed: {each.reason}", file=sys.stderr)
    if broken:
        print("what is finished is kept: mend it, and the same command continues", file=sys.stderr)
        return max(each.exit_code for each in broken.values())
    if run.verdict:
        print(run.verdict)
    if run.report.is_file():
        print(f"report     {_shown(run.report)}")
    print(
        "next       make ui        compare the candidates in MLflow\n"
        "           dvc metrics show, dvc plots show, dvc dag"
    )
    return 0


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


if __name__ == "__main__":
    sys.exit(main())
