"""An append-only record of work done, one JSON object a line: what a killed run had finished is not done again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def recover(path: Path) -> list[dict[str, Any]]:
    """The complete entries of a journal; whatever follows the last of them (a line cut short by a kill) is cut off.

    Returns:
        Entries in the order written; none where there is no journal.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    entries: list[dict[str, Any]] = []
    good = 0
    while (end := content.find(b"\n", good)) >= 0:
        try:
            entry = json.loads(content[good:end])
        except (json.JSONDecodeError, UnicodeDecodeError):
            break
        if not isinstance(entry, dict):
            break
        entries.append(entry)
        good = end + 1
    if good < len(content):
        with path.open("r+b") as file:
            file.truncate(good)
            _flush(file.fileno())
    return entries


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add one entry; it is on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(json.dumps(entry, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        file.flush()
        _flush(file.fileno())


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)
