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
    waiting = _made(stages, paths)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting |= _made(stages, [each["path"] for each in stages[name].get("deps", ())])
    inputs = {name: [each["path"] for each in stages[name].get("deps", ())] for name in found}
    return _ordered({name: (_made(stages, inputs[name]) & found) - {name} for name in found})


def _made(stages: Json, paths: Sequence[str]) -> set[str]:
    """The stages with an output that is one of these paths; of a path that is none, those whose outputs lie in it or hold it."""
    made = {each["path"]: name for name, entry in stages.items() for each in entry.get("outs", ())}
    found = set()
    for path in paths:
        near = {made[out] for out in made if f"{out}/".startswith(f"{path}/") or f"{path}/".startswith(f"{out}/")}
        found |= {made[path]} if path in made else near
    return found


def stage_order(lock: Json, candidates: Sequence[str]) -> list[str]:
    """Stages of dvc.lock so that each comes after what it reads, ties by name."""
    return _ordered(reads(lock, candidates))


def _ordered(parents: Mapping[str, set[str]]) -> list[str]:
    sorter = TopologicalSorter(parents)
    order: list[str] = []
    try:
        sorter.prepare()
    except CycleError:
        return sorted(parents)  # entries of different graphs, left over in one lock file
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += ready
        sorter.done(*ready)
    return order


def reads(lock: Json, candidates: Sequence[str]) -> dict[str, set[str]]:
    """Stage → the stages whose outputs it reads, of those that belong to the run that is reported."""
    makers = _makers(lock)
    live = {name for name in makers if is_live(name, candidates, lock)}
    return {name: makers[name] & live for name in makers if name in live}


def is_live(stage: str, candidates: Sequence[str], lock: Json) -> bool:
    """Whether a stage belongs to the run that is reported.

    Not the report itself, whose entry is of the run before, nor what only a candidate needed that params.yaml names no longer:
    its evaluation, and other stages of many runs (`ppo@harm`) that nothing else in dvc.lock reads.
    """
    name, at, key = stage.partition("@")
    if name == "report":
        return False
    if name == "evaluate":
        return not at or key in candidates
    entries = lock.get("stages", {})
    return not at or stage not in entries or stage in _needed(lock, candidates)


def _needed(lock: Json, candidates: Sequence[str]) -> set[str]:
    makers = _makers(lock)
    waiting = [name for name in makers if "@" not in name or name in {f"evaluate@{each}" for each in candidates}]
    needed: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += makers[name]
    return needed


def _makers(lock: Json) -> dict[str, set[str]]:
    stages = {name: entry for name, entry in lock.get("stages", {}).items() if name != "report"}
    made = {each["path"]: name for name, entry in stages.items() for each in entry.get("outs", ())}

    def makers(path: str) -> set[str]:
        return {made[each] for each in made if f"{path}/".startswith(f"{each}/") or f"{each}/".startswith(f"{path}/")}

    return {
        name: {maker for each in entry.get("deps", ()) for maker in makers(each["path"])} - {name}
        for name, entry in stages.items()
    }


def stage_bytes(lock: Json, candidates: Sequence[str]) -> dict[str, int]:
    """Stage → sum of the sizes of its outputs, where the lock tells them."""
    found = {
        name: sum(each.get("size") or 0 for each in lock["stages"][name].get("outs", ()))
        for name in stage_order(lock, candidates)
    }
    return {name: count for name, count in found.items() if count}


def output_bytes(lock: Json, candidates: Sequence[str]) -> int | None:
    """Sum of the sizes of every stage's outputs; None where the lock names none."""
    return sum(stage_bytes(lock, candidates).values()) or None


# ── the graph ─────────────────────────────────────────────────────────────────────────────────────────────────────

ACROSS = 3
"""Most stages side by side: so many fit on a phone."""
ROW = 76
"""Pixels from one row of stages to the next."""
BOX = 44
"""Height of a stage's box, pixels."""


@dataclass(frozen=True)
class Node:
    """A stage, or all runs of one that differ in the candidate, in the drawing."""

    name: str
    title: str
    note: str
    """Its first output's hash, shortened."""
    x: float
    """Of its middle, in percent from the left."""
    y: int
    """Of its upper edge, in pixels from the top."""
    on_path: bool
    """Whether the model that the page is about came through here."""
    said: str


@dataclass(frozen=True)
class Graph:
    """Stages from the data at the top to the decision at the bottom."""

    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, bool], ...]
    """SVG paths, percent across and pixels down, and whether the model came this way; what leads there in two ways is drawn once."""
    height: int
    path: tuple[Step, ...]
    """The stages that the model came through, in order."""
    summary: str


def maker(lock: Json, candidates: Sequence[str], path: str) -> str | None:
    """The stage whose output a path lies in; None where no live stage made it."""
    told = steps(lock, candidates)
    return next((each.name for each in told if any(_holds(out.path, path) for out in each.outputs)), None)


