"""What another workspace has computed, restored instead of computed again.

A recipe runs in a workspace of its own, which shares the checkout's cache. DVC's run cache would restore there what is the same, but
it passes by stages that have an output outside of the cache, and every stage writes its metrics for git. So this looks into the
others' dvc.lock: where one has an entry of the same stage with the same command, parameters and dependencies, its outputs are linked
out of the cache, its metrics are copied, and the entry is taken over. `dvc repro` then finds nothing to do, or does it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

LOCK = "dvc.lock"


def donors(root: Path, workspace: Path) -> list[Path]:
    """Workspaces with results, the checkout and those of its recipes: this one first, then those that were written last.

    (This one may have an entry whose outputs somebody has deleted.)
    """
    found = [place for place in (root, *(root / "work" / "recipes").glob("*")) if (place / LOCK).is_file()]
    return sorted(found, key=lambda place: (place != workspace, -(place / LOCK).stat().st_mtime_ns))


def adopt(workspace: Path, name: str, others: Sequence[Path]) -> Path | None:
    """Bring a stage's outputs in from another workspace that has made exactly these.

    Args:
        workspace: where the stage is to be brought up to date.
        name: the stage.
        others: workspaces to look in, in this order; they share the cache with this one, which may be among them.

    Returns:
        The one that had them; None where the stage is up to date already, or nobody has it.
    """
    from dvc.repo import Repo, lock_repo

    entries = list(_entries(name, others))
    if not entries:
        return None
    with Repo(str(workspace), _wait_for_lock=True) as repo, lock_repo(repo):
        stage = repo.stage.load_one(name=name)
        if not stage.changed():
            return None
        for place, entry in entries:
            if entry.get("cmd") == stage.cmd and _fill(stage, entry) and _bring(stage, place, workspace):
                stage.cmd_changed = False
                stage.dvcfile.dump(stage, update_pipeline=False)
                return place
    return None


def _entries(name: str, others: Sequence[Path]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    from dvc.utils.serialize import load_yaml

    for place in others:
        entry = (load_yaml(str(place / LOCK)).get("stages") or {}).get(name)
        if entry:
            yield place, entry


def _fill(stage: Any, entry: Mapping[str, Any]) -> bool:
    """Take the entry for the stage's; whether its parameters and dependencies are those of now, and its outputs in the cache."""
    from dvc.stage.loader import StageLoader

    StageLoader.fill_from_lock(stage, entry)
    return (
        all(each.hash_info for each in (*stage.deps, *stage.outs))
        and not stage.changed_deps()
        and all(not each.changed_cache() for each in stage.outs if each.use_cache)
    )


def _bring(stage: Any, place: Path, workspace: Path) -> bool:
    """Put the outputs in their places; False where what is outside of the cache is no longer what the entry says."""
    outside = [each for each in stage.outs if not each.use_cache]
    if any(_md5(place / each.def_path) != each.hash_info.value for each in outside):
        return False
    for each in outside if place != workspace else ():
        made = Path(each.def_path)
        (workspace / made).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / made, workspace / made)
        timing = made.with_suffix(".timing.json")  # how long it took there: for the report, and in nobody's lock
        if (place / timing).is_file():
            shutil.copyfile(place / timing, workspace / timing)
    for each in stage.outs:
        if each.use_cache:
            each.checkout(force=True)
    return True


def _md5(path: Path) -> str | None:
    return hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else None
