"""MLflow's runs: one experiment for a scope, one parent run for a lifecycle, one nested run for each stage. (Its registry: `registry`.)

    python -m tunemill.tracking begin --workspace .            prints the parent run's id
    python -m tunemill.tracking finish RUN_ID --status FINISHED

The database is always the main checkout's, whatever folder a run works in. A stage's run is tagged with the key of its
inputs: a stage that was killed continues its run instead of leaving a ghost, and a stage that DVC restored from its
cache, and that therefore never started, gets a light run afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from tunemill import checkpoints
from tunemill.errors import UserError
from tunemill.params import ParamsFile

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LIFECYCLE = "TUNEMILL_LIFECYCLE"
"""Environment variable that names the parent run."""

OPEN = Path("work", "lifecycle.open")
"""Under the workspace, while a lifecycle's parent run is open: one that was killed at its very end is closed by the next."""

CANDIDATE = ("policy", "base")
"""Inputs that make a candidate what it is."""

MEASURE_ALL = ("efficiency", "compare")
"""Stages that measure all candidates at once, with metrics that begin with the candidate's name."""

UNCHECKED = ("collect",)
"""Stages whose rows nobody has looked at yet: they may hold secrets, which `validate` redacts; only a manifest is logged."""

INSTANCES, TABLE = "instances.jsonl", "instances.json"
"""What a candidate answered, as the stage wrote it and as MLflow's table of a run."""

TEXTS = ("id", "group", "prompt", "reference", "prediction")
JUDGED = ("exact_match", "quasi_exact_match", "faithfulness", "memorised_words", "offence")
"""Columns of that table; ROUGE stands between the two."""

SMALL_FILE, SMALL_OUTPUT = 2 << 20, 16 << 20
"""Bytes up to which a file, and all files of an output together, are stored in MLflow; above it a manifest is."""


def enabled() -> bool:
    """Whether stages record their runs (TUNEMILL_TRACKING=off turns it off)."""
    return os.environ.get("TUNEMILL_TRACKING", "on") != "off"


def home(start: Path | None = None) -> Path:
    """The main checkout: the outermost folder above `start` that has the pipeline's files.

    Workspaces of recipes and of `dvc exp run --temp` lie inside it.
    """
    start = (start or Path.cwd()).resolve()
    marked = [
        each
        for each in (start, *start.parents)
        if (each / "dvc.yaml").is_file() and (each / "pyproject.toml").is_file()
    ]
    return marked[-1] if marked else start


def connect(root: Path) -> MlflowClient:
    """A client of the main checkout's database, or of the server that MLFLOW_TRACKING_URI names."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri)


def experiment(client: MlflowClient, root: Path, name: str) -> str:
    """Id of the scope's experiment, made where it is not there yet."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            # A server keeps artifacts where it was told to; the file database keeps them beside itself.
            location = None if os.environ.get("MLFLOW_TRACKING_URI") else (root / "mlartifacts").as_uri()
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another stage was faster
            if found is None:
                raise
    return str(found.experiment_id)


def scope_name(params: Path) -> str:
    """The scope's name in a params file; "tunemill" where it names none."""
    file = ParamsFile(params)
    values = file.values("scope") if "scope" in file.sections else {}
    return str((values or {}).get("name") or "tunemill")


class Silent:
    """Records nothing: tracking is off, or this is not the first rank."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore."""

    def fail(self, error: BaseException) -> None:
        """Ignore."""

    def finish(
        self, metrics: Mapping[str, float | None], timing: Mapping[str, Any], outputs: Mapping[str, Path]
    ) -> None:
        """Ignore."""


