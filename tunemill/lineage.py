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
    found = []
    for name in stage_order(lock, candidates):
        entry = lock["stages"][name]
        deps = [Thing(each["path"], each.get("md5") or each.get("etag") or "") for each in entry.get("deps", ())]
        code = sorted(each.path + each.hash for each in deps if each.path.startswith(CODE_PLACES))
        params = entry.get("params")
        found.append(
            Step(
                name=name,
                inputs=tuple(each for each in deps if not each.path.startswith(CODE_PLACES)),
                outputs=tuple(Thing(each["path"], each.get("md5") or "") for each in entry.get("outs", ())),
                params=_hash(json.dumps(params, sort_keys=True, default=str)) if params else "",
                code=_hash("\n".join(code)) if code else "",
            )
        )
    return found


def stage_order(lock: Json, candidates: Sequence[str]) -> list[str]:
    """Stages of dvc.lock so that each comes after what it reads, ties by name."""
    live = {name: entry for name, entry in lock.get("stages", {}).items() if is_live(name, candidates)}
    made = {each["path"]: name for name, entry in live.items() for each in entry.get("outs", ())}

    def makers(path: str) -> set[str]:
        return {made[each] for each in made if f"{path}/".startswith(f"{each}/") or f"{each}/".startswith(f"{path}/")}

    sorter = TopologicalSorter(
        {
            name: {maker for each in entry.get("deps", ()) for maker in makers(each["path"])} - {name}
            for name, entry in live.items()
        }
    )
    order: list[str] = []
    try:
        sorter.prepare()
    except CycleError:
        return sorted(live)  # entries of different graphs, left over in one lock file
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
