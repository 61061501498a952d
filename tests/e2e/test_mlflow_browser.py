"""Candidates compared in MLflow by clicking, as a user does it, in a real browser on a real server.

Needs a Chromium (`CHROMIUM` names one, else the usual names are tried); skipped without one, failed in CI.

The pictures in the README are made by these tests, of a checkout whose pipeline has run (nothing is changed there):

    TUNEMILL_SCREENSHOT=docs/images/mlflow-compare.png TUNEMILL_SCREENSHOT_OF=. pytest tests/e2e/test_mlflow_browser.py

The picture of the table is put beside it, as mlflow-compare-table.png.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.e2e import checkout
from tunemill import servers, tracking

pytestmark = pytest.mark.e2e

NAMES = ("base", "prompt", "sft", "lora", "prompt_tune", "ppo", "sl_cai", "rl_cai", "compact")
CANDIDATES = "tags.candidate LIKE '%'"

# MLflow draws the table of metrics as two grids side by side: what belongs together stands at one height.
VALUES = """link => {
  const at = each => { const box = each.getBoundingClientRect(); return (box.top + box.bottom) / 2; };
  const left = link.getBoundingClientRect().right;
  return [...document.querySelectorAll('[role=grid] *')]
    .filter(each => !each.children.length && each.textContent.trim())
    .filter(each => Math.abs(at(each) - at(link)) < 8 && each.getBoundingClientRect().left >= left)
    .sort((a, b) => a.getBoundingClientRect().left - b.getBoundingClientRect().left)
    .map(each => each.textContent.trim());
}"""


class Ui(NamedTuple):
    """MLflow's pages of one checkout."""

    runs: str
    """Address of the experiment's runs."""
    matching: int
    """How many runs the search for candidates leads to, with those they are nested under."""
    metrics: dict[str, dict[str, float]]
    """Candidate → metric → value, as the stage wrote it."""