class Recorder:
    """One stage's MLflow run, written by a thread of its own: importing MLflow and its database never hold the work up.

    Args:
        instance: stage, or stage@candidate.
        candidate: the candidate's name, where the stage runs once for each.
        key: hash of command, parameters and inputs.
        sections: the params sections the result depends on.
        inputs: name → path, paths or None.
        experiment_name: the scope's name.
    """

    def __init__(
        self,
        instance: str,
        candidate: str | None,
        key: str,
        sections: Mapping[str, BaseModel],
        inputs: Mapping[str, Any],
        experiment_name: str,
    ) -> None:
        # Other stages that run several times (`ppo@harm`) make no candidates: evaluating one does.
        self._instance, self._key = instance, key
        self._candidate = candidate if instance.startswith("evaluate@") else None
        self._params = _flatten({name: section.model_dump(mode="json") for name, section in sections.items()})
        self._inputs = {
            name: [each for each in (value if isinstance(value, (list, tuple)) else [value]) if each is not None]
            for name, value in inputs.items()
        }
        if candidate:
            # What the candidates differ in, for MLflow's comparison of parameters.
            self._params |= {
                f"candidate.{name}": paths[0].as_posix() for name, paths in self._inputs.items() if name in CANDIDATE
            }
        self._experiment = experiment_name
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._write, name="tracking", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values measured at a step."""
        self._queue.put(("metrics", (step, int(time.time() * 1000), dict(values))))

    def fail(self, error: BaseException) -> None:
        """Close the run as failed, with the reason; as killed when it was interrupted."""
        self._end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", str(error) or type(error).__name__)

    def finish(
        self, metrics: Mapping[str, float | None], timing: Mapping[str, Any], outputs: Mapping[str, Path]
    ) -> None:
        """Record the results and close the run."""
        self._queue.put(("results", (dict(metrics), dict(timing), dict(outputs))))
        self._end("FINISHED", "")

    def _end(self, status: str, reason: str) -> None:
        self._queue.put(("end", (status, reason)))
        self._thread.join(timeout=120)
        if self._thread.is_alive() or self._error is not None:
            # The result is right and stays; the lifecycle's end gives this stage a run from its metrics file.
            why = self._error or "no answer within two minutes"
            print(f"warning: MLflow did not record {self._instance}: {why}", file=sys.stderr, flush=True)

    def _write(self) -> None:
        try:
            self._session()
        except Exception as error:  # noqa: BLE001  (told by _end, in the stage's own thread)
            self._error = error

    def _session(self) -> None:
        from mlflow.entities import Metric

        root = home()
        client = connect(root)
        experiment_id = experiment(client, root, self._experiment)
        parent = os.environ.get(LIFECYCLE) or _implicit_parent(client, experiment_id)
        run_id = self._open(client, experiment_id, parent)
        model_id = (
            _logged_model(client, experiment_id, run_id, self._candidate, self._params) if self._candidate else None
        )
        while True:
            kind, payload = self._queue.get()
            if kind == "metrics":
                batch = [payload]
                while not self._queue.empty() and self._queue.queue[0][0] == "metrics":
                    batch.append(self._queue.get()[1])
                client.log_batch(
                    run_id,
                    metrics=[
                        Metric(name, value, at, step) for step, at, values in batch for name, value in values.items()
                    ],
                )
            elif kind == "results":
                metrics, timing, outputs = payload
                numbers = {**metrics, **{f"system/{name}": value for name, value in timing.items()}}
                log_metrics(client, run_id, numbers, model_id)
                if self._candidate and "out" in outputs:
                    log_instances(client, run_id, outputs["out"] / INSTANCES)
                for path in outputs.values():
                    log_output(client, run_id, path, whole=self._instance not in UNCHECKED)
                if parent and self._instance in MEASURE_ALL:
                    _beside_candidates(client, experiment_id, parent, self._instance, metrics)
            else:
                status, reason = payload
                if reason:
                    client.set_tag(run_id, "tunemill.reason", reason[:4000])
                client.set_terminated(run_id, status)
                if not os.environ.get(LIFECYCLE) and parent:
                    # Nobody waits for the end of a bare `dvc repro`: its parent is as finished as its last stage.
                    client.set_terminated(parent, status)
                return

    def _open(self, client: MlflowClient, experiment_id: str, parent: str | None) -> str:
        """Continue the run of this key, or begin one."""
        from mlflow.entities import Dataset as DatasetEntity
        from mlflow.entities import DatasetInput, InputTag, Param, RunStatus
        from mlflow.exceptions import MlflowException

        same = client.search_runs(
            [experiment_id], f"tags.`tunemill.key` = '{self._key}' and tags.`tunemill.stage` = '{self._instance}'"
        )
        mine = [
            run for run in same if run.info.status != "FINISHED" or run.data.tags.get("mlflow.parentRunId") == parent
        ]
        tags = {
            "tunemill.key": self._key,
            "tunemill.stage": self._instance,
            "mlflow.source.name": f"stages.{self._instance}",
            "mlflow.source.type": "LOCAL",
            **({"mlflow.parentRunId": parent} if parent else {}),
            **({"candidate": self._candidate} if self._candidate else {}),
        }
        if mine:
            run_id = str(mine[0].info.run_id)
            client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
            for name, value in tags.items():
                client.set_tag(run_id, name, value)
            for ghost in mine[1:]:
                client.delete_run(ghost.info.run_id)
            return run_id
        run_id = str(
            client.create_run(
                experiment_id, tags=tags, run_name=self._candidate or f"stages.{self._instance}"
            ).info.run_id
        )
        client.log_batch(run_id, params=[Param(name, value) for name, value in self._params.items()][:100])
        datasets = [
            DatasetInput(
                DatasetEntity(
                    name=_dataset_name(path),
                    digest=checkpoints.tree_hash(path),
                    source_type="local",
                    source=json.dumps({"uri": path.as_posix()}),
                ),
                [InputTag("mlflow.data.context", name)],
            )
            for name, paths in self._inputs.items()
            for path in paths
            if _is_data(path)
        ]
        for left in (2, 1, 0):
            try:
                client.log_inputs(run_id, datasets)
                break
            except MlflowException:
                # Two stages that read one file at once both find it unknown, and the database keeps the first.
                if not left:
                    raise
        return run_id


def log_metrics(client: MlflowClient, run_id: str, values: Mapping[str, Any], model_id: str | None = None) -> None:
    """Record final values; what is undefined (None) is not-a-number, so that all candidates have the same keys."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    numbers = [
        (name, math.nan if value is None else float(value))
        for name, value in values.items()
        if value is None or isinstance(value, (int, float))
    ]
    for first in range(0, len(numbers), 500):
        client.log_batch(
            run_id,
            metrics=[Metric(name, value, now, 0, model_id=model_id) for name, value in numbers[first : first + 500]],
        )


