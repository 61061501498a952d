"""The flow: every stage of dvc.yaml as a Prefect task, in the graph's order, independent branches side by side.

DVC owns caching, Prefect order, concurrency, retries and logs, MLflow comparison. `make run` calls the flow through
`flows/__main__.py`; the deployment `lifecycle/local` (prefect.yaml) runs the same function.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
from pathlib import Path
from typing import Any, cast

import psutil
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import processes
from flows import run as runs
from tunemill.errors import UserError

RETRY_AFTER = [3, 20]
"""Seconds before the second and the third try of what another try may mend."""


def may_mend(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Whether a failed stage is worth another try: DVC was busy, or the network was away. A mistake stays one."""
    return state.name == "Temporary"


@task(
    retries=len(RETRY_AFTER), retry_delay_seconds=list(RETRY_AFTER), retry_condition_fn=may_mend, cache_policy=NO_CACHE
)
def stage(name: str) -> State[Any]:
    """Bring one stage up to date; everything it says goes into this task's log."""
    run, logger = runs.current(), get_run_logger()
    assert run is not None

    def tell(line: str) -> None:
        logger.info(line)
        run.say(line)

    outcome = runs.reproduce(run, name, tell)
    run.outcomes[name] = outcome
    if outcome.result == "failed":
        if outcome.temporary:
            tell(f"{name:<10} │ this may pass, so it is tried {len(RETRY_AFTER) + 1} times: {outcome.reason}")
        return Failed(message=outcome.reason, name="Temporary" if outcome.temporary else "Failed")
    return Completed(message=f"{outcome.result}, {outcome.seconds:.1f} s", name=outcome.result.capitalize())


MEMORY_BYTES = 6 << 30
"""Of the machine, for each stage that runs: a model with its gradients, and a batch of logits."""

# How many stages run side by side is decided below, by `jobs`; the threads must only not be fewer.
# (Prefect's own type of a runner is invariant, so the cast.)
RUNNER = cast("TaskRunner[PrefectFuture[Any]]", ThreadPoolTaskRunner(max_workers=64))


@flow(name="lifecycle", task_runner=RUNNER, persist_result=False)
def lifecycle(
    until: str | None = None,
    recipe: str | None = None,
    overrides: dict[str, Any] | None = None,
    jobs: int | None = None,
) -> State[Any]:
    """Bring the whole pipeline up to date.

    Args:
        until: stage to stop at (`evaluate`, or `evaluate@lora` for one of several); everything if left out.
        recipe: overlay of params.yaml, the name of a file in recipes/.
        overrides: single parameters, `{"lora": {"learning_rate": 1e-4}}` or `{"lora.learning_rate": 1e-4}`.
        jobs: stages side by side; by default half the cores, 2 at least and 4 at most, where each has 6 GiB of memory.
    """
    held = runs.current()
    try:
        if held is not None:  # `make run` prepared it before Prefect was up
            return _in_order(held, jobs)
        with runs.hold(runs.prepare(Path.cwd(), until, recipe, overrides)) as run:
            state = _in_order(run, jobs)
        if run.verdict:
            get_run_logger().info(run.verdict)
        return state
    except UserError as error:
        get_run_logger().error(str(error))
        return Failed(message=str(error))


def send_records(patience: float = 10.0) -> None:
    """Hand Prefect's server the log lines and events that wait to be sent, before that server is stopped.

    Left to Prefect's exit handlers they would be sent to nobody, with a minute of attempts to reach it.
    """
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=patience)
    EventsWorker.drain_all(timeout=patience)


def allowed(cgroup: Path = Path("/sys/fs/cgroup/memory.max")) -> tuple[int, int]:
    """(cores, bytes of memory) that this process may use: a container's, where it is less than the machine's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # another system; or "max"
        memory = min(memory, int(cgroup.read_text(encoding="utf-8")))
    return cores, memory


def default_jobs(cores: int, memory: int) -> int:
    """How many stages run side by side.

    Two on two cores already: one stage alone leaves a fifth of them idle, whenever it does what only one thread can do.

    Args:
        cores: of this machine.
        memory: of this machine, bytes.
    """
    return max(1, min(cores, max(2, cores // 2), 4, memory // MEMORY_BYTES))


def _in_order(run: runs.Run, jobs: int | None) -> State[Any]:
    """Submit each stage once all that it needs is done and a place is free."""
    runs.begin(run)
    places = jobs or default_jobs(*allowed())
    upstream, alone = run.graph.upstream, run.graph.alone
    waiting = list(run.graph.stages)
    futures: dict[str, PrefectFuture[Any]] = {}
    working: set[str] = set()
    finished: queue.SimpleQueue[str] = queue.SimpleQueue()
    done: set[str] = set()
    try:
        while waiting or working:
            for name in [each for each in waiting if done.issuperset(upstream[each])]:
                blocked = any(run.outcomes[each].result in ("failed", "not run") for each in upstream[name])
                if blocked:
                    run.outcomes[name] = runs.Outcome("not run")
                elif len(working) >= places or (working and (name in alone or working & alone)):
                    continue
                waiting.remove(name)
                futures[name] = _submit(name, [futures[each] for each in upstream[name]], finished)
                working.add(name)
            name = finished.get()
            working.discard(name)
            done.add(name)
            run.outcomes.setdefault(name, runs.Outcome("failed", reason=str(futures[name].state.message), exit_code=1))
    except BaseException:
        processes.heed_no_more()
        run.stop()
        raise
    _publish(run)
    broken = [name for name, each in run.outcomes.items() if each.result == "failed"]
    if broken:
        return Failed(message="; ".join(f"{name}: {run.outcomes[name].reason}" for name in broken))
    return Completed(message=f"{len(run.outcomes)} stages are up to date")


def _submit(name: str, needs: list[PrefectFuture[Any]], finished: queue.SimpleQueue[str]) -> PrefectFuture[Any]:
    future: PrefectFuture[Any] = stage.with_options(name=name, task_run_name=name).submit(
        name, wait_for=needs, return_state=False
    )
    future.add_done_callback(lambda _: finished.put(name))
    return future


def _publish(run: runs.Run) -> None:
    """Artifacts of the flow run: the metrics as a table, and a link to the report."""
    create_markdown_artifact(metrics_table(run.workspace), key="metrics", description="Every stage's metrics")
    if run.report.is_file():
        create_link_artifact(run.report.resolve().as_uri(), link_text="report", key="report", description="The report")


def metrics_table(workspace: Path) -> str:
    """All of metrics/ in Markdown: stages that run once for each candidate get a table with a column for each."""
    parts: list[str] = []
    folder = workspace / "metrics"
    for path in sorted(folder.glob("*.json")):
        if not path.name.endswith(".timing.json"):
            values = _read(path)
            rows = [f"| {key} | {_number(value)} |" for key, value in values.items()]
            parts.append("\n".join([f"### {path.stem}", "", "| metric | value |", "|---|---:|", *rows]))
    for place in sorted(each for each in folder.glob("*") if each.is_dir()):
        columns = {
            path.stem: _read(path) for path in sorted(place.glob("*.json")) if not path.name.endswith(".timing.json")
        }
        keys = list(dict.fromkeys(key for values in columns.values() for key in values))
        rows = [
            f"| {key} | " + " | ".join(_number(values.get(key)) for values in columns.values()) + " |" for key in keys
        ]
        head = f"| metric | {' | '.join(columns)} |"
        parts.append("\n".join([f"### {place.name}", "", head, "|---|" + "---:|" * len(columns), *rows]))
    return "\n\n".join(parts) or "No metrics yet."


def _read(path: Path) -> dict[str, float | None]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
