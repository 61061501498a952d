"""DVC's lock file is written whole or not at all.

DVC writes dvc.lock in place, which takes half a second of a lifecycle's some thousand lines: a `kill -9` within it leaves half
a file, which no later run can read. And it reads the file twice for each stage, once in the way that keeps comments, five
times as slow; a lock file has none. The content is the same, byte for byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any


def whole(original: Callable[..., AbstractContextManager[Any]]) -> Callable[..., AbstractContextManager[Any]]:
    """DVC's `modify_yaml` for dvc.lock; of other files its own.

    Args:
        original: `dvc.utils.serialize.modify_yaml`.
    """

    @contextlib.contextmanager
    def modify(path: str, fs: Any = None) -> Iterator[Any]:
        if Path(path).name != "dvc.lock":
            with original(path, fs=fs) as content:
                yield content
            return
        from dvc.utils.serialize import dumps_yaml, load_yaml

        content = load_yaml(path, fs=fs) if Path(path).exists() else {}
        yield content
        beside = Path(f"{path}.tmp")  # DVC lets one at a time write it
        try:
            beside.write_text(dumps_yaml(content), encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    return modify


def install() -> None:
    """Let this process's DVC write its lock file so."""
    import dvc.dvcfile

    dvc.dvcfile.modify_yaml = whole(dvc.dvcfile.modify_yaml)
