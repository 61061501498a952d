"""The edge of every stage: typed params, flags from the signature, locks, work folder, outputs, metrics, tracking.

    class Config(Params): ...
    def run(cfg: Config, *, data: Path, out: Path, work: Path, log: Log) -> Metrics: ...
    if __name__ == "__main__":
        main(run)

What `run` may ask for, by name or by type of its keyword-only parameters:

- `out: Path`, `out_…: Path`: what it writes, a file or a folder; it appears at its place only once `run` has returned.
- `work: Path`: a folder for checkpoints and caches, the same one as long as command, parameters and inputs are equal.
- `cache: Path | None`: a folder that outlives the run, for what is costly and named by all that it depends on but code; where the
  code changes that `main(run, cached_by=…)` names, it is a new one.
- `log: Log`, `runtime: Runtime`: progress; device, number format and threads.
- `candidate: str`: which run this is, where a stage runs once for each of several (`--candidate`).
- another `Params` type (`candidates: Candidates`): the section of params.yaml of that name.
- any other `Path`, `Path | None` or `tuple[Path, ...]`: an input, given as `--name`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import inspect
import json
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tunemill import checkpoints, runtime, warm
from tunemill.dependencies import code_of
from tunemill.errors import UserError
from tunemill.log import Log
from tunemill.params import ParamsFile

Metrics = Mapping[str, float | None]
"""Flat: keys like `test/rouge1`; None is undefined."""


@dataclass(frozen=True)
class Contract:
    """What a stage's `run` asks for, read from its signature."""

    name: str
    config: type[BaseModel]
    run: Callable[..., Metrics]
    inputs: dict[str, str] = field(default_factory=dict)
    """Name → "one", "optional" or "many"."""
    outputs: tuple[str, ...] = ()
    sections: dict[str, type[BaseModel]] = field(default_factory=dict)
    """Further params sections that `run` is given."""
    wants: frozenset[str] = frozenset()
    """Which of work, cache, candidate (the instance's name), log, runtime it takes."""

    @property
    def params(self) -> dict[str, type[BaseModel]]:
        """Every section of params.yaml the stage's result depends on."""
        shared: dict[str, type[BaseModel]] = {"runtime": runtime.RuntimeParams} if "runtime" in self.wants else {}
        return {self.name: self.config, **self.sections, **shared}


def contract(run: Callable[..., Metrics], name: str = "") -> Contract:
    """Read a stage's contract off its `run`.

    Raises:
        TypeError: the signature is none a stage may have.
    """
    hints = typing.get_type_hints(run)
    parameters = list(inspect.signature(run).parameters.values())
    if not parameters or parameters[0].name != "cfg" or not issubclass(hints["cfg"], BaseModel):
        raise TypeError("run's first parameter must be `cfg`, of a Params type")
    inputs, outputs, sections, wants = {}, [], {}, set()
    for parameter in parameters[1:]:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            raise TypeError(f"parameter '{parameter.name}' of run must be keyword-only")
        kind = hints[parameter.name]
        if parameter.name in ("work", "cache") or (parameter.name == "candidate" and kind is str):
            wants.add(parameter.name)
        elif kind is Log:
            wants.add("log")
        elif kind is runtime.Runtime:
            wants.add("runtime")
        elif parameter.name == "out" or parameter.name.startswith("out_"):
            outputs.append(parameter.name)
        elif kind is Path:
            inputs[parameter.name] = "one"
        elif kind == Path | None:
            inputs[parameter.name] = "optional"
        elif typing.get_origin(kind) is tuple and typing.get_args(kind)[0] is Path:
            inputs[parameter.name] = "many"
        elif inspect.isclass(kind) and issubclass(kind, BaseModel):
            sections[parameter.name] = kind
        else:
            raise TypeError(f"run may not ask for '{parameter.name}: {kind}'")
    name = name or Path(inspect.getfile(run)).stem
    return Contract(name, hints["cfg"], run, inputs, tuple(outputs), sections, frozenset(wants))