@pytest.fixture(scope="module")
def ui(browser: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    """`mlflow server` on the finished checkout's runs; the server and all it started are gone afterwards."""
    named = os.environ.get("TUNEMILL_SCREENSHOT_OF")
    place = Path(named).resolve() if named else request.getfixturevalue("finished")
    folder = tmp_path_factory.mktemp("mlflow")
    # A copy: the runs of a checkout that is looked at stay as they are, even while it runs.
    with (
        closing(sqlite3.connect(f"file:{place / 'mlflow.db'}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(folder / "mlflow.db")) as copy,
    ):
        source.backup(copy)
    client = tracking.connect(folder)
    experiment = client.get_experiment_by_name(tracking.scope_name(place / "params.yaml"))
    assert experiment is not None
    candidates = client.search_runs([experiment.experiment_id], CANDIDATES)
    parents = {run.data.tags["mlflow.parentRunId"] for run in candidates}
    port = servers.free_port(0)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(place / "mlartifacts")]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env={**servers.environment(checkout.ROOT), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    try:
        until_answers(f"http://127.0.0.1:{port}/health", server, folder / "server.log")
        yield Ui(
            f"http://127.0.0.1:{port}/#/experiments/{experiment.experiment_id}/runs",
            len(candidates) + len(parents),
            {name: written(place, name) for name in NAMES},
        )
    finally:
        stop(server)


def written(place: Path, name: str) -> dict[str, float]:
    """What the stage measured of a candidate, named as in MLflow."""
    scores, timing = (
        json.loads((place / f"metrics/evaluate/{name}{kind}.json").read_text()) for kind in ("", ".timing")
    )
    return {**scores, "system/seconds": timing["seconds"]}


def until_answers(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                answer.read()
            return
        except (urllib.error.URLError, OSError):
            if server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"mlflow server does not answer:\n{log.read_text()[-4000:]}") from None
            time.sleep(0.2)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server with its workers."""
    try:
        every = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
    except psutil.NoSuchProcess:
        every = []
    server.terminate()
    _, left = psutil.wait_procs(every, timeout=10)
    for each in left:
        each.kill()
    server.wait(timeout=10)
    assert not psutil.wait_procs(left, timeout=10)[1]


@pytest.fixture
def page(browser: Any, ui: Ui) -> Iterator[Any]:
    """The experiment's runs, before any click."""
    context = browser.new_context(
        viewport={"width": 2200, "height": 900}, color_scheme="light", locale="en-US", timezone_id="UTC"
    )
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    # The assistant beside the page opens itself, whenever it has loaded.
    opened.add_locator_handler(opened.get_by_role("button", name="Close", exact=True), lambda button: button.click())
    opened.goto(ui.runs)
    yield opened
    context.close()


def find_candidates(page: Any, ui: Ui) -> None:
    """Search for the candidates' runs."""
    page.get_by_text("Model training", exact=True).click()
    search = page.get_by_test_id("search-box")
    search.fill(CANDIDATES)
    search.press("Enter")
    page.get_by_text(f"{ui.matching} matching runs").wait_for()


def unfold_and_select(page: Any) -> None:
    """Open the newest pipeline run with the [+] beside its name, and tick every candidate."""
    parent = page.locator("[role=row][row-id]").filter(has=page.get_by_role("button")).first
    parent.get_by_role("button").first.click()
    for name in NAMES:
        link = page.get_by_role("link").filter(has_text=re.compile(rf"^{name}$"))
        row = page.locator("[role=row][row-id]").filter(has=link).first
        row.get_by_role("checkbox", name="row selection").check()


def photograph(page: Any, suffix: str = "") -> None:
    """Keep a picture of what is to be seen, where one is asked for."""
    if os.environ.get("TUNEMILL_SCREENSHOT"):
        path = Path(os.environ["TUNEMILL_SCREENSHOT"])
        path.parent.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(1500)  # charts grow
        page.screenshot(path=path.with_stem(path.stem + suffix), animations="disabled")


def test_compare_shows_the_candidates_side_by_side(page: Any, ui: Ui) -> None:
    find_candidates(page, ui)
    unfold_and_select(page)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_role("heading", name=f"Comparing {len(NAMES)} Runs from 1 Experiment").wait_for()

    def row(name: str) -> list[str]:
        cells = page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=name, exact=True))
        return [each.strip() for each in cells.first.get_by_role("cell").all_inner_texts()]

    names = row("Run Name:")
    assert sorted(names) == sorted(NAMES)
    tokens = row("evaluate.max_new_tokens")
    assert len(tokens) == len(NAMES) and set(tokens) == {tokens[0]} and int(tokens[0]) > 0

    page.get_by_role("button", name="Visualizations").click()
    page.get_by_role("button", name="Parameters", exact=True).click()

    def values(metric: str) -> list[float]:
        link = page.get_by_title("Plot chart").filter(has_text=re.compile(rf"^{metric}$"))
        box = page.get_by_role("grid").last.bounding_box()  # the values' own scroll bar
        page.mouse.move(box["x"] + 60, box["y"] + 30)
        shown: list[str] = []
        for _ in range(60):
            shown = link.evaluate(VALUES) if link.count() else []
            if len(shown) == len(names):
                break
            # Only what is to be seen is in the page; and the names follow the values one movement late.
            page.mouse.wheel(0, 1 if link.count() else 100)
            page.wait_for_timeout(100)
        return [float(each) for each in shown]

    def expected(metric: str) -> Any:
        return pytest.approx([ui.metrics[name][metric] for name in names], rel=1e-3)  # four digits are shown

    # The tiny model of a test may have nothing right, with and without an adapter; time always differs.
    telling = next(
        metric
        for metric in ("test/rouge1", "test/length_words", "system/seconds")
        if len({each[metric] for each in ui.metrics.values()}) > 1
    )
    difference = page.get_by_role("switch", name="Metrics - Show diff only")
    difference.click()
    assert values(telling) == expected(telling)
    photograph(page, "-table")
    difference.click()
    assert values("test/rouge1") == expected("test/rouge1")


def test_charts_show_the_candidates_by_name(page: Any, ui: Ui) -> None:
    find_candidates(page, ui)
    page.locator("label:has(input[value=CHART])").click()
    page.get_by_role("button", name="Toggle sidebar").click()
    unfold_and_select(page)
    page.get_by_placeholder("Search metric charts").fill("test/(bleu|finished|length|rouge.$)")
    page.get_by_text("test/rouge1", exact=True).wait_for()
    for name in NAMES:
        # In the list and in a chart's legend.
        page.wait_for_function(
            "name => [...document.querySelectorAll('main *, body *')].filter("
            "each => !each.children.length && each.textContent.trim() === name).length > 1",
            arg=name,
        )
        shown = f"{ui.metrics[name]['test/rouge1']:.2f}"
        page.locator(".js-plotly-plot text").filter(has_text=re.compile(rf"^{re.escape(shown)}$")).first.wait_for()
    page.get_by_placeholder("Search metric charts").blur()
    photograph(page)
