"""The graph of dvc.yaml as the flow needs it: stages, what each waits for, and which of them have nothing to do.

Edges are DVC's own (an output of one stage overlaps a dependency of another), so a stage that is added to dvc.yaml needs no
change here. `meta: {alone: true}` in dvc.yaml marks a stage beside which nothing else may run (it measures speed).
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunemill.errors import UserError, nearest

GOAL = "report"
"""The stage that a whole run is for."""


@dataclass(frozen=True)
class Graph:
    """Stages by name (`evaluate@lora` for one of several), in an order in which each follows what it needs."""

    upstream: dict[str, tuple[str, ...]]
    """Stage → the stages whose outputs it reads."""
    alone: frozenset[str] = frozenset()
    """Stages that nothing may run beside."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Every stage, in order."""
        return tuple(self.upstream)

    def ancestors(self, name: str) -> frozenset[str]:
        """Everything a stage needs, directly or not."""
        found: set[str] = set()
        waiting = list(self.upstream[name])
        while waiting:
            each = waiting.pop()
            if each not in found:
                found.add(each)
                waiting += self.upstream[each]
        return frozenset(found)

    def until(self, name: str) -> Graph:
        """The part of the graph that ends with `name`: a stage, or all of `name@…`.

        Raises:
            UserError: there is no such stage.
        """
        wanted = [each for each in self.stages if each == name or each.partition("@")[0] == name]
        if not wanted:
            known = sorted({*self.stages, *(each.partition("@")[0] for each in self.stages)})
            near = nearest(name, known)
            raise UserError(
                f"no stage '{name}'",
                where="until",
                expected="one of " + ", ".join(known),
                fix=f"did you mean '{near}'?" if near else "",
                exit_code=2,
            )
        kept = set(wanted).union(*(self.ancestors(each) for each in wanted))
        return Graph({each: needs for each, needs in self.upstream.items() if each in kept}, self.alone & kept)

    def needed(self) -> Graph:
        """The part that ends with the report, which reads every candidate: what none of them uses is left out."""
        return self.until(GOAL) if GOAL in self.stages else self

    def unchanged(self, changed: frozenset[str]) -> frozenset[str]:
        """Stages that need not even be looked at: neither they nor anything they need has changed."""
        return frozenset(each for each in self.stages if not ({each} | self.ancestors(each)) & changed)


def read(root: Path) -> Graph:
    """The graph of the dvc.yaml under `root`, with every `foreach` expanded.

    Raises:
        UserError: dvc.yaml cannot be read, or has a cycle.
    """
    with _repository(root) as repo:
        needs = {
            _name(stage.addressing): sorted(_name(each.addressing) for each in repo.index.graph.successors(stage))
            for stage in repo.index.stages
        }
        alone = frozenset(_name(stage.addressing) for stage in repo.index.stages if (stage.meta or {}).get("alone"))
    ordered: dict[str, tuple[str, ...]] = {}
    while len(ordered) < len(needs):  # no cycle is possible: DVC has refused it
        for name, upstream in needs.items():
            if name not in ordered and all(each in ordered for each in upstream):
                ordered[name] = tuple(upstream)
    return Graph(ordered, alone)


def changed(root: Path) -> frozenset[str] | None:
    """Stages whose parameters, dependencies or outputs differ from dvc.lock; None where DVC is busy and cannot say."""
    from dvc.lock import LockError
    from dvc.rwlock import RWLockFileCorruptedError

    with _repository(root) as repo:
        try:
            return frozenset(_name(each) for each in repo.status())
        except (LockError, RWLockFileCorruptedError):
            return None


def _name(addressing: str) -> str:
    """A stage's own name: seen from another folder, DVC puts the path of dvc.yaml before it."""
    return addressing.rpartition(":")[2]


@contextlib.contextmanager
def _repository(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)
    try:
        # DVC draws progress bars on standard error; what is asked here takes no time worth one.
        with contextlib.redirect_stderr(io.StringIO()), Repo(str(root)) as repo:
            yield repo
    except DvcException as error:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        raise UserError(f"{error}{cause}", where=str(root / "dvc.yaml"), exit_code=2) from error
