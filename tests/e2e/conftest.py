"""One finished pipeline on the tiny recipe, for all tests that only look at it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import checkout


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which `dvc repro` has run to its end, without Prefect."""
    place = checkout.make(tmp_path_factory.mktemp("finished"))
    checkout.run(place, "dvc", "repro")
    return place
