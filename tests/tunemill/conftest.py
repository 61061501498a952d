"""Tiny models that several tests read, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny_model
from tunemill import models


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
