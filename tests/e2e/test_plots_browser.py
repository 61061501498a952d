"""`dvc plots show` draws in a browser, and asks no network for anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e import checkout

pytestmark = pytest.mark.e2e


def test_curves_scores_tradeoff_and_looks_of_ppo_are_drawn_offline(finished: Path, browser: Any) -> None:
    checkout.run(finished, "dvc", "plots", "show")
    page = browser.new_page()
    asked: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto((finished / "dvc_plots" / "index.html").as_uri())
    page.wait_for_selector(".vega-embed:nth-of-type(1) :is(canvas, svg)", timeout=20_000)
    drawn = page.locator(".vega-embed :is(canvas, svg.marks)")
    assert drawn.count() == 5
    for at in range(5):
        box = drawn.nth(at).bounding_box()
        assert box is not None and box["width"] > 300 and box["height"] > 200
    assert failed == []
    assert {url.split(":")[0] for url in asked} == {"file"}
    page.close()


def test_without_the_library_the_page_says_how_to_get_it(finished: Path, browser: Any, tmp_path: Path) -> None:
    checkout.run(finished, "dvc", "plots", "show", "-o", str(tmp_path / "elsewhere"))
    page = browser.new_page()
    page.goto((tmp_path / "elsewhere" / "index.html").as_uri())
    assert "make setup" in page.inner_text("body")
    page.close()
