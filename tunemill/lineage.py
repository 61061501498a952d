"""What every stage read and wrote, by hash, out of `dvc.lock`. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

Json = Mapping[str, Any]

CODE_PLACES = ("stages/", "tunemill/", "flows/", "requirements.lock")
"""Where dependencies of a stage lie that are code, not data."""


@dataclass(frozen=True)
class Thing:
    """A file or folder with its hash."""

    path: str
    hash: str


@dataclass(frozen=True)
class Step:
    """A stage's inputs, parameters, code and outputs, by hash."""

    name: str
    inputs: tuple[Thing, ...]
    outputs: tuple[Thing, ...]
    params: str
    """Hash of its parameters; empty where it has none."""
    code: str
    """Hash over its code files' hashes; empty where it has none."""


def steps(lock: Json, candidates: Sequence[str]) -> list[Step]:
    """Every stage of dvc.lock before the report, in an order in which each follows its inputs."""
    return [step(lock, name) for name in stage_order(lock, candidates)]


def step(lock: Json, name: str) -> Step:
    """One stage of dvc.lock."""
    entry = lock["stages"][name]
    deps = [Thing(each["path"], each.get("md5") or each.get("etag") or "") for each in entry.get("deps", ())]
    code = sorted(each.path + each.hash for each in deps if each.path.startswith(CODE_PLACES))
    params = entry.get("params")
    return Step(
        name=name,
        inputs=tuple(each for each in deps if not each.path.startswith(CODE_PLACES)),
        outputs=tuple(Thing(each["path"], each.get("md5") or "") for each in entry.get("outs", ())),
        params=_hash(json.dumps(params, sort_keys=True, default=str)) if params else "",
        code=_hash("\n".join(code)) if code else "",
    )


def chain(lock: Json, paths: Sequence[str]) -> list[str]:
    """The stages that made these files or folders, and those that made what these read; each after its inputs."""
    stages = lock.get("stages", {})
    found: set[str] = set()
    waiting = _makers(stages, paths)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting |= _makers(stages, [each["path"] for each in stages[name].get("deps", ())])
    return _ordered({name: stages[name] for name in found})


def stage_order(lock: Json, candidates: Sequence[str]) -> list[str]:
    """Stages of dvc.lock so that each comes after what it reads, ties by name."""
    return _ordered({name: entry for name, entry in lock.get("stages", {}).items() if is_live(name, candidates)})


def _makers(stages: Json, paths: Sequence[str]) -> set[str]:
    """The stages with an output that is one of these paths; of a path that is none, those whose outputs lie in it or hold it."""
    made = {each["path"]: name for name, entry in stages.items() for each in entry.get("outs", ())}
    found = set()
    for path in paths:
        near = {made[out] for out in made if f"{out}/".startswith(f"{path}/") or f"{path}/".startswith(f"{out}/")}
        found |= {made[path]} if path in made else near
    return found


def _ordered(stages: Json) -> list[str]:
    sorter = TopologicalSorter(
        {
            name: _makers(stages, [each["path"] for each in entry.get("deps", ())]) - {name}
            for name, entry in stages.items()
        }
    )
    order: list[str] = []
    try:
        sorter.prepare()
    except CycleError:
        return sorted(stages)  # entries of different graphs, left over in one lock file
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += ready
        sorter.done(*ready)
    return order


def is_live(stage: str, candidates: Sequence[str]) -> bool:
    """Whether a stage belongs to the run that is reported.

    Not the report itself, whose entry is of the run before, nor a candidate that params.yaml names no longer.
    """
    _, at, candidate = stage.partition("@")
    return stage != "report" and (not at or candidate in candidates)


def output_bytes(lock: Json, candidates: Sequence[str]) -> int | None:
    """Sum of the sizes of every stage's outputs; None where the lock names none."""
    outs = [each for name in stage_order(lock, candidates) for each in lock["stages"][name].get("outs", ())]
    found = [each["size"] for each in outs if each.get("size")]
    return sum(found) if found else None


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
