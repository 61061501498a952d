"""One finished pipeline on the tiny recipe for all tests that only look at it, and a browser to look with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import checkout
from tunemill.recipes import merged

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A whole run, or two of them, may stand before any of these tests, on a machine that does other things as well."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which `dvc repro` has run to its end, without Prefect."""
    place = checkout.make(tmp_path_factory.mktemp("finished"))
    with checkout.warmed(place) as warm:
        checkout.run(place, "dvc", "repro", **warm)
    return place


@pytest.fixture(scope="session")
def lean(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one tuned candidate, committed: for experiments, which would align every variant of it anew."""
    place = tmp_path_factory.mktemp("lean") / "checkout"
    shutil.copytree(
        finished, place, symlinks=True, ignore=lambda folder, names: {"tmp"} if Path(folder).name == ".dvc" else set()
    )
    (place / "params.yaml").write_text(merged(place / "params.yaml", [(Path("lean"), checkout.FEW)]))
    with checkout.warmed(place) as warm:
        checkout.run(place, "dvc", "repro", **warm)
    checkout.run(place, "git", "add", "-A")
    checkout.run(place, "git", "commit", "-q", "-m", "results")
    return place


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, headless; skipped where there is none, failed in CI."""
    named = os.environ.get("CHROMIUM")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome"]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        reason = "no Chromium found: install one (Debian: apt-get install chromium) or name it in CHROMIUM"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield started
        started.close()
