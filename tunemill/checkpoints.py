"""Files and folders that are either complete or not there, and that say so when they were damaged.

Written to a temporary name, flushed to disk, renamed; a checkpoint's manifest of hashes comes last, and resuming takes
the newest folder whose manifest holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def file_hash(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes, in hex."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def tree_hash(path: Path) -> str:
    """BLAKE2b-128 of a file, or of a folder's relative paths and contents (symbolic links followed)."""
    if path.is_file():
        return file_hash(path)
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_hash(file)}\n".encode())
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, keys sorted, whole or not at all; not-a-number is refused (undefined is null)."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def publish(partial: Path, final: Path) -> None:
    """Move a finished file or folder to its place, replacing what is there."""
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir() and not final.is_symlink():
        shutil.rmtree(final)
    elif final.exists() or final.is_symlink():
        final.unlink()
    _flush(partial)
    partial.replace(final)


def save(folder: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a checkpoint folder and put it under `folder/name` once it is complete.

    Returns:
        The checkpoint's path.
    """
    partial = folder / f".{name}.{os.getpid()}.partial"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    write(partial)
    seal(partial)
    final = folder / name
    publish(partial, final)
    return final


def seal(checkpoint: Path) -> None:
    """Write the manifest of a checkpoint that some library wrote: from now on it counts as complete."""
    files = {
        file.relative_to(checkpoint).as_posix(): file_hash(file)
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    _flush(checkpoint)
    write_json(checkpoint / MANIFEST, files)


def is_complete(checkpoint: Path) -> bool:
    """Whether the manifest is there and every file still has the hash it names."""
    manifest = checkpoint / MANIFEST
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return False
    return all((checkpoint / name).is_file() and file_hash(checkpoint / name) == value for name, value in files.items())


def newest(folder: Path, prefix: str = "checkpoint-") -> Path | None:
    """The complete checkpoint `prefix<number>` with the highest number; damaged and unfinished ones are passed over."""
    numbered = [
        (int(each.name.removeprefix(prefix)), each)
        for each in (folder.iterdir() if folder.is_dir() else ())
        if each.name.startswith(prefix) and each.name.removeprefix(prefix).isdigit()
    ]
    return next((each for _, each in sorted(numbered, reverse=True) if is_complete(each)), None)


def _flush(path: Path) -> None:
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
