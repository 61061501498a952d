"""An append-only record of work done, one JSON object a line: what a killed run had finished is not done again.

A `Shelf` holds journals by what their content depends on, so that a finished run's are of use to the next one, too.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


class Shelf:
    """A folder of journals, each named by what its content depends on: what was found under the same name is true again.

    A run takes each journal it needs by `of`, and `tidy` throws away what it did not take: the shelf holds one run's work.
    """

    def __init__(self, folder: Path, *told: Any) -> None:
        """Journals in `folder`, whose content depends on `told` (anything that JSON has), whatever they are about."""
        self.folder = folder
        self.told = told
        self.taken: set[Path] = set()

    def of(self, name: str, *told: Any) -> Path:
        """The journal of this name whose content depends on `told` besides; there may be nothing in it yet."""
        text = json.dumps([name, *self.told, *told], sort_keys=True)
        path = self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
        self.taken.add(path)
        return path

    def tidy(self) -> None:
        """Delete the journals that were not taken."""
        for path in self.folder.glob("*.jsonl"):
            if path not in self.taken:
                path.unlink()


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