def log_output(client: MlflowClient, run_id: str, path: Path, whole: bool = True) -> None:
    """Keep an output: small files whole, and a manifest (path, size, MD5 as DVC has it) of what is too large.

    Args:
        client: of the tracking store.
        run_id: whose output it is.
        path: a file or a folder.
        whole: False keeps the manifest alone.
    """
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    total, large = 0, []
    for file in files:
        size = file.stat().st_size
        if whole and size <= SMALL_FILE and total + size <= SMALL_OUTPUT:
            total += size
            inside = file.relative_to(path).parent.as_posix() if path.is_dir() else ""
            client.log_artifact(run_id, str(file), artifact_path=None if inside in ("", ".") else inside)
        else:
            large.append({"path": file.as_posix(), "bytes": size, "md5": md5(file)})
    if large:
        client.log_dict(run_id, {"files": large}, "manifest.json")


def log_instances(client: MlflowClient, run_id: str, path: Path) -> None:
    """Keep a candidate's answers as a table: MLflow's page Evaluation lays those of several runs side by side.

    Args:
        client: of the tracking store.
        run_id: the candidate's run.
        path: rows with `TEXTS`, `scores` and `JUDGED`; nothing is logged where it is not there. What a row has no value of is
            empty, so that all candidates have the same columns.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    table = {name: [row[name] for row in rows] for name in TEXTS}
    for name in rows[0]["scores"] if rows else ():
        table[name] = [row["scores"][name] for row in rows]
    table |= {name: [row.get(name) for row in rows] for name in JUDGED}
    earlier = [each.path for each in client.list_artifacts(run_id)]
    if TABLE not in earlier:  # a table that is there would be added to
        client.log_table(run_id, table, artifact_file=TABLE)


def begin_lifecycle(workspace: Path) -> str:
    """Open the parent run of a lifecycle, or take up this workspace's last one where that did not get to its end.

    A lifecycle that was killed, stopped or failed half-way is continued, not begun anew. The caller holds the workspace's
    run lock, so an open one has no living owner.
    """
    root = home(workspace)
    client = connect(root)
    experiment_id = experiment(client, root, scope_name(workspace / "params.yaml"))
    place = workspace.resolve().relative_to(root).as_posix()
    earlier = _lifecycles(client, experiment_id, place)
    if earlier and earlier[0].info.status != "FINISHED":
        client.update_run(earlier[0].info.run_id, status="RUNNING")
        run_id = str(earlier[0].info.run_id)
    else:
        name = "lifecycle" if place == "." else place
        run_id = _new_parent(client, experiment_id, {"tunemill.workspace": place}, name)
    checkpoints.write_text(workspace / OPEN, run_id + "\n")
    return run_id


def last_lifecycle(client: MlflowClient, experiment_id: str, workspace: Path) -> str | None:
    """The newest lifecycle's parent run of a workspace; None where there is none."""
    place = workspace.resolve().relative_to(home(workspace)).as_posix()
    found = _lifecycles(client, experiment_id, place)
    return str(found[0].info.run_id) if found else None