def main(
    run: Callable[..., Metrics],
    argv: Sequence[str] | None = None,
    *,
    distributed: bool = False,
    preview: Callable[[ParamsFile], str] | None = None,
    cached_by: Sequence[str] = (),
) -> typing.NoReturn:
    """Run a stage from the command line and exit: 0, 1 (bad data, a held lock), 2 (a mistake in params or flags).

    Args:
        run: the stage.
        argv: the command line; the process's own if left out.
        distributed: the stage can be started by torchrun or accelerate in several processes; the first one writes.
        preview: given params.yaml alone, says what can be known before it runs; its name is the flag that asks for it.
            Nothing is read or written.
        cached_by: modules of the library whose code, with what they import, makes what the stage keeps in `cache`.
    """
    stage = contract(run)
    if argv is None and "runtime" in stage.wants:
        warm.hand_over(f"stages.{stage.name}")
        runtime.tighten_malloc()
    prepare()
    flag = f"--{preview.__name__.replace('_', '-')}" if preview else ""
    given = sys.argv[1:] if argv is None else list(argv)
    asked = preview is not None and flag in given
    parser = _parser(stage, flag, needs_inputs=not asked)
    arguments = parser.parse_args(given)
    try:
        if asked and preview is not None:
            warnings.simplefilter("ignore")  # what one library deprecates in another is no news to the user
            print(preview(ParamsFile(arguments.params)))
        else:
            execute(stage, arguments, distributed, cached_by)
    except UserError as error:
        if arguments.json:
            print(json.dumps({"event": "error", "stage": stage.name, "text": str(error)}), file=sys.stderr)
        else:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"{stage.name}: interrupted; what was done is kept and continued by the next run", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _parser(stage: Contract, preview: str = "", needs_inputs: bool = True) -> argparse.ArgumentParser:
    document = (sys.modules[stage.run.__module__].__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{stage.name}",
        description=document or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, kind in stage.inputs.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"input_{name}",
            type=Path,
            metavar="PATH",
            required=kind == "one" and needs_inputs,
            nargs="+" if kind == "many" else None,
            default=() if kind == "many" else None,
            help={"one": "input", "optional": "input, optional", "many": "inputs"}[kind],
        )
    for name in stage.outputs:
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"output_{name}",
            type=Path,
            metavar="PATH",
            required=name != "out" and needs_inputs,
            help="output" + (f" (default artifacts/{stage.name})" if name == "out" else ""),
        )
    parser.add_argument(
        "--candidate",
        metavar="NAME",
        required="candidate" in stage.wants and needs_inputs,
        help="which candidate this run is for, where a stage runs once for each",
    )
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="parameters (default params.yaml)"
    )
    parser.add_argument("--metrics", type=Path, metavar="FILE", help=f"metrics (default metrics/{stage.name}.json)")
    if preview:
        parser.add_argument(preview, action="store_true", help="say what can be known beforehand, and run nothing")
    parser.add_argument("--json", action="store_true", help="log one JSON object a line")
    return parser