def graph(lock: Json, candidates: Sequence[str], policy: str, subject: str) -> Graph | None:
    """The lineage as a drawing.

    Args:
        lock: dvc.lock.
        candidates: the names of params.yaml.
        policy: path of the model that the page is about.
        subject: its name among the candidates.

    Returns:
        None where the lock has no stages, or they are of different graphs.
    """
    told = {each.name: each for each in steps(lock, candidates)}
    parents = _grouped(reads(lock, candidates))
    if not told:
        return None
    try:
        order = list(TopologicalSorter({name: sorted(above) for name, above in sorted(parents.items())}).static_order())
    except CycleError:
        return None
    ancestors: dict[str, set[str]] = {}
    for name in order:
        ancestors[name] = parents[name].union(*(ancestors[each] for each in parents[name]))
    kept = {
        name: {each for each in above if not any(each in ancestors[other] for other in above)}
        for name, above in parents.items()
    }
    # What makes it, what that was made from, and what was then found out about it.
    made = maker(lock, candidates, policy)
    path = {made, *ancestors[made]} if made else set()
    path |= {name for name in ("evaluate", "compare", "promote") if made and made in ancestors.get(name, ())}

    place: dict[str, tuple[float, int]] = {}
    for at, row in enumerate(_rows(order, kept)):

        def wish(name: str) -> tuple[float, str]:
            above = [place[each][0] for each in kept[name]]
            return (sum(above) / len(above) if above else 50.0, name)

        for index, name in enumerate(sorted(row, key=wish)):
            place[name] = (round(100 * (2 * index + 1) / (2 * len(row)), 2), at * ROW + 1)
    nodes = tuple(_node(name, place[name], told, name in path) for name in order)
    # The model's way is drawn whole, even where something else lies between two of its stages.
    way = {name: {each for each in parents[name] if each in path} for name in order if name in path}
    way = {
        name: {each for each in above if not any(each in ancestors[other] for other in above)}
        for name, above in way.items()
    }
    edges = [
        (_curve(place[above], place[name]), above in way.get(name, ()))
        for name in order
        for above in sorted(kept[name] | way.get(name, set()))
    ]
    through = tuple(
        each for name, each in told.items() if name in path or (name == f"evaluate@{subject}" and "evaluate" in path)
    )
    return Graph(
        nodes=nodes,
        edges=tuple(sorted(edges, key=lambda each: each[1])),  # those of the model on top
        height=max(y for _, y in place.values()) + BOX + 2,
        path=through,
        summary=f"{len(nodes)} stages; {subject} came through {', '.join(each.name for each in through) or 'none of them'}",
    )


def _grouped(parents: Mapping[str, set[str]]) -> dict[str, set[str]]:
    # Every candidate is evaluated in the same way: one box for all of them.
    def group(name: str) -> str:
        return "evaluate" if name.startswith("evaluate@") else name

    found: dict[str, set[str]] = {}
    for name, above in parents.items():
        found.setdefault(group(name), set()).update(group(each) for each in above)
    return {name: above - {name} for name, above in found.items()}


def _rows(order: Sequence[str], kept: Mapping[str, set[str]]) -> list[list[str]]:
    # Each below everything that it reads, as high as there is room.
    at: dict[str, int] = {}
    rows: list[list[str]] = []
    for name in order:
        row = max((at[each] + 1 for each in kept[name]), default=0)
        while row < len(rows) and len(rows[row]) >= ACROSS:
            row += 1
        rows += [[] for _ in range(row + 1 - len(rows))]
        rows[row].append(name)
        at[name] = row
    return [row for row in rows if row]


def _node(name: str, place: tuple[float, int], told: Mapping[str, Step], on_path: bool) -> Node:
    own = [
        each
        for each in told.values()
        if each.name == name or (name == "evaluate" and each.name.startswith("evaluate@"))
    ]
    title = f"{name} × {len(own)}" if len(own) > 1 else own[0].name
    lines = [title]
    for each in own[:1] if len(own) == 1 else ():
        lines += [f"read {thing.path} {thing.hash[:12]}" for thing in each.inputs]
    lines += [f"wrote {thing.path} {thing.hash[:12]}" for each in own for thing in each.outputs]
    note = own[0].outputs[0].hash[:7] if len(own) == 1 and own[0].outputs else ""
    return Node(own[0].name, title, note, *place, on_path, "\n".join(lines))


def _curve(above: tuple[float, int], below: tuple[float, int]) -> str:
    (x0, y0), (x1, y1) = above, below
    y0 += BOX
    middle = round((y0 + y1) / 2, 1)
    return f"M{x0:g} {y0} C{x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1}"


def _holds(out: str, policy: str) -> bool:
    return bool(policy) and f"{policy}/".startswith(f"{out}/")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
