"""Tiny models that several tests read, built once; and a kill between two entries of a journal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tunemill import journal, models

Kills = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny decoder-only model; not to be written to."""
    path = tmp_path_factory.mktemp("decoder")
    tiny_model.build(path)
    return path


@pytest.fixture(scope="session")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny encoder-decoder; not to be written to."""
    path = tmp_path_factory.mktemp("encoder_decoder")
    models.make_random(path, 2, 32, 3, "float32", "encoder-decoder")
    return path


@pytest.fixture(params=["decoder", "encoder_decoder"])
def either(request: pytest.FixtureRequest) -> Path:
    """The one, then the other."""
    return Path(request.getfixturevalue(request.param))


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Kills:
    """Told numbers of entries: what writes a journal is killed as soon as it has so many. Returns the entries, as they come."""
    append = journal.append

    def arm(*counts: int) -> list[dict[str, Any]]:
        written: list[dict[str, Any]] = []

        def dies(path: Path, entry: dict[str, Any]) -> None:
            append(path, entry)
            written.append(entry)
            if len(written) in counts:
                raise KeyboardInterrupt

        monkeypatch.setattr(journal, "append", dies)
        return written

    return arm
