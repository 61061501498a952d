"""Figures as files inside the page."""

from __future__ import annotations

import csv
from dataclasses import replace
from urllib.parse import unquote

from tests import report_artifacts as made
from tests.tunemill.test_report import TRAININGS, aligned, material
from tunemill import downloads


def rows(found: downloads.Download) -> list[dict[str, str]]:
    kind, _, text = found.href.partition(",")
    assert kind == "data:text/csv;charset=utf-8"
    return list(csv.DictReader(unquote(text).splitlines()))


def test_a_link_carries_the_rows_whatever_is_in_them():
    told = [{"name": 'a "b", #c%20\u00e9 & <d>', "value": 1 / 3}, {"name": "e", "value": None}]
    found = downloads.download("x.csv", "things", told)
    assert found is not None and found.rows == 2
    assert rows(found) == [{"name": told[0]["name"], "value": "0.333333"}, {"name": "e", "value": ""}]
    assert not {"#", '"', "<", " ", "&"} & set(found.href)
    assert downloads.download("x.csv", "nothing", []) is None


def test_the_files_hold_what_the_page_shows():
    found = downloads.files(
        replace(aligned(), compress=made.compressed(), promotion=made.promoted(), trainings=TRAININGS)
    )
    assert set(found) == {
        "criteria", "scores", "differences", "categories", "curves", "updates", "monitor", "variants", "lineage",
    }  # fmt: skip
    scores = {(row["candidate"], row["metric"]): row["value"] for row in rows(found["scores"])}
    told = aligned().comparison["candidates"]["lora"]["rouge1"]["value"]
    assert scores["lora", "rouge1"] == f"{told:.6g}"
    assert [row["at_least"] for row in rows(found["criteria"])] == ["2", "0", "0.5", ""]
    assert [row["at_most"] for row in rows(found["criteria"])][-1] == "4294967296"
    variants = {row["variant"]: row for row in rows(found["variants"])}
    assert variants["int8"]["quality_low"] == "33.5" and variants["int8"]["frontier_bytes"] == "True"
    assert {row["candidate"] for row in rows(found["updates"])} == {"ppo", "ppo-18"}


def test_nothing_stands_for_what_is_not_there():
    bare = material(comparison={"candidates": {}, "pairs": []}, lock=None, scope={**made.scope(), "criteria": []})
    assert downloads.files(bare) == {}
