"""A sweep over ranks as docs/adapt.md describes it: experiments in a table, and all their points in one plot, offline."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import checkout

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def documented() -> list[str]:
    """The commands of the sweep, as the page has them."""
    text = (checkout.ROOT / "docs/adapt.md").read_text(encoding="utf-8")
    block = re.search(r"A sweep\..*?```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return [line.split("  #")[0].strip() for line in block[1].splitlines()]


@pytest.mark.timeout(1800)
def test_a_sweep_over_ranks_is_one_table_and_one_plot(lean: Path, browser: Any, tmp_path: Path) -> None:
    place = tmp_path / "sweep"
    shutil.copytree(lean, place, symlinks=True)
    commands = [each.replace("4,8,16,32", "2,4") for each in documented()]
    assert len(commands) == 4 and "2,4" in commands[0]
    with checkout.warmed(place) as warm:
        told = [checkout.run(place, "sh", "-c", each, timeout=1500, **warm).stdout for each in commands]

    names = checkout.run(place, "dvc", "exp", "list", "--name-only").stdout.split()
    assert len(names) == 2
    assert "lora.rank" in told[2] and all(name in told[2] for name in names)

    # Each experiment brings its own points: half the rank, half the adapter.
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((place / "dvc_plots/index.html").as_uri())
    page.wait_for_selector(".vega-embed:nth-of-type(3) :is(canvas, svg)", timeout=20_000)
    html = (place / "dvc_plots/index.html").read_text(encoding="utf-8")
    found = set(re.findall(r'"candidate": "lora", "trainable_parameters": "(\d+)".*?"rev": "([^"]+)"', html))
    assert {rev for _, rev in found} == set(names)
    few, many = sorted(int(count) for count, _ in found)
    assert many == 2 * few
    assert {url.split(":")[0] for url in asked} == {"file"}
    page.close()
