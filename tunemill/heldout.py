"""The held-out items, if they are those that were fixed before the first training, and fixed subsets of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tunemill import records, statistics
from tunemill.errors import UserError
from tunemill.records import Example, HarmlessPrompt, RedTeamPrompt, TaskItem

Item = TypeVar("Item", Example, RedTeamPrompt, HarmlessPrompt, TaskItem)


def examples(test: Path, splits: Path) -> list[Example]:
    """The test rows, if they are those whose ids were hashed before training.

    Raises:
        UserError: they are not, or an id stands there twice.
    """
    found = records.read(test, Example)
    _as_fixed([each.id for each in found], test, splits, "test_ids_sha256")
    if not found:
        raise UserError("no test items", where=str(test), expected="at least one", fix="validate.test in params.yaml")
    return found


def questions(tasks: Path, splits: Path) -> list[TaskItem]:
    """The held-out questions of other tasks, if they are those that were fixed before training.

    Raises:
        UserError: they are not, or an id stands there twice.
    """
    found = records.read(tasks, TaskItem)
    _as_fixed([each.id for each in found], tasks, splits, "tasks_test_ids_sha256")
    return found


def red_team(attacks: Path, splits: Path) -> list[RedTeamPrompt]:
    """The red-team prompts to test with, if they are those that were fixed before any alignment.

    Raises:
        UserError: they are not, or an id stands there twice.
    """
    found = records.read(attacks, RedTeamPrompt)
    _as_fixed([each.id for each in found], attacks, splits, "red_team_test_ids_sha256")
    return found


def harmless(prompts: Path, splits: Path) -> list[HarmlessPrompt]:
    """The harmless questions to test with, if they are those that were fixed before any alignment.

    Raises:
        UserError: they are not, or an id stands there twice.
    """
    found = records.read(prompts, HarmlessPrompt)
    _as_fixed([each.id for each in found], prompts, splits, "harmless_test_ids_sha256")
    return found


def subset(items: Sequence[Item], count: int | None, seed: int, group: str) -> list[Item]:
    """A fixed random subset in which every group has its share; None takes all, 0 none."""
    if count == 0:
        return []
    groups = [getattr(each, group) for each in items]
    return [items[index] for index in statistics.stratified([each.id for each in items], groups, count or 0, seed)]


def attacks(items: Sequence[RedTeamPrompt], count: int | None, seed: int) -> list[RedTeamPrompt]:
    """A fixed random subset with as many of each kind, and within a kind every source with its share; None takes all, 0 none.

    Kinds are reported apart, so that each needs enough; what the one with the fewest lacks, the others take.
    """
    by_kind: dict[str, list[RedTeamPrompt]] = {}
    for each in items:
        by_kind.setdefault(each.kind, []).append(each)
    found: list[RedTeamPrompt] = []
    left = len(items) if count is None else count
    for place, kind in enumerate(sorted(by_kind, key=lambda kind: (len(by_kind[kind]), kind))):
        share = min(len(by_kind[kind]), left // (len(by_kind) - place))
        found += subset(by_kind[kind], share, seed, "source")
        left -= share
    return found


def same_items(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], group: str, what: str = "test items", needed: bool = True
) -> None:
    """Check that all candidates answered the same items, in the same order.

    Args:
        rows: candidate → what it answered, with `id` and the field `group`.
        group: the field that names an item's group.
        what: the items are, for the message.
        needed: whether there must be any.

    Raises:
        UserError: they did not, or there are none.
    """
    (first, expected), *others = ((name, [(row["id"], row[group]) for row in found]) for name, found in rows.items())
    if needed and not expected:
        raise UserError(f"no {what}", where=f"candidate '{first}'", expected="at least one", fix="dvc repro evaluate")
    for name, found in others:
        if found != expected:
            apart = len(set(found) ^ set(expected))
            raise UserError(
                f"'{name}' and '{first}' answered different {what} ({apart} of them are not in both)",
                expected="the same asked of all candidates",
                fix="dvc repro evaluate",
            )


def _as_fixed(ids: Sequence[str], test: Path, splits: Path, key: str) -> None:
    """Check that the ids of `test` are those whose hash `splits` has under `key`, each once."""
    try:
        promised = json.loads(splits.read_text(encoding="utf-8"))[key]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise UserError(
            f"no '{key}' in it",
            where=str(splits),
            expected="the splits.json that validate writes",
            fix="dvc repro validate",
        ) from None
    found = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
    if found != promised or len(set(ids)) < len(ids):
        raise UserError(
            f"these are not the test items that were fixed before training (ids hash to {found[:12]}…)",
            where=str(test),
            expected=f"{str(promised)[:12]}…, as {splits} says",
            fix="leave the test split as validate wrote it: dvc repro validate",
        )