def quieten() -> None:
    """Silence what libraries say that is no news to the user; processes that a stage starts call it too."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # It misses a kernel whenever peft is imported, used or not.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # torchao looks for its kernels of GPUs whenever transformers loads a model, and registers types that torch knows by now.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


def prepare() -> None:
    """What must be settled before any library is imported."""
    # However it is started: no hub is reached unless the user allows it. The hub's client reads this when it is imported.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # One progress line of ours instead of the libraries' bars, which fill a log file with carriage returns.
    os.environ.setdefault("TQDM_DISABLE", "1")
    # MLflow reads them when it is imported, which a warm process does before any stage connects.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    quieten()
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # in processes that the stage starts
    # What one library deprecates in another is no news to the user, who can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate|datasets)\b")


def execute(
    stage: Contract, arguments: argparse.Namespace, distributed: bool = False, cached_by: Sequence[str] = ()
) -> Metrics:
    """Run one stage with everything around it.

    Of several processes the first does as a single one would; the others compute, and what they write is thrown away.

    Raises:
        UserError: a mistake that the user can mend.
    """
    began = time.time()
    prepare()
    file = ParamsFile(arguments.params)
    sections = {name: file.section(name, kind) for name, kind in stage.params.items()}
    inputs: dict[str, Any] = {name: getattr(arguments, f"input_{name}") for name in stage.inputs}
    for name, value in inputs.items():
        for path in value if isinstance(value, (list, tuple)) else [value]:
            if path is not None and not path.exists():
                raise UserError(
                    f"no such input: {path}",
                    where=f"--{name.replace('_', '-')}",
                    fix="run the stage that makes it first: dvc repro",
                    exit_code=2,
                )
    instance = f"{stage.name}@{arguments.candidate}" if arguments.candidate else stage.name
    place = Path(stage.name, arguments.candidate) if arguments.candidate else Path(stage.name)
    outputs = {name: getattr(arguments, f"output_{name}") or Path("artifacts") / place for name in stage.outputs}
    metrics_path = arguments.metrics or Path("metrics") / place.parent / f"{place.name}.json"

    processes, rank = runtime.workers()
    if processes > 1 and not distributed:
        raise UserError(
            f"started in {processes} processes",
            where=f"stages.{stage.name}",
            expected="one process",
            fix="start it without torchrun or accelerate launch; the tuning stages can use several",
            exit_code=2,
        )
    style: typing.Literal["silent", "text", "json"] = "json" if arguments.json else "text"
    log = Log("silent" if rank else style, instance)
    _end_on_signals()
    runtime.die_with(runtime.owners())
    lock = Path("work") / f"{instance}.lock"
    with contextlib.ExitStack() as held:
        if rank == 0:
            held.enter_context(runtime.ownership(lock, f"stage {instance}"))
        key = run_key(instance, sections, inputs)
        room = Path("work") / instance / key
        state = room / "state"
        state.mkdir(parents=True, exist_ok=True)
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory())) if rank else room / "partial"
        partial = {name: scratch / name / path.name for name, path in outputs.items()}
        if rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)
        for path in partial.values():
            path.parent.mkdir(parents=True)
        recorder = _recorder(rank)(instance, arguments.candidate, key, sections, inputs, _experiment(arguments.params))
        log.listener = recorder.log
        try:
            given: dict[str, Any] = {**inputs, **partial, **{name: sections[name] for name in stage.sections}}
            given = {name: tuple(value) if stage.inputs.get(name) == "many" else value for name, value in given.items()}
            if "work" in stage.wants:
                given["work"] = state
            if "candidate" in stage.wants:
                given["candidate"] = arguments.candidate
            if "cache" in stage.wants:
                given["cache"] = Path("work") / "cache" / instance / code_key(cached_by)
            machine: runtime.Runtime | None = None
            if "runtime" in stage.wants:
                shared = typing.cast(runtime.RuntimeParams, sections["runtime"])
                runtime.set_threads(shared.threads)
                machine = runtime.resolve(shared, Path("work") / "machine.json")
                runtime.seed_everything(int(getattr(sections[stage.name], "seed", 0)))
                log.note(f"{machine.device}, {machine.dtype}, {machine.threads} threads")
            for name, hint in typing.get_type_hints(stage.run).items():
                if hint is Log:
                    given[name] = log
                elif hint is runtime.Runtime:
                    given[name] = machine
            metrics = stage.run(sections[stage.name], **given)
            flat = _checked(stage.name, metrics)
            if rank:
                return flat
            start = _process_start(began)
            timing = {
                "began": round(start, 3),
                "seconds": round(time.time() - start, 3),
                **runtime.peak_memory(machine.device if machine else "cpu"),
                **({"device": machine.device, "dtype": machine.dtype} if machine else {}),
                **log.measured,
            }
            for name, path in partial.items():
                if not path.exists():
                    raise RuntimeError(f"stage {instance} returned without writing its output '{name}'")
            for name, path in partial.items():
                checkpoints.publish(path, outputs[name])
            checkpoints.write_json(metrics_path, flat)
            checkpoints.write_json(metrics_path.with_suffix(".timing.json"), timing)
        except BaseException as error:
            recorder.fail(error)
            raise
        recorder.finish(flat, timing, outputs)
        # Finished: the outputs are DVC's now, and what older parameters or inputs left is of no use. Renamed first: a kill
        # half-way through deleting must not leave half a state for the next run to continue from.
        trash = room.parent.with_name(f".{instance}.{os.getpid()}.done")
        room.parent.rename(trash)
        for other in Path("work", "cache", instance).glob("*"):
            if other != given.get("cache"):  # of older code
                other.rename(trash.with_name(f".{instance}.{other.name}.done"))
        for done in Path("work").glob(f".{instance}.*.done"):
            shutil.rmtree(done, ignore_errors=True)
    log.note(f"done in {timing['seconds']:.0f} s")
    return flat


def run_key(instance: str, sections: Mapping[str, BaseModel], inputs: Mapping[str, Any]) -> str:
    """Hash of what a stage's result depends on: its name, parameters, inputs, code and the versions installed."""
    paths = {
        name: [checkpoints.tree_hash(path) for path in (value if isinstance(value, (list, tuple)) else [value]) if path]
        for name, value in inputs.items()
    }
    told = {
        "stage": instance,
        "params": {name: section.model_dump(mode="json") for name, section in sections.items()},
        "inputs": paths,
        "code": code_key([f"stages.{instance.partition('@')[0]}"]),
    }
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()


def code_key(modules: Sequence[str]) -> str:
    """Hash of these modules, of all that they import of this project, and of the versions installed."""
    files = sorted({file for module in modules for file in code_of(Path(), module)} | {"requirements.lock"})
    told = {file: checkpoints.file_hash(Path(file)) for file in files if Path(file).is_file()}
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=8).hexdigest()


def _checked(name: str, metrics: Metrics) -> dict[str, float | None]:
    flat: dict[str, float | None] = {}
    for key, value in metrics.items():
        if value is None:
            flat[key] = None
            continue
        number = float(value)
        if not math.isfinite(number):
            raise RuntimeError(f"stage {name}: metric '{key}' is {number}; an undefined metric is None")
        flat[key] = int(number) if isinstance(value, int) else number
    return flat


def _experiment(params: Path) -> str:
    from tunemill.tracking import scope_name

    return scope_name(params)


def _recorder(rank: int) -> Callable[..., Any]:
    from tunemill import tracking

    return tracking.Recorder if tracking.enabled() and rank == 0 else tracking.Silent


def _process_start(otherwise: float) -> float:
    """When this process began: imports count as the stage's time. In-process callers (tests) get `otherwise`."""
    if "pytest" in sys.modules:
        return otherwise
    import psutil

    return float(psutil.Process().create_time())


def _end_on_signals() -> None:
    """SIGTERM (a parent ending us) unwinds like Ctrl-C, so that children end and files are closed."""
    import threading

    if threading.current_thread() is not threading.main_thread():
        return

    def stop(number: int, frame: types.FrameType | None) -> None:
        # A fork may be told twice, by who asked for it and by who ends the run: the second time must not break the unwinding off.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if warm.client is None else signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