def _lifecycles(client: MlflowClient, experiment_id: str, place: str) -> list[Any]:
    """The newest lifecycle's parent run of a workspace."""
    return list(
        client.search_runs(
            [experiment_id],
            f"tags.`tunemill.stage` = 'lifecycle' and tags.`tunemill.workspace` = '{place}'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
    )


def finish_lifecycle(workspace: Path, run_id: str, status: str, stages: Sequence[str] | None = None) -> None:
    """Close the parent run: hashes from dvc.lock, a light run for each stage that was restored, figures side by side.

    Args:
        workspace: where the pipeline ran.
        run_id: what `begin_lifecycle` gave.
        status: FINISHED, FAILED or KILLED.
        stages: those that are up to date; all that dvc.lock has if left out. What else lies there is of an earlier run.
    """
    client = connect(home(workspace))
    parent = client.get_run(run_id)
    experiment_id = parent.info.experiment_id
    children: dict[str | None, Any] = {}
    for run in client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"):  # newest first
        stage = run.data.tags.get("tunemill.stage")
        if stage not in children:
            children[stage] = run
        elif run.info.status != "FINISHED":
            client.delete_run(run.info.run_id)  # killed or failed, and superseded by one with other parameters or code
    locked = {name: entry for name, entry in _locked_stages(workspace).items() if stages is None or name in stages}
    for instance, entry in locked.items():
        outs = hashlib.blake2b(json.dumps(entry.get("outs", []), sort_keys=True).encode(), digest_size=8).hexdigest()
        if instance not in children:
            if stages is None and status != "FINISHED":
                continue  # it may simply not have been reached
            children[instance] = _light_run(client, experiment_id, run_id, workspace, instance, entry, outs)
        child = children[instance]
        client.set_tag(child.info.run_id, "dvc.outs", outs)
        for out in entry.get("outs", []):
            if out.get("md5"):
                client.set_tag(child.info.run_id, f"dvc.md5.{out['path']}"[:250], out["md5"])
        if child.info.status == "RUNNING":
            # Its results are there, but its own record of them broke off.
            log_metrics(client, child.info.run_id, _read_metrics(_metrics_file(workspace, instance)))
            client.set_terminated(child.info.run_id, "FINISHED")
    for reached, child in children.items():
        if reached not in locked and child.info.status == "RUNNING":
            client.set_terminated(child.info.run_id, "KILLED")
    for name in [each for each in MEASURE_ALL if each in locked]:
        _beside_candidates(client, experiment_id, run_id, name, _read_metrics(_metrics_file(workspace, name)))
    if "compare" in locked:
        log_metrics(client, run_id, _read_metrics(workspace / "metrics" / "compare.json"))
    made = {"reports/report.html": "report", "reports/comparison.json": "compare"}
    for artifact in (*made, "params.yaml", "dvc.lock"):
        if (workspace / artifact).is_file() and made.get(artifact, "") in ("", *locked):
            client.log_artifact(run_id, str(workspace / artifact))
    client.set_terminated(run_id, status)
    (workspace / OPEN).unlink(missing_ok=True)


def follow_lifecycle(workspace: Path) -> None:
    """Open the parent run, say `lifecycle ID`, and close it as told: one process, since MLflow takes seconds to import.

    Standard input gives one line, `{"status": …, "stages": […]}`. Where it ends without one, who started this is gone: the run
    stays open, and the next lifecycle continues it.
    """
    run_id = begin_lifecycle(workspace)
    print(f"lifecycle {run_id}", flush=True)
    line = sys.stdin.readline()
    if line.strip():
        told = json.loads(line)
        finish_lifecycle(workspace, run_id, told["status"], told["stages"])


def _beside_candidates(
    client: MlflowClient, experiment_id: str, parent: str, stage: str, metrics: Mapping[str, Any]
) -> None:
    """Log what a stage measured of all candidates (`lora/…`) beside what `evaluate` measured of each."""
    for run in client.search_runs([experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'"):
        candidate = run.data.tags.get("candidate")
        if candidate and run.data.tags.get("tunemill.stage") == f"evaluate@{candidate}":
            mine = {name: value for name, value in metrics.items() if name.startswith(f"{candidate}/")}
            log_metrics(
                client, run.info.run_id, {f"{stage}/{name.partition('/')[2]}": value for name, value in mine.items()}
            )


def _light_run(
    client: MlflowClient,
    experiment_id: str,
    parent: str,
    workspace: Path,
    instance: str,
    entry: Mapping[str, Any],
    outs: str,
) -> Any:
    """A run for a stage whose results DVC restored: its parameters, its metrics, and the run that computed them."""
    from mlflow.entities import Param

    candidate = instance.partition("@")[2] if instance.startswith("evaluate@") else ""
    tags = {
        "tunemill.stage": instance,
        "mlflow.parentRunId": parent,
        "tunemill.cached": "true",
        "mlflow.source.name": f"stages.{instance}",
        "mlflow.source.type": "LOCAL",
        **({"candidate": candidate} if candidate else {}),
    }
    earlier = client.search_runs(
        [experiment_id],
        f"tags.`tunemill.stage` = '{instance}' and tags.`dvc.outs` = '{outs}'",
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    if earlier:
        tags["cached_from"] = earlier[0].data.tags.get("cached_from", earlier[0].info.run_id)
    run = client.create_run(experiment_id, tags=tags, run_name=candidate or f"stages.{instance}")
    params = _flatten({name: value for values in entry.get("params", {}).values() for name, value in values.items()})
    client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in params.items()][:100])
    values = _read_metrics(_metrics_file(workspace, instance))
    model_id = _logged_model(client, experiment_id, run.info.run_id, candidate, params) if candidate else None
    log_metrics(client, run.info.run_id, values, model_id)
    if candidate:
        stage = instance.partition("@")[0]
        log_instances(client, run.info.run_id, workspace / "artifacts" / stage / candidate / INSTANCES)
    client.set_terminated(run.info.run_id, "FINISHED")
    return client.get_run(run.info.run_id)


def _logged_model(
    client: MlflowClient, experiment_id: str, run_id: str, candidate: str, params: Mapping[str, str]
) -> str:
    """The candidate as a logged model (nothing is copied), made once for its run."""
    found = client.search_logged_models([experiment_id], filter_string=f"name = '{candidate}'")
    for model in found:
        if model.source_run_id == run_id:
            return str(model.model_id)
    model = client.create_logged_model(
        experiment_id,
        name=candidate,
        source_run_id=run_id,
        params=dict(params),
        model_type="candidate",
    )
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _implicit_parent(client: MlflowClient, experiment_id: str) -> str | None:
    """The parent run of a bare `dvc repro`: one for each dvc process; None for a stage run by hand."""
    from tunemill.runtime import owners

    chain = owners()
    if not chain:
        return None
    dvc = chain[-1]
    tag = f"{dvc.pid}:{dvc.create_time():.0f}"
    for left in client.search_runs([experiment_id], "tags.`tunemill.dvc` LIKE '%' and attributes.status = 'RUNNING'"):
        pid = int(left.data.tags["tunemill.dvc"].partition(":")[0])
        if left.data.tags["tunemill.dvc"] != tag and not _is_dvc(pid):
            client.set_terminated(left.info.run_id, "KILLED")  # its dvc was killed, and nobody closed it
    found = client.search_runs([experiment_id], f"tags.`tunemill.dvc` = '{tag}'")
    if found:
        client.update_run(found[0].info.run_id, status="RUNNING")
        return str(found[0].info.run_id)
    return _new_parent(client, experiment_id, {"tunemill.dvc": tag}, "dvc repro")


def _is_dvc(pid: int) -> bool:
    import psutil

    try:
        return any("dvc" in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _new_parent(client: MlflowClient, experiment_id: str, tags: Mapping[str, str], name: str) -> str:
    every = {"tunemill.stage": "lifecycle", "mlflow.source.name": "dvc.yaml", "mlflow.source.type": "PROJECT", **tags}
    return str(client.create_run(experiment_id, tags=every, run_name=name).info.run_id)


def _locked_stages(workspace: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML

    path = workspace / "dvc.lock"
    if not path.is_file():
        return {}
    return dict((YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) or {}).get("stages") or {})


def _metrics_file(workspace: Path, instance: str) -> Path:
    stage, _, candidate = instance.partition("@")
    return workspace / "metrics" / (f"{stage}/{candidate}.json" if candidate else f"{stage}.json")


def _read_metrics(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _flatten(values: Any, prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names; MLflow keeps values of up to 6,000 characters."""
    if isinstance(values, Mapping) and values:
        flat: dict[str, str] = {}
        for name, value in values.items():
            flat |= _flatten(value, f"{prefix}.{name}" if prefix else str(name))
        return flat
    if not prefix:
        return {}
    text = values if isinstance(values, str) else json.dumps(values, ensure_ascii=False, default=str)
    return {prefix[:250]: text if len(text) <= 6000 else text[:5990] + "…"}


def _is_data(path: Path) -> bool:
    return path.suffix == ".jsonl" or (path.is_dir() and any(path.glob("*.jsonl")))


def _dataset_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}".lstrip("/") if path.is_file() else path.name


def md5(file: Path) -> str:
    """A file's MD5, as DVC has it."""
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def main() -> int:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m tunemill.tracking", description="Open or close a lifecycle's MLflow run."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    begin = commands.add_parser("begin", help="open the parent run and print its id")
    follow = commands.add_parser("follow", help="begin, then finish as a line of JSON on standard input says")
    finish = commands.add_parser("finish", help="close the parent run")
    finish.add_argument("run_id")
    finish.add_argument("--stages", nargs="*", help="stages that are up to date; all of dvc.lock if left out")
    finish.add_argument("--status", choices=("FINISHED", "FAILED", "KILLED"), required=True)
    for each in (begin, follow, finish):
        each.add_argument("--workspace", type=Path, default=Path.cwd())
    arguments = parser.parse_args()
    try:
        if arguments.command == "begin":
            print(begin_lifecycle(arguments.workspace))
        elif arguments.command == "follow":
            follow_lifecycle(arguments.workspace)
        else:
            finish_lifecycle(arguments.workspace, arguments.run_id, arguments.status, arguments.stages)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
